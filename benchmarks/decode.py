"""Clips per second of video readers, side by side in one run, one thread each.

    python benchmarks/decode.py --videos 8 --clips 40

Every reader gets the same list of (video, first frame) and returns 16 frames at 256x256, resized and cropped, for
each: opening the file, seeking and resizing included. Readers that are not installed (decord, OpenCV, torchcodec) are
named and left out. The videos are made on the spot: h264 at 30 fps, 10 s, key frames as x264 sets them (at most 250
frames apart), 256x256 and 640x360. Each reader's frames are compared with those of a full decode from the first frame.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import av
import numpy as np
import torch

from contentmotion.video.reader import read_clip, read_video
from contentmotion.video.resize import fit_frame

FRAMES, SIZE, LENGTH, FPS = 16, 256, 300, 30
Reader = Callable[[Path, int], np.ndarray]  # (video, first frame) -> uint8 (16, 256, 256, 3)


def make_video(path: Path, height: int, width: int, seed: int) -> None:
    """A textured picture under a moving camera, with noise, as h264."""
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.integers(0, 256, (1, 3, height // 8, width // 8), dtype=np.uint8)).float()
    size = (height + 200, width + 400)
    scene = torch.nn.functional.interpolate(coarse, size, mode="bicubic")[0].permute(1, 2, 0).clamp(0, 255).numpy()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "23"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for k in range(LENGTH):
            top, left = int(100 + 90 * np.sin(k / 40)), k * 400 // LENGTH
            frame = scene[top : top + height, left : left + width] + random.normal(0, 3, (height, width, 1))
            picture = av.VideoFrame.from_ndarray(frame.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def fit(frames: np.ndarray | torch.Tensor) -> np.ndarray:
    """uint8 (t, h, w, 3) -> (t, 256, 256, 3), by the same code for every reader."""
    return np.stack([fit_frame(np.asarray(frame), SIZE, SIZE) for frame in frames])


def ours(path: Path, start: int) -> np.ndarray:
    """This package; (start + 0.5) / slack is the position that falls on the frame `start`."""
    position = (start + 0.5) / (LENGTH - FRAMES + 1)
    return read_clip(path, num_frames=FRAMES, position=position, height=SIZE, width=SIZE).frames


def with_decord() -> Reader:
    """decord, seeking to the key frame before."""
    import decord

    def read(path: Path, start: int) -> np.ndarray:
        video = decord.VideoReader(str(path), num_threads=1)
        return fit(video.get_batch(list(range(start, start + FRAMES))).asnumpy())

    return read


def with_opencv() -> Reader:
    """OpenCV's VideoCapture, set to the first frame."""
    import cv2

    cv2.setNumThreads(1)

    def read(path: Path, start: int) -> np.ndarray:
        video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        video.set(cv2.CAP_PROP_POS_FRAMES, start)
        frames = [cv2.cvtColor(video.read()[1], cv2.COLOR_BGR2RGB) for _ in range(FRAMES)]
        video.release()
        return fit(np.stack(frames))

    return read


def with_torchcodec(seek_mode: str) -> Reader:
    """torchcodec, one thread."""
    from torchcodec.decoders import VideoDecoder

    def read(path: Path, start: int) -> np.ndarray:
        video = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=seek_mode)
        return fit(video.get_frames_in_range(start, start + FRAMES).data)

    return read


def measure(read: Reader, clips: list[tuple[Path, int]], truth: dict[Path, np.ndarray]) -> dict[str, Any]:
    """Clips per second of processor time, the best of three rounds, and the worst difference from a full decode."""
    rounds, wall = [], []
    for _ in range(3):
        started, clock = time.process_time(), time.perf_counter()
        for path, start in clips:
            read(path, start)
        rounds.append(time.process_time() - started)
        wall.append(time.perf_counter() - clock)
    errors = [
        np.abs(read(path, start).astype(int) - truth[path][start : start + FRAMES]).mean() for path, start in clips[:10]
    ]
    return {
        "clips_per_cpu_s": round(len(clips) / min(rounds), 2),
        "clips_per_s": round(len(clips) / min(wall), 2),
        "mean_difference": round(float(max(errors)), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=4, help="videos per size")
    parser.add_argument("--clips", type=int, default=24, help="clips per round")
    parser.add_argument("--output", type=Path, help="JSON file for the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    makers: dict[str, Callable[[], Reader]] = {
        "contentmotion": lambda: ours,
        "decord": with_decord,
        "OpenCV": with_opencv,
        "torchcodec exact": lambda: with_torchcodec("exact"),
        "torchcodec approximate": lambda: with_torchcodec("approximate"),
    }
    readers: dict[str, Reader] = {}
    for name, make in makers.items():
        try:
            readers[name] = make()
        except Exception as error:  # whatever a library raises that does not fit this machine
            print(f"{name}: left out, {type(error).__name__}: {str(error).splitlines()[0]}")
    table: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder:
        for height, width in ((256, 256), (360, 640)):
            paths = [Path(folder) / f"{width}x{height}-{k}.mp4" for k in range(args.videos)]
            for k, path in enumerate(paths):
                make_video(path, height, width, k)
            truth = {path: fit(read_video(path).frames) for path in paths}
            random = np.random.default_rng(0)
            clips = [(paths[k % len(paths)], int(random.integers(LENGTH - FRAMES + 1))) for k in range(args.clips)]
            for name, read in readers.items():
                row = table.setdefault(f"{width}x{height}", {})[name] = measure(read, clips, truth)
                print(f"{width}x{height}  {name:24s} {row}", flush=True)
    if args.output:
        args.output.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
