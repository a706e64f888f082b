"""The training loop, the only one: networks and losses come as players, all that happens now and then as functions."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, gather_object
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from contentmotion.config import TrainConfig
from contentmotion.losses.player import Batch, Loss, Player
from contentmotion.run_dir import ENVIRONMENT, describe_environment, resolve_dtype
from contentmotion.saving import write_json
from contentmotion.train.batches import begin_draws, make_batches
from contentmotion.train.checkpoints import (
    STATE,
    CheckpointWriter,
    TensorFiles,
    file_names,
    latest_checkpoint,
    own_part,
    read_state,
    resume,
    write_part,
)
from contentmotion.train.metrics import Metrics
from contentmotion.train.optimizers import Trainee
from contentmotion.train.processes import agree, mean_of, on_main, this_process
from contentmotion.train.sharding import Shards, blocks
from contentmotion.train.stopping import OUT_OF_TIME, StopRequests, explained

__all__ = ["Batch", "Loss", "Player", "Scheduled", "fit"]

Scheduled = tuple[int, Callable[[int], dict[str, float] | None]]  # every so many steps, with the step's number


def fit(
    players: Sequence[Player],
    dataset: Dataset,
    config: TrainConfig,
    *,
    collate: Callable[[list[Batch]], Batch],
    at: Sequence[Scheduled] = (),
    save: Callable[[], object] | None = None,
) -> None:
    """Trains the players' networks; on return their weights are the averaged (EMA) ones.

    Under ``torchrun`` or ``accelerate launch`` the processes share each batch. Batches and noise are functions of
    (seed, step), so a run resumed from a checkpoint continues bit for bit on one machine, and with another number of
    processes it continues with the same numbers where the items of a step stay as many (but for rounding; streams and
    ``shuffle_window`` deal the data anew).

    Args:
        players: What is trained. They take their turns in this order, on the same batch.
        dataset: Indexed by (index, seed) pairs (see ``StepSampler``), with ``shard_sizes`` where ``shuffle_window`` is
            set; or a ``StreamingClips``. Its items may name bad files in "skipped"; it may have ``weights``, how often
            each item is drawn.
        config: Steps, learning rate and so on; the run lives in ``config.output_dir``.
        collate: Items to batch.
        at: Functions, each called with the step's number every so many steps (0: never) and at the last one, by all
            processes, with the averaged weights in place, in evaluation mode, without gradients. Numbers that they
            return are logged, as "eval/...". They run before the step's checkpoint is written; where a run is stopped
            before they have, the one that goes on calls them first. So none is missed, and each may run again.
        save: Called by the first process, with the averaged weights in place, when the run ends: after its last step,
            and where it is stopped early.

    Raises:
        ValueError: Players that cannot be trained, a loss, a gradient or weights that are not finite, too many bad
            files, or a checkpoint that does not fit.
        OSError: A checkpoint cannot be written.
        SystemExit: The run was stopped before its end, by a signal or ``max_train_time``; its checkpoint is written.
    """
    run_dir, last = Path(config.output_dir), config.max_train_steps
    run = _Run(players, config)
    first_step = resume(run.read, config, run_dir)
    metrics = Metrics(run.accelerator, config, run_dir, first_step, dataset)
    batches = closing(make_batches(dataset, config, run.process, first_step, collate))
    writer = CheckpointWriter(run.write, run_dir, config.checkpoints_total_limit)
    stop = StopRequests(config.max_train_time)

    def due(step: int) -> list[int]:
        return [k for k, (every, _) in enumerate(at) if every and (step % every == 0 or step == last)]

    def call(numbers: Sequence[int], step: int) -> None:
        for k in numbers:
            with run.averaged():
                scores = at[k][1](step) or {}
            metrics.write(step, {f"eval/{name}": value for name, value in scores.items()})
        if numbers:
            run.accelerator.wait_for_everyone()

    with explained(run_dir), batches as reader, metrics.progress, stop, writer:
        call([k for k in due(first_step) if k in run.owed], first_step)
        for step in range(first_step + 1, last + 1):
            values, stopping = run.step(step, reader, metrics, lambda: stop.is_asked or writer.failed)
            metrics.log(step, values | run.lag(step))
            todo, saving = due(step), step % config.checkpointing_steps == 0 or step == last or stopping
            if todo or saving:
                run.require_finite_weights(step)
            if todo and not stopping:
                call(todo, step)
                todo = []
            if saving:
                writer.save(step, step, todo)
            if stopping and (todo or step < last):
                writer.wait()
                run.stop_early(step, stop, save)
    run.finish(save)


class _Objective(nn.Module):
    """What is wrapped for several processes: the losses too, so that whatever they call of a network, gradients are
    shared.
    """

    def __init__(self, players: Sequence[Player]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({f"{player.name}_network": player.module for player in players})
        self._losses = {player.name: player.loss for player in players}

    def forward(self, name: str, batch: Batch) -> dict[str, Tensor]:
        return self._losses[name](self.networks[f"{name}_network"], batch)


class _Run:
    """The players with all that trains them, and the processes that share the work."""

    def __init__(self, players: Sequence[Player], config: TrainConfig) -> None:
        self.config, self.run_dir, self.process = config, Path(config.output_dir), this_process()
        self.owed: list[int] = []
        device: Any = self.process.device
        self.device, self.is_shared = device, self.process.num_processes > 1
        self.dtype = resolve_dtype(config.mixed_precision, self.device)
        if config.fsdp and self.dtype is torch.float16:
            raise ValueError("--fsdp goes with bf16 or full precision, not with fp16")
        self.accelerator = _open_run_dir(config, self.run_dir)
        shared = _names_held_elsewhere(players)
        self.objectives: dict[str, Any] = {}
        self.shards: Shards | None = None
        if config.torch_compile:
            for player in players:
                for blocks_in, k in blocks(player.module):
                    blocks_in[k].compile()
        if config.fsdp and self.is_shared:  # one root: whole while any player's loss is computed
            self.shards = Shards(_Objective(players), self.device, self.process.num_processes)
            self.objectives = dict.fromkeys((player.name for player in players), self.shards.root)
        for player in players if self.shards is None else ():
            objective = _Objective([player]).to(self.device)
            ids = [self.device.index] if self.device.type != "cpu" else None
            self.objectives[player.name] = (
                DistributedDataParallel(objective, device_ids=ids) if self.is_shared else objective
            )
        self.trainees = [Trainee(player, config, self.device, self.dtype, shared[player.name]) for player in players]
        for trainee in self.trainees:
            trainee.module.train()
        # What writes checkpoints beside training, and tells the other processes how it went.
        self._writer = ThreadPoolExecutor(1) if config.async_checkpointing else None
        self._group: Any = None
        if self._writer and self.is_shared:
            self._group = distributed.new_group(backend="gloo", timeout=timedelta(hours=1))

    def prefix(self, trainee: Trainee) -> str:
        """What the names of a player's numbers begin with."""
        return f"{trainee.name}/" if len(self.trainees) > 1 else ""

    def write(self, folder: Path, step: int, owed: list[int]) -> Future | None:
        """Writes all that a run goes on from; in every process. Gives a future where that goes on in the background."""
        rank, is_main = self.process.process_index, self.process.is_main_process
        num_parts = self.process.num_processes if self.shards else 0
        state = {"step": step, "owed": owed, "num_parts": num_parts}
        state |= {"players": {trainee.name: trainee.record() for trainee in self.trainees}}
        text = json.dumps(state)
        files = chain.from_iterable(trainee.tensors().items() for trainee in self.trainees if is_main or self.shards)
        parts = (
            (folder / file_names(stem, num_parts)[rank if num_parts else 0], own_part(tensors, everything=is_main))
            for stem, tensors in files
        )
        if self._writer is not None:
            return self._writer.submit(_write_all, folder, list(parts), text if is_main else None, self._group)
        _write_all(folder, parts, text if is_main else None, None)
        return None

    def read(self, folder: Path) -> None:
        """Reads what ``write`` wrote, in this number of processes or in another one."""
        state = read_state(folder)
        for trainee in self.trainees:
            if trainee.name not in state["players"]:
                raise ValueError(f"it has no {trainee.name}")
            files = trainee.tensors()
            moments = TensorFiles(folder, f"{trainee.name}-optimizer", state["num_parts"])
            for stem in files.keys() - {f"{trainee.name}-optimizer"}:
                TensorFiles(folder, stem, state["num_parts"]).read_all(files[stem])
            trainee.restore(state["players"][trainee.name], _read_moments(moments, trainee.parameters))
        self.owed = state["owed"]

    def step(
        self, step: int, batches: Iterator[Batch], metrics: Metrics, asked_to_stop: Callable[[], bool]
    ) -> tuple[dict[str, float], bool]:
        """One step of each optimizer whose turn it is.

        Returns:
            Numbers to log; and whether any process is asked to stop.

        Raises:
            ValueError: A loss or a gradient that is not finite, or too many bad files.
        """
        started = time.perf_counter()
        parts = []
        for _ in range(self.config.gradient_accumulation_steps):
            parts.append(next(batches))
            metrics.note_bad_files(parts[-1].pop("skipped", []), len(parts[-1]["index"]))
        waited = time.perf_counter() - started
        values: dict[str, float] = {}
        for number, trainee in enumerate(self.trainees):
            if step % trainee.player.every == 0:
                own = self._turn(step, number, trainee, parts)
                values |= {self.prefix(trainee) + name: value for name, value in own.items()}
        # What any process must hear of, in one message.
        signs = mean_of({"bad": float(bool(metrics.unsaid)), "stop": float(asked_to_stop())})
        metrics.check_bad_files(signs["bad"] > 0)
        values["data_wait"] = waited / (time.perf_counter() - started)
        return values, signs["stop"] > 0

    def _turn(self, step: int, number: int, trainee: Trainee, parts: list[Batch]) -> dict[str, float]:
        """One step of a player's optimizer, over the parts of the step's batch."""
        averages: dict[str, float] = {}
        objective = self.objectives[trainee.name]
        for k, part in enumerate(parts):
            here = {n: x.to(self.device, non_blocking=True) if isinstance(x, Tensor) else x for n, x in part.items()}
            source = begin_draws(self.config, step, k, self.process, number)
            with self._sharing(objective, gradients=k == len(parts) - 1):
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                    losses = objective(trainee.name, here | {"generator": source})
                values = mean_of(losses)
                self._require_finite(f"{self.prefix(trainee)}loss", values["loss"], losses["loss"], step, part)
                trainee.scaler.scale(losses["loss"] / len(parts)).backward()
            for name, value in values.items():
                averages[name] = averages.get(name, 0.0) + value / len(parts)
        norm = trainee.clip_gradients()
        if not trainee.scaler.is_enabled():  # it skips such a step by itself
            self._require_finite(f"{self.prefix(trainee)}gradient norm", norm, norm, step, parts[-1])
        trainee.step()
        for other in self.trainees:  # whose network the loss may have called
            other.optimizer.zero_grad(set_to_none=True)
        return averages | {"grad_norm": norm, "lr": trainee.schedule.get_last_lr()[0]}

    @contextmanager
    def _sharing(self, objective: Any, gradients: bool) -> Iterator[None]:
        """Whether backward passes share gradients with the other processes: at the end of a step is enough."""
        if self.shards:
            objective.set_requires_gradient_sync(gradients)
        with nullcontext() if gradients or self.shards or not self.is_shared else objective.no_sync():
            yield

    def _require_finite(self, what: str, everywhere: float, here: Tensor | float, step: int, batch: Batch) -> None:
        """Raises ``ValueError``, in all processes, where a number is not finite in one of them."""
        if math.isfinite(everywhere):
            return
        mine = float(here.detach() if isinstance(here, Tensor) else here)
        found = gather_object([None if math.isfinite(mine) else (mine, batch["index"].tolist())])
        value, items = next(entry for entry in found if entry is not None)
        agree(ValueError(f"{what} is {value} at step {step} (items {items}); {self._advice()}"))

    def _advice(self) -> str:
        kept = latest_checkpoint(self.run_dir)
        return (
            f"the last good checkpoint is {kept}" if kept else "no checkpoint was written yet"
        ) + ". A lower learning rate or full precision (--mixed_precision no) usually helps."

    def require_finite_weights(self, step: int) -> None:
        """Raises ``ValueError``, in all processes, where what a checkpoint would hold is not finite."""
        bad = sorted({trainee.name for trainee in self.trainees if not trainee.is_finite()})
        if mean_of({"bad": float(bool(bad))})["bad"]:
            names = ", ".join(dict.fromkeys(gather_object(bad)))
            agree(ValueError(f"weights are not finite after step {step} ({names}); {self._advice()}"))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Puts the averaged weights in place for a while, whole ones in every process, to evaluate: without gradients;
        global random state untouched, so that previews do not change the run.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with ExitStack() as undo, torch.random.fork_rng(devices), torch.no_grad():
            undo.callback(self._put_averages())
            for trainee in self.trainees:
                trainee.module.eval()
                undo.callback(trainee.module.train)
            yield

    def _put_averages(self) -> Callable[[], None]:
        """Puts the averaged weights in place, whole ones; call the result to have the others again."""
        if self.shards:
            averages = [(f"networks.{trainee.name}_network", trainee.averages()) for trainee in self.trainees]
            return self.shards.gather({f"{path}.{name}": x for path, own in averages for name, x in own.items()})
        kept = []
        for trainee in self.trainees:
            for name, value in trainee.averages().items():
                parameter = trainee.parameters[name]
                kept.append((parameter, parameter.data))
                parameter.data = value.to(parameter.device)

        def undo() -> None:
            for parameter, data in kept:
                parameter.data = data

        return undo

    def stop_early(self, step: int, stop: StopRequests, save: Callable[[], object] | None) -> None:
        """Ends the process after a checkpoint; raises ``SystemExit``."""
        number = max(gather_object([stop.signal])) if self.is_shared else stop.signal
        if self.process.is_main_process:
            print(
                f"Stopped by {stop.describe(number)} after step {step} of {self.config.max_train_steps}, with a "
                f"checkpoint in {self.run_dir}: the same command goes on from there.",
                file=sys.stderr,
            )
        self.finish(save)
        raise SystemExit(128 + number if number else OUT_OF_TIME)

    def finish(self, save: Callable[[], object] | None) -> None:
        """Leaves the averaged weights in the networks, has them saved, and ends the work in common.

        The process group stays (``run_dir.leave_processes``), where accelerate's ``end_training`` destroys it: DDP's
        reducer would then hold it last and free it under Python's lock, for which gloo's thread may wait (torch 2.13).
        """
        self._put_averages()
        for trainee in self.trainees:
            trainee.module.eval()
        with torch.no_grad():
            on_main(lambda: save() if save else None)
        for tracker in self.accelerator.trackers:
            tracker.finish()
        if self._writer:
            self._writer.shutdown()

    def lag(self, step: int) -> dict[str, float]:
        """How far the averages lag behind, where a line is written."""
        if step % self.config.logging_steps and step != self.config.max_train_steps:
            return {}
        return {self.prefix(one) + name: value for one in self.trainees for name, value in one.lag().items()}


def _open_run_dir(config: TrainConfig, run_dir: Path) -> Accelerator:
    """The run's folder, and accelerate for its trackers."""
    accelerator = Accelerator(
        mixed_precision="no",
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


def _names_held_elsewhere(players: Sequence[Player]) -> dict[str, set[str]]:
    """By player, the names of weights that have another name before, in the same network or in an earlier player's.

    Raises:
        ValueError: Names of players that are no names, or not different.
    """
    names = [player.name for player in players]
    if not names or len(set(names)) < len(names) or not all(name.isidentifier() for name in names):
        raise ValueError(f"players need names of their own, of letters, digits and _: got {names}")
    seen: set[int] = set()
    again: dict[str, set[str]] = {name: set() for name in names}
    for player in players:
        module = player.module
        everything = module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
        for name, tensor in chain(*everything):
            if id(tensor) in seen:
                again[player.name].add(name)
            seen.add(id(tensor))
    return again


def _read_moments(files: TensorFiles, parameters: dict[str, nn.Parameter]) -> dict[str, dict[str, Tensor]]:
    """The optimizer's tensors by parameter and key, sharded as the parameters are."""
    moments: dict[str, dict[str, Tensor]] = {}
    for place in files.places:
        name, _, key = place.rpartition(".")
        if name not in parameters:
            raise ValueError(f"it trained {name} too")
        moments.setdefault(name, {})[key] = tensor = files.empty_like(place, parameters[name].detach())
        files.read(place, tensor)
    return moments


def _write_all(folder: Path, parts: Any, text: str | None, group: Any) -> None:
    """Writes files of tensors, and the JSON.

    Args:
        folder: Where to.
        parts: Paths and what ``own_part`` gave.
        text: The JSON, where this process writes it.
        group: Of the processes' CPUs, to wait for the others and hear how they did; None does not wait.
    """
    error: Exception | None = None
    try:
        for path, part in parts:
            write_part(path, part)
        if text is not None:
            (folder / STATE).write_text(text + "\n", encoding="utf-8")
    except Exception as caught:
        error = caught
    if group is not None:
        told: list[Any] = [None] * group.size()
        distributed.all_gather_object(told, error and str(error), group=group)
        error = error or next((OSError(message) for message in told if message), None)
    if error is not None:
        raise error
