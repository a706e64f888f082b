"""Moves an autoencoder to the latents of another image VAE, where these are nearly a linear map of the old ones.

    python runs/move_autoencoder.py VIDEOS --old_vae OLD --autoencoder OLD --new_vae NEW --output_dir MOVED

The map, new latent = A old latent + b, is fitted by least squares on the clips' frames and goes into the weights that
read latents and the ones that write them, so the moved autoencoder computes what the old one did. It starts the
training on the new latents (``train-autoencoder --model.pretrained MOVED``).
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from contentmotion.config import TrainAutoencoderConfig
from contentmotion.data.clips import open_clips
from contentmotion.loading import load_autoencoder, load_vae
from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.saving import save_model
from contentmotion.stages.image_vae import decode_frames, encode_frames
from contentmotion.video.pixels import to_float


def fit_map(old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares ``new = A old + b`` of latents (n, c): A (c, c) and b (c,)."""
    ones = torch.ones(len(old), 1, dtype=old.dtype)
    solution = torch.linalg.lstsq(torch.cat([old, ones], dim=1), new).solution
    return solution[:-1].T, solution[-1]


@torch.no_grad()
def move(autoencoder: ContentMotionAutoencoder, matrix: Tensor, shift: Tensor) -> None:
    """Rewrites, in place, the convolutions that read latents and the last one, which writes them."""
    inverse = torch.linalg.inv(matrix)
    for conv in (autoencoder.patch_embed, autoencoder.content_embed):
        assert conv.bias is not None
        conv.weight.copy_(torch.einsum("ojhw,ji->oihw", conv.weight, inverse))
        conv.bias.sub_(torch.einsum("oihw,i->o", conv.weight, shift))
    last = [module for module in autoencoder.refine_head if isinstance(module, nn.Conv2d)][-1]
    assert last.bias is not None
    last.weight.copy_(torch.einsum("ij,jkhw->ikhw", matrix, last.weight))
    last.bias.copy_(matrix @ last.bias)


def with_mean(autoencoder: ContentMotionAutoencoder) -> ContentMotionAutoencoder:
    """The same with the plain mean of the frames, which the learned weights have stayed close to."""
    settings = {name: value for name, value in autoencoder.config.items() if not name.startswith("_")}
    mean = ContentMotionAutoencoder(**settings | {"content_mode": "mean", "motion_mean": None, "motion_std": None})
    mean.load_state_dict({k: v for k, v in autoencoder.state_dict().items() if not k.startswith("content_head")})
    return mean.eval()


def psnr(x: Tensor, y: Tensor) -> float:
    """Mean over clips (b, ...) of pixels in [-1, 1], in dB."""
    return float((10 * (4 / (x.clamp(-1, 1) - y).square().flatten(1).mean(1)).log10()).mean())


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos")
    for name in ("old_vae", "autoencoder", "new_vae", "output_dir"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    old_vae, new_vae = load_vae(args.old_vae), load_vae(args.new_vae)
    autoencoder = load_autoencoder(args.autoencoder)
    config = autoencoder.config
    if not config.residual_decoding or not config.refine_channels:
        parser.error("only of an autoencoder with residual_decoding and refine_channels")
    if config.content_mode == "softmax":
        autoencoder = with_mean(autoencoder)
    clips = open_clips(
        TrainAutoencoderConfig(train_data_dir=args.videos, height=64, width=64, output_dir=args.output_dir)
    )
    frames = torch.stack([to_float(clips[i]["frames"]) for i in range(0, len(clips), max(1, len(clips) // 96))])
    old, new = encode_frames(old_vae, frames), encode_frames(new_vae, frames)
    rows = [x.movedim(2, -1).flatten(0, -2) for x in (old, new)]
    matrix, shift = fit_map(*rows)
    left = (rows[0] @ matrix.T + shift - rows[1]).square().mean().div(rows[1].var()).item()
    before = psnr(decode_frames(old_vae, autoencoder(old)), frames)
    move(autoencoder, matrix, shift)
    after = psnr(decode_frames(new_vae, autoencoder(new)), frames)
    print(f"{left:.1e} of the variance is not explained; PSNR {before:.2f} dB before, {after:.2f} dB moved")
    save_model(autoencoder, args.output_dir)


if __name__ == "__main__":
    main()
