"""The text tower: CLIP's causal transformer, every token out."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from filip_jax.models.transformer import Transformer


class TextEncoder(nnx.Module):
    """Token ids -> tokens (FILIP table 1); each token sees itself and those before it, so never a pad.

    Args:
        vocab_size: number of token ids.
        length: longest text in tokens, BOS and EOS included.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        length: int,
        width: int,
        depth: int,
        heads: int,
        activation: str,
        scan: bool,
        remat: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.token_embedding = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (vocab_size, width)))
        self.position = nnx.Param(nnx.initializers.normal(0.01)(rngs.params(), (length, width)))
        self.transformer = Transformer(
            width=width, depth=depth, heads=heads, causal=True, activation=activation,
            scan=scan, remat=remat, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.post_norm = nnx.LayerNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)

    def __call__(self, ids: Int[jax.Array, "b t"]) -> Float[jax.Array, "b t width"]:
        x = self.token_embedding[...][ids] + self.position[...][: ids.shape[1]]
        return self.post_norm(self.transformer(x.astype(self.dtype)))
