"""Checkpoints: safetensors and JSON, never a pickle; written under another name and renamed, so that a folder called
checkpoint-N is always whole.

``checkpoint-N/`` holds of each player ``NAME.safetensors`` (all of the network), ``NAME-average.safetensors`` and
``NAME-optimizer.safetensors`` (parameter's name, dot, "exp_avg" and so on), and ``state.json`` with everything else.
Of a run that was sharded each file is in as many parts as there were processes, ``NAME-00001-of-00002.safetensors``:
the rows of its tensors, one part's after another's.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from contentmotion.config import TrainConfig
from contentmotion.run_dir import reason_of
from contentmotion.saving import read_json
from contentmotion.train.processes import on_main, this_process, together
from contentmotion.train.sharding import local_rows

STATE = "state.json"
_OLD = ("*.pkl", "*.bin", "*/.metadata")  # what earlier versions wrote: pickles


def checkpoints(run_dir: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [p for p in run_dir.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=checkpoint_step)


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    return max(checkpoints(run_dir), key=checkpoint_step, default=None)


def what_is_kept(run_dir: Path) -> str:
    """The end of a message about a run that cannot go on."""
    kept = latest_checkpoint(run_dir)
    return f"the last good checkpoint is {kept}" if kept else "no checkpoint was written yet"


def checkpoint_step(checkpoint: Path) -> int:
    """The number of optimizer steps behind a checkpoint."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def read_state(folder: Path) -> dict[str, Any]:
    """What a checkpoint's JSON holds; raises ``ValueError`` where an earlier version wrote the checkpoint."""
    if not (folder / STATE).exists() and any(any(folder.glob(pattern)) for pattern in _OLD):
        raise ValueError(
            "an earlier version wrote it, with pickles, which are never read: go on with that version, or begin anew "
            "in another --output_dir"
        )
    return read_json(folder / STATE)


def file_names(stem: str, num_parts: int) -> list[str]:
    """The files that hold one thing; ``num_parts`` is 0 where it is not in parts."""
    parts = [f"-{k:05d}-of-{num_parts:05d}" for k in range(1, num_parts + 1)] or [""]
    return [f"{stem}{part}.safetensors" for part in parts]


def read_tensors(folder: Path, stem: str, num_parts: int) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors, whole, that the files of one thing hold together; ``OSError``: one is missing or damaged."""
    pieces: dict[str, list[Any]] = {}
    for name in file_names(stem, num_parts):
        if not (folder / name).is_file():
            raise FileNotFoundError(2, "No such file", name)
        try:
            file: Any = safe_open(folder / name, framework="pt")
        except SafetensorError as error:
            raise OSError(f"{name}: {error}") from error
        for key in file.keys():  # noqa: SIM118 (it is no dict)
            pieces.setdefault(key, []).append(file)
    for key, files in pieces.items():
        tensors = [file.get_tensor(key) for file in files]
        yield key, tensors[0] if len(tensors) == 1 else torch.cat(tensors)


@torch.no_grad()
def fill(tensor: Tensor | None, name: str, value: Tensor) -> None:
    """Copies a whole tensor that was read into one that may be sharded; raises ``ValueError`` where it does not fit."""
    if tensor is None:
        raise ValueError(f"it has {name} besides")
    if tensor.shape != value.shape:
        raise ValueError(f"its {name} is {list(value.shape)}, not {list(tensor.shape)}")
    rows, start = local_rows(tensor)
    rows.copy_(value[start : start + len(rows)] if value.ndim else value)


class CheckpointWriter:
    """Writes checkpoints, all processes together, and removes all but the last ``limit``.

    What is written in the background gets its name as soon as all processes have written their parts. As a context,
    it ends when the last one is written, also where the run ends with an error.

    Args:
        run_dir: Folder of the run.
        limit: How many to keep.
        in_background: Whether training goes on while one is written, from a copy in the CPU's memory.
    """

    def __init__(self, run_dir: Path, limit: int, in_background: bool) -> None:
        self.run_dir, self.limit = run_dir, limit
        self._thread = ThreadPoolExecutor(1) if in_background else None
        self._writing: Future[None] | None = None
        self._group: Any = None  # of its own, for a thread beside training
        if this_process().num_processes > 1:
            self._group = distributed.new_group(backend="gloo", timeout=timedelta(hours=1))

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.wait()
        elif self._writing is not None:  # not together: the other processes may be gone
            self._writing.exception()
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    @property
    def failed(self) -> bool:
        """Whether this process knows that what it writes in the background cannot be written."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def save(
        self, step: int, files: Iterable[tuple[str, Mapping[str, Tensor]]], state: dict[str, Any], sharded: bool
    ) -> None:
        """Writes a checkpoint, or begins to, once the one before is written. Called by every process.

        Args:
            step: Steps behind it.
            files: The beginnings of files' names, and the tensors that go there.
            state: The rest, for JSON.
            sharded: Whether each process has a part of the tensors; else they are the same in all.

        Raises:
            OSError: It, or the one before, could not be written; what was there before is still there.
        """
        self.wait()
        process, partial = this_process(), self.run_dir / f"partial-{step:06d}"
        on_main(lambda: shutil.rmtree(partial, ignore_errors=True))
        on_main(lambda: partial.mkdir(parents=True))
        place, num_parts = (process.process_index, process.num_processes) if sharded else (0, 0)
        copies = (
            (file_names(stem, num_parts)[place], _own(tensors))
            for stem, tensors in files
            if sharded or process.is_main_process
        )
        text = json.dumps(state | {"num_parts": num_parts}) + "\n" if process.is_main_process else None
        if self._thread is None:
            together(lambda: self._write(step, partial, copies, text))
        else:
            self._writing = self._thread.submit(self._write, step, partial, list(copies), text)

    def wait(self) -> None:
        """Returns when nothing is being written any more; called by every process. Raises as ``save`` does."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            together(writing.result)

    def _write(
        self, step: int, partial: Path, copies: Iterable[tuple[str, dict[str, Tensor]]], text: str | None
    ) -> None:
        """Writes this process's files, waits for the others, and gives the checkpoint its name."""
        final, problem = self.run_dir / f"checkpoint-{step:06d}", ""
        try:
            for name, tensors in copies:
                save_file(tensors, partial / name)
            if text is not None:
                (partial / STATE).write_text(text, encoding="utf-8")
        except Exception as error:  # a full disk is an error of the system, or of safetensors
            if "DataLoader worker" in str(error):  # torch's signal handler, which came in between
                raise
            problem = reason_of(error)
        if self._group is not None:
            told: list[Any] = [""] * self._group.size()
            distributed.all_gather_object(told, problem, group=self._group)
            problem = next(filter(None, told), "")
        is_main = this_process().is_main_process
        if problem:  # all have ended their attempts
            if is_main:
                shutil.rmtree(partial, ignore_errors=True)
            raise OSError(f"{final} could not be written: {problem}; {what_is_kept(self.run_dir)}")
        if is_main:
            shutil.rmtree(final, ignore_errors=True)  # an older run's, being repeated from an earlier step
            os.replace(partial, final)
            for old in checkpoints(self.run_dir)[: -self.limit]:
                shutil.rmtree(old)


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the CPU's memory of what this process is to write: its rows; of what all have, the first all."""
    is_main = this_process().is_main_process
    mine = {name: local_rows(x.detach())[0] for name, x in tensors.items() if is_main or isinstance(x, DTensor)}
    return {name: rows.to("cpu", copy=True).contiguous() for name, rows in mine.items()}


def resume(read: Callable[[Path], None], config: TrainConfig, run_dir: Path) -> int:
    """Loads the checkpoint that the config asks for by ``read``, in every process; returns its step, 0 for a new run.

    Raises:
        ValueError: There is none, or it does not fit, or there is one and the config refuses to go on.
    """
    wanted = config.resume_from_checkpoint
    found = latest_checkpoint(run_dir) if wanted in ("latest", "none") else Path(wanted)
    [checkpoint] = broadcast_object_list([found])  # the first process's
    if checkpoint is None:
        on_main(lambda: _clear(run_dir, 0))
        return 0

    def load() -> None:
        if wanted == "none":
            raise ValueError(f"{run_dir} already holds {checkpoint.name}: choose another --output_dir, or resume")
        if not checkpoint.is_dir():
            raise ValueError(f"no such checkpoint: {checkpoint}")
        try:
            checkpoint_step(checkpoint)
            read(checkpoint)
        except Exception as error:  # whatever torch, safetensors and a JSON of another shape raise
            damaged = isinstance(error, OSError)
            what = "is damaged" if damaged else "does not fit this model and configuration"
            others = [other for other in checkpoints(run_dir) if other.resolve() != checkpoint.resolve()]
            hint = f". Another one: --resume_from_checkpoint {others[-1]}" if others and damaged else ""
            raise ValueError(f"{checkpoint} {what}: {reason_of(error)}{hint}") from error

    together(load)
    step = checkpoint_step(checkpoint)
    on_main(lambda: _clear(run_dir, step))
    if this_process().is_main_process:
        print(f"Resuming {run_dir} after step {step}.")
    return step


def _clear(run_dir: Path, step: int) -> None:
    """Removes what was left half written, and what is of the branch that is being left: later checkpoints."""
    for leftover in [*run_dir.glob("partial-*"), *(p for p in checkpoints(run_dir) if checkpoint_step(p) > step)]:
        shutil.rmtree(leftover)
