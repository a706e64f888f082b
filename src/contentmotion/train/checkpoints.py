"""Checkpoints: safetensors and JSON, never a pickle; written under another name and renamed, so that a folder called
checkpoint-N is always whole.

``checkpoint-N/`` holds of each player ``NAME.safetensors`` (all of the network), ``NAME-average.safetensors`` and
``NAME-optimizer.safetensors`` (parameter's name, dot, "exp_avg" and so on), and ``state.json`` with everything else.
Of a run that was sharded each file is in as many parts as there were processes, ``NAME-00001-of-00002.safetensors``:
a part holds rows of its tensors, and says in its metadata the number of the first.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from contentmotion.config import TrainConfig
from contentmotion.train.processes import from_main, on_main, this_process, together
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


def checkpoint_step(checkpoint: Path) -> int:
    """The number of optimizer steps behind a checkpoint."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def read_state(folder: Path) -> dict[str, Any]:
    """What a checkpoint's JSON holds.

    Raises:
        ValueError: The checkpoint is of an earlier version, or it is no JSON.
        OSError: There is none.
    """
    if not (folder / STATE).exists() and any(any(folder.glob(pattern)) for pattern in _OLD):
        raise ValueError(
            "an earlier version wrote it, with pickles, which are never read: go on with that version, or begin anew "
            "in another --output_dir"
        )
    return json.loads((folder / STATE).read_text(encoding="utf-8"))


def file_names(stem: str, num_parts: int) -> list[str]:
    """The files that hold one thing; ``num_parts`` is 0 where it is not in parts."""
    parts = [f"-{k:05d}-of-{num_parts:05d}" for k in range(1, num_parts + 1)] or [""]
    return [f"{stem}{part}.safetensors" for part in parts]


def own_part(tensors: Mapping[str, Tensor], everything: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Copies in the CPU's memory of what this process is to write.

    Args:
        tensors: By name, sharded or not.
        everything: Whether it writes those too that are not sharded.

    Returns:
        Tensors, and the metadata of their file.
    """
    mine, first_rows = {}, {}
    for name, tensor in tensors.items():
        if everything or isinstance(tensor, DTensor):
            rows, first_rows[name] = local_rows(tensor.detach())
            mine[name] = rows.to("cpu", copy=True).contiguous()
    return mine, {"first_rows": json.dumps({name: start for name, start in first_rows.items() if start})}


def write_part(path: Path, part: tuple[dict[str, Tensor], dict[str, str]]) -> None:
    """Writes what ``own_part`` gave."""
    tensors, metadata = part
    save_file(tensors, path, metadata=metadata)


class TensorFiles:
    """The tensors that the files of one thing hold together, by name.

    Raises:
        OSError: A file is missing, or is no whole safetensors file.
    """

    def __init__(self, folder: Path, stem: str, num_parts: int) -> None:
        self.places: dict[str, list[tuple[Any, int, list[int]]]] = {}
        for name in file_names(stem, num_parts):
            if not (folder / name).is_file():
                raise FileNotFoundError(2, "No such file", name)
            try:
                file: Any = safe_open(folder / name, framework="pt")
            except SafetensorError as error:
                raise OSError(f"{name}: {error}") from error
            first_rows = json.loads((file.metadata() or {}).get("first_rows", "{}"))
            for key in file.keys():  # noqa: SIM118 (it is no dict)
                place = (file, first_rows.get(key, 0), file.get_slice(key).get_shape())
                self.places.setdefault(key, []).append(place)

    def empty_like(self, name: str, like: Tensor) -> Tensor:
        """A tensor for ``read``: sharded as ``like`` is if it has its shape."""
        shape = self.shape(name)
        file = self.places[name][0][0]
        dtype = (file.get_slice(name)[:0] if shape else file.get_tensor(name)).dtype
        if list(like.shape) == shape:
            return torch.empty_like(like, dtype=dtype, requires_grad=False)
        return torch.empty(shape, dtype=dtype, device=like.device)

    def shape(self, name: str) -> list[int]:
        """The whole tensor's shape."""
        pieces = self.places[name]
        shape = pieces[0][2]
        return [max(first + piece[0] for _, first, piece in pieces), *shape[1:]] if shape else []

    def read_all(self, tensors: Mapping[str, Tensor]) -> None:
        """Fills these tensors, which must be all that there are (see ``read``)."""
        if besides := sorted(self.places.keys() - tensors.keys()):
            raise ValueError(f"it has {besides[0]} besides")
        for name, tensor in tensors.items():
            self.read(name, tensor)

    @torch.no_grad()
    def read(self, name: str, into: Tensor) -> None:
        """Fills a tensor, or the part of it that this process holds.

        Raises:
            ValueError: The file has no such tensor, or it has another shape.
        """
        if name not in self.places:
            raise ValueError(f"it has no {name}")
        if self.shape(name) != list(into.shape):
            raise ValueError(f"its {name} is {self.shape(name)}, not {list(into.shape)}")
        if into.ndim == 0:
            into.copy_(self.places[name][0][0].get_tensor(name))
            return
        rows, start = local_rows(into)
        filled = 0
        for file, first, shape in self.places[name]:
            begin, end = max(start, first), min(start + len(rows), first + shape[0])
            if begin < end:
                rows[begin - start : end - start].copy_(file.get_slice(name)[begin - first : end - first])
                filled += end - begin
        if filled != len(rows):
            raise OSError(f"rows of {name} are missing")


class CheckpointWriter:
    """Writes checkpoints, all processes together, and removes all but the last ``limit``.

    What is written in the background gets its name as soon as all processes have written their parts. As a context,
    it ends when the last one is written, also where the run ends with an error.

    Args:
        write: Writes what there is to a folder, in every process; gives a future where that goes on in the background.
            It is also given what ``save`` was.
        run_dir: Folder of the run.
        limit: Checkpoints to keep.
    """

    def __init__(self, write: Callable[..., Future | None], run_dir: Path, limit: int) -> None:
        self.write, self.run_dir, self.limit = write, run_dir, limit
        self._step = 0
        self._named: Future[None] | None = None  # the checkpoint that is being written

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
        elif self._named is not None:  # not together: the other processes may be gone
            self._named.exception()

    @property
    def failed(self) -> bool:
        """Whether this process knows that what it writes in the background cannot be written."""
        return self._named is not None and self._named.done() and self._named.exception() is not None

    def save(self, step: int, *what: Any) -> None:
        """Writes a checkpoint, or begins to, once the one before is written.

        Args:
            step: Steps behind it.
            what: Handed on to ``write``.

        Raises:
            OSError: It, or the one before, could not be written; what was there before is still there.
        """
        self.wait()
        self._step = step
        on_main(lambda: shutil.rmtree(self._partial, ignore_errors=True))
        on_main(lambda: self._explained(lambda: self._partial.mkdir(parents=True)))
        self._together(lambda: self._begin(*what))
        if self._named is None:
            on_main(self._publish)

    def wait(self) -> None:
        """Returns when nothing is being written any more; called by every process.

        Raises:
            OSError: It could not be written; what was there before is still there.
        """
        if self._named is not None:
            named, self._named = self._named, None
            self._together(named.result)

    @property
    def _partial(self) -> Path:
        return self.run_dir / f"partial-{self._step:06d}"

    @property
    def _final(self) -> Path:
        return self.run_dir / f"checkpoint-{self._step:06d}"

    def _begin(self, *what: Any) -> None:
        written = self.write(self._partial, *what)
        if written is None:
            return
        self._named = named = Future()

        def give_name(written: Future) -> None:
            try:
                written.result()
                if this_process().is_main_process:
                    self._publish()
                named.set_result(None)
            except BaseException as error:  # for whoever waits
                named.set_exception(error)

        written.add_done_callback(give_name)

    def _publish(self) -> None:
        if self._final.exists():  # an older run's, being repeated from an earlier step
            shutil.rmtree(self._final)
        os.replace(self._partial, self._final)
        for old in checkpoints(self.run_dir)[: -self.limit]:
            shutil.rmtree(old)

    def _together(self, do: Callable[[], object]) -> None:
        """Calls it in every process; where it fails in one, nothing half-written is left."""
        try:
            together(lambda: self._explained(do))
        except BaseException:
            if this_process().is_main_process:  # all have ended their attempts
                shutil.rmtree(self._partial, ignore_errors=True)
            raise

    def _explained(self, do: Callable[[], object]) -> None:
        """Raises ``OSError`` in one line where it fails."""
        try:
            do()
        except Exception as error:  # a full disk is an error of the system, or of safetensors
            if "DataLoader worker" in str(error):  # torch's signal handler, which came in between
                raise
            kept = latest_checkpoint(self.run_dir)
            raise OSError(
                f"{self._final} could not be written: {reason_of(error)}; "
                + (f"the last good checkpoint is {kept}" if kept else "there is no checkpoint yet")
            ) from error


def reason_of(error: BaseException) -> str:
    """Why something could not be read or written, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # "Error(s) in loading state_dict for X:" says nothing without the line after it.
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def resume(read: Callable[[Path], None], config: TrainConfig, run_dir: Path) -> int:
    """Loads the checkpoint that the config asks for; returns its step, 0 for a new run.

    Args:
        read: Reads what ``CheckpointWriter`` was given to write; called by every process.
        config: Says which checkpoint.
        run_dir: Folder of the run.

    Raises:
        ValueError: There is none, or it does not fit, or there is one and the config refuses to go on.
    """
    wanted = config.resume_from_checkpoint
    checkpoint = from_main(latest_checkpoint(run_dir) if wanted in ("latest", "none") else Path(wanted))
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
