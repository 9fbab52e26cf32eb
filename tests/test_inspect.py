"""`filip inspect`: says what a checkpoint holds, finds every damage, touches no accelerator."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import examples, signed
from hypothesis import given
from hypothesis import strategies as st

from filip_jax import paths
from filip_jax.checkpoint import CheckpointWriter
from filip_jax.checkpoint.inspect import FILES, inspect
from filip_jax.checkpoint.manifest import path_of
from filip_jax.cli import main
from filip_jax.sections import call
from filip_jax.train.setup import make_setup

META = {
    "samples_seen": 123_456,
    "tokenizer_sha256": "a1b2" * 16,
    "data_sha256": "c3d4" * 16,
    "filip_jax_version": "0.1.0",
}


def write(workdir, states, config, **meta):
    writer = CheckpointWriter(workdir, every_steps=1, every_minutes=0.0, keep_last=99, keep_every_steps=0)
    for step, state in states.items():
        writer.save(step, state, META | meta, config)
    writer.wait()


@pytest.fixture(scope="module")
def saved(small_demo, tmp_path_factory):
    """(workdir with the steps 4 and 12 of a state whose image tower is frozen, the state)."""
    frozen = [["image/.*", 0.0], [".*", 1.0]]
    config = small_demo | {"ema_decay": 0.5, "optimizer": small_demo["optimizer"] | {"learning_rate_rules": frozen}}
    setup = call(make_setup, config, "top")
    state = jax.jit(setup.init)(jax.random.key(0))
    workdir = tmp_path_factory.mktemp("inspect") / "run"
    write(workdir, {4: state, 12: state}, config, parameters=paths.saved_metadata(setup.model.metadata))
    return workdir, state


def said(capsys, *arguments):
    code = main(["inspect", *map(str, arguments)])
    output = capsys.readouterr()
    return code, output.out, output.err


def table(report, first):
    """The rows of the table whose first column has this name, by their first cell; columns are two spaces apart."""
    lines = report.split("\n")
    start = next(n for n, line in enumerate(lines) if line.startswith(f"{first}  "))
    rule = lines[start + 1]
    spans = [match.span() for match in re.finditer("-+", rule)]
    rows = lines[start + 2 : lines.index("", start)]
    assert {line[a - 1] for line in [lines[start], *rows] for a, _ in spans[1:] if len(line) >= a} == {" "}, "aligned"
    return {row[slice(*spans[0])].strip(): [row[a:b].strip() for a, b in spans[1:]] for row in rows}


def number(text):
    return int(text.replace(",", ""))


@pytest.mark.smoke
def test_the_report_counts_what_the_state_holds(saved, capsys):
    workdir, state = saved
    code, report, _ = said(capsys, workdir)
    assert code == 0
    parts = table(report, "part")
    owners = {f"params/{name}": tree for name, tree in state["params"].items()}
    trees = {**state, **owners, "all": state}
    assert list(parts)[: len(owners) + 1] == ["params", *sorted(owners)] and set(parts) == set(trees)
    for name, tree in trees.items():
        leaves = jax.tree.leaves(tree)
        assert number(parts[name][0]) == sum(leaf.size for leaf in leaves), name
        assert float(parts[name][1]) == pytest.approx(sum(leaf.nbytes for leaf in leaves) / 2**20, abs=0.005), name


def test_the_tree_is_whole_and_each_copy_of_the_parameters_is_one_line(saved):
    workdir, state = saved
    rows = table(inspect(str(workdir)), "path")
    leaves = paths.flatten(state["params"])
    for path, leaf in leaves.items():
        shape, dtype, size = rows[f"params/{path}"]
        assert [int(n) for n in re.findall(r"\d+", shape)] == list(leaf.shape) and number(size) == leaf.nbytes
        assert dtype == "float32" and ("2 layers of " in shape) == ("/blocks/" in path)
    trainable = [leaf for path, leaf in leaves.items() if not path.startswith("image/")]
    assert rows["ema/…"][0] == f"as {len(leaves)} of {len(leaves)} in params"
    for moment in ("mu", "nu"):
        assert rows[f"opt_state/1/{moment}/…"][0] == f"as {len(trainable)} of {len(leaves)} in params"
        assert number(rows[f"opt_state/1/{moment}/…"][2]) == sum(leaf.nbytes for leaf in trainable)
    others = {path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)}
    others = {path for path in others if not re.match("params/|ema/|opt_state/1/[mn]u/", path)}
    assert set(rows) == {f"params/{path}" for path in leaves} | others | {
        "ema/…",
        "opt_state/1/mu/…",
        "opt_state/1/nu/…",
    }
    assert sum(number(row[2]) for row in rows.values()) == sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def test_position_hashes_config_files_and_other_steps(saved, small_demo):
    workdir, _ = saved
    report = inspect(str(workdir))
    for name, value in {
        "checkpoint": f"{workdir}/checkpoints/12", "step": "12 of 12", "other steps": "4", "samples seen": "123,456",
        "tokenizer_sha256": META["tokenizer_sha256"], "data_sha256": META["data_sha256"], "filip_jax_version": "0.1.0",
    }.items():  # fmt: skip
        assert re.search(f"^{name} +{re.escape(value)}$", report, re.MULTILINE), name
    config = report.split("\nconfig\n")[1]
    saved_config = json.loads((workdir / "checkpoints/12/manifest.json").read_text())["config"]
    assert saved_config["batch_size"] == small_demo["batch_size"] and saved_config["ema_decay"] == 0.5
    assert re.search(r"^  mesh: \{(replica: 1, data: -1|data: -1, replica: 1)\}$", config, re.MULTILINE)
    for path, value in paths.flatten(saved_config).items():  # each value stands behind its key
        assert f"{path.split('/')[-1]}: {json.dumps(value)}" in config, path
    files = table(report, "file")
    sizes = {
        str(file.relative_to(workdir / "checkpoints/12")): file.stat().st_size
        for file in (workdir / "checkpoints/12/state").rglob("*")
        if file.is_file()
    }
    listed = {name: number(size) for name, (size,) in files.items() if name in sizes}
    assert len(listed) == min(FILES, len(sizes)) and listed.items() <= sizes.items()
    assert number(files["all"][0]) == sum(sizes.values())
    assert sum(number(size) for name, (size,) in files.items() if name != "all") == sum(sizes.values())


def test_a_workdir_a_step_and_a_folder_name_the_same_checkpoint(saved, tmp_path):
    workdir, _ = saved
    newest = inspect(str(workdir))
    assert newest == inspect(str(workdir), step=12) == inspect(f"{workdir}/checkpoints/12/")
    assert inspect(str(workdir), step=4) == inspect(f"{workdir}/checkpoints/4") != newest
    shutil.copytree(workdir / "checkpoints/12", tmp_path / "kept/12")
    moved = inspect(str(tmp_path / "kept/12"))
    assert f"{tmp_path}/kept/12\n" in moved and re.search("^other steps +none$", moved, re.MULTILINE)
    assert moved.split("\npart ")[1] == newest.split("\npart ")[1]


def test_no_accelerator_is_touched_nor_jax_loaded(saved):
    """JAX would end with an error on this platform as soon as it looked for devices."""
    environment = os.environ | {"JAX_PLATFORMS": "nonsense"}
    code = (
        "import sys; from filip_jax.cli import main; code = main(sys.argv[1:]); sys.exit(code or 'jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(saved[0]), "--verify"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\nverified: " in done.stdout
    broken = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"], env=environment, capture_output=True, text=True
    )
    assert broken.returncode and "nonsense" in broken.stderr


@given(data=st.data())
def test_verify_names_any_file_that_is_not_as_it_was_written(saved, tmp_path_factory, data):
    copy = tmp_path_factory.mktemp("damaged")
    shutil.copytree(saved[0] / "checkpoints/12", copy / "12")
    assert inspect(str(copy / "12"), verify=True).splitlines()[-1].startswith("verified: ")
    file = data.draw(st.sampled_from(sorted(f for f in (copy / "12/state").rglob("*") if f.is_file())))
    content = bytearray(file.read_bytes())
    kind = data.draw(st.sampled_from(["changed", "cut", "longer", "missing"]))
    if kind == "missing":
        file.unlink()
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
        file.write_bytes({"changed": content, "cut": content[:place], "longer": content + b"\0"}[kind])
    code, errors = errors_of("inspect", str(copy / "12"), "--verify")
    assert code == 2 and str(file) in errors and errors.count("\n") == 1
    assert errors.startswith("filip: error: the checkpoint of step 12 is damaged: ")
    shutil.rmtree(copy)


def errors_of(*arguments):
    """(exit code, standard error), without the fixture that hypothesis does not allow."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        return main(list(arguments)), errors.getvalue()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def places(tree, place=()):
    """Every key or index of nested JSON, as a path of them."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [each for key, value in items for each in ((*place, key), *places(value, (*place, key)))]


@examples(100)
@given(numbers=st.lists(st.tuples(st.integers(0, 10**6), st.booleans(), JSON), min_size=1, max_size=2))
def test_a_manifest_that_anybody_wrote_is_shown_or_refused_in_one_line(saved, tmp_path_factory, numbers):
    folder = tmp_path_factory.mktemp("foreign") / "12"
    folder.mkdir()
    manifest = json.loads((saved[0] / "checkpoints/12/manifest.json").read_text())
    for number, at_top, value in numbers:
        found = [place for place in places(manifest) if len(place) <= 2 or not at_top]
        *parents, key = found[number % len(found)]
        node = manifest
        for parent in parents:
            node = node[parent]
        node[key] = value
    (folder / "manifest.json").write_text(signed(manifest))
    code, errors = errors_of("inspect", str(folder))
    assert code == 0 or (code == 2 and errors.startswith("filip: error: ") and errors.count("\n") == 1)


MISTAKES = {
    "nothing there": (["RUN/none"], "RUN/none is no folder that exists"),
    "a file": (["RUN/file"], "RUN/file is a file, not a folder"),
    "a stranger": (["RUN/empty"], "RUN/empty holds no whole checkpoint: neither manifest.json nor checkpoints/<step>/"),
    "no such step": (["RUN/run", "--step=5"], "RUN/run has no checkpoint of step 5; it has the steps 4, 12"),
    "no number": (["RUN/run", "--step=last"], "--step=last is not latest or a number"),
    "another step": (["RUN/run/checkpoints/4", "--step=12"], "is the checkpoint of step 4, not of step 12"),
    "cut off": (["RUN/cut/4"], "RUN/cut/4 is no whole checkpoint: it has no manifest.json, which is written last"),
    "set aside": (["RUN/aside/4"], "its run found damaged (manifest.damaged.json)"),
    "renamed": (["RUN/best"], "RUN/best is the checkpoint of step 4, but not named so: call the folder 4"),
    "torn": (["RUN/torn/4"], "RUN/torn/4/manifest.json is damaged"),
    "no name": (["RUN/run", "stray"], "unknown argument 'stray'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(saved, tmp_path, capsys, name):
    shutil.copytree(saved[0], tmp_path / "run")
    for folder in ("cut/4", "aside/4", "torn/4", "best"):
        shutil.copytree(saved[0] / "checkpoints/4", tmp_path / folder)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "cut/4/manifest.json").unlink()
    (tmp_path / "aside/4/manifest.json").rename(tmp_path / "aside/4/manifest.damaged.json")
    (tmp_path / "torn/4/manifest.json").write_text((tmp_path / "run/checkpoints/4/manifest.json").read_text()[:-9])
    arguments, message = MISTAKES[name]
    code, output, error = said(capsys, *(argument.replace("RUN", str(tmp_path)) for argument in arguments))
    assert code == 2 and output == "" and message.replace("RUN", str(tmp_path)) in error
    assert error.startswith("filip: error: ") and error.count("\n") == 1


def test_many_steps_and_files_are_shortened(tmp_path):
    states = {step: {"params": {"x": np.zeros(3, np.float32)}} for step in (*range(0, 100, 5), 1000)}
    write(tmp_path, {1000: states.pop(1000)}, {})
    for step in states:
        (tmp_path / f"checkpoints/{step}").mkdir()
        manifest = (tmp_path / "checkpoints/1000/manifest.json").read_text()
        (tmp_path / f"checkpoints/{step}/manifest.json").write_text(manifest)
    file = tmp_path / "checkpoints/1000/manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"] |= {f"state/d/{n:03d}": {"size": 1000 + n, "sha256": "00"} for n in range(100)}
    file.write_text(signed(manifest))
    report = inspect(str(tmp_path), step=1000)
    assert re.search(r"^other steps +0, 5, 10, 15, 20, 25, …, 70, 75, 80, 85, 90, 95$", report, re.MULTILINE)
    rows = table(report, "file")
    assert len(rows) == FILES + 2 and rows["state/d/099"] == ["1,099"]
    shown = sum(number(size) for name, (size,) in rows.items() if name != "all")
    assert shown == number(rows["all"][0]) == sum(each["size"] for each in manifest["files"].values())
    assert f"… and {len(manifest['files']) - FILES} smaller files" in rows
