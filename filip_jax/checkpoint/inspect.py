"""What a checkpoint holds, for people: `filip inspect`. It needs no JAX, and so no accelerator."""

import json
import math
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from filip_jax.checkpoint.manifest import Manifest
from filip_jax.checkpoint.reader import Checkpoints, find_checkpoint
from filip_jax.errors import one_line
from filip_jax.paths import Metadata, read_metadata

FILES = 24  # that are listed one by one, the largest
STEPS = 12  # of other checkpoints
WIDTH = 110  # of a config's line
NUMBERS = re.compile(r"-?[\d,.]+|[-=]+")  # cells that stand on the right

Tree = Mapping[str, Mapping[str, Any]]  # path -> {shape, dtype}
Rows = list[tuple[str, ...]]


def inspect(path: str, step: int | None = None, verify: bool = False) -> str:
    """A report on the checkpoint that a path names, see `find_checkpoint`.

    Args:
        verify: whether every file is read and its hash compared.

    Raises:
        UserError: there is no such checkpoint, or a file that `verify` found damaged.
        OSError: the disk or the bucket fails.
    """
    checkpoints, step = find_checkpoint(path, step)
    manifest, started = checkpoints.manifest(step), time.monotonic()
    if verify:
        checkpoints.check(step)
    lines = _summary(checkpoints, manifest)
    metadata = read_metadata(manifest["meta"].get("parameters", {}))
    lines += ["", *_parts(manifest["tree"]), "", *_tree(manifest["tree"], metadata), "", *_files(manifest)]
    lines += ["", "config", *_yaml(manifest["config"])]
    if verify:
        files = _count(len(manifest["files"]), "file")
        lines += ["", f"verified: {files} as written, by size and SHA-256 ({time.monotonic() - started:.1f} s)"]
    return "\n".join(map(one_line, lines))  # whatever names a manifest holds


def _summary(checkpoints: Checkpoints, manifest: Manifest) -> list[str]:
    step, meta, config = manifest["step"], dict(manifest["meta"]), manifest["config"]
    meta.pop("parameters", None)
    last = f" of {config['total_steps']}" if "total_steps" in config else ""
    others = [str(other) for other in checkpoints.steps() if other != step]
    some = [*others[: STEPS // 2], "…", *others[-STEPS // 2 :]] if len(others) > STEPS else others
    rows = [
        ("checkpoint", checkpoints.folder(step)),
        ("step", f"{step}{last}"),
        ("other steps", ", ".join(some) or "none"),
    ]
    if "samples_seen" in meta:
        seen = meta.pop("samples_seen")
        rows += [("samples seen", _text(seen)), ("data position", f"the next sample is number {_text(seen)}, from 0")]
    rows += [("format", str(manifest["format"]))]
    rows += [(name, _text(value)) for name, value in meta.items()]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items()) or "not stated"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else _json(value)


def _parts(tree: Tree) -> list[str]:
    """Numbers and MiB of each part of the state, of the parameters also by their owners."""
    numbers, sizes = Counter[str](), Counter[str]()
    for path, leaf in tree.items():
        part, *names = path.split("/")
        for name in {part, f"params/{names[0]}" if part == "params" else part, "all"}:
            numbers[name] += math.prod(leaf["shape"])
            sizes[name] += _bytes(leaf)
    order = sorted(numbers, key=lambda name: (name == "all", not name.startswith("params"), name))
    return _table([("part", "numbers", "MiB"), *((n, f"{numbers[n]:,}", f"{sizes[n] / 2**20:,.2f}") for n in order)])


def _bytes(leaf: Mapping[str, Any]) -> int:
    bits = re.search(r"\d+", leaf["dtype"])  # bool has none
    return math.prod(leaf["shape"]) * (max(1, int(bits[0]) // 8) if bits else 1)


def _tree(tree: Tree, metadata: Mapping[str, Metadata]) -> list[str]:
    """Every leaf; a copy of the parameters, or of some of them, as in the optimiser's moments, is one line."""
    groups: dict[str, list[str]] = {}
    for path in sorted(tree, key=lambda path: (not path.startswith("params/"), path)):
        prefix = _copy_of(path, tree)
        groups.setdefault(f"{prefix}/…" if prefix else path, []).append(path)
    parameters = sum(path.startswith("params/") for path in tree)
    rows: Rows = [("path", "shape", "type", "bytes")]
    for name, members in groups.items():
        stacked = metadata.get(name.removeprefix("params/"), Metadata()).stacked
        shape = _shape(tree[name]["shape"], stacked) if name in tree else f"as {len(members)} of {parameters} in params"
        types = " ".join(sorted({tree[path]["dtype"] for path in members}))
        rows += [(name, shape, types, f"{sum(_bytes(tree[path]) for path in members):,}")]
    return _table(rows)


def _copy_of(path: str, tree: Tree) -> str:
    """What stands before a parameter's path, of a leaf outside of params with that path's end and its shape; or ""."""
    names = path.split("/")
    for start in range(1, len(names)):
        parameter = "/".join(("params", *names[start:]))
        if parameter in tree and names[0] != "params" and tree[parameter]["shape"] == tree[path]["shape"]:
            return "/".join(names[:start])
    return ""


def _shape(shape: Sequence[int], stacked: bool = False) -> str:
    if stacked and shape:
        return f"{_count(shape[0], 'layer')} of {_shape(shape[1:])}"
    return " x ".join(map(str, shape)) or "scalar"


def _files(manifest: Manifest) -> list[str]:
    sizes = {name: each["size"] for name, each in manifest["files"].items()}
    largest = sorted(sizes, key=lambda name: (-sizes[name], name))
    rows: Rows = [("file", "bytes"), *((name, f"{sizes[name]:,}") for name in sorted(largest[:FILES]))]
    if rest := largest[FILES:]:
        rows += [(f"… and {_count(len(rest), 'smaller file')}", f"{sum(sizes[name] for name in rest):,}")]
    return _table([*rows, ("all", f"{sum(sizes.values()):,}")])


def _yaml(section: Mapping[str, Any], indent: str = "  ") -> list[str]:
    """A section that has no others and fits on a line stands on one."""
    lines = []
    for name, value in section.items():
        if not isinstance(value, Mapping):
            lines += [f"{indent}{name}: {_json(value)}"]
            continue
        line = f"{indent}{name}: {{{', '.join(f'{key}: {_json(each)}' for key, each in value.items())}}}"
        deep = len(line) > WIDTH or any(isinstance(each, Mapping) for each in value.values())
        lines += [f"{indent}{name}:", *_yaml(value, indent + "  ")] if deep else [line]
    return lines


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _table(rows: Rows) -> list[str]:
    """Columns with a rule below their names, numbers on the right."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    header, *body = rows
    lines = [tuple("-" * width for width in widths), *body]
    right = [all(NUMBERS.fullmatch(row[n]) for row in lines) for n in range(len(widths))]

    def line(row):
        cells = (f"{c:>{w}}" if to_right else f"{c:<{w}}" for c, w, to_right in zip(row, widths, right))
        return "  ".join(cells).rstrip()

    return [line(row) for row in (header, *lines)]
