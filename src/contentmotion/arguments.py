"""Command line and YAML file -> a command's config dataclass, with one-line errors that name the way out.

A setting is a field of the config, or of one of its blocks: a block is a field that holds a dataclass of its own, such
as the sizes of a network made from scratch. Its settings are called ``--model.depth 12`` on the command line, and stand
under ``model:`` in YAML. A command's first words are its prompts (or video, or checkpoint), a list takes every word up
to the next flag, and a flag overrules the YAML file wherever the two stand.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
import textwrap
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import yaml

from contentmotion.config.common import FieldType, field_types, whole_name
from contentmotion.saving import read_text

HELP_WIDTH, HELP_COLUMN = 110, 30
ALLOWED = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
# What numbers look like: no digits of other scripts, no underscores, no infinity.
PATTERNS = {int: r"[-+]?[0-9]+", float: r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"}
# Settings that people change first, of any command: --help explains them, and names the others.
CHANGED_FIRST = frozenset(
    """prompt prompt_file class_labels negative_prompt train_data_dir latent_cache data_dir generated_dir vae
    autoencoder image_model pretrained_model_name_or_path motion_transformer part preset output_dir num_frames height
    width fps seed max_train_steps train_batch_size learning_rate validation_steps num_inference_steps guidance_scale
    formats clip components num_videos_per_prompt conditions driving_video extract dry_run json image video
    motion_from strength motion_strength loop compare lora.rank
    """.split()  # noqa: SIM905
)
FEW = 16  # settings: all are shown
# What other programs call things, by our names.
OTHER_NAMES = {
    "generate": "sample infer inference run txt2vid",
    "train": "finetune fine-tune fit",
    "demo": "serve ui web app",
    "evaluate": "eval score fvd",
    "push": "publish upload",
    "info": "show",
    "pretrained_model_name_or_path": "model checkpoint ckpt",
    "learning_rate": "lr",
    "max_train_steps": "epochs iterations",
    "train_batch_size": "batch",
    "guidance_scale": "cfg cfg_scale guidance",
    "height": "resolution size",
    "num_frames": "frames length",
    "output_dir": "out output outdir",
    "train_data_dir": "data dataset videos",
    "negative_prompt": "negative",
    "mixed_precision": "precision",
    "device": "gpu",
}
METAVARS = {int: "N", float: "X", str: "TEXT", bool: "true|false"}


class UsageError(ValueError):
    """The command line, or a config file, asks for something that does not exist."""


@dataclass(frozen=True)
class Command:
    """One row of the command line's table.

    Attributes:
        function: "module:function"; imported when called, so that the help never waits for torch.
        summary: One line for the list of commands.
        positional: Field that the words right after the command's name fill.
        dry_run: What is called instead with ``--dry_run``, where the command does not see to that itself.
    """

    config_class: type
    function: str
    summary: str
    positional: str | None = None
    dry_run: str | None = None


@dataclass(frozen=True)
class Setting:
    """One setting of a command.

    Attributes:
        name: Field of the config ("seed"), or of one of its blocks ("model.depth").
        default: ``dataclasses.MISSING`` where it has to be given.
        group: Heading that it stands under in the help.
    """

    name: str
    kind: FieldType
    default: Any
    help: str
    group: str

    @property
    def choices(self) -> tuple[str, ...]:
        """The words of a ``Literal``."""
        return get_args(self.kind.item) if get_origin(self.kind.item) is Literal else ()

    @property
    def allowed(self) -> str:
        """What may be given, in words."""
        item = f"one of {', '.join(self.choices)}" if self.choices else ALLOWED[self.kind.item]
        item += f" {self.kind.range}" if self.kind.range else ""
        return f"a list (words separated by spaces), each {item}" if self.kind.container else item

    @property
    def metavar(self) -> str:
        """What may be given, in short."""
        item = "|".join(self.choices) if self.choices else METAVARS[self.kind.item]
        return f"{item} ..." if self.kind.container else item

    def convert(self, value: Any, source: str) -> Any:
        """The setting's value of what a YAML file holds, or of the words of a command line, where numbers are text.

        Raises:
            UsageError: Not a value of the setting's type; it names the source ("--seed", "train.yaml: seed").
        """
        if value is None and self.kind.optional:
            return None
        try:
            if not self.kind.container:
                return self._convert_item(value)
            items = self._split(value if isinstance(value, list) else [value])
            return self.kind.container(map(self._convert_item, items))
        except ValueError:
            raise UsageError(f"{source}: expected {self.allowed}, got {in_short(value)}") from None

    def _split(self, items: list[Any]) -> list[Any]:
        """A list's items, of a list written as one word too: "[1, 2]", and of words that are known "gif,mp4"."""
        if len(items) == 1 and isinstance(items[0], str) and items[0].startswith("["):
            with suppress(ValueError):  # a prompt
                items = json.loads(items[0])
        return [word for item in items for word in str(item).split(",")] if self.choices else items

    def _convert_item(self, value: Any) -> Any:
        item, limits = self.kind.item, self.kind.range
        if isinstance(value, (str, bool, int, float)):
            text = str(value).lower() if isinstance(value, bool) else str(value)
            if item is str or text in self.choices:
                return text
            if item is bool and text.lower() in ("true", "false"):
                return text.lower() == "true"
            if limits is not None and re.fullmatch(PATTERNS[item], text) and (number := item(text)) in limits:
                return number
        raise ValueError


def in_short(value: Any) -> str:
    """A value that was given, for a message."""
    if isinstance(value, list) and all(isinstance(item, (str, int, float)) for item in value):
        value = " ".join(map(str, value))
    if isinstance(value, (dict, list)):
        return "several values"
    return "nothing" if value in (None, "") else textwrap.shorten(str(value), 80)


@functools.cache
def settings_of(config_class: type) -> dict[str, Setting]:
    """The settings of a config by name, grouped by the class that documents them, the command's own first."""
    kinds, fields = field_types(config_class), {field.name: field for field in dataclasses.fields(config_class)}
    told: dict[str, tuple[str, str]] = {}  # heading and help
    for documented in config_class.__mro__[:-1]:
        title, lines = read_documentation(documented)
        for name, line in lines.items():  # a derived class may document a setting anew
            told.setdefault(name, ("settings" if documented is config_class else title, line))
    found: dict[str, Setting] = {}
    of_blocks: dict[str, Setting] = {}
    for name, (group, line) in told.items():
        kind, default = kinds[name], fields[name].default
        if not dataclasses.is_dataclass(kind.item):
            found[name] = Setting(name, kind, default, line, group)
            continue
        for inner in settings_of(kind.item).values():
            own, whole = getattr(default, inner.name), f"{name}.{inner.name}"
            of_blocks[whole] = dataclasses.replace(inner, name=whole, default=own, group=f"--{name}.*: {line}")
    return found | of_blocks


def read_documentation(documented: type) -> tuple[str, dict[str, str]]:
    """A config class's first sentence, and what it says about each attribute."""
    text, _, attributes = (documented.__dict__.get("__doc__") or "").partition("Attributes:\n")
    title = " ".join(text.split("\n\n")[0].split()).partition(". ")[0].rstrip(".")
    entries = re.split(r"^(\w+): ", textwrap.dedent(attributes), flags=re.MULTILINE)[1:]
    return title, {name: " ".join(line.split()) for name, line in zip(entries[::2], entries[1::2], strict=True)}


def parse_config(command: str, config_class: type, positional: str | None, words: Sequence[str]) -> Any:
    """The config that the words after a command's name ask for; those before the first flag fill ``positional``.

    Raises:
        UsageError: Unknown or missing settings, or values that are not allowed.
    """
    flags, config_files = read_words(command, config_class, positional, words)
    values: dict[str, Any] = {}
    for file in config_files:
        content = read_yaml(file)
        if not isinstance(content, dict | None):
            raise UsageError(f"--config {file}: expected lines of the form `name: value`")
        values |= read_settings(content or {}, config_class, file)
    values |= flags
    missing = [
        name.upper() if name == positional else f"--{name}"
        for name, setting in settings_of(config_class).items()
        if setting.default is dataclasses.MISSING and name not in values
    ]
    if missing:
        raise UsageError(f"missing {' and '.join(missing)} (see contentmotion {command} --help)")
    try:
        return make_config(config_class, values)
    except ValueError as error:  # a config's own checks
        raise UsageError(str(error)) from error


def make_config(config_class: type, values: dict[str, Any]) -> Any:
    """A config of its settings by name, those of blocks too ("model.depth").

    Raises:
        ValueError: A config's own checks.
    """
    given = {name: value for name, value in values.items() if "." not in name}
    for field in dataclasses.fields(config_class):
        start = f"{field.name}."
        inner = {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}
        if inner:
            given[field.name] = dataclasses.replace(field.default, **inner)  # type: ignore[type-var]
    return config_class(**given)


def read_words(
    command: str, config_class: type, positional: str | None, words: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Splits a command line into settings and the names of config files."""
    settings = settings_of(config_class)
    found: dict[str, list[str]] = {}
    config_files: list[str] = []
    start = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    if start:
        if positional is None:
            raise UsageError(f"unexpected word {words[0]!r}: {command} takes its settings as --name value")
        if start > 1 and not settings[positional].kind.container:
            raise UsageError(f"{command} takes one {positional}, got {start}: {' '.join(words[:start])}")
        found[positional] = list(words[:start])
    rest = list(words[start:])
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        name = whole_name(flag.removeprefix("--"), settings)
        if not flag.startswith("-"):
            first = f", {positional} before them" if positional else ""
            raise UsageError(f"unexpected word {flag!r}: settings are given as --name value{first}")
        if not flag.startswith("--") or name != "config" and name not in settings:
            near = where_it_is(name, [*settings, "config"], prefix="--")
            raise UsageError(f"unknown option {flag}{near or f' (see contentmotion {command} --help)'}")
        values = [value] if equals else take_values(rest, settings.get(name))
        if not values:
            allowed = settings[name].allowed if name in settings else "a YAML file"
            raise UsageError(f"--{name} needs a value: {allowed}")
        if name == "config":
            config_files += values
        elif settings[name].kind.container:
            found.setdefault(name, []).extend(values)
        else:
            found[name] = values
    return {name: convert_words(settings[name], values) for name, values in found.items()}, config_files


def take_values(rest: list[str], setting: Setting | None) -> list[str]:
    """Removes a flag's values from the front of the remaining words."""
    if setting is not None and setting.kind.item is bool and not setting.kind.container:
        return [rest.pop(0)] if rest and rest[0].lower() in ("true", "false") else ["true"]
    found: list[str] = []
    most = len(rest) if setting is not None and setting.kind.container else 1
    while rest and not rest[0].startswith("--") and len(found) < most:
        found.append(rest.pop(0))
    return found


def convert_words(setting: Setting, words: list[str]) -> Any:
    """The value of a flag's words; "null" is None where that is allowed."""
    if setting.kind.container:
        return setting.convert(words, f"--{setting.name}")
    return setting.convert(None if setting.kind.optional and words == ["null"] else words[0], f"--{setting.name}")


class _Yaml12Loader(yaml.SafeLoader):
    """Plain words as in YAML 1.2: ``no`` and ``on`` are text, ``1e-4`` is a number, dates are text. No name stands
    twice, and nothing refers to another place of the file: a few such lines can stand for gigabytes.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not read", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for i, (key, _) in enumerate(node.value):
            if key.value in names[:i]:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands here twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


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


def read_yaml(file: str) -> Any:
    """What a YAML file holds.

    Raises:
        UsageError: No such file, or not YAML.
    """
    try:
        return yaml.load(read_text(file), Loader=_Yaml12Loader)
    except OSError as error:
        raise UsageError(f"--config {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {file}: not a text file") from error
    except yaml.YAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UsageError(f"--config {file}{where}: not valid YAML: {problem}") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; brackets in brackets in brackets
        raise UsageError(f"--config {file}: not valid YAML: {error}") from error


def read_settings(content: dict[str, Any], config_class: type, file: str) -> dict[str, Any]:
    """The settings in what a YAML file holds, by name, those of blocks too.

    Raises:
        UsageError: A setting that the command does not have, or a value that is not allowed; with the file's name.
    """
    settings = settings_of(config_class)
    values, unknown = {}, []
    for name, value in flatten(content, {name.partition(".")[0] for name in settings if "." in name}):
        renamed = [new for new in settings if RENAMED.get(new) == name] if name not in settings else []
        name = renamed[0] if renamed else whole_name(name, settings)
        if name in values:
            raise UsageError(f"{file}: {name} is there twice, under two names")
        if name in settings:
            values[name] = settings[name].convert(value, f"{file}: {name}")
        elif not config_class.takes_any_recipe:
            unknown.append(f"unknown key {name!r}{where_it_is(name, settings)}")
    if unknown:
        raise UsageError(f"{file}: {'; '.join(unknown)}")
    return values


def flatten(content: dict[Any, Any], blocks: set[str]) -> Iterator[tuple[str, Any]]:
    """Settings by name, where those of a block stand under its name; it may be empty."""
    for name, value in content.items():
        if name in blocks and (value is None or isinstance(value, dict)):
            yield from ((f"{name}.{inner}", inner_value) for inner, inner_value in (value or {}).items())
        else:
            yield str(name), value


# What settings were called before: files of settings may go on calling them so, for runs go on with theirs. In scripts
# of diffusers ``cache_dir`` is where downloads are kept.
RENAMED = {"latent_cache": "cache_dir", "eval_latent_cache": "eval_cache_dir", "measures_dir": "cache_dir"}
# Settings of version 0.1 that have no other name now, and what to do.
GONE = {"measure_motion": "a cache notes the statistics of its own motion latents, so leave it out"}


def where_it_is(word: str, names: Collection[str], prefix: str = "") -> str:
    """The end of a message about an unknown setting: the block it is in, or the name that is meant."""
    names = list(names)
    if word in GONE:
        return f": {GONE[word]}"
    inner = [name for name in names if name.startswith(f"{word}.")]
    if inner:
        return f": settings of this block are called {prefix}{inner[0]} and the like"
    moved = [name for name in names if word == RENAMED.get(name, old_name(name) if "." in name else None)]
    return f": it is called {prefix}{moved[0]} now" if moved else did_you_mean(word, names, prefix)


def old_name(name: str) -> str:
    """What a block's setting was called before there were blocks (version 0.1)."""
    block, _, inner = name.partition(".")
    return inner if block in ("model", "scale") or inner in ("i3d", "lpips") else f"{block}_{inner}"


def did_you_mean(word: str, names: Collection[str], prefix: str = "") -> str:
    """The end of a message about an unknown word: a name like it, or one that begins with it or contains it. Empty when
    there is none. What is in no block comes first.
    """
    for name, others in OTHER_NAMES.items():
        if name in names and word in others.split():
            return f": did you mean {prefix}{name}?"
    flat = [name for name in names if "." not in name]
    for known in (flat, list(names)):
        near = difflib.get_close_matches(word, known, n=1)
        near = near or [name for name in known if name.startswith(word) or word in re.split("[_.-]", name)]
        if near:
            return f": did you mean {prefix}{near[0]}?"
    return ""


def help_text(command: str, config_class: type, positional: str | None, everything: bool = False) -> str:
    """What ``--help`` prints: what the command does, and its settings with their defaults.

    Those that are seldom changed are named only, unless there are few, or ``everything`` is asked for (--help_all).
    """
    settings = settings_of(config_class)
    first = {
        name: setting
        for name, setting in settings.items()
        if name in CHANGED_FIRST or name == positional or setting.default is dataclasses.MISSING
    }
    if everything or len(settings) <= FEW:
        first = settings
    words = f" {positional.upper()}{' ...' if settings[positional].kind.container else ''}" if positional else ""
    lines = [
        f"usage: contentmotion {command}{words} [--config FILE.yaml] [--name value ...]\n",
        f"{describe(config_class)}\n",
        *help_lines("-h, --help", "Show this and exit."),
        *(help_lines("--help_all", "Show every setting.") if first is not settings else ()),
        *help_lines("--config FILE.yaml", "Settings in `name: value` lines; flags overrule them."),
    ]
    group = ""
    for setting in first.values():
        if setting.group != group:
            group = setting.group
            lines += ["", *textwrap.wrap(f"{group.rstrip('.')}:", HELP_WIDTH)]
        lines += help_lines(f"--{setting.name} {setting.metavar}", setting.help + default_text(setting.default))
    more: dict[str, list[str]] = {}
    for name, setting in settings.items():
        if name not in first:
            more.setdefault(setting.group.rstrip("."), []).append(name)
    if more:
        lines += ["", "more, which --help_all explains:"]
    for group, names in more.items():
        text = f"{group}: " + ", ".join(f"--{name}" for name in names)
        lines += textwrap.wrap(
            text, HELP_WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False
        )
    return "\n".join(lines)


def help_lines(flag: str, text: str) -> list[str]:
    """A flag, and beside or below it what it does."""
    lines = textwrap.wrap(text, HELP_WIDTH - HELP_COLUMN, break_on_hyphens=False)
    beside = len(flag) + 4 <= HELP_COLUMN
    first = [f"  {flag:<{HELP_COLUMN - 2}}{lines.pop(0)}"] if beside else [f"  {flag}"]
    return first + [" " * HELP_COLUMN + line for line in lines]


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
    text = (config_class.__doc__ or "").partition("Attributes:")[0].strip()
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    return "\n\n".join(
        part.replace(" Example:", "\nExample:") if part.startswith("Example:") else textwrap.fill(part, HELP_WIDTH)
        for part in paragraphs
    )
