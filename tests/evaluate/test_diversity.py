from pathlib import Path

import numpy as np
import pytest
import torch

from contentmotion.evaluate.lpips import LPIPS, diversity, load_lpips


@pytest.fixture(scope="module")
def lpips(shared_data: Path) -> LPIPS:
    return load_lpips(shared_data / "lpips/lpips_alex.safetensors")


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 32, 32, 3), np.uint8)


def test_equal_videos_have_none(lpips: LPIPS) -> None:
    videos = np.repeat(noise(1, 2, 3), 3, axis=0)
    assert diversity(lpips, videos).tolist() == [0, 0]


def test_mean_over_the_pairs_of_seeds(lpips: LPIPS) -> None:
    videos = noise(3, 2, 4)
    videos[1, 0] = videos[0, 0]  # the first prompt: two equal seeds of three
    frames = torch.from_numpy(videos).permute(0, 1, 2, 5, 3, 4).float() / 127.5 - 1
    with torch.inference_mode():
        pairs = [lpips(frames[i, 0], frames[j, 0]).mean().item() for i, j in ((0, 1), (0, 2), (1, 2))]
    values = diversity(lpips, videos)
    assert pairs[0] == 0
    assert values[0].item() == pytest.approx(sum(pairs) / 3, rel=1e-5)
    assert values[1] > values[0]


def test_a_few_frames_are_the_first_the_last_and_between(lpips: LPIPS) -> None:
    videos = noise(2, 1, 5)
    expected = diversity(lpips, videos[:, :, [0, 2, 4]])
    assert torch.equal(diversity(lpips, videos, num_frames=3), expected)
    assert torch.equal(diversity(lpips, videos, num_frames=9), diversity(lpips, videos))


def test_one_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="2 seeds or more"):
        diversity(LPIPS(), noise(1, 2, 3))
    with pytest.raises(ValueError, match="2 seeds or more"):
        diversity(LPIPS(), noise(2, 3))
    with pytest.raises(ValueError, match="must be uint8"):
        diversity(LPIPS(), noise(2, 1, 3).astype(np.float32))
