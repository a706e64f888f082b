"""What stages make of batches: clean samples, null conditions, noise on content frames, schedules of new models."""

from typing import Any

import pytest
import torch
from torch import Tensor

from contentmotion.stages.content.dit import DiTContent
from contentmotion.stages.content.stable_diffusion import StableDiffusionContent
from contentmotion.stages.motion import MotionStage
from contentmotion.stages.stage import make_scheduler
from tiny import make_autoencoder, make_content_dit, make_ddim, make_image_unet, make_motion_dit, make_text

CAPTIONS = ["a crying cat", "rocket", "a moving square"]


def features(components: dict[str, Any], texts: list[str]) -> tuple[Tensor, Tensor]:
    tokens = components["tokenizer"](texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        encoded = components["text_encoder"](tokens)
    return encoded.last_hidden_state, encoded.pooler_output


def make_motion_stage(content_noise: float = 0.0, **changes: Any) -> MotionStage:
    tokenizer, text_encoder = make_text()
    components = {
        "tokenizer": tokenizer, "text_encoder": text_encoder, "motion_transformer": make_motion_dit(text_dim=32),
        "motion_scheduler": make_ddim("linear"),
        "autoencoder": make_autoencoder(motion_mean=[3.0, -2.0], motion_std=[0.5, 4.0]),
    }  # fmt: skip
    return MotionStage(components | changes, content_noise)


def make_batch(items: int = 3) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "caption": (CAPTIONS * items)[:items], "label": torch.arange(items) % 3, "generator": generator,
        "content": torch.randn(items, 3, 16, 16, generator=generator), "motion": torch.randn(items, 2, 4, 16),
    }  # fmt: skip


@pytest.mark.parametrize("own", [False, True])
def test_clean_motion_is_standardised(own: bool) -> None:
    """By the motion model's statistics; by the autoencoder's where it has none."""
    changes = {"motion_transformer": make_motion_dit(text_dim=32, motion_mean=[-1.0, 0.5], motion_std=[2.0, 3.0])}
    stage, batch = make_motion_stage(**changes if own else {}), make_batch()
    mean, std = ((-1.0, 0.5), (2.0, 3.0)) if own else ((3.0, -2.0), (0.5, 4.0))
    by_hand = torch.stack([(batch["motion"][:, k] - mean[k]) / std[k] for k in range(2)], dim=1)
    torch.testing.assert_close(stage.clean_sample(batch), by_hand)
    torch.testing.assert_close(stage.standardize(by_hand, inverse=True), batch["motion"])


@pytest.mark.parametrize("encoded", [False, True])
def test_dropped_texts_are_the_null_prompt(encoded: bool) -> None:
    """Of captions, and of features that a cache has."""
    motion = make_motion_stage()
    parts = {name: motion.components[name] for name in ("tokenizer", "text_encoder")}
    content = StableDiffusionContent(parts | {"vae": None, "unet": make_image_unet(), "scheduler": make_ddim()})
    tokens, pooled = features(motion.components, CAPTIONS)
    null_tokens, null_pooled = features(motion.components, [""])
    batch = make_batch() | ({"tokens": tokens, "pooled": pooled} if encoded else {})
    dropped = torch.tensor([False, True, False])
    wanted = torch.stack([tokens[0], null_tokens[0], tokens[2]])
    torch.testing.assert_close(content.encode(batch, dropped)["encoder_hidden_states"], wanted)
    torch.testing.assert_close(content.encode(batch)["encoder_hidden_states"], tokens)
    wanted = torch.stack([pooled[0], null_pooled[0], pooled[2]])
    torch.testing.assert_close(motion.encode(batch, dropped)["pooled_text"], wanted)
    torch.testing.assert_close(motion.encode(batch)["pooled_text"], pooled)


def test_dropped_labels_are_the_null_class() -> None:
    batch, dropped = make_batch(), torch.tensor([True, False, True])
    content = DiTContent({"vae": None, "unet": make_content_dit(), "scheduler": make_ddim("linear")})
    transformer = make_motion_dit(num_classes=3)
    motion = make_motion_stage(motion_transformer=transformer, text_encoder=None, tokenizer=None)
    for stage in (content, motion):
        assert stage.encode(batch, dropped)["class_labels"].tolist() == [3, 1, 3]
        assert stage.encode(batch)["class_labels"].tolist() == [0, 1, 2]


def test_a_dit_drops_no_labels_by_itself() -> None:
    """In training mode diffusers' blocks would: 95 of 100 items lose their class in some block of 28."""
    stage = DiTContent({"vae": None, "unet": make_content_dit(0.2, num_layers=4), "scheduler": make_ddim("linear")})
    x, t = torch.randn(64, 3, 16, 16), torch.full((64,), 500)
    with torch.no_grad():
        evaluated = stage.eval()(x, t, {"class_labels": torch.ones(64, dtype=torch.long)})
        trained = stage.train()(x, t, {"class_labels": torch.ones(64, dtype=torch.long)})
    torch.testing.assert_close(trained, evaluated)


@pytest.mark.parametrize("strength", [0.0, 0.25])
def test_content_frames_get_noise_in_training(strength: float) -> None:
    stage, batch = make_motion_stage(strength), make_batch(16)
    batch["content"] *= torch.tensor([3.0, 0.3, 30.0]).view(1, 3, 1, 1)
    added = stage.encode(stage.prepare(batch))["content"] - batch["content"]
    for channel, deviation in enumerate((3, 0.3, 30)):
        assert added[:, channel].std().item() == pytest.approx(strength * deviation, rel=0.1)
    if strength:
        assert torch.corrcoef(torch.stack([added[0].flatten(), added[1].flatten()]))[0, 1].abs() < 0.2
        assert torch.corrcoef(torch.stack([added.flatten(), batch["content"].flatten()]))[0, 1].abs() < 0.05


def test_new_schedules() -> None:
    """Lin et al. 2024: but for the noise's prediction, they end in noise alone; Stable Diffusion's and DiT's betas."""
    for beta_schedule, first, last in (("scaled_linear", 0.00085, 0.012), ("linear", 0.0001, 0.02)):
        power = 0.5 if beta_schedule == "scaled_linear" else 1.0
        betas = torch.linspace(first**power, last**power, 1000, dtype=torch.float64) ** (1 / power)
        plain = (1 - betas).cumprod(0)
        epsilon = make_scheduler(beta_schedule, "epsilon")
        torch.testing.assert_close(epsilon.alphas_cumprod.double(), plain, atol=1e-5, rtol=1e-4)
        root = plain.sqrt()
        rescaled = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        for kind in (None, "v_prediction", "sample"):
            scheduler = make_scheduler(beta_schedule, kind)
            torch.testing.assert_close(scheduler.alphas_cumprod.double(), rescaled, atol=1e-5, rtol=1e-4)
            assert scheduler.alphas_cumprod[-1] < 1e-6
            assert scheduler.config.prediction_type == (kind or "v_prediction")
            scheduler.set_timesteps(4)
            assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
