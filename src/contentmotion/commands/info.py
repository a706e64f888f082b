"""Command ``info``: what a checkpoint or a latent cache holds, or where a file is from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from contentmotion.config import InfoConfig
from contentmotion.saving import hash_state, read_json
from contentmotion.tables import print_table

INDEX = "model_index.json"  # of a pipeline folder
CACHE = "manifest.json"  # of a latent cache
# The settings worth a place in the table, in this order, where a part's config has them.
SHOWN = (
    "in_channels", "sample_size", "sample_height", "sample_width", "num_frames", "fps", "latent_channels",
    "block_out_channels", "hidden_size", "depth", "num_layers", "num_hidden_layers", "num_heads",
    "patch_size", "content_patch_size", "motion_channels", "content_mode", "residual_decoding",
    "cross_attention_dim", "text_dim", "num_classes", "vocab_size", "learn_sigma", "scaling_factor",
    "scheduler", "num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type",
    "rescale_betas_zero_snr",
)  # fmt: skip
SHORT = 12  # digits of a hash that people compare


def info(config: InfoConfig) -> None:
    """Prints a table, or JSON: of a pipeline its parts, of one network its settings, of a cache its clips, of a
    generated video or picture the model, the prompt and the seed, of a safetensors file its tensors.

    A network's "weights" is the hash that a latent cache notes of the networks that made it.

    Raises:
        ValueError: It is none of these, or damaged.
    """
    path = Path(config.checkpoint)
    if path.is_file():
        found = _describe_file(path)
    else:
        from contentmotion.pipelines.folder import fetch  # with diffusers, of which files and `push` need nothing

        path = fetch(config.checkpoint)
        found = _describe(path)
    if config.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    elif path.is_file():
        print_table((), list(found.items()), title=str(path), text=(0, 1))
    elif "cache" in found:
        print_table((), _cache_rows(path, found), title=f"latent cache {path}", text=(0, 1))
    else:
        rows = [_part_row(name, part) for name, part in found["parts"].items()]
        print_table(("part", "parameters", "settings"), rows, title=str(path), text=(0, 2))
        print(f"{found['parameters']:,} parameters in all")
        if "flow" in found:
            print(found["flow"])


def _describe(folder: Path) -> dict[str, Any]:
    """What the tables say, for programs: "cache", or "parts", "parameters" and perhaps "flow"."""
    if (folder / CACHE).exists():
        shards = _read_shards(folder)
        clips = sum(shapes["label"][0][0] for shapes in shards)
        return {"cache": str(folder), "clips": clips, "shards": len(shards), "manifest": read_json(folder / CACHE)}
    parts: dict[str, dict[str, Any]] = {}
    found = find_parts(folder)
    for name, part in found.items():
        class_name, settings = read_settings(part)
        parameters, size, dtypes = count_parameters(part)
        parts[name] = {"class": class_name, "parameters": parameters, "bytes": size, "dtypes": dtypes}
        if parameters:
            parts[name]["weights"] = hash_state(_read_tensors(part), read_json(part / "config.json"))
        parts[name] |= settings
    whole = {"folder": str(folder), "parts": parts, "parameters": sum(part["parameters"] for part in parts.values())}
    return whole | ({"flow": describe_flow(found)} if "autoencoder" in found else {})


def _part_row(name: str, part: Mapping[str, Any]) -> tuple[str, str, str]:
    count = f"{part['parameters']:,}\n{part['bytes'] / 1e6:.1f} MB {part['dtypes']}" if part["parameters"] else ""
    shown = "  ".join(f"{key}={part[key]}" for key in SHOWN if key in part)
    weights = f"weights {part['weights'][:SHORT]}\n" if "weights" in part else ""
    return f"{name}\n{part['class']}", count, weights + shown


def _describe_file(path: Path) -> dict[str, str]:
    """What a file says of itself: a generated video or picture, or weights."""
    import av  # here alone: checkpoints are described without it

    from contentmotion.video.write import read_metadata

    if path.suffix == ".safetensors":
        parameters, _, dtypes = count_parameters(path)
        with safe_open(path, "np") as file:
            noted = file.metadata() or {}
            return {"tensors": str(len(file.keys())), "parameters": f"{parameters:,}", "numbers": dtypes} | noted
    if path.suffix in (".json", ".jsonl", ".yaml"):
        raise ValueError(f"{path} is text to be read as it is: info describes the folder that it lies in")
    try:
        found = read_metadata(path)
    except (OSError, ValueError, av.FFmpegError) as error:
        raise ValueError(f"{path}: not a checkpoint folder, and not a readable video or picture") from error
    if "generated" not in found:
        raise ValueError(
            f"{path} does not say how it was made: what `contentmotion generate` writes does, copies that were "
            "re-encoded and videos of cameras do not"
        )
    return found


def find_parts(folder: Path) -> dict[str, Path]:
    """Folders of the parts by name: a pipeline's, else the folder itself, else those inside it.

    Raises:
        ValueError: There are none, or a pipeline lacks a part or has an index that is none.
    """
    if (folder / INDEX).exists():
        names = _listed_parts(folder)
        missing = [name for name in names if not (folder / name).is_dir()]
        if missing:
            raise ValueError(f"{folder} is incomplete: no folder {' and no folder '.join(missing)}")
        return {name: folder / name for name in names}
    if (folder / "config.json").exists() or (folder / "scheduler_config.json").exists():
        return {folder.name: folder}
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    parts = {path.name: path for path in inside if (path / "config.json").exists()}
    if not parts:
        nested = [str(path) for path in inside if (path / INDEX).exists() or (path / CACHE).exists()]
        hint = f"; look at {' or '.join(nested[:3])}" if nested else ""
        raise ValueError(f"{folder} holds no checkpoint and no latent cache{hint}")
    return parts


def _listed_parts(folder: Path) -> list[str]:
    """The parts that a pipeline's index names."""
    names = []
    for name, value in read_json(folder / INDEX).items():
        if not isinstance(value, list) and not (folder / name).is_dir():
            continue  # a setting of the pipeline's class
        is_class = isinstance(value, list) and len(value) == 2 and all(isinstance(v, str | None) for v in value)
        if not is_class:
            raise ValueError(f"{folder / INDEX}: {name} is {json.dumps(value)}, not a library and a class")
        if value[0] is not None:
            names.append(name)
    return names


def read_settings(part: Path) -> tuple[str, dict[str, str]]:
    """A part's class, and those of its settings that are worth showing, with those of a scheduler that lies beside."""
    settings: dict[str, Any] = {}
    for file in ("config.json", "scheduler_config.json", "tokenizer_config.json"):
        if not (part / file).exists():
            continue
        read = read_json(part / file)
        if settings and file == "scheduler_config.json":  # the folder of a motion model
            read["scheduler"] = read.get("_class_name")
        settings = read | settings
    name = settings.get("_class_name") or settings.get("architectures") or settings.get("tokenizer_class") or ""
    return str(name[0] if isinstance(name, list) else name), shown_settings(settings)


def shown_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Those of a part's settings that are worth showing, as text."""
    return {key: _text(settings[key]) for key in SHOWN if settings.get(key) is not None}


def count_parameters(place: Path) -> tuple[int, int, str]:
    """Parameters, bytes and number formats of a safetensors file, or of those in a part's folder."""
    files = [place] if place.is_file() else sorted(place.glob("*.safetensors"))
    tensors = [tensor for file in files for tensor in _read_shapes(file).values()]
    dtypes = ", ".join(sorted({dtype for _, dtype in tensors}))
    return sum(math.prod(shape) for shape, _ in tensors), sum(file.stat().st_size for file in files), dtypes


def _read_shapes(file: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and number format of each tensor of a safetensors file; ``ValueError`` where it is damaged."""
    try:
        with safe_open(file, "np") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {name: (part.get_shape(), str(part.get_dtype())) for name, part in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged file ({error})") from error


def describe_flow(parts: dict[str, Path]) -> str:
    """Shapes of what flows through the autoencoder among a checkpoint's parts.

    Raises:
        ValueError: The autoencoder's or the VAE's config lacks what they follow from.
    """
    config = parts["autoencoder"] / "config.json"
    factor = 1 if len(parts) > 1 else None  # a pipeline: without a VAE it works on pixels
    try:
        if "vae" in parts:
            from contentmotion.stages.image_vae import pixels_per_latent

            factor = pixels_per_latent(read_json(parts["vae"] / "config.json"))
        return flow_text(read_json(config), factor)
    except (KeyError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{config}: not an autoencoder's config ({type(error).__name__}: {error})") from error


def flow_text(own: Mapping[str, Any], factor: int | None) -> str:
    """Shapes of what flows through an autoencoder.

    Args:
        own: The autoencoder's settings.
        factor: Pixels per latent along a side; None where the image VAE is not known.
    """
    t, c, h, w = own["num_frames"], own["in_channels"], own["sample_height"], own["sample_width"]
    rows, columns = h // own["patch_size"], w // own["patch_size"]
    frame = f"{c} x {h} x {w}"
    shown = frame if factor is None else f"{h * factor} x {w * factor} pixels"
    motion = f"{own['motion_channels']} x {t} x ({rows} + {columns})"
    return f"{t} frames of {shown} = content frame {frame} + motion latent {motion}"


def _read_shards(cache: Path) -> list[dict[str, tuple[list[int], str]]]:
    return [_read_shapes(shard) for shard in sorted(cache.glob("shard-*.safetensors"))]


def _cache_rows(folder: Path, found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a latent cache holds: its clips, their shapes, and what it was made with."""
    rows = [("stored", f"{found['clips']} clips in {found['shards']} shards")]
    full = max(_read_shards(folder), key=len, default={})  # a shard without a good clip has fewer tensors
    for name in ("content", "motion", "latents", "pooled", "tokens"):
        if name in full:
            shape, dtype = full[name]
            rows.append((f"{name} of a clip", f"{_text(shape[1:])} {dtype}"))
    for key, value in found["manifest"].items():
        made_by = key in ("vae", "autoencoder", "text_encoder", "depth_model") and isinstance(value, str)
        rows.append((key, f"weights {value[:SHORT]}" if made_by else _text(value)))
    return rows


def _read_tensors(part: Path) -> Iterator[tuple[str, Tensor]]:
    """A part's tensors in the order of their names, one at a time."""
    files: dict[str, Any] = {}
    for path in part.glob("*.safetensors"):
        file = safe_open(path, "pt")
        files |= dict.fromkeys(file.keys(), file)
    for name in sorted(files):
        yield name, files[name].get_tensor(name)


def _text(value: object) -> str:
    if isinstance(value, list):
        return " x ".join(str(item) for item in value) if len(value) < 9 else f"{len(value)} entries"
    return str(value)
