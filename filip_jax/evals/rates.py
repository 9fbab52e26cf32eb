"""Shares of right answers, and their intervals."""

import numpy as np
from jaxtyping import Bool, Int

TOP = (1, 5)  # so many classes may be named


def accuracies(rank: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], prefix: str = "") -> dict[str, float]:
    """Return top1 and top5 of ranks, each with the bounds _low and _high of its 95 % interval, and per_class.

    The latter is the mean of the classes' top1.
    """
    metrics: dict[str, float] = {}
    for k in TOP:
        hits = int((rank <= k).sum())
        low, high = wilson(hits, len(rank))
        metrics |= {f"{prefix}top{k}": hits / len(rank), f"{prefix}top{k}_low": low, f"{prefix}top{k}_high": high}
    of_classes = [float((rank[labels == label] == 1).mean()) for label in np.unique(labels)]
    return metrics | {f"{prefix}per_class": float(np.mean(of_classes))}


def interval(right: Bool[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> tuple[float, float]:
    """The 95 % interval of the share that is right, of queries that come in groups, as the captions of one image do.

    It is Wilson's for so many independent queries as vary as much as these (Kish 1965): their number where groups do
    not matter, that of the groups where all in one are alike.

    Args:
        groups: the number of each query's group, from 0, none without a query.
    """
    rate, sizes = right.mean(), np.bincount(groups)
    spread = np.bincount(groups, right) - rate * sizes
    if rate in (0, 1):
        count = len(sizes)
    else:
        count = len(right) * min(rate * (1 - rate) * len(right) / max((spread**2).sum(), 1e-9), 1)
    return wilson(rate * count, count)


def wilson(hits: float, count: float) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson 1927)."""
    z, rate = 1.96, hits / count
    centre = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * (rate * (1 - rate) / count + z**2 / (4 * count**2)) ** 0.5 / (1 + z**2 / count)
    return max(centre - half, 0.0), min(centre + half, 1.0)
