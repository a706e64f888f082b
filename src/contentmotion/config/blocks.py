"""Blocks of settings: the sizes of networks made from scratch, and what comes with a switch of its own.

A block is one field of a command's config: ``model:`` in YAML, ``--model.depth 12`` on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from contentmotion.config.common import require, require_not_negative, require_positive


@dataclass(frozen=True, kw_only=True)
class ImageVAESizes:
    """Sizes of the image VAE.

    Attributes:
        latent_channels: Channels of the image latent.
        num_downsamples: How often height and width are halved; patches are 2 to the power of this.
        hidden_channels: Width of the refining network.
        num_layers: Residual blocks of the refining network.
    """

    block: ClassVar[str] = "model"

    latent_channels: int = 12
    num_downsamples: int = 2
    hidden_channels: int = 96
    num_layers: int = 4

    def __post_init__(self) -> None:
        require_positive(self, "latent_channels", "num_downsamples", "hidden_channels", "num_layers")


@dataclass(frozen=True, kw_only=True)
class MotionLatentSizes:
    """What the size of a motion latent depends on.

    Attributes:
        patch_size: Patch size of the autoencoder.
        motion_channels: Channels D of the motion latent.
    """

    block: ClassVar[str] = "model"

    patch_size: int = 2
    motion_channels: int = 8

    def __post_init__(self) -> None:
        require_positive(self, "patch_size", "motion_channels")


@dataclass(frozen=True, kw_only=True)
class AutoencoderSizes(MotionLatentSizes):
    """Sizes of the autoencoder.

    Attributes:
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
        attention_window: Side, in patches, of the windows inside which two of three decoder blocks attend: cheaper
            where frames are large; 0: none, as in the paper.
    """

    hidden_size: int = 384
    depth: int = 12
    num_heads: int = 8
    head_dim: int = 64
    mlp_ratio: float = 4.0
    content_mode: Literal["softmax", "mean"] = "softmax"
    residual_decoding: bool = True
    refine_channels: int = 0
    attention_window: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "hidden_size", "depth", "num_heads", "head_dim", "mlp_ratio")
        require_not_negative(self, "refine_channels", "attention_window")


@dataclass(frozen=True, kw_only=True)
class UNetSizes:
    """Sizes of a UNet and of its text encoder.

    Attributes:
        block_out_channels: UNet: channels per resolution.
        layers_per_block: UNet: residual blocks per resolution.
        num_attention_heads: UNet: attention heads.
        text_hidden_size: Text encoder: width.
        text_num_layers: Text encoder: depth.
        vocab_size: Text encoder: size of the vocabulary, learned from the captions.
    """

    block: ClassVar[str] = "model"

    block_out_channels: tuple[int, ...] = (96, 128, 128)
    layers_per_block: int = 1
    num_attention_heads: int = 4
    text_hidden_size: int = 128
    text_num_layers: int = 2
    vocab_size: int = 1024

    def __post_init__(self) -> None:
        require_positive(self, "layers_per_block", "num_attention_heads", "text_num_layers", "vocab_size")
        width = self.text_hidden_size
        require(width > 0 and width % 32 == 0, f"model.text_hidden_size must be a multiple of 32, got {width}")


@dataclass(frozen=True, kw_only=True)
class ContentSizes(UNetSizes):
    """Sizes of the content model: a UNet with its text encoder, or a DiT.

    Attributes:
        architecture: "unet" (text) or "dit" (classes).
        hidden_size: DiT: width.
        depth: DiT: blocks.
        num_heads: DiT: attention heads.
        patch_size: DiT: patch size.
        learn_sigma: DiT: learn the variance (DiT's hybrid loss).
    """

    architecture: Literal["unet", "dit"] = "unet"
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    patch_size: int = 2
    learn_sigma: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "hidden_size", "depth", "num_heads", "patch_size")


@dataclass(frozen=True, kw_only=True)
class MotionSizes:
    """Sizes of the motion model.

    Attributes:
        hidden_size: Width.
        depth: Blocks.
        num_heads: Attention heads.
        patch_size: Patch size on the motion planes.
        content_patch_size: Patch size on the content frame ("key" patch of CMD Table 6).
        learn_sigma: Learn the variance (DiT's hybrid loss; the paper's recipes do).
    """

    block: ClassVar[str] = "model"

    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    patch_size: int = 2
    content_patch_size: int = 4
    learn_sigma: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "hidden_size", "depth", "num_heads", "patch_size", "content_patch_size")


@dataclass(frozen=True, kw_only=True)
class VideoSizes(UNetSizes):
    """Sizes of a video UNet, of its text encoder and of its condition encoder.

    Attributes:
        condition_hidden_channels: Width of the condition encoder.
        condition_channels: Channels that it adds to the noisy latents.
    """

    block_out_channels: tuple[int, ...] = (64, 96, 128)
    condition_hidden_channels: int = 64
    condition_channels: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "condition_hidden_channels", "condition_channels")


@dataclass(frozen=True, kw_only=True)
class ScheduledEvaluation:
    """Scores while training, by the code of ``evaluate``: into metrics.jsonl, the trackers and eval-N/.

    Attributes:
        steps: Score every n steps, and keep the model with the lowest FVD in best/ (best.json names its step); 0 never.
        data_dir: Real videos to score against, in any layout (docs/data.md).
        split: Split of them, where they have splits.
        num_videos: Use only n of them, drawn from the seed.
        num_inference_steps: Denoising steps; when not given 50, or 4 of a distilled model.
        i3d: I3D weights (see evaluate).
    """

    block: ClassVar[str] = "eval"

    steps: int = 0
    data_dir: str | None = None
    split: str | None = "test"
    num_videos: int | None = 64
    num_inference_steps: int | None = None
    i3d: str | None = None

    def __post_init__(self) -> None:
        require_not_negative(self, "steps")
        require_positive(self, "num_videos", "num_inference_steps")
        require(not self.steps or self.data_dir is not None, "eval.steps needs --eval.data_dir")


@dataclass(frozen=True, kw_only=True)
class ContentEvaluation(ScheduledEvaluation):
    """Scores of the content model while training.

    Attributes:
        autoencoder: The autoencoder that filled the cache, for the true content frames.
    """

    autoencoder: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.steps or self.autoencoder is not None,
            "eval.steps of train-content needs --eval.autoencoder: it says what the true content frames are",
        )


@dataclass(frozen=True, kw_only=True)
class PerceptualLoss:
    """LPIPS beside the squared error (ours; the paper has the squared error alone).

    Attributes:
        weight: Weight of LPIPS between decoded and true pixels; 0: none. It sharpens; it needs height and width of 32
            at least.
        start_step: Begin with LPIPS after this many steps, when there is something to sharpen.
        frames: Frames of each clip that LPIPS compares, drawn anew each step.
        lpips: LPIPS weights (safetensors, AlexNet); else the environment variable CONTENTMOTION_LPIPS.
    """

    block: ClassVar[str] = "perceptual"

    weight: float = 0.0
    start_step: int = 0
    frames: int = 2
    lpips: str | None = None

    def __post_init__(self) -> None:
        require_not_negative(self, "weight", "start_step")
        require_positive(self, "frames")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters (PEFT) beside a network's weights.

    Attributes:
        rank: Train adapters of this rank instead of all weights; 0 trains all.
        alpha: Scale of the adapters, over the rank; the rank when not given.
        target_modules: Ends of the names of the layers with an adapter; when not given the attention's and the
            feed-forward ones.
    """

    block: ClassVar[str] = "lora"

    rank: int = 0
    alpha: float | None = None
    target_modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_positive(self, "alpha")
        require_not_negative(self, "rank")
        require(
            self.rank > 0 or not (self.alpha or self.target_modules),
            "lora.alpha and lora.target_modules need --lora.rank",
        )
