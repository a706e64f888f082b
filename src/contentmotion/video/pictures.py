"""Frames of animated pictures and of folders of pictures, through Pillow."""

from __future__ import annotations

import re
import struct
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from contentmotion.video.sources import source_name
from contentmotion.video.timeline import Limits, SlowVideoError, Timeline, VideoError, VideoInfo

LEAST_SIDE = 8  # pixels of a picture to animate: less shows nothing
DEFAULT_FPS = 8.0  # of folders, and of files that do not say
MAX_FRAMES = 100_000
FRAME_SUFFIXES = (".png", ".jpg", ".jpeg")
# What Pillow raises on damaged files, besides its own errors.
_PICTURE_ERRORS = (OSError, EOFError, SyntaxError, ValueError, LookupError, struct.error, Image.DecompressionBombError)


class PictureVideo:
    """A gif, webp, png or jpeg; a context manager.

    Args:
        handle: The open file; closed with this.
        limits: What it may cost.
        deadline: `time.monotonic()` at which reading stops.

    Attributes:
        pixel_aspect: Always 1.

    Raises:
        VideoError: Not a picture, or beyond the limits.
    """

    pixel_aspect = 1.0

    def __init__(self, handle: BinaryIO, limits: Limits, deadline: float) -> None:
        self._handle, self._limits, self._deadline = handle, limits, deadline
        try:
            with _picture_errors():
                self._image = _open_picture(handle, limits)
        except BaseException:
            handle.close()
            raise

    def __enter__(self) -> PictureVideo:
        return self

    def __exit__(self, *_: object) -> None:
        self._image.close()
        self._handle.close()

    def describe(self) -> VideoInfo:
        """Size, frames and duration; goes through the whole file, since no header says the duration."""
        timeline = self.timeline()
        width, height = self._image.size
        codec = (self._image.format or "").lower()
        return VideoInfo(
            timeline.num_frames, timeline.num_frames / timeline.fps, timeline.fps, height, width, 0, False, codec
        )

    def timeline(self, *, exact: bool = True) -> Timeline:
        """When each frame is shown, always by the frames' own durations; one that stands for several counts as such."""
        durations = np.array([image.info.get("duration") or 0 for image in self._images()], dtype=np.float64) / 1000
        total = float(durations.sum())
        if not total:
            self._repeats = np.ones(len(durations), dtype=np.int64)
            return Timeline(len(durations), DEFAULT_FPS)
        self._repeats = _frames_merged(durations)
        if self._repeats.sum() > MAX_FRAMES:
            raise VideoError(f"lasts {self._repeats.sum()} of its shortest frames, more than {MAX_FRAMES} are allowed")
        each = np.repeat(durations / self._repeats, self._repeats)
        times = np.concatenate([[0.0], np.cumsum(each)[:-1]])
        return Timeline(len(times), len(times) / total, times)

    def frames(self, indices: np.ndarray | None, timeline: Timeline) -> Iterator[np.ndarray]:
        """RGB uint8 (h, w, 3) of the frames with these rising indices (None: all), transparent parts white.

        Raises:
            VideoError: Damaged, or past the deadline.
        """
        counts = self._repeats
        if indices is not None:
            counts = np.bincount(np.repeat(np.arange(len(counts)), counts)[indices])
        for repeats, image in zip(counts, self._images(), strict=False):
            if repeats:
                with _picture_errors():
                    frame = _on_white(image)
                for _ in range(repeats):
                    yield frame

    def _images(self) -> Iterator[Image.Image]:
        """Every frame in turn, decoded."""
        number = 0
        while True:
            if time.monotonic() > self._deadline:
                raise SlowVideoError(f"takes longer than {self._limits.max_seconds:g} s")
            with _picture_errors():
                # Asking for the number of frames would read a long file twice.
                try:
                    self._image.seek(number)
                except EOFError:
                    if number:
                        return
                    raise
                self._image.load()
            yield self._image
            number += 1


class FolderVideo:
    """A folder of numbered pictures; a context manager.

    Args:
        folder: The folder.
        limits: What it may cost.
        deadline: `time.monotonic()` at which reading stops.

    Attributes:
        pixel_aspect: Always 1.

    Raises:
        VideoError: No numbered pictures in it.
        OSError: The folder cannot be read.
    """

    pixel_aspect = 1.0

    def __init__(self, folder: Path, limits: Limits, deadline: float) -> None:
        self._limits, self._deadline = limits, deadline
        self._files = list_frames(folder)
        if not self._files:
            raise VideoError("a folder without numbered png or jpg frames")

    def __enter__(self) -> FolderVideo:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def describe(self) -> VideoInfo:
        """Size of the first picture, and how many there are."""
        with self._opened(self._files[0]) as image:
            width, height = image.size
            codec = (image.format or "").lower()
        count = len(self._files)
        return VideoInfo(count, count / DEFAULT_FPS, DEFAULT_FPS, height, width, 0, False, codec)

    def timeline(self, *, exact: bool = True) -> Timeline:
        """One frame per picture, evenly spaced."""
        return Timeline(len(self._files), DEFAULT_FPS)

    def frames(self, indices: np.ndarray | None, timeline: Timeline) -> Iterator[np.ndarray]:
        """RGB uint8 (h, w, 3) of the pictures with these indices (None: all), transparent parts white.

        Raises:
            VideoError: A damaged picture, or past the deadline.
        """
        for index in range(len(self._files)) if indices is None else indices:
            with self._opened(self._files[index]) as image:
                yield _on_white(image)

    @contextmanager
    def _opened(self, file: Path) -> Iterator[Image.Image]:
        if time.monotonic() > self._deadline:
            raise SlowVideoError(f"takes longer than {self._limits.max_seconds:g} s")
        if not file.is_file():  # a pipe would be waited for
            raise VideoError(f"{file}: no regular file")
        try:
            with _picture_errors(), open(file, "rb") as handle, _open_picture(handle, self._limits) as image:
                yield image
        except VideoError as error:
            raise type(error)(f"{file}: {error}") from None


def read_picture(path: str | Path, limits: Limits = Limits()) -> np.ndarray:  # noqa: B008  it is frozen
    """A picture file as it is meant to be seen: turned as its EXIF says, on white where it is transparent.

    Args:
        path: A png, jpeg, webp or gif file, of which the first frame is taken; never an address.
        limits: What it may cost.

    Returns:
        RGB uint8 (h, w, 3).

    Raises:
        VideoError: Not a picture, an address, too small or beyond the limits; one line that names it.
        OSError: No such file, or not readable.
    """
    name = source_name(str(path))
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", str(path)):
        raise VideoError(f"{name}: an address, and pictures are read from files: download it first")
    if not Path(path).exists():
        raise FileNotFoundError(f"{name}: no such file")
    if not Path(path).is_file():  # a pipe would wait for ever
        raise VideoError(f"{name}: not a picture file")
    try:
        with _picture_errors(), open(path, "rb") as handle, _open_picture(handle, limits) as image:
            return upright(image)
    except PermissionError:
        raise PermissionError(f"{name}: no permission to read it") from None
    except VideoError as error:
        raise VideoError(f"{name}: {error}") from None


def upright(image: Image.Image) -> np.ndarray:
    """RGB uint8 (h, w, 3) of an opened picture, turned as its EXIF says, on white where it is transparent.

    Raises:
        VideoError: It has hardly any pixels.
    """
    if min(image.size) < LEAST_SIDE:
        raise VideoError(f"a picture of {image.width}x{image.height} pixels: each side needs {LEAST_SIDE} or more")
    return _on_white(ImageOps.exif_transpose(image))


def list_frames(folder: Path) -> list[Path]:
    """The numbered pictures of a frame folder in the order of their numbers ("9.png" before "10.png")."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in FRAME_SUFFIXES and path.name[0] != "."]
    numbered = [(re.findall(r"\d+", path.stem), path) for path in files]
    return [path for _, path in sorted((int(digits[-1]), path) for digits, path in numbered if digits)]


def _frames_merged(durations: np.ndarray) -> np.ndarray:
    """How many frames of a steady rate each stored one stands for: writers merge equal frames into a longer one.

    Args:
        durations: Seconds of each stored frame, float64 (n,), not all 0.
    """
    shown = durations[durations > 0]
    if len(durations) == 1:
        return np.maximum(1, np.rint(durations * DEFAULT_FPS)).astype(np.int64)
    # Frames last for whole hundredths of a second: those of a rate of 8 for 0.12 s or 0.13 s.
    steady, usual = shown[shown < 1.5 * shown.min()], np.median(shown)
    alike = shown[(usual / 1.5 < shown) & (shown < 1.5 * usual)]
    if len(steady) <= max(1, len(shown) // 10) and len(alike) > max(2, len(shown) / 2):
        steady = alike  # a few short ones are slips, and no rate
    return np.maximum(1, np.rint(durations / steady.mean())).astype(np.int64)


def _open_picture(handle: BinaryIO, limits: Limits) -> Image.Image:
    image = Image.open(handle, formats=("GIF", "WEBP", "PNG", "JPEG"))
    if image.width * image.height > limits.max_pixels:
        raise VideoError(f"{image.width}x{image.height} pixels, more than {limits.max_pixels} are allowed")
    return image


@contextmanager
def _picture_errors() -> Iterator[None]:
    """Turns what Pillow raises on damaged files into a VideoError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes: checked here; of odd tags: no reason to refuse the pixels
            yield
    except VideoError:
        raise
    except _PICTURE_ERRORS as error:
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else str(error).split("\n")[0]
        raise VideoError(f"not a readable picture ({reason})") from None


def _on_white(image: Image.Image) -> np.ndarray:
    """RGB of a picture; transparent parts become white."""
    rgba = image.convert("RGBA")
    return np.array(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))
