"""What a family of image models says of itself, so that its stock diffusers pipeline makes content frames."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from diffusers import AutoModel, DDIMScheduler, DiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from contentmotion.loading import (
    explain,
    load_model,
    load_tokenizer,
    load_vae,
    quiet,
    resolve_name,
    training_scheduler,
)
from contentmotion.stages.stage import Stage

# What a stock pipeline's call names ``text_features``; those of negative prompts have "negative_" in front.
STOCK_TEXT = {"tokens": "prompt_embeds", "tokens_mask": "prompt_attention_mask", "pooled": "pooled_prompt_embeds"}


class ContentStage(Stage):
    """A stage of content frames, and what ties it to the family's image pipeline of diffusers.

    A content frame is sampled by that *stock* pipeline, called with ``output_type="latent"``; the stage's own network
    call serves training, distillation and counting, and sampling where no stock pipeline has such a model.

    Attributes:
        title: The family's name in messages.
        text_classes: Text encoders and tokenizers by component: their classes in transformers.
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
    text_classes: ClassVar[Mapping[str, str]] = {}
    stock: ClassVar[type[DiffusionPipeline] | None] = None
    same_negatives: ClassVar[bool] = True
    empty_is_null: ClassVar[bool] = True
    takes_references: ClassVar[bool] = False
    guided_in_one_call: ClassVar[bool] = True
    vae_overflows: ClassVar[bool] = False
    stock_arguments: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def load(cls, name_or_path: str) -> Self:
        """The stage of a folder or hub id; a model of pixels has no VAE.

        Raises:
            ValueError: A part is missing, damaged or of another kind.
        """
        path = resolve_name(name_or_path)
        parts = cls.load_text(name_or_path)
        parts["vae"] = None if draws_pixels(path) else load_vae(name_or_path)
        parts[cls.network_name] = load_model(AutoModel, path, cls.network_name, "a content model")
        try:
            with quiet():
                config: Any = DDIMScheduler.load_config(path, subfolder="scheduler")
                parts["scheduler"] = cls.scheduler_of(config)
        except Exception as error:  # a damaged config is whatever its entries lead to
            raise ValueError(explain(f"a scheduler from {path}", path, error)) from error
        return cls(parts)

    @classmethod
    def load_text(cls, name_or_path: str) -> dict[str, Any]:
        """Text encoders, frozen, and tokenizers alone.

        Raises:
            ValueError: One is missing, damaged or of another kind.
        """
        import transformers

        path = resolve_name(name_or_path)
        parts: dict[str, Any] = dict.fromkeys(cls.text_classes)
        for name, kind in cls.text_classes_in(path).items():
            if name.startswith("tokenizer"):
                parts[name] = load_tokenizer(name_or_path, name, kind)
            else:
                encoder = load_model(getattr(transformers, kind), path, name, f"a {name.replace('_', ' ')}")
                parts[name] = encoder.requires_grad_(False)
        return parts

    @classmethod
    def text_classes_in(cls, path: str) -> Mapping[str, str]:
        """Those of ``text_classes`` that a folder has."""
        return cls.text_classes

    @classmethod
    def scheduler_of(cls, config: Mapping[str, Any]) -> Any:
        """The sampler of a folder whose scheduler has this config: one with the same noise schedule."""
        return training_scheduler(config)

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
        told = {STOCK_TEXT[name]: text[name] for name in self.text_needs}
        return told | {f"negative_{STOCK_TEXT[name]}": null and null[name] for name in self.text_needs}

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


def draws_pixels(path: str) -> bool:
    """Whether a folder has a UNet and no VAE; of a hub id its pipeline's index says so."""
    if Path(path).is_dir():
        return (Path(path) / "unet").is_dir() and not (Path(path) / "vae").is_dir()
    try:
        with quiet():
            index: Any = DiffusionPipeline.load_config(path)
    except (OSError, ValueError):  # what is loaded next says why
        return False
    return not any(index.get("vae") or ())
