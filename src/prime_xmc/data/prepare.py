"""Raw files to a prepared data set, once: tokenised, checked, under a fingerprint of all that went into it."""

import hashlib
import json
import logging
import os
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer

from prime_xmc.data.corpus import FORMAT_VERSION, LABELS, MANIFEST, Corpus, Ragged, RaggedWriter
from prime_xmc.data.raw import RawFiles, Record, read_filter, read_records
from prime_xmc.files import temporary_folder, write_json

logger = logging.getLogger(__name__)

# A chunk is large enough to keep the tokenizer's threads busy and small enough to fit in memory: full texts of
# 100,000 characters exist.
_CHUNK_TEXTS = 8192
_CHUNK_CHARACTERS = 1 << 23
_HASH_BYTES = 1 << 22

HANDLING = {
    "empty text": "kept, as its special tokens alone",
    "repeated label in a query": "the repetition is dropped",
    "own label among the positives": "dropped, as the filter says",
    "query without labels": "kept; training and evaluation skip it",
    "label without training queries": "kept; only its text says what it is",
    "repeated label text": "kept as a label of its own; text does not tell it from the first one",
    "no filter file": "no label is filtered",
}


def prepare(
    source: RawFiles,
    tokenizer: Tokenizer,
    *,
    tokenizer_name: str,
    pad_token_id: int,
    max_length: int,
    cache_dir: str | Path,
) -> Path:
    """Tokenise raw files into a folder that `Corpus.open` opens, and return the folder.

    The folder's name carries a fingerprint of the raw files' content, the fields, the tokenizer, `max_length` and the
    format. Where it exists already it is returned at once. It is built under a temporary name and renamed when
    complete, so that processes may prepare the same data at the same time, and a failure leaves nothing behind.
    Memory grows with the number of positives, not with the texts.

    What is odd but harmless (the keys of `HANDLING`) is handled as the values say, logged as a warning once each and
    listed in the manifest's `warnings`.

    Args:
        source: The raw files.
        tokenizer: Any truncation and padding of its own is ignored.
        tokenizer_name: Name of the tokenizer, for the manifest only.
        pad_token_id: Id of the tokenizer's padding token, for the manifest; nothing is padded here.
        max_length: Most tokens a text may have, special tokens included; longer ones are truncated.
        cache_dir: Folder for prepared data sets; made if need be.

    Raises:
        FileNotFoundError: when raw files are missing.
        ValueError: when a raw file is malformed (see `read_records`, `read_filter`) or has no line at all, when
            `max_length` leaves no room for a text, or when the folder exists but is not complete.
    """
    paths = source.paths()
    # A copy: the caller's tokenizer keeps its settings. They are removed before the fingerprint is taken.
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    num_special = tokenizer.num_special_tokens_to_add(is_pair=False)
    if max_length <= num_special:
        raise ValueError(f"max_length is {max_length}; {num_special} special tokens and some text must fit in it")

    with _progress() as progress:
        manifest: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "name": source.name,
            "fields": list(source.fields),
            "label_fields": list(source.fields if source.label_fields is None else source.label_fields),
            "max_length": max_length,
            "pad_token_id": pad_token_id,
            "vocab_size": max(tokenizer.get_vocab().values()) + 1,
            "tokenizer_hash": _hash([tokenizer.to_str().encode()]),
            "source": {path.name: _describe_file(path, progress) for path in paths.values()},
        }
        fingerprint = _hash([json.dumps(manifest, sort_keys=True).encode()])
        directory = Path(cache_dir).expanduser() / f"{source.name}-{fingerprint[:12]}"
        if (directory / MANIFEST).is_file():
            return directory
        if directory.exists():
            raise ValueError(f"{directory} exists but holds no {MANIFEST}; delete it and prepare again")
        manifest |= {"fingerprint": fingerprint, "tokenizer": tokenizer_name, "raw_directory": str(source.directory)}

        tokenizer.enable_truncation(max_length)
        with temporary_folder(directory) as temporary:
            manifest |= _Build(paths, manifest, tokenizer, temporary, progress).run()
            manifest["files"] = {file.name: file.stat().st_size for file in sorted(temporary.iterdir())}
            write_json(temporary / MANIFEST, manifest)
            _publish(temporary, directory)
    for warning in manifest["warnings"]:
        logger.warning("%s", _sentence(warning))
    return directory


def describe(corpus: Corpus) -> list[tuple[str, str]]:
    """Return what is worth knowing of a prepared data set as (name, value) pairs to show to a person."""
    manifest = corpus.manifest
    counts, statistics = manifest["counts"], manifest["statistics"]
    rows = [("data set", manifest["name"]), ("folder", str(corpus.directory))]
    rows += [("tokenizer", f"{manifest['tokenizer']}, at most {manifest['max_length']} tokens")]
    for part in ("train", "test", "labels"):
        name = {"train": "training queries", "test": "test queries", "labels": "labels"}[part]
        rows.append((name, f"{counts[part]['texts']:,}"))
        rows.append((f"{name}: tokens", f"{counts[part]['tokens']:,}, {counts[part]['truncated']:,} texts truncated"))
    rows += [(name, f"{value:.2f}") for name, value in statistics.items()]
    rows += [("warning", _sentence(warning)) for warning in manifest["warnings"]]
    return rows


class _Warnings:
    """What was odd in the raw files: how often, and in which line first."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], dict[str, Any]] = {}

    def add(self, file: str, kind: str, line: int | None, count: int = 1) -> None:
        entry = {"file": file, "kind": kind, "count": 0, "first_line": line, "handling": HANDLING[kind]}
        self._found.setdefault((file, kind), entry)["count"] += count

    def to_list(self) -> list[dict[str, Any]]:
        return list(self._found.values())


def _sentence(warning: dict[str, Any]) -> str:
    where = (
        "" if warning["first_line"] is None else f" ({warning['count']:,}, the first in line {warning['first_line']})"
    )
    return f"{warning['file']}: {warning['kind']}{where}: {warning['handling']}"


class _Build:
    """One pass over the raw files: labels, then training and test queries, each with their filter."""

    def __init__(
        self,
        paths: dict[str, Path],
        manifest: dict[str, Any],
        tokenizer: Tokenizer,
        directory: Path,
        progress: Progress,
    ) -> None:
        self.paths = paths
        self.fields, self.label_fields = manifest["fields"], manifest["label_fields"]
        self.token_dtype = np.uint16 if manifest["vocab_size"] <= 1 << 16 else np.int32
        self.tokenizer = tokenizer
        self.directory = directory
        self.progress = progress
        self.warnings = _Warnings()
        self.arrays: dict[str, Any] = {}
        self.counts: dict[str, dict[str, int]] = {}

    def run(self) -> dict[str, Any]:
        """Write all files; return what the manifest records of them."""
        self._write_labels()
        num_labels = self.counts["labels"]["texts"]
        frequency = self._write_queries("train", "trn", num_labels)
        self._write_queries("test", "tst", num_labels)
        unseen = np.flatnonzero(frequency == 0)
        if len(unseen):
            file = self.paths["lbl"].name
            self.warnings.add(file, "label without training queries", int(unseen[0]) + 1, len(unseen))
        train, labels = self.counts["train"], self.counts["labels"]
        return {
            "counts": self.counts,
            "statistics": {
                "labels per training query": train["positives"] / train["texts"],
                "training queries per label": train["positives"] / labels["texts"],
                "tokens per training query": train["tokens"] / train["texts"],
                "tokens per label": labels["tokens"] / labels["texts"],
                "share of labels with at most 3 training queries": float((frequency <= 3).mean()),
            },
            "warnings": self.warnings.to_list(),
            "arrays": self.arrays,
        }

    def _write_labels(self) -> None:
        path = self.paths["lbl"]
        hashes = array("q")  # 8 bytes a label; the texts themselves need not fit in memory
        with (self.directory / LABELS).open("w", encoding="utf-8", newline="\n") as file:
            for _, records in self._tokenised("labels", path, self.label_fields, None, "label_tokens"):
                for record in records:
                    file.write(json.dumps({"uid": record.uid, "text": record.title}, ensure_ascii=False) + "\n")
                hashes.extend(hash(record.text) for record in records)
        values = np.array(hashes)
        order = np.argsort(values, kind="stable")
        repeated = order[1:][np.diff(values[order]) == 0]
        if len(repeated):
            self.warnings.add(path.name, "repeated label text", int(repeated.min()) + 1, len(repeated))

    def _write_queries(self, split: str, source: str, num_labels: int) -> np.ndarray:
        """Write tokens, positives and filter of a split; return the number of queries of each label."""
        path = self.paths[source]
        chunks = []
        for first_line, records in self._tokenised(split, path, self.fields, num_labels, f"{split}_tokens"):
            rows = [sorted(set(record.positives)) for record in records]
            for line, (record, row) in enumerate(zip(records, rows, strict=True), first_line):
                if len(row) < len(record.positives):
                    self.warnings.add(path.name, "repeated label in a query", line)
            chunks.append(Ragged.from_rows(rows, np.int32))
        listed = Ragged.concatenate(chunks)
        filtered = self._read_filter(split, num_labels)
        positives = listed.without(filtered)
        for kind, count in (
            ("own label among the positives", listed.lengths - positives.lengths),
            ("query without labels", positives.lengths == 0),
        ):
            if count.any():
                self.warnings.add(path.name, kind, int(np.flatnonzero(count)[0]) + 1, int(count.sum()))
        self._write(split, "positives", positives)
        self._write(split, "filtered", filtered)
        return np.bincount(positives.values, minlength=num_labels)

    def _read_filter(self, split: str, num_labels: int) -> Ragged:
        name, num_queries = f"filter_labels_{split}", self.counts[split]["texts"]
        pairs = np.empty((0, 2), dtype=np.int64)
        if name in self.paths:
            pairs = read_filter(self.paths[name], num_queries, num_labels)
        else:
            self.warnings.add(f"{name}.txt", "no filter file", None)
        return Ragged.from_pairs(pairs, num_queries, np.int32)

    def _write(self, split: str, what: str, rows: Ragged) -> None:
        with RaggedWriter(self.directory, f"{split}_{what}", np.int32) as writer:
            writer.extend(rows)
        self._record(writer, f"{split}_{what}")
        self.counts[split][what] = len(rows.values)

    def _tokenised(
        self, part: str, path: Path, fields: Sequence[str], num_labels: int | None, array_name: str
    ) -> Iterator[tuple[int, list[Record]]]:
        """Write the tokens of a file; yield its records in chunks, each with the line of its first record."""
        task = self.progress.add_task(f"tokenise {path.name}", total=path.stat().st_size, rate="")
        started, texts, truncated = time.perf_counter(), 0, 0
        with path.open("rb") as stream, RaggedWriter(self.directory, array_name, self.token_dtype) as writer:
            for records in _chunks(read_records(path, fields, num_labels, stream=stream)):
                encodings = self.tokenizer.encode_batch_fast([record.text for record in records])
                writer.extend(Ragged.from_rows([encoding.ids for encoding in encodings], self.token_dtype))
                truncated += sum(bool(encoding.overflowing) for encoding in encodings)
                first_line = texts + 1
                for line, record in enumerate(records, first_line):
                    if not record.text.strip():
                        self.warnings.add(path.name, "empty text", line)
                texts += len(records)
                rate = f"{texts / (time.perf_counter() - started):,.0f} texts/s"
                self.progress.update(task, completed=stream.tell(), rate=rate)
                yield first_line, records
        if texts == 0:
            raise ValueError(f"{path} is empty; it needs a line for each text")
        self._record(writer, array_name)
        self.counts[part] = {"texts": texts, "tokens": writer.shape()["values"], "truncated": truncated}

    def _record(self, writer: RaggedWriter, name: str) -> None:
        self.arrays[name] = writer.shape()


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    chunk: list[Record] = []
    characters = 0
    for record in records:
        chunk.append(record)
        characters += len(record.text)
        if len(chunk) == _CHUNK_TEXTS or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _describe_file(path: Path, progress: Progress) -> dict[str, Any]:
    size = path.stat().st_size
    task = progress.add_task(f"hash {path.name}", total=size, rate="")

    def blocks() -> Iterator[bytes]:
        with path.open("rb") as stream:
            while block := stream.read(_HASH_BYTES):
                progress.advance(task, len(block))
                yield block

    digest = _hash(blocks())
    progress.remove_task(task)
    return {"bytes": size, "blake2b": digest}


def _hash(blocks: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=32)
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _publish(temporary: Path, directory: Path) -> None:
    """Give the finished folder its name, unless another process has been faster; then its folder stays."""
    try:
        os.replace(temporary, directory)
    except OSError:
        if not (directory / MANIFEST).is_file():
            raise


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    # Standard output belongs to results.
    return Progress(*columns, console=Console(stderr=True))
