"""Content frames: one file a family of image models, and the table of them.

``FAMILIES`` names the stage for each class of network; a new family is one file and one row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contentmotion.loading import resolve_name
from contentmotion.stages.content.dit import DiTContent
from contentmotion.stages.content.stable_diffusion import StableDiffusionContent
from contentmotion.stages.stage import Stage

FAMILIES: dict[str, type[Stage]] = {
    "UNet2DConditionModel": StableDiffusionContent,
    "DiTTransformer2DModel": DiTContent,
}
ARCHITECTURES: dict[str, type[Stage]] = {"unet": StableDiffusionContent, "dit": DiTContent}  # made from scratch


def content_stage(components: Mapping[str, Any]) -> Stage:
    """The stage that a pipeline's components make.

    Raises:
        ValueError: No family has such a network.
    """
    kind = type(getattr(components["unet"], "_orig_mod", components["unet"])).__name__
    return family_of(kind)(components)


def family_of(network_class: str) -> type[Stage]:
    """The stage of a network's class.

    Raises:
        ValueError: No family has such a network.
    """
    if network_class not in FAMILIES:
        raise ValueError(
            f"{network_class}: no content model of this kind is known; those with {', '.join(FAMILIES)} are"
        )
    return FAMILIES[network_class]


def load_content(name_or_path: str) -> Stage:
    """The content stage of an image pipeline's folder or hub id.

    Raises:
        ValueError: A part is missing, or it is of no known family.
    """
    config = Path(resolve_name(name_or_path)) / "unet" / "config.json"
    kind = json.loads(config.read_text(encoding="utf-8")).get("_class_name") if config.is_file() else None
    return family_of(kind or "UNet2DConditionModel").load(name_or_path)  # type: ignore[attr-defined]
