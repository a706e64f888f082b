"""CMD beside other people's text-to-video systems: parameters, FLOPs, seconds and memory of every stage of a clip.

    python benchmarks/compare_systems.py --meta --training
    python benchmarks/compare_systems.py cmd-sd21-4 modelscope --height 256 --width 256

The same tables as `contentmotion benchmark`, whose systems and pipeline folders can be named here, too. The networks
have their published sizes and random weights: time does not depend on weights. --training adds one training step of
each of CMD's networks and of ModelScope's (CMD Table 8, which has 512x512 pixels).
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from systems.clips import SYSTEMS as OTHERS
from systems.training import training_report, training_steps

from contentmotion.config import BenchmarkConfig
from contentmotion.cost.benchmark import SYSTEMS as OWN
from contentmotion.cost.benchmark import benchmark
from contentmotion.cost.clip import Size

SYSTEMS = OWN | OTHERS


def main() -> None:
    """Counts, times, reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", default=tuple(SYSTEMS), help=f"of {', '.join(SYSTEMS)}; or folders")
    for name in ("height", "width", "steps"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--num_frames", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--whole_seconds", type=float, default=60.0, help="run our pipelines as a whole up to these")
    parser.add_argument("--decoder", choices=("auto", "full", "tiny"), default="auto", help="image decoder")
    parser.add_argument("--dtype", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output_dir", default="outputs/systems")
    parser.add_argument("--meta", action="store_true", help="count only: nothing is allocated, nothing runs")
    parser.add_argument("--training", action="store_true", help="one training step of each, too")
    arguments = vars(parser.parse_args())
    training = arguments.pop("training")
    config = BenchmarkConfig(**arguments | {"systems": tuple(arguments["systems"])})

    def further(device: torch.device | None, dtype: torch.dtype) -> tuple[dict[str, Any], str]:
        size = Size(config.num_frames, config.height or 512, config.width or 1024)
        return training_report(training_steps(size, device, dtype, config.repeats), size)

    benchmark(config, SYSTEMS, further if training else None)


if __name__ == "__main__":
    main()
