"""What a pipeline may be asked for: whether parts and arguments fit together, and the shapes that follow."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from contentmotion.stages.image_vae import vae_latent_channels, vae_scale_factor
from contentmotion.stages.text import pooled_text_dim


def check_parts(pipe: Any) -> None:
    """Checks that the networks were made for one another.

    Raises:
        ValueError: Two of them disagree about channels or text features.
    """
    channels = vae_latent_channels(pipe.vae)
    if pipe.autoencoder is not None and pipe.autoencoder.config.in_channels != channels:
        raise ValueError(
            f"the autoencoder takes frames of {pipe.autoencoder.config.in_channels} channels, "
            f"the image VAE makes {channels}"
        )
    if pipe.unet is not None and pipe.unet.config.in_channels != channels:
        raise ValueError(f"the content model takes {pipe.unet.config.in_channels} channels, not {channels}")
    if pipe.motion_transformer is not None and pipe.autoencoder is not None:
        motion, own = pipe.motion_transformer.config, pipe.autoencoder.config
        if (motion.motion_channels, motion.content_channels) != (own.motion_channels, own.in_channels):
            raise ValueError(
                f"the motion model was made for {motion.motion_channels} motion and {motion.content_channels} "
                f"content channels, the autoencoder has {own.motion_channels} and {own.in_channels}"
            )
    if pipe.motion_transformer is not None:
        wanted = pipe.motion_transformer.config.text_dim
        given = None if pipe.text_encoder is None else pooled_text_dim(pipe.text_encoder)
        if wanted != given:
            kinds = [f"text features of width {n}" if n else "class labels" for n in (wanted, given)]
            raise ValueError(f"the motion model was made for {kinds[0]}, this pipeline gives it {kinds[1]}")


def check_inputs(
    pipe: Any,
    prompt: Any,
    class_labels: Any,
    negative_prompt: Any,
    num_videos_per_prompt: int,
    output_type: str,
    generator: torch.Generator | list[torch.Generator] | None,
    tensor_inputs: tuple[str, ...],
) -> tuple[list[str], list[int]]:
    """Checks what ``ContentMotionPipeline.__call__`` was given, see there; returns its prompts and its class labels.

    Raises:
        ValueError: Arguments that do not fit each other or the models.
    """
    if output_type not in ("pil", "np", "pt", "latent"):
        raise ValueError(f"output_type must be pil, np, pt or latent, got {output_type!r}")
    if num_videos_per_prompt < 1:
        raise ValueError(f"num_videos_per_prompt must be positive, got {num_videos_per_prompt}")
    names = set(tensor_inputs) - set(pipe._callback_tensor_inputs)
    if names:
        raise ValueError(f"callback_on_step_end_tensor_inputs: only latents exists, got {', '.join(sorted(names))}")
    if pipe.text_encoder is None and isinstance(pipe.unet, UNet2DConditionModel):
        raise ValueError(
            "this pipeline has no text encoder: a folder that shares parts with another one, as students do, is "
            "loaded by contentmotion.load_pipeline"
        )
    wanted, given = ("prompt", prompt) if pipe.text_encoder is not None else ("class_labels", class_labels)
    if given is None or (prompt is not None and class_labels is not None):
        kind = "text" if wanted == "prompt" else "class"
        raise ValueError(f"this model is {kind}-conditional: give {wanted} and nothing else")
    if wanted == "class_labels":
        labels = [class_labels] if isinstance(class_labels, int) else list(class_labels)
        count = num_classes(pipe)
        if not labels or any(not 0 <= label < count for label in labels):
            raise ValueError(f"class_labels must be between 0 and {count - 1}, got {labels}")
        if negative_prompt is not None:
            raise ValueError("a class-conditional model takes no negative_prompt")
        prompts: list[str] = []
    else:
        prompts, labels = ([prompt] if isinstance(prompt, str) else list(prompt)), []
        if not prompts or not all(isinstance(p, str) for p in prompts):
            raise ValueError(f"prompt must be a text or a list of texts, got {prompt!r}")
        if isinstance(negative_prompt, list) and len(negative_prompt) != len(prompts):
            raise ValueError(f"{len(negative_prompt)} negative prompts for {len(prompts)} prompts")
    size = max(len(prompts), len(labels)) * num_videos_per_prompt
    if isinstance(generator, list) and len(generator) != size:
        raise ValueError(f"{len(generator)} generators for {size} videos")
    return prompts, labels


def num_classes(pipe: Any) -> int:
    """Classes of a class-conditional pipeline, the null class not counted."""
    if pipe.motion_transformer is not None:
        return pipe.motion_transformer.config.num_classes
    return pipe.unet.config.num_embeds_ada_norm


def content_shape(pipe: Any, height: int | None, width: int | None) -> tuple[int, int, int]:
    """Channels, height and width of the content frame's latents; the training size where a side is None.

    Raises:
        ValueError: A side that the models cannot make.
    """
    factor = vae_scale_factor(pipe.vae)
    sides = []
    for i, (name, given) in enumerate((("height", height), ("width", width))):
        if pipe.autoencoder is not None:
            config = pipe.autoencoder.config
            default, multiple = (config.sample_height, config.sample_width)[i], config.patch_size
        else:
            size = pipe.unet.config.sample_size
            default, multiple = (size if isinstance(size, int) else size[i]), 1
        if pipe.motion_transformer is not None:
            motion = pipe.motion_transformer.config
            multiple = math.lcm(multiple * motion.patch_size, motion.content_patch_size)
        if hasattr(pipe.unet.config, "block_out_channels"):
            multiple = math.lcm(multiple, 2 ** (len(pipe.unet.config.block_out_channels) - 1))
        elif hasattr(pipe.unet.config, "patch_size"):
            multiple = math.lcm(multiple, pipe.unet.config.patch_size)
        given = given if given is not None else default * factor
        if given <= 0 or given % (factor * multiple):
            raise ValueError(f"{name} must be a multiple of {factor * multiple}, got {given}")
        sides.append(given // factor)
    return (pipe.unet.config.in_channels, *sides)


def motion_shape(pipe: Any, content_shape: tuple[int, ...], num_frames: int | None) -> tuple[int, int, int]:
    """Channels, frames and places of the motion latent that goes with a content frame.

    Raises:
        ValueError: A number of frames that the motion model cannot make.
    """
    own, patch = pipe.autoencoder.config, pipe.motion_transformer.config.patch_size
    frames: int = own.num_frames if num_frames is None else num_frames
    if frames <= 0 or frames % patch:
        raise ValueError(f"num_frames must be a multiple of {patch}, got {frames}")
    _, height, width = content_shape
    return (own.motion_channels, frames, height // own.patch_size + width // own.patch_size)
