"""The setup of a run from its config, built abstractly: no file is written, no array allocated."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from filip_jax.checkpoint import CheckpointWriter
from filip_jax.cluster.join import check_processes
from filip_jax.data.pipeline import batches, check_numbers
from filip_jax.data.tokenizer import check_tokenizer
from filip_jax.errors import UserError
from filip_jax.evals.run import check_evals
from filip_jax.mesh import batch_shapes, check_batch_size, make_mesh, replicated
from filip_jax.models import Model, check_platform, make_model
from filip_jax.objectives.total import Objectives, make_objectives
from filip_jax.sections import at_least, call, check
from filip_jax.train.encode import with_noise
from filip_jax.train.guards import check_guards
from filip_jax.train.init_from import origins_of
from filip_jax.train.optimizer import Optimizer, make_optimizer
from filip_jax.train.profile import check_profile
from filip_jax.train.step import (
    State,
    encode_batch,
    make_init,
    make_start,
    make_train_step,
    state_shardings,
)
from filip_jax.train.wandb_log import check_project

# By default the compiler cuts each product with a gathered parameter into a loop of small ones, which rewrites the
# activations again and again; parameters are small beside them and are gathered faster than that.
COMPILER_OPTIONS = {"tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "100000"}}


@dataclass(frozen=True)
class Setup:
    """The parts of a run.

    Attributes:
        init: key -> state.
        train_step: (state, batch) -> (state, metrics).
        start: (state, first batch) -> state, for objectives that begin where the first batch puts them; else None.
        objectives: what is trained for.
        shapes, shardings: of the state.
    """

    mesh: Mesh
    model: Model
    optimizer: Optimizer
    init: Callable[[jax.Array], State]
    train_step: Callable[[State, dict[str, jax.Array]], tuple[State, dict[str, jax.Array]]]
    start: Callable[[State, dict[str, jax.Array]], State] | None
    objectives: Objectives
    shapes: State
    shardings: State
    seed: int
    batch_size: int
    total_steps: int
    source: Mapping[str, Any]
    data: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    init_from: Mapping[str, Any]
    checkpoint: Mapping[str, Any]
    processes: Mapping[str, Any]
    guards: Mapping[str, Any]
    compile_cache: bool
    log_every_steps: int
    log_keys: bool
    wandb_project: str
    profile: Mapping[str, Any]
    eval_every_steps: int
    evals_fatal: bool
    evals: Mapping[str, Any]


def make_setup(
    *, seed: int, batch_size: int, total_steps: int, microbatches: int,
    mesh: Mapping[str, Any],
    source: Mapping[str, Any],
    data: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    model: Mapping[str, Any],
    objectives: Mapping[str, Any],
    optimizer: Mapping[str, Any], ema_decay: float,
    init_from: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    processes: Mapping[str, Any],
    guards: Mapping[str, Any],
    compile_cache: bool,
    log_every_steps: int, log_keys: bool, wandb_project: str,
    profile: Mapping[str, Any],
    eval_every_steps: int, evals_fatal: bool, evals: Mapping[str, Any],
    devices: Sequence[jax.Device] | None = None,
) -> Setup:  # fmt: skip
    """Return the setup of a config: these are its legal keys, `devices` apart.

    Args:
        batch_size: pairs of one step, over all devices of all processes.
        total_steps: steps of the whole run; the schedule ends there.
        microbatches: pieces in which the towers see each device's share of the batch: less memory for
            one more forward pass, the same gradients.
        ema_decay: of the moving average of the parameters that evaluations use; 0 keeps none.
        compile_cache: whether compiled programs are kept in the workdir for the next start.
        log_every_steps, eval_every_steps: periods; 0 never evaluates.
        profile: which steps of this start are traced, see `Profile`.
        log_keys: whether the samples of each step are named in keys/ of the workdir.
        wandb_project: of Weights & Biases, which gets the metrics, too; "" for none.
        evals_fatal: whether an evaluation's error ends the run; else it is logged as eval/<name>/error.
        devices: other than this machine's; nothing runs on them.

    Raises:
        UserError: anything in the config that cannot be, named by its key.
    """
    _check_numbers(seed, total_steps, log_every_steps, eval_every_steps, ema_decay)
    devices = call(make_mesh, mesh, "mesh", devices=devices)
    check_batch_size(batch_size, devices, microbatches)
    given = (
        "source", "tokenizer", "batch_size", "seed", "start", "process_index", "process_count", "groups", "framing",
    )  # fmt: skip
    check(batches, data, "data", given)
    check_numbers(**data)
    check_tokenizer(tokenizer)
    _check_keeping(checkpoint, processes, guards, wandb_project, profile)
    check_evals(evals)
    total = make_objectives(objectives)
    network = make_model(total.outputs, **model)
    check_platform(model, devices.devices.flat[0].platform)
    _check_sizes(network, data)
    _check_needs(total, **data)
    metadata = network.metadata | total.metadata
    moves = call(make_optimizer, optimizer, "optimizer", metadata=metadata, total_steps=total_steps)
    init = make_init(network, total, moves, ema_decay)
    shapes = jax.eval_shape(init, jax.random.key(seed))
    _check_objectives(network, total, shapes, batch_shapes(devices, 2 * devices.size, "groups" in total.needs, **data))
    origins = call(origins_of, init_from, "init_from", shapes=shapes)
    return Setup(
        mesh=devices,
        model=network,
        optimizer=moves,
        init=init,
        train_step=make_train_step(
            network, total, moves, ema_decay, total_steps, seed, microbatches, guards["spike_sigmas"], log_every_steps
        ),
        start=make_start(network, total, microbatches, origins),
        objectives=total,
        shapes=shapes,
        shardings=state_shardings(devices, shapes, moves),
        seed=seed, batch_size=batch_size, total_steps=total_steps, source=source, data=data, tokenizer=tokenizer,
        init_from=init_from, checkpoint=checkpoint, processes=processes, guards=guards,
        compile_cache=compile_cache, log_every_steps=log_every_steps, log_keys=log_keys,
        wandb_project=wandb_project, profile=profile, eval_every_steps=eval_every_steps, evals_fatal=evals_fatal, evals=evals,
    )  # fmt: skip


def lower_step(setup: Setup, state: State) -> jax.stages.Lowered:
    """Return the training step for a state, arrays or shapes with shardings, and a batch of the run; not compiled yet."""
    outputs, platform = (setup.shardings, replicated(setup.mesh)), setup.mesh.devices.flat[0].platform
    with jax.set_mesh(setup.mesh):
        step = jax.jit(
            setup.train_step, donate_argnums=0, out_shardings=outputs, compiler_options=COMPILER_OPTIONS.get(platform)
        )
        return step.lower(state, batch_of(setup))


def batch_of(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a batch of the run."""
    return batch_shapes(setup.mesh, setup.batch_size, "groups" in setup.objectives.needs, **setup.data)


def _check_keeping(checkpoint, processes, guards, wandb_project, profile):
    check_project(wandb_project)
    check(CheckpointWriter, checkpoint, "checkpoint", ("workdir",))
    call(check_processes, processes, "processes")
    call(check_guards, guards, "guards")
    call(check_profile, profile, "profile")


def _check_numbers(seed, total_steps, log_every_steps, eval_every_steps, ema_decay):
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} must be at least 0 and below 2^32")
    at_least(1, total_steps=total_steps, log_every_steps=log_every_steps)
    at_least(0, eval_every_steps=eval_every_steps)
    if not 0 <= ema_decay < 1:
        raise UserError(f"ema_decay={ema_decay} must be at least 0 and below 1")


def _check_sizes(network, data):
    for key, size in {"image_size": network.image.size, "text_length": network.text.length}.items():
        if data[key] != size:
            raise UserError(f"data.{key}={data[key]}, but the model is built for {size}")


def _check_needs(objectives, *, captions_per_image=1, views=1, **others):
    """Raise a UserError where the `data` section does not give what an objective needs, or views that none needs."""
    for name, part in objectives.active.items():
        if "regions" in part.needs:
            raise UserError(
                f"objectives.{name} needs regions: batches for training hold none, only evaluations see boxes"
            )
        for need, key, count in (("captions", "captions_per_image", captions_per_image), ("views", "views", views)):
            if need in part.needs and count < 2:
                raise UserError(
                    f"objectives.{name} needs several {need} of an image, but data.{key}={count}: set it to 2 or more"
                )
    if views > 1 and "views" not in objectives.needs:
        raise UserError(f"data.views={views}, but no objective needs further views: set it to 1")


def _check_objectives(network, objectives, shapes, batch):
    """Raise a UserError for an option that fits no encoder output or parameter, before anything is compiled."""
    for name, part in objectives.parts.items():
        if part.teacher and (unknown := set(part.teacher.parts or ()) - shapes["params"].keys()):
            raise UserError(
                f"objectives.{name}: the teacher's parts {', '.join(sorted(unknown))} are none of the parameters: "
                f"{', '.join(shapes['params'])}"
            )

    def loss(state, batch):
        own, untrained = state["params"].get("objectives", {}), state.get("objectives", {})
        teacher, noisy = state.get("teacher", {}), with_noise(network, batch, 0, 0)
        encoded = encode_batch(network, objectives.needs, state["params"], noisy, teacher=teacher)
        return objectives.loss(own, untrained, encoded, 0.0, teacher.get("objectives"))[0]

    jax.eval_shape(loss, shapes, batch)
