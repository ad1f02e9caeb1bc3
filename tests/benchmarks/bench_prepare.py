"""Preparing a million titles: speed against `tokenizers.encode_batch` alone on the same texts, and memory.

Titles are drawn word by word from the titles of LF-Debian-18K, with their lengths: real words with real frequencies.
60 % are training queries, 20 % test queries, 20 % labels; a query has three positives.
"""

import gzip
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import PeakMemory, Row, Target, fresh_process, interleave, main, ratio
from omegaconf import DictConfig
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from prime_xmc.assemble import raw_files
from prime_xmc.composing import compose
from prime_xmc.data.preparation import prepare
from prime_xmc.data.raw import RawFiles, read_records
from prime_xmc.data.tokenizer import load_tokenizer

TARGETS = (
    Target("preparing titles: speed against tokenizers.encode_batch alone", "≥", 0.8, "x"),
    # the bound allows for the 44 bytes that a label takes
    Target("preparing: memory for 1M titles / for 250k titles", "≤", 1.25, "x"),
)
SHARES = {"trn": 0.6, "tst": 0.2, "lbl": 0.2}
MAX_LENGTH = 32
CHUNK = 8192  # titles that encode_batch alone gets at once; all of them would not fit in memory at full size
ROUNDS = 3


def rows(scale: float) -> Iterator[Row]:
    ratio_target, memory_target = TARGETS
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        source = RawFiles(write_titles(folder / "sample", round(100_000 * scale)), "sample")
        tokenizer = load_tokenizer(_config().encoder.source)
        bare = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        bare.no_padding()
        bare.enable_truncation(MAX_LENGTH)
        texts = [record.text for path in source.paths().values() for record in read_records(path, ["title"], None)]

        def ours() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as cache:
                _prepare(source, tokenizer, cache)

        def alone() -> None:
            for start in range(0, len(texts), CHUNK):  # noqa: F821 (deleted later)
                bare.encode_batch(texts[start : start + CHUNK])  # noqa: F821

        our_seconds, alone_seconds = interleave(ROUNDS, ours, alone)
        note = f"{len(texts):,} titles, median of {ROUNDS}; gunzip, JSON, checks and writing included"
        speed = len(texts) / statistics.median(our_seconds)
        yield ratio_target.row(ratio(alone_seconds, our_seconds), f"{note}; {speed:,.0f} titles/s")

        del texts
        counts = [round(count * scale) for count in (1_000_000, 250_000)]
        growth = [fresh_process(growth_of_prepare, str(write_titles(folder / f"{n}", n)), directory)[0] for n in counts]
        per_title = (growth[0] - growth[1]) / (counts[0] - counts[1])
        note = (
            f"{growth[0] / 1e6:.0f} MB and {growth[1] / 1e6:.0f} MB: {per_title:.0f} bytes a title and its 3 positives"
        )
        yield memory_target.row(growth[0] / growth[1], note)


def write_titles(folder: Path, num_titles: int) -> Path:
    """Write raw files with a total number of titles to a new folder, and return the folder."""
    rng = np.random.default_rng(num_titles)
    debian = raw_files(_config().dataset).paths()["trn"]
    titles = [record.text.split() for record in read_records(debian, ["title"], None)]
    words = np.array([word for title in titles for word in title], dtype=object)
    lengths = np.array([len(title) for title in titles])
    folder.mkdir()
    num_labels = round(num_titles * SHARES["lbl"])
    for name, share in SHARES.items():
        count = round(num_titles * share)
        ends = rng.choice(lengths, count).cumsum()
        drawn = rng.choice(words, ends[-1])
        positives = rng.integers(num_labels, size=(count, 3)).tolist()
        with gzip.open(folder / f"{name}.json.gz", "wt", encoding="utf-8", compresslevel=6) as file:
            start = 0
            for row, (end, labels) in enumerate(zip(ends.tolist(), positives, strict=True)):
                item = {"uid": f"{name}{row}", "title": " ".join(drawn[start:end])}
                file.write(json.dumps(item if name == "lbl" else item | {"target_ind": labels}) + "\n")
                start = end
    return folder


def growth_of_prepare(folder: str, directory: str) -> int:
    """Prepare raw files and return the growth of memory meanwhile, in bytes."""
    tokenizer = load_tokenizer(_config().encoder.source)
    tokenizer.backend_tokenizer.encode_batch(["starts", "the", "threads"])
    with tempfile.TemporaryDirectory(dir=directory) as cache, PeakMemory() as memory:
        _prepare(RawFiles(folder, "titles"), tokenizer, cache)
    return memory.growth


def _prepare(source: RawFiles, tokenizer: PreTrainedTokenizerFast, cache_dir: str) -> None:
    prepare(
        source,
        tokenizer.backend_tokenizer,
        tokenizer_name="benchmark",
        pad_token_id=tokenizer.pad_token_id,
        max_length=MAX_LENGTH,
        cache_dir=cache_dir,
    )


def _config() -> DictConfig:
    return compose("prepare", [])


if __name__ == "__main__":
    main(__doc__, TARGETS, rows)
