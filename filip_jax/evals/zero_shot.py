"""Zero-shot classification by prompts (FILIP, section 3.1 and appendix A.4).

Token-wise models average the similarities of the prompts, never their embeddings: tokens of
different prompts have nothing to do with each other. Global models average and renormalise the
embeddings, as CLIP does.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from filip_jax.data.sources import Source
from filip_jax.evals import pixels
from filip_jax.evals.prompts import make_prompts
from filip_jax.evals.rates import TOP, accuracies
from filip_jax.evals.records import classes_of, encode_images, encode_texts, labelled_views
from filip_jax.inference import Embedder
from filip_jax.inference.ranking import ranks
from filip_jax.inference.scoring import similarity_matrices

IMAGES = 2048  # whose tokens are held at a time
FILES = ("prompts",)
BASELINE_OPTIONS = ("neighbours",)
CLIP_BENCHMARK = (
    "zeroshot_classification",
    {"acc1": "image_to_text_top1", "acc5": "image_to_text_top5", "mean_per_class_recall": "image_to_text_per_class"},
)
Prompts = Sequence[Any] | str | Mapping[str, Any]


def evaluate(model: Embedder, source: Source, output: Path, *, prompts: Prompts, neighbours: Any = None) -> dict:
    """Top-1 and top-5 of every labelled image among the source's `class_names`, by both rules.

    Memory: the real tokens of all class texts and the tokens of IMAGES images; 1,000 classes in 80 prompts of 12
    tokens of 256 numbers are 1 GB.

    Args:
        prompts: templates with {} for the class name, or what `make_prompts` makes them of.

    Returns:
        image_to_text_top1 … (s_I, the paper's rule), text_to_image_top1 … (s_T), each with the
        bounds _low and _high of its 95 % interval; image_to_text_per_class … is the mean over the classes.
    """
    names, labels = classes_of(source, "zero_shot"), list[int | None]()
    of_texts, of_images = list[np.ndarray](), list[np.ndarray]()
    with closing(labelled_views(source, "zero_shot", model.image_size, model.batch_size, model.framing)) as records:
        classes = ClassTexts(model, names, make_prompts(prompts))
        for _ in range(0, len(source), IMAGES):
            images, here = encode_images(model, islice(records, IMAGES))
            labels += here
            for found, scores in zip((of_texts, of_images), classes.similarities(images)):
                found.append(ranks(scores, np.array(here), names))
    metrics = accuracies(np.concatenate(of_texts), np.array(labels), "image_to_text_")
    metrics |= accuracies(np.concatenate(of_images), np.array(labels), "text_to_image_")
    return metrics | {"images": len(labels), "classes": len(names)}


def check_options(*, prompts: Prompts, neighbours: Any = None) -> None:
    """Raises a UserError for prompts that cannot be."""
    make_prompts(prompts)


class ClassTexts:
    """What stands for the classes: the tokens of all prompts, without pads, or of a global model one embedding each.

    Args:
        class_names: of the classes, in the order of their labels.
        prompts: templates with {} in whose place a name stands.
    """

    def __init__(self, model: Embedder, class_names: Sequence[str], prompts: Sequence[str]):
        self.mesh, self.packed = model.mesh, []
        for prompt in prompts:
            tokens, mask = encode_texts(model, [prompt.replace("{}", name) for name in class_names])
            self.packed.append((tokens[mask], mask.sum(axis=1)))
        if model.pooling == "global":
            mean = np.mean([tokens for tokens, _ in self.packed], axis=0)
            mean /= np.linalg.norm(mean, axis=-1, keepdims=True)
            self.packed = [(mean, np.ones(len(mean), int))]

    def similarities(
        self, images: Float[np.ndarray, "i p d"]
    ) -> tuple[Float[np.ndarray, "i classes"], Float[np.ndarray, "i classes"]]:
        """(s_I, s_T) of each image with each class, averaged over the prompts."""
        first, *others = self.packed
        to_text, to_image = similarity_matrices(images, *_unpacked(*first), self.mesh)
        for packed in others:
            of_images, of_texts = similarity_matrices(images, *_unpacked(*packed), self.mesh)
            to_text, to_image = to_text + of_images, to_image + of_texts
        return to_text / len(self.packed), to_image / len(self.packed)


def _unpacked(
    tokens: Float[np.ndarray, "real d"], lengths: np.ndarray
) -> tuple[Float[np.ndarray, "n t d"], Bool[np.ndarray, "n t"]]:
    mask = np.arange(lengths.max()) < lengths[:, None]
    whole = np.zeros((*mask.shape, tokens.shape[1]), tokens.dtype)
    whole[mask] = tokens
    return whole, mask


def baselines(source: Source, *, prompts: Prompts, neighbours: Any = None) -> dict[str, dict]:
    """Chance and the raw-pixel nearest neighbour.

    Args:
        neighbours: {source, examples} of labelled training images; each class is as near as its
            nearest image.
    """
    names = classes_of(source, "zero_shot")
    chance = {f"{way}_top{k}": min(k / len(names), 1.0) for way in ("image_to_text", "text_to_image") for k in TOP}
    if neighbours is None:
        return {"chance": chance}
    references = pixels.read_references(neighbours)
    records = list(labelled_views(source, "zero_shot", pixels.SIZE, pixels.AHEAD))
    distances, labels = pixels.pixel_distances(records, references), np.array([record.label for record in records])
    scores = np.full((len(labels), len(names)), -np.inf)
    for column, reference in enumerate(references):
        scores[:, reference.label] = np.maximum(scores[:, reference.label], -distances[:, column])
    rank = ranks(scores, labels, names)
    both = accuracies(rank, labels, "image_to_text_") | accuracies(rank, labels, "text_to_image_")
    return {"chance": chance, pixels.NAME: both}
