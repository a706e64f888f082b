"""The videos an evaluation compares: real clips, and what a pipeline makes of each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contentmotion.config import EvaluateConfig
from contentmotion.data.clips import ClipDataset, collate
from contentmotion.data.formats import ClipFolder
from contentmotion.image_vae import decode_frames, encode_frames, to_float, to_uint8
from contentmotion.pipeline import ContentMotionPipeline
from contentmotion.run_dir import seeded_generator


class Clips:
    """The clips of an evaluation, one per video, read when needed.

    Args:
        folder: All videos of the data set, of every split.
        config: Says which split, how many, which caption, and the seed of the clips' first frames.
        num_frames: Frames of a clip.
        height: Pixels.
        width: Pixels.

    Attributes:
        selected: Indices (into `folder.records`) of the clips to score.
        heldout: Indices of the clips of the split "heldout", unless that is the one to score.

    Raises:
        ValueError: The data set has splits, but not the one asked for.
    """

    def __init__(self, folder: ClipFolder, config: EvaluateConfig, num_frames: int, height: int, width: int) -> None:
        self.dataset = ClipDataset(folder, num_frames=num_frames, height=height, width=width)
        self.folder = folder
        self.caption_index = config.caption_index
        self.seed = config.seed
        self.problems = list(folder.problems)
        splits = [record.split for record in folder.records]
        wanted = config.split if any(split is not None for split in splits) else None
        if wanted is not None and wanted not in splits:
            names = ", ".join(sorted({split for split in splits if split is not None}))
            raise ValueError(f"{folder.root}: no split {wanted!r} (there are: {names})")
        self.selected = [i for i, split in enumerate(splits) if wanted in (None, split)]
        if config.num_videos is not None:  # not the first ones: folders are often sorted by class
            order = np.random.default_rng(config.seed).permutation(self.selected)
            self.selected = sorted(order[: config.num_videos].tolist())
        self.heldout = [i for i, split in enumerate(splits) if split == "heldout" and wanted not in (None, split)]

    def caption(self, index: int) -> str:
        """The caption to generate from: the last where a clip has fewer, the class name where it has none."""
        record = self.folder.records[index]
        if record.captions:
            return record.captions[min(self.caption_index, len(record.captions) - 1)]
        return (self.folder.class_names or ())[record.label or 0]

    def read(self, indices: list[int]) -> tuple[list[int], Tensor]:
        """The clips with these indices that can be read, and their frames, uint8 (b, t, 3, h, w).

        A file that cannot be read is left out, not replaced, and named in `problems`.
        """
        items = [self.dataset[index, self.seed] for index in indices]
        self.problems += [line for item in items for line in item["skipped"][:1] if line not in self.problems]
        good = [item for item in items if not item["skipped"]]
        if not good:
            return [], torch.empty(0, dtype=torch.uint8)
        return [item["index"] for item in good], collate(good)["frames"]

    def batches(self, indices: list[int], batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
        """`read` for groups of `batch_size` indices, those without a good clip left out."""
        for start in range(0, len(indices), batch_size):
            batch, frames = self.read(indices[start : start + batch_size])
            if batch:
                yield batch, frames


@dataclass(frozen=True)
class Part:
    """One kind of video to score.

    Attributes:
        name: Key in the scores.
        title: Line of the table.
        render: (indices, real frames uint8 (b, t, 3, h, w)) -> uint8 of the same shape.
        samples: Whether it depends on the sampler's settings.
        keep_videos: Whether the videos are stored too.
        compares: Whether a video should equal the real clip (then it gets a PSNR).
    """

    name: str
    title: str
    render: Callable[[list[int], Tensor], Tensor]
    samples: bool = False
    keep_videos: bool = False
    compares: bool = True


class Renderer:
    """What a pipeline makes of real clips and their captions.

    Args:
        pipeline: On its device.
        clips: The clips, for their captions and labels.
        config: The sampler's settings.
        autocast: Makes the context the networks run in.
    """

    def __init__(
        self,
        pipeline: ContentMotionPipeline,
        clips: Clips,
        config: EvaluateConfig,
        autocast: Callable[[], Any],
    ) -> None:
        self.pipeline = pipeline
        self.clips = clips
        self.config = config
        self.autocast = autocast

    def parts(self) -> list[Part]:
        """Everything to score, cheap parts first."""
        parts = [
            Part("real", "real clips", lambda indices, frames: frames, compares=False),
            Part("reconstruction", "reconstruction", self._on_frames(self.reconstruct)),
            Part("frozen", "frozen at the content frame", self._on_frames(self.freeze)),
        ]
        if self.pipeline.vae is not None:
            parts.append(Part("vae", "image VAE alone", self._on_frames(self.round_trip)))
        return [
            *parts,
            Part("motion", "motion for true content frames", self.predict_motion, samples=True),
            Part("full", "full generation", self.generate, samples=True, keep_videos=True, compares=False),
        ]

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

    def predict_motion(self, indices: list[int], frames: Tensor) -> Tensor:
        """Motion sampled for the true content frame and caption."""
        with torch.inference_mode(), self.autocast():
            content, _ = self.pipeline.encode_video(self._on_device(frames))
        return self._sample(indices, frames, content_latents=content)

    def generate(self, indices: list[int], frames: Tensor) -> Tensor:
        """Content and motion sampled from the caption (of the frames, only the shape counts)."""
        return self._sample(indices, frames)

    def _sample(self, indices: list[int], frames: Tensor, **inputs: Tensor) -> Tensor:
        if self.pipeline.text_encoder is not None:
            condition = {"prompt": [self.clips.caption(i) for i in indices]}
        else:
            condition = {"class_labels": [self._label(i) for i in indices]}
        with self.autocast():
            videos = self.pipeline(
                **condition,
                **inputs,
                num_frames=frames.shape[1],
                height=frames.shape[3],
                width=frames.shape[4],
                num_inference_steps=self.config.num_inference_steps,
                motion_num_inference_steps=self.config.motion_num_inference_steps,
                guidance_scale=self.config.guidance_scale,
                motion_guidance_scale=self.config.motion_guidance_scale,
                generator=[seeded_generator(self.config.seed, i) for i in indices],
                output_type="pt",
            ).frames  # (b, t, 3, h, w) in [0, 1]
        assert isinstance(videos, Tensor)  # output_type="pt" of a pipeline with a motion model
        return (videos.float() * 255).round().to("cpu", torch.uint8)

    def _label(self, index: int) -> int:
        record = self.clips.folder.records[index]
        if record.label is None:
            raise ValueError(f"{record.path}: no class label, and this model generates from classes")
        return record.label
