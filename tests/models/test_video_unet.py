"""The video UNet: what it inherits from an image UNet, what its extra channels and its temporal layers do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet3DConditionModel
from diffusers.models.attention_processor import Attention

from contentmotion.models.video_unet import VideoUNet, inflate_unet, make_video_unet, start_still, widen_input

SD = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (32, 64), "layers_per_block": 1,
    "cross_attention_dim": 16, "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "Stable Diffusion 1.5": {"attention_head_dim": 8},  # 8 heads everywhere, projections by convolutions
    "Stable Diffusion 2.1": {"attention_head_dim": (2, 4), "use_linear_projection": True},
    "ours": {"attention_head_dim": 4, "addition_embed_type": "text", "addition_embed_type_num_heads": 2},
}


def make_image_unet(**changes: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**SD | changes).eval()


def run(unet: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """x: (b, t, c, h, w)."""
    hidden = torch.randn(len(x), 5, 16, generator=torch.Generator().manual_seed(2))
    times = torch.arange(len(x)) * 400 + 3
    with torch.no_grad():
        if isinstance(unet, UNet3DConditionModel):
            return unet(x.transpose(1, 2), times, encoder_hidden_states=hidden).sample.transpose(1, 2)
        return torch.stack([unet(frame, times, encoder_hidden_states=hidden).sample for frame in x.unbind(1)], dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_inflated_does_to_each_frame_what_the_image_unet_does(kind: str, tmp_path: Path) -> None:
    image_unet = make_image_unet(**KINDS[kind])
    video_unet = inflate_unet(image_unet, num_frames=3).eval()
    x = torch.randn(2, 3, 4, 8, 8)
    torch.testing.assert_close(run(video_unet, x), run(image_unet, x), atol=1e-5, rtol=1e-4)
    video_unet.save_pretrained(tmp_path)
    loaded = VideoUNet.from_pretrained(tmp_path).eval()
    assert torch.equal(run(loaded, x), run(video_unet, x))
    assert loaded.config.num_frames == 3


def test_temporal_layers_join_the_frames_once_trained() -> None:
    video_unet = inflate_unet(make_image_unet(attention_head_dim=4), num_frames=3).eval()
    x = torch.randn(1, 3, 4, 8, 8)
    other = x.clone()
    other[:, 2] += 1
    assert torch.allclose(run(video_unet, x)[:, 0], run(video_unet, other)[:, 0], atol=1e-5)
    for name, parameter in video_unet.named_parameters():
        if "temp_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert not torch.allclose(run(video_unet, x)[:, 0], run(video_unet, other)[:, 0], atol=1e-3)
    start_still(video_unet)
    assert torch.allclose(run(video_unet, x)[:, 0], run(video_unet, other)[:, 0], atol=1e-5)


@pytest.mark.parametrize("cls", [VideoUNet, UNet3DConditionModel])
def test_more_channels_change_nothing_until_trained(cls: type) -> None:
    image_unet = make_image_unet(attention_head_dim=4)
    narrow = inflate_unet(image_unet, num_frames=2).eval()
    if cls is UNet3DConditionModel:  # ModelScope's
        torch.manual_seed(0)
        kinds = {key: tuple(k.replace("2D", "3D") for k in SD[key]) for key in ("down_block_types", "up_block_types")}
        given = {key: value for key, value in (SD | kinds).items() if key != "in_channels"}  # 4 is the class's default
        narrow = UNet3DConditionModel(**given, attention_head_dim=8).eval()
    wide = widen_input(narrow, 3)
    x, extra = torch.randn(2, 2, 4, 8, 8), torch.randn(2, 2, 3, 8, 8)
    assert type(wide) is type(narrow) and wide.config.in_channels == 7
    torch.testing.assert_close(run(wide, torch.cat([x, extra], dim=2)), run(narrow, x), atol=1e-5, rtol=1e-4)
    inflated = inflate_unet(image_unet, num_frames=2, extra_channels=3).eval()
    if cls is VideoUNet:
        torch.testing.assert_close(run(inflated, torch.cat([x, extra], dim=2)), run(narrow, x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"time_cond_proj_dim": 8}, "time_cond_proj_dim"),
        (
            {"addition_embed_type": "text_time", "addition_time_embed_dim": 8,
             "projection_class_embeddings_input_dim": 64},
            "addition_time_embed_dim",
        ),
        ({"transformer_layers_per_block": (1, 2)}, "transformer_layers_per_block"),
    ],
)  # fmt: skip
def test_other_unets_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        inflate_unet(make_image_unet(attention_head_dim=4, **changes), num_frames=2)


def test_whole_prompt_and_time_reach_the_blocks() -> None:
    """Both at once, by one sum; and nothing is left behind in a network that others use at the same time."""
    unet = make_video_unet(
        latent_channels=3, extra_channels=0, block_out_channels=(64, 64), layers_per_block=1, num_attention_heads=2,
        cross_attention_dim=16, sample_size=(8, 8), num_frames=2,
    ).eval()  # fmt: skip
    x, one, other = torch.randn(1, 3, 2, 8, 8), torch.randn(1, 5, 16), torch.randn(1, 5, 16)
    seen: list[torch.Tensor] = []
    unet.time_embedding.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        for layer in unet.modules():  # the tokens say nothing: what differs comes through the sum
            if isinstance(layer, Attention) and layer.cross_attention_dim == 16:
                layer.to_v.weight.zero_()
        outputs = [unet(x, 500, encoder_hidden_states=text).sample for text in (one, other, one)]
        difference = seen[1] - seen[0]
        torch.testing.assert_close(difference, unet.add_embedding(other) - unet.add_embedding(one))
    assert torch.equal(outputs[0], outputs[2]) and not torch.allclose(outputs[0], outputs[1], atol=1e-4)
    assert not torch.allclose(unet(x, 100, encoder_hidden_states=one).sample, outputs[0], atol=1e-4)


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    unet = make_video_unet(
        latent_channels=3, extra_channels=2, block_out_channels=(32, 64), layers_per_block=1, num_attention_heads=2,
        cross_attention_dim=16, sample_size=(8, 8), num_frames=2,
    ).eval()  # fmt: skip
    x, hidden = torch.randn(2, 5, 2, 8, 8), torch.randn(2, 4, 16)

    def gradients() -> list[torch.Tensor]:
        unet.zero_grad()
        unet(x, torch.tensor([3, 400]), encoder_hidden_states=hidden).sample.square().mean().backward()
        return [p.grad.clone() for p in unet.parameters() if p.grad is not None]

    plain = gradients()
    unet.enable_gradient_checkpointing()
    again = gradients()
    assert len(plain) == len(again) > 100
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other)
