"""Clips from tar shards behind URLs and pipes: split over processes and workers, mixed, resumed, broken."""

import io
import json
import os
import subprocess
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("webdataset")

from contentmotion.commands.encode import encode  # noqa: E402
from contentmotion.config import AutoencoderSizes, EncodeConfig, TrainAutoencoderConfig
from contentmotion.data.cache import LatentCache  # noqa: E402
from contentmotion.data.clips import ClipShape, collate  # noqa: E402
from contentmotion.data.formats import read_clip_folder  # noqa: E402
from contentmotion.data.streaming import StreamingClips, StreamSource, expand_urls, is_stream  # noqa: E402
from contentmotion.train.autoencoder import train_autoencoder  # noqa: E402
from contentmotion.video.write import write_video  # noqa: E402

SHAPE = ClipShape(num_frames=4, height=16, width=16)
NUM_SHARDS, PER_SHARD = 6, 5


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, make_frames) -> Path:
    """6 tar files of 5 videos: with a .txt, or a .json; 8 frames of 24x32."""
    root = tmp_path_factory.mktemp("shards")
    for k in range(NUM_SHARDS):
        with tarfile.open(root / f"part-{k:03d}.tar", "w") as tar:
            for j in range(PER_SHARD):
                number = k * PER_SHARD + j
                write_video(root / "clip.mp4", make_frames(8, 24, 32, hue=8 * number), fps=8)
                add(tar, f"{number:04d}.mp4", (root / "clip.mp4").read_bytes())
                if number % 2:
                    add(tar, f"{number:04d}.txt", f"square {number}\n".encode())
                else:
                    text = {"text": f"square {number}", "label": number}
                    add(tar, f"{number:04d}.json", json.dumps(text).encode())
    (root / "clip.mp4").unlink()
    return root


@pytest.fixture(scope="module")
def server(shards: Path) -> Iterator[str]:
    """A real web server on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shards))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def urls(shards: Path) -> list[str]:
    return [str(shards / f"part-{k:03d}.tar") for k in range(NUM_SHARDS)]


def name_of(item: dict) -> int:
    return int(Path(item["path"]).stem)


def test_shards_without_end_are_refused() -> None:
    with pytest.raises(ValueError, match="names more than 1000000 files"):
        expand_urls("https://x/{0..1000000000}.tar")
    with pytest.raises(ValueError, match="names more than 1000000 files"):
        expand_urls("https://x/{0..9999}/{0..9999}.tar")


def test_a_pipe_that_says_nothing_is_a_line(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contentmotion.data.streaming.MAX_SILENCE", 0.2)
    stream = StreamingClips(["pipe:exec sleep 60"], ClipShape(4, 16, 16), 4)
    with pytest.raises(ValueError, match=r"pipe:exec sleep 60: nothing came for 0\.2 s"):
        stream.peek(1)


def test_a_pipe_among_a_thousand_open_files(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl, resource = pytest.importorskip("fcntl"), pytest.importorskip("resource")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1200:
        pytest.skip("fewer files may be open")
    start = subprocess.Popen.__init__

    def start_high(self: subprocess.Popen, *words: Any, **settings: Any) -> None:
        start(self, *words, **settings)
        low = self.stdout
        self.stdout = os.fdopen(fcntl.fcntl(low, fcntl.F_DUPFD, 1100), "rb")
        low.close()

    monkeypatch.setattr(subprocess.Popen, "__init__", start_high)
    assert len(StreamingClips([f"pipe:cat {shards}/part-000.tar"], ClipShape(4, 16, 16), 4).peek(2)) == 2


def test_what_is_a_stream() -> None:
    for data in ("https://host/part-{000..005}.tar", "pipe:cat x.tar", "s3://bucket/x.tar", "hf://datasets/a/b.tar"):
        assert is_stream(data), data
    for data in ("data/folder", "/data/part-{000..005}.tar", "user/dataset", "C:\\videos"):
        assert not is_stream(data), data
    assert expand_urls("https://h/{08..10}.tar::pipe:cat x.tar") == [
        "https://h/08.tar", "https://h/09.tar", "https://h/10.tar", "pipe:cat x.tar",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["http", "pipe"])
def test_an_epoch_over_the_net_and_through_a_pipe(shards: Path, server: str, kind: str) -> None:
    name = f"{server}/part-{{000..005}}.tar" if kind == "http" else f"pipe:cat {shards}/part-{{000..005}}.tar"
    items = list(StreamingClips(expand_urls(name), SHAPE, window=8, num_epochs=1))
    assert sorted(map(name_of, items)) == list(range(30))
    assert [name_of(item) for item in items] != list(range(30))
    for item in items:
        number = name_of(item)
        assert item["frames"].shape == (4, 3, 16, 16)
        assert (item["captions"], item["caption"]) == ((f"square {number}",), f"square {number}")
        assert item["label"] == (-1 if number % 2 else number)
        assert item["skipped"] == []
        assert item["frames"][:, 2].float().mean() == pytest.approx(8 * number, abs=40)  # the video of this name


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_and_workers_share_an_epoch(shards: Path, workers: int) -> None:
    seen: Counter[int] = Counter()
    for rank in range(2):
        stream = StreamingClips(urls(shards), SHAPE, window=4, num_epochs=1)
        stream = replace(stream, seed=3, process_index=rank, num_processes=2, batch_size=2, first_batch=0)
        for batch in DataLoader(stream, batch_size=2, collate_fn=collate, num_workers=workers):
            seen.update(int(Path(path).stem) for path in batch["path"])
    assert seen == Counter(range(30))


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_the_middle_of_an_epoch(shards: Path, workers: int) -> None:
    def read(first: int, count: int) -> list[dict]:
        stream = StreamingClips(urls(shards), SHAPE, window=7)
        stream = replace(stream, seed=1, process_index=0, num_processes=1, batch_size=3, first_batch=first)
        loader = DataLoader(stream, batch_size=3, collate_fn=collate, num_workers=workers)
        return [batch for batch, _ in zip(loader, range(count), strict=False)]

    whole = read(0, 14)  # past the end of the epoch, which is 10 batches
    for first in (1, 4, 11):
        for again, before in zip(read(first, 14 - first), whole[first:], strict=True):
            assert again["path"] == before["path"]
            assert torch.equal(again["frames"], before["frames"])
    assert [b["path"] for b in whole[10:14]] != [b["path"] for b in whole[:4]]  # another epoch, another order


def cut(tar: Path, name: str, after: int) -> bytes:
    """The beginning of a tar file, to so many bytes after the header of one of the files in it."""
    with tarfile.open(tar) as opened:
        return tar.read_bytes()[: opened.getmember(name).offset + after]


@pytest.fixture
def broken(shards: Path, tmp_path: Path) -> list[str]:
    """A good shard, one that breaks off, one that is missing, and one with two bad samples among five."""
    (tmp_path / "cut.tar").write_bytes(cut(shards / "part-001.tar", "0008.mp4", 700))
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        good = tarfile.open(shards / "part-002.tar")  # noqa: SIM115
        for k, member in enumerate(good.getmembers()):
            content = good.extractfile(member)
            assert content is not None
            add(tar, member.name, b"not a video" if k in (2, 4) else content.read())
        good.close()
    return [urls(shards)[0], *(str(tmp_path / name) for name in ("cut.tar", "missing.tar", "bad.tar"))]


def test_broken_shards_and_bad_samples_are_skipped_and_named(broken: list[str]) -> None:
    items = list(StreamingClips(broken, SHAPE, window=1, num_epochs=1))
    assert set(map(name_of, items)) == {0, 1, 2, 3, 4, 5, 6, 10, 13, 14}  # 7 may lack files
    skipped = [line for item in items for line in item["skipped"]]
    for word in ("missing.tar", "cut.tar", "0011.mp4", "0012.mp4"):
        assert sum(word in line for line in skipped) == 1, (word, skipped)


def test_too_few_shards_and_nothing_but_bad_samples(shards: Path, tmp_path: Path) -> None:
    stream = StreamingClips(urls(shards)[:2], SHAPE, window=1)
    with pytest.raises(ValueError, match="2 shards are too few for 3 processes"):
        next(iter(replace(stream, seed=0, process_index=0, num_processes=3, batch_size=1, first_batch=0)))
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        add(tar, "a.mp4", b"not a video")
        add(tar, "b.txt", b"no video")
    with pytest.raises(ValueError, match="bad samples in a row"):
        next(iter(StreamingClips([str(tmp_path / "bad.tar")], SHAPE, window=1)))


@pytest.fixture
def config(tmp_path: Path, server: str, save_autoencoder: Callable[[Path], Path]) -> EncodeConfig:
    save_autoencoder(tmp_path / "autoencoder")
    return EncodeConfig(
        train_data_dir=f"{server}/part-{{000..005}}.tar", autoencoder=str(tmp_path / "autoencoder"), split=None,
        output_dir=str(tmp_path / "cache"), num_frames=4, height=16, width=16, encode_batch_size=2,
    )  # fmt: skip


def test_texts_of_a_stream_are_those_of_shards_on_disk(config: EncodeConfig, shards: Path, tmp_path: Path) -> None:
    with tarfile.open(shards / "part-000.tar") as tar:
        video = tar.extractfile("0000.mp4").read()  # type: ignore[union-attr]
    texts = {
        "0.json": b'{"title": "a cat", "text": "no"}',
        "1.json": b'{"text": "a dog"}',
        "2.json": b'{"title": 5}',
        "3.json": b'{"title": "c", "label": Infinity}',
        "4.txt": "gr\u00f6\u00dfer".encode("latin-1"),
    }
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, text in texts.items():
            add(tar, f"{name[0]}.mp4", video)
            add(tar, name, text)
    config = replace(config, train_data_dir=f"pipe:cat {tmp_path}/a.tar", caption_column="title", encode_batch_size=9)
    (batch,) = StreamSource(config).read(0)
    assert [item["caption"] for item in batch.items] == ["a cat"]
    assert [line.rpartition("/")[2] for line in batch.skipped] == [
        "1: no title in its json (there are: text)",
        "2: its json holds no captions that are texts",
        "3: cannot convert float infinity to integer",
        "4: its text is not UTF-8 (byte 2)",
    ]
    problems = read_clip_folder(tmp_path / "a.tar", caption_column="title").problems
    assert [line.rpartition("/")[2] for line in problems] == [
        line.rpartition("/")[2] for line in batch.skipped if "infinity" not in line
    ]


def test_a_stream_is_encoded_shard_by_shard(config: EncodeConfig, tmp_path: Path) -> None:
    encode(config)
    cache = LatentCache(config.output_dir)
    assert cache.shard_sizes.tolist() == [PER_SHARD] * NUM_SHARDS
    assert [name_of(cache[k]) for k in range(30)] == list(range(30))
    assert [cache[k]["caption"] for k in (0, 29)] == ["square 0", "square 29"]
    # With workers, and in two goes: the same files.
    (tmp_path / "cache").rename(tmp_path / "before")
    encode(replace(config, dataloader_num_workers=2))
    (tmp_path / "cache/shard-00002.safetensors").unlink()
    encode(config)
    for path in (tmp_path / "before").glob("[si]*"):
        assert path.read_bytes() == (tmp_path / "cache" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("after", [0, 700])  # between two files, in the middle of one
def test_a_broken_shard_is_not_cached_but_tried_again(config: EncodeConfig, shards: Path, after: int) -> None:
    whole = (shards / "part-003.tar").read_bytes()
    try:
        (shards / "part-003.tar").write_bytes(cut(shards / "part-003.tar", "0018.mp4", after))
        with pytest.raises(ValueError, match="1 of 6 shards of the stream could not be read"):
            encode(config)
        encode(replace(config, max_bad_fraction=0.2))
        assert len(LatentCache(config.output_dir)) == 25
    finally:
        (shards / "part-003.tar").write_bytes(whole)
    encode(config)
    assert len(LatentCache(config.output_dir)) == 30


def test_training_on_a_stream_resumes_exactly(server: str, tmp_path: Path) -> None:
    config = TrainAutoencoderConfig(
        train_data_dir=f"{server}/part-{{000..005}}.tar", num_frames=4, height=16, width=16,
        model=AutoencoderSizes(hidden_size=16, depth=1, num_heads=2, head_dim=8, motion_channels=2),
        max_train_steps=4, train_batch_size=3, logging_steps=1,
        checkpointing_steps=1, checkpoints_total_limit=9, validation_steps=4, report_to="none", mixed_precision="no",
        lr_warmup_steps=1, dataloader_num_workers=2, output_dir=str(tmp_path / "whole"),
    )  # fmt: skip
    train_autoencoder(config)
    assert (tmp_path / "whole/preview-000004.png").exists()
    halves = replace(config, output_dir=str(tmp_path / "halves"))
    train_autoencoder(replace(halves, max_train_steps=1))
    train_autoencoder(halves)
    name = "checkpoint-000004/model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "halves" / name).read_bytes()
