import math

import numpy as np
import pytest
import torch

from contentmotion.evaluate.pixel_metrics import mean_squared_error, psnr, ssim


def test_known_values() -> None:
    black = np.zeros((2, 3, 4, 4, 3), np.uint8)
    other = black.copy()
    other[1] = 51  # a fifth of the range everywhere
    assert mean_squared_error(black, other).tolist() == pytest.approx([0, 0.04])
    assert psnr(black, other).tolist() == pytest.approx([math.inf, -10 * math.log10(0.04)])


def test_both_ranges_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 256, (2, 3, 2, 4, 4, 3), generator=generator, dtype=torch.uint8)
    torch.testing.assert_close(psnr(a, b), psnr(a.double() / 127.5 - 1, b.double() / 127.5 - 1), rtol=1e-12, atol=0)


def test_unlike_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="shape or type"):
        psnr(torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="shape or type"):
        psnr(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.uint8))


def noisy_pair(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Two clips of 3 smooth frames, and the same with growing noise: uint8 (2, 3, height, width, 3)."""
    rng = np.random.default_rng(0)
    ramps = np.linspace(0, 200, height)[:, None, None] + np.linspace(0, 50, width)[:, None]
    a = np.broadcast_to(ramps, (2, 3, height, width, 3)) + rng.normal(0, 3, (2, 3, height, width, 3))
    b = a + rng.normal(0, 1, a.shape) * np.array([4, 30])[:, None, None, None, None]
    return a.clip(0, 255).astype(np.uint8), b.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(11, 11), (20, 33)])
def test_ssim_and_psnr_are_scikit_images(size: tuple[int, int]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a, b = noisy_pair(*size)
    expected = [
        np.mean(
            [
                metrics.structural_similarity(
                    x,
                    y,
                    gaussian_weights=True,
                    sigma=1.5,
                    use_sample_covariance=False,
                    data_range=255,
                    channel_axis=-1,
                )
                for x, y in zip(clip_a, clip_b, strict=True)
            ]
        )
        for clip_a, clip_b in zip(a, b, strict=True)
    ]
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-6)
    assert expected[0] > expected[1] + 0.1
    peaks = [metrics.peak_signal_noise_ratio(x, y, data_range=255) for x, y in zip(a, b, strict=True)]
    assert psnr(a, b).tolist() == pytest.approx(peaks, abs=1e-6)


def test_ssim_of_equal_clips_is_one() -> None:
    a, b = noisy_pair(16, 16)
    assert ssim(a, a).tolist() == pytest.approx([1, 1], abs=1e-12)
    torch.testing.assert_close(ssim(a, b), ssim(b, a))


def test_ssim_refuses_what_it_cannot_measure() -> None:
    with pytest.raises(ValueError, match=r"11x11 or more, got \(10, 40\)"):
        ssim(np.zeros((1, 2, 10, 40, 3), np.uint8), np.zeros((1, 2, 10, 40, 3), np.uint8))
    with pytest.raises(ValueError, match="different shapes"):
        ssim(np.zeros((1, 2, 16, 16, 3), np.uint8), np.zeros((1, 2, 16, 17, 3), np.uint8))
