"""Videos longer than what the models were trained on: clips of that length, which go on from one another or overlap.

Where clips overlap, the motion of the whole video is denoised at once. In each step the network sees one clip after
another, and where two overlap their predictions are averaged (Bar-Tal et al. 2023, MultiDiffusion; Wang et al. 2023,
Gen-L-Video, for time). Frames are decoded clip by clip and cross-faded, so that no more than two are in memory.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from contentmotion.stages.motion import MotionStage
from contentmotion.stages.stage import Condition


@dataclass(frozen=True)
class Clips:
    """The clips that a video is made of.

    Attributes:
        num_frames: Frames of the video, at least ``length`` where there are several.
        length: Frames of a clip.
        loop: Whether the last frame is followed by the first: clips go over the end.
        chained: Whether each begins with the last frame of the one before, rather than to overlap it; the last may then
            be longer than the video.
        overlap: Frames that each shares with the one before, whose motion it is given (the last of a loop also that of
            the first one's beginning); 0: half of them, made at once.
    """

    num_frames: int
    length: int
    loop: bool = False
    chained: bool = False
    overlap: int = 0

    @cached_property
    def starts(self) -> list[int]:
        """First frame of each clip; overlapping ones are evenly spread, at most half a clip apart."""
        if self.chained:
            return list(range(0, max(1, self.num_frames - 1), self.length - 1))
        if self.overlap:
            starts = list(range(0, max(1, self._before_end - self.overlap), self.length - self.overlap))
            return [*starts, self._before_end - self.overlap] if self.loop else starts
        stride = max(1, self.length - self.length // 2)
        if self.loop:
            count = -(-self.num_frames // stride)
            return [k * self.num_frames // count for k in range(count)]
        span = self.num_frames - self.length
        count = -(-span // stride) + 1
        return [k * span // max(1, count - 1) for k in range(count)]

    @property
    def _before_end(self) -> int:
        """Frames in front of what the last clip of a loop makes between its two given ends."""
        return self.num_frames - (self.length - 2 * self.overlap if self.loop else 0)

    def __len__(self) -> int:
        return len(self.starts)

    def frames(self, k: int) -> Tensor:
        """Numbers of a clip's frames, int64 (t,)."""
        length = self.length
        if self.overlap and not (self.loop and k == len(self) - 1):
            length = min(length, self._before_end - self.starts[k])
        numbers = self.starts[k] + torch.arange(length)
        return numbers.clamp(max=self.num_frames - 1) if self.chained else numbers % self.num_frames

    def scene(self, k: int, changes: list[int]) -> int:
        """Which of the scenes, which begin at these frames, a clip belongs to: by its middle, or where clips go on from
        one another by its beginning."""
        frame = self.starts[k] if self.chained else (self.starts[k] + self.length // 2) % max(1, self.num_frames)
        return bisect.bisect_right(changes, frame) - 1

    def weights(self, k: int) -> Float[Tensor, " t"]:
        """How much a clip's frames count where clips overlap: less towards its ends."""
        rising = torch.arange(1, len(self.frames(k)) + 1, dtype=torch.float32)
        return torch.minimum(rising, rising.flip(0))

    def average(self, part: Callable[[int], Float[Tensor, "b D t s"]]) -> Float[Tensor, "b D t s"]:
        """What there is of all frames, out of what ``part`` gives of each clip's."""
        total, weight = torch.zeros(()), torch.zeros(self.num_frames)
        for k in range(len(self)):
            piece, frames, weights = part(k).float(), self.frames(k), self.weights(k)
            if not total.dim():
                total = piece.new_zeros((*piece.shape[:2], self.num_frames, piece.shape[3]))
            total.index_add_(2, frames.to(piece.device), piece * weights.to(piece)[:, None])
            weight.index_add_(0, frames, weights)
        return total / weight.to(total)[:, None]

    def fade(self, decode: Callable[[int], Float[Tensor, "b length ..."]]) -> Iterator[Float[Tensor, "b t ..."]]:
        """The video's frames in order, each as soon as the clips that hold it are decoded."""
        sums: dict[int, Tensor] = {}
        totals: dict[int, float] = {}

        def add(k: int, *, wrapped: bool) -> None:
            clip = decode(k)
            for i, (frame, weight) in enumerate(zip(self.frames(k).tolist(), self.weights(k).tolist(), strict=True)):
                if (self.starts[k] + i >= self.num_frames) == wrapped:
                    sums[frame] = weight * clip[:, i].float() + sums.get(frame, 0)
                    totals[frame] = totals.get(frame, 0) + weight

        for k, start in enumerate(self.starts):
            if start + len(self.frames(k)) > self.num_frames:  # the end of a loop is part of its beginning
                add(k, wrapped=True)
        for k in range(len(self)):
            add(k, wrapped=False)
            done = self.starts[k + 1] if k + 1 < len(self) else self.num_frames
            ready = range(self.starts[k], done)
            if ready:
                yield torch.stack([sums.pop(frame) / totals.pop(frame) for frame in ready], dim=1)


class LongMotionStage(MotionStage):
    """The motion stage on the motion of a long video, which is made of these clips."""

    def __init__(self, components: Mapping[str, Any], clips: Clips) -> None:
        super().__init__(components)
        self.clips = clips

    def forward(
        self, noisy: Float[Tensor, "b D t s"], timesteps: Tensor, condition: Condition
    ) -> Float[Tensor, "b out t s"]:
        """See ``Stage.forward``; the condition's tensors (b, clips, ...) have what each clip is told, but for times."""

        def part(k: int) -> Tensor:
            told = {name: value if value.dim() == 0 else value[:, k] for name, value in condition.items()}
            piece = noisy.index_select(2, self.clips.frames(k).to(noisy.device))
            return super(LongMotionStage, self).forward(piece, timesteps, told).float()

        return self.clips.average(part)


def stack_conditions(conditions: Sequence[Condition]) -> Condition:
    """What each clip is told, (b, clips, ...)."""
    return {name: torch.stack([each[name] for each in conditions], dim=1) for name in conditions[0]}
