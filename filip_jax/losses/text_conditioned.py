"""Images pooled for a text: attention of its vector to the image's tokens, as a similarity for `pair_losses`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filip_jax.errors import UserError
from filip_jax.losses.block_function import BlockFunction
from filip_jax.sections import DTYPES, one_of

EPSILON = 1e-5  # of the norms, as published
SMALLEST = 1e-6  # length of a pooled vector below which it counts as none
PROJECTED = ("query", "key", "value")
Parameters = Mapping[str, Array]


@dataclass(frozen=True)
class TextConditioned:
    """FLAIR's attention pooling (Xiao et al. 2025, arXiv 2412.03561, section 3.2): one block, shared by all pairs.

    Query, keys and values have a layer norm and a projection each. There is one more key and value, of zeros, so that a text
    may attend to nothing, and no residual. Layer norms forget lengths: vectors of length 1 are scaled up to one per dimension.

    Attributes:
        heads: of the attention.
        dtype: of the products; sums, weights and norms are float32.

    Raises:
        UserError: an option that cannot be.
    """

    heads: int
    dtype: str

    def __post_init__(self):
        if self.heads < 1:
            raise UserError(f"heads={self.heads} must be at least 1")
        one_of(DTYPES, self.dtype, "dtype")

    def init(self, key: jax.Array, name: str, dim: int) -> Array:
        """Return the first value of a parameter: kernels [dim, dim] by Glorot, biases of 0, scales of 1.

        Raises:
            UserError: the heads do not divide the dimension.
        """
        if dim % self.heads:
            raise UserError(f"heads={self.heads} must divide model.embed_dim={dim}")
        if name.endswith("kernel"):
            return jax.nn.initializers.glorot_uniform()(key, (dim, dim), jnp.float32)
        return jnp.ones(dim) if name.endswith("scale") else jnp.zeros(dim)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters."""
        norms = (f"{name}_norm_{part}" for name in PROJECTED for part in ("scale", "bias"))
        return *norms, *(f"{name}_{part}" for name in (*PROJECTED, "output") for part in ("kernel", "bias"))

    def project(
        self, parameters: Parameters, name: str, vectors: Float[Array, "*rows d"]
    ) -> Float[Array, "*rows heads e"]:
        """Return the queries, keys or values of vectors of length 1, by head."""
        vectors = vectors * math.sqrt(vectors.shape[-1])
        centered = vectors - vectors.mean(axis=-1, keepdims=True)
        normal = centered * jax.lax.rsqrt(jnp.square(centered).mean(axis=-1, keepdims=True) + EPSILON)
        x = normal * parameters[f"{name}_norm_scale"] + parameters[f"{name}_norm_bias"]
        x = self._product("...d,de->...e", x, parameters[f"{name}_kernel"]) + parameters[f"{name}_bias"]
        return x.reshape(*x.shape[:-1], self.heads, -1)

    def compare(
        self,
        parameters: Parameters,
        images: tuple[Float[Array, "i p heads e"], Float[Array, "i p heads e"]],
        texts: tuple[Float[Array, "j heads e"], Float[Array, "j d"]],
    ) -> Float[Array, "j i"]:
        """Return the cosine of each text's vector and each image pooled for it.

        Args:
            parameters: of the output.
            images: keys and values.
            texts: queries, and vectors of length 1.
        """
        (keys, values), (queries, vectors) = images, texts
        scores = self._product("jhe,iphe->jihp", queries, keys) / math.sqrt(queries.shape[-1])
        top = jax.lax.stop_gradient(jnp.maximum(scores.max(axis=-1, keepdims=True), 0.0))
        weights = jnp.exp(scores - top)
        weights /= weights.sum(axis=-1, keepdims=True) + jnp.exp(-top)  # the key of zeros has the score 0
        pooled = self._product("jihp,iphe->jihe", weights, values)
        pooled = pooled.reshape(*pooled.shape[:2], -1)
        pooled = self._product("jid,de->jie", pooled, parameters["output_kernel"]) + parameters["output_bias"]
        pooled *= jax.lax.rsqrt(jnp.square(pooled).sum(axis=-1, keepdims=True) + SMALLEST**2)
        return self._product("jid,jd->ji", pooled, vectors)

    def of_pairs(self, images: Any, texts: Any, exchange: str) -> BlockFunction:
        """Return the similarity of these keys and values with all texts of the batch, few at a time, for `pair_losses`.

        Args:
            images: as of `compare`.
            texts: as of `compare`, with the captions of an image as a second axis.
            exchange: see `BlockFunction`.
        """
        tokens, heads, size = images[0].shape[1:]
        bytes_per_pair = 4 * heads * (3 * tokens + 4 * size)
        return BlockFunction(
            lambda parameters, images, texts: (self.compare(parameters, images, texts),),
            lambda encoded: (images, texts),
            bytes_per_pair,
            exchange,
        )

    def of_own(self, parameters: Parameters, images: Any, texts: Any) -> Float[Array, "b k"]:
        """Return the similarity of each image with its own captions, recomputed in the backward pass."""

        def of_one(image, texts):
            return self.compare(parameters, jax.tree.map(lambda x: x[None], image), texts)[:, 0]

        return jax.checkpoint(jax.vmap(of_one))(images, texts)

    def _product(self, equation: str, x: Array, y: Array) -> Array:
        return jnp.einsum(equation, x.astype(self.dtype), y.astype(self.dtype), preferred_element_type=jnp.float32)
