"""CMD against the cube, in miniature: the same clips, about the same parameters, the same training compute.

    python benchmarks/cmd_against_cube.py --output_dir outputs/cube --i3d i3d_kinetics400_rgb.safetensors

Both systems make 16 frames of 64x64 pixels from captions of moving shapes (runs/prepare_shapes.py), through one image
VAE, and are trained from scratch by the commands that users run. "The cube" is one video UNet on all frames' latents
(train-video); CMD is autoencoder, content model and motion model. Each gets the same FLOPs, as --dry_run counts them
(forward and backward, attention included; the VAE, which both need, is left out); CMD's are dealt to its three models
as SHARES says. Budgets are separate runs, each with a learning rate schedule of its own.

What is finished is not done again. At the end it writes scores.json: FVD and caption accuracy of the captions in the
training split and of those held out, TFLOPs, seconds and memory per clip, parameters and memory of training. Memory is
the peak of a process of its own (two training steps; one clip), the libraries' part included, which "libraries" tells.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from paper_in_miniature import ROOT, run
from torch.nn.attention import SDPBackend, sdpa_kernel

from contentmotion.arguments import parse_config
from contentmotion.cli import COMMANDS
from contentmotion.cost.count import count_cost
from contentmotion.cost.plan import plan_run
from contentmotion.pipelines.loading import load_any_pipeline
from contentmotion.run_dir import describe_hardware
from contentmotion.saving import write_json

CUBE = {"model.block_out_channels": "[64,96,128]", "train_batch_size": 16}
AUTOENCODER = {
    "model.patch_size": 1, "model.hidden_size": 128, "model.depth": 3, "model.num_heads": 4, "model.head_dim": 32,
    "model.mlp_ratio": 2.0,
    "train_batch_size": 16, "adam_beta2": 0.99,
}  # fmt: skip
CONTENT = {"model.block_out_channels": "[64,96,128]", "train_batch_size": 48}
MOTION = {
    "model.hidden_size": 192, "model.depth": 6, "model.num_heads": 6, "model.patch_size": 2,
    "model.content_patch_size": 2, "content_noise": 0.1,
    "train_batch_size": 64,
}  # fmt: skip
SHARES = {"autoencoder": 0.3, "content": 0.4, "motion": 0.3}
TRAINING = {
    "learning_rate": 1e-3, "lr_scheduler": "cosine", "lr_warmup_steps": 50, "ema_decay": 0.99, "validation_steps": 0,
    "checkpointing_steps": 200, "report_to": "none",
}  # fmt: skip
GUIDANCE, STEPS = 4.0, 25
NUM_VIDEOS = 64  # of each split
COMMAND = "import sys; from contentmotion.cli import main; status = main(sys.argv[1:]); assert not status"
# By the process itself, in KiB: what the system counts of children begins at the size of their parent.
TELL_PEAK = "\nprint(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"


def train(command: str, budget: float, **settings: Any) -> None:
    """Trains for ``budget`` TFLOPs, unless that was done.

    The number of steps is what --dry_run says a step costs, rounded down.
    """
    folder = Path(str(settings["output_dir"]))
    facts = folder.with_suffix(".json")
    settings = TRAINING | settings
    if command == "train-autoencoder":
        settings |= {"adam_beta1": 0.9}
    if any(folder.glob("*/config.json")) or any(folder.glob("*/model_index.json")):
        return measure_training(command, settings, facts)
    line = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    config = parse_config(command, COMMANDS[command].config_class, None, line)
    plan = plan_run(config)
    steps = int(budget / plan.tflops_per_step(config))
    write_json(facts, {
        "parameters": plan.trained, "tflops_per_step": plan.tflops_per_step(config), "steps": steps,
        "items": steps * config.train_batch_size,
    })  # fmt: skip
    started = perf_counter()
    run(command, **settings, max_train_steps=steps)
    write_json(facts, json.loads(facts.read_text()) | {"seconds": perf_counter() - started})
    measure_training(command, settings, facts)


def measure_training(command: str, settings: dict[str, Any], facts: Path) -> None:
    """Adds the memory that two steps take to what is known of a training."""
    known = json.loads(facts.read_text())
    if "memory_gib" in known:
        return
    with TemporaryDirectory() as scratch:
        short = settings | {"output_dir": Path(scratch) / "run", "max_train_steps": 2}
        line = [word for name, value in short.items() for word in (f"--{name}", str(value))]
        memory = peak_memory_gib(COMMAND, command, *line)
    write_json(facts, known | {"memory_gib": memory})


def peak_memory_gib(code: str, *words: str) -> float:
    """Runs Python code in a process of its own, and returns the most memory that this held."""
    done = subprocess.run([sys.executable, "-c", code + TELL_PEAK, *words], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed")
    return int(done.stdout.split()[-1]) / 2**20


def train_cube(root: Path, shared: Path, budget: float, seed: int) -> Path:
    """Trains the video UNet; its pipeline folder."""
    folder = root / "cube"
    given = {"latent_cache": shared / "latents", "vae": shared / "vae/vae", "seed": seed}
    train("train-video", budget, output_dir=folder, **given, **CUBE)
    return folder / "video"


def train_cmd(root: Path, shared: Path, budget: float, seed: int) -> Path:
    """Trains autoencoder, content and motion model; their pipeline folder."""
    vae = {"vae": shared / "vae/vae"}
    given = vae | {"latent_cache": shared / "latents", "num_frames": 16, "seed": seed}
    part = {name: share * budget for name, share in SHARES.items()}
    train("train-autoencoder", part["autoencoder"], output_dir=root / "autoencoder", **given, **AUTOENCODER)
    autoencoder, cache = root / "autoencoder/autoencoder", root / "cache"
    if not (cache / "index.json").exists():
        run("encode", train_data_dir=shared / "shapes", autoencoder=autoencoder, output_dir=cache, **vae)
    given = {"latent_cache": cache, "seed": seed}
    train("train-content", part["content"], output_dir=root / "content", **given, **vae, **CONTENT)
    given |= {"autoencoder": autoencoder, "pretrained_model_name_or_path": root / "content/content"}
    train("train-motion", part["motion"], output_dir=root / "motion", **given, **MOTION)
    folder = root / "pipeline"
    if not (folder / "model_index.json").exists():
        motion = root / "motion/motion_transformer"
        given = {"pretrained_model_name_or_path": root / "content/content", "autoencoder": autoencoder}
        run("export", motion_transformer=motion, output_dir=folder, dtype="fp32", **given)
    return folder


def prepare(shared: Path) -> None:
    """Clips, image VAE and the VAE's latents of all frames, which both systems use."""
    if not (shared / "shapes/metadata.jsonl").exists():
        script = [sys.executable, str(ROOT / "runs/prepare_shapes.py"), str(shared / "shapes")]
        subprocess.run([*script, "--num_train", "768", "--num_frames", "16"], check=True)
    clips = {"train_data_dir": shared / "shapes"}
    if not (shared / "vae/vae/config.json").exists():
        sizes = {"model.num_downsamples": 3, "model.latent_channels": 24, "num_frames": 4, "train_batch_size": 4}
        run("train-vae", **clips, **sizes, **TRAINING, max_train_steps=400, output_dir=shared / "vae")
    if not (shared / "latents/index.json").exists():
        run("encode", **clips, vae=shared / "vae/vae", latents_only="true", output_dir=shared / "latents")


def sampling_cost(folder: Path, rounds: int = 3) -> dict[str, float]:
    """TFLOPs and median seconds of one clip from prompt to pixels, at the steps and guidance that are scored."""
    pipe = load_any_pipeline(str(folder))
    pipe.set_progress_bar_config(disable=True)

    def clip() -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            pipe("a red star", num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator)

    with sdpa_kernel(SDPBackend.MATH):  # attention as matrix products: the counter knows no CPU kernel of it
        flops = count_cost(clip).flops
    seconds = []
    for _ in range(rounds):
        started = perf_counter()
        clip()
        seconds.append(perf_counter() - started)
    with TemporaryDirectory() as scratch:
        memory = peak_memory_gib(
            COMMAND, "generate", "--prompt", "a red star", "--output_dir", scratch,
            "--pretrained_model_name_or_path", str(folder), "--num_inference_steps", str(STEPS),
            "--guidance_scale", str(GUIDANCE),
        )  # fmt: skip
    return {"tflops": flops / 1e12, "seconds": median(seconds), "memory_gib": memory}


def score(folder: Path, root: Path, shared: Path, i3d: str) -> dict[str, Any]:
    """Scores a pipeline on both splits, unless that was done."""
    found = {}
    for split in ("train", "test"):
        output = root / "scores" / f"{folder.parent.name}-{folder.name}-{split}"
        if not (output / "scores.json").exists():
            run(
                "evaluate", data_dir=shared / "shapes", split=split, num_videos=NUM_VIDEOS, i3d=i3d, batch_size=16,
                pretrained_model_name_or_path=folder, components="full", num_inference_steps=STEPS,
                guidance_scale=GUIDANCE, measures_dir=shared / "measures", output_dir=output,
            )  # fmt: skip
        found[split] = json.loads((output / "scores.json").read_text())["parts"]["full"]
    return found


def main() -> None:
    """Trains, scores, reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/cube"))
    parser.add_argument("--budgets", nargs="+", type=float, default=[40.0, 160.0], help="TFLOPs of training (10^12)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--i3d", default=os.environ.get("CONTENTMOTION_I3D"), help="I3D weights")
    parser.add_argument("--only", choices=["cube", "cmd"], help="train one system and stop: two processes can share")
    arguments = parser.parse_args()
    if not arguments.i3d or not Path(arguments.i3d).is_file():
        parser.error("needs I3D weights: --i3d FILE or CONTENTMOTION_I3D")
    shared = arguments.output_dir
    prepare(shared)
    report: dict[str, Any] = {}
    for budget in arguments.budgets:
        root = shared / f"{budget:g}-tflops-seed-{arguments.seed}"
        root.mkdir(parents=True, exist_ok=True)
        for name, system in (("cube", train_cube), ("cmd", train_cmd)):
            if arguments.only not in (None, name):
                continue
            folder = system(root, shared, budget, arguments.seed)
            if arguments.only is None:
                stages = [name] if name == "cube" else list(SHARES)
                report.setdefault(f"{budget:g}", {})[name] = {
                    "training": {stage: json.loads((root / f"{stage}.json").read_text()) for stage in stages},
                    "scores": score(folder, root, shared, arguments.i3d),
                    "sampling": sampling_cost(folder),
                }
    if arguments.only is None:
        settings = {"cube": CUBE, "autoencoder": AUTOENCODER, "content": CONTENT, "motion": MOTION, "shares": SHARES}
        facts = {"hardware": describe_hardware(torch.device("cpu")), "settings": settings | {"training": TRAINING}}
        memory = peak_memory_gib("import torch, diffusers, transformers, accelerate; diffusers.UNet3DConditionModel")
        facts |= {"seed": arguments.seed, "libraries": {"memory_gib": memory}}
        write_json(shared / "scores.json", facts | {"budgets_tflops": report})
        print(shared / "scores.json")


if __name__ == "__main__":
    main()
