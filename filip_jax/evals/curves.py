"""Curves over steps, and bars where there is one step, as SVG, which browsers show and a page can hold."""

import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from filip_jax.evals.results import cell
from filip_jax.plain import escape
from filip_jax.small_files import is_number

WIDTH, HEIGHT = 384, 240  # pixels of one chart
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 30, 30  # around its axes
HEADROOM, LINE = 0.08, 14  # above the highest point, as a share; pixels of a line of the legend
TITLE = 52  # characters that fit
COLUMNS = 3
WIDE, ROW, NUMBERS = 576, 32, 140  # pixels of a chart of bars, of a bar and its name, of the numbers beside bars
NAME = 90  # characters that fit above a bar
DASHES = ("4 3", "1 3", "9 3", "9 3 1 3")  # of baselines
TINY = 1e-50  # in whose place a chart shows 0
POINTS = 400  # of a line; of more, neighbours are averaged
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6d4c41", "#444444")  # Okabe and Ito
HEADLINES = ("R@1", "mAP@R", "top1", "accuracy", "iou@0.5")  # endings of the metrics that are drawn
Line = Sequence[tuple[float, float]]


def metric_plot(
    curves: Mapping[str, Mapping[str, Mapping[str, Any]]], baselines: Mapping[str, Mapping[str, Any]], names: set[str]
) -> str:
    """All `metric_charts` as one SVG; "" without a number."""
    charts = metric_charts(curves, baselines, names)
    return page(charts) if charts else ""


def metric_charts(
    curves: Mapping[str, Mapping[str, Mapping[str, Any]]], baselines: Mapping[str, Mapping[str, Any]], names: set[str]
) -> list[str]:
    """The headline metrics of some evaluations: over the steps a chart each, a line for each run.

    Those that each run has at one step alone are bars instead, in one chart all that measure the same, as of a sweep.

    Args:
        curves: {run: {step: {"EVALUATION/metric": number}}}.
        baselines: {name: {"EVALUATION/metric": number}}, drawn as levels.
        names: of the evaluations.
    """
    found = [metric for steps in curves.values() for metrics in steps.values() for metric in metrics]
    charts: list[str] = []
    bars: dict[str, list[Bar]] = {}
    for metric in headlines(found, names):
        lines = {run: points(steps, metric) for run, steps in curves.items()}
        levels = {name: numbers[metric] for name, numbers in baselines.items() if is_number(numbers.get(metric))}
        evaluation, _, measured = metric.partition("/")
        if max(map(len, lines.values())) > 1:
            charts.append(chart(f"{measured}, {evaluation}", lines, levels))
        else:
            bars.setdefault(measured, []).extend(_bars(curves, metric, levels))
    return charts + [bar_chart(measured, of_this) for measured, of_this in bars.items() if of_this]


def headlines(metrics: Sequence[str], names: set[str]) -> list[str]:
    """Those of some evaluations that are drawn."""
    return [m for m in dict.fromkeys(metrics) if m.split("/")[0] in names and m.endswith(HEADLINES)]


def points(steps: Mapping[str, Mapping[str, Any]], metric: str) -> list[tuple[float, float]]:
    """(step, number) of a metric, in order; those that are no finite number are left out."""
    pairs = ((int(step), metrics.get(metric)) for step, metrics in steps.items())
    return sorted((float(x), float(y) if abs(y) >= TINY else 0.0) for x, y in pairs if is_number(y))


def page(charts: Sequence[str]) -> str:
    """Charts beside and below each other, as one SVG."""
    x = y = row = width = 0
    placed = []
    for each in charts:
        wide, high = map(int, re.findall(r'^<svg [^>]* width="(\d+)" height="(\d+)"', each)[0])
        if x + wide > COLUMNS * WIDTH:
            x, y, row = 0, y + row, 0
        placed.append(f'<g transform="translate({x} {y})">{each}</g>')
        x, row = x + wide, max(row, high)
        width = max(width, x)
    return _svg(width, y + row, "".join(placed)) + "\n"


def chart(title: str, lines: Mapping[str, Line], levels: Mapping[str, float] | None = None) -> str:
    """One chart as an SVG element: lines with a legend, and levels, dashed across; one point is a dot."""
    drawn = {name: _thinned(line) for name, line in lines.items() if line}
    levels = {name: y for name, y in (levels or {}).items() if math.isfinite(y)}
    xs = [x for line in drawn.values() for x, _ in line] or [0.0]
    ys = [y for line in drawn.values() for _, y in line] + list(levels.values()) or [0.0]
    if min(ys) >= 0 and max(ys) <= 1:
        ys.append(0.0)
    (x0, x1), (y0, y1) = _range(xs), _range(ys)
    y1 += HEADROOM * (y1 - y0)
    several = [name for name in drawn if name and len(drawn) > 1]
    top = TOP + LINE * len(several)

    def place(x, y):
        across, up = (x - x0) / (x1 - x0), (y - y0) / (y1 - y0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - top - BOTTOM)

    parts = [_text(8, 18, _cut(title), size=13, weight="bold"), *_axes(place, (x0, x1), (y0, y1))]
    for name, y in levels.items():
        (ax, ay), (bx, _) = place(x0, y), place(x1, y)
        parts.append(f'<path d="M{ax:.1f} {ay:.1f}H{bx:.1f}" stroke="#888" stroke-dasharray="4 3"/>')
        parts.append(_text(bx - 2, ay - 3, name, anchor="end", colour="#777"))
    for number, (name, line) in enumerate(drawn.items()):
        colour = COLOURS[number % len(COLOURS)]
        placed = [place(*point) for point in line]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if len(placed) <= 40:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{colour}"/>' for x, y in placed]
        if name in several:
            parts.append(_text(8, TOP + LINE * (several.index(name) + 1) - 6, _cut(name), colour=colour))
    return _svg(WIDTH, HEIGHT, "".join(parts))


class Bar(NamedTuple):
    """A number on a chart of bars.

    Attributes:
        said: the number as text.
        bounds: of its 95 % interval; () if they are not known.
        levels: baselines of the same evaluation.
    """

    name: str
    value: float
    said: str
    colour: str
    bounds: Sequence[float] = ()
    levels: Mapping[str, float] = {}


def _bars(curves, metric: str, levels: Mapping[str, float]) -> Iterator[Bar]:
    """Of a metric, one for each run that has it."""
    for (run, steps), colour in zip(curves.items(), itertools.cycle(COLOURS)):
        for metrics in steps.values():
            if points({"0": metrics}, metric):
                name = metric.split("/")[0] + (f", {run}" if len(curves) > 1 else "")
                bounds = [y for end in ("low", "high") for _, y in points({"0": metrics}, f"{metric}_{end}")]
                bounds = bounds if len(bounds) == 2 else ()
                yield Bar(name, metrics[metric], cell(metrics, metric), colour, bounds, levels)


def bar_chart(title: str, bars: Sequence[Bar]) -> str:
    """One chart as an SVG element: a bar below each name, the largest first, with its interval; baselines are dashed."""
    bars = sorted(bars, key=lambda bar: -bar.value)
    shared = _shared([bar.name for bar in bars])
    names = list(dict.fromkeys(name for bar in bars for name, y in bar.levels.items() if math.isfinite(y)))
    ends = [x for bar in bars for x in (bar.value, *bar.bounds, *filter(math.isfinite, bar.levels.values()))]
    x0, x1 = _range([0.0, *(ends if any(ends) else [1.0])])
    bottom = TOP + LINE + ROW * len(bars)

    def place(x):
        return 8 + (x - x0) / (x1 - x0) * (WIDE - 8 - NUMBERS)

    parts = [_text(8, 18, _cut(f"{title}, {shared}…" if shared else title, NAME), size=13, weight="bold")]
    for x in _ticks(x0, x1):
        parts.append(f'<path d="M{place(x):.1f} {TOP + LINE}V{bottom}" stroke="#e4e4e4"/>')
        parts.append(_text(place(x), bottom + 16, f"{x:.4g}", anchor="middle"))
    for n, bar in enumerate(bars):
        drawn = "".join(_bar(bar, bar.name.removeprefix(shared), place, TOP + LINE + ROW * n, names))
        parts.append(f"<g><title>{escape(bar.name)}: {escape(bar.said)}</title>{drawn}</g>")  # shown below the mouse
    return _svg(WIDE, bottom + BOTTOM, "".join([*parts, *_keys(names, any(bar.bounds for bar in bars))]))


def _shared(names: Sequence[str]) -> str:
    """What all names begin with up to its sign of equality, as those of a sweep's points do: "val prompt="."""
    found = os.path.commonprefix(names) if len(names) > 1 else ""  # noqa: RUF071 - of names, not of paths
    return found[: found.find("=") + 1]


def _bar(bar: Bar, name: str, place, top: float, names: Sequence[str]) -> Iterator[str]:
    """The parts of a bar; `names`: of all baselines."""
    left, right = sorted((place(0.0), place(bar.value)))
    middle = top + ROW - 9
    yield f'<rect x="{left:.1f}" y="{middle - 6}" width="{right - left:.1f}" height="12" fill="{bar.colour}" opacity="0.45"/>'
    for level in (level for level in names if math.isfinite(bar.levels.get(level, math.nan))):
        line = f"M{place(bar.levels[level]):.1f} {top}v{ROW}"
        yield f'<path d="{line}" stroke="#444" stroke-dasharray="{DASHES[names.index(level) % len(DASHES)]}"/>'
    if bar.bounds:
        low, high = map(place, bar.bounds)
        line = f"M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8"
        yield f'<path d="{line}" stroke="{bar.colour}" stroke-width="1.8"/>'
    yield f'<circle cx="{place(bar.value):.1f}" cy="{middle}" r="3" fill="{bar.colour}"/>'
    yield f'<g stroke="#fff" stroke-width="3" paint-order="stroke">{_text(8, top + 13, _cut(name, NAME))}</g>'
    yield _text(WIDE - 8, middle + 4, bar.said, anchor="end")


def _keys(names: Sequence[str], bounds: bool) -> Iterator[str]:
    """What dashes and intervals mean, in a line below the title."""
    x = 8.0
    for dashes, said in [*zip(itertools.cycle(DASHES), names), *([("", "95 % interval")] if bounds else [])]:
        yield f'<path d="M{x:.1f} {TOP + 4}h22" stroke="#444" stroke-dasharray="{dashes}"/>'
        yield _text(x + 27, TOP + 8, said, colour="#777")
        x += 45 + 6.5 * len(said)


def _svg(width: int, height: int, content: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="system-ui, sans-serif"><rect width="100%" height="100%" fill="#fff"/>{content}</svg>'
    )


def _axes(place, xs, ys):
    for y in _ticks(*ys):
        (ax, ay), (bx, _) = place(xs[0], y), place(xs[1], y)
        yield f'<path d="M{ax:.1f} {ay:.1f}H{bx:.1f}" stroke="#e4e4e4"/>'
        yield _text(ax - 6, ay + 4, f"{y:.4g}", anchor="end")
    bottom = place(xs[0], ys[0])[1]
    for x in _ticks(*xs):
        yield _text(place(x, ys[0])[0], bottom + 16, _short(x), anchor="middle")


def _text(x, y, text, *, size=11, anchor="start", colour="#444", weight="normal"):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )


def _cut(text: str, most: int = TITLE) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _short(x: float) -> str:
    for size, unit in ((1e6, "M"), (1e4, "k")):
        if abs(x) >= size:
            return f"{x / (1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{x:.6g}"


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        wide = max(1, abs(low) * 1e-9) if abs(low) >= 1 else (abs(low) or 1) * 0.5
        low, high = low - wide, high + wide
    return low, high


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers from low to high."""
    rough = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _thinned(line: Line) -> Line:
    """At most POINTS means of neighbours."""
    if len(line) <= POINTS:
        return line
    size = -(-len(line) // POINTS)
    pieces = [line[start : start + size] for start in range(0, len(line), size)]
    return [(sum(x for x, _ in piece) / len(piece), sum(y for _, y in piece) / len(piece)) for piece in pieces]
