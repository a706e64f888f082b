"""What each switch of sampling is worth: the same clips as `generate` makes them, and with one thing changed.

    python benchmarks/switches.py --output_dir outputs/switches
    python benchmarks/switches.py --model emoji --num_inference_steps 50 --guidance_scale 4

Variants take turns, so that a slow moment of the machine hits them all; seconds are medians over the rounds, of one
clip by itself (prompt to pixels, networks loaded) and, per clip, of many in batches. switches.json has all.
tests/test_speed.py holds that the clips stay the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from contentmotion.commands.generate import load_for_sampling, sample, sample_all
from contentmotion.config import GenerateConfig
from contentmotion.pipelines.speed import use_channels_last
from contentmotion.run_dir import describe_hardware, prepare_output_dir, resolve_device
from contentmotion.saving import write_json


@dataclass
class Variant:
    """One way to sample.

    Attributes:
        title: Row of the table.
        settings: What differs from the plain settings.
        prepare: Called with the loaded pipeline.
        content_frames: Whether content frames are decoded, too.
        side_by_side: Whether batches may be drawn at once.
    """

    title: str
    settings: dict[str, Any]
    prepare: Callable[[Any], object] = lambda pipe: None
    content_frames: bool = False
    side_by_side: bool = True


VARIANTS = [
    Variant("as `generate` has it", {}),
    Variant("one batch after the other", {}, side_by_side=False),
    Variant("without the text cache", {}, prepare=lambda pipe: setattr(pipe, "_text_features", None)),
    Variant("content frames decoded, too", {}, content_frames=True),
    Variant("float32", {"mixed_precision": "no"}),
    Variant("channels-last", {}, prepare=use_channels_last),
    Variant("--vae_slicing", {"vae_slicing": True}),
    Variant("--compile", {"compile": True}),
]


def main() -> None:
    """Times, reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji-lcm", help="pipeline folder (default: the shipped student)")
    parser.add_argument("--num_inference_steps", type=int, default=4)
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--num_videos", type=int, default=16, help="of the many (default 16)")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/switches"))
    arguments = parser.parse_args()
    plain = GenerateConfig(
        prompt=["a crying cat"] * arguments.num_videos, pretrained_model_name_or_path=arguments.model,
        num_inference_steps=arguments.num_inference_steps, guidance_scale=arguments.guidance_scale,
        batch_size=arguments.batch_size,
    )  # fmt: skip
    device = resolve_device("auto")
    prepare_output_dir(str(arguments.output_dir), "switches", plain)
    loaded = []
    for variant in VARIANTS:
        config = replace(plain, **variant.settings)
        pipe = load_for_sampling(config, device)
        variant.prepare(pipe)
        loaded.append((variant, config, pipe))
    one: dict[str, list[float]] = {variant.title: [] for variant in VARIANTS}
    many: dict[str, list[float]] = {variant.title: [] for variant in VARIANTS}
    for _ in range(arguments.rounds + 1):  # the first is a warm-up
        for variant, config, pipe in loaded:
            one[variant.title].append(clock(variant, config, pipe, 1))
            many[variant.title].append(clock(variant, config, pipe, arguments.num_videos))
    count = arguments.num_videos
    rows = {t: {"one_clip_s": one[t][1:], "of_many_s": [seconds / count for seconds in many[t][1:]]} for t in one}
    facts = {"hardware": describe_hardware(device), "settings": {k: str(v) for k, v in vars(arguments).items()}}
    facts["settings"].pop("output_dir")
    write_json(arguments.output_dir / "switches.json", facts | {"rows": rows})
    print(f"| {arguments.model}, {arguments.num_inference_steps} steps each | one clip (s) | each of many (s) |")
    print("|---|---|---|")
    for title, row in rows.items():
        print(f"| {title} | {median(row['one_clip_s']):.3f} | {median(row['of_many_s']):.3f} |")


def clock(variant: Variant, config: GenerateConfig, pipe: Any, count: int) -> float:
    """Seconds of so many clips."""
    assert config.prompt is not None
    prompts, started = config.prompt[:count], perf_counter()
    if variant.side_by_side:
        list(sample_all(pipe, config, prompts, lambda: None, content_frames=variant.content_frames))
    else:
        for start in range(0, count, config.batch_size):
            batch = prompts[start : start + config.batch_size]
            sample(pipe, config, batch, start, lambda step, latents: None, content_frames=variant.content_frames)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter() - started


if __name__ == "__main__":
    main()
