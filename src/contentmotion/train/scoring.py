"""Scores of a model in training, by the code of ``evaluate``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from contentmotion.config import EvaluateConfig, ScheduledEvaluation, ScoredTrainConfig
from contentmotion.config.use import Component
from contentmotion.evaluate.i3d import load_i3d
from contentmotion.evaluate.run import open_data, score_pipeline
from contentmotion.evaluate.weights import find_weights
from contentmotion.pipelines.base import LatentPipeline
from contentmotion.saving import replacing_folder
from contentmotion.train.best import Best
from contentmotion.train.processes import on_main, this_process

BEST_FOLDER = "best"
SCORE = "fvd"  # which decides what is best, of every component; of students it is `student_score`
LEAST_MOTION = 1e-3  # of the real clips'


class Scorer:
    """What ``fit`` calls every ``eval.steps``. The model with the lowest FVD is kept in ``best`` (see ``Best``).

    Args:
        pipe: With the networks being trained inside.
        config: Of the run.
        component: What of the pipeline to score (see ``evaluate``).
        run_dir: Folder of the run; scores.json and pictures go to eval-N in it.
        save: Writes what is trained into a folder; None: the best is not kept.

    Attributes:
        scored_on: What scores depend on.
        parts: The last scores, as scores.json has them; none in all processes but the first.

    Raises:
        ValueError: The networks do not fit each other, or the videos cannot be used.
        OSError: No such videos, or no I3D weights.
    """

    def __init__(
        self,
        pipe: LatentPipeline,
        config: ScoredTrainConfig,
        component: Component,
        run_dir: Path,
        save: Callable[[Path], None] | None,
    ) -> None:
        self.pipe, self.component, self.run_dir = pipe, component, run_dir
        self.settings = EvaluateConfig(
            **{name: getattr(config.eval, name) for name in ("data_dir", "split", "i3d")},
            num_inference_steps=config.eval.num_inference_steps,
            motion_num_inference_steps=config.eval.num_inference_steps if component == "motion" else None,
            guidance_scale=config.student_guidance if getattr(config, "guidance_range", None) else None,  # type: ignore[attr-defined]
            components=(component,),
            seed=config.seed,
            mixed_precision=config.mixed_precision,
            measures_dir=str(run_dir / "eval-parts"),
            **{name: getattr(config, name) for name in ("frame_stride", "fps", "resize_mode") if hasattr(config, name)},
        )
        # What is wrong is said now, not after hours.
        pipe.check_parts()
        load_i3d(find_weights(config.eval.i3d, "i3d"))
        self.settings = replace(self.settings, num_videos=self._count_videos(config.eval.num_videos))
        names = ("data_dir", "split", "num_videos", "num_inference_steps", "i3d", "seed", "mixed_precision")
        names += ("frame_stride", "fps", "resize_mode")
        self.scored_on: dict[str, Any] = {"component": component} | {
            name: getattr(self.settings, name) for name in names
        }
        if getattr(config, "guidance_range", None):
            self.scored_on["guidance_scale"] = self.settings.guidance_scale
        self.parts: Mapping[str, dict[str, float]] = {}
        self.best: Best | None = None
        if save is not None and this_process().is_main_process:
            self.best = Best(run_dir, run_dir / BEST_FOLDER, partial(write_best, run_dir, save), SCORE, self.scored_on)

    def _count_videos(self, asked: int | None) -> int | None:
        """How many videos to score on: where nobody gave a number, no more than are there."""
        clips, _ = open_data(self.settings, self.pipe)
        there = len(clips.selected)
        if asked is None or asked <= there:
            return asked
        if asked == ScheduledEvaluation.num_videos:
            return there
        raise ValueError(f"{clips.folder.root}: --eval.num_videos {asked}, but {there} are there")

    def __call__(self, step: int) -> dict[str, float]:
        """The component's numbers after a step, by name; none in all processes but the first."""
        source = f"{self.run_dir.name}, step {step}, averaged weights"
        scores, _ = score_pipeline(self.pipe, self.settings, self.run_dir / f"eval-{step:06d}", source)
        self.parts = scores.get("parts", {})
        row = {name: value for name, value in self.parts.get(self.component, {}).items() if name != "n"}
        on_main(lambda: self.best and self.best.offer(step, row[SCORE]))
        return row


def make_scorer(
    pipe: LatentPipeline,
    config: ScoredTrainConfig,
    component: Component,
    run_dir: Path,
    save: Callable[[Path], None] | None = None,
) -> Scorer | None:
    """A ``Scorer`` with these arguments; None where no scores are wanted."""
    return Scorer(pipe, config, component, run_dir, save) if config.eval.steps else None


def write_best(run_dir: Path, save: Callable[[Path], None]) -> None:
    """Writes what is trained into ``best``, whole or not at all."""
    with replacing_folder(run_dir / BEST_FOLDER) as folder:
        save(folder)


def student_score(parts: Mapping[str, dict[str, float]], component: str, **distance: float) -> dict[str, float]:
    """Which student is the best: the one with the lowest score, the product of all that can be told of it.

    Args:
        parts: Of scores.json.
        component: What was scored.
        **distance: "student_error", where there are held-out clips.

    Returns:
        "score": FVD times the distance, times how many times more (or less) it moves than the real clips, over the
        share of captions found again. So half the captions, half or twice the motion, twice the distance and twice the
        FVD are equally bad. Beside it what it is made of, where it is measured.
    """
    row, real = parts[component], parts["real"]
    facts = {"fvd": row["fvd"]} | distance
    score = math.prod(facts.values())
    if real["optical_flow"] > 0:
        facts["flow_ratio"] = row["optical_flow"] / real["optical_flow"]
        moves = max(facts["flow_ratio"], LEAST_MOTION)
        score *= max(moves, 1 / moves)
    if "nearest_pixels" in row:
        facts["nearest_pixels"] = row["nearest_pixels"]
        score /= max(row["nearest_pixels"], 1 / row["n"])
    return {"score": score} | facts
