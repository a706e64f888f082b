"""Frames to video files and contact sheets, and what was noted in them."""

import functools
import glob
import json
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from contentmotion.saving import replacing_file
from contentmotion.video.pictures import opened_picture
from contentmotion.video.timeline import HD_LINES, Limits

BT709 = 1  # matrix, primaries and transfer of HD video have the same number in ITU-T H.273

PAGE, MAX_PAGES = 20, 9999  # rows of a sheet's page; pages that a later sheet replaces
# Looked for among the system's fonts, in this order; the last ones have other alphabets, or emoji.
FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial Unicode.ttf", "Arial.ttf",
    "arial.ttf", "NotoSansCJK-Regular.ttc", "NotoEmoji-Regular.ttf", "NotoEmoji[wght].ttf", "Symbola.ttf",
    "seguisym.ttf",
)  # fmt: skip
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def write_video(path: str | Path, frames: np.ndarray, fps: float, metadata: Mapping[str, str] | None = None) -> None:
    """Write a video; the suffix chooses the format.

    .mp4 is H.264 yuv420p, which browsers play (odd heights and widths get their last row or column twice); .webm is
    VP9; .gif loops for ever and keeps time to 1/100 s. From 720 lines up colours are HD's (BT.709), and tagged so.

    Args:
        path: File to write; its folder must exist.
        frames: uint8 RGB, (t, h, w, 3), t >= 1.
        fps: Frames per second, positive.
        metadata: What `read_metadata` finds again: a JSON object in the file's comment.

    Raises:
        ValueError: Another suffix, frames of another shape or type, fps not positive.
        OSError: The folder does not exist or is not writable.
    """
    with writing_video(path, fps, metadata) as add:
        add(frames)


@contextmanager
def writing_video(
    path: str | Path, fps: float, metadata: Mapping[str, str] | None = None
) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives a function that adds frames to a video, so that it need not be in memory as a whole; see `write_video`.

    The file appears when the last were added, or not at all. A gif's frames wait until then, a byte per pixel, and have
    the colours of the first ones added.

    Raises:
        ValueError: See `write_video`; or no frames, or some of another size than the first.
        OSError: The folder does not exist or is not writable.
    """
    path = Path(path)
    if not (fps > 0 and math.isfinite(fps)):
        raise ValueError(f"fps must be positive, got {fps}")
    suffix = path.suffix.lower()
    if suffix not in (".mp4", ".webm", ".gif"):
        raise ValueError(f"{path}: cannot write {suffix or 'a file without suffix'}; use .mp4, .gif or .webm")
    comment = json.dumps(dict(metadata), ensure_ascii=False) if metadata else ""
    sizes: set[tuple[int, ...]] = set()
    with replacing_file(path) as temporary, (_gif if suffix == ".gif" else _ffmpeg)(temporary, fps, comment) as write:

        def add(frames: np.ndarray) -> None:
            _check_frames(frames)
            sizes.add(frames.shape[1:])
            if len(sizes) > 1:
                raise ValueError(f"{path}: frames of different sizes")
            write(frames)

        yield add
        if not sizes:
            raise ValueError(f"{path}: no frames to write")


def read_metadata(path: str | Path) -> dict[str, str]:
    """What `write_video` or `write_picture` was told about a file; empty where it holds nothing of the kind.

    Args:
        path: A .mp4, .webm, .gif or .png file.

    Raises:
        OSError: No such file, or none of these.
        ValueError: A damaged picture.
    """
    path = Path(path)
    if path.suffix.lower() in (".gif", ".png"):
        with opened_picture(path, Limits()) as picture:
            picture.load()
            info = dict(picture.info)
        if path.suffix.lower() == ".png":
            return {str(key): value for key, value in info.items() if isinstance(value, str)}
        comment = info.get("comment", b"").decode("utf-8", "replace")
    else:
        import av  # where a container is opened, and nowhere else: no other part of this package needs it

        with av.open(f"file:{path}") as container:
            found = {key.lower(): value for key, value in container.metadata.items()}  # webm: COMMENT
        comment = found.get("comment", "")
    try:
        value = json.loads(comment)
    except ValueError:
        return {}
    return {str(key): str(item) for key, item in value.items()} if isinstance(value, dict) else {}


def write_picture(path: str | Path, picture: Image.Image, metadata: Mapping[str, str] | None = None) -> None:
    """Write a PNG, with a text chunk for each entry of the metadata.

    Args:
        path: PNG file to write; its folder must exist.
        picture: What to write.
        metadata: What `read_metadata` finds again.

    Raises:
        OSError: The folder does not exist or is not writable.
    """
    chunks = PngInfo()
    for key, value in (metadata or {}).items():
        chunks.add_itxt(key, value)
    with replacing_file(Path(path)) as temporary:
        picture.save(temporary, format="PNG", pnginfo=chunks)


def _check_frames(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be uint8 (t, h, w, 3), got {frames.dtype} {frames.shape}")


@contextmanager
def _ffmpeg(path: Path, fps: float, comment: str) -> Iterator[Callable[[np.ndarray], None]]:
    import av
    from av.video.reformatter import Colorspace

    # mbtree off: with it, x264 gives small pictures other bytes from run to run.
    codec, options, container_options = "libx264", {"crf": "16", "mbtree": "0"}, {"movflags": "+faststart"}
    if path.suffix.lower() == ".webm":
        # bitexact: without it, each file gets a random id.
        codec, options, container_options = "libvpx-vp9", {"crf": "20", "b": "0"}, {"fflags": "+bitexact"}
    with av.open(f"file:{path}", "w", options=container_options) as container:
        if comment:
            container.metadata["comment"] = comment
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        assert isinstance(stream, av.VideoStream)

        def add(frames: np.ndarray) -> None:
            height, width = frames.shape[1:3]
            is_hd, context = height >= HD_LINES, stream.codec_context
            # 4:2:0 stores colour for blocks of 2x2 pixels.
            frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if not context.is_open:
                stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
                if is_hd:
                    context.colorspace, context.color_primaries, context.color_trc = BT709, BT709, BT709
                    context.color_range = 1
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                if is_hd:
                    picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, threads=1)
                container.mux(stream.encode(picture))

        yield add
        container.mux(stream.encode())


@contextmanager
def _gif(path: Path, fps: float, comment: str) -> Iterator[Callable[[np.ndarray], None]]:
    images: list[Image.Image] = []
    palette: list[Image.Image] = []

    def add(frames: np.ndarray) -> None:
        # One palette for all frames, found on all of them one above another: a palette per frame flickers.
        height, width = frames.shape[1:3]
        strip = Image.fromarray(frames.reshape(-1, width, 3))
        strip = strip.quantize(palette=palette[0]) if palette else strip.quantize(256, kmeans=1)
        if not palette:
            palette.append(strip.crop((0, 0, 1, 1)))
        images.extend(strip.crop((0, k * height, width, (k + 1) * height)) for k in range(len(frames)))

    yield add
    # GIF counts in 1/100 s: spread the rounding over the frames so that the whole lasts as long as it should.
    ends = np.round(np.arange(len(images) + 1) * 100 / fps).astype(int) * 10
    durations = np.maximum(np.diff(ends), 10).tolist()
    extra = {"comment": comment.encode()} if comment else {}
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, **extra)


def write_contact_sheet(
    path: str | Path,
    videos: Sequence[np.ndarray],
    captions: Sequence[str],
    *,
    num_columns: int = 8,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write a `contact_sheet` as a PNG (`write_picture`); of more than `PAGE` videos as several pages.

    These are `sheet.png`, `sheet-2.png`, ...; further pages of an earlier sheet of this name are removed.

    Returns:
        The pages.

    Raises:
        ValueError: See `contact_sheet`.
    """
    path = Path(path)
    for old in path.parent.glob(f"{glob.escape(path.stem)}-*{path.suffix}"):
        if old.stem.removeprefix(f"{path.stem}-").isdecimal() and int(old.stem.rpartition("-")[2]) <= MAX_PAGES:
            old.unlink()
    pages = []
    for start in range(0, max(1, len(videos)), PAGE):
        page = path if start == 0 else path.with_stem(f"{path.stem}-{start // PAGE + 1}")
        rows = slice(start, start + PAGE)
        write_picture(page, contact_sheet(videos[rows], captions[rows], num_columns), metadata)
        pages.append(page)
    return pages


def contact_sheet(videos: Sequence[np.ndarray], captions: Sequence[str], num_columns: int = 8) -> Image.Image:
    """One row per video: its caption above evenly spaced frames, the last one included.

    Small frames are enlarged 2 or 3 times. Characters that no font here has are spelt out (`readable`).

    Args:
        videos: uint8 RGB, each (t, h, w, 3); sizes may differ.
        captions: One per video.
        num_columns: Frames per row (fewer where a video is shorter).

    Raises:
        ValueError: Nothing to draw, or not one caption per video.
    """
    if not videos or len(videos) != len(captions) or num_columns < 1:
        raise ValueError(
            f"a contact sheet needs videos, one caption each and at least one column; "
            f"got {len(videos)} videos, {len(captions)} captions, {num_columns} columns"
        )
    margin = 8
    rows = [_contact_row(video, num_columns, margin) for video in videos]
    width = 2 * margin + max(row.width for row in rows)
    fonts = [_font_for(caption) for caption in captions]
    texts = [
        _wrap(readable(caption, font), font, width - 2 * margin) for caption, font in zip(captions, fonts, strict=True)
    ]
    height = margin + sum(row.height + 2 * margin for row in rows) + 20 * sum(map(len, texts))
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    y = margin
    for row, font, lines in zip(rows, fonts, texts, strict=True):
        for line in lines:
            draw.text((margin, y), line, fill="black", font=font)
            y += 20
        sheet.paste(row, (margin, y))
        y += row.height + 2 * margin
    return sheet


@functools.cache
def _fonts() -> tuple[Font, ...]:
    """The fonts of this system that have many characters, and Pillow's own, which has those of English."""
    found = []
    for name in FONTS:
        with suppress(OSError):
            found.append(ImageFont.truetype(name, 16))
    return (*found, ImageFont.load_default(size=16))


def _font_for(text: str) -> Font:
    """The first font that has all characters of a text; else the one that lacks the fewest."""
    return min(_fonts(), key=lambda font: sum(not _has(font, character) for character in set(text)))


@functools.cache
def _has(font: Font, character: str) -> bool:
    """Whether a font has a character: else it draws the box that it draws for what is no character."""
    if character.isspace():
        return True
    drawn, missing = (bytes(font.getmask(each)) for each in (character, "\U0010ffff"))
    return drawn != missing and bool(drawn)


def readable(text: str, font: Font) -> str:
    """A text in characters that a font has: others without their accents, by their names, or by their numbers."""
    found = []
    for character in text:
        plain = unicodedata.normalize("NFKD", character)
        plain = "".join(part for part in plain if not unicodedata.combining(part))
        if _has(font, character):
            found.append(character)
        elif plain != character and all(_has(font, part) for part in plain):
            found.append(plain)
        elif unicodedata.category(character)[0] not in "MC":  # marks and joiners say nothing by themselves
            name = unicodedata.name(character, "").lower()
            found.append(f"[{name}]" if name and "-" not in name else f"[U+{ord(character):04X}]")
    return "".join(found)


def _contact_row(video: np.ndarray, num_columns: int, gap: int) -> Image.Image:
    """Evenly spaced frames side by side."""
    _check_frames(video)
    length, height, width = video.shape[:3]
    scale = 3 if height < 48 else 2 if height < 128 else 1
    picks = np.linspace(0, length - 1, min(num_columns, length)).round().astype(int)
    row = Image.new("RGB", (len(picks) * (width * scale + gap) - gap, height * scale), "white")
    for column, k in enumerate(picks):
        frame = Image.fromarray(video[k]).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
        row.paste(frame, (column * (width * scale + gap), 0))
    return row


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Break a caption into lines of at most `width` pixels (a longer single word stays whole)."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
