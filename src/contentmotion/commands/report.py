"""Command ``report``: a training run as one page: curves, pictures, settings, environment, what looks wrong."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import yaml

from contentmotion.commands.cut import FACTS, LIST, captions_of_clips
from contentmotion.config import ReportConfig
from contentmotion.data.layouts.metadata import read_metadata
from contentmotion.run_dir import ENVIRONMENT
from contentmotion.saving import read_json, read_text, replacing_file

STATE = "train.json"  # in the folder of all stages
MAX_PICTURES, MAX_CAPTIONS = 6, 60
# Curves that share a picture: its title, and how their names begin.
GROUPS = (
    ("loss", ("loss", "mse", "bound", "lpips")),
    ("scores", ("eval/",)),
    ("student over clips", ("x0_std_ratio", "motion_ratio")),
    ("gradient norm", ("grad_norm",)),
    ("distance of the moving average", ("ema_distance",)),
    ("learning rate", ("lr",)),
    ("items per second", ("items_per_s",)),
    ("share of the time spent waiting for data", ("data_wait",)),
    ("memory, GiB", ("memory_gib",)),
)
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}
svg,img{max-width:100%;height:auto}table{border-collapse:collapse}td{padding:.1rem .8rem .1rem 0;vertical-align:top}
td+td{overflow-wrap:anywhere}pre{overflow:auto;background:#f4f4f4;padding:.6rem}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(20rem,1fr));gap:0 2rem}
.strip{display:flex;gap:1rem;overflow-x:auto}
.strip figure{margin:0;flex:none}.strip img{height:18rem;width:auto;max-width:none}
.sheet{max-height:32rem;overflow:auto}.many{columns:20rem}
.alarm{background:#fff3cd;border-left:4px solid #d39e00;padding:.4rem .8rem;margin:.4rem 0}
@media(prefers-color-scheme:dark){body{background:#1b1b1b;color:#ddd}svg{background:#eee}pre{background:#2a2a2a}
.alarm{color:#222}}"""


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
    """A run's page as HTML, of its folder: of one stage's run, or of all that `train` did; raises as ``report``."""
    sections = _whole_sections(run) if (run / STATE).is_file() else _stage_sections(run)
    title = html.escape(run.resolve().name)
    body = "\n".join([f"<h1>{title}</h1>", *sections])
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    return f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n'


def _stage_sections(run: Path) -> list[str]:
    """What the page says of one training run."""
    lines = read_metrics(run)
    settings = _read_settings(run / "config.yaml")
    alarms = find_alarms(lines, settings)
    told = [f'<p class="alarm">{html.escape(alarm)}</p>' for alarm in alarms] or ["<p>Nothing looks wrong.</p>"]
    facts = {"steps": f"{lines[-1]['step']} of {settings.get('max_train_steps', 'an unknown number')}"}
    last = {name: value for name, value in _latest(lines).items() if name != "step"}
    facts |= {name: f"{value:.5g}" if isinstance(value, float) else str(value) for name, value in last.items()}
    environment = run / ENVIRONMENT
    machine = read_json(environment) if environment.exists() else {}
    return [
        *told,
        "<h3>Curves</h3>", _draw_curves(lines),
        "<h3>Previews</h3>", _pictures(run),
        f'<div class="two"><div><h3>Last values</h3>{_table(facts)}</div>',
        f"<div><h3>Environment</h3>{_table(machine)}</div></div>",
        f'<details><summary>Settings</summary><div class="many">{_table(settings)}</div></details>',
    ]  # fmt: skip


def _whole_sections(run: Path) -> list[str]:
    """What the page says of all stages: what the model can do, how to go on, and each training run."""
    done = read_json(run / STATE)
    clips = run / "clips"
    names = [Path(record.path).stem for record in read_metadata(clips, clips / LIST).records]  # NUMBER-PART
    cut, captions = read_json(clips / FACTS), captions_of_clips(clips)
    pipeline, quoted = shlex.quote(str(run / "pipeline")), shlex.quote(captions[0])
    index = run / "pipeline/model_index.json"
    own_scale = read_json(index).get("guidance_scale") if index.exists() else None
    trained = [name for name in done if (run / name / "metrics.jsonl").is_file()]
    facts = {
        "learned from": f"{len(names)} clips of {len({name.split('-')[0] for name in names})} videos",
        "makes": f"{cut['num_frames']} frames of {cut['height']}x{cut['width']} pixels, {cut['fps']:g} a second",
        "took": ", ".join(f"{name} {done[name]['minutes']:.1f} min" for name in done if "minutes" in done[name]),
    }
    commands = {
        "Make videos": f"contentmotion generate {quoted} --pretrained_model_name_or_path {pipeline}",
        "Play with it on a page": f"contentmotion demo --pretrained_model_name_or_path {pipeline}",
        "Measure it": f"contentmotion evaluate --data_dir {shlex.quote(str(clips))} "
        f"--pretrained_model_name_or_path {pipeline}",
        "Train the motion longer": f"more max_train_steps in {run / 'settings'}/*-motion.yaml, then the same command",
        "Make it fast": f"contentmotion distill --part content --pretrained_model_name_or_path {pipeline} "
        f"--latent_cache {shlex.quote(str(run / 'cache'))} --guidance_scale {4 if own_scale is None else own_scale:g} "
        f"--output_dir {shlex.quote(str(run / 'content-lcm'))}",
    }
    shown = "".join(f"<li>{html.escape(text)}</li>" for text in captions[:MAX_CAPTIONS])
    more = f"<p>... and {len(captions) - MAX_CAPTIONS} more.</p>" if len(captions) > MAX_CAPTIONS else ""
    sheets = sorted((run / "samples").glob("sheet*.png"))[:1]
    steps = "".join(f"<p>{html.escape(what)}:</p><pre>{html.escape(text)}</pre>" for what, text in commands.items())
    return [
        *(f'<div class="sheet"><img alt="what it makes" src="{_inline(path)}"></div>' for path in sheets),
        "<h2>What it can do</h2>", _table(facts),
        "<p>It knows what it was trained on and hardly more: these captions, and words out of them.</p>",
        f'<ul class="many">{shown}</ul>{more}',
        "<h2>How to go on</h2>", steps,
        *(part for name in trained for part in (f"<h2>{html.escape(name)}</h2>", *_stage_sections(run / name))),
    ]  # fmt: skip


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


def _latest(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The last value of each column."""
    merged: dict[str, Any] = {}
    for line in lines:
        merged |= line
    return merged


def find_alarms(lines: Sequence[dict[str, Any]], settings: dict[str, Any]) -> list[str]:
    """What someone should look at in a run's metrics, a sentence each."""
    columns = {
        name: [line[name] for line in lines if line.get(name) is not None] for name in _latest(lines) if name != "step"
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


def _draw_curves(lines: Sequence[dict[str, Any]]) -> str:
    """One picture (SVG) with a plot for each group of columns that is there, in two columns, over the same steps."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('report needs matplotlib: pip install "contentmotion[report]"') from error
    groups, drawn = [], {"step"}
    for title, begins in GROUPS:
        names = [name for name in _latest(lines) if name not in drawn and name.startswith(begins)]
        drawn |= set(names)
        groups += [(title, names)] if names else []
    num_rows = math.ceil(len(groups) / 2)
    height = 1.7 * num_rows + 0.4
    figure = Figure(figsize=(11, height))
    plots = figure.subplots(num_rows, 2, sharex=True, squeeze=False)
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.45 / height, top=1 - 0.3 / height, hspace=0.4, wspace=0.14)
    for axes, (title, names) in zip(plots.flat, groups, strict=False):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            finite = [(step, value) for step, value in points if math.isfinite(value)]
            axes.plot(*zip(*finite, strict=True), ".-" if len(finite) < 50 else "-", label=name, linewidth=1)
        axes.set_title(title, loc="left", fontsize="medium")
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend(fontsize="small")
    for axes in plots.flat[len(groups) :]:
        axes.set_axis_off()
    for axes in plots.flat[: len(groups)][-2:]:  # the lowest of each column
        axes.set_xlabel("step")
        axes.tick_params(labelbottom=True)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # words stay words
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _pictures(run: Path) -> str:
    """The last previews side by side, newest first, inside the page."""
    paths = sorted(run.glob("preview-*.png"))[-MAX_PICTURES:][::-1]
    figures = ""
    for path in paths:
        name = html.escape(path.stem)
        figures += f'<figure><figcaption>{name}</figcaption><img alt="{name}" src="{_inline(path)}"></figure>'
    return f'<div class="strip">{figures}</div>' if figures else "<p>None were written.</p>"


def _inline(picture: Path) -> str:
    """A picture as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _table(values: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(str(name))}</td><td>{html.escape(str(value))}</td></tr>"
        for name, value in values.items()
        if value is not None
    )
    return f"<table>{rows}</table>" if rows else "<p>Not known.</p>"


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(read_text(path)) if path.exists() else {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: damaged") from error
    return settings if isinstance(settings, dict) else {}
