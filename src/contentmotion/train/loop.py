"""The training loop, the only one: what differs between stages (model, loss, data, preview) is passed in."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from contentmotion.config import TrainConfig
from contentmotion.data.limits import require_few_bad
from contentmotion.data.shard_sampler import ShardSampler
from contentmotion.data.step_sampler import StepSampler
from contentmotion.data.streaming import StreamingClips
from contentmotion.run_dir import resolve_dtype
from contentmotion.saving import replacing_file

Batch = dict[str, Any]
Loss = Callable[[nn.Module, Batch], dict[str, Tensor]]
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

    Batches and noise are functions of (seed, step, process), so a run resumed from a checkpoint continues bit for bit
    on one machine.

    Args:
        model: What is trained; stays in float32, forward passes run under autocast.
        loss: ``loss(model, batch)`` gives "loss" and whatever else is worth logging. ``batch["generator"]`` is the
            only source of randomness it may use, ``batch["step"]`` counts from 1.
        dataset: Indexed by (index, seed) pairs (see ``StepSampler``), with ``shard_sizes`` where ``shuffle_window`` is
            set; or a ``StreamingClips``. Its items may name bad files in "skipped"; it may have ``weights``, how often
            each item is drawn.
        config: Steps, learning rate and so on; the run lives in ``config.output_dir``.
        collate: Items to batch.
        preview: Called with the step number while the averaged weights are in place.
        evaluate: The same, every ``eval_steps`` and at the end, by all processes; gives scores to log.
        eval_steps: 0 calls it never; several numbers call it on each one's schedule.
        target: A copy of ``model`` that is kept at the averaged weights (what consistency distillation aims at).

    Raises:
        ValueError: ``target`` without an average, a loss that is not finite, too many bad files, or a checkpoint that
            does not fit.
    """
    run_dir = Path(config.output_dir)
    schedules = (eval_steps,) if isinstance(eval_steps, int) else eval_steps
    accelerator = _make_accelerator(config, run_dir)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    parameters = [model.get_parameter(name) for name in trained]
    optimizer, schedule = _make_optimizer(parameters, config)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(schedule)
    ema = EMAModel(parameters, decay=config.ema_decay) if config.ema_decay else None
    targets = [] if target is None else [target.to(accelerator.device).get_parameter(name) for name in trained]
    if targets and ema is None:
        raise ValueError("the target is the weights' moving average: ema_decay must be above 0")
    if ema is not None:
        accelerator.register_for_checkpointing(ema)
    first_step = _resume(accelerator, config, run_dir)
    if ema is not None:
        ema.to(accelerator.device)  # accelerate loads registered objects on the CPU
        ema.copy_to(targets)
    metrics = _Metrics(accelerator, config, run_dir, first_step, dataset)
    batches = _batches(dataset, config, accelerator, first_step, collate)

    model.train()
    with metrics.progress:
        for step in range(first_step + 1, config.max_train_steps + 1):
            averages: dict[str, float] = {}
            waited, started = 0.0, time.perf_counter()
            for _ in range(config.gradient_accumulation_steps):
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                metrics.note_bad_files(batch.pop("skipped", []), len(batch["index"]))
                with accelerator.autocast():
                    losses = loss(model, batch)
                _require_finite("loss", losses["loss"], step, batch, run_dir)
                accelerator.backward(losses["loss"] / config.gradient_accumulation_steps)
                for name, value in losses.items():
                    averages[name] = averages.get(name, 0.0) + value.item() / config.gradient_accumulation_steps
            norm = accelerator.clip_grad_norm_(parameters, config.max_grad_norm or math.inf)
            if accelerator.scaler is None:  # fp16's scaler skips such a step by itself
                _require_finite("gradient norm", norm, step, batch, run_dir)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            if ema is not None:
                ema.step(parameters)
                ema.copy_to(targets)
            averages["data_wait"] = waited / (time.perf_counter() - started)
            metrics.log(step, averages | {"grad_norm": float(norm), "lr": schedule.get_last_lr()[0]})
            last = step == config.max_train_steps
            if step % config.checkpointing_steps == 0 or last:
                _save(accelerator, run_dir, step, config.checkpoints_total_limit)
            if preview and config.validation_steps and (step % config.validation_steps == 0 or last):
                with _averaged(ema, parameters), _evaluating(model):
                    if accelerator.is_main_process:
                        preview(step)
                accelerator.wait_for_everyone()
            if evaluate and any(every and (step % every == 0 or last) for every in schedules):
                with _averaged(ema, parameters), _evaluating(model):
                    metrics.write(step, {f"eval/{name}": value for name, value in evaluate(step).items()})
                accelerator.wait_for_everyone()
    if ema is not None:
        ema.copy_to(parameters)
    model.eval()
    accelerator.end_training()


def _make_optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> tuple[torch.optim.Optimizer, LambdaLR]:
    optimizer = torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        fused=True,
    )
    schedule = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_train_steps,
    )
    return optimizer, schedule


def _make_accelerator(config: TrainConfig, run_dir: Path) -> Accelerator:
    dtype = resolve_dtype(config.mixed_precision, PartialState().device)
    AcceleratorState._reset_state()  # a process may train several models, each at its own precision
    accelerator = Accelerator(
        mixed_precision=_PRECISION_NAMES[dtype],
        log_with=None if config.report_to == "none" else config.report_to,
        project_config=ProjectConfiguration(project_dir=str(run_dir), logging_dir=str(run_dir / "logs")),
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    if config.report_to != "none":
        accelerator.init_trackers("contentmotion")
    return accelerator


def _batches(
    dataset: Dataset, config: TrainConfig, accelerator: Accelerator, first_step: int, collate: Callable
) -> Iterator[Batch]:
    """This process's batches, each with a generator that depends on (seed, micro-step, process) alone."""
    accumulation = config.gradient_accumulation_steps
    first, stop = first_step * accumulation, config.max_train_steps * accumulation
    loader = DataLoader(
        **_order(dataset, config, accelerator, first, stop),
        collate_fn=collate,
        num_workers=config.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    for micro_step, batch in enumerate(loader, start=first):
        seed = (config.seed * 1_000_003 + micro_step) * 1_009 + accelerator.process_index
        batch["generator"] = torch.Generator().manual_seed(seed)
        batch["step"] = micro_step // accumulation + 1
        torch.manual_seed(seed)  # for modules that draw by themselves, such as dropout
        yield {k: v.to(accelerator.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def _order(dataset: Dataset, config: TrainConfig, accelerator: Accelerator, first: int, stop: int) -> dict[str, Any]:
    """Which items this process's micro-batches ``first``, ..., ``stop`` - 1 have, as arguments of a ``DataLoader``."""
    place = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    if isinstance(dataset, StreamingClips):
        stream = dataset.placed(seed=config.seed, batch_size=config.train_batch_size, first_batch=first, **place)
        return {"dataset": stream, "batch_size": config.train_batch_size}
    run = {"seed": config.seed, "start_step": first, "num_steps": stop}
    weights, everyone = getattr(dataset, "weights", None), config.train_batch_size * accelerator.num_processes
    if config.shuffle_window is not None:
        if not hasattr(dataset, "shard_sizes"):
            raise ValueError("shuffle_window is for caches and streams: these clips are not in shards")
        sizes, window = dataset.shard_sizes, config.shuffle_window
        sampler = ShardSampler(sizes, config.train_batch_size, window=window, weights=weights, **run, **place)
        return {"dataset": dataset, "batch_sampler": sampler}
    if hasattr(dataset, "sampler"):  # it has an order of its own: batches of one size each
        batches = dataset.sampler(everyone, **run)
    else:
        batches = StepSampler(len(dataset), everyone, weights=weights, **run)  # type: ignore[arg-type]
    mine = (batch[accelerator.process_index :: accelerator.num_processes] for batch in batches)
    return {"dataset": dataset, "batch_sampler": mine}


def _require_finite(what: str, value: Tensor, step: int, batch: Batch, run_dir: Path) -> None:
    if torch.isfinite(value):
        return
    kept = latest_checkpoint(run_dir)
    raise ValueError(
        f"{what} is {value.item()} at step {step} (items {batch['index'].tolist()}); "
        + (f"the last good checkpoint is {kept}" if kept else "no checkpoint was written yet")
        + ". A lower learning rate or full precision (--mixed_precision no) usually helps."
    )


# Checkpoints: written under another name and renamed, so that a folder called checkpoint-N is always whole.


def checkpoints(run_dir: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [p for p in run_dir.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=checkpoint_step)


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    return max(checkpoints(run_dir), key=checkpoint_step, default=None)


def checkpoint_step(checkpoint: Path) -> int:
    """The number of optimizer steps behind a checkpoint."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _save(accelerator: Accelerator, run_dir: Path, step: int, limit: int) -> None:
    final = run_dir / f"checkpoint-{step:06d}"
    partial = run_dir / f"partial-{step:06d}"
    if accelerator.is_main_process and partial.exists():
        shutil.rmtree(partial)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    if final.exists():  # an older run's, being repeated from an earlier step
        shutil.rmtree(final)
    os.replace(partial, final)
    for old in checkpoints(run_dir)[:-limit]:
        shutil.rmtree(old)


def _resume(accelerator: Accelerator, config: TrainConfig, run_dir: Path) -> int:
    """Loads the checkpoint that the config asks for; returns its step, 0 for a new run."""
    wanted = config.resume_from_checkpoint
    checkpoint = latest_checkpoint(run_dir) if wanted in ("latest", "none") else Path(wanted)
    if checkpoint is None:
        return 0
    if wanted == "none":
        raise ValueError(f"{run_dir} already holds {checkpoint.name}: choose another --output_dir, or resume")
    if not checkpoint.is_dir():
        raise ValueError(f"no such checkpoint: {checkpoint}")
    try:
        accelerator.load_state(str(checkpoint))
        step = checkpoint_step(checkpoint)
    except Exception as error:  # whatever a foreign or damaged checkpoint makes torch and safetensors raise
        reason = str(error).splitlines()[0]
        raise ValueError(f"{checkpoint} does not fit this model and configuration: {reason}") from error
    leftovers = [*run_dir.glob("partial-*"), *(p for p in checkpoints(run_dir) if checkpoint_step(p) > step)]
    if accelerator.is_main_process:
        for leftover in leftovers:  # later checkpoints are of the branch that is being left
            shutil.rmtree(leftover)
    accelerator.print(f"Resuming {run_dir} after step {step}.")
    return step


@contextmanager
def _averaged(ema: EMAModel | None, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Puts the averaged weights in place for a while."""
    if ema is None:
        yield
        return
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients; global random state untouched, so that previews do not change the run."""
    model.eval()
    with torch.random.fork_rng(), torch.no_grad():
        yield
    model.train()


class _Metrics:
    """Progress line, ``metrics.jsonl``, trackers, and the count of bad files."""

    def __init__(
        self, accelerator: Accelerator, config: TrainConfig, run_dir: Path, first_step: int, dataset: Dataset
    ) -> None:
        self.accelerator, self.config, self.first_step = accelerator, config, first_step
        self.path = run_dir / "metrics.jsonl"
        if accelerator.is_main_process:
            self._forget_steps_after(first_step)
        self.console = Console(file=sys.stderr)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:.2f} steps/s"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (accelerator.is_main_process and self.console.is_terminal),
        )
        self.task = self.progress.add_task(
            run_dir.name, total=config.max_train_steps, completed=first_step, loss=math.nan, speed=0.0
        )
        self.values: dict[str, list[float]] = {}  # since the last line
        self.started = time.perf_counter()
        self.bad: set[str] = set()
        self.seen = 0
        # A cache watches its own losses: one line may stand for many clips there.
        self.limit = None if hasattr(dataset, "max_bad_fraction") else config.max_bad_fraction
        sized = not isinstance(dataset, StreamingClips)
        self.share = len(dataset) / accelerator.num_processes if sized else None  # type: ignore[arg-type]

    def log(self, step: int, values: dict[str, float]) -> None:
        """Averages over ``logging_steps`` steps, then writes one line."""
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)
        speed = (step - self.first_step) / (time.perf_counter() - self.started)
        self.progress.update(self.task, completed=step, loss=values["loss"], speed=speed)
        if step % self.config.logging_steps and step != self.config.max_train_steps:
            return
        means = {name: sum(seen) / len(seen) for name, seen in self.values.items()}
        self.values = {}
        self.write(step, means | {"steps_per_s": speed})
        show = self.accelerator.is_main_process and not self.console.is_terminal
        if show and step % (10 * self.config.logging_steps) == 0:
            left = (self.config.max_train_steps - step) / speed / 60
            self.console.print(
                f"step {step}/{self.config.max_train_steps}  loss {means['loss']:.4f}  "
                f"{speed:.2f} steps/s  {left:.0f} min left"
            )

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line of ``metrics.jsonl``, and the same to the trackers."""
        if self.accelerator.is_main_process and values:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step} | values) + "\n")
        self.accelerator.log(values, step=step)

    def note_bad_files(self, skipped: list[str], num_items: int) -> None:
        """Names each bad file once; stops the run when there are too many."""
        self.seen += num_items
        for line in skipped:
            if line not in self.bad:
                self.bad.add(line)
                self.console.print(f"skipped ({len(self.bad)} so far): {line}", soft_wrap=True, markup=False)
        if self.limit is not None:
            require_few_bad(len(self.bad), self.seen, self.limit, self.share)

    def _forget_steps_after(self, step: int) -> None:
        """Drops lines that a killed run wrote after the checkpoint that is resumed."""
        if not self.path.exists():
            return
        whole = [line for line in self.path.read_text().splitlines() if line.endswith("}")]  # the last may be torn
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        with replacing_file(self.path) as partial:
            partial.write_text("".join(line + "\n" for line in kept))
