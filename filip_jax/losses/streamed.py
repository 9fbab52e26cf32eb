"""The loss of the global batch in a ring, with no matrix of all similarities: memory does not grow with the devices.

Each device keeps its images; texts come by, one device's after the other. What is kept of them is for each row and
column the logarithm of its sum, so the softmax is formed as texts arrive, and again, block by block, in the backward
pass, which goes round once more and finds the best tokens and similarities anew.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from filip_jax.losses import blocked
from filip_jax.losses.exchange import Plan, gather, meetings, pass_on
from filip_jax.losses.targets import LOW


@dataclass(frozen=True)
class Rules:
    """Which answers are right. Static under jit; see `filip_loss`."""

    group_rule: str
    label_smoothing: float


def streamed_loss(
    image_tokens: Float[jax.Array, "b p d"],
    text_tokens: Float[jax.Array, "b t d"],
    text_mask: Bool[jax.Array, "b t"],
    logit_scale: Float[jax.Array, ""],
    group_ids: Int[jax.Array, " b"] | None,
    row_mask: Bool[jax.Array, " b"] | None,
    plan: Plan,
    *,
    group_rule: str,
    label_smoothing: float,
) -> Float[jax.Array, ""]:
    """`contrastive` of `all_similarities`, inside a shard_map over plan.axes."""
    rows = len(text_mask)
    number = rows * jax.lax.axis_index(plan.axes) + jnp.arange(rows)
    group = number if group_ids is None else group_ids
    real = jnp.ones(rows, bool) if row_mask is None else row_mask
    pairs = {"number": number, "group": group, "real": real}
    rules = Rules(group_rule, label_smoothing)
    answers, right = _answers(rules, gather(pairs, plan.axes), pairs)
    pairs |= {"answers": answers.sum(axis=0), "right": right.sum(axis=0)}  # of an image; its text has as many
    return _loss(image_tokens, text_tokens, text_mask, logit_scale, pairs, plan, rules)


def _answers(rules, texts, images):
    """Which texts are answers for which images, and which of them are right: bool [j, i] each."""
    own = texts["number"][:, None] == images["number"]
    same = texts["group"][:, None] == images["group"]
    answers = texts["real"][:, None] & images["real"]
    if rules.group_rule == "ignore":
        answers &= own | ~same
        same = own
    return answers, same & answers


def _targets(rules, pairs, answers, right):
    """Probabilities [j, i] by the counts of one side, which broadcast."""
    target = (1 - rules.label_smoothing) * right / jnp.maximum(pairs["right"], 1)
    if rules.label_smoothing:
        target += rules.label_smoothing * answers / jnp.maximum(pairs["answers"], 1)
    return target


def _column(pairs):
    return {name: x[:, None] for name, x in pairs.items()}


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _loss(image_tokens, text_tokens, text_mask, logit_scale, pairs, plan, rules):
    return _forward(image_tokens, text_tokens, text_mask, logit_scale, pairs, plan, rules)[0]


def _forward(image_tokens, text_tokens, text_mask, logit_scale, pairs, plan, rules):
    images = image_tokens.transpose(1, 0, 2)
    texts, mask, order = blocked.by_length(text_tokens, text_mask)
    sorted_pairs = {name: x[order] for name, x in pairs.items()}

    def step(carry, _):
        (texts, mask, order, those), highest, total, target = carry
        following = pass_on((texts, mask, order, those), plan)
        image_to_text, text_to_image, _ = blocked.forward(images, texts, mask, plan.implementation)
        answers, right = _answers(rules, those, pairs)
        logits = jnp.where(answers, logit_scale * image_to_text, LOW)
        higher = jnp.maximum(highest, logits.max(axis=0))
        total = total * jnp.exp(highest - higher) + jnp.exp(logits - higher).sum(axis=0)
        target += (_targets(rules, pairs, answers, right) * logits).sum(axis=0)
        logits = jnp.where(answers, logit_scale * text_to_image, LOW)
        peak = logits.max(axis=1)
        of_texts = peak, jnp.exp(logits - peak[:, None]).sum(axis=1)
        of_texts += ((_targets(rules, _column(those), answers, right) * logits).sum(axis=1),)
        place = jnp.argsort(order)
        return (following, higher, total, target), [x[place] for x in of_texts]

    rows = len(text_mask)
    start = jnp.full(rows, LOW), jnp.zeros(rows), jnp.zeros(rows)
    start = (texts, mask, order, sorted_pairs), *start
    (_, highest, total, target), of_texts = jax.lax.scan(step, start, None, length=plan.devices)
    log_sum = highest + jnp.log(total)
    peak, part, text_target = (x[meetings(plan)].reshape(-1) for x in of_texts)  # of all texts, over these images
    above = jax.lax.pmax(peak, plan.axes)
    text_log_sum = above + jnp.log(jax.lax.psum(part * jnp.exp(peak - above), plan.axes))
    of_all = jnp.where(gather(pairs["real"], plan.axes), text_log_sum - jax.lax.psum(text_target, plan.axes), 0.0)
    own = jax.lax.psum(jnp.where(pairs["real"], log_sum - target, 0.0).sum(), plan.axes)
    count = jnp.maximum(jax.lax.psum(pairs["real"].sum(), plan.axes), 1)
    here = jax.lax.dynamic_slice_in_dim(text_log_sum, rows * jax.lax.axis_index(plan.axes), rows)
    kept = images, (texts, mask, order), sorted_pairs | {"log_sum": here[order]}, pairs | {"log_sum": log_sum}
    return (own + of_all.sum()) / 2 / count, (*kept, logit_scale, count, text_mask.shape[1])


def _backward(plan, rules, residuals, cotangent):
    images, (texts, mask, order), sorted_pairs, pairs, logit_scale, count, length = residuals
    weight = jax.lax.psum(cotangent, plan.axes) / 2 / count  # shard_map hands each device its part

    def cotangents(image_to_text, text_to_image, those):
        """Of the similarities of a block, and what they add to the scale's."""
        answers, right = _answers(rules, those, pairs)
        logits = jnp.where(answers, logit_scale * image_to_text, LOW)
        to_image = jnp.exp(logits - pairs["log_sum"]) - _targets(rules, pairs, answers, right)
        to_image *= weight * pairs["real"]
        logits = jnp.where(answers, logit_scale * text_to_image, LOW)
        to_text = jnp.exp(logits - those["log_sum"][:, None]) - _targets(rules, _column(those), answers, right)
        to_text *= weight * those["real"][:, None]
        to_scale = (to_image * image_to_text + to_text * text_to_image).sum()
        return logit_scale * to_image, logit_scale * to_text, to_scale

    def step(carry, _):
        shard, to_images, to_texts, to_scale = carry
        following, arrived = pass_on((shard, to_texts), plan)  # both travel while this device computes
        texts, mask, those = shard
        more, to_texts, scale = blocked.backward_of(images, texts, mask, those, cotangents, plan.implementation)
        return (following, to_images + more, arrived + to_texts, to_scale + scale), None

    start = (texts, mask, sorted_pairs), jnp.zeros(images.shape, jnp.float32), jnp.zeros(texts.shape, jnp.float32)
    (_, to_images, to_texts, to_scale), _ = jax.lax.scan(step, (*start, jnp.zeros(())), None, length=plan.devices)
    to_texts = pass_on(to_texts, plan)[jnp.argsort(order), :length].astype(texts.dtype)
    return to_images.transpose(1, 0, 2).astype(images.dtype), to_texts, None, to_scale, None


_loss.defvjp(_forward, _backward)
