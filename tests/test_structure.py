"""The house rules that a machine can hold: who imports whom, one door per library, files that fit a head."""

import ast
import configparser
import functools
import importlib
import inspect
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, no_process_left
from cost import ROW, TABLE, guards

from filip_jax.data.sources import SOURCES
from filip_jax.data.tokenizer import TOKENIZERS
from filip_jax.evals.run import KINDS
from filip_jax.models.towers import TOWERS
from filip_jax.models.transformer import ATTENTIONS
from filip_jax.objectives import OBJECTIVES
from filip_jax.search.engines import ENGINES
from filip_jax.train.optimizer import OPTIMIZERS
from filip_jax.weights.families import FAMILIES
from filip_jax.weights.formats import FORMATS

PACKAGE = ROOT / "filip_jax"
# The configs are a link out of the package in a clone, and files of it in a source distribution.
FILES = sorted(file for file in PACKAGE.rglob("*.py") if file.relative_to(PACKAGE).parts[0] != "configs")
# A module imports only from rooms above its own in this list, or from its own room.
ROOMS = [
    {"redact"},
    {"plain"},
    {"console"},
    {"errors"},
    {"small_files"},
    {"ahead", "extras", "files", "foreign_paths", "handles", "names", "paths", "progress", "sections", "user_paths", "walk", "workers"},
    {"framing", "logged", "shipped", "storage"},
    {"buckets", "cluster", "folders", "mesh", "saved_config"},
    {"workdir"},
    {"compiled"},
    {"losses"}, {"models"}, {"objectives"}, {"data"},
    {"features"},
    {"cleaning"},
    {"checkpoint"},
    {"inference"},
    {"weights"},
    {"evals"},
    {"search"},
    {"train"},
    {"choices"},
    {"config_files", "epochs"},
    {"config"},
    {"tools"},
    {"plan"},
    {"cli_align", "cli_configs", "cli_data", "cli_embed", "cli_plan", "cli_search", "cli_weights"},
    {"cli_serve"},
    {"cli"},
]  # fmt: skip
STRANGERS = [
    ("losses", "models"),
    ("losses", "data"),
    ("models", "data"),
    ("objectives", "data"),
]  # neither imports the other
DOORS = {  # files, and folders, which end with a slash
    "array_record": {"data/array_record.py"},
    "absl": {"config.py", "data/pipeline.py"},
    "cv2": {"data/resize.py"},
    "fsspec": {"storage.py"},
    "packaging": {"extras.py"},
    "flax": {"models/"},
    "grain": {"data/pipeline.py"},
    "ml_collections": {"config.py", "config_files.py", "epochs.py"},
    "optax": {"evals/logistic.py", "train/optimizer.py", "train/schedules.py", "train/step.py"},
    "pyarrow": {"cleaning/filter.py", "cleaning/pieces.py", "data/annotations.py", "data/arrow.py", "data/arrow_messages.py", "data/column_types.py", "data/columnar.py", "data/kept.py", "data/mapped.py", "data/parquet.py", "data/row_groups.py", "data/scalars.py", "data/side_captions.py", "data/table.py", "features/reader.py", "features/table.py", "search/engines/lance.py", "search/filters.py"},
    "orbax": {"buckets.py", "checkpoint/reader.py", "checkpoint/store.py", "checkpoint/writer.py"},
    "safetensors": {"weights/tensors.py"},
    "starlette": {"search/page/"},
    "uvicorn": {"search/page/serve.py"},
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
# Private modules of other packages: who imports them and why. Nothing else private is imported, and the only private
# name that is replaced is the one of REPLACED.
PRIVATE = {
    "jax._src.distributed": (
        {"filip_jax/cluster/service.py"},
        "the client of JAX's coordination service and its address have no public name",
    ),
    "orbax.checkpoint._src.serialization.tensorstore_utils": (
        {"filip_jax/buckets.py", "filip_jax/checkpoint/store.py"},
        "where Orbax puts arrays is decided here: s3:// is added, and a store is opened without Orbax to compare it",
    ),
}
# What a config chooses from, by the file whose table alone names it: a new kind is a file or function, and a line there.
TABLES = {
    "data/sources.py": SOURCES
    | {"mixture": None},  # whose class may be asked for: a source of sources, drawn by weight
    "data/tokenizer.py": TOKENIZERS,
    "evals/run.py": KINDS,
    "models/towers/__init__.py": TOWERS["image"] | TOWERS["text"],
    "models/transformer.py": ATTENTIONS,
    "train/optimizer.py": OPTIMIZERS,
    "objectives/__init__.py": OBJECTIVES,
    "search/engines/__init__.py": ENGINES,
    "weights/families/__init__.py": FAMILIES,
    "weights/formats/__init__.py": FORMATS,
}
NO_KINDS = {  # names in other files, and what they are there
    ("data/annotations.py", "'annotations'"): "a key of COCO's files",
    ("data/kept.py", "'folder'"): "a key of what a checkpoint notes of the data",
}
PATCHES = {"setattr", "delattr", "patch", "object"}
REPLACED = {("filip_jax/buckets.py", "orbax.checkpoint._src.serialization.tensorstore_utils.*")}
EVERYWHERE = sorted(
    file for folder in ("filip_jax", "benchmarks", "configs", "tests") for file in (ROOT / folder).rglob("*.py")
)
OURS = {"filip_jax"} | {file.stem for file in EVERYWHERE if PACKAGE not in file.parents}


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
            assert str(here).startswith(tuple(DOORS[parts[0]])), f"{here} imports {parts[0]}"
        if parts[0] == "filip_jax" and len(parts) > 1 and not name.startswith("__") and not parts[1].startswith("__"):
            assert parts[1] == name or room(parts[1]) < room(name), f"{here} imports {imported}"
            assert (parts[1], name) not in STRANGERS, f"{here} imports {imported}"


def test_every_room_is_a_package_that_setuptools_finds():
    for folder in {file.parent for file in FILES}:
        assert (folder / "__init__.py").exists(), folder


def test_every_door_is_used():
    used = {str(f.relative_to(PACKAGE)): {i.split(".")[0] for i in imports(f)} for f in FILES}
    for library, files in DOORS.items():
        assert all(any(library in used[f] for f in used if f.startswith(file)) for file in files), library


def test_files_fit_a_head_and_functions_a_screen():
    for file in FILES:
        text = file.read_text()
        assert text.count("\n") <= 300, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = node.body[0].lineno - node.lineno + (node.end_lineno - body[0].lineno if body else 0)
                assert lines < 60, f"{file}: {node.name}"


def asked_for(text: str) -> set[str]:
    """Return the texts that a file compares with or has as keys, quoted, and the objects whose identity or type it asks for."""
    asked = list[ast.AST | None]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            sides = [part for side in sides for part in getattr(side, "elts", [side])]
            texts = [side for side in sides if isinstance(side, ast.Constant)]
            identity = isinstance(node.ops[0], ast.Is | ast.IsNot) and not texts
            asked += sides if identity else texts
        elif isinstance(node, ast.Dict):
            asked += [key for key in node.keys if isinstance(key, ast.Constant)]
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            asked.append(node.slice)
        elif isinstance(node, ast.MatchValue):
            asked.append(node.value)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            asked += [part for part in ast.walk(node.args[1]) if isinstance(part, ast.Name | ast.Attribute)]
    return {
        ast.unparse(part).rpartition(".")[2] if isinstance(part, ast.Attribute) else ast.unparse(part) for part in asked
    }


def kinds_of_others(file: str, text: str) -> set[str]:
    """Return the kinds that a file asks for although their table is another's."""
    names = {owner: {*map(repr, table), *map(object_name, table.values())} for owner, table in TABLES.items()}
    others = set().union(*(found for owner, found in names.items() if owner != file)) - names.get(file, set())
    return {name for name in asked_for(text) & others if (file, name) not in NO_KINDS}


def object_name(kind: object) -> str:
    return getattr(kind, "__name__", "").rpartition(".")[2]


def test_no_file_but_its_table_names_a_kind():
    texts = {str(file.relative_to(PACKAGE)): file.read_text() for file in FILES}
    assert not {file: found for file, text in texts.items() if (found := kinds_of_others(file, text))}
    assert all(name in asked_for(texts[file]) for file, name in NO_KINDS)


@pytest.mark.parametrize(
    "text, kind",
    [
        ("if name == 'lamb': pass", "'lamb'"),
        ("a = 'bert' != name", "'bert'"),
        ("name in ('csv', 'other')", "'csv'"),
        ("small = {'zero_shot': 3}", "'zero_shot'"),
        ("TABLE['cudnn']", "'cudnn'"),
        ("match name:\n    case 'tfds': pass", "'tfds'"),
        ("if each.kind is pictures: pass", "pictures"),
        ("kind is not evals.retrieval", "retrieval"),
        ("isinstance(source, data.Folder | Arrow)", "Folder"),
    ],
)
def test_a_kind_that_is_asked_for_is_noticed(text, kind):
    assert kind in kinds_of_others("any.py", text)


def test_what_is_given_or_called_as_a_kind_is_no_offence():
    assert not kinds_of_others("any.py", "if folder is None: make(name='lamb', source=dict(name='csv'))")
    assert not kinds_of_others("train/optimizer.py", "OPTIMIZERS = {'lamb': lamb}")


def test_dependencies_have_floors_and_ceilings():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lists = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    lines = [line for text in lists for line in text.strip().split("\n")]
    again = [line for line in lines if re.match(r"(jax|filip_jax)\[", line)]  # with extras: their bounds are the base's
    unbound = [line for line in lines if not re.fullmatch(r"[\w-]+(\[\w+\])?>=[\d.]+,<[\d.]+(;.*)?", line)]
    assert unbound == again and len(lines) > len(again)


def test_marks_stand_on_tests():
    """A mark on a helper marks nothing: it once belonged to the test that a helper was written in front of."""
    for file in sorted((ROOT / "tests").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("test_"):
                marks = [ast.unparse(decorator) for decorator in node.decorator_list]
                assert not [mark for mark in marks if mark.startswith("pytest.mark.")], f"{file.name}: {node.name}"


def test_the_table_of_costs_names_every_test_file_and_what_it_guards():
    """`python tests/cost.py FAST.json ALL.json` writes it."""
    rows = {row[1]: row[4] for row in ROW.finditer(TABLE.read_text())}
    assert rows == {file.name: guards(file) for file in (ROOT / "tests").glob("test_*.py")}


def names_in(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield ("use" or "replace", dotted name) of what a file imports, reads, sets or patches and can be traced to an import.

    A name that is no constant is "*"; what a function is given as an argument cannot be traced.
    """
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (("use", alias.name) for alias in node.names)
            tops = {alias.name.split(".")[0] for alias in node.names if not alias.asname}
            known |= {alias.asname: alias.name for alias in node.names if alias.asname} | {top: top for top in tops}
        elif isinstance(node, ast.ImportFrom):
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    yield from (("use", name) for name in known.values())

    def dotted(node):
        if isinstance(node, ast.Attribute):
            return f"{dotted(node.value)}.{node.attr}"
        return known.get(node.id, "") if isinstance(node, ast.Name) else ""

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield "use" if isinstance(node.ctx, ast.Load) else "replace", dotted(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in PATCHES and node.args:
            owner, *names = (part.value if isinstance(part, ast.Constant) else dotted(part) for part in node.args)
            name = names[0] if names and isinstance(names[0], str) and names[0] else "*"
            yield "replace", owner if isinstance(node.args[0], ast.Constant) else f"{owner}.{name}"


def is_private(name: str) -> bool:
    """Return whether a dotted name is of another package and has a part that begins with one underscore."""
    first, *rest = str(name).split(".")
    return first not in {"", *OURS, *sys.stdlib_module_names} and any(re.match("_(?!_)", part) for part in rest)


def private_names(text: str) -> set[tuple[str, str]]:
    """Return those that are private to another package."""
    return {(how, name) for how, name in names_in(ast.parse(text)) if is_private(name)}


def offences(file: str, names: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return what a file does with private names although no table allows it."""
    allowed = tuple(f"{module}." for module, (files, _) in PRIVATE.items() if file in files)
    fine = {("use", name) for _, name in names if f"{name}.".startswith(allowed)}
    return names - fine - {("replace", name) for place, name in REPLACED if place == file}


def test_private_names_of_other_packages_are_left_alone():
    names = {str(file.relative_to(ROOT)): private_names(file.read_text()) for file in EVERYWHERE}
    assert not {file: found for file in names if (found := offences(file, names[file]))}
    assert all(("use", module) in names[file] for module, (files, _) in PRIVATE.items() for file in files)
    assert all(("replace", name) in names[file] for file, name in REPLACED)


@pytest.mark.parametrize(
    "text, offence",
    [
        ("from jax._src import compiler\ncompiler._cache_write = print", "replaces jax._src.compiler._cache_write"),
        ("import jax\njax._src.compiler.write = print", "replaces jax._src.compiler.write"),
        ("import jax._src.compiler as c\ndel c.write", "replaces jax._src.compiler.write"),
        ("import jax._src.compiler", "uses jax._src.compiler"),
        ("import jax\ndef f(): return jax._src.core.x", "uses jax._src.core.x"),
        (
            "import fsspec\nfsspec.AbstractFileSystem._strip_protocol('x')",
            "uses fsspec.AbstractFileSystem._strip_protocol",
        ),
        ("from jax._src import x\nsetattr(x, NAME, print)", "replaces jax._src.x.*"),
        ("import jax\nmonkeypatch.setattr(jax.Array, '_value', 1)", "replaces jax.Array._value"),
        ("import jax\nmonkeypatch.delattr(jax.Array, '_value')", "replaces jax.Array._value"),
        ("monkeypatch.setattr('jax._src.x.y', 1)", "replaces jax._src.x.y"),
        ("with mock.patch('jax._src.x.y', 1): pass", "replaces jax._src.x.y"),
        ("import jax\nwith mock.patch.object(jax._src.x, 'y'): pass", "replaces jax._src.x.y"),
    ],
)
def test_a_private_name_is_noticed(text, offence):
    how, name = offence.split()
    assert (how.removesuffix("s"), name) in offences("benchmarks/any.py", private_names(text))


def test_public_names_and_our_own_are_no_offence():
    text = "import os, jax\nfrom filip_jax import workers\nworkers._work = jax.Array.x = os._exit\njax.__version__"
    assert not private_names(text)


def test_the_private_names_that_stay_are_what_we_take_them_for():
    service = importlib.import_module("filip_jax.cluster.service")
    state, client = service.distributed.global_state, importlib.import_module("jaxlib._jax").DistributedRuntimeClient
    assert state.client is None and state.coordinator_address is None  # in a process that has joined no others
    methods = set(re.findall(r"_client\(\)\.(\w+)", inspect.getsource(service)))
    assert "key_value_set" in methods and all(hasattr(client, method) for method in methods)
    assert "allow_overwrite" in client.key_value_set.__doc__
    buckets = importlib.import_module("filip_jax.buckets")
    build = getattr(buckets.tensorstore_utils, buckets.BUILD)
    build = build.args[0] if isinstance(build, functools.partial) else build  # ours, where a test before has used s3://
    assert next(iter(inspect.signature(build).parameters)) == "directory"
    assert build("/folder", use_ocdbt=False)["path"].startswith("/folder")
    inspect.signature(buckets.tensorstore_utils.get_ts_context).bind()


def test_a_process_that_a_test_leaves_is_named_and_killed():
    with pytest.raises(AssertionError, match=r"processes were left and are killed now: \{\d+: 'sleep 1234 '\}"):
        with no_process_left(seconds=0.0):
            process = subprocess.Popen(["sleep", "1234"])
            while b"1234" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                time.sleep(0.01)
    assert process.wait() == -signal.SIGKILL
