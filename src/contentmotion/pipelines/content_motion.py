"""From a prompt to a video: ``ContentMotionPipeline`` (CMD Algorithm 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import BaseOutput
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.models.motion_dit import MotionDiT
from contentmotion.models.patch_vae import PatchVAE
from contentmotion.pipelines.base import Generators, LatentPipeline, OutputType, StepCallback, check_inputs
from contentmotion.pipelines.sampling import Sampling, require_finite, resolve_sampling
from contentmotion.stages.content import content_stage
from contentmotion.stages.image_vae import decode_frames, encode_frames, vae_latent_channels, vae_scale_factor
from contentmotion.stages.motion import MotionStage
from contentmotion.stages.stage import Stage


@dataclass
class ContentMotionPipelineOutput(BaseOutput):
    """Generated videos.

    Attributes:
        frames: One list of PIL images a video; or with ``output_type="np"`` an array (b, t, H, W, 3) in [0, 1], with
            "pt" a tensor (b, t, 3, H, W) in [0, 1], with "latent" the frames' scaled latents (b, t, c, h, w). None
            when the pipeline has no motion model.
        content_frame: The content frames they were made from, in the same form without the axis t; or None with
            ``decode_content_frame=False``.
    """

    frames: list[list[Image.Image]] | np.ndarray | Tensor | None
    content_frame: list[Image.Image] | np.ndarray | Tensor | None


class ContentMotionPipeline(LatentPipeline, StableDiffusionLoraLoaderMixin):
    """Text- or class-to-video generation through a content frame and a motion latent.

    The content half is a Stable Diffusion pipeline with its own component names, so a Stable Diffusion folder loads as
    it is, and whatever acts on its UNet or scheduler (``load_lora_weights``, other schedulers) acts here.

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

    def __init__(
        self,
        vae: AutoencoderKL | PatchVAE | None = None,
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
            given = self.stages["motion"].pooled_width
            if wanted != given:
                kinds = [f"text features of width {n}" if n else "class labels" for n in (wanted, given)]
                raise ValueError(f"the motion model was made for {kinds[0]}, this pipeline gives it {kinds[1]}")

    @property
    def stages(self) -> dict[str, Stage]:
        """Those of "content" and "motion" that this pipeline has."""
        stages: dict[str, Stage] = {}
        if self.unet is not None:
            stages["content"] = content_stage(self.components)
        if self.motion_transformer is not None:
            stages["motion"] = MotionStage(self.components)
        return stages

    @property
    def num_classes(self) -> int:
        """Classes of a class-conditional pipeline, the null class not counted."""
        if self.motion_transformer is not None:
            return self.motion_transformer.config.num_classes
        return self.unet.config.num_embeds_ada_norm

    @property
    def clip_shape(self) -> tuple[int, int, int]:
        """Frames, height and width (pixels) that the models were trained on."""
        own, factor = self.autoencoder.config, vae_scale_factor(self.vae)
        return own.num_frames, own.sample_height * factor, own.sample_width * factor

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
        decode_content_frame: bool = True,
        return_dict: bool = True,
        callback_on_step_end: StepCallback = None,
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
            decode_content_frame: Whether to decode the content frame besides; when not, the output's is None.
            return_dict: Whether to return an output object rather than a tuple.
            callback_on_step_end: Called after each step, of content first, then of motion, the steps counted through.
            callback_on_step_end_tensor_inputs: Tensors it gets; only "latents" exists.

        Returns:
            Videos and the content frames they were made from.

        Raises:
            ValueError: Arguments that do not fit each other or the models.
        """
        call_back, names = self._step_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        prompts, labels = check_inputs(
            self, prompt, class_labels, negative_prompt, num_videos_per_prompt, output_type, generator, names
        )
        sampling = resolve_sampling(
            self, num_inference_steps, motion_num_inference_steps, guidance_scale, motion_guidance_scale
        )
        if prompts:
            given, null = self._encode_prompts(prompts, negative_prompt, num_videos_per_prompt, sampling.guided)
        else:
            given, null = self._label_batches(labels, num_videos_per_prompt)
        size = len(prompts or labels) * num_videos_per_prompt
        shape = self._content_shape(content_latents, size, height, width)
        moving = self.motion_transformer is not None
        planes = self._motion_shape(shape, num_frames) if moving else ()  # what cannot be made is said before sampling
        shared: dict[str, Any] = {"eta": eta, "generator": generator}
        before = 0
        if content_latents is None:
            content = self._content(given, null, (size, *shape), latents, sampling, call_back=call_back, **shared)
            before = len(self.scheduler.timesteps)
        else:
            content = content_latents.to(self._execution_device, self._dtype)
        x = content[:, None]  # (b, 1 + t, c, h, w): the content frame and the frames, one pass through the VAE
        if moving:
            motion = self._motion(
                given, null, content, (size, *planes), motion_latents, sampling,
                call_back=lambda step, timestep, latents: call_back(before + step, timestep, latents), **shared,
            )  # fmt: skip
            frames = self.autoencoder.decode(content, motion)
            x = torch.cat([x, frames], dim=1) if decode_content_frame else frames
        output = self._finish(x, moving, decode_content_frame or not moving, output_type)
        return output if return_dict else (output.frames, output.content_frame)

    def _content(
        self, told: dict[str, Tensor], null: dict[str, Tensor] | None, shape: tuple[int, ...], noise: Tensor | None,
        sampling: Sampling, *, eta: float, generator: Generators, call_back: Any,
    ) -> Float[Tensor, "b c h w"]:  # fmt: skip
        """Content frames (scaled latents) of what ``Stage.encode`` takes; ``null`` is None where nothing is guided."""
        stage = self.stages["content"]
        return self._sample(
            stage, shape, noise, stage.encode(told), null and stage.encode(null), steps=sampling.steps,
            guidance_scale=sampling.guidance_scale, eta=eta, generator=generator, call_back=call_back,
        )  # fmt: skip

    def _motion(
        self, told: dict[str, Tensor], null: dict[str, Tensor] | None, content: Float[Tensor, "b c h w"],
        shape: tuple[int, ...], noise: Tensor | None, sampling: Sampling, *, eta: float, generator: Generators,
        call_back: Any,
    ) -> Float[Tensor, "b D t s"]:  # fmt: skip
        """Motion latents (not standardised) of content frames and of what ``Stage.encode`` takes."""
        stage, frame = MotionStage(self.components), {"content": content}
        motion = self._sample(
            stage, shape, noise, stage.encode(told | frame), null and stage.encode(null | frame),
            steps=sampling.motion_steps, guidance_scale=sampling.motion_guidance_scale, eta=eta, generator=generator,
            call_back=call_back,
        )  # fmt: skip
        return stage.standardize(motion, inverse=True)

    def _label_batches(self, labels: list[int], repeats: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The class labels and as many null classes, as ``Stage.encode`` takes them."""
        given = torch.tensor(labels, device=self._execution_device).repeat_interleave(repeats)
        return {"label": given}, {"label": torch.full_like(given, self.num_classes)}

    def _finish(
        self, x: Float[Tensor, "b t c h w"], moving: bool, with_content: bool, output_type: OutputType
    ) -> ContentMotionPipelineOutput:
        """Decodes latents: the content frame first, if it is among them, then the frames."""
        require_finite("the autoencoder", x)
        if output_type != "latent":
            x = decode_frames(self.vae, x, self._frames_per_chunk)
            require_finite("the image VAE", x)
        frames = self._postprocess(x[:, int(with_content) :], output_type) if moving else None
        images = None
        if with_content:
            images = self._postprocess(x[:, :1], output_type)
            images = [video[0] for video in images] if output_type == "pil" else images[:, 0]
        self.maybe_free_model_hooks()
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

    def _content_shape(self, given: Tensor | None, size: int, height: int | None, width: int | None) -> tuple[int, ...]:
        """Shape of a content frame: of those given, or of those to make."""
        if given is None and self.unet is None:
            raise ValueError("this pipeline has no content model (unet): give content_latents")
        if given is None:
            return self._sampled_shape(height, width)
        if len(given) != size:
            raise ValueError(f"{len(given)} content frames for {size} videos")
        return tuple(given.shape[1:])

    @property
    def _dtype(self) -> torch.dtype:
        return (self.unet if self.unet is not None else self.motion_transformer).dtype

    def sample_shapes(
        self, num_frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> dict[str, tuple[int, ...]]:
        content = self._sampled_shape(height, width)
        motion = {"motion": self._motion_shape(content, num_frames)} if self.motion_transformer is not None else {}
        return {"content": content} | motion

    def _sampled_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """Channels, height and width of the content frame's latents; the training size where a side is None.

        Raises:
            ValueError: A side that the models cannot make.
        """
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
            multiple = math.lcm(multiple, self.stages["content"].side_multiple)
            given = given if given is not None else default * factor
            if given <= 0 or given % (factor * multiple):
                raise ValueError(f"{name} must be a multiple of {factor * multiple}, got {given}")
            sides.append(given // factor)
        return (self.unet.config.in_channels, *sides)

    def _motion_shape(self, content_shape: tuple[int, ...], num_frames: int | None) -> tuple[int, int, int]:
        """Channels, frames and places of the motion latent that goes with a content frame.

        Raises:
            ValueError: A number of frames that the motion model cannot make.
        """
        own, patch = self.autoencoder.config, self.motion_transformer.config.patch_size
        frames: int = own.num_frames if num_frames is None else num_frames
        if frames <= 0 or frames % patch:
            raise ValueError(f"num_frames must be a multiple of {patch}, got {frames}")
        _, height, width = content_shape
        return (own.motion_channels, frames, height // own.patch_size + width // own.patch_size)
