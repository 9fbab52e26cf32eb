"""The command `filip data`: index, inspect, convert, filter, tokenizer, bench."""

import argparse
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filip_jax.console import show
from filip_jax.errors import UserError, one_line
from filip_jax.plain import command as command_of
from filip_jax.plain import counted

DATA = """Work on data before a run.

The data is named by a source and its options, or by a config's section `source`:

  filip data inspect webdataset path=/data/cc3m caption_keys=txt,de.txt
  filip data inspect --config=filip --config.source.path=/data/pairs

Sources: webdataset (tars of img2dataset), parquet, arrow (folders of Hugging Face's datasets), array_record,
jsonl, csv, annotations, folder, class_folder, tfds, emoji_scenes,
and in configs mixture. Options of all: caption_keys, side_captions, keep; docs/data.md and the docstrings
of filip_jax/data say more. A wrong option is answered with the right ones."""

INDEX = """Make the index of a source that needs one, and say what it holds.

Training makes it by itself; for many tars it is made here with several processes (processes=16)."""

INSPECT = """Look at a source: counts, sizes, caption lengths, languages, and a contact sheet of views.

With --config the views are those of training, augmentation included; else those of evaluation."""

CONVERT = """Write a source as ArrayRecord, resized if you like; started again, it goes on.

Every record whose image can be read is written, in the source's order, with its keys and those of its captions. The
folder also receives convert.json and, for each shard with records that could not be used, their names and the reasons."""

FILTER = """Clean a source as FILIP cleaned its data: what is kept goes into a folder, the data stays as it is.

Train on what is left with the option keep=FOLDER of the source."""

TOKENIZER = """Train a sentencepiece tokenizer on a source's captions; train with --config.tokenizer.path=FILE."""

BENCH = """Time the input pipeline of a config alone: images/s, where the time goes, and what to change."""


HELP = {
    "records": "how many are looked at, evenly spread",
    "short_side": "pixels to which larger images are scaled; 0 keeps them",
    "records_per_shard": "that go into one file",
    "workers": "processes",
    "min_side": "pixels of the shorter side; 0: no such rule",
    "max_aspect": "the most that the longer side is of the shorter; 0: no such rule",
    "languages": "to keep, ISO 639-1, with commas; empty: no such rule",
    "language_probability": "above which a text is of these languages",
    "meaningless": "drop file names, dates, addresses, placeholders",
    "max_repeats": "of one text, above which it is dropped; 0: no such rule",
    "sensitive_words": "file of words and phrases, one a line; a text with one is dropped",
    "person_names": "replace them by <person>",
    "dry_run": "count and report only",
    "first": "a dry run looks at so many of the first records; 0: all",
    "spread": "a dry run looks at so many, evenly spread; 0: all",
    "vocab_size": "the most pieces",
    "captions": "records whose texts are read, evenly spread",
    "samples": "that are timed",
}


def add_data_commands(commands) -> None:
    """Adds `data` and what stands below it to the command line's parsers."""
    raw = argparse.RawDescriptionHelpFormatter
    data = commands.add_parser(
        "data", help="look at data, convert, clean, time it", description=DATA, formatter_class=raw
    )
    below = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable, text: str, function: Callable | None = None, output: str = "") -> None:
        added = below.add_parser(
            name, help=text.split("\n", 1)[0].rstrip(":."), description=text, formatter_class=raw, allow_abbrev=False
        )
        added.set_defaults(run=run)
        added.add_argument("source", nargs="*", metavar="SOURCE key=value", help="a source and its options")
        added.add_argument("--config", metavar="FILE.py[:variant]", help="and --config.key=value behind it")
        if output:
            sheet = run is _inspect
            added.add_argument(
                "--output", required=not sheet, metavar=output, help="the contact sheet" if sheet else None
            )
        for option, default in _options(function).items() if function else ():
            _add_option(added, option, default)

    command("index", _index, INDEX)
    command("inspect", _inspect, INSPECT, _inspect_options, "FILE.png")
    command("convert", _convert, CONVERT, _convert_options, "FOLDER")
    command("filter", _filter, FILTER, _filter_options, "FOLDER")
    command("tokenizer", _tokenizer, TOKENIZER, _tokenizer_options, "FILE.model")
    command("bench", _bench, BENCH, _bench_options)


def _inspect_options(*, records: int = 1000) -> None: ...


def _convert_options(*, short_side: int = 0, records_per_shard: int = 10_000, workers: int = 1) -> None: ...


def _filter_options(
    *, min_side: int = 200, max_aspect: float = 3.0, languages: tuple = ("en",), language_probability: float = 0.12,
    meaningless: bool = True, max_repeats: int = 10, sensitive_words: str = "", person_names: bool = True,
    dry_run: bool = False, first: int = 0, spread: int = 0, workers: int = 1,
) -> None: ...  # fmt: skip


def _tokenizer_options(*, vocab_size: int = 49_408, captions: int = 200_000) -> None: ...


def _bench_options(*, samples: int = 2000) -> None: ...


def _options(function: Callable) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def _add_option(parser: argparse.ArgumentParser, name: str, default: Any) -> None:
    if isinstance(default, bool):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=default, help=HELP[name])
    elif isinstance(default, tuple):
        parser.add_argument(
            f"--{name}", type=_words, default=default, help=f"{HELP[name]} (default: {','.join(default)})"
        )
    else:
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{HELP[name]} (default: {default})")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _chosen(arguments, function: Callable) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in _options(function)}


def _config(arguments, overrides: Sequence[str]) -> Mapping[str, Any]:
    """The config, with its `source` as the words say if there are any; without --config only that."""
    if not arguments.source and arguments.config is None:
        raise UserError("name a source, as in: webdataset path=/data/cc3m, or a --config")
    config: dict[str, Any] = {}
    if arguments.config is not None:
        from filip_jax.config import load_config

        config = load_config(arguments.config, overrides)
    elif overrides:
        raise UserError(f"unknown argument {overrides[0]!r}; see filip data {arguments.data_command} --help")
    if not arguments.source:
        return config
    from filip_jax.choices import section_of

    return config | {"source": section_of("source", arguments.source, config.get("source", {}))}


def _index(arguments, overrides) -> None:
    from filip_jax.data.pipeline import check_usable
    from filip_jax.data.sources import make_source

    config = _config(arguments, overrides)
    source = make_source(config["source"])
    show(f"{counted(len(source), 'record')} in {counted(len(source.shard_sizes), 'shard')}; {one_line(source.seen)}")
    check_usable(source, **_views(config))


def _views(config: Mapping[str, Any]) -> dict[str, Any]:
    """How the config's training sees pictures; without one how evaluation does."""
    augment = dict(min_area=1.0, flip=False, colour_jitter=0.0, auto_augment=False)
    data = config.get("data", {"image_size": 224, "augment": augment})
    return {"image_size": data["image_size"], "augment": data["augment"]}


def _framing(config: Mapping[str, Any]):
    from filip_jax.framing import framing_of

    return framing_of(config.get("model", {}).get("image", {}))


def _inspect(arguments, overrides) -> None:
    from filip_jax.data.sources import check_outside, make_source
    from filip_jax.tools.inspect import inspect as look_at

    output = Path(arguments.output) if arguments.output else None
    if output and output.suffix != ".png":
        raise UserError(f"--output={output}: the contact sheet is a PNG; name it so")
    config = _config(arguments, overrides)
    if output:
        check_outside(config["source"], arguments.output, "--output", {".png"})
    source, options = make_source(config["source"]), _chosen(arguments, _inspect_options)
    for line in look_at(source, output=output, framing=_framing(config), **_views(config), **options):
        show(line)


def _convert(arguments, overrides) -> None:
    from filip_jax.tools.convert import convert

    source = _config(arguments, overrides)["source"]
    done = convert(source, Path(arguments.output), **_chosen(arguments, _convert_options))
    bad = ", ".join(f"{count} {reason}" for reason, count in done["bad"].items()) or "none"
    show(f"wrote {done['records']} records, {done['bytes'] / 1e9:.2f} GB, to {arguments.output}; left out: {bad}")
    if not done["records"]:
        raise UserError("convert: none of the source's records can be used; the reasons stand above")
    show(f"{done['repeated_images']} images are copies of others, byte by byte")
    show(f"train on it with: {command_of(['--source', 'array_record', f'path={arguments.output}'])}")


def _filter(arguments, overrides) -> None:
    from filip_jax.cleaning.filter import filter_source
    from filip_jax.cleaning.report import table
    from filip_jax.data.sources import check_outside, make_source

    section = _config(arguments, overrides)["source"]
    check_outside(section, arguments.output, "--output", {".arrow", ".json"})
    source = make_source(section)
    report = filter_source(source, Path(arguments.output), **_chosen(arguments, _filter_options))
    show(*table(report).split("\n"))
    if report["kept_records"] and not report["dry_run"]:
        show("", f"train on it with the source's option {command_of([f'keep={arguments.output}'])}")
    if not report["kept_records"]:
        counts = Counter({rule: hit["records"] for rule, hit in report["dropped_by"].items()})
        most = ", ".join(f"{rule} {count:,}" for rule, count in counts.most_common(3))
        raise UserError(f"filter: no record is left; most were dropped by {most}: turn a rule off, or mend the data")


def _tokenizer(arguments, overrides) -> None:
    from filip_jax.data.sources import make_source
    from filip_jax.tools.tokenizer import save_tokenizer

    source = make_source(_config(arguments, overrides)["source"])
    show(*save_tokenizer(source, Path(arguments.output), **_chosen(arguments, _tokenizer_options)).split("\n"))


def _bench(arguments, overrides) -> None:
    from filip_jax.data.pipeline import check_usable
    from filip_jax.data.sources import make_source
    from filip_jax.tools.bench import bench

    if arguments.config is None:
        raise UserError("bench times a config's pipeline: give --config, and the source behind it if it is another")
    config = _config(arguments, overrides)
    source = make_source(config["source"])
    check_usable(source, **_views(config))
    show("preparing the tokenizer ...", file=sys.stderr)
    tokenizer = bench_tokenizer(source, config)
    options = dict(
        data=config["data"], batch_size=min(config["batch_size"], 64), seed=config["seed"], framing=_framing(config)
    )
    show(*bench(source, tokenizer, **options, **_chosen(arguments, _bench_options)).split("\n"))


def bench_tokenizer(source, config: Mapping[str, Any]):
    """The config's tokenizer; one that has to be trained is a small one."""
    from filip_jax.data.tokenizer import Tokenizer, make_tokenizer

    section = config["tokenizer"]
    if "vocab_size" in section:
        section = section | {"captions": 2000, "vocab_size": min(section["vocab_size"], 4000)}
    return Tokenizer(make_tokenizer(source=source, **section))
