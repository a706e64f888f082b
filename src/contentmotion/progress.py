"""The progress bar of every command: on stderr, and only where that is a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

_whole: list[str] = []  # what the bars are part of


@contextmanager
def part_of(whole: str) -> Iterator[None]:
    """Bars made inside say before their own words what they are part of, such as "stage 2 of 8, then 9 min"."""
    _whole.append(whole)
    try:
        yield
    finally:
        _whole.pop()


def progress_bar(*columns: ProgressColumn, shown: bool = True, transient: bool = False) -> Progress:
    """A bar with what is done of how much, and the time that is left; a context manager.

    Args:
        columns: More of them, before the time.
        shown: Whether there is one at all; of several processes one shows it.
        transient: Whether it goes when it is done.
    """
    console = Console(stderr=True)
    whole = [TextColumn(_whole[-1], markup=False)] if _whole else []
    return Progress(
        *whole, TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *columns, TimeRemainingColumn(),
        console=console, disable=not (shown and console.is_terminal), transient=transient,
    )  # fmt: skip
