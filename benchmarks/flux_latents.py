"""CMD's autoencoder on FLUX.2's latents: real clips through a pretrained tiny autoencoder of these latents.

    python benchmarks/flux_latents.py --taef2 taef2 --data_dir clips --output_dir outputs/flux_latents

TAEF2 (the tiny autoencoder of FLUX.2's latents, madebyollin/taesd, MIT) is a folder with taef2_encoder.pth and
taef2_decoder.pth. Its 32 channels are packed into 128, normalised as FLUX.2's own are, by these clips' statistics.
Clips of the split "train" train the video autoencoder. PSNR of pixels, a mean over clips, is that of TAEF2 alone, of
content frame and motion latent, and of the decoded content frame standing still; for these clips and for held-out ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from contentmotion.config import AutoencoderSizes, TrainAutoencoderConfig
from contentmotion.data.clips import open_clips
from contentmotion.losses.reconstruction import autoencoder_players
from contentmotion.run_dir import describe_hardware, make_output_dir, record_settings
from contentmotion.saving import save_model, write_json
from contentmotion.stages.autoencoder import make_autoencoder
from contentmotion.stages.image_vae import decode_frames, encode_frames
from contentmotion.train.autoencoder import open_training_clips
from contentmotion.train.loop import fit
from contentmotion.video.pixels import to_float


class PooledBlock(nn.Module):
    """A block of diffusers' tiny autoencoder with what TAEF2 has before it."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv, self.fuse = block.conv, block.fuse
        wide = nn.Conv2d(64, 256, 1, bias=False), nn.GroupNorm(4, 256)
        self.pool = nn.Sequential(*wide, nn.ReLU(), nn.Conv2d(256, 64, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(b, 64, h, w)."""
        x = x + self.pool(x)
        return self.fuse(self.conv(x) + x)


@torch.no_grad()
def load_taef2(folder: Path, images: Iterable[Tensor]) -> AutoencoderTiny:
    """TAEF2 in FLUX.2's form: latents packed 2x2 and normalised by their statistics.

    Args:
        folder: With taef2_encoder.pth and taef2_decoder.pth.
        images: Batches (b, 3, h, w) in [-1, 1] that the statistics are of.
    """
    vae = AutoencoderTiny(latent_channels=32)
    for part, first, shift in (("encoder", 11, 0), ("decoder", 2, -1)):  # the original's decoder begins with a clamp
        network = getattr(vae, part)
        for number in range(first, first + 3):
            network.layers[number] = PooledBlock(network.layers[number])
        weights = torch.load(folder / f"taef2_{part}.pth", weights_only=True)
        named = {name.partition(".")[::2]: value.float() for name, value in weights.items()}
        network.layers.load_state_dict({f"{int(n) + shift}.{rest}": value for (n, rest), value in named.items()})
    vae.register_to_config(batch_norm_eps=1e-4, patch_size=(2, 2))
    vae.bn = nn.BatchNorm2d(128, affine=False)
    packed = torch.cat([pixel_unshuffle(vae.encode(batch).latents, 2) for batch in images])
    vae.bn.running_var, vae.bn.running_mean = torch.var_mean(packed, dim=(0, 2, 3))
    return vae.eval().requires_grad_(False)


def main() -> None:
    """Encodes, trains, scores."""
    arguments = parse()
    config = TrainAutoencoderConfig(
        train_data_dir=str(arguments.data_dir), split="train", height=arguments.size, width=arguments.size,
        cache_latents=True, output_dir=str(arguments.output_dir), max_train_steps=arguments.max_train_steps,
        train_batch_size=arguments.train_batch_size, learning_rate=1e-3, lr_scheduler="cosine", lr_warmup_steps=50,
        adam_beta1=0.9, adam_beta2=0.99, ema_decay=0.998, validation_steps=0, report_to="none", mixed_precision="bf16",
        model=AutoencoderSizes(
            hidden_size=256, depth=4, num_heads=4, head_dim=64, mlp_ratio=2.0, patch_size=1, motion_channels=8,
            content_mode=arguments.content_mode,
        ),
    )  # fmt: skip
    run_dir = make_output_dir(config.output_dir)
    clips = {split: frames_of(config, split) for split in ("train", "heldout")}
    vae = load_taef2(arguments.taef2, (to_float(clip) for clip in clips["train"]))
    dataset, join, _ = open_training_clips(config, vae)
    model = make_autoencoder(config, vae)
    fit(
        autoencoder_players(model, vae, None, config), dataset, config, collate=join,
        save=lambda: save_model(model, run_dir / "autoencoder"),
        record=partial(record_settings, run_dir, "flux_latents", config),
    )  # fmt: skip
    results = {split: psnr(vae, model.eval(), frames) for split, frames in clips.items()}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = {"hardware": describe_hardware(torch.device("cpu")), "settings": vars(arguments), "parameters": parameters}
    write_json(run_dir / "psnr.json", {name: str(value) for name, value in facts.items()} | {"psnr": results})
    for split, row in results.items():
        print(f"{split}: " + ", ".join(f"{name} {value:.2f} dB" for name, value in row.items()))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--taef2", type=Path, required=True, help="folder of TAEF2's weights")
    parser.add_argument("--data_dir", type=Path, required=True, help="clips with splits train and heldout")
    parser.add_argument("--size", type=int, default=64, help="height and width, a multiple of 16 (default 64)")
    parser.add_argument("--content_mode", choices=("softmax", "mean", "frame"), default="softmax")
    parser.add_argument("--max_train_steps", type=int, default=2000)
    parser.add_argument("--train_batch_size", type=int, default=16)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/flux_latents"))
    return parser.parse_args()


def frames_of(config: TrainAutoencoderConfig, split: str) -> list[Tensor]:
    """The centred clip of each video of a split, each uint8 (t, 3, h, w)."""
    clips = open_clips(replace(config, split=split))
    return [clips[index]["frames"] for index in range(len(clips))]


@torch.no_grad()
def psnr(vae: Any, model: nn.Module, clips: list[Tensor]) -> dict[str, float]:
    """Decibels, each a mean over clips."""
    sums = {"TAEF2 alone": 0.0, "content frame and motion latent": 0.0, "content frame standing still": 0.0}
    for clip in clips:
        true = to_float(clip[None])
        latents = encode_frames(vae, true)
        halves = model.encode(latents)
        still = halves.content[:, None].expand_as(latents)
        decoded_halves = model.decode(halves.content, halves.motion_latent)
        for name, decoded in zip(sums, (latents, decoded_halves, still), strict=True):
            error = (decode_frames(vae, decoded).clamp(-1, 1) - true).square().mean() / 4
            sums[name] -= 10 * error.log10().item()
    return {name: total / len(clips) for name, total in sums.items()}


if __name__ == "__main__":
    main()
