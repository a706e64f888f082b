"""How much bad data is too much."""

from __future__ import annotations

import math


def require_few_bad(bad: int, seen: int, limit: float, total: float | None) -> None:
    """Stops a run on bad data: for certain when all was seen, before that only when chance cannot be the reason.

    Args:
        bad: Bad files so far, each counted once.
        seen: Files tried so far.
        limit: Share of bad ones that is tolerated.
        total: How many files there are; None: nobody knows.

    Raises:
        ValueError: More than the limit.
    """
    expected = limit * min(seen, total or seen)
    # Three standard deviations of a count with this expectation, and one: the first bad file proves nothing.
    slack = 0.0 if total is not None and seen >= total else 3 * math.sqrt(expected) + 1
    if bad > expected + slack:
        raise ValueError(f"{bad} bad files among {seen} tried, more than max_bad_fraction={limit} allows")
