"""The training loop, the only one: networks and losses come as players, all that happens now and then as functions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from contentmotion.config import TrainConfig
from contentmotion.losses.player import Batch, Player
from contentmotion.run_dir import prepare_output_dir, require_same_settings, resolve_dtype
from contentmotion.train.batches import begin_draws, make_batches
from contentmotion.train.checkpoints import CheckpointWriter, read_state, resume, what_is_kept
from contentmotion.train.graph import record_passes
from contentmotion.train.metrics import Metrics
from contentmotion.train.optimizers import Trainee
from contentmotion.train.processes import agree, in_any, means_of, on_main, this_process
from contentmotion.train.sharding import Shards, blocks
from contentmotion.train.stopping import StopRequests, explained

Scheduled = tuple[int, Callable[[int], dict[str, float] | None]]  # every so many steps, with the step's number


def fit(
    players: Sequence[Player],
    dataset: Dataset,
    config: TrainConfig,
    *,
    collate: Callable[[list[Batch]], Batch],
    at: Sequence[Scheduled] = (),
    save: Callable[[], object] | None = None,
    command: str | None = None,
) -> None:
    """Trains the players' networks; on return their weights are the averaged (EMA) ones.

    Under ``torchrun`` or ``accelerate launch`` the processes share each batch. Batches and noise are functions of
    (seed, step), so a run resumed from a checkpoint continues bit for bit on one machine, and with another number of
    processes it continues with the same numbers where the items of a step stay as many (but for rounding; streams and
    ``scale.shuffle_window`` deal the data anew).

    Args:
        players: What is trained. They take their turns in this order, on the same batch.
        dataset: Indexed by (index, seed) pairs (see ``StepSampler``), with ``shard_sizes`` for
            ``scale.shuffle_window``; or a ``StreamingClips``. Its items may name bad files in "skipped"; it may have
            ``weights``, how often each item is drawn.
        config: Steps, learning rate and so on; the run lives in ``config.output_dir``.
        collate: Makes a batch of items.
        at: Functions, each called with the step's number every so many steps (0: never) and at the last one, by all
            processes, with the averaged weights in place, in evaluation mode, without gradients. Numbers that they
            return are logged, as "eval/...". They run before the step's checkpoint is written; where a run is stopped
            before they have, the one that goes on calls them first. So none is missed, and each may run again.
        save: Called by the first process, with the averaged weights in place, when the run ends: after its last step,
            and where it is stopped early.
        command: What ``config.yaml`` says that repeats the run; it is written once the run has really started, with
            the settings that it uses: those of the optimizer are its checkpoint's. None: no such file.

    Raises:
        ValueError: Players that cannot be trained, settings that are not the same in all processes, a loss, a gradient
            or weights that are not finite, too many bad files, or a checkpoint that does not fit.
        OSError: A checkpoint cannot be written.
        SystemExit: The run was stopped before its end, by a signal or ``scale.max_train_time``; its checkpoint
            is written.
    """
    run_dir, last = Path(config.output_dir), config.max_train_steps
    require_same_settings(config, this_process())
    run = _Run(players, config)
    first_step = resume(run.read, config, run_dir)
    if command is not None and first_step < last:
        on_main(lambda: prepare_output_dir(run_dir, command, config, run.used()))
    metrics = Metrics(config, run_dir, first_step, dataset)
    batches = closing(make_batches(dataset, config, run.process, first_step, collate))
    stop = StopRequests(config.scale.max_train_time)

    def due(step: int) -> list[int]:
        return [k for k, (every, _) in enumerate(at) if every and (step % every == 0 or step == last)]

    with explained(run_dir), batches as reader, metrics.progress, stop, run.writer as writer:
        owed = [k for k in due(first_step) if k in run.owed]
        while owed:
            owed, _ = run.call(at, owed, first_step, metrics, stop)
        for step in range(first_step + 1, last + 1):
            stopping = run.step(step, reader, metrics, lambda: stop.is_asked or writer.failed)
            owed, saving = due(step), step % config.checkpointing_steps == 0 or step == last
            logging = step % config.logging_steps == 0 or step == last
            if logging or owed or saving or stopping:
                metrics.note(run.read_numbers())
            metrics.advance(step, write=logging)
            if owed or saving or stopping:
                run.require_finite_weights(step)
            if not stopping:
                owed, stopping = run.call(at, owed, step, metrics, stop)
            if saving or stopping:
                writer.save(step, run.tensors(), run.state(owed), run.shards is not None)
            if stopping and (owed or step < last):
                writer.wait()
                run.finish(save)
                metrics.close()
                stop.leave(step, last, run_dir)
    run.finish(save)
    metrics.close()


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


class _Number(NamedTuple):
    """Something to log, perhaps on a GPU that is not there yet."""

    step: int
    name: str
    value: Tensor | float
    parts: int = 1  # numbers of this name that the step's is the mean of
    items: Tensor | None = None  # of a loss or a norm, which must be finite


class _Run:
    """The players with all that trains them, and the processes that share the work."""

    def __init__(self, players: Sequence[Player], config: TrainConfig) -> None:
        names = [player.name for player in players]
        if not names or len(set(names)) < len(names) or not all(name.isidentifier() for name in names):
            raise ValueError(f"players need names of their own, of letters, digits and _: got {names}")
        self.config, self.run_dir, self.process = config, Path(config.output_dir), this_process()
        self.writer = CheckpointWriter(self.run_dir, config.checkpoints_total_limit, config.scale.async_checkpointing)
        self.owed: list[int] = []  # functions that were due at the step of the checkpoint
        self._numbers: list[_Number] = []  # of the steps since the last look: a look waits for the GPU
        device: Any = self.process.device
        self.device, self.is_shared = device, self.process.num_processes > 1
        self.dtype = resolve_dtype(config.mixed_precision, self.device)
        if config.scale.fsdp and self.dtype is torch.float16:
            raise ValueError("--scale.fsdp goes with bf16 or full precision, not with fp16")
        compiled = players if config.scale.torch_compile else ()
        for blocks_in, k in chain.from_iterable(blocks(player.module) for player in compiled):
            blocks_in[k].compile()
        self.shards: Shards | None = None
        self.objectives: dict[str, Any] = {}
        if config.scale.fsdp and self.is_shared:  # one root: whole while any player's loss is computed
            self.shards = Shards(_Objective(players), self.device, self.process.num_processes)
            self.objectives = dict.fromkeys(names, self.shards.root)
        for player in players if self.shards is None else ():
            self.objectives[player.name] = objective = _Objective([player]).to(self.device)
            if self.is_shared:
                ids = None if self.device.type == "cpu" else [self.device.index]
                self.objectives[player.name] = DistributedDataParallel(objective, device_ids=ids)
        self.trainees = [Trainee(player, config, self.device, self.dtype) for player in players]
        self.passes: list[Callable[[Batch], dict[str, Tensor]]] = [partial(self._pass, t) for t in self.trainees]
        if config.scale.cuda_graphs:
            self.passes = record_passes(self.passes, self.trainees, config, self.process)
        for trainee in self.trainees:
            trainee.module.train()

    def prefix(self, trainee: Trainee) -> str:
        """What the names of a player's numbers begin with."""
        return f"{trainee.name}/" if len(self.trainees) > 1 else ""

    def tensors(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """All tensors of a checkpoint, by file."""
        return chain.from_iterable(trainee.tensors().items() for trainee in self.trainees)

    def state(self, owed: Sequence[int]) -> dict[str, Any]:
        """The rest of a checkpoint."""
        return {"owed": list(owed), "players": {trainee.name: trainee.record() for trainee in self.trainees}}

    def read(self, folder: Path) -> None:
        """Goes on from a checkpoint, of this number of processes or of another one."""
        state = read_state(folder)
        if len(state["players"]) != len(self.trainees):
            raise ValueError(f"it is of {', '.join(state['players'])}")
        for trainee in self.trainees:
            trainee.read(folder, state["num_parts"], state["players"][trainee.name])
        self.owed = state["owed"]

    def used(self) -> TrainConfig:
        """The settings as the optimizers have them, which may be a checkpoint's."""
        group = next((t.optimizer.param_groups[0] for t in self.trainees if t.player.make_optimizer is None), None)
        if group is None:
            return self.config
        betas = dict(zip(("adam_beta1", "adam_beta2"), group["betas"], strict=True))
        return replace(self.config, learning_rate=group["initial_lr"], adam_weight_decay=group["weight_decay"], **betas)

    def step(self, step: int, batches: Iterator[Batch], metrics: Metrics, asked_to_stop: Callable[[], bool]) -> bool:
        """One step of each optimizer whose turn it is: ``read_numbers`` says how it went. Gives whether any process is
        asked to stop.
        """
        started = time.perf_counter()
        parts = []
        for _ in range(self.config.gradient_accumulation_steps):
            parts.append(next(batches))
            metrics.note_bad_files(parts[-1].pop("skipped", []), len(parts[-1]["index"]))
        waited = time.perf_counter() - started
        for number, trainee in enumerate(self.trainees):
            if step % trainee.player.every == 0:
                self._turn(step, number, trainee, parts)
            if step % self.config.logging_steps == 0 or step == self.config.max_train_steps:
                self._numbers += [_Number(step, self.prefix(trainee) + n, x) for n, x in trainee.lag().items()]
        any_bad, any_asked = in_any(bool(metrics.unsaid), asked_to_stop())
        metrics.check_bad_files(any_bad)
        self._numbers.append(_Number(step, "data_wait", waited / (time.perf_counter() - started)))
        return any_asked

    def call(
        self, at: Sequence[Scheduled], numbers: list[int], step: int, metrics: Metrics, stop: StopRequests
    ) -> tuple[list[int], bool]:
        """Calls scheduled functions; gives those that are left where any process was asked to stop meanwhile, and
        whether."""
        stopping = False
        while numbers and not stopping:
            with self.averaged():
                scores = at[numbers[0]][1](step) or {}
            metrics.write(step, {f"eval/{name}": value for name, value in scores.items()})
            metrics.show(step)
            numbers = numbers[1:]
            [stopping] = in_any(stop.is_asked)
        return numbers, stopping

    def read_numbers(self) -> list[dict[str, float]]:
        """Numbers of each step since the last call, means over the processes; raises ``ValueError`` where a loss or a
        gradient is not finite.
        """
        numbers, self._numbers = self._numbers, []
        steps: dict[int, dict[str, float]] = {}
        means = iter(means_of([number.value for number in numbers if isinstance(number.value, Tensor)]))
        for number in numbers:
            mean = next(means) if isinstance(number.value, Tensor) else number.value
            if number.items is not None and not math.isfinite(mean):
                what = number.name.replace("grad_norm", "gradient norm")
                self._refuse(what, float(number.value), number.step, f" (items {number.items.tolist()})")
            values = steps.setdefault(number.step, {})
            values[number.name] = values.get(number.name, 0.0) + mean / number.parts
        return list(steps.values())

    def _turn(self, step: int, number: int, trainee: Trainee, parts: list[Batch]) -> None:
        """One step of a player's optimizer, over the parts of the step's batch."""
        prefix = self.prefix(trainee)
        for k, part in enumerate(parts):
            here = {n: x.to(self.device, non_blocking=True) if isinstance(x, Tensor) else x for n, x in part.items()}
            source = begin_draws(self.config, step, k, self.process, number)
            with self._sharing_gradients(self.objectives[trainee.name], k == len(parts) - 1):
                losses = self.passes[number](here | {"generator": source})
            if trainee.player.watch is not None:
                trainee.player.watch(step, losses)
            self._numbers += [
                _Number(step, prefix + name, value, len(parts), part["index"] if name == "loss" else None)
                for name, value in losses.items()
            ]
        norm = trainee.clip_gradients()
        skips = trainee.scaler.is_enabled()  # by itself, a step whose gradients are not finite
        self._numbers.append(_Number(step, f"{prefix}grad_norm", norm, items=None if skips else parts[-1]["index"]))
        trainee.step()
        for other in self.trainees:  # whose network the loss may have called
            other.optimizer.zero_grad(set_to_none=True)
        self._numbers.append(_Number(step, f"{prefix}lr", trainee.schedule.get_last_lr()[0]))

    def _pass(self, trainee: Trainee, batch: Batch) -> dict[str, Tensor]:
        """A forward and a backward pass: gives a player's losses, adds to its gradients."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            losses = self.objectives[trainee.name](trainee.name, batch)
        trainee.scaler.scale(losses["loss"] / self.config.gradient_accumulation_steps).backward()
        return {name: value.detach() for name, value in losses.items()}

    def _sharing_gradients(self, objective: Any, shared: bool) -> AbstractContextManager[None]:
        """Whether backward passes share gradients with the other processes: at the end of a step is enough."""
        if self.shards:
            objective.set_requires_gradient_sync(shared)
        return nullcontext() if shared or self.shards or not self.is_shared else objective.no_sync()

    def require_finite_weights(self, step: int) -> None:
        """Raises ``ValueError``, in all processes, where something that a checkpoint would hold is not finite."""
        finite = all(trainee.is_finite() for trainee in self.trainees)
        if any(in_any(not finite)):
            self._refuse("a weight", 0.0 if finite else math.nan, step)

    def _refuse(self, what: str, here: float, step: int, items: str = "") -> None:
        """Raises ``ValueError``, in all processes, about a number that is not finite in one of them."""
        value, items = next(filter(None, gather_object([None if math.isfinite(here) else (here, items)])))
        self.writer.wait()  # or the last good one would not be named
        agree(
            ValueError(
                f"{what} is {value} at step {step}{items}; {what_is_kept(self.run_dir)}. A lower learning rate or full "
                "precision (--mixed_precision no) usually helps."
            )
        )

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

    def finish(self, save: Callable[[], object] | None) -> None:
        """Leaves the averaged weights in the networks, and has them saved."""
        self._put_averages()
        for trainee in self.trainees:
            trainee.module.eval()
        if save is not None:
            with torch.no_grad():
                on_main(save)
