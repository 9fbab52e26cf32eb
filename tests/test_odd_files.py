"""Each value of each small file of a run, set to what no writer of ours writes: one line, never a traceback or a hang.

By default every EVERY-th case goes through whole commands, all of them through what reads the file; ODD_EVERY=1 does all.
"""

import contextlib
import json
import math
import os
import shutil
import threading
import warnings

import pytest
from conftest import signed, slow, whole_tier
from pairs import write_webdataset

from filip_jax import small_files
from filip_jax.checkpoint import Checkpoints, CheckpointWriter
from filip_jax.cleaning.filter import filter_source
from filip_jax.cli import main
from filip_jax.cluster.watch import Watch
from filip_jax.data.kept import Kept
from filip_jax.data.record import BadRecord
from filip_jax.data.sources import make_source
from filip_jax.errors import UserError
from filip_jax.evals.results import forget_after, read_results, record_step
from filip_jax.evals.run import check_evals
from filip_jax.logged import read_metrics
from filip_jax.models import make_model
from filip_jax.objectives.total import make_objectives
from filip_jax.saved_config import FORMAT, read_config, save_config
from filip_jax.small_files import MAX_DEPTH
from filip_jax.tools import report as page
from filip_jax.tools.convert import convert
from filip_jax.tools.sweep import Point, write_results
from filip_jax.train.evaluation import EvalGuard
from filip_jax.train.goodput import Goodput
from filip_jax.train.input_log import InputLog, forget_keys_after
from filip_jax.train.loop import train
from filip_jax.train.metrics import MetricWriter
from filip_jax.train.wandb_log import _run_id
from filip_jax.workdir import Workdir

EVERY = int(os.environ.get("ODD_EVERY", "197"))
ODD = (
    "null", "true", "-1", "[]", '""', "1" + "0" * 5000, "1e400", "NaN", "9999999999999999999",
    '"\\ud800\\u001b[2J|<script>\\n../../x\\u0000"', '{"a": 1, "a": 2}', "[" * 40 + "]" * 40,
)  # fmt: skip
HERE = '"@odd@"'
STEP = 12  # of the checkpoint


def places(content, way=()):
    """The ways to all values in nested objects and lists; of a list the first value, of many numbers of one object two."""
    inner = list(content.items()) if isinstance(content, dict) else list(enumerate(content))[:1]
    if way and len(inner) > 4 and not any(isinstance(value, dict | list | bool | str) for _, value in inner):
        inner = inner[:2]
    for key, value in inner:
        yield (*way, key)
        if isinstance(value, dict | list):
            yield from places(value, (*way, key))


def spoilt(content, way, odd):
    """The content as JSON, with an odd value in a place."""
    content = json.loads(json.dumps(content))
    node = content
    for key in way[:-1]:
        node = node[key]
    node[way[-1]] = json.loads(HERE)
    return json.dumps(content).replace(HERE, odd)


def cases(content):
    """(number, way, text) of some odd contents: steps that do not divide the number of values meet each value and, in the
    whole tier, each place.
    """
    step = 7 if whole_tier() else 23
    assert math.gcd(len(ODD), step) == 1
    found = [(way, odd) for way in places(content) for odd in ODD][::step]
    return [(n, way, spoilt(content, way, odd)) for n, (way, odd) in enumerate(found)]


def survives(*calls):
    """Whether each call ends well or with one line; anything else is raised."""
    for call in calls:
        with warnings.catch_warnings(action="ignore"):
            try:
                call()
            except (UserError, BadRecord, OSError) as error:
                assert "\n" not in str(error) and len(str(error)) < 20_000


def commands(n, run, capsys, *names):
    """Whole commands, for some of the cases."""
    if n % EVERY:
        return
    words = {
        "report": ["report", f"--workdir={run}"],
        "eval": ["eval", f"--workdir={run}"],
        "inspect": ["inspect", str(run)],
    }
    for name in names:
        assert main(words[name]) in (0, 2), name
        output = capsys.readouterr()
        assert "Traceback" not in output.err and "\x1b" not in output.err + output.out, output.err


@pytest.fixture(scope="module")
def trained(finished, finished_config, tmp_path_factory):
    """A run with one checkpoint and one evaluation, its config, and all files that a run may have."""
    workdir = tmp_path_factory.mktemp("odd") / "run"
    names = ("evals.json", "pictures", "clip_benchmark", "4", "8")
    shutil.copytree(finished[0], workdir, ignore=shutil.ignore_patterns(*names))
    source = finished_config["evals"]["val"]["source"] | {"scenes": 8}
    config = finished_config | {"evals": {"val": dict(kind="retrieval", source=source, examples=8)}}
    save_config(workdir, config)
    assert main(["eval", f"--workdir={workdir}"]) == 0
    return workdir, config


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it."""
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


def config_readers(run):
    config = read_config(run)
    objectives = make_objectives(config["objectives"])
    make_model(objectives.needs, **config["model"] | {"attention": "xla"})
    check_evals(config["evals"])


def test_config(run, trained, capsys):
    file = run / "config.json"
    content = json.loads(file.read_text())
    for n, way, text in cases(content):
        file.write_text(text)
        if way[0] == "model" and (EVERY == 1 or n % 3 == 0):
            survives(lambda: config_readers(run))
        else:
            survives(lambda: check_evals(read_config(run)["evals"]), lambda: page._config(read_config(run)))
            survives(lambda: page._head(str(run), read_config(run), [], read_results(run)))
        commands(n, run, capsys, "report", "eval")


@pytest.mark.slow
def test_a_config_that_is_odd_keeps_no_run_from_being_named(run, trained):
    """The run's own command: config.json is compared, and in the end written anew."""
    for odd in ("[]", "", "\0" * 50, '{"model": 5, "data": {}, "evals": {}}'):
        (run / "config.json").write_text(odd)
        survives(lambda: train(run, trained[1]))


def test_evals(run, capsys, tmp_path):
    file = run / "evals.json"
    content = json.loads(file.read_text())
    content["steps"][str(STEP)]["eval/other/error"] = "no data"
    points = [Point("a", {"x": 1}, {"total_steps": STEP, "eval_every_steps": 1}, run, ())]
    for n, _, text in cases(content):
        file.write_text(text)
        survives(
            lambda: page._evaluations(str(run), read_results(run)),
            lambda: page._provenance(str(run), read_results(run)),
            points[0].is_finished,
            lambda: write_results(points, tmp_path) if n % 9 == 0 else None,
        )
        commands(n, run, capsys, "report", "eval")
        if n % 9:  # writing takes long
            continue
        file.write_text(text)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            record_step(run, STEP, {"val/x": 1.0}, {})
            forget_after(run, 1)
        assert read_results(run)["steps"] == {} and len(caught) <= 1, text[:300]
        (run / "damaged_evals.json").unlink(missing_ok=True)


def test_manifest(run, trained, capsys):
    file = run / f"checkpoints/{STEP}/manifest.json"
    content = json.loads(file.read_text())
    content["files"], content["tree"] = (dict(list(content[part].items())[:2]) for part in ("files", "tree"))
    content["config"]["evals"] = trained[1]["evals"]
    content["meta"]["seconds"] |= {"lost_by_rollback": 1.0}
    for n, _, text in cases(content):
        with contextlib.suppress(ValueError, RecursionError):  # nobody can sign it
            text = signed(json.loads(text))
        file.write_text(text)
        survives(
            lambda: Goodput(Watch(), Checkpoints(run).meta(STEP).get("seconds", {}), {}),
            lambda: Checkpoints(run).damage(STEP) if n % 9 == 0 else "",
            lambda: page._provenance(str(run), read_results(run)),
        )
        commands(n, run, capsys, "inspect", "report", "eval")


def test_a_run_of_another_format_is_refused_and_left_as_it_is(run, trained):
    """It is no damaged run: nothing is set aside, and no earlier checkpoint is taken instead."""
    manifest, config = run / f"checkpoints/{STEP}/manifest.json", run / "config.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(signed(content | {"format": 1}))
    words = (
        f"manifest.json is of format 1, and this filip_jax reads format {FORMAT} only: go on with the filip_jax that"
    )
    checkpoints = Checkpoints(run)
    for read in (checkpoints.manifest, checkpoints.damage, checkpoints.check, lambda _: train(run, trained[1])):
        with pytest.raises(UserError, match=words):
            read(STEP)
    assert checkpoints.steps() == [STEP]
    old = json.loads(config.read_text())
    assert old.pop("format") == FORMAT
    config.write_text(json.dumps(old))
    with pytest.raises(UserError, match="config.json is of an older format, and this filip_jax reads"):
        read_config(run)


HUGE = {
    "dimensions": lambda tree: tree.update(a={"shape": [10**18] * 400, "dtype": "float32"}),
    "below zero": lambda tree: tree.update(a={"shape": [-5], "dtype": "float32"}),
    "a truth value": lambda tree: tree.update(a={"shape": [True], "dtype": "float32"}),
    "a type": lambda tree: tree.update(a={"shape": [1], "dtype": "float" + "9" * 5000}),
    "a name": lambda tree: tree.update({"params/" + "a/" * 50_000: {"shape": [1], "dtype": "float32"}}),
}


@pytest.mark.parametrize("kind", HUGE)
def test_arrays_of_a_manifest_that_cannot_be(run, kind):
    file = run / f"checkpoints/{STEP}/manifest.json"
    content = json.loads(file.read_text())
    HUGE[kind](content["tree"])
    file.write_text(signed(content))
    with pytest.raises(UserError, match="is damaged: it is not the manifest of a checkpoint"):
        Checkpoints(run).manifest(STEP)


@pytest.mark.parametrize("name", ["metrics.jsonl", "keys/process_0.jsonl", "quarantine/process_0.jsonl"])
def test_lines(run, name, capsys):
    file = run / name
    file.parent.mkdir(exist_ok=True)
    if name.startswith("quarantine"):
        file.write_text(json.dumps({"part": "a", "shard": "b", "key": "c", "reason": "d"}) + "\n")
    good = file.read_text().splitlines()[0]
    for n, _, text in cases(json.loads(good)):
        lines = f"{good}\n{text}\n".encode("utf-8", "surrogatepass")
        file.write_bytes(lines)
        survives(
            lambda: page._training(read_metrics(run)),
            lambda: page._time(read_metrics(run)),
            lambda: page._head(str(run), read_config(run), read_metrics(run), read_results(run)),
            lambda: InputLog(run, sources={}, max_bad_fraction=0.0, keys=False),
        )
        if n % 9 == 0:  # writing takes long
            survives(lambda: MetricWriter(run, step=STEP, evaluated=True).close(), lambda: forget_keys_after(run, STEP))
        commands(n, run, capsys, "report")
    assert good in file.read_text()


LINES = [
    b"5\n",
    b"null\n",
    b"[1]\n",
    b"{}\n",
    b"\0" * 100 + b"\n",
    b"\xe9\n",
    b'{"step": 1',
    b"\n",
    b'{"step": 1}\r\n',
    b"{" * 99_999 + b"\n",
]


@pytest.mark.parametrize("line", LINES, ids=str)
def test_a_flipped_bit_keeps_no_run_from_resuming(run, trained, line):
    for name in ("metrics.jsonl", "keys/process_0.jsonl"):
        with (run / name).open("ab") as file:
            file.write(line)
    before = read_metrics_quietly(run)
    with warnings.catch_warnings(action="ignore"):
        MetricWriter(run, step=STEP, evaluated=True).close()
        forget_keys_after(run, STEP)
    lines = (run / "metrics.jsonl").read_bytes()
    assert [json.loads(each) for each in lines.splitlines()] == before and len(
        {each["step"] for each in before}
    ) >= STEP


def read_metrics_quietly(run):
    with warnings.catch_warnings(action="ignore"):
        return read_metrics(run)


def test_one_warning_names_the_file_and_what_is_left_out(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": "x"}\n[]\n{"step": 2, "train/loss": [1]}\n')
    with pytest.warns(UserWarning, match=r"metrics.jsonl: left out.*line \d+: 'step' is 'x' \(and 2 more\)") as caught:
        lines = read_metrics(run)
        read_metrics(run)
    assert len(caught) == 1 and lines[-1] == {"step": 2}


def test_a_log_longer_than_what_is_held_stays_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(small_files, "MAX_LINES_BYTES", 100)
    lines = [{"step": step, "train/loss": 1.0} for step in range(1, 60)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    writer = MetricWriter(tmp_path, step=50, evaluated=True)
    writer.close()
    kept = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == lines[:50]
    assert writer.dropped == lines[-1]


@pytest.mark.slow
def test_a_run_resumes_beside_odd_files(run, trained, capsys):
    """The real start of a training."""
    (run / "evals.json").write_text(f'{{"steps": {{"{STEP}": 5}}, "tasks": []}}')
    (run / "evaluating.json").write_text(f'{{"step": {STEP}, "attempts": {{"val": "x"}}}}')
    (run / "running.json").write_text('{"host": [], "pid": {}, "seconds": "x"}')
    (run / f"checkpoints/{STEP}/saving.json").write_text('{"state": 5}')
    (run / "metrics.jsonl").write_text('{"step": null}\n')
    for folder in ("keys", "quarantine", "skipped"):
        (run / folder).mkdir(exist_ok=True)
        (run / folder / "process_0.jsonl").write_bytes(b"\xff\n5\n")
    with warnings.catch_warnings(action="ignore"):
        train(run, trained[1])
    assert "val/image_to_text_R@1" in read_results(run)["steps"][str(STEP)]  # made up for


def test_small_states(run):
    for odd in ODD:
        (run / "evaluating.json").write_text(f'{{"step": {STEP}, "attempts": {{"val": {odd}}}}}')
        guard = EvalGuard(Workdir(run), Watch(), fatal=False)
        guard.step = STEP
        assert set(guard._attempts()) <= {"val"}
        (run / "wandb_id.txt").write_bytes(odd.encode())
        with warnings.catch_warnings(action="ignore"):
            assert len(_run_id(run)) <= 64
        (run / f"checkpoints/{STEP}/saving.json").write_text(f'{{"state": {odd}, "files": [{odd}]}}')
        writer = CheckpointWriter(run, every_steps=1, every_minutes=0.0, keep_last=1, keep_every_steps=0)
        survives(writer.clean)
    assert Checkpoints(run).steps() == [STEP]


def test_indices_of_data(tmp_path):
    tars, lists = tmp_path / "tars", tmp_path / "lists"
    tars.mkdir()
    lists.mkdir()
    sources = [write_webdataset(tars, [range(3)])]
    (lists / "a.jsonl").write_text(json.dumps({"image": "a.png", "caption": "a dog"}) + "\n")
    (lists / "side.jsonl").write_text(json.dumps({"key": "a.png", "origin": "de", "caption": "ein Hund"}) + "\n")
    sources.append(
        dict(
            name="jsonl",
            path=str(lists / "a.jsonl"),
            side_captions=str(lists / "side.jsonl"),
            caption_keys=("caption", "de"),
        )
    )
    for source in sources:
        make_source(source)
    files = [tars / ".filip_index/index.json", *(lists / ".filip_index").glob("*.json")]
    assert len(files) == 4  # of the tars, the list and the side file, and the hashes of contents
    for file in files:
        content = file.read_text()
        for _, _, text in cases(json.loads(content)):
            file.write_text(text)
            survives(*(lambda source=source: [make_source(source)[0] for _ in range(2)] for source in sources))
        file.write_text(content)


def test_what_convert_and_filter_go_on_from(tmp_path):
    (tmp_path / "tars").mkdir()
    source = write_webdataset(tmp_path / "tars", [range(3)])
    out, kept = tmp_path / "out", tmp_path / "kept"
    options = dict(languages=(), person_names=False, workers=0, min_side=0)
    convert(source, out, short_side=0, records_per_shard=2, workers=1)
    filter_source(make_source(source), kept, **options)
    for file in (out / "convert.json", out / "00000.json", kept / "report.json"):
        content = file.read_text()
        for n, _, text in cases(json.loads(content)):
            file.write_text(text)
            if file.parent == out and n % 9 == 0:
                survives(lambda: convert(source, out, short_side=0, records_per_shard=2, workers=1))
            elif file.parent == kept:
                survives(lambda: filter_source(make_source(source), kept, **options), lambda: Kept(str(kept)))
        file.write_text(content)


def test_what_convert_and_filter_go_on_from_are_files(tmp_path):
    """A pipe would be waited for; behind a link lies what is not ours."""
    (tmp_path / "tars").mkdir()
    source, out, kept = write_webdataset(tmp_path / "tars", [range(3)]), tmp_path / "out", tmp_path / "kept"
    convert(source, out, short_side=0, records_per_shard=2, workers=1)
    (out / "00000.hashes").unlink()
    os.mkfifo(out / "00000.hashes")
    in_time(lambda: convert(source, out, short_side=0, records_per_shard=2, workers=1))
    options = dict(languages=(), person_names=False, workers=0, min_side=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("filip_jax.cleaning.filter._join", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            filter_source(make_source(source), kept, **options)
    (kept / "work").rename(tmp_path / "elsewhere")
    (kept / "work").symlink_to(tmp_path / "elsewhere")
    before = sorted((file, file.stat().st_mtime_ns) for file in (tmp_path / "elsewhere").iterdir())
    with pytest.raises(UserError, match="work is a symbolic link"):
        filter_source(make_source(source), kept, **options)
    assert before == sorted((file, file.stat().st_mtime_ns) for file in (tmp_path / "elsewhere").iterdir())
    (kept / "work").unlink()
    (tmp_path / "elsewhere").rename(kept / "work")
    (kept / "work/00000000.kept.npy").unlink()
    os.mkfifo(kept / "work/00000000.kept.npy")
    with pytest.raises(UserError, match="kept.npy is no regular file"):
        filter_source(make_source(source), kept, **options)


def in_time(call):
    """Calls in a thread: what waits for ever fails here."""
    done = []
    thread = threading.Thread(target=lambda: (survives(call), done.append(True)), daemon=True)
    thread.start()
    thread.join(60)
    assert done


FILES = (
    "config.json",
    "evals.json",
    "metrics.jsonl",
    "tokenizer.model",
    "keys/process_0.jsonl",
    f"checkpoints/{STEP}/manifest.json",
)
KINDS = {
    "fifo": os.mkfifo,
    "folder": os.mkdir,
    "device": lambda path: os.symlink("/dev/zero", path),
    "link out": lambda path: os.symlink("/etc/hostname", path),
    "link to nothing": lambda path: os.symlink("nothing", path),
    "link to itself": lambda path: os.symlink(os.path.basename(path), path),
    "hole": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), (1 << 32) if whole_tier() else 1 << 27),
}


@pytest.mark.parametrize(
    "name, kind",
    [
        (name, kind) if n % len(FILES) == k % len(FILES) else slow(name, kind)  # each kind and each file once
        for n, name in enumerate(FILES)
        for k, kind in enumerate(KINDS)
    ],
)
def test_files_that_are_none(run, name, kind, capsys):
    (run / name).unlink()
    KINDS[kind](run / name)
    for words in (["report", f"--workdir={run}"], ["eval", f"--workdir={run}"], ["inspect", str(run)]):
        in_time(lambda words=words: main(words))
    in_time(lambda: forget_keys_after(run, 1))
    in_time(lambda: MetricWriter(run, step=STEP, evaluated=True).close())
    assert "Traceback" not in capsys.readouterr().err


SIZES = ("model.image.width", "model.text.width", "model.image.depth", "model.text.depth", "model.image.image_size",
         "model.text.length", "model.text.vocab_size", "model.embed_dim", "model.image.heads", "data.image_size",
         "data.text_length", "batch_size", "microbatches")  # fmt: skip


@pytest.mark.parametrize("size", [slow(10**7), 2**40])
@pytest.mark.parametrize("key", SIZES)
def test_huge_sizes_are_refused_in_words(run, trained, key, size, capsys):
    """Of a saved config, of the command's own, and in a plan; nothing is allocated."""
    *way, name = key.split(".")
    config = read_config(run)
    node = config
    for part in way:
        node = node[part]
    node[name] = size
    with pytest.raises(UserError) as refusal, warnings.catch_warnings(action="ignore"):
        train(run.parent / "other", config)
    assert "unexpected keyword" not in str(refusal.value)
    if way:
        save_config(run, config)
        assert main(["eval", f"--workdir={run}"]) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_depth_of_json():
    from filip_jax.small_files import parse

    assert parse(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    for deeper in (MAX_DEPTH + 1, 10_000, 1_000_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse(b"[" * deeper + b"]" * deeper)


def test_values_of_json_are_counted_before_they_are_made():
    assert small_files.parse(b'{"a": [1, 2], "b": {}}', most=5) == {"a": [1, 2], "b": {}}
    for beyond in (b"[1, 2, 3, 4, 5, 6]", b"[[],[],[]]", b'{"a": {}, "b": {}, "c": {}}'):
        with pytest.raises(ValueError, match="more than 5 values"):
            small_files.parse(beyond, most=5)
