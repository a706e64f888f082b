"""The video stage: a UNet on the latents of whole clips, from text and whatever conditions it takes (VideoLCM)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Bool, Float
from torch import Tensor, nn

from contentmotion.config import VideoSizes
from contentmotion.data.conditions import training_conditions
from contentmotion.models.condition_encoder import ConditionEncoder
from contentmotion.models.video_unet import inflate_unet, make_video_unet, telling_step, widen_input
from contentmotion.stages.content.stable_diffusion import ATTENTION_AND_FEED_FORWARD
from contentmotion.stages.image_vae import vae_scale_factor
from contentmotion.stages.stage import Condition, Stage, example_tokens, make_scheduler
from contentmotion.stages.text import make_text_encoder


class VideoStage(Stage):
    """``vae``, ``text_encoder``, ``tokenizer``, ``unet``, ``scheduler``, and perhaps ``condition_encoder``.

    Args:
        components: See above.
        condition_dropout_prob: Share of training items that do without a condition, drawn for each by itself.
    """

    name = "video"
    besides = ("condition_encoder",)
    field = "latents"
    time_axis = 1  # (b, t, c, h, w)
    lora_targets = ATTENTION_AND_FEED_FORWARD

    def __init__(self, components: Mapping[str, Any], condition_dropout_prob: float = 0.5) -> None:
        super().__init__(components)
        self.condition_dropout_prob = condition_dropout_prob

    @classmethod
    def make(
        cls, sizes: VideoSizes, shapes: Sequence[tuple[int, ...]], captions: Iterable[str], *, vae: Any = None,
        conditions: Sequence[str] = (), prediction_type: str | None = None, flow_shift: float = 1.0,
        condition_dropout_prob: float = 0.5,
    ) -> Self:  # fmt: skip
        """See ``Stage.make``; ``vae`` is the image VAE, or None for pixels; ``conditions`` are those to follow."""
        frames, channels, height, width = shapes[0]
        tokenizer, text_encoder = make_text_encoder(
            captions, vocab_size=sizes.vocab_size, hidden_size=sizes.text_hidden_size, num_layers=sizes.text_num_layers
        )
        unet = make_video_unet(
            latent_channels=channels,
            extra_channels=sizes.condition_channels if conditions else 0,
            block_out_channels=sizes.block_out_channels,
            layers_per_block=sizes.layers_per_block,
            num_attention_heads=sizes.num_attention_heads,
            cross_attention_dim=sizes.text_hidden_size,
            sample_size=(height, width),
            num_frames=frames,
        )
        components = {
            "vae": vae,
            "text_encoder": text_encoder,
            "tokenizer": tokenizer,
            "unet": unet,
            "scheduler": make_scheduler("scaled_linear", prediction_type, flow_shift),
            "condition_encoder": make_condition_encoder(sizes, channels, vae, conditions),
        }
        return cls(components, condition_dropout_prob)

    @classmethod
    def grow(
        cls, components: Mapping[str, Any], sizes: VideoSizes, shape: tuple[int, ...], conditions: Sequence[str] = (),
        condition_dropout_prob: float = 0.5,
    ) -> Self:  # fmt: skip
        """The stage of a video model, made to take conditions where it takes none; or of an image model, inflated. No
        network that is given is changed; ``shape`` (t, c, h, w) is that of a clip's latents."""
        if components.get("condition_encoder") is not None:
            return cls(components, condition_dropout_prob)
        frames, channels, _, _ = shape
        extra = sizes.condition_channels if conditions else 0
        unet = components["unet"]
        unet = inflate_unet(unet, frames, extra) if isinstance(unet, UNet2DConditionModel) else widen_input(unet, extra)
        encoder = make_condition_encoder(sizes, channels, components.get("vae"), conditions)
        return cls(dict(components) | {"unet": unet, "condition_encoder": encoder}, condition_dropout_prob)

    def _like(self, components: Mapping[str, Any]) -> Self:
        return type(self)(components, self.condition_dropout_prob)

    @property
    def condition_names(self) -> tuple[str, ...]:
        """The conditions that the model takes besides the prompt."""
        encoder = self.components.get("condition_encoder")
        return () if encoder is None else tuple(encoder.config.conditions)

    @property
    def side_multiple(self) -> int:
        return 2 ** (len(self.network.config.block_out_channels) - 1)

    def fit_to(self, shape: tuple[int, ...], frame_rate: float | None = None) -> None:
        """Makes the UNet's config say the size (t, c, h, w) and the frames per second of the clips that it learns:
        previews and pipelines ask for them."""
        unet: Any = self.network
        frames, _, height, width = shape
        unet.register_to_config(sample_size=(height, width), fps=frame_rate)
        if "num_frames" in unet.config:
            unet.register_to_config(num_frames=frames)

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """With the conditions that the model takes, each dropped at random."""
        if not self.condition_names:
            return batch
        conditions, present = training_conditions(
            batch, self.condition_names, batch["generator"], self.condition_dropout_prob
        )
        return batch | {"conditions": conditions, "present": present}

    def encode(self, batch: Mapping[str, Any], dropped: Bool[Tensor, " b"] | None = None) -> Condition:
        """See ``Stage.encode``; of a pipeline's batch "shape" is that of the clips, of a cache's it is "latents"."""
        condition = super().encode(batch, dropped)
        if self.components.get("condition_encoder") is not None:
            b, t, _, h, w = batch["shape"] if "shape" in batch else batch["latents"].shape
            condition["joined"] = self.components["condition_encoder"](
                batch.get("conditions") or {}, t, h, w, present=batch.get("present"), batch_size=b
            )  # (b, t, d, h, w)
        return condition

    def forward(
        self, noisy: Float[Tensor, "b t c h w"], timesteps: Tensor, condition: Condition
    ) -> Float[Tensor, "b t c h w"]:
        x = noisy.to(self.dtype)
        if "joined" in condition:
            x = torch.cat([x, condition["joined"].to(x)], dim=2)
        told = {"encoder_hidden_states": condition["encoder_hidden_states"]}
        if "target_timesteps" in condition:
            told["step_length"] = (timesteps - condition["target_timesteps"]).to(x.device).expand(len(x))
        return self.network(x.transpose(1, 2), timesteps, **told).sample.transpose(1, 2)

    def telling_target(self, network: nn.Module) -> nn.Module:
        return telling_step(network)  # type: ignore[reportArgumentType]

    def example_condition(self, noisy: Tensor, ones: Tensor) -> Condition:
        condition = {"encoder_hidden_states": example_tokens(self.components["text_encoder"], noisy)}
        encoder = self.components.get("condition_encoder")
        if encoder is not None:
            b, t, _, h, w = noisy.shape
            condition["joined"] = noisy.new_zeros(b, t, encoder.config.out_channels, h, w)
        is_map = self.network.config.get("step_embed")  # type: ignore[reportAttributeAccessIssue]
        return condition | ({"target_timesteps": ones} if is_map else {})


def make_condition_encoder(
    sizes: VideoSizes, latent_channels: int, vae: Any, conditions: Sequence[str]
) -> ConditionEncoder | None:
    """The encoder of these conditions; None where there are none."""
    if not conditions:
        return None
    return ConditionEncoder(
        conditions=tuple(conditions),
        latent_channels=latent_channels,
        vae_scale_factor=vae_scale_factor(vae),
        hidden_channels=sizes.condition_hidden_channels,
        out_channels=sizes.condition_channels,
    )
