"""Similarities by any differentiable function of some images and some texts, for `pair_losses`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from filip_jax.errors import UserError
from filip_jax.losses.encoded import Encoded
from filip_jax.losses.exchange import Plan, gather

CHUNK_BYTES = 2**26  # that a chunk of pairs may take, forward


@dataclass(frozen=True)
class BlockFunction:
    """Similarities of a block by a function of its own, with parameters: text-conditioned pooling, for example.

    Attributes:
        function: (parameters, images, texts) -> similarities [j, i], one or several. It sees few texts at a time.
        take: encoded -> (image arrays [b, ...], text arrays [b, k, ...]), nested.
        bytes_per_pair: what the function makes of each pair, or (images, texts) -> that; few texts at a time keep all
            pairs' within 64 MiB.
        exchange: "gather" keeps the texts of all devices on each, "ring" one device's at a time.
    """

    function: Callable[[Any, Any, Any], tuple[jax.Array, ...]]
    take: Callable[[Encoded], tuple[Any, Any]]
    bytes_per_pair: int | Callable[[Any, Any], int]
    exchange: str = "ring"

    def __post_init__(self):
        if self.exchange not in ("gather", "ring"):
            raise UserError(f"exchange={self.exchange!r} is not one of gather, ring")

    def arrays(self, encoded: Encoded) -> tuple[Any, Any]:
        """Return what the function takes of a batch."""
        return self.take(encoded)

    def local(self, images: Any, texts: Any, real: jax.Array) -> tuple[Any, Any]:
        """Return all of it: every row takes part."""
        return images, texts

    def plan(self, images: Any, texts: Any, axes: tuple[str, ...], devices: int) -> Plan:
        """Return the exchange that was asked for; without a mesh there is none."""
        return Plan(axes, devices, "xla", self.exchange if axes else "gather", "recompute")

    def matrices(self, images: Any, texts: Any, parameters: Any, plan: Plan) -> tuple[jax.Array, ...]:
        """Return the similarities [all texts, i] of this device's images with the texts of all devices."""
        return self.compare(images, gather(texts, plan.axes), parameters, plan)

    def shard(self, images: Any, texts: Any) -> tuple[Any, Any, jax.Array]:
        """Return images and texts as they are, and their order."""
        return images, texts, jnp.arange(len(jax.tree.leaves(texts)[0]))

    def compare(self, images: Any, texts: Any, parameters: Any, plan: Plan) -> tuple[jax.Array, ...]:
        """Return the similarities [j, i] of images that stayed with texts that came, computed again in the backward pass."""
        chunk = jax.checkpoint(lambda texts: self.function(parameters, images, texts))
        return self._over_chunks(lambda carry, texts: (carry, chunk(texts)), None, images, texts, texts)[1]

    def pull(self, images, texts, info, pull, parameters, plan: Plan):
        """Return the gradients of texts, images and parameters that one block of texts gives, see `TokenWise.pull`."""

        def chunk(carry, arrays):
            texts, info = arrays
            similarities, back = jax.vjp(self.function, parameters["similarity"], images, texts)
            to_similarities, to_losses = pull(similarities, info)
            to_similarity, to_images, to_texts = back(to_similarities)
            of_parameters = {"losses": to_losses, "similarity": to_similarity}
            return jax.tree.map(jnp.add, carry, (to_images, of_parameters)), to_texts

        zeros = partial(jax.tree.map, jnp.zeros_like)
        start = zeros(images), zeros(parameters)
        carry, to_texts = self._over_chunks(chunk, start, images, texts, (texts, info))
        return to_texts, *carry

    def unshard(self, images: Any, texts: Any, to_images: Any, to_texts: Any, order: jax.Array) -> tuple[Any, Any]:
        """Return the gradients as they are."""
        return to_images, to_texts

    def _over_chunks(self, function, carry, images, texts, arrays):
        """Scan the function over chunks of texts of equal size, and of the arrays that go with them."""
        rows, count = len(jax.tree.leaves(images)[0]), len(jax.tree.leaves(arrays)[0])
        of_pair = self.bytes_per_pair(images, texts) if callable(self.bytes_per_pair) else self.bytes_per_pair
        most = max(1, CHUNK_BYTES // (of_pair * rows))
        size = next(n for n in range(min(most, count), 0, -1) if count % n == 0)
        chunks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), arrays)
        carry, outputs = jax.lax.scan(function, carry, chunks)
        return carry, jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), outputs)
