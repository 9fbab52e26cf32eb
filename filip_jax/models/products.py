"""Matrix products in low precision, accumulated in float32 and rounded once, in both directions."""

import jax
import jax.numpy as jnp
from jaxtyping import Float


def dot_general(x, kernel, dimension_numbers, precision=None, preferred_element_type=None, **_):
    """Return x @ kernel for `nnx.Linear(dot_general=…)`: [..., w] @ [w, v].

    XLA multiplies bfloat16 on CPUs four times as fast where a product's own type is float32; on TPUs and GPUs, which
    accumulate in float32 anyway, the cast belongs to the same program.
    """
    if x.dtype == kernel.dtype == jnp.bfloat16:
        return _product(x, kernel)
    return jax.lax.dot_general(x, kernel, dimension_numbers, precision, preferred_element_type)


@jax.custom_vjp
def _product(x: Float[jax.Array, "*n w"], kernel: Float[jax.Array, "w v"]) -> Float[jax.Array, "*n v"]:
    return _accumulated(x, kernel, (x.ndim - 1,), (0,))


def _accumulated(x, y, axes_of_x, axes_of_y):
    product = jax.lax.dot_general(x, y, ((axes_of_x, axes_of_y), ((), ())), preferred_element_type=jnp.float32)
    return product.astype(x.dtype)


def _forward(x, kernel):
    return _product(x, kernel), (x, kernel)


def _backward(kept, gradient):
    x, kernel = kept
    rows = tuple(range(x.ndim - 1))
    return _accumulated(gradient, kernel, (x.ndim - 1,), (1,)), _accumulated(x, gradient, rows, rows)


_product.defvjp(_forward, _backward)
