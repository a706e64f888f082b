"""From a prompt to a video: ``ContentMotionPipeline`` (CMD Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import isfunction
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from contentmotion.diffusion import Interval, slerp
from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.models.motion_dit import MotionDiT
from contentmotion.pipelines.base import Generators, LatentPipeline, OutputType, StepCallback
from contentmotion.pipelines.image import (
    arguments_of,
    guided_between,
    make_stock,
    pipeline_for,
    resized,
    stock_class,
    stock_settings,
    takes,
)
from contentmotion.pipelines.inputs import Fit, as_pictures, as_videos, for_each, read_schedule
from contentmotion.pipelines.interpolation import MotionBetween, PromptBetween
from contentmotion.pipelines.long_video import Clips, LongMotionStage, stack_conditions
from contentmotion.pipelines.sampling import (
    FiniteValues,
    Sampling,
    is_distilled,
    resolve_sampling,
    times_at_hand,
    warn_once,
)
from contentmotion.stages.content import NETWORKS, content_stage, family_in
from contentmotion.stages.content.family import ContentStage
from contentmotion.stages.image_vae import decode_frames, encode_frames, vae_latent_channels, vae_scale_factor
from contentmotion.stages.motion import MotionStage
from contentmotion.stages.stage import Condition, Stage, few_step_levels

REDRAWN = 0.5  # strength by which a given picture is drawn anew, where no other is given


@dataclass(frozen=True)
class Scene:
    """What the networks are told about some of a video's clips.

    Attributes:
        told: Text features or labels, one item a video, as ``Stage.encode`` takes them.
        null: The same of negative prompts or null classes; None where nothing is guided.
        said: The prompts as they came, for a stock pipeline that has to encode them itself.
    """

    told: dict[str, Tensor]
    null: dict[str, Tensor] | None
    said: dict[str, Any]

    def conditions(self, stage: Stage, **more: Tensor) -> tuple[Condition, Condition | None]:
        """What a stage's network is told, of this scene and of what there is more; and the same of ``null``."""
        return stage.encode(self.told | more), self.null and stage.encode(self.null | more)

    def one_by_one(self) -> Self:
        """The same with a prompt for each video: where there is a picture for each."""
        repeats = self.said["num_images_per_prompt"]
        lists = {name: self.said[name] for name in ("prompt", "negative_prompt")}
        said = {name: texts and [text for text in texts for _ in range(repeats)] for name, texts in lists.items()}
        return replace(self, said=said | {"num_images_per_prompt": 1})


@dataclass
class ContentMotionPipelineOutput(BaseOutput):
    """Generated videos.

    Attributes:
        frames: One list of PIL images a video; or with ``output_type="np"`` an array (b, t, H, W, 3) in [0, 1], with
            "pt" a tensor (b, t, 3, H, W) in [0, 1], with "latent" the frames' scaled latents (b, t, c, h, w). None
            when the pipeline has no motion model.
        content_frame: The content frames they were made from, in the same form without the axis t; or None with
            ``decode_content_frame=False``.
        content_latents: Those of the first clip (b, c, h, w), as the call's ``content_latents`` takes them.
    """

    frames: list[list[Image.Image]] | np.ndarray | Tensor | None
    content_frame: list[Image.Image] | np.ndarray | Tensor | None
    content_latents: Tensor | None = None


class ContentMotionPipeline(LatentPipeline):
    """Text- or class-to-video generation through a content frame and a motion latent.

    The content frame is made by a stock diffusers image pipeline (``image_pipeline``) of the same components, called
    for latents: a folder of a family in ``stages.content`` loads as it is, and what only that pipeline has
    (``load_lora_weights``, ``load_ip_adapter``, ``encode_prompt`` ...) is had here, too. Models that no stock pipeline
    has, of classes or of pixels, are sampled by the loop that also samples motion. Components that are not explained
    here are the image pipeline's.

    Args:
        vae: Image VAE, or None for models of pixels.
        text_encoder: Text encoder, or None for class-conditional models.
        unet: Content model, where it is a UNet (or, of class-conditional models, DiTTransformer2DModel).
        transformer: Content model, where it is a transformer.
        scheduler: Any diffusers scheduler that the image pipeline takes.
        autoencoder: Joins content frame and motion latent to frames.
        motion_transformer: Motion model.
        motion_scheduler: Its scheduler.
        image_pipeline: The image pipeline's class and settings, see ``pipelines.image.stock_settings``; the family's
            own when None.
        guidance_scale: What its content frames are guided with where a call says nothing; 4 when None.
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
        tokenizer: PreTrainedTokenizerBase | None = None,
        unet: ModelMixin | None = None,
        scheduler: SchedulerMixin | None = None,
        autoencoder: ContentMotionAutoencoder | None = None,
        motion_transformer: MotionDiT | None = None,
        motion_scheduler: SchedulerMixin | None = None,
        text_encoder_2: PreTrainedModel | None = None,
        text_encoder_3: PreTrainedModel | None = None,
        tokenizer_2: PreTrainedTokenizerBase | None = None,
        tokenizer_3: PreTrainedTokenizerBase | None = None,
        transformer: ModelMixin | None = None,
        controlnet: ModelMixin | None = None,
        image_encoder: PreTrainedModel | None = None,
        feature_extractor: object | None = None,
        image_pipeline: dict[str, Any] | None = None,
        guidance_scale: float | None = None,
    ) -> None:
        super().__init__()
        values = locals()
        self.register_modules(**{name: values[name] for name in self._optional_components})
        if guidance_scale is not None and not (isinstance(guidance_scale, int | float) and 0 <= guidance_scale < 1e6):
            raise ValueError(f"guidance_scale must be a number from 0, got {guidance_scale!r}")
        self.register_to_config(image_pipeline=image_pipeline, guidance_scale=guidance_scale)

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
        settings = stock_settings(type(image_pipe), image_pipe.config)
        pipe = cls(**parts, **own, motion_scheduler=motion_scheduler, image_pipeline=settings)
        pipe._stock = image_pipe
        pipe.check_parts()
        return pipe

    @classmethod
    def settings_of(cls, folder: Path, index: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        if any((index.get(name) or [None])[0] and name not in given for name in NETWORKS):
            family_in(str(folder))
        if index.get("_class_name") == cls.__name__:
            return {}
        stock = stock_class(index.get("_class_name"))
        return {"image_pipeline": stock and stock_settings(stock, index)}

    @property
    def default_guidance_scale(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See ``guidance_scale`` of the class."""
        own = self.config.get("guidance_scale")
        return 4.0 if own is None else own

    @property
    def image_pipeline(self) -> DiffusionPipeline | None:
        """The stock pipeline that makes the content frames, of this pipeline's components: what is replaced here is
        replaced there, and the other way round. None where this pipeline samples them itself."""
        if self._network is None:
            return None
        if self._stock is not None:  # its own loaders may have put something in place
            theirs = {n: part for n, part in self._stock.components.items() if n in self._optional_components}
            self.register_modules(**{n: part for n, part in theirs.items() if part is not getattr(self, n)})
        stock = content_stage(self.components).stock_pipeline
        if stock is None:
            return None
        if self._stock is None:
            self._stock = make_stock(stock, self.config.get("image_pipeline"), self.components)
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
            if stock is None and self._network is not None:  # of pixels: the family's loaders, on this one's networks
                part = getattr(content_stage(self.components).stock, name, None)
                if part is not None:
                    return part.__get__(self) if isfunction(part) else part
        return super().__getattr__(name)

    @property
    def _network(self) -> Any:
        """The content model, where there is one."""
        return next((network for name in NETWORKS if (network := getattr(self, name)) is not None), None)

    def check_parts(self) -> None:
        """Raises ``ValueError`` where two of the networks disagree about channels or text features."""
        channels, autoencoder, motion = vae_latent_channels(self.vae), self.autoencoder, self.motion_transformer
        if autoencoder is not None and autoencoder.config.in_channels != channels:
            raise ValueError(
                f"the autoencoder takes frames of {autoencoder.config.in_channels} channels, "
                f"the image VAE makes {channels}"
            )
        if self._network is not None:
            taken = content_stage(self.components).latent_channels
            if taken != channels:
                raise ValueError(f"the content model takes {taken} channels, not {channels}")
        if motion is None:
            return
        if autoencoder is not None:
            wanted = (motion.config.motion_channels, motion.config.content_channels)
            given = (autoencoder.config.motion_channels, autoencoder.config.in_channels)
            if wanted != given:
                raise ValueError(
                    f"the motion model was made for {wanted[0]} motion and {wanted[1]} content channels, the "
                    f"autoencoder has {given[0]} and {given[1]}"
                )
        wanted, given = motion.config.text_dim, self.stages["motion"].reader.pooled_width
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
        prompt: str | list[str] | Mapping[int, str] | None = None,
        class_labels: int | list[int] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int | None = None,
        motion_num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        motion_guidance_scale: float = 1.0,
        guidance_interval: Interval | None = None,
        motion_guidance_interval: Interval | None = None,
        guidance_rescale: float = 0.0,
        motion_guidance_rescale: float = 0.0,
        num_videos_per_prompt: int = 1,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Float[Tensor, "b c h w"] | None = None,
        motion_latents: Float[Tensor, "b D t s"] | None = None,
        content_latents: Float[Tensor, "b c h w"] | None = None,
        image: Any = None,
        reference_image: Any = None,
        video: Any = None,
        motion_video: Any = None,
        strength: float | None = None,
        motion_strength: float | None = None,
        fit: Fit = "crop",
        clip_frames: int | None = None,
        loop: bool = False,
        output_type: OutputType = "pil",
        decode_content_frame: bool = True,
        return_dict: bool = True,
        callback_on_step_end: StepCallback = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] = ("latents",),
        motion_callback_on_step_end: StepCallback = None,
        callback_on_frames: Callable[[Float[Tensor, "b t 3 H W"]], object] | None = None,
        **image_arguments: Any,
    ) -> ContentMotionPipelineOutput | tuple:
        """Generates videos.

        Args:
            prompt: What to show, one prompt a video (text-conditional models). ``{0: "a cat", 32: "a dog"}`` is one
                video whose prompt changes at these frames; ``pipelines.interpolation.prompts_between`` gives prompts
                between two.
            class_labels: Class ids (class-conditional models).
            negative_prompt: What to steer away from; needs guidance above 1.
            num_inference_steps: Steps of the content frame; when None 50, or 4 of a distilled model.
            motion_num_inference_steps: Steps of the motion; when None the same number (if both models are distilled,
                or neither is).
            guidance_scale: Guidance of the content frame; 1 is none. The papers' w is ``guidance_scale - 1``. When None
                4, or 1 of a distilled model.
            motion_guidance_scale: Guidance of the motion.
            guidance_interval: Two times of the noise schedule, 0 being the picture, such as ``(400, 900)``: the
                content frame is guided between them alone; the other steps cost one network pass.
            motion_guidance_interval: The same of the motion.
            guidance_rescale: How far contrast that guidance adds to the content frame is taken back, from 0 to 1; of
                stock pipelines, where they have it.
            motion_guidance_rescale: The same of the motion.
            num_videos_per_prompt: Videos per prompt.
            num_frames: Frames; the autoencoder's training length when None. A longer video is made clip by clip: where
                the content frame is a clip's first one, each clip goes on from the last frame of the one before; else
                all share it, and their motion overlaps (``pipelines.long_video``).
            height: Pixels; the training size when None.
            width: Pixels; the training size when None.
            eta: DDIM's eta; 0 is deterministic.
            generator: Source of the noise, or one per video: then a video does not depend on its batch.
            latents: Initial noise of the content frame.
            motion_latents: Initial noise of the motion.
            content_latents: Given content frames (scaled latents): only the motion is generated.
            image: Pictures to animate, one or one a video: paths, PIL images, arrays or tensors (see
                ``pipelines.inputs``). A model whose content frame is a frame of the clip shows them as that frame. With
                ``mask_image``, or to a ControlNet, it is the image pipeline's own argument.
            reference_image: PIL images that the content frame imitates, as the prompt says, for an image pipeline whose
                own ``image`` they are: FLUX.2 [klein]'s.
            video: A video to edit, or one a video: its content frame is re-drawn by ``strength``, its motion by
                ``motion_strength``. Both 0: the autoencoder's reconstruction.
            motion_video: A video whose motion is taken, whatever it shows; or what is between two videos' motions
                (``pipelines.interpolation.MotionBetween``).
            strength: How much of the given content frame is drawn anew: 0 keeps it, 1 forgets it; between, pictures go
                through the family's image-to-image pipeline, where diffusers has one. When None 0 of
                ``content_latents``, of ``image`` where the content frame is a frame of the clip, and of ``video`` where
                ``motion_strength`` is given; else 0.5.
            motion_strength: The same of the given motion; 0 when None.
            fit: How pictures and videos of another shape are fitted: "crop" cuts their middle out, "pad" adds bars.
            clip_frames: Frames of one clip; the autoencoder's training length when None.
            loop: Whether the last frame is followed by the first.
            output_type: "pil", "np", "pt" or "latent".
            decode_content_frame: Whether to decode the content frame besides; when not, the output's is None.
            return_dict: Whether to return an output object rather than a tuple.
            callback_on_step_end: Called after each step of the content frame, as diffusers' image pipelines call it.
                Where it sets ``_interrupt``, no motion is made: the output's ``frames`` are None.
            callback_on_step_end_tensor_inputs: Tensors it gets, of those that the image pipeline lets it have.
            motion_callback_on_step_end: Called after each step of the motion, with "latents".
            callback_on_frames: Gets the frames in order, in [0, 1], some at a time, as soon as they are drawn. The
                output has none then, and memory does not grow with the video's length.
            **image_arguments: What else the image pipeline takes. With ``mask_image`` it is the family's inpainting
                pipeline. ``prompt_embeds`` are for the content frame; the motion model reads the prompt.

        Returns:
            Videos and the content frames they were made from.

        Raises:
            ValueError: Arguments that do not fit each other or the models.
            TypeError: An argument that neither this pipeline nor the image pipeline takes.
        """
        self._interrupt, self._finite = False, FiniteValues()
        if image is not None and self._is_for_stock(image_arguments):
            image_arguments |= {"image": image} | ({} if strength is None else {"strength": strength})
            image = strength = None
        if reference_image is not None:
            if image is not None or self._network is None or not content_stage(self.components).takes_references:
                raise ValueError("reference_image: it goes without image, to an image model that imitates pictures")
            image_arguments |= {"image": reference_image}
        strength = self._resolve_strength(content_latents, image, video, motion_video, strength, motion_strength)
        redraws = image is not None and 0 < strength < 1 and takes(self.image_pipeline, ("image", "strength"))
        if redraws:
            image_arguments, image = image_arguments | {"image": image, "strength": strength}, None
        kept = "" if strength == 1 or redraws else "where the content frame is given"
        kept = "with content_latents" if content_latents is not None and kept else kept
        stock = self.image_pipeline_for(image_arguments, kept, eta, latents, guidance_rescale, guidance_interval)
        call_back, names = self._step_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        on_motion_step, _ = self._step_callback(motion_callback_on_step_end, ("latents",))
        changes, texts = read_schedule(prompt)
        prompts, labels = self._check_inputs(
            prompt if texts is None else texts[:1], class_labels, negative_prompt, num_videos_per_prompt, output_type,
            generator, names, getattr(stock, "_callback_tensor_inputs", ("latents",)),
        )  # fmt: skip
        sampling = resolve_sampling(
            self, num_inference_steps, motion_num_inference_steps, guidance_scale, motion_guidance_scale,
            guidance_interval, motion_guidance_interval, guidance_rescale, motion_guidance_rescale,
        )  # fmt: skip
        size = len(prompts or labels) * num_videos_per_prompt
        clips = self.clips(num_frames, clip_frames, loop)
        if clips.chained and motion_latents is not None:
            raise ValueError("motion_latents are of one clip: a longer video of this model draws its own")
        shape = self._content_shape(size, content_latents, height, width)
        known, motions = self._given(clips, shape, content_latents, image, video, motion_video, fit)
        if clips.num_frames:  # what cannot be made is said before sampling
            self._motion_shape(shape[1:], clips.num_frames)
            self._motion_shape(shape[1:], clips.length, "clip_frames")
        scenes = self._scenes(texts or prompts, labels, size, negative_prompt, num_videos_per_prompt, sampling)
        if redraws:
            scenes, image_arguments = self._with_pictures(scenes, image_arguments, shape, fit, sampling.steps)
        scenes = self._scenes_of_clips(scenes, clips, changes, texts)
        settings: dict[str, Any] = {"sampling": sampling, "eta": eta, "generator": generator}

        def draw(scene: Scene, noise: Tensor | None, content: Tensor | None) -> Tensor:
            if content is not None and strength == 0:
                return content.to(self._execution_device, self._dtype)
            if stock is not None and (content is None or strength == 1):
                return self._stock_content(
                    stock, scene, shape, noise, image_arguments, callback=callback_on_step_end, names=names, **settings
                )
            stage = self.stages["content"]
            return self._sample(
                stage, shape, noise, *scene.conditions(stage), call_back=call_back, start=content, strength=strength,
                **settings,
            )  # fmt: skip

        contents = self._contents(draw, scenes, clips, known, shape, latents, generator)
        if self._interrupt:
            clips = Clips(0, 0)
        settings_of_motion = settings | {"call_back": on_motion_step, "strength": motion_strength or 0.0}
        pieces = self._frames(scenes, clips, contents, motions, motion_latents, settings_of_motion)
        output = self._finish(contents[0], pieces, decode_content_frame, output_type, callback_on_frames)
        return output if return_dict else (output.frames, output.content_frame)

    def _is_for_stock(self, arguments: Mapping[str, Any]) -> bool:
        """Whether ``image`` is the image pipeline's argument, beside these: to inpaint, or to be followed."""
        stock = self.image_pipeline
        if stock is None:
            return False
        # A family's own text-to-image pipeline needs none: FLUX.2's would only imitate it.
        own = type(stock) is content_stage(self.components).stock
        return "mask_image" in arguments or (not own and "image" in arguments_of(stock))

    def _resolve_strength(
        self, content_latents: Any, image: Any, video: Any, motion_video: Any, strength: float | None,
        motion_strength: float | None,
    ) -> float:  # fmt: skip
        """How much of the content frame is drawn anew: all of it where none is given. Raises ``ValueError`` where these
        arguments do not fit each other, or this pipeline."""
        sources = {"content_latents": content_latents, "image": image, "video": video}
        given = [name for name, value in sources.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"give {' or '.join(given)}: each of them is the content frame")
        if strength is not None and not given:
            raise ValueError("strength is how much of a given picture is drawn anew: give image or video")
        if motion_strength is not None and video is None and motion_video is None:
            raise ValueError("motion_strength is how much of a given motion is drawn anew: give motion_video or video")
        for name, value in (("strength", strength), ("motion_strength", motion_strength)):
            if value is not None and not 0 <= value <= 1:  # NaN is neither
                raise ValueError(f"{name} must be from 0 to 1, got {value}")
        if strength is None:
            own = self.autoencoder.config if self.autoencoder is not None else {}
            exact = content_latents is not None or (image is not None and own.get("content_mode") == "frame")
            kept = exact or (video is not None and motion_strength is not None)
            strength = 1.0 if not given else 0.0 if kept else REDRAWN
        if strength > 0 and self._network is None:
            raise ValueError("this pipeline has no content model: give content_latents or image, and strength 0")
        return strength

    def _scenes(
        self, prompts: list[str], labels: list[int], size: int, negatives: str | list[str] | None, repeats: int,
        sampling: Sampling,
    ) -> list[Scene]:  # fmt: skip
        """What the networks are told: one scene, or of more prompts than videos one each."""
        number = size // repeats
        if isinstance(negatives, list):  # a copy: Z-Image's pipeline writes into lists of prompts
            negatives = negatives[0] if len(prompts) > number else [*negatives]
        null: dict[str, Tensor] | None
        if prompts:
            told, null = self._encode_prompts(prompts, negatives, repeats, sampling.guided)
        else:
            given = torch.tensor(labels, device=self._execution_device).repeat_interleave(repeats)
            told, null = {"label": given}, {"label": torch.full_like(given, self.num_classes)}

        def part(features: dict[str, Tensor] | None, k: int) -> Any:
            return features and {name: value[k * size : (k + 1) * size] for name, value in features.items()}

        return [
            Scene(
                part(told, k),
                part(null, k),
                {
                    "prompt": prompts[k * number : (k + 1) * number],
                    "negative_prompt": [negatives] * number if isinstance(negatives, str) else negatives,
                    "num_images_per_prompt": repeats,
                },
            )
            for k in range(max(1, len(prompts) // number))
        ]

    def _with_pictures(
        self, scenes: list[Scene], arguments: dict[str, Any], shape: tuple[int, ...], fit: Fit, steps: int
    ) -> tuple[list[Scene], dict[str, Any]]:
        """Scenes and arguments of an image-to-image pipeline, "image" and "strength" among them: a prompt and a picture
        for each video; where the caller has features of the prompts, a picture for each of these."""
        pixels, size = as_pictures(arguments["image"], *self._pixel_sides(shape), fit), shape[0]
        if any(name.endswith("prompt_embeds") for name in arguments):
            size //= scenes[0].said["num_images_per_prompt"]
        else:
            scenes = [scene.one_by_one() for scene in scenes]
        # A little more than one step: the stock pipeline rounds down, and would take none.
        strength = min(1.0, max(arguments["strength"], (1 + 1e-6) / steps))
        return scenes, arguments | {"image": for_each("image", pixels, size), "strength": strength}

    @staticmethod
    def _scenes_of_clips(scenes: list[Scene], clips: Clips, changes: list[int], texts: list[str] | None) -> list[Scene]:
        """The scene of each clip; says which prompts of a schedule (``texts``) none has."""
        numbers = [clips.scene(k, changes) for k in range(len(clips))]
        unused = [text for k, text in enumerate(texts or ()) if k not in numbers]
        if clips.num_frames and unused:
            warn_once(f"no clip is of {', '.join(map(repr, unused))}: this video's begin at frames {clips.starts}")
        return [scenes[number] for number in numbers]

    def image_pipeline_for(
        self, arguments: Mapping[str, Any], kept: str, eta: float, noise: Tensor | None, rescale: float,
        interval: Interval | None,
    ) -> DiffusionPipeline | None:  # fmt: skip
        """The stock pipeline that makes the content frames of such a call; None where none does, as of given ones
        (``kept`` says how, or is empty).

        Raises:
            TypeError: An argument that it does not take, or that there is no use for.
            ValueError: Guidance that it does not have.
        """
        stock = None if kept else self.image_pipeline
        if "num_images_per_prompt" in arguments:
            raise TypeError("num_images_per_prompt: say num_videos_per_prompt")
        if stock is None and arguments:
            reason = kept or "for such a model"
            raise TypeError(f"{', '.join(sorted(arguments))}: {reason} no image pipeline is called that could take it")
        if stock is None:
            return None
        own = {"eta": bool(eta), "latents": noise is not None, "guidance_rescale": bool(rescale)}
        names = set(arguments) | {name for name, given in own.items() if given}
        kind = type(stock).__name__
        if interval is not None and not content_stage(self.components).guided_in_one_call:
            raise ValueError(f"guidance_interval: {kind} guides by a call of its own, which cannot be left out")
        if rescale and not takes(stock, names):
            raise ValueError(f"guidance_rescale: {kind} has no such argument for what it is asked here")
        return pipeline_for(stock, names)

    def _stock_content(
        self, stock: DiffusionPipeline, scene: Scene, shape: tuple[int, ...], noise: Tensor | None,
        arguments: Mapping[str, Any], *, sampling: Sampling, eta: float, generator: Generators,
        callback: StepCallback, names: tuple[str, ...],
    ) -> Float[Tensor, "b c h w"]:  # fmt: skip
        """Content frames (scaled latents) by a stock pipeline (see ``image_pipeline_for``), which also gets the
        arguments; the caller's callback gets the tensors with these names."""
        stage, taken, said = content_stage(self.components), arguments_of(stock), scene.said
        height, width = self._pixel_sides(shape)
        if noise is not None and tuple(noise.shape) != shape:
            raise ValueError(f"initial noise of shape {tuple(noise.shape)}, {shape} needed")

        def on_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            self._guidance_scale, self._num_timesteps = pipe._guidance_scale, pipe.num_timesteps
            changed = tensors if callback is None else callback(self, step, timestep, tensors)
            pipe._guidance_scale, pipe._interrupt = self._guidance_scale, self._interrupt
            return changed

        call = {
            **stage.stock_steps(sampling.steps), "generator": generator,
            "guidance_scale": stage.stock_guidance(sampling.guidance_scale),
            "output_type": "latent", "callback_on_step_end": on_step,
            "callback_on_step_end_tensor_inputs": list(names),
        }  # fmt: skip
        optional = {"height": height, "width": width, "eta": eta, **stage.stock_arguments}
        if "timesteps" not in arguments:
            optional |= few_step_levels(stock.scheduler, sampling.steps)
        if sampling.guidance_rescale:
            optional["guidance_rescale"] = sampling.guidance_rescale
        if noise is not None:
            optional["latents"] = noise.to(self._execution_device, self._dtype)
        call |= {name: value for name, value in optional.items() if name in taken}
        if self._encodes_itself(stock, stage, said, arguments):
            if any(isinstance(prompt, PromptBetween) for prompt in said["prompt"]):
                raise ValueError(
                    "a prompt between two is made of their features; here the image pipeline reads prompts"
                )
            left_out = [name for name in ("prompt", "negative_prompt") if f"{name}_embeds" in arguments]
            text = {n: value for n, value in said.items() if value is not None and n not in left_out}
        else:
            text = stage.stock_text(scene.told, scene.null if sampling.content_guided else None)
            text = {name: value for name, value in text.items() if value is not None or name in taken}
        if foreign := sorted(text.keys() - taken):
            raise TypeError(f"a {type(stock).__name__} takes no {foreign[0]}")
        if "height" not in taken:
            arguments = {
                name: resized(stock, value, height, width) if name in ("image", "mask_image") else value
                for name, value in arguments.items()
            }
        stock.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}) | {"desc": stage.name})
        times, between = times_at_hand(stock.scheduler, self._execution_device), sampling.guidance_interval
        with times, guided_between(stage.network, between, shape[0]):
            latents = stage.from_stock(stock(**call | text | dict(arguments)).images).to(self._dtype)
        if tuple(latents.shape) != shape:
            raise ValueError(f"the image pipeline made latents of shape {tuple(latents.shape)}, {shape} needed")
        self._finite.require(f"the {stage.name} model", latents)
        return latents

    @staticmethod
    def _encodes_itself(stock: Any, stage: ContentStage, said: Mapping[str, Any], arguments: Mapping[str, Any]) -> bool:
        """Whether the stock pipeline has to read the prompts: its arguments, its settings or its tokenizer may change
        what they mean. If not it gets features, which the motion model and the text cache then share."""
        prompts, negative = said["prompt"], said["negative_prompt"]
        convert = getattr(stock, "maybe_convert_prompt", lambda prompt, tokenizer: prompt)  # textual inversion
        return bool(
            arguments
            or (negative is not None and not stage.same_negatives)
            or (negative is not None and "" in negative and not stage.empty_is_null)
            or not stage.hears_as_stock(stock.config)
            or convert(prompts, stock.tokenizer) != prompts
        )

    def clips(self, num_frames: int | None, clip_frames: int | None = None, loop: bool = False) -> Clips:
        """The clips that a video is made of; without a motion model one of no frames.

        Raises:
            ValueError: A loop that is shorter than a clip, or clips of one frame.
        """
        if self.motion_transformer is None:
            return Clips(0, 0)
        own = self.autoencoder.config
        length = own.num_frames if clip_frames is None else clip_frames
        frames: int = own.num_frames if num_frames is None else num_frames
        if frames < 1:
            raise ValueError(f"num_frames must be positive, got {frames}")
        if length < 2 and frames > length:
            raise ValueError(f"clip_frames must be 2 or more, got {length}")
        # Nothing would lead from the last frame of a chain to its first: clips of a loop share a content frame.
        chained = own.content_mode == "frame" and own.content_index == 0 and not loop
        if loop and frames < length:
            raise ValueError(f"loop: it needs {length} frames or more, got num_frames {frames}")
        if frames <= length and not loop:
            return Clips(frames, frames)
        known = 0 if is_distilled(self.motion_scheduler) else self.motion_transformer.config.overlap
        too_short = 2 * known >= length if loop else 2 * known > length
        if chained or too_short or (loop and frames < 2 * (length - known)):
            known = 0
        return Clips(frames, length, loop, chained, known)

    def _given(
        self, clips: Clips, shape: tuple[int, ...], content_latents: Tensor | None, image: Any, video: Any,
        motion_video: Any, fit: Fit,
    ) -> tuple[list[Tensor | None], list[Tensor]]:  # fmt: skip
        """What is given of a video's clips, to be drawn anew or kept: content frames (b, c, h, w) of each clip, or one
        or None that serves all; and motion latents (b, D, t, s) of each clip, not standardised, or none. Raises
        ``ValueError`` and ``OSError`` of pictures and videos that cannot be used."""
        if fit not in get_args(Fit):
            raise ValueError(f"fit must be crop or pad, got {fit!r}")
        contents: list[Tensor | None] = [content_latents]
        motions: list[Tensor] = []
        size, sides = shape[0], self._pixel_sides(shape)
        if image is not None:
            pixels = as_pictures(image, *sides, fit).to(self._execution_device)
            contents = [for_each("image", encode_frames(self._image_vae, pixels[:, None] * 2 - 1)[:, 0], size)]
        for name, source in {"video": video, "motion_video": motion_video}.items():
            if source is None:
                continue
            if not clips.num_frames:
                raise ValueError(f"{name}: this pipeline has no motion model")
            between = source if isinstance(source, MotionBetween) else None
            ends = []
            for end in [between.first, between.second] if between else [source]:
                frames = as_videos(name, end, clips.num_frames, *sides, fit, self.frame_rate)
                parts = [self.encode_video(frames[:, clips.frames(k)]) for k in range(len(clips))]
                ends.append([for_each(name, motion, size) for _, motion in parts])
                if name == "video":
                    contents = [for_each(name, content, size) for content, _ in parts]
            motions = ends[0]
            if between:
                shares = for_each("shares of motion_video", between.shares, size)
                motions = [slerp(*pair, shares) for pair in zip(*ends, strict=True)]
        return contents, motions

    def _pixel_sides(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width in pixels of content frames of a shape (..., h, w)."""
        factor = vae_scale_factor(self.vae)
        return shape[-2] * factor, shape[-1] * factor

    def _contents(
        self, draw: Callable[[Scene, Tensor | None, Tensor | None], Tensor], scenes: list[Scene], clips: Clips,
        known: list[Tensor | None], shape: tuple[int, ...], noise: Tensor | None, generator: Generators,
    ) -> list[Float[Tensor, "b c h w"]]:  # fmt: skip
        """The content frame of each clip, or of the first alone where the others go on from it; ``draw`` makes those of
        a scene, from noise and from what is known of them."""
        known = [known[min(k, len(known) - 1)] for k in range(len(clips))]
        pairs = list(zip(scenes, known, strict=True))[: 1 if clips.chained else None]
        keys = [(id(scene), id(content)) for scene, content in pairs]
        if len(set(keys)) > 1 and noise is None:
            # One noise for all scenes: what they do not say anything about stays alike.
            noise = randn_tensor(shape, generator, self._execution_device, torch.float32)
        made: dict[tuple[int, int], Tensor] = {}
        for key, (scene, content) in zip(keys, pairs, strict=True):
            if key not in made:
                made[key] = draw(scene, noise, content)
        return [made[key] for key in keys]

    def _frames(
        self, scenes: list[Scene], clips: Clips, contents: list[Tensor], motions: list[Tensor], noise: Tensor | None,
        settings: dict[str, Any],
    ) -> Iterator[Float[Tensor, "b t c h w"]]:  # fmt: skip
        """A video's frames (scaled latents) in order, some at a time; nothing without a motion model."""
        if not clips.num_frames:
            return
        if len(clips) > 1 and not clips.chained:
            yield from self._overlapping(scenes, clips, contents, motions, noise, settings)
            return
        stage, content, left = MotionStage(self.components), contents[0], clips.num_frames
        shape = (len(content), *self._motion_shape(content.shape[1:], clips.length))
        for k, scene in enumerate(scenes):
            told = scene.conditions(stage, content=content)
            motion = self._motion(stage, told, shape, noise, motions[k] if motions else None, **settings)
            frames = self._decoded(content, motion)
            content, frames = frames[:, -1], frames[:, bool(k) :][:, :left]  # the first is the last one before
            left -= frames.shape[1]
            yield frames
            if self._interrupt:
                return

    def _overlapping(
        self, scenes: list[Scene], clips: Clips, contents: list[Tensor], motions: list[Tensor], noise: Tensor | None,
        settings: dict[str, Any],
    ) -> Iterator[Float[Tensor, "b t c h w"]]:  # fmt: skip
        """See ``_frames``: of clips that overlap."""
        if motions and settings["strength"] == 0:
            yield from clips.fade(lambda k: self._decoded(contents[k], motions[k]))
            return
        given = clips.average(motions.__getitem__) if motions else None
        shape = (len(contents[0]), *self._motion_shape(contents[0].shape[1:], clips.num_frames))
        if clips.overlap:
            motion = self._continued(scenes, clips, contents, given, shape, noise, settings)
        else:
            stage = LongMotionStage(self.components, clips)
            pairs = zip(scenes, contents, strict=True)
            told, null = zip(*(scene.conditions(stage, content=content) for scene, content in pairs), strict=True)
            stacked = stack_conditions(told), None if None in null else stack_conditions(null)
            motion = self._motion(stage, stacked, shape, noise, given, **settings)
        yield from clips.fade(lambda k: self._decoded(contents[k], motion[:, :, clips.frames(k)]))

    def _continued(
        self, scenes: list[Scene], clips: Clips, contents: list[Tensor], given: Tensor | None, shape: tuple[int, ...],
        noise: Tensor | None, settings: dict[str, Any],
    ) -> Float[Tensor, "b D t s"]:  # fmt: skip
        """The motion of a whole video, each clip of which is given that of the frames that are there already."""
        stage = MotionStage(self.components)
        motion = torch.zeros(shape, device=self._execution_device, dtype=self._dtype)
        done = torch.zeros(clips.num_frames, dtype=torch.bool)
        for k, scene in enumerate(scenes):
            numbers = clips.frames(k)
            own, known = {"content": contents[k]}, done[numbers]
            if known.any():
                own["known"] = known.to(motion.device).expand(shape[0], -1)
                own["known_motion"] = stage.standardize(motion[:, :, numbers])
            noise_of_clip, given_of_clip = (None if x is None else x[:, :, numbers] for x in (noise, given))
            made = self._motion(
                stage, scene.conditions(stage, **own), (*shape[:2], len(numbers), shape[3]), noise_of_clip,
                given_of_clip, **settings,
            )  # fmt: skip
            motion[:, :, numbers[~known]] = made[:, :, ~known]
            done[numbers] = True
        return motion

    def _motion(
        self, stage: MotionStage, told: tuple[Condition, Condition | None], shape: tuple[int, ...],
        noise: Tensor | None, start: Float[Tensor, "b D t s"] | None, *, strength: float, **settings: Any,
    ) -> Float[Tensor, "b D t s"]:  # fmt: skip
        """Motion latents (not standardised). Given ones, ``start``, are drawn anew by ``strength``."""
        if start is not None:
            start = start.to(self._execution_device, self._dtype)
            if strength == 0:
                return start
            start = stage.standardize(start)
        motion = self._sample(stage, shape, noise, *told, start=start, strength=strength, **settings)
        return stage.standardize(motion, inverse=True)

    def _finish(
        self, content: Float[Tensor, "b c h w"], pieces: Iterator[Tensor], with_content: bool,
        output_type: OutputType, callback_on_frames: Callable[[Tensor], object] | None,
    ) -> ContentMotionPipelineOutput:  # fmt: skip
        """Decodes latents: the content frame, where it is asked for, and the frames."""
        if callback_on_frames is not None:
            for piece in pieces:
                self._finite.require("the autoencoder", piece)
                callback_on_frames(self._postprocess(self._decode(piece, "pt"), "pt"))
            if not with_content:
                self.maybe_free_model_hooks()
                return ContentMotionPipelineOutput(frames=None, content_frame=None, content_latents=content)
        # All in one pass through the VAE.
        parts = list(pieces)
        with_content = with_content or not parts
        x = torch.cat([content[:, None], *parts] if with_content else parts, dim=1)
        self._finite.require("the autoencoder", x)
        x = self._decode(x, output_type)
        frames = self._postprocess(x[:, int(with_content) :], output_type) if parts else None
        images = None
        if with_content:
            images = self._postprocess(x[:, :1], output_type)
            images = [video[0] for video in images] if output_type == "pil" else images[:, 0]
        self.maybe_free_model_hooks()
        return ContentMotionPipelineOutput(frames=frames, content_frame=images, content_latents=content)

    @torch.no_grad()
    def encode_video(
        self, frames: Float[Tensor, "b t 3 H W"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b D t s"]]:
        """Real frames in [-1, 1] to content frames (scaled latents) and motion latents (not standardised)."""
        x = encode_frames(self._image_vae, frames.to(self._execution_device))
        encoded = self.autoencoder.encode(x.to(self.autoencoder.dtype))
        return encoded.content, encoded.motion_latent

    @torch.no_grad()
    def decode(
        self, content: Float[Tensor, "b c h w"], motion_latent: Float[Tensor, "b D t s"]
    ) -> Float[Tensor, "b t 3 H W"]:
        """Content frames and motion latents (not standardised) to frames in [-1, 1]."""
        return decode_frames(self._image_vae, self._decoded(content, motion_latent), self._frames_per_chunk)

    def _decoded(self, content: Tensor, motion: Tensor) -> Float[Tensor, "b t c h w"]:
        """The autoencoder's frames; parts may be of several number formats."""
        return self.autoencoder.decode(content.to(self.autoencoder.dtype), motion.to(self.autoencoder.dtype))

    @property
    def _image_vae(self) -> Any:
        """The VAE, in float32 where float16 makes it overflow, as its stock pipeline has it."""
        fragile = self._network is not None and content_stage(self.components).vae_overflows
        if fragile and self.vae is not None and self.vae.dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae.to(torch.float32)
        return self.vae

    def _content_shape(self, size: int, given: Tensor | None, height: int | None, width: int | None) -> tuple[int, ...]:
        """Shape of the content frames of so many videos: of those given, or of those to make."""
        if given is None:
            return (size, *self._sampled_shape(height, width))
        if len(given) != size:
            raise ValueError(f"{len(given)} content frames for {size} videos")
        return tuple(given.shape)

    def sample_shapes(
        self, num_frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> dict[str, tuple[int, ...]]:
        content = self._sampled_shape(height, width)
        motion = {"motion": self._motion_shape(content, num_frames)} if self.motion_transformer is not None else {}
        return {"content": content} | motion

    def _sampled_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """Channels, height and width of the content frame's latents; the training size where a side is None. Raises
        ``ValueError`` of a side that the models cannot make."""
        if self.autoencoder is not None:
            config = self.autoencoder.config
            multiple, usual = config.patch_size, (config.sample_height, config.sample_width)
        else:
            assert self._network is not None, "a pipeline of neither makes nothing"
            multiple, size = 1, self._network.config.get("sample_size")
            if size is None and None in (height, width):
                raise ValueError(f"a {type(self._network).__name__} is of no size by itself: give height and width")
            usual = size if isinstance(size, list | tuple) else (size or 0, size or 0)
        if self.motion_transformer is not None:
            motion = self.motion_transformer.config
            multiple = math.lcm(multiple * motion.patch_size, motion.content_patch_size)
        if self._network is not None:
            stage = content_stage(self.components)
            channels, multiple = stage.latent_channels, math.lcm(multiple, stage.side_multiple)
        else:
            channels = vae_latent_channels(self.vae)
        factor, sides = vae_scale_factor(self.vae), []
        for name, given, default in (("height", height, usual[0]), ("width", width, usual[1])):
            side = default * factor if given is None else given
            if side <= 0 or side % (factor * multiple):
                raise ValueError(f"{name} must be a multiple of {factor * multiple}, got {side}")
            sides.append(side // factor)
        return (channels, *sides)

    def _motion_shape(
        self, content_shape: Sequence[int], num_frames: int | None, name: str = "num_frames"
    ) -> tuple[int, int, int]:
        """Channels, frames and places of the motion latent that goes with a content frame. Raises ``ValueError`` of
        frames that the motion model cannot make."""
        own, patch = self.autoencoder.config, self.motion_transformer.config.patch_size
        frames: int = own.num_frames if num_frames is None else num_frames
        if frames <= 0 or frames % patch:
            raise ValueError(f"{name} must be a multiple of {patch}, got {frames}")
        _, height, width = content_shape
        return (own.motion_channels, frames, height // own.patch_size + width // own.patch_size)
