"""What every run needs: an output folder, a device, a precision, seeded noise."""

from __future__ import annotations

import dataclasses
import gc
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from contentmotion.saving import replacing_file

ENVIRONMENT = "environment.json"  # in a training run's folder

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState


def prepare_output_dir(path: str | Path, command: str, config: Any) -> Path:
    """Makes a run's folder and writes its resolved settings there as ``config.yaml``, which repeats the run.

    Args:
        path: The folder; created when missing.
        command: The command's name.
        config: Its config dataclass.

    Raises:
        OSError: The folder cannot be written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not is_main_process():
            return path
        if any(path.glob("checkpoint-*")):
            _tell_changes(path / "config.yaml", config)
        write_config(path / "config.yaml", command, config)
    except OSError as error:
        raise OSError(f"output folder {path} is not writable: {error.strerror}") from error
    return path


def is_main_process() -> bool:
    """Whether this process speaks for all that a launcher started, on all machines: it prints and writes for them."""
    return int(os.environ.get("RANK") or 0) == 0


def join_processes(device: str = "auto", timeout: timedelta = timedelta(hours=6)) -> PartialState:
    """Where this process stands among those that ``torchrun`` or ``accelerate launch`` started, and its device.

    Args:
        device: "auto", or one's name. On CPUs accelerate joins processes only when told that they are CPUs.
        timeout: How long processes wait for one another; of the first call only.

    Raises:
        ValueError: No such device on this machine.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or resolve_device(device).type == "cpu"
    return PartialState(cpu=cpu, timeout=timeout)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU, or on a CPU torch's allocator, had not as much memory as was asked for."""
    return "OutOfMemory" in type(error).__name__ or "DefaultCPUAllocator" in str(error) or "alloc_cpu" in str(error)


def leave_processes() -> None:
    """Ends what ``join_processes`` began, once the networks that used it are gone."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        gc.collect()
        distributed.destroy_process_group()


def _tell_changes(path: Path, config: Any) -> None:
    """Says which settings of a training run that goes on are not those it began with."""
    try:
        old = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return
    old = dict(_by_name(old)) if isinstance(old, dict) else {}
    changed = [f"{k} {old[k]} -> {v}" for k, v in _by_name(_as_yaml(config)) if k in old and old[k] != v]
    if changed:
        print(
            f"{path.parent} goes on with other settings than before: {', '.join(changed)}. The learning rate, and what "
            "Adam and the moving average are set to, stay as its checkpoint has them.",
            file=sys.stderr,
        )


def describe_environment(device: torch.device, num_processes: int) -> dict[str, Any]:
    """Versions and hardware that a run's numbers depend on."""
    names = ("contentmotion", "torch", "accelerate", "diffusers", "transformers")
    versions = {}
    for name in names:
        with suppress(PackageNotFoundError):  # a checkout that is not installed
            versions[name] = version(name)
    return {
        "hardware": describe_hardware(device),
        "processes": num_processes,
        "python": platform.python_version(),
        "system": platform.platform(),
        **versions,
    }


def _as_yaml(config: Any) -> dict[str, Any]:
    """A config's settings as YAML knows them: lists for tuples, a mapping for each block."""
    return dataclasses.asdict(
        config, dict_factory=lambda items: {k: list(v) if isinstance(v, tuple) else v for k, v in items}
    )


def _by_name(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings and their names on the command line, those of blocks too."""
    for name, value in settings.items():
        yield from ((f"{name}.{k}", v) for k, v in value.items()) if isinstance(value, dict) else [(name, value)]


def write_config(path: Path, command: str, config: Any) -> None:
    """Writes a command's settings as the YAML file that its ``--config`` reads, atomically."""
    values = _as_yaml(config)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if yaml.safe_load(text) != values:  # a few exotic line breaks do not survive
        text = yaml.safe_dump(values, sort_keys=False)
    with replacing_file(path) as partial:
        header = f"# To repeat the run: contentmotion {command} --config {path.name}\n"
        partial.write_text(header + text, encoding="utf-8")


def resolve_device(name: str) -> torch.device:
    """The device that "auto" means here (CUDA, else Apple's MPS, else CPU), or the one named.

    Raises:
        ValueError: No such device on this machine.
    """
    import torch

    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f'device must be "auto", "cpu", "cuda", "cuda:N" or "mps", got {name!r}') from None
    count = {"cuda": torch.cuda.device_count(), "mps": int(has_mps)}.get(device.type, 1)
    if (device.index or 0) >= count:
        raise ValueError(f"device {name} is not here: this machine has {count} {device.type} devices")
    return device


def describe_hardware(device: torch.device) -> str:
    """The processor's or the GPU's name, and how many threads."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{name}, {torch.get_num_threads()} threads"


def resolve_dtype(mixed_precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast type that a ``mixed_precision`` setting means on a device; None is full precision.

    "auto" is bf16 where the hardware multiplies it fast (on CPUs: AVX512-BF16 or AMX), else full precision.
    """
    import torch

    if mixed_precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
            fast = device.type == "cpu" and torch.backends.mkldnn.is_available()
            fast = fast and any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
        return torch.bfloat16 if fast else None
    return {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[mixed_precision]


def seeded_generator(seed: int, index: int) -> torch.Generator:
    """The noise of one video: a function of (seed, index), the same whatever batch the video is in."""
    import numpy as np
    import torch

    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
