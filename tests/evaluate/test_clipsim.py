"""CLIPSIM on a tiny CLIP saved to disk, against what transformers gives for it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTextModel, CLIPTokenizer

from contentmotion.evaluate.clipsim import ClipScorer, clip_similarity, load_clip

PROMPTS = ["a crying cat", "rocket", "a moving square " * 40]
SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer().train_new_from_iterator([PROMPTS], vocab_size=300)
    tokenizer.model_max_length = 77
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=shape | text, vision_config=shape | {"image_size": SIZE, "patch_size": 8}, projection_dim=16
    )
    model = CLIPModel(config)
    for parameter in model.parameters():  # a fresh CLIP sees hardly any difference between pictures
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    crop = {"height": SIZE, "width": SIZE}
    CLIPProcessor(CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=crop), tokenizer).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def clip(folder: Path) -> ClipScorer:
    return load_clip(folder)


def smooth_videos(height: int, width: int) -> np.ndarray:
    """Three videos of blurred noise, uint8 (3, 4, height, width, 3)."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 6, 7, 3), np.uint8)
    frames = [np.asarray(Image.fromarray(x).resize((width, height), Image.Resampling.BICUBIC)) for x in noise]
    return np.stack(frames).reshape(3, 4, height, width, 3)


def expected_cosines(folder: Path, videos: np.ndarray, prompts: list[str]) -> list[float]:
    """By transformers alone, picture by picture through the processor."""
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    means = []
    for video, prompt in zip(videos, prompts, strict=True):
        images = [Image.fromarray(frame) for frame in video]
        inputs = processor(text=[prompt], images=images, return_tensors="pt", truncation=True, max_length=77)
        with torch.inference_mode():
            logits = model(**inputs).logits_per_image / model.logit_scale.exp()
        means.append(logits.mean().item())
    return means


def test_frames_of_clips_size_give_transformers_logits(clip: ClipScorer, folder: Path) -> None:
    videos = smooth_videos(SIZE, SIZE)
    expected = expected_cosines(folder, videos, PROMPTS)
    scores = clip_similarity(clip, videos, PROMPTS, batch_size=5)
    assert scores.dtype == torch.float64
    assert scores.tolist() == pytest.approx(expected, abs=1e-6)
    assert np.ptp(expected) > 1e-2


@pytest.mark.parametrize("size", [(70, 90), (90, 51), (20, 28)])
def test_resizing_is_the_processors(clip: ClipScorer, folder: Path, size: tuple[int, int]) -> None:
    videos = smooth_videos(*size)
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    expected = processor([Image.fromarray(frame) for frame in videos[0]], return_tensors="pt")["pixel_values"]
    x = clip.preprocess(torch.from_numpy(videos[0]))
    assert x.shape == expected.shape
    # Pillow's weights are rounded: a pixel in a thousand is one grey level off (1 / 255 / 0.26, normalised).
    difference = (x - expected).abs()
    assert difference.max() < 1.05 / 255 / 0.26
    assert (difference > 1e-4).float().mean() < 1e-2
    scores = clip_similarity(clip, videos, PROMPTS)
    assert scores.tolist() == pytest.approx(expected_cosines(folder, videos, PROMPTS), abs=1e-4)


def test_the_batch_size_changes_nothing(clip: ClipScorer) -> None:
    videos = smooth_videos(40, 40)
    torch.testing.assert_close(
        clip_similarity(clip, videos, PROMPTS, batch_size=1), clip_similarity(clip, videos, PROMPTS), atol=1e-6, rtol=0
    )
    assert clip_similarity(clip, videos[:0], []).shape == (0,)


def test_long_prompts_are_cut(clip: ClipScorer) -> None:
    assert clip.max_tokens == 77
    same = clip.embed_prompts(["a cat " * 100, "a cat " * 200])
    torch.testing.assert_close(same[0], same[1])


def test_wrong_videos_are_refused(clip: ClipScorer) -> None:
    with pytest.raises(ValueError, match="3 videos and 1 prompts"):
        clip_similarity(clip, smooth_videos(8, 8), ["one"])
    with pytest.raises(ValueError, match="videos must be uint8"):
        clip_similarity(clip, smooth_videos(8, 8)[0], ["one"])


def test_wrong_models_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none: no CLIP model found") as caught:
        load_clip(tmp_path / "none")
    assert "\n" not in str(caught.value)
    with pytest.raises(OSError, match="nobody/nothing: no CLIP model found"):
        load_clip("nobody/nothing")
    CLIPTextModel(CLIPModel.from_pretrained(folder).config.text_config).save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match=r"text: not a CLIP model \(it is of type 'clip_text_model'\)"):
        load_clip(tmp_path / "text")


def copied(folder: Path, target: Path, *names: str) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        if path.name not in names:
            (target / path.name).write_bytes(path.read_bytes())
    return target


def test_incomplete_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no CLIP model found"):
        load_clip(copied(folder, tmp_path / "weightless", "model.safetensors"))
    with pytest.raises(OSError, match="no CLIP model found"):
        load_clip(copied(folder, tmp_path / "unprocessed", "processor_config.json"))
    other = copied(folder, tmp_path / "other", "processor_config.json")
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["image_processor"]["do_center_crop"] = False
    (other / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="works unlike CLIP's"):
        load_clip(other)


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    pickled = copied(folder, tmp_path / "pickled", "model.safetensors")
    torch.save(CLIPModel.from_pretrained(folder).state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(OSError, match="no CLIP model found"):
        load_clip(pickled)
