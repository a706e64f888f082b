"""What an objective hands to the training loop: networks, what they are trained to do, and by which optimizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

Batch = dict[str, Any]
Loss = Callable[[nn.Module, Batch], dict[str, Tensor]]
SUM, COUNT = "#sum", "#count"  # ends of the names of two values of a loss whose quotient is to be logged


@dataclass(frozen=True)
class Player:
    """A network and what trains it. An objective is one player or several, which take their turns in one loop.

    Attributes:
        module: Its parameters that require a gradient are trained; it stays in float32, forward passes run under
            autocast. Modules of several players may share frozen weights.
        loss: ``loss(module, batch)`` gives "loss" and whatever else is worth logging. ``batch["generator"]`` is the
            only source of randomness that it may use (``contentmotion.draws``); ``batch["step"]`` counts from 1. Where
            a loss calls another player's network, gradients that reach that network are thrown away.
        name: Of the player's files in a checkpoint; of its numbers too (``name/loss``) where there are several players.
        every: The player's turn comes at the steps that this divides.
        make_optimizer: Parameters -> optimizer; the config's AdamW when None. The config's schedule steers its rate.
        ema_decay: Of the moving average of its parameters; the config's when None, 0: no average.
        target: A copy of ``module`` that is kept at the averaged weights (what consistency distillation aims at).
        watch: Called after each pass with the step's number and what ``loss`` gave; it should not wait for a GPU.
        phase: Of a loss that reads ``batch["step"]``: steps of one phase compute the same, so that one CUDA graph
            serves them all (``scale.cuda_graphs``).
    """

    module: nn.Module
    loss: Loss
    name: str = "model"
    every: int = 1
    make_optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None
    ema_decay: float | None = None
    target: nn.Module | None = None
    watch: Callable[[int, dict[str, Tensor]], None] | None = None
    phase: Callable[[int], object] | None = None
