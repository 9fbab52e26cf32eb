"""SigLIP's pooling: a learned probe looks at all tokens (multihead attention pooling, Zhai et al. 2022, arXiv 2106.04560)."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from filip_jax.models.linear import Linear
from filip_jax.models.tower import Execution
from filip_jax.models.transformer import ACTIVATIONS, Attention


class MapHead(nnx.Module):
    """x = attention of a probe to all tokens, then x + mlp(norm(x)).

    Args:
        width, heads, activation, mlp_width, norm_epsilon: as of `Transformer`.
    """

    def __init__(
        self, width: int, heads: int, activation: str, execution: Execution, rngs: nnx.Rngs, *,
        mlp_width: int | None, norm_epsilon: float,
    ):  # fmt: skip
        normal, hidden = nnx.initializers.normal(width**-0.5), mlp_width or 4 * width
        linear = partial(Linear, kernel_init=normal, dtype=execution.dtype, rngs=rngs)
        self.activation = ACTIVATIONS[activation]
        self.probe = nnx.Param(normal(rngs.params(), (width,)))
        self.attention = Attention(width, heads, False, replace(execution, attention="xla"), width**-0.5, rngs)
        self.norm = nnx.LayerNorm(width, epsilon=norm_epsilon, dtype=execution.dtype, rngs=rngs)
        self.mlp_in, self.mlp_out = linear(width, hidden), linear(hidden, width)

    def __call__(self, tokens: Float[jax.Array, "b n w"]) -> Float[jax.Array, "b w"]:
        probe = jnp.broadcast_to(self.probe[...].astype(tokens.dtype), tokens[:, :1].shape)
        are_tokens = jnp.arange(tokens.shape[1] + 1) > 0  # the probe does not see itself
        x = self.attention(jnp.concatenate([probe, tokens], axis=1), are_tokens[None, None, None], queries=1)[:, 0]
        return x + self.mlp_out(self.activation(self.mlp_in(self.norm(x))))
