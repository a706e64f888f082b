"""From a prompt to a video: ``ContentMotionPipeline`` (CMD Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.utils import BaseOutput
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.models.motion_dit import MotionDiT
from contentmotion.pipelines.base import Generators, LatentPipeline, OutputType, StepCallback, check_inputs
from contentmotion.pipelines.image import arguments_of, make_stock, pipeline_for, resized, settings_in, stock_settings
from contentmotion.pipelines.sampling import Sampling, require_finite, resolve_sampling
from contentmotion.stages.content import NETWORKS, content_stage, family_in
from contentmotion.stages.content.family import ContentStage
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


class ContentMotionPipeline(LatentPipeline):
    """Text- or class-to-video generation through a content frame and a motion latent.

    The content frame is made by a stock diffusers image pipeline (``image_pipeline``) of the same components, called
    for latents: a folder of a family in ``stages.content`` loads as it is, and what only that pipeline has
    (``load_lora_weights``, ``load_ip_adapter``, ``encode_prompt`` ...) is had here, too. Models that no stock pipeline
    has, of classes or of pixels, are sampled by the loop that also samples motion.

    Args:
        vae: Image VAE, or None for models of pixels.
        text_encoder: Text encoder, or None for class-conditional models.
        text_encoder_2: The family's second one.
        text_encoder_3: Its third.
        tokenizer: The first one's tokenizer.
        tokenizer_2: The second one's.
        tokenizer_3: The third one's.
        unet: Content model, where it is a UNet (or, of class-conditional models, DiTTransformer2DModel).
        transformer: Content model, where it is a transformer.
        scheduler: Any diffusers scheduler that the image pipeline takes.
        controlnet: Of ControlNet pipelines.
        image_encoder: Of IP-Adapters.
        feature_extractor: Of IP-Adapters.
        autoencoder: Joins content frame and motion latent to frames.
        motion_transformer: Motion model.
        motion_scheduler: Its scheduler.
        image_pipeline: The image pipeline's class and settings, see ``pipelines.image.stock_settings``; the family's
            own when None.
    """

    model_cpu_offload_seq = (
        "text_encoder->text_encoder_2->text_encoder_3->image_encoder->unet->transformer->motion_transformer->"
        "autoencoder->vae"
    )
    _optional_components = [
        "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3", "unet",
        "transformer", "scheduler", "controlnet", "image_encoder", "feature_extractor",
        "autoencoder", "motion_transformer", "motion_scheduler",
    ]  # fmt: skip
    _stock: DiffusionPipeline | None = None

    def __init__(
        self,
        vae: ModelMixin | None = None,
        text_encoder: PreTrainedModel | None = None,
        text_encoder_2: PreTrainedModel | None = None,
        text_encoder_3: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        tokenizer_2: PreTrainedTokenizerBase | None = None,
        tokenizer_3: PreTrainedTokenizerBase | None = None,
        unet: ModelMixin | None = None,
        transformer: ModelMixin | None = None,
        scheduler: SchedulerMixin | None = None,
        controlnet: ModelMixin | None = None,
        image_encoder: PreTrainedModel | None = None,
        feature_extractor: object | None = None,
        autoencoder: ContentMotionAutoencoder | None = None,
        motion_transformer: MotionDiT | None = None,
        motion_scheduler: SchedulerMixin | None = None,
        image_pipeline: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        values = locals()
        self.register_modules(**{name: values[name] for name in self._optional_components})
        self.register_to_config(image_pipeline=image_pipeline)

    @classmethod
    def from_image_pipeline(
        cls,
        image_pipe: DiffusionPipeline,
        autoencoder: ContentMotionAutoencoder,
        motion_transformer: MotionDiT | None = None,
        motion_scheduler: SchedulerMixin | None = None,
    ) -> Self:
        """A video pipeline whose content frames a given image pipeline makes, as it stands: with its ControlNet, its
        adapters, its scheduler.

        Args:
            image_pipe: A pipeline of diffusers, of a family in ``stages.content``.
            autoencoder: Made for its VAE's latents.
            motion_transformer: Made for this autoencoder and the family's text; None: content frames alone.
            motion_scheduler: The motion model's.

        Raises:
            ValueError: The pipeline is of no known family, or the models were not made for one another.
        """
        parts = {name: part for name, part in image_pipe.components.items() if part is not None}
        parts.pop("safety_checker", None)  # latents are not shown to it
        if foreign := sorted(parts.keys() - set(cls._optional_components)):
            raise ValueError(f"a {type(image_pipe).__name__} has a {foreign[0]}: no content stage has such a component")
        if not any(name in parts for name in NETWORKS):
            raise ValueError(f"a {type(image_pipe).__name__} has no {' and no '.join(NETWORKS)}")
        content_stage(parts)
        own = {"autoencoder": autoencoder, "motion_transformer": motion_transformer}
        pipe = cls(**parts, **own, motion_scheduler=motion_scheduler, image_pipeline=stock_settings(image_pipe))
        pipe._stock = image_pipe
        pipe.check_parts()
        return pipe

    @classmethod
    def settings_of(cls, folder: Path, index: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        if any((index.get(name) or [None])[0] and name not in given for name in NETWORKS):
            family_in(str(folder))
        return {} if index.get("_class_name") == cls.__name__ else {"image_pipeline": settings_in(index)}

    @property
    def image_pipeline(self) -> DiffusionPipeline | None:
        """The stock pipeline that makes the content frames, of this pipeline's components: what is replaced here is
        replaced there, and the other way round. None where this pipeline samples them itself."""
        if not any(getattr(self, name) is not None for name in NETWORKS):
            return None
        if self._stock is None:
            stock = content_stage(self.components).stock_pipeline
            if stock is not None:
                self._stock = make_stock(stock, self.config.get("image_pipeline"), self.components)
        else:  # its own loaders may have put something in place
            theirs = {n: part for n, part in self._stock.components.items() if n in self._optional_components}
            self.register_modules(**{n: part for n, part in theirs.items() if part is not getattr(self, n)})
            if content_stage(self.components).stock_pipeline is None:
                return None
        return self._stock

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in self._optional_components and self._stock is not None and name in self._stock.components:
            self._stock.register_modules(**{name: value})

    def __getattr__(self, name: str) -> Any:
        """What the image pipeline has and this one has not, such as its loaders."""
        if not name.startswith("_") and name not in self._optional_components and name != "image_pipeline":
            stock = self.image_pipeline
            if stock is not None and hasattr(type(stock), name):
                return getattr(stock, name)
        return super().__getattr__(name)

    @property
    def _network(self) -> Any:
        """The content model, where there is one."""
        return next((network for name in NETWORKS if (network := getattr(self, name)) is not None), None)

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
        if self._network is not None:
            taken = content_stage(self.components).latent_channels
            if taken != channels:
                raise ValueError(f"the content model takes {taken} channels, not {channels}")
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
        if self._network is not None:
            stages["content"] = content_stage(self.components)
        if self.motion_transformer is not None:
            stages["motion"] = MotionStage(self.components)
        return stages

    @property
    def num_classes(self) -> int:
        """Classes of a class-conditional pipeline, the null class not counted."""
        if self.motion_transformer is not None:
            return self.motion_transformer.config.num_classes
        return self._network.config.num_embeds_ada_norm

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
        motion_callback_on_step_end: StepCallback = None,
        **image_arguments: Any,
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
            callback_on_step_end: Called after each step of the content frame, as diffusers' image pipelines call it.
                Where it sets ``_interrupt``, no motion is made: the output's ``frames`` are None.
            callback_on_step_end_tensor_inputs: Tensors it gets, of those that the image pipeline lets it have.
            motion_callback_on_step_end: Called after each step of the motion, with "latents".
            **image_arguments: What else the image pipeline takes. With ``image`` (and ``strength``) or ``mask_image``
                it is the family's image-to-image or inpainting pipeline. ``prompt_embeds`` are for the content frame;
                the motion model reads the prompt.

        Returns:
            Videos and the content frames they were made from.

        Raises:
            ValueError: Arguments that do not fit each other or the models.
            TypeError: An argument that neither this pipeline nor the image pipeline takes.
        """
        self._interrupt = False
        stock = self._image_pipeline_for(image_arguments, content_latents, eta, latents)
        call_back, names = self._step_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        on_motion_step, _ = self._step_callback(motion_callback_on_step_end, ("latents",))
        prompts, labels = check_inputs(
            self, prompt, class_labels, negative_prompt, num_videos_per_prompt, output_type, generator, names,
            getattr(stock, "_callback_tensor_inputs", ("latents",)),
        )  # fmt: skip
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
        if content_latents is not None:
            content = content_latents.to(self._execution_device, self._dtype)
        elif stock is not None:
            said = {
                "prompt": prompt,
                "negative_prompt": negative_prompt,
                "num_images_per_prompt": num_videos_per_prompt,
            }
            content = self._stock_content(
                stock, given, null, (size, *shape), latents, sampling, said, image_arguments,
                callback=callback_on_step_end, names=names, **shared,
            )  # fmt: skip
        else:
            content = self._content(given, null, (size, *shape), latents, sampling, call_back=call_back, **shared)
        moving = moving and not self._interrupt
        x = content[:, None]  # (b, 1 + t, c, h, w): the content frame and the frames, one pass through the VAE
        if moving:
            motion = self._motion(
                given, null, content, (size, *planes), motion_latents, sampling, call_back=on_motion_step, **shared
            )
            frames = self.autoencoder.decode(content, motion)
            x = torch.cat([x, frames], dim=1) if decode_content_frame else frames
        output = self._finish(x, moving, decode_content_frame or not moving, output_type)
        return output if return_dict else (output.frames, output.content_frame)

    def _image_pipeline_for(
        self, arguments: Mapping[str, Any], content_latents: Tensor | None, eta: float, noise: Tensor | None
    ) -> DiffusionPipeline | None:
        """The stock pipeline that makes the content frames of such a call; None: none does.

        Raises:
            TypeError: An argument that it does not take, or that there is no use for.
        """
        stock = self.image_pipeline if content_latents is None else None
        if "num_images_per_prompt" in arguments:
            raise TypeError("num_images_per_prompt: say num_videos_per_prompt")
        if stock is None and arguments:
            reason = "with content_latents" if content_latents is not None else "for such a model"
            raise TypeError(f"{', '.join(sorted(arguments))}: {reason} no image pipeline is called that could take it")
        if stock is None:
            return None
        own = {"eta": eta or None, "latents": noise}
        return pipeline_for(stock, set(arguments) | {name for name, value in own.items() if value is not None})

    def _stock_content(
        self, stock: DiffusionPipeline, told: dict[str, Tensor], null: dict[str, Tensor] | None,
        shape: tuple[int, ...], noise: Tensor | None, sampling: Sampling, said: Mapping[str, Any],
        arguments: Mapping[str, Any], *, eta: float, generator: Generators, callback: StepCallback,
        names: tuple[str, ...],
    ) -> Float[Tensor, "b c h w"]:  # fmt: skip
        """Content frames (scaled latents) by a stock pipeline.

        Args:
            stock: See ``_image_pipeline_for``.
            told: Text features of the prompts, one item a video.
            null: Those of the negative prompts; None where nothing is guided.
            shape: Of all content frames.
            noise: Initial noise, or None.
            sampling: Steps and guidance.
            said: The prompts as they came, for a stock pipeline that has to encode them itself.
            arguments: What else it gets.
            eta: DDIM's.
            generator: Source of the noise, or one per video.
            callback: The caller's, or None.
            names: Tensors that the callback gets.
        """
        stage, taken, factor = content_stage(self.components), arguments_of(stock), vae_scale_factor(self.vae)
        height, width = shape[2] * factor, shape[3] * factor
        if noise is not None and tuple(noise.shape) != shape:
            raise ValueError(f"initial noise of shape {tuple(noise.shape)}, {shape} needed")

        def on_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            self._guidance_scale, self._num_timesteps = pipe._guidance_scale, pipe.num_timesteps
            changed = tensors if callback is None else callback(self, step, timestep, tensors)
            pipe._guidance_scale, pipe._interrupt = self._guidance_scale, self._interrupt
            return changed

        call = {
            "num_inference_steps": sampling.steps, "generator": generator,
            "guidance_scale": stage.stock_guidance(sampling.guidance_scale),
            "output_type": "latent", "callback_on_step_end": on_step,
            "callback_on_step_end_tensor_inputs": list(names),
        }  # fmt: skip
        optional = {"height": height, "width": width, "eta": eta, **stage.stock_arguments}
        if noise is not None:
            optional["latents"] = noise.to(self._execution_device, self._dtype)
        call |= {name: value for name, value in optional.items() if name in taken}
        if self._encodes_itself(stock, stage, said, arguments):
            left_out = [name for name in ("prompt", "negative_prompt") if f"{name}_embeds" in arguments]
            text = {n: value for n, value in said.items() if value is not None and n not in left_out}
        else:
            text = stage.stock_text(told, null if sampling.guidance_scale > 1 else None)
        if foreign := sorted(text.keys() - taken):
            raise TypeError(f"a {type(stock).__name__} takes no {foreign[0]}")
        if "height" not in taken:
            arguments = {
                name: resized(stock, value, height, width) if name in ("image", "mask_image") else value
                for name, value in arguments.items()
            }
        stock.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}) | {"desc": stage.name})
        latents = stage.from_stock(stock(**call | text | dict(arguments)).images).to(self._dtype)
        if tuple(latents.shape) != shape:
            raise ValueError(f"the image pipeline made latents of shape {tuple(latents.shape)}, {shape} needed")
        require_finite(f"the {stage.name} model", latents)
        return latents

    @staticmethod
    def _encodes_itself(stock: Any, stage: ContentStage, said: Mapping[str, Any], arguments: Mapping[str, Any]) -> bool:
        """Whether the stock pipeline has to read the prompts: its arguments, its settings or its tokenizer may change
        what they mean. If not it gets features, which the motion model and the text cache then share."""
        prompts, negative = said["prompt"], said["negative_prompt"]
        convert = getattr(stock, "maybe_convert_prompt", lambda prompt, tokenizer: prompt)  # textual inversion
        return bool(
            arguments
            or negative is not None
            and "" in ([negative] if isinstance(negative, str) else negative)
            or not stage.hears_as_stock(stock.config)
            or convert(prompts, stock.tokenizer) != prompts
        )

    def _content(
        self, told: dict[str, Tensor], null: dict[str, Tensor] | None, shape: tuple[int, ...], noise: Tensor | None,
        sampling: Sampling, *, eta: float, generator: Generators, call_back: Any,
    ) -> Float[Tensor, "b c h w"]:  # fmt: skip
        """Content frames of models that no stock pipeline has, of what ``Stage.encode`` takes; ``null`` is None where
        nothing is guided."""
        stage = content_stage(self.components)
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
        if given is None and self._network is None:
            raise ValueError("this pipeline has no content model: give content_latents")
        if given is None:
            return self._sampled_shape(height, width)
        if len(given) != size:
            raise ValueError(f"{len(given)} content frames for {size} videos")
        return tuple(given.shape[1:])

    @property
    def _dtype(self) -> torch.dtype:
        return (self._network if self._network is not None else self.motion_transformer).dtype

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
                size = self._network.config.get("sample_size")
                if size is None and given is None:
                    raise ValueError(f"a {type(self._network).__name__} is of no size by itself: give height and width")
                default, multiple = (size[i] if isinstance(size, list | tuple) else size or 0), 1
            if self.motion_transformer is not None:
                motion = self.motion_transformer.config
                multiple = math.lcm(multiple * motion.patch_size, motion.content_patch_size)
            multiple = math.lcm(multiple, self.stages["content"].side_multiple)
            given = given if given is not None else default * factor
            if given <= 0 or given % (factor * multiple):
                raise ValueError(f"{name} must be a multiple of {factor * multiple}, got {given}")
            sides.append(given // factor)
        return (content_stage(self.components).latent_channels, *sides)

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
