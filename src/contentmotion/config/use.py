"""Settings of the commands that use, measure, show or publish a model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from contentmotion.config.common import (
    SHIPPED_MODEL,
    Batch,
    Count,
    Frames,
    Guidance,
    HubConfig,
    MixedPrecision,
    Pixels,
    Positive,
    Range,
    Rate,
    Seed,
    Settings,
    Share,
    Time,
    Weight,
    require,
    require_interval,
)
from contentmotion.config.data import CaptionConfig, ConditionConfig


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(HubConfig):
    """How a pipeline samples.

    Attributes:
        pretrained_model_name_or_path: Pipeline folder or hub id; "emoji" is the model shipped with the package,
            "emoji-lcm" its distilled student of few steps.
        autoencoder: Folder of an autoencoder that replaces the pipeline's (or completes a Stable Diffusion folder).
        motion_transformer: Folder of a MotionDiT that replaces the pipeline's (or completes a Stable Diffusion folder).
        num_inference_steps: Denoising steps of the content frame; when not given 50, or 4 of a distilled model.
        motion_num_inference_steps: Denoising steps of the motion latent; when not given the content frame's number, or
            50 or 4 where only one of the two is distilled.
        guidance_scale: Classifier-free guidance of the content frame, `null + g * (cond - null)`; 1 turns it off. When
            not given what the folder says (2 of the shipped model), else 4; 1 for a distilled model.
        motion_guidance_scale: The same for the motion latent.
        guidance_interval: Guide the content frame between these two times of its noise schedule alone, such as 400 900
            of 0 (the picture) to 1000 (noise): the other steps cost one network pass.
        motion_guidance_interval: The same for the motion latent.
        guidance_rescale: How far contrast that guidance adds to the content frame is taken back, from 0 (not) to 1.
        motion_guidance_rescale: The same for the motion latent.
        seed: Seed of the initial noise: same seed, same machine, same videos.
        batch_size: Videos generated at once.
        mixed_precision: Precision of the networks; "auto" takes bf16 where the processor or the GPU has it.
        device: "auto", "cpu", "cuda", "cuda:1", "mps", ...
        enable_model_cpu_offload: Keep on the GPU only the network in use (needs a GPU).
    """

    pretrained_model_name_or_path: str = SHIPPED_MODEL
    autoencoder: str | None = None
    motion_transformer: str | None = None
    num_inference_steps: Count | None = None
    motion_num_inference_steps: Count | None = None
    guidance_scale: Guidance | None = None
    motion_guidance_scale: Guidance = 1.0
    guidance_interval: tuple[Time, ...] | None = None
    motion_guidance_interval: tuple[Time, ...] | None = None
    guidance_rescale: Share = 0.0
    motion_guidance_rescale: Share = 0.0
    seed: Seed = 0
    batch_size: Batch = 4
    mixed_precision: MixedPrecision = "auto"
    device: str = "auto"
    enable_model_cpu_offload: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_interval("--guidance_interval", self.guidance_interval)
        require_interval("--motion_guidance_interval", self.motion_guidance_interval)

    def sampling(self, motion: bool = True) -> dict[str, Any]:
        """Steps and guidance as a pipeline takes them, with or without those of a motion model."""
        names = (f.name for f in fields(SamplingConfig) if "guidance" in f.name or "inference_steps" in f.name)
        return {name: getattr(self, name) for name in names if motion or not name.startswith("motion_")}


@dataclass(frozen=True, kw_only=True)
class StartConfig(Settings):
    """Pictures and videos to start from, and long videos, for models of content and motion.

    Videos are read from their first frame on, at the rate of the model's training clips where they have more frames a
    second and the model says; what has another size or shape is fitted.

    Attributes:
        image: Picture to animate (png, jpeg, webp, gif). A prompt may say what it shows.
        video: Video to edit: the prompt re-draws what it shows by `strength`, and its motion is kept; or, with
            `motion_strength` alone, what it shows is kept and moves differently.
        motion_from: Video whose motion is taken, whatever it shows.
        strength: How much of the picture, or of what the video shows, is drawn anew: 0 keeps it, 1 forgets it. When
            not given 0.5; or 0 where the model's content frame is a real frame, and it is a picture.
        motion_strength: How much of the motion is drawn anew: 0 keeps it (so when not given), 1 forgets it.
        fit: What of another shape is fitted: "crop" cuts the middle out, "pad" adds black bars.
        frame_stride: Take every n-th frame of the videos instead.
        clip_frames: Frames made at once, of longer videos; the model's training length when not given.
        loop: The last frame is followed by the first.
        prompts_at: Prompts that change: "0: a cat" "32: a dog", instead of prompts; one video.
    """

    image: str | None = None
    video: str | None = None
    motion_from: str | None = None
    strength: Share | None = None
    motion_strength: Share | None = None
    fit: Literal["crop", "pad"] = "crop"
    frame_stride: Frames | None = None
    clip_frames: Frames | None = None
    loop: bool = False
    prompts_at: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not (self.image and self.video), "give --image or --video: each of them is what is shown")
        if self.strength is not None and not (self.image or self.video):
            raise ValueError("--strength is how much of a given picture is drawn anew: it needs --image or --video")
        if self.motion_strength is not None and not (self.motion_from or self.video):
            raise ValueError("--motion_strength is how much of a motion is redrawn: it needs --motion_from or --video")
        if self.frame_stride not in (None, 1) and not (self.motion_from or self.video):
            raise ValueError("--frame_stride is of a given video: it needs --motion_from or --video")
        self.schedule  # noqa: B018  raises

    @property
    def schedule(self) -> dict[int, str]:
        """``prompts_at`` by frame."""
        found: dict[int, str] = {}
        for text in self.prompts_at:
            frame, colon, prompt = text.partition(":")
            if not (colon and prompt.strip() and frame.strip().isdecimal()):
                raise ValueError(f'--prompts_at: a frame and what to show, such as "32: a dog", got {text!r}')
            found[int(frame)] = prompt.strip()
        require(not found or 0 in found, '--prompts_at begins at frame 0: give "0: what to show"')
        require(len(found) == len(self.prompts_at), "--prompts_at: a frame stands there twice")
        return found


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SamplingConfig, StartConfig, ConditionConfig):
    """Generate videos from prompts: mp4 and gif files and one PNG contact sheet.

    Example: contentmotion generate "red heart" "rocket" --seed 7 --output_dir outputs

    Example: contentmotion generate --image cat.png

    Example: contentmotion generate "a dog" --motion_from video.mp4

    Example: contentmotion generate "in watercolour" --video in.mp4 --strength 0.6

    Attributes:
        prompt: What to show, one video per prompt; also without the flag.
        prompt_file: Text file with one prompt a line (empty lines are skipped).
        class_labels: Class ids, for class-conditional models (instead of prompts).
        negative_prompt: What to steer away from (used when guidance is on).
        num_videos_per_prompt: Videos per prompt, each from its own noise.
        number: Number of the first video. Its noise is drawn from seed and number, which a file's name and `info` tell:
            with both, one video of a run can be made again alone.
        num_frames: Frames per video, any even number; the model's training length when not given.
        height: Pixels; the model's training size when not given.
        width: Pixels; the model's training size when not given.
        fps: Frames per second of the files written; the rate of the model's training clips when not given, or 8.
        formats: Kinds of file to write per video.
        interpolate: Videos on the way between two ends, both included, and `interpolation.mp4`, which plays one after
            another: between two prompts, or of one prompt, picture or video between two seeds or two motions.
        to_seed: Seed at the other end of `interpolate`.
        motion_to: Video whose motion is at its other end; that of `motion_from` is at the first.
        vae_decoder: Folder or hub id of an image VAE that draws the frames in the model's own place: an AutoencoderTiny
            made for the same latents (for Stable Diffusion's, madebyollin/taesd) costs a twentieth.
        vae_slicing: Decode one frame at a time: less memory.
        vae_tiling: Decode frames in tiles: still less memory, faint seams.
        compile: Compile the networks (torch.compile): minutes for the first clip, faster from the second on.
        cuda_graphs: Record the networks' calls as CUDA graphs: small models, and few videos at once, are faster.
        noise_on_device: Draw the noise on the GPU: faster, but other videos than a CPU draws from the same seed.
        quantization: "int8": both denoisers' weights in 8 bits (needs torchao): less memory.
        output_dir: Folder for the videos, `sheet.png` and `config.yaml`; created when missing.
    """

    prompt: list[str] | None = None
    prompt_file: str | None = None
    class_labels: list[Annotated[int, Range(0, 10**6)]] | None = None
    negative_prompt: str | None = None
    num_videos_per_prompt: Batch = 1
    number: Annotated[int, Range(0, 10**9)] = 0
    num_frames: Frames | None = None
    height: Pixels | None = None
    width: Pixels | None = None
    fps: Rate | None = None
    formats: tuple[Literal["mp4", "gif", "webm"], ...] = ("mp4", "gif")
    interpolate: Annotated[int, Range(2, 1000)] | None = None
    to_seed: Seed | None = None
    motion_to: str | None = None
    vae_decoder: str | None = None
    vae_slicing: bool = False
    vae_tiling: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    noise_on_device: bool = False
    quantization: Literal["none", "int8"] = "none"
    output_dir: str = "outputs"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cuda_graphs and (self.compile or self.enable_model_cpu_offload):
            raise ValueError("--cuda_graphs goes neither with --compile, which records them too, nor with offloading")
        given = sum(x is not None for x in (self.prompt, self.prompt_file, self.class_labels))
        if given != (0 if self.prompts_at else 1) and not (given == 0 and (self.image or self.video)):
            alone = ", or --prompts_at alone" if self.prompts_at else ""
            raise ValueError(f"give prompts, or --prompt_file, or --class_labels (exactly one of the three){alone}")
        for name in ("to_seed", "motion_to"):
            if getattr(self, name) is not None and self.interpolate is None:
                raise ValueError(f"--{name} is the other end of --interpolate NUMBER")
        require(self.motion_to is None or bool(self.motion_from), "--motion_to goes with --motion_from: two motions")
        if self.interpolate is not None and (self.num_videos_per_prompt > 1 or self.prompts_at):
            raise ValueError("--interpolate says how many videos: without --num_videos_per_prompt and --prompts_at")


@dataclass(frozen=True, kw_only=True)
class DemoConfig(SamplingConfig):
    """Open a web page to play with a model: generate, take videos apart, compare. Only this machine can reach it,
    unless --server_name or --share says otherwise. Needs Gradio: pip install "contentmotion[demo]".

    Attributes:
        compare_with: A second pipeline folder or hub id, to compare with; a distilled one is what the page's few-step
            switch turns to. For the shipped model it is its student when not given.
        examples: Prompts that the page offers; for the shipped model some that it knows.
        server_name: Address to listen on; "0.0.0.0" lets the whole network in.
        server_port: Port to listen on.
        allowed_hosts: Names by which the page may be called, beside localhost, this machine's own and addresses of
            numbers: those of a proxy before it, for instance. Other names are refused, lest foreign pages get in.
        share: Ask gradio.live for a public address that leads here.
        queue_size: Requests that may wait; more are refused with a message.
        max_upload_mb: Megabytes that an uploaded video may have.
        max_video_seconds: Seconds that an uploaded video may last.
        max_prompt_length: Characters that a prompt may have.
        max_steps: Denoising steps that a visitor may ask for.
        max_videos: Videos that a visitor may ask for at once.
        max_frames: Frames that a video may have.
        max_disk_mb: Megabytes that uploads and results may take together; when they do, no more are taken.
        keep_minutes: Minutes after which uploads and results are deleted; all are when the page is closed.
    """

    compare_with: str | None = None
    examples: list[str] | None = None
    server_name: str = "127.0.0.1"
    server_port: Annotated[int, Range(0, 65_535)] = 7860
    allowed_hosts: tuple[str, ...] = ()
    share: bool = False
    queue_size: Batch = 16
    max_upload_mb: Positive = 50.0
    max_video_seconds: Positive = 60.0
    max_prompt_length: Count = 500
    max_steps: Count = 100
    max_videos: Batch = 4
    max_frames: Frames = 96
    max_disk_mb: Positive = 2000.0
    keep_minutes: Positive = 60.0


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig(HubConfig):
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
    num_frames: Frames | None = None
    height: Pixels | None = None
    width: Pixels | None = None
    frame_stride: Frames = 1
    output_dir: str = "outputs/reconstruct"
    device: str = "auto"


Component = Literal["reconstruction", "frozen", "vae", "content", "motion", "full", "following"]
Resize = Literal["bilinear", "bilinear-antialiased", "bicubic", "bicubic-antialiased"]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(CaptionConfig, SamplingConfig):
    """Real FVD and other numbers of a checkpoint, or of a folder of videos, against real videos: a table, scores.json
    with the whole protocol, sheets of pictures. A stopped run goes on; what is computed is not computed again.

    Example: contentmotion evaluate --data_dir clips

    Two folders: --generated_dir videos. An autoencoder alone: --autoencoder AE --vae VAE --components reconstruction.
    Two scores side by side: --compare a/scores.json b/scores.json.

    Attributes:
        data_dir: Where the real videos are (see train-autoencoder).
        generated_dir: Score the videos of this folder instead of a model's; captions beside them are its prompts.
        components: What of a pipeline to score: "reconstruction" (the autoencoder), "frozen" (every frame is the
            content frame: what no motion would score), "vae" (the image VAE alone), "content" (generated content
            frames, held still, against true ones), "motion" (generated for true content frames), "full" (from the
            captions alone), "following" (of models with conditions: from the caption and one condition of the real
            clip, each in turn).
        vae: Image VAE (none: pixels), where an autoencoder is scored without a pipeline.
        i3d: I3D weights: a safetensors file, or owner/repository/file on the hub; else $CONTENTMOTION_I3D.
        lpips: LPIPS weights (safetensors, AlexNet); else CONTENTMOTION_LPIPS; without either it is left out.
        clip: CLIP model for CLIPSIM, a folder or a hub id such as openai/clip-vit-base-patch32; else it is left out.
        depth_model: Depth-estimation model, a folder or a hub id: estimates the real clips' depth where none lies
            beside them, and that of the videos which should follow it.
        preset: How a paper counts: "stylegan-v" (one random clip of every video), "ucf101-2048" and "ucf101-10000"
            (CMD's Table 1), "ucf101-zero-shot" (100 videos a class, with --class_prompts), "webvid" (5,000). Sets the
            next three and fvd_resize where they are not given.
        num_videos: Use only n real videos, drawn from the seed; fewer are an error.
        num_generated: Generate so many in full; else as many as there are real ones. More take the captions again,
            with other noise.
        videos_per_class: Generate so many of each class, instead.
        num_frames: Frames per clip; the model's training length when not given, or 16.
        frame_stride: Take every n-th frame of the real videos: what the model was trained on.
        fps: Take the frames that are shown at this rate instead (see train-autoencoder).
        resize_mode: "center" or "pad" (see train-autoencoder).
        height: Pixels; the model's training size when not given, or that of the videos in generated_dir.
        width: Pixels, see height.
        fvd_resize: How clips come to I3D's size; "bilinear" (without antialiasing) is StyleGAN-V's way.
        fvd_resolution: I3D's size, in pixels.
        num_seeds: Sample with so many seeds (`seed`, `seed + 1`, ...): the scores are means with their spread, and
            with LPIPS the diversity of the videos of one prompt is measured.
        caption_index: Which of a clip's captions to generate from.
        measures_dir: Folder that keeps what is measured of each clip, real or generated, with its protocol; evaluations
            may share one, and share what they can (output_dir/parts when not given).
        output_dir: Folder for `scores.json`, `sheet.png` and `nearest.png`.
        compare: Print these scores.json side by side instead; refuses what was not measured alike.
        compare_unlike: Compare it all the same.
        json: Print what scores.json holds, for programs, instead of a table.
    """

    data_dir: str | None = None
    generated_dir: str | None = None
    components: tuple[Component, ...] = ("reconstruction", "frozen", "vae", "motion", "full", "following")
    vae: str | None = None
    i3d: str | None = None
    lpips: str | None = None
    clip: str | None = None
    depth_model: str | None = None
    preset: Literal["stylegan-v", "ucf101-2048", "ucf101-10000", "ucf101-zero-shot", "webvid"] = "stylegan-v"
    num_videos: Count | None = None
    num_generated: Count | None = None
    videos_per_class: Count | None = None
    num_frames: Frames | None = None
    height: Pixels | None = None
    width: Pixels | None = None
    frame_stride: Frames = 1
    fps: Rate | None = None
    resize_mode: Literal["center", "random", "pad"] = "center"
    fvd_resize: Resize | None = None
    fvd_resolution: Pixels = 224
    num_seeds: Batch = 1
    caption_index: Annotated[int, Range(0, 10**6)] = 0
    measures_dir: str | None = None
    output_dir: str = "outputs/evaluate"
    compare: tuple[str, ...] = ()
    compare_unlike: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not (self.num_generated and self.videos_per_class), "give num_generated or videos_per_class, not both")
        require(bool(self.components), "components must name at least one")
        require(bool(self.data_dir) != bool(self.compare), "give --data_dir, or --compare (exactly one of the two)")
        require(len(self.compare) != 1, "--compare takes two scores.json or more")


@dataclass(frozen=True, kw_only=True)
class InfoConfig(Settings):
    """Show what a checkpoint holds: its parts, parameters, shapes and noise schedules; or of a generated video or
    picture which model made it, from which prompt and seed.

    Attributes:
        checkpoint: Folder of a pipeline, of a part or of a latent cache; hub id; or a generated mp4, webm, gif or png.
        json: Print JSON, for programs.
    """

    checkpoint: str = SHIPPED_MODEL
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Settings):
    """Show a training run as one page: curves, preview pictures, settings, environment, and what looks wrong.

    Example: contentmotion report outputs/motion

    Attributes:
        run: The run's folder.
        output: The page; report.html in the run's folder when not given.
    """

    run: str
    output: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExportConfig(HubConfig):
    """Assemble parts into one pipeline folder that `generate` and diffusers load, with a model card (README.md) of what
    is known: parts, data and settings of their training runs, cost, scores.

    Attributes:
        pretrained_model_name_or_path: Pipeline folder or hub id: Stable Diffusion, or the output of train-content.
        autoencoder: Folder of the ContentMotionAutoencoder.
        motion_transformer: Folder of the MotionDiT.
        output_dir: The new folder; must not exist or be empty.
        dtype: Precision of the saved weights; in 16 bits their files carry its name, as variants do on the hub.
        scores: scores.json of `evaluate` for the model card.
        license: Licence for the model card, as the hub writes it ("apache-2.0", "openrail++", ...).
        guidance_scale: What the folder's content frames are guided with where nobody says it; 4 when not given.
    """

    pretrained_model_name_or_path: str
    autoencoder: str | None = None
    motion_transformer: str | None = None
    output_dir: str
    guidance_scale: Guidance | None = None
    dtype: Literal["fp32", "fp16", "bf16"] = "fp16"
    scores: str | None = None
    license: str | None = None


@dataclass(frozen=True, kw_only=True)
class PushConfig(Settings):
    """Upload a pipeline folder, one of its parts or a latent cache to the Hugging Face hub, with the model card beside
    it. Needs an account there (`hf auth login`, or a token in HF_TOKEN).

    Example: contentmotion push outputs/mine/pipeline --repo_id me/my-model --dry_run

    Attributes:
        folder: What to upload: a folder that `info` understands.
        repo_id: Where to: owner/name. Made when it does not exist; a latent cache becomes a data set.
        private: Whether a repository that is made is private.
        commit_message: What the hub's history says.
        dry_run: List the files with their sizes, and upload nothing.
    """

    folder: str
    repo_id: str
    private: bool = True
    commit_message: str = "Upload with contentmotion"
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Settings):
    """What a clip costs from prompt to file: parameters, FLOPs, seconds and memory of every stage, of several models
    side by side. The networks have random weights: time does not depend on weights.

    Other people's systems beside them: benchmarks/compare_systems.py in the repository.

    Example: contentmotion benchmark --meta
    Example: contentmotion benchmark cmd-sd21-4 outputs/mine/pipeline --height 256 --width 256

    Attributes:
        systems: Which ones: cmd-sd15, cmd-sd21 (the paper's, 50 + 50 steps), cmd-sd21-4 (4 + 4 steps, a tiny image
            decoder), the same with another image model (cmd-sdxl-4, cmd-sd35-4, cmd-sana-4, cmd-klein-4,
            cmd-z-image-4), emoji and emoji-lcm (the models that come with the package), or a pipeline folder.
        height: Pixels; 512 when not given, and a pipeline folder's own size.
        width: Pixels; 1024 when not given, likewise.
        num_frames: Frames.
        steps: Denoising steps in place of each system's own.
        decoder: Image decoder of cmd-*; "auto": tiny for few steps, else Stable Diffusion's.
        dtype: Number format of the networks; "auto": bf16 where the hardware multiplies it fast.
        repeats: Timed calls per stage, taken in turns; the median counts.
        whole_seconds: Run pipelines as a whole, too, where a clip takes no longer than this.
        meta: Count parameters and FLOPs only, allocating nothing.
        device: "auto", "cpu", "cuda", ...
        output_dir: Folder for `benchmark.md`, `benchmark.json` and `benchmark.png`.
        json: Print what benchmark.json holds, for programs, instead of tables.
    """

    systems: tuple[str, ...] = ("cmd-sd15", "cmd-sd21", "cmd-sd21-4")
    height: Pixels | None = None
    width: Pixels | None = None
    num_frames: Frames = 16
    steps: Count | None = None
    decoder: Literal["auto", "full", "tiny"] = "auto"
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    repeats: Batch = 3
    whole_seconds: Weight = 60.0
    meta: bool = False
    device: str = "auto"
    output_dir: str = "outputs/benchmark"
    json: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.systems), "name a system")
