"""Writes docs/cost.md: memory and FLOPs per recipe and card size, computed as `--dry_run` computes them.

python benchmarks/cost_table.py docs/cost.md
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from contentmotion.arguments import parse_config
from contentmotion.cli import COMMANDS
from contentmotion.config import BenchmarkConfig, LoraSettings, MotionSizes, TrainContentConfig, TrainMotionConfig
from contentmotion.cost.clip import cmd_system, count_systems
from contentmotion.cost.networks import MODELS, build
from contentmotion.cost.plan import plan_run
from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.saving import replacing_file
from contentmotion.stages.image_vae import vae_latent_channels, vae_scale_factor
from contentmotion.stages.stage import META
from contentmotion.tables import markdown_table, number

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
CARDS = (12, 16, 24, 80)  # GB
CONTEXT = 1.0  # GiB that CUDA and the allocator take
# Latent height and width that a recipe's autoencoder works on.
RECIPES = {"webvid-sd15": (64, 64), "webvid-sd21": (64, 128)}
STAGES = ("autoencoder", "content", "motion")
FAMILIES = {
    "sd21": "Stable Diffusion 2.1", "sdxl": "Stable Diffusion XL", "sd35": "Stable Diffusion 3.5 medium",
    "sana": "SANA 0.6B", "klein": "FLUX.2 [klein] 4B", "z-image": "Z-Image 6B",
}  # fmt: skip
FAMILY_HEADINGS = (
    "image model", "content (M)", "text (M)", "GiB of weights", "TFLOPs a clip, 4 + 4 steps", "train-content TFLOPs",
    "GiB", "GiB with LoRA", "train-motion TFLOPs", "GiB",
)  # fmt: skip
HEADINGS = (
    "recipe", "stage", "checkpointing", "parameters (M)", "TFLOPs per clip", "GiB at batch 1", "GiB per further clip",
    *(f"batch on {card} GB" for card in CARDS),
)  # fmt: skip


def load(recipe: str, stage: str, folder: Path) -> Any:
    """A recipe's settings at batch 1, with the shapes of its autoencoder in ``folder``."""
    command = COMMANDS[f"train-{stage}"]
    words = ["--config", str(CONFIGS / recipe / f"{stage}.yaml"), "--output_dir", "x"]
    words += {"autoencoder": ["--train_data_dir", "x"], "content": ["--latent_cache", "x"]}.get(
        stage, ["--latent_cache", "x", "--autoencoder", str(folder)]
    )
    config = parse_config(f"train-{stage}", command.config_class, command.positional, words)
    return replace(config, train_batch_size=1, gradient_accumulation_steps=1)


def rows() -> list[tuple[str, ...]]:
    """One per recipe, stage, and with or without gradient checkpointing."""
    found = []
    for recipe, (h, w) in RECIPES.items():
        with tempfile.TemporaryDirectory() as folder:
            with torch.device("meta"):
                ContentMotionAutoencoder(sample_height=h, sample_width=w).save_config(folder)
            for stage in STAGES:
                for checkpointing in (False, True):
                    config = replace(load(recipe, stage, Path(folder)), gradient_checkpointing=checkpointing)
                    plan = plan_run(config)
                    memory = plan.memory(config, half=True)
                    total, item = sum(memory.values()), memory["activations"]
                    batches = [1 + int((card * 1e9 / 2**30 - CONTEXT - total) // item) for card in CARDS]
                    shown = ["yes" if checkpointing else "no", number(plan.trained / 1e6)]
                    shown += [number(x) for x in (plan.tflops_per_step(config), total, item)]
                    fits = [str(batch) if batch > 0 else "-" for batch in batches]
                    found.append((recipe, stage, *shown, *fits))
    return found


def family_rows() -> list[tuple[str, ...]]:
    """One per image model: a clip of 16 x 512 x 1024, trained on one at a time with checkpointing, and sampled."""
    found = []
    for model, title in FAMILIES.items():
        networks = {name: build(made, META) for name, made in MODELS[model][0].items()}
        vae = networks["vae"]
        factor, channels = vae_scale_factor(vae), vae_latent_channels(vae)
        shape = (channels, 512 // factor, 1024 // factor)
        [clip] = count_systems([cmd_system(model, True, BenchmarkConfig(meta=True), 1)])
        with tempfile.TemporaryDirectory() as folder:
            for name, network in networks.items():
                network.config.architectures = [type(network).__name__]
                save = getattr(network, "save_config", None) or network.config.save_pretrained
                save(f"{folder}/{name}")
            with META:
                ContentMotionAutoencoder(
                    in_channels=channels, patch_size=max(1, 16 // factor), sample_height=shape[1],
                    sample_width=shape[2],
                ).save_config(f"{folder}/autoencoder")  # fmt: skip
            own: Any = {"latent_cache": "x", "output_dir": "x", "pretrained_model_name_or_path": folder}
            own |= {"train_batch_size": 1, "gradient_checkpointing": True}
            sizes = MotionSizes(content_patch_size=64 // factor)
            runs = [
                (TrainContentConfig(**own), shape),
                (TrainContentConfig(**own, lora=LoraSettings(rank=16)), shape),
                (TrainMotionConfig(**own, autoencoder=f"{folder}/autoencoder", model=sizes), None),
            ]
            plans = [(plan_run(config, of), config) for config, of in runs]
        memory = [number(sum(plan.memory(config, half=True).values())) for plan, config in plans]
        flops = [number(plan.tflops_per_step(config)) for plan, config in plans]
        parameters = {s.stage: s.parameters for s in clip.stages}
        text = sum(count for stage, count in parameters.items() if stage.startswith("text"))
        weights = number(2 * clip.parameters / 2**30)
        content = number(parameters["content"] / 1e6)
        found.append(
            (
                title,
                content,
                number(text / 1e6),
                weights,
                number(clip.tflops),
                flops[0],
                *memory[:2],
                flops[2],
                memory[2],
            )
        )
    return found


def sampling(path: Path) -> str:
    """The page's section on sampling, as it is: its numbers are those of the command that it names."""
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    start, end = page.find("## Sampling, by image model"), page.find("What other settings take")
    return page[start:end] if 0 <= start < end else ""


def main(path: Path) -> None:
    """Writes the page."""
    page = f"""# Memory and FLOPs

Computed, not measured: `python benchmarks/cost_table.py docs/cost.md` adds up what `--dry_run` prints for the recipes
of `configs/`, mixed precision in 16 bits, batch 1, no accumulation (torch {torch.__version__.split("+")[0]}). Weights,
gradients, Adam's two averages and the moving average are float32; activations are every tensor that autograd keeps of
the forward pass, but for those inside checkpointed blocks, and half of float32's. Frozen networks (image VAE, text
encoder) are counted; {CONTEXT:g} GiB is left for CUDA. The content model's frames are those of its UNet's own size.
With checkpointing the block that is recomputed is not counted: batches there are upper bounds.
TFLOPs are 10^12 x 2 x multiply-adds, attention included, forward and backward (not what checkpointing recomputes).

## Training

{markdown_table(HEADINGS, rows())}
On a CPU the same counts hold, without the 16-bit copies where the processor has no bfloat16.

## By image model

One clip of 16 x 512 x 1024. Sampled: prompt to pixels, tiny decoders (below), weights in 16 bits, no guidance.
Trained: batch 1 with gradient checkpointing; the image model in full or with adapters of rank 16, the paper's motion
model on it. Frozen text encoders are counted in full precision, with a pass at each step, which a cache with text
features (`encode --text_features tokens`) saves.

{markdown_table(FAMILY_HEADINGS, family_rows())}
{sampling(path)}What other settings take: `contentmotion train-motion --dry_run ...`, as any training command. What
sampling takes: `contentmotion benchmark`, beside other systems `python benchmarks/compare_systems.py`.
"""
    with replacing_file(path) as partial:
        partial.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
