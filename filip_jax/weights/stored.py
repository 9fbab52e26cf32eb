"""A tensor in a file, which is read when it is asked for."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class Stored(NamedTuple):
    """A tensor in a file.

    Attributes:
        shape: of the array.
        dtype: NumPy's name of its type, or "bfloat16".
        read: gives the array.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def dtype_of(name: str) -> Any:
    """Return the type of this name."""
    return jnp.dtype(name)
