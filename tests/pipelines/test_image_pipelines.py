"""Content frames by stock image pipelines: bit for bit theirs, whatever those are asked for; callbacks, interruption,
round trips of folders, and folders of families that are not known."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from diffusers.callbacks import SDCFGCutoffCallback, SDXLCFGCutoffCallback
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from contentmotion import ContentMotionPipeline
from contentmotion.commands.generate import sample_motions
from contentmotion.config import GenerateConfig, TrainContentConfig
from contentmotion.losses.diffusion import diffusion_loss
from contentmotion.pipelines.loading import load_pipeline
from contentmotion.pipelines.sampling import denoise, resolve_sampling
from contentmotion.stages.content import content_stage, load_content
from contentmotion.stages.image_vae import encode_frames, vae_latent_channels, vae_scale_factor
from contentmotion.train.content import content_to_train
from families import FAMILIES, PROMPTS, make_sana_sprint
from tiny import (
    make_autoencoder,
    make_ddim,
    make_image_unet,
    make_motion_dit,
    make_stable_diffusion,
    make_stable_diffusion_xl,
    randomize,
)

SETTINGS: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
PICTURE = Image.effect_noise((16, 16), 80).convert("RGB")
UNET: dict[str, Any] = {"sample_size": 8, "in_channels": 4, "out_channels": 4}
MASK = Image.new("L", (16, 16))
MASK.paste(255, (0, 0, 8, 16))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def wrap(image_pipe: Any, text_dim: int | None, side: int = 8) -> ContentMotionPipeline:
    """The video pipeline around a stock one, of content frames of ``side`` x ``side`` latents."""
    channels = vae_latent_channels(image_pipe.vae)
    autoencoder = make_autoencoder(
        0.1, in_channels=channels, sample_height=side, sample_width=side, patch_size=2, motion_mean=[0.0] * 2,
        motion_std=[1.0] * 2,
    )  # fmt: skip
    motion = make_motion_dit(0.1, content_channels=channels, content_patch_size=2, text_dim=text_dim)
    pipe = ContentMotionPipeline.from_image_pipeline(image_pipe, autoencoder, motion, make_ddim("linear"))
    image_pipe.set_progress_bar_config(disable=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def ours(request: pytest.FixtureRequest) -> ContentMotionPipeline:
    xl = request.param == "sdxl"
    return wrap(make_stable_diffusion_xl() if xl else make_stable_diffusion(), 24 if xl else 32)


@pytest.fixture
def stock(ours: ContentMotionPipeline) -> DiffusionPipeline:
    """Another stock pipeline of the same networks: nothing of what ours does to its own reaches it."""
    return type(ours.image_pipeline)(**{n: ours.image_pipeline.components[n] for n in ours.image_pipeline.components})


def is_xl(pipe: ContentMotionPipeline) -> bool:
    return pipe.text_encoder_2 is not None


def run_stock(stock: DiffusionPipeline, *arguments: Any, **keywords: Any) -> torch.Tensor:
    stock.set_progress_bar_config(disable=True)
    return stock(*arguments, **{"generator": seeded(), "guidance_scale": 4.0} | SETTINGS | keywords).images


def test_textual_inversion_passes_through() -> None:
    """A word of two learned vectors is read as the stock pipeline reads it, and changes the picture."""
    image_pipe = make_stable_diffusion()
    width = image_pipe.text_encoder.config.hidden_size
    plain = run_stock(image_pipe, "a <toy> cat")
    vectors = torch.randn(2, width, generator=seeded(1))
    image_pipe.load_textual_inversion({"string_to_param": {"*": vectors}, "name": "toy"}, token="<toy>")
    pipe = wrap(image_pipe, 32)
    drawn = pipe("a <toy> cat", generator=seeded(), guidance_scale=4.0, **SETTINGS).content_frame
    expected = run_stock(image_pipe, "a <toy> cat")
    assert torch.equal(drawn, expected) and not torch.allclose(expected, plain, atol=1e-3)


def original_names(pipe: Any) -> dict[str, torch.Tensor]:
    """The weights of a Stable Diffusion pipeline with one layer a block, as CompVis' checkpoints call them."""
    size, last = pipe.unet.config.layers_per_block + 1, len(pipe.vae.config.block_out_channels) - 1
    place = lambda i, k, skip: f"{skip + int(i) * size + int(k)}"  # noqa: E731
    unet: list[tuple[str, Any]] = [
        (r"down_blocks.(.).resnets.(.)", lambda m: f"input_blocks.{place(*m.groups(), 1)}.0"),
        (r"down_blocks.(.).attentions.(.)", lambda m: f"input_blocks.{place(*m.groups(), 1)}.1"),
        (r"down_blocks.(.).downsamplers.0.conv", lambda m: f"input_blocks.{place(m[1], size, 0)}.0.op"),
        (r"mid_block.resnets.(.)", lambda m: f"middle_block.{2 * int(m[1])}"),
        (r"mid_block.attentions.0", "middle_block.1"),
        (r"up_blocks.(.).resnets.(.)", lambda m: f"output_blocks.{place(*m.groups(), 0)}.0"),
        (r"up_blocks.(.).attentions.(.)", lambda m: f"output_blocks.{place(*m.groups(), 0)}.1"),
        (r"up_blocks.(.).upsamplers.0.conv", lambda m: f"output_blocks.{place(m[1], size - 1, 0)}.2.conv"),
        (r"time_embedding.linear_(.)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
        (r"^conv_in", "input_blocks.0.0"), (r"^conv_norm_out", "out.0"), (r"^conv_out", "out.2"),
        *((rf"(blocks.\d+.0|middle_block.\d).{old}", rf"\1.{new}") for old, new in (
            ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"), ("conv2", "out_layers.3")
        )),
        (r"time_emb_proj", "emb_layers.1"), (r"conv_shortcut", "skip_connection"),
    ]  # fmt: skip
    vae: list[tuple[str, Any]] = [
        (r"down_blocks.(.).resnets", r"down.\1.block"), (r"down_blocks.(.).downsamplers.0", r"down.\1.downsample"),
        (r"up_blocks.(.).resnets", lambda m: f"up.{last - int(m[1])}.block"),
        (r"up_blocks.(.).upsamplers.0", lambda m: f"up.{last - int(m[1])}.upsample"),
        (r"mid_block.resnets.(.)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"), (r"mid_block.attentions.0.to_", "mid.attn_1."),
        (r"mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
        (r"conv_norm_out", "norm_out"), (r"conv_shortcut", "nin_shortcut"),
    ]  # fmt: skip
    text = [(r"^(?:text_model.)?", "text_model.")]
    found = {}
    for prefix, part, names in (
        ("model.diffusion_model.", pipe.unet, unet), ("first_stage_model.", pipe.vae, vae),
        ("cond_stage_model.transformer.", pipe.text_encoder, text),
    ):  # fmt: skip
        for name, value in part.state_dict().items():
            for pattern, new in names:
                name = re.sub(pattern, new, name)
            is_attention = prefix.startswith("first") and "attn_1" in name and value.ndim == 2  # 1x1 convolutions there
            found[prefix + name] = value[:, :, None, None] if is_attention else value
    return found


def test_single_file_checkpoints(tmp_path: Path) -> None:
    """CompVis' layout, by the configs of a folder."""
    stock = make_stable_diffusion()
    stock.save_pretrained(tmp_path / "configs")
    save_file({n: v.contiguous() for n, v in original_names(stock).items()}, tmp_path / "one.safetensors")
    for weights in (tmp_path / "configs").rglob("*.safetensors"):
        weights.unlink()
    image_pipe = StableDiffusionPipeline.from_single_file(tmp_path / "one.safetensors", config=f"{tmp_path}/configs")
    drawn = wrap(image_pipe, 32)("a cat", generator=seeded(), guidance_scale=4.0, **SETTINGS)
    assert torch.equal(drawn.content_frame, run_stock(stock, "a cat")) and torch.isfinite(drawn.frames).all()


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' Euler with NumPy 2
@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": "a cat"},
        {"prompt": "a cat", "guidance_scale": 1.0},
        {"prompt": "a cat", "negative_prompt": "a rocket"},
        {"prompt": "a cat", "negative_prompt": ""},
        {"prompt": ["a cat", "a rocket"], "negative_prompt": ["a square", "a cat"]},
        {"prompt": ["a cat", "a rocket"], "guidance_rescale": 0.7, "eta": 0.5},
        {"prompt": "a cat", "timesteps": [801, 401, 201]},
        {"prompt": "a cat", "clip_skip": 0, "height": 24, "width": 32},
    ],
    ids=lambda asked: " ".join(asked),
)
def test_content_frame_is_the_stock_pipelines(
    ours: ContentMotionPipeline, stock: DiffusionPipeline, asked: dict[str, Any]
) -> None:
    """Bit for bit."""
    if "clip_skip" in asked and not is_xl(ours):
        pytest.skip("diffusers' Stable Diffusion does not find the last norm in this transformers' CLIP")
    sizes, before = {"height": 16, "width": 16} | asked, ours.scheduler
    if "timesteps" in asked:  # DDIM takes none
        stock.scheduler = ours.scheduler = EulerDiscreteScheduler.from_config(before.config)
    try:
        expected = run_stock(stock, **sizes)
        videos = ours(**sizes, **SETTINGS, generator=seeded(), motion_num_inference_steps=1)
    finally:
        ours.scheduler = before
    assert torch.equal(videos.content_frame, expected)
    assert len(videos.frames) == len(expected) and torch.isfinite(videos.frames).all()


def make_family(name: str) -> ContentMotionPipeline:
    image_pipe = FAMILIES[name]()
    return wrap(image_pipe, content_stage(image_pipe.components).pooled_width, 4)


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("name", FAMILIES)
def test_content_frame_is_the_stock_pipelines_of_each_family(name: str) -> None:
    """Bit for bit; guided by negative prompts where the stock pipeline takes some."""
    ours, stock, stage = make_family(name), FAMILIES[name](), content_stage(FAMILIES[name]().components)
    side = 4 * vae_scale_factor(stock.vae)
    negatives: list[Any] = [None] if name == "flux2_klein" else [None, "", ["a rocket", "a cat"]]
    for guidance, negative in ((1.0, None), *((4.0, negative) for negative in negatives)):
        own = {"height": side if negative is None else 2 * side, "width": side}
        theirs: dict[str, Any] = {"prompt": [*PROMPTS], "guidance_scale": stage.stock_guidance(guidance)}
        if negative is not None:
            theirs["negative_prompt"] = [*negative] if negative else ["", ""]
        expected = stage.from_stock(run_stock(stock, **own, **theirs, **stage.stock_arguments))
        videos = ours(
            PROMPTS, negative_prompt=negative, guidance_scale=guidance, **own, **SETTINGS, generator=seeded(),
            motion_num_inference_steps=1,
        )  # fmt: skip
        assert torch.equal(videos.content_frame, expected), (negative, guidance)
        assert len(videos.frames) == 2 and torch.isfinite(videos.frames).all()


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_draws_given_pictures_and_videos_anew(name: str) -> None:
    """As much as is asked for: none of it, some, and with several motions of one."""
    pipe = make_family(name)
    height, width = pipe.clip_shape[1:]
    video = torch.rand(1, 4, 3, height, width, generator=seeded())
    with torch.no_grad():
        exact = encode_frames(pipe.vae, video[:, :1] * 2 - 1)[:, 0]
    asked = SETTINGS | {"num_inference_steps": 4}
    kept = pipe("a cat", image=video[:, 0], strength=0.0, **asked, generator=seeded()).content_frame
    assert torch.equal(kept, exact)

    def draw(kind: str, one: torch.Tensor, strength: float) -> torch.Tensor:
        given: dict[str, Any] = {kind: one[:, 0] if kind == "image" else one}
        return pipe("a cat", **given, strength=strength, **asked, generator=seeded()).content_frame

    for kind in ("image", "video"):
        some, other = (draw(kind, one, 0.25) for one in (video, 1 - video))
        assert not torch.equal(some, other) and not torch.equal(some, exact)
        assert torch.equal(draw(kind, video, 1.0), draw(kind, 1 - video, 1.0))
    config = GenerateConfig(prompt=["a cat"], num_inference_steps=2, mixed_precision="no", seed=3)
    drawn = sample_motions(pipe, config, "a cat", 3, lambda: None)
    for other in drawn[1:]:
        assert torch.equal(other.latents, drawn[0].latents)
        assert (other.video != drawn[0].video).any()


def test_klein_imitates_pictures() -> None:
    ours, stock, stage = (
        make_family("flux2_klein"),
        FAMILIES["flux2_klein"](),
        content_stage(FAMILIES["flux2_klein"]().components),
    )
    pictures = [PICTURE.resize((64, 64)), PICTURE.resize((64, 96))]
    size = {"height": 16, "width": 16}
    expected = stage.from_stock(run_stock(stock, prompt="a cat", image=pictures, **size))
    videos = ours("a cat", reference_image=pictures, **size, **SETTINGS, generator=seeded())
    assert torch.equal(videos.content_frame, expected) and videos.frames.shape[0] == 1
    assert not torch.equal(ours("a cat", **size, **SETTINGS, generator=seeded()).content_frame, expected)
    with pytest.raises(ValueError, match="reference_image: it goes without image"):
        make_family("z_image")("a cat", reference_image=PICTURE, **SETTINGS)


@pytest.mark.parametrize("make", [make_stable_diffusion, make_stable_diffusion_xl])
def test_ip_adapter_passes_through(make: Callable[[], Any]) -> None:
    """Its weights, made here, sit in the UNet; the image encoder is the pipeline's own."""
    stock, width = make(), 16
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=width,
    )  # fmt: skip
    stock.register_modules(
        image_encoder=CLIPVisionModelWithProjection(vision).eval(),
        feature_extractor=CLIPImageProcessor(size=16, crop_size=16),
    )
    unet, layers = stock.unet, {}
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    told = unet.config.cross_attention_dim
    for number, name in enumerate(names):
        rows = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        layers |= {f"{2 * number + 1}.to_{part}_ip.weight": torch.randn(rows, told) for part in "kv"}
    projection = {"proj.weight": torch.randn(4 * told, width), "proj.bias": torch.zeros(4 * told)}
    projection |= {"norm.weight": torch.ones(told), "norm.bias": torch.zeros(told)}
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": layers}])
    ours = wrap(type(stock)(**stock.components), 24 if make is make_stable_diffusion_xl else 32)
    for picture in (PICTURE, PICTURE.rotate(90)):
        expected = run_stock(stock, "a cat", ip_adapter_image=picture, height=16, width=16)
        videos = ours("a cat", ip_adapter_image=picture, height=16, width=16, **SETTINGS, generator=seeded())
        assert torch.equal(videos.content_frame, expected)
    other = ours("a cat", ip_adapter_image=PICTURE, height=16, width=16, **SETTINGS, generator=seeded())
    assert not torch.equal(other.content_frame, expected)


def test_prompts_stay_as_they_were_given() -> None:
    """Z-Image's stock pipeline writes into lists."""
    prompts, negatives = [*PROMPTS], ["a rocket", "a cat"]
    make_family("z_image")(prompts, negative_prompt=negatives, cfg_truncation=1.0, **SETTINGS)
    assert prompts == PROMPTS and negatives == ["a rocket", "a cat"]


def test_a_distilled_klein_is_sampled_in_few_steps() -> None:
    """Where the stock pipeline's settings say that it is distilled."""
    stock = FAMILIES["flux2_klein"]()
    plain = resolve_sampling(wrap(stock, 24, 4), None, None, None, 1.0)
    assert (plain.steps, plain.motion_steps, plain.guidance_scale) == (50, 50, 4.0)
    stock.register_to_config(is_distilled=True)
    few = resolve_sampling(wrap(stock, 24, 4), None, None, None, 1.0)
    assert (few.steps, few.motion_steps, few.guidance_scale) == (4, 50, 1.0)


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("name", ["sd", "sdxl", "stable_diffusion_3", "sana"])
def test_guidance_between_times_in_stock_pipelines(name: str) -> None:
    """As where the stock pipeline is told a guidance of next to nothing for the other steps, at half their cost."""
    made: dict[str, tuple[Callable[[], Any], int]] = {
        "sd": (make_stable_diffusion, 32), "sdxl": (make_stable_diffusion_xl, 24),
    }  # fmt: skip
    pipe = wrap(made[name][0](), made[name][1]) if name in made else make_family(name)
    stock: Any = pipe.image_pipeline
    size = 8 if name in made else 4 * vae_scale_factor(stock.vae)
    asked: dict[str, Any] = {"num_inference_steps": 4, "height": size, "width": size, "output_type": "latent"}
    low, high = 300.0, 700.0
    none = 1 + 1e-9  # guided, in two passes, by next to nothing
    batches, said = [], []

    def switch(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        times = [*pipe.scheduler.timesteps.tolist(), 0]
        said.append(times[step])
        pipe._guidance_scale = 4.0 if low <= times[step + 1] <= high else none
        return tensors

    network = pipe._network
    hook = network.register_forward_hook(lambda module, args, output: batches.append(len(output[0])))
    try:
        expected = run_stock(stock, PROMPTS, guidance_scale=none, callback_on_step_end=switch, **asked)
        assert batches == [4] * 4
        batches.clear()
        ours = pipe(
            PROMPTS, guidance_scale=4.0, guidance_interval=(low, high), generator=seeded(), **asked,
            motion_num_inference_steps=1,
        ).content_frame  # fmt: skip
    finally:
        hook.remove()
    assert batches == [4 if low <= time <= high else 2 for time in said] and len(set(batches)) == 2 and said[0] > high
    assert not network._forward_hooks and not network._forward_pre_hooks
    plain = pipe(PROMPTS, guidance_scale=4.0, generator=seeded(), **asked, motion_num_inference_steps=1).content_frame
    assert not torch.allclose(ours, plain, atol=1e-3)
    if name != "sana":  # whose pipeline does not look at its guidance again
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)
    unguided = pipe(
        PROMPTS, guidance_scale=1.0, generator=seeded(), **asked, motion_num_inference_steps=1
    ).content_frame
    outside = pipe(
        PROMPTS, guidance_scale=4.0, guidance_interval=(0, 0), generator=seeded(), **asked, motion_num_inference_steps=1
    ).content_frame
    torch.testing.assert_close(outside, unguided, atol=1e-4, rtol=1e-3)


def test_guidance_that_a_stock_pipeline_does_not_have(ours: ContentMotionPipeline) -> None:
    with pytest.raises(ValueError, match=r"^guidance_interval: Flux2KleinPipeline guides by a call of its own"):
        make_family("flux2_klein")("a cat", guidance_interval=(400, 900))
    with pytest.raises(ValueError, match=r"^guidance_interval: ZImagePipeline guides"):
        make_family("z_image")("a cat", guidance_interval=(400, 900))
    with pytest.raises(ValueError, match=r"^guidance_rescale: StableDiffusion3Pipeline has no such argument"):
        make_family("stable_diffusion_3")("a cat", guidance_rescale=0.7)
    if not is_xl(ours):
        with pytest.raises(ValueError, match=r"^guidance_rescale: StableDiffusionPipeline has no such argument for"):
            ours("a cat", image=PICTURE, strength=0.5, guidance_rescale=0.7)


@pytest.mark.parametrize("kind", ["lcm", "sdxl"])
def test_a_unet_that_is_told_the_guidance_scale(kind: str, tmp_path: Path) -> None:
    """As LCM_Dreamshaper's and LCM-SDXL's: as the stock pipeline makes them, and by our own loop the same."""
    told = {"time_cond_proj_dim": 16}
    if kind == "lcm":
        plain = make_stable_diffusion()
        parts = {n: plain.components[n] for n in plain.components} | {"unet": make_image_unet(0.1, **UNET, **told)}
        parts["scheduler"] = LCMScheduler.from_config(plain.scheduler.config)
        theirs: Any = LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)
    else:
        theirs = make_stable_diffusion_xl()
        unet = type(theirs.unet).from_config(theirs.unet.config, **told)
        theirs.register_modules(unet=randomize(unet, 0.1), scheduler=LCMScheduler.from_config(theirs.scheduler.config))
    wrap(theirs, 32 if kind == "lcm" else 24).save_pretrained(tmp_path)
    pipe = load_pipeline(str(tmp_path))
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe.image_pipeline) is type(theirs)
    sizes = {"height": 16, "width": 16}
    seen: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    frames = {}
    for guidance in (1.0, 8.5):
        expected = run_stock(theirs, "a cat", guidance_scale=guidance, **sizes)
        seen.clear()
        frames[guidance] = pipe(
            "a cat", guidance_scale=guidance, negative_prompt="a rocket", motion_guidance_scale=2.0, **SETTINGS,
            generator=seeded(), motion_num_inference_steps=1,
        ).content_frame  # fmt: skip
        torch.testing.assert_close(frames[guidance], expected, atol=1e-4, rtol=1e-4)
        assert seen == [1, 1]
    assert not torch.allclose(frames[1.0], frames[8.5], atol=1e-3)
    sampling = resolve_sampling(pipe, 2, 1, None, 2.0)
    assert (sampling.guidance_scale, sampling.passes) == (4.0, 2 + 2)

    stage, generator = pipe.stages["content"], seeded()
    told_of = stage.encode(stage.text_features(["a cat"]))
    stage.set_timesteps(2, (1, 4, 8, 8), torch.device("cpu"))
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    with torch.no_grad():
        own = denoise(stage, noise, told_of, None, 8.5, generator=generator)
    torch.testing.assert_close(own, frames[8.5], atol=1e-4, rtol=1e-3)
    for name, value in (("guidance_interval", (400, 900)), ("guidance_rescale", 0.5)):
        with pytest.raises(ValueError, match=f"^{name}: "):
            pipe("a cat", **{name: value})
    batch = {"content": noise, "caption": ["a cat"], "generator": generator}
    with pytest.raises(ValueError, match="told the guidance scale .* sampled, not trained"):
        diffusion_loss(stage, batch)


def test_sana_sprint_is_sampled_as_stock(tmp_path: Path) -> None:
    """Bit for bit, from a folder; told its guidance, in one pass a step; what it cannot do is said in a line."""
    theirs = make_sana_sprint()
    wrap(theirs, 16, 4).save_pretrained(tmp_path)
    pipe = load_pipeline(str(tmp_path))
    pipe.set_progress_bar_config(disable=True)
    stage, side = content_stage(pipe.components), 4 * vae_scale_factor(theirs.vae)
    sizes, seen, frames = {"height": side, "width": 2 * side}, [], {}
    pipe.transformer.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    for steps, guidance in ((1, 4.5), (2, 4.5), (2, 1.0), (4, 4.5)):
        asked = {"num_inference_steps": steps, "guidance_scale": guidance}
        between = {} if steps == 2 else {"intermediate_timesteps": None}
        expected = run_stock(theirs, PROMPTS, **sizes, **asked, **between, **stage.stock_arguments)
        seen.clear()
        frames[steps, guidance] = pipe(
            PROMPTS, negative_prompt="a rocket", motion_guidance_scale=2.0, **sizes, **SETTINGS | asked,
            generator=seeded(), motion_num_inference_steps=1,
        ).content_frame  # fmt: skip
        assert torch.equal(frames[steps, guidance], expected) and seen == [2] * steps
    assert not torch.allclose(frames[2, 4.5], frames[2, 1.0], atol=1e-3)
    sampling = resolve_sampling(pipe, None, None, None, 1.0)
    assert (sampling.steps, sampling.motion_steps, sampling.guidance_scale, sampling.passes) == (2, 50, 4.0, 52)
    assert stage(*stage.example((8, 4, 4), 1, torch.device("cpu"))).shape == (1, 8, 4, 4)
    with pytest.raises(ValueError, match="^strength: SANA-Sprint draws no given content frame anew"):
        pipe("a cat", image=PICTURE, strength=0.5, **SETTINGS)
    theirs.save_pretrained(tmp_path / "stock")
    config = TrainContentConfig(latent_cache="", pretrained_model_name_or_path=str(tmp_path / "stock"), output_dir="")
    with pytest.raises(ValueError, match="told the guidance scale: it was distilled, and can be sampled, not trained"):
        content_to_train(config, SimpleNamespace(shapes=lambda field: [(8, 4, 4)]))  # type: ignore[arg-type]


def test_a_generator_for_each_video(ours: ContentMotionPipeline, stock: DiffusionPipeline) -> None:
    sizes = {"height": 16, "width": 16}
    expected = run_stock(stock, "a cat", generator=[seeded(1), seeded(2)], num_images_per_prompt=2, **sizes)
    videos = ours("a cat", generator=[seeded(1), seeded(2)], num_videos_per_prompt=2, **SETTINGS)
    assert torch.equal(videos.content_frame, expected)


@pytest.mark.parametrize(
    ("kinds", "asked"),
    [
        ((StableDiffusionImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline), {"image": PICTURE, "strength": 0.6}),
        (
            (StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline),
            {"image": PICTURE, "mask_image": MASK, "strength": 0.9, "height": 16, "width": 16},
        ),
    ],
    ids=["img2img", "inpaint"],
)
def test_pictures_choose_the_familys_pipeline(
    ours: ContentMotionPipeline, stock: DiffusionPipeline, kinds: tuple[type, type], asked: dict[str, Any]
) -> None:
    theirs = kinds[is_xl(ours)].from_pipe(stock)
    expected = run_stock(theirs, "a cat", **asked | {"num_inference_steps": 3})
    videos = ours("a cat", **SETTINGS | {"num_inference_steps": 3} | asked, generator=seeded())
    assert torch.equal(videos.content_frame, expected)
    assert not torch.equal(expected, ours("a cat", **SETTINGS, generator=seeded()).content_frame)


def test_a_picture_of_another_size_is_resized(ours: ContentMotionPipeline) -> None:
    large = ours("a cat", image=PICTURE.resize((48, 40)), strength=0.6, **SETTINGS, generator=seeded())
    assert large.content_frame.shape == (1, 4, 8, 8)


def test_a_picture_for_each_video(ours: ContentMotionPipeline) -> None:
    """One step at least is taken, of however few; pictures belong to videos, however they are given."""
    pictures = [PICTURE, PICTURE.rotate(90)]
    pair = SETTINGS | {"num_videos_per_prompt": 2, "strength": 0.1}  # 0.2 of a step
    two = ours("a cat", image=pictures, **pair, generator=[seeded(k) for k in range(2)])
    for k, picture in enumerate(pictures):
        one = ours("a cat", image=picture, **SETTINGS, strength=0.1, generator=seeded(k))
        torch.testing.assert_close(two.content_frame[k : k + 1], one.content_frame, atol=1e-4, rtol=1e-3)
        kept = ours("a cat", image=picture, **SETTINGS, strength=0.0).content_frame
        assert (one.content_frame - kept).abs().mean() > 1e-3, "drawn anew"
    with pytest.raises(ValueError, match="image: 2 for 4 videos"):
        ours(["a cat", "a dog"], image=pictures, **pair)


@pytest.mark.parametrize("name", ["stable_diffusion_3", "sana", "z_image"])
def test_a_flows_student_takes_even_steps_in_its_stock_pipeline(name: str) -> None:
    """By itself the scheduler's last step would begin next to the sample; what the caller gives stays."""
    pipe = make_family(name)
    student = FlowMatchLCMScheduler(shift=1.0)
    pipe.register_modules(scheduler=student)
    asked: dict[str, Any] = {"num_inference_steps": 2, "motion_num_inference_steps": 1, "output_type": "latent"}
    pipe("a cat", **asked)
    assert student.timesteps.tolist() == pytest.approx([1000, 500])
    pipe("a cat", **asked, sigmas=[1.0, 0.3])
    assert student.timesteps.tolist() == pytest.approx([1000, 300])
    if name == "sana":  # the others' pipelines take no times
        pipe("a cat", **asked, timesteps=[1000, 400])
        assert student.timesteps.tolist() == pytest.approx([1000, 400])


@pytest.mark.parametrize("ours_first", [True, False])
def test_parts_of_several_number_formats(ours: ContentMotionPipeline, ours_first: bool) -> None:
    """An image pipeline in 16 bits beside an autoencoder and a motion model that are not, and the other way round."""
    expected = ours("a cat", num_inference_steps=1, output_type="np", generator=seeded()).frames
    image_parts = [part for name, part in ours.components.items() if isinstance(part, torch.nn.Module)
                   and name not in ("autoencoder", "motion_transformer")]  # fmt: skip
    halves = [ours.autoencoder, ours.motion_transformer] if ours_first else image_parts
    try:
        for part in halves:
            part.to(torch.bfloat16)
        frames = ours("a cat", num_inference_steps=1, output_type="np", generator=seeded()).frames
        assert frames.shape == expected.shape and abs(frames - expected).mean() < 0.05
        again = ours("a cat", image=PICTURE, num_inference_steps=1, output_type="np", generator=seeded()).frames
        assert again.shape == expected.shape
    finally:
        for part in halves:
            part.to(torch.float32)


def test_a_vae_that_overflows_in_float16_is_brought_to_float32(ours: ContentMotionPipeline) -> None:
    """Stable Diffusion XL's, as its own pipeline knows; others' stay as they are."""
    assert ours.vae.config.force_upcast
    try:
        ours.vae.to(torch.float16)
        assert ours._image_vae.dtype == (torch.float32 if is_xl(ours) else torch.float16)
    finally:
        ours.vae.to(torch.float32)


def test_embeddings_in_place_of_the_prompt(ours: ContentMotionPipeline, stock: DiffusionPipeline) -> None:
    """They are the content frame's; the motion model still reads the prompt."""
    encoded = stock.encode_prompt("a rocket", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    names = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    embeds = dict(zip(names, encoded, strict=False))
    expected = run_stock(stock, "a rocket", height=16, width=16)
    videos = ours("a cat", **embeds, **SETTINGS, generator=seeded())
    assert torch.equal(videos.content_frame, expected)
    with pytest.raises(ValueError, match="give prompt"):
        ours(**embeds, **SETTINGS)


def test_controlnet_passes_through_and_its_folder_comes_back(
    ours: ContentMotionPipeline, stock: DiffusionPipeline, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    controlnet = ControlNetModel.from_unet(stock.unet, conditioning_embedding_out_channels=(8, 16)).eval()
    for zero in controlnet.controlnet_down_blocks:
        torch.nn.init.normal_(zero.weight)
    kind = StableDiffusionXLControlNetPipeline if is_xl(ours) else StableDiffusionControlNetPipeline
    parts = {n: part for n, part in stock.components.items() if n != "controlnet"} | {"controlnet": controlnet}
    theirs = kind(**parts, **({} if is_xl(ours) else {"requires_safety_checker": False}))
    asked: dict[str, Any] = {"image": PICTURE, "controlnet_conditioning_scale": 0.8}
    pipe = wrap(theirs, 24 if is_xl(ours) else 32)
    arguments = SETTINGS | asked | {"height": 16, "width": 16}
    expected = run_stock(theirs, "a cat", **asked, height=16, width=16)
    videos = pipe("a cat", **arguments, generator=seeded())
    assert torch.equal(videos.content_frame, expected)
    pipe.save_pretrained(tmp_path)
    for load in (ContentMotionPipeline.from_pretrained, load_pipeline):
        again = load(str(tmp_path))
        again.set_progress_bar_config(disable=True)
        assert type(again.image_pipeline) is kind
        same = again("a cat", **arguments, generator=seeded())
        assert torch.equal(same.frames, videos.frames) and torch.equal(same.content_frame, expected)


def test_an_argument_that_nobody_knows(ours: ContentMotionPipeline) -> None:
    with pytest.raises(TypeError, match=r"strenght: neither .* StableDiffusion\w*Pipeline, takes .* mean strength"):
        ours("a cat", image=PICTURE, strenght=0.5)
    if not is_xl(ours):  # whose image-to-image pipeline has latents; inpainting would need a mask
        with pytest.raises(TypeError, match="^image, latents, strength: .* takes these together"):
            ours("a cat", image=PICTURE, strength=0.5, latents=torch.zeros(1, 4, 8, 8))
    with pytest.raises(TypeError, match="num_images_per_prompt: say num_videos_per_prompt"):
        ours("a cat", num_images_per_prompt=2)
    with pytest.raises(TypeError, match="clip_skip: with content_latents no image pipeline is called"):
        ours("a cat", clip_skip=1, content_latents=torch.zeros(1, 4, 8, 8))


def test_official_callbacks(ours: ContentMotionPipeline, stock: DiffusionPipeline) -> None:
    """Guidance ends at the first step's end, in ours as in theirs."""
    make: Callable[..., Any] = SDXLCFGCutoffCallback if is_xl(ours) else SDCFGCutoffCallback

    def ask(pipe: Any, run: Callable[..., Any], **callback: Any) -> Any:
        return run(pipe, "a cat", height=16, width=16, num_inference_steps=4, **callback)

    def run_ours(pipe: ContentMotionPipeline, *arguments: Any, **keywords: Any) -> torch.Tensor:
        return pipe(*arguments, **{**SETTINGS, **keywords}, generator=seeded()).content_frame

    callback = {"callback_on_step_end": make(cutoff_step_ratio=None, cutoff_step_index=1)}
    expected = ask(stock, run_stock, **callback)
    assert torch.equal(ask(ours, run_ours, **callback), expected)
    assert not torch.equal(ask(ours, run_ours), expected)


def test_interruption(ours: ContentMotionPipeline, stock: DiffusionPipeline) -> None:
    seen = []

    def stop(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        seen.append((step, pipe.num_timesteps, pipe.guidance_scale, pipe.do_classifier_free_guidance, pipe.interrupt))
        pipe._interrupt = step == 1
        return tensors

    sizes = {"height": 16, "width": 16, "num_inference_steps": 4}
    expected = run_stock(stock, "a cat", callback_on_step_end=stop, **sizes)
    videos = ours("a cat", **{**SETTINGS, **sizes}, generator=seeded(), callback_on_step_end=stop)
    assert videos.frames is None and torch.equal(videos.content_frame, expected)
    assert seen == [(0, 4, 4.0, True, False), (1, 4, 4.0, True, False)] * 2
    seen.clear()
    videos = ours("a cat", **SETTINGS, motion_num_inference_steps=4, motion_callback_on_step_end=stop)
    assert [one[0] for one in seen] == [0, 1] and videos.frames is not None


def test_what_is_replaced_here_is_replaced_there(ours: ContentMotionPipeline) -> None:
    before = ours.scheduler
    ours.scheduler = EulerDiscreteScheduler.from_config(before.config)
    assert ours.image_pipeline.scheduler is ours.scheduler
    ours.image_pipeline.register_modules(scheduler=before)  # as a loader of the stock pipeline does
    assert ours.image_pipeline.scheduler is before and ours.scheduler is before
    ours.load_lora_weights  # noqa: B018
    assert ours.encode_prompt == ours.image_pipeline.encode_prompt
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ours.nothing  # noqa: B018


@pytest.mark.parametrize(
    "kind",
    ["FluxTransformer2DModel", "PixArtTransformer2DModel", "Flux2Transformer2DModel with guidance_embeds"],
)
def test_unknown_families_are_named(kind: str, tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    name, _, told = kind.partition(" with ")
    (tmp_path / "transformer/config.json").write_text(
        json.dumps({"_class_name": name} | ({told: True} if told else {}))
    )
    index = {
        "_class_name": "FluxPipeline",
        "transformer": ["diffusers", name],
        "scheduler": ["diffusers", "PNDMScheduler"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for load in (load_content, load_pipeline, ContentMotionPipeline.from_pretrained):
        with pytest.raises(ValueError, match=rf"^no .* with a {kind} is known; known are Stable Diffusion 1 and 2"):
            load(str(tmp_path))
