"""What training can be asked for besides the plain recipe: adapters, parts frozen, weighted losses, time limits; and
what a run does when something breaks."""

import copy
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import tracking
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.training_utils import EMAModel, compute_snr
from PIL import Image
from safetensors.torch import load_file
from small_runs import STEPS, Numbers, collate, files_no_larger_than, line_loss, lines, small_run

import warm
from contentmotion.config import (
    LoraSettings,
    MotionSizes,
    ScaleSettings,
    TrainConfig,
    TrainContentConfig,
    TrainMotionConfig,
    TrainVideoConfig,
    VideoSizes,
)
from contentmotion.data.cache import LatentCache
from contentmotion.diffusion import NoiseSchedule
from contentmotion.losses.diffusion import split_by_time
from contentmotion.losses.player import Player
from contentmotion.pipelines.loading import load_pipeline, load_video_pipeline
from contentmotion.stages.content import load_content
from contentmotion.train.checkpoints import checkpoints, latest_checkpoint
from contentmotion.train.content import train_content
from contentmotion.train.loop import fit
from contentmotion.train.motion import train_motion
from contentmotion.train.optimizers import Average
from contentmotion.train.scoring import Best
from contentmotion.train.stopping import OUT_OF_TIME, StopRequests, explained
from contentmotion.train.video import train_video
from tiny import UNET


def test_trackers_know_settings_previews_and_the_run_that_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Tracker(tracking.GeneralTracker):
        name, requires_logging_directory = "wandb", False
        tracker = property(lambda self: self)

        def __init__(self, project: str, **given: Any) -> None:
            super().__init__()
            self.given, self.settings, self.pictures = given, {}, {}
            made.append(self)

        def store_init_configuration(self, values: dict) -> None:
            self.settings = values

        def log_images(self, values: dict, step: int) -> None:
            self.pictures[step] = values["preview"].shape

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Tracker)
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType.WANDB])

    def run(folder: str, steps: int) -> Tracker:
        def preview(step: int) -> None:
            Image.new("RGB", (4, 2)).save(tmp_path / folder / f"preview-{step:06d}.png")

        settings = STEPS | {"report_to": "wandb", "max_train_steps": steps}
        config = TrainConfig(output_dir=str(tmp_path / folder), **settings)
        fit([Player(torch.nn.Linear(1, 1), line_loss)], Numbers(), config, collate=collate, at=[(2, preview)])
        return made[-1]

    first, resumed, other = run("one", 2), run("one", 4), run("other", 1)
    assert first.given == {"id": resumed.given["id"], "name": "one", "resume": "allow"}
    assert other.given["id"] != first.given["id"]
    assert first.settings["learning_rate"] == 1e-4 and first.settings["scale.fsdp"] is False
    assert (first.pictures, resumed.pictures) == ({2: (1, 2, 4, 3)}, {4: (1, 2, 4, 3)})


def test_time_limit_stops_with_a_checkpoint_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_run(tmp_path / "whole", max_train_steps=3)
    for step in (1, 2):
        with pytest.raises(SystemExit) as stop:
            small_run(
                tmp_path / "parts", max_train_steps=3, scale=ScaleSettings(max_train_time=1e-9), checkpointing_steps=100
            )
        assert stop.value.code == OUT_OF_TIME
        assert [path.name for path in checkpoints(tmp_path / "parts")][-1] == f"checkpoint-{step:06d}"
        assert f"Stopped by scale.max_train_time of 1e-09 minutes after step {step} of 3" in capsys.readouterr().err
    small_run(tmp_path / "parts", max_train_steps=3)
    assert [line["loss"] for line in lines(tmp_path / "parts")] == [line["loss"] for line in lines(tmp_path / "whole")]


def test_sigterm_leaves_a_note_once_and_the_old_handler_after() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequests(None) as stop:
        assert not stop.signal and not stop.is_asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "the next one ends the process"
    assert signal.getsignal(signal.SIGTERM) is before


def test_full_disk_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    def model() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(1, 4096), torch.nn.Linear(4096, 1))

    small_run(tmp_path, model(), max_train_steps=1)
    kept = load_file(tmp_path / "checkpoint-000001/model.safetensors")
    with files_no_larger_than(8192), pytest.raises(OSError, match=r"checkpoint-000002 could not be written: ") as error:
        small_run(tmp_path, model(), max_train_steps=2)
    assert f"the last good checkpoint is {tmp_path}/checkpoint-000001" in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["checkpoint-000001"], "nothing half-written"
    for name, value in load_file(tmp_path / "checkpoint-000001/model.safetensors").items():
        assert torch.equal(value, kept[name])
    small_run(tmp_path, model(), max_train_steps=2)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-000002"


def test_average_is_diffusers_own() -> None:
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in ((3, 4), (5,))]
    theirs, ours = EMAModel(weights, decay=0.99), Average(weights, decay=0.99)
    for _ in range(50):
        with torch.no_grad():
            for weight in weights:
                weight += 0.1 * torch.randn_like(weight)
        theirs.step(weights)
        ours.step(weights)
        torch.testing.assert_close(ours.values, theirs.shadow_params)


def kill_the_reader(index: int) -> None:
    if index == 5:
        os.kill(os.getpid(), signal.SIGKILL)


# Torch raises its error in a signal handler: within the opening of a file, that file is left to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_dead_reader_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"a process that reads data died .*--dataloader_num_workers") as error:
        small_run(tmp_path, items=Numbers(spoil=kill_the_reader), dataloader_num_workers=1, max_train_steps=9)
    assert "\n" not in str(error.value) and "the last good checkpoint is" in str(error.value)


def test_what_is_kept_where_nothing_is(tmp_path: Path) -> None:
    died = pytest.raises(OSError, match="a process that reads data died .*; no checkpoint was written yet")
    with died, explained(tmp_path):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    best = Best(tmp_path, tmp_path / "best", lambda: (tmp_path / "no/such").mkdir(), "fvd", {})
    with pytest.raises(OSError, match="best could not be written: .*; no checkpoint was written yet"):
        best.offer(1, 2.0)


def say(error: Exception) -> Callable[[int], None]:
    def spoil(index: int) -> None:
        if index == 5:
            raise error

    return spoil


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ValueError("a.mp4: broken\nand more"), ValueError, "a.mp4: broken and more"),
        (json.JSONDecodeError("no JSON", "x", 0), ValueError, "no JSON: line 1 column 1 (char 0)"),
        (FileNotFoundError("gone"), OSError, "gone"),
        (RuntimeError("a bug"), RuntimeError, "a bug"),
    ],
)
def test_errors_of_readers_are_those_of_the_run(
    tmp_path: Path, workers: int, error: Exception, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind) as raised:
        small_run(tmp_path, items=Numbers(spoil=say(error)), dataloader_num_workers=workers, max_train_steps=9)
    found = str(raised.value)
    if kind is RuntimeError:
        assert said in found and "lack of memory" not in found, "with its traceback"
    else:
        assert " ".join(found.split()) == said


@pytest.mark.parametrize(
    ("every", "kept"), [(2, "the same command goes on from .*checkpoint-000002"), (9, "no checkpoint was written yet")]
)
def test_ctrl_c_says_what_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str], every: int, kept: str) -> None:
    seen: list[int] = []

    def interrupt(index: int) -> None:
        seen.append(index)
        if len(seen) > 3 * 2:  # two items a batch: in the fourth step
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path, items=Numbers(spoil=interrupt), checkpointing_steps=every, max_train_steps=9)
    assert re.search(rf"Interrupted: {kept} \(--checkpointing_steps\)\n", capsys.readouterr().err)


def stopped_run(folder: Path) -> None:
    """Long, read by another process."""
    small_run(
        folder, max_train_steps=10**6, dataloader_num_workers=1, checkpointing_steps=10**5,
        checkpoints_total_limit=99, logging_steps=1,
    )  # fmt: skip


def test_sigterm_to_the_readers_too_loses_nothing(tmp_path: Path) -> None:
    """A cluster signals every process of a job."""
    process = warm.Process(stopped_run, tmp_path, new_session=True)
    deadline = time.monotonic() + 200
    while not (tmp_path / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    last = lines(tmp_path)[-1]["step"]
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{last:06d}"]
    assert f"Stopped by SIGTERM after step {last} of 1000000" in errors


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_snr_weights_are_those_of_diffusers_scripts(kind: str) -> None:
    scheduler = DDIMScheduler(prediction_type=kind)
    times = torch.tensor([0, 10, 300, 600, 999])
    snr = compute_snr(scheduler, times)
    expected = snr.clamp(max=5) / (snr if kind == "epsilon" else snr + 1)
    weights = NoiseSchedule.of(scheduler).snr_weights(times, 5.0, times)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)


def test_losses_by_quarters_of_the_schedule() -> None:
    found = split_by_time(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 249, 999]), 1000)
    assert {name: value.item() for name, value in found.items() if value} == {
        "loss_t0-249#sum": 3, "loss_t0-249#count": 2, "loss_t750-999#sum": 4, "loss_t750-999#count": 1,
    }  # fmt: skip


def test_average_on_the_cpu_is_the_same(tmp_path: Path) -> None:
    for name, there in (("here", False), ("there", True)):
        small_run(tmp_path / name, scale=ScaleSettings(offload_ema=there), ema_decay=0.5, max_train_steps=3)
    here, there = (load_file(tmp_path / name / "checkpoint-000003/model.safetensors") for name in ("here", "there"))
    assert all(torch.equal(here[name], there[name]) for name in here)
    assert 0 < lines(tmp_path / "there")[-1]["ema_distance"] < 1


class Blocks(torch.nn.Module):
    """A line through two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("default")  # of the compiler
def test_compiled_blocks_learn_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Blocks()
    for name, compiled in (("plain", False), ("compiled", True)):
        small_run(tmp_path / name, copy.deepcopy(model), scale=ScaleSettings(torch_compile=compiled))
    plain, compiled = ([line["loss"] for line in lines(tmp_path / name)] for name in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=1e-5)
    keys = [load_file(tmp_path / name / "checkpoint-000002/model.safetensors").keys() for name in ("plain", "compiled")]
    assert keys[0] == keys[1]


def test_8bit_adam_without_its_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(
        ImportError, match=r'--scale.use_8bit_adam needs bitsandbytes: pip install "contentmotion\[8bit\]"'
    ):
        small_run(tmp_path, scale=ScaleSettings(use_8bit_adam=True))


@pytest.fixture(scope="module")
def base(chain: Path) -> Path:
    """Tiny models of pixels, trained for two steps: autoencoder, content, video; and their caches."""
    video = {"model": VideoSizes(**UNET), "latent_cache": f"{chain}/latents"}
    train_video(TrainVideoConfig(**STEPS, **video, output_dir=f"{chain}/video"))
    return chain


def test_models_know_the_rate_of_their_clips(base: Path) -> None:
    assert LatentCache(base / "cache").frame_rate == LatentCache(base / "latents").frame_rate == 8
    assert load_pipeline(f"{base}/teacher").frame_rate == load_video_pipeline(f"{base}/video/video").frame_rate == 8


def test_content_adapters_load_in_diffusers_and_change_the_picture(base: Path) -> None:
    name = f"{base}/content/content"
    settings = STEPS | {"latent_cache": f"{base}/cache", "learning_rate": 0.1, "lora": LoraSettings(rank=4)}
    train_content(TrainContentConfig(**settings, pretrained_model_name_or_path=name, output_dir=f"{base}/adapted"))

    def draw(folder: str, lora: str | None = None) -> torch.Tensor:
        own = load_content(folder).components
        pipe: Any = StableDiffusionPipeline(
            None,
            own["text_encoder"],
            own["tokenizer"],
            own["unet"],
            own["scheduler"],
            None,
            None,
            requires_safety_checker=False,
        )  # type: ignore[arg-type]
        pipe.vae_scale_factor = 1
        pipe.set_progress_bar_config(disable=True)
        if lora is not None:
            pipe.load_lora_weights(lora)
        sampling: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent", "height": 16, "width": 16}
        return pipe("a square", **sampling, generator=torch.Generator().manual_seed(0)).images

    plain, adapted = draw(name), draw(name, f"{base}/adapted/lora")
    assert not torch.allclose(plain, adapted, atol=1e-2)
    torch.testing.assert_close(draw(f"{base}/adapted/content"), adapted, atol=1e-4, rtol=1e-4)


def test_video_adapters_are_merged(base: Path) -> None:
    name = f"{base}/video/video"
    settings = STEPS | {"latent_cache": f"{base}/latents", "learning_rate": 1e-2, "lora": LoraSettings(rank=2)}
    config = TrainVideoConfig(**settings, pretrained_model_name_or_path=name, output_dir=f"{base}/adapted-video")
    train_video(config)
    before, after = (
        dict(load_video_pipeline(folder).unet.state_dict()) for folder in (name, f"{base}/adapted-video/video")
    )
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert before.keys() == after.keys() and changed
    assert all(
        key.removesuffix(".weight").endswith(("to_q", "to_k", "to_v", "to_out.0", "proj", "net.2")) for key in changed
    )
    pictures = {"pretrained_model_name_or_path": f"{base}/content/content", "output_dir": f"{base}/pictures"}
    with pytest.raises(ValueError, match="lora.rank adapts a video model"):
        train_video(TrainVideoConfig(**settings, **pictures))
    with pytest.raises(ValueError, match="lora.rank is for a pretrained UNet"):
        TrainVideoConfig(**settings, output_dir=f"{base}/scratch")


def test_only_some_layers_are_trained(base: Path) -> None:
    settings = STEPS | {"latent_cache": f"{base}/cache", "learning_rate": 1e-2, "snr_gamma": 5.0}
    parts = {"pretrained_model_name_or_path": f"{base}/content/content", "autoencoder": f"{base}/ae/autoencoder"}
    sizes = {"model": MotionSizes(hidden_size=16, depth=1, num_heads=2, content_patch_size=2)}
    config = TrainContentConfig(
        **settings, pretrained_model_name_or_path=f"{base}/content/content", trainable_modules=("attn2",),
        output_dir=f"{base}/some",
    )  # fmt: skip
    train_content(config)
    before, after = (
        load_file(f"{base}/{name}/content/unet/diffusion_pytorch_model.safetensors") for name in ("content", "some")
    )
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed and all("attn2" in key for key in changed)
    quarters = {name for line in lines(base / "some") for name in line if name.startswith("loss_t")}
    assert quarters and quarters <= {"loss_t0-249", "loss_t250-499", "loss_t500-749", "loss_t750-999"}
    with pytest.raises(ValueError, match="no parameter to train has nothing in its name"):
        train_motion(
            TrainMotionConfig(**settings, **parts, **sizes, trainable_modules=("nothing",), output_dir=f"{base}/none")
        )


def test_checkpoint_of_another_config_is_one_line(tmp_path: Path) -> None:
    small_run(tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint-000002 does not fit this model and configuration: ") as error:
        small_run(tmp_path, torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Linear(3, 1)))
    assert "\n" not in str(error.value)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-000002"
    small_run(tmp_path / "plain", ema_decay=0.0)
    with pytest.raises(ValueError, match=r"000002 does not fit this model and configuration: .* --ema_decay 0 and"):
        small_run(tmp_path / "plain", ema_decay=0.5, max_train_steps=3)


@pytest.mark.parametrize("engine", ["fsdp", "deepspeed"])
def test_accelerates_own_sharding_is_refused(tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``accelerate launch --use_deepspeed`` sets; DeepSpeed itself need not be there."""
    monkeypatch.setenv(f"ACCELERATE_USE_{engine.upper()}", "true")
    with pytest.raises(ValueError, match=f"launch without accelerate's --use_{engine}: --scale.fsdp true") as error:
        small_run(tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
