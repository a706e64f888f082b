"""Command ``export``: parts trained apart -> one pipeline folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from contentmotion.commands.card import write_card
from contentmotion.config import ExportConfig
from contentmotion.evaluate.summary import read_scores
from contentmotion.loading import quiet
from contentmotion.pipelines.loading import load_pipeline
from contentmotion.run_dir import write_config
from contentmotion.saving import replacing_folder

# For DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True).
PIPELINE = 'from contentmotion import ContentMotionPipeline\n\n__all__ = ["ContentMotionPipeline"]\n'
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def export(config: ExportConfig) -> None:
    """Writes a folder that ``generate`` and ``ContentMotionPipeline.from_pretrained`` load, or nothing.

    Raises:
        ValueError: A part is missing, damaged or does not fit the others, the scores are none, or the folder is in use.
        OSError: The folder cannot be written.
    """
    output_dir = Path(config.output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"output folder {output_dir} is already in use: choose a new one")
    scores = read_scores(config.scores) if config.scores else None
    pipe = load_pipeline(
        config.pretrained_model_name_or_path, config.autoencoder, config.motion_transformer, dtype=DTYPES[config.dtype]
    )
    if config.guidance_scale is not None:
        pipe.register_to_config(guidance_scale=config.guidance_scale)
    try:
        with replacing_folder(output_dir) as folder, quiet():
            pipe.save_pretrained(folder, variant=None if config.dtype == "fp32" else config.dtype)
            for path in folder.rglob("*.json"):
                _forget_origin(path)
            write_card(folder, config, scores)
            (folder / "pipeline.py").write_text(PIPELINE)
            write_config(folder / "config.yaml", "export", config)
    except OSError as error:
        raise OSError(f"output folder {output_dir} is not writable: {error.strerror or error}") from error
    print(output_dir)


def _forget_origin(path: Path) -> None:
    """Drops the name of the folder that a part was loaded from: a path of this machine, in a file made to be shared."""
    settings = json.loads(path.read_text())
    if isinstance(settings, dict) and settings.pop("_name_or_path", None) is not None:
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
