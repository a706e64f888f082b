"""The examples of docs/demo.md run against a served page."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TEXT = (Path(__file__).resolve().parents[2] / "docs/demo.md").read_text()
BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
EXAMPLES = [(kind, text) for kind, text in BLOCKS if "http://127.0.0.1:7860" in text]


def test_there_is_one_of_each_kind() -> None:
    assert sorted({kind for kind, _ in EXAMPLES}) == ["python", "sh"]


@pytest.mark.parametrize(("kind", "text"), EXAMPLES, ids=lambda value: value if len(value) < 8 else "")
def test_example(kind: str, text: str, page, tmp_path: Path, uploads: dict[str, Path]) -> None:
    (tmp_path / "cat.png").write_bytes(uploads["picture"].read_bytes())
    (tmp_path / "dance.mp4").write_bytes(uploads["good"].read_bytes())
    text = text.replace("http://127.0.0.1:7860/", page.url)
    command = [sys.executable, "-c", text] if kind == "python" else ["bash", "-euo", "pipefail", "-c", text]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert ".mp4" in done.stdout, done.stdout
