"""The optimizer, the schedule of its learning rate, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from contentmotion.config import TrainConfig


def make_optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """AdamW, of 32 or of 8 bits, and the learning rate's schedule.

    Raises:
        ImportError: 8 bits, and bitsandbytes is not installed.
    """
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
    }
    if config.use_8bit_adam:
        try:
            from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]
        except ImportError as error:
            raise ImportError('--use_8bit_adam needs bitsandbytes: pip install "contentmotion[8bit]"') from error
        optimizer: torch.optim.Optimizer = AdamW8bit(parameters, **settings)
    else:
        optimizer = torch.optim.AdamW(parameters, fused=True, **settings)
    schedule = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_train_steps,
    )
    return optimizer, schedule


@torch.no_grad()
def update_average(ema: EMAModel, parameters: Sequence[Tensor]) -> None:
    """What ``ema.step`` does, in one pass over the memory instead of three, and without a copy of a weight.

    Args:
        ema: The average; its number of steps counts on.
        parameters: The weights after the step, where the average is.
    """
    ema.optimization_step += 1
    ema.cur_decay_value = ema.get_decay(ema.optimization_step)
    torch._foreach_lerp_(ema.shadow_params, list(parameters), 1 - ema.cur_decay_value)
