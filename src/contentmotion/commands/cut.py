"""Command ``cut``: videos of any size and length -> short clips of one size, with captions."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from contentmotion.config import CutConfig
from contentmotion.data.accounting import require_few_bad
from contentmotion.data.formats import ClipFolder, open_folder
from contentmotion.data.layouts.metadata import read_metadata
from contentmotion.data.records import ClipRecord
from contentmotion.data.streaming import is_stream
from contentmotion.progress import progress_bar
from contentmotion.run_dir import prepare_output_dir
from contentmotion.saving import read_json, replacing_file, write_json
from contentmotion.video.reader import probe_video, read_clip
from contentmotion.video.sources import source_name
from contentmotion.video.timeline import VideoInfo
from contentmotion.video.write import write_video

LIST, FACTS = "metadata.jsonl", "cut.json"
RATES = (8.0, 10.0, 12.0, 15.0, 20.0, 24.0, 30.0)  # frames per second, the first that leaves the videos long enough
ENOUGH = 0.95  # of the videos that are long enough at any rate
# Words that cameras and programs put into names, and which say nothing of what is seen.
CAMERA_WORDS = frozenset(
    """img vid mov mvi dsc dscn dscf pxl gopr gp gx gh dji wa whatsapp video movie clip film file trim copy final edited
    screen recording record signal telegram snapchat tiktok camera cam iphone untitled unnamed mp mp4 avi mkv webm gif
    hd uhd fps lv ts export output scene part take shot burst hdr night lmc""".split()  # noqa: SIM905
)


def cut(config: CutConfig) -> None:
    """Writes ``NUMBER-PART.mp4`` per clip, ``metadata.jsonl`` and ``cut.json``; prints how many there are.

    Raises:
        ValueError: No captions, too few usable videos, or the folder holds clips that were cut otherwise.
        OSError: No such folder, or the output folder is not writable.
    """
    folder, captions = open_captioned(config)
    headers = [_look_at(record) for record in folder.records]
    fps = config.fps or _choose_rate([info for info in headers if isinstance(info, VideoInfo)], config.num_frames)
    size = {name: getattr(config, name) for name in ("num_frames", "height", "width", "resize_mode", "clips_per_video")}
    facts = size | {"fps": fps, "videos": [source_name(record.path) for record in folder.records]}
    _require_same(Path(config.output_dir), facts)
    output = prepare_output_dir(config.output_dir, "cut", config)
    write_json(output / FACTS, facts)
    rows, skipped = [], []
    with progress_bar() as bar:
        for index, record in enumerate(bar.track(folder.records, description="cutting clips")):
            header = headers[index]
            try:
                if isinstance(header, str):
                    raise ValueError(header)
                if not captions[index]:
                    raise ValueError("no caption")
                rows += _cut_one(config, record, header, fps, output, index, captions[index])
            except (ValueError, OSError) as error:
                name, problem = source_name(record.path), str(error)
                skipped.append(problem)
                print(f"left out: {problem if name in problem else f'{name}: {problem}'}", file=sys.stderr)
    if not rows:
        raise ValueError(f"{config.train_data_dir}: no usable video; {skipped[0]}")
    require_few_bad(len(skipped), len(folder.records), config.max_bad_fraction, len(folder.records))
    with replacing_file(output / LIST) as partial:  # last: a folder with a list is whole
        partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} clips of {len(folder.records) - len(skipped)} videos in {output}, {fps:g} frames per second")


def open_captioned(config: CutConfig) -> tuple[ClipFolder, list[tuple[str, ...]]]:
    """The videos, and every one's captions: the data's, else its class's name, else its file's; none where that says
    nothing.

    Raises:
        ValueError: A stream, no videos, or not one of them has a caption.
        OSError: No such folder.
    """
    if is_stream(config.train_data_dir):
        raise ValueError(f"{config.train_data_dir} is a stream: clips are cut from videos that are here")
    folder, found = open_folder(config.train_data_dir, config), []
    for record in folder.records:
        own = tuple(record.captions)
        if not own and record.label is not None and folder.class_names:
            own = caption_of_name(folder.class_names[record.label])
        found.append(own or caption_of_name(Path(source_name(record.path)).stem))
    if not any(found):
        name = Path(source_name(folder.records[0].path))
        raise ValueError(
            f"{folder.root}: no captions, and names such as {name.name} do not say what is seen: write a text beside "
            f"each video ({name.with_suffix('.txt').name}), or {folder.root}/metadata.csv with the columns "
            "file_name,caption"
        )
    return folder, found


def captions_of_clips(clips: Path) -> list[str]:
    """The different first captions of a folder that ``cut`` filled, in their order; its list may have been edited.

    Raises:
        ValueError: None is left.
    """
    records = read_metadata(clips, clips / LIST).records
    captions = dict.fromkeys(" ".join(record.captions[0].split()) for record in records if record.captions)
    if not captions:
        raise ValueError(f"{clips / LIST}: no clip has a caption")
    return list(captions)


def caption_of_name(stem: str) -> tuple[str, ...]:
    """The caption in a file's name: "a_dog-runs 02" -> ("a dog runs",); () where it is a camera's, such as IMG_0042."""
    stem = unicodedata.normalize("NFC", stem)  # some systems write accents apart
    # Vowel signs and the like are of no letter that re knows; they, and what joins letters, follow one in a word.
    marks = "".join(character for character in stem if unicodedata.category(character)[0] == "M")
    word = rf"[^\W\d_](?:[^\W\d_]|[\u0300\u200c\u200d{marks}])*"
    words = re.findall(f"{word}(?:'{word})?", stem)
    while words and words[0].lower() in CAMERA_WORDS:
        del words[0]
    while words and words[-1].lower() in CAMERA_WORDS:
        del words[-1]
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", " ".join(words))  # ADogRuns
    return (text,) if len(text) > 1 else ()


def _choose_rate(infos: Sequence[VideoInfo], num_frames: int) -> float:
    """The lowest of some frame rates at which nearly all videos hold a clip that do so at any."""
    counts = [sum(_num_clips(info, rate, num_frames, 1) for info in infos) for rate in RATES]
    return next(rate for rate, count in zip(RATES, counts, strict=True) if count >= ENOUGH * max(counts))


def _num_clips(info: VideoInfo, fps: float, num_frames: int, most: int) -> int:
    """How many clips a video holds side by side; of one whose header does not say, one."""
    if info.fps < 0.99 * fps:
        return 0
    duration = info.duration or (info.num_frames / info.fps if info.num_frames else None)
    return 1 if duration is None else min(most, int((duration + 0.5 / info.fps) * fps / num_frames))


def _look_at(record: ClipRecord) -> VideoInfo | str:
    """A video's header, or why it cannot be read: in words, for an error holds on to the file's bytes."""
    try:
        return probe_video(record.path)
    except (ValueError, OSError) as error:
        return str(error)


def _cut_one(
    config: CutConfig, record: ClipRecord, info: VideoInfo, fps: float, output: Path, index: int,
    captions: Sequence[str],
) -> list[dict]:  # fmt: skip
    """Writes a video's clips where they are not there yet; gives their rows."""
    rows = []
    count = max(1, _num_clips(info, fps, config.num_frames, config.clips_per_video))
    for part in range(count):
        path = output / f"{index:05d}-{part}.mp4"
        if not path.exists():
            clip = read_clip(
                record.path, num_frames=config.num_frames, fps=fps, height=config.height, width=config.width,
                position=part / (count - 1) if count > 1 else None, resize_mode=config.resize_mode,
            )  # fmt: skip
            write_video(path, clip.frames, fps)
        rows.append({"file_name": path.name, "captions": list(captions), "source": source_name(record.path)})
    return rows


def _require_same(output: Path, facts: dict) -> None:
    """Raises ``ValueError`` where the folder's clips were cut otherwise."""
    before = read_json(output / FACTS) if (output / FACTS).exists() else facts
    changed = [name for name, value in facts.items() if before.get(name) != value]
    if changed:
        raise ValueError(
            f"{output} holds clips that were cut otherwise ({', '.join(changed)}): remove it, or choose another "
            "--output_dir"
        )
