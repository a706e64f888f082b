import cv2
import numpy as np
import pytest
import torch

from contentmotion.evaluate.pixel_metrics import frame_difference, optical_flow


def moving_texture(size: int, step: int, *, num_frames: int = 6, seed: int = 0) -> np.ndarray:
    """Blurred noise that moves `step` pixels a frame to the left, uint8 (1, num_frames, size, size, 3)."""
    width = size + step * num_frames
    texture = cv2.GaussianBlur(np.random.default_rng(seed).random((size, width, 3)), (0, 0), 1.5)
    texture = ((texture - texture.min()) / np.ptp(texture) * 255).astype(np.uint8)
    return np.stack([texture[:, step * k : step * k + size] for k in range(num_frames)])[None]


def test_frame_difference_of_known_clips() -> None:
    still = np.full((4, 2, 2, 3), 90, np.uint8)
    flicker, jump = still.copy(), still.copy()
    flicker[::2], flicker[1::2] = 0, 255
    jump[2:] += 51  # a fifth of the range, in one of three steps
    difference = frame_difference(np.stack([still, flicker, jump]))
    assert difference.tolist() == pytest.approx([0, 1, 0.2 / 3])
    assert difference.dtype == torch.float64


@pytest.mark.parametrize("size", [32, 64, 128])
def test_flow_is_the_speed_in_pixels(size: int) -> None:
    speeds = [optical_flow(moving_texture(size, step)).item() for step in (0, 2, 4)]
    assert speeds[0] == 0
    assert speeds[1] == pytest.approx(2, rel=0.1)
    assert speeds[2] / speeds[1] == pytest.approx(2, rel=0.1)


def test_flow_of_a_batch_is_that_of_its_clips_and_repeats() -> None:
    clips = np.concatenate([moving_texture(48, step, seed=step) for step in (1, 3)])
    threads = cv2.getNumThreads()
    flow = optical_flow(torch.from_numpy(clips))
    assert torch.equal(flow, torch.cat([optical_flow(clips[:1]), optical_flow(clips[1:])]))
    assert cv2.getNumThreads() == threads


@pytest.mark.parametrize("measure", [frame_difference, optical_flow])
def test_wrong_clips_are_refused(measure) -> None:
    assert measure(np.zeros((0, 2, 32, 32, 3), np.uint8)).shape == (0,)
    with pytest.raises(ValueError, match="2 frames or more, got 1"):
        measure(np.zeros((1, 1, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="must be uint8"):
        measure(np.zeros((1, 2, 32, 32, 3), np.float32))


def test_flow_of_tiny_frames_is_refused() -> None:
    with pytest.raises(ValueError, match=r"16x16 or more, got \(15, 40\)"):
        optical_flow(np.zeros((1, 2, 15, 40, 3), np.uint8))
