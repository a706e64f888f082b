"""Every training stage end to end on tiny models and real clips: from a folder of videos to a generated video; exact
resume; checkpoints that survive a kill; bad files; losses that are not finite."""

import json
import math
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import warm
from contentmotion.cli import main
from contentmotion.commands.encode import encode
from contentmotion.commands.export import export
from contentmotion.config import (
    AutoencoderSizes,
    ClipConfig,
    ContentSizes,
    EncodeConfig,
    ExportConfig,
    ImageVAESizes,
    MotionSizes,
    PerceptualLoss,
    TrainAutoencoderConfig,
    TrainConfig,
    TrainContentConfig,
    TrainMotionConfig,
    TrainVAEConfig,
)
from contentmotion.data.cache import LatentCache
from contentmotion.data.clips import open_clips
from contentmotion.loading import load_autoencoder
from contentmotion.losses import diffusion as losses
from contentmotion.losses.reconstruction import draw_frames
from contentmotion.pipelines.loading import load_pipeline
from contentmotion.stages.content import load_content
from contentmotion.train import batches, checkpoints, loop
from contentmotion.train.autoencoder import train_autoencoder
from contentmotion.train.content import train_content
from contentmotion.train.metrics import Metrics
from contentmotion.train.motion import train_motion
from contentmotion.train.vae import train_vae
from tiny import CLIPS, STEPS

PREVIEWED = STEPS | {"validation_steps": 2}
AUTOENCODER = AutoencoderSizes(hidden_size=16, depth=1, num_heads=2, head_dim=8, motion_channels=2)


@pytest.fixture(scope="module")
def run(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every stage trained for two steps: vae, autoencoder, cache, content, motion."""
    root = tmp_path_factory.mktemp("run")
    data = {"train_data_dir": str(clip_folder), **CLIPS}
    train_vae(
        TrainVAEConfig(
            **data, **PREVIEWED, output_dir=f"{root}/vae",
            model=ImageVAESizes(latent_channels=4, hidden_channels=8, num_layers=1),
        )
    )  # fmt: skip
    train_autoencoder(
        TrainAutoencoderConfig(
            **data, **PREVIEWED, model=AUTOENCODER, output_dir=f"{root}/ae", vae=f"{root}/vae/vae", cache_latents=True
        )
    )
    encode(
        EncodeConfig(
            **data, autoencoder=f"{root}/ae/autoencoder", vae=f"{root}/vae/vae", output_dir=f"{root}/cache",
            clips_per_shard=3, encode_batch_size=2,
        )
    )  # fmt: skip
    train_content(
        TrainContentConfig(
            **PREVIEWED, latent_cache=f"{root}/cache", vae=f"{root}/vae/vae", output_dir=f"{root}/content",
            model=ContentSizes(block_out_channels=(32, 32), text_hidden_size=32, text_num_layers=1, vocab_size=600),
            validation_prompts=("square",),
        )
    )  # fmt: skip
    train_motion(motion_config(root, "motion"))
    return root


def motion_config(root: Path, name: str, **kwargs: object) -> TrainMotionConfig:
    return TrainMotionConfig(
        **{
            **PREVIEWED, "latent_cache": f"{root}/cache", "output_dir": f"{root}/{name}",
            "model": MotionSizes(hidden_size=16, depth=1, num_heads=2, content_patch_size=2),
            "autoencoder": f"{root}/ae/autoencoder",
            "pretrained_model_name_or_path": f"{root}/content/content", "content_noise": 0.1, **kwargs,
        }
    )  # fmt: skip


def test_from_videos_to_a_video(run: Path) -> None:
    pipe = load_pipeline(f"{run}/content/content", f"{run}/ae/autoencoder", f"{run}/motion/motion_transformer")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a moving square", num_inference_steps=2, output_type="np").frames.shape == (1, 4, 16, 16, 3)
    for stage in ("vae", "ae", "content", "motion"):
        assert (run / stage / "preview-000002.png").exists(), stage
        lines = [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2]
        assert (run / stage / "config.yaml").exists()
        assert json.loads((run / stage / "environment.json").read_text())["precision"] in ("float32", "bfloat16")


@pytest.mark.parametrize("stage", ["content", "motion"])
def test_what_a_gpu_is_trained_by_has_the_plain_losses(
    stage: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache kept whole, and numbers read every four steps: step by step the same, but for rounding."""
    noted: list[dict[str, float]] = []
    note = Metrics.note
    monkeypatch.setattr(Metrics, "note", lambda metrics, steps: note(metrics, steps) or noted.extend(steps))

    def train(name: str, logging_steps: int) -> list[list[float]]:
        noted.clear()
        config = yaml.safe_load((run / stage / "config.yaml").read_text())
        config |= {"output_dir": str(tmp_path / name), "max_train_steps": 8, "validation_steps": 0}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config | {"logging_steps": logging_steps}))
        assert main([f"train-{stage}", "--config", str(tmp_path / f"{name}.yaml")]) == 0
        return [[one["loss"], one["grad_norm"]] for one in noted]

    plain = train("plain", 1)
    monkeypatch.setattr(batches, "_keep_there", lambda cache, *_: cache.keep_on(torch.device("cpu")) or True)
    assert len(plain) == 8 and plain[0] != plain[-1]
    assert train("there", 4) == [pytest.approx(one, rel=1e-6) for one in plain]


def test_cache_holds_what_the_autoencoder_makes(run: Path, clip_folder: Path) -> None:
    cache = LatentCache(run / "cache")
    assert len(cache) == 4  # the fifth clip is of another split
    assert sorted(p.name for p in (run / "cache").glob("*.safetensors")) == [
        "shard-00000.safetensors", "shard-00001.safetensors",
    ]  # fmt: skip
    z = torch.stack([cache[i]["motion"] for i in range(4)])
    mean, std = (
        torch.tensor(numbers)[:, None, None] for numbers in LatentCache(f"{run}/cache").motion_statistics or ()
    )
    standard = (z - mean) / std
    torch.testing.assert_close(standard.mean((0, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(standard.std((0, 2, 3), correction=0), torch.ones(2), atol=1e-3, rtol=0)
    drawn = {cache[0, seed]["caption"] for seed in range(20)}
    assert drawn == {"square 0", "a moving square, number 0"}


def test_cache_of_another_autoencoder_is_refused(run: Path, clip_folder: Path, tmp_path: Path) -> None:
    other = load_autoencoder(f"{run}/ae/autoencoder")
    with torch.no_grad():
        other.motion_head.weight += 1
    other.save_pretrained(tmp_path / "other")
    config = EncodeConfig(
        train_data_dir=str(clip_folder), **CLIPS, autoencoder=str(tmp_path / "other"), vae=f"{run}/vae/vae",
        output_dir=f"{run}/cache", clips_per_shard=3,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"other settings \(autoencoder\)"):
        encode(config)


def test_resume_is_exact(run: Path) -> None:
    train_motion(motion_config(run, "whole", max_train_steps=4, gradient_accumulation_steps=2))
    half = motion_config(run, "halves", max_train_steps=4, gradient_accumulation_steps=2, checkpoints_total_limit=9)
    train_motion(half)
    out = Path(half.output_dir)
    final = load_file(out / "motion_transformer/diffusion_pytorch_model.safetensors")
    for step in (3, 4):  # as if it had been killed after step 2
        (out / f"checkpoint-{step:06d}").rename(out / f"gone-{step}")
    (out / "partial-000003").mkdir()  # and in the middle of writing step 3
    train_motion(half)
    again = load_file(out / "motion_transformer/diffusion_pytorch_model.safetensors")
    whole = load_file(run / "whole/motion_transformer/diffusion_pytorch_model.safetensors")
    for key, value in again.items():
        assert torch.equal(value, final[key]) and torch.equal(value, whole[key]), key
    assert not (out / "partial-000003").exists()
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    assert any((value != 0).any() for key, value in again.items() if "proj_out" in key)  # something was learned


def test_changed_settings_are_told_on_resume(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = motion_config(run, "changed", max_train_steps=1)
    train_motion(config)
    assert "other settings" not in capsys.readouterr().err
    settings = run / "changed/config.yaml"
    settings.write_text(settings.read_text() + "use_8bit_adam: true\n")  # as it was before there was a block for it
    train_motion(replace(config, max_train_steps=2, learning_rate=0.5))
    told = capsys.readouterr().err
    assert "max_train_steps 1 -> 2, learning_rate 0.0001 -> 0.5" in told
    assert "scale.use_8bit_adam True -> False" in told
    recorded = yaml.safe_load((run / "changed/config.yaml").read_text())
    assert (recorded["learning_rate"], recorded["max_train_steps"]) == (1e-4, 2), "what is recorded is what is used"
    with pytest.raises(ValueError, match="does not fit"):  # a refused run leaves the settings of the one before
        train_motion(replace(config, max_train_steps=3, model=replace(config.model, hidden_size=32)))
    assert yaml.safe_load((run / "changed/config.yaml").read_text()) == recorded
    capsys.readouterr()
    lines = [json.loads(line) for line in (run / "changed/metrics.jsonl").read_text().splitlines()]
    assert all(line["lr"] <= 1e-4 for line in lines), "as the message says, the checkpoint's learning rate counts"


def test_finished_run_starts_nothing_again(run: Path) -> None:
    before = (run / "motion/metrics.jsonl").read_text()
    train_motion(motion_config(run, "motion"))
    assert (run / "motion/metrics.jsonl").read_text() == before
    with pytest.raises(ValueError, match="already holds checkpoint-000002"):
        train_motion(motion_config(run, "motion", resume_from_checkpoint="none"))


def test_checkpoints_are_limited_and_foreign_ones_refused(run: Path) -> None:
    kept = sorted(p.name for p in (run / "motion").glob("checkpoint-*"))
    assert kept == ["checkpoint-000001", "checkpoint-000002"]
    foreign = str(run / "ae/checkpoint-000002")
    with pytest.raises(ValueError, match="does not fit this model"):
        train_motion(motion_config(run, "foreign", resume_from_checkpoint=foreign))
    with pytest.raises(ValueError, match="no such checkpoint"):
        train_motion(motion_config(run, "foreign", resume_from_checkpoint="nowhere"))


def test_same_seed_same_weights_and_no_ema(run: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_motion(motion_config(run, f"seed-{name}", seed=seed, ema_decay=0.0, validation_steps=0))
    weights = {
        name: load_file(run / f"seed-{name}/motion_transformer/diffusion_pytorch_model.safetensors")["plane_embed"]
        for name in "abc"
    }
    assert torch.equal(weights["a"], weights["b"])
    assert not torch.equal(weights["a"], weights["c"])


def test_fine_tuning_keeps_parameters_and_text_encoder(run: Path) -> None:
    """CMD Eq. 7: the pretrained UNet as it is, no new parameter; the text encoder stays frozen."""
    config = TrainContentConfig(
        **PREVIEWED, latent_cache=f"{run}/cache", output_dir=f"{run}/tuned",
        pretrained_model_name_or_path=f"{run}/content/content",
    )  # fmt: skip
    train_content(config)
    for part, same in (("unet/diffusion_pytorch_model", False), ("text_encoder/model", True)):
        before = load_file(run / f"content/content/{part}.safetensors")
        after = load_file(run / f"tuned/content/{part}.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[k], after[k]) for k in before) == same, part


def test_an_autoencoder_goes_on_from_another(run: Path, clip_folder: Path, tmp_path: Path) -> None:
    settings = {"train_data_dir": str(clip_folder), **CLIPS, **STEPS, "vae": f"{run}/vae/vae"}
    start = {"learning_rate": 1e-9, "ema_decay": 0.0}
    sizes = replace(AUTOENCODER, content_mode="frame", pretrained=f"{run}/ae/autoencoder")
    train_autoencoder(TrainAutoencoderConfig(**settings, **start, model=sizes, output_dir=f"{tmp_path}/on"))
    before, after = (
        load_file(folder / "autoencoder/diffusion_pytorch_model.safetensors")
        for folder in (run / "ae", tmp_path / "on")
    )
    assert before.keys() - after.keys() == {"content_head.weight", "content_head.bias"}
    for name, weight in after.items():
        torch.testing.assert_close(weight, before[name], atol=1e-7, rtol=0)
    with pytest.raises(ValueError, match="other sizes: motion_channels is 2, not 3"):
        sizes = replace(sizes, motion_channels=3)
        train_autoencoder(TrainAutoencoderConfig(**settings, **start, model=sizes, output_dir=f"{tmp_path}/other"))


def test_perceptual_loss_begins_at_its_step(run: Path, clip_folder: Path, shared_data: Path, tmp_path: Path) -> None:
    steps = PREVIEWED | {"max_train_steps": 3, "checkpointing_steps": 3}
    lpips = str(shared_data / "lpips/lpips_alex.safetensors")
    loss = PerceptualLoss(weight=0.1, start_step=1, lpips=lpips)
    settings = {**steps, "model": AUTOENCODER, "train_data_dir": str(clip_folder), "num_frames": 4, "perceptual": loss}
    train_autoencoder(
        TrainAutoencoderConfig(
            **settings, height=32, width=32, vae=f"{run}/vae/vae", cache_latents=True,
            output_dir=f"{tmp_path}/ae",
        )
    )  # fmt: skip
    first, *others = [json.loads(line) for line in (tmp_path / "ae/metrics.jsonl").read_text().splitlines()]
    assert "lpips" not in first
    for line in others:
        assert line["lpips"] > 0
        assert line["loss"] == pytest.approx(line["mse"] + 0.1 * line["lpips"], rel=1e-5)
    with pytest.raises(ValueError, match="perceptual.weight needs clips of 32x32 pixels or more, got 16x16"):
        TrainAutoencoderConfig(**settings, height=16, width=16, output_dir=f"{tmp_path}/small")


def test_buckets_train_clips_of_several_sizes(clip_folder: Path, tmp_path: Path) -> None:
    make = {"train_data_dir": str(clip_folder), "split": None, "max_bad_fraction": 0.3}
    config = TrainAutoencoderConfig(
        **make, **PREVIEWED | {"max_train_steps": 4}, model=AUTOENCODER, output_dir=f"{tmp_path}/ae",
        buckets=("4x16x16", "4x16x24", "8x16x24"),
    )  # fmt: skip
    train_autoencoder(config)
    assert (tmp_path / "ae/preview-000004.png").exists()
    with pytest.raises(ValueError, match="a stream takes one size"):
        train_autoencoder(replace(config, train_data_dir="pipe:cat x.tar", output_dir=f"{tmp_path}/stream"))


def test_open_clips_prints_few_problems(clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["file_name,caption", *(f"missing-{k}.mp4,x" for k in range(50)), f"{clip_folder}/videos/0.mp4,x"]
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    open_clips(ClipConfig(train_data_dir=str(tmp_path)))
    lines = capsys.readouterr().err.splitlines()
    assert "1 rows of the list name files outside" in lines[0]
    assert len(lines) == 22 and "30 more such lines" in lines[-1]


def test_drawn_frames_are_the_same_of_each_video() -> None:
    number = torch.arange(2 * 6).view(2, 6, 1, 1, 1).float()
    one, two = draw_frames((number, -number), 3, torch.Generator().manual_seed(0))
    assert one.shape == (2, 3, 1, 1, 1) and torch.equal(one, -two)
    for row, frames in enumerate(one):
        drawn = set(frames.flatten().tolist())
        assert len(drawn) == 3 and drawn <= set(range(6 * row, 6 * row + 6))


def test_loss_that_is_not_finite_stops_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = motion_config(run, "diverges", max_train_steps=9, validation_steps=0)
    original = losses.diffusion_loss

    def overflows(stage: Any, batch: dict, **settings: Any) -> dict:
        values = original(stage, batch, **settings)
        return values | {"loss": values["loss"] * (math.inf if batch["step"] > 2 else 1.0)}

    monkeypatch.setattr(losses, "diffusion_loss", overflows)
    with pytest.raises(
        ValueError, match=r"(loss|gradient norm) is (nan|inf) at step \d+ \(items \[.*last good checkpoint is"
    ):
        train_motion(config)
    assert checkpoints.latest_checkpoint(Path(config.output_dir)) is not None
    assert not (run / "diverges/motion_transformer").exists()


def test_gradient_that_is_not_finite_never_reaches_a_checkpoint(tmp_path: Path) -> None:
    """The loss is finite, its gradient is not (the root at 0)."""
    model = torch.nn.Linear(2, 1)

    def loss(model: torch.nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        bad = 0.0 if batch["step"] == 3 else 1.0
        return {"loss": (model.weight.square().sum() * bad).sqrt()}

    items = [{"index": i} for i in range(4)]

    class Items(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, item: tuple[int, int]) -> dict:
            return items[item[0]]

    def collate(batch: list[dict]) -> dict:
        return {"index": torch.tensor([item["index"] for item in batch])}

    config = TrainConfig(output_dir=str(tmp_path), **PREVIEWED | {"max_train_steps": 5, "validation_steps": 0})
    with pytest.raises(ValueError, match=r"gradient norm is nan at step 3 .*last good checkpoint is .*-000002"):
        loop.fit([loop.Player(model, loss)], Items(), config, collate=collate)
    assert torch.isfinite(load_file(tmp_path / "checkpoint-000002/model.safetensors")["weight"]).all()
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_resuming_an_earlier_checkpoint_leaves_the_later_branch(run: Path) -> None:
    train_motion(motion_config(run, "branch", max_train_steps=3, checkpoints_total_limit=9))
    out = run / "branch"
    (out / "checkpoint-best").mkdir()  # the user's own
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # torn by a kill
    earlier = str(out / "checkpoint-000001")
    train_motion(motion_config(run, "branch", max_train_steps=2, resume_from_checkpoint=earlier))
    assert [p.name for p in checkpoints.checkpoints(out)] == ["checkpoint-000001", "checkpoint-000002"]
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2] and (out / "checkpoint-best").is_dir()


def test_a_finished_run_is_left_as_it_is(run: Path, clip_folder: Path) -> None:
    config = TrainAutoencoderConfig(
        train_data_dir=str(clip_folder), **CLIPS, **PREVIEWED, model=AUTOENCODER, output_dir=f"{run}/ae",
        vae=f"{run}/vae/vae", cache_latents=True,
    )  # fmt: skip
    before = load_autoencoder(f"{run}/ae/autoencoder").state_dict()
    train_autoencoder(config)
    after = load_autoencoder(f"{run}/ae/autoencoder").state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_training_from_half_precision_weights(run: Path) -> None:
    """export writes float16; training goes on in float32."""
    export(
        ExportConfig(
            pretrained_model_name_or_path=f"{run}/content/content", autoencoder=f"{run}/ae/autoencoder",
            motion_transformer=f"{run}/motion/motion_transformer", output_dir=f"{run}/half", dtype="fp16",
        )
    )  # fmt: skip
    train_motion(motion_config(run, "from-half", pretrained_model_name_or_path=f"{run}/half", max_train_steps=1))
    parts = load_content(f"{run}/half").components
    for name in ("vae", "text_encoder", "unet"):
        assert {p.dtype for p in parts[name].parameters()} == {torch.float32}, name


def test_class_conditional_on_pixels(clip_folder: Path, tmp_path: Path) -> None:
    """The UCF-101 recipe in small: no VAE, class labels, DiT content model, learned variances."""
    data = {"train_data_dir": str(clip_folder), **CLIPS}
    train_autoencoder(
        TrainAutoencoderConfig(
            **data, **PREVIEWED, model=replace(AUTOENCODER, residual_decoding=False), output_dir=f"{tmp_path}/ae"
        )
    )
    encode(EncodeConfig(**data, autoencoder=f"{tmp_path}/ae/autoencoder", output_dir=f"{tmp_path}/cache"))
    shared = {**PREVIEWED, "latent_cache": f"{tmp_path}/cache", "prediction_type": "epsilon"}
    small = {"hidden_size": 16, "depth": 1, "num_heads": 2, "learn_sigma": True}
    dit = ContentSizes(**small, architecture="dit")
    prompts = ("no model of classes", "knows words")
    train_content(TrainContentConfig(**shared, model=dit, validation_prompts=prompts, output_dir=f"{tmp_path}/content"))
    own = {"model": MotionSizes(**small), "autoencoder": f"{tmp_path}/ae/autoencoder"}
    train_motion(TrainMotionConfig(**shared, **own, output_dir=f"{tmp_path}/motion"))
    pipe = load_pipeline(
        f"{tmp_path}/content/content", f"{tmp_path}/ae/autoencoder", f"{tmp_path}/motion/motion_transformer"
    )
    pipe.set_progress_bar_config(disable=True)
    assert pipe(class_labels=1, num_inference_steps=2, output_type="np").frames.shape == (1, 4, 16, 16, 3)
    line = json.loads((tmp_path / "motion/metrics.jsonl").read_text().splitlines()[0])
    assert line["loss"] == pytest.approx(line["mse"] + line["bound"], rel=1e-4)


def test_bad_files_are_skipped_and_named(clip_folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "data/a").mkdir(parents=True)
    for k in range(4):
        (tmp_path / f"data/a/{k}.mp4").write_bytes((clip_folder / f"videos/{k}.mp4").read_bytes())
    (tmp_path / "data/a/broken.mp4").write_text("not a video")
    config = TrainAutoencoderConfig(
        train_data_dir=str(tmp_path / "data"), **CLIPS, **{**PREVIEWED, "max_train_steps": 5, "validation_steps": 0},
        model=AUTOENCODER, output_dir=str(tmp_path / "ae"), max_bad_fraction=0.3,
    )  # fmt: skip
    train_autoencoder(config)
    named = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert len(named) == 1 and "broken.mp4" in named[0]


def killed_run(clips: Path, folder: Path, steps: int) -> None:
    """A checkpoint at every step."""
    settings = {**CLIPS, **PREVIEWED, "validation_steps": 0, "checkpointing_steps": 1, "max_train_steps": steps}
    config = TrainAutoencoderConfig(**settings, train_data_dir=str(clips), output_dir=str(folder), model=AUTOENCODER)
    train_autoencoder(config)


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_killed_while_it_writes_checkpoints(clip_folder: Path, tmp_path: Path, kind: signal.Signals) -> None:
    """It checkpoints at every step, so most of its time is spent writing one: whatever is left must be whole."""
    process = warm.Process(killed_run, clip_folder, tmp_path, 100000)
    deadline = time.monotonic() + 240
    while (
        checkpoints.latest_checkpoint(tmp_path) is None
        or checkpoints.checkpoint_step(checkpoints.latest_checkpoint(tmp_path)) < 3
    ):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(kind)
    process.communicate(30)
    assert process.returncode != 0
    last = checkpoints.checkpoint_step(checkpoints.latest_checkpoint(tmp_path))
    again = warm.Process(killed_run, clip_folder, tmp_path, last + 1)
    output, errors = again.communicate(240)
    assert again.returncode == 0, errors
    assert f"after step {last}" in output
    assert (tmp_path / "autoencoder/config.json").exists()
