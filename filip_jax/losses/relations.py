"""The relations of images and texts in another model's eyes, as a similarity and a `PairLoss`: distillation."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from filip_jax.losses.block_function import BlockFunction
from filip_jax.losses.encoded import Encoded
from filip_jax.losses.pairs import LOW, loss_of_each
from filip_jax.sections import DTYPES, one_of

BYTES_PER_PAIR = 32  # of similarities, logarithms and terms


def compare_with_teacher(teacher_scale: float, dtype: str, exchange: str) -> BlockFunction:
    """Return the similarity of pooled vectors beside the logarithms of the teacher's probabilities, over texts and over images.

    Args:
        teacher_scale: multiplier of the teacher's similarities.
        dtype: of the products.
        exchange: see `BlockFunction`.

    Raises:
        UserError: an option that cannot be.
    """
    one_of(DTYPES, dtype, "dtype")

    def product(texts, images):
        x, y = texts.astype(dtype), images.astype(dtype)
        return jnp.einsum("jd,id->ji", x, y, preferred_element_type=jnp.float32)

    def compare_teacher(parameters, images, texts):
        return (teacher_scale * product(texts, images),)

    def compare(parameters, images, texts):
        theirs = teacher_scale * product(texts["teacher"], images["teacher"])
        logarithms = theirs - images["logsumexp"], theirs - texts["logsumexp"][:, None]
        # Probabilities are at most 1; where a device has nothing but rows that do not count, these would be anything.
        over_texts, over_images = (jax.lax.stop_gradient(jnp.minimum(x, 0.0)) for x in logarithms)
        return product(texts["student"], images["student"]), over_texts, over_images

    def take_teacher(encoded):
        return encoded.image_pooled, encoded.text_pooled

    alone = BlockFunction(compare_teacher, take_teacher, BYTES_PER_PAIR, exchange)

    def take(encoded):
        images, texts = jax.lax.stop_gradient(take_teacher(encoded.teacher))
        other = Encoded(image_pooled=images, text_pooled=texts, real=encoded.real, text_weight=encoded.text_weight)
        owned: dict[str, Any] = {"losses": {"sums": {}}, "similarity": None}
        of_images, of_texts = loss_of_each({"sums": LogSumExp()}, alone, other, owned)["sums"]
        images = {"student": encoded.image_pooled, "teacher": images, "logsumexp": of_images}
        return images, {"student": encoded.text_pooled, "teacher": texts, "logsumexp": of_texts}

    return BlockFunction(compare, take, BYTES_PER_PAIR, exchange)


@dataclass(frozen=True)
class LogSumExp:
    """The logarithm of the sum of exponentials of one similarity, of each image over texts and of each text over images."""

    def counts(self, images, texts):
        """Return none."""
        return {}

    def terms(self, similarities, images, texts, parameters):
        """Return the similarities of what counts."""
        logits = jnp.where(texts["real"] & images["real"], similarities[0], LOW)
        return {"over_texts": {"logsumexp": logits}, "over_images": {"logsumexp": logits}}

    def losses(self, over_texts, over_images):
        """Return the sums."""
        return over_texts["logsumexp"], over_images["logsumexp"]


@dataclass(frozen=True)
class Relations:
    """The divergence KL(teacher | student) of the probabilities of each image over texts and of each text over images.

    Its similarity is `compare_with_teacher`.
    """

    def counts(self, images, texts):
        """Return none."""
        return {}

    def terms(self, similarities, images, texts, parameters):
        """Return the student's logits, and the teacher's probabilities times how far its logarithms are above them."""
        student, *teacher = similarities
        counted = texts["real"] & images["real"]
        logits = jnp.where(counted, parameters["scale"] * student, LOW)

        def of_side(logarithms):
            return {"logsumexp": logits, "sum": jnp.where(counted, jnp.exp(logarithms) * (logarithms - logits), 0.0)}

        return {"over_texts": of_side(teacher[0]), "over_images": of_side(teacher[1])}

    def losses(self, over_texts, over_images):
        """Return the divergences."""
        return tuple(x["logsumexp"] + x["sum"] for x in (over_texts, over_images))
