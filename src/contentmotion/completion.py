"""``contentmotion --print_completion SHELL``: a script that completes commands, settings and their words."""

from __future__ import annotations

import argparse
from typing import Any

from contentmotion.arguments import UsageError, field_types
from contentmotion.cli import COMMANDS


def completion_script(shell: str) -> str:
    """The script for a shell, to be sourced there.

    Args:
        shell: "bash", "zsh", "tcsh" or what else shtab knows.

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
    return shtab.complete(completion_parser(shtab.FILE), shell)


def completion_parser(files: Any) -> argparse.ArgumentParser:
    """All commands with their settings, as plain argparse, which is what shtab reads.

    Args:
        files: What marks an argument as a file or folder.
    """
    parser = argparse.ArgumentParser(prog="contentmotion")
    parser.add_argument("--version", action="store_true")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.summary)
        own.add_argument("--config", metavar="FILE.yaml").complete = files  # type: ignore[attr-defined]
        for field, kind in field_types(command.config_class).items():
            words = kind.choices or (("true", "false") if kind.item is bool else None)
            many = "*" if kind.is_list else "?" if kind.item is bool else None
            action = own.add_argument(f"--{field}", choices=words, nargs=many)
            if kind.item is str and not words:
                action.complete = files  # type: ignore[attr-defined]
        if command.positional:
            own.add_argument(command.positional, nargs="*").complete = files  # type: ignore[attr-defined]
    return parser
