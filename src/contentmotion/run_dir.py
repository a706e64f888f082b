"""What every run needs: an output folder, a device, a precision, seeded noise."""

from __future__ import annotations

import dataclasses
import gc
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml

from contentmotion.config.common import whole_name
from contentmotion.saving import find_leftovers, is_alive, read_text, replacing_file

ENVIRONMENT = "environment.json"  # in a training run's folder
LAST_BREATH = 15.0  # seconds

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState


def make_output_dir(path: str | Path) -> Path:
    """Makes a run's folder, if it is missing.

    Raises:
        OSError: It cannot be made.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"output folder {path} is not writable: {error.strerror}") from error
    return path


def prepare_output_dir(path: str | Path, command: str, config: Any, used: Any = None) -> Path:
    """Makes a run's folder and writes its settings there: ``config.yaml`` repeats the run. Says what changed where a
    training goes on, whose checkpoint may have the last word: ``used`` is the config with what it says.

    Only when the run really starts: a command that is refused leaves those of the run before.

    Raises:
        OSError: The folder cannot be written.
    """
    path = make_output_dir(path)
    if not is_main_process():
        return path
    try:
        if any(path.glob("checkpoint-*")):
            _tell_changes(path / "config.yaml", config)
        write_config(path / "config.yaml", command, config if used is None else used)
    except OSError as error:
        raise OSError(f"output folder {path} is not writable: {error.strerror}") from error
    return path


@contextmanager
def owned_folder(path: str | Path) -> Iterator[None]:
    """Keeps a folder to this run: another one that asks for it meanwhile is told who works there.

    The lock lies beside the folder (in it where nothing can be written there), and ends with its process, however that
    ends. What a killed run left half written is removed, and folders that were made for a run that left nothing.

    Raises:
        ValueError: Another run has it.
    """
    if not is_main_process():
        yield
        return
    path = Path(os.path.realpath(path))
    new = [folder for folder in (path, *path.parents) if not folder.exists()]  # the innermost first
    handle = _lock(path.with_name(f".{path.name}.lock"), path) or _lock(path / ".lock", path)
    try:
        for leftover in find_leftovers(path) if handle is not None else ():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        yield
    finally:
        if handle is not None:
            with suppress(OSError):
                os.unlink(handle.name)
            handle.close()
        for folder in new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _lock(file: Path, folder: Path) -> IO[str] | None:
    """A file that is locked as long as it is open; None where that is not possible here."""
    deadline = time.monotonic() + LAST_BREATH
    while True:
        try:
            import fcntl

            file.parent.mkdir(parents=True, exist_ok=True)
            handle = open(file, "a+", encoding="utf-8")  # noqa: SIM115
        except (OSError, ImportError):
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(file) and os.path.samestat(os.stat(file), os.fstat(handle.fileno())):
                break
            handle.close()  # its owner has just removed it
        except BlockingIOError:
            handle.seek(0)
            owner = (handle.read() + "\n" * 3).splitlines()
            handle.close()
            # Processes that read data for a killed run outlive it by seconds; one that begins has not signed yet.
            if owner[0] in ("", platform.node()) and not is_alive(owner[1]) and time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            raise ValueError(
                f"{folder} is in use: process {owner[1]} on {owner[0]} works there since {owner[2]}; wait for it, or "
                "choose another --output_dir"
            ) from None
        except OSError:  # a file system without locks
            handle.close()
            return None
    handle.truncate(0)
    handle.write(f"{platform.node()}\n{os.getpid()}\n{time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    handle.flush()
    return handle


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


def require_same_settings(config: Any, processes: PartialState) -> None:
    """Compares what the processes of one run were given; all call it, before anything else that they do together.

    Raises:
        ValueError: In the first process, where settings differ (each may have a device of its own).
        SystemExit: In the others.
    """
    if processes.num_processes == 1:
        return
    from accelerate.utils import gather_object

    told = [dict(by_name(settings)) for settings in gather_object([_as_yaml(config)])]
    differing = [
        f"{name} {told[0][name]} and {other[name]}"
        for name in told[0]
        if name != "device" and (other := next((each for each in told if each[name] != told[0][name]), None))
    ]
    if differing:
        if not is_main_process():
            raise SystemExit(1)
        raise ValueError(f"processes of one run were given different settings: {', '.join(differing)}")


def join_run(config: Any, timeout: timedelta = timedelta(hours=6)) -> tuple[PartialState, torch.device]:
    """Joins the processes that were given this config's settings; where this one stands, and the device it computes on:
    alone the very one that the config names.

    Raises as ``join_processes``, whose ``timeout`` it is, and ``require_same_settings`` do.
    """
    processes = join_processes(config.device, timeout)
    require_same_settings(config, processes)
    device: Any = processes.device
    return processes, resolve_device(config.device) if processes.num_processes == 1 else device


def reason_of(error: BaseException) -> str:
    """What went wrong, in one line; where the system says so, its words and the file's name."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(text.split()) or type(error).__name__


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
        old = yaml.safe_load(read_text(path))
    except (OSError, yaml.YAMLError):
        return
    new = dict(by_name(_as_yaml(config)))
    old = {whole_name(k, new): v for k, v in by_name(old)} if isinstance(old, dict) else {}
    changed = [f"{k} {old[k]} -> {v}" for k, v in new.items() if k in old and old[k] != v]
    if changed:
        print(
            f"{path.parent} goes on with other settings than before: {', '.join(changed)}. The learning rate, and what "
            "Adam is set to, stay as its checkpoint has them.",
            file=sys.stderr,
        )


def describe_environment(device: torch.device, num_processes: int, mixed_precision: str) -> dict[str, Any]:
    """Versions, hardware and precision that a run's numbers depend on."""
    versions = {}
    for name in ("contentmotion", "torch", "accelerate", "diffusers", "transformers"):
        with suppress(PackageNotFoundError):  # a checkout that is not installed
            versions[name] = version(name)
    return {
        "hardware": describe_hardware(device),
        "processes": num_processes,
        "precision": str(resolve_dtype(mixed_precision, device) or "float32").removeprefix("torch."),
        "python": platform.python_version(),
        "system": platform.platform(),
        **versions,
    }


def _as_yaml(config: Any) -> dict[str, Any]:
    """A config's settings as YAML knows them: lists for tuples, a mapping for each block."""
    return dataclasses.asdict(
        config, dict_factory=lambda items: {k: list(v) if isinstance(v, tuple) else v for k, v in items}
    )


def by_name(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
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


def is_recorded(path: Path, config: Any) -> bool:
    """Whether a ``config.yaml`` is there, and holds these very settings."""
    try:
        return yaml.safe_load(read_text(path)) == _as_yaml(config)
    except (OSError, ValueError, yaml.YAMLError):
        return False


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

    "auto" is what ``accelerate launch --mixed_precision`` said, else bf16 where the hardware multiplies it fast (on
    CPUs: AVX512-BF16 or AMX), else full precision.
    """
    import torch

    launched = os.environ.get("ACCELERATE_MIXED_PRECISION")  # "no" where the launcher was not told either
    if mixed_precision == "auto" and launched in ("bf16", "fp16"):
        mixed_precision = launched
    if mixed_precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
            fast = device.type == "cpu" and torch.backends.mkldnn.is_available()
            fast = fast and any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
        return torch.bfloat16 if fast else None
    return {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[mixed_precision]


def seeded_generator(seed: int, index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The noise of one video: a function of (seed, index), the same whatever batch the video is in; another one on
    another kind of device."""
    import numpy as np
    import torch

    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))
