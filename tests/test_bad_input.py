"""Bad input of every kind: one line on stderr that says what and where, a non-zero exit, no traceback."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from contentmotion.cli import main
from contentmotion.video.write import write_video
from tiny import make_autoencoder

Fails = Callable[..., str]
MOVE = ("--num_inference_steps=1", "--device=cpu", "--mixed_precision=no")


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """`fails(words, status=1)`: runs the command line, checks how it failed and returns the message."""

    def run(*words: object, status: int = 1) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == status
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("contentmotion: error: "), captured.err
        assert captured.err.count("\n") == 1, captured.err
        return captured.err.removeprefix("contentmotion: error: ").rstrip("\n")

    return run


@pytest.fixture
def changed(tiny_pipeline_dir: Path, tmp_path: Path) -> Callable[[str, dict], Path]:
    """`changed("unet", {"key": value})`: a copy of the pipeline with other settings in a part's config.json."""

    def copy(part: str, settings: dict) -> Path:
        folder = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "changed"))
        file = folder / part / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        return folder

    return copy


@pytest.fixture
def file_in_the_way(tmp_path: Path) -> Path:
    """A path below a regular file: nobody can make that folder, not even root."""
    (tmp_path / "file").write_text("not a folder")
    return tmp_path / "file" / "out"


def generate_words(pipeline: object, output_dir: Path, *words: str) -> list[str]:
    return [
        *("generate", *words, *MOVE),
        f"--pretrained_model_name_or_path={pipeline}",
        f"--output_dir={output_dir / 'out'}",
    ]


# Checkpoints


def test_no_such_checkpoint(fails: Fails, tmp_path: Path) -> None:
    no = tmp_path / "no"
    message = fails(*generate_words(no / "pipe", tmp_path, "cat"))
    assert message == f"--pretrained_model_name_or_path: no such checkpoint: {no}/pipe"
    assert not (tmp_path / "out").exists(), "nothing is written before everything needed is there"
    message = fails("info", no)
    assert message == f"no such checkpoint: {no}"


def test_all_that_is_missing_is_listed_at_once(fails: Fails, tmp_path: Path) -> None:
    words = generate_words(tmp_path / "a", tmp_path, "cat")
    message = fails(*words, f"--autoencoder={tmp_path}/b", f"--motion_transformer={tmp_path}/c")
    for flag, name in (("pretrained_model_name_or_path", "a"), ("autoencoder", "b"), ("motion_transformer", "c")):
        assert f"--{flag}: no such checkpoint: {tmp_path}/{name}" in message


def test_a_name_that_neither_disk_nor_hub_knows(fails: Fails, tmp_path: Path) -> None:
    assert fails(*generate_words("runs/nowhere", tmp_path, "cat")).startswith("no such checkpoint: runs/nowhere ")
    assert fails("info", "no name/x").startswith("no name/x: the hub did not give it: Repo id must use ")


def test_folders_that_are_no_pipeline(fails: Fails, tmp_path: Path, tiny_pipeline_dir: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty} is not a pipeline folder" in fails(*generate_words(empty, tmp_path, "cat"))
    assert f"{empty} holds no checkpoint" in fails("info", empty)
    file = tiny_pipeline_dir / "model_index.json"
    assert f"{file} is a file" in fails(*generate_words(file, tmp_path, "cat"))


def test_a_pipeline_without_our_half(fails: Fails, tmp_path: Path, tiny_pipeline_dir: Path) -> None:
    folder = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "half"))
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("autoencoder", "motion_transformer", "motion_scheduler"):
        del index[name]
    (folder / "model_index.json").write_text(json.dumps(index))
    message = fails(*generate_words(folder, tmp_path, "cat"))
    assert "no autoencoder and no motion_transformer" in message
    assert "give --autoencoder and --motion_transformer" in message


@pytest.mark.parametrize(
    ("part", "settings", "named"),
    [
        ("autoencoder", {"hidden_size": 64}, "is [32], not [64]"),
        ("unet", {"block_out_channels": [16, 64]}, "is [32], not [64]"),
        ("motion_transformer", {"hidden_size": 64}, "is [32], not [64]"),
        ("text_encoder", {"hidden_size": 64, "intermediate_size": 256}, "another shape"),
    ],
)
def test_a_checkpoint_of_another_shape(
    part: str, settings: dict, named: str, fails: Fails, changed: Callable, tmp_path: Path
) -> None:
    message = fails(*generate_words(changed(part, settings), tmp_path, "cat"))
    assert "the weights are of another shape than config.json says" in message
    assert named in message


def test_parts_made_for_other_parts(fails: Fails, tmp_path: Path, tiny_pipeline_dir: Path) -> None:

    other = tmp_path / "autoencoder"
    make_autoencoder(motion_channels=6).save_pretrained(other)
    message = fails(*generate_words(tiny_pipeline_dir, tmp_path, "cat", f"--autoencoder={other}"))
    assert "made for 4 motion and 3 content channels, the autoencoder has 6 and 3" in message


@pytest.mark.parametrize(
    "name",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "autoencoder/diffusion_pytorch_model.safetensors",
    ],
)
def test_damaged_and_missing_weights(name: str, fails: Fails, tmp_path: Path, tiny_pipeline_dir: Path) -> None:
    folder = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "pipeline"))
    (folder / name).write_bytes((folder / name).read_bytes()[:500])
    message = fails(*generate_words(folder, tmp_path, "cat"))
    assert "damaged file" in message
    assert f"{folder / name}: damaged file" in fails("info", folder)
    (folder / name).unlink()
    message = fails(*generate_words(folder, tmp_path, "cat"))
    assert re.search(rf"cannot load \D+ from {re.escape(str(folder))}: ", message), message


def test_broken_json(fails: Fails, changed: Callable, tmp_path: Path) -> None:
    folder = changed("unet", {})
    for file in (folder / "unet/config.json", folder / "model_index.json"):
        file.write_text("{")
        assert str(file) in fails(*generate_words(folder, tmp_path, "cat"))
        assert str(file) in fails("info", folder)


# Videos


@pytest.fixture
def bad_videos(tmp_path: Path) -> dict[str, Path]:
    """A bad video of each kind, by the words that its message must hold."""
    folder = tmp_path / "videos"
    folder.mkdir()
    good = folder / "good.mp4"
    write_video(good, np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8), 8)
    (folder / "corrupt.mp4").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (folder / "text.mp4").write_text("This is no video.\n" * 100)
    (folder / "empty.mp4").touch()
    write_video(folder / "single.gif", np.zeros((1, 32, 32, 3), np.uint8), 8)
    (folder / "frames").mkdir()
    return {
        "cut short: ": folder / "corrupt.mp4",
        "not a readable video (": folder / "text.mp4",
        "empty file": folder / "empty.mp4",
        "1 frames, 4 needed": folder / "single.gif",
        "a folder without numbered png or jpg frames": folder / "frames",
        "no such file": folder / "no.mp4",
    }


def test_bad_videos(fails: Fails, bad_videos: dict[str, Path], tmp_path: Path, tiny_pipeline_dir: Path) -> None:
    for reason, video in bad_videos.items():
        settings = {"pretrained_model_name_or_path": tiny_pipeline_dir, "output_dir": tmp_path / "out"}
        message = fails("reconstruct", video, *(f"--{name}={value}" for name, value in settings.items()))
        assert str(video) in message
        assert reason in message


# Data folders


def train_words(data_dir: Path, output_dir: Path, *words: str) -> list[str]:
    run = ("--max_train_steps=1", "--num_frames=4", "--height=16", "--width=16", "--report_to=none")
    return ["train-vae", f"--train_data_dir={data_dir}", f"--output_dir={output_dir}", *run, *words]


def test_folders_without_videos(fails: Fails, tmp_path: Path) -> None:
    empty = tmp_path / "data"
    assert str(empty) in fails(*train_words(empty, tmp_path / "out"))
    empty.mkdir()
    assert str(empty) in fails(*train_words(empty, tmp_path / "out"))
    (empty / "notes.txt").write_text("no videos here")
    assert str(empty) in fails(*train_words(empty, tmp_path / "out"))


def test_captions_for_missing_files(fails: Fails, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "metadata.csv").write_text("file_name,caption\nvideos/a.mp4,a cat\nvideos/b.mp4,a dog\n")
    message = fails(*train_words(data, tmp_path / "out"))
    assert "videos/a.mp4" in message
    assert "no such file" in message


def test_only_bad_files(fails: Fails, bad_videos: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "things").mkdir(parents=True)
    for name in ("corrupt.mp4", "text.mp4"):
        shutil.copy(tmp_path / "videos" / name, data / "things" / name)
    message = fails(*train_words(data, tmp_path / "out"))
    assert "none of 2 videos can be used" in message


# Sizes, prompts, numbers


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--height=15"], "height must be a multiple of 4, got 15"),
        (["--width=18"], "width must be a multiple of 4, got 18"),
        (["--num_frames=3"], "num_frames must be a multiple of 2, got 3"),
    ],
)
def test_sizes_that_do_not_fit_generate(
    words: list[str], message: str, fails: Fails, tmp_path: Path, tiny_pipeline_dir: Path
) -> None:
    assert fails(*generate_words(tiny_pipeline_dir, tmp_path, "cat", *words)) == message


def test_sizes_that_do_not_fit_reconstruct(
    fails: Fails, clip_folder: Path, tmp_path: Path, tiny_pipeline_dir: Path
) -> None:
    words = ["reconstruct", clip_folder / "videos/0.mp4", f"--output_dir={tmp_path / 'out'}"]
    words.append(f"--pretrained_model_name_or_path={tiny_pipeline_dir}")
    assert fails(*words, "--height=15") == "height must be a multiple of 2, got 15"
    assert "10 frames, 11 needed" in fails(*words, "--num_frames=11")
    assert "10 frames, 13 needed" in fails(*words, "--frame_stride=4")


def test_sizes_that_do_not_fit_training(fails: Fails, clip_folder: Path, tmp_path: Path) -> None:
    message = fails(*train_words(clip_folder, tmp_path / "out", "--height=15"))
    assert "height" in message
    assert "15" in message


def test_prompts(fails: Fails, tmp_path: Path, tiny_pipeline_dir: Path) -> None:
    file = tmp_path / "prompts.txt"

    def message(*words: str) -> str:
        return fails(*generate_words(tiny_pipeline_dir, tmp_path, *words))

    file.write_text("\n  \n")
    assert message(f"--prompt_file={file}") == f"{file}: no prompts in this file"
    file.write_bytes(b"\xff\xfe\x00cat")
    assert message(f"--prompt_file={file}") == f"{file}: not a text file in UTF-8"
    assert message(f"--prompt_file={tmp_path / 'no.txt'}") == f"{tmp_path / 'no.txt'}: No such file or directory"
    assert message("") == "empty prompt: say what to show"
    assert "text-conditional" in message("--class_labels=1")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (
            ["generate", "cat", "--num_inference_steps=-1"],
            "--num_inference_steps: expected a whole number from 1 to",
        ),
        (
            ["generate", "cat", "--motion_num_inference_steps=0"],
            "--motion_num_inference_steps: expected a whole number",
        ),
        (["generate", "cat", "--fps=0"], "--fps: expected a number above 0"),
        (["generate", "cat", "--seed=-1"], "--seed: expected a whole number from 0 to 10^18, got -1"),
        (["generate", "cat", "--device=warp"], "warp"),
        (["reconstruct", "a.mp4", "--frame_stride=0"], "--frame_stride: expected a whole number from 1"),
        (
            ["train-vae", "--train_data_dir=a", "--output_dir=b", "--max_train_steps=-5"],
            "--max_train_steps: expected a whole number from 1 to 10^9, got -5",
        ),
        (
            ["train-vae", "--train_data_dir=a", "--output_dir=b", "--num_frames=0"],
            "--num_frames: expected a whole number",
        ),
    ],
)
def test_numbers_out_of_range(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) in (1, 2)
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


# Names that do not exist: see test_cli.py too


def test_unknown_flag_and_key_name_the_nearest(fails: Fails, tmp_path: Path) -> None:
    message = fails("generate", "cat", "--guidence_scale=2", status=2)
    assert message == "unknown option --guidence_scale: did you mean --guidance_scale?"
    file = tmp_path / "train.yaml"
    file.write_text("learning_rte: 1e-4\n")
    message = fails("train-vae", "--config", file, status=2)
    assert message == f"{file}: unknown key 'learning_rte': did you mean learning_rate?"


# Output folders


def test_output_folders_that_cannot_be_written(
    fails: Fails, file_in_the_way: Path, clip_folder: Path, tiny_pipeline_dir: Path
) -> None:
    pipeline = f"--pretrained_model_name_or_path={tiny_pipeline_dir}"
    output = f"--output_dir={file_in_the_way}"
    for words in (
        ["generate", "cat", *MOVE, pipeline, output],
        ["reconstruct", clip_folder / "videos/0.mp4", pipeline, output],
        ["export", pipeline, output],
        train_words(clip_folder, file_in_the_way),
    ):
        message = fails(*words)
        assert message == f"output folder {file_in_the_way} is not writable: Not a directory"


def test_export_does_not_overwrite(fails: Fails, tmp_path: Path, tiny_pipeline_dir: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep me")
    message = fails("export", f"--pretrained_model_name_or_path={tiny_pipeline_dir}", f"--output_dir={tmp_path}")
    assert message == f"output folder {tmp_path} is already in use: choose a new one"
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize("command", ["encode", "evaluate", "generate"])
def test_processes_of_one_run_with_other_settings(
    command: str, fails: Fails, tmp_path: Path, tiny_pipeline_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Are told so before anything is read or written; training's: train/test_distributed.py."""
    two = SimpleNamespace(num_processes=2, is_main_process=True, device=torch.device("cpu"))
    monkeypatch.setattr("contentmotion.run_dir.join_processes", lambda *_, **__: two)
    monkeypatch.setattr("accelerate.utils.gather_object", lambda told: [*told, told[0] | {"seed": 1}])
    model = f"--pretrained_model_name_or_path={tiny_pipeline_dir}"
    words = {
        "encode": [f"--train_data_dir={tmp_path}", f"--autoencoder={tiny_pipeline_dir}"],
        "evaluate": [f"--data_dir={tmp_path}", model],
        "generate": ["a cat", model],
    }[command]
    message = fails(command, *words, f"--output_dir={tmp_path / 'out'}")
    assert "processes of one run were given different settings: seed 0 and 1" in message
    assert not (tmp_path / "out").exists()
