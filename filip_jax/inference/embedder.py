"""A dual encoder with parameters: pictures and texts in, tokens out."""

import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sized
from contextlib import closing
from functools import partial
from itertools import count, islice
from operator import itemgetter
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Shaped

from filip_jax.data.preprocess import View
from filip_jax.data.tokenizer import Tokenizer
from filip_jax.errors import UserError
from filip_jax.inference.images import check_several, views
from filip_jax.mesh import BATCH_AXES, replicated
from filip_jax.models import POOLINGS, Model
from filip_jax.objectives.total import Objectives
from filip_jax.progress import Progress

T = TypeVar("T")


class Embedder:
    """A dual encoder with parameters.

    Each of a model's functions is compiled once for all embedders of the model on one mesh.

    Args:
        model: the functions.
        objectives: that it was trained for.
        tokenizer: of the run.
        parameters: nested dicts.
        step: the training step that the parameters are of.
        image_size: pixels of the square view that the image tower sees.
        text_length: tokens of the text tower's context.
        mesh: devices to split batches over; None is this process's first device.
        batch_size: most images or texts that go through a tower at once.
        origin: what identifies the model, see `Run.origin`; empty if nobody says.

    Attributes:
        pooling: "tokens" or "global".
        grid: rows and columns of an image's tokens.
        framing: how a picture becomes a view.
    """

    def __init__(
        self,
        model: Model,
        objectives: Objectives,
        tokenizer: Tokenizer,
        parameters: dict[str, Any],
        step: int,
        *,
        image_size: int,
        text_length: int,
        mesh: Mesh | None = None,
        batch_size: int = 64,
        origin: Mapping[str, Any] | None = None,
    ):
        self.origin = dict(origin or {})
        self.objectives, self.tokenizer, self.parameters, self.step = objectives, tokenizer, parameters, step
        self.image_size, self.text_length, self.framing = image_size, text_length, model.image.framing
        self.pooling, self.grid, self.mesh = model.pooling, model.image.grid, mesh or one_device()
        self.batch_size = -(-batch_size // self.mesh.size) * self.mesh.size
        jit = partial(jax.jit, static_argnames="pooling", out_shardings=replicated(self.mesh))
        self._image, self._text = jit(model.encode_image), jit(model.encode_text)
        self._features = jit(model.image_features)

    @property
    def logit_scale(self) -> float:
        """The multiplier of the similarities."""
        return self.objectives.logit_scale(self.parameters.get("objectives", {}), POOLINGS[self.pooling])

    def encode_image(self, images: Iterable[Any], pooling: str | None = None) -> Float[np.ndarray, "n p d"]:
        """Return L2-normalized image tokens, float32, of the center views of images of any size.

        Two batches of views are in memory at a time; threads read and decode files ahead. Of several batches, progress
        goes to stderr every few seconds.

        Args:
            images: a sequence or an iterator of paths, encoded bytes, PIL images, arrays of pixels or dicts, see
                `images.views`.
            pooling: "tokens" or "global" instead of the model's own.

        Raises:
            UserError: no image, or one that cannot be read, named by its number.
        """
        return _joined(self.image_batches(images, pooling), "images")

    def image_batches(
        self, images: Iterable[Any], pooling: str | None = None
    ) -> Iterator[Float[np.ndarray, "batch p d"]]:
        """Yield what `encode_image` returns, of at most `batch_size` images at a time: for more than memory holds."""
        return self._run_images(self._image, images, pooling)

    def image_features(self, images: Iterable[Any], pooling: str = "tokens") -> Float[np.ndarray, "n width"]:
        """Return what a linear classifier of images is trained on, float32: the mean over the image tower's patches.

        It is taken before the projection into the space that images and texts share, and not normalized.

        Args:
            images: as of `encode_image`.
            pooling: "tokens", or "global" for what the tower pools instead of the mean, whatever the model's own is.

        Raises:
            UserError: as `encode_image`.
        """
        return _joined(self._run_images(self._features, images, pooling), "images")

    def features_of_views(
        self, views: Shaped[jax.Array, "n size size 3"], pooling: str = "tokens"
    ) -> Float[jax.Array, "n width"]:
        """`image_features` of views of `image_size` that lie on the mesh, split over it; whole on every device."""
        with jax.set_mesh(self.mesh):
            return self._features(self.parameters, views, pooling=pooling)

    def views(self, images: Iterable[Any]) -> Generator[View, None, None]:
        """Return the square view that the image tower sees of each image, see `images.views`."""
        return views(images, self.image_size, self.batch_size, self.framing)

    def encode_text(
        self, texts: Iterable[str], pooling: str | None = None
    ) -> tuple[Float[np.ndarray, "n t d"], Bool[np.ndarray, "n t"]]:
        """Return L2-normalized text tokens, float32, and the mask of those that take part.

        A text longer than the context loses its end, with a warning that counts such texts.

        Raises:
            UserError: no text, an empty one, or something else than several: a single str, a whole table.
        """
        return _joined(self.text_batches(texts, pooling), "texts")

    def text_batches(
        self, texts: Iterable[str], pooling: str | None = None
    ) -> Iterator[tuple[Float[np.ndarray, "batch t d"], Bool[np.ndarray, "batch t"]]]:
        """Yield what `encode_text` returns, of at most `batch_size` texts at a time."""
        check_texts(texts)
        long = total = 0
        for batch in self._batches(map(checked_text, count(), texts), texts, "encoding texts"):
            ids, truncated = self.tokenizer.encode(batch, self.text_length)
            long, total = long + truncated.sum(), total + len(batch)
            yield self._run(self._text, ids, pooling)
        if long:
            message = f"{long} of {total} texts are longer than {self.text_length} tokens and lose their end"
            warnings.warn(message, stacklevel=2)

    def _run_images(self, function, images, pooling):
        with closing(self.views(images)) as squares:
            for batch in self._batches(squares, images, "encoding images"):
                yield self._run(function, np.stack(batch), pooling)

    def _batches(self, items: Iterator[T], inputs: Iterable[Any], what: str) -> Iterator[list[T]]:
        """Yield the items, made of `inputs`, a batch at a time, with progress where there is more than a batch."""
        total = len(inputs) if isinstance(inputs, Sized) else None
        progress = Progress(what, total)
        while batch := list(islice(items, self.batch_size)):
            yield batch
            if total is None or total > self.batch_size:
                progress.advance(len(batch))

    def _run(self, function, rows: np.ndarray, pooling: str | None):
        """Return the outputs of at most `batch_size` rows, which are padded to few distinct numbers of rows."""
        if pooling not in (None, *POOLINGS):
            raise UserError(f"pooling={pooling!r} is not one of {', '.join(POOLINGS)}")
        size = self.mesh.size
        while size < len(rows):
            size = min(2 * size, self.batch_size)
        padded = np.concatenate([rows, np.repeat(rows[:1], size - len(rows), axis=0)])
        with jax.set_mesh(self.mesh):
            split = jax.device_put(padded, NamedSharding(self.mesh, PartitionSpec(BATCH_AXES)))
            outputs = function(self.parameters, split, pooling=pooling)
        return jax.tree.map(lambda output: np.asarray(output)[: len(rows)], outputs)


def one_device() -> Mesh:
    """Return a mesh of this process's first device."""
    return Mesh(np.array(jax.local_devices()[:1]).reshape(1, 1), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def check_texts(texts: Any) -> None:
    """Raise a UserError unless these are several texts, of which `text_batches` checks each."""
    if isinstance(texts, str):
        raise UserError(f"encode_text takes a list of texts; for one text write [{texts[:30]!r}]")
    if isinstance(texts, Mapping | bytes):
        raise UserError(f"texts is a single {type(texts).__name__}; give a list of str")
    check_several(texts, "texts", (1,), "give a list of str, or one column of a table")


def checked_text(index: int, text: str) -> str:
    """Return a text that can be encoded.

    Raises:
        UserError: it is no text, empty, or holds halves of characters; by its number among others.
    """
    if not isinstance(text, str):
        raise UserError(f"text {index} is a {type(text).__name__}, not a str")
    if not text.strip():
        raise UserError(f"text {index} is empty")
    if any(0xD800 <= ord(character) < 0xE000 for character in text):
        raise UserError(f"text {index} is not valid Unicode: {text[:30]!r}")
    return text


def _joined(batches: Iterator[T], kind: str) -> T:
    """Return all batches of arrays as one; each goes as soon as it is copied, so that memory holds them once."""
    parts = list(batches)
    if not parts:
        raise UserError(f"there are no {kind} to encode")
    end = sum(len(jax.tree.leaves(part)[0]) for part in parts)
    whole = jax.tree.map(lambda x: np.empty((end, *x.shape[1:]), x.dtype), parts[0])
    while parts:
        part = parts.pop()
        rows = slice(end - len(jax.tree.leaves(part)[0]), end)
        jax.tree.map(np.copyto, jax.tree.map(itemgetter(rows), whole), part)
        end = rows.start
    return whole
