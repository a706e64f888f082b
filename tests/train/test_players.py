"""Several networks, losses and optimizers in one loop; what a run that is stopped owes; what a checkpoint may hold."""

import json
import os
import pickle
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from contentmotion.config import ScaleSettings, TrainConfig
from contentmotion.draws import randn
from contentmotion.train import checkpoints as checkpoints_module
from contentmotion.train.checkpoints import checkpoints
from contentmotion.train.loop import Batch, Player, fit

sys.path.insert(0, str(Path(__file__).parent))
from small_runs import STEPS, Numbers, collate, line_loss, lines  # noqa: E402

SIX: dict[str, Any] = {
    "max_train_steps": 6, "train_batch_size": 4, "learning_rate": 0.1, "ema_decay": 0.5, "checkpointing_steps": 3,
    "checkpoints_total_limit": 9,
}  # fmt: skip


def configured(folder: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(output_dir=str(folder), **STEPS | SIX | changes)


def noisy_loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    x = batch["index"].float()[:, None] / 8
    return {"loss": (model(x) - 2 * x + randn(x.shape, batch["generator"])).square().mean()}


class Pair:
    """A generator and a critic of it, which share a frozen layer; the critic's turn is every second step."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        shared = nn.Linear(1, 1).requires_grad_(False)
        self.drawer, self.critic = (nn.Sequential(shared, nn.Linear(1, 3), nn.Linear(3, 1)) for _ in range(2))
        self.target = nn.Sequential(shared, nn.Linear(1, 3), nn.Linear(3, 1))
        self.target.load_state_dict(self.drawer.state_dict())

    def players(self) -> list[Player]:
        def draw(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
            x = randn((len(batch["index"]), 1), batch["generator"])
            return {"loss": (self.critic(model(x)) - self.target(x)).square().mean() + model(x).square().mean()}

        def judge(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
            x = randn((len(batch["index"]), 1), batch["generator"])
            with torch.no_grad():
                drawn = self.drawer(x)
            return {"loss": (model(drawn) - x).square().mean(), "seen": torch.tensor(1.0)}

        return [
            Player(self.drawer, draw, "drawer", target=self.target),
            Player(self.critic, judge, "critic", every=2, ema_decay=0.0,
                   make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9)),
        ]  # fmt: skip

    def weights(self) -> dict[str, Tensor]:
        networks = nn.ModuleDict({"drawer": self.drawer, "critic": self.critic, "target": self.target})
        return {name: value.clone() for name, value in networks.state_dict().items()}


def fit_pair(folder: Path, **changes: Any) -> dict[str, Tensor]:
    pair = Pair()
    fit(pair.players(), Numbers(), configured(folder, **changes), collate=collate)
    return pair.weights()


def test_two_players_resume_bit_for_bit(tmp_path: Path) -> None:
    whole = fit_pair(tmp_path / "whole")
    for background in (False, True):
        folder = tmp_path / f"half-{background}"
        fit_pair(folder, max_train_steps=3, scale=ScaleSettings(async_checkpointing=background))
        again = fit_pair(folder)
        assert all(torch.equal(again[name], value) for name, value in whole.items())
        assert lines(folder)[-1]["drawer/loss"] == lines(tmp_path / "whole")[-1]["drawer/loss"]
    moved = {name for name, value in whole.items() if not torch.equal(value, Pair().weights()[name])}
    assert moved == {name for name in whole if name.split(".")[1] != "0"}, "all but the frozen layer"
    assert all(torch.equal(whole[f"drawer.{k}"], whole[f"target.{k}"]) for k in Pair().target.state_dict())
    turns = [("critic/loss" in line, "drawer/loss" in line, "critic/lr" in line) for line in lines(tmp_path / "whole")]
    assert turns == [(False, True, False), (True, True, True)] * 3
    files = {path.name for path in (tmp_path / "whole/checkpoint-000003").iterdir()}
    kinds = ("drawer", "drawer-average", "drawer-optimizer", "critic", "critic-optimizer")
    assert files == {f"{kind}.safetensors" for kind in kinds} | {"state.json"}
    with pytest.raises(ValueError, match="does not fit this model and configuration: it is of drawer, critic"):
        fit(Pair().players()[:1], Numbers(), configured(tmp_path / "whole"), collate=collate)


def test_each_player_has_the_gradients_of_its_own_loss(tmp_path: Path) -> None:
    """What the drawer's loss does to the critic is thrown away: the critic goes as if it were alone."""
    pair = Pair()
    seen: list[Tensor] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append(self.param_groups[0]["params"][0].grad.clone())
            return super().step(closure)

    drawer, critic = pair.players()
    critic = Player(critic.module, critic.loss, "critic", make_optimizer=lambda p: Watched(p, lr=0.0))
    fit([drawer, critic], Numbers(), configured(tmp_path, max_train_steps=1, max_grad_norm=0.0), collate=collate)
    x = randn((4, 1), torch.Generator().manual_seed(1_009 - 1))
    drawn = Pair()
    first = [p for p in pair.critic.parameters() if p.requires_grad][0]
    assert torch.equal(first, [p for p in drawn.critic.parameters() if p.requires_grad][0])
    pair.drawer.load_state_dict(load_file(tmp_path / "checkpoint-000001/drawer.safetensors"))
    pair.critic.train().requires_grad_(True)
    [expected] = torch.autograd.grad((pair.critic(pair.drawer(x).detach()) - x).square().mean(), [first])
    torch.testing.assert_close(seen[0], expected)


def test_a_second_player_changes_no_draws_of_the_first(tmp_path: Path) -> None:
    drawn: dict[str, list[list[float]]] = {"alone": [], "first": [], "second": []}

    def losses(name: str) -> Any:
        def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
            drawn[name].append(randn((3,), batch["generator"]).tolist() + torch.rand(2).tolist())
            return line_loss(model, batch)

        return loss

    fit([Player(nn.Linear(1, 1), losses("alone"))], Numbers(), configured(tmp_path / "1"), collate=collate)
    two = [Player(nn.Linear(1, 1), losses(name), name) for name in ("first", "second")]
    fit(two, Numbers(), configured(tmp_path / "2"), collate=collate)
    assert drawn["alone"] == drawn["first"] and len(drawn["alone"]) == 6
    assert all(one[:3] != other[:3] for one, other in zip(drawn["first"], drawn["second"], strict=True))
    # The numbers of one player in one process are those of all earlier versions.
    source = torch.Generator().manual_seed(2 * 1_009)
    assert drawn["alone"][2][:3] == torch.randn(3, generator=source).tolist()


@pytest.mark.parametrize("parts", [2, 4])
def test_noise_is_the_items_whatever_the_accumulation(tmp_path: Path, parts: int) -> None:
    runs = []
    for count in (1, parts):
        torch.manual_seed(0)
        model = nn.Linear(1, 1)
        config = configured(tmp_path / str(count), train_batch_size=4 // count, gradient_accumulation_steps=count)
        fit([Player(model, noisy_loss)], Numbers(), config, collate=collate)
        runs.append([model.weight.item(), *(line["loss"] for line in lines(tmp_path / str(count)))])
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)
    assert len(set(runs[0])) == 7


def run_with_functions(folder: Path, stop_at: int | None = None, **changes: Any) -> list[tuple[str, int, float]]:
    """A run whose functions tell what they saw; at a step it gets SIGTERM, while it computes."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    told: list[tuple[str, int, float]] = []

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        if batch["step"] == stop_at:
            os.kill(os.getpid(), changes.get("number", signal.SIGTERM))
        return noisy_loss(model, batch)

    def score(step: int) -> dict[str, float]:
        assert not model.training and not torch.is_grad_enabled()
        told.append(("score", step, model.weight.item()))
        torch.rand(9)
        return {"weight": model.weight.item()}

    def look(step: int) -> None:
        told.append(("look", step, model.weight.item()))

    at = [(2, score), (3, look), (0, look)]
    config = configured(folder, **{k: v for k, v in changes.items() if k != "number"})
    fit([Player(model, loss)], Numbers(), config, collate=collate, at=at, save=lambda: told.append(("save", 0, 0.0)))
    told.append(("end", 0, model.weight.item()))
    return told


def test_functions_run_before_the_checkpoint_and_are_owed_by_a_stopped_run(tmp_path: Path) -> None:
    whole = run_with_functions(tmp_path / "whole")
    called = [("score", 2), ("look", 3), ("score", 4), ("score", 6), ("look", 6), ("save", 0), ("end", 0)]
    assert [entry[:2] for entry in whole] == called
    for step in (2, 3, 5, 6):  # something is due at 2, 3 and 6
        folder = tmp_path / f"stopped-{step}"
        with pytest.raises(SystemExit) as stop:
            run_with_functions(folder, stop_at=step)
        assert stop.value.code == 128 + signal.SIGTERM
        assert checkpoints(folder)[-1].name == f"checkpoint-{step:06d}"
        owed = json.loads((checkpoints(folder)[-1] / "state.json").read_text())["owed"]
        assert owed == {2: [0], 3: [1], 5: [], 6: [0, 1]}[step]
        again = run_with_functions(folder)
        assert again == [entry for entry in whole if entry[1] == 0 or entry[1] >= step], "the undisturbed run's"
        for name in ("loss", "eval/weight"):
            one, other = ([(x["step"], x[name]) for x in lines(f) if name in x] for f in (tmp_path / "whole", folder))
            assert one == other, name


def test_a_stop_between_two_functions_leaves_the_second(tmp_path: Path) -> None:
    told: list[str] = []

    def first(step: int) -> None:
        told.append(f"first {step}")
        if len(told) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def run() -> None:
        at = [(2, first), (2, lambda step: told.append(f"second {step}"))]
        fit(
            [Player(nn.Linear(1, 1), line_loss)],
            Numbers(),
            configured(tmp_path, max_train_steps=3),
            collate=collate,
            at=at,
        )

    with pytest.raises(SystemExit):
        run()
    assert told == ["first 2"] and [path.name for path in checkpoints(tmp_path)] == ["checkpoint-000002"]
    run()
    assert told == ["first 2", "second 2", "first 3", "second 3"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_hang_up_stop_like_sigterm(
    tmp_path: Path, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as stop:
            run_with_functions(tmp_path, stop_at=2, number=number)
    finally:
        signal.signal(number, before)
    assert stop.value.code == 128 + number and [path.name for path in checkpoints(tmp_path)] == ["checkpoint-000002"]
    told = capfd.readouterr().err
    assert f"Stopped by {number.name} after step 2 of 6, with a checkpoint" in told
    assert ("once more ends at once" in told) == (number == signal.SIGINT)


def test_what_is_trained_is_saved_where_the_time_ends(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, saved = nn.Linear(1, 1), []
    config = configured(tmp_path, scale=ScaleSettings(max_train_time=1e-9))
    with pytest.raises(SystemExit):
        fit(
            [Player(model, line_loss)],
            Numbers(),
            config,
            collate=collate,
            save=lambda: saved.append(model.weight.item()),
        )
    assert saved == [load_file(tmp_path / "checkpoint-000001/model-average.safetensors")["weight"].item()]


@pytest.mark.parametrize("background", [False, True])
def test_weights_that_are_not_finite_never_reach_a_checkpoint(
    tmp_path: Path, background: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update overflows, at a step whose loss and gradient are finite, while a good checkpoint is being written."""
    write = checkpoints_module.save_file
    monkeypatch.setattr(checkpoints_module, "save_file", lambda *given: time.sleep(0.1) or write(*given))

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        class Overflowing(torch.optim.SGD):
            steps = 0

            def step(self, closure: Any = None) -> Any:
                self.steps += 1
                if self.steps == 3:
                    parameters[0].data.mul_(float("inf"))

        return Overflowing(parameters, lr=0.1)

    seen: list[int] = []
    config = configured(
        tmp_path, checkpointing_steps=1, max_train_steps=3, scale=ScaleSettings(async_checkpointing=background)
    )
    with pytest.raises(ValueError, match=r"^a weight is nan at step 3; the last good checkpoint is .*-000002"):
        player = Player(nn.Linear(1, 1), line_loss, make_optimizer=make)
        fit([player], Numbers(), config, collate=collate, at=[(1, seen.append)], save=lambda: seen.append(-1))
    assert seen == [1, 2] and [path.name for path in checkpoints(tmp_path)] == [
        "checkpoint-000001",
        "checkpoint-000002",
    ]


def test_a_step_that_the_fp16_scaler_skips_moves_nothing(tmp_path: Path) -> None:
    """The first scale, 65536, overflows in half precision; it is halved until it fits."""

    def run(folder: Path, **changes: Any) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Linear(1, 1)
        settings = {"mixed_precision": "fp16", "checkpointing_steps": 1, "lr_warmup_steps": 4} | changes
        fit([Player(model, lambda m, b: {"loss": 3 * line_loss(m, b)["loss"].float()})], Numbers(),
            configured(folder, **settings), collate=collate)  # fmt: skip
        return model

    whole = run(tmp_path / "whole")
    states = [
        json.loads((path / "state.json").read_text())["players"]["model"] for path in checkpoints(tmp_path / "whole")
    ]
    scales = [65536.0, *(state["scaler"]["scale"] for state in states)]
    skipped = [after < before for before, after in zip(scales[:-1], scales[1:], strict=True)]
    assert skipped[0] and not all(skipped), "otherwise this tests nothing"
    done = [sum(not skip for skip in skipped[: k + 1]) for k in range(6)]
    assert [state["average_steps"] for state in states] == done
    assert [line["lr"] for line in lines(tmp_path / "whole")] == pytest.approx([0.1 * min(1, n / 4) for n in done])
    first = [load_file(tmp_path / f"whole/checkpoint-{k:06d}/model.safetensors")["weight"].item() for k in (1, 6)]
    torch.manual_seed(0)
    assert first[0] == nn.Linear(1, 1).weight.item() != first[1]
    run(tmp_path / "half", max_train_steps=3)
    assert torch.equal(run(tmp_path / "half").weight, whole.weight)


def test_bf16_trains_in_bf16_and_keeps_float32(tmp_path: Path) -> None:
    seen = set()

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        x = batch["index"].float()[:, None] / 8
        prediction = model(x)
        seen.add(prediction.dtype)
        return {"loss": (prediction.float() - 2 * x).square().mean()}

    config = configured(tmp_path, mixed_precision="bf16")
    fit([Player(nn.Linear(1, 1), loss)], Numbers(), config, collate=collate)
    assert seen == {torch.bfloat16}
    assert {x.dtype for x in load_file(tmp_path / "checkpoint-000006/model.safetensors").values()} == {torch.float32}
    assert lines(tmp_path)[-1]["loss"] < lines(tmp_path)[0]["loss"]


class Canary:
    """Sings when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_no_pickle_of_a_checkpoint_is_ever_loaded(tmp_path: Path) -> None:
    """A pickle in the place of every file, and under every name that earlier versions had."""
    run, canary = tmp_path / "run", tmp_path / "sang"
    fit([Player(nn.Linear(1, 1), line_loss)], Numbers(), configured(run), collate=collate)
    evil = pickle.dumps(Canary(canary))
    good = run / "checkpoint-000006"
    old = ("custom_checkpoint_0.pkl", "optimizer.bin", "scheduler.bin", "random_states_0.pkl", "sharded/.metadata")
    for name in [path.name for path in good.iterdir()] + [*old, "pytorch_model.bin", "everything"]:
        folder = tmp_path / "spoilt" / f"checkpoint-{len(name):06d}"
        shutil.copytree(good, folder)
        for path in [folder / name] if name != "everything" else [*folder.iterdir(), *(folder / o for o in old)]:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(evil)
        config = configured(tmp_path / "again", resume_from_checkpoint=str(folder), max_train_steps=len(name))
        try:
            fit([Player(nn.Linear(1, 1), line_loss)], Numbers(), config, collate=collate)
        except ValueError as error:
            assert "\n" not in str(error), error
        assert not canary.exists(), name
        shutil.rmtree(tmp_path / "spoilt")
        shutil.rmtree(tmp_path / "again", ignore_errors=True)
    pickle.loads(evil)
    assert canary.exists(), "it can sing"


@pytest.mark.parametrize("file", ["custom_checkpoint_0.pkl", "sharded/.metadata"])
def test_checkpoint_of_an_earlier_version_is_refused_in_one_line(tmp_path: Path, file: str) -> None:
    path = tmp_path / "checkpoint-000003" / file
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(ValueError, match="checkpoint-000003.*an earlier version wrote it, with pickles") as error:
        fit([Player(nn.Linear(1, 1), line_loss)], Numbers(), configured(tmp_path), collate=collate)
    assert "\n" not in str(error.value) and path.exists()


def test_players_that_cannot_be_trained(tmp_path: Path) -> None:
    for players, why in (
        ([], "names of their own"),
        ([Player(nn.Linear(1, 1), line_loss)] * 2, "names of their own"),
        ([Player(nn.Linear(1, 1), line_loss, name="../x")], "names of their own"),
        ([Player(nn.Linear(1, 1).requires_grad_(False), line_loss)], "no parameter to train"),
        ([Player(nn.Linear(1, 1), line_loss, ema_decay=0.0, target=nn.Linear(1, 1))], "ema_decay must be above 0"),
    ):
        with pytest.raises(ValueError, match=why):
            fit(players, Numbers(), configured(tmp_path), collate=collate)
    assert not list(tmp_path.iterdir())
