"""What became of every file of a data set's folder: used, or skipped and why; and how many may be bad."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from contentmotion.config.common import printable
from contentmotion.data.formats import CHECK_FILES_BELOW, ClipFolder
from contentmotion.data.records import ClipRecord
from contentmotion.video.pictures import FRAME_SUFFIXES
from contentmotion.video.sources import VIDEO_SUFFIXES, TarMember, source_name

EXAMPLES = 10
USED, TEXTS = "used", "captions, lists and maps of these"
TEXT_SUFFIXES = (".txt", ".csv", ".json", ".jsonl", ".parquet", ".arrow")
FRAMES_OF = {USED: "frames of folders used"}


def account_for_files(folder: ClipFolder, faults: Mapping[str, str]) -> dict[str, Any] | None:
    """Counts every file below a data set's folder once, by what became of it.

    Args:
        folder: The data set.
        faults: What is wrong with videos of it, by their paths as messages have them: "too short", "damaged: ...".

    Returns:
        "found", their number; "fates", for each fate "count" and "examples" (paths relative to the folder). None where
        there is no folder, or more than `CHECK_FILES_BELOW` videos.
    """
    if not folder.root.is_dir() or len(folder.records) > CHECK_FILES_BELOW:
        return None
    root = os.path.realpath(folder.root)
    fate_of, texts = {}, set()
    for record in folder.others:
        fate_of[_file(record)] = "of another split"
    for line in folder.problems:
        name, _, reason = re.sub(r"^(line|row) \d+: ", "", line).partition(": ")
        fate_of[_real(os.path.join(root, name))] = f"left out of the list: {reason}"
    for record in folder.records:
        file = _file(record)
        if fate_of.get(file) != USED:  # a tar file with one good video is used
            fate_of[file] = faults.get(source_name(record.path), USED)
        texts |= {_real(path) for _, path in record.conditions}
        texts |= {os.path.splitext(file)[0] + ".txt", file + ".txt"}  # the latter of a folder of frames
    fates: dict[str, dict[str, Any]] = {}
    for path, kind in _files(root):
        fate = kind or fate_of.get(path) or _fate(path, root, texts, fate_of)
        entry = fates.setdefault(fate, {"count": 0, "examples": []})
        entry["count"] += 1
        if len(entry["examples"]) < EXAMPLES:
            entry["examples"].append(printable(os.path.relpath(path, root)))
    order = sorted(fates, key=lambda fate: (fate != USED, fate != TEXTS, -fates[fate]["count"]))
    return {"found": sum(entry["count"] for entry in fates.values()), "fates": {fate: fates[fate] for fate in order}}


def require_few_bad(bad: int, seen: int, limit: float, total: float | None) -> None:
    """Stops a run on bad data: for certain when all was seen, before that only when chance cannot be the reason.

    Args:
        bad: Bad files so far, each counted once.
        seen: Files tried so far.
        limit: Share of bad ones that is tolerated.
        total: How many files there are; None: nobody knows.

    Raises:
        ValueError: More than the limit.
    """
    expected = limit * min(seen, total or seen)
    # Three standard deviations of a count with this expectation, and one: the first bad file proves nothing.
    slack = 0.0 if total is not None and seen >= total else 3 * math.sqrt(expected) + 1
    if bad > expected + slack:
        raise ValueError(f"{bad} bad files among {seen} tried, more than max_bad_fraction={limit} allows")


def faults_in(lines: Iterable[str], folder: ClipFolder) -> dict[str, str]:
    """Lines "path: reason" about videos of a data set, by their path."""
    names, found = {source_name(record.path) for record in folder.records}, {}
    for line in lines:
        for colon in re.finditer(": ", line):  # a name may hold one
            if line[: colon.start()] in names:
                found[line[: colon.start()]] = line[colon.end() :]
    return found


def describe_fates(account: Mapping[str, Any]) -> str:
    """An account in words, with an example of what was skipped."""
    parts = []
    for fate, entry in account["fates"].items():
        example = "" if fate in (USED, TEXTS, *FRAMES_OF.values()) else f" (such as {entry['examples'][0]})"
        parts.append(f"{entry['count']} {fate}{example}")
    return f"{account['found']} files: {'; '.join(parts)}"


def _file(record: ClipRecord) -> str:
    return _real(record.path.tar if isinstance(record.path, TarMember) else str(record.path))


def _real(path: str | Path) -> str:
    """A file by its own name in the real folder that it lies in."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)


def _files(root: str) -> Iterator[tuple[str, str | None]]:
    """Files below a folder, and the fate of those that no layout looks at."""
    waiting, links, seen = [root], [], {root}
    while waiting or links:
        if not waiting:  # real folders come first
            place = os.path.realpath(link := links.pop())
            if place in seen:
                yield link, "a link to a folder that is read elsewhere"
                continue
            seen.add(place)
            waiting.append(place)
        directory = waiting.pop()
        try:
            with os.scandir(directory) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            yield directory, f"a folder that cannot be read: {error.strerror}"
            continue
        for entry in entries:
            if entry.name.startswith("."):
                yield entry.path, "hidden"
            elif entry.is_dir():
                (links if entry.is_symlink() else waiting).append(entry.path)
                seen |= set() if entry.is_symlink() else {entry.path}
            elif not entry.is_file():
                yield entry.path, "no regular file" if os.path.exists(entry.path) else "a link to nothing"
            else:
                yield entry.path, None


def _fate(path: str, root: str, texts: set[str], fate_of: Mapping[str, str]) -> str:
    """Of a regular file that is no video of the data set."""
    suffix, directory = os.path.splitext(path)[1].lower(), os.path.dirname(path)
    if directory in fate_of and suffix in FRAME_SUFFIXES:
        return FRAMES_OF.get(fate_of[directory], fate_of[directory])
    if path in texts or (suffix in TEXT_SUFFIXES and os.path.dirname(path) == root):
        return TEXTS
    if suffix in VIDEO_SUFFIXES:
        return "not in the list of videos"
    return f"no video by the name ({suffix or 'no suffix'})"
