"""Images as users have them, as the square views that the image tower sees."""

import os
from collections.abc import Generator, Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from filip_jax import storage
from filip_jax.data.decode import decode
from filip_jax.data.preprocess import View, centre_view
from filip_jax.data.record import IMAGE_BYTES, BadRecord
from filip_jax.data.values import image_of
from filip_jax.errors import UserError
from filip_jax.framing import CLIP_FRAMING, Framing
from filip_jax.inference.ahead import in_order
from filip_jax.user_paths import from_user

ENCODED = (str, os.PathLike, bytes, Mapping)  # is decoded by threads, for it does not change meanwhile
KINDS = "a path, encoded bytes, a PIL image, an array of pixels, or {'bytes': …, 'path': …} of the package datasets"


def views(images: Iterable[Any], size: int, ahead: int, framing: Framing = CLIP_FRAMING) -> Generator[View, None, None]:
    """Yield the center view of each image, in order.

    Args:
        images: paths (also gs:// and s3://), encoded bytes, PIL images, arrays of pixels as `decode` takes them, or dicts
            of `bytes` or `path`; one array [n, h, w, channels] is n images.
        size: pixels of a side.
        ahead: how many images that are not yet decoded threads may decode ahead of the caller.
        framing: how an image becomes a view; an array uint8 [size, size, 3] is one.

    Raises:
        UserError: a single image instead of several, or, when it is its turn, one that cannot be read, by its number.
    """
    if isinstance(images, (*ENCODED, Image.Image)):
        raise UserError(f"images is a single {type(images).__name__}; write [image] for a list of one")
    if isinstance(images, jax.Array):
        images = np.asarray(images)
    if isinstance(images, np.ndarray) and images.ndim != 4 and images.dtype.kind not in "OSU":
        raise UserError(
            f"images is one array, {images.dtype} {list(images.shape)}; write [image] for one image, and give "
            "[n, h, w, channels] or a list for several"
        )

    def view(item: tuple[int, Any]) -> View:
        return _view(*item, size, framing)

    # What is not encoded is read at once: the next step of an iterator may write over it.
    for is_encoded, run in groupby(enumerate(images), lambda item: isinstance(item[1], ENCODED)):
        if is_encoded:
            yield from in_order(view, run, ahead)
        else:
            yield from map(view, run)


def _view(index: int, image: Any, size: int, framing: Framing) -> View:
    try:
        content = _content(image)
        if isinstance(content, np.ndarray) and content.dtype == np.uint8 and content.shape == (size, size, 3):
            return content.copy()
        return centre_view(decode(content), size, framing)
    except (OSError, ValueError, BadRecord) as error:
        name = f"image {index}, {os.fspath(image)}," if isinstance(image, str | os.PathLike) else f"image {index}"
        raise UserError(f"{name}: {error}") from error


def _content(image: Any) -> bytes | np.ndarray | Image.Image:
    """Return an image as `decode` takes it."""
    if isinstance(image, Mapping):
        image = image_of(dict(image), "bytes or path")
    if isinstance(image, str | os.PathLike):
        with storage.open_stream(from_user(image if isinstance(image, str) else Path(image))) as file:
            return file.read(IMAGE_BYTES + 1)
    if isinstance(image, jax.Array):
        return np.asarray(image)
    if isinstance(image, bytes | bytearray):
        return bytes(image)
    if isinstance(image, np.ndarray | Image.Image):
        return image
    raise ValueError(f"{type(image).__name__} is not an image; give {KINDS}")
