"""One page about a run: what it is, how it goes, what it is worth, what it sees. Opens without a network."""

import base64
import datetime
import io
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from filip_jax import __version__, storage
from filip_jax.checkpoint import Checkpoints
from filip_jax.data.decode import decode
from filip_jax.data.index_folder import sources_of_others
from filip_jax.data.sources import make_source
from filip_jax.errors import UserError
from filip_jax.evals.curves import COLOURS, chart, metric_charts, points
from filip_jax.evals.published import published_rows
from filip_jax.evals.results import cell, comparable, evaluation_of, read_results, rows_of
from filip_jax.folders import first_link
from filip_jax.framing import framing_of
from filip_jax.logged import read_metrics
from filip_jax.paths import flatten
from filip_jax.plain import escape
from filip_jax.saved_config import FILE as CONFIG
from filip_jax.saved_config import read_config
from filip_jax.small_files import is_number, read_own
from filip_jax.tools.inspect import contact_sheet, sample_views
from filip_jax.user_paths import from_user
from filip_jax.workdir import Workdir

NAME = "report.html"
CURVES = (
    ("train/loss", "loss"),
    ("train/samples_per_second", "pairs per second"),
    ("train/lr", "learning rate"),
    ("train/grad_norm", "gradient norm"),
    ("time/data_wait_frac", "share of the time that waits for data"),
)
OF_OBJECTIVE = re.compile(r"train/[a-z][a-z0-9_]*/(?!\w*_at_bound)\w+")
MAX_OF_OBJECTIVES = 24  # charts
PAGES = 8  # of each evaluation's pictures
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # the page can load nothing


def report(workdir: str, output: str = "") -> str:
    """Writes the page of a run, and returns its path.

    Args:
        workdir: of the run, local or in a bucket.
        output: FILE.html; "" is report.html in the workdir.

    Raises:
        UserError: there is no run, or the file is not named so.
    """
    workdir = from_user(workdir)
    output = from_user(output) if output else storage.join(workdir, NAME)
    if not output.endswith(".html"):
        raise UserError(f"--output={output}: the page is HTML; name it FILE.html")
    place = Workdir(workdir)
    try:
        html = _page(workdir, place.folder)
    finally:
        place.close()
    storage.write(output, html.encode("utf-8", "replace"))
    return output


def _page(workdir: str, folder: Path) -> str:
    if not (folder / CONFIG).is_file():
        raise UserError(f"{workdir} holds no run: {CONFIG} is missing")
    config, results, lines = read_config(folder), read_results(folder), read_metrics(folder)
    page = "".join([
        _head(workdir, config, lines, results),
        _evaluations(workdir, results),
        _training(lines),
        _time(lines),
        _pictures(folder / "pictures"),
        _samples(config),
        _provenance(workdir, results),
        _config(config),
    ])  # fmt: skip
    style = (files("filip_jax.assets") / "report.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(_name(workdir))}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style></head><body>{page}</body></html>\n'
    )


def _name(workdir: str) -> str:
    return workdir.rstrip("/") if storage.is_remote(workdir) else Path(workdir).resolve().name


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], ours: int = -1, wide: Sequence[int] = ()) -> str:
    """Cells are HTML already; of the columns `ours` is in bold, and long texts of `wide` have several lines."""
    kinds = [' class="ours"' if n == ours else ' class="wide"' if n in wide else "" for n in range(len(header))]
    head = "".join(f"<th>{name}</th>" for name in header)
    body = ("".join(f"<td{kind}>{text}</td>" for kind, text in zip(kinds, row)) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>"


def _head(workdir, config, lines, results) -> str:
    newest: dict[str, Any] = next((line for line in reversed(lines) if "train/loss" in line), {})
    step, total = newest.get("step", 0), config.get("total_steps", 0)
    evaluated = max(map(int, results["steps"]), default=None)
    cards = {
        "step of " + f"{total:,}": f"{step:,}",
        "done": f"{100 * step / total:.0f} %" if total else "",
        "pairs seen": _large(newest.get("train/samples_seen")),
        "loss": _number(newest.get("train/loss")),
        "pairs per second": _large(newest.get("train/samples_per_second")),
        "hours": f"{sum(_seconds(newest).values()) / 3600:.2f}" if newest else "",
        "newest evaluation": "" if evaluated is None else f"step {evaluated:,}",
    }
    shown = "".join(
        f'<div class="card"><b>{escape(x)}</b><span>{escape(k)}</span></div>' for k, x in cards.items() if x
    )
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    about = f"{escape(str(workdir))} · {now} · filip_jax {__version__}"
    return f'<h1>{escape(_name(workdir))}</h1><div class="faint">{about}</div><div class="cards">{shown}</div>'


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else value if value in ("nan", "inf", "-inf") else ""


def _large(value: Any) -> str:
    if not isinstance(value, (int, float)):
        return ""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == ' k' else size):.3g}{unit}"
    return f"{value:.4g}"


def _evaluations(workdir, results) -> str:
    if not results["steps"]:
        return _section("Evaluations", '<p class="faint">None yet: filip eval makes them.</p>')
    steps, newest, of = comparable(results), dict[str, Any](), dict[str, str]()
    for step, metrics in steps.items():  # of each evaluation its newest step
        names = {evaluation_of(metric) for metric in metrics}
        newest = {metric: x for metric, x in newest.items() if evaluation_of(metric) not in names} | metrics
        of |= dict.fromkeys(names, step)
    baselines = {name: x for name, x in results["baselines"].items() if set(x) & set(newest)}
    columns = {"": newest} | baselines
    rows = [
        [escape(row), f"{int(of[evaluation_of(row)]):,}", *(_cell(metrics, row) for metrics in columns.values())]
        for row in rows_of({"": newest})
    ]
    content = _table(["", "step", "this run", *map(escape, baselines)], rows, ours=2)
    found = [metric for metrics in steps.values() for metric in metrics]
    if charts := metric_charts({"run": steps}, baselines, set(map(evaluation_of, found))):
        content += f'<h3>charts</h3><div class="charts">{"".join(charts)}</div>'
    if table := published_rows({_name(workdir): newest}):
        rows = [[escape(text) for text in row] for row in table[1:]]
        header = [escape(name) for name in table[0]]
        content += f"<h3>beside published models, in percent</h3>{_table(header, rows, wide=(1, len(header) - 1))}"
    return _section("Evaluations", content)


def _cell(metrics: Mapping[str, Any], row: str) -> str:
    number, _, interval = cell(metrics, row).partition(" [")
    return escape(number) + (f" <small>[{escape(interval)}</small>" if interval else "")


def _training(lines) -> str:
    steps = {str(line["step"]): line for line in lines if "train/loss" in line}
    keys = sorted({key for line in lines for key in line if OF_OBJECTIVE.fullmatch(key)})
    losses = [key for key in keys if key.endswith("/loss")]
    keys = [key for key in keys if key not in losses or len(losses) > 1]  # the loss of a single one is the sum
    titles = dict(CURVES) | {
        key: " ".join(key.removeprefix("train/").split("/")).replace("_", " ") for key in keys[:MAX_OF_OBJECTIVES]
    }
    charts = [chart(title, {"": line}) for key, title in titles.items() if (line := points(steps, key))]
    said = '<p class="faint">No step is logged yet.</p>'
    return _section("Training", f'<div class="charts">{"".join(charts)}</div>' if charts else said)


def _seconds(line: Mapping[str, Any]) -> dict[str, float]:
    """The seconds of each phase of the run, all its starts together."""
    found = {key: re.fullmatch(r"time/(\w+)_seconds", key) for key in line}
    return {
        match[1].replace("_", " "): float(line[key]) for key, match in found.items() if match and _is_time(line[key])
    }


def _is_time(value: Any) -> bool:
    return is_number(value) and value > 0


def _time(lines) -> str:
    newest: dict[str, Any] = next((line for line in reversed(lines) if "train/loss" in line), {})
    seconds = dict(sorted(_seconds(newest).items(), key=lambda pair: -pair[1]))
    if not seconds:
        return ""
    whole, colours = sum(seconds.values()), dict(zip(seconds, COLOURS * 2))
    bar = "".join(
        f'<div style="width:{100 * s / whole:.2f}%;background:{colours[name]}" title="{escape(name)}"></div>'
        for name, s in seconds.items()
    )
    rows = [
        [
            f'<span class="dot" style="background:{colours[name]}"></span>{escape(name)}',
            f"{s:,.1f} s",
            f"{100 * s / whole:.1f} %",
        ]
        for name, s in seconds.items()
    ]
    said = f"<p>Goodput: {100 * seconds.get('step', 0.0) / whole:.1f} % of the time went into training steps.</p>"
    return _section(
        "Where the time went", f'{said}<div class="bar">{bar}</div>{_table(["phase", "time", "share"], rows)}'
    )


def _pictures(folder: Path) -> str:
    """The newest page of each pair that an evaluation has drawn; none that lies behind a link."""
    content = ""
    for each in sorted(
        path for path in folder.glob("*") if path.is_dir() and not first_link(str(path), str(folder.parent))
    ):
        newest: dict[int, tuple[int, Path]] = {}
        for file in each.glob("*_step_*.png"):
            if match := re.fullmatch(r"(\d+)_step_(\d+)\.png", file.name):
                number, step = map(int, match.groups())
                newest[number] = max(newest.get(number, (-1, file)), (step, file))
        shown = [newest[number] for number in sorted(newest)[:PAGES]]
        figures = (f"<figure>{_stored(file)}<figcaption>step {step:,}</figcaption></figure>" for step, file in shown)
        content += f'<h3>{escape(each.name)}</h3><div class="pictures">{"".join(figures)}</div>' if shown else ""
    return _section("What words see", content) if content else ""


def _samples(config) -> str:
    """A contact sheet of the training data, if it is here."""
    try:
        with sources_of_others():
            source = make_source({name: x for name, x in config["source"].items() if name != "each_caption"})
        framing = framing_of(config["model"]["image"])
        views = sample_views(source, config["data"]["image_size"], config["data"]["augment"], framing)
    except Exception as error:  # data that was moved or changed, a config of an earlier version: the page is of the run
        return _section("The data", f'<p class="faint">It cannot be shown here: {escape(str(error))}</p>')
    said = f"{len(source):,} records; some of them as the model sees them:"
    picture = _image(contact_sheet(views)) if views else ""
    return _section("The data", f'<p>{said}</p><div class="pictures">{picture}</div>')


def _stored(file: Path) -> str:
    try:
        return _image(decode(read_own(file)))
    except (OSError, ValueError) as error:
        return f'<p class="faint">{escape(file.name)} cannot be read: {escape(str(error))}</p>'


def _image(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.convert("RGB").save(data, "WEBP", quality=90)
    return f'<img alt="" src="data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}">'


def _provenance(workdir, results) -> str:
    """What the numbers are of, by hash."""
    checkpoints = Checkpoints(workdir)
    steps = checkpoints.steps()
    rows = [["checkpoints", ", ".join(f"{step:,}" for step in steps) or "none"]]
    if steps:
        try:
            manifest = checkpoints.manifest(steps[-1])
            rows += [
                [escape(f"newest: {name}"), escape(str(x))]
                for name, x in manifest["meta"].items()
                if not isinstance(x, dict)
            ]
        except (UserError, OSError) as error:
            rows += [["newest", escape(str(error))]]
    for step, tasks in sorted(results["tasks"].items(), key=lambda pair: int(pair[0]))[-1:]:
        rows += [[f"step {step}: {escape(name)}", _hashes(task)] for name, task in tasks.items()]
    return _section(
        "Where the numbers are from", _table(["", "SHA-256, its first 12 digits, of evaluations"], rows, wide=(1,))
    )


def _hashes(task: Mapping[str, str]) -> str:
    return escape(", ".join(f"{name} {sha[:12]}" for name, sha in task.items()))


def _config(config) -> str:
    rows = [[escape(key.replace("/", ".")), escape(repr(value))] for key, value in flatten(config).items()]
    return _section(
        "Config", f"<details><summary>{len(rows)} values</summary>{_table(['', ''], rows, wide=(1,))}</details>"
    )
