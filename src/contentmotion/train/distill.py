"""Command ``distill``: a model that samples in 1 to 8 steps, from one that needs 50 (VideoLCM section 3.2)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, LCMScheduler
from torch import Tensor, nn

from contentmotion.config import DistillConfig
from contentmotion.data.cache import LatentCache, collate_latents, open_cache
from contentmotion.losses.consistency import consistency_loss, make_lcm_scheduler, require_teacher
from contentmotion.models.video_unet import enable_checkpointing
from contentmotion.pipelines.loading import require_checkpoints
from contentmotion.run_dir import prepare_output_dir
from contentmotion.train.best import BEST, Best
from contentmotion.train.denoiser import use_plain_attention
from contentmotion.train.distill_parts import PARTS, Part
from contentmotion.train.held_out import Alarms, HeldOut, what_scores_depend_on
from contentmotion.train.loop import Batch, Player, Scheduled, fit
from contentmotion.train.lora import add_adapters, merge_adapters, share_weights
from contentmotion.train.processes import is_on_cpu, on_main, this_process
from contentmotion.train.scoring import make_scorer
from contentmotion.video.write import write_contact_sheet

PREVIEW_STEPS = (1, 2, 4, 8)


def distill(config: DistillConfig) -> None:
    """Distils a model of a pipeline (see ``PARTS``) into a folder of ``output_dir``, with an LCMScheduler.

    The result is the last student, or with held-out clips the best one, which ``best.json`` then names.

    Raises:
        ValueError: A part is missing, or a cache does not fit the teacher.
    """
    if config.dry_run:
        from contentmotion.cost.plan import print_plan  # it knows all commands

        return print_plan(config)
    require_checkpoints(pretrained_model_name_or_path=config.pretrained_model_name_or_path)
    run_dir, part = prepare_output_dir(config.output_dir, "distill", config), PARTS[config.part]
    teacher: Any = part.open_teacher(config)
    teacher.set_progress_bar_config(disable=True)
    what = f"{config.pretrained_model_name_or_path}: its {config.part} model"
    scheduler = require_teacher(getattr(teacher, part.scheduler), what, config.num_ddim_steps)
    cache, unseen = open_caches(config, part, teacher)
    part.fit(teacher, cache)
    device = this_process().device
    for component in teacher.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(False).to(device)
    lcm = make_lcm_scheduler(scheduler, config.num_ddim_steps)
    roles = make_roles(teacher, part, config, lcm)
    denoisers = {role: part.wrap(components) for role, components in roles.items()}
    if is_on_cpu():
        use_plain_attention(denoisers["student"])
    alarms, folder = Alarms(), run_dir / part.folder
    is_main = this_process().is_main_process

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        batch = part.prepare(teacher, batch, config)
        x0 = part.clean_sample(teacher, batch)
        losses = consistency_loss(
            model, denoisers["target"], denoisers["teacher"], batch, x0, scheduler, config, part.time_axis
        )
        if is_main:
            alarms.watch(batch["step"], losses)
        return losses

    def preview(step: int) -> None:
        compare_steps(part, roles, type(teacher), cache, config, run_dir / f"preview-{step:06d}.png")

    def save(folder: Path = run_dir) -> None:
        save_student(part, roles["student"], type(teacher), folder)

    student = type(teacher)(**roles["student"])
    score = make_scorer(student, config, part.component, run_dir, save if unseen is None else None)
    best = None
    if unseen is not None and is_main:
        best = Best(run_dir, folder, save, "student_error", what_scores_depend_on(unseen, config))
    held_out = HeldOut(part, teacher, denoisers, unseen, scheduler, lcm, config) if best is not None else None

    def score_held_out(step: int) -> dict[str, float]:
        if held_out is None or best is None:
            return {}
        scores = held_out.score()
        best.offer(step, scores["student_error"])
        return scores

    at: list[Scheduled] = [
        (config.validation_steps, lambda step: on_main(lambda: preview(step))),
        (heldout_schedule(config), score_held_out),
    ]
    at += [(config.eval.steps, score)] if score else []
    player = Player(denoisers["student"], loss, target=denoisers["target"])
    fit([player], cache, config, collate=collate_latents, at=at, save=save if unseen is None else None)
    if is_main:
        if unseen is None and score is None:
            (run_dir / BEST).unlink(missing_ok=True)
        print(folder)


def heldout_schedule(config: DistillConfig) -> int:
    """Steps between two scores on the held-out clips; 0 without any."""
    return (config.heldout_steps or config.validation_steps) if config.eval_cache_dir else 0


def open_caches(config: DistillConfig, part: Part, teacher: Any) -> tuple[LatentCache, LatentCache | None]:
    """The clips to train on and the held-out ones.

    Raises:
        ValueError: A cache is missing, or does not fit the teacher or the other one.
    """
    cache = open_cache(config.cache_dir, config.max_bad_fraction)
    part.check_cache(cache, teacher)
    if config.eval_cache_dir is None:
        return cache, None
    if Path(config.eval_cache_dir).resolve() == Path(config.cache_dir).resolve():
        raise ValueError("eval_cache_dir is cache_dir: held-out clips are clips that are not trained on")
    unseen = open_cache(config.eval_cache_dir, config.max_bad_fraction)
    part.check_cache(unseen, teacher)
    trained = cache.shapes(part.field)
    for shape in unseen.shapes(part.field):
        if shape not in trained:
            raise ValueError(
                f"{config.eval_cache_dir} holds clips of another size than {config.cache_dir}: {part.field} of "
                f"{shape}, not {' or '.join(map(str, trained))}"
            )
    return cache, unseen


def make_roles(teacher: Any, part: Part, config: DistillConfig, lcm: LCMScheduler) -> dict[str, dict[str, Any]]:
    """Components of the pipelines of the "student", its average (the "target") and the "teacher".

    With LoRA the three share all weights but the adapters.
    """
    everything: dict[str, Any] = teacher.components
    if config.lora.rank:
        torch.manual_seed(config.seed)
        network = share_weights(everything[part.network])
        add_adapters(network, config.lora.rank, config.lora.alpha, config.lora.target_modules or part.lora_targets)
        own, averages = {part.network: network}, {part.network: share_weights(network)}
    else:
        names = [name for name in (part.network, *part.besides) if everything[name] is not None]
        own = {name: copy.deepcopy(everything[name]).requires_grad_(True) for name in names}
        averages = {name: copy.deepcopy(everything[name]) for name in names}
    if config.gradient_checkpointing:
        enable_checkpointing(own[part.network])
    return {
        "student": everything | own | {part.scheduler: lcm},
        "target": everything | averages,
        "teacher": everything,
    }


def save_student(part: Part, components: dict[str, Any], pipeline: type[DiffusionPipeline], run_dir: Path) -> None:
    """Writes the student's folder, and with LoRA the adapters alone to ``lora`` where a format for them exists."""
    network = components[part.network]
    if hasattr(network, "peft_config"):
        if part.save_adapters is not None:
            part.save_adapters(network, components[part.scheduler], run_dir / "lora")
        components = components | {part.network: merge_adapters(network)}
    part.save(pipeline(**components), run_dir / part.folder)


def compare_steps(
    part: Part,
    roles: dict[str, dict[str, Any]],
    pipeline: type[DiffusionPipeline],
    cache: LatentCache,
    config: DistillConfig,
    path: Path,
) -> None:
    """A contact sheet: the same prompts and noise, by the teacher at 50 steps and the student at 1, 2, 4 and 8.

    Videos have a row each; single pictures stand side by side, a row for each prompt.
    """
    without = dict.fromkeys(part.hidden)
    reference, student = (pipeline(**(roles[role] | without)) for role in ("teacher", "student"))

    def make(pipe: DiffusionPipeline, steps: int, guidance: float) -> tuple[list[np.ndarray], list[str]]:
        sampling = {part.steps: steps, part.guidance: guidance}
        return part.previews(pipe, cache, config.validation_prompts, config.seed, **sampling)

    teachers, captions = make(reference, 50, config.guidance_scale)
    runs = [("teacher, 50 steps", teachers)]
    runs += [(f"student, {n} step{'s' * (n > 1)}", make(student, n, 1.0)[0]) for n in PREVIEW_STEPS]
    if len(teachers[0]) == 1:
        order = f"teacher, 50 steps | student, {', '.join(map(str, PREVIEW_STEPS))} steps"
        rows = [np.concatenate([videos[i] for _, videos in runs]) for i in range(len(captions))]
        return write_contact_sheet(path, rows, [f"{caption}: {order}" for caption in captions])
    rows = [videos[i] for i in range(len(captions)) for _, videos in runs]
    write_contact_sheet(path, rows, [f"{caption}: {who}" for caption in captions for who, _ in runs])
