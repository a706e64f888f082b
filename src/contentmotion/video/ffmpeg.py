"""Frames of real video containers, through PyAV."""

from __future__ import annotations

import re
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, Literal

import av
import numpy as np
from av.error import ExitError, FFmpegError
from av.video.reformatter import Colorspace, ColorTrc, VideoReformatter

from contentmotion.video.hdr import hdr_to_srgb
from contentmotion.video.timeline import (
    HD_LINES,
    Limits,
    SlowVideoError,
    Timeline,
    TimelineError,
    VideoError,
    VideoInfo,
)

DEFAULT_FPS = 8.0  # of files that do not say
# Decoders that know the transparency of webm files; ffmpeg's own do not.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_HDR: dict[int, Literal["pq", "hlg"]] = {ColorTrc.SMPTE2084: "pq", ColorTrc.ARIB_STD_B67: "hlg"}
_MAX_MISSING = 0.05  # a file that ends this much of its length too early is cut short
_UNSPECIFIED = 2  # colour matrix, in ITU-T H.273
_TS_PACKETS = (188, 192, 204)  # bytes of an MPEG transport stream's packets
_STEP_BACK = 2  # seconds to go further back where a file has no index


_NO_START = -(2**63)


class _DamagedError(VideoError):
    """A packet that cannot be decoded."""


class FfmpegVideo:
    """An open video; a context manager.

    Args:
        place: ffmpeg's name of the file, or an open file.
        size: Bytes of the file.
        containers: What it may be, by ffmpeg's names.
        limits: What it may cost.
        deadline: `time.monotonic()` at which reading stops.

    Attributes:
        pixel_aspect: Width of a pixel over its height, as shown; known once a frame was read.

    Raises:
        VideoError: Not a video, cut short, or beyond the limits.
    """

    def __init__(self, place: str | BinaryIO, size: int, containers: str, limits: Limits, deadline: float) -> None:
        self.pixel_aspect = 1.0
        self._containers, self._limits, self._deadline = containers, limits, deadline
        # Timestamp -> number of the frame, and back; None: frames have no timestamps, they are counted.
        self._index_of: Callable[[int], int] | None = None
        self._stamp_of: Callable[[int], int] = int
        self._moved = False  # whether packets were read since the file was opened
        self._last_dts = 0
        self._colours = VideoReformatter()
        self._place = place
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
            self._close()
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
            raise self._too_slow(error) or VideoError(f"not a readable video ({error.strerror})") from None

    def _start(self) -> None:
        """Makes ready for the first packet of a file just opened."""
        self._stream = self._pick_stream()
        self._context = self._make_decoder()
        self._moved = False

    def _close(self) -> None:
        self._container.close()
        if not isinstance(self._place, str):
            self._place.close()

    def __enter__(self) -> FfmpegVideo:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _pick_stream(self) -> av.VideoStream:
        """The first video stream, its header checked."""
        if not self._container.streams.video:
            raise VideoError("holds no video stream")
        stream = self._container.streams.video[0]
        context = stream.codec_context
        if context is None:
            raise VideoError("no decoder for its codec")
        if context.width * context.height > self._limits.max_pixels:
            raise VideoError(
                f"{context.width}x{context.height} pixels, more than {self._limits.max_pixels} are allowed"
            )
        return stream

    def _make_decoder(self) -> av.VideoCodecContext:
        context = self._stream.codec_context
        if self._stream.metadata.get("alpha_mode") == "1" and context.name in _ALPHA_DECODERS:
            context = av.VideoCodecContext.create(_ALPHA_DECODERS[context.name], "r")
        assert isinstance(context, av.VideoCodecContext)
        # explode: a damaged frame is an error, not something made up from its neighbours.
        context.options = {"max_pixels": str(self._limits.max_pixels), "err_detect": "explode"}
        context.thread_type, context.thread_count = "NONE", 1  # data loaders run one process per core
        return context

    def describe(self) -> VideoInfo:
        """What the header and the first frame say.

        Raises:
            VideoError: The first frame cannot be decoded.
        """
        stream = self._stream
        first = next(self._decode(frozenset()), None)
        if first is None:
            raise VideoError("no frame could be decoded")
        frame = first[1]
        turned = self._turns(frame) % 2
        height, width = frame.height, round(frame.width * self._stored_aspect())
        length = self._header_duration()
        return VideoInfo(
            num_frames=stream.frames or None,
            duration=length,
            fps=float(stream.average_rate or DEFAULT_FPS),
            height=width if turned else height,
            width=height if turned else width,
            rotation=90 * self._turns(frame),
            has_audio=bool(self._container.streams.audio),
            codec=stream.codec_context.name,
        )

    def _header_duration(self) -> float | None:
        if self._stream.duration is not None and self._stream.time_base is not None:
            return float(self._stream.duration * self._stream.time_base)
        return None if self._container.duration is None else self._container.duration / av.time_base

    def timeline(self, *, exact: bool = False) -> Timeline:
        """When each frame is shown: as the header says where it can be trusted, else from all packets.

        Args:
            exact: Look at all packets in any case.

        Raises:
            VideoError: No packets, or fewer than the header promises; or past the deadline.
        """
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
        stamps, missing, count = array("q"), False, 0
        for packet in self._packets():
            if packet.is_discard or not packet.size:
                continue
            count += 1
            if packet.pts is None:
                missing = True
            else:
                stamps.append(packet.pts)
        if not count:
            raise VideoError("no frame could be decoded")
        header_fps = float(stream.average_rate or DEFAULT_FPS)
        if missing or self._unordered or stream.time_base is None:
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
        """Decodes frames.

        Args:
            indices: Rising, repetitions allowed; None: every frame that can be decoded.
            timeline: This video's.

        Yields:
            RGB uint8 (h, w, 3), rotation applied.

        Raises:
            VideoError: Damaged, or past the deadline.
            TimelineError: A frame is not where the timeline says.
        """
        if indices is None:
            self._rewind()
            for _, frame in self._decode(None):
                yield self._convert(frame)
            return
        wanted = deque(int(index) for index in indices)
        aim, starts = -1, iter(())
        while wanted:
            if wanted[0] != aim:
                aim = wanted[0]
                starts = self._starts(aim)
            start = next(starts, _NO_START)
            if start == _NO_START:
                raise TimelineError(f"no frame at {timeline.times_of(np.array(aim)):.2f} s")
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

    def _starts(self, index: int) -> Iterator[int | None]:
        """Timestamps to start decoding from in order to reach a frame, best first; None: from the first frame."""
        if index and self._index_of is not None and self._stream.time_base:
            stamp = self._stamp_of(index)
            key = self._key_frame(stamp)
            yield stamp
            # A frame may hang on what comes before the key frame before it.
            yield key - 1 if key is not None else stamp - round(_STEP_BACK / self._stream.time_base)
        yield None

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
                if late := self._too_slow():
                    raise late
                if packet.dts is None and not packet.size:
                    return  # the end
                yield packet
        except FFmpegError as error:
            raise self._too_slow(error) or _DamagedError(error.strerror) from None

    def _too_slow(self, error: FFmpegError | None = None) -> VideoError | None:
        """What to raise when the time is up, or ffmpeg stopped because of it."""
        if time.monotonic() <= self._deadline and not isinstance(error, ExitError):
            return None
        return SlowVideoError(f"takes longer than {self._limits.max_seconds:g} s")

    def _decode(self, wanted: frozenset[int] | None) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames from here on with their numbers; those that are not wanted may be left out."""
        # What h264 marks as no reference, no other frame needs: leaving it undecoded changes nothing else.
        index_of = self._index_of
        skips = wanted is not None and index_of is not None and self._context.name == "h264"
        self._context.skip_frame, skipping = "DEFAULT", False
        count = 0
        packets = self._packets()
        while True:
            packet = next(packets, None)
            if packet is not None:
                if skips and index_of is not None and wanted is not None:
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
            if packet is None:
                return

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
