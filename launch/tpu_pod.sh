#!/usr/bin/env bash
# A run on a TPU slice of Google Cloud: finds or creates it, installs this checkout on all its workers, runs
# `filip train --distributed` there, and goes on after preemption, on a new slice if need be.
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
# disk. Exit codes are those of filip train; 42 (preempted), 43 (hung) and a lost slice start again. The slice stays when
# the run has ended; the last line says how to delete it. Ctrl-C ends this script alone: the run goes on on the slice, and
# the same command takes it up again. Needs gcloud, logged in, and git.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

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
    gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format="value(state.state)" 2>/dev/null || echo NONE
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

install() {
    local archive=/tmp/filip_jax_$name.tar
    run git -C "$root" archive --output="$archive" HEAD
    run gcloud compute tpus tpu-vm scp "$archive" "$name:filip_jax.tar" "${where[@]}" --worker=all
    on_all "mkdir -p filip_jax && tar xf filip_jax.tar -C filip_jax && cd filip_jax && { [ -x .venv/bin/pip ] ||
        python3 -m venv .venv; } && .venv/bin/pip install --quiet --editable '.[tpu,gs]'"
}

train="cd filip_jax && pkill -TERM -f '[f]ilip train' && sleep 60; .venv/bin/filip train$(printf ' %q' "$@") --distributed"
[ -z "$dry" ] || create
while :; do
    wait_until_active
    code=0
    { install && on_all "$train"; } || code=$?
    [ -z "$dry" ] || { delete; exit 0; }
    now=$(state)
    say "ended with $code, $name is $now"
    case $now:$code in
        ACTIVE:0 | ACTIVE:1 | ACTIVE:2 | ACTIVE:130) break ;;
    esac
    sleep "${PERIOD:-30}"
done
say "$name stays: gcloud compute tpus queued-resources delete $name ${where[*]} --force"
exit "$code"
