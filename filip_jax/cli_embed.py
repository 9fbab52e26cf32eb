"""The command `filip embed`: the features of a collection, which are searched later."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from filip_jax.choices import step_number
from filip_jax.console import show
from filip_jax.errors import UserError

EMBED = """Embed a collection ahead of time: the tokens of each image, or of each text, into a folder.

  filip embed --workdir=runs/mine --output=photos.index folder path=~/Photos
  filip embed --workdir=runs/mine --output=cc3m.index webdataset path=/data/cc3m --dtype=int8
  filip embed --workdir=runs/mine --output=texts.index --side=text parquet path=/data/pairs.parquet key=id

The collection is named as for `filip data inspect`: a source and its options. Images need no captions. Killed, the same
command goes on where it was, and the rows are those of an embedding that nothing stopped. Run again later, it embeds what
is new, and marks the rows of records that are gone as removed. A record that cannot be read is left out, counted, and named in
OUTPUT/quarantine.

A record is known by its file and its key: a picture that is replaced under its name, or whose caption changes, keeps its row.
With --process=0/4 … --process=3/4 four processes, also of several machines, share one folder, each with a quarter of the records.

Fewer or smaller numbers a row: --dtype=int8, and --reduce, in this order where there are several:
  neighbors:2   the mean of each 2 x 2 neighboring tokens
  select:0.25   the quarter of the tokens that match the words of a sample of texts best (FILIP, section 3.1)
  unchosen      drops the tokens that no word of the sample matches best
What recall at 1, 5 and 10 loses by each is measured on 500 of the collection's own pairs, printed, and recorded."""


def add_embed_command(command: Callable[..., Any]) -> None:
    """Add it; `command` makes a parser of a name, what it runs and its help."""
    parser = command("embed", _embed, EMBED)
    parser.add_argument("source", nargs="*", metavar="SOURCE key=value", help="a source and its options")
    parser.add_argument("--output", required=True, metavar="INDEX", help="the folder that is made, or added to")
    parser.add_argument(
        "--side",
        default="image",
        choices=("image", "text"),
        help="what a row is of: an image, or a text (default: image)",
    )
    parser.add_argument("--step", default="latest", help="latest or a number (default: latest)")
    parser.add_argument(
        "--dtype", default="", choices=("float32", "float16", "int8"), help="of the tokens (default: float16)"
    )
    parser.add_argument("--reduce", action="append", metavar="NAME[:NUMBER]", help="a reduction; may be given again")
    parser.add_argument("--texts", default="", metavar="FILE", help="a sample, a text a line (default: the captions)")
    parser.add_argument(
        "--batch_size", type=int, default=64, help="images or texts at a time, per device (default: 64)"
    )
    parser.add_argument("--part_rows", type=int, default=1024, help="rows that are written at once (default: 1024)")
    parser.add_argument("--process", default="0/1", metavar="I/N", help="which share of the records (default: 0/1)")
    parser.add_argument("--moved", action="store_true", help="the same records lie at another path now")


def _embed(arguments, _) -> None:
    process, processes = _share(arguments.process)
    section = _section(arguments.source)
    from filip_jax.search.embed import embed
    from filip_jax.search.reductions import parse

    embed(
        arguments.workdir, section, arguments.output,
        side=arguments.side, step=step_number(arguments.step), dtype=arguments.dtype, texts=arguments.texts,
        reductions=None if arguments.reduce is None else [parse(each) for each in arguments.reduce],
        batch_size=arguments.batch_size, part_rows=arguments.part_rows, process=process, processes=processes,
        moved=arguments.moved, say=show,
    )  # fmt: skip


def _section(words: Sequence[str]) -> dict[str, Any]:
    if not words:
        raise UserError("name the collection: a source and its options, as in: folder path=~/Photos")
    from filip_jax.choices import section_of

    return section_of("source", words, {})


def _share(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    process, processes = map(int, match.groups()) if match else (0, 0)
    if process >= processes:
        raise UserError(f"--process={text:.100} is not I/N, as 0/4, 1/4, 2/4 and 3/4 for four processes")
    return process, processes
