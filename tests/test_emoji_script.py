"""The shipped model's recipe runs to its end, but for the scores, with few steps of few clips, stopped on its way."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from contentmotion.evaluate.lpips import LPIPS

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("red heart", "rocket", "dolphin", "panda")


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


def write_clips(data: Path) -> None:
    """Four random clips and a held-out one as `prepare_emoji.py` leaves them, but for the files' kind."""
    data.mkdir(parents=True)
    rows = []
    for k, name in enumerate((*NAMES, "held-out heart")):
        first, *rest = map(Image.fromarray, np.random.default_rng(k).integers(0, 255, (16, 64, 64, 3), np.uint8))
        first.save(data / f"{k}.webp", save_all=True, append_images=rest, duration=125, lossless=True)
        split = "train" if k < len(NAMES) else "heldout"
        rows.append({"file_name": f"{k}.webp", "captions": [name, f"a {name}"], "split": split, "weight": 1.0})
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
def test_whole_and_stopped_on_its_way(tmp_path: Path) -> None:
    out, programs = tmp_path / "out", tmp_path / "programs"
    write_clips(out / "data")
    save_file(LPIPS().state_dict(), tmp_path / "lpips.safetensors")  # random weights
    programs.mkdir()
    # The second stage fails once, as if the machine had been taken away.
    stop = f'[ "$1" != train-autoencoder ] || [ -e {tmp_path}/stopped ] || {{ touch {tmp_path}/stopped; exit 143; }}'
    command = 'exec python -m contentmotion "$@"'
    scripts = {"python": f'exec "{sys.executable}" "$@"', "contentmotion": f"{stop}\n{command}"}
    for name, text in scripts.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    settings = {
        "OUT": str(out), "CLIPS": "none", "STEPS": "1", "SECOND": str(ROOT / "src/contentmotion/assets/emoji"),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "CONTENTMOTION_I3D": "",
        "CONTENTMOTION_LPIPS": str(tmp_path / "lpips.safetensors"),
    }  # fmt: skip
    assert run(ROOT, **settings).returncode == 143
    assert not (out / "autoencoder-first").exists()
    trained, moved = (out / "vae" / "metrics.jsonl").read_bytes(), out / "autoencoder-start" / "config.json"
    when = moved.stat().st_mtime_ns
    done = run(ROOT, **settings)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (out / "vae" / "metrics.jsonl").read_bytes() == trained, "no step is taken again"
    assert moved.stat().st_mtime_ns == when, "nor is the autoencoder moved again"
    for made in ("pipeline/model_index.json", "few-step/model_index.json", "samples/sheet.png"):
        assert (out / made).is_file(), made
