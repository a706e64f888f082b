import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contentmotion.data.formats import read_clip_folder
from contentmotion.data.records import ClipRecord


def touch(root: Path, *names: str) -> None:
    """Empty files: the list is read without opening a video."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_csv(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "metadata.csv").write_text('file,caption,split\na.mp4,"a dog, running",train\nb.mp4,a cat,\n')
    folder = read_clip_folder(tmp_path)
    assert folder.records == [
        ClipRecord(tmp_path / "a.mp4", ("a dog, running",), None, "train"),
        ClipRecord(tmp_path / "b.mp4", ("a cat",), None, None),
    ]
    assert folder.class_names is None
    assert folder.problems == []


def test_jsonl(clip_folder: Path) -> None:
    folder = read_clip_folder(clip_folder)
    assert [record.path.name for record in folder.records] == [f"{k}.mp4" for k in range(5)]
    assert folder.records[1].captions == ("square 1", "a moving square, number 1")
    assert folder.class_names == ("even", "odd")
    assert [record.label for record in folder.records] == [0, 1, 0, 1, 0]


def test_weights(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "metadata.csv").write_text("file,caption,weight\na.mp4,x,0.5\nb.mp4,y,\n")
    assert [record.weight for record in read_clip_folder(tmp_path).records] == [0.5, 1.0]


@pytest.mark.parametrize("file_column", ["file", "file_name"])
@pytest.mark.parametrize("caption_column", ["caption", "text"])
def test_column_names(tmp_path: Path, file_column: str, caption_column: str) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "metadata.csv").write_text(f"{file_column},{caption_column}\na.mp4,hello\n")
    assert read_clip_folder(tmp_path).records[0].captions == ("hello",)


def test_text_encoding(tmp_path: Path) -> None:
    """Spreadsheets write a byte-order mark; captions have any letters; latin-1 is refused, not garbled."""
    touch(tmp_path, "a.mp4")
    (tmp_path / "metadata.csv").write_text("file,caption\na.mp4,größer\n", encoding="utf-8-sig")
    assert read_clip_folder(tmp_path).records[0].captions == ("größer",)
    (tmp_path / "metadata.csv").write_text("file,caption\na.mp4,größer\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"metadata\.csv: not UTF-8"):
        read_clip_folder(tmp_path)


def test_splits(clip_folder: Path) -> None:
    train, test = read_clip_folder(clip_folder, split="train"), read_clip_folder(clip_folder, split="test")
    assert (len(train.records), len(test.records)) == (4, 1)
    assert train.class_names == test.class_names == ("even", "odd"), "classes are those of the whole folder"
    with pytest.raises(ValueError, match=r"no split 'validation' \(there are: test, train\)"):
        read_clip_folder(clip_folder, split="validation")


def test_numeric_labels_keep_their_order(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "metadata.csv").write_text("file,label\na.mp4,10\nb.mp4,9\nc.mp4,0\n")
    folder = read_clip_folder(tmp_path)
    assert folder.class_names == ("0", "9", "10")
    assert [record.label for record in folder.records] == [2, 1, 0]
    rows = [{"file": "a.mp4", "label": 10}, {"file": "b.mp4", "label": 0}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert [record.label for record in read_clip_folder(tmp_path).records] == [1, 0]


def test_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "run/b.avi", "run/a.MP4", "jump/c.gif", "run/notes.txt", "empty/notes.txt", "readme.md")
    (tmp_path / "jump/frames").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "jump/frames/0001.png")
    folder = read_clip_folder(tmp_path)
    assert folder.class_names == ("jump", "run")
    found = [(record.path.relative_to(tmp_path).as_posix(), record.label) for record in folder.records]
    assert found == [("jump/c.gif", 0), ("jump/frames", 0), ("run/a.MP4", 1), ("run/b.avi", 1)]
    assert read_clip_folder(tmp_path, split="train").records == folder.records  # no metadata names splits


def test_captions_for_missing_files_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "metadata.csv").write_text('file,caption\nvideos/x.mp4,gone\n\na.mp4,"two\nlines"\nvideos/y.mp4,gone\n')
    folder = read_clip_folder(tmp_path)
    assert [record.path.name for record in folder.records] == ["a.mp4"]
    expected = ["line 2: videos/x.mp4: no such file", "line 6: videos/y.mp4: no such file"]
    assert folder.problems == expected


def test_files_outside_the_folder_are_said(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.mp4", "x.mp4", "depth.mp4")
    rows = [{"file_name": "../x.mp4"}, {"file_name": str(tmp_path / "data/a.mp4")}]
    rows.append({"file_name": "a.mp4", "depth_file_name": "../depth.mp4"})
    (tmp_path / "data/metadata.jsonl").write_text("".join(json.dumps(row | {"text": "a"}) + "\n" for row in rows))
    folder = read_clip_folder(tmp_path / "data")
    assert len(folder.records) == 3
    [note] = folder.notes
    assert note.startswith("2 rows of the list name files outside this folder") and "../x.mp4" in note


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_caption_column(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a.mp4")
    rows = {"metadata.csv": "file,title,text\na.mp4,a cat,no\n", "metadata.jsonl": '{"file":"a.mp4","title":"a cat"}\n'}
    (tmp_path / name).write_text(rows[name])
    assert read_clip_folder(tmp_path, caption_column="title").records[0].captions == ("a cat",)
    with pytest.raises(ValueError, match=r"a\.mp4: no words \(there are: file, title"):
        read_clip_folder(tmp_path, caption_column="words")


def test_caption_column_where_captions_have_no_name(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "a.txt")
    with pytest.raises(ValueError, match="--caption_column is for the layouts .*videofolder.*; this is sidecar"):
        read_clip_folder(tmp_path, caption_column="title")


def test_names_cannot_command_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file,caption\n\x1b[2J\x07x.mp4,a\na.mp4,b\n")
    touch(tmp_path, "a.mp4")
    assert read_clip_folder(tmp_path).problems == ["line 2: \\x1b[2J\\x07x.mp4: no such file"]
    (tmp_path / "metadata.csv").write_text(f"file,caption\n{'x' * 5000}.mp4,a\na.mp4,b\n")
    assert len(read_clip_folder(tmp_path).problems) == 1, "a name that is too long for one"


def test_a_pipe_in_place_of_a_shard_is_not_waited_for(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.mp4"))
    os.mkfifo(tmp_path / "1.tar")
    folder = read_clip_folder(str(tmp_path / "{0..1}.tar"))
    assert len(folder.records) == 1 and folder.problems == [f"{tmp_path / '1.tar'}: no regular file"]


def test_malformed_csv_lines(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "metadata.csv").write_text(
        'file,caption\na.mp4,a dog, running\nb.mp4,"fi"ne\nb.mp4,fine\n,nothing\nb.mp4\na.mp4,  \n'
    )
    folder = read_clip_folder(tmp_path)
    assert [record.captions for record in folder.records] == [("fine",)]
    starts = [
        "line 2: more cells",
        "line 3: not CSV",
        "line 5: no file",
        "line 6: b.mp4: neither",
        "line 7: a.mp4",
    ]
    assert len(folder.problems) == len(starts)
    for problem, start in zip(folder.problems, starts, strict=True):
        assert problem.startswith(start)


def test_malformed_jsonl_lines(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    lines = [
        '{"file": "a.mp4", "caption": "fine"}',
        '{"file": "a.mp4", "caption": }',
        "[1, 2]",
        '{"caption": "no file"}',
        '{"file": "a.mp4"}',
        '{"file": "a.mp4", "captions": ["x", 3]}',
        '{"file": "a.mp4", "captions": {"en": "x"}}',
        '{"file": 7, "caption": "x"}',
        '{"file": "a.mp4", "caption": "x", "weight": 0}',
        '{"file": "a.mp4", "caption": "x", "weight": "often"}',
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    folder = read_clip_folder(tmp_path)
    assert len(folder.records) == 1
    assert [problem.split(":")[0] for problem in folder.problems] == [f"line {n}" for n in range(2, 11)]
    assert folder.problems[0] == "line 2: not JSON: Expecting value at column 30"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", "file,caption\n", "no rows"),
        ("metadata.csv", "", "no rows"),
        ("metadata.csv", "a.mp4,a dog\n", "first line must name the columns"),
        (
            "metadata.csv",
            "file,caption\nx.mp4,gone\ny.mp4,gone\n",
            r"line 2: x.mp4: no such file \(2 problems\)",
        ),
        ("metadata.jsonl", "", "no rows"),
        ("metadata.jsonl", "{broken\n", "line 1: not JSON"),
    ],
)
def test_metadata_without_anything_usable(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_clip_folder(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_folder_without_videos(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", "folder/notes.txt")
    with pytest.raises(ValueError, match="no videos; expected metadata.csv, .jsonl or"):
        read_clip_folder(tmp_path)


def test_no_such_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    for name in ("nowhere", "a.mp4"):
        with pytest.raises(NotADirectoryError, match="no such folder"):
            read_clip_folder(tmp_path / name)


def test_shared_emoji_folder(shared_data: Path) -> None:
    root = shared_data / "fluent-emoji-anim"
    assert len(read_clip_folder(root).records) == 477
    heldout = read_clip_folder(root, split="heldout")
    assert len(heldout.records) == 12
    assert all("medium-dark" in record.captions[0] for record in heldout.records)
