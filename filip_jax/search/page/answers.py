"""Answers of the page and its JSON API: hits, the patches that match each word, and the words of a patch."""

import hashlib
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from filip_jax.data.decode import decode
from filip_jax.data.preprocess import box_in_centre_view
from filip_jax.errors import UserError
from filip_jax.features.writer import unit
from filip_jax.framing import Framing
from filip_jax.inference import Embedder
from filip_jax.search.explain import explain, patch_tokens
from filip_jax.search.filters import allowed_rows, parse_filter
from filip_jax.search.index import Hit, Index, Query
from filip_jax.search.page.requests import MAX_TOP, SearchRequest
from filip_jax.search.page.vocabulary import Vocabulary
from filip_jax.search.reductions import token_map

STRANGERS_NUMBERS = np.errstate(
    invalid="ignore", over="ignore"
)  # numbers of a stranger's index, those that are none become null
SCORES = ("score", "image_to_text", "text_to_image", "pooled")

Square = tuple[float, float, float, float]  # left, top, right, bottom, as parts of a picture's width and height
Maps = list[list[float | None]]  # of each part of a query a similarity for each patch, None where no token is stored


class Answers:
    """The answers of one index and its model; threads may ask at the same time.

    Args:
        index: what is searched.
        model: of which the index is.
        name: of the index, as the page shows it.
        candidates: rows that are scored instead of all, see `Index.search`.

    Raises:
        UserError: the index is of another model.
    """

    def __init__(self, index: Index, model: Embedder, name: str = "", candidates: int | None = None):
        index.check_model(model)
        if index.features.manifest.grid not in (None, tuple(model.grid)):
            raise UserError(f"the index has a grid of {index.features.manifest.grid}, the model of {tuple(model.grid)}")
        self.index, self.model, self.name, self.candidates = index, model, name, candidates
        self.features, self.manifest = index.features, index.features.manifest
        self.framing = Framing(**self.manifest.framing)
        self.grid = self.manifest.grid or (0, 0)
        self.has_pictures = self.manifest.side == "image"
        self.has_patches = self.has_pictures and self.manifest.pooling == "tokens"
        self.vocabulary = Vocabulary(model, self.features)
        identity = [self.manifest.model, *((part.name, part.sha256) for part in self.manifest.parts)]
        self.version = hashlib.sha256(repr(identity).encode()).hexdigest()[:12]

    def prepare(self) -> None:
        """Compile what the first searches need, so that nobody waits for it."""
        if len(self.index):
            self.search(SearchRequest(row=int(self.features.live.argmax())))
            self.model.encode_text(["a"], self.manifest.pooling)

    def info(self) -> dict[str, Any]:
        """Return what the index is of."""
        manifest = self.manifest
        return {
            "name": self.name,
            "side": manifest.side,
            "rows": len(self.index),
            "grid": self.grid if self.has_patches else None,
            "image_size": manifest.image_size,
            "columns": {name: "text" if kind is str else "number" for name, kind in self.index.kinds.items()},
            "step": manifest.model.get("step"),
            "reductions": [each["name"] for each in manifest.reductions],
            "dtype": manifest.dtype,
            "max_top": MAX_TOP,
        }

    @STRANGERS_NUMBERS
    def search(self, request: SearchRequest) -> dict[str, Any]:
        """Return the hits of a request, and how well each patch of theirs matches each part of the query.

        Raises:
            UserError: the request asks for what is not there, see `Index.search`.
        """
        start = time.perf_counter()
        hits: list[Hit] = []
        if request.text.strip():
            query = self.index.query(self.model, text=request.text)
            about: dict[str, Any] = {"kind": "text", "text": request.text}
        elif request.image or request.tokens or request.row is not None:
            query, about = self._query(request)
        else:
            query, about = None, {"kind": "sample", "parts": []}
        if query is None:
            rows = self._sample(request.top, request.where)
        else:
            (hits,) = self.index.search_all([query], request.top, request.where, self.candidates)
            rows = [hit.row for hit in hits]
        if about["kind"] == "text":
            length = self.model.text_length
            about["cut"] = len(self.model.tokenizer.spans(request.text, length + 1)) > length
            about["parts"], maps = self._words(request.text, rows, query)
        else:
            maps = [[] for _ in rows] if query is None else self._best(query.tokens, rows)
        answers = self._described(rows, hits)
        for answer, of_row in zip(answers, maps):
            answer["maps"] = of_row
        if request.vectors:
            self._add_vectors(answers, rows)
        milliseconds = round(1000 * (time.perf_counter() - start), 1)
        return {"query": about, "hits": answers, "milliseconds": milliseconds}

    @STRANGERS_NUMBERS
    def patch(self, row: int, patch: int, text: str = "") -> dict[str, Any]:
        """Return how well each word of a text matches a patch, and which words of the captions match it best.

        Raises:
            UserError: there is no such patch, or its token is not stored.
        """
        (vector,) = patch_tokens(self.features, self.checked_row(row), self._place(patch))
        of_text: list[dict[str, Any]] = []
        if text.strip():
            (explanation,) = explain(self.model, text, self.features, [row])
            values = explanation.similarity[:, *self._place(patch)].tolist()
            of_text = _similarities(explanation.words, values)
        of_captions = _similarities(*self.vocabulary.best(vector))
        looked_at = len(self.vocabulary.words)
        return {"row": row, "patch": patch, "of_query": of_text, "of_captions": of_captions, "looked_at": looked_at}

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

    def _query(self, request: SearchRequest) -> tuple[Query, dict[str, Any]]:
        """Return the query of a request without a text, and what it is of.

        Patches are compared as words are: by the best match of each. A whole picture is compared both ways.
        """
        about: dict[str, Any] = {"kind": "tokens", "parts": ["tokens"]}
        if request.tokens:
            return self.index.query(tokens=self._unit(request.tokens)), about
        part = "this patch" if len(request.patches) == 1 else "these patches" if request.patches else "this picture"
        about |= {"patches": request.patches, "parts": [part]}
        if not request.image:
            row = self.checked_row(request.row or 0)
            about |= {"kind": "row", **self._described([row], [])[0]}
            if request.patches:
                tokens = [patch_tokens(self.features, row, self._place(patch)) for patch in request.patches]
                return self.index.query(tokens=np.concatenate(tokens)), about
            stored, mask = self.features.tokens([row])
            return Query(stored[0][mask[0]], self.manifest.side), about
        try:
            picture = decode(request.image)
        except ValueError as error:
            kinds = "JPEG, PNG, WebP, GIF, BMP and TIFF are read"
            raise UserError(f"the picture cannot be used: {error}; {kinds}") from error
        (tokens,) = self.model.encode_image([picture], self.manifest.pooling)
        about |= {"kind": "picture", "square": seen(*picture.size, self.framing)}
        if request.patches:
            rows, columns = self.grid
            grid = tokens[-rows * columns :].reshape(rows, columns, -1)  # a pooled token stands first
            chosen = np.stack([grid[self._place(patch)] for patch in request.patches])
            return self.index.query(tokens=chosen), about
        return Query(tokens, "image"), about

    def _unit(self, tokens: Sequence[Sequence[float]]) -> Float[np.ndarray, "t d"]:
        if any(len(each) != self.manifest.dimension for each in tokens):
            raise UserError(f"tokens: a vector has not {self.manifest.dimension} numbers, as those of the index have")
        vectors = np.array(tokens, np.float64)
        largest = np.abs(vectors).max(axis=-1, keepdims=True)
        if not (largest > 0).all():
            raise UserError("tokens: a vector has length 0")
        return unit(vectors / largest).astype(np.float32)

    def _place(self, patch: int) -> tuple[int, int]:
        rows, columns = self.grid
        if not self.has_patches or patch >= rows * columns:
            count = rows * columns if self.has_patches else "none"
            raise UserError(f"patches: there is no patch {patch}; a row has {count}, numbered from 0")
        return divmod(patch, columns)

    def _sample(self, top: int, where: str) -> list[int]:
        """Return rows that lie evenly among all that pass the filter."""
        rows = np.flatnonzero(allowed_rows(self.features, parse_filter(where, self.index.kinds)))
        return rows[np.linspace(0, len(rows) - 1, min(top, len(rows))).round().astype(int)].tolist()

    def _words(self, text: str, rows: Sequence[int], query: Query | None) -> tuple[list[str], list[Maps]]:
        """Return the words of a text, and for each row the map of each word."""
        if not self.has_patches or not rows:
            return [], [[] for _ in rows]
        explained = explain(self.model, text, self.features, rows, query.encoded if query else None)
        return explained[0].words, [[_numbers(of_word) for of_word in each.similarity] for each in explained]

    def _best(self, tokens: Float[np.ndarray, "t d"], rows: Sequence[int]) -> list[Maps]:
        """Return for each row the one map of how well each of its patches matches the best of these tokens."""
        if not self.has_patches or not rows:
            return [[] for _ in rows]
        stored, _ = self.features.tokens(rows)
        best = (stored @ tokens.T).max(axis=-1)
        maps = []
        for n, positions in enumerate(self.features.positions(rows)):
            places = token_map(positions, self.manifest)
            maps.append([_numbers(np.where(places >= 0, best[n][places], np.nan))])
        return maps

    def _described(self, rows: Sequence[int], hits: Sequence[Hit]) -> list[dict[str, Any]]:
        answers = []
        for n, known in enumerate(self.features.fields(rows)):
            answer: dict[str, Any] = {"row": int(rows[n]), **known}
            if self.has_pictures:
                answer["square"] = seen(known["width"], known["height"], self.framing)
                answer["picture"] = f"api/picture/{rows[n]}?version={self.version}"
            if hits:
                answer |= {name: _number(getattr(hits[n], name)) for name in SCORES}
            answers.append(answer)
        return answers

    def _add_vectors(self, answers: Sequence[dict[str, Any]], rows: Sequence[int]) -> None:
        tokens, mask = self.features.tokens(rows)
        tokens = np.nan_to_num(tokens, posinf=0.0, neginf=0.0)  # JSON knows finite numbers only
        for n, positions in enumerate(self.features.positions(rows)):
            vectors = tokens[n][mask[n]].astype(object)
            vectors[~np.isfinite(tokens[n][mask[n]])] = None
            answers[n]["tokens"] = vectors.tolist()
            answers[n]["positions"] = positions.tolist()


def seen(width: int, height: int, framing: Framing) -> Square:
    """Return the part of a picture that the center view shows; all of one whose size is not known."""
    if min(width, height) < 1:
        return 0.0, 0.0, 1.0, 1.0
    size = 1 << 12  # of a view so large that rounding to its pixels does not show
    left, top, right, bottom = box_in_centre_view((0, 0, width, height), (width, height), size, framing)
    x, y = right - left, bottom - top
    return (0 - left) / x, (0 - top) / y, (size - left) / x, (size - top) / y


def _similarities(words: Sequence[str], values: Sequence[float]) -> list[dict[str, Any]]:
    return [{"word": word, "similarity": _number(value)} for word, value in zip(words, values)]


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _numbers(values: Float[np.ndarray, "..."]) -> list[float | None]:
    """Return similarities row by row."""
    return [round(value, 4) if math.isfinite(value) else None for value in values.reshape(-1).tolist()]
