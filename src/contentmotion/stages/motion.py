"""The motion stage: a DiT on standardised motion latents, given the content frame (CMD section 3.2, Eq. 8)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from contentmotion.config import MotionSizes
from contentmotion.draws import channel_std, rand, randn
from contentmotion.models.layers import standardize
from contentmotion.models.motion_dit import MotionDiT
from contentmotion.stages.content import text_stage
from contentmotion.stages.stage import Condition, Stage, drop_labels, make_scheduler


class MotionStage(Stage):
    """``motion_transformer`` and ``motion_scheduler``, with the content stage's text encoders, and the autoencoder.

    Args:
        components: See above; "text_encoder" is None for class-conditional models.
        content_noise: Standard deviation of noise that training puts on content frames, relative to that of all their
            values.
        overlap: Frames at a clip's ends that training gives to the network, at some of the clips.
    """

    name = "motion"
    network_name = "motion_transformer"
    scheduler_name = "motion_scheduler"
    field = "motion"
    made_with = ("vae", "autoencoder")
    time_axis = 2  # (b, D, t, s)
    text_needs = {"pooled": "pooled_text"}
    lora_targets = ("attn.qkv", "attn.proj", "mlp.0", "mlp.2")

    def __init__(self, components: Mapping[str, Any], content_noise: float = 0.0, overlap: int = 0) -> None:
        super().__init__(components)
        self.content_noise, self.overlap = content_noise, overlap
        # It hears prompts as the content stage does. In a tuple, for that one's network is no part of this stage.
        self._reader = (text_stage(components),)

    @classmethod
    def make(
        cls, sizes: MotionSizes, shapes: Sequence[tuple[int, ...]], captions: Iterable[str] = (), *,
        components: Mapping[str, Any], content_channels: int, num_classes: int | None = None,
        text_dim: int | None = None, statistics: tuple[Sequence[float], Sequence[float]] | None = None,
        prediction_type: str | None = None, flow_shift: float = 1.0, content_noise: float = 0.0,
        overlap: int = 0, frame_rate: float | None = None,
    ) -> Self:  # fmt: skip
        """See ``Stage.make``; captions are not used: the text encoder is the content stage's, one of ``components``.

        Args:
            statistics: Mean and deviation of each motion channel over the training clips.
            text_dim: Width of the pooled text feature, of a text-conditional model.

        Raises:
            ValueError: An overlap that is no multiple of the patch size, or more than half a clip.
        """
        if overlap and (overlap % sizes.patch_size or any(2 * overlap > shape[1] for shape in shapes)):
            raise ValueError(
                f"overlap must be a multiple of the patch size {sizes.patch_size}, at most half a clip, got {overlap}"
            )
        mean, deviation = statistics or (None, None)
        transformer = MotionDiT(
            motion_channels=shapes[0][0],
            content_channels=content_channels,
            **asdict(sizes),
            num_classes=num_classes,
            text_dim=text_dim,
            motion_mean=None if mean is None else list(mean),
            motion_std=None if deviation is None else list(deviation),
            overlap=overlap,
            fps=frame_rate,
        )
        scheduler = make_scheduler("linear", prediction_type, flow_shift)
        own = {"motion_transformer": transformer, "motion_scheduler": scheduler}
        return cls(dict(components) | own, content_noise, overlap)

    def _like(self, components: Mapping[str, Any]) -> Self:
        return type(self)(components, self.content_noise, self.overlap)

    def standardize(self, motion: Float[Tensor, "b D t s"], inverse: bool = False) -> Float[Tensor, "b D t s"]:
        """Motion latents at zero mean and unit variance per channel, as diffusion wants them (or back).

        The motion model has the statistics of the clips that it was trained on; those of version 0.1 have them in their
        autoencoder.

        Raises:
            ValueError: Neither has them.
        """
        config = self.network.config
        if config.motion_mean is None:
            return self.components["autoencoder"].standardize_motion(motion, inverse)
        return standardize(motion, config.motion_mean, config.motion_std, inverse)

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """With noise on the content frames, so that the motion model forgives what the content model gets wrong; and
        with the motion of a clip's beginning, or of both its ends, given at a quarter of the clips each."""
        if self.overlap:
            lot = rand((len(batch["motion"]),), batch["generator"])[:, None]
            frame = torch.arange(batch["motion"].shape[2], device=lot.device)
            known = (lot < 0.5) & (frame < self.overlap) | (lot < 0.25) & (frame >= len(frame) - self.overlap)
            batch = batch | {"known": known.to(batch["motion"].device), "known_motion": self.clean_sample(batch)}
        if not self.content_noise:
            return batch
        content, generator = batch["content"], batch["generator"]
        noise = randn(content.shape, generator).to(content)
        return batch | {"content": content + self.content_noise * channel_std(content, generator) * noise}

    def clean_sample(self, batch: Mapping[str, Any]) -> Tensor:
        return self.standardize(batch["motion"])

    def encode(self, batch: Mapping[str, Any], dropped: Bool[Tensor, " b"] | None = None) -> Condition:
        told = {name: batch[name] for name in ("content", "known", "known_motion") if name in batch}
        if not self.text_encoders:
            return told | {"class_labels": drop_labels(batch["label"], dropped, self.network.config.num_classes)}
        with torch.no_grad():
            return told | super().encode(batch, dropped)

    @property
    def reader(self) -> Stage:
        return self._reader[0]

    def forward(
        self, noisy: Float[Tensor, "b D t s"], timesteps: Tensor, condition: Condition
    ) -> Float[Tensor, "b out t s"]:
        told = dict(condition)
        for name in told.keys() & {"content", "pooled_text"}:  # of other networks, maybe of another number format
            told[name] = told[name].to(self.dtype)
        if "target_timesteps" in told:
            told["target_timesteps"] = told["target_timesteps"].to(noisy.device).expand(len(noisy))
        if "known" in told:
            noisy = torch.where(told["known"][:, None, :, None], told.pop("known_motion").to(noisy), noisy)
        return self.network(noisy.to(self.dtype), timesteps.to(noisy.device).expand(len(noisy)), **told)

    def telling_target(self, network: nn.Module) -> nn.Module:
        config: Any = self.network.config
        if config.depth < 2 or config.learn_sigma:
            raise ValueError("a flow map needs a motion model of two blocks or more, without a learned variance")
        network.register_to_config(target_blocks=max(1, config.depth // 3))  # type: ignore[reportCallIssue]
        return network

    def example_condition(self, noisy: Tensor, ones: Tensor) -> Condition:
        config, autoencoder = self.network.config, self.components["autoencoder"].config
        # z_x and z_y are the content frame's rows and columns of patches.
        height, width = autoencoder.sample_height, autoencoder.sample_width
        condition = {"content": noisy.new_zeros(len(noisy), config.content_channels, height, width)}
        if config.text_dim is None:
            condition["class_labels"] = ones
        else:
            condition["pooled_text"] = noisy.new_zeros(len(noisy), config.text_dim)
        return condition | ({"target_timesteps": ones} if config.target_blocks else {})
