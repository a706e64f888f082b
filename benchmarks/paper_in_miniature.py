"""CMD's tables in miniature: the same comparisons with small models on two captioned sets of 64x64 clips.

    python benchmarks/paper_in_miniature.py --output_dir outputs/miniature --i3d i3d_kinetics400_rgb.safetensors

Everything goes through the commands that users run. What is finished is not done again, and what was interrupted goes
on, so the same command can be given any number of times; with more seeds it adds to what is there. At the end it
writes the scores and their spread over the seeds as one JSON file, and the plots of docs/miniature.md.

Sets (runs/prepare_emoji.py, runs/prepare_shapes.py): animated emoji, split by emoji; moving shapes, split by pairs of
colour and shape. Both have a third split of stills, whose captions are not in the other two (emoji) or say nothing of
motion (shapes): what the image model is pretrained on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from contentmotion.cli import main as contentmotion
from contentmotion.loading import ASSETS
from contentmotion.run_dir import describe_hardware
from contentmotion.saving import replacing_file, write_json
from contentmotion.video.reader import read_video
from contentmotion.video.write import write_video

ROOT = Path(__file__).resolve().parents[1]
VAE = str(ASSETS / "emoji/vae")  # 64x64 pixels -> 12x16x16 latents; trained on emoji, which are among those used here
FRAMES = 24  # of the clips; models of 16 frames see a window of them

AUTOENCODER = {
    "max_train_steps": 250, "train_batch_size": 8, "learning_rate": 1.5e-3, "lr_scheduler": "cosine",
    "lr_warmup_steps": 50, "adam_beta1": 0.9, "adam_beta2": 0.99, "ema_decay": 0.99, "model.hidden_size": 128,
    "model.depth": 2, "model.num_heads": 4, "model.head_dim": 32, "model.mlp_ratio": 2.0,
}  # fmt: skip
CONTENT = {
    "train_batch_size": 24, "learning_rate": 1e-3, "lr_scheduler": "cosine", "lr_warmup_steps": 100,
    "adam_beta2": 0.99, "adam_weight_decay": 0.01, "ema_decay": 0.995,
}  # fmt: skip
NEW_CONTENT = {"model.block_out_channels": (64, 96, 128), "model.text_hidden_size": 96}
CONTENT_STEPS = {"pretrained": 1200, "scratch": 600, "finetuned": 600}
MOTION = {
    "max_train_steps": 600, "train_batch_size": 32, "learning_rate": 1e-3, "lr_scheduler": "cosine",
    "lr_warmup_steps": 50, "adam_beta2": 0.99, "adam_weight_decay": 0.01, "ema_decay": 0.99, "model.hidden_size": 128,
    "model.depth": 4, "model.num_heads": 4, "content_noise": 0.1,
}  # fmt: skip
LONG = "D=8, 24 frames"
# Table 4b: what differs from 8 channels, learned weights, 16 frames.
AUTOENCODERS = {
    "D=8": {},
    "D=4": {"model.motion_channels": 4},
    "D=16": {"model.motion_channels": 16},
    "D=8, plain mean": {"model.content_mode": "mean"},
    LONG: {"num_frames": FRAMES},
}
CONTENT_PATCHES = (2, 4, 8)  # Table 4c
GUIDANCE = (1.0, 2.0, 4.0, 8.0)  # Table 11
NUM_VIDEOS = 96
REFERENCE, REFERENCE_PATCH = "D=8", 2
SETTINGS = {
    "autoencoder": AUTOENCODER, "content": CONTENT | NEW_CONTENT, "content_steps": CONTENT_STEPS, "motion": MOTION,
    "autoencoders": AUTOENCODERS, "content_patches": CONTENT_PATCHES, "guidance": GUIDANCE, "num_videos": NUM_VIDEOS,
}  # fmt: skip


def slug(name: str) -> str:
    """A comparison's name as a folder's."""
    return name.replace(" ", "").replace(",", "-")


@dataclass(frozen=True)
class Set:
    """A data set with splits train, test and stills.

    Attributes:
        name: "emoji" or "shapes".
        folder: VideoFolder.
        prompts: The split whose captions are generated from: the captions of emoji name what cannot be guessed.
    """

    name: str
    folder: Path
    prompts: str


def run(*words: object, **settings: object) -> None:
    """One command of contentmotion.

    Raises:
        SystemExit: It failed.
    """
    line = [str(word) for word in words]
    for name, value in settings.items():
        line += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    print("contentmotion", *line, flush=True)
    if status := contentmotion(line):
        raise SystemExit(status)


def make_sets(output: Path, downloads: Path, emoji_clips: Path | None) -> list[Set]:
    """The two data sets, made where they are not there yet."""
    shapes, emoji = output / "data/shapes", output / "data/emoji"
    if not (shapes / "metadata.jsonl").exists():
        subprocess.run([sys.executable, str(ROOT / "runs/prepare_shapes.py"), str(shapes)], check=True)
    if not (emoji / "metadata.jsonl").exists():
        if emoji_clips is None:
            emoji_clips = output / "data/emoji_clips"
            words = [ROOT / "runs/prepare_emoji.py", emoji_clips, "--num_frames", FRAMES, "--fps", 12]
            subprocess.run([sys.executable, *map(str, words), "--download_dir", str(downloads)], check=True)
        split_emoji(emoji_clips, emoji)
    return [Set("emoji", emoji, "train"), Set("shapes", shapes, "test")]


def split_emoji(source: Path, target: Path) -> None:
    """Emoji -> two fifths to train on, one to test, two as stills; an emoji's skin tones stay together."""
    (target / "videos").mkdir(parents=True, exist_ok=True)
    lines = []
    for line in (source / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        part = int(hashlib.sha256(row["base"].encode()).hexdigest(), 16) % 5
        split = ("train", "train", "test", "stills", "stills")[part]
        video = source / row["file_name"]
        if split == "stills":
            frames, fps = read_video(video).frames, 12
            write_video(target / row["file_name"], frames[[len(frames) // 2] * FRAMES], fps)
        else:
            shutil.copyfile(video, target / row["file_name"])
        kept = {key: row[key] for key in ("file_name", "captions", "weight")}
        lines.append(json.dumps(kept | {"split": split}, ensure_ascii=False) + "\n")
    with replacing_file(target / "metadata.jsonl") as partial:
        partial.write_text("".join(lines), encoding="utf-8")


def write_report(studies: list[Study], output: Path) -> None:
    """Writes scores.json, tables.md and miniature.png: each number of each seed, their means and deviations."""
    report: dict[str, dict[str, dict[str, Any]]] = {}
    for name in dict.fromkeys(study.data.name for study in studies):
        found = [study.scores() for study in studies if study.data.name == name]
        report[name] = {
            key: {
                number: {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None, "values": values}
                for number in next(scores[key] for scores in found if key in scores)
                if (values := [scores[key][number] for scores in found if key in scores])
            }
            for key in dict.fromkeys(key for scores in found for key in scores)
        }
    plot_report(report, output / "miniature.png")
    with replacing_file(output / "tables.md") as partial:
        partial.write_text(tables(report), encoding="utf-8")
    facts = {"settings": SETTINGS, "hardware": describe_hardware(torch.device("cpu"))}
    write_json(output / "scores.json", facts | {"scores": report})


# Columns of the tables: heading and format.
NUMBERS = {
    "fvd": ("FVD", ".0f"), "fvd_extrapolated": ("FVD, extrapolated", ".0f"), "psnr": ("PSNR", ".2f"),
    "optical_flow": ("flow (px)", ".2f"), "nearest_pixels": ("own clip nearest", ".1%"),
}  # fmt: skip
# Panels of the plot: title, number shown, and label -> comparison in scores.json.
PANELS: dict[str, tuple[str, dict[str, str]]] = {
    "Table 4a: stages": ("fvd", {name: f"4a/{name}" for name in ("reconstruction", "motion", "full", "frozen")}),
    # Clips of 24 frames are other clips: their FVD is not to be compared.
    "Table 4b: autoencoder, FVD": ("fvd", {name: f"4b/{slug(name)}/reconstruction" for name in list(AUTOENCODERS)[:4]}),
    "Table 4b: 24 frames, FVD": ("fvd", {LONG: f"4b/{slug(LONG)}/reconstruction"}),
    "Table 4b: autoencoder, PSNR": ("psnr", {name: f"4b/{slug(name)}/reconstruction" for name in AUTOENCODERS}),
    "Table 4c: content patch": ("fvd", {str(patch): f"4c/{patch}/motion" for patch in CONTENT_PATCHES}),
    "Content model": ("fvd", {name: f"pretrained/{name}/content" for name in ("finetuned", "scratch")}),
    "Table 11: guidance": ("fvd", {f"{scale:g}": f"11/{scale:g}/full" for scale in GUIDANCE}),
}


def tables(report: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The comparisons as Markdown: mean and standard deviation over seeds, and how many seeds."""
    lines = []
    for name, scores in report.items():
        for title, (_, rows) in PANELS.items():
            if title.endswith("PSNR"):  # a panel of its own, a column here
                continue
            found = {label: scores[key] for label, key in rows.items() if key in scores}
            keys = [key for key in NUMBERS if any(key in numbers for numbers in found.values())]
            lines += [f"**{name}, {title.removesuffix(', FVD')}**", ""]
            lines += ["| | " + " | ".join([*(NUMBERS[key][0] for key in keys), "seeds"]) + " |"]
            lines += ["|---" * (len(keys) + 2) + "|"]
            for label, numbers in found.items():
                cells = [_cell(numbers.get(key), NUMBERS[key][1]) for key in keys]
                lines.append(f"| {label} | {' | '.join(cells)} | {len(numbers['fvd']['values'])} |")
            lines.append("")
    return "\n".join(lines)


def _cell(number: dict[str, Any] | None, form: str) -> str:
    if number is None:
        return ""
    return format(number["mean"], form) + ("" if number["std"] is None else f" ± {format(number['std'], form)}")


def plot_report(report: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """One row of panels per set: a line is the mean over seeds, a dot one seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (3 * len(PANELS), 3.4 * len(report))
    figure, axes = pyplot.subplots(len(report), len(PANELS), figsize=size, squeeze=False)
    for row, (name, scores) in zip(axes, report.items(), strict=True):
        for axis, (title, (number, bars)) in zip(row, PANELS.items(), strict=True):
            axis.set_title(f"{name}: {title}", fontsize=9)
            axis.tick_params(axis="x", labelrotation=35, labelsize=7)
            axis.tick_params(axis="y", labelsize=7)
            axis.set_ylabel("PSNR (dB), higher is better" if number == "psnr" else "FVD, lower is better", fontsize=7)
            there = {label: scores[key][number] for label, key in bars.items() if key in scores}
            axis.plot(list(there), [values["mean"] for values in there.values()], "_", markersize=18, color="#3a78b5")
            for place, values in enumerate(there.values()):
                axis.plot([place] * len(values["values"]), values["values"], ".", color="#1f3b57")
            axis.margins(x=0.3, y=0.2)
    figure.tight_layout()
    with replacing_file(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
    pyplot.close(figure)


class Study:
    """All runs on one set with one seed."""

    def __init__(self, data: Set, seed: int, output: Path) -> None:
        self.data, self.seed = data, seed
        self.shared, self.root = output / data.name, output / data.name / f"seed-{seed}"

    def autoencoder(self, name: str) -> Path:
        """Folder of one of the autoencoders."""
        return self.root / "autoencoder" / slug(name) / "autoencoder"

    def content(self, name: str) -> Path:
        """Folder of one of the content models; the pretrained one is the same for all seeds."""
        if name == "pretrained":
            return self.shared / "pretrained/content"
        return self.root / "content" / name / "content"

    def motion(self, patch: int) -> Path:
        """Folder of one of the motion models."""
        return self.root / "motion" / f"patch-{patch}" / "motion_transformer"

    def autoencoders(self, i3d: str) -> None:
        """Trains and scores the autoencoders that are not there yet (Table 4b)."""
        for frames in (16, FRAMES):
            latents = self.shared / f"latents-{frames}"
            if not (latents / "index.json").exists():
                run("encode", **self._clips, latents_only="true", num_frames=frames, output_dir=latents)
        for name, changes in AUTOENCODERS.items():
            folder = self.autoencoder(name)
            settings = AUTOENCODER | {"num_frames": 16, "latent_cache": self.shared / "latents-16"} | changes
            if "num_frames" in changes:
                settings["latent_cache"] = self.shared / f"latents-{FRAMES}"
            if not folder.is_dir():
                run("train-autoencoder", vae=VAE, output_dir=folder.parent, **settings, **self._training)
            parts = {"vae": VAE, "autoencoder": folder, "components": ("reconstruction",)}
            self._evaluate(f"4b/{name}", i3d, split="test", **parts)

    def denoisers(self, i3d: str) -> None:
        """Trains and scores the content and motion models that are not there yet (Tables 4a, 4c and 11)."""
        reference = self.autoencoder(REFERENCE)
        # Stills first: encode leaves the statistics of the motion in the autoencoder, and they are to be the clips'.
        caches = {"stills": self.shared / "stills", "train": self.root / "clips"}
        for split, cache in caches.items():
            if not (cache / "index.json").exists():
                run("encode", **self._clips, autoencoder=reference, split=split, output_dir=cache)
        for name, steps in CONTENT_STEPS.items():
            start = {"pretrained_model_name_or_path": self.content("pretrained"), "train_text_encoder": "true"}
            settings = CONTENT | {"max_train_steps": steps}
            settings |= start if name == "finetuned" else NEW_CONTENT | {"vae": VAE}
            cache = caches["stills" if name == "pretrained" else "train"]
            if not self.content(name).is_dir():
                run(
                    "train-content",
                    latent_cache=cache,
                    output_dir=self.content(name).parent,
                    **settings,
                    **self._training,
                )
        for patch in CONTENT_PATCHES:
            inputs = {"latent_cache": self.root / "clips", "autoencoder": reference, "model.content_patch_size": patch}
            inputs["pretrained_model_name_or_path"] = self.content("finetuned")
            if not self.motion(patch).is_dir():
                run("train-motion", output_dir=self.motion(patch).parent, **inputs, **MOTION, **self._training)

        sampling = {"num_inference_steps": 25, "split": self.data.prompts}
        for name in ("finetuned", "scratch"):
            settings = {"pretrained_model_name_or_path": self._pipeline(name), "guidance_scale": 4.0}
            self._evaluate(f"pretrained/{name}", i3d, components=("content",), **settings, **sampling)
        sampling["pretrained_model_name_or_path"] = self._pipeline("finetuned")
        for patch in CONTENT_PATCHES:
            motion = {"motion_transformer": self.motion(patch), "components": ("motion",)}
            self._evaluate(f"4c/{patch}", i3d, **motion, **sampling)
        table = ("reconstruction", "frozen", "motion", "full")
        self._evaluate("4a", i3d, guidance_scale=4.0, components=table, **sampling)
        for scale in GUIDANCE:
            self._evaluate(f"11/{scale:g}", i3d, guidance_scale=scale, components=("full",), **sampling)

    @property
    def _clips(self) -> dict[str, object]:
        return {"train_data_dir": self.data.folder, "vae": VAE}

    @property
    def _training(self) -> dict[str, object]:
        return {"seed": self.seed, "validation_steps": 0, "report_to": "none", "checkpointing_steps": 200}

    def _evaluate(self, name: str, i3d: str, **settings: object) -> None:
        """Scores something, unless that was done; the clips and the noise are the same for all seeds of training."""
        folder = self.root / "scores" / slug(name)
        if not (folder / "scores.json").exists():
            common = {"data_dir": self.data.folder, "num_videos": NUM_VIDEOS, "batch_size": 16, "seed": 0}
            run("evaluate", i3d=i3d, output_dir=folder, measures_dir=self.shared / "measures", **common, **settings)

    def _pipeline(self, content: str) -> Path:
        """A whole pipeline with one of the content models."""
        folder = self.root / "pipeline" / content
        if not (folder / "model_index.json").exists():
            parts = {"autoencoder": self.autoencoder(REFERENCE), "motion_transformer": self.motion(REFERENCE_PATCH)}
            run("export", pretrained_model_name_or_path=self.content(content), output_dir=folder, dtype="fp32", **parts)
        return folder

    def scores(self) -> dict[str, dict[str, float]]:
        """What was scored so far: name of the comparison and part -> its numbers."""
        root = self.root / "scores"
        found = {}
        for file in sorted(root.rglob("scores.json")):
            parts = json.loads(file.read_text(encoding="utf-8"))["parts"]
            for part, numbers in parts.items():
                found[f"{file.parent.relative_to(root)}/{part}"] = numbers
        return found


def main() -> None:
    """Trains, scores, reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/miniature"))
    parser.add_argument("--seeds", type=int, default=2, help="how many seeds (default 2)")
    parser.add_argument("--sets", nargs="+", default=["emoji", "shapes"], help="which to run: two processes can share")
    parser.add_argument("--i3d", default=os.environ.get("CONTENTMOTION_I3D"), help="I3D weights")
    parser.add_argument("--emoji_clips", type=Path, help="folder that prepare_emoji.py made with 24 frames")
    parser.add_argument("--download_dir", type=Path, default=Path("downloads"), help="keeps the npm tarballs")
    arguments = parser.parse_args()
    if not arguments.i3d or not Path(arguments.i3d).is_file():
        parser.error("needs I3D weights: --i3d FILE or CONTENTMOTION_I3D")
    made_with = arguments.output_dir / "settings.json"
    if made_with.exists() and json.loads(made_with.read_text()) != json.loads(json.dumps(SETTINGS)):
        parser.error(f"{arguments.output_dir} was made with other settings: choose another --output_dir")
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(made_with, SETTINGS)
    sets = make_sets(arguments.output_dir, arguments.download_dir, arguments.emoji_clips)
    studies = []
    for seed in range(arguments.seeds):
        added = [Study(data, seed, arguments.output_dir) for data in sets]
        studies += added
        for step in (Study.autoencoders, Study.denoisers):
            for study in (study for study in added if study.data.name in arguments.sets):
                step(study, arguments.i3d)
                write_report(studies, arguments.output_dir)


if __name__ == "__main__":
    main()
