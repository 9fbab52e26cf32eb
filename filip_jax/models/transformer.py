"""Pre-norm transformer blocks, stacked for a scan: the body of both towers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float

from filip_jax.errors import UserError
from filip_jax.mesh import constrain_batch
from filip_jax.models.tower import Execution
from filip_jax.sections import choose

# Programs for the same function, and the one platform where each is compiled and runs; "" for any.
ATTENTIONS = {"xla": "", "cudnn": "gpu"}
CUDNN_HEAD = 128  # the widest head that every GPU takes
MAX_LAYERS = 1024  # of a tower: without `scan` each is compiled
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # what CLIP, FILIP and Wukong were trained with
}


class Attention(nnx.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values."""

    def __init__(self, width: int, heads: int, causal: bool, execution: Execution, out_std: float, rngs: nnx.Rngs):
        linear = partial(nnx.Linear, dtype=execution.dtype, rngs=rngs)
        self.heads, self.causal = heads, causal
        self.implementation: Any = execution.attention  # one of ATTENTIONS, for JAX a Literal
        self.qkv = linear(width, 3 * width, kernel_init=nnx.initializers.normal(width**-0.5))
        self.out = linear(width, width, kernel_init=nnx.initializers.normal(out_std))

    def __call__(self, x: Float[jax.Array, "b n w"], mask: Bool[jax.Array, "b n"] | None) -> Float[jax.Array, "b n w"]:
        batch, length, width = x.shape
        heads = self.qkv(x.reshape(-1, width)).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = heads[:, :, 0], heads[:, :, 1], heads[:, :, 2]
        options = dict(is_causal=self.causal, implementation=self.implementation)
        x = jax.nn.dot_product_attention(
            query, key, value, mask=None if mask is None else mask[:, None, None], **options
        )
        return self.out(x.reshape(-1, width)).reshape(batch, length, width)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the initial spreads are CLIP's."""

    def __init__(
        self, width: int, heads: int, depth: int, causal: bool, activation: str, execution: Execution, rngs: nnx.Rngs
    ):
        out_std = width**-0.5 * (2 * depth) ** -0.5
        norm = partial(nnx.LayerNorm, width, epsilon=1e-5, dtype=execution.dtype, rngs=rngs)
        linear = partial(nnx.Linear, dtype=execution.dtype, rngs=rngs)
        self.activation = ACTIVATIONS[activation]
        self.attention_norm = norm()
        self.attention = Attention(width, heads, causal, execution, out_std, rngs)
        self.mlp_norm = norm()
        self.mlp_in = linear(width, 4 * width, kernel_init=nnx.initializers.normal((2 * width) ** -0.5))
        self.mlp_out = linear(4 * width, width, kernel_init=nnx.initializers.normal(out_std))

    def __call__(self, x: Float[jax.Array, "b n w"], mask: Bool[jax.Array, "b n"] | None) -> Float[jax.Array, "b n w"]:
        x = x + self.attention(self.attention_norm(x), mask)
        y = self.mlp_norm(x).reshape(-1, x.shape[-1])
        return x + self.mlp_out(self.activation(self.mlp_in(y))).reshape(x.shape)


class Transformer(nnx.Module):
    """`depth` blocks whose parameters are stacked on a first axis, run by one scan.

    Args:
        activation: one of `ACTIVATIONS`.
        causal: whether a token sees itself and those before it only.
    """

    def __init__(
        self, width: int, depth: int, heads: int, activation: str, execution: Execution, rngs: nnx.Rngs, *, causal: bool
    ):
        if depth > MAX_LAYERS:
            raise UserError(f"a tower of depth={depth}; at most {MAX_LAYERS} layers are built")
        if width % heads:
            raise UserError(f"a tower of width={width} does not split into heads={heads}")
        choose(ACTIVATIONS, activation, "a tower's activation")
        _check_attention(execution, width, heads)
        self.unroll, self.remat = (1 if execution.scan else depth), execution.remat

        def block(key):
            return Block(width, heads, depth, causal, activation, execution, nnx.Rngs(key))

        self.blocks = jax.vmap(block)(jax.random.split(rngs.params(), depth))
        for _, parameter in nnx.to_flat_state(nnx.state(self.blocks)):
            parameter.set_metadata(stacked=True)

    def __call__(
        self, x: Float[jax.Array, "b n w"], mask: Bool[jax.Array, "b n"] | None = None
    ) -> Float[jax.Array, "b n w"]:
        """Return the tokens after all blocks; those where the mask is False reach no other."""

        def apply(block, x, mask):
            return constrain_batch(block(x, mask))

        def step(x, block):
            return (jax.checkpoint(apply) if self.remat else apply)(block, x, mask), None

        return jax.lax.scan(step, constrain_batch(x), self.blocks, unroll=self.unroll)[0]


def _check_attention(execution: Execution, width: int, heads: int) -> None:
    choose(ATTENTIONS, execution.attention, "model.attention")
    head, dtype = width // heads, execution.dtype
    if execution.attention == "cudnn" and (dtype != jnp.bfloat16 or head % 8 or head > CUDNN_HEAD):
        raise UserError(
            f"model.attention='cudnn' needs model.dtype='bfloat16' and heads of a multiple of 8 up to {CUDNN_HEAD}, "
            f"not {dtype.name} and heads of {head} (width={width}, heads={heads})"
        )
