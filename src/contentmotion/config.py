"""Every command's settings, as frozen dataclasses.

This file imports nothing heavy, so that ``contentmotion COMMAND --help`` answers at once. A field's documentation
is its line under ``Attributes:``; jsonargparse turns it into the flag's help. Field names are diffusers' words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SHIPPED_MODEL = "emoji"
MixedPrecision = Literal["auto", "no", "bf16", "fp16"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]
Layout = Literal[
    "auto", "videofolder", "sidecar", "classes", "ucf101", "webvid", "msrvtt", "webdataset", "datasets",
]  # fmt: skip


def require(condition: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless the condition holds (configs check their ranges with it)."""
    if not condition:
        raise ValueError(message)


def parse_bucket(text: str) -> tuple[int, int, int]:
    """Frames, height and width of a bucket written like "16x256x384".

    Raises:
        ValueError: Written otherwise.
    """
    numbers = text.split("x")
    require(
        len(numbers) == 3 and all(number.isdecimal() and int(number) > 0 for number in numbers),
        f"a bucket is written FRAMESxHEIGHTxWIDTH, such as 16x256x384, got {text!r}",
    )
    frames, height, width = map(int, numbers)
    return frames, height, width


def require_positive(config: object, *names: str) -> None:
    """Raise ``ValueError`` for the first named field that is set and not above zero."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value > 0, f"{name} must be positive, got {value}")


def require_not_negative(config: object, *names: str) -> None:
    """Raise ``ValueError`` for the first named field that is below zero."""
    for name in names:
        value = getattr(config, name)
        require(value >= 0, f"{name} must not be negative, got {value}")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How a pipeline samples.

    Attributes:
        pretrained_model_name_or_path: Pipeline folder or hub id; "emoji" is the model shipped with the package.
        autoencoder: Folder of a ContentMotionAutoencoder that replaces the pipeline's (or completes a Stable
            Diffusion folder).
        motion_transformer: Folder of a MotionDiT that replaces the pipeline's (or completes a Stable Diffusion folder).
        num_inference_steps: Denoising steps of the content frame; when not given 50, or 4 of a distilled model.
        motion_num_inference_steps: Denoising steps of the motion latent; when not given the content frame's number, or
            50 or 4 where only one of the two is distilled.
        guidance_scale: Classifier-free guidance of the content frame, `null + g * (cond - null)`; 1 turns it off. When
            not given 4, or 1 for a distilled model.
        motion_guidance_scale: The same for the motion latent.
        seed: Seed of the initial noise: same seed, same machine, same videos.
        batch_size: Videos generated at once.
        mixed_precision: Precision of the networks; "auto" takes bf16 where the processor or the GPU has it.
        device: "auto", "cpu", "cuda", "cuda:1", "mps", ...
        enable_model_cpu_offload: Keep on the GPU only the network in use (needs a GPU).
    """

    pretrained_model_name_or_path: str = SHIPPED_MODEL
    autoencoder: str | None = None
    motion_transformer: str | None = None
    num_inference_steps: int | None = None
    motion_num_inference_steps: int | None = None
    guidance_scale: float | None = None
    motion_guidance_scale: float = 1.0
    seed: int = 0
    batch_size: int = 4
    mixed_precision: MixedPrecision = "auto"
    device: str = "auto"
    enable_model_cpu_offload: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "num_inference_steps", "motion_num_inference_steps", "batch_size")
        require_not_negative(self, "seed")


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """How the list of videos is read.

    Attributes:
        layout: Layout of the data (docs/data.md); "auto" looks.
        split: Keep only clips of this split, where the data names splits.
        metadata_path: The list of videos when it is not in the data's folder: a metadata file, WebVid's CSV,
            MSR-VTT's JSON or CSV, or the folder of UCF-101's split lists.
        split_number: Which of UCF-101's official splits: 1, 2 or 3.
        class_prompts: JSON file `{"class": "prompt"}`: captions for videos that have classes only.
    """

    layout: Layout = "auto"
    split: str | None = "train"
    metadata_path: str | None = None
    split_number: int = 1
    class_prompts: str | None = None

    def __post_init__(self) -> None:
        getattr(super(), "__post_init__", lambda: None)()  # of the other settings that a command has
        require(self.split_number in (1, 2, 3), f"split_number must be 1, 2 or 3, got {self.split_number}")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SamplingConfig):
    """Generate videos from prompts: mp4 and gif files and one PNG contact sheet.

    Example: contentmotion generate "a crying cat" "rocket" --seed 7 --output_dir outputs

    Attributes:
        prompt: What to show, one video per prompt. Prompts can also simply follow the command's name.
        prompt_file: Text file with one prompt a line (empty lines are skipped).
        class_labels: Class ids, for class-conditional models (instead of prompts).
        negative_prompt: What to steer away from (used when guidance is on).
        num_videos_per_prompt: Videos per prompt, each from its own noise.
        num_frames: Frames per video; the model's training length when not given.
        height: Pixels; the model's training size when not given.
        width: Pixels; the model's training size when not given.
        fps: Frames per second of the files written.
        formats: Kinds of file to write per video.
        output_dir: Folder for the videos, `sheet.png` and `config.yaml`; created when missing.
    """

    prompt: list[str] | None = None
    prompt_file: str | None = None
    class_labels: list[int] | None = None
    negative_prompt: str | None = None
    num_videos_per_prompt: int = 1
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float = 8.0
    formats: tuple[Literal["mp4", "gif", "webm"], ...] = ("mp4", "gif")
    output_dir: str = "outputs"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_videos_per_prompt", "num_frames", "height", "width", "fps")
        given = sum(x is not None for x in (self.prompt, self.prompt_file, self.class_labels))
        require(given == 1, "give prompts, or --prompt_file, or --class_labels (exactly one of the three)")


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig:
    """Pass a real video through the autoencoder: its content frame, the weight maps, original and reconstruction
    side by side, with the PSNR. The shipped model knows emoji only: expect it to blur camera videos.

    Attributes:
        video: Video file (mp4, webm, avi, mkv, mov, gif) or folder of frames.
        pretrained_model_name_or_path: Pipeline folder or hub id; "emoji" is the model shipped with the package.
        autoencoder: Folder of a ContentMotionAutoencoder that replaces the pipeline's.
        num_frames: Frames per clip; the model's training length when not given.
        height: Pixels the video is resized to (shorter side, then centre crop); the training size when not given.
        width: Pixels, see height.
        frame_stride: Take every n-th frame of the file.
        output_dir: Folder for `sheet.png`, `reconstruction.mp4` and `reconstruction.json`.
        device: "auto", "cpu", "cuda", ...
    """

    video: str
    pretrained_model_name_or_path: str = SHIPPED_MODEL
    autoencoder: str | None = None
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    frame_stride: int = 1
    output_dir: str = "outputs/reconstruct"
    device: str = "auto"

    def __post_init__(self) -> None:
        require_positive(self, "num_frames", "height", "width", "frame_stride")


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Show what a checkpoint holds: its parts, parameters, shapes and noise schedules.

    Attributes:
        checkpoint: Folder of a pipeline, an autoencoder, a motion model or a latent cache; or a hub id.
    """

    checkpoint: str = SHIPPED_MODEL


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Assemble parts into one pipeline folder that `generate` and diffusers load.

    Attributes:
        pretrained_model_name_or_path: Pipeline folder or hub id: Stable Diffusion, or the output of train-content.
        autoencoder: Folder of the ContentMotionAutoencoder.
        motion_transformer: Folder of the MotionDiT.
        output_dir: The new folder; must not exist or be empty.
        dtype: Precision of the saved weights.
    """

    pretrained_model_name_or_path: str
    autoencoder: str | None = None
    motion_transformer: str | None = None
    output_dir: str
    dtype: Literal["fp32", "fp16", "bf16"] = "fp16"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(FolderConfig, SamplingConfig):
    """Real FVD and PSNR of a checkpoint on a folder of videos: reconstruction, motion predicted for true content
    frames, full generation, beside two references (frozen clips, two halves of the real clips).

    Attributes:
        data_dir: Where the videos are (see train-autoencoder).
        i3d: I3D weights (safetensors); else the environment variable CONTENTMOTION_I3D.
        num_videos: Use only n clips, drawn from the seed.
        caption_index: Which of a clip's captions to generate from.
        output_dir: Folder for `scores.json`, `sheet.png` and the cached features; an interrupted run goes on there.
    """

    data_dir: str
    i3d: str | None = None
    num_videos: int | None = None
    caption_index: int = 0
    output_dir: str = "outputs/evaluate"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_videos")
        require_not_negative(self, "caption_index")


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
        fps: Take the frames that are shown at this rate instead, whatever the file's own; files with fewer frames per
            second are left out.
        resize_mode: "center": fill the frame, cut off what sticks out on both sides; "random": cut it off at random;
            "pad": show all, between black bars.
        random_flip: Mirror every second clip (wrong where captions say left or right).
    """

    train_data_dir: str
    num_frames: int = 16
    height: int = 64
    width: int = 64
    frame_stride: int = 1
    fps: float | None = None
    resize_mode: Literal["center", "random", "pad"] = "center"
    random_flip: bool = False

    def __post_init__(self) -> None:
        getattr(super(), "__post_init__", lambda: None)()  # the others that a command has
        require_positive(self, "num_frames", "height", "width", "frame_stride", "fps")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What every training command shares. Running the same command again resumes it, exactly.

    Attributes:
        output_dir: Folder of the run: checkpoints, metrics, previews, and at the end the trained model.
        max_train_steps: Optimizer steps in all.
        train_batch_size: Items per process and forward pass.
        gradient_accumulation_steps: Forward passes per optimizer step.
        learning_rate: Peak learning rate.
        lr_scheduler: Schedule after the warm-up (diffusers' names).
        lr_warmup_steps: Steps of linear warm-up.
        adam_beta1: Adam's first decay rate.
        adam_beta2: Adam's second decay rate.
        adam_weight_decay: Decoupled weight decay.
        max_grad_norm: Clip the gradient's norm to this; 0 does not clip.
        ema_decay: Decay of the weights' moving average, which is what gets saved at the end; 0 turns it off.
        mixed_precision: "auto" takes bf16 where the processor or the GPU has it, else full precision.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third slower.
        checkpointing_steps: Save a checkpoint every n steps.
        checkpoints_total_limit: Keep only the last k checkpoints.
        resume_from_checkpoint: "latest", a checkpoint folder of this run, or "none" to refuse to go on.
        validation_steps: Write preview videos every n steps; 0 turns them off.
        logging_steps: Write metrics every n steps.
        report_to: Tracker besides `metrics.jsonl`: tensorboard, wandb, comet_ml, ... or none.
        dataloader_num_workers: Processes that decode videos; 0 decodes in the training process.
        seed: Seed of the initial weights, the batches and the noise.
        max_bad_fraction: Stop when more than this share of the data turns out bad; less is skipped and named.
        shuffle_window: Clips that are mixed with one another, read from shards (of a cache or of a stream) that no
            other process reads; none: every clip of a cache with every other, which reads all over the disk.
    """

    output_dir: str
    max_train_steps: int = 1000
    train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-4
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = "constant_with_warmup"
    lr_warmup_steps: int = 100
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: MixedPrecision = "auto"
    gradient_checkpointing: bool = False
    checkpointing_steps: int = 500
    checkpoints_total_limit: int = 2
    resume_from_checkpoint: str = "latest"
    validation_steps: int = 500
    logging_steps: int = 10
    report_to: str = "tensorboard"
    dataloader_num_workers: int = 0
    seed: int = 0
    max_bad_fraction: float = 0.01
    shuffle_window: int | None = None

    def __post_init__(self) -> None:
        require_positive(
            self, "max_train_steps", "train_batch_size", "gradient_accumulation_steps", "learning_rate",
            "checkpointing_steps", "checkpoints_total_limit", "logging_steps", "shuffle_window",
        )  # fmt: skip
        require_not_negative(
            self, "lr_warmup_steps", "validation_steps", "dataloader_num_workers", "adam_weight_decay", "seed",
            "max_grad_norm",
        )  # fmt: skip
        require(0 <= self.ema_decay < 1, f"ema_decay must be in [0, 1), got {self.ema_decay}")
        require(0 <= self.max_bad_fraction < 1, f"max_bad_fraction must be in [0, 1), got {self.max_bad_fraction}")


@dataclass(frozen=True, kw_only=True)
class TrainVAEConfig(ClipConfig, TrainConfig):
    """Train a small image VAE on the frames of your videos: principal components of patches, refined by a small
    convolutional network. Only needed when no pretrained image VAE fits; the paper uses Stable Diffusion's.

    Attributes:
        latent_channels: Channels of the image latent.
        num_downsamples: How often height and width are halved; patches are 2 to the power of this.
        hidden_channels: Width of the refining network.
        num_layers: Residual blocks of the refining network.
        latent_noise: Standard deviation of noise added to the (unit-scale) latents in training, so that the decoder
            forgives the small errors that a diffusion model makes.
    """

    latent_channels: int = 12
    num_downsamples: int = 2
    hidden_channels: int = 96
    num_layers: int = 4
    latent_noise: float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "latent_channels", "num_downsamples", "hidden_channels", "num_layers")
        require_not_negative(self, "latent_noise")


@dataclass(frozen=True, kw_only=True)
class TrainAutoencoderConfig(ClipConfig, TrainConfig):
    """Train the autoencoder that splits a video into a content frame and a motion latent (CMD Eq. 3-6).

    Example: contentmotion train-autoencoder --config configs/emoji/autoencoder.yaml

    Attributes:
        vae: Image VAE whose latents are split: a VAE folder, or a Stable Diffusion folder or hub id; none works on
            pixels.
        buckets: Sizes to train on side by side, each like "16x256x384" (frames, height, width): every video goes into
            the one that fits it best, every batch comes from one; none: num_frames, height and width for all.
        cache_latents: Keep the clips' VAE latents in memory (small data sets): encodes each clip once.
        cache_dir: Cache that `encode --latents_only` filled: trains on its latents, and decodes no video.
        patch_size: Patch size of the TimeSformers.
        hidden_size: Width of the TimeSformers.
        depth: Blocks of the encoder, and of the decoder.
        num_heads: Attention heads.
        head_dim: Channels per head.
        mlp_ratio: Width of the GEGLU layers over hidden_size.
        motion_channels: Channels D of the motion latent.
        content_mode: "softmax": learned weights over frames (Eq. 3); "mean": their plain mean (the ablation).
        residual_decoding: The decoder predicts the difference from the content frame, starting at zero.
        refine_channels: Width of a convolutional head behind the decoder's patches; 0: none, as in the paper.
        perceptual_weight: Weight of LPIPS between decoded and true pixels, beside the squared error (ours; the paper
            has the squared error alone). It sharpens; it needs height and width of 32 at least.
        perceptual_start_step: Begin with LPIPS after this many steps, when there is something to sharpen.
        perceptual_frames: Frames of each clip that LPIPS compares, drawn anew each step.
        lpips: LPIPS weights (safetensors, AlexNet); else the environment variable CONTENTMOTION_LPIPS.
    """

    train_data_dir: str | None = None
    vae: str | None = None
    buckets: tuple[str, ...] = ()
    cache_latents: bool = False
    cache_dir: str | None = None
    patch_size: int = 2
    hidden_size: int = 384
    depth: int = 12
    num_heads: int = 8
    head_dim: int = 64
    mlp_ratio: float = 4.0
    motion_channels: int = 8
    content_mode: Literal["softmax", "mean"] = "softmax"
    residual_decoding: bool = True
    refine_channels: int = 0
    perceptual_weight: float = 0.0
    perceptual_start_step: int = 0
    perceptual_frames: int = 2
    lpips: str | None = None
    adam_beta1: float = 0.5
    adam_beta2: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in self.buckets:
            parse_bucket(text)
        require(
            not (self.buckets and (self.cache_latents or self.cache_dir)),
            "buckets are cut from videos: they go with neither cache_latents nor cache_dir",
        )
        require_positive(
            self, "patch_size", "hidden_size", "depth", "num_heads", "head_dim", "motion_channels", "perceptual_frames"
        )
        require_not_negative(self, "refine_channels", "perceptual_weight", "perceptual_start_step")
        require(
            not self.perceptual_weight or min(self.height, self.width) >= 32,
            f"perceptual_weight needs clips of 32x32 pixels or more, got {self.height}x{self.width}",
        )


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(ClipConfig):
    """Encode videos once: fill a cache with content frames and motion latents, and measure the motion's mean and
    standard deviation. train-content and train-motion read the cache. A run that was stopped goes on. Several
    processes share the work: `torchrun --nproc_per_node 8 -m contentmotion encode ...`.

    Attributes:
        autoencoder: Folder of the trained ContentMotionAutoencoder; the motion statistics are written into its config.
        vae: The image VAE it was trained with (none: pixels).
        latents_only: Cache the VAE's latents of all frames instead, for `train-autoencoder --cache_dir`.
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
    latents_only: bool = False
    pretrained_model_name_or_path: str | None = None
    text_features: Literal["pooled", "tokens"] = "pooled"
    output_dir: str
    encode_batch_size: int = 8
    clips_per_shard: int = 256
    num_clips_per_video: int = 1
    seed: int = 0
    mixed_precision: MixedPrecision = "no"
    cache_dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    dataloader_num_workers: int = 0
    max_bad_fraction: float = 0.01
    device: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "encode_batch_size", "clips_per_shard", "num_clips_per_video")
        require_not_negative(self, "seed", "dataloader_num_workers")
        require(0 <= self.max_bad_fraction < 1, f"max_bad_fraction must be in [0, 1), got {self.max_bad_fraction}")
        require(
            self.latents_only == (self.autoencoder is None),
            "give --autoencoder, or --latents_only true (exactly one of the two)",
        )


@dataclass(frozen=True, kw_only=True)
class InspectConfig(ClipConfig):
    """Look at a data set before training on it: counts, durations, sizes, captions, bad files with the reason of each,
    how many clips a recipe gets out of it and how large their cache would be. Writes inspect.json and inspect.png.

    Example: contentmotion inspect clips --config configs/webvid-sd21/autoencoder.yaml

    Attributes:
        train_data_dir: Where the videos are (see train-autoencoder).
        num_videos: Look at only so many, spread evenly over the list; the numbers of clips are then estimates.
        num_clips_per_video: Clips cut from each file (see encode).
        decode: Decode a clip of each video, which finds damage that the header does not show; else read headers only.
        vae: Image VAE of the recipe, for the size of the cache (see train-autoencoder).
        autoencoder: Autoencoder of the recipe, for the size of the cache; else the two settings that follow.
        patch_size: Patch size of the autoencoder.
        motion_channels: Channels of the motion latent.
        cache_dtype: Number format of the cache.
        num_workers: Processes; one per core when not given.
        output_dir: Folder for `inspect.json` and `inspect.png`.
    """

    takes_any_recipe = True  # settings of other commands are ignored in its YAML files

    num_videos: int | None = None
    num_clips_per_video: int = 1
    decode: bool = True
    vae: str | None = None
    autoencoder: str | None = None
    patch_size: int = 2
    motion_channels: int = 8
    cache_dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    num_workers: int | None = None
    output_dir: str = "outputs/inspect"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_videos", "num_clips_per_video", "patch_size", "motion_channels", "num_workers")


@dataclass(frozen=True, kw_only=True)
class TrainDenoiserConfig(TrainConfig):
    """What training the content model and the motion model share.

    Attributes:
        cache_dir: Latent cache, made by encode.
        pretrained_model_name_or_path: Stable Diffusion folder or hub id.
        conditioning_dropout_prob: Share of items trained with the empty prompt (or the null class).
        prediction_type: What a network made from scratch predicts; v_prediction when not given. A pretrained one keeps
            its own.
    """

    cache_dir: str
    pretrained_model_name_or_path: str | None = None
    conditioning_dropout_prob: float = 0.1
    prediction_type: PredictionType | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        share = self.conditioning_dropout_prob
        require(0 <= share <= 1, f"conditioning_dropout_prob must be in [0, 1], got {share}")
        require_positive(self, *(n for n in ("hidden_size", "depth", "num_heads", "patch_size") if hasattr(self, n)))


@dataclass(frozen=True, kw_only=True)
class TrainContentConfig(TrainDenoiserConfig):
    """Train the content model: fine-tune a Stable Diffusion UNet on content frames, with no new parameter
    (CMD Eq. 7), or train one from scratch. The output is a Stable Diffusion folder.

    Attributes:
        vae: Image VAE of a model trained from scratch (none: pixels).
        architecture: Of a model trained from scratch: "unet" (text) or "dit" (classes).
        block_out_channels: UNet from scratch: channels per resolution.
        layers_per_block: UNet from scratch: residual blocks per resolution.
        num_attention_heads: UNet from scratch: attention heads.
        text_hidden_size: Text encoder from scratch: width.
        text_num_layers: Text encoder from scratch: depth.
        vocab_size: Text encoder from scratch: size of the vocabulary, learned from the captions.
        train_text_encoder: Train the text encoder too (always so when it is made from scratch).
        hidden_size: DiT from scratch: width.
        depth: DiT from scratch: blocks.
        num_heads: DiT from scratch: attention heads.
        patch_size: DiT from scratch: patch size.
        learn_sigma: DiT from scratch: learn the variance (DiT's hybrid loss).
        validation_prompts: Prompts of the preview pictures; captions of the cache when not given.
    """

    vae: str | None = None
    architecture: Literal["unet", "dit"] = "unet"
    block_out_channels: tuple[int, ...] = (96, 128, 128)
    layers_per_block: int = 1
    num_attention_heads: int = 4
    text_hidden_size: int = 128
    text_num_layers: int = 2
    vocab_size: int = 1024
    train_text_encoder: bool = False
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    patch_size: int = 2
    learn_sigma: bool = False
    validation_prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "layers_per_block", "num_attention_heads", "text_num_layers", "vocab_size")
        width = self.text_hidden_size
        require(width > 0 and width % 32 == 0, f"text_hidden_size must be a multiple of 32, got {width}")
        require(
            not (self.pretrained_model_name_or_path and self.prediction_type),
            "prediction_type is for models from scratch: a pretrained one keeps its own",
        )


@dataclass(frozen=True, kw_only=True)
class TrainMotionConfig(TrainDenoiserConfig):
    """Train the motion model: a DiT that denoises the motion latent given the content frame (CMD Eq. 8).
    pretrained_model_name_or_path names the folder whose text encoder is used.

    Attributes:
        autoencoder: Folder of the ContentMotionAutoencoder that filled the cache: it knows the motion's mean and
            deviation, and shows the previews.
        hidden_size: Width.
        depth: Blocks.
        num_heads: Attention heads.
        patch_size: Patch size on the motion planes.
        content_patch_size: Patch size on the content frame ("key" patch of CMD Table 6).
        learn_sigma: Learn the variance (DiT's hybrid loss; the paper's recipes do).
        content_noise: Standard deviation of noise added to the content frame in training, relative to its own, so
            that the motion model forgives what the content model gets wrong.
    """

    autoencoder: str
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    patch_size: int = 2
    content_patch_size: int = 4
    learn_sigma: bool = False
    content_noise: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "content_patch_size")
        require_not_negative(self, "content_noise")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainConfig):
    """Distil the content model or the motion model of a pipeline into one that samples in 1 to 8 steps (consistency
    distillation, VideoLCM). `export` and `generate` take the result in the teacher's place.

    Example: contentmotion distill --part content --cache_dir outputs/cache --output_dir outputs/content-lcm

    Attributes:
        pretrained_model_name_or_path: The teacher: a pipeline folder or hub id; "emoji" is the model shipped with the
            package.
        part: Which of its two models.
        cache_dir: Latent cache, made by encode with the teacher's autoencoder.
        guidance_scale: Guidance of the teacher that the student learns to do without, `null + g * (cond - null)`;
            VideoLCM's w of 9 is 10. Take what the teacher is sampled with.
        num_ddim_steps: Steps of the teacher's solver over the whole schedule.
        huber_c: Below this, the loss is quadratic.
        content_noise: Of the motion model: noise on its content frames, see train-motion.
        validation_prompts: Prompts of the preview pictures; captions of the cache when not given, and for motion.
    """

    pretrained_model_name_or_path: str = SHIPPED_MODEL
    part: Literal["content", "motion"]
    cache_dir: str
    guidance_scale: float = 10.0
    num_ddim_steps: int = 50
    huber_c: float = 0.001
    content_noise: float = 0.0
    validation_prompts: tuple[str, ...] = ()
    learning_rate: float = 1e-5
    ema_decay: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_ddim_steps", "huber_c", "ema_decay")
        require_not_negative(self, "content_noise")
