"""A text tower whose tokens see the whole text, pooled at the first token, as in BERT (Devlin et al. 2018, arXiv 1810.04805)."""

import jax
from flax import nnx
from jaxtyping import Float, Int

from filip_jax.errors import UserError
from filip_jax.models.length_groups import in_length_groups
from filip_jax.models.tower import MAX_TOKENS, Execution, Features, TextInput
from filip_jax.models.transformer import Transformer


class BidirectionalText(nnx.Module):
    """Token ids -> tokens; each token sees all of its text, and no pad.

    Args:
        vocab_size, length, length_groups, width, depth, heads, activation: as of `CausalText`.
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
        self.input = TextInput(vocab_size, length, causal=False)
        self.width, self.dtype, self.length_groups = width, execution.dtype, length_groups
        normal = nnx.initializers.normal(0.02)
        self.token_embedding = nnx.Param(normal(rngs.params(), (vocab_size, width)), decay=False, token_ids=True)
        self.position = nnx.Param(normal(rngs.params(), (length, width)), decay=False, positions=(length,))
        self.transformer = Transformer(width, depth, heads, activation, execution, rngs, causal=False)
        self.post_norm = nnx.LayerNorm(width, epsilon=1e-5, dtype=self.dtype, rngs=rngs)

    def __call__(self, ids: Int[jax.Array, "b t"]) -> Features:
        """Return the tokens, normalized by `post_norm`; pooled is the first token, BOS."""
        tokens = in_length_groups(self.encode, ids, self.length_groups, self.input)
        return Features(tokens, tokens[:, 0], self.input.mask(ids))

    def encode(self, ids: Int[jax.Array, "b t"]) -> Float[jax.Array, "b t width"]:
        """Return the tokens of all texts at once."""
        x = self.token_embedding[...][ids] + self.position[...][: ids.shape[1]]
        return self.post_norm(self.transformer(x.astype(self.dtype), self.input.mask(ids)))
