"""``--dry_run``: what a training run takes in memory and FLOPs, computed from its settings; nothing runs, nothing is
written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from contentmotion.config import (
    DistillConfig,
    TrainAutoencoderConfig,
    TrainConfig,
    TrainContentConfig,
    TrainMotionConfig,
    TrainVAEConfig,
    TrainVideoConfig,
)
from contentmotion.cost.count import count_cost
from contentmotion.cost.networks import build, skeleton, skeletons
from contentmotion.cost.report import number
from contentmotion.data.cache import LatentCache, open_cache
from contentmotion.models.patch_vae import PatchVAE
from contentmotion.models.video_unet import enable_checkpointing
from contentmotion.pipelines.loading import resolve_name
from contentmotion.run_dir import resolve_device, resolve_dtype
from contentmotion.stages.denoisers import encode_conditions
from contentmotion.stages.image_vae import vae_latent_channels, vae_scale_factor
from contentmotion.train.autoencoder import make_autoencoder
from contentmotion.train.content import make_content_parts
from contentmotion.train.denoiser import freeze_all_but
from contentmotion.train.distill_parts import PARTS
from contentmotion.train.lora import adapt_unet, add_adapters
from contentmotion.train.motion import make_motion_transformer
from contentmotion.train.video import make_video_parts

GIB, TERA = 2**30, 1e12
META = torch.device("meta")
# Hub ids whose shapes are known without asking the hub.
KNOWN = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": {"unet": "unet-sd15", "vae": "vae-sd", "text_encoder": "clip-l"},
    "stabilityai/stable-diffusion-2-1-base": {"unet": "unet-sd21", "vae": "vae-sd", "text_encoder": "clip-h"},
}  # fmt: skip


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
            "optimizer": weights / 2 if config.use_8bit_adam else 2 * weights,
            "moving average": weights if config.ema_decay and not config.offload_ema else 0.0,
            "frozen networks": 4 * self.frozen / GIB,
            "16-bit copies": weights / 2 if half else 0.0,
            "activations": activations / 2 if half else activations,
        }


def plan_run(config: TrainConfig) -> Plan:
    """Computes what a training command's settings ask for.

    Raises:
        ValueError: Shapes that cannot be known without a checkpoint or a cache that is not there.
    """
    if isinstance(config, TrainVAEConfig):
        return _plan_vae(config)
    if isinstance(config, TrainAutoencoderConfig):
        return _plan_autoencoder(config)
    if isinstance(config, TrainContentConfig):
        return _plan_content(config)
    if isinstance(config, TrainMotionConfig):
        return _plan_motion(config)
    if isinstance(config, TrainVideoConfig):
        return _plan_video(config)
    assert isinstance(config, DistillConfig)
    return _plan_distillation(config)


def print_plan(config: TrainConfig) -> None:
    """Prints parameters, memory by purpose and TFLOPs per step.

    Raises:
        ValueError: See ``plan_run``.
    """
    plan = plan_run(config)
    device = resolve_device("auto")
    half = resolve_dtype(config.mixed_precision, device) is not None
    memory = plan.memory(config, half)
    table = Table(title="Dry run: nothing is trained, nothing is written", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("trained parameters", f"{plan.trained:,}")
    table.add_row("frozen parameters", f"{plan.frozen:,}")
    for what, gib in memory.items():
        table.add_row(f"memory: {what}", f"{gib:.2f} GiB")
    table.add_row("memory in all, about", f"{sum(memory.values()):.2f} GiB")
    batch = f"{config.train_batch_size} x {config.gradient_accumulation_steps}"
    table.add_row(f"TFLOPs per step (batch {batch})", number(plan.tflops_per_step(config)))
    table.add_row(f"PFLOPs in all ({config.max_train_steps} steps)", number(total_pflops(plan, config)))
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "Activations: every tensor that autograd would keep of the forward pass, added up"
        + (", but for those inside checkpointed blocks" if config.gradient_checkpointing else "")
        + f"; on {device.type} in {'16' if half else '32'} bits. LPIPS and previews are not counted."
    )


def total_pflops(plan: Plan, config: TrainConfig) -> float:
    """FLOPs / 1e15 of the whole run on one process."""
    return plan.tflops_per_step(config) * config.max_train_steps / 1e3


def part(name_or_path: str, name: str) -> nn.Module:
    """A part of a pipeline folder (or a part's own folder) without its weights.

    Raises:
        ValueError: Neither a folder here nor one of the hub ids that are known.
    """
    if name_or_path in KNOWN:
        return build(KNOWN[name_or_path][name], META)
    folder = Path(resolve_name(name_or_path))
    if not folder.is_dir():
        raise ValueError(f"dry_run does not know the shapes of {name_or_path}: give a folder that is here")
    if (folder / "config.json").exists():
        return skeleton(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    found = skeletons(folder)[name]
    if found is None:
        raise ValueError(f"{name_or_path} has no {name}")
    return found


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, device=META)


def _plan(trained: nn.Module, forward: Callable[[], Any], frozen: dict[nn.Module, int], config: TrainConfig) -> Plan:
    """A plan from what is trained, one item's forward pass, and the FLOPs of each frozen network per item."""
    trained.train()
    if config.gradient_checkpointing:
        networks = trained if isinstance(trained, nn.ModuleList) else [trained]
        enable_checkpointing(networks[0])
    return Plan(
        trained=sum(p.numel() for p in trained.parameters() if p.requires_grad),
        frozen=sum(p.numel() for p in trained.parameters() if not p.requires_grad)
        + sum(p.numel() for network in frozen for p in network.parameters()),
        flops_per_item=3 * count_cost(forward).flops + sum(frozen.values()),
        activation_bytes=count_activations(trained, forward),
    )


def count_activations(network: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes that autograd keeps of a forward pass besides the weights; attention keeps no matrix of weights."""
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()._cdata
        if storage not in own:
            kept[storage] = x
        return x

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), _FusedAttention():
        output = forward()
    size = sum(x.untyped_storage().nbytes() for x in kept.values())
    del output
    return size


class _KeepInputs(torch.autograd.Function):
    """What fused attention keeps for its backward pass: its inputs and its output, not their products."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # type: ignore[override]
        output = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, output)
        return output


class _FusedAttention(TorchFunctionMode):
    """On the meta device PyTorch would take attention apart, and keep matrices that no GPU keeps."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return _KeepInputs.apply(given["query"], given["key"], given["value"])
        return func(*args, **(kwargs or {}))


def _plan_vae(config: TrainVAEConfig) -> Plan:
    with META:
        vae = PatchVAE(
            latent_channels=config.model.latent_channels,
            block_out_channels=(config.model.hidden_channels,) * (config.model.num_downsamples + 1),
            num_layers=config.model.num_layers,
        )
    return _plan(vae, lambda: vae(_empty(1, 3, config.height, config.width)), {}, config)


def _plan_autoencoder(config: TrainAutoencoderConfig) -> Plan:
    vae: Any = part(config.vae, "vae") if config.vae else None
    with META:
        model = make_autoencoder(config, vae)
    factor = vae_scale_factor(vae)
    x = _empty(1, config.num_frames, vae_latent_channels(vae), config.height // factor, config.width // factor)
    frozen = {}
    if vae is not None and config.cache_dir is None and not config.cache_latents:
        encoding = count_cost(lambda: vae.encode(_empty(1, 3, config.height, config.width))).flops
        frozen = {vae: config.num_frames * encoding}
    return _plan(model, lambda: model(x), frozen, config)


def _plan_content(config: TrainContentConfig) -> Plan:
    has_cache = (Path(config.cache_dir) / "index.json").exists()
    name = config.pretrained_model_name_or_path
    if name:
        unet: Any = part(name, "unet")
        text: Any = part(name, "text_encoder")
    else:
        made = make_content_parts(config, open_cache(config.cache_dir, config.max_bad_fraction))
        unet, text = (None if made[n] is None else made[n].to(META) for n in ("unet", "text_encoder"))
    if has_cache:
        shape = _largest(open_cache(config.cache_dir, config.max_bad_fraction), "content")
    else:
        side = unet.config.sample_size
        shape = (unet.config.in_channels, *((side, side) if isinstance(side, int) else side))
    with META:
        adapt_unet(unet, config)
    freeze_all_but(unet, config.trainable_modules)
    return _plan(unet, lambda: unet_pass(unet, text, tuple(shape)), _frozen_text(text), config)


def _largest(cache: LatentCache, name: str) -> tuple[int, ...]:
    """Shape of a tensor of a cache's largest clips: a run must have room for those."""
    return max(cache.shapes(name), key=math.prod)


def unet_pass(unet: Any, text: Any, shape: tuple[int, ...]) -> Any:
    """One content frame through a content model."""
    x, times = _empty(1, *shape), torch.ones(1, dtype=torch.long, device=META)
    if text is None:
        return unet(x, timestep=times, class_labels=times).sample
    tokens = _empty(1, text.config.max_position_embeddings, text.config.hidden_size)
    return unet(x, times, encoder_hidden_states=tokens).sample


def _frozen_text(text: Any) -> dict[nn.Module, int]:
    """A text encoder's pass per item (trained ones are as small as that)."""
    if text is None:
        return {}
    ids = torch.ones(1, text.config.max_position_embeddings, dtype=torch.long, device=META)
    return {text: count_cost(lambda: text(ids)).flops}


def _plan_motion(config: TrainMotionConfig) -> Plan:
    own: Any = part(config.autoencoder, "autoencoder").config
    text: Any = None
    if config.pretrained_model_name_or_path:
        text = part(config.pretrained_model_name_or_path, "text_encoder")
    with META:
        motion = make_motion_transformer(
            config,
            motion_channels=own.motion_channels,
            content_channels=own.in_channels,
            num_classes=1000 if text is None else None,  # an embedding each: it hardly matters how many
            text_dim=None if text is None else text.config.hidden_size,
        )
    freeze_all_but(motion, config.trainable_modules)
    return _plan(motion, lambda: motion_pass(motion, own), _frozen_text(text), config)


def motion_pass(motion: Any, autoencoder: Any) -> Any:
    """One motion latent, of the size that an autoencoder (its config) was trained on, through a motion model."""
    h, w, p = autoencoder.sample_height, autoencoder.sample_width, autoencoder.patch_size
    z = _empty(1, autoencoder.motion_channels, autoencoder.num_frames, h // p + w // p)
    content, times = _empty(1, autoencoder.in_channels, h, w), torch.ones(1, dtype=torch.long, device=META)
    if motion.config.text_dim is None:
        return motion(z, times, content, class_labels=times)
    return motion(z, times, content, pooled_text=_empty(1, motion.config.text_dim))


def _plan_video(config: TrainVideoConfig) -> Plan:
    cache = open_cache(config.cache_dir, config.max_bad_fraction)
    parts = make_video_parts(config, cache)
    unet, text, encoder = (parts[name] for name in ("unet", "text_encoder", "condition_encoder"))
    trained = nn.ModuleList([part.to(META) for part in (unet, encoder) if part is not None])
    with META:
        adapt_unet(unet, config)
    freeze_all_but(trained, config.trainable_modules)
    shape = _largest(cache, "latents")

    def forward() -> Any:
        return video_pass(unet, encoder, text, shape)

    return _plan(trained, forward, _frozen_text(text.to(META)), config)


def video_pass(unet: Any, encoder: Any, text: Any, shape: tuple[int, ...]) -> Any:
    """One clip's latents (t, c, h, w) through a video UNet, with all conditions where there are any."""
    t, c, h, w = shape
    x = _empty(1, *shape)
    if encoder is not None:
        factor = encoder.config.vae_scale_factor
        shapes = {"mask": (t, 1 + c, h, w), "first_frame": (1, c, h, w)}
        given = {n: _empty(1, *shapes.get(n, (t, 1, h * factor, w * factor))) for n in encoder.config.conditions}
        x = torch.cat([x, encode_conditions(encoder, given, x.shape)], dim=2)
    tokens = _empty(1, text.config.max_position_embeddings, text.config.hidden_size)
    times = torch.ones(1, dtype=torch.long, device=META)
    return unet(x.transpose(1, 2), times, encoder_hidden_states=tokens).sample


def _plan_distillation(config: DistillConfig) -> Plan:
    """With all weights trained, target and teacher are copies; with LoRA the three share all but the adapters."""
    name, kind = config.pretrained_model_name_or_path, PARTS[config.part]
    student, text = part(name, kind.network), part(name, "text_encoder")
    forward = DISTILLED_PASSES[config.part](student, text, config)
    once = count_cost(forward).flops
    # The target, and the teacher, with guidance twice a step.
    passes = 2 if config.guidance_scale == 1 else 3
    if not config.lora.rank:
        plan = _plan(student, forward, _frozen_text(text), config)
        frozen, flops = plan.frozen + 2 * plan.trained, plan.flops_per_item + passes * once
        return Plan(plan.trained, frozen, flops, plan.activation_bytes)
    with META:
        add_adapters(student, config.lora.rank, config.lora.alpha, config.lora.target_modules or kind.lora_targets)
    plan = _plan(student, forward, _frozen_text(text), config)
    adapted = count_cost(forward).flops
    # Frozen weights take no gradient: their share of the backward pass is one forward pass's worth, not two.
    flops = plan.flops_per_item - once + once * (passes - 1) + adapted
    return Plan(plan.trained, plan.frozen + plan.trained, flops, plan.activation_bytes)


def _clip_shape(config: DistillConfig, field: str, unet: Any, *first: int) -> tuple[int, ...]:
    """Shape of a cached clip's ``field``; where there is no cache yet, of what the UNet was made for."""
    if (Path(config.cache_dir) / "index.json").exists():
        return _largest(open_cache(config.cache_dir, config.max_bad_fraction), field)
    side = unet.config.sample_size or 64
    return (*first, *((side, side) if isinstance(side, int) else side))


def _content_pass(unet: Any, text: Any, config: DistillConfig) -> Callable[[], Any]:
    shape = _clip_shape(config, "content", unet, unet.config.in_channels)
    return lambda: unet_pass(unet, text, shape)


def _motion_pass(motion: Any, text: Any, config: DistillConfig) -> Callable[[], Any]:
    own: Any = part(config.pretrained_model_name_or_path, "autoencoder").config
    return lambda: motion_pass(motion, own)


def _video_pass(unet: Any, text: Any, config: DistillConfig) -> Callable[[], Any]:
    folder = Path(resolve_name(config.pretrained_model_name_or_path))
    encoder = skeletons(folder)["condition_encoder"] if folder.is_dir() else None
    shape = _clip_shape(config, "latents", unet, unet.config.get("num_frames", 16), unet.config.out_channels)
    return lambda: video_pass(unet, encoder, text, shape)


# One item through a network that is distilled: network, text encoder, config -> the pass.
DISTILLED_PASSES = {"content": _content_pass, "motion": _motion_pass, "video": _video_pass}
