"""The similarities of tokens, and of pooled vectors as sets of one token, for `pair_losses`."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from filip_jax.errors import UserError
from filip_jax.losses import blocked
from filip_jax.losses.encoded import Encoded
from filip_jax.losses.exchange import EXCHANGES, IMPLEMENTATIONS, INDICES, Plan, all_similarities, make_plan
from filip_jax.losses.selection import SELECTIONS, select_tokens
from filip_jax.sections import DTYPES

CHOICES = {
    "selection": SELECTIONS,
    "implementation": IMPLEMENTATIONS,
    "exchange": EXCHANGES,
    "indices": INDICES,
    "dtype": (None, *DTYPES),
}


@dataclass(frozen=True)
class TokenWise:
    """Late interaction: s_I and s_T of FILIP (section 3.1, equations 3 to 5); of one token per side both are its dot product.

    Attributes:
        of: "tokens" or "pooled", what is compared.
        keep_tokens, selection, dtype, implementation, exchange, indices: see `filip_loss`.
    """

    of: str = "tokens"
    keep_tokens: float = 1.0
    selection: str = "batch"
    dtype: str | None = None
    implementation: str = "auto"
    exchange: str = "auto"
    indices: str = "auto"

    def __post_init__(self):
        for key, choices in CHOICES.items():
            if (value := getattr(self, key)) not in choices:
                raise UserError(f"{key}={value!r} is not one of {', '.join(filter(None, choices))}")
        if not 0 < self.keep_tokens < float("inf"):
            raise UserError(f"keep_tokens={self.keep_tokens} must be above 0 and finite")

    def arrays(self, encoded: Encoded) -> tuple[Any, Any]:
        """Return image tokens [b, p, d] and (text tokens [b, k, t, d], mask [b, k, t]).

        Raises:
            ValueError: the encoder gave none.
        """
        images, texts = (getattr(encoded, f"{side}_{self.of}") for side in ("image", "text"))
        if images is None or texts is None:
            raise ValueError(f"similarities of {self.of} need image_{self.of} and text_{self.of}")
        if self.of == "tokens":
            return images, (texts, encoded.text_mask)
        return images[:, None], (texts[:, :, None], jnp.ones((*texts.shape[:2], 1), bool))

    def local(self, images: Any, texts: Any, real: jax.Array) -> tuple[Any, Any]:
        """Return those of one device's tokens that take part, of the dtype that travels; none of texts that are not real."""
        tokens, mask = texts
        mask &= real[:, None]
        dtype = jnp.result_type(images, tokens) if self.dtype is None else self.dtype
        images, tokens, mask = select_tokens(
            images.astype(dtype), tokens.astype(dtype), mask, self.keep_tokens, self.selection, self.implementation
        )
        return images, (tokens, mask)

    def plan(self, images: Any, texts: Any, axes: tuple[str, ...], devices: int) -> Plan:
        """Return how these arrays of one device meet those of the others."""
        how = dict(implementation=self.implementation, exchange=self.exchange, indices=self.indices)
        return make_plan(axes, devices, images, texts[0], **how)

    def matrices(self, images: Any, texts: Any, parameters: None, plan: Plan) -> tuple[jax.Array, jax.Array]:
        """Return s_I and s_T [all texts, i] of this device's images with the texts of all devices."""
        tokens, mask = texts
        return all_similarities(images, tokens, mask, plan)

    def shard(self, images: Any, texts: Any) -> tuple[Any, Any, jax.Array]:
        """Return images as they stay, texts as they travel, and the order in which those do."""
        *texts, order = blocked.by_length(*texts)
        return images.transpose(1, 0, 2), tuple(texts), order

    def compare(self, images: Any, texts: Any, parameters: None, plan: Plan) -> tuple[jax.Array, jax.Array]:
        """Return s_I and s_T [j, i] of images that stayed with texts that came."""
        tokens, mask = texts
        image_to_text, text_to_image, _ = blocked.forward(images, tokens, mask, plan.implementation)
        return image_to_text, text_to_image

    def pull(self, images, texts, info, pull, parameters, plan: Plan):
        """Return the gradients of texts, images and parameters that one block of texts gives.

        Args:
            info: arrays [j, ...] that go with the texts.
            pull: (similarities, info) of some texts -> gradients of the similarities and of the losses' parameters.
        """

        def cotangents(image_to_text, text_to_image, info):
            return pull((image_to_text, text_to_image), info)

        tokens, mask = texts
        to_images, to_texts, to_losses = blocked.backward_of(
            images, tokens, mask, info, cotangents, parameters["losses"], plan.implementation
        )
        return to_texts, to_images, {"losses": to_losses, "similarity": None}

    def unshard(self, images: Any, texts: Any, to_images: Any, to_texts: Any, order: jax.Array) -> tuple[Any, Any]:
        """Return the gradients as of what `shard` was given."""
        tokens, mask = texts
        to_texts = to_texts[jnp.argsort(order), : mask.shape[1]].astype(tokens.dtype)
        return to_images.transpose(1, 0, 2).astype(images.dtype), (to_texts, None)
