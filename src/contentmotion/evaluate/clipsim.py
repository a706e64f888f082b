"""CLIPSIM: how well videos fit their prompts, as CLIP sees it.

Sources: Wu et al. 2021, GODIVA (arXiv 2104.14806), section 4.2: the mean over frames of CLIP's similarity; Radford et
al. 2021, CLIP (arXiv 2103.00020). The similarity is the cosine of the two embeddings, without CLIP's factor of 100:
papers print 0.28 to 0.31.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from contentmotion.evaluate.pixel_metrics import require_clips

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

CLIP_MODEL = "openai/clip-vit-base-patch32"  # the one of the papers
FILTERS = {2: "bilinear", 3: "bicubic"}  # by Pillow's number


@dataclass(frozen=True)
class ClipScorer:
    """CLIP with what comes before it.

    Attributes:
        model: Image and text towers, float32, on their device.
        tokenizer: Of the text tower.
        settings: The image processor's: size, crop, mean, deviation.
        max_tokens: Of a prompt (77), the marks of start and end included; longer prompts are cut.
    """

    model: CLIPModel
    tokenizer: CLIPTokenizer
    settings: dict[str, Any]
    max_tokens: int

    @torch.inference_mode()
    def embed_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Embeddings of length 1, on the model's device."""
        tokens = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.model.device)
        features = self.model.get_text_features(tokens["input_ids"], tokens["attention_mask"])
        return F.normalize(features.pooler_output, dim=1)

    @torch.inference_mode()
    def embed_frames(self, frames: UInt8[Tensor, "n h w 3"]) -> Float[Tensor, "n d"]:
        """Embeddings of length 1, on the model's device."""
        # TF32 would change the fourth digit.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            features = self.model.get_image_features(self.preprocess(frames.to(self.model.device)))
        return F.normalize(features.pooler_output, dim=1)

    def preprocess(self, frames: UInt8[Tensor, "n h w 3"]) -> Float[Tensor, "n 3 height width"]:
        """What the image processor does, for whole batches on the device: resize, crop at the centre, normalise."""
        settings = self.settings
        height, width = _resized_size(frames.shape[1], frames.shape[2], settings["size"])
        x = frames.permute(0, 3, 1, 2).float()
        for size in ((frames.shape[1], width), (height, width)):  # as Pillow: rows first, rounded to 8 bits each time
            if x.shape[2:] != size:
                x = F.interpolate(x, size, mode=FILTERS[settings["resample"]], antialias=True).round().clamp(0, 255)
        crop_height, crop_width = settings["crop_size"]["height"], settings["crop_size"]["width"]
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        x = x[:, :, top : top + crop_height, left : left + crop_width]
        mean, std = (x.new_tensor(settings[key])[:, None, None] for key in ("image_mean", "image_std"))
        return (x / 255 - mean) / std


def _resized_size(height: int, width: int, size: dict[str, int]) -> tuple[int, int]:
    if "shortest_edge" not in size:
        return size["height"], size["width"]
    edge = size["shortest_edge"]
    if height <= width:
        return edge, int(edge * width / height)
    return int(edge * height / width), edge


def load_clip(name_or_path: str | Path = CLIP_MODEL, device: torch.device | str = "cpu") -> ClipScorer:
    """Load CLIP for inference, in float32; weights are read from safetensors only.

    Args:
        name_or_path: Hub id or folder of a CLIP model with its tokenizer and image processor.

    Raises:
        OSError: There is no such folder or model, or a file of it is missing.
        ValueError: It is no CLIP model, or its image processor works in another way.
    """
    from transformers import AutoConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    name = str(name_or_path)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if config.model_type != "clip":
            raise ValueError(f"it is of type {config.model_type!r}")
        # Pillow's variant of the class: only its settings are used, and it needs no torchvision.
        settings, _ = CLIPImageProcessorPil.get_image_processor_dict(name)
        settings = CLIPImageProcessorPil.from_dict(settings).to_dict()
        tokenizer = CLIPTokenizer.from_pretrained(name)
        model, info = CLIPModel.from_pretrained(  # type: ignore[misc]
            name, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except OSError as error:
        raise OSError(f"{name}: no CLIP model found ({_first_line(error)})") from None
    except (ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"{name}: not a CLIP model ({_first_line(error)})") from None
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{name}: not a CLIP model (weights have no {missing[0]})")
    _require_usual(settings, name)
    model = model.eval().requires_grad_(False).to(device)
    return ClipScorer(model, tokenizer, settings, config.text_config.max_position_embeddings)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _require_usual(settings: dict[str, Any], name: str) -> None:
    """Raises unless the image processor resizes, crops, rescales and normalises as `ClipScorer.preprocess` does."""
    steps = all(settings.get(f"do_{step}") for step in ("resize", "center_crop", "rescale", "normalize"))
    scale = settings.get("rescale_factor") or 0
    if not steps or settings.get("resample") not in FILTERS or abs(scale * 255 - 1) > 1e-6:
        raise ValueError(f"{name}: an image processor that works unlike CLIP's")
    height, width = _resized_size(1, 1, settings["size"])
    if settings["crop_size"]["height"] > height or settings["crop_size"]["width"] > width:
        raise ValueError(f"{name}: an image processor that crops more than it resizes to")


def clip_similarity(
    clip: ClipScorer, videos: np.ndarray | Tensor, prompts: Sequence[str], batch_size: int = 64
) -> Float[Tensor, " b"]:
    """Mean over a video's frames of the cosine between the frame's and its prompt's embeddings.

    Args:
        clip: From `load_clip`.
        videos: uint8 (b, t, h, w, 3).
        prompts: b of them; what exceeds 77 tokens is cut.
        batch_size: Frames at once.

    Returns:
        float64 (b,) on the CPU, in [-1, 1].

    Raises:
        ValueError: Another type or shape, or another number of prompts.
    """
    (videos,) = require_clips(videos)
    if len(prompts) != len(videos):
        raise ValueError(f"{len(videos)} videos and {len(prompts)} prompts: each video has one")
    if not len(videos):
        return torch.zeros(0, dtype=torch.float64)
    texts = clip.embed_prompts(prompts).repeat_interleave(videos.shape[1], dim=0)
    frames = videos.flatten(0, 1)
    cosines = [
        (clip.embed_frames(part) * text).sum(dim=1).cpu().double()
        for part, text in zip(frames.split(batch_size), texts.split(batch_size), strict=True)
    ]
    return torch.cat(cosines).view(len(videos), -1).mean(dim=1)
