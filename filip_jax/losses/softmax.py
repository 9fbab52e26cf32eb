"""The contrastive loss of FILIP and CLIP as a `PairLoss`: two softmax cross-entropies over the global batch."""

from dataclasses import dataclass

import jax.numpy as jnp

from filip_jax.errors import UserError
from filip_jax.losses.pairs import LOW

GROUP_RULES = ("positives", "ignore")


@dataclass(frozen=True)
class Softmax:
    """Cross-entropy of each image against all texts by s_I and of each text against all images by s_T, times `scale`.

    FILIP section 3.1, equations 1 and 2; of one similarity CLIP's (Radford et al. 2021, figure 3). Several right
    answers share the probability, captions by their weights.

    Attributes:
        group_rule, label_smoothing: see `filip_loss`.
        pairs_by: "group" or "image": what right answers have in common.
        text_to_image_only: whether the cross-entropy of images against texts is left out.
    """

    group_rule: str = "positives"
    label_smoothing: float = 0.0
    pairs_by: str = "group"
    text_to_image_only: bool = False

    def __post_init__(self):
        if self.group_rule not in GROUP_RULES:
            raise UserError(f"group_rule={self.group_rule!r} is not one of {', '.join(GROUP_RULES)}")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing={self.label_smoothing} must be at least 0 and below 1")

    def _answers(self, images, texts):
        """Return which texts are answers for which images, and how right each of them is, by its weight."""
        own, same = (texts[key] == images[key] for key in ("image", self.pairs_by))
        answers = texts["real"] & images["real"]
        if self.group_rule == "ignore":
            answers &= own | ~same
            same = own
        return answers, jnp.where(same & answers, texts["weight"], 0.0)

    def counts(self, images, texts):
        """Return which answers there are, for smoothing, and how right they are."""
        answers, right = self._answers(images, texts)
        return {"right": right} | ({"answers": answers.astype(jnp.float32)} if self.label_smoothing else {})

    def terms(self, similarities, images, texts, parameters):
        """Return the logits, and the logits times the probability that each answer should have."""
        answers, right = self._answers(images, texts)

        def of_side(side, similarity):
            logits = jnp.where(answers, parameters["scale"] * similarity, LOW)
            target = (1 - self.label_smoothing) * right / jnp.where(side["right"] > 0, side["right"], 1.0)
            if self.label_smoothing:
                target += self.label_smoothing * answers / jnp.maximum(side["answers"], 1)
            return {"logsumexp": logits, "sum": target * logits}

        of_images = {} if self.text_to_image_only else {"over_texts": of_side(images, similarities[0])}
        return of_images | {"over_images": of_side(texts, similarities[-1])}

    def losses(self, over_texts, over_images):
        """Return the cross-entropies."""
        return tuple(x["logsumexp"] - x["sum"] if x else None for x in (over_texts, over_images))
