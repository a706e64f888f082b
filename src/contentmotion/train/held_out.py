"""Guard-rails of distillation: scores on clips that were not trained on, alarms."""

from __future__ import annotations

import hashlib
import math
import sys
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from contentmotion.config import DistillConfig
from contentmotion.data.cache import INDEX, LatentCache, collate_latents
from contentmotion.losses.player import Player
from contentmotion.pipelines.sampling import denoise, require_finite, times_at_hand
from contentmotion.run_dir import seeded_generator
from contentmotion.stages.stage import Stage

TEACHER_STEPS, STUDENT_STEPS = 50, 1
MIN_POINTS = 64  # times and noises that the held-out loss averages over, at least


class HeldOut:
    """Scores of a student on held-out clips, with the same clips, noise and times at every step: they compare."""

    def __init__(self, player: Player, teacher: Stage, cache: LatentCache, config: DistillConfig) -> None:
        self.player, self.teacher, self.config = player, teacher, config
        self.student: Any = player.module
        count, size = min(config.heldout_items, len(cache)), config.train_batch_size
        items = [cache[i * len(cache) // count] for i in range(count)]
        alike = groupby(items, lambda item: [value.shape for value in item.values() if isinstance(value, Tensor)])
        groups = [list(group) for _, group in alike]
        self.batches = [collate_latents(g[k : k + size]) for g in groups for k in range(0, len(g), size)]
        self.rounds = math.ceil(MIN_POINTS / count)
        self._teachers: list[Tensor] = []

    @torch.no_grad()
    def score(self) -> dict[str, float]:
        """Numbers of the student as it is.

        Returns:
            "heldout_loss" and the ratios of the loss; "student_error": root mean square difference between the
            student's sample in one step and the teacher's in 50 guided ones from the same noise, each channel over the
            deviation that it has in the teacher's samples: 0 is a perfect student, 1 as wrong as the mean of all
            samples, 1.41 as another sample. In one step, for in several a consistency model draws noise that the
            teacher has not seen.
        """
        sums: dict[str, float] = {}
        points = 0
        for draw in range(self.rounds):
            for number in range(len(self.batches)):
                batch = self._batch(number, 1 + draw)
                losses = self.player.loss(self.student, batch)
                size = len(batch["index"])
                points += size
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value.item() * size
        means = {name: total / points for name, total in sums.items()}
        return {"heldout_loss": means.pop("loss"), **means, "student_error": self.student_error()}

    def student_error(self) -> float:
        """The last of ``score``'s numbers alone."""
        numbers, guidance = range(len(self.batches)), self.config.guidance
        if not self._teachers:
            self._teachers = [self._sample(self.teacher, TEACHER_STEPS, guidance, k).cpu() for k in numbers]
        own = {"guidance_scale": self.config.student_guidance}
        students = [self._sample(self.student, STUDENT_STEPS, own, k).cpu() for k in numbers]
        both = ([x.transpose(0, 1).flatten(1) for x in of] for of in (students, self._teachers))
        student, teacher = (torch.cat(channels, dim=1) for channels in both)  # each (c, n)
        return ((student - teacher).square().mean(dim=1) / teacher.var(dim=1)).mean().sqrt().item()

    def _sample(self, stage: Stage, steps: int, guidance: dict[str, Any], number: int) -> Tensor:
        batch = self.teacher.prepare(self._batch(number, 0))
        x0 = self.teacher.clean_sample(batch)
        noise = torch.randn(x0.shape, generator=batch["generator"]).to(x0)
        return sample(stage, batch, noise, steps, **guidance)

    def _batch(self, number: int, draw: int) -> dict[str, Any]:
        """A batch whose generator depends on the seed, its number and the draw alone."""
        device = self.teacher.network.device
        batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.batches[number].items()}
        return batch | {"generator": seeded_generator(self.config.seed, draw * len(self.batches) + number)}


@torch.no_grad()
def sample(
    stage: Stage, batch: dict[str, Any], noise: Tensor, num_inference_steps: int, guidance_scale: float, **guidance: Any
) -> Tensor:
    """Clean samples of noise (b, ...), by the loop that the pipelines have and the stage's own scheduler, which draws
    the noise that it may add from the batch's "generator"; ``guidance`` is ``denoise``'s.
    """
    null = stage.encode(batch, torch.ones(len(noise), dtype=torch.bool)) if guidance_scale > 1 else None
    with times_at_hand(stage.scheduler, noise.device):
        stage.set_timesteps(num_inference_steps, noise.shape, noise.device)
        latents = noise * getattr(stage.scheduler, "init_noise_sigma", 1.0)
        told = stage.encode(batch)
        latents = denoise(stage, latents, told, null, guidance_scale, generator=batch["generator"], **guidance)
    require_finite(f"the {stage.name} model", latents)
    return latents


def what_scores_depend_on(cache: LatentCache, config: DistillConfig) -> dict[str, Any]:
    """Students compare by scores on the same clips in the same way."""
    return {
        "clips": hashlib.sha256((cache.cache_dir / INDEX).read_bytes()).hexdigest(),
        "heldout_items": config.heldout_items,
        "seed": config.seed,
        "guidance_scale": config.guidance_scale,
        **{name: value for name, value in config.guidance.items() if value and name != "guidance_scale"},
        **({"guidance_range": list(config.guidance_range)} if config.guidance_range else {}),
        **({"objective": config.objective} if config.objective != "consistency" else {}),
    }


class Alarms:
    """One line on stderr when a ratio that should be about 1 leaves [0.5, 2], another when it has come back and leaves
    again. Ratios are averaged over about 50 calls (geometrically), and not judged before 20. Those on a GPU are looked
    at some calls later, all at once, for each look waits for it.
    """

    LIMITS = (0.5, 2.0)
    WARM_UP = 20
    DECAY = 0.98
    LATER = 20
    MEANINGS = {
        "x0_std_ratio": (
            "the student's predictions are flatter than the clips (collapse, blur): lower --learning_rate or "
            "raise --ema_decay; early in training wait, it has the guidance to learn",
            "the student's predictions are harsher than the clips: lower --learning_rate or --guidance_scale",
        ),
        "motion_ratio": (
            "the student moves less than the clips: train longer at a lower --learning_rate, with more clips that "
            "move, or lower --guidance_scale",
            "the student flickers: lower --learning_rate or raise --ema_decay",
        ),
    }

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count: dict[str, int] = {}
        self._outside: dict[str, bool] = {}
        self._noted: list[tuple[int, str, Tensor]] = []

    def watch(self, step: int, values: dict[str, Tensor]) -> None:
        """Looks at the ratios among the values that a loss gave."""
        self._noted += [(step, name, values[name].detach()) for name in self.MEANINGS if name in values]
        if not self._noted or self._noted[-1][2].device.type != "cpu" and len(self._noted) < self.LATER:
            return
        noted, self._noted = self._noted, []
        ratios = torch.stack([value.float() for _, _, value in noted]).tolist()
        for (step, name, _), value in zip(noted, ratios, strict=True):
            log = math.log(max(value, 1e-30))
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
