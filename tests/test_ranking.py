"""Ranks from blocks, against sorts of the whole and numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filip_jax.evals import rates
from filip_jax.inference.ranking import Ranking, chance

rng = np.random.default_rng(0)


def ranked(scores, right, ranks=10, rows=2, columns=3, scale=1.0):
    """A Ranking of a whole matrix, fed in blocks of a random order of columns."""
    scores, right = np.asarray(scores, np.float32), np.asarray(right, bool)
    ranking = Ranking(np.argwhere(right), *scores.shape, ranks=ranks, scale=scale)
    order = np.random.default_rng(0).permutation(scores.shape[1])
    for row in range(0, len(scores), rows):
        for column in range(0, len(order), columns):
            here = np.arange(row, min(row + rows, len(scores))), order[column : column + columns]
            ranking.add(*here, scores[np.ix_(*here)])
    return ranking


@st.composite
def matrices(draw):
    queries, answers = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    right = rng.random((queries, answers)) < draw(st.floats(0.1, 0.9))
    right[np.arange(queries), rng.integers(0, answers, queries)] = True
    return rng.permutation(queries * answers).reshape(queries, answers) / 7, right


@given(matrices(), st.integers(1, 12))
def test_ranks_in_blocks_equal_sorts_of_the_whole(matrix, k):
    scores, right = matrix
    ranking = ranked(scores, right, ranks=k)
    order = np.argsort(-scores, axis=1)
    hits = np.take_along_axis(right, order, axis=1)
    wrong_before = [
        np.cumsum(~row)[row.argmax()] for row in hits
    ]  # of the first right answer; those beside it do not count
    assert ranking.recall(k) == pytest.approx(np.mean([before < k for before in wrong_before]))
    precisions = []
    for row in hits:
        count = row.sum()
        precisions.append(sum(row[: n + 1].mean() for n in range(count) if row[n]) / count)
    assert ranking.average_precision() == pytest.approx(np.mean(precisions))
    assert ranking.r_precision() == pytest.approx(np.mean([row[: row.sum()].mean() for row in hits]))
    logits = 3.0 * scores
    log_probabilities = logits - np.log(np.exp(logits - logits.max()).sum(axis=1, keepdims=True)) - logits.max()
    expected = -np.mean([log_probabilities[n, right[n]].mean() for n in range(len(right))])
    assert ranked(scores, right, scale=3.0).loss() == pytest.approx(expected, rel=1e-5)


def test_by_hand():
    """One query, right answers 0, 1 and 2 of six; their order is 0 (right), 4, 1 (right), 5, 2 (right), 3."""
    ranking = ranked([[0.9, 0.6, 0.3, 0.1, 0.8, 0.5]], [[1, 1, 1, 0, 0, 0]])
    assert ranking.average_precision() == pytest.approx((1 / 1 + 2 / 3) / 3)  # the third comes after the first three
    assert ranking.r_precision() == pytest.approx(2 / 3)
    assert ranking.recall(1) == 1.0
    late = ranked([[0.7, 0.6, 0.3, 0.1, 0.8, 0.9]], [[1, 1, 1, 0, 0, 0]])
    assert [late.recall(k) for k in (1, 2, 3)] == [0.0, 0.0, 1.0]
    assert late.average_precision() == pytest.approx((1 / 3) / 3)


def test_ties_and_nan_count_against_the_model():
    right = np.eye(4, 6)
    assert [ranked(np.zeros((4, 6)), right).recall(k) for k in (1, 5, 6)] == [0.0, 0.0, 1.0]
    assert ranked(np.full((4, 6), np.nan), right).recall(5) == 0.0
    assert ranked(np.full((4, 6), np.nan), right).average_precision() == 0.0
    assert ranked(np.zeros((4, 6)), right).r_precision() == ranked(np.full((4, 6), np.nan), right).r_precision() == 0.0
    assert ranked(np.where(right, np.nan, -1.0), right).recall(5) == 0.0
    assert ranked(np.where(right, np.inf, 1.0), right).recall(1) == 1.0
    assert ranked(np.where(right, 1.0, -np.inf), right).recall(1) == 1.0


@given(st.integers(1, 5), st.integers(5, 12), st.integers(1, 14))
def test_chance_is_what_random_orders_find(rights, answers, k):
    from math import comb

    assert chance(k, [rights], answers) == pytest.approx(
        1 - comb(answers - rights, min(k, answers)) / comb(answers, min(k, answers))
    )
    assert chance(k, [rights, 1], answers) == pytest.approx((chance(k, [rights], answers) + min(k / answers, 1)) / 2)


def test_memory_grows_with_the_queries_alone():
    small, large = (Ranking(np.array([[0, 0], [1, 1]]), 2, answers, ranks=10) for answers in (10, 10**7))
    kept = [sum(x.nbytes for x in vars(r).values() if isinstance(x, np.ndarray)) for r in (small, large)]
    assert kept[0] == kept[1]


def test_the_interval_of_a_rate_counts_groups_that_are_alike_once():
    right = rng.random(400) < 0.3
    alone = rates.interval(right, np.arange(400))
    assert alone == pytest.approx(rates.wilson(int(right.sum()), 400))
    assert rates.interval(np.repeat(right, 5), np.repeat(np.arange(400), 5)) == pytest.approx(alone)
    for all_alike in (np.zeros(50, bool), np.ones(50, bool)):
        bounds = rates.interval(all_alike, np.repeat(np.arange(10), 5))
        assert bounds == rates.wilson(10 if all_alike[0] else 0, 10) and bounds[1] - bounds[0] == pytest.approx(
            0.278, abs=1e-3
        )
    halves = rates.interval(np.arange(40) % 2 == 0, np.repeat(np.arange(20), 2))
    assert halves == rates.wilson(20, 40)


def test_the_interval_holds_the_rate_in_95_of_100_draws():
    """Images that are more and less easy, five captions each; captions taken as independent would hold it in far fewer."""
    easy, held, naive = rng.beta(0.5, 1.0, (1000, 200)), 0, 0
    for shares in easy:
        right = (rng.random((200, 5)) < shares[:, None]).reshape(-1)
        low, high = rates.interval(right, np.repeat(np.arange(200), 5))
        held += low <= 1 / 3 <= high
        low, high = rates.wilson(int(right.sum()), 1000)
        naive += low <= 1 / 3 <= high
    assert 930 <= held <= 970 and naive < 850
