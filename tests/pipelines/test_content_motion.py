"""The pipeline on tiny real parts: parity with Stable Diffusion, shapes, seeds, batches, saving, bad arguments."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    TCDScheduler,
)

import warm
from contentmotion import ContentMotionPipeline
from contentmotion.loading import ASSETS
from contentmotion.pipelines.loading import load_pipeline
from contentmotion.pipelines.sampling import resolve_sampling
from contentmotion.pipelines.saving import save_stage
from contentmotion.stages.motion import MotionStage
from contentmotion.stages.stage import make_scheduler
from tiny import (
    make_autoencoder,
    make_content_dit,
    make_ddim,
    make_image_unet,
    make_image_vae,
    make_motion_dit,
    make_text,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A stock Stable Diffusion folder (4-channel VAE that halves sizes twice) and our two models beside it."""
    root = tmp_path_factory.mktemp("models")
    tokenizer, text_encoder = make_text(["a cat", "a rocket"], vocab_size=600, max_length=16)
    vae = make_image_vae()
    unet = make_image_unet(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64), attention_head_dim=4
    )
    scheduler = make_ddim(set_alpha_to_one=False, steps_offset=1)
    StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(root / "sd")
    autoencoder = make_autoencoder(
        0.2, in_channels=4, motion_channels=3, sample_height=8, sample_width=8, motion_mean=[0.0, 1, 2],
        motion_std=[1.0, 2, 1],
    )  # fmt: skip
    motion = make_motion_dit(0.2, motion_channels=3, content_channels=4, content_patch_size=2, text_dim=32)
    autoencoder.save_pretrained(root / "autoencoder")
    components = {"motion_transformer": motion, "motion_scheduler": make_scheduler("linear", None)}
    save_stage(MotionStage(components), root / "motion")
    return {name: root / name for name in ("sd", "autoencoder", "motion")}


@pytest.fixture(scope="module")
def pipe(folders: dict[str, Path]) -> ContentMotionPipeline:
    """Stable Diffusion folder + autoencoder + motion model, nothing converted."""
    pipe = load_pipeline(str(folders["sd"]), str(folders["autoencoder"]), str(folders["motion"]))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_content_stage_is_stable_diffusion(folders: dict[str, Path], pipe: ContentMotionPipeline) -> None:
    """Bit for bit: the content frame's latents are what diffusers' own pipeline samples from the same noise."""
    theirs = StableDiffusionPipeline.from_pretrained(folders["sd"], safety_checker=None)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 5, "guidance_scale": 4.0, "height": 32, "width": 32}
    expected = theirs("a cat", negative_prompt="a dog", generator=seeded(3), output_type="latent", **arguments).images
    ours = pipe("a cat", negative_prompt="a dog", generator=seeded(3), output_type="latent", **arguments)
    assert torch.equal(ours.content_frame, expected)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_output_types(pipe: ContentMotionPipeline, output_type: str) -> None:
    out = pipe(["a cat", "a rocket"], num_inference_steps=2, generator=seeded(0), output_type=output_type)
    if output_type == "pil":
        assert [len(video) for video in out.frames] == [4, 4]
        assert out.frames[0][0].size == (32, 32)
        assert len(out.content_frame) == 2
    else:
        shape = {"np": (2, 4, 32, 32, 3), "pt": (2, 4, 3, 32, 32), "latent": (2, 4, 4, 8, 8)}[output_type]
        assert tuple(out.frames.shape) == shape
        assert tuple(out.content_frame.shape) == (shape[0], *shape[2:])
        if output_type != "latent":
            assert 0 <= out.frames.min() <= out.frames.max() <= 1


def test_seed_decides_and_batch_does_not_matter(pipe: ContentMotionPipeline) -> None:
    def run(prompts: list[str], seeds: list[int], **kwargs: object) -> np.ndarray:
        generators = [seeded(s) for s in seeds]
        return pipe(prompts, num_inference_steps=2, generator=generators, output_type="np", **kwargs).frames

    both = run(["a cat", "a rocket"], [1, 2])
    np.testing.assert_array_equal(both, run(["a cat", "a rocket"], [1, 2]))
    np.testing.assert_allclose(both[1:], run(["a rocket"], [2]), atol=1e-4)
    assert np.abs(both[1:] - run(["a rocket"], [3])).max() > 1e-3
    twice = run(["a cat"], [1, 5], num_videos_per_prompt=2)
    np.testing.assert_allclose(twice[:1], both[:1], atol=1e-4)
    assert np.abs(both[:1] - run(["a cat"], [1], guidance_scale=9.0)).max() > 1e-4
    assert np.abs(both[:1] - run(["a cat"], [1], motion_guidance_scale=9.0)).max() > 1e-5
    assert np.abs(both[:1] - run(["a cat"], [1], motion_num_inference_steps=7)).max() > 1e-5


def test_other_sizes_and_lengths(pipe: ContentMotionPipeline) -> None:
    out = pipe("a cat", num_inference_steps=1, height=16, width=48, num_frames=6, output_type="np")
    assert out.frames.shape == (1, 6, 16, 48, 3)


def test_given_content_frame_only_moves(pipe: ContentMotionPipeline) -> None:
    content = torch.randn(1, 4, 8, 8)
    out = pipe("a cat", content_latents=content, num_inference_steps=2, generator=seeded(0), output_type="latent")
    assert torch.equal(out.content_frame, content)


def test_encode_and_decode_are_the_autoencoder(pipe: ContentMotionPipeline) -> None:
    frames = torch.rand(1, 4, 3, 32, 32) * 2 - 1
    content, motion = pipe.encode_video(frames)
    assert content.shape == (1, 4, 8, 8)
    assert pipe.decode(content, motion).shape == frames.shape


def test_each_stage_has_its_callback(pipe: ContentMotionPipeline) -> None:
    seen = []

    def callback(pipeline: ContentMotionPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        assert pipeline is pipe
        seen.append((step, tuple(tensors["latents"].shape)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    steps = {"num_inference_steps": 2, "motion_num_inference_steps": 3}
    pipe("a cat", **steps, callback_on_step_end=callback)
    assert seen == [(0, (1, 4, 8, 8)), (1, (1, 4, 8, 8))]
    seen.clear()
    pipe("a cat", **steps, callback_on_step_end=callback, motion_callback_on_step_end=callback)
    assert [step for step, _ in seen] == [0, 1, 0, 1, 2]
    assert seen[0][1] == (1, 4, 8, 8)
    assert seen[-1][1] == (1, 3, 4, 8)


@pytest.mark.parametrize("stock", [PNDMScheduler, EulerDiscreteScheduler])
def test_completed_stable_diffusion_samples_with_ddim(folders: dict[str, Path], tmp_path: Path, stock: type) -> None:
    """Stock folders name other schedulers, and leave out what DDIM would clip by default."""
    shutil.copytree(folders["sd"], tmp_path / "sd")
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    stock(**schedule, steps_offset=1).save_pretrained(tmp_path / "sd/scheduler")
    index = json.loads((tmp_path / "sd/model_index.json").read_text())
    index["scheduler"] = ["diffusers", stock.__name__]
    (tmp_path / "sd/model_index.json").write_text(json.dumps(index))
    loaded = load_pipeline(str(tmp_path / "sd"), str(folders["autoencoder"]), str(folders["motion"])).scheduler
    assert isinstance(loaded, DDIMScheduler) and not loaded.config.clip_sample
    torch.testing.assert_close(loaded.alphas_cumprod, DDIMScheduler(**schedule).alphas_cumprod)


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("kind", [EulerAncestralDiscreteScheduler, TCDScheduler])
def test_models_of_few_steps_are_sampled_as_their_folders_say(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: type
) -> None:
    """SDXL-Turbo's scheduler stays and its name gets a line; TCD's is known for what it is."""
    folder = shutil.copytree(folders["sd"], tmp_path / "models--owner--some-turbo/snapshots/a1")
    kind(timestep_spacing="trailing").save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", kind.__name__]}))
    pipe = load_pipeline(str(folder), str(folders["autoencoder"]), str(folders["motion"]))
    assert type(pipe.scheduler) is kind
    few = kind is TCDScheduler
    sampling = resolve_sampling(pipe, None, 50, None, 1.0)
    assert (sampling.steps, sampling.guidance_scale) == ((4, 1.0) if few else (50, 4.0))
    assert ("owner/some-turbo is called as models are that sample in few steps" in caplog.text) is not few
    assert caplog.text.count("\n") == (not few)
    caplog.clear()
    assert resolve_sampling(pipe, 4, 50, 1.0, 1.0).steps == 4 and not caplog.text


def test_text_features_must_fit(folders: dict[str, Path]) -> None:
    pipe = load_pipeline(str(folders["sd"]), str(folders["autoencoder"]), str(folders["motion"]))
    pipe.motion_transformer.register_to_config(text_dim=48)
    with pytest.raises(ValueError, match="made for text features of width 48, .* gives it text features of width 32"):
        pipe.check_parts()


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' Euler with NumPy 2
def test_other_scheduler(folders: dict[str, Path]) -> None:
    pipe = load_pipeline(str(folders["sd"]), str(folders["autoencoder"]), str(folders["motion"]))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    out = pipe("a cat", num_inference_steps=3, generator=seeded(0), output_type="np")
    assert np.isfinite(out.frames).all()


def test_save_and_load(pipe: ContentMotionPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    again = ContentMotionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    arguments = {"prompt": "a cat", "num_inference_steps": 2, "output_type": "np"}
    np.testing.assert_array_equal(
        again(**arguments, generator=seeded(0)).frames, pipe(**arguments, generator=seeded(0)).frames
    )
    assert list(tmp_path.rglob("*.bin")) == []
    half = load_pipeline(str(tmp_path), dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert half.autoencoder.dtype == torch.bfloat16
    assert np.isfinite(half(**arguments).frames).all()


def test_vae_slicing_changes_nothing(pipe: ContentMotionPipeline) -> None:
    whole = pipe("a cat", num_inference_steps=1, generator=seeded(0), output_type="np").frames
    pipe.enable_vae_slicing()
    sliced = pipe("a cat", num_inference_steps=1, generator=seeded(0), output_type="np").frames
    pipe.disable_vae_slicing()
    np.testing.assert_allclose(sliced, whole, atol=1e-5)


def test_class_conditional_on_pixels() -> None:
    unet = make_content_dit(out_channels=6)
    autoencoder = make_autoencoder(motion_mean=[0.0, 0.0], motion_std=[1.0, 1.0])
    motion = make_motion_dit(num_classes=3, learn_sigma=True)
    pipe = ContentMotionPipeline(
        unet=unet, scheduler=make_scheduler("linear", "epsilon"), autoencoder=autoencoder,
        motion_transformer=motion, motion_scheduler=make_scheduler("linear", "epsilon"),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.eval()
    out = pipe(class_labels=[0, 2], num_inference_steps=2, generator=seeded(0), output_type="np")
    assert out.frames.shape == (2, 4, 16, 16, 3)
    with pytest.raises(ValueError, match="between 0 and 2"):
        pipe(class_labels=3)
    with pytest.raises(ValueError, match="class-conditional: give class_labels"):
        pipe("a cat")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give prompt"),
        ({"prompt": []}, "must be a text or a list of texts"),
        ({"prompt": "a", "class_labels": 1}, "give prompt and nothing else"),
        ({"prompt": "a", "num_inference_steps": -1}, "num_inference_steps must be positive"),
        ({"prompt": "a", "height": 30}, "height must be a multiple of 16, got 30"),
        ({"prompt": "a", "width": 33}, "width must be a multiple of 16"),
        ({"prompt": "a", "num_frames": 5}, "num_frames must be a multiple of 2, got 5"),
        ({"prompt": "a", "output_type": "gif"}, "output_type"),
        ({"prompt": "a", "num_videos_per_prompt": 0}, "num_videos_per_prompt"),
        ({"prompt": "a", "generator": [torch.Generator()] * 2}, "2 generators for 1 videos"),
        ({"prompt": "a", "negative_prompt": ["a", "b"]}, "2 negative prompts for 1"),
        ({"prompt": ["a", "b"], "negative_prompt": ("a", "b")}, "negative_prompt must be a text or a list of texts"),
        ({"prompt": "a", "num_frames": 0}, "num_frames must be positive, got 0"),
        ({"prompt": "a", "latents": torch.zeros(1, 4, 4, 4)}, "initial noise of shape"),
    ],
)
def test_bad_arguments(pipe: ContentMotionPipeline, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)


def test_parts_that_do_not_belong_together(folders: dict[str, Path], tmp_path: Path) -> None:
    other = make_autoencoder()
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="takes frames of 3 channels, the image VAE makes 4"):
        load_pipeline(str(folders["sd"]), str(tmp_path / "other"), str(folders["motion"]))
    with pytest.raises(ValueError, match="no autoencoder and no motion_transformer"):
        load_pipeline(str(folders["sd"]))
    with pytest.raises(ValueError, match="no such checkpoint: ./x; --motion_transformer: no such checkpoint: ./y"):
        load_pipeline(str(folders["sd"]), "./x", "./y")


@pytest.mark.parametrize(
    "load", ["contentmotion.ContentMotionPipeline.from_pretrained(sys.argv[1])", "contentmotion.load_pipeline('emoji')"]
)
def test_the_shipped_model_loads_in_a_fresh_process(load: str) -> None:
    """Where nothing else was imported: diffusers loads a part's class only from a module that is there already."""
    code = f"import sys, contentmotion; assert {load}.vae is not None"
    process = warm.python(code, str(ASSETS / "emoji"))
    _, errors = process.communicate(240)
    assert process.returncode == 0, errors
    assert "Expected types" not in errors


def test_a_folder_of_some_parts_is_named() -> None:
    pipe = ContentMotionPipeline.from_pretrained(ASSETS / "emoji-lcm")
    with pytest.raises(ValueError, match=r"no text encoder: .* loaded by contentmotion.load_pipeline"):
        pipe("a red heart")
