"""Families of image models against their stock pipelines: network call, text, latents, what a folder must have."""

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from contentmotion.diffusion import NoiseSchedule
from contentmotion.loading import training_scheduler
from contentmotion.stages.content import content_stage, load_content, load_text
from contentmotion.stages.content.transformer import TransformerContent
from contentmotion.stages.image_vae import decode_frames, encode_frames, vae_latent_channels, vae_scale_factor
from contentmotion.stages.motion import MotionStage
from families import FAMILIES, PROMPTS, save_families

# Of diffusers' solver for flows, with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")
GUIDANCE = {"z_image": 0.0}  # what is no guidance; 1 in the others
LATENTS = {"stable_diffusion_3": (16, 2), "sana": (8, 16), "flux2_klein": (16, 4), "z_image": (16, 2)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_families(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    return {name: make() for name, make in FAMILIES.items()}


def flatten(value: Any) -> list[Tensor]:
    """The tensors of an argument, lists taken apart."""
    return [value] if isinstance(value, Tensor) else [one for part in value for one in flatten(part)]


@pytest.mark.parametrize("name", FAMILIES)
def test_network_call_is_the_stock_pipelines(name: str, pipes: dict[str, Any]) -> None:
    """At each step of a stock call the same goes into the transformer, and the same velocity to the scheduler."""
    pipe, stage = pipes[name], content_stage(pipes[name].components)
    calls: list[dict[str, Any]] = []
    steps: list[tuple[Tensor, Tensor, Tensor]] = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(named.bind(*args, **kwargs).arguments), with_kwargs=True
    )
    step, named = pipe.scheduler.step, inspect.signature(pipe.transformer.forward)

    def record(output: Tensor, time: Tensor, sample: Tensor, **others: Any) -> Any:
        steps.append((output, time, sample))
        return step(output, time, sample, **others)

    pipe.scheduler.step = record
    channels, factor = LATENTS[name]
    size = {"height": 4 * factor, "width": 8 * factor}
    try:
        pipe(
            prompt=list(PROMPTS), num_inference_steps=2, guidance_scale=GUIDANCE.get(name, 1.0), output_type="latent",
            **size, **stage.stock_arguments, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        stock = list(calls)
        condition = stage.encode({"caption": PROMPTS})
        for stock_call, (velocity, time, sample) in zip(stock, steps, strict=True):
            if sample.dim() == 3:  # FLUX.2's tokens
                velocity, sample = (x.transpose(1, 2).unflatten(2, (4, 8)) for x in (velocity, sample))
            assert sample.shape == (2, channels, 4, 8)
            with torch.no_grad():
                prediction = stage(sample, time, condition)
            torch.testing.assert_close(prediction, velocity, atol=1e-5, rtol=1e-4)
            for key, value in calls[-1].items():
                if value is not None and not isinstance(value, (bool, dict)):
                    for ours, theirs in zip(flatten(value), flatten(stock_call[key]), strict=True):
                        torch.testing.assert_close(ours.float(), theirs.float(), atol=1e-5, rtol=1e-4)
    finally:
        hook.remove()
        pipe.scheduler.step = step
    assert stage.schedule.is_flow


@pytest.mark.parametrize("name", FAMILIES)
def test_text_of_a_batch(name: str, pipes: dict[str, Any]) -> None:
    """Dropped captions are the null prompt, computed or from a cache; the motion model hears the pooled feature."""
    stage = content_stage(pipes[name].components)
    dropped = torch.tensor([True, False])
    with torch.no_grad():
        features = stage.text_features(PROMPTS)
        expected = stage.encode(stage.text_features(["", PROMPTS[1]]))
        for batch in ({"caption": PROMPTS}, features):
            for key, value in stage.encode(batch, dropped).items():
                torch.testing.assert_close(value, expected[key], atol=1e-5, rtol=1e-4)
    assert features["pooled"].shape == (2, stage.pooled_width)
    motion = MotionStage(stage.components | {"motion_transformer": None, "autoencoder": None})
    batch = {"caption": PROMPTS, "content": torch.zeros(1)}
    torch.testing.assert_close(motion.encode(batch)["pooled_text"], features["pooled"], atol=1e-5, rtol=1e-4)
    if "tokens_mask" in features:
        kept = features["tokens"][1][features["tokens_mask"][1].bool()]
        assert 1 < len(kept) < stage.max_tokens  # type: ignore[reportAttributeAccessIssue]
        torch.testing.assert_close(features["pooled"][1], kept.mean(dim=0), atol=1e-5, rtol=1e-4)
    assert stage.cut_words("a moving square") == "" and stage.cut_words("a moving square " * 60).strip()


@pytest.mark.parametrize("name", FAMILIES)
def test_null_text_is_the_stock_pipelines(name: str, pipes: dict[str, Any]) -> None:
    """Guided, a stock pipeline asks the null prompt, of SANA without the instruction."""
    pipe, stage = pipes[name], content_stage(pipes[name].components)
    calls: list[list[Tensor]] = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(
            flatten(args[2] if len(args) > 2 else kwargs["encoder_hidden_states"])
        ),
        with_kwargs=True,
    )
    factor = LATENTS[name][1]
    pipe(
        prompt=PROMPTS[0], num_inference_steps=1, guidance_scale=3.0, output_type="latent", height=4 * factor,
        width=4 * factor, **stage.stock_arguments,
    )  # fmt: skip
    hook.remove()
    told = [one for call in calls for value in call for one in (value if value.dim() == 3 else [value])]
    with torch.no_grad():
        ours = stage.text_features([PROMPTS[0], ""])
    masks = ours.get("tokens_mask") if name == "z_image" else None
    pair = [tokens if masks is None else tokens[masks[i].bool()] for i, tokens in enumerate(ours["tokens"])]
    order = pair if name in ("flux2_klein", "z_image") else pair[::-1]  # prompt first, or null first
    for stock, own in zip(told, order, strict=True):
        torch.testing.assert_close(own, stock, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_latents_are_the_stock_pipelines(name: str, pipes: dict[str, Any]) -> None:
    """What a stock call gives its VAE to decode, and the picture; encoding gives latents that decode to the same."""
    pipe, stage = pipes[name], content_stage(pipes[name].components)
    vae, (channels, factor) = pipe.vae, LATENTS[name]
    assert (vae_latent_channels(vae), vae_scale_factor(vae)) == (channels, factor)
    decoded: list[Tensor] = []
    decode = vae.decode
    vae.decode = lambda z, **others: decoded.append(z) or decode(z, **others)
    settings = {
        "num_inference_steps": 1, "guidance_scale": GUIDANCE.get(name, 1.0), "height": 4 * factor,
        "width": 8 * factor, **stage.stock_arguments,
    }  # fmt: skip
    try:
        latents, picture = (
            pipe(prompt=PROMPTS[0], **settings, output_type=kind, generator=torch.Generator().manual_seed(0)).images
            for kind in ("latent", "pt")
        )
        content = stage.from_stock(latents)  # type: ignore[reportAttributeAccessIssue]
        frames = decode_frames(vae, content[:, None])[:, 0]
        torch.testing.assert_close(decoded[1], decoded[0], atol=1e-5, rtol=1e-4)
    finally:
        vae.decode = decode
    torch.testing.assert_close((frames / 2 + 0.5).clamp(0, 1), picture, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        pixels = torch.rand(1, 1, 3, 4 * factor, 8 * factor) * 2 - 1
        encoded = encode_frames(vae, pixels)
        raw = vae.encode(pixels[0])
        raw = raw.latent_dist.mode() if hasattr(raw, "latent_dist") else raw.latent
        torch.testing.assert_close(
            decode_frames(vae, encoded)[0], decode(raw).sample.clamp(-1, 1), atol=1e-5, rtol=1e-4
        )
    assert encoded.shape == (1, 1, channels, 4, 8)


def test_schedules_of_flows() -> None:
    """SANA's solver is of a flow, whatever DDPM's table it also has, and calls its shift flow_shift."""
    solver = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    schedule = NoiseSchedule.of(solver)
    assert schedule.is_flow and schedule.shift == 3.0
    euler = training_scheduler(solver.config)
    assert isinstance(euler, FlowMatchEulerDiscreteScheduler) and euler.config.shift == 3.0
    assert NoiseSchedule.of(FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)).shift == 1.0


@pytest.mark.parametrize("name", FAMILIES)
def test_folders_load_strictly(name: str, folders: dict[str, Path], pipes: dict[str, Any], tmp_path: Path) -> None:
    stage = load_content(str(folders[name]))
    assert isinstance(stage, TransformerContent)
    for part in ("transformer", "vae", "text_encoder"):
        ours, theirs = stage.components[part].state_dict(), getattr(pipes[name], part).state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert type(stage.scheduler) is type(pipes[name].scheduler)
    with torch.no_grad():
        text = load_text(str(folders[name])).text_features(PROMPTS)
        torch.testing.assert_close(text["pooled"], stage.text_features(PROMPTS)["pooled"])
    broken = shutil.copytree(folders[name], tmp_path / name)
    index = json.loads((broken / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "Mistral3ForConditionalGeneration"]
    (broken / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="its text_encoder is a Mistral3ForConditionalGeneration"):
        load_content(str(broken))
    (broken / "model_index.json").unlink()
    with pytest.raises(ValueError, match="cannot load a folder of"):
        load_content(str(broken))


def test_stable_diffusion_3_without_t5(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["stable_diffusion_3"], tmp_path / "small")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    stage = load_content(str(folder))
    with torch.no_grad():
        features = stage.text_features(PROMPTS)
    assert features["tokens"].shape == (2, 77 + 256, 64) and not features["tokens"][:, 77:].any()
    with pytest.raises(ValueError, match="without T5"):
        load_text(str(folder)).text_features(PROMPTS)
