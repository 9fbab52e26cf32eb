"""Files of weights: names, wrappers, prefixes and indices are met, counts and memory are bounded, whatever a stranger wrote."""

import contextlib
import json
import os
import re
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import save_file
from torch_writer import saved, text, torch_file

from filip_jax.errors import UserError
from filip_jax.models.tower import CLIP_MEAN, HALF
from filip_jax.weights.plan import ModelSource
from filip_jax.weights.preprocessing import of_transformers
from filip_jax.weights.tensors import MAX_NAMES, open_weights, weights_file

WEIGHTS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b.a.bias": np.arange(2, dtype=np.float32)}


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


@pytest.mark.parametrize("prefixes, beside", [
    (["net."], []),
    (["clip_model.backbone."], []),
    (["model.net."], []),
    (["ema_model."], ["initted", "step", "online_model.a.weight"]),
    (["module.ema_model.model."], ["module.step", "module.online_model.model.a.weight"]),
])  # fmt: skip
def test_prefixes_of_all_names_are_taken_away(prefixes, beside, tmp_path):
    """ema_pytorch keeps the model, its average and counts side by side: the average is taken."""
    content = {f"{prefix}{name}": array for prefix in prefixes for name, array in WEIGHTS.items()}
    content |= dict.fromkeys(beside, np.ones((), np.int64))
    with open_weights(saved(tmp_path / "a.pt", content)) as weights:
        assert weights.tensors.keys() == WEIGHTS.keys() and len(weights.beside) == len(beside)
        assert (weights.tensors["a.weight"].read() == WEIGHTS["a.weight"]).all()


@pytest.mark.parametrize("beside", [
    {"rng_state": np.zeros(9, np.int64)},
    {"model": WEIGHTS, "loss": np.ones((), np.float32)},
])  # fmt: skip
def test_tensors_beside_a_state_dict_are_not_taken_for_it(beside, tmp_path):
    name = "model" if "model" in beside else "net"
    with open_weights(saved(tmp_path / "a.pt", beside | {name: WEIGHTS})) as weights:
        assert weights.tensors.keys() == WEIGHTS.keys() and name in weights.notes[0]


@pytest.mark.parametrize(
    "name", ["ema", "model_ema", "state_dict_ema", "ema_model", "params_ema", "net_ema", "ema_net"]
)
def test_an_average_comes_before_the_model(name, tmp_path):
    spoilt = {key: 2 * array for key, array in WEIGHTS.items()}
    content = {"model": spoilt, "params": spoilt, "state_dict": spoilt, "schema": spoilt}
    with open_weights(saved(tmp_path / "a.pt", content | {name: WEIGHTS})) as weights:
        assert (weights.tensors["a.weight"].read() == WEIGHTS["a.weight"]).all()
    with pytest.raises(UserError, match="holds the averages .*: save one"):
        with open_weights(saved(tmp_path / "a.pt", content | {name: WEIGHTS, "other_ema": spoilt})):
            pass


def test_variants_of_a_model_are_found(tmp_path):
    """As `save_pretrained(variant="fp16")` of transformers names them; what training leaves beside them is another matter."""
    names = ["model.safetensors"]
    for part, (name, array) in enumerate(WEIGHTS.items(), 1):
        save_file({name: array}, tmp_path / f"model.fp16-0000{part}-of-00002.safetensors")
    index = tmp_path / "model.safetensors.index.fp16.json"
    files = {name: f"model.fp16-0000{part}-of-00002.safetensors" for part, name in enumerate(WEIGHTS, 1)}
    index.write_text(json.dumps({"weight_map": files}))
    assert weights_file(tmp_path, names) == index
    with open_weights(index) as weights:
        assert weights.tensors.keys() == WEIGHTS.keys()
    save_file(WEIGHTS, tmp_path / "model.bf16.safetensors")
    with pytest.raises(UserError, match="import a copy of the folder with one of them alone"):
        weights_file(tmp_path, names)
    with pytest.raises(UserError, match="name one of them instead"):
        weights_file(tmp_path, ())


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


def test_a_number_of_a_hundred_axes_is_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(UserError, match="has 100 dimensions"), open_weights(tmp_path / "a.safetensors"):
        pass


SQUARE, SHORTER = {"height": 48, "width": 48}, {"shortest_edge": 256}


@pytest.mark.parametrize("kind, options, expected", [
    ("ViT", dict(size=48, crop_size=42), ("squash", 1.0, 48)),
    ("ViT", dict(size=SHORTER, crop_size=42), ("shortest", 1.0, 256)),
    ("ViT", dict(size=48, crop_size=42, do_center_crop=True), "crop_size=42 of a squashed picture"),
    ("Siglip", dict(size=48), ("squash", 1.0, 48)),
    ("CLIP", dict(size=48, crop_size=42), ("shortest", 0.875, 42)),
    ("CLIP", dict(size=48, crop_size=42, do_center_crop=False), ("shortest", 1.0, 48)),
    ("CLIP", dict(size=SHORTER), ("shortest", 0.875, 224)),
    ("CLIP", dict(size=SQUARE, crop_size=42), "crop_size=42 of a squashed picture"),
    ("Bit", dict(size=SHORTER), ("shortest", 0.875, 224)),
    ("DeiT", dict(size=48), "lacks image_mean, and what a 'DeiTImageProcessor' takes then is unknown"),
])  # fmt: skip
@pytest.mark.parametrize("rule", ["squash", "shortest"])
def test_where_a_file_is_silent_its_class_decides(rule, kind, options, expected):
    """The family, whose rule is another one, decides where no class is named. As transformers 5.24 does."""
    family = dict(mean=(0.25,) * 3, std=HALF, resize=rule, interpolation="nearest")

    def chosen(**more):
        source = ModelSource(ROOT, None, {"preprocessor_config.json": options | more}, {})
        return of_transformers(source, family)

    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            chosen(image_processor_type=f"{kind}ImageProcessor")
        return
    for more in (
        dict(image_processor_type=f"{kind}ImageProcessorFast"),
        dict(feature_extractor_type=f"{kind}FeatureExtractor"),
    ):
        section, _, view = chosen(**more)
        assert (section["resize"], section["crop"], view[0]) == expected
        assert section["interpolation"] == ("bilinear" if kind == "ViT" else "bicubic")
        assert section["mean"] == list(CLIP_MEAN if kind in ("CLIP", "Bit") else HALF)
    if expected[2] == 48 and "crop_size" not in options and rule == "squash":
        assert chosen()[0] | dict(crop_start="floor") == family | dict(
            crop=1.0, crop_start="floor", mean=[0.25] * 3, std=list(HALF)
        )


def test_safetensors_types_and_io(tmp_path):
    save_file({"a": np.ones(2, jnp.bfloat16)}, tmp_path / "a.safetensors")
    with open_weights(tmp_path / "a.safetensors") as weights:
        assert weights.tensors["a"].dtype == "bfloat16" and weights.tensors["a"].read().dtype == jnp.bfloat16
    with pytest.raises(OSError, match="no regular file"), open_weights(tmp_path):
        pass
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(OSError, match="no regular file"), open_weights(tmp_path / "pipe.safetensors"):
        pass


def header(tensors):
    data = f"{{{tensors}}}".encode()
    return struct.pack("<Q", len(data)) + data


def zip_directory(count):
    """A zip of nothing but its directory, which names so many empty members; and its ends, of both forms."""
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 8) + bytes(16)
    directory = b"".join(entry + f"{n:08x}".encode() for n in range(count))
    size = len(directory)
    end = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, size, 4)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, 4 + size, 1)
    return (
        b"PK\x03\x04"
        + directory
        + end
        + locator
        + b"PK\x05\x06"
        + struct.pack("<HHHHIIH", 0, 0, *[0xFFFF] * 2, *[0xFFFFFFFF] * 2, 0)
    )


EMPTY = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'


def names_of_nothing(count):
    return (text(f"{n:x}") + b"N" for n in range(count))


LARGE = {  # files at and beyond the limits: their names, how they are written, and what is said
    "zip": ("a.pt", lambda file: file.write_bytes(zip_directory(1_000_000)), "its directory has more than"),
    "directory": ("a.pt", lambda file: file.write_bytes(zip_directory(77_000)), "has no data.pkl"),
    "header": (
        "a.safetensors",
        lambda file: file.write_bytes(header(",".join(f'"{n:x}":{EMPTY}' for n in range(250_000)))),
        f"holds 250000 names; at most {MAX_NAMES} are read",
    ),
    "pickle": ("a.pt", lambda file: torch_file(file, b"\x80\x02](" + b"]" * 500_000 + b"e."), "no dict of tensors"),
    "names": (
        "a.pt",
        lambda file: torch_file(file, b"\x80\x02}(" + b"".join(names_of_nothing(90_000)) + b"u."),
        "no dict of weights",
    ),
    "index": (
        "model.safetensors.index.json",
        lambda file: file.write_text('{"weight_map":{' + ",".join(f'"{n:x}":""' for n in range(700_000)) + "}}"),
        "does not name files of weights",
    ),
    "longer index": (
        "model.safetensors.index.json",
        lambda file: file.write_text('{"weight_map":{"a":"' + "a" * (1 << 23) + '"}}'),
        "at most 8388608",
    ),
}  # fmt: skip
PEAKS = """
import sys
from filip_jax.errors import UserError
from filip_jax.weights.tensors import open_weights
from pathlib import Path

def status(name):
    [line] = [line for line in open("/proc/self/status") if line.startswith(name)]
    return int(line.split()[1]) >> 10

for place in sys.argv[1:]:
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = status("VmRSS")
    try:
        with open_weights(Path(place)):
            print("read")
    except UserError as error:
        print(status("VmHWM") - before, str(error)[:300].replace("\\n", "LINE"))
"""
MAX_MEBIBYTES = 400


@pytest.mark.slow
def test_large_files_take_bounded_memory_and_one_line(tmp_path):
    places = []
    for name, (file, write, _) in LARGE.items():
        (tmp_path / name).mkdir()
        places.append(tmp_path / name / file)
        write(places[-1])
    command = [sys.executable, "-c", PEAKS, *map(str, places)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    for line, (name, (_, _, what)) in zip(lines, LARGE.items(), strict=True):
        peak, _, said = line.partition(" ")
        assert re.search(what, said) and int(peak) < MAX_MEBIBYTES, (name, line)


@pytest.mark.parametrize("name, content", [("a.pt", {"state_dict": WEIGHTS, "epoch": 1}), ("a.safetensors", WEIGHTS)])
def test_more_names_than_any_model_has_are_refused(name, content, tmp_path, monkeypatch):
    (save_file if name.endswith("rs") else lambda content, file: saved(file, content))(content, tmp_path / name)
    for most, fits in ((3, True), (1, False)):
        monkeypatch.setattr("filip_jax.weights.tensors.MAX_NAMES", most)
        with contextlib.nullcontext() if fits else pytest.raises(UserError, match="names; at most 1 are read"):
            with open_weights(tmp_path / name) as weights:
                assert weights.tensors.keys() == WEIGHTS.keys()
