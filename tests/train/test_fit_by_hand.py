"""The training loop against arithmetic written out: accumulation, clipping, AdamW, warm-up, the moving average."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from contentmotion.config import TrainConfig
from contentmotion.losses.player import Player
from contentmotion.train.loop import fit

STEPS, PARTS = 5, 3
RATE, WARM_UP, BETAS, DECAY, CLIP, EMA = 0.05, 2, (0.7, 0.95), 0.3, 0.5, 0.6


class Points(torch.utils.data.Dataset):
    """Items that are their own numbers."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, item: tuple[int, int]) -> int:
        return item[0]


def collate(items: list[int]) -> dict[str, Tensor]:
    return {"index": torch.tensor(items)}


def line(index: Tensor) -> tuple[Tensor, Tensor]:
    x = torch.stack([index.double() / 4, 1 - index.double()], dim=1)
    return x, 7 * x[:, :1] - 3


def test_steps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    weight, bias = model.weight.detach().double().clone(), model.bias.detach().double().clone()
    seen: list[Tensor] = []

    def loss(model: torch.nn.Module, batch: dict) -> dict[str, Tensor]:
        seen.append(batch["index"])
        x, y = line(batch["index"])
        return {"loss": (model(x.float()) - y.float()).square().mean()}

    config = TrainConfig(
        output_dir=str(tmp_path), max_train_steps=STEPS, train_batch_size=2, gradient_accumulation_steps=PARTS,
        learning_rate=RATE, lr_scheduler="linear", lr_warmup_steps=WARM_UP, adam_beta1=BETAS[0], adam_beta2=BETAS[1],
        adam_weight_decay=DECAY, max_grad_norm=CLIP, ema_decay=EMA, logging_steps=1, checkpointing_steps=STEPS,
        validation_steps=0, report_to="none", mixed_precision="no",
    )  # fmt: skip
    fit([Player(model, loss)], Points(), config, collate=collate)
    assert len(seen) == STEPS * PARTS and all(len(index) == 2 for index in seen)

    weights = torch.cat([weight.flatten(), bias])  # (3,)
    first, second, average = torch.zeros(3).double(), torch.zeros(3).double(), weights.clone()
    expected = []
    for step in range(1, STEPS + 1):
        gradient, losses = torch.zeros(3).double(), []
        for index in seen[PARTS * (step - 1) : PARTS * step]:
            x, y = line(index)
            error = x @ weights[:2] + weights[2] - y[:, 0]
            losses.append(error.square().mean())
            slopes = torch.cat([x, torch.ones(2, 1).double()], dim=1)
            gradient += (2 * error[:, None] * slopes).mean(0) / PARTS
        norm = gradient.norm()
        gradient = gradient * CLIP / norm if norm > CLIP else gradient
        done = step - 1  # the schedule's own count: the first step's rate is 0
        rate = RATE * (done / WARM_UP if done < WARM_UP else (STEPS - done) / (STEPS - WARM_UP))
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        unbiased = first / (1 - BETAS[0] ** step), second / (1 - BETAS[1] ** step)
        weights = weights - rate * DECAY * weights - rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
        kept = min(EMA, (1 + done) / (10 + done)) if done else 0.0
        average = kept * average + (1 - kept) * weights
        expected.append((sum(losses) / PARTS, norm))
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == pytest.approx([float(loss) for loss, _ in expected], rel=1e-4)
    assert [line["grad_norm"] for line in lines] == pytest.approx([float(norm) for _, norm in expected], rel=1e-4)
    assert min(norm for _, norm in expected) > 2 * CLIP
    final = torch.cat([model.weight.detach().flatten(), model.bias.detach()])
    torch.testing.assert_close(final.double(), average, atol=1e-5, rtol=1e-4)
    saved = load_file(tmp_path / f"checkpoint-{STEPS:06d}/model.safetensors")
    torch.testing.assert_close(torch.cat([saved["weight"][0], saved["bias"]]).double(), weights, atol=1e-5, rtol=1e-4)


def test_without_a_limit_gradients_are_not_clipped(tmp_path: Path) -> None:
    """Plain gradient descent shows the length of a step."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)

    def loss(model: torch.nn.Module, batch: dict) -> dict[str, Tensor]:
        return {"loss": -100 * model.weight.sum()}

    config = TrainConfig(
        output_dir=str(tmp_path), max_train_steps=1, train_batch_size=1, learning_rate=0.5, lr_scheduler="constant",
        lr_warmup_steps=0, max_grad_norm=0.0, ema_decay=0.0, validation_steps=0, report_to="none", mixed_precision="no",
    )  # fmt: skip
    player = Player(model, loss, make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5))
    fit([player], Points(), config, collate=collate)
    assert model.weight.item() == pytest.approx(50)
