"""Recipes of the emoji: their commands, with few steps too, and what they need that a copy may lack."""

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from contentmotion.arguments import parse_config
from contentmotion.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]


def run(script: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", str(script)], env=os.environ | settings, capture_output=True, text=True)


def calls_of(script: Path, folder: Path, **settings: str) -> list[list[str]]:
    """How a script that succeeds calls programs that do nothing."""
    log = folder / "log"
    for name in ("contentmotion", "python"):  # programs that note how they were called
        (folder / name).write_text(f'#!/bin/bash\nprintf "%s\\t" {name} "$@" >> {log}; echo >> {log}\n')
        (folder / name).chmod(0o755)
    settings |= {"OUT": str(folder / "out"), "CLIPS": "none", "CONTENTMOTION_I3D": "i3d"}
    done = run(script, PATH=f"{folder}{os.pathsep}{os.environ['PATH']}", **settings)
    assert done.returncode == 0, done.stderr
    return [line.split("\t")[:-1] for line in log.read_text().splitlines()]


def test_history_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    shutil.copy(ROOT / "runs/emoji.sh", tmp_path / "runs")
    settings = {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent), "OUT": str(tmp_path / "out"), "SECOND": ""}
    done = run(tmp_path / "runs/emoji.sh", **settings)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no 14ada2b:src/contentmotion/assets/emoji")
    assert "set SECOND" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("steps", ["", "2"])
def test_every_command_in_its_order(tmp_path: Path, steps: str) -> None:
    settings = {"STEPS": steps, "SECOND": "second", "CONTENTMOTION_LPIPS": "lpips"}
    calls = calls_of(ROOT / "runs/emoji.sh", tmp_path, **settings)
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


def test_objectives_have_teachers_trained_alike(tmp_path: Path) -> None:
    calls = calls_of(ROOT / "benchmarks/objectives.sh", tmp_path)
    assert [f"{call[0]} {call[1]}" for call in calls] == [
        "contentmotion train-autoencoder", "contentmotion encode", "contentmotion encode",
        *("contentmotion train-content", "contentmotion train-motion", "contentmotion export") * 2,
        "python benchmarks/few_steps.py",
    ]  # fmt: skip
    trained = []
    for _, name, *words in calls[:-1]:
        config = parse_config(name, COMMANDS[name].config_class, COMMANDS[name].positional, words)
        if name in ("train-content", "train-motion"):
            trained.append(config)
    own = {"prediction_type": None, "output_dir": "", "pretrained_model_name_or_path": None}
    assert [config.prediction_type for config in trained] == ["v_prediction"] * 2 + ["flow"] * 2
    for ddpm, flow in zip(trained[:2], trained[2:], strict=True):
        assert dataclasses.replace(ddpm, **own) == dataclasses.replace(flow, **own)
