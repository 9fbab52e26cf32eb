"""The training step: pure functions on the state {step, params, opt_state, guard[, ema]}."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from filip_jax import paths
from filip_jax.losses import filip_loss
from filip_jax.mesh import batch_devices, constrain_batch, parameter_shardings, replicated
from filip_jax.models import Model
from filip_jax.train.encode import as_pairs, encode_samples, with_noise
from filip_jax.train.guards import init_guard, is_good, next_guard
from filip_jax.train.optimizer import Optimizer

State = dict[str, Any]
MAX_LOGIT_SCALE = 100.0  # CLIP's bound
# (image_tokens, text_tokens, text_mask, logit_scale) -> scalar. With one token per side, as global
# models give, "contrastive" is CLIP's loss.
LOSSES: dict[str, Callable[..., jax.Array]] = {"contrastive": filip_loss}
# The right answers in a batch, and whether it has to say which rows show one image: an image's own text only, or all
# texts of the image.
POSITIVES = {"pair": False, "image": True}


def make_init(model: Model, optimizer: Optimizer, ema_decay: float) -> Callable[[jax.Array], State]:
    """The function key -> state of a new run."""

    def init(key):
        parameters = model.init(key)
        trainable, _ = optimizer.split(parameters)
        state = {
            "step": jnp.zeros((), jnp.int32),
            "params": parameters,
            "opt_state": optimizer.transform.init(paths.unflatten(trainable)),
            "guard": init_guard(),
        }
        return state | ({"ema": parameters} if ema_decay else {})

    return init


def state_shardings(mesh: Mesh, state: State, optimizer: Optimizer) -> State:
    """Parameters and their moments by the shape rule, the rest on every device; `state` may be shapes."""
    shardings = {name: parameter_shardings(mesh, state[name]) for name in ("params", "ema") if name in state}
    trainable, _ = optimizer.split(shardings["params"])
    opt_state = optax.tree_utils.tree_map_params(
        optimizer.transform,
        lambda _, sharding: sharding,
        state["opt_state"],
        paths.unflatten(trainable),
        transform_non_params=lambda _: replicated(mesh),
    )
    guard = jax.tree.map(lambda _: replicated(mesh), state["guard"])
    return shardings | {"step": replicated(mesh), "opt_state": opt_state, "guard": guard}


def make_train_step(
    model: Model,
    loss: Callable[..., jax.Array],
    optimizer: Optimizer,
    ema_decay: float,
    seed: int = 0,
    microbatches: int = 1,
    spike_sigmas: float = 0.0,
) -> Callable[[State, dict[str, jax.Array]], tuple[State, dict[str, jax.Array]]]:
    """The function (state, batch) -> (next state, metrics of this step); run it under `jax.set_mesh`.

    The batch is that of `encode_samples`. Where it holds `group` int32 [b], samples of one group show one image: each has
    all texts of the group as right answers, with equal probability, and each text all images (FILIP's soft targets in
    fine-tuning, table 10).

    Args:
        seed: of what is drawn anew in each step and for each sample: the patches that are dropped.
        microbatches: the towers see the batch in so many pieces, the loss sees it whole, see `in_pieces`.
        spike_sigmas: a loss so many standard deviations above the usual is skipped; see `guards`. A loss,
            gradient or update that is not finite always is: then all of the state but its step stays.
    """
    encode = in_pieces(partial(encode_samples, model), microbatches)

    def train_step(state, batch):
        batch = with_noise(model, batch, seed, state["step"])
        groups = {"group_ids": batch["group"]} if "group" in batch else {}
        batch = {name: rows for name, rows in batch.items() if name != "group"}
        trainable, frozen = optimizer.split(state["params"])
        trainable = paths.unflatten(trainable)

        def loss_of(trainable):
            parameters = paths.unflatten(paths.flatten(trainable) | frozen)
            tokens_and_mask = as_pairs(encode(parameters, batch))
            return loss(*tokens_and_mask, jnp.exp(parameters["logit_scale"]), **groups)

        value, gradient = jax.value_and_grad(loss_of)(trainable)
        updates, opt_state = optimizer.transform.update(gradient, state["opt_state"], trainable)
        moved = optax.apply_updates(trainable, updates)
        parameters = paths.unflatten(paths.flatten(moved) | frozen)
        parameters["logit_scale"] = jnp.minimum(parameters["logit_scale"], math.log(MAX_LOGIT_SCALE))
        moved = {"params": parameters, "opt_state": opt_state}
        if ema_decay:
            moved["ema"] = optax.incremental_update(parameters, state["ema"], 1 - ema_decay)
        norms = {"grad_norm": optax.tree.norm(gradient), "param_norm": optax.tree.norm(parameters)}
        good = is_good(state["guard"], value, spike_sigmas, *norms.values())
        following = jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, {k: state[k] for k in moved})
        guard = next_guard(state["guard"], value, good)
        following |= {"step": state["step"] + 1, "guard": guard}
        logit_scale = jnp.exp(following["params"]["logit_scale"])
        metrics = {f"train/{name}": norm for name, norm in norms.items()} | {
            "train/loss": value,
            "train/lr": optimizer.schedule(state["step"] - state["guard"]["skipped"]),
            "train/logit_scale": logit_scale,
            "train/logit_scale_pinned": (logit_scale >= MAX_LOGIT_SCALE * (1 - 1e-6)).astype(jnp.float32),
            "train/skipped_steps": guard["skipped"],
            "train/skipped_in_a_row": guard["in_a_row"],
        }
        return following, metrics

    return train_step


def in_pieces(encode: Callable[..., Any], pieces: int) -> Callable[..., Any]:
    """encode(parameters, batch) over pieces of the batch, one after the other, with exact gradients.

    Only what `encode` returns is kept: the backward pass encodes each piece again, so that its
    activations exist one piece at a time (gradient caching, Gao et al. 2021, arXiv 2101.06983).
    Each device's samples are cut: the captions and views of one stay together, none moves to another device.
    """
    if pieces == 1:
        return encode

    def cut(x):
        parts = x.reshape(batch_devices(), pieces, -1, *x.shape[1:]).swapaxes(0, 1)
        return parts.reshape(pieces, -1, *x.shape[1:])

    def join(x):
        parts = x.reshape(pieces, batch_devices(), -1, *x.shape[2:]).swapaxes(0, 1)
        return constrain_batch(parts.reshape(-1, *x.shape[2:]))

    def encode_all(parameters, batch):
        def one(piece):
            return encode(parameters, jax.tree.map(constrain_batch, piece))

        return jax.tree.map(join, jax.lax.map(jax.checkpoint(one, prevent_cse=False), jax.tree.map(cut, batch)))

    return encode_all
