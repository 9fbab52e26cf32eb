"""manifest.json of stored features: what they are of, and the parts that hold them. It is the only file that changes."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from filip_jax.errors import UserError
from filip_jax.files import write_atomically
from filip_jax.framing import Framing
from filip_jax.small_files import MAX_JSON_BYTES, MAX_VALUES, is_number, is_text, is_whole, read_json, values_of

FILE, PARTS, FORMAT = "manifest.json", "parts", 1
SIDES, DTYPES = ("image", "text"), ("float32", "float16", "int8")
SCALARS = ("key", "shard", "index", "width", "height", "orientation", "caption")  # columns that describe a row's record
MAX_DIMENSION, MAX_TOKENS = 1 << 16, (1 << 15) - 1  # a position has 16 bits
MAX_PART_ROWS, MAX_PARTS, MAX_BYTES = 1 << 16, 1 << 20, 1 << 44
MAX_ROWS = 1 << 30  # of all parts: whoever opens them has a mask of the rows
PART = re.compile(r"\d{4}_\d{6}\.arrow")  # the process that wrote it, and its number
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Part:
    """One file of rows.

    Attributes:
        name: of the file in the folder `parts`.
        rows: how many it has.
        bytes, sha256: of its content.
    """

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The description of stored features: their model, their source and their files.

    Attributes:
        side: "image" or "text".
        dimension: of a token.
        model: hashes (SHA-256) of the model: `config`, `checkpoint` and `tokenizer`; and `step` and `average`.
        pooling: "tokens" or "global".
        grid: rows and columns of an image's tokens; of texts None.
        image_size: pixels of the square view.
        framing: how a picture becomes the view, see `Framing`.
        text_length: tokens of the text tower's context.
        dtype: of the stored tokens: "float32", "float16" or "int8".
        reductions: in the order in which they were applied, each {name, options, losses}; `losses` are of R@k, by name.
        texts: by whose words tokens were chosen, where a reduction chooses by words.
        source: the config's section `source` that the records came from, and its `identity`.
        parts: the files of rows, in order; a row's number counts through all of them and never changes.
        removed: rows whose records the source has no more, as ranges (first, last).
        progress: of an embedding that goes on or was killed; empty after one that ended.
    """

    side: str
    dimension: int
    model: Mapping[str, Any] = field(default_factory=dict)
    pooling: str = "tokens"
    grid: tuple[int, int] | None = None
    image_size: int = 0
    framing: Mapping[str, Any] = field(default_factory=dict)
    text_length: int = 0
    dtype: str = "float16"
    reductions: tuple[Mapping[str, Any], ...] = ()
    texts: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    removed: tuple[tuple[int, int], ...] = ()
    progress: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The number of rows, removed ones included."""
        return sum(part.rows for part in self.parts)

    @property
    def max_tokens(self) -> int:
        """The most tokens that a row can have: every place of the grid and a pooled token; of a text, its context."""
        if self.side == "text":
            return max(self.text_length, 1)
        return math.prod(self.grid) + 1 if self.grid else 1

    @property
    def live(self) -> Bool[np.ndarray, " rows"]:
        """A mask of the rows whose records the source still has."""
        live = np.ones(self.rows, bool)
        for first, last in self.removed:
            live[first : last + 1] = False
        return live

    def with_removed(self, removed: Int[np.ndarray, " n"]) -> "Manifest":
        """Return the manifest in which these rows, and no others, are removed."""
        numbers = np.unique(removed)
        starts = np.flatnonzero(np.diff(numbers, prepend=-2) > 1)
        ranges = zip(numbers[starts].tolist(), numbers[[*(starts[1:] - 1), -1]].tolist() if len(numbers) else [])
        return replace(self, removed=tuple(ranges))

    def difference(self, other: "Manifest") -> str:
        """Return how rows of the other would differ in kind, in words with both values; "" if they would not."""
        for name in ("side", "dtype", "dimension", "pooling", "grid", "image_size", "framing", "text_length"):
            if (value := getattr(self, name)) != (other_value := getattr(other, name)):
                return f"{name} {value}, not {other_value}"
        reductions, others = ([(each["name"], each["options"]) for each in x.reductions] for x in (self, other))
        if reductions != others:
            return f"the reductions {reductions or 'none'}, not {others or 'none'}"
        if self.texts != other.texts:
            return "tokens that were chosen by the words of other texts"
        return difference_of_models(self.model, other.model)


def difference_of_models(model: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return how two models differ by what a manifest notes of them, in words with both values; "" if they do not."""
    for name in sorted(model.keys() | other.keys(), key=lambda name: (name != "config", name != "step", name)):
        if model.get(name) != other.get(name):
            return f"the model's {name} {_short(model.get(name))}, not {_short(other.get(name))}"
    return ""


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and SHA256.fullmatch(value) else str(value)


def read_manifest(folder: str | Path) -> Manifest:
    """Return the manifest of a folder of stored features.

    Raises:
        UserError: there is none, or it is not as `write_manifest` writes it.
        OSError: it cannot be read.
    """
    file = Path(folder) / FILE
    if not os.path.lexists(file):
        what = "holds no features" if os.path.isdir(folder) else "is no folder"
        raise UserError(f"{folder} {what}: {file} is missing; filip embed writes it")
    content = read_json(file)
    if "format" in content and content["format"] != FORMAT:
        raise UserError(
            f"{file} is of format {content['format']!r:.20}; this filip_jax reads format {FORMAT}: embed the records again"
        )
    try:
        return _typed(content)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is damaged: {error}; embed the records again, into another folder") from error


def write_manifest(folder: str | Path, manifest: Manifest) -> None:
    """Write the manifest, whole or not at all.

    Raises:
        UserError: it is larger than `read_manifest` reads, or names more rows.
        OSError: the disk refuses.
    """
    data = (json.dumps({"format": FORMAT} | asdict(manifest), indent=1) + "\n").encode()
    if len(data) > MAX_JSON_BYTES or values_of(data) > MAX_VALUES or manifest.rows > MAX_ROWS:
        raise UserError(
            f"{Path(folder) / FILE} would be of {len(data)} bytes and {manifest.rows} rows, more than is read: name another "
            "folder, or give more --part_rows"
        )
    write_atomically(Path(folder) / FILE, data)


def _typed(content: Mapping[str, Any]) -> Manifest:
    """Return the manifest that JSON holds. Raises a ValueError, KeyError or TypeError for any other."""
    names = {field.name for field in fields(Manifest)} | {"format"}
    if content.keys() != names:
        raise ValueError(f"it lacks or has too much of: {', '.join(sorted(content.keys() ^ names))[:200]}")
    wanted = {"side": SIDES, "dtype": DTYPES, "pooling": ("tokens", "global")}
    sizes = {"dimension": MAX_DIMENSION, "image_size": 1 << 16, "text_length": MAX_TOKENS}
    grid = content["grid"]
    checks = {
        **{name: isinstance(content[name], str) and content[name] in among for name, among in wanted.items()},
        **{name: is_whole(content[name], most) for name, most in sizes.items()},
        **{name: isinstance(content[name], dict) for name in ("model", "framing", "source", "progress")},
        "grid": grid is None or (_are_whole(grid, 2, MAX_TOKENS - 1) and math.prod(grid) < MAX_TOKENS),
        "reductions": isinstance(content["reductions"], list) and all(map(_is_reduction, content["reductions"])),
        "source's section": isinstance(content["source"], dict)
        and isinstance(content["source"].get("section", {}), dict),
        "model's values": all(is_text(x) or is_whole(x) or isinstance(x, bool) for x in _values(content["model"])),
        "texts": isinstance(content["texts"], list) and all(is_text(x, 1 << 16) for x in content["texts"]),
        "parts": isinstance(content["parts"], list) and len(content["parts"]) <= MAX_PARTS,
    }
    if wrong := [name for name, right in checks.items() if not right] or ["dimension"] * (content["dimension"] < 1):
        raise ValueError(f"its {wrong[0]} is none that is written there")
    Framing(**content["framing"])
    parts = tuple(map(_part, content["parts"]))
    if len({part.name for part in parts}) < len(parts):
        raise ValueError("two of its parts have one name")
    if (rows := sum(part.rows for part in parts)) > MAX_ROWS:
        raise ValueError(f"it has {rows} rows; at most {MAX_ROWS} are possible")
    removed = tuple(_ranges(content["removed"], rows))
    known = {name: content[name] for name in names - {"format"}}
    return Manifest(**known | {
        "grid": None if grid is None else tuple(grid), "parts": parts, "removed": removed,
        "reductions": tuple(content["reductions"]), "texts": tuple(content["texts"]),
    })  # fmt: skip


def _part(content: Mapping[str, Any]) -> Part:
    part = Part(**content)
    is_sound = is_whole(part.rows, MAX_PART_ROWS) and part.rows > 0 and is_whole(part.bytes, MAX_BYTES)
    is_named = is_text(part.name) and PART.fullmatch(part.name) and is_text(part.sha256)
    if not is_sound or not is_named or not SHA256.fullmatch(part.sha256):
        raise ValueError(f"a part is {content!r:.200}")
    return part


def _ranges(removed: Any, rows: int) -> Sequence[tuple[int, int]]:
    after = 0
    ranges = []
    for each in removed if isinstance(removed, list) else [removed]:
        if not _are_whole(each, 2, rows - 1) or not after <= each[0] <= each[1]:
            raise ValueError(f"{each!r:.100} are no rows that can be removed")
        after = each[1] + 1
        ranges.append((each[0], each[1]))
    return ranges


def _is_reduction(each: Any) -> bool:
    return (
        isinstance(each, dict)
        and each.keys() == {"name", "options", "losses"}
        and is_text(each["name"], 100)
        and all(isinstance(each[name], dict) for name in ("options", "losses"))
        and all(map(is_number, each["losses"].values()))
    )


def _values(content: Any) -> Sequence[Any]:
    return [*content.values()] if isinstance(content, dict) else []


def _are_whole(values: Any, count: int, most: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(is_whole(value, most) for value in values)
