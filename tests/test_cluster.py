"""Processes as one run: who they are, what they agree on, what ends them."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import asdict

import jax
import pytest
from conftest import free_port
from hypothesis import given
from hypothesis import strategies as st

from filip_jax.cluster import service
from filip_jax.cluster.join import check_processes, check_table, describe_process, is_loopback, join_processes
from filip_jax.cluster.pulse import Pulse
from filip_jax.cluster.roll_call import Decision, roll_call
from filip_jax.cluster.watch import HUNG, PREEMPTED, Watch
from filip_jax.errors import ProcessLost, UserError
from filip_jax.train.feed import Feed
from filip_jax.train.goodput import LOST, NAMES, Goodput, key_of

SECTION = dict(stop_signals=("SIGTERM",), heartbeat_seconds=100, start_seconds=300, hang_seconds=600.0)


def together(code, count=2, seconds=300, before="", **variables):
    """[(exit code, output)] of processes that run `before`, join and run the code with `me`, `service`, `watch`."""
    begin = """
        import os, signal, sys, threading, time
        from filip_jax.cluster import service
        from filip_jax.cluster.join import join_processes
        from filip_jax.cluster.pulse import Pulse
        from filip_jax.cluster.roll_call import roll_call
        from filip_jax.cluster.watch import Watch
        from filip_jax.errors import ProcessLost, UserError
        watch = Watch().begin()
        join_processes(watch, 10, int(os.environ.get("START", "30")))
        pulse = Pulse(watch, 10)
        import jax
        me = jax.process_index()
    """
    script = textwrap.dedent(before) + textwrap.dedent(begin) + textwrap.dedent(code)
    cluster = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": str(count)} | variables
    started = []
    for index in range(count):
        environment = os.environ | {"XLA_FLAGS": "", "JAX_PROCESS_ID": str(index)} | cluster
        command = [sys.executable, "-c", script]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(subprocess.Popen(command, env=environment, **pipes))
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, output) for process, output in zip(started, outputs)]


def test_processes_gather_and_a_mistake_on_one_is_one_on_all():
    results = together(
        """
        long = "x" * 100_000
        assert service.gather({"from": me, "long": long}) == [{"from": n, "long": long} for n in range(3)]
        for n in range(5):
            assert service.gather(n * me) == [0, n, 2 * n]
        assert service.of_first_process(f"of {me}") == "of 0"
        done = []
        service.on_first_process(lambda: done.append(me))
        assert done == ([0] if me == 0 else [])
        def fail():
            if me == 1:
                raise OSError(28, "No space left on device")
        try:
            service.together(fail)
        except UserError as error:
            assert "No space left" in str(error)
            print("as it should be")
        service.gather("end"); pulse.close()
        """,
        count=3,
    )
    assert [(code, output.split("\n")[0]) for code, output in results] == [(0, "as it should be")] * 3, results


def test_the_roll_is_called_before_each_step_and_all_hear_the_same():
    """Go when all are ready; save by process 0's clock; a late stop, or an error, while another waits for data."""
    results = together(
        """
        ready, never = (lambda seconds: True), (lambda seconds: time.sleep(seconds))
        late = time.monotonic() + 0.5
        def after_a_while(seconds):
            time.sleep(min(seconds, 0.05))
            return time.monotonic() > late
        yes, no = (lambda: True), (lambda: False)
        print(roll_call(watch, 0, after_a_while if me else ready, yes if me else no))
        print(roll_call(watch, 1, ready, no if me else yes))
        def broken(seconds):
            raise UserError("bad data")
        try:
            roll_call(watch, 2, broken if me == 1 else never, no)
        except UserError as error:
            print(error)
        service.gather("met")
        watch.set_unsaved(True)
        if me == 0:
            threading.Timer(0.5, watch.request_stop, ("SIGTERM",)).start()
        print(roll_call(watch, 3, never, no))
        watch.stop = ""
        service.gather("stopped")
        service.drop("stop")
        def lost(seconds):
            raise ProcessLost("a worker is gone")
        print(roll_call(watch, 4, lost if me == 1 else never, no))
        try:
            service.on_first_process(lambda: (_ for _ in ()).throw(ProcessLost("no trainer")))
        except ProcessLost as error:
            print(f"ProcessLost: {error}")
        service.gather("end"); pulse.close()
        """
    )
    for code, output in results:
        lines = output.splitlines()
        assert code == 0, output
        assert lines[:2] == [f"Decision(stop='', save={save}, error='', lost='')" for save in (False, True)]
        assert lines[2] == "bad data" and lines[3].startswith("Decision(stop='SIGTERM")
        assert lines[4] == "Decision(stop='', save=False, error='', lost='a worker is gone')"
        assert lines[5] == "ProcessLost: no trainer"


@pytest.mark.parametrize(
    "vote, decision",
    [
        ({}, Decision(save=True)),
        ({"stop": "SIGTERM"}, Decision(stop="SIGTERM", save=True)),
        ({"lost": "a worker is gone"}, Decision(save=True, lost="a worker is gone")),
        ({"error": "bad data"}, Decision(save=True, error="bad data")),
    ],
)
def test_the_first_process_decides_by_the_votes_of_all(monkeypatch, vote, decision):
    """As process 0 of two, whose own batch is there."""
    told = {}
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(service, "get_all", lambda folder: {1: {"stop": "", "error": "", "lost": ""} | vote})
    monkeypatch.setattr(service, "put", told.__setitem__)
    monkeypatch.setattr(service, "drop", lambda key: None)
    with pytest.raises(UserError, match="bad data") if decision.error else contextlib.nullcontext():
        assert roll_call(Watch(), 3, lambda seconds: True, lambda: True) == decision
    assert told == {"decision/3": asdict(decision)}


@pytest.mark.parametrize("phase, silent", [("step", True), ("end", False)])
def test_a_process_that_is_silent_ends_this_one_unless_it_was_at_its_end(monkeypatch, phase, silent):
    watch, left = Watch(), []
    pulse = Pulse(watch, 10)
    monkeypatch.setattr(watch, "leave", lambda *words: left.append(words))
    monkeypatch.setattr(service, "get_all", lambda folder: {1: [0, phase, 7, 0, "there"]})
    for seconds in (0, pulse.limit - 1, 2):
        assert not left
        pulse.seen = {process: (beat, when - seconds) for process, (beat, when) in pulse.seen.items()}
        pulse._listen()
    said = "process 1 (there) has given no sign of life for 7 s; it was in phase step at step 7"
    assert [code for code, _ in left] == [HUNG] * silent and all(said in line for _, line in left)


@pytest.mark.slow
def test_an_evaluation_that_fails_on_one_process_alone_ends_all(tmp_path):
    results = together(
        """
        from pathlib import Path
        from filip_jax.train import evaluation
        from filip_jax.workdir import Workdir
        evaluation.ALONE = 2.0
        watch.set_base("evaluation")
        guard = evaluation.EvalGuard(Workdir(os.environ["RUN"]), watch, fatal=False)
        def both():
            raise UserError("bad prompts")
        def alone():
            if me == 1:
                raise ValueError("no such class")
            time.sleep(3600)  # a collective
        print(guard("fine", lambda: {"eval/fine": 1.0}), guard("both", both), flush=True)
        assert service.get_all("evaluated/0/fine") == service.get_all("evaluated/0/both") == {}
        guard("alone", alone)
        """,
        RUN=str(tmp_path),
    )
    said = "evaluation alone at step 0 failed on process 1 alone: ValueError: no such class; exit 43"
    for code, output in results:
        assert code == HUNG and said in output and "{'eval/fine': 1.0} {'eval/both/error': 'bad prompts'}" in output


def test_a_signal_ends_all_at_once_where_nothing_is_unsaved():
    """One process gets it, deep in a call that lets no Python run; both end with 42."""
    results = together(
        """
        service.gather("begun")
        if me == 1:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        lock = threading.Lock(); lock.acquire()
        with watch.phase("compile"):
            lock.acquire(timeout=3600)
        """
    )
    assert [code for code, _ in results] == [PREEMPTED] * 2, results
    assert "SIGTERM in phase compile: everything is saved; exit 42" in results[1][1]
    assert "SIGTERM on process 1" in results[0][1]


@pytest.mark.slow
@pytest.mark.parametrize("first", ["0", "1"])
def test_a_process_that_ends_ends_the_others_with_its_reason(first):
    results = together(
        """
        from filip_jax.cluster.watch import leave
        service.gather("begun")
        watch.set_unsaved(True)
        if me == int(os.environ["FIRST"]):
            leave(2, "filip: error: no more data", watch.on_leave)
        time.sleep(3600)
        """,
        FIRST=first,
    )
    assert [code for code, _ in results] == [2, 2], results
    assert "no more data" in results[1 - int(first)][1] and results[int(first)][1].count("no more data") <= 1


def test_a_process_that_dies_is_named():
    """Also in the phase `start`, before anything else is entered."""
    dead = together(
        """
        service.gather("begun")
        watch.set_unsaved(True)
        time.sleep(2.5)
        if me == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(3600)
        """
    )
    assert [code for code, _ in dead] == [HUNG, -9], dead
    assert "process 1 (" in dead[0][1] and "phase start" in dead[0][1], dead


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_process_that_freezes_is_named(frozen):
    results = together(
        """
        service.gather("begun")
        watch.set_unsaved(True)
        with watch.phase("step"):
            time.sleep(2.5)
            if me == int(os.environ["FROZEN"]):
                threading.Thread(target=lambda: os.system(f"sleep 14; kill -KILL {os.getpid()}"), daemon=True).start()
                time.sleep(0.5)
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(3600)
        """,
        FROZEN=str(frozen),
    )
    code, output = results[1 - frozen]
    assert code == HUNG and f"process {frozen} (" in output and "at step 0" in output, results


@pytest.mark.slow
def test_a_pulse_waits_for_a_process_that_begins_late():
    results = together(
        """
        if me == 1:
            time.sleep(9)
            pulse.close()
        else:
            time.sleep(9)
        service.gather("end"); pulse.close()
        """
    )
    assert [code for code, _ in results] == [0, 0], results


def test_others_that_never_come_are_one_line():
    ((code, output),) = together("", count=1, JAX_NUM_PROCESSES="2", START="2")
    assert code == HUNG
    assert "have not come in processes.start_seconds=2: this is process 0 of 2, they meet at 127.0.0.1:" in output
    assert "loopback" in output and "Traceback" not in output


def test_a_process_that_dies_before_all_know_each_others_devices_is_a_loss():
    dies = """
        import os, jax
        if os.environ["JAX_PROCESS_ID"] == "0":  # it has joined, and ends where it would tell its devices
            jax.process_index = lambda: os._exit(9)
    """
    (first, _), (second, output) = together("", before=dies)
    assert first == 9
    # A thread of JAX that polls for errors may be the first to hear of it: it aborts the process, which may start again, too.
    assert second == -signal.SIGABRT or "ProcessLost: another process was lost while the processes met: " in output


@pytest.mark.parametrize("status, kind", [("UNAVAILABLE", ProcessLost), ("INVALID_ARGUMENT", UserError)])
def test_an_error_of_joining_is_a_loss_or_a_mistake(monkeypatch, status, kind):
    def fail(**_):
        raise RuntimeError(f"{status}: connection reset")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    with pytest.raises(kind, match="connection reset"):
        join_processes(Watch(), 10, 30)


def test_an_id_that_is_taken_on_this_host_is_refused():
    results = together("pass", JAX_PROCESS_ID="0", START="3")
    refused = [output for _, output in results if "UserError: JAX_PROCESS_ID=0: this host has a process 0" in output]
    assert len(refused) == 1, results


HANG = """
import sys, threading, time
from filip_jax.cluster.watch import Watch
watch = Watch().begin()
watch.hang_seconds, watch.step = 0.5, 7
def stuck_in_data():
    time.sleep(3600)
with watch.phase("step"):
    time.sleep(0.3)
with watch.phase("compile"):
    time.sleep(1.0)
with watch.phase("data"):
    stuck_in_data()
"""


def test_a_phase_that_does_not_end_is_named_with_the_stacks():
    done = subprocess.run([sys.executable, "-c", HANG], capture_output=True, text=True, timeout=300)
    assert done.returncode == HUNG and "stuck_in_data" in done.stderr
    assert "hang: phase data at step 7 has not ended for" in done.stderr and "processes.hang_seconds=0.5" in done.stderr


SIGNALLED = """
import os, signal, sys, time
from filip_jax.cluster.watch import Watch
watch = Watch().begin(("SIGTERM", "SIGUSR2"))
watch.set_unsaved(True)
os.kill(os.getpid(), getattr(signal, sys.argv[1]))
while not watch.stop:
    time.sleep(0.01)
print(watch.stop, flush=True)
watch.set_unsaved(False)
time.sleep(3600)
"""


@pytest.mark.parametrize(
    "name, code, said", [("SIGTERM", 42, "SIGTERM"), ("SIGUSR2", 42, "SIGUSR2"), ("SIGUSR1", -10, "")]
)
def test_only_the_named_signals_stop_and_not_before_all_is_saved(name, code, said):
    done = subprocess.run([sys.executable, "-c", SIGNALLED, name], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (code, said)


@pytest.mark.parametrize("options", [{"heartbeat_seconds": 9}, {"start_seconds": 0}, {"hang_seconds": 0.0}])
def test_numbers_that_can_not_be(options):
    with pytest.raises(UserError, match=f"processes.{next(iter(options))}={next(iter(options.values()))}"):
        check_processes(**SECTION | options)
    check_processes(**SECTION)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP", "TERM", "SIGINT"])
def test_signals_that_can_not_be(name):
    with pytest.raises(UserError, match=f"processes.stop_signals: '{name}' cannot be"):
        check_processes(**SECTION | {"stop_signals": (name,)})


def a_table(**changes):
    """Two processes on two hosts, the second with changes."""
    first = describe_process({"seed": 1}) | {"ids": [0], "coordinator": "10.0.0.1:99", "host": "a"}
    return [first, first | {"ids": [1], "host": "b"} | changes]


def test_a_table_of_one_run_is_accepted():
    check_table(a_table())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"jax": "0.4.1"}, r"differ in jax: 0.4.1 on process 1 \(b\), .* on process 0 \(a\)"),
        ({"config": "0123"}, "differ in config"),
        ({"filip_jax": "9"}, "differ in filip_jax"),
        ({"ids": [0]}, r"the same devices twice: ids \[0, 0\]"),
    ],
)
def test_a_table_that_is_no_run_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check_table(a_table(**changes))


def test_a_loopback_coordinator_of_several_hosts_is_refused():
    table = [process | {"coordinator": "127.0.0.1:99"} for process in a_table()]
    with pytest.raises(UserError, match="127.0.0.1:99 is a loopback address.* 2 hosts: a, b"):
        check_table(table)
    check_table([process | {"host": "a"} for process in table])


@pytest.mark.parametrize(
    "address, expected",
    [
        ("127.0.1.1:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("10.1.2.3:1", False),
        ("node0:1", False),
        ("", False),
    ],
)
def test_loopback_addresses(address, expected):
    assert is_loopback(address) == expected


def test_feed_gives_everything_in_order_and_raises_what_it_meets():
    class Rows(Iterator):
        def __init__(self):
            self.numbers, self.closed = iter(range(5)), False

        def __next__(self):
            return next(self.numbers)

        def close(self):
            self.closed = True

    rows, got = Rows(), []
    feed = Feed(rows)
    with pytest.raises(StopIteration):
        while feed.ready(1.0):
            assert feed.ready(0.0)
            got.append(feed.take())
    feed.close()
    assert got == [0, 1, 2, 3, 4] and rows.closed


def test_an_error_of_data_workers_that_a_signal_ended_too_is_no_error():
    """The signal to the process group reaches this process a moment later, or not at all."""
    asked = []
    feed = Feed((batch for batch in ()), stopping=lambda: bool(asked))
    threading.Timer(0.2, asked.append, ("SIGTERM",)).start()
    assert not feed.ready(1.0) and asked
    feed = Feed((batch for batch in ()), stopping=lambda: False)
    with pytest.raises(StopIteration):
        feed.ready(1.0)


def test_a_single_process_waits_for_data_or_a_stop():
    watch, waits = Watch(), iter([False, False, True])
    decision = roll_call(watch, 0, lambda seconds: next(waits), lambda: True)
    assert not decision.stop and decision.save
    watch.request_stop("SIGTERM")
    assert roll_call(watch, 0, lambda seconds: 1 / 0, lambda: False).stop == "SIGTERM"


@given(
    st.lists(st.tuples(st.sampled_from(NAMES[:-1]), st.floats(0, 100)), max_size=9), st.floats(0, 50), st.floats(0, 50)
)
def test_no_second_of_earlier_starts_is_counted_twice_or_lost(phases, kept, beyond):
    """Up to the checkpoint by phase, what came after it as lost by rollback."""
    before = dict.fromkeys(NAMES, 0.0) | {"step": kept}
    dropped = {key_of(name): 0.0 for name in NAMES} | {key_of("step"): kept + beyond}
    watch = Watch()
    watch.totals = lambda: dict(phases)
    for lines, reached in ((dropped, 0.0), ({}, kept + beyond), (dropped, kept + beyond / 2)):
        goodput = Goodput(watch, before, lines, reached)
        assert goodput.totals()[LOST] == pytest.approx(beyond, abs=0.01)
        assert goodput.seconds() == pytest.approx(kept + beyond + sum(dict(phases).values()), abs=0.02)
