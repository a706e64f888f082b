"""Training in several processes on the CPU, as torchrun starts them, but each can be killed by itself.

As a program: runs a list of commands (JSON, as an argument) one after another in the process group of its environment.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

Job = tuple[str, dict[str, Any]]


def to_words(command: str, settings: Mapping[str, Any]) -> list[str]:
    """A command line without the program's name."""
    words = [command]
    for name, value in settings.items():
        words += [f"--{name}", *map(str, value if isinstance(value, (list, tuple)) else (value,))]
    return words


def start(jobs: Sequence[Job], num_processes: int, command: Sequence[str] | None = None) -> list[subprocess.Popen]:
    """Starts so many processes that share each of the commands, or that are another program."""
    lines = [to_words(*job) for job in jobs]
    sockets = [socket.socket() for _ in range(max(1, len(lines)))]  # all open at once, so that the ports differ
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    shared = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_PORT": str(ports[0])}
    return [
        subprocess.Popen(
            command or [sys.executable, __file__, json.dumps(lines), json.dumps(ports)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_processes)
    ]


def finish(processes: Sequence[subprocess.Popen], timeout: float = 600) -> list[tuple[int, str, str]]:
    """Waits; exit status, output and errors of each process."""
    try:
        ended = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, ended, strict=True)]


def run(jobs: Sequence[Job], num_processes: int) -> list[str]:
    """Runs commands to their ends; what each process wrote on stderr."""
    ended = finish(start(jobs, num_processes))
    assert all(status == 0 for status, _, _ in ended), ended
    return [errors for _, _, errors in ended]


def main() -> int:
    """The program."""
    import torch
    from accelerate.state import AcceleratorState
    from torch import distributed

    from contentmotion.cli import main as contentmotion

    # What dropout draws depends on how a batch is shared out; nothing else does.
    torch.nn.Dropout.forward = lambda layer, x: x
    for words, port in zip(*map(json.loads, sys.argv[1:3]), strict=True):
        os.environ["MASTER_PORT"] = str(port)
        status = contentmotion(words)
        if status:
            return status
        if distributed.is_initialized():
            distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
