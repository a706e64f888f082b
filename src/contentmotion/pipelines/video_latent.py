"""From a prompt, or conditions, to a video with one network for the whole cube: ``VideoLatentPipeline`` (VideoLCM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import BaseOutput
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from contentmotion.diffusion import Interval
from contentmotion.models.condition_encoder import ConditionEncoder
from contentmotion.models.patch_vae import PatchVAE
from contentmotion.pipelines.base import Generators, LatentPipeline, OutputType, StepCallback
from contentmotion.pipelines.inputs import for_each
from contentmotion.pipelines.sampling import FiniteValues, resolve_sampling
from contentmotion.stages.image_vae import vae_latent_channels, vae_scale_factor
from contentmotion.stages.video import VideoStage


@dataclass
class VideoLatentPipelineOutput(BaseOutput):
    """Generated videos.

    Attributes:
        frames: One list of PIL images a video; or with ``output_type="np"`` an array (b, t, H, W, 3) in [0, 1], with
            "pt" a tensor (b, t, 3, H, W) in [0, 1], with "latent" the frames' scaled latents (b, t, c, h, w).
    """

    frames: list[list[Image.Image]] | np.ndarray | Tensor


class VideoLatentPipeline(LatentPipeline):
    """Text-to-video generation with a video UNet; with a condition encoder also from depth, sketches, masks, frames.

    ModelScope's and ZeroScope's folders load as they are. A distilled model's ``scheduler`` is an LCMScheduler.

    Args:
        vae: Image VAE, or None for models of pixels.
        unet: VideoUNet or diffusers' UNet3DConditionModel.
        scheduler: Any diffusers scheduler.
        condition_encoder: For models that take conditions beside the prompt.
    """

    default_guidance_scale = 9.0
    model_cpu_offload_seq = "text_encoder->condition_encoder->unet->vae"
    _optional_components = ["vae", "condition_encoder"]

    def __init__(
        self,
        vae: AutoencoderKL | PatchVAE | None,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet3DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        condition_encoder: ConditionEncoder | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            condition_encoder=condition_encoder,
        )

    @property
    def clip_shape(self) -> tuple[int, int, int]:
        """Frames, height and width (pixels) that the model was trained on; 16 frames where it does not say."""
        size = self.unet.config.sample_size or 32
        height, width = (size, size) if isinstance(size, int) else size
        factor = vae_scale_factor(self.vae)
        return self.unet.config.get("num_frames", 16), height * factor, width * factor

    @property
    def condition_names(self) -> tuple[str, ...]:
        """The conditions that the model takes."""
        return self.stages["video"].condition_names

    @property
    def stages(self) -> dict[str, VideoStage]:
        """The only one, "video"."""
        return {"video": VideoStage(self.components)}

    def check_parts(self) -> None:
        """Raises ``ValueError`` where two networks were not made for one another."""
        channels = vae_latent_channels(self.vae)
        extra = 0 if self.condition_encoder is None else self.condition_encoder.config.out_channels
        wanted, made = self.unet.config.in_channels, self.unet.config.out_channels
        if (wanted, made) != (channels + extra, channels):
            raise ValueError(
                f"the video UNet takes {wanted} channels and makes {made}; image VAE and condition encoder give it "
                f"{channels} and {extra}"
            )
        width = self.text_encoder.config.hidden_size
        if self.unet.config.cross_attention_dim != width:
            raise ValueError(
                f"the video UNet takes text features of width {self.unet.config.cross_attention_dim}, the text "
                f"encoder makes {width}"
            )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        conditions: Mapping[str, Float[Tensor, "_ _ _ _ _"]] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Interval | None = None,
        guidance_rescale: float = 0.0,
        num_videos_per_prompt: int = 1,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Float[Tensor, "b t c h w"] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] = ("latents",),
    ) -> VideoLatentPipelineOutput | tuple:
        """Generates videos.

        Args:
            prompt: What to show, one prompt a video.
            negative_prompt: What to steer away from; needs guidance above 1.
            conditions: What the frames should follow, by name (see ``data.conditions``), one of each a video or one
                for all. Guidance leaves them in both of its passes: it strengthens the prompt alone.
            num_inference_steps: When None 50, or 4 of a distilled model.
            guidance_scale: 1 is none. VideoLCM's w is ``guidance_scale - 1``. When None 9, or 1 of a distilled model.
            guidance_interval: Two times of the noise schedule, 0 being the video: guidance between them alone.
            guidance_rescale: How far contrast that guidance adds is taken back, from 0 to 1.
            num_videos_per_prompt: Videos per prompt.
            num_frames: Frames; the training length when None.
            height: Pixels; the training size when None.
            width: Pixels; the training size when None.
            eta: DDIM's eta; 0 is deterministic.
            generator: Source of the noise, or one per video: then a video does not depend on its batch.
            latents: Initial noise.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: Whether to return an output object rather than a tuple.
            callback_on_step_end: Called after each step.
            callback_on_step_end_tensor_inputs: Tensors it gets; only "latents" exists.

        Raises:
            ValueError: Arguments that do not fit each other or the models.
        """
        self._interrupt, self._finite = False, FiniteValues()
        call_back, names = self._step_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        prompts, _ = self._check_inputs(
            prompt, None, negative_prompt, num_videos_per_prompt, output_type, generator, names
        )
        sampling = resolve_sampling(
            self, num_inference_steps, None, guidance_scale, 1.0, guidance_interval, None, guidance_rescale
        )
        shape = self._latent_shape(len(prompts) * num_videos_per_prompt, num_frames, height, width)
        given, null = self._encode_prompts(prompts, negative_prompt, num_videos_per_prompt, sampling.guided)
        # Guidance leaves the conditions in both of its passes.
        followed = {"conditions": self._checked_conditions(conditions, shape[0]), "shape": shape}
        stage = self.stages["video"]
        x = self._sample(
            stage, shape, latents, stage.encode(given | followed), null and stage.encode(null | followed), sampling,
            eta=eta, generator=generator, call_back=call_back,
        )  # fmt: skip
        frames = self._postprocess(self._decode(x, output_type), output_type)
        self.maybe_free_model_hooks()
        return VideoLatentPipelineOutput(frames=frames) if return_dict else (frames,)

    def sample_shapes(
        self, num_frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> dict[str, tuple[int, ...]]:
        return {"video": self._latent_shape(1, num_frames, height, width)[1:]}

    def _latent_shape(
        self, size: int, num_frames: int | None, height: int | None, width: int | None
    ) -> tuple[int, int, int, int, int]:
        frames, *sides = (
            b if a is None else a for a, b in zip((num_frames, height, width), self.clip_shape, strict=True)
        )
        factor = vae_scale_factor(self.vae)
        multiple = factor * self.stages["video"].side_multiple
        for name, side in zip(("height", "width"), sides, strict=True):
            if side <= 0 or side % multiple:
                raise ValueError(f"{name} must be a multiple of {multiple}, got {side}")
        if frames <= 0:
            raise ValueError(f"num_frames must be positive, got {frames}")
        return (size, frames, self.unet.config.out_channels, sides[0] // factor, sides[1] // factor)

    def _checked_conditions(self, conditions: Mapping[str, Tensor] | None, size: int) -> dict[str, Tensor]:
        """What the frames should follow, one of each a video, on the encoder's device. Raises ``ValueError`` of a
        condition that the model does not take."""
        conditions = conditions or {}
        if unknown := sorted(conditions.keys() - set(self.condition_names)):
            known = ", ".join(self.condition_names) or "no conditions"
            raise ValueError(f"condition {', '.join(unknown)}: this model takes {known}")
        return {
            name: for_each(f"condition {name}", value, size).to(self._execution_device, self.condition_encoder.dtype)
            for name, value in conditions.items()
        }
