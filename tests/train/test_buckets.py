"""Clips of several sizes side by side: the same in one process and in two; refused where they have no meaning."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from contentmotion.cli import main

sys.path.insert(0, str(Path(__file__).parent))
from launch import Job, run, to_words  # noqa: E402


def job(clips: Path, folder: Path, batch_size: int) -> Job:
    """Training on square and on wide clips."""
    settings: dict[str, Any] = {
        "train_data_dir": clips, "split": "null", "max_bad_fraction": 0.3, "buckets": ("4x16x16", "4x16x24", "8x16x24"),
        "output_dir": folder, "max_train_steps": 6, "train_batch_size": batch_size, "logging_steps": 1,
        "checkpointing_steps": 6, "validation_steps": 6, "report_to": "none", "mixed_precision": "no",
        "lr_warmup_steps": 1, "learning_rate": 1e-3, "hidden_size": 16, "depth": 1, "num_heads": 2, "head_dim": 8,
        "motion_channels": 2,
    }  # fmt: skip
    return "train-autoencoder", settings


@pytest.mark.timeout(600)
def test_two_processes_share_batches_of_one_size(clip_folder: Path, tmp_path: Path) -> None:
    assert main(to_words(*job(clip_folder, tmp_path / "one", 2))) == 0
    run([job(clip_folder, tmp_path / "two", 1)], 2)
    one, two = (
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == 6 and two == pytest.approx(one, rel=2e-5)
    assert (tmp_path / "two/preview-000006.png").exists()


@pytest.mark.parametrize("command", ["encode", "train-content", "train-motion", "train-video", "train-vae"])
def test_other_stages_take_one_size(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--buckets", "4x16x16", "--output_dir", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and "--buckets" in errors[0] and command in errors[0]
    assert not (tmp_path / "out").exists()
