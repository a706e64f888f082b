"""Scores while training are those of ``evaluate``."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

import tiny
from contentmotion.commands.encode import encode
from contentmotion.commands.export import export
from contentmotion.config import (
    AutoencoderSizes,
    ContentEvaluation,
    ContentSizes,
    DistillConfig,
    EncodeConfig,
    EvaluateConfig,
    ExportConfig,
    MotionSizes,
    ScheduledEvaluation,
    TrainAutoencoderConfig,
    TrainContentConfig,
    TrainMotionConfig,
)
from contentmotion.evaluate.run import evaluate
from contentmotion.train.autoencoder import train_autoencoder
from contentmotion.train.content import train_content
from contentmotion.train.distill import distill
from contentmotion.train.motion import train_motion
from contentmotion.train.scoring import Scorer, student_score


@pytest.fixture(scope="module")
def config(clip_folder: Path, i3d_file: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainAutoencoderConfig:
    return TrainAutoencoderConfig(
        train_data_dir=str(clip_folder),
        num_frames=10,
        height=24,
        width=32,
        model=AutoencoderSizes(hidden_size=16, depth=1, num_heads=2, head_dim=8),
        max_train_steps=3,
        train_batch_size=2,
        validation_steps=0,
        mixed_precision="no",
        report_to="none",
        eval=ScheduledEvaluation(steps=2, data_dir=str(clip_folder), split="train", num_videos=4, i3d=str(i3d_file)),
        output_dir=str(tmp_path_factory.mktemp("run")),
    )


def test_scores_on_a_schedule_are_those_of_evaluate(config: TrainAutoencoderConfig, tmp_path: Path) -> None:
    train_autoencoder(config)
    run_dir = Path(config.output_dir)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    scored = {line["step"]: line["eval/fvd"] for line in lines if "eval/fvd" in line}
    assert list(scored) == [2, 3]
    assert (run_dir / "eval-000002/sheet.png").exists()
    evaluate(
        EvaluateConfig(
            data_dir=config.eval.data_dir,
            autoencoder=str(run_dir / "autoencoder"),
            components=("reconstruction",),
            num_videos=4,
            i3d=config.eval.i3d,
            mixed_precision="no",
            output_dir=str(tmp_path),
        )
    )
    row = json.loads((tmp_path / "scores.json").read_text())["parts"]["reconstruction"]
    assert scored[3] == pytest.approx(row["fvd"], rel=1e-6)


def test_content_motion_and_students_are_scored(
    config: TrainAutoencoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = dataclasses.replace(config.eval, num_inference_steps=1)
    common: dict[str, Any] = {
        "max_train_steps": 2, "train_batch_size": 2, "validation_steps": 0, "mixed_precision": "no",
        "report_to": "none", "eval": scored, "latent_cache": f"{tmp_path}/cache",
    }  # fmt: skip
    data = {"train_data_dir": str(config.train_data_dir), "num_frames": 10, "height": 24, "width": 32}
    train_autoencoder(dataclasses.replace(config, eval=ScheduledEvaluation(), output_dir=f"{tmp_path}/ae"))
    autoencoder = f"{tmp_path}/ae/autoencoder"
    encode(EncodeConfig(**data, autoencoder=autoencoder, output_dir=f"{tmp_path}/cache"))
    train_content(
        TrainContentConfig(
            **common | {"eval": ContentEvaluation(autoencoder=autoencoder, **dataclasses.asdict(scored))},
            model=ContentSizes(block_out_channels=(32, 32), text_hidden_size=32, text_num_layers=1, vocab_size=600),
            output_dir=f"{tmp_path}/content",
        )
    )  # fmt: skip
    parts = {"pretrained_model_name_or_path": f"{tmp_path}/content/content", "autoencoder": autoencoder}
    sizes = {"model": MotionSizes(hidden_size=16, depth=1, num_heads=2, content_patch_size=2)}
    train_motion(TrainMotionConfig(**common, **parts, **sizes, output_dir=f"{tmp_path}/motion"))
    motion = f"{tmp_path}/motion/motion_transformer"
    export(ExportConfig(**parts, motion_transformer=motion, output_dir=f"{tmp_path}/teacher", dtype="fp32"))
    teacher = {"pretrained_model_name_or_path": f"{tmp_path}/teacher", "guidance_scale": 2.0}
    distill(DistillConfig(**common, **teacher, part="motion", output_dir=f"{tmp_path}/student"))
    monkeypatch.setattr("contentmotion.train.held_out.MIN_POINTS", 2)
    unseen = {"eval_latent_cache": str(shutil.copytree(tmp_path / "cache", tmp_path / "unseen")), "heldout_steps": 1}
    distill(DistillConfig(**common | teacher | unseen, part="content", output_dir=f"{tmp_path}/judged"))
    lines = [json.loads(line) for line in (tmp_path / "judged/metrics.jsonl").read_text().splitlines()]
    errors = [line["eval/student_error"] for line in lines if "eval/student_error" in line]
    scores = json.loads((tmp_path / "judged/eval-000002/scores.json").read_text())["parts"]
    best = json.loads((tmp_path / "judged/best.json").read_text())
    expected = student_score(scores, "full", student_error=errors[-1])
    assert {"fvd", "student_error", "flow_ratio", "nearest_pixels"} < set(expected)
    assert {name: best[name] for name in expected} == expected and best["last"] == {"step": 2} | expected
    assert (tmp_path / "judged/content/unet").is_dir() and not (tmp_path / "judged/best").exists()
    for name, part in (("content", "content"), ("motion", "motion"), ("student", "motion")):
        scores = json.loads((tmp_path / name / "eval-000002/scores.json").read_text())
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [x["eval/fvd"] for x in lines if "eval/fvd" in x] == [scores["parts"][part]["fvd"]]
        assert scores["protocol"]["run"]["model"] == f"{name}, step 2, averaged weights"
        best = json.loads((tmp_path / name / "best.json").read_text())
        assert (best["step"], best["fvd"]) == (2, scores["parts"][part]["fvd"])
        folder = "content" if part == "content" else "motion_transformer"
        files = {path.relative_to(tmp_path / name) for path in (tmp_path / name / folder).rglob("*") if path.is_file()}
        assert files
        assert all((tmp_path / name / f).read_bytes() == (tmp_path / name / "best" / f).read_bytes() for f in files)


def test_which_student_is_the_best() -> None:
    """Twice the distance, twice the FVD, half the captions, half or twice the motion: each is as bad as another."""
    row = {"n": 40, "fvd": 300.0, "optical_flow": 2.0, "nearest_pixels": 0.5}

    def score(error: float = 0.2, **changes: float) -> float:
        return student_score({"real": {"optical_flow": 2.0}, "full": row | changes}, "full", student_error=error)[
            "score"
        ]

    assert score() == pytest.approx(0.2 * 300 / 0.5)
    for changes in ({"error": 0.4}, {"fvd": 600}, {"nearest_pixels": 0.25}, {"optical_flow": 4}, {"optical_flow": 1}):
        assert score(**changes) == pytest.approx(2 * score()), changes
    assert score(nearest_pixels=0) == pytest.approx(score(nearest_pixels=1 / 40)), "no caption is as bad as one"
    assert score() < score(optical_flow=0) < math.inf
    still = {"real": {"optical_flow": 0.0}, "motion": {"n": 4, "fvd": 9.0, "optical_flow": 1.0}}
    assert student_score(still, "motion") == {"score": 9.0, "fvd": 9.0}, "what is not measured does not count"


def test_the_best_is_kept_beside_the_last(
    config: TrainAutoencoderConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best is an early one; also when the run was killed after it, or before the last score."""
    config = dataclasses.replace(
        config, eval=dataclasses.replace(config.eval, steps=1), max_train_steps=4, learning_rate=0.02,
        lr_warmup_steps=0, ema_decay=0.5,
        checkpointing_steps=1, checkpoints_total_limit=9, output_dir=f"{tmp_path}/run",
    )  # fmt: skip
    train_autoencoder(config)
    run_dir = tmp_path / "run"
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["eval/fvd"] for line in lines if "eval/fvd" in line}
    best = json.loads((run_dir / "best.json").read_text())
    assert list(scores) == [1, 2, 3, 4] and best["step"] < 4
    assert best["fvd"] == scores[best["step"]] == min(scores.values()) and best["last"] == {"step": 4, "fvd": scores[4]}

    def weights(folder: str) -> bytes:
        return (run_dir / folder / "autoencoder/diffusion_pytorch_model.safetensors").read_bytes()

    kept = weights("best")
    assert kept != weights(".")
    evaluate(
        EvaluateConfig(
            data_dir=config.eval.data_dir, autoencoder=f"{run_dir}/best/autoencoder", components=("reconstruction",),
            num_videos=4, i3d=config.eval.i3d, mixed_precision="no", output_dir=f"{tmp_path}/scores",
        )
    )  # fmt: skip
    again = json.loads((tmp_path / "scores/scores.json").read_text())["parts"]["reconstruction"]["fvd"]
    assert again == pytest.approx(best["fvd"], rel=1e-6)

    for step in range(best["step"] + 1, 5):
        shutil.rmtree(run_dir / f"checkpoint-{step:06d}")
    train_autoencoder(config)
    assert json.loads((run_dir / "best.json").read_text()) == best and weights("best") == kept
    # The last step's scores come before its checkpoint: without the one there is not the other.
    shutil.rmtree(run_dir / "checkpoint-000004")
    (run_dir / "best.json").write_text(json.dumps(best | {"last": {"step": 3, "fvd": 9e9}, "fvd": 8e9}))
    train_autoencoder(config)
    made_up_for = json.loads((run_dir / "best.json").read_text())
    assert made_up_for["step"] == made_up_for["last"]["step"] == 4 and weights("best") == weights(".")
    assert made_up_for["fvd"] == pytest.approx(scores[4], rel=1e-6)
    capsys.readouterr()
    train_autoencoder(dataclasses.replace(config, eval=dataclasses.replace(config.eval, num_videos=None)))
    assert "best.json: scored on other clips or settings than now" in capsys.readouterr().err


def test_few_videos_are_enough_where_nobody_gave_a_number(config: TrainAutoencoderConfig) -> None:
    pipe = tiny.make_pipeline()

    def scored_on(**asked: Any) -> int | None:
        given = ScheduledEvaluation(steps=2, data_dir=config.eval.data_dir, split="train", i3d=config.eval.i3d, **asked)
        return Scorer(pipe, dataclasses.replace(config, eval=given), "full").settings.num_videos

    assert (scored_on(), scored_on(num_videos=2), scored_on(num_videos=None)) == (4, 2, None)
    with pytest.raises(ValueError, match="--eval.num_videos 5, but 4 are there"):
        scored_on(num_videos=5)


def test_scoring_does_not_change_the_run(config: TrainAutoencoderConfig, tmp_path: Path) -> None:
    def losses(run_dir: Path) -> list[float]:
        lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if "loss" in line]

    train_autoencoder(
        dataclasses.replace(config, eval=ScheduledEvaluation(), logging_steps=1, output_dir=str(tmp_path / "a"))
    )
    assert not list((tmp_path / "a").glob("best*"))
    train_autoencoder(dataclasses.replace(config, logging_steps=1, output_dir=str(tmp_path / "b")))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_what_is_missing_is_said_before_training(config: TrainAutoencoderConfig, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        nowhere = dataclasses.replace(config.eval, i3d="none.safetensors")
        train_autoencoder(dataclasses.replace(config, eval=nowhere, output_dir=str(tmp_path)))
    assert not list(tmp_path.glob("checkpoint*"))
    with pytest.raises(ValueError, match="eval.steps needs --eval.data_dir"):
        dataclasses.replace(config.eval, data_dir=None)
