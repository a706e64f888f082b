"""The video pipeline on tiny real parts: parity with diffusers, conditions, folders, bad arguments."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, TextToVideoSDPipeline, UNet3DConditionModel

from contentmotion.cli import main
from contentmotion.models.condition_encoder import ConditionEncoder
from contentmotion.pipelines.loading import is_video_model, load_any_pipeline, load_pipeline, load_video_pipeline
from contentmotion.pipelines.video_latent import VideoLatentPipeline
from contentmotion.video.write import write_video
from tiny import make_image_vae, make_text, make_video_unet


@pytest.fixture(scope="module")
def modelscope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the parts and the layout that ModelScope's text-to-video has, tiny and untrained."""
    tokenizer, text_encoder = make_text(["a cat", "a rocket"], vocab_size=600, max_length=16)
    vae = make_image_vae()
    unet = UNet3DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, attention_head_dim=8,
        norm_num_groups=8, down_block_types=("DownBlock3D", "CrossAttnDownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "UpBlock3D"),
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("modelscope") / "text-to-video"
    TextToVideoSDPipeline(vae, text_encoder, tokenizer, unet, scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def conditional(modelscope: Path) -> VideoLatentPipeline:
    """A model of pixels, 16x16, 4 frames, with three conditions."""
    torch.manual_seed(0)
    parts = load_video_pipeline(str(modelscope)).components
    encoder = ConditionEncoder(
        conditions=("sketch", "mask", "first_frame"), latent_channels=3, vae_scale_factor=1, hidden_channels=8,
        out_channels=4,
    )  # fmt: skip
    unet = make_video_unet(extra_channels=4)
    return VideoLatentPipeline(**parts | {"vae": None, "unet": unet, "condition_encoder": encoder})


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(pipe: VideoLatentPipeline, **arguments: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    given = {"prompt": "a cat", "num_inference_steps": 2, "generator": seeded(1), "output_type": "pt"}
    return pipe(**given | arguments).frames  # type: ignore[union-attr,return-value]


def test_modelscope_folder_samples_as_in_diffusers(modelscope: Path) -> None:
    pipe, theirs = load_video_pipeline(str(modelscope)), TextToVideoSDPipeline.from_pretrained(modelscope)
    theirs.set_progress_bar_config(disable=True)
    assert pipe.clip_shape == (16, 32, 32)
    noise = torch.randn(1, 4, 3, 8, 8)  # (b, c, t, h, w)
    wanted: Any = theirs(
        "a cat", num_frames=3, num_inference_steps=3, guidance_scale=9.0, latents=noise, output_type="pt"
    )
    found = sample(pipe, num_frames=3, num_inference_steps=3, guidance_scale=9.0, latents=noise.transpose(1, 2))
    torch.testing.assert_close(found, wanted.frames, atol=2e-5, rtol=1e-4)
    default = sample(pipe, num_frames=3, num_inference_steps=3, latents=noise.transpose(1, 2))
    assert torch.equal(default, found)  # guidance 9 is the default


def test_a_video_does_not_depend_on_its_batch(conditional: VideoLatentPipeline) -> None:
    both = sample(conditional, prompt=["a cat", "a rocket"], generator=[seeded(1), seeded(2)])
    alone = sample(conditional, prompt="a rocket", generator=[seeded(2)])
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-4)
    assert both.shape == (2, 4, 3, 16, 16)


def test_conditions_steer_and_absent_ones_add_nothing(conditional: VideoLatentPipeline) -> None:
    sketch = (torch.rand(1, 4, 1, 16, 16, generator=seeded(3)) > 0.8).float()
    free, empty = sample(conditional), sample(conditional, conditions={})
    assert torch.equal(free, empty)
    led = sample(conditional, conditions={"sketch": sketch})
    assert not torch.allclose(led, free, atol=1e-4)
    twice = sample(conditional, prompt=["a cat"] * 2, generator=[seeded(1)] * 2, conditions={"sketch": sketch})
    assert twice.shape[0] == 2
    more = sample(conditional, conditions={"sketch": sketch, "first_frame": torch.rand(1, 1, 3, 16, 16)})
    assert not torch.allclose(more, led, atol=1e-4)


def test_saved_and_loaded_it_samples_the_same(conditional: VideoLatentPipeline, tmp_path: Path) -> None:
    conditional.save_pretrained(tmp_path / "video")
    loaded = load_any_pipeline(str(tmp_path / "video"))
    assert isinstance(loaded, VideoLatentPipeline)
    sketch = torch.ones(1, 4, 1, 16, 16)
    assert torch.equal(
        sample(loaded, conditions={"sketch": sketch}), sample(conditional, conditions={"sketch": sketch})
    )
    index = json.loads((tmp_path / "video/model_index.json").read_text())
    assert index["unet"] == ["contentmotion.models.video_unet", "VideoUNet"]
    assert index["condition_encoder"] == ["contentmotion.models.condition_encoder", "ConditionEncoder"]


def test_a_distilled_model_takes_few_steps(conditional: VideoLatentPipeline) -> None:
    student = VideoLatentPipeline(**conditional.components | {"scheduler": LCMScheduler()})
    steps: list[int] = []
    student.set_progress_bar_config(disable=True)
    student(
        "a cat", generator=seeded(0), output_type="latent",
        callback_on_step_end=lambda pipe, step, timestep, tensors: steps.append(step) or tensors,
    )  # fmt: skip
    assert steps == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conditions": {"depth": torch.zeros(1, 4, 1, 16, 16)}}, "condition depth: this model takes sketch, mask"),
        ({"conditions": {"sketch": torch.zeros(3, 4, 1, 16, 16)}}, "condition sketch: 3 for 1 videos"),
        ({"conditions": {"sketch": torch.zeros(1, 4, 1, 8, 8)}}, "sketch must be"),
        ({"height": 15}, "height must be a multiple of 2, got 15"),
        ({"num_frames": -1}, "num_frames must be positive"),
        ({"num_frames": 0}, "num_frames must be positive"),
        ({"height": 0}, "height must be a multiple of 2, got 0"),
        ({"prompt": []}, "prompt must be"),
        ({"latents": torch.zeros(1, 4, 3, 8, 8)}, "initial noise"),
    ],
)
def test_bad_arguments(conditional: VideoLatentPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(conditional, **arguments)


def test_parts_that_do_not_fit(conditional: VideoLatentPipeline, modelscope: Path) -> None:
    plain = load_video_pipeline(str(modelscope))
    with pytest.raises(ValueError, match="takes 7 channels and makes 3; .* 3 and 0"):
        VideoLatentPipeline(**conditional.components | {"condition_encoder": None}).check_parts()
    _, other = make_text(hidden_size=64)
    with pytest.raises(ValueError, match="width 32, the text encoder makes 64"):
        VideoLatentPipeline(**plain.components | {"text_encoder": other}).check_parts()
    with pytest.raises(ValueError, match="takes no conditions"):
        sample(plain, conditions={"depth": torch.zeros(1, 16, 1, 32, 32)})


def test_kinds_of_folders(modelscope: Path, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    assert is_video_model(str(modelscope)) and not is_video_model(str(tiny_pipeline_dir))
    assert not is_video_model("emoji") and not is_video_model(str(tmp_path))
    with pytest.raises(ValueError, match="is a video model: it has no content frame"):
        load_pipeline(str(modelscope))
    with pytest.raises(ValueError, match="is not a video model"):
        load_video_pipeline(str(tiny_pipeline_dir))
    with pytest.raises(ValueError, match="takes no --autoencoder"):
        load_any_pipeline(str(modelscope), autoencoder="x")


def test_generate_writes_videos(modelscope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--pretrained_model_name_or_path", str(modelscope), "--num_frames", "2", "--num_inference_steps", "2"]
    assert main(["generate", "a cat", "a rocket", *common, "--output_dir", f"{tmp_path}/out"]) == 0
    assert (tmp_path / "out/000-a-cat-seed0.mp4").exists() and (tmp_path / "out/sheet.png").exists()
    for words, message in (
        (["--motion_guidance_scale", "2"], "is a video model: it has no motion model"),
        (["--autoencoder", "emoji"], "takes no --autoencoder"),
    ):
        assert main(["generate", "a cat", *common, *words, "--output_dir", f"{tmp_path}/no"]) == 1
        assert message in capsys.readouterr().err


def test_evaluate_scores_whole_videos(
    modelscope: Path, i3d_file: Path, make_frames: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clips").mkdir()
    rows = []
    for k in range(4):
        write_video(tmp_path / f"clips/{k}.mp4", make_frames(10, 32, 32, hue=40 * k), fps=8)
        rows.append(json.dumps({"file_name": f"{k}.mp4", "text": "a cat"}))
    (tmp_path / "clips/metadata.jsonl").write_text("\n".join(rows))
    words = [
        "--data_dir",
        f"{tmp_path}/clips",
        "--num_frames",
        "10",
        "--num_inference_steps",
        "2",
        "--i3d",
        str(i3d_file),
    ]
    words += ["--pretrained_model_name_or_path", str(modelscope), "--output_dir", f"{tmp_path}/scores"]
    assert main(["evaluate", *words]) == 0
    scores = json.loads((tmp_path / "scores/scores.json").read_text())
    assert set(scores["parts"]) == {"real", "vae", "full", "real_halves"} and np.isfinite(
        scores["parts"]["full"]["fvd"]
    )
    assert scores["protocol"]["sampling"]["motion_num_inference_steps"] == 0
    assert main(["evaluate", *words, "--components", "motion"]) == 1
    assert "a video model neither content frame nor motion" in capsys.readouterr().err
