"""Content frames by FLUX.2 [klein]: a transformer on 2x2 packed latents, trained by flow matching, that is told of a
prompt by three layers of Qwen3."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from jaxtyping import Float
from torch import Tensor

from contentmotion.stages.content.transformer import CROSS_ATTENTION, TransformerContent, times_of
from contentmotion.stages.image_vae import normalize_latents
from contentmotion.stages.stage import Condition
from contentmotion.stages.text import CHAT_START, cut_words, masked_mean

LAYERS = 3  # of Qwen3's hidden states, side by side


class Flux2KleinContent(TransformerContent):
    """See ``TransformerContent``; the motion model is told the mean of a prompt's tokens. FLUX.2 [dev] has another text
    encoder and is refused."""

    title = "FLUX.2 [klein]"
    stock = Flux2KleinPipeline
    takes_references = True
    guided_in_one_call = False
    text_classes = {"text_encoder": "Qwen3ForCausalLM", "tokenizer": "Qwen2TokenizerFast"}
    max_tokens = 512
    lora_targets = (*CROSS_ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "to_qkv_mlp_proj")

    def text_features(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        tokens, _ = self.text_pipeline.encode_prompt(list(prompts), device=self.text_device())
        tokenizer = self.components["tokenizer"]
        asked = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            for prompt in prompts
        ]
        padded = {"padding": "max_length", "truncation": True, "max_length": self.max_tokens}
        mask = tokenizer(asked, return_tensors="pt", **padded).attention_mask
        return {"tokens": tokens, "pooled": masked_mean(tokens, mask)}

    @property
    def token_width(self) -> int:
        return LAYERS * self.components["text_encoder"].config.hidden_size

    def cut_words(self, prompt: str) -> str:
        return cut_words(self.components["tokenizer"], prompt, self.max_tokens - CHAT_START)

    def forward(
        self, noisy: Float[Tensor, "b c h w"], timesteps: Tensor, condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        tokens = condition["encoder_hidden_states"].to(self.dtype)
        x = noisy.to(self.dtype).flatten(2).transpose(1, 2)  # (b, h w, c)
        flow = self.network(
            x, encoder_hidden_states=tokens, timestep=times_of(timesteps, noisy) / 1000, guidance=None,
            img_ids=self.stock._prepare_latent_ids(noisy).to(noisy.device),
            txt_ids=self.stock._prepare_text_ids(tokens).to(noisy.device),
        ).sample  # fmt: skip
        return flow.transpose(1, 2).unflatten(2, noisy.shape[2:])

    def set_timesteps(self, steps: int, shape: Sequence[int], device: torch.device) -> None:
        """As the stock pipeline does, by the number of tokens."""
        if not self.scheduler.config.get("use_dynamic_shifting"):
            return super().set_timesteps(steps, shape, device)
        mu = compute_empirical_mu(math.prod(shape[2:]), steps)
        self.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=device, mu=mu)

    def from_stock(self, latents: Tensor) -> Float[Tensor, "b c h w"]:
        """The stock pipeline returns what its VAE decodes, neither packed nor standardised."""
        return normalize_latents(self.components["vae"], latents)
