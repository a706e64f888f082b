"""What a run says of itself: a progress line, ``metrics.jsonl``, trackers, and the bad files that it met."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
import uuid
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, gather_object
from PIL import Image
from rich.progress import TextColumn
from torch.utils.data import Dataset

from contentmotion.config import TrainConfig
from contentmotion.data.accounting import require_few_bad
from contentmotion.data.streaming import StreamingClips
from contentmotion.losses.player import COUNT, SUM
from contentmotion.progress import progress_bar
from contentmotion.run_dir import ENVIRONMENT, by_name, describe_environment
from contentmotion.saving import read_json, read_text, replacing_file, write_json
from contentmotion.train.processes import on_main, this_process

TRACKED = "tracker.json"  # in a run's folder: what trackers know the run by, however often it is resumed


def _divide(values: dict[str, float]) -> dict[str, float]:
    """Values with sums divided by their counts; those of nothing left out."""
    divided = {name: value for name, value in values.items() if not name.endswith((SUM, COUNT))}
    for name in (name.removesuffix(COUNT) for name, count in values.items() if name.endswith(COUNT) and count):
        divided[name] = values[name + SUM] / values[name + COUNT]
    return divided


def peak_memory() -> float:
    """The most memory that this process has held so far, in GiB: of its GPU, or without one of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Metrics:
    """Progress line, ``metrics.jsonl``, ``environment.json``, trackers, and the count of bad files."""

    def __init__(self, config: TrainConfig, run_dir: Path, first_step: int, dataset: Dataset) -> None:
        self.process, self.config, self.first_step = this_process(), config, first_step
        self.path = run_dir / "metrics.jsonl"
        self._trackers = Accelerator(
            mixed_precision="no",
            log_with=None if config.report_to == "none" else [name.strip() for name in config.report_to.split(",")],
            project_config=ProjectConfiguration(project_dir=str(run_dir), logging_dir=str(run_dir / "logs")),
        )

        def prepare() -> None:
            run_dir.mkdir(parents=True, exist_ok=True)
            device: Any = self.process.device
            environment = describe_environment(device, self.process.num_processes, config.mixed_precision)
            write_json(run_dir / ENVIRONMENT, environment)
            self._forget_steps_after(first_step)
            if config.report_to != "none" and (first_step == 0 or not (run_dir / TRACKED).exists()):
                write_json(run_dir / TRACKED, {"id": uuid.uuid4().hex})

        on_main(prepare)
        if config.report_to != "none":
            run_id = read_json(run_dir / TRACKED)["id"]
            names = {
                "wandb": {"id": run_id, "name": run_dir.name, "resume": "allow"},
                "comet_ml": {"experiment_key": run_id},
            }
            settings = {
                name: value if isinstance(value, int | float | str | None) else str(value)
                for name, value in by_name(asdict(config))
            }
            self._trackers.init_trackers("contentmotion", config=settings, init_kwargs=names)
        speed = TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:.2f} steps/s")
        self.progress = progress_bar(speed, shown=self.process.is_main_process)
        self.console = self.progress.console
        self.task = self.progress.add_task(
            run_dir.name, total=config.max_train_steps, completed=first_step, loss=math.nan, speed=0.0
        )
        self.values: dict[str, list[float]] = {}  # since the last line
        self.started = time.perf_counter()
        self.bad: set[str] = set()
        self.unsaid: list[str] = []
        self.seen = 0
        # A cache watches its own losses: one line may stand for many clips there.
        self.limit = None if hasattr(dataset, "max_bad_fraction") else config.max_bad_fraction
        self.total = None if isinstance(dataset, StreamingClips) else len(dataset)  # type: ignore[arg-type]

    def note(self, steps: list[dict[str, float]]) -> None:
        """Takes in the numbers of some steps. The first loss is shown."""
        for name, value in chain.from_iterable(values.items() for values in steps):
            self.values.setdefault(name, []).append(value)
        loss = next((name for name in self.values if f"/{name}".endswith("/loss")), None)
        if loss is not None:
            self.progress.update(self.task, loss=self.values[loss][-1])

    def advance(self, step: int, write: bool) -> None:
        """Moves the bar on; on request writes one line, means of what was noted since the last one."""
        speed = (step - self.first_step) / (time.perf_counter() - self.started)
        self.progress.update(self.task, completed=step, speed=speed)
        if not write:
            return
        loss = next((name for name in self.values if f"/{name}".endswith("/loss")), "")
        means = _divide({name: sum(seen) / len(seen) for name, seen in self.values.items()})
        self.values = {}
        items = self.config.train_batch_size * self.config.gradient_accumulation_steps * self.process.num_processes
        self.write(step, means | {"steps_per_s": speed, "items_per_s": speed * items, "memory_gib": peak_memory()})
        show = self.process.is_main_process and not self.console.is_terminal
        if show and step % (10 * self.config.logging_steps) == 0:
            left = (self.config.max_train_steps - step) / speed / 60
            self.console.print(
                f"step {step}/{self.config.max_train_steps}  loss {means.get(loss, math.nan):.4f}  "
                f"{speed:.2f} steps/s  {left:.0f} min left"
            )

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line of ``metrics.jsonl``, and the same to the trackers."""
        if self.process.is_main_process and values:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step} | values) + "\n")
        self._trackers.log(values, step=step)

    def show(self, step: int) -> None:
        """The preview that was written at a step, to the trackers that take pictures."""
        path = self.path.parent / f"preview-{step:06d}.png"
        if not self._trackers.trackers or not self.process.is_main_process or not path.is_file():
            return
        picture = np.asarray(Image.open(path).convert("RGB"))[None]
        for tracker in self._trackers.trackers:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"preview": picture}, step=step, **layout)

    def close(self) -> None:
        """Ends the trackers, where accelerate's ``end_training`` ends the process group too (see
        ``run_dir.leave_processes``): DDP's reducer would then hold it last and free it under Python's lock, for which
        gloo's thread may wait (torch 2.13).
        """
        for tracker in self._trackers.trackers:
            tracker.finish()

    def note_bad_files(self, skipped: list[str], num_items: int) -> None:
        """Takes note of the bad files that this process met; ``check_bad_files`` acts on them."""
        self.unsaid += [line for line in skipped if line not in self.bad]
        self.seen += num_items

    def check_bad_files(self, any_new: bool) -> None:
        """Names each bad file once, whichever process met it, where any has met one since the last call; raises
        ``ValueError`` where too many are bad.
        """
        for line in gather_object(self.unsaid) if any_new else ():
            if line not in self.bad:
                self.bad.add(line)
                if self.process.is_main_process:
                    self.console.print(f"skipped ({len(self.bad)} so far): {line}", soft_wrap=True, markup=False)
        self.unsaid = []
        if self.limit is not None:
            require_few_bad(len(self.bad), self.seen * self.process.num_processes, self.limit, self.total)

    def _forget_steps_after(self, step: int) -> None:
        """Drops lines that a killed run wrote after the checkpoint that is resumed."""
        if not self.path.exists():
            return
        whole = [line for line in read_text(self.path).splitlines() if line.endswith("}")]  # the last may be torn
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        with replacing_file(self.path) as partial:
            partial.write_text("".join(line + "\n" for line in kept))
