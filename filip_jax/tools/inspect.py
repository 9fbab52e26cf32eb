"""What is in a source: numbers for a table, and pictures as the model will see them."""

import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from filip_jax.data.decode import decode, image_format
from filip_jax.data.pipeline import parts_of
from filip_jax.data.record import BadRecord, Record, kind_of, that_say
from filip_jax.data.samples import draw_captions, draw_sample
from filip_jax.data.sources import Source
from filip_jax.errors import UserError, one_line
from filip_jax.evals.fonts import font_name, missing_glyphs, sized
from filip_jax.extras import pip_install
from filip_jax.files import write_png
from filip_jax.framing import CLIP_FRAMING, Framing
from filip_jax.plain import counted, printable
from filip_jax.progress import Progress
from filip_jax.sections import at_least

COLUMNS, ROWS, SPARE = 6, 4, 4  # of the contact sheet; records that are tried for a place on it
SIDE, GAP, LINE, LETTERS, LINES = 200, 12, 15, 12, 4  # pixels; lines of a caption
QUANTILES = (0, 5, 50, 95, 100)
KINDS, EXAMPLE = 8, 200  # reasons that are listed; characters of an example


@dataclass
class Findings:
    """Of the records looked at.

    Attributes:
        usable: records that training could take.
        bad: kind of reason -> records.
        examples: kind of reason -> the first record that has it, and its own reason.
        formats: of the encoded images.
        sides: (shorter, longer) in pixels.
        sizes: bytes of encoded images.
        captions: different texts of each record, of which training draws.
        origins: captions by where they come from; words of each.
    """

    records: int = 0
    usable: int = 0
    bad: Counter = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    formats: Counter = field(default_factory=Counter)
    sides: list[tuple[int, int]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    captions: list[int] = field(default_factory=list)
    origins: dict[str, list[str]] = field(default_factory=dict)


def inspect(
    source: Source,
    *,
    records: int,
    image_size: int,
    augment: Mapping[str, Any],
    output: Path | None,
    framing: Framing = CLIP_FRAMING,
) -> Iterator[str]:
    """Looks at records evenly spread over a source; yields the lines of a report for people.

    Args:
        records: how many.
        image_size, augment, framing: of the views; see `training_views`.
        output: the PNG of a contact sheet, written if any record can be used; None for none.

    Raises:
        UserError: no records are asked for, or, behind the report, none of a part's can be used.
    """
    at_least(1, records=records)
    yield f"{counted(len(source), 'record')} in {counted(len(source.shard_sizes), 'shard')}; {one_line(source.seen)}"
    useless = []
    for name, part in parts_of(source).items():
        found = look(part, records)
        texts = sum(map(len, found.origins.values()))
        counts = f"{len(found.sides):,} images, {texts:,} captions; {found.bad.total():,} records cannot be used"
        yield from ("", f"{name}: {len(part):,} records, {found.records:,} looked at: {counts}", *_lines(found))
        useless += [] if found.usable else [name]
    if output and (views := sample_views(source, image_size, augment, framing)):
        output.parent.mkdir(parents=True, exist_ok=True)
        write_png(contact_sheet(views), output)
        if unknown := "".join(sorted({sign for _, caption in views for sign in missing_glyphs(_shown(caption))})):
            warnings.warn(
                f"no font that is installed here knows {unknown[:80]}: the sheet has boxes instead", stacklevel=2
            )
        yield from ("", f"wrote {output}: {len(views)} records as the model sees them")
    if useless:
        raise UserError(f"{', '.join(useless)}: no record that was looked at can be used; the reasons stand above")


def sample_views(
    source: Source, image_size: int, augment: Mapping[str, Any], framing: Framing = CLIP_FRAMING
) -> list[tuple[np.ndarray, str]]:
    """Views of some records, evenly spread, with a caption each: enough for a contact sheet, if so many are good."""
    views: list[tuple[np.ndarray, str]] = []
    count = min(SPARE * COLUMNS * ROWS, len(source))
    for n in (n for first in range(SPARE) for n in range(first, count, SPARE)):  # the last ones if some are bad
        if len(views) < COLUMNS * ROWS:
            views += _view(source, n, count, image_size, augment, framing)
    return views


def look(source: Source, records: int) -> Findings:
    """Reads and measures records, evenly spread."""
    found, count = Findings(), min(records, len(source))
    progress = Progress("looking at records", count)
    for index in (n * len(source) // count for n in range(count)):
        found.records += 1
        try:
            _measure(source[index], found)
            found.usable += 1
        except UserError:
            raise
        except (BadRecord, ValueError) as error:
            kind = kind_of(str(error))
            found.bad[kind] += 1
            reason = f": {error}" if str(error) != kind else ""
            found.examples.setdefault(kind, f"{' '.join(source.where(index))}{reason}")
        progress.advance()
    return found


def _measure(record: Record, found: Findings) -> None:
    found.captions.append(len({caption.text for caption in that_say(record.captions)}))
    for caption in record.captions:
        found.origins.setdefault(caption.origin, []).append(caption.text)
    picture = decode(record.image)
    found.sides.append((min(picture.size), max(picture.size)))
    if isinstance(record.image, bytes):
        found.sizes.append(len(record.image))
        found.formats[image_format(record.image)] += 1
    else:
        found.formats["drawn"] += 1
    draw_captions(record.captions, np.random.default_rng(0))


def _lines(found: Findings) -> list[str]:
    header = f"  {'':24}" + "".join(f"{name:>9}" for name in ("min", "5 %", "median", "95 %", "max"))
    lines = [header]
    if found.sides:
        lines += [_quantiles("shorter side, pixels", [side for side, _ in found.sides])]
        lines += [_quantiles("longer / shorter side", [longer / shorter for shorter, longer in found.sides])]
    if found.sizes:
        lines += [_quantiles("image, kilobytes", np.array(found.sizes) / 1000)]
    if found.captions:
        lines += [_quantiles("captions per image", np.array(found.captions))]
    for origin, texts in found.origins.items():
        lines += [_quantiles(f"{origin}, characters", [len(text) for text in texts])]
        lines += [_quantiles(f"{origin}, words", [len(text.split()) for text in texts])]
    lines += [f"  formats: {_shares(found.formats)}"] if found.formats else []
    for origin, texts in found.origins.items():
        repeated = len(texts) - len({" ".join(text.lower().split()) for text in texts})
        lines += [f"  {origin}: {len(texts)} texts, {repeated} of them repeated{_languages(texts)}"]
    for kind, count in found.bad.most_common(KINDS):
        lines += [f"  cannot be used: {count}  {kind}: {one_line(found.examples[kind], EXAMPLE)}"]
    if others := found.bad.total() - sum(count for _, count in found.bad.most_common(KINDS)):
        lines += [f"  cannot be used: {others}  for other reasons"]
    return lines


def _quantiles(name: str, values) -> str:
    digits = 0 if all(value % 1 == 0 for value in values) else 2
    return f"  {name[:24]:24}" + "".join(f"{value:9.{digits}f}" for value in np.percentile(values, QUANTILES))


def _shares(counts: Counter) -> str:
    return ", ".join(f"{name} {count / counts.total():.0%}" for name, count in counts.most_common(8))


def _languages(texts: list[str]) -> str:
    """The shares of languages, if the package that knows them is installed."""
    from filip_jax.cleaning.languages import name_languages

    names = name_languages(texts)
    return f"; languages: {pip_install('clean')}" if names is None else f"; {_shares(Counter(names))}"


def _view(
    source: Source, n: int, of: int, size: int, augment: Mapping[str, Any], framing: Framing
) -> list[tuple[np.ndarray, str]]:
    rng = np.random.default_rng(n)
    try:
        (text,), (view,) = draw_sample(source[n * len(source) // of], rng, size, augment, framing=framing)
        return [(view, text)]
    except BadRecord:
        return []


def contact_sheet(views: list[tuple[np.ndarray, str]]) -> Image.Image:
    """Views with their captions, as one picture."""
    cell = SIDE + GAP
    below = LINES * LINE + GAP
    rows = -(-len(views) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * cell + GAP, rows * (cell + below) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for n, (view, caption) in enumerate(views):
        left, top = GAP + n % COLUMNS * cell, GAP + n // COLUMNS * (cell + below)
        sheet.paste(Image.fromarray(view).resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, top))
        caption = _shown(caption)
        font = sized(font_name(caption), LETTERS)
        for line, text in enumerate(_broken(caption, font)):
            pen.text((left, top + SIDE + 3 + line * LINE), text, "black", font)
    return sheet


def _shown(caption: str) -> str:
    return printable(caption[: SIDE * LINES]).strip()  # of a long one more than fits


def _broken(text: str, font) -> Iterator[str]:
    """The text as at most LINES lines that fit below a view, broken at blanks where there are some; "…" if it goes on."""
    rest = text
    for line in range(LINES):
        fits = bisect_right(range(1, len(rest) + 1), SIDE, key=lambda end: font.getlength(rest[:end]))
        if fits == len(rest):
            yield rest
            return
        if line == LINES - 1:
            yield rest[: fits - 1] + "…"
            return
        end = rest.rfind(" ", 1, fits + 1)
        end = end if end > fits // 2 else fits
        yield rest[:end]
        rest = rest[end:].lstrip()
