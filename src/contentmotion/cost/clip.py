"""What one clip costs on its way from a prompt to a file: which networks run, how often, on what; counted and timed.

The networks have random weights: time does not depend on them.
"""

from __future__ import annotations

import gc
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import CLIPTokenizer

from contentmotion.config import SHIPPED_MODEL, SHIPPED_STUDENT, BenchmarkConfig
from contentmotion.cost.count import GIB, TERA, Cost, count_cost
from contentmotion.cost.measure import Timing, free_memory, time_in_turns
from contentmotion.cost.networks import COMPONENTS, MODELS, NETWORKS, build, from_config
from contentmotion.loading import ASSETS, load_scheduler, resolve_name
from contentmotion.pipelines.base import LatentPipeline
from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.pipelines.loading import is_video_model
from contentmotion.pipelines.sampling import Sampling, resolve_sampling
from contentmotion.pipelines.speed import use_channels_last
from contentmotion.pipelines.video_latent import VideoLatentPipeline
from contentmotion.saving import read_json
from contentmotion.stages.content import family_in
from contentmotion.stages.image_vae import normalize_latents
from contentmotion.stages.stage import META
from contentmotion.video.pixels import to_bytes
from contentmotion.video.write import write_video

# What the paper's tables count; they leave out text encoder and image decoder.
PAPER_STAGES = ("content", "motion", "denoiser", "autoencoder")
Networks = dict[str, tuple[str, Callable[[], nn.Module]]]  # by component: a name, and what makes it
FEW_STEPS = 8  # up to these, a system of ours is the few-step one: windows in its decoder, a tiny image decoder


class Size(NamedTuple):
    """A clip's size in pixels."""

    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Pass:
    """One network on the way from a prompt to pixels.

    Attributes:
        name: What tables call it: "text", "content", "motion", "denoiser", "autoencoder", "image decoder" or
            "video decoder".
        network: Whose weights it needs.
        call: One call.
        calls: Calls per clip.
        batch: Items per call: 2 with classifier-free guidance, the null condition beside the prompt. A pass is one
            item through the network, so a clip takes ``calls * batch`` passes.
    """

    name: str
    network: nn.Module
    call: Callable[[], object]
    calls: int = 1
    batch: int = 1

    def count(self) -> Cost:
        """What one item costs."""
        whole = count_cost(self.call)
        return Cost(layers=whole.layers // self.batch, attention=whole.attention // self.batch)


@dataclass(frozen=True)
class System:
    """A way from prompts to clips.

    Attributes:
        name: Its name.
        sampling: Steps and guidance, in words.
        size: Of its clips.
        networks: What makes its networks, by a name that systems with the same network share.
        passes: ``passes(networks, device)``, in order; networks that do not fit are on the meta device.
        clip: ``clip(networks)`` gives a function that runs the whole pipeline and returns a clip, uint8 (t, h, w, 3);
            None where nothing here does.
    """

    name: str
    sampling: str
    size: Size
    networks: Mapping[str, Callable[[], nn.Module]]
    passes: Callable[[Mapping[str, nn.Module], torch.device], list[Pass]]
    clip: Callable[[Mapping[str, nn.Module]], Callable[[], np.ndarray]] | None = None


def _num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def noise(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, device=device).to(dtype)


def ones(device: torch.device, *shape: int) -> Tensor:
    """Whole numbers that every vocabulary and every schedule has: tokens, or diffusion times."""
    return torch.ones(shape, dtype=torch.long, device=device)


def text_pass(network: Any, tokens: int, batch: int, device: torch.device, name: str = "text") -> Pass:
    """A text encoder; ``batch`` is 2 where guidance needs the null prompt, too."""
    ids = ones(device, batch, tokens)
    return Pass(name, network, lambda: network(ids), batch=batch)


def image_decoder_pass(vae: Any, latent: tuple[int, ...], frames: int, chunk: int, device: torch.device) -> Pass:
    """An image VAE's decoder, ``chunk`` frames at a time."""
    chunk = math.gcd(frames, chunk)
    x = noise(device, vae.dtype, chunk, *latent)
    call = lambda: vae.decode(normalize_latents(vae, x, inverse=True)).sample  # noqa: E731
    return Pass("image decoder", vae, call, frames // chunk, chunk)


def pipeline_passes(
    pipe: LatentPipeline, sampling: Sampling, size: Size, device: torch.device, chunk: int = 1
) -> list[Pass]:
    """What a pipeline runs for one clip, the file not included: its stages' own network calls.

    Args:
        pipe: Its networks are on the device, or without weights.
        sampling: Steps and guidance.
        size: The clip's.
        device: Where the calls' inputs are.
        chunk: Frames that the image decoder takes at a time.

    Raises:
        ValueError: A size that the pipeline does not make.
    """
    passes: list[Pass] = []
    shapes = pipe.sample_shapes(*size)
    for name, tokens in next(iter(pipe.stages.values())).reader.text_lengths.items():
        title = name.replace("text_encoder", "text").replace("_", " ")
        passes.append(text_pass(getattr(pipe, name), tokens, 1 + sampling.guided, device, title))
    for name, stage in pipe.stages.items():
        steps, guided = sampling.steps, sampling.content_guided
        if name == "motion":
            steps, guided = sampling.motion_steps, sampling.motion_guidance_scale > 1
        batch = 1 + guided
        noisy, times, condition = stage.example(shapes[name], batch, device)
        if "content" in condition:  # the example's is of the size that the autoencoder was trained on
            condition["content"] = torch.empty((batch, *shapes["content"]), device=device, dtype=stage.dtype)
        inputs = tree_map(lambda x: torch.randn_like(x) if x.is_floating_point() else x, (noisy, times, condition))
        call = partial(stage, *inputs)
        passes.append(Pass("denoiser" if name == "video" else name, stage.network, call, steps, batch))
    if "motion" in shapes:
        autoencoder: Any = pipe.autoencoder
        content, motion = (noise(device, autoencoder.dtype, 1, *shapes[name]) for name in ("content", "motion"))
        passes.append(Pass("autoencoder", autoencoder, lambda: autoencoder.decode(content, motion)))
    if pipe.vae is not None:
        latent = shapes["content"] if "content" in shapes else shapes["video"][1:]
        passes.append(image_decoder_pass(pipe.vae, latent, size.frames, chunk, device))
    return passes


def clip_cost(pipe: LatentPipeline, sampling: Sampling) -> dict[str, Cost]:
    """What one video costs from prompt to pixels, by pass, counted from the networks' configs: nothing is run."""
    with META:
        bare = {
            name: type(part).from_config(part.config) if hasattr(part, "from_config") else type(part)(part.config)
            for name, part in pipe.components.items()
            if isinstance(part, nn.Module)
        }
    costs = {}
    for one in pipeline_passes(type(pipe)(**(pipe.components | bare)), sampling, Size(*pipe.clip_shape), META):
        item, passes = one.count(), one.calls * one.batch
        costs[one.name] = Cost(layers=passes * item.layers, attention=passes * item.attention)
    return costs


def cmd_system(model: str, few: bool, config: BenchmarkConfig, chunk: int) -> System:
    """CMD at the paper's sizes with a content model of ``MODELS``: in 50 + 50 steps, the content frame guided; or with
    ``few`` in 4 + 4 without guidance. An image decoder takes ``chunk`` frames at a time."""
    steps = config.steps or (4 if few else 50)
    windows = steps <= FEW_STEPS
    parts, tiny_vae = MODELS[model]
    tiny = tiny_vae != parts["vae"] and (config.decoder == "tiny" or (config.decoder == "auto" and windows))
    own = f"-{model}" if f"autoencoder-{model}" in NETWORKS else ""  # else of latents with 4 channels
    names = parts | {
        "motion_transformer": f"motion-{model}",
        "autoencoder": ("autoencoder-windows" if windows else "autoencoder") + own,
        "vae": tiny_vae if tiny else parts["vae"],
    }
    scheduler = LCMScheduler if few else DDIMScheduler
    return _system(
        f"cmd-{model}-4" if few else f"cmd-{model}",
        ContentMotionPipeline,
        {component: (name, NETWORKS[name]) for component, name in names.items()},
        {name: scheduler(clip_sample=False) for name in ("scheduler", "motion_scheduler")},
        Sampling(steps, steps, 1.0 if few else 3.0, 1.0),
        Size(config.num_frames, config.height or 512, config.width or 1024),
        chunk,
        ASSETS / SHIPPED_MODEL,  # random networks take any words
        ", windows" * windows + ", tiny decoder" * tiny,
    )


def folder_system(name: str, config: BenchmarkConfig, chunk: int) -> System:
    """A pipeline folder or a shipped model, as it is sampled by default at the config's size and steps; its weights are
    not read. An image decoder takes ``chunk`` frames at a time.

    Raises:
        ValueError: It is no pipeline folder, of no known family, or its networks were not made for one another.
    """
    path = Path(resolve_name(name))
    # What the shipped student shares with its teacher is stored once.
    roots = [path, ASSETS / SHIPPED_MODEL] if name == SHIPPED_STUDENT else [path]
    networks: Networks = {}
    for component in COMPONENTS:
        folder = next((root / component for root in roots if (root / component / "config.json").is_file()), None)
        if folder is not None:
            networks[component] = (str(folder.resolve()), partial(from_config, read_json(folder / "config.json")))
    kind = VideoLatentPipeline if is_video_model(name) else ContentMotionPipeline
    if kind is ContentMotionPipeline:
        family_in(str(path))  # raises where it is of none
    network = "transformer" if "transformer" in networks else "unet"
    needed = {network} if kind is VideoLatentPipeline else {network, "motion_transformer", "autoencoder"}
    if needed - networks.keys():
        raise ValueError(f"{name} is no whole pipeline folder: no {' and no '.join(sorted(needed - networks.keys()))}")
    schedulers = {n: load_scheduler(path / n) for n in ("scheduler", "motion_scheduler") if (path / n).is_dir()}
    with META:
        pipe = _assemble(kind, {component: make() for component, (_, make) in networks.items()} | schedulers)
    pipe.check_parts()
    _, height, width = pipe.clip_shape
    return _system(
        name, kind, networks, schedulers, resolve_sampling(pipe, config.steps, config.steps, None, 1.0),
        Size(config.num_frames, config.height or height, config.width or width), chunk, roots[-1],
    )  # fmt: skip


def _system(
    name: str, kind: type[LatentPipeline], networks: Networks, schedulers: dict[str, Any], sampling: Sampling,
    size: Size, chunk: int, tokenizer: Path, words: str = "",
) -> System:  # fmt: skip
    """A pipeline of ours: its networks by component, a name and what makes it; ``words`` are added to its sampling."""

    def pipeline(made: Mapping[str, nn.Module]) -> LatentPipeline:
        pipe = _assemble(kind, {component: made[key] for component, (key, _) in networks.items()} | schedulers)
        if pipe.device.type == "cuda":  # as generate does
            use_channels_last(pipe)
        return pipe

    def passes(made: Mapping[str, nn.Module], device: torch.device) -> list[Pass]:
        try:
            return pipeline_passes(pipeline(made), sampling, size, device, chunk)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def clip(made: Mapping[str, nn.Module]) -> Callable[[], np.ndarray]:
        arguments: dict[str, Any] = {"class_labels": 0}
        pipe = pipeline(made)
        if pipe.text_encoder is not None:
            pipe.register_modules(tokenizer=CLIPTokenizer.from_pretrained(tokenizer / "tokenizer"))
            pipe.tokenizer.model_max_length = pipe.text_encoder.config.max_position_embeddings
            arguments = {"prompt": "a rocket"}
        if "motion" in pipe.stages:
            arguments |= {"motion_num_inference_steps": sampling.motion_steps, "decode_content_frame": False}
        pipe.set_progress_bar_config(disable=True)

        def run() -> np.ndarray:
            output: Any = pipe(
                **arguments, num_inference_steps=sampling.steps, guidance_scale=sampling.guidance_scale,
                num_frames=size.frames, height=size.height, width=size.width, output_type="pt",
            )  # fmt: skip
            return to_bytes(output.frames)[0]

        return run

    steps, guided = f"{sampling.steps} steps", ", guided"
    if sampling.motion_steps:
        steps, guided = f"{sampling.steps} + {sampling.motion_steps} steps", ", content guided"
    sampled = steps + guided * (sampling.guidance_scale > 1) + words
    whole = None if "transformer" in networks else clip  # their tokenizers are not here
    return System(name, sampled, size, dict(networks.values()), passes, whole)


def _assemble(kind: type[LatentPipeline], parts: dict[str, Any]) -> LatentPipeline:
    return kind(**(dict.fromkeys(("vae", "text_encoder", "tokenizer")) | parts))


@dataclass(kw_only=True)
class StageResult:
    """One stage of one system.

    Attributes:
        stage: Its name.
        parameters: Of its network.
        passes: Items through the network per clip (a guided step is two).
        calls: Calls per clip; above 1, seconds are extrapolated from one call's.
        tflops_per_pass: FLOPs of one pass / 1e12: 2 x multiply-adds, attention included.
        tflops: Of all passes.
        paper_tflops: In the convention of CMD's tables: multiply-adds of convolutions and linear layers, one pass per
            step; None for stages that they leave out.
        seconds: Per clip: the median call times the number of calls.
        spread: Half the distance between fastest and slowest call, times the number of calls.
        weights_gb: GiB of its weights.
        peak_gb: GiB of weights and of what a call needs beside them.
        note: Why it was not timed.
    """

    stage: str
    parameters: int = 0
    passes: int = 1
    calls: int = 1
    tflops_per_pass: float = 0.0
    tflops: float = 0.0
    paper_tflops: float | None = None
    seconds: float | None = None
    spread: float | None = None
    weights_gb: float | None = None
    peak_gb: float | None = None
    note: str = ""

    @classmethod
    def counted(cls, one: Pass) -> Self:
        """A stage's row, counted but not timed."""
        cost, passes = one.count(), one.calls * one.batch
        return cls(
            stage=one.name,
            parameters=_num_parameters(one.network),
            passes=passes,
            calls=one.calls,
            tflops_per_pass=cost.flops / TERA,
            tflops=cost.flops * passes / TERA,
            paper_tflops=cost.layers * one.calls / TERA if one.name in PAPER_STAGES else None,
        )

    def add(self, timing: Timing | str, dtype: torch.dtype) -> None:
        """Fills in what was measured, or a line about why it was not."""
        weights = self.parameters * dtype.itemsize
        self.weights_gb = weights / GIB
        if isinstance(timing, str):
            self.note = timing
            return
        self.seconds, self.spread = self.calls * timing.median, self.calls * timing.spread
        if timing.peak_bytes is not None:
            self.peak_gb = (weights + timing.peak_bytes) / GIB


@dataclass
class SystemResult:
    """One system.

    Attributes:
        system: Its name.
        sampling: Steps and guidance, in words.
        size: Of its clip.
        stages: In order.
        measured_seconds: The whole pipeline from prompt to file, run and timed as one; None where it was not.
        measured_spread: Half the distance between fastest and slowest run.
    """

    system: str
    sampling: str
    size: Size
    stages: list[StageResult]
    measured_seconds: float | None = None
    measured_spread: float | None = None

    @property
    def tflops(self) -> float:
        """From prompt to pixels."""
        return sum(stage.tflops for stage in self.stages)

    @property
    def paper_tflops(self) -> float:
        """In the paper's convention: without guidance, text encoder and image decoder."""
        return sum(stage.paper_tflops or 0.0 for stage in self.stages)

    @property
    def parameters(self) -> int:
        """Of all networks."""
        return sum(stage.parameters for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """Sum over the stages; None unless all of them were timed."""
        parts = [stage.seconds for stage in self.stages]
        return None if None in parts else sum(part for part in parts if part is not None)

    @property
    def peak_gb(self) -> float | None:
        """GiB with all networks in memory, at the stage that needs most beside them."""
        if any(stage.peak_gb is None or stage.weights_gb is None for stage in self.stages):
            return None
        beside = [stage.peak_gb - stage.weights_gb for stage in self.stages]  # type: ignore[operator]
        return sum(stage.weights_gb or 0.0 for stage in self.stages) + max(beside)

    def as_json(self) -> dict[str, Any]:
        """Its fields and totals."""
        totals = {name: getattr(self, name) for name in ("parameters", "tflops", "paper_tflops", "seconds", "peak_gb")}
        return asdict(self) | totals


def count_systems(systems: Sequence[System]) -> list[SystemResult]:
    """Counts every stage of each system, on the meta device: nothing is allocated, nothing runs.

    Raises:
        ValueError: A size that one of them does not make.
    """
    shapes: dict[str, nn.Module] = {}
    results = []
    for system in systems:
        shapes |= {name: build(make, META) for name, make in system.networks.items() if name not in shapes}
        stages = [StageResult.counted(one) for one in system.passes(shapes, META)] + [StageResult(stage="file")]
        results.append(SystemResult(system.name, system.sampling, system.size, stages))
    return results


def time_systems(
    systems: Sequence[System], results: Sequence[SystemResult], device: torch.device, dtype: torch.dtype, repeats: int,
    whole_seconds: float,
) -> None:  # fmt: skip
    """Times every stage of each system in turns, and whole pipelines where these are short.

    Where the memory does not hold all networks at once, each is there alone, for one call at a time: rounds go through
    all stages, none is a warm-up, and no pipeline runs as a whole.

    Args:
        systems: The systems.
        results: What was counted of each; gets what is measured.
        device: Where they run.
        dtype: The networks' number format.
        repeats: Timed calls of each stage.
        whole_seconds: Whole pipelines run where their stages take no longer than this in all.
    """
    makers = {name: make for system in systems for name, make in system.networks.items()}
    shapes = {name: build(make, META, dtype) for name, make in makers.items()}
    needed = sum(map(_num_parameters, shapes.values())) * dtype.itemsize
    together = needed < 0.9 * free_memory(device)
    networks = {name: build(make, device, dtype) for name, make in makers.items()} if together else {}
    jobs: list[Callable[[], object]] = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        file = Path(folder) / "clip.mp4"
        for system in systems:
            write = partial(write_video, file, moving_square(system.size), 8)
            if together:
                jobs += [one.call for one in system.passes(networks, device)] + [write]
            else:
                jobs += _one_at_a_time(system, shapes, device, dtype) + [lambda write=write: write]
        rows = [row for result in results for row in result.stages]
        for row, timing in zip(rows, time_in_turns(jobs, repeats, device, makers=not together), strict=True):
            row.add(timing, dtype)
        for system, result in zip(systems, results, strict=True):
            short = result.seconds is not None and result.seconds <= whole_seconds
            if together and short and system.clip is not None:
                clip = system.clip(networks)
                timing = time_in_turns([lambda clip=clip: write_video(file, clip(), 8)], repeats, device)[0]
                if not isinstance(timing, str):
                    result.measured_seconds, result.measured_spread = timing.median, timing.spread


def _one_at_a_time(
    system: System, shapes: Mapping[str, nn.Module], device: torch.device, dtype: torch.dtype
) -> list[Callable[[], object]]:
    """What makes each stage's call, with the stage's network in memory and the others as shapes."""
    names = {shape: name for name, shape in shapes.items()}

    def make(number: int, name: str) -> Callable[[], object]:
        gc.collect()
        torch.cuda.empty_cache()  # the network before this one; does nothing without a GPU
        needed, free = _num_parameters(shapes[name]) * dtype.itemsize, free_memory(device)
        if needed > 0.98 * free:
            raise MemoryError(f"does not fit: {needed / GIB:.1f} GiB, {free / GIB:.1f} free")
        network = build(system.networks[name], device, dtype)
        return system.passes({**shapes, name: network}, device)[number].call

    return [partial(make, number, names[one.network]) for number, one in enumerate(system.passes(shapes, META))]


def moving_square(size: Size) -> np.ndarray:
    """A clip that costs a codec about what a generated one does: a colour ramp and a square that moves over it."""
    frames = np.empty((*size, 3), np.uint8)
    frames[..., 0] = np.linspace(0, 255, size.height)[:, None]
    frames[..., 1] = np.linspace(255, 0, size.width)
    frames[..., 2] = 128
    side = size.height // 4
    for k in range(size.frames):
        left = k * (size.width - side) // max(1, size.frames - 1)
        frames[k, side : 2 * side, left : left + side] = 230
    return frames
