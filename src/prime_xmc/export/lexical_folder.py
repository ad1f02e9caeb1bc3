"""The folder lexical/ of an exported model: the tf-idf vectors of its labels."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from prime_xmc.export.model_sums import sealed
from prime_xmc.export.scorers import AGAIN, check_encoder, read_part
from prime_xmc.files import publishing, save_tensors, write_json
from prime_xmc.foreign import check_tensors_file
from prime_xmc.index.lexical import TOKEN_IDS, LexicalIndex, Postings

FORMAT_VERSION = 2  # 1 had neither moved nor bias
CONFIG = "lexical.json"
TABLES = "lexical.safetensors"
FOLDER = "lexical"  # in a model folder


class LexicalTables(NamedTuple):
    """The vectors of a model's labels, with what it takes to make those of queries.

    Attributes:
        postings: The vectors.
        special_ids: Token ids that are no terms: those that the tokenizer puts around every text.
        pairs: Whether pairs of adjacent tokens are terms.
    """

    postings: Postings
    special_ids: Sequence[int]
    pairs: bool

    def scorer(self, num_labels: int, device: str | torch.device) -> LexicalIndex:
        """Return them ready to score on a device."""
        postings = Postings(*(part.to(device) for part in self.postings))
        return LexicalIndex(postings, num_labels, special_ids=self.special_ids, pairs=self.pairs)


def save_lexical(directory: Path, tables: LexicalTables, *, digest: str) -> None:
    """Write the vectors of a model's labels to a folder, which appears under its name only when it is complete.

    Args:
        directory: Folder to write; an older one is replaced.
        tables: The vectors.
        digest: Fingerprint of the encoder whose tokenizer has made the token ids, see `encoder_digest`.
    """
    config = {
        "format_version": FORMAT_VERSION,
        "package_version": version("prime_xmc"),
        "num_terms": len(tables.postings.terms),
        "pairs": tables.pairs,
        "special_ids": list(tables.special_ids),
        "encoder": digest,
    }
    with publishing(directory, replace=True) as temporary:
        save_tensors(temporary / TABLES, tables.postings._asdict())
        write_json(temporary / CONFIG, sealed(config, temporary, [TABLES]))


def load_lexical(directory: Path, model: Path, num_labels: int, digest: str) -> LexicalTables:
    """Read the vectors that `save_lexical` wrote for a model.

    Args:
        directory: Folder of the vectors.
        model: Folder of the model.
        num_labels: Labels of the model.
        digest: Fingerprint of its encoder.

    Raises:
        FileNotFoundError: If the folder holds none.
        ValueError: If they are damaged, of another format version, or for another encoder.
    """
    config = read_part(directory, (CONFIG, TABLES), FORMAT_VERSION, "lexical vectors of the labels")
    check_encoder(config, digest, f"the lexical vectors in {directory}", model)
    pairs: Any = config.get("pairs")
    special_ids: Any = config.get("special_ids")
    if not isinstance(pairs, bool) or not _are_ids(special_ids):
        expected = "pairs to be true or false, and special_ids a list of token ids"
        raise ValueError(f"{directory / CONFIG} is damaged: expected {expected}; {AGAIN}")
    path = directory / TABLES
    check_tensors_file(path)
    try:
        with safe_open(path, framework="pt") as tensors:
            postings = Postings(*(tensors.get_tensor(name) for name in Postings._fields))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); {AGAIN}") from error
    if problem := _problem(postings, num_labels):
        raise ValueError(f"{path} is damaged: expected {problem}; {AGAIN}")
    return LexicalTables(postings, tuple(special_ids), pairs)


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < TOKEN_IDS for each in value)


def _problem(postings: Postings, num_labels: int) -> str | None:
    """Return what the vectors should be and are not; None where they are sound."""
    terms, idf, offsets, label_ids, weights, moved, bias = postings
    dtypes = (torch.int64, torch.float32, torch.int64, torch.int32, *[torch.float32] * 3)
    if any(part.dtype != dtype or part.dim() != 1 for part, dtype in zip(postings, dtypes, strict=True)):
        return f"lists of {', '.join(str(dtype).removeprefix('torch.') for dtype in dtypes)}"
    if len(idf) != len(terms) or len(offsets) != len(terms) + 1 or not len(weights) == len(moved) == len(label_ids):
        return f"as many numbers of idf as there are terms, {len(terms)}, and of weights and moved as of label_ids"
    if len(terms) and (terms[0] < 0 or (terms.diff() <= 0).any()):
        return "codes of terms from 0 on, ascending"
    if len(bias) != num_labels:
        return f"a bias for each of the {num_labels} labels, found {len(bias)}"
    if offsets[0] != 0 or offsets[-1] != len(label_ids) or (offsets.diff() < 0).any():
        return f"offsets that ascend from 0 to {len(label_ids)}, the number of label_ids"
    if len(label_ids) and not 0 <= label_ids.min() <= label_ids.max() < num_labels:
        return f"labels from 0 to {num_labels - 1}, found {int(label_ids.min())} to {int(label_ids.max())}"
    term = torch.arange(len(terms)).repeat_interleave(offsets.diff())
    if ((term * num_labels + label_ids).diff() <= 0).any():
        return "labels that ascend for each term"
    if not (torch.isfinite(idf) & (idf > 0)).all() or not ((weights > 0) & (weights < 1.001)).all():
        return "idf above 0, and weights above 0 and at most 1"
    if not all(torch.isfinite(part).all() for part in (moved, bias)):
        return "finite numbers in moved and bias"
    return None
