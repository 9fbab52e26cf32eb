#!/usr/bin/env bash
# The tests: makes .venv if needed, installs, runs pytest in two processes; run it from anywhere. Arguments go to pytest.
#
#   bash launch/test.sh                      all
#   bash launch/test.sh -m smoke             one short path through everything
#   bash launch/test.sh -m slurm             under Slurm, which is installed and started on this machine (Debian, root)
#   bash launch/test.sh tests/test_losses.py
#
# EXTRAS=demo,test,plan installs compilers for TPUs and GPUs (a gigabyte), too: then kernels are compiled for both.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

install "${EXTRAS:-demo,test}"
cd "$root"
# In the order of their names: the file that takes longest begins early, and no worker is left alone with it.
exec "$VENV/bin/python" -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@"
