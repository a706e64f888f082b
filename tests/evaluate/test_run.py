import dataclasses
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image
from safetensors.torch import load_file, save_file

from contentmotion.cli import main
from contentmotion.config import EvaluateConfig
from contentmotion.data.formats import read_clip_folder
from contentmotion.evaluate import i3d
from contentmotion.evaluate.clips import Clips, common_size
from contentmotion.evaluate.fvd import FrechetStatistics, frechet_distance
from contentmotion.evaluate.i3d import i3d_features, load_i3d
from contentmotion.evaluate.pixel_metrics import psnr
from contentmotion.evaluate.protocol import rendition_protocol
from contentmotion.evaluate.renditions import Conditions, Renderer, Rendition
from contentmotion.evaluate.run import evaluate
from contentmotion.evaluate.store import RenditionStore, digest
from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.run_dir import write_config
from contentmotion.video.write import write_video
from launch import finish, start_all
from tiny import make_autoencoder, make_image_unet, make_image_vae, make_motion_dit, make_text, thin_i3d

FRAMES, HEIGHT, WIDTH = 10, 24, 32


def make_pipeline(vae: AutoencoderKL | None = None) -> ContentMotionPipeline:
    """A whole pipeline with random weights."""
    torch.manual_seed(0)
    factor, channels = (2, 4) if vae is not None else (1, 3)
    (tokenizer, text_encoder), side = make_text(), HEIGHT // factor
    unet = make_image_unet(
        sample_size=side, in_channels=channels, out_channels=channels, block_out_channels=(8, 16), norm_num_groups=4
    )
    autoencoder = make_autoencoder(
        in_channels=channels, motion_channels=4, num_frames=FRAMES, sample_height=side, sample_width=WIDTH // factor,
        motion_mean=[0.0] * 4, motion_std=[1.0] * 4,
    )  # fmt: skip
    torch.nn.init.normal_(autoencoder.frame_head.weight, std=0.2)  # it starts at zero: nothing would move
    motion = make_motion_dit(motion_channels=4, content_channels=channels, text_dim=32, fps=24.0)
    return ContentMotionPipeline(
        vae, text_encoder, tokenizer, unet, DDIMScheduler(), autoencoder, motion, DDIMScheduler()
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_pipeline().save_pretrained(folder)
    return folder


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
    return Clips(read_clip_folder(data), config, FRAMES, HEIGHT, WIDTH).read(indices).frames


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
    assert parts.keys() == {"real", "real_halves", "reconstruction", "frozen", "motion", "full", "heldout"}
    assert parts["real_halves"]["n"] == 2
    assert all(np.isfinite(part["fvd"]) for name, part in parts.items() if name not in ("real", "heldout"))
    assert parts["frozen"]["fvd"] != parts["reconstruction"]["fvd"]
    assert parts["frozen"]["frame_difference"] == 0 < parts["real"]["frame_difference"]
    assert 0 < parts["reconstruction"]["ssim"] < 1
    assert parts["full"]["nearest_pixels"] in (0, 0.25, 0.5, 0.75, 1)
    assert parts["full"]["nearest_rmse"] > 0
    assert parts["heldout"]["n"] == 1
    assert parts["heldout"]["nearest_among"] == parts["full"]["nearest_among"] == 5
    assert protocol["sampling"]["motion_num_inference_steps"] == 2
    assert protocol["clips"]["num_frames"] == FRAMES
    assert len(protocol["features"]["extractor_sha256"]) == 64
    assert protocol["run"]["versions"]["torch"] == torch.__version__
    assert len(scores["problems"]) == 1
    assert "bad.mp4" in scores["problems"][0]
    assert any("fewer than I3D's 400" in note for note in scores["notes"])
    assert "real clips of 8 frames a second, a model trained on 24: score at --fps 24" in scores["notes"]
    with Image.open(Path(config.output_dir) / "sheet.png") as sheet:
        assert sheet.height > 4 * HEIGHT
        assert sheet.width > 4 * 3 * WIDTH
    with Image.open(Path(config.output_dir) / "nearest.png") as sheet:
        assert sheet.height > 4 * HEIGHT


def test_an_interrupted_run_goes_on(config: EvaluateConfig, scores: dict) -> None:
    output = Path(config.output_dir)
    files = sorted(output.glob("parts/*/*.npz"))
    lost = next(file for file in files if file.parent.name.startswith("full-videos"))
    damaged = next(file for file in files if file.parent.name.startswith("frozen"))
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:100])
    written = {file: file.stat().st_mtime_ns for file in files if file not in (lost, damaged)}

    evaluate(dataclasses.replace(config, batch_size=1))
    again = json.loads((output / "scores.json").read_text())
    # The lost video is rendered again, and with it what is measured of it.
    kept = {file: time for file, time in written.items() if not file.parent.name.startswith(("full", "frozen"))}
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert lost.exists()
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
    renderer = Renderer(pipeline, clips, config, nullcontext, Conditions(pipeline, (), None, 0))
    batch, last = clips.read([0, 2, 3]), clips.read([3])
    for render in (rendition.render for rendition in renderer.renditions() if rendition.seed is not None):
        together, alone = render(batch), render(last)
        assert together.shape == batch.frames.shape
        assert (together[2:].int() - alone.int()).abs().max() <= 1
        assert (together[0].int() - together[1].int()).abs().max() > 1


def test_references_of_a_model_with_a_vae(data: Path, config: EvaluateConfig) -> None:
    vae = make_image_vae(levels=2)
    clips = Clips(read_clip_folder(data), config, FRAMES, HEIGHT, WIDTH)
    pipeline = make_pipeline(vae)
    renderer = Renderer(pipeline, clips, config, nullcontext, Conditions(pipeline, (), None, 0))
    renditions = {rendition.name: rendition for rendition in renderer.renditions()}
    assert list(renditions) == ["reconstruction", "frozen", "vae", "motion", "full"]
    batch = clips.read([0])
    still = dataclasses.replace(batch, frames=batch.frames[:, :1].expand_as(batch.frames))
    images = {name: renditions[name].render(still) for name in ("frozen", "vae")}
    assert images["frozen"].shape == batch.frames.shape
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
        ({"components": ("full",), "num_generated": 1}, "clips, full generation: FVD needs 2 clips or more, got [01]"),
        ({"split": "test"}, r"no split 'test' \(there are: heldout, train\)"),
        ({"i3d": "none.safetensors"}, "none.safetensors: no such file"),
        ({"data_dir": "none"}, "none: no such folder"),
        ({"enable_model_cpu_offload": True}, "enable_model_cpu_offload"),
        ({"num_videos": 6}, "clips: 6 videos asked for, 5 are there"),
        ({"generated_dir": "none"}, "none: no such folder"),
    ],
)
def test_bad_input(config: EvaluateConfig, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        evaluate(dataclasses.replace(config, output_dir=str(tmp_path / "out"), **changes))


def test_features_that_are_not_finite_name_the_video(config: EvaluateConfig, i3d_file: Path, tmp_path: Path) -> None:
    broken = load_file(i3d_file)
    broken["logits.conv3d.bias"][7] = torch.nan
    save_file(broken, tmp_path / "i3d.safetensors")
    changes = {"i3d": str(tmp_path / "i3d.safetensors"), "output_dir": str(tmp_path / "out")}
    with pytest.raises(ValueError, match=r"real clips: the features of .*0.mp4 are not finite"):
        evaluate(dataclasses.replace(config, **changes))


def test_so_does_a_clip_that_is_taken_again(
    config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 12 videos for 4 captions, those after the first round have no record of their own."""
    seen = []

    def features(model: i3d.InceptionI3d, videos: torch.Tensor, **_: object) -> torch.Tensor:
        seen.extend(range(len(videos)))
        last = len(seen) == 5 + 12  # all clips that can be read, and those generated
        return torch.full((len(videos), 400), torch.nan if last else 1.0)

    monkeypatch.setattr("contentmotion.evaluate.measures.i3d_features", features)
    changes = {"components": ("full",), "num_generated": 15, "output_dir": str(tmp_path)}
    with pytest.raises(ValueError, match=r"full generation: the features of .*mp4 are not finite"):
        evaluate(dataclasses.replace(config, **changes))


def test_several_seeds_give_a_spread(config: EvaluateConfig, scores: dict, tmp_path: Path) -> None:
    changes = {"num_seeds": 2, "components": ("full",), "output_dir": str(tmp_path)}
    evaluate(dataclasses.replace(config, **changes))
    row = json.loads((tmp_path / "scores.json").read_text())["parts"]["full"]
    evaluate(dataclasses.replace(config, **changes | {"num_seeds": 1, "seed": 1}))  # the second of the two
    # Another seed cuts other clips out of videos that are longer; these are as long as a clip.
    second = json.loads((tmp_path / "scores.json").read_text())["parts"]["full"]
    first = scores["parts"]["full"]
    assert row["seeds"] == 2
    assert row["fvd"] == pytest.approx((first["fvd"] + second["fvd"]) / 2, rel=1e-3)
    assert row["fvd_std"] == pytest.approx(abs(first["fvd"] - second["fvd"]) / 2**0.5, rel=1e-2)


def test_two_folders(config: EvaluateConfig, data: Path, tmp_path: Path) -> None:
    changes = {"generated_dir": str(data), "output_dir": str(tmp_path / "same"), "split": None, "num_frames": FRAMES}
    evaluate(dataclasses.replace(config, **changes))
    scores = json.loads((tmp_path / "same/scores.json").read_text())
    row = scores["parts"]["generated"]
    assert row["n"] == 5
    assert row["fvd"] == pytest.approx(0, abs=1e-6)
    assert row["nearest_pixels"] == 1
    assert row["nearest_rmse"] == 0 < row["nearest_rmse_of_real"]
    assert "model" not in scores["protocol"]
    with pytest.raises(ValueError, match="9 videos asked for, 6 are there"):
        evaluate(dataclasses.replace(config, **changes | {"num_generated": 9}))

    other = tmp_path / "other"
    other.mkdir()
    write_video(other / "a.mp4", np.zeros((12, 20, 20, 3), np.uint8), fps=8)
    changes |= {"generated_dir": str(other), "output_dir": str(tmp_path / "out")}
    with pytest.raises(ValueError, match="--vae goes with"):
        evaluate(dataclasses.replace(config, output_dir=str(tmp_path / "v"), vae="emoji"))
    with pytest.raises(ValueError, match="are 20x20, those of .* are not: give --height and --width"):
        evaluate(dataclasses.replace(config, **changes))
    write_video(other / "b.mp4", np.zeros((12, 30, 20, 3), np.uint8), fps=8)
    with pytest.raises(ValueError, match=r"a.mp4 is 20x20, .*b.mp4 is 30x20; give --height and --width"):
        evaluate(dataclasses.replace(config, **changes))


def test_a_missing_file_of_a_long_list_is_left_out(
    config: EvaluateConfig, scores: dict, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(data, tmp_path / "clips")
    with open(folder / "metadata.jsonl", "a") as rows:
        rows.write("\n" + json.dumps({"file_name": "videos/gone.mp4", "caption": "nothing", "split": "train"}))
    monkeypatch.setattr("contentmotion.data.formats.CHECK_FILES_BELOW", 6)
    changes = {"data_dir": str(folder), "components": ("reconstruction",), "output_dir": str(tmp_path / "out")}
    evaluate(dataclasses.replace(config, **changes))
    found = json.loads((tmp_path / "out/scores.json").read_text())
    assert found["parts"]["real"] == scores["parts"]["real"]
    assert [Path(line.partition(":")[0]).name for line in found["problems"]] == ["bad.mp4", "gone.mp4"]


def test_the_size_of_videos_is_of_those_that_can_be_read(data: Path) -> None:
    folder = read_clip_folder(data)
    gone = dataclasses.replace(folder.records[0], path=data / "videos/gone.mp4")
    with_it = dataclasses.replace(folder, records=[gone, *folder.records])  # one damaged, too
    assert common_size(with_it) == common_size(dataclasses.replace(folder, records=folder.records[:1]))
    with pytest.raises(ValueError, match="no video can be read"):
        common_size(dataclasses.replace(folder, records=[gone]))


def test_an_autoencoder_alone(
    config: EvaluateConfig, scores: dict, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"autoencoder": str(checkpoint / "autoencoder"), "components": ("reconstruction",), "json": True}
    evaluate(dataclasses.replace(config, output_dir=str(tmp_path), pretrained_model_name_or_path="emoji", **changes))
    written = json.loads((tmp_path / "scores.json").read_text())
    assert json.loads(capsys.readouterr().out) == written, "for programs: nothing else is printed"
    parts = written["parts"]
    assert parts.keys() == {"real", "real_halves", "reconstruction"}
    assert parts["reconstruction"] == pytest.approx(scores["parts"]["reconstruction"], rel=1e-4)


def test_content_frames_are_compared_with_content_frames(config: EvaluateConfig, tmp_path: Path) -> None:
    evaluate(dataclasses.replace(config, output_dir=str(tmp_path), components=("content",)))
    parts = json.loads((tmp_path / "scores.json").read_text())["parts"]
    assert parts.keys() == {"real", "real_halves", "frozen", "content"}
    assert parts["content"]["frame_difference"] == 0
    features = [
        np.concatenate([np.load(file)["features"] for file in sorted(tmp_path.glob(f"parts/{name}-[0-9a-f]*/*.npz"))])
        for name in ("content", "frozen")
    ]
    expected = frechet_distance(*(FrechetStatistics(rows) for rows in features))
    assert parts["content"]["fvd"] == pytest.approx(expected, rel=1e-6)


def test_evaluations_share_what_they_can(config: EvaluateConfig, tmp_path: Path) -> None:
    changes = {"measures_dir": str(tmp_path / "shared"), "components": ("frozen",)}
    evaluate(dataclasses.replace(config, output_dir=str(tmp_path / "a"), **changes))
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "shared").glob("*/*.npz")}
    changes["components"] = ("frozen", "motion")
    evaluate(dataclasses.replace(config, output_dir=str(tmp_path / "b"), guidance_scale=3.0, **changes))
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "shared").glob("*/*.npz")}
    assert written and {file: times[file] for file in written} == written
    assert {file.parent.name.split("-")[0] for file in times.keys() - written.keys()} == {"motion"}


def test_parts_depend_on_their_own_networks_only(scores: dict) -> None:
    def digest_of(name: str, seed: int | None, changed: str) -> str:
        rendition = Rendition(name, "", None, None, seed=seed)  # type: ignore[arg-type]
        model = scores["protocol"]["model"]
        weights = model["weights_sha256"] | {changed: "other"}
        return digest(
            rendition_protocol(rendition, scores["protocol"] | {"model": model | {"weights_sha256": weights}})
        )

    for name, seed, unused in (("reconstruction", None, "unet"), ("content", 0, "motion_transformer")):
        assert digest_of(name, seed, unused) == digest_of(name, seed, "nothing")
        assert digest_of(name, seed, unused) != digest_of(name, seed, "autoencoder")
    assert digest_of("full", 0, "unet") != digest_of("full", 0, "motion_transformer")


def test_comparison_refuses_unlike_protocols(
    config: EvaluateConfig, scores: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    like, unlike = tmp_path / "like.json", tmp_path / "unlike.json"
    like.write_text(json.dumps(scores | {"parts": {"full": {"n": 4, "fvd": 123.456}}}))
    fewer = tmp_path / "fewer.json"
    fewer.write_text(json.dumps(scores | {"parts": {"full": {"n": 3, "fvd": 1.0}}}))
    protocol = scores["protocol"] | {"features": scores["protocol"]["features"] | {"resize": "another"}}
    unlike.write_text(json.dumps(scores | {"protocol": protocol}))
    first = str(Path(config.output_dir) / "scores.json")
    evaluate(EvaluateConfig(compare=(first, str(like))))
    assert "123.5" in capsys.readouterr().out
    with pytest.raises(ValueError, match="not measured alike: features.resize is .* and another"):
        evaluate(EvaluateConfig(compare=(first, str(unlike))))
    with pytest.raises(ValueError, match="full is of 4 and 3 clips"):
        evaluate(EvaluateConfig(compare=(first, str(fewer))))
    evaluate(EvaluateConfig(compare=(first, str(unlike)), compare_unlike=True))
    assert "features.resize" in " ".join(capsys.readouterr().out.split())
    like.write_text('{"parts": {}}')
    with pytest.raises(ValueError, match="like.json: not a scores.json .it has no protocol"):
        evaluate(EvaluateConfig(compare=(first, str(like))))
    like.write_text('{"parts": [], "protocol": 1}')
    with pytest.raises(ValueError, match="like.json: not a scores.json .it has no parts and no protocol"):
        evaluate(EvaluateConfig(compare=(first, str(like))))
    like.write_text(Path(first).read_text()[:100])  # cut short
    with pytest.raises(ValueError, match=r"not a scores.json: .*like.json: not valid JSON .*line 6 column"):
        evaluate(EvaluateConfig(compare=(first, str(like))))
    with pytest.raises(ValueError, match="exactly one of the two"):
        EvaluateConfig()


def evaluate_with_thin_i3d(config: Path) -> None:
    """``evaluate --config``, in a process of its own, with what ``i3d_file`` puts in I3D's place."""
    i3d.InceptionI3d = thin_i3d()
    assert main(["evaluate", "--config", str(config)]) == 0


def test_two_processes_give_the_scores_of_one(config: EvaluateConfig, scores: dict, tmp_path: Path) -> None:
    write_config(tmp_path / "config.yaml", "evaluate", dataclasses.replace(config, output_dir=str(tmp_path / "out")))
    ended = finish(start_all(2, evaluate_with_thin_i3d, tmp_path / "config.yaml"))
    assert all(status == 0 for status, _, _ in ended), ended
    again = json.loads((tmp_path / "out/scores.json").read_text())
    for name, part in scores["parts"].items():
        assert again["parts"][name] == pytest.approx(part, rel=1e-2), name
    assert again["problems"] == scores["problems"]


def test_an_empty_folder(config: EvaluateConfig, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    changes = {"data_dir": str(tmp_path / "empty"), "output_dir": str(tmp_path / "out")}
    with pytest.raises((ValueError, OSError), match="empty: "):
        evaluate(dataclasses.replace(config, **changes))


def test_store_keeps_order_protocols_and_contents_apart(tmp_path: Path) -> None:
    contents = {2: "a", 3: "b", 4: "c", 5: "d"}

    def store(seed: int = 0) -> RenditionStore:
        return RenditionStore(tmp_path, "full", {"seed": seed}, contents.__getitem__)

    first = store()
    first.add([4, 2], value=np.array([40, 20]))
    first.add([3], value=np.array([30]))
    again = store()
    assert again.load("value", [2, 3, 4]).tolist() == [20, 30, 40]
    assert not again.has(5)
    assert not store(seed=1).has(4)
    assert again.has(3, ["value"]) and not again.has(3, ["value", "other"])
    contents[3] = "changed"
    assert not again.has(3) and not store().has(3)
    again.add([3], value=np.array([31]))
    assert store().load("value", [2, 3]).tolist() == [20, 31]
    contents[3] = "b"
    assert store().load("value", [3]).tolist() == [30], "both are kept"
