"""From similarities to the loss: who belongs to whom, and two softmax cross-entropies over the global batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from filip_jax.losses.exchange import gather

GROUP_RULES = ("positives", "ignore")
LOW = -1e9  # the logit of what is no answer; finite, so that nothing becomes NaN


def contrastive(
    image_to_text: Float[jax.Array, "b all"],
    text_to_image: Float[jax.Array, "b all"],
    logit_scale: Float[jax.Array, ""],
    group_ids: Int[jax.Array, " b"] | None,
    row_mask: Bool[jax.Array, " b"] | None,
    *,
    axes: tuple[str, ...],
    group_rule: str,
    label_smoothing: float,
) -> Float[jax.Array, ""]:
    """The loss of the global batch from the similarities of this device's images with all texts.

    Across devices go one or two numbers per text; for the arguments see `filip_loss`.
    """
    rows, columns = image_to_text.shape
    own = rows * jax.lax.axis_index(axes) + jnp.arange(rows)[:, None] == jnp.arange(columns)
    same = own if group_ids is None else group_ids[:, None] == gather(group_ids, axes)
    real, real_texts = jnp.ones(rows, bool), jnp.ones(columns, bool)
    if row_mask is not None:
        real, real_texts = row_mask, gather(row_mask, axes)
    answers = real[:, None] & real_texts
    if group_rule == "ignore":
        answers &= own | ~same
        same = own
    right = same & answers

    def cross_entropies(similarity, total, peak):
        """Of all rows or columns, from the sum and the maximum over their answers."""
        logits = jnp.where(answers, logit_scale * similarity, LOW)
        highest = peak(jax.lax.stop_gradient(logits))
        log_sum = highest + jnp.log(total(jnp.exp(logits - highest)))
        target = (1 - label_smoothing) * right / jnp.maximum(total(right), 1)
        if label_smoothing:
            target += label_smoothing * answers / jnp.maximum(total(answers), 1)
        return log_sum - total(target * logits)

    of_images = cross_entropies(
        image_to_text, lambda x: x.sum(axis=1, keepdims=True), lambda x: x.max(axis=1, keepdims=True)
    )[:, 0]
    of_texts = cross_entropies(
        text_to_image, lambda x: jax.lax.psum(x.sum(axis=0), axes), lambda x: jax.lax.pmax(x.max(axis=0), axes)
    )
    images = jax.lax.psum(jnp.where(real, of_images, 0.0).sum(), axes)
    texts = jnp.where(real_texts, of_texts, 0.0).sum()
    return (images + texts) / 2 / jnp.maximum(jax.lax.psum(real.sum(), axes), 1)
