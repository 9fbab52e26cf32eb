"""The commands `filip plan`, `filip sweep` and `filip report`: before, around and after runs."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filip_jax.choices import CHOICES, FLAGS
from filip_jax.console import show
from filip_jax.errors import UserError
from filip_jax.plain import command

PLAN = """Say whether a run fits chips that are not here, and how fast it should go.

The training step of the config is compiled for the topology, which takes minutes for large models and needs no
such chip: v5e:4x4, v5p:2x2x2, v6e:8x8 … as they can be booked, or h200:8 for GPUs of one host (extra: plan). The memory
is the compiler's plan, and so a test; times are estimates: for TPUs from the compiler's cycles, for GPUs a share of the
peak. What does not fit is tried with less memory (remat, microbatches) until it does."""

SWEEP = """Train several runs of one config, each with other values, and gather their results.

The config's file has, beside get_config(), a function sweep() that yields {key: value} for each run:

  def sweep():
      for rate in (5e-4, 1e-3, 2e-3):
          yield {"optimizer.peak_learning_rate": rate}

Without --run one full command for each run that is not finished is printed, to be submitted wherever you like.
With --run they are trained here, --jobs at a time (on GPUs each has one then). Each has a folder of its own in
the workdir; finished ones are skipped, others go on. What is evaluated is one table, in sweep.md and sweep.csv.

The file may have evaluations alone, as the shipped eval/prompts: then --workdir names runs that are trained already,
with * several of them, and each point is evaluated, as `filip eval --config=FILE` does."""


REPORT = """Write one page about a run, which opens in any browser and loads nothing from a network.

Curves, throughput, where the time went, evaluations beside baselines and published models, alignment pictures,
samples of the data, if it is here (its source is opened), and the config: what the workdir holds."""


def add_plan_commands(add: Callable[..., Any]) -> None:
    """Adds them; `add` makes a parser of a name, what it runs and its help."""
    plan = add("plan", _plan, PLAN, workdir=False)
    add_config(plan)
    plan.add_argument("--topology", required=True, metavar="CHIP:SHAPE", help="v5e:4x4, v5p:2x2x2, h200:8 …")
    plan.add_argument(
        "--slices",
        type=int,
        default=1,
        help="so many of the topology, or hosts of GPUs, joined by a slower network (default: 1)",
    )
    plan.add_argument("--json", action="store_true", help="numbers alone, as one JSON object")

    sweep = add("sweep", _sweep, SWEEP)
    add_config(sweep)
    sweep.add_argument("--run", dest="here", action="store_true", help="train what is not finished on this machine")
    sweep.add_argument("--jobs", type=int, default=1, help="so many at a time (default: 1)")

    page = add("report", _report, REPORT)
    page.add_argument("--output", default="", metavar="FILE.html", help="default: report.html in the workdir")


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the option --config and those that choose another kind of something, see choices.py."""
    parser.add_argument("--config", required=True, metavar="FILE.py[:variant]", help="and --config.key=value behind it")
    parser.add_argument(
        "--init_from", metavar="WORKDIR", help="begin with the model, tokenizer and parameters of another run"
    )
    for key in FLAGS:
        words = "KIND key=value …" + " + KIND …" * (f"{key}.*" in CHOICES)
        parser.add_argument(
            f"--{key}",
            dest=f"config.{key}",
            nargs="*",
            action="append",
            metavar="WORD",
            help=f"in place of the config's: {words}",
        )


def apart(words: Sequence[str]) -> list[str]:
    """Return the words of a command, --source=KIND as two: else words behind it would not belong to it."""
    of_choices = [f"--{key}" for key in FLAGS]
    pairs = ((word, *word.partition("=")) for word in words)
    return [part for word, flag, _, kind in pairs for part in ([flag, kind] if kind and flag in of_choices else [word])]


def chosen(arguments: argparse.Namespace) -> list[str]:
    """Return the options that choose as overrides of the config.

    Raises:
        UserError: one of them is given twice.
    """
    donor = getattr(arguments, "init_from", None)
    overrides = [f"--config.init_from={donor}"] if donor else []
    for key in FLAGS:
        given = getattr(arguments, f"config.{key}", None) or []
        if len(given) > 1:
            several = ", several with + between them" * (f"{key}.*" in CHOICES)
            raise UserError(f"--{key} is given {len(given)} times; give it once{several}")
        overrides += [f"--config.{key}={shlex.join(words)}" for words in given]
    return overrides


def _report(arguments, _) -> None:
    from filip_jax.tools.report import report

    show(f"wrote {report(arguments.workdir, arguments.output)}")


def _plan(arguments, overrides) -> None:
    from filip_jax.config import load_config
    from filip_jax.plan.chips import forget_devices

    forget_devices()  # before a config may import JAX
    config = load_config(arguments.config, overrides)
    from filip_jax.plan.report import plan, say

    show(f"compiling for {arguments.topology} ...", file=sys.stderr)
    found = plan(config, arguments.topology, arguments.slices)
    if not arguments.json:
        show(*say(found).split("\n"))
    remedy = None if found["fits"] else _remedy(config, arguments)
    if arguments.json:
        show(json.dumps(found | {"remedy": remedy}))


def _remedy(config, arguments):
    """The smallest change that makes it fit, as {config key: value}, or None; says what is tried."""
    from filip_jax.plan.report import remedies

    for change, tried in remedies(config, arguments.topology, arguments.slices):
        words = " ".join(f"--config.{key}={value}" for key, value in change.items())
        show(f"with {words} it needs {tried['peak_memory'] / 2**30:.2f} GiB", file=sys.stderr)
        if tried["fits"]:
            show(f"it fits with {words}", file=sys.stderr)
            return change
    show(
        "no change of remat, microbatches and mesh makes it fit: take more chips, or a smaller batch_size",
        file=sys.stderr,
    )
    return None


def _sweep(arguments, overrides) -> None:
    from filip_jax.config import is_eval_config, load_config

    if is_eval_config(load_config(arguments.config, overrides)):
        return _sweep_evals(arguments, overrides)
    from filip_jax.tools.sweep import commands, open_sweep, run_points, write_results

    points = open_sweep(arguments.config, arguments.workdir, overrides)
    failed = run_points(points, arguments.jobs) if arguments.here else []
    results = write_results(points, Path(arguments.workdir))
    if arguments.here:
        show(*results.split("\n"))
    elif todo := commands(points):
        show(*todo.split("\n"))
    count = sum(point.is_finished() for point in points)
    show(
        f"{count} of {len(points)} runs are finished" + (f"; see {arguments.workdir}/sweep.md" if results else ""),
        file=sys.stderr,
    )
    if failed:
        raise UserError("; ".join(failed))


def _sweep_evals(arguments, overrides) -> None:
    from filip_jax.config import load_evals

    evals = load_evals(arguments.config, overrides)
    if not arguments.here:
        show(command(["filip", "eval", f"--workdir={arguments.workdir}", f"--config={arguments.config}", *overrides]))
        show(f"evaluates {', '.join(evals)}", file=sys.stderr)
        return
    from filip_jax.evals.checkpoints import evaluate_runs
    from filip_jax.evals.choice import Choice

    show(*evaluate_runs(arguments.workdir, Choice(), evals).split("\n"))
