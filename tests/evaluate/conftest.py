"""The real I3D network, where the shared data is there."""

from pathlib import Path

import pytest

from contentmotion.evaluate.i3d import InceptionI3d, load_i3d


@pytest.fixture(scope="session")
def i3d_folder(shared_data: Path) -> Path:
    return shared_data / "i3d-kinetics400"


@pytest.fixture(scope="session")
def i3d(i3d_folder: Path) -> InceptionI3d:
    return load_i3d(i3d_folder / "i3d_kinetics400_rgb.safetensors")
