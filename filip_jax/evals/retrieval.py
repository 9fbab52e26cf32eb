"""Retrieval of held-out pairs: recall at 1, 5 and 10 both ways, and the loss over all of them."""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from filip_jax.ahead import in_order
from filip_jax.data.record import that_say
from filip_jax.data.sources import Source
from filip_jax.errors import UserError
from filip_jax.evals import pixels
from filip_jax.evals.positives import ExtendedRanking, read_positives
from filip_jax.evals.rates import interval
from filip_jax.evals.records import CAPTIONS, encode_images, encode_texts, views
from filip_jax.inference import Embedder
from filip_jax.inference.ranking import Ranking, chance
from filip_jax.inference.scoring import similarity_blocks
from filip_jax.sections import at_least

RANKS = (1, 5, 10)
FILES = ("positives",)
BASELINE_OPTIONS = ("neighbours",)
CLIP_BENCHMARK = (
    "zeroshot_retrieval",
    {f"text_retrieval_recall@{k}": f"image_to_text_R@{k}" for k in RANKS}
    | {f"image_retrieval_recall@{k}": f"text_to_image_R@{k}" for k in RANKS},
)


def evaluate(
    model: Embedder,
    source: Source,
    output: Path,
    *,
    examples: int,
    captions: int = 1,
    prompt: str = "{}",
    positives: str = "",
    neighbours: Any = None,
) -> dict:
    """Recall of an image's texts among all texts by s_I, and of a text's image among all images by s_T.

    An image is found if one of its texts is among the first k, as Flickr30K and COCO count. Neither similarities nor
    pictures are held whole: memory grows with the embeddings only.

    Args:
        examples: how many records of the source, from the first.
        captions: how many texts of each record, from the first that is not blank; 0 takes all.
        prompt: a text with {} for the caption.
        positives: which answers are right beyond a pair's own: "eccv_caption" for COCO's 5K (extra `eval`), or a JSON
            file by keys, see positives.py. "" for none.

    Returns:
        loss, image_to_text_R@1 … with the bounds _low and _high of their 95 % intervals, pairs; with several texts
        image_to_text_mAP@R, images and texts instead of pairs; with positives, of the queries that they list, image_to_text_extended_R@1, …_extended_R-precision and …_extended_mAP@R.
    """
    check_options(prompt=prompt)
    texts, owners = _texts(source, examples, captions)
    extended = _extended(source, examples, texts, positives) if positives else None
    with closing(views(source, examples, model.image_size, model.batch_size, model.framing)) as records:
        images, _ = encode_images(model, records)
    tokens, mask = encode_texts(model, [prompt.replace("{}", caption.text) for caption in texts])
    blocks = similarity_blocks(images, tokens, mask, model.mesh)
    of_images, of_texts = _rank(owners, examples, blocks, model.logit_scale, extended)
    metrics = {
        "loss": (of_images.loss() + of_texts.loss()) / 2,
        **_recalls(of_images, of_texts, owners),
        "pairs": examples,
    }
    if len(texts) != examples:
        del metrics["pairs"]
        counts = {"images": examples, "texts": len(texts)}
        metrics |= {"image_to_text_mAP@R": of_images.average_precision()} | counts
    return metrics | (extended.numbers() if extended else {})


def check_options(*, prompt: str = "{}", positives: str = "", **others: Any) -> None:
    """Raises a UserError for a prompt or positives that cannot be."""
    if "{}" not in prompt:
        raise UserError(f"retrieval: the prompt {prompt!r} has no {{}}, in whose place the caption stands")
    if positives:
        read_positives(positives)


def baselines(
    source: Source,
    *,
    examples: int,
    captions: int = 1,
    prompt: str = "{}",
    positives: str = "",
    neighbours: Any = None,
) -> dict[str, dict]:
    """Chance and the raw-pixel nearest neighbour, of the pairs alone.

    Args:
        neighbours: {source, examples} of training pairs. An image is taken for its nearest one in
            pixels, whose caption then stands for it: texts are ranked by the words they share.
    """
    texts, owners = _texts(source, examples, captions)
    ways = (("image_to_text", np.bincount(owners), len(texts)), ("text_to_image", np.ones(1, int), examples))
    found = {"chance": {f"{way}_R@{k}": chance(k, right, among) for way, right, among in ways for k in RANKS}}
    if neighbours is None:
        return found
    references = pixels.read_references(neighbours)
    records = list(views(source, examples, pixels.SIZE, pixels.AHEAD))
    nearest = pixels.pixel_distances(records, references).argmin(axis=1)
    words = [set(caption.text.lower().split()) for caption in texts]
    guessed = [set(references[index].caption.lower().split()) for index in nearest]
    shared = np.array([[len(g & w) / len(g | w) for w in words] for g in guessed])
    block = np.arange(examples), np.arange(len(texts)), shared, shared
    return found | {pixels.NAME: _recalls(*_rank(owners, examples, [block], 1.0), owners)}


def _texts(source, examples, captions):
    """The texts of the records, and whose each is."""
    at_least(0, "retrieval", captions=captions)
    each = [that_say(found)[: captions or None] for found in in_order(source.captions, range(examples), CAPTIONS)]
    owners = np.repeat(np.arange(examples), [len(some) for some in each])
    return [caption for some in each for caption in some], owners


def _extended(source, examples, texts, positives):
    images = [source.where(index)[1] for index in range(examples)]
    return ExtendedRanking(read_positives(positives), images, [caption.key for caption in texts])


def _rank(owners, examples, blocks, scale, extended=None) -> tuple[Ranking, Ranking]:
    """(Ranking of texts for images, of images for texts) over all blocks, which an ExtendedRanking sees, too."""
    pairs = np.stack([owners, np.arange(len(owners))], axis=1)
    of_images = Ranking(pairs, examples, len(owners), ranks=RANKS[-1], scale=scale)
    of_texts = Ranking(pairs[:, ::-1], len(owners), examples, ranks=RANKS[-1], scale=scale)
    for rows, columns, image_to_text, text_to_image in blocks:
        of_images.add(rows, columns, image_to_text)
        of_texts.add(columns, rows, text_to_image.T)
        if extended is not None:
            extended.add(rows, columns, image_to_text, text_to_image)
    return of_images, of_texts


def _recalls(of_images: Ranking, of_texts: Ranking, owners: np.ndarray) -> dict[str, float]:
    """R@k both ways, with bounds: the texts of one image are no independent queries."""
    metrics: dict[str, float] = {}
    both = (("image_to_text", of_images, np.arange(len(of_images.rights))), ("text_to_image", of_texts, owners))
    for way, ranking, groups in both:
        for k in RANKS:
            low, high = interval(ranking.found(k), groups)
            name = f"{way}_R@{k}"
            metrics |= {name: ranking.recall(k), f"{name}_low": low, f"{name}_high": high}
    return metrics
