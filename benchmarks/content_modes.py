"""The kinds of content frame: autoencoders of one size, trained alike, that make it by learned weights, by their mean,
or take a frame as it is; on latents of an image VAE, or on FLUX.2's real ones.

    python benchmarks/content_modes.py --vae src/contentmotion/assets/emoji/vae --data_dir clips
    python benchmarks/content_modes.py --taef2 taef2 --data_dir clips --kinds softmax

Clips of the split "train" train them. PSNR of pixels, a mean over clips, is that of the VAE alone, of content frame and
motion latent, and of the decoded content frame standing still; for these clips and for held-out ones. "deviation" is
that of the weights over frames, times their number: 0 for the mean, whatever the clip's length.

Residual decoding starts where the content head gets no gradient, and it starts at zero: "softmax, off zero" draws its
weights as other layers' are, and gives it ten times the rate (by Adam, that is a factor on the weights).

TAEF2 (the tiny autoencoder of FLUX.2's latents, madebyollin/taesd, MIT) is a folder with taef2_encoder.pth and
taef2_decoder.pth. Its 32 channels are packed into 128, normalised as FLUX.2's own are, by these clips' statistics.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle
from torch.nn.utils.parametrize import register_parametrization

from contentmotion.config import AutoencoderSizes, TrainAutoencoderConfig
from contentmotion.data.clips import open_clips
from contentmotion.loading import load_vae
from contentmotion.losses.reconstruction import autoencoder_players
from contentmotion.run_dir import describe_hardware, make_output_dir
from contentmotion.saving import write_json
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


class Times(nn.Module):
    """A parameter times a number, by which Adam's rate is multiplied."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that is used."""
        return self.factor * weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The parameter of a weight that is given."""
        return weight / self.factor


KINDS: dict[str, dict[str, Any]] = {
    "mean": {"content_mode": "mean"},
    "softmax": {},
    "softmax, off zero": {},
    "first frame": {"content_mode": "frame"},
    "middle frame": {"content_mode": "frame", "content_index": 8},
    "first frame, refined": {"content_mode": "frame", "refine_channels": 32},
    "softmax, refined": {"refine_channels": 32},
}


def main() -> None:
    """Trains each kind, scores it, prints a table."""
    arguments = parse()
    base = TrainAutoencoderConfig(
        train_data_dir=str(arguments.data_dir), split="train", height=arguments.size, width=arguments.size,
        cache_latents=True, output_dir=str(arguments.output_dir), max_train_steps=arguments.max_train_steps,
        train_batch_size=arguments.train_batch_size, learning_rate=1e-3, lr_scheduler="cosine", lr_warmup_steps=50,
        adam_beta1=0.9, adam_beta2=0.99, ema_decay=0.99, validation_steps=0, report_to="none",
        model=AutoencoderSizes(
            hidden_size=arguments.hidden_size, depth=arguments.depth, num_heads=4,
            head_dim=arguments.hidden_size // 4, mlp_ratio=2.0, patch_size=1 if arguments.taef2 else 2,
        ),
    )  # fmt: skip
    clips = {split: frames_of(base, split) for split in ("train", "heldout")}
    if arguments.taef2:
        vae = load_taef2(arguments.taef2, (to_float(clip) for clip in clips["train"]))
    else:
        vae = load_vae(str(arguments.vae))
    dataset, join, _ = open_training_clips(base, vae)
    rows: dict[str, Any] = {}
    for kind in arguments.kinds:
        for seed in range(arguments.num_seeds):
            folder = arguments.output_dir / f"{kind.replace(', ', '-').replace(' ', '-')}-{seed}"
            config = replace(base, model=replace(base.model, **KINDS[kind]), seed=seed, output_dir=str(folder))
            file = folder / "psnr.json"
            if not file.exists():
                write_json(file, trained(kind, config, vae, dataset, join, clips))
            rows[f"{kind}, seed {seed}"] = json.loads(file.read_text())
    settings = {name: str(value) for name, value in vars(arguments).items()}
    facts = {"hardware": describe_hardware(torch.device("cpu")), "settings": settings}
    write_json(arguments.output_dir / "content_modes.json", facts | {"rows": rows})
    print("| kind | VAE alone | halves | standing still | held out: halves | standing still | deviation |")
    print("|---|---|---|---|---|---|---|")
    for title, row in rows.items():
        numbers = [row["train"][name] for name in ("vae", "halves", "still")]
        numbers += [row["heldout"][name] for name in ("halves", "still")]
        print(f"| {title} | " + " | ".join(f"{n:.2f}" for n in numbers) + f" | {row['train']['deviation']:.3f} |")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, help="folder of an image VAE")
    parser.add_argument("--taef2", type=Path, help="folder of TAEF2's weights, in place of --vae")
    parser.add_argument("--data_dir", type=Path, required=True, help="clips with splits train and heldout")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS), help="default: all")
    parser.add_argument("--size", type=int, default=64, help="height and width (default 64)")
    parser.add_argument("--hidden_size", type=int, default=128)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--max_train_steps", type=int, default=400)
    parser.add_argument("--train_batch_size", type=int, default=8)
    parser.add_argument("--num_seeds", type=int, default=1)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/content_modes"))
    arguments = parser.parse_args()
    if (arguments.vae is None) == (arguments.taef2 is None):
        parser.error("give --vae or --taef2 (exactly one of the two)")
    return arguments


def trained(
    kind: str, config: TrainAutoencoderConfig, vae: Any, dataset: Any, join: Any, clips: dict[str, list[Tensor]]
) -> dict[str, Any]:
    """Trains an autoencoder; its parameters, and by split what ``psnr`` says."""
    make_output_dir(config.output_dir)
    model = make_autoencoder(config, vae)
    if "off zero" in kind:
        torch.manual_seed(config.seed)
        model.content_head.reset_parameters()
        for name in ("weight", "bias"):
            register_parametrization(model.content_head, name, Times(10.0))
    fit(autoencoder_players(model, vae, None, config), dataset, config, collate=join, command="content_modes")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters} | {split: psnr(vae, model.eval(), frames) for split, frames in clips.items()}


def frames_of(config: TrainAutoencoderConfig, split: str) -> list[Tensor]:
    """The centred clip of each video of a split, each uint8 (t, 3, h, w)."""
    clips = open_clips(replace(config, split=split))
    return [clips[index]["frames"] for index in range(len(clips))]


@torch.no_grad()
def psnr(vae: Any, model: nn.Module, clips: list[Tensor]) -> dict[str, float]:
    """Decibels and the weights' deviation, each a mean over clips."""
    sums = {"vae": 0.0, "halves": 0.0, "still": 0.0, "deviation": 0.0}
    for clip in clips:
        true = to_float(clip[None])
        latents = encode_frames(vae, true)
        encoded = model.encode(latents)
        still = encoded.content[:, None].expand_as(latents)
        halves = model.decode(encoded.content, encoded.motion_latent)
        for name, decoded in zip(("vae", "halves", "still"), (latents, halves, still), strict=True):
            error = (decode_frames(vae, decoded).clamp(-1, 1) - true).square().mean() / 4
            sums[name] -= 10 * error.log10().item()
        sums["deviation"] += encoded.weights.std(dim=1, correction=0).mean().item() * latents.shape[1]
    return {name: total / len(clips) for name, total in sums.items()}


if __name__ == "__main__":
    main()
