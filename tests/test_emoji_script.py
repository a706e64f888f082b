"""The shipped model's recipe: its commands, with few steps too, and what it needs that a copy may lack."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from contentmotion.arguments import parse_config
from contentmotion.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]


def run(root: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(root / "runs" / "emoji.sh")], env=os.environ | settings, capture_output=True, text=True
    )


def test_history_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    shutil.copy(ROOT / "runs/emoji.sh", tmp_path / "runs")
    settings = {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent), "OUT": str(tmp_path / "out"), "SECOND": ""}
    done = run(tmp_path, **settings)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no 14ada2b:src/contentmotion/assets/emoji")
    assert "set SECOND" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("steps", ["", "2"])
def test_every_command_in_its_order(tmp_path: Path, steps: str) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    for name in ("contentmotion", "python"):  # programs that note how they were called
        (tmp_path / name).write_text(f'#!/bin/bash\nprintf "%s\\t" {name} "$@" >> {log}; echo >> {log}\n')
        (tmp_path / name).chmod(0o755)
    settings = {"OUT": str(out), "STEPS": steps, "SECOND": "second", "CLIPS": "none", "CONTENTMOTION_LPIPS": "lpips"}
    settings |= {"CONTENTMOTION_I3D": "i3d", "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = run(ROOT, **settings)
    assert done.returncode == 0, done.stderr
    calls = [line.split("\t")[:-1] for line in log.read_text().splitlines()]
    assert [f"{call[0]} {call[1]}" for call in calls] == [
        "python runs/prepare_emoji.py", "contentmotion train-vae", "python runs/move_autoencoder.py",
        "contentmotion train-autoencoder", "contentmotion train-autoencoder", "contentmotion encode",
        "contentmotion train-content", "contentmotion train-content", "contentmotion train-motion",
        "contentmotion export", "contentmotion encode", "contentmotion distill", "contentmotion distill",
        "contentmotion export",
        "contentmotion generate", "contentmotion evaluate", "python benchmarks/few_steps.py",
    ]  # fmt: skip
    for _, name, *words in (call for call in calls if call[0] == "contentmotion"):
        config = parse_config(name, COMMANDS[name].config_class, COMMANDS[name].positional, words)
        if name.startswith("train") or name == "distill":
            assert (config.max_train_steps == 2) == bool(steps), words
            assert (config.train_batch_size == 2) == bool(steps), words
