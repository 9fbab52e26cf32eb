"""Reduced terms of all pairs in a ring, with no matrix of all similarities: memory does not grow with the devices.

Each device keeps its images; texts come by, one device's after the other. What is kept of a round is the state of each
reduction, of each image and text. The backward pass goes round once more and forms similarities and terms anew, block by
block: the gradient of a reduced term reaches its terms through the derivative of the reduction.
"""

from functools import partial

import jax
import jax.numpy as jnp

from filip_jax.losses.exchange import meetings, pass_on
from filip_jax.losses.reductions import REDUCTIONS, across, block_states, values


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def reduce_in_ring(terms, similarity, plan, images, texts, image_info, text_info, parameters):
    """Return {(loss, side, reduction): reduced terms} of this device's images and texts, inside a shard_map.

    Args:
        terms: (similarities [j, i], images, texts, parameters) -> {(loss, side, reduction): [j, i]}.
        similarity: see `pairs.pair_losses`.
        plan: of the exchange.
        images, texts: what of this device's arrays takes part.
        image_info, text_info: what `terms` gets of them, a row each.
        parameters: {"losses": of the terms, "similarity": of the similarity}.
    """
    return _forward(terms, similarity, plan, images, texts, image_info, text_info, parameters)[0]


def column(tree):
    """Return the information of texts as it broadcasts to pairs [j, i]."""
    return jax.tree.map(lambda x: x[:, None], tree)


def _forward(terms, similarity, plan, images, texts, image_info, text_info, parameters):
    kept, shard, order = similarity.shard(images, texts)
    info = jax.tree.map(lambda x: x[order], text_info)

    def compare(shard, info):
        similarities = similarity.compare(kept, shard, parameters["similarity"], plan)
        block = terms(similarities, image_info, column(info), parameters["losses"])
        return block_states(block, image_info["index"], info["index"])

    def step(carry, _):
        (shard, info), of_images = carry
        following = pass_on((shard, info), plan)
        states = compare(shard, info)
        joined = {key: REDUCTIONS[key[2]].join(state, states[key]) for key, state in of_images.items()}
        place = jnp.argsort(info["index"])
        of_texts = {key: state for key, state in states.items() if key not in of_images}
        return (following, joined), jax.tree.map(lambda x: x[place], of_texts)

    keys = jax.eval_shape(compare, shard, info)
    rows = len(image_info["index"])
    start = {key: REDUCTIONS[key[2]].start(rows) for key in keys if key[1] == "over_texts"}
    (_, of_images), of_texts = jax.lax.scan(step, ((shard, info), start), None, length=plan.devices)
    met = meetings(plan)
    of_texts = jax.tree.map(lambda x: x[met].reshape(-1), of_texts)  # of all texts, over this device's images
    states = across(of_images | of_texts, plan.axes)
    return values(states), (images, texts, image_info, text_info, parameters, states)


def _backward(terms, similarity, plan, residuals, cotangents):
    images, texts, image_info, text_info, parameters, states = residuals
    kept, shard, order = similarity.shard(images, texts)
    reduced = {key: (state, cotangents[key]) for key, state in states.items()}
    own = {key: x for key, x in reduced.items() if key[1] == "over_texts"}
    info = text_info, {key: x for key, x in reduced.items() if key not in own}
    info = jax.tree.map(lambda x: x[order], info)

    def pull(similarities, info):
        """Return the gradients of the similarities of some texts, and what they add to that of the losses' parameters."""
        texts, theirs = column(info)
        index = {"over_texts": texts["index"], "over_images": image_info["index"]}
        block, back = jax.vjp(lambda s, p: terms(s, image_info, texts, p), similarities, parameters["losses"])

        def gradient(key, x):
            state, cotangent = (own | theirs)[key]
            return jnp.broadcast_to(cotangent * REDUCTIONS[key[2]].derivative(x, state, index[key[1]]), x.shape)

        return back({key: gradient(key, x) for key, x in block.items()})

    def step(carry, _):
        (shard, info), to_texts, to_images, to_parameters = carry
        following, arrived = pass_on(((shard, info), to_texts), plan)  # both travel while this device computes
        of_texts, *others = similarity.pull(kept, shard, info, pull, parameters, plan)
        to_images, to_parameters = jax.tree.map(jnp.add, (to_images, to_parameters), tuple(others))
        return (following, jax.tree.map(jnp.add, arrived, of_texts), to_images, to_parameters), None

    gradients = jax.eval_shape(lambda: similarity.pull(kept, shard, info, pull, parameters, plan))
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), gradients)
    (_, to_texts, to_images, to_parameters), _ = jax.lax.scan(step, ((shard, info), *start), None, length=plan.devices)
    to_images, to_texts = similarity.unshard(images, texts, to_images, pass_on(to_texts, plan), order)
    return to_images, to_texts, None, None, to_parameters


reduce_in_ring.defvjp(_forward, _backward)
