"""Command ``info``: what a checkpoint or a latent cache holds, or where a generated file is from; no weight is read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError, safe_open

from contentmotion.config import InfoConfig
from contentmotion.pipelines.loading import resolve_name

PARTS = "model_index.json"  # of a pipeline folder
CACHE = "manifest.json"  # of a latent cache
# The settings worth a place in the table, in this order, where a part's config has them.
SHOWN = (
    "in_channels", "sample_size", "sample_height", "sample_width", "num_frames", "latent_channels",
    "block_out_channels", "hidden_size", "depth", "num_layers", "num_hidden_layers", "num_heads",
    "patch_size", "content_patch_size", "motion_channels", "content_mode", "residual_decoding",
    "cross_attention_dim", "text_dim", "num_classes", "vocab_size", "learn_sigma", "scaling_factor",
    "num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type",
    "rescale_betas_zero_snr",
)  # fmt: skip


def info(config: InfoConfig) -> None:
    """Prints a table, or JSON: of a pipeline its parts, of one network its settings, of a cache its clips, of a
    generated video or picture the model, the prompt and the seed.

    Raises:
        ValueError: It is none of these, or damaged.
    """
    if Path(config.checkpoint).is_file():
        _print_provenance(Path(config.checkpoint), as_json=config.json)
        return
    folder = local_folder(config.checkpoint)
    if config.json:
        print(json.dumps(describe(folder), indent=2))
        return
    console = Console(highlight=False)
    if (folder / CACHE).exists():
        console.print(cache_table(folder))
        return
    parts = find_parts(folder)
    table = Table("part", "parameters", "settings", title=Text(str(folder)), show_lines=True)
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    table.columns[1].justify = "right"
    total = 0
    for name, part in parts.items():
        class_name, settings = read_settings(part)
        parameters, size, dtypes = count_parameters(part)
        total += parameters
        cell = f"{parameters:,}\n{size / 1e6:.1f} MB {dtypes}" if parameters else ""
        shown = "  ".join(f"{key}={value}" for key, value in settings.items())
        table.add_row(Text(f"{name}\n{class_name}"), cell, Text(shown))
    console.print(table)
    console.print(f"{total:,} parameters in all")
    if "autoencoder" in parts:
        console.print(describe_flow(parts), markup=False, soft_wrap=True)


def describe(folder: Path) -> dict[str, Any]:
    """What the tables say, for programs: "cache", or "parts", "parameters" and perhaps "flow".

    Args:
        folder: Of a checkpoint or a latent cache.

    Raises:
        ValueError: It is none of these, or damaged.
    """
    if (folder / CACHE).exists():
        shards = [read_shapes(shard) for shard in sorted(folder.glob("shard-*.safetensors"))]
        clips = sum(shapes["label"][0][0] for shapes in shards)
        return {"cache": str(folder), "clips": clips, "shards": len(shards), "manifest": _read_json(folder / CACHE)}
    parts = {}
    found = find_parts(folder)
    for name, part in found.items():
        class_name, settings = read_settings(part)
        parameters, size, dtypes = count_parameters(part)
        parts[name] = {"class": class_name, "parameters": parameters, "bytes": size, "dtypes": dtypes, **settings}
    whole = {"folder": str(folder), "parts": parts, "parameters": sum(part["parameters"] for part in parts.values())}
    return whole | ({"flow": describe_flow(found)} if "autoencoder" in found else {})


def _print_provenance(path: Path, *, as_json: bool) -> None:
    """Prints what a generated file says of itself.

    Raises:
        ValueError: It is no video and no picture, or says nothing.
    """
    import av  # here alone: checkpoints are described without it

    from contentmotion.video.write import read_metadata

    try:
        found = read_metadata(path)
    except (OSError, av.FFmpegError) as error:
        raise ValueError(f"{path}: not a checkpoint folder, and not a readable video or picture") from error
    if "generated" not in found:
        raise ValueError(f"{path} does not say that contentmotion made it (copies that were re-encoded do not)")
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    table = Table("generated file", escape(str(path)))
    for key, value in found.items():
        table.add_row(key, Text(value))
    Console(highlight=False).print(table)


def local_folder(name_or_path: str) -> Path:
    """The folder of a checkpoint; a hub id is downloaded first.

    Raises:
        ValueError: No such checkpoint.
    """
    path = Path(resolve_name(name_or_path))
    if path.is_dir():
        return path
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(str(path)))
    except Exception as error:  # the hub, the network and diffusers each raise their own
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"no such checkpoint: {path} (the hub did not give it: {reason})") from error


def find_parts(folder: Path) -> dict[str, Path]:
    """Folders of the parts by name: a pipeline's, else the folder itself, else those inside it.

    Raises:
        ValueError: There are none, or a part of the pipeline is missing.
    """
    if (folder / PARTS).exists():
        index = _read_json(folder / PARTS)
        names = [name for name, value in index.items() if isinstance(value, list) and value[0] is not None]
        missing = [name for name in names if not (folder / name).is_dir()]
        if missing:
            raise ValueError(f"{folder} is incomplete: no folder {' and no folder '.join(missing)}")
        return {name: folder / name for name in names}
    if (folder / "config.json").exists() or (folder / "scheduler_config.json").exists():
        return {folder.name: folder}
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    parts = {path.name: path for path in inside if (path / "config.json").exists()}
    if not parts:
        nested = [str(path) for path in inside if (path / PARTS).exists() or (path / CACHE).exists()]
        hint = f"; look at {' or '.join(nested[:3])}" if nested else ""
        raise ValueError(f"{folder} holds no checkpoint and no latent cache{hint}")
    return parts


def read_settings(part: Path) -> tuple[str, dict[str, str]]:
    """A part's class, and those of its settings that are worth showing."""
    settings: dict[str, Any] = {}
    for file in ("config.json", "scheduler_config.json", "tokenizer_config.json"):
        if (part / file).exists():
            settings |= _read_json(part / file)
    name = settings.get("_class_name") or (settings.get("architectures") or [None])[0]
    name = name or settings.get("tokenizer_class") or ""
    return name, shown_settings(settings)


def shown_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Those of a part's settings that are worth showing, as text."""
    return {key: _text(settings[key]) for key in SHOWN if settings.get(key) is not None}


def count_parameters(part: Path) -> tuple[int, int, str]:
    """Parameters, bytes and number formats in a part's safetensors files."""
    parameters, size, dtypes = 0, 0, set()
    for file in sorted(part.glob("*.safetensors")):
        size += file.stat().st_size
        for shape, dtype in read_shapes(file).values():
            parameters += math.prod(shape)
            dtypes.add(dtype)
    return parameters, size, ", ".join(sorted(dtypes))


def read_shapes(file: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and number format of each tensor of a safetensors file.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        with safe_open(file, "np") as tensors:
            names = tensors.keys()
            slices = {name: tensors.get_slice(name) for name in names}
            return {name: (part.get_shape(), str(part.get_dtype())) for name, part in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged file ({error})") from error


def describe_flow(parts: dict[str, Path]) -> str:
    """Shapes of what flows through the autoencoder among a checkpoint's parts."""
    own = _read_json(parts["autoencoder"] / "config.json")
    # A pipeline: without a VAE it works on pixels.
    return flow_text(own, _scale_factor(parts.get("vae")) if len(parts) > 1 else None)


def flow_text(own: Mapping[str, Any], factor: int | None) -> str:
    """Shapes of what flows through an autoencoder.

    Args:
        own: The autoencoder's settings.
        factor: Pixels per latent along a side; None where the image VAE is not known.
    """
    t, c, h, w = own["num_frames"], own["in_channels"], own["sample_height"], own["sample_width"]
    rows, columns = h // own["patch_size"], w // own["patch_size"]
    whole = f"{t} frames of {c} x {h} x {w}"
    if factor is not None:
        whole = f"{t} frames of {h * factor} x {w * factor} pixels"
    measured = "" if own.get("motion_mean") else " (its statistics are not measured yet: run encode)"
    return (
        f"{whole} = content frame {c} x {h} x {w} "
        f"+ motion latent {own['motion_channels']} x {t} x ({rows} + {columns}){measured}"
    )


def cache_table(folder: Path) -> Table:
    """What a latent cache holds: its clips, their shapes, and what it was made with."""
    shards = [read_shapes(shard) for shard in sorted(folder.glob("shard-*.safetensors"))]
    clips = sum(shapes["label"][0][0] for shapes in shards)
    table = Table("latent cache", escape(str(folder)))
    table.add_row("stored", f"{clips} clips in {len(shards)} shards")
    full = max(shards, key=len, default={})  # a shard without a good clip has fewer tensors
    for name in ("content", "motion", "latents", "pooled", "tokens"):
        if name not in full:
            continue
        shape, dtype = full[name]
        table.add_row(f"{name} of a clip", f"{_text(shape[1:])} {dtype}")
    for key, value in _read_json(folder / CACHE).items():
        table.add_row(key, Text(_text(value)))
    return table


def _scale_factor(vae: Path | None) -> int:
    """Pixels per latent along a side, from a VAE's config (as ``image_vae.vae_scale_factor``)."""
    if vae is None:
        return 1
    settings = _read_json(vae / "config.json")
    channels = settings.get("block_out_channels") or settings["decoder_block_out_channels"]
    return 2 ** (len(channels) - 1)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def _text(value: object) -> str:
    if isinstance(value, list):
        return " x ".join(str(item) for item in value) if len(value) < 9 else f"{len(value)} entries"
    return str(value)
