"""How an evaluation's numbers are made, in full: what another group needs to make them again."""

import datetime
import os
import platform
from pathlib import Path
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
from contentmotion.evaluate.measures import THUMBNAIL_FRAMES, THUMBNAIL_SIZE, Measures, hash_network
from contentmotion.evaluate.parts import Part
from contentmotion.evaluate.scores import NUM_HALVINGS
from contentmotion.evaluate.store import digest, file_digest
from contentmotion.pipelines.base import LatentPipeline
from contentmotion.pipelines.sampling import resolve_sampling
from contentmotion.run_dir import describe_hardware
from contentmotion.video.sources import StoredVideo, file_size

MEASURES_VERSION = 1  # to be raised when the same videos get other numbers: stored ones are then not used again
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
    pipeline: LatentPipeline | None,
    measures: Measures,
    dtype: str,
    device: torch.device,
    source: str | None,
) -> dict[str, Any]:
    """How the numbers are made. `part_protocol` says which entries a part depends on; `source` names the model."""
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
            "clip_sha256": measures.clip_digest,
            "version": MEASURES_VERSION,
            "motion": "mean absolute difference of consecutive frames; length of OpenCV's DIS optical flow, pixels",
            "halves": f"mean of {NUM_HALVINGS} random splits",
            "nearest": "Euclidean, among all real clips, heldout included; equal captions count as one; pixels: of "
            f"{THUMBNAIL_FRAMES} frames at {THUMBNAIL_SIZE}x{THUMBNAIL_SIZE}, averaged over areas",
        },
        "clips": {
            "data_sha256": _data_digest(clips),
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
        },
        "counts": {
            "split": config.split,
            "selected_sha256": digest(clips.selected),
            "num_clips": len(clips.selected),
            "num_generated": len(clips.drawn if generated is None else generated.selected),
            "num_seeds": config.num_seeds,
        },
        "run": {
            "model": source,
            "data_dir": config.data_dir,
            "generated_dir": config.generated_dir,
            "preset": config.preset,
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
        protocol["generated"] = {
            "data_sha256": _content_digest(generated),
            "captions_sha256": _captions_digest(generated),
        }
    if pipeline is not None:
        protocol["model"] = {
            "weights_sha256": _weights_digests(pipeline),
            "compute_dtype": dtype,
            "device_type": device.type,
        }
        if any(_schedulers(pipeline)):
            protocol["sampling"] = _describe_sampling(pipeline, config)
    return protocol


def _schedulers(pipeline: LatentPipeline) -> list[Any]:
    return [pipeline.components.get(name) for name in ("scheduler", "motion_scheduler")]


def _describe_sampling(pipeline: LatentPipeline, config: EvaluateConfig) -> dict[str, Any]:
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
            f"{type(s).__name__} {digest(dict(s.config))[:16]}" for s in _schedulers(pipeline) if s is not None
        ],
        "noise": "one generator per clip, from (seed, index)",
        "seeds": list(range(config.seed, config.seed + config.num_seeds)),
    }


def _captions_digest(clips: Clips) -> str:
    records = clips.folder.records
    return digest([(clips.caption(i), records[i].label) for i in range(len(records))])


def _content_digest(clips: Clips) -> str:
    """Of the files' bytes: videos made anew often have the names and sizes of the old ones."""
    return digest([_content_of(record.path) for record in clips.folder.records])


def _content_of(source: Path | StoredVideo) -> list[str]:
    if not isinstance(source, Path):
        return [str(source), str(file_size(source))]
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    return [f"{file.name} {file_digest(file)}" for file in files if file.is_file()]


def _data_digest(clips: Clips) -> str:
    root = clips.folder.root
    return digest([(os.path.relpath(str(r.path), root), file_size(r.path)) for r in clips.folder.records])


def part_protocol(part: Part, protocol: dict[str, Any]) -> dict[str, Any]:
    """The entries that a part's results depend on: how many clips there are is not among them."""
    own = {key: protocol[key] for key in ("features", "measures", "clips")}
    if part.name == "generated":
        own["generated"] = protocol["generated"]
    elif part.name != "real":
        hashes = protocol["model"]["weights_sha256"]
        used = hashes.keys() & NETWORKS[part.name] if part.name in NETWORKS else hashes
        own["model"] = protocol["model"] | {"weights_sha256": {name: hashes[name] for name in sorted(used)}}
    if part.seed is not None:
        own["sampling"] = {k: v for k, v in protocol["sampling"].items() if k != "seeds"} | {"seed": part.seed}
    return own


def _weights_digests(pipeline: LatentPipeline) -> dict[str, str]:
    """sha256 over every tensor and setting of each network, whatever files they came from."""
    digests = {}
    for name, component in sorted(pipeline.components.items()):
        if not isinstance(component, nn.Module):
            continue
        # A diffusers config holds scales and switches.
        settings = (
            {k: v for k, v in component.config.items() if k[0] != "_"} if isinstance(component, ModelMixin) else {}
        )
        digests[name] = hash_network(component, settings)
    return digests
