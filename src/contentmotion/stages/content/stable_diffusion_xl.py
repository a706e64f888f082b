"""Content frames by Stable Diffusion XL: a UNet that hears two CLIP text encoders and the picture's size (Podell et al.
2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from jaxtyping import Bool, Float
from torch import Tensor

from contentmotion.loading import load_model, load_tokenizer, resolve_name
from contentmotion.stages.content.stable_diffusion import StableDiffusionContent
from contentmotion.stages.image_vae import vae_scale_factor
from contentmotion.stages.stage import META, Condition
from contentmotion.stages.text import NULL_PROMPT


class StableDiffusionXLContent(StableDiffusionContent):
    """``vae``, ``text_encoder``, ``text_encoder_2``, their tokenizers, ``unet``, ``scheduler``.

    The null prompt is zeros, as the base model was trained and as the stock pipeline has it unless its
    ``force_zeros_for_empty_prompt`` is off. Frames are shown as whole pictures of their own size, uncropped.
    """

    title = "Stable Diffusion XL"
    stock = StableDiffusionXLPipeline
    text_family = "Stable Diffusion XL"
    text_needs = ("tokens", "pooled")
    trains_text = False
    empty_is_null = False  # zeros where none is given
    vae_overflows = True

    @classmethod
    def load_text(cls, name_or_path: str) -> dict[str, Any]:
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        path = resolve_name(name_or_path)
        encoder = load_model(CLIPTextModel, path, "text_encoder", "a text encoder")
        second = load_model(CLIPTextModelWithProjection, path, "text_encoder_2", "a second text encoder")
        return {
            "text_encoder": encoder.requires_grad_(False), "tokenizer": load_tokenizer(name_or_path),
            "text_encoder_2": second.requires_grad_(False), "tokenizer_2": load_tokenizer(name_or_path, "tokenizer_2"),
        }  # fmt: skip

    def text_features(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        hidden, pooled = [], None
        for suffix in ("", "_2"):
            tokenizer, encoder = self.components[f"tokenizer{suffix}"], self.components[f"text_encoder{suffix}"]
            length = tokenizer.model_max_length
            ids = tokenizer(
                list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            ).input_ids
            encoded = encoder(ids.to(encoder.device), output_hidden_states=True)
            hidden.append(encoded.hidden_states[-2])
            pooled = encoded.get("text_embeds")
        assert pooled is not None
        named = torch.tensor([prompt != NULL_PROMPT for prompt in prompts], device=pooled.device)
        features = {"tokens": torch.cat(hidden, dim=-1), "pooled": pooled}
        return {
            name: torch.where(named.view(-1, *[1] * (value.dim() - 1)), value, torch.zeros_like(value))
            for name, value in features.items()
        }

    @property
    def pooled_width(self) -> int:
        return self.components["text_encoder_2"].config.projection_dim

    def hears_as_stock(self, settings: Mapping[str, Any]) -> bool:
        return bool(settings.get("force_zeros_for_empty_prompt", True))

    def stock_text(self, text: Mapping[str, Tensor], null: Mapping[str, Tensor] | None) -> dict[str, Any]:
        pooled = {"pooled_prompt_embeds": text["pooled"], "negative_pooled_prompt_embeds": null and null["pooled"]}
        return super().stock_text(text, null) | pooled

    def encode(self, batch: Mapping[str, Any], dropped: Bool[Tensor, " b"] | None = None) -> Condition:
        text = self.text(batch, dropped)
        told = {"encoder_hidden_states": text["tokens"], "text_embeds": text["pooled"]}
        return told | self.guidance(batch)

    def forward(
        self, noisy: Float[Tensor, "b c h w"], timesteps: Tensor, condition: Condition,
        target_timesteps: Tensor | None = None,
    ) -> Float[Tensor, "b c h w"]:  # fmt: skip
        factor = vae_scale_factor(self.components.get("vae"))
        size = [side * factor for side in noisy.shape[2:]]
        pooled = condition["text_embeds"]
        sizes = torch.tensor([*size, 0, 0, *size], device=noisy.device, dtype=pooled.dtype)  # original, crop, target
        return self.network(
            noisy.to(self.dtype), timesteps, encoder_hidden_states=condition["encoder_hidden_states"],
            timestep_cond=self.guidance_embedding(condition),
            **self.step_length(noisy, timesteps, condition, target_timesteps),
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes.expand(len(noisy), -1)},
        ).sample  # fmt: skip

    def example(self, shape: tuple[int, ...], batch_size: int = 1, device: torch.device = META) -> tuple[Any, ...]:
        place = {"device": device, "dtype": self.dtype}
        encoder = self.components["text_encoder_2"].config
        width = self.network.config.cross_attention_dim
        condition = {
            "encoder_hidden_states": torch.zeros((batch_size, encoder.max_position_embeddings, width), **place),
            "text_embeds": torch.zeros((batch_size, encoder.projection_dim), **place),
        }
        ones = torch.ones(batch_size, dtype=torch.long, device=device)
        return torch.zeros((batch_size, *shape), **place), ones, condition | self.example_told(ones)
