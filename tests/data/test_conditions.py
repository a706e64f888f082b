"""Conditions in training: masks, dropping, what a batch is turned into."""

import pytest
import torch

from contentmotion.config import CONDITION_NAMES
from contentmotion.data.conditions import (
    draw_present,
    known_latents,
    random_tubes,
    require_conditions,
    training_conditions,
)
from contentmotion.models.condition_encoder import ConditionEncoder


def make_batch(b: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    maps = {
        n: torch.randint(256, (b, 4, 1, 16, 16), generator=generator, dtype=torch.uint8) for n in ("depth", "sketch")
    }
    return {"latents": torch.randn(b, 4, 3, 8, 8, generator=generator), **maps}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_conditions_of_a_batch_are_what_the_encoder_takes() -> None:
    batch = make_batch()
    conditions, present = training_conditions(batch, CONDITION_NAMES, seeded())
    assert set(conditions) == set(present) == set(CONDITION_NAMES)
    torch.testing.assert_close(conditions["depth"] * 255, batch["depth"].float())
    assert torch.equal(conditions["first_frame"], batch["latents"][:, :1])
    mask, known = conditions["mask"].split([1, 3], dim=2)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(known, torch.where(mask.bool(), 0.0, batch["latents"]))
    encoder = ConditionEncoder(latent_channels=3, vae_scale_factor=2, hidden_channels=8, num_heads=2)
    assert encoder(conditions, 4, 8, 8, present).shape == (3, 4, 4, 8, 8)


def test_same_generator_same_conditions() -> None:
    first, second, other = (training_conditions(make_batch(), CONDITION_NAMES, seeded(s)) for s in (5, 5, 6))
    for name in CONDITION_NAMES:
        assert torch.equal(first[0][name], second[0][name])
        assert torch.equal(first[1][name], second[1][name])
    assert not torch.equal(first[0]["mask"], other[0]["mask"])


def test_no_conditions() -> None:
    assert training_conditions(make_batch(), (), seeded()) == ({}, {})


def test_dropping_has_the_shares_asked_for() -> None:
    present = draw_present(("a", "b", "c"), 20_000, seeded(), 0.5, 0.1, 0.2)
    kept = torch.stack(list(present.values())).float()
    assert kept.prod(0).mean().item() == pytest.approx(0.2 + 0.7 * 0.125, abs=0.01)
    assert (1 - kept).prod(0).mean().item() == pytest.approx(0.1 + 0.7 * 0.125, abs=0.01)
    for row in kept:
        assert row.mean().item() == pytest.approx(0.2 + 0.7 * 0.5, abs=0.015)
    # Any subset comes.
    codes = (kept * torch.tensor([[1], [2], [4]])).sum(0)
    assert len(codes.unique()) == 8
    assert not draw_present(("a",), 50, seeded(), 1.0, 0.0, 0.0)["a"].any()
    assert draw_present(("a",), 50, seeded(), 0.0, 0.0, 0.0)["a"].all()
    with pytest.raises(ValueError, match="probabilities, got 0.5, 0.7, 0.7"):
        draw_present(("a",), 2, seeded(), 0.5, 0.7, 0.7)


@pytest.mark.parametrize(("t", "h", "w"), [(16, 8, 8), (4, 5, 13), (1, 1, 1), (2, 2, 1)])
def test_tubes(t: int, h: int, w: int) -> None:
    masks = random_tubes(400, t, h, w, seeded())
    assert masks.shape == (400, t, 1, h, w)
    assert masks.unique().tolist() in ([0.0, 1.0], [1.0])
    assert masks.flatten(1).any(dim=1).all()
    if h * w > 4:
        shares = masks.flatten(1).mean(dim=1)
        assert shares.std() > 0.1
        whole_frames = (masks.flatten(2).std(dim=2) == 0).all(dim=1).float().mean()
        assert 0.15 < whole_frames < 0.35
        moves = (masks[:, 0] != masks[:, -1]).flatten(1).any(dim=1)
        assert moves.float().mean() > 0.5


def test_known_latents() -> None:
    latents, mask = torch.randn(1, 2, 3, 4, 4), torch.zeros(1, 2, 1, 4, 4)
    mask[..., :2] = 1
    joined = known_latents(latents, mask)
    assert torch.equal(joined[:, :, :1], mask)
    assert not joined[:, :, 1:, :, :2].any()
    assert torch.equal(joined[:, :, 1:, :, 2:], latents[..., 2:])


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="unknown condition 'pose': choose from depth, sketch, mask, first_frame"):
        training_conditions(make_batch(), ("pose",), seeded())
    with pytest.raises(ValueError, match="holds no depth: run `contentmotion encode .*--conditions depth"):
        training_conditions({"latents": make_batch()["latents"]}, ("depth",), seeded())
    with pytest.raises(ValueError, match="no latents of whole clips"):
        require_conditions(("mask",), ("content", "motion"))
