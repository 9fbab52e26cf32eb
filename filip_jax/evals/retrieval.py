"""Retrieval of held-out pairs: recall at 1, 5 and 10 both ways, and the loss over all of them."""

from pathlib import Path

import numpy as np

from filip_jax.data.sources import Source, make_source
from filip_jax.evals import pixels
from filip_jax.evals.records import encode_images, first_records
from filip_jax.evals.similarity import ranks, similarity_matrices
from filip_jax.inference import Embedder
from filip_jax.losses import similarity_loss

RANKS = (1, 5, 10)


def evaluate(model: Embedder, source: Source, output: Path, *, examples: int, neighbours: dict | None = None) -> dict:
    """Recall of each image's own text among all texts by s_I, and of each text's image by s_T.

    Args:
        examples: how many pairs of the source, from the first.
    """
    records = first_records(source, examples)
    images = encode_images(model, records)
    texts, mask = model.encode_text([record.caption for record in records])
    image_to_text, text_to_image = similarity_matrices(images, texts, mask)
    loss = similarity_loss(image_to_text, text_to_image, model.logit_scale)
    return {"loss": float(loss), **_recalls(image_to_text, text_to_image), "pairs": len(records)}


def baselines(source: Source, *, examples: int, neighbours: dict | None = None) -> dict[str, dict]:
    """Chance and the raw-pixel nearest neighbour.

    Args:
        neighbours: {source, examples} of training pairs. An image is taken for its nearest one in
            pixels, whose caption then stands for it: texts are ranked by the words they share.
    """
    chance = {f"{way}_R@{k}": k / examples for way in ("image_to_text", "text_to_image") for k in RANKS}
    if neighbours is None:
        return {"chance": chance}
    records = first_records(source, examples)
    training = make_source(neighbours["source"])
    references = first_records(training, neighbours["examples"])
    nearest = pixels.pixel_distances(records, references).argmin(axis=1)
    words = [set(record.caption.lower().split()) for record in records]
    guessed = [set(references[index].caption.lower().split()) for index in nearest]
    shared = np.array([[len(g & w) / len(g | w) for w in words] for g in guessed])
    return {"chance": chance, pixels.NAME: _recalls(shared, shared)}


def _recalls(image_to_text: np.ndarray, text_to_image: np.ndarray) -> dict[str, float]:
    own = np.arange(len(image_to_text))
    metrics = {}
    for way, scores in (("image_to_text", image_to_text), ("text_to_image", text_to_image.T)):
        rank = ranks(scores, own)
        metrics |= {f"{way}_R@{k}": float((rank <= k).mean()) for k in RANKS}
    return metrics
