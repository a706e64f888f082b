"""What several commands' settings share: checks of ranges, words that mean the same everywhere."""

from __future__ import annotations

from typing import Literal

SHIPPED_MODEL = "emoji"
SHIPPED_STUDENT = "emoji-lcm"  # the same, distilled
MixedPrecision = Literal["auto", "no", "bf16", "fp16"]
PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]


def require(condition: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless the condition holds (configs check their ranges with it)."""
    if not condition:
        raise ValueError(message)


def parse_bucket(text: str) -> tuple[int, int, int]:
    """Frames, height and width of a bucket written like "16x256x384".

    Raises:
        ValueError: Written otherwise.
    """
    numbers = text.split("x")
    require(
        len(numbers) == 3 and all(number.isdecimal() and int(number) > 0 for number in numbers),
        f"a bucket is written FRAMESxHEIGHTxWIDTH, such as 16x256x384, got {text!r}",
    )
    frames, height, width = map(int, numbers)
    return frames, height, width


def full_name(config: object, name: str) -> str:
    """A field's name on the command line: with that of its block, if it is in one."""
    return f"{config.block}.{name}" if hasattr(config, "block") else name


def require_positive(config: object, *names: str) -> None:
    """Raise ``ValueError`` for the first named field that is set and not above zero."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value > 0, f"{full_name(config, name)} must be positive, got {value}")


def require_share(config: object, *names: str) -> None:
    """Raises ``ValueError`` for a field outside [0, 1]."""
    for name in names:
        value = getattr(config, name)
        require(0 <= value <= 1, f"{full_name(config, name)} must be in [0, 1], got {value}")


def require_not_negative(config: object, *names: str) -> None:
    """Raise ``ValueError`` for the first named field that is below zero."""
    for name in names:
        value = getattr(config, name)
        require(value >= 0, f"{full_name(config, name)} must not be negative, got {value}")
