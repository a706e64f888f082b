"""What is particular to one denoiser, behind one face: training, sampling, distillation and cost call the same object.

A stage is made of *components*, by the names that a pipeline's ``model_index.json`` has for them. It knows nothing of
pipelines, which are shells over stages, nor of objectives (``losses``), which are written against this face.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler, SchedulerMixin
from jaxtyping import Bool, Int
from torch import Tensor, nn

from contentmotion.diffusion import FLOW, NoiseSchedule
from contentmotion.stages.text import NULL_PROMPT, cut_words, encode_prompts, tokenize, unknown_words

Condition = dict[str, Tensor]  # what a network is told besides the noisy sample and the time; items along axis 0
META = torch.device("meta")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")  # components that read prompts, if there are any


class Stage(nn.Module):
    """A network that denoises, with all that it needs to be trained, sampled, distilled and counted.

    Its parameters are those of ``network``, of the components ``besides`` it, and of the text encoders.

    Attributes:
        name: "content", "motion" or "video".
        network_name: Component that denoises.
        scheduler_name: Component that is its scheduler.
        besides: Components that are trained with the network, where there are any (not with LoRA).
        field: What a latent cache must hold of each clip.
        made_with: Components that must have made the cache.
        time_axis: Axis of a sample that counts frames, if one does.
        text_family: What tells cached text features from others of the same encoder; None: CLIP's as Stable
            Diffusion takes them.
        text_needs: What the network takes of ``text_features``, and by the names of which of its arguments.
        trains_text: Whether its text encoder can be trained with the network.
        lora_targets: Layers that get an adapter, by the ends of their names.
    """

    name: ClassVar[str]
    network_name: ClassVar[str] = "unet"
    scheduler_name: ClassVar[str] = "scheduler"
    besides: ClassVar[tuple[str, ...]] = ()
    field: ClassVar[str]
    made_with: ClassVar[tuple[str, ...]] = ("vae",)
    time_axis: ClassVar[int | None] = None
    text_family: ClassVar[str | None] = None
    text_needs: ClassVar[Mapping[str, str]] = {"tokens": "encoder_hidden_states"}
    trains_text: ClassVar[bool] = True
    lora_targets: ClassVar[tuple[str, ...]] = ()

    def __init__(self, components: Mapping[str, Any]) -> None:
        super().__init__()
        self.components: dict[str, Any] = dict(components)
        for name in (self.network_name, *self.besides, *TEXT_ENCODERS):
            if self.components.get(name) is not None:
                self.add_module(name, self.components[name])
        self._null: dict[str, Tensor] | None = None
        self._schedule: tuple[Any, NoiseSchedule] | None = None  # and the scheduler that it is of

    @classmethod
    @abstractmethod
    def make(cls, sizes: Any, shapes: Sequence[tuple[int, ...]], captions: Iterable[str], **settings: Any) -> Self:
        """An untrained stage.

        Args:
            sizes: The config's ``model`` block.
            shapes: Shapes of the samples that it is for, of one item each; the first is the one that a pipeline makes
                when not told.
            captions: What a text encoder made from scratch learns its vocabulary from.
            **settings: What else the stage needs.

        Raises:
            ValueError: Samples that such a network cannot make.
        """

    def encode(self, batch: Mapping[str, Any], dropped: Bool[Tensor, " b"] | None = None) -> Condition:
        """What the network is told about the items of a batch; unless a stage says otherwise its text.

        Args:
            batch: Of a latent cache ("caption" or "label", or ``text_features``; "content", "conditions" and so on), or
                of a pipeline's call.
            dropped: Items that get the null condition instead of their text or class; None: no item.
        """
        text = self.text(batch, dropped)
        return {argument: text[name] for name, argument in self.text_needs.items()}

    @abstractmethod
    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """The network call, the only one.

        Args:
            noisy: Noisy samples (b, ...).
            timesteps: Their times (b,), or one for all.
            condition: See ``encode``; for networks that predict the way to a later time of the sampler (flow maps)
                with "target_timesteps", (b,) or one for all.

        Returns:
            The prediction (b, ...); twice the channels with a learned variance.
        """

    def example(self, shape: tuple[int, ...], batch_size: int = 1, device: torch.device = META) -> tuple[Any, ...]:
        """Arguments of one network call on samples of a shape (of one item), for counting and timing."""
        noisy = torch.zeros((batch_size, *shape), device=device, dtype=self.dtype)
        ones = torch.ones(batch_size, dtype=torch.long, device=device)
        return noisy, ones, self.example_condition(noisy, ones)

    @abstractmethod
    def example_condition(self, noisy: Tensor, ones: Tensor) -> Condition:
        """What the network is told in such a call, with nothing in it; ``ones`` (b,) are times and classes."""

    @property
    def network(self) -> nn.Module:
        """The component that denoises."""
        return self.components[self.network_name]

    @property
    def scheduler(self) -> Any:
        """The component that samples."""
        return self.components[self.scheduler_name]

    @property
    def schedule(self) -> NoiseSchedule:
        """Noise levels and what the network predicts."""
        if self._schedule is None or self._schedule[0] is not self.scheduler:
            self._schedule = self.scheduler, NoiseSchedule.of(self.scheduler)
        return self._schedule[1]

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the network's weights."""
        return self.network.dtype  # type: ignore[return-value]

    @property
    def side_multiple(self) -> int:
        """What height and width of a sample must be multiples of."""
        return 1

    @property
    def told_guidance(self) -> bool:
        """Whether the network is told the guidance scale, ``condition["guidance"]`` (b,), and guided in one pass."""
        return False

    @property
    def guidance_range(self) -> tuple[float, float] | None:
        """The least and the greatest scale that the network was told in training; None: it is not known."""
        return getattr(self.network, "config", {}).get("_guidance_range")

    def telling_guidance(self, network: nn.Module) -> nn.Module:
        """Makes of a copy of this stage's network one that is told the guidance scale, too: at first in vain.

        Raises:
            ValueError: There is no such network.
        """
        raise ValueError(
            f"no {type(self.network).__name__} is told the guidance scale: only a Stable Diffusion UNet is"
        )

    def telling_target(self, network: nn.Module) -> nn.Module:
        """Makes of a copy of this stage's network one that is told where a step leads, too: an untrained flow map.

        Raises:
            ValueError: There is no such network.
        """
        raise ValueError(f"no {type(self.network).__name__} can be made a flow map: take another --objective")

    def set_timesteps(self, steps: int, shape: Sequence[int], device: torch.device) -> None:
        """Sets the scheduler's times to sample samples of a shape (b, ...)."""
        self.scheduler.set_timesteps(steps, device=device, **few_step_levels(self.scheduler, steps))

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with what is drawn of conditions in training, such as noise on them, from its generator."""
        return batch

    def clean_sample(self, batch: Mapping[str, Any]) -> Tensor:
        """What is denoised: clean samples (b, ...) of a batch."""
        return batch[self.field]

    def replace(self, **components: Any) -> Self:
        """The same stage with other components in the places of some."""
        return self._like(self.components | components)

    def twin(self) -> Self:
        """The same stage with copies of the components that are trained; their frozen weights are shared."""
        copies = {}
        for name, component in self.components.items():
            if isinstance(component, nn.Module) and any(p.requires_grad for p in component.parameters()):
                shared = {id(p): p for p in component.parameters() if not p.requires_grad}
                copies[name] = copy.deepcopy(component, shared).requires_grad_(False)
        return self.replace(**copies)

    def _like(self, components: Mapping[str, Any]) -> Self:
        return type(self)(components)

    @property
    def text_encoders(self) -> dict[str, Any]:
        """The components that read prompts; none of a class-conditional model."""
        return {name: self.components[name] for name in TEXT_ENCODERS if self.components.get(name) is not None}

    @property
    def reader(self) -> Stage:
        """The stage that knows how prompts are read: itself, unless another one's text encoders read for it."""
        return self

    def text_features(self, prompts: Sequence[str] | Tensor) -> dict[str, Tensor]:
        """What the text encoders make of prompts, "" being the null prompt; or of their tokens.

        Returns:
            "tokens" (b, n, d), "pooled" (b, p) for the motion model and perhaps "tokens_mask" (b, n), 0 at padding.
        """
        tokens, pooled = encode_prompts(self.components["tokenizer"], self.components["text_encoder"], prompts)
        return {"tokens": tokens, "pooled": pooled}

    def with_tokens(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with "caption_tokens", of its captions and of the null prompt, where it has no text features: for
        steps that are recorded, which are told tensors alone. As it is where ``text_features`` takes words alone."""
        takes_tokens = type(self.reader).text_features is Stage.text_features
        if not self.text_encoders or not takes_tokens or all(name in batch for name in self.text_needs):
            return batch
        tokenizer, encoder = self.components["tokenizer"], self.components["text_encoder"]
        return batch | {"caption_tokens": tokenize(tokenizer, [*batch["caption"], NULL_PROMPT], encoder.device)}

    @property
    def pooled_width(self) -> int | None:
        """Width of the pooled text feature; None of a class-conditional model."""
        if not self.text_encoders:
            return None
        encoder = self.components["text_encoder"]
        projected = "WithProjection" in type(encoder).__name__
        return encoder.config.projection_dim if projected else encoder.config.hidden_size

    @property
    def text_lengths(self) -> dict[str, int]:
        """Tokens that each of ``text_encoders`` reads of a prompt."""
        return {name: encoder.config.max_position_embeddings for name, encoder in self.text_encoders.items()}

    def cut_words(self, prompt: str) -> str:
        """What of a prompt is beyond the tokens that its encoders take; "" where nothing is."""
        return cut_words(self.components["tokenizer"], prompt)

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that are not read to their last letter: its tokenizer does not know them."""
        return unknown_words(self.components["tokenizer"], prompt)

    def with_text_features(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with features of its captions, so that several networks with these text encoders need not each
        compute them; no gradient reaches the encoders."""
        if not self.text_encoders or all(name in batch for name in self.text_needs):
            return batch
        captions = batch["caption_tokens"][:-1] if "caption_tokens" in batch else batch["caption"]
        with torch.no_grad():
            return self.reader.text_features(captions) | batch

    def text(self, batch: Mapping[str, Any], dropped: Bool[Tensor, " b"] | None) -> dict[str, Tensor]:
        """Text features of a batch: its own, else of its captions; null where dropped."""
        if any(name not in batch for name in self.text_needs):
            tokens = batch.get("caption_tokens")
            if dropped is None:
                return self.reader.text_features(batch["caption"] if tokens is None else tokens[:-1])
            if dropped.device.type == "cpu" and tokens is None:
                prompts = zip(batch["caption"], dropped.tolist(), strict=True)
                return self.reader.text_features([NULL_PROMPT if drop else prompt for prompt, drop in prompts])
            # Which are dropped is known to the device alone, and is not worth waiting for.
            features = self.reader.text_features([*batch["caption"], NULL_PROMPT] if tokens is None else tokens)
            null = {name: value[-1:] for name, value in features.items()}
            features = {name: value[:-1] for name, value in features.items()}
        else:
            features, null = {name: batch[name] for name in self.text_needs}, None
            if dropped is None:
                return features
        null = null or self._null_features()
        return {
            name: torch.where(dropped.to(value.device).view(-1, *[1] * (value.dim() - 1)), null[name], value)
            for name, value in features.items()
        }

    @torch.no_grad()
    def _null_features(self) -> dict[str, Tensor]:
        """The null prompt's features, encoded once: where a cache has the others, the text encoders are frozen."""
        device = next(iter(self.text_encoders.values())).device
        if self._null is None or self._null["pooled"].device != device:
            # In full precision, as `encode` does by default, and whatever the first step that asks runs in.
            with torch.autocast(device.type, enabled=False):
                self._null = self.reader.text_features([NULL_PROMPT])
        return self._null


def join_conditions(*conditions: Condition) -> Condition:
    """Several batches of conditions as one."""
    return {name: torch.cat([condition[name] for condition in conditions]) for name in conditions[0]}


def drop_labels(labels: Int[Tensor, " b"], dropped: Bool[Tensor, " b"] | None, num_classes: int) -> Int[Tensor, " b"]:
    """Class labels with the dropped ones replaced by the null class, ``num_classes``."""
    return labels if dropped is None else torch.where(dropped.to(labels.device), num_classes, labels)


def example_tokens(text_encoder: Any, noisy: Tensor) -> Tensor:
    """Features per token of so many prompts as a text encoder makes them, with nothing in them."""
    config = text_encoder.config
    shape = (len(noisy), config.max_position_embeddings, config.hidden_size)
    return noisy.new_zeros(shape, dtype=text_encoder.dtype)


def few_step_levels(scheduler: Any, steps: int) -> dict[str, Any]:
    """The noise levels, before the shift, at which a flow's student takes so many steps, as ``set_timesteps`` and stock
    pipelines take them; nothing for other schedulers, which know their own.

    Told a number of steps alone, ``FlowMatchLCMScheduler`` spreads them down to a level of 0.001, from which the last
    one leads to 0: of two steps one would do nothing. These are evenly spaced, as ``NoiseSchedule.solver_times`` are.
    """
    return {"sigmas": np.linspace(1.0, 1 / steps, steps)} if isinstance(scheduler, FlowMatchLCMScheduler) else {}


def make_scheduler(beta_schedule: str, prediction_type: str | None, flow_shift: float = 1.0) -> SchedulerMixin:
    """Noise schedule of a model trained from scratch.

    v-prediction comes with a schedule that ends in pure noise (Lin et al. 2024): without it, what a model makes of a
    plain background depends on the noise's mean.

    Args:
        beta_schedule: "scaled_linear" (Stable Diffusion) or "linear" (DiT); flow matching has none.
        prediction_type: v_prediction when None; "flow" for flow matching.
        flow_shift: Flow matching: how far times are moved towards the noise.
    """
    prediction_type = prediction_type or "v_prediction"
    if prediction_type == FLOW:
        return FlowMatchEulerDiscreteScheduler(shift=flow_shift)  # type: ignore[return-value]
    scaled = beta_schedule == "scaled_linear"
    return DDIMScheduler(  # type: ignore[return-value]
        beta_schedule=beta_schedule,
        beta_start=0.00085 if scaled else 0.0001,
        beta_end=0.012 if scaled else 0.02,
        prediction_type=prediction_type,
        clip_sample=False,
        rescale_betas_zero_snr=prediction_type != "epsilon",
        timestep_spacing="trailing",
        steps_offset=1,  # what diffusers asks of Stable Diffusion folders; "trailing" does not use it
    )
