"""Frames of real video containers, through PyAV."""

from __future__ import annotations

import re
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import BinaryIO, Literal

import av
import numpy as np
from av.error import ExitError, FFmpegError
from av.video.reformatter import Colorspace, ColorTrc, VideoReformatter

from contentmotion.video.hdr import hdr_to_srgb
from contentmotion.video.timeline import (
    DEFAULT_FPS,
    HD_LINES,
    Limits,
    OpenVideo,
    Timeline,
    TimelineError,
    VideoError,
    VideoInfo,
)

# Decoders that know the transparency of webm files; ffmpeg's own do not.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_HDR: dict[int, Literal["pq", "hlg"]] = {ColorTrc.SMPTE2084: "pq", ColorTrc.ARIB_STD_B67: "hlg"}
_MAX_MISSING = 0.05  # a file that ends this much of its length too early is cut short
_UNSPECIFIED = 2  # colour matrix, in ITU-T H.273
_TS_PACKETS = (188, 192, 204)  # bytes of an MPEG transport stream's packets
_STEP_BACK = 2  # seconds to go further back where a file has no index


class _DamagedError(VideoError):
    """A packet that cannot be decoded."""


class FfmpegVideo(OpenVideo):
    """A file of one of ffmpeg's containers.

    Args:
        place: ffmpeg's name of the file, or an open file.
        size: Bytes of the file.
        containers: What it may be, by ffmpeg's names.
    """

    def __init__(self, place: str | BinaryIO, size: int, containers: str, limits: Limits, deadline: float) -> None:
        super().__init__(limits, deadline)
        self._place, self._containers = place, containers
        # Timestamp -> number of the frame, and back; None: frames have no timestamps, they are counted.
        self._index_of: Callable[[int], int] | None = None
        self._stamp_of: Callable[[int], int] = int
        self._last_dts = 0
        self._colours = VideoReformatter()
        self._container = self._open()
        try:
            self._start()
            # AVI knows no order of showing that differs from the order of decoding.
            self._unordered = self._container.format.name == "avi" and self._stream.codec_context.has_b_frames
            entries = self._stream.index_entries
            if len(entries) and (end := entries[-1].pos + entries[-1].size) > size:
                raise VideoError(f"cut short: {size} bytes of at least {end}")
            if self._container.format.name == "mpegts" and all(size % packet for packet in _TS_PACKETS):
                raise VideoError("cut short: it ends within a packet")
        except VideoError:
            self.close()
            raise

    def _open(self) -> av.container.InputContainer:
        try:
            return av.open(
                self._place,
                options={
                    "max_pixels": str(self._limits.max_pixels),
                    "threads": "1",
                    "format_whitelist": self._containers,
                },
                # Titles in old files are often not UTF-8; they must not keep the pictures from being read.
                metadata_errors="replace",
                timeout=self._limits.max_seconds,
            )
        except FFmpegError as error:
            if not isinstance(self._place, str):
                self._place.close()
            self._require_time(stopped=isinstance(error, ExitError))
            raise VideoError(f"not a readable video ({error.strerror})") from None

    def close(self) -> None:
        self._container.close()
        if not isinstance(self._place, str):
            self._place.close()

    def _start(self) -> None:
        """Checks the first video stream's header in a file just opened, and makes ready for its first packet."""
        if not self._container.streams.video:
            raise VideoError("holds no video stream")
        self._stream = self._container.streams.video[0]
        context = self._stream.codec_context
        if context is None:
            raise VideoError("no decoder for its codec")
        self._limits.require_size(context.width, context.height)
        if self._stream.metadata.get("alpha_mode") == "1" and context.name in _ALPHA_DECODERS:
            context = av.VideoCodecContext.create(_ALPHA_DECODERS[context.name], "r")
        assert isinstance(context, av.VideoCodecContext)
        # explode: a damaged frame is an error, not something made up from its neighbours.
        context.options = {"max_pixels": str(self._limits.max_pixels), "err_detect": "explode"}
        context.thread_type, context.thread_count = "NONE", 1  # data loaders run one process per core
        self._context = context
        self._moved = False  # whether packets were read since

    def describe(self) -> VideoInfo:
        stream = self._stream
        first = next(self._decode(frozenset()), None)
        if first is None:
            raise VideoError("no frame could be decoded")
        frame, turns = first[1], self._turns(first[1])
        height, width = frame.height, round(frame.width * self._stored_aspect())
        if turns % 2:
            height, width = width, height
        return VideoInfo(
            num_frames=stream.frames or None,
            duration=self._header_duration(),
            fps=float(stream.average_rate or DEFAULT_FPS),
            height=height,
            width=width,
            rotation=90 * turns,
            has_audio=bool(self._container.streams.audio),
            codec=stream.codec_context.name,
        )

    def _header_duration(self) -> float | None:
        if self._stream.duration is not None and self._stream.time_base is not None:
            return float(self._stream.duration * self._stream.time_base)
        return None if self._container.duration is None else self._container.duration / av.time_base

    def timeline(self, *, exact: bool = False) -> Timeline:
        stream = self._stream
        rate, base, tick = stream.average_rate, stream.base_rate, stream.time_base
        if not exact and not self._unordered and rate and base and tick and stream.duration and stream.frames:
            frames = stream.frames
            even = abs(rate - base) * frames < base / 2  # else the frame rate varies
            if even and abs(stream.duration * tick * rate - frames) < 1.5:
                start, ratio = stream.start_time or 0, float(tick * rate)
                self._index_of = lambda stamp: round((stamp - start) * ratio)
                self._stamp_of = lambda index: start + round(index / ratio)
                return Timeline(frames, float(rate))
        return self._scan()

    def _scan(self) -> Timeline:
        """The timeline by the packets' timestamps; decodes nothing."""
        self._rewind()
        stream = self._stream
        stamps, count = array("q"), 0
        for packet in self._packets():
            if packet.is_discard or not packet.size:
                continue
            count += 1
            if packet.pts is not None:
                stamps.append(packet.pts)
        if not count:
            raise VideoError("no frame could be decoded")
        header_fps = float(stream.average_rate or DEFAULT_FPS)
        if len(stamps) < count or self._unordered or stream.time_base is None:
            self._index_of = None
            return Timeline(count, header_fps)
        pts = np.unique(np.asarray(stamps))
        times = (pts - pts[0]) * float(stream.time_base)
        fps = (len(times) - 1) / times[-1] if len(times) > 1 else header_fps
        promised = self._header_duration() if stream.frames else _tagged_duration(stream.metadata)
        if promised is not None and times[-1] + 1 / fps < (1 - _MAX_MISSING) * promised:
            raise VideoError(f"cut short: {times[-1] + 1 / fps:.2f} of {promised:.2f} s")
        self._index_of = lambda stamp: int(np.searchsorted(pts, stamp))
        self._stamp_of = lambda index: int(pts[index])
        return Timeline(len(times), fps, times)

    def frames(self, indices: np.ndarray | None, timeline: Timeline) -> Iterator[np.ndarray]:
        if indices is None:
            self._rewind()
            for _, frame in self._decode(None):
                yield self._convert(frame)
            return
        wanted = deque(int(index) for index in indices)
        aim, starts = -1, []
        while wanted:
            if wanted[0] != aim:
                aim = wanted[0]
                starts = self._starts(aim)
            if not starts:
                raise TimelineError(f"no frame at {timeline.times_of(np.array(aim)):.2f} s")
            start = starts.pop(0)
            try:
                self._rewind(start)
                for index, frame in self._decode(frozenset(wanted)):
                    if index < wanted[0]:
                        continue
                    if index > wanted[0] or frame.is_corrupt:
                        break  # it hangs on frames before the key frame that was started from
                    picture = self._convert(frame)
                    while wanted and wanted[0] == index:
                        wanted.popleft()
                        yield picture
                    if not wanted or self._worth_seeking(wanted[0]):
                        break
            except _DamagedError as error:
                if start is None:
                    at = timeline.times_of(np.array(aim))
                    raise VideoError(f"damaged before {at:.2f} s, or there ({error})") from None

    def _starts(self, index: int) -> list[int | None]:
        """Timestamps to start decoding from in order to reach a frame, best first; None: from the first frame."""
        if not index or self._index_of is None or not self._stream.time_base:
            return [None]
        stamp = self._stamp_of(index)
        key = self._key_frame(stamp)
        # A frame may hang on what comes before the key frame before it.
        return [stamp, key - 1 if key is not None else stamp - round(_STEP_BACK / self._stream.time_base), None]

    def _key_frame(self, stamp: int) -> int | None:
        """The last key frame up to a timestamp that the file's index knows."""
        entries = self._stream.index_entries
        found = entries.search_timestamp(stamp) if len(entries) else -1
        return entries[found].timestamp if found >= 0 else None

    def _worth_seeking(self, index: int) -> bool:
        """Whether a key frame lies between the packets read so far and a frame."""
        if self._index_of is None:
            return False
        key = self._key_frame(self._stamp_of(index))
        return key is not None and key > self._last_dts

    def _rewind(self, stamp: int | None = None) -> None:
        """Goes to the key frame up to a timestamp, or to the start of the file."""
        if stamp is None:
            if self._moved:
                # Not by seeking, for which some containers need an index.
                self._container.close()
                if not isinstance(self._place, str):
                    self._place.seek(0)
                self._container = self._open()
                self._start()
            return
        self._moved = True
        try:
            self._container.seek(stamp, stream=self._stream)
        except FFmpegError as error:
            raise _DamagedError(f"cannot be searched: {error.strerror}") from None
        if self._context.is_open:
            self._context.flush_buffers()

    def _packets(self) -> Iterator[av.Packet]:
        """The video's packets from here on."""
        self._moved = True
        try:
            for packet in self._container.demux(self._stream):
                self._require_time()
                if packet.dts is None and not packet.size:
                    return  # the end
                yield packet
        except FFmpegError as error:
            self._require_time(stopped=isinstance(error, ExitError))
            raise _DamagedError(error.strerror) from None

    def _decode(self, wanted: frozenset[int] | None) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames from here on with their numbers; those that are not wanted may be left out."""
        # What h264 marks as no reference, no other frame needs: leaving it undecoded changes nothing else.
        index_of = None if wanted is None else self._index_of  # all frames come in turn, whatever their timestamps
        skips = index_of is not None and self._context.name == "h264"
        self._context.skip_frame, skipping = "DEFAULT", False
        count = 0
        for packet in chain(self._packets(), [None]):  # None: what the decoder still holds
            if packet is not None:
                if skips and index_of and wanted is not None:
                    needed = packet.pts is None or index_of(packet.pts) in wanted
                    if needed == skipping:
                        self._context.skip_frame = "DEFAULT" if needed else "NONREF"
                        skipping = not needed
                self._last_dts = packet.dts if packet.dts is not None else self._last_dts
            try:
                decoded = self._context.decode(packet)
            except FFmpegError as error:
                raise _DamagedError(error.strerror) from None
            for frame in decoded:
                if index_of is not None and frame.pts is None:
                    raise TimelineError("frames without timestamps")
                yield count if index_of is None else index_of(frame.pts), frame
                count += 1

    def _convert(self, frame: av.VideoFrame) -> np.ndarray:
        """RGB uint8 (h, w, 3) as shown, but for the shape of the pixels."""
        turns = self._turns(frame)
        self.pixel_aspect = 1 / self._stored_aspect() if turns % 2 else self._stored_aspect()
        # Untagged HD is BT.709; swscale would take it for BT.601.
        untagged_hd = frame.colorspace == _UNSPECIFIED and frame.height >= HD_LINES and not frame.format.is_rgb
        matrix = Colorspace.ITU709 if untagged_hd else None
        if any(component.is_alpha for component in frame.format.components):
            picture = self._colours.reformat(frame, format="rgba", src_colorspace=matrix, threads=1).to_ndarray()
            alpha = picture[..., 3:].astype(np.uint16)
            # 127: rounds to the nearest.
            picture = ((picture[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
        elif frame.color_trc in _HDR:
            # Not by swscale, which can do it too, but takes minutes to set up its tables.
            coded = self._colours.reformat(frame, format="rgb48le", threads=1).to_ndarray()
            picture = hdr_to_srgb(coded, _HDR[frame.color_trc])
        else:
            picture = self._colours.reformat(frame, format="rgb24", src_colorspace=matrix, threads=1).to_ndarray()
        return np.rot90(picture, turns)

    def _turns(self, frame: av.VideoFrame) -> int:
        """Quarter turns counterclockwise from the stored frame to the one shown."""
        return round(frame.rotation / 90) % 4

    def _stored_aspect(self) -> float:
        """Width of a stored pixel over its height."""
        ratio = self._stream.sample_aspect_ratio
        return float(ratio) if ratio and 0.1 < ratio < 10 else 1.0


def _tagged_duration(tags: Mapping[str, str]) -> float | None:
    """Seconds of a Matroska stream as its writer noted them: "00:00:07.500000000"."""
    found = re.fullmatch(r"(\d+):(\d+):([\d.]+)", next((v for k, v in tags.items() if k.startswith("DURATION")), ""))
    return None if found is None else 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3])
