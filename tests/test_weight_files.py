"""Files of weights from strangers: no code of a pickle runs, what is spoilt or of another family is one line, and nothing is left."""

import contextlib
import json
import os
import pickle
import shutil
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, examples
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from filip_jax.cli import main
from filip_jax.errors import UserError
from filip_jax.weights import torch_pickle, torch_zip
from filip_jax.weights.load import import_weights, read_weights
from filip_jax.weights.open_clip_config import of_config, of_name
from filip_jax.weights.plan import HALF, Found
from filip_jax.weights.preprocessing import of_transformers
from filip_jax.weights.tensors import MAX_HEADER_BYTES, open_weights, weights_file
from filip_jax.weights.torch_pickle import NotPlain, Tensor, parse_pickle

FOLDERS = ROOT / "tests/weights"
EPOCH = FOLDERS / "open_clip_epoch/epoch_1.pt"
STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage"}


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value):
    return b"J" + struct.pack("<i", value)


def described(value, storages):
    """The opcodes of a value as torch.save writes them; arrays become storages of their own."""
    if isinstance(value, dict):
        items = b"".join(described(key, storages) + described(each, storages) for key, each in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, np.ndarray):
        storages.append(value)
        kind, shape = STORAGES[value.dtype.name], b"".join(map(number, value.shape))
        strides = b"".join(number(stride // value.itemsize) for stride in value.strides)
        storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(str(len(storages) - 1)) + text("cpu")
        storage += number(value.size) + b"tQ"
        view = storage + number(0) + b"(" + shape + b"t(" + strides + b"t\x89ccollections\nOrderedDict\n)R"
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"tR"
    return {str: text, int: number, float: lambda x: b"G" + struct.pack(">d", x)}[type(value)](value)


def pickled(value, storages):
    return b"\x80\x02" + described(value, storages) + b"."


def torch_file(file, data, storages=(), top="archive", method=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(f"{top}/data.pkl", data)
        archive.writestr(f"{top}/byteorder", "little")
        for n, array in enumerate(storages):
            archive.writestr(f"{top}/data/{n}", array.tobytes("A"))
        for name, content in members.items():
            archive.writestr(f"{top}/{name}", content)
    return file


def saved(file, value, **options):
    storages = []
    return torch_file(file, pickled(value, storages), storages, **options)


def test_what_torch_writes_is_read(tmp_path):
    """Nested dicts, views, prefixes and all types are read; what stands beside the weights is named."""
    arrays = {
        "module._orig_mod.a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "module._orig_mod.b": np.arange(6, dtype=np.float32).reshape(3, 2).T,
        "module._orig_mod.c": np.array(3, np.float16),
        "module._orig_mod.d": np.arange(3).astype(jnp.bfloat16),
        "module._orig_mod.e": np.zeros((0, 2), np.int64),
    }
    content = {
        "epoch": 3,
        "name": "x",
        "state_dict": arrays,
        "state_dict_ema": {k: np.asarray(v + v) for k, v in arrays.items()},
    }
    with open_weights(
        saved(tmp_path / "a.pt", content | {"optimizer": {"state": {0: {"step": np.ones(1)[0].item()}}}})
    ) as weights:
        for name, array in arrays.items():
            found = weights.tensors[name.rpartition(".")[2]]
            assert found.shape == array.shape and found.dtype == array.dtype.name
            np.testing.assert_array_equal(found.read(), array + array)
        assert weights.beside.keys() == {"epoch", "name", "state_dict", "optimizer"}
        assert len(weights.notes) == 2 and "state_dict_ema" in weights.notes[0]


def test_several_files_of_torch_are_read_by_their_index(tmp_path):
    arrays = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), np.float16)}
    for name, array in arrays.items():
        saved(tmp_path / f"pytorch_model-{name}.bin", {name: array})
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {name: f"pytorch_model-{name}.bin" for name in arrays}}))
    assert weights_file(tmp_path, ["model.safetensors", "pytorch_model.bin"]) == index
    with open_weights(index) as weights:
        assert {name: stored.read().tolist() for name, stored in weights.tensors.items()} == {
            name: array.tolist() for name, array in arrays.items()
        }
        assert len(weights.files) == 2
    saved(tmp_path / "pytorch_model-b.bin", arrays)
    with pytest.raises(UserError, match="'a' stands in two of its files"), open_weights(index):
        pass


def test_a_file_of_open_clips_training_is_read():
    with open_weights(EPOCH) as weights:
        assert "visual.conv1.weight" in weights.tensors and {"epoch", "optimizer", "scaler"} <= weights.beside.keys()
        assert all(stored.read().shape == stored.shape for stored in weights.tensors.values())


WEIGHTS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b.a.bias": np.arange(2, dtype=np.float32)}


@pytest.mark.parametrize("names", [
    ["module.model.a.weight", "module.model.b.a.bias"],
    ["a._orig_mod.weight", "b.a.bias"],
    ["_fsdp_wrapped_module.a.weight", "_fsdp_wrapped_module.b._fsdp_wrapped_module._checkpoint_wrapped_module.a.bias"],
    ["a.weight", "b.module.a.bias"],
])  # fmt: skip
def test_wrappers_in_names_are_taken_away(names, tmp_path):
    content = {"ema": dict(zip(names, WEIGHTS.values())) | {"n_averaged": np.ones((), np.int64)}}
    with open_weights(saved(tmp_path / "a.pt", content)) as weights:
        assert weights.tensors.keys() - {"n_averaged"} == WEIGHTS.keys()


def test_names_that_a_wrapper_alone_tells_apart_are_refused(tmp_path):
    content = {"a.weight": WEIGHTS["a.weight"], "module.a.weight": WEIGHTS["a.weight"]}
    with pytest.raises(UserError, match="differ in module alone"), open_weights(saved(tmp_path / "a.pt", content)):
        pass


@pytest.mark.parametrize("beside", [
    {"rng_state": np.zeros(9, np.int64)},
    {"model": WEIGHTS, "loss": np.ones((), np.float32)},
])  # fmt: skip
def test_tensors_beside_a_state_dict_are_not_taken_for_it(beside, tmp_path):
    name = "model" if "model" in beside else "net"
    with open_weights(saved(tmp_path / "a.pt", beside | {name: WEIGHTS})) as weights:
        assert weights.tensors.keys() == WEIGHTS.keys() and name in weights.notes[0]


def test_dicts_of_which_none_is_known_are_named(tmp_path):
    with pytest.raises(UserError, match="'student', 'teacher': save one state dict alone"):
        with open_weights(saved(tmp_path / "a.pt", {"student": WEIGHTS, "teacher": WEIGHTS})):
            pass


def test_names_and_endings_of_files_are_those_of_others(tmp_path):
    """A file's content tells what it is: the cache of the Hub has names without endings, scripts write .pt for all."""
    save_file(WEIGHTS, tmp_path / "a.pt")
    saved(tmp_path / "b.safetensors", WEIGHTS)
    for name in ("a.pt", "b.safetensors"):
        with open_weights(tmp_path / name) as weights:
            assert weights.tensors.keys() == WEIGHTS.keys()
    for name in ("c.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with pytest.raises(UserError, match="is a pointer of git-lfs.*git lfs pull"), open_weights(tmp_path / name):
            pass


def test_protocol_4_of_torch_is_read():
    data = pickle.dumps({"epoch": [3, 1 << 40, "x" * 300, {"y": (None, True, 0.5)}]}, 4)
    assert b"\x95" in data and parse_pickle(data) == pickle.loads(data)
    assert parse_pickle(b"\x80\x04\x8c\x05torch\x8c\x0cFloatStorage\x93.") == torch_pickle.Global("torch FloatStorage")


def test_a_tensor_that_torch_negates_when_it_reads_is_refused(tmp_path):
    data = DATA.replace(
        b"\x89ccollections\nOrderedDict\n)R", b"\x89ccollections\nOrderedDict\n)R}" + text("neg") + b"\x88s"
    )
    with pytest.raises(UserError, match="numbers torch changes"):
        with open_weights(torch_file(tmp_path / "a.pt", data, TENSOR.values())):
            pass


def test_one_tensor_may_stand_in_several_state_dicts(tmp_path):
    storages = []
    first = (
        text("model") + b"}" + text("a") + described(WEIGHTS["a.weight"] + np.zeros((900, 1, 1), np.float32), storages)
    )
    first += b"q\x07s"
    others = b"".join(text(name) + b"}" + text("a") + b"h\x07s" for name in ("best", "last", "mean"))
    with open_weights(torch_file(tmp_path / "a.pt", b"\x80\x02}(" + first + others + b"u.", storages)) as weights:
        assert weights.tensors["a"].read().shape == (900, 2, 3)


def test_a_long_text_that_stands_everywhere_costs_little(tmp_path):
    """A description is a text's beginning: 40,000 times all of a megabyte would take minutes."""
    begin = b"\x80\x02}(" + text("a") + described(TENSOR["a"], []) + text("b") + text("\n" * 1_000_000) + b"q\x07"
    data = begin + b"".join(text(str(n)) + b"h\x07" for n in range(40_000)) + b"u."
    with open_weights(torch_file(tmp_path / "a.pt", data, TENSOR.values())) as weights:
        assert len(weights.beside) == 40_001 and max(map(len, weights.beside.values())) < 200


def test_a_dict_that_stands_everywhere_is_read_once(tmp_path):
    """20,000 names of a dict of 20,000 would be 400 million steps."""
    data = b"\x80\x02}q\x00(" + b"".join(text(str(n)) + b"h\x00" for n in range(20_000)) + b"u."
    with pytest.raises(UserError, match="no dict of weights"), open_weights(torch_file(tmp_path / "a.pt", data)):
        pass


def test_a_member_that_lies_outside_of_its_file_is_refused(tmp_path):
    data = bytearray(saved(tmp_path / "a.pt", TENSOR).read_bytes())
    place = data.rfind(b"PK\x01\x02") + 42
    data[place : place + 4] = b"\xf0\xff\xff\xff"
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(UserError, match="lies outside of it"), open_weights(tmp_path / "a.pt"):
        pass


def test_a_number_of_a_hundred_axes_is_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(UserError, match="has 100 dimensions"), open_weights(tmp_path / "a.safetensors"):
        pass


def test_a_number_for_both_sides_squashes_as_the_family_does():
    """size=224 of a ViTImageProcessor is both sides, of a CLIPImageProcessor the shorter one (transformers 5.24)."""
    for rule in ("squash", "shortest"):
        found = Found(ROOT, None, {"preprocessor_config.json": {"size": 40}}, {})
        options, _, _ = of_transformers(found, dict(mean=HALF, std=HALF, resize=rule, interpolation="bilinear"))
        assert options["resize"] == rule


CODE = [
    b"cos\nsystem\n(X\x04\x00\x00\x00trueItR",
    b"cbuiltins\neval\n(X\x01\x00\x00\x001tR",
    b"ctorch\nload\n(X\x01\x00\x00\x001tR",
    b"ctorch._utils\n_rebuild_tensor_v2\n(cos\nsystem\nK\x00))tR",
    b"(X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93",
    b"(S'true'\nios\nsystem\n",
    b"ccollections\nOrderedDict\n)\x81",
    b"ctorch\nFloatStorage\n)R",
    b"}X\x01\x00\x00\x00a}b",
    b"\x82\x01",
    b"P1\n",
]


@pytest.mark.parametrize("code", CODE, ids=repr)
def test_what_could_run_is_refused(code, tmp_path):
    with pytest.raises(UserError, match="holds more than tensors.*Convert it with.*weights_only=True"):
        with open_weights(torch_file(tmp_path / "a.pt", b"\x80\x02" + code + b".")):
            pass


class Canary:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_with_code_runs_nothing(protocol, tmp_path, capsys):
    sang = tmp_path / "sang"
    data = pickle.dumps({"visual.conv1.weight": Canary(str(sang))}, protocol)
    pickle.loads(data)
    sang.rmdir()  # it can sing
    for name in ("archive.pt", "folder/pytorch_model.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        torch_file(tmp_path / name, data)
    for source in ("archive.pt", "folder"):
        assert main(["import", str(tmp_path / source), f"--output={tmp_path}/run"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not sang.exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize("data, what", [
    (b"\x80\x02" + b"]" * 20_000_000, "at most 16777216 are read"),
    (b"\x80\x02}(" + b"".join(b"J" + struct.pack("<i", -n) + b"N" for n in range(9)) + b"u.", "a key of the type int"),
    (b"\x80\x02}(" + b"\x85" * 9 + b"Nu.", "damaged"),
    (b"\x80\x02}(" + b")\x85" * 4_000 + b"Nu.", "damaged"),
    (b"\x80\x02}(" + b")" + b"\x85" * 4_000 + b"Nu.", "a key of the type tuple"),
    (b"\x80\x02Nr\xff\xff\xff\xff.", "numbers a value"),
    (b"\x80\x02h\x05.", "damaged"),
    (b"\x80\x02X\xff\xff\xff\xffa.", "damaged"),
    (b"\x80\x02.", "damaged"),
    (b"\x80\x02NN.", "damaged"),
    (b"\x80\x02}", "damaged"),
    (b"", "damaged"),
], ids=lambda value: repr(value)[:30])  # fmt: skip
def test_work_and_memory_of_a_pickle_are_bounded(data, what):
    with pytest.raises(NotPlain, match=what):
        parse_pickle(data)


def test_the_work_of_a_pickle_is_bounded(monkeypatch):
    monkeypatch.setattr(torch_pickle, "MAX_OPCODES", 1000)
    with pytest.raises(NotPlain, match="more than 1000 opcodes"):
        parse_pickle(b"\x80\x02" + b"(" * 2000 + b".")


def test_a_dict_that_holds_itself_is_walked_once(tmp_path):
    data = b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."
    with pytest.raises(UserError, match="no dict of weights"), open_weights(torch_file(tmp_path / "a.pt", data)):
        pass


TENSOR = {"a": np.arange(8, dtype=np.float32)}
DATA = pickled(TENSOR, [])
HOSTILE = {  # what is changed in the pickle of eight numbers
    "another size of the storage": (number(8) + b"tQ", number(1 << 30) + b"tQ"),
    "an offset": (b"tQ" + number(0), b"tQ" + number(1)),
    "a negative offset": (b"tQ" + number(0), b"tQ" + number(-1)),
    "a larger shape": (b"(" + number(8) + b"t(", b"(" + number(9) + b"t("),
    "unfolded by a stride of 0": (number(8) + b"t(" + number(1), number(1 << 30) + b"t(" + number(0)),
    "a wide stride": (b"t(" + number(1) + b"t", b"t(" + number(2) + b"t"),
    "another file": (text("0") + text("cpu"), text("../../etc/passwd") + text("cpu")),
    "a negative size": (b"(" + number(8) + b"t(", b"(" + number(-8) + b"t("),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_tensor_lies_in_its_storage(change, tmp_path):
    assert DATA.count(change[0]) == 1
    with pytest.raises(UserError, match="damaged|larger than its storage"):
        with open_weights(torch_file(tmp_path / "a.pt", DATA.replace(*change), TENSOR.values())) as weights:
            weights.tensors["a"].read()


def test_many_tensors_of_one_storage_do_not_unfold(tmp_path):
    one = described(np.zeros(50_000, np.float32), [])
    data = b"\x80\x02}(" + b"".join(text(str(n)) + one for n in range(9)) + b"u."
    with pytest.raises(UserError, match="the tensors of one dict 1800000"):
        with open_weights(torch_file(tmp_path / "a.pt", data, [np.zeros(50_000, np.float32)])):
            pass


@pytest.mark.parametrize("make, what", [
    (lambda file: saved(file, TENSOR, method=zipfile.ZIP_DEFLATED), "compressed"),
    (lambda file: saved(file, TENSOR, **{"constants.pkl": b""}), "program of torch.jit.*torch.jit.load"),
    (lambda file: saved(file, {"epoch": 3}), "no dict of weights"),
    (lambda file: torch_file(file, b"\x80\x02N."), "no dict of tensors"),
    (lambda file: saved(file, TENSOR, top="a/b"), "no data.pkl"),
    (lambda file: file.write_bytes(torch_zip.LEGACY + b"\x80"), "before 1.6.*weights_only=True"),
    (lambda file: file.write_bytes(b"\x80\x04N."), "neither a safetensors file nor a zip"),
    (lambda file: file.write_bytes(torch_zip.ZIP), "damaged"),
    (lambda file: file.write_bytes(EPOCH.read_bytes()[:-1000]), "damaged"),
    (lambda file: file.write_bytes(EPOCH.read_bytes()[1000:]), "neither|damaged"),
], ids=range(10))  # fmt: skip
def test_other_zips_and_older_files_are_one_line(make, what, tmp_path):
    file = tmp_path / "a.pt"
    make(file)
    with pytest.raises(UserError, match=what), open_weights(file) as weights:
        [stored.read() for stored in weights.tensors.values()]


def test_a_zip_of_many_members_is_not_held(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.comment = b"x"
        for n in range(1000):
            archive.writestr(f"archive/{n:0>5000}", b"")
    with pytest.raises(UserError, match="its directory has more than"), open_weights(tmp_path / "a.pt"):
        pass


with zipfile.ZipFile(EPOCH) as archive:
    [PICKLE] = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]


@examples(40)
@given(st.lists(st.tuples(st.integers(0, len(PICKLE) - 1), st.binary(min_size=1, max_size=3)), min_size=1, max_size=4))
def test_any_change_of_a_pickle_is_plain_or_refused(changes):
    data = bytearray(PICKLE)
    for place, new in changes:
        data[place : place + len(new)] = new
    with contextlib.suppress(NotPlain):
        found = parse_pickle(bytes(data))
        assert type(found) in (
            dict,
            list,
            tuple,
            str,
            int,
            float,
            bool,
            type(None),
            Tensor,
            torch_pickle.Global,
            torch_pickle.Storage,
        )


ARCHIVE = EPOCH.read_bytes()
ENDS = [*range(200), *range(len(ARCHIVE) - 3000, len(ARCHIVE))]


@examples(24)
@given(st.lists(st.tuples(st.sampled_from(ENDS), st.binary(min_size=1, max_size=4)), min_size=1, max_size=3))
def test_any_change_of_a_zip_is_read_or_one_line(tmp_path_factory, changes):
    data = bytearray(ARCHIVE)
    for place, new in changes:
        data[place : place + len(new)] = new
    file = tmp_path_factory.mktemp("zip") / "a.pt"
    file.write_bytes(data[: len(ARCHIVE)])
    with contextlib.suppress(UserError), open_weights(file) as weights:
        [stored.read() for stored in weights.tensors.values()]
    file.unlink()


# Whole imports of spoilt copies of a folder.


def change_tensors(change):
    def spoil(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return spoil


def change_json(name, **changes):
    def spoil(folder):
        content = json.loads((folder / name).read_text())
        for key, value in changes.items():
            section, _, last = key.rpartition("__")
            (content[section] if section else content)[last] = value
        (folder / name).write_text(json.dumps(content))

    return spoil


def cut(folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(200_000)


def large_header(folder):
    file = folder / "model.safetensors"
    with file.open("wb") as handle:
        handle.write((100_000_000).to_bytes(8, "little"))
        handle.truncate(100_000_100)


def link_out(folder):
    os.rename(folder / "model.safetensors", folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to("../elsewhere.safetensors")


def index(weight_map):
    def spoil(folder):
        shutil.move(folder / "model.safetensors", folder / "model-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return spoil


LOGIT, NORM = "logit_scale", "text_model.final_layer_norm.bias"
LAYER = "vision_model.encoder.layers.1.mlp.fc1.weight"
SPOILT = {
    "cut": (cut, "damaged"),
    "empty": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "damaged"),
    "a header of 100 MB": (large_header, f"header has 100000000 bytes; at most {MAX_HEADER_BYTES}"),
    "a tensor is missing": (change_tensors(lambda x: x.pop(NORM)), f"lacks {NORM}"),
    "the scale is missing": (change_tensors(lambda x: x.pop(LOGIT)), "no number 'logit_scale'"),
    "a layer is missing": (change_tensors(lambda x: [x.pop(n) for n in list(x) if ".layers.1.layer_norm1" in n]), "depth"),
    "a tensor more": (change_tensors(lambda x: x.update(extra=np.ones(3))), "holds extra, which the family does not know"),
    "another shape": (change_tensors(lambda x: x.update({NORM: np.ones(7, np.float32)})), r"\[7\] cannot become text/post_norm/bias \[30\]"),
    "another layer": (change_tensors(lambda x: x.update({LAYER: x[LAYER].T})), "cannot become image/transformer/blocks/mlp_in/kernel"),
    "NaN": (change_tensors(lambda x: x[LAYER].__setitem__((3, 3), np.nan)), "NaN or infinity"),
    "an infinite scale": (change_tensors(lambda x: x.update({LOGIT: np.array(np.inf, np.float32)})), "logit_scale=inf is out of range"),
    "whole numbers": (change_tensors(lambda x: x.update({NORM: np.ones(30, np.int64)})), "of the type int64"),
    "another config": (change_json("config.json", vision_config__hidden_size=60), "width=60, but the weights have 45"),
    "another activation": (change_json("config.json", text_config__hidden_act="relu"), "relu.*which a tower can have"),
    "an epsilon of text": (change_json("config.json", text_config__layer_norm_eps="1"), "is not of the type float"),
    "another EOS": (change_json("config.json", text_config__eos_token_id=98), "ends texts with the id 99, but the model pools them at 98"),
    "heads that do not divide": (change_json("config.json", text_config__num_attention_heads=7), "does not split into heads=7"),
    "a section under its older key": (change_json("config.json", text_config_dict={}), "text_config_dict says width=512, but the weights have 30"),
    "a section that is none": (change_json("config.json", text_config=[]), "is no section but list"),
    "another model type": (change_json("config.json", model_type="blip"), "model_type='blip', of which no family"),
    "two families": (
        lambda folder: (folder / "open_clip_config.json").write_text("{}"),
        "can be read as open_clip or hf_clip .*choose one with --family",
    ),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
    "another scale of pixels": (change_json("processor_config.json", image_processor__rescale_factor=1.0), "is not 1/255"),
    "a deviation of 0": (change_json("processor_config.json", image_processor__image_std=[0, 0.5, 0.5]), "no deviation 0"),
    "a list for a side": (change_json("processor_config.json", image_processor__crop_size=[42, 42]), "is not one side in pixels"),
    "the longer side": (change_json("processor_config.json", image_processor__size={"longest_edge": 42}), "is neither height and width nor"),
    "a crop beyond the picture": (change_json("processor_config.json", image_processor__crop_size=84), "is larger than size"),
    "a crop of a squashed picture": (change_json("processor_config.json", image_processor__size={"height": 48, "width": 48}), "of a squashed picture"),
    "quantized": (change_json("config.json", quantization_config={"quant_method": "bitsandbytes"}), "quantized: dequantize the model"),
    "code of its own": (change_json("config.json", auto_map={"AutoModel": "modeling.Mine"}), "code of its own"),
    "an adapter": (lambda folder: (folder / "adapter_config.json").write_text("{}"), r"merge_and_unload\(\)"),
    "a cache of the Hub": (lambda folder: (folder / "snapshots").mkdir(), "run cp -rL .* copy"),
    "a pointer of git-lfs": (lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com"), "run git lfs pull"),
    "another interpolation": (change_json("processor_config.json", image_processor__resample=1), "resample=1 is neither"),
    "fewer embeddings than ids": (change_tensors(lambda x: x.update({n: x[n][:90] for n in x if "token_embedding" in n})), "vocab_size=100, but the weights have 90"),
    "a link out": (link_out, "link that leads out of its folder"),
    "an index that leads out": (index({"a": "../elsewhere.safetensors"}), "does not name files of weights in its folder"),
    "an index of another file": (index({"a": "model-2.safetensors"}), "which is not there"),
    "an index of other names": (index({"a": "model-1.safetensors"}), "does not fit its files"),
    "an empty folder": (lambda folder: [file.unlink() for file in folder.iterdir()], "holds no weights"),
    "several files": (lambda folder: [(folder / n).touch() for n in ("a.pt", "b.pt")] and (folder / "model.safetensors").unlink(), "several files"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return shutil.copytree(FOLDERS / "hf_clip_gelu", tmp_path / "in/clip")


DEAR = {
    "NaN",
    "heads that do not divide",
    "another shape",
    "another layer",
    "whole numbers",
    "a tensor more",
    "fewer embeddings than ids",
}  # a cheaper row does the same


@pytest.mark.parametrize(
    "spoil, what",
    [pytest.param(*row, id=name, marks=[pytest.mark.slow] * (name in DEAR)) for name, row in SPOILT.items()],
)
def test_a_spoilt_folder_is_one_line_and_leaves_nothing(spoil, what, folder, tmp_path, capsys):
    spoil(folder)
    assert main(["import", str(folder), f"--output={tmp_path}/run"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    with pytest.raises(UserError, match=what):
        raise UserError(said)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("key, value, what", [
    ("vision_config__vision_use_head", False, "vision_use_head=False asks for what filip_jax does not compute"),
    ("text_config__projection_size", 30, "projection_size=30, but the weights have 45"),
])  # fmt: skip
def test_a_siglip_without_its_head_or_of_another_width_is_refused(key, value, what, tmp_path):
    folder = shutil.copytree(FOLDERS / "hf_siglip_two", tmp_path / "siglip")
    change_json("config.json", **{key: value})(folder)
    with pytest.raises(UserError, match=what):
        import_weights(str(folder), str(tmp_path / "run"))


@pytest.mark.parametrize("name, width", [("ViT-L-14", 1280), ("ViT-H-14", 1664), ("", 1408)])
def test_a_name_of_another_width_is_refused(name, width):
    """Heads of the wrong number would divide such a width, too, and compute something else."""
    image = dict(patch_size=14, image_size=224, width=width)
    with pytest.raises(UserError, match="the weights have the width of a ViT-"):
        of_name(name, f"--model={name}", image, dict(width=1024))


def test_options_of_open_clips_tokenizers_are_refused():
    content = {"text_cfg": {"tokenizer_kwargs": {"clean": "canonicalize"}}}
    with pytest.raises(UserError, match="tokenizer_kwargs=.*asks for what filip_jax does not compute"):
        of_config("model.json", content, dict(width=768), {})


@pytest.mark.slow
def test_a_family_against_the_config_is_said(folder):
    change_json("config.json", model_type="chinese_clip")(folder)
    lines = []
    read_weights(str(folder), lambda *new: lines.extend(new), family="hf_clip")
    assert any("--family=hf_clip, though config.json says model_type='chinese_clip'" in line for line in lines)


@pytest.mark.parametrize("words, what", [
    (["openai/clip-vit-base-patch32"], "hf download openai/clip-vit-base-patch32 --local-dir=clip-vit-base-patch32"),
    (["https://huggingface.co/openai/clip-vit-base-patch32"], "run hf download openai/clip-vit-base-patch32 "),
    (["nothing.safetensors"], "no such file or folder"),
    (["ViT-B-32"], "give a model that lies on this machine"),
    (["FOLDER", "--family=clip"], "--family=clip is not one of open_clip, hf_clip"),
    (["FOLDER", "--family=hf_siglip"], "is not 0 . a square grid of positions"),
    (["FOLDER", "--family=open_clip"], "no 'visual.conv1.weight'"),
    (["FOLDER/model.safetensors"], "comes without config.json"),
    (["OPENAI", "--model=ViT-B-32"], "patch_size=32, but the weights have 7"),
    (["OPENAI", "--model=RN50"], "is no ViT of open_clip"),
    (["OPENAI"], "does not tell its activation"),
    (["OPENAI", "--model=ViT-B-7-quickgelu"], "not CLIP's 49408: give its tokenizer.json"),
    (["FOLDER", "--model=ViT-B-32"], "is for weights of open_clip"),
    (["VIT", "--tokenizer=nothing.json"], "holds images alone"),
    (["FOLDER", "--tokenizer=nothing.json"], "--tokenizer=nothing.json: no such file"),
    (["FOLDER", "--image_size=30"], "--image_size=30 is no multiple of 7"),
    (["FOLDER", "--output=gs://bucket/run"], "give a folder of this machine"),
    (["FOLDER", "--output=FOLDER"], "is there already"),
])  # fmt: skip
def test_mistakes_of_the_command_are_one_line(words, what, folder, tmp_path, capsys):
    places = {
        "FOLDER": str(folder),
        "OPENAI": str(FOLDERS / "open_clip_openai_wide"),
        "VIT": str(FOLDERS / "hf_vit_small"),
    }
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    output = [] if any(word.startswith("--output") for word in words) else [f"--output={tmp_path}/run"]
    assert main(["import", *words, *output]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    with pytest.raises(UserError, match=what):
        raise UserError(said)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.slow
def test_an_import_that_cannot_be_written_leaves_nothing(folder, tmp_path, monkeypatch, capsys):
    def fail(self, *arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("filip_jax.weights.output.CheckpointWriter.save", fail)
    assert main(["import", str(folder), f"--output={tmp_path}/deep/run"]) == 2
    assert not list((tmp_path / "deep").iterdir()) and "No space" in capsys.readouterr().err


def test_safetensors_types_and_io(tmp_path):
    save_file({"a": np.ones(2, jnp.bfloat16)}, tmp_path / "a.safetensors")
    with open_weights(tmp_path / "a.safetensors") as weights:
        assert weights.tensors["a"].dtype == "bfloat16" and weights.tensors["a"].read().dtype == jnp.bfloat16
    with pytest.raises(OSError, match="no regular file"), open_weights(tmp_path):
        pass
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(OSError, match="no regular file"), open_weights(tmp_path / "pipe.safetensors"):
        pass
