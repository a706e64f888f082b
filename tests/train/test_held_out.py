"""Guard-rails of distillation: held-out scores, the best student and its resume, alarms."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from contentmotion.config import DistillConfig, LoraSettings
from contentmotion.data.cache import open_cache
from contentmotion.losses import consistency
from contentmotion.losses.consistency import compare_samples
from contentmotion.pipelines.loading import load_pipeline
from contentmotion.run_dir import leave_processes
from contentmotion.stages.motion import MotionStage
from contentmotion.stages.stage import Stage
from contentmotion.stages.text import encode_prompts
from contentmotion.train import distill as module
from contentmotion.train import held_out as held_out_module
from contentmotion.train.distill import distill
from contentmotion.train.held_out import Alarms, HeldOut, sample, what_scores_depend_on
from contentmotion.train.scoring import Best
from launch import finish, start_all

Configure = Callable[..., DistillConfig]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def scores(root: Path, name: str) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (root / name / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "eval/student_error" in line}


def tokenizer_and_encoder(stage: Stage) -> tuple[Any, Any]:
    return stage.components["tokenizer"], stage.components["text_encoder"]


def held_out(root: Path, config: DistillConfig, student: Any = None) -> HeldOut:
    """Of the motion model; the student is the teacher unless one is given."""
    teacher = load_pipeline(f"{root}/teacher").stages["motion"]
    scheduler = consistency.student_scheduler(teacher.scheduler, 50)
    student = (student or MotionStage)(teacher.components | {"motion_scheduler": scheduler})
    [player] = consistency.players(student, teacher, config)
    return HeldOut(player, teacher, open_cache(f"{root}/unseen", 0.0), config)


def test_scores_compare_and_tell_students_apart(
    root: Path, distill_config: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_out_module, "MIN_POINTS", 16)

    class Nothing(MotionStage):
        """Predicts v = sqrt(alpha) noise of a picture that is nothing: the mean of all samples."""

        def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, condition: dict):
            alphas = self.scheduler.alphas_cumprod[timesteps].sqrt().view(-1, 1, 1, 1)
            return noisy * alphas / (1 - alphas.square()).sqrt().clamp(min=1e-4)

    config = distill_config("x", "motion", eval_latent_cache=f"{root}/unseen", heldout_steps=1, guidance_scale=1.0)
    judge = held_out(root, config)
    once = judge.score()
    assert once == judge.score() == held_out(root, config).score(), "the same points at every step and in every run"
    assert set(once) == {"heldout_loss", "student_error", "x0_std_ratio", "motion_ratio"}
    flatter = held_out(root, config, Nothing)
    flat = flatter.score()
    assert flat["x0_std_ratio"] < 0.2 and flat["motion_ratio"] < 0.2
    # Nothing stands where the teachers' samples have mean m: its error is sqrt(1 + m^2), in units of their deviation.
    teachers = torch.cat(flatter._teachers).transpose(0, 1).flatten(1)
    means = teachers.mean(1) / teachers.std(1)
    assert flat["student_error"] == pytest.approx(math.hypot(1, means.square().mean().sqrt()), abs=0.1)


def test_student_error_by_hand(root: Path, distill_config: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher's sample in guided DDIM steps and the student's in one, by diffusers' schedulers alone."""
    monkeypatch.setattr(held_out_module, "TEACHER_STEPS", 10)
    monkeypatch.setattr(held_out_module, "MIN_POINTS", 2)
    config = distill_config("x", "motion", eval_latent_cache=f"{root}/unseen", heldout_steps=1, guidance_scale=2.0)
    judge = held_out(root, config)
    batch, teacher, lcm = judge._batch(0, 0), judge.teacher, judge.student.scheduler
    noise = torch.randn(batch["motion"].shape, generator=batch["generator"])
    network, (_, text) = teacher.network, encode_prompts(*tokenizer_and_encoder(teacher), batch["caption"])
    _, nothing = encode_prompts(*tokenizer_and_encoder(teacher), [""] * len(noise))

    def say(x: torch.Tensor, t: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        return network(x, t.expand(len(x)), batch["content"], pooled_text=pooled)

    with torch.no_grad():
        x = noise
        teacher.scheduler.set_timesteps(10)
        for t in teacher.scheduler.timesteps:
            null, conditional = say(x, t, nothing), say(x, t, text)
            x = teacher.scheduler.step(null + 2 * (conditional - null), t, x).prev_sample
        lcm.set_timesteps(1)
        y = lcm.step(say(noise, lcm.timesteps[0], text), lcm.timesteps[0], noise).prev_sample
    error = ((x - y).square().mean((0, 2, 3)) / x.transpose(0, 1).flatten(1).var(1)).mean().sqrt()
    assert judge.score()["student_error"] == pytest.approx(error.item(), rel=1e-3)


def test_sampling_is_the_pipelines(root: Path) -> None:
    """A denoiser sampled here gives the content frame that the pipeline gives for the same noise and guidance."""
    pipe = load_pipeline(f"{root}/teacher")
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    frame = pipe(
        "square 1", num_inference_steps=5, guidance_scale=3.0, latents=noise, output_type="latent",
        motion_num_inference_steps=1,
    ).content_frame  # fmt: skip
    batch = {"caption": ["square 1"], "generator": torch.Generator()}
    ours = sample(pipe.stages["content"], batch, noise, 5, 3.0)
    torch.testing.assert_close(ours, frame, atol=1e-5, rtol=1e-5)


def test_ratios_of_samples() -> None:
    clean = torch.randn(5, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    still = 0.5 * clean + 3
    found = compare_samples(still, clean, time_axis=2)
    assert found["x0_std_ratio"].item() == pytest.approx(0.5, rel=1e-4)
    assert found["motion_ratio"].item() == pytest.approx(0.5, rel=1e-4)
    assert set(compare_samples(still, clean, time_axis=None)) == {"x0_std_ratio"}
    loud = clean * torch.tensor([100.0, 1, 1, 1]).view(1, 4, 1, 1)  # three quiet channels that collapsed are noticed
    flat = loud * torch.tensor([1.0, 0.5, 0.5, 0.5]).view(1, 4, 1, 1)
    assert compare_samples(flat, loud, None)["x0_std_ratio"].item() == pytest.approx(0.5**0.75, rel=1e-3)
    frozen = clean[:, :, :1].expand_as(clean)
    found = compare_samples(frozen, clean, time_axis=2)
    assert found["motion_ratio"] < 1e-6 and found["x0_std_ratio"] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    "settings", [{}, {"lora": LoraSettings(rank=2, target_modules=("proj_out",))}], ids=["full", "lora"]
)
def test_best_student_is_kept_over_a_kill(
    root: Path, distill_config: Configure, settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate that spoils the student: the best is an early one, also when the run was killed after it."""
    monkeypatch.setattr(held_out_module, "MIN_POINTS", 2)
    name = f"best-{len(settings)}"
    settings = settings | {
        "max_train_steps": 4, "learning_rate": 0.3, "checkpoints_total_limit": 9, "heldout_steps": 1, "ema_decay": 0.5,
        "eval_latent_cache": f"{root}/unseen",
    }  # fmt: skip
    distill(distill_config(name, "motion", **settings))
    out, found = root / name, scores(root, name)
    errors = {step: line["eval/student_error"] for step, line in found.items()}
    assert list(errors) == [1, 2, 3, 4] and all(line["eval/heldout_loss"] > 0 for line in found.values())
    best = json.loads((out / "best.json").read_text())
    assert best["student_error"] == min(errors.values()) == errors[best["step"]] and best["step"] < 4
    assert best["last"] == {"step": 4, "student_error": errors[4]}
    weights = load_file(out / "motion_transformer" / WEIGHTS)

    for killed_after in (0, best["step"]):  # before the best (and any checkpoint), and right after it
        for step in range(killed_after + 1, 5):
            shutil.rmtree(out / f"checkpoint-{step:06d}")
        distill(distill_config(name, "motion", **settings))
        assert json.loads((out / "best.json").read_text()) == best
        again = load_file(out / "motion_transformer" / WEIGHTS)
        assert all(torch.equal(again[key], weights[key]) for key in weights)
        assert {step: line["eval/student_error"] for step, line in scores(root, name).items()} == errors

    # Without held-out clips the same command gives the last student.
    distill(distill_config(name, "motion", **settings | {"eval_latent_cache": None, "heldout_steps": None}))
    last = load_file(out / "motion_transformer" / WEIGHTS)
    assert not (out / "best.json").exists() and any(not torch.equal(last[key], weights[key]) for key in weights)


def test_killed_before_the_last_score(root: Path, distill_config: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last checkpoint is there, the last step's score is not: it is made up for."""
    monkeypatch.setattr(held_out_module, "MIN_POINTS", 2)
    settings = {"max_train_steps": 2, "heldout_steps": 2, "eval_latent_cache": f"{root}/unseen"}

    def killed(self: HeldOut) -> dict:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(HeldOut, "score", killed)
        with pytest.raises(KeyboardInterrupt):
            distill(distill_config("late", "content", **settings))
    assert not (root / "late/content").exists()
    distill(distill_config("late", "content", **settings))
    assert json.loads((root / "late/best.json").read_text())["step"] == 2 and (root / "late/content/unet").is_dir()


def spoilt_score(config: DistillConfig) -> None:
    """Two runs whose first process cannot score the student, or not even read the clips."""

    def refuse(self: HeldOut, *args: Any) -> Any:
        raise ValueError("no score")

    for name in ("score", "__init__"):
        setattr(HeldOut, name, refuse)
        try:
            distill(config)
        except ValueError as error:
            print(error, file=sys.stderr)
        except SystemExit as stop:
            assert stop.code == 1
    leave_processes()  # as the command line does


def test_a_score_that_fails_stops_all(root: Path, distill_config: Configure) -> None:
    """One process says why, the others end without a word of a lost connection."""
    settings = {"max_train_steps": 1, "heldout_steps": 1, "eval_latent_cache": f"{root}/unseen"}
    processes = start_all(2, spoilt_score, distill_config("spoilt", "motion", **settings))
    (status, _, first), (other, _, second) = finish(processes)
    assert status == other == 0, (first, second)
    assert first.splitlines().count("no score") == 2 and "no score" not in second


def test_best_is_of_these_clips_and_of_this_run(
    root: Path, distill_config: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = distill_config("x", "motion", eval_latent_cache=f"{root}/unseen", heldout_steps=1)
    folder, cache, saved = tmp_path / "student", open_cache(f"{root}/unseen", 0.0), []

    def keeper(config: DistillConfig = config, name: str = "student_error") -> Best:
        scored_on = what_scores_depend_on(cache, config)
        return Best(tmp_path, folder, lambda: saved.append(1), name, scored_on)

    first = keeper()
    folder.mkdir()
    for step, error in ((0, math.nan), (1, 0.9), (2, 0.5), (3, 0.7), (4, math.nan)):
        first.offer(step, error)
    assert len(saved) == 3 and first.record["step"] == 2 and first.record["last"]["step"] == 4
    assert keeper().record == {}, "no checkpoint: a run that begins"
    (tmp_path / "checkpoint-000004").mkdir()
    folder.rename(tmp_path / ".student.old")  # killed while the folder was being replaced
    assert keeper().record["step"] == 2 and folder.is_dir()
    assert keeper(name="fvd").record == {}
    capsys.readouterr()
    assert keeper(distill_config("x", "motion", eval_latent_cache="y", heldout_steps=1, seed=1)).record == {}
    assert "scored on other clips or settings" in capsys.readouterr().err


def test_alarms_speak_once_per_excursion(capsys: pytest.CaptureFixture[str]) -> None:
    alarms = Alarms()
    for step in range(1, 401):
        ratio = 0.1 if 100 < step <= 250 else 1.0
        alarms.watch(step, {"x0_std_ratio": torch.tensor(ratio), "loss": torch.tensor(9.0)})
    for step in range(401, 801):
        alarms.watch(step, {"x0_std_ratio": torch.tensor(0.1 if step > 600 else 1.0)})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("x0_std_ratio is 0.4" in line and "--learning_rate" in line for line in lines)
    assert "step 1" in lines[0] and "step 6" in lines[1]
    for step in range(30):
        alarms.watch(step, {"motion_ratio": torch.tensor(3.0)})
    assert "step 19: motion_ratio is 3.00, not about 1: the student flickers" in capsys.readouterr().err


def test_a_run_that_collapses_says_so(
    root: Path, distill_config: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    """The alarm's numbers are in metrics.jsonl, and the run with an absurd learning rate prints its line."""
    distill(distill_config("wild", "motion", max_train_steps=40, checkpointing_steps=40, learning_rate=3.0))
    lines = [json.loads(line) for line in (root / "wild/metrics.jsonl").read_text().splitlines()]
    assert all(line["x0_std_ratio"] > 0 and line["motion_ratio"] > 0 for line in lines)
    assert "warning: step" in capsys.readouterr().err


def test_teacher_is_frozen(root: Path, distill_config: Configure) -> None:
    kept: dict[str, Any] = {}
    original = module.make_student

    def spy(teacher: Stage, *args: Any) -> Any:
        kept["teacher"] = teacher
        kept["before"] = {
            f"{name}.{key}": value.clone()
            for name, part in teacher.components.items()
            if isinstance(part, torch.nn.Module)
            for key, value in part.state_dict().items()
        }
        return original(teacher, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "make_student", spy)
        distill(distill_config("frozen", "motion", max_train_steps=20, checkpointing_steps=20))
    for name, part in kept["teacher"].components.items():
        if isinstance(part, torch.nn.Module):
            for key, value in part.state_dict().items():
                assert torch.equal(value, kept["before"].pop(f"{name}.{key}")), (name, key)
    assert not kept["before"]


def test_bad_input(root: Path, distill_config: Configure, tmp_path: Path) -> None:
    unseen = {"heldout_steps": 1}
    with pytest.raises(ValueError, match="eval_latent_cache is latent_cache"):
        distill(distill_config("bad", "motion", eval_latent_cache=f"{root}/cache", **unseen))
    with pytest.raises(ValueError, match="no latent cache in nowhere"):
        distill(distill_config("bad", "motion", eval_latent_cache="nowhere", **unseen))
    with pytest.raises(ValueError, match="heldout_steps needs --eval_latent_cache"):
        distill_config("bad", "motion", heldout_steps=3)
    with pytest.raises(ValueError, match="eval_latent_cache needs --heldout_steps"):
        distill_config("bad", "motion", eval_latent_cache="x")
    other = shutil.copytree(root / "unseen", tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"autoencoder": "another"}))
    with pytest.raises(ValueError, match="other was not made with this autoencoder"):
        distill(distill_config("bad", "motion", eval_latent_cache=str(other), **unseen))
