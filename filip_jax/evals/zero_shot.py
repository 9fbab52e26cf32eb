"""Zero-shot classification by prompts (FILIP, section 3.1 and appendix A.4).

Token-wise models average the similarities of the prompts, never their embeddings: tokens of
different prompts have nothing to do with each other. Global models average and renormalise the
embeddings, as CLIP does.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from filip_jax.data.sources import Source, make_source
from filip_jax.errors import UserError
from filip_jax.evals import pixels
from filip_jax.evals.records import encode_images, first_records
from filip_jax.evals.similarity import ranks, similarity_matrices, wilson
from filip_jax.inference import Embedder

RANKS = (1, 5)


def evaluate(
    model: Embedder, source: Source, output: Path, *, prompts: Sequence[str], neighbours: dict | None = None
) -> dict:
    """Top-1 and top-5 of every labelled image among the source's `class_names`, by both rules.

    Args:
        prompts: texts with {} for the class name.

    Returns:
        image_to_text_top1 … (s_I, the paper's rule), text_to_image_top1 … (s_T), each with the
        bounds _low and _high of its 95 % interval.
    """
    records = _labelled(source)
    images = encode_images(model, records)
    image_to_text, text_to_image = class_similarities(model, images, source.class_names, prompts)
    labels = np.array([record.label for record in records])
    return {
        **_accuracies("image_to_text", image_to_text, labels),
        **_accuracies("text_to_image", text_to_image, labels),
        "images": len(records),
    }


def class_similarities(
    model: Embedder, images: np.ndarray, class_names: Sequence[str], prompts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """(s_I, s_T) of each image with each class, over all prompts."""
    for prompt in prompts:
        if not isinstance(prompt, str) or "{}" not in prompt:
            raise UserError(f"zero_shot: the prompt {prompt!r} has no {{}}, in whose place the class name stands")
    encoded = [model.encode_text([prompt.replace("{}", name) for name in class_names]) for prompt in prompts]
    if model.pooling == "global":
        mean = np.mean([tokens for tokens, _ in encoded], axis=0)
        mean /= np.linalg.norm(mean, axis=-1, keepdims=True)
        return similarity_matrices(images, mean, encoded[0][1], model.mesh)
    both = [similarity_matrices(images, tokens, mask, model.mesh) for tokens, mask in encoded]
    return np.mean([s_i for s_i, _ in both], axis=0), np.mean([s_t for _, s_t in both], axis=0)


def baselines(source: Source, *, prompts: Sequence[str], neighbours: dict | None = None) -> dict[str, dict]:
    """Chance and the raw-pixel nearest neighbour.

    Args:
        neighbours: {source, examples} of labelled training images; each class is as near as its
            nearest image.
    """
    records, classes = _labelled(source), len(source.class_names)
    chance = {f"{way}_top{k}": k / classes for way in ("image_to_text", "text_to_image") for k in RANKS}
    if neighbours is None:
        return {"chance": chance}
    training = make_source(neighbours["source"])
    references = list(first_records(training, neighbours["examples"]))
    distances = pixels.pixel_distances(records, references)
    scores = np.full((len(records), classes), -np.inf)
    for column, reference in enumerate(references):
        scores[:, reference.label] = np.maximum(scores[:, reference.label], -distances[:, column])
    labels = np.array([record.label for record in records])
    both = _accuracies("image_to_text", scores, labels) | _accuracies("text_to_image", scores, labels)
    return {"chance": chance, pixels.NAME: both}


def _labelled(source: Source):
    records = list(first_records(source, len(source)))
    if not records or any(record.label is None for record in records) or not hasattr(source, "class_names"):
        raise UserError("zero_shot needs a source of labelled images with class names")
    return records


def _accuracies(way: str, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    rank = ranks(scores, labels)
    metrics = {}
    for k in RANKS:
        hits = int((rank <= k).sum())
        low, high = wilson(hits, len(rank))
        metrics |= {f"{way}_top{k}": hits / len(rank), f"{way}_top{k}_low": low, f"{way}_top{k}_high": high}
    return metrics
