"""The text tower: CLIP's causal transformer, every token out."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from filip_jax.errors import UserError
from filip_jax.mesh import batch_devices, constrain_batch
from filip_jax.models.transformer import TOKENS, Transformer

PAD_ID = 0  # of every tokenizer, behind the last token; CLIP also has a real token 0, never the last
LENGTHS = (16, 24, 32, 48)  # and the whole length; each is compiled


class TextEncoder(nnx.Module):
    """Token ids -> tokens (FILIP table 1); each token sees itself and those before it, so never a pad.

    Args:
        vocab_size: number of token ids.
        length: longest text in tokens, BOS and EOS included.
        length_groups: texts are encoded in so many groups of like length, none longer than it must be,
            with the same result, see `in_length_groups`; 1 encodes all at full length.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        length: int,
        length_groups: int,
        width: int,
        depth: int,
        heads: int,
        activation: str,
        attention: str,
        scan: bool,
        remat: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if length > TOKENS:
            raise UserError(f"model.text.length={length} must be at most {TOKENS}")
        self.dtype, self.length_groups = dtype, length_groups
        self.token_embedding = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (vocab_size, width)))
        self.position = nnx.Param(nnx.initializers.normal(0.01)(rngs.params(), (length, width)))
        self.transformer = Transformer(
            width=width,
            depth=depth,
            heads=heads,
            causal=True,
            activation=activation,
            attention=attention,
            scan=scan,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.post_norm = nnx.LayerNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)

    def __call__(self, ids: Int[jax.Array, "b t"]) -> Float[jax.Array, "b t width"]:
        return in_length_groups(self.encode, ids, self.length_groups)

    def encode(self, ids: Int[jax.Array, "b t"]) -> Float[jax.Array, "b t width"]:
        """All texts at once."""
        x = self.token_embedding[...][ids] + self.position[...][: ids.shape[1]]
        return self.post_norm(self.transformer(x.astype(self.dtype)))


def text_lengths(ids: Int[jax.Array, "*shape t"]) -> Int[jax.Array, "*shape"]:
    """Tokens of each text, its pads not counted."""
    return jnp.max(jnp.where(ids != PAD_ID, jnp.arange(1, ids.shape[-1] + 1), 0), axis=-1)


def in_length_groups(
    encode: Callable[[jax.Array], jax.Array], ids: Int[jax.Array, "b t"], groups: int
) -> Float[jax.Array, "b t width"]:
    """encode(ids) where no token depends on a later one: pads at the end cost next to nothing.

    Each device sorts its texts by length and cuts them into groups; a group is encoded as long as its
    longest text on any device, in steps of LENGTHS, and again in the backward pass. Tokens that were
    cut off are zero. A batch that does not split into the groups is encoded at once.
    """
    devices, t = batch_devices(), ids.shape[1]
    if groups == 1 or len(ids) % (devices * groups):
        return encode(ids)
    lengths = [n for n in LENGTHS if n < t] + [t]

    def cut(n, ids):
        tokens = encode(ids[:, :n])
        return jnp.pad(tokens, ((0, 0), (0, t - n), (0, 0)))

    def group(_, ids):
        longest = text_lengths(ids).max()
        flat = constrain_batch(ids.reshape(-1, t))
        branches = [partial(cut, n) for n in lengths]
        tokens = jax.lax.switch(jnp.searchsorted(jnp.array(lengths), longest), branches, flat)
        return None, tokens.reshape(*ids.shape, -1)

    ids = ids.reshape(devices, -1, t)
    order = jnp.argsort(text_lengths(ids), axis=1)
    sorted_ids = jnp.take_along_axis(ids, order[..., None], axis=1)
    grouped = sorted_ids.reshape(devices, groups, -1, t).swapaxes(0, 1)
    _, tokens = jax.lax.scan(jax.checkpoint(group, prevent_cse=False), None, grouped)
    tokens = tokens.swapaxes(0, 1).reshape(*ids.shape, -1)
    tokens = jnp.take_along_axis(tokens, jnp.argsort(order, axis=1)[..., None, None], axis=1)
    return constrain_batch(tokens.reshape(-1, *tokens.shape[2:]))
