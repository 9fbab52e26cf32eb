"""Pre-norm transformer blocks, stacked for a scan: the body of both towers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from filip_jax.errors import UserError
from filip_jax.mesh import constrain_batch
from filip_jax.sections import choose

# Programs for the same function, and the one platform where each is compiled and runs; "" for any.
ATTENTIONS = {"xla": "", "cudnn": "gpu"}
CUDNN_HEAD = 128  # the widest head that every GPU takes
MAX_LAYERS = 1024  # of a tower: without `scan` each is compiled
TOKENS = 2**16  # most that a tower takes: the loss numbers them with two bytes
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # what CLIP, FILIP and Wukong were trained with
}


class Attention(nnx.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values."""

    def __init__(
        self,
        width: int,
        heads: int,
        causal: bool,
        implementation: str,
        out_std: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        linear = partial(nnx.Linear, dtype=dtype, rngs=rngs)
        self.heads, self.causal = heads, causal
        self.implementation: Any = implementation  # one of ATTENTIONS, for JAX a Literal
        self.qkv = linear(width, 3 * width, kernel_init=nnx.initializers.normal(width**-0.5))
        self.out = linear(width, width, kernel_init=nnx.initializers.normal(out_std))

    def __call__(self, x: Float[jax.Array, "b n w"]) -> Float[jax.Array, "b n w"]:
        batch, length, width = x.shape
        heads = self.qkv(x.reshape(-1, width)).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = heads[:, :, 0], heads[:, :, 1], heads[:, :, 2]
        x = jax.nn.dot_product_attention(query, key, value, is_causal=self.causal, implementation=self.implementation)
        return self.out(x.reshape(-1, width)).reshape(batch, length, width)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the initial spreads are CLIP's."""

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int,
        causal: bool,
        activation: str,
        attention: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        out_std = width**-0.5 * (2 * depth) ** -0.5
        norm = partial(nnx.LayerNorm, width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        linear = partial(nnx.Linear, dtype=dtype, rngs=rngs)
        self.activation = choose(ACTIVATIONS, activation, "model.activation")
        self.attention_norm = norm()
        self.attention = Attention(width, heads, causal, attention, out_std, dtype, rngs)
        self.mlp_norm = norm()
        self.mlp_in = linear(width, 4 * width, kernel_init=nnx.initializers.normal((2 * width) ** -0.5))
        self.mlp_out = linear(4 * width, width, kernel_init=nnx.initializers.normal(out_std))

    def __call__(self, x: Float[jax.Array, "b n w"]) -> Float[jax.Array, "b n w"]:
        x = x + self.attention(self.attention_norm(x))
        y = self.mlp_norm(x).reshape(-1, x.shape[-1])
        return x + self.mlp_out(self.activation(self.mlp_in(y))).reshape(x.shape)


class Transformer(nnx.Module):
    """`depth` blocks whose parameters are stacked on a first axis, run by one scan.

    Args:
        scan: True compiles one block (short compile, big models); False unrolls them (faster on CPUs).
            The parameters are the same either way.
        attention: "xla", or "cudnn": cuDNN's fused attention, on NVIDIA GPUs and in bfloat16 only.
        remat: whether the backward pass recomputes each block from its input instead of storing it.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        causal: bool,
        activation: str,
        attention: str,
        scan: bool,
        remat: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if depth > MAX_LAYERS:
            raise UserError(f"a tower of depth={depth}; at most {MAX_LAYERS} layers are built")
        if width % heads:
            raise UserError(f"a tower of width={width} does not split into heads={heads}")
        choose(ATTENTIONS, attention, "model.attention")
        head = width // heads
        if attention == "cudnn" and (dtype != jnp.bfloat16 or head % 8 or head > CUDNN_HEAD):
            raise UserError(
                f"model.attention='cudnn' needs model.dtype='bfloat16' and heads of a multiple of 8 up to {CUDNN_HEAD}, "
                f"not {dtype.name} and heads of {head} (width={width}, heads={heads})"
            )
        self.unroll, self.remat = (1 if scan else depth), remat

        def block(key):
            return Block(width, heads, depth, causal, activation, attention, dtype, nnx.Rngs(key))

        self.blocks = jax.vmap(block)(jax.random.split(rngs.params(), depth))

    def __call__(self, x: Float[jax.Array, "b n w"]) -> Float[jax.Array, "b n w"]:
        def apply(block, x):
            return constrain_batch(block(x))

        def step(x, block):
            return (jax.checkpoint(apply) if self.remat else apply)(block, x), None

        return jax.lax.scan(step, constrain_batch(x), self.blocks, unroll=self.unroll)[0]
