"""The training loop, the only one: what differs between stages (model, loss, data, preview) is passed in."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration, gather_object
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import Dataset

from contentmotion.config import TrainConfig
from contentmotion.run_dir import ENVIRONMENT, describe_environment, resolve_dtype
from contentmotion.saving import write_json
from contentmotion.train.batches import Batch, make_batches
from contentmotion.train.checkpoints import CheckpointWriter, latest_checkpoint, register_weights, resume
from contentmotion.train.metrics import Metrics
from contentmotion.train.optimizers import make_optimizer, update_average
from contentmotion.train.processes import agree, mean_of, on_main, this_process
from contentmotion.train.sharding import (
    CAN_SAVE_IN_BACKGROUND,
    begin_to_save_sharded,
    blocks,
    cpu_group,
    gather,
    load_sharded,
    load_whole,
    save_sharded,
    shard,
    whole,
)
from contentmotion.train.stopping import OUT_OF_TIME, TERMINATED, StopRequests, explained

__all__ = ["Batch", "Loss", "fit"]

Loss = Callable[[nn.Module, Batch], dict[str, Tensor]]
SHARDS, SCHEDULE = "sharded", "schedule.json"
_PRECISION_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", None: "no"}


def fit(
    model: nn.Module,
    loss: Loss,
    dataset: Dataset,
    config: TrainConfig,
    *,
    collate: Callable[[list[Batch]], Batch],
    preview: Callable[[int], None] | None = None,
    evaluate: Callable[[int], dict[str, float]] | None = None,
    eval_steps: int | tuple[int, ...] = 0,
    target: nn.Module | None = None,
) -> None:
    """Trains the parameters of ``model`` that require a gradient; on return they are the averaged (EMA) ones.

    Under ``torchrun`` or ``accelerate launch`` the processes share each batch. Batches and noise are functions of
    (seed, step), so a run resumed from a checkpoint continues bit for bit on one machine, and with another number of
    processes it continues with the same numbers where the items of a step stay as many (but for rounding; streams and
    ``shuffle_window`` deal the data anew).

    Args:
        model: What is trained; stays in float32, forward passes run under autocast.
        loss: ``loss(model, batch)`` gives "loss" and whatever else is worth logging. ``batch["generator"]`` is the
            only source of randomness it may use (``contentmotion.draws``), ``batch["step"]`` counts from 1.
        dataset: Indexed by (index, seed) pairs (see ``StepSampler``), with ``shard_sizes`` where ``shuffle_window`` is
            set; or a ``StreamingClips``. Its items may name bad files in "skipped"; it may have ``weights``, how often
            each item is drawn.
        config: Steps, learning rate and so on; the run lives in ``config.output_dir``.
        collate: Items to batch.
        preview: Called with the step number while the averaged weights are in place, by the first process.
        evaluate: The same, every ``eval_steps`` and at the end, by all processes; gives scores to log.
        eval_steps: 0 calls it never; several numbers call it on each one's schedule.
        target: A copy of ``model`` that is kept at the averaged weights (what consistency distillation aims at).

    Raises:
        ValueError: ``target`` without an average, a loss that is not finite, too many bad files, or a checkpoint that
            does not fit.
        OSError: A checkpoint cannot be written.
        SystemExit: The run was stopped before its end, by SIGTERM or ``max_train_time``; its checkpoint is written.
    """
    run_dir = Path(config.output_dir)
    schedules = (eval_steps,) if isinstance(eval_steps, int) else eval_steps
    run = _Run(model, loss, config, target)
    first_step = run.resume()
    metrics = Metrics(run.accelerator, config, run_dir, first_step, dataset)
    batches = closing(make_batches(dataset, config, run.accelerator, first_step, collate))
    writer = CheckpointWriter(run.write, run_dir, config.checkpoints_total_limit)
    model.train()
    stop = StopRequests(config.max_train_time)
    with explained(run_dir), batches as reader, metrics.progress, stop, writer:
        for step in range(first_step + 1, config.max_train_steps + 1):
            values, stopping = run.step(step, reader, metrics, lambda: stop.is_asked or writer.failed)
            metrics.log(step, values | run.watch(step))
            last = step == config.max_train_steps
            if step % config.checkpointing_steps == 0 or last or stopping:
                writer.save(step)
            if stopping and not last:
                writer.wait()
                run.stop_early(step, stop)
            if preview and config.validation_steps and (step % config.validation_steps == 0 or last):
                with run.averaged(), _evaluating(model):
                    on_main(lambda step=step: preview(step))
            if evaluate and any(every and (step % every == 0 or last) for every in schedules):
                with run.averaged(), _evaluating(model):
                    metrics.write(step, {f"eval/{name}": value for name, value in evaluate(step).items()})
                run.accelerator.wait_for_everyone()
    run.finish()
    model.eval()


class _Objective(nn.Module):
    """What is wrapped for several processes: the loss too, so that whatever it calls of the model, gradients are
    shared.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self._loss(self.model, batch)


class _Run:
    """A model with all that trains it: optimizer, schedule, average, and the processes that share the work."""

    def __init__(self, model: nn.Module, loss: Loss, config: TrainConfig, target: nn.Module | None) -> None:
        self.config, self.run_dir = config, Path(config.output_dir)
        if target is not None and not config.ema_decay:
            raise ValueError("the target is the weights' moving average: ema_decay must be above 0")
        self.accelerator = _make_accelerator(config, self.run_dir)
        device, count = self.accelerator.device, self.accelerator.num_processes
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        if config.torch_compile:
            for block in blocks(model):
                block.compile()
        self.objective: Any = _Objective(model, loss)
        self.sharded = config.fsdp and count > 1
        if self.sharded:
            shard(self.objective, device, count)
        else:
            self.objective = self.accelerator.prepare(self.objective)
        self.parameters = [model.get_parameter(name) for name in self.names]
        self.cpus = cpu_group() if config.async_checkpointing else None
        optimizer, self.schedule = make_optimizer(self.parameters, config)
        self.optimizer = self.accelerator.prepare(optimizer)
        self.ema = EMAModel(self.parameters, decay=config.ema_decay) if config.ema_decay else None
        self.targets: list[nn.Parameter] = []
        if target is not None:
            target.to(device)
            self.targets = [target.get_parameter(name) for name in self.names]
        register_weights(self.accelerator, model)
        self.accelerator.register_for_checkpointing(self.schedule)
        if self.ema is not None:
            self.accelerator.register_for_checkpointing(self.ema)

    def resume(self) -> int:
        """Goes to where the config says; returns the steps that are done."""
        first_step = resume(self.read, self.config, self.run_dir)
        if self.ema is not None:
            # accelerate loads registered objects on the CPU
            self.ema.to("cpu" if self.config.offload_ema else self.accelerator.device)
            self._move_targets()
        return first_step

    def write(self, folder: Path) -> Future | None:
        """Writes all that a run goes on from; in every process. Gives a future where that goes on in the background."""
        in_background = self.config.async_checkpointing
        if not (self.sharded or in_background):
            self.accelerator.save_state(str(folder))
            return None
        folder.mkdir(parents=True, exist_ok=True)
        if self.accelerator.is_main_process:
            write_json(folder / SCHEDULE, self.schedule.state_dict())
        state = (folder / SHARDS, self.objective, self.optimizer.optimizer, self.ema, self.names)
        return begin_to_save_sharded(*state, self.cpus) if in_background else save_sharded(*state)

    def read(self, folder: Path) -> None:
        """Reads what ``write`` wrote, in this number of processes or in another one."""
        if (folder / SHARDS).is_dir():
            load_sharded(folder / SHARDS, self.objective, self.optimizer.optimizer, self.ema, self.names)
            self.schedule.load_state_dict(json.loads((folder / SCHEDULE).read_text(encoding="utf-8")))
        elif self.sharded:
            load_whole(folder, self.objective, self.optimizer.optimizer, self.ema, self.names)
            schedule = torch.load(folder / "custom_checkpoint_0.pkl", weights_only=True)
            self.schedule.load_state_dict(schedule)
        else:
            self.accelerator.load_state(str(folder))

    def step(
        self, step: int, batches: Iterator[Batch], metrics: Metrics, asked_to_stop: Callable[[], bool]
    ) -> tuple[dict[str, float], bool]:
        """One step of the optimizer.

        Returns:
            Numbers to log; and whether any process is asked to stop.

        Raises:
            ValueError: A loss or a gradient that is not finite, or too many bad files.
        """
        accumulation = self.config.gradient_accumulation_steps
        averages: dict[str, float] = {}
        waited, started = 0.0, time.perf_counter()
        stopping = False
        for micro_step in range(accumulation):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            metrics.note_bad_files(batch.pop("skipped", []), len(batch["index"]))
            with self._sharing(micro_step == accumulation - 1):
                with self.accelerator.autocast():
                    losses = self.objective(batch)
                # What any process must hear of, in one message.
                signs = {"_bad": float(bool(metrics.unsaid)), "_stop": float(asked_to_stop())}
                values = mean_of(losses | signs)
                metrics.check_bad_files(values.pop("_bad") > 0)
                stopping = values.pop("_stop") > 0
                self._require_finite("loss", values["loss"], losses["loss"], step, batch)
                self.accelerator.backward(losses["loss"] / accumulation)
            for name, value in values.items():
                averages[name] = averages.get(name, 0.0) + value / accumulation
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.config.max_grad_norm or math.inf)
        norm = whole(norm).item()
        if self.accelerator.scaler is None:  # fp16's scaler skips such a step by itself
            self._require_finite("gradient norm", norm, norm, step, batch)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self._update_average()
        averages["data_wait"] = waited / (time.perf_counter() - started)
        return averages | {"grad_norm": norm, "lr": self.schedule.get_last_lr()[0]}, stopping

    @contextmanager
    def _sharing(self, gradients: bool) -> Iterator[None]:
        """Whether backward passes share gradients with the other processes: at the end of a step is enough."""
        if self.sharded:
            self.objective.set_requires_gradient_sync(gradients)
            yield
            return
        with nullcontext() if gradients else self.accelerator.no_sync(self.objective):
            yield

    def _require_finite(self, what: str, everywhere: float, here: Tensor | float, step: int, batch: Batch) -> None:
        """Raises ``ValueError``, in all processes, where a number is not finite in one of them."""
        if math.isfinite(everywhere):
            return
        mine = float(here.detach() if isinstance(here, Tensor) else here)
        found = gather_object([None if math.isfinite(mine) else (mine, batch["index"].tolist())])
        value, items = next(entry for entry in found if entry is not None)
        kept = latest_checkpoint(self.run_dir)
        agree(
            ValueError(
                f"{what} is {value} at step {step} (items {items}); "
                + (f"the last good checkpoint is {kept}" if kept else "no checkpoint was written yet")
                + ". A lower learning rate or full precision (--mixed_precision no) usually helps."
            )
        )

    def stop_early(self, step: int, stop: StopRequests) -> None:
        """Ends the process after a checkpoint; raises ``SystemExit``."""
        terminated = mean_of({"_stop": float(stop.terminated)})["_stop"] > 0
        why = "SIGTERM" if terminated else f"max_train_time of {self.config.max_train_time:g} minutes"
        if self.accelerator.is_main_process:
            print(
                f"Stopped by {why} after step {step} of {self.config.max_train_steps}, with a checkpoint in "
                f"{self.run_dir}: the same command goes on from there.",
                file=sys.stderr,
            )
        self.close_trackers()
        raise SystemExit(TERMINATED if terminated else OUT_OF_TIME)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Puts the averaged weights in place for a while, whole ones in every process."""
        if self.sharded:
            undo = gather(self.objective, self._averages())
            try:
                yield
            finally:
                undo()
            return
        if self.ema is None:
            yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)

    def finish(self) -> None:
        """Leaves the averaged weights in the model, and ends the work in common."""
        if self.sharded:
            gather(self.objective, self._averages())
        elif self.ema is not None:
            self.ema.copy_to(self.parameters)
        self.close_trackers()

    def close_trackers(self) -> None:
        """The process group stays (``run_dir.leave_processes``), where accelerate's ``end_training`` destroys it: DDP's
        reducer would then hold it last and free it under Python's lock, for which gloo's thread may wait (torch 2.13).
        """
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def watch(self, step: int) -> dict[str, float]:
        """How far the average lags behind: its distance to the weights over their norm, where a line is written."""
        if self.ema is None or (step % self.config.logging_steps and step != self.config.max_train_steps):
            return {}
        distance = norm = torch.zeros((), device=self.accelerator.device)
        with torch.no_grad():
            for shadow, parameter in zip(self.ema.shadow_params, self.parameters, strict=True):
                distance = distance + (shadow.to(parameter.device) - parameter).float().square().sum()
                norm = norm + parameter.float().square().sum()
        return {"ema_distance": (whole(distance) / whole(norm).clamp(min=1e-30)).sqrt().item()}

    def _averages(self) -> dict[str, Tensor]:
        """The averages by the parameters' names in the objective."""
        shadows = [] if self.ema is None else self.ema.shadow_params
        return {f"model.{name}": shadow for name, shadow in zip(self.names, shadows, strict=self.ema is not None)}

    def _update_average(self) -> None:
        assert self.ema is not None
        update_average(self.ema, [p.detach().cpu() if self.config.offload_ema else p for p in self.parameters])
        self._move_targets()

    def _move_targets(self) -> None:
        assert self.ema is not None
        for parameter, shadow in zip(self.targets, self.ema.shadow_params, strict=False):  # there may be no target
            parameter.data.copy_(whole(shadow))


def _make_accelerator(config: TrainConfig, run_dir: Path) -> Accelerator:
    dtype = resolve_dtype(config.mixed_precision, this_process().device)
    if (config.fsdp or config.async_checkpointing) and dtype is torch.float16:
        raise ValueError("--fsdp and --async_checkpointing go with bf16 or full precision, not with fp16")
    if config.async_checkpointing and not CAN_SAVE_IN_BACKGROUND:
        raise ValueError(f"--async_checkpointing needs a newer PyTorch than {torch.__version__}")
    AcceleratorState._reset_state()  # a process may train several models, each at its own precision
    accelerator = Accelerator(
        mixed_precision=_PRECISION_NAMES[dtype],
        log_with=None if config.report_to == "none" else config.report_to,
        project_config=ProjectConfiguration(project_dir=str(run_dir), logging_dir=str(run_dir / "logs")),
    )

    def prepare() -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(run_dir / ENVIRONMENT, describe_environment(accelerator.device, accelerator.num_processes))

    on_main(prepare)
    if config.report_to != "none":
        accelerator.init_trackers("contentmotion")
    return accelerator


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients; global random state untouched, so that previews do not change the run."""
    model.eval()
    with torch.random.fork_rng(), torch.no_grad():
        yield
    model.train()
