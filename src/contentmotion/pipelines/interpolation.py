"""What lies between two prompts, two draws of noise, or the motions of two videos, along the great circle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

from contentmotion.diffusion import slerp


class PromptBetween(str):
    """A prompt on the way from one to another, for pipelines that take prompts; as a text it says both.

    Attributes:
        first: Prompt at share 0.
        second: Prompt at share 1.
        share: From 0 to 1.
    """

    first: str
    second: str
    share: float

    def __new__(cls, first: str, second: str, share: float) -> Self:
        self = super().__new__(cls, f"{first} -> {second}, {share:.2f}")
        self.first, self.second, self.share = first, second, share
        return self


@dataclass(frozen=True)
class MotionBetween:
    """As ``motion_video``: the motions between those of two videos, one a video that is made.

    Attributes:
        first: Video at share 0, in any form that a pipeline takes.
        second: Video at share 1.
        shares: From 0 to 1, float (b,).
    """

    first: Any
    second: Any
    shares: Float[Tensor, " b"]


def prompts_between(first: str, second: str, count: int) -> list[PromptBetween]:
    """Prompts on the way from one to another, both included, evenly spaced."""
    return [PromptBetween(first, second, share) for share in torch.linspace(0, 1, count).tolist()]


def features_between(
    encode: Callable[[list[str]], dict[str, Tensor]], prompts: Sequence[str]
) -> dict[str, Float[Tensor, "b ..."]]:
    """Text features of prompts, some of which may be ``PromptBetween``, by ``Stage.text_features``."""
    features = encode([getattr(prompt, "first", prompt) for prompt in prompts])
    if not any(isinstance(prompt, PromptBetween) for prompt in prompts):
        return features
    others = encode([getattr(prompt, "second", prompt) for prompt in prompts])
    shares = torch.tensor([getattr(prompt, "share", 0.0) for prompt in prompts])
    return {
        name: torch.maximum(value, others[name]) if name.endswith("_mask") else slerp(value, others[name], shares)
        for name, value in features.items()
    }


def noise_between(
    shapes: dict[str, tuple[int, ...]], ends: tuple[torch.Generator, torch.Generator], shares: Float[Tensor, " b"]
) -> dict[str, Float[Tensor, "b ..."]]:
    """Initial noise of the shapes of ``LatentPipeline.sample_shapes``, in their order: of the first end at share 0, of
    the second at share 1, and what is between them."""

    def draw(end: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        noise = randn_tensor((1, *shape), generator=end, device=end.device, dtype=torch.float32)
        return noise.expand(len(shares), *shape)

    first, second = ({name: draw(end, shape) for name, shape in shapes.items()} for end in ends)
    return {name: slerp(noise, second[name], shares) for name, noise in first.items()}
