"""Costs at the paper's sizes, counted on the meta device, in both conventions (CMD Tables 8 and 9)."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from contentmotion.cost.clip import clip_cost
from contentmotion.cost.count import Cost, count_cost
from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.models.motion_dit import MotionDiT
from contentmotion.pipelines.loading import load_pipeline
from contentmotion.pipelines.sampling import Sampling
from tiny import make_image_unet

TERA = 1e12


def sd21_unet() -> UNet2DConditionModel:
    """Stable Diffusion 2.1's UNet, without weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64, block_out_channels=(320, 640, 1280, 1280), attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024, use_linear_projection=True,
        )  # fmt: skip


def motion_dit(content_patch_size: int) -> MotionDiT:
    with torch.device("meta"):
        return MotionDiT.from_preset("DiT-XL/2", content_patch_size=content_patch_size, text_dim=1024, learn_sigma=True)


def content_cost(h: int, w: int) -> Cost:
    x, text = torch.empty(1, 4, h, w, device="meta"), torch.empty(1, 77, 1024, device="meta")
    unet, t = sd21_unet(), torch.empty(1, device="meta")
    return count_cost(lambda: unet(x, t, encoder_hidden_states=text))


def motion_cost(h: int, w: int, content_patch_size: int) -> Cost:
    model = motion_dit(content_patch_size)
    z = torch.empty(1, 8, 16, (h + w) // 2, device="meta")
    content, text = torch.empty(1, 4, h, w, device="meta"), torch.empty(1, 1024, device="meta")
    t = torch.zeros(1, dtype=torch.long, device="meta")
    return count_cost(lambda: model(z, t, content, pooled_text=text))


def test_one_matrix_product() -> None:
    a, b = torch.empty(3, 5, device="meta"), torch.empty(5, 7, device="meta")
    assert count_cost(lambda: a @ b) == Cost(layers=105, attention=0)
    q = torch.empty(1, 2, 11, 4, device="meta")
    cost = count_cost(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert cost == Cost(layers=0, attention=2 * 2 * 11 * 11 * 4)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_is_looked_up_is_what_torch_counts(mode: type) -> None:
    """Equal layers at equal and at other shapes, changes in place, and operations that are made of others."""
    unet = make_image_unet().to("meta")
    text = torch.empty(1, 5, unet.config.cross_attention_dim, device="meta")

    def call() -> None:
        for side in (16, 32, 16):
            unet(torch.empty(1, unet.config.in_channels, side, side, device="meta"), 1, text).sample.mul_(2)

    counter = FlopCounterMode(display=False)
    with mode():
        cost = count_cost(call)
        with counter:
            call()
    assert cost.flops == counter.get_total_flops() > 0


def test_a_number_of_another_kind_is_another_operation() -> None:
    x, dtypes = torch.ones(2, dtype=torch.int32, device="meta"), []
    count_cost(lambda: dtypes.extend((x * number).dtype for number in (2, 2.0, 2)))
    assert dtypes == [torch.int32, torch.float32, torch.int32]


def test_what_is_done_to_a_result_is_not_done_to_the_next() -> None:
    a, b, shapes, kinds = torch.empty(2, 3, device="meta"), torch.empty(3, 4, device="meta"), [], []

    def call() -> None:
        for mode in (torch.inference_mode, torch.no_grad):
            for _ in range(3):
                with mode(), torch.profiler.record_function("product"):
                    product = a @ b
                    shapes.append(tuple(product.shape))
                    kinds.append(product.is_inference())
                    product.t_()

    assert count_cost(call) == Cost(layers=6 * 24, attention=0)
    assert shapes == [(2, 4)] * 6 and kinds == [True] * 3 + [False] * 3


def test_content_unet() -> None:
    cost = content_cost(64, 64)
    assert cost.layers / TERA == pytest.approx(0.339, rel=0.005)  # the paper prints 0.34
    assert cost.multiply_adds / TERA == pytest.approx(0.402, rel=0.01)
    wide = content_cost(64, 128)
    assert wide.layers / TERA == pytest.approx(0.676, rel=0.005)
    assert wide.multiply_adds / TERA == pytest.approx(0.925, rel=0.01)


def test_motion_dit() -> None:
    cost = motion_cost(64, 64, content_patch_size=4)  # 2 x 128 motion tokens and 256 of the content frame
    assert cost.layers / TERA == pytest.approx(0.229, rel=0.01)
    coarse = motion_cost(64, 64, content_patch_size=8)
    assert coarse.layers / TERA == pytest.approx(0.143, rel=0.01)  # 320 tokens; the paper prints 0.14
    assert coarse.multiply_adds / TERA == pytest.approx(0.150, rel=0.01)
    assert motion_cost(64, 128, content_patch_size=8).layers / TERA == pytest.approx(0.229, rel=0.01)


def test_sampling_a_wide_clip_is_the_papers_46_8() -> None:
    """CMD Table 9: 16 x 512 x 1024, 50 + 50 steps, one autoencoder decode, no image decoder."""
    with torch.device("meta"):
        autoencoder = ContentMotionAutoencoder(residual_decoding=False)
    content, z = torch.empty(1, 4, 64, 128, device="meta"), torch.empty(1, 8, 16, 96, device="meta")
    decode = count_cost(lambda: autoencoder.decode(content, z))
    total = 50 * (content_cost(64, 128).layers + motion_cost(64, 128, 8).layers) + decode.layers
    assert total / TERA == pytest.approx(46.8, rel=0.03)


def test_total_parameters() -> None:
    """1.6 B: content UNet, motion DiT and autoencoder."""
    with torch.device("meta"):
        autoencoder = ContentMotionAutoencoder()
    models = (sd21_unet(), motion_dit(8), autoencoder)
    assert sum(m.num_parameters() for m in models) / 1e9 == pytest.approx(1.6, rel=0.03)


def test_cost_of_a_clip_grows_with_its_steps(tiny_pipeline_dir: Path) -> None:
    pipe = load_pipeline(str(tiny_pipeline_dir))
    few = clip_cost(pipe, Sampling(steps=3, motion_steps=2, guidance_scale=1.0, motion_guidance_scale=1.0))
    many = clip_cost(pipe, Sampling(steps=6, motion_steps=2, guidance_scale=2.0, motion_guidance_scale=1.0))
    assert list(few) == ["text", "content", "motion", "autoencoder"]
    assert many["content"].multiply_adds == 4 * few["content"].multiply_adds
    assert many["text"].layers == 2 * few["text"].layers, "guidance encodes the null prompt, too"
    for name in ("motion", "autoencoder"):
        assert many[name] == few[name]
    even = clip_cost(pipe, Sampling(steps=6, motion_steps=2, guidance_scale=1.0, motion_guidance_scale=1.0))
    assert even["text"] == few["text"]
    assert few["motion"].attention > 0
    direct = count_cost(
        lambda: pipe.motion_transformer(
            torch.zeros(1, 4, 4, 16),
            torch.ones(1, dtype=torch.long),
            torch.zeros(1, 3, 16, 16),
            pooled_text=torch.zeros(1, 32),
        )
    )
    assert few["motion"].layers == 2 * direct.layers
