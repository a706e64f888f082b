"""The table of metrics: a row from outside, numbers against the functions, following, real clips by content."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import tiny
from contentmotion.config import EvaluateConfig
from contentmotion.data.maps import sketch_of
from contentmotion.evaluate import measures
from contentmotion.evaluate.following import edge_scores, first_frame_psnr, known_region_psnr
from contentmotion.evaluate.lpips import LPIPS, load_lpips, lpips_distance
from contentmotion.evaluate.measures import Column, Measure
from contentmotion.evaluate.pixel_metrics import frame_difference, optical_flow, psnr, ssim
from contentmotion.evaluate.run import evaluate
from contentmotion.models.condition_encoder import ConditionEncoder
from contentmotion.pipelines.video_latent import VideoLatentPipeline
from contentmotion.video.pixels import to_float, to_uint8
from contentmotion.video.reader import read_video
from contentmotion.video.write import write_video

CLIPS = 4


def to_clips(files: list[Path]) -> Tensor:
    """uint8 (b, t, h, w, 3)."""
    return torch.stack([torch.from_numpy(read_video(file).frames.copy()) for file in files])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, make_frames) -> Path:
    """real/ and generated/: folders of clips of 10 frames, 32x32; small/: of 16x16; lpips.safetensors: random."""
    root = tmp_path_factory.mktemp("measures")
    for name in ("real", "generated", "small"):
        (root / name).mkdir()
        side = 16 if name == "small" else 32
        for k in range(CLIPS):
            frames = make_frames(10, side, side, hue=40 * k)
            if name == "generated":
                frames = np.roll(frames, 2 * k + 1, axis=2)
            write_video(root / name / f"{k}.mp4", frames, fps=8)
            (root / name / f"{k}.txt").write_text(f"square {k}")
    torch.manual_seed(0)
    save_file(LPIPS().state_dict(), root / "lpips.safetensors")
    return root


@pytest.fixture
def config(root: Path, i3d_file: Path, tmp_path: Path) -> EvaluateConfig:
    return EvaluateConfig(
        data_dir=str(root / "real"),
        generated_dir=str(root / "generated"),
        i3d=str(i3d_file),
        num_frames=10,
        batch_size=CLIPS,
        mixed_precision="no",
        device="cpu",
        output_dir=str(tmp_path / "scores"),
    )


def scores_of(config: EvaluateConfig) -> dict:
    evaluate(config)
    return json.loads((Path(config.output_dir) / "scores.json").read_text())["parts"]


def test_a_row_from_outside_is_a_number_in_scores_json(
    config: EvaluateConfig, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = scores_of(config)
    toy = Measure(
        "brightness", of=lambda batch: batch.videos.double().flatten(1).mean(dim=1), column=Column("brightness", ".1f")
    )
    monkeypatch.setattr(measures, "MEASURES", [*measures.MEASURES, toy])
    capsys.readouterr()
    after = scores_of(config)  # into the same folder: what was stored lacks the new number
    assert "brightness" in capsys.readouterr().out
    for name in ("real", "generated"):
        clips = to_clips(sorted((root / name).glob("*.mp4")))
        assert after[name].pop("brightness") == pytest.approx(clips.double().mean().item(), rel=1e-9)
    assert after == before


def test_a_row_made_of_other_rows(config: EvaluateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_features(m: measures.Measured, name: str) -> dict[str, float]:
        return {name: float(np.abs(m.values("features") - m.reference.values("features")).mean())}

    row = Measure("feature_difference", ("features", "reference"), average=of_features)
    monkeypatch.setattr(measures, "MEASURES", [*measures.MEASURES, row])
    found = scores_of(config)
    assert found["generated"]["feature_difference"] > 0 and "feature_difference" not in found["real"]


def test_every_number_is_that_of_its_function(config: EvaluateConfig, root: Path, tmp_path: Path) -> None:
    """An autoencoder's reconstructions: each column is the mean of the function that it is named after."""
    autoencoder = tiny.make_autoencoder(num_frames=10, sample_height=32, sample_width=32).eval()
    torch.nn.init.normal_(autoencoder.frame_head.weight, std=0.2)
    autoencoder.save_pretrained(tmp_path / "autoencoder")
    changes = {"generated_dir": None, "autoencoder": str(tmp_path / "autoencoder"), "components": ("reconstruction",)}
    row = scores_of(dataclasses.replace(config, **changes, lpips=str(root / "lpips.safetensors")))["reconstruction"]
    real = to_clips(sorted((root / "real").glob("*.mp4")))
    with torch.no_grad():
        encoded = autoencoder.encode(to_float(real.permute(0, 1, 4, 2, 3)))
        videos = to_uint8(autoencoder.decode(encoded.content, encoded.motion_latent)).permute(0, 1, 3, 4, 2)
    lpips = load_lpips(root / "lpips.safetensors")
    expected = {
        "psnr": psnr(videos, real),
        "ssim": ssim(videos, real),
        "lpips": lpips_distance(lpips, videos, real),
        "frame_difference": frame_difference(videos),
        "optical_flow": optical_flow(videos),
    }
    for name, values in expected.items():
        assert row[name] == pytest.approx(values.mean().item(), rel=1e-4), name


def test_one_file_of_a_stem_is_scored(config: EvaluateConfig, root: Path, tmp_path: Path) -> None:
    """`generate` writes each video as mp4 and as gif."""
    generated = tmp_path / "generated"
    shutil.copytree(root / "generated", generated)
    for file in sorted(generated.glob("*.mp4")):
        write_video(file.with_suffix(".gif"), read_video(file).frames, fps=8)
    changes = {"generated_dir": str(generated), "output_dir": str(tmp_path / "twice")}
    assert scores_of(dataclasses.replace(config, **changes))["generated"] == scores_of(config)["generated"]


def test_real_clips_are_known_by_their_content(config: EvaluateConfig, root: Path, tmp_path: Path) -> None:
    """Another video of the same name and size is measured anew; the others are not."""
    data, shared = tmp_path / "real", tmp_path / "shared"
    shutil.copytree(root / "real", data)
    config = dataclasses.replace(config, data_dir=str(data), measures_dir=str(shared), batch_size=1)
    before = scores_of(config)["real"]["frame_difference"]
    first, second = (data / f"{k}.mp4" for k in (0, 1))
    size = max(first.stat().st_size, second.stat().st_size)
    for file in (first, second):  # bytes behind the end of an mp4 do not count
        file.write_bytes(file.read_bytes() + bytes(size - file.stat().st_size))
    scores_of(config)
    times = {file: file.stat().st_mtime_ns for file in shared.glob("real-[0-9a-f]*/clip*.npz")}
    still = np.repeat(read_video(first).frames[:1], 10, axis=0)
    write_video(first, still, fps=8)
    assert first.stat().st_size < size
    first.write_bytes(first.read_bytes() + bytes(size - first.stat().st_size))
    after = scores_of(config)["real"]["frame_difference"]
    assert after < 0.9 * before
    added = {file for file in shared.glob("real-[0-9a-f]*/clip*.npz") if times.get(file) != file.stat().st_mtime_ns}
    assert len(added) == 1


@pytest.fixture(scope="module")
def video_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video model of pixels, 10 frames of 16x16, that takes all four conditions."""
    tokenizer, text_encoder = tiny.make_text()
    unet = tiny.make_video_unet(extra_channels=4, sample_size=(16, 16), num_frames=10)
    conditions = ("depth", "sketch", "mask", "first_frame")
    encoder = ConditionEncoder(
        conditions=conditions, latent_channels=3, vae_scale_factor=1, hidden_channels=8, out_channels=4
    )
    folder = tmp_path_factory.mktemp("video") / "model"
    VideoLatentPipeline(None, text_encoder, tokenizer, unet, tiny.make_ddim(), encoder).save_pretrained(folder)
    return folder


def test_condition_following_of_a_video_model(
    config: EvaluateConfig, root: Path, video_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each condition is given by itself and the video is measured against it; a copy of the real clip is perfect."""
    from contentmotion.evaluate.renditions import Renderer

    seen: list[dict[str, Tensor]] = []
    sample = Renderer._sample

    def recording(self, batch, seed, pipeline=None, **inputs):
        seen.append(inputs.get("conditions", {}))
        return sample(self, batch, seed, pipeline, **inputs)

    monkeypatch.setattr(Renderer, "_sample", recording)
    changes = {"generated_dir": None, "pretrained_model_name_or_path": str(video_model), "num_inference_steps": 1}
    changes |= {"guidance_scale": 1.0, "data_dir": str(root / "small")}
    config = dataclasses.replace(config, **changes)
    found = scores_of(config)
    given = {"given_sketch": "sketch_f1", "given_mask": "kept_psnr", "given_first_frame": "first_frame_psnr"}
    assert set(found) == {"real", "real_halves", "full", *given}, "without a depth model no depth"
    assert [set(conditions) for conditions in seen] == [set(), {"sketch"}, {"mask"}, {"first_frame"}]
    for name, measure in given.items():
        assert set(given.values()) & found[name].keys() == {measure}
        assert measure in found["full"], "beside it, the videos that were given nothing"
    assert not {"sketch_f1", "kept_psnr"} & found["real"].keys()

    frames = to_clips(sorted((root / "small").glob("*.mp4"))).permute(0, 1, 4, 2, 3)
    lines = torch.stack([sketch_of(clip) for clip in frames])
    assert torch.equal(seen[1]["sketch"], lines.float() / 255)
    assert torch.equal(seen[3]["first_frame"], frames[:, :1].float() / 127.5 - 1)
    mask, known = seen[2]["mask"][:, :, :1], seen[2]["mask"][:, :, 1:]
    torch.testing.assert_close(known, (frames.float() / 127.5 - 1) * (1 - mask))

    made = np.concatenate(
        [np.load(f)["videos"] for f in sorted(Path(config.output_dir).glob("parts/full-videos-*/*.npz"))]
    )
    made = torch.from_numpy(made)
    expected = {
        "sketch_f1": edge_scores(lines, torch.stack([sketch_of(clip) for clip in made]))["f1"],
        "kept_psnr": known_region_psnr(made, frames, mask),
        "first_frame_psnr": first_frame_psnr(made, frames[:, :1]),
    }
    for name, values in expected.items():
        assert found["full"][name] == pytest.approx(values.mean().item(), rel=1e-6), name

    monkeypatch.setattr(Renderer, "_full", lambda self, batch, seed, condition=None: batch.frames)
    perfect = scores_of(dataclasses.replace(config, output_dir=config.output_dir + "-copies"))
    assert [perfect[name][measure] for name, measure in given.items()] == [1, 100, 100]


def test_maps_in_the_data_are_followed(config: EvaluateConfig, root: Path, tmp_path: Path) -> None:
    """Maps that lie beside videos: the videos are measured against them."""
    folder = tmp_path / "with-maps"
    shutil.copytree(root / "generated", folder)
    rows = []
    for k in range(CLIPS):
        frames = read_video(folder / f"{k}.mp4").frames
        lines = sketch_of(torch.from_numpy(frames.copy()).permute(0, 3, 1, 2))[:, 0].numpy()
        for name, values in (("sketch", lines), ("depth", np.full_like(lines, 9))):
            (folder / name / str(k)).mkdir(parents=True)
            for t, picture in enumerate(values):
                Image.fromarray(picture).save(folder / name / str(k) / f"{t:02}.png")
        maps = {"sketch_file_name": f"sketch/{k}", "depth_file_name": f"depth/{k}"}
        rows.append({"file_name": f"{k}.mp4", "caption": f"square {k}"} | maps)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = scores_of(dataclasses.replace(config, generated_dir=str(folder)))
    assert found["generated"]["sketch_f1"] == found["generated"]["depth_outline"] == 1
    assert "sketch_f1" not in found["real"]
    found = scores_of(dataclasses.replace(config, data_dir=str(folder), output_dir=str(tmp_path / "of-real")))
    assert found["real"]["sketch_f1"] == 1 and "sketch_f1" not in found["generated"]
