"""The folder neighbours/ of an exported model: the training queries that may vote for a query's labels."""

import json
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float16, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prime_xmc.data.corpus import Ragged
from prime_xmc.export.model_sums import sealed
from prime_xmc.export.scorers import AGAIN, check_encoder, read_part
from prime_xmc.files import publishing, save_tensors, write_json
from prime_xmc.foreign import check_tensors_file, parse_json

FORMAT_VERSION = 1
CONFIG = "neighbours.json"
TABLES = "neighbours.safetensors"
TEXTS = "texts.jsonl"  # only where the training was asked to keep them
FOLDER = "neighbours"  # in a model folder
LONGEST_TEXT = 500  # characters of a training text that are kept: enough to see what it is about


class VotingQueries(NamedTuple):
    """Training queries, with what it takes to count their votes.

    Attributes:
        query_emb: Embeddings as they are kept, rounded to float16.
        labels: Labels of each query.
        rows: Row of each query in the raw file of training queries, from 0; -1: it is in another file. None where the
            model does not say, as those of the first versions.
        texts: Text of each query, of which the first `LONGEST_TEXT` characters are kept; None: none are.
    """

    query_emb: Float16[Tensor, "neighbour d"]
    labels: Ragged
    rows: Int64[np.ndarray, " neighbour"] | None = None
    texts: Iterable[str] | None = None


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
    if queries.rows is not None:
        tables["rows"] = torch.from_numpy(queries.rows)
    with publishing(directory, replace=True) as temporary:
        save_tensors(temporary / TABLES, tables)
        if queries.texts is not None:
            _write_texts(temporary / TEXTS, queries.texts, len(queries.labels))
        write_json(temporary / CONFIG, sealed(config, temporary, [TABLES]))


def _write_texts(path: Path, texts: Iterable[str], num_queries: int) -> None:
    num_written = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for text in texts:
            file.write(json.dumps(text[:LONGEST_TEXT], ensure_ascii=False) + "\n")
            num_written += 1
    assert num_written == num_queries


def _read_texts(directory: Path, num_queries: int) -> list[str] | None:
    path = directory / TEXTS
    if not path.is_file():
        return None
    texts = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = parse_json(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is damaged ({error}); {AGAIN}") from error
            if not isinstance(text, str):
                raise ValueError(f"{path}, line {number} is damaged: {text!r} is no text; {AGAIN}")
            texts.append(text)
    if len(texts) != num_queries:
        raise ValueError(f"{path} has {len(texts)} texts, expected {num_queries}, one for each training query; {AGAIN}")
    return texts


def load_neighbours(
    directory: Path, model: Path, num_labels: int, digest: str, *, with_texts: bool = False
) -> VotingQueries:
    """Read the training queries that `save_neighbours` wrote for a model.

    Args:
        directory: Folder of the training queries.
        model: Folder of the model.
        num_labels: Labels of the model.
        digest: Fingerprint of its encoder.
        with_texts: Whether to read their texts too, where the model holds them.

    Raises:
        FileNotFoundError: If the folder holds none.
        ValueError: If they are damaged, of another format version, or for another encoder.
    """
    config = read_part(directory, (CONFIG, TABLES), FORMAT_VERSION, "training queries that vote")
    check_encoder(config, digest, f"the training queries in {directory}", model)
    path = directory / TABLES
    check_tensors_file(path)
    try:
        with safe_open(path, framework="pt") as tensors:
            query_emb, label_ids, offsets = (tensors.get_tensor(name) for name in ("query_emb", "label_ids", "offsets"))
            rows = tensors.get_tensor("rows").numpy() if "rows" in tensors.keys() else None  # noqa: SIM118
        dtypes = [part.dtype for part in (query_emb, label_ids, offsets)]
        if dtypes != [torch.float16, torch.int32, torch.int64] or query_emb.dim() != 2 or label_ids.dim() != 1:
            raise ValueError(f"expected embeddings in float16, ids in int32 and offsets in int64, got {dtypes}")
        if query_emb.shape[1] != config.get("dim") or not query_emb.sum(dtype=torch.float32).isfinite():
            raise ValueError(f"expected finite embeddings of {config.get('dim')} dimensions")
        labels = Ragged(label_ids.numpy(), offsets.numpy())
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); {AGAIN}") from error
    ids = labels.values
    is_known = not ids.size or 0 <= ids.min() <= ids.max() < num_labels
    if len(labels) != len(query_emb) or (labels.lengths < 0).any() or not is_known:
        expected = f"labels from 0 to {num_labels - 1} for each of {len(query_emb)} queries"
        found = f"{ids.min(initial=0)} to {ids.max(initial=0)} for {len(labels)}"
        raise ValueError(f"{path} is damaged: expected {expected}, found {found}; {AGAIN}")
    if rows is not None and (rows.dtype != np.int64 or rows.shape != (len(query_emb),) or (rows < -1).any()):
        raise ValueError(f"{path} is damaged: expected the row of each of {len(query_emb)} queries; {AGAIN}")
    return VotingQueries(query_emb, labels, rows, _read_texts(directory, len(labels)) if with_texts else None)
