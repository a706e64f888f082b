"""The model card that ``export`` writes: what can be found out, and a sentence in brackets for what cannot."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

import contentmotion
from contentmotion.commands.info import count_parameters, describe_flow, find_parts, read_settings
from contentmotion.config import BenchmarkConfig, ExportConfig
from contentmotion.cost.clip import count_systems, folder_system
from contentmotion.evaluate.measures import columns
from contentmotion.evaluate.summary import TITLES, cells, shown_columns
from contentmotion.run_dir import ENVIRONMENT
from contentmotion.saving import read_json
from contentmotion.tables import markdown_table, number

INTENDED = """\
Trying out and studying text-to-video generation; a first shape of a clip for people who design one, to be looked at
before it is used."""
LIMITS = """\
It draws what its data shows, with that data's gaps and prejudices, at the size and length above; other sizes, and words
it has not seen, come out worse."""
MISUSE = """\
It must not be used to deceive: to make videos of real people doing or saying what they did not (deepfakes), or
disinformation; nor to make sensitive, malicious or illegal content. The authors of CMD name that danger of large video
generators in their ethics statement, and ask to keep it in mind and to work on safe ones. Nothing filters prompts or
videos here. Generated files say in their metadata that a model made them (`contentmotion info FILE`); who publishes
them should say so, too."""
# What of a run's settings goes into its row: heading and name.
SETTINGS = {
    "steps": "max_train_steps",
    "batch": "train_batch_size",
    "accumulation": "gradient_accumulation_steps",
    "learning rate": "learning_rate",
    "average": "ema_decay",
    "precision": "mixed_precision",
    "seed": "seed",
}
BRACKETS = "*[{}]*"


def write_card(folder: Path, config: ExportConfig, scores: dict[str, Any] | None) -> None:
    """Writes README.md into a pipeline folder that is complete otherwise; ``scores`` are a scores.json's."""
    runs = find_runs(config)
    name = Path(config.output_dir).resolve().name
    takes_text = (folder / "text_encoder").is_dir()
    data = _metadata(config, name, scores, takes_text)
    summary, parts = _parts(folder)
    sections = {
        f"# {name}": summary,
        "## Parts": parts,
        "## Use": _use(name, takes_text),
        "## Data": _data(runs),
        "## Training": _training(runs),
        "## Scores": _scores(scores),
        "## Cost": describe_cost(folder),
        "## Intended use": INTENDED,
        "## Misuse": MISUSE,
        "## Limits": f"{LIMITS}\n\n{BRACKETS.format('say what it cannot do')}",
        "## Licence": f"{config.license}." if config.license else BRACKETS.format("none yet: choose one"),
    }
    body = "\n\n".join(f"{title}\n\n{text}" for title, text in sections.items())
    (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n{body}\n", encoding="utf-8")


def _metadata(config: ExportConfig, name: str, scores: dict[str, Any] | None, takes_text: bool) -> ModelCardData:
    """The header that the hub reads."""
    scores = scores or {"parts": {}, "protocol": {}}
    data = _last((scores["protocol"].get("run") or {}).get("data_dir"))
    results = [
        EvalResult(
            task_type="text-to-video",
            dataset_type="video",
            dataset_name=f"{data}, {row['n']} clips",
            metric_type=key,
            metric_name=f"{columns()[key].heading}, {TITLES.get(part, part)}",
            metric_value=round(float(row[key]), 4),
        )
        for part, row in scores["parts"].items()
        for key in ("fvd", "psnr", "ssim", "lpips", "clipsim")
        if key in row and part != "real_halves"
    ]
    source = config.pretrained_model_name_or_path
    return ModelCardData(
        license=config.license,
        library_name="diffusers",
        pipeline_tag="text-to-video" if takes_text else None,
        tags=["contentmotion", "content-motion", "text-to-video" if takes_text else "class-to-video"],
        base_model=source if source.count("/") == 1 and not Path(source).exists() else None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def find_runs(config: ExportConfig) -> dict[str, dict[str, Any]]:
    """Settings of the training runs whose folders the parts are in, by command; "cache" in them is its manifest."""
    runs: dict[str, dict[str, Any]] = {}
    for name in (config.autoencoder, config.pretrained_model_name_or_path, config.motion_transformer):
        file = Path(name).resolve().parent / "config.yaml" if name and Path(name).is_dir() else None
        if file is None or not file.is_file():
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        command = re.match(r"# To repeat the run: contentmotion (\S+)", text)
        try:
            settings = yaml.safe_load(text)
        except yaml.YAMLError:  # what a card lacks is no reason to lose an export
            continue
        if command is None or not isinstance(settings, dict) or "max_train_steps" not in settings:
            continue
        manifest = Path(str(settings.get("latent_cache", settings.get("cache_dir")))) / "manifest.json"
        if manifest.is_file():
            settings["cache"] = read_json(manifest)
        environment = file.parent / ENVIRONMENT
        if environment.is_file():  # "auto" says less; runs of earlier versions know no better
            used = read_json(environment).get("precision")
            settings["mixed_precision"] = used or settings.get("mixed_precision")
        runs[f"{command[1]}, {settings['part']}" if "part" in settings else command[1]] = settings
    return runs


def _parts(folder: Path) -> tuple[str, str]:
    """What the model is, and a table of its parts."""
    parts, rows, total = find_parts(folder), [], 0
    for name, part in parts.items():
        parameters, _, dtypes = count_parameters(part)
        total += parameters
        rows.append([f"`{name}`", read_settings(part)[0], f"{parameters:,}" if parameters else "", dtypes])
    flow = f" {describe_flow(parts)}." if "autoencoder" in parts else ""
    summary = (
        f"A video model of content frame and motion latent (CMD, arXiv 2403.14148), {total / 1e6:,.2f} M parameters, "
        f"made with contentmotion {contentmotion.__version__}.{flow}"
    )
    return summary, markdown_table(["part", "class", "parameters", "numbers"], rows)


def _use(name: str, takes_text: bool) -> str:
    asked, given = ('"a prompt"', '"a prompt"') if takes_text else ("--class_labels 0", "class_labels=0")
    return (
        f"```sh\ncontentmotion generate {asked} --pretrained_model_name_or_path {shlex.quote(name)}\n```\n\n"
        f"```python\nfrom contentmotion import ContentMotionPipeline\n\n"
        f"pipe = ContentMotionPipeline.from_pretrained({json.dumps(name)})\nframes = pipe({given}).frames[0]\n```"
    )


def _data(runs: dict[str, dict[str, Any]]) -> str:
    lines = []
    for command, settings in runs.items():
        cache = settings.get("cache") or {}
        if settings.get("train_data_dir"):
            size = " x ".join(str(settings[key]) for key in ("num_frames", "height", "width"))
            lines.append(f"* {command}: `{_last(settings['train_data_dir'])}`, clips of {size}")
        elif cache:
            size = " x ".join(str(cache.get(key)) for key in ("num_frames", "height", "width"))
            lines.append(
                f"* {command}: {cache.get('items')} clips of {size}, split {cache.get('split')} (SHA-256 of the list "
                f"{str(cache.get('data'))[:16]})"
            )
    asked = BRACKETS.format("say what the data shows, where it is from, whom it belongs to")
    return "\n".join([*lines, "", asked] if lines else [asked])


def _training(runs: dict[str, dict[str, Any]]) -> str:
    if not runs:
        return BRACKETS.format("the parts are in no folder of a training run: say how they were trained")
    rows = [[command, *(str(run.get(name, "")) for name in SETTINGS.values())] for command, run in runs.items()]
    return markdown_table(["run", *SETTINGS], rows)


def _scores(scores: dict[str, Any] | None) -> str:
    if scores is None:
        return BRACKETS.format("not evaluated: `contentmotion evaluate`, then `export --scores scores.json`")
    keys = shown_columns(scores["parts"])
    headings = ["", *(columns()[key].heading.replace("-\n", "").replace("\n", " ") for key in keys)]
    rows = [[TITLES.get(part, part), *cells(row, keys)] for part, row in scores["parts"].items()]
    protocol = [
        f"* {section}: " + "; ".join(f"{key} {_shown(value)}" for key, value in entries.items())
        for section, entries in scores["protocol"].items()
        if isinstance(entries, dict)
    ]
    notes = [f"* {line}" for line in scores.get("notes", [])]
    return "\n".join([markdown_table(headings, rows), "", "Protocol:", "", *protocol, *notes])


def describe_cost(folder: Path) -> str:
    """FLOPs of one clip of a pipeline by stage; or why they are not counted, which is no reason to lose an export."""
    try:
        [result] = count_systems([folder_system(str(folder), BenchmarkConfig(meta=True), 1)])
    except (ValueError, RuntimeError, AttributeError) as error:  # networks of other libraries
        return BRACKETS.format(f"not counted: {str(error).replace(str(folder), 'this model')}")
    rows = [
        [stage.stage, number(stage.parameters / 1e6), str(stage.passes), number(stage.tflops)]
        for stage in result.stages
        if stage.parameters
    ]
    rows.append(["in all", number(result.parameters / 1e6), "", number(result.tflops)])
    size = " x ".join(str(side) for side in result.size)
    table = markdown_table(["stage", "parameters (M)", "passes", "TFLOPs"], rows)
    how = "counted, not run (2 x multiply-adds, attention included)"
    return f"Of one clip of {size}, {result.sampling}; {how}:\n\n{table}"


def _last(name: object) -> str:
    """A file's or folder's name without the way there, which is this machine's; a hub id as it is."""
    text = str(name)
    return text if text.count("/") == 1 and not Path(text).exists() else Path(text).name


def _shown(value: object) -> str:
    text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    return _last(text) if text.startswith(("/", ".", "~")) else text
