"""Curves over steps as SVG, which browsers show and a page can hold."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 384, 240  # pixels of one chart
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 30, 30  # around its axes
HEADROOM, LINE = 0.08, 14  # above the highest point, as a share; pixels of a line of the legend
TITLE = 52  # characters that fit
COLUMNS = 3
POINTS = 400  # of a line; of more, neighbours are averaged
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6d4c41", "#444444")  # Okabe and Ito
HEADLINES = ("R@1", "mAP@R", "top1", "accuracy", "iou@0.5")  # endings of the metrics that are drawn
Line = Sequence[tuple[float, float]]


def metric_plot(
    curves: Mapping[str, Mapping[str, Mapping[str, Any]]], baselines: Mapping[str, Mapping[str, Any]], names: set[str]
) -> str:
    """The headline metrics of some evaluations over the steps, a chart each, a line for each run; "" without a number.

    Args:
        curves: {run: {step: {"EVALUATION/metric": number}}}.
        baselines: {name: {"EVALUATION/metric": number}}, drawn as levels.
        names: of the evaluations.
    """
    found = [metric for steps in curves.values() for metrics in steps.values() for metric in metrics]
    charts = []
    for metric in headlines(found, names):
        lines = {run: points(steps, metric) for run, steps in curves.items()}
        levels = {name: numbers[metric] for name, numbers in baselines.items() if metric in numbers}
        charts.append(chart(title_of(metric), lines, levels))
    return page(charts) if charts else ""


def title_of(metric: str) -> str:
    """What is measured, then of which evaluation, whose name may be long."""
    evaluation, _, name = metric.partition("/")
    return f"{name}, {evaluation}"


def headlines(metrics: Sequence[str], names: set[str]) -> list[str]:
    """Those of some evaluations that are drawn."""
    return [m for m in dict.fromkeys(metrics) if m.split("/")[0] in names and m.endswith(HEADLINES)]


def points(steps: Mapping[str, Mapping[str, Any]], metric: str) -> list[tuple[float, float]]:
    """(step, number) of a metric, in order; those that are no finite number are left out."""
    pairs = ((int(step), metrics.get(metric)) for step, metrics in steps.items())
    return sorted((float(x), float(y)) for x, y in pairs if isinstance(y, (int, float)) and math.isfinite(y))


def page(charts: Sequence[str]) -> str:
    """Charts beside and below each other, as one SVG."""
    columns = min(COLUMNS, len(charts))
    rows = -(-len(charts) // columns)
    placed = [
        f'<g transform="translate({n % columns * WIDTH} {n // columns * HEIGHT})">{chart}</g>'
        for n, chart in enumerate(charts)
    ]
    return _svg(columns * WIDTH, rows * HEIGHT, "".join(placed)) + "\n"


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


def _cut(text: str) -> str:
    return text if len(text) <= TITLE else text[: TITLE - 1] + "…"


def _short(x: float) -> str:
    for size, unit in ((1e6, "M"), (1e4, "k")):
        if abs(x) >= size:
            return f"{x / (1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{x:.6g}"


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        wide = 1 if abs(low) >= 1 else (abs(low) or 1) * 0.5
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
