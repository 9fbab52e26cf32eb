"""Plans for chips that are not here: operations, what is sent, memory, and what to change when it does not fit."""

import json
import math
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT, make_devices_mesh
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from filip_jax.cli import main
from filip_jax.errors import UserError
from filip_jax.losses import filip_loss
from filip_jax.losses.selection import select_tokens
from filip_jax.plan.chips import CHIPS, open_topology
from filip_jax.plan.operations import count_operations
from filip_jax.plan.program import Program
from filip_jax.plan.report import _compile
from filip_jax.train.setup import COMPILER_OPTIONS

SIZES = st.integers(1, 9)


@given(SIZES, SIZES, SIZES, SIZES)
def test_operations_are_those_of_the_matrix_products(batch, rows, inner, columns):
    a, b = jnp.zeros((batch, rows, inner)), jnp.zeros((batch, inner, columns))
    one = 2 * batch * rows * inner * columns
    assert count_operations(jnp.matmul, a, b) == one
    assert count_operations(jax.grad(lambda a, b: jnp.sum(jnp.matmul(a, b)), argnums=(0, 1)), a, b) == 3 * one
    assert count_operations(lambda a, b: jax.lax.scan(lambda c, _: (c, a @ b), 0, length=5), a, b) == 5 * one
    cond = lambda a, b: jax.lax.cond(a.sum() > 0, lambda: a @ b, lambda: (a @ b) + (a + a) @ b)
    assert count_operations(cond, a, b) == 2 * one
    assert count_operations(jax.jit(jax.checkpoint(jnp.matmul)), a, b) == one


def test_products_in_loops_of_unknown_length_are_no_guess():
    loop = lambda a: jax.lax.while_loop(lambda a: a.sum() > 0, lambda a: a @ a, a)
    with pytest.raises(ValueError, match="while loop"):
        count_operations(loop, jnp.zeros((2, 2)))
    assert count_operations(lambda a: jax.lax.while_loop(lambda a: a > 0, lambda a: a - 1, a), 3) == 0


def test_operations_of_a_convolution_and_of_all_devices():
    image, kernel = jnp.zeros((3, 8, 8, 5)), jnp.zeros((4, 4, 5, 7))
    patches = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert count_operations(patches, image, kernel) == 2 * 3 * 2 * 2 * 4 * 4 * 5 * 7
    mesh, split = make_devices_mesh(1, 8), PartitionSpec("data")
    product = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=split, out_specs=split)
    assert count_operations(product, jnp.zeros((32, 6))) == 8 * 2 * 4 * 6 * 4


TEXT = """
%body (p: f32[4]) -> f32[4] {
  %a = f32[1024]{0:T(1024)} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%sum, backend_config={"estimated_cycles":"10"}
}
%condition (p: s32[]) -> pred[] {
  %end = s32[]{:T(128)} constant(7)
}
%short (p: f32[]) -> f32[] {
  %s = f32[] add(%x, %y), backend_config={"estimated_cycles":"100"}
}
%long (p: f32[]) -> f32[] {
  %l = f32[] add(%x, %y), backend_config={"estimated_cycles":"1000"}
}
ENTRY %main (p: f32[4]) -> f32[4] {
  %w = f32[4] while(%t), condition=%condition, body=%body
  %c = f32[] conditional(%i), branch_computations={%short, %long}
  %g = (bf16[8]{0}, bf16[64]{0}) all-gather-start(%x), replica_groups=[2,8]<=[16], dimensions={0}
  %r = f32[8]{0} reduce-scatter(%x), replica_groups={{0,1,2,3}}, dimensions={0}
  %p = (f32[16]{0}, f32[16]{0}) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %m = f32[1024] all-reduce(%x), replica_groups=mesh['replica'=2,'data'=4] {'data'}, use_global_device_ids=true
  %f = f32[2] fusion(%x), calls=%short, backend_config={"estimated_cycles":"5"}
}
"""


def test_a_program_counts_loops_branches_and_what_a_chip_receives():
    program = Program(TEXT)
    assert program.cycles() == 7 * 10 + 1000 + 5 and program.cycles(0) == 7 * 10 + 100 + 5
    assert program.collectives() == {
        "all-reduce": (8, 8 * 2 * 4096 * 3 / 4),
        "all-gather": (1, 128 * 7 / 8),
        "reduce-scatter": (1, 32 * 3),
        "collective-permute": (1, 64),
    }
    assert math.isnan(Program("").cycles()) and Program("").collectives() == {}


@pytest.mark.parametrize(
    "line, kind, size",
    [
        ("(f32[100]{0}, f32[200]{0}, f32[150]{0}) all-reduce(%a, %b, %c), replica_groups={{0,1}}", "all-reduce", 1800),
        ("(f32[100]{0}, f32[200]{0}) all-reduce-start(%a, %b), replica_groups={{0,1}}", "all-reduce", 1200),
        (
            "((f32[8]{0}, f32[4]{0}), (f32[64]{0}, f32[32]{0})) all-gather-start(%a, %b), replica_groups=[1,8]<=[8]",
            "all-gather",
            336,
        ),
        ("((f32[1024]{0}), f32[128]{0}, u32[]) reduce-scatter-start(%a), replica_groups={}", "reduce-scatter", 3584),
        (
            "(f32[16]{0}, f32[16]{0}, f32[16]{0}, f32[16]{0}) all-to-all(%a, %b, %c, %d), replica_groups={{0,1,2,3}}",
            "all-to-all",
            192,
        ),
        (
            "(bf16[8,4]{1,0:T(8,128)(2,1)}, bf16[8,4]{1,0}, u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,1}}",
            "collective-permute",
            64,
        ),
    ],
)
def test_arrays_that_go_together_count_together(line, kind, size):
    program = Program(f"HloModule m, num_partitions=8\nENTRY %main (p: f32[]) -> f32[] {{\n  %x = {line}\n}}\n")
    assert program.collectives() == {kind: (1, size)}


def test_rounds_of_loops_are_the_compilers_or_their_conditions():
    body = '%body (p: f32[]) -> f32[] {\n  %a = f32[] add(%x, %y), backend_config={"estimated_cycles":"10"}\n}\n'
    main = "ENTRY %main (p: f32[]) -> f32[] {{\n  %w = f32[] while(%t), condition=%c, body=%body{}\n}}\n"
    known = ', backend_config={"known_trip_count":{"n":"3"}}'
    assert Program(body + main.format(known)).cycles() == 30
    with pytest.raises(ValueError, match="unknown rounds of %w"):
        Program(body + main.format("")).cycles()


def test_unknown_groups_are_no_guess():
    with pytest.raises(ValueError, match="unknown replica groups"):
        Program("ENTRY %m (p: f32[]) -> f32[] {\n  %x = f32[4] all-reduce(%a), replica_groups=new{}\n}").collectives()


def test_what_is_sent_is_read_from_a_real_program():
    pytest.importorskip("libtpu")
    mesh = Mesh(open_topology("v5e:2x2")[1], ("data",), axis_types=(AxisType.Auto,))

    def sums(x):
        def one(total, row):
            return jnp.tanh(total + jax.lax.psum(row * total, "data")), None

        return jax.lax.scan(one, jnp.ones(x.shape[1:]), x)[0]

    x = jax.ShapeDtypeStruct((30, 4096, 128), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "data")))
    function = jax.shard_map(
        sums, mesh=mesh, in_specs=PartitionSpec(None, "data"), out_specs=PartitionSpec(), check_vma=False
    )
    program = Program(jax.jit(function).lower(x).compile().as_text())
    count, size = program.collectives()["all-reduce"]
    assert (count, size) == (30, 30 * 2 * 1024 * 128 * 4 * 3 / 4) and program.cycles() > 0


def test_a_compiler_counts_arguments_when_it_finds_no_room():
    """So that nothing is added to what its message says."""
    pytest.importorskip("libtpu")
    mesh = Mesh(open_topology("v5e:1x1")[1], ("data",), axis_types=(AxisType.Auto,))
    x = jax.ShapeDtypeStruct((3 * 2**30,), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    compiled, needed = _compile(jax.jit(lambda x: x[::-1] + x.sum(), donate_argnums=0).lower(x), "v5e:1x1")
    assert compiled is None and needed == pytest.approx(24 * 2**30, rel=0.01)


@pytest.mark.slow
def test_what_sharded_parameters_send_is_known_to_the_byte():
    """Each layer's are gathered twice, and their gradients summed into pieces."""
    pytest.importorskip("libtpu")
    mesh = Mesh(open_topology("v5e:2x4")[1], ("data",), axis_types=(AxisType.Auto,))

    def of(spec, *shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    def loss(parameters, x):
        def layer(x, parameters):
            x = jnp.tanh(jnp.matmul(x, parameters, precision="highest"))
            return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec("data"))), None

        return (jax.lax.scan(layer, x, parameters)[0] ** 2).sum()

    parameters = of(PartitionSpec(None, None, "data"), 8, 1024, 1024)
    step = jax.jit(jax.grad(loss), out_shardings=parameters.sharding, compiler_options=COMPILER_OPTIONS["tpu"])
    program = Program(step.lower(parameters, of(PartitionSpec("data"), 1024, 1024)).compile().as_text())
    layer = 1024**2 * 7 / 8
    assert program.collectives() == {"all-gather": (16, 16 * layer * 4), "reduce-scatter": (8, 8 * layer * 4)}


@pytest.mark.parametrize(
    "name, message",
    [
        ("v9:2x2", "the chip is not one of v5e, v5p, v6e, h100, h200; write it as v5e:4x4"),
        ("v5e", "write it as v5e:4x4"),
        ("v5e:4", "write it as v5e:4x4"),
        ("h200:0", "write it as v5e:4x4"),
        ("h200:2x2", "write it as v5e:4x4"),
    ],
)
def test_topologies_that_can_not_be(name, message):
    with pytest.raises(UserError, match=f"--topology={name}: {message}"):
        open_topology(name)


def planned(*words, code=0):
    """What `filip plan` prints, in a process of its own: it tells JAX to look for no chips."""
    command = [sys.executable, "-m", "filip_jax", "plan", "--config=configs/demo.py:quick", *words]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    return done


TINY = [f"--config.model.{tower}.{size}" for tower in ("image", "text") for size in ("width=32", "depth=2", "heads=2")]


@pytest.mark.slow
def test_a_plan_of_a_tpu_slice():
    pytest.importorskip("libtpu")
    found = json.loads(planned("--topology=v5e:2x2", "--slices=2", "--config.mesh.replica=2", "--json", *TINY).stdout)
    assert found["chips"] == 8 and found["mesh"] == {"replica": 2, "data": 4} and found["fits"]
    state = found["params"] + found["opt_state"] + found["ema"]
    assert state < found["peak_memory"] < CHIPS["v5e"].memory and 0 < found["loss_temporary"] <= found["temporary"]
    assert found["estimate"] == "the compiler's cycles" and 0 < found["mfu"] < 1
    assert found["step_seconds"] == max(found["computing_seconds"], found["sending_seconds"])
    assert found["samples_per_second"] == pytest.approx(128 / found["step_seconds"])
    assert found["chip_hours"] == pytest.approx(8 * 60 * found["step_seconds"] / 3600)
    sent = found["collectives"]  # over two replicas each chip sums at least what it keeps
    assert sent["all-reduce"][1] + 2 * sent.get("reduce-scatter", (0, 0))[1] >= 2 * found["params"] / 2
    assert found["links"] == "of one slice" and found["activations"] <= found["temporary"]


@pytest.mark.slow
@pytest.mark.long
def test_a_plan_of_gpus_is_marked_as_a_guess():
    pytest.importorskip("jax_cuda13_plugin")
    cudnn = ["--config.model.attention=cudnn", "--config.model.dtype=bfloat16"]
    if jax.__version_info__ < (0, 11):
        refused = planned("--topology=h200:2", *TINY, code=2).stderr
        assert f"JAX {jax.__version__} cannot compile for GPUs that are not there; take 0.11 or newer" in refused
        return
    done = planned("--topology=h200:2", "--slices=2", "--config.mesh.replica=2", *cudnn, *TINY)
    assert "2 slices of h200:2: 4 chips, mesh {'replica': 2, 'data': 2}" in done.stdout
    assert "with XLA's attention: cuDNN's" in done.stdout and "as if the slices were one" in done.stdout
    assert "it fits: " in done.stdout and "ESTIMATES, by 40% of the peak, a guess" in done.stdout
    assert "| parameters " in done.stdout and "| all-" in done.stdout


def test_what_does_not_fit_is_changed_until_it_does(monkeypatch, capsys):
    """The compilers' work is told here; that of the plans is real."""
    from filip_jax.plan import report

    tried = []

    def plan(config, topology, slices):
        tried.append(
            (config["model"]["remat"], config["microbatches"], *(config["mesh"][axis] for axis in ("replica", "data")))
        )
        if config["microbatches"] == 2:
            raise UserError("batch_size=128 is not divisible")
        needed = 40 * 2**30 / (2 * config["model"]["remat"] + config["microbatches"])
        facts = dict(
            topology=topology,
            slices=slices,
            chips=4,
            mesh={"replica": 1, "data": 4},
            batch_size=128,
            instead_of_cudnn=False,
        )
        return facts | dict(params=2**20, peak_memory=needed, chip_memory=16 * 2**30, fits=needed < 8 * 2**30)

    monkeypatch.setattr(report, "plan", plan)
    words = ["plan", f"--config={ROOT}/configs/demo.py:quick", "--topology=v5e:2x2"]
    assert main(words) == 0
    output, said = capsys.readouterr()
    assert "it DOES NOT FIT: 40.00 of 16.00 GiB" in output and "| parameters " in output
    assert tried == [(False, 1, 1, -1), (True, 1, 1, -1), (True, 2, 1, -1), (True, 4, 1, -1)]
    assert "with --config.model.remat=True it needs 13.33 GiB" in said
    assert said.endswith("it fits with --config.model.remat=True --config.microbatches=4\n")
    tried.clear()
    assert main([*words, "--config.microbatches=8", "--config.model.remat=True"]) == 0
    assert tried == [(True, 8, 1, -1)] and "it fits" in capsys.readouterr().out
    tried.clear()
    assert main([*words, "--json", "--config.mesh.replica=2"]) == 0
    assert tried[:3] == [(False, 1, 2, -1), (False, 1, 1, -1), (True, 1, 1, -1)]
    wanted = {"mesh.replica": 1, "mesh.data": -1, "model.remat": True, "microbatches": 4}
    assert json.loads(capsys.readouterr().out)["remedy"] == wanted


def test_a_compiler_that_finds_no_room_says_how_much_it_needs():
    class Lowered:
        def __init__(self, said):
            self.said = said

        def compile(self):
            raise jax.errors.JaxRuntimeError(self.said)

    said = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.41G of 15.75G hbm."
    assert _compile(Lowered(said), "v5e:2x2") == (None, 20.41 * 2**30)
    said = "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    said += "temporaries (23.90G) exceeds available HBM (15.75G). HLO module: jit_train_step."
    assert _compile(Lowered(said), "v5e:2x2") == (None, 23.90 * 2**30)
    with pytest.raises(UserError, match="--topology=v5e:2x2: its compiler refuses the training step: another"):
        _compile(Lowered("another"), "v5e:2x2")


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [512, 2048, 10_240])
def test_the_loss_multiplies_no_more_for_larger_batches(pairs):
    """What is padded to whole programs and tiles, on any platform, is 4 % at 77 words; branches count as the largest."""
    images, texts = (jax.ShapeDtypeStruct((pairs, tokens, 256), jnp.bfloat16) for tokens in (49, 77))
    mask, one = jax.ShapeDtypeStruct((pairs, 77), bool), 2 * pairs**2 * 49 * 77 * 256

    def loss(images, texts, mask):
        return filip_loss(images, texts, mask, 14.0, indices="save")

    select = partial(select_tokens, keep_tokens=0.25, selection="batch", implementation="auto")
    assert one <= count_operations(select, images, texts, mask) < 1.05 * one
    assert 3 * one <= count_operations(jax.grad(loss, argnums=(0, 1)), images, texts, mask) < 3.15 * one
