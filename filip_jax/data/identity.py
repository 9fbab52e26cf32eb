"""Identities of data: texts that differ if the data does, whatever the times of its files, and tell in which part.

An identity is a JSON object: named parts, which are numbers, short texts or digests, and for several sources or
layers objects again. A text of another form stands for itself; earlier versions of filip_jax wrote such.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

MAX_SHOWN = 60  # characters of a part that a message quotes
MAX_CHANGES = 8  # parts that a message names
WHOLE = "data"  # the one part of a text of another form
BUCKETS = "a bucket's checksums "  # before a digest of them, which no digest of the content can be compared with
ELSEWHERE = "a bucket's checksums and the content of files cannot be compared; their names and numbers are the same"
OLDER = "an older version of filip_jax noted what the data was, in a form that cannot be compared"


def identify(**parts: Any) -> str:
    """Return the identity of these parts."""
    return json.dumps(parts, sort_keys=True)


def extend(identity: str, **parts: Any) -> str:
    """Return the identity with more parts."""
    return identify(**(parts_of(identity) | parts))


def parts_of(identity: Any) -> dict[str, Any]:
    """Return the parts by name, of whatever a file says that the identity was."""
    try:
        parts = json.loads(identity) if isinstance(identity, str) and identity.startswith("{") else None
    except (ValueError, RecursionError):
        parts = None
    return parts if isinstance(parts, dict) else {WHOLE: identity}


def digest(pieces: Iterable[str | bytes]) -> str:
    """Return a digest of texts and bytes, one after the other."""
    total = hashlib.sha256()
    for piece in pieces:
        data = piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else piece
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:32]


def digest_of_files(pieces: Iterable[str], in_bucket: bool) -> str:
    """Return a digest of what each file holds, or of its checksum where it lies in a bucket."""
    return BUCKETS * in_bucket + digest(pieces)


def changes(was: Any, now: str) -> str:
    """Return what differs between a noted identity and that of the data as it is, in words; "" if nothing does."""
    if was == now:
        return ""
    found = [_in_words(*difference) for difference in _differences(parts_of(was), parts_of(now), "")]
    if not found or is_older(was, now):
        return OLDER
    return ", ".join(found[:MAX_CHANGES]) + (" …" if len(found) > MAX_CHANGES else "")


def is_older(was: Any, now: str) -> bool:
    """Return whether a noted identity is of the form that earlier versions wrote, which cannot be compared with `now`."""
    return was is None or (WHOLE in parts_of(was)) != (WHOLE in parts_of(now))


def is_elsewhere(was: Any, now: str) -> bool:
    """Return whether identities differ only in that a bucket's checksums stand for the content of files in one of them."""
    differences = list(_differences(parts_of(was), parts_of(now), ""))
    return bool(differences) and all(_is_of_bucket(old) != _is_of_bucket(new) for _, old, new in differences)


def _differences(was: dict[str, Any], now: dict[str, Any], of: str) -> Iterable[tuple[str, Any, Any]]:
    """The parts that differ: "records", of a mixture "web: records", with what each was and is."""
    for name in sorted(was.keys() | now.keys()):
        old, new = was.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{of}{name}: ")
        elif old != new:
            yield f"{of}{name}", old, new


def _in_words(name: str, old: Any, new: Any) -> str:
    """A part that differs: "records (10, now 12)"."""
    is_short = all(len(repr(value)) <= MAX_SHOWN and not _is_digest(value) for value in (old, new))
    return f"{name} ({_short(old)}, now {_short(new)})" if is_short else name


def _is_of_bucket(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(BUCKETS)


def _short(value: Any) -> str:
    return "none" if value is None else repr(value)


def _is_digest(value: Any) -> bool:
    text = value.removeprefix(BUCKETS) if isinstance(value, str) else ""
    return len(text) >= 32 and set(text) <= set("0123456789abcdef")
