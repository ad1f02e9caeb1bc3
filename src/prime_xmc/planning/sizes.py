"""How much data a configuration has: given, counted in the prepared data, or published."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from prime_xmc.assemble import fit_to_size, open_corpus, raw_files
from prime_xmc.data.corpus import Corpus
from prime_xmc.planning.budget import Sizes

SIZES = ("num_labels", "num_queries", "num_test_queries", "labels_per_query", "tokens_per_text")  # that can be given
_LABELS_PER_QUERY = 5.0  # where nothing is known
_SPECIAL_TOKENS = 2


def find_sizes(config: DictConfig) -> tuple[Sizes, list[str]]:
    """Return how much data there is, and where that is from.

    What is given goes first, then what generates the data (nothing is generated for this), then the raw files,
    prepared as training does, then the data set's `size`.

    Raises:
        ValueError: If a size is known from nowhere, with the keys to give, or is one that training refuses.
    """
    dataset = config.dataset
    has_dir = not OmegaConf.is_missing(dataset, "dir")
    given = {name: config[name] for name in SIZES if config[name] is not None}
    known, prepared, notes = ({}, {}, []) if len(given) == len(SIZES) else _look_up_sizes(config)
    if given:
        known |= given
        prepared = {}  # the files are of other sizes
        notes.append("given: " + ", ".join(f"{name}={value}" for name, value in given.items()))
    missing = [f"{name}=..." for name in SIZES[:3] if name not in known]
    if missing:
        where = f"no raw files of {dataset.name} in {dataset.dir}" if has_dir else "no dataset.dir"
        raise ValueError(f"{where}, and its size is unknown: give {' '.join(missing)} or the folder, dataset.dir=...")
    if "labels_per_query" not in known:
        known["labels_per_query"] = _LABELS_PER_QUERY
        notes.append(f"labels_per_query={_LABELS_PER_QUERY:g}, assumed")
    if "tokens_per_query" not in known and "tokens_per_text" not in known:
        known["tokens_per_text"] = dataset.max_length
        notes.append(f"tokens_per_text={dataset.max_length}, the most there can be (dataset.max_length)")
    queries, labels = (
        min(float(known.get("tokens_per_text") or known[name]), float(dataset.max_length))
        for name in ("tokens_per_query", "tokens_per_label")
    )
    sizes = Sizes(
        num_labels=int(known["num_labels"]),
        num_queries=int(known["num_queries"]),
        num_test_queries=int(known["num_test_queries"]),
        labels_per_query=float(known["labels_per_query"]),
        tokens_per_query=queries,
        tokens_per_label=labels,
        prepared=prepared,
    )
    _check(sizes, config)
    return sizes, notes


def _look_up_sizes(config: DictConfig) -> tuple[dict[str, Any], dict[str, int], list[str]]:
    """Return sizes by name, bytes of the prepared files where there are some, and where that is from."""
    dataset = config.dataset
    has_dir = not OmegaConf.is_missing(dataset, "dir")
    if has_dir and OmegaConf.is_dict(dataset.dir):
        return _generated_sizes(dataset.dir), {}, [f"sizes of {dataset.name}: as the data will be generated"]
    if has_dir and _has_raw_files(dataset):
        corpus = open_corpus(config)
        note = f"sizes of {dataset.name}: counted in {corpus.directory}"
        return _counted_sizes(corpus), corpus.manifest["files"], [note]
    if "size" in dataset:
        note = f"sizes of {dataset.name}: as published; there are no raw files in {dataset.dir}"
        return dict(dataset.size), {}, [note]
    return {}, {}, []


def _has_raw_files(dataset: DictConfig) -> bool:
    try:
        raw_files(dataset).paths()
    except FileNotFoundError:
        return False
    return True


def _generated_sizes(generator: DictConfig) -> dict[str, float | int]:
    return {name: generator[name] for name in SIZES[:4]} | {
        "tokens_per_query": generator.mean_query_words + _SPECIAL_TOKENS,
        "tokens_per_label": generator.mean_label_words + _SPECIAL_TOKENS,
    }


def _counted_sizes(corpus: Corpus) -> dict[str, float | int]:
    counts = corpus.manifest["counts"]
    labels, train = counts["labels"], counts["train"]
    return {
        "num_labels": labels["texts"],
        "num_queries": train["texts"],
        "num_test_queries": counts["test"]["texts"],
        "labels_per_query": train["positives"] / train["texts"],
        "tokens_per_query": train["tokens"] / train["texts"],
        "tokens_per_label": labels["tokens"] / labels["texts"],
    }


def _check(sizes: Sizes, config: DictConfig) -> None:
    """Refuse what training would refuse when it has read the data."""
    for name, value in sizes._asdict().items():
        if name != "prepared" and value < 1:
            raise ValueError(f"expected {name} of at least 1, got {value}")
    fit_to_size(config, sizes.num_queries, sizes.num_labels)
    if config.probe_steps < 0:
        raise ValueError(f"expected probe_steps of at least 0, got {config.probe_steps}")
