"""What a container's own headers give away before ffmpeg reads them: files cut short, and tables that are bombs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from contentmotion.video.timeline import VideoError

MAX_SAMPLES = 5_000_000  # a day at 50 frames per second; ffmpeg takes 100 bytes of memory for each
MAX_HEADER, MAX_BOXES = 256 << 20, 1_000_000  # bytes of one of an mp4's tables, and boxes in the file
_TABLES = re.compile(rb"stsz|stz2|stts|trun|elst|cmov")
_MATROSKA, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
# Real containers only: ffmpeg's other formats include playlists, texts that make it open further files.
_CONTAINERS = "mov,matroska,avi,mpegts,mpeg,ogg,flv,asf"
_STARTS = {
    _MATROSKA: "matroska",
    b"RIFF": "avi",
    b"OggS": "ogg",
    b"FLV": "flv",
    b"\x47": "mpegts",
    b"\x00\x00\x01\xba": "mpeg",
    b"\x30\x26\xb2\x75": "asf",
}


def check_headers(handle: BinaryIO, size: int) -> str:
    """Refuses what cannot be a whole video, in time and memory that do not depend on what it says of itself.

    The file is read from where it stands, which is where the video begins, `size` bytes of it.

    Returns:
        The containers, by ffmpeg's names, that it may be read as: what is no mp4 here must not be one there.

    Raises:
        VideoError: Cut short, or more frames than its bytes can hold.
    """
    start = handle.tell()
    first = handle.read(64)
    kind = next((name for begin, name in _STARTS.items() if first.startswith(begin)), None)
    if first[4:5] == b"\x47":  # packets with a time before each, of Blu-ray discs and cameras (m2ts)
        kind = kind or "mpegts"
    if kind == "matroska":
        end = _matroska_end(first)
        if end is not None and end > size:
            raise VideoError(f"cut short: {size} bytes of {end}")
    elif kind is None:
        _check_tables(_mp4_tables(handle, start, size), size)
    return kind or _CONTAINERS


def _matroska_end(first: bytes) -> int | None:
    """Where the segment of a Matroska or WebM file ends; None where its writer did not know (a live stream)."""
    header, place = _ebml_size(first, 4)
    place += header or 0
    if first[place : place + 4] != _SEGMENT:
        return None
    length, place = _ebml_size(first, place + 4)
    return None if length is None else place + length


def _ebml_size(data: bytes, place: int) -> tuple[int | None, int]:
    """A number of EBML's variable length, None for "unknown", and the place behind it."""
    head = data[place] if place < len(data) else 0
    if not head:
        return None, place
    count = 9 - head.bit_length()
    bits = int.from_bytes(data[place : place + count], "big") & ((1 << 7 * count) - 1)
    return (None if bits == (1 << 7 * count) - 1 else bits), place + count


def _mp4_tables(handle: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    """The boxes of an mp4 or mov file that hold no pictures."""
    place, count = 0, 0
    while place + 8 <= size:
        handle.seek(start + place)
        head = handle.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        length = min(length, size - place) if length else size - place  # 0: up to the end
        if length < 8:
            return  # no box; ffmpeg gives up here, too
        count += 1
        if count > MAX_BOXES or (kind != b"mdat" and length > MAX_HEADER):
            raise VideoError(f"more than {MAX_HEADER >> 20} MiB or {MAX_BOXES} boxes of tables")
        if kind != b"mdat":
            handle.seek(start + place)
            yield handle.read(length)
        place += length


def _check_tables(tables: Iterable[bytes], size: int) -> None:
    """Raises ``VideoError`` where tables count more samples than there are bytes, or than any video has."""
    most, listed, fragments, edits, steady = 0, 0, 0, 1, False
    for table in tables:
        for match in _TABLES.finditer(table):
            kind, body = match[0], table[match.end() : match.end() + 16]
            count, second = int.from_bytes(body[4:8], "big"), int.from_bytes(body[8:12], "big")
            if kind == b"cmov":
                raise VideoError("its header is compressed")
            if kind == b"stts":  # one entry, one tick a sample: plain sound, not listed sample by sample
                steady = steady or (count == 1 and body[12:16] == b"\0\0\0\1")
            elif kind == b"elst":
                edits = max(edits, count)
            elif kind == b"trun":
                fragments += count
            else:  # stsz with one size for all samples, or a table of them; stz2
                most = max(most, second)
                if kind == b"stz2" or not count:
                    listed = max(listed, second)
                if kind == b"stsz" and count * second > size:
                    raise VideoError(f"cut short: {size} bytes of at least {count * second}")
    samples, repeated = max(most, fragments), max(listed, 1000) if steady else most
    if samples > size or (samples > MAX_SAMPLES and not steady) or (edits > 1 and edits * repeated > MAX_SAMPLES):
        raise VideoError(f"its tables count {samples} frames, {edits} times, in {size} bytes")
