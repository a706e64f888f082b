"""Seconds and memory of functions, run in turns so that whatever else a machine does hits all of them alike."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True)
class Timing:
    """How long a function took, and how much memory beside what was there before.

    Attributes:
        seconds: One number per repeat.
        peak_bytes: Greatest memory during a call beyond that before it; None where it cannot be told.
    """

    seconds: tuple[float, ...]
    peak_bytes: int | None

    @property
    def median(self) -> float:
        """Median seconds."""
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between slowest and fastest, in seconds."""
        return (max(self.seconds) - min(self.seconds)) / 2


def time_in_turns(
    jobs: Sequence[Callable[[], object]], repeats: int, device: torch.device, *, makers: bool = False
) -> list[Timing | str]:
    """Calls all jobs once (which warms them up and shows their memory), then ``repeats`` times in turns.

    Args:
        jobs: What is timed; as ``makers`` each returns, in every turn anew, what is timed then and dropped after it.
        repeats: Timed calls of each.
        device: Where they compute.
        makers: See jobs; what they make is not warm, so the first turn counts.

    Returns:
        A timing per job, or one line about why it did not run.
    """
    failures: dict[int, str] = {}
    peaks: dict[int, int | None] = {}
    seconds: dict[int, list[float]] = {number: [] for number in range(len(jobs))}
    for turn in range(makers, repeats + 1):
        for number, job in enumerate(jobs):
            if number in failures:
                continue
            call: Any = None
            try:
                call = job() if makers else job
                before = start_watching_memory(device) if number not in peaks else None
                elapsed = _time(call, device)
                if number not in peaks:
                    peaks[number] = peak_memory_since(before, device)
                if turn:
                    seconds[number].append(elapsed)
            except (RuntimeError, MemoryError) as error:  # torch's out of memory is a RuntimeError
                failures[number] = " ".join(str(error).split())[:120] or type(error).__name__
            finally:
                call = None  # what was made goes before the next is made
    return [
        Timing(tuple(seconds[number]), peaks[number]) if seconds[number] else failures[number]
        for number in range(len(jobs))
    ]


def _time(job: Callable[[], object], device: torch.device) -> float:
    def wait() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    wait()
    started = time.perf_counter()
    job()
    wait()
    return time.perf_counter() - started


def start_watching_memory(device: torch.device) -> int | None:
    """Resets the peak; returns the bytes in use now, None where a peak cannot be told (no Linux, no CUDA)."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if device.type == "cpu" and _CLEAR.exists():
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)  # what was freed and kept would be taken for use, and what is put there not be seen
        try:
            _CLEAR.write_text("5")  # the kernel's way to reset a process's peak
        except OSError:  # a sandbox
            return None
        return _status("VmRSS")
    return None


def peak_memory_since(before: int | None, device: torch.device) -> int | None:
    """Bytes at the peak since ``start_watching_memory``, beyond those in use then."""
    if before is None:
        return None
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")
    return max(0, peak - before)


def free_memory(device: torch.device) -> int:
    """Bytes that a new network may take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _status(name: str) -> int:
    """A field of Linux's account of this process, in bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
