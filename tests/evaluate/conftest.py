"""The real I3D network, where the shared data is there."""

from pathlib import Path

import pytest

from contentmotion.evaluate.i3d import InceptionI3d, load_i3d

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"


@pytest.fixture(scope="session")
def i3d_folder() -> Path:
    folder = SHARED / "i3d-kinetics400"
    if not folder.is_dir():
        pytest.skip("no ../shared/data/i3d-kinetics400 (the I3D weights)")
    return folder


@pytest.fixture(scope="session")
def i3d(i3d_folder: Path) -> InceptionI3d:
    return load_i3d(i3d_folder / "i3d_kinetics400_rgb.safetensors")
