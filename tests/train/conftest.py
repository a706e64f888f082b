"""Fixtures of distillation: a tiny teacher with its caches, and settings that distil it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contentmotion.config import DistillConfig
from tiny import NARROW_HEADS, STEPS


@pytest.fixture(scope="session", autouse=True)
def short_previews() -> Iterator[None]:
    """Pictures and teachers' samples of tiny models need no 25 or 50 steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("contentmotion.train.denoiser.PREVIEW_STEPS", 2)
        patch.setattr("contentmotion.train.distill.TEACHER_STEPS", 3)
        patch.setattr("contentmotion.train.held_out.TEACHER_STEPS", 5)
        patch.setattr(*NARROW_HEADS)
        yield


@pytest.fixture(scope="module")
def root(chain: Path) -> Path:
    """``teacher``, of pixels, each part trained for two steps; its caches ``cache`` and, of one clip, ``unseen``."""
    return chain


@pytest.fixture
def distill_config(root: Path) -> Callable[..., DistillConfig]:
    """`distill_config(name, part, **changes)`: two steps into the folder `name`."""

    def make(name: str, part: str, **changes: Any) -> DistillConfig:
        settings: dict[str, Any] = STEPS | {
            "pretrained_model_name_or_path": f"{root}/teacher", "latent_cache": f"{root}/cache", "part": part,
            "output_dir": f"{root}/{name}", "learning_rate": 1e-3, "guidance_scale": 3.0,
        }  # fmt: skip
        return DistillConfig(**settings | changes)

    return make
