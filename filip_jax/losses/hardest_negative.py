"""A margin between a text's own image and the most similar wrong one, as a `PairLoss`."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from filip_jax.losses.pairs import LOW


@dataclass(frozen=True)
class HardestNegative:
    """softplus(scale (s_T of the most similar wrong image - s_T of the right one)), a mean over texts by their weights.

    ColPali's (Faysse et al. 2024, arXiv 2407.01449, section 4.2), with the whole global batch to choose from. Of several right
    images the mean counts. A text without a wrong image in the batch has no loss.

    Attributes:
        pairs_by: "group" or "image": what right pairs have in common.
    """

    pairs_by: str = "group"

    def _answers(self, images, texts):
        """Return which pairs are right and which are wrong."""
        counted = texts["real"] & images["real"]
        same = texts[self.pairs_by] == images[self.pairs_by]
        return counted & same, counted & ~same

    def counts(self, images, texts):
        """Return which pairs are right."""
        return {"right": self._answers(images, texts)[0].astype(jnp.float32)}

    def terms(self, similarities, images, texts, parameters):
        """Return the logits of wrong pairs, and those of right ones divided by how many a text has."""
        right, wrong = self._answers(images, texts)
        logits = parameters["scale"] * similarities[-1]
        share = right / jnp.maximum(texts["right"], 1.0)
        return {"over_images": {"max": jnp.where(wrong, logits, LOW), "sum": share * logits}}

    def losses(self, over_texts, over_images):
        """Return the margins of texts."""
        return None, jax.nn.softplus(over_images["max"] - over_images["sum"])
