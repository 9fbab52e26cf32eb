"""The text tower of FILIP and CLIP: a causal transformer, pooled at the last token."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from filip_jax.errors import UserError
from filip_jax.models.length_groups import in_length_groups
from filip_jax.models.tower import MAX_TOKENS, Execution, Features, TextInput
from filip_jax.models.transformer import Transformer


class CausalText(nnx.Module):
    """Token ids -> tokens (FILIP table 1); each token sees itself and those before it, so never a pad.

    Args:
        vocab_size: number of token ids.
        length: longest text in tokens, BOS and EOS included.
        length_groups: texts are encoded in so many groups of like length, none longer than it must be,
            with the same result, see `in_length_groups`; 1 encodes all at full length.
        width, depth, heads, activation: of the `Transformer`.
    """

    def __init__(
        self,
        execution: Execution,
        rngs: nnx.Rngs,
        *,
        vocab_size: int,
        length: int,
        length_groups: int,
        width: int,
        depth: int,
        heads: int,
        activation: str,
    ):
        if length > MAX_TOKENS:
            raise UserError(f"model.text.length={length} must be at most {MAX_TOKENS}")
        self.input = TextInput(vocab_size, length, causal=True)
        self.width, self.dtype, self.length_groups = width, execution.dtype, length_groups
        embedding, position = nnx.initializers.normal(0.02), nnx.initializers.normal(0.01)
        self.token_embedding = nnx.Param(embedding(rngs.params(), (vocab_size, width)), decay=False, token_ids=True)
        self.position = nnx.Param(position(rngs.params(), (length, width)), decay=False, positions=(length,))
        self.transformer = Transformer(width, depth, heads, activation, execution, rngs, causal=self.input.causal)
        self.post_norm = nnx.LayerNorm(width, epsilon=1e-5, dtype=self.dtype, rngs=rngs)

    def __call__(self, ids: Int[jax.Array, "b t"]) -> Features:
        """Return the tokens, normalized by `post_norm`; pooled is the last token, EOS."""
        tokens = in_length_groups(self.encode, ids, self.length_groups, self.input)
        last = jnp.maximum(self.input.lengths(ids) - 1, 0)
        pooled = jnp.take_along_axis(tokens, last[:, None, None], axis=1)[:, 0]
        return Features(tokens, pooled, self.input.mask(ids))

    def encode(self, ids: Int[jax.Array, "b t"]) -> Float[jax.Array, "b t width"]:
        """Return the tokens of all texts at once."""
        x = self.token_embedding[...][ids] + self.position[...][: ids.shape[1]]
        return self.post_norm(self.transformer(x.astype(self.dtype)))
