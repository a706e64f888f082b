"""Command ``push``: a finished folder -> the Hugging Face hub, only when asked to."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import filter_repo_objects, validate_repo_id
from rich.console import Console

from contentmotion.commands.info import CACHE, count_parameters, find_parts
from contentmotion.config import PushConfig
from contentmotion.tables import print_table

# Of training runs, what only serves to go on with them; and whatever is hidden, half-written files among it.
LEFT_OUT = (".*", "*/.*", "checkpoint-*", "partial-*", "logs/*")
# The lines of a card that say how the model is loaded, as commands/card.py writes them.
OWN_COMMANDS = re.compile(
    rb'(?m)^(contentmotion generate (?:"a prompt"|--class_labels 0) --pretrained_model_name_or_path '
    rb'|pipe = ContentMotionPipeline\.from_pretrained\(")([^\r\n]*?)("\)|)(?=\r?$)'
)


def push(config: PushConfig) -> None:
    """Uploads a folder; prints its address, or with ``dry_run`` the files and their sizes.

    Raises:
        ValueError: The folder holds nothing that ``info`` understands, the name is none, or nobody is logged in.
        OSError: The hub cannot be reached, or refuses.
    """
    folder, card = Path(config.folder), Path(config.folder) / "README.md"
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    is_cache = (folder / CACHE).exists()
    for part in () if is_cache else find_parts(folder).values():
        count_parameters(part)  # raises where a file is damaged
    _require_name(config.repo_id)
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    files = list(filter_repo_objects([path.as_posix() for path in found], ignore_patterns=list(LEFT_OUT)))
    kind = "dataset" if is_cache else "model"
    if config.dry_run:
        sizes = [(folder / file).stat().st_size for file in files]
        rows = [[file, f"{size / 1e6:.3f}"] for file, size in zip(files, sizes, strict=True)]
        rows.append([f"{len(files)} files", f"{sum(sizes) / 1e6:.3f}"])
        print_table(["file", "MB"], rows, title=f"would be uploaded to {kind} {config.repo_id}")
        if not is_cache and not card.exists():
            Console().print("No README.md: the hub will show no model card", style="yellow")
        return
    require_access(config.repo_id)
    uploaded = {file: CommitOperationAdd(file, folder / file) for file in files}
    if not is_cache and card.is_file():  # calls the model by its name on the hub; the file stays as it is
        told = OWN_COMMANDS.sub(lambda found: found[1] + config.repo_id.encode() + found[3], card.read_bytes())
        uploaded["README.md"] = CommitOperationAdd("README.md", told)
    api = HfApi()
    try:
        api.create_repo(config.repo_id, repo_type=kind, private=config.private, exist_ok=True)
        api.create_commit(config.repo_id, uploaded.values(), commit_message=config.commit_message, repo_type=kind)
    except HfHubHTTPError as error:
        raise OSError(f"the hub refused {config.repo_id}: {' '.join(str(error).split())}") from error
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):  # httpx or httpx2, by the hub client's version
            raise
        raise OSError(f"the hub could not be reached: {' '.join(str(error).split())}") from error
    print(f"{api.endpoint}/{'datasets/' if is_cache else ''}{config.repo_id}")


def _require_name(repo_id: str) -> None:
    """Raises ``ValueError`` where this is no name of a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repository {repo_id}: {error}") from None
    if "/" not in repo_id:
        raise ValueError(f"repository {repo_id}: say whose it is, as owner/{repo_id}")


def require_access(repo_id: str) -> None:
    """Raises ``ValueError`` where nothing can be uploaded to such a repository."""
    _require_name(repo_id)
    if constants.is_offline_mode():
        raise ValueError("HF_HUB_OFFLINE is set, so the hub is not to be asked: unset it to push")
    if get_token() is None:
        raise ValueError("not logged in to the hub: run `hf auth login`, or put a token into HF_TOKEN")
