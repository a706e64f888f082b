"""The rendered scenes: depth is exact, splits share no pair, the same seed gives the same clips."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from contentmotion.data.formats import read_clip_folder
from contentmotion.video.reader import read_clip

RUNS = Path(__file__).resolve().parents[2] / "runs"
sys.path.insert(0, str(RUNS))

import prepare_scenes  # noqa: E402
from prepare_scenes import SOLIDS, Solid, camera, render, render_clip, trace  # noqa: E402
from prepare_shapes import pairs_of  # noqa: E402


@pytest.mark.parametrize("kind", SOLIDS)
def test_solids_are_met_on_their_surface(kind: str) -> None:
    """From above, in front and beside, a solid of radius 0.8 is met where geometry says, with an outward normal."""
    solid = Solid("red", kind, "large", "stands still", 0.0, 0.0, 0.0)
    for direction in np.eye(3):
        start, ray = solid.centre(0.5) + 5 * direction, -direction[None]
        distance, normals = solid.hit(start, ray, 0.5)
        assert distance[0] == pytest.approx(4.2)
        np.testing.assert_allclose(normals[0], direction, atol=1e-9)
        assert not np.isfinite(solid.hit(start + 2 * np.roll(direction, 1), ray, 0.5)[0])[0]


def test_depth_is_that_of_the_geometry() -> None:
    ball = Solid("red", "sphere", "large", "stands still", 0.0, 0.0, 0.0)
    frame, nearness = render([ball], "green", 0.0, 0.5, 33)
    assert (frame.shape, nearness.shape) == ((33, 33, 3), (33, 33))
    place, rays = camera(0.0, 0.5, 33)
    number = trace(place, rays, [ball], 0.5)[2].reshape(33, 33)
    points = place + rays / np.maximum(nearness.reshape(-1, 1), 1e-9)
    on_ball, on_floor = (number == 1).ravel(), (number == 0).ravel()
    assert on_ball.sum() > 30 and on_floor.sum() > 200 and (number == -1).any()
    np.testing.assert_allclose(np.linalg.norm(points[on_ball] - ball.centre(0.5), axis=1), 0.8)
    np.testing.assert_allclose(points[on_floor][:, 1], 0, atol=1e-9)
    assert not nearness[number == -1].any()
    red = frame[number == 1].astype(int)
    assert (red[:, 0] > red[:, 1]).mean() > 0.9


def test_things_and_camera_move() -> None:
    ball = Solid("red", "sphere", "large", "left", 0.0, 0.0, 0.0)
    frames, depth = render_clip([ball], "green", 0.2, 3, 24)
    assert (depth.max(), depth.min(), depth.dtype) == (255, 0, np.uint8)
    columns = [np.nonzero((f[..., 0].astype(int) - f[..., 1]) > 40)[1].mean() for f in frames]
    assert columns[0] > columns[1] > columns[2]
    assert ball.caption() == "a large red sphere rolls left"
    still, _ = render_clip([], "green", 0.2, 2, 24)
    assert np.abs(still[0].astype(int) - still[1]).mean() > 1


def test_splits_share_no_pair() -> None:
    train, test = pairs_of("train", SOLIDS), pairs_of("test", SOLIDS)
    assert not set(train) & set(test)
    assert len(train) + len(test) == 8 * len(SOLIDS)
    assert {kind for _, kind in test} == set(SOLIDS)


def test_script_writes_a_data_set(tmp_path: Path) -> None:
    words = ["--num_train", "3", "--num_test", "1", "--size", "16", "--num_frames", "4"]
    for name in ("a", "b"):
        script = [sys.executable, prepare_scenes.__file__, str(tmp_path / name), *words]
        subprocess.run(script, check=True, capture_output=True)
    rows = [json.loads(line) for line in (tmp_path / "a/metadata.jsonl").read_text().splitlines()]
    assert [row["split"] for row in rows] == ["train"] * 3 + ["test"]
    folder = read_clip_folder(tmp_path / "a", split="train")
    assert folder.problems == []
    for record in folder.records:
        ((name, path),) = record.conditions
        assert name == "depth"
        depth = read_clip(path, num_frames=None).frames
        assert depth.shape == read_clip(record.path, num_frames=None).frames.shape == (4, 16, 16, 3)
        assert (depth.max(), depth.min()) == (255, 0)
        again = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert np.array_equal(depth, read_clip(again, num_frames=None).frames)
