"""What the content frame opens, on tiny models of pixels: pictures that move, edited videos, motion of another video,
longer videos than a clip, loops, prompts that change."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler
from PIL import Image

from contentmotion import ContentMotionPipeline
from contentmotion.config import MotionSizes
from contentmotion.diffusion import NoiseSchedule
from contentmotion.losses.diffusion import diffusion_loss
from contentmotion.pipelines.loading import load_pipeline
from contentmotion.pipelines.long_video import Clips
from contentmotion.pipelines.sampling import noise_to, steps_taken
from contentmotion.stages.motion import MotionStage
from tiny import make_autoencoder, make_ddim, make_motion_dit, make_pipeline

FEW: dict[str, Any] = {"num_inference_steps": 2, "output_type": "pt"}
SIZES: dict[str, Any] = {
    "hidden_size": 32, "head_dim": 16, "motion_channels": 4, "motion_mean": [0.5] * 4, "motion_std": [2.0] * 4,
}  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pipe() -> ContentMotionPipeline:
    """Its content frame is a weighted sum."""
    return make_pipeline(autoencoder=make_autoencoder(0.1, **SIZES))


@pytest.fixture(scope="module")
def frame_pipe() -> ContentMotionPipeline:
    """Its content frame is a clip's first one."""
    return make_pipeline(autoencoder=make_autoencoder(0.1, content_mode="frame", **SIZES))


def videos(count: int = 1, frames: int = 4) -> torch.Tensor:
    return torch.rand(count, frames, 3, 16, 16, generator=seeded(count))


def test_a_picture_is_the_first_frame_exactly(frame_pipe: ContentMotionPipeline) -> None:
    picture = videos()[:, 0]
    out = frame_pipe("a cat", image=picture, generator=seeded(), **FEW)
    assert torch.equal(out.content_frame, picture * 2 / 2)
    assert torch.equal(out.frames[:, 0], out.content_frame)
    assert (out.frames[:, 1] - out.frames[:, 0]).abs().mean() > 1e-3, "it moves"


@pytest.mark.parametrize("index", [2, -1])
def test_which_frame_the_content_frame_is(index: int) -> None:
    autoencoder = make_autoencoder(0.1, content_mode="frame", content_index=index)
    x = torch.randn(2, 4, 3, 16, 16)
    encoded = autoencoder.encode(x)
    decoded = autoencoder.decode(encoded.content, encoded.motion_latent)
    assert torch.equal(encoded.content, x[:, index])
    assert torch.equal(decoded[:, index], x[:, index])
    assert not torch.allclose(decoded[:, 0], x[:, 0])


@pytest.mark.parametrize("name", ["pipe", "frame_pipe"])
def test_nothing_drawn_anew_is_the_reconstruction(name: str, request: pytest.FixtureRequest) -> None:
    pipe, clip = request.getfixturevalue(name), videos()
    out = pipe("a cat", video=clip, strength=0.0, motion_strength=0.0, **FEW)
    content, motion = pipe.encode_video(clip * 2 - 1)
    assert torch.equal(out.frames, (pipe.decode(content, motion) / 2 + 0.5).clamp(0, 1))


def test_all_drawn_anew_is_a_video_from_noise(pipe: ContentMotionPipeline) -> None:
    out = pipe("a cat", video=videos(), strength=1.0, motion_strength=1.0, generator=seeded(), **FEW)
    assert torch.equal(out.frames, pipe("a cat", generator=seeded(), **FEW).frames)


@torch.no_grad()
def test_motion_of_another_video(pipe: ContentMotionPipeline) -> None:
    settings = FEW | {"output_type": "latent"}
    drawn = pipe("a cat", generator=seeded(), **settings)
    _, motion = pipe.encode_video(videos() * 2 - 1)
    out = pipe("a cat", motion_video=videos(), generator=seeded(), **settings)
    assert torch.equal(out.content_frame, drawn.content_frame)
    assert torch.equal(out.frames, pipe.autoencoder.decode(drawn.content_frame, motion))
    some = pipe("a cat", motion_video=videos(), motion_strength=0.5, generator=seeded(), **settings)
    assert torch.equal(some.content_frame, drawn.content_frame)
    assert not torch.allclose(some.frames, out.frames)


@torch.no_grad()
def test_an_edited_video_keeps_its_motion(pipe: ContentMotionPipeline) -> None:
    settings = FEW | {"output_type": "latent"}
    content, motion = pipe.encode_video(videos() * 2 - 1)
    out = pipe("a cat", video=videos(), strength=0.5, generator=seeded(), **settings)
    assert torch.equal(out.frames, pipe.autoencoder.decode(out.content_frame, motion))
    assert not torch.allclose(out.content_frame, content)
    kept = pipe("a cat", video=videos(), motion_strength=0.5, generator=seeded(), **settings)
    assert torch.equal(kept.content_frame, content), "motion_strength alone keeps what is shown"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Euler's, in diffusers
@pytest.mark.parametrize(
    "scheduler",
    [
        make_ddim(prediction_type="v_prediction"),
        EulerDiscreteScheduler(),
        LCMScheduler(original_inference_steps=50),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_strength_is_the_level_that_is_noised_to(scheduler: Any) -> None:
    sample, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert [steps_taken(10, s) for s in (0.0, 0.01, 0.5, 0.99, 1.0)] == [0, 1, 5, 9, 10]
    scheduler.set_timesteps(10)
    noisy = noise_to(scheduler, sample, noise, 4)
    t = scheduler.timesteps[4]
    if hasattr(scheduler, "sigmas") and hasattr(scheduler, "scale_noise"):
        sigma = scheduler.sigmas[4]
        expected = (1 - sigma) * sample + sigma * noise
    elif hasattr(scheduler, "sigmas"):
        expected = sample + scheduler.sigmas[4] * noise
    else:
        level = scheduler.alphas_cumprod[t]
        expected = level.sqrt() * sample + (1 - level).sqrt() * noise
    torch.testing.assert_close(noisy, expected)


def test_steps_that_are_taken(pipe: ContentMotionPipeline) -> None:
    seen: dict[str, list[int]] = {"content": [], "motion": []}

    def note(kind: str) -> Any:
        return lambda pipe, step, timestep, tensors: seen[kind].append(step) or tensors

    pipe(
        "a cat", video=videos(), strength=0.5, motion_strength=0.75, num_inference_steps=4, output_type="latent",
        callback_on_step_end=note("content"), motion_callback_on_step_end=note("motion"),
    )  # fmt: skip
    assert seen == {"content": [0, 1], "motion": [0, 1, 2]}


def test_pictures_are_fitted(frame_pipe: ContentMotionPipeline, tmp_path: Path) -> None:
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = (200, 100, 50)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    cut = frame_pipe("a cat", image=tmp_path / "wide.png", **FEW).content_frame
    assert torch.allclose(cut, torch.tensor([200.0, 100, 50]).view(1, 3, 1, 1) / 255, atol=1e-6)
    padded = frame_pipe("a cat", image=Image.fromarray(wide), fit="pad", **FEW).content_frame
    assert padded[:, :, 0].max() == 0 and padded[:, :, 8, 8].max() > 0.5

    turned = Image.fromarray(wide[:, ::-1].copy())  # shown upside down on its side: EXIF's orientation 6
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    tall = frame_pipe("a cat", image=tmp_path / "turned.jpg", fit="pad", **FEW).content_frame
    assert tall[:, :, :, 0].max() < 0.05 and tall[:, :, 8, 8].max() > 0.5
    clear = Image.fromarray(np.zeros((16, 16, 4), np.uint8))
    assert frame_pipe("a cat", image=clear, **FEW).content_frame.min() == 1, "transparent is white"


def test_a_longer_video_goes_on_from_its_last_frame(frame_pipe: ContentMotionPipeline) -> None:
    out = frame_pipe("a cat", num_frames=10, generator=seeded(), **FEW | {"output_type": "latent"})
    assert out.frames.shape[1] == 10
    first = frame_pipe("a cat", generator=seeded(), **FEW | {"output_type": "latent"})
    assert torch.equal(out.frames[:, :4], first.frames)
    # The second clip is the one that the fourth frame, given as a picture, becomes.
    generator = seeded()
    frame_pipe("a cat", generator=generator, **FEW)
    second = frame_pipe(
        "a cat", content_latents=first.frames[:, -1], generator=generator, **FEW | {"output_type": "latent"}
    )
    torch.testing.assert_close(out.frames[:, 3:7], second.frames)


@pytest.mark.parametrize("loop", [False, True], ids=["chained", "overlapping"])
def test_clips_do_not_jump_where_they_meet(loop: bool) -> None:
    """The shipped student, against clips that know nothing of each other."""
    pipe = load_pipeline("emoji-lcm")
    pipe.set_progress_bar_config(disable=True)
    prompts = ["rocket", "red heart"]
    long = pipe(prompts, num_frames=32, loop=loop, generator=seeded(), output_type="pt").frames
    assert long.shape[1] == 32
    apart = [pipe(prompts, generator=seeded(k), output_type="pt").frames for k in range(2)]
    steps = [frames.diff(dim=1).abs().mean(dim=(0, 2, 3, 4)) for frames in (long, torch.cat(apart, dim=1))]
    ours, theirs = (float(step[15] / step.mean()) for step in steps)
    assert ours < 1.3 < theirs


def test_given_noise_and_given_motion_of_longer_videos(pipe: ContentMotionPipeline) -> None:
    noise = torch.randn(1, 4, 12, 16, generator=seeded())
    latents = torch.randn(1, 3, 16, 16, generator=seeded())
    one, two = (pipe("a cat", num_frames=12, latents=latents, motion_latents=noise, **FEW).frames for _ in range(2))
    assert torch.equal(one, two)
    clip = videos(frames=12)
    out = pipe("a cat", video=clip, num_frames=12, strength=0, motion_strength=0, **FEW).frames
    assert out.shape == clip.shape
    alone = pipe("a cat", video=clip[:, :4], strength=0, motion_strength=0, **FEW).frames
    assert torch.allclose(out[:, :2], alone[:, :2], atol=1e-6), "no other clip has a part in the first two frames"


def test_a_chain_takes_no_noise_which_is_said_before_it_is_sampled(frame_pipe: ContentMotionPipeline) -> None:
    steps: list[int] = []
    settings = FEW | {"callback_on_step_end": lambda pipe, step, time, tensors: steps.append(step) or tensors}
    with pytest.raises(ValueError, match="motion_latents are of one clip"):
        frame_pipe("a cat", num_frames=12, motion_latents=torch.zeros(1, 4, 12, 16), **settings)
    assert not steps


@pytest.mark.parametrize("name", ["pipe", "frame_pipe"])
def test_a_loop_is_closed(name: str, request: pytest.FixtureRequest) -> None:
    """Rolled round by any number of frames it is the video of the noise so rolled: it has no first frame."""
    pipe, noise = request.getfixturevalue(name), torch.randn(1, 4, 8, 16, generator=seeded())
    settings = FEW | {"num_frames": 8, "loop": True, "latents": torch.randn(1, 3, 16, 16, generator=seeded())}
    out = pipe("a cat", motion_latents=noise, **settings).frames
    rolled = pipe("a cat", motion_latents=noise.roll(2, dims=2), **settings).frames
    torch.testing.assert_close(rolled, out.roll(2, dims=1), atol=1e-5, rtol=1e-4)
    steps = torch.cat([out, out[:, :1]], dim=1).diff(dim=1).abs().mean(dim=(0, 2, 3, 4))
    assert steps[-1] < 1.3 * steps.mean()


def test_prompts_that_change(pipe: ContentMotionPipeline, caplog: pytest.LogCaptureFixture) -> None:
    settings = FEW | {"num_frames": 12, "generator": seeded(), "guidance_scale": 6.0}
    first, second = (pipe(prompt, **settings | {"generator": seeded()}).frames for prompt in ("a cat", "a rocket"))
    out = pipe({0: "a cat", 6: "a rocket"}, **settings).frames
    assert (out[:, 0] - first[:, 0]).abs().mean() < (out[:, 0] - second[:, 0]).abs().mean()
    assert (out[:, -1] - second[:, -1]).abs().mean() < (out[:, -1] - first[:, -1]).abs().mean()
    assert not caplog.messages
    pipe({0: "a cat", 7: "a dog", 8: "a bee"}, **settings)
    assert "no clip is of 'a dog': this video's begin at frames [0, " in caplog.text
    with pytest.raises(ValueError, match="begin at frame 0"):
        pipe({3: "a cat"})


@pytest.mark.parametrize("name", ["pipe", "frame_pipe"])
def test_frames_are_handed_on_as_they_are_drawn(name: str, request: pytest.FixtureRequest) -> None:
    pipe = request.getfixturevalue(name)
    pieces: list[torch.Tensor] = []
    settings = FEW | {"num_frames": 20}
    out = pipe("a cat", generator=seeded(), callback_on_frames=pieces.append, **settings)
    assert out.frames is None and max(piece.shape[1] for piece in pieces) <= 4, "never more than a clip"
    assert torch.equal(torch.cat(pieces, dim=1), pipe("a cat", generator=seeded(), **settings).frames)


@pytest.mark.parametrize(("frames", "length"), [(5, 4), (12, 4), (17, 4), (64, 16), (33, 16), (9, 5), (2, 2)])
@pytest.mark.parametrize("kind", [{}, {"loop": True}, {"chained": True}])
def test_clips_cover_every_frame(frames: int, length: int, kind: dict[str, bool]) -> None:
    clips = Clips(frames, length, **kind)
    counts = torch.cat([clips.frames(k) for k in range(len(clips))]).bincount(minlength=frames)
    assert counts.min() >= 1 and len(counts) == frames
    if not clips.chained:
        assert all(b - a <= -(-length // 2) for a, b in pairwise(clips.starts))
        ramp = torch.arange(frames, dtype=torch.float32)
        mean = clips.average(lambda k: ramp[clips.frames(k)][None, None, :, None])
        faded = torch.cat(list(clips.fade(lambda k: ramp[clips.frames(k)][None])), dim=1)
        torch.testing.assert_close(mean.flatten(), ramp)
        torch.testing.assert_close(faded[0], ramp)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": "cat.png"}, "cat.png: no such file"),
        ({"image": "https://example.com/cat.png"}, "an address, and pictures are read from files"),
        ({"image": Image.new("RGB", (1, 1))}, "1x1 pixels: each side needs 8 or more"),
        ({"image": Image.new("RGB", (20_000, 8))}, "less than 1/16 would be left"),
        ({"image": torch.zeros(3, 8, 8)}, "image: 3x8x8, needed 3x16x16"),
        ({"image": torch.full((3, 16, 16), -1.0)}, r"numbers must be in \[0, 1\]"),
        ({"image": torch.zeros(2, 3, 16, 16)}, "image: 2 for 1 videos"),
        ({"video": torch.zeros(3, 3, 16, 16)}, "video: 3 frames, shorter than a clip, which has 4"),
        ({"video": "none.mp4"}, "none.mp4: no such file"),
        ({"video": 3}, "video: expected frames or a path, got int"),
        ({"video": torch.zeros(4, 3, 16, 16), "image": torch.zeros(3, 16, 16)}, "give image or video"),
        ({"video": torch.zeros(4, 3, 16, 16), "strength": -0.1}, "strength must be from 0 to 1, got -0.1"),
        ({"video": torch.zeros(4, 3, 16, 16), "motion_strength": 2}, "motion_strength must be from 0 to 1, got 2"),
        ({"strength": 0.5}, "give image or video"),
        ({"motion_strength": 0.5}, "give motion_video or video"),
        ({"loop": True, "num_frames": 2}, "loop: it needs 4 frames or more, got num_frames 2"),
        ({"num_frames": 7}, "num_frames must be a multiple of 2, got 7"),
        ({"num_frames": 12, "clip_frames": 1}, "clip_frames must be 2 or more"),
        ({"num_frames": 12, "clip_frames": 3}, "clip_frames must be a multiple of 2, got 3"),
    ],
)
def test_bad_input(pipe: ContentMotionPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message) as caught:
        pipe("a cat", **FEW | arguments)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def overlap_pipe() -> ContentMotionPipeline:
    """Its motion model was told that two frames at a clip's ends may be given; clips of 8 frames."""
    motion = make_motion_dit(0.1, hidden_size=32, motion_channels=4, text_dim=32, overlap=2)
    return make_pipeline(autoencoder=make_autoencoder(0.1, num_frames=8, **SIZES), motion_transformer=motion)


@pytest.mark.parametrize(
    ("frames", "loop"), [(10, False), (20, False), (26, False), (12, True), (14, True), (26, True)]
)
def test_clips_that_go_on_from_known_motion(frames: int, loop: bool) -> None:
    clips = Clips(frames, 8, loop, overlap=2)
    done = torch.zeros(frames, dtype=torch.bool)
    for k in range(len(clips)):
        numbers = clips.frames(k)
        known = done[numbers]
        if k:
            assert known[:2].all() and not known[2:-2].any(), "two frames are known, then come new ones"
            assert known[-2:].all() == (loop and k == len(clips) - 1), "and of a loop's end the first two"
        done[numbers] = True
    assert done.all()


@torch.no_grad()
def test_a_longer_video_goes_on_from_known_motion(overlap_pipe: ContentMotionPipeline) -> None:
    """Against the same written out: the second clip is told the first one's last two frames, at time 0."""
    pipe, settings = overlap_pipe, FEW | {"output_type": "latent", "num_inference_steps": 1}
    latents, noise = torch.randn(1, 3, 16, 16, generator=seeded()), torch.randn(1, 4, 14, 16, generator=seeded(1))
    out = pipe("a cat", num_frames=14, latents=latents, motion_latents=noise, **settings)
    content = out.content_frame
    text = pipe.text_encoder(pipe.tokenizer("a cat", padding="max_length", return_tensors="pt").input_ids)
    scheduler = make_ddim("linear")
    scheduler.set_timesteps(1)

    def denoise(x: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
        told = {} if known is None else {"known": known}
        t = scheduler.timesteps[:1]
        output = pipe.motion_transformer(x, t, content, pooled_text=text.pooler_output, **told)
        return scheduler.step(output, t[0], x).prev_sample

    first = denoise(noise[:, :, :8], None)
    known = torch.tensor([[True, True] + [False] * 6])
    second = denoise(torch.cat([first[:, :, 6:], noise[:, :, 8:]], dim=2), known)
    clips = [pipe.autoencoder.decode(content, motion * 2 + 0.5) for motion in
             (first, torch.cat([first[:, :, 6:], second[:, :, 2:]], dim=2))]  # fmt: skip
    torch.testing.assert_close(out.frames[:, :6], clips[0][:, :6], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(out.frames[:, 8:], clips[1][:, 2:], atol=1e-4, rtol=1e-3)


def test_what_is_known_is_not_trained_and_noise_on_it_not_seen(
    overlap_pipe: ContentMotionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = MotionStage(overlap_pipe.components, overlap=2)
    batch: dict[str, Any] = {
        "motion": torch.randn(4000, 4, 8, 16), "content": torch.zeros(4000, 3, 16, 16), "generator": seeded(),
    }  # fmt: skip
    known = stage.prepare(batch)["known"].float()
    assert torch.allclose(known.mean(dim=0), torch.tensor([0.5, 0.5, 0, 0, 0, 0, 0.25, 0.25]), atol=0.03)
    few = {name: value[:2] for name, value in batch.items() if name != "generator"}
    few |= {"generator": seeded(), "pooled": torch.zeros(2, 32), "known": torch.ones(2, 8, dtype=torch.bool)}
    few["known_motion"] = stage.clean_sample(few)
    plain = MotionStage(overlap_pipe.components)
    assert diffusion_loss(plain, few)["loss"] == 0
    sizes = {"hidden_size": 32, "motion_channels": 4, "text_dim": 32, "overlap": 2}
    learned = plain.replace(motion_transformer=make_motion_dit(0.1, learn_sigma=True, **sizes))
    early = lambda schedule, count, *_: torch.ones(count, dtype=torch.long)  # noqa: E731  there variances differ most
    monkeypatch.setattr(NoiseSchedule, "draw_times", early)
    losses = diffusion_loss(learned, few | {"generator": seeded()})
    assert losses["mse"] == 0 and abs(losses["bound"]) < 1e-5, "what is known is not uncertain"
    few["known"][:, 2:] = False
    x, times = torch.randn(2, 4, 8, 16), torch.tensor([500, 500])
    other = torch.cat([torch.randn(2, 4, 2, 16), x[:, :, 2:]], dim=2)
    with torch.no_grad():
        condition = plain.encode(few)
        assert torch.equal(plain(x, times, condition), plain(other, times, condition))
        told = {name: condition[name] for name in ("content", "pooled_text")}
        none = plain(x, times, told | {"known": torch.zeros_like(few["known"]), "known_motion": x})
        torch.testing.assert_close(none, plain(x, times, told))
        assert (plain(x, times, condition)[:, :, 2:] - none[:, :, 2:]).abs().mean() > 1e-3
    keys = make_motion_dit().state_dict().keys()
    assert make_motion_dit(overlap=2).state_dict().keys() == keys


@pytest.mark.parametrize("overlap", [1, 6])
def test_an_overlap_that_no_clip_has(overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap must be a multiple of the patch size 2, at most half a clip"):
        MotionStage.make(MotionSizes(), [(4, 8, 16)], components={}, content_channels=3, overlap=overlap)
