"""Command generate, on a tiny untrained pipeline."""

import dataclasses
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import contentmotion.commands.generate as module
import launch
import warm
from contentmotion.cli import main
from contentmotion.commands.generate import prompts_or_labels, sample_all, sample_motions, slug
from contentmotion.config import GenerateConfig
from contentmotion.pipelines.loading import load_pipeline
from contentmotion.run_dir import resolve_device, resolve_dtype, seeded_generator
from contentmotion.video.reader import read_video
from contentmotion.video.write import read_metadata


@pytest.fixture
def run(tiny_pipeline_dir: Path, tmp_path: Path):
    """`run("words", ...)`: generates 2-step videos into tmp_path / name and returns that folder."""

    def call(*words: str, name: str = "out") -> Path:
        folder = tmp_path / name
        settings = {
            "pretrained_model_name_or_path": tiny_pipeline_dir,
            "output_dir": folder,
            "num_inference_steps": 2,
            "mixed_precision": "no",
            "device": "cpu",
        }
        assert main(["generate", *words, *(f"--{key}={value}" for key, value in settings.items())]) == 0
        return folder

    return call


def gifs(folder: Path) -> list[np.ndarray]:
    return [read_video(path).frames for path in sorted(folder.glob("*.gif"))]


def test_files_names_and_output(run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("a crying cat", "rocket", "--seed=7", "--num_videos_per_prompt=2", "--fps=10")
    names = [
        f"{number:03d}-{name}-seed7.{suffix}"
        for number, name in enumerate(["a-crying-cat"] * 2 + ["rocket"] * 2)
        for suffix in ("mp4", "gif")
    ]
    assert {path.name for path in folder.iterdir()} == {*names, "sheet.png", "config.yaml"}
    printed = capsys.readouterr().out.splitlines()
    assert printed[:-1] == [str(folder / name) for name in names]
    assert printed[-1].startswith(str(folder / "sheet.png"))
    for name in names:
        video = read_video(folder / name)
        assert video.frames.shape == (4, 16, 16, 3)
        assert video.fps == pytest.approx(10)
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.height > 4 * 3 * 16, "four rows of enlarged frames"


def test_files_say_that_they_were_generated(run, tiny_pipeline_dir: Path) -> None:
    folder = run("rocket", "a crying cat", "--seed=7", "--formats", "mp4", "gif", "webm")
    for number, prompt in enumerate(("rocket", "a crying cat")):
        files = sorted(folder.glob(f"{number:03d}-*"))
        assert len(files) == 3
        for file in files:
            found = read_metadata(file)
            assert found.pop("generated").startswith("by a model, with contentmotion ")
            assert found == {"model": "pipeline", "prompt": prompt, "seed": "7", "number": str(number)}
    sheet = read_metadata(folder / "sheet.png")
    assert (sheet["prompt"], sheet["seed"]) == ("rocket; a crying cat", "7")
    assert str(tiny_pipeline_dir.parent) not in str(sheet), "no path of this machine"


def test_several_motions_of_one_content_frame(tiny_pipeline_dir: Path) -> None:
    config = GenerateConfig(prompt=["rocket"], num_inference_steps=2, mixed_precision="no", seed=3)
    pipe = load_pipeline(str(tiny_pipeline_dir))
    pipe.set_progress_bar_config(disable=True)
    steps: list[int] = []
    drawn = sample_motions(pipe, config, "rocket", 3, lambda: steps.append(1))
    assert len(steps) == 2 + 2 + 2, "content, its motion, the other two motions at once"
    (alone,) = sample_all(pipe, config, ["rocket"], lambda: None)
    assert np.array_equal(drawn[0].video, alone.video)
    for other in drawn[1:]:
        assert np.abs(other.content.astype(int) - drawn[0].content).max() <= 1
        assert np.abs(other.video.astype(int) - drawn[0].video).mean() > 1


def test_videos_differ_by_seed_number_and_prompt_but_not_by_batch(run) -> None:
    words = ("rocket", "rocket", "a crying cat", "--formats=gif", "--seed=3")
    one, all_at_once = gifs(run(*words, "--batch_size=1")), gifs(run(*words, "--batch_size=3", name="b"))
    for a, b in zip(one, all_at_once, strict=True):
        # A gif has 256 colours, chosen anew when a pixel differs by rounding: equal on average, not exactly.
        assert np.abs(a.astype(int) - b.astype(int)).mean() < 1
    other = gifs(run(*words[:4], "--seed=4", name="c"))
    for a, b in ((one[0], one[1]), (one[0], other[0]), (one[1], one[2])):
        assert np.abs(a.astype(int) - b.astype(int)).mean() > 5


def test_two_processes_make_the_files_of_one(run, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    """Byte for byte, the sheet among them; the processes share the batches."""
    words = {"prompt": ["rocket", "a crying cat", "rocket"], "batch_size": 2, "num_inference_steps": 2}
    settings = words | {"pretrained_model_name_or_path": tiny_pipeline_dir, "mixed_precision": "no", "device": "cpu"}
    launched = launch.start([("generate", settings | {"output_dir": tmp_path / "two"})], 2)
    folders = run(*launch.to_words("", words)[1:], name="one"), tmp_path / "two"
    ended = launch.finish(launched)
    assert [status for status, _, _ in ended] == [0, 0], ended
    one, two = ({p.name: p.read_bytes() for p in f.iterdir() if p.name != "config.yaml"} for f in folders)
    assert len(one) == 3 * 2 + 1 and one == two
    assert [len(printed.splitlines()) for _, printed, _ in ended] == [3 * 2 + 1, 0]


def test_batches_come_one_after_another(tiny_pipeline_dir: Path) -> None:
    config = GenerateConfig(prompt=["rocket"], num_inference_steps=2, mixed_precision="no", seed=3, batch_size=2)
    pipe = load_pipeline(str(tiny_pipeline_dir))
    pipe.set_progress_bar_config(disable=True)
    prompts, steps = ["rocket", "a crying cat", "rocket"], []
    drawn = sample_all(pipe, config, prompts, lambda: steps.append(1))
    first = next(drawn)
    assert len(steps) == 2 + 2, "the second batch waits until it is asked for"
    videos = [first.video, *(one.video for one in drawn)]
    assert len(steps) == 2 * (2 + 2)
    singly = sample_all(pipe, dataclasses.replace(config, batch_size=1), prompts, lambda: None)
    for video, alone in zip(videos, singly, strict=True):
        assert np.abs(video.astype(int) - alone.video).max() <= 1  # of 255


def test_its_config_file_repeats_the_run(run, tmp_path: Path) -> None:
    first = run("rocket", "--guidance_scale=3.5", "--motion_num_inference_steps=3", "--formats=gif")
    again = tmp_path / "again"
    assert main(["generate", "--config", str(first / "config.yaml"), "--output_dir", str(again)]) == 0
    (name,) = [path.name for path in first.glob("*.gif")]
    assert (first / name).read_bytes() == (again / name).read_bytes()


def test_size_length_and_prompt_file(run, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\ufeffrocket\n\n  a crying cat  \n", encoding="utf-8")
    sizes = ("--height=24", "--width=32", "--num_frames=6", "--formats=gif", "--negative_prompt=blur")
    folder = run(f"--prompt_file={tmp_path / 'prompts.txt'}", *sizes)
    assert [path.name for path in sorted(folder.glob("*.gif"))] == [
        "000-rocket-seed0.gif",
        "001-a-crying-cat-seed0.gif",
    ]
    assert [video.shape for video in gifs(folder)] == [(6, 24, 32, 3)] * 2


def test_a_size_far_from_the_trained_one_is_said(run, capsys: pytest.CaptureFixture[str]) -> None:
    run("rocket", "--height=32", "--width=32", "--formats=gif")
    assert "pixels: " not in capsys.readouterr().err
    run("rocket", "--height=32", "--width=48", "--formats=gif", name="wide")
    assert "48x32 pixels: the models were trained on 16x16; so far from that, " in capsys.readouterr().err


def test_bf16_gives_nearly_the_same_video(tiny_pipeline_dir: Path, run, tmp_path: Path) -> None:
    exact = gifs(run("rocket", "--formats=gif"))[0].astype(int)
    words = ["rocket", "--formats=gif", "--num_inference_steps=2", "--mixed_precision=bf16", "--device=cpu"]
    paths = [f"--pretrained_model_name_or_path={tiny_pipeline_dir}", f"--output_dir={tmp_path / 'bf16'}"]
    assert main(["generate", *words, *paths]) == 0
    rounded = gifs(tmp_path / "bf16")[0].astype(int)
    assert np.abs(exact - rounded).mean() < 5


def test_conditions() -> None:
    assert prompts_or_labels(GenerateConfig(prompt=[" a cat "])) == ["a cat"]
    assert prompts_or_labels(GenerateConfig(class_labels=[3, 1])) == [3, 1]
    for config in (GenerateConfig(prompt=["a", " "]), GenerateConfig(prompt=[])):
        with pytest.raises(ValueError, match="empty prompt"):
            prompts_or_labels(config)


def test_slugs() -> None:
    assert slug("Woman lifting weights, dark skin tone!") == "woman-lifting-weights-dark-skin-tone"
    assert slug("Ünïcode 猫") == slug("U\u0308ni\u0308code 猫") == "ünïcode-猫"
    assert slug("हिन्दी बिल्ली") == "हिन्दी-बिल्ली"
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("🚀") == "prompt"
    assert slug(207) == "class-207"
    assert len(slug("word " * 100)) <= 48


def test_seeded_noise_is_a_function_of_seed_and_number() -> None:
    draws = {
        (seed, index): torch.randn(4, generator=seeded_generator(seed, index)).tolist()
        for seed in (0, 1, 2**40)
        for index in range(3)
    }
    assert len({tuple(values) for values in draws.values()}) == len(draws)
    assert torch.randn(4, generator=seeded_generator(1, 2)).tolist() == draws[1, 2]


def test_devices_and_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    for name in ("warp", "cuda:99", "cpu:x"):
        with pytest.raises(ValueError, match=name):
            resolve_device(name)
    assert resolve_dtype("no", torch.device("cpu")) is None
    assert resolve_dtype("bf16", torch.device("cpu")) == torch.bfloat16
    assert resolve_dtype("fp16", torch.device("cuda")) == torch.float16
    assert resolve_dtype("auto", torch.device("cpu")) in (None, torch.bfloat16)
    assert resolve_dtype("auto", torch.device("mps")) is None
    for launched, meant in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("no", None)):  # by `accelerate launch`
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
        assert (resolve_dtype("auto", torch.device("mps")), resolve_dtype("no", torch.device("mps"))) == (meant, None)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_ends_with_one_line(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    words = ["generate", "rocket", "--num_inference_steps=1000"]
    paths = [f"--pretrained_model_name_or_path={tiny_pipeline_dir}", f"--output_dir={tmp_path / 'out'}"]
    process = warm.command([*words, *paths])
    while not (tmp_path / "out" / "config.yaml").exists():  # written right before the model is loaded
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error.splitlines()[-1] == "contentmotion: interrupted"
    assert "Traceback" not in error


@pytest.mark.parametrize("part", ["unet", "motion_transformer", "autoencoder"])
def test_no_video_of_numbers_that_are_not_finite(
    tiny_pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    part: str,
) -> None:  # fmt: skip
    pipe = load_pipeline(str(tiny_pipeline_dir))
    for parameter in getattr(pipe, part).parameters():
        parameter.data.fill_(torch.nan)
    monkeypatch.setattr("contentmotion.commands.generate.load_for_sampling", lambda *arguments: pipe)
    words = ["rocket", "--num_inference_steps=2", "--device=cpu", "--mixed_precision=no"]
    paths = [f"--pretrained_model_name_or_path={tiny_pipeline_dir}", f"--output_dir={tmp_path / 'out'}"]
    assert main(["generate", *words, *paths]) == 1
    name = {"unet": "the content model", "motion_transformer": "the motion model"}.get(part, "the autoencoder")
    assert f"{name} made values that are not finite" in capsys.readouterr().err
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".yaml"}


def test_a_stopped_run_goes_on_and_any_video_is_made_again(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("rocket\na crying cat\na moving square\n")
    words = [f"--prompt_file={prompts}", "--seed=5", "--batch_size=1"]
    whole = run(*words, name="whole")
    with monkeypatch.context() as patch:
        patch.setattr(module, "sample", interrupting_at(2))
        with pytest.raises(AssertionError):
            run(*words)
    folder = tmp_path / "out"
    first = folder / "000-rocket-seed5.gif"
    before = first.stat().st_mtime_ns
    assert len(list(folder.glob("*.gif"))) == 2 and not (folder / "sheet.png").exists()
    capsys.readouterr()
    run(*words)
    assert "has 2 of 3 videos: goes on with the next" in capsys.readouterr().err
    assert first.stat().st_mtime_ns == before
    for path in whole.glob("*.gif"):
        assert (folder / path.name).read_bytes() == path.read_bytes()
    run(*words)
    assert first.stat().st_mtime_ns > before, "a run that came to its end begins anew"
    again = run("a moving square", "--seed=5", "--number=2", name="again")
    told = read_metadata(again / "002-a-moving-square-seed5.gif")
    assert (told["seed"], told["number"]) == ("5", "2")
    assert np.array_equal(gifs(again)[0], gifs(whole)[2])


def interrupting_at(call: int):
    """``sample``, stopped by Ctrl-C in its call of that number."""
    calls, sample = [], module.sample

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) > call:
            raise KeyboardInterrupt
        return sample(*args, **kwargs)

    return interrupted
