"""Counts and examples of what each rule did."""

from bisect import insort
from collections import Counter
from typing import Any

from filip_jax.cleaning.judge import BARE, LANGUAGE, NAMED, REPEATED, SENSITIVE, SHAPES, UNREADABLE, Verdict
from filip_jax.data.sources import Source
from filip_jax.plain import cell, markdown

EXAMPLES, LONGEST, SHOWN = 5, 200, 60  # of each rule; characters of each, and of what a table shows
SCATTER, BITS = 0x9E3779B97F4A7C15, (1 << 64) - 1  # an odd multiplier puts the indices into a fixed random order


class Tally:
    """What the rules did to some records; two tallies add up.

    The examples are a random choice, the same one however the records are split.
    """

    def __init__(self, counts: dict[str, Any] | None = None):
        counts = counts or {}
        self.totals = Counter(counts.get("totals", {}))
        self.languages = Counter(counts.get("languages", {}))
        self.records = Counter(counts.get("records", {}))
        self.captions = Counter(counts.get("captions", {}))
        self.examples: dict[str, list] = dict(counts.get("examples", {}))

    def add(self, index: int, verdict: Verdict) -> None:
        """Counts one record."""
        self.totals["records"] += 1
        self.totals["captions"] += verdict.captions
        self.totals["kept_records"] += not verdict.reason
        self.totals["kept_captions"] += len(verdict.kept)
        self.totals["changed_records"] += verdict.changed
        self.languages.update(verdict.languages)
        if verdict.reason:
            self.records[verdict.reason] += 1
        for rule, text in verdict.hits:
            self.captions[rule] += 1
            self._example(rule, [index * SCATTER & BITS, index, text[:LONGEST]])
        if verdict.reason in (UNREADABLE, BARE, *SHAPES):  # the record takes its other captions along
            self.captions[verdict.reason] += verdict.captions - len(verdict.hits)
        if any(rule == NAMED for rule, _ in verdict.hits):
            self.records[NAMED] += 1

    def merge(self, other: "Tally") -> None:
        """Adds what another tally counted."""
        for name in ("totals", "languages", "records", "captions"):
            getattr(self, name).update(getattr(other, name))
        for rule, examples in other.examples.items():
            for example in examples:
                self._example(rule, example)

    def described(self) -> dict[str, Any]:
        """As JSON, from which `Tally` makes it again."""
        return {name: dict(value) for name, value in vars(self).items()}

    def _example(self, rule: str, example: list) -> None:
        chosen = self.examples.setdefault(rule, [])
        enters = len(chosen) < EXAMPLES or example < chosen[-1]
        if enters and not any(example[2] == text for _, _, text in chosen):
            insort(chosen, example)
            del chosen[EXAMPLES:]


def summary(tally: Tally, source: Source) -> dict[str, Any]:
    """The part of report.json that holds counts: totals, languages, and each rule with examples.

    A rule has `records` and `captions` that it dropped, which add up to all that was dropped;
    "person_names" has what it changed.
    """

    def hit(rule: str) -> dict[str, Any]:
        examples = [
            dict(zip(("index", "shard", "key", "text"), (index, *source.where(index), text)))
            for _, index, text in tally.examples.get(rule, [])
        ]
        return {"records": tally.records[rule], "captions": tally.captions[rule], "examples": examples}

    rules = sorted({*tally.records, *tally.captions} - {NAMED}, key=_place)
    return {
        **{name: tally.totals[name] for name in TOTALS},
        "languages": dict(tally.languages.most_common()),
        "dropped_by": {rule: hit(rule) for rule in rules},
        "person_names": hit(NAMED),
    }


TOTALS = ("records", "captions", "kept_records", "kept_captions", "changed_records")
_ORDER = (UNREADABLE, BARE, "meaningless", REPEATED, SENSITIVE, LANGUAGE, *SHAPES, NAMED)


def _place(rule: str) -> tuple[int, str]:
    return _ORDER.index(rule.split(":")[0]), rule


def table(report: dict[str, Any]) -> str:
    """A report as a Markdown table for people: a line for each rule, with three examples."""
    looked = max(1, report["records"])
    rows: list[tuple[str, ...]] = [("rule", "records", "share", "captions", "examples")]
    lines = [*report["dropped_by"].items(), ("names replaced", report["person_names"])]
    for rule, hit in lines:
        shown = "; ".join(_short(example["text"]) for example in hit["examples"][:3])
        rows.append(
            (cell(rule), f"{hit['records']:,}", f"{hit['records'] / looked:.2%}", f"{hit['captions']:,}", shown)
        )
    kept = report["kept_records"]
    rows.append(("kept", f"{kept:,}", f"{kept / looked:.2%}", f"{report['kept_captions']:,}", ""))
    seen = f"{report['records']:,} of {report['source_records']:,} records"
    part = "; repeats counted among these only" if report["records"] < report["source_records"] else ""
    return f"{'dry run over' if report['dry_run'] else 'filtered'} {seen}{part}\n\n{markdown(rows, numbers=(1, 2, 3))}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return cell(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")
