"""Any source as ArrayRecord shards: one file to read a record from, images of one size, each with a checksum."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from filip_jax.data.array_record import RecordWriter
from filip_jax.data.decode import decode
from filip_jax.data.identity import changes
from filip_jax.data.record import BadRecord, Record, kind_of
from filip_jax.data.sources import Source, check_outside, make_source
from filip_jax.errors import UserError
from filip_jax.files import LOCK, locked, remove_abandoned, replacing, write_atomically
from filip_jax.progress import Progress
from filip_jax.sections import at_least
from filip_jax.small_files import is_whole, read_json, read_own
from filip_jax.workers import run

PLAN, BAD = "convert.json", "bad.jsonl"
QUALITY = 92


@dataclass(frozen=True)
class Shard:
    """What became of one shard: records written, records left out by reason, hashes of the images."""

    number: int
    records: int
    bad: dict[str, int]


def convert(
    section: Mapping[str, Any], output: Path, *, short_side: int, records_per_shard: int, workers: int
) -> dict[str, Any]:
    """Writes all records of a source whose image can be read as 00000.array_record …, in its order; goes on where it was stopped.

    Args:
        section: of a config's source.
        output: the folder; it also receives convert.json, what was asked for, and for
            each shard with records that were left out NNNNN.bad.jsonl, which names them.
        short_side: pixels to which larger images are scaled and encoded as JPEG; 0 keeps them as they are.
        records_per_shard: records of the source that go into one file.
        workers: processes.

    Returns:
        {records, bad: {reason: count}, repeated_images, bytes}.

    Raises:
        UserError: a number out of range, or an output that lies in the data, was begun with other data or options, or that
            another process writes.
    """
    at_least(0, short_side=short_side)
    at_least(1, records_per_shard=records_per_shard, workers=workers)
    check_outside(section, output, "--output", {".array_record", ".json", ".jsonl"})
    source = make_source(section)
    plan = {
        "identity": source.identity,
        "length": len(source),
        "short_side": short_side,
        "records_per_shard": records_per_shard,
    }
    output.mkdir(parents=True, exist_ok=True)
    busy = f"{output}: another process converts into it; wait until it has ended, or give another output"
    with locked(output / LOCK, busy):
        _check_plan(output, plan)
        remove_abandoned(output, 0.0)  # no other process writes here
        total = -(-len(source) // records_per_shard)
        left = [number for number in range(total) if not _is_done(output, number)]
        progress = Progress("converting shards", total, total - len(left))
        # Workers get the source as it was opened: to open it again would read all captions once more in each.
        for _ in run(partial, (_convert_shard, source, output, plan), left, workers):
            progress.advance()
        return _summary(output, total, 8 * records_per_shard)


def _check_plan(output: Path, plan: dict[str, Any]) -> None:
    file = output / PLAN
    if file.exists():
        begun = read_json(file)
        if changed := changes(begun.get("identity"), plan["identity"]):
            raise UserError(
                f"{output} was begun with other data (what differs: {changed}): give another output, or delete it to "
                "convert anew"
            )
        changed = [name for name in plan if begun.get(name) != plan[name]]
        if changed:
            raise UserError(
                f"{output} was begun with another {changed[0]} ({begun.get(changed[0])!r}, now {plan[changed[0]]!r}): "
                "give the old options or another output"
            )
    elif any(not file.name.startswith(".") for file in output.iterdir()):  # those are locks, and file managers'
        raise UserError(f"{output} is not empty and holds no {PLAN}: give an empty or a new folder")
    else:
        write_atomically(file, json.dumps(plan, indent=2) + "\n")


def _convert_shard(source: Source, output: Path, plan: dict[str, Any], number: int) -> None:
    first = number * plan["records_per_shard"]
    count, bad, hashes, reasons = 0, [], [], Counter[str]()
    with replacing(output / f"{number:05d}.array_record") as beside, RecordWriter(beside) as writer:
        for index in range(first, min(first + plan["records_per_shard"], len(source))):
            try:
                record = source[index]
                hashes.append(hashlib.blake2b(_bytes(record), digest_size=8).digest())
                writer.write(_resized(record, plan["short_side"]))
                count += 1
            except UserError:
                raise
            except (BadRecord, ValueError) as error:
                shard, key = source.where(index)
                reasons[kind_of(str(error))] += 1
                bad.append(json.dumps({"shard": shard, "key": key, "reason": str(error)}) + "\n")
    if bad:
        write_atomically(output / f"{number:05d}.{BAD}", "".join(bad))
    write_atomically(output / f"{number:05d}.hashes", b"".join(hashes))
    write_atomically(_facts(output, number), json.dumps(asdict(Shard(number, count, dict(reasons)))))


def _bytes(record: Record) -> bytes:
    if not isinstance(record.image, bytes):
        raise UserError("convert needs a source of encoded images; this one draws them")
    return record.image


def _resized(record: Record, short_side: int) -> Record:
    """The record with its image at most so large; one that cannot be decoded raises ValueError, whatever its size."""
    picture = decode(record.image)
    if not short_side or min(picture.size) <= short_side:
        return record
    scale = short_side / min(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return replace(record, image=file.getvalue())


def _is_done(output: Path, number: int) -> bool:
    return _facts(output, number).exists() and (output / f"{number:05d}.array_record").exists()


def _facts(output: Path, number: int) -> Path:
    return output / f"{number:05d}.json"


def _read_facts(file: Path) -> Shard:
    facts = read_json(file)
    number, records, bad = (facts.get(name) for name in ("number", "records", "bad"))
    if (
        not is_whole(number)
        or not is_whole(records)
        or not isinstance(bad, dict)
        or not all(map(is_whole, bad.values()))
    ):
        raise UserError(f"{file} is damaged: remove it, and the shard is converted again")
    return Shard(number, records, bad)


def _summary(output: Path, total: int, hash_bytes: int) -> dict[str, Any]:
    facts = [_read_facts(_facts(output, number)) for number in range(total)]
    files = [read_own(output / f"{number:05d}.hashes", hash_bytes) for number in range(total)]
    hashes = np.concatenate([np.frombuffer(data, "<u8", len(data) // 8) for data in files] or [np.empty(0)])
    size = sum((output / f"{number:05d}.array_record").stat().st_size for number in range(total))
    bad = sum((Counter(shard.bad) for shard in facts), Counter())
    return {
        "records": sum(shard.records for shard in facts),
        "bad": dict(bad.most_common()),
        "repeated_images": len(hashes) - len(np.unique(hashes)),
        "bytes": size,
    }
