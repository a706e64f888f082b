"""Content frames by a class-conditional DiT, from scratch: the paper's model for UCF-101 (CMD Table 7)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoModel, DDIMScheduler, DiTTransformer2DModel
from jaxtyping import Bool, Float
from torch import Tensor

from contentmotion.config import ContentSizes
from contentmotion.loading import load_model, load_vae, quiet, resolve_name, training_scheduler
from contentmotion.stages.content.family import ContentStage
from contentmotion.stages.stage import META, Condition, drop_labels, make_scheduler


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

    @classmethod
    def load(cls, name_or_path: str) -> Self:
        """The components of a content folder that ``train-content`` wrote, or of a whole pipeline.

        Raises:
            ValueError: A part is missing.
        """
        path = resolve_name(name_or_path)
        try:
            with quiet():
                return cls(
                    {
                        "vae": load_vae(name_or_path) if (Path(path) / "vae").is_dir() else None,
                        "unet": load_model(AutoModel, path, "unet", "a content model"),
                        "scheduler": training_scheduler(DDIMScheduler.load_config(path, subfolder="scheduler")),
                    }
                )
        except OSError as error:
            raise ValueError(f"{name_or_path} has no content model: {str(error).splitlines()[0]}") from error

    @property
    def side_multiple(self) -> int:
        return int(self.network.config.patch_size)

    def encode(self, batch: Mapping[str, Any], dropped: Bool[Tensor, " b"] | None = None) -> Condition:
        return {"class_labels": drop_labels(batch["label"], dropped, self.network.config.num_embeds_ada_norm)}

    def forward(
        self, noisy: Float[Tensor, "b c h w"], timesteps: Tensor, condition: Condition,
        target_timesteps: Tensor | None = None,
    ) -> Float[Tensor, "b c_out h w"]:  # fmt: skip
        times = timesteps.to(noisy.device).expand(len(noisy))
        return self.network(noisy.to(self.dtype), timestep=times, **condition).sample

    def example(self, shape: tuple[int, ...], batch_size: int = 1, device: torch.device = META) -> tuple[Any, ...]:
        noisy = torch.zeros((batch_size, *shape), device=device, dtype=self.dtype)
        ones = torch.ones(batch_size, dtype=torch.long, device=device)
        return noisy, ones, {"class_labels": ones}
