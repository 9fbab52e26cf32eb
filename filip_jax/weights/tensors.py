"""Weights in files of others: names, types and shapes at once, each tensor when it is asked for. The one door of safetensors."""

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from filip_jax.errors import UserError
from filip_jax.files import replacing
from filip_jax.small_files import open_own, read_json
from filip_jax.weights.stored import Stored
from filip_jax.weights.torch_pickle import MAX_TENSOR_DIMENSIONS
from filip_jax.weights.torch_zip import LEGACY, ZIP, open_torch_zip

MAX_HEADER_BYTES = 1 << 24  # of a safetensors file; that of a model of a billion parameters has a hundredth of it
MAX_INDEX_BYTES, MAX_SHARDS = 1 << 23, 1024
MAX_NAMES = 1 << 16  # in a file; a model of a billion parameters has a thousand tensors
MAX_PREFIXES = 8
# Of several files, also with the name of a variant: model.safetensors.index.fp16.json.
INDEX = re.compile(r".+\.(safetensors|bin)\.index(\.\w{1,32})?\.json")
PART = re.compile(r"-\d{5}-of-\d{5}\.")  # in the name of one of them
SHARD = re.compile(r"\w[\w.-]*\.(safetensors|bin)")  # a plain name: nothing that leads anywhere
ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
# Where training scripts put the state dict; an average of the parameters comes first, as filip_jax evaluates it, too.
HOLDERS = ("state_dict", "model", "module")
AVERAGED = re.compile(r"(^|_)ema(_|$)")  # in the names of averages: ema, state_dict_ema, ema_model, params_ema …
AVERAGE = "ema_model."  # of ema_pytorch: the average's, beside the model itself and counts
# Of data parallelism, torch.compile, FSDP and checkpointed activations, around the model or around parts of it.
WRAPPERS = re.compile(r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
COUNTERS = ("n_averaged",)  # of torch's averaged models, beside their wrapper
POINTER = b"version https://git-lfs"


@dataclass
class Weights:
    """The tensors of a model by their names in its files.

    Attributes:
        tensors: not read yet.
        files: that hold them.
        notes: how they were found.
        beside: what else the files hold, and what it is.
    """

    tensors: dict[str, Stored] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    beside: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def open_weights(file: Path) -> Iterator[Weights]:
    """Yield the weights of a safetensors file, of an index of several, or of a zip of torch.save.

    Raises:
        UserError: it is damaged, none of these, holds no weights, or leads out of its folder.
        OSError: it is no regular file, or cannot be read.
    """
    with contextlib.ExitStack() as stack:
        weights = Weights()
        if INDEX.fullmatch(file.name):
            weights.files = _shards(file)
            for shard in weights.files:
                opened = _opened(shard, stack)
                if twice := opened.tensors.keys() & weights.tensors.keys():
                    raise UserError(f"{file} is damaged: {min(twice)!r} stands in two of its files")
                weights.tensors |= opened.tensors
                weights.beside |= opened.beside
                _check_count(file, len(weights.tensors) + len(weights.beside))
            _check_index(file, weights.tensors)
        else:
            weights = _opened(file, stack)
        _strip(weights)
        if not weights.tensors:
            raise UserError(f"{file} holds no tensors")
        yield weights


def _opened(file: Path, stack: contextlib.ExitStack) -> Weights:
    """Return the weights of one file, which `stack` closes."""
    weights = Weights(files=[file])
    if _is_safetensors(file):
        weights.tensors |= stack.enter_context(_open_safetensors(file))
    else:
        _choose(file, stack.enter_context(open_torch_zip(file)), weights)
        _check_count(file, len(weights.tensors) + len(weights.beside))
    return weights


def _check_count(file: Path, count: int) -> None:
    if count > MAX_NAMES:
        raise UserError(f"{file} holds {count} names; at most {MAX_NAMES} are read: save one state dict alone")


def _is_safetensors(file: Path) -> bool:
    """Return whether a file is safetensors: by its beginning, and by its name where that tells nothing."""
    with open_own(file) as handle:  # or it leads out of its folder
        beginning = handle.read(len(POINTER))
    if beginning == POINTER:
        raise UserError(f"{file} is a pointer of git-lfs, no weights: run git lfs pull, or download the file itself")
    return beginning[8:9] == b"{" or (file.suffix == ".safetensors" and not beginning.startswith((ZIP, LEGACY)))


@contextlib.contextmanager
def _open_safetensors(file: Path) -> Iterator[dict[str, Stored]]:
    with open_own(file) as handle:
        size, header = os.fstat(handle.fileno()).st_size, int.from_bytes(handle.read(8), "little")
    if header > MAX_HEADER_BYTES:
        raise UserError(
            f"{file} is no safetensors file: its header has {header} bytes; at most {MAX_HEADER_BYTES} are read. "
            "Download it again"
        )
    if header + 8 > size:
        raise UserError(f"{file} is damaged: it has {size} bytes and ends within its header")
    try:
        with safetensors.safe_open(file, framework="np", backend="pread") as opened:
            names = opened.keys()
            _check_count(file, len(names))
            yield {name: _stored(file, opened, name) for name in names}
    except safetensors.SafetensorError as error:
        raise UserError(f"{file} is damaged: {error}") from error


def _stored(file: Path, opened: Any, name: str) -> Stored:
    piece = opened.get_slice(name)
    dtype = piece.get_dtype()
    if len(piece.get_shape()) > MAX_TENSOR_DIMENSIONS:
        raise UserError(f"{file} is damaged: {name!r:.100} has {len(piece.get_shape())} dimensions")
    return Stored(tuple(piece.get_shape()), DTYPES.get(dtype, dtype), lambda: opened.get_tensor(name))


def _weight_map(index: Path) -> Mapping[str, str]:
    weight_map = read_json(index, most=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) and SHARD.fullmatch(name) for name in weight_map.values()
    ):
        raise UserError(f"{index} is damaged: its weight_map does not name files of weights in its folder")
    return weight_map


def _shards(index: Path) -> list[Path]:
    names = sorted(set(_weight_map(index).values()))
    if len(names) > MAX_SHARDS:
        raise UserError(f"{index} names {len(names)} files; at most {MAX_SHARDS} are read")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise UserError(f"{index} names {missing[0]}, which is not there: download all files of the model")
    return [index.parent / name for name in names]


def _check_index(index: Path, tensors: Mapping[str, Stored]) -> None:
    if strange := sorted(tensors.keys() ^ _weight_map(index).keys()):
        where = "is in none of the files" if strange[0] not in tensors else "is not in the index"
        raise UserError(f"{index} does not fit its files: {strange[0]!r} {where}")


def _choose(file: Path, content: Any, weights: Weights) -> None:
    """Take the state dict of what torch.save was given; everything beside it is noted."""
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no dict of tensors but {_description(content)}: save one state dict alone")
    dicts = {id(value): value for value in content.values() if isinstance(value, dict)}  # one may stand there often
    tensors = {key: _tensors_of(value) for key, value in dicts.items()}
    holders = {name: held for name, value in content.items() if (held := tensors.get(id(value)))}
    averages = [name for name in holders if isinstance(name, str) and AVERAGED.search(name)]
    if len(averages) > 1:
        raise UserError(f"{file} holds the averages {_some(averages)}: save one state dict alone")
    own, name = _tensors_of(content), next((name for name in (*averages, *HOLDERS) if name in holders), None)
    if name is None and len(holders) == 1 and len(own) < max(map(len, holders.values())):
        name = next(iter(holders))
    if name is not None:
        chosen, beside = content[name], {key: value for key, value in content.items() if key != name}
        weights.notes.append(f"the state dict is {name!r} of {file.name}")
    elif own:  # numbers such as a loss may stand beside a state dict
        chosen, beside = content, {}
    else:
        keys = _some(holders or content)
        raise UserError(f"{file} holds no dict of weights that is known, but {keys}: save one state dict alone")
    weights.tensors |= _tensors_of(chosen)
    beside |= {key: value for key, value in chosen.items() if not isinstance(value, Stored)}
    weights.beside |= {str(key): _description(value) for key, value in beside.items()}


def _tensors_of(content: Mapping[Any, Any]) -> dict[str, Stored]:
    return {name: value for name, value in content.items() if isinstance(value, Stored) and isinstance(name, str)}


def _some(names: Collection[Any], most: int = 8) -> str:
    return ", ".join(map(repr, list(names)[:most])) + (" …" if len(names) > most else "")


def _description(value: Any) -> str:
    if isinstance(value, Stored):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, str):
        return f"{value[:60]!r}"
    return repr(value)[:60] if isinstance(value, int | float | None) else f"a {type(value).__name__}"


def _strip(weights: Weights) -> None:
    """Take away the names of wrappers, and then those of modules around the model, with which all names begin."""
    wrappers = sorted({each for name in weights.tensors for each in WRAPPERS.findall(name)})
    if wrappers:
        weights.notes.append(f"removed from names: {', '.join(wrappers)}")
        weights.beside |= {name: "a count of averaged steps" for name in weights.tensors if name in COUNTERS}
        kept = {name: stored for name, stored in weights.tensors.items() if name not in COUNTERS}
        weights.tensors = {WRAPPERS.sub("", name): stored for name, stored in kept.items()}
        if len(weights.tensors) < len(kept):
            raise UserError(f"{weights.files[0]} holds names that differ in {', '.join(wrappers)} alone")
    averaged = {name: stored for name, stored in weights.tensors.items() if name.startswith(AVERAGE)}
    if averaged:
        weights.beside |= dict.fromkeys(weights.tensors.keys() - averaged.keys(), f"not averaged, beside {AVERAGE}")
        weights.tensors = averaged
    for _ in range(MAX_PREFIXES):
        heads = {"".join(name.partition(".")[:2]) for name in weights.tensors}
        prefix = next(iter(heads), "")
        if len(heads) != 1 or not prefix.endswith("."):
            return
        weights.notes.append(f"removed from all names: the prefix {prefix!r}")
        weights.tensors = {name.removeprefix(prefix): stored for name, stored in weights.tensors.items()}


def weights_file(folder: Path, names: Sequence[str]) -> Path:
    """Return the file of a folder that holds its weights: the first of these names, or the only one that can.

    Raises:
        UserError: there is none, or there are several.
        OSError: the folder cannot be read.
    """
    for name in names:
        for file in (name, f"{name}.index.json") if name.endswith((".safetensors", ".bin")) else (name,):
            if (folder / file).is_file():
                return folder / file
    files = sorted(entry.name for entry in os.scandir(folder) if _may_hold_weights(entry.name) and entry.is_file())
    if len(files) == 1:
        return folder / files[0]
    if not files:
        known = ", ".join([*names, f"a file that ends in {', '.join(ENDINGS)}"])
        raise UserError(f"{folder} holds no weights: none of {known}; download them whole")
    advice = "import a copy of the folder with one of them alone" if names else "name one of them instead"
    raise UserError(f"{folder} holds several files of weights ({', '.join(files[:8])}): {advice}")


def _may_hold_weights(name: str) -> bool:
    """Return whether a file of this name may hold all weights of a model, or is their index."""
    return INDEX.fullmatch(name) is not None or (name.endswith(ENDINGS) and not PART.search(name))


def write_safetensors(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file, whole or not at all, with the mark of its layout that older transformers ask for."""
    with replacing(file) as beside:
        Path(beside).touch()
        mode = os.stat(beside).st_mode  # as the user's other files have it; the library's own are its maker's alone
        safetensors.numpy.save_file(dict(tensors), beside, metadata={"format": "pt"})
        os.chmod(beside, mode)
