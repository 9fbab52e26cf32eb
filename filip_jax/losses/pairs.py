"""Losses over all pairs of the global batch, from what an objective says of one block of pairs.

An objective gives elementwise terms of the similarities of some texts with some images, and how each term is reduced over
the other side (see `PairLoss`). Exchange between devices, recomputation and both gradients are the same for all of them.
Two ways lead to the same numbers: on the matrices of this device's images with all texts (`_dense`), or in a ring that
never holds such a matrix (ring.py).

Letters as in similarity.py; k are the captions of an image, j the texts of all images: first those of image 0.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from filip_jax.losses import ring
from filip_jax.losses.encoded import Encoded
from filip_jax.losses.exchange import gather
from filip_jax.losses.reductions import SIDES, Key, across, block_states, own_rows, values
from filip_jax.mesh import batch_devices, context_batch_axes

LOW = -1e9  # the logit of a pair that does not count; finite, so that nothing becomes NaN
Info = Mapping[str, jax.Array]
Parameters = Mapping[str, Any]


@runtime_checkable
class PairLoss(Protocol):
    """A loss on all pairs, as pure functions.

    Of both sides they get `index` (the place among all images, or all texts), `image` (which image it is, or belongs
    to), `group` and `real`, of texts also `weight`, 0 for an absent caption. Images are rows [i], texts columns [j, 1].
    """

    def counts(self, images: Info, texts: Info) -> Mapping[str, Float[Array, "j i"]]:
        """Return numbers of each pair whose sums, over texts and over images, join the information of both sides."""
        ...

    def terms(
        self, similarities: tuple[Float[Array, "j i"], ...], images: Info, texts: Info, parameters: Parameters
    ) -> Mapping[str, Mapping[str, Float[Array, "j i"]]]:
        """Return {"over_texts" and "over_images": {reduction: terms}}, see `REDUCTIONS`."""
        ...

    def losses(
        self, over_texts: Mapping[str, Float[Array, " i"]], over_images: Mapping[str, Float[Array, " j"]]
    ) -> tuple[Float[Array, " i"] | None, Float[Array, " j"] | None]:
        """Return the loss of each image and of each text from the reduced terms; None for a side without one."""
        ...


def pair_losses(
    losses: Mapping[str, PairLoss],
    similarity: Any,
    encoded: Encoded,
    parameters: Mapping[str, Any],
) -> dict[str, Float[Array, ""]]:
    """Return the mean over the global batch of each loss, all from one pass over the similarities.

    The mean over images, by their weights, and the mean over captions, by theirs, count half each where a loss has both.
    Call it on global arrays: under `jax.set_mesh(mesh)` with Auto axes it runs as one shard_map over `replica`, `data`.

    Args:
        losses: by name.
        similarity: how pairs are compared, a `TokenWise` or a `BlockFunction`.
        encoded: the global batch.
        parameters: {"losses": {name: of the loss}, "similarity": of the similarity}.
    """
    return _on_devices(losses, similarity, encoded, parameters, _mean, PartitionSpec())


def loss_of_each(
    losses: Mapping[str, PairLoss], similarity: Any, encoded: Encoded, parameters: Mapping[str, Any]
) -> dict[str, tuple[Float[Array, " b"] | None, Float[Array, "b k"] | None]]:
    """Return each loss of each image and of each caption, as `pair_losses` takes the mean of them."""

    def parted(of_both, counted, axes):
        of_images, of_texts = of_both
        return of_images, None if of_texts is None else of_texts.reshape(len(counted[0]), -1)

    return _on_devices(losses, similarity, encoded, parameters, parted, PartitionSpec(context_batch_axes()))


@jax.named_scope("pair_losses")  # which profiles show
def _on_devices(losses, similarity, encoded, parameters, finish, spec):
    """Return what `finish` makes of each loss of images and texts, of how these count, and of the mesh axes."""
    axes, devices = context_batch_axes(), batch_devices()
    images, texts = similarity.arrays(encoded)
    pairing = {"group": encoded.group, "real": encoded.real, "weight": encoded.text_weight}
    arrays = (images, texts, pairing, encoded.image_weight, parameters)

    def on_device(images, texts, pairing, image_weight, parameters):
        rows, captions = jax.tree.leaves(texts)[0].shape[:2]
        texts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), texts)
        all_images, all_texts = _information(gather(pairing, axes), rows * devices, captions)
        image_info, text_info = (_own(info, axes, devices) for info in (all_images, all_texts))
        if pairing["real"] is not None or pairing["weight"] is not None:
            images, texts = _fill(images, image_info["real"]), _fill(texts, text_info["real"])
        images, texts = similarity.local(images, texts, text_info["real"])
        plan = similarity.plan(images, texts, axes, devices)
        counted = image_info["real"], image_weight, text_info["weight"]
        image_counts, text_counts = _count(losses, (image_info, text_info), (all_images, all_texts))
        terms = partial(_terms, losses)
        if plan.streamed:
            information = image_info | {"counts": image_counts}, text_info | {"counts": text_counts}
            reduced = ring.reduce_in_ring(terms, similarity, plan, images, texts, *information, parameters)
        else:
            image_info |= {"counts": image_counts}
            text_info = all_texts | {"counts": gather(text_counts, axes)}
            similarities = similarity.matrices(images, texts, parameters["similarity"], plan)
            block = terms(similarities, image_info, ring.column(text_info), parameters["losses"])
            reduced = values(across(block_states(block, image_info["index"], text_info["index"], axes), axes))
        return {name: finish(loss.losses(*_sides(name, reduced)), counted, axes) for name, loss in losses.items()}

    if not axes:
        return on_device(*arrays)
    split, whole = PartitionSpec(axes), PartitionSpec()
    return jax.shard_map(
        on_device, in_specs=(split, split, split, split, whole), out_specs=spec, axis_names=set(axes), check_vma=False
    )(*arrays)


def _information(pairing, rows, captions):
    """Return what is known of all images and of all texts of the global batch."""
    index = jnp.arange(rows)
    real = jnp.ones(rows, bool) if pairing["real"] is None else pairing["real"]
    weight = jnp.ones((rows, captions)) if pairing["weight"] is None else pairing["weight"]
    weight = jnp.where(real[:, None], weight, 0.0).reshape(-1)
    group = index if pairing["group"] is None else pairing["group"]
    texts = {"image": jnp.repeat(index, captions), "group": jnp.repeat(group, captions)}
    texts |= {"index": jnp.arange(rows * captions), "real": weight > 0, "weight": weight}
    return {"image": index, "group": group, "index": index, "real": real}, texts


def _own(info, axes, devices):
    return {name: own_rows(x, axes, devices) for name, x in info.items()}


def _fill(tree, real):
    """Return rows of which those that do not count are copies of one that does: whatever they held changes nothing."""

    def fill(x):
        copied = jnp.where(real.any(), x[jnp.argmax(real)], jnp.zeros_like(x[0]))
        return jnp.where(real.reshape(-1, *[1] * (x.ndim - 1)), x, copied)

    return jax.tree.map(fill, tree)


def _count(losses, own, everything):
    """Return the counts of this device's images over all texts, and of its texts over all images, by loss."""
    (images, texts), (all_images, all_texts) = own, everything
    of_images, of_texts = {}, {}
    for name, loss in losses.items():
        of_images[name] = {key: x.sum(axis=0) for key, x in loss.counts(images, ring.column(all_texts)).items()}
        of_texts[name] = {key: x.sum(axis=1) for key, x in loss.counts(all_images, ring.column(texts)).items()}
    return of_images, of_texts


def _terms(losses, similarities, images, texts, parameters):
    """Return {(loss, side, reduction): terms [j, i]} of all losses."""
    terms: dict[Key, jax.Array] = {}
    for name, loss in losses.items():
        sides = (side | side["counts"][name] for side in (images, texts))
        for side, reductions in loss.terms(similarities, *sides, parameters[name]).items():
            terms |= {(name, side, how): x for how, x in reductions.items()}
    return terms


def _sides(name, reduced):
    """Return {reduction: reduced terms} of one loss over texts and over images."""
    return [
        {how: x for (of_loss, of_side, how), x in reduced.items() if (of_loss, of_side) == (name, side)}
        for side in SIDES
    ]


def _mean(losses, counted, axes):
    """Return the mean loss of the images that count, that of the texts, each by its weights, or the mean of both."""
    real, image_weight, text_weight = counted
    shares = real.astype(jnp.float32) if image_weight is None else real * image_weight, text_weight
    means = [
        jax.lax.psum(jnp.where(share > 0, share * loss, 0.0).sum(), axes) / _total(share, axes)
        for loss, share in zip(losses, shares)
        if loss is not None
    ]
    return sum(means) / len(means)


def _total(share, axes):
    total = jax.lax.psum(share.sum(), axes)
    return jnp.where(total > 0, total, 1.0)
