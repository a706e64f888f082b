"""What the families of transformers trained by flow matching share: what else their folders say, and that their stock
pipeline's own code encodes prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor

from contentmotion.loading import explain, quiet, resolve_name
from contentmotion.stages.content.family import ContentStage
from contentmotion.stages.stage import Condition

CROSS_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


class TransformerContent(ContentStage):
    """``vae``, text encoders, tokenizers, ``transformer``, ``scheduler``: the components of a folder of ``stock``.

    Attributes:
        optional: Text encoders and tokenizers that a folder may lack.
        max_tokens: Tokens of a prompt that the last text encoder reads.
    """

    network_name = "transformer"
    trains_text = False
    stock: ClassVar[type[DiffusionPipeline]]
    optional: ClassVar[tuple[str, ...]] = ()
    max_tokens: ClassVar[int]

    @classmethod
    def load(cls, name_or_path: str) -> Self:
        """See ``ContentStage.load``; with the folder's own scheduler, and the settings of its pipeline."""
        stage = super().load(name_or_path)
        index: Any = DiffusionPipeline.load_config(resolve_name(name_or_path))
        settings = {name: index[name] for name in cls.stock._get_signature_keys(cls.stock)[1] if name in index}
        if settings:  # such as FLUX.2's is_distilled, by which the pipeline is made again
            stage.components["image_pipeline"] = {"class": cls.stock.__name__} | settings
        return stage

    @classmethod
    def text_classes_in(cls, path: str) -> Mapping[str, str]:
        """Those of ``text_classes`` that a folder has.

        Raises:
            ValueError: One is missing, or of another kind.
        """
        try:
            with quiet():
                index: Any = DiffusionPipeline.load_config(path)
        except (OSError, ValueError) as error:
            raise ValueError(explain(f"a folder of {cls.title}", path, error)) from error
        kinds = {name: (index.get(name) or (None, None))[1] for name in cls.text_classes}
        there = {name: cls.text_classes[name] for name, kind in kinds.items() if kind or name not in cls.optional}
        for name, wanted in there.items():
            if kinds[name] != wanted and not name.startswith("tokenizer"):
                raise ValueError(f"{path}: its {name} is a {kinds[name]}, {cls.title} has a {wanted} there")
        return there

    @classmethod
    def scheduler_of(cls, config: Mapping[str, Any]) -> Any:
        """The folder's own.

        Raises:
            ValueError: Its class is none of diffusers' schedulers.
        """
        kind: Any = getattr(diffusers, str(config.get("_class_name")), None)
        if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
            raise ValueError(f"it is a {config.get('_class_name')}, which diffusers does not have")
        return kind.from_config(config)

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
        return self.token_width

    @property
    def text_lengths(self) -> dict[str, int]:
        return dict.fromkeys(self.text_encoders, self.max_tokens)

    def text_device(self) -> torch.device:
        """Where the text encoders compute."""
        return next(iter(self.text_encoders.values())).device

    def example_condition(self, noisy: Tensor, ones: Tensor) -> Condition:
        tokens = noisy.new_zeros(len(noisy), self.max_tokens, self.token_width)
        mask = torch.ones(tokens.shape[:2], device=noisy.device)
        pooled = noisy.new_zeros(len(noisy), self.pooled_width)
        return self.encode({"tokens": tokens, "tokens_mask": mask, "pooled": pooled})

    @property
    def token_width(self) -> int:
        """Width of the features per token."""
        return self.components["text_encoder"].config.hidden_size


def times_of(timesteps: Tensor, noisy: Tensor) -> Tensor:
    """One time for each sample (b,), on its device, as numbers with a fraction."""
    return timesteps.to(noisy.device).expand(len(noisy)).float()
