"""Command ``generate``: prompts -> videos in files."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

import contentmotion
from contentmotion.config import GenerateConfig, SamplingConfig
from contentmotion.data.conditions import read_conditions
from contentmotion.data.maps import MAX_SKEW
from contentmotion.data.prompts import read_prompts
from contentmotion.loading import load_vae, require_checkpoints
from contentmotion.pipelines.base import LatentPipeline
from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.pipelines.inputs import read_fitted, read_frames
from contentmotion.pipelines.interpolation import MotionBetween, noise_between, prompts_between
from contentmotion.pipelines.loading import load_any_pipeline
from contentmotion.pipelines.sampling import Sampling, resolve_sampling, steps_taken
from contentmotion.pipelines.speed import (
    compile_networks,
    enable_tiling,
    quantize_networks,
    replay_networks,
    use_channels_last,
    use_vae,
)
from contentmotion.pipelines.video_latent import VideoLatentPipeline
from contentmotion.progress import progress_bar
from contentmotion.run_dir import (
    is_main_process,
    is_recorded,
    join_run,
    prepare_output_dir,
    resolve_dtype,
    seeded_generator,
)
from contentmotion.stages.image_vae import encode_frames, vae_scale_factor
from contentmotion.stages.text import NULL_PROMPT
from contentmotion.video.pixels import to_bytes
from contentmotion.video.reader import probe_video, read_video
from contentmotion.video.timeline import Limits
from contentmotion.video.write import read_metadata, write_contact_sheet, writing_video

SHEET_COLUMNS = 8
DEFAULT_FPS = 8.0  # of models that do not say
MAX_SLUG = 48  # characters of the prompt in a file's name


@dataclass(frozen=True)
class Drawn:
    """A generated video.

    Attributes:
        video: uint8 (t, h, w, 3).
        content: The content frame it was made from, uint8 (h, w, 3); None where it was not asked for.
        latents: The same as ``content_latents`` of the pipeline, (c, h, w); None of video models.
    """

    video: np.ndarray
    content: np.ndarray | None
    latents: torch.Tensor | None = None


def generate(config: GenerateConfig) -> None:
    """Writes ``NUMBER-prompt-seedN.mp4`` (and other formats) per video, and ``sheet.png``; prints the paths.

    Video k of a run is drawn from (seed, k) alone: ``batch_size`` changes the speed, not the videos, and ``number``
    makes one of them again. A run that was stopped goes on with the next video. Under torchrun or
    ``accelerate launch`` the processes share the batches.

    Raises:
        ValueError: No prompts, a checkpoint that is missing or damaged, or sizes that do not fit it.
        OSError: The output folder is not writable.
    """
    conditions = prompts_or_labels(config)
    processes, device = join_run(config)
    require_checkpoints(
        pretrained_model_name_or_path=config.pretrained_model_name_or_path,
        autoencoder=config.autoencoder,
        motion_transformer=config.motion_transformer,
        vae_decoder=config.vae_decoder,
    )
    pipe = load_for_sampling(config, device)

    if config.interpolate:
        conditions = _on_the_way(config, conditions)
    conditions = [condition for condition in conditions for _ in range(config.num_videos_per_prompt)]
    follow, start = _read_followed(pipe, config), read_start(pipe, config)
    sampling = resolve_sampling(pipe, **config.sampling())
    output_dir, sheet = Path(config.output_dir), Path(config.output_dir) / "sheet.png"
    made = _made_before(config, conditions)
    processes.wait_for_everyone()  # all have listed what is there before one writes
    if made:
        _say(f"{output_dir} has {len(made)} of {len(conditions)} videos: goes on with the next")
    else:
        prepare_output_dir(output_dir, "generate", config)
        sheet.unlink(missing_ok=True)  # what has settings and no sheet was stopped
    processes.wait_for_everyone()  # no video is older than the settings
    for line in filter(None, (about_size(pipe, config), about_clips(pipe, config))):
        _say(line)
    mine = range(len(made), len(conditions), config.batch_size)[processes.process_index :: processes.num_processes]
    rows = []
    with progress_bar(transient=True, shown=processes.is_main_process) as progress:
        task = progress.add_task("generating", total=sum(denoising_steps(pipe, config, sampling)) * len(mine))
        for k in mine:
            batch, first = conditions[k : k + config.batch_size], config.number + k
            with _open_files(config, batch, first, _size(pipe, config)[0], frame_rate(pipe, config)) as (add, shown):
                sample(
                    pipe, config, batch, first, lambda: progress.advance(task), content_frames=False, follow=follow,
                    start=start, on_frames=add,
                )  # fmt: skip
            rows += enumerate(map(np.stack, shown), k)
    rows = gather_object(rows)  # once all are done
    if not processes.is_main_process:
        return
    sheet_rows = []
    for paths in made:
        frames = read_video(paths[0]).frames
        sheet_rows.append(frames[_shown(len(frames))])
    sheet_rows += [frames for _, frames in sorted(rows, key=lambda row: row[0])]
    written = [path for k, condition in enumerate(conditions, config.number) for path in _paths(config, condition, k)]
    captions = [_caption(condition) for condition in conditions]
    about = provenance(config, "; ".join(captions), config.number)
    if config.interpolate:
        written += _join(config, written, frame_rate(pipe, config), about)
    sheet, *more = write_contact_sheet(sheet, sheet_rows, captions, metadata=about)
    print(*written, f"{sheet} (all of them in one picture)", *more, sep="\n")


def _made_before(config: GenerateConfig, conditions: Sequence[str | int]) -> list[list[Path]]:
    """The files of the videos that a stopped run of these settings has made, up to the first that is missing; none
    where that run came to its end, or one of its models is younger than it."""
    folder, record = Path(config.output_dir), Path(config.output_dir) / "config.yaml"
    if (folder / "sheet.png").exists() or not is_recorded(record, config):
        return []
    begun = record.stat().st_mtime_ns
    names = (config.pretrained_model_name_or_path, config.autoencoder, config.motion_transformer, config.vae_decoder)
    weights = (path for name in names if name for path in Path(name).rglob("*") if path.is_file())
    if any(path.stat().st_mtime_ns > begun for path in weights):
        return []
    made = []
    for number, condition in enumerate(conditions, start=config.number):
        paths = _paths(config, condition, number)
        if not all(path.is_file() and path.stat().st_mtime_ns >= begun for path in paths):
            break
        if any(read_metadata(path) != provenance(config, condition, number) for path in paths):
            break
        made.append(paths)
    return made


def _paths(config: GenerateConfig, condition: str | int, number: int) -> list[Path]:
    """The files of a video."""
    return [Path(config.output_dir) / f"{stem(config, condition, number)}.{suffix}" for suffix in config.formats]


def _on_the_way(config: GenerateConfig, conditions: list[str] | list[int]) -> list:
    """The prompts (or class ids) of an interpolation's videos; ``ValueError`` where there are not two ends."""
    count, moves = config.interpolate or 0, config.to_seed is not None or config.motion_to is not None
    first, *others = conditions
    if len(others) == 1 and isinstance(first, str):
        return prompts_between(first, str(others[0]), count)
    if others or not moves:
        ends = "two prompts, or one with --to_seed or --motion_to"
        raise ValueError(f"--interpolate goes between two ends: give {ends}, got {len(conditions)} of them")
    return [first] * count


def _join(config: GenerateConfig, paths: list[Path], fps: float, about: dict[str, str]) -> list[Path]:
    """Writes an interpolation's videos one after another, from one file of each: no gif, where there is another."""
    best = min(range(len(config.formats)), key=lambda k: config.formats[k] == "gif")
    joined, videos = [], paths[best :: len(config.formats)]
    for suffix in config.formats:
        joined.append(Path(config.output_dir) / f"interpolation.{suffix}")
        with writing_video(joined[-1], fps, about) as add:
            for path in videos:
                add(read_video(path).frames)
    return joined


def _shown(num_frames: int) -> list[int]:
    """Numbers of the frames that the sheet shows of a video."""
    return np.linspace(0, num_frames - 1, min(SHEET_COLUMNS, num_frames)).round().astype(int).tolist()


@contextmanager
def _open_files(
    config: GenerateConfig, batch: Sequence[str | int], first: int, num_frames: int, fps: float
) -> Iterator[tuple[Callable[[torch.Tensor], None], list[list[np.ndarray]]]]:
    """Opens the files of a batch of videos. Gives a function that writes some frames more of all, (b, t, 3, H, W) in
    [0, 1], and a list that gets, of each video, the frames (H, W, 3) that the sheet shows."""
    shown, rows, count = set(_shown(num_frames)), [[] for _ in batch], 0
    with ExitStack() as stack:
        writers = []
        for number, condition in enumerate(batch, start=first):
            metadata, paths = provenance(config, condition, number), _paths(config, condition, number)
            writers.append([stack.enter_context(writing_video(path, fps, metadata)) for path in paths])

        def add(frames: torch.Tensor) -> None:
            nonlocal count
            videos = to_bytes(frames)
            for video, own_writers, row in zip(videos, writers, rows, strict=True):
                for write in own_writers:
                    write(video)
                row += [frame for number, frame in enumerate(video, start=count) if number in shown]
            count += videos.shape[1]

        yield add, rows


def _say(line: str) -> None:
    if is_main_process():
        print(line, file=sys.stderr)


def _size(pipe: LatentPipeline, config: GenerateConfig) -> tuple[int, int, int]:
    """Frames, height and width of the videos."""
    num_frames, height, width = pipe.clip_shape
    return config.num_frames or num_frames, config.height or height, config.width or width


def frame_rate(pipe: LatentPipeline, config: GenerateConfig) -> float:
    """Frames per second of the files written."""
    return config.fps or pipe.frame_rate or DEFAULT_FPS


def stem(config: GenerateConfig, condition: str | int, number: int) -> str:
    """What a video's files are called, before the suffix."""
    return f"{number:03d}-{slug(condition or source(config))}-seed{config.seed}"


def source(config: GenerateConfig) -> str:
    """What a video is called that no prompt describes."""
    return Path(config.image or config.video or "prompt").stem


def denoising_steps(pipe: LatentPipeline, config: GenerateConfig, sampling: Sampling) -> tuple[int, int]:
    """Denoising steps of a batch of content frames, at most, and of their motion: fewer of what is given, more of clips
    that are made one after another."""
    if isinstance(pipe, VideoLatentPipeline) or not sampling.motion_steps:
        return sampling.steps, sampling.motion_steps
    steps, motion_steps = sampling.steps, sampling.motion_steps
    if config.strength is not None:
        steps = steps_taken(steps, config.strength)
    if config.video or config.motion_from:
        motion_steps = steps_taken(motion_steps, config.motion_strength or 0)
    clips = pipe.clips(config.num_frames, config.clip_frames, config.loop)
    rounds = len(clips) if clips.chained or clips.overlap else 1
    return steps * len(config.schedule or "1"), motion_steps * rounds


def about_size(pipe: LatentPipeline, config: GenerateConfig) -> str:
    """A line about pictures of more than twice, or less than half, the sides that the autoencoder was trained on; empty
    of others, and of video models: the folders of those that others trained do not say."""
    if isinstance(pipe, VideoLatentPipeline):
        return ""
    (_, *sides), (_, *trained) = _size(pipe, config), pipe.clip_shape
    if all(own / 2 <= side <= 2 * own for side, own in zip(sides, trained, strict=True)):
        return ""
    asked, usual = (f"{width}x{height}" for height, width in (sides, trained))
    return f"{asked} pixels: the models were trained on {usual}; so far from that, pictures may fall apart"


def about_clips(pipe: LatentPipeline, config: GenerateConfig) -> str:
    """A line about the clips that a longer video is made of; empty where it is one."""
    if isinstance(pipe, VideoLatentPipeline):
        return ""
    clips = pipe.clips(config.num_frames, config.clip_frames, config.loop)
    how = "each goes on from the last frame of the one before" if clips.chained else "they overlap"
    return f"{clips.num_frames} frames: {len(clips)} clips of {clips.length}, {how}" if len(clips) > 1 else ""


def load_for_sampling(config: SamplingConfig, device: torch.device) -> ContentMotionPipeline | VideoLatentPipeline:
    """The pipeline that the settings name, on its device, with the switches that ``generate`` has.

    Raises:
        ValueError: A part is missing, damaged or does not fit; or a switch does not apply here.
        ImportError: A switch needs a package that is not installed.
    """
    if config.enable_model_cpu_offload and device.type == "cpu":
        raise ValueError("enable_model_cpu_offload needs a GPU, and this run is on the CPU")
    dtype = resolve_dtype(config.mixed_precision, device)  # autocast alone would copy all weights at every step
    pipe = load_any_pipeline(
        config.pretrained_model_name_or_path, config.autoencoder, config.motion_transformer, dtype=dtype
    )
    if isinstance(pipe, VideoLatentPipeline):
        _require_video_settings(config)
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_text_cache()
    if isinstance(config, GenerateConfig):
        if config.vae_decoder:
            use_vae(pipe, load_vae(config.vae_decoder).to(dtype or torch.float32))
        if config.vae_slicing:
            pipe.enable_vae_slicing()
        if config.vae_tiling:
            enable_tiling(pipe)
        quantize_networks(pipe, config.quantization)
    if config.enable_model_cpu_offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    if device.type == "cuda":
        use_channels_last(pipe)
    if isinstance(config, GenerateConfig) and config.compile:
        compile_networks(pipe, device)
    if isinstance(config, GenerateConfig) and config.cuda_graphs:
        replay_networks(pipe, device)
    return pipe


def _read_followed(pipe: LatentPipeline, config: GenerateConfig) -> dict[str, torch.Tensor] | None:
    """What the videos have to follow besides their prompts: the files that the settings name, read."""
    if not config.condition_names:
        return None
    known = pipe.condition_names if isinstance(pipe, VideoLatentPipeline) else ()
    num_frames, height, width = _size(pipe, config)
    vae = pipe.vae
    place = pipe._execution_device if vae is None else vae.device  # with CPU offload it rests on the CPU
    return read_conditions(
        config, num_frames=num_frames, height=height, width=width, fps=pipe.frame_rate,
        encode=partial(encode_frames, vae), pixels_per_latent=vae_scale_factor(vae), known=known, device=place,
    )  # fmt: skip


def read_start(
    pipe: LatentPipeline,
    config: GenerateConfig,
    limits: Limits = Limits(),  # noqa: B008  it is frozen
    tell: Callable[[str], object] = _say,
) -> dict[str, Any]:
    """The pictures and videos to start from that the settings name, as a ContentMotionPipeline takes them; ``tell``
    gets a line about each that is fitted.

    Raises:
        ValueError: A file that cannot be used; one line that names it.
        OSError: No such file.
    """
    if isinstance(pipe, VideoLatentPipeline):
        return {}
    start: dict[str, Any] = {
        name: getattr(config, name) for name in ("strength", "motion_strength", "clip_frames", "loop")
    }
    num_frames, height, width = _size(pipe, config)

    def tell_of(path: str, h: int, w: int) -> None:
        if abs(w * height / (h * width) - 1) > MAX_SKEW:
            done = "cut to" if config.fit == "crop" else "put between black bars in"
            other = "--fit pad shows all of it" if config.fit == "crop" else "--fit crop fills the frame"
            tell(f"{path}: {w}x{h} pixels, {done} the shape of {width}x{height} ({other})")

    if config.image:
        start["image"], size = read_fitted(config.image, height, width, config.fit, limits)
        tell_of(config.image, *size)
    for flag, name in (("video", "video"), ("motion_from", "motion_video"), ("motion_to", "motion_end")):
        if path := getattr(config, flag):
            info = probe_video(path, limits=limits)
            start[name] = read_frames(
                f"--{flag}", path, num_frames, height, width, config.fit, pipe.frame_rate, config.frame_stride, limits
            )
            tell_of(path, info.height, info.width)
    if "motion_end" in start:
        ends = [torch.from_numpy(start.pop(name)).permute(0, 3, 1, 2) for name in ("motion_video", "motion_end")]
        start["motion_video"] = MotionBetween(*ends, torch.empty(0))  # whose shares are those of the batch
    return start


def _require_video_settings(config: SamplingConfig) -> None:
    """Raises ``ValueError`` where settings are for models of content and motion."""
    name = config.pretrained_model_name_or_path
    of_motion = config.sampling().keys() - config.sampling(motion=False).keys()
    if any(getattr(config, setting) != getattr(SamplingConfig, setting) for setting in of_motion):
        raise ValueError(f"{name} is a video model: it has no motion model for motion_... settings to act on")
    for setting in ("image", "video", "motion_from", "clip_frames", "loop", "prompts_at"):
        if getattr(config, setting, None):
            raise ValueError(f"--{setting}: {name} is a video model, without content frame and motion")
    if getattr(config, "class_labels", None) is not None:
        raise ValueError(f"{name} is a video model: it takes prompts, not class_labels")


def provenance(config: SamplingConfig, condition: str | int, number: int) -> dict[str, str]:
    """What a generated file says about itself: of a folder or a file the name alone, not where it lies."""
    model = config.pretrained_model_name_or_path
    names = ("interpolate", "to_seed", "image", "video", "motion_from", "motion_to")
    given = {name: value for name in names if (value := getattr(config, name, None)) not in (None, "")}
    return {
        "generated": f"by a model, with contentmotion {contentmotion.__version__}",
        "model": Path(model).resolve().name if Path(model).is_dir() else model,
        "prompt": _caption(condition),
        "seed": str(config.seed),
        "number": str(number),
        **{name: Path(value).name if isinstance(value, str) else str(value) for name, value in given.items()},
    }


def prompts_or_labels(config: GenerateConfig) -> list[str] | list[int]:
    """The prompts, or the class ids, that a run asks for.

    Raises:
        ValueError: There are none, or one is empty.
        OSError: The prompt file cannot be read.
    """
    if config.class_labels is not None:
        if not config.class_labels:
            raise ValueError("class_labels is empty")
        return config.class_labels
    if config.prompt_file is not None:
        return read_prompts(config.prompt_file)
    if config.schedule:
        return ["; ".join(config.prompts_at)]
    prompts = [prompt.strip() for prompt in config.prompt or []]
    if config.prompt is None and (config.image or config.video):
        return [NULL_PROMPT]
    if not prompts or not all(prompts):
        raise ValueError("empty prompt: say what to show")
    return prompts


def sample_all(
    pipe: LatentPipeline,
    config: GenerateConfig,
    conditions: list[str] | list[int],
    on_step: Callable[[], object],
    *,
    content_frames: bool = True,
    start: Mapping[str, Any] | None = None,
) -> Iterator[Drawn]:
    """Generates one video per prompt or class id, ``config.batch_size`` at once; see ``sample``."""
    for first in range(0, len(conditions), config.batch_size):
        batch = conditions[first : first + config.batch_size]
        yield from sample(pipe, config, batch, first, on_step, content_frames=content_frames, start=start)


def sample_motions(
    pipe: LatentPipeline,
    config: GenerateConfig,
    condition: str | int,
    count: int,
    on_step: Callable[[], object],
    start: Mapping[str, Any] | None = None,
) -> list[Drawn]:
    """Generates several videos of one content frame: only the motion is drawn anew.

    Args:
        condition: Prompt or class id.
        count: Videos; the first is the one that ``sample_all`` gives.
        on_step: Called after each denoising step: of the first video, then of the others' motion, all at once.
        start: What ``read_start`` gives; a motion in it is drawn anew, by some of its own, in all of them.
    """
    one: Any = [condition]
    start = dict(start or {})
    (first,) = sample(pipe, config, one, 0, on_step, start=start)
    if count == 1:
        return [first]
    others: Any = [condition] * (count - 1)
    assert first.latents is not None
    latents = first.latents.expand(count - 1, -1, -1, -1)
    video = start.pop("video", None)
    if video is not None:
        start.setdefault("motion_video", video)
    own = start | {"image": None, "strength": None}
    return [first, *sample(pipe, config, others, 1, on_step, content_latents=latents, start=own)]


def sample(
    pipe: LatentPipeline,
    config: GenerateConfig,
    batch: list[str] | list[int],
    first: int,
    on_step: Callable[[], object],
    content_latents: torch.Tensor | None = None,
    content_frames: bool = True,
    follow: Mapping[str, torch.Tensor] | None = None,
    start: Mapping[str, Any] | None = None,
    on_frames: Callable[[torch.Tensor], object] | None = None,
) -> list[Drawn]:
    """Generates one batch.

    Args:
        batch: Prompts or class ids, one per video.
        first: Number of the batch's first video in the run, which its noise is drawn from.
        on_step: Called after each denoising step.
        content_latents: Content frames to use, (b, c, h, w); drawn when None.
        content_frames: Whether to decode the content frames too.
        follow: Conditions beside the prompts, by name, for video models that take some.
        start: What ``read_start`` gives.
        on_frames: Gets the frames (b, t, 3, H, W) in [0, 1], some at a time; nothing is returned then.
    """
    device = pipe._execution_device
    dtype = resolve_dtype(config.mixed_precision, device)
    place = device if config.noise_on_device else "cpu"

    def callback(pipe: LatentPipeline, step: int, timestep: object, tensors: dict) -> dict:
        on_step()
        return tensors

    if isinstance(pipe, VideoLatentPipeline):
        own: dict[str, Any] = {"conditions": follow} | config.sampling(motion=False)
    else:
        own = config.sampling() | {
            "content_latents": content_latents,
            "decode_content_frame": content_frames,
            "motion_callback_on_step_end": callback,
            "callback_on_frames": on_frames,
        }
        own |= dict(start or {})
    numbers = [config.number if config.interpolate else first + k for k in range(len(batch))]
    generators = [seeded_generator(config.seed, number, place) for number in numbers]
    own |= _between(pipe, config, first, len(batch), place, own)
    asked: dict[str, Any] = {"prompt" if config.class_labels is None else "class_labels": batch}
    if config.schedule:
        asked = {"prompt": config.schedule, "num_videos_per_prompt": len(batch)}
    # Weights of that type need none on a GPU; on CPUs results are what they were with it.
    casts = dtype is not None and (device.type == "cpu" or pipe._dtype != dtype)
    with torch.autocast(device.type, dtype, enabled=casts):
        output: Any = pipe(
            **asked,
            **own,
            negative_prompt=config.negative_prompt,
            num_frames=config.num_frames,
            height=config.height,
            width=config.width,
            generator=generators,
            output_type="pt",
            callback_on_step_end=callback,
        )
    if on_frames is not None:
        if output.frames is not None:
            on_frames(output.frames)
        return []
    contents = output.get("content_frame")
    contents = [None] * len(batch) if contents is None else to_bytes(contents)
    latents = output.get("content_latents")
    latents = [None] * len(batch) if latents is None else latents
    return [
        Drawn(video, content, own_latents)
        for video, content, own_latents in zip(to_bytes(output.frames), contents, latents, strict=True)
    ]


def _between(
    pipe: LatentPipeline, config: GenerateConfig, first: int, size: int, place: torch.device | str,
    own: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Arguments that make an interpolation's videos, from the one with this number on; else none."""
    k, changed = first - config.number, {}
    shares = torch.linspace(0, 1, config.interpolate or 0)[k : k + size]
    if isinstance(own.get("motion_video"), MotionBetween):
        changed["motion_video"] = replace(own["motion_video"], shares=shares)
    if config.to_seed is not None:
        first_end, last_end = (seeded_generator(seed, config.number, place) for seed in (config.seed, config.to_seed))
        shapes = pipe.sample_shapes(config.num_frames, config.height, config.width)
        noise = noise_between(shapes, (first_end, last_end), shares)
        names = {"content": "latents", "motion": "motion_latents", "video": "latents"}
        given = {"content"} if config.image or config.video else set()
        changed |= {names[stage]: value for stage, value in noise.items() if stage not in given}
    return changed


def slug(condition: str | int) -> str:
    """A condition as part of a file's name: letters (with their marks) and digits of any script, joined by hyphens."""
    text = unicodedata.normalize("NFC", _caption(condition).lower())
    words = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text).split()
    return "-".join(words)[:MAX_SLUG].rstrip("-") or "prompt"


def _caption(condition: str | int) -> str:
    return condition if isinstance(condition, str) else f"class {condition}"
