"""Which items each process's batches hold, and the randomness that goes with them."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Dataset

from contentmotion.config import TrainConfig
from contentmotion.data.cache import LatentCache
from contentmotion.data.samplers import ShardSampler, make_sampler
from contentmotion.data.streaming import StreamingClips
from contentmotion.draws import BatchGenerator
from contentmotion.losses.player import Batch
from contentmotion.train.stopping import STOP_SIGNALS


def make_batches(
    dataset: Dataset, config: TrainConfig, process: PartialState, first_step: int, collate: Callable
) -> Generator[Batch]:
    """This process's batches of a data set (see ``fit``) after the ``first_step`` steps that are done, in the CPU's
    memory, each with its "step".

    Raises:
        ValueError: The data cannot be read; so does ``OSError``. In one line, whichever process reads.
    """
    accumulation = config.gradient_accumulation_steps
    first, stop = first_step * accumulation, config.max_train_steps * accumulation
    device: Any = process.device
    kept = _keep_there(dataset, config, device)
    loader = DataLoader(
        **_order(dataset, config, process, first, stop),
        collate_fn=collate,
        num_workers=config.dataloader_num_workers,
        pin_memory=device.type == "cuda" and not kept,
        worker_init_fn=_leave_stopping_to_the_run,
    )
    reader: Any = iter(loader)
    try:
        for micro_step in range(first, stop):
            batch = _next(reader, config.dataloader_num_workers)
            batch["step"] = micro_step // accumulation + 1
            yield batch
    finally:
        if config.dataloader_num_workers:  # Python would end them by SIGTERM and wait, and they do not heed it
            reader._shutdown_workers()


def _keep_there(dataset: Dataset, config: TrainConfig, device: torch.device) -> bool:
    """Puts a latent cache on the GPU, where it is small enough to leave no mark there; whether it is there."""
    if device.type != "cuda" or not isinstance(dataset, LatentCache) or not config.scale.cache_on_device:
        return False
    fits = 4 * dataset.num_bytes < torch.cuda.mem_get_info(device)[0]
    if fits and dataset.bucket_of is None and not config.dataloader_num_workers:
        dataset.keep_on(device)
        return True
    return False


def begin_draws(config: TrainConfig, step: int, part: int, process: PartialState, player: int) -> BatchGenerator:
    """The randomness of one of a step's forward passes; also seeds what modules draw by themselves, such as dropout.

    What comes from the generator depends on the seed, the step, the player, the item's place in the step and the kind
    of device it is drawn on (``scale.noise_on_device``), not on how many processes and forward passes share the step.
    Steps count from 1, a step's forward passes (``part``) and the players from 0.
    """
    parts = config.gradient_accumulation_steps

    def seed(number: int) -> int:
        return (config.seed * 1_000_003 + number) * 1_009

    torch.manual_seed(seed((step - 1) * parts + part) + process.process_index)
    device: Any = process.device if config.scale.noise_on_device else "cpu"
    generator = torch.Generator(device).manual_seed(seed(step - 1) + (1_009 - player if player else 0))
    return BatchGenerator(generator, process.process_index, process.num_processes, part, parts)


def _next(reader: Iterator[Batch], workers: int) -> Batch:
    """The next batch; an error of a process that reads comes without its traceback, unless it is a bug's."""
    try:
        return next(reader)
    except (ValueError, OSError, EOFError, RuntimeError) as error:
        caught = re.match(r"Caught (\w+) in DataLoader worker process", str(error))
        if caught and caught[1] != RuntimeError.__name__:
            said = re.split(rf"^(?:[\w.]+\.)?{caught[1]}: ", str(error), maxsplit=1, flags=re.MULTILINE)[-1]
            # Of an error that takes more than a message torch makes a RuntimeError.
            kind = ValueError if isinstance(error, RuntimeError) else type(error)
            raise kind(" ".join(said.split())) from None
        if workers and isinstance(error, (OSError, EOFError)):  # who read a batch is gone, and the batch with it
            raise RuntimeError(f"DataLoader worker (lost): {error}") from error
        raise


def _leave_stopping_to_the_run(worker: int) -> None:
    """A cluster and a terminal signal every process; the run still needs its readers to finish its step."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _order(dataset: Dataset, config: TrainConfig, process: PartialState, first: int, stop: int) -> dict[str, Any]:
    """Which items this process's micro-batches ``first``, ..., ``stop`` - 1 have, as arguments of a ``DataLoader``."""
    place = {"process_index": process.process_index, "num_processes": process.num_processes}
    if isinstance(dataset, StreamingClips):
        stream = replace(dataset, seed=config.seed, batch_size=config.train_batch_size, first_batch=first, **place)
        return {"dataset": stream, "batch_size": config.train_batch_size}
    run = {"seed": config.seed, "start_step": first, "num_steps": stop}
    if config.scale.shuffle_window is not None:
        if not hasattr(dataset, "shard_sizes"):
            raise ValueError("scale.shuffle_window is for caches and streams: these clips are not in shards")
        if getattr(dataset, "bucket_of", None) is not None:
            raise ValueError("scale.shuffle_window mixes clips of one size: this cache has several (buckets)")
        sizes, weights = dataset.shard_sizes, getattr(dataset, "weights", None)
        window = config.scale.shuffle_window
        sampler = ShardSampler(sizes, config.train_batch_size, window=window, weights=weights, **run, **place)
        return {"dataset": dataset, "batch_sampler": sampler}
    batches = make_sampler(dataset, config.train_batch_size * process.num_processes, **run)
    mine = (batch[process.process_index :: process.num_processes] for batch in batches)
    return {"dataset": dataset, "batch_sampler": mine}
