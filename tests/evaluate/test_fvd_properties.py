"""FVD of real clips that were spoilt in known ways, with the real I3D."""

from pathlib import Path

import numpy as np
import pytest
import torch

from contentmotion.evaluate.fvd import FrechetStatistics, frechet_distance
from contentmotion.evaluate.i3d import InceptionI3d, i3d_features
from contentmotion.video.reader import read_video

VIDEOS = ("bikes.mp4", "tree.avi")
NUM_FRAMES = 9  # the fewest that I3D takes


@pytest.fixture(scope="module")
def clips(shared_data: Path) -> np.ndarray:
    """One clip of each camera video, every third frame, uint8 (2, 9, 72, 96, 3)."""
    clips = []
    for name in VIDEOS:
        frames = read_video(shared_data / "real-clips/videos" / name, max_frames=3 * NUM_FRAMES).frames[::3]
        frames = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
        small = torch.nn.functional.interpolate(frames, (72, 96), mode="bilinear", antialias=True)
        clips.append(small.round().byte().permute(0, 2, 3, 1).numpy())
    return np.stack(clips)


@pytest.fixture(scope="module")
def real(clips: np.ndarray, i3d: InceptionI3d) -> FrechetStatistics:
    return FrechetStatistics(i3d_features(i3d, clips))


def spoilt(clips: np.ndarray, kind: str, amount: float) -> np.ndarray:
    """Clips with noise of that deviation, or with that share of their frames frozen or in another order."""
    if kind == "noise":
        noise = np.random.default_rng(0).normal(0, amount, clips.shape)
        return (clips + noise).clip(0, 255).astype(np.uint8)
    order = np.arange(NUM_FRAMES)
    count = round(amount * NUM_FRAMES)
    if kind == "frozen":
        order[NUM_FRAMES - count :] = NUM_FRAMES - count
    else:
        order[:count] = np.random.default_rng(0).permutation(count)
    return clips[:, order]


@pytest.mark.parametrize(
    ("kind", "amounts"), [("noise", (10, 60)), ("frozen", (0.5, 0.95)), ("shuffled", (0.5, 1))], ids=lambda v: str(v)
)
def test_fvd_grows_with_what_is_spoilt(
    kind: str, amounts: tuple[float, float], clips: np.ndarray, real: FrechetStatistics, i3d: InceptionI3d
) -> None:
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)
    fakes = [FrechetStatistics(i3d_features(i3d, spoilt(clips, kind, amount))) for amount in amounts]
    little, much = (frechet_distance(fake, real) for fake in fakes)
    assert 1 < little < much
    assert frechet_distance(real, fakes[0]) == pytest.approx(little, rel=1e-9)
