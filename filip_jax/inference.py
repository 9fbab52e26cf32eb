"""Trained models as a user meets them: pictures and texts in, tokens out."""

import copy
import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Shaped

from filip_jax.checkpoint import Checkpoints, abstract
from filip_jax.data.decode import decode
from filip_jax.data.preprocess import centre_view
from filip_jax.data.tokenizer import Tokenizer
from filip_jax.errors import UserError
from filip_jax.losses.similarity import Array
from filip_jax.mesh import BATCH_AXES, check_memory, replicated
from filip_jax.models import POOLINGS, Model, make_model, portable
from filip_jax.objectives.total import Objectives, init_parameters, make_objectives
from filip_jax.saved_config import FILE as CONFIG
from filip_jax.saved_config import read_config
from filip_jax.small_files import read_own
from filip_jax.workdir import Workdir

TOKENIZER = "tokenizer.model"


class Embedder:
    """A dual encoder with parameters.

    Args:
        model: the functions.
        objectives: that it was trained for.
        tokenizer: of the run.
        image_size: pixels of the square view that the image tower sees.
        text_length: tokens of the text tower's context.
        mesh: devices to split batches over; None is this process's first device.
        batch_size: most images or texts that go through a tower at once.

    Attributes:
        pooling: "tokens" or "global".
        parameters: nested dicts; set by `with_parameters`.
        step: the training step of the parameters.
    """

    def __init__(
        self,
        model: Model,
        objectives: Objectives,
        tokenizer: Tokenizer,
        *,
        image_size: int,
        text_length: int,
        mesh: Mesh | None = None,
        batch_size: int = 64,
    ):
        self.objectives, self.tokenizer = objectives, tokenizer
        self.image_size, self.text_length = image_size, text_length
        self.pooling, self.mesh = model.pooling, mesh or _one_device()
        self.batch_size = -(-batch_size // self.mesh.size) * self.mesh.size
        jit = partial(jax.jit, static_argnames="pooling", out_shardings=replicated(self.mesh))
        self._image, self._text = jit(model.encode_image), jit(model.encode_text)
        self._features = jit(model.image_features)
        self.parameters: dict[str, Any] = {}
        self.step = 0

    def with_parameters(self, parameters: dict[str, Any], step: int) -> "Embedder":
        """The same functions, compiled once, with other parameters."""
        other = copy.copy(self)
        other.parameters, other.step = parameters, step
        return other

    @property
    def logit_scale(self) -> float:
        """The multiplier of the similarities."""
        need = "pooled" if self.pooling == "global" else "tokens"
        return self.objectives.logit_scale(self.parameters["objectives"], need)

    def encode_image(
        self, images: Shaped[Array, "n h w 3"] | Sequence[Shaped[Array, "_h _w 3"]], pooling: str | None = None
    ) -> Float[np.ndarray, "n p d"]:
        """L2-normalised image tokens, float32; each image is scaled and centre-cropped first.

        Args:
            images: uint8 RGB of any size, one array or a list.
            pooling: "tokens" or "global" instead of the model's own.

        Raises:
            UserError: no image, or one that is not uint8 [h, w, 3].
        """
        return self._run(self._image, self._views(images), pooling)

    def image_features(
        self, images: Shaped[Array, "n h w 3"] | Sequence[Shaped[Array, "_h _w 3"]], pooling: str = "tokens"
    ) -> Float[np.ndarray, "n width"]:
        """What a linear classifier of images is trained on, float32: the mean over the image tower's patches.

        It is taken before the projection into the space that images and texts share, and not normalised.

        Args:
            images: as of `encode_image`.
            pooling: "tokens", or "global" for the class token instead of the mean, whatever the model's own is.

        Raises:
            UserError: as `encode_image`; "global" of a model without a class token.
        """
        return self._run(self._features, self._views(images), pooling)

    def features_of_views(
        self, views: Shaped[jax.Array, "n size size 3"], pooling: str = "tokens"
    ) -> Float[jax.Array, "n width"]:
        """`image_features` of views of `image_size` that lie on the mesh, split over it; whole on every device."""
        with jax.set_mesh(self.mesh):
            return self._features(self.parameters, views, pooling=pooling)

    def _views(self, images) -> np.ndarray:
        """What the image tower sees of each image."""
        if len(images) == 0:
            raise UserError("there are no images to encode")
        for index, image in enumerate(images):
            kind = f"{image.dtype} {list(image.shape)}" if hasattr(image, "dtype") else f"a {type(image).__name__}"
            if not isinstance(image, Array) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                raise UserError(f"image {index} is {kind}; images are arrays, uint8 [h, w, 3]")
            if 0 in image.shape:
                raise UserError(f"image {index} is {kind}; it has no pixel")
        return np.stack([self._view(np.asarray(image)) for image in images])

    def _view(self, image: np.ndarray) -> np.ndarray:
        size = self.image_size
        return image if image.shape == (size, size, 3) else centre_view(decode(image), size)

    def encode_text(
        self, texts: Sequence[str], pooling: str | None = None
    ) -> tuple[Float[np.ndarray, "n t d"], Bool[np.ndarray, "n t"]]:
        """L2-normalised text tokens, float32, and the mask of those that take part.

        A text longer than the context loses its end, with a warning that counts such texts.

        Raises:
            UserError: no text, an empty one, or a single str instead of a list.
        """
        if isinstance(texts, str):
            raise UserError(f"encode_text takes a list of texts; for one text write [{texts[:30]!r}]")
        if len(texts) == 0:
            raise UserError("there are no texts to encode")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"text {index} is a {type(text).__name__}, not a str")
            if not text.strip():
                raise UserError(f"text {index} is empty")
            if any(0xD800 <= ord(character) < 0xE000 for character in text):
                raise UserError(f"text {index} is not valid Unicode: {text[:30]!r}")
        ids, truncated = self.tokenizer.encode(texts, self.text_length)
        if truncated.any():
            said = (
                f"{truncated.sum()} of {len(texts)} texts are longer than {self.text_length} tokens and lose their end"
            )
            warnings.warn(said, stacklevel=2)
        return self._run(self._text, ids, pooling)

    def _run(self, function, rows: np.ndarray, pooling: str | None):
        """The function on pieces of at most `batch_size` rows, padded to few distinct sizes."""
        if pooling not in (None, *POOLINGS):
            raise UserError(f"pooling={pooling!r} is not one of {', '.join(POOLINGS)}")
        pieces = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        outputs = [self._run_piece(function, piece, pooling) for piece in pieces]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)

    def _run_piece(self, function, piece: np.ndarray, pooling: str | None):
        size = self.mesh.size
        while size < len(piece):
            size = min(2 * size, self.batch_size)
        padded = np.concatenate([piece, np.repeat(piece[:1], size - len(piece), axis=0)])
        return jax.tree.map(lambda output: np.asarray(output)[: len(piece)], self._call(function, padded, pooling))

    def _call(self, function, rows, pooling):
        with jax.set_mesh(self.mesh):
            split = jax.device_put(rows, NamedSharding(self.mesh, PartitionSpec(BATCH_AXES)))
            return function(self.parameters, split, pooling=pooling)


def _one_device() -> Mesh:
    return Mesh(np.array(jax.local_devices()[:1]).reshape(1, 1), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


class Run:
    """A workdir of `filip train`, opened for reading; `place` brings what is added to it back into a bucket.

    Args:
        mesh, batch_size: of its `Embedder`.

    Raises:
        UserError: no run there, or its tokenizer is missing or not the one it was trained with.
    """

    def __init__(self, workdir: str | Path, mesh: Mesh | None = None, batch_size: int = 64):
        self.place = Workdir(workdir)
        self.workdir = self.place.folder
        try:
            self._open(mesh, batch_size)
        except BaseException:
            self.close()
            raise

    def _open(self, mesh, batch_size):
        self.config = read_config(self.workdir)
        self.tokenizer = read_tokenizer(self.workdir)
        self.checkpoints = Checkpoints(self.place.name)
        self.objectives = make_objectives(self.config["objectives"])
        self.model = make_model(self.objectives.needs, **portable(self.config["model"]))
        sizes = {
            "image_size": self.config["model"]["image"]["image_size"],
            "text_length": self.config["model"]["text"]["length"],
        }
        for key, size in sizes.items():
            if self.config["data"][key] != size:
                raise UserError(
                    f"{self.workdir / CONFIG} is damaged: data.{key}={self.config['data'][key]}, but the model is built for {size}"
                )
        self.embedder = Embedder(self.model, self.objectives, self.tokenizer, **sizes, mesh=mesh, batch_size=batch_size)

    def close(self) -> None:
        """Brings what was added into the bucket, and removes its mirror. Models that were loaded live on."""
        self.place.close()

    def load(self, step: int | None = None) -> Embedder:
        """The model at a step, by default the newest; EMA parameters where the run has them.

        Raises:
            UserError: no such checkpoint, or one of another model or tokenizer.
        """
        steps = self.checkpoints.steps()
        if not steps or (step is not None and step not in steps):
            of_step = "" if step is None else f" of step {step}"
            have = f"; it has steps {', '.join(map(str, steps))}" if steps else " yet"
            raise UserError(f"{self.workdir} has no checkpoint{of_step}{have}")
        step = steps[-1] if step is None else step
        self.checkpoints.check(step)
        check_tokenizer(self.tokenizer, self.checkpoints.meta(step), self.workdir)
        shapes = jax.eval_shape(partial(init_parameters, self.model, self.objectives), jax.random.key(0))
        check_memory(shapes, self.embedder.mesh, f"the model of {self.place.name}")
        target = abstract(shapes, jax.tree.map(lambda _: replicated(self.embedder.mesh), shapes))
        part = "ema" if self.checkpoints.has(step, "ema") else "params"
        return self.embedder.with_parameters(self.checkpoints.restore(step, {part: target})[part], step)


def load_model(workdir: str | Path, step: int | None = None) -> Embedder:
    """The model of a run at a step, by default the newest, ready to embed pictures and texts.

    Raises:
        UserError: `workdir` holds no run, no checkpoint of this step, or one of another model.
    """
    run = Run(workdir)
    try:
        return run.load(step)
    finally:
        run.close()


def read_tokenizer(workdir: Path) -> Tokenizer:
    """The run's own tokenizer.

    Raises:
        UserError: it is missing or damaged.
    """
    file, remedy = workdir / TOKENIZER, "bring back the file that the run began with"
    if not os.path.lexists(file):
        raise UserError(f"{workdir} has no tokenizer: {file} is missing; {remedy}")
    data = read_own(file)
    try:
        return Tokenizer(data)
    except UserError as error:
        raise UserError(f"{file} is damaged: {error}; {remedy}") from error


def check_tokenizer(tokenizer: Tokenizer, meta: dict[str, Any], workdir: Path) -> None:
    """Raises a UserError unless the checkpoint was trained with this tokenizer."""
    if tokenizer.sha256 != (saved := meta.get("tokenizer_sha256", "")):
        raise UserError(
            f"{workdir / TOKENIZER} is not the tokenizer of this checkpoint: sha256 {tokenizer.sha256[:12]}… "
            f"instead of {saved[:12]}…; bring back the file that the run began with"
        )
