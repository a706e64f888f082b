"""Checkpoints: written under another name and renamed, so that a folder called checkpoint-N is always whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_model
from torch import Tensor, nn

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


def save_checkpoint(write: Callable[[Path], None], run_dir: Path, step: int, limit: int) -> None:
    """Writes a checkpoint, all processes together, and removes all but the last ``limit``.

    Args:
        write: Writes what there is to a folder; called by every process.
        run_dir: Folder of the run.
        step: Steps behind the checkpoint.
        limit: Checkpoints to keep.

    Raises:
        OSError: It could not be written; what was there before is still there.
    """
    final = run_dir / f"checkpoint-{step:06d}"
    partial = run_dir / f"partial-{step:06d}"
    on_main(lambda: shutil.rmtree(partial, ignore_errors=True))

    def try_to_write() -> None:
        try:
            write(partial)
        except Exception as error:  # a full disk is an error of the system, of torch or of safetensors
            shutil.rmtree(partial, ignore_errors=True)
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            kept = latest_checkpoint(run_dir)
            raise OSError(
                f"{final} could not be written: {reason}; "
                + (f"the last good checkpoint is {kept}" if kept else "there is no checkpoint yet")
            ) from error

    def publish() -> None:
        if final.exists():  # an older run's, being repeated from an earlier step
            shutil.rmtree(final)
        os.replace(partial, final)
        for old in checkpoints(run_dir)[:-limit]:
            shutil.rmtree(old)

    together(try_to_write)
    on_main(publish)


def resume(read: Callable[[Path], None], config: TrainConfig, run_dir: Path) -> int:
    """Loads the checkpoint that the config asks for; returns its step, 0 for a new run.

    Args:
        read: Reads what ``save_checkpoint`` was given to write; called by every process.
        config: Says which checkpoint.
        run_dir: Folder of the run.

    Raises:
        ValueError: There is none, or it does not fit, or there is one and the config refuses to go on.
    """
    wanted = config.resume_from_checkpoint
    checkpoint = from_main(latest_checkpoint(run_dir) if wanted in ("latest", "none") else Path(wanted))
    if checkpoint is None:
        return 0

    def load() -> None:
        if wanted == "none":
            raise ValueError(f"{run_dir} already holds {checkpoint.name}: choose another --output_dir, or resume")
        if not checkpoint.is_dir():
            raise ValueError(f"no such checkpoint: {checkpoint}")
        try:
            checkpoint_step(checkpoint)
            read(checkpoint)
        except Exception as error:  # whatever a foreign or damaged checkpoint makes torch and safetensors raise
            reason = str(error).splitlines()[0]
            raise ValueError(f"{checkpoint} does not fit this model and configuration: {reason}") from error

    together(load)
    step = checkpoint_step(checkpoint)

    def clear() -> None:
        for leftover in [*run_dir.glob("partial-*"), *(p for p in checkpoints(run_dir) if checkpoint_step(p) > step)]:
            shutil.rmtree(leftover)  # later checkpoints are of the branch that is being left

    on_main(clear)
    if this_process().is_main_process:
        print(f"Resuming {run_dir} after step {step}.")
    return step
