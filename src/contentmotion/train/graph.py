"""Forward and backward passes as CUDA graphs: recorded at the first batch of a kind, replayed at all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from contentmotion.config import TrainConfig
from contentmotion.draws import BatchGenerator
from contentmotion.losses.player import Batch
from contentmotion.pipelines.speed import Replayed, cuda_recorder
from contentmotion.stages.stage import Stage
from contentmotion.train.optimizers import Trainee

Pass = Callable[[Batch], dict[str, Tensor]]


def record_passes(
    passes: Sequence[Pass], trainees: Sequence[Trainee], config: TrainConfig, process: PartialState
) -> list[Pass]:
    """The players' passes, to be recorded.

    Clipping, optimizer and average stay outside: a few launches for all weights together, which the processor makes
    while the GPU is busy with the graph.

    Raises:
        ValueError: Several processes, or another device than CUDA.
    """
    if process.num_processes > 1:
        raise ValueError("scale.cuda_graphs is for one process: gradients of several are shared while they come")
    return [
        RecordedPass(one, trainee, trainees, config.gradient_accumulation_steps, process.device)
        for one, trainee in zip(passes, trainees, strict=True)
    ]


class RecordedPass:
    """A player's forward and backward pass, as it was at the first batch of such shapes and of its phase.

    A graph repeats what the GPU was told, on tensors that stay in their places; what the processor did is not done
    again. So the loss gets the tensors of its batch alone, captions as tokens, and a generator that has each step's
    seed: the numbers are those of the plain pass.

    Args:
        one_pass: Gives the losses, and adds to the gradients.
        trainee: Whose pass it is.
        trainees: All that a gradient may reach.
        num_parts: Passes of a step.
        device: Where it computes.
    """

    def __init__(
        self, one_pass: Pass, trainee: Trainee, trainees: Sequence[Trainee], num_parts: int, device: torch.device
    ) -> None:
        self.one_pass, self.player, self.parameters = one_pass, trainee.player, list(trainee.parameters.values())
        self.everything = [parameter for each in trainees for parameter in each.parameters.values()]
        self.device, self.num_parts = device, num_parts
        self.part = torch.zeros((), dtype=torch.long, device=device)
        self.source = BatchGenerator(torch.Generator(device), part=self.part, num_parts=self.num_parts)
        self.seed, self.step = 0, 0
        self._replayed = Replayed(self._once, self._record)
        self._recorder = cuda_recorder(device, self.source.generator)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The pass on a batch, whose "generator" is a ``BatchGenerator``."""
        source, self.step = batch["generator"], batch["step"]
        self.seed = source.generator.initial_seed()
        self.part.fill_(source.part)
        if isinstance(self.player.module, Stage):
            batch = self.player.module.with_tokens(batch)
        earlier = [parameter.grad for parameter in self.parameters]
        for parameter in self.everything:
            parameter.grad = None
        tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        phase = self.player.phase(self.step) if self.player.phase else None
        try:
            losses, gradients = self._replayed(tensors, phase)
        except KeyError as error:
            if not error.args or error.args[0] not in batch:
                raise
            raise ValueError(
                f"scale.cuda_graphs: this step cannot be recorded, it depends on the {error.args[0]} of its batch"
                + (" (text features in the cache help: encode --text_features)" * (error.args[0] == "caption"))
            ) from error
        self._add(earlier, gradients())
        return losses

    def _add(self, earlier: Sequence[Tensor | None], gradients: Sequence[Tensor | None]) -> None:
        """Puts gradients, those of a step's earlier passes included, where the optimizer finds them."""
        sums, more = [], []
        for parameter, before, new in zip(self.parameters, earlier, gradients, strict=True):
            parameter.grad = before
            if before is not None and new is not None:
                sums.append(before)
                more.append(new)
            elif new is not None:  # the next replay writes there again
                parameter.grad = new.clone() if self.num_parts > 1 else new
        if sums:
            torch._foreach_add_(sums, more)

    def _once(self, tensors: dict[str, Tensor], phase: object) -> tuple[dict[str, Tensor], Callable[[], Any]]:
        """What is recorded. The gradients come as a function, or ``Replayed`` would copy them each time."""
        steps = {} if self.player.phase is None else {"step": self.step}  # any of the phase
        losses = self.one_pass(tensors | steps | {"generator": self.source})
        gradients = [parameter.grad for parameter in self.parameters]
        for parameter in self.everything:
            parameter.grad = None  # the next call's are new tensors
        return losses, lambda: gradients

    def _record(self, call: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        try:
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):  # it is called to warm up
                replay, output = self._recorder(call)
        except RuntimeError as error:
            if "captur" not in str(error):
                raise
            raise ValueError(
                f"scale.cuda_graphs: this step cannot be recorded ({str(error).splitlines()[0]})"
            ) from error

        def again() -> None:
            self.source.generator.manual_seed(self.seed)
            replay()

        return again, output
