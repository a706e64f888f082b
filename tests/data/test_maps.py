"""Sketches and depth of clips."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from contentmotion.data.maps import DepthEstimator, depth_of, load_depth_model, sketch_of, spread


def disc(colour: tuple[int, int, int], ground: tuple[int, int, int], t: int = 3, size: int = 48) -> torch.Tensor:
    """A disc of radius 12 in the middle, uint8 (t, 3, size, size)."""
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    inside = (x**2 + y**2 < 144)[..., None]
    frame = np.where(inside, np.array(colour, np.uint8), np.array(ground, np.uint8))
    return torch.from_numpy(frame).permute(2, 0, 1)[None].repeat(t, 1, 1, 1)


@pytest.mark.parametrize(
    ("colour", "ground"),
    [((235, 235, 235), (20, 20, 20)), ((255, 255, 255), (215, 215, 215)), ((200, 0, 0), (0, 102, 0))],
    ids=["strong", "faint", "equally light"],
)
def test_sketch_is_the_outline(colour: tuple[int, int, int], ground: tuple[int, int, int]) -> None:
    sketch = sketch_of(disc(colour, ground))
    assert (sketch.dtype, sketch.shape) == (torch.uint8, (3, 1, 48, 48))
    assert set(sketch.unique().tolist()) == {0, 255}
    y, x = np.mgrid[:48, :48] - 23.5
    distance = torch.from_numpy(np.abs(np.hypot(x, y) - 12))
    assert distance[sketch[0, 0] == 255].max() < 1.6
    assert 55 < (sketch[0] == 255).sum() < 110  # the circumference is 75


def test_flat_and_noisy_clips_have_no_lines() -> None:
    flat = torch.full((2, 3, 32, 32), 128, dtype=torch.uint8)
    assert not sketch_of(flat).any()
    noise = torch.randint(-2, 3, flat.shape, generator=torch.Generator().manual_seed(0))
    assert not sketch_of((flat.int() + noise).to(torch.uint8)).any()


def test_sketch_of_a_frame_depends_on_the_clip_only_through_the_threshold() -> None:
    clip = torch.cat([disc((235, 235, 235), (20, 20, 20)), disc((220, 220, 220), (20, 20, 20))])
    whole = sketch_of(clip)
    assert torch.equal(whole[:3], sketch_of(clip[:3]))
    assert whole[3:].any()


@pytest.fixture(scope="module")
def depth_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`depth_folder(kind)`: a tiny Depth Anything with random weights, "relative" or "metric"."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    def make(kind: str) -> str:
        folder = tmp_path_factory.mktemp(kind)
        torch.manual_seed(0)
        backbone = Dinov2Config(
            image_size=28, patch_size=14, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2,
            out_features=["stage1", "stage2"], reshape_hidden_states=False, apply_layernorm=True,
        )  # fmt: skip
        config = DepthAnythingConfig(
            backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, reassemble_factors=[2, 1],
            neck_hidden_sizes=[8, 8], fusion_hidden_size=8, head_hidden_size=4,
            depth_estimation_type=kind, max_depth=10,
        )  # fmt: skip
        model = DepthAnythingForDepthEstimation(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder)
        DPTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)
        return str(folder)

    return make


def test_depth_by_a_model(depth_folder: Callable[[str], str]) -> None:
    frames = torch.cat([disc((235, 40, 40), (20, 20, 20), t=6), disc((20, 20, 20), (200, 220, 20), t=5)])[..., :40]
    estimator = load_depth_model(depth_folder("relative"))
    assert not estimator.gives_distance
    depth = depth_of(frames, estimator, chunk_size=4)
    assert (depth.dtype, depth.shape) == (torch.uint8, (11, 1, 48, 40))
    # One scale for the clip: the darkest and the lightest place are each in some frame, not in every one.
    assert (depth.min(), depth.max()) == (0, 255)
    assert torch.equal(depth[0], depth[5])
    alone = depth_of(frames[:6], estimator)
    assert (alone.min(), alone.max()) == (0, 255)
    assert not torch.equal(alone, depth[:6])


def test_metres_are_turned_into_nearness(depth_folder: Callable[[str], str]) -> None:
    frames = disc((235, 40, 40), (20, 20, 20), t=1)
    metric = load_depth_model(depth_folder("metric"))
    assert metric.gives_distance
    far = depth_of(frames, DepthEstimator(metric.model, metric.processor, gives_distance=False)).int()
    near = depth_of(frames, metric).int()
    assert near.flatten()[far.argmin()] == 255
    assert near.flatten()[far.argmax()] == 0


def test_spread() -> None:
    assert spread(torch.tensor([[2.0, 4.0], [3.0, 2.0]])).tolist() == [[0, 255], [128, 0]]
    assert not spread(torch.full((2, 2), 7.0)).any()


def test_no_depth_model(tmp_path: Path, tiny_pipeline_dir: Path) -> None:
    with pytest.raises(ValueError, match="no such checkpoint"):
        load_depth_model("./nowhere")
    with pytest.raises(ValueError, match=f"cannot load a depth model from {tiny_pipeline_dir}"):
        load_depth_model(str(tiny_pipeline_dir))
