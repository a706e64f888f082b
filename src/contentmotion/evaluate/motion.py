"""How much moves in a clip: models of few steps lose motion while each of their frames looks well."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from contentmotion.evaluate.checks import require_clips

MIN_SIZE = 16  # pixels, height and width: two of DIS's patches


def frame_difference(videos: np.ndarray | Tensor) -> Tensor:
    """Mean absolute difference of consecutive frames, of each clip.

    Args:
        videos: uint8 (b, t, h, w, 3), t >= 2.

    Returns:
        float64 (b,), in [0, 1] of the full range: 0 for a still clip.

    Raises:
        ValueError: Another type or shape, or a single frame.
    """
    videos = _require_frames(videos)
    differences = [(clip[1:].int() - clip[:-1].int()).abs().double().mean() / 255 for clip in videos]
    return torch.stack(differences) if differences else torch.zeros(0, dtype=torch.float64)


def optical_flow(videos: np.ndarray | Tensor) -> Tensor:
    """Mean length of the optical flow between consecutive frames, of each clip, at its own size.

    The flow is OpenCV's DIS with the preset "medium", on grey levels. It follows texture: a flat region counts as
    still, and what moves further than about an eighth of the picture in a step is underrated.

    Source: Kroeger et al. 2016 (arXiv 1603.03590).

    Args:
        videos: uint8 (b, t, h, w, 3), t >= 2, at least `MIN_SIZE` pixels high and wide.

    Returns:
        float64 (b,), in pixels per frame step: 0 for a still clip.

    Raises:
        ValueError: Another type or shape, a single frame, or frames that are too small.
    """
    videos = _require_frames(videos)
    if min(videos.shape[2:4]) < MIN_SIZE:
        raise ValueError(f"optical flow needs frames of {MIN_SIZE}x{MIN_SIZE} or more, got {tuple(videos.shape[2:4])}")
    lengths = torch.zeros(len(videos), dtype=torch.float64)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the same numbers on every machine
    try:
        for k, clip in enumerate(videos.cpu().numpy()):
            grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
            steps = [_flow_length(a, b) for a, b in zip(grey[:-1], grey[1:], strict=True)]
            lengths[k] = float(np.mean(steps))
    finally:
        cv2.setNumThreads(threads)
    return lengths


def _flow_length(a: np.ndarray, b: np.ndarray) -> float:
    """Mean length of the flow between two grey pictures, in pixels."""
    # A new estimator for each pair: one that is used again starts from its last sizes.
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(a, b, None)
    return float(np.linalg.norm(flow.astype(np.float64), axis=-1).mean())


def _require_frames(videos: np.ndarray | Tensor) -> Tensor:
    (clips,) = require_clips(videos)
    if clips.shape[1] < 2:
        raise ValueError(f"motion needs clips of 2 frames or more, got {clips.shape[1]}")
    return clips
