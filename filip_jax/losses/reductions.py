"""How the terms of all pairs are reduced over one side: block by block, across devices, and back.

A block's terms are a matrix [j, i] of texts and images. Reduced over texts (axis 0) they give one number for each image,
over images (axis 1) one for each text. A reduction keeps a state, an array or a tuple of arrays, that further blocks join.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

State = Any
Key = tuple[str, str, str]  # of a term: its loss, the side that it is reduced over, its reduction
SIDES = ("over_texts", "over_images")
NO_INDEX = jnp.iinfo(jnp.int32).max


@dataclass(frozen=True)
class Reduction:
    """One way to reduce terms.

    Attributes:
        start: rows -> the state before the first block.
        of_block: (terms [j, i], axis, indices of the samples along that axis, mesh axes over which further terms of the
            same samples lie) -> state of the samples along the other axis.
        join: (state, state) -> the state of both parts.
        across: (state of all texts over this device's images, axes) -> that of this device's texts over all images.
        value: state -> the reduced terms.
        derivative: (terms [j, i], state, indices), the latter two broadcast to the terms -> d value / d terms.
    """

    start: Callable[[int], State]
    of_block: Callable[[Float[jax.Array, "j i"], int, Int[jax.Array, " along"], tuple[str, ...]], State]
    join: Callable[[State, State], State]
    across: Callable[[State, tuple[str, ...]], State]
    value: Callable[[State], jax.Array]
    derivative: Callable[[Float[jax.Array, "j i"], State, jax.Array], jax.Array | float]


def own_rows(x: jax.Array, axes: tuple[str, ...], devices: int) -> jax.Array:
    """Return this device's share of rows that every device holds."""
    rows = len(x) // devices
    return jax.lax.dynamic_slice_in_dim(x, rows * jax.lax.axis_index(axes), rows)


def _sum_across(x, axes):
    return jax.lax.psum_scatter(x, axes, tiled=True)


def _exp_of_block(x, axis, indices, axes):
    """Return the maximum and the sum of exponentials below it: their logarithm is rounded once, at the end."""
    highest = jax.lax.pmax(jax.lax.stop_gradient(x.max(axis=axis, keepdims=True)), axes)
    return highest.squeeze(axis), jnp.exp(x - highest).sum(axis=axis)


def _exp_join(first, second):
    (highest, total), (other, more) = first, second
    top = jnp.maximum(highest, other)
    return top, total * jnp.exp(highest - top) + more * jnp.exp(other - top)


def _exp_across(state, axes):
    highest, total = state
    top = jax.lax.pmax(highest, axes)
    total = jax.lax.psum_scatter(total * jnp.exp(highest - top), axes, tiled=True)
    return own_rows(top, axes, jax.lax.psum(1, axes)), total


def _max_of_block(x, axis, indices, axes):
    best = jnp.argmax(x, axis=axis, keepdims=True)
    return jnp.take_along_axis(x, best, axis).squeeze(axis), indices[best.squeeze(axis)]


def _max_join(first, second):
    """Join two maxima; of equal ones that with the lower index stays, so that the order of blocks does not matter."""
    (x, index), (other, other_index) = first, second
    wins = (x > other) | ((x == other) & (index < other_index))
    return jnp.where(wins, x, other), jnp.where(wins, index, other_index)


def _max_across(state, axes):
    x, index = state
    highest = jax.lax.pmax(jax.lax.stop_gradient(x), axes)
    winner = jax.lax.pmin(jnp.where(x == highest, index, NO_INDEX), axes)
    best = jax.lax.psum_scatter(jnp.where(index == winner, x, 0.0), axes, tiled=True)
    return best, own_rows(winner, axes, jax.lax.psum(1, axes))


REDUCTIONS = {
    "sum": Reduction(
        start=jnp.zeros,
        of_block=lambda x, axis, indices, axes: x.sum(axis=axis),
        join=jnp.add,
        across=_sum_across,
        value=lambda state: state,
        derivative=lambda x, state, indices: 1.0,
    ),
    "logsumexp": Reduction(
        start=lambda rows: (jnp.full(rows, -jnp.inf), jnp.zeros(rows)),
        of_block=_exp_of_block,
        join=_exp_join,
        across=_exp_across,
        value=lambda state: state[0] + jnp.log(state[1]),
        derivative=lambda x, state, indices: jnp.exp(x - state[0]) / state[1],
    ),
    # The index, not the value, says which term won: a value computed again in another program may differ in its last bit.
    "max": Reduction(
        start=lambda rows: (jnp.full(rows, -jnp.inf), jnp.full(rows, NO_INDEX)),
        of_block=_max_of_block,
        join=_max_join,
        across=_max_across,
        value=lambda state: state[0],
        derivative=lambda x, state, indices: (indices == state[1]).astype(x.dtype),
    ),
}


def block_states(
    terms: Mapping[Key, Float[jax.Array, "j i"]],
    image_index: Int[jax.Array, " i"],
    text_index: Int[jax.Array, " j"],
    axes: tuple[str, ...] = (),
) -> dict[Key, State]:
    """Return the state of each term after one block, of images for terms over texts and of texts for those over images.

    Args:
        axes: of the mesh, over which the terms of the same texts with further images lie.
    """
    along = {"over_texts": (0, text_index, ()), "over_images": (1, image_index, axes)}
    return {key: REDUCTIONS[key[2]].of_block(x, *along[key[1]]) for key, x in terms.items()}


def across(states: Mapping[Key, State], axes: tuple[str, ...]) -> dict[Key, State]:
    """Return the states of which those of all texts over this device's images become its texts' over all images."""
    return {
        key: REDUCTIONS[key[2]].across(state, axes) if key[1] == "over_images" else state
        for key, state in states.items()
    }


def values(states: Mapping[Key, State]) -> dict[Key, jax.Array]:
    """Return the reduced terms."""
    return {key: REDUCTIONS[key[2]].value(state) for key, state in states.items()}
