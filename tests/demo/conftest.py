"""A served page over the tiny pipeline."""

import functools
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from httpx._transports import default as _default

import warm

pytest.importorskip("gradio", reason="needs Gradio: pip install contentmotion[demo]")

# Gradio's client makes a new client of httpx for every request, and each of them reads all certificates.
_default.create_ssl_context = functools.cache(_default.create_ssl_context)
LIMITS = {"queue_size": 4, "max_upload_mb": 1.0, "max_video_seconds": 5.0, "max_prompt_length": 60, "max_steps": 20}


@dataclass(frozen=True)
class Page:
    """A page that is being served.

    Attributes:
        url: Where, with a slash at the end.
        process: By whom.
        temp: The folder that the process has for its temporary files.
    """

    url: str
    process: warm.Process
    temp: Path


@contextmanager
def serve(temp: Path, *words: str) -> Iterator[Page]:
    """`contentmotion demo` as a process of its own, at a free port; ended by SIGTERM."""
    flags = [f"--{key}={value}" for key, value in LIMITS.items()]
    command = ["demo", "--server_port=0", "--device=cpu", "--mixed_precision=no", *flags, *words]
    process = warm.command(command, env={"TMPDIR": str(temp), "HF_HUB_OFFLINE": "1"})
    try:
        while not (said := process.output()).endswith("\n") and process.poll() is None:
            time.sleep(0.05)
        found = re.fullmatch(
            r"contentmotion demo listens on (http://127\.0\.0\.1:\d+/) for this machine alone; Ctrl-C ends it\n", said
        )
        assert found, (said, process.poll())
        yield Page(found[1], process, temp)
    finally:
        process.terminate()
        process.communicate(60)


@pytest.fixture(scope="session")
def page(tiny_pipeline_dir: Path, few_step_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A served page: the tiny pipeline, and its few-step sibling to compare with."""
    models = (f"--pretrained_model_name_or_path={tiny_pipeline_dir}", f"--compare_with={few_step_dir}")
    with serve(tmp_path_factory.mktemp("page"), *models, "--examples", "rocket") as page:
        yield page


@pytest.fixture(scope="session")
def few_step_dir(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline with the schedulers of a distilled one."""
    from diffusers import LCMScheduler

    from contentmotion.pipelines.loading import load_pipeline

    pipe = load_pipeline(str(tiny_pipeline_dir))
    for name in ("scheduler", "motion_scheduler"):
        pipe.register_modules(**{name: LCMScheduler.from_config(getattr(pipe, name).config)})
    folder = tmp_path_factory.mktemp("few") / "few-step"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def serve_page():
    """`with serve_page(temp, *words) as page`: another page."""
    return serve


@pytest.fixture(scope="session")
def uploads(tmp_path_factory: pytest.TempPathFactory, make_frames) -> dict[str, Path]:
    """A good video, and one of each kind that is refused."""
    import numpy as np
    from PIL import Image

    from contentmotion.video.write import write_video

    folder = tmp_path_factory.mktemp("uploads")
    files = {name: folder / f"{name}.mp4" for name in ("good", "other", "no-video", "long", "short", "large")}
    write_video(files["good"], make_frames(12, 24, 32), fps=8)
    write_video(files["other"], make_frames(12, 24, 32, hue=200), fps=8)
    files["no-video"].write_text("a letter, not a video")
    files["picture"] = folder / "picture.png"
    Image.new("RGB", (40, 24), (250, 100, 20)).save(files["picture"])
    write_video(files["long"], make_frames(60, 24, 32), fps=8)  # 7.5 s
    write_video(files["short"], make_frames(3, 24, 32), fps=8)
    noise = np.random.default_rng(0).integers(0, 256, (40, 256, 256, 3), dtype=np.uint8)
    write_video(files["large"], noise, fps=8)
    assert files["large"].stat().st_size > 1.2e6
    return files
