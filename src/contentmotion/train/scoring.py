"""Scores of a model in training, by the code of ``evaluate``; the best model of a run, kept beside the last one."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from contentmotion.config import EvaluateConfig, ScheduledEvaluation, ScoredTrainConfig
from contentmotion.config.use import Component
from contentmotion.evaluate.i3d import load_i3d
from contentmotion.evaluate.run import open_data, score_pipeline
from contentmotion.pipelines.base import LatentPipeline
from contentmotion.run_dir import reason_of
from contentmotion.saving import read_json, replacing_folder, restore_folder, write_json
from contentmotion.train.checkpoints import latest_checkpoint, what_is_kept
from contentmotion.train.processes import on_main, this_process

BEST = "best.json"  # in a run's folder
SCORE = "fvd"  # which decides what is best, of every component; of students it is `student_score`
LEAST_MOTION = 1e-3  # of the real clips'


class Best:
    """Keeps the model with the lowest score, and ``best.json``, which names its step and its score.

    A run that is resumed repeats the scores of the steps that it repeats, so the best stays the best. One that goes on
    with other settings competes with the best of before. Of several processes only the first has one.

    Args:
        run_dir: Folder of the run.
        folder: Where the model goes.
        save: Writes it there, whole or not at all.
        name: The score's name.
        scored_on: What scores depend on: with anything else, they start anew.
    """

    def __init__(
        self, run_dir: Path, folder: Path, save: Callable[[], None], name: str, scored_on: Mapping[str, Any]
    ) -> None:
        self.path, self.folder, self.save = run_dir / BEST, folder, save
        self.name, self.scored_on = name, dict(scored_on)
        self.record: dict[str, Any] = {}
        restore_folder(folder)
        if self.path.exists():
            try:
                record = read_json(self.path)
            except ValueError:  # not ours
                record = {}
            begun = latest_checkpoint(run_dir) is not None and folder.is_dir()
            if begun and name in record and record.get("scored_on") == self.scored_on:
                self.record = record
            elif begun:
                print(f"{self.path}: scored on other clips or settings than now; the best starts anew", file=sys.stderr)

    def offer(self, step: int, score: float, **beside: float) -> None:
        """Takes note of a score, and of numbers beside it; saves the model if it is the best so far.

        Raises:
            OSError: It could not be written; what was there before is still there.
        """
        last = {"step": step, self.name: score} | beside
        best = {k: v for k, v in self.record.items() if k not in ("last", "scored_on")} or None
        if best is None or score < best[self.name] or math.isnan(best[self.name]):
            try:
                self.save()  # before the record: killed in between, the step is scored again
            except Exception as error:  # a full disk is an error of the system, or of safetensors
                kept = what_is_kept(self.path.parent)
                raise OSError(f"{self.folder} could not be written: {reason_of(error)}; {kept}") from error
            best = last
        self.record = {**best, "last": last, "scored_on": self.scored_on}
        write_json(self.path, self.record)


def best_beside(run_dir: Path, save: Callable[[Path], None], name: str, scored_on: Mapping[str, Any]) -> Best:
    """Keeps the best model in ``best``, beside the last one; ``save`` writes what is trained into a folder."""

    def write() -> None:
        with replacing_folder(run_dir / "best") as folder:
            save(folder)

    return Best(run_dir, run_dir / "best", write, name, scored_on)


class Scorer:
    """What ``fit`` calls every ``eval.steps``. The model with the lowest FVD is kept in ``best`` (see ``Best``).

    Args:
        pipe: With the networks being trained inside.
        config: Of the run; scores.json and pictures go to eval-N in its folder.
        component: What of the pipeline to score (see ``evaluate``).
        save: Writes what is trained into a folder; None: the best is not kept.
        guidance_scale: To sample with; the pipeline's when None.

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
        save: Callable[[Path], None] | None = None,
        guidance_scale: float | None = None,
    ) -> None:
        self.pipe, self.component, self.run_dir = pipe, component, Path(config.output_dir)
        self.settings = EvaluateConfig(
            **{name: getattr(config.eval, name) for name in ("data_dir", "split", "i3d")},
            num_inference_steps=config.eval.num_inference_steps,
            motion_num_inference_steps=config.eval.num_inference_steps if component == "motion" else None,
            guidance_scale=guidance_scale,
            components=(component,),
            seed=config.seed,
            mixed_precision=config.mixed_precision,
            measures_dir=str(self.run_dir / "eval-parts"),
            **{name: getattr(config, name) for name in ("frame_stride", "fps", "resize_mode") if hasattr(config, name)},
        )
        # What is wrong is said now, not after hours.
        pipe.check_parts()
        load_i3d(config.eval.i3d)
        self.settings = replace(self.settings, num_videos=self._count_videos(config.eval.num_videos))
        names = ("data_dir", "split", "num_videos", "num_inference_steps", "i3d", "seed", "mixed_precision")
        names += ("frame_stride", "fps", "resize_mode")
        self.scored_on: dict[str, Any] = {name: getattr(self.settings, name) for name in names}
        self.scored_on["component"] = component
        if guidance_scale is not None:
            self.scored_on["guidance_scale"] = guidance_scale
        self.parts: Mapping[str, dict[str, float]] = {}
        self.best: Best | None = None
        if save is not None and this_process().is_main_process:
            self.best = best_beside(self.run_dir, save, SCORE, self.scored_on)

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
