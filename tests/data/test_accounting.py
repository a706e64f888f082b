"""Every file below a data set's folder is counted once: used, or skipped and why."""

import json
import os
import shutil
from pathlib import Path

import pytest

from contentmotion.cli import main
from contentmotion.data.accounting import account_for_files
from contentmotion.data.formats import read_clip_folder


@pytest.fixture
def mixed(clip_folder: Path, tmp_path: Path) -> Path:
    """3 good videos, one of another split, and a file of every other fate."""
    root = shutil.copytree(clip_folder, tmp_path / "data")
    rows = [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]
    (root / "videos/3.mp4").write_bytes((root / "videos/3.mp4").read_bytes()[:500])
    shutil.copy(root / "videos/0.mp4", root / "videos/unlisted.mp4")
    shutil.copy(root / "videos/0.mp4", root / "videos/mute.mp4")
    rows.append({"file_name": "videos/mute.mp4"})
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "videos/._0.mp4").touch()
    (root / "paper.pdf").touch()
    os.mkfifo(root / "pipe.mp4")
    (root / "gone.mp4").symlink_to("nowhere.mp4")
    (root / "again").symlink_to("videos")
    return root


def test_every_file_has_a_fate(mixed: Path) -> None:
    folder = read_clip_folder(mixed, split="train")
    account = account_for_files(folder, {str(mixed / "videos/3.mp4"): "bad"})
    assert account is not None
    assert {fate: entry["count"] for fate, entry in account["fates"].items()} == {
        "used": 3, "captions, lists and maps of these": 1, "bad": 1, "of another split": 1,
        "left out of the list: neither caption nor label (there are: file_name)": 1, "not in the list of videos": 1,
        "hidden": 1, "no video by the name (.pdf)": 1, "no regular file": 1, "a link to nothing": 1,
        "a link to a folder that is read elsewhere": 1,
    }  # fmt: skip
    there = [path for path in mixed.rglob("*") if path.name != "videos" and "again/" not in str(path)]
    assert account["found"] == len(there)


def test_inspect_prints_it(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--train_data_dir", str(mixed), "--num_frames", "4", "--height", "16", "--width", "16"]
    assert main(["inspect", *words, "--output_dir", str(tmp_path / "out")]) == 0
    files = json.loads((tmp_path / "out/inspect.json").read_text())["data"]["files"]
    assert files["fates"]["bad"] == {"count": 1, "examples": ["videos/3.mp4"]}
    assert f"{files['found']} files: 3 used; 1 captions, lists and maps of these; 1 " in capsys.readouterr().out


def test_frames_texts_and_shards(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "a.txt", "b.mp4", "b.txt", "c.txt/x.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    account = account_for_files(read_clip_folder(tmp_path), {str(tmp_path / "a"): "too short"})
    assert account is not None and account["fates"]["used"]["examples"] == ["b.mp4"]
    assert account["fates"]["too short"]["examples"] == ["a/1.png", "a/2.png"]
    assert account["found"] == 6
