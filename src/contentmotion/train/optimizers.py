"""A player in training: its optimizer, the schedule of its rate, fp16's loss scale, the average of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from contentmotion.config import TrainConfig
from contentmotion.losses.player import Player
from contentmotion.train.checkpoints import file_names, fill, read_tensors
from contentmotion.train.sharding import local_rows, whole


def make_optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> Optimizer:
    """AdamW, of 32 or of 8 bits; raises ``ImportError`` where these need a library that is not installed."""
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
    }
    if not config.scale.use_8bit_adam:
        return torch.optim.AdamW(parameters, fused=True, **settings)
    try:
        from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]
    except ImportError as error:
        raise ImportError('--scale.use_8bit_adam needs bitsandbytes: pip install "contentmotion[8bit]"') from error
    return AdamW8bit(parameters, **settings)


class Average:
    """Moving average of parameters: diffusers' ``EMAModel``, in one pass over the memory.

    Args:
        parameters: Where it starts.
        decay: What of the average stays at a step; less in the first steps.
        device: Where to keep it; beside the parameters when None.
    """

    def __init__(self, parameters: Iterable[Tensor], decay: float, device: str | None = None) -> None:
        self.values = [p.detach().clone().to(device) if device else p.detach().clone() for p in parameters]
        self.decay, self.device, self.num_steps = decay, device, 0

    @torch.no_grad()
    def step(self, parameters: Sequence[Tensor]) -> None:
        """Takes in the parameters after a step."""
        self.num_steps += 1
        count = self.num_steps - 1
        decay = min(self.decay, (1 + count) / (10 + count)) if count else 0.0
        # Each process on its own rows: DTensor's rules for lists take time by the square of their length.
        new = [local_rows(p.detach())[0] for p in parameters]
        new = [p.to(self.device) for p in new] if self.device else new
        torch._foreach_lerp_([local_rows(value)[0] for value in self.values], new, 1 - decay)


class Trainee:
    """A player with all that trains it.

    Args:
        player: Its module is on the device, and sharded if it is to be.
        config: Of the run.
        device: Where it computes.
        dtype: Of the forward passes; float16 scales the loss.

    Raises:
        ValueError: No parameter to train, or a target without an average.
    """

    def __init__(self, player: Player, config: TrainConfig, device: torch.device, dtype: torch.dtype | None) -> None:
        self.player, self.name, self.module, self.config = player, player.name, player.module, config
        self.parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError(f"{self.name}: no parameter to train")
        parameters = list(self.parameters.values())
        make = player.make_optimizer
        self.optimizer = make(parameters) if make else make_optimizer(parameters, config)
        self.schedule = get_scheduler(
            config.lr_scheduler,
            self.optimizer,
            num_warmup_steps=-(-config.lr_warmup_steps // player.every),
            num_training_steps=max(1, config.max_train_steps // player.every),
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
        decay = config.ema_decay if player.ema_decay is None else player.ema_decay
        self.average = Average(parameters, decay, "cpu" if config.scale.offload_ema else None) if decay else None
        self.targets: list[nn.Parameter] = []
        if player.target is not None:
            if self.average is None:
                raise ValueError("the target is the weights' moving average: ema_decay must be above 0")
            player.target.to(device)
            self.targets = [player.target.get_parameter(name) for name in self.parameters]

    def clip_gradients(self) -> Tensor:
        """Clips the gradient's norm as the config says; gives the norm before, where it was computed."""
        self.scaler.unscale_(self.optimizer)
        limit = self.config.max_grad_norm or torch.inf
        return whole(torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), limit))

    def step(self) -> None:
        """Optimizer, rate and average go one step on; none of them where fp16's gradients were not finite."""
        scale = self.scaler.get_scale()  # 1 where it is off
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.get_scale() < scale:
            return
        self.schedule.step()
        if self.average is not None:
            self.average.step(list(self.parameters.values()))
            self.move_target()

    @torch.no_grad()
    def move_target(self) -> None:
        """Puts the target, if there is one, where the average is."""
        if self.average and self.targets:
            torch._foreach_copy_(self.targets, [whole(value) for value in self.average.values])

    def averages(self) -> dict[str, Tensor]:
        """The averaged parameters by name, sharded as they are; none without an average."""
        return dict(zip(self.parameters, self.average.values, strict=True)) if self.average else {}

    @torch.no_grad()
    def lag(self) -> dict[str, Tensor]:
        """How far the average lags behind: its distance to the weights over their norm."""
        distance = norm = torch.zeros((), device=next(iter(self.parameters.values())).device)
        for name, value in self.averages().items():
            parameter = self.parameters[name]
            distance = distance + (value.to(parameter.device) - parameter).float().square().sum()
            norm = norm + parameter.float().square().sum()
        return {"ema_distance": (whole(distance) / whole(norm).clamp(min=1e-30)).sqrt()} if self.average else {}

    def is_finite(self) -> bool:
        """Whether all that a checkpoint would hold is, of what this process has of it."""
        rows = [local_rows(x.detach())[0] for tensors in self.tensors().values() for x in tensors.values()]
        flags = [x.isfinite().all() for x in rows if x.is_floating_point()]
        on = [torch.stack([flag for flag in flags if flag.device == place]) for place in {f.device for f in flags}]
        return all(some.all().item() for some in on)  # one wait a device

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All tensors that a checkpoint holds, by the file they go to and their name."""
        moments = {path: value for path, value in self._optimizer_state().items() if isinstance(value, Tensor)}
        files = {self.name: self.module.state_dict(), f"{self.name}-optimizer": moments}
        return files | ({f"{self.name}-average": self.averages()} if self.average else {})

    def record(self) -> dict[str, Any]:
        """The rest of what a checkpoint holds, as JSON can write it."""
        state = self._optimizer_state()
        return {
            "optimizer": self.optimizer.state_dict()["param_groups"],
            "optimizer_values": {path: value for path, value in state.items() if not isinstance(value, Tensor)},
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average_steps": self.average.num_steps if self.average else 0,
        }

    def read(self, folder: Path, num_parts: int, record: dict[str, Any]) -> None:
        """Goes on from a checkpoint: its files of so many parts (see ``read_tensors``), and what ``record`` gave.

        Raises:
            ValueError: It does not fit.
            OSError: It is damaged.
        """
        average = folder / file_names(f"{self.name}-average", num_parts)[0]
        if self.average is not None and not record["average_steps"] and not average.exists():
            raise ValueError("it was written with --ema_decay 0 and holds no moving average, which this run needs")
        values: dict[str, Any] = record["optimizer_values"]
        for stem, tensors in self.tensors().items():
            for path, value in read_tensors(folder, stem, num_parts):
                if stem == f"{self.name}-optimizer":
                    like = self.parameters.get(path.rpartition(".")[0])
                    like = value if like is None or like.shape != value.shape else like.detach()
                    values[path] = tensors[path] = torch.empty_like(like, dtype=value.dtype)
                fill(tensors.pop(path, None), path, value)
            if tensors:
                raise ValueError(f"it has no {next(iter(tensors))}")
        numbers = {name: number for number, name in enumerate(self._names())}
        state: dict[int, dict[str, Any]] = {}
        for path, value in values.items():
            name, _, key = path.rpartition(".")
            if name not in numbers:
                raise ValueError(f"it trained {name} too")
            state.setdefault(numbers[name], {})[key] = value
        groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in record["optimizer"]]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})  # it moves them to the device
        self.schedule.load_state_dict(record["schedule"])
        if self.scaler.is_enabled() and record["scaler"]:
            self.scaler.load_state_dict(record["scaler"])
        if self.average is not None:
            self.average.num_steps = record["average_steps"]
            self.move_target()

    def _names(self) -> list[str]:
        """The parameters' names in the optimizer's order."""
        names = {id(p): name for name, p in self.parameters.items()}
        return [names[id(p)] for group in self.optimizer.param_groups for p in group["params"]]

    def _optimizer_state(self) -> dict[str, Any]:
        """By the parameter's name, a dot and the state's: of Adam "step", "exp_avg", "exp_avg_sq"."""
        names, state = self._names(), self.optimizer.state_dict()["state"]
        return {f"{names[n]}.{key}": value for n, values in state.items() for key, value in values.items()}
