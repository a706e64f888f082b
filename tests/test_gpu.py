"""What only a GPU can show: `pytest -m gpu`; it fails, rather than skips, where there is none."""

import numpy as np
import pytest
import torch

from contentmotion.pipelines.loading import load_pipeline

pytestmark = pytest.mark.gpu


def test_shipped_model_agrees_with_the_cpu_and_with_offload() -> None:
    assert torch.cuda.is_available(), "these tests need a GPU"

    def run(prepare: str) -> np.ndarray:
        pipe = load_pipeline("emoji")
        pipe.set_progress_bar_config(disable=True)
        if prepare == "offload":
            pipe.enable_model_cpu_offload()
        else:
            pipe.to(prepare)
        generator = torch.Generator().manual_seed(0)
        return pipe("rocket", num_inference_steps=10, generator=generator, output_type="np").frames

    on_cpu = run("cpu")
    np.testing.assert_allclose(run("cuda"), on_cpu, atol=0.02)
    np.testing.assert_allclose(run("offload"), on_cpu, atol=0.02)
