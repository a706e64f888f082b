"""What the pipelines share: prompts -> text features, noise -> samples, latents -> frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from contentmotion.pipelines.sampling import denoise
from contentmotion.stages.text import NULL_PROMPT, TextFeatures

Generators = torch.Generator | list[torch.Generator] | None
StepCallback = Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks | None
OutputType = Literal["pil", "np", "pt", "latent"]


class LatentPipeline(DiffusionPipeline):
    """A diffusion pipeline whose ``vae`` draws frames, whose ``text_encoder`` reads prompts."""

    default_guidance_scale = 4.0
    _callback_tensor_inputs = ["latents"]

    @property
    def clip_shape(self) -> tuple[int, int, int]:
        """Frames, height and width (pixels) that the models were trained on."""
        raise NotImplementedError

    def check_parts(self) -> None:
        """Raises ``ValueError`` where two networks were not made for one another."""
        raise NotImplementedError

    _frames_per_chunk = 16
    _text_features: TextFeatures | None = None

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
        raise NotImplementedError

    def _encode_text(
        self, prompts: list[str], negatives: str | list[str] | None, repeats: int, guided: bool
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]:
        """Per-token and pooled features of the prompts and, where guidance needs them, of the null prompts."""
        known = self._text_features or TextFeatures()

        def encode(texts: list[str]) -> tuple[Tensor, Tensor]:
            features = known.encode(self.tokenizer, self.text_encoder, texts)
            hidden, pooled = (f.to(self._dtype).repeat_interleave(repeats, dim=0) for f in features)
            return hidden, pooled

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

    def _prepare(
        self, scheduler: Any, shape: tuple[int, ...], noise: Tensor | None, generator: Generators, steps: int
    ) -> Tensor:
        """Sets the scheduler's timesteps; returns the initial noise: in float32, for steps are small differences."""
        scheduler.set_timesteps(steps, device=self._execution_device)
        if noise is None:
            noise = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        elif tuple(noise.shape) != shape:
            raise ValueError(f"initial noise of shape {tuple(noise.shape)}, {shape} needed")
        return noise.to(self._execution_device, torch.float32) * scheduler.init_noise_sigma

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

            latents = denoise(scheduler, latents, guidance_scale, model, eta=eta, generator=generator, on_step=on_step)
        return latents.to(self._dtype)

    def _postprocess(self, x: Tensor, output_type: str) -> Any:
        """Pixels (b, t, 3, H, W) in [-1, 1] as asked for; latents as they are."""
        if output_type == "latent":
            return x
        unit = (x.float() / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return unit
        array = unit.permute(0, 1, 3, 4, 2).cpu().numpy()
        return array if output_type == "np" else [VaeImageProcessor.numpy_to_pil(video) for video in array]
