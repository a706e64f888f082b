"""Stopping a run before its end so that nothing is lost: at a time limit, or when the machine is taken away."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

OUT_OF_TIME = 75  # sysexits' EX_TEMPFAIL: try again later
TERMINATED = 128 + signal.SIGTERM


class StopRequests:
    """Notes, while it is entered, that the run should stop: on SIGTERM, or after ``max_minutes``.

    The signal only leaves a note, so a step that has begun is finished. A second one ends the process at once.

    Args:
        max_minutes: Time limit, from entering on; None: none.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.max_seconds = None if max_minutes is None else 60 * max_minutes
        self.terminated = False
        self._started = 0.0
        self._before: Any = None

    def __enter__(self) -> StopRequests:
        self._started = time.monotonic()
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no signals
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.terminated = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    @property
    def out_of_time(self) -> bool:
        """Whether the time limit has passed."""
        return self.max_seconds is not None and time.monotonic() - self._started >= self.max_seconds

    @property
    def is_asked(self) -> bool:
        """Whether the run should stop."""
        return self.terminated or self.out_of_time
