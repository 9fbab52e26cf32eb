"""Two towers that meet only in the loss: images and texts as L2-normalised tokens of one space."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int, UInt8

from filip_jax.errors import UserError
from filip_jax.models.tower import Execution, Features
from filip_jax.models.towers import TOWERS
from filip_jax.sections import call, choose

POOLINGS = ("tokens", "global")  # of what is asked for: all tokens, or one pooled vector
NEEDS = {"tokens": "tokens", "pooled": "global"}  # of objectives
DTYPES = ("float32", "bfloat16")


class DualEncoder(nnx.Module):
    """FILIP's model (section 3), CLIP's, or one that gives both tokens and pooled vectors.

    Args:
        needs: "tokens" for the late interaction of all tokens, "pooled" for one vector per side, CLIP's: what
            the towers pool, the class token and the EOS token. Each has projections of its own.
        embed_dim: dimension of the shared space, of each token.
        dtype: of the computation; parameters, normalisation and outputs are float32.
        cls_in_similarity, bos_in_similarity, eos_in_similarity: whether what the image tower pools (`vit`: the class
            token), the first and the last token of a text take part in the late interaction. The paper: no, yes, yes.
            Pads never do.
        attention, scan, remat: of both towers, see `Execution`.
        image, text: `kind`, one of `TOWERS`, and the options of this tower.
    """

    def __init__(
        self,
        *,
        needs: frozenset[str],
        embed_dim: int,
        dtype: str,
        cls_in_similarity: bool,
        bos_in_similarity: bool,
        eos_in_similarity: bool,
        attention: str,
        scan: bool,
        remat: bool,
        image: dict,
        text: dict,
        rngs: nnx.Rngs,
    ):
        if dtype not in DTYPES:
            raise UserError(f"model.dtype={dtype!r} is not one of {', '.join(DTYPES)}")
        self.needs, self.cls_in_similarity = needs, cls_in_similarity
        self.bos_in_similarity, self.eos_in_similarity = bos_in_similarity, eos_in_similarity
        execution = Execution(jnp.dtype(dtype), attention, scan, remat)
        self.image = _tower("image", image, execution, rngs)
        self.text = _tower("text", text, execution, rngs)
        self.image_projection, self.text_projection = (
            _projection(tower.width, embed_dim, dtype, rngs) if "tokens" in needs else None
            for tower in (self.image, self.text)
        )
        self.image_pooled_projection, self.text_pooled_projection = (
            _projection(tower.width, embed_dim, dtype, rngs) if "pooled" in needs else None
            for tower in (self.image, self.text)
        )

    def encode_image(
        self,
        images: UInt8[jax.Array, "b h w 3"],
        pooling: str | None = None,
        noise: Float[jax.Array, "b patches"] | None = None,
    ) -> Float[jax.Array, "b p d"]:
        """Image tokens of the pooling given, else the model's own: patches row by row, or one token.

        With noise, as in training, the tower's share of patches is dropped.
        """
        return self.project_image(self.image(images, noise), pooling or self.pooling)

    @property
    def pooling(self) -> str:
        """Return the pooling that the encoders use when asked for none."""
        return "tokens" if "tokens" in self.needs else "global"

    def embed_images(
        self, images: UInt8[jax.Array, "b h w 3"], noise: Float[jax.Array, "b patches"] | None = None
    ) -> dict[str, jax.Array]:
        """Return what objectives need of images: image_tokens [b, p, d], image_pooled [b, d]."""
        features = self.image(images, noise)
        found = {f"image_{need}": self.project_image(features, NEEDS[need]) for need in sorted(self.needs)}
        return found | ({"image_pooled": found["image_pooled"][:, 0]} if "pooled" in self.needs else {})

    def embed_texts(self, ids: Int[jax.Array, "b t"]) -> dict[str, jax.Array]:
        """Return what objectives need of texts: text_tokens [b, t, d] and text_mask [b, t], text_pooled [b, d]."""
        features, found = self.text(ids), {}
        if "tokens" in self.needs:
            found["text_tokens"], found["text_mask"] = self.project_text(features, "tokens")
        if "pooled" in self.needs:
            found["text_pooled"] = self.project_text(features, "global")[0][:, 0]
        return found

    def encode_text(
        self, ids: Int[jax.Array, "b t"], pooling: str | None = None
    ) -> tuple[Float[jax.Array, "b k d"], Bool[jax.Array, "b k"]]:
        """Text tokens and the mask of those that take part; k is t, or 1 if the pooling is global."""
        return self.project_text(self.text(ids), pooling or self.pooling)

    def image_features(
        self, images: UInt8[jax.Array, "b h w 3"], pooling: str | None = None
    ) -> Float[jax.Array, "b width"]:
        """What the image tower knows before the shared space, float32: the mean of its patches, without class token.

        That is what the paper's linear probe sees. With global pooling it is what the tower pools, as in CLIP's.
        """
        features = self.image(images)
        if pooling == "global":
            return features.pooled.astype(jnp.float32)
        return features.tokens.astype(jnp.float32).mean(axis=1)

    def project_image(self, features: Features, pooling: str) -> Float[jax.Array, "b p d"]:
        """The image tower's tokens that take part, in the shared space."""
        x = features.tokens
        if pooling == "global":
            x = features.pooled[:, None]
        elif self.cls_in_similarity:
            x = jnp.concatenate([features.pooled[:, None], x], axis=1)
        return l2_normalise(self._projection("image", pooling)(x))

    def project_text(
        self, features: Features, pooling: str
    ) -> tuple[Float[jax.Array, "b k d"], Bool[jax.Array, "b k"]]:
        """The text tower's tokens in the shared space, and which take part."""
        x, projection = features.tokens, self._projection("text", pooling)
        if pooling == "global":
            return l2_normalise(projection(features.pooled[:, None])), jnp.ones((x.shape[0], 1), bool)
        mask = jnp.ones(x.shape[:2], bool) if features.mask is None else features.mask
        if not self.eos_in_similarity:
            mask &= jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
        if not self.bos_in_similarity:
            mask = mask.at[:, 0].set(False)
        return l2_normalise(projection(x)), mask

    def _projection(self, side: str, pooling: str) -> nnx.Linear:
        """Return the projection that was trained for this, or the only one."""
        own, other = getattr(self, f"{side}_projection"), getattr(self, f"{side}_pooled_projection")
        return (other or own) if pooling == "global" else (own or other)


def _tower(modality: str, section: dict, execution: Execution, rngs: nnx.Rngs) -> Any:
    """Return the tower of a section of the config."""
    key = f"model.{modality}"
    tower = choose(TOWERS[modality], section.get("kind"), f"{key}.kind")
    options = {name: value for name, value in section.items() if name != "kind"}
    return call(tower, options, key, execution=execution, rngs=rngs)


def _projection(width: int, embed_dim: int, dtype: str, rngs: nnx.Rngs) -> nnx.Linear:
    init = nnx.initializers.normal(width**-0.5)
    return nnx.Linear(width, embed_dim, use_bias=False, kernel_init=init, dtype=jnp.dtype(dtype), rngs=rngs)


def l2_normalise(x: Float[jax.Array, "*shape d"]) -> Float[jax.Array, "*shape d"]:
    """Each vector divided by its length, in float32; a zero vector stays zero, with finite gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
