"""Results of benchmarks: a page and its twin in JSON, which name the commit that they are of."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(ROOT / "benchmarks"))
import report

RESULTS = ROOT / "benchmarks/results"
OLD = {  # written before results named their commit
    "chaos", "dispatch_cpu", "evals_cpu", "filter_cpu", "filter_openclipart", "fuzz", "input_memory_cpu",
    "loss_tpu_estimated", "plans_tpu_estimated", "shards_cpu", "soak", "train_step_tpu_estimated",
}  # fmt: skip
CELLS = st.text("a1,.%é-", min_size=1, max_size=4)


def test_each_result_has_a_page_and_data_of_one_commit():
    names = {path.stem for path in RESULTS.iterdir() if path.suffix in (".md", ".json")}
    assert names >= OLD
    for name in names:
        if name in OLD and not (RESULTS / f"{name}.json").exists():
            continue
        result = json.loads((RESULTS / f"{name}.json").read_text())
        assert re.fullmatch("[0-9a-f]{40}", result["commit"]), name
        assert report.heading(result) in (RESULTS / f"{name}.md").read_text(), name
        assert (
            result["dirty"] in (True, False) and result["rows"] and result["command"].startswith("python benchmarks/")
        )


MAKERS = {  # of files: of tests, of weights; gpu.py writes its result after each part
    "dinov2_from_onnx.py", "gpu.py", "make_tokenizer_goldens.py", "make_view_goldens.py", "make_weight_goldens.py", "own_features.py",
}  # fmt: skip


@pytest.mark.parametrize("script", sorted({path.name for path in (ROOT / "benchmarks").glob("*.py")} - MAKERS))
def test_each_benchmark_with_options_records_its_result(script):
    text = (ROOT / "benchmarks" / script).read_text()
    assert ("ArgumentParser(" in text) == ("report.add_output(parser)" in text) == ("report.recorded(" in text)


@given(st.lists(CELLS, min_size=1, max_size=4, unique=True), st.data())
def test_rows_of_a_table_are_read_back(columns, data):
    rows = data.draw(st.lists(st.lists(CELLS, min_size=len(columns), max_size=len(columns)), max_size=3))
    lines = [f"| {' | '.join(cells)} |" for cells in [columns, ["---"] * len(columns), *rows]]
    found, rest = report.parse("\n".join(["above", *lines, "", "below", "| no table |", "", *lines]))
    assert rest == ["above", "below", "| no table |"] and len(found) == 2 * len(rows)
    for row, cells in zip(found, 2 * rows, strict=True):
        assert list(row) == columns
        for value, cell in zip(row.values(), cells, strict=True):
            assert value == cell or value == float(cell.replace(",", ""))


@pytest.mark.parametrize(
    "cell, value",
    [
        ("1,250", 1250),
        ("0.38", 0.38),
        ("-2.5", -2.5),
        ("19 %", "19 %"),
        ("1,2", "1,2"),
        ("", ""),
        (r"a \| b", r"a \| b"),
    ],
)
def test_cells_that_are_numbers_become_numbers(cell, value):
    assert report.parse(f"| a | b |\n| --- | --- |\n| {cell} | x |") == ([{"a": value, "b": "x"}], [])


def test_rows_of_another_length_are_lines():
    broken = ["| a message | with a bar | in it |", "and a second line |"]
    assert report.parse("\n".join(["| a | b |", "| --- | --- |", "| 1 | 2 |", *broken])) == ([{"a": 1, "b": 2}], broken)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository of one commit, as that of the benchmarks."""
    root = tmp_path / "clone"
    (root / "benchmarks/results").mkdir(parents=True)
    (root / "file").write_text("one\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], cwd=root, check=True)
    monkeypatch.setattr(report, "ROOT", root)
    monkeypatch.setattr(sys, "argv", [str(root / "benchmarks/a.py"), "--b=c d"])
    return root


def test_what_a_block_prints_is_recorded(clone, capsys):
    output = clone / "benchmarks/results/a"
    for dirty in (False, True):
        with report.recorded(output, "pytest", "no_such_package"):
            print("| x |\n| - |\n| 1 |\nafter", flush=True)
        result = json.loads((clone / "benchmarks/results/a.json").read_text())
        assert result["rows"] == [{"x": 1}] and result["lines"] == ["after"] and result["dirty"] is dirty
        assert result["command"] == "python benchmarks/a.py '--b=c d'" and re.fullmatch(
            "[0-9a-f]{40}", result["commit"]
        )
        assert result["versions"]["pytest"] == pytest.__version__ and "no_such_package" not in result["versions"]
        assert output.with_name("a.md").read_text() == capsys.readouterr().out
        (clone / "file").write_text("two\n")


def test_a_block_that_fails_records_nothing(clone):
    with pytest.raises(SystemExit), report.recorded(clone / "benchmarks/results/a"):
        sys.exit("no form ran")
    assert not list((clone / "benchmarks/results").iterdir())


def test_an_output_that_cannot_be_written_is_refused_first(clone, monkeypatch):
    for output, place, message in (
        (clone / "nowhere/a", clone, "no such folder"),
        (clone / "a", Path("/"), "no git clone"),
    ):
        monkeypatch.setattr(report, "ROOT", place)
        with pytest.raises(SystemExit, match=message), report.recorded(output):
            pytest.fail("measured before the refusal")
