"""Command ``distill``: a model that samples in 1 to 8 steps, from one that needs 50 (VideoLCM section 3.2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import nn

from contentmotion.config import DistillConfig
from contentmotion.data.cache import LatentCache, collate_latents, open_cache
from contentmotion.data.conditions import require_conditions
from contentmotion.loading import SCHEDULERS, require_checkpoints, resolve_name
from contentmotion.losses import consistency, distribution_matching, flow_map
from contentmotion.models.video_unet import enable_checkpointing, without_dropout
from contentmotion.pipelines.base import LatentPipeline
from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.pipelines.folder import INDEX, not_a_pipeline
from contentmotion.pipelines.loading import is_video_model, load_pipeline, load_video_pipeline
from contentmotion.pipelines.sampling import is_distilled
from contentmotion.pipelines.saving import FOLDERS
from contentmotion.run_dir import make_output_dir
from contentmotion.stages.content import content_stage, load_content
from contentmotion.stages.lora import add_adapters
from contentmotion.stages.motion import MotionStage
from contentmotion.stages.stage import Stage
from contentmotion.stages.video import VideoStage
from contentmotion.train.denoiser import main_only, make_previews, save_trained
from contentmotion.train.held_out import Alarms, HeldOut, what_scores_depend_on
from contentmotion.train.loop import fit
from contentmotion.train.processes import on_main, this_process
from contentmotion.train.scoring import BEST, Best, Scorer, best_beside, student_score
from contentmotion.video.write import write_contact_sheet

# Steps of the teacher and of the student in previews.
TEACHER_STEPS, STUDENT_STEPS = 50, (1, 2, 4, 8)
OBJECTIVES: dict[str, Any] = {
    "consistency": consistency, "flow_map": flow_map, "distribution_matching": distribution_matching,
}  # fmt: skip


def distill(config: DistillConfig) -> None:
    """Distils a model of a pipeline into a folder of ``output_dir``, with a scheduler of few steps.

    The result is the last student, or with held-out clips the best one, which ``best.json`` then names; without them
    ``eval.steps`` keeps the best one beside it. ``student_score`` says which it is, or without ``eval.steps`` the
    distance to the teacher.

    Raises:
        ValueError: A part is missing, or a cache does not fit the teacher.
    """
    require_checkpoints(pretrained_model_name_or_path=config.pretrained_model_name_or_path)
    run_dir = make_output_dir(config.output_dir)
    pipe = open_teacher(config)
    pipe.set_progress_bar_config(disable=True)
    teacher = teacher_stage(pipe, config)
    objective = OBJECTIVES[config.objective]
    what = f"{config.pretrained_model_name_or_path}: its {config.part} model"
    objective.require_teacher(teacher, what, config.num_ddim_steps)
    require_previews(pipe, config)
    cache, unseen = open_caches(config, teacher)
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(False).to(this_process().device)
    student = make_student(teacher, config)
    player, *others = objective.players(student, teacher, config)
    is_main = this_process().is_main_process

    save = partial(save_trained, student)
    scored = type(pipe)(**student.components)
    # Captions can be found again in whole videos alone; a motion model's true content frames would tell them.
    whole_videos = config.part == "video" or config.part == "content" and scored.components.get("motion_transformer")
    component = "full" if whole_videos else config.part
    guidance_scale = config.student_guidance if config.guidance_range else None
    scorer = Scorer(scored, config, component, guidance_scale=guidance_scale) if config.eval.steps else None
    best: Best | None = None  # of the first process, as what follows
    held_out: HeldOut | None = None

    def open_scores() -> None:
        nonlocal best, held_out
        best = keep_best(save, unseen, scorer, config)
        held_out = None if unseen is None else HeldOut(player, teacher, unseen, config)

    on_main(open_scores)

    def score_held_out(step: int) -> dict[str, float]:
        scores: dict[str, float] = {}

        def score() -> None:
            assert best is not None and held_out is not None
            scores.update(held_out.score())
            if scorer is None:
                best.offer(step, scores["student_error"])

        on_main(score)
        return scores

    def score_samples(step: int) -> dict[str, float]:
        assert scorer is not None
        row = scorer(step)

        def offer() -> None:
            assert best is not None and scorer is not None
            distance = {} if held_out is None else {"student_error": held_out.student_error()}
            best.offer(step, **student_score(scorer.parts, component, **distance))

        on_main(offer)
        return row

    preview = partial(compare_steps, teacher, student, type(pipe), cache, config)
    heldout_steps = 0 if unseen is None else config.heldout_steps or config.validation_steps
    fit(
        [replace(player, watch=Alarms().watch) if is_main else player, *others], cache, config, collate=collate_latents,
        save=None if unseen is not None else partial(save, run_dir), command="distill",
        at=[
            (config.validation_steps, main_only(preview)),
            (heldout_steps, score_held_out),
            (config.eval.steps, score_samples),
        ],
    )  # fmt: skip
    if is_main:
        if unseen is None and scorer is None:
            (run_dir / BEST).unlink(missing_ok=True)
        print(run_dir / FOLDERS[config.part])


def require_previews(pipe: Any, config: DistillConfig) -> None:
    """Raises ``ValueError`` where previews could not sample the teacher with its guidance."""
    if config.part == "content" and config.validation_steps:
        try:
            pipe.image_pipeline_for({}, "", 0.0, None, config.guidance_rescale, config.guidance_interval)
        except ValueError as error:
            raise ValueError(f"{error}; --validation_steps 0 trains without its previews") from error


def keep_best(
    save: Callable[[Path], None], unseen: LatentCache | None, scorer: Scorer | None, config: DistillConfig
) -> Best | None:
    """The keeper of the best student: with held-out clips of the result, with ``eval.steps`` alone beside it."""
    run_dir = Path(config.output_dir)
    scored_on: dict[str, Any] = {} if scorer is None else scorer.scored_on
    if unseen is None:
        return scorer and best_beside(run_dir, save, "score", scored_on)
    scored_on = scored_on | what_scores_depend_on(unseen, config)
    name = "student_error" if scorer is None else "score"
    return Best(run_dir, run_dir / FOLDERS[config.part], partial(save, run_dir), name, scored_on)


def open_teacher(config: DistillConfig) -> Any:
    """The teacher's pipeline: whole, or for the content model its half, a Stable Diffusion folder or hub id.

    Raises:
        ValueError: There is none.
    """
    name = config.pretrained_model_name_or_path
    if config.part == "video":
        return load_video_pipeline(name)
    if config.part == "motion":
        return load_pipeline(name)
    path = resolve_name(name)
    if Path(path).is_dir() and not (Path(path) / INDEX).exists():
        raise ValueError(not_a_pipeline(name, Path(path)))
    if is_video_model(name):
        raise ValueError(f"{name} is a video model: give --part video")
    index = ContentMotionPipeline.load_config(path)
    if index.get("autoencoder", [None, None])[0] is not None:
        return load_pipeline(name)
    if config.eval.steps:
        raise ValueError(f"eval.steps needs an autoencoder, and {name} has none: give a whole pipeline (export)")
    components = load_content(name).components
    kinds = {kind.__name__: kind for kind in SCHEDULERS}
    own = kinds.get(index.get("scheduler", [None, None])[1], DDIMScheduler)()
    if is_distilled(own):
        components["scheduler"] = own  # what it is, and no teacher
    return ContentMotionPipeline(**components)


def teacher_stage(pipe: Any, config: DistillConfig) -> Stage:
    """The stage of a pipeline that a config distils, with what its training draws of conditions."""
    if config.part == "motion":
        return MotionStage(pipe.components, config.content_noise)
    if config.part == "video":
        return VideoStage(pipe.components, config.condition_dropout_prob)
    return content_stage(pipe.components)


def open_caches(config: DistillConfig, teacher: Stage) -> tuple[LatentCache, LatentCache | None]:
    """The clips to train on and the held-out ones. A video teacher's config is told their size.

    Raises:
        ValueError: A cache is missing, or does not fit the teacher or the other one.
    """
    cache = open_cache(config.latent_cache, config.max_bad_fraction)
    check_cache(cache, teacher)
    if isinstance(teacher, VideoStage):
        teacher.fit_to(cache.shapes("latents")[0], cache.frame_rate)
    if config.eval_latent_cache is None:
        return cache, None
    if Path(config.eval_latent_cache).resolve() == Path(config.latent_cache).resolve():
        raise ValueError("eval_latent_cache is latent_cache: held-out clips are clips that are not trained on")
    unseen = open_cache(config.eval_latent_cache, config.max_bad_fraction)
    check_cache(unseen, teacher)
    trained = cache.shapes(teacher.field)
    for shape in unseen.shapes(teacher.field):
        if shape not in trained:
            raise ValueError(
                f"{config.eval_latent_cache} holds clips of another size than {config.latent_cache}: {teacher.field} "
                f"of {shape}, not {' or '.join(map(str, trained))}"
            )
    return cache, unseen


def check_cache(cache: LatentCache, teacher: Stage) -> None:
    """Raises ``ValueError`` where a cache does not fit the teacher."""
    # A Stable Diffusion folder does not say which autoencoder its content frames are of; without a VAE it is one of
    # pixels.
    makers = {name: teacher.components.get(name) for name in teacher.made_with}
    cache.require_made_with(**{k: v for k, v in makers.items() if v is not None or k == "vae"})
    if teacher.field not in cache[0]:
        raise ValueError(f"the latent cache {cache.cache_dir} holds no {teacher.field}, which is what is distilled")
    if isinstance(teacher, VideoStage):
        require_conditions(teacher.condition_names, list(cache[0]))
    cache.use_text_features(teacher.components, teacher.reader.text_family)


def make_student(teacher: Stage, config: DistillConfig) -> Stage:
    """A stage that starts as the teacher, to be trained; with LoRA it shares all weights but the adapters."""
    scheduler = OBJECTIVES[config.objective].student_scheduler(teacher.scheduler, config.num_ddim_steps)
    shared: dict[int, Any] = {}
    if config.lora.rank:
        torch.manual_seed(config.seed)
        shared = {id(p): p for p in teacher.network.parameters()}
    network: Any = told(copy.deepcopy(teacher.network, shared), teacher, config)
    trained = {teacher.network_name: network}
    if config.lora.rank:
        add_adapters(network, config.lora.rank, config.lora.alpha, config.lora.target_modules or teacher.lora_targets)
    else:
        besides = {name: teacher.components.get(name) for name in teacher.besides}
        trained |= {name: copy.deepcopy(part) for name, part in besides.items() if part is not None}
        for part in trained.values():
            part.requires_grad_(True)
    without_dropout(network)
    if config.gradient_checkpointing:
        enable_checkpointing(network)
    return teacher.replace(**trained, **{teacher.scheduler_name: scheduler})


def told(network: nn.Module, teacher: Stage, config: DistillConfig) -> nn.Module:
    """The student's network, of a copy of its teacher's: with what a student is told that its teacher is not."""
    if config.objective == "flow_map":
        return teacher.telling_target(network)
    if config.guidance_range is None:
        return network
    network = teacher.telling_guidance(network)
    # An entry with "_" is kept by diffusers' classes, which warn of others that they do not know.
    network.register_to_config(_guidance_range=list(config.guidance_range))  # type: ignore[operator]
    return network


def compare_steps(
    teacher: Stage, student: Stage, pipeline: type[LatentPipeline], cache: LatentCache, config: DistillConfig, step: int
) -> None:
    """The preview: the same prompts and noise, by the teacher at 50 steps and the student at 1, 2, 4 and 8.

    Videos have a row each; single pictures stand side by side, a row for each prompt.
    """
    # Previews of a content model are content frames.
    hidden = ("autoencoder", "motion_transformer", "motion_scheduler") if teacher.name == "content" else ()
    prefix = "motion_" if teacher.name == "motion" else ""

    def make(stage: Stage, steps: int, guidance: Mapping[str, Any]) -> tuple[list[np.ndarray], list[str]]:
        pipe: Any = pipeline(**(stage.components | dict.fromkeys(hidden)))
        sampling = {f"{prefix}{name}": value for name, value in {"num_inference_steps": steps, **guidance}.items()}
        return make_previews(pipe, cache, config.validation_prompts, config.seed, **sampling)

    path = Path(config.output_dir) / f"preview-{step:06d}.png"
    teachers, captions = make(teacher, TEACHER_STEPS, config.guidance)
    own = {"guidance_scale": config.student_guidance}
    runs = [(f"teacher, {TEACHER_STEPS} steps", teachers)]
    runs += [(f"student, {n} step{'s' * (n > 1)}", make(student, n, own)[0]) for n in STUDENT_STEPS]
    if len(teachers[0]) == 1:
        order = f"teacher, {TEACHER_STEPS} steps | student, {', '.join(map(str, STUDENT_STEPS))} steps"
        rows = [np.concatenate([videos[i] for _, videos in runs]) for i in range(len(captions))]
        write_contact_sheet(path, rows, [f"{caption}: {order}" for caption in captions])
        return
    rows = [videos[i] for i in range(len(captions)) for _, videos in runs]
    write_contact_sheet(path, rows, [f"{caption}: {who}" for caption in captions for who, _ in runs])
