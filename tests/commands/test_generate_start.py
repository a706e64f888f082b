"""Command generate from a picture, from videos, and longer than a clip."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contentmotion.cli import main
from contentmotion.commands.generate import read_start
from contentmotion.config import GenerateConfig
from contentmotion.pipelines.loading import load_pipeline
from contentmotion.video.reader import read_video
from contentmotion.video.write import read_metadata, write_video, writing_video


@pytest.fixture
def run(tiny_pipeline_dir: Path, tmp_path: Path):
    """`run("words", ...)`: generates 2-step gifs into tmp_path / name; the exit code and the videos."""

    def call(*words: str, name: str = "out") -> tuple[int, list[np.ndarray]]:
        settings = {
            "pretrained_model_name_or_path": tiny_pipeline_dir, "output_dir": tmp_path / name, "formats": "gif",
            "num_inference_steps": 2, "mixed_precision": "no", "device": "cpu",
        }  # fmt: skip
        code = main(["generate", *words, *(f"--{key}={value}" for key, value in settings.items())])
        return code, [read_video(path).frames for path in sorted((tmp_path / name).glob("*.gif"))]

    return call


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``cat.png``, wide; ``clip.mp4`` of 9 frames; ``short.mp4`` of 3; ``broken.png``."""
    folder, draw = tmp_path_factory.mktemp("given"), np.random.default_rng(0)
    picture = draw.integers(0, 255, (4, 8, 3)).astype(np.uint8)
    Image.fromarray(picture).resize((64, 32)).save(folder / "cat.png")
    clip = np.repeat(np.repeat(draw.integers(0, 255, (9, 4, 4, 3)).astype(np.uint8), 8, axis=1), 8, axis=2)
    write_video(folder / "clip.mp4", clip, 8)
    write_video(folder / "short.mp4", clip[:3], 8)
    (folder / "broken.png").write_bytes((folder / "cat.png").read_bytes()[:60])
    return folder


def test_a_picture_without_words(run, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, (video,) = run("--image", f"{files}/cat.png", "--strength", "0")
    assert code == 0 and video.shape == (4, 16, 16, 3)
    error = capsys.readouterr().err
    assert f"{files}/cat.png: 64x32 pixels, cut to the shape of 16x16 (--fit pad shows all of it)" in error
    (file,) = (tmp_path / "out").glob("*.gif")
    assert file.name == "000-cat-seed0.gif"
    assert read_metadata(file)["image"] == "cat.png"


def test_motion_from_a_video_and_editing_one(run, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = f"{files}/clip.mp4"
    code, (kept,) = run("rocket", "--video", clip, "--strength", "0", "--motion_strength", "0")
    assert code == 0 and "pixels, cut to" not in capsys.readouterr().err
    _, (strided,) = run("rocket", "--video", clip, "--frame_stride", "2", "--strength=0", name="strided")
    _, (edited,) = run("rocket", "--video", clip, "--strength", "0.9", name="edited")
    code, (moved,) = run("rocket", "--motion_from", clip, name="moved")
    assert code == 0
    for other in (strided, edited, moved):
        assert np.abs(other.astype(int) - kept).mean() > 1


def test_rates_are_those_of_the_model(
    tiny_pipeline_dir: Path, files: Path, tmp_path: Path, make_frames: Callable[..., np.ndarray]
) -> None:
    folder = shutil.copytree(tiny_pipeline_dir, tmp_path / "model")
    file = folder / "motion_transformer/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fps": 12}))
    words = ["generate", "a", "--pretrained_model_name_or_path", str(folder), "--num_inference_steps=1"]
    assert main([*words, "--formats=mp4", "--output_dir", str(tmp_path / "out")]) == 0
    assert read_video(next((tmp_path / "out").glob("*.mp4"))).fps == 12

    write_video(tmp_path / "fast.mp4", make_frames(12, 16, 16), 36)
    every = read_video(tmp_path / "fast.mp4").frames
    pipe = load_pipeline(str(folder))
    for motion, stride, chosen in (("fast.mp4", None, [0, 3, 6, 9]), ("fast.mp4", 2, [0, 2, 4, 6])):
        config = GenerateConfig(prompt=["a"], motion_from=str(tmp_path / motion), frame_stride=stride)
        assert np.array_equal(read_start(pipe, config)["motion_video"], every[chosen])
    GenerateConfig(prompt=["a"], frame_stride=1)  # as runs of before are recorded
    slow = read_start(pipe, GenerateConfig(prompt=["a"], motion_from=f"{files}/clip.mp4", height=32, width=32))
    assert np.array_equal(slow["motion_video"], read_video(files / "clip.mp4").frames[:4]), "frames are not repeated"


def test_a_longer_video_a_loop_and_prompts_that_change(run, capsys: pytest.CaptureFixture[str]) -> None:
    code, long = run("rocket", "a crying cat", "--num_frames=10", "--batch_size=1")
    assert code == 0 and [len(video) for video in long] == [10, 10]
    assert "10 frames: 4 clips of 4, they overlap" in capsys.readouterr().err
    _, together = run("rocket", "a crying cat", "--num_frames=10", name="together")
    for one, other in zip(long, together, strict=True):
        assert np.abs(one.astype(int) - other).mean() < 1
    _, loops = run("rocket", "--num_frames=8", "--loop", name="loop")
    assert len(loops[0]) == 8
    words = ("--prompts_at", "0: rocket", "6: a crying cat", "--num_frames=10", "--num_videos_per_prompt=2")
    _, changing = run(*words, name="changing")
    assert len(changing) == 2 and len(changing[0]) == 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--image cat.gif", "cat.gif: no such file"),
        ("--image https://example.com/cat.png", "an address, and pictures are read from files"),
        ("--image {}/broken.png", "broken.png: not a readable picture"),
        ("--image {}", "not a picture file"),
        ("a --motion_from {}/short.mp4", "--motion_from: shorter than a clip"),
        ("a --video {}/cat.png", "--video: shorter than a clip"),
        ("a --strength 0.5", "it needs --image or --video"),
        ("a --motion_strength 0.5", "it needs --motion_from or --video"),
        ("a --strength -1 --image x", "--strength: expected a number from 0 to 1, got -1"),
        ("a --image x --video y", "give --image or --video"),
        ("a --loop --num_frames 2", "loop: it needs 4 frames or more"),
        ("a --prompts_at 0:b", "--prompts_at alone"),
        ("--prompts_at 3:b", "begins at frame 0"),
        ("--prompts_at b", "such as \"32: a dog\", got 'b'"),
        ("--prompts_at 0:a 0:b", "a frame stands there twice"),
    ],
)
def test_bad_input_is_one_line(run, files: Path, capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    code, videos = run(*words.format(files).split())
    lines = capsys.readouterr().err.strip().splitlines()
    assert code != 0 and not videos
    assert len(lines) == 1 and message in lines[0]


@pytest.mark.parametrize("suffix", ["mp4", "gif", "webm"])
def test_a_video_written_piece_by_piece(tmp_path: Path, suffix: str) -> None:
    """Is the one that is written at once."""
    frames = np.zeros((9, 24, 32, 3), np.uint8)
    for k, frame in enumerate(frames):
        frame[:, 2 * k : 2 * k + 8] = (255, 64, 0)
    write_video(tmp_path / f"whole.{suffix}", frames, 8, {"a": "b"})
    with writing_video(tmp_path / f"parts.{suffix}", 8, {"a": "b"}) as add:
        for part in (frames[:4], frames[4:5], frames[5:]):
            add(part)
    whole, parts = (tmp_path / f"{name}.{suffix}" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()
    with pytest.raises(ValueError, match="frames of different sizes"), writing_video(whole, 8) as add:
        add(frames)
        add(frames[:, :8])
    assert whole.read_bytes() == parts.read_bytes(), "what is not finished replaces nothing"


def test_interpolation_between_prompts_seeds_and_motions(run, files: Path, tmp_path: Path) -> None:
    clip, other = f"{files}/clip.mp4", tmp_path / "other.mp4"
    write_video(other, read_video(clip).frames[::-1], 8)
    ends = {
        "prompts": (("rocket",), ("a crying cat",)),
        "seeds": (("rocket",), ("rocket", "--seed=5")),
        "motions": (("rocket", "--motion_from", clip), ("rocket", "--motion_from", str(other))),
    }
    ways = {
        "prompts": ("rocket", "a crying cat"),
        "seeds": ("rocket", "--to_seed=5"),
        "motions": ("rocket", "--motion_from", clip, "--motion_to", str(other)),
    }
    for name, words in ways.items():
        code, videos = run(*words, "--interpolate=3", "--batch_size=2", name=name)
        first, middle, last, joined = (video.astype(int) for video in videos)
        assert code == 0 and np.abs(joined - np.concatenate([first, middle, last])).mean() < 5, name
        for end, words_of_end in zip((first, last), ends[name], strict=True):
            _, (alone,) = run(*words_of_end, name=f"{name}-{len(words_of_end)}-{words_of_end[-1][-6:]}")
            assert np.abs(end - alone).max() <= 1, f"{name}: an end is the video of that end"
            assert name == "motions" or np.abs(middle - alone).mean() > 0.05, name  # those of tiny models hardly show
    (file,) = (tmp_path / "prompts").glob("001-*.gif")
    assert file.name == "001-rocket-a-crying-cat-0-50-seed0.gif"
    assert read_metadata(tmp_path / "seeds/interpolation.gif")["prompt"].startswith("rocket")
    (file,) = (tmp_path / "seeds").glob("001-*.gif")
    about = read_metadata(file)
    assert (about["seed"], about["to_seed"], about["interpolate"], about["number"]) == ("0", "5", "3", "1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a", "b", "c", "--interpolate=3"), "--interpolate goes between two ends"),
        (("a", "--interpolate=3"), "give two prompts, or one with --to_seed or --motion_to, got 1 of them"),
        (("a", "--to_seed=3"), "--to_seed is the other end of --interpolate NUMBER"),
        (("a", "--interpolate=3", "--motion_to=x.mp4"), "--motion_to goes with --motion_from: two motions"),
        (("a", "b", "--interpolate=3", "--num_videos_per_prompt=2"), "without --num_videos_per_prompt"),
    ],
)
def test_no_two_ends(words: tuple[str, ...], message: str, run, capsys: pytest.CaptureFixture[str]) -> None:
    code, videos = run(*words)
    assert code != 0 and not videos
    assert message in capsys.readouterr().err
