"""Fixtures that the tests of data share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tiny import make_autoencoder


@pytest.fixture(scope="session")
def save_autoencoder() -> Callable[[Path], Path]:
    """`save_autoencoder(folder)`: a tiny untrained one of pixels; `encode` writes to its folder: each has its own."""

    def save(folder: Path) -> Path:
        make_autoencoder().save_pretrained(folder)
        return folder

    return save
