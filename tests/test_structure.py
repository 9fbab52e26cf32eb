"""The house rules that a machine can hold: who imports whom, one door per library, files that fit a head."""

import ast
import re

import pytest
from conftest import ROOT
from cost import ROW, TABLE, guards

PACKAGE = ROOT / "filip_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
# A module imports only from rooms above its own in this list, or from its own room.
ROOMS = [
    {"redact"},
    {"plain"},
    {"console"},
    {"errors"},
    {"small_files"},
    {"extras", "files", "foreign_paths", "handles", "names", "paths", "progress", "sections", "user_paths", "walk", "workers"},
    {"logged", "storage"},
    {"buckets", "cluster", "config", "folders", "mesh"},
    {"workdir"},
    {"losses"}, {"models"}, {"data"},
    {"cleaning"},
    {"checkpoint"},
    {"inference"},
    {"evals"},
    {"tools"},
    {"train"},
    {"plan"},
    {"cli_align", "cli_data", "cli_plan"},
    {"cli"},
]  # fmt: skip
STRANGERS = [("losses", "models"), ("losses", "data"), ("models", "data")]  # neither imports the other
DOORS = {
    "array_record": {"data/array_record.py"},
    "absl": {"config.py", "data/pipeline.py"},
    "cv2": {"data/resize.py"},
    "fsspec": {"storage.py"},
    "flax": {"models/__init__.py", "models/dual_encoder.py", "models/image_encoder.py", "models/text_encoder.py", "models/transformer.py"},
    "grain": {"data/pipeline.py"},
    "ml_collections": {"config.py"},
    "optax": {"evals/logistic.py", "train/optimizer.py", "train/step.py"},
    "pyarrow": {"cleaning/filter.py", "cleaning/pieces.py", "data/annotations.py", "data/arrow.py", "data/column_types.py", "data/columnar.py", "data/kept.py", "data/parquet.py", "data/row_groups.py", "data/side_captions.py", "data/table.py"},
    "orbax": {"buckets.py", "checkpoint/reader.py", "checkpoint/store.py", "checkpoint/writer.py"},
    "simplejpeg": {"data/decode.py"},
    "sentencepiece": {"data/sentence_pieces.py"},
    "etils": {"checkpoint/store.py"},
    "tensorstore": {"checkpoint/store.py"},
    "tensorboardX": {"train/tensorboard.py"},
    "tensorflow_datasets": {"data/examples.py", "data/tfds.py"},
    "tensorflow": set(),
    "torch": set(),
    "wandb": set(),
}  # fmt: skip


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name):
    return next(n for n, names in enumerate(ROOMS) if name in names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_one_way_and_libraries_have_one_door(file):
    here = file.relative_to(PACKAGE)
    name = here.parts[0].removesuffix(".py")
    for imported in imports(file):
        parts = imported.split(".")
        if parts[0] in DOORS:
            assert str(here) in DOORS[parts[0]], f"{here} imports {parts[0]}"
        if parts[0] == "filip_jax" and len(parts) > 1 and not name.startswith("__") and not parts[1].startswith("__"):
            assert parts[1] == name or room(parts[1]) < room(name), f"{here} imports {imported}"
            assert (parts[1], name) not in STRANGERS, f"{here} imports {imported}"


def test_every_room_is_a_package_that_setuptools_finds():
    for folder in {file.parent for file in FILES}:
        assert (folder / "__init__.py").exists(), folder


def test_every_door_is_used():
    used = {str(f.relative_to(PACKAGE)): {i.split(".")[0] for i in imports(f)} for f in FILES}
    for library, files in DOORS.items():
        assert all(library in used[file] for file in files), library


def test_files_fit_a_head_and_functions_a_screen():
    for file in FILES:
        text = file.read_text()
        assert text.count("\n") <= 300, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = node.body[0].lineno - node.lineno + (node.end_lineno - body[0].lineno if body else 0)
                assert lines < 60, f"{file}: {node.name}"


def test_every_module_and_public_name_says_what_it_is():
    for file in FILES:
        tree = ast.parse(file.read_text())
        assert ast.get_docstring(tree), file
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                if not (file.name == "mesh.py" and node.name == "replicated"):
                    assert ast.get_docstring(node), f"{file}: {node.name}"


def test_dependencies_have_floors_and_ceilings():
    text = (ROOT / "setup.cfg").read_text()
    listed = re.findall(r"^    ([A-Za-z][\w-]*)(?:\[\w+\])?([<>=][^;\n]*)(?:;.*)?$", text, re.MULTILINE)
    assert len(listed) > 15
    assert all(re.fullmatch(r">=[\d.]+,<[\d.]+", bounds) for _, bounds in listed), listed


def test_the_table_of_costs_names_every_test_file_and_what_it_guards():
    """`python tests/cost.py FAST.json ALL.json` writes it."""
    rows = {row[1]: row[5] for row in ROW.finditer(TABLE.read_text())}
    assert rows == {file.name: guards(file) for file in (ROOT / "tests").glob("test_*.py")}
