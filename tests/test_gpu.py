"""What only a GPU can show: `pytest -m gpu`. Skipped where there is none, unless CONTENTMOTION_GPU=1 asks for one;
CONTENTMOTION_GPU=cpu runs them on the CPU, to try the tests themselves.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import tiny
from contentmotion.commands.encode import encode
from contentmotion.commands.export import export
from contentmotion.commands.generate import sample_all
from contentmotion.config import (
    AutoencoderSizes,
    ContentSizes,
    DistillConfig,
    EncodeConfig,
    ExportConfig,
    GenerateConfig,
    MotionSizes,
    ScaleSettings,
    TrainAutoencoderConfig,
    TrainConfig,
    TrainContentConfig,
    TrainMotionConfig,
)
from contentmotion.draws import randn
from contentmotion.evaluate.i3d import InceptionI3d
from contentmotion.evaluate.lpips import LPIPS
from contentmotion.losses.player import Player
from contentmotion.models.layers import MAX_SEQUENCES, Attention
from contentmotion.pipelines.loading import load_pipeline
from contentmotion.pipelines.speed import compile_networks, replay_networks, use_channels_last
from contentmotion.run_dir import leave_processes
from contentmotion.train.autoencoder import train_autoencoder
from contentmotion.train.content import train_content
from contentmotion.train.distill import distill
from contentmotion.train.loop import fit
from contentmotion.train.motion import train_motion

pytestmark = pytest.mark.gpu
ASKED = os.environ.get("CONTENTMOTION_GPU", "")
DEVICE = "cpu" if ASKED == "cpu" else "cuda"


@pytest.fixture(scope="module", autouse=True)
def gpu() -> Iterator[None]:
    if DEVICE == "cuda" and not torch.cuda.is_available():
        (pytest.fail if ASKED else pytest.skip)("there is no GPU")
    yield
    leave_processes()


def videos(pipe: Any, **settings: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    settings = {"output_type": "np", "generator": torch.Generator().manual_seed(0)} | settings
    return pipe("rocket", **settings).frames


def test_shipped_model_agrees_with_the_cpu_and_with_offload() -> None:
    on_cpu = videos(load_pipeline("emoji"), num_inference_steps=10)
    np.testing.assert_allclose(videos(load_pipeline("emoji").to(DEVICE), num_inference_steps=10), on_cpu, atol=0.02)
    if DEVICE == "cuda":
        pipe = load_pipeline("emoji")
        pipe.enable_model_cpu_offload()
        np.testing.assert_allclose(videos(pipe, num_inference_steps=10), on_cpu, atol=0.02)


def test_student_agrees_with_the_cpu_in_full_precision_and_nearly_in_bf16() -> None:
    on_cpu = videos(load_pipeline("emoji-lcm"))
    np.testing.assert_allclose(videos(load_pipeline("emoji-lcm").to(DEVICE)), on_cpu, atol=0.02)
    pipe = load_pipeline("emoji-lcm", dtype=torch.bfloat16).to(DEVICE)
    use_channels_last(pipe)
    assert np.abs(videos(pipe) - on_cpu).mean() < 0.03


def test_videos_of_noise_drawn_there_do_not_depend_on_their_batch() -> None:
    pipe = load_pipeline("emoji-lcm").to(DEVICE)
    pipe.set_progress_bar_config(disable=True)
    made = []
    for size in (1, 2):
        config = GenerateConfig(
            prompt=["rocket", "rocket"], batch_size=size, noise_on_device=True, mixed_precision="no"
        )
        made.append([drawn.video for drawn in sample_all(pipe, config, ["rocket", "rocket"], lambda: None)])
    for one, two in zip(*made, strict=True):
        assert np.abs(one.astype(int) - two).max() <= 2
    assert np.abs(made[0][0].astype(int) - made[0][1]).mean() > 1


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # of torch's own imports
def test_compiled_networks_draw_the_same() -> None:
    pipe = tiny.make_pipeline().to(DEVICE)
    plain = videos(pipe, num_inference_steps=2)
    compile_networks(pipe, torch.device(DEVICE))
    for _ in range(3):  # the third is a CUDA graph's
        np.testing.assert_allclose(videos(pipe, num_inference_steps=2), plain, atol=2e-3)


def test_recorded_networks_draw_the_same_to_the_bit() -> None:
    if DEVICE == "cpu":
        pytest.skip("CUDA's")
    pipe = load_pipeline("emoji-lcm").to(DEVICE)
    plain = [videos(pipe, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    replay_networks(pipe, torch.device(DEVICE))
    for seed in (0, 1, 0):
        np.testing.assert_array_equal(videos(pipe, generator=torch.Generator().manual_seed(seed)), plain[seed])


def test_sampling_does_not_wait() -> None:
    pipe = load_pipeline("emoji-lcm").to(DEVICE)
    stages: list[Any] = []

    def watch(pipe: Any, number: int, timestep: Any, tensors: dict) -> dict:
        if DEVICE == "cuda":  # between the steps of a stage
            last = number + 1 == pipe.num_timesteps
            torch.cuda.set_sync_debug_mode("default" if last else "error")
        stages.append(number)
        return tensors

    generator = torch.Generator(DEVICE).manual_seed(0)
    steps = {"callback_on_step_end": watch, "motion_callback_on_step_end": watch}
    videos(pipe, generator=generator, **steps)
    assert stages == [0, 1, 2, 3] * 2


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips that are read without PyAV."""
    folder = tmp_path_factory.mktemp("clips")
    for k in range(6):
        frames = np.random.default_rng(k).integers(0, 255, (4, 16, 16, 3), np.uint8)
        first, *rest = map(Image.fromarray, frames)
        first.save(folder / f"{k}.webp", save_all=True, append_images=rest, duration=125, lossless=True)
    rows = [{"file_name": f"{k}.webp", "text": tiny.CAPTIONS[k % 3]} for k in range(6)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def train_all(clips: Path, root: Path, steps: int = 2, **changes: Any) -> None:
    """Every stage with an image VAE, previews at each step, and both students."""
    vae = root / "vae"
    if not vae.exists():
        tiny.make_patch_vae().save_pretrained(vae)
    own = tiny.STEPS | {"validation_steps": 1, "max_train_steps": steps, "resume_from_checkpoint": "latest"} | changes
    data = tiny.CLIPS | {"train_data_dir": str(clips)}
    sizes = AutoencoderSizes(head_dim=8, **tiny.NARROW)
    train_autoencoder(TrainAutoencoderConfig(**data, **own, vae=str(vae), model=sizes, output_dir=f"{root}/ae"))
    autoencoder = f"{root}/autoencoder"  # the cache is of this one, whatever is trained on
    if steps == 2:
        shutil.copytree(root / "ae" / "autoencoder", autoencoder)
        encode(EncodeConfig(**data, vae=str(vae), autoencoder=autoencoder, output_dir=f"{root}/cache"))
    own["latent_cache"] = f"{root}/cache"
    content = ContentSizes(**tiny.UNET)
    train_content(TrainContentConfig(**own, vae=str(vae), model=content, output_dir=f"{root}/content"))
    parts = {"pretrained_model_name_or_path": f"{root}/content/content", "autoencoder": autoencoder}
    dit = MotionSizes(content_patch_size=2, **tiny.NARROW)
    train_motion(TrainMotionConfig(**own, **parts, model=dit, output_dir=f"{root}/motion"))
    if steps > 2:
        return
    motion = f"{root}/motion/motion_transformer"
    export(ExportConfig(**parts, motion_transformer=motion, output_dir=f"{root}/teacher", dtype="fp32"))
    for part in ("content", "motion"):
        place = {"pretrained_model_name_or_path": f"{root}/teacher", "output_dir": f"{root}/{part}-lcm"}
        distill(DistillConfig(part=part, **own, **place))


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_every_stage_trains_shows_previews_and_goes_on(clips: Path, tmp_path: Path) -> None:
    train_all(clips, tmp_path)
    train_all(clips, tmp_path, steps=3)
    for stage in ("ae", "content", "motion"):
        assert len(losses(tmp_path / stage)) == 3 and (tmp_path / stage / "preview-000003.png").is_file()
    for stage in ("content-lcm", "motion-lcm"):
        assert np.isfinite(losses(tmp_path / stage)).all()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_recorded_steps_learn_what_plain_ones_do(precision: str, clips: Path, tmp_path: Path) -> None:
    """Of every stage and both students; and each goes on from the other's checkpoint."""
    if DEVICE == "cpu":
        pytest.skip("CUDA's")
    own: dict[str, Any] = {
        "validation_steps": 0, "gradient_accumulation_steps": 2, "mixed_precision": precision, "lr_warmup_steps": 4,
    }  # fmt: skip
    for steps, recorded in ((2, "two"), (4, "one")):
        for folder in ("one", "two"):
            train_all(clips, tmp_path / folder, steps, **own, scale=ScaleSettings(cuda_graphs=folder == recorded))
    # Sums of gradients come in any order on CUDA.
    close = 1e-5 if precision == "no" else 1e-2
    for stage in ("ae", "content", "motion", "content-lcm", "motion-lcm"):
        one, two = (losses(tmp_path / folder / stage) for folder in ("one", "two"))
        assert len(one) == (2 if "lcm" in stage else 4)
        np.testing.assert_allclose(two, one, rtol=close)


class Numbers(torch.utils.data.Dataset):
    """Items that are their own numbers."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, item: tuple[int, int]) -> dict[str, int]:
        return {"index": item[0]}


def test_recorded_steps_of_two_players(tmp_path: Path) -> None:
    """Each has a loss that calls the other's network, and dropout; the second's turn is every second step."""
    if DEVICE == "cpu":
        pytest.skip("CUDA's")

    def loss(own: torch.nn.Module, other: torch.nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        x = randn((len(batch["index"]), 4), batch["generator"]) + batch["index"][:, None]
        return {"loss": (own(x) - other(x)).square().mean()}

    kept = []
    for recorded in (False, True):
        torch.manual_seed(0)
        one, two = (torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)) for _ in range(2))
        config = TrainConfig(
            output_dir=str(tmp_path / str(recorded)), scale=ScaleSettings(cuda_graphs=recorded),
            gradient_accumulation_steps=2, **tiny.STEPS | {"max_train_steps": 8, "learning_rate": 0.01},
        )  # fmt: skip
        players = [
            Player(one, lambda own, batch, two=two: loss(own, two, batch), name="one"),
            Player(two, lambda own, batch, one=one: loss(own, one, batch), name="two", every=2),
        ]
        collate = lambda items: {"index": torch.tensor([item["index"] for item in items])}  # noqa: E731
        fit(players, Numbers(), config, collate=collate)
        kept.append([*one.parameters(), *two.parameters()])
    for plain, again in zip(*kept, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-6, atol=1e-7)


def test_training_agrees_with_the_cpu(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise, drawn on the CPU; and a cache."""
    scale = ScaleSettings(noise_on_device=False)
    train_all(clips, tmp_path / "there", validation_steps=0, scale=scale)
    leave_processes()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    from accelerate.state import PartialState

    PartialState._reset_state()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    train_all(clips, tmp_path / "here", validation_steps=0, scale=scale)
    monkeypatch.undo()
    PartialState._reset_state()
    for stage in ("ae", "content", "motion", "content-lcm", "motion-lcm"):
        np.testing.assert_allclose(losses(tmp_path / "there" / stage), losses(tmp_path / "here" / stage), rtol=5e-3)
    (one,), (other,) = (list((tmp_path / place / "cache").rglob("*.safetensors")) for place in ("there", "here"))
    for name in ("content", "motion"):
        difference = (load_file(one)[name].float() - load_file(other)[name].float()).abs().max()
        assert difference < 0.02


def test_networks_of_metrics_agree_with_the_cpu() -> None:
    torch.manual_seed(0)
    pictures = [torch.rand(2, 3, 64, 64) * 2 - 1 for _ in range(2)]
    lpips = LPIPS().eval()
    i3d, clip = InceptionI3d().eval(), torch.rand(1, 3, 16, 224, 224) * 2 - 1
    with torch.no_grad():
        expected = lpips(*pictures), i3d(clip)
        found = lpips.to(DEVICE)(*(x.to(DEVICE) for x in pictures)), i3d.to(DEVICE)(clip.to(DEVICE))
    for x, y in zip(expected, found, strict=True):
        torch.testing.assert_close(y.cpu(), x, rtol=5e-3, atol=5e-3)


def test_attention_over_more_sequences_than_a_grid_has() -> None:
    torch.manual_seed(0)
    attention, x = Attention(16, 2).to(DEVICE), torch.randn(2 * MAX_SEQUENCES + 5, 4, 16, device=DEVICE)
    with torch.no_grad():
        torch.testing.assert_close(attention(x)[-5:], attention(x[-5:]), rtol=1e-3, atol=1e-3)


def test_clip_of_the_paper_s_size_is_decoded() -> None:
    from contentmotion.cost.networks import build

    if DEVICE == "cpu":
        pytest.skip("minutes")
    autoencoder = build("autoencoder-windows", torch.device(DEVICE), torch.bfloat16)
    with torch.no_grad():
        content = torch.randn(1, 4, 64, 128, device=DEVICE, dtype=torch.bfloat16)
        places = 64 // autoencoder.config.patch_size + 128 // autoencoder.config.patch_size
        motion = torch.randn(1, autoencoder.config.motion_channels, 16, places, device=DEVICE, dtype=torch.bfloat16)
        frames = autoencoder.decode(content, motion)
    assert frames.shape == (1, 16, 4, 64, 128) and frames.isfinite().all()
