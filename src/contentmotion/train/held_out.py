"""Guard-rails of distillation: scores on clips that were not trained on, alarms."""

from __future__ import annotations

import hashlib
import math
import sys
from itertools import groupby
from typing import Any

import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor, nn

from contentmotion.config import DistillConfig
from contentmotion.data.cache import INDEX, LatentCache, collate_latents
from contentmotion.losses.consistency import consistency_loss, sample
from contentmotion.run_dir import seeded_generator
from contentmotion.train.distill_parts import Part
from contentmotion.train.loop import Batch

TEACHER_STEPS, STUDENT_STEPS = 50, 4
MIN_POINTS = 64  # times and noises that the held-out loss averages over, at least


class HeldOut:
    """Scores on held-out clips, with the same clips, noise and times at every step: their numbers compare.

    Args:
        part: What is distilled.
        teacher: Its pipeline.
        denoisers: "student", "target" and "teacher".
        cache: The held-out clips.
        scheduler: The teacher's.
        lcm: The student's.
        config: Of the run.
    """

    def __init__(
        self, part: Part, teacher: Any, denoisers: dict[str, nn.Module], cache: LatentCache, scheduler: DDIMScheduler,
        lcm: LCMScheduler, config: DistillConfig,
    ) -> None:  # fmt: skip
        self.part, self.teacher, self.denoisers, self.config = part, teacher, denoisers, config
        self.scheduler, self.lcm = scheduler, lcm
        count, size = min(config.heldout_items, len(cache)), config.train_batch_size
        items = [cache[i * len(cache) // count] for i in range(count)]
        groups = [list(group) for _, group in groupby(items, _shapes)]  # of one size each
        self.batches = [collate_latents(g[k : k + size]) for g in groups for k in range(0, len(g), size)]
        self.rounds = math.ceil(MIN_POINTS / count)
        self._teachers: list[Tensor] = []

    @torch.no_grad()
    def score(self) -> dict[str, float]:
        """Numbers of the student as it is.

        Returns:
            "heldout_loss" and the ratios of ``consistency_loss``; "student_error": root mean square difference between
            the student's sample (4 steps) and the teacher's (50 guided steps) from the same noise, over the deviation
            of the teacher's samples: 0 is a perfect student, 1 as wrong as the mean of all samples, 1.41 as another
            sample.
        """
        sums: dict[str, float] = {}
        points = 0
        for draw in range(self.rounds):
            for number in range(len(self.batches)):
                batch, x0 = self._batch(number, 1 + draw)
                student, target, teacher = (self.denoisers[role] for role in ("student", "target", "teacher"))
                found = consistency_loss(
                    student, target, teacher, batch, x0, self.scheduler, self.config, self.part.time_axis
                )
                points += len(x0)
                for name, value in found.items():
                    sums[name] = sums.get(name, 0.0) + value.item() * len(x0)
        means = {name: total / points for name, total in sums.items()}
        return {"heldout_loss": means.pop("loss"), **means, "student_error": self._student_error()}

    def _student_error(self) -> float:
        if not self._teachers:
            runs = (self._sample("teacher", self.scheduler, TEACHER_STEPS, k) for k in range(len(self.batches)))
            self._teachers = [x.cpu() for x in runs]
        students = [self._sample("student", self.lcm, STUDENT_STEPS, k).cpu() for k in range(len(self.batches))]
        student, teacher = (torch.cat([x.flatten() for x in of]) for of in (students, self._teachers))
        return ((student - teacher).square().mean().sqrt() / teacher.std()).item()

    def _sample(self, role: str, scheduler: Any, steps: int, number: int) -> Tensor:
        batch, x0 = self._batch(number, 0)
        noise = torch.randn(x0.shape, generator=batch["generator"]).to(x0)
        guidance = self.config.guidance_scale if role == "teacher" else 1.0
        return sample(self.denoisers[role], batch, noise, scheduler, steps, guidance)

    def _batch(self, number: int, draw: int) -> tuple[Batch, Tensor]:
        """A batch whose generator depends on the seed, its number and the draw alone; and its clean samples."""
        device = self.teacher.device
        batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.batches[number].items()}
        batch["generator"] = seeded_generator(self.config.seed, draw * len(self.batches) + number)
        batch = self.part.prepare(self.teacher, batch, self.config)
        return batch, self.part.clean_sample(self.teacher, batch)


def _shapes(item: dict[str, Any]) -> list[torch.Size]:
    return [value.shape for value in item.values() if isinstance(value, Tensor)]


def what_scores_depend_on(cache: LatentCache, config: DistillConfig) -> dict[str, Any]:
    """Students compare by scores on the same clips in the same way."""
    return {
        "clips": hashlib.sha256((cache.cache_dir / INDEX).read_bytes()).hexdigest(),
        "heldout_items": config.heldout_items,
        "seed": config.seed,
        "guidance_scale": config.guidance_scale,
    }


class Alarms:
    """One line on stderr when a ratio that should be about 1 leaves [0.5, 2], another when it has come back and leaves
    again. Ratios are averaged over about 50 calls (geometrically), and not judged before 20.
    """

    LIMITS = (0.5, 2.0)
    WARM_UP = 20
    DECAY = 0.98
    MEANINGS = {
        "x0_std_ratio": (
            "the student's predictions are flatter than the teacher's (collapse, blur): lower --learning_rate or "
            "raise --ema_decay; early in training wait, it has the guidance to learn",
            "the student's predictions are harsher than the teacher's: lower --learning_rate or --guidance_scale",
        ),
        "motion_ratio": (
            "the student moves less than the teacher: train longer at a lower --learning_rate, with more clips that "
            "move, or lower --guidance_scale",
            "the student flickers: lower --learning_rate or raise --ema_decay",
        ),
    }

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count: dict[str, int] = {}
        self._outside: dict[str, bool] = {}

    def watch(self, step: int, values: dict[str, Tensor]) -> None:
        """Looks at the ratios among the values that a loss gave."""
        for name in self.MEANINGS.keys() & values.keys():
            log = math.log(max(values[name].item(), 1e-30))
            count = self._count[name] = self._count.get(name, 0) + 1
            total = self._sums[name] = self.DECAY * self._sums.get(name, 0.0) + (1 - self.DECAY) * log
            if count < self.WARM_UP:
                continue
            ratio = math.exp(total / (1 - self.DECAY**count))
            outside = not self.LIMITS[0] <= ratio <= self.LIMITS[1]
            if outside and not self._outside.get(name, False):
                meaning = self.MEANINGS[name][ratio > 1]
                print(f"warning: step {step}: {name} is {ratio:.2f}, not about 1: {meaning}", file=sys.stderr)
            self._outside[name] = outside
