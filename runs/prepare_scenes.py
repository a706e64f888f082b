"""Make a captioned data set with exact depth without any source: solids that move over a floor, rendered by a seed.

    python runs/prepare_scenes.py OUT

Writes OUT/videos/NUMBER.mp4, OUT/depth/NUMBER.mkv (lossless grey: 255 the nearest place of the clip, 0 infinity, in
between in proportion to 1 / distance along the camera's axis) and OUT/metadata.jsonl with captions such as "a large red
sphere rolls left over a green floor". The camera swings slowly. Two splits:

* train: what models learn from;
* test: colours and solids in pairs that no training clip shows (a fifth of all pairs, "a purple box", say).
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from prepare_shapes import COLOURS, pairs_of, write_metadata  # the script beside this one
from rich.progress import track

from contentmotion.saving import replacing_file
from contentmotion.video.write import write_video

SOLIDS = ("sphere", "box", "cylinder")
SIZES = {"small": 0.5, "large": 0.8}  # radius, or half a side
MOTIONS = ("left", "right", "closer", "away", "bounces", "stands still")
SKY = np.array([176, 206, 235]) / 255
LIGHT = np.array([0.45, 0.8, -0.4]) / np.linalg.norm([0.45, 0.8, -0.4])
AMBIENT = 0.45
SUPERSAMPLING = 2
EPSILON = 1e-4


@dataclass(frozen=True)
class Solid:
    """One solid on the floor and what it does. `x` (right), `z` (ahead): its centre in the middle of the clip."""

    colour: str
    kind: str
    size: str
    motion: str
    x: float
    z: float
    turn: float

    def caption(self) -> str:
        """Such as "a large red sphere rolls left"."""
        goes = "rolls" if self.kind == "sphere" else "slides"
        what = {"left": f"{goes} left", "right": f"{goes} right", "closer": "comes closer", "away": "moves away"}
        return f"a {self.size} {self.colour} {self.kind} {what.get(self.motion, self.motion)}"

    def centre(self, time: float) -> np.ndarray:
        """Where its centre is at a time in [0, 1]; the floor is at height 0."""
        swing = 1.8 * (time - 0.5)
        x = self.x + {"left": -swing, "right": swing}.get(self.motion, 0.0)
        z = self.z + {"closer": -swing, "away": swing}.get(self.motion, 0.0)
        height = SIZES[self.size] + (0.9 * abs(np.sin(2 * np.pi * time)) if self.motion == "bounces" else 0.0)
        return np.array([x, height, z])

    def hit(self, origins: np.ndarray, rays: np.ndarray, time: float) -> tuple[np.ndarray, np.ndarray]:
        """Where rays meet it first.

        Args:
            origins: (n, 3) or (3,).
            rays: Directions (n, 3).
            time: In [0, 1].

        Returns:
            How many times a ray's direction it is to there (n,), inf where it misses; the normals there (n, 3).
        """
        c, s = np.cos(self.turn), np.sin(self.turn)
        rotation = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        o = np.broadcast_to((origins - self.centre(time)) @ rotation, rays.shape)
        meet = {"sphere": _hit_sphere, "box": _hit_box, "cylinder": _hit_cylinder}[self.kind]
        d = rays @ rotation
        d = np.where(np.abs(d) < 1e-12, 1e-12, d)  # nothing is exactly parallel to a face
        with np.errstate(divide="ignore", invalid="ignore"):
            distance, normals = meet(o, d, SIZES[self.size])
        return np.where(distance > EPSILON, distance, np.inf), normals @ rotation.T


def _quadratic(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The smaller root of a t^2 + 2 b t + c, inf where there is none."""
    inside = b**2 - a * c
    return np.where(inside >= 0, (-b - np.sqrt(np.maximum(inside, 0))) / a, np.inf)


def _hit_sphere(o: np.ndarray, d: np.ndarray, r: float) -> tuple[np.ndarray, np.ndarray]:
    t = _quadratic((d * d).sum(1), (o * d).sum(1), (o * o).sum(1) - r * r)
    return t, np.where(np.isfinite(t)[:, None], o + t[:, None] * d, 0) / r


def _hit_box(o: np.ndarray, d: np.ndarray, r: float) -> tuple[np.ndarray, np.ndarray]:
    enter, leave = (-np.sign(d) * r - o) / d, (np.sign(d) * r - o) / d
    axis = enter.argmax(1)
    t = enter.max(1)
    normals = -np.eye(3)[axis] * np.sign(d)
    return np.where(t <= leave.min(1), t, np.inf), normals


def _hit_cylinder(o: np.ndarray, d: np.ndarray, r: float) -> tuple[np.ndarray, np.ndarray]:
    flat_o, flat_d = o[:, [0, 2]], d[:, [0, 2]]
    side = _quadratic((flat_d**2).sum(1), (flat_o * flat_d).sum(1), (flat_o**2).sum(1) - r * r)
    on_side = np.where(np.isfinite(side)[:, None], o + side[:, None] * d, 0)
    side = np.where(np.abs(on_side[:, 1]) <= r, side, np.inf)
    lid = (-np.sign(d[:, 1]) * r - o[:, 1]) / d[:, 1]
    on_lid = np.where(np.isfinite(lid)[:, None], o + lid[:, None] * d, 9)
    lid = np.where((on_lid[:, [0, 2]] ** 2).sum(1) <= r * r, lid, np.inf)
    up = -np.sign(d[:, 1:2]) * np.array([0.0, 1, 0])
    normals = np.where((lid < side)[:, None], up, on_side * np.array([1, 0, 1]) / r)
    return np.minimum(side, lid), normals


def camera(swing: float, time: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the camera is, and a ray through the centre of each pixel, (size * size, 3), one long along its axis.

    Args:
        swing: How far it turns about the scene during the clip, radians.
        time: In [0, 1].
        size: Pixels along a side.
    """
    angle = swing * (time - 0.5)
    place = np.array([4.8 * np.sin(angle), 2.2, -4.8 * np.cos(angle)])
    ahead = np.array([0, 0.5, 0]) - place
    ahead /= np.linalg.norm(ahead)
    right = np.cross([0, 1, 0], ahead)
    right /= np.linalg.norm(right)
    up = np.cross(ahead, right)
    steps = ((np.arange(size) + 0.5) / size - 0.5) * 1.1  # 58 degrees
    rays = ahead + steps[None, :, None] * right - steps[:, None, None] * up
    return place, rays.reshape(-1, 3)


def trace(
    place: np.ndarray, rays: np.ndarray, solids: list[Solid], time: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each ray meets first: how far (n,), normals (n, 3), and number (-1: sky; 0: floor; 1, ...: solids)."""
    with np.errstate(divide="ignore"):
        floor = -place[1] / rays[:, 1]
    distance = np.where(floor > EPSILON, floor, np.inf)
    normals = np.broadcast_to(np.array([0.0, 1, 0]), rays.shape)
    number = np.where(np.isfinite(distance), 0, -1)
    for k, solid in enumerate(solids, start=1):
        found, its_normals = solid.hit(place, rays, time)
        nearer = found < distance
        distance, number = np.where(nearer, found, distance), np.where(nearer, k, number)
        normals = np.where(nearer[:, None], its_normals, normals)
    return distance, normals, number


def render(solids: list[Solid], floor: str, swing: float, time: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One frame.

    Returns:
        Colours uint8 (size, size, 3); 1 / distance along the camera's axis at each pixel's centre, float (size, size).
    """
    place, rays = camera(swing, time, size)
    nearness = 1 / trace(place, rays, solids, time)[0]  # rays are one long along the axis; 1 / inf is 0
    place, rays = camera(swing, time, size * SUPERSAMPLING)
    distance, normals, number = trace(place, rays, solids, time)
    points = place + np.where(number >= 0, distance, 0)[:, None] * rays
    palette = np.array([COLOURS[floor], *(COLOURS[solid.colour] for solid in solids)]) / 255
    colour = palette[np.maximum(number, 0)]
    squares = (np.floor(points[:, 0]) + np.floor(points[:, 2])) % 2
    colour = colour * np.where(number == 0, 0.82 + 0.18 * squares, 1)[:, None]  # without squares no camera would move
    shadow = np.zeros(len(rays), bool)
    for solid in solids:
        shadow |= np.isfinite(solid.hit(points + 1e-3 * normals, np.broadcast_to(LIGHT, rays.shape), time)[0])
    light = AMBIENT + (1 - AMBIENT) * np.where(shadow, 0, np.clip(normals @ LIGHT, 0, 1))
    # Far floor fades into the sky: it would flicker there.
    fog = np.where(number == 0, np.clip((distance - 8) / 14, 0, 1), 0)[:, None]
    colour = (colour * light[:, None]) * (1 - fog) + SKY * fog
    colour = np.where((number < 0)[:, None], SKY, colour)
    k = SUPERSAMPLING
    picture = colour.reshape(size, k, size, k, 3).mean((1, 3))
    return (picture * 255).round().astype(np.uint8), nearness.reshape(size, size)


def draw_lots(split: str, number: int, draw_from: np.random.Generator) -> tuple[list[Solid], str, float]:
    """A scene of a split: its solids, its floor, the camera's swing. Every second scene holds two solids."""
    pairs = pairs_of(split, SOLIDS)
    count = 2 if number % 2 == 0 else 1
    chosen = [pairs[k] for k in draw_from.choice(len(pairs), count, replace=False)]
    floor = str(draw_from.choice([name for name in COLOURS if name not in {c for c, _ in chosen}]))
    solids = []
    for place, (colour, kind) in enumerate(chosen):
        x = (0.0 if count == 1 else (-1.2, 1.2)[place]) + draw_from.uniform(-0.2, 0.2)
        size, motion = str(draw_from.choice(list(SIZES))), str(draw_from.choice(MOTIONS))
        z, turn = draw_from.uniform(-1, 1), draw_from.uniform(0, np.pi / 2)
        solids.append(Solid(colour, kind, size, motion, float(x), float(z), float(turn)))
    return solids, floor, float(draw_from.uniform(0.15, 0.4) * draw_from.choice([-1, 1]))


def render_clip(
    solids: list[Solid], floor: str, swing: float, num_frames: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 (t, size, size, 3); depth uint8 (t, size, size), 255 at the clip's nearest place, 0 at infinity."""
    frames = [render(solids, floor, swing, k / max(num_frames - 1, 1), size) for k in range(num_frames)]
    nearness = np.stack([near for _, near in frames])
    return np.stack([frame for frame, _ in frames]), (nearness / nearness.max() * 255).round().astype(np.uint8)


def write_depth(path: Path, depth: np.ndarray, fps: int) -> None:
    """Writes grey frames uint8 (t, h, w) without loss (FFV1)."""
    with replacing_file(path) as partial, av.open(str(partial), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width, stream.pix_fmt = depth.shape[1], depth.shape[2], "gray"
        for frame in depth:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode())


def main() -> None:
    """Builds the folder."""
    parser = argparse.ArgumentParser(description="Make the data set of scenes: videos/, depth/ and metadata.jsonl.")
    parser.add_argument("output_dir", type=Path, help="folder to write")
    parser.add_argument("--num_train", type=int, default=384, help="clips to train on (default 384)")
    parser.add_argument("--num_test", type=int, default=128, help="clips to test on (default 128)")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels (default 64)")
    parser.add_argument("--num_frames", type=int, default=24, help="frames of each clip (default 24)")
    parser.add_argument("--fps", type=int, default=8, help="frames per second (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (default 0)")
    arguments = parser.parse_args()
    for name in ("videos", "depth"):
        (arguments.output_dir / name).mkdir(parents=True, exist_ok=True)

    counts = {"train": arguments.num_train, "test": arguments.num_test}
    scenes = [(split, number) for split, count in counts.items() for number in range(count)]
    lines = []
    for index, (split, number) in enumerate(track(scenes, "rendering")):
        solids, floor, swing = draw_lots(split, number, np.random.default_rng([arguments.seed, index]))
        frames, depth = render_clip(solids, floor, swing, arguments.num_frames, arguments.size)
        write_video(arguments.output_dir / f"videos/{index:05d}.mp4", frames, fps=arguments.fps)
        write_depth(arguments.output_dir / f"depth/{index:05d}.mkv", depth, fps=arguments.fps)
        row = {
            "file_name": f"videos/{index:05d}.mp4",
            "depth_file_name": f"depth/{index:05d}.mkv",
            "text": f"{' and '.join(solid.caption() for solid in solids)} over a {floor} floor",
            "split": split,
        }
        lines.append(json.dumps(row) + "\n")
    write_metadata(arguments.output_dir, lines)


if __name__ == "__main__":
    main()
