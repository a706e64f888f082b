"""Command line and YAML file -> a command's config dataclass, with one-line errors that name the way out.

jsonargparse converts and checks the values and prints the help. Finding the values is done here: a command's
first words are its prompts (or video, or checkpoint), a list takes every word up to the next flag, and a flag
overrules the YAML file wherever the two stand.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import json
import re
import textwrap
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser
import jsonargparse
import yaml

HELP_WIDTH = 110
ALLOWED = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
METAVARS = {int: "N", float: "X", str: "TEXT", bool: "true|false"}


class UsageError(ValueError):
    """The command line, or a config file, asks for something that does not exist."""


@dataclass(frozen=True)
class FieldType:
    """A config field's type, taken apart.

    Attributes:
        item: The type, or that of a list's items.
        is_list: Whether it is a list or a tuple.
        optional: Whether it may be None.
    """

    item: Any
    is_list: bool
    optional: bool

    @property
    def choices(self) -> tuple[str, ...]:
        """The words of a ``Literal``."""
        return get_args(self.item) if get_origin(self.item) is Literal else ()

    @property
    def allowed(self) -> str:
        """What may be given, in words."""
        item = f"one of {', '.join(self.choices)}" if self.choices else ALLOWED[self.item]
        return f"a list (words separated by spaces), each {item}" if self.is_list else item

    @property
    def metavar(self) -> str:
        """What may be given, in short."""
        item = "|".join(self.choices) if self.choices else METAVARS[self.item]
        return f"{item} ..." if self.is_list else item


@dataclass(frozen=True)
class Given:
    """A value as text for jsonargparse (None: null), and who gave it ("--seed", "train.yaml: seed")."""

    text: str | None
    source: str


@functools.cache
def field_types(config_class: type) -> dict[str, FieldType]:
    """The types of a config's fields, by name."""
    types_by_name = {}
    for name, hint in get_type_hints(config_class).items():
        inner = [a for a in get_args(hint) if a is not types.NoneType]
        optional = get_origin(hint) in (Union, types.UnionType) and len(inner) < len(get_args(hint))
        if optional:
            hint = inner[0]
        is_list = get_origin(hint) in (list, tuple)
        types_by_name[name] = FieldType(get_args(hint)[0] if is_list else hint, is_list, optional)
    return types_by_name


def parse_config(command: str, config_class: type, positional: str | None, words: Sequence[str]) -> Any:
    """The config that a command line asks for; prints the help and exits where it asks for that.

    Args:
        command: The command's name.
        config_class: Its config dataclass.
        positional: Field that the words before the first flag fill, if any.
        words: Command line after the command's name.

    Raises:
        UsageError: Unknown or missing settings, or values that are not allowed.
    """
    parser = build_parser(command, config_class, positional)
    if any(word in ("-h", "--help") for word in words):
        parser.print_help()
        parser.exit()
    flags, config_files = read_words(command, config_class, positional, words)
    given: dict[str, Given] = {}
    for file in config_files:
        given |= read_config_file(file, config_class)
    given |= flags
    require_given(command, config_class, positional, given)
    try:
        texts = {name: value.text for name, value in given.items() if value.text is not None}
        values = parser.parse_args([f"--{name}={text}" for name, text in texts.items()])
    except argparse.ArgumentError as error:
        raise UsageError(explain(str(error), config_class, given)) from None
    nulls = dict.fromkeys(given.keys() - texts.keys())
    try:
        return config_class(**{name: values[name] for name in field_types(config_class)} | nulls)
    except ValueError as error:  # a config's own checks
        raise UsageError(str(error)) from error


def read_words(
    command: str, config_class: type, positional: str | None, words: Sequence[str]
) -> tuple[dict[str, Given], list[str]]:
    """Splits a command line into settings and the names of config files."""
    fields = field_types(config_class)
    values: dict[str, list[str]] = {}
    config_files: list[str] = []
    start = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    if start:
        if positional is None:
            raise UsageError(f"unexpected word {words[0]!r}: {command} takes its settings as --name value")
        if start > 1 and not fields[positional].is_list:
            raise UsageError(f"{command} takes one {positional}, got {start}: {' '.join(words[:start])}")
        values[positional] = list(words[:start])
    rest = list(words[start:])
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        name = flag.removeprefix("--")
        if not flag.startswith("-"):
            raise UsageError(f"unexpected word {flag!r}: settings are given as --name value")
        if not flag.startswith("--") or name != "config" and name not in fields:
            near = did_you_mean(name, [*fields, "config"], prefix="--")
            raise UsageError(f"unknown option {flag}{near or f' (see contentmotion {command} --help)'}")
        found = [value] if equals else take_values(rest, fields.get(name))
        if not found:
            allowed = fields[name].allowed if name in fields else "a YAML file"
            raise UsageError(f"--{name} needs a value: {allowed}")
        if name == "config":
            config_files += found
        elif fields[name].is_list:
            values.setdefault(name, []).extend(found)
        else:
            values[name] = found
    given = {}
    for name, found in values.items():
        is_null = fields[name].optional and not fields[name].is_list and found == ["null"]
        given[name] = Given(None if is_null else as_text(found, fields[name]), f"--{name}")
    return given, config_files


def take_values(rest: list[str], field: FieldType | None) -> list[str]:
    """Removes a flag's values from the front of the remaining words."""
    if field is not None and field.item is bool and not field.is_list:
        return [rest.pop(0)] if rest and rest[0].lower() in ("true", "false") else ["true"]
    found: list[str] = []
    most = len(rest) if field is not None and field.is_list else 1
    while rest and not rest[0].startswith("--") and len(found) < most:
        found.append(rest.pop(0))
    return found


def as_text(words: list[str], field: FieldType) -> str:
    """A setting's words as jsonargparse reads them: lists as JSON."""
    if not field.is_list:
        return words[0]
    if len(words) == 1 and words[0].startswith("["):  # already a list, as in the YAML file
        try:
            return json.dumps(json.loads(words[0]), ensure_ascii=False)
        except ValueError:
            pass
    if field.choices:
        words = [choice for word in words for choice in word.split(",")]
    if field.item is str or field.choices:
        return json.dumps(words, ensure_ascii=False)
    return f"[{', '.join(words)}]"


class _Yaml12Loader(yaml.SafeLoader):
    """Plain words as in YAML 1.2: ``no`` and ``on`` are text, ``1e-4`` is a number, dates are text."""


_Yaml12Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0].rpartition(":")[2] not in ("bool", "float", "timestamp")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)$"),
    list("-+.0123456789"),
)


def read_config_file(file: str, config_class: type) -> dict[str, Given]:
    """The settings of a YAML file.

    Raises:
        UsageError: No such file, no mapping of settings, or a setting that the command does not have.
    """
    try:
        content = yaml.load(Path(file).read_text(encoding="utf-8"), Loader=_Yaml12Loader)
    except OSError as error:
        raise UsageError(f"--config {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {file}: not a text file") from error
    except yaml.YAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UsageError(f"--config {file}{where}: not valid YAML: {problem}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"--config {file}: expected lines of the form `name: value`")
    fields = field_types(config_class)
    given = {}
    for name, value in content.items():
        if name not in fields and getattr(config_class, "takes_any_recipe", False):
            continue
        if name not in fields:
            raise UsageError(f"{file}: unknown key {name!r}{did_you_mean(str(name), fields)}")
        if value is None and not fields[name].optional:
            raise UsageError(f"{file}: {name}: expected {fields[name].allowed}, got nothing")
        if isinstance(value, str):
            text = as_text([value], fields[name])
        else:
            text = None if value is None else json.dumps(value, default=str, ensure_ascii=False)
        given[name] = Given(text, f"{file}: {name}")
    return given


def require_given(command: str, config_class: type, positional: str | None, given: dict[str, Given]) -> None:
    """Raises ``UsageError`` naming every setting that is missing."""
    missing = [
        name.upper() if name == positional else f"--{name}"
        for name, field in config_fields(config_class)
        if field.default is dataclasses.MISSING and name not in given
    ]
    if missing:
        raise UsageError(f"missing {' and '.join(missing)} (see contentmotion {command} --help)")


def did_you_mean(word: str, names: Iterable[str], prefix: str = "") -> str:
    """The end of a message about an unknown word; empty when no name is near."""
    near = difflib.get_close_matches(word, list(names), n=1)
    return f": did you mean {prefix}{near[0]}?" if near else ""


def explain(message: str, config_class: type, given: dict[str, Given]) -> str:
    """jsonargparse's message about a value, in one line that says what is allowed."""
    key = re.match(r'Parser key "(\w+)"', message)
    if key is None or key[1] not in given:
        return " ".join(message.split())
    allowed, value = field_types(config_class)[key[1]].allowed, given[key[1]]
    return f"{value.source}: expected {allowed}, got {value.text or 'nothing'}"


def config_fields(config_class: type) -> list[tuple[str, dataclasses.Field]]:
    """Names and dataclass fields."""
    return [(field.name, field) for field in dataclasses.fields(config_class)]


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Without the ``--name+`` twins that jsonargparse gives to lists."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=HELP_WIDTH)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        options = [option for option in action.option_strings if not option.endswith("+")]
        return ", ".join(options) + ("" if action.nargs == 0 else f" {action.metavar}")


def build_parser(command: str, config_class: type, positional: str | None) -> jsonargparse.ArgumentParser:
    """A parser with one flag per field, grouped by the class that documents it, the command's own first."""
    fields = field_types(config_class)
    defaults = dict(config_fields(config_class))
    words = ""
    if positional:
        words = f" {positional.upper()}" + (" ..." if fields[positional].is_list else "")
    parser = jsonargparse.ArgumentParser(
        prog=f"contentmotion {command}",
        usage=f"contentmotion {command}{words} [--config FILE.yaml] [--name value ...]",
        description=describe(config_class),
        formatter_class=_HelpFormatter,
        parser_mode="json",
        exit_on_error=False,
        allow_abbrev=False,
    )
    help_text = "Settings in `name: value` lines; flags overrule them."
    parser.add_argument("--config", metavar="FILE.yaml", help=help_text)
    for documented_class in config_class.__mro__[:-1]:
        documentation = docstring_parser.parse(documented_class.__doc__ or "")
        title = "settings" if documented_class is config_class else documentation.short_description
        group = parser.add_argument_group((title or "").rstrip("."))
        for param in documentation.params:
            if f"--{param.arg_name}" in parser._option_string_actions:  # documented anew by a derived class
                continue
            default = defaults[param.arg_name].default
            required = default is dataclasses.MISSING
            help_text = " ".join((param.description or "").split()) + default_text(default)
            # As plain text, not as text or null: of that jsonargparse would read "#1" as a YAML comment.
            as_is = fields[param.arg_name].item is str and not fields[param.arg_name].is_list
            group.add_argument(
                f"--{param.arg_name}",
                type=str if as_is else get_type_hints(config_class)[param.arg_name],
                default=None if required else default,
                metavar=fields[param.arg_name].metavar,
                help=help_text.replace("%", "%%"),
            )
    return parser


def default_text(default: Any) -> str:
    """What the help says about a default."""
    if default is dataclasses.MISSING:
        return " (required)"
    if default is None or default == ():
        return ""
    if isinstance(default, tuple):
        return f" (default: {' '.join(str(item) for item in default)})"
    return f" (default: {str(default).lower() if isinstance(default, bool) else default})"


def describe(config_class: type) -> str:
    """A config's documentation without its attributes, wrapped; examples stay on one line each."""
    text = (config_class.__doc__ or "").partition("Attributes:")[0]
    paragraphs = textwrap.dedent("    " + text).strip().split("\n\n")
    return "\n\n".join(
        " ".join(paragraph.split())
        if paragraph.lstrip().startswith("Example:")
        else textwrap.fill(" ".join(paragraph.split()), HELP_WIDTH)
        for paragraph in paragraphs
    )
