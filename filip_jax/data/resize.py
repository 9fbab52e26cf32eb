"""Pictures scaled to views, several times as fast as Pillow's antialiased bicubic filter and near to it.

What is left of a picture that was decoded at a fraction of its size is less than twice the view's side
in its shorter direction, so a few taps do what Pillow's filter does with many: a blur that grows with
the scale, then bicubic interpolation; between 1 and LINEAR bilinear interpolation alone, which is as
smooth. Beside Pillow's filter: 44 to 50 dB (benchmarks/input.py measures it on photographs).
"""

import math

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

LINEAR = 1.3
TAPS = ((2.5, 3), (3.2, 5))  # (scale below which, taps of the blur); beyond, Pillow
POINTS = {"bicubic": cv2.INTER_CUBIC, "bilinear": cv2.INTER_LINEAR}

cv2.setNumThreads(1)  # who works in parallel is data.workers' choice


def resize(pixels: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The picture as size x size pixels, antialiased."""
    height, width = pixels.shape[:2]
    whole = min(height, width) // size // 2
    if whole > 1:  # of JPEG, only far beyond eighths
        pixels = cv2.resize(pixels, (width // whole, height // whole), interpolation=cv2.INTER_AREA)
    scales = pixels.shape[1] / size, pixels.shape[0] / size
    if max(scales) >= TAPS[-1][0]:
        return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.HAMMING))
    if min(scales) >= 1 and max(scales) < LINEAR:
        return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)
    if max(scales) > 1:
        (x_taps, x_sigma), (y_taps, y_sigma) = map(_blur, scales)
        pixels = cv2.GaussianBlur(
            pixels, (x_taps, y_taps), sigmaX=x_sigma, sigmaY=y_sigma, borderType=cv2.BORDER_REPLICATE
        )
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_CUBIC)


def sample(
    pixels: UInt8[np.ndarray, "h w 3"], shape: tuple[int, int], interpolation: str
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the picture as `shape` (width, height) pixels, each interpolated at one point: not antialiased."""
    return cv2.resize(pixels, shape, interpolation=POINTS[interpolation])


def _blur(scale: float) -> tuple[int, float]:
    """(taps, sigma) of the blur before bicubic interpolation that comes nearest to Pillow's filter; fitted on photographs."""
    taps = next(taps for below, taps in TAPS if scale < below)
    if taps == 5:
        return taps, 0.37 * scale
    side = min(max(0.2 * (scale - 0.93), 1e-3), 0.3)  # the weights are side, 1 - 2 side, side
    return taps, math.sqrt(-0.5 / math.log(side / (1 - 2 * side)))
