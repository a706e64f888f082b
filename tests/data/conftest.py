"""Fixtures that the tests of data share."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def save_autoencoder() -> Callable[[Path], Path]:
    """`save_autoencoder(folder)`: a tiny untrained one of pixels; `encode` writes to its folder: each has its own."""
    import torch

    from contentmotion import ContentMotionAutoencoder

    def save(folder: Path) -> Path:
        torch.manual_seed(0)
        model = ContentMotionAutoencoder(
            in_channels=3, hidden_size=16, depth=1, num_heads=2, head_dim=8, motion_channels=2, num_frames=4
        )
        model.save_pretrained(folder)
        return folder

    return save
