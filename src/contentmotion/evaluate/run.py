"""Command ``evaluate``: videos or a checkpoint, and real videos -> FVD and other numbers, with their protocol."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from rich.console import Console
from rich.progress import Progress

from contentmotion.config import SHIPPED_MODEL, EvaluateConfig
from contentmotion.data.formats import open_folder
from contentmotion.evaluate.clips import Clips, common_size, one_per_stem
from contentmotion.evaluate.measures import Batch, Measured, Networks, notes_on, offered, per_clip, score
from contentmotion.evaluate.protocol import describe_protocol, rendition_protocol, with_preset
from contentmotion.evaluate.renditions import FROM_FRAMES, AnyPipeline, Conditions, Renderer, Rendition
from contentmotion.evaluate.store import RenditionStore
from contentmotion.evaluate.summary import compare, print_scores, write_sheets
from contentmotion.loading import load_autoencoder, load_vae
from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.pipelines.loading import load_any_pipeline
from contentmotion.progress import progress_bar
from contentmotion.run_dir import join_run, make_output_dir, prepare_output_dir, resolve_dtype
from contentmotion.saving import write_json

MIN_CLIPS, MIN_GENERATED = 4, 2  # a covariance is of two, also in each half of the real clips
MANY_SHOWN, FEW_SHOWN = 64, 8  # videos kept: to compare seeds with, or for the sheet alone


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
    pipeline, source = (None, None) if config.generated_dir else load_networks(config)
    output = make_output_dir(config.output_dir)
    scores, titles = score_pipeline(pipeline, config, output, source, record=True)
    if not PartialState().is_main_process:
        return
    if config.json:
        print((output / "scores.json").read_text(encoding="utf-8"), end="")
    else:
        print_scores(scores, titles)
        Console().print(f"{output / 'scores.json'}, and pictures beside it", markup=False)


def load_networks(config: EvaluateConfig) -> tuple[AnyPipeline, str]:
    """What the components need: an autoencoder with its image VAE where no denoiser is asked for, else all.

    Returns:
        The networks, and what they are in words.

    Raises:
        ValueError: A part is missing, damaged or of another shape.
    """
    given = config.pretrained_model_name_or_path
    parts = {name: getattr(config, name) for name in ("autoencoder", "motion_transformer", "vae")}
    words = [f"{name} {path}" for name, path in parts.items() if path]
    if config.autoencoder and set(config.components) <= FROM_FRAMES:
        name = config.vae or (None if given == SHIPPED_MODEL else given)
        vae = load_vae(name) if name else None
        pipeline = ContentMotionPipeline(vae=vae, autoencoder=load_autoencoder(config.autoencoder))  # type: ignore[arg-type]
        pipeline.check_parts()
        return pipeline, ", ".join(words)
    if config.vae:
        raise ValueError("--vae goes with --autoencoder and components that need no denoiser; a pipeline has its own")
    return load_any_pipeline(given, config.autoencoder, config.motion_transformer), ", ".join([given, *words])


def score_pipeline(
    pipeline: AnyPipeline | None, config: EvaluateConfig, output: Path, source: str | None, record: bool = False
) -> tuple[dict[str, Any], dict[str, str]]:
    """Scores networks that are in memory, such as those in training; or, without any, the videos of generated_dir.

    Args:
        pipeline: The networks. They are moved to the config's device.
        output: Folder of the scores; what it already holds of the same protocol is not computed again.
        source: What the networks are, in words, for the protocol.
        record: Write the settings there, too, once everything is found to fit.

    Returns:
        What scores.json holds, and the renditions' titles. Empty in all processes but the first.

    Raises:
        ValueError: The data cannot be used, or the weights are of another network.
        OSError: Files are missing, or the folder is not writable.
    """
    processes, device = join_run(config)
    output.mkdir(parents=True, exist_ok=True)
    clips, generated = open_data(config, pipeline)
    data_sets = [clips] if generated is None else [clips, generated]
    networks = Networks(config, device)
    maps = tuple(name for data in data_sets for name in data.maps)
    conditions = Conditions(pipeline, maps, networks.depth_model, config.seed)
    dtype = resolve_dtype(config.mixed_precision, device)
    renditions = [Rendition("real", "real clips", clips, follows=clips.maps)]
    if generated is not None:
        own: dict[str, Any] = {"from_caption": True, "follows": generated.maps}
        renditions.append(Rendition("generated", "videos of generated_dir", generated, **own))
    else:
        assert pipeline is not None
        pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
        autocast = (lambda: torch.autocast(device.type, dtype)) if dtype else nullcontext
        renditions += Renderer(pipeline, clips, config, autocast, conditions).renditions()
    for data in data_sets:
        data.hash_contents(processes)
    protocol = describe_protocol(
        config, clips, generated, pipeline, networks, conditions, str(dtype or torch.float32), device, source
    )
    if record:
        prepare_output_dir(output, "evaluate", config)
    work = _Work(config, output, networks, conditions, protocol, processes)
    measured: list[Measured] = []
    with progress_bar(shown=processes.is_main_process) as progress:
        for rendition in renditions:
            measured.append(work.measure(rendition, measured, progress))
    problems = list(dict.fromkeys(gather_object([line for data in data_sets for line in data.problems])))
    if not processes.is_main_process:
        return {}, {}
    rows = score(measured)
    notes = [f"{data.folder.root}: {note}" for data in data_sets for note in data.folder.notes]
    rate = None if pipeline is None else pipeline.frame_rate
    if rate and clips.fps and abs(clips.fps / rate - 1) > 0.05:
        notes.append(
            f"real clips of {clips.fps:g} frames a second, a model trained on {rate:g}: score at --fps {rate:g}"
        )
    scores = {"parts": rows, "protocol": protocol, "notes": notes_on(rows) + notes, "problems": problems}
    write_json(output / "scores.json", scores)
    write_sheets(output, measured)
    return scores, {rendition.name: rendition.title for rendition in renditions}


def open_data(config: EvaluateConfig, pipeline: AnyPipeline | None) -> tuple[Clips, Clips | None]:
    """The real clips and, where they lie in a folder, the generated ones; both of the same length and size.

    Raises:
        ValueError: Nothing usable, or sizes that differ where none was given.
        OSError: No such folder.
    """
    asked = (config.num_frames, config.height, config.width)
    # All splits: `Clips` chooses, and scores the one held out as well.
    folder = open_folder(str(config.data_dir), replace(config, split=None))
    if pipeline is not None:
        return Clips(folder, config, *(a or b for a, b in zip(asked, pipeline.clip_shape, strict=True))), None
    plain = replace(config, split=None, metadata_path=None, layout="auto", class_prompts=None, caption_column=None)
    given = open_folder(str(config.generated_dir), plain)
    given = replace(given, records=one_per_stem(given.records))
    num_frames, height, width = asked
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


@dataclass(frozen=True)
class _Work:
    """Rendering and measuring, this process's share of each rendition."""

    config: EvaluateConfig
    output: Path
    networks: Networks
    conditions: Conditions
    protocol: dict[str, Any]
    processes: PartialState

    def measure(self, rendition: Rendition, before: list[Measured], progress: Progress) -> Measured:
        """Computes what is not stored yet of a rendition; ``before`` are those that are done, the real clips first."""
        protocol = rendition_protocol(rendition, self.protocol)
        root = Path(self.config.measures_dir) if self.config.measures_dir else self.output / "parts"
        clips, real = rendition.clips, before[0] if before else None
        store, videos = (
            RenditionStore(root, name, protocol, clips.content) for name in (rendition.name, f"{rendition.name}-videos")
        )
        sampled = rendition.from_caption and not rendition.is_source
        wanted = clips.drawn if sampled else clips.selected
        heldout = clips.heldout if sampled or real is None else []
        if real is not None and not rendition.is_source:  # only of clips that could be read
            wanted, heldout = ([i for i in x if real.store.has(clips.original(i))] for x in (wanted, heldout))
        shown = _spread(wanted, MANY_SHOWN if self.config.num_seeds > 1 else FEW_SHOWN)
        reference = next((m for m in before if m.rendition.name == rendition.reference), None)
        seeds = next((m.seeds for m in before if m.rendition.name == rendition.name), [])
        measured = Measured(rendition, self.networks, store, videos, wanted, heldout, shown, real, reference, seeds)
        self._compute(measured, progress)
        measured.indices, measured.heldout, measured.shown = (
            [i for i in indices if store.has(i)] for indices in (wanted, heldout, shown)
        )
        least = MIN_GENERATED if sampled else MIN_CLIPS
        if len(measured.indices) < least:
            got = "; ".join([f"got {len(measured.indices)}", *clips.problems[:1]])
            raise ValueError(f"{clips.folder.root}, {rendition.title}: FVD needs {least} clips or more, {got}")
        seeds.append(measured)
        return measured

    def _compute(self, m: Measured, progress: Progress) -> None:
        """Renders the clips that are not in the store yet and stores what is measured of them."""
        clips, indices, shown = m.rendition.clips, m.indices + m.heldout, set(m.shown)
        functions = per_clip(offered(m.rendition, self.networks))
        self.processes.wait_for_everyone()  # all have listed what is there before one adds to it
        missing = [i for i in indices if not m.store.has(i, functions) or (i in shown and not m.videos.has(i))]
        task = progress.add_task(m.rendition.title, total=len(indices), completed=len(indices) - len(missing))
        mine = missing[self.processes.process_index :: self.processes.num_processes]
        for real in clips.batches(mine, self.config.batch_size):
            rendered = m.rendition.render(real)
            batch = Batch(
                videos=rendered.permute(0, 1, 3, 4, 2),
                networks=self.networks,
                real=real.frames.permute(0, 1, 3, 4, 2),
                captions=[clips.caption(i) for i in real.indices] if clips.captioned else [],
                conditions=self.conditions.of(real, m.rendition.follows),
            )
            arrays = {name: measure(batch).numpy() for name, measure in functions.items()}
            finite = np.isfinite(arrays["features"]).all(axis=1)
            if not finite.all():
                path = clips.folder.records[clips.original(real.indices[int(finite.argmin())])].path
                raise ValueError(f"{m.rendition.title}: the features of {path} are not finite")
            for k, index in enumerate(real.indices):
                if index in shown:
                    m.videos.add([index], videos=rendered[k : k + 1].numpy())
            m.store.add(real.indices, **arrays)
            progress.advance(task, len(real.indices) * self.processes.num_processes)
        self.processes.wait_for_everyone()
        m.store.refresh()
        m.videos.refresh()


def _spread(indices: list[int], count: int) -> list[int]:
    """At most so many of them, evenly spread."""
    places = np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int)
    return [indices[k] for k in np.unique(places)]
