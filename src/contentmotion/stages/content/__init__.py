"""Content frames: one file a family of image models, and the table of them.

A family is a ``ContentStage`` (``family.py``, which says what it offers for sampling and for training) and a row of
``FAMILIES`` under the kind of its network. Nothing else has to know of it: pipelines, loading, export and every command
ask this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import AutoModel

from contentmotion.loading import quiet, resolve_name
from contentmotion.stages.content.dit import DiTContent
from contentmotion.stages.content.family import ContentStage
from contentmotion.stages.content.flux2 import Flux2KleinContent
from contentmotion.stages.content.sana import SanaContent, SanaSprintContent
from contentmotion.stages.content.stable_diffusion import StableDiffusionContent
from contentmotion.stages.content.stable_diffusion_3 import StableDiffusion3Content
from contentmotion.stages.content.stable_diffusion_xl import StableDiffusionXLContent
from contentmotion.stages.content.z_image import ZImageContent

NETWORKS = ("unet", "transformer")  # the component that denoises, by family
FAMILIES: dict[str, type[ContentStage]] = {
    "UNet2DConditionModel": StableDiffusionContent,
    "UNet2DConditionModel with text_time": StableDiffusionXLContent,
    "DiTTransformer2DModel": DiTContent,
    "SD3Transformer2DModel": StableDiffusion3Content,
    "SanaTransformer2DModel": SanaContent,
    "SanaTransformer2DModel with guidance_embeds": SanaSprintContent,
    "Flux2Transformer2DModel": Flux2KleinContent,
    "ZImageTransformer2DModel": ZImageContent,
}
ARCHITECTURES: dict[str, type[ContentStage]] = {"unet": StableDiffusionContent, "dit": DiTContent}  # made from scratch


def content_stage(components: Mapping[str, Any]) -> ContentStage:
    """The stage that a pipeline's components make.

    Raises:
        ValueError: No family has such a network.
    """
    network = next(components[name] for name in NETWORKS if components.get(name) is not None)
    network = getattr(network, "_orig_mod", network)
    return family_of(type(network).__name__, network.config)(components)


def text_stage(components: Mapping[str, Any]) -> ContentStage:
    """What knows how a pipeline's components hear prompts: its content stage, or where it has no content network one
    that has a CLIP text encoder alone."""
    has_network = any(components.get(name) is not None for name in NETWORKS)
    return content_stage(components) if has_network else StableDiffusionContent(components)


def family_of(class_name: str, settings: Mapping[str, Any]) -> type[ContentStage]:
    """The stage for a network of this class and config.

    Raises:
        ValueError: No family has such a network.
    """
    told = settings.get("addition_embed_type")  # besides time and prompt; "text" is more of the same prompt
    if settings.get("guidance_embeds"):  # the guidance scale, of models distilled for it such as SANA-Sprint
        told = "guidance_embeds"
    kind = class_name if told in (None, "text") else f"{class_name} with {told}"
    if kind not in FAMILIES:
        known = ", ".join(f"{family.title} ({name})" for name, family in FAMILIES.items())
        raise ValueError(f"no family of image models with a {kind} is known; known are {known}")
    return FAMILIES[kind]


def load_content(name_or_path: str) -> ContentStage:
    """The content stage of an image pipeline's folder or hub id.

    Raises:
        ValueError: A part is missing, or it is of no known family.
    """
    return family_in(name_or_path).load(name_or_path)


def load_text(name_or_path: str) -> ContentStage:
    """The same without its content network: what knows its prompts.

    Raises:
        ValueError: A part is missing, it is of no known family, or one that hears no prompts.
    """
    family = family_in(name_or_path)
    if not family.text_classes:
        raise ValueError(f"{name_or_path} is a {family.title}: it has no text encoder")
    return family(family.load_text(name_or_path))


def family_in(name_or_path: str) -> type[ContentStage]:
    """The family of an image pipeline's folder or hub id, by its network's config alone; Stable Diffusion's, which says
    what is missing, where there is none.

    Raises:
        ValueError: It is of no known family.
    """
    path = resolve_name(name_or_path)
    for name in NETWORKS:
        try:
            with quiet():
                settings: Any = AutoModel.load_config(path, subfolder=name)
        except OSError:
            continue
        return family_of(str(settings.get("_class_name")), settings)
    return StableDiffusionContent
