"""Synthetic raw files of any size, for experiments on scale alone: what training costs, not how good it gets."""

import gzip
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, Integer, Shaped
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer

from prime_xmc.data.corpus import Ragged
from prime_xmc.files import publishing, write_json

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
_FORMAT_VERSION = 1  # counts up when the same settings give other files
_CHUNK = 1 << 16  # texts written at once
_MIN_WORDS = 1000
_TAIL = 0.9  # exponent of the labels' frequencies
_HEAD = 10  # the most frequent labels are about as frequent as the one of this rank
_NEIGHBOURS = 64  # queries of a rare label lie among those of this many others,
_SPREAD = 8  # those of a frequent one among those of this many others per query
_LENGTH_SPREAD = 0.5  # standard deviation of the logarithm of a text's words
_OWN_WORDS = 0.5  # share of a query's words that no label of it has


def write_synthetic(
    directory: str | Path,
    *,
    num_labels: int,
    num_queries: int,
    num_test_queries: int,
    labels_per_query: float | int,
    mean_label_words: float | int,
    mean_query_words: float | int,
    vocabulary: str | Path,
    seed: int,
) -> Path:
    """Write raw files that `RawFiles` reads into a folder and return the folder.

    A few labels have many queries and most have a few: frequencies follow a power law, and every label has a training
    query where there are as many pairs as labels. Labels of a query are mostly close to one another by id. Words follow
    Zipf's law; half of a query's are words of its labels. A test query is another text for the labels of a training
    query. The numbers of words are log-normal.

    The folder's name carries a fingerprint of the settings; where it exists already it is returned at once. It is
    built under a temporary name and renamed when complete. The same settings give the same bytes, with the same
    versions of NumPy and zlib. Memory grows with the labels' words and the pairs, not with the queries' texts.

    Args:
        directory: Folder for such folders; made if need be.
        num_labels: L.
        num_queries: Training queries.
        num_test_queries: Test queries.
        labels_per_query: Mean, at least 1.
        mean_label_words: Mean words of a label, at least 1.
        mean_query_words: Mean words of a query, at least 1.
        vocabulary: A tokenizer.json; its tokens of two and more letters are the words, the most frequent first.
        seed: Of everything random.

    Raises:
        FileNotFoundError: when there is no such tokenizer.json.
        ValueError: when a number is too small, the vocabulary has too few words, or the folder exists but is not
            complete.
    """
    words = _read_words(Path(vocabulary))
    settings: dict[str, Any] = {
        "format_version": _FORMAT_VERSION,
        "num_labels": num_labels,
        "num_queries": num_queries,
        "num_test_queries": num_test_queries,
        "labels_per_query": float(labels_per_query),
        "mean_label_words": float(mean_label_words),
        "mean_query_words": float(mean_query_words),
        "words": hashlib.blake2b(" ".join(words).encode(), digest_size=16).hexdigest(),
        "seed": seed,
    }
    for name, value in settings.items():
        if name not in ("words", "seed") and value < 1:
            raise ValueError(f"synthetic data: {name} is {value}; it must be at least 1")
    fingerprint = hashlib.blake2b(json.dumps(settings).encode(), digest_size=6).hexdigest()
    folder = Path(directory).expanduser() / f"synthetic-{num_labels}-{num_queries}-{fingerprint}"
    if (folder / SETTINGS).is_file():
        return folder
    if folder.exists():
        raise ValueError(f"{folder} exists but holds no {SETTINGS}; delete it and start again")

    rng = np.random.default_rng(seed)
    with publishing(folder, replace=False) as temporary:
        logger.info("writing synthetic data to %s", folder)
        lengths = np.minimum(rng.geometric(1 / labels_per_query, num_queries), num_labels)
        frequencies = rng.permutation(power_law_frequencies(num_labels, int(lengths.sum())))
        positives = draw_positives(frequencies, lengths, rng)
        writer = _Writer(temporary, words, rng)
        label_words = writer.write_labels(num_labels, mean_label_words)
        writer.write_queries("trn", positives, label_words, mean_query_words)
        positives = positives.take(rng.integers(num_queries, size=num_test_queries))
        writer.write_queries("tst", positives, label_words, mean_query_words)
        for split in ("train", "test"):
            (temporary / f"filter_labels_{split}.txt").touch()
        write_json(temporary / SETTINGS, settings)
    return folder


def power_law_frequencies(num_labels: int, num_pairs: int) -> Int64[np.ndarray, "label"]:
    """Return frequencies of labels that sum to `num_pairs`: 1, where that suffices, plus ∝ (rank + 10)^-0.9.

    Args:
        num_labels: L.
        num_pairs: Pairs of query and label.

    Returns:
        About descending: fractions are rounded so that their sum stays right.
    """
    least = int(num_pairs >= num_labels)
    ends = np.cumsum((np.arange(num_labels) + _HEAD) ** -_TAIL)
    ends = np.rint(ends / ends[-1] * (num_pairs - least * num_labels))
    return least + np.diff(ends, prepend=0).astype(np.int64)


def draw_positives(
    frequencies: Int64[np.ndarray, "label"], lengths: Int64[np.ndarray, "query"], rng: np.random.Generator
) -> Ragged:
    """Hand every label to as many queries as it is frequent, to similar ones where it is rare.

    Args:
        frequencies: Queries of each label.
        lengths: Labels of each query; their sum is that of the frequencies.
        rng: Where the queries come from.

    Returns:
        int32, ascending rows of at least one label. A label that a query would have twice it has once.
    """
    num_labels = len(frequencies)
    labels = np.repeat(np.arange(num_labels, dtype=np.int32), frequencies)
    # a line of labels, on which each pair moves on by a random way, the longer the more of its label there are
    reach = np.maximum(_SPREAD * frequencies, _NEIGHBOURS).astype(np.float32)
    places = rng.random(len(labels), dtype=np.float32)
    places *= reach[labels]
    places += labels
    places %= num_labels
    labels = labels[places.argsort(kind="stable")]  # stable: ties fall alike on every processor
    # queries, in random order, take their labels from that line, one after the other
    order = rng.permutation(len(lengths))
    pairs = np.repeat(order, lengths[order]) * num_labels + labels
    pairs.sort()
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    offsets = np.searchsorted(pairs, np.arange(len(lengths) + 1) * num_labels)
    return Ragged((pairs % num_labels).astype(np.int32), offsets)


class _Writer:
    """Makes up texts and writes them.

    Args:
        directory: Where the files go.
        words: The most frequent first.
        rng: Where texts come from.
    """

    def __init__(self, directory: Path, words: list[str], rng: np.random.Generator) -> None:
        self.directory = directory
        self.words = np.array(words, dtype=object)
        self.rng = rng
        self.zipf = np.cumsum(1 / np.arange(1, len(words) + 1))
        self.zipf /= self.zipf[-1]

    def write_labels(self, num_labels: int, mean_words: float | int) -> Ragged:
        """Write lbl.json.gz; return the words of each label."""
        lengths = self._draw_lengths(num_labels, mean_words)
        label_words = _ragged(self._draw_words(int(lengths.sum())), lengths)

        def lines(rows: np.ndarray) -> Iterator[str]:
            for row, title in zip(rows, self._titles(label_words.take(rows)), strict=True):
                yield f'{{"uid": "l{row}", "title": "{title}"}}\n'

        self._write("lbl", num_labels, lines)
        return label_words

    def write_queries(self, name: str, positives: Ragged, label_words: Ragged, mean_words: float | int) -> None:
        """Write the queries of a split, <name>.json.gz."""

        def lines(rows: np.ndarray) -> Iterator[str]:
            labels = positives.take(rows)
            lengths = self._draw_lengths(len(rows), mean_words)
            sources = self._draw_from(labels, np.repeat(np.arange(len(rows)), lengths))
            words = self._draw_from(label_words, sources)
            own = self.rng.random(len(words)) < _OWN_WORDS
            words[own] = self._draw_words(int(own.sum()))
            titles = self._titles(_ragged(words, lengths))
            for row, title, ids in zip(rows, titles, _lists(labels.values, labels), strict=True):
                yield f'{{"uid": "{name}{row}", "title": "{title}", "target_ind": {ids}}}\n'

        self._write(name, len(positives), lines)

    def _draw_lengths(self, num_texts: int, mean: float | int) -> Int64[np.ndarray, "text"]:
        lengths = self.rng.lognormal(np.log(mean) - _LENGTH_SPREAD**2 / 2, _LENGTH_SPREAD, num_texts)
        return np.maximum(np.rint(lengths).astype(np.int64), 1)

    def _draw_words(self, count: int) -> Int32[np.ndarray, "word"]:
        # a uniform number is below 1, the last of the cumulative shares
        return np.searchsorted(self.zipf, self.rng.random(count), side="right").astype(np.int32)

    def _draw_from(self, ragged: Ragged, rows: Integer[np.ndarray, "draw"]) -> Int32[np.ndarray, "draw"]:
        """Return a random value of each given row; the rows are not empty."""
        places = (self.rng.random(len(rows)) * ragged.lengths[rows]).astype(np.int64)
        return ragged.values[ragged.offsets[rows] + places]

    def _titles(self, texts: Ragged) -> Iterator[str]:
        return map(" ".join, _lists(self.words[texts.values], texts))

    def _write(self, name: str, num_texts: int, lines: Callable[[np.ndarray], Iterator[str]]) -> None:
        """Write the lines of `num_texts` rows, a chunk of rows at a time."""
        path = self.directory / f"{name}.json.gz"
        starts = track(range(0, num_texts, _CHUNK), f"write {path.name}", console=Console(stderr=True))
        # neither a name nor a time in the header: the same settings give the same bytes
        with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as file:
            for start in starts:
                rows = np.arange(start, min(start + _CHUNK, num_texts))
                file.write("".join(lines(rows)).encode())


def _ragged(values: Int32[np.ndarray, "total"], lengths: Int64[np.ndarray, "row"]) -> Ragged:
    return Ragged(values, np.concatenate(([0], lengths.cumsum())))


def _lists(values: Shaped[np.ndarray, "total"], rows: Ragged) -> Iterator[list[Any]]:
    """Yield the values as lists, cut into rows as those of `rows` are."""
    flat = values.tolist()
    return (flat[start:end] for start, end in pairwise(rows.offsets.tolist()))


def _read_words(path: Path) -> list[str]:
    """Return the whole words of a vocabulary in the order of their ids, which is that of their frequency."""
    path = path.expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; the vocabulary of synthetic data is a tokenizer.json")
    vocabulary = Tokenizer.from_file(str(path)).get_vocab()
    words = [token for token in sorted(vocabulary, key=vocabulary.__getitem__) if re.fullmatch("[a-z]{2,}", token)]
    if len(words) < _MIN_WORDS:
        raise ValueError(f"{path} has {len(words)} tokens that are words of letters a to z; expected {_MIN_WORDS}")
    return words
