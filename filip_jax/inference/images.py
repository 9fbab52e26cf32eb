"""Images as users have them, as the square views that the image tower sees."""

import os
from collections.abc import Collection, Generator, Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from filip_jax import storage
from filip_jax.ahead import in_order
from filip_jax.data.decode import decode
from filip_jax.data.preprocess import View, centre_view
from filip_jax.data.record import IMAGE_BYTES, BadRecord
from filip_jax.data.values import image_of
from filip_jax.errors import UserError
from filip_jax.framing import CLIP_FRAMING, Framing
from filip_jax.user_paths import from_user

ENCODED = (str, os.PathLike, bytes, Mapping)  # is decoded by threads, for it does not change meanwhile
BUFFERS = (bytes, bytearray, memoryview)
KINDS = "a path, encoded bytes, a PIL image, an array of pixels, or {'bytes': …, 'path': …} of the package datasets"


def views(images: Iterable[Any], size: int, ahead: int, framing: Framing = CLIP_FRAMING) -> Generator[View, None, None]:
    """Return the center view of each image, in order, one at a time.

    Args:
        images: paths (also gs:// and s3://), encoded bytes, PIL images, arrays of pixels as `decode` takes them, of any
            library, or dicts of `bytes` or `path`; one array [n, h, w, channels] is n images.
        size: pixels of a side.
        ahead: how many images that are not yet decoded threads may decode ahead of the caller.
        framing: how an image becomes a view; an array uint8 [size, size, 3] is one.

    Raises:
        UserError: a single image instead of several, at once, or, when it is its turn, one that cannot be read, by its
            number.
    """
    if isinstance(images, (*ENCODED, *BUFFERS, Image.Image)):
        raise UserError(f"images is a single {type(images).__name__}; write [image] for a list of one")
    check_several(
        images, "images", (1, 4), "write [image] for one image, and give [n, h, w, channels] or a list for several"
    )
    if isinstance(images, jax.Array):
        images = np.asarray(images)
    return _views(images, size, ahead, framing)


def _views(images: Iterable[Any], size: int, ahead: int, framing: Framing) -> Generator[View, None, None]:
    def view(item: tuple[int, Any]) -> View:
        return _view(*item, size, framing)

    # What is not encoded is read at once: the next step of an iterator may write over it.
    for is_encoded, run in groupby(enumerate(images), lambda item: isinstance(item[1], ENCODED)):
        if is_encoded:
            yield from in_order(view, run, ahead)
        else:
            yield from map(view, run)


def check_several(items: Any, name: str, dimensions: Collection[int], advice: str) -> None:
    """Raise a UserError unless one can iterate over the items; those of a table or of one image are other things.

    Args:
        name: of the argument.
        dimensions: that an array of several items may have.
        advice: what to give instead.
    """
    shape: Any = getattr(items, "shape", None)
    is_array = isinstance(shape, tuple)
    try:
        iter(items)
    except TypeError:
        is_several = False
    else:
        is_several = not is_array or len(shape) in dimensions
    if not is_several:
        of_shape = f" of the shape {list(shape)}" if is_array else ""
        raise UserError(f"{name} is one {type(items).__name__}{of_shape}; {advice}")


def _view(index: int, image: Any, size: int, framing: Framing) -> View:
    try:
        content = _content(image)
        if isinstance(content, np.ndarray) and content.dtype == np.uint8 and content.shape == (size, size, 3):
            return content.copy()
        return centre_view(decode(content), size, framing)
    except (OSError, ValueError, BadRecord) as error:
        name = f"image {index}, {os.fspath(image)}" if isinstance(image, str | os.PathLike) else f"image {index}"
        raise UserError(f"{name}: {error}") from error


def _content(image: Any) -> bytes | np.ndarray | Image.Image:
    """Return an image as `decode` takes it."""
    if isinstance(image, Mapping):
        image = image_of(dict(image), "bytes or path")
    if isinstance(image, str | os.PathLike):
        with storage.open_stream(from_user(image if isinstance(image, str) else Path(image))) as file:
            return file.read(IMAGE_BYTES + 1)
    if isinstance(image, BUFFERS):
        return bytes(image)
    if isinstance(image, np.ndarray | Image.Image):
        return image
    if hasattr(image, "__array__"):  # of JAX, PyTorch …
        try:
            return np.asarray(image)
        except (TypeError, RuntimeError) as error:  # it lies on another device, or has a gradient
            raise ValueError(f"{type(image).__name__} is no array of NumPy's: {error}") from error
    raise ValueError(f"{type(image).__name__} is not an image; give {KINDS}")
