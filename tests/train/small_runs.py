"""Runs of a second: a line fitted to numbers, with what tests look at."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from contentmotion.config import TrainConfig
from contentmotion.train.loop import Player, fit
from tiny import STEPS


class Numbers(torch.utils.data.Dataset):
    """Items that are their own numbers; ``spoil(index)`` is called in the process that reads."""

    def __init__(self, count: int = 8, spoil: Any = lambda index: None) -> None:
        self.count, self.spoil = count, spoil

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: tuple[int, int]) -> dict[str, int]:
        self.spoil(item[0])
        return {"index": item[0]}


def collate(items: list[dict]) -> dict:
    return {"index": torch.tensor([item["index"] for item in items])}


def line_loss(model: torch.nn.Module, batch: dict) -> dict[str, torch.Tensor]:
    x = batch["index"].float()[:, None] / 8
    return {"loss": (model(x) - 2 * x).square().mean()}


def small_run(folder: Path, model: torch.nn.Module | None = None, items: Numbers | None = None, **changes: Any) -> None:
    """A line, fitted."""
    torch.manual_seed(0)
    config = TrainConfig(output_dir=str(folder), **STEPS | changes)
    fit([Player(model or torch.nn.Linear(1, 1), line_loss)], items or Numbers(), config, collate=collate)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """What a disk that is full does to large files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
