"""Files with damage of every kind into the commands that read them: each must be read, or refused in one line.

    python benchmarks/fuzz.py --minutes 10

Good small files are made once, of each kind: mp4, webm, gif, png frames, csv, jsonl, parquet, tar, YAML, safetensors,
config.json. A case damages one of them and runs the real command line on it, in a process of its own (forked, so that
nothing is imported twice). It fails where the process crashes, prints a traceback, takes over a minute, or over 1 GB of
memory beyond what the libraries take. Cases are functions of (seed, number): ``--seed 3 --first 117 --cases 1`` repeats
one, whose file stays in the folder that is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import contentmotion.commands.encode
import contentmotion.commands.generate
import contentmotion.commands.info
import contentmotion.commands.inspect
import contentmotion.evaluate.measures
import contentmotion.evaluate.run
import contentmotion.video.ffmpeg  # noqa: F401  what commands import when they are called is imported once
import tiny
from contentmotion.cli import main as command_line
from contentmotion.evaluate.i3d import InceptionI3d
from contentmotion.tables import print_table
from contentmotion.video.write import write_picture, write_video

MAX_SECONDS, MAX_MEMORY = 60.0, 1 << 30
I3D = ["--i3d", "@/i3d.safetensors"]
TOLERANT = ["--max_bad_fraction", "0.99"]
CLIP = ["--num_frames", "4", "--height", "16", "--width", "16"]
SIZES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\x80\0\0\0", b"\0\1\0\0")
VALUES = (
    "10" * 400, "-1", "1e400", "NaN", "null", "true", "[]", "{}", '""', '"\\ud800"', '"\\u001b[2J"', "[" * 20_000,
    '"../../../etc/passwd"', '"/dev/zero"', "99999999", "1e9", '["a", ["b"]]', "*x", "&x [*x, *x]",
    '"' + "x" * 200_000 + '"',
)  # fmt: skip


@dataclass
class Kind:
    """A kind of file, and what reads it.

    Attributes:
        file: The one that is damaged, relative to the folder of good files.
        commands: Words of commands by name; "@" is the folder.
        text: Whether values in it are replaced, too.
    """

    file: str
    commands: dict[str, list[str]]
    text: bool = False


@dataclass
class Tally:
    """What came of a kind's cases with a command."""

    cases: int = 0
    read: int = 0
    refused: int = 0
    seconds: float = 0.0
    memory: int = 0
    failures: list[str] = field(default_factory=list)


def on_data(folder: str) -> dict[str, list[str]]:
    """The commands that read a data set."""
    data = ["--train_data_dir", f"@/{folder}", *CLIP, "--split", "null"]
    sizes = ["--num_frames", "10", *CLIP[2:]]  # I3D takes 9 or more
    videos = ["--data_dir", "@/real", "--generated_dir", f"@/{folder}", *sizes, "--split", "null", "--batch_size", "4"]
    return {
        "inspect": ["inspect", *data, "--output_dir", "@/out/inspect", "--num_workers", "1"],
        "encode": ["encode", *data, "--autoencoder", "@/model/autoencoder", "--output_dir", "@/out/cache", *TOLERANT],
        "evaluate": ["evaluate", *videos, *I3D, "--output_dir", "@/out/evaluate"],
    }


def on_model(model: str = "@/model") -> dict[str, list[str]]:
    """The commands that read a checkpoint."""
    steps = ["--num_inference_steps", "1", "--guidance_scale", "1", "--output_dir", "@/out/videos", "--formats", "mp4"]
    return {
        "generate": ["generate", "a cat", "--pretrained_model_name_or_path", model, *steps],
        "info": ["info", model],
    }


KINDS = {
    "mp4": Kind("mp4/0.mp4", on_data("mp4") | {"info": ["info", "@/mp4/0.mp4"]}),
    "webm": Kind("webm/0.webm", on_data("webm") | {"info": ["info", "@/webm/0.webm"]}),
    "gif": Kind("gif/0.gif", on_data("gif") | {"info": ["info", "@/gif/0.gif"]}),
    "png": Kind("png/0/2.png", on_data("png") | {"info": ["info", "@/png/0/2.png"]}),
    "csv": Kind("csv/metadata.csv", on_data("csv"), text=True),
    "jsonl": Kind("jsonl/metadata.jsonl", on_data("jsonl"), text=True),
    "parquet": Kind("parquet/metadata.parquet", on_data("parquet")),
    "tar": Kind("tar/0.tar", on_data("tar")),
    "yaml": Kind(
        "settings.yaml",
        {
            "generate": [*on_model()["generate"], "--config", "@/settings.yaml"],
            "inspect": [*on_data("mp4")["inspect"][:3], "--output_dir", "@/out/inspect", "--config", "@/settings.yaml"],
        },
        text=True,
    ),
    "safetensors": Kind("model/unet/diffusion_pytorch_model.safetensors", on_model()),
    "config.json": Kind("model/motion_transformer/config.json", on_model(), text=True),
    "model_index.json": Kind("model/model_index.json", on_model(), text=True),
    "tokenizer.json": Kind("model/tokenizer/tokenizer.json", on_model(), text=True),
}


def make_good_files(root: Path, kinds: Sequence[str]) -> None:
    """Writes the files that are damaged, and what the commands need beside them."""
    frames = np.linspace(0, 255, 10 * 32 * 32 * 3).reshape(10, 32, 32, 3).astype(np.uint8)
    names = {*kinds, "mp4"} | ({"real"} if "evaluate" in {c for k in kinds for c in KINDS[k].commands} else set())
    for name in names & {"mp4", "webm", "gif", "png", "csv", "jsonl", "parquet", "tar", "real"}:
        suffix = name if name in ("webm", "gif") else "mp4"
        (root / name).mkdir()
        for k in range(5):
            if name == "png":
                (root / f"png/{k}").mkdir()
                for number, frame in enumerate(frames):
                    picture = Image.fromarray(np.roll(frame, k, axis=0))
                    write_picture(root / f"png/{k}/{number}.png", picture, {"generated": "here"})
            else:
                write_video(
                    root / f"{name}/{k}.{suffix}",
                    np.roll(frames, 3 * k, axis=1),
                    8,
                    {"generated": "here", "prompt": "a cat"},
                )
    rows = [{"file_name": f"{k}.mp4", "text": f"a cat, {k}", "split": "train", "weight": 1.5} for k in range(5)]
    if "csv" in kinds:
        lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
        (root / "csv/metadata.csv").write_text("\n".join(lines) + "\n")
    if "jsonl" in kinds:
        (root / "jsonl/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if "parquet" in kinds:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), root / "parquet/metadata.parquet")
    if "tar" in kinds:
        with tarfile.open(root / "tar/0.tar", "w") as tar:
            for k, row in enumerate(rows):
                video = root / f"tar/{k}.mp4"
                for suffix, content in (("mp4", video.read_bytes()), ("json", json.dumps(row).encode())):
                    info = tarfile.TarInfo(f"{k}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                video.unlink()
    (root / "settings.yaml").write_text("seed: 3\nnum_frames: 4\nheight: 16\nwidth: 16\n")
    tiny.make_pipeline().save_pretrained(root / "model")
    if "real" in names:
        torch.manual_seed(0)
        save_file(InceptionI3d().state_dict(), root / "i3d.safetensors")


def damage(content: bytes, draw: random.Random, text: bool) -> bytes:
    """Content with one to four kinds of damage."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        place = draw.randrange(len(data) + 1)
        if draw.random() < 0.5:
            place = min(place, draw.randrange(1, 600))  # headers are in front
        how = draw.randrange(8 if text else 6)
        if how == 0:
            for _ in range(draw.randrange(1, 32)):
                if data:
                    data[draw.randrange(len(data))] = draw.randrange(256)
        elif how == 1:
            del data[place:]
        elif how == 2:
            del data[place : place + draw.randrange(1, 200)]
        elif how == 3:
            data[place:place] = data[place : place + draw.randrange(1, 400)] * draw.choice((1, 2, 50))
        elif how == 4:
            size = draw.choice(SIZES)
            data[place : place + 4] = size if draw.random() < 0.5 else size[::-1]
        elif how == 5:
            data[place:place] = draw.randbytes(draw.randrange(1, 64))
        else:  # another value in a value's place
            values = list(re.finditer(rb'(?<=[:,\[] )("[^"\n]*"|[\w.-]+)|(?<=,)"[^"\n]*"', bytes(data)))
            if values:
                chosen = draw.choice(values)
                data[chosen.start() : chosen.end()] = draw.choice(VALUES).encode()
    return bytes(data)


def words_of(kind: str, command: str, root: Path) -> list[str]:
    """A command line on a folder of files."""
    return [re.sub("^@", str(root), word) for word in KINDS[kind].commands[command]]


def run_case(words: list[str], log: Path) -> tuple[str, float, int]:
    """Runs a command in a forked process.

    Returns:
        "read", "refused", or what is wrong; seconds; bytes of memory beyond this process's.
    """
    start, before = time.monotonic(), int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    child = os.fork()
    if child == 0:
        status = 70
        try:
            with open(log, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                try:
                    status = command_line(words)
                except BaseException:
                    traceback.print_exc()
        finally:
            os._exit(status)
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        seconds = time.monotonic() - start
        if done:
            break
        if seconds > MAX_SECONDS:
            os.kill(child, signal.SIGKILL)
            _, _, usage = os.wait4(child, 0)
            return f"hangs (over {MAX_SECONDS:.0f} s)", seconds, usage.ru_maxrss * 1024 - before
        time.sleep(0.01)
    memory = max(0, usage.ru_maxrss * 1024 - before)
    said = log.read_text(errors="replace")
    if os.WIFSIGNALED(status):
        return f"crashes (signal {os.WTERMSIG(status)})", seconds, memory
    if "Traceback (most recent call last)" in said or os.WEXITSTATUS(status) not in (0, 1, 2):
        lines = [line for line in said.splitlines() if line.strip()]
        return f"traceback: {lines[-1][:160] if lines else ''}", seconds, memory
    if memory > MAX_MEMORY:
        return f"takes {memory / 2**30:.1f} GiB", seconds, memory
    if "\x1b" in said:
        return "prints an escape sequence", seconds, memory
    return ("read" if os.WEXITSTATUS(status) == 0 else "refused"), seconds, memory


def fuzz(
    root: Path, *, kinds: Sequence[str], seed: int, first: int, going_on: Callable[[int], bool]
) -> dict[tuple[str, str], Tally]:
    """Runs cases, kinds and commands in turn.

    Args:
        root: An empty folder.
        kinds: Of `KINDS`.
        seed: With a case's number says what is damaged how.
        first: Number of the first case.
        going_on: Given the number of cases done, whether there is another one.
    """
    torch.set_num_threads(1)
    # I3D takes a second a clip, and its input is what was read already.
    contentmotion.evaluate.measures.i3d_features = lambda network, videos, **_: (
        videos[:, 0].float().flatten(1).unfold(1, 9, 1).mean(2)[:, :400] / 255
    )
    make_good_files(root, kinds)
    pairs = [(kind, command) for kind in kinds for command in KINDS[kind].commands]
    for kind, command in pairs:  # else the damage would prove nothing
        outcome = run_case(words_of(kind, command, root), root / "log.txt")[0]
        if outcome != "read":
            raise ValueError(f"{command} {kind}, undamaged: {outcome}: {(root / 'log.txt').read_text()[-300:]}")
        shutil.rmtree(root / "out", ignore_errors=True)
    tallies = {pair: Tally() for pair in pairs}
    number = first
    while going_on(number - first):
        kind, command = pairs[number % len(pairs)]
        path, tally, draw = root / KINDS[kind].file, tallies[kind, command], random.Random(f"{seed} {number}")
        good = path.read_bytes()
        bad = damage(good, draw, KINDS[kind].text)
        path.write_bytes(bad)
        outcome, seconds, memory = run_case(words_of(kind, command, root), root / "log.txt")
        tally.cases += 1
        tally.seconds, tally.memory = max(tally.seconds, seconds), max(tally.memory, memory)
        tally.read += outcome == "read"
        tally.refused += outcome == "refused"
        if outcome not in ("read", "refused"):
            kept = root / f"failed-{number}-{path.name}"
            kept.write_bytes(bad)
            shutil.copy(root / "log.txt", root / f"failed-{number}.log")
            tally.failures.append(f"case {number}: {command} {kind} {outcome} ({kept})")
            print(tally.failures[-1], file=sys.stderr, flush=True)
        path.write_bytes(good)
        shutil.rmtree(root / "out", ignore_errors=True)
        number += 1
    return tallies


def report(tallies: dict[tuple[str, str], Tally]) -> int:
    """Prints the table; returns the number of failures."""
    rows = [
        [
            kind, command, str(t.cases), str(t.read), str(t.refused), str(len(t.failures)), f"{t.seconds:.1f}",
            f"{t.memory / 2**20:.0f}",
        ]
        for (kind, command), t in tallies.items()
    ]  # fmt: skip
    headings = ("file", "command", "cases", "read", "refused", "failed", "longest s", "most MiB")
    print_table(headings, rows, text=(0, 1), console=Console())
    failures = sum(len(t.failures) for t in tallies.values())
    print(f"{sum(t.cases for t in tallies.values())} cases, {failures} failures")
    return failures


def main() -> int:
    """Fuzzes for some minutes; 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default 10)")
    parser.add_argument("--cases", type=int, default=None, help="stop after so many")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default 0)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of files (default all)")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    started: list[float] = []  # when the first case was, for what is made before takes its time

    def going_on(done: int) -> bool:
        started.append(time.monotonic())
        return started[-1] - started[0] < 60 * options.minutes and done != options.cases

    tallies = fuzz(
        root, kinds=options.kinds, seed=options.seed, first=options.first,
        going_on=going_on,
    )  # fmt: skip
    failures = report(tallies)
    if failures:
        print(f"what failed lies in {root}")
    else:
        shutil.rmtree(root)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
