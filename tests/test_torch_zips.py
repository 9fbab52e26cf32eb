"""Files of torch.save: what torch writes is read as data, no code of a pickle runs, what is spoilt or without bounds is one line."""

import contextlib
import os
import pickle
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from torch_writer import EPOCH, described, number, pickled, saved, text, torch_file

from filip_jax.cli import main
from filip_jax.errors import UserError
from filip_jax.weights import torch_pickle, torch_zip
from filip_jax.weights.tensors import open_weights
from filip_jax.weights.torch_pickle import NotPlain, Tensor, parse_pickle

TENSOR = {"a": np.arange(8, dtype=np.float32)}
DATA = pickled(TENSOR, [])


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


def test_a_file_of_open_clips_training_is_read():
    with open_weights(EPOCH) as weights:
        assert "visual.conv1.weight" in weights.tensors and {"epoch", "optimizer", "scaler"} <= weights.beside.keys()
        assert all(stored.read().shape == stored.shape for stored in weights.tensors.values())


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
    first = text("model") + b"}" + text("a") + described(np.ones((900, 2, 3), np.float32), storages)
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
    (tmp_path / "folder").mkdir()
    for place, file in (("archive.pt", "archive.pt"), ("folder", "folder/pytorch_model.bin")):
        torch_file(tmp_path / file, data)
        if protocol:
            with pytest.raises(UserError), open_weights(tmp_path / file):
                pass
        else:  # the same by the command
            assert main(["import", str(tmp_path / place), f"--output={tmp_path}/run"]) == 2
            assert capsys.readouterr().err.count("\n") == 1
    assert not sang.exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize("data, what", [
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


def test_a_large_pickle_is_not_read():
    with pytest.raises(NotPlain, match="at most 16777216 are read"):
        parse_pickle(b"\x80\x02" + b"]" * 20_000_000)


def test_the_work_of_a_pickle_is_bounded(monkeypatch):
    monkeypatch.setattr(torch_pickle, "MAX_OPCODES", 1000)
    with pytest.raises(NotPlain, match="more than 1000 opcodes"):
        parse_pickle(b"\x80\x02" + b"(" * 2000 + b".")


def test_a_dict_that_holds_itself_is_walked_once(tmp_path):
    data = b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."
    with pytest.raises(UserError, match="no dict of weights"), open_weights(torch_file(tmp_path / "a.pt", data)):
        pass


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
