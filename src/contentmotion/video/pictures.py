"""Frames of animated pictures and of folders of pictures, through Pillow."""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from contentmotion.video.sources import is_folder, source_name
from contentmotion.video.timeline import DEFAULT_FPS, Limits, OpenVideo, Timeline, VideoError, VideoInfo

LEAST_SIDE = 8  # pixels of a picture to animate: less shows nothing
MAX_FRAMES = 100_000
FRAME_SUFFIXES = (".png", ".jpg", ".jpeg")
# What Pillow raises on damaged files, besides its own errors.
_PICTURE_ERRORS = (OSError, EOFError, SyntaxError, ValueError, LookupError, struct.error, Image.DecompressionBombError)


class PictureVideo(OpenVideo):
    """A gif, webp, png or jpeg, by its open file, which is closed with this."""

    def __init__(self, handle: BinaryIO, limits: Limits, deadline: float) -> None:
        super().__init__(limits, deadline)
        self._handle = handle
        try:
            with _picture_errors():
                self._image = _open_picture(handle, limits)
        except BaseException:
            handle.close()
            raise

    def close(self) -> None:
        self._image.close()
        self._handle.close()

    def describe(self) -> VideoInfo:
        """Goes through the whole file, since no header says the duration."""
        return _describe(self._image, self.timeline())

    def timeline(self, *, exact: bool = False) -> Timeline:
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
        for number in count():
            self._require_time()
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


class FolderVideo(OpenVideo):
    """A folder of numbered pictures."""

    def __init__(self, folder: Path, limits: Limits, deadline: float) -> None:
        super().__init__(limits, deadline)
        self._files = list_frames(folder)
        if not self._files:
            raise VideoError("a folder without numbered png or jpg frames")

    def describe(self) -> VideoInfo:
        """The first picture's size."""
        with self._opened(self._files[0]) as image:
            return _describe(image, self.timeline())

    def timeline(self, *, exact: bool = False) -> Timeline:
        """One frame per picture, evenly spaced."""
        return Timeline(len(self._files), DEFAULT_FPS)

    def frames(self, indices: np.ndarray | None, timeline: Timeline) -> Iterator[np.ndarray]:
        for index in range(len(self._files)) if indices is None else indices:
            with self._opened(self._files[index]) as image:
                yield _on_white(image)

    def _opened(self, file: Path) -> AbstractContextManager[Image.Image]:
        self._require_time()
        if not file.is_file():  # a pipe would be waited for
            raise VideoError(f"{source_name(file)}: no regular file")
        return opened_picture(file, self._limits)


def read_picture(path: str | Path, limits: Limits = Limits()) -> np.ndarray:  # noqa: B008  it is frozen
    """A picture file as it is meant to be seen: turned as its EXIF says, on white where it is transparent.

    Args:
        path: A png, jpeg, webp or gif file, of which the first frame is taken; never an address.
        limits: What reading it may cost.

    Returns:
        RGB uint8 (h, w, 3).

    Raises:
        VideoError: Not a picture, an address, too small or beyond the limits; one line that names it.
        OSError: No such file, or not readable.
    """
    name = source_name(str(path))
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", str(path)):
        raise VideoError(f"{name}: an address, and pictures are read from files: download it first")
    if is_folder(Path(path)):
        raise VideoError(f"{name}: not a picture file")
    with opened_picture(path, limits) as image:
        return upright(image)


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


def _describe(image: Image.Image, timeline: Timeline) -> VideoInfo:
    num_frames, fps, codec = timeline.num_frames, timeline.fps, (image.format or "").lower()
    return VideoInfo(num_frames, num_frames / fps, fps, image.height, image.width, 0, False, codec)


def _frames_merged(durations: np.ndarray) -> np.ndarray:
    """How many frames of a steady rate each stored one, by its seconds, stands for: writers merge equal frames."""
    shown = durations[durations > 0]
    if len(durations) == 1:
        return np.maximum(1, np.rint(durations * DEFAULT_FPS)).astype(np.int64)
    # Frames last for whole hundredths of a second: those of a rate of 8 for 0.12 s or 0.13 s.
    steady, usual = shown[shown < 1.5 * shown.min()], np.median(shown)
    alike = shown[(usual / 1.5 < shown) & (shown < 1.5 * usual)]
    if len(steady) <= max(1, len(shown) // 10) and len(alike) > max(2, len(shown) / 2):
        steady = alike  # a few short ones are slips, and no rate
    return np.maximum(1, np.rint(durations / steady.mean())).astype(np.int64)


@contextmanager
def opened_picture(path: str | Path, limits: Limits) -> Iterator[Image.Image]:
    """A picture file, open; what is wrong with it, while it is, comes out as a VideoError with its name."""
    try:
        with _picture_errors(), open(path, "rb") as handle, _open_picture(handle, limits) as image:
            yield image
    except VideoError as error:
        raise VideoError(f"{source_name(path)}: {error}") from None


def _open_picture(handle: BinaryIO, limits: Limits) -> Image.Image:
    image = Image.open(handle, formats=("GIF", "WEBP", "PNG", "JPEG"))
    limits.require_size(*image.size)
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
