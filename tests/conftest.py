"""Fixtures that several test files share."""

import gc
import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

import shapes
import tiny

# Workers of pytest and the processes that tests start share the processor: a thread each, unless told otherwise.
os.environ.setdefault("OMP_NUM_THREADS", "1")
shapes.install()  # before anything else of contentmotion is imported

from contentmotion.video.write import write_video  # noqa: E402

# A checkpoint name that is no folder may be one of the hub: no test asks the network by accident.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


# The longest first: a worker that takes one last works alone.
LONGEST = (
    "train/test_distributed", "docs/test_code_blocks", "demo/test_browser", "demo/test_api", "evaluate/test_run",
    "evaluate/test_measures", "test_every_family", "train/test_scoring", "cost/test_benchmark",
    "train/test_distill_video", "train/test_recipes", "train/test_video", "train/test_buckets",
    "pipelines/test_content_motion", "commands/test_train", "examples/test_notebooks",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With ``--dist loadfile --no-loadscope-reorder`` files are handed out in this order."""
    places = {Path(__file__).parent / f"{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    importlib.import_module("frozen")


@pytest.fixture(scope="module", autouse=True)
def no_garbage() -> Iterator[None]:
    """Garbage with temporary files in it, forked into a reader, would be removed there, and then missed here. What is
    left has been imported, or is a session's: it is not looked at again."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared test material beside the repository; skips the test where it is not there."""
    folder = (Path(__file__).resolve().parents[1] / "../shared/data").resolve()
    if not folder.is_dir():
        pytest.skip("needs ../shared/data, which is not here")
    return folder


def _make_frames(num_frames: int, height: int, width: int, *, hue: int = 0) -> np.ndarray:
    """A bright square that moves right over a colour ramp, uint8 (t, h, w, 3): smooth, so codecs keep it."""
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    frames[..., 0] = np.linspace(20, 200, height)[:, None]
    frames[..., 1] = np.linspace(200, 40, width)
    frames[..., 2] = hue
    side = max(2, height // 3)
    for k in range(num_frames):
        left = k * (width - side) // max(1, num_frames - 1)
        frames[k, side : 2 * side, left : left + side] = 235
    return frames


@pytest.fixture(scope="session")
def make_frames() -> Callable[..., np.ndarray]:
    """`make_frames(num_frames, height, width, hue=0)`: a moving square, uint8 (t, h, w, 3)."""
    return _make_frames


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 real mp4 clips (10 frames, 24x32, blue 0, 50, ... 200), each with two captions and a class."""
    root = tmp_path_factory.mktemp("clips")
    (root / "videos").mkdir()
    rows = []
    for k in range(5):
        write_video(root / f"videos/{k}.mp4", _make_frames(10, 24, 32, hue=50 * k), fps=8)
        rows.append(
            {
                "file_name": f"videos/{k}.mp4",
                "captions": [f"square {k}", f"a moving square, number {k}"],
                "label": "even" if k % 2 == 0 else "odd",
                "split": "test" if k == 4 else "train",
            }
        )
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="session")
def two_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 mp4 clips (10 frames), every second one 24x36, the others 24x24, each with a caption and a class."""
    root = tmp_path_factory.mktemp("two-shapes")
    rows = []
    for k in range(8):
        write_video(root / f"{k}.mp4", _make_frames(10, 24, 36 if k % 2 else 24, hue=30 * k), fps=8)
        label = "wide" if k % 2 else "square"
        rows.append({"file_name": f"{k}.mp4", "caption": f"a moving square, number {k}", "label": label})
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="session")
def tiny_pipeline_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline of real, untrained parts: 16x16 pixels, 4 frames, text-conditional, about 200 kB."""
    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    tiny.make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def trained_once(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``tiny.run_chain`` makes, once a run of pytest, by whichever worker comes first. Take ``chain``."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    with FileLock(base / "chain.lock"):
        if not (base / "chain").exists():
            shutil.rmtree(base / "unfinished", ignore_errors=True)
            tiny.run_chain(clip_folder, base / "unfinished")
            (base / "unfinished").rename(base / "chain")
    return base / "chain"


@pytest.fixture(scope="module")
def chain(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it for a file's tests to work in: autoencoder, content, motion, teacher, caches."""
    return shutil.copytree(trained_once, tmp_path_factory.mktemp("chain") / "copy")


@pytest.fixture(scope="module")
def i3d_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A thin I3D with random weights, which is what ``load_i3d`` makes in a module that uses this."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = tiny.thin_i3d()()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv3d):
            torch.nn.init.kaiming_normal_(module.weight)
    file = tmp_path_factory.mktemp("i3d") / "i3d.safetensors"
    save_file(model.state_dict(), file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("contentmotion.evaluate.i3d.InceptionI3d", tiny.thin_i3d())
        yield file
