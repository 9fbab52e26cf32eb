"""Two towers that meet only in the loss: images and texts as L2-normalised tokens of one space."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int, UInt8

from filip_jax.errors import UserError
from filip_jax.models.image_encoder import ImageEncoder
from filip_jax.models.text_encoder import TextEncoder, text_lengths
from filip_jax.sections import call

POOLINGS = ("tokens", "global")  # of what is asked for: all tokens, or one pooled vector
NEEDS = {"tokens": "tokens", "pooled": "global"}  # of objectives
DTYPES = ("float32", "bfloat16")


class DualEncoder(nnx.Module):
    """FILIP's model (section 3), CLIP's, or one that gives both tokens and pooled vectors.

    Args:
        needs: "tokens" for the late interaction of all tokens, "pooled" for one vector per side, CLIP's: the class
            token of the image, the EOS token of the text. Each has projections of its own.
        embed_dim: dimension of the shared space, of each token.
        dtype: of the computation; parameters, normalisation and outputs are float32.
        class_token: whether the image tower has one.
        cls_in_similarity, bos_in_similarity, eos_in_similarity: whether these tokens take part in
            the late interaction. The paper: no, yes, yes. Pads never do.
        image, text: what `ImageEncoder` and `TextEncoder` take of their own.
        activation, attention, scan, remat: of the blocks of both towers, see `Transformer`.
    """

    def __init__(
        self,
        *,
        needs: frozenset[str],
        embed_dim: int,
        dtype: str,
        class_token: bool,
        cls_in_similarity: bool,
        bos_in_similarity: bool,
        eos_in_similarity: bool,
        activation: str,
        attention: str,
        scan: bool,
        remat: bool,
        image: dict,
        text: dict,
        rngs: nnx.Rngs,
    ):
        if dtype not in DTYPES:
            raise UserError(f"model.dtype={dtype!r} is not one of {', '.join(DTYPES)}")
        if not class_token and ("pooled" in needs or cls_in_similarity):
            raise UserError(
                "model.class_token=False, but cls_in_similarity and objectives of pooled vectors need the class token"
            )
        self.needs, self.class_token = needs, class_token
        self.cls_in_similarity = cls_in_similarity
        self.bos_in_similarity, self.eos_in_similarity = bos_in_similarity, eos_in_similarity
        shared = dict(
            activation=activation, attention=attention, scan=scan, remat=remat, dtype=jnp.dtype(dtype), rngs=rngs
        )
        self.image = call(ImageEncoder, image, "model.image", class_token=class_token, **shared)
        self.text = call(TextEncoder, text, "model.text", **shared)
        self.image_projection, self.text_projection = (
            _projection(tower["width"], embed_dim, dtype, rngs) if "tokens" in needs else None
            for tower in (image, text)
        )
        self.image_pooled_projection, self.text_pooled_projection = (
            _projection(tower["width"], embed_dim, dtype, rngs) if "pooled" in needs else None
            for tower in (image, text)
        )

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

    @property
    def pooling(self) -> str:
        """What the encoders give when asked for no pooling."""
        return "tokens" if "tokens" in self.needs else "global"

    def embed_images(
        self, images: UInt8[jax.Array, "b h w 3"], noise: Float[jax.Array, "b patches"] | None = None
    ) -> dict[str, jax.Array]:
        """Return what objectives need of images: image_tokens [b, p, d], image_pooled [b, d]."""
        x = self.image(images, noise)
        found = {f"image_{need}": self.project_image(x, NEEDS[need]) for need in sorted(self.needs)}
        return found | ({"image_pooled": found["image_pooled"][:, 0]} if "pooled" in self.needs else {})

    def embed_texts(self, ids: Int[jax.Array, "b t"]) -> dict[str, jax.Array]:
        """Return what objectives need of texts: text_tokens [b, t, d] and text_mask [b, t], text_pooled [b, d]."""
        x, found = self.text(ids), {}
        if "tokens" in self.needs:
            found["text_tokens"], found["text_mask"] = self.project_text(x, ids, "tokens")
        if "pooled" in self.needs:
            found["text_pooled"] = self.project_text(x, ids, "global")[0][:, 0]
        return found

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
        return l2_normalise(self._projection("image", pooling)(x))

    def project_text(
        self, x: Float[jax.Array, "b t width"], ids: Int[jax.Array, "b t"], pooling: str
    ) -> tuple[Float[jax.Array, "b k d"], Bool[jax.Array, "b k"]]:
        """The text tower's tokens in the shared space, and which take part."""
        position, last = jnp.arange(ids.shape[1]), text_lengths(ids)[:, None] - 1
        if pooling == "global":
            x = jnp.take_along_axis(x, jnp.maximum(last, 0)[..., None], axis=1)
            return l2_normalise(self._projection("text", pooling)(x)), jnp.ones((len(x), 1), bool)
        mask = position <= last
        if not self.bos_in_similarity:
            mask &= position != 0
        if not self.eos_in_similarity:
            mask &= position != last
        return l2_normalise(self._projection("text", pooling)(x)), mask

    def _projection(self, side: str, pooling: str) -> nnx.Linear:
        """Return the projection that was trained for this, or the only one."""
        own, other = getattr(self, f"{side}_projection"), getattr(self, f"{side}_pooled_projection")
        return (other or own) if pooling == "global" else (own or other)


def _projection(width: int, embed_dim: int, dtype: str, rngs: nnx.Rngs) -> nnx.Linear:
    init = nnx.initializers.normal(width**-0.5)
    return nnx.Linear(width, embed_dim, use_bias=False, kernel_init=init, dtype=jnp.dtype(dtype), rngs=rngs)


def l2_normalise(x: Float[jax.Array, "*shape d"]) -> Float[jax.Array, "*shape d"]:
    """Each vector divided by its length, in float32; a zero vector stays zero, with finite gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
