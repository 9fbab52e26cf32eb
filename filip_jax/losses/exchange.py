"""All pairs of the global batch: each device keeps its images and meets every text.

Only texts travel, sorted by length before they leave so that no receiver has to. Two ways: `gather`
brings all of them at once; `ring` passes each device's texts on to its neighbour while those at hand
are compared, so that memory does not grow with the devices. Either way every pair's tile is made once
per pass, and nothing but texts, their gradients and sums over images crosses devices.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from filip_jax.losses import blocked
from filip_jax.losses.similarity import token_similarity
from filip_jax.losses.tiles import index_dtype

IMPLEMENTATIONS = ("auto", "reference", "xla", "pallas")
EXCHANGES = ("auto", "gather", "ring")
INDICES = ("auto", "save", "recompute")
MEMORY = 2**30  # bytes per device that "auto" spends on gathered texts, and again on saved indices


@dataclass(frozen=True)
class Plan:
    """How pairs are compared. Static under jit.

    Attributes:
        axes: mesh axes over which the batch is split, from inside a shard_map; none without a mesh.
        devices: how many they are.
        implementation: "reference", "xla", "pallas" or, decided where it is compiled, "auto".
        exchange: "gather" or "ring".
        indices: "save" keeps who was best for whom for the backward pass, "recompute" finds it again.
    """

    axes: tuple[str, ...]
    devices: int
    implementation: str
    exchange: str
    indices: str

    @property
    def streamed(self) -> bool:
        """Return whether no matrix of all similarities is held."""
        return self.exchange == "ring" and self.indices == "recompute" and self.implementation != "reference"


def make_plan(
    axes: tuple[str, ...],
    devices: int,
    image_tokens: jax.Array,
    text_tokens: jax.Array,
    *,
    implementation: str,
    exchange: str,
    indices: str,
) -> Plan:
    """The plan for one device's tokens [b, p, d] and [j, t, d], with exchange and indices decided."""
    (b, p, d), (j, t) = image_tokens.shape, text_tokens.shape[:2]
    gathered = devices * j * t * d * (text_tokens.dtype.itemsize + 4)
    if devices == 1 or (exchange == "auto" and gathered <= MEMORY):
        exchange = "gather"
    elif exchange == "auto":
        exchange = "ring"
    if indices == "auto":
        saved = devices * j * b * (p + t) * index_dtype(max(p, t)).itemsize
        indices = "save" if saved <= MEMORY else "recompute"
    return Plan(axes, devices, implementation, exchange, indices)


def all_similarities(
    image_tokens: Float[jax.Array, "b p d"],
    text_tokens: Float[jax.Array, "j t d"],
    text_mask: Bool[jax.Array, "j t"],
    plan: Plan,
) -> tuple[Float[jax.Array, "all b"], Float[jax.Array, "all b"]]:
    """`token_similarity` of this device's images with the texts of all devices, in their order, text first."""
    if plan.implementation == "reference":
        s_i, s_t = token_similarity(image_tokens, *gather((text_tokens, text_mask), plan.axes))
        return s_i.T, s_t.T
    return _all_similarities(image_tokens, text_tokens, text_mask, plan)


def gather(tree, axes: tuple[str, ...]):
    """The rows of all devices, in their order."""
    return jax.tree.map(lambda x: jax.lax.all_gather(x, axes, tiled=True), tree)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _all_similarities(image_tokens, text_tokens, text_mask, plan):
    return _forward(image_tokens, text_tokens, text_mask, plan)[0]


def _forward(image_tokens, text_tokens, text_mask, plan):
    images = image_tokens.transpose(1, 0, 2)
    shard = blocked.by_length(text_tokens, text_mask)

    def compare(shard, runs=1):
        texts, mask, order = shard
        *similarities, best = blocked.forward(images, texts, mask, plan.implementation, runs)
        place = jnp.argsort(order)
        return [x[place] for x in similarities], best if plan.indices == "save" else None

    if plan.exchange == "gather":
        similarities, best = compare(_gather_shards(shard, plan), plan.devices)
    else:

        def step(shard, _):
            following = pass_on(shard, plan)
            return following, compare(shard)

        _, (similarities, best) = jax.lax.scan(step, shard, None, length=plan.devices)
        met = meetings(plan)
        similarities = [x[met].reshape(-1, x.shape[-1]) for x in similarities]
    return tuple(similarities), (images, shard, best, text_mask.shape[1])


def _backward(plan, residuals, cotangents):
    images, shard, best, length = residuals

    def compare(shard, best, cotangents, runs=1):
        texts, mask, order = shard
        to_text, to_image = (x[order] for x in cotangents)
        return blocked.backward(images, texts, mask, best, to_text, to_image, plan.implementation, runs)

    if plan.exchange == "gather":
        to_images, to_texts = compare(_gather_shards(shard, plan), best, cotangents, plan.devices)
        to_texts = jax.lax.psum_scatter(to_texts, plan.axes, tiled=True)
    else:

        def step(carry, met):
            shard, to_images, to_texts = carry
            following, arrived = pass_on((shard, to_texts), plan)  # both travel while this device computes
            more, to_texts = compare(shard, *met)
            return (following, to_images + more, arrived + to_texts), None

        start = (shard, jnp.zeros(images.shape, jnp.float32), jnp.zeros(shard[0].shape, jnp.float32))
        cotangents = [x.reshape(plan.devices, -1, x.shape[-1])[meetings(plan)] for x in cotangents]
        (_, to_images, to_texts), _ = jax.lax.scan(step, start, (best, cotangents))
        to_texts = pass_on(to_texts, plan)
    to_texts = to_texts[jnp.argsort(shard[2]), :length].astype(shard[0].dtype)
    return to_images.transpose(1, 0, 2).astype(images.dtype), to_texts, None


_all_similarities.defvjp(_forward, _backward)


def _gather_shards(shard, plan):
    """The texts of all devices, one after the other, each sorted."""
    texts, mask, order = shard
    return gather((texts, mask, order + len(order) * jax.lax.axis_index(plan.axes)), plan.axes)


def pass_on(tree, plan: Plan):
    """What each device's neighbour before it in the ring had."""
    neighbours = [(n, (n + 1) % plan.devices) for n in range(plan.devices)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, plan.axes, neighbours), tree)


def meetings(plan: Plan) -> Int[jax.Array, " devices"]:
    """Whose texts this device meets at each step of the ring; this is also when it meets whose."""
    return (jax.lax.axis_index(plan.axes) - jnp.arange(plan.devices)) % plan.devices
