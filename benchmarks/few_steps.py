"""A distilled pipeline at 1, 2, 4 and 8 steps beside its teacher at 50: scores, passes and seconds, in one run.

    python benchmarks/few_steps.py --data_dir clips --i3d i3d_kinetics400_rgb.safetensors --output_dir outputs/few_steps

Every row is `contentmotion evaluate` on the same clips: the same captions, the same initial noise (one generator per
clip, from the seed and its number), the same real features. Seconds are the median of several clips sampled one by one
in turn, from prompt to pixels, by all rows in this process. What is finished is not done again; few_steps.json has all.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from paper_in_miniature import run

from contentmotion.commands.generate import load_for_sampling, sample_all
from contentmotion.config import GenerateConfig
from contentmotion.pipelines.sampling import resolve_sampling
from contentmotion.run_dir import describe_hardware, resolve_device
from contentmotion.saving import write_json

STUDENT_STEPS = (1, 2, 4, 8)


def main() -> None:
    """Scores, times, reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="emoji", help="pipeline folder (default: the shipped model)")
    parser.add_argument("--student", default="emoji-lcm", help="pipeline folder (default: the shipped student)")
    parser.add_argument("--guidance_scale", type=float, default=4.0, help="of the teacher's content model (default 4)")
    parser.add_argument("--data_dir", required=True, help="real clips with captions")
    parser.add_argument("--num_videos", type=int, default=None, help="use only so many of them")
    parser.add_argument("--i3d", default=os.environ.get("CONTENTMOTION_I3D"), help="I3D weights")
    parser.add_argument("--rounds", type=int, default=5, help="clips to time each row with (default 5)")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/few_steps"))
    arguments = parser.parse_args()
    if not arguments.i3d or not Path(arguments.i3d).is_file():
        parser.error("needs I3D weights: --i3d FILE or CONTENTMOTION_I3D")
    root, rows = arguments.output_dir, {}
    rows["teacher, 50 steps"] = {"model": arguments.teacher, "steps": 50, "guidance": arguments.guidance_scale}
    for n in STUDENT_STEPS:
        rows[f"student, {n} step{'s' * (n > 1)}"] = {"model": arguments.student, "steps": n, "guidance": 1.0}
        rows[f"teacher, {n} step{'s' * (n > 1)}"] = rows["teacher, 50 steps"] | {"steps": n}
    report: dict[str, Any] = {}
    for title, row in rows.items():
        folder = root / title.replace(", ", "-").replace(" ", "-")
        if not (folder / "scores.json").exists():
            limits = {"num_videos": arguments.num_videos} if arguments.num_videos else {}
            run(
                "evaluate", pretrained_model_name_or_path=row["model"], data_dir=arguments.data_dir, components="full",
                num_inference_steps=row["steps"], guidance_scale=row["guidance"], i3d=arguments.i3d, batch_size=16,
                cache_dir=root / "measures", output_dir=folder, **limits,
            )  # fmt: skip
        scores = json.loads((folder / "scores.json").read_text())
        report[title] = row | {"scores": scores["parts"]["full"]}
    clip_times(rows, report, arguments.rounds)
    facts = {"hardware": describe_hardware(resolve_device("auto")), "protocol": scores["protocol"]}
    write_json(root / "few_steps.json", facts | {"rows": report})
    print_table(report)


def clip_times(rows: dict[str, dict[str, Any]], report: dict[str, dict[str, Any]], rounds: int) -> None:
    """Adds passes and seconds of one clip; the rows take turns, so that a slow moment of the machine hits them all."""
    loaded = []
    for title, row in rows.items():
        config = GenerateConfig(
            pretrained_model_name_or_path=row["model"], num_inference_steps=row["steps"],
            guidance_scale=row["guidance"], prompt=["a crying cat"],
        )  # fmt: skip
        pipe = load_for_sampling(config, resolve_device("auto"))
        report[title]["passes"] = resolve_sampling(pipe, row["steps"], None, row["guidance"], 1.0).passes
        loaded.append((title, config, pipe))
    seconds: dict[str, list[float]] = {title: [] for title in rows}
    for _ in range(rounds + 1):  # the first is a warm-up
        for title, config, pipe in loaded:
            started = perf_counter()
            list(sample_all(pipe, config, ["a crying cat"], lambda: None, content_frames=False))
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[title].append(perf_counter() - started)
    for title, times in seconds.items():
        report[title] |= {"seconds": median(times[1:]), "slowest": max(times[1:]), "fastest": min(times[1:])}


def print_table(report: dict[str, dict[str, Any]]) -> None:
    """As Markdown."""
    print("| | FVD | own clip nearest, of captions | network passes | seconds a clip |")
    print("|---|---|---|---|---|")
    for title, row in report.items():
        scores = row["scores"]
        print(
            f"| {title} | {scores['fvd']:.0f} | {scores['nearest_pixels']:.1%} | {row['passes']} | "
            f"{row['seconds']:.2f} |"
        )


if __name__ == "__main__":
    main()
