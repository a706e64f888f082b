"""Fixtures of distillation: a tiny teacher with its caches, and settings that distil it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contentmotion.commands.encode import encode
from contentmotion.commands.export import export
from contentmotion.config import (
    AutoencoderSizes,
    ContentSizes,
    DistillConfig,
    EncodeConfig,
    ExportConfig,
    MotionSizes,
    TrainAutoencoderConfig,
    TrainContentConfig,
    TrainMotionConfig,
)
from contentmotion.train.autoencoder import train_autoencoder
from contentmotion.train.content import train_content
from contentmotion.train.motion import train_motion

STEPS: dict[str, Any] = {
    "max_train_steps": 2, "train_batch_size": 2, "logging_steps": 1, "checkpointing_steps": 1,
    "validation_steps": 0, "report_to": "none", "mixed_precision": "no", "lr_warmup_steps": 1,
}  # fmt: skip


@pytest.fixture(scope="session")
def root(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``teacher``, of pixels, each part trained for two steps; its caches ``cache`` and, of one clip, ``unseen``."""
    root = tmp_path_factory.mktemp("distill")
    data = {"train_data_dir": str(clip_folder), "num_frames": 4, "height": 16, "width": 16}
    sizes = {"hidden_size": 16, "depth": 1, "num_heads": 2}
    train_autoencoder(
        TrainAutoencoderConfig(**data, **STEPS, model=AutoencoderSizes(head_dim=8, **sizes), output_dir=f"{root}/ae")
    )
    encode(EncodeConfig(**data, autoencoder=f"{root}/ae/autoencoder", output_dir=f"{root}/cache"))
    held_out = {"split": "test", "autoencoder": f"{root}/ae/autoencoder", "output_dir": f"{root}/unseen"}
    encode(EncodeConfig(**data | held_out))
    common = STEPS | {"cache_dir": f"{root}/cache", "learning_rate": 1e-2}
    train_content(
        TrainContentConfig(
            **common, output_dir=f"{root}/content",
            model=ContentSizes(block_out_channels=(32, 32), text_hidden_size=32, text_num_layers=1, vocab_size=600),
        )
    )  # fmt: skip
    parts = {"pretrained_model_name_or_path": f"{root}/content/content", "autoencoder": f"{root}/ae/autoencoder"}
    dit = MotionSizes(content_patch_size=2, **sizes)
    train_motion(TrainMotionConfig(**common, **parts, model=dit, output_dir=f"{root}/motion"))
    motion = f"{root}/motion/motion_transformer"
    export(ExportConfig(**parts, motion_transformer=motion, output_dir=f"{root}/teacher", dtype="fp32"))
    return root


@pytest.fixture
def distill_config(root: Path) -> Callable[..., DistillConfig]:
    """`distill_config(name, part, **changes)`: two steps into the folder `name`."""

    def make(name: str, part: str, **changes: Any) -> DistillConfig:
        settings: dict[str, Any] = STEPS | {
            "pretrained_model_name_or_path": f"{root}/teacher", "cache_dir": f"{root}/cache", "part": part,
            "output_dir": f"{root}/{name}", "learning_rate": 1e-3, "guidance_scale": 3.0,
        }  # fmt: skip
        return DistillConfig(**settings | changes)

    return make
