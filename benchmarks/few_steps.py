"""Few-step students beside their teachers: each objective distilled, scored at 1, 2, 4 and 8 steps, timed, in one run.

    python benchmarks/few_steps.py --data_dir clips --i3d i3d.safetensors --output_dir outputs/few_steps
    python benchmarks/few_steps.py --data_dir clips --i3d i3d.safetensors --output_dir outputs/objectives \\
        --teachers ddpm=outputs/ddpm flow=outputs/flow --latent_cache outputs/cache \\
        --eval_latent_cache outputs/cache-test --objectives consistency flow_map --max_train_steps 2000

The first scores the shipped teacher and its student; the second distils content and motion model of each teacher by
each objective, with the same settings. An objective that a teacher is no teacher for is said and left out. Every row is
`contentmotion evaluate` on the same clips: the same captions, the same initial noise (one generator per clip, from the
seed and its number), the same real features; means over the seeds, with their spread. Seconds are the median of several
clips sampled one by one in turn, from prompt to pixels, by all rows in this process. What is finished is not done
again; few_steps.json has all.
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
from contentmotion.pipelines.folder import INDEX
from contentmotion.pipelines.sampling import resolve_sampling
from contentmotion.run_dir import describe_hardware, resolve_device
from contentmotion.saving import write_json

FEW_STEPS = (1, 2, 4, 8)


def main() -> None:
    """Distils, scores, times, reports."""
    arguments = parse()
    root = arguments.output_dir
    students = dict(word.split("=", 1) for word in arguments.students)
    costs: dict[str, dict[str, Any]] = {}
    for name, teacher in arguments.teachers.items():
        for objective in arguments.objectives:
            title = f"{name}, {objective}"
            costs[title] = distilled(arguments, teacher, objective, root / name / objective)
            if "pipeline" in costs[title]:
                students[title] = costs[title]["pipeline"]
    rows = rows_of(arguments, students)
    report: dict[str, Any] = {}
    protocol: dict[str, Any] = {}
    for title, settings in rows.items():
        folder = root / "scores" / title.replace(", ", "-").replace(" ", "-")
        if not (folder / "scores.json").exists():
            limits = {"num_videos": arguments.num_videos} if arguments.num_videos else {}
            run(
                "evaluate", **settings, **limits, data_dir=arguments.data_dir, components="full", i3d=arguments.i3d,
                batch_size=16, num_seeds=arguments.num_seeds, measures_dir=root / "measures", output_dir=folder,
            )  # fmt: skip
        scores = json.loads((folder / "scores.json").read_text())
        report[title], protocol = {"settings": settings, "scores": scores["parts"]["full"]}, scores["protocol"]
    clip_times(rows, report, arguments.rounds)
    facts = {"hardware": describe_hardware(resolve_device("auto")), "protocol": protocol, "distillation": costs}
    write_json(root / "few_steps.json", facts | {"rows": report})
    print_table(report, costs)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--teachers", nargs="+", default=["teacher=emoji"], help="NAME=FOLDER ... (default: the shipped model)")
    add("--students", nargs="*", default=None, help="NAME=FOLDER ... of students that there are (the shipped one)")
    add("--objectives", nargs="*", default=[], help="by which to distil each teacher")
    add("--latent_cache", help="the teachers' latent cache, to distil with")
    add("--eval_latent_cache", help="of clips that are held out")
    add("--max_train_steps", type=int, default=2000, help="of each distillation (default 2000)")
    add("--train_batch_size", type=int, default=16)
    add("--learning_rate", type=float, default=1e-4)
    add("--num_ddim_steps", type=int, default=10, help="of a consistency model's teacher (default 10)")
    add("--guidance_scale", type=float, default=2.0, help="of the teachers' content models (default 2)")
    add("--guidance_interval", type=float, nargs=2, default=[400.0, 900.0], help="of the teachers' best sampling")
    add("--guidance_rescale", type=float, default=0.0, help="likewise")
    add("--best_steps", type=int, default=50, help="steps of the teachers' best sampling (default 50)")
    add("--teacher_steps", type=int, nargs="*", default=FEW_STEPS, help="few steps of the teachers (default 1 2 4 8)")
    add("--student_steps", type=int, nargs="+", default=FEW_STEPS, help="steps of the students (default 1 2 4 8)")
    add("--data_dir", required=True, help="real clips with captions")
    add("--num_videos", type=int, default=None, help="use only so many of them")
    add("--num_seeds", type=int, default=3)
    add("--i3d", default=os.environ.get("CONTENTMOTION_I3D"), help="I3D weights")
    add("--rounds", type=int, default=5, help="clips to time each row with (default 5)")
    add("--output_dir", type=Path, default=Path("outputs/few_steps"))
    arguments = parser.parse_args()
    if not arguments.i3d or not Path(arguments.i3d).is_file():
        parser.error("needs I3D weights: --i3d FILE or CONTENTMOTION_I3D")
    if arguments.objectives and not arguments.latent_cache:
        parser.error("--objectives need a --latent_cache to distil with")
    if arguments.students is None:
        arguments.students = [] if arguments.objectives else ["student=emoji-lcm"]
    for word in (*arguments.teachers, *arguments.students):
        if "=" not in word:
            parser.error(f"--teachers and --students take NAME=FOLDER, got {word}")
    arguments.teachers = dict(word.split("=", 1) for word in arguments.teachers)
    return arguments


def distilled(arguments: argparse.Namespace, teacher: str, objective: str, folder: Path) -> dict[str, Any]:
    """A pipeline of two students, and the seconds that they took; or why there is none."""
    record = folder / "cost.json"
    if record.exists():
        return json.loads(record.read_text())
    settings: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("latent_cache", "max_train_steps", "train_batch_size", "learning_rate", "num_ddim_steps")
    }
    settings |= {"validation_steps": 0, "report_to": "none", "pretrained_model_name_or_path": teacher}
    if objective == "flow_map":
        del settings["num_ddim_steps"]  # it has no solver
    if arguments.eval_latent_cache and objective != "distribution_matching":
        settings |= {"eval_latent_cache": arguments.eval_latent_cache, "heldout_steps": arguments.max_train_steps // 4}
    guidance = {
        "content": {"guidance_scale": arguments.guidance_scale, "guidance_interval": tuple(arguments.guidance_interval),
                    "guidance_rescale": arguments.guidance_rescale},
        "motion": {"guidance_scale": 1.0},
    }  # fmt: skip
    cost: dict[str, Any] = {}
    for part, guided in guidance.items():
        began = perf_counter()
        try:
            run("distill", part=part, objective=objective, **settings, **guided, output_dir=folder / part)
        except SystemExit:
            return {"refused": f"{objective} does not distil the {part} model of {teacher}"}
        cost[f"{part}_seconds"] = perf_counter() - began
    cost["pipeline"] = str(folder / "pipeline")
    if not (folder / "pipeline" / INDEX).exists():
        # The teacher's autoencoder goes with both.
        run(
            "export", pretrained_model_name_or_path=folder / "content/content", autoencoder=teacher,
            motion_transformer=folder / "motion/motion_transformer", output_dir=folder / "pipeline", dtype="fp32",
        )  # fmt: skip
    write_json(record, cost)
    return cost


def rows_of(arguments: argparse.Namespace, students: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What is scored: the settings of `evaluate` by title."""
    rows: dict[str, dict[str, Any]] = {}
    for name, teacher in arguments.teachers.items():
        plain = {"pretrained_model_name_or_path": teacher, "guidance_scale": arguments.guidance_scale}
        best = {"guidance_interval": tuple(arguments.guidance_interval), "guidance_rescale": arguments.guidance_rescale}
        rows[f"{name}, 50 steps"] = plain | {"num_inference_steps": 50}
        rows[f"{name}, best sampling"] = plain | best | {"num_inference_steps": arguments.best_steps}
        for n in arguments.teacher_steps:
            rows[f"{name}, {n} step{'s' * (n > 1)}"] = plain | {"num_inference_steps": n}
    for name, student in students.items():
        for n in arguments.student_steps:
            settings = {"pretrained_model_name_or_path": student, "num_inference_steps": n, "guidance_scale": 1.0}
            rows[f"{name}, {n} step{'s' * (n > 1)}"] = settings
    return rows


def clip_times(rows: dict[str, dict[str, Any]], report: dict[str, dict[str, Any]], rounds: int) -> None:
    """Adds passes and seconds of one clip; the rows take turns, so that a slow moment of the machine hits them all."""
    loaded = []
    for title, settings in rows.items():
        config = GenerateConfig(**settings, prompt=["a crying cat"])
        pipe = load_for_sampling(config, resolve_device("auto"))
        sampling = resolve_sampling(pipe, **config.sampling())
        report[title]["passes"] = sampling.passes
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


def print_table(report: dict[str, dict[str, Any]], costs: dict[str, dict[str, Any]]) -> None:
    """As Markdown."""
    print("| | FVD | own clip nearest, of captions | optical flow (px) | network passes | seconds a clip |")
    print("|---|---|---|---|---|---|")
    for title, row in report.items():
        scores = row["scores"]
        spread = f" ± {scores['fvd_std']:.0f}" if "fvd_std" in scores else ""
        print(
            f"| {title} | {scores['fvd']:.0f}{spread} | {scores['nearest_pixels']:.1%} | {scores['optical_flow']:.2f} "
            f"| {row['passes']} | {row['seconds']:.2f} |"
        )
    for title, cost in costs.items():
        done = cost.get("refused") or f"{cost['content_seconds']:.0f} + {cost['motion_seconds']:.0f} s of training"
        print(f"\n{title}: {done}")


if __name__ == "__main__":
    main()
