"""The training step: pure functions on the state {step, params, opt_state, guard[, ema, objectives, teacher]}."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from filip_jax import paths
from filip_jax.losses.encoded import Encoded
from filip_jax.losses.similarity_metrics import sample_rows
from filip_jax.mesh import batch_devices, constrain_batch, parameter_shardings, replicated
from filip_jax.models import Model
from filip_jax.objectives.total import Objectives, init_parameters
from filip_jax.train.encode import encode_samples, with_noise
from filip_jax.train.guards import init_guard, is_good, next_guard
from filip_jax.train.optimizer import Optimizer

State = dict[str, Any]


def make_init(
    model: Model, objectives: Objectives, optimizer: Optimizer, ema_decay: float
) -> Callable[[jax.Array], State]:
    """Return the function key -> state of a new run."""

    def init(key):
        parameters = init_parameters(model, objectives, key)
        trainable, _ = optimizer.split(parameters)
        state = {
            "step": jnp.zeros((), jnp.int32),
            "params": parameters,
            "opt_state": optimizer.transform.init(paths.unflatten(trainable)),
            "guard": init_guard(),
        }
        untrained, teacher = objectives.init_state(model.sizes), teacher_parts(objectives, parameters)
        state |= {"ema": parameters} if ema_decay else {}
        return state | ({"objectives": untrained} if untrained else {}) | ({"teacher": teacher} if teacher else {})

    return init


def teacher_parts(objectives: Objectives, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of the parameters of which a teacher has its own."""
    teacher = objectives.teacher
    return {name: x for name, x in parameters.items() if teacher and (teacher.parts is None or name in teacher.parts)}


def state_shardings(mesh: Mesh, state: State, optimizer: Optimizer) -> State:
    """Return the shardings of a state, arrays or shapes: parameters and their moments by the shape rule, the rest whole."""
    parts = [name for name in ("params", "ema", "teacher") if name in state]
    shardings = {name: parameter_shardings(mesh, state[name], optimizer.metadata) for name in parts}
    trainable, _ = optimizer.split(shardings["params"])
    opt_state = optax.tree_utils.tree_map_params(
        optimizer.transform,
        lambda _, sharding: sharding,
        state["opt_state"],
        paths.unflatten(trainable),
        transform_non_params=lambda _: replicated(mesh),
    )
    others = {
        name: jax.tree.map(lambda _: replicated(mesh), state[name]) for name in ("guard", "objectives") if name in state
    }
    return shardings | others | {"step": replicated(mesh), "opt_state": opt_state}


def make_train_step(
    model: Model,
    objectives: Objectives,
    optimizer: Optimizer,
    ema_decay: float,
    total_steps: int,
    seed: int = 0,
    microbatches: int = 1,
    spike_sigmas: float = 0.0,
    log_every_steps: int = 1,
) -> Callable[[State, dict[str, jax.Array]], tuple[State, dict[str, jax.Array]]]:
    """Return the function (state, batch) -> (next state, metrics of this step); call it under `jax.set_mesh`.

    The batch is that of `encode_samples`. Where samples have several captions it also holds `caption_weight` float32 [b, K],
    0 for an absent one; where an objective needs groups, `group` int32 [b]: samples of one group show one image.

    Args:
        total_steps: length of the run, for weights of objectives that change.
        seed: seed of what is drawn anew in each step and for each sample: the patches that are dropped.
        microbatches: number of pieces in which the towers see the batch, see `in_pieces`; the loss sees it whole.
        spike_sigmas: standard deviations above the usual loss beyond which a step is skipped, see `guards`. A step whose
            loss, gradient or update is not finite is always skipped: then all of the state but its step stays.
        log_every_steps: which steps' metrics are read; on others those that `log_similarities` asks for are 0.
    """

    def train_step(state, batch):
        batch = with_noise(model, batch, seed, state["step"])
        trainable, frozen = optimizer.split(state["params"])
        trainable = paths.unflatten(trainable)
        position = state["step"] - state["guard"]["skipped"]
        locked = [side for side in ("image", "text") if side not in trainable]

        def loss_of(trainable):
            parameters = paths.unflatten(paths.flatten(trainable) | frozen)
            teacher = state.get("teacher", {})
            encoded = encode_batch(model, objectives.needs, parameters, batch, microbatches, teacher, locked)
            own, untrained = parameters.get("objectives", {}), state.get("objectives", {})
            loss, others = objectives.loss(own, untrained, encoded, position / total_steps, teacher.get("objectives"))
            return loss, (*others, sample_rows(encoded) if objectives.logged else None)

        (value, (untrained, numbers, sample)), gradient = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        updates, opt_state = optimizer.transform.update(gradient, state["opt_state"], trainable)
        moved = optax.apply_updates(trainable, updates)
        parameters = paths.unflatten(paths.flatten(moved) | frozen)
        parameters |= {name: objectives.clamp(parameters[name]) for name in ("objectives",) if name in parameters}
        moved = {"params": parameters, "opt_state": opt_state} | ({"objectives": untrained} if untrained else {})
        if objectives.teacher:
            student = teacher_parts(objectives, parameters)
            moved["teacher"] = optax.incremental_update(student, state["teacher"], 1 - objectives.teacher.decay)
        if ema_decay:
            moved["ema"] = optax.incremental_update(parameters, state["ema"], 1 - ema_decay)
        norms = {"grad_norm": optax.tree.norm(gradient), "param_norm": optax.tree.norm(parameters)}
        good = is_good(state["guard"], value, spike_sigmas, *norms.values())
        following = jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, {k: state[k] for k in moved})
        guard = next_guard(state["guard"], value, good)
        following |= {"step": state["step"] + 1, "guard": guard}
        numbers |= objectives.metrics(following["params"].get("objectives", {}))
        if objectives.logged:
            step, own = following["step"], state["params"].get("objectives", {})
            is_due = (step % log_every_steps == 0) | (step == total_steps)
            numbers |= _compute_if(is_due, objectives.similarity_metrics, own, sample)
        metrics = {
            "loss": value,
            "lr": optimizer.schedule(position),
            "skipped_steps": guard["skipped"],
            "skipped_in_a_row": guard["in_a_row"],
        }
        return following, {f"train/{name}": number for name, number in (norms | numbers | metrics).items()}

    return train_step


def _compute_if(condition: jax.Array, function: Callable[..., Any], *arrays: Any) -> Any:
    """Return function(*arrays), or zeros of the same shapes, for which nothing is computed."""
    shapes = jax.eval_shape(function, *arrays)
    return jax.lax.cond(
        condition, function, lambda *_: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), *arrays
    )


def make_start(
    model: Model, objectives: Objectives, microbatches: int, origins: Collection[str]
) -> Callable[[State, dict[str, jax.Array]], State] | None:
    """Return the function (state, first batch) -> state whose objectives begin where that batch puts them, or None.

    Args:
        origins: paths in the state of what comes from another run, and stays.
    """
    begins = {
        (name, key) for name, key in objectives.from_first_batch if f"params/objectives/{name}/{key}" not in origins
    }
    if not begins:
        return None

    def start(state, batch):
        encoded = encode_batch(model, objectives.needs, state["params"], batch, microbatches)
        begun = objectives.start(state["params"]["objectives"], encoded, begins)
        started = dict(state)
        for part in ("params", "ema", "teacher"):
            if "objectives" in state.get(part, {}):
                new = {f"objectives/{name}/{key}": begun[name][key] for name, key in begins}
                new = {path: x for path, x in new.items() if f"{part}/{path}" not in origins}
                started[part] = paths.unflatten(paths.flatten(state[part]) | new)
        return started

    return start


def encode_batch(
    model: Model,
    needs: Collection[str],
    parameters: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    microbatches: int = 1,
    teacher: Mapping[str, Any] | None = None,
    locked: Sequence[str] = (),
) -> Encoded:
    """Return what objectives see of a batch.

    Args:
        needs: see `Objectives.needs`; of the towers' outputs, those that the model has are given.
        batch: see `make_train_step`.
        microbatches: see `in_pieces`.
        teacher: parts of the parameters of another model, whose outputs are given, too, where they are needed.
        locked: towers without trainable parameters, which have no backward pass.
    """
    encode = in_pieces(partial(encode_samples, model), microbatches, locked)
    given = {"group": batch.get("group"), "text_weight": batch.get("caption_weight")}
    if "text_ids" in needs:
        ids = batch["ids"] if batch["ids"].ndim == 3 else batch["ids"][:, None]
        given["text_ids"] = jnp.where(model.text.mask(ids), ids, -1)
    towers = {name: rows for name, rows in batch.items() if name not in ("group", "caption_weight")}
    encoded = replace(encode(parameters, towers), **given)
    if not teacher or "teacher" not in needs:
        return encoded
    if teacher.keys() == {"objectives"}:  # its towers are the student's
        return replace(encoded, teacher=jax.lax.stop_gradient(encoded))
    other = jax.lax.stop_gradient({**parameters, **teacher})
    return replace(encoded, teacher=replace(encode(other, towers), **given))


def in_pieces(encode: Callable[..., Any], pieces: int, keep: Sequence[str] = ()) -> Callable[..., Any]:
    """Return `encode`, (parameters, batch) -> outputs, as a loop over pieces of the batch, with exact gradients.

    Only the outputs are kept: the backward pass encodes each piece again, so that its
    activations exist one piece at a time (gradient caching, Gao et al. 2021, arXiv 2101.06983).
    Each device's samples are cut: the captions and views of one stay together, none moves to another device.

    Args:
        keep: towers whose features are kept, too: locked ones, which only a projection behind them would run again.
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

        policy = jax.checkpoint_policies.save_only_these_names(*keep)
        run = jax.checkpoint(one, prevent_cse=False, policy=policy)
        return jax.tree.map(join, jax.lax.map(run, jax.tree.map(cut, batch)))

    return encode_all
