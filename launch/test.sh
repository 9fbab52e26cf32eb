#!/usr/bin/env bash
# The tests: makes .venv if needed, installs, runs pytest in three processes; run it from anywhere. Arguments go to pytest.
#
#   bash launch/test.sh                      the fast tier: under ten minutes on two cores
#   bash launch/test.sh --all                everything but Slurm: under thirty-five
#   bash launch/test.sh -m smoke             one short path through everything
#   bash launch/test.sh -m slurm             under Slurm, which is installed and started on this machine (Debian, root)
#   bash launch/test.sh tests/test_losses.py
#
# EXTRAS=demo,test,plan installs compilers for TPUs and GPUs (a gigabyte), too: then kernels are compiled for both.
# FILIP_TEST_CACHE=FOLDER keeps compiled programs for the next time; FILIP_TEST_COSTS=FILE gets what each file cost.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

if [ "${1:-}" = --all ]; then
    shift
    set -- -m "not slurm" --hypothesis-profile=all "$@"
fi
install "${EXTRAS:-demo,test}"
cd "$root"
# In the order of cost.py: the files that take longest begin early, and no worker is left alone with one. Three of them on two
# cores, because tests of processes wait: for ends, for locks, for what is killed.
exec "$VENV/bin/python" -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder "$@"
