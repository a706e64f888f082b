"""Conditions for generating: files -> the tensors that a model with conditions takes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from contentmotion.config import ConditionConfig
from contentmotion.data.condition_maps import depth_of, load_depth_model, sketch_of
from contentmotion.data.conditions import known_latents
from contentmotion.data.map_files import MAX_SKEW, sharpen_lines, to_grey
from contentmotion.stages.image_vae import encode_frames, vae_scale_factor
from contentmotion.video.pixels import to_float
from contentmotion.video.reader import probe_video, read_clip
from contentmotion.video.timeline import VideoError

MAX_ENLARGEMENT = 4  # a file with sides shorter than this part of the clip's shows too little


def require_known(names: Sequence[str], known: Sequence[str] | None) -> None:
    """Checks that a model was trained with these conditions.

    Args:
        names: Conditions asked for.
        known: Those of the model; None or empty: it takes none at all.

    Raises:
        ValueError: It was not.
    """
    for name in names:
        if not known:
            raise ValueError(f"--{name}: this model was trained without conditions")
        if name not in known:
            raise ValueError(f"--{name}: this model was not trained with it, only with {', '.join(known)}")


def read_conditions(
    config: ConditionConfig,
    *,
    num_frames: int,
    height: int,
    width: int,
    vae: ModelMixin | None,
    known: Sequence[str] | None,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """The conditions that a command's settings name, as `ConditionEncoder.forward` takes them, with b = 1.

    Of videos the first frames are taken, one after another. Pictures larger or smaller than the clip are resized, and
    cut in the middle where the aspect ratio is another (a line on stderr says so).

    Args:
        config: Names the files.
        num_frames: Frames t of the clip.
        height: Pixels of the clip.
        width: Pixels of the clip.
        vae: The pipeline's image VAE; None: pixels.
        known: Conditions that the model was trained with.
        device: Where the VAE is, the depth model goes, and the result comes.

    Returns:
        "depth", "sketch" (1, t, 1, H, W) in [0, 1]; "mask" (1, t, 1 + c, h, w): the mask, 1 where a latent has any
        pixel to be made, and the driving video's latents elsewhere; "first_frame" (1, 1, c, h, w). Float32; empty where
        nothing is given.

    Raises:
        OSError: No such file.
        ValueError: A condition that the model does not take, a file that is damaged, shorter than the clip, far smaller
            than it, or in colours where it should be grey; one line that names the file or the flag.
    """
    require_known(config.condition_names, known)
    size = (num_frames, height, width)
    conditions: dict[str, Tensor] = {}
    for name in ("depth", "sketch"):
        if (path := getattr(config, name)) is not None:
            conditions[name] = _read_map(name, path, *size)
    if config.driving_video is not None:
        driving = _read_frames("driving_video", config.driving_video, *size)
        for name in config.extract:
            conditions[name] = _extract(name, driving, config, device)
        if config.mask is not None:
            latents = encode_frames(vae, to_float(driving)[None].to(device)).float()
            conditions["mask"] = known_latents(
                latents, _read_mask(config.mask, *size, vae_scale_factor(vae)).to(latents)
            )
    if config.first_frame is not None:
        first = _read_frames("first_frame", config.first_frame, 1, height, width)
        conditions["first_frame"] = encode_frames(vae, to_float(first)[None].to(device)).float()
    return {name: conditions[name].to(device) for name in config.condition_names}


def _read_map(name: str, path: str, num_frames: int, height: int, width: int) -> Tensor:
    """A ready-made map, (1, t, 1, H, W) in [0, 1]."""
    info = probe_video(path)
    grey = to_grey(_to_numpy(_read_frames(name, path, num_frames, height, width)), path)
    if name == "sketch":
        if grey.mean() > 127:
            print(f"{path}: more light than dark, so taken for dark lines on white", file=sys.stderr)
            grey = 255 - grey
        if (info.height, info.width) != (height, width):
            grey = sharpen_lines(grey)
    return torch.from_numpy(grey).float()[None, :, None] / 255


def _extract(name: str, driving: Tensor, config: ConditionConfig, device: torch.device | str) -> Tensor:
    """A map of the driving video, (1, t, 1, H, W) in [0, 1]."""
    if name == "sketch":
        return sketch_of(driving).float()[None] / 255
    assert config.depth_model is not None, "the settings were checked"
    return depth_of(driving, load_depth_model(config.depth_model, device)).float()[None] / 255


def _read_mask(path: str, num_frames: int, height: int, width: int, factor: int) -> Tensor:
    """A mask at the latents' size, (1, t, 1, h, w), 1 where any pixel is to be made; a still picture for all frames."""
    still = probe_video(path).num_frames == 1
    frames = _read_frames("mask", path, 1 if still else num_frames, height, width)
    marked = torch.from_numpy(to_grey(_to_numpy(frames), path)) >= 128
    if not marked.any():
        raise VideoError(f"{path}: a mask without white: nothing is to be made")
    mask = F.max_pool2d(marked.float()[:, None], factor)  # (t or 1, 1, h, w)
    return mask.expand(num_frames, -1, -1, -1)[None]


def _read_frames(flag: str, path: str, num_frames: int, height: int, width: int) -> Tensor:
    """The first frames of a file at the clip's size, uint8 (t, 3, height, width)."""
    info = probe_video(path)
    if info.height * MAX_ENLARGEMENT < height or info.width * MAX_ENLARGEMENT < width:
        raise VideoError(
            f"--{flag} {path}: {info.width}x{info.height} pixels are too few for a clip of {width}x{height} "
            f"(less than 1/{MAX_ENLARGEMENT})"
        )
    if abs(info.width * height / (info.height * width) - 1) > MAX_SKEW:
        print(f"{path}: {info.width}x{info.height} pixels, cut to the shape of {width}x{height}", file=sys.stderr)
    try:
        clip = read_clip(path, num_frames=None, indices=np.arange(num_frames), height=height, width=width)
    except VideoError as error:
        if "needed" not in str(error):
            raise
        raise VideoError(f"--{flag}: shorter than the clip: {error}") from None
    return torch.from_numpy(clip.frames).permute(0, 3, 1, 2)


def _to_numpy(frames: Tensor) -> np.ndarray:
    """Frames (t, 3, h, w) as (t, h, w, 3)."""
    return frames.permute(0, 2, 3, 1).numpy()
