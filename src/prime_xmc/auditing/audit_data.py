"""The audit of a data set: what the scan of its files shows, as findings and distributions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from prime_xmc.auditing.findings import Finding, Occurrence, by_severity
from prime_xmc.auditing.near_duplicates import across, within
from prime_xmc.auditing.scan import LONGEST, SAMPLED, DataScan, FileScan, scan, texts_of
from prime_xmc.data.corpus import Ragged
from prime_xmc.data.preparation import MANY_CUT
from prime_xmc.data.raw import RawFiles
from prime_xmc.files import write_text

FORMAT = 1  # of audit.json
_FREQUENCY = ((0, 0), (1, 1), (2, 3), (4, 9), (10, 29), (30, 99), (100, None))
_LABELS = ((0, 0), (1, 1), (2, 2), (3, 5), (6, 10), (11, 30), (31, None))
_EXAMPLES = 3


@dataclass(frozen=True)
class Distribution:
    """How many lines of each file fall into each range.

    Attributes:
        name: What is counted.
        unit: What the ranges are numbers of.
        ranges: Their names.
        counts: Counts by file.
        note: A sentence on it.
    """

    name: str
    unit: str
    ranges: tuple[str, ...]
    counts: dict[str, tuple[int, ...]]
    note: str


@dataclass(frozen=True)
class Audit:
    """What was found in a data set.

    Attributes:
        name: Name of the data set.
        directory: Its folder.
        counts: How many queries, labels and pairs there are, by name for people.
        findings: The findings, the worst first.
        distributions: The distributions.
        filters: Pairs of row and label to filter, by split: those that are filtered and those that were found.
        num_new_filtered: How many of these are new, by split.
        num_emptied: How many queries of each split would lose their last label by them.
    """

    name: str
    directory: Path
    counts: dict[str, int | float]
    findings: list[Finding]
    distributions: list[Distribution]
    filters: dict[str, Int64[np.ndarray, "pair 2"]]
    num_new_filtered: dict[str, int]
    num_emptied: dict[str, int]

    @property
    def errors(self) -> list[Finding]:
        """The findings with which training makes no sense."""
        return [finding for finding in self.findings if finding.about.severity == "error"]

    def to_json(self) -> dict[str, Any]:
        """Return the audit as plain JSON."""
        return {
            "format": FORMAT,
            "name": self.name,
            "directory": str(self.directory),
            "counts": self.counts,
            "findings": [finding.to_json() for finding in self.findings],
            "distributions": [vars(distribution) for distribution in self.distributions],
            "pairs_to_filter": self.num_new_filtered,
            "queries_without_labels_then": self.num_emptied,
        }


def audit(
    source: RawFiles,
    *,
    count_tokens: Callable[[Sequence[str]], Sequence[int]] | None = None,
    max_length: int | None = None,
    max_compared: int = 500_000,
) -> Audit:
    """Audit the raw files of a data set.

    Memory is some 60 bytes a line, 4 a pair, and 70 bytes and 4 for each word of the lines that are compared.

    Args:
        source: The files.
        count_tokens: Returns the number of tokens of each text, special tokens included; None: they are not counted.
        max_length: Tokens of a text that are read.
        max_compared: Lines of each file that are compared for near duplicates, the first ones.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: With file, line and value, for a malformed one.
    """
    data = scan(source, max_compared)
    own = {split: own_labels(queries, data.labels) for split, queries in data.splits.items()}
    findings = [*_faults(data), *_texts(data), *_repeats(data, max_compared), *_labels(data), *_pairs(data, own)]
    distributions = [_labels_per_query(data), _queries_per_label(data)]
    if count_tokens is not None and max_length is not None:
        lengths, more = _lengths(data, count_tokens, max_length)
        distributions.append(lengths)
        findings += more
    filters, num_new = _filters(data, own)
    directory, findings = Path(source.directory).expanduser(), by_severity(findings)
    emptied = {split: _num_emptied(queries, filters[split]) for split, queries in data.splits.items()}
    return Audit(source.name, directory, _counts(data), findings, distributions, filters, num_new, emptied)


def write_filters(found: Audit) -> list[Path]:
    """Write the filter files of an audit into the folder of the data set, and return those that have new pairs."""
    written = []
    for split, pairs in found.filters.items():
        if found.num_new_filtered[split]:
            path = found.directory / f"filter_labels_{split}.txt"
            write_text(path, "".join(f"{row} {label}\n" for row, label in pairs.tolist()))
            written.append(path)
    return written


def own_labels(queries: FileScan, labels: FileScan) -> Int64[np.ndarray, " query"]:
    """Return the label that each query is itself, by its text or its uid, -1 where it is none.

    A uid that is a mere number says nothing: such are the numbers of lines. Of several labels of one text it is one
    that the query has, if it has one of them.
    """
    found = np.full(len(queries), -1, dtype=np.int64)
    for ours, theirs in ((queries.titles, labels.titles), (queries.uids, labels.uids)):
        order = np.argsort(theirs, kind="stable")
        ascending = theirs[order]
        places, ends = (np.searchsorted(ascending, ours, side=side) for side in ("left", "right"))
        places[places == len(order)] = 0
        fits = (ascending[places] == ours) & (ours != 0) & (ours != hash("")) if len(order) else np.zeros(0, bool)
        found[fits] = order[places[fits]]
        for row in np.flatnonzero(fits & (ends - places > 1)).tolist():
            has = [label for label in queries.positives[row].tolist() if theirs[label] == ours[row]]
            found[row] = min(has, default=found[row])
    return found


def _counts(data: DataScan) -> dict[str, int | float]:
    counts: dict[str, int | float] = {"training queries": len(data.train)}
    if data.test is not None:
        counts["test queries"] = len(data.test)
    pairs = len(data.train.positives.values)
    return counts | {
        "labels": len(data.labels),
        "training pairs": pairs,
        "labels per training query": round(pairs / max(1, len(data.train)), 2),
        "training queries per label": round(pairs / max(1, len(data.labels)), 2),
    }


def _fields(data: DataScan, file: FileScan) -> list[str]:
    source = data.source
    is_labels = file is data.labels and source.label_fields is not None
    return list((source.label_fields or ()) if is_labels else source.fields)


def _finding(
    data: DataScan,
    kind: str,
    file: FileScan,
    count: int,
    rows: Sequence[int] | np.ndarray,
    *,
    total: int | None = None,
    partners: tuple[FileScan, Sequence[int] | np.ndarray] | None = None,
    note: str = "",
) -> list[Finding]:
    """Return a finding with its examples in a list, which is empty if nothing was found.

    Args:
        data: The data set.
        kind: A key of `KINDS`.
        file: The file.
        count: How often.
        rows: Rows of the first ones.
        total: Number that could have been found; None: all lines.
        partners: File and rows of what belongs to each of them.
        note: A sentence.
    """
    if not count:
        return []
    rows = [int(row) for row in rows[:_EXAMPLES]]
    texts = texts_of(file.path, _fields(data, file), set(rows))
    others = [""] * len(rows)
    if partners is not None:
        partner_file, partner_rows = partners
        partner_rows = [int(row) for row in partner_rows[:_EXAMPLES]]
        partner_texts = texts_of(partner_file.path, _fields(data, partner_file), set(partner_rows))
        others = [f"{partner_file.path.name}, line {row + 1}: {partner_texts[row]}" for row in partner_rows]
    examples = [Occurrence(file.path.name, row + 1, texts[row], other) for row, other in zip(rows, others, strict=True)]
    return [Finding(kind, file.path.name, int(count), len(file) if total is None else total, tuple(examples), note)]


def _faults(data: DataScan) -> list[Finding]:
    """Return what makes training senseless."""
    found = []
    if not len(data.train.positives.values):
        found.append(Finding("no_labelled_query", data.train.path.name, len(data.train), len(data.train)))
    if len(data.labels) == 1:
        found.append(Finding("one_label", data.labels.path.name, 1, 1))
    for file in (data.train, data.labels):
        if "empty" in file.kinds and file.kinds["empty"].count == len(file):
            found.append(Finding("all_empty", file.path.name, len(file), len(file)))
    if data.test is not None and not len(data.test.positives.values):
        found.append(Finding("no_labelled_test_query", data.test.path.name, len(data.test), len(data.test)))
    return found


def _texts(data: DataScan) -> list[Finding]:
    """Return what is seen in single lines."""
    found = []
    for file in (*data.splits.values(), data.labels):
        names = {"empty": "empty_label" if file is data.labels else "empty_query"}
        for kind, rows in file.kinds.items():
            found += _finding(data, names.get(kind, kind), file, rows.count, rows.first)
        for kind, is_so in (("byte_order_mark", file.has_mark), ("windows_line_ends", file.has_windows_ends)):
            if is_so:
                found.append(Finding(kind, file.path.name, 1, 1))
    return found


def _repeats(data: DataScan, max_compared: int) -> list[Finding]:
    """Return what is in the files, or in two of them, more than once."""
    found = []
    note = f"The first {max_compared:,} lines of each file were compared."
    for file in (*data.splits.values(), data.labels):
        kind = "label_text_repeated" if file is data.labels else "duplicate_query"
        rows, earlier = _earlier(file.texts, file)
        found += _finding(data, kind, file, len(rows), rows, partners=(file, earlier))
    rows, earlier = _earlier(data.train.texts, data.train)
    sets = np.array([hash(data.train.positives[int(row)].tobytes()) for row in range(len(data.train))], dtype=np.int64)
    sizes = data.train.positives.lengths  # those without a label are not trained on
    differ = (sets[rows] != sets[earlier]) & (sizes[rows] > 0) & (sizes[earlier] > 0)
    found += _finding(
        data, "conflicting_queries", data.train, int(differ.sum()), rows[differ], partners=(data.train, earlier[differ])
    )
    for kind, file in (("near_duplicate_query", data.train), ("near_duplicate_label", data.labels)):
        pairs = within(file.words, file.texts[: len(file.words)])
        compared = note if len(file) > max_compared else ""
        found += _finding(
            data,
            kind,
            file,
            len(pairs),
            pairs[:, 0],
            total=len(file.words),
            partners=(file, pairs[:, 1]),
            note=compared,
        )
    if data.test is not None:
        found += _leaks(data, data.test, note if max(len(data.train), len(data.test)) > max_compared else "")
    return found


def _leaks(data: DataScan, test: FileScan, note: str) -> list[Finding]:
    train = data.train
    order = np.argsort(train.texts, kind="stable")
    ascending = train.texts[order]
    first, end = (np.searchsorted(ascending, test.texts, side=side) for side in ("left", "right"))
    is_leaked = (first < end) & ~_is_empty(test)
    rows, partners = np.flatnonzero(is_leaked), order[first[is_leaked]]
    copies = np.flatnonzero(np.isin(train.texts, test.texts[rows])).tolist()
    known = {(train.texts[copy], train.positives[copy].tobytes()) for copy in copies}
    same = sum((test.texts[row], test.positives[row].tobytes()) in known for row in rows.tolist())
    found = _finding(
        data,
        "leaked_query",
        test,
        len(rows),
        rows,
        partners=(train, partners),
        note=f"{same:,} of them have the same labels in both files.",
    )
    pairs = across(test.words, test.texts[: len(test.words)], train.words, train.texts[: len(train.words)])
    pairs = pairs[~is_leaked[pairs[:, 0]]]
    total = len(test.words)
    return found + _finding(
        data,
        "nearly_leaked_query",
        test,
        len(pairs),
        pairs[:, 0],
        total=total,
        partners=(train, pairs[:, 1]),
        note=note,
    )


def _labels(data: DataScan) -> list[Finding]:
    labels = data.labels
    found = []
    rows, earlier = _earlier(labels.all_uids, None)
    found += _finding(data, "label_uid_repeated", labels, len(rows), rows, partners=(labels, earlier))
    frequency = np.bincount(data.train.positives.values, minlength=len(labels))
    unseen = np.flatnonzero(frequency == 0)
    if len(data.train.positives.values):
        found += _finding(data, "label_without_queries", labels, len(unseen), unseen)
    if data.test is not None:
        asked = np.bincount(data.test.positives.values, minlength=len(labels)) > 0
        rows = np.flatnonzero(asked & (frequency == 0))
        found += _finding(data, "unseen_test_label", labels, len(rows), rows, total=int(asked.sum()))
    return found


def _pairs(data: DataScan, own: dict[str, np.ndarray]) -> list[Finding]:
    """Return the pairs of a query and itself, and those whose reverse is in the training data."""
    found = []
    for split, queries in data.splits.items():
        filtered = _codes(data.filters.get(split), len(data.labels))
        rows = np.flatnonzero(own[split] >= 0)
        codes = rows * len(data.labels) + own[split][rows]
        is_open = ~np.isin(codes, filtered)
        pairs = queries.positives.row_ids() * len(data.labels) + queries.positives.values
        is_positive = np.isin(codes, pairs)
        for kind, chosen in (("self_pair", is_open & is_positive), ("unfiltered_self", is_open & ~is_positive)):
            some = rows[chosen]
            found += _finding(data, kind, queries, len(some), some, partners=(data.labels, own[split][some]))
    if data.test is not None:
        rows, labels = _reciprocal(data, data.test, own)
        total = len(data.test.positives.values)
        found += _finding(
            data, "reciprocal_pair", data.test, len(rows), rows, total=total, partners=(data.labels, labels)
        )
    return found


def _reciprocal(data: DataScan, test: FileScan, own: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return test rows and their labels whose reverse is a training pair, without what is filtered already."""
    num_labels = len(data.labels)
    rows = data.train.positives.row_ids()
    known = own["train"][rows] >= 0
    seen = own["train"][rows][known] * num_labels + data.train.positives.values[known]
    rows, labels = test.positives.row_ids(), test.positives.values.astype(np.int64)
    reverse = labels * num_labels + own["test"][rows]
    is_reciprocal = (own["test"][rows] >= 0) & np.isin(reverse, seen) & (own["test"][rows] != labels)
    is_reciprocal &= ~np.isin(rows * num_labels + labels, _codes(data.filters.get("test"), num_labels))
    return rows[is_reciprocal], labels[is_reciprocal]


def _filters(data: DataScan, own: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    filters, num_new = {}, {}
    for split in data.splits:
        rows = np.flatnonzero(own[split] >= 0)
        pairs = [np.stack([rows, own[split][rows]], axis=1)]
        if split == "test" and data.test is not None:
            pairs.append(np.stack(_reciprocal(data, data.test, own), axis=1))
        given = data.filters.get(split, np.zeros((0, 2), dtype=np.int64))
        filters[split] = np.unique(np.concatenate([given, *pairs]), axis=0)
        num_new[split] = len(filters[split]) - len(np.unique(given, axis=0))
    return filters, num_new


def _num_emptied(queries: FileScan, filtered: Int64[np.ndarray, "pair 2"]) -> int:
    """Return how many queries have a label now and would have none with these filtered pairs."""
    left = queries.positives.without(Ragged.from_pairs(filtered, len(queries), dtype=np.int32))
    return int(((queries.positives.lengths > 0) & (left.lengths == 0)).sum())


def _lengths(
    data: DataScan, count_tokens: Callable[[Sequence[str]], Sequence[int]], max_length: int
) -> tuple[Distribution, list[Finding]]:
    edges = sorted({max(1, round(max_length * share)) for share in (0.25, 0.5, 0.75, 1, 2, 4)})
    ranges = [(low + 1, high) for low, high in zip([0, *edges[:-1]], edges, strict=True)]
    bounds = [*ranges, (edges[-1] + 1, None)]
    counts: dict[str, tuple[int, ...]] = {}
    found: list[Finding] = []
    for file in (*data.splits.values(), data.labels):
        prompt = data.source.label_prompt if file is data.labels else data.source.query_prompt
        lengths = np.asarray(count_tokens([prompt + text for text in file.sample]), dtype=np.int64)
        counts[file.path.name] = _histogram(lengths, bounds)
        is_cut = lengths > max_length
        if is_cut.any():
            median, most = np.percentile(lengths, [50, 95]).round().astype(int).tolist()
            note = f"Half of the texts have at most {median:,} tokens, 95 % at most {most:,}."
            sampled = f" Counted in {len(lengths):,} texts drawn at random." if len(file) > SAMPLED else ""
            rows = np.sort(np.asarray(file.sample_rows)[is_cut])
            total = len(lengths)
            kind = "many_long_texts" if len(rows) > MANY_CUT * total else "long_text"
            found += _finding(data, kind, file, len(rows), rows, total=total, note=note + sampled)
    prompts = " and the encoder's prompts" if data.source.query_prompt or data.source.label_prompt else ""
    note = f"{max_length:,} tokens of a text are read (dataset.max_length), special tokens{prompts} included."
    if any(len(file) > SAMPLED for file in (*data.splits.values(), data.labels)):
        note += f" Of each file {SAMPLED:,} texts were drawn at random."
    if any(len(text) == LONGEST for file in (*data.splits.values(), data.labels) for text in file.sample):
        note += f" Texts were cut at {LONGEST:,} characters before."
    return Distribution("Length of texts", "tokens", _names(bounds), counts, note), found


def _labels_per_query(data: DataScan) -> Distribution:
    counts = {file.path.name: _histogram(file.positives.lengths, _LABELS) for file in data.splits.values()}
    most = max((int(file.positives.lengths.max(initial=0)) for file in data.splits.values()), default=0)
    return Distribution("Labels of a query", "labels", _names(_LABELS), counts, f"The most is {most:,}.")


def _queries_per_label(data: DataScan) -> Distribution:
    frequency = np.bincount(data.train.positives.values, minlength=len(data.labels))
    rare = float((frequency <= 3).mean()) if len(frequency) else 0.0
    note = f"{100 * rare:.0f} % of the labels have at most three training queries; the most frequent has "
    note += f"{int(frequency.max(initial=0)):,}."
    counts = {data.labels.path.name: _histogram(frequency, _FREQUENCY)}
    return Distribution("Training queries of a label", "training queries", _names(_FREQUENCY), counts, note)


def _histogram(values: np.ndarray, bounds: Sequence[tuple[int, int | None]]) -> tuple[int, ...]:
    return tuple(
        int(((values >= low) & (values <= (high if high is not None else values.max(initial=0)))).sum())
        for low, high in bounds
    )


def _names(bounds: Sequence[tuple[int, int | None]]) -> tuple[str, ...]:
    return tuple(
        f"{low:,}" if low == high else f"{low:,}+" if high is None else f"{low:,}–{high:,}" for low, high in bounds
    )


def _earlier(hashes: np.ndarray, file: FileScan | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows whose hash occurs earlier, and the first row that has it; empty texts of a file are left out."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    earlier = first[inverse]
    repeats: Bool[np.ndarray, " row"] = earlier < np.arange(len(hashes))
    if file is not None:
        repeats &= ~_is_empty(file)
    rows = np.flatnonzero(repeats)
    return rows, earlier[rows]


def _is_empty(file: FileScan) -> Bool[np.ndarray, " row"]:
    return file.texts == hash("")


def _codes(pairs: np.ndarray | None, num_labels: int) -> Int64[np.ndarray, " pair"]:
    return np.zeros(0, dtype=np.int64) if pairs is None else pairs[:, 0] * num_labels + pairs[:, 1]
