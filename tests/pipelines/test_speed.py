"""Every switch that makes a pipeline faster leaves its videos as they are, bit for bit or within a stated tolerance."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from contentmotion import ContentMotionPipeline
from contentmotion.cli import main
from contentmotion.cost.count import count_cost
from contentmotion.cost.networks import build
from contentmotion.models import layers
from contentmotion.models.autoencoder import ContentMotionAutoencoder, cut_windows, join_windows
from contentmotion.pipelines.loading import load_pipeline
from contentmotion.pipelines.speed import (
    Replayed,
    compile_networks,
    enable_tiling,
    quantize_networks,
    replay_networks,
    use_channels_last,
    use_vae,
)
from contentmotion.stages.text import TextFeatures, encode_prompts
from tiny import make_autoencoder, make_video_unet

CPU = torch.device("cpu")


@pytest.fixture
def pipe(tiny_pipeline_dir: Path) -> ContentMotionPipeline:
    """4 frames of 16x16 pixels, without a VAE."""
    pipe = load_pipeline(str(tiny_pipeline_dir))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: ContentMotionPipeline, prompts: list[str] | str = "rocket", **arguments: object) -> np.ndarray:
    settings: dict = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
    return pipe(prompts, **(settings | arguments)).frames


def small_vae(cls: type, **arguments: object) -> torch.nn.Module:
    """An untrained VAE that halves sizes once."""
    torch.manual_seed(0)
    if cls is AutoencoderTiny:
        return AutoencoderTiny(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), latent_channels=3,
        ).eval()  # fmt: skip
    return AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=3, **arguments,
    ).eval()  # fmt: skip


def test_text_is_encoded_once(pipe: ContentMotionPipeline) -> None:
    """Bit for bit, and each text costs one pass however often it comes."""
    plain = run(pipe), run(pipe, "a crying cat")
    seen: list[int] = []
    pipe.text_encoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    pipe.enable_text_cache()
    np.testing.assert_array_equal(run(pipe), plain[0])
    assert seen == [1, 1]  # the prompt and the null prompt
    np.testing.assert_array_equal(run(pipe), plain[0])
    np.testing.assert_array_equal(run(pipe, "a crying cat"), plain[1])
    assert seen == [1, 1, 1]
    run(pipe, ["rocket"] * 3, generator=None)
    assert seen == [1, 1, 1]


def test_null_prompt_is_for_guidance_alone(pipe: ContentMotionPipeline) -> None:
    seen: list[int] = []
    pipe.text_encoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    run(pipe, guidance_scale=1.0)
    assert seen == [1]
    run(pipe, guidance_scale=1.0, motion_guidance_scale=2.0)
    assert seen == [1, 1, 1]


def test_old_prompts_are_forgotten(pipe: ContentMotionPipeline) -> None:
    known = TextFeatures(capacity=2)
    for prompts in (["a", "b"], ["b", "c"]):
        features = known.encode(pipe.stages["content"].text_features, prompts)
        expected = encode_prompts(pipe.tokenizer, pipe.text_encoder, prompts)
        torch.testing.assert_close((features["tokens"], features["pooled"]), expected)
    assert list(known._known) == ["b", "c"]


def test_guidance_is_one_batch(pipe: ContentMotionPipeline) -> None:
    seen: list[int] = []
    for network in (pipe.unet, pipe.motion_transformer):
        network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    run(pipe, guidance_scale=4.0, motion_guidance_scale=2.0)
    assert seen == [2, 2, 2, 2]


def test_frames_alone(pipe: ContentMotionPipeline) -> None:
    """Bit for bit; without a VAE there is nothing to decode, with one the content frame is left out."""
    use_vae_of_pixels(pipe)
    seen: list[int] = []
    decode = pipe.vae.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    whole = run(pipe)
    alone = pipe(
        "rocket", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0),
        decode_content_frame=False,
    )  # fmt: skip
    decode.remove()
    assert seen == [5, 4]
    assert alone.content_frame is None
    np.testing.assert_allclose(alone.frames, whole, atol=1e-6)


def use_vae_of_pixels(pipe: ContentMotionPipeline, cls: type = AutoencoderKL) -> None:
    """Gives the pipeline, which draws 3 channels, a VAE of 3-channel latents."""
    pipe.register_modules(vae=small_vae(cls))


def test_channels_last(pipe: ContentMotionPipeline) -> None:
    use_vae_of_pixels(pipe)
    plain = run(pipe)
    use_channels_last(pipe)
    weight = pipe.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    np.testing.assert_allclose(run(pipe), plain, atol=1e-4)


def test_half_precision_weights_sample_in_float32(pipe: ContentMotionPipeline, tiny_pipeline_dir: Path) -> None:
    """bf16 networks, float32 latents: within the error of one rounding per pass."""
    seen: list[torch.dtype] = []

    def callback(pipe: object, step: int, timestep: object, tensors: dict) -> dict:
        seen.append(tensors["latents"].dtype)
        return tensors

    half = load_pipeline(str(tiny_pipeline_dir), dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    difference = run(half, callback_on_step_end=callback) - run(pipe)
    assert set(seen) == {torch.float32}
    assert np.sqrt((difference**2).mean()) < 0.02


def test_another_image_decoder(pipe: ContentMotionPipeline) -> None:
    use_vae_of_pixels(pipe)
    tiny = small_vae(AutoencoderTiny)
    use_vae(pipe, tiny)
    latents = run(pipe, output_type="latent")
    decoded = run(pipe, output_type="pt")
    expected = tiny.decode(latents[0]).sample.clamp(-1, 1) / 2 + 0.5
    torch.testing.assert_close(decoded[0], expected)
    with pytest.raises(ValueError, match="takes latents of 4 channels, 8x smaller .* this model's have 3"):
        use_vae(pipe, AutoencoderTiny())


def test_slices_and_tiles(pipe: ContentMotionPipeline) -> None:
    """Slices within rounding; one tile is the whole frame, more of them differ at the seams alone."""
    use_vae_of_pixels(pipe)
    plain = run(pipe)
    pipe.enable_vae_slicing()
    np.testing.assert_allclose(run(pipe), plain, atol=1e-5)
    enable_tiling(pipe)
    pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 64, 128
    np.testing.assert_allclose(run(pipe), plain, atol=1e-5)
    pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 8, 16
    tiled = run(pipe)
    assert tiled.shape == plain.shape and 0 < np.abs(tiled - plain).mean() < 0.1


def test_tiling_needs_a_vae_that_knows_how(pipe: ContentMotionPipeline) -> None:
    with pytest.raises(ValueError, match="decodes whole frames only"):
        enable_tiling(pipe)


@pytest.mark.slow
def test_compiled_networks_are_wired_in(pipe: ContentMotionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced by torch.compile, run by its eager backend: bit for bit, and names in checkpoints stay."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **kw: compiled(model, backend="eager", dynamic=kw["dynamic"]))
    plain, keys = run(pipe), list(pipe.unet.state_dict())
    compile_networks(pipe, CPU)
    np.testing.assert_allclose(run(pipe), plain, atol=1e-5)
    assert list(pipe.unet.state_dict()) == keys
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # of torch's own imports
def test_compiled_code_agrees(pipe: ContentMotionPipeline) -> None:
    plain = run(pipe)
    compile_networks(pipe, CPU)
    np.testing.assert_allclose(run(pipe), plain, atol=1e-3)
    torch.compiler.reset()


def test_calls_that_are_recorded_once_and_replayed() -> None:
    """With a recorder that, as a CUDA graph does, works in the places of the first call alone."""
    made = []

    def record(call: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        output = call()
        made.append(output)

        def replay() -> None:
            again = call()
            output["sum"].copy_(again["sum"])

        return replay, output

    def call(x: torch.Tensor, other: torch.Tensor, factor: float = 1.0) -> dict[str, torch.Tensor]:
        return {"sum": x + factor * other}

    replayed = Replayed(call, record)
    given = [(torch.full((2,), float(k)), torch.tensor(10.0 * k)) for k in range(1, 4)]
    outputs = [replayed(*pair)["sum"] for pair in given] + [replayed(given[0][0], other=given[1][1])["sum"]]
    assert [output.tolist() for output in outputs] == [[11, 11], [22, 22], [33, 33], [21, 21]]
    assert replayed(torch.ones(3), torch.tensor(1.0))["sum"].shape == (3,)
    assert replayed(*given[0], factor=2.0)["sum"].tolist() == [21, 21]
    assert len(made) == 4  # by keyword, shape and factor


def test_graphs_are_cudas_own(pipe: ContentMotionPipeline) -> None:
    with pytest.raises(ValueError, match="cuda_graphs needs a CUDA GPU, and this run is on cpu"):
        replay_networks(pipe, torch.device("cpu"))


def test_attention_over_many_sequences_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    attention, x = layers.Attention(8, 2), torch.randn(7, 3, 8)
    with torch.no_grad():
        whole = attention(x)
        monkeypatch.setattr(layers, "MAX_SEQUENCES", 3)
        torch.testing.assert_close(attention(x), whole)
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda q, k, v: q[:3])
        assert len(attention(torch.randn(6, 3, 8))) == 6, "no more at a time than that"


def test_quantised_weights(pipe: ContentMotionPipeline) -> None:
    """8 bits a weight: within 0.03 of full precision on average."""
    pytest.importorskip("torchao")
    plain = run(pipe)
    quantize_networks(pipe, "none")
    np.testing.assert_array_equal(run(pipe), plain)
    quantize_networks(pipe, "int8")
    difference = np.abs(run(pipe) - plain).mean()
    assert 0 < difference < 0.03


def test_windows_of_the_decoder() -> None:
    """The same weights: every block over everything where a window is the whole grid; cheaper where it is not."""
    tokens = torch.arange(2 * 24).view(2, 24, 1).float()
    windows = cut_windows(tokens, 4, 6, 2)
    assert windows.shape == (12, 4, 1)
    assert windows[0].flatten().tolist() == [0, 1, 6, 7]
    torch.testing.assert_close(join_windows(windows, 4, 6, 2), tokens)

    def make(window: int) -> ContentMotionAutoencoder:
        return make_autoencoder(depth=3, residual_decoding=False, attention_window=window)

    content, motion = torch.randn(1, 3, 16, 16), torch.randn(1, 2, 2, 16)
    everything, one, four = (make(window).decode(content, motion) for window in (0, 8, 4))
    torch.testing.assert_close(one, everything)
    assert (four - everything).abs().max() > 1e-4
    # 5 does not divide the grid of 8: all of it.
    torch.testing.assert_close(make(5).decode(content, motion), everything)
    costs = []
    for window in (0, 4):
        model = make(window).to("meta")
        costs.append(count_cost(lambda m=model: m.decode(content.to("meta"), motion.to("meta"))))
    assert costs[0].layers == costs[1].layers
    space = 2 * 2 * 2 * 64 * 64 * 8  # frames, heads, products, tokens squared, channels a head
    assert costs[0].attention - costs[1].attention == 2 * space * 3 // 4  # two of three blocks, a quarter each


def test_switches_of_the_command(tiny_pipeline_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "rocket", f"--pretrained_model_name_or_path={tiny_pipeline_dir}", "--num_inference_steps=2"]
    words += [f"--output_dir={tmp_path / 'out'}", "--device=cpu", "--mixed_precision=no"]
    assert main([*words, "--vae_slicing"]) == 0
    assert main([*words, "--vae_tiling"]) == 1
    assert "vae_tiling: NoneType decodes whole frames only" in capsys.readouterr().err
    build("vae-tiny", CPU).save_pretrained(tmp_path / "taesd")  # type: ignore[operator]
    assert main([*words, f"--vae_decoder={tmp_path / 'taesd'}"]) == 1
    assert "takes latents of 4 channels" in capsys.readouterr().err
    assert main([*words, "--vae_decoder=./nowhere"]) == 1
    assert "--vae_decoder: no such checkpoint: ./nowhere" in capsys.readouterr().err


def test_channels_last_of_a_video_unet() -> None:
    """Its convolutions in time have five axes and stay as they are."""
    unet = make_video_unet(cross_attention_dim=16, sample_size=(8, 8), num_frames=2)
    x, text = torch.randn(1, 3, 2, 8, 8), torch.randn(1, 5, 16)
    with torch.no_grad():
        plain = unet(x, 500, encoder_hidden_states=text).sample
        use_channels_last(SimpleNamespace(unet=unet, vae=None))
        assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(unet(x, 500, encoder_hidden_states=text).sample, plain, atol=1e-5, rtol=1e-4)
