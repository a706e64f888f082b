"""How papers evaluated, by name: the settings behind an FVD, which move it as much as the model does."""

from __future__ import annotations

from dataclasses import dataclass, replace

from contentmotion.config import EvaluateConfig
from contentmotion.config.use import Resize


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The settings of an evaluation; every one of them takes one random clip per video, at I3D's 224x224.

    Attributes:
        source: Which papers, and where they say it.
        num_videos: Real clips; None for all that there are.
        num_generated: Generated videos; None for as many as real clips.
        per_class: Generated videos of each class, instead.
        num_frames: Frames of a clip; None: the model's own number.
        needs_prompts: Whether it generates from prompts for the classes.
        resize: Filter of the resizing.
    """

    source: str
    num_videos: int | None = None
    num_generated: int | None = None
    per_class: int | None = None
    num_frames: int | None = None
    needs_prompts: bool = False
    resize: Resize = "bilinear"


PRESETS: dict[str, Preset] = {
    "stylegan-v": Preset(source="Skorokhodov et al. 2022 (arXiv 2112.14683): the rule, for any data"),
    "ucf101-2048": Preset(
        source="CMD (arXiv 2403.14148), Table 1 and appendix B.4; DIGAN, TATS, PVDM: train split",
        num_videos=2048,
        num_frames=16,
    ),
    "ucf101-10000": Preset(
        source="CMD (arXiv 2403.14148), Table 1 with * and appendix B.4; MAGVIT: train split",
        num_generated=10_000,
        num_frames=16,
    ),
    "ucf101-zero-shot": Preset(
        source="CMD (arXiv 2403.14148), Table 2 and appendix B.4; Make-A-Video's counts, prompts of --class_prompts "
        "(PYoCo's): train split",
        per_class=100,
        num_frames=16,
        needs_prompts=True,
    ),
    "webvid": Preset(
        source="CMD (arXiv 2403.14148), Table 3 and appendix B.4: validation split",
        num_videos=5000,
        num_frames=16,
    ),
}


def with_preset(config: EvaluateConfig) -> EvaluateConfig:
    """The config with its preset's numbers where it has none of its own.

    Raises:
        ValueError: The preset generates from prompts for the classes, and none were given.
    """
    preset = PRESETS[config.preset]
    if preset.needs_prompts and not config.class_prompts:
        raise ValueError(
            f"the preset {config.preset} generates from prompts for the classes: give --class_prompts FILE"
        )
    changes = {
        "num_videos": config.num_videos or preset.num_videos,
        "num_generated": config.num_generated or (None if config.videos_per_class else preset.num_generated),
        "videos_per_class": config.videos_per_class or (None if config.num_generated else preset.per_class),
        "num_frames": config.num_frames or preset.num_frames,
        "fvd_resize": config.fvd_resize or preset.resize,
    }
    return replace(config, **changes)  # type: ignore[arg-type]
