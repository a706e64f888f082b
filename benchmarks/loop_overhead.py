"""What of a training command's steps is neither forward pass nor backward pass nor optimizer: the loop's own share. In
this process's time on processors, which other work on the machine hardly changes; the first steps are left out.

    python benchmarks/loop_overhead.py train-content --config configs/emoji/content.yaml --max_train_steps 15 ...
"""

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from contentmotion.cli import main
from contentmotion.train.loop import _Objective, _Run
from contentmotion.train.optimizers import Trainee

WARM_UP = 3  # steps
spent: Counter[str] = Counter()  # seconds
marks: list[dict[str, float]] = []  # of what was spent when each step began, in all and by part


def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose time is counted."""

    def measured(*args: Any, **settings: Any) -> Any:
        begun = time.process_time()
        try:
            return call(*args, **settings)
        finally:
            spent[part] += time.process_time() - begun

    return measured


def marking(step: Callable[..., Any]) -> Callable[..., Any]:
    """The loop's step, whose beginning is marked."""

    def marked(*args: Any) -> Any:
        marks.append({"all": time.process_time(), **spent})
        return step(*args)

    return marked


_Run.step = marking(_Run.step)
_Objective.forward = timed("forward", _Objective.forward)
torch.Tensor.backward = timed("backward", torch.Tensor.backward)
Trainee.clip_gradients = timed("optimizer", Trainee.clip_gradients)
Trainee.step = timed("optimizer", Trainee.step)
if status := main(sys.argv[1:]):
    sys.exit(status)
first, last = marks[WARM_UP], marks[-1]
whole = last["all"] - first["all"]
parts = {name: (last[name] - first[name]) / whole for name in ("forward", "backward", "optimizer")}
print(
    f"{whole / (len(marks) - 1 - WARM_UP):.3f} s of processor time a step: {1 - sum(parts.values()):.1%} the loop's own"
)
print(*(f"{name} {share:.1%}" for name, share in parts.items()), sep=", ")
