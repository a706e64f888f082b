"""Settings of conditions: what a video has to follow besides its text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from contentmotion.config.common import Settings, require

ConditionName = Literal["depth", "sketch", "mask", "first_frame"]
MapName = Literal["depth", "sketch"]
CONDITION_NAMES: tuple[str, ...] = get_args(ConditionName)
MAP_NAMES: tuple[str, ...] = get_args(MapName)


@dataclass(frozen=True, kw_only=True)
class ConditionConfig(Settings):
    """Files that a video has to follow, for models trained with conditions.

    Of videos the first frames count; what has another size or aspect ratio is resized and cut like training clips.

    Attributes:
        depth: Depth to follow: a grey video, gif or folder of frames, white = near.
        sketch: Sketch to follow: video, gif or folder of frames, white lines on black.
        mask: What to make anew, white; where it is black, the driving video stays. A video, or a picture for all of it.
        first_frame: The picture that the video begins with (of a video, its first frame).
        driving_video: The video that the mask keeps a part of, or that `extract` takes depth or sketches from.
        extract: What to take from the driving video: depth, sketch, or both.
        depth_model: Model for `extract depth`, a folder or hub id such as depth-anything/Depth-Anything-V2-Small-hf.
    """

    depth: str | None = None
    sketch: str | None = None
    mask: str | None = None
    first_frame: str | None = None
    driving_video: str | None = None
    extract: tuple[MapName, ...] = ()
    depth_model: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.extract:
            require(name in MAP_NAMES, f"--extract {name}: only depth and sketch can be taken from a video")
            require(getattr(self, name) is None, f"--{name} is given and --extract {name} too: leave one of them out")
        require(not self.mask or bool(self.driving_video), "--mask needs --driving_video, whose black part stays")
        require(not self.extract or bool(self.driving_video), "--extract needs --driving_video to take it from")
        if self.driving_video and not (self.extract or self.mask):
            raise ValueError("--driving_video does nothing by itself: give --extract depth, --extract sketch or --mask")
        require("depth" not in self.extract or bool(self.depth_model), "--extract depth needs --depth_model")

    @property
    def condition_names(self) -> tuple[str, ...]:
        """The conditions that are given."""
        return tuple(name for name in CONDITION_NAMES if getattr(self, name) or name in self.extract)
