"""Synthetic raw files of any size, for experiments on the cost of training, not on its quality."""

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
from tokenizers import Tokenizer

from prime_xmc.data.corpus import Ragged
from prime_xmc.files import publishing, write_json
from prime_xmc.progress import track

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
_FORMAT_VERSION = 1  # counts up when the same settings give other files
_CHUNK = 1 << 16  # texts written at once
_MIN_WORDS = 1000
_TAIL = 0.9  # exponent of the labels' frequencies
_HEAD = 10  # offset of the rank, which keeps the most frequent labels from standing out
_NEIGHBOURS = 64  # number of labels among whose queries those of a rare label are spread
_SPREAD = 8  # the same for a frequent label, per query of it
_LENGTH_SPREAD = 0.5  # standard deviation of the logarithm of a text's number of words
_OTHER_WORDS = 0.5  # share of a query's words that do not come from its labels


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
    """Write raw files that `RawFiles` reads to a new folder and return the folder.

    The frequencies of labels follow a power law: a few labels have many queries, most have a few, and every label has
    a training query if there are at least as many pairs as labels. The labels of a query mostly have close ids. Words
    follow Zipf's law, and half of a query's words come from its labels. The number of words is log-normal. A test
    query is another text for the labels of some training query.

    The folder's name carries a fingerprint of the settings; a folder that exists already is returned at once. It is
    written under a temporary name and renamed when it is complete. The same settings give the same bytes, given the
    same versions of NumPy and zlib. Memory grows with the labels' words and the pairs, not with the queries' texts.

    Args:
        directory: Parent of the new folder; made if need be.
        num_labels: Number of labels.
        num_queries: Number of training queries.
        num_test_queries: Number of test queries.
        labels_per_query: Mean number of labels per query, at least 1.
        mean_label_words: Mean number of words per label, at least 1.
        mean_query_words: Mean number of words per query, at least 1.
        vocabulary: Path of a tokenizer.json, whose tokens of at least two letters are the words, most frequent first.
        seed: Seed of everything random.

    Raises:
        FileNotFoundError: If there is no such tokenizer.json.
        ValueError: If a number is too small, the vocabulary has too few words, or the folder exists but is not
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


def power_law_frequencies(num_labels: int, num_pairs: int) -> Int64[np.ndarray, " label"]:
    """Return label frequencies that sum to `num_pairs`: a power law of the rank, ∝ (rank + 10)^-0.9.

    Every label has a frequency of at least 1 if there are enough pairs for that.

    Args:
        num_labels: Number of labels.
        num_pairs: Number of (query, label) pairs.

    Returns:
        Frequencies in nearly descending order: their cumulative sums are rounded, which keeps the total exact.
    """
    least = int(num_pairs >= num_labels)
    ends = np.cumsum((np.arange(num_labels) + _HEAD) ** -_TAIL)
    ends = np.rint(ends / ends[-1] * (num_pairs - least * num_labels))
    return least + np.diff(ends, prepend=0).astype(np.int64)


def draw_positives(
    frequencies: Int64[np.ndarray, " label"], lengths: Int64[np.ndarray, " query"], rng: np.random.Generator
) -> Ragged:
    """Draw the labels of queries such that labels have given frequencies and a rare label has similar queries.

    Args:
        frequencies: Number of queries of each label.
        lengths: Number of labels of each query; the sum of these is that of the frequencies.
        rng: Generator of random numbers.

    Returns:
        int32, ascending rows of at least one label. A label that was drawn twice for a query counts once.
    """
    num_labels = len(frequencies)
    labels = np.repeat(np.arange(num_labels, dtype=np.int32), frequencies)
    # Pairs are put in a line by label and each is then shifted by a random distance, which may be longer for frequent
    # labels. Neighbours in the line thus belong to labels with close ids.
    reach = np.maximum(_SPREAD * frequencies, _NEIGHBOURS).astype(np.float32)
    places = rng.random(len(labels), dtype=np.float32)
    places *= reach[labels]
    places += labels
    places %= num_labels
    labels = labels[places.argsort(kind="stable")]  # stable: ties have the same order on every processor
    # The queries take their labels from that line in a random order, one query after the other.
    order = rng.permutation(len(lengths))
    pairs = np.repeat(order, lengths[order]) * num_labels + labels
    pairs.sort()
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    offsets = np.searchsorted(pairs, np.arange(len(lengths) + 1) * num_labels)
    return Ragged((pairs % num_labels).astype(np.int32), offsets)


class _Writer:
    """Makes up texts and writes them.

    Args:
        directory: Folder of the files.
        words: Vocabulary, most frequent word first.
        rng: Generator of random numbers.
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
            is_other = self.rng.random(len(words)) < _OTHER_WORDS
            words[is_other] = self._draw_words(int(is_other.sum()))
            titles = self._titles(_ragged(words, lengths))
            for row, title, ids in zip(rows, titles, _lists(labels.values, labels), strict=True):
                yield f'{{"uid": "{name}{row}", "title": "{title}", "target_ind": {ids}}}\n'

        self._write(name, len(positives), lines)

    def _draw_lengths(self, num_texts: int, mean: float | int) -> Int64[np.ndarray, " text"]:
        lengths = self.rng.lognormal(np.log(mean) - _LENGTH_SPREAD**2 / 2, _LENGTH_SPREAD, num_texts)
        return np.maximum(np.rint(lengths).astype(np.int64), 1)

    def _draw_words(self, count: int) -> Int32[np.ndarray, " word"]:
        # a place in the vocabulary: uniform numbers are below 1, which is the last cumulative share
        return np.searchsorted(self.zipf, self.rng.random(count), side="right").astype(np.int32)

    def _draw_from(self, ragged: Ragged, rows: Integer[np.ndarray, " draw"]) -> Int32[np.ndarray, " draw"]:
        """Return a random value of each given row; the rows are not empty."""
        places = (self.rng.random(len(rows)) * ragged.lengths[rows]).astype(np.int64)
        return ragged.values[ragged.offsets[rows] + places]

    def _titles(self, texts: Ragged) -> Iterator[str]:
        return map(" ".join, _lists(self.words[texts.values], texts))

    def _write(self, name: str, num_texts: int, lines: Callable[[np.ndarray], Iterator[str]]) -> None:
        """Write the lines of `num_texts` rows, a chunk of rows at a time."""
        path = self.directory / f"{name}.json.gz"
        starts = track(range(0, num_texts, _CHUNK), f"write {path.name}")
        # no name and no time in the header, so that the same settings give the same bytes
        with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as file:
            for start in starts:
                rows = np.arange(start, min(start + _CHUNK, num_texts))
                file.write("".join(lines(rows)).encode())


def _ragged(values: Int32[np.ndarray, " total"], lengths: Int64[np.ndarray, " row"]) -> Ragged:
    return Ragged(values, np.concatenate(([0], lengths.cumsum())))


def _lists(values: Shaped[np.ndarray, " total"], rows: Ragged) -> Iterator[list[Any]]:
    """Yield the values of each row of `rows` as a list."""
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
