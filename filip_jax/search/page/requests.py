"""Requests of the page and its JSON API, checked."""

from dataclasses import dataclass, fields
from typing import Any

from filip_jax.errors import UserError

MAX_TOP = 200  # hits of an answer
MAX_TEXT = 4096  # characters of a text that is looked for
MAX_QUERY_TOKENS = 1024  # of a query by tokens, or by patches
DEFAULT_TOP = 24


@dataclass(frozen=True)
class SearchRequest:
    """One request for hits. At most one of text, image, row and tokens is given; without any, rows are sampled.

    Attributes:
        text: words.
        image: an encoded picture.
        row: of a picture in the index.
        patches: which of the picture's patches are looked for, row by row from 0; none stands for all.
        tokens: vectors of the model's space.
        where: a filter.
        top: how many hits.
        vectors: whether the answer holds the tokens of each hit.
    """

    text: str = ""
    image: bytes = b""
    row: int | None = None
    patches: tuple[int, ...] = ()
    tokens: tuple[tuple[float, ...], ...] = ()
    where: str = ""
    top: int = DEFAULT_TOP
    vectors: bool = False

    def __post_init__(self):
        given = [name for name in ("text", "image", "row", "tokens") if getattr(self, name) not in ("", b"", None, ())]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} are given; a search has one of them")
        if self.patches and not {"row", "image"} & {*given}:
            raise UserError("patches are those of a row or of a picture: give one")


def search_request(content: Any, image: bytes = b"") -> SearchRequest:
    """Return the search that a request's JSON, or an uploaded picture with its options, stands for.

    Raises:
        UserError: it holds something else.
    """
    if not isinstance(content, dict):
        raise UserError("the request is no JSON object")
    names = [each.name for each in fields(SearchRequest) if each.name != "image"]
    for name, value in content.items():
        if name not in names:
            raise UserError(f"unknown key {name!r:.100}; a search has {', '.join(names)}")
        check = _CHECKS[name]
        if not check(value):
            raise UserError(f"{name}={value!r:.100} is not {_EXPECTED[name]}")
    known: dict[str, Any] = dict(content)
    for name in ("patches", "tokens"):
        if name in known:
            known[name] = tuple(tuple(each) if isinstance(each, list) else each for each in known[name])
    return SearchRequest(**known, image=image)


def _is_whole(value: Any, least: int, most: int = 1 << 40) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_tokens(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= MAX_QUERY_TOKENS
        and all(isinstance(each, list) and each for each in value)
        and all(isinstance(x, int | float) and not isinstance(x, bool) for each in value for x in each)
    )


_CHECKS = {
    "text": lambda value: isinstance(value, str) and len(value) <= MAX_TEXT,
    "where": lambda value: isinstance(value, str) and len(value) <= MAX_TEXT,
    "row": lambda value: _is_whole(value, 0),
    "patches": lambda value: (
        isinstance(value, list)
        and len(value) <= MAX_QUERY_TOKENS
        and all(_is_whole(each, 0, 1 << 16) for each in value)
    ),
    "tokens": _is_tokens,
    "top": lambda value: _is_whole(value, 1, MAX_TOP),
    "vectors": lambda value: isinstance(value, bool),
}
_EXPECTED = {
    "text": f"a text of at most {MAX_TEXT} characters",
    "where": f"a filter of at most {MAX_TEXT} characters",
    "row": "the number of a row",
    "patches": f"a list of at most {MAX_QUERY_TOKENS} numbers of patches",
    "tokens": f"a list of 1 to {MAX_QUERY_TOKENS} vectors of numbers",
    "top": f"a whole number from 1 to {MAX_TOP}",
    "vectors": "true or false",
}


def patch_request(content: Any) -> tuple[int, int, str]:
    """Return the row, the patch and the text that a request for the words of a patch names.

    Raises:
        UserError: it holds something else.
    """
    if not isinstance(content, dict) or content.keys() - {"text"} != {"row", "patches"}:
        raise UserError("give a row, one patch of it in patches, and perhaps a text")
    text = search_request({"text": content.get("text", "")}).text
    request = search_request({name: content[name] for name in ("row", "patches")})
    if request.row is None or len(request.patches) != 1:
        raise UserError("patches: give one")
    return request.row, request.patches[0], text
