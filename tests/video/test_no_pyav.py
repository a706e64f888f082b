"""Only what opens a container needs PyAV: the rest of the package is imported, and used, without it."""

import subprocess
import sys

import contentmotion

SCRIPT = """
import importlib, pathlib, sys
sys.modules["av"] = None  # importing it fails
root = pathlib.Path(sys.argv[1])
for path in sorted(root.rglob("*.py")):
    parts = path.relative_to(root.parent).with_suffix("").parts
    if parts[-1] not in ("__main__", "ffmpeg") and "demo" not in parts:  # which takes its time
        importlib.import_module(".".join(parts).removesuffix(".__init__"))

import numpy as np
from contentmotion.video.reader import read_video
from contentmotion.video.write import write_video
write_video(sys.argv[2], np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3), 8)
assert len(read_video(sys.argv[2]).frames) == 2
"""


def test_everything_else_works_without_pyav(tmp_path) -> None:
    folder = str(next(iter(contentmotion.__path__)))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, folder, str(tmp_path / "a.gif")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
