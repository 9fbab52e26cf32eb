"""The order: every record once per pass, shares kept at every moment, nothing shared by chance."""

import numpy as np
import pytest
from conftest import whole_tier
from hypothesis import given
from hypothesis import strategies as st

from filip_jax.data.order import SHUFFLES, Order, Part, _keys, permute
from filip_jax.errors import UserError

shards = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any)


def order(*sizes, weights=None, seed=0, shuffle="global", block_size=7):
    parts = [Part(f"part{n}", np.array(each), 1.0 if weights is None else weights[n]) for n, each in enumerate(sizes)]
    return Order(parts, seed=seed, shuffle=shuffle, block_size=block_size)


@given(size=st.integers(1, 5000), seed=st.integers(0, 2**32))
def test_a_permutation_meets_every_place_once(size, seed):
    keys = _keys(8, seed)
    assert sorted(permute(n, size, keys) for n in range(size)) == list(range(size))


def test_permutations_of_few_are_all_about_as_likely():
    count = 4800 if whole_tier() else 2400
    keys = (_keys(8, "test", seed) for seed in range(count))
    drawn = [tuple(permute(n, 4, each) for n in range(4)) for each in keys]
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    expected = count / 24
    assert len(counts) == 24 and ((counts - expected) ** 2 / expected).sum() < 50  # chi-squared, 23 degrees of freedom


def test_where_a_record_stands_says_nothing_about_its_neighbour():
    places = np.array([permute(n, 50_000, _keys(8, 1)) for n in range(20_000)])
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.03
    assert abs(np.diff(places)).min() >= 1 and np.histogram(places, 10, (0, 50_000))[0].std() < 120


@given(sizes=shards, shuffle=st.sampled_from(SHUFFLES), block_size=st.integers(1, 60), seed=st.integers(0, 2**31))
def test_each_pass_visits_every_record_once(sizes, shuffle, block_size, seed):
    one, size = order(sizes, shuffle=shuffle, block_size=block_size, seed=seed), sum(sizes)
    visits = [one.visit(n) for n in range(3 * size)]
    for epoch in range(3):
        of_epoch = visits[epoch * size : (epoch + 1) * size]
        assert {visit.epoch for visit in of_epoch} == {epoch}
        assert sorted(visit.index for visit in of_epoch) == list(range(size))


@given(
    sizes=st.lists(shards, min_size=1, max_size=5),
    weights=st.lists(st.floats(1e-3, 1e3), min_size=5, max_size=5),
    shuffle=st.sampled_from(SHUFFLES),
)
def test_parts_have_their_shares_and_pass_over_their_own_records(sizes, weights, shuffle):
    mixture = order(*sizes, weights=weights[: len(sizes)], shuffle=shuffle)
    visits = [mixture.visit(n) for n in range(600)]
    shares = np.array(weights[: len(sizes)]) / sum(weights[: len(sizes)])
    taken = np.cumsum(np.eye(len(sizes), dtype=int)[[visit.part for visit in visits]], axis=0)
    assert np.abs(taken - np.arange(1, 601)[:, None] * shares).max() <= len(sizes)
    for part, size in enumerate(map(sum, sizes)):
        mine = [visit for visit in visits if visit.part == part]
        assert [visit.epoch for visit in mine] == [n // size for n in range(len(mine))]
        for epoch in range(len(mine) // size):
            assert sorted(v.index for v in mine if v.epoch == epoch) == list(range(size))


def test_records_weighed_alike_end_their_passes_together():
    sizes = [[30, 12], [1], [500]]
    mixture = order(*sizes, weights=[sum(each) for each in sizes])
    for epoch in range(3):
        visits = {mixture.visit(n) for n in range(543 * epoch, 543 * (epoch + 1))}
        assert {visit.epoch for visit in visits} == {epoch} and len(visits) == 543


def test_no_two_seeds_sources_or_passes_share_an_order():
    def first(one, part=0, epoch=0):
        return tuple(one._record(part, epoch, n) for n in range(12))

    for shuffle in SHUFFLES:
        found = [
            first(order([400, 600], [400, 600], seed=seed, shuffle=shuffle, block_size=100), part, epoch)
            for seed in range(6) for part in range(2) for epoch in range(6)
        ]  # fmt: skip
        assert len(set(found)) == len(found)


def test_blocks_read_neighbouring_shards_together():
    sizes = [50] * 40
    blocks, everything = order(sizes, shuffle="block", block_size=200), order(sizes)
    visits = [blocks.visit(n).index // 50 for n in range(2000)]
    assert max(len(set(visits[n : n + 200])) for n in range(0, 2000, 200)) <= 4
    assert len({tuple(sorted(set(visits[n : n + 200]))) for n in range(0, 2000, 200)}) == 10
    assert sorted(set(visits[:200])) != list(range(min(visits[:200]), min(visits[:200]) + 4))
    everywhere = [everything.visit(n).index // 50 for n in range(200)]
    assert len(set(everywhere)) > 20


def test_a_shard_longer_than_a_block_is_cut():
    one = order([1000], shuffle="block", block_size=100)
    visits = [one.visit(n).index // 100 for n in range(1000)]
    blocks = [visits[n] for n in range(0, 1000, 100)]
    assert sorted(blocks) == list(range(10)) != blocks


def test_substitutes_are_of_the_same_part_and_the_same_always():
    mixture = order([50, 50], [30], weights=[2.0, 1.0], seed=5)
    drawn = [mixture.substitute(n, attempt) for n in range(300) for attempt in (1, 2)]
    again = order([50, 50], [30], weights=[2.0, 1.0], seed=5)
    assert drawn == [again.substitute(n, attempt) for n in range(300) for attempt in (1, 2)]
    expected = [mixture.visit(n) for n in range(300)]
    assert [(visit.part, visit.epoch) for visit in drawn[::2]] == [(visit.part, visit.epoch) for visit in expected]
    assert len({visit.index for visit in drawn if visit.part == 0}) > 90
    assert sum(first == second for first, second in zip(drawn[::2], drawn[1::2])) < 20


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(shuffle="none"), "data.shuffle='none' is not one of global, block"),
        (dict(block_size=0), "data.block_size=0"),
        (dict(weights=[0.0]), "weight=0.0 must be above 0"),
        (dict(weights=[float("nan")]), "weight=nan"),
    ],
)
def test_what_is_no_order(change, message):
    with pytest.raises(UserError, match=message):
        order([5], **change)


def test_more_records_than_an_order_can_number():
    for sizes in ([0, 0], [2**31, 2**31, 1]):
        with pytest.raises(UserError, match="1 to 2\\^32"):
            order(sizes)
    assert 0 <= order([2**31, 2**31]).visit(12345).index < 2**32
