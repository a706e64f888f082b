"""Command ``evaluate``: videos or a checkpoint, and real videos -> FVD and other numbers, with their protocol."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from contentmotion.config import SHIPPED_MODEL, EvaluateConfig
from contentmotion.data.formats import open_folder
from contentmotion.evaluate.clips import Clips, common_size
from contentmotion.evaluate.measures import Measures
from contentmotion.evaluate.parts import Part, Renderer, given_part, real_part
from contentmotion.evaluate.presets import with_preset
from contentmotion.evaluate.protocol import describe_protocol, part_protocol
from contentmotion.evaluate.report import compare, print_scores, write_sheets
from contentmotion.evaluate.scores import Measured, notes_on, score
from contentmotion.evaluate.store import PartStore
from contentmotion.loading import load_autoencoder, load_vae
from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.pipelines.loading import load_any_pipeline
from contentmotion.pipelines.video_latent import VideoLatentPipeline
from contentmotion.run_dir import join_processes, prepare_output_dir, resolve_device, resolve_dtype
from contentmotion.saving import write_json

AnyPipeline = ContentMotionPipeline | VideoLatentPipeline

MIN_CLIPS = 4  # two in each half of the real clips
MANY_SHOWN, FEW_SHOWN = 64, 8  # videos kept: to compare seeds with, or for the sheet alone
FROM_FRAMES = {"reconstruction", "frozen", "vae"}  # components that need no denoiser


def evaluate(config: EvaluateConfig) -> None:
    """Scores a checkpoint or a folder of videos, or compares two scores; run again after an interruption, it goes on.

    Writes scores.json, sheet.png, nearest.png, and the measures of every clip under parts/. Under torchrun or
    ``accelerate launch`` the processes share the clips.

    Raises:
        ValueError: The data cannot be used, or the weights are of another network.
        OSError: Files are missing, or the output folder is not writable.
    """
    if config.compare:
        compare(config.compare, unlike=config.compare_unlike)
        return
    if config.enable_model_cpu_offload:
        raise ValueError("evaluate keeps every network on the device: it takes no enable_model_cpu_offload")
    config = with_preset(config)
    pipeline = None if config.generated_dir else load_networks(config)
    output = prepare_output_dir(config.output_dir, "evaluate", config)
    scores, titles = score_pipeline(pipeline, config, output, None if pipeline is None else _source(config))
    if PartialState().is_main_process and config.json:
        print((output / "scores.json").read_text(encoding="utf-8"), end="")
    elif PartialState().is_main_process:
        print_scores(scores, titles)
        Console().print(f"{output / 'scores.json'}, and pictures beside it", markup=False)


def _source(config: EvaluateConfig) -> str:
    """The model that was scored, in words."""
    parts = {name: getattr(config, name) for name in ("autoencoder", "motion_transformer", "vae")}
    whole = (
        [] if set(config.components) <= FROM_FRAMES and config.autoencoder else [config.pretrained_model_name_or_path]
    )
    return ", ".join(whole + [f"{name} {path}" for name, path in parts.items() if path])


def load_networks(config: EvaluateConfig) -> AnyPipeline:
    """What the components need: an autoencoder with its image VAE where no denoiser is asked for, else all.

    Raises:
        ValueError: A part is missing, damaged or of another shape.
    """
    if config.autoencoder and set(config.components) <= FROM_FRAMES:
        given = config.pretrained_model_name_or_path
        name = config.vae or (None if given == SHIPPED_MODEL else given)
        vae = load_vae(name) if name else None
        pipeline = ContentMotionPipeline(vae=vae, autoencoder=load_autoencoder(config.autoencoder))  # type: ignore[arg-type]
        pipeline.check_parts()
        return pipeline
    if config.vae:
        raise ValueError("--vae goes with --autoencoder and components that need no denoiser; a pipeline has its own")
    return load_any_pipeline(config.pretrained_model_name_or_path, config.autoencoder, config.motion_transformer)


def score_pipeline(
    pipeline: AnyPipeline | None, config: EvaluateConfig, output: Path, source: str | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Scores networks that are in memory, such as those in training; or, without any, the videos of generated_dir.

    Args:
        pipeline: The networks. They are moved to the config's device.
        config: What to measure.
        output: Folder of the scores; what it already holds of the same protocol is not computed again.
        source: What the networks are, in words, for the protocol.

    Returns:
        What scores.json holds, and the parts' titles. Empty in all processes but the first.

    Raises:
        ValueError: The data cannot be used, or the weights are of another network.
        OSError: Files are missing, or the folder is not writable.
    """
    processes = join_processes(config.device)
    alone = processes.num_processes == 1
    device = resolve_device(config.device if alone else str(processes.device))
    output.mkdir(parents=True, exist_ok=True)
    clips, generated = open_data(config, pipeline)
    measures = Measures(config, device)
    dtype = resolve_dtype(config.mixed_precision, device)
    if generated is not None:
        parts = [real_part(clips), given_part(generated)]
    else:
        assert pipeline is not None
        pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
        autocast = (lambda: torch.autocast(device.type, dtype)) if dtype else nullcontext
        parts = [real_part(clips), *Renderer(pipeline, clips, config, autocast).parts()]
    protocol = describe_protocol(
        config, clips, generated, pipeline, measures, str(dtype or torch.float32), device, source
    )
    work = _Work(config, output, measures, protocol, processes)
    with _progress(processes.is_main_process) as progress:
        measured = [work.measure(parts[0], [], progress)]
        measured += [work.measure(part, measured, progress) for part in parts[1:]]
    problems = list(dict.fromkeys(gather_object(clips.problems + (generated.problems if generated else []))))
    if not processes.is_main_process:
        return {}, {}
    rows = score(measured, measures.lpips)
    scores = {"parts": rows, "protocol": protocol, "notes": notes_on(rows), "problems": problems}
    write_json(output / "scores.json", scores)
    write_sheets(output, measured)
    return scores, {part.name: part.title for part in parts}


def open_data(config: EvaluateConfig, pipeline: AnyPipeline | None) -> tuple[Clips, Clips | None]:
    """The real clips and, where they lie in a folder, the generated ones; both of the same length and size.

    Raises:
        ValueError: Nothing usable, or sizes that differ where none was given.
        OSError: No such folder.
    """
    # All splits: `Clips` chooses, and scores the one held out as well.
    folder = open_folder(str(config.data_dir), replace(config, split=None))
    if pipeline is not None:
        num_frames, height, width = (a or b for a, b in zip(_asked(config), pipeline.clip_shape, strict=True))
        return Clips(folder, config, num_frames, height, width), None
    plain = replace(config, split=None, metadata_path=None, layout="auto", class_prompts=None)
    given = open_folder(str(config.generated_dir), plain)
    num_frames, height, width = _asked(config)
    if (height is None) != (width is None):
        raise ValueError("give --height and --width, or neither")
    if height is None or width is None:
        height, width = common_size(given)
        if common_size(folder) != (height, width):
            raise ValueError(
                f"the videos of {config.generated_dir} are {height}x{width}, those of {config.data_dir} are not: "
                "give --height and --width to resize and crop them all to"
            )
    shape = (num_frames or 16, height, width)
    counts = {"num_videos": config.num_generated or config.num_videos, "num_generated": None, "videos_per_class": None}
    plain = replace(plain, **counts)  # type: ignore[arg-type]
    return Clips(folder, replace(config, videos_per_class=None), *shape), Clips(given, plain, *shape)


def _asked(config: EvaluateConfig) -> tuple[int | None, int | None, int | None]:
    return config.num_frames, config.height, config.width


@dataclass(frozen=True)
class _Work:
    """Rendering and measuring parts, this process's share of each."""

    config: EvaluateConfig
    output: Path
    measures: Measures
    protocol: dict[str, Any]
    processes: PartialState

    def measure(self, part: Part, before: list[Measured], progress: Progress) -> Measured:
        """Computes what is not stored yet of a part; ``before`` are the parts that are done, the real clips first."""
        protocol = part_protocol(part, self.protocol)
        is_real = part.name == "real"
        root = Path(self.config.cache_dir) if self.config.cache_dir else self.output / "parts"
        store, videos = (PartStore(root, name, protocol) for name in (part.name, f"{part.name}-videos"))
        clips = part.clips
        own = is_real or part.name == "generated"
        wanted = clips.drawn if part.from_caption and not own else clips.selected
        good = wanted if own else [i for i in wanted if clips.original(i) in before[0].store]
        heldout = clips.heldout if is_real else [i for i in clips.heldout if part.from_caption and not own and
                                                 i in before[0].store]  # fmt: skip
        shown = _spread(good, MANY_SHOWN if self.config.num_seeds > 1 else FEW_SHOWN)
        self._compute(part, good + heldout, set(shown), store, videos, progress)
        good, heldout = ([i for i in indices if i in store] for indices in (good, heldout))
        if own and len(good) < MIN_CLIPS:
            problem = f"; {clips.problems[0]}" if clips.problems else ""
            raise ValueError(f"{clips.folder.root}: FVD needs {MIN_CLIPS} clips or more, got {len(good)}{problem}")
        return Measured(part, store, videos, good, heldout, [i for i in shown if i in store])

    def _compute(
        self, part: Part, indices: list[int], shown: set[int], store: PartStore, videos: PartStore, progress: Progress
    ) -> None:
        """Renders the clips that are not in the store yet and stores what is measured of them."""
        self.processes.wait_for_everyone()  # all have listed what is there before one adds to it
        missing = [i for i in indices if i not in store or (i in shown and i not in videos)]
        task = progress.add_task(part.title, total=len(indices), completed=len(indices) - len(missing))
        mine = missing[self.processes.process_index :: self.processes.num_processes]
        for batch, frames in part.clips.batches(mine, self.config.batch_size):
            rendered = part.render(batch, frames)
            prompts = [part.clips.caption(i) for i in batch] if part.clips.captioned else None
            arrays = self.measures(rendered, frames if part.compares else None, prompts)
            finite = np.isfinite(arrays["features"]).all(axis=1)
            if not finite.all():
                path = part.clips.folder.records[batch[int(finite.argmin())]].path
                raise ValueError(f"{part.title}: the features of {path} are not finite")
            for k, index in enumerate(batch):
                if index in shown:
                    videos.add([index], videos=rendered[k : k + 1].numpy())
            store.add(batch, **arrays)
            progress.advance(task, len(batch) * self.processes.num_processes)
        self.processes.wait_for_everyone()
        store.refresh()
        videos.refresh()


def _spread(indices: list[int], count: int) -> list[int]:
    """At most so many of them, evenly spread."""
    places = np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int)
    return [indices[k] for k in np.unique(places)]


@contextmanager
def _progress(shown: bool) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    times: tuple[Any, ...] = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=console, disable=not (shown and console.is_terminal)) as progress:
        yield progress
