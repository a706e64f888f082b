"""A run that ends before its end: so that nothing is lost, and with a line that says what is kept."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from accelerate.utils import gather_object

from contentmotion.train.checkpoints import latest_checkpoint, what_is_kept
from contentmotion.train.processes import this_process

OUT_OF_TIME = 75  # sysexits' EX_TEMPFAIL: try again later
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class StopRequests:
    """Notes, while it is entered, that the run should stop: on SIGTERM, Ctrl-C or SIGHUP, or after ``max_minutes``.

    The signal only leaves a note, so a step that has begun is finished. A second one ends the process at once. Signals
    that the process ignores (``nohup``) stay ignored.

    Args:
        max_minutes: Time limit, from entering on; None: none.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.max_seconds = math.inf if max_minutes is None else 60 * max_minutes
        self.signal = 0  # the one that came
        self._started = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        self._started = time.monotonic()
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no signals
            for number in STOP_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for other in self._before:
            signal.signal(other, signal.default_int_handler if other == signal.SIGINT else signal.SIG_DFL)
        if number == signal.SIGINT and this_process().is_main_process:  # print() may be at work in this very moment
            os.write(2, b"\nStopping after this step, with a checkpoint; once more ends at once.\n")

    @property
    def is_asked(self) -> bool:
        """Whether the run should stop."""
        return bool(self.signal) or time.monotonic() - self._started >= self.max_seconds

    def leave(self, step: int, last_step: int, run_dir: Path) -> None:
        """Says why the run ends before its end, in all processes.

        Raises:
            SystemExit: With the status that shells give to a process that the signal ended, or ``OUT_OF_TIME``.
        """
        number = max(gather_object([self.signal]))
        why = signal.Signals(number).name if number else f"scale.max_train_time of {self.max_seconds / 60:g} minutes"
        if this_process().is_main_process:
            print(
                f"Stopped by {why} after step {step} of {last_step}, with a checkpoint in {run_dir}: the same command "
                "goes on from there.",
                file=sys.stderr,
            )
        raise SystemExit(128 + number if number else OUT_OF_TIME)


@contextmanager
def explained(run_dir: Path) -> Iterator[None]:
    """Says in one line what torch says in many, where not this process but another one is to blame.

    After Ctrl-C it says what is kept.

    Raises:
        OSError: A process that reads data, or another one that trains, has ended.
    """
    try:
        yield
    except KeyboardInterrupt:
        if this_process().is_main_process:
            kept = latest_checkpoint(run_dir)
            goes_on = f"the same command goes on from {kept}" if kept else "no checkpoint was written yet"
            print(f"Interrupted: {goes_on} (--checkpointing_steps)", file=sys.stderr)
        raise
    except RuntimeError as error:
        if "DataLoader worker (" in str(error):  # it died, where others tell of an error in it
            what = (
                f"a process that reads data died ({str(error).splitlines()[0]}): if it was for lack of memory, lower "
                "--dataloader_num_workers; 0 reads in the training process"
            )
        elif "onnection" in str(error) and this_process().num_processes > 1:
            what = f"another process of this run has ended ({str(error).splitlines()[0]})"
        else:
            raise
        raise OSError(f"{what}; {what_is_kept(run_dir)}") from error
