"""Settings of the commands that use a model: generate, demo, reconstruct, evaluate, info, export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from contentmotion.config.common import SHIPPED_MODEL, MixedPrecision, require, require_not_negative, require_positive
from contentmotion.config.data import FolderConfig


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
class DemoConfig(SamplingConfig):
    """Open a web page to play with a model: generate, take videos apart, compare. Only this machine can reach it,
    unless --server_name or --share says otherwise. Needs Gradio: pip install "contentmotion[demo]".

    Attributes:
        compare_with: A second pipeline folder or hub id, to compare with; a distilled one is what the page's few-step
            switch turns to.
        examples: Prompts that the page offers; for the shipped model some that it knows.
        server_name: Address to listen on; "0.0.0.0" lets the whole network in.
        server_port: Port to listen on.
        share: Ask gradio.live for a public address that leads here.
        queue_size: Requests that may wait; more are refused with a message.
        max_upload_mb: Megabytes that an uploaded video may have.
        max_video_seconds: Seconds that an uploaded video may last.
        max_prompt_length: Characters that a prompt may have.
        max_steps: Denoising steps that a visitor may ask for.
        max_videos: Videos that a visitor may ask for at once.
        keep_minutes: Minutes after which uploads and results are deleted; all are when the page is closed.
    """

    compare_with: str | None = None
    examples: list[str] | None = None
    server_name: str = "127.0.0.1"
    server_port: int = 7860
    share: bool = False
    queue_size: int = 16
    max_upload_mb: float = 50.0
    max_video_seconds: float = 60.0
    max_prompt_length: int = 500
    max_steps: int = 100
    max_videos: int = 4
    keep_minutes: float = 60.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "queue_size", "max_upload_mb", "max_video_seconds", "max_prompt_length")
        require_positive(self, "max_steps", "max_videos", "keep_minutes")
        require(0 <= self.server_port < 65536, f"server_port must be between 0 and 65535, got {self.server_port}")


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
