"""Checkpoints by folder or hub id, with one clear line where something is missing."""

from __future__ import annotations

from pathlib import Path

from diffusers.models.modeling_utils import ModelMixin


def load_vae(name_or_path: str) -> ModelMixin:
    """Image VAE of a VAE folder, or of a Stable Diffusion folder or hub id.

    Raises:
        ValueError: There is none.
    """
    from diffusers import AutoModel

    path = Path(name_or_path)
    if path.is_dir() and not (path / "config.json").exists() and not (path / "vae").is_dir():
        raise ValueError(f"no VAE in {path}: neither config.json nor a folder vae")
    own = path.is_dir() and (path / "config.json").exists()
    try:
        vae = AutoModel.from_pretrained(name_or_path, subfolder=None if own else "vae")
    except (OSError, ValueError) as error:
        raise ValueError(f"no VAE at {name_or_path}: {str(error).splitlines()[0]}") from error
    return vae.eval().requires_grad_(False)
