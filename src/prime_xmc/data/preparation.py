"""Raw files to a prepared data set, once: tokenised, checked, under a fingerprint of all that went into it."""

import hashlib
import json
import logging
import time
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
from jaxtyping import Bool, Int64
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer

from prime_xmc.checksums import checksum_of
from prime_xmc.checksums import describe as describe_sums
from prime_xmc.data.corpus import (
    FORMAT_VERSION,
    LABELS,
    MANIFEST,
    TEST_ROWS,
    Corpus,
    Ragged,
    RaggedWriter,
    open_ragged,
    ragged_paths,
)
from prime_xmc.data.fitting import size_of_test_split
from prime_xmc.data.oddities import Oddities, sentence
from prime_xmc.data.raw import RawFiles, Record, read_filter, read_records
from prime_xmc.data.splitting import choose_test_queries
from prime_xmc.files import publishing, write_json
from prime_xmc.progress import is_terminal

logger = logging.getLogger(__name__)

# A chunk is large enough to keep the tokenizer's threads busy and small enough to fit in memory: full texts of
# 100,000 characters exist.
_CHUNK_TEXTS = 8192
_CHUNK_CHARACTERS = 1 << 23
_HASH_BYTES = 1 << 22

MANY_CUT = 1 / 3  # share of texts that are cut from which on they are worth a warning
_MANY_UNKNOWN = 0.05  # share of unknown tokens from which on they are worth a warning
_SPLIT_SEED = 0  # of the test split that is split off; it belongs to the data, whatever the seed of a run
_SPLIT = "equal texts together"  # how it is made; data that were prepared otherwise have another fingerprint


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

    The folder's name carries a fingerprint of the raw files' content, the fields and prompts, the tokenizer,
    `max_length` and the format. Where it exists already it is returned at once. It is built under a temporary name
    and renamed when complete, so that processes may prepare the same data at the same time, and a failure leaves
    nothing behind.
    Memory does not grow with the queries, their positives and the texts: beyond a few chunks of them, it holds 44
    bytes for each label, to find repeated texts, uids and tokens and to count queries, 8 for each training query and 24
    for each test query, to find the same texts in both, and the pairs of the filter that is being applied. Where a test
    split is split off, it holds 64 bytes for each query instead.

    Where the source has no test file, some training queries become the test split (see `choose_test_queries`); which
    ones depends on the data alone. What is odd but harmless is handled as `prime_xmc.data.oddities.HANDLING` says,
    logged as a warning once each and listed in the manifest's `warnings`.

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
            `max_length` leaves no room for a text, when `cache_dir` cannot be written to, or when the folder exists
            but is not complete.
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
        # Only where there are any, so that data prepared without them keep their fingerprint.
        prompts = {"query_prompt": source.query_prompt, "label_prompt": source.label_prompt}
        manifest |= {name: prompt for name, prompt in prompts.items() if prompt}
        if "tst" not in paths:
            manifest |= {"num_test": source.num_test, "split_seed": _SPLIT_SEED, "split": _SPLIT}
        fingerprint = _hash([json.dumps(manifest, sort_keys=True).encode()])
        directory = Path(cache_dir).expanduser() / f"{source.name}-{fingerprint[:12]}"
        if (directory / MANIFEST).is_file():
            return directory
        if directory.exists():
            raise ValueError(f"{directory} exists but holds no {MANIFEST}; delete it and prepare again")
        _check_writable(directory.parent)
        manifest |= {"fingerprint": fingerprint, "tokenizer": tokenizer_name, "raw_directory": str(source.directory)}

        tokenizer.enable_truncation(max_length)
        with publishing(directory, replace=False) as temporary:
            manifest |= _Build(paths, manifest, tokenizer, temporary, progress).run()
            manifest["files"] = {file.name: file.stat().st_size for file in sorted(temporary.iterdir())}
            manifest["checksums"] = {name: describe_sums(temporary / name) for name in manifest["files"]}
            manifest["checksums"][MANIFEST] = checksum_of(manifest)
            write_json(temporary / MANIFEST, manifest)
    for warning in manifest["warnings"]:
        logger.warning("%s", sentence(warning))
    for note in manifest["notes"]:
        logger.info("%s", note)
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
        unknown = f", {counts[part]['unknown']:,} unknown" if counts[part].get("unknown") else ""
        tokens = f"{counts[part]['tokens']:,}, {counts[part]['truncated']:,} texts truncated{unknown}"
        rows.append((f"{name}: tokens", tokens))
    rows += [(name, f"{value:.2f}") for name, value in statistics.items()]
    rows += [("warning", sentence(warning)) for warning in manifest["warnings"]]
    rows += [("note", note) for note in (corpus.split_note, *manifest.get("notes", [])) if note is not None]
    return rows


def cut_texts(manifest: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each part of prepared data of whose texts many are longer than what is read of them.

    Args:
        manifest: What is noted of the data; of data that were never prepared, nothing.
    """
    sentences = []
    for part, name in (("train", "training queries"), ("labels", "labels")):
        counts = manifest.get("counts", {}).get(part, {})
        if counts.get("truncated", 0) > MANY_CUT * counts.get("texts", 0):
            sentences.append(
                f"{counts['truncated']:,} of {counts['texts']:,} {name} have more than the {manifest['max_length']} "
                "tokens that are read of each: dataset.max_length= reads more, twice the tokens in about twice the time"
            )
    return sentences


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
        self.query_prompt, self.label_prompt = manifest.get("query_prompt", ""), manifest.get("label_prompt", "")
        self.num_test: int | None = manifest.get("num_test", 0)
        self.token_dtype = np.uint16 if manifest["vocab_size"] <= 1 << 16 else np.int32
        self.tokenizer = tokenizer
        self.num_special = tokenizer.num_special_tokens_to_add(is_pair=False)
        self.unknown_id = _unknown_id(tokenizer)
        self.directory = directory
        self.progress = progress
        self.warnings = Oddities()
        self.arrays: dict[str, Any] = {}
        self.counts: dict[str, dict[str, int]] = {}
        self.truncated_rows = array("q")  # of the queries that a test split is split off
        self.text_hashes = {split: array("q") for split in ("train", "test", "all")}  # of the texts of queries
        self.split_off: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """Write all files; return what the manifest records of them."""
        self._write_labels()
        num_labels = self.counts["labels"]["texts"]
        if "tst" in self.paths:
            frequency = self._write_queries("train", "trn", num_labels)
            self._write_queries("test", "tst", num_labels)
            self._note_known_texts()
        else:
            frequency = self._split_off(self._write_queries("all", "trn", num_labels))
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
            "notes": self._notes(),
            "arrays": self.arrays,
        } | self.split_off

    def _notes(self) -> list[str]:
        """Return what is worth a sentence but no warning."""
        has_filter = any(name.startswith("filter_labels") for name in self.paths)
        return [] if has_filter else ["there are no filter files, so no label is filtered"]

    def _write_labels(self) -> None:
        path = self.paths["lbl"]
        # 8 bytes a label each; the texts themselves need not fit in memory
        texts, uids, label_tokens = array("q"), array("q"), array("q")
        with (self.directory / LABELS).open("w", encoding="utf-8", newline="\n") as file:
            for _, records, tokens in self._tokenised("labels", path, self.label_fields, None, "label_tokens"):
                for record in records:
                    file.write(json.dumps({"uid": record.uid, "text": record.title}, ensure_ascii=False) + "\n")
                texts.extend(hash(record.text) for record in records)
                uids.extend(hash(record.uid) for record in records)
                label_tokens.extend(hash(tokens[row].tobytes()) for row in range(len(tokens)))
        same_text = _repeats(texts)
        for kind, repeated in (
            ("repeated label text", same_text),
            ("label whose tokens are those of another", _repeats(label_tokens) & ~same_text),
            ("repeated label uid", _repeats(uids)),
        ):
            if repeated.any():
                self.warnings.add(path.name, kind, int(repeated.argmax()) + 1, int(repeated.sum()))

    def _write_queries(self, split: str, source: str, num_labels: int) -> Int64[np.ndarray, " label"]:
        """Write tokens, positives and filter of a split; return the number of queries of each label."""
        path = self.paths[source]
        # A filter can only be checked when the number of queries is known. Until then what the file lists waits on
        # disk, in chunks: it need not fit in memory.
        with TemporaryFile(dir=self.directory) as listed:
            for first_line, records, _ in self._tokenised(split, path, self.fields, num_labels, f"{split}_tokens"):
                rows = [sorted(set(record.positives)) for record in records]
                for line, (record, row) in enumerate(zip(records, rows, strict=True), first_line):
                    if len(row) < len(record.positives):
                        self.warnings.add(path.name, "repeated label in a query", line)
                    if record.num_irrelevant:
                        self.warnings.add(path.name, "label with a relevance of 0", line, record.num_irrelevant)
                _save(listed, Ragged.from_rows(rows, np.int32))
            listed.seek(0)
            return self._write_filtered(split, path, listed, num_labels)

    def _write_filtered(
        self, split: str, path: Path, listed: IO[bytes], num_labels: int
    ) -> Int64[np.ndarray, " label"]:
        """Write the filter of a split and the listed positives less the filter; return the queries of each label."""
        num_queries = self.counts[split]["texts"]
        pairs = self._read_filter(split, num_queries, num_labels)
        rows = pairs[:, 0].copy()
        frequency = np.zeros(num_labels, dtype=np.int64)
        without_labels = Oddities()  # listed last, whichever comes first in the file
        names = f"{split}_positives", f"{split}_filtered"
        positives, filtered = (RaggedWriter(self.directory, name, np.int32) for name in names)
        with positives, filtered:
            start = 0
            while start < num_queries:
                chunk = _load(listed)
                first, end = np.searchsorted(rows, (start, start + len(chunk)))
                unwanted = Ragged.from_pairs(pairs[first:end] - (start, 0), len(chunk), np.int32)
                kept = chunk.without(unwanted)
                positives.extend(kept)
                filtered.extend(unwanted)
                np.add.at(frequency, kept.values, 1)
                for kind, oddities, count in (
                    ("own label among the positives", self.warnings, chunk.lengths - kept.lengths),
                    ("query without labels", without_labels, kept.lengths == 0),
                ):
                    if count.any():
                        oddities.add(path.name, kind, start + int(np.flatnonzero(count)[0]) + 1, int(count.sum()))
                start += len(chunk)
        self.warnings.update(without_labels)
        for what, writer in (("positives", positives), ("filtered", filtered)):
            self._record(writer, f"{split}_{what}")
            self.counts[split][what] = writer.shape()["values"]
        return frequency

    def _read_filter(self, split: str, num_queries: int, num_labels: int) -> Int64[np.ndarray, "pair 2"]:
        """Return (query, label) pairs by ascending query."""
        name = "filter_labels_test" if split == "test" else "filter_labels_train"
        if name not in self.paths:
            # Data without any filter are common; one filter without the other is more likely a mistake.
            if any(other.startswith("filter_labels") for other in self.paths):
                self.warnings.add(f"{name}.txt", "no filter file", None)
            return np.empty((0, 2), dtype=np.int64)
        pairs = read_filter(self.paths[name], num_queries, num_labels)
        return pairs[pairs[:, 0].argsort()]

    def _split_off(self, frequency: Int64[np.ndarray, " label"]) -> Int64[np.ndarray, " label"]:
        """Divide the queries that were written as "all"; return the number of training queries of each label."""
        counts = self.counts.pop("all")
        num_queries, file = counts["texts"], self.paths["trn"].name
        shapes = {name: self.arrays.pop(f"all_{name}") for name in ("tokens", "positives", "filtered")}
        queries = {name: open_ragged(self.directory, f"all_{name}", shape) for name, shape in shapes.items()}
        num_test = size_of_test_split(num_queries) if self.num_test is None else self.num_test
        same_text = np.frombuffer(self.text_hashes["all"], dtype=np.int64)
        test_rows = choose_test_queries(queries["positives"], frequency, num_test, _SPLIT_SEED, same_text=same_text)
        np.save(self.directory / TEST_ROWS, test_rows)
        is_test, is_truncated = np.zeros((2, num_queries), dtype=bool)
        is_test[test_rows] = True
        is_truncated[np.frombuffer(self.truncated_rows, dtype=np.int64)] = True
        frequency = frequency.copy()
        for split, wanted in (("train", ~is_test), ("test", is_test)):
            self.counts[split] = {"texts": int(wanted.sum()), "unknown": 0}
            for name, ragged in queries.items():
                with RaggedWriter(self.directory, f"{split}_{name}", shapes[name]["dtype"]) as writer:
                    for start in range(0, num_queries, _CHUNK_TEXTS):
                        rows = ragged.take(start + np.flatnonzero(wanted[start : start + _CHUNK_TEXTS]))
                        writer.extend(rows)
                        if name == "tokens" and self.unknown_id is not None:
                            self.counts[split]["unknown"] += int((rows.values == self.unknown_id).sum())
                        if name == "positives" and split == "test":
                            np.subtract.at(frequency, rows.values, 1)
                self._record(writer, f"{split}_{name}")
                self.counts[split][name] = writer.shape()["values"]
            self.counts[split]["truncated"] = int((wanted & is_truncated).sum())
        queries.clear()
        for name in shapes:
            for path in ragged_paths(self.directory, f"all_{name}"):
                path.unlink()
        self.split_off = {"split_off": {"file": file, "queries": len(test_rows), "of": num_queries}}
        return frequency

    def _tokenised(
        self, part: str, path: Path, fields: Sequence[str], num_labels: int | None, array_name: str
    ) -> Iterator[tuple[int, list[Record], Ragged]]:
        """Write the tokens of a file; yield its records in chunks, each with the line of its first and the tokens."""
        task = self.progress.add_task(f"tokenise {path.name}", total=path.stat().st_size, rate="")
        prompt = self.label_prompt if part == "labels" else self.query_prompt
        num_added = self.num_special + len(self.tokenizer.encode(prompt, add_special_tokens=False).ids)
        started, texts, truncated, unknown = time.perf_counter(), 0, 0, 0
        with path.open("rb") as stream, RaggedWriter(self.directory, array_name, self.token_dtype) as writer:
            chunks = _chunks(read_records(path, fields, num_labels, stream=stream))
            for records, tokens, is_truncated in self._encoded(chunks, prompt):
                writer.extend(tokens)
                truncated += int(is_truncated.sum())
                if part == "all":
                    self.text_hashes[part].extend(hash(record.text) for record in records)
                    self.truncated_rows.extend((texts + np.flatnonzero(is_truncated)).tolist())
                elif part in self.text_hashes:  # empty texts are noted by themselves
                    self.text_hashes[part].extend(hash(record.text) if record.text.strip() else 0 for record in records)
                unknown += self._note_odd_texts(path.name, texts + 1, records, tokens, num_added)
                first_line = texts + 1
                texts += len(records)
                rate = f"{texts / (time.perf_counter() - started):,.0f} texts/s"
                self.progress.update(task, completed=stream.tell(), rate=rate)
                yield first_line, records, tokens
        if texts == 0:
            raise ValueError(f"{path} is empty; it needs a line for each text")
        self._record(writer, array_name)
        num_tokens = writer.shape()["values"]
        self.counts[part] = {"texts": texts, "tokens": num_tokens, "truncated": truncated, "unknown": unknown}
        share = unknown / max(1, num_tokens - num_added * texts)
        if share > _MANY_UNKNOWN:
            self.warnings.add(path.name, "many unknown tokens", None, unknown, share)

    def _note_odd_texts(self, file: str, first_line: int, records: list[Record], tokens: Ragged, num_added: int) -> int:
        """Note texts of which the encoder sees nothing; return the number of unknown tokens."""
        num_own = tokens.lengths - num_added  # tokens of each text, without the special ones and the prompt
        unknown = tokens.values == (-1 if self.unknown_id is None else self.unknown_id)
        num_unknown = np.bincount(tokens.row_ids()[unknown], minlength=len(tokens))
        is_blank = np.array([not record.text.strip() for record in records])
        for row in np.flatnonzero(is_blank | (num_own <= num_unknown)):
            if is_blank[row]:
                kind = "empty text"
            else:
                kind = "text of unknown tokens alone" if num_own[row] > 0 else "text without tokens"
            self.warnings.add(file, kind, first_line + int(row))
        return int(unknown.sum())

    def _note_known_texts(self) -> None:
        """Note test queries whose text is that of a training query."""
        train, test = (np.frombuffer(self.text_hashes[split], dtype=np.int64) for split in ("train", "test"))
        train.sort()
        place = np.searchsorted(train, test)
        is_known = (train[np.minimum(place, len(train) - 1)] == test) & (test != 0)
        if is_known.any():
            kind, file = "test query with the text of a training query", self.paths["tst"].name
            self.warnings.add(file, kind, int(is_known.argmax()) + 1, int(is_known.sum()), float(is_known.mean()))

    def _encoded(
        self, chunks: Iterable[list[Record]], prompt: str
    ) -> Iterator[tuple[list[Record], Ragged, Bool[np.ndarray, " text"]]]:
        """Yield what `_encode` returns of each chunk; it runs in a thread while the next chunk is read."""
        with ThreadPoolExecutor(max_workers=1) as pool:
            jobs: deque[Future[tuple[list[Record], Ragged, Bool[np.ndarray, " text"]]]] = deque()
            for records in chunks:
                jobs.append(pool.submit(self._encode, records, prompt))
                if len(jobs) == 2:
                    yield jobs.popleft().result()
            yield from (job.result() for job in jobs)

    def _encode(self, records: list[Record], prompt: str) -> tuple[list[Record], Ragged, Bool[np.ndarray, " text"]]:
        """Return the records, the tokens of prompt and text, and which texts were truncated."""
        encodings = self.tokenizer.encode_batch_fast([prompt + record.text for record in records])
        tokens = Ragged.from_rows([encoding.ids for encoding in encodings], self.token_dtype)
        return records, tokens, np.array([bool(encoding.overflowing) for encoding in encodings])

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


def _repeats(hashes: array) -> Bool[np.ndarray, " value"]:
    """Say of each 64-bit integer whether it has occurred before."""
    values = np.frombuffer(hashes, dtype=np.int64)
    repeated = np.zeros(len(values), dtype=bool)
    ascending = np.sort(values)
    if (ascending[1:] == ascending[:-1]).any():
        del ascending  # whose memory the order takes
        order = np.argsort(values, kind="stable")
        ascending = values[order]
        repeated[order[1:]] = ascending[1:] == ascending[:-1]
    return repeated


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id of the token that stands for what the tokenizer does not know, None where it has none."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_token") is not None:
        token_id: int | None = tokenizer.token_to_id(model["unk_token"])
        return token_id
    return model.get("unk_id")


def _check_writable(cache_dir: Path) -> None:
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=cache_dir):
            pass
    except OSError as error:
        raise ValueError(
            f"cache_dir={cache_dir}: prepared data cannot be written there ({error}); give another folder with "
            "cache_dir=, or prepare the data set where the folder can be written"
        ) from error


def _save(file: IO[bytes], rows: Ragged) -> None:
    for part in (rows.values, rows.offsets):
        np.save(file, part)


def _load(file: IO[bytes]) -> Ragged:
    """Return the next rows of a file that `_save` wrote, rather than map them: mapped pages would fill the memory."""
    return Ragged(np.load(file), np.load(file))


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


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    # Standard output belongs to results.
    return Progress(*columns, console=Console(stderr=True), disable=not is_terminal())
