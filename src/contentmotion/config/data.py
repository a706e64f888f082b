"""Settings of what is read: which videos, how clips are cut (cut, inspect, encode), and what a video has to follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from contentmotion.config.blocks import MotionLatentSizes
from contentmotion.config.common import (
    Batch,
    Count,
    Decay,
    Frames,
    HubConfig,
    MixedPrecision,
    Pixels,
    Range,
    Rate,
    Seed,
    Settings,
    Workers,
    parse_bucket,
    require,
)

ConditionName = Literal["depth", "sketch", "mask", "first_frame"]
MapName = Literal["depth", "sketch"]
CONDITION_NAMES: tuple[str, ...] = get_args(ConditionName)
MAP_NAMES: tuple[str, ...] = get_args(MapName)


@dataclass(frozen=True, kw_only=True)
class FolderConfig(Settings):
    """How the list of videos is read.

    Attributes:
        layout: Layout of the data (docs/data.md), such as videofolder, sidecar or classes; "auto" looks.
        split: Keep only clips of this split, where the data names splits.
        metadata_path: The list of videos when it is not in the data's folder: a metadata file, WebVid's CSV,
            MSR-VTT's JSON or CSV, or the folder of UCF-101's split lists.
        split_number: Which of UCF-101's official splits: 1, 2 or 3.
    """

    layout: str = "auto"
    split: str | None = "train"
    metadata_path: str | None = None
    split_number: Annotated[int, Range(1, 3)] = 1


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(FolderConfig):
    """How the captions of videos are read.

    Attributes:
        class_prompts: JSON file `{"class": "prompt"}`: captions for videos that have classes only.
        caption_column: Column with the captions, where it has another name than caption, captions, text, sentence or
            prompt (of metadata files, JSON in shards and Hugging Face data sets).
    """

    class_prompts: str | None = None
    caption_column: str | None = None


@dataclass(frozen=True, kw_only=True)
class ClipConfig(FolderConfig):
    """Which clips are read, and how they are cut.

    Attributes:
        train_data_dir: Where the videos are: a folder in any of the layouts, WebDataset shards
            (`data/{000..099}.tar`), or the id of a Hugging Face data set.
        num_frames: Frames per clip.
        height: Pixels.
        width: Pixels.
        frame_stride: Take every n-th frame of the file.
        fps: Take the frames that are shown at this rate instead; files with fewer frames per second are left out.
        resize_mode: "center": fill the frame, cut off what sticks out on both sides; "random": cut it off at random;
            "pad": show all, between black bars.
        random_flip: Mirror every second clip (wrong where captions say left or right).
    """

    train_data_dir: str
    num_frames: Frames = 16
    height: Pixels = 64
    width: Pixels = 64
    frame_stride: Frames = 1
    fps: Rate | None = None
    resize_mode: Literal["center", "random", "pad"] = "center"
    random_flip: bool = False

    def require_no_draw(self, reason: str) -> None:
        """Refuses what is drawn anew each time that a clip is cut, where it is cut once and in the middle."""
        require(not self.random_flip, f"--random_flip true {reason}")
        require(self.resize_mode != "random", f"--resize_mode random {reason}")


@dataclass(frozen=True, kw_only=True)
class CutConfig(FolderConfig):
    """Cut short clips of one size out of videos of any size and length: a folder that every other command reads, and
    reads fast. A run that was stopped goes on.

    Example: contentmotion cut my_videos --output_dir clips

    Attributes:
        train_data_dir: Where the videos are (see train-autoencoder). Captions are the data's, else names of classes or
            files ("a dog runs-2.mp4").
        output_dir: Folder for the clips and their `metadata.jsonl`, which may be edited.
        num_frames: Frames per clip.
        height: Pixels.
        width: Pixels.
        fps: Frames per second of the clips; else 8, or as many as it takes for the videos to be long enough.
        resize_mode: "center": fill the frame, cut off what sticks out; "pad": show all, between black bars.
        clips_per_video: The most clips of one video; they do not overlap.
        max_bad_fraction: Stop when more than this share of the videos cannot be used; fewer are left out and named.
    """

    train_data_dir: str
    output_dir: str
    num_frames: Frames = 16
    height: Pixels = 64
    width: Pixels = 64
    fps: Rate | None = None
    resize_mode: Literal["center", "pad"] = "center"
    clips_per_video: Batch = 8
    max_bad_fraction: Decay = 0.25


@dataclass(frozen=True, kw_only=True)
class InspectConfig(ClipConfig, CaptionConfig):
    """Look at a data set before training on it: counts, durations, sizes, captions, bad files with the reason of each,
    how many clips a recipe gets out of it and how large their cache would be. Writes inspect.json and inspect.png.

    Example: contentmotion inspect clips --config configs/webvid-sd21/autoencoder.yaml

    Attributes:
        train_data_dir: Where the videos are (see train-autoencoder).
        num_videos: Look at only so many, spread evenly over the list; the numbers of clips are then estimates.
        num_clips_per_video: Clips cut from each file (see encode).
        buckets: Sizes to cache or to train on side by side (see encode), in place of num_frames, height and width.
        decode: Decode a clip of each video, which finds damage that the header does not show; else read headers only.
        vae: Image VAE of the recipe, for the size of the cache (see train-autoencoder).
        autoencoder: Autoencoder of the recipe, for the size of the cache; else `model`.
        pretrained_model_name_or_path: Folder of the recipe's text encoder: captions longer than it takes are counted.
        model: What the size of a motion latent depends on.
        cache_dtype: Number format of the cache.
        num_workers: Processes; one per core when not given.
        output_dir: Folder for `inspect.json` and `inspect.png`.
        json: Print what inspect.json holds, for programs, instead of a table.
    """

    takes_any_recipe = True

    num_videos: Count | None = None
    num_clips_per_video: Count = 1
    buckets: tuple[str, ...] = ()
    decode: bool = True
    vae: str | None = None
    autoencoder: str | None = None
    pretrained_model_name_or_path: str | None = None
    model: MotionLatentSizes = MotionLatentSizes()
    cache_dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    num_workers: Annotated[int, Range(1, 1000)] | None = None
    output_dir: str = "outputs/inspect"
    json: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in self.buckets:
            parse_bucket(text)


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(HubConfig, ClipConfig, CaptionConfig):
    """Encode videos once: fill a cache with content frames and motion latents, and note the motion's mean and
    standard deviation in it. train-content and train-motion read the cache. A run that was stopped goes on. Several
    processes share the work: `torchrun --nproc_per_node 8 -m contentmotion encode ...`.

    Attributes:
        autoencoder: Folder of the trained ContentMotionAutoencoder.
        vae: The image VAE it was trained with (none: pixels).
        buckets: Sizes to cache side by side, each like "16x256x384" (frames, height, width), in place of num_frames,
            height and width: every video goes into the one that fits it best, every file of the cache, and every batch
            that is trained on, holds clips of one. One that fits none is a bad file. What has room for one size (the
            size of videos that a trained model makes when not told, previews) takes the first of these with clips.
        latents_only: Cache the VAE's latents of all frames, for `train-autoencoder --latent_cache` and video UNets.
        conditions: With latents_only, cache maps of the clips, too, for models with conditions: sketch (edges, taken
            from the clip), depth (by `depth_model` or of `depth_dir`). Without these, maps are those that the list of
            videos names (columns `depth_file_name` and `sketch_file_name`).
        depth_model: Depth-estimation model, a folder or hub id such as depth-anything/Depth-Anything-V2-Small-hf.
        depth_dir: Folder of ready-made depth (grey, white = near) under the videos' names, frame by frame theirs.
        pretrained_model_name_or_path: Stable Diffusion folder or hub id: cache its text features of the captions, too.
        text_features: "pooled": one feature per caption (what train-motion needs); "tokens": one per token as well
            (train-content, too); for Stable Diffusion 2.1 2 KB or 160 KB per caption.
        output_dir: Folder of the cache.
        encode_batch_size: Clips encoded at once.
        clips_per_shard: Clips per safetensors file.
        num_clips_per_video: Random clips cut from each file.
        seed: Seed of the clips' start frames.
        mixed_precision: Precision of the networks.
        cache_dtype: Number format of the files.
        dataloader_num_workers: Processes that decode videos; 0 decodes between the networks' passes.
        max_bad_fraction: Stop when more than this share of the files is bad; fewer are left out and named.
        device: "auto", "cpu", "cuda", ...
    """

    autoencoder: str | None = None
    vae: str | None = None
    buckets: tuple[str, ...] = ()
    latents_only: bool = False
    conditions: tuple[MapName, ...] = ()
    depth_model: str | None = None
    depth_dir: str | None = None
    pretrained_model_name_or_path: str | None = None
    text_features: Literal["pooled", "tokens"] = "pooled"
    output_dir: str
    encode_batch_size: Batch = 8
    clips_per_shard: Count = 256
    num_clips_per_video: Count = 1
    seed: Seed = 0
    mixed_precision: MixedPrecision = "no"
    cache_dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    dataloader_num_workers: Workers = 0
    max_bad_fraction: Decay = 0.01
    device: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in self.buckets:
            parse_bucket(text)
        require(len(set(self.buckets)) == len(self.buckets), "--buckets: each size once")
        if self.latents_only != (self.autoencoder is None):
            raise ValueError("give --autoencoder, or --latents_only true (exactly one of the two)")
        if self.num_clips_per_video == 1:
            self.require_no_draw("is drawn for each of a video's clips: --num_clips_per_video 2 or more")
        for name in self.conditions:
            require(name in MAP_NAMES, f"--conditions {name}: only {' and '.join(MAP_NAMES)} are cached")
        require(self.latents_only or not self.conditions, "--conditions needs --latents_only true")
        for name in ("depth_model", "depth_dir"):
            require(getattr(self, name) is None or "depth" in self.conditions, f"--{name} needs --conditions depth")
        require(not (self.depth_model and self.depth_dir), "give --depth_model or --depth_dir, not both")


@dataclass(frozen=True, kw_only=True)
class ConditionConfig(Settings):
    """Files that a video has to follow, for models trained with conditions.

    Of videos the first frames count; what has another size or aspect ratio is resized and cut like training clips.

    Attributes:
        depth: Depth to follow: a grey video, gif or folder of frames, white = near.
        sketch: Sketch to follow: video, gif or folder of frames, white lines on black.
        mask: What to make anew, white; where it is black, the driving video stays. A video, or a picture for all of it.
        first_frame: The picture that the video begins with (of a video, its first frame).
        driving_video: The video that the mask keeps a part of, or that `extract` takes depth or sketches from.
        extract: What to take from the driving video: depth, sketch, or both.
        depth_model: Model for `extract depth`, a folder or hub id such as depth-anything/Depth-Anything-V2-Small-hf.
    """

    depth: str | None = None
    sketch: str | None = None
    mask: str | None = None
    first_frame: str | None = None
    driving_video: str | None = None
    extract: tuple[MapName, ...] = ()
    depth_model: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.extract:
            require(name in MAP_NAMES, f"--extract {name}: only depth and sketch can be taken from a video")
            require(getattr(self, name) is None, f"--{name} is given and --extract {name} too: leave one of them out")
        require(not self.mask or bool(self.driving_video), "--mask needs --driving_video, whose black part stays")
        require(not self.extract or bool(self.driving_video), "--extract needs --driving_video to take it from")
        if self.driving_video and not (self.extract or self.mask):
            raise ValueError("--driving_video does nothing by itself: give --extract depth, --extract sketch or --mask")
        require("depth" not in self.extract or bool(self.depth_model), "--extract depth needs --depth_model")

    @property
    def condition_names(self) -> tuple[str, ...]:
        """The conditions that are given."""
        return tuple(name for name in CONDITION_NAMES if getattr(self, name) or name in self.extract)
