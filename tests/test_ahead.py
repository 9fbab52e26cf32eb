"""Records that threads prepare ahead of the model: the same as one after the other, in order, few at a time, and they end."""

import os
import signal
import threading
import time
import weakref
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from conftest import slow, until
from hypothesis import given
from hypothesis import strategies as st
from test_evals import Oracle, Scenes

from filip_jax import ahead
from filip_jax.ahead import in_order
from filip_jax.data.record import BadRecord
from filip_jax.errors import UserError
from filip_jax.evals import linear_probe, localisation, pictures, pixels, records, retrieval, zero_shot


def threads_left():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


class Alive:
    """Counts what is made and not yet let go."""

    def __init__(self):
        self.now, self.most, self.lock = 0, 0, threading.RLock()

    def count(self, thing):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        weakref.finalize(thing, self._gone)
        return thing

    def _gone(self):
        with self.lock:
            self.now -= 1


class Shaky(Scenes):
    """Scenes that are read in very different times; they say what they are if one is bad."""

    def __init__(self, seed=0, bad=()):
        self.seconds, self.bad = np.random.default_rng(seed).choice([0, 0, 0.001, 0.004], 10), bad

    def __getitem__(self, index):
        time.sleep(self.seconds[index])
        if index in self.bad:
            raise BadRecord("torn")
        return super().__getitem__(index)


class Probed(Oracle):
    """With features of images, for the linear probe."""

    def image_features(self, images, pooling="tokens"):
        return self.encode_image(images, "tokens").mean(axis=1)


@given(
    count=st.integers(0, 40),
    most=st.integers(1, 50),
    threads=st.integers(1, 9),
    taken=st.integers(0, 45),
    seed=st.integers(0, 99),
)
def test_what_threads_make_comes_in_order_and_they_end_whenever_one_stops(count, most, threads, taken, seed):
    seconds = np.random.default_rng(seed).choice([0, 0, 0.0005, 0.002], 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead, "THREADS", threads)
        made = in_order(lambda n: (time.sleep(seconds[n]), n * n)[1], range(count), most)
        found = [value for value, _ in zip(made, range(taken))]
        assert found == [n * n for n in range(min(count, taken))]
        assert len(threads_left()) <= threads
        made.close()
        assert threads_left() == []


def test_the_next_ones_are_made_while_the_caller_is_busy_and_no_more(monkeypatch):
    monkeypatch.setattr(ahead, "THREADS", 3)
    begun = []
    with closing(in_order(lambda n: begun.append(n) or n, range(100), 5)) as made:
        assert begun == []
        assert next(made) == 0
        assert until(lambda: len(begun) == 6)
        time.sleep(0.1)
        assert sorted(begun) == [0, 1, 2, 3, 4, 5]
        assert next(made) == 1 and until(lambda: len(begun) == 7)
    assert threads_left() == []


def test_few_are_alive_at_a_time(monkeypatch):
    class Thing:
        pass

    alive = Alive()
    monkeypatch.setattr(ahead, "THREADS", 4)
    for _ in in_order(lambda n: alive.count(Thing()), range(200), 6):
        pass
    assert alive.most <= 6 + 2  # ahead, the one that is waited for, and the one that the caller has
    del _
    assert until(lambda: alive.now == 0)


def test_an_error_waits_for_its_turn():
    """Number 5 fails first, and 3 is the one to name."""
    failed = threading.Event()

    def make(n):
        if n == 5:
            failed.set()
            raise UserError("five")
        if n == 3:
            assert failed.wait(30)
            raise UserError("three")
        return n

    found = []
    with pytest.raises(UserError, match="three"):
        found.extend(in_order(make, range(10), 8))
    assert found == [0, 1, 2] and threads_left() == []


def test_an_interruption_does_not_wait_for_a_dead_disk(monkeypatch):
    monkeypatch.setattr(ahead, "LAST_WORDS", 0.2)
    dead, started = threading.Event(), time.monotonic()
    made = in_order(lambda n: n or dead.wait(60), range(10), 4)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            next(made)
        assert time.monotonic() - started < 30
        assert len(threads_left()) == 1
    finally:
        timer.join()
        dead.set()
    assert until(lambda: threads_left() == [])


def kinds(tmp_path, model, source):
    """The numbers of every kind that reads pictures, and of its baselines."""
    neighbours = {"source": {"name": "emoji_scenes", "split": "train", "seed": 0, "scenes": 12}, "examples": 12}
    features, labels = linear_probe.collect(model, source, "tokens")
    drawn = pictures.evaluate(model, source, tmp_path, examples=7)
    return {
        "retrieval": retrieval.evaluate(model, source, tmp_path, examples=9),
        "its baselines": retrieval.baselines(source, examples=9, neighbours=neighbours),
        "zero_shot": zero_shot.evaluate(model, source, tmp_path, prompts=("{}", "a {}")),
        "localisation": localisation.evaluate(model, source, tmp_path, examples=10),
        "chance": localisation.baselines(source, examples=10),
        "features": (features.tolist(), labels.tolist()),
        "pixels": pixels.pixel_distances(
            list(records.labelled_views(source, "x", 48, 3)), pixels.read_references(neighbours)
        ).tolist(),
        "pages": drawn | {file.name: file.read_bytes() for file in sorted(tmp_path.iterdir())},
    }


@pytest.mark.parametrize("batch_size, threads, chunk", [slow(1, 1, 3), (3, 2, 4), slow(4, 16, 256), (64, 5, 1)])
def test_every_kind_is_the_same_as_one_record_after_the_other(monkeypatch, tmp_path, batch_size, threads, chunk):
    model = Probed()
    monkeypatch.setattr(model, "batch_size", batch_size, raising=False)
    monkeypatch.setattr(ahead, "THREADS", threads)
    monkeypatch.setattr(localisation, "RECORDS", chunk)
    monkeypatch.setattr(zero_shot, "IMAGES", 2 * chunk)
    found = kinds(tmp_path / "ahead", model, Shaky(seed=batch_size))
    assert threads_left() == []
    for module in (records, retrieval):
        monkeypatch.setattr(module, "in_order", lambda make, items, ahead: (make(item) for item in items))
    assert found == kinds(tmp_path / "plain", model, Scenes())


@pytest.mark.parametrize("evaluate", [
    lambda source: retrieval.evaluate(Probed(), source, Path(), examples=10),
    lambda source: zero_shot.evaluate(Probed(), source, Path(), prompts=("{}",)),
    lambda source: linear_probe.collect(Probed(), source, "tokens"),
    lambda source: localisation.evaluate(Probed(), source, Path(), examples=10),
    lambda source: localisation.baselines(source, examples=10),
    lambda source: list(records.views(source, 10, 48, 64)),
], ids=["retrieval", "zero_shot", "linear_probe", "localisation", "chance", "pixels"])  # fmt: skip
def test_the_first_bad_record_is_named_by_every_kind(monkeypatch, evaluate):
    class Broken(Shaky):
        """Record 3 cannot be decoded and 4 not be read, which shows sooner."""

        def captions(self, index):
            return Scenes()[index].captions

        def __getitem__(self, index):
            if index == 3:
                time.sleep(0.05)
                return records.replace(Scenes()[3], image=b"no picture")
            return super().__getitem__(index)

    with pytest.raises(UserError, match="^record 3: no picture"):
        evaluate(Broken(bad=(4, 8)))
    with pytest.raises(UserError, match="^record  4: torn$"):
        evaluate(type("Read", (Shaky,), {"captions": Broken.captions})(bad=(4, 8)))
    assert threads_left() == []


def test_captions_are_looked_through_in_order():
    source = Shaky(bad=(2, 4))
    source.seconds[2] = 0.05
    with pytest.raises(UserError, match="^evals.x: record  2: torn$"):
        records.check_records(source, 10, "evals.x")
    assert threads_left() == []


def test_two_batches_of_views_and_no_heap_of_records_are_in_memory(monkeypatch):
    views, read, plain = Alive(), Alive(), records.centre_view

    class Long(Scenes):
        def __len__(self):
            return 120

        def __getitem__(self, index):
            return read.count(super().__getitem__(index % 10))

    def counted(*arguments):
        view = plain(*arguments)
        return views.count(np.array(view))

    monkeypatch.setattr(ahead, "THREADS", 3)
    monkeypatch.setattr(records, "centre_view", counted)
    model = Probed()
    model.batch_size = 8
    for evaluate in (
        lambda: retrieval.evaluate(model, Long(), Path(), examples=120, captions=1),
        lambda: zero_shot.evaluate(model, Long(), Path(), prompts=("{}",)),
        lambda: linear_probe.collect(model, Long(), "tokens"),
    ):
        views.most = read.most = 0
        evaluate()
        assert 8 <= views.most <= 2 * 8 + 2 and read.most <= 3 + 2
    assert views.now == 0


def test_a_model_that_fails_leaves_no_threads():
    class Failing(Probed):
        def encode_image(self, images, pooling=None):
            raise RuntimeError("no memory left")

    for evaluate in (
        lambda model: retrieval.evaluate(model, Scenes(), Path(), examples=10),
        lambda model: zero_shot.evaluate(model, Scenes(), Path(), prompts=("{}",)),
        lambda model: linear_probe.collect(model, Scenes(), "tokens"),
        lambda model: pictures.evaluate(model, Scenes(), Path(), examples=10),
    ):
        with pytest.raises(RuntimeError, match="no memory left") as caught:
            evaluate(Failing())
        assert caught.tb and threads_left() == []  # although the traceback holds what was going on
