"""LanceDB: a table in a folder or a bucket, with an index of 1-bit tokens once there are many.

The distances of such an index are not MaxSim: what it has not seen of a row is guessed (XTR, arXiv 2304.01982). So it only
names candidates, and whoever searches scores them by the definition.
"""

import math
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from filip_jax.errors import UserError, one_line
from filip_jax.extras import extra_module
from filip_jax.features import Features
from filip_jax.features.manifest import SCALARS
from filip_jax.features.table import schema_of
from filip_jax.search.engines.parts import batches, marks
from filip_jax.search.filters import Filter, Join, Not
from filip_jax.user_paths import from_user, is_remote

TABLE, FOLDER = "rows", "lance"
MIN_INDEXED = 1 << 17  # tokens from which on a table has an index: fewer are compared one by one
BATCH = 512  # rows that are read at once
COMMIT = 1 << 16  # rows after which a build that is killed keeps what it has added
PLACE = re.compile(r"[, ]*/\S+\.rs:\d+:\d+")  # in LanceDB's own source, at the end of its messages
# The rows that its index knows of are ranked roughly, so the more rows there are, the more of them need an exact look:
# benchmarks/results/search_200k_cpu.md, where the share below finds 0.995 of the best ten.
MIN_CANDIDATES, CANDIDATES_SHARE = 1000, 1 / 40
MAX_SAID = 300  # characters of these
KEPT = timedelta(hours=1)  # of old versions of the table: somebody may read them


class Lance:
    """See `Engine`.

    Args:
        uri: folder or bucket of the table, which is made.
        probes: how many of the index's parts a token of the query looks into; 0 chooses by their number.
    """

    def __init__(self, features: Features, uri: str, probes: int):
        self.features, self.uri, self.probes = features, uri, probes
        self.candidates: int | None = max(MIN_CANDIDATES, int(CANDIDATES_SHARE * features.live.sum()))
        self.library = extra_module("lancedb", "search", "the engine lance needs")
        self.kinds = extra_module("lancedb.index", "search", "the engine lance needs")
        self.schema = _schema(features)
        self.storage = _storage(uri)
        self.table: Any = self._tried(self._opened)
        if self.table is not None and self.table.schema != self.schema:
            raise UserError(f"{uri} holds a table {TABLE} of something else: name another place by uri")

    def _opened(self, create: bool = False) -> Any:
        if not create and not is_remote(self.uri) and not os.path.lexists(self.uri):  # to connect would make the folder
            return None
        database = self.library.connect(self.uri, storage_options=self.storage)
        if TABLE in database.list_tables().tables:
            return database.open_table(TABLE)
        return database.create_table(TABLE, schema=self.schema) if create else None

    def held(self) -> tuple[Int[np.ndarray, " n"], list[str]]:
        if self.table is None:
            return np.zeros(0, np.int64), []
        table = self._read(lambda: self.table.search().select(["row", "part"]).limit(None).to_arrow())
        return table["row"].to_numpy(), table["part"].to_pylist()

    def add(self, rows: Int[np.ndarray, " n"]) -> None:
        if not len(rows):
            return
        if self.table is None:
            self.table = self._tried(lambda: self._opened(create=True))
        for start in range(0, len(rows), COMMIT):
            reader = pa.RecordBatchReader.from_batches(self.schema, self._batches(rows[start : start + COMMIT]))
            self._tried(lambda reader=reader: self.table.add(reader))

    def delete(self, rows: Int[np.ndarray, " n"]) -> None:
        for start in range(0, len(rows), BATCH):
            numbers = ", ".join(str(int(row)) for row in rows[start : start + BATCH])
            self._tried(lambda numbers=numbers: self.table.delete(f"`row` IN ({numbers})"))

    def finish(self) -> None:
        """Build the index where tokens are many and there is none; else bring the table up to date."""
        if self.table is None:
            return
        tokens = self._tokens()
        if self._is_indexed() or tokens < MIN_INDEXED:
            self._tried(lambda: self.table.optimize(cleanup_older_than=KEPT))
        else:
            config = self.kinds.IvfRq(distance_type="cosine", num_partitions=partitions(tokens))
            self._tried(lambda: self.table.create_index("tokens", config=config))

    def search(self, tokens: Float[np.ndarray, "t d"], k: int, where: Filter | None) -> Int[np.ndarray, " n"]:
        def ask():
            query = self.table.search(tokens.astype(np.float32), vector_column_name="tokens", query_type="vector")
            query = query.distance_type("cosine").select(["row", "_distance"]).limit(k)
            if where is not None:
                query = query.where(to_sql(where), prefilter=True)
            if self._is_indexed():
                query = query.nprobes(self.probes or probes(partitions(self._tokens())))
            return query.to_arrow()

        return np.zeros(0, np.int64) if self.table is None else self._read(ask)["row"].to_numpy()

    def get(self, rows: Int[np.ndarray, " n"]) -> list[Float[np.ndarray, "_ d"]]:
        numbers = ", ".join(str(int(row)) for row in rows)
        query = self.table.search().where(f"`row` IN ({numbers})").select(["row", "tokens"]).limit(None)
        tokens = {
            row: np.array(each, np.float32) for row, each in zip(*self._tried(query.to_arrow).to_pydict().values())
        }
        return [tokens[row] for row in rows.tolist()]

    def _batches(self, rows) -> Iterator[pa.RecordBatch]:
        for batch, tokens in batches(self.features, rows, BATCH):
            fields = self.features.fields(batch)
            offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int32)
            vectors = pa.FixedSizeListArray.from_arrays(
                pa.array(np.concatenate(tokens).astype(np.float16).reshape(-1)), self.features.manifest.dimension
            )
            columns = {
                "row": batch,
                "part": marks(self.features, batch),
                **{name: [each[name] for each in fields] for name in SCALARS},
                "tokens": pa.ListArray.from_arrays(offsets, vectors),
            }
            arrays = [pa.array(columns[each.name], each.type) if each.name != "tokens" else columns["tokens"].cast(each.type)
                      for each in self.schema]  # fmt: skip
            yield pa.record_batch(arrays, schema=self.schema)

    def _tokens(self) -> int:
        """Return about how many tokens the table has."""
        return int(self._tried(self.table.count_rows)) * self.features.manifest.max_tokens

    def _is_indexed(self) -> bool:
        return any("tokens" in index.columns for index in self._tried(self.table.list_indices))  # others may index keys

    def _read(self, action) -> Any:
        """Return what a reader gives; of the newest version, if another build has removed the one that was opened."""
        try:
            return action()
        except Exception:  # of many types, as below
            self._tried(self.table.checkout_latest)
            return self._tried(action)

    def _tried(self, action) -> Any:
        try:
            return action()
        except UserError:
            raise
        except Exception as error:  # of many types: what its Rust code met, as a text
            said = PLACE.sub("", one_line(str(error)))[:MAX_SAID]
            raise UserError(
                f"lance: the table in {self.uri}: {said}; one that is damaged is made again by filip index build, once "
                f"{TABLE}.lance is removed there"
            ) from error


def open_lance(features: Features, *, uri: str = "", probes: int = 0) -> Lance:
    """Return LanceDB as an engine.

    Args:
        uri: a folder, s3://… or gs://…; by default the folder `lance` within that of the features.
        probes: see `Lance`.

    Raises:
        UserError: the extra `search` is not installed, the default folder is a link, or the table cannot be opened.
    """
    if not uri and (features.folder / FOLDER).is_symlink():
        raise UserError(f"lance: {features.folder / FOLDER} is a link, which is not followed: name its place by uri")
    place = uri if is_remote(uri) else str(Path(from_user(uri) if uri else features.folder / FOLDER).resolve())
    return Lance(features, place, probes)


def _storage(uri: str) -> dict[str, str]:
    """Return options for where s3fs and TensorStore go, too: AWS, or the endpoint of the environment."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not uri.startswith("s3://") or not endpoint:
        return {}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return {"endpoint": endpoint, "allow_http": str(endpoint.startswith("http:")).lower(), "aws_region": region}


def partitions(tokens: int) -> int:
    """Return how many parts an index of so many tokens has: a power of two near a quarter of the root of their number."""
    return 1 << max(0, round(math.log2(max(math.sqrt(tokens) / 4, 1))))


def probes(parts: int) -> int:
    """Return how many parts a token of a query looks into."""
    return min(parts, max(16, parts // 16))


def to_sql(tree: Filter) -> str:
    """Return a filter as a condition of SQL, names and texts quoted."""
    match tree:
        case Not(Not(part)):  # DataFusion reads no more than some 25 in each other
            return to_sql(part)
        case Not(part):
            return f"(NOT {to_sql(part)})"
        case Join(word, parts):
            return f"({f' {word.upper()} '.join(map(to_sql, parts))})"
    column, values = f"`{tree.column}`", [_literal(value) for value in tree.values]
    if not isinstance(tree.values[0], str):
        column = f"CAST({column} AS DOUBLE)"  # of other types a literal may be none
    match tree.operator:
        case "contains":
            return f"(strpos({column}, {values[0]}) > 0)"
        case "in":
            return f"({column} IN ({', '.join(values)}))"
    return f"({column} {tree.operator} {values[0]})"


def _literal(value: str | float) -> str:
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(float(value))


def _schema(features: Features) -> pa.Schema:
    known = schema_of(features.manifest)
    vector = pa.list_(pa.list_(pa.float16(), features.manifest.dimension))
    columns = [pa.field("row", pa.int64()), pa.field("part", pa.string()), *(known.field(name) for name in SCALARS)]
    return pa.schema([*columns, pa.field("tokens", vector)])
