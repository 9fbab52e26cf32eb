"""What the page and its JSON API answer, from an index and its model: hits, where they match, and the words of a patch."""

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float

from filip_jax.data.decode import decode
from filip_jax.data.preprocess import box_in_centre_view
from filip_jax.errors import UserError
from filip_jax.framing import Framing
from filip_jax.inference.embedder import Embedder
from filip_jax.search.explain import explain
from filip_jax.search.index import Hit, Index
from filip_jax.search.page.vocabulary import Vocabulary

MAX_TOP = 200  # hits of an answer
MAX_TEXT = 4096  # characters of a text that is looked for
MAX_QUERY_TOKENS = 1024  # of a query by tokens
DEFAULT_TOP = 24

Square = tuple[float, float, float, float]  # left, top, right, bottom, as parts of a picture's width and height


@dataclass(frozen=True)
class Query:
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


def query_of(content: Any, image: bytes = b"") -> Query:
    """Return the query that a request's JSON, or an uploaded picture with its options, stands for.

    Raises:
        UserError: it holds something else.
    """
    if not isinstance(content, dict):
        raise UserError("the request is no JSON object")
    names = [each.name for each in fields(Query) if each.name != "image"]
    for name, value in content.items():
        if name not in names:
            raise UserError(f"unknown key {name!r:.100}; a search has {', '.join(names)}")
        check = _CHECKS[name]
        if not check(value):
            raise UserError(f"{name}={value!r:.100} is not {_SAID[name]}")
    known: dict[str, Any] = dict(content)
    for name in ("patches", "tokens"):
        if name in known:
            known[name] = tuple(tuple(each) if isinstance(each, list) else each for each in known[name])
    return Query(**known, image=image)


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
    "patches": lambda value: isinstance(value, list) and all(_is_whole(each, 0, 1 << 16) for each in value),
    "tokens": _is_tokens,
    "top": lambda value: _is_whole(value, 1, MAX_TOP),
    "vectors": lambda value: isinstance(value, bool),
}
_SAID = {
    "text": f"a text of at most {MAX_TEXT} characters",
    "where": f"a filter of at most {MAX_TEXT} characters",
    "row": "the number of a row",
    "patches": "a list of numbers of patches",
    "tokens": f"a list of 1 to {MAX_QUERY_TOKENS} vectors of numbers",
    "top": f"a whole number from 1 to {MAX_TOP}",
    "vectors": "true or false",
}


class Answers:
    """The answers of one index and its model; threads may ask at the same time.

    Args:
        index: what is searched.
        model: of which the index is.
        name: of the index, as the page shows it.
    """

    def __init__(self, index: Index, model: Embedder, name: str = ""):
        self.index, self.model, self.name = index, model, name
        self.features, self.manifest = index.features, index.features.manifest
        self.framing = Framing(**self.manifest.framing)
        self.has_pictures = self.manifest.side == "image"
        self.vocabulary = Vocabulary(model, self.features)
        identity = [self.manifest.model, *((part.name, part.sha256) for part in self.manifest.parts)]
        self.version = hashlib.sha256(repr(identity).encode()).hexdigest()[:12]

    def info(self) -> dict[str, Any]:
        """Return what the index is of."""
        manifest = self.manifest
        return {
            "name": self.name,
            "side": manifest.side,
            "rows": int(self.features.live.sum()),
            "grid": manifest.grid,
            "image_size": manifest.image_size,
            "columns": self.index.columns,
            "step": manifest.model.get("step"),
            "reductions": [each["name"] for each in manifest.reductions],
            "dtype": manifest.dtype,
            "max_top": MAX_TOP,
            "version": self.version,
        }

    def search(self, query: Query) -> dict[str, Any]:
        """Return the hits of a query, and how well each place of theirs matches each of its parts."""
        start = time.perf_counter()
        about: dict[str, Any] = {"kind": "sample", "parts": []}
        if query.text.strip():
            hits = self.index.search(self.model, text=query.text, top=query.top, where=query.where)
            rows = [hit.row for hit in hits]
            about, maps = self._words(query.text, rows)
        elif query.image or query.tokens or query.row is not None:
            tokens, about = self._tokens(query)
            hits = self.index.search(self.model, tokens=tokens, top=query.top, where=query.where)
            rows = [hit.row for hit in hits]
            maps = self._best(tokens, rows)
        else:
            rows, hits = self.index.sample(query.top, query.where), []
            maps = None
        answers = self._shown(rows, hits, maps)
        if query.vectors:
            self._add_vectors(answers, rows)
        milliseconds = 1000 * (time.perf_counter() - start)
        return {"query": about, "hits": answers, "milliseconds": round(milliseconds, 1)}

    def patch(self, row: int, patch: int, text: str = "") -> dict[str, Any]:
        """Return how well each word of a text matches a patch, and which words of the captions match it best."""
        (vector,) = self._patches(row, (patch,))
        similarities = []
        if text.strip():
            (found,) = explain(self.model, text, self.features, [row])
            values = [float(each.similarity.reshape(-1)[patch]) for each in found]
            similarities = [{"word": each.word, "similarity": value} for each, value in zip(found, values)]
        words, looked_at = self.vocabulary.best(vector)
        return {"row": row, "patch": patch, "of_query": similarities, "of_captions": words, "looked_at": looked_at}

    def _words(self, text: str, rows: Sequence[int]) -> tuple[dict[str, Any], list[list[Any]]]:
        explained = explain(self.model, text, self.features, rows) if rows and self.has_pictures else []
        parts = [each.word for each in explained[0]] if explained else []
        maps = [[_numbers(each.similarity) for each in words] for words in explained] or [[] for _ in rows]
        return {"kind": "text", "text": text, "parts": parts}, maps

    def _tokens(self, query: Query) -> tuple[Float[np.ndarray, "t d"], dict[str, Any]]:
        """Return the tokens of a query that is no text, and what it is of."""
        about: dict[str, Any] = {"patches": query.patches, "parts": ["these patches" if query.patches else "picture"]}
        if query.tokens:
            return self._checked(query.tokens), about | {"kind": "tokens", "parts": ["tokens"]}
        if query.image:
            try:
                picture = decode(query.image)
            except ValueError as error:
                raise UserError(f"the picture cannot be used: {error}") from error
            (tokens,) = self.model.encode_image([picture])
            about |= {"kind": "picture", "square": self._square(*picture.size)}
            if query.patches:
                tokens = self._of_grid(tokens)[self._in_grid(query.patches)]
            return tokens, about
        self.checked_row(query.row)
        about |= {"kind": "row", **self._shown([query.row], [], None)[0]}
        if query.patches:
            return self._patches(query.row, query.patches), about
        tokens, mask = self.features.tokens([query.row])
        return tokens[0][mask[0]], about

    def _checked(self, tokens: Sequence[Sequence[float]]) -> Float[np.ndarray, "t d"]:
        if any(len(each) != self.manifest.dimension for each in tokens):
            raise UserError(f"tokens: a vector has not {self.manifest.dimension} numbers, as those of the index have")
        found = np.array(tokens, np.float32)
        lengths = np.linalg.norm(found.astype(np.float64), axis=-1, keepdims=True)
        if not np.isfinite(found).all() or not (lengths > 0).all():
            raise UserError("tokens: a vector has length 0 or a number that is too large")
        return (found / lengths).astype(np.float32)

    def checked_row(self, row: int) -> int:
        """Return a row that is one of the index's.

        Raises:
            UserError: it is none, or was removed.
        """
        if not 0 <= row < len(self.features):
            raise UserError(f"row={row}: the index has {len(self.features)} rows, numbered from 0")
        if not self.features.live[row]:
            raise UserError(f"row={row} was removed from the index")
        return row

    def _patches(self, row: int, patches: Sequence[int]) -> Float[np.ndarray, "n d"]:
        """Return the tokens of patches of a row."""
        self.checked_row(row)
        places = self._in_grid(patches)
        tokens, mask = self.features.tokens([row])
        (positions,) = self.features.positions([row])
        token_of = {int(place): token for place, token in zip(positions, tokens[0][mask[0]])}
        if missing := [place for place in places if place not in token_of]:
            raise UserError(f"patch {missing[0]} of row {row} is not stored: the index was reduced")
        return np.stack([token_of[place] for place in places])

    def _in_grid(self, patches: Sequence[int]) -> list[int]:
        count = math.prod(self.manifest.grid or (0,))
        if not patches or max(patches) >= count:
            raise UserError(f"patches={[*patches]}: a picture has {count}, numbered from 0")
        return [*patches]

    def _of_grid(self, tokens: Float[np.ndarray, "t d"]) -> Float[np.ndarray, "p d"]:
        return tokens[-math.prod(self.manifest.grid or (0,)) :]  # a pooled token stands first

    def _best(self, tokens: Float[np.ndarray, "t d"], rows: Sequence[int]) -> list[list[Any]]:
        """Return for each row the one map of how well each of its places matches the best of these tokens."""
        if not self.has_pictures or not rows:
            return [[] for _ in rows]
        stored, mask = self.features.tokens(rows)
        scores = np.where(mask, (stored @ tokens.T).max(axis=-1), np.nan)
        maps = []
        for row, positions in enumerate(self.features.positions(rows)):
            flat = np.full(math.prod(self.manifest.grid or (0,)), np.nan, np.float32)
            in_grid = positions >= 0
            flat[positions[in_grid]] = scores[row, : len(positions)][in_grid]
            maps.append([_numbers(flat)])
        return maps

    def _shown(self, rows: Sequence[int], hits: Sequence[Hit], maps: list[list[Any]] | None) -> list[dict[str, Any]]:
        answers = []
        for n, known in enumerate(self.features.fields(rows)):
            answer: dict[str, Any] = {"row": int(rows[n]), **known}
            if self.has_pictures:
                answer["square"] = self._square(known["width"], known["height"])
                answer["picture"] = f"api/picture/{rows[n]}?version={self.version}"
            if hits:
                scores = ("score", "image_to_text", "text_to_image", "pooled")
                answer |= {name: _number(getattr(hits[n], name)) for name in scores}
            if maps is not None:
                answer["maps"] = maps[n]
            answers.append(answer)
        return answers

    def _square(self, width: int, height: int) -> Square:
        """Return the part of a picture, as it is shown, that the model sees."""
        if min(width, height) < 1:
            return 0.0, 0.0, 1.0, 1.0
        return seen(width, height, self.framing)

    def _add_vectors(self, answers: Sequence[dict[str, Any]], rows: Sequence[int]) -> None:
        tokens, mask = self.features.tokens(rows)
        for n, positions in enumerate(self.features.positions(rows)):
            answers[n]["tokens"] = tokens[n][mask[n]].tolist()
            answers[n]["positions"] = positions.tolist()


def seen(width: int, height: int, framing: Framing) -> Square:
    """Return the part of a picture that the center view shows."""
    size = 1 << 12  # of a view so large that rounding to its pixels does not show
    left, top, right, bottom = box_in_centre_view((0, 0, width, height), (width, height), size, framing)
    x, y = right - left, bottom - top
    return -left / x, -top / y, (size - left) / x, (size - top) / y


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _numbers(values: Float[np.ndarray, "..."]) -> list[float | None]:
    """Return similarities row by row; None of places whose token is not stored."""
    return [None if math.isnan(value) else round(value, 4) for value in values.reshape(-1).tolist()]
