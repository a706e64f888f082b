"""Who waits for what: one job a visitor, and none for nobody."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.server_messages import ProcessCompletedMessage

if TYPE_CHECKING:
    from gradio.queueing import Event, Queue

MODEL = {"concurrency_id": "model", "concurrency_limit": 1}  # one run through the networks at a time, of all tabs
PATIENCE, HURRY = 60.0, 10.0  # seconds for which a job may be without a listener; the second while others wait
ONE_JOB = "one job at a time: your other one is not done yet"
LEFT = "ended: nobody waits for it"
SHOWN_EVERY = 0.1  # seconds between two messages of a job's progress


def at_times(progress: Callable[..., object]) -> Callable[[int, int, str], None]:
    """Tells a ``gr.Progress`` of steps (done, in all, what), but no more often than a page can show them: behind
    thousands of messages it is late, and hears no click."""
    shown = -math.inf

    def show(done: int, total: int, what: str) -> None:
        nonlocal shown
        now = monotonic()
        if done == total or now - shown >= SHOWN_EVERY:
            shown = now
            progress((done, total), desc=what, unit="steps")

    return show


class Visitors:
    """Who listens to which jobs of the page's queue.

    A visitor is a session of the page or a client, which asks for a job by one request and hears of it by another: a
    stream that is open while it waits. A job that nobody listens to leaves the queue, or ends after the step it is at.
    """

    def __init__(self) -> None:
        self._queue: Queue  # see watch
        self._streams: Counter[str] = Counter()
        self._heard: dict[str, float] = {}

    def watch(self, queue: Queue) -> None:
        """Lets into a queue one job a visitor, and out what nobody waits for any more."""
        push, self._queue = queue.push, queue

        async def admit(body: Any, request: Any, username: str | None) -> Any:
            for event in self._jobs():
                if event.alive and not self._is_awaited(event):
                    queue.send_message(event, ProcessCompletedMessage(output={"error": LEFT}, success=False))
                    await queue.clean_events(event_id=event._id)
            asked = queue.blocks.fns.get(body.fn_index)
            if asked is not None and asked.concurrency_id == MODEL["concurrency_id"]:
                for _ in range(20):  # the last one may be told of a moment before it leaves
                    if not any(event.alive and event.session_hash == body.session_hash for event in self._jobs()):
                        break
                    await asyncio.sleep(0.05)
                else:
                    return False, ONE_JOB, "error"
            return await push(body=body, request=request, username=username)

        queue.push = admit

    @contextmanager
    def listening(self, path: str, query: dict[str, str]) -> Iterator[None]:
        """While a request to a path is open: somebody listens, if it is a stream of a session's messages."""
        session = self._session_of(path, query)
        if session is None:
            yield
            return
        self._streams[session] += 1
        try:
            yield
        finally:
            self._streams[session] -= 1
            now = monotonic()
            self._heard = {name: at for name, at in self._heard.items() if now - at < PATIENCE} | {session: now}
            self._streams += Counter()  # those of nobody go

    def follow(self, session: str, progress: Callable[..., object]) -> Callable[[str, int, int], None]:
        """What is called after each step of a session's job (of what, done, in all): shows it, and ends a job that
        nobody waits for."""
        show = at_times(progress)

        def on_step(what: str, done: int, total: int) -> None:
            show(done, total, what)
            if self.has_left(session):
                raise gr.Error(LEFT, print_exception=False)

        return on_step

    def has_left(self, session: str) -> bool:
        """Whether a session's visitor waits no longer for the job that runs."""
        running = [event for event in self._running() if event.session_hash == session]
        return bool(running) and not any(event.alive and self._is_awaited(event) for event in running)

    def _session_of(self, path: str, query: dict[str, str]) -> str | None:
        if path.endswith("/queue/data"):
            return query.get("session_hash")
        before, _, event_id = path.rstrip("/").rpartition("/")
        if "/call/" not in before:
            return None
        event = self._queue.event_ids_to_events.get(event_id)
        return event_id if event is None else event.session_hash

    def _is_awaited(self, event: Event) -> bool:
        if self._streams[event.session_hash]:
            return True
        patience = HURRY if self._waiting() else PATIENCE
        since = max(event.enqueue_time, self._heard.get(event.session_hash, 0))
        return monotonic() - since < patience

    def _jobs(self) -> list[Event]:
        return [*self._waiting(), *self._running()]

    def _waiting(self) -> list[Event]:
        queue = self._queue.event_queue_per_concurrency_id.get(str(MODEL["concurrency_id"]))
        return [] if queue is None else list(queue.queue)

    def _running(self) -> list[Event]:
        active = [event for jobs in self._queue.active_jobs if jobs for event in jobs]
        return [event for event in active if event.concurrency_id == MODEL["concurrency_id"]]
