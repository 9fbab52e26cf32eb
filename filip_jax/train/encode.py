"""What samples become in training: the tokens of all their views and captions, each encoded as a row of its own."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Bool, Float

from filip_jax.errors import UserError
from filip_jax.mesh import constrain_batch
from filip_jax.models import Model

Batch = dict[str, Any]


def with_noise(model: Model, batch: Batch, seed: int, step: int | jax.Array) -> Batch:
    """Return the batch with the noise that chooses the patches that a step drops, if the model drops any.

    It is drawn for the whole batch, so that a sample's is the same in any number of pieces.
    """
    if not model.noise_size:
        return batch
    key = jax.random.fold_in(jax.random.key(seed), step)
    noise = jax.random.uniform(key, (*batch["image"].shape[:-3], model.noise_size))
    return batch | {"noise": constrain_batch(noise)}


def encode_samples(model: Model, parameters: dict[str, Any], batch: Batch) -> dict[str, jax.Array]:
    """Return the outputs of both towers for a batch of samples.

    Args:
        batch: `image` uint8 [b, h, w, 3] or, with several views, [b, n, h, w, 3]; `ids` int [b, t] or, with several
            captions, [b, K, t]; what `with_noise` adds.

    Returns:
        image_tokens: float32 [b, p, d] or [b, n, p, d].
        text_tokens: float32 [b, K, t, d]; K is 1 for ids [b, t].
        text_mask: bool [b, K, t].
    """
    image, ids = batch["image"], batch["ids"]
    if ids.ndim == 2:
        ids = ids[:, None]

    def encode_image(image, noise):
        return model.encode_image(parameters, image, noise=noise)

    image_tokens = _by_rows(encode_image, image.shape[:-3], image, batch.get("noise"))
    text_tokens, text_mask = _by_rows(partial(model.encode_text, parameters), ids.shape[:2], ids)
    return {"image_tokens": image_tokens, "text_tokens": text_tokens, "text_mask": text_mask}


def _by_rows(encode: Callable[..., Any], axes: tuple[int, ...], *arrays: jax.Array | None) -> Any:
    """Return encode(*arrays) with the leading axes of the arrays merged into rows, and parted again in the results.

    The rows of a sample are neighbors, and stay on its device.
    """

    def merge(x):
        return constrain_batch(x.reshape(-1, *x.shape[len(axes) :]))

    def part(x):
        return constrain_batch(x.reshape(*axes, *x.shape[1:]))

    return jax.tree.map(part, encode(*jax.tree.map(merge, arrays)))


def as_pairs(
    encoded: dict[str, jax.Array],
) -> tuple[Float[Array, "b p d"], Float[Array, "b t d"], Bool[Array, "b t"]]:
    """Return image tokens, text tokens and text mask of samples that have one view and one caption.

    Raises:
        UserError: they have several.
    """
    image_tokens, text_tokens, text_mask = (encoded[name] for name in ("image_tokens", "text_tokens", "text_mask"))
    counts = {"views": image_tokens.shape[1] if image_tokens.ndim > 3 else 1, "captions_per_image": text_mask.shape[1]}
    for key, count in counts.items():
        if count > 1:
            raise UserError(f"data.{key}={count}, but the loss takes one: set it to 1")
    return image_tokens, text_tokens[:, 0], text_mask[:, 0]


def token_shapes(model: Model, parameters: dict[str, Any], batch: Batch) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return the shapes of `as_pairs` in training, from those of the parameters and of a batch."""

    def encode(parameters, batch):
        return as_pairs(encode_samples(model, parameters, with_noise(model, batch, 0, 0)))

    return jax.eval_shape(encode, parameters, batch)
