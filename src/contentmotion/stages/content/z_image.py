"""Content frames by Z-Image: a transformer trained by flow matching that is told of a prompt by Qwen3, and whose time
and velocity run towards the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ZImagePipeline
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from contentmotion.stages.content.transformer import CROSS_ATTENTION, TransformerContent, times_of
from contentmotion.stages.stage import Condition
from contentmotion.stages.text import CHAT_START, cut_words, masked_mean


class ZImageContent(TransformerContent):
    """See ``TransformerContent``; the motion model is told the mean of a prompt's tokens."""

    title = "Z-Image"
    stock = ZImagePipeline
    guided_in_one_call = False
    text_needs = {"tokens": "tokens", "tokens_mask": "mask"}
    text_classes = {"text_encoder": "Qwen3Model", "tokenizer": "Qwen2Tokenizer"}
    max_tokens = 512
    lora_targets = CROSS_ATTENTION

    @property
    def side_multiple(self) -> int:
        return min(self.network.config.all_patch_size)

    def text_features(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        tokens, _ = self.text_pipeline.encode_prompt(
            list(prompts), device=self.text_device(), do_classifier_free_guidance=False
        )
        lengths = torch.tensor([len(one) for one in tokens], device=tokens[0].device)
        mask = (torch.arange(self.max_tokens, device=lengths.device) < lengths[:, None]).to(tokens[0].dtype)
        # All of one length, whatever the batch: a cache keeps them side by side.
        longest = tokens[0].new_zeros(self.max_tokens, tokens[0].shape[-1])
        padded = pad_sequence([*tokens, longest], batch_first=True)[:-1]
        return {"tokens": padded, "tokens_mask": mask, "pooled": masked_mean(padded, mask)}

    def cut_words(self, prompt: str) -> str:
        return cut_words(self.components["tokenizer"], prompt, self.max_tokens - CHAT_START)

    def forward(
        self, noisy: Float[Tensor, "b c h w"], timesteps: Tensor, condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        times = (1000 - times_of(timesteps, noisy)) / 1000
        images = list(noisy.to(self.dtype).unsqueeze(2).unbind(0))
        flows = self.network(images, times, unpad(condition["tokens"].to(self.dtype), condition["mask"])).sample
        return -torch.stack(flows).squeeze(2)

    def stock_guidance(self, guidance_scale: float) -> float:
        """``ZImagePipeline`` adds so many times the difference: 0 is none."""
        return max(guidance_scale - 1, 0.0)

    def stock_text(self, text: Mapping[str, Tensor], null: Mapping[str, Tensor] | None) -> dict[str, Any]:
        told = {"prompt_embeds": unpad(text["tokens"], text["tokens_mask"])}
        return told | ({"negative_prompt_embeds": unpad(null["tokens"], null["tokens_mask"])} if null else {})


def unpad(tokens: Float[Tensor, "b n d"], mask: Tensor) -> list[Tensor]:
    """Each prompt's tokens without the padding behind them; on the meta device, which has no numbers, with it."""
    if mask.is_meta:
        return list(tokens)
    return [one[:length] for one, length in zip(tokens, mask.long().sum(dim=1).tolist(), strict=True)]
