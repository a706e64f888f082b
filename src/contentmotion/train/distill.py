"""Command ``distill``: a model that samples in 1 to 8 steps, from one that needs 50 (VideoLCM section 3.2)."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor, nn

from contentmotion import diffusion
from contentmotion.config import DistillConfig
from contentmotion.data.cache import LatentCache, collate_latents, open_cache
from contentmotion.denoisers import ContentDenoiser, MotionDenoiser, perturb
from contentmotion.loading import load_pipeline, require_checkpoints
from contentmotion.pipeline import ContentMotionPipeline
from contentmotion.run_dir import prepare_output_dir, resolve_device
from contentmotion.train.content import save_content
from contentmotion.train.denoiser import use_plain_attention
from contentmotion.train.loop import Batch, fit
from contentmotion.train.motion import save_motion
from contentmotion.train.previews import make_previews
from contentmotion.train.scoring import make_scorer
from contentmotion.video_io import write_contact_sheet

PREVIEW_STEPS = (1, 2, 4, 8)


def distill(config: DistillConfig) -> None:
    """Distils the content model or the motion model of a pipeline.

    ``output_dir/content`` (a Stable Diffusion folder) or ``output_dir/motion_transformer`` is the result, with an
    LCMScheduler.

    Raises:
        ValueError: A part is missing, or the cache does not fit the teacher.
    """
    if config.dry_run:
        from contentmotion.train.plan import print_plan  # it knows all commands

        return print_plan(config)
    require_checkpoints(pretrained_model_name_or_path=config.pretrained_model_name_or_path)
    run_dir = prepare_output_dir(config.output_dir, "distill", config)
    cache = open_cache(config.cache_dir, config.max_bad_fraction)
    device = resolve_device("auto")
    teacher = load_pipeline(config.pretrained_model_name_or_path)
    teacher.set_progress_bar_config(disable=True)
    cache.require_made_with(autoencoder=teacher.autoencoder, vae=teacher.vae)
    for part in teacher.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).to(device)
    moving = config.part == "motion"
    name = "motion_transformer" if moving else "unet"
    scheduler = teacher.motion_scheduler if moving else teacher.scheduler
    if not isinstance(scheduler, DDIMScheduler):
        raise ValueError(
            f"{config.pretrained_model_name_or_path}: its {config.part} model has a {type(scheduler).__name__}; "
            "a teacher is a model with a DDIMScheduler, not one that was distilled"
        )
    networks = {role: copy.deepcopy(getattr(teacher, name)) for role in ("student", "target")}
    networks["student"].requires_grad_(True)
    if config.gradient_checkpointing:
        networks["student"].enable_gradient_checkpointing()
    wrap = MotionDenoiser if moving else ContentDenoiser
    networks["teacher"] = getattr(teacher, name)
    denoisers = {role: wrap(net, teacher.text_encoder, teacher.tokenizer) for role, net in networks.items()}
    if device.type == "cpu":
        use_plain_attention(denoisers["student"])
    lcm = make_lcm_scheduler(scheduler, config.num_ddim_steps)
    own = {name: networks["student"], "motion_scheduler" if moving else "scheduler": lcm}
    student = ContentMotionPipeline(**(teacher.components | own))
    scored = ContentMotionPipeline(**(teacher.components | own))
    reference = ContentMotionPipeline(**teacher.components)
    if not moving:  # previews are content frames
        for pipe in (student, reference):
            pipe.register_modules(autoencoder=None, motion_transformer=None, motion_scheduler=None)

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        x0 = batch["content"]
        if moving:
            x0 = teacher.autoencoder.standardize_motion(batch["motion"])
            batch = batch | {"content": perturb(batch["content"], config.content_noise, batch)}
        return consistency_loss(model, denoisers["target"], denoisers["teacher"], batch, x0, scheduler, config)

    def preview(step: int) -> None:
        compare_steps(reference, student, cache, config, run_dir / f"preview-{step:06d}.png")

    fit(
        denoisers["student"], loss, cache, config,
        collate=collate_latents, preview=preview, target=denoisers["target"],
        evaluate=make_scorer(scored, config, config.part, run_dir), eval_steps=config.eval_steps,
    )  # fmt: skip
    if moving:
        save_motion(networks["student"], lcm, Path(config.output_dir) / "motion_transformer")
    else:
        save_content(student, Path(config.output_dir) / "content")


def consistency_loss(
    student: nn.Module,
    target: nn.Module,
    teacher: nn.Module,
    batch: Batch,
    x0: Tensor,
    scheduler: DDIMScheduler,
    config: DistillConfig,
) -> dict[str, Tensor]:
    """Consistency distillation: the student at a time must say what its average says one teacher's step later.

    The three networks are denoisers (``contentmotion.denoisers``); see there for their arguments.

    Args:
        student: What is trained.
        target: The student's moving average.
        teacher: Frozen.
        batch: "generator" is the source of all randomness.
        x0: Clean samples (b, c, ...).
        scheduler: The teacher's noise schedule and prediction type.
        config: Guidance, steps of the teacher's solver, Huber's c.

    Source: VideoLCM Eq. 4-5; Luo et al. 2023 (LCM), Algorithm 1 with a fixed guidance scale.
    """
    generator, b = batch["generator"], len(x0)
    kind, alphas = scheduler.config.prediction_type, scheduler.alphas_cumprod.to(x0.device)
    skip = scheduler.config.num_train_timesteps // config.num_ddim_steps
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    start = (torch.randint(config.num_ddim_steps, (b,), generator=generator) + 1) * skip - 1
    start, end = start.to(x0.device), (start - skip).clamp(min=0).to(x0.device)
    noisy = diffusion.add_noise(x0, noise, alphas[start])
    kept, dropped = torch.zeros(b, dtype=torch.bool), torch.ones(b, dtype=torch.bool)

    def network(denoiser: nn.Module, x: Tensor, t: Tensor, drop: Tensor = kept) -> Tensor:
        return denoiser(x, t, batch, drop).float()[:, : x0.shape[1]]  # without a learned variance

    def consistency(denoiser: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        c_skip, c_out = (diffusion.expand_to(c, x) for c in diffusion.consistency_scalings(t))
        return c_skip * x + c_out * diffusion.predict_x0(kind, network(denoiser, x, t), x, alphas[t])

    with torch.no_grad():
        output = network(teacher, noisy, start)
        if config.guidance_scale != 1:
            output = diffusion.guide(network(teacher, noisy, start, dropped), output, config.guidance_scale)
        clean = diffusion.predict_x0(kind, output, noisy, alphas[start])
        implied = diffusion.predict_noise(kind, output, noisy, alphas[start])
        earlier = diffusion.ddim_step(clean, implied, alphas[end])
        aim = consistency(target, earlier, end)
    said = consistency(student, noisy, start)
    return {"loss": diffusion.pseudo_huber(said, aim, config.huber_c)}


def make_lcm_scheduler(scheduler: DDIMScheduler, num_ddim_steps: int) -> LCMScheduler:
    """The student's scheduler: the teacher's noise schedule, sampled as a consistency model."""
    # All values by name: from_config leaves those out that are the teacher class's defaults, and LCM's differ.
    settings = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    lcm = LCMScheduler.from_config(settings, original_inference_steps=num_ddim_steps)
    assert isinstance(lcm, LCMScheduler)
    return lcm


def compare_steps(
    teacher: ContentMotionPipeline,
    student: ContentMotionPipeline,
    cache: LatentCache,
    config: DistillConfig,
    path: Path,
) -> None:
    """A contact sheet: the same prompts and noise, by the teacher at 50 steps and the student at 1, 2, 4 and 8."""
    key = "motion_guidance_scale" if config.part == "motion" else "guidance_scale"
    runs = [("teacher, 50 steps", make_previews(teacher, cache, config.validation_prompts, config.seed, **{
        "num_inference_steps": 50, key: config.guidance_scale,
    }))]  # fmt: skip
    for steps in PREVIEW_STEPS:
        sampling = {"num_inference_steps": steps, key: 1.0}
        made = make_previews(student, cache, config.validation_prompts, config.seed, **sampling)
        runs.append((f"student, {steps} step{'s' * (steps > 1)}", made))
    rows, names = [], []
    for i, caption in enumerate(runs[0][1][1]):
        rows += [videos[i] for _, (videos, _) in runs]
        names += [f"{caption}: {who}" for who, _ in runs]
    write_contact_sheet(path, rows, names)
