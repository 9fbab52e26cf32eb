#!/usr/bin/env bash
# A run of several processes on this machine, started again when it is preempted, hangs or loses a process.
#
#   bash launch/local.sh -n 2 -d 4 --config=configs/demo.py:quick --workdir=runs/two
#   bash launch/local.sh -n 8 --config=configs/filip.py:base --workdir=runs/eight --config.source.path=PAIRS
#
#   -n P   processes
#   -d D   CPU devices of each process; without it each process has one GPU
#   -r R   gives up after so many restarts in a row without a new checkpoint (default 5)
#
# What follows goes to `filip train`. Exit codes of filip train: 0 done, 2 a mistake, 130 interrupted: no restart;
# 42 preempted, 43 hung, or ended by a signal: started again. TERM and USR1 are handed on, INT (Ctrl-C) as TERM.
# FILIP names the command (default: filip of $VENV, else of PATH); GRACE the seconds that the others have to end
# by themselves when one has ended (default 120).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

processes="" devices="" patience=5
[[ ${1:---help} == --help ]] && set -- -h
while [[ ${1:-} =~ ^-[a-z]$ ]]; do
    case $1 in
        -n) processes=${2:-} ;;
        -d) devices=${2:-} ;;
        -r) patience=${2:-} ;;
        *) sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
    shift $(($# > 1 ? 2 : 1))
done
for number in "$processes" "${devices:-1}" "${patience}1"; do
    [[ $number =~ ^[1-9][0-9]*$ || $number == 01 ]] || { echo "local.sh: -n and -d take whole numbers above 0, -r one of at least 0, and -n is needed" >&2; exit 2; }
done
filip=${FILIP:-$VENV/bin/filip}
[ -x "$filip" ] || filip=$(command -v filip) || { echo "local.sh: there is no filip in $VENV or on PATH" >&2; exit 2; }

pids=() stopped="" workdir="" previous=""
for word in "$@"; do
    case $word in --workdir=*) workdir=${word#--workdir=} ;; esac
    [ "$previous" != --workdir ] || workdir=$word
    previous=$word
done

hand_on() {
    stopped=$1
    kill -s "$1" "${pids[@]}" 2>/dev/null || true
}
trap 'hand_on TERM' TERM
trap 'hand_on USR1' USR1
trap 'hand_on TERM' INT  # a background process does not hear INT

newest() {  # step of the newest checkpoint
    "$filip" inspect "$workdir" 2>/dev/null | sed -n 's/^step  *\([0-9]*\).*/\1/p' | head -n 1 || true
}

start() {
    local port index settings
    port=$("$(dirname "$filip")/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    pids=()
    for ((index = 0; index < processes; index++)); do
        settings=(JAX_COORDINATOR_ADDRESS="127.0.0.1:$port" JAX_NUM_PROCESSES="$processes" JAX_PROCESS_ID="$index")
        if [ -n "$devices" ]; then
            settings+=(JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices")
        else
            settings+=(CUDA_VISIBLE_DEVICES="$index")
        fi
        env "${settings[@]}" "$filip" train "$@" --distributed > >(sed -u "s/^/[$index] /") 2>&1 &
        pids+=($!)
    done
    [ -z "$stopped" ] || hand_on "$stopped"  # it came while they were started
}

# Waits for all processes; when the first has ended, the others have $GRACE seconds. Sets $codes.
wait_for_all() {
    local index end="" running code
    codes=()
    while :; do
        running=0
        for index in "${!pids[@]}"; do
            [ -n "${codes[index]:-}" ] && continue
            if kill -0 "${pids[index]}" 2>/dev/null; then
                running=$((running + 1))
                [ -n "$end" ] && ((SECONDS >= end)) && kill -KILL "${pids[index]}" 2>/dev/null || true
            else
                code=0
                wait "${pids[index]}" || code=$?
                codes[index]=$code
                end=${end:-$((SECONDS + ${GRACE:-120}))}
            fi
        done
        ((running)) || return 0
        sleep 0.1 || true
    done
}

restarts=0 before=$(newest)
while :; do
    start "$@"
    wait_for_all 2>/dev/null  # bash says which were killed, too
    worst=0
    for code in "${codes[@]}"; do
        case $code in
            0) ;;
            42 | 43) ((worst == 0)) && worst=$code ;;
            1 | 2 | 130) worst=$code; break ;;
            *) ((worst == 0 || worst == 42)) && worst=$code ;;
        esac || true
    done
    echo "local.sh: the processes ended with ${codes[*]}"
    case $worst in 0 | 1 | 2 | 130) exit "$worst" ;; esac
    [ -n "$stopped" ] && exit "$worst"
    now=$(newest)
    if [ "$now" = "$before" ]; then restarts=$((restarts + 1)); else restarts=1; fi
    before=$now
    if ((restarts > patience)); then
        echo "local.sh: $patience restarts in a row without a new checkpoint: giving up" >&2
        exit "$worst"
    fi
    [ -n "$stopped" ] && exit "$worst"
    echo "local.sh: starting again (restart $restarts since ${now:+checkpoint }${now:-the beginning})"
done
