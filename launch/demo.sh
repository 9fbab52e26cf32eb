#!/usr/bin/env bash
# The demo: makes .venv, installs, trains FILIP on emoji scenes, evaluates, draws; run it from anywhere.
#
#   bash launch/demo.sh            about six minutes on two CPU cores, installation aside
#   bash launch/demo.sh --clip     the same, then the global CLIP baseline into the same table
#   bash launch/demo.sh --quick    about a minute: shows that everything works, learns next to nothing
#
# Interrupted and started again, it resumes. Everything lands in runs/demo (runs/quick) of this repository.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

runs=$root/runs/demo variants="filip"
for option in "$@"; do
    case $option in
        --clip) variants="filip clip" ;;
        --quick) runs=$root/runs/quick variants="quick" ;;
        *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done

install demo
filip=$VENV/bin/filip
for variant in $variants; do
    "$filip" train --config="$root/configs/demo.py:$variant" --workdir="$runs/$variant"
done
"$filip" eval --workdir="$runs/*" --step=latest
echo
echo "numbers    $runs/*/evals.json, metrics.jsonl, tensorboard/"
echo "pictures   $runs/*/pictures/alignment/*.png"
