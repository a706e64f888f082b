"""What the pipelines share: prompts -> text features, noise -> samples, latents -> frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from contentmotion.loading import variant_in
from contentmotion.pipelines.folder import HUB_SETTINGS, INDEX, fetch, known_classes, read_index
from contentmotion.pipelines.interpolation import features_between
from contentmotion.pipelines.sampling import (
    FiniteValues,
    Sampling,
    denoise,
    noise_to,
    steps_taken,
    times_at_hand,
    warn_once,
)
from contentmotion.stages.image_vae import decode_frames
from contentmotion.stages.stage import Condition, Stage
from contentmotion.stages.text import NULL_PROMPT, TextFeatures
from contentmotion.video.pixels import to_bytes

Generators = torch.Generator | list[torch.Generator] | None
StepCallback = Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks | None
OutputType = Literal["pil", "np", "pt", "latent"]


class LatentPipeline(DiffusionPipeline):
    """A diffusion pipeline whose ``vae`` draws frames, whose ``text_encoder`` reads prompts."""

    default_guidance_scale: float
    _finite: FiniteValues  # of the call that runs
    _interrupt = False
    _guidance_scale = 1.0
    _num_timesteps = 0
    _frames_per_chunk = 16
    _text_features: TextFeatures | None = None

    @property
    def stages(self) -> dict[str, Stage]:
        """What denoises, by name: the objects that training and distillation call, too."""
        raise NotImplementedError

    @property
    def clip_shape(self) -> tuple[int, int, int]:
        """Frames, height and width (pixels) that the models were trained on."""
        raise NotImplementedError

    @property
    def frame_rate(self) -> float | None:
        """Frames per second of the clips that what moves was trained on; None: it does not say."""
        network = getattr(self, "motion_transformer", None) or self.unet
        return None if network is None else network.config.get("fps")

    def sample_shapes(
        self, num_frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> dict[str, tuple[int, ...]]:
        """What each of ``stages`` denoises for one clip, of the training size where a side is None.

        Raises:
            ValueError: A size that the models cannot make.
        """
        raise NotImplementedError

    def check_parts(self) -> None:
        """Raises ``ValueError`` where two networks were not made for one another."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **settings: Any) -> Self:
        """A pipeline by folder, hub id or name of a shipped model.

        Args:
            pretrained_model_name_or_path: The pipeline.
            **settings: As diffusers': components in place of the folder's; ``dtype``, ``variant``, ``device_map`` and
                so on; of hub ids ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

        Raises:
            ValueError: There is no such pipeline, or it names classes that are not known.
        """
        name, hub = str(pretrained_model_name_or_path), {n: settings.pop(n) for n in HUB_SETTINGS if n in settings}
        folder = fetch(name, settings.get("variant"), **hub)
        index = read_index(folder / INDEX)
        known_classes(name, index, cls, settings)
        variants = {variant_in(part) for part in folder.iterdir() if part.is_dir()} - {None}
        own = {"use_safetensors": True, "variant": variants.pop() if len(variants) == 1 else None}
        settings = own | cls.settings_of(folder, index, settings) | settings
        return super().from_pretrained(folder, **settings)

    @classmethod
    def settings_of(cls, folder: Path, index: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the constructor that a folder's index has, where it is another pipeline's. Raises ``ValueError``
        of a family that is not known, where its network is not ``given``."""
        return {}

    @property
    def guidance_scale(self) -> float:
        """Guidance of the sampling that runs, or ran last."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether it is guided."""
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """Its steps."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether ``_interrupt`` was set, which stops after the step that runs."""
        return self._interrupt

    def enable_vae_slicing(self) -> None:
        """Decodes one frame at a time: the least memory."""
        self._frames_per_chunk = 1

    def disable_vae_slicing(self) -> None:
        """Decodes 16 frames at a time again."""
        self._frames_per_chunk = 16

    def enable_text_cache(self) -> None:
        """Encodes each prompt once, however many calls it comes in; call it again when the text encoder changed."""
        self._text_features = TextFeatures()

    @property
    def _dtype(self) -> torch.dtype:
        return next(iter(self.stages.values())).dtype

    @property
    def _image_vae(self) -> Any:
        return self.vae

    def _check_inputs(
        self, prompt: Any, class_labels: Any, negative_prompt: Any, repeats: int, output_type: str,
        generator: Generators, tensor_inputs: tuple[str, ...], known_tensors: Sequence[str] = ("latents",),
    ) -> tuple[list[str], list[int]]:  # fmt: skip
        """Raises ``ValueError`` of a call's arguments that do not fit each other or the models, among them tensors that
        its callback cannot have; returns its prompts and its class labels."""
        if output_type not in get_args(OutputType):
            raise ValueError(f"output_type must be pil, np, pt or latent, got {output_type!r}")
        if repeats < 1:
            raise ValueError(f"num_videos_per_prompt must be positive, got {repeats}")
        if names := sorted(set(tensor_inputs) - set(known_tensors)):
            known = ", ".join(known_tensors)
            raise ValueError(f"callback_on_step_end_tensor_inputs: {', '.join(names)}: only {known} exists")
        network = getattr(getattr(self, "transformer", None) or self.unet, "config", {})
        if self.text_encoder is None and any(network.get(f"{name}_attention_dim") for name in ("cross", "joint")):
            raise ValueError(
                "this pipeline has no text encoder: a folder that shares parts with another one, as students do, is "
                "loaded by contentmotion.load_pipeline"
            )
        kind, wanted, given = "text", "prompt", prompt
        if self.text_encoder is None:
            kind, wanted, given = "class", "class_labels", class_labels
        if given is None or (prompt is not None and class_labels is not None):
            raise ValueError(f"this model is {kind}-conditional: give {wanted} and nothing else")
        prompts: list[str] = []
        labels: list[int] = []
        if kind == "class":
            labels = [class_labels] if isinstance(class_labels, int) else list(class_labels)
            if not labels or any(not 0 <= label < self.num_classes for label in labels):
                raise ValueError(f"class_labels must be between 0 and {self.num_classes - 1}, got {labels}")
            if negative_prompt is not None:
                raise ValueError("a class-conditional model takes no negative_prompt")
        else:
            prompts = [prompt] if isinstance(prompt, str) else list(prompt)
            if not prompts or not all(isinstance(p, str) for p in prompts):
                raise ValueError(f"prompt must be a text or a list of texts, got {prompt!r}")
            negatives = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt or ""]
            if not all(isinstance(p, str) for p in negatives):
                raise ValueError(f"negative_prompt must be a text or a list of texts, got {negative_prompt!r}")
            if isinstance(negative_prompt, list) and len(negatives) != len(prompts):
                raise ValueError(f"{len(negatives)} negative prompts for {len(prompts)} prompts")
        size = len(prompts or labels) * repeats
        if isinstance(generator, list) and len(generator) != size:
            raise ValueError(f"{len(generator)} generators for {size} videos")
        return prompts, labels

    def _encode_prompts(
        self, prompts: list[str], negatives: str | list[str] | None, repeats: int, guided: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """Features of the prompts and, where guidance needs them, of the null prompts, as ``Stage.encode`` takes
        them."""
        known, reader = self._text_features, next(iter(self.stages.values())).reader
        for text in (end for each in prompts for end in {getattr(each, "first", each), getattr(each, "second", each)}):
            if cut := reader.cut_words(text):
                most = max(reader.text_lengths.values())
                warn_once(f"the text encoder takes {most} tokens: of the prompt {text!r} it does not see {cut!r}")
            if unknown := reader.unknown_words(text):
                words = ", ".join(map(repr, unknown))
                # CLIP's pooled feature ends at an unknown token.
                after = "; motion follows what is in front of it alone" if "motion" in self.stages else ""
                said = f"of the prompt {text!r} the text encoder does not see all of {words}"
                warn_once(f"{said}: it has no token for it{after}")

        def encode(texts: list[str]) -> dict[str, Tensor]:
            # Without a cache in batches as they come, as the stock pipelines do: a batch's size decides how sums round.
            read = partial(known.encode, reader.text_features) if known else reader.text_features
            features = features_between(read, texts)
            return {k: v.to(self._dtype).repeat_interleave(repeats, dim=0) for k, v in features.items()}

        if not guided:
            return encode(prompts), None
        if not isinstance(negatives, list):
            negatives = [negatives or NULL_PROMPT] * len(prompts)
        return encode(prompts), encode(negatives)

    def _step_callback(
        self, callback: StepCallback, names: tuple[str, ...]
    ) -> tuple[Callable[[int, Tensor, Tensor], Tensor], tuple[str, ...]]:
        """The user's callback as ``denoise`` calls it, and the names of the tensors that it wants."""
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            names = tuple(callback.tensor_inputs)

        def call_back(step: int, timestep: Tensor, latents: Tensor) -> Tensor:
            if callback is None:
                return latents
            changed = callback(self, step, timestep, dict.fromkeys(names, latents))
            return changed.pop("latents", latents)

        return call_back, names

    def _sample(
        self, stage: Stage, shape: tuple[int, ...], noise: Tensor | None, condition: Condition, null: Condition | None,
        sampling: Sampling, *, eta: float, generator: Generators, call_back: Callable[[int, Tensor, Tensor], Tensor],
        start: Tensor | None = None, strength: float = 1.0,
    ) -> Tensor:  # fmt: skip
        """One stage from noise to samples, with its progress bar. Of given clean samples, ``start``, so much is drawn
        anew: 1 forgets them; below, they are noised and go through the last steps alone (Meng et al. 2022, SDEdit)."""
        scheduler, device, settings = stage.scheduler, self._execution_device, sampling.of(stage.name)
        steps = settings.pop("steps")
        with times_at_hand(scheduler, device):
            stage.set_timesteps(steps, shape, device)
            first = 0 if start is None else (steps - steps_taken(steps, strength)) * scheduler.order
            if noise is None:
                noise = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
            elif tuple(noise.shape) != shape:
                raise ValueError(f"initial noise of shape {tuple(noise.shape)}, {shape} needed")
            # In float32, for steps are small differences; flow matching's schedulers start from unit noise.
            noise = noise.to(device, torch.float32)
            if start is not None and strength < 1:
                latents = noise_to(scheduler, start.to(device, torch.float32), noise, first)
            else:
                latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
            self._progress_bar_config = getattr(self, "_progress_bar_config", {}) | {"desc": stage.name}
            self._guidance_scale = settings["guidance_scale"]
            self._num_timesteps = len(scheduler.timesteps) - first
            with self.progress_bar(total=self._num_timesteps) as progress:

                def on_step(step: int, timestep: Tensor, latents: Tensor) -> Tensor:
                    progress.update()
                    return call_back(step, timestep, latents)

                latents = denoise(
                    stage, latents, condition, null, **settings, first=first, eta=eta, generator=generator,
                    on_step=on_step, interrupted=lambda: self._interrupt,
                )  # fmt: skip
        self._finite.require(f"the {stage.name} model", latents)
        return latents.to(self._dtype)

    def _decode(self, x: Float[Tensor, "b t c h w"], output_type: OutputType) -> Tensor:
        """Scaled latents to pixels in [-1, 1], unless latents are asked for."""
        if output_type != "latent":
            x = decode_frames(self._image_vae, x, self._frames_per_chunk)
            self._finite.require("the image VAE", x)
        self._finite.now()
        return x

    def _postprocess(self, x: Float[Tensor, "b t c h w"], output_type: OutputType) -> Any:
        """Pixels in [-1, 1] as asked for; latents as they are."""
        if output_type == "latent":
            return x
        unit = (x.float() / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return unit
        if output_type == "np":
            return unit.permute(0, 1, 3, 4, 2).cpu().numpy()
        return [[Image.fromarray(frame) for frame in video] for video in to_bytes(unit)]
