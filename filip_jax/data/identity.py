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


def changes(was: Any, now: str) -> str:
    """Return what differs between a noted identity and that of the data as it is, in words; "" if nothing does."""
    if was == now:
        return ""
    found = list(_changes(parts_of(was), parts_of(now), ""))
    if not found or is_older(was, now):
        return OLDER
    return ", ".join(found[:MAX_CHANGES]) + (" …" if len(found) > MAX_CHANGES else "")


def is_older(was: Any, now: str) -> bool:
    """Return whether a noted identity is of the form that earlier versions wrote, which cannot be compared with `now`."""
    return was is None or (WHOLE in parts_of(was)) != (WHOLE in parts_of(now))


def _changes(was: dict[str, Any], now: dict[str, Any], of: str) -> Iterable[str]:
    """The parts that differ; "records (10, now 12)", of a mixture "web: captions"."""
    for name in sorted(was.keys() | now.keys()):
        old, new = was.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changes(old, new, f"{of}{name}: ")
        elif old != new:
            short = all(len(repr(value)) <= MAX_SHOWN and not _is_digest(value) for value in (old, new))
            yield f"{of}{name} ({_short(old)}, now {_short(new)})" if short else f"{of}{name}"


def _short(value: Any) -> str:
    return "none" if value is None else repr(value)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) >= 32 and set(value) <= set("0123456789abcdef")
