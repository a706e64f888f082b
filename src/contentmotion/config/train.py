"""Settings of training: what all of it shares, CMD's stages, video models, and all stages in one command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from contentmotion.config.blocks import (
    AutoencoderSizes,
    ContentEvaluation,
    ContentSizes,
    HubSettings,
    ImageVAESizes,
    LoraSettings,
    MotionSizes,
    PerceptualLoss,
    ScaleSettings,
    ScheduledEvaluation,
    VideoSizes,
)
from contentmotion.config.common import (
    Batch,
    Count,
    Decay,
    Every,
    MixedPrecision,
    Positive,
    PredictionType,
    Range,
    Rate,
    Seed,
    Settings,
    Share,
    Weight,
    Workers,
    parse_bucket,
    require,
    require_named_model,
)
from contentmotion.config.data import ClipConfig, ConditionName, FolderConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
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
        mixed_precision: "auto": what `accelerate launch` was told, else bf16 where the hardware has it, else "no".
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third slower.
        checkpointing_steps: Save a checkpoint every n steps.
        checkpoints_total_limit: Keep only the last k checkpoints.
        resume_from_checkpoint: "latest", a checkpoint folder of this run, or "none" to refuse to go on.
        validation_steps: Write preview videos every n steps; 0 turns them off.
        logging_steps: Write metrics every n steps.
        report_to: Trackers besides `metrics.jsonl`: tensorboard, wandb, comet_ml, ..., several with commas between
            them, or none. They get the settings, the numbers and the previews, and a resumed run goes on there.
        dataloader_num_workers: Processes that decode videos; 0 decodes in the training process.
        seed: Seed of the initial weights, the batches and the noise.
        max_bad_fraction: Stop when more than this share of the data turns out bad; less is skipped and named.
        scale: What long runs, large models and many processes need (docs/scaling.md).
        hub: What is taken from the hub, and what goes there.
        dry_run: Print parameters, memory and FLOPs of the run, and do nothing else.
    """

    output_dir: str
    max_train_steps: Count = 1000
    train_batch_size: Batch = 8
    gradient_accumulation_steps: Batch = 1
    learning_rate: Rate = 1e-4
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = "constant_with_warmup"
    lr_warmup_steps: Every = 100
    adam_beta1: Decay = 0.9
    adam_beta2: Decay = 0.999
    adam_weight_decay: Weight = 0.0
    max_grad_norm: Weight = 1.0
    ema_decay: Decay = 0.999
    mixed_precision: MixedPrecision = "auto"
    gradient_checkpointing: bool = False
    checkpointing_steps: Count = 500
    checkpoints_total_limit: Count = 2
    resume_from_checkpoint: str = "latest"
    validation_steps: Every = 500
    logging_steps: Count = 10
    report_to: str = "tensorboard"
    hub: HubSettings = HubSettings()
    dataloader_num_workers: Workers = 0
    seed: Seed = 0
    max_bad_fraction: Decay = 0.01
    scale: ScaleSettings = ScaleSettings()
    dry_run: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_named_model(self, self.hub)
        if self.scale.cuda_graphs and self.gradient_checkpointing:
            raise ValueError("scale.cuda_graphs goes without gradient_checkpointing: it records no random numbers")


@dataclass(frozen=True, kw_only=True)
class ScoredTrainConfig(TrainConfig):
    """What every training command shares whose model can be scored while it trains.

    Attributes:
        eval: Scores while training, by the code of `evaluate`.
    """

    eval: ScheduledEvaluation = ScheduledEvaluation()


@dataclass(frozen=True, kw_only=True)
class TrainVAEConfig(ClipConfig, TrainConfig):
    """Train a small image VAE on the frames of your videos: principal components of patches, refined by a small
    convolutional network. Only needed when no pretrained image VAE fits; the paper uses Stable Diffusion's.

    Attributes:
        model: Sizes of the image VAE.
        latent_noise: Standard deviation of noise added to each channel of the latents in training, relative to its
            own, so that the decoder forgives the small errors that a diffusion model makes.
        latent_whitening: How much alike the channels' variances are made, for models that denoise the latents:
            0 leaves the principal components as they are, 1 gives each unit variance, 0.5 halves the exponent.
    """

    model: ImageVAESizes = ImageVAESizes()
    latent_noise: Weight = 0.03
    latent_whitening: Share = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainAutoencoderConfig(ClipConfig, ScoredTrainConfig):
    """Train the autoencoder that splits a video into a content frame and a motion latent (CMD Eq. 3-6).

    Example: contentmotion train-autoencoder --config configs/emoji/autoencoder.yaml

    Attributes:
        vae: Image VAE whose latents are split: a VAE folder, or a Stable Diffusion folder or hub id; none: pixels.
        buckets: Sizes to train on side by side, each like "16x256x384" (frames, height, width): every video goes into
            the one that fits it best, every batch comes from one; none: num_frames, height and width for all.
        cache_latents: Keep the clips' VAE latents in memory (small data sets): encodes each clip once.
        latent_cache: Cache that `encode --latents_only` filled: trains on its latents, and decodes no video. One with
            buckets trains on all their sizes; num_frames, height and width are one of them.
        model: Sizes of the autoencoder.
        perceptual: What is weighed beside the squared error (ours; the paper has the squared error alone).
    """

    train_data_dir: str | None = None
    vae: str | None = None
    buckets: tuple[str, ...] = ()
    cache_latents: bool = False
    latent_cache: str | None = None
    model: AutoencoderSizes = AutoencoderSizes()
    perceptual: PerceptualLoss = PerceptualLoss()
    adam_beta1: Decay = 0.5
    adam_beta2: Decay = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in self.buckets:
            parse_bucket(text)
        if self.buckets and (self.cache_latents or self.latent_cache):
            raise ValueError(
                "buckets go with neither cache_latents nor latent_cache (a cache has those that encode --buckets made)"
            )
        if self.latent_cache:
            self.require_no_draw("changes nothing of a latent cache: give it to encode, with --num_clips_per_video 2")
        if self.cache_latents:
            self.require_no_draw("goes without --cache_latents true, which encodes one centred clip of each video")
        if self.perceptual.weight and min(self.height, self.width) < 32:
            raise ValueError(f"perceptual.weight needs clips of 32x32 pixels or more, got {self.height}x{self.width}")


@dataclass(frozen=True, kw_only=True)
class TrainDenoiserConfig(ScoredTrainConfig):
    """What training the content model and the motion model share.

    Attributes:
        latent_cache: Latent cache, made by encode.
        pretrained_model_name_or_path: Stable Diffusion folder or hub id.
        conditioning_dropout_prob: Share of items trained with the empty prompt (or the null class).
        prediction_type: What a network made from scratch predicts; v_prediction when not given. With "flow" it predicts
            the velocity of flow matching. A pretrained one keeps its own.
        flow_shift: Of flow matching: above 1, times are moved towards noise, as large pictures need (SD3 Eq. 23). A
            pretrained network keeps its own.
        logit_mean: Of flow matching: mean of the times' logit (SD3's logit-normal times).
        logit_std: Of flow matching: standard deviation of the times' logit.
        snr_gamma: Weigh the loss by min(SNR, gamma) instead of the SNR that predicting the noise implies (Hang et al.
            2023, who take 5); none: the papers' plain loss.
        trainable_modules: Train only what has one of these words in its name, such as temp_ or attn2; else all.
    """

    latent_cache: str
    pretrained_model_name_or_path: str | None = None
    conditioning_dropout_prob: Share = 0.1
    prediction_type: PredictionType | None = None
    flow_shift: Positive = 1.0
    logit_mean: Annotated[float, Range(-100, 100)] = 0.0
    logit_std: Positive = 1.0
    snr_gamma: Positive | None = None
    trainable_modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        times = (self.flow_shift, self.logit_mean, self.logit_std)
        if times != (1.0, 0.0, 1.0) and self.prediction_type != "flow" and not self._keeps_schedule:
            raise ValueError("flow_shift, logit_mean and logit_std are of flows: they need --prediction_type flow")
        if self.prediction_type == "flow" and getattr(getattr(self, "model", None), "learn_sigma", False):
            raise ValueError("model.learn_sigma is DDPM's: a model of flow matching has no variance to learn")

    @property
    def _keeps_schedule(self) -> bool:
        """Whether only the model that is loaded says if it is one of flow matching."""
        return False


@dataclass(frozen=True, kw_only=True)
class TrainUNetConfig(TrainDenoiserConfig):
    """What training a UNet with text has, of images or of videos.

    Attributes:
        vae: Image VAE of a model trained from scratch (none: pixels).
        train_text_encoder: Train the text encoder too (always so when it is made from scratch).
        lora: Low-rank adapters (PEFT) beside a pretrained UNet's weights.
        validation_prompts: Prompts of the preview pictures; captions of the cache when not given.
    """

    vae: str | None = None
    train_text_encoder: bool = False
    lora: LoraSettings = LoraSettings()
    validation_prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora.rank and (self.train_text_encoder or not self.pretrained_model_name_or_path):
            raise ValueError(
                "lora.rank is for a pretrained UNet: it needs --pretrained_model_name_or_path, no train_text_encoder"
            )
        require(not (self.lora.rank and self.trainable_modules), "lora.rank goes without trainable_modules")
        if self._keeps_schedule and (self.prediction_type is not None or self.flow_shift != 1.0):
            raise ValueError("prediction_type and flow_shift are for models from scratch: pretrained ones keep theirs")

    @property
    def _keeps_schedule(self) -> bool:
        return bool(self.pretrained_model_name_or_path)


@dataclass(frozen=True, kw_only=True)
class TrainContentConfig(TrainUNetConfig):
    """Train the content model: fine-tune a Stable Diffusion UNet on content frames, with no new parameter
    (CMD Eq. 7), or train one from scratch. The output is a Stable Diffusion folder.

    Attributes:
        model: Sizes of a model trained from scratch: a UNet with its text encoder, or a DiT.
    """

    model: ContentSizes = ContentSizes()
    eval: ContentEvaluation = ContentEvaluation()


@dataclass(frozen=True, kw_only=True)
class TrainMotionConfig(TrainDenoiserConfig):
    """Train the motion model: a DiT that denoises the motion latent given the content frame (CMD Eq. 8).
    pretrained_model_name_or_path names the folder whose text encoder is used.

    Attributes:
        autoencoder: Folder of the autoencoder that filled the cache: it knows the motion's scale, and shows previews.
        model: Sizes of the motion model.
        content_noise: Standard deviation of noise added to each channel of the content frame in training, relative to
            its own, so that the motion model forgives what the content model gets wrong.
        overlap: Frames of motion at a clip's ends that are given at half of the clips, so that longer videos go on from
            the clip before, and loops close; a multiple of the patch size, at most half a clip. 0: none.
    """

    autoencoder: str
    model: MotionSizes = MotionSizes()
    content_noise: Weight = 0.0
    overlap: Annotated[int, Range(0, 5000)] = 0


@dataclass(frozen=True, kw_only=True)
class TrainVideoConfig(TrainUNetConfig):
    """Train a video UNet on whole clips, as VideoLCM's teacher is: inflated from a Stable Diffusion UNet, continued
    from a video model (ModelScope's folder, or the output of this command), or from scratch. With --conditions it
    learns to follow depth, sketches, masks and first frames, any of them or none. The output is a pipeline folder.

    Example: contentmotion train-video --latent_cache outputs/latents --vae outputs/vae --output_dir outputs/video

    Attributes:
        pretrained_model_name_or_path: Stable Diffusion or video pipeline folder or hub id; none trains from scratch.
        latent_cache: Latents of whole clips, made by `encode --latents_only true`; depth and sketches must be in it.
        model: Sizes of a model trained from scratch, and of the condition encoder.
        conditions: Conditions to learn: depth, sketch, mask, first_frame.
        condition_dropout_prob: Share of items that do without a condition, drawn for each one by itself; that all
            are dropped, or all are kept, is drawn besides.
    """

    model: VideoSizes = VideoSizes()
    conditions: tuple[ConditionName, ...] = ()
    condition_dropout_prob: Share = 0.5


@dataclass(frozen=True, kw_only=True)
class TrainPipelineConfig(FolderConfig):
    """From a folder of videos to a model of your own, in one command: cuts clips, trains every part, puts them
    together, draws what the clips' captions say, and writes a report. The same command goes on where it was stopped.

    Example: contentmotion train my_videos --output_dir outputs/mine

    The settings of each stage are in output_dir/settings, as YAML, before anything is trained (--dry_run true stops
    there): change them, and give the same command.

    Attributes:
        train_data_dir: Folder of the videos, of any size, length and layout. What they show is in a text beside each,
            in a list, or in their names ("a dog runs.mp4").
        output_dir: Folder for everything that is made.
        preset: Sizes and steps for a machine: cpu (two cores, some 20 minutes), 12gb, 24gb, 80gb (GPUs by their
            memory); "auto" looks at this one; or a YAML file of your own, like those in contentmotion/presets.
        image_model: Stable Diffusion folder or hub id to start from; else everything is trained from nothing.
        fine_tune: Train the image model on your clips, too; else it stays as it is, and your clips teach motion alone.
        vae: Image VAE to use where there is no image_model; else a small one is trained.
        seed: Seed of everything.
        dry_run: Write the settings, say what would be done, and train nothing.
    """

    train_data_dir: str
    output_dir: str = "outputs/mine"
    preset: str = "auto"
    image_model: str | None = None
    fine_tune: bool = False
    vae: str | None = None
    seed: Seed = 0
    dry_run: bool = False
