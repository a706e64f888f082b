import math

import numpy as np
import pytest
import torch

from contentmotion.evaluate.reconstruction import mean_squared_error, psnr


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
