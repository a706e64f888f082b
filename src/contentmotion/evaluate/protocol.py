"""How an evaluation's numbers are made, in full: what another group needs to make them again."""

import datetime
import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

import contentmotion
from contentmotion.config import EvaluateConfig
from contentmotion.data.records import file_size
from contentmotion.evaluate.parts import Clips, Part
from contentmotion.evaluate.store import digest, file_digest
from contentmotion.pipeline import ContentMotionPipeline
from contentmotion.sampling import resolve_sampling


def describe_protocol(
    config: EvaluateConfig,
    clips: Clips,
    pipeline: ContentMotionPipeline,
    i3d_file: Path,
    dtype: str,
    num_halvings: int,
) -> dict[str, Any]:
    """How the numbers are made. `part_protocol` says which entries a part depends on."""
    sampling = resolve_sampling(
        pipeline,
        config.num_inference_steps,
        config.motion_num_inference_steps,
        config.guidance_scale,
        config.motion_guidance_scale,
    )
    root, shape = clips.folder.root, clips.dataset.shapes[0]
    files = [(os.path.relpath(str(r.path), root), file_size(r.path)) for r in clips.folder.records]
    return {
        "features": {
            "extractor": "I3D, Kinetics-400, RGB, logits, float32",
            "extractor_sha256": file_digest(i3d_file),
            "resize": "bilinear to 224x224, not antialiased, from uint8 to [-1, 1]",
            "distance": "Frechet, float64, unbiased covariance",
        },
        "clips": {
            "data_sha256": digest(files),
            "rule": "one clip per video, first frame from (seed, index); centre crop, bicubic antialiased; "
            "of more videos than num_videos, a random choice from the seed",
            "seed": config.seed,
            "num_frames": shape.num_frames,
            "height": shape.height,
            "width": shape.width,
        },
        "model": {
            "weights_sha256": _weights_digest(pipeline),
            "compute_dtype": dtype,
            "device_type": pipeline.device.type,
        },
        "sampling": {
            "num_inference_steps": sampling.steps,
            "motion_num_inference_steps": sampling.motion_steps,
            "guidance_scale": sampling.guidance_scale,
            "motion_guidance_scale": sampling.motion_guidance_scale,
            "schedulers": [
                f"{type(s).__name__} {digest(dict(s.config))[:16]}"
                for s in (pipeline.scheduler, pipeline.motion_scheduler)
            ],
            "noise": "one generator per clip, from (seed, index)",
            "caption_index": config.caption_index,
            "captions_sha256": digest([clips.caption(i) for i in range(len(clips.folder.records))]),
        },
        "run": {
            "pretrained_model_name_or_path": config.pretrained_model_name_or_path,
            "data_dir": config.data_dir,
            "split": config.split,
            "num_videos": config.num_videos,
            "psnr": "per clip over all its frames, then the mean over clips (equal clips count 100 dB)",
            "halves": f"mean of {num_halvings} random splits",
            "nearest": "Euclidean, among all real clips, heldout included; equal captions count as one",
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "hardware": _hardware(pipeline.device),
            "versions": {
                "contentmotion": contentmotion.__version__,
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        },
    }


def part_protocol(part: Part, protocol: dict[str, Any]) -> dict[str, Any]:
    """The entries that a part's results depend on."""
    keys = ["features", "clips"]
    if part.name != "real":
        keys.append("model")
    if part.samples:
        keys.append("sampling")
    return {key: protocol[key] for key in keys}


def _weights_digest(pipeline: ContentMotionPipeline) -> str:
    """sha256 over every tensor and setting of every network, whatever files they came from."""
    sha = hashlib.sha256()
    for name, component in sorted(pipeline.components.items()):
        if isinstance(component, ModelMixin):  # its config holds scales and switches
            settings = {k: v for k, v in component.config.items() if not k.startswith("_")}
            sha.update(json.dumps(settings, sort_keys=True, default=str).encode())
        if isinstance(component, nn.Module):
            for key, value in component.state_dict().items():
                sha.update(f"{name}.{key}{tuple(value.shape)}{value.dtype}".encode())
                sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads"
