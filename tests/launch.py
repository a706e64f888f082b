"""Training in several processes on the CPU, as torchrun starts them, but each can be killed by itself."""

import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tiny
import warm

Job = tuple[str, dict[str, Any]]


def to_words(command: str, settings: Mapping[str, Any]) -> list[str]:
    """A command line without the program's name."""
    words = [command]
    for name, value in settings.items():
        words += [f"--{name}", *map(str, value if isinstance(value, (list, tuple)) else (value,))]
    return words


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]  # all open at once, so that the ports differ
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_all(num_processes: int, function: Callable, *arguments: Any) -> list[warm.Process]:
    """Starts so many processes that call a function together."""
    shared = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_PORT": str(free_ports(1)[0])}
    return [
        warm.Process(function, *arguments, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(num_processes)
    ]


def start(jobs: Sequence[Job], num_processes: int) -> list[warm.Process]:
    """Starts so many processes that share each of the commands."""
    return start_all(num_processes, do_all, [to_words(*job) for job in jobs], free_ports(len(jobs)))


def finish(processes: Sequence[warm.Process], timeout: float = 600) -> list[tuple[int, str, str]]:
    """Waits; exit status, output and errors of each process."""
    try:
        ended = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.wait(), *texts) for process, texts in zip(processes, ended, strict=True)]


def run(jobs: Sequence[Job], num_processes: int) -> list[str]:
    """Runs commands to their ends; what each process wrote on stderr."""
    ended = finish(start(jobs, num_processes))
    assert all(status == 0 for status, _, _ in ended), ended
    return [errors for _, _, errors in ended]


def do_all(lines: Sequence[Sequence[str]], ports: Sequence[int]) -> None:
    """What each of the processes does: command lines one after another, each in a process group of its own port."""
    import torch
    from accelerate.state import AcceleratorState
    from torch import distributed

    from contentmotion.cli import main
    from contentmotion.models import video_unet
    from contentmotion.train import denoiser

    torch.nn.Dropout.forward = lambda layer, x: x  # what it draws depends on how a batch is shared out
    denoiser.PREVIEW_STEPS = 2
    video_unet._temporal_head_dim = tiny.NARROW_HEADS[1]
    for words, port in zip(lines, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        status = main(words)
        if status:
            sys.exit(status)
        if distributed.is_initialized():
            distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
