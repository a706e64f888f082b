"""A pipeline's folder: fetched from the hub where it is not on this machine, its index read, its classes known ones."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from contentmotion.config.common import named_model
from contentmotion.loading import CHOSEN, kind_of, kind_to_load, listed, resolve_name
from contentmotion.saving import read_json

INDEX = "model_index.json"
HUB_SETTINGS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
LIBRARIES = (
    "diffusers",
    "transformers",
    "contentmotion.models.autoencoder",
    "contentmotion.models.condition_encoder",
    "contentmotion.models.motion_dit",
    "contentmotion.models.patch_vae",
    "contentmotion.models.video_unet",
)


def fetch(name_or_path: str, variant: str | None = None, **hub: Any) -> Path:
    """The folder of a pipeline; of a hub id its snapshot, of which only what is missing is downloaded.

    Args:
        name_or_path: Folder, hub id or name of a shipped model.
        variant: Weights to download, such as "fp16", of the parts that have them.
        **hub: ``HUB_SETTINGS`` as huggingface_hub takes them.

    Raises:
        ValueError: No folder of that name, and the hub does not give it: one line that says why.
    """
    path = Path(resolve_name(name_or_path))
    if path.is_dir():
        return path
    try:
        file = Path(hf_hub_download(name_or_path, INDEX, **hub))
        if not (hub.get("local_files_only") or constants.is_offline_mode()):
            parts = [part for part, entry in read_index(file).items() if isinstance(entry, list) and entry[0]]
            files = HfApi(token=hub.get("token")).list_repo_files(name_or_path, revision=hub.get("revision"))
            wanted = _wanted(name_or_path, [file for file in files if file.split("/")[0] in {INDEX, *parts}], variant)
            snapshot_download(name_or_path, allow_patterns=wanted, **hub)
        return file.parent  # the snapshot's folder
    except (OSError, HfHubHTTPError, HFValidationError) as error:  # the hub's own are among them
        raise ValueError(_refusal(name_or_path, error, hub)) from error
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):  # httpx or httpx2, by the hub client's version
            raise
        raise ValueError(f"{name_or_path}: the hub could not be reached: {' '.join(str(error).split())}") from error


@contextmanager
def chosen_by(config: Any) -> Iterator[None]:
    """Meanwhile the model that a command's settings name stands in this process for the variant and the revision that
    they say, of training in their block ``hub``.

    Raises:
        ValueError: There is none; or a revision of a folder, which only repositories have.
    """
    weights = getattr(config, "hub", config)
    variant, revision = getattr(weights, "variant", None), getattr(weights, "revision", None)
    if not (variant or revision):
        yield
        return
    name = str(named_model(config))
    is_here = Path(resolve_name(name)).is_dir()
    if is_here and revision:
        raise ValueError(f"revision {revision}: {name} is a folder, the hub's repositories have revisions")
    folder = fetch(name, variant, **({} if is_here else {"revision": revision}))
    _wanted(name, [str(file) for file in folder.rglob("*.safetensors")], variant)
    CHOSEN[name] = CHOSEN[str(folder)] = (str(folder), variant)
    try:
        yield
    finally:
        CHOSEN.clear()


def _wanted(name: str, files: list[str], variant: str | None) -> list[str]:
    """Of a repository's files those that a pipeline is loaded from: no pickles, of each part one kind of weights."""
    kinds = {file: kind_of(file) for file in files if file.endswith(".safetensors")}
    if variant and variant not in kinds.values():
        there = sorted({kind for kind in kinds.values() if kind}) or ["none"]
        raise ValueError(f"{name} has no variant {variant}: there is {listed(there)}")
    parts: dict[str, set[str | None]] = {}
    for file, kind in kinds.items():
        parts.setdefault(file.rpartition("/")[0], set()).add(kind)
    loaded = {part: kind_to_load(there, variant) for part, there in parts.items()}
    weights = [file for file, kind in kinds.items() if kind == loaded[file.rpartition("/")[0]]]
    return weights + [file for file in files if file.endswith((".json", ".txt", ".model", ".jinja"))]


def _refusal(name: str, error: Exception, hub: dict[str, Any]) -> str:
    """One line about why the hub did not give a repository."""
    if isinstance(error, GatedRepoError):  # which is one of those not found, to the hub client
        return f"{name}: gated: ask for access on its page, then log in (`hf auth login`) or give a token"
    if isinstance(error, RepositoryNotFoundError):
        why = "no folder of that name and no such repository on the hub (or a private one: log in, or give a token)"
        return f"no such checkpoint: {name} ({why})"
    if isinstance(error, RevisionNotFoundError):
        return f"{name}: the repository has no revision {hub.get('revision')}"
    if isinstance(error, LocalEntryNotFoundError):
        offline = hub.get("local_files_only") or constants.is_offline_mode()
        why = "only local files are to be used" if offline else "the hub could not be reached"
        return f"no such checkpoint: {name} (not downloaded yet, and {why})"
    if isinstance(error, EntryNotFoundError):
        return f"{name}: the repository is no pipeline: it has no {INDEX}"
    return f"{name}: the hub did not give it: {' '.join(str(error).split())}"


def not_a_pipeline(name: str, path: Path) -> str:
    """What is said of a folder that is none; ``train`` has one inside its own."""
    inside = f" ({name}/pipeline is one)" if (path / "pipeline" / INDEX).exists() else ""
    return f"{name} is not a pipeline folder: it has no {INDEX}{inside}"


def read_index(file: Path) -> dict[str, Any]:
    """A ``model_index.json``.

    Raises:
        ValueError: There is none, or it is none.
    """
    if not file.is_file():
        raise ValueError(not_a_pipeline(str(file.parent), file.parent))
    try:
        index = read_json(file)
        for name, entry in index.items():
            if isinstance(entry, list) and len(entry) < 2:
                raise ValueError(f"its {name} is {entry}, not a library and a class")
        if not isinstance(index.get("image_pipeline"), (dict, NoneType)):
            raise ValueError("its image_pipeline is no settings of one")
    except ValueError as error:
        raise ValueError(f"{file} is not a pipeline's index: {error}") from error
    return index


def known_classes(name: str, index: Mapping[str, Any], pipeline: type, given: Collection[str]) -> dict[str, type]:
    """The classes that an index names for the parts that a pipeline takes and is not given. None is imported but from
    ``LIBRARIES``.

    Raises:
        ValueError: One is in no known library, or not there.
    """
    taken, classes = inspect.signature(pipeline).parameters, {}
    for part, entry in index.items():
        if part not in taken or part in given or not isinstance(entry, list) or entry[0] is None:
            continue
        library, kind = entry
        if library not in LIBRARIES:
            raise ValueError(f"{name}: its {part} is a {library}.{kind}: only {', '.join(LIBRARIES)} are known")
        classes[part] = getattr(import_module(library), str(kind), None)
        if classes[part] is None:
            raise ValueError(f"{name}: its {part} is a {kind}, which {library} does not have")
    return classes
