"""A linear layer as `nnx.Linear`, computed as CPUs like it too: one definition, the same parameters."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float


class Linear(nnx.Linear):
    """`x @ kernel + bias`, with products accumulated in float32 and rounded once, in both directions.

    XLA multiplies bfloat16 on CPUs four times as fast where a product's own type is float32; TPUs and GPUs accumulate in
    float32 anyway, and the cast belongs to the same program. On CPUs the gradient of the bias, a sum over all rows, is a
    product with ones, since XLA's own sum over rows is as slow as a product with a whole matrix. Gradients are reverse-mode only:
    `jax.jvp` and `jax.jacfwd` are refused.
    """

    def __call__(self, inputs: Float[jax.Array, "*n w"], out_sharding: None = None) -> Float[jax.Array, "*n v"]:
        """Return the layer's outputs; `out_sharding` is in nnx's signature and is not supported."""
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = self.promote_dtype((inputs, self.kernel[...], bias), dtype=self.dtype)
        y = _product(x, kernel)
        return y if bias is None else _plus(y, bias)


@jax.custom_vjp
def _product(x: Float[jax.Array, "*n w"], kernel: Float[jax.Array, "w v"]) -> Float[jax.Array, "*n v"]:
    return _accumulated(x, kernel, (x.ndim - 1,), (0,))


def _accumulated(x, y, axes_of_x, axes_of_y):
    product = jax.lax.dot_general(x, y, ((axes_of_x, axes_of_y), ((), ())), preferred_element_type=jnp.float32)
    return product.astype(x.dtype)


def _product_backward(kept, gradient):
    x, kernel = kept
    rows = tuple(range(x.ndim - 1))
    return _accumulated(gradient, kernel, (x.ndim - 1,), (1,)), _accumulated(x, gradient, rows, rows)


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _product_backward)


@jax.custom_vjp
def _plus(x: Float[jax.Array, "*n v"], bias: Float[jax.Array, " v"]) -> Float[jax.Array, "*n v"]:
    return x + bias


def _plus_backward(_, gradient):
    return gradient, jax.lax.platform_dependent(gradient, cpu=_rows_by_product, default=_rows)


_plus.defvjp(lambda x, bias: (_plus(x, bias), None), _plus_backward)


def _rows(x):
    return x.sum(axis=tuple(range(x.ndim - 1)))


def _rows_by_product(x):
    rows = tuple(range(x.ndim - 1))
    return _accumulated(jnp.ones(x.shape[:-1], x.dtype), x, rows, rows)
