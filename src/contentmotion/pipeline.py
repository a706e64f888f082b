"""From a prompt to a video: ``ContentMotionPipeline`` (CMD Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from contentmotion.conditioning import NULL_PROMPT, encode_prompts, pooled_text_dim
from contentmotion.image_vae import decode_frames, encode_frames, vae_latent_channels, vae_scale_factor
from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.models.motion_dit import MotionDiT
from contentmotion.sampling import denoise, resolve_sampling

Generators = torch.Generator | list[torch.Generator] | None
OutputType = Literal["pil", "np", "pt", "latent"]


@dataclass
class ContentMotionPipelineOutput(BaseOutput):
    """Generated videos.

    Attributes:
        frames: One list of PIL images a video; or with ``output_type="np"`` an array (b, t, H, W, 3) in [0, 1], with
            "pt" a tensor (b, t, 3, H, W) in [0, 1], with "latent" the frames' scaled latents (b, t, c, h, w). None
            when the pipeline has no motion model.
        content_frame: The content frames they were made from, in the same form without the axis t.
    """

    frames: list[list[Image.Image]] | np.ndarray | Tensor | None
    content_frame: list[Image.Image] | np.ndarray | Tensor


class ContentMotionPipeline(DiffusionPipeline):
    """Text- or class-to-video generation through a content frame and a motion latent.

    The content half is a Stable Diffusion pipeline with its own component names, so a Stable Diffusion folder loads as
    it is, and whatever acts on its UNet or scheduler (LoRA weights, other schedulers) acts here.

    Args:
        vae: Image VAE, or None for models of pixels.
        text_encoder: CLIP text encoder, or None for class-conditional models.
        tokenizer: Its tokenizer, or None.
        unet: Content model: UNet2DConditionModel, or DiTTransformer2DModel for class-conditional models.
        scheduler: Any diffusers scheduler that takes an image UNet.
        autoencoder: Joins content frame and motion latent to frames.
        motion_transformer: Motion model.
        motion_scheduler: Its scheduler.
    """

    model_cpu_offload_seq = "text_encoder->unet->motion_transformer->autoencoder->vae"
    _optional_components = [
        "vae", "text_encoder", "tokenizer", "unet", "scheduler",
        "autoencoder", "motion_transformer", "motion_scheduler",
    ]  # fmt: skip
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        vae: AutoencoderKL | None = None,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        unet: UNet2DConditionModel | None = None,
        scheduler: KarrasDiffusionSchedulers | None = None,
        autoencoder: ContentMotionAutoencoder | None = None,
        motion_transformer: MotionDiT | None = None,
        motion_scheduler: KarrasDiffusionSchedulers | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            autoencoder=autoencoder,
            motion_transformer=motion_transformer,
            motion_scheduler=motion_scheduler,
        )

    def check_parts(self) -> None:
        """Checks that the networks were made for one another.

        Raises:
            ValueError: Two of them disagree about channels or text features.
        """
        channels = vae_latent_channels(self.vae)
        if self.autoencoder is not None and self.autoencoder.config.in_channels != channels:
            raise ValueError(
                f"the autoencoder takes frames of {self.autoencoder.config.in_channels} channels, "
                f"the image VAE makes {channels}"
            )
        if self.unet is not None and self.unet.config.in_channels != channels:
            raise ValueError(f"the content model takes {self.unet.config.in_channels} channels, not {channels}")
        if self.motion_transformer is not None and self.autoencoder is not None:
            motion, own = self.motion_transformer.config, self.autoencoder.config
            if (motion.motion_channels, motion.content_channels) != (own.motion_channels, own.in_channels):
                raise ValueError(
                    f"the motion model was made for {motion.motion_channels} motion and {motion.content_channels} "
                    f"content channels, the autoencoder has {own.motion_channels} and {own.in_channels}"
                )
        if self.motion_transformer is not None:
            wanted = self.motion_transformer.config.text_dim
            given = None if self.text_encoder is None else pooled_text_dim(self.text_encoder)
            if wanted != given:
                kinds = [f"text features of width {n}" if n else "class labels" for n in (wanted, given)]
                raise ValueError(f"the motion model was made for {kinds[0]}, this pipeline gives it {kinds[1]}")

    def enable_vae_slicing(self) -> None:
        """Decodes one frame at a time: the least memory."""
        self._frames_per_chunk = 1

    def disable_vae_slicing(self) -> None:
        """Decodes 16 frames at a time again."""
        self._frames_per_chunk = 16

    _frames_per_chunk = 16

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        class_labels: int | list[int] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int | None = None,
        motion_num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        motion_guidance_scale: float = 1.0,
        num_videos_per_prompt: int = 1,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Float[Tensor, "b c h w"] | None = None,
        motion_latents: Float[Tensor, "b D t s"] | None = None,
        content_latents: Float[Tensor, "b c h w"] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] = ("latents",),
    ) -> ContentMotionPipelineOutput | tuple:
        """Generates videos.

        Args:
            prompt: What to show, one prompt a video (text-conditional models).
            class_labels: Class ids (class-conditional models).
            negative_prompt: What to steer away from; needs guidance above 1.
            num_inference_steps: Steps of the content frame; when None 50, or 4 of a distilled model.
            motion_num_inference_steps: Steps of the motion; when None the same number (if both models are distilled,
                or neither is).
            guidance_scale: Guidance of the content frame; 1 is none. The papers' w is ``guidance_scale - 1``. When None
                4, or 1 of a distilled model.
            motion_guidance_scale: Guidance of the motion.
            num_videos_per_prompt: Videos per prompt.
            num_frames: Frames; the autoencoder's training length when None.
            height: Pixels; the training size when None.
            width: Pixels; the training size when None.
            eta: DDIM's eta; 0 is deterministic.
            generator: Source of the noise, or one per video: then a video does not depend on its batch.
            latents: Initial noise of the content frame.
            motion_latents: Initial noise of the motion.
            content_latents: Given content frames (scaled latents): only the motion is generated.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: Whether to return an output object rather than a tuple.
            callback_on_step_end: Called after each step, of content first, then of motion, the steps counted through.
            callback_on_step_end_tensor_inputs: Tensors it gets; only "latents" exists.

        Returns:
            Videos and the content frames they were made from.

        Raises:
            ValueError: Arguments that do not fit each other or the models.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = tuple(callback_on_step_end.tensor_inputs)
        prompts, labels = self._check_inputs(
            prompt, class_labels, negative_prompt, num_videos_per_prompt, output_type, generator,
            callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        sampling = resolve_sampling(
            self, num_inference_steps, motion_num_inference_steps, guidance_scale, motion_guidance_scale
        )
        names = callback_on_step_end_tensor_inputs

        def call_back(step: int, timestep: Tensor, latents: Tensor) -> Tensor:
            if callback_on_step_end is None:
                return latents
            changed = callback_on_step_end(self, step, timestep, {k: latents for k in names})
            return changed.pop("latents", latents)

        negatives = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else negative_prompt
        text = self._encode_text(prompts, negatives, num_videos_per_prompt) if prompts else None
        size = len(prompts or labels) * num_videos_per_prompt
        if labels:
            labels = [label for label in labels for _ in range(num_videos_per_prompt)]
        if content_latents is None:
            if self.unet is None:
                raise ValueError("this pipeline has no content model (unet): give content_latents")
            content_shape = self._content_shape(height, width)
        elif len(content_latents) == size:
            content_shape = tuple(content_latents.shape[1:])
        else:
            raise ValueError(f"{len(content_latents)} content frames for {size} videos")
        moving = self.motion_transformer is not None
        motion_shape = self._motion_shape(content_shape, num_frames) if moving else ()
        if content_latents is None:
            content = self._prepare(self.scheduler, (size, *content_shape), latents, generator, sampling.steps)
            content = self._denoise(
                "content", self.scheduler, content, sampling.guidance_scale, self._content_model(text, labels), eta,
                generator, call_back,
            )  # fmt: skip
        else:
            content = content_latents.to(self._execution_device, self._dtype)
        x = content[:, None]  # (b, 1 + t, c, h, w): the content frame and the frames, one pass through the VAE
        if moving:
            before = len(self.scheduler.timesteps) if content_latents is None else 0
            motion = self._prepare(
                self.motion_scheduler, (size, *motion_shape), motion_latents, generator, sampling.motion_steps
            )
            motion = self._denoise(
                "motion", self.motion_scheduler, motion, sampling.motion_guidance_scale,
                self._motion_model(content, text, labels), eta, generator,
                lambda step, timestep, latents: call_back(before + step, timestep, latents),
            )  # fmt: skip
            motion = self.autoencoder.standardize_motion(motion, inverse=True)
            x = torch.cat([x, self.autoencoder.decode(content, motion)], dim=1)
        if output_type != "latent":
            x = decode_frames(self.vae, x, self._frames_per_chunk)
        frames = self._postprocess(x[:, 1:], output_type) if moving else None
        images = self._postprocess(x[:, :1], output_type)
        images = [video[0] for video in images] if output_type == "pil" else images[:, 0]
        self.maybe_free_model_hooks()
        if not return_dict:
            return frames, images
        return ContentMotionPipelineOutput(frames=frames, content_frame=images)

    @torch.no_grad()
    def encode_video(
        self, frames: Float[Tensor, "b t 3 H W"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b D t s"]]:
        """Real frames in [-1, 1] to content frames (scaled latents) and motion latents (not standardised)."""
        x = encode_frames(self.vae, frames.to(self._execution_device))
        encoded = self.autoencoder.encode(x.to(self.autoencoder.dtype))
        return encoded.content, encoded.motion_latent

    @torch.no_grad()
    def decode(
        self, content: Float[Tensor, "b c h w"], motion_latent: Float[Tensor, "b D t s"]
    ) -> Float[Tensor, "b t 3 H W"]:
        """Content frames and motion latents (not standardised) to frames in [-1, 1]."""
        return decode_frames(self.vae, self.autoencoder.decode(content, motion_latent), self._frames_per_chunk)

    def _check_inputs(
        self,
        prompt: Any,
        class_labels: Any,
        negative_prompt: Any,
        num_videos_per_prompt: int,
        output_type: str,
        generator: Generators,
        tensor_inputs: tuple[str, ...],
    ) -> tuple[list[str], list[int]]:
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type must be pil, np, pt or latent, got {output_type!r}")
        if num_videos_per_prompt < 1:
            raise ValueError(f"num_videos_per_prompt must be positive, got {num_videos_per_prompt}")
        names = set(tensor_inputs) - set(self._callback_tensor_inputs)
        if names:
            raise ValueError(f"callback_on_step_end_tensor_inputs: only latents exists, got {', '.join(sorted(names))}")
        wanted, given = ("prompt", prompt) if self.text_encoder is not None else ("class_labels", class_labels)
        if given is None or (prompt is not None and class_labels is not None):
            kind = "text" if wanted == "prompt" else "class"
            raise ValueError(f"this model is {kind}-conditional: give {wanted} and nothing else")
        if wanted == "class_labels":
            labels = [class_labels] if isinstance(class_labels, int) else list(class_labels)
            num_classes = self._num_classes()
            if not labels or any(not 0 <= label < num_classes for label in labels):
                raise ValueError(f"class_labels must be between 0 and {num_classes - 1}, got {labels}")
            if negative_prompt is not None:
                raise ValueError("a class-conditional model takes no negative_prompt")
            prompts: list[str] = []
        else:
            prompts, labels = ([prompt] if isinstance(prompt, str) else list(prompt)), []
            if not prompts or not all(isinstance(p, str) for p in prompts):
                raise ValueError(f"prompt must be a text or a list of texts, got {prompt!r}")
            if isinstance(negative_prompt, list) and len(negative_prompt) != len(prompts):
                raise ValueError(f"{len(negative_prompt)} negative prompts for {len(prompts)} prompts")
        size = max(len(prompts), len(labels)) * num_videos_per_prompt
        if isinstance(generator, list) and len(generator) != size:
            raise ValueError(f"{len(generator)} generators for {size} videos")
        return prompts, labels

    def _num_classes(self) -> int:
        if self.motion_transformer is not None:
            return self.motion_transformer.config.num_classes
        return self.unet.config.num_embeds_ada_norm

    def _encode_text(
        self, prompts: list[str], negatives: list[str] | None, repeats: int
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Per-token and pooled features of the prompts, and those of the null prompts."""

        def encode(texts: list[str]) -> tuple[Tensor, Tensor]:
            features = encode_prompts(self.tokenizer, self.text_encoder, texts)
            hidden, pooled = (f.to(self._dtype).repeat_interleave(repeats, dim=0) for f in features)
            return hidden, pooled

        return encode(prompts), encode(negatives or [NULL_PROMPT] * len(prompts))

    @property
    def _dtype(self) -> torch.dtype:
        return (self.unet if self.unet is not None else self.motion_transformer).dtype

    def _content_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        factor = vae_scale_factor(self.vae)
        sides = []
        for i, (name, given) in enumerate((("height", height), ("width", width))):
            if self.autoencoder is not None:
                config = self.autoencoder.config
                default, multiple = (config.sample_height, config.sample_width)[i], config.patch_size
            else:
                size = self.unet.config.sample_size
                default, multiple = (size if isinstance(size, int) else size[i]), 1
            if self.motion_transformer is not None:
                motion = self.motion_transformer.config
                multiple = math.lcm(multiple * motion.patch_size, motion.content_patch_size)
            if hasattr(self.unet.config, "block_out_channels"):
                multiple = math.lcm(multiple, 2 ** (len(self.unet.config.block_out_channels) - 1))
            elif hasattr(self.unet.config, "patch_size"):
                multiple = math.lcm(multiple, self.unet.config.patch_size)
            given = given if given is not None else default * factor
            if given <= 0 or given % (factor * multiple):
                raise ValueError(f"{name} must be a multiple of {factor * multiple}, got {given}")
            sides.append(given // factor)
        return (self.unet.config.in_channels, *sides)

    def _motion_shape(self, content_shape: tuple[int, ...], num_frames: int | None) -> tuple[int, int, int]:
        own, patch = self.autoencoder.config, self.motion_transformer.config.patch_size
        frames: int = own.num_frames if num_frames is None else num_frames
        if frames <= 0 or frames % patch:
            raise ValueError(f"num_frames must be a multiple of {patch}, got {frames}")
        _, height, width = content_shape
        return (own.motion_channels, frames, height // own.patch_size + width // own.patch_size)

    def _prepare(
        self, scheduler: Any, shape: tuple[int, ...], noise: Tensor | None, generator: Generators, steps: int
    ) -> Tensor:
        """Sets the scheduler's timesteps; returns the initial noise."""
        scheduler.set_timesteps(steps, device=self._execution_device)
        if noise is None:
            noise = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self._dtype)
        elif tuple(noise.shape) != shape:
            raise ValueError(f"initial noise of shape {tuple(noise.shape)}, {shape} needed")
        return noise.to(self._execution_device, self._dtype) * scheduler.init_noise_sigma

    def _denoise(
        self,
        what: str,
        scheduler: Any,
        latents: Tensor,
        guidance_scale: float,
        model: Callable[[Tensor, Tensor, bool], Tensor],
        eta: float,
        generator: Generators,
        call_back: Callable[[int, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """One stage, with its progress bar."""
        self._progress_bar_config = getattr(self, "_progress_bar_config", {}) | {"desc": what}
        with self.progress_bar(total=len(scheduler.timesteps)) as progress:

            def on_step(step: int, timestep: Tensor, latents: Tensor) -> Tensor:
                progress.update()
                return call_back(step, timestep, latents)

            return denoise(
                scheduler, latents, guidance_scale, model, eta=eta, generator=generator, on_step=on_step
            )  # fmt: skip

    def _content_model(self, text: Any, labels: list[int]) -> Callable[[Tensor, Tensor, bool], Tensor]:
        def model(noisy: Tensor, t: Tensor, guided: bool) -> Tensor:
            if text is None:
                times = t.expand(len(noisy)).to(noisy.device)
                classes = self._classes(labels, guided, noisy.device)
                return self.unet(noisy, timestep=times, class_labels=classes).sample
            (hidden, _), (null, _) = text
            hidden = torch.cat([null, hidden]) if guided else hidden
            return self.unet(noisy, t, encoder_hidden_states=hidden).sample

        return model

    def _motion_model(self, content: Tensor, text: Any, labels: list[int]) -> Callable[[Tensor, Tensor, bool], Tensor]:
        def model(noisy: Tensor, t: Tensor, guided: bool) -> Tensor:
            frames = torch.cat([content, content]) if guided else content
            times = t.expand(len(noisy)).to(noisy.device)
            if text is None:
                classes = self._classes(labels, guided, noisy.device)
                return self.motion_transformer(noisy, times, frames, class_labels=classes)
            (_, pooled), (_, null) = text
            pooled = torch.cat([null, pooled]) if guided else pooled
            return self.motion_transformer(noisy, times, frames, pooled_text=pooled)

        return model

    def _classes(self, labels: list[int], guided: bool, device: torch.device) -> Tensor:
        null = [self._num_classes()] * len(labels) if guided else []
        return torch.tensor([*null, *labels], device=device)

    def _postprocess(self, x: Tensor, output_type: str) -> Any:
        """Pixels (b, t, 3, H, W) in [-1, 1] as asked for; latents as they are."""
        if output_type == "latent":
            return x
        unit = (x.float() / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return unit
        array = unit.permute(0, 1, 3, 4, 2).cpu().numpy()
        return array if output_type == "np" else [VaeImageProcessor.numpy_to_pil(video) for video in array]
