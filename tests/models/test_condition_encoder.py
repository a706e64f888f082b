"""The condition encoder: shapes, subsets, what absence means, and that frames see one another."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from contentmotion.config import CONDITION_NAMES
from contentmotion.models.condition_encoder import ConditionEncoder


def make_encoder(
    conditions: tuple[str, ...] = CONDITION_NAMES, *, factor: int = 4, channels: int = 3
) -> ConditionEncoder:
    torch.manual_seed(0)
    return ConditionEncoder(
        conditions, latent_channels=channels, vae_scale_factor=factor, hidden_channels=8, out_channels=5, num_heads=2
    ).eval()


def make_conditions(b: int, t: int, h: int, w: int, *, factor: int = 4, channels: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "depth": (b, t, 1, h * factor, w * factor),
        "sketch": (b, t, 1, h * factor, w * factor),
        "mask": (b, t, 1 + channels, h, w),
        "first_frame": (b, 1, channels, h, w),
    }
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize(("b", "t", "h", "w"), [(2, 4, 4, 4), (1, 1, 2, 6), (3, 7, 5, 3)])
@pytest.mark.parametrize(("factor", "channels"), [(1, 3), (4, 4), (8, 2)])
@torch.no_grad()
def test_sizes(b: int, t: int, h: int, w: int, factor: int, channels: int) -> None:
    encoder = make_encoder(factor=factor, channels=channels)
    out = encoder(make_conditions(b, t, h, w, factor=factor, channels=channels), t, h, w)
    assert out.shape == (b, t, 5, h, w)
    assert torch.isfinite(out).all()


@torch.no_grad()
def test_any_subset_is_the_sum_of_its_parts() -> None:
    encoder, given = make_encoder(), make_conditions(2, 3, 4, 4)
    alone = {name: encoder({name: value}, 3, 4, 4) for name, value in given.items()}
    for value in alone.values():
        assert value.std() > 0.01
    for size in range(2, 5):
        for names in combinations(CONDITION_NAMES, size):
            out = encoder({name: given[name] for name in reversed(names)}, 3, 4, 4)
            torch.testing.assert_close(out, sum(alone[name] for name in names))


@torch.no_grad()
def test_what_is_absent_or_dropped_adds_exactly_nothing() -> None:
    encoder, given = make_encoder(), make_conditions(2, 3, 4, 4)
    assert torch.equal(encoder({}, 3, 4, 4, batch_size=2), torch.zeros(2, 3, 5, 4, 4))
    nobody = {name: torch.zeros(2, dtype=torch.bool) for name in given}
    assert torch.equal(encoder(given, 3, 4, 4, nobody), torch.zeros(2, 3, 5, 4, 4))
    # The first item without its depth, the second with all: as if each had been given just that.
    out = encoder(given, 3, 4, 4, {"depth": torch.tensor([False, True])})
    without = {name: value for name, value in given.items() if name != "depth"}
    assert torch.equal(out[0], encoder(without, 3, 4, 4)[0])
    assert torch.equal(out[1], encoder(given, 3, 4, 4)[1])
    # Dropped, it may hold anything.
    broken = given | {"depth": torch.full_like(given["depth"], torch.nan)}
    assert torch.equal(encoder(broken, 3, 4, 4, {"depth": torch.tensor([False, False])}), encoder(without, 3, 4, 4))


@torch.no_grad()
def test_one_condition_serves_a_batch() -> None:
    encoder, given = make_encoder(), make_conditions(1, 3, 4, 4)
    out = encoder(given, 3, 4, 4, batch_size=2)
    torch.testing.assert_close(out, encoder(given, 3, 4, 4).expand(2, -1, -1, -1, -1))


@torch.no_grad()
def test_frames_see_one_another_and_know_their_places() -> None:
    encoder, given = make_encoder(), make_conditions(1, 4, 4, 4)
    for name in ("depth", "sketch", "mask"):
        changed = given[name].clone()
        changed[:, 3] += 1
        before, after = encoder({name: given[name]}, 4, 4, 4), encoder({name: changed}, 4, 4, 4)
        assert not torch.allclose(before[:, 0], after[:, 0])
    still = encoder({"depth": given["depth"][:, :1].expand(-1, 4, -1, -1, -1)}, 4, 4, 4)
    assert not torch.allclose(still[:, 0], still[:, 1])
    first = encoder({"first_frame": given["first_frame"]}, 4, 4, 4)
    assert not torch.allclose(first[:, 3], encoder({"first_frame": given["first_frame"] + 1}, 4, 4, 4)[:, 3])


@pytest.mark.parametrize("name", ["sketch", "depth"])
@torch.no_grad()
def test_a_map_is_heard_from_the_start(name: str) -> None:
    """Before any training, a few lines move the output by a good part of its size."""
    torch.manual_seed(0)
    encoder = ConditionEncoder((name,), vae_scale_factor=8, hidden_channels=64, out_channels=8).eval()
    lines = (torch.rand(2, 3, 1, 32, 32, generator=torch.Generator().manual_seed(1)) < 0.05).float()
    blank = encoder({name: torch.zeros_like(lines)}, 3, 4, 4)
    assert (encoder({name: lines}, 3, 4, 4) - blank).std() > 0.2


def test_gradient_reaches_every_parameter() -> None:
    encoder, given = make_encoder(), make_conditions(2, 3, 4, 4)
    encoder(given, 3, 4, 4).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_autocast() -> None:
    encoder, given = make_encoder(), make_conditions(2, 3, 4, 4)
    exact = encoder(given, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder(given, 3, 4, 4)
    rough.sum().backward()
    torch.testing.assert_close(rough.float(), exact, atol=0.1, rtol=0.1)


@torch.no_grad()
def test_save_and_load(tmp_path: Path) -> None:
    encoder, given = make_encoder(("sketch", "mask")), make_conditions(1, 2, 4, 4)
    encoder.save_pretrained(tmp_path)
    loaded = ConditionEncoder.from_pretrained(tmp_path)
    assert tuple(loaded.config.conditions) == ("sketch", "mask")
    known = {name: given[name] for name in ("sketch", "mask")}
    assert torch.equal(encoder(known, 2, 4, 4), loaded(known, 2, 4, 4))


def test_bad_input_is_named() -> None:
    encoder, given = make_encoder(("sketch",)), make_conditions(1, 2, 4, 4)
    with pytest.raises(ValueError, match="takes no depth .it was trained with: sketch"):
        encoder({"depth": given["depth"]}, 2, 4, 4)
    with pytest.raises(ValueError, match=r"condition sketch must be \(1, 3, 1, 16, 16\), got \(1, 2, 1, 16, 16\)"):
        encoder({"sketch": given["sketch"]}, 3, 4, 4)
    with pytest.raises(ValueError, match="batch_size"):
        encoder({}, 2, 4, 4)
    with pytest.raises(ValueError, match="unknown condition 'pose': choose from depth, sketch, mask, first_frame"):
        ConditionEncoder(("pose",))
    with pytest.raises(ValueError, match="power of 2"):
        ConditionEncoder(vae_scale_factor=6)
    with pytest.raises(ValueError, match="hidden_channels must be a multiple of 4"):
        ConditionEncoder(hidden_channels=10)
