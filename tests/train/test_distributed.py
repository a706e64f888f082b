"""Two processes on the CPU: the same losses as one at the same global batch, in every stage; killed, stopped and
resumed in another number of processes."""

import json
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import STEPS as SMALL
from small_runs import Numbers, collate, line_loss

import warm
from contentmotion.cli import main
from contentmotion.config import ScaleSettings, TrainConfig
from contentmotion.run_dir import leave_processes
from contentmotion.train.checkpoints import checkpoint_step, checkpoints
from contentmotion.train.loop import Player, fit
from launch import Job, finish, run, start, start_all, to_words

pytestmark = pytest.mark.timeout(1200)
# Relative; sums have another order, so rounding differs, which Adam amplifies from step to step. Seen after 4 steps:
# losses 2e-6, gradient norms 5e-5.
TOLERANCE = {"loss": 2e-5, "grad_norm": 5e-4}
NUM_STEPS = 4
WEIGHTS = "diffusion_pytorch_model.safetensors"
PREVIEWED = ("train-vae", "train-autoencoder", "train-motion")  # the others' previews take seconds
CLIPS = {"num_frames": 4, "height": 16, "width": 16}
STEPS: dict[str, Any] = {
    "max_train_steps": NUM_STEPS, "logging_steps": 1, "checkpointing_steps": 2, "validation_steps": 0,
    "report_to": "none", "mixed_precision": "no", "lr_warmup_steps": 1, "learning_rate": 1e-3,
    "checkpoints_total_limit": 9,
}  # fmt: skip
NARROW = {"model.hidden_size": 16, "model.depth": 1, "model.num_heads": 2}
UNET = {
    "model.block_out_channels": (32, 32), "model.text_hidden_size": 32, "model.text_num_layers": 1,
    "model.vocab_size": 600,
}  # fmt: skip
VIDEO_UNET = UNET | {"model.block_out_channels": (32,)}  # sharding takes time by the square of the parameters' number


def stages(clips: Path, root: Path, count: int) -> list[Job]:
    """Every stage in ``count`` processes, from what the stages of one process left; into folders of this count."""
    data = {"train_data_dir": clips, **CLIPS}
    train = STEPS | {"train_batch_size": 4 // count}
    accumulating = train | {"train_batch_size": 2 // count, "gradient_accumulation_steps": 2}
    # What docs/scaling.md says: with n times the processes, n times fewer forward passes a step.
    instead = train | {"train_batch_size": 2, "gradient_accumulation_steps": 2 // count}
    ae, vae, cache, latents = f"{root}/ae1/autoencoder", f"{root}/vae1/vae", f"{root}/cache1", f"{root}/latents1"
    content = {"pretrained_model_name_or_path": f"{root}/content1/content"}
    return [
        ("train-vae", train | data | {
            "output_dir": f"{root}/vae{count}", "validation_steps": NUM_STEPS, "model.latent_channels": 4,
            "model.hidden_channels": 8, "model.num_layers": 1}),
        ("train-autoencoder", instead | data | NARROW | {
            "output_dir": f"{root}/ae{count}", "vae": vae, "cache_latents": True, "model.head_dim": 8,
            "model.motion_channels": 2}),
        ("encode", data | {"output_dir": f"{root}/cache{count}", "autoencoder": ae, "vae": vae, "clips_per_shard": 2}),
        ("encode", data | {
            "output_dir": f"{root}/latents{count}", "latents_only": True, "vae": vae, "conditions": ("sketch",)}),
        ("train-content", instead | UNET | {"output_dir": f"{root}/content{count}", "latent_cache": cache, "vae": vae}),
        ("train-motion", accumulating | NARROW | content | {
            "output_dir": f"{root}/motion{count}", "latent_cache": cache, "autoencoder": ae,
            "model.content_patch_size": 2,
            "content_noise": 0.1}),
        ("train-video", train | VIDEO_UNET | {
            # At 1e-3 Adam makes 6e-4 of rounding in four steps, also between two attention kernels of one process.
            "output_dir": f"{root}/video{count}", "latent_cache": latents, "vae": vae, "conditions": ("sketch", "mask"),
            "learning_rate": 1e-4}),
        ("distill", train | {
            "output_dir": f"{root}/distill{count}", "part": "video", "latent_cache": latents, "learning_rate": 1e-4,
            "pretrained_model_name_or_path": f"{root}/video1/video"}),
    ]  # fmt: skip


def sharded(clips: Path, root: Path) -> list[Job]:
    """Every stage that trains with FSDP2; one of them is resumed half-way, from what was written in
    the background."""
    jobs = {}
    for command, settings in stages(clips, root, 2):
        if command != "encode":
            changes = {
                "output_dir": f"{settings['output_dir'][:-1]}-sharded",
                "scale.fsdp": True,
                "checkpointing_steps": 4,
            }
            jobs[command] = settings | changes | {"validation_steps": NUM_STEPS * (command in PREVIEWED)}
    jobs["train-motion"] |= {"checkpointing_steps": NUM_STEPS // 2}
    half = jobs["train-motion"] | {"output_dir": f"{root}/halves-sharded", "scale.async_checkpointing": True}
    return [*jobs.items(), ("train-motion", half | {"max_train_steps": NUM_STEPS // 2}), ("train-motion", half)]


@pytest.fixture(scope="module")
def root(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages by one process, and by two."""
    root = tmp_path_factory.mktemp("distributed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Dropout, "forward", lambda layer, x: x)  # as in launch.py
        for job in stages(clip_folder, root, 1):
            assert main(to_words(*job)) == 0, job
    errors = run([*stages(clip_folder, root, 2), *sharded(clip_folder, root)], 2)
    (root / "errors.json").write_text(json.dumps(errors))
    return root


def values(folder: Path, name: str) -> list[float]:
    """A column of metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


@pytest.mark.parametrize("stage", ["vae", "ae", "content", "motion", "video", "distill"])
def test_two_processes_compute_what_one_does(root: Path, stage: str) -> None:
    one, two = root / f"{stage}1", root / f"{stage}2"
    for name, tolerance in TOLERANCE.items():
        assert values(two, name) == pytest.approx(values(one, name), rel=tolerance), name
    assert len(values(two, "loss")) == NUM_STEPS
    assert len(set(values(two, "loss"))) >= NUM_STEPS - 1, "it learns, once the first step's warm-up is over"
    assert (two / f"preview-{NUM_STEPS:06d}.png").exists() == (stage == "vae")
    assert_same_results(one, two)


def assert_same_results(one: Path, two: Path) -> None:
    """What was exported, weights and configs, is the same but for rounding."""
    files = [path for path in one.rglob("*") if not path.relative_to(one).parts[0].startswith("checkpoint-")]
    weights = [path.relative_to(one) for path in files if path.suffix == ".safetensors"]
    configs = [path.relative_to(one) for path in files if path.name in ("config.json", "model_index.json")]
    assert weights and configs
    for name in configs:
        left, right = (json.loads((folder / name).read_text()) for folder in (one, two))
        assert left == right | {k: v for k, v in left.items() if k.startswith("motion_")}, "encode adds these to one"
    for name in weights:
        left, right = load_file(one / name), load_file(two / name)
        assert left.keys() == right.keys()
        # Where a gradient is next to nothing, rounding decides its sign, and Adam goes a whole step that way.
        apart = torch.cat([(right[key] - value).abs().flatten() for key, value in left.items()])
        assert (apart < 1e-5).float().mean() > 0.85 and apart.max() < NUM_STEPS * STEPS["learning_rate"], name


@pytest.mark.parametrize("stage", ["vae", "ae", "content", "motion", "video", "distill"])
def test_sharded_is_the_same(root: Path, stage: str) -> None:
    one, two = root / f"{stage}1", root / f"{stage}-sharded"
    for name, tolerance in TOLERANCE.items():
        assert values(two, name) == pytest.approx(values(one, name), rel=tolerance), name
    assert (two / f"checkpoint-{NUM_STEPS:06d}/model-00002-of-00002.safetensors").exists()
    assert (two / f"preview-{NUM_STEPS:06d}.png").exists() == (stage in ("vae", "ae", "motion"))
    assert_same_results(one, two)


def test_sharded_resumes_in_any_number_of_processes(clip_folder: Path, root: Path) -> None:
    assert values(root / "halves-sharded", "loss") == values(root / "motion-sharded", "loss"), "bit for bit"
    half = f"checkpoint-{NUM_STEPS // 2:06d}"
    shutil.copytree(root / "motion-sharded" / half, root / "one-sharded" / half)
    shutil.copy(root / "motion-sharded/metrics.jsonl", root / "one-sharded")
    [(command, settings)] = [job for job in stages(clip_folder, root, 1) if job[0] == "train-motion"]
    settings |= {"output_dir": f"{root}/one-sharded"}
    assert main(to_words(command, settings)) == 0
    assert values(root / "one-sharded", "loss") == pytest.approx(
        values(root / "motion1", "loss"), rel=TOLERANCE["loss"]
    )
    final = [load_file(root / name / "motion_transformer" / WEIGHTS) for name in ("one-sharded", "motion-sharded")]
    for name, value in final[0].items():
        torch.testing.assert_close(final[1][name], value, rtol=1e-3, atol=1e-4)


def test_two_processes_encode_what_one_does(root: Path) -> None:
    for name in ("cache", "latents"):
        files = [{p.name: p.read_bytes() for p in (root / f"{name}{n}").glob("shard-*")} for n in (1, 2)]
        assert files[0] and files[0] == files[1]


def said(errors: str) -> list[str]:
    """What a process wrote on stderr, but for what transformers says when it is imported."""
    return [line for line in errors.splitlines() if line and not line.startswith("[transformers]")]


def test_only_the_first_process_speaks(root: Path) -> None:
    _, second = json.loads((root / "errors.json").read_text())
    assert not said(second)


def wait_for_step(processes: list[warm.Process], folder: Path, step: int) -> None:
    """Until a checkpoint of this step or a later one is there."""
    deadline = time.monotonic() + 600
    while not (found := checkpoints(folder)) or checkpoint_step(found[-1]) < step:
        if any(process.poll() is not None for process in processes) or time.monotonic() > deadline:
            for process in processes:
                process.kill()
            raise AssertionError([process.communicate() for process in processes])
        time.sleep(0.01)


def test_stopped_killed_and_resumed_in_another_number_of_processes(clip_folder: Path, root: Path) -> None:
    def motion(folder: str, count: int, steps: int, **changes: Any) -> Job:
        [(command, settings)] = [job for job in stages(clip_folder, root, count) if job[0] == "train-motion"]
        given = {"output_dir": f"{root}/{folder}", "max_train_steps": steps, "checkpointing_steps": 1}
        return command, settings | given | {"validation_steps": 0, "learning_rate": 1e-4, "ema_decay": 0.9} | changes

    broken = root / "broken"
    later = {"scale.async_checkpointing": True}
    endless = motion("broken", 2, 1_000_000, checkpoints_total_limit=1_000_000)

    # A cluster takes its machine away: every process gets SIGTERM.
    processes = start([endless], 2)
    wait_for_step(processes, broken, 2)
    for process in processes:
        process.terminate()
    (status, _, first), (other, _, second) = finish(processes)
    assert status == other == 128 + signal.SIGTERM
    stopped = checkpoint_step(checkpoints(broken)[-1])
    assert f"Stopped by SIGTERM after step {stopped} of 1000000" in first and not said(second)
    assert values(broken, "loss")[-1] and len(values(broken, "loss")) == stopped, "nothing is lost"

    # Then one process is killed outright.
    processes = start([endless], 2)
    wait_for_step(processes, broken, stopped + 2)
    os.kill(processes[1].pid, signal.SIGKILL)
    (status, output, first), _ = finish(processes)
    assert status == 1 and f"Resuming {broken} after step {stopped}." in output
    assert "another process of this run has ended" in first and "the last good checkpoint is" in first, first
    assert len(said(first)) == 1, first

    killed = checkpoint_step(checkpoints(broken)[-1])
    early, last = checkpoints(broken)[1], killed + 3
    for folder in ("fewer", "more"):
        (root / folder).mkdir()
        shutil.copy(broken / "metrics.jsonl", root / folder)
    shutil.copytree(early, root / "fewer" / early.name)
    for folder in ("alone", "fewer"):
        assert main(to_words(*motion(folder, 1, last, checkpoints_total_limit=1000))) == 0
    shutil.copytree(root / "alone" / early.name, root / "more" / early.name)
    shutil.copytree(root / "more", root / "more-sharded")
    run(
        [
            motion("broken", 2, last),
            motion("whole", 2, last),
            motion("more", 2, last),
            motion("more-sharded", 2, last, **{"scale.fsdp": True}),
            motion("background", 2, last - 1, **later),
            motion("background", 2, last, **later),
        ],
        2,
    )

    for folder in ("whole", "background"):
        assert values(broken, "loss") == values(root / folder, "loss"), "bit for bit"
        one, other = (load_file(place / "motion_transformer" / WEIGHTS) for place in (broken, root / folder))
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    for folder in ("alone", "fewer", "more", "more-sharded"):
        assert values(root / folder, "loss") == pytest.approx(values(broken, "loss"), rel=TOLERANCE["loss"]), folder


def spoilt_runs(root: Path) -> None:
    """A run whose processes have other settings each; three of which the second process spoils the third step."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    def spoil_loss(model: torch.nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        bad = batch["step"] == 3 and os.environ["RANK"] == "1"
        return {"loss": line_loss(model, batch)["loss"] * (float("nan") if bad else 1.0)}

    def fill_disk(model: torch.nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        if batch["step"] == 3 and os.environ["RANK"] == "1":
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, unlimited[1]))
        return line_loss(model, batch)

    rank = int(os.environ["RANK"])
    for name, loss, settings in (
        ("other", line_loss, {"seed": rank, "scale": ScaleSettings(fsdp=rank == 1)}),
        ("nan", spoil_loss, {}),
        ("full", fill_disk, {"scale": ScaleSettings(fsdp=True)}),
        ("full-later", fill_disk, {"scale": ScaleSettings(fsdp=True, async_checkpointing=True)}),
    ):
        model = torch.nn.Sequential(torch.nn.Linear(1, 4096), torch.nn.Linear(4096, 1))
        config = TrainConfig(output_dir=f"{root}/{name}", **SMALL | {"max_train_steps": 50} | settings)
        try:
            fit([Player(model, loss)], Numbers(), config, collate=collate)
        except (ValueError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
        except SystemExit as stop:
            assert stop.code == 1
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    leave_processes()  # as the command line does


def test_what_goes_wrong_in_one_process_stops_all(tmp_path: Path) -> None:
    """Settings of its own; a loss that is not finite; a full disk, while the checkpoint is written and while training
    goes on."""
    (status, _, first), (other, _, second) = finish(start_all(2, spoilt_runs, tmp_path))
    assert status == other == 0 and not said(second), (first, second)
    other, nan, full, later = said(first)
    assert other == "other: processes of one run were given different settings: seed 0 and 1, scale.fsdp False and True"
    assert "nan: loss is nan at step 3 (items [" in nan and "the last good checkpoint is" in nan
    for name, line, failed in (
        ("full", full, [3]),
        ("full-later", later, [2, 3]),
    ):  # that of step 2 may not be done yet
        where = f"{tmp_path}/{name}/checkpoint-00000"
        kept = int(line[-1])
        assert kept + 1 in failed, line
        assert line.startswith(f"{name}: {where}{kept + 1} could not be written: "), line
        assert line.endswith(f"; the last good checkpoint is {where}{kept}"), line
        assert [checkpoint_step(path) for path in checkpoints(tmp_path / name)] == list(range(1, kept + 1))
        assert not list((tmp_path / name).glob("partial-*")), "nothing half-written"
