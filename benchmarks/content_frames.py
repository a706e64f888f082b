"""Content frames alone: how near those of a model are to its clips' own, for one way of guidance after another.

    python benchmarks/content_frames.py --latent_cache outputs/emoji/cache --guidance_scales 1.5 2 3 4
    python benchmarks/content_frames.py --latent_cache outputs/emoji/cache \\
        --guidance_scales 4 --guidance_interval 400 900

One frame for each of evenly spaced clips of the cache, from its first caption and the seed of its place among them:
PSNR to the clip's own, the share to which of all clips' frames its own is nearest (pixels), and its edges (mean
difference of neighbours) over its own's.
"""

import argparse
import json
from time import perf_counter

import torch
from torch import Tensor

from contentmotion import ContentMotionPipeline
from contentmotion.data.cache import open_cache
from contentmotion.loading import resolve_name
from contentmotion.stages.image_vae import decode_frames


def main() -> None:
    """Samples, scores, prints a line for each scale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="emoji", help="pipeline folder (default: the shipped model)")
    add("--latent_cache", required=True, help="latent cache of its clips")
    add("--guidance_scales", type=float, nargs="+", default=[2.0])
    add("--guidance_interval", type=float, nargs=2, default=None)
    add("--num_inference_steps", type=int, default=15)
    add("--num_clips", type=int, default=64)
    arguments = parser.parse_args()
    cache = open_cache(arguments.latent_cache, 0.01)
    parts = dict.fromkeys(("autoencoder", "motion_transformer", "motion_scheduler"))  # they are not needed
    pipe = ContentMotionPipeline.from_pretrained(resolve_name(arguments.model), dtype=torch.float32, **parts)
    pipe.set_progress_bar_config(disable=True)
    items = [cache[k] for k in range(len(cache))]
    with torch.no_grad():
        own = torch.cat([decode_frames(pipe.vae, item["content"][None, None])[0].clamp(-1, 1) for item in items])
    chosen = list(range(0, len(items), max(1, len(items) // arguments.num_clips)))[: arguments.num_clips]
    for scale in arguments.guidance_scales:
        started = perf_counter()
        frames = pipe(
            [items[k]["captions"][0] for k in chosen], output_type="pt", guidance_scale=scale,
            generator=[torch.Generator().manual_seed(place) for place in range(len(chosen))],
            num_inference_steps=arguments.num_inference_steps, guidance_interval=arguments.guidance_interval,
        ).content_frame  # fmt: skip
        found = score(2 * frames.float() - 1, own, torch.tensor(chosen))
        print(json.dumps({"guidance_scale": scale} | found | {"seconds": round(perf_counter() - started)}))


def score(frames: Tensor, own: Tensor, chosen: Tensor) -> dict[str, float]:
    """Frames (n, 3, h, w) in [-1, 1] against those of the clips of these numbers, among all (N, 3, h, w)."""
    truth = own[chosen]
    error = (frames - truth).square().mean(dim=(1, 2, 3))
    nearest = torch.cdist(frames.flatten(1), own.flatten(1)).argmin(dim=1)
    edges = [(x[..., 1:] - x[..., :-1]).abs().mean() for x in (frames, truth)]
    return {
        "psnr": round(float((10 * torch.log10(4 / error)).mean()), 2),
        "own_nearest": round(float((nearest == chosen).float().mean()), 3),
        "edges": round(float(edges[0] / edges[1]), 2),
    }


if __name__ == "__main__":
    main()
