"""Positions of an image tower for images of another size, resampled as the source's own code does."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from filip_jax.errors import UserError
from filip_jax.weights.plan import Evidence, Plan
from filip_jax.weights.stored import Stored

POSITION = "image/position"
KERNEL, ANTIALIASED_KERNEL = -0.75, -0.5  # of torch's two bicubic filters, the second is Pillow's


def at_size(plan: Plan, tensors: Mapping[str, Stored], given: int) -> tuple[Plan, dict[str, Stored]]:
    """Return the plan and the tensors for images of a size.

    Args:
        given: pixels of a side; 0 is the size that the source's preprocessing makes, else that of its positions.

    Raises:
        UserError: the patches do not divide the given size.
    """
    trained, patch = plan.image["image_size"], plan.image["patch_size"]
    size, origin = plan.view or (trained, "the positions of the weights")
    differs = list(plan.differs)
    if given:
        size, origin = given, f"--image_size={given}"
        if given < 1 or given % patch:
            raise UserError(f"--image_size={given} is no multiple of {patch}, the patches' size in pixels")
    elif size % patch:
        differs.append(
            f"{origin} makes images of {size} pixels, which do not split into patches of {patch}: they are scaled"
        )
        size, origin = trained, "the positions of the weights"
    evidence = [*plan.evidence, Evidence("image_size", f"{size}", origin)]
    tensors = dict(tensors)
    if size != trained:
        [name] = next(rule.names for rule in plan.rules if rule.path == POSITION)
        tensors[name] = resampled(tensors[name], plan.image["class_tokens"], size // patch, plan.antialias)
        grids = " to ".join(f"{side // patch}x{side // patch}" for side in (trained, size))
        how = "bicubic, antialiased" if plan.antialias else "bicubic"
        evidence.append(Evidence("positions", f"resampled from {grids}, {how}", "as the source's own code does"))
    image = plan.image | {"image_size": size}
    return dataclasses.replace(plan, image=image, evidence=evidence, differs=differs), tensors


def resampled(stored: Stored, class_tokens: int, side: int, antialias: bool) -> Stored:
    """Return positions [..., tokens, width], of class tokens and a square grid, as those of a grid of side x side."""
    *leading, count, width = stored.shape
    old, shape = math.isqrt(count - class_tokens), (*leading, class_tokens + side * side, width)

    def read() -> np.ndarray:
        position = stored.read().astype(np.float64).reshape(count, width)
        matrix = bicubic(old, side, antialias)
        grid = np.einsum(
            "ai,bj,ijw->abw", matrix, matrix, position[class_tokens:].reshape(old, old, width), optimize=True
        )
        result = np.concatenate([position[:class_tokens], grid.reshape(-1, width)])
        return result.astype(np.float32).reshape(shape)

    return Stored(shape, stored.dtype, read)


def bicubic(old: int, new: int, antialias: bool) -> Float[np.ndarray, "new old"]:
    """Return the weights by which a row of `old` points becomes one of `new`.

    They are those of torch.nn.functional.interpolate(size=…, mode="bicubic", align_corners=False): single points are taken
    of a row whose ends go on; antialiased, the filter is as wide as the step between new points, and ends are cut off.
    """
    centers = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
    if antialias:
        weights = _cubic((np.arange(old) - centers) / max(old / new, 1), ANTIALIASED_KERNEL)
        return weights / weights.sum(axis=1, keepdims=True)
    weights, rows = np.zeros((new, old)), np.arange(new)[:, None]
    taps = np.floor(centers).astype(int) + np.arange(-1, 3)
    np.add.at(weights, (rows, taps.clip(0, old - 1)), _cubic(taps - centers, KERNEL))
    return weights


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Return Keys' kernel of cubic convolution (1981), which is 0 beyond 2."""
    x = np.abs(x)
    near, far = ((a + 2) * x - (a + 3)) * x**2 + 1, a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))
