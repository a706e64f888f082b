"""No step waits for a GPU: on one that is not there (``fake_gpu``), nothing is read back or copied inside a denoising
step or a training step."""

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tiny
from contentmotion.config import DistillConfig, PerceptualLoss, TrainAutoencoderConfig, TrainContentConfig
from contentmotion.evaluate.lpips import LPIPS
from contentmotion.losses import consistency, diffusion, reconstruction
from contentmotion.losses.player import Player
from contentmotion.stages.content import content_stage
from contentmotion.stages.motion import MotionStage
from contentmotion.train import loop, processes
from fake_gpu import GPU, fake_gpu

PLACES: dict[str, Any] = {"latent_cache": "unused", "output_dir": "unused"}
BATCH: dict[str, Any] = {
    "content": torch.zeros(2, 3, 16, 16), "motion": torch.zeros(2, 4, 4, 16), "caption": ["rocket", "a crying cat"],
    "label": torch.arange(2), "index": torch.arange(2),
}  # fmt: skip


def content() -> Any:
    return content_stage(tiny.make_pipeline().components)


def content_dit() -> Any:
    return content_stage({"unet": tiny.make_content_dit(), "scheduler": tiny.make_ddim("linear"), "vae": None})


def motion() -> Any:
    components = tiny.make_pipeline().components
    components["text_encoder"].requires_grad_(False)
    return MotionStage(components, content_noise=0.1, overlap=2)


def teach(make: Callable[[], Any]) -> list[Player]:
    return diffusion.players(make().to(GPU), TrainContentConfig(**tiny.STEPS, **PLACES))


def distil(make: Callable[[], Any]) -> list[Player]:
    teacher = make().requires_grad_(False).to(GPU)
    student = copy.deepcopy(teacher.network).requires_grad_(True)
    config = DistillConfig(part="content", pretrained_model_name_or_path="unused", **tiny.STEPS, **PLACES)
    return consistency.players(teacher.replace(**{teacher.network_name: student}), teacher, config)


def autoencode() -> list[Player]:
    vae, lpips = (net.requires_grad_(False).to(GPU) for net in (tiny.make_image_vae(), LPIPS()))
    perceptual = PerceptualLoss(weight=0.1, start_step=0, difference_weight=0.1, lpips="unused")
    config = TrainAutoencoderConfig(train_data_dir="unused", output_dir="unused", perceptual=perceptual)
    return reconstruction.autoencoder_players(
        tiny.make_autoencoder(in_channels=4, content_mode="frame"), vae, lpips, config
    )


@pytest.mark.parametrize(
    ("players", "batch"),
    [
        (lambda: teach(content), BATCH),
        (lambda: teach(content_dit), BATCH),
        (lambda: teach(motion), BATCH),
        (lambda: distil(content), BATCH),
        (lambda: distil(motion), BATCH),
        (autoencode, {"frames": torch.zeros(2, 4, 3, 64, 64, dtype=torch.uint8), "index": torch.arange(2)}),
    ],
    ids=["content", "content dit", "motion", "distil content", "distil motion", "autoencoder"],
)
def test_training_step(players: Callable[[], list[Player]], batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second step on; numbers are read in one go when they are logged."""
    process = SimpleNamespace(device=GPU, num_processes=1, process_index=0, is_main_process=True)
    for module in (loop, processes):
        monkeypatch.setattr(module, "this_process", lambda: process)
    with fake_gpu() as events:
        optimizer = lambda parameters: torch.optim.AdamW(parameters, foreach=True)  # noqa: E731
        own = [replace(player, make_optimizer=optimizer) for player in players()]
        run = loop._Run(own, TrainContentConfig(**tiny.STEPS, **PLACES))
        there = {name: x.to(GPU) if isinstance(x, torch.Tensor) else x for name, x in batch.items()}
        for step in (1, 2):
            events.clear()
            run._turn(step, 0, run.trainees[0], [there | {"step": step}])
        assert events == []
        (_, numbers) = run.read_numbers()
        assert {"loss", "grad_norm", "lr"} <= numbers.keys() and len(events) == 1


@pytest.mark.parametrize("latent", [False, True], ids=["own loop", "stock pipeline"])
def test_denoising_steps(latent: bool) -> None:
    """Of both stages; and what is made is looked at once, before it is given away."""
    channels = {"in_channels": 4, "out_channels": 4} if latent else {}
    pipe = tiny.make_pipeline(unet=tiny.make_image_unet(**channels))
    if latent:
        dit = tiny.make_motion_dit(0.1, hidden_size=32, motion_channels=4, content_channels=4, text_dim=32)
        autoencoder = tiny.make_autoencoder(0.1, in_channels=4, motion_channels=4)
        pipe.register_modules(vae=tiny.make_image_vae(levels=2), motion_transformer=dit, autoencoder=autoencoder)
        dit.register_to_config(motion_mean=[0.0] * 4, motion_std=[1.0] * 4)
    during: list[str] = []
    begun: list[str] = []  # stages that have taken a step

    def watch(stage: str) -> Callable[..., dict]:
        def step(pipe: Any, number: int, timestep: Any, tensors: dict) -> dict:
            during.extend(events if stage in begun else ())
            begun.append(stage)
            events.clear()
            return tensors

        return step

    with fake_gpu() as events, torch.no_grad():
        pipe.to(GPU, torch.bfloat16)  # without autocast
        made = pipe(
            "rocket", num_inference_steps=3, output_type="pt", generator=torch.Generator(GPU),
            callback_on_step_end=watch("content"), motion_callback_on_step_end=watch("motion"),
        )  # fmt: skip
        assert made.frames.device == GPU and begun == ["content"] * 3 + ["motion"] * 3
    assert during == []
    assert [event.partition(":")[0] for event in events] == ["copy to the GPU"] * 2 + ["copy to the CPU"]
