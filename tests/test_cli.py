"""The command line: parsing, help, config files, exit statuses."""

import dataclasses
import errno
import math
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import contentmotion
from contentmotion.arguments import Command, UsageError, help_text, parse_config, settings_of
from contentmotion.cli import COMMANDS, main, user_message
from contentmotion.config import (
    ContentSizes,
    GenerateConfig,
    InfoConfig,
    MotionSizes,
    ReconstructConfig,
    TrainMotionConfig,
    parse_bucket,
)
from contentmotion.run_dir import owned_folder, prepare_output_dir, reason_of, write_config
from contentmotion.saving import replacing_file

ROOT = Path(__file__).parents[1]
WORDS = "a list (words separated by spaces), each text"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
# A busy machine is no failure.
unhurried = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def parse(command: str, *words: str):
    row = COMMANDS[command]
    return parse_config(command, row.config_class, row.positional, words)


def fill_required(command: str) -> list[str]:
    """Words that give every required setting a value."""
    settings = settings_of(COMMANDS[command].config_class).values()
    names = [setting.name for setting in settings if setting.default is dataclasses.MISSING]
    extra = {"generate": ["--prompt", "x"], "encode": ["--autoencoder", "x"], "evaluate": ["--data_dir", "x"]}.get(
        command, []
    )
    return [word for name in names for word in (f"--{name}", "motion" if name == "part" else "x")] + extra


@pytest.mark.parametrize("command", COMMANDS)
def test_every_field_is_a_documented_flag_with_its_default(command: str) -> None:
    row = COMMANDS[command]
    short, shown = (" ".join(help_text(command, row.config_class, row.positional, e).split()) for e in (False, True))
    for setting in settings_of(row.config_class).values():
        assert f"--{setting.name} {setting.metavar} {setting.help}" in shown
        assert f"--{setting.name}" in short, "seldom changed ones by their names"
    given_names = {word[2:] for word in fill_required(command) if word.startswith("--")}
    config = parse(command, *fill_required(command))
    documented = {name.partition(".")[0] for name in settings_of(row.config_class)}
    for field in dataclasses.fields(row.config_class):
        assert field.name in documented
        if field.name not in given_names:
            assert getattr(config, field.name) == field.default, field.name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_has_a_range_that_its_default_is_in(command: str) -> None:
    row = COMMANDS[command]
    for setting in settings_of(row.config_class).values():
        if setting.kind.item not in (int, float):
            continue
        limits = setting.kind.range
        assert limits is not None and math.isfinite(limits.low) and math.isfinite(limits.high), setting.name
        assert setting.default is None or setting.default is dataclasses.MISSING or setting.kind.container or (
            setting.default in limits
        )  # fmt: skip
        for number in ("inf", "-inf", "nan", "1e400", "9" * 5000, str(limits.low - 1), str(limits.high + 1)):
            with pytest.raises(UsageError, match=f"^--{setting.name}: expected .*{re.escape(str(limits))}, got "):
                parse(command, *fill_required(command), f"--{setting.name}={number}")


@pytest.mark.parametrize("command", ["distill", *(name for name in COMMANDS if name.startswith("train-"))])
def test_settings_can_be_surveyed(command: str) -> None:
    """A block counts once; its settings stand below the others."""
    names = list(settings_of(COMMANDS[command].config_class))
    assert len({name.partition(".")[0] for name in names}) <= 45
    assert ["." in name for name in names] == sorted("." in name for name in names)


def test_settings_of_the_hub(tmp_path: Path) -> None:
    """By diffusers' names, without their block's; of one model, and not half of them."""
    words = ["--latent_cache=c", "--output_dir=o", "--pretrained_model_name_or_path=a/b", "--use_8bit_adam"]
    config = parse("train-content", *words, "--revision=v2", "--push_to_hub", "--hub_model_id=me/m")
    assert (config.hub.revision, config.hub.push_to_hub, config.hub.hub_model_id) == ("v2", True, "me/m")
    assert config.scale.use_8bit_adam
    for more, message in (
        (["--revision=v2", "--vae=c/d"], "of the one model that is named, .* here are 2: "),
        (["--hub_model_id=me/m"], "--push_to_hub needs --hub_model_id owner/name, and that goes with it"),
    ):
        with pytest.raises(UsageError, match=message):
            parse("train-content", *words, *more)
    (tmp_path / "a.yaml").write_text("revision: v1\nhub:\n  revision: v2\n")
    with pytest.raises(UsageError, match="hub.revision is there twice, under two names"):
        parse("train-content", *words, f"--config={tmp_path}/a.yaml")


def test_numbers_are_checked_where_a_config_is_made() -> None:
    with pytest.raises(ValueError, match="^MotionSizes.depth must be from 1 to 1,000, got 0$"):
        MotionSizes(depth=0)
    with pytest.raises(ValueError, match="^ContentSizes.block_out_channels must be from 1 to 16,384, got -1$"):
        ContentSizes(block_out_channels=(8, -1))
    with pytest.raises(ValueError, match="^GenerateConfig.fps must be above 0, at most 1,000, got nan$"):
        GenerateConfig(prompt=["a"], fps=math.nan)
    with pytest.raises(ValueError, match="^bucket 99999x16x16: 99,999 is not from 1 to 10,000$"):
        parse_bucket("99999x16x16")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_config_repeats_from_its_own_file(command: str, tmp_path: Path) -> None:
    config = parse(command, *fill_required(command))
    write_config(tmp_path / "config.yaml", command, config)
    assert parse(command, "--config", str(tmp_path / "config.yaml")) == config


def test_blocks_on_the_command_line_and_in_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--latent_cache", "c", "--output_dir", "o", "--autoencoder", "a"]
    config = parse("train-motion", *words, "--model.depth", "3", "--eval.split", "null", "--model.learn_sigma")
    assert config.model == MotionSizes(depth=3, learn_sigma=True) and config.eval.split is None
    (tmp_path / "a.yaml").write_text("model:\n  depth: 5\n  num_heads: 4\neval:\n  split: dev\nscale:\n")
    config = parse("train-motion", *words, "--config", str(tmp_path / "a.yaml"), "--model.depth", "3")
    assert (config.model, config.eval.split) == (MotionSizes(depth=3, num_heads=4), "dev")
    (folder := tmp_path / "checkpoint-000001").mkdir()
    prepare_output_dir(tmp_path, "train-motion", config)
    assert parse("train-motion", "--config", str(tmp_path / "config.yaml")) == config and folder.exists()
    assert capsys.readouterr().err == ""
    changed = dataclasses.replace(config, seed=1, model=dataclasses.replace(config.model, num_heads=8))
    prepare_output_dir(tmp_path, "train-motion", changed)
    assert "other settings than before: seed 0 -> 1, model.num_heads 4 -> 8." in capsys.readouterr().err


def test_files_may_go_on_using_names_of_before(tmp_path: Path) -> None:
    """Runs go on with their own."""
    file = tmp_path / "settings.yaml"
    file.write_text("cache_dir: c\neval_cache_dir: d\noutput_dir: o\npart: content\n")
    config = parse("distill", "--config", str(file))
    assert (config.latent_cache, config.eval_latent_cache) == ("c", "d")
    file.write_text("cache_dir: c\ndata_dir: d\n")
    assert parse("evaluate", "--config", str(file)).measures_dir == "c"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("depth: 3", "FILE: unknown key 'depth': it is called model.depth now"),
        ("cache_dir: x\nlatent_cache: y", "FILE: latent_cache is there twice, under two names"),
        ("eval_steps: 3", "FILE: unknown key 'eval_steps': it is called eval.steps now"),
        (
            "depth: 3\nseed: 1\nseet: 2",
            "FILE: unknown key 'depth': it is called model.depth now; unknown key 'seet': did you mean seed?",
        ),
        ("i3d: x", "FILE: unknown key 'i3d': it is called eval.i3d now"),
        ("model: 3", "FILE: unknown key 'model': settings of this block are called model.hidden_size and the like"),
        ("model:\n  dept: 3", "FILE: unknown key 'model.dept': did you mean model.depth?"),
        ("model:\n  depth: x", "FILE: model.depth: expected a whole number from 1 to 1,000, got x"),
        ("model:\n  depth: 0", "FILE: model.depth: expected a whole number from 1 to 1,000, got 0"),
        ("eval:\n  steps: 1", "eval.steps needs --eval.data_dir"),
    ],
)
def test_errors_about_blocks_name_the_setting(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    with pytest.raises(UsageError) as error:
        parse("train-motion", "--latent_cache=c", "--output_dir=o", "--autoencoder=a", "--config", str(file))
    assert str(error.value) == message.replace("FILE", str(file))


@unhurried
@given(prompts=st.lists(TEXT, min_size=1), negative=TEXT, rate=st.floats(1e-9, 1e3))
def test_any_text_and_number_survives_as_a_flag(prompts: list[str], negative: str, rate: float) -> None:
    flags = [f"--prompt={prompt}" for prompt in prompts]
    config = parse("generate", *flags, "--prompt=last", f"--negative_prompt={negative}", f"--fps={rate!r}")
    expected = None if negative == "null" else negative
    assert (config.prompt, config.negative_prompt, config.fps) == ([*prompts, "last"], expected, rate)


@unhurried
@given(prompts=st.lists(TEXT, min_size=2), negative=TEXT | st.none(), rate=st.floats(1e-9, 1e3))
def test_any_text_and_number_survives_in_a_file(
    prompts: list[str], negative: str | None, rate: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = GenerateConfig(prompt=prompts, negative_prompt=negative, fps=rate)
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    write_config(file, "generate", config)
    assert parse("generate", "--config", str(file)) == config


def test_words_after_the_command_are_prompts_video_or_checkpoint() -> None:
    assert parse("generate", "a crying cat", "rocket", "--seed", "7") == GenerateConfig(
        prompt=["a crying cat", "rocket"], seed=7
    )
    assert parse("reconstruct", "my video.mp4").video == "my video.mp4"
    assert parse("info", "runs/a").checkpoint == "runs/a"
    assert parse("info") == InfoConfig()


def test_prompts_that_look_like_something_else() -> None:
    assert parse("generate", "--prompt", "-5 degrees", "--seed", "1").prompt == ["-5 degrees"]
    assert parse("generate", "--prompt=--seed", "--seed=1").prompt == ["--seed"]
    assert parse("generate", "null", "3", "[a", "# b").prompt == ["null", "3", "[a", "# b"]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_number_has_a_range(name: str) -> None:
    """One without could not be read again from the config.yaml that a run writes."""
    for setting in settings_of(COMMANDS[name].config_class).values():
        assert setting.kind.item not in (int, float) or setting.kind.range is not None, setting.name


def test_lists_and_switches() -> None:
    config = parse("generate", "a", "--formats", "gif", "webm", "--enable_model_cpu_offload", "--fps", "12")
    assert (config.formats, config.enable_model_cpu_offload, config.fps) == (("gif", "webm"), True, 12.0)
    assert parse("generate", "a", "--formats", "gif,mp4").formats == ("gif", "mp4")
    assert parse("generate", "a", "--enable_model_cpu_offload", "false").enable_model_cpu_offload is False
    assert parse("generate", "--class_labels", "1", "2").class_labels == [1, 2]
    assert parse("generate", "--class_labels", "[1, 2]").class_labels == [1, 2]
    assert parse("evaluate", "--data_dir", "x", "--split", "null").split is None


def test_flags_beat_the_file_wherever_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("prompt: [from file]\nseed: 5\nfps: 1e1\nmixed_precision: no\noutput_dir: 2020-01-01\n")
    config = parse("generate", "from words", "--fps", "2", "--config", str(file))
    assert (config.prompt, config.seed, config.fps) == (["from words"], 5, 2.0)
    assert config.mixed_precision == "no", "YAML 1.1 would read false"
    assert config.output_dir == "2020-01-01", "YAML 1.1 would read a date"
    assert parse("generate", "--config", str(file)).fps == 10.0, "YAML 1.1 would read 1e1 as text"


def test_a_later_file_beats_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: 1\nfps: 3\n")
    (tmp_path / "b.yaml").write_text("seed: 2\n")
    config = parse("generate", "x", "--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml"))
    assert (config.seed, config.fps) == (2, 3.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("generate --promt a", "unknown option --promt: did you mean --prompt?"),
        ("generate a --output-dir b", "unknown option --output-dir: did you mean --output_dir?"),
        ("generate a --xyzzy 1", "unknown option --xyzzy (see contentmotion generate --help)"),
        ("generate a -s 1", "unknown option -s (see contentmotion generate --help)"),
        ("generate a --seed one", "--seed: expected a whole number from 0 to 10^18, got one"),
        ("generate a --seed 1.5", "--seed: expected a whole number from 0 to 10^18, got 1.5"),
        ("generate a --fps fast", "--fps: expected a number above 0, at most 1,000, got fast"),
        ("generate a --num_frames x", "--num_frames: expected a whole number from 1 to 10,000, got x"),
        (
            "generate a --mixed_precision fp8",
            "--mixed_precision: expected one of auto, no, bf16, fp16, got fp8",
        ),
        (
            "generate a --enable_model_cpu_offload=2",
            "--enable_model_cpu_offload: expected true or false, got 2",
        ),
        ("generate a --seed", "--seed needs a value: a whole number from 0 to 10^18"),
        ("generate a --config", "--config needs a value: a YAML file"),
        ("generate --seed 1 a", "unexpected word 'a': settings are given as --name value, prompt before them"),
        (
            "generate a --num_inference_steps -3",
            "--num_inference_steps: expected a whole number from 1 to 10^9, got -3",
        ),
        ("generate", "give prompts, or --prompt_file, or --class_labels (exactly one of the three)"),
        ("reconstruct", "missing VIDEO (see contentmotion reconstruct --help)"),
        ("reconstruct a b", "reconstruct takes one video, got 2: a b"),
        ("distill --eval_cache_dir x", "unknown option --eval_cache_dir: it is called --eval_latent_cache now"),
        ("evaluate --cache_dir x", "unknown option --cache_dir: it is called --measures_dir now"),
        ("train-content --hidden_size 3", "unknown option --hidden_size: it is called --model.hidden_size now"),
        ("train-content --lora_rank 3", "unknown option --lora_rank: it is called --lora.rank now"),
        (
            "train-content --model 3",
            "unknown option --model: settings of this block are called --model.architecture and the like",
        ),
        ("generate a --guidance_scale 1e400", "--guidance_scale: expected a number from 0 to 1,000, got 1e400"),
        ("generate a --fps nan", "--fps: expected a number above 0, at most 1,000, got nan"),
        ("generate a --seed 1_0", "--seed: expected a whole number from 0 to 10^18, got 1_0"),
        (
            "train-content --model.depth 100000000",
            "--model.depth: expected a whole number from 1 to 1,000, got 100000000",
        ),
        ("train-vae --num_frames 1000000000", "--num_frames: expected a whole number from 1 to 10,000, got 1000000000"),
        ("train-vae --adam_beta1 1", "--adam_beta1: expected a number from 0, below 1, got 1"),
        ("train-motion x", "unexpected word 'x': train-motion takes its settings as --name value"),
        ("gen a", "unknown command gen: did you mean generate?"),
        ("generate a --steps 3", "unknown option --steps: did you mean --num_inference_steps?"),
        ("train-motion --steps 3", "unknown option --steps: did you mean --max_train_steps?"),
        ("train-autoencoder --data_dir x", "unknown option --data_dir: did you mean --train_data_dir?"),
        (
            "train-autoencoder --perceptual_weight 1",
            "unknown option --perceptual_weight: it is called --perceptual.weight now",
        ),
        ("finetune x", "unknown command finetune: did you mean train?"),
        ("sample x", "unknown command sample: did you mean generate?"),
        ("generate a --cfg 3", "unknown option --cfg: did you mean --guidance_scale?"),
        ("train x --model y", "unknown option --model: did you mean --image_model?"),
        ("train-motion --lr 1", "unknown option --lr: did you mean --learning_rate?"),
        ("generat a", "unknown command generat: did you mean generate?"),
        ("train_motion", "unknown command train_motion: did you mean train-motion?"),
        ("--verison", "unknown option --verison (see contentmotion --help)"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"contentmotion: error: {message}\n")


def test_everything_missing_is_named_at_once() -> None:
    with pytest.raises(UsageError) as error:
        parse("train-motion")
    for field in dataclasses.fields(TrainMotionConfig):
        assert (f"--{field.name} " in str(error.value)) == (field.default is dataclasses.MISSING)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("promt: [a]", "FILE: unknown key 'promt': did you mean prompt?"),
        ("prompt: [a]\nseed: x", "FILE: seed: expected a whole number from 0 to 10^18, got x"),
        ("prompt: [a]\nseed:", "FILE: seed: expected a whole number from 0 to 10^18, got nothing"),
        ("- a", "--config FILE: expected lines of the form `name: value`"),
        ("prompt: [[a], {b: c}]", f"FILE: prompt: expected {WORDS}, got several values"),
        ("prompt: [a]\nseed: 1\nseed: 2", "--config FILE, line 3: not valid YAML: 'seed' stands here twice"),
        ("a: &a [1]\nb: [*a, *a]", "--config FILE, line 2: not valid YAML: aliases (*name) are not read"),
        ("prompt: [a\nseed: 1", "--config FILE, line 2: not valid YAML: expected ',' or ']', but got ':'"),
    ],
)
def test_config_file_errors_name_file_and_key(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    with pytest.raises(UsageError) as error:
        parse("generate", "--config", str(file))
    assert str(error.value) == message.replace("FILE", str(file))


def test_config_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for file, reason in (
        (tmp_path / "no.yaml", "No such file"),
        (tmp_path / "binary.yaml", "not a text file"),
    ):
        with pytest.raises(UsageError, match=reason):
            parse("generate", "--config", str(file))


def test_overview_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert name in overview
        assert command.summary in overview
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"contentmotion {contentmotion.__version__}\n"
    assert main([]) == 2
    assert main(["generate", "a", "--help"]) == 0
    shown = capsys.readouterr().out
    assert 'Example: contentmotion generate "red heart"' in shown
    assert "(default: 0)" in shown
    assert max(map(len, shown.splitlines())) <= 110


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_names_every_setting_and_explains_those_that_are_changed_first(name: str) -> None:
    config_class, positional = COMMANDS[name].config_class, COMMANDS[name].positional
    short, whole = help_text(name, config_class, positional), help_text(name, config_class, positional, True)
    for text in (short, whole):
        assert max(map(len, text.splitlines())) <= 110
        named = re.findall(r"--([\w.]*\w)", text)
        assert set(settings_of(config_class)) <= set(named)
    assert len(short.splitlines()) <= 75, "two screens"
    first = {flag for flag in re.findall(r"^  --([\w.]+) ", short, re.MULTILINE)}
    missing = [s.name for s in settings_of(config_class).values() if s.default is dataclasses.MISSING]
    assert set(missing) <= first and (
        len(first) < len(settings_of(config_class)) or short.count("\n") == whole.count("\n")
    )


def test_help_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train-motion", "--help_all"]) == 0
    shown = capsys.readouterr().out
    assert (
        "Adam's second decay rate" in shown and "What training the content model and the motion model share:" in shown
    )
    assert main(["train-motion", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Adam's second decay rate" not in shown and "--adam_beta2" in shown


def probe(monkeypatch: pytest.MonkeyPatch, folder: Path, body: str) -> None:
    """Adds a command called probe whose function runs `body`."""
    (folder / "probe_command.py").write_text(f"def run(config):\n    {body}\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "probe_command", raising=False)
    monkeypatch.setitem(COMMANDS, "probe", Command(InfoConfig, "probe_command:run", "a test", "checkpoint"))


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("raise ValueError('two\\nlines')", 1, "contentmotion: error: two lines\n"),
        ("open('/no/such/file')", 1, "contentmotion: error: /no/such/file: No such file or directory\n"),
        ("raise OSError('plain')", 1, "contentmotion: error: plain\n"),
        ("import no_such_tracker", 1, "contentmotion: error: No module named 'no_such_tracker'\n"),
        ("raise KeyboardInterrupt", 130, "contentmotion: interrupted\n"),
        ("raise MemoryError", 1, "contentmotion: error: MemoryError\n"),
    ],
)
def test_errors_of_commands_are_one_line(
    body: str, status: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.delenv("CONTENTMOTION_DEBUG", raising=False)
    probe(monkeypatch, tmp_path, body)
    assert main(["probe"]) == status
    assert capsys.readouterr().err == message


def test_debug_shows_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    probe(monkeypatch, tmp_path, "raise ValueError('here')")
    assert main(["probe", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("CONTENTMOTION_DEBUG", "1")
    assert main(["probe"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("contentmotion: error: here\n")


def test_a_programming_error_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    probe(monkeypatch, tmp_path, "{}['key']")
    assert main(["probe"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_prepare_output_dir_writes_what_repeats_the_run(tmp_path: Path) -> None:
    config = ReconstructConfig(video="a: b.mp4", output_dir=str(tmp_path / "new" / "folder"))
    folder = prepare_output_dir(config.output_dir, "reconstruct", config)
    assert yaml.safe_load((folder / "config.yaml").read_text())["video"] == "a: b.mp4"
    assert parse("reconstruct", "--config", str(folder / "config.yaml")) == config
    assert [path.name for path in folder.iterdir()] == ["config.yaml"], "no temporary file is left"


def python(*words: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], text=True, capture_output=True, timeout=120, **options)


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from contentmotion.cli import main; main(sys.argv[1:]); "
        "print(sorted({'torch', 'diffusers', 'transformers', 'av', 'numpy', 'PIL', 'argparse'} & set(sys.modules)), "
        "file=sys.stderr)"
    )
    for words in (["--help"], ["train-content", "--help"]):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = python("-c", code, *words)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.stderr == "[]\n"
        # Processor time: unlike the clock, it does not depend on what else the machine does.
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


# Of the command line itself, of torchrun and of accelerate.
OTHER_FLAGS = set("config debug help help_all name print_completion version nproc_per_node use_".split())  # noqa: SIM905
SCRIPTS = [path for folder in ("benchmarks", "runs") for path in sorted((ROOT / folder).glob("*.sh"))]


def flags_in(text: str) -> set[str]:
    return {flag.rstrip(".-") for flag in re.findall(r"(?<![\w-])--([a-zA-Z][\w.-]*)", text)}


def test_every_flag_that_the_source_speaks_of_exists() -> None:
    known = OTHER_FLAGS | {name for row in COMMANDS.values() for name in settings_of(row.config_class)}
    known |= {name.removeprefix("hub.") for name in known}
    for path in (ROOT / "src").rglob("*.py"):
        assert flags_in(path.read_text(encoding="utf-8")) <= known, path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_commands_in_scripts_have_these_flags(script: Path) -> None:
    """Also where a script would go on after a command that fails."""
    text, names = script.read_text(encoding="utf-8").replace("\\\n", " "), "|".join(COMMANDS)
    for line in text.splitlines():
        for command, words in re.findall(rf'(?:^ *|contentmotion |launch "?\S+ |=")({names}) (?!\w+=)([^#]*)', line):
            known = {"config", *settings_of(COMMANDS[command].config_class)}
            assert flags_in(words) <= known | {name.removeprefix("hub.") for name in known}, line


def test_as_a_process() -> None:
    done = python("-m", "contentmotion", "generate", "a", "--seed", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "contentmotion: error: --seed: expected a whole number from 0 to 10^18, got x\n"


def test_a_reader_that_has_enough_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    words = [sys.executable, "-m", "contentmotion", "train-content", "--help"]
    done = subprocess.run(words, stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write_end)
    assert done.stderr == ""


def test_errors_of_the_machine_are_one_line() -> None:
    error = RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 9 bytes")
    assert (user_message(error) or "").startswith("out of memory")
    assert user_message(ValueError("\x1b]0;x\x07 a\nb")) == "\\x1b]0;x\\x07 a b"
    assert user_message(RuntimeError("a bug")) is None
    assert user_message(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"
    assert reason_of(RuntimeError("Error(s) in loading:\n\tMissing: a\n\tUnexpected: b\n")).endswith("a Unexpected: b")


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, replacing_file(tmp_path / "a.bin"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert user_message(caught.value) == f"{tmp_path / 'a.bin'}: No space left on device"
    assert not list(tmp_path.iterdir())


OWNER = """
import sys, time
from contentmotion.run_dir import owned_folder
with owned_folder(sys.argv[1]):
    print("mine", flush=True)
    time.sleep(60)
"""


def test_one_owner_a_folder(tmp_path: Path) -> None:
    """The second is told who works there; of a killed one the lock and what it left half written go."""
    folder = tmp_path / "out"
    folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"mine\n"
        said = rf"out is in use: process {other.pid} on .* works there since 20"
        with pytest.raises(ValueError, match=said), owned_folder(tmp_path / "." / "out"):
            pass
        (folder / f".000-x.{other.pid}.partial.webm").touch()
        (tmp_path / f".out.{other.pid}.partial").mkdir()
        (tmp_path / f".out.v2.{other.pid}.partial").mkdir()
        kept = {".mine.webm", f".mine.{other.pid}.webm", f".inner.{os.getppid()}.partial.json"}
        for name in kept:  # a user's, and one of a run that goes on in here
            (folder / name).touch()
        other.kill()
    with owned_folder(folder):
        assert {path.name for path in folder.iterdir()} == kept
        assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", f".out.v2.{other.pid}.partial", "out"]
    assert not (tmp_path / ".out.lock").exists()


def test_a_command_is_refused_a_folder_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", "--train_data_dir", str(tmp_path / "no"), "--output_dir", str(tmp_path / "out")]
    with owned_folder(tmp_path / "out"):
        assert main(words) == 1
    assert f"out is in use: process {os.getpid()} on" in capsys.readouterr().err
    assert main(words) == 1 and "in use" not in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "a command that is refused leaves nothing"
    assert main([*words[:-1], str(tmp_path / "new" / "deep" / "out")]) == 1 and not (tmp_path / "new").exists()


def test_no_network_is_noticed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    import contentmotion.commands.generate  # noqa: F401  takes its time
    from contentmotion import loading

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(loading, "getproxies", dict)
    loading.notice_no_network.cache_clear()
    words = ["generate", "a", "--output_dir", str(tmp_path), "--pretrained_model_name_or_path", "nobody/no-model"]
    started = time.monotonic()
    assert main(words) == 1
    assert time.monotonic() - started < 10, "asked again and again, it is a minute"
    error = capsys.readouterr().err
    assert error.startswith("127.0.0.1 cannot be reached: only what was downloaded before is used\n")
    assert error.count("\n") == 2 and "nobody/no-model" in error.splitlines()[1]
    loading.notice_no_network.cache_clear()
