"""Content frames by Stable Diffusion XL: a UNet that hears two CLIP text encoders and the picture's size (Podell et al.
2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from contentmotion.stages.content.stable_diffusion import StableDiffusionContent
from contentmotion.stages.image_vae import vae_scale_factor
from contentmotion.stages.stage import Condition
from contentmotion.stages.text import NULL_PROMPT, tokenize


class StableDiffusionXLContent(StableDiffusionContent):
    """``vae``, ``text_encoder``, ``text_encoder_2``, their tokenizers, ``unet``, ``scheduler``.

    The null prompt is zeros, as the base model was trained and as the stock pipeline has it unless its
    ``force_zeros_for_empty_prompt`` is off. Frames are shown as whole pictures of their own size, uncropped.
    """

    title = "Stable Diffusion XL"
    stock = StableDiffusionXLPipeline
    text_family = "Stable Diffusion XL"
    text_needs = {"tokens": "encoder_hidden_states", "pooled": "text_embeds"}
    text_classes = {
        "text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer",
        "text_encoder_2": "CLIPTextModelWithProjection", "tokenizer_2": "CLIPTokenizer",
    }  # fmt: skip
    trains_text = False
    empty_is_null = False  # zeros where none is given
    vae_overflows = True

    def text_features(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        encoded = []
        for suffix in ("", "_2"):
            encoder = self.components[f"text_encoder{suffix}"]
            ids = tokenize(self.components[f"tokenizer{suffix}"], prompts, encoder.device)
            encoded.append(encoder(ids, output_hidden_states=True))
        tokens, pooled = torch.cat([one.hidden_states[-2] for one in encoded], dim=-1), encoded[1].text_embeds
        named = torch.tensor([prompt != NULL_PROMPT for prompt in prompts], device=pooled.device)
        return {
            "tokens": torch.where(named[:, None, None], tokens, 0.0),
            "pooled": torch.where(named[:, None], pooled, 0.0),
        }

    @property
    def pooled_width(self) -> int:
        return self.components["text_encoder_2"].config.projection_dim

    def hears_as_stock(self, settings: Mapping[str, Any]) -> bool:
        return bool(settings.get("force_zeros_for_empty_prompt", True))

    def added_condition(self, noisy: Tensor, condition: Condition) -> dict[str, Tensor]:
        factor = vae_scale_factor(self.components.get("vae"))
        size = [side * factor for side in noisy.shape[2:]]
        pooled = condition["text_embeds"]
        sizes = torch.tensor([*size, 0, 0, *size], device=noisy.device, dtype=pooled.dtype)  # original, crop, target
        return {"text_embeds": pooled, "time_ids": sizes.expand(len(noisy), -1)}

    def example_condition(self, noisy: Tensor, ones: Tensor) -> Condition:
        encoder, width = self.components["text_encoder_2"].config, self.network.config.cross_attention_dim
        told = {
            "encoder_hidden_states": noisy.new_zeros(len(noisy), encoder.max_position_embeddings, width),
            "text_embeds": noisy.new_zeros(len(noisy), encoder.projection_dim),
        }
        return super().example_condition(noisy, ones) | told
