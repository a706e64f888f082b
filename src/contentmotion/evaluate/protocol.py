"""How an evaluation's numbers are made, in full: what another group needs to make them again; and how papers did it.

The settings behind an FVD move it as much as the model does: `PRESETS` has those of papers, by name.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
from dataclasses import replace
from typing import Any

import cv2
import diffusers
import numpy as np
import torch
import transformers
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

import contentmotion
from contentmotion.config import EvaluateConfig
from contentmotion.evaluate.clips import Clips
from contentmotion.evaluate.measures import NUM_HALVINGS, Networks
from contentmotion.evaluate.pixel_metrics import THUMBNAIL_FRAMES, THUMBNAIL_SIZE
from contentmotion.evaluate.renditions import Conditions, Rendition
from contentmotion.evaluate.store import digest, file_digest
from contentmotion.pipelines.base import LatentPipeline
from contentmotion.pipelines.sampling import resolve_sampling
from contentmotion.run_dir import describe_hardware
from contentmotion.stages.stage import few_step_levels
from contentmotion.video.sources import VideoSource, file_size

MEASURES_VERSION = 1  # to be raised when the same videos get other numbers: stored ones are then not used again
# What a rendition is made by, where that is not every network: evaluations that share the others share it, too.
NETWORKS = {
    "reconstruction": {"vae", "autoencoder"},
    "frozen": {"vae", "autoencoder"},
    "vae": {"vae"},
    "content": {"vae", "autoencoder", "text_encoder", "unet"},
}
# Of papers, which all take one random clip per video, at I3D's 224x224. CMD (arXiv 2403.14148) says it in appendix B.4.
PRESETS: dict[str, dict[str, int]] = {
    "stylegan-v": {},  # Skorokhodov et al. 2022 (arXiv 2112.14683): the rule, for any data
    "ucf101-2048": {"num_videos": 2048, "num_frames": 16},  # CMD, Table 1; DIGAN, TATS, PVDM: train split
    "ucf101-10000": {"num_generated": 10_000, "num_frames": 16},  # CMD, Table 1 with *; MAGVIT: train split
    # CMD, Table 2; Make-A-Video's counts, prompts of --class_prompts (PYoCo's): train split
    "ucf101-zero-shot": {"videos_per_class": 100, "num_frames": 16},
    "webvid": {"num_videos": 5000, "num_frames": 16},  # CMD, Table 3: validation split
}


def with_preset(config: EvaluateConfig) -> EvaluateConfig:
    """The config with its preset's numbers where it has none of its own.

    Raises:
        ValueError: The preset generates from prompts for the classes, and none were given.
    """
    if config.preset == "ucf101-zero-shot" and not config.class_prompts:
        raise ValueError(
            f"the preset {config.preset} generates from prompts for the classes: give --class_prompts FILE"
        )
    changes: dict[str, Any] = {"fvd_resize": "bilinear"} | PRESETS[config.preset]
    if config.num_generated or config.videos_per_class:  # either stands in for the other
        changes = {name: value for name, value in changes.items() if name not in ("num_generated", "videos_per_class")}
    return replace(config, **{name: value for name, value in changes.items() if getattr(config, name) is None})


def describe_protocol(
    config: EvaluateConfig,
    clips: Clips,
    generated: Clips | None,
    pipeline: LatentPipeline | None,
    networks: Networks,
    conditions: Conditions,
    dtype: str,
    device: torch.device,
    source: str | None,
) -> dict[str, Any]:
    """How the numbers are made. `rendition_protocol` says which entries one depends on; `source` names the model."""
    protocol: dict[str, Any] = {
        "features": {
            "extractor": "I3D, Kinetics-400, RGB, logits, float32",
            "extractor_sha256": file_digest(networks.i3d_file),
            "resize": f"{networks.resize} to {networks.resolution}x{networks.resolution}, from uint8 to [-1, 1]",
            "distance": "Frechet, float64, unbiased covariance",
        },
        "measures": _describe_measures(networks),
        "clips": _describe_clips(config, clips),
        "counts": {
            "split": config.split,
            "selected_sha256": digest(clips.selected),
            "content_sha256": digest([clips.content(i) for i in clips.selected]),
            "num_clips": len(clips.selected),
            "num_generated": len(clips.drawn if generated is None else generated.selected),
            "num_seeds": config.num_seeds,
        },
        "run": _describe_run(config, device, source),
    }
    if conditions.names:
        protocol["following"] = conditions.describe() | {
            "measured": "depth: mean difference of [0, 1] maps, share of rims met; sketch: F1 of edges within 1 pixel"
        }
    if networks.depth_model is not None:
        settings = networks.depth_model.processor.to_dict()
        protocol.setdefault("following", {})["depth_sha256"] = hash_network(networks.depth_model.model, settings)
    if generated is not None:
        protocol["generated"] = {
            "data_sha256": digest([generated.content(i) for i in generated.selected]),
            "captions_sha256": _captions_digest(generated),
        }
    if pipeline is not None:
        protocol["model"] = {
            "weights_sha256": _weights_digests(pipeline),
            "compute_dtype": dtype,
            "device_type": device.type,
        }
        if _schedulers(pipeline):
            protocol["sampling"] = _describe_sampling(pipeline, config)
    return protocol


def _describe_measures(networks: Networks) -> dict[str, Any]:
    clip = networks.clip
    return {
        "psnr": "per clip over all its frames, then the mean over clips (equal clips count 100 dB)",
        "ssim": "11x11 Gaussian window of deviation 1.5, mean over frames and colours",
        "lpips_sha256": file_digest(networks.lpips_file) if networks.lpips_file else None,
        "clip_sha256": hash_network(clip.model, clip.settings) if clip else None,
        "version": MEASURES_VERSION,
        "motion": "mean absolute difference of consecutive frames; length of OpenCV's DIS optical flow, pixels",
        "halves": f"mean of {NUM_HALVINGS} random splits",
        "nearest": "Euclidean, among all real clips, heldout included; equal captions count as one; pixels: of "
        f"{THUMBNAIL_FRAMES} frames at {THUMBNAIL_SIZE}x{THUMBNAIL_SIZE}, averaged over areas",
    }


def _describe_clips(config: EvaluateConfig, clips: Clips) -> dict[str, Any]:
    shape, records, root = clips.dataset.shapes[0], clips.folder.records, clips.folder.root
    return {
        # Which file an index means; `RenditionStore` knows what is in it.
        "data_sha256": digest([(os.path.relpath(str(r.path), root), _size(r.path)) for r in records]),
        "frame_stride": config.frame_stride,
        "fps": config.fps,
        "resize_mode": config.resize_mode,
        "rule": "one clip per video, first frame from (seed, index); resized bicubic, antialiased; "
        "of more videos than num_videos, a random choice from the seed",
        "seed": config.seed,
        "num_frames": shape.num_frames,
        "height": shape.height,
        "width": shape.width,
        "caption_index": config.caption_index,
        "captions_sha256": _captions_digest(clips),
    }


def _size(source: VideoSource) -> int | None:
    try:
        return file_size(source)
    except OSError:  # of long lists nobody has looked; reading the clip names the problem
        return None


def _describe_run(config: EvaluateConfig, device: torch.device, source: str | None) -> dict[str, Any]:
    return {
        "model": source,
        "data_dir": config.data_dir,
        "generated_dir": config.generated_dir,
        "preset": config.preset,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": describe_hardware(device),
        "versions": {
            **{module.__name__: module.__version__ for module in (contentmotion, torch, diffusers, transformers, np)},
            "opencv": cv2.__version__,
            "python": platform.python_version(),
        },
    }


def _schedulers(pipeline: LatentPipeline) -> list[Any]:
    components = (pipeline.components.get(name) for name in ("scheduler", "motion_scheduler"))
    return [scheduler for scheduler in components if scheduler is not None]


def _describe_sampling(pipeline: LatentPipeline, config: EvaluateConfig) -> dict[str, Any]:
    sampling, asked = resolve_sampling(pipeline, **config.sampling()), config.sampling()
    # Nothing is said of what is not given: what older versions have measured counts.
    extra = {name: asked[name] for name in asked if asked[name] and not name.endswith(("_scale", "_steps"))}
    if any(few_step_levels(scheduler, sampling.steps) for scheduler in _schedulers(pipeline)):
        extra["levels"] = "evenly spaced"  # those of flows' students were not, in older versions
    return {
        "num_inference_steps": sampling.steps,
        "motion_num_inference_steps": sampling.motion_steps,
        "guidance_scale": sampling.guidance_scale,
        "motion_guidance_scale": sampling.motion_guidance_scale,
        **extra,
        "schedulers": [f"{type(s).__name__} {digest(dict(s.config))[:16]}" for s in _schedulers(pipeline)],
        "noise": "one generator per clip, from (seed, index)",
        "seeds": list(range(config.seed, config.seed + config.num_seeds)),
    }


def _captions_digest(clips: Clips) -> str:
    return digest([(clips.caption(i), record.label) for i, record in enumerate(clips.folder.records)])


def rendition_protocol(rendition: Rendition, protocol: dict[str, Any]) -> dict[str, Any]:
    """The entries that a rendition's results depend on: how many clips there are is not among them."""
    own = {key: protocol[key] for key in ("features", "measures", "clips")}
    if rendition.name == "generated":
        own["generated"] = protocol["generated"]
    elif rendition.name != "real":
        hashes = protocol["model"]["weights_sha256"]
        used = hashes.keys() & NETWORKS[rendition.name] if rendition.name in NETWORKS else hashes
        own["model"] = protocol["model"] | {"weights_sha256": {name: hashes[name] for name in sorted(used)}}
    if rendition.seed is not None:
        own["sampling"] = {k: v for k, v in protocol["sampling"].items() if k != "seeds"} | {"seed": rendition.seed}
    if rendition.follows:
        own["following"] = protocol["following"]
    return own


def _weights_digests(pipeline: LatentPipeline) -> dict[str, str]:
    """sha256 over every tensor and setting of each network, whatever files they came from."""
    digests = {}
    for name, network in sorted(pipeline.components.items()):
        if isinstance(network, nn.Module):
            config = network.config if isinstance(network, ModelMixin) else {}  # diffusers' holds scales and switches
            digests[name] = hash_network(network, {k: v for k, v in config.items() if k[0] != "_"})
    return digests


def hash_network(network: nn.Module, settings: dict[str, Any]) -> str:
    """sha256 (hex) over every tensor of a network, and its settings (JSON-like), unlike `hash_weights` exact.

    The next checkpoint of a slow run differs by less than the half-precision numbers that a cache's maker is known by.
    """
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for key, value in network.state_dict().items():
        sha.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()
