"""Only what opens a container needs PyAV: the rest of the package is imported, and used, without it."""

import importlib
import sys
from pathlib import Path

import numpy as np

import contentmotion
import warm


def do_without_pyav(picture: Path) -> None:
    """Imports the package's modules anew where PyAV cannot be, and writes and reads frames."""
    warm.forget("contentmotion", "av")
    sys.modules["av"] = None  # type: ignore[assignment]  # importing it fails
    root = Path(next(iter(contentmotion.__path__)))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        if parts[-1] not in ("__main__", "ffmpeg") and "demo" not in parts:  # which takes its time
            importlib.import_module(".".join(parts).removesuffix(".__init__"))
    from contentmotion.video.reader import read_video
    from contentmotion.video.write import write_video

    write_video(picture, np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3), 8)
    assert len(read_video(picture).frames) == 2


def test_everything_else_works_without_pyav(tmp_path: Path) -> None:
    process = warm.Process(do_without_pyav, tmp_path / "a.gif")
    _, errors = process.communicate(240)
    assert process.returncode == 0, errors
