"""FVD side by side with cd-fvd (PyPI) in one run: clips per second, the number, the memory.

    pip install --no-deps --target cdfvd cd-fvd && pip install requests tqdm scipy
    PYTHONPATH=cdfvd python benchmarks/fvd.py --i3d i3d_kinetics400_rgb.safetensors --output fvd.json
    PYTHONPATH=cdfvd python benchmarks/fvd.py --i3d i3d_kinetics400_rgb.safetensors --memory --output fvd.json

Both get the same clips, made on the spot, and the same weights: cd-fvd's I3D module is built and given the tensors of
--i3d, because its own file is downloaded from elsewhere. Its class `cdfvd` imports torchvision and timm for readers and
networks that are not measured here, so its parts are called in that class's order: `preprocess_i3d` on 16 clips at a
time, the network, `FeatureStats`, then the distance with scipy's matrix square root. The rounds take turns.

Two things in cd-fvd differ, and each is allowed for in a line of its own: BatchNorm's eps is 1e-5 (the network was
trained with 1e-3), and covariances are divided by n instead of n - 1.

--memory streams --memory_clips clips through `i3d_features` and `FrechetStatistics` in a process of its own. After
--real_clips the network is replaced by a stand-in of the same output width (pooling and one matrix), because the real
one takes an hour for 10,000 clips on two cores; its weights stay loaded, and its own peak was reached before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from contentmotion.evaluate.fvd import FrechetStatistics, frechet_distance
from contentmotion.evaluate.i3d import BATCH_NORM_EPS, NUM_CLASSES, i3d_features, load_i3d
from contentmotion.saving import write_json

FRAMES = 16
Extract = Callable[[np.ndarray], np.ndarray]


def make_clips(n: int, size: int, seed: int, noise: float = 0.0) -> np.ndarray:
    """Smooth coloured textures that move, one speed each: uint8 (n, 16, size, size, 3)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    clips = np.empty((n, FRAMES, size, size, 3), np.uint8)
    for clip in clips:
        frequency, phase, speed = random.normal(0, 3, (3, 4, 2)), random.uniform(0, 6.3, (3, 4)), random.normal(0, 0.4)
        for t, frame in enumerate(clip):
            for c in range(3):
                angles = frequency[c] @ np.stack([x, y]).reshape(2, -1) * 6.3 + phase[c][:, None] + speed * t
                picture = 128 + 40 * np.sin(angles).sum(0) + noise * random.standard_normal(size * size)
                frame[..., c] = picture.clip(0, 255).reshape(size, size)
    return clips


def ours(weights: Path) -> Extract:
    """This package, as `contentmotion evaluate` calls it."""
    model = load_i3d(weights)
    return lambda clips: i3d_features(model, clips).numpy()


def cd_fvd(weights: Path, *, batch_size: int = 16, eps: float | None = None) -> Extract:
    """cd-fvd's parts in the order of its `get_i3d_logits`; `eps` changes that of its batch norms."""
    from cdfvd.third_party.i3d.utils import load_i3d_model, preprocess_i3d  # type: ignore[import-not-found]
    from cdfvd.utils.metric_utils import FeatureStats  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as folder:  # it reads a file of its own kind
        path = Path(folder) / "i3d.pt"
        torch.save(load_file(weights), path)
        model = load_i3d_model(torch.device("cpu"), str(path))
    for module in model.modules():
        if eps is not None and isinstance(module, nn.BatchNorm3d):
            module.eps = eps

    @torch.no_grad()
    def extract(clips: np.ndarray) -> np.ndarray:
        stats = FeatureStats(capture_all=True, capture_mean_cov=True)
        for start in range(0, len(clips), batch_size):
            stats.append_torch(model(preprocess_i3d(clips[start : start + batch_size])), rank=0, num_gpus=1)
        return stats.get_all()

    return extract


def square_root_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The distance as cd-fvd computes it: covariances over n, matrix square root of their product."""
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(0), np.cov(x.T, bias=True)) for x in (a.astype(float), b.astype(float)))
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    return float(np.real(np.square(mean_a - mean_b).sum() + np.trace(cov_a + cov_b - 2 * root)))


def distance(a: np.ndarray, b: np.ndarray, *, over_n: bool = False) -> float:
    """This package's distance; `over_n` divides the covariances by n, as cd-fvd does."""
    if not over_n:
        return frechet_distance(FrechetStatistics(a), FrechetStatistics(b))
    # The part of the covariances is linear in their scale.
    means = float(np.square(a.mean(0, dtype=float) - b.mean(0, dtype=float)).sum())
    return means + (distance(a, b) - means) * (len(a) - 1) / len(a)


def compare_numbers(weights: Path, clips: int, size: int) -> dict[str, Any]:
    """FVD between two sets of clips, by either package and with the known differences taken out one by one."""
    sets = make_clips(clips, size, seed=1), make_clips(clips, size, seed=2, noise=8)
    mine = [ours(weights)(x) for x in sets]
    as_is = [cd_fvd(weights)(x) for x in sets]
    same_eps = [cd_fvd(weights, eps=BATCH_NORM_EPS)(x) for x in sets]
    numbers = {
        "clips_per_set": clips,
        "contentmotion": distance(*mine),
        "contentmotion, covariance over n": distance(*mine, over_n=True),
        "cd-fvd": square_root_distance(*as_is),
        "cd-fvd, eps 1e-3": square_root_distance(*same_eps),
    }
    mine_n, theirs = numbers["contentmotion, covariance over n"], numbers["cd-fvd, eps 1e-3"]
    numbers["relative_difference_left"] = abs(theirs - mine_n) / mine_n
    numbers["largest_feature_difference_left"] = float(
        max(np.abs(a - b).max() for a, b in zip(mine, same_eps, strict=True))
    )
    return numbers


def compare_speed(weights: Path, clips: int, size: int, rounds: int) -> dict[str, Any]:
    """Clips per second, the rounds of all three taking turns."""
    extractors = {
        "contentmotion": ours(weights),
        "cd-fvd": cd_fvd(weights),
        "cd-fvd, 2 clips at a time": cd_fvd(weights, batch_size=2),
    }
    frames = make_clips(clips, size, seed=3)
    for extract in extractors.values():
        extract(frames[:2])
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in extractors}
    for _ in range(rounds):
        for name, extract in extractors.items():
            wall, cpu = time.perf_counter(), time.process_time()
            extract(frames)
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    table: dict[str, Any] = {"clips": clips, "rounds": rounds, "threads": torch.get_num_threads()}
    for name, seconds in times.items():
        wall, cpu = (statistics.median(s[k] for s in seconds) for k in (0, 1))
        table[name] = {"clips_per_s": round(clips / wall, 3), "clips_per_cpu_s": round(clips / cpu, 3)}
    for key in ("clips_per_s", "clips_per_cpu_s"):
        best = max(table[name][key] for name in extractors if name.startswith("cd-fvd"))
        table[f"times_cd_fvd's_better_{key}"] = round(table["contentmotion"][key] / best, 2)
    return table


class StandIn(nn.Module):
    """Pooling and one matrix: I3D's output width at next to no cost. Keeps the real network loaded."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.logits = network.get_submodule("logits")  # i3d_features asks it for the device
        self.network = network
        self.matrix = nn.Parameter(torch.randn(3 * 7 * 7, NUM_CLASSES, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, 3, t, 224, 224) -> (b, 400)."""
        return nn.functional.adaptive_avg_pool3d(x, (1, 7, 7)).flatten(1) @ self.matrix


def peak_mib() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def stream_ours(weights: Path, clips: int, real_clips: int, size: int) -> dict[str, Any]:
    """Features and statistics of clips that are made when needed, 16 at a time."""

    def batches(count: int, seed: int) -> Iterator[np.ndarray]:
        random = np.random.default_rng(seed)
        for start in range(0, count, 16):
            yield random.integers(0, 256, (min(16, count - start), FRAMES, size, size, 3), np.uint8)

    model = load_i3d(weights)
    stats, started = FrechetStatistics(), time.perf_counter()
    for batch in batches(real_clips, 0):
        stats.update(i3d_features(model, batch))
    real_peak, stand_in = peak_mib(), StandIn(model)
    for batch in batches(clips - real_clips, 1):
        stats.update(i3d_features(stand_in, batch))  # type: ignore[arg-type]
    return {
        "clips": stats.n,
        "of_them_through_the_real_network": real_clips,
        "peak_mib_after_the_real_network": round(real_peak),
        "peak_mib": round(peak_mib()),
        "seconds": round(time.perf_counter() - started),
        "distance_to_itself": frechet_distance(stats, stats),
    }


def stream_cd_fvd(weights: Path, clips: int, size: int) -> dict[str, Any]:
    """cd-fvd on a few clips: its peak is that of 16 clips in its network."""
    extract, random = cd_fvd(weights), np.random.default_rng(0)
    extract(random.integers(0, 256, (clips, FRAMES, size, size, 3), np.uint8))
    return {"clips": clips, "peak_mib": round(peak_mib())}


def in_own_process(which: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak memory counts from a process's start: measures in a new one."""
    options = ("i3d", "size", "memory_clips", "real_clips", "threads")
    flags = [text for name in options for text in (f"--{name}", str(getattr(arguments, name)))]
    command = [sys.executable, os.path.abspath(__file__), "--stream", which, *flags]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--i3d", type=Path, required=True, help="safetensors file of the I3D")
    parser.add_argument("--clips", type=int, default=16, help="clips per set and per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=64, help="pixels of the clips")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed and numbers")
    parser.add_argument("--memory_clips", type=int, default=10_000)
    parser.add_argument("--real_clips", type=int, default=32, help="clips through the real network with --memory")
    parser.add_argument("--output", type=Path, help="JSON file; what it holds from another mode stays")
    parser.add_argument("--stream", choices=("contentmotion", "cd-fvd"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.stream == "contentmotion":
        return print(json.dumps(stream_ours(args.i3d, args.memory_clips, args.real_clips, args.size)))
    if args.stream == "cd-fvd":
        return print(json.dumps(stream_cd_fvd(args.i3d, args.real_clips, args.size)))

    table = json.loads(args.output.read_text()) if args.output and args.output.exists() else {}
    table |= {"machine": _machine(), "torch": torch.__version__, "frames": FRAMES, "size": args.size}
    if args.memory:
        table["memory"] = {which: in_own_process(which, args) for which in ("contentmotion", "cd-fvd")}
    else:
        table["fvd"] = compare_numbers(args.i3d, args.clips, args.size)
        print(json.dumps(table["fvd"], indent=2), flush=True)
        table["speed"] = compare_speed(args.i3d, args.clips, args.size, args.rounds)
    print(json.dumps(table, indent=2))
    if args.output:
        write_json(args.output, table)


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
