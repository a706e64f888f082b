"""Settings of the command that publishes."""

from __future__ import annotations

from dataclasses import dataclass

from contentmotion.config.common import Settings


@dataclass(frozen=True, kw_only=True)
class PushConfig(Settings):
    """Upload a pipeline folder, one of its parts or a latent cache to the Hugging Face hub, with the model card beside
    it. Needs an account there (`hf auth login`, or a token in HF_TOKEN).

    Example: contentmotion push outputs/mine/pipeline --repo_id me/my-model --dry_run

    Attributes:
        folder: What to upload: a folder that `info` understands.
        repo_id: Where to: owner/name. Made when it does not exist; a latent cache becomes a data set.
        private: Whether a repository that is made is private.
        commit_message: What the hub's history says.
        dry_run: List the files with their sizes, and upload nothing.
    """

    folder: str
    repo_id: str
    private: bool = True
    commit_message: str = "Upload with contentmotion"
    dry_run: bool = False
