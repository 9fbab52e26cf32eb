"""A run whose workdir others move, empty or spoil: it stays usable, or the run ends with a line that says so."""

import json
import shutil

import pytest
from conftest import small

from filip_jax import load_model, storage
from filip_jax.checkpoint import Checkpoints, CheckpointWriter
from filip_jax.errors import UserError
from filip_jax.train import lease
from filip_jax.train.lease import Lease
from filip_jax.train.loop import Trainer, train
from filip_jax.train.upkeep import Upkeep
from filip_jax.workdir import Workdir

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def no_beat(monkeypatch):
    """The saves notice what happens, not the clock, which would end this process."""
    monkeypatch.setattr(lease, "BEAT", 1e6)


@pytest.fixture(scope="module")
def config(small_demo):
    return small(small_demo, **{"checkpoint.keep_last": 2})


def at_save(monkeypatch, happenings):
    """Lets things happen just before the save of a step, when the one before has ended."""
    save = Trainer._save

    def first_something(self):
        self.checkpoints.wait()
        happenings.pop(self.step, lambda: None)()
        save(self)

    monkeypatch.setattr(Trainer, "_save", first_something)


@pytest.mark.slow
def test_what_somebody_removes_is_written_again_and_the_run_ends_usable(config, tmp_path, monkeypatch):
    """Single files, then all of the folder; after the last save the checkpoints."""
    run = tmp_path / "run"

    def remove_some():
        (run / "config.json").unlink(), (run / "tokenizer.model").unlink(), (run / "running.json").unlink()

    def empty():
        for path in run.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    wait = CheckpointWriter.wait

    def then_lost(self):
        wait(self)
        if self.steps()[-1:] == [12] and not (tmp_path / "lost").exists():
            (run / "checkpoints").rename(tmp_path / "lost")

    monkeypatch.setattr(CheckpointWriter, "wait", then_lost)
    at_save(monkeypatch, {4: remove_some, 8: empty})
    with pytest.warns(UserWarning) as said:
        train(run, config)
    lines = [str(each.message) for each in said]
    assert any("had lost config.json, tokenizer.model: written again" in line for line in lines)
    assert any("metrics.jsonl was removed" in line for line in lines)
    assert Checkpoints(run).steps() == [12] and (tmp_path / "lost/12").is_dir()
    assert load_model(run).step == 12
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [8, 9, 10, 11, 12]  # the file was begun anew
    assert not (run / "running.json").exists()


@pytest.mark.slow
def test_a_run_whose_workdir_is_moved_ends_with_a_line_and_goes_on_there(config, tmp_path, monkeypatch):
    """Twice: before a save, and between the last save and the last line. Nothing is made anew in its old place."""
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    with monkeypatch.context() as patch:
        at_save(patch, {8: lambda: run.rename(elsewhere)})
        with pytest.raises(UserError, match=f"^{run} was moved or removed while the run wrote there"):
            train(run, config)
    assert not run.exists() and Checkpoints(elsewhere).steps() == [4]
    end = Trainer.run

    def end_and_lose(self):
        end(self)
        elsewhere.rename(run)

    monkeypatch.setattr(Trainer, "run", end_and_lose)
    with pytest.raises(UserError, match=f"^{elsewhere}/.* is gone"):
        train(elsewhere, config)
    assert not elsewhere.exists() and Checkpoints(run).steps() == [8, 12] and load_model(run).step == 12


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "checkpoints/4/manifest.json", "checkpoints", ""])
def test_a_run_that_lacks_something_is_not_done(tmp_path, name):
    run = tmp_path / "run"
    for file in ("config.json", "tokenizer.model", "checkpoints/4/manifest.json"):
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).write_text("{}")
    upkeep = Upkeep(Workdir(run), Lease(str(run), holds=False))
    upkeep.check_usable(4), upkeep.check_usable(0)
    assert not upkeep.has_lost(4) and not upkeep.has_lost(0)
    (run / name).rename(tmp_path / "lost")
    with pytest.raises(UserError, match=f"{run}.* is gone"):
        upkeep.check_usable(4)
    assert upkeep.has_lost(4) == (name not in ("config.json", "tokenizer.model"))


def test_what_is_removed_from_a_bucket_is_uploaded_again(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = Workdir(f"{s3}/runs/upkeep")
    for name in ("config.json", "tokenizer.model", "metrics.jsonl"):
        (place.folder / name).write_text(name)
    place.flush()
    held = Lease(place.name)
    upkeep = Upkeep(place, held)
    for file in storage.find_all(place.name):
        storage.remove_remote(file.path)
    with pytest.warns(UserWarning, match="had lost config.json, tokenizer.model"):
        upkeep.look()
    upkeep.before_manifest()
    names = {storage.name_of(file.path) for file in storage.find_all(place.name)}
    assert names == {"config.json", "tokenizer.model", "metrics.jsonl", "running.json"}
    storage.write(f"{place.name}/running.json", b'{"token": "another", "pid": 1, "host": "elsewhere"}')
    with pytest.raises(UserError, match="another run began"):
        upkeep.look()
    held.close(), place.close()
