"""What the families of transformers trained by flow matching share: how their folders are loaded, and that their stock
pipeline's own code encodes prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import diffusers
import torch
from diffusers import AutoModel, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

from contentmotion.loading import explain, load_model, load_tokenizer, load_vae, quiet, resolve_name
from contentmotion.stages.content.family import ContentStage
from contentmotion.stages.stage import META

CROSS_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


class TransformerContent(ContentStage):
    """``vae``, text encoders, tokenizers, ``transformer``, ``scheduler``: the components of a folder of ``stock``.

    Attributes:
        text_classes: Text encoders and tokenizers by component: their classes in transformers.
        optional: Those of them that a folder may lack.
        max_tokens: Tokens of a prompt that the last text encoder reads.
    """

    network_name = "transformer"
    trains_text = False
    text_needs = ("tokens", "tokens_mask")
    stock: ClassVar[type[DiffusionPipeline]]
    text_classes: ClassVar[Mapping[str, str]]
    optional: ClassVar[tuple[str, ...]] = ()
    max_tokens: ClassVar[int]

    @classmethod
    def load(cls, name_or_path: str) -> Self:
        """The components of a folder or hub id of ``stock``, its own scheduler among them.

        Raises:
            ValueError: A part is missing, damaged or of another kind.
        """
        text, path = cls.load_text(name_or_path), resolve_name(name_or_path)
        transformer = load_model(AutoModel, path, "transformer", "a content model")
        parts = {"vae": load_vae(name_or_path), "transformer": transformer, "scheduler": _scheduler_of(path)}
        index: Any = DiffusionPipeline.load_config(path)
        settings = {name: index[name] for name in cls.stock._get_signature_keys(cls.stock)[1] if name in index}
        if settings:  # such as FLUX.2's is_distilled, by which the pipeline is made again
            parts["image_pipeline"] = {"class": cls.stock.__name__} | settings
        return cls(parts | text)

    @classmethod
    def load_text(cls, name_or_path: str) -> dict[str, Any]:
        """Text encoders and tokenizers alone, the encoders frozen.

        Raises:
            ValueError: One is missing, damaged or of another kind.
        """
        import transformers

        path = resolve_name(name_or_path)
        try:
            with quiet():
                index: Any = DiffusionPipeline.load_config(path)
        except (OSError, ValueError) as error:
            raise ValueError(explain(f"a folder of {cls.title}", path, error)) from error
        parts: dict[str, Any] = {}
        for name, wanted in cls.text_classes.items():
            library, kind = index.get(name) or (None, None)
            if library is None and name in cls.optional:
                parts[name] = None
            elif name.startswith("tokenizer"):
                parts[name] = load_tokenizer(name_or_path, name, wanted)
            elif kind != wanted:
                raise ValueError(f"{name_or_path}: its {name} is a {kind}, {cls.title} has a {wanted} there")
            else:
                encoder = load_model(getattr(transformers, wanted), path, name, "a text encoder")
                parts[name] = encoder.requires_grad_(False)
        return parts

    @property
    def text_pipeline(self) -> Any:
        """The stock pipeline with the text encoders alone, for its ``encode_prompt``."""
        text = {name: self.components.get(name) for name in self.text_classes}
        return self.stock(**text, vae=None, transformer=self.components.get("transformer"), scheduler=None)

    @property
    def text_family(self) -> str:  # type: ignore[override]
        return self.title

    @property
    def pooled_width(self) -> int:
        return self.components["text_encoder"].config.hidden_size

    @property
    def text_lengths(self) -> dict[str, int]:
        return dict.fromkeys(self.text_encoders, self.max_tokens)

    def text_device(self) -> torch.device:
        """Where the text encoders compute."""
        return next(iter(self.text_encoders.values())).device

    def example(self, shape: tuple[int, ...], batch_size: int = 1, device: torch.device = META) -> tuple[Any, ...]:
        place = {"device": device, "dtype": self.dtype}
        noisy = torch.zeros((batch_size, *shape), **place)
        tokens = torch.zeros((batch_size, self.max_tokens, self.token_width), **place)
        features = {"tokens": tokens, "tokens_mask": torch.ones(tokens.shape[:2], device=device)}
        features["pooled"] = torch.zeros((batch_size, self.pooled_width), **place)
        return noisy, torch.ones(batch_size, dtype=torch.long, device=device), self.encode(features)

    @property
    def token_width(self) -> int:
        """Width of the features per token."""
        return self.components["text_encoder"].config.hidden_size


def times_of(timesteps: Tensor, noisy: Tensor) -> Tensor:
    """One time for each sample (b,), on its device, as numbers with a fraction."""
    return timesteps.to(noisy.device).expand(len(noisy)).float()


def _scheduler_of(path: str) -> Any:
    """A folder's own scheduler.

    Raises:
        ValueError: There is none, or its class is none of diffusers' schedulers.
    """
    try:
        with quiet():
            config: Any = FlowMatchEulerDiscreteScheduler.load_config(path, subfolder="scheduler")
    except (OSError, ValueError) as error:
        raise ValueError(explain("a scheduler", path, error)) from error
    cls = getattr(diffusers, str(config.get("_class_name")), None)
    if not (isinstance(cls, type) and issubclass(cls, SchedulerMixin)):
        raise ValueError(f"{path}: its scheduler is a {config.get('_class_name')}, which diffusers does not have")
    return cls.from_config(config)  # type: ignore[reportAttributeAccessIssue]
