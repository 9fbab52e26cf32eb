"""Searching stored features by a text, an image or tokens: `open_index(FOLDER).search(model, text=…)`."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from filip_jax.errors import UserError
from filip_jax.features import Features, open_features
from filip_jax.features.manifest import difference_of_models
from filip_jax.features.table import schema_of
from filip_jax.features.writer import unit
from filip_jax.inference import Embedder
from filip_jax.inference.embedder import checked_text
from filip_jax.search.engines import open_engine
from filip_jax.search.engines.parts import held_rows
from filip_jax.search.filters import Filter, allowed_rows, kinds_of, parse_filter
from filip_jax.search.reductions import check_options
from filip_jax.search.scan import best_rows, scores_of

MAX_TOP = 1 << 16  # hits of a query
MAX_CANDIDATES = 1 << 20  # rows that are scored for a query instead of all
RECORD = ("key", "shard", "index", "caption", "width", "height")  # what a hit tells of its record


@dataclass(frozen=True)
class Query:
    """The tokens of a search, and the side they stand for.

    Attributes:
        tokens: those that take part.
        side: "image" or "text", as which they are compared.
        encoded: of a text all its tokens, those that take no part included.
    """

    tokens: Float[np.ndarray, "t d"]
    side: str
    encoded: Float[np.ndarray, "all d"] | None = None


@dataclass(frozen=True)
class Hit:
    """A row that was found.

    Attributes:
        row: its number.
        key, shard, index, caption, width, height: of its record, see `Features.fields`.
        image_to_text, text_to_image: the similarities of the definition. Where like is searched with like, the query stands
            for the other side.
        pooled: the cosine of the row's pooled vector and the mean of the query's tokens.
        score: by which hits are ordered: the mean over the query's tokens of their best matches, so text_to_image for a text
            among images and image_to_text for an image among texts; with like among like the mean of both.
    """

    row: int
    key: str
    shard: str
    index: int
    image_to_text: float
    text_to_image: float
    pooled: float
    caption: str
    width: int
    height: int
    score: float


class Index:
    """Stored features and an engine that finds rows in them. Threads may share it; it stays what it was when it was opened.

    Attributes:
        features: the rows.
        engine: what names candidates.
    """

    def __init__(self, features: Features, engine: str, **options: Any):
        for reduction in features.manifest.reductions:
            check_options(reduction)
        self.features, self.kinds = features, kinds_of(schema_of(features.manifest))
        self.engine = open_engine(features, engine, **options)
        self._lock = Lock()  # of the engine
        self._missing: Int[np.ndarray, " n"] | None = None

    def __len__(self) -> int:
        """The number of rows that can be found."""
        return int(self.features.live.sum())

    def query(
        self,
        model: Embedder | None = None,
        *,
        text: str | None = None,
        image: Any = None,
        tokens: Float[np.ndarray, "t d"] | None = None,
    ) -> Query:
        """Return one text, image or array of tokens as a query.

        Args:
            model: of which the index is; tokens need none.
            image: of any kind, as of `Embedder.encode_image`.
            tokens: compared as of the other side than the rows are of.

        Raises:
            UserError: not one of them, a model of which the index is not, or words that the model does not know.
        """
        if sum(each is not None for each in (text, image, tokens)) != 1:
            raise UserError("search for one thing: a text, an image or tokens")
        if tokens is not None:
            return Query(self._checked(tokens), "text" if self.features.manifest.side == "image" else "image")
        if model is None:
            raise UserError("a text or an image needs the model of which the index is")
        return (self.text_queries(model, [text]) if text is not None else self.image_queries(model, [image]))[0]

    def text_queries(self, model: Embedder, texts: Sequence[str]) -> list[Query]:
        """Return several texts as queries; see `query`."""
        self.check_model(model)
        for number, text in enumerate(texts):
            if not model.tokenizer.knows(checked_text(number, text)):
                raise UserError(f"the model's vocabulary knows no word of {text!r:.200}: search for other words")
        tokens, mask = model.encode_text(texts, self.features.manifest.pooling)
        return [Query(self._checked(of_text[text_mask]), "text", of_text) for of_text, text_mask in zip(tokens, mask)]

    def image_queries(self, model: Embedder, images: Sequence[Any]) -> list[Query]:
        """Return several images as queries; see `query`."""
        self.check_model(model)
        tokens = model.encode_image(images, self.features.manifest.pooling)
        return [Query(self._checked(of_image), "image") for of_image in tokens]

    def search(
        self,
        model: Embedder | None = None,
        text: str | None = None,
        image: Any = None,
        tokens: Float[np.ndarray, "t d"] | None = None,
        top: int = 20,
        where: str = "",
        candidates: int | None = None,
    ) -> list[Hit]:
        """Return the best rows for a text, an image or tokens, best first; fewer where there are fewer.

        Args:
            model, text, image, tokens: see `query`.
            where: a filter, see filters.py.
            candidates: how many rows the engine names, of which these are the best, and at least `top`; by default as many
                as it thinks right, and with the engine "exact" all rows, which is exact.

        Raises:
            UserError: as `query`; the index is empty; a filter that is none; top or candidates below 1; a damaged part.
        """
        query = self.query(model, text=text, image=image, tokens=tokens)
        return self.search_all([query], top=top, where=where, candidates=candidates)[0]

    def search_all(
        self, queries: Sequence[Query], top: int = 20, where: str = "", candidates: int | None = None
    ) -> list[list[Hit]]:
        """Return what `search` does for each of several queries, which are compared with the rows together."""
        check_counts(top, candidates)
        if not len(self):
            raise UserError(f"{self.features.folder} has no rows to search: filip embed adds them")
        tree = parse_filter(where, self.kinds)
        allowed = allowed_rows(self.features, tree)
        if candidates is None:
            candidates = self.engine.candidates
        if candidates is not None:
            candidates = max(candidates, top)
        hits: list[list[Hit]] = [[] for _ in queries]
        for like in (False, True):
            numbers = [n for n, query in enumerate(queries) if (query.side == self.features.manifest.side) == like]
            if candidates is None and numbers:
                tokens = [queries[n].tokens for n in numbers]
                rows_of_queries = zip(numbers, best_rows(self.features, tokens, top, allowed=allowed, like=like))
            else:
                rows_of_queries = ((n, self._candidates(queries[n], candidates or top, tree, allowed)) for n in numbers)
            for n, of_query in rows_of_queries:
                hits[n] = self._hits(queries[n], of_query, like, top)
        return hits

    def _candidates(
        self, query: Query, count: int, tree: Filter | None, allowed: Bool[np.ndarray, " rows"]
    ) -> Int[np.ndarray, " n"]:
        """Return the allowed rows that the engine names, and those that it does not know."""
        missing = self.missing()
        with self._lock:
            rows = np.asarray(self.engine.search(query.tokens, count, tree), np.int64)
        rows = rows[(rows >= 0) & (rows < len(self.features))]
        if len(missing):
            unheld = np.zeros(len(self.features), bool)
            unheld[missing] = True
            like = query.side == self.features.manifest.side
            rows = np.concatenate(
                [rows, *best_rows(self.features, [query.tokens], count, allowed=allowed & unheld, like=like)]
            )
        rows = np.unique(rows)
        return rows[allowed[rows]]

    def missing(self) -> Int[np.ndarray, " n"]:
        """Return the rows that the engine does not hold, or more than once; warn, the first time, of many.

        Raises:
            UserError: it holds rows of other features.
        """
        with self._lock:
            if self.engine.candidates is None:  # it is the features themselves
                return np.zeros(0, np.int64)
            if self._missing is None:
                held, counts = held_rows(self.features, *self.engine.held())
                self._missing = np.setdiff1d(np.flatnonzero(self.features.live), held[counts == 1])
                if len(self._missing) > len(self) // 100:
                    warnings.warn(
                        f"{len(self._missing)} of {len(self)} rows are not in the engine yet, and compared one by one: "
                        "run filip index build",
                        stacklevel=3,
                    )
            return self._missing

    def build(self) -> tuple[int, int]:
        """Bring the engine up to the features; return how many rows were added, and deleted.

        Raises:
            UserError: it holds rows of other features, or refuses.
        """
        live = np.flatnonzero(self.features.live)
        with self._lock:
            held, counts = held_rows(self.features, *self.engine.held())
            gone = held[~self.features.live[held] | (counts > 1)]  # two builds at once may add a row twice
            missing = np.setdiff1d(live, held[counts == 1])
            self.engine.delete(gone)
            self.engine.add(missing)
            self.engine.finish()
            self._missing = None
        return len(missing), len(gone)

    def check_model(self, model: Embedder) -> None:
        """Raise a UserError unless the index is of this model, as far as both say."""
        manifest = self.features.manifest
        if model.origin and manifest.model and (difference := difference_of_models(manifest.model, model.origin)):
            raise UserError(f"{self.features.folder} is of another model: {difference}: name its workdir and step")

    def _checked(self, tokens: Float[np.ndarray, "t d"]) -> Float[np.ndarray, "t d"]:
        tokens = np.asarray(tokens, np.float32)
        dimension = self.features.manifest.dimension
        if tokens.ndim != 2 or not len(tokens) or tokens.shape[1] != dimension:
            raise UserError(
                f"a query is tokens of dimension {dimension}, [t, {dimension}], but not {list(tokens.shape)}"
            )
        if not np.isfinite(tokens).all():
            raise UserError("the tokens of the query hold numbers that are not finite")
        return tokens

    def _hits(self, query: Query, rows: Int[np.ndarray, " n"], like: bool, top: int) -> list[Hit]:
        """Return the best of some rows as hits, by the scores of the definition; one whose tokens hold no finite numbers is none."""
        to_row, to_query = (scores[0] for scores in scores_of(self.features, query.tokens, rows))
        scores = (to_row + to_query) / 2 if like else to_row
        scores = np.where(np.isfinite(to_row) & np.isfinite(to_query), scores, -np.inf)
        images, texts = (to_query, to_row) if self.features.manifest.side == "image" else (to_row, to_query)
        order = [n for n in np.lexsort((rows, -scores))[:top] if scores[n] > -np.inf]
        vectors = self.features.pooled(rows[order]).astype(np.float64)  # in which no sum is too large
        vectors = np.nan_to_num(vectors, posinf=0.0, neginf=0.0)  # JSON knows numbers only
        pooled = (vectors * unit(query.tokens.mean(axis=0))).sum(axis=1)
        fields = self.features.fields(rows[order])
        return [
            Hit(
                row=int(rows[n]), image_to_text=float(images[n]), text_to_image=float(texts[n]), pooled=float(cosine),
                score=float(scores[n]), **{name: of_row[name] for name in RECORD},
            )
            for n, cosine, of_row in zip(order, pooled, fields)
        ]  # fmt: skip


def check_counts(top: int, candidates: int | None) -> None:
    """Raise a UserError if a search cannot give so many hits, or compare so many rows."""
    for name, value, most in (("top", top, MAX_TOP), ("candidates", candidates, MAX_CANDIDATES)):
        if value is not None and not 1 <= value <= most:
            raise UserError(f"{name}={value} must be from 1 to {most}")


def open_index(folder: str | Path, engine: str = "exact", **options: Any) -> Index:
    """Return the features in a folder as an index.

    Args:
        engine: "exact" compares all rows, block by block; see engines/ for those past memory.
        options: of the engine.

    Raises:
        UserError: no features there, no such engine or option, or it cannot be reached.
    """
    return Index(open_features(folder), engine, **options)
