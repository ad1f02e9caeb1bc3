"""How much data a configuration has: given, counted in the prepared data, or published."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from prime_xmc.assemble import open_corpus, raw_files
from prime_xmc.data.corpus import LABELS

GIVEN = ("num_labels", "num_queries", "num_test_queries", "labels_per_query", "tokens_per_text")  # keys of plan.yaml
_LABELS_PER_QUERY = 5.0  # where nothing is known
_SPECIAL_TOKENS = 2
_LABEL_LINE = 35  # bytes of a label's keys and uid in the prepared data
_TOKEN_CHARACTERS = 4.5


class Sizes(NamedTuple):
    """How much data there is; the last three numbers are means, and tokens include special ones."""

    num_labels: int  # L
    num_queries: int  # training queries, including those held out for validation
    num_test_queries: int
    labels_per_query: float
    tokens_per_query: float
    tokens_per_label: float
    prepared: Mapping[str, int] = {}  # bytes of each file of the prepared data set; empty where there is none yet
    num_unlabelled: int = 0  # training queries without a label, as far as is known

    @property
    def num_pairs(self) -> int:
        """(query, label) pairs of the training data."""
        return round(self.num_queries * self.labels_per_query)

    @property
    def num_labelled(self) -> int:
        """Training queries with a label, those held out included: the others are not trained on."""
        return max(1, min(self.num_queries - self.num_unlabelled, self.num_pairs))

    def prepared_bytes(self) -> dict[str, int]:
        """Return the bytes of the prepared data set by file, or estimates by kind where it is not prepared yet."""
        if self.prepared:
            return dict(self.prepared)
        num_queries = self.num_queries + self.num_test_queries
        label_tokens = self.num_labels * self.tokens_per_label
        return {
            "tokens": round(2 * (label_tokens + num_queries * self.tokens_per_query)),  # vocabulary of at most 65,536
            "positives": round(4 * num_queries * self.labels_per_query),
            "offsets": 8 * (self.num_labels + 3 * num_queries),  # of tokens, and of a query's positives and filter
            LABELS: round(_LABEL_LINE * self.num_labels + _TOKEN_CHARACTERS * label_tokens),
        }


def find_sizes(config: DictConfig) -> tuple[Sizes, list[str]]:
    """Return how much data there is, and notes on where the numbers come from.

    Sizes that are given go first. The others come from the generator of synthetic data (nothing is generated for
    this), from the raw files, which are prepared as for training, or from the data set's published `size`.

    Raises:
        ValueError: If a size is not known, with the keys to give, or is below 1; queries may have fewer labels than 1
            on average, but some.
    """
    dataset = config.dataset
    given = {name: config[name] for name in GIVEN if config[name] is not None}
    known, notes = ({}, []) if len(given) == len(GIVEN) else _look_up(config)
    if given:
        known |= given | {"prepared": {}, "num_unlabelled": 0}  # prepared files and queries are others
        notes.append("given: " + ", ".join(f"{name}={value}" for name, value in given.items()))
    missing = [f"{name}=..." for name in GIVEN[:3] if name not in known]
    if missing:
        has_dir = not OmegaConf.is_missing(dataset, "dir")
        where = f"no raw files of {dataset.name} in {dataset.dir}" if has_dir else "no dataset.dir"
        raise ValueError(f"{where}, and its size is unknown: give {' '.join(missing)} or the folder, dataset.dir=...")
    if "labels_per_query" not in known:
        known["labels_per_query"] = _LABELS_PER_QUERY
        notes.append(f"labels_per_query={_LABELS_PER_QUERY:g}, assumed")
    if "tokens_per_query" not in known and "tokens_per_text" not in known:
        known["tokens_per_text"] = dataset.max_length
        notes.append(f"tokens_per_text={dataset.max_length}, the most there can be (dataset.max_length)")
    tokens_per_text = known.pop("tokens_per_text", None)
    for name in ("tokens_per_query", "tokens_per_label"):
        known[name] = min(tokens_per_text or known[name], dataset.max_length)
    if known["labels_per_query"] <= 0:
        raise ValueError(f"expected labels_per_query above 0, got {known['labels_per_query']}")
    for name in sorted(known.keys() - {"prepared", "labels_per_query", "num_unlabelled"}):
        if known[name] < 1:
            raise ValueError(f"expected {name} of at least 1, got {known[name]}")
    return Sizes(**known), notes


def _look_up(config: DictConfig) -> tuple[dict[str, Any], list[str]]:
    """Return sizes by name and a note on where they come from; nothing where they are unknown."""
    dataset = config.dataset
    has_dir = not OmegaConf.is_missing(dataset, "dir")
    if has_dir and OmegaConf.is_dict(dataset.dir) and "num_labels" in dataset.dir:
        generated = {name: dataset.dir[name] for name in GIVEN[:4]} | {
            "tokens_per_query": dataset.dir.mean_query_words + _SPECIAL_TOKENS,
            "tokens_per_label": dataset.dir.mean_label_words + _SPECIAL_TOKENS,
        }
        return generated, [f"sizes of {dataset.name}: as the data will be generated"]
    if has_dir and _has_raw_files(dataset):
        corpus = open_corpus(config)
        labels, train, test = (corpus.manifest["counts"][part] for part in ("labels", "train", "test"))
        counted = {
            "num_labels": labels["texts"],
            "num_queries": train["texts"],
            "num_test_queries": test["texts"],
            "labels_per_query": train["positives"] / train["texts"],
            "tokens_per_query": train["tokens"] / train["texts"],
            "tokens_per_label": labels["tokens"] / labels["texts"],
            "prepared": corpus.manifest["files"],
            "num_unlabelled": int((corpus.train.positives.lengths == 0).sum()),
        }
        return counted, [f"sizes of {dataset.name}: counted in {corpus.directory}"]
    if "size" in dataset:
        return dict(dataset.size), [f"sizes of {dataset.name}: as published; there are no raw files in {dataset.dir}"]
    return {}, []


def _has_raw_files(dataset: DictConfig) -> bool:
    try:
        raw_files(dataset).paths()
    except FileNotFoundError:
        return False
    return True
