"""Two towers that meet only in the loss: images and texts as L2-normalized tokens of one space."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Bool, Float, Int, UInt8

from filip_jax.errors import UserError
from filip_jax.models.linear import Linear
from filip_jax.models.tower import Execution, Features
from filip_jax.models.towers import TOWERS
from filip_jax.sections import DTYPES, call, check, choose, keys_of, one_of

# What is asked for, all tokens or one pooled vector, and the need of objectives that trains its projection.
POOLINGS = {"tokens": "tokens", "global": "pooled"}
PROJECTIONS = ("linear", "biased", "none")  # of pooled vectors


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
        image, text: see `make_tower`.
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
        one_of(DTYPES, dtype, "model.dtype")
        self.needs, self.cls_in_similarity = needs, cls_in_similarity
        self.bos_in_similarity, self.eos_in_similarity = bos_in_similarity, eos_in_similarity
        self.pooling = "tokens" if "tokens" in needs else "global"
        execution = Execution(jnp.dtype(dtype), attention, scan, remat)
        tower = partial(call, make_tower, execution=execution, rngs=rngs)
        self.image, of_images = tower(image, "model.image", modality="image")
        self.text, of_texts = tower(text, "model.text", modality="text")
        sides = {"image": (self.image.width, of_images), "text": (self.text.width, of_texts)}
        self.image_projection, self.text_projection = (
            _projection(side, width, embed_dim, "linear", execution, rngs) if "tokens" in needs else None
            for side, (width, _) in sides.items()
        )
        self.image_pooled_projection, self.text_pooled_projection = (
            _projection(side, width, embed_dim, kind, execution, rngs) if "pooled" in needs else None
            for side, (width, kind) in sides.items()
        )

    def encode_image(
        self,
        images: UInt8[jax.Array, "b h w 3"],
        pooling: str | None = None,
        noise: Float[jax.Array, "b patches"] | None = None,
        patch_mask: Bool[jax.Array, "b patches"] | None = None,
    ) -> Float[jax.Array, "b p d"]:
        """Image tokens of the pooling given, else the model's own: patches row by row, or one token.

        With noise, as in training, the tower's share of patches is dropped; those where `patch_mask` is False are hidden.
        """
        return self.project_image(self._features("image", images, noise, patch_mask), pooling or self.pooling)

    def embed_images(
        self,
        images: UInt8[jax.Array, "b h w 3"],
        noise: Float[jax.Array, "b patches"] | None = None,
        patch_mask: Bool[jax.Array, "b patches"] | None = None,
    ) -> dict[str, jax.Array]:
        """Return what objectives need of images: image_tokens [b, p, d], image_pooled [b, d]."""
        features, found = self._features("image", images, noise, patch_mask), {}
        if "tokens" in self.needs:
            found["image_tokens"] = self.project_image(features, "tokens")
        if "pooled" in self.needs:
            found["image_pooled"] = self.project_image(features, "global")[:, 0]
        return found

    def embed_texts(self, ids: Int[jax.Array, "b t"]) -> dict[str, jax.Array]:
        """Return what objectives need of texts: text_tokens [b, t, d] and text_mask [b, t], text_pooled [b, d]."""
        features, found = self._features("text", ids), {}
        if "tokens" in self.needs:
            found["text_tokens"], found["text_mask"] = self.project_text(features, "tokens")
        if "pooled" in self.needs:
            found["text_pooled"] = self.project_text(features, "global")[0][:, 0]
        return found

    def encode_text(
        self, ids: Int[jax.Array, "b t"], pooling: str | None = None
    ) -> tuple[Float[jax.Array, "b k d"], Bool[jax.Array, "b k"]]:
        """Text tokens and the mask of those that take part; k is t, or 1 if the pooling is global."""
        return self.project_text(self._features("text", ids), pooling or self.pooling)

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
        return l2_normalize(self._projection("image", pooling)(x))

    def project_text(
        self, features: Features, pooling: str
    ) -> tuple[Float[jax.Array, "b k d"], Bool[jax.Array, "b k"]]:
        """The text tower's tokens in the shared space, and which take part."""
        x, projection = features.tokens, self._projection("text", pooling)
        if pooling == "global":
            return l2_normalize(projection(features.pooled[:, None])), jnp.ones((x.shape[0], 1), bool)
        mask = jnp.ones(x.shape[:2], bool) if features.mask is None else features.mask
        if not self.eos_in_similarity:
            mask &= jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
        if not self.bos_in_similarity:
            mask = mask.at[:, 0].set(False)
        return l2_normalize(projection(x)), mask

    def _features(self, side: str, *inputs: Any) -> Features:
        """Return a tower's features, named as it is for those who keep them."""
        return jax.tree.map(partial(checkpoint_name, name=side), getattr(self, side)(*inputs))

    def _projection(self, side: str, pooling: str) -> Callable[[jax.Array], jax.Array]:
        """Return the projection that was trained for this, or the only one."""
        own, other = getattr(self, f"{side}_projection"), getattr(self, f"{side}_pooled_projection")
        return (other or own) if pooling == "global" else (own or other)


def make_tower(
    modality: str, execution: Execution, rngs: nnx.Rngs, *, kind: str, projection: str = "linear", **options: Any
) -> tuple[Any, str]:
    """Return a tower and the kind of its pooled projection.

    Args:
        kind: one of `TOWERS` of this modality.
        projection: of pooled vectors into the shared space: "linear", "biased" or "none", which needs a tower of the
            width embed_dim. That of tokens is always linear.
        options: of the tower.
    """
    tower, key = choose(TOWERS[modality], kind, f"model.{modality}.kind"), f"model.{modality}"
    given = {"execution": execution, "rngs": rngs}
    check(tower, options, key, given, also=keys_of(make_tower))
    return tower(**given, **options), one_of(PROJECTIONS, projection, f"{key}.projection")


def _projection(
    side: str, width: int, embed_dim: int, kind: str, execution: Execution, rngs: nnx.Rngs
) -> Callable[[jax.Array], jax.Array]:
    if kind == "none":
        if width != embed_dim:
            raise UserError(f"model.{side}.projection='none' needs width={width} to be model.embed_dim={embed_dim}")
        return _identity
    init = nnx.initializers.normal(width**-0.5)
    return Linear(
        width,
        embed_dim,
        use_bias=kind == "biased",
        kernel_init=init,
        dtype=execution.dtype,
        rngs=rngs,
    )


def _identity(x: jax.Array) -> jax.Array:
    return x


def l2_normalize(x: Float[jax.Array, "*shape d"]) -> Float[jax.Array, "*shape d"]:
    """Each vector divided by its length, in float32; a zero vector stays zero, with finite gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
