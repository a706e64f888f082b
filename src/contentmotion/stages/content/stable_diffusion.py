"""Content frames by a UNet with a CLIP text encoder: Stable Diffusion 1 and 2 (CMD section 3.2, Eq. 7)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from jaxtyping import Bool, Float
from torch import Tensor, nn

from contentmotion.config import ContentSizes
from contentmotion.stages.content.family import ContentStage
from contentmotion.stages.stage import Condition, example_tokens, make_scheduler
from contentmotion.stages.text import make_text_encoder

GUIDANCE_WIDTH = 256  # of what a UNet is told the guidance scale by; LCM's
ATTENTION_AND_FEED_FORWARD = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


class StableDiffusionContent(ContentStage):
    """``vae``, ``text_encoder``, ``tokenizer``, ``unet``, ``scheduler``: a Stable Diffusion folder's components."""

    title = "Stable Diffusion 1 and 2"
    stock = StableDiffusionPipeline
    text_classes = {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}
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

    @property
    def stock_pipeline(self) -> type[DiffusionPipeline] | None:
        """As ``ContentStage``; none samples such a UNet by flow matching."""
        return super().stock_pipeline if hasattr(self.scheduler, "init_noise_sigma") else None

    @property
    def side_multiple(self) -> int:
        return 2 ** (len(self.network.config.block_out_channels) - 1)

    @property
    def told_guidance(self) -> bool:
        return self.network.config.get("time_cond_proj_dim") is not None  # type: ignore[reportAttributeAccessIssue]

    def telling_guidance(self, network: nn.Module) -> nn.Module:
        told = _with_more(network, time_cond_proj_dim=GUIDANCE_WIDTH)
        torch.nn.init.zeros_(told.time_embedding.cond_proj.weight)
        return told

    def telling_target(self, network: nn.Module) -> nn.Module:
        """By a second embedding, of the step's length, that adds nothing before it is trained."""
        if network.config.class_embed_type is not None:  # type: ignore[reportAttributeAccessIssue]
            raise ValueError("a UNet with an embedding of classes cannot be made a flow map")
        told = _with_more(network, class_embed_type="timestep")
        for parameter in told.class_embedding.linear_2.parameters():
            torch.nn.init.zeros_(parameter)
        return told

    def guidance(self, batch: Mapping[str, Any]) -> Condition:
        """The guidance scales of a batch, where the network is told them."""
        return {"guidance": batch["guidance"]} if self.told_guidance and "guidance" in batch else {}

    def guidance_embedding(self, condition: Condition) -> Float[Tensor, "b d"] | None:
        """What a network that is told the guidance scale gets of it, as ``StableDiffusionPipeline`` makes it.

        Raises:
            ValueError: The scale is not given.

        Source: Luo et al. 2023 (LCM, arXiv 2310.04378), section 4.2.
        """
        if not self.told_guidance:
            return None
        if "guidance" not in condition:
            raise ValueError(
                "this content model is told the guidance scale (time_cond_proj_dim): it was distilled, and can be "
                "sampled, not trained"
            )
        w, width = condition["guidance"].float() - 1, self.network.config.time_cond_proj_dim
        return get_timestep_embedding(w * 1000, width, downscale_freq_shift=1).to(self.dtype)  # type: ignore[arg-type]

    def encode(self, batch: Mapping[str, Any], dropped: Bool[Tensor, " b"] | None = None) -> Condition:
        return super().encode(batch, dropped) | self.guidance(batch)

    def forward(
        self, noisy: Float[Tensor, "b c h w"], timesteps: Tensor, condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        target = condition.get("target_timesteps")
        # Of a flow map; without it the UNet says that its labels are missing.
        step_length = None if target is None else (timesteps - target).to(noisy.device).expand(len(noisy))
        return self.network(
            noisy.to(self.dtype), timesteps, encoder_hidden_states=condition["encoder_hidden_states"],
            class_labels=step_length, timestep_cond=self.guidance_embedding(condition),
            added_cond_kwargs=self.added_condition(noisy, condition),
        ).sample  # fmt: skip

    def added_condition(self, noisy: Tensor, condition: Condition) -> dict[str, Tensor] | None:
        """What else such a UNet is told; None: nothing."""
        return None

    def example_condition(self, noisy: Tensor, ones: Tensor) -> Condition:
        told = {"encoder_hidden_states": example_tokens(self.components["text_encoder"], noisy)}
        told |= self.guidance({"guidance": ones})
        is_map = self.network.config.class_embed_type == "timestep"  # type: ignore[reportAttributeAccessIssue]
        return told | ({"target_timesteps": ones} if is_map else {})


def _with_more(network: Any, **settings: Any) -> Any:
    """A network with the same weights, and those that some settings add."""
    more = type(network).from_config(network.config, **settings)
    more.load_state_dict(network.state_dict(), strict=False)
    return more.to(network.device)
