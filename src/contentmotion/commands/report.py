"""Command ``report``: a training run as one page: curves, pictures, settings, environment, what looks wrong."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import yaml

from contentmotion.config import ReportConfig
from contentmotion.run_dir import ENVIRONMENT
from contentmotion.saving import replacing_file

MAX_PICTURES = 6
# Curves that share a picture: its title, and how their names begin.
GROUPS = (
    ("loss", ("loss", "mse", "bound", "lpips")),
    ("scores", ("eval/",)),
    ("student over teacher", ("x0_std_ratio", "motion_ratio")),
    ("gradient norm", ("grad_norm",)),
    ("distance of the moving average", ("ema_distance",)),
    ("learning rate", ("lr",)),
    ("items per second", ("items_per_s",)),
    ("share of the time spent waiting for data", ("data_wait",)),
    ("memory, GiB", ("memory_gib",)),
)
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
svg,img{max-width:100%;height:auto}table{border-collapse:collapse}td{padding:.1rem .8rem .1rem 0;vertical-align:top}
.alarm{background:#fff3cd;border-left:4px solid #d39e00;padding:.4rem .8rem;margin:.4rem 0}pre{overflow:auto}"""


def report(config: ReportConfig) -> None:
    """Writes a run's page, one HTML file that needs no other.

    Raises:
        ValueError: The folder is not one of a training run, or its metrics are damaged.
        ImportError: Matplotlib is not installed.
    """
    run = Path(config.run)
    path = Path(config.output) if config.output else run / "report.html"
    page = make_page(run)
    with replacing_file(path) as partial:
        partial.write_text(page, encoding="utf-8")
    print(path)


def make_page(run: Path) -> str:
    """A run's page as HTML.

    Args:
        run: A training run's folder.

    Raises:
        ValueError: See ``report``.
        ImportError: Matplotlib is not installed.
    """
    lines = read_metrics(run)
    settings = _read_settings(run / "config.yaml")
    alarms = find_alarms(lines, settings)
    told = [f'<p class="alarm">{html.escape(alarm)}</p>' for alarm in alarms] or ["<p>Nothing looks wrong.</p>"]
    last = lines[-1]["step"]
    facts = {"steps": f"{last} of {settings.get('max_train_steps', 'an unknown number')}"}
    facts |= {name: _number(value) for name, value in latest(lines).items() if name != "step"}
    environment = run / ENVIRONMENT
    machine = json.loads(environment.read_text(encoding="utf-8")) if environment.exists() else {}
    title = html.escape(run.resolve().name)
    sections = [
        f"<h1>{title}</h1>", *told,
        "<h2>Curves</h2>", *draw_curves(lines),
        "<h2>Previews</h2>", *_pictures(run),
        "<h2>Last values</h2>", _table(facts),
        "<h2>Settings</h2>", _table(settings),
        "<h2>Environment</h2>", _table(machine),
    ]  # fmt: skip
    body = "\n".join(sections)
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``; a torn last one, of a run that goes on or was killed, is left out.

    Raises:
        ValueError: There is none, or it is damaged.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{run} holds no metrics.jsonl: it is not the folder of a training run")
    texts = path.read_text(encoding="utf-8").splitlines()
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            _ = line["step"] + 0
        except (ValueError, KeyError, TypeError) as error:
            if number == len(texts):
                break
            raise ValueError(f"{path}, line {number}: damaged") from error
        lines.append(line)
    if not lines:
        raise ValueError(f"{path} is empty: the run has not written anything yet")
    return lines


def latest(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The last value of each column."""
    merged: dict[str, Any] = {}
    for line in lines:
        merged |= line
    return merged


def find_alarms(lines: Sequence[dict[str, Any]], settings: dict[str, Any]) -> list[str]:
    """What someone should look at, a sentence each.

    Args:
        lines: The run's metrics.
        settings: Its config.
    """
    columns = {
        name: [line[name] for line in lines if line.get(name) is not None] for name in latest(lines) if name != "step"
    }
    alarms = []
    last, wanted = lines[-1]["step"], settings.get("max_train_steps")
    if isinstance(wanted, int) and last < wanted:
        alarms.append(f"The run ended, or is, at step {last} of {wanted}: the command that began it goes on.")
    for name, values in columns.items():
        if not all(math.isfinite(value) for value in values):
            alarms.append(f"{name} was not finite.")
    losses = columns.get("loss", [])
    tenth = max(1, len(losses) // 10)
    if len(losses) >= 20 and mean(losses[-tenth:]) > 1.1 * min(
        mean(losses[k : k + tenth]) for k in range(0, len(losses) - tenth, tenth)
    ):
        alarms.append("The loss ends above where it was: a lower learning_rate, or an earlier checkpoint, is better.")
    norms = columns.get("grad_norm", [])
    if len(norms) >= 20 and max(norms[-tenth:]) > 10 * median(norms):
        alarms.append("The gradient's norm jumped at the end to more than ten times its median.")
    waits = columns.get("data_wait", [])
    if waits and mean(waits[-tenth:]) > 0.2:
        alarms.append(
            f"{mean(waits[-tenth:]):.0%} of the time was spent waiting for data: raise dataloader_num_workers, or "
            "encode a cache."
        )
    for name in ("x0_std_ratio", "motion_ratio"):
        ratios = columns.get(name, [])
        if ratios and not 0.5 <= mean(ratios[-tenth:]) <= 2:
            alarms.append(f"{name} ends at {mean(ratios[-tenth:]):.2f}, not about 1: see docs/distillation.md.")
    return alarms


def draw_curves(lines: Sequence[dict[str, Any]]) -> list[str]:
    """A picture (SVG) for each group of columns that is there.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('report needs matplotlib: pip install "contentmotion[report]"') from error
    pictures, drawn = [], {"step"}
    for title, begins in GROUPS:
        names = [name for name in latest(lines) if name not in drawn and name.startswith(begins)]
        drawn |= set(names)
        if not names:
            continue
        figure = Figure(figsize=(9, 2.8), layout="constrained")
        axes = figure.add_subplot()
        for name in names:
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            finite = [(step, value) for step, value in points if math.isfinite(value)]
            axes.plot(*zip(*finite, strict=True), ".-" if len(finite) < 50 else "-", label=name, linewidth=1)
        axes.set_title(title, loc="left")
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend(fontsize="small")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        pictures.append(text.getvalue()[text.getvalue().index("<svg") :])
    return pictures


def _pictures(run: Path) -> list[str]:
    """The last previews, newest first, inside the page."""
    paths = sorted(run.glob("preview-*.png"))[-MAX_PICTURES:][::-1]
    return [
        f"<p>{html.escape(path.stem)}</p>\n"
        f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}">'
        for path in paths
    ] or ["<p>None were written.</p>"]


def _table(values: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(str(name))}</td><td>{html.escape(str(value))}</td></tr>"
        for name, value in values.items()
        if value is not None
    )
    return f"<table>{rows}</table>" if rows else "<p>Not known.</p>"


def _number(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: damaged") from error
    return settings if isinstance(settings, dict) else {}
