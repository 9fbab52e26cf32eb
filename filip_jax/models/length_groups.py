"""Texts encoded no longer than they must be, for towers in which pads reach no token."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from filip_jax.mesh import batch_devices, constrain_batch
from filip_jax.models.tower import TextInput

LENGTHS = (16, 24, 32, 48)  # and the whole length; each is compiled


def in_length_groups(
    encode: Callable[[jax.Array], jax.Array], ids: Int[jax.Array, "b t"], groups: int, text: TextInput
) -> Float[jax.Array, "b t width"]:
    """Return encode(ids) where no token depends on a pad behind it: pads at the end cost next to nothing.

    Each device sorts its texts by length and cuts them into groups; a group is encoded as long as its
    longest text on any device, in steps of LENGTHS, and again in the backward pass. Tokens that were
    cut off are zero. A batch that does not split into the groups, or whose size is not known, is encoded at once.
    """
    devices, (batch, t) = batch_devices(), ids.shape
    if groups == 1 or not isinstance(batch, int) or batch % (devices * groups):
        return encode(ids)
    lengths = [n for n in LENGTHS if n < t] + [t]

    def cut(n, ids):
        tokens = encode(ids[:, :n])
        return jnp.pad(tokens, ((0, 0), (0, t - n), (0, 0)))

    def group(_, ids):
        longest = text.lengths(ids).max()
        flat = constrain_batch(ids.reshape(-1, t))
        branches = [partial(cut, n) for n in lengths]
        tokens = jax.lax.switch(jnp.searchsorted(jnp.array(lengths), longest), branches, flat)
        return None, tokens.reshape(*ids.shape, -1)

    ids = ids.reshape(devices, -1, t)
    order = jnp.argsort(text.lengths(ids), axis=1)
    sorted_ids = jnp.take_along_axis(ids, order[..., None], axis=1)
    grouped = sorted_ids.reshape(devices, groups, -1, t).swapaxes(0, 1)
    _, tokens = jax.lax.scan(jax.checkpoint(group, prevent_cse=False), None, grouped)
    tokens = tokens.swapaxes(0, 1).reshape(*ids.shape, -1)
    tokens = jnp.take_along_axis(tokens, jnp.argsort(order, axis=1)[..., None, None], axis=1)
    return constrain_batch(tokens.reshape(-1, *tokens.shape[2:]))
