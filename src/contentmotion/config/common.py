"""What several commands' settings share: ranges of numbers, words that mean the same everywhere."""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

SHIPPED_MODEL = "emoji"
SHIPPED_STUDENT = "emoji-lcm"  # the same, distilled
MixedPrecision = Literal["auto", "no", "bf16", "fp16"]
PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]


@dataclass(frozen=True)
class Range:
    """The numbers that a setting takes; neither infinity nor NaN is in any.

    Attributes:
        low: The least, or with ``above`` the greatest that is too small.
        high: The greatest, or with ``below`` the least that is too large.
        above: Whether ``low`` itself is too small.
        below: Whether ``high`` itself is too large.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __contains__(self, number: float) -> bool:
        inside = self.low <= number <= self.high
        return inside and not (self.above and number == self.low) and not (self.below and number == self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'from'} {short(self.low)}"
        high = ", below" if self.below else ", at most" if self.above else " to"
        return f"{low}{high} {short(self.high)}"


def short(number: float) -> str:
    """A number in words of a message: 16,384, 0.5, 10^9."""
    zeros = len(str(int(number))) - 1
    return f"10^{zeros}" if zeros >= 7 and number == 10**zeros else f"{number:,}"


def printable(text: str) -> str:
    """A text as it may be shown on a terminal: what is no UTF-8, and no character to print, is spelt out (\\x1b).

    File names, captions and errors come from data of others, and a terminal obeys what it is sent. Line breaks stay.
    """
    text = text.encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


Count = Annotated[int, Range(1, 10**9)]  # of videos, of clips, of steps
Batch = Annotated[int, Range(1, 10**5)]
Every = Annotated[int, Range(0, 10**9)]  # n steps; 0: never
Frames = Annotated[int, Range(1, 10**4)]
Pixels = Annotated[int, Range(1, 16_384)]
Width = Annotated[int, Range(1, 16_384)]  # of a layer: features, channels
Depth = Annotated[int, Range(1, 1000)]  # layers, heads
Workers = Annotated[int, Range(0, 1000)]
Seed = Annotated[int, Range(0, 10**18)]
Rate = Annotated[float, Range(0, 1000, above=True)]  # frames per second, learning rate
Positive = Annotated[float, Range(0, 10**6, above=True)]
Weight = Annotated[float, Range(0, 10**6)]  # 0: off
Guidance = Annotated[float, Range(0, 1000)]
Time = Annotated[float, Range(0, 10**6)]  # of a noise schedule, 0 being the sample
Share = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 1, below=True)]


@dataclass(frozen=True)
class FieldType:
    """A field's type, taken apart.

    Attributes:
        item: The type, or that of a list's items.
        container: ``list`` or ``tuple`` where it is one of them.
        optional: Whether it may be None.
        range: Of a number, or of each in a list.
    """

    item: Any
    container: type | None
    optional: bool
    range: Range | None


@functools.cache
def field_types(config_class: type) -> dict[str, FieldType]:
    """The types of a config's fields."""
    hints = get_type_hints(config_class, include_extras=True)
    return {name: _take_apart(hint) for name, hint in hints.items() if get_origin(hint) is not ClassVar}


def _take_apart(hint: Any) -> FieldType:
    inner = [a for a in get_args(hint) if a is not types.NoneType]
    optional = get_origin(hint) in (Union, types.UnionType) and len(inner) < len(get_args(hint))
    if optional:
        hint = inner[0]
    container = get_origin(hint) if get_origin(hint) in (list, tuple) else None
    if container:
        hint = get_args(hint)[0]
    limits = next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Range)), None)
    return FieldType(hint.__origin__ if limits else hint, container, optional, limits)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all configs and their blocks share.

    Raises:
        ValueError: A number out of its range.
    """

    takes_any_recipe: ClassVar[bool] = False  # whether settings of other commands are ignored in YAML files

    def __post_init__(self) -> None:
        for name, kind in field_types(type(self)).items():
            value = getattr(self, name)
            for number in value if isinstance(value, (list, tuple)) else (value,):
                if kind.range is not None and number is not None and number not in kind.range:
                    raise ValueError(f"{type(self).__name__}.{name} must be {kind.range}, got {number}")


@dataclass(frozen=True, kw_only=True)
class ModelWeights(Settings):
    """Which of a model's weights are loaded.

    Attributes:
        revision: Branch, tag or commit of the image model or pipeline on the hub; its main branch when not given.
        variant: Weights of it whose files carry this word in their names, such as "fp16"; else those without a word.
    """

    revision: str | None = None
    variant: str | None = None


@dataclass(frozen=True, kw_only=True)
class HubConfig(ModelWeights):
    """What commands share that load a model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_named_model(self, self)


# Settings of blocks that have their names from diffusers' training scripts go without the block's name, too.
PLAIN_NAMES = {
    "revision": "hub.revision",
    "variant": "hub.variant",
    "push_to_hub": "hub.push_to_hub",
    "hub_model_id": "hub.hub_model_id",
    "use_8bit_adam": "scale.use_8bit_adam",
}


def whole_name(name: str, settings: Collection[str]) -> str:
    """A setting's name, with the block's where it was left out as diffusers does."""
    return name if name in settings or PLAIN_NAMES.get(name) not in settings else PLAIN_NAMES[name]


def named_model(config: Any) -> str | None:
    """What a config's revision and variant are of."""
    return getattr(config, "pretrained_model_name_or_path", None) or getattr(config, "vae", None)


def require_named_model(config: Any, weights: Any) -> None:
    """Raises ``ValueError`` where a revision or a variant is given, and nothing that it is of."""
    named = {getattr(config, name, None) for name in ("pretrained_model_name_or_path", "vae")} - {None}
    if (weights.revision or weights.variant) and len(named) != 1:
        raise ValueError(
            "--revision and --variant are of the one model that is named, by --pretrained_model_name_or_path or --vae, "
            f"and here are {len(named)}: of several, download what you want (hf download) and name the folders"
        )


def require(condition: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless the condition holds (configs check their settings with it)."""
    if not condition:
        raise ValueError(message)


def require_interval(name: str, interval: tuple[float, ...] | None) -> None:
    """Raises ``ValueError`` where a setting is no two times, the lower one first."""
    if interval is not None and (len(interval) != 2 or interval[0] > interval[1]):
        raise ValueError(f"{name} takes two times of the schedule, the lower one first, such as 400 900")


def parse_bucket(text: str) -> tuple[int, int, int]:
    """Frames, height and width of a bucket written like "16x256x384".

    Raises:
        ValueError: Written otherwise.
    """
    numbers = text.split("x")
    if len(numbers) != 3 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise ValueError(f"a bucket is written FRAMESxHEIGHTxWIDTH, such as 16x256x384, got {text!r}")
    frames, height, width = map(int, numbers)
    for number, kind in ((frames, Frames), (height, Pixels), (width, Pixels)):
        require(number in get_args(kind)[1], f"bucket {text}: {number:,} is not {get_args(kind)[1]}")
    return frames, height, width
