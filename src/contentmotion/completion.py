"""``contentmotion --print_completion SHELL``: a script that completes commands, settings and their words."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from contentmotion.arguments import Command, UsageError, settings_of


def completion_script(shell: str, commands: Mapping[str, Command]) -> str:
    """The script for a shell ("bash", "zsh", "tcsh" or what else shtab knows), to be sourced there.

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
    parser = argparse.ArgumentParser(prog="contentmotion")  # which is what shtab reads
    parser.add_argument("--version", action="store_true")
    subparsers = parser.add_subparsers()
    for name, command in commands.items():
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
