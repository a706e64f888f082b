"""Steps that are recorded and replayed (``scale.cuda_graphs``) are the plain ones: by a graph that is none
(``fake_graph``), for there is no GPU.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import line_loss, small_run

import tiny
from contentmotion.config import (
    DistillConfig,
    PerceptualLoss,
    ScaleSettings,
    TrainAutoencoderConfig,
    TrainConfig,
    TrainContentConfig,
)
from contentmotion.draws import randn
from contentmotion.evaluate.lpips import LPIPS
from contentmotion.losses import consistency, diffusion, distribution_matching, reconstruction
from contentmotion.losses.player import Player
from contentmotion.stages.content import content_stage
from contentmotion.stages.content.stable_diffusion import StableDiffusionContent
from contentmotion.stages.motion import MotionStage
from contentmotion.stages.stage import Stage
from contentmotion.stages.text import start_as_words
from contentmotion.train import loop
from contentmotion.train.graph import record_passes
from fake_graph import Recorder

PLACES: dict[str, Any] = {"latent_cache": "unused", "output_dir": "unused"}
GRAPHS = ScaleSettings(cuda_graphs=True)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    recorder = Recorder()
    monkeypatch.setattr("contentmotion.train.graph.cuda_recorder", recorder)
    yield recorder


def content() -> list[Player]:
    """With its text encoder."""
    components = tiny.make_pipeline().components
    start_as_words(components["text_encoder"])
    return diffusion.players(content_stage(components), TrainContentConfig(**tiny.STEPS, **PLACES))


def motion(teach: bool = True) -> Any:
    components = tiny.make_pipeline().components
    components["text_encoder"].requires_grad_(False)
    stage = MotionStage(components, content_noise=0.1, overlap=2)
    return diffusion.players(stage, TrainContentConfig(**tiny.STEPS, **PLACES)) if teach else stage


def distil(objective: Any = consistency) -> list[Player]:
    teacher = motion(teach=False).requires_grad_(False)
    student = teacher.replace(motion_transformer=copy.deepcopy(teacher.network).requires_grad_(True))
    config = DistillConfig(part="motion", pretrained_model_name_or_path="unused", **tiny.STEPS, **PLACES)
    return objective.players(student, teacher, config)


def autoencode() -> list[Player]:
    vae, lpips = (network.requires_grad_(False) for network in (tiny.make_image_vae(), LPIPS()))
    perceptual = PerceptualLoss(weight=0.1, start_step=2, difference_weight=0.1, lpips="unused")
    config = TrainAutoencoderConfig(train_data_dir="unused", output_dir="unused", perceptual=perceptual)
    model = tiny.make_autoencoder(in_channels=4, content_mode="frame")
    return reconstruction.autoencoder_players(model, vae, lpips, config)


def two() -> list[Player]:
    """A student whose loss calls a critic, and the critic, on every second step."""
    torch.manual_seed(0)
    student, critic = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Dropout(0.5)), torch.nn.Linear(2, 1)

    def imitate(student: torch.nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        return {"loss": critic(student(randn((len(batch["index"]), 4), batch["generator"]))).square().mean()}

    def tell(critic: torch.nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        made = student(randn((len(batch["index"]), 4), batch["generator"])).detach()
        return {"loss": (critic(made) - batch["index"][:, None]).square().mean()}

    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
    return [Player(student, imitate, name="student"), Player(critic, tell, name="critic", every=2, make_optimizer=sgd)]


def batches(kind: str) -> Iterator[dict[str, Any]]:
    """Other numbers and other captions each time."""
    for step in range(1000):
        draws = torch.Generator().manual_seed(step)
        if kind == "frames":
            own = {"frames": torch.randint(256, (2, 4, 3, 64, 64), dtype=torch.uint8, generator=draws)}
        else:
            own = {name: torch.randn(shape, generator=draws) for name, shape in
                   (("content", (2, 3, 16, 16)), ("motion", (2, 4, 4, 16)))}  # fmt: skip
        captions = [tiny.CAPTIONS[step % 3], tiny.CAPTIONS[(step + 1) % 3]]
        yield own | {"index": torch.tensor([step, step + 1]), "caption": captions}


def train(players: list[Player], kind: str, steps: int, **settings: Any) -> tuple[list[dict], list[torch.Tensor]]:
    """Numbers of each step, and what the players are and have on the average in the end."""
    config = TrainConfig(
        **tiny.STEPS | {"output_dir": "unused", "learning_rate": 1e-3, "lr_warmup_steps": 5} | settings
    )
    run, source = loop._Run(players, config), batches(kind)
    for step in range(1, steps + 1):
        parts = [next(source) | {"step": step} for _ in range(config.gradient_accumulation_steps)]
        for number, trainee in enumerate(run.trainees):
            if step % trainee.player.every == 0:
                run._turn(step, number, trainee, parts)
    tensors = [p.detach() for t in run.trainees for p in (*t.parameters.values(), *t.averages().values(), *t.targets)]
    return run.read_numbers(), tensors


@pytest.mark.parametrize(
    ("players", "steps", "settings", "graphs"),
    [
        (content, 8, {}, 1),
        (motion, 20, {"mixed_precision": "bf16"}, 1),
        (distil, 10, {}, 1),
        (autoencode, 4, {}, 2),  # without and with LPIPS
        (two, 20, {"gradient_accumulation_steps": 3}, 2),
    ],
    ids=["content", "motion", "distil", "autoencoder", "two players"],
)
def test_losses_are_those_of_plain_steps(
    players: Callable[[], list[Player]], steps: int, settings: dict, graphs: int, recorder: Recorder
) -> None:
    kind = "frames" if players is autoencode else "latents"
    numbers, tensors = train(players(), kind, steps, **settings)
    assert not recorder.tapes
    replayed, others = train(players(), kind, steps, **settings, scale=GRAPHS)
    assert len(recorder.tapes) == graphs
    passes = steps * 3 // 2 if players is two else steps
    assert recorder.replays == passes * settings.get("gradient_accumulation_steps", 1)
    for plain, again in zip(numbers, replayed, strict=True):
        assert again == pytest.approx(plain, rel=1e-4 if "mixed_precision" in settings else 2e-6, abs=1e-9)
    for plain, again in zip(tensors, others, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-3, atol=1e-4)


def test_runs_go_on_with_the_switch_or_without(tmp_path: Path, recorder: Recorder) -> None:
    """Bit for bit: checkpoints are the same."""

    def run(folder: str, steps: int, **settings: Any) -> None:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
        small_run(tmp_path / folder, model, max_train_steps=steps, lr_warmup_steps=5, ema_decay=0.9, **settings)

    run("plain", 6)
    for folder, first, then in (("off on", False, True), ("on off", True, False)):
        run(folder, 3, scale=ScaleSettings(cuda_graphs=first))
        run(folder, 6, scale=ScaleSettings(cuda_graphs=then))
    assert len(recorder.tapes) == 2 and recorder.replays == 6
    for folder in ("off on", "on off"):
        for file in ("model", "model-average", "model-optimizer"):
            one, other = (
                load_file(tmp_path / of / f"checkpoint-000006/{file}.safetensors") for of in ("plain", folder)
            )
            assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_cannot_be_recorded_is_one_line(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(error: str, players: list[Player]) -> None:
        with pytest.raises(ValueError, match=f"^scale.cuda_graphs: this step cannot be recorded.*{error}"):
            train(players, "latents", 1, scale=GRAPHS)

    refused("depends on the step of its batch$", distil(distribution_matching))
    own = lambda stage, prompts: Stage.text_features(stage, prompts)  # noqa: E731  as SDXL's, which takes words alone
    monkeypatch.setattr(StableDiffusionContent, "text_features", own)
    refused("depends on the caption of its batch .text features in the cache help", motion())

    def look(model: torch.nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        loss = line_loss(model, batch)["loss"]
        return {"loss": loss * loss.item()}

    refused("CUDA error: operation not permitted when stream is capturing.$", [Player(torch.nn.Linear(1, 1), look)])
    with pytest.raises(KeyError, match="nowhere"):  # a fault of the loss's own
        train([Player(torch.nn.Linear(1, 1), lambda model, batch: batch["nowhere"])], "latents", 1, scale=GRAPHS)


def test_settings_that_do_not_go_with_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^cuda_graphs needs a CUDA GPU, and this run is on cpu$"):
        small_run(tmp_path, scale=GRAPHS)
    assert not list(tmp_path.rglob("*.safetensors"))
    for setting in ({"torch_compile": True}, {"fsdp": True}, {"noise_on_device": False}):
        with pytest.raises(ValueError, match="scale.cuda_graphs goes with noise drawn there"):
            ScaleSettings(cuda_graphs=True, **setting)
    with pytest.raises(ValueError, match="scale.cuda_graphs goes without gradient_checkpointing"):
        TrainConfig(output_dir="unused", gradient_checkpointing=True, scale=GRAPHS)
    two = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="^scale.cuda_graphs is for one process"):
        record_passes([], [], TrainConfig(output_dir="unused"), two)  # type: ignore[arg-type]


def test_batches_of_another_size_are_recorded_beside(recorder: Recorder) -> None:
    """And those of the same are not again."""
    run = loop._Run(
        [Player(torch.nn.Linear(1, 1), line_loss)], TrainConfig(**tiny.STEPS, output_dir="unused", scale=GRAPHS)
    )
    expected = []
    for step, index in enumerate(([0, 1], [2, 3, 4], [5, 6], [7, 8, 9]), start=1):
        batch = {"index": torch.tensor(index), "step": step}
        with torch.no_grad():
            expected.append(line_loss(run.trainees[0].module, batch)["loss"].item())
        run._turn(step, 0, run.trainees[0], [batch])
    assert [numbers["loss"] for numbers in run.read_numbers()] == pytest.approx(expected, rel=1e-6)
    assert len(recorder.tapes) == 2 and recorder.replays == 4
