"""What the content frame opens, measured: a picture animated, 64 frames, another video's motion, a loop, a video kept.

    python benchmarks/what_the_frame_opens.py --data_dir clips --i3d i3d.safetensors --lpips lpips.safetensors \\
        --model emoji --output outputs/opens/frame.json
    python benchmarks/what_the_frame_opens.py --table "first frame=outputs/opens/frame.json" ...

One model a run, on the clips that are held out and as many others as make up the number. What is finished is not done
again. Every video has noise of its own, from the seed and its place. FVD of so few clips is too large: compare it with
other FVDs of the same file alone, or of files with as many clips.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from contentmotion.commands.generate import load_for_sampling
from contentmotion.config import EvaluateConfig
from contentmotion.evaluate.following import first_frame_psnr
from contentmotion.evaluate.fvd import FrechetStatistics, frechet_distance
from contentmotion.evaluate.i3d import i3d_features
from contentmotion.evaluate.lpips import lpips_distance
from contentmotion.evaluate.measures import Networks, thumbnails
from contentmotion.evaluate.pixel_metrics import flow_fields, optical_flow, psnr
from contentmotion.evaluate.retrieval import nearest
from contentmotion.evaluate.run import open_data
from contentmotion.run_dir import describe_environment, resolve_device, seeded_generator
from contentmotion.saving import replacing_file, write_json
from contentmotion.video.pixels import to_bytes

ROOT = Path(__file__).resolve().parents[1]
CLIP, LONG, LOOP = 16, 64, 24  # frames: of what I3D sees, of a long video, of a loop
MEMORY_FRAMES = (16, 64, 128)
Videos = UInt8[Tensor, "n t h w 3"]
Found = dict[str, Any]


class Bench:
    """A pipeline, clips, and what measures.

    Attributes:
        real: The clips.
        captions: Theirs.
        num_heldout: How many of them, from the first on, were held out.
        stills: Content frames (scaled latents) that the model draws of the captions.
        stills_shown: The same as pictures, uint8 (n, 1, h, w, 3).
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device = resolve_device("auto")
        self.batch_size = arguments.batch_size
        self.features = arguments.output.parent / "features"
        self.config = EvaluateConfig(
            data_dir=arguments.data_dir, i3d=arguments.i3d, lpips=arguments.lpips, seed=arguments.seed,
            pretrained_model_name_or_path=arguments.model, num_inference_steps=arguments.num_inference_steps,
        )  # fmt: skip
        self.pipe = load_for_sampling(self.config, self.device)
        self.networks = Networks(self.config, self.device)
        clips, _ = open_data(self.config, self.pipe)
        order = np.random.default_rng(arguments.seed).permutation(clips.selected).tolist()
        heldout = clips.heldout[: arguments.num_clips]
        batches = list(clips.batches(heldout + sorted(order[: arguments.num_clips - len(heldout)]), 16))
        read = [index for batch in batches for index in batch.indices]
        self.real = torch.cat([batch.frames for batch in batches]).permute(0, 1, 3, 4, 2).contiguous()
        self.captions = [clips.caption(index) for index in read]
        self.num_heldout = len(set(read) & set(heldout))
        drawn = [
            self.pipe(**call, motion_num_inference_steps=1, output_type="pt") for call in self.calls(self.config.seed)
        ]
        self.stills = torch.cat([each.content_latents for each in drawn])
        self.stills_shown = torch.cat([torch.from_numpy(to_bytes(each.content_frame[:, None])) for each in drawn])

    def calls(self, seed: int, **given: Any) -> list[Found]:
        """Arguments of calls of the pipeline, a batch each: of tensors (n, ...) a call gets its videos' part."""
        return [
            {name: value[part] if isinstance(value, Tensor) else value for name, value in given.items()}
            | {
                "prompt": [self.captions[k] for k in part],
                "generator": [seeded_generator(seed, int(k)) for k in part],
                "num_inference_steps": self.config.num_inference_steps,
            }
            for part in torch.arange(len(self.captions)).split(self.batch_size)
        ]

    def make(self, more: int = 0, **given: Any) -> Videos:
        """A video of every caption; ``more`` is added to the seed."""
        calls = self.calls(self.config.seed + more, **given)
        made = [self.pipe(**call, output_type="pt", decode_content_frame=False).frames for call in calls]
        return torch.cat([torch.from_numpy(to_bytes(frames)) for frames in made])

    def statistics(self, videos: Videos) -> FrechetStatistics:
        """I3D's, of FVD. Features are kept beside the report: real and frozen clips are those of every model."""
        file = self.features / f"{hashlib.sha256(videos.contiguous().numpy().tobytes()).hexdigest()[:16]}.npy"
        if not file.exists():
            self.features.mkdir(parents=True, exist_ok=True)
            features = i3d_features(self.networks.i3d, videos).numpy()
            with replacing_file(file) as partial, partial.open("wb") as stream:
                np.save(stream, features)
        return FrechetStatistics(np.load(file))

    @cached_property
    def own_motion(self) -> Videos:
        """The stills with motion that the model predicts, drawn with another seed than the other sections'."""
        return self.make(more=1, content_latents=self.stills)

    @cached_property
    def long_videos(self) -> Videos:
        """The stills, with motion for four clips."""
        return self.make(content_latents=self.stills, num_frames=LONG)

    @property
    def real_first(self) -> UInt8[Tensor, "n 3 h w"]:
        return channels_first(self.real)[:, 0]


def animated(bench: Bench) -> Found:
    """From the true first frame: how well it is kept, and what follows; FVD is of frames 1 on."""
    real, first = bench.real, bench.real_first
    truth, true_flow = bench.statistics(real[:, 1:]), optical_flow(real)
    videos = {
        "animated": bench.make(image=first),
        "frozen": real[:, :1].expand_as(real).contiguous(),
        "reconstruction": bench.make(video=channels_first(real), strength=0.0, motion_strength=0.0),
    }
    if (
        bench.pipe.autoencoder.config.content_mode != "frame"
    ):  # whose given pictures are drawn anew where nothing is said
        videos["animated, strength 0"] = bench.make(image=first, strength=0.0)
    found: Found = {"real_flow": float(true_flow.mean())}
    for name, made in videos.items():
        kept = first_frame_psnr(channels_first(made), first[:, None]).clamp(max=100)
        flow, n = optical_flow(made), bench.num_heldout
        found[name] = {
            "frame_0_psnr": float(kept.mean()),
            "psnr": float(psnr(made, real).clamp(max=100).mean()),
            "flow_share": float(flow.mean() / true_flow.mean()),
        }
        if name in ("animated", "frozen"):
            found[name]["fvd"] = frechet_distance(bench.statistics(made[:, 1:]), truth)
        if n:
            found[name] |= {
                "heldout_frame_0_psnr": float(kept[:n].mean()),
                "heldout_psnr": float(psnr(made[:n], real[:n]).clamp(max=100).mean()),
                "heldout_flow_share": float(flow[:n].mean() / true_flow[:n].mean()),
            }
    return found


def long(bench: Bench) -> Found:
    """Jumps where the clips of 64 frames meet, motion at both ends, and what a video that is no loop closes with."""
    videos, clips = bench.long_videos, bench.pipe.clips(LONG)
    steps = steps_of(videos).mean(dim=0)
    if clips.chained:  # the first frame of a clip is the last one before: the jump is what its motion begins with
        ends = set(clips.starts[1:])
    else:
        ends = {end - 1 for start in clips.starts for end in (start, start + clips.length) if 0 < end < LONG}
    border = torch.tensor([k in ends for k in range(LONG - 1)])
    return {
        "clips": clips.starts,
        "borders": sorted(ends),
        "border_over_elsewhere": float(steps[border].mean() / steps[~border].mean()),
        "steps": [round(float(step), 3) for step in steps],
        "flow_early": float(optical_flow(videos[:, :CLIP]).mean()),
        "flow_late": float(optical_flow(videos[:, -CLIP:]).mean()),
        "not_a_loop": closing(videos[:, :LOOP], bench.pipe.motion_transformer.config.patch_size),
    }


def drift(bench: Bench) -> Found:
    """FVD of the last 16 of 64 frames to the first, and what 16 frames with another seed, which do not drift, score."""
    early = bench.statistics(bench.long_videos[:, :CLIP])
    parts = {"late": bench.long_videos[:, -CLIP:], "other_seed": bench.own_motion}
    return {name: frechet_distance(bench.statistics(part), early) for name, part in parts.items()}


def transfer(bench: Bench) -> Found:
    """Another clip's motion on what the caption draws, against the model's own motion of the same."""
    sources = bench.real.roll(-(len(bench.real) // 2), dims=0)
    moved = bench.make(content_latents=bench.stills, motion_video=channels_first(sources))
    same = bench.make(content_latents=bench.stills, motion_video=channels_first(bench.real))
    own = bench.own_motion
    again = bench.make(video=channels_first(sources), strength=0.0, motion_strength=0.0)
    pairs = {
        "source": (moved, sources),
        "own_motion": (own, sources),
        "shuffled": (moved, sources.roll(1, dims=0)),
        "same_caption": (same, bench.real),
        "reconstruction": (again, sources),
    }
    found: Found = {name: agreement(a, b) for name, (a, b) in pairs.items()}
    still = bench.stills_shown
    for name, videos in {"moved": moved, "own": own}.items():
        found[f"content_{name}"] = likeness(bench, videos, still)
    found["content_shuffled"] = likeness(bench, moved, still.roll(1, dims=0))
    return found


def loop(bench: Bench) -> Found:
    """How a loop of 24 frames closes."""
    videos = bench.make(content_latents=bench.stills, num_frames=LOOP, loop=True)
    return closing(videos, bench.pipe.motion_transformer.config.patch_size)


def identity(bench: Bench) -> Found:
    """A video given, and nothing of it drawn anew: the autoencoder's reconstruction?"""
    equal, furthest, pipe = [], 0.0, bench.pipe
    kept: Found = {"strength": 0.0, "motion_strength": 0.0, "output_type": "pt", "decode_content_frame": False}
    for call in bench.calls(bench.config.seed, video=channels_first(bench.real), **kept):
        pixels = call["video"].float() / 255 * 2 - 1
        decoded = (pipe.decode(*pipe.encode_video(pixels)) / 2 + 0.5).clamp(0, 1)
        difference = (pipe(**call).frames - decoded).abs().flatten(1).amax(dim=1)
        equal += (difference == 0).tolist()
        furthest = max(furthest, float(difference.max()))
    return {"equal": sum(equal), "of": len(equal), "largest_difference": furthest}


def memory(bench: Bench) -> Found:
    """Peak memory (MiB) of `generate`, written as mp4, of videos of several lengths."""
    peaks = {}
    for frames in MEMORY_FRAMES:
        with tempfile.TemporaryDirectory() as folder:
            words = ["generate", "rocket", "--num_frames", str(frames), "--formats", "mp4", "--output_dir", folder]
            model = ["--pretrained_model_name_or_path", str(bench.config.pretrained_model_name_or_path)]
            few = ["--num_inference_steps", "4"]  # memory does not depend on them
            command = [sys.executable, "-m", "contentmotion", *words, *model, *few]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise RuntimeError(f"{' '.join(command)} failed")
            peaks[str(frames)] = round(usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))
    return peaks


def channels_first(videos: Videos) -> UInt8[Tensor, "n t 3 h w"]:
    return videos.permute(0, 1, 4, 2, 3)


def steps_of(videos: Videos) -> Float[Tensor, "n s"]:
    """Mean absolute difference (of 255) from each frame to the next."""
    return torch.stack([video.float().diff(dim=0).abs().mean(dim=(1, 2, 3)) for video in videos])


def closing(videos: Videos, patch: int) -> Found:
    """The distance from the last frame to the first over that between neighbours: all of them, or those of which the
    second begins a patch of frames of the motion model (every ``patch``-th), as the first frame does."""
    every = steps_of(videos)
    steps, alike = every.mean(dim=1), every[:, patch - 1 :: patch].mean()
    last = steps_of(torch.stack([videos[:, -1], videos[:, 0]], dim=1))[:, 0]
    ratios = last / steps.clamp(min=1e-6)
    return {
        "ratio_of_means": float(last.mean() / steps.mean()),
        "ratio_to_patch_borders": float(last.mean() / alike),
        "median_ratio": float(ratios.median()),
        "share_up_to_1": float((ratios <= 1).float().mean()),
    }


def agreement(a: Videos, b: Videos) -> Found:
    """Correlation of two videos' optical flow: of all its values, and of its mean length over time. Mean over pairs."""
    fields, courses = [], []
    for x, y in zip(a.numpy(), b.numpy(), strict=True):
        flows = [np.stack(list(flow_fields(clip))) for clip in (x, y)]  # (t - 1, h, w, 2)
        fields.append(correlation(*flows))
        courses.append(correlation(*(np.linalg.norm(flow, axis=-1).mean(axis=(1, 2)) for flow in flows)))
    return {"flow": float(np.mean(fields)), "course": float(np.mean(courses)), "flow_median": float(np.median(fields))}


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 0 where one does not vary."""
    x, y = (each.ravel() - each.mean() for each in (a, b))
    return float(x @ y / max(np.sqrt((x @ x) * (y @ y)), 1e-12))


def likeness(bench: Bench, videos: Videos, stills: UInt8[Tensor, "n 1 h w 3"]) -> Found:
    """How like its still a video stays: the share whose mean frame is nearest to it of all stills, and LPIPS."""
    mean_frames = videos.float().mean(dim=1, keepdim=True).round().byte()
    where, _ = nearest(thumbnails(mean_frames), thumbnails(stills))
    found: Found = {"nearest": float((where == torch.arange(len(where))).float().mean())}
    if bench.networks.lpips is not None:
        some = videos[:, :: max(1, videos.shape[1] // 4)]
        shown = stills.expand(-1, some.shape[1], -1, -1, -1)
        found["lpips"] = float(lpips_distance(bench.networks.lpips, some, shown).mean())
    return found


SECTIONS = {each.__name__: each for each in (animated, transfer, loop, long, identity, memory, drift)}


def main() -> None:
    """Measures one model, or prints the table of several."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="emoji", help="pipeline folder (default: the shipped model)")
    add("--data_dir", help="real clips with captions")
    add("--i3d", default=os.environ.get("CONTENTMOTION_I3D"), help="I3D weights")
    add("--lpips", default=os.environ.get("CONTENTMOTION_LPIPS"), help="LPIPS weights (without: left out)")
    add("--num_clips", type=int, default=64)
    add("--num_inference_steps", type=int, default=None, help="of both stages (default: 50, or 4 of a student)")
    add("--batch_size", type=int, default=16)
    add("--seed", type=int, default=0)
    add("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    add("--output", type=Path, default=Path("outputs/opens.json"))
    add("--table", nargs="+", metavar="NAME=FILE", help="print these as Markdown instead")
    arguments = parser.parse_args()
    if arguments.table:
        print_tables(
            {name: json.loads(Path(file).read_text()) for name, file in (w.split("=", 1) for w in arguments.table)}
        )
        return
    if not arguments.data_dir or not arguments.i3d:
        parser.error("needs --data_dir and --i3d")
    report: Found = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    asked = {"model": Path(arguments.model).name, "seed": arguments.seed}
    asked |= {"num_inference_steps": arguments.num_inference_steps, "clips": arguments.num_clips}
    then = report.get("protocol", asked)
    if differing := [f"{key} {then[key]}" for key in asked if then[key] != asked[key]]:
        parser.error(f"{arguments.output} was begun with {', '.join(differing)}: choose another --output")
    bench: Bench | None = None
    for name in arguments.sections:
        if name in report:
            continue
        bench = bench or Bench(arguments)
        begun = perf_counter()
        report |= {"protocol": protocol(bench, arguments), name: SECTIONS[name](bench)}
        report.setdefault("seconds", {})[name] = round(perf_counter() - begun)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.output, report)
        print(name, json.dumps(report[name]), flush=True)


def protocol(bench: Bench, arguments: argparse.Namespace) -> Found:
    """What the numbers depend on."""
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    own = bench.pipe.autoencoder.config
    return {
        "model": Path(arguments.model).name,
        "content_mode": own.content_mode,
        "clips": len(bench.real),
        "heldout": bench.num_heldout,
        "captions": bench.captions,
        "seed": arguments.seed,
        "num_inference_steps": arguments.num_inference_steps,
        "commit": commit,
        **describe_environment(bench.device, 1),
    }


def print_tables(reports: dict[str, Found]) -> None:
    """As Markdown: pictures animated; the rest."""
    print("| | | FVD of frames 1 to 15 | PSNR of frame 0 | flow over the real clips' |")
    print("|---|---|---|---|---|")
    for title, report in reports.items():
        for name, row in report.get("animated", {}).items():
            if isinstance(row, dict):
                fvd = f"{row['fvd']:.0f}" if "fvd" in row else ""
                print(f"| {title} | {name} | {fvd} | {row['frame_0_psnr']:.1f} dB | {row['flow_share']:.2f} |")
    rows = {
        "FVD of frames 48 to 63 against 0 to 15": lambda r: f"{r['drift']['late']:.0f}",
        "the same of 16 frames with another seed": lambda r: f"{r['drift']['other_seed']:.0f}",
        "flow of frames 48 to 63 over that of 0 to 15":
            lambda r: f"{r['long']['flow_late'] / r['long']['flow_early']:.2f}",
        "frame difference at clips' borders over elsewhere": lambda r: f"{r['long']['border_over_elsewhere']:.2f}",
        "peak memory, " + ", ".join(map(str, MEMORY_FRAMES)) + " frames (MiB)":
            lambda r: ", ".join(str(r["memory"][str(n)]) for n in MEMORY_FRAMES),
        "motion taken: flow's correlation with the source": lambda r: f"{r['transfer']['source']['flow']:.2f}",
        "own motion; shuffled source":
            lambda r: f"{r['transfer']['own_motion']['flow']:.2f}; {r['transfer']['shuffled']['flow']:.2f}",
        "motion of the caption's own clip; the source's reconstruction":
            lambda r: f"{r['transfer']['same_caption']['flow']:.2f}; {r['transfer']['reconstruction']['flow']:.2f}",
        "own still nearest, of all; own motion; shuffled": lambda r: "; ".join(
            f"{r['transfer'][f'content_{name}']['nearest']:.0%}" for name in ("moved", "own", "shuffled")),
        "LPIPS to the still; own motion; shuffled": lambda r: "; ".join(
            f"{r['transfer'][f'content_{name}'].get('lpips', np.nan):.3f}" for name in ("moved", "own", "shuffled")),
        "loop: last frame to first over neighbours; not a loop":
            lambda r: f"{r['loop']['ratio_of_means']:.2f}; {r['long']['not_a_loop']['ratio_of_means']:.2f}",
        "the same, over neighbours that two of the motion's patches meet between":
            lambda r: "; ".join(
                f"{part['ratio_to_patch_borders']:.2f}" for part in (r["loop"], r["long"]["not_a_loop"])),
        "strength 0: equal to the reconstruction": lambda r: f"{r['identity']['equal']} of {r['identity']['of']}",
    }  # fmt: skip
    print(f"\n| | {' | '.join(reports)} |\n|---{'|---' * len(reports)}|")
    for title, show in rows.items():
        cells = []
        for report in reports.values():
            try:
                cells.append(show(report))
            except KeyError:  # a section that was left out
                cells.append("")
        print(f"| {title} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
