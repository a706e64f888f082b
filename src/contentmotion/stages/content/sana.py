"""Content frames by SANA: a transformer with linear attention on latents of 32x32 pixels, trained by flow matching,
told of a prompt by Gemma (Xie et al. 2024)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import torch
from diffusers import SanaPipeline, SanaSprintPipeline
from jaxtyping import Bool, Float
from torch import Tensor

from contentmotion.stages.content.transformer import CROSS_ATTENTION, TransformerContent, times_of
from contentmotion.stages.stage import Condition
from contentmotion.stages.text import NULL_PROMPT, cut_words, masked_mean

# What Gemma is asked to do with a prompt, before it; not with the null prompt and negative ones.
INSTRUCTION = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
INSTRUCTION_TOKENS = 240  # about, in Gemma's vocabulary; what counting costs goes by


class SanaContent(TransformerContent):
    """See ``TransformerContent``; the motion model is told the mean of a prompt's tokens."""

    title = "SANA"
    stock = SanaPipeline
    same_negatives = False  # the instruction before a prompt is not put before a negative one
    stock_arguments = {"use_resolution_binning": False}  # a clip's size is the caller's
    text_needs = {"tokens": "encoder_hidden_states", "tokens_mask": "encoder_attention_mask"}
    text_classes = {"text_encoder": "Gemma2Model", "tokenizer": "GemmaTokenizerFast"}
    max_tokens = 300
    lora_targets = CROSS_ATTENTION
    _unguided: ClassVar[Mapping[str, Any]] = {"do_classifier_free_guidance": False}  # of ``encode_prompt``

    def text_features(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        rows: dict[int, tuple[Tensor, Tensor]] = {}
        for instruction in (INSTRUCTION, None):
            numbers = [i for i, prompt in enumerate(prompts) if (prompt == NULL_PROMPT) == (instruction is None)]
            if numbers:
                tokens, mask, *_ = self.text_pipeline.encode_prompt(
                    [prompts[i] for i in numbers], device=self.text_device(), complex_human_instruction=instruction,
                    **self._unguided,
                )  # fmt: skip
                rows |= zip(numbers, zip(tokens, mask, strict=True), strict=True)
        tokens, mask = (torch.stack(part) for part in zip(*(rows[i] for i in range(len(prompts))), strict=True))
        return {"tokens": tokens, "tokens_mask": mask, "pooled": masked_mean(tokens, mask)}

    @property
    def text_lengths(self) -> dict[str, int]:
        return {"text_encoder": self.max_tokens + INSTRUCTION_TOKENS}

    def cut_words(self, prompt: str) -> str:
        return cut_words(self.components["tokenizer"], prompt.lower().strip(), self.max_tokens - 1)

    def forward(
        self, noisy: Float[Tensor, "b c h w"], timesteps: Tensor, condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        times = times_of(timesteps, noisy) * float(self.network.config.timestep_scale)  # type: ignore[reportArgumentType]
        return self.network(
            noisy.to(self.dtype), timestep=times,
            encoder_hidden_states=condition["encoder_hidden_states"].to(self.dtype),
            encoder_attention_mask=condition["encoder_attention_mask"], guidance=condition.get("guidance"),
        ).sample  # fmt: skip

    def stock_text(self, text: Mapping[str, Tensor], null: Mapping[str, Tensor] | None) -> dict[str, Any]:
        return super().stock_text(text, null) | {"negative_prompt": None}  # else there would be one, ""


class SanaSprintContent(SanaContent):
    """SANA-Sprint: SANA distilled to one to four steps, told the guidance scale. Its stock pipeline alone samples it,
    in TrigFlow's times; it is not trained.

    Source: Chen et al. 2025 (SANA-Sprint, arXiv 2503.09641).
    """

    title = "SANA-Sprint"
    stock = SanaSprintPipeline
    same_negatives = True  # for the motion model: the stock pipeline takes none
    _unguided = {}

    @property
    def told_guidance(self) -> bool:
        return True

    def set_timesteps(self, steps: int, shape: Sequence[int], device: torch.device) -> NoReturn:
        raise ValueError("strength: SANA-Sprint draws no given content frame anew: give 0 or 1")

    def encode(self, batch: Mapping[str, Any], dropped: Bool[Tensor, " b"] | None = None) -> Condition:
        condition = super().encode(batch, dropped)
        guidance = torch.ones(len(condition["encoder_hidden_states"]), device=condition["encoder_hidden_states"].device)
        return condition | {"guidance": guidance}

    def stock_steps(self, steps: int) -> dict[str, Any]:
        """The time between two steps is given, others are spread evenly."""
        return super().stock_steps(steps) | ({} if steps == 2 else {"intermediate_timesteps": None})
