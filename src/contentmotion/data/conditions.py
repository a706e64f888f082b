"""Conditions, what a video has to follow besides its text: out of a latent cache for training, of files for generating.

In training they are dropped at random, so that any subset serves. Maps themselves are `contentmotion.data.maps`'.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from contentmotion.config import CONDITION_NAMES, MAP_NAMES, ConditionConfig
from contentmotion.data.maps import MAX_SKEW, depth_of, load_depth_model, sharpen_lines, sketch_of, to_grey
from contentmotion.draws import Source, rand
from contentmotion.video.pixels import to_float
from contentmotion.video.reader import first_frames, probe_video, read_clip
from contentmotion.video.timeline import VideoError

MAX_ENLARGEMENT = 4  # a file with sides shorter than this part of the clip's shows too little


def require_conditions(names: Sequence[str], fields: Sequence[str]) -> None:
    """Raises `ValueError` where a condition is unknown, or a cache whose items hold these fields is without it."""
    for name in names:
        if name not in CONDITION_NAMES:
            raise ValueError(f"unknown condition {name!r}: choose from {', '.join(CONDITION_NAMES)}")
        if name in MAP_NAMES and name not in fields:
            raise ValueError(
                f"the latent cache holds no {name}: run `contentmotion encode --latents_only true --conditions {name}` "
                "into another folder"
            )
    if names and "latents" not in fields:
        raise ValueError(
            "the latent cache holds no latents of whole clips: run `contentmotion encode --latents_only true`"
        )


def training_conditions(
    batch: Mapping[str, Any],
    names: Sequence[str],
    generator: Source,
    dropout_prob: float = 0.5,
    drop_all_prob: float = 0.1,
    keep_all_prob: float = 0.1,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The conditions of a batch of cached clips, and which of them each item is shown.

    Args:
        batch: "latents" (b, t, c, h, w), and uint8 (b, t, 1, H, W) "depth" and "sketch" where they are among `names`.
        names: Conditions of the model.
        generator: Draws masks and what is dropped.
        dropout_prob: Share of items without a condition, for each condition by itself.
        drop_all_prob: Share of items without any.
        keep_all_prob: Share of items with all.

    Returns:
        conditions: As `ConditionEncoder.forward` takes them, on the latents' device: maps float in [0, 1]; "mask"
            (b, t, 1 + c, h, w); "first_frame" (b, 1, c, h, w).
        present: Per condition, bool (b,).

    Raises:
        ValueError: An unknown condition, or one that the batch has not.

    Source: Wang et al. 2023 (VideoComposer) after Huang et al. 2023 (Composer): each dropped with probability 0.5, all
    of them with 0.1, none with 0.1.
    """
    require_conditions(names, list(batch))
    if not names:
        return {}, {}
    latents: Tensor = batch["latents"]
    b, t, _, h, w = latents.shape
    conditions = {}
    for name in dict.fromkeys(names):
        if name in MAP_NAMES:
            conditions[name] = batch[name].to(latents.device, latents.dtype) / 255
        elif name == "mask":
            conditions[name] = known_latents(latents, random_tubes(b, t, h, w, generator).to(latents))
        else:
            conditions[name] = latents[:, :1]
    present = draw_present(list(conditions), b, generator, dropout_prob, drop_all_prob, keep_all_prob)
    return conditions, {name: value.to(latents.device) for name, value in present.items()}


def known_latents(latents: Tensor, mask: Tensor) -> Tensor:
    """The condition "mask" (b, t, 1 + c, h, w): the mask, and the latents where it is 0.

    Args:
        latents: Scaled latents (b, t, c, h, w).
        mask: (b, t, 1, h, w): 1 is to be made, 0 is known.
    """
    return torch.cat([mask.to(latents), latents * (1 - mask.to(latents))], dim=2)


def draw_present(
    names: Sequence[str],
    batch_size: int,
    generator: Source,
    dropout_prob: float,
    drop_all_prob: float,
    keep_all_prob: float,
) -> dict[str, Tensor]:
    """Which conditions each item of a batch is shown, bool (b,) by name; see `training_conditions`.

    Raises:
        ValueError: No probabilities, or the last two exceed 1 together.
    """
    if not (0 <= dropout_prob <= 1 and min(drop_all_prob, keep_all_prob) >= 0 and drop_all_prob + keep_all_prob <= 1):
        raise ValueError(
            f"conditions are dropped with probabilities, got {dropout_prob}, {drop_all_prob}, {keep_all_prob}"
        )
    kept = rand((len(names), batch_size), generator, batch_dim=1) >= dropout_prob
    lot = rand((batch_size,), generator)
    kept &= lot >= drop_all_prob
    kept |= lot >= 1 - keep_all_prob
    return dict(zip(names, kept, strict=True))


def random_tubes(batch_size: int, num_frames: int, height: int, width: int, generator: Source) -> Tensor:
    """Masks to train inpainting with, one of three kinds each.

    * half of them a rectangle that glides across the clip, a quarter to three quarters of each side: inpainting;
    * a quarter all but such a rectangle: outpainting;
    * a quarter whole frames from some frame on, or up to one: prediction in time (of a single frame, all of it).

    Returns:
        float32 (batch_size, num_frames, 1, height, width), in latents, on the generator's device: 1 is to be made, 0 is
        known. Every mask has something to be made.
    """
    lots = rand((batch_size, 8), generator)
    kind = lots[:, 0]
    rectangle = _between(height, num_frames, lots[:, 1:4])[..., :, None]
    rectangle = rectangle & _between(width, num_frames, lots[:, 4:7])[..., None, :]  # (b, t, h, w)
    frames = torch.arange(num_frames, device=lots.device)
    boundary = 1 + (lots[:, 7] * (num_frames - 1)).long()  # known frames, or frames to be made
    late = frames >= boundary[:, None] if num_frames > 1 else torch.ones_like(boundary[:, None], dtype=torch.bool)
    backwards = (lots[:, 1] < 0.5) & (num_frames > 1)
    whole = torch.where(backwards[:, None], ~late, late)[..., None, None]
    kind = kind[:, None, None, None]
    masks = torch.where(kind < 0.5, rectangle, torch.where(kind < 0.75, ~rectangle, whole))
    # All but a rectangle is nothing where a side of one or two latents is all rectangle.
    empty = ~masks.flatten(1).any(dim=1)[:, None, None, None]
    return torch.where(empty, torch.ones_like(masks), masks).float()[:, :, None]


def _between(side: int, num_frames: int, lots: Tensor) -> Tensor:
    """An interval of a side that glides from one place to another over a clip, bool (b, t, side); lots (b, 3)."""
    length = (side * (0.25 + 0.5 * lots[:, :1])).round().clamp_min(1)  # (b, 1)
    start, stop = (side - length) * lots[:, 1:2], (side - length) * lots[:, 2:3]
    along = torch.linspace(0, 1, num_frames, device=lots.device)
    first = (start + (stop - start) * along).round()[..., None]  # (b, t, 1)
    places = torch.arange(side, device=lots.device)
    return (places >= first) & (places < first + length[..., None])


def read_conditions(
    config: ConditionConfig,
    *,
    num_frames: int,
    height: int,
    width: int,
    encode: Callable[[Tensor], Tensor],
    pixels_per_latent: int,
    known: Sequence[str] | None,
    fps: float | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """The conditions that a command's settings name, as `ConditionEncoder.forward` takes them, with b = 1.

    Of videos the first frames are taken, at a rate where they have more frames a second than that. Pictures larger or
    smaller than the clip are resized, and cut in the middle where the aspect ratio is another (a line on stderr says
    so).

    Args:
        encode: Frames in [-1, 1] (1, t, 3, H, W) to the model's latents (1, t, c, h, w).
        pixels_per_latent: Along a side.
        known: Conditions that the model was trained with.
        fps: The rate; None: frames are taken one after another.
        device: Where `encode` works, the depth model goes, and the result comes.

    Returns:
        "depth", "sketch" (1, t, 1, H, W) in [0, 1]; "mask" (1, t, 1 + c, h, w): the mask, 1 where a latent has any
        pixel to be made, and the driving video's latents elsewhere; "first_frame" (1, 1, c, h, w). Float32; empty where
        nothing is given.

    Raises:
        OSError: No such file.
        ValueError: A condition that the model does not take, a file that is damaged, shorter than the clip, far smaller
            than it, or in colours where it should be grey; one line that names the file or the flag.
    """
    for name in config.condition_names:
        if not known:
            raise ValueError(f"--{name}: this model was trained without conditions")
        if name not in known:
            raise ValueError(f"--{name}: this model was not trained with it, only with {', '.join(known)}")
    size = (num_frames, height, width)
    conditions: dict[str, Tensor] = {}
    for name in MAP_NAMES:
        if (path := getattr(config, name)) is not None:
            conditions[name] = _read_map(name, path, *size, fps)
    if config.driving_video is not None:
        driving = _to_tensor(_read_frames("driving_video", config.driving_video, *size, fps))
        for name in config.extract:
            if name == "sketch":
                found = sketch_of(driving)
            else:
                assert config.depth_model is not None, "the settings were checked"
                found = depth_of(driving, load_depth_model(config.depth_model, device))
            conditions[name] = found.float()[None] / 255
        if config.mask is not None:
            latents = encode(to_float(driving)[None].to(device)).float()
            mask = _read_mask(config.mask, config.driving_video, *size, fps, pixels_per_latent)
            conditions["mask"] = known_latents(latents, mask)
    if config.first_frame is not None:
        first = _to_tensor(_read_frames("first_frame", config.first_frame, 1, height, width, None))
        conditions["first_frame"] = encode(to_float(first)[None].to(device)).float()
    return {name: conditions[name].to(device) for name in config.condition_names}


def _read_map(name: str, path: str, num_frames: int, height: int, width: int, fps: float | None) -> Tensor:
    """A ready-made map, (1, t, 1, H, W) in [0, 1]."""
    info = probe_video(path)
    grey = to_grey(_read_frames(name, path, num_frames, height, width, fps), path)
    if name == "sketch":
        if grey.mean() > 127:
            print(f"{path}: more light than dark, so taken for dark lines on white", file=sys.stderr)
            grey = 255 - grey
        if (info.height, info.width) != (height, width):
            grey = sharpen_lines(grey)
    return torch.from_numpy(grey).float()[None, :, None] / 255


def _read_mask(
    path: str, driving: str, num_frames: int, height: int, width: int, fps: float | None, factor: int
) -> Tensor:
    """A mask at the latents' size, (1, t, 1, h, w), 1 where any pixel is to be made; a still picture for all frames,
    else frame by frame the driving video's where it has as many."""
    count = probe_video(path).num_frames
    paced = driving if count == probe_video(driving).num_frames else path
    frames = _read_frames("mask", path, 1 if count == 1 else num_frames, height, width, fps, paced)
    marked = torch.from_numpy(to_grey(frames, path)) >= 128
    if not marked.any():
        raise VideoError(f"{path}: a mask without white: nothing is to be made")
    mask = F.max_pool2d(marked.float()[:, None], factor)  # (t or 1, 1, h, w)
    return mask.expand(num_frames, -1, -1, -1)[None]


def _read_frames(
    flag: str, path: str, num_frames: int, height: int, width: int, fps: float | None, paced: str | None = None
) -> np.ndarray:
    """The first frames of a file at the clip's size, uint8 (t, height, width, 3); those with the numbers that another
    one's would have, where ``paced`` names it."""
    info = probe_video(path)
    if info.height * MAX_ENLARGEMENT < height or info.width * MAX_ENLARGEMENT < width:
        raise VideoError(
            f"--{flag} {path}: {info.width}x{info.height} pixels are too few for a clip of {width}x{height} "
            f"(less than 1/{MAX_ENLARGEMENT})"
        )
    if abs(info.width * height / (info.height * width) - 1) > MAX_SKEW:
        print(f"{path}: {info.width}x{info.height} pixels, cut to the shape of {width}x{height}", file=sys.stderr)
    try:
        indices = first_frames(paced or path, num_frames, fps)
        return read_clip(path, num_frames=None, indices=indices, height=height, width=width).frames
    except VideoError as error:
        if "needed" not in str(error):
            raise
        raise VideoError(f"--{flag}: shorter than the clip: {error}") from None


def _to_tensor(frames: np.ndarray) -> Tensor:
    """Frames (t, h, w, 3) as (t, 3, h, w)."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2)
