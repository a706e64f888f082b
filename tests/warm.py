"""Processes that begin with torch, diffusers and the commands already imported: forked from one that did it once.

Importing these takes 12 s of a processor, so whatever needs a process of its own to be killed, signalled or one of two
comes from here. What is about a fresh interpreter starts one.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

TEXTS = ("out", "err")
_COMMANDS = ("train.vae", "train.autoencoder", "train.content", "train.motion", "train.video", "train.distill")
_OTHERS = ("commands.encode", "commands.generate", "commands.inspect", "evaluate.run", "cost.plan")
_LAZY = ("diffusers.models.unets.unet_2d_condition", "transformers.models.clip.modeling_clip", "accelerate")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([*(f"contentmotion.{name}" for name in (*_COMMANDS, *_OTHERS)), *_LAZY, "frozen"])


class Process:
    """Calls a module's function in a process of its own; as much of ``subprocess.Popen`` as tests use.

    Args:
        function: What is called; what it raises and whether it exits is the process's status.
        arguments: Its arguments.
        env: Changes of the environment.
        new_session: Whether it leads a session and a process group of its own.
    """

    def __init__(
        self, function: Callable, *arguments: Any, env: Mapping[str, str] | None = None, new_session: bool = False
    ) -> None:
        self._said: tuple[str, str] | None = None
        self._folder = Path(tempfile.mkdtemp())
        method = multiprocessing.get_start_method()
        given = ({**os.environ, **(env or {})}, str(self._folder), new_session, method, function, arguments)
        self._process = CONTEXT.Process(target=_enter, args=given)
        self._process.start()
        self.pid: int = self._process.pid  # type: ignore[assignment]

    @property
    def returncode(self) -> int | None:
        """None as long as it runs; ``-N`` where signal N ended it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """``returncode``."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its status; TimeoutError when it still runs by then."""
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutError(f"process {self.pid} still runs after {timeout} s")
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def output(self) -> str:
        """What it wrote on standard output so far."""
        return (self._folder / "out").read_text() if (self._folder / "out").exists() else ""

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits; what it wrote on standard output and standard error."""
        self.wait(timeout)
        if self._said is None:
            out, err = (path.read_text() if path.exists() else "" for path in map(self._folder.joinpath, TEXTS))
            self._said = out, err
            shutil.rmtree(self._folder)
        return self._said


def command(words: Sequence[str], env: Mapping[str, str] | None = None) -> Process:
    """``contentmotion WORDS``."""
    return Process(_contentmotion, list(words), env=env)


def python(code: str, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
    """``python -c CODE ARGUMENTS``, where of contentmotion nothing is imported yet."""
    return Process(_python, code, arguments, env=env)


def forget(*packages: str) -> None:
    """Has packages imported anew, with the settings that the environment has by now."""
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


def _python(code: str, arguments: Sequence[str]) -> None:
    forget("contentmotion")
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def _contentmotion(words: Sequence[str]) -> None:
    from contentmotion.cli import main

    sys.exit(main(words))


def _enter(
    env: dict[str, str], folder: str, new_session: bool, start_method: str, function: Callable, arguments: tuple
) -> None:
    multiprocessing.set_start_method(start_method, force=True)  # as in any process, instead of this one's
    if new_session:
        os.setsid()
    for descriptor, name in enumerate(TEXTS, start=1):
        file = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts what it starts without
    function(*arguments)
