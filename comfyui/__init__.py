"""Nodes for ComfyUI: load a model, generate, take a video apart, put content and motion together again.

Copy or link this folder into ComfyUI's ``custom_nodes`` as ``contentmotion``, and install the package into ComfyUI's
Python. Frames are ComfyUI's IMAGE, float (t, h, w, 3) in [0, 1], which its own nodes save as videos.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from contentmotion import ContentMotionPipeline
from contentmotion.pipelines.inputs import as_videos
from contentmotion.pipelines.loading import load_pipeline
from contentmotion.run_dir import resolve_device, resolve_dtype
from contentmotion.stages.image_vae import decode_frames
from contentmotion.video.pixels import to_uint8

MODEL, CONTENT, MOTION = "CONTENTMOTION_MODEL", "CONTENTMOTION_CONTENT", "CONTENTMOTION_MOTION"
PRECISIONS = {"auto": "auto", "float32": "no", "float16": "fp16", "bfloat16": "bf16"}


class Load:
    """A pipeline by folder, hub id, or "emoji", the model that comes with the package."""

    CATEGORY, FUNCTION = "contentmotion", "load"
    RETURN_TYPES, RETURN_NAMES = (MODEL,), ("model",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {"name": ("STRING", {"default": "emoji"}), "precision": (list(PRECISIONS),)},
            "optional": {
                "autoencoder": ("STRING", {"default": "", "tooltip": "a folder; completes an image model"}),
                "motion_transformer": ("STRING", {"default": "", "tooltip": "a folder; completes an image model"}),
            },
        }

    def load(
        self, name: str, precision: str = "auto", autoencoder: str = "", motion_transformer: str = ""
    ) -> tuple[ContentMotionPipeline]:
        device = resolve_device("auto")
        dtype = resolve_dtype(PRECISIONS[precision], device)  # type: ignore[arg-type]
        return (load_pipeline(name, autoencoder or None, motion_transformer or None, dtype).to(device),)


class Generate:
    """A video from a prompt (of a class-conditional model the number of a class), or of a picture."""

    CATEGORY, FUNCTION = "contentmotion", "generate"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", "IMAGE", CONTENT), ("frames", "content_frame", "content")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        own = "0: the model's own"
        return {
            "required": {
                "model": (MODEL,),
                "prompt": ("STRING", {"multiline": True, "default": "red heart"}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**63 - 1}),
                "steps": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": own}),
                "guidance_scale": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 100.0, "step": 0.1, "tooltip": own}),
                "num_frames": ("INT", {"default": 0, "min": 0, "max": 5000, "tooltip": own}),
            },
            "optional": {
                "negative_prompt": ("STRING", {"multiline": True, "default": ""}),
                "image": ("IMAGE", {"tooltip": "what is shown, to be moved"}),
                "strength": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.05,
                                       "tooltip": "how much of the picture is drawn anew"}),
            },
        }  # fmt: skip

    def generate(
        self, model: ContentMotionPipeline, prompt: str, seed: int, steps: int = 0, guidance_scale: float = 0.0,
        num_frames: int = 0, negative_prompt: str = "", image: torch.Tensor | None = None, strength: float = 0.0,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
        asked: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative_prompt or None}
        if model.text_encoder is None:
            asked = {"class_labels": int(prompt)}
        if image is not None:
            if len(image) > 1:
                raise ValueError(f"one image is animated, got a batch of {len(image)}")
            asked |= {"image": pictures(image)[0], "strength": strength}
        output: Any = model(
            **asked, num_inference_steps=steps or None, guidance_scale=guidance_scale or None,
            num_frames=num_frames or None, generator=torch.Generator().manual_seed(seed), output_type="pt",
        )  # fmt: skip
        return as_images(output.frames[0]), as_images(output.content_frame), output.content_latents


class Decompose:
    """A clip's content frame and motion latent; of longer videos the first clip, cut to the model's size."""

    CATEGORY, FUNCTION = "contentmotion", "decompose"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", CONTENT, MOTION), ("content_frame", "content", "motion")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"model": (MODEL,), "frames": ("IMAGE",)}}

    def decompose(
        self, model: ContentMotionPipeline, frames: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        clip = as_videos("frames", pictures(frames), *model.clip_shape, fit="crop")
        content, motion = model.encode_video(clip)
        return as_images(decode_frames(model.vae, content[:, None])[:, 0] / 2 + 0.5), content, motion


class Recombine:
    """The clip of a content frame and a motion latent, whichever videos they are of."""

    CATEGORY, FUNCTION = "contentmotion", "recombine"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE",), ("frames",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"model": (MODEL,), "content": (CONTENT,), "motion": (MOTION,)}}

    def recombine(
        self, model: ContentMotionPipeline, content: torch.Tensor, motion: torch.Tensor
    ) -> tuple[torch.Tensor]:
        return (as_images(model.decode(content, motion)[0] / 2 + 0.5),)


def pictures(images: torch.Tensor) -> list[Image.Image]:
    """ComfyUI's images (n, h, w, 3) as PIL has them."""
    return [Image.fromarray(one) for one in to_uint8(images[..., :3], low=0).cpu().numpy()]


def as_images(frames: torch.Tensor) -> torch.Tensor:
    """Frames (n, 3, h, w) in [0, 1] as ComfyUI has them."""
    return frames.movedim(1, -1).float().clamp(0, 1).cpu()


NODE_CLASS_MAPPINGS = {
    "ContentMotionLoad": Load,
    "ContentMotionGenerate": Generate,
    "ContentMotionDecompose": Decompose,
    "ContentMotionRecombine": Recombine,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "ContentMotionLoad": "Load content and motion model",
    "ContentMotionGenerate": "Generate video",
    "ContentMotionDecompose": "Decompose video",
    "ContentMotionRecombine": "Recombine content and motion",
}
