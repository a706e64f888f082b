"""Blocks of settings: the sizes of networks made from scratch, and what comes with a switch of its own.

A block is one field of a command's config: ``model:`` in YAML, ``--model.depth 12`` on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from contentmotion.config.common import (
    Count,
    Depth,
    Every,
    Frames,
    ModelWeights,
    Positive,
    Range,
    Settings,
    Weight,
    Width,
    require,
)


@dataclass(frozen=True, kw_only=True)
class ImageVAESizes(Settings):
    """Sizes of the image VAE.

    Attributes:
        latent_channels: Channels of the image latent.
        num_downsamples: How often height and width are halved; patches are 2 to the power of this.
        hidden_channels: Width of the refining network.
        num_layers: Residual blocks of the refining network.
    """

    latent_channels: Width = 12
    num_downsamples: Annotated[int, Range(1, 10)] = 2
    hidden_channels: Width = 96
    num_layers: Depth = 4


@dataclass(frozen=True, kw_only=True)
class MotionLatentSizes(Settings):
    """What the size of a motion latent depends on.

    Attributes:
        patch_size: Patch size of the autoencoder.
        motion_channels: Channels D of the motion latent.
    """

    patch_size: Width = 2
    motion_channels: Width = 8


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
        content_mode: "softmax": learned weights over frames (Eq. 3); "mean": their plain mean (the ablation);
            "frame": one frame as it is (ours): sharp, and any picture can be animated.
        content_index: Which frame that is; -1 is the last.
        residual_decoding: The decoder predicts the difference from the content frame, starting at zero.
        refine_channels: Width of a convolutional head behind the decoder's patches; 0: none, as in the paper.
        attention_window: Side, in patches, of the windows inside which two of three decoder blocks attend: cheaper
            where frames are large; 0: none, as in the paper.
        pretrained: Autoencoder of these sizes to go on from; its content_mode may differ.
    """

    hidden_size: Width = 384
    depth: Depth = 12
    num_heads: Depth = 8
    head_dim: Width = 64
    mlp_ratio: Positive = 4.0
    content_mode: Literal["softmax", "mean", "frame"] = "softmax"
    content_index: Annotated[int, Range(-(10**4), 10**4)] = 0
    residual_decoding: bool = True
    refine_channels: Annotated[int, Range(0, 16_384)] = 0
    attention_window: Annotated[int, Range(0, 16_384)] = 0
    pretrained: str | None = None


@dataclass(frozen=True, kw_only=True)
class UNetSizes(Settings):
    """Sizes of a UNet and of its text encoder.

    Attributes:
        block_out_channels: UNet: channels per resolution.
        layers_per_block: UNet: residual blocks per resolution.
        num_attention_heads: UNet: attention heads.
        text_hidden_size: Text encoder: width.
        text_num_layers: Text encoder: depth.
        text_max_length: Text encoder: tokens of a prompt.
        text_start: Text encoder: "clip", as CLIP starts; "words", as a bag of words, whose words alone are then to be
            trained (trainable_modules): few captions teach the layers above them to say the same of all.
        vocab_size: Text encoder: size of the vocabulary, learned from the captions.
    """

    block_out_channels: tuple[Width, ...] = (96, 128, 128)
    layers_per_block: Depth = 1
    num_attention_heads: Depth = 4
    text_hidden_size: Width = 128
    text_num_layers: Depth = 2
    text_max_length: Annotated[int, Range(3, 1024)] = 32
    text_start: Literal["clip", "words"] = "clip"
    vocab_size: Annotated[int, Range(1, 10**6)] = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        width = self.text_hidden_size
        require(width % 32 == 0, f"model.text_hidden_size must be a multiple of 32, got {width}")


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
    hidden_size: Width = 1152
    depth: Depth = 28
    num_heads: Depth = 16
    patch_size: Width = 2
    learn_sigma: bool = False


@dataclass(frozen=True, kw_only=True)
class MotionSizes(Settings):
    """Sizes of the motion model.

    Attributes:
        hidden_size: Width.
        depth: Blocks.
        num_heads: Attention heads.
        patch_size: Patch size on the motion planes.
        content_patch_size: Patch size on the content frame ("key" patch of CMD Table 6).
        learn_sigma: Learn the variance (DiT's hybrid loss; the paper's recipes do).
    """

    hidden_size: Width = 1152
    depth: Depth = 28
    num_heads: Depth = 16
    patch_size: Width = 2
    content_patch_size: Width = 4
    learn_sigma: bool = False


@dataclass(frozen=True, kw_only=True)
class VideoSizes(UNetSizes):
    """Sizes of a video UNet, of its text encoder and of its condition encoder.

    Attributes:
        condition_hidden_channels: Width of the condition encoder.
        condition_channels: Channels that it adds to the noisy latents.
    """

    block_out_channels: tuple[Width, ...] = (64, 96, 128)
    condition_hidden_channels: Width = 64
    condition_channels: Width = 8


@dataclass(frozen=True, kw_only=True)
class ScheduledEvaluation(Settings):
    """Scores while training, by the code of ``evaluate``: into metrics.jsonl, the trackers and eval-N/.

    Attributes:
        steps: Score every n steps, and keep the model with the lowest FVD in best/ (best.json names its step;
            of students see docs/distillation.md); 0 never.
        data_dir: Real videos to score against, in any layout (docs/data.md).
        split: Split of them, where they have splits.
        num_videos: Use only n of them, drawn from the seed; when not given 64, or all where there are fewer.
        num_inference_steps: Denoising steps; when not given 50, or 4 of a distilled model.
        i3d: I3D weights (see evaluate).
    """

    steps: Every = 0
    data_dir: str | None = None
    split: str | None = "test"
    num_videos: Count | None = 64
    num_inference_steps: Count | None = None
    i3d: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
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
        if self.steps and self.autoencoder is None:
            raise ValueError("eval.steps needs --eval.autoencoder: it says what the true content frames are")


@dataclass(frozen=True, kw_only=True)
class PerceptualLoss(Settings):
    """What is weighed beside the squared error (ours; the paper has the squared error alone).

    Attributes:
        weight: Weight of LPIPS between decoded and true pixels; 0: none. It sharpens; it needs 32x32 pixels or more.
        start_step: Begin with LPIPS after this many steps, when there is something to sharpen.
        frames: Frames of each clip that LPIPS compares, drawn anew each step.
        difference_weight: Weight of the squared error of differences between neighbouring frames, which is flicker.
        lpips: LPIPS weights (safetensors, AlexNet); else the environment variable CONTENTMOTION_LPIPS.
    """

    weight: Weight = 0.0
    start_step: Every = 0
    frames: Frames = 2
    difference_weight: Weight = 0.0
    lpips: str | None = None


@dataclass(frozen=True, kw_only=True)
class HubSettings(ModelWeights):
    """What training takes from the hub, and what goes there; on the command line without the block's name, too.

    Attributes:
        push_to_hub: Upload the trained model to the hub at the end (see push).
        hub_model_id: Where to: owner/name.
    """

    push_to_hub: bool = False
    hub_model_id: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.push_to_hub != (self.hub_model_id is not None):
            raise ValueError("--push_to_hub needs --hub_model_id owner/name, and that goes with it")


@dataclass(frozen=True, kw_only=True)
class ScaleSettings(Settings):
    """What long runs, large models and many processes need (docs/scaling.md).

    Attributes:
        use_8bit_adam: Adam's moments in 8 bits (bitsandbytes): a quarter of their memory.
        fsdp: Share weights, gradients, Adam's moments and the average out among the processes (FSDP2).
        torch_compile: Compile the networks' blocks; the first step takes minutes.
        offload_ema: Keep the moving average in the CPU's memory: less of the GPU's, slower.
        async_checkpointing: Write checkpoints while training goes on, from a copy in the CPU's memory.
        shuffle_window: Clips that are mixed with one another, read from shards (of a cache or of a stream) that no
            other process reads; none: every clip of a cache with every other, which reads all over the disk.
        max_train_time: Stop after so many minutes of training, with a checkpoint to go on from; none: no limit.
        cache_on_device: Keep a latent cache on the GPU, where it takes no more than a quarter of what is free there.
        noise_on_device: Draw noise on the GPU, without waiting; false: on the CPU, the same on every machine.
        cuda_graphs: Record forward and backward pass as one CUDA graph, for small models that a GPU finishes sooner
            than the processor can start; keeps the largest batch's activations, and gradients for each size of batch.
    """

    use_8bit_adam: bool = False
    fsdp: bool = False
    torch_compile: bool = False
    offload_ema: bool = False
    async_checkpointing: bool = False
    shuffle_window: Count | None = None
    max_train_time: Positive | None = None
    cache_on_device: bool = True
    noise_on_device: bool = True
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cuda_graphs and (not self.noise_on_device or self.torch_compile or self.fsdp):
            raise ValueError(
                "scale.cuda_graphs goes with noise drawn there (scale.noise_on_device), without torch_compile and fsdp"
            )


@dataclass(frozen=True, kw_only=True)
class LoraSettings(Settings):
    """Low-rank adapters (PEFT) beside a network's weights.

    Attributes:
        rank: Train adapters of this rank instead of all weights; 0 trains all.
        alpha: Scale of the adapters, over the rank; the rank when not given.
        target_modules: Ends of the names of the layers with an adapter; else the attention's and feed-forward ones.
    """

    rank: Annotated[int, Range(0, 16_384)] = 0
    alpha: Positive | None = None
    target_modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rank and (self.alpha or self.target_modules):
            raise ValueError("lora.alpha and lora.target_modules need --lora.rank")
