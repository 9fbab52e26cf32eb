#!/usr/bin/env bash
# A run on a TPU slice of Google Cloud, which goes on by itself after preemption, on a new slice if need be:
# finds or creates the slice, installs this checkout on all its workers, runs `filip train --distributed` there.
#
#   bash launch/tpu_pod.sh --name=filip --type=v5litepod-64 --zone=us-west4-a --spot -- \
#       --config=configs/filip.py:base --workdir=gs://bucket/filip_base --config.source.path=gs://bucket/PAIRS
#
#   --name     of the TPU and of its queued resource
#   --type     accelerator type: v5litepod-64, v5p-128, v6e-64 …
#   --zone     where
#   --version  runtime (default: the one for the type)
#   --project  (default: gcloud's own)
#   --spot     cheaper, and may be taken away at any time
#   --dry-run  prints every command and runs none
#
# What follows -- goes to `filip train`. The workdir and the data must be what all workers reach: gs://… or a mounted
# disk. Exit codes are those of filip train; after 42 (preempted) and 43 (hung) the workers start it again, a lost slice
# is made anew. The slice stays when the run has ended; the last line says how to delete it. Ctrl-C ends this script
# alone: the run goes on on the slice, and the same command shows it again. Needs gcloud, logged in, and git.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# On a worker: takes up the run that is under way there, or starts one that a lost connection does not end, and that goes
# on by itself after 42, 43 and ends by a signal. Shows what it says.
worker() {
    local words
    words=$(printf '%q ' "$@")
    cd "$HOME"
    if flock --nonblock filip_jax.lock true; then
        rm -f filip_jax.code filip_jax.pid
        echo "$words" > filip_jax.words
        setsid --fork flock filip_jax.lock bash filip_jax/launch/tpu_pod.sh --loop "$@" > filip_jax.log 2>&1 < /dev/null
    elif [ "$words" != "$(cat filip_jax.words)" ]; then
        echo "tpu_pod.sh: another run is under way here: $(cat filip_jax.words)" >&2
        exit 2
    fi
    until [ -s filip_jax.pid ]; do sleep 0.2; done
    tail -n +1 --pid="$(cat filip_jax.pid)" -F filip_jax.log 2>/dev/null
    echo "tpu_pod.sh: the run ended with $(cat filip_jax.code)"
}

loop() {
    local code word previous="" workdir="" before="" now restarts=0
    echo $$ > filip_jax.pid
    for word in "$@"; do
        case $word in --workdir=*) workdir=${word#--workdir=} ;; esac
        [ "$previous" != --workdir ] || workdir=$word
        previous=$word
    done
    cd filip_jax
    while :; do
        code=0
        .venv/bin/filip train "$@" --distributed || code=$?
        case $code in 0 | 1 | 2 | 130) break ;; esac
        now=$(.venv/bin/filip inspect "$workdir" 2>/dev/null | sed -n 's/^step  *\([0-9]*\).*/\1/p' | head -n 1 || true)
        [ "$now" = "$before" ] || restarts=0
        [ "$code" = 42 ] || restarts=$((restarts + 1)) # 42 has saved
        before=$now
        ((restarts < 5)) || { echo "tpu_pod.sh: five starts in a row without a new checkpoint: giving up"; break; }
        echo "tpu_pod.sh: ended with $code, starting again"
    done
    echo "$code" > "$HOME/filip_jax.code"
}

case ${1:-} in
    --worker) shift; worker "$@"; exit ;;
    --loop) shift; loop "$@"; exit ;;
esac

name="" type="" zone="" version="" project="" spot="" dry=""
usage() { sed -n '2,21s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
while (($#)); do
    case $1 in
        --name=*) name=${1#*=} ;;
        --type=*) type=${1#*=} ;;
        --zone=*) zone=${1#*=} ;;
        --version=*) version=${1#*=} ;;
        --project=*) project=${1#*=} ;;
        --spot) spot=yes ;;
        --dry-run) dry=yes ;;
        --) shift; break ;;
        *) usage ;;
    esac
    shift
done
[ -n "$name" ] && [ -n "$type" ] && [ -n "$zone" ] && (($#)) || usage
if [ -z "$version" ]; then
    case $type in
        v5litepod-*) version=v2-alpha-tpuv5-lite ;;
        v5p-*) version=v2-alpha-tpuv5 ;;
        v6e-*) version=v2-alpha-tpuv6e ;;
        *) version=tpu-ubuntu2204-base ;;
    esac
fi

where=(--zone="$zone" ${project:+--project="$project"})
say() { echo "tpu_pod.sh: $*" >&2; }
run() {
    if [ -n "$dry" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}
on_all() { run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"; }
state() {  # of the queued resource; NONE where there is none
    [ -z "$dry" ] || { echo ACTIVE; return; }
    local said
    said=$(gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format="value(state.state)" 2>&1) ||
        case $said in *NOT_FOUND*) said=NONE ;; *) say "$said"; said=UNKNOWN ;; esac
    echo "$said"
}

create() {
    run gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
        --accelerator-type="$type" --runtime-version="$version" ${spot:+--spot}
}
delete() { run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet; }

wait_until_active() {
    local now before=""
    while now=$(state); [ "$now" != ACTIVE ]; do
        [ "$now" = "$before" ] || say "$name is $now"
        before=$now
        case $now in
            NONE) create ;;
            SUSPENDED | FAILED) delete; continue ;;
        esac
        sleep "${PERIOD:-30}"
    done
}

install() {  # what a run under way works with is left as it is
    local archive=/tmp/filip_jax_$name.tar unpack
    unpack="mkdir -p filip_jax; find filip_jax -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +; tar xf filip_jax.tar -C filip_jax"
    unpack+="; cd filip_jax; python3 -m pip install --quiet --user uv; export PATH=\\\$HOME/.local/bin:\\\$PATH"
    unpack+="; uv venv --quiet --allow-existing --python=3.12 .venv; uv pip install --quiet --python=.venv --editable '.[tpu,gs]'"
    run bash -c "set -o pipefail; cd $(printf %q "$root") && git ls-files -co -z --exclude-standard | tar -c --null -T - --ignore-failed-read -f $archive" &&
        run gcloud compute tpus tpu-vm scp "$archive" "$name:filip_jax.tar" "${where[@]}" --worker=all &&
        on_all "flock --nonblock --conflict-exit-code=99 filip_jax.lock bash -ec \"$unpack\" || [ \$? = 99 ]"
}

attempt() {
    install && on_all "bash filip_jax/launch/tpu_pod.sh --worker$(printf ' %q' "$@")"
}

[ -z "$dry" ] || create
quick=0
while :; do
    wait_until_active
    said=$(mktemp) started=$SECONDS
    attempt "$@" 2>&1 | tee "$said" || true
    [ -z "$dry" ] || { delete; exit 0; }
    ended=$(sed -n 's/.*tpu_pod.sh: the run ended with \([0-9]*\).*/\1/p' "$said" | sort -n)
    ended=$(grep -m 1 -x '[12]' <<< "$ended" || tail -n 1 <<< "$ended") # one worker's mistake explains the others' ends
    rm "$said"
    [ -z "$ended" ] || break
    quick=$((SECONDS - started < 600 ? quick + 1 : 0))
    ((quick < 5)) || { say "five attempts in a row have failed: giving up"; exit 1; }
    say "the connection or the slice is lost ($name is $(state)): once more"
    sleep "${PERIOD:-30}"
done
say "ended with $ended; $name stays: gcloud compute tpus queued-resources delete $name ${where[*]} --force"
exit "$ended"
