"""The folder neighbours/ of an exported model: the training queries that may vote for a query's labels."""

from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float16
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prime_xmc.data.corpus import Ragged
from prime_xmc.export.scorers import AGAIN, check_encoder, read_part
from prime_xmc.files import publishing, save_tensors, write_json

FORMAT_VERSION = 1
CONFIG = "neighbours.json"
TABLES = "neighbours.safetensors"
FOLDER = "neighbours"  # in a model folder


class VotingQueries(NamedTuple):
    """Training queries, with what it takes to count their votes.

    Attributes:
        query_emb: Embeddings as they are kept, rounded to float16.
        labels: Labels of each query.
    """

    query_emb: Float16[Tensor, "neighbour d"]
    labels: Ragged


def save_neighbours(directory: Path, queries: VotingQueries, *, digest: str) -> None:
    """Write training queries to a folder, which appears under its name only when it is complete.

    Args:
        directory: Folder to write; an older one is replaced.
        queries: The training queries.
        digest: Fingerprint of the encoder that has made the embeddings, see `encoder_digest`.
    """
    config = {
        "format_version": FORMAT_VERSION,
        "package_version": version("prime_xmc"),
        "num_queries": len(queries.labels),
        "dim": queries.query_emb.shape[1],
        "encoder": digest,
    }
    tables = {
        "query_emb": queries.query_emb,
        "label_ids": torch.from_numpy(queries.labels.values.astype(np.int32)),
        "offsets": torch.from_numpy(queries.labels.offsets),
    }
    with publishing(directory, replace=True) as temporary:
        write_json(temporary / CONFIG, config)
        save_tensors(temporary / TABLES, tables)


def load_neighbours(directory: Path, model: Path, num_labels: int, digest: str) -> VotingQueries:
    """Read the training queries that `save_neighbours` wrote for a model.

    Args:
        directory: Folder of the training queries.
        model: Folder of the model.
        num_labels: Labels of the model.
        digest: Fingerprint of its encoder.

    Raises:
        FileNotFoundError: If the folder holds none.
        ValueError: If they are damaged, of another format version, or for another encoder.
    """
    config = read_part(directory, (CONFIG, TABLES), FORMAT_VERSION, "training queries that vote")
    check_encoder(config, digest, f"the training queries in {directory}", model)
    path = directory / TABLES
    try:
        with safe_open(path, framework="pt") as tensors:
            query_emb, label_ids, offsets = (tensors.get_tensor(name) for name in ("query_emb", "label_ids", "offsets"))
        labels = Ragged(label_ids.numpy(), offsets.numpy())
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); {AGAIN}") from error
    ids = labels.values
    is_known = not ids.size or 0 <= ids.min() <= ids.max() < num_labels
    if len(labels) != len(query_emb) or (labels.lengths < 0).any() or not is_known:
        expected = f"labels from 0 to {num_labels - 1} for each of {len(query_emb)} queries"
        raise ValueError(f"{path} is damaged: expected {expected}; {AGAIN}")
    return VotingQueries(query_emb, labels)
