"""How well labels that are added to a trained model are found: a tenth of LF-Debian-18K's labels, held out of training.

    python tests/benchmarks/new_labels.py                    # the default training, twice
    python tests/benchmarks/new_labels.py experiment=fast    # half of the epochs in both: about 50 minutes on one core

Trains a model without a random tenth of the labels and all of their pairs, and one with all labels; adds the labels to
the first as `prime_xmc.labels add` does, with 0, 1 and up to 3 of their training queries as examples; and ranks all
labels for the test queries. Settings of both trainings follow the command. The table is printed, and written to
<output>/new_labels.md. Trainings that have ended in <output> are not repeated.
"""

import argparse
import gzip
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import ROOT

import prime_xmc
from prime_xmc.api import train
from prime_xmc.composing import compose
from prime_xmc.data.corpus import Ragged
from prime_xmc.evaluation.metrics import TOP_K, evaluate
from prime_xmc.evaluation.rank import search_unfiltered
from prime_xmc.export.folder import read_config
from prime_xmc.export.label_changes import Example, NewLabel, add_labels
from prime_xmc.export.label_tables import read_label_tables, write_label_tables
from prime_xmc.export.predictor import Predictor
from prime_xmc.export.searchers import load_searcher
from prime_xmc.files import write_text
from prime_xmc.index.search import ExactSearch, Search
from prime_xmc.model.encoder import TextEncoder

SOURCE = Path(prime_xmc.__file__).parent / "datasets" / "LF-Debian-18K"
SHARE = 0.1
NUM_EXAMPLES = (0, 1, 3)
# of LF-Debian-18K, in place of what dataset=custom takes by the size of the data
SETTINGS = {
    "dataset.num_validation": 1000,
    "dataset.num_free_vectors": 4096,
    "dataset.batch_size": 512,
    "dataset.clusters.initial_size": 4,
}


class Data(NamedTuple):
    """LF-Debian-18K, and which of its labels are new.

    Attributes:
        labels: Records of the labels.
        train: Records of the training queries.
        test: Records of the test queries.
        filters: Pairs of query and label that are no answers, by split.
        is_new: Whether each label is held out.
    """

    labels: list[dict[str, Any]]
    train: list[dict[str, Any]]
    test: list[dict[str, Any]]
    filters: dict[str, np.ndarray]
    is_new: np.ndarray


def read_data(seed: int) -> Data:
    """Read the data set, and draw the labels that are held out."""

    def records(name: str) -> list[dict[str, Any]]:
        with gzip.open(SOURCE / f"{name}.json.gz", "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    labels = records("lbl")
    is_new = np.zeros(len(labels), dtype=bool)
    is_new[np.random.default_rng(seed).permutation(len(labels))[: round(SHARE * len(labels))]] = True
    filters = {
        split: np.loadtxt(SOURCE / f"filter_labels_{split}.txt", dtype=np.int64, ndmin=2) for split in ("train", "test")
    }
    return Data(labels, records("trn"), records("tst"), filters, is_new)


def write_without(data: Data, folder: Path) -> None:
    """Write the data set without the new labels and their pairs; queries that have no other label go too."""
    folder.mkdir(parents=True, exist_ok=True)
    new_ids = np.cumsum(~data.is_new) - 1
    kept_labels = [label for label, is_new in zip(data.labels, data.is_new, strict=True) if not is_new]
    _write_lines(folder / "lbl.json", kept_labels)
    for name, split, queries in (("trn", "train", data.train), ("tst", "test", data.test)):
        kept, place = [], {}
        for row, query in enumerate(queries):
            positives = [int(new_ids[label]) for label in query["target_ind"] if not data.is_new[label]]
            if positives:
                place[row] = len(kept)
                kept.append(query | {"target_ind": positives})
        _write_lines(folder / f"{name}.json", kept)
        pairs = [(row, label) for row, label in data.filters[split].tolist() if row in place and not data.is_new[label]]
        lines = "".join(f"{place[row]} {new_ids[label]}\n" for row, label in pairs)
        write_text(folder / f"filter_labels_{split}.txt", lines)


def _write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def trained(folder: Path, dataset: Path, settings: Sequence[str], seed: int) -> Path:
    """Return the model of a training in a folder, which is run unless it has ended."""
    if not (folder / "metrics.json").is_file():
        given = ["dataset=custom", "test=false", *settings]
        train(given, **SETTINGS | {"dataset.dir": dataset, "run_dir": folder, "seed": seed})
    return folder / "model"


def draw_examples(data: Data, most: int, seed: int) -> list[Example]:
    """Return training queries of the new labels, so many of each at most, with all of their labels."""
    wanted: dict[int, None] = {}  # rows of queries
    counts = np.zeros(len(data.labels), dtype=np.int64)
    for row in np.random.default_rng(seed).permutation(len(data.train)).tolist():
        new = [label for label in data.train[row]["target_ind"] if data.is_new[label]]
        if any(counts[label] < most for label in new):
            wanted[row] = None
            counts[new] += 1
    examples = []
    shown = np.zeros(len(data.labels), dtype=np.int64)
    for row in wanted:
        labels = [x for x in data.train[row]["target_ind"] if data.is_new[x] and shown[x] < most]
        shown[labels] += 1
        examples.append(Example(data.train[row]["title"], tuple(data.labels[label]["uid"] for label in labels)))
    return [example for example in examples if example.uids]


class Test:
    """The test queries, as one encoder sees them, and what is measured of a ranking of all labels for them.

    Args:
        data: The data.
        model: The model whose encoder and tokenizer are used.
    """

    def __init__(self, data: Data, model: Predictor):
        self.data = data
        self.tokens = model.tokenise(query["title"] for query in data.test)
        self.emb = model.encode_tokens(self.tokens)
        pairs = np.array([(row, label) for row, query in enumerate(data.test) for label in query["target_ind"]])
        self.filters = data.filters["test"]
        self.truth = {
            "all": self._positives(pairs),
            "old": self._positives(pairs[~data.is_new[pairs[:, 1]]]),
            "new": self._positives(pairs[data.is_new[pairs[:, 1]]]),
        }

    def _positives(self, pairs: np.ndarray) -> Ragged:
        return Ragged.from_pairs(pairs, len(self.data.test))

    def measure(self, search: Search, ids: np.ndarray) -> dict[str, float]:
        """Return P@1 of all labels, and R@10 of all, of old and of new ones, for the queries that have such.

        Args:
            search: Search of some labels.
            ids: Id of each of them in the data set.
        """
        places = np.full(len(self.data.labels), -1)
        places[ids] = np.arange(len(ids))
        known = self.filters[places[self.filters[:, 1]] >= 0]
        filtered = Ragged.from_pairs(np.stack([known[:, 0], places[known[:, 1]]], axis=1), len(self.emb))
        found = []
        for rows in np.array_split(np.arange(len(self.emb)), 16):
            tokens = self.tokens.take(rows)

            def search_all(emb: torch.Tensor, k: int, tokens: Ragged = tokens) -> tuple[torch.Tensor, torch.Tensor]:
                return search.search(emb, k, tokens)

            ranking, _ = search_unfiltered(search_all, self.emb[rows], filtered.take(rows), TOP_K)
            found.append(np.where(ranking >= 0, ids[ranking], -1))
        ranked = np.concatenate(found)
        weights = np.ones(len(self.data.labels))
        asked = {name: np.flatnonzero(truth.lengths) for name, truth in self.truth.items()}  # queries that have such
        values = {name: evaluate(ranked[rows], self.truth[name].take(rows), weights) for name, rows in asked.items()}
        return {"P@1": values["all"]["P@1"]} | {f"R@10 {name}": values[name]["R@10"] for name in values}


def exact(vectors: torch.Tensor) -> ExactSearch:
    """Return the search of vectors."""
    search = ExactSearch()
    search.build(vectors.float().contiguous())
    return search


def main() -> None:
    """Train, add, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of both trainings")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "new_labels", help="folder of the runs")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of labels and examples, and of the trainings")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    data, output = read_data(arguments.seed), arguments.output
    write_without(data, output / "data")
    first = trained(output / "without", output / "data", arguments.settings, arguments.seed)
    full = trained(output / "all", SOURCE, arguments.settings, arguments.seed)
    rows = [
        *measure_added(data, first, arguments.seed),
        *measure_trained(data, full),
        *measure_untrained(data, first),
    ]
    table = markdown(rows)
    write_text(output / "new_labels.md", table)
    print(table)


class Measured(NamedTuple):
    """A row of the table.

    Attributes:
        labels: What was done with the new labels.
        scorer: What ranked.
        values: Metrics, fractions in [0, 1].
    """

    labels: str
    scorer: str
    values: dict[str, float]


def measure_added(data: Data, first: Path, seed: int) -> Iterator[Measured]:
    """Yield what a model does that was trained without the new labels: before and after they are added."""
    old, new = np.flatnonzero(~data.is_new), np.flatnonzero(data.is_new)
    both = np.concatenate([old, new])
    model = prime_xmc.load(first, scorer="theta")
    test, tables = Test(data, model), read_label_tables(first)
    labels = [NewLabel(data.labels[label]["uid"], data.labels[label]["title"]) for label in new]
    new_emb = model.encode_tokens(model.tokenise([label.text for label in labels], "label"))
    of_text = exact(torch.cat([tables.label_emb.float(), new_emb]))
    yield note("by text, as all labels", "text", test.measure(of_text, both))
    mixed = exact(torch.cat([tables.prototypes, new_emb]))
    yield note("by text, beside prototypes of the others", "theta", test.measure(mixed, both))
    for scorer in scorers_of(first):
        yield note("not added", scorer, test.measure(search_of(first, scorer), old))
    for most in NUM_EXAMPLES:
        examples = draw_examples(data, most, seed) if most else []
        with tempfile.TemporaryDirectory() as temporary:
            started, folder = time.perf_counter(), Path(temporary) / "model"
            write_label_tables(add_labels(tables, model, labels, examples), first, folder)
            logging.info(
                "%d labels and %d queries in %.1f s", len(labels), len(examples), time.perf_counter() - started
            )
            for scorer in scorers_of(first):
                shown = f"added, with {most} {'query' if most == 1 else 'queries'} each"
                yield note(shown, scorer, test.measure(search_of(folder, scorer), both))


def measure_trained(data: Data, full: Path) -> Iterator[Measured]:
    """Yield what a model does that was trained with all labels."""
    test, everything = Test(data, prime_xmc.load(full, scorer="theta")), np.arange(len(data.labels))
    for scorer in scorers_of(full):
        yield note("trained with all labels", scorer, test.measure(search_of(full, scorer), everything))


def measure_untrained(data: Data, model: Path) -> Iterator[Measured]:
    """Yield what the encoder does before training: the similarity of its embeddings of query and label text."""
    opened = prime_xmc.load(model, scorer="theta")
    encoder = TextEncoder(str(compose("train", []).encoder.source))
    untrained = Predictor(encoder, opened.tokenizer, opened.searcher, opened.labels, opened.config)
    texts = untrained.tokenise([label["title"] for label in data.labels], "label")
    search = exact(untrained.encode_tokens(texts))
    yield note("by text, without any training", "text", Test(data, untrained).measure(search, np.arange(len(texts))))


def note(labels: str, scorer: str, values: dict[str, float]) -> Measured:
    """Return a row, and say it in the log."""
    logging.info("%s, %s: %s", labels, scorer, values)
    return Measured(labels, scorer, values)


def scorers_of(model: Path) -> list[str]:
    """Return the scorers that are measured: the prototypes, and the ensemble where the model has one."""
    return ["theta", "ensemble"] if (model / "ensemble.json").is_file() else ["theta"]


def search_of(model: Path, scorer: str) -> Search:
    """Return the search of a scorer of a model folder."""
    return load_searcher(model, read_config(model), scorer=scorer, index="exact", device="cpu")


def markdown(rows: Sequence[Measured]) -> str:
    """Return the table in Markdown, in percent."""
    names = list(rows[0].values)
    lines = [f"| new labels | scorer | {' | '.join(names)} |", f"| --- | --- | {' | '.join('---:' for _ in names)} |"]
    for row in rows:
        numbers = " | ".join(f"{100 * row.values[name]:.1f}" for name in names)
        lines.append(f"| {row.labels} | `{row.scorer}` | {numbers} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
