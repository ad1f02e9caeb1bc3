"""Model folders on the Hugging Face hub: what is uploaded and downloaded are data files, and nothing else."""

import os
import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from prime_xmc.export.bundle import card_of
from prime_xmc.export.folder import CARD, read_config

# What a model folder has: settings, labels, tensors, indices and the card; neither pickles nor code.
PATTERNS = ("*.json", "*.jsonl", "*.safetensors", "*.faiss", CARD)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(name: str | Path) -> bool:
    """Return whether a name is one on the hub, `<owner>/<model>`, and not that of a folder here."""
    return _HUB_ID.fullmatch(str(name)) is not None and not Path(name).exists()


def download(hub_id: str, revision: str | None = None) -> Path:
    """Return the folder of a model from the hub, from the cache where it is there already.

    Args:
        hub_id: Name on the hub.
        revision: Branch, tag or commit; None: the main branch.

    Raises:
        FileNotFoundError: If there is neither such a folder nor such a model on the hub, or the hub is out of reach.
    """
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(PATTERNS)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"{hub_id}: there is no such folder in {os.getcwd()}, and the hub does not give such a model ({reason})"
        ) from error


def upload(
    model: Path, hub_id: str, *, private: bool = True, license: str | None = None, token: str | None = None
) -> str:
    """Upload a model folder in one commit, which also deletes the files of an earlier version that it has no more.

    Args:
        model: Folder of the model.
        hub_id: Name on the hub, `<owner>/<model>`; it is made where there is none.
        private: Whether a repository that is made is private. The folder has the texts of the labels, and, where
            training queries vote, their embeddings and labels.
        license: Licence that the card declares, by the hub's name for it; None: what the card says already, which is
            none unless the data are those of this package.
        token: Token of the hub; None: the one of `hf auth login`.

    Returns:
        Address of the commit.

    Raises:
        FileNotFoundError: If the folder is no exported model.
        ValueError: If the name is none of the hub's.
    """
    read_config(model)
    if _HUB_ID.fullmatch(hub_id) is None:
        raise ValueError(f"expected a name on the hub, <owner>/<model>, got {hub_id!r}")
    card = ModelCard(card_of(model, hub_id))
    if license is not None:
        card.data["license"] = license
    files = {name.as_posix(): path for path in sorted(model.rglob("*")) if _is_part(name := path.relative_to(model))}
    api = HfApi(token=token)
    api.create_repo(hub_id, private=private, exist_ok=True)
    there = [name for name in api.list_repo_files(hub_id) if _is_part(Path(name))]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, card.content.encode("utf-8") if name == CARD else path) for name, path in files.items()
    ]
    operations += [CommitOperationDelete(name) for name in there if name not in files]
    return str(api.create_commit(hub_id, operations, commit_message="Model of prime_xmc").commit_url)


def _is_part(path: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in path.parts[-2:])  # also what is in a folder of a library's cache
    return any(path.match(pattern) for pattern in PATTERNS) and not is_hidden
