"""Make a captioned data set without any source: coloured shapes that move, drawn by a seed.

    python runs/prepare_shapes.py OUT

Writes OUT/videos/NUMBER.mp4 and OUT/metadata.jsonl: clips of one or two shapes over a plain background, with captions
such as "a large red square moves left over a blue background". Three splits:

* train: what models learn from;
* test: colours and shapes in pairs that no training clip shows (a fifth of all pairs, "a purple star", say);
* stills: the training pairs again, standing still, with captions without motion: what an image model is pretrained on.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from rich.progress import track

from contentmotion.saving import replacing_file
from contentmotion.video.write import write_video

COLOURS = {
    "red": (214, 48, 49),
    "green": (39, 174, 96),
    "blue": (41, 98, 215),
    "yellow": (245, 205, 50),
    "purple": (142, 68, 173),
    "orange": (240, 132, 30),
    "white": (245, 245, 245),
    "black": (30, 30, 34),
}
SHAPES = ("circle", "square", "triangle", "star")
SIZES = {"small": 0.13, "large": 0.21}  # radius over the picture's side
MOTIONS = ("moves left", "moves right", "moves up", "moves down", "grows", "shrinks", "spins", "bounces")
HELD_OUT = 5  # one pair of colour and shape in so many
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Thing:
    """One shape and what it does. `x`, `y`: its centre in the middle of the clip, in [0, 1]."""

    colour: str
    shape: str
    size: str
    motion: str
    x: float
    y: float

    def caption(self, *, moving: bool) -> str:
        """Such as "a large red square moves left"."""
        return f"a {self.size} {self.colour} {self.shape}" + (f" {self.motion}" if moving else "")

    def place(self, time: float) -> tuple[float, float, float, float]:
        """Centre x and y, radius, angle in radians at a time in [0, 1]; lengths over the picture's side."""
        x, y, radius, angle, swing = self.x, self.y, SIZES[self.size], 0.0, time - 0.5
        if self.motion in ("moves left", "moves right"):
            x += 0.5 * swing * (1 if self.motion == "moves right" else -1)
        elif self.motion in ("moves up", "moves down"):
            y += 0.5 * swing * (1 if self.motion == "moves down" else -1)
        elif self.motion in ("grows", "shrinks"):
            radius *= 1 + 0.9 * swing * (1 if self.motion == "grows" else -1)
        elif self.motion == "spins":
            angle = 2 * np.pi * time
        else:
            y -= 0.25 * abs(np.sin(2 * np.pi * time)) - 0.12
        return x, y, radius, angle


def outline(shape: str, angle: float) -> np.ndarray:
    """Corners of a shape of radius 1, (n, 2)."""
    corners = {"square": 4, "triangle": 3, "star": 10}[shape]
    turns = np.arange(corners) * 2 * np.pi / corners + angle - np.pi / 2 + (np.pi / 4 if shape == "square" else 0)
    radii = np.where(np.arange(corners) % 2, 0.45, 1.0) if shape == "star" else np.ones(corners)
    return np.stack([radii * np.cos(turns), radii * np.sin(turns)], axis=1)


def draw(things: list[Thing], background: str, time: float, size: int) -> np.ndarray:
    """One frame, uint8 (size, size, 3); later things are in front."""
    side = size * SUPERSAMPLING
    top = np.array(COLOURS[background], float)
    shade = np.linspace(1.0, 0.72, side)[:, None, None]  # a plain background would be too easy to split off
    picture = Image.fromarray(np.broadcast_to(top * shade, (side, side, 3)).round().astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for thing in things:
        x, y, radius, angle = thing.place(time)
        x, y, radius = x * side, y * side, radius * side
        if thing.shape == "circle":  # with a notch, so that one sees it spin
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLOURS[thing.colour])
            pen.line((x, y, x + radius * np.sin(angle), y - radius * np.cos(angle)), fill="gray", width=side // 32)
        else:
            corners = outline(thing.shape, angle) * radius + (x, y)
            pen.polygon([tuple(corner) for corner in corners.tolist()], fill=COLOURS[thing.colour], outline="gray")
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX))


def pairs_of(split: str, shapes: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of colour and shape that a split shows: those of "test" are in no other."""
    return [
        (colour, shape)
        for i, colour in enumerate(COLOURS)
        for j, shape in enumerate(shapes)
        if ((i + 2 * j) % HELD_OUT == 0) == (split == "test")
    ]


def draw_lots(split: str, number: int, draw_from: np.random.Generator) -> tuple[list[Thing], str]:
    """A scene of a split: its things and its background. Every third scene holds two things."""
    pairs = pairs_of(split, SHAPES)
    count = 2 if number % 3 == 0 else 1
    chosen = [pairs[k] for k in draw_from.choice(len(pairs), count, replace=False)]
    background = str(draw_from.choice([name for name in COLOURS if name not in {c for c, _ in chosen}]))
    things = []
    for place, (colour, shape) in enumerate(chosen):
        middle = 0.5 if count == 1 else (0.3, 0.7)[place]
        x, y = np.array([middle, 0.5]) + draw_from.uniform(-0.06, 0.06, 2)
        size, motion = str(draw_from.choice(list(SIZES))), str(draw_from.choice(MOTIONS))
        things.append(Thing(colour, shape, size, motion, float(x), float(y)))
    return things, background


def main() -> None:
    """Builds the folder."""
    parser = argparse.ArgumentParser(description="Make the data set of moving shapes: videos/ and metadata.jsonl.")
    parser.add_argument("output_dir", type=Path, help="folder to write")
    parser.add_argument(
        "--num_train", type=int, default=384, help="clips to train on, and as many stills (default 384)"
    )
    parser.add_argument("--num_test", type=int, default=128, help="clips to test on (default 128)")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels (default 64)")
    parser.add_argument("--num_frames", type=int, default=24, help="frames of each clip (default 24)")
    parser.add_argument("--fps", type=int, default=8, help="frames per second (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (default 0)")
    arguments = parser.parse_args()
    videos = arguments.output_dir / "videos"
    videos.mkdir(parents=True, exist_ok=True)

    counts = {"train": arguments.num_train, "test": arguments.num_test, "stills": arguments.num_train}
    scenes = [(split, number) for split, count in counts.items() for number in range(count)]
    lines = []
    for index, (split, number) in enumerate(track(scenes, "drawing")):
        draw_from = np.random.default_rng([arguments.seed, index])
        things, background = draw_lots(split, number, draw_from)
        moving, last = split != "stills", max(arguments.num_frames - 1, 1)
        times = [k / last if moving else 0.5 for k in range(arguments.num_frames)]
        frames = np.stack([draw(things, background, time, arguments.size) for time in times])
        write_video(videos / f"{index:05d}.mp4", frames, fps=arguments.fps)
        what = " and ".join(thing.caption(moving=moving) for thing in things)
        row = {"file_name": f"videos/{index:05d}.mp4", "text": f"{what} over a {background} background", "split": split}
        lines.append(json.dumps(row) + "\n")
    write_metadata(arguments.output_dir, lines)


def write_metadata(folder: Path, lines: list[str]) -> None:
    """Writes the list of clips, last of all, and says how many there are."""
    with replacing_file(folder / "metadata.jsonl") as partial:
        partial.write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} clips in {folder}")


if __name__ == "__main__":
    main()
