"""How an evaluation's numbers are made, in full: what another group needs to make them again."""

import datetime
import hashlib
import json
import os
import platform
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
from contentmotion.data.records import file_size
from contentmotion.evaluate.clips import Clips
from contentmotion.evaluate.measures import THUMBNAIL_FRAMES, THUMBNAIL_SIZE, Measures
from contentmotion.evaluate.parts import Part
from contentmotion.evaluate.scores import NUM_HALVINGS
from contentmotion.evaluate.store import digest, file_digest
from contentmotion.pipeline import ContentMotionPipeline
from contentmotion.run_dir import describe_hardware
from contentmotion.sampling import resolve_sampling

# What a part's videos come from, where that is not every network: evaluations that share the others share it, too.
NETWORKS = {
    "reconstruction": {"vae", "autoencoder"},
    "frozen": {"vae", "autoencoder"},
    "vae": {"vae"},
    "content": {"vae", "autoencoder", "text_encoder", "unet"},
}


def describe_protocol(
    config: EvaluateConfig,
    clips: Clips,
    generated: Clips | None,
    pipeline: ContentMotionPipeline | None,
    measures: Measures,
    dtype: str,
    device: torch.device,
) -> dict[str, Any]:
    """How the numbers are made. `part_protocol` says which entries a part depends on."""
    shape = clips.dataset.shapes[0]
    protocol: dict[str, Any] = {
        "features": {
            "extractor": "I3D, Kinetics-400, RGB, logits, float32",
            "extractor_sha256": file_digest(measures.i3d_file),
            "resize": f"{config.fvd_resize or 'bilinear'} to {config.fvd_resolution}x{config.fvd_resolution}, "
            "from uint8 to [-1, 1]",
            "distance": "Frechet, float64, unbiased covariance",
        },
        "measures": {
            "psnr": "per clip over all its frames, then the mean over clips (equal clips count 100 dB)",
            "ssim": "11x11 Gaussian window of deviation 1.5, mean over frames and colours",
            "lpips_sha256": file_digest(measures.lpips_file) if measures.lpips_file else None,
            "clip": config.clip,
            "motion": "mean absolute difference of consecutive frames; length of OpenCV's DIS optical flow, pixels",
            "halves": f"mean of {NUM_HALVINGS} random splits",
            "nearest": "Euclidean, among all real clips, heldout included; equal captions count as one; pixels: of "
            f"{THUMBNAIL_FRAMES} frames at {THUMBNAIL_SIZE}x{THUMBNAIL_SIZE}, averaged over areas",
        },
        "clips": {
            "data_sha256": _data_digest(clips),
            "num_clips": len(clips.selected),
            "rule": "one clip per video, first frame from (seed, index); centre crop, bicubic antialiased; "
            "of more videos than num_videos, a random choice from the seed",
            "seed": config.seed,
            "num_frames": shape.num_frames,
            "height": shape.height,
            "width": shape.width,
            "caption_index": config.caption_index,
            "captions_sha256": digest([clips.caption(i) for i in range(len(clips.folder.records))]),
        },
        "run": {
            "pretrained_model_name_or_path": config.pretrained_model_name_or_path,
            "autoencoder": config.autoencoder,
            "motion_transformer": config.motion_transformer,
            "data_dir": config.data_dir,
            "generated_dir": config.generated_dir,
            "split": config.split,
            "preset": config.preset,
            "num_videos": config.num_videos,
            "num_generated": len(clips.drawn),
            "num_seeds": config.num_seeds,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "hardware": describe_hardware(device),
            "versions": {
                "contentmotion": contentmotion.__version__,
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "transformers": transformers.__version__,
                "numpy": np.__version__,
                "opencv": cv2.__version__,
                "python": platform.python_version(),
            },
        },
    }
    if generated is not None:
        protocol["generated"] = {"data_sha256": _data_digest(generated), "num_clips": len(generated.selected)}
    if pipeline is not None:
        protocol["model"] = {
            "weights_sha256": _weights_digests(pipeline),
            "weights": "the moving average (EMA) where training keeps one",
            "compute_dtype": dtype,
            "device_type": device.type,
        }
        if pipeline.scheduler is not None and pipeline.motion_scheduler is not None:
            protocol["sampling"] = _describe_sampling(pipeline, config)
    return protocol


def _describe_sampling(pipeline: ContentMotionPipeline, config: EvaluateConfig) -> dict[str, Any]:
    sampling = resolve_sampling(
        pipeline,
        config.num_inference_steps,
        config.motion_num_inference_steps,
        config.guidance_scale,
        config.motion_guidance_scale,
    )
    return {
        "num_inference_steps": sampling.steps,
        "motion_num_inference_steps": sampling.motion_steps,
        "guidance_scale": sampling.guidance_scale,
        "motion_guidance_scale": sampling.motion_guidance_scale,
        "schedulers": [
            f"{type(s).__name__} {digest(dict(s.config))[:16]}" for s in (pipeline.scheduler, pipeline.motion_scheduler)
        ],
        "noise": "one generator per clip, from (seed, index)",
        "seeds": list(range(config.seed, config.seed + config.num_seeds)),
    }


def _data_digest(clips: Clips) -> str:
    root = clips.folder.root
    return digest([(os.path.relpath(str(r.path), root), file_size(r.path)) for r in clips.folder.records])


def part_protocol(part: Part, protocol: dict[str, Any]) -> dict[str, Any]:
    """The entries that a part's results depend on: how many clips there are is not among them."""
    own = {key: protocol[key] for key in ("features", "measures", "clips")}
    own["clips"] = {key: value for key, value in own["clips"].items() if key != "num_clips"}
    if part.name == "generated":
        own["generated"] = protocol["generated"]["data_sha256"]
    elif part.name != "real":
        hashes = protocol["model"]["weights_sha256"]
        used = hashes.keys() & NETWORKS[part.name] if part.name in NETWORKS else hashes
        own["model"] = protocol["model"] | {"weights_sha256": {name: hashes[name] for name in sorted(used)}}
    if part.seed is not None:
        own["sampling"] = {k: v for k, v in protocol["sampling"].items() if k != "seeds"} | {"seed": part.seed}
    return own


def _weights_digests(pipeline: ContentMotionPipeline) -> dict[str, str]:
    """sha256 over every tensor and setting of each network, whatever files they came from."""
    digests = {}
    for name, component in sorted(pipeline.components.items()):
        if not isinstance(component, nn.Module):
            continue
        sha = hashlib.sha256()
        if isinstance(component, ModelMixin):  # its config holds scales and switches
            settings = {k: v for k, v in component.config.items() if not k.startswith("_")}
            sha.update(json.dumps(settings, sort_keys=True, default=str).encode())
        for key, value in component.state_dict().items():
            sha.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
            sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        digests[name] = sha.hexdigest()
    return digests
