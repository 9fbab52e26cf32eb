"""What shapes tell of a model: its widths, its patches, its grid, its vocabulary; and the scalars of its objective."""

import math
from typing import Any

from filip_jax.errors import UserError
from filip_jax.weights.plan import Evidence, ModelSource

MAX_SCALE = 100.0  # of CLIP's training; SigLIP's have gone beyond
OF_SHAPES = Evidence(
    "sizes", "widths, patches, grid, vocabulary", "the shapes of the weights, checked against the config"
)


def image_sizes(source: ModelSource, kernel: str, position: str, mlp: str, class_tokens: int) -> dict[str, Any]:
    """Return the sizes of an image tower.

    Args:
        kernel: name of the patch embedding [width, 3, p, p].
        position: of the positions [tokens, width] or [1, tokens, width].
        mlp: of the first layer's first MLP matrix [mlp_width, width].
        class_tokens: whose rows stand before those of the patches.

    Raises:
        UserError: a tensor is missing, or its shape is not of such a tower.
    """
    width, channels, rows, columns = source.shape(kernel, 4)
    if channels != 3 or rows != columns:
        raise UserError(
            f"{source.place}: {kernel!r} of {channels} channels and {rows} x {columns} pixels is not of square patches of RGB"
        )
    shape = source.tensors[position].shape if position in source.tensors else ()
    patches = shape[-2] - class_tokens if len(shape) in (2, 3) else -1
    side = math.isqrt(max(patches, 0))
    if side * side != patches or not side:
        raise UserError(
            f"{source.place}: {position!r} of shape {list(shape)} is not {class_tokens} + a square grid of positions"
        )
    mlp_width, _ = source.shape(mlp, 2)
    return dict(kind="vit", image_size=side * rows, patch_size=rows, width=width, mlp_width=mlp_width)


def text_sizes(source: ModelSource, embedding: str, position: str, mlp: str) -> dict[str, Any]:
    """Return the sizes of a text tower; raises as `image_sizes`."""
    vocab_size, width = source.shape(embedding, 2)
    length, _ = source.shape(position, 2)
    mlp_width, _ = source.shape(mlp, 2)
    return dict(kind="transformer", vocab_size=vocab_size, length=length, width=width, mlp_width=mlp_width)


def scalar(source: ModelSource, name: str) -> float:
    """Return a number of the weights, of shape () or (1,).

    Raises:
        UserError: it is missing, not one number, or not finite.
    """
    if name not in source.tensors or math.prod(source.tensors[name].shape) != 1:
        raise UserError(f"{source.place} has no number {name!r}: its weights are of another family, or not whole")
    value = float(source.tensors[name].read().reshape(()))
    if not abs(value) <= 1e4:
        raise UserError(f"{source.place}: {name}={value} is out of range")
    return value


def scale_options(source: ModelSource, name: str) -> tuple[dict[str, float], Evidence]:
    """Return the options of an objective's scale, whose logarithm the weights hold, with bounds around it."""
    scale = math.exp(min(scalar(source, name), 20.0))
    bounds = dict(
        min_logit_scale=min(1.0, scale),
        max_logit_scale=max(MAX_SCALE, 10 * scale if scale > 1.001 * MAX_SCALE else scale),
    )
    return dict(logit_scale_init=scale, **bounds), Evidence("logit_scale", f"{scale:.4g}", f"{name} of the weights")


def clip_objective(source: ModelSource, name: str) -> tuple[dict[str, Any], Evidence]:
    """Return the section `objectives` of CLIP's, and the evidence of its scale."""
    options, evidence = scale_options(source, name)
    return dict(clip=dict(kind="clip", weight=1.0, **options)), evidence
