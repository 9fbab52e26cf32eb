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
from filip_jax.models.linear import Linear
from filip_jax.models.tower import Execution
from filip_jax.sections import at_least, choose

# Programs for the same function, and the one platform where each is compiled and runs; "" for any.
ATTENTIONS = {"xla": "", "cudnn": "gpu"}
CUDNN_HEAD = 128  # the widest head that every GPU takes
MAX_LAYERS = 1024  # of a tower: without `scan` each is compiled
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),  # what SigLIP was trained with
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # what CLIP, FILIP and Wukong were trained with
}
Visible = Bool[jax.Array, "#b 1 #n m"]  # which of m tokens each of n sees


class Attention(nnx.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values."""

    def __init__(self, width: int, heads: int, causal: bool, execution: Execution, out_std: float, rngs: nnx.Rngs):
        linear = partial(Linear, dtype=execution.dtype, rngs=rngs)
        self.heads, self.causal = heads, causal
        self.implementation: Any = execution.attention  # one of ATTENTIONS, for JAX a Literal
        self.qkv = linear(width, 3 * width, kernel_init=nnx.initializers.normal(width**-0.5))
        self.out = linear(width, width, kernel_init=nnx.initializers.normal(out_std))

    def __call__(
        self, x: Float[jax.Array, "b n w"], visible: Visible | None, queries: int | None = None
    ) -> Float[jax.Array, "b queries w"]:
        """Return what the first `queries` tokens see, by default all."""
        batch, length, width = x.shape
        heads = self.qkv(x.reshape(-1, width)).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = heads[:, :queries, 0], heads[:, :, 1], heads[:, :, 2]
        options = dict(is_causal=self.causal, implementation=self.implementation)
        x = jax.nn.dot_product_attention(query, key, value, mask=visible, **options)
        return self.out(x.reshape(-1, width)).reshape(batch, queries or length, width)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the initial spreads are CLIP's.

    With layer scale (CaiT, arXiv 2103.17239) both terms are multiplied by a learned number for each feature.
    """

    def __init__(
        self, width: int, heads: int, depth: int, activation: str, execution: Execution, rngs: nnx.Rngs, *,
        causal: bool, mlp_width: int, norm_epsilon: float, layer_scale: float | None,
    ):  # fmt: skip
        out_std = width**-0.5 * (2 * depth) ** -0.5
        norm = partial(nnx.LayerNorm, width, epsilon=norm_epsilon, dtype=execution.dtype, rngs=rngs)
        linear = partial(Linear, dtype=execution.dtype, rngs=rngs)
        self.activation = ACTIVATIONS[activation]
        self.attention_norm = norm()
        self.attention = Attention(width, heads, causal, execution, out_std, rngs)
        self.mlp_norm = norm()
        self.mlp_in = linear(width, mlp_width, kernel_init=nnx.initializers.normal((2 * width) ** -0.5))
        self.mlp_out = linear(mlp_width, width, kernel_init=nnx.initializers.normal(out_std))
        scales = [None if layer_scale is None else nnx.Param(jnp.full(width, float(layer_scale))) for _ in range(2)]
        self.attention_scale, self.mlp_scale = scales

    def __call__(self, x: Float[jax.Array, "b n w"], visible: Visible | None) -> Float[jax.Array, "b n w"]:
        # Norms and activations are computed again in the backward pass: what they would keep costs more than they do.
        again = partial(jax.checkpoint, prevent_cse=False)
        x = x + _scaled(self.attention(again(self.attention_norm)(x), visible), self.attention_scale)
        y = again(self.mlp_norm)(x).reshape(-1, x.shape[-1])
        return x + _scaled(self.mlp_out(again(self.activation)(self.mlp_in(y))), self.mlp_scale).reshape(x.shape)


def _scaled(x: jax.Array, scale: nnx.Param | None) -> jax.Array:
    return x if scale is None else x * scale[...].astype(x.dtype)


class Transformer(nnx.Module):
    """`depth` blocks whose parameters are stacked on a first axis, run by one scan.

    Args:
        activation: one of `ACTIVATIONS`.
        causal: whether a token sees itself and those before it only.
        mlp_width: of the hidden layer of each block; None is 4 x width.
        norm_epsilon: what norms add to variances.
        layer_scale: the initial value of each block's layer scale; None has no such parameters.
    """

    def __init__(
        self, width: int, depth: int, heads: int, activation: str, execution: Execution, rngs: nnx.Rngs, *,
        causal: bool, mlp_width: int | None = None, norm_epsilon: float = 1e-5, layer_scale: float | None = None,
    ):  # fmt: skip
        if depth > MAX_LAYERS:
            raise UserError(f"a tower of depth={depth}; at most {MAX_LAYERS} layers are built")
        if width % heads:
            raise UserError(f"a tower of width={width} does not split into heads={heads}")
        choose(ACTIVATIONS, activation, "a tower's activation")
        at_least(0, "a tower's", norm_epsilon=norm_epsilon)
        _check_attention(execution, width, heads)
        self.unroll, self.remat = (1 if execution.scan else depth), execution.remat
        options: dict[str, Any] = dict(
            causal=causal, mlp_width=mlp_width or 4 * width, norm_epsilon=norm_epsilon, layer_scale=layer_scale
        )

        def block(key):
            return Block(width, heads, depth, activation, execution, nnx.Rngs(key), **options)

        self.blocks = jax.vmap(block)(jax.random.split(rngs.params(), depth))
        for _, parameter in nnx.to_flat_state(nnx.state(self.blocks)):
            parameter.set_metadata(stacked=True)

    def __call__(
        self, x: Float[jax.Array, "b n w"], visible: Visible | None = None, visible_last: Visible | None = None
    ) -> Float[jax.Array, "b n w"]:
        """Return the tokens after all blocks.

        Args:
            visible: which tokens each sees; None for all.
            visible_last: the same of the last block alone, instead of `visible`; the others see all.
        """

        def apply(block, x, visible):
            return constrain_batch(block(x, visible))

        def step(x, layer):
            block, is_last = layer
            seen = visible if visible_last is None else visible_last | ~is_last
            return (jax.checkpoint(apply) if self.remat else apply)(block, x, seen), None

        depth = len(jax.tree.leaves(self.blocks)[0])
        layers = (self.blocks, jnp.arange(depth) == depth - 1)
        return jax.lax.scan(step, constrain_batch(x), layers, unroll=self.unroll)[0]


def _check_attention(execution: Execution, width: int, heads: int) -> None:
    choose(ATTENTIONS, execution.attention, "model.attention")
    head, dtype = width // heads, execution.dtype
    if execution.attention == "cudnn" and (dtype != jnp.bfloat16 or head % 8 or head > CUDNN_HEAD):
        raise UserError(
            f"model.attention='cudnn' needs model.dtype='bfloat16' and heads of a multiple of 8 up to {CUDNN_HEAD}, "
            f"not {dtype.name} and heads of {head} (width={width}, heads={heads})"
        )
