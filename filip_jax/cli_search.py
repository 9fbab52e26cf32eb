"""The commands that search stored features: `filip search`, and `filip index` for what they hold and how they are searched."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filip_jax.choices import Choice, split_words, step_number
from filip_jax.console import show
from filip_jax.errors import UserError
from filip_jax.plain import counted

MAX_BATCH_BYTES = 1 << 26  # of a file of queries
MAX_QUERIES = 1 << 20  # in it
AT_ONCE = 256  # queries that are embedded and searched together
HITS_AT_ONCE = 1 << 18  # of theirs, that are held

SEARCH = """Search an index by a text or an image: the rows whose tokens match the query's best.

  filip search --workdir=runs/mine --index=photos.index --text="a red balloon over the sea"
  filip search --workdir=runs/mine --index=photos.index --image=cat.jpg --where='width > 640 and caption contains "cat"'
  filip search --workdir=runs/mine --index=photos.index --batch=queries.jsonl --json > hits.jsonl

The model must be the one that embedded the index. Among images a text ranks by text_to_image, the mean over its tokens of
their best patches; among texts an image ranks by image_to_text; an image among images, or a text among texts, by the mean
of both ways. All scores are those of the definition.

--batch names a file with a query a line: {"text": "…"} or {"image": "FILE"}, and an "id" if you like, which --json repeats.
A query that cannot be searched has a line with its error, and the others go on.
--where filters by the columns key, shard, index, width, height, orientation and caption: =, !=, <, <=, >, >= and in, `contains`
for a part of a text, and, or, not, parentheses.
--candidates=N scores only the N rows whose mean token is nearest, and at least --top: faster, and no longer exact, see filip
index check. --engine=lance and --engine="qdrant url=http://HOST:6333" name candidates, of what filip index build has made.
--sheet draws each hit, and for each word a heat map of its patches, on one scale for all hits."""

INDEX = """Look into an index, and make it fast to search."""
INSPECT = """Print what an index holds: its rows, model, types, reductions with their losses, and parts.

  filip index inspect --index=photos.index --verify"""
BUILD = """Copy an index into an engine, or bring the engine up to it: new rows are added, removed ones deleted.

  filip index build --index=photos.index --engine=lance
  filip index build --index=photos.index --engine="lance uri=s3://bucket/photos"
  filip index build --index=photos.index --engine="qdrant url=http://localhost:6333"

Killed, the same command goes on. What an engine does not hold yet is found all the same, more slowly."""
CHECK = """Print what a fast search loses: recall at 10 and 100 beside the exact search, and the time of both.

  filip index check --index=photos.index --candidates=1000
  filip index check --index=photos.index --engine=lance --workdir=runs/mine

The queries are captions of the index, if it has some and --workdir names its model, else tokens of its rows."""


def add_index_commands(command: Callable[..., Any]) -> None:
    """Add them; `command` makes a parser of a name, what it runs and its help."""
    search = command("search", _search, SEARCH)
    add_index_options(search)
    query = search.add_mutually_exclusive_group(required=True)
    query.add_argument("--text", help="what is looked for, in words")
    query.add_argument("--image", help="a picture file that is looked for")
    query.add_argument("--batch", metavar="FILE.jsonl", help="a file with a query a line")
    search.add_argument("--step", default="latest", help="latest or a number (default: latest)")
    search.add_argument("--top", type=int, default=20, help="hits of a query (default: 20)")
    search.add_argument("--where", default="", metavar="FILTER", help="only rows for which this holds")
    search.add_argument("--json", action="store_true", help="print each hit as a line of JSON")
    search.add_argument("--sheet", metavar="FILE.png", help="draw the hits of --text with the patches of each word")

    index = command("index", None, INDEX, workdir=False)
    parts = index.add_subparsers(dest="index_command", required=True, metavar="COMMAND")
    for name, run, text in (("inspect", _inspect, INSPECT), ("build", _build, BUILD), ("check", _check, CHECK)):
        part = parts.add_parser(
            name, help=text.split("\n", 1)[0].rstrip(".:"), description=text, formatter_class=index.formatter_class,
            allow_abbrev=False,
        )  # fmt: skip
        part.set_defaults(run=run)
        part.add_argument("--index", required=True, metavar="INDEX", help="the folder that filip embed made")
        if name == "inspect":
            part.add_argument("--verify", action="store_true", help="read all parts and compare their hashes")
        else:
            _add_engine(part, candidates=name == "check")
        if name == "check":
            part.add_argument("--workdir", help="folder of the run, whose model reads the captions")
            part.add_argument("--step", default="latest", help="latest or a number (default: latest)")
            part.add_argument("--queries", type=int, default=100, help="how many (default: 100)")


def add_index_options(parser) -> None:
    """Add the options that name an index and how it is searched."""
    parser.add_argument("--index", required=True, metavar="INDEX", help="the folder that filip embed made")
    _add_engine(parser)


def _add_engine(parser, candidates: bool = True) -> None:
    parser.add_argument(
        "--engine", default="exact", metavar="'NAME key=value …'", help="exact, lance or qdrant (default: exact)"
    )
    if candidates:
        parser.add_argument("--candidates", type=int, metavar="N", help="rows that are scored instead of all")


def open_index_of(arguments, engine: str | None = None):
    """Return the index that a command's options name.

    Args:
        engine: instead of theirs.
    """
    from filip_jax.search.engines import ENGINES
    from filip_jax.search.index import open_index

    words = split_words(engine or arguments.engine)
    if not words:
        raise UserError("--engine names an engine, and its options behind it as key=value")
    section = Choice(ENGINES).section(words, {})
    return open_index(arguments.index, section.pop("name"), **section)


def _search(arguments, _) -> None:
    from filip_jax.inference import load_model
    from filip_jax.search.explain import check_patches
    from filip_jax.search.filters import parse_filter
    from filip_jax.search.index import check_counts

    if arguments.sheet and (arguments.text is None or Path(arguments.sheet).suffix.lower() != ".png"):
        raise UserError("--sheet draws the hits of --text, into a file that ends with .png")
    check_counts(arguments.top, arguments.candidates)  # mistakes are told before the model is loaded
    requests = list(_asked(arguments))
    index = open_index_of(arguments)
    parse_filter(arguments.where, index.kinds)
    if arguments.sheet:
        check_patches(index.features)
        Path(arguments.sheet).parent.mkdir(parents=True, exist_ok=True)
    model = load_model(arguments.workdir, step_number(arguments.step))
    index.check_model(model)
    bad, size = 0, max(1, min(AT_ONCE, HITS_AT_ONCE // max(arguments.top, 1)))
    for start in range(0, len(requests), size):
        queries = _queries(index, model, batch := requests[start : start + size])
        good = [query for query in queries if not isinstance(query, UserError)]
        if not arguments.batch and not good:
            raise queries[0]
        results = index.search_all(good, top=arguments.top, where=arguments.where, candidates=arguments.candidates)
        hits_of_queries = iter(results)
        for (name, _, value), query in zip(batch, queries):
            _show_hits(arguments, name, value, query if isinstance(query, UserError) else next(hits_of_queries))
        bad += len(batch) - len(good)
    if arguments.sheet:
        _draw(arguments, index, model, results[0])
    if bad:
        raise UserError(
            f"--batch={arguments.batch}: {bad} of {len(requests)} queries cannot be searched: see their lines"
        )


def _queries(index, model, batch) -> list[Any]:
    """Return the query of each request, or why it is none."""
    queries: dict[int, Any] = {}
    for kind, queries_of in (("text", index.text_queries), ("image", index.image_queries)):
        places = [n for n, (_, other, _) in enumerate(batch) if other == kind]
        values = [batch[n][2] for n in places]
        try:
            queries |= zip(places, queries_of(model, values) if places else [])
        except UserError:  # it is about one of them, which does not say which
            for place, value in zip(places, values):
                try:
                    queries[place] = queries_of(model, [value])[0]
                except UserError as error:
                    queries[place] = UserError(str(error).removeprefix("image 0, "))
    return [queries[n] for n in range(len(batch))]


def _show_hits(arguments, name, value: str, hits) -> None:
    about = {} if name is None else {"query": name}
    title = [f"{value}:"] if arguments.batch else []
    if isinstance(hits, UserError):
        text = str(hits) if str(hits).startswith(f"{value}: ") else f"{value}: {hits}"
        show(json.dumps(about | {"error": str(hits)}) if arguments.json else text)
    elif arguments.json:
        for n, hit in enumerate(hits, 1):
            show(json.dumps(about | {"rank": n} | asdict(hit)))
    else:
        show(*title, *_table(hits))


def _asked(arguments) -> Iterator[tuple[Any, str, str]]:
    """Yield (id, "text" or "image", value) of each query."""
    if arguments.batch is None:
        if arguments.text is None:
            yield None, "image", arguments.image
        else:
            _check_text(arguments.text, "--text")
            yield None, "text", arguments.text
        return
    from filip_jax.small_files import parse, read_own

    data = read_own(Path(arguments.batch), MAX_BATCH_BYTES)
    lines = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    if not 1 <= len(lines) <= MAX_QUERIES:
        raise UserError(f"--batch={arguments.batch} has {len(lines)} queries; from 1 to {MAX_QUERIES} are read")
    for number, line in lines:
        try:
            content = parse(line)
        except ValueError as error:
            raise UserError(f"--batch={arguments.batch}: line {number} is no JSON: {error}") from error
        kinds = [kind for kind in ("text", "image") if isinstance(content, dict) and isinstance(content.get(kind), str)]
        if len(kinds) != 1:
            raise UserError(
                f'--batch={arguments.batch}: line {number} is neither {{"text": "…"}} nor {{"image": "FILE"}}'
            )
        if kinds == ["text"]:
            _check_text(content["text"], f"--batch={arguments.batch}: the text of line {number}")
        yield number if content.get("id") is None else content["id"], kinds[0], content[kinds[0]]


def _check_text(text: str, name: str) -> None:
    from filip_jax.small_files import is_text

    if not text.strip() or not is_text(text, len(text)):
        raise UserError(f"{name} is {'not valid Unicode' if text.strip() else 'empty'}")


def _table(hits) -> list[str]:
    from filip_jax.plain import cell, markdown

    if not hits:
        return ["no row passes the filter"]
    rows: list[tuple[str, ...]] = [
        ("rank", "score", "image_to_text", "text_to_image", "pooled", "key", "shard", "index", "size", "caption")
    ]
    for n, hit in enumerate(hits, 1):
        numbers = (f"{x:.4f}" for x in (hit.score, hit.image_to_text, hit.text_to_image, hit.pooled))
        size = f"{hit.width}x{hit.height}" if hit.width else ""  # of a text there is none
        rows.append((str(n), *numbers, *map(cell, (hit.key, hit.shard, str(hit.index), size, hit.caption))))
    return markdown(rows, numbers=(*range(5), 7)).split("\n")


def _draw(arguments, index, model, hits) -> None:
    from filip_jax.data.record import BadRecord
    from filip_jax.files import write_png
    from filip_jax.search.pictures import open_pictures
    from filip_jax.search.sheet import draw_sheet

    picture, file = open_pictures(index.features), Path(arguments.sheet)

    def view_of(row: int):
        try:
            return next(model.views([picture(row)]))
        except (BadRecord, OSError, ValueError):  # it is gone, or none any more
            return None

    write_png(draw_sheet(model, arguments.text, index.features, hits, view_of), file)
    if not arguments.json:  # whose lines are all JSON
        show(f"wrote {file}")


def _inspect(arguments, _) -> None:
    from filip_jax.features import open_features
    from filip_jax.search.inspect import describe

    features = open_features(arguments.index)
    show(*describe(features))
    if arguments.verify:
        features.verify()
        show("every part is as it was written")


def _build(arguments, _) -> None:
    index = open_index_of(arguments)
    if index.engine.candidates is None:
        raise UserError(
            f"--engine={arguments.engine} searches the index itself: name one that holds a copy, --engine=lance"
        )
    began = time.perf_counter()
    added, deleted = index.build()
    seconds = time.perf_counter() - began
    show(f"{counted(added, 'row')} added, {deleted:,} deleted in {seconds:.1f} s; the engine holds all {len(index):,}")


def _check(arguments, _) -> None:
    from filip_jax.search.check import captions, check, sampled
    from filip_jax.sections import at_least

    at_least(1, queries=arguments.queries)
    fast, exact = open_index_of(arguments), open_index_of(arguments, "exact")
    if fast.engine.candidates is None and arguments.candidates is None:
        raise UserError("name the fast search that is compared with the exact one: --candidates=1000 or --engine=lance")
    texts = captions(fast, arguments.queries) if arguments.workdir else []
    if texts:
        from filip_jax.inference import load_model

        model = load_model(arguments.workdir, step_number(arguments.step))
        queries = fast.text_queries(model, texts)
    else:
        queries = sampled(fast, arguments.queries)
    result = check(exact, fast, queries, arguments.candidates)
    kind = "captions" if texts else "some tokens of a row each"
    show(f"{counted(result.queries, 'query', 'queries')} ({kind}) among {counted(len(fast), 'row')}:")
    show(*(f"  recall@{k} {share:.4f}" for k, share in result.recall.items()))
    show(f"  {result.fast_ms:.1f} ms a query; exact: {result.exact_ms:.1f} ms")
