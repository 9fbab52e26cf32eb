#!/usr/bin/env bash
# The tests: makes .venv if needed, installs, runs pytest in two processes; run it from anywhere. Arguments go to pytest.
#
#   bash launch/test.sh                      all
#   bash launch/test.sh -m smoke             one short path through everything
#   bash launch/test.sh tests/test_losses.py
#
# EXTRAS=demo,test,plan installs compilers for TPUs and GPUs (a gigabyte), too: then kernels are compiled for both.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

install "${EXTRAS:-demo,test}"
cd "$root"
exec "$VENV/bin/python" -m pytest --numprocesses=2 --dist=loadfile "$@"
