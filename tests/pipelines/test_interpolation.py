"""Between two ends, in the pipeline."""

import math

import pytest
import torch

from contentmotion.pipelines.interpolation import MotionBetween, PromptBetween, features_between
from tiny import make_pipeline


def test_motions_between_those_of_two_videos() -> None:
    pipe = make_pipeline(std=0.5)
    videos = torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    shares = torch.tensor([0.0, 0.5, 1.0])

    def make(motion, count: int):
        generators = [torch.Generator().manual_seed(0) for _ in range(count)]
        return pipe(
            "rocket", num_videos_per_prompt=count, motion_video=motion, generator=generators, num_inference_steps=2,
            output_type="latent",
        )  # fmt: skip

    made = make(MotionBetween(*videos, shares), 3)
    for place, video in ((0, videos[0]), (2, videos[1])):
        torch.testing.assert_close(made.frames[place], make(video, 1).frames[0], atol=1e-5, rtol=1e-4)
    _, (first, second) = pipe.encode_video(videos * 2 - 1)
    angle = math.acos(float((first * second).sum() / (first.norm() * second.norm())))
    middle = (first + second) * math.sin(angle / 2) / math.sin(angle)
    expected = pipe.autoencoder.decode(made.content_latents[1:2], middle[None])
    torch.testing.assert_close(made.frames[1:2], expected, atol=1e-5, rtol=1e-4)
    assert (made.frames[1] - made.frames[0]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="shares of motion_video: 2 for 3 videos"):
        make(MotionBetween(*videos, shares[:2]), 3)


def test_features_of_prompts_between_two() -> None:
    known = {"a": [2.0, 0.0], "b": [0.0, 2.0]}

    def encode(texts):
        return {
            "tokens": torch.tensor([known[t] for t in texts]),
            "tokens_mask": torch.tensor([[t == "b"] for t in texts]),
        }

    found = features_between(encode, [PromptBetween("a", "b", 1 / 3), "a"])
    assert torch.allclose(found["tokens"], torch.tensor([[3**0.5, 1.0], [2.0, 0.0]]))
    assert found["tokens_mask"].tolist() == [[True], [False]]
