"""`generate` with depth, sketch, mask and first frame: from files to videos, and one line for what is wrong."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from contentmotion.cli import main
from contentmotion.models.condition_encoder import ConditionEncoder
from contentmotion.pipelines.video_latent import VideoLatentPipeline
from contentmotion.stages.stage import make_scheduler
from contentmotion.video.reader import read_video
from contentmotion.video.write import write_picture, write_video
from tiny import make_text, make_video_unet


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, make_frames: Callable[..., np.ndarray]) -> Path:
    """``model``: of pixels, 4 frames of 16x16, that takes sketches, masks and first frames; and files for them."""
    root = tmp_path_factory.mktemp("conditions")
    torch.manual_seed(0)
    (tokenizer, text_encoder), unet = make_text(), make_video_unet(extra_channels=4)
    encoder = ConditionEncoder(
        conditions=("sketch", "mask", "first_frame"), latent_channels=3, vae_scale_factor=1, hidden_channels=8,
        out_channels=4,
    )  # fmt: skip
    scheduler = make_scheduler("scaled_linear", None)
    VideoLatentPipeline(None, text_encoder, tokenizer, unet, scheduler, encoder).save_pretrained(root / "model")
    frames = make_frames(8, 16, 16)
    write_video(root / "driving.mp4", frames, fps=8)
    write_video(root / "short.mp4", frames[:2], fps=8)
    lines = np.zeros_like(frames)
    for k, frame in enumerate(lines):  # all different: gif files join frames that are alike
        frame[k + 1] = 255
    write_video(root / "sketch.gif", lines, fps=8)
    mask = np.zeros((16, 16, 3), np.uint8)
    mask[:, 8:] = 255
    write_picture(root / "mask.png", Image.fromarray(mask))
    write_picture(root / "first.png", Image.fromarray(frames[0]))
    (root / "broken.mp4").write_bytes(b"not a video")
    return root


def generate(root: Path, name: str, *words: str) -> int:
    common = ["--pretrained_model_name_or_path", f"{root}/model", "--num_inference_steps", "2", "--formats", "gif"]
    return main(["generate", "a square", *common, "--output_dir", f"{root}/{name}", *words])


def test_each_condition_changes_the_video(root: Path) -> None:
    runs = {
        "free": [],
        "sketch": ["--sketch", f"{root}/sketch.gif"],
        "extracted": ["--driving_video", f"{root}/driving.mp4", "--extract", "sketch"],
        "mask": ["--driving_video", f"{root}/driving.mp4", "--mask", f"{root}/mask.png"],
        "first": ["--first_frame", f"{root}/first.png"],
    }
    made = {}
    for name, words in runs.items():
        assert generate(root, name, *words) == 0
        made[name] = read_video(root / name / "000-a-square-seed0.gif").frames
    for name in runs.keys() - {"free"}:
        assert not np.array_equal(made[name], made["free"]), name
    assert not np.array_equal(made["sketch"], made["extracted"])
    assert generate(root, "again", *runs["sketch"]) == 0
    assert np.array_equal(read_video(root / "again/000-a-square-seed0.gif").frames, made["sketch"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sketch", "short.mp4"], "--sketch: shorter than the clip"),
        (["--sketch", "broken.mp4"], "broken.mp4"),
        (["--sketch", "nowhere.mp4"], "nowhere.mp4"),
        (["--depth", "sketch.gif"], "--depth: this model was not trained with it, only with sketch, mask, first_frame"),
        (["--mask", "mask.png"], "--mask needs --driving_video"),
        (["--driving_video", "driving.mp4", "--extract", "depth"], "--extract depth needs --depth_model"),
    ],
)
def test_bad_conditions(root: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"{root}/{word}" if "." in word else word for word in words]
    assert generate(root, "bad", *words) != 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1] and lines[-1].startswith("contentmotion: error:")


def test_a_model_without_conditions_says_so(tiny_pipeline_dir: Path, root: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--pretrained_model_name_or_path", str(tiny_pipeline_dir), "--sketch", f"{root}/sketch.gif"]
    assert main(["generate", "a cat", *words, "--output_dir", f"{root}/none"]) == 1
    assert "--sketch: this model was trained without conditions" in capsys.readouterr().err
