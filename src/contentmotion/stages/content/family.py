"""What a family of image models says of itself, so that its stock diffusers pipeline makes content frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from contentmotion.stages.stage import Stage


class ContentStage(Stage):
    """A stage of content frames, and what ties it to the family's image pipeline of diffusers.

    A content frame is sampled by that *stock* pipeline, called with ``output_type="latent"``; the stage's own network
    call serves training, distillation and counting, and sampling where no stock pipeline has such a model.

    Attributes:
        title: The family's name in messages.
        stock: Its text-to-image pipeline; None: there is none in diffusers, content frames are sampled by ``denoise``.
            Image-to-image and inpainting are the classes that diffusers' ``AutoPipeline`` maps it to.
        same_negatives: Whether negative prompts become features as prompts do; if not, the stock pipeline reads them.
        empty_is_null: Whether an empty negative prompt is to the stock pipeline what none is.
        takes_references: Whether its ``image`` is pictures to imitate, of which the prompt says what becomes.
        guided_in_one_call: Whether the stock pipeline asks the network about null conditions and prompts in one call,
            in this order.
        vae_overflows: Whether its VAE does in float16.
        stock_arguments: What the stock pipeline is always called with, unless the caller says otherwise.
    """

    name = "content"
    field = "content"
    made_with = ("vae", "autoencoder")
    title: ClassVar[str]
    stock: ClassVar[type[DiffusionPipeline] | None] = None
    same_negatives: ClassVar[bool] = True
    empty_is_null: ClassVar[bool] = True
    takes_references: ClassVar[bool] = False
    guided_in_one_call: ClassVar[bool] = True
    vae_overflows: ClassVar[bool] = False
    stock_arguments: ClassVar[Mapping[str, Any]] = {}

    @property
    def stock_pipeline(self) -> type[DiffusionPipeline] | None:
        """``stock``, where it takes these components: none takes models of pixels."""
        return self.stock if self.components.get("vae") is not None else None

    @property
    def latent_channels(self) -> int:
        """Channels of a content frame."""
        return self.network.config.in_channels  # type: ignore[return-value]

    def stock_text(self, text: Mapping[str, Tensor], null: Mapping[str, Tensor] | None) -> dict[str, Any]:
        """Text features as arguments of the stock pipeline's call, which then encodes no text itself.

        Args:
            text: What ``encode`` takes of the prompts, one item an image.
            null: The same of the negative prompts; None without guidance.
        """
        return {"prompt_embeds": text["tokens"], "negative_prompt_embeds": null and null["tokens"]}

    def stock_guidance(self, guidance_scale: float) -> float:
        """A guidance scale, 1 being none, as the stock pipeline says it."""
        return guidance_scale

    def stock_steps(self, steps: int) -> dict[str, Any]:
        """A number of steps as arguments of the stock pipeline's call."""
        return {"num_inference_steps": steps}

    def hears_as_stock(self, settings: Mapping[str, Any]) -> bool:
        """Whether a stock pipeline with these settings encodes text as this stage does; if not, it does so itself."""
        return True

    def from_stock(self, latents: Tensor) -> Float[Tensor, "b c h w"]:
        """Content frames (scaled latents) of what the stock pipeline returns with ``output_type="latent"``."""
        return latents
