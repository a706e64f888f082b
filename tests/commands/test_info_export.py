"""Commands info and export."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from contentmotion import ContentMotionPipeline
from contentmotion.cli import main
from contentmotion.pipelines.sampling import resolve_sampling
from contentmotion.saving import hash_weights
from contentmotion.video.write import write_picture, write_video


@pytest.fixture
def table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """`table(folder)`: what info prints about it, on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(folder: Path) -> str:
        capsys.readouterr()
        assert main(["info", str(folder)]) == 0
        return capsys.readouterr().out

    return run


def test_info_of_a_pipeline(table, tiny_pipeline_dir: Path) -> None:
    text = table(tiny_pipeline_dir)
    pipe = ContentMotionPipeline.from_pretrained(tiny_pipeline_dir)
    total = 0
    for name in ("autoencoder", "motion_transformer", "text_encoder", "unet"):
        part = getattr(pipe, name)
        parameters = sum(parameter.numel() for parameter in part.parameters())
        total += parameters
        assert type(part).__name__ in text
        assert f"{parameters:,} " in text, name
    assert f"{total:,} parameters in all" in text
    assert "beta_schedule=scaled_linear" in text
    assert "prediction_type=epsilon" in text
    assert "vae" not in text
    assert "4 frames of 16 x 16 pixels = content frame 3 x 16 x 16 + motion latent 4 x 4 x (8 + 8)" in text


def test_info_of_one_part_and_of_a_run(table, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    text = table(tiny_pipeline_dir / "autoencoder")
    assert "ContentMotionAutoencoder" in text
    assert "4 frames of 3 x 16 x 16 = content frame" in text
    assert "num_train_timesteps=1000" in table(tiny_pipeline_dir / "scheduler")
    shutil.copytree(tiny_pipeline_dir / "unet", tmp_path / "unet")
    assert "UNet2DConditionModel" in table(tmp_path), "the output folder of a training run"


def test_info_of_a_cache(table, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for number, clips in enumerate((3, 2)):
        tensors = {"content": torch.zeros(clips, 4, 8, 8), "motion": torch.zeros(clips, 6, 16, 8)}
        tensors["label"] = torch.zeros(clips, dtype=torch.int64)
        save_file(tensors, tmp_path / f"shard-{number:05d}.safetensors")
    (tmp_path / "manifest.json").write_text(json.dumps({"seed": 5, "clips": [16, 64, 64, 1]}))
    text = table(tmp_path)
    for words in ("5 clips in 2 shards", "4 x 8 x 8 F32", "6 x 16 x 8 F32", "16 x 64 x 64 x 1"):
        assert words in text


def test_info_as_json(tiny_pipeline_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_pipeline_dir), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == sum(part["parameters"] for part in found["parts"].values()) > 1000
    assert found["parts"]["unet"]["class"] == "UNet2DConditionModel"
    assert found["flow"].startswith("4 frames of 16 x 16 pixels = content frame")
    (tmp_path / "manifest.json").write_text(json.dumps({"seed": 5}))
    assert main(["info", str(tmp_path), "--json"]) == 0
    cache = json.loads(capsys.readouterr().out)
    assert (cache["clips"], cache["shards"], cache["manifest"]) == (0, 0, {"seed": 5})


def test_info_of_a_motion_model(table, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    """As train-motion leaves it: the scheduler's config in the same folder."""
    folder = Path(shutil.copytree(tiny_pipeline_dir / "motion_transformer", tmp_path / "motion_transformer"))
    shutil.copy(tiny_pipeline_dir / "motion_scheduler/scheduler_config.json", folder)
    text = table(folder)
    assert "MotionDiT" in text and "scheduler=DDIMScheduler" in text and "beta_schedule=linear" in text


def test_hashes_of_a_cache_are_those_of_its_makers(table, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    pipe = ContentMotionPipeline.from_pretrained(tiny_pipeline_dir)
    makers = {"vae": None} | {name: hash_weights(getattr(pipe, name)) for name in ("autoencoder", "text_encoder")}
    (tmp_path / "manifest.json").write_text(json.dumps(makers))
    text = table(tmp_path)
    for name in ("autoencoder", "text_encoder"):
        [line] = [line for line in text.splitlines() if f" {name} " in line]
        shown = re.findall("weights [0-9a-f]+", line)
        assert len(shown) == 1 and shown[0] in table(tiny_pipeline_dir / name)
        assert shown[0] in table(tiny_pipeline_dir)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model_index.json", '{"unet": 5}', "model_index.json: unet is 5, not a library and a class"),
        ("model_index.json", '{"unet": []}', "model_index.json: unet is [], not a library and a class"),
        ("model_index.json", '{"unet": [1, 2]}', "model_index.json: unet is [1, 2], not a library"),
        ("model_index.json", "[5]", "model_index.json: holds [5], where settings by name belong"),
        ("model_index.json", "[" * 99999, "model_index.json: not valid JSON"),
        ("unet/config.json", "null", "config.json: holds null"),
        ("autoencoder/config.json", "{}", "config.json: not an autoencoder's config (KeyError: 'num_frames')"),
        ("autoencoder/config.json", '{"num_frames": "x"', "config.json: not valid JSON"),
    ],
)
def test_info_of_broken_files_is_a_line(
    file: str, content: str, message: str, tiny_pipeline_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "pipe"))
    (folder / file).write_text(content)
    assert main(["info", str(folder)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_info_of_a_file_of_weights(table, tiny_pipeline_dir: Path) -> None:
    [file] = (tiny_pipeline_dir / "unet").glob("*.safetensors")
    text = table(file)
    pipe = ContentMotionPipeline.from_pretrained(tiny_pipeline_dir)
    assert f"{sum(p.numel() for p in pipe.unet.parameters()):,}" in text and "F32" in text


def test_info_of_a_generated_file(tmp_path: Path, make_frames, capsys: pytest.CaptureFixture[str], table) -> None:
    from contentmotion.video.write import write_video

    said = {"generated": "by a model", "model": "emoji", "prompt": "a [red] heart", "seed": "7"}
    for suffix in ("mp4", "webm", "gif"):
        write_video(tmp_path / f"a.{suffix}", make_frames(4, 16, 16), 8, said)
        text = table(tmp_path / f"a.{suffix}")
        assert all(value in text for value in said.values()), suffix
    assert main(["info", str(tmp_path / "a.mp4"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == said
    write_video(tmp_path / "camera.mp4", make_frames(4, 16, 16), 8)
    (tmp_path / "letter.mp4").write_text("no video")
    for name, message in (("camera.mp4", "does not say how it was made"), ("letter.mp4", "not a readable")):
        assert main(["info", str(tmp_path / name)]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_info_of_damaged_pictures(tmp_path: Path, make_frames, capsys: pytest.CaptureFixture[str]) -> None:
    """A png whose pixels end early, so that no chunk follows; a gif that says it is of 3 billion pixels."""
    write_picture(tmp_path / "a.png", Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)))
    data = (tmp_path / "a.png").read_bytes()
    place = data.index(b"IDAT")
    (tmp_path / "a.png").write_bytes(data[: place - 4] + (100).to_bytes(4) + data[place:])
    write_video(tmp_path / "b.gif", make_frames(3, 16, 16), fps=8)
    data = (tmp_path / "b.gif").read_bytes()
    (tmp_path / "b.gif").write_bytes(data[:6] + b"\xff\xff\xff\xff" + data[10:])
    for file in (tmp_path / "a.png", tmp_path / "b.gif"):
        assert main(["info", str(file)]) == 1
        line = f"contentmotion: error: {file}: not a checkpoint folder, and not a readable video or picture\n"
        assert capsys.readouterr().err == line


def test_info_points_to_what_is_near(tiny_pipeline_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_pipeline_dir.parent)]) == 1
    assert f"look at {tiny_pipeline_dir}" in capsys.readouterr().err


def test_info_of_an_incomplete_pipeline(
    tiny_pipeline_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "pipe"))
    shutil.rmtree(folder / "unet")
    assert main(["info", str(folder)]) == 1
    assert capsys.readouterr().err == f"contentmotion: error: {folder} is incomplete: no folder unet\n"


def test_export_assembles_parts(tiny_pipeline_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "half"))
    index = json.loads((half / "model_index.json").read_text())
    for name in ("autoencoder", "motion_transformer", "motion_scheduler"):
        del index[name]
        shutil.rmtree(half / name)
    (half / "model_index.json").write_text(json.dumps(index))
    output = tmp_path / "whole"
    words = [f"--pretrained_model_name_or_path={half}", f"--output_dir={output}"]
    words += [f"--autoencoder={tiny_pipeline_dir}", f"--motion_transformer={tiny_pipeline_dir}", "--guidance_scale=2.5"]
    assert main(["export", *words]) == 0
    assert capsys.readouterr() == (f"{output}\n", "")

    original = ContentMotionPipeline.from_pretrained(tiny_pipeline_dir)
    exported = ContentMotionPipeline.from_pretrained(output, dtype=torch.float16)
    for name in ("autoencoder", "motion_transformer", "text_encoder", "unet"):
        wanted, found = getattr(original, name).state_dict(), getattr(exported, name).state_dict()
        assert wanted.keys() == found.keys()
        for key, tensor in found.items():
            assert torch.equal(tensor, wanted[key].to(tensor.dtype)), (name, key)
    assert exported.unet.dtype == torch.float16
    assert (original.default_guidance_scale, exported.default_guidance_scale) == (4.0, 2.5)
    ways = [resolve_sampling(exported, 2, None, given, 1.0).guidance_scale for given in (None, 7.0)]
    assert ways == [2.5, 7.0], "what a call says goes before what the folder says"
    assert exported.motion_scheduler.config.beta_schedule == "linear"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing temporary is left"
    assert not [path for path in output.rglob("*.json") if str(tmp_path) in path.read_text()], "no path of this machine"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_export_in_other_precisions(dtype: str, tiny_pipeline_dir: Path, tmp_path: Path, table) -> None:
    words = [f"--pretrained_model_name_or_path={tiny_pipeline_dir}", f"--output_dir={tmp_path / 'out'}"]
    assert main(["export", *words, "--dtype", dtype]) == 0
    assert {"fp32": " F32", "bf16": " BF16"}[dtype] in table(tmp_path / "out")
