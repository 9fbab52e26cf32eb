"""The best answers, and how right answers rank among all, from blocks of scores.

What is kept grows with the queries, not with the answers.
"""

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from filip_jax.errors import UserError
from filip_jax.inference.scoring import similarity_blocks
from filip_jax.losses.similarity import Array

TIE = 1e-6  # similarities that are nearer are equal: what is left is rounding, which other blocks and devices do otherwise
QUERIES = ("text", "image")


def top_k(
    image_tokens: Float[Array, "i p d"],
    text_tokens: Float[Array, "j t d"],
    text_mask: Bool[Array, "j t"],
    k: int,
    *,
    query: str = "text",
    mesh: Mesh | None = None,
) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
    """Return the similarities and the indices of the k best answers of each query, best first; of equal ones the first.

    Args:
        image_tokens, text_tokens, text_mask, mesh: as of `similarity_blocks`.
        k: fewer are given where there are fewer answers.
        query: "text" ranks the images for each text by text_to_image, "image" the texts for each image by image_to_text,
            as retrieval does.

    Raises:
        UserError: k below 1, or another query.
        ValueError: as `similarity_blocks`.
    """
    if query not in QUERIES or not hasattr(k, "__index__") or k < 1:
        text = f"top_k: query={query!r} must be one of {', '.join(QUERIES)}, and k={k!r} a whole number of at least 1"
        raise UserError(text)
    queries, answers = len(text_tokens), len(image_tokens)
    if query == "image":
        queries, answers = answers, queries
    best = np.full((queries, min(int(k), answers)), -np.inf, np.float32)
    indices = np.full(best.shape, answers)
    for images, texts, to_text, to_image in similarity_blocks(image_tokens, text_tokens, text_mask, mesh):
        rows, columns, scores = (texts, images, to_image.T) if query == "text" else (images, texts, to_text)
        scores = np.concatenate([best[rows], np.where(np.isnan(scores), -np.inf, scores)], axis=1)
        candidates = np.concatenate([indices[rows], np.broadcast_to(columns, (len(rows), len(columns)))], axis=1)
        order = np.lexsort((candidates, -scores))[:, : best.shape[1]]
        best[rows], indices[rows] = (np.take_along_axis(x, order, axis=1) for x in (scores, candidates))
    return best, indices


class Ranking:
    """The ranks of the right answers of each query; ties, up to TIE, and NaN count against them.

    Args:
        pairs: (query, a right answer of it), each pair once; a query may have several, and needs one.
        queries, answers: how many there are.
        ranks: the largest rank that will be asked for; that of a query's right answers is always known.
        scale: of the scores, for the loss.
    """

    def __init__(self, pairs: Int[np.ndarray, "n 2"], queries: int, answers: int, *, ranks: int, scale: float = 1.0):
        self.query, self.answer, self.answers, self.scale = pairs[:, 0], pairs[:, 1], answers, scale
        self.rights = np.bincount(self.query, minlength=queries)
        keep = max(ranks, int(self.rights.max(initial=1)))
        self.right = np.full(len(pairs), -np.inf, np.float32)
        self.wrong = np.full((queries, keep), -np.inf, np.float32)  # each query's best wrong answers, in no order
        self.log_sum = np.full(queries, -np.inf)
        self.sum = np.zeros(queries)

    def add(
        self, rows: Int[np.ndarray, " r"], columns: Int[np.ndarray, " c"], scores: Float[np.ndarray, "r c"]
    ) -> None:
        """Scores of some queries with some answers; each query meets each answer once."""
        scaled = self.scale * scores.astype(np.float64)
        with np.errstate(invalid="ignore"):  # of a model that has diverged
            self.log_sum[rows] = np.logaddexp(self.log_sum[rows], np.logaddexp.reduce(scaled, axis=1))
        row, column = _places(rows, len(self.rights))[self.query], _places(columns, self.answers)[self.answer]
        here = (row >= 0) & (column >= 0)
        row, column = row[here], column[here]
        np.add.at(self.sum, self.query[here], scaled[row, column])
        self.right[here] = np.nan_to_num(scores[row, column], nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        wrong = np.nan_to_num(scores, nan=np.inf, posinf=np.inf, neginf=-np.inf)
        wrong[row, column] = -np.inf
        keep = self.wrong.shape[1]
        both = np.concatenate([self.wrong[rows], wrong], axis=1)
        self.wrong[rows] = np.partition(both, both.shape[1] - keep, axis=1)[:, -keep:]

    def found(self, k: int) -> Bool[np.ndarray, " queries"]:
        """Which queries have a right answer among their first k."""
        best = np.full(len(self.rights), -np.inf, np.float32)
        np.maximum.at(best, self.query, self.right)
        return (self.wrong >= best[:, None] - TIE).sum(axis=1) < k

    def recall(self, k: int) -> float:
        """The share of queries with a right answer among their first k."""
        return float(self.found(k).mean())

    def r_precision(self) -> float:
        """Of a query's R right answers, the share that is among the first R."""
        query, _, _, found = self._places()
        return float((np.bincount(query, found, len(self.rights)) / self.rights).mean())

    def average_precision(self) -> float:
        """mAP@R (Musgrave et al. 2020, arXiv 2003.08505, section 3.2): of R right answers, within the first R."""
        query, place, before, found = self._places()
        precision = np.bincount(query, np.where(found, place / (place + before), 0.0), len(self.rights))
        return float((precision / self.rights).mean())

    def _places(self):
        """Return four arrays with an element for each right answer.

        Its query, its place among that one's right answers from 1, the wrong answers before it, and whether it is among
        the first R.
        """
        order = np.lexsort((-self.right, self.query))
        query, starts = self.query[order], np.cumsum(self.rights) - self.rights
        place = np.arange(len(order)) - starts[query] + 1
        before = (self.wrong[query] >= self.right[order, None] - TIE).sum(axis=1)
        return query, place, before, place + before <= self.rights[query]

    def loss(self) -> float:
        """Softmax cross-entropy over all answers, spread evenly over the right ones."""
        with np.errstate(invalid="ignore"):
            return float((self.log_sum - self.sum / self.rights).mean())


def _places(chosen, count):
    """Where each of `count` stands in `chosen`, -1 for nowhere."""
    places = np.full(count, -1)
    places[chosen] = np.arange(len(chosen))
    return places


def chance(k: int, rights: Int[np.ndarray, " n"] | Sequence[int], answers: int) -> float:
    """Recall at k of random orders, for queries with so many right answers each."""
    counts = np.asarray(rights)
    missed = np.ones(len(counts))
    for taken in range(min(k, answers)):
        missed *= np.maximum(answers - counts - taken, 0) / (answers - taken)
    return float(1 - missed.mean())


def ranks(scores: Float[np.ndarray, "n m"], true: np.ndarray, names: Sequence[str] = ()) -> np.ndarray:
    """Return the rank, from 1, of the true column in each row; ties, up to TIE, and NaN count against it.

    Args:
        names: of the columns. Those of one name, as ImageNet's two kinds of missile in CLIP's list, are no rivals whom a
            model could tell apart: the first of them is found first.
    """
    bound = scores[np.arange(len(scores)), true][:, None] - TIE
    bound[np.isnan(bound)] = -np.inf
    better = ~(scores < bound)
    if len(set(names)) < len(names):
        numbers = np.unique(np.array(names), return_inverse=True)[1]
        better &= (numbers != numbers[true][:, None]) | (np.arange(len(names)) < true[:, None])
    better[np.arange(len(scores)), true] = True
    return better.sum(axis=1)
