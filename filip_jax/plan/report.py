"""The plan of a run: whether a config fits chips that are not here, and how fast it should go."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any

import jax

from filip_jax.checkpoint import abstract
from filip_jax.errors import UserError
from filip_jax.models import portable
from filip_jax.objectives.total import by_definition
from filip_jax.plain import markdown
from filip_jax.plan.chips import CHIPS, GIB, GPUS, Chip, open_topology
from filip_jax.plan.operations import count_operations
from filip_jax.plan.program import Program
from filip_jax.sections import call
from filip_jax.train.encode import with_noise
from filip_jax.train.setup import Setup, batch_of, lower_step, make_setup
from filip_jax.train.step import encode_batch

Plan = dict[str, Any]
TYPICAL = 0.4  # of a GPU's peak, where no compiler counts cycles
GUESS = f"{TYPICAL:.0%} of the peak, a guess"
# What is tried when it does not fit, one after the other, behind sharding over all chips: {config key: value}.
REMEDIES: Sequence[dict[str, Any]] = (
    {"model.remat": True},
    {"model.remat": True, "microbatches": 2},
    {"model.remat": True, "microbatches": 4},
    {"model.remat": True, "microbatches": 8},
)


def plan(config: Mapping[str, Any], topology: str, slices: int = 1) -> Plan:
    """Compiles the training step of a config for a topology, and says what it needs.

    Returns:
        plain numbers: bytes of one chip, operations and seconds of one step, `fits`; see `say`.

    Raises:
        UserError: no such topology, or a config that cannot be.
    """
    kind, devices = open_topology(topology, slices)
    model = config["model"]
    if kind in GPUS:  # what only a GPU can lower is replaced
        config = {**config, "model": portable(model)}
    chip, setup = CHIPS[kind], call(make_setup, config, "(top level)", devices=devices)
    found: Plan = {
        "topology": topology,
        "slices": slices,
        "chips": len(devices),
        "mesh": dict(setup.mesh.shape),
        "batch_size": setup.batch_size,
        "total_steps": setup.total_steps,
        "chip_memory": chip.usable,
        "instead_of_cudnn": config["model"] != model,
        **{part: _bytes(setup, part) for part in ("params", "opt_state", "ema")},
        "operations": step_operations(config, devices),
    }
    compiled, wanted = _compile(lower_step(setup, abstract(setup.shapes, setup.shardings)), topology)
    if compiled is None:
        return found | {"fits": False, "peak_memory": wanted}
    memory, width = compiled.memory_analysis(), config["model"]["embed_dim"]
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    program = Program(compiled.as_text(), width * chip.clock / chip.operations)
    found |= {"fits": peak <= chip.usable, "peak_memory": peak, "temporary": memory.temp_size_in_bytes}
    found |= {"loss_temporary": loss_temporary(setup), "collectives": program.collectives()}
    found["activations"] = max(found["temporary"] - found["loss_temporary"], 0)
    return found | _times(found, chip, program.cycles())


def _bytes(setup: Setup, part: str) -> int:
    """Of a part of the state, on each chip."""
    leaves = zip(jax.tree.leaves(setup.shapes.get(part, {})), jax.tree.leaves(setup.shardings.get(part, {})))
    return sum(math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize for x, sharding in leaves)


def _compile(lowered: Any, topology: str) -> tuple[Any, float]:
    """(the program, 0), or (None, the bytes of a chip that it would need) where the compiler finds no room.

    Raises:
        UserError: the compiler refuses it for another reason.
    """
    try:
        return lowered.compile(), 0.0
    except jax.errors.JaxRuntimeError as error:
        said = " ".join(str(error).split())
        used = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", said)
        needed = re.search(r"HLO temporaries \(([\d.]+)([KMGT])\) exceeds available HBM", said)  # arguments included
        if not (match := used or needed):
            raise UserError(f"--topology={topology}: its compiler refuses the training step: {said[:500]}") from error
        return None, float(match[1]) * 1024 ** ("KMGT".index(match[2]) + 1)


def step_operations(config: Mapping[str, Any], devices: Sequence[Any]) -> float:
    """Matrix operations that one step needs, of all texts at full length: nothing is computed twice for want of memory."""
    model, objectives = config["model"] | {"remat": False}, by_definition(config["objectives"])
    plain = call(
        make_setup, {**config, "model": model, "objectives": objectives, "microbatches": 1}, "", devices=devices
    )
    with jax.set_mesh(plain.mesh):
        return count_operations(plain.train_step, abstract(plain.shapes, plain.shardings), batch_of(plain))


def loss_temporary(setup: Setup) -> int:
    """Bytes of one chip that the loss and its gradient need beside the encoder outputs, compiled alone."""
    batch, objectives = batch_of(setup), setup.objectives
    parameters, teacher = setup.shapes["params"], setup.shapes.get("teacher", {})
    own = [tree.get("objectives", {}) for tree in (parameters, setup.shapes, teacher)]

    def encode(parameters, batch, teacher):
        noisy = with_noise(setup.model, batch, 0, 0)
        return encode_batch(setup.model, objectives.needs, parameters, noisy, teacher=teacher)

    def loss(encoded, parameters, state, teacher):
        return objectives.loss(parameters, state, encoded, 0.0, teacher)[0]

    with jax.set_mesh(setup.mesh):
        encoded = jax.eval_shape(encode, parameters, batch, teacher)
        split = batch["ids"].sharding
        encoded = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), encoded)
        gradient = jax.value_and_grad(loss, allow_int=True)
        shardings = None, jax.tree.map(lambda _: split, encoded)
        lowered = jax.jit(gradient, out_shardings=shardings).lower(encoded, *own)
    analysis: Any = lowered.compile().memory_analysis()
    return analysis.temp_size_in_bytes


def _times(found: Plan, chip: Chip, cycles: float) -> Plan:
    ideal = found["operations"] / found["chips"] / chip.operations
    sent = sum(size for _, size in found["collectives"].values()) / chip.link_rate
    computing, how = (cycles / chip.clock, "the compiler's cycles") if chip.clock else (ideal / TYPICAL, GUESS)
    seconds = max(computing, sent)
    hours = seconds * found["total_steps"] / 3600
    return {
        "estimate": how,
        "links": "of one slice" if found["slices"] > 1 else "",
        "computing_seconds": computing,
        "sending_seconds": sent,
        "step_seconds": seconds,
        "mfu": ideal / seconds,
        "samples_per_second": found["batch_size"] / seconds,
        "days": hours / 24,
        "chip_hours": hours * found["chips"],
    }


def remedies(config: Mapping[str, Any], topology: str, slices: int = 1) -> Iterator[tuple[Mapping[str, Any], Plan]]:
    """Changes that need less memory, the smallest first, with their plans; ends with the first that fits."""
    everywhere: dict[str, Any] = {"mesh.replica": 1, "mesh.data": -1} if config["mesh"]["replica"] != 1 else {}
    for change in [everywhere, *(everywhere | remedy for remedy in REMEDIES)]:
        fewer = change.get("microbatches", config["microbatches"]) <= config["microbatches"]
        useless = fewer and ("microbatches" in change or (config["model"]["remat"] and "model.remat" in change))
        if not change or useless:
            continue  # no change, or one that needs more
        changed = json.loads(json.dumps(config))
        for key, value in change.items():
            *sections, name = key.split(".")
            reduce(getitem, sections, changed)[name] = value
        try:
            found = plan(changed, topology, slices)
        except UserError:  # microbatches that do not divide a chip's share
            continue
        yield change, found
        if found["fits"]:
            return


def say(found: Plan) -> str:
    """A plan for people: memory of a chip, what is sent, and the time of the run."""
    room, peak = found["chip_memory"] / GIB, found["peak_memory"] / GIB
    slices = f"{found['slices']} slices of " if found["slices"] > 1 else ""
    lines = [
        f"{slices}{found['topology']}: {found['chips']} chips, mesh {found['mesh']}, global batch {found['batch_size']}",
        "",
    ]
    rows = {"parameters": "params", "optimiser": "opt_state", "average of the parameters": "ema"}
    rows |= {"temporary, at the peak": "temporary", "  activations and gradients": "activations"}
    rows |= {"  the loss, at most": "loss_temporary"}
    memory = [(name, f"{found[key] / GIB:.2f}") for name, key in rows.items() if found.get(key)]
    lines += [markdown([("memory of a chip", "GiB"), *memory, ("all", f"{peak:.2f}")], numbers=(1,)), ""]
    lines += [f"it {'fits' if found['fits'] else 'DOES NOT FIT'}: {peak:.2f} of {room:.2f} GiB"]
    if found["instead_of_cudnn"]:
        lines += ["with XLA's attention: cuDNN's can only be compiled where there is a GPU"]
    if "step_seconds" not in found:
        return "\n".join(lines)
    sent = [(kind, f"{count}", f"{size / GIB:.3f}") for kind, (count, size) in found["collectives"].items()]
    lines += [
        "",
        markdown([("sent in a step", "times", "GiB to each chip"), *sent], numbers=(1, 2)),
        "",
        f"ESTIMATES, by {found['estimate']}, data and evaluation aside:",
        f"  a step       {1e3 * found['step_seconds']:.1f} ms: {1e3 * found['computing_seconds']:.1f} ms computing, "
        f"{1e3 * found['sending_seconds']:.1f} ms sending at full rate beside it"
        + (", as if the slices were one" if found["slices"] > 1 else ""),
        f"  operations   {found['operations']:.3e} a step, texts at full length; MFU {100 * found['mfu']:.1f} %",
        f"  rate         {found['samples_per_second']:,.0f} samples/s, {found['samples_per_second'] / found['chips']:,.0f} a chip",
        f"  the run      {found['days']:.2f} days, {found['chip_hours']:,.0f} chip-hours for {found['total_steps']} steps",
    ]
    return "\n".join(lines)
