"""Command reconstruct: numbers, pictures, and every real clip."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from contentmotion.cli import main
from contentmotion.commands.reconstruct import (
    decompose,
    load_parts,
    motion_planes,
    recombine,
    sheet_rows,
    weight_maps,
)
from contentmotion.video import reader
from contentmotion.video.reader import read_video
from contentmotion.video.write import write_video
from tiny import make_autoencoder


def reconstruct(video: Path, pipeline: Path, output_dir: Path, *words: str) -> dict:
    paths = [f"--pretrained_model_name_or_path={pipeline}", f"--output_dir={output_dir}", "--device=cpu"]
    assert main(["reconstruct", str(video), *paths, *words]) == 0
    return json.loads((output_dir / "reconstruction.json").read_text())


def test_scores_match_the_video_written(
    make_frames, tiny_pipeline_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "in.gif", make_frames(4, 16, 16), fps=5)
    scores = reconstruct(tmp_path / "in.gif", tiny_pipeline_dir, tmp_path / "out")
    assert f"in.gif: PSNR {scores['psnr']:.1f} dB" in capsys.readouterr().out
    assert "emoji" not in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("sheet.png", "reconstruction.mp4", "reconstruction.json", "config.yaml")
    }
    written = read_video(tmp_path / "out" / "reconstruction.mp4")
    assert written.frames.shape == (4, 16, 32, 3)
    assert written.fps == pytest.approx(5)
    left, right = written.frames[:, :, :16] / 255.0, written.frames[:, :, 16:] / 255.0
    original = read_video(tmp_path / "in.gif").frames / 255.0
    assert -10 * np.log10(((left - original) ** 2).mean()) > 25, "the left half is the original"
    # The file is compressed with colour at half resolution, so only roughly.
    assert -10 * np.log10(((right - original) ** 2).mean()) == pytest.approx(scores["psnr"], abs=2.5)
    assert len(scores["psnr_per_frame"]) == 4
    per_frame_error = 10 ** (-np.array(scores["psnr_per_frame"]) / 10)
    assert -10 * np.log10(per_frame_error.mean()) == pytest.approx(scores["psnr"])


def test_a_still_video_equals_its_content_frame(tiny_pipeline_dir: Path, tmp_path: Path, make_frames) -> None:
    (tmp_path / "still").mkdir()
    for number in range(4):
        Image.fromarray(make_frames(1, 16, 16)[0]).save(tmp_path / "still" / f"{number}.png")
    scores = reconstruct(tmp_path / "still", tiny_pipeline_dir, tmp_path / "out")
    assert scores["psnr_frozen"] > 55
    assert scores["psnr"] < scores["psnr_frozen"], "an untrained decoder adds something"


def test_other_sizes_and_strides(clip_folder: Path, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    words = ("--height=12", "--width=20", "--num_frames=3", "--frame_stride=2")
    scores = reconstruct(clip_folder / "videos/0.mp4", tiny_pipeline_dir, tmp_path / "out", *words)
    assert (scores["num_frames"], scores["height"], scores["width"]) == (3, 12, 20)
    assert read_video(tmp_path / "out" / "reconstruction.mp4").frames.shape == (3, 12, 40, 3)


def test_the_clip_is_the_middle_of_the_video(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "grey").mkdir()
    for number in range(10):
        Image.new("RGB", (8, 8), (20 * number,) * 3).save(tmp_path / f"grey/{number}.png")
    for num_frames, stride, chosen in ((4, 1, [3, 4, 5, 6]), (4, 3, [0, 3, 6, 9]), (2, 3, [3, 6])):
        words = (f"--num_frames={num_frames}", f"--frame_stride={stride}", "--height=8", "--width=8")
        reconstruct(tmp_path / "grey", tiny_pipeline_dir, tmp_path / f"{num_frames}-{stride}", *words)
        written = read_video(tmp_path / f"{num_frames}-{stride}/reconstruction.mp4").frames
        assert (written[:, :, :6].mean(axis=(1, 2, 3)) / 20).round().tolist() == chosen


def test_of_a_large_video_only_the_clip_is_decoded(
    tiny_pipeline_dir: Path, make_frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "long.mp4", make_frames(20, 32, 32), fps=5)
    monkeypatch.setitem(vars(reader._LIMITS), "max_bytes", 20 * 32 * 32)  # a third of it
    assert reconstruct(tmp_path / "long.mp4", tiny_pipeline_dir, tmp_path / "out")["num_frames"] == 4


def test_weight_maps_are_relative_to_each_pixel_s_largest() -> None:
    weights = torch.full((4, 3, 2, 2), 0.25)
    weights[:, :, 0, 0] = torch.tensor([0.7, 0.1, 0.1, 0.1])[:, None]
    maps = weight_maps(weights, 4, 4)
    assert maps.shape == (4, 4, 4, 3)
    assert (maps[:, 2:, 2:] == 255).all(), "equal shares"
    assert (maps[0, :2, :2] == 255).all()
    assert (maps[1:, :2, :2] == round(255 / 7)).all()


def test_sheet_shows_every_row(tiny_pipeline_dir: Path, make_frames, tmp_path: Path) -> None:
    vae, autoencoder = load_parts(str(tiny_pipeline_dir), None)
    frames = make_frames(4, 16, 16)
    parts = decompose(vae, autoencoder, torch.from_numpy(frames).permute(0, 3, 1, 2))
    content, original, decoded, error, weights = sheet_rows(parts).values()
    assert content.shape == (1, 16, 16, 3)
    assert np.array_equal(original, frames)
    assert np.array_equal(error, (np.abs(decoded.astype(int) - frames) * 4).clip(0, 255))
    assert np.array_equal(weights, weight_maps(parts.weights, 16, 16))
    write_video(tmp_path / "in.gif", frames, fps=5)
    reconstruct(tmp_path / "in.gif", tiny_pipeline_dir, tmp_path / "out")
    with Image.open(tmp_path / "out/sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    # Rows of 48 pixels, three times the clip's, under a caption or two lines of one; four frames side by side.
    assert pixels.shape[0] > 5 * 48
    original = read_video(tmp_path / "in.gif").frames  # of few colours
    large = np.asarray(Image.fromarray(original[0]).resize((48, 48), Image.Resampling.BICUBIC))
    tops = [y for y in range(pixels.shape[0] - 48) if np.array_equal(pixels[y : y + 48, 8:56], large)]
    assert len(tops) == 1


@torch.no_grad()
def test_numbers_that_are_not_finite_name_their_maker(tiny_pipeline_dir: Path, make_frames, tmp_path: Path) -> None:
    vae, autoencoder = load_parts(str(tiny_pipeline_dir), None)
    clip = torch.from_numpy(make_frames(4, 16, 16)).permute(0, 3, 1, 2)
    parts = decompose(vae, autoencoder, clip)
    next(autoencoder.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="the autoencoder made values that are not finite"):
        decompose(vae, autoencoder, clip)
    with pytest.raises(ValueError, match="the autoencoder made values that are not finite"):
        recombine(vae, autoencoder, parts.content_latent, parts.motion_latent * torch.nan)


def test_nothing_is_written_of_numbers_that_are_not_finite(
    tiny_pipeline_dir: Path, make_frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    vae, autoencoder = load_parts(str(tiny_pipeline_dir), None)
    for parameter in autoencoder.parameters():
        parameter.data.fill_(torch.nan)
    monkeypatch.setattr("contentmotion.commands.reconstruct.load_parts", lambda *names: (vae, autoencoder))
    write_video(tmp_path / "in.mp4", make_frames(4, 16, 16), fps=5)
    words = [f"--pretrained_model_name_or_path={tiny_pipeline_dir}", f"--output_dir={tmp_path / 'out'}", "--device=cpu"]
    assert main(["reconstruct", str(tmp_path / "in.mp4"), *words]) == 1
    assert "the autoencoder made values that are not finite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_parts_without_the_rest_of_the_pipeline(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    from contentmotion import ContentMotionAutoencoder

    vae, autoencoder = load_parts(str(tiny_pipeline_dir), None)
    assert vae is None
    assert isinstance(autoencoder, ContentMotionAutoencoder)
    make_autoencoder(in_channels=5).save_pretrained(tmp_path / "five")
    channels = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    AutoencoderTiny(latent_channels=5, **channels, **blocks).save_pretrained(tmp_path / "vae")
    vae, autoencoder = load_parts(str(tmp_path / "vae"), str(tmp_path / "five"))
    assert (type(vae).__name__, autoencoder.config.in_channels) == ("AutoencoderTiny", 5)
    assert load_parts(str(tmp_path / "vae"), str(tiny_pipeline_dir))[0] is None, "an autoencoder of pixels"
    with pytest.raises(ValueError, match="takes frames of 5 channels, those of .* have 3"):
        load_parts(str(tiny_pipeline_dir), str(tmp_path / "five"))


def test_every_real_clip(shared_data: Path, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    videos = sorted((shared_data / "real-clips" / "videos").iterdir())
    assert videos
    for video in videos:
        scores = reconstruct(video, tiny_pipeline_dir, tmp_path / video.stem)
        assert 0 < scores["psnr"] < 60
        with Image.open(tmp_path / video.stem / "sheet.png") as sheet:
            sheet.load()


def test_motion_planes_show_rows_and_columns_over_time() -> None:
    latent = torch.zeros(5, 3, 2 + 4)  # 5 channels, 3 times, 2 rows and 4 columns of patches
    latent[0, 2, 1] = 1.0  # second row, last time
    latent[4, 0, 2 + 3] = 1.0  # last column, first time
    z_x, z_y = (np.asarray(plane) for plane in motion_planes(latent, rows=2, cell=1))
    assert (z_x.shape, z_y.shape) == ((2 * 3 - 1, 4 * 4 - 1), (2 * 4 - 1, 4 * 5 - 1)), "four channels a row"
    assert z_x[1, 2] == 255 and z_x[:2, :3].sum() == 255
    assert z_y[4, 3] == 255 and z_y[4:, :4].sum() == 255


def test_recombining_a_clip_with_itself_is_its_reconstruction(tiny_pipeline_dir: Path, make_frames) -> None:
    vae, autoencoder = load_parts(str(tiny_pipeline_dir), None)
    clips = [torch.from_numpy(make_frames(4, 16, 16, hue=hue)).permute(0, 3, 1, 2) for hue in (0, 200)]
    one, other = (decompose(vae, autoencoder, clip) for clip in clips)
    assert torch.equal(recombine(vae, autoencoder, one.content_latent, one.motion_latent), one.decoded)
    swapped = recombine(vae, autoencoder, one.content_latent, other.motion_latent)
    assert not torch.equal(swapped, one.decoded) and not torch.equal(swapped, other.decoded)
    error = (one.decoded.double() - one.original).div(255).square().mean()
    assert one.psnr == pytest.approx(-10 * error.log10().item())


def test_a_half_precision_pipeline_of_pixels_is_taken_apart(make_frames) -> None:
    """As the page has it where the processor multiplies bfloat16."""
    autoencoder = make_autoencoder(0.1)
    frames = torch.from_numpy(make_frames(4, 16, 16)).permute(0, 3, 1, 2)
    exact, parts = decompose(None, autoencoder, frames), decompose(None, autoencoder.to(torch.bfloat16), frames)
    assert parts.psnr == pytest.approx(exact.psnr, abs=0.5)
    recombine(None, autoencoder, parts.content_latent, parts.motion_latent)
