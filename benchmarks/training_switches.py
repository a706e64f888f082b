"""What each switch of training is worth: the plain step, and the same with one thing changed, taking turns.

    python benchmarks/training_switches.py --output_dir outputs/training-switches
    python benchmarks/training_switches.py --recipe webvid-sd21 --image_model stabilityai/stable-diffusion-2-1-base \
        --autoencoder outputs/autoencoder/autoencoder --data_dir my_videos      # the same on a GPU, at the paper's size

Plain is float32, AdamW and the moving average tensor by tensor, diffusers' own attention, and a VAE and a text encoder
that run in every step. For each switch two processes train through the command line, the plain and the changed one, and
take turns of a few steps, so that a slow moment of the machine hits both; the ratio is the median over the turns.
Memory is the peak of a process above what it held before it made its networks: torch.cuda.max_memory_allocated on CUDA,
else the kernel's count. Both see the same clips and the same noise; the loss is compared turn by turn.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from contentmotion.cost.measure import GIB, peak_memory_since, start_watching_memory, synchronize
from contentmotion.pipelines.loading import ASSETS
from contentmotion.run_dir import describe_hardware, resolve_device
from contentmotion.saving import write_json

ROOT = Path(__file__).resolve().parents[1]
# Clips of a step, steps of a turn, timed turns.
SIZES = {
    "autoencoder": {"batch_size": 2, "steps": 2, "rounds": 5},
    "content": {"batch_size": 8, "steps": 4, "rounds": 7},
    "motion": {"batch_size": 16, "steps": 4, "rounds": 7},
}
STAGES = tuple(SIZES)
SEED = 0
CLOSE = 0.1  # losses further apart, relatively, are those of another training
Loss = Literal["same", "close", "other"]


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        title: Row of the table.
        settings: What differs from the plain command line.
        undone: Which of the ``PLAIN`` replacements are left out.
        extra: Replacements of its own: "module:name" to a function of what it replaces.
        stages: Where it exists.
        loss: What is expected of the losses: bit for bit the plain ones, close to them, or another task.
        cuda: Only on a GPU.
    """

    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    undone: tuple[str, ...] = ()
    extra: dict[str, Callable[[Any], Any]] = field(default_factory=dict)
    stages: tuple[str, ...] = STAGES
    loss: Loss = "close"
    cuda: bool = False


def unfused(adamw: Any) -> Any:
    """AdamW that goes from tensor to tensor."""
    return lambda parameters, fused, **settings: adamw(parameters, foreach=False, **settings)


def one_by_one(update: Any) -> Any:
    """The moving average as diffusers has it."""
    return lambda ema, parameters: ema.step([p.detach().requires_grad_() for p in parameters])


def left_out(function: Any) -> Any:
    """Nothing is done."""
    return lambda *arguments: None


def channels_last(adapt: Any) -> Any:
    """A UNet in the order that convolutions read, after whatever else was done to it."""

    def adapt_and_convert(unet: torch.nn.Module, config: Any) -> None:
        adapt(unet, config)
        unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    return adapt_and_convert


# What the commands do better than a plain step by themselves, taken back: "module:name" to its replacement.
PLAIN: dict[str, Callable[[Any], Any]] = {
    "torch.optim:AdamW": unfused,
    "contentmotion.train.loop:update_average": one_by_one,
    "contentmotion.train.denoiser:use_plain_attention": left_out,
}
ADAMW, AVERAGE, ATTENTION = PLAIN
VARIANTS = [
    Variant("the plain step again", loss="same"),
    Variant("latents, text features cached", {"cached": True}),
    Variant("fused AdamW", undone=(ADAMW,)),
    Variant("moving average in one pass", undone=(AVERAGE,)),
    Variant("attention as plain products (CPUs)", undone=(ATTENTION,), stages=("content",)),
    Variant("--mixed_precision bf16", {"mixed_precision": "bf16"}),
    Variant("all of these: what the commands do", {"cached": True, "mixed_precision": "auto"}, undone=tuple(PLAIN)),
    Variant(
        "all of these, and --torch_compile",
        {"cached": True, "mixed_precision": "auto", "torch_compile": True}, undone=tuple(PLAIN),
    ),
    Variant("--gradient_checkpointing", {"gradient_checkpointing": True}, loss="same"),
    Variant("--offload_ema", {"offload_ema": True}, loss="same"),
    Variant("--ema_decay 0", {"ema_decay": 0}, loss="same"),
    Variant("half the batch, --gradient_accumulation_steps 2", {"halves": True}, loss="other"),
    Variant("--use_8bit_adam", {"use_8bit_adam": True}, cuda=True),
    Variant(
        "weights in channels-last order (no switch)",
        extra={"contentmotion.train.content:adapt_unet": channels_last}, stages=("content",),
    ),
    Variant("--lora_rank 16", {"lora_rank": 16}, stages=("content",), loss="other"),
    Variant("--trainable_modules attn", {"trainable_modules": "attn"}, stages=("content", "motion"), loss="other"),
]  # fmt: skip


def work(connection: Connection, words: list[str], replaced: dict[str, Callable[[Any], Any]], log: str) -> None:
    """A process that trains; after each line of metrics it tells its seconds and its peak memory, and waits."""
    sys.stdout = sys.stderr = open(log, "w")  # noqa: SIM115 - until the process ends
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401 - so that they do not count as memory

    from contentmotion.cli import main
    from contentmotion.train.metrics import Metrics

    for place, replace in replaced.items():
        module, _, name = place.partition(":")
        owner = importlib.import_module(module)
        setattr(owner, name, replace(getattr(owner, name)))
    device = resolve_device("auto")
    before, started = start_watching_memory(device), time.perf_counter()

    log_step = Metrics.log

    def log_and_wait(metrics: Metrics, step: int, values: dict[str, float]) -> None:
        nonlocal started
        log_step(metrics, step, values)
        if step % metrics.config.logging_steps:
            return
        synchronize(device)
        connection.send((time.perf_counter() - started, peak_memory_since(before, device)))
        connection.recv()
        started = time.perf_counter()

    Metrics.log = log_and_wait  # what a run does after every step
    sys.exit(main(words))


class Trainer:
    """A process that ``work``s, and what it has told."""

    def __init__(self, folder: Path, words: list[str], replaced: dict[str, Callable[[Any], Any]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.metrics, self.log = folder / "run/metrics.jsonl", folder / "log.txt"
        context = multiprocessing.get_context("spawn")
        self.connection, there = context.Pipe()
        words = [*words, "--output_dir", str(folder / "run")]
        self.process = context.Process(target=work, args=(there, words, replaced, str(self.log)), daemon=True)
        self.process.start()
        there.close()
        self.seconds: list[float] = []
        self.peak: int | None = None

    def hear(self) -> None:
        """Waits for the end of a turn.

        Raises:
            RuntimeError: The process ended instead.
        """
        try:
            seconds, self.peak = self.connection.recv()
        except EOFError:
            lines = self.log.read_text().splitlines()
            raise RuntimeError(lines[-1] if lines else "it ended without a word") from None
        self.seconds.append(seconds)

    def go_on(self) -> None:
        """Lets it begin a turn."""
        self.connection.send(None)

    def losses(self) -> list[float]:
        """Mean loss of every turn."""
        return [json.loads(line)["loss"] for line in self.metrics.read_text().splitlines()]

    def end(self) -> None:
        """Ends the process; what it has trained is not wanted."""
        self.process.kill()
        self.process.join()


def compare(folder: Path, stage: str, variant: Variant, words: Callable[..., list[str]], rounds: int) -> dict[str, Any]:
    """Plain and changed step by turns: seconds per turn, peak GiB and losses of both; or why it did not run."""
    changed = {place: replace for place, replace in PLAIN.items() if place not in variant.undone} | variant.extra
    pair = [
        Trainer(folder / "plain", words(stage, {}), PLAIN),
        Trainer(folder / "changed", words(stage, variant.settings), changed),
    ]
    try:
        for trainer in pair:
            trainer.hear()  # the first turn warms up
        for _ in range(rounds):
            for trainer in pair:
                trainer.go_on()
                trainer.hear()
    except RuntimeError as error:
        return {"failed": str(error)}
    finally:
        for trainer in pair:
            trainer.end()
    plain, other = pair
    losses = [trainer.losses() for trainer in pair]
    ratios = [b / a for a, b in zip(plain.seconds[1:], other.seconds[1:], strict=True)]
    gib = [None if trainer.peak is None else trainer.peak / GIB for trainer in pair]
    apart = max(abs(b - a) / abs(a) for a, b in zip(*losses, strict=True))
    return {
        "seconds_plain": plain.seconds[1:], "seconds": other.seconds[1:], "ratio": median(ratios), "ratios": ratios,
        "peak_gib_plain": gib[0], "peak_gib": gib[1], "losses_plain": losses[0], "losses": losses[1],
        "expected_loss": variant.loss, "loss_apart": apart,
        "as_expected": {"same": apart == 0, "close": apart < CLOSE, "other": True}[variant.loss],
    }  # fmt: skip


def make_caches(arguments: argparse.Namespace, folder: Path) -> dict[str, str]:
    """The folders that training reads: "videos", "latents" of them, "clips" of the autoencoder, and with "features"."""
    data = arguments.data_dir or folder / "shapes"
    if arguments.data_dir is None and not (data / "metadata.jsonl").exists():
        drawn = ["--size", "64", "--num_frames", "16", "--num_train", "64", "--num_test", "1"]
        subprocess.run([sys.executable, ROOT / "runs/prepare_shapes.py", data, *drawn], check=True)
    model = ["--vae", arguments.image_model]
    recipe = ["--config", f"configs/{arguments.recipe}/encode.yaml", "--train_data_dir", str(data)]
    own = ["--autoencoder", arguments.autoencoder, "--measure_motion", "false"]
    text = ["--pretrained_model_name_or_path", arguments.image_model, "--text_features", "tokens"]
    if arguments.recipe == "emoji":
        recipe += ["--num_frames", "16", "--height", "64", "--width", "64"]
    wanted = {"latents": ["--latents_only", "true"], "clips": own, "features": own + text}
    for name, more in wanted.items():
        words = ["encode", *recipe, *model, *more, "--output_dir", str(folder / name)]
        if not (folder / name / "index.json").exists():
            subprocess.run([sys.executable, "-m", "contentmotion", *words], check=True, cwd=ROOT)
    return {"videos": str(data)} | {name: str(folder / name) for name in wanted}


def command_line(
    arguments: argparse.Namespace, caches: dict[str, str], stage: str, settings: dict[str, Any]
) -> list[str]:
    """The words that train a stage plainly, but for some settings."""
    recipe = ROOT / f"configs/{arguments.recipe}/{stage}.yaml"
    batch = SIZES[stage]["batch_size"]
    given: dict[str, Any] = {
        "mixed_precision": "no", "gradient_checkpointing": False, "use_8bit_adam": False, "offload_ema": False,
        "gradient_accumulation_steps": 1, "train_batch_size": batch, "logging_steps": SIZES[stage]["steps"],
        "checkpointing_steps": 10**9, "validation_steps": 0, "report_to": "none", "seed": SEED,
    }  # fmt: skip
    if stage == "autoencoder":
        given |= {"vae": arguments.image_model, "cache_latents": False, "perceptual_weight": 0}
        if arguments.recipe == "emoji":
            given |= {"num_frames": 16, "height": 64, "width": 64}
    else:
        given |= {"pretrained_model_name_or_path": arguments.image_model}
    if stage == "motion":
        given |= {"autoencoder": arguments.autoencoder}
    settings = dict(settings)
    cached = settings.pop("cached", False)
    if stage == "autoencoder":
        given |= {"cache_dir": caches["latents"]} if cached else {"train_data_dir": caches["videos"]}
    else:
        given |= {"cache_dir": caches["features" if cached else "clips"]}
    if settings.pop("halves", False):
        given |= {"train_batch_size": batch // 2, "gradient_accumulation_steps": 2}
    given |= settings
    words = [f"train-{stage}", "--config", str(recipe)]
    for name, value in given.items():
        words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return words


def row(title: str, found: dict[str, Any]) -> str:
    """A line of the table; of the turns' ratios also the range without the least and the greatest."""
    if "failed" in found:
        return f"| {title} | {found['failed']} | | |"
    apart, memory, ratios = found["loss_apart"], found["peak_gib"], sorted(found["ratios"])
    loss = "another task" if found["expected_loss"] == "other" else "the same" if apart == 0 else f"{apart:.0e}"
    spread = f" ({ratios[1]:.2f}-{ratios[-2]:.2f})" if len(ratios) > 2 else ""
    if not found["as_expected"]:
        loss += f" (expected: {found['expected_loss']})"
    peak = "" if memory is None else f"{memory:.2f} ({memory - found['peak_gib_plain']:+.2f})"
    return f"| {title} | {found['ratio']:.2f}{spread} | {peak} | {loss} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Times, reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="emoji", help="a folder of configs/ (default emoji)")
    parser.add_argument("--image_model", default="emoji", help="whose VAE, text encoder and UNet (default emoji)")
    parser.add_argument("--autoencoder", help="folder of a trained autoencoder (default: the shipped one)")
    parser.add_argument("--data_dir", type=Path, help="videos (default: drawn by runs/prepare_shapes.py)")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument(
        "--variants", nargs="+", default=[""], help="only those with one of these words in their titles"
    )
    for name, what in (("batch_size", "clips per step"), ("steps", "steps of a turn"), ("rounds", "timed turns")):
        defaults = ", ".join(f"{stage} {sizes[name]}" for stage, sizes in SIZES.items())
        parser.add_argument(f"--{name}", type=int, help=f"{what} (default: {defaults})")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/training-switches"))
    arguments = parser.parse_args(argv)
    folder = arguments.output_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for sizes in SIZES.values():
        sizes |= {name: value for name in sizes if (value := getattr(arguments, name)) is not None}
    settings = {"recipe": arguments.recipe, "image_model": arguments.image_model, "seed": SEED, "sizes": SIZES}
    if arguments.autoencoder is None:
        arguments.autoencoder = str(folder / "autoencoder")  # encode is about to write to it
        shutil.copytree(ASSETS / "emoji/autoencoder", arguments.autoencoder, dirs_exist_ok=True)
    caches, device = make_caches(arguments, folder), resolve_device("auto")
    facts = {"hardware": describe_hardware(device), "torch": torch.__version__, "settings": settings, "rows": {}}
    words = partial(command_line, arguments, caches)
    for stage in arguments.stages:
        print(f"\n| {stage} | time over the plain step's | peak GiB (beyond plain) | loss apart, relative |")
        print("|---|---|---|---|")
        rows = facts["rows"][stage] = {}
        for variant in VARIANTS:
            asked_for = any(word in variant.title for word in arguments.variants)
            if stage not in variant.stages or not asked_for or (variant.cuda and device.type != "cuda"):
                continue
            with TemporaryDirectory(dir=folder) as place:
                found = rows[variant.title] = compare(Path(place), stage, variant, words, SIZES[stage]["rounds"])
            print(row(variant.title, found), flush=True)
            write_json(folder / "training-switches.json", facts)


if __name__ == "__main__":
    main()
