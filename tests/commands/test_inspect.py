"""Command `inspect`, on small real videos and damaged ones."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import warm
from contentmotion.cli import main
from contentmotion.commands import inspect as inspect_command
from contentmotion.commands.inspect import clip_arguments, latent_shape, look_at_all
from contentmotion.config import InspectConfig
from contentmotion.data.records import ClipRecord
from contentmotion.video.sources import StoredVideo
from contentmotion.video.write import write_video

CLIP = ["--num_frames", "8", "--height", "16", "--width", "16"]


@pytest.fixture(scope="module")
def mixed_folder(tmp_path_factory: pytest.TempPathFactory, clip_folder: Path, make_frames: Callable) -> Path:
    """Five good clips of 10 frames, one of 4 frames, three that cannot be read, one that is not there."""
    root = tmp_path_factory.mktemp("mixed")
    shutil.copytree(clip_folder / "videos", root / "videos")
    write_video(root / "videos/short.mp4", make_frames(4, 24, 32), fps=8)
    whole = (root / "videos/0.mp4").read_bytes()
    (root / "videos/cut.mp4").write_bytes(whole[: len(whole) // 3])
    (root / "videos/empty.mp4").touch()
    (root / "videos/text.mp4").write_text("not a video" * 100)
    names = ["0", "1", "2", "3", "4", "short", "cut", "empty", "text", "gone"]
    rows = [{"file_name": f"videos/{name}.mp4", "text": f"clip {min(k, 8)} here"} for k, name in enumerate(names)]
    rows[1]["text"] = rows[0]["text"]
    (root / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return root


def run(root: Path, output: Path, *words: str) -> dict:
    status = main(["inspect", str(root), *CLIP, "--num_workers", "1", "--output_dir", str(output), *words])
    assert status == 0
    return json.loads((output / "inspect.json").read_text())


def test_captions_that_the_text_encoder_cuts_are_counted(
    clip_folder: Path, tiny_pipeline_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(clip_folder / "videos", tmp_path / "data/videos")
    rows = [{"file_name": f"videos/{k}.mp4", "caption": "a square " * (1 + 200 * (k == 1))} for k in range(3)]
    (tmp_path / "data/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("--decode", "false", "--pretrained_model_name_or_path")
    assert run(tmp_path / "data", tmp_path / "out", *words, str(tiny_pipeline_dir))["captions"]["cut"] == 1
    assert "1 longer than the text encoder takes" in " ".join(capsys.readouterr().out.split())
    assert run(tmp_path / "data", tmp_path / "out", *words, "stabilityai/no-model")["captions"]["cut"] is None
    line = "captions that stabilityai/no-model cuts are not counted: it is no folder on this machine"
    assert line in capsys.readouterr().err


def test_inspect(mixed_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(mixed_folder, tmp_path / "out")
    assert report["data"]["listed"] == 10
    assert report["data"]["left_out"] == ["line 10: videos/gone.mp4: no such file"]
    assert [Path(bad["path"]).name for bad in report["bad"]] == ["cut.mp4", "empty.mp4", "text.mp4"]
    assert all(bad["reason"] and bad["path"] not in bad["reason"] for bad in report["bad"])
    short = [(Path(entry["path"]).name, entry["reason"]) for entry in report["too_short"]]
    assert short == [("short.mp4", "4 frames, 8 needed")]
    assert report["videos"]["readable"] == 6
    assert report["videos"]["sizes"] == {"32x24": 6}
    assert report["videos"]["codecs"] == {"h264": 6}
    assert report["videos"]["frames"] == {"min": 4, "median": 10, "mean": 9, "max": 10, "sum": 54}
    assert report["videos"]["fps"]["median"] == 8
    assert report["videos"]["seconds"]["max"] == 1.25
    captions = report["captions"]
    assert (captions["captions"], captions["distinct"], captions["duplicates"]) == (9, 8, 1)
    assert captions["most_repeated"] == {"clip 0 here": 2}
    assert captions["words"]["median"] == 3
    recipe = report["recipe"]
    assert (recipe["videos_used"], recipe["clips"], recipe["clips_without_overlap"]) == (5, 5, 5)
    assert sum(recipe["dropped"].values()) == 5
    assert recipe["dropped"]["too short"] == recipe["dropped"]["not usable in the list"] == 1
    printed = capsys.readouterr().out
    for line in (*report["data"]["left_out"], *(f"{bad['path']}: {bad['reason']}" for bad in report["bad"])):
        assert line in printed.replace("\n", "") or line in printed
    with Image.open(tmp_path / "out/inspect.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[0] > 400
    assert pixels.std() > 20, "something is drawn"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.yaml", "inspect.json", "inspect.png"]


def test_videos_named_after_what_they_show(
    make_frames, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No captions for ``encode``, but for ``cut`` and ``train``: said where some are missing, and only there."""
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "data").mkdir()
    write_video(tmp_path / "data/a dog runs.mp4", make_frames(10, 24, 32), fps=8)
    run(tmp_path / "data", tmp_path / "out")
    assert "1 videos without (cut and train take what their names say)" in capsys.readouterr().out
    (tmp_path / "data/a dog runs.txt").write_text("a dog that runs")
    run(tmp_path / "data", tmp_path / "out")
    assert "0 videos without" in (printed := capsys.readouterr().out) and "what their names say" not in printed


def test_headers_only(mixed_folder: Path, tmp_path: Path) -> None:
    """Without decoding, too few frames show, and so does what is no video at all."""
    report = run(mixed_folder, tmp_path, "--decode", "false", "--frame_stride", "2", "--num_clips_per_video", "3")
    assert {"empty.mp4", "text.mp4"} <= {Path(bad["path"]).name for bad in report["bad"]}
    assert len(report["too_short"]) == 6, "15 frames are needed"
    assert report["recipe"]["clips"] == report["cache"]["bytes"] == 0
    assert {entry["reason"] for entry in report["too_short"]} == {"4 frames, 15 needed", "10 frames, 15 needed"}


def test_part_of_a_data_set(clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--num_videos", "2", "--num_clips_per_video", "3", "--split", "null", "--json"]
    report = run(clip_folder, tmp_path, *words)
    assert json.loads(capsys.readouterr().out) == report, "for programs: nothing else is printed"
    assert report["data"]["looked_at"] == 2
    assert report["recipe"]["estimated"]
    assert report["recipe"]["clips"] == 15
    assert report["classes"] == {"even": 2}, "the first and the last"


def test_recipes_of_other_commands(clip_folder: Path, tmp_path: Path) -> None:
    """The sizes of CMD on Stable Diffusion 2.1: 64 KiB of content and 24 KiB of motion, for 1 MiB of latents."""
    recipe = Path(__file__).resolve().parents[2] / "configs/webvid-sd21/autoencoder.yaml"
    report = run(clip_folder, tmp_path, "--config", str(recipe), "--height", "512", "--width", "1024")
    cache = report["cache"]
    assert (cache["content_shape"], cache["motion_shape"]) == ([4, 64, 128], [8, 8, 96])
    report = run(
        clip_folder, tmp_path, "--config", str(recipe), "--num_frames", "16", "--height", "512", "--width", "1024"
    )
    cache = report["cache"]
    assert cache["bytes_per_clip"] == (64 + 24) * 1024
    assert report["recipe"]["clips"] == 0, "the clips have 10 frames"


def test_buckets(two_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four squares and four wide videos, each counted, cut and cached at its bucket's size."""
    words = ["--buckets", "4x16x16", "2x16x24", "--num_clips_per_video", "2"]
    for more in ([], ["--decode", "false"]):
        report = run(two_shapes, tmp_path, *words, *more)
        assert report["recipe"]["buckets"] == {"4x16x16": 4, "2x16x24": 4}
        assert "4x16x16 (4), 2x16x24 (4)" in " ".join(capsys.readouterr().out.split())
        assert (report["recipe"]["clips"], report["recipe"]["clips_without_overlap"]) == (16, 4 * 2 + 4 * 5)
    shapes = report["cache"]["buckets"]
    assert shapes["2x16x24"] == {"content_shape": [3, 16, 24], "motion_shape": [8, 2, 20]}
    sizes = [3 * 16 * 16 + 8 * 4 * 16, 3 * 16 * 24 + 8 * 2 * 20]
    assert report["cache"]["bytes"] == 2 * 8 * sum(sizes) and report["cache"]["bytes_per_clip"] == sum(sizes)
    assert report["cache"]["bytes_of_all_latents"] == 2 * 8 * (4 * 3 * 16 * 16 + 2 * 3 * 16 * 24)
    report = run(two_shapes, tmp_path, "--buckets", "40x16x16", "--decode", "false")
    assert report["recipe"]["dropped"] == {"too short": 8} and report["cache"]["bytes"] == 0


def test_cache_of_saved_models(tmp_path: Path, clip_folder: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/config.json").write_text('{"latent_channels": 12, "block_out_channels": [8, 8, 8]}')
    assert latent_shape(str(tmp_path / "vae")) == (12, 4)
    (tmp_path / "vae/config.json").write_text('{"latent_channels": 16, "block_out_channels": [1, 2, 3, 4]}')
    assert latent_shape(str(tmp_path)) == latent_shape(str(tmp_path / "vae")) == (16, 8)
    assert latent_shape(None) == (3, 1)
    (tmp_path / "config.json").write_text('{"patch_size": 4, "motion_channels": 5}')
    report = run(clip_folder, tmp_path / "out", "--autoencoder", str(tmp_path))
    assert report["cache"]["motion_shape"] == [5, 8, 8]
    assert report["cache"]["bytes"] == 2 * (3 * 16 * 16 + 5 * 8 * 8) * 4, "fp16, four clips"


def test_what_is_no_vae_is_refused_before_videos_are_looked_at(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 2}')
    monkeypatch.setattr(inspect_command, "look_at_all", None)
    words = ["--vae", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert main(["inspect", str(clip_folder), *CLIP, *words]) == 1
    assert f"{tmp_path} is no image VAE" in capsys.readouterr().err and not (tmp_path / "out").exists()


@dataclass(frozen=True)
class Crash(StoredVideo):
    """Takes the process down when it is read."""

    def __str__(self) -> str:
        return "crash.mp4"

    def read_bytes(self) -> bytes:
        os._exit(1)


def test_processes(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes find what one finds; a video that crashes its process is named, the others are still read."""
    monkeypatch.setattr(inspect_command, "MIN_PER_PROCESS", 1)
    monkeypatch.setattr(inspect_command, "CHUNK", 2)
    monkeypatch.setattr("multiprocessing.get_context", lambda kind: warm.CONTEXT)  # "spawn", but for what it costs
    paths = [clip_folder / f"videos/{k}.mp4" for k in range(5)]
    records = [ClipRecord(path, (), None, None) for path in paths]
    clip = clip_arguments(InspectConfig(train_data_dir="", num_frames=8)) | {"height": None, "width": None}
    alone = list(look_at_all(records, range(5), clip, True, 1))
    assert [facts.status for facts in alone] == ["good"] * 5
    records.insert(3, ClipRecord(Crash(), (), None, None))
    found = sorted(look_at_all(records, range(6), clip, True, 2), key=lambda facts: facts.index)
    assert (found[3].status, found[3].reason) == ("bad", "the decoder crashed")
    del found[3]
    assert [replace(facts, index=k) for k, facts in enumerate(found)] == alone


def test_what_is_left_when_a_process_crashed_is_read_together(
    clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was in work by one process for each crash and one more, the rest by a pool: not by one for each video."""
    monkeypatch.setattr(inspect_command, "MIN_PER_PROCESS", 1)
    monkeypatch.setattr(inspect_command, "CHUNK", 1)
    monkeypatch.setattr("multiprocessing.get_context", lambda kind: warm.CONTEXT)
    pools, look = [], inspect_command._look_in_processes
    monkeypatch.setattr(inspect_command, "_look_in_processes", lambda *work: pools.append(1) or look(*work))
    path = clip_folder / "videos/0.mp4"
    records = [ClipRecord(Crash() if k in (0, 20) else path, (), None, None) for k in range(24)]
    clip = clip_arguments(InspectConfig(train_data_dir="", num_frames=8)) | {"height": None, "width": None}
    found = sorted(look_at_all(records, range(24), clip, True, 2), key=lambda facts: facts.index)
    assert [facts.index for facts in found if facts.reason == "the decoder crashed"] == [0, 20]
    assert [facts.index for facts in found] == list(range(24)) and sum(facts.status == "good" for facts in found) == 22
    assert len(pools) <= 3 * 2 + 1


def test_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "nowhere"), "--output_dir", str(tmp_path / "out")]) == 1
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
