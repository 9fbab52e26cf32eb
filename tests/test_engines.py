"""Engines past memory: LanceDB in a folder and an emulated bucket, Qdrant in memory; they name what the exact search finds."""

from datetime import timedelta

import numpy as np
import pytest
from conftest import examples
from feature_files import fields_of, manifest_of, tokens_of, write_features
from hypothesis import given
from hypothesis import strategies as st
from test_filters import TREES, holds
from test_search import Scenes, queries, recalls, scenes

from filip_jax.errors import UserError
from filip_jax.evals import retrieval
from filip_jax.features import FeatureWriter, open_features
from filip_jax.search.check import check, sampled
from filip_jax.search.engines import ENGINES, lance
from filip_jax.search.filters import Compare, Join, Not
from filip_jax.search.index import Index, open_index

__all__ = ["scenes"]
ASKED = queries(np.random.default_rng(3), 4)


@pytest.fixture(params=["lance", "qdrant"])
def options(request, tmp_path):
    pytest.importorskip({"lance": "lancedb", "qdrant": "qdrant_client"}[request.param])
    return {"lance": dict(engine="lance"), "qdrant": dict(engine="qdrant", url=":memory:")}[request.param]


def grown(folder, rows, first, **options):
    """Add rows to features, as a later embedding does."""
    manifest = manifest_of(**options)
    tokens, mask = tokens_of(manifest, rows, seed=9)
    with FeatureWriter(folder, manifest) as writer:
        writer.add(tokens, mask, fields_of(rows, first))
    return open_features(folder)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_all_candidates_give_the_exact_hits(tmp_path, options, dtype):
    features = write_features(tmp_path / "index", 30, removed=[3, 4, 17], dtype=dtype)
    index, exact = Index(features, **options), Index(features, "exact")
    assert index.build() == (27, 0) and index.build() == (0, 0) and not len(index.missing())
    for query in ASKED:
        assert index.search(tokens=query, top=30) == exact.search(tokens=query, top=30)
        where = 'width > 645 and (key contains "2" or shard in ("00001.tar")) and not orientation = 3'
        for each in (where, 31 * "not " + "width > 645"):
            assert index.search(tokens=query, where=each) == exact.search(tokens=query, where=each)
    rows = np.array([20, 1])
    for stored, held in zip(exact.engine.get(rows), index.engine.get(rows)):
        np.testing.assert_allclose(stored, held, atol=1e-3)


def test_rows_that_an_engine_lacks_are_found_all_the_same_and_built_later(tmp_path, options):
    index = Index(write_features(tmp_path / "index", 20), **options)
    index.build()
    later = Index.__new__(Index)
    later.__dict__.update(index.__dict__)
    later.features = grown(tmp_path / "index", 10, 20)
    later.engine.features, later._missing = later.features, None
    exact = open_index(tmp_path / "index")
    with pytest.warns(UserWarning, match="10 of 30 rows are not in the engine yet"):
        assert later.search(tokens=ASKED[0], top=30) == exact.search(tokens=ASKED[0], top=30)
    with FeatureWriter(tmp_path / "index", manifest_of()) as writer:
        writer.flush(lambda now: now.with_removed(np.array([0, 25])))
    later.features = later.engine.features = open_features(tmp_path / "index")
    later._missing = None
    assert later.build() == (9, 1) and sorted(later.engine.held()[0].tolist()) == [*range(1, 25), *range(26, 30)]
    assert later.search(tokens=ASKED[1], top=30) == open_index(tmp_path / "index").search(tokens=ASKED[1], top=30)


def test_an_engine_of_other_features_is_refused(tmp_path, options):
    index = Index(write_features(tmp_path / "one", 10), **options)
    index.build()
    index.features = index.engine.features = write_features(tmp_path / "two", 10, seed=1)
    index._missing = None
    for action in (index.build, lambda: index.search(tokens=ASKED[0])):
        with pytest.raises(UserError, match="holds rows of other features than"):
            action()


def test_search_through_an_engine_gives_the_recall_of_the_evaluation(scenes, options, tmp_path):
    model, images, texts = scenes
    expected = retrieval.evaluate(model, Scenes(), tmp_path, examples=10)
    through = [Index(each.features, **options) for each in (images, texts)]
    for index in through:
        index.build()
    found = recalls(model, *through, Scenes())
    assert found == {name: expected[name] for name in found} and len(found) == 6


@examples(40)
@given(TREES)
def test_filters_mean_the_same_in_every_engine(engines, tree):
    _, others, rows = engines
    right = [n for n, row in enumerate(rows) if holds(tree, row)]
    for engine in others:
        assert sorted(engine.search(ASKED[0], 100, tree).tolist()) == right, type(engine).__name__


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """(an index, its other engines, its rows) with captions and keys that need quotation marks."""
    pytest.importorskip("lancedb"), pytest.importorskip("qdrant_client")
    folder, rng = tmp_path_factory.mktemp("filters"), np.random.default_rng(0)
    manifest = manifest_of()
    tokens, mask = tokens_of(manifest, 40)
    texts = ["".join(rng.choice([*"abü中'\"\\%_ \n()"], rng.integers(0, 4))) for _ in range(80)]
    rows = [dict(key=texts[n], caption=texts[40 + n], width=int(rng.integers(-50, 50)), index=int(rng.integers(-50, 50)))
            for n in range(40)]  # fmt: skip
    with FeatureWriter(folder / "index", manifest) as writer:
        writer.add(tokens, mask, rows)
    index = open_index(folder / "index")
    others = [ENGINES["lance"](index.features), ENGINES["qdrant"](index.features, url=":memory:")]
    for engine in others:
        engine.add(np.arange(40))
    return index, others, rows


def test_sql_quotes_what_a_filter_holds():
    tree = Join("and", (Compare("key", "=", ("it's",)), Not(Compare("width", "in", (1, 2.5)))))
    assert lance.to_sql(Not(Not(tree))) == lance.to_sql(tree)
    assert lance.to_sql(tree) == "((`key` = 'it''s') AND (NOT (CAST(`width` AS DOUBLE) IN (1.0, 2.5))))"


def test_an_index_of_many_tokens_names_good_candidates(tmp_path, monkeypatch):
    """Its own distances guess: the exact scores come from the features."""
    pytest.importorskip("lancedb")
    monkeypatch.setattr(lance, "MIN_INDEXED", 1)
    features = write_features(tmp_path / "index", 400, part=200)
    index, exact = Index(features, "lance"), Index(features, "exact")
    index.build()
    assert index.engine.table.list_indices()
    for query in ASKED:
        hits, right = (each.search(tokens=query, top=10, candidates=n) for each, n in ((index, 200), (exact, None)))
        assert hits[0] == right[0] and len({*hits} & {*right}) >= 5
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    parts = lance.partitions(index.engine._tokens())
    shares = {
        probes: check(exact, Index(features, "lance", probes=probes), sampled(exact, 20), 100).recall[10]
        for probes in (1, parts)
    }
    assert parts > 1 and shares[1] < shares[parts]  # an option that does something


def test_what_a_killed_build_left_is_completed(tmp_path, options):
    features = write_features(tmp_path / "index", 20)
    index = Index(features, **options)
    index.engine.add(np.arange(7))
    assert index.build() == (13, 0)
    assert index.search(tokens=ASKED[0], top=20) == Index(features, "exact").search(tokens=ASKED[0], top=20)


def test_rows_that_an_engine_lacks_are_said_once(tmp_path):
    pytest.importorskip("lancedb")
    index = Index(write_features(tmp_path / "index", 5), "lance")
    with pytest.warns(UserWarning, match="5 of 5 rows are not in the engine yet") as warned:
        index.search_all([index.query(tokens=each) for each in ASKED])
        index.search(tokens=ASKED[0])
    assert len(warned) == 1


def test_versions_of_a_small_table_go(tmp_path, monkeypatch):
    pytest.importorskip("lancedb")
    monkeypatch.setattr(lance, "KEPT", timedelta(0))
    index = Index(write_features(tmp_path / "index", 9), "lance")
    for row in range(3):
        with pytest.warns(UserWarning, match="cleanup_older_than"):
            index.build()
        index.features.live[row] = False
    assert len(index.engine.table.list_versions()) == 1
    assert [hit.row for hit in index.search(tokens=ASKED[0], top=9)] == [
        hit.row for hit in Index(index.features, "exact").search(tokens=ASKED[0], top=9)
    ]


def test_a_search_makes_nothing(tmp_path):
    pytest.importorskip("lancedb")
    features = write_features(tmp_path / "index", 5)
    before = sorted((tmp_path / "index").rglob("*"))
    with pytest.warns(UserWarning, match="5 of 5 rows are not in the engine yet"):
        hits = Index(features, "lance").search(tokens=ASKED[0])
    assert hits == Index(features, "exact").search(tokens=ASKED[0])
    assert sorted((tmp_path / "index").rglob("*")) == before


def test_what_was_added_before_a_kill_stays(tmp_path, monkeypatch):
    pytest.importorskip("lancedb")
    monkeypatch.setattr(lance, "COMMIT", 8)
    features = write_features(tmp_path / "index", 20, part=20)
    index, batches = Index(features, "lance"), lance.batches
    monkeypatch.setattr(
        lance, "batches", lambda _, rows, size: batches(features, rows, size) if rows[0] < 16 else 1 / 0
    )
    with pytest.raises(UserError, match="division by zero"):
        index.build()
    assert sorted(Index(features, "lance").engine.held()[0].tolist()) == list(range(16))


def test_rows_of_two_builds_at_a_time_are_held_once_by_the_next(tmp_path):
    pytest.importorskip("lancedb")
    features = write_features(tmp_path / "index", 10)
    first, second = (Index(features, "lance") for _ in range(2))
    first.build()
    second.engine.table = first.engine.table
    second.engine.add(np.arange(4))
    assert len(first.engine.held()[0]) == 14 and first.build() == (4, 4)
    assert sorted(first.engine.held()[0].tolist()) == list(range(10))


@pytest.mark.slow
def test_a_reader_goes_on_when_builds_have_removed_its_version(tmp_path, monkeypatch):
    pytest.importorskip("lancedb")
    monkeypatch.setattr(lance, "MIN_INDEXED", 1)
    monkeypatch.setattr(lance, "KEPT", timedelta(0))
    Index(features := write_features(tmp_path / "index", 300, part=300), "lance").build()
    readers = [Index(features, "lance") for _ in range(2)]
    readers[0].search(tokens=ASKED[0])
    for first in (300, 400, 500):
        with pytest.warns(UserWarning, match="cleanup_older_than"):
            Index(grown(tmp_path / "index", 100, first), "lance").build()
    for reader in readers:
        rows = [hit.row for hit in reader.search(tokens=ASKED[0], top=300)]
        assert len(rows) > 100 and max(rows) < 300


def test_rows_that_were_added_later_are_left_to_those_who_see_them(tmp_path, options):
    features = write_features(tmp_path / "index", 10)
    index = Index(features, **options)
    index.engine.features = grown(tmp_path / "index", 5, 10)
    index.engine.add(np.arange(15))
    assert index.search(tokens=ASKED[0], top=20) == Index(features, "exact").search(tokens=ASKED[0], top=20)
    assert index.build() == (0, 0) and len(index.engine.held()[0]) == 15


def test_more_hits_than_an_engine_names_by_itself(tmp_path, monkeypatch):
    pytest.importorskip("lancedb")
    monkeypatch.setattr(lance, "MIN_CANDIDATES", 3)
    features = write_features(tmp_path / "index", 12)
    index = Index(features, "lance")
    index.build()
    assert index.search(tokens=ASKED[0], top=9) == Index(features, "exact").search(tokens=ASKED[0], top=9)
    assert len(index.search(tokens=ASKED[0], top=9, candidates=4)) == 9
    monkeypatch.setattr(lance, "CANDIDATES_SHARE", 0.5)
    assert (index.engine.candidates, Index(features, "lance").engine.candidates) == (3, 6)  # the more rows, the more


def test_a_place_of_something_else_is_refused(tmp_path):
    lancedb = pytest.importorskip("lancedb")
    lancedb.connect(str(tmp_path / "table")).create_table(lance.TABLE, data=[{"a": 1}])
    features = write_features(tmp_path / "index", 3)
    with pytest.raises(UserError, match="holds a table rows of something else"):
        Index(features, "lance", uri=str(tmp_path / "table"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="lance: the table in"):
        Index(features, "lance", uri=str(tmp_path / "file"))
    with pytest.raises(UserError, match="needs url="):
        Index(features, "qdrant")
    pytest.importorskip("qdrant_client")
    with pytest.raises(UserError, match="qdrant at http://127.0.0.1:9"):
        Index(features, "qdrant", url="http://127.0.0.1:9")


@given(st.integers(0, 10**9))
def test_an_index_has_some_parts_and_looks_into_some(tokens):
    parts = lance.partitions(tokens)
    assert parts & (parts - 1) == 0 and 1 <= lance.probes(parts) <= parts
    assert tokens < 64 or 0.5 <= parts / (tokens**0.5 / 4) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_table_in_a_bucket_is_found_by_another_reader(tmp_path, bucket):
    pytest.importorskip("lancedb")
    features = write_features(tmp_path / "index", 20)
    where = dict(engine="lance", uri=f"{bucket}/table")
    assert Index(features, **where).build() == (20, 0)
    reader = open_index(tmp_path / "index", **where)
    assert not len(reader.missing())
    assert reader.search(tokens=ASKED[0], top=20) == Index(features, "exact").search(tokens=ASKED[0], top=20)


def test_rows_that_two_builds_added_are_found_and_held_once(tmp_path):
    pytest.importorskip("lancedb")
    features = write_features(tmp_path / "index", 20)
    index, exact = Index(features, "lance"), Index(features, "exact")
    index.engine.add(np.arange(20))
    index.engine.add(np.arange(5, 20))
    with pytest.warns(UserWarning, match="15 of 20 rows"):
        assert index.search(tokens=ASKED[0], top=20, candidates=35) == exact.search(tokens=ASKED[0], top=20)
    assert index.build() == (15, 15) and sorted(index.engine.held()[0].tolist()) == list(range(20))


def test_a_damaged_table_is_one_line_with_what_to_do(tmp_path):
    pytest.importorskip("lancedb")
    features = write_features(tmp_path / "index", 5)
    Index(features, "lance").build()
    (file,) = (tmp_path / "index/lance").rglob("data/*.lance")
    file.unlink()
    with pytest.raises(
        UserError,
        match=r"Not found: \S+\.lance; one that is damaged is made again by filip index build, once rows.lance",
    ):
        Index(features, "lance").build()


def test_an_index_of_another_column_is_none_of_the_tokens(tmp_path, monkeypatch):
    """Others may look for keys in the table, too."""
    pytest.importorskip("lancedb")
    monkeypatch.setattr(lance, "MIN_INDEXED", 100)
    index = Index(write_features(tmp_path / "index", 20), "lance")
    index.engine.add(np.arange(20))
    index.engine.table.create_index("key", config=pytest.importorskip("lancedb.index").BTree())
    index.engine.finish()
    assert {column for each in index.engine.table.list_indices() for column in each.columns} == {"key", "tokens"}


@pytest.mark.parametrize("ids", [["64c3b869-9d38-4588-b027-3dc4fb2997d9"], [2**63 + 5], [3, 2**62]])
def test_a_collection_of_something_else_is_refused(tmp_path, ids):
    models = pytest.importorskip("qdrant_client").models
    index = Index(write_features(tmp_path / "index", 3), "qdrant", url=":memory:")
    client, name = index.engine.client, index.engine.collection
    client.create_collection(name, vectors_config=models.VectorParams(size=8, distance=models.Distance.DOT))
    client.upsert(name, [models.PointStruct(id=each, vector=[0.1] * 8) for each in ids])
    index.engine.exists = True
    for action in (index.build, lambda: index.search(tokens=ASKED[0])):
        with pytest.raises(UserError, match="holds rows of other features than"):
            action()


def test_a_table_of_other_types_or_behind_a_link_is_refused(tmp_path):
    lancedb, features = pytest.importorskip("lancedb"), write_features(tmp_path / "index", 3)
    index = Index(features, "lance", uri=str(tmp_path / "mine"))
    index.build()
    table = index.engine.table.to_arrow()
    lancedb.connect(str(tmp_path / "theirs")).create_table(
        lance.TABLE, table.set_column(0, "row", table["row"].cast("string"))
    )
    with pytest.raises(UserError, match="holds a table rows of something else"):
        Index(features, "lance", uri=str(tmp_path / "theirs"))
    (tmp_path / "index" / lance.FOLDER).symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="is a link, which is not followed"):
        Index(features, "lance")
