"""Checkpoints: written under another name and renamed, so that a folder called checkpoint-N is always whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType

from accelerate import Accelerator
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from contentmotion.config import TrainConfig
from contentmotion.train.processes import from_main, on_main, this_process, together

WEIGHTS = "model.safetensors"


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


def register_weights(accelerator: Accelerator, model: nn.Module) -> None:
    """Makes checkpoints hold ``model``'s weights under its own names, whatever wraps it in this run."""

    def save(models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
        if weights:
            weights[:] = [model.state_dict()]

    def load(models: list[nn.Module], folder: str) -> None:
        if models:
            models.clear()
            load_model(model, Path(folder) / WEIGHTS)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


class CheckpointWriter:
    """Writes checkpoints, all processes together, and removes all but the last ``limit``.

    What is written in the background gets its name as soon as all processes have written their parts. As a context,
    it ends when the last one is written, also where the run ends with an error.

    Args:
        write: Writes what there is to a folder, in every process; gives a future where that goes on in the background.
        run_dir: Folder of the run.
        limit: Checkpoints to keep.
    """

    def __init__(self, write: Callable[[Path], Future | None], run_dir: Path, limit: int) -> None:
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

    def save(self, step: int) -> None:
        """Writes a checkpoint, or begins to, once the one before is written.

        Args:
            step: Steps behind it.

        Raises:
            OSError: It, or the one before, could not be written; what was there before is still there.
        """
        self.wait()
        self._step = step
        on_main(lambda: shutil.rmtree(self._partial, ignore_errors=True))
        together(lambda: self._explained(self._begin))
        if self._named is None:
            on_main(self._publish)

    def wait(self) -> None:
        """Returns when nothing is being written any more; called by every process.

        Raises:
            OSError: It could not be written; what was there before is still there.
        """
        if self._named is not None:
            named, self._named = self._named, None
            together(lambda: self._explained(named.result))

    @property
    def _partial(self) -> Path:
        return self.run_dir / f"partial-{self._step:06d}"

    @property
    def _final(self) -> Path:
        return self.run_dir / f"checkpoint-{self._step:06d}"

    def _begin(self) -> None:
        written = self.write(self._partial)
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

    def _explained(self, do: Callable[[], object]) -> None:
        """Raises ``OSError`` in one line where it fails."""
        try:
            do()
        except (Exception, CheckpointException) as error:  # a full disk is one of the system, of torch, of safetensors
            shutil.rmtree(self._partial, ignore_errors=True)
            if "DataLoader worker" in str(error):  # torch's signal handler, which came in between
                raise
            kept = latest_checkpoint(self.run_dir)
            raise OSError(
                f"{self._final} could not be written: {reason_of(error)}; "
                + (f"the last good checkpoint is {kept}" if kept else "there is no checkpoint yet")
            ) from error


def _cause(error: BaseException) -> BaseException:
    """Of torch's distributed checkpoints, what went wrong in the first process where something did."""
    failed = isinstance(error, CheckpointException) and error.failures
    return next(iter(error.failures.values()))[0] if failed else error


def reason_of(error: BaseException) -> str:
    """Why something could not be read or written, in one line."""
    error = _cause(error)
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
        except (Exception, CheckpointException) as error:  # whatever torch and safetensors raise
            damaged = isinstance(_cause(error), OSError)
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
