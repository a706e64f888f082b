"""One face for every network that denoises: ``denoiser(noisy, timesteps, batch, dropped) -> output``.

Training (and distillation) is written against it once; the adapters below know what each network wants.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from jaxtyping import Bool, Int
from torch import Tensor, nn

from contentmotion.conditioning import NULL_PROMPT, drop_prompts, encode_prompts
from contentmotion.models.motion_dit import MotionDiT


class Denoiser(Protocol):
    """What a network looks like to the training loss."""

    def __call__(
        self, noisy: Tensor, timesteps: Int[Tensor, " b"], batch: dict[str, Any], dropped: Bool[Tensor, " b"]
    ) -> Tensor:
        """Predicts from noisy samples.

        Args:
            noisy: Noisy samples (b, ...).
            timesteps: Diffusion times, 0 to 999.
            batch: Items of a latent cache: "caption" or "label", and "content".
            dropped: Items that get the null condition.
        """
        ...


class ContentDenoiser(nn.Module):
    """A Stable Diffusion UNet with its text encoder, or a class-conditional DiT, on content frames (CMD Eq. 7)."""

    def __init__(
        self,
        unet: UNet2DConditionModel | DiTTransformer2DModel,
        text_encoder: Any | None = None,
        tokenizer: Any | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.tokenizer = unet, text_encoder, tokenizer

    def forward(
        self, noisy: Tensor, timesteps: Int[Tensor, " b"], batch: dict[str, Any], dropped: Bool[Tensor, " b"]
    ) -> Tensor:
        if self.text_encoder is None:
            labels = drop_labels(batch["label"], dropped, self.unet.config.num_embeds_ada_norm)
            return self.unet(noisy, timestep=timesteps, class_labels=labels).sample
        if "tokens" in batch:  # the cache has them
            null, _ = encode_prompts(self.tokenizer, self.text_encoder, [NULL_PROMPT])
            hidden = torch.where(dropped[:, None, None].to(null.device), null, batch["tokens"])
        else:
            hidden, _ = encode_prompts(self.tokenizer, self.text_encoder, drop_prompts(batch["caption"], dropped))
        return self.unet(noisy, timesteps, encoder_hidden_states=hidden).sample


class MotionDenoiser(nn.Module):
    """The motion DiT on standardised motion latents, with a frozen text encoder (CMD Eq. 8)."""

    def __init__(
        self,
        transformer: MotionDiT,
        text_encoder: Any | None = None,
        tokenizer: Any | None = None,
        content_noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.transformer, self.text_encoder, self.tokenizer = transformer, text_encoder, tokenizer
        self.content_noise = content_noise

    def forward(
        self, noisy: Tensor, timesteps: Int[Tensor, " b"], batch: dict[str, Any], dropped: Bool[Tensor, " b"]
    ) -> Tensor:
        content = perturb(batch["content"], self.content_noise, batch)
        if self.text_encoder is None:
            labels = drop_labels(batch["label"], dropped, self.transformer.config.num_classes)
            return self.transformer(noisy, timesteps, content, class_labels=labels)
        with torch.no_grad():
            if "pooled" in batch:  # the cache has them
                _, null = encode_prompts(self.tokenizer, self.text_encoder, [NULL_PROMPT])
                pooled = torch.where(dropped[:, None].to(null.device), null, batch["pooled"])
            else:
                prompts = drop_prompts(batch["caption"], dropped)
                _, pooled = encode_prompts(self.tokenizer, self.text_encoder, prompts)
        return self.transformer(noisy, timesteps, content, pooled_text=pooled)


def perturb(content: Tensor, strength: float, batch: dict[str, Any]) -> Tensor:
    """Content frames with noise of ``strength`` times their deviation, from the batch's generator."""
    if not strength:
        return content
    noise = torch.randn(content.shape, generator=batch["generator"]).to(content)
    return content + strength * content.std() * noise


def drop_labels(labels: Int[Tensor, " b"], dropped: Bool[Tensor, " b"], num_classes: int) -> Int[Tensor, " b"]:
    """Class labels with the dropped ones replaced by the null class, ``num_classes``."""
    return torch.where(dropped.to(labels.device), num_classes, labels)
