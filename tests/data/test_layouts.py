"""Every layout, from small files made on the spot and from the shared material."""

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from contentmotion.data.formats import LAYOUTS, ClipFolder, read_clip_folder
from contentmotion.data.layouts import csv_index
from contentmotion.data.layouts.csv_index import CsvIndex
from contentmotion.data.layouts.hf_datasets import TableVideo, read_dataset
from contentmotion.data.prompts import read_prompts
from contentmotion.data.records import ColumnRecords, Layout, Listing, Place
from contentmotion.video.reader import read_clip
from contentmotion.video.sources import TarMember


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def rows_of(folder: ClipFolder, root: Path) -> list[tuple[str, tuple[str, ...], int | None, str | None]]:
    """(path relative to the root, captions, label, split) of each record."""
    return [(r.path.relative_to(root).as_posix(), r.captions, r.label, r.split) for r in folder.records]  # type: ignore[union-attr]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)


def test_videofolder_parquet(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    rows = [
        {"file_name": "a.mp4", "text": "a dog", "label": "x", "depth_file_name": "depth/a.mp4"},
        {"file_name": "b.mp4", "text": "a cat", "label": None, "depth_file_name": None},
        {"file_name": "gone.mp4", "text": "gone", "label": None, "depth_file_name": None},
    ]
    write_parquet(tmp_path / "metadata.parquet", rows)
    folder = read_clip_folder(tmp_path)
    assert rows_of(folder, tmp_path) == [("a.mp4", ("a dog",), 0, None), ("b.mp4", ("a cat",), None, None)]
    assert folder.records[0].conditions == (("depth", tmp_path / "depth/a.mp4"),)
    assert folder.records[1].conditions == ()
    assert folder.problems == ["line 3: gone.mp4: no such file"]
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"metadata\.parquet: not readable as parquet"):
        read_clip_folder(tmp_path)


def test_metadata_elsewhere_under_any_name(tmp_path: Path) -> None:
    touch(tmp_path, "videos/a.mp4")
    (tmp_path / "list.csv").write_text("file_name,text\na.mp4,hello\n")
    folder = read_clip_folder(tmp_path / "videos", metadata_path=tmp_path / "list.csv")
    assert rows_of(folder, tmp_path) == [("videos/a.mp4", ("hello",), None, None)]
    with pytest.raises(FileNotFoundError, match="nothing.csv: no such file"):
        read_clip_folder(tmp_path / "videos", metadata_path=tmp_path / "nothing.csv")


def test_sidecar(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "deep/down/b.webm", "deep/c.gif")
    (tmp_path / "a.txt").write_text("a dog\n\nthe same dog\n")
    (tmp_path / "deep/down/b.txt").write_text("größer", encoding="utf-8")
    (tmp_path / "frames").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "frames/1.png")
    (tmp_path / "frames.txt").write_text("one picture")
    folder = read_clip_folder(tmp_path)
    assert folder.layout == "sidecar"
    assert rows_of(folder, tmp_path) == [
        ("a.mp4", ("a dog", "the same dog"), None, None),
        ("frames", ("one picture",), None, None),
        ("deep/c.gif", (), None, None),
        ("deep/down/b.webm", ("größer",), None, None),
    ]
    (tmp_path / "a.txt").write_text("größer", encoding="latin-1")
    folder = read_clip_folder(tmp_path)
    assert (len(folder.records), folder.problems) == (3, ["a.txt: not UTF-8 text (byte 2)"])


def test_videos_without_any_text(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp4", "a.mp4")
    assert rows_of(read_clip_folder(tmp_path), tmp_path) == [("a.mp4", (), None, None), ("b.mp4", (), None, None)]


def test_split_folders(tmp_path: Path) -> None:
    """Classes are those of all splits together, in one order."""
    touch(tmp_path, "train/run/a.mp4", "train/walk/b.mp4", "test/jump/c.mp4", "test/walk/d.mp4")
    folder = read_clip_folder(tmp_path)
    assert folder.class_names == ("jump", "run", "walk")
    assert rows_of(folder, tmp_path) == [
        ("test/jump/c.mp4", (), 0, "test"),
        ("test/walk/d.mp4", (), 2, "test"),
        ("train/run/a.mp4", (), 1, "train"),
        ("train/walk/b.mp4", (), 2, "train"),
    ]
    assert len(read_clip_folder(tmp_path, split="train").records) == 2
    with pytest.raises(ValueError, match=r"no split 'val' \(there are: test, train\)"):
        read_clip_folder(tmp_path, split="val")


def test_split_folders_of_a_layout_with_lists(tmp_path: Path) -> None:
    for split in ("train", "test"):
        touch(tmp_path / split, "p/1.mp4")
        (tmp_path / split / "list.csv").write_text(f"videoid,page_dir,name\n1,p,{split}\n")
    folder = read_clip_folder(tmp_path)
    assert folder.layout == "webvid"
    assert rows_of(folder, tmp_path) == [
        ("test/p/1.mp4", ("test",), None, "test"),
        ("train/p/1.mp4", ("train",), None, "train"),
    ]
    assert [record.captions for record in read_clip_folder(tmp_path, split="train").records] == [("train",)]


def make_ucf101(root: Path) -> None:
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("1 Archery\n2 Bowling\n")
    train, test = ["Archery/v_a1.avi", "Bowling/v_b1.avi"], ["Archery/v_a2.avi", "Bowling/v_b2.avi"]
    (lists / "trainlist01.txt").write_text(f"{train[0]} 1\r\n{train[1]} 2\r\n")
    (lists / "testlist01.txt").write_text("\n".join(test))
    (lists / "trainlist02.txt").write_text(f"{test[0]} 1\n")
    (lists / "testlist02.txt").write_text(train[0])
    touch(root / "UCF-101", *train, *test)


def test_ucf101(tmp_path: Path) -> None:
    make_ucf101(tmp_path)
    train = read_clip_folder(tmp_path, split="train")
    assert (train.layout, train.class_names) == ("ucf101", ("Archery", "Bowling"))
    assert rows_of(train, tmp_path / "UCF-101") == [
        ("Archery/v_a1.avi", (), 0, "train"),
        ("Bowling/v_b1.avi", (), 1, "train"),
    ]
    second = read_clip_folder(tmp_path, split="train", split_number=2)
    assert rows_of(second, tmp_path / "UCF-101") == [("Archery/v_a2.avi", (), 0, "train")]
    (tmp_path / "prompts.json").write_text('{"Archery": "archery", "Bowling": ["bowling", "a man bowls"]}')
    texts = read_clip_folder(tmp_path, split="test", class_prompts=tmp_path / "prompts.json")
    assert [r.captions for r in texts.records] == [("archery",), ("bowling", "a man bowls")]
    (tmp_path / "prompts.json").write_text('{"Archery": "archery"}')
    with pytest.raises(ValueError, match="no prompt for the class 'Bowling'"):
        read_clip_folder(tmp_path, class_prompts=tmp_path / "prompts.json")
    with pytest.raises(OSError, match=r"trainlist03\.txt"):
        read_clip_folder(tmp_path, split_number=3)


@pytest.mark.parametrize(
    ("number", "train", "test"),
    [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)],
)
def test_ucf101_official_lists(tmp_path: Path, shared_data: Path, number: int, train: int, test: int) -> None:
    """The real lists, with empty files in the videos' places."""
    lists = shared_data / "text"
    for split in ("train", "test"):
        for line in (lists / f"ucf101_{split}list{number:02d}.txt").read_text().splitlines():
            touch(tmp_path, line.split()[0])
    sizes = {}
    for split in ("train", "test"):
        folder = read_clip_folder(tmp_path, split=split, metadata_path=lists, split_number=number)
        assert folder.problems == []
        assert folder.class_names is not None and len(folder.class_names) == 101
        for record in folder.records:
            assert record.path.parent.name == folder.class_names[record.label]  # type: ignore[union-attr,index]
        sizes[split] = len(folder.records)
    assert sizes == {"train": train, "test": test}


WEBVID = """videoid,contentUrl,duration,page_dir,name
21179416,https://example.org/a.mp4,PT00H00M11S,006001_006050,"Aerial shot, winter forest"
5629184,https://example.org/b.mp4,PT00H00M29S,071501_071550,"He said ""hello""
twice"
1063125190,https://example.org/c.mp4,PT00H00M09S,Senior couple
9,https://example.org/d.mp4,PT00H00M09S,000001_000050,A last one"""


def test_webvid(tmp_path: Path) -> None:
    (tmp_path / "results_2M_train.csv").write_text(WEBVID)
    (tmp_path / "results_2M_val.csv").write_text("videoid,contentUrl,duration,page_dir,name\n1,u,PT1S,p,held out\n")
    touch(tmp_path, "videos/006001_006050/21179416.mp4", "videos/071501_071550/5629184.mp4", "videos/p/1.mp4")
    train = read_clip_folder(tmp_path, split="train")
    assert train.layout == "webvid"
    assert rows_of(train, tmp_path / "videos") == [
        ("006001_006050/21179416.mp4", ("Aerial shot, winter forest",), None, "train"),
        ("071501_071550/5629184.mp4", ('He said "hello"\ntwice',), None, "train"),
    ]
    assert train.problems == [
        "results_2M_train.csv: row 3: 4 cells, 5 expected",
        "videos/000001_000050/9.mp4: no such file",
    ]
    assert [r.captions for r in read_clip_folder(tmp_path).records][-1] == ("held out",)
    assert pickle.loads(pickle.dumps(train.records)) == train.records


@pytest.mark.parametrize("block", [100, 1000, 1 << 20])
def test_csv_index_is_csv(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows found block by block are those that Python's reader finds."""
    import csv

    monkeypatch.setattr(csv_index, "BLOCK", block)
    rng = np.random.default_rng(0)
    words = ["plain", "with, comma", 'with "quotes"', "line\nbreak", "ü", ""]
    rows = [[words[k] for k in rng.integers(len(words), size=3)] for _ in range(200)]
    with open(tmp_path / "rows.csv", "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([["a", "b", "c"], *rows])
    index = CsvIndex(tmp_path / "rows.csv")
    assert [list(index[k].values()) for k in range(len(index))] == rows
    assert index.bad_rows == []


def test_csv_with_an_open_quotation(tmp_path: Path) -> None:
    (tmp_path / "results_train.csv").write_text('videoid,page_dir,name\n1,p,"never closed\n2,p,fine\n')
    with pytest.raises(ValueError, match="a quotation that begins after byte 22 is never closed"):
        read_clip_folder(tmp_path)


def write_manifest(root: Path, num_rows: int) -> None:
    """A WebVid list of videos that are not there."""
    with open(root / "results_10M_train.csv", "w") as handle:
        handle.write("videoid,contentUrl,duration,page_dir,name\n")
        for first in range(0, num_rows, 1000):
            handle.writelines(
                f"{k},https://example.org/videos/{k}/preview/stock.mp4,PT00H00M17S,{first:08d}_{first + 999:08d},"
                f'"Video {k}, with a caption that is as long as those which people train large models on"\n'
                for k in range(first, min(first + 1000, num_rows))
            )


# Opens a list, deals it to 64 ranks, and draws a batch; prints what that took.
OPEN_MANIFEST = """
import json, resource, sys, time
from pathlib import Path
from contentmotion.data.samplers import StepSampler
from contentmotion.data.formats import read_clip_folder
start, root, num_rows = time.monotonic(), Path(sys.argv[1]), int(sys.argv[2])
records = read_clip_folder(root, split="train").records
assert len(records) == num_rows
shards = [records[rank::64] for rank in range(64)]
assert sum(len(shard) for shard in shards) == num_rows
for index, _ in next(iter(StepSampler(num_rows, 256, seed=0))):
    record, page = records[index], index // 1000 * 1000
    assert record.path == root / f"{page:08d}_{page + 999:08d}/{index}.mp4"
    assert record.captions[0].startswith(f"Video {index}, with")
    assert shards[index % 64][index // 64] == record
used = resource.getrusage(resource.RUSAGE_SELF)
peak = used.ru_maxrss  # on Linux, the peak of the process that started this one counts in it
if (status := Path("/proc/self/status")).exists():
    peak = int(status.read_text().split("VmHWM:")[1].split()[0])
cost = {"wall": time.monotonic() - start, "cpu": used.ru_utime + used.ru_stime, "bytes": peak * 1024}
print(json.dumps(cost))
"""


def open_manifest(root: Path, num_rows: int) -> dict[str, float]:
    """What `OPEN_MANIFEST` takes, imports included: seconds (on the clock, of the processor) and bytes of memory."""
    write_manifest(root, num_rows)
    words = [sys.executable, "-c", OPEN_MANIFEST, str(root), str(num_rows)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def test_large_manifest(tmp_path: Path) -> None:
    """More rows than are looked for on disk one by one."""
    assert open_manifest(tmp_path, 200_000)["bytes"] < 1e9  # most of it is torch


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_webvid_10m(tmp_path: Path) -> None:
    cost = open_manifest(tmp_path, 10_700_000)
    print(cost)
    assert cost["cpu"] < 30  # not the clock: the machine may be busy with other things
    assert cost["bytes"] < 2e9


def test_msrvtt_json(tmp_path: Path) -> None:
    content = {
        "videos": [{"video_id": "video0", "split": "train"}, {"video_id": "video1", "split": "test"}],
        "sentences": [
            {"video_id": "video0", "caption": "a car"},
            {"video_id": "video1", "caption": "a man"},
            {"video_id": "video0", "caption": "a red car"},
        ],
    }
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps(content))
    touch(tmp_path, "videos/all/video0.mp4", "videos/all/video1.mp4")
    folder = read_clip_folder(tmp_path)
    assert folder.layout == "msrvtt"
    assert rows_of(folder, tmp_path) == [
        ("videos/all/video0.mp4", ("a car", "a red car"), None, "train"),
        ("videos/all/video1.mp4", ("a man",), None, "test"),
    ]
    # With the 1k-A lists beside it, they choose the videos; the train captions still come from the JSON.
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video_id,sentence\nret0,msr1,video1,one man\n")
    (tmp_path / "MSRVTT_train.9k.csv").write_text("video_id\nvideo0\n")
    assert sorted(rows_of(read_clip_folder(tmp_path), tmp_path)) == [
        ("videos/all/video0.mp4", ("a car", "a red car"), None, "train"),
        ("videos/all/video1.mp4", ("one man",), None, "test"),
    ]
    (tmp_path / "MSRVTT_data.json").write_text('{"videos": [{"video_id": 1}], "sentences": 7')
    with pytest.raises(ValueError, match=r"MSRVTT_data\.json: not MSR-VTT's JSON"):
        read_clip_folder(tmp_path)


def test_msrvtt_entries_of_wrong_types_are_lines(tmp_path: Path) -> None:
    captions = {
        "a": ["a cat", ""],
        "b": ["b", 5],
        "c": [None],
        "d\ud83d": ["d"],
        "e": ["half a pair: \ud83d"],
        "f": ["f"],
    }
    content = {
        "videos": [{"video_id": name, "split": ["test"] if name == "f" else "train"} for name in captions],
        "sentences": [{"video_id": name, "caption": text} for name, texts in captions.items() for text in texts],
    }
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps(content))
    touch(tmp_path, *(f"{name}.mp4" for name in "abcef"))
    folder = read_clip_folder(tmp_path)
    assert rows_of(folder, tmp_path) == [("a.mp4", ("a cat",), None, "train")]
    assert folder.problems == [
        "b.mp4: captions must be texts",
        "c: no caption",
        "d\\ud83d.mp4: no file is called that",
        "e.mp4: captions must be texts",
        "f.mp4: split must be a text",
    ]


def test_msrvtt_csv_that_is_not_utf_8(tmp_path: Path) -> None:
    head = "video_id,sentence\n" + "video0,a man\n" * 1000  # more than is read to tell the columns
    (tmp_path / "test.csv").write_bytes(head.encode() + "video1,größer\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"^\S+/test\.csv: not CSV in UTF-8"):
        read_clip_folder(tmp_path)


def test_msrvtt_1ka_csv(tmp_path: Path, shared_data: Path) -> None:
    lists = shared_data / "text/msrvtt_1kA_test_captions.csv"
    touch(tmp_path, "TestVideo/video9770.mp4", "TestVideo/video7020.mp4")
    folder = read_clip_folder(tmp_path, split="test", metadata_path=lists)
    assert rows_of(folder, tmp_path) == [
        ("TestVideo/video9770.mp4", ("a person is connecting something to system",), None, "test"),
        ("TestVideo/video7020.mp4", ("a woman creating a fondant baby and flower",), None, "test"),
    ]
    assert len(folder.problems) == 998


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def videos(clip_folder: Path) -> list[bytes]:
    return [(clip_folder / f"videos/{k}.mp4").read_bytes() for k in range(5)]


def test_shard_cut_between_two_members(tmp_path: Path, videos: list[bytes]) -> None:
    """tarfile takes such a file for a whole one."""
    write_tar(tmp_path / "a.tar", {"0.mp4": videos[0], "1.mp4": videos[1]})
    second = 512 + -(-len(videos[0]) // 512) * 512  # where the second member's header begins
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:second])
    folder = read_clip_folder(tmp_path)
    assert [record.path.read_bytes() for record in folder.records] == [videos[0]]
    assert folder.problems == [f"{tmp_path}/a.tar: cut short between two members; only what comes before is used"]


def test_webdataset(tmp_path: Path, clip_folder: Path, videos: list[bytes]) -> None:
    write_tar(
        tmp_path / "shard-000.tar",
        {
            "000.mp4": videos[0],
            "000.txt": b"a moving square\nthe same",
            "000.json": b'{"label": "b"}',
            "sub/001.json": b'{"caption": "another", "label": "a"}',
            "sub/001.mp4": videos[1],
            "002.txt": b"no video",
            "003.mp4": videos[3],
            "003.json": b"{broken",
            "004.mp4": videos[3],
            "004.txt": "größer".encode("latin-1"),
        },
    )
    write_tar(tmp_path / "shard-001.tar", {"0.mp4": videos[2], "1.mp4": videos[4]})
    cut = (tmp_path / "shard-001.tar").read_bytes()
    (tmp_path / "shard-001.tar").write_bytes(cut[: len(videos[2]) + len(videos[4]) // 2 + 1024])
    (tmp_path / "shard-002.tar").write_bytes(b"no tar at all" * 100)
    folder = read_clip_folder(tmp_path)
    assert (folder.layout, folder.class_names) == ("webdataset", ("a", "b"))
    assert [(str(r.path), r.captions, r.label) for r in folder.records] == [
        (f"{tmp_path}/shard-000.tar/000.mp4", ("a moving square", "the same"), 1),
        (f"{tmp_path}/shard-000.tar/sub/001.mp4", ("another",), 0),
        (f"{tmp_path}/shard-001.tar/0.mp4", (), None),
    ]
    for record, number in zip(folder.records, (0, 1, 2), strict=True):
        assert isinstance(record.path, TarMember)
        assert record.path.read_bytes() == videos[number]
        found = read_clip(record.path, num_frames=10).frames
        np.testing.assert_array_equal(found, read_clip(clip_folder / f"videos/{number}.mp4", num_frames=10).frames)
    starts = [
        "shard-000.tar/002: no video",
        "shard-000.tar/003: not JSON",
        "shard-000.tar/004: its text is not UTF-8 (byte 2)",
        "shard-001.tar: ",
        "shard-002.tar: ",
    ]
    assert len(folder.problems) == len(starts)
    for problem, start in zip(folder.problems, starts, strict=True):
        assert problem.startswith(f"{tmp_path}/{start}")
    (tmp_path / "shard-000.tar").unlink()
    with pytest.raises(OSError, match="shard-000.tar"):
        folder.records[0].path.read_bytes()


def test_webdataset_pattern(tmp_path: Path, videos: list[bytes]) -> None:
    for number in (8, 9, 10):
        write_tar(tmp_path / f"{number:03d}.tar", {"a.mp4": videos[0], "a.txt": b"text"})
    folder = read_clip_folder(f"{tmp_path}/{{009..011}}.tar")
    assert [record.path.tar.name for record in folder.records] == ["009.tar", "010.tar"]  # type: ignore[union-attr]
    assert folder.problems == [f"{tmp_path}/011.tar: No such file or directory"]
    assert len(read_clip_folder(tmp_path / "008.tar").records) == 1


def test_an_empty_video_of_a_table_is_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"another")
    path = str(tmp_path / "a.mp4")
    table = [{"video": value} for value in ({"bytes": b"", "path": path}, {"bytes": None, "path": path}, path, None)]
    assert [TableVideo(table, row, "saved").read_bytes() for row in range(3)] == [b"", b"another", b"another"]
    with pytest.raises(OSError, match="saved, row 3: holds neither bytes nor a path"):
        TableVideo(table, 3, "saved").read_bytes()


@pytest.mark.parametrize("kind", ["bytes", "path", "video"])
def test_saved_dataset(tmp_path: Path, clip_folder: Path, videos: list[bytes], kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    values: list[Any] = videos[:3]
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["even", "odd"])}
    if kind == "bytes":
        features["video"] = datasets.Value("binary")
    else:
        values = [str(clip_folder / f"videos/{k}.mp4") for k in range(3)]
        features["video"] = datasets.Video(decode=False) if kind == "video" else datasets.Value("string")
    rows = {"text": ["zero", "one", "two"], "label": [0, 1, -1], "video": values}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    datasets.DatasetDict({"train": table.select([0, 1]), "test": table.select([2])}).save_to_disk(tmp_path / "saved")
    folder = read_clip_folder(tmp_path / "saved")
    assert (folder.layout, folder.class_names) == ("datasets", ("even", "odd"))
    found = [(r.captions, r.label, r.split) for r in folder.records]
    assert found == [(("zero",), 0, "train"), (("one",), 1, "train"), (("two",), None, "test")]
    test = read_clip_folder(tmp_path / "saved", split="test")
    assert test.records[0].path.read_bytes() == videos[2]
    np.testing.assert_array_equal(
        read_clip(test.records[0].path, num_frames=10).frames,  # type: ignore[arg-type]
        read_clip(clip_folder / "videos/2.mp4", num_frames=10).frames,
    )


@pytest.mark.parametrize(
    ("values", "classes", "numbers"),
    [
        (["run", "jump", "run", ""], ("jump", "run"), [1, 0, 1, None]),
        ([10, 9, -1, 10], ("9", "10"), [1, 0, None, 1]),
        ([["x"], [], ["y"], []], None, [None] * 4),
    ],
)
def test_saved_dataset_with_plain_labels(tmp_path: Path, values: list[Any], classes: Any, numbers: list[Any]) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"video": [f"{k}.mp4" for k in range(4)], "label": values})
    parts = {"train": table.select([0]), "test": table.select([1, 2, 3])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    folder = read_clip_folder(tmp_path / "saved")
    assert (folder.class_names, [record.label for record in folder.records]) == (classes, numbers)
    assert bool(folder.notes) == (classes is None)


def test_named_layout_that_is_not_there(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4")
    for layout in ("videofolder", "ucf101", "webvid", "msrvtt", "webdataset"):
        with pytest.raises(ValueError, match=f"no {layout} data; expected"):
            read_clip_folder(tmp_path, layout=layout)  # type: ignore[arg-type]
    (tmp_path / "list.csv").write_text("file,text\n")
    with pytest.raises(ValueError, match=f"^{tmp_path}: no webdataset data"):
        read_clip_folder(tmp_path, layout="webdataset", metadata_path=tmp_path / "list.csv")
    assert read_clip_folder(tmp_path, layout="sidecar").class_names is None, "not taken for class folders"


def test_prompt_lists(tmp_path: Path, shared_data: Path) -> None:
    prompts = read_prompts(shared_data / "text/ucf101_prompts.json")
    assert len(prompts) == 101
    assert prompts[4] == "gymnast performing on a balance beam"
    (tmp_path / "p.json").write_text('["a", "b "]')
    (tmp_path / "p.txt").write_text("a\n\nb \n")
    assert read_prompts(tmp_path / "p.json") == read_prompts(tmp_path / "p.txt") == ["a", "b"]
    for content, message in (
        ("[1]", "texts only"),
        ("{", "not JSON"),
        ('{"a": 1}', "expected an object"),
        ("[]", "no prompts"),
    ):
        (tmp_path / "p.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_prompts(tmp_path / "p.json")


@pytest.mark.parametrize("name", ["./nowhere", "../nowhere", "/nowhere/at/all"])
def test_a_path_that_is_not_there_is_no_data_set_of_the_hub(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: no such file or folder"):
        read_dataset(name)


def test_a_row_in_the_table_is_a_layout(tmp_path: Path) -> None:
    """From outside the package: what docs/architecture.md shows."""
    touch(tmp_path, "0001_a dog runs.mp4", "0002_a cat.mp4")
    (tmp_path / "toy.list").write_text("")

    def read(place: Place) -> Listing:
        records = ColumnRecords(place.folder)
        for path in sorted(place.folder.glob("*.mp4")):
            records.append(path.name, captions=[path.stem.partition("_")[2]])
        return Listing(records)

    with pytest.raises(ValueError, match="unknown layout 'toy': choose from auto, datasets, .*, classes"):
        read_clip_folder(tmp_path, layout="toy")
    LAYOUTS["toy"] = Layout("toy", lambda place: (place.path / "toy.list").is_file(), read)
    try:
        named = read_clip_folder(tmp_path, layout="toy")
        assert [record.captions for record in named.records] == [("a dog runs",), ("a cat",)]
        assert read_clip_folder(tmp_path).layout == "sidecar", "the first row that says yes"
    finally:
        del LAYOUTS["toy"]


def test_what_is_no_data_is_passed_over(tmp_path: Path) -> None:
    """Hidden files (macOS puts a ._x.mp4 beside each x.mp4), dangling links, and pipes, which would wait for ever."""
    touch(tmp_path, "a/x.mp4", "a/._x.mp4", "a/._x.txt", ".trash/y.mp4")
    (tmp_path / "a/x.txt").write_text("a dog")
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nowhere")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "notes.csv")
    os.mkfifo(tmp_path / "a/z.mp4")
    os.mkfifo(tmp_path / "a/notes.json")
    folder = read_clip_folder(tmp_path)
    assert (folder.layout, folder.problems) == ("sidecar", [])
    assert [(record.path, record.captions) for record in folder.records] == [(tmp_path / "a/x.mp4", ("a dog",))]
    (tmp_path / "a/x.txt").unlink()
    classes = read_clip_folder(tmp_path)
    assert [record.path for record in classes.records] == [tmp_path / "a/x.mp4"]
    assert classes.class_names == ("a",)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "data/own/a.mp4", "elsewhere/b.mp4")
    (tmp_path / "data/own/a.txt").write_text("a")
    (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "data")
    folder = read_clip_folder(tmp_path / "data")
    assert [str(record.path.relative_to(tmp_path)) for record in folder.records] == [
        "data/linked/b.mp4",
        "data/own/a.mp4",
    ]  # type: ignore[union-attr]
    assert (folder.problems, folder.notes) == ([], ["linked/loop: a link to a folder that is read elsewhere"])


def test_videos_at_any_depth_are_no_classes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        touch(tmp_path, *(f"frames/{name}/{k}.png" for k in range(3)))
    assert [record.path.name for record in read_clip_folder(tmp_path / "frames").records] == ["one", "two"]
    touch(tmp_path, "deep/a/b/c.mp4")
    assert read_clip_folder(tmp_path / "deep").layout == "sidecar"
    touch(tmp_path, *(f"ids/id{k}/{k}.mp4" for k in range(30)))
    ids = read_clip_folder(tmp_path / "ids")
    assert (ids.layout, ids.class_names, len(ids.records)) == ("sidecar", None, 30), "called after their one video"


def test_dots_in_the_names_of_a_shard(tmp_path: Path) -> None:
    """What a known kind ends with is the extension, as in names that say from when to when."""
    (tmp_path / "a.mp4").write_bytes(b"x")
    for name, text in (("vid_12.5_17.0", "a dog"), ("vid_17.0_21.5", "a cat")):
        (tmp_path / f"{name}.txt").write_text(text)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("vid_12.5_17.0", "vid_17.0_21.5"):
            tar.add(tmp_path / "a.mp4", f"deep/{name}.MP4")
            tar.add(tmp_path / f"{name}.txt", f"deep/{name}.txt")
        tar.add(tmp_path / "a.mp4", "twice.mp4")
        tar.add(tmp_path / "a.mp4", "twice.webm")
        tar.add(tmp_path / "a.mp4", "other.seg.bin")
    folder = read_clip_folder(tmp_path / "0.tar")
    assert [record.captions for record in folder.records] == [("a dog",), ("a cat",)]
    assert [problem.rpartition("/")[2] for problem in folder.problems] == [
        "twice: two videos with this key", "other: no video with this key",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="names more than 1000000 files"):
        read_clip_folder(f"{tmp_path}/{{0..1000000000}}.tar")


def test_captions_called_prompt_and_captions_called_otherwise(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for key, cells in (("a", {"prompt": "a dog"}), ("b", {"description": "a cat", "url": "x"})):
            (tmp_path / "cells.json").write_text(json.dumps(cells))
            tar.add(tmp_path / "a.mp4", f"{key}.mp4")
            tar.add(tmp_path / "cells.json", f"{key}.json")
    folder = read_clip_folder(tmp_path / "0.tar")
    assert [record.captions for record in folder.records] == [("a dog",), ()]
    assert folder.notes == ["b: no caption in its json (there are: description, url)"]
    datasets = pytest.importorskip("datasets")
    rows = {"video": ["a.mp4"], "description": ["a cat"]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    assert list(read_clip_folder(tmp_path / "saved").notes) == [
        "no column with captions or labels (there are: video, description)"
    ]
    datasets.Dataset.from_dict({"video": ["a.mp4"], "prompt": ["a cat"]}).save_to_disk(tmp_path / "prompts")
    assert read_clip_folder(tmp_path / "prompts").records[0].captions == ("a cat",)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"file": "a.mp4", "text": "a", "weight": 1' + "0" * 400 + "}", "a.mp4: weight must be a positive number"),
        ('{"file": "a.mp4", "text": "a", "split": ["train"]}', "a.mp4: split must be a text"),
        ("[" * 100_000, "not JSON: nested too deep"),
        ('{"file": "a.mp4", "text": "half a pair: \\ud83d"}', "a.mp4: captions must be texts"),
        ('{"file": "\\ud83d.mp4", "text": "a"}', "\\ud83d.mp4: no file is called that"),
    ],
)
def test_rows_of_wrong_types_are_lines(tmp_path: Path, row: str, reason: str) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "metadata.jsonl").write_text(f'{row}\n{{"file": "b.mp4", "text": "good"}}\n')
    folder = read_clip_folder(tmp_path)
    assert [record.captions for record in folder.records] == [("good",)]
    assert len(folder.problems) == 1 and folder.problems[0].startswith(f"line 1: {reason}")


def test_many_splits_and_long_captions(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "videos/p/1.mp4")
    rows = (json.dumps({"file": "a.mp4", "text": "a", "split": f"s{k}"}) for k in range(33_000))
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    assert len(read_clip_folder(tmp_path, split="s32999").records) == 1
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "list.csv").write_text("videoid,page_dir,name\n1,p," + "a" * 200_000 + "\n")
    assert len(read_clip_folder(tmp_path).records[0].captions[0]) == 200_000
