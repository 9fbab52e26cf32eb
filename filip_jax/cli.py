"""The command `filip`: train, eval, inspect; see also the files cli_*.py beside this one."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from filip_jax.choices import step_number
from filip_jax.cli_align import add_align_command
from filip_jax.cli_configs import add_configs_command, versions
from filip_jax.cli_data import add_data_commands
from filip_jax.cli_embed import add_embed_command
from filip_jax.cli_plan import add_config, add_plan_commands, apart, chosen
from filip_jax.cli_search import add_index_commands
from filip_jax.cli_serve import add_serve_command
from filip_jax.cli_weights import add_weights_commands
from filip_jax.cluster.watch import HUNG, PREEMPTED, Watch, leave
from filip_jax.console import outlive_readers, say_in_any_encoding, show, show_error
from filip_jax.errors import Preempted, ProcessLost, UserError, one_line
from filip_jax.files import named
from filip_jax.user_paths import from_user

PATHS = (
    "workdir",
    "config",
    "output",
    "image",
    "checkpoint",
    "sensitive_words",
    "index",
    "batch",
    "sheet",
)  # options in which ~ is the home
DESCRIPTION = "FILIP: fine-grained contrastive language-image pre-training in JAX."
EPILOG = """examples:
  filip train --config=demo --workdir=runs/demo
  filip eval --workdir=runs/demo --step=latest
  filip inspect runs/demo --verify
  filip plan --config=filip:base --topology=v5e:4x4
  filip data inspect webdataset path=/data/cc3m --output=cc3m.png
  filip align --workdir=runs/demo --image=dog.png --text="a dog on a white background" --output=dog_aligned.png

`filip COMMAND --help` explains each. Mistakes end with one line and exit code 2."""

TRAIN = """Train a run, or go on with it: started again with the same workdir it resumes by itself.

The config is a Python file whose get_config(variant) gives an ml_collections ConfigDict, or one of those that
`filip configs` lists: --config=filip:base. Any value can be changed behind it: --config.batch_size=1024
--config.model.image.depth=6. Unknown keys and wrong types are refused before anything is compiled. The data, the
tokenizer, the optimizer and the objectives are those of the config's sections, or chosen here with their options:
--source webdataset path=/data/cc3m caption_keys=txt,de.txt --objectives filip + clip weight=0.5; see docs/configs.md.
The workdir receives

  config.json      the config as it was resolved; evaluations read the model from here
  tokenizer.model  the sentencepiece model of the run
  metrics.jsonl    one line per logged step and evaluation; tensorboard/ holds the same
  checkpoints/     parameters, optimiser, step and data position; each whole or absent
  evals.json       the numbers of every evaluation, by step; pictures/ holds what it drew
  quarantine/      records that could not be used, and why
  skipped/         the samples of steps that the guards skipped; keys/ those of all steps, with log_keys=True
  compiled/        programs for the next start (compile_cache); may be removed at any time
  running.json     which process writes here; gone when it ends

TERM and USR1 (processes.stop_signals) save and stop, wherever the run is. Exit codes: 0 done; 2 a mistake, in one
line; 42 stopped and saved, 43 a hang or a lost process: the same command goes on; 130 interrupted (Ctrl-C)."""

EVAL = """Evaluate checkpoints of one run, or of all runs that a pattern matches, and print one table.

  filip eval --workdir=runs/demo/filip
  filip eval --workdir="runs/demo/*" --step=all
  filip eval --workdir=runs/filip_base --step=best --metric=imagenet/image_to_text_top1 --config=eval/clip_benchmark
  filip eval --workdir=gs://bucket/runs/filip_base --watch

The model is always built from the run's own config.json; the evaluations come from there too unless --config names
others: a file whose get_config() has a section `evals`; with a function sweep() in it each point is evaluated. Numbers
are added to each run's evals.json, beside those of the baselines that need no model; the table and a plot over the steps
are written as evals.md and evals.svg, in the run's folder or in that of all runs. What evals.json holds of this very
checkpoint, data and evaluation is not evaluated again, unless with --again.

With --watch it goes on with each new checkpoint until the run has its last one. Where a run in a bucket is watched, it
should not evaluate itself (eval_every_steps=0): both would write evals.json. All devices of this machine are used."""

INSPECT = """Print what a checkpoint holds: its tree, sizes, step, hashes, config and files.

CHECKPOINT is the workdir of a run, of which the newest is taken or that of --step, or the folder of one:

  filip inspect runs/demo
  filip inspect runs/demo --step=350
  filip inspect runs/demo/checkpoints/350 --verify

Layers are stacked: they stand on one line, as do copies of the parameters (ema, the optimiser's moments).
With --verify all files are read; one that is not as it was written is named, with exit code 2. No
accelerator is touched, so it can run beside a training."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0, 42 if it was asked to stop and has saved, 130 if interrupted, or 2 for a mistake."""
    say_in_any_encoding()
    words = apart(sys.argv[1:] if argv is None else argv)
    # argparse takes an unknown option that holds a space for one more word of the option before it.
    overrides = [word for word in words if word.startswith("--config.") and "=" in word]
    arguments, rest = _parser().parse_known_args([word for word in words if word not in overrides])
    rest += overrides
    try:
        if hasattr(arguments, "source"):  # options of the source may stand behind others
            arguments.source += [word for word in rest if "=" in word and not word.startswith("-")]
            rest = [word for word in rest if word not in arguments.source]
        if rest and (arguments.command not in ("train", "plan", "sweep", "eval", "data") or arguments.config is None):
            command = " ".join(filter(None, (arguments.command, getattr(arguments, "data_command", ""))))
            raise UserError(f"unknown argument {rest[0]!r}; see filip {command} --help")
        if empty := [word for word in words if word.startswith("--") and word.endswith("=--")]:
            raise UserError(f"{empty[0]}: -- is no value")  # argparse drops it
        for name in PATHS:
            if value := getattr(arguments, name, None):
                setattr(arguments, name, from_user(value))
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = _show_warning
            arguments.run(arguments, [*chosen(arguments), *rest])
            sys.stdout.flush()
        return 0
    except BrokenPipeError as error:
        if arguments.command in ("train", "sweep"):  # whose output outlives its reader: it is another pipe
            show(f"filip: error: {error}", file=sys.stderr)
            return 2
        # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, OSError) as error:  # the disk and the network are the user's too
        if isinstance(error, OSError) and error.filename:
            error = named(error, error.filename)
        show(f"filip: error: {one_line(str(error))}", file=sys.stderr)
        return 2
    except Preempted as stopped:
        show(f"filip: {stopped}; the same command goes on; exit {PREEMPTED}", file=sys.stderr)
        return PREEMPTED
    except ProcessLost as error:
        show(f"filip: {error}; the same command goes on; exit {HUNG}", file=sys.stderr)
        return HUNG
    except KeyboardInterrupt:
        on = "; the same command goes on from the newest checkpoint" if arguments.command == "train" else ""
        on = "; the same command goes on" if arguments.command == "embed" else on
        show(f"filip: interrupted{on}", file=sys.stderr)
        return 130


def entry() -> None:
    """Run the command as a process.

    Training ends it without Python's last acts: they would wait for threads that read a dead disk, and for processes
    that are gone.
    """
    training = sys.argv[1:2] == ["train"]
    if sys.argv[1:2] in (["train"], ["sweep"]):
        outlive_readers()
    try:
        code = main()
    except Exception:
        show_error()
        code = 1
    if training and _watches:
        leave(code, f"filip: ended with exit code {code}", _watches[-1].on_leave)
    sys.exit(code)


_watches: list[Watch] = []  # of the training, for its end


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="filip", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw, allow_abbrev=False
    )
    parser.add_argument("--version", action=_Versions, nargs=0, help="print the versions and where filip_jax is")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, run, text, workdir=True):
        summary = text.split("\n", 1)[0].rstrip(":.")
        added = commands.add_parser(name, help=summary, description=text, formatter_class=raw, allow_abbrev=False)
        added.set_defaults(run=run)
        if workdir:
            added.add_argument("--workdir", required=True, help="folder of the run")
        return added

    train = command("train", _train, TRAIN)
    add_config(train)
    train.add_argument("--distributed", action="store_true", help="one process of several, see docs/many_devices.md")

    add_plan_commands(command)

    evaluate = command("eval", _eval, EVAL)
    evaluate.add_argument("--step", default="latest", help="latest, all, best or a number (default: latest)")
    evaluate.add_argument(
        "--metric",
        default="",
        metavar="EVALUATION/METRIC",
        help="by which a step is the best (default: the first of evals.json that is R@1, top1 … of something)",
    )
    evaluate.add_argument(
        "--config",
        metavar="FILE.py[:variant]",
        help="evaluations other than the run's own; --config.evals.NAME.key=value behind it",
    )
    evaluate.add_argument("--again", action="store_true", help="evaluate what is recorded already, too")
    evaluate.add_argument("--watch", action="store_true", help="wait for more checkpoints until the run has ended")
    evaluate.add_argument(
        "--idle_minutes", type=float, default=0.0, help="without a new one end a watch (default: never)"
    )
    evaluate.add_argument(
        "--batch_size", type=int, default=64, help="images or texts at a time, per device (default: 64)"
    )

    inspect = command("inspect", _inspect, INSPECT, workdir=False)
    inspect.add_argument("checkpoint", metavar="CHECKPOINT", help="a workdir, or a folder in its checkpoints/")
    inspect.add_argument("--step", default="latest", help="latest or a number (default: latest)")
    inspect.add_argument("--verify", action="store_true", help="read all files and compare their hashes")

    add_data_commands(commands)

    add_align_command(command)
    add_embed_command(command)
    add_index_commands(command)
    add_serve_command(command)
    add_weights_commands(command)
    add_configs_command(command)
    return parser


class _Versions(argparse.Action):
    """An option that prints the versions and ends; argparse's own would look them up for every command."""

    def __call__(self, parser, namespace, values, option_string=None):
        show(versions())
        parser.exit()


def _show_warning(message, category, filename, lineno, file=None, line=None):
    if category is UserWarning:
        show(f"filip: warning: {one_line(str(message))}", file=sys.stderr)


def _train(arguments, overrides) -> None:
    watch = Watch().begin()  # before anything slow is imported: a signal finds it
    _watches.append(watch)
    try:
        from filip_jax.config import load_config
        from filip_jax.epochs import count_records

        config = load_config(arguments.config, overrides, arguments.workdir, count_records)
        if arguments.distributed:
            _join(config, watch)
        from filip_jax.checkpoint.writer import hide_repeated_errors
        from filip_jax.train.loop import train

        hide_repeated_errors()
        train(arguments.workdir, config, watch)
    finally:
        watch.end()


def _join(config, watch) -> None:
    from filip_jax.cluster.join import check_processes, join_processes
    from filip_jax.sections import call

    section = config.get("processes", {})
    call(check_processes, section, "processes")
    join_processes(watch, section["heartbeat_seconds"], section["start_seconds"])


def _eval(arguments, overrides) -> None:
    from filip_jax.config import load_evals
    from filip_jax.evals.checkpoints import evaluate_runs
    from filip_jax.evals.choice import Choice

    names = ("step", "metric", "again", "watch", "idle_minutes", "batch_size")
    choice = Choice(**{name: getattr(arguments, name) for name in names})
    evals = None if arguments.config is None else load_evals(arguments.config, overrides)
    show(*evaluate_runs(arguments.workdir, choice, evals).split("\n"))


def _inspect(arguments, _) -> None:
    from filip_jax.checkpoint.inspect import inspect

    show(*inspect(arguments.checkpoint, step_number(arguments.step), arguments.verify).split("\n"))
