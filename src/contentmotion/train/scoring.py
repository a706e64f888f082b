"""Scores of a model in training, by the code of ``evaluate``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from contentmotion.config import EvaluateConfig, ScheduledEvaluationConfig, TrainConfig
from contentmotion.config.use import Component
from contentmotion.evaluate.i3d import load_i3d
from contentmotion.evaluate.run import open_data, score_pipeline
from contentmotion.evaluate.weights import find_weights
from contentmotion.pipeline_base import LatentPipeline


class ScoredConfig(ScheduledEvaluationConfig, TrainConfig):
    """What a stage that can be scored has."""


def make_scorer(
    pipe: LatentPipeline, config: ScoredConfig, component: Component, run_dir: Path
) -> Callable[[int], dict[str, float]] | None:
    """What ``fit`` calls every ``eval_steps``; None where no scores are wanted.

    Args:
        pipe: With the networks being trained inside.
        config: Of the run.
        component: What of the pipeline to score (see ``evaluate``).
        run_dir: Folder of the run; scores.json and pictures go to eval-N in it.

    Returns:
        ``score(step)``: the component's numbers, by name.

    Raises:
        ValueError: The networks do not fit each other, or the videos cannot be used.
        OSError: No such videos, or no I3D weights.
    """
    if not config.eval_steps:
        return None
    settings = EvaluateConfig(
        data_dir=config.eval_data_dir,
        split=config.eval_split,
        num_videos=config.eval_num_videos,
        num_inference_steps=config.eval_num_inference_steps,
        motion_num_inference_steps=config.eval_num_inference_steps if component == "motion" else None,
        components=(component,),
        i3d=config.i3d,
        seed=config.seed,
        mixed_precision=config.mixed_precision,
        cache_dir=str(run_dir / "eval-parts"),
        **{name: getattr(config, name) for name in ("frame_stride", "fps", "resize_mode") if hasattr(config, name)},
    )
    # What is wrong is said now, not after hours.
    pipe.check_parts()
    load_i3d(find_weights(config.i3d, "i3d"))
    open_data(settings, pipe)

    def score(step: int) -> dict[str, float]:
        source = f"{run_dir.name}, step {step}, averaged weights"
        scores, _ = score_pipeline(pipe, settings, run_dir / f"eval-{step:06d}", source)
        return {name: value for name, value in scores.get("parts", {}).get(component, {}).items() if name != "n"}

    return score
