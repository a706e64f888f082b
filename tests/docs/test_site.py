"""The documentation builds without a warning, as `make docs` builds it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the docs extra: pip install contentmotion[docs]")
    pytest.importorskip("mkdocstrings", reason="needs the docs extra: pip install contentmotion[docs]")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=env, text=True, capture_output=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site/api/index.html").read_text()
    assert "motion_num_inference_steps" in page and "Generates videos." in page
    page = (tmp_path / "site/commands/index.html").read_text()
    assert "num_videos_per_prompt" in page and "Videos per prompt, each from its own noise." in page
