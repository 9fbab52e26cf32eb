"""What to do with a list that cannot be read as it stands, in words that lead to a command that works."""

import re
from collections.abc import Mapping, Sequence

from filip_jax.data.rows import JSON
from filip_jax.data.values import MAX_NAME, advice

FILE = re.compile(r".*(/|\.[A-Za-z]\w{1,4}(#\d+)?$)")
FIELDS = " with the fields "
AS_LINES = "an object a line, as jq -c '.[]' and pandas' to_json(orient='records', lines=True) do"


def of_bad_rows(files: Sequence[str], problems: str) -> str:
    """Return what may help where most rows are bad."""
    if _is_json(files):
        return f"write {AS_LINES}"
    if "not UTF-8" in problems:
        return "if the list is in another encoding, write it in UTF-8, as with iconv -f WINDOWS-1252 -t UTF-8"
    return (
        "if the columns of a list are separated by something else, say separator=tab; if its first line is no header, say "
        "columns=NAME,NAME; a text with the separator in it needs quotation marks around it"
    )


def of_columns(wanted: Mapping[str, str], files: Sequence[str], sizes: Sequence[int], columns: Sequence[str]) -> str:
    """Return what to say where columns that options name are missing, or never hold what is wanted.

    Args:
        wanted: {option: such a column}.
        sizes: the rows of each file.
        columns: in the files' order.
    """
    if _is_json(files):
        if max(sizes) > 1:
            return _of_names(wanted, columns)
        if any(map(FILE.match, columns)):
            return "write an object a line, as with jq -c 'to_entries[] | {image: .key, caption: .value}' > LIST.jsonl"
        if {"images", "annotations"} & set(columns):
            return "the source annotations reads the files of COCO and Karpathy; of others, write an object a line"
        return f"{_of_names(wanted, columns)}; if the whole list is one object, write {AS_LINES}"
    if len(columns) == 1 and re.search(r"\s", columns[0]):
        return "if its columns are separated by a blank, say separator=' '"
    if any(FILE.match(column) or len(column) > MAX_NAME for column in columns):
        names = _of_names(wanted, [column for column in columns if not FILE.match(column)])
        return f"{names}; if the first line of a list is no header, say {_header(columns)}"
    return _of_names(wanted, columns)


def of_fields(option: str, name: str, kind: str) -> str:
    """Return what to say where a column holds objects, as `kind` says; "" where no field is likely."""
    field = advice(option, kind.partition(FIELDS)[2].split(", ")).partition("=")[2]
    return f"say {option}={name}.{field}" if field not in ("", "NAME") else ""


def _of_names(wanted: Mapping[str, str], columns: Sequence[str]) -> str:
    others = [column for column in columns if column not in wanted.values()]
    return " and ".join("say key=NAME" if option == "key" else advice(option, others) for option in wanted)


def _header(line: Sequence[str]) -> str:
    """What to say for columns whose first line is data: of the image's file, of the longest text or its class, of others."""
    image = next((field for field in line if FILE.match(field)), None)
    text = max((field for field in line if field != image), key=len, default="")
    names = {image: "image", text: "label" if text.isdecimal() else "caption"}
    label = " label=label" if text.isdecimal() else ""
    return f"columns={','.join(names.get(field, f'column{n}') for n, field in enumerate(line, 1))}{label}"


def _is_json(files: Sequence[str]) -> bool:
    return all(JSON.search(file.lower()) for file in files)
