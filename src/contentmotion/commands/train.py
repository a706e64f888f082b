"""Command ``train``: every stage one after the other, from a folder of videos to a pipeline, a sheet and a report.

A stage is a command, called as the command line calls it with the settings in ``settings/N-NAME.yaml``. What is
finished is noted in ``train.json`` with a hash of that file's settings and of those of the stages that it builds on: so
nothing is done twice, and nothing is built on what has changed since.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml

from contentmotion.arguments import make_config, parse_config, read_settings, read_yaml
from contentmotion.commands.cut import FACTS, LIST, captions_of_clips, cut, open_captioned
from contentmotion.commands.encode import encode
from contentmotion.commands.export import export
from contentmotion.commands.generate import generate
from contentmotion.commands.report import STATE, report
from contentmotion.config import (
    CutConfig,
    EncodeConfig,
    ExportConfig,
    FolderConfig,
    GenerateConfig,
    ReportConfig,
    TrainAutoencoderConfig,
    TrainContentConfig,
    TrainMotionConfig,
    TrainPipelineConfig,
    TrainVAEConfig,
)
from contentmotion.data.formats import open_folder
from contentmotion.data.layouts.metadata import read_metadata
from contentmotion.loading import require_checkpoints
from contentmotion.pipelines.folder import chosen_by, fetch
from contentmotion.progress import part_of
from contentmotion.run_dir import owned_folder, prepare_output_dir, write_config
from contentmotion.saving import read_json, read_text, write_json
from contentmotion.tables import print_table
from contentmotion.train.autoencoder import train_autoencoder
from contentmotion.train.content import train_content
from contentmotion.train.motion import train_motion
from contentmotion.train.vae import train_vae
from contentmotion.video.sources import source_name

PRESETS = Path(__file__).parents[1] / "presets"
PROMPTS = "prompts.txt"
QUICK = ("pipeline", "samples")  # made anew when what they are made of changes
MEMORIES = (("80gb", 60), ("24gb", 20), ("12gb", 10))  # presets, and from how many GiB of a GPU on they are taken
SHOWN_CAPTIONS = 20
KEPT_IN_MEMORY = 2000  # clips whose latents the autoencoder's training keeps there
NAMES = {
    "clips": "cut clips of one size",
    "vae": "train an image VAE",
    "autoencoder": "train the autoencoder: video <-> content frame + motion latent",
    "cache": "encode the clips",
    "content": "train the content model: prompt -> content frame",
    "motion": "train the motion model: prompt and content frame -> motion",
    "pipeline": "put the parts together",
    "samples": "draw what the clips' captions say",
}


@dataclass(frozen=True)
class Stage:
    """One stage of the whole.

    Attributes:
        name: Its folder in the output folder.
        settings: The file with its settings.
        command: The command that it is.
        config_class: Its settings.
        run: What the command calls.
        own: Settings that say where its data are, by name; the preset's, which come before them, say the rest.
        needs: Names of the stages that it builds on.
    """

    name: str
    settings: Path
    command: str
    config_class: type
    run: Callable[[Any], None]
    own: dict[str, Any]
    needs: tuple[str, ...]

    def read(self) -> Any:
        """Its settings, as its file has them."""
        return parse_config(self.command, self.config_class, None, ["--config", str(self.settings)])


def train(config: TrainPipelineConfig) -> None:
    """Runs what is not done yet of all stages; ``output_dir/pipeline`` is the result.

    Raises:
        ValueError: A stage cannot be done; or the folder was begun with other settings, or its settings were changed
            where later stages build on them.
        SystemExit: Stopped by a signal; what was done is kept.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ValueError(
            "train is one process: write the settings with --dry_run, then give each stage's command to torchrun, with "
            f"--config {config.output_dir}/settings/..."
        )
    if config.fine_tune and not config.image_model:
        raise ValueError("fine_tune is for an image model: it needs --image_model")
    require_checkpoints(image_model=config.image_model, vae=config.vae)
    root = Path(config.output_dir)
    _require_same_run(root, config)
    preset = _choose_preset(config.preset)
    content = read_preset(preset, bool(config.image_model))
    minutes = content.pop("minutes")
    stages = plan_stages(config)
    if not (root / "clips" / LIST).exists():  # before there is a folder: no videos, or nothing that says what they show
        own = CutConfig(output_dir=str(root / "clips"), **stages[0].own)
        open_captioned(stages[0].read() if stages[0].settings.exists() else own)
    write_settings(root, stages, content, preset)  # first: a preset that is none leaves nothing
    prepare_output_dir(root, "train", config)
    if config.dry_run:
        _print_plan(preset, stages, minutes)
        return
    if config.image_model:  # one that cannot be had is known before videos are cut
        fetch(config.image_model)
    print(f"Preset {preset}; the settings of each stage are in {root / 'settings'}", file=sys.stderr)
    try:
        Whole(root, stages, minutes).run()
    except KeyboardInterrupt:
        print(f"What is done is in {root}: the same command goes on from there.", file=sys.stderr)
        raise
    if find_spec("matplotlib") is None:
        print(f'contentmotion report {root} makes a page of it: pip install "contentmotion[report]"', file=sys.stderr)
    else:
        report(ReportConfig(run=str(root)))
    print(f"{root / 'pipeline'} (the model: --pretrained_model_name_or_path)")


def _choose_preset(name: str) -> str:
    """The preset that "auto" means on this machine; another one's name, or file, as it is, where there is one."""
    known = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name in known or Path(name).is_file():
        return name
    if name != "auto":
        raise ValueError(f"no preset {name}: there are auto, {', '.join(known)}, and YAML files of your own")
    if not torch.cuda.is_available():
        return "cpu"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return next((preset for preset, least in MEMORIES if memory >= least), "cpu")


def read_preset(name: str, with_image_model: bool) -> dict[str, dict[str, Any]]:
    """The settings of each stage that a preset has, and "minutes" that the stages take about.

    Raises:
        ValueError: It is no preset.
    """
    shipped = PRESETS / f"{name}.yaml"
    content = read_yaml(str(shipped) if shipped.is_file() else name)
    unknown = set(content) - {"minutes", "image_model", *NAMES} if isinstance(content, dict) else {"no blocks"}
    if unknown or not all(isinstance(block, dict) for block in content.values()):
        raise ValueError(f"{name}: a preset has blocks called minutes, image_model, {', '.join(NAMES)}; got {unknown}")
    content = {"minutes": {}} | content
    other = content.pop("image_model", {})
    return {k: content.get(k, {}) | other.get(k, {}) for k in content | other} if with_image_model else content


def plan_stages(config: TrainPipelineConfig) -> list[Stage]:
    """All stages in their order, each with what the others leave for it."""
    root, image, seed = config.output_dir, config.image_model, {"seed": config.seed}
    data = {field.name: getattr(config, field.name) for field in dataclasses.fields(FolderConfig)}
    clips, cache = {"train_data_dir": f"{root}/clips"}, {"latent_cache": f"{root}/cache"}
    vae = {"vae": image or config.vae or f"{root}/vae/vae"}
    autoencoder = {"autoencoder": f"{root}/autoencoder/autoencoder"}
    of_vae = () if image or config.vae else ("vae",)
    of_content = () if image and not config.fine_tune else ("content",)
    content = {"pretrained_model_name_or_path": f"{root}/content/content" if of_content else image}
    start = {"pretrained_model_name_or_path": image} if image else vae
    stages: list[Stage] = []

    def add(name: str, *rest: Any) -> None:
        stages.append(Stage(name, Path(root, "settings", f"{len(stages) + 1}-{name}.yaml"), *rest))

    add("clips", "cut", CutConfig, cut, data | {"train_data_dir": config.train_data_dir}, ())
    if of_vae:
        add("vae", "train-vae", TrainVAEConfig, train_vae, clips | seed, ("clips",))
    own = clips | seed | vae
    add("autoencoder", "train-autoencoder", TrainAutoencoderConfig, train_autoencoder, own, ("clips", *of_vae))
    add("cache", "encode", EncodeConfig, encode, own | autoencoder, ("clips", *of_vae, "autoencoder"))
    if of_content:
        add("content", "train-content", TrainContentConfig, train_content, seed | cache | start, ("cache",))
    own = seed | cache | autoencoder | content
    add("motion", "train-motion", TrainMotionConfig, train_motion, own, ("cache", *of_content))
    own = content | autoencoder | {"motion_transformer": f"{root}/motion/motion_transformer"}
    add("pipeline", "export", ExportConfig, export, own, (*of_content, "motion"))
    own = seed | {"pretrained_model_name_or_path": f"{root}/pipeline", "prompt_file": f"{root}/{PROMPTS}"}
    add("samples", "generate", GenerateConfig, generate, own, ("pipeline",))
    return stages


def write_settings(root: Path, stages: list[Stage], preset: dict[str, dict[str, Any]], name: str) -> None:
    """Writes the settings of the stages that have no file yet.

    Raises:
        ValueError: A preset holds what a command does not know.
    """
    size = {k: v for k, v in preset.get("clips", {}).items() if k in ("num_frames", "height", "width")}
    made = {}
    for stage in stages:
        if stage.settings.exists():
            continue
        sized = size if stage.name in ("vae", "autoencoder", "cache") else {}
        values = read_settings(sized | preset.get(stage.name, {}), stage.config_class, f"preset {name}, {stage.name}")
        config = make_config(stage.config_class, values | stage.own | {"output_dir": str(root / stage.name)})
        made[stage.settings] = (stage.command, config)
    (root / "settings").mkdir(parents=True, exist_ok=True)
    for path, (command, config) in made.items():
        write_config(path, command, config)


class Whole:
    """All stages, and what of them is done."""

    def __init__(self, root: Path, stages: list[Stage], minutes: dict[str, float]) -> None:
        self.root, self.stages, self.minutes = root, stages, minutes
        self.done: dict[str, dict[str, Any]] = read_json(root / STATE) if (root / STATE).exists() else {}
        self.configs: dict[str, Any] = {}
        self.keys: dict[str, str] = {}

    def run(self) -> None:
        """Runs the stages that are not done.

        Raises:
            ValueError: See ``train``.
        """
        for stage in self.stages:
            config = self.configs[stage.name] = stage.read()
            # As the file has them: settings that came with a later version changed nothing of what was done.
            self.keys[stage.name] = _hash([read_yaml(str(stage.settings)), *self._inputs(stage)])
            if getattr(config, "hub", None) and config.hub.push_to_hub:
                raise ValueError(
                    f"{stage.settings}: train pushes no single stages; contentmotion push uploads what it made"
                )
        self._require_unchanged()
        self._tell_of_new_videos()
        content = self.configs.get("content")
        if content and content.lora.rank and find_spec("peft") is None:  # else hours later
            raise ImportError('lora.rank of the content stage needs peft: pip install "contentmotion[lora]"')
        for number, stage in enumerate(self.stages, start=1):
            before = self.done.get(stage.name, {})
            if before.get("key") == self.keys[stage.name]:
                continue
            inputs = self._inputs(stage)
            left, then = self._minutes_left(number), self._minutes_left(number + 1)
            print(
                f"[{number}/{len(self.stages)}] {NAMES[stage.name]} ({stage.command} --config {stage.settings}); about "
                f"{left:.0f} min left in all",
                file=sys.stderr,
            )
            anew = "key" in before or before.get("started", inputs) != inputs
            if stage.name == "pipeline" and before or stage.name in QUICK and anew:
                shutil.rmtree(self.root / stage.name, ignore_errors=True)
            going_on = stage.name not in QUICK and before.get("started") == inputs
            spent = before.get("minutes", 0.0) if going_on else 0.0  # in runs that were stopped
            self._note(stage, started=inputs, **({"key": None} if "key" in before else {}))
            started = time.monotonic()
            whole = f"stage {number} of {len(self.stages)}, then {then:.0f} min"
            try:
                with owned_folder(self.root / stage.name), part_of(whole), chosen_by(self.configs[stage.name]):
                    stage.run(self._complete(stage))
            finally:
                self._note(stage, minutes=spent + (time.monotonic() - started) / 60)
            self._note(stage, key=self.keys[stage.name])
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _inputs(self, stage: Stage) -> list[str]:
        return [self.keys[name] for name in stage.needs]

    def _require_unchanged(self) -> None:
        """Raises ``ValueError`` where a stage holds training on what other settings would make anew."""
        stale = [
            stage for stage in self.stages
            if stage.name in self.done and self.done[stage.name]["started"] != self._inputs(stage)
            and stage.name not in QUICK and (self.root / stage.name).exists()
        ]  # fmt: skip
        if stale:
            folders = " ".join(str(self.root / stage.name) for stage in stale)
            raise ValueError(
                f"settings that {folders} build on were changed: change them back, or remove what builds on them "
                f"(rm -r {folders}) and give the command again"
            )

    def _tell_of_new_videos(self) -> None:
        """Names the videos that came to the folder since the clips were cut: they are in nothing of what is here."""
        config, facts = self.configs["clips"], self.root / "clips" / FACTS
        if not (facts.exists() and Path(config.train_data_dir).exists() and self.done.get("clips", {}).get("key")):
            return
        try:
            names = [source_name(record.path) for record in open_folder(config.train_data_dir, config).records]
        except (ValueError, OSError):  # the clips are here: nobody needs the folder any more
            return
        known = set(read_json(facts)["videos"])
        new = [name for name in names if name not in known]
        if not new:
            return
        made = [path for stage in self.stages if (path := self.root / stage.name).exists()] + [self.root / STATE]
        made += [self.root / PROMPTS] if self._has_own_prompts() else []
        print(
            f"{len(new)} new videos are not in it: {', '.join(new[:3])}{', ...' if len(new) > 3 else ''}; "
            f"{self.root} was cut before they came. To learn from them, too: another --output_dir, or all stages anew "
            f"(rm -r {shlex.join(map(str, made))}, and the same command)",
            file=sys.stderr,
        )

    def _has_own_prompts(self) -> bool:
        """Whether the prompts are as they were written here: nobody has edited them."""
        path = self.root / PROMPTS
        return path.exists() and self.done.get("samples", {}).get("prompts") == _hash(read_text(path))

    def _complete(self, stage: Stage) -> Any:
        """A stage's settings with what only the clips can tell."""
        config, clips = self.configs[stage.name], self.root / "clips"
        if stage.name == "autoencoder":
            few = len(read_metadata(clips, clips / LIST).records) <= KEPT_IN_MEMORY
            return dataclasses.replace(config, cache_latents=config.cache_latents or few)
        if stage.name == "samples":
            prompts = self.root / PROMPTS
            if not prompts.exists() or self._has_own_prompts():
                text = "\n".join(captions_of_clips(clips)[:SHOWN_CAPTIONS]) + "\n"
                prompts.write_text(text, encoding="utf-8")
                self._note(stage, prompts=_hash(text))
        return config

    def _minutes_left(self, number: int) -> float:
        """Of the stages from a number on: the preset's, at the pace of the stages that are done.

        Their first ones are short and not like the others: a quarter of the whole counts as done at the preset's pace.
        """
        spent = {name: done["minutes"] for name, done in self.done.items() if done.get("key") and "minutes" in done}
        known = sum(self.minutes.get(name, 0.0) for name in spent)
        usual = sum(self.minutes.get(stage.name, 0.0) for stage in self.stages) / 4
        pace = (sum(spent.values()) + usual) / (known + usual) if usual else 1.0
        return pace * sum(self.minutes.get(stage.name, 0.0) for stage in self.stages[number - 1 :])

    def _note(self, stage: Stage, **facts: Any) -> None:
        self.done[stage.name] = self.done.get(stage.name, {}) | facts
        write_json(self.root / STATE, self.done)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _require_same_run(root: Path, config: TrainPipelineConfig) -> None:
    """Raises ``ValueError`` where a folder holds something else, or was begun with other settings."""
    if not root.exists() or all(path.name.startswith(".") for path in root.iterdir()):
        return
    if not (root / "settings").is_dir():
        raise ValueError(f"output folder {root} holds something else already: choose another --output_dir")
    before, now = yaml.safe_load(read_text(root / "config.yaml")), dataclasses.asdict(config)
    changed = [f"--{k} {before[k]}" for k in now if k in before and k != "dry_run" and before[k] != now[k]]
    if changed:
        raise ValueError(
            f"{root} was begun with {', '.join(changed)}: give the same again (what its stages do is in "
            f"{root / 'settings'}), or choose another --output_dir"
        )


def _print_plan(preset: str, stages: list[Stage], minutes: dict[str, float]) -> None:
    rows = []
    for stage in stages:
        steps = getattr(stage.read(), "max_train_steps", 0)
        about = f"{minutes.get(stage.name, 0):g}"
        rows.append((NAMES[stage.name], str(stage.settings), f"{steps:,}" if steps else "", about))
    rows.append(("in all", "", "", f"{sum(minutes.get(stage.name, 0) for stage in stages):.3g}"))
    print_table(("stage", "settings", "steps", "minutes, about"), rows, title=f"Preset {preset}", text=(0, 1))
    print("Nothing is trained yet: change the settings if you like, then give the command without --dry_run.")
