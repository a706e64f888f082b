"""The best model of a run, kept beside the last one."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from contentmotion.saving import read_json, restore_folder, write_json
from contentmotion.train.checkpoints import latest_checkpoint, reason_of, what_is_kept

BEST = "best.json"


class Best:
    """Keeps the model with the lowest score, and ``best.json``, which names its step and its score.

    A run that is resumed repeats the scores of the steps that it repeats, so the best stays the best. One that goes on
    with other settings competes with the best of before. Of several processes only the first has one.

    Args:
        run_dir: Folder of the run.
        folder: Where the model goes.
        save: Writes it there, whole or not at all.
        name: The score's name.
        scored_on: What scores depend on: with anything else, they start anew.
    """

    def __init__(
        self, run_dir: Path, folder: Path, save: Callable[[], None], name: str, scored_on: Mapping[str, Any]
    ) -> None:
        self.path, self.folder, self.save = run_dir / BEST, folder, save
        self.name, self.scored_on = name, dict(scored_on)
        self.record: dict[str, Any] = {}
        restore_folder(folder)
        if self.path.exists():
            try:
                record = read_json(self.path)
            except ValueError:  # not ours
                record = {}
            begun = latest_checkpoint(run_dir) is not None and folder.is_dir()
            if begun and name in record and record.get("scored_on") == self.scored_on:
                self.record = record
            elif begun:
                print(f"{self.path}: scored on other clips or settings than now; the best starts anew", file=sys.stderr)

    def offer(self, step: int, score: float, **beside: float) -> None:
        """Takes note of a score, and of numbers beside it; saves the model if it is the best so far.

        Raises:
            OSError: It could not be written; what was there before is still there.
        """
        last = {"step": step, self.name: score} | beside
        best = {k: v for k, v in self.record.items() if k not in ("last", "scored_on")} or None
        if best is None or score < best[self.name] or math.isnan(best[self.name]):
            try:
                self.save()  # before the record: killed in between, the step is scored again
            except Exception as error:  # a full disk is an error of the system, or of safetensors
                kept = what_is_kept(self.path.parent)
                raise OSError(f"{self.folder} could not be written: {reason_of(error)}; {kept}") from error
            best = last
        self.record = {**best, "last": last, "scored_on": self.scored_on}
        write_json(self.path, self.record)
