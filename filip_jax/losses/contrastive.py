"""The contrastive losses of FILIP and CLIP as functions of arrays.

`filip_loss` is one function everywhere. Under a mesh each device keeps its images, meets the texts of
all devices (the smaller side) and owns the rows of its images, see pairs.py.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from filip_jax.losses.encoded import Encoded
from filip_jax.losses.pairs import pair_losses
from filip_jax.losses.similarity import Array, check_tokens
from filip_jax.losses.softmax import Softmax
from filip_jax.losses.token_wise import TokenWise
from filip_jax.mesh import batch_devices, context_batch_axes


def filip_loss(
    image_tokens: Float[Array, "b p d"],
    text_tokens: Float[Array, "b t d"],
    text_mask: Bool[Array, "b t"],
    logit_scale: Float[Array, ""] | float | int,
    *,
    group_ids: Int[Array, " b"] | None = None,
    row_mask: Bool[Array, " b"] | None = None,
    group_rule: str = "positives",
    label_smoothing: float = 0.0,
    keep_tokens: float = 1.0,
    selection: str = "batch",
    dtype: str | None = None,
    implementation: str = "auto",
    exchange: str = "auto",
    indices: str = "auto",
) -> Float[jax.Array, ""]:
    """FILIP's loss of a global batch of pairs (section 3.1, equations 1 and 2), float32.

    The mean of the cross-entropy of each image against all texts by s_I and of each text against
    all images by s_T. Call it on global arrays, eager or jitted: under `jax.set_mesh(mesh)` with
    Auto axes it runs as one shard_map over those of the axes `replica`, `data` that the mesh has.

    Args:
        image_tokens: L2-normalised by the caller; image k belongs to text k.
        text_tokens: L2-normalised by the caller.
        text_mask: True for the tokens that take part.
        logit_scale: the multiplier of the similarities (1 / temperature), not its logarithm.
        group_ids: pairs with the same id show the same; see group_rule.
        row_mask: False for pairs that only fill up the batch; the loss is that of the others.
        group_rule: "positives": all of a group are right answers, with equal probability;
            "ignore": the others of the group are no wrong answers, they do not count at all.
        label_smoothing: the probability that is spread evenly over all answers.
        keep_tokens: how many tokens of each image and text take part: a fraction of them up to 1, a
            number above. The paper kept 0.25 (section 3.1). Less than all is another loss than the exact
            one, and by the rule "batch" it depends on how many devices share the batch.
        selection: which, see `select_tokens`: "batch", the paper's, or "pair", DeCLIP's.
        dtype: of the tokens where they travel and are multiplied; sums, maxima and the softmax are
            float32. None keeps the tokens' own.
        implementation: "reference" is the plain definition, "xla" works in blocks, "pallas" does so in
            kernels for bfloat16 (on TPUs and Hopper GPUs; on CPUs interpreted); "auto" is "pallas" on
            TPUs for bfloat16, else "xla".
        exchange: "gather" brings all texts to every device at once, "ring" one device's after the
            other; "auto" gathers up to 1 GiB of texts and their gradients per device.
        indices: for the backward pass "save" keeps the best tokens of all pairs, (p + t) bytes a pair,
            "recompute" finds them again, one more of three products; "auto" saves up to 1 GiB per device.

    Where float32 tokens are equally good, the first takes the gradient; of bfloat16 tokens any of those
    whose similarities agree to 14 bits of mantissa or more, see tiles.py.

    Tokens must be finite, pads too. There is a first derivative only.

    Raises:
        ValueError: shapes or types that are no batch of pairs; the batch is not divisible by the devices of
            these axes; a call inside a shard_map; a mesh with Explicit axes; an option that does not exist.
    """
    axes = context_batch_axes()
    _check_pairs(image_tokens, text_tokens, text_mask, logit_scale)
    _check_rows(len(image_tokens), group_ids, row_mask)
    devices = batch_devices()
    if len(image_tokens) % devices:
        shape = jax.sharding.get_abstract_mesh().shape
        sizes = " x ".join(f"{axis}={shape[axis]}" for axis in axes)
        raise ValueError(f"a batch of {len(image_tokens)} pairs is not divisible by {devices} devices ({sizes})")
    loss = Softmax(group_rule, label_smoothing)
    similarity = TokenWise("tokens", keep_tokens, selection, dtype, implementation, exchange, indices)
    encoded = Encoded(
        image_tokens=image_tokens,
        text_tokens=text_tokens[:, None],
        text_mask=text_mask[:, None],
        group=group_ids,
        real=row_mask,
    )
    return _filip_loss(loss, similarity, encoded, jnp.asarray(logit_scale, jnp.float32), axes)


@partial(jax.jit, static_argnames=("loss", "similarity", "axes"))
def _filip_loss(loss, similarity, encoded, logit_scale, axes):
    parameters = {"losses": {"loss": {"scale": logit_scale}}, "similarity": None}
    return pair_losses({"loss": loss}, similarity, encoded, parameters)["loss"]


def _check_pairs(image_tokens, text_tokens, text_mask, logit_scale):
    check_tokens(image_tokens, text_tokens, text_mask)
    if len(image_tokens) != len(text_tokens) or len(image_tokens) == 0:
        raise ValueError(f"{len(image_tokens)} images and {len(text_tokens)} texts are not a batch of pairs")
    if jnp.ndim(logit_scale):
        raise ValueError(f"logit_scale must be a scalar, but has shape {jnp.shape(logit_scale)}")


def _check_rows(batch, group_ids, row_mask):
    for name, x, kind, said in (("group_ids", group_ids, jnp.integer, "int"), ("row_mask", row_mask, jnp.bool, "bool")):
        if x is not None and (jnp.shape(x) != (batch,) or not jnp.issubdtype(jnp.result_type(x), kind)):
            raise ValueError(f"{name} must be {said} [{batch}], but is {jnp.result_type(x)} {jnp.shape(x)}")
    if isinstance(group_ids, np.ndarray) and group_ids.max() > (most := jnp.iinfo(jnp.result_type(group_ids)).max):
        raise ValueError(f"group_ids go up to {group_ids.max()}, but JAX's integers to {most} here: number them anew")


def clip_loss(
    image_embedding: Float[Array, "b d"],
    text_embedding: Float[Array, "b d"],
    logit_scale: Float[Array, ""] | float | int,
    **options,
) -> Float[jax.Array, ""]:
    """CLIP's loss (Radford et al. 2021, figure 3): `filip_loss` with one token per side.

    The embeddings are L2-normalised by the caller; logit_scale, options, result and errors are `filip_loss`'s.
    """
    mask = jnp.ones((len(text_embedding), 1), bool)
    return filip_loss(image_embedding[:, None], text_embedding[:, None], mask, logit_scale, **options)


def similarity_loss(
    image_to_text: Float[Array, "b b"],
    text_to_image: Float[Array, "b b"],
    logit_scale: Float[Array, ""] | float | int,
) -> Float[jax.Array, ""]:
    """Equations 1 and 2 on the two similarity matrices of one batch, both indexed image, text."""
    over_texts = jax.nn.log_softmax(logit_scale * image_to_text, axis=1)
    over_images = jax.nn.log_softmax(logit_scale * text_to_image, axis=0)
    return -(jnp.diagonal(over_texts).mean() + jnp.diagonal(over_images).mean()) / 2
