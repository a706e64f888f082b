"""One face for every network that denoises: ``denoiser(noisy, timesteps, batch, dropped) -> output``.

Training (and distillation) is written against it once; the adapters below know what each network wants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet3DConditionModel
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from contentmotion.draws import randn, std
from contentmotion.models.condition_encoder import ConditionEncoder
from contentmotion.models.motion_dit import MotionDiT
from contentmotion.stages.text import NULL_PROMPT, drop_prompts, encode_prompts


class Denoiser(Protocol):
    """What a network looks like to the training loss."""

    def __call__(
        self, noisy: Tensor, timesteps: Int[Tensor, " b"], batch: dict[str, Any], dropped: Bool[Tensor, " b"]
    ) -> Tensor:
        """Predicts from noisy samples.

        Args:
            noisy: Noisy samples (b, ...).
            timesteps: Diffusion times, 0 to 999.
            batch: Items of a latent cache: "caption" or "label", and "content" or "latents".
            dropped: Items that get the null condition.
        """
        ...


class _WithText(nn.Module):
    """What the denoisers share: features of prompts, by their own text encoder or out of a latent cache."""

    text_encoder: Any | None
    tokenizer: Any | None

    def __init__(self) -> None:
        super().__init__()
        self._null: tuple[Tensor, Tensor] | None = None

    def token_features(self, batch: dict[str, Any], dropped: Bool[Tensor, " b"]) -> Float[Tensor, "b n d"]:
        """Text features per token of a batch's captions, null where dropped; the cache's where it has them."""
        if "tokens" not in batch:
            return encode_prompts(self.tokenizer, self.text_encoder, drop_prompts(batch["caption"], dropped))[0]
        return torch.where(dropped[:, None, None].to(batch["tokens"].device), self.null_features()[0], batch["tokens"])

    @torch.no_grad()
    def pooled_features(self, batch: dict[str, Any], dropped: Bool[Tensor, " b"]) -> Float[Tensor, "b p"]:
        """The same of whole captions; no gradient reaches the text encoder."""
        if "pooled" not in batch:
            return encode_prompts(self.tokenizer, self.text_encoder, drop_prompts(batch["caption"], dropped))[1]
        return torch.where(dropped[:, None].to(batch["pooled"].device), self.null_features()[1], batch["pooled"])

    @torch.no_grad()
    def null_features(self) -> tuple[Float[Tensor, "1 n d"], Float[Tensor, "1 p"]]:
        """The null prompt's features, encoded once: where a cache has the others, the text encoder is frozen."""
        assert self.text_encoder is not None
        device = self.text_encoder.device
        if self._null is None or self._null[0].device != device:
            # In full precision, as `encode` does by default, and whatever the first step that asks runs in.
            with torch.autocast(device.type, enabled=False):
                self._null = encode_prompts(self.tokenizer, self.text_encoder, [NULL_PROMPT])
        return self._null


class ContentDenoiser(_WithText):
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
        hidden = self.token_features(batch, dropped)
        return self.unet(noisy, timesteps, encoder_hidden_states=hidden).sample


class MotionDenoiser(_WithText):
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
        pooled = self.pooled_features(batch, dropped)
        return self.transformer(noisy, timesteps, content, pooled_text=pooled)


class VideoDenoiser(_WithText):
    """A video UNet with its text encoder on the latents of whole clips; with a condition encoder on more.

    Of a batch it takes "conditions" and "present" besides, where there are any (``data.conditions``).
    """

    def __init__(
        self,
        unet: UNet3DConditionModel,
        text_encoder: Any,
        tokenizer: Any,
        condition_encoder: ConditionEncoder | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.tokenizer = unet, text_encoder, tokenizer
        self.condition_encoder = condition_encoder

    def forward(
        self, noisy: Tensor, timesteps: Int[Tensor, " b"], batch: dict[str, Any], dropped: Bool[Tensor, " b"]
    ) -> Tensor:
        hidden = self.token_features(batch, dropped)
        x = noisy  # (b, t, c, h, w)
        if self.condition_encoder is not None:
            given, present = batch.get("conditions", {}), batch.get("present")
            x = torch.cat([x, encode_conditions(self.condition_encoder, given, x.shape, present).to(x)], dim=2)
        return self.unet(x.transpose(1, 2), timesteps, encoder_hidden_states=hidden).sample.transpose(1, 2)


def encode_conditions(
    encoder: ConditionEncoder,
    conditions: Mapping[str, Tensor],
    shape: Sequence[int],
    present: Mapping[str, Bool[Tensor, " b"]] | None = None,
) -> Float[Tensor, "b t d h w"]:
    """The channels that go with noisy latents of shape (b, t, c, h, w)."""
    b, t, _, h, w = shape
    return encoder(conditions, t, h, w, present=present, batch_size=b)


def perturb(content: Tensor, strength: float, batch: dict[str, Any]) -> Tensor:
    """Content frames with noise of ``strength`` times their deviation, from the batch's generator."""
    if not strength:
        return content
    noise = randn(content.shape, batch["generator"]).to(content)
    return content + strength * std(content, batch["generator"]) * noise


def drop_labels(labels: Int[Tensor, " b"], dropped: Bool[Tensor, " b"], num_classes: int) -> Int[Tensor, " b"]:
    """Class labels with the dropped ones replaced by the null class, ``num_classes``."""
    return torch.where(dropped.to(labels.device), num_classes, labels)
