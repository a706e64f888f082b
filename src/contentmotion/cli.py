"""The command line: a table of commands. Parses, imports the one command that is asked for, calls it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module

import contentmotion
from contentmotion import config
from contentmotion.arguments import Command, UsageError, did_you_mean, help_text, parse_config, settings_of
from contentmotion.config.common import printable
from contentmotion.run_dir import is_main_process, is_out_of_memory, leave_processes, owned_folder, reason_of

DEBUG_VARIABLE = "CONTENTMOTION_DEBUG"
PLAN = "contentmotion.cost.plan:print_plan"
COMMANDS = {
    "generate": Command(
        config.GenerateConfig, "contentmotion.commands.generate:generate", "videos from prompts", "prompt"
    ),
    "train": Command(
        config.TrainPipelineConfig,
        "contentmotion.commands.train:train",
        "your videos -> a model of your own: all of 0 to 5 below, one after the other",
        "train_data_dir",
    ),
    "demo": Command(config.DemoConfig, "contentmotion.demo.app:demo", "a web page to play with a model"),
    "reconstruct": Command(
        config.ReconstructConfig,
        "contentmotion.commands.reconstruct:reconstruct",
        "a real video through the autoencoder, side by side",
        "video",
    ),
    "inspect": Command(
        config.InspectConfig,
        "contentmotion.commands.inspect:inspect",
        "what is in a data set, and what a recipe gets out of it",
        "train_data_dir",
    ),
    "cut": Command(
        config.CutConfig,
        "contentmotion.commands.cut:cut",
        "videos of any size and length -> short clips of one size",
        "train_data_dir",
    ),
    "train-vae": Command(
        config.TrainVAEConfig,
        "contentmotion.train.vae:train_vae",
        "0. an image VAE (only where none fits)",
        dry_run=PLAN,
    ),
    "train-autoencoder": Command(
        config.TrainAutoencoderConfig,
        "contentmotion.train.autoencoder:train_autoencoder",
        "1. video <-> content frame + motion latent",
        dry_run=PLAN,
    ),
    "encode": Command(
        config.EncodeConfig, "contentmotion.commands.encode:encode", "2. videos -> a cache of latents to train on"
    ),
    "train-content": Command(
        config.TrainContentConfig,
        "contentmotion.train.content:train_content",
        "3. prompt -> content frame",
        dry_run=PLAN,
    ),
    "train-motion": Command(
        config.TrainMotionConfig,
        "contentmotion.train.motion:train_motion",
        "4. prompt and content frame -> motion latent",
        dry_run=PLAN,
    ),
    "train-video": Command(
        config.TrainVideoConfig,
        "contentmotion.train.video:train_video",
        "the other way: prompt (and depth, sketch, mask) -> all frames at once",
        dry_run=PLAN,
    ),
    "distill": Command(
        config.DistillConfig,
        "contentmotion.train.distill:distill",
        "a model of 50 steps -> one of 1 to 8 steps",
        dry_run=PLAN,
    ),
    "export": Command(
        config.ExportConfig, "contentmotion.commands.export:export", "5. the parts -> one pipeline folder"
    ),
    "push": Command(config.PushConfig, "contentmotion.commands.push:push", "a finished folder -> the hub", "folder"),
    "evaluate": Command(
        config.EvaluateConfig,
        "contentmotion.evaluate.run:evaluate",
        "FVD and other numbers of a checkpoint or of videos",
    ),
    "benchmark": Command(
        config.BenchmarkConfig,
        "contentmotion.cost.benchmark:benchmark",
        "FLOPs, seconds and memory of a clip, stage by stage",
        "systems",
    ),
    "report": Command(
        config.ReportConfig, "contentmotion.commands.report:report", "a training run as one HTML page", "run"
    ),
    "info": Command(
        config.InfoConfig, "contentmotion.commands.info:info", "what a checkpoint or a cache holds", "checkpoint"
    ),
}

RESULTS = {  # in the output folder of a command that trains; of `distill` that of its part
    "train-vae": "vae", "train-autoencoder": "autoencoder", "train-content": "content",
    "train-motion": "motion_transformer", "train-video": "video",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the words after ``contentmotion``; returns the exit status: 1 failed, 2 not understood, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # no word about parts that nothing here uses
    debug = os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")
    if "--debug" in words:
        words.remove("--debug")
        debug = True
    try:
        status = run(words)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("contentmotion: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `contentmotion ... | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        message = user_message(error)
        if debug or message is None:
            traceback.print_exc()
        if message is not None:
            print(f"contentmotion: error: {message}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def run(words: list[str]) -> int:
    """Finds the command, parses its settings and calls it."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"contentmotion {contentmotion.__version__}")
        return 0
    if words[0] == "--print_completion":
        if len(words) != 2:
            raise UsageError("--print_completion needs a shell: bash, zsh or tcsh")
        print(completion_script(words[1]))
        return 0
    name = words[0]
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        near = did_you_mean(name, COMMANDS) or " (see contentmotion --help)"
        raise UsageError(f"unknown {kind} {name}{near}")
    command = COMMANDS[name]
    if {"-h", "--help", "--help_all"} & set(words):
        print(help_text(name, command.config_class, command.positional, "--help_all" in words))
        return 0
    settings = parse_config(name, command.config_class, command.positional, words[1:])
    target = command.dry_run if command.dry_run and settings.dry_run else command.function
    hub, choice = getattr(settings, "hub", settings), nullcontext()
    if target == command.function and (getattr(hub, "revision", None) or getattr(hub, "variant", None)):
        choice = import_module("contentmotion.pipelines.folder").chosen_by(settings)  # it imports diffusers
    publishes = target == command.function and getattr(hub, "push_to_hub", False)
    if publishes:  # what would be refused at the end is refused now
        import_module("contentmotion.commands.push").require_access(hub.hub_model_id)
    module, _, function = target.partition(":")
    writes = target == command.function and hasattr(settings, "output_dir") and not getattr(settings, "compare", None)
    with choice, owned_folder(settings.output_dir) if writes else nullcontext():
        getattr(import_module(module), function)(settings)
    if publishes and is_main_process():
        result = f"{settings.output_dir}/{RESULTS.get(name) or RESULTS[f'train-{settings.part}']}"
        import_module("contentmotion.commands.push").push(config.PushConfig(folder=result, repo_id=hub.hub_model_id))
    leave_processes()
    return 0


def overview() -> str:
    """The list of commands."""
    rows = "\n".join(f"  {name:<19}{command.summary}" for name, command in COMMANDS.items())
    return f"""usage: contentmotion COMMAND [words] [--config FILE.yaml] [--name value ...]

Text to video through a content frame and a motion latent.

commands:
{rows}

  contentmotion COMMAND --help    explains a command and what people change first; --help_all every setting
  contentmotion --version         prints the version
  contentmotion --print_completion SHELL  prints a script that completes commands in bash, zsh or tcsh
  --debug (or {DEBUG_VARIABLE}=1)  shows where an error comes from

Example: contentmotion generate "red heart" "woman lifting weights, dark skin tone" --seed 7"""


def completion_script(shell: str) -> str:
    """A script to be sourced in a shell, which completes commands, settings and their words.

    Raises:
        UsageError: A shell that shtab does not know.
        ImportError: shtab is not installed.
    """
    import argparse

    try:
        import shtab
    except ImportError:
        raise ImportError(
            'completion needs shtab, which is not installed: pip install "contentmotion[completion]"'
        ) from None
    if shell not in shtab.SUPPORTED_SHELLS:
        raise UsageError(f"--print_completion takes one of {', '.join(shtab.SUPPORTED_SHELLS)}, got {shell}")
    parser = argparse.ArgumentParser(prog="contentmotion")  # which is what shtab reads
    parser.add_argument("--version", action="store_true")
    subparsers = parser.add_subparsers()
    for name, command in COMMANDS.items():
        own = subparsers.add_parser(name, help=command.summary)
        own.add_argument("--config", metavar="FILE.yaml").complete = shtab.FILE  # type: ignore[attr-defined]
        for setting in settings_of(command.config_class).values():
            words = setting.choices or (("true", "false") if setting.kind.item is bool else None)
            many = "*" if setting.kind.container else "?" if setting.kind.item is bool else None
            action = own.add_argument(f"--{setting.name}", choices=words, nargs=many)
            if setting.kind.item is str and not words:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        if command.positional:
            own.add_argument(command.positional, nargs="*").complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)


def user_message(error: Exception) -> str | None:
    """One line about what went wrong; None for an error that only a programmer can have made."""
    if is_out_of_memory(error):
        return "out of memory: try a smaller batch, fewer frames or a smaller picture"
    # By name: importing safetensors here would make every --help wait for it.
    expected = isinstance(error, (ValueError, OSError, ImportError, MemoryError))
    if expected or type(error).__name__ == "SafetensorError":
        return printable(reason_of(error))
    return None
