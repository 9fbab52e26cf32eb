"""One process's share of an embedding: what it reads, encodes, writes and cannot use, and how far it is."""

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from filip_jax.ahead import in_order
from filip_jax.data.record import kind_of
from filip_jax.data.sources import Source, fingerprint
from filip_jax.errors import UserError
from filip_jax.features import Features, FeatureWriter, Manifest, open_features
from filip_jax.features.writer import unit
from filip_jax.files import open_to_append, writing
from filip_jax.folders import remove
from filip_jax.inference import Embedder
from filip_jax.plain import counted
from filip_jax.progress import Progress
from filip_jax.search.collection import (
    NOT_FINITE,
    Comparison,
    Item,
    Uncaptioned,
    Unit,
    compare,
    place_of,
    read,
    texts_of,
)
from filip_jax.search.reductions import changes, losses, positions_of, reduced, words_of
from filip_jax.small_files import is_whole

QUARANTINE = "quarantine"  # of each process a file that names the records that could not be used
MAX_NAMED = 100_000  # records in a file of the quarantine
MAX_COMPARED = 256  # rows whose captions are compared with the source's
MAX_PAIRS = 500  # of a sample, by which losses are measured


def spread(source: Sized, count: int) -> list[int]:
    """Return at most `count` numbers of records, or of rows, evenly spread."""
    places = np.linspace(0, max(len(source) - 1, 0), min(count, len(source)))
    return np.unique(places.astype(int)).tolist()


class Work:
    """One process's share of an embedding."""

    def __init__(self, model: Embedder, source: Source, section, writer: FeatureWriter, side: str, say):
        self.model, self.source, self.section = model, source, section
        self.writer, self.side, self.say = writer, side, say
        self.bad, self.new, self.cut, self.mute = Counter[str](), 0, 0, 0
        self.bare = Uncaptioned(source, section)
        self.file = writer.folder / QUARANTINE / f"process_{writer.process}.jsonl"
        self.words = np.zeros((0, writer.manifest.dimension), np.float32)
        if texts := list(writer.manifest.texts):
            self.words = words_of(*model.encode_text(texts))

    def run(self, part_rows: int) -> None:
        """Embed what this process's share of the records lacks, part by part."""
        comparison, progress = self._begin(part_rows)
        part_rows, processes = progress["part_rows"], self.writer.processes
        chunks = list(range(self.writer.process, -(-len(comparison) // part_rows), processes))
        done = progress["done"][self.writer.process]
        ranges = [(chunk * part_rows, min((chunk + 1) * part_rows, len(comparison))) for chunk in chunks]
        total, before = (sum(end - start for start, end in share) for share in (ranges, ranges[:done]))
        units = (unit for start, end in ranges[done:] for unit in comparison.units(start, end))
        shown = Progress(f"embedding {self.side}s", total, before)
        make = partial(read, self.source, self.section, self.model, self.side, self.bare)
        with closing(in_order(make, units, 2 * self.model.batch_size)) as items:
            for count, (start, end) in enumerate(ranges[done:], done + 1):
                bad = self._part(islice(items, end - start), shown)
                self._name(bad)
                self.writer.flush(partial(_advance, process=self.writer.process, done=count))
                if count == done + 1:
                    self._warn_of_space(end - start, sum(end - start for start, end in ranges[count:]))
        self.writer.flush(partial(_finish, shares=list(_shares(comparison, part_rows, processes))))

    def _begin(self, part_rows: int) -> tuple[Comparison, Mapping[str, Any]]:
        """Return what is to be embedded, and how far the same embedding was when it was killed."""
        features, identity = open_features(self.writer.folder), fingerprint(self.source)
        progress = _progress_of(features.manifest, identity, self.writer.processes)
        rows = progress["rows"] if progress else len(features)
        comparison = compare(self.source, self.section, features, rows, self.side)
        if progress and self.writer.processes == 1 and progress["units"] != len(comparison):  # of no help: begin anew
            progress, rows = {}, len(features)
            comparison = compare(self.source, self.section, features, rows, self.side)
        if not progress and self.side == "image":
            self._warn_of_others(features)
        fresh = {"identity": identity, "rows": rows, "part_rows": part_rows, "units": len(comparison)}
        fresh |= {"processes": self.writer.processes, "done": [0] * self.writer.processes}

        def begin(now: Manifest) -> Manifest:
            if progress or (self.writer.processes > 1 and _progress_of(now, identity, self.writer.processes)):
                return now
            source = {"section": self.section, "identity": identity}
            return replace(now.with_removed(comparison.removed), progress=fresh, source=source)

        self.writer.flush(begin)
        if not progress:
            remove([str(file) for file in self._quarantines()], str(self.writer.folder))
        shared = self.writer.manifest.progress
        if shared["rows"] != rows or shared["units"] != len(comparison):
            raise UserError(f"{self.writer.folder}: the records changed while processes began: start them all again")
        if shared["done"][self.writer.process]:
            self.say("going on with an embedding that did not end")
        return comparison, shared

    def _quarantines(self) -> list[Path]:
        """Return the files that name this process's records: of one process all, since it takes over from several."""
        return [self.file] if self.writer.processes > 1 else [*self.file.parent.glob("process_*.jsonl")]

    def _warn_of_others(self, features: Features) -> None:
        """Warn if records, as far as some are looked at, have other captions than their rows: these may be of other pictures."""
        rows, others = [row for row in spread(features, MAX_COMPARED) if features.live[row]], []
        for known in features.fields(rows):
            place, index = (known["shard"], known["key"]), known["index"]
            if known["caption"] and index < len(self.source) and place_of(self.source, self.section, index) == place:
                texts = texts_of(self.source, index)
                others += [known["key"]] if texts not in ([], [""]) and known["caption"] not in texts else []
        if others:
            warnings.warn(
                f"{self.writer.folder}: {len(others)} of {counted(len(rows), 'record')} looked at have another caption than "
                f"when they were embedded, such as {others[0]!r:.100}. A row keeps the tokens of its first picture: if rows of "
                "a table have moved since, embed it into another index, with key=COLUMN",
                stacklevel=2,
            )

    def _warn_of_space(self, units: int, left: int) -> None:
        """Warn if the disk is too small for the records that are left, by the size of a first part."""
        size = self.writer.manifest.parts[-1].bytes if self.writer.manifest.parts else 0
        needed, free = size * left // units, shutil.disk_usage(self.writer.folder).free
        if needed > free:
            text = f"{self.writer.folder}: the rest needs some {needed / 1e9:,.2f} GB, and the disk has {free / 1e9:,.2f} left"
            warnings.warn(text, stacklevel=2)

    def _part(self, items: Iterator[Item], shown: Progress) -> list[Item]:
        """Embed the items of a part; return those that cannot be."""
        bad: list[Item] = []
        good: list[Item] = []
        for item in items:
            shown.advance()
            (bad if item.content is None else good).append(item)
            if len(good) == self.model.batch_size:
                bad += self._add(good)
                good = []
        return bad + (self._add(good) if good else [])

    def _add(self, items: Sequence[Item]) -> list[Item]:
        """Give the rows of a batch to the writer; return the items whose tokens are not finite."""
        tokens, mask, positions, pooled = self._encode([item.content for item in items])
        finite = np.isfinite(tokens).all(axis=(1, 2)) & np.isfinite(pooled).all(axis=1)
        fields = [item.fields for item, fine in zip(items, finite) if fine]
        self.writer.add(tokens[finite], mask[finite], fields, positions[finite], pooled[finite])
        self.new, self.cut = self.new + len(fields), self.cut + sum(item.truncated for item in items)
        self.mute += sum(bool(item.reason) for item in items)
        return [replace(item, reason=NOT_FINITE) for item, fine in zip(items, finite) if not fine]

    def _encode(self, contents: Sequence[Any]):
        manifest = self.writer.manifest
        if self.side == "text":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of texts that are cut, which are counted here
                tokens, mask = self.model.encode_text(contents)
            line = (1, mask.shape[1]) if self.model.pooling == "tokens" else None
            return tokens, mask, positions_of(mask.shape, line), unit((tokens * mask[..., None]).sum(axis=1))
        whole = self.model.encode_image(contents)
        pooled = unit(whole.sum(axis=1))
        if manifest.grid is None:
            return whole, np.ones(whole.shape[:2], bool), positions_of(whole.shape, None), pooled
        return *reduced(whole, manifest.reductions, manifest.grid, self.words), pooled

    def _name(self, bad: Sequence[Item]) -> None:
        """Name the records of a part that cannot be used, each once, in the quarantine."""
        if not bad:
            return
        self.bad.update(kind_of(item.reason) for item in bad)
        self.file.parent.mkdir(exist_ok=True)
        with writing(self.file), open_to_append(self.file) as stream:
            stream.seek(0)
            lines = stream.read().splitlines(keepends=True)
            named = set(lines)
            torn = b"\n" if lines and not lines[-1].endswith(b"\n") else b""
            new = dict.fromkeys(json.dumps({**_named(item), "reason": item.reason}).encode() + b"\n" for item in bad)
            unnamed = [line for line in new if line not in named]
            stream.write(torn + b"".join(unnamed[: max(MAX_NAMED - len(named), 0)]))

    def measure(self) -> None:
        """Measure, once, what recall falls by with each reduction, on a sample of the source's own pairs."""
        manifest = self.writer.manifest
        if not manifest.reductions or any(each["losses"] for each in manifest.reductions):
            return
        captioned = [
            index for index in spread(self.source, MAX_PAIRS) if texts_of(self.source, index) not in ([], [""])
        ]
        make = partial(read, self.source, self.section, self.model, "image", self.bare)
        items = [make(Unit(index, 0)) for index in captioned]
        items = [item for item in items if item.content is not None]
        if len(items) < 2:
            self.say("losses of recall are not measured: the source has no pairs of an image and a caption")
            measured = [{**each, "losses": {"pairs": 0}} for each in manifest.reductions]
        else:
            images = self.model.encode_image([item.content for item in items])
            tokens, mask = self.model.encode_text([item.fields["caption"] for item in items])
            measured = losses(images, [text[text_mask] for text, text_mask in zip(tokens, mask)], manifest, self.words)
            for each in measured:
                self.say(f"{each['name']}: {changes(each['losses'])}")
        self.writer.flush(lambda now: replace(now, reductions=tuple(measured)))

    def summary(self) -> Features:
        """Say what the folder holds now, and return it."""
        features = open_features(self.writer.folder)
        removed = len(features) - int(features.live.sum())
        size = sum(part.bytes for part in features.manifest.parts)
        self.say(
            f"{counted(self.new, 'new row')}; {self.writer.folder} has {len(features) - removed:,}, {size / 1e6:,.1f} MB"
        )
        if removed:
            self.say(f"{counted(removed, 'row')} marked as removed: the source has no such record any more")
        if self.cut:
            longer = f"longer than the model's {self.model.text_length} tokens: what is beyond them is not read"
            self.say(f"{counted(self.cut, 'text')} {longer}")
        if self.mute:
            self.say(f"{counted(self.mute, 'picture')} without a caption, since it cannot be read")
        if self.bad:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.bad.most_common(5))
            self.say(f"{counted(self.bad.total(), 'record')} cannot be used: {reasons}; {self.file} names them")
        if not len(features):
            raise UserError(
                f"embed: none of the source's {len(self.source)} records can be used. It is {self.source.seen}"
            )
        return features


def _named(item: Item) -> dict[str, Any]:
    return {name: item.fields[name] for name in ("shard", "key")}


def _shares(comparison: Comparison, part_rows: int, processes: int) -> Iterator[int]:
    """Yield how many parts each process has."""
    parts = -(-len(comparison) // part_rows)
    return (len(range(process, parts, processes)) for process in range(processes))


def _progress_of(manifest: Manifest, identity: str, processes: int) -> Mapping[str, Any]:
    """Return the progress of an embedding of the same data by as many processes; nothing if there is none."""
    progress = manifest.progress
    numbers: list[Any] = [progress.get(name) for name in ("rows", "part_rows", "units")]
    done: Any = progress.get("done")
    is_same = progress.get("identity") == identity and progress.get("processes") == processes
    is_sound = all(map(is_whole, numbers)) and isinstance(done, list) and len(done) == processes
    is_sound = is_sound and all(map(is_whole, done)) and numbers[0] <= manifest.rows and numbers[1] > 0
    return progress if is_same and is_sound else {}


def _advance(now: Manifest, process: int, done: int) -> Manifest:
    counts = list(now.progress["done"])
    counts[process] = done
    return replace(now, progress={**now.progress, "done": counts})


def _finish(now: Manifest, shares: Sequence[int]) -> Manifest:
    """Return the manifest without progress, if every process has done its share."""
    is_done = list(now.progress.get("done", shares)) == list(shares)
    return replace(now, progress={}) if is_done else now
