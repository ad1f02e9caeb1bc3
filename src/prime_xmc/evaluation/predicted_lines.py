"""The JSON lines that `prime_xmc.predict` writes, as a ranking of the test split."""

import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from prime_xmc.data.raw import Record
from prime_xmc.foreign import parse_json, shown

_COMMANDS = (
    "expected a line for each test query, in the order of the split, as `python -m prime_xmc.predict model=<run>/model "
    "input=<the test file> output=<file>.jsonl top_k=120` writes them for `python -m prime_xmc.evaluate "
    "predictions=<file>.jsonl`"
)

_LARGEST = 3e38  # number of float32


def is_json_lines(path: Path) -> bool:
    """Say whether a file, compressed or not, begins with a JSON object."""
    try:
        with _open(path) as lines:
            return next(iter(lines), b"").lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    except (OSError, EOFError, zlib.error):
        return False


def load_predicted_lines(
    path: Path, labels: Iterable[tuple[str, str]], queries: Iterable[Record], k: int
) -> tuple[Int32[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]:
    """Read the k best labels of each query from the JSON lines of `prime_xmc.predict`.

    Args:
        path: The file; a line holds `labels`, a list of objects with `uid` and `score`, and mostly `query`.
        labels: uid and text of every label, in order.
        queries: The test queries in order, with which the `query` of each line is compared.
        k: Number of columns to return.

    Returns:
        Label ids and scores, best first, always k columns: where a line has fewer labels, -1 and -inf.

    Raises:
        ValueError: If labels share a uid, or a line is no prediction, names an unknown label or one twice, or is that
            of another query; it names file, line and value, and the commands that fit each other.
    """
    label_of_uid: dict[str, int] = {}
    for label, (uid, _) in enumerate(labels):
        if label_of_uid.setdefault(uid, label) != label:
            raise ValueError(
                f"{path}: labels {label_of_uid[uid]} and {label} of the data set share the uid {uid!r}, by which the "
                "lines name their labels: give each label its own uid, or evaluate the model itself with model="
            )
    indices, scores = [], []
    expected_queries = iter(queries)
    with _open(path) as lines:
        for number, line in _checked(lines, path):
            try:
                prediction = parse_json(line)
                _check_query(prediction, next(expected_queries, None))
                row, row_scores = _ranking(prediction, label_of_uid, k)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}; {_COMMANDS}") from error
            indices.append(row)
            scores.append(row_scores)
    return (
        np.array(indices, dtype=np.int32).reshape(len(indices), k),
        np.array(scores, dtype=np.float32).reshape(len(scores), k),
    )


def _open(path: Path) -> Any:
    with path.open("rb") as file:
        is_compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if is_compressed else path.open("rb")


def _checked(lines: Iterable[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers."""
    try:
        yield from ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: the gzip data are truncated or damaged ({error})") from error


def _check_query(prediction: Any, query: Record | None) -> None:
    given = prediction.get("query") if isinstance(prediction, dict) else None
    if query is None or not isinstance(given, str):
        return  # the number of lines is checked when all of them are read
    texts = [" ".join(text.split()) for text in (given, query.text, query.title)]
    if texts[0] not in texts[1:]:
        why = ""
        if all(texts) and (texts[0].startswith(texts[1]) or texts[1].startswith(texts[0])):
            why = " (one is a part of the other: dataset.fields= has to name the fields they were made from)"
        raise ValueError(
            f"the query is {_shorten(given)}, and the test query of this line is {_shorten(query.text)}{why}"
        )


def _ranking(prediction: Any, label_of_uid: dict[str, int], k: int) -> tuple[np.ndarray, np.ndarray]:
    labels = prediction.get("labels") if isinstance(prediction, dict) else None
    if not isinstance(labels, list):
        raise ValueError("no list of labels")
    ids, scores = [], []
    for label in labels:
        uid, score = (label.get("uid"), label.get("score")) if isinstance(label, dict) else (None, None)
        if not isinstance(score, int | float) or not -_LARGEST < score < _LARGEST:  # NaN is neither
            raise ValueError(f"label {shown(label)} has no score")
        if not isinstance(uid, str) or uid not in label_of_uid:
            raise ValueError(f"the data set has no label with the uid {shown(uid)}")
        ids.append(label_of_uid[uid])
        scores.append(score)
    if len(set(ids)) < len(ids):
        raise ValueError("a label is named twice")
    row, row_scores = np.full(k, -1), np.full(k, -np.inf)
    order = np.argsort(-np.array(scores, dtype=np.float64), kind="stable")[:k]
    row[: len(order)] = np.array(ids, dtype=np.int64)[order]
    row_scores[: len(order)] = np.array(scores, dtype=np.float64)[order]
    return row, row_scores


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}…")
