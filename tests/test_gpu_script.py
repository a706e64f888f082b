"""What is prepared for a GPU runs to its end on a CPU, with steps as few and batches as small as can be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_first_call(tmp_path: Path) -> None:
    """Without a GPU: its tests fail, as is said, and what it times is counted alone."""
    own = {"PYTHON": sys.executable, "OUT": str(tmp_path / "out"), "WORK": str(tmp_path), "FEWER": "--meta"}
    run = ["bash", "benchmarks/gpu.sh", "first"]
    done = subprocess.run(run, cwd=ROOT, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "the tests failed" in done.stdout
    systems = {
        path.parent.name: [system["system"] for system in json.loads(path.read_text())["systems"]]
        for path in tmp_path.glob("out/*/benchmark.json")
    }
    assert systems["others"] == ["cmd-sd21-4", "modelscope", "ltx-2b-8", "wan-1.3b-4"]
    assert systems["first"][:2] == ["emoji", "emoji-lcm"] and "cmd-sana-4" in systems["systems"]


@pytest.mark.slow
def test_second_call(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for k in range(3):  # pictures: read without PyAV
        first, *rest = map(Image.fromarray, np.random.default_rng(k).integers(0, 255, (16, 64, 64, 3), np.uint8))
        first.save(clips / f"{k}.webp", save_all=True, append_images=rest, duration=125, lossless=True)
    rows = [{"file_name": f"{k}.webp", "text": f"number {k}"} for k in range(3)]
    (clips / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = dict.fromkeys(("VAE", "AE", "CONTENT", "MOTION", "DC", "DM"), "1")
    own = {
        "PYTHON": sys.executable, "CLIPS": str(clips), "OUT": str(tmp_path / "out"), "WORK": str(tmp_path / "work"),
        "KEPT": str(tmp_path / "kept"), "BATCH": "2", "AE_BATCH": "2", "AE_MORE": "--perceptual.weight 0",
        "MORE": "--mixed_precision no --report_to none",
    }  # fmt: skip
    # A module "av" that cannot be imported: nothing on the way may need it.
    hidden = tmp_path / "work" / "site"
    hidden.mkdir(parents=True)
    (hidden / "av.py").write_text("raise ImportError('hidden')\n")
    run = ["bash", "benchmarks/gpu.sh", "second"]
    done = subprocess.run(run, cwd=ROOT, env=os.environ | own | steps, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "out" / "student" / "model_index.json").is_file()
    assert len(list((tmp_path / "out" / "samples").glob("*.gif"))) == 4
