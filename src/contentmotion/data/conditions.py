"""Conditions for training: taken from the clips of a latent cache, and dropped at random so that any subset serves.

What one gives a trained model is read by `contentmotion.data.condition_files`; maps come from `condition_maps`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from contentmotion.config import CONDITION_NAMES, MAP_NAMES
from contentmotion.draws import Source, rand


def require_conditions(names: Sequence[str], fields: Sequence[str]) -> None:
    """Checks that a cache has what conditions are made of.

    Args:
        names: Conditions.
        fields: Names of what the cache's items hold.

    Raises:
        ValueError: An unknown condition, or one that the cache has not; one line that names it.
    """
    for name in names:
        if name not in CONDITION_NAMES:
            raise ValueError(f"unknown condition {name!r}: choose from {', '.join(CONDITION_NAMES)}")
        if name in MAP_NAMES and name not in fields:
            raise ValueError(
                f"the latent cache holds no {name}: run `contentmotion encode --latents_only true --conditions {name}` "
                "into another folder"
            )
    if names and "latents" not in fields:
        raise ValueError(
            "the latent cache holds no latents of whole clips: run `contentmotion encode --latents_only true`"
        )


def training_conditions(
    batch: Mapping[str, Any],
    names: Sequence[str],
    generator: Source,
    dropout_prob: float = 0.5,
    drop_all_prob: float = 0.1,
    keep_all_prob: float = 0.1,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The conditions of a batch of cached clips, and which of them each item is shown.

    Args:
        batch: "latents" (b, t, c, h, w), and uint8 (b, t, 1, H, W) "depth" and "sketch" where they are among `names`.
        names: Conditions of the model.
        generator: Draws masks and what is dropped, on the CPU.
        dropout_prob: Share of items without a condition, for each condition by itself.
        drop_all_prob: Share of items without any.
        keep_all_prob: Share of items with all.

    Returns:
        conditions: As `ConditionEncoder.forward` takes them, on the latents' device: maps float in [0, 1]; "mask"
            (b, t, 1 + c, h, w); "first_frame" (b, 1, c, h, w).
        present: Per condition, bool (b,).

    Raises:
        ValueError: An unknown condition, or one that the batch has not.

    Source: Wang et al. 2023 (VideoComposer) after Huang et al. 2023 (Composer): each dropped with probability 0.5, all
    of them with 0.1, none with 0.1.
    """
    require_conditions(names, list(batch))
    if not names:
        return {}, {}
    latents: Tensor = batch["latents"]
    b, t, _, h, w = latents.shape
    conditions = {}
    for name in dict.fromkeys(names):
        if name in MAP_NAMES:
            conditions[name] = batch[name].to(latents.device, latents.dtype) / 255
        elif name == "mask":
            conditions[name] = known_latents(latents, random_tubes(b, t, h, w, generator).to(latents))
        else:
            conditions[name] = latents[:, :1]
    present = draw_present(list(conditions), b, generator, dropout_prob, drop_all_prob, keep_all_prob)
    return conditions, {name: value.to(latents.device) for name, value in present.items()}


def known_latents(latents: Tensor, mask: Tensor) -> Tensor:
    """The condition "mask": the mask, and the latents where it is 0.

    Args:
        latents: Scaled latents (b, t, c, h, w).
        mask: (b, t, 1, h, w): 1 is to be made, 0 is known.

    Returns:
        (b, t, 1 + c, h, w).
    """
    return torch.cat([mask.to(latents), latents * (1 - mask.to(latents))], dim=2)


def draw_present(
    names: Sequence[str],
    batch_size: int,
    generator: Source,
    dropout_prob: float,
    drop_all_prob: float,
    keep_all_prob: float,
) -> dict[str, Tensor]:
    """Which conditions each item of a batch is shown, bool (b,) by name; see `training_conditions`.

    Raises:
        ValueError: No probabilities, or the last two exceed 1 together.
    """
    if not (0 <= dropout_prob <= 1 and min(drop_all_prob, keep_all_prob) >= 0 and drop_all_prob + keep_all_prob <= 1):
        raise ValueError(
            f"conditions are dropped with probabilities, got {dropout_prob}, {drop_all_prob}, {keep_all_prob}"
        )
    kept = rand((len(names), batch_size), generator, batch_dim=1) >= dropout_prob
    lot = rand((batch_size,), generator)
    kept &= lot >= drop_all_prob
    kept |= lot >= 1 - keep_all_prob
    return dict(zip(names, kept, strict=True))


def random_tubes(batch_size: int, num_frames: int, height: int, width: int, generator: Source) -> Tensor:
    """Masks to train inpainting with, one of three kinds each.

    * half of them a rectangle that glides across the clip, a quarter to three quarters of each side: inpainting;
    * a quarter all but such a rectangle: outpainting;
    * a quarter whole frames from some frame on, or up to one: prediction in time (of a single frame, all of it).

    Args:
        batch_size: Masks b.
        num_frames: Frames t.
        height: Latent rows h.
        width: Latent columns w.
        generator: Draws, on the CPU.

    Returns:
        float32 (b, t, 1, h, w): 1 is to be made, 0 is known. Every mask has something to be made.
    """
    lots = rand((batch_size, 8), generator)
    kind = lots[:, 0]
    rectangle = _between(height, num_frames, lots[:, 1:4])[..., :, None]
    rectangle = rectangle & _between(width, num_frames, lots[:, 4:7])[..., None, :]  # (b, t, h, w)
    frames = torch.arange(num_frames)
    boundary = 1 + (lots[:, 7] * (num_frames - 1)).long()  # known frames, or frames to be made
    late = frames >= boundary[:, None] if num_frames > 1 else torch.ones(batch_size, 1, dtype=torch.bool)
    backwards = (lots[:, 1] < 0.5) & (num_frames > 1)
    whole = torch.where(backwards[:, None], ~late, late)[..., None, None]
    kind = kind[:, None, None, None]
    masks = torch.where(kind < 0.5, rectangle, torch.where(kind < 0.75, ~rectangle, whole))
    # All but a rectangle is nothing where a side of one or two latents is all rectangle.
    empty = ~masks.flatten(1).any(dim=1)[:, None, None, None]
    return torch.where(empty, torch.ones_like(masks), masks).float()[:, :, None]


def _between(side: int, num_frames: int, lots: Tensor) -> Tensor:
    """An interval of a side that glides from one place to another over a clip, bool (b, t, side); lots (b, 3)."""
    length = (side * (0.25 + 0.5 * lots[:, :1])).round().clamp_min(1)  # (b, 1)
    start, stop = (side - length) * lots[:, 1:2], (side - length) * lots[:, 2:3]
    first = (start + (stop - start) * torch.linspace(0, 1, num_frames)).round()[..., None]  # (b, t, 1)
    places = torch.arange(side)
    return (places >= first) & (places < first + length[..., None])
