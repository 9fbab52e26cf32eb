"""`epochs` in place of total_steps, and the warnings of settings with which a run can hardly learn."""

import pytest
from conftest import ROOT, examples
from hypothesis import given
from hypothesis import strategies as st

from filip_jax.config import load_config
from filip_jax.epochs import count_records
from filip_jax.errors import UserError
from filip_jax.objectives.total import make_objectives
from filip_jax.train.advice import advice
from filip_jax.train.optimizer import Optimizer
from filip_jax.train.setup import Setup

FILIP = str(ROOT / "configs/filip.py")
SMALL = str(ROOT / "configs/small.py")


@examples(30)
@given(st.floats(0.01, 50), st.integers(1, 10**7), st.integers(1, 10**4))
def test_steps_are_the_batches_of_so_many_passes(epochs, records, batch_size):
    words = [f"--config.epochs={epochs}", f"--config.batch_size={batch_size}", "--config.source.path=PAIRS"]
    sections = []

    def count(section):
        sections.append(section)
        return records

    config = load_config(FILIP, words, count=count)
    assert config["total_steps"] == max(1, round(epochs * records / batch_size)) and "epochs" not in config
    assert [section["path"] for section in sections] == ["PAIRS"]


def test_what_depends_on_the_steps_follows():
    config = load_config(f"{SMALL}:10k", ["--config.batch_size=100"], count=lambda section: 5_000)
    assert (
        config["total_steps"] == 40 * 5_000 // 100
        and config["optimizer"]["warmup_steps"] == config["total_steps"] // 20
    )


def test_steps_that_the_user_gives_replace_the_epochs_of_a_file():
    def count(section):
        raise AssertionError("the source is not opened")

    assert load_config(SMALL, ["--config.total_steps=77"], count=count)["total_steps"] == 77
    assert load_config(FILIP, ["--config.epochs=0"], count=count) == load_config(FILIP)
    assert load_config(SMALL)["total_steps"] == 40 * 10_000 // 128  # of a command that opens no source


@pytest.mark.parametrize(
    ("words", "message"),
    {
        "both": (["--config.epochs=2", "--config.total_steps=9"], "total_steps and epochs are both given"),
        "negative": (["--config.epochs=-1"], "epochs=-1.0 must be a number of passes"),
        "infinite": (["--config.epochs=inf"], "epochs=inf must be a number of passes"),
        "endless": (["--config.epochs=1e300"], "steps; a run has at most 1.0e.12"),
        "nan": (["--config.epochs=nan"], "epochs=nan must be a number of passes"),
        "no number": (["--config.epochs=two"], "epochs"),
    }.values(),
)
def test_epochs_that_cannot_be_are_one_line(words, message):
    with pytest.raises(UserError, match=message):
        load_config(FILIP, words, count=lambda section: 10)


def test_epochs_need_a_command_that_opens_the_source(tmp_path):
    with pytest.raises(UserError, match="which this command does not open: give total_steps"):
        load_config(FILIP, ["--config.epochs=3"])
    with pytest.raises(UserError, match="is not a folder"):
        load_config(FILIP, ["--config.epochs=3", f"--config.source.path={tmp_path}/none"], count=count_records)


@pytest.mark.parametrize("epochs", ["'two'", "None", "[1]", "{}"])
def test_epochs_of_a_file_that_are_no_number_are_one_line(tmp_path, epochs):
    (tmp_path / "mine.py").write_text(
        "from filip_jax.configs import demo\n\ndef get_config():\n    config = demo.get_config()\n"
        f"    config.epochs = {epochs}\n    return config\n"
    )
    with pytest.raises(UserError, match="in a config file must be a number of passes"):
        load_config(str(tmp_path / "mine.py"))


def test_passes_in_batches_of_nothing_are_refused():
    with pytest.raises(UserError, match="batch_size=0 must be at least 1"):
        load_config(SMALL, ["--config.epochs=2", "--config.batch_size=0"], count=lambda section: 10)


def made(batch_size=1024, total_steps=1000, warmup_steps=100, keep_tokens=1.0):
    """The parts of a setup that advice is of; a whole one takes seconds."""
    setup, optimizer = object.__new__(Setup), object.__new__(Optimizer)
    vars(optimizer).update(warmup_steps=warmup_steps)
    objectives = make_objectives({"filip": {"kind": "filip", "keep_tokens": keep_tokens}})
    vars(setup).update(batch_size=batch_size, total_steps=total_steps, optimizer=optimizer, objectives=objectives)
    return setup


@pytest.mark.parametrize(
    ("settings", "records", "line"),
    {
        "batch": (dict(batch_size=64), 63, "batch_size=64, but the source has 63 records"),
        "warm-up": (dict(warmup_steps=501), 9_000, "the learning rate rises for most of the run"),
        "epoch": (dict(total_steps=200), 2_048_000, "see 10% of the 2048000 records"),
        "selection": (
            dict(batch_size=256, keep_tokens=0.25),
            9_000,
            "objectives.filip.keep_tokens=0.25 at batch_size=256",
        ),
    }.values(),
)
def test_a_setting_that_hardly_learns_has_one_warning(settings, records, line):
    [found] = advice(made(**settings), records)
    assert line in found


def test_settings_that_learn_have_no_warning():
    assert not [*advice(made(), 2_000)]
    assert not [*advice(made(keep_tokens=0.25), 2_000)]
    assert not [*advice(made(total_steps=200), None)]
    assert not [*advice(made(batch_size=64, total_steps=3, warmup_steps=0), 220)]  # what epochs=1 makes
