"""A text-to-video UNet: diffusers' ``UNet3DConditionModel``, from scratch or inflated from a Stable Diffusion UNet.

It is VideoLCM's teacher and student (ModelScope's and ZeroScope's folders hold the same network), and the cube that
CMD is measured against.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from inspect import signature
from math import gcd
from typing import Any, TypeVar

from diffusers import UNet2DConditionModel, UNet3DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TextTimeEmbedding, TimestepEmbedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from jaxtyping import Float, Real
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Unet3D = TypeVar("Unet3D", bound=UNet3DConditionModel)

# What the two networks have in common; of a 2D UNet's other settings, those below are of no consequence here.
SHARED_SETTINGS = (
    "in_channels", "out_channels", "layers_per_block", "downsample_padding", "mid_block_scale_factor", "act_fn",
    "norm_num_groups", "norm_eps", "cross_attention_dim", "block_out_channels",
)  # fmt: skip
OTHER_SETTINGS = (
    "sample_size", "down_block_types", "up_block_types", "attention_head_dim", "num_attention_heads",
    "use_linear_projection", "upcast_attention", "addition_embed_type", "addition_embed_type_num_heads",
)  # fmt: skip


class VideoUNet(UNet3DConditionModel, ModelMixin):  # pipelines load a class only where its module knows ModelMixin
    """``UNet3DConditionModel`` with what a Stable Diffusion UNet may have and it has not; its other settings are that
    class's.

    Args:
        num_spatial_heads: Attention heads of each resolution (Stable Diffusion 1.5: 8 everywhere); when None, as many
            as ``attention_head_dim`` channels go into the resolution's width.
        addition_embed_type: "text": the whole prompt is added to the timestep's embedding.
        addition_embed_type_num_heads: Heads of that embedding.
        step_embed: The step's length is added likewise: a flow map.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D",
        ),
        up_block_types: tuple[str, ...] = (
            "UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D",
        ),
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        act_fn: str = "silu",
        norm_num_groups: int | None = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1024,
        attention_head_dim: int = 64,
        num_frames: int = 16,
        num_spatial_heads: tuple[int, ...] | None = None,
        addition_embed_type: str | None = None,
        addition_embed_type_num_heads: int = 64,
        fps: float | None = None,
        step_embed: bool = False,
    ) -> None:  # fmt: skip
        own = signature(UNet3DConditionModel.__init__).parameters  # register_to_config has kept what was given
        super().__init__(**{name: value for name, value in self.config.items() if name in own})
        width = self.time_embedding.linear_2.out_features
        self.add_embedding = self.step_embedding = None
        if addition_embed_type == "text":
            self.add_embedding = TextTimeEmbedding(cross_attention_dim, width, addition_embed_type_num_heads)
        if step_embed:
            self.step_embedding = TimestepEmbedding(block_out_channels[0], width)
        if self.add_embedding is not None or self.step_embedding is not None:
            self.time_embedding.__class__ = _TimeAndMore
        if num_spatial_heads is not None:
            levels = list(zip(self.down_blocks, num_spatial_heads, strict=True))
            levels += zip(self.up_blocks, reversed(num_spatial_heads), strict=True)
            for block, heads in [*levels, (self.mid_block, num_spatial_heads[-1])]:
                _set_heads(getattr(block, "attentions", ()), heads)

    def forward(
        self,
        sample: Float[Tensor, "b c t h w"],
        timestep: Real[Tensor, " b"] | Real[Tensor, ""] | float | int,
        encoder_hidden_states: Float[Tensor, "b n d"],
        step_length: Real[Tensor, " b"] | None = None,
        **options: Any,
    ) -> Any:
        """Denoises, as ``UNet3DConditionModel`` does (see there); a flow map is told how many times the step goes.

        Raises:
            ValueError: A step's length that is missing, or of no flow map.
        """
        if (step_length is None) != (self.step_embedding is None):
            raise ValueError("step_length is for flow maps (step_embed), and those need it")
        more = [] if self.add_embedding is None else [self.add_embedding(encoder_hidden_states)]
        if self.step_embedding is not None:
            more.append(self.step_embedding(self.time_proj(step_length).to(self.dtype)))
        if more:
            options["timestep_cond"] = sum(more)
        return super().forward(sample, timestep, encoder_hidden_states, **options)

    def enable_gradient_checkpointing(self) -> None:
        enable_checkpointing(self)


class _TimeAndMore(TimestepEmbedding):
    """Adds to a timestep's embedding; what ``UNet3DConditionModel`` hands it as ``timestep_cond``."""

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        embedding = super().forward(sample)
        return embedding if condition is None else embedding + condition


def enable_checkpointing(network: Any) -> None:
    """Trades time for memory: any of diffusers' models or ours recomputes activations in the backward pass."""
    if not isinstance(network, UNet3DConditionModel):
        network.enable_gradient_checkpointing()
        return
    for block in (*network.down_blocks, network.mid_block, *network.up_blocks):  # diffusers' own has no such switch
        block.forward = partial(checkpoint, type(block).forward.__get__(block), use_reentrant=False)


def without_dropout(network: nn.Module) -> nn.Module:
    """The network, whose layers drop nothing any more, as the layers in time of video UNets do in training: it is
    compared with one that answers without."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def _set_heads(attentions: Any, heads: int) -> None:
    """Splits the same weights into another number of heads."""
    for transformer in attentions:
        for layer in transformer.modules():
            if isinstance(layer, Attention):
                layer.heads, layer.scale = heads, (layer.inner_dim // heads) ** -0.5


def make_video_unet(
    *, latent_channels: int, extra_channels: int, block_out_channels: tuple[int, ...], layers_per_block: int,
    num_attention_heads: int, cross_attention_dim: int, sample_size: tuple[int, int], num_frames: int,
) -> VideoUNet:  # fmt: skip
    """An untrained network; its temporal layers start as the identity.

    Args:
        latent_channels: Of a latent frame.
        extra_channels: Of encoded conditions that come with it.
        block_out_channels: Channels per resolution, each a multiple of 32.
        layers_per_block: Residual blocks per resolution.
        num_attention_heads: Within frames.
        cross_attention_dim: Width of the text features.
        sample_size: Height and width of the latents.
        num_frames: What it is to be trained on.
    """
    levels = len(block_out_channels)
    unet = VideoUNet(
        sample_size=sample_size,
        in_channels=latent_channels + extra_channels,
        out_channels=latent_channels,
        # Attention everywhere but at the finest resolution, where it costs most.
        down_block_types=("DownBlock3D",) + ("CrossAttnDownBlock3D",) * (levels - 1),
        up_block_types=("CrossAttnUpBlock3D",) * (levels - 1) + ("UpBlock3D",),
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        attention_head_dim=_temporal_head_dim(block_out_channels),
        num_spatial_heads=(num_attention_heads,) * levels,
        cross_attention_dim=cross_attention_dim,
        num_frames=num_frames,
        addition_embed_type="text",  # names are learned in fewer steps, as in the content model
        addition_embed_type_num_heads=num_attention_heads,
    )
    start_still(unet)
    return unet


def _temporal_head_dim(widths: Sequence[int]) -> int:
    """Channels of a head of the temporal attention: 64 as in ModelScope's, or what else divides every width."""
    return max(size for size in range(1, 65) if gcd(*widths) % size == 0)


def inflate_unet(image_unet: UNet2DConditionModel, num_frames: int, extra_channels: int = 0) -> VideoUNet:
    """A video UNet that does to every frame what an image UNet does, until its temporal layers are trained.

    Args:
        image_unet: Of Stable Diffusion's kind.
        num_frames: What it is to be trained on.
        extra_channels: Of encoded conditions that come with the latents; ignored until trained.

    Raises:
        ValueError: A UNet with parts that the video UNet has not (Stable Diffusion XL's).
    """
    own = image_unet.config
    usual = {name: p.default for name, p in signature(UNet2DConditionModel.__init__).parameters.items() if name in own}
    known = SHARED_SETTINGS + OTHER_SETTINGS
    odd = [name for name, value in usual.items() if name not in known and _listed(own[name]) != _listed(value)]
    odd += [name for name in ("layers_per_block", "cross_attention_dim") if not isinstance(own[name], int)]
    if own.addition_embed_type not in (None, "text"):
        odd.append("addition_embed_type")
    kinds = (*own.down_block_types, *own.up_block_types)
    if not set(kinds) <= {"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}:
        odd.append("block types")
    if odd:
        raise ValueError(
            f"this image UNet cannot be made a video UNet: its {', '.join(odd)} are not Stable Diffusion 1 or 2's"
        )
    widths = tuple(own.block_out_channels)
    heads = own.num_attention_heads or own.attention_head_dim  # diffusers' old name for the same number
    heads = (heads,) * len(widths) if isinstance(heads, int) else tuple(heads)
    unet = VideoUNet(
        **{name: own[name] for name in SHARED_SETTINGS} | {"in_channels": own.in_channels + extra_channels},
        sample_size=own.sample_size,
        down_block_types=tuple(kind.replace("2D", "3D") for kind in own.down_block_types),
        up_block_types=tuple(kind.replace("2D", "3D") for kind in own.up_block_types),
        attention_head_dim=_temporal_head_dim(widths),
        num_spatial_heads=heads,
        num_frames=num_frames,
        addition_embed_type=own.addition_embed_type,
        addition_embed_type_num_heads=own.addition_embed_type_num_heads,
    )
    weights = dict(image_unet.state_dict())
    weights["conv_in.weight"] = _pad_input(weights["conv_in.weight"], extra_channels)
    shapes = {name: value.shape for name, value in unet.state_dict().items()}
    for name, value in weights.items():
        if value.shape != shapes[name]:  # a 1x1 convolution there, a linear layer here
            weights[name] = value.reshape(shapes[name])
    missing, unexpected = unet.load_state_dict(weights, strict=False)
    assert not unexpected and all("temp_" in name or "transformer_in" in name for name in missing)
    start_still(unet)
    return unet


def widen_input(unet: Unet3D, extra_channels: int) -> Unet3D:
    """A video UNet that takes so many more channels, and ignores them until trained."""
    wider = type(unet).from_config(unet.config, in_channels=unet.config.in_channels + extra_channels)
    weights = dict(unet.state_dict())
    weights["conv_in.weight"] = _pad_input(weights["conv_in.weight"], extra_channels)
    wider.load_state_dict(weights)
    return wider.train(unet.training)


def telling_step(unet: UNet3DConditionModel) -> VideoUNet:
    """The same UNet, told how far a step goes, too: by an embedding that adds nothing until trained."""
    known = signature(VideoUNet.__init__).parameters
    told = VideoUNet(**{name: value for name, value in unet.config.items() if name in known} | {"step_embed": True})
    missing, unknown = told.load_state_dict(unet.state_dict(), strict=False)
    if unknown or any(not name.startswith("step_embedding.") for name in missing):
        raise ValueError(f"no flow map can be made of this {type(unet).__name__}: it is of another architecture")
    assert told.step_embedding is not None
    for parameter in told.step_embedding.linear_2.parameters():
        nn.init.zeros_(parameter)
    return told.to(unet.device, unet.dtype).train(unet.training)


def _pad_input(weight: Float[Tensor, "o i 3 3"], extra: int) -> Float[Tensor, "o j 3 3"]:
    return nn.functional.pad(weight, (0, 0, 0, 0, 0, extra))


def start_still(unet: UNet3DConditionModel) -> None:
    """Sets the last layer of every temporal block to zero: frames do not see one another."""
    for part in unet.modules():
        if isinstance(part, TransformerTemporalModel):
            last = part.proj_out
        elif isinstance(part, TemporalConvLayer):
            last = part.conv4[-1]
        else:
            continue
        for parameter in last.parameters():
            nn.init.zeros_(parameter)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
