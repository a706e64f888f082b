"""Content frames by a UNet with a CLIP text encoder: Stable Diffusion 1 and 2 (CMD section 3.2, Eq. 7)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoModel, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Bool, Float
from torch import Tensor

from contentmotion.config import ContentSizes
from contentmotion.loading import (
    load_model,
    load_text_encoder,
    load_vae,
    quiet,
    resolve_name,
    training_scheduler,
)
from contentmotion.stages.content.family import ContentStage
from contentmotion.stages.stage import META, Condition, example_tokens, make_scheduler
from contentmotion.stages.text import make_text_encoder

ATTENTION_AND_FEED_FORWARD = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


class StableDiffusionContent(ContentStage):
    """``vae``, ``text_encoder``, ``tokenizer``, ``unet``, ``scheduler``: a Stable Diffusion folder's components."""

    title = "Stable Diffusion 1 and 2"
    stock = StableDiffusionPipeline
    lora_targets = ATTENTION_AND_FEED_FORWARD

    @classmethod
    def make(
        cls, sizes: ContentSizes, shapes: Sequence[tuple[int, ...]], captions: Iterable[str], *, vae: Any = None,
        class_names: Sequence[str] = (), prediction_type: str | None = None, flow_shift: float = 1.0,
    ) -> Self:  # fmt: skip
        """See ``Stage.make``; ``vae`` is the image VAE, or None for pixels."""
        channels, height, width = shapes[0]
        tokenizer, text_encoder = make_text_encoder(
            captions, vocab_size=sizes.vocab_size, hidden_size=sizes.text_hidden_size,
            num_layers=sizes.text_num_layers, max_length=sizes.text_max_length,
            bag_of_words=sizes.text_start == "words",
        )  # fmt: skip
        levels = len(sizes.block_out_channels)
        unet = UNet2DConditionModel(
            sample_size=(height, width) if height != width else height,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(sizes.block_out_channels),
            # Attention everywhere but at the finest resolution, where it costs most.
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (levels - 1),
            up_block_types=("CrossAttnUpBlock2D",) * (levels - 1) + ("UpBlock2D",),
            layers_per_block=sizes.layers_per_block,
            attention_head_dim=sizes.num_attention_heads,  # diffusers calls the number of heads so
            cross_attention_dim=sizes.text_hidden_size,
            # The whole prompt steers every block, beside attention to its words: names are learned in fewer steps.
            addition_embed_type="text",
            addition_embed_type_num_heads=sizes.num_attention_heads,
        )
        if sizes.text_start == "words":  # their sum is normalised: a constant beside it would drown them
            torch.nn.init.zeros_(unet.add_embedding.proj.bias)
            torch.nn.init.zeros_(unet.add_embedding.pool.v_proj.bias)
        scheduler = make_scheduler("scaled_linear", prediction_type, flow_shift)
        return cls(
            {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet, "scheduler": scheduler}
        )

    @classmethod
    def load(cls, name_or_path: str) -> Self:
        """The components of a Stable Diffusion folder or hub id; the sampler with the folder's own noise schedule.

        Raises:
            ValueError: A part is missing.
        """
        path = resolve_name(name_or_path)
        draws_pixels = (Path(path) / "unet").is_dir() and not (Path(path) / "vae").is_dir()
        try:
            with quiet():
                return cls(
                    {
                        "vae": None if draws_pixels else load_vae(name_or_path),
                        **cls.load_text(name_or_path),
                        "unet": load_model(AutoModel, path, "unet", "a content model"),
                        "scheduler": training_scheduler(DDIMScheduler.load_config(path, subfolder="scheduler")),
                    }
                )
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{name_or_path} is not a Stable Diffusion folder: {reason}") from error

    @classmethod
    def load_text(cls, name_or_path: str) -> dict[str, Any]:
        """Text encoders, frozen, and tokenizers alone.

        Raises:
            ValueError: One is missing.
        """
        tokenizer, text_encoder = load_text_encoder(name_or_path)
        return {"text_encoder": text_encoder, "tokenizer": tokenizer}

    @property
    def stock_pipeline(self) -> type[DiffusionPipeline] | None:
        """As ``ContentStage``; none samples such a UNet by flow matching."""
        return super().stock_pipeline if hasattr(self.scheduler, "init_noise_sigma") else None

    @property
    def side_multiple(self) -> int:
        return 2 ** (len(self.network.config.block_out_channels) - 1)

    def encode(self, batch: Mapping[str, Any], dropped: Bool[Tensor, " b"] | None = None) -> Condition:
        return {"encoder_hidden_states": self.text(batch, dropped)["tokens"]}

    def forward(
        self, noisy: Float[Tensor, "b c h w"], timesteps: Tensor, condition: Condition,
        target_timesteps: Tensor | None = None,
    ) -> Float[Tensor, "b c h w"]:  # fmt: skip
        return self.network(noisy.to(self.dtype), timesteps, **condition).sample

    def example(self, shape: tuple[int, ...], batch_size: int = 1, device: torch.device = META) -> tuple[Any, ...]:
        noisy = torch.zeros((batch_size, *shape), device=device, dtype=self.dtype)
        tokens = example_tokens(self.components["text_encoder"], batch_size, device)
        return noisy, torch.ones(batch_size, dtype=torch.long, device=device), {"encoder_hidden_states": tokens}
