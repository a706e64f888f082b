import dataclasses
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file

from contentmotion.conditioning import make_text_encoder
from contentmotion.config import EvaluateConfig
from contentmotion.data.formats import read_clip_folder
from contentmotion.evaluate.fvd import FrechetStatistics, frechet_distance
from contentmotion.evaluate.i3d import InceptionI3d, i3d_features, load_i3d
from contentmotion.evaluate.parts import Clips, Renderer
from contentmotion.evaluate.reconstruction import psnr
from contentmotion.evaluate.run import evaluate
from contentmotion.evaluate.store import PartStore
from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.models.motion_dit import MotionDiT
from contentmotion.pipeline import ContentMotionPipeline

FRAMES, HEIGHT, WIDTH = 10, 24, 32


def make_pipeline(vae: AutoencoderKL | None = None) -> ContentMotionPipeline:
    """A whole pipeline with random weights."""
    torch.manual_seed(0)
    factor, channels = (2, 4) if vae is not None else (1, 3)
    tokenizer, text_encoder = make_text_encoder(["a square moves"], vocab_size=300, hidden_size=32, num_layers=1)
    unet = UNet2DConditionModel(
        sample_size=HEIGHT // factor,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        cross_attention_dim=32,
    )
    autoencoder = ContentMotionAutoencoder(
        in_channels=channels,
        hidden_size=16,
        depth=1,
        num_heads=2,
        head_dim=8,
        motion_channels=4,
        num_frames=FRAMES,
        sample_height=HEIGHT // factor,
        sample_width=WIDTH // factor,
        motion_mean=[0.0] * 4,
        motion_std=[1.0] * 4,
    )
    torch.nn.init.normal_(autoencoder.frame_head.weight, std=0.2)  # it starts at zero: nothing would move
    motion = MotionDiT(
        motion_channels=4,
        content_channels=channels,
        hidden_size=16,
        depth=1,
        num_heads=2,
        text_dim=32,
    )
    return ContentMotionPipeline(
        vae, text_encoder, tokenizer, unet, DDIMScheduler(), autoencoder, motion, DDIMScheduler()
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def i3d_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """I3D with random weights: the plumbing is the same, and no download is needed."""
    torch.manual_seed(0)
    model = InceptionI3d()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv3d):
            torch.nn.init.kaiming_normal_(module.weight)
    file = tmp_path_factory.mktemp("i3d") / "i3d.safetensors"
    save_file(model.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def data(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 good clips and a damaged one in "train", one clip in "heldout"."""
    folder = tmp_path_factory.mktemp("data") / "clips"
    shutil.copytree(clip_folder, folder)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows[4]["split"] = "heldout"
    (folder / "videos/bad.mp4").write_text("not a video")
    rows.insert(1, {"file_name": "videos/bad.mp4", "caption": "nothing", "split": "train"})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


@pytest.fixture(scope="module")
def config(checkpoint: Path, i3d_file: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    return EvaluateConfig(
        pretrained_model_name_or_path=str(checkpoint),
        data_dir=str(data),
        i3d=str(i3d_file),
        output_dir=str(tmp_path_factory.mktemp("scores")),
        num_inference_steps=2,
        guidance_scale=2.0,
        batch_size=2,
        mixed_precision="no",
        device="cpu",
    )


@pytest.fixture(scope="module")
def scores(config: EvaluateConfig) -> dict:
    evaluate(config)
    return json.loads((Path(config.output_dir) / "scores.json").read_text())


def read_clips(data: Path, indices: list[int]) -> torch.Tensor:
    config = EvaluateConfig(data_dir=str(data))
    return Clips(read_clip_folder(data), config, FRAMES, HEIGHT, WIDTH).read(indices)[1]


def test_scores_are_what_the_functions_give(
    config: EvaluateConfig, scores: dict, data: Path, i3d_file: Path, checkpoint: Path
) -> None:
    frames = read_clips(data, [0, 2, 3, 4])  # 1 is the damaged file
    pipeline = ContentMotionPipeline.from_pretrained(checkpoint)
    x = frames.float() / 127.5 - 1
    decoded = pipeline.decode(*pipeline.encode_video(x)).clamp(-1, 1)
    videos = ((decoded + 1) * 127.5).round().to(torch.uint8)
    model = load_i3d(i3d_file)
    real, fake = (FrechetStatistics(i3d_features(model, clip.permute(0, 1, 3, 4, 2))) for clip in (frames, videos))
    part = scores["parts"]["reconstruction"]
    assert part["n"] == 4
    assert part["fvd"] == pytest.approx(frechet_distance(real, fake), rel=1e-3)
    assert part["psnr"] == pytest.approx(psnr(videos, frames).mean().item(), abs=1e-3)


def test_scores_hold_every_part_and_the_protocol(config: EvaluateConfig, scores: dict) -> None:
    parts, protocol = scores["parts"], scores["protocol"]
    assert parts.keys() == {"real_halves", "reconstruction", "frozen", "motion", "full", "heldout"}
    assert parts["real_halves"]["n"] == 2
    assert all(np.isfinite(part["fvd"]) for name, part in parts.items() if name != "heldout")
    assert parts["frozen"]["fvd"] != parts["reconstruction"]["fvd"]
    assert parts["full"]["nearest_pixels"] in (0, 0.25, 0.5, 0.75, 1)
    assert parts["heldout"]["n"] == 1
    assert parts["heldout"]["nearest_among"] == parts["full"]["nearest_among"] == 5
    assert protocol["sampling"]["motion_num_inference_steps"] == 2
    assert protocol["clips"]["num_frames"] == FRAMES
    assert len(protocol["features"]["extractor_sha256"]) == 64
    assert protocol["run"]["versions"]["torch"] == torch.__version__
    assert len(scores["problems"]) == 1
    assert "bad.mp4" in scores["problems"][0]
    assert any("fewer than I3D's 400" in note for note in scores["notes"])
    with Image.open(Path(config.output_dir) / "sheet.png") as sheet:
        assert sheet.height > 4 * HEIGHT
        assert sheet.width > 4 * 3 * WIDTH


def test_an_interrupted_run_goes_on(config: EvaluateConfig, scores: dict) -> None:
    output = Path(config.output_dir)
    files = sorted(output.glob("parts/*/*.npz"))
    lost = next(file for file in files if file.parent.name.startswith("full"))
    damaged = next(file for file in files if file.parent.name.startswith("frozen"))
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:100])
    written = {file: file.stat().st_mtime_ns for file in files if file not in (lost, damaged)}

    evaluate(dataclasses.replace(config, batch_size=1))
    again = json.loads((output / "scores.json").read_text())
    assert {file: file.stat().st_mtime_ns for file in written} == written
    assert again["protocol"]["model"] == scores["protocol"]["model"]
    # Rounding differs a little between batch sizes, the noise does not.
    for name, part in scores["parts"].items():
        assert again["parts"][name] == pytest.approx(part, rel=1e-2)


def test_other_settings_share_only_what_they_may(config: EvaluateConfig, scores: dict) -> None:
    before = set(Path(config.output_dir).glob("parts/*"))
    evaluate(dataclasses.replace(config, guidance_scale=1.0, num_videos=5))
    added = {path.name.split("-")[0] for path in set(Path(config.output_dir).glob("parts/*")) - before}
    assert added == {"motion", "full"}


def test_a_video_does_not_depend_on_its_batch(checkpoint: Path, data: Path, config: EvaluateConfig) -> None:
    clips = Clips(read_clip_folder(data), config, FRAMES, HEIGHT, WIDTH)
    pipeline = ContentMotionPipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    renderer = Renderer(pipeline, clips, config, nullcontext)
    indices, frames = clips.read([0, 2, 3])
    for render in (renderer.generate, renderer.predict_motion):
        together, alone = render(indices, frames), render(indices[2:], frames[2:])
        assert together.shape == frames.shape
        assert (together[2:].int() - alone.int()).abs().max() <= 1
        assert (together[0].int() - together[1].int()).abs().max() > 1


def test_references_of_a_model_with_a_vae(data: Path, config: EvaluateConfig) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
    )
    clips = Clips(read_clip_folder(data), config, FRAMES, HEIGHT, WIDTH)
    renderer = Renderer(make_pipeline(vae), clips, config, nullcontext)
    parts = {part.name: part for part in renderer.parts()}
    assert list(parts) == ["real", "reconstruction", "frozen", "vae", "motion", "full"]
    indices, frames = clips.read([0])
    still = frames[:, :1].expand_as(frames)
    images = {name: parts[name].render(indices, still) for name in ("frozen", "vae")}
    assert images["frozen"].shape == frames.shape
    # A still clip's content frame is its frame: both references are the VAE's picture of it.
    assert (images["frozen"].int() - images["vae"].int()).abs().max() <= 1


def test_captions_and_splits(data: Path, config: EvaluateConfig) -> None:
    folder = read_clip_folder(data)
    clips = Clips(folder, dataclasses.replace(config, caption_index=1), FRAMES, HEIGHT, WIDTH)
    assert [clips.caption(i) for i in (0, 1)] == ["a moving square, number 0", "nothing"]
    assert (clips.selected, clips.heldout) == ([0, 1, 2, 3, 4], [5])
    clips = Clips(folder, dataclasses.replace(config, split="heldout"), FRAMES, HEIGHT, WIDTH)
    assert (clips.selected, clips.heldout) == ([5], [])
    drawn = set()
    for seed in range(20):
        changes = {"split": None, "num_videos": 2, "seed": seed}
        clips = Clips(folder, dataclasses.replace(config, **changes), FRAMES, HEIGHT, WIDTH)
        assert len(set(clips.selected)) == 2 and clips.selected == sorted(clips.selected) and clips.heldout == []
        drawn |= set(clips.selected)
    assert drawn == set(range(6)), "any clip, not the first ones"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_videos": 4, "seed": 1}, "needs 4 clips or more, got 3; .*bad.mp4"),
        ({"split": "test"}, r"no split 'test' \(there are: heldout, train\)"),
        ({"i3d": "none.safetensors"}, "none.safetensors: no such file"),
        ({"data_dir": "none"}, "none: no such folder"),
        ({"enable_model_cpu_offload": True}, "enable_model_cpu_offload"),
    ],
)
def test_bad_input(config: EvaluateConfig, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        evaluate(dataclasses.replace(config, output_dir=str(tmp_path / "out"), **changes))


def test_store_keeps_order_and_protocols_apart(tmp_path: Path) -> None:
    store = PartStore(tmp_path, "part", {"seed": 0})
    store.add([4, 2], value=np.array([40, 20]))
    store.add([3], value=np.array([30]))
    again = PartStore(tmp_path, "part", {"seed": 0})
    assert again.load("value", [2, 3, 4]).tolist() == [20, 30, 40]
    assert 5 not in again
    assert 4 not in PartStore(tmp_path, "part", {"seed": 1})
