"""Flow matching from scratch, for every stage: trained, sampled by diffusers' Euler, distilled."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMapEulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler

import tiny
from contentmotion.commands.encode import encode
from contentmotion.config import (
    AutoencoderSizes,
    ContentSizes,
    DistillConfig,
    EncodeConfig,
    EvaluateConfig,
    LoraSettings,
    MethodSettings,
    MotionSizes,
    ScaleSettings,
    TrainAutoencoderConfig,
    TrainContentConfig,
    TrainMotionConfig,
    TrainVideoConfig,
    VideoSizes,
)
from contentmotion.evaluate.protocol import _describe_sampling
from contentmotion.losses import consistency, distribution_matching, flow_map
from contentmotion.pipelines.loading import load_pipeline, load_video_pipeline
from contentmotion.stages.content import content_stage
from contentmotion.train.autoencoder import train_autoencoder
from contentmotion.train.content import train_content
from contentmotion.train.denoiser import train_denoiser
from contentmotion.train.distill import distill
from contentmotion.train.motion import train_motion
from contentmotion.train.video import train_video
from families import FAMILIES

STEPS: dict[str, Any] = tiny.STEPS | {"checkpointing_steps": 2, "validation_steps": 2, "learning_rate": 1e-3}
FLOW: dict[str, Any] = {"prediction_type": "flow", "flow_shift": 3.0, "logit_mean": 0.5}
UNET: dict[str, Any] = tiny.UNET | {"num_attention_heads": 2}
SMALL = tiny.NARROW


@pytest.fixture(scope="module")
def root(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder of pixels, and flow-matching models of content, motion and video beside it."""
    root = tmp_path_factory.mktemp("flow")
    data = {"train_data_dir": str(clip_folder), "num_frames": 4, "height": 16, "width": 16}
    train_autoencoder(
        TrainAutoencoderConfig(**data, **STEPS, model=AutoencoderSizes(**SMALL, head_dim=8), output_dir=f"{root}/ae")
    )
    encode(EncodeConfig(**data, autoencoder=f"{root}/ae/autoencoder", output_dir=f"{root}/cache"))
    encode(EncodeConfig(**data, latents_only=True, output_dir=f"{root}/latents"))
    cached = STEPS | FLOW | {"latent_cache": f"{root}/cache"}
    train_content(TrainContentConfig(**cached, model=ContentSizes(**UNET), output_dir=f"{root}/content"))
    train_motion(
        TrainMotionConfig(
            **cached, model=MotionSizes(**SMALL | {"depth": 2}, content_patch_size=2), output_dir=f"{root}/motion",
            pretrained_model_name_or_path=f"{root}/content/content", autoencoder=f"{root}/ae/autoencoder",
        )
    )  # fmt: skip
    whole = STEPS | FLOW | {"latent_cache": f"{root}/latents", "output_dir": f"{root}/video"}
    train_video(TrainVideoConfig(**whole, model=VideoSizes(**UNET)))
    return root


def load(root: Path, content: str = "content", motion: str = "motion") -> Any:
    pipe = load_pipeline(f"{root}/{content}/content", f"{root}/ae/autoencoder", f"{root}/{motion}/motion_transformer")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_folders_say_what_they_are(root: Path) -> None:
    pipe, video = load(root), load_video_pipeline(f"{root}/video/video")
    for scheduler in (pipe.scheduler, pipe.motion_scheduler, video.scheduler):
        assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler) and scheduler.config.shift == 3.0
    for stage in (*pipe.stages.values(), *video.stages.values()):
        assert (stage.schedule.prediction_type, stage.schedule.shift) == ("flow", 3.0)
    for run in ("content", "motion", "video"):
        assert (root / run / "preview-000002.png").exists()


def test_content_is_sampled_as_by_hand(root: Path) -> None:
    """Three guided Euler steps written out: x + (s' - s) v, levels shifted as diffusers shifts them."""
    pipe = load(root)
    noise = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    ours = pipe(
        "square 1", num_inference_steps=3, motion_num_inference_steps=1, guidance_scale=2.5, latents=noise,
        output_type="latent",
    ).content_frame  # fmt: skip
    pipe.scheduler.set_timesteps(3)
    sigmas, x = pipe.scheduler.sigmas.tolist(), noise
    tokens = {
        text: pipe.text_encoder(
            pipe.tokenizer(
                [text], padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt"
            ).input_ids
        ).last_hidden_state
        for text in ("square 1", "")
    }
    with torch.no_grad():
        for now, later in zip(sigmas[:-1], sigmas[1:], strict=True):
            t = torch.tensor(1000 * now)
            prompt, null = (pipe.unet(x, t, encoder_hidden_states=tokens[text]).sample for text in tokens)
            x = x + (later - now) * (null + 2.5 * (prompt - null))
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("part", ["content", "motion", "video"])
def test_a_flow_teacher_is_distilled(root: Path, part: str) -> None:
    if part == "motion" or part == "content":
        teacher = root / "teacher"
        if not teacher.exists():
            load(root).save_pretrained(teacher)
        cache = root / "cache"
    else:
        teacher, cache = root / "video/video", root / "latents"
    distill(
        DistillConfig(
            **STEPS | {"validation_steps": 0}, part=part, pretrained_model_name_or_path=str(teacher),
            latent_cache=str(cache), output_dir=f"{root}/student-{part}", guidance_scale=2.0, num_ddim_steps=8,
        )
    )  # fmt: skip
    if part == "video":
        video: Any = load_video_pipeline(f"{root}/student-video/video")
        video.set_progress_bar_config(disable=True)
        scheduler, frames = video.scheduler, video("a square", output_type="np").frames
    else:
        pipe = load(root, **{part: f"student-{part}"})
        scheduler = pipe.scheduler if part == "content" else pipe.motion_scheduler
        steps = {"num_inference_steps": 2, "motion_num_inference_steps": 2}
        frames = pipe("a square", output_type="np", **steps).frames
    assert isinstance(scheduler, FlowMatchLCMScheduler) and scheduler.config.shift == 3.0
    assert frames.shape == (1, 4, 16, 16, 3) and frames.std() > 0
    # Each step counts: the levels 1, 1/2 (and of four 3/4, 1/4), shifted once. By itself the last would be 0.009.
    expected = [1000, 900, 750, 500] if part == "video" else [1000, 750]
    assert scheduler.timesteps.tolist() == pytest.approx(expected, rel=1e-5)
    if part == "motion":  # numbers of versions that took other steps are not taken for today's
        asked = EvaluateConfig(data_dir="clips", output_dir="out")
        assert _describe_sampling(pipe, asked)["levels"] == "evenly spaced"
        assert "levels" not in _describe_sampling(load(root), asked)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch.func.jvp's own
@pytest.mark.parametrize("part", ["content", "motion", "video"])
def test_a_flow_map(root: Path, part: str) -> None:
    """It begins as its teacher, is told where each step leads, and takes any number of them."""
    settings, is_video = STEPS | {"max_train_steps": 2, "validation_steps": 0}, part == "video"
    teacher = root / "video/video" if is_video else root / "teacher"
    if not teacher.exists():
        load(root).save_pretrained(teacher)
    plain = (load_video_pipeline if is_video else load_pipeline)(str(teacher)).stages[part]
    shapes = {"content": (3, 16, 16), "video": (4, 3, 16, 16)}
    noisy = torch.randn(1, *shapes.get(part) or (plain.network.config.motion_channels, 4, 16))
    batch = {"caption": ["a square"], "content": torch.randn(1, 3, 16, 16), "latents": noisy}
    time, told = torch.tensor([700.0]), plain.encode(batch)
    with torch.no_grad():
        expected = plain(noisy, time, told)
        untrained = plain.replace(**{plain.network_name: plain.telling_target(plain.network)})
        torch.testing.assert_close(untrained(noisy, time, {**told, "target_timesteps": time}), expected)
        for parameter in untrained.network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        targets = ({"target_timesteps": torch.tensor([target])} for target in (600.0, 100.0))
        near, far = (untrained(noisy, time, told | target) for target in targets)
        assert not torch.equal(near, far), "it hears where the step leads"
    distill(
        DistillConfig(
            **settings, part=part, objective="flow_map", pretrained_model_name_or_path=str(teacher),
            latent_cache=f"{root}/{'latents' if is_video else 'cache'}", output_dir=f"{root}/map-{part}",
            guidance_scale=2.0,
        )
    )  # fmt: skip
    pipe: Any = load_video_pipeline(f"{root}/map-video/video") if is_video else load(root, **{part: f"map-{part}"})
    scheduler = pipe.motion_scheduler if part == "motion" else pipe.scheduler
    assert isinstance(scheduler, FlowMapEulerDiscreteScheduler) and scheduler.config.shift == 3.0
    calls: list[Any] = []
    pipe.stages[part].network.register_forward_pre_hook(lambda module, args: calls.append(args))
    steps = {"num_inference_steps": 3} | ({} if is_video else {"motion_num_inference_steps": 3})
    frames = pipe("a square", output_type="np", **steps).frames
    assert len(calls) == 3 and frames.shape == (1, 4, 16, 16, 3) and frames.std() > 0


def test_distribution_matching_of_flow_teachers(root: Path) -> None:
    """Times are no whole numbers; the students' are those that their family samples with."""
    teacher, settings = (
        root / "teacher",
        STEPS | {"max_train_steps": 2, "validation_steps": 0, "method": MethodSettings(student_every=1)},
    )
    if not teacher.exists():
        load(root).save_pretrained(teacher)
    distill(
        DistillConfig(
            **settings, part="motion", objective="distribution_matching", pretrained_model_name_or_path=str(teacher),
            latent_cache=f"{root}/cache", output_dir=f"{root}/matched", guidance_scale=2.0,
        )
    )  # fmt: skip
    assert isinstance(load(root, motion="matched").motion_scheduler, FlowMatchLCMScheduler)
    stage = content_stage(FAMILIES["flux2_klein"]().components)
    student = stage.replace(scheduler=consistency.student_scheduler(stage.scheduler, 50))
    batch = {"caption": ["a", "b"], "generator": torch.Generator().manual_seed(0), "step": 2 * 5}
    config = DistillConfig(
        part="content", objective="distribution_matching", latent_cache="c", output_dir="o", max_train_steps=10
    )
    like = torch.zeros(2, stage.network.config.in_channels, 4, 4)
    sample = distribution_matching.student_sample(student, student.with_text_features(batch), like, config)
    assert sample.shape == like.shape and sample.isfinite().all() and sample.requires_grad


def test_what_is_no_flow_map(root: Path) -> None:
    settings = STEPS | {"objective": "flow_map", "latent_cache": f"{root}/latents", "output_dir": f"{root}/bad"}
    flux = content_stage(FAMILIES["flux2_klein"]().components)
    with pytest.raises(ValueError, match="no Flux2Transformer2DModel can be made a flow map: take another --objective"):
        flux.telling_target(flux.network)
    with pytest.raises(ValueError, match="--objective flow_map trains a new embedding of a UNet"):
        DistillConfig(**settings, part="content", lora=LoraSettings(rank=4))
    with pytest.raises(ValueError, match="--objective flow_map has no use for --num_ddim_steps"):
        DistillConfig(**settings, part="content", num_ddim_steps=20)
    for name, value in {"solver": "heun", "gan_weight": 0.1}.items():
        with pytest.raises(ValueError, match=f"--objective flow_map has no use for --method.{name}"):
            DistillConfig(**settings, part="content", method=MethodSettings(**{name: value}))
    matching = settings | {"objective": "distribution_matching", "max_train_steps": 9, "part": "content"}
    with pytest.raises(ValueError, match="scale.cuda_graphs is not for --objective distribution_matching"):
        DistillConfig(**matching, scale=ScaleSettings(cuda_graphs=True))
    with pytest.raises(ValueError, match="--method.critic_gan_weight needs --method.gan_weight"):
        MethodSettings(critic_gan_weight=0.02)
    with pytest.raises(ValueError, match="critic_gan_weight above 0"):
        MethodSettings(gan_weight=0.1, critic_gan_weight=0.0)
    with pytest.raises(ValueError, match="matches no single samples, which held-out clips would score"):
        DistillConfig(**matching, eval_latent_cache="e")
    with pytest.raises(ValueError, match="--guidance_range is for --objective consistency"):
        DistillConfig(**settings, part="content", guidance_range=(1.0, 20.0))
    with pytest.raises(ValueError, match="has a DDIMScheduler; a flow map is distilled from a model of flow matching"):
        flow_map.require_teacher(tiny.make_pipeline().stages["motion"], "x: its motion model", 50)


@pytest.mark.parametrize("setting", ["flow_shift", "logit_mean", "logit_std"])
def test_settings_of_flow_matching_are_not_ignored(setting: str) -> None:
    """Of a model that is not one, they would do nothing."""
    with pytest.raises(ValueError, match="they need --prediction_type flow"):
        TrainContentConfig(latent_cache="x", output_dir="y", **{setting: 2.0})
    TrainContentConfig(latent_cache="x", output_dir="y", prediction_type="flow", **{setting: 2.0})


def test_a_pretrained_flow_model_is_given_its_times(root: Path, tmp_path: Path) -> None:
    """Whether it is one is known when it is loaded; its shift and what it predicts it keeps."""
    given: dict[str, Any] = {
        "latent_cache": f"{root}/cache", "pretrained_model_name_or_path": f"{root}/content/content",
    } | STEPS | {"max_train_steps": 1, "validation_steps": 0}  # fmt: skip
    train_content(TrainContentConfig(**given, logit_mean=1.0, logit_std=0.1, output_dir=f"{tmp_path}/content"))
    assert (tmp_path / "content/content/unet").is_dir()
    for own in ({"flow_shift": 2.0}, {"prediction_type": "flow"}):
        with pytest.raises(ValueError, match="prediction_type and flow_shift are for models from scratch"):
            TrainContentConfig(**given, **own, output_dir="y")
    ddpm = content_stage(tiny.make_stable_diffusion().components)
    config = TrainContentConfig(**given, logit_std=0.1, output_dir=f"{tmp_path}/refused")
    with pytest.raises(ValueError, match=r"logit_mean and logit_std are flow matching's: .*/content is a model of"):
        train_denoiser(config, None, ddpm, None)  # type: ignore[arg-type]


def test_a_variance_to_learn_is_refused_with_the_config() -> None:
    sizes = MotionSizes(learn_sigma=True)
    with pytest.raises(ValueError, match="model.learn_sigma is DDPM's"):
        TrainMotionConfig(latent_cache="c", output_dir="o", autoencoder="a", prediction_type="flow", model=sizes)
