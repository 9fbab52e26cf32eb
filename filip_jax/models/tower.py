"""The contract of towers: what each takes, how it is computed, what it gives. The towers are the files in `towers/`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, UInt8

from filip_jax.errors import UserError
from filip_jax.framing import CLIP_FRAMING, Framing

MAX_TOKENS = 2**16  # of a tower: the loss numbers them with two bytes
# CLIP's channel statistics in units of 1/255; FILIP and Wukong use the same.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)  # SigLIP's mean and deviation: pixels from -1 to 1


@dataclass(frozen=True)
class ImageInput:
    """The images that a tower takes, RGB.

    Attributes:
        size: pixels of a side of the square views that it is trained on.
        grid: rows and columns of its tokens for such a view.
        mean, std: of the channels, as shares of 255.
        framing: how a picture becomes such a view.

    Raises:
        UserError: a value that is none of these.
    """

    size: int
    grid: tuple[int, int]
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD
    framing: Framing = CLIP_FRAMING

    def __post_init__(self):
        for key in ("mean", "std"):
            object.__setattr__(self, key, _channels(f"model.image.{key}", getattr(self, key)))
        if min(self.std) <= 0:
            raise UserError(f"model.image.std={self.std} must be above 0")

    def normalize(self, images: UInt8[jax.Array, "b h w 3"]) -> Float[jax.Array, "b h w 3"]:
        """Return the pixels with the channels' mean and deviation taken away."""
        return (images / 255.0 - jnp.array(self.mean)) / jnp.array(self.std)


def _channels(key: str, values: Any) -> tuple[float, ...]:
    """Return a number for each channel; configs give tuples, saved configs lists."""
    is_sound = isinstance(values, (tuple, list)) and len(values) == 3
    if not is_sound or not all(type(x) in (int, float) and math.isfinite(x) for x in values):
        raise UserError(f"{key}={values!r:.100} must be three finite numbers, of red, green and blue")
    return tuple(map(float, values))


@dataclass(frozen=True)
class TextInput:
    """The texts that a tower takes, as token ids.

    Attributes:
        vocab_size: number of token ids.
        length: tokens of the longest text.
        causal: whether a token sees itself and those before it only.
        pad_id: behind the last token of a text; no text ends with it.
    """

    vocab_size: int
    length: int
    causal: bool
    pad_id: int = 0

    def lengths(self, ids: Int[jax.Array, "*shape t"]) -> Int[jax.Array, "*shape"]:
        """Return the number of tokens of each text without its pads."""
        return jnp.max(jnp.where(ids != self.pad_id, jnp.arange(1, ids.shape[-1] + 1), 0), axis=-1)

    def mask(self, ids: Int[jax.Array, "*shape t"]) -> Bool[jax.Array, "*shape t"]:
        """Return which tokens are no pads behind the end of their text."""
        return jnp.arange(ids.shape[-1]) < self.lengths(ids)[..., None]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Features:
    """The outputs of a tower for a batch, before any projection.

    Attributes:
        tokens: one per patch, row by row, or per token of the text.
        pooled: one vector for the whole image or text.
        mask: which tokens are real, False for pads; None where all are.
        grid: rows and columns of an image's tokens; None of a text, or where patches were dropped.
    """

    tokens: Float[jax.Array, "b n w"]
    pooled: Float[jax.Array, "b w"]
    mask: Bool[jax.Array, "b n"] | None = None
    grid: tuple[int, int] | None = field(default=None, metadata={"static": True})


@dataclass(frozen=True)
class Execution:
    """How both towers are computed; the function is the same up to rounding.

    Attributes:
        dtype: of the computation; parameters are float32.
        attention: "xla", or "cudnn": cuDNN's fused attention, on NVIDIA GPUs and in bfloat16 only.
        scan: True compiles one block (short compile, big models); False unrolls them (faster on CPUs).
            The parameters are the same either way.
        remat: whether the backward pass recomputes each block from its input instead of storing it.
    """

    dtype: jnp.dtype
    attention: str
    scan: bool
    remat: bool
