"""The progress bar of every command: on stderr, and only where that is a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn


def progress_bar(*columns: ProgressColumn, shown: bool = True, transient: bool = False) -> Progress:
    """A bar with what is done of how much, and the time that is left; a context manager.

    Args:
        columns: More of them, before the time.
        shown: Whether there is one at all; of several processes one shows it.
        transient: Whether it goes when it is done.
    """
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *columns, TimeRemainingColumn(),
        console=console, disable=not (shown and console.is_terminal), transient=transient,
    )  # fmt: skip
