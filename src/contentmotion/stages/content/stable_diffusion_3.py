"""Content frames by Stable Diffusion 3 and 3.5: a transformer trained by flow matching on a VAE of 16 channels, that is
told of a prompt by two CLIP text encoders and T5 (Esser et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import StableDiffusion3Pipeline
from jaxtyping import Float
from torch import Tensor

from contentmotion.stages.content.transformer import CROSS_ATTENTION, TransformerContent, times_of
from contentmotion.stages.stage import Condition
from contentmotion.stages.text import cut_words

CLIP_TOKENS = 77


class StableDiffusion3Content(TransformerContent):
    """See ``TransformerContent``; a folder may do without T5 (``text_encoder_3``)."""

    title = "Stable Diffusion 3"
    stock = StableDiffusion3Pipeline
    text_needs = {"tokens": "encoder_hidden_states", "pooled": "pooled_projections"}
    text_classes = {
        "text_encoder": "CLIPTextModelWithProjection", "tokenizer": "CLIPTokenizer",
        "text_encoder_2": "CLIPTextModelWithProjection", "tokenizer_2": "CLIPTokenizer",
        "text_encoder_3": "T5EncoderModel", "tokenizer_3": "T5TokenizerFast",
    }  # fmt: skip
    optional = ("text_encoder_3", "tokenizer_3")
    max_tokens = CLIP_TOKENS + 256
    lora_targets = (*CROSS_ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")

    @property
    def side_multiple(self) -> int:
        return int(self.network.config.patch_size)  # type: ignore[reportArgumentType]

    def text_features(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        if self.components.get("text_encoder_3") is None and self.components.get("transformer") is None:
            raise ValueError("Stable Diffusion 3 without T5 (text_encoder_3): its text features cannot be cached")
        tokens, _, pooled, _ = self.text_pipeline.encode_prompt(
            list(prompts), None, None, device=self.text_device(), do_classifier_free_guidance=False
        )
        return {"tokens": tokens, "pooled": pooled}

    @property
    def pooled_width(self) -> int:
        return sum(self.components[name].config.projection_dim for name in ("text_encoder", "text_encoder_2"))

    @property
    def token_width(self) -> int:
        return int(self.network.config.joint_attention_dim)  # type: ignore[reportArgumentType]

    @property
    def text_lengths(self) -> dict[str, int]:
        lengths = dict.fromkeys(self.text_encoders, CLIP_TOKENS)
        return lengths | ({"text_encoder_3": self.max_tokens - CLIP_TOKENS} if "text_encoder_3" in lengths else {})

    def cut_words(self, prompt: str) -> str:
        if self.components.get("tokenizer_3") is None:
            return super().cut_words(prompt)
        return cut_words(self.components["tokenizer_3"], prompt, self.text_lengths["text_encoder_3"])

    def forward(
        self, noisy: Float[Tensor, "b c h w"], timesteps: Tensor, condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        told = {name: value.to(self.dtype) for name, value in condition.items()}
        return self.network(noisy.to(self.dtype), timestep=times_of(timesteps, noisy), **told).sample
