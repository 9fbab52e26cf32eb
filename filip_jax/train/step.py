"""The training step: pure functions on the state {step, params, opt_state[, ema]}."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from filip_jax import paths
from filip_jax.losses import filip_loss
from filip_jax.mesh import parameter_shardings, replicated
from filip_jax.models import Model
from filip_jax.train.optimizer import Optimizer

State = dict[str, Any]
MAX_LOGIT_SCALE = 100.0  # CLIP's bound
# (image_tokens, text_tokens, text_mask, logit_scale) -> scalar. With one token per side, as global
# models give, "contrastive" is CLIP's loss.
LOSSES: dict[str, Callable[..., jax.Array]] = {"contrastive": filip_loss}


def make_init(model: Model, optimizer: Optimizer, ema_decay: float) -> Callable[[jax.Array], State]:
    """The function key -> state of a new run."""

    def init(key):
        parameters = model.init(key)
        trainable, _ = optimizer.split(parameters)
        state = {
            "step": jnp.zeros((), jnp.int32),
            "params": parameters,
            "opt_state": optimizer.transform.init(paths.unflatten(trainable)),
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
    return shardings | {"step": replicated(mesh), "opt_state": opt_state}


def make_train_step(
    model: Model, loss: Callable[..., jax.Array], optimizer: Optimizer, ema_decay: float
) -> Callable[[State, dict[str, jax.Array]], tuple[State, dict[str, jax.Array]]]:
    """The function (state, batch) -> (next state, metrics of this step); run it under `jax.set_mesh`.

    The batch holds `image` uint8 [b, h, w, 3] and `ids` int [b, t], row k of one with row k of the other.
    """

    def train_step(state, batch):
        trainable, frozen = optimizer.split(state["params"])
        trainable = paths.unflatten(trainable)

        def loss_of(trainable):
            parameters = paths.unflatten(paths.flatten(trainable) | frozen)
            image_tokens = model.encode_image(parameters, batch["image"])
            text_tokens, text_mask = model.encode_text(parameters, batch["ids"])
            return loss(image_tokens, text_tokens, text_mask, jnp.exp(parameters["logit_scale"]))

        value, gradient = jax.value_and_grad(loss_of)(trainable)
        updates, opt_state = optimizer.transform.update(gradient, state["opt_state"], trainable)
        moved = optax.apply_updates(trainable, updates)
        parameters = paths.unflatten(paths.flatten(moved) | frozen)
        parameters["logit_scale"] = jnp.minimum(parameters["logit_scale"], math.log(MAX_LOGIT_SCALE))
        following = {"step": state["step"] + 1, "params": parameters, "opt_state": opt_state}
        if ema_decay:
            following["ema"] = optax.incremental_update(parameters, state["ema"], 1 - ema_decay)
        metrics = {
            "train/loss": value,
            "train/lr": optimizer.schedule(state["step"]),
            "train/grad_norm": optax.tree.norm(gradient),
            "train/param_norm": optax.tree.norm(parameters),
            "train/logit_scale": jnp.exp(parameters["logit_scale"]),
        }
        return following, metrics

    return train_step
