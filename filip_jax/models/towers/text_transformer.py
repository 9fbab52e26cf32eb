"""The text towers of FILIP, CLIP and SigLIP: a transformer, causal or not, pooled at one token."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from filip_jax.errors import UserError
from filip_jax.models.length_groups import in_length_groups
from filip_jax.models.tower import MAX_TOKENS, Execution, Features, TextInput
from filip_jax.models.transformer import Transformer
from filip_jax.sections import choose

POOLINGS = {  # the place of the pooled token in texts of t tokens, from their lengths without pads
    "eos": lambda lengths, t: jnp.maximum(lengths - 1, 0),  # the last that is no pad
    "last": lambda lengths, t: jnp.full_like(lengths, t - 1),
    "first": lambda lengths, t: jnp.zeros_like(lengths),
}


class TextTransformer(nnx.Module):
    """Token ids -> tokens, normalized by `post_norm`; the defaults are FILIP's (table 1) and CLIP's.

    Args:
        vocab_size: number of token ids.
        length: longest text in tokens, BOS and EOS included.
        length_groups: texts are encoded in so many groups of like length, none longer than it must be,
            with the same result, see `in_length_groups`; 1 encodes all at full length.
        width, depth, heads, mlp_width, activation, norm_epsilon: of the `Transformer`.
        causal: whether a token sees itself and those before it only, so that no token of a text sees a pad.
        pad_mask: whether pads are hidden where a token sees all of its text; a causal tower ignores it.
        pooling: "eos": the last token that is no pad; "last": the last place, be it a pad; "first".
        pad_id: of what stands behind the end of a text.
    """

    def __init__(
        self,
        execution: Execution,
        rngs: nnx.Rngs,
        *,
        vocab_size: int,
        length: int,
        length_groups: int = 1,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int | None = None,
        activation: str,
        norm_epsilon: float = 1e-5,
        causal: bool = True,
        pad_mask: bool = True,
        pooling: str = "eos",
        pad_id: int = 0,
    ):
        if length > MAX_TOKENS:
            raise UserError(f"model.text.length={length} must be at most {MAX_TOKENS}")
        if pad_id >= vocab_size:
            raise UserError(f"model.text.pad_id={pad_id} must be below vocab_size={vocab_size}")
        self.place, self.hides_pads = choose(POOLINGS, pooling, "model.text.pooling"), pad_mask and not causal
        if length_groups > 1 and (pooling == "last" or not (causal or pad_mask)):
            raise UserError(
                f"model.text.length_groups={length_groups} cuts off pads, which this tower reads (causal={causal}, "
                f"pad_mask={pad_mask}, pooling={pooling!r}): set it to 1"
            )
        self.input = TextInput(vocab_size, length, causal, pad_id)
        self.width, self.dtype, self.length_groups = width, execution.dtype, length_groups
        embedding, position = nnx.initializers.normal(0.02), nnx.initializers.normal(0.01)
        self.token_embedding = nnx.Param(embedding(rngs.params(), (vocab_size, width)), decay=False, token_ids=True)
        self.position = nnx.Param(position(rngs.params(), (length, width)), decay=False, positions=(length,))
        options: dict[str, Any] = dict(causal=causal, mlp_width=mlp_width, norm_epsilon=norm_epsilon)
        self.transformer = Transformer(width, depth, heads, activation, execution, rngs, **options)
        self.post_norm = nnx.LayerNorm(width, epsilon=norm_epsilon, dtype=self.dtype, rngs=rngs)

    def __call__(self, ids: Int[jax.Array, "b t"]) -> Features:
        """Return the features of the texts."""
        tokens = in_length_groups(self.encode, ids, self.length_groups, self.input)
        place = self.place(self.input.lengths(ids), ids.shape[1])
        pooled = jnp.take_along_axis(tokens, place[:, None, None], axis=1)[:, 0]
        return Features(tokens, pooled, self.input.mask(ids))

    def encode(self, ids: Int[jax.Array, "b t"]) -> Float[jax.Array, "b t width"]:
        """Return the tokens of all texts at once."""
        x = self.token_embedding[...][ids] + self.position[...][: ids.shape[1]]
        # A text of pads alone, an absent caption, sees its first: attention to nothing is no number.
        seen = self.input.mask(ids).at[:, 0].set(True)[:, None, None] if self.hides_pads else None
        return self.post_norm(self.transformer(x.astype(self.dtype), seen))
