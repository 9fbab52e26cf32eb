#!/usr/bin/env bash
# The demo: makes .venv, installs, trains FILIP on emoji scenes, evaluates, draws; run it from anywhere.
#
#   bash launch/demo.sh            about six minutes on two CPU cores, installation aside
#   bash launch/demo.sh --clip     the same, then the global CLIP baseline into the same table
#   bash launch/demo.sh --quick    about a minute: shows that everything works, learns next to nothing
#
# Interrupted and started again, it resumes. Runs land in $RUNS/demo and $RUNS/quick; RUNS is runs/ of this
# repository if not set. At the end 1,000 held-out scenes are embedded, for filip serve.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

RUNS=${RUNS:-$root/runs} variants="filip" runs=$RUNS/demo
for option in "$@"; do
    case $option in
        --clip) variants="filip clip" ;;
        --quick) variants="quick" runs=$RUNS/quick ;;
        *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done

install demo
filip=$VENV/bin/filip
for variant in $variants; do
    "$filip" train --config="$root/configs/demo.py:$variant" --workdir="$runs/${variant/quick/filip}"
done
"$filip" eval --workdir="$runs/*" --step=latest  # of an earlier call, too; a run without a checkpoint is left out
for variant in $variants; do
    "$filip" report --workdir="$runs/${variant/quick/filip}"
done
"$filip" embed --workdir="$runs/filip" --output="$runs.index" emoji_scenes split=val seed=0 scenes=1000
echo
echo "pages      $runs/*/report.html: open one in a browser"
echo "numbers    $runs/*/evals.json, evals.md, metrics.jsonl, tensorboard/"
echo "pictures   $runs/*/pictures/alignment/*.png"
echo "search     $filip serve --workdir=$runs/filip --index=$runs.index    (without the extra search it says what to install)"
