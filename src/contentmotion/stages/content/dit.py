"""Content frames by a class-conditional DiT, from scratch: the paper's model for UCF-101 (CMD Table 7)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from diffusers import DiTTransformer2DModel
from jaxtyping import Bool, Float
from torch import Tensor

from contentmotion.config import ContentSizes
from contentmotion.stages.content.family import ContentStage
from contentmotion.stages.stage import Condition, drop_labels, make_scheduler


class DiTContent(ContentStage):
    """``vae``, ``unet`` (the DiT, by the name that a content model has in a pipeline), ``scheduler``."""

    title = "class-conditional DiT"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")

    def __init__(self, components: Mapping[str, Any]) -> None:
        super().__init__({"text_encoder": None, "tokenizer": None} | dict(components))
        # Dropping labels is the loss's business, with the run's own generator: diffusers' blocks would each do it too.
        for module in self.network.modules():
            if hasattr(module, "dropout_prob"):
                module.dropout_prob = 0.0

    @classmethod
    def make(
        cls, sizes: ContentSizes, shapes: Sequence[tuple[int, ...]], captions: Iterable[str], *, vae: Any = None,
        class_names: Sequence[str] = (), prediction_type: str | None = None, flow_shift: float = 1.0,
    ) -> Self:  # fmt: skip
        """See ``Stage.make``; ``vae`` is the image VAE, or None for pixels.

        Raises:
            ValueError: Content frames that are not square, or no classes.
        """
        for _, height, width in shapes:
            if height != width:
                raise ValueError(f"a DiT content model takes square content frames, these are {height}x{width}")
        if not class_names:
            raise ValueError("these clips have no class labels: a class-conditional DiT needs them")
        channels, side, _ = shapes[0]
        unet = DiTTransformer2DModel(
            in_channels=channels,
            out_channels=channels * (2 if sizes.learn_sigma else 1),
            sample_size=side,
            patch_size=sizes.patch_size,
            num_layers=sizes.depth,
            num_attention_heads=sizes.num_heads,
            attention_head_dim=sizes.hidden_size // sizes.num_heads,
            num_embeds_ada_norm=len(class_names),
        )
        return cls({"vae": vae, "unet": unet, "scheduler": make_scheduler("linear", prediction_type, flow_shift)})

    @property
    def side_multiple(self) -> int:
        return int(self.network.config.patch_size)

    def encode(self, batch: Mapping[str, Any], dropped: Bool[Tensor, " b"] | None = None) -> Condition:
        return {"class_labels": drop_labels(batch["label"], dropped, self.network.config.num_embeds_ada_norm)}

    def forward(
        self, noisy: Float[Tensor, "b c h w"], timesteps: Tensor, condition: Condition
    ) -> Float[Tensor, "b c_out h w"]:
        times = timesteps.to(noisy.device).expand(len(noisy))
        return self.network(noisy.to(self.dtype), timestep=times, **condition).sample

    def example_condition(self, noisy: Tensor, ones: Tensor) -> Condition:
        return {"class_labels": ones}
