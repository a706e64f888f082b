"""VideoLCM's compositional model in miniature: does what it makes follow depth, sketches, masks and first frames?

    python benchmarks/compositional.py --output_dir outputs/compositional

Trains a video UNet with four conditions on procedural scenes with exact depth (runs/prepare_scenes.py), distils it, and
gives both the conditions of clips that neither has seen (their pairs of colour and solid are in no training clip), each
by itself and two together. Everything goes through the commands that users run; what is finished is not done again.
Writes following.json: how far the output follows (`contentmotion.evaluate.following`), of the teacher, of the student
at 4, 2 and 1 steps, of the teacher without the condition, and of the true clips (after the image VAE); and sheet.png.
Depth is extracted again by a small model that learns it from the training clips (`train_depth_model`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from paper_in_miniature import ROOT, run
from PIL.Image import Resampling
from rich.progress import track
from torch import Tensor
from torch.nn.functional import interpolate
from torch.optim.lr_scheduler import CosineAnnealingLR
from transformers import DPTImageProcessor, GLPNConfig, GLPNForDepthEstimation

from contentmotion.config import CONDITION_NAMES, MAP_NAMES
from contentmotion.data.cache import collate_latents, open_cache
from contentmotion.data.conditions import training_conditions
from contentmotion.data.maps import depth_of, load_depth_model
from contentmotion.evaluate.following import depth_error, first_frame_psnr, known_region_psnr, sketch_following
from contentmotion.loading import load_vae
from contentmotion.pipelines.loading import load_video_pipeline
from contentmotion.pipelines.video_latent import VideoLatentPipeline
from contentmotion.run_dir import describe_hardware, seeded_generator
from contentmotion.saving import replacing_folder, write_json
from contentmotion.stages.image_vae import decode_frames
from contentmotion.video.pixels import to_uint8
from contentmotion.video.write import write_contact_sheet

TRAINING = {"lr_scheduler": "cosine", "report_to": "none", "checkpointing_steps": 100}
SIZE = {"height": 32, "width": 32}
VAE = {
    "model.num_downsamples": 2, "model.latent_channels": 12, "num_frames": 4, "train_batch_size": 8,
    "max_train_steps": 1000,
    "learning_rate": 1e-3, "validation_steps": 1000, "latent_whitening": 0.5,
}  # fmt: skip
TEACHER = {
    "model.block_out_channels": "[64,64,96]", "train_batch_size": 4, "learning_rate": 1e-3, "ema_decay": 0.995,
    "prediction_type": "v_prediction", "adam_beta2": 0.99, "validation_steps": 0, "model.condition_channels": 32,
}  # fmt: skip
STUDENT = {
    "train_batch_size": 4, "learning_rate": 2e-4, "guidance_scale": 2.0, "adam_beta2": 0.99, "validation_steps": 100,
    "heldout_items": 8, "num_ddim_steps": 10,
}  # fmt: skip
TEACHER_STEPS, GUIDANCE = 25, 2.0
SHOWN = 1  # the clip in the picture
# A small GLPN: its distances are in (0, 1), so a nearness of n in [0, 1] is the distance 1 / (1 + 9 n).
DEPTH_MODEL = {
    "hidden_sizes": [16, 32, 64, 96], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 4],
    "decoder_hidden_size": 32, "max_depth": 1,
}  # fmt: skip
DEPTH_TRAINING = {"steps": 1500, "frames": 16, "learning_rate": 2e-3, "size": 64}
# What is given, first that which the output is measured by.
CASES = (("depth",), ("sketch",), ("mask",), ("first_frame",), ("sketch", "first_frame"))
# How far an output follows a condition: heading, and (condition as cached or made, output, true clip) -> one a clip.
MEASURES: dict[str, tuple[str, Callable[[Any, Tensor, Tensor], Tensor]]] = {
    "sketch": ("F1 of edges, within 1 pixel", lambda given, made, real: sketch_following(given, made)["f1"]),
    "mask": ("PSNR of what was given (dB)", lambda given, made, real: known_region_psnr(made, real, given)),
    "first_frame": ("PSNR of frame 0 (dB)", lambda given, made, real: first_frame_psnr(made, given)),
}


def prepare(root: Path) -> None:
    """Scenes, image VAE, and caches of the training and the test clips."""
    clips = {"train_data_dir": root / "scenes"}
    if not (root / "scenes/metadata.jsonl").exists():
        script = [sys.executable, str(ROOT / "runs/prepare_scenes.py"), str(root / "scenes")]
        subprocess.run(
            [*script, "--num_train", "1536", "--num_test", "96", "--num_frames", "8", "--fps", "4", "--size", "32"],
            check=True,
        )
    if not (root / "vae/vae/config.json").exists():
        run("train-vae", **clips, **SIZE, **TRAINING, **VAE, output_dir=root / "vae")
    for split in ("train", "test"):
        if not (root / f"latents-{split}/index.json").exists():
            run(
                "encode", **clips, **SIZE, split=split, num_frames=8, vae=root / "vae/vae", latents_only="true",
                conditions=("sketch", "depth"), output_dir=root / f"latents-{split}",
            )  # fmt: skip


def train_depth_model(root: Path) -> None:
    """A depth-estimation model for these scenes, in transformers' format: a test of depth needs one to extract it."""
    if (root / "depth/config.json").exists():
        return
    cache, vae = open_cache(str(root / "latents-train"), 0.0), load_vae(str(root / "vae/vae"))
    torch.manual_seed(0)
    model = GLPNForDepthEstimation(GLPNConfig(**DEPTH_MODEL)).train()
    steps, frames, size = (int(DEPTH_TRAINING[name]) for name in ("steps", "frames", "size"))
    optimizer = torch.optim.AdamW(model.parameters(), DEPTH_TRAINING["learning_rate"])
    schedule = CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in track(range(steps), "depth model"):
        clips = [cache[int(k)] for k in torch.randint(len(cache), (frames,), generator=generator)]
        picked = torch.randint(len(clips[0]["latents"]), (frames,), generator=generator)
        latents = torch.stack([clip["latents"][k] for clip, k in zip(clips, picked, strict=True)])
        nearness = torch.stack([clip["depth"][k] for clip, k in zip(clips, picked, strict=True)]) / 255
        pictures = interpolate(decode_frames(vae, latents[:, None])[:, 0], size, mode="bilinear")
        distance = interpolate(model(pictures).predicted_depth[:, None], nearness.shape[-2:], mode="area")
        loss = (1 / distance.clamp_min(0.05) - (1 + 9 * nearness)).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with replacing_folder(root / "depth") as folder:
        model.save_pretrained(folder)
        processor = DPTImageProcessor(  # pictures in [-1, 1] at the size that it knows
            size={"height": size, "width": size}, resample=Resampling.BILINEAR,
            image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5],
        )  # fmt: skip
        processor.save_pretrained(folder)


def train(root: Path, steps: int, student_steps: int) -> None:
    """Teacher and student."""
    caches = {"latent_cache": root / "latents-train"}
    if not (root / "teacher/video/model_index.json").exists():
        run(
            "train-video", **caches, **TRAINING, **TEACHER, vae=root / "vae/vae", conditions=CONDITION_NAMES,
            max_train_steps=steps, output_dir=root / "teacher",
        )  # fmt: skip
    last = root / "student" / f"checkpoint-{student_steps:06d}"
    if not last.is_dir():
        run(
            "distill", **caches, **TRAINING, **STUDENT, part="video", eval_latent_cache=root / "latents-test",
            pretrained_model_name_or_path=root / "teacher/video", max_train_steps=student_steps,
            output_dir=root / "student",
        )  # fmt: skip


def follow(root: Path, num_clips: int) -> dict[str, Any]:
    """Samples with each condition by itself, and scores."""
    cache = open_cache(str(root / "latents-test"), 0.0)
    batch = collate_latents([cache[i] for i in range(min(num_clips, len(cache)))])
    pipes = {name: load_video_pipeline(str(root / name / "video")) for name in ("teacher", "student")}
    vae = pipes["teacher"].vae
    real = to_uint8(decode_frames(vae, batch["latents"]))
    depth_model = load_depth_model(str(root / "depth"))
    measures = MEASURES | {
        "depth": (
            "mean error of depth, of its range",
            lambda given, made, real: depth_error(given, made, lambda video: depth_of(video, depth_model)),
        )
    }
    runs = [(f"teacher, {TEACHER_STEPS} steps", "teacher", TEACHER_STEPS, GUIDANCE)]
    runs += [(f"student, {n} step{'s' * (n > 1)}", "student", n, 1.0) for n in (4, 2, 1)]
    table: dict[str, dict[str, Any]] = {}
    rows: list[tuple[str, Tensor]] = []
    free, _ = sample(pipes["teacher"], batch, {}, TEACHER_STEPS, GUIDANCE)
    for names in CASES:
        generator = torch.Generator().manual_seed(0)
        conditions, _ = training_conditions(batch, names, generator, keep_all_prob=1.0, drop_all_prob=0.0)
        given, shown = as_pixels(names[0], batch, conditions, real)
        scores: dict[str, Any] = {}
        # What was given of a mask or a first frame is the true clips' own.
        made = {"true clips": real} if names[0] in MAP_NAMES else {}
        made["teacher without it"] = free
        for title, who, steps, guidance in runs:
            made[title], seconds = sample(pipes[who], batch, conditions, steps, guidance)
            scores[f"{title}, seconds a clip"] = seconds / len(real)
        for title, videos in made.items():
            values = measures[names[0]][1](given, videos, real)
            error = (values.std() / len(values) ** 0.5).item()
            scores[title] = {"mean": values.mean().item(), "standard_error": error}
        case = " + ".join(names)
        table[case] = scores
        pictures = {"given": shown, "true clips": real} | made
        rows += [(f"{case}: {title}", videos[SHOWN]) for title, videos in pictures.items()]
    write_contact_sheet(
        root / "sheet.png",
        [video.permute(0, 2, 3, 1).numpy() for _, video in rows],
        [title for title, _ in rows],
    )
    return {"clips": len(real), "measures": {name: title for name, (title, _) in measures.items()}, "scores": table}


def as_pixels(name: str, batch: dict[str, Any], conditions: dict[str, Tensor], real: Tensor) -> tuple[Tensor, Tensor]:
    """A condition as its measure takes it, and as a picture uint8 (b, t, 3, H, W)."""
    if name in MAP_NAMES:
        return batch[name], batch[name].expand_as(real)
    if name == "first_frame":
        return real[:, :1], torch.cat([real[:, :1], torch.zeros_like(real[:, 1:])], dim=1)
    factor = real.shape[-1] // batch["latents"].shape[-1]  # where a latent is to be made, all its pixels are
    mask = conditions["mask"][:, :, :1].repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    return mask, (real * (mask == 0)).to(torch.uint8)


def sample(
    pipe: VideoLatentPipeline, batch: dict[str, Any], conditions: dict[str, Tensor], steps: int, guidance: float
) -> tuple[Tensor, float]:
    """Videos uint8 (b, t, 3, H, W) for a batch's captions, and seconds in all; the same noise whatever the model."""
    pipe.set_progress_bar_config(disable=True)
    started, videos = perf_counter(), []
    for start in range(0, len(batch["caption"]), 8):
        part = slice(start, start + 8)
        with torch.autocast("cpu", torch.bfloat16):
            output: Any = pipe(
                batch["caption"][part],
                conditions={name: value[part] for name, value in conditions.items()},
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[seeded_generator(0, start + k) for k in range(len(batch["caption"][part]))],
                output_type="pt",
            )
        videos.append((output.frames * 255).round().to(torch.uint8))
    return torch.cat(videos), perf_counter() - started


def main() -> None:
    """Trains, scores, reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/compositional"))
    parser.add_argument("--steps", type=int, default=4500, help="training steps of the teacher (default 4500)")
    parser.add_argument("--student_steps", type=int, default=300, help="steps of distillation (default 300)")
    parser.add_argument("--num_clips", type=int, default=32, help="test clips to sample (default 32)")
    arguments = parser.parse_args()
    root = arguments.output_dir
    prepare(root)
    train_depth_model(root)
    train(root, arguments.steps, arguments.student_steps)
    settings = {
        "size": SIZE,
        "vae": VAE,
        "teacher": TEACHER,
        "student": STUDENT,
        "training": TRAINING,
        "depth_model": DEPTH_TRAINING,
    }
    settings |= {"steps": arguments.steps, "student_steps": arguments.student_steps}
    settings |= {"teacher_sampling": {"num_inference_steps": TEACHER_STEPS, "guidance_scale": GUIDANCE}}
    facts = {"hardware": describe_hardware(torch.device("cpu")), "settings": settings, "seed": 0}
    write_json(root / "following.json", facts | follow(root, arguments.num_clips))
    print(root / "following.json")


if __name__ == "__main__":
    main()
