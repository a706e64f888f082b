"""Parts of checkpoints by folder or hub id, with one clear line where something is missing or does not fit."""

from __future__ import annotations

import functools
import re
import shlex
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import diffusers
import torch
from diffusers import (
    AutoModel,
    DDIMScheduler,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
    SchedulerMixin,
    SCMScheduler,
    TCDScheduler,
)
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from contentmotion.config import SHIPPED_MODEL, SHIPPED_STUDENT
from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.models.motion_dit import MotionDiT
from contentmotion.models.patch_vae import PatchVAE
from contentmotion.saving import read_json, require_regular

_COUNTS = re.compile("depth|layers|heads|blocks")
_SIZES = re.compile("(size|channels|dim|frames|height|width|timesteps|embeddings|classes|embeds_ada_norm)$")
HUB_SECONDS = 5.0  # it takes at most to be reached
ASSETS = Path(__file__).parent / "assets"
SCHEDULERS = (
    DDIMScheduler, LCMScheduler, TCDScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler,
    FlowMapEulerDiscreteScheduler, SCMScheduler,
)  # fmt: skip
Model = TypeVar("Model", bound=ModelMixin)
# Models that this process was told more of than their names (``pipelines.folder.chosen_by``): by name and by folder,
# the folder and the variant of the weights.
CHOSEN: dict[str, tuple[str, str | None]] = {}


def resolve_name(name_or_path: str) -> str:
    """The folder of a model shipped with the package ("emoji", "emoji-lcm"), an existing folder, or a hub id as it is.

    Raises:
        ValueError: A path that does not exist.
    """
    name_or_path, _ = CHOSEN.get(name_or_path, (name_or_path, None))
    if name_or_path in (SHIPPED_MODEL, SHIPPED_STUDENT):  # a folder of that name is ./emoji
        name_or_path = str(ASSETS / name_or_path)
    is_hub_id = name_or_path.count("/") == 1 and not name_or_path.startswith((".", "/", "~"))
    path = Path(name_or_path)
    if not path.exists() and not is_hub_id:
        raise ValueError(f"no such checkpoint: {name_or_path}")
    if not path.exists():
        notice_no_network()
    if path.is_file():
        raise ValueError(f"{name_or_path} is a file: a checkpoint is a folder in diffusers' layout")
    for part in (path, *path.glob("*"), *path.glob("*/*")):
        require_regular(part)
    return name_or_path


@functools.cache
def notice_no_network() -> None:
    """Where the hub cannot be reached, says so and keeps the process to what was downloaded before: asking it again and
    again takes a minute and more, for every file."""
    from huggingface_hub import constants

    hub = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or getproxies():  # through a proxy it may be reached all the same
        return
    try:
        port = hub.port or (80 if hub.scheme == "http" else 443)
        socket.create_connection((str(hub.hostname), port), timeout=HUB_SECONDS).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True
        print(f"{hub.hostname} cannot be reached: only what was downloaded before is used", file=sys.stderr)


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
    return load_model(AutoModel, path, subfolder, "an image VAE").requires_grad_(False)


def load_autoencoder(name_or_path: str, dtype: torch.dtype | None = None) -> ContentMotionAutoencoder:
    """ContentMotionAutoencoder of its own folder, of a training run, or of a pipeline folder.

    Raises:
        ValueError: There is none.
    """
    return load_part(ContentMotionAutoencoder, name_or_path, "autoencoder", dtype)


def load_tokenizer(name_or_path: str, part: str = "tokenizer", kind: str = "CLIPTokenizer") -> Any:
    """Tokenizer of a part of a pipeline's folder or hub id; ``kind`` is a class of transformers.

    Raises:
        ValueError: There is none, or its vocabulary is missing: every prompt would mean the same.
    """
    import transformers

    path = resolve_name(name_or_path)
    try:
        tokenizer = getattr(transformers, kind).from_pretrained(path, subfolder=part)
    except Exception as error:  # a damaged tokenizer.json is whatever its entries lead to
        raise ValueError(explain(f"a tokenizer from {path}", path, error)) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError(f"cannot load a tokenizer from {path}: it has no vocabulary (tokenizer.json is missing)")
    return tokenizer


def load_motion(name_or_path: str, dtype: torch.dtype | None = None) -> tuple[MotionDiT, SchedulerMixin]:
    """Motion model and its noise schedule, of the folder that ``train-motion`` wrote or of a pipeline folder.

    Raises:
        ValueError: There is none.
    """
    motion = load_part(MotionDiT, name_or_path, "motion_transformer", dtype)
    root = Path(resolve_name(name_or_path))
    for folder in (root, root / "motion_transformer", root / "motion_scheduler"):
        if (folder / "scheduler_config.json").exists():
            return motion, load_scheduler(folder)
    raise ValueError(f"no scheduler_config.json beside the motion model in {name_or_path}")


def load_scheduler(folder: Path) -> SchedulerMixin:
    """A scheduler of the kind that its config names, of those that models here have; else ``training_scheduler``'s
    (DDIM where it names none).

    Raises:
        ValueError: It has more times than any.
    """
    file = folder / "scheduler_config.json"
    require_possible_sizes(file)
    name = class_name(file)
    kind = DDIMScheduler if name is None else {cls.__name__: cls for cls in SCHEDULERS}.get(str(name))
    return training_scheduler(read_json(file)) if kind is None else kind.from_pretrained(folder)  # type: ignore


def training_scheduler(config: Mapping[str, Any]) -> SchedulerMixin:
    """The sampler whose noise schedule a model with another scheduler's config was trained with: DDIM, or Euler for
    flow matching.

    Clipping to [-1, 1], DDIM's default, is for pixels: it stays off unless the config has it.
    """
    values = {name: value for name, value in config.items() if not name.startswith("_")}
    if str(config.get("_class_name", "")).startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction":
        shift = {"shift": values.get("flow_shift", 1.0)}  # as other solvers of flows call it
        return FlowMatchEulerDiscreteScheduler.from_config(shift | values)  # type: ignore[return-value]
    return DDIMScheduler.from_config({"clip_sample": False, "set_alpha_to_one": False} | values)  # type: ignore[return-value]


def class_name(config: Path) -> str | None:
    return read_json(config).get("_class_name") if config.exists() else None


def load_part(cls: type[Model], name_or_path: str, part: str, dtype: torch.dtype | None) -> Model:
    path = resolve_name(name_or_path)
    subfolder = part if (Path(path) / part / "config.json").exists() else None
    return load_model(cls, path, subfolder, f"a {cls.__name__}", dtype)


def load_model(cls: Any, path: str, subfolder: str | None, what: str, dtype: torch.dtype | None = None) -> Any:
    """One network of a checkpoint, in evaluation mode; every tensor comes from the file, and every one is a number.

    Args:
        cls: A diffusers or transformers model class.
        path: Folder or hub id.
        subfolder: Where in it, if not at its top.
        what: Its name in messages.
        dtype: Of the weights; float32 when None.

    Raises:
        ValueError: It is missing, damaged or of another shape than its config, lacks tensors or has others, or holds
            NaN.
    """
    what = f"{what} from {path}"
    try:
        require_possible_sizes(Path(path) / (subfolder or "") / "config.json")
        with quiet():
            if cls is AutoModel:  # it finds the class, but does not say what it loaded
                name = AutoModel.load_config(path, subfolder=subfolder)["_class_name"]
                cls = PatchVAE if name == PatchVAE.__name__ else getattr(diffusers, name)
            model, info = cls.from_pretrained(
                path, subfolder=subfolder, dtype=dtype or torch.float32, use_safetensors=True, output_loading_info=True,
                variant=variant_in(Path(path) / (subfolder or ""), CHOSEN.get(path, (path, None))[1]),
            )  # fmt: skip
    except Exception as error:  # torch, safetensors, json and the hub each raise their own
        found = _other_weights(Path(path) / (subfolder or "")) if "no file named" in str(error) else ""
        raise ValueError(f"cannot load {what}: {found}" if found else explain(what, path, error)) from error
    for kind, reason in (("missing_keys", "its file lacks"), ("unexpected_keys", "its file has unknown")):
        if names := sorted(info[kind]):
            raise ValueError(f"cannot load {what}: {reason} {listed(names)}: the weights are of another architecture")
    # Some LCMs: sampled without, they draw something else.
    if getattr(model.config, "time_cond_proj_dim", None) and type(model).__name__ != "UNet2DConditionModel":
        raise ValueError(
            f"cannot load {what}: it is told the guidance scale (time_cond_proj_dim), which is not done here"
        )
    if wrong := [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]:
        raise ValueError(f"cannot load {what}: the weights are not finite in {listed(wrong)}")
    return model.eval()


def kind_of(file: str) -> str | None:
    """The variant that a file of weights is: "fp16" of ``model.fp16-00001-of-00002.safetensors``."""
    names = file.rpartition("/")[2].split(".")
    return names[1].split("-")[0] if len(names) == 3 else None


def variant_in(part: Path, wanted: str | None = None) -> str | None:
    """The variant to load of a part's weights: the one wanted, where the part has it, or the only one that it has."""
    return kind_to_load({kind_of(file.name) for file in part.glob("*.safetensors")}, wanted)


def kind_to_load(kinds: set[str | None], wanted: str | None) -> str | None:
    """Of the kinds that a part's weights are there as (None: no variant), the one wanted, or else the only one."""
    return next(iter(kinds)) if len(kinds) == 1 else wanted if wanted in kinds else None


def require_possible_sizes(config: Path) -> None:
    """Raises ``ValueError`` where a network's config has sizes that no network has: to make it would take for ever."""
    for name, value in read_json(config).items() if config.exists() else ():
        most = 1000 if _COUNTS.search(name) else 10**6 if _SIZES.search(name) else None
        for number in value if isinstance(value, list) else [value]:
            if most and isinstance(number, int) and abs(number) > most:
                raise ValueError(f"{config.name} says {name} {str(number)[:40]}")


def _other_weights(folder: Path) -> str:
    """What is said of a folder whose weights are there, but not in the file that is read; "" where none are."""
    variants = sorted({str(kind_of(file.name)) for file in folder.glob("*model*.safetensors")})
    if variants:
        return f"its weights are there as {listed(variants)}: say which with --variant"
    files = sorted(folder.glob("*model*.bin"))
    if not files:
        return ""
    kinds = {kind_of(file.name) for file in files}
    kind = None if None in kinds else min(map(str, kinds))  # not averaged weights over others, or half ones
    files = [file for file in files if kind_of(file.name) == kind]
    whole = folder / ("diffusion_pytorch_model" if files[0].name.startswith("diffusion") else "model")
    code = (
        "import sys, torch, safetensors.torch as s; files = [torch.load(f, weights_only=True) for f in sys.argv[2:]]; "
        "s.save_file({n: t for f in files for n, t in f.items()}, sys.argv[1])"
    )
    words = shlex.join(["python", "-c", code, f"{whole}.safetensors", *map(str, files)])
    return (
        f"its weights are a pickle ({listed([file.name for file in files])}), which is never read. Their tensors "
        f"alone, as a file that is: {words}"
    )


def listed(names: Sequence[str]) -> str:
    """The first three of some names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


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


def explain(what: str, path: str, error: Exception) -> str:
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
