"""Class names and prompts as users and data sets list them: a text a line, or under a name in a JSON file."""

import json

from filip_jax import storage
from filip_jax.errors import UserError, one_line
from filip_jax.user_paths import from_user

JSON = ".json:"
FILE_BYTES = 1 << 26  # of a file; the longest that are known have a few thousand lines


def file_of(place: str) -> str:
    """The file of a place: FILE of FILE.json:NAME, or the place itself, which wins where there is such a file."""
    return _split(place)[0]


def _split(place: str) -> tuple[str, str | None]:
    """(file, name of a list in it)."""
    place = from_user(place)
    before, mark, name = place.rpartition(JSON)
    return (before + mark[:-1], name) if mark and not storage.exists(place) else (place, None)


def read_texts(place: str, key: str) -> list[str]:
    """The lines of a text file, stripped, without the empty ones at its end; or the list that FILE.json:NAME names.

    CLIP_benchmark keeps all of its class names and templates in such JSON files, en_classnames.json and
    en_zeroshot_classification_templates.json.

    Args:
        key: of the config, for messages.

    Raises:
        UserError: the file cannot be read, or holds no list of texts under this name.
    """
    file, name = _split(place)
    try:
        content = storage.read(file, 0, FILE_BYTES + 1)
        if len(content) > FILE_BYTES:
            raise ValueError(f"it has more than {FILE_BYTES} bytes")
        content = content.decode("utf-8")
        if name is None:
            lines = [line.strip() for line in content.splitlines()]
            while lines and not lines[-1]:
                lines.pop()
            return lines
        lists = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{key}={place!r}: the file cannot be read: {one_line(str(error))}") from error
    texts = lists.get(name) if isinstance(lists, dict) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        names = one_line(", ".join(sorted(lists))) if isinstance(lists, dict) else "none"
        raise UserError(f"{key}={place!r}: {file} has no list of texts {name!r}; its names are {names}")
    return [text.strip() for text in texts]
