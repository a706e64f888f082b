"""The nodes of comfyui/ by ComfyUI's contract, which they are tested against without it."""

import inspect
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

from contentmotion.pipelines.loading import load_pipeline

WIDGETS = {"STRING": str, "INT": int, "FLOAT": float, "BOOLEAN": bool}


@pytest.fixture(scope="module")
def nodes() -> dict[str, Any]:
    """As ComfyUI finds them: the module of a folder in ``custom_nodes``."""
    spec = spec_from_file_location("custom_nodes.contentmotion", Path(__file__).parents[1] / "comfyui/__init__.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS.keys() == module.NODE_DISPLAY_NAME_MAPPINGS.keys()
    return module.NODE_CLASS_MAPPINGS


def test_contract(nodes: dict[str, Any]) -> None:
    """Inputs and outputs are declared as ComfyUI reads them, and are the function's own."""
    made = {kind for node in nodes.values() for kind in node.RETURN_TYPES}
    for node in nodes.values():
        inputs = node.INPUT_TYPES()
        assert inputs.keys() <= {"required", "optional", "hidden"}
        parameters = list(inspect.signature(getattr(node, node.FUNCTION)).parameters.values())[1:]
        assert [one.name for one in parameters] == [name for part in inputs.values() for name in part]
        for one in parameters:
            kind, *more = (inputs.get("optional", {}) | inputs["required"])[one.name]
            kind = "a list of words" if isinstance(kind, list) else kind
            assert kind in {*WIDGETS, *made, "a list of words"}, (one.name, kind)
            if kind in WIDGETS:
                assert isinstance(more[0]["default"], WIDGETS[kind])
            if one.name in inputs.get("optional", {}):
                assert one.default is not one.empty
        assert isinstance(node.RETURN_TYPES, tuple) and len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        assert isinstance(node.CATEGORY, str)


def run(node: Any, **inputs: Any) -> tuple:
    outputs = getattr(node(), node.FUNCTION)(**inputs)
    assert len(outputs) == len(node.RETURN_TYPES)
    for kind, value in zip(node.RETURN_TYPES, outputs, strict=True):
        if kind == "IMAGE":  # (n, h, w, 3) in [0, 1]
            assert value.dtype == torch.float32 and value.shape[-1] == 3 and value.ndim == 4
            assert value.min() >= 0 and value.max() <= 1
    return outputs


def test_from_a_prompt_to_a_video_apart_and_together_again(nodes: dict[str, Any], tiny_pipeline_dir: Path) -> None:
    [model] = run(nodes["ContentMotionLoad"], name=str(tiny_pipeline_dir), precision="float32")
    model.set_progress_bar_config(disable=True)
    frames, picture, _ = run(nodes["ContentMotionGenerate"], model=model, prompt="rocket", seed=3, steps=2)
    pipe = load_pipeline(str(tiny_pipeline_dir))
    pipe.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(3)
    expected: Any = pipe("rocket", num_inference_steps=2, generator=seed, output_type="pt")
    torch.testing.assert_close(frames, expected.frames[0].movedim(1, -1))
    torch.testing.assert_close(picture, expected.content_frame.movedim(1, -1))

    still, content, motion = run(nodes["ContentMotionDecompose"], model=model, frames=frames)
    [again] = run(nodes["ContentMotionRecombine"], model=model, content=content, motion=motion)
    rounded = (frames * 255).round() / 255  # as a video's frames are kept
    encoded = pipe.encode_video(rounded.movedim(-1, 1)[None] * 2 - 1)
    torch.testing.assert_close(again, (pipe.decode(*encoded)[0] / 2 + 0.5).clamp(0, 1).movedim(1, -1))
    assert still.shape == picture.shape
    animated, _, _ = run(
        nodes["ContentMotionGenerate"], model=model, prompt="rocket", seed=3, steps=1, image=picture, num_frames=2
    )
    assert len(animated) == 2
