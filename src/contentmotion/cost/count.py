"""What a network pass costs, counted without running it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.pipelines.sampling import Sampling


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of a computation; FLOPs are twice as many.

    Attributes:
        layers: In convolutions and linear layers: the convention of CMD's tables.
        attention: In attention's two matrix products, which those tables leave out.
    """

    layers: int
    attention: int

    @property
    def multiply_adds(self) -> int:
        """All of them."""
        return self.layers + self.attention

    @property
    def flops(self) -> int:
        """2 x multiply-adds, attention included."""
        return 2 * self.multiply_adds


def count_cost(compute: Callable[[], object]) -> Cost:
    """Counts a computation; on the meta device it allocates and computes nothing.

    Weights should require gradients, as those of a new network do: linear layers with frozen ones turn into batched
    products at times, which are taken for attention.

    Args:
        compute: Does the computation once.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        compute()
    layers = attention = 0
    for op, flops in counter.get_flop_counts()["Global"].items():
        name = str(op)
        if "attention" in name or "bmm" in name:
            attention += flops // 2
        else:
            layers += flops // 2
    return Cost(layers=layers, attention=attention)


def clip_cost(pipe: ContentMotionPipeline, sampling: Sampling) -> dict[str, Cost]:
    """What one video costs from prompt to pixels, by what the cost is for: content, motion, and all the rest.

    Runs the pipeline three times at one or two steps: a step costs the same wherever it is.

    Args:
        pipe: On its device.
        sampling: Steps and guidance of the video.
    """
    condition = {"prompt": "video"} if pipe.text_encoder is not None else {"class_labels": 0}

    def cost(steps: int, motion_steps: int) -> Cost:
        return count_cost(
            lambda: pipe(
                **condition,
                num_inference_steps=steps,
                motion_num_inference_steps=motion_steps,
                guidance_scale=sampling.guidance_scale,
                motion_guidance_scale=sampling.motion_guidance_scale,
                output_type="pt",
            )
        )

    with sdpa_kernel(SDPBackend.MATH):  # attention as matrix products: the counter knows no CPU kernel of it
        once, content, motion = cost(1, 1), cost(2, 1), cost(1, 2)

    def times(steps: int, longer: Cost) -> Cost:
        return Cost(steps * (longer.layers - once.layers), steps * (longer.attention - once.attention))

    one = [times(1, content), times(1, motion)]
    rest = Cost(once.layers - sum(part.layers for part in one), once.attention - sum(part.attention for part in one))
    return {
        "content frame": times(sampling.steps, content),
        "motion": times(sampling.motion_steps, motion),
        "text and decoding": rest,
    }
