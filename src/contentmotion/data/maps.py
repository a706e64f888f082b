"""Maps of videos, depth and sketches: taken from a clip's own frames, or read from files that lie beside the videos.

Sketches are OpenCV's Canny edges; depth is a depth-estimation model's. Files are cut exactly as the videos' clips are.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from contentmotion.data.records import ClipRecord, MappedRecords, Records
from contentmotion.video.reader import probe_video, read_clip
from contentmotion.video.sources import VIDEO_SUFFIXES
from contentmotion.video.timeline import VideoError

# Canny's thresholds are on |dx| + |dy| of 3x3 Sobel filters, where a vertical step of s grey levels measures 4 s.
FAINTEST = 4.0 * 10  # weaker is noise: codecs leave as much on flat ground
WEAK = 0.4  # of the threshold: what is above that belongs to an edge that is above it elsewhere
# Models that predict metres, not nearness; others say so in `depth_estimation_type`.
DISTANCE_MODELS = ("depth_pro", "glpn", "zoedepth", "prompt_depth_anything")
MAX_COLOUR = 8  # mean difference of the channels, in grey levels: more is a picture in colours, no map
MAX_SKEW = 0.02  # relative difference of two aspect ratios that rounding explains
DARK = 64  # grey levels: a sketch's lines that shrank with the picture stand out by at least so much


def sketch_of(frames: Tensor) -> Tensor:
    """The edges of a clip, by Canny's detector.

    A gradient is that of the colour channel where it is steepest, so red on an equally light green is an edge too. The
    threshold is Otsu's, over the gradients of the whole clip: one for all frames, so that lines do not flicker.

    Source: Canny 1986; Otsu 1979.

    Args:
        frames: uint8 (t, 3, H, W).

    Returns:
        uint8 (t, 1, H, W): 255 on lines, else 0.
    """
    gradients = [_gradient(frame) for frame in frames.permute(0, 2, 3, 1).cpu().numpy()]
    strength = np.stack([np.abs(dx.astype(np.int32)) + np.abs(dy) for dx, dy in gradients])
    threshold = max(_otsu(strength), FAINTEST)
    edges = [cv2.Canny(dx, dy, WEAK * threshold, threshold) for dx, dy in gradients]
    return torch.from_numpy(np.stack(edges))[:, None]


def _gradient(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sobel derivatives int16 (h, w) along x and y, at each pixel those of the steepest channel."""
    dx, dy = (cv2.Sobel(frame, cv2.CV_16S, *order, ksize=3) for order in ((1, 0), (0, 1)))
    steepest = (np.abs(dx) + np.abs(dy)).argmax(axis=-1)[..., None]
    return tuple(np.ascontiguousarray(np.take_along_axis(d, steepest, axis=-1)[..., 0]) for d in (dx, dy))  # type: ignore[return-value]


def _otsu(values: np.ndarray) -> float:
    """The threshold that parts values (>= 0) into the two most different groups."""
    scale = max(float(values.max()), 1.0) / 255
    levels = (values / scale).astype(np.uint8).reshape(-1, 1)
    return cv2.threshold(levels, 0, 255, cv2.THRESH_OTSU)[0] * scale


@dataclass(frozen=True)
class DepthEstimator:
    """A depth-estimation model of transformers, frozen, and what prepares pictures for it."""

    model: Any
    processor: Any
    gives_distance: bool  # larger numbers mean farther away


def load_depth_model(name_or_path: str, device: torch.device | str = "cpu") -> DepthEstimator:
    """A depth-estimation model by hub id or folder: Depth Anything, DPT (MiDaS), ZoeDepth, Depth Pro, GLPN, ...

    Raises:
        ValueError: There is none, or the folder holds something else; one line.
    """
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    # With diffusers, of which readers of videos need nothing.
    from contentmotion.loading import explain, quiet, resolve_name

    path = resolve_name(name_or_path)
    try:
        with quiet():
            model = AutoModelForDepthEstimation.from_pretrained(path, use_safetensors=True, trust_remote_code=False)
            processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # transformers, safetensors, json and the hub each raise their own
        raise ValueError(explain(f"a depth model from {path}", path, error)) from error
    kind = getattr(model.config, "depth_estimation_type", None)
    distance = kind == "metric" or model.config.model_type in DISTANCE_MODELS
    return DepthEstimator(model.eval().requires_grad_(False).to(device), processor, distance)


@torch.no_grad()
def depth_of(frames: Tensor, depth_model: DepthEstimator, chunk_size: int = 8) -> Tensor:
    """The depth of a clip, frame by frame, at the clip's size.

    One scale for the whole clip, from its farthest to its nearest place: nothing pumps when a thing comes or goes.

    Args:
        frames: uint8 (t, 3, H, W).
        chunk_size: Frames at once.

    Returns:
        uint8 (t, 1, H, W): 255 the nearest, 0 the farthest place; all 0 where the model sees no difference.
    """
    size = (frames.shape[-2], frames.shape[-1])
    parts = [_predict(chunk, depth_model, size) for chunk in frames.split(chunk_size)]
    nearness = torch.cat(parts)  # (t, H, W)
    if depth_model.gives_distance:
        nearness = 1 / nearness.clamp_min(1e-4)
    return spread(nearness)[:, None]


def spread(nearness: Tensor) -> Tensor:
    """Any scale to uint8, the least to 0 and the greatest to 255, over all of a clip at once (constant: all 0)."""
    low, high = nearness.min(), nearness.max()
    return ((nearness - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)


def _predict(frames: Tensor, depth_model: DepthEstimator, size: tuple[int, int]) -> Tensor:
    """What the model says of some frames, float32 (t, H, W)."""
    pictures = list(frames.permute(0, 2, 3, 1).cpu().numpy())
    inputs = depth_model.processor(images=pictures, return_tensors="pt").to(depth_model.model.device)
    outputs = depth_model.model(**inputs)
    if hasattr(depth_model.processor, "post_process_depth_estimation"):
        # ZoeDepth's takes off its padding, for which it wants the sizes twice; Depth Pro's applies the focal length.
        process, sizes = depth_model.processor.post_process_depth_estimation, [size] * len(pictures)
        extra = {"source_sizes": sizes} if "source_sizes" in inspect.signature(process).parameters else {}
        found = process(outputs, target_sizes=sizes, **extra)
        return torch.stack([each["predicted_depth"].float().cpu() for each in found])
    predicted = outputs.predicted_depth.float()[:, None]
    return F.interpolate(predicted, size, mode="bicubic", align_corners=False)[:, 0].cpu()


def to_grey(frames: np.ndarray, name: str) -> np.ndarray:
    """A map's one channel, uint8 (t, h, w), of uint8 RGB (t, h, w, 3); a `VideoError` where that is in colours."""
    low, high = frames.min(axis=-1), frames.max(axis=-1)
    if (high - low).mean() > MAX_COLOUR:
        raise VideoError(f"{name}: in colours; a map is grey (depth: white is near; sketch: white lines on black)")
    return frames[..., 1]


def read_map(path: Path, name: str, video: Path, indices: np.ndarray, **cut: Any) -> np.ndarray:
    """The map that goes with a clip: the same frames, the same part of the picture.

    Args:
        path: The map's video file or frame folder, frame by frame that of the video; it may have another size.
        name: "depth" or "sketch".
        video: The video itself.
        indices: Numbers of the clip's frames in it.
        **cut: How the clip was cut: "height", "width", "resize_mode" and "crop" of `read_clip`.

    Returns:
        uint8 (t, height, width).

    Raises:
        OSError: No such file.
        VideoError: Damaged, fewer frames than the clip needs, in colours, or of another aspect ratio than the video.
    """
    info, own = probe_video(path), probe_video(video)
    if abs(info.width * own.height / (info.height * own.width) - 1) > MAX_SKEW:
        raise VideoError(
            f"{path}: {info.width}x{info.height} pixels, another aspect ratio than its video's {own.width}x{own.height}"
        )
    grey = to_grey(read_clip(path, num_frames=None, indices=indices, **cut).frames, str(path))
    resized = grey.shape[1:] != (info.height, info.width)
    return sharpen_lines(grey) if name == "sketch" and resized else grey


def sharpen_lines(grey: np.ndarray) -> np.ndarray:
    """A resized sketch, uint8 (t, h, w), as black and white (0, 255) again: thin lines grey when a picture shrinks.

    White is what has 0.4 of the lightest place's level, or of 64 where that is darker.
    """
    return np.where(grey >= 0.4 * max(int(grey.max()), DARK), 255, 0).astype(np.uint8)


def with_depth(records: Sequence[ClipRecord], root: Path, folder: Path) -> Records:
    """Records of a data set with depth out of a folder of maps, in place of that which their list names.

    A video's map has its name below the data set's root, or that name without its first folder (`videos/a/1.mp4`:
    `a/1.*`), with any suffix that the readers know, or is a folder of frames.

    Raises:
        OSError: No such folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: no such folder")
    return MappedRecords(records, partial(_with_depth, root=root, folder=folder))


def _with_depth(record: ClipRecord, *, root: Path, folder: Path) -> ClipRecord:
    others = tuple(pair for pair in record.conditions if pair[0] != "depth")
    return replace(record, conditions=(*others, ("depth", _find_map(record, root, folder))))


def _find_map(record: ClipRecord, root: Path, folder: Path) -> Path:
    """The map's file; the name that it should have, without a suffix, where there is none."""
    inside = isinstance(record.path, Path) and record.path.is_relative_to(root)
    name = record.path.relative_to(root) if inside else Path(Path(str(record.path)).name)  # type: ignore[union-attr]
    is_folder = isinstance(record.path, Path) and record.path.is_dir()
    if not is_folder and not name.suffix[1:].isdigit():  # "clip 1.5", be it of frames, has no suffix
        name = name.with_suffix("")
    candidates = [name, Path(*name.parts[1:])] if len(name.parts) > 1 else [name]
    for candidate in candidates:
        if (folder / candidate).is_dir():
            return folder / candidate
        for suffix in VIDEO_SUFFIXES:
            if (file := folder / f"{candidate}{suffix}").is_file():
                return file
    return folder / candidates[-1]
