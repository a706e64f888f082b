"""The kinds of videos that an evaluation scores: real clips, and what a pipeline makes of each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from contentmotion.config import EvaluateConfig
from contentmotion.evaluate.clips import Clips
from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.pipelines.video_latent import VideoLatentPipeline
from contentmotion.run_dir import seeded_generator
from contentmotion.stages.image_vae import decode_frames, encode_frames
from contentmotion.video.pixels import to_float, to_uint8


@dataclass(frozen=True)
class Part:
    """One kind of video to score.

    Attributes:
        name: Key in the scores.
        title: Line of the table.
        clips: Where its indices, frames and captions come from.
        render: (indices, real frames uint8 (b, t, 3, h, w)) -> uint8 of the same shape.
        seed: Of the noise, where there is any.
        compares: Whether a video should equal the real clip (then it gets PSNR and so on).
        from_caption: Whether a video was made from its caption alone (then it is looked for among the real clips).
        reference: Name of the part whose distribution it is compared with.
    """

    name: str
    title: str
    clips: Clips
    render: Callable[[list[int], Tensor], Tensor]
    seed: int | None = None
    compares: bool = False
    from_caption: bool = False
    reference: str = "real"


def real_part(clips: Clips) -> Part:
    """The clips themselves."""
    return Part("real", "real clips", clips, lambda indices, frames: frames)


def given_part(clips: Clips) -> Part:
    """Videos that lie in a folder of their own."""
    return Part("generated", "videos of generated_dir", clips, lambda indices, frames: frames, from_caption=True)


class Renderer:
    """What a pipeline makes of real clips and their captions.

    Args:
        pipeline: On its device. Parts that no component asks for may be missing.
        clips: The clips, for their captions and labels.
        config: The components wanted, the sampler's settings, and the seeds.
        autocast: Makes the context the networks run in.

    Raises:
        ValueError: The data's classes are not the model's.
    """

    def __init__(
        self,
        pipeline: ContentMotionPipeline | VideoLatentPipeline,
        clips: Clips,
        config: EvaluateConfig,
        autocast: Callable[[], Any],
    ) -> None:
        self.pipeline = pipeline
        self.clips = clips
        self.config = config
        self.autocast = autocast
        names = clips.folder.class_names
        by_class = pipeline.text_encoder is None and not set(config.components) <= {"reconstruction", "frozen", "vae"}
        if by_class and pipeline.num_classes != len(names or ()):
            raise ValueError(
                f"{clips.folder.root} has {len(names or ())} classes, the model {pipeline.num_classes}: "
                "their numbers would not mean the same"
            )

    def parts(self) -> list[Part]:
        """What the config's components ask for, cheap parts first; those with noise once for each seed."""
        wanted = set(self.config.components)
        if self.pipeline.vae is None:
            wanted.discard("vae")  # its picture of a frame would be the frame
        if isinstance(self.pipeline, VideoLatentPipeline):
            wanted &= {"vae", "full"}  # it makes all frames at once
        if "content" in wanted:
            wanted.add("frozen")  # what generated content frames are compared with
        seeds = range(self.config.seed, self.config.seed + self.config.num_seeds)
        own, frames = {"clips": self.clips}, self._on_frames
        parts = [
            Part("reconstruction", "reconstruction", render=frames(self.reconstruct), compares=True, **own),
            Part("frozen", "frozen at the content frame", render=frames(self.freeze), compares=True, **own),
            Part("vae", "image VAE alone", render=frames(self.round_trip), compares=True, **own),
        ]
        for seed in seeds:
            noise = {"seed": seed} | own
            parts += [
                Part("content", "content frames, held still", render=self._content(seed), reference="frozen", **noise),
                Part("motion", "motion for true content frames", render=self._motion(seed), compares=True, **noise),
                Part("full", "full generation", render=self._full(seed), from_caption=True, **noise),
            ]
        parts = [part for part in parts if part.name in wanted]
        if not parts:
            raise ValueError(
                "no component is left to score: a model that works on pixels has no image VAE, a video model neither "
                "content frame nor motion"
            )
        return parts

    def _on_frames(self, render: Callable[[Tensor], Tensor]) -> Callable[[list[int], Tensor], Tensor]:
        """A part that looks at the frames only, in [-1, 1]."""

        def call(indices: list[int], frames: Tensor) -> Tensor:
            with torch.inference_mode(), self.autocast():
                return to_uint8(render(self._on_device(frames))).cpu()

        return call

    def _on_device(self, frames: Tensor) -> Tensor:
        return to_float(frames.to(self.pipeline.device))

    def reconstruct(self, x: Tensor) -> Tensor:
        """Through the whole autoencoder. x: (b, t, 3, h, w) in [-1, 1], as is the result."""
        return self.pipeline.decode(*self.pipeline.encode_video(x))

    def freeze(self, x: Tensor) -> Tensor:
        """Every frame is the clip's content frame. x: (b, t, 3, h, w) in [-1, 1], as is the result."""
        content, _ = self.pipeline.encode_video(x)
        return decode_frames(self.pipeline.vae, content[:, None]).expand_as(x)

    def round_trip(self, x: Tensor) -> Tensor:
        """Through the image VAE alone. x: (b, t, 3, h, w) in [-1, 1], as is the result."""
        return decode_frames(self.pipeline.vae, encode_frames(self.pipeline.vae, x))

    def _content(self, seed: int) -> Callable[[list[int], Tensor], Tensor]:
        """Content frames sampled from the captions, shown as long as a clip."""

        def call(indices: list[int], frames: Tensor) -> Tensor:
            images = self._sample(indices, frames, seed, pipeline=self._without_motion()).content_frame
            return to_uint8(images, low=0).cpu()[:, None].expand_as(frames)

        return call

    def _motion(self, seed: int) -> Callable[[list[int], Tensor], Tensor]:
        """Motion sampled for the true content frame and caption."""

        def call(indices: list[int], frames: Tensor) -> Tensor:
            with torch.inference_mode(), self.autocast():
                content, _ = self.pipeline.encode_video(self._on_device(frames))
            return to_uint8(self._sample(indices, frames, seed, content_latents=content).frames, low=0).cpu()

        return call

    def _full(self, seed: int) -> Callable[[list[int], Tensor], Tensor]:
        """Content and motion sampled from the caption (of the frames, only the shape counts)."""

        def call(indices: list[int], frames: Tensor) -> Tensor:
            return to_uint8(self._sample(indices, frames, seed).frames, low=0).cpu()

        return call

    def _without_motion(self) -> ContentMotionPipeline:
        still = ContentMotionPipeline(
            **(self.pipeline.components | {"motion_transformer": None, "motion_scheduler": None})
        )
        still.set_progress_bar_config(disable=True)
        return still

    def _sample(
        self,
        indices: list[int],
        frames: Tensor,
        seed: int,
        pipeline: ContentMotionPipeline | None = None,
        **inputs: Any,
    ) -> Any:
        if self.pipeline.text_encoder is not None:
            condition = {"prompt": [self.clips.caption(i) for i in indices]}
        else:
            condition = {"class_labels": [self.clips.label(i) for i in indices]}
        if not isinstance(self.pipeline, VideoLatentPipeline):
            inputs |= {
                "motion_num_inference_steps": self.config.motion_num_inference_steps,
                "motion_guidance_scale": self.config.motion_guidance_scale,
                "decode_content_frame": pipeline is not None,
            }
        with self.autocast():
            return (pipeline or self.pipeline)(
                **condition,
                **inputs,
                num_frames=frames.shape[1],
                height=frames.shape[3],
                width=frames.shape[4],
                num_inference_steps=self.config.num_inference_steps,
                guidance_scale=self.config.guidance_scale,
                generator=[seeded_generator(seed, i) for i in indices],
                output_type="pt",
            )
