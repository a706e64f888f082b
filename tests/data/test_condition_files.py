"""Conditions from files: what each becomes, and what is refused."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from contentmotion.config import CONDITION_NAMES, ConditionConfig, GenerateConfig
from contentmotion.data.conditions import read_conditions
from contentmotion.data.maps import sketch_of
from contentmotion.models.condition_encoder import ConditionEncoder
from contentmotion.stages.image_vae import encode_frames, vae_scale_factor
from contentmotion.video.pixels import to_float
from contentmotion.video.reader import read_video
from contentmotion.video.timeline import VideoError
from contentmotion.video.write import write_video

SIZE = {
    "num_frames": 4,
    "height": 16,
    "width": 16,
    "encode": lambda frames: frames,
    "pixels_per_latent": 1,
    "known": CONDITION_NAMES,
}


def write_frames(folder: Path, frames: np.ndarray) -> str:
    """uint8 (t, h, w[, 3]) as a folder of pictures: exact."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number}.png")
    return str(folder)


@pytest.fixture
def driving(make_frames: Callable[..., np.ndarray], tmp_path: Path) -> tuple[str, torch.Tensor]:
    """Six frames of 16x16, as a file and uint8 (6, 3, 16, 16)."""
    frames = make_frames(6, 16, 16)
    return write_frames(tmp_path / "driving", frames), torch.from_numpy(frames).permute(0, 3, 1, 2)


def read(**settings: Any) -> dict[str, torch.Tensor]:
    return read_conditions(ConditionConfig(**settings), **SIZE)


def test_maps_are_read_from_their_first_frame_on(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(256, size=(6, 16, 16), dtype=np.uint8)
    depth = read(depth=write_frames(tmp_path / "depth", grey))["depth"]
    torch.testing.assert_close(depth[0, :, 0] * 255, torch.from_numpy(grey[:4]).float())


def test_maps_of_a_driving_video(driving: tuple[str, torch.Tensor]) -> None:
    path, frames = driving
    conditions = read(driving_video=path, extract=("sketch",))
    assert set(conditions) == {"sketch"}
    assert torch.equal(conditions["sketch"][0] * 255, sketch_of(frames[:4]).float())


def test_videos_are_read_at_the_rate_of_the_model(make_frames: Callable[..., np.ndarray], tmp_path: Path) -> None:
    write_video(tmp_path / "fast.mp4", make_frames(12, 16, 16), fps=24)
    frames = torch.from_numpy(read_video(tmp_path / "fast.mp4").frames).permute(0, 3, 1, 2)
    columns = (np.eye(12, 16, dtype=np.uint8) * 255)[:, None].repeat(16, axis=1)  # one of each frame
    settings = ConditionConfig(
        driving_video=str(tmp_path / "fast.mp4"), extract=("sketch",), mask=write_frames(tmp_path / "mask", columns)
    )
    for fps, chosen in ((None, [0, 1, 2, 3]), (8, [0, 3, 6, 9]), (30, [0, 1, 2, 3])):
        conditions = read_conditions(settings, **SIZE, fps=fps)
        assert torch.equal(conditions["sketch"][0] * 255, sketch_of(frames[chosen]).float())
        assert conditions["mask"][0, :, 0, 0].argmax(dim=1).tolist() == chosen, "the mask is the driving video's"
    with pytest.raises(VideoError, match="shorter than the clip: .*fast.mp4: 0.50 s, 0.79 s needed"):
        read_conditions(settings, **SIZE, fps=4)


def test_sketches_in_black_and_in_white_and_of_other_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = np.zeros((4, 64, 64), np.uint8)
    lines[:, 30:33, 10:50] = 255
    first = read(sketch=write_frames(tmp_path / "white", lines))["sketch"]
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert first[0, :, 0, 7:9, 4:11].any(dim=1).all()  # the line is still there, a quarter of the size
    assert not first[0, :, 0, :5].any()
    assert capsys.readouterr().err == ""
    second = read(sketch=write_frames(tmp_path / "black", 255 - lines))["sketch"]
    assert torch.equal(first, second)
    assert "dark lines on white" in capsys.readouterr().err


def test_mask_keeps_the_driving_video_where_it_is_black(driving: tuple[str, torch.Tensor], tmp_path: Path) -> None:
    path, frames = driving
    picture = np.zeros((16, 16), np.uint8)
    picture[:, 8:] = 255
    Image.fromarray(picture).save(tmp_path / "mask.png")
    mask, known = read(driving_video=path, mask=str(tmp_path / "mask.png"))["mask"][0].split([1, 3], dim=1)
    assert not mask[..., :8].any() and mask[..., 8:].all()
    assert torch.equal(known[..., :8], to_float(frames[:4])[..., :8])
    assert not known[..., 8:].any()


def test_a_latent_is_made_where_any_of_its_pixels_is(driving: tuple[str, torch.Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=2,
    )  # fmt: skip
    masks = np.zeros((4, 16, 16), np.uint8)
    masks[1, 5, 9] = 255
    config = ConditionConfig(
        driving_video=driving[0], mask=write_frames(tmp_path / "mask", masks), first_frame=driving[0]
    )
    conditions = read_conditions(
        config, **(SIZE | {"encode": partial(encode_frames, vae), "pixels_per_latent": vae_scale_factor(vae)})
    )
    assert conditions["mask"].shape == (1, 4, 3, 8, 8)
    assert conditions["mask"][0, :, 0].nonzero().tolist() == [[1, 2, 4]]
    assert conditions["first_frame"].shape == (1, 1, 2, 8, 8)
    encoder = ConditionEncoder(
        ("mask", "first_frame"), latent_channels=2, vae_scale_factor=2, hidden_channels=8, num_heads=2
    )
    assert encoder(conditions, 4, 8, 8, batch_size=3).shape == (3, 4, 4, 8, 8)


def test_first_frame_of_a_video_and_a_picture(driving: tuple[str, torch.Tensor]) -> None:
    path, frames = driving
    for file in (path, f"{path}/0.png"):
        assert torch.equal(read(first_frame=file)["first_frame"][0], to_float(frames[:1]))


def test_other_shapes_are_cut_in_the_middle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = np.zeros((4, 16, 48), np.uint8)
    wide[:, :, 16:32] = 200
    depth = read(depth=write_frames(tmp_path / "wide", wide))["depth"]
    assert (depth * 255).unique().tolist() == [200]
    assert "48x16 pixels, cut to the shape of 16x16" in capsys.readouterr().err


def test_bad_files_are_refused(driving: tuple[str, torch.Tensor], tmp_path: Path) -> None:
    grey = np.zeros((3, 16, 16), np.uint8)
    short = write_frames(tmp_path / "short", grey)
    for flag in ("depth", "sketch", "driving_video"):
        others = {"extract": ("sketch",)} if flag == "driving_video" else {}
        with pytest.raises(VideoError, match=f"--{flag}: shorter than the clip: .*short: 3 frames, 4 needed"):
            read(**{flag: short}, **others)
    with pytest.raises(VideoError, match="--mask: shorter than the clip"):
        read(driving_video=driving[0], mask=short)
    tiny = write_frames(tmp_path / "tiny", np.zeros((4, 3, 16), np.uint8))
    with pytest.raises(VideoError, match="--depth .*tiny: 16x3 pixels are too few for a clip of 16x16"):
        read(depth=tiny)
    with pytest.raises(VideoError, match="driving: in colours"):
        read(depth=driving[0])
    with pytest.raises(VideoError, match="without white"):
        read(driving_video=driving[0], mask=write_frames(tmp_path / "black", np.zeros((4, 16, 16), np.uint8)))
    with pytest.raises(FileNotFoundError, match=r"nowhere.mp4: no such file"):
        read(first_frame="nowhere.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    with pytest.raises(VideoError, match=r"broken.mp4"):
        read(depth=str(tmp_path / "broken.mp4"))
    with pytest.raises(ValueError, match="no such checkpoint: ./no-model"):
        read(driving_video=driving[0], extract=("depth",), depth_model="./no-model")


def test_what_the_model_does_not_know_is_refused_before_any_file_is_read() -> None:
    config = ConditionConfig(depth="nowhere.mp4")
    with pytest.raises(ValueError, match="--depth: this model was not trained with it, only with sketch, mask"):
        read_conditions(config, **(SIZE | {"known": ("sketch", "mask")}))
    with pytest.raises(ValueError, match="--depth: this model was trained without conditions"):
        read_conditions(config, **(SIZE | {"known": None}))
    assert read_conditions(ConditionConfig(), **(SIZE | {"known": None})) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": "m.png"}, "--mask needs --driving_video"),
        ({"extract": ("sketch",)}, "--extract needs --driving_video"),
        ({"driving_video": "v.mp4"}, "does nothing by itself"),
        ({"driving_video": "v.mp4", "extract": ("depth",)}, "--extract depth needs --depth_model"),
        ({"driving_video": "v.mp4", "extract": ("pose",)}, "--extract pose: only depth and sketch"),
        ({"driving_video": "v.mp4", "extract": ("sketch",), "sketch": "s.mp4"}, "--sketch is given and --extract"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    for make in (ConditionConfig, lambda **given: GenerateConfig(prompt=["a cat"], **given)):
        with pytest.raises(ValueError, match=message):
            make(**settings)


def test_names_of_what_is_given() -> None:
    config = GenerateConfig(prompt=["a"], first_frame="f.png", driving_video="v.mp4", extract=("sketch",), mask="m.png")
    assert config.condition_names == ("sketch", "mask", "first_frame")
    assert GenerateConfig(prompt=["a"]).condition_names == ()
