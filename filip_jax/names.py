"""Names that become files, folders, rows of tables and keys of metrics: which texts are names, and one made of any text."""

import hashlib
import re
import unicodedata
from typing import Any

from filip_jax.errors import UserError

MAX_NAME_BYTES = 100  # in UTF-8, so that endings such as _step_0000100.json fit into a file's name
SIGNS = frozenset(" ._-=,+{}")  # beside letters, marks and digits of all scripts
QUOTES = "'\"()[]"  # what Python writes around values, which leaves no blank
_METRIC = re.compile(r"[\w@.=+-]{1,100}")


def is_name(text: Any) -> bool:
    """Return whether a text may be the name of an evaluation.

    No name leads out of a folder, is hidden in it, or does anything to a terminal, a Markdown table or a page.
    """
    if not isinstance(text, str) or not text or not all(map(_is_sign, text)):
        return False
    return len(text.encode()) <= MAX_NAME_BYTES and text[0] not in " .-" and text[-1] not in " ."


def check_name(text: Any, key: str) -> None:
    """Raise a UserError for a name in the config section `key` that is none."""
    if not is_name(text):
        raise UserError(
            f"{key}: {text!r:.120} cannot be a name: take letters, digits, '_', '-', '.', '=', ',', '+', '{{', '}}' and "
            f"blanks, at most {MAX_NAME_BYTES} bytes of UTF-8, none of '.', '-' and blank first"
        )


def make_name(text: str) -> str:
    """Return a name for the text; texts that differ have different names."""
    signs = "".join(c if _is_sign(c) else "" if c in QUOTES else " " for c in text)
    plain = " ".join(signs.split()).lstrip(" .-").rstrip(" .")
    if plain == text and is_name(plain):
        return plain
    end = f"_{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    return plain.encode()[: MAX_NAME_BYTES - len(end)].decode("utf-8", "ignore") + end


def is_metric(text: Any) -> bool:
    """Return whether a text may be the key of a metric: EVALUATION/metric, or eval/EVALUATION/error."""
    if not isinstance(text, str) or len(text) > 400:
        return False
    name, _, metric = text.removeprefix("eval/").partition("/")
    return is_name(name) and _METRIC.fullmatch(metric) is not None


def _is_sign(character: str) -> bool:
    return character in SIGNS or unicodedata.category(character)[0] in "LMN"
