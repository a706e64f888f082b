"""Lists of prompts: a text with one a line, or JSON."""

import json
from pathlib import Path
from typing import Any

from contentmotion.saving import read_text


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of a file: one a line, or a JSON list, or JSON as `read_class_prompts` takes it.

    Raises:
        ValueError: Not UTF-8, not valid JSON, or without prompts.
        OSError: The file cannot be read.
    """
    path = Path(path)
    if path.suffix == ".json":
        content = _read_json(path)
        if not isinstance(content, list):
            return [prompt for prompts in _class_prompts(path, content).values() for prompt in prompts]
        prompts = [prompt.strip() if isinstance(prompt, str) else "" for prompt in content]
        if not all(prompts):
            raise ValueError(f"{path}: the list must hold texts only")
    else:
        prompts = [line.strip() for line in _read_text(path).splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"{path}: no prompts in this file")
    return prompts


def read_class_prompts(path: str | Path) -> dict[str, tuple[str, ...]]:
    """The prompts of each class: JSON `{"Archery": "archery", "Bowling": ["bowling", "a man bowls"]}`.

    Of an object that holds several such lists under `prompts`, the first is taken.

    Raises:
        ValueError: Not such a file.
        OSError: The file cannot be read.
    """
    path = Path(path)
    return _class_prompts(path, _read_json(path))


def _read_text(path: Path) -> str:
    try:
        return read_text(path, "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8") from error


def _read_json(path: Path) -> Any:
    text = _read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None


def _class_prompts(path: Path, content: Any) -> dict[str, tuple[str, ...]]:
    if isinstance(content, dict):
        nested = [value["prompts"] for value in content.values() if isinstance(value, dict) and "prompts" in value]
        content = nested[0] if nested else content.get("prompts", content)
    if isinstance(content, dict) and content:
        prompts = {name: (value,) if isinstance(value, str) else value for name, value in content.items()}
        if all(isinstance(texts, list | tuple) and texts for texts in prompts.values()) and all(
            isinstance(text, str) and text.strip() for texts in prompts.values() for text in texts
        ):
            return {name: tuple(texts) for name, texts in prompts.items()}
    raise ValueError(f"{path}: expected an object of class names and their prompts")
