"""What SECURITY.md says and ruff does not hold: by syntax trees, by canaries, and limit by limit."""

import ast
import importlib
import io
import json
import os
import pickle
import re
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from conftest import ROOT
from pairs import picture, tar, write_folder
from PIL import Image

from filip_jax.cli import main
from filip_jax.data.decode import FORMATS, decode
from filip_jax.data.record import BadRecord
from filip_jax.data.sources import make_source
from filip_jax.errors import UserError
from filip_jax.evals.prompts import make_prompts
from filip_jax.evals.zero_shot import ClassTexts
from filip_jax.inference import Embedder
from filip_jax.logged import read_metrics
from filip_jax.saved_config import read_config
from filip_jax.small_files import MAX_JSON_BYTES, read_json

PACKAGE = ROOT / "filip_jax"
SECURITY = (ROOT / "SECURITY.md").read_text()

# Ruff's rules hold the rest. Where the package silences one, it is for these uses.
SILENCED = {
    "__init__.py": "importlib.import_module",
    "cleaning/names.py": "importlib.import_module",
    "config_files.py": "importlib.util.spec_from_file_location",
    "data/decode.py": "formats=FORMATS",
    "data/emoji_art.py": "Image.open",
    "data/sentence_pieces.py": "subprocess",
    "extras.py": "importlib.import_module",
    "tools/sweep.py": "subprocess",
    "weights/torch_zip.py": "import zipfile",
}
# Methods of objects whose class ruff does not know: the files that may call them.
METHODS = {
    "builder_from_directory": {"data/tfds.py"},
    "exec_module": {"config_files.py"},
    "extract": set(),
    "extractall": set(),
    "from_str": set(),  # a tokenizer's JSON may hold regular expressions
    "import_string": set(),
    "read_pickle": set(),
}


def forbidden(name, tree):
    """Yield what a module does that none may and ruff does not see."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "command":
            if SILENCED.get(name) == "subprocess" and not ast.unparse(node.value).startswith("[sys.executable, "):
                yield "command of another program"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in ("__import__", "compile", "input"):
            yield called
        if called == "subprocess.Popen" and ast.unparse(node.args[0]) != "command":
            yield called
        if isinstance(node.func, ast.Attribute) and name not in METHODS.get(node.func.attr, {name}):
            yield called
        yield from {option.arg for option in node.keywords} & {"allow_pickle", "shell"}


@pytest.mark.parametrize("line", [
    "compile(a, b, c)", "__import__('os')", "input()", "tar.extractall()", "tar.extract(a)", "np.load(a, allow_pickle=True)",
    "run(a, shell=True)", "spec.loader.exec_module(m)", "subprocess.Popen(words)", "command = ['ls']", "command = words",
])  # fmt: skip
def test_the_search_finds_what_it_looks_for(line):
    assert list(forbidden("tools/sweep.py", ast.parse(line)))


def test_no_module_executes_unpickles_extracts_or_downloads():
    silenced = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        name, text = str(file.relative_to(PACKAGE)), file.read_text()
        assert list(forbidden(name, ast.parse(text))) == [], name
        for line in re.findall(r"^(.*)# noqa: (?:.*, )?(?:S|T10|TID251)", text, re.MULTILINE):
            assert SILENCED[name] in line, f"{name}: {line}"
            silenced[name] = SILENCED[name]
    assert silenced == SILENCED


@pytest.fixture
def canary(tmp_path):
    """A pickle that makes a folder when it is unpickled, which must never be there at the end."""
    sang = tmp_path / "sang"

    class Canary:
        def __reduce__(self):
            return os.mkdir, (str(sang),)

    data = pickle.dumps(Canary())
    pickle.loads(data)
    assert sang.exists()  # it can sing
    sang.rmdir()
    yield data
    assert not sang.exists()


def test_pickles_in_tars_are_never_run(tmp_path, canary):
    tars = tmp_path / "tars"
    tars.mkdir()
    names = ("a.png", "a.txt", "a.pickle", "a.pkl", "a.npy", "a.pth", "a.json", "a.pyd", "a.cls")
    tar(
        tars / "0.tar",
        [(name, canary) for name in names] + [("b.png", picture(1)), ("b.txt", b"a dog"), ("b.json", b"{}")],
    )
    source = make_source(dict(name="webdataset", path=str(tars), caption_keys=("txt", "json.caption", "pickle", "npy")))
    with pytest.raises(BadRecord):
        source[0]
    assert source[1].caption == "a dog"
    with pytest.raises(ValueError, match="no picture"):
        decode(source.image_head(0))
    assert {path.name for path in tars.iterdir()} == {"0.tar", ".filip_index"}  # nothing was extracted


def test_pickles_in_numpy_files_are_never_run(tmp_path, canary):
    pairs, keep = tmp_path / "pairs", tmp_path / "keep"
    pairs.mkdir(), keep.mkdir()
    section = write_folder(pairs, [range(3)])
    source = make_source(section)
    (keep / "report.json").write_text(json.dumps({"identity": source.identity, "rules": {}, "models": {}}))
    (keep / "captions.arrow").write_bytes(canary)
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    for content in (canary, out.getvalue() + canary, b""):
        (keep / "kept.npy").write_bytes(content)
        with pytest.raises(UserError, match="kept.npy is damaged"):
            make_source(section | dict(keep=str(keep)))
    np.save(keep / "kept.npy", np.arange(3))
    with pytest.raises(UserError, match="captions.arrow is damaged"):
        make_source(section | dict(keep=str(keep)))[0]


def test_pickles_in_parquet_are_never_run(tmp_path, canary):
    """As an image, as a caption, and as the type of a column, which old Arrow unpickled (CVE-2023-47248)."""
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": canary}
    fields = [
        pa.field("image", pa.binary()),
        pa.field("caption", pa.string()),
        pa.field("x", pa.binary(), metadata=metadata),
    ]
    table = pa.table([[canary, picture(1)], [repr(canary), "a dog"], [canary, canary]], schema=pa.schema(fields))
    pq.write_table(table, tmp_path / "0.parquet")
    section = dict(name="parquet", path=str(tmp_path))
    source = make_source(section)
    with pytest.raises(ValueError, match="no picture"):
        decode(source[0].image)
    assert source[1].caption == "a dog"
    with pytest.raises(BadRecord, match="a text that is not UTF-8"):
        make_source(section | {"caption_keys": ("caption", "x")})[1]


def test_pickles_in_array_records_are_never_run(tmp_path, canary):
    writer = ArrayRecordWriter(str(tmp_path / "0.array_record"), "group_size:1")
    writer.write(canary), writer.write(b"filip1\r\n" + len(canary).to_bytes(4, "little") + canary)
    writer.close()
    source = make_source(dict(name="array_record", path=str(tmp_path)))
    for index in range(2):
        with pytest.raises(BadRecord):
            source[index]


@pytest.mark.parametrize("content", [
    {"pythonClassName": "evil_features.Feature"}, {"type": "evil_features.Feature", "content": {}},
    {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict", "featuresDict": {"features": {
        "image": {"pythonClassName": "evil_features.Feature"}}}},
    {"pythonClassName": "tensorflow_datasets.core.features.x.X", "jsonFeature": {"json": '{"type": "evil_features.F"}'}},
])  # fmt: skip
def test_a_tensorflow_data_set_imports_no_module_that_it_names(tmp_path, monkeypatch, content):
    (tmp_path / "evil_features.py").write_text(f"open({str(tmp_path / 'sang')!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    data = tmp_path / "data"
    data.mkdir()
    (data / "features.json").write_text(json.dumps(content))
    (data / "dataset_info.json").write_text('{"name": "a", "version": "1.0.0", "fileFormat": "array_record"}')
    with pytest.raises(UserError, match="names the class 'evil_features.F.*only TensorFlow Datasets' own are read"):
        make_source(dict(name="tfds", path=str(data), split="train"))
    assert not (tmp_path / "sang").exists() and "evil_features" not in sys.modules


def test_a_prompt_is_no_format_string(monkeypatch):
    def encode_text(self, texts):
        raise KeyboardInterrupt(texts)

    monkeypatch.setattr(Embedder, "encode_text", encode_text)
    model = object.__new__(Embedder)
    model.mesh = None
    with pytest.raises(KeyboardInterrupt) as texts:
        ClassTexts(model, ["a {0} dog"], make_prompts(["{} {0.__class__} {:>99999999999}"]))
    assert texts.value.args == (["a {0} dog {0.__class__} {:>99999999999}"],)
    for prompt in ("a dog", "", "{0}"):
        with pytest.raises(UserError, match=r"has no \{\}"):
            make_prompts([prompt])


def test_only_the_six_formats_are_decoded():
    assert {name.lower() for name in FORMATS} == {
        word.lower() for word in re.search(r"six decoders: ([\w, ]+)\.", SECURITY)[1].split(", ")
    }
    for name in ("PPM", "TGA", "ICO", "EPS", "PDF", "SGI", "PCX"):
        file = io.BytesIO()
        Image.new("RGB", (32, 32)).save(file, name)
        with pytest.raises(ValueError, match="no picture that can be read"):
            decode(file.getvalue())


@pytest.mark.parametrize(
    "path",
    [
        "pipe:cat /etc/passwd",
        "http://127.0.0.1:1/a.tar",
        "https://a/b.tar",
        "file:///etc",
        "ftp://a/b.tar",
        "x::s3://a",
    ],
)
@pytest.mark.parametrize("name", ["webdataset", "parquet", "jsonl"])
def test_paths_are_local_or_of_two_schemes(tmp_path, path, name):
    with pytest.raises(UserError):
        make_source(dict(name=name, path=path))
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": path, "caption": "a dog"}))
    with pytest.raises(BadRecord, match="not downloaded from the web|no such file"):
        make_source(dict(name="jsonl", path=str(tmp_path / "a.jsonl")))[0]


@pytest.mark.parametrize(
    "command",
    [
        ["index"],
        ["inspect", "--output=OUT/a.png"],
        ["filter", "--output=OUT/kept", "--min_side=0", "--languages=", "--no-person_names"],
    ],
)
def test_names_and_texts_from_data_reach_the_terminal_without_control_characters(tmp_path, capsysbinary, command):
    (tmp_path / "a.png").write_bytes(picture(1))
    rows = [
        {"image": "a.png", "caption": "\x1b[2J 1", "\ud800\x1b[31m\n": 1},
        {"image": "a\x1b[2J.png", "caption": "a dog"},
        {"image": "a.png", "caption": "a dog in the garden"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [word.replace("OUT", str(tmp_path)) for word in command]
    assert main(["data", words[0], "jsonl", f"path={tmp_path}/a.jsonl", *words[1:]]) == 0
    said = capsysbinary.readouterr().out.decode("utf-8")
    assert said.replace("\n", "").isprintable() and "x1b" in said


LIMITS = re.findall(r"^\| .*? +\| ([\d,]+) +\| `(\w+)` in (\S+) +\|$", SECURITY, re.MULTILINE)


@pytest.mark.parametrize("limit, name, file", LIMITS, ids=[f"{file}:{name}" for _, name, file in LIMITS])
def test_the_limits_are_those_of_the_code(limit, name, file):
    module = file.replace("\\", "").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert getattr(importlib.import_module(f"filip_jax.{module}"), name) == int(limit.replace(",", ""))


def test_every_limit_of_the_table_is_read():
    assert len(LIMITS) == SECURITY.count("` in ") >= 19


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[]", "\ud800", "NaN"])
def test_json_that_is_no_object_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match="config.json is damaged"):
        read_config(tmp_path)


def test_json_files_and_lines_beyond_their_limit(tmp_path):
    file = tmp_path / "evals.json"
    with file.open("wb") as handle:
        os.truncate(handle.fileno(), MAX_JSON_BYTES + 1)  # a file with a hole: it takes no room
    with pytest.raises(UserError, match=f"has {MAX_JSON_BYTES + 1} bytes; at most {MAX_JSON_BYTES} are read"):
        read_json(file)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + "[" * 100_000 + "\n")
    with pytest.warns(UserWarning, match="left out.*line 2: it is nested too deeply"):
        assert read_metrics(tmp_path) == [{"step": 1}]


WRONG = [
    {"rows": -1}, {"rows": "1"}, {"rows": True}, {"kinds": [["png", -1]]}, {"kinds": [[1, 1]]}, {"kinds": 5}, {"kinds": [["png", 1]] * 65},
    {"key_bytes": 201}, {"key_bytes": -1}, {"name": 5}, {"problems": [1]}, {"problems": {"a": "b"}}, {"more": 1}, {"size": 1.5},
]  # fmt: skip


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_an_index_that_came_with_the_data_is_checked(tmp_path, change):
    tar(tmp_path / "0.tar", [("a.png", picture(1)), ("a.txt", b"a dog")])
    section = dict(name="webdataset", path=str(tmp_path))
    make_source(section)
    index = tmp_path / ".filip_index/index.json"
    content = json.loads(index.read_text())
    content["shards"][0] |= change
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match="index.json is damaged .*: remove it"):
        make_source(section)


def test_an_index_whose_rows_lead_nowhere_spoils_records_only(tmp_path):
    tar(tmp_path / "0.tar", [("a.png", picture(1)), ("a.txt", b"a dog")])
    section = dict(name="webdataset", path=str(tmp_path))
    make_source(section)
    (table,) = (file for file in (tmp_path / ".filip_index").iterdir() if file.name != "index.json")
    size = table.stat().st_size
    table.write_bytes(b"\0" * size)
    source = make_source(section)
    for read in (source.__getitem__, source.image_head):
        with pytest.raises(BadRecord, match="no image in the index"):
            read(0)
    table.write_bytes(b"\xff" * size)
    with pytest.raises(BadRecord, match="bytes; at most"):
        make_source(section)[0]


def test_what_is_said_of_the_compile_cache_and_of_reporting():
    code = (PACKAGE / "compiled.py").read_text()
    assert '"compiled"' in code and "JAX_COMPILATION_CACHE_DIR" in code
    for word in (
        "JAX_COMPILATION_CACHE_DIR",
        "`compiled`",
        "private security advisory",
        "Private networks only",
        "[redacted]",
    ):
        assert word in " ".join(SECURITY.split()), word
