"""The kinds of videos that an evaluation scores: real clips, and what a pipeline makes of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from contentmotion.config import CONDITION_NAMES, EvaluateConfig
from contentmotion.data.conditions import known_latents, random_tubes
from contentmotion.data.maps import DepthEstimator, depth_of, sketch_of
from contentmotion.evaluate.clips import Clips, RealBatch
from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.pipelines.video_latent import VideoLatentPipeline
from contentmotion.run_dir import seeded_generator
from contentmotion.stages.image_vae import decode_frames, encode_frames, vae_scale_factor
from contentmotion.video.pixels import to_float, to_uint8

FROM_FRAMES = {"reconstruction", "frozen", "vae"}  # components that need no denoiser
AnyPipeline = ContentMotionPipeline | VideoLatentPipeline
Render = Callable[[RealBatch], Tensor]


@dataclass(frozen=True)
class Rendition:
    """One kind of video to score."""

    name: str  # key in the scores
    title: str  # line of the table
    clips: Clips  # where its indices, frames and captions come from
    render: Render = lambda batch: batch.frames  # real clips -> what is made of each, uint8 of the frames' shape
    seed: int | None = None  # of the noise, where there is any
    compares: bool = False  # whether a video should equal the real clip (then it gets PSNR and so on)
    from_caption: bool = False  # whether its caption alone made it (then it is looked for among the real clips)
    reference: str = "real"  # name of the rendition whose distribution it is compared with
    follows: tuple[str, ...] = ()  # conditions of the real clip to measure it against, whether or not they were given

    @property
    def is_source(self) -> bool:
        """Whether its videos lie in files, rather than being made of others."""
        return self.name in ("real", "generated")


class Conditions:
    """What the real clips offer a video to follow: the maps in the data, and what a model takes besides.

    Args:
        pipeline: The model; None: there is none.
        maps: "depth", "sketch": those that lie beside the videos.
        depth_model: Estimates depth where none lies there.
        seed: Draws the masks.

    Attributes:
        names: "depth", "sketch", "mask", "first_frame": those there are.
        factor: Pixels per latent along a side; masks are of whole latents.
    """

    def __init__(
        self, pipeline: AnyPipeline | None, maps: tuple[str, ...], depth_model: DepthEstimator | None, seed: int
    ) -> None:
        known = pipeline.condition_names if isinstance(pipeline, VideoLatentPipeline) else ()
        names = [name for name in CONDITION_NAMES if name in maps or name in known]
        if "depth" in names and "depth" not in maps and depth_model is None:
            names.remove("depth")
        self.names, self.maps, self.depth_model, self.seed = tuple(names), maps, depth_model, seed
        self.factor = 1 if pipeline is None else vae_scale_factor(pipeline.vae)

    def of(self, batch: RealBatch, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Conditions of real clips by name.

        Returns:
            uint8 "depth", "sketch" (b, t, 1, H, W), 255 near or a line; "mask" of that shape, 1 what is to be made, 0
            what the real clip shows; "first_frame" (b, 1, 3, H, W).
        """
        return {name: batch.maps[name] if name in batch.maps else self._make(name, batch) for name in names}

    def _make(self, name: str, batch: RealBatch) -> Tensor:
        if name == "depth":
            assert self.depth_model is not None, "names has depth only where there is some"
            return torch.stack([depth_of(clip, self.depth_model) for clip in batch.frames])
        if name == "sketch":
            return torch.stack([sketch_of(clip) for clip in batch.frames])
        if name == "first_frame":
            return batch.frames[:, :1]
        _, t, _, height, width = batch.frames.shape
        h, w = height // self.factor, width // self.factor
        tubes = [random_tubes(1, t, h, w, seeded_generator(self.seed, index)) for index in batch.indices]
        latents = torch.cat(tubes).to(torch.uint8)  # (b, t, 1, h, w)
        return latents.repeat_interleave(self.factor, -1).repeat_interleave(self.factor, -2)

    def describe(self) -> dict[str, str]:
        """Where each comes from, for the protocol."""
        own = {
            "depth": "estimated of the real clip",
            "sketch": "edges of the real clip (Canny)",
            "mask": "a tube from (seed, index)",
            "first_frame": "of the real clip",
        }
        return {name: "beside the videos" if name in self.maps else own[name] for name in self.names}


class Renderer:
    """What a pipeline makes of real clips, their captions and their conditions.

    Args:
        pipeline: On its device. Networks that no component asks for may be missing.
        clips: For their captions and labels.
        config: The components wanted, the sampler's settings, and the seeds.
        autocast: Makes the context the networks run in.
        conditions: What the clips offer to follow.

    Raises:
        ValueError: The data's classes are not the model's.
    """

    def __init__(
        self,
        pipeline: AnyPipeline,
        clips: Clips,
        config: EvaluateConfig,
        autocast: Callable[[], Any],
        conditions: Conditions,
    ) -> None:
        self.pipeline, self.clips, self.config = pipeline, clips, config
        self.autocast, self.conditions = autocast, conditions
        count = len(clips.folder.class_names or ())
        by_class = pipeline.text_encoder is None and not set(config.components) <= FROM_FRAMES
        if by_class and pipeline.num_classes != count:
            raise ValueError(
                f"{clips.folder.root} has {count} classes, the model {pipeline.num_classes}: "
                "their numbers would not mean the same"
            )

    def renditions(self) -> list[Rendition]:
        """What the config's components ask for, cheap ones first; those with noise once for each seed."""
        wanted = set(self.config.components)
        if self.pipeline.vae is None:
            wanted.discard("vae")  # its picture of a frame would be the frame
        given: list[str] = []
        if isinstance(self.pipeline, VideoLatentPipeline):
            wanted &= {"vae", "full", "following"}  # it makes all frames at once
            if "following" in wanted:
                given = [name for name in self.conditions.names if name in self.pipeline.condition_names]
        if "content" in wanted:
            wanted.add("frozen")  # what generated content frames are compared with
        own: dict[str, Any] = {"clips": self.clips, "follows": self.clips.maps}
        all_of_them = [
            Rendition(name, title, render=partial(self._of_frames, change), compares=True, **own)
            for name, title, change in (
                ("reconstruction", "reconstruction", self.reconstruct),
                ("frozen", "frozen at the content frame", self.freeze),
                ("vae", "image VAE alone", self.round_trip),
            )
        ]
        for seed in range(self.config.seed, self.config.seed + self.config.num_seeds):
            noise = own | {"seed": seed}
            content, motion, full = (partial(sample, seed=seed) for sample in (self._content, self._motion, self._full))
            follows = self.conditions.names if "following" in wanted else self.clips.maps
            all_of_them += [
                Rendition("content", "content frames, held still", render=content, reference="frozen", **noise),
                Rendition("motion", "motion for true content frames", render=motion, compares=True, **noise),
                Rendition("full", "full generation", render=full, from_caption=True, **noise | {"follows": follows}),
            ]
            for name in given:
                title, render = f"full, given {name.replace('_', ' ')}", partial(full, condition=name)
                all_of_them.append(Rendition(f"given_{name}", title, render=render, **noise | {"follows": (name,)}))
        chosen = [r for r in all_of_them if r.name in wanted or r.name.startswith("given_")]
        if not chosen:
            raise ValueError(
                "no component is left to score: a model that works on pixels has no image VAE, a video model neither "
                "content frame nor motion"
            )
        return chosen

    def _of_frames(self, change: Callable[[Tensor], Tensor], batch: RealBatch) -> Tensor:
        """What becomes of the frames alone; they and the result are in [-1, 1]."""
        with torch.inference_mode(), self.autocast():
            return to_uint8(change(self._on_device(batch.frames))).cpu()

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

    def _content(self, batch: RealBatch, seed: int) -> Tensor:
        """Content frames sampled from the captions, shown as long as a clip."""
        parts = self.pipeline.components | {"motion_transformer": None, "motion_scheduler": None}
        still = ContentMotionPipeline(**parts)
        still.set_progress_bar_config(disable=True)
        images = self._sample(batch, seed, still).content_frame
        return to_uint8(images, low=0).cpu()[:, None].expand_as(batch.frames)

    def _motion(self, batch: RealBatch, seed: int) -> Tensor:
        """Motion sampled for the true content frame and caption."""
        with torch.inference_mode(), self.autocast():
            content, _ = self.pipeline.encode_video(self._on_device(batch.frames))
        return to_uint8(self._sample(batch, seed, content_latents=content).frames, low=0).cpu()

    def _full(self, batch: RealBatch, seed: int, condition: str | None = None) -> Tensor:
        """All sampled from the caption (of the frames, only the shape counts), and a condition where one is named."""
        given = {} if condition is None else {"conditions": self._encode(condition, batch)}
        return to_uint8(self._sample(batch, seed, **given).frames, low=0).cpu()

    @torch.no_grad()
    def _encode(self, name: str, batch: RealBatch) -> dict[str, Tensor]:
        """A condition of real clips as the model takes it (see ``ConditionEncoder.forward``)."""
        condition, vae = self.conditions.of(batch, (name,))[name].to(self.pipeline.device), self.pipeline.vae
        if name in ("depth", "sketch"):
            return {name: condition.float() / 255}
        if name == "first_frame":
            return {name: encode_frames(vae, to_float(condition)).float()}
        latents = encode_frames(vae, self._on_device(batch.frames)).float()
        step = self.conditions.factor
        return {name: known_latents(latents, condition[..., ::step, ::step].float())}

    def _sample(self, batch: RealBatch, seed: int, pipeline: ContentMotionPipeline | None = None, **inputs: Any) -> Any:
        if self.pipeline.text_encoder is not None:
            inputs["prompt"] = [self.clips.caption(i) for i in batch.indices]
        else:
            inputs["class_labels"] = [self.clips.label(i) for i in batch.indices]
        has_motion = not isinstance(self.pipeline, VideoLatentPipeline)
        if has_motion:
            inputs["decode_content_frame"] = pipeline is not None
        with self.autocast():
            return (pipeline or self.pipeline)(
                **inputs,
                num_frames=batch.frames.shape[1],
                height=batch.frames.shape[3],
                width=batch.frames.shape[4],
                **self.config.sampling(motion=has_motion),
                generator=[seeded_generator(seed, i) for i in batch.indices],
                output_type="pt",
            )
