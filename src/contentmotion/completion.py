"""``contentmotion --print_completion SHELL``: a script that completes commands, settings and their words."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from contentmotion.arguments import Command, UsageError, settings_of


def completion_script(shell: str, commands: Mapping[str, Command]) -> str:
    """The script for a shell, to be sourced there.

    Args:
        shell: "bash", "zsh", "tcsh" or what else shtab knows.
        commands: The command line's table.

    Raises:
        UsageError: A shell that shtab does not know.
        ImportError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise ImportError(
            'completion needs shtab, which is not installed: pip install "contentmotion[completion]"'
        ) from None
    if shell not in shtab.SUPPORTED_SHELLS:
        raise UsageError(f"--print_completion takes one of {', '.join(shtab.SUPPORTED_SHELLS)}, got {shell}")
    return shtab.complete(completion_parser(commands, shtab.FILE), shell)


def completion_parser(commands: Mapping[str, Command], files: Any) -> argparse.ArgumentParser:
    """All commands with their settings, as plain argparse, which is what shtab reads.

    Args:
        commands: The command line's table.
        files: What marks an argument as a file or folder.
    """
    parser = argparse.ArgumentParser(prog="contentmotion")
    parser.add_argument("--version", action="store_true")
    subparsers = parser.add_subparsers()
    for name, command in commands.items():
        own = subparsers.add_parser(name, help=command.summary)
        own.add_argument("--config", metavar="FILE.yaml").complete = files  # type: ignore[attr-defined]
        for setting in settings_of(command.config_class).values():
            words = setting.choices or (("true", "false") if setting.kind.item is bool else None)
            many = "*" if setting.kind.container else "?" if setting.kind.item is bool else None
            action = own.add_argument(f"--{setting.name}", choices=words, nargs=many)
            if setting.kind.item is str and not words:
                action.complete = files  # type: ignore[attr-defined]
        if command.positional:
            own.add_argument(command.positional, nargs="*").complete = files  # type: ignore[attr-defined]
    return parser
