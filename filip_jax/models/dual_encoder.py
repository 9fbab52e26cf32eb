"""Two towers that meet only in the loss: images and texts as L2-normalised tokens of one space."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int, UInt8

from filip_jax.errors import UserError
from filip_jax.models.image_encoder import ImageEncoder
from filip_jax.models.text_encoder import TextEncoder, text_lengths
from filip_jax.sections import call

POOLINGS = ("tokens", "global")
DTYPES = ("float32", "bfloat16")


class DualEncoder(nnx.Module):
    """FILIP's model (section 3) or, with global pooling, CLIP's.

    Args:
        embed_dim: dimension of the shared space, of each token.
        pooling: "tokens" for the late interaction of all tokens; "global" for one token per side,
            CLIP's: the class token of the image, the EOS token of the text.
        dtype: of the computation; parameters, normalisation and outputs are float32.
        class_token: whether the image tower has one.
        cls_in_similarity, bos_in_similarity, eos_in_similarity: whether these tokens take part in
            the late interaction. The paper: no, yes, yes. Pads never do.
        logit_scale_init: start of the learned multiplier of similarities, 1 / temperature.
        image, text: what `ImageEncoder` and `TextEncoder` take of their own.
        activation, attention, scan, remat: of the blocks of both towers, see `Transformer`.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        pooling: str,
        dtype: str,
        class_token: bool,
        cls_in_similarity: bool,
        bos_in_similarity: bool,
        eos_in_similarity: bool,
        logit_scale_init: float,
        activation: str,
        attention: str,
        scan: bool,
        remat: bool,
        image: dict,
        text: dict,
        rngs: nnx.Rngs,
    ):
        if pooling not in POOLINGS:
            raise UserError(f"model.pooling={pooling!r} is not one of {', '.join(POOLINGS)}")
        if dtype not in DTYPES:
            raise UserError(f"model.dtype={dtype!r} is not one of {', '.join(DTYPES)}")
        if not class_token and (pooling == "global" or cls_in_similarity):
            raise UserError("model.class_token=False, but global pooling and cls_in_similarity need the class token")
        if not logit_scale_init > 0:
            raise UserError(f"model.logit_scale_init={logit_scale_init} must be above 0")
        self.pooling, self.class_token = pooling, class_token
        self.cls_in_similarity = cls_in_similarity
        self.bos_in_similarity, self.eos_in_similarity = bos_in_similarity, eos_in_similarity
        shared = dict(
            activation=activation, attention=attention, scan=scan, remat=remat, dtype=jnp.dtype(dtype), rngs=rngs
        )
        self.image = call(ImageEncoder, image, "model.image", class_token=class_token, **shared)
        self.text = call(TextEncoder, text, "model.text", **shared)
        self.image_projection = _projection(image["width"], embed_dim, dtype, rngs)
        self.text_projection = _projection(text["width"], embed_dim, dtype, rngs)
        self.logit_scale = nnx.Param(jnp.array(math.log(logit_scale_init), jnp.float32))

    def encode_image(
        self,
        images: UInt8[jax.Array, "b h w 3"],
        pooling: str | None = None,
        noise: Float[jax.Array, "b patches"] | None = None,
    ) -> Float[jax.Array, "b p d"]:
        """Image tokens of the pooling given, else the model's own: patches row by row, or one token.

        With noise, as in training, the model's share of patches is dropped, see `ImageEncoder`.
        """
        return self.project_image(self.image(images, noise), pooling or self.pooling)

    def encode_text(
        self, ids: Int[jax.Array, "b t"], pooling: str | None = None
    ) -> tuple[Float[jax.Array, "b k d"], Bool[jax.Array, "b k"]]:
        """Text tokens and the mask of those that take part; k is t, or 1 if the pooling is global."""
        return self.project_text(self.text(ids), ids, pooling or self.pooling)

    def image_features(
        self, images: UInt8[jax.Array, "b h w 3"], pooling: str | None = None
    ) -> Float[jax.Array, "b width"]:
        """What the image tower knows before the shared space, float32: the mean of its patches, without class token.

        That is what the paper's linear probe sees. With global pooling it is the class token, as in CLIP's.
        """
        x = self.image(images).astype(jnp.float32)
        return x[:, 0] if pooling == "global" else x[:, int(self.class_token) :].mean(axis=1)

    def project_image(self, x: Float[jax.Array, "b n width"], pooling: str) -> Float[jax.Array, "b p d"]:
        """The image tower's tokens that take part, in the shared space."""
        if pooling == "global":
            x = x[:, :1]
        elif self.class_token and not self.cls_in_similarity:
            x = x[:, 1:]
        return l2_normalise(self.image_projection(x))

    def project_text(
        self, x: Float[jax.Array, "b t width"], ids: Int[jax.Array, "b t"], pooling: str
    ) -> tuple[Float[jax.Array, "b k d"], Bool[jax.Array, "b k"]]:
        """The text tower's tokens in the shared space, and which take part."""
        position, last = jnp.arange(ids.shape[1]), text_lengths(ids)[:, None] - 1
        if pooling == "global":
            x = jnp.take_along_axis(x, jnp.maximum(last, 0)[..., None], axis=1)
            return l2_normalise(self.text_projection(x)), jnp.ones((len(x), 1), bool)
        mask = position <= last
        if not self.bos_in_similarity:
            mask &= position != 0
        if not self.eos_in_similarity:
            mask &= position != last
        return l2_normalise(self.text_projection(x)), mask


def _projection(width: int, embed_dim: int, dtype: str, rngs: nnx.Rngs) -> nnx.Linear:
    init = nnx.initializers.normal(width**-0.5)
    return nnx.Linear(width, embed_dim, use_bias=False, kernel_init=init, dtype=jnp.dtype(dtype), rngs=rngs)


def l2_normalise(x: Float[jax.Array, "*shape d"]) -> Float[jax.Array, "*shape d"]:
    """Each vector divided by its length, in float32; a zero vector stays zero, with finite gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
