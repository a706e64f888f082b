"""Where a video's bytes are: a file, a folder of frames, a place inside another file, or in memory."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from contentmotion.config.common import printable
from contentmotion.video.timeline import VideoError

VIDEO_SUFFIXES = (".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v", ".gif", ".webp")


class StoredVideo(ABC):
    """A video inside another file: its bytes are to be had, but not under a path of their own."""

    @property
    def suffix(self) -> str:
        """Suffix of the video's own name, as of a `Path`."""
        return Path(str(self)).suffix

    @abstractmethod
    def read_bytes(self) -> bytes:
        """The whole video file.

        Raises:
            OSError: The file that holds it is gone or too short.
        """


@dataclass(frozen=True)
class TarMember(StoredVideo):
    """A video inside an uncompressed tar file: `size` bytes from `offset` on, called `name` in there."""

    tar: Path
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.tar}/{self.name}"

    def read_bytes(self) -> bytes:
        with open(self.tar, "rb") as handle:
            handle.seek(self.offset)
            content = handle.read(self.size)
        if len(content) < self.size:
            raise OSError(f"{self}: the tar file ends {self.size - len(content)} bytes too early")
        return content


VideoSource = str | Path | StoredVideo | bytes


def file_size(source: VideoSource) -> int | None:
    """Bytes of a video's file (of all files of a frame folder); None where that is not known without reading it."""
    if isinstance(source, TarMember):
        return source.size
    if not isinstance(source, Path):
        return None
    files = source.iterdir() if source.is_dir() else [source]
    return sum(file.stat().st_size for file in files)


def source_name(source: VideoSource) -> str:
    """What to call a source in messages; what is no UTF-8 in a name, or no character to print, is spelt out."""
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    return printable(str(source)).replace("\n", "\\x0a")


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; raises OSError, with one clear line, where it is no readable file either."""
    name = source_name(path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such file") from None
    except PermissionError:
        raise PermissionError(f"{name}: no permission to read it") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise OSError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(mode):
        return True
    if not stat.S_ISREG(mode):  # a pipe would wait for ever
        raise VideoError(f"{name}: neither file nor folder")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{name}: no permission to read it")
    return False
