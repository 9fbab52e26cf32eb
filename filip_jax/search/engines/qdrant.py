"""Qdrant: a collection on a server or a cluster of them, each row a point with its tokens and its pooled vector.

The server finds the rows of the nearest pooled vectors, and orders these by MaxSim; whoever searches scores them by the
definition. `url=":memory:"` is qdrant-client's own imitation of a server, for tests.
"""

import hashlib
import os
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from filip_jax.errors import UserError, one_line
from filip_jax.extras import extra_module
from filip_jax.features import Features
from filip_jax.features.writer import unit
from filip_jax.search.engines.parts import batches, marks
from filip_jax.search.filters import Filter, Join, Not, allowed_rows
from filip_jax.small_files import is_whole

KEY = "QDRANT_API_KEY"  # of the environment
MEMORY = ":memory:"
BATCH_BYTES = 1 << 23  # of vectors in a request; a server takes 32 MB, and JSON has several characters a number
BATCH = 512  # points in a request
MAX_ROW = 1 << 48
PAGE = 10_000  # points whose marks are read at once
TIMEOUT = 120  # seconds
MAX_NAMED = 100_000  # rows that a filter names one by one
PREFETCHED = 5  # times as many rows by pooled vectors as are ordered by their tokens


class Qdrant:
    """See `Engine`.

    Args:
        url: of the server; its key is read from the environment, QDRANT_API_KEY.
        collection: its name.
    """

    candidates: int | None = 1000

    def __init__(self, features: Features, url: str, collection: str):
        self.features, self.url, self.collection = features, url, collection
        library = extra_module("qdrant_client", "qdrant", "the engine qdrant needs")
        self.models = library.models
        where = (
            {"location": MEMORY}
            if url == MEMORY
            else {"url": url, "api_key": os.environ.get(KEY), "timeout": TIMEOUT, "check_compatibility": False}
        )
        self.client = self._tried(lambda: library.QdrantClient(**where))
        self.exists = bool(self._tried(lambda: self.client.collection_exists(collection)))

    def held(self) -> tuple[Int[np.ndarray, " n"], list[str]]:
        if not self.exists:
            return np.zeros(0, np.int64), []
        rows, parts, offset = list[int](), list[str](), None
        while True:
            points, offset = self._tried(
                lambda offset=offset: self.client.scroll(
                    self.collection, limit=PAGE, offset=offset, with_payload=["part"], with_vectors=False
                )
            )
            rows += [point.id if is_whole(point.id, MAX_ROW) else -1 for point in points]  # others may be UUIDs
            parts += [str((point.payload or {}).get("part", "")) for point in points]
            if offset is None:
                return np.array(rows, np.int64), parts

    def add(self, rows: Int[np.ndarray, " n"]) -> None:
        if len(rows) and not self.exists:
            self.exists = bool(self._tried(self._create))
        manifest = self.features.manifest
        size = max(1, min(BATCH, BATCH_BYTES // (4 * manifest.dimension * (manifest.max_tokens + 1))))
        for batch, tokens in batches(self.features, rows, size):
            records = zip(batch.tolist(), tokens, self.features.fields(batch), marks(self.features, batch))
            points = [
                self.models.PointStruct(
                    id=row,
                    vector={"tokens": each.tolist(), "pooled": unit(each.mean(axis=0)).tolist()},
                    payload={"part": part, **fields},
                )
                for row, each, fields, part in records
            ]
            self._tried(lambda points=points: self.client.upsert(self.collection, points=points, wait=True))

    def delete(self, rows: Int[np.ndarray, " n"]) -> None:
        for start in range(0, len(rows), PAGE):
            chosen = self.models.PointIdsList(points=rows[start : start + PAGE].tolist())
            self._tried(lambda chosen=chosen: self.client.delete(self.collection, points_selector=chosen, wait=True))

    def finish(self) -> None:
        """Do nothing: the server indexes by itself."""

    def search(self, tokens: Float[np.ndarray, "t d"], k: int, where: Filter | None) -> Int[np.ndarray, " n"]:
        if not self.exists:
            return np.zeros(0, np.int64)
        chosen = None if where is None else self._chosen(where)
        pooled = self.models.Prefetch(
            query=unit(tokens.mean(axis=0)).tolist(), using="pooled", limit=PREFETCHED * k, filter=chosen
        )
        answer = self._tried(
            lambda: self.client.query_points(
                self.collection, prefetch=pooled, query=tokens.tolist(), using="tokens", limit=k, query_filter=chosen,
                with_payload=False,
            )
        )  # fmt: skip
        return np.array([point.id for point in answer.points if is_whole(point.id, MAX_ROW)], np.int64)

    def get(self, rows: Int[np.ndarray, " n"]) -> list[Float[np.ndarray, "_ d"]]:
        points = self._tried(lambda: self.client.retrieve(self.collection, ids=rows.tolist(), with_vectors=["tokens"]))
        tokens = {int(point.id): np.array(point.vector["tokens"], np.float32) for point in points}
        return [tokens[row] for row in rows.tolist()]

    def _create(self):
        models, size = self.models, self.features.manifest.dimension
        tokens = models.VectorParams(
            size=size,
            distance=models.Distance.DOT,  # tokens have length 1; a mean of several has been brought to it
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            hnsw_config=models.HnswConfigDiff(m=0),  # they only order what the pooled vectors find
            datatype=models.Datatype.FLOAT16,
            on_disk=True,
        )
        pooled = models.VectorParams(size=size, distance=models.Distance.COSINE)
        return self.client.create_collection(self.collection, vectors_config={"tokens": tokens, "pooled": pooled})

    def _chosen(self, where: Filter) -> Any:
        """Return a filter that lets through what `where` holds for; it has no word for a part of a text, so rows are named."""
        if not has_contains(where):
            return self.models.Filter(must=[self._condition(where)])
        rows = np.flatnonzero(allowed_rows(self.features, where))
        if len(rows) > MAX_NAMED:
            return None  # whoever searches leaves out the others
        return self.models.Filter(must=[self.models.HasIdCondition(has_id=rows.tolist())])

    def _condition(self, tree: Filter) -> Any:
        models = self.models
        match tree:
            case Not(part):
                return models.Filter(must_not=[self._condition(part)])
            case Join(word, parts):
                conditions = [self._condition(part) for part in parts]
                return models.Filter(must=conditions) if word == "and" else models.Filter(should=conditions)
        column, first, is_text = tree.column, tree.values[0], isinstance(tree.values[0], str)

        def field(**how):
            return models.FieldCondition(key=column, **how)

        match tree.operator:
            case "in" if is_text:
                return field(match=models.MatchAny(any=list(tree.values)))
            case "in":
                return models.Filter(should=[field(range=models.Range(gte=each, lte=each)) for each in tree.values])
            case "=" | "!=":
                equal = field(match=models.MatchValue(value=first)) if is_text else field(
                    range=models.Range(gte=first, lte=first)
                )  # fmt: skip
                return equal if tree.operator == "=" else models.Filter(must_not=[equal])
        return field(range=models.Range(**{RANGES[tree.operator]: first}))

    def _tried(self, action) -> Any:
        try:
            return action()
        except Exception as error:  # of many types: of the network, the server and the client
            raise UserError(f"qdrant at {self.url}: {one_line(str(error))[:500]}") from error


def has_contains(tree: Filter) -> bool:
    """Return whether a filter looks for a part of a text."""
    match tree:
        case Not(part):
            return has_contains(part)
        case Join(_, parts):
            return any(map(has_contains, parts))
    return tree.operator == "contains"


RANGES = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}


def open_qdrant(features: Features, *, url: str = "", collection: str = "") -> Qdrant:
    """Return Qdrant as an engine.

    Args:
        url: of the server, as http://localhost:6333.
        collection: its name; by default one made of the features' first part.

    Raises:
        UserError: no url, the extra `qdrant` is not installed, or the server does not answer.
    """
    if not url:
        raise UserError("the engine qdrant needs url=http://HOST:6333, where its server listens")
    first = features.manifest.parts[0].sha256 if features.manifest.parts else ""
    return Qdrant(features, url, collection or f"filip_{hashlib.sha256(first.encode()).hexdigest()[:16]}")
