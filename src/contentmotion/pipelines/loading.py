"""Checkpoints by folder or hub id, with one clear line where something is missing or does not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoModel, DDIMScheduler, LCMScheduler, SchedulerMixin, UNet3DConditionModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download
from transformers.utils import logging as transformers_logging

from contentmotion.config import SHIPPED_MODEL, SHIPPED_STUDENT
from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.models.motion_dit import MotionDiT
from contentmotion.models.patch_vae import PatchVAE
from contentmotion.models.video_unet import VideoUNet  # diffusers loads no class whose module is not imported
from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.pipelines.video_latent import VideoLatentPipeline

VIDEO_UNETS = (VideoUNet.__name__, UNet3DConditionModel.__name__)
ASSETS = Path(__file__).parents[1] / "assets"
Model = TypeVar("Model", bound=ModelMixin)


def resolve_name(name_or_path: str) -> str:
    """The folder of a model shipped with the package ("emoji", "emoji-lcm"), an existing folder, or a hub id as it is.

    Raises:
        ValueError: A path that does not exist.
    """
    if name_or_path in (SHIPPED_MODEL, SHIPPED_STUDENT):  # a folder of that name is ./emoji
        name_or_path = str(ASSETS / name_or_path)
    is_hub_id = name_or_path.count("/") == 1 and not name_or_path.startswith((".", "/", "~"))
    if not Path(name_or_path).exists() and not is_hub_id:
        raise ValueError(f"no such checkpoint: {name_or_path}")
    if Path(name_or_path).is_file():
        raise ValueError(f"{name_or_path} is a file: a checkpoint is a folder in diffusers' layout")
    return name_or_path


def require_checkpoints(**names: str | None) -> None:
    """Checks everything a run needs before it starts.

    Raises:
        ValueError: One line that names all that is missing.
    """
    missing = []
    for flag, name in names.items():
        try:
            if name:
                resolve_name(name)
        except ValueError as error:
            missing.append(f"--{flag}: {error}")
    if missing:
        raise ValueError("; ".join(missing))


def load_vae(name_or_path: str) -> ModelMixin:
    """Image VAE of a VAE folder, or of a Stable Diffusion folder or hub id; frozen.

    Raises:
        ValueError: There is none.
    """
    path = resolve_name(name_or_path)
    subfolder = None if (Path(path) / "config.json").exists() else "vae"
    own = _class_name(Path(path) / (subfolder or "") / "config.json") == PatchVAE.__name__
    return _load(PatchVAE if own else AutoModel, path, subfolder, "an image VAE").requires_grad_(False)


def load_autoencoder(name_or_path: str, dtype: torch.dtype | None = None) -> ContentMotionAutoencoder:
    """ContentMotionAutoencoder of its own folder, of a training run, or of a pipeline folder.

    Raises:
        ValueError: There is none.
    """
    return _load_part(ContentMotionAutoencoder, name_or_path, "autoencoder", dtype)


def load_text_encoder(name_or_path: str) -> tuple[Any, Any]:
    """Tokenizer and text encoder of a Stable Diffusion folder, of a pipeline folder or of a hub id; frozen.

    Raises:
        ValueError: There is none.
    """
    from transformers import CLIPTextModel, CLIPTokenizer

    path = resolve_name(name_or_path)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(path, subfolder="tokenizer")
    except OSError as error:
        raise ValueError(_explain(f"a tokenizer from {path}", path, error)) from error
    encoder = _load(CLIPTextModel, path, "text_encoder", "a text encoder")
    return tokenizer, encoder.requires_grad_(False)


def load_motion(name_or_path: str, dtype: torch.dtype | None = None) -> tuple[MotionDiT, SchedulerMixin]:
    """Motion model and its noise schedule, of the folder that ``train-motion`` wrote or of a pipeline folder.

    Raises:
        ValueError: There is none.
    """
    motion = _load_part(MotionDiT, name_or_path, "motion_transformer", dtype)
    root = Path(resolve_name(name_or_path))
    for folder in (root, root / "motion_transformer", root / "motion_scheduler"):
        if (folder / "scheduler_config.json").exists():
            return motion, load_scheduler(folder)
    raise ValueError(f"no scheduler_config.json beside the motion model in {name_or_path}")


def load_scheduler(folder: Path) -> SchedulerMixin:
    """A scheduler of the kind that its config names: LCM for a distilled model, else DDIM."""
    name = _class_name(folder / "scheduler_config.json")
    cls = LCMScheduler if name == LCMScheduler.__name__ else DDIMScheduler
    return cls.from_pretrained(folder)  # type: ignore[return-value]


def to_ddim(config: dict[str, Any]) -> DDIMScheduler:
    """DDIM with the noise schedule of another scheduler's config.

    Clipping to [-1, 1], DDIM's default, is for pixels: it stays off unless the config has it.
    """
    settings = {"clip_sample": False, "set_alpha_to_one": False} | dict(config)
    return DDIMScheduler.from_config({k: v for k, v in settings.items() if not k.startswith("_")})  # type: ignore[return-value]


def load_pipeline(
    name_or_path: str,
    autoencoder: str | None = None,
    motion_transformer: str | None = None,
    dtype: torch.dtype | None = None,
) -> ContentMotionPipeline:
    """A whole pipeline: a folder that has every part, or a Stable Diffusion folder completed by ours.

    Args:
        name_or_path: Pipeline folder or hub id; "emoji" is the shipped model, "emoji-lcm" its student.
        autoencoder: Folder that replaces (or adds) the autoencoder.
        motion_transformer: Folder that replaces (or adds) the motion model and its scheduler.
        dtype: Precision of the weights; float32 when None.

    Raises:
        ValueError: A part is missing, damaged or of another shape.
    """
    require_checkpoints(
        pretrained_model_name_or_path=name_or_path,
        autoencoder=autoencoder,
        motion_transformer=motion_transformer,
    )
    parts: dict[str, Any] = {}
    if autoencoder:
        parts["autoencoder"] = load_autoencoder(autoencoder, dtype)
    if motion_transformer:
        parts["motion_transformer"], parts["motion_scheduler"] = load_motion(motion_transformer, dtype)
    path = resolve_name(name_or_path)
    if name_or_path == SHIPPED_STUDENT:  # what it shares with its teacher is stored once
        parts = _student_parts(Path(path), dtype) | parts
        path = resolve_name(SHIPPED_MODEL)
    index = Path(path) / "model_index.json"
    if Path(path).is_dir() and not index.exists():
        raise ValueError(f"{name_or_path} is not a pipeline folder: it has no model_index.json")
    if is_video_model(name_or_path):
        raise ValueError(f"{name_or_path} is a video model: it has no content frame and no motion")
    try:
        with quiet():  # Stable Diffusion folders hold parts that a video has no use for: no word about each
            pipe = ContentMotionPipeline.from_pretrained(
                path, dtype=dtype or torch.float32, use_safetensors=True, **parts
            )
    except Exception as error:  # torch, safetensors, json and the hub each raise their own
        raise ValueError(_explain(name_or_path, path, error)) from error
    absent = [n for n in ("autoencoder", "motion_transformer", "motion_scheduler") if getattr(pipe, n) is None]
    if absent:
        raise ValueError(
            f"{name_or_path} has no {' and no '.join(absent)}: give --autoencoder and --motion_transformer"
        )
    if motion_transformer and not isinstance(pipe.scheduler, (DDIMScheduler, LCMScheduler)):
        # A stock Stable Diffusion folder names PNDM or Euler; the paper samples with DDIM.
        pipe.scheduler = to_ddim(pipe.scheduler.config)
    pipe.check_parts()
    return pipe


def _student_parts(folder: Path, dtype: torch.dtype | None) -> dict[str, Any]:
    motion, motion_scheduler = load_motion(str(folder), dtype)
    return {
        "unet": _load(AutoModel, str(folder), "unet", "a content model", dtype),
        "scheduler": load_scheduler(folder / "scheduler"),
        "motion_transformer": motion,
        "motion_scheduler": motion_scheduler,
    }


def is_video_model(name_or_path: str) -> bool:
    """Whether a pipeline folder or hub id holds a video UNet rather than content and motion."""
    path = resolve_name(name_or_path)
    index = Path(path) / "model_index.json"
    if Path(path).is_dir() and not index.exists():
        return False
    try:
        with quiet():
            index = index if Path(path).is_dir() else Path(hf_hub_download(path, index.name))
    except (OSError, ValueError) as error:  # the hub's are OSErrors
        raise ValueError(_explain(name_or_path, path, error)) from error
    try:
        return json.loads(index.read_text()).get("unet", [None, None])[1] in VIDEO_UNETS
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{index} is not a pipeline's index: {error}") from error


def load_video_pipeline(name_or_path: str, dtype: torch.dtype | None = None) -> VideoLatentPipeline:
    """A video model's pipeline: what ``train-video`` and ``distill --part video`` wrote, or ModelScope's folder.

    Args:
        name_or_path: Pipeline folder or hub id.
        dtype: Precision of the weights; float32 when None.

    Raises:
        ValueError: It is another kind of model, or a part is missing, damaged or of another shape.
    """
    if not is_video_model(name_or_path):
        raise ValueError(f"{name_or_path} is not a video model: its model_index.json names no video UNet")
    path = resolve_name(name_or_path)
    try:
        with quiet():
            pipe = VideoLatentPipeline.from_pretrained(path, dtype=dtype or torch.float32, use_safetensors=True)
    except Exception as error:  # torch, safetensors, json and the hub each raise their own
        raise ValueError(_explain(name_or_path, path, error)) from error
    pipe.check_parts()
    return pipe


def load_any_pipeline(
    name_or_path: str,
    autoencoder: str | None = None,
    motion_transformer: str | None = None,
    dtype: torch.dtype | None = None,
) -> ContentMotionPipeline | VideoLatentPipeline:
    """``load_video_pipeline`` or ``load_pipeline``, by what the folder holds.

    Raises:
        ValueError: See there; or a video model, which has no use for the other parts.
    """
    if not is_video_model(name_or_path):
        return load_pipeline(name_or_path, autoencoder, motion_transformer, dtype)
    if autoencoder or motion_transformer:
        raise ValueError(f"{name_or_path} is a video model: it takes no --autoencoder and no --motion_transformer")
    return load_video_pipeline(name_or_path, dtype)


def _class_name(config: Path) -> str | None:
    return json.loads(config.read_text()).get("_class_name") if config.exists() else None


def _load_part(cls: type[Model], name_or_path: str, part: str, dtype: torch.dtype | None) -> Model:
    path = resolve_name(name_or_path)
    subfolder = part if (Path(path) / part / "config.json").exists() else None
    return _load(cls, path, subfolder, f"a {cls.__name__}", dtype)


def _load(cls: Any, path: str, subfolder: str | None, what: str, dtype: torch.dtype | None = None) -> Any:
    try:
        with quiet():
            model = cls.from_pretrained(path, subfolder=subfolder, dtype=dtype or torch.float32, use_safetensors=True)
    except Exception as error:  # torch, safetensors, json and the hub each raise their own
        raise ValueError(_explain(f"{what} from {path}", path, error)) from error
    return model.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what diffusers and transformers print while loading; errors still come as exceptions."""
    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity(library.CRITICAL)
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def _explain(what: str, path: str, error: Exception) -> str:
    """One line about why a checkpoint did not load."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if not Path(path).exists():
        return f"no such checkpoint: {path} (no folder of that name, and the hub did not give it: {reason})"
    shapes = re.search(r"(\S+) expected shape (.*?), but got (.*?)\. If you", reason)
    if shapes:
        name, wanted, found = (text.removeprefix("torch.Size").strip("()") for text in shapes.groups())
        reason = f"the weights are of another shape than config.json says: {name} is {found}, not {wanted}"
    elif "ignore_mismatched_sizes" in reason:
        reason = "the weights are of another shape than config.json says"
    elif "Unable to load weights" in reason or type(error).__name__ == "SafetensorError":
        reason = f"damaged file: {reason}"
    return f"cannot load {what}: {reason}"
