"""Checkpoints written in the background, and what becomes of a run whose checkpoints cannot be written or read."""

import shutil
import sys
import time
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from contentmotion.config import ScaleSettings, TrainConfig
from contentmotion.train import checkpoints as checkpoint_files
from contentmotion.train.checkpoints import CheckpointWriter, checkpoints
from contentmotion.train.loop import Player, fit

sys.path.insert(0, str(Path(__file__).parent))
from small_runs import STEPS, Numbers, collate, files_no_larger_than, line_loss, lines, small_run  # noqa: E402

BACKGROUND: dict[str, Any] = {
    "scale": ScaleSettings(async_checkpointing=True),
    "max_train_steps": 4,
    "checkpoints_total_limit": 9,
}


def wide() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(1, 4096), torch.nn.Linear(4096, 1))


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder)]


def fitted(folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """The averaged weights that a run ends with."""
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    config = TrainConfig(output_dir=str(folder), **STEPS | {"learning_rate": 0.1, "ema_decay": 0.5} | changes)
    fit([Player(model, line_loss)], Numbers(), config, collate=collate)
    return dict(model.state_dict())


def test_background_checkpoints_resume_bit_for_bit(tmp_path: Path) -> None:
    plain = fitted(tmp_path / "plain", max_train_steps=4)
    whole = fitted(tmp_path / "whole", **BACKGROUND)
    assert names(tmp_path / "whole") == [f"checkpoint-{step:06d}" for step in (1, 2, 3, 4)]
    assert not list((tmp_path / "whole").glob("partial-*"))
    losses = [line["loss"] for line in lines(tmp_path / "plain")]
    for step in (1, 2, 3):  # each checkpoint has its own step's state, whatever came after while it was written
        half = tmp_path / f"half-{step}"
        half.mkdir()
        shutil.copytree(tmp_path / f"whole/checkpoint-{step:06d}", half / f"checkpoint-{step:06d}")
        again = fitted(
            half, **BACKGROUND | {"scale": ScaleSettings(async_checkpointing=step == 1), "checkpoints_total_limit": 1}
        )
        assert [line["loss"] for line in lines(half)] == losses[step:]
        assert names(half) == ["checkpoint-000004"], "all but the last are removed"
        for name, value in plain.items():
            assert torch.equal(again[name], value) and torch.equal(whole[name], value)


def save(writer: CheckpointWriter, step: int) -> None:
    writer.save(step, [("model", {"weight": torch.full((2,), float(step))})], {"step": step}, sharded=False)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is slow, and then full."""
    may_end, calls = Event(), []

    def slow(tensors: dict, path: Path) -> None:
        calls.append(path.parent.name)
        may_end.wait(60)
        if len(calls) == 3:
            raise OSError(28, "No space left")
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint_files, "save_file", slow)
    full = pytest.raises(OSError, match=r"checkpoint-000003 could not be written: No space left")
    with full as error, CheckpointWriter(tmp_path, limit=1, in_background=True) as writer:
        save(writer, 1)
        assert names(tmp_path) == [] and not writer.failed, "it is not whole yet"
        may_end.set()
        save(writer, 2)  # waits for the first
        writer.wait()
        assert names(tmp_path) == ["checkpoint-000002"]
        assert load_file(tmp_path / "checkpoint-000002/model.safetensors")["weight"].tolist() == [2, 2]
        save(writer, 3)
        deadline = time.monotonic() + 60
        while not writer.failed and time.monotonic() < deadline:
            time.sleep(0.01)
        save(writer, 4)
    assert calls == ["partial-000001", "partial-000002", "partial-000003"]
    assert f"the last good checkpoint is {tmp_path}/checkpoint-000002" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000002"]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_the_last_one_is_awaited_however_the_run_ends(
    tmp_path: Path, error: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(tensors: dict, path: Path) -> None:
        time.sleep(0.3)
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint_files, "save_file", slow)
    try:
        with CheckpointWriter(tmp_path, limit=1, in_background=True) as writer:
            save(writer, 5)
            if error:
                raise error
    except KeyboardInterrupt:
        assert error
    assert names(tmp_path) == ["checkpoint-000005"]


def test_full_disk_in_the_background_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    small_run(tmp_path, wide(), scale=ScaleSettings(async_checkpointing=True), max_train_steps=1)
    with files_no_larger_than(8192), pytest.raises(OSError, match=r"checkpoint-\d+ could not be written: ") as error:
        small_run(tmp_path, wide(), scale=ScaleSettings(async_checkpointing=True), max_train_steps=50)
    assert f"the last good checkpoint is {tmp_path}/checkpoint-000001" in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["checkpoint-000001"], "nothing half-written"
    small_run(tmp_path, wide(), max_train_steps=2)
    assert names(tmp_path) == ["checkpoint-000001", "checkpoint-000002"]


def test_time_limit_waits_for_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scale = ScaleSettings(async_checkpointing=True, max_train_time=1e-9)
        small_run(tmp_path, wide(), scale=scale, checkpointing_steps=100)
    assert names(tmp_path) == ["checkpoint-000001"]
    assert "after step 1 of 2, with a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("in_background", [True, False])
def test_missing_part_of_a_checkpoint_is_one_line(tmp_path: Path, in_background: bool) -> None:
    small_run(tmp_path, wide(), scale=ScaleSettings(async_checkpointing=in_background))
    part = tmp_path / "checkpoint-000002/model.safetensors"
    part.unlink()
    with pytest.raises(ValueError, match=r"checkpoint-000002 is damaged: .*") as error:
        small_run(tmp_path, wide(), max_train_steps=3)
    assert part.name in str(error.value) and "\n" not in str(error.value)
    earlier = tmp_path / "checkpoint-000001"
    assert str(error.value).endswith(f". Another one: --resume_from_checkpoint {earlier}")
    assert names(tmp_path) == ["checkpoint-000001", "checkpoint-000002"], "nothing is touched"
    small_run(tmp_path, wide(), max_train_steps=3, resume_from_checkpoint=str(earlier))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
