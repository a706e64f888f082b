"""Training a denoiser, of content, motion or whole videos: one way through the data for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from contentmotion.config import TrainDenoiserConfig
from contentmotion.data.cache import LatentCache, collate_latents
from contentmotion.losses import diffusion
from contentmotion.models.video_unet import enable_checkpointing
from contentmotion.pipelines.base import LatentPipeline
from contentmotion.pipelines.saving import FOLDERS, save_stage
from contentmotion.stages.lora import freeze_all_but, merge_adapters, save_adapters
from contentmotion.stages.stage import Stage
from contentmotion.train.loop import fit
from contentmotion.train.previews import make_previews
from contentmotion.train.processes import on_main, this_process
from contentmotion.train.scoring import Scorer
from contentmotion.video.write import write_contact_sheet

PREVIEW_STEPS = 25


def train_denoiser(
    config: TrainDenoiserConfig,
    cache: LatentCache,
    stage: Stage,
    pipe: LatentPipeline,
    *,
    scored: LatentPipeline | None = None,
    prompts: Sequence[str] = (),
) -> None:
    """Trains what requires a gradient in a stage; its folder in ``output_dir`` is the result.

    Args:
        config: Of the run, whose ``output_dir`` is there.
        cache: Latents to train on.
        stage: Its networks are changed in place.
        pipe: A pipeline with the stage inside, for previews.
        scored: Another one, for scores, where these want more components; ``pipe`` when None.
        prompts: What previews show; captions of the cache when empty.

    Raises:
        ValueError: Settings of flow matching, of a model that is none.
    """
    if not stage.schedule.is_flow and (config.logit_mean, config.logit_std) != (0.0, 1.0):
        raise ValueError(
            f"logit_mean and logit_std are flow matching's: {config.pretrained_model_name_or_path} is a model of "
            f"another kind ({stage.schedule.prediction_type})"
        )
    run_dir = Path(config.output_dir)
    freeze_all_but(stage, config.trainable_modules)
    if config.gradient_checkpointing:
        enable_checkpointing(stage.network)

    def preview(step: int) -> None:
        pipe.to(stage.network.device)
        previews = make_previews(pipe, cache, prompts, config.seed, num_inference_steps=PREVIEW_STEPS)
        write_contact_sheet(run_dir / f"preview-{step:06d}.png", *previews)

    def save(folder: Path) -> None:
        save_trained(stage, folder)

    component = {"content": "content", "motion": "motion", "video": "full"}[stage.name]
    score = Scorer(scored or pipe, config, component, run_dir, save) if config.eval.steps else None
    fit(
        diffusion.players(stage, config), cache, config, collate=collate_latents, save=lambda: save(run_dir),
        command=f"train-{stage.name}", at=[(config.validation_steps, main_only(preview)), (config.eval.steps, score)],
    )  # fmt: skip
    if this_process().is_main_process:
        print(run_dir / FOLDERS[stage.name])


def save_trained(stage: Stage, folder: Path) -> None:
    """Writes a stage into its place in a folder; adapters are merged there, and alone in ``lora`` where diffusers has a
    format for them."""
    if hasattr(stage.network, "peft_config"):
        if stage.name == "content":
            save_adapters(stage, folder / "lora")
        stage = stage.replace(**{stage.network_name: merge_adapters(stage.network)})
    save_stage(stage, folder / FOLDERS[stage.name])


def main_only(function: Callable[[int], None]) -> Callable[[int], None]:
    """What is scheduled for all processes, done by the first; the others wait."""
    return lambda step: on_main(lambda: function(step))
