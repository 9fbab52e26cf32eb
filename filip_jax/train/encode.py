"""The outputs of the towers for samples in training: each view and each caption is encoded as a row of its own."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax

from filip_jax.losses.encoded import Encoded
from filip_jax.mesh import constrain_batch
from filip_jax.models import Model

Batch = Mapping[str, Any]


def with_noise(model: Model, batch: Batch, seed: int, step: int | jax.Array) -> Batch:
    """Return the batch with the noise that chooses the patches that a step drops, if the model drops any.

    It is drawn for the whole batch, so that a sample's is the same in any number of pieces.
    """
    if not model.noise_size:
        return batch
    key = jax.random.fold_in(jax.random.key(seed), step)
    noise = jax.random.uniform(key, (*batch["image"].shape[:-3], model.noise_size))
    return {**batch, "noise": constrain_batch(noise)}


def encode_samples(model: Model, parameters: Mapping[str, Any], batch: Batch) -> Encoded:
    """Return the outputs of both towers for a batch of samples; the views after the first are in its `views`.

    Args:
        batch: `image` uint8 [b, h, w, 3] or, with several views, [b, n, h, w, 3]; `ids` int [b, t] or, with several
            captions, [b, K, t]; what `with_noise` adds.
    """
    image, ids, noise = batch["image"], batch["ids"], batch.get("noise")
    images = _by_rows(partial(model.embed_images, parameters), image.shape[:-3], image, noise)
    texts = _by_rows(partial(model.embed_texts, parameters), ids.shape[:-1], ids)
    if ids.ndim == 2:
        texts = {name: x[:, None] for name, x in texts.items()}
    if image.ndim == 4:
        return Encoded(**images, **texts)
    views = [{name: x[:, view] for name, x in images.items()} for view in range(image.shape[1])]
    return Encoded(**views[0], **texts, views=tuple(Encoded(**view) for view in views[1:]))


def _by_rows(encode: Callable[..., Any], axes: tuple[int, ...], *arrays: jax.Array | None) -> Any:
    """Return encode(*arrays) with the leading axes of the arrays merged into rows, and parted again in the results.

    The rows of a sample are neighbors, and stay on its device.
    """

    def merge(x):
        return constrain_batch(x.reshape(-1, *x.shape[len(axes) :]))

    def part(x):
        return constrain_batch(x.reshape(*axes, *x.shape[1:]))

    return jax.tree.map(part, encode(*jax.tree.map(merge, arrays)))
