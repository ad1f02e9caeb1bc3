"""A method to compare with, from a configuration to a run folder that reports read like that of a training."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hydra.utils import instantiate
from jaxtyping import Float32, Int
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from prime_xmc.assemble import open_corpus, prompts_of, raw_files, raw_test_queries
from prime_xmc.baselines.method import Cost, LabelledTexts, Method, TextSet, Top
from prime_xmc.data.corpus import Corpus, Ragged
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.data.fitting import find_faults
from prime_xmc.data.raw import read_records
from prime_xmc.data.tokenizer import load_tokenizer
from prime_xmc.evaluation.in_words import print_in_words, put_in_words
from prime_xmc.evaluation.metrics import TOP_K, evaluate
from prime_xmc.evaluation.predictions import save_predictions
from prime_xmc.evaluation.rank import remove_filtered
from prime_xmc.evaluation.table import print_notes, print_table
from prime_xmc.files import write_json
from prime_xmc.printing import unfailing_output
from prime_xmc.run_files import METRICS, OF_TRAINING, is_below, key_of
from prime_xmc.training.record import describe_run, describe_splits, quiet_libraries
from prime_xmc.training.run_folder import BASELINE, claimed, given_settings, with_run_folder

logger = logging.getLogger(__name__)


class BaselineRun(NamedTuple):
    """What a run made.

    Attributes:
        metrics: Content of metrics.json.
        rankings: Label ids and scores of the 100 best labels, "val" and "test" where there are such queries.
    """

    metrics: dict[str, Any]
    rankings: Mapping[str, Top]


def run_baseline(config: DictConfig) -> BaselineRun:
    """Train a method on the queries that `prime_xmc.train` trains on, evaluate it and write the run folder.

    Raises:
        FileNotFoundError: If raw files are missing.
        ValueError: If they are malformed, a setting is out of range, a library or its environment is missing, or
            another process works in the folder.
    """
    quiet_libraries()
    config = with_run_folder(config)
    run_dir = Path(config.run_dir)
    with unfailing_output(), claimed(run_dir) as claim:
        claim.record(config, continued=False)
        _warn_of_unused(config)
        method = instantiate(config.method, _convert_="all")
        if not isinstance(method, Method):
            raise ValueError(f"method._target_={config.method._target_}: expected a class with a method `rank`")
        data = _open_data(config)
        training, queries = _texts(config, data)
        claim.begin(continued=False)
        outcome = method.rank(training, queries, _most_needed(data.corpus))
        metrics, rankings = _evaluate(outcome.rankings, data)
        settings = describe_run(config, data)
        metrics |= describe_splits(config, data) | describe_cost(outcome.cost)
        metrics |= {name: settings[name] for name in ("torch_version", "prime_xmc_version", "seed", "git_commit")}
        write_json(run_dir / BASELINE, {"settings": settings})
        if "test" in rankings:
            save_predictions(run_dir / "predictions.npz", *rankings["test"])
        _show(metrics, outcome.cost, rankings, data, run_dir)
        write_json(run_dir / METRICS, metrics)  # last: it says that the run is finished
    return BaselineRun(metrics, rankings)


def describe_cost(cost: Cost) -> dict[str, float | str]:
    """Return what metrics.json says of the cost, under the names that trainings use as far as they have them."""
    values: dict[str, float | str | None] = {
        "train/seconds": cost.train_seconds,
        "train/cpu_seconds": cost.train_cpu_seconds,
        "peak_rss_bytes": cost.peak_rss_bytes,
        "model_bytes": cost.model_bytes,
        "predict/milliseconds_per_query": cost.milliseconds_per_query,
        "device": cost.device,
        "peak_device_memory_bytes": cost.peak_device_memory_bytes if cost.device is not None else None,
    }
    return {name: value for name, value in values.items() if value is not None}


def _warn_of_unused(config: DictConfig) -> None:
    """Warn of settings that are given and have no effect: a result should not seem to be due to them."""
    given = {each: key_of(each) for each in given_settings()}
    of_tfidf = [each for each, key in given.items() if is_below(key, ["tfidf"])]
    if of_tfidf and "${tfidf" not in OmegaConf.to_yaml(config.method):
        logger.warning("%s: no effect, since this method has no tf-idf vectors", " ".join(of_tfidf))
    of_training = [each for each, key in given.items() if is_below(key, OF_TRAINING)]
    if of_training:
        logger.warning("%s: no effect; the settings of a method are under method.", " ".join(of_training))


def _open_data(config: DictConfig) -> PrimeDataModule:
    """Open the data with the same queries held out as in a training with this seed."""
    corpus = open_corpus(config)
    if faults := find_faults(corpus.manifest["counts"]["train"]["positives"], corpus.num_labels):
        raise ValueError(f"{config.dataset.name}: {'; '.join(faults)}. `python -m prime_xmc.audit` shows more")
    dataset = config.dataset
    data = PrimeDataModule(
        raw_files(dataset, prompts_of(config.encoder)),
        load_tokenizer(config.encoder.source),
        max_length=dataset.max_length,
        cache_dir=config.cache_dir,
        propensity_a=dataset.propensity.a,
        propensity_b=dataset.propensity.b,
        batch_size=1,  # there are no batches
        num_positives=1,
        num_validation=dataset.num_validation,
        seed=config.seed,
        corpus=corpus,
    )
    data.setup()
    return data


def _texts(config: DictConfig, data: PrimeDataModule) -> tuple[LabelledTexts, dict[str, TextSet]]:
    """Return what to train on, and the queries to rank labels for, "val" and "test" where there are such queries."""
    corpus, paths = data.corpus, data.source.paths()
    labels = [record.text for record in read_records(paths["lbl"], _label_fields(data), None)]
    queries = TextSet(list(_training_strings(data, corpus)), corpus.train.tokens)
    ids = data.sampler.query_ids
    training = LabelledTexts(queries.take(ids), TextSet(labels, corpus.label_tokens), corpus.train.positives.take(ids))
    asked = {}
    if len(data.validation_ids):
        asked["val"] = queries.take(data.validation_ids)
    if config.test and len(corpus.test):
        strings = [record.text for record in raw_test_queries(config, corpus)]
        asked["test"] = TextSet(strings, corpus.test.tokens)
    return training, asked


def _most_needed(corpus: Corpus) -> int:
    """Return how many labels of a query suffice for `TOP_K` without those that are filtered."""
    longest = max(int(split.filtered.lengths.max(initial=0)) for split in (corpus.train, corpus.test))
    return min(TOP_K + longest, corpus.num_labels)


def _evaluate(ranked: Mapping[str, Top], data: PrimeDataModule) -> tuple[dict[str, Any], dict[str, Top]]:
    """Return the metrics of rankings, "val" and "test", and the rankings without filtered pairs."""
    metrics: dict[str, Any] = {}
    rankings: dict[str, Top] = {}
    for name, ranking in ranked.items():
        split = data.truth("val" if name == "val" else "test")
        ids = data.validation_ids if name == "val" else np.arange(len(split))
        rankings[name] = _without_filtered(*ranking, split.filtered.take(ids))
        found = evaluate(rankings[name][0], split.positives.take(ids), data.inverse_propensity)
        metrics |= {f"{name}/{metric}": value for metric, value in found.items()}
    return metrics, rankings


def _label_fields(data: PrimeDataModule) -> list[str]:
    source = data.source
    return list(source.fields if source.label_fields is None else source.label_fields)


def _training_strings(data: PrimeDataModule, corpus: Corpus) -> Iterator[str]:
    rows = corpus.train_rows
    wanted = None if rows is None else set(rows.tolist())
    records = read_records(data.source.paths()["trn"], list(data.source.fields), corpus.num_labels)
    return (record.text for row, record in enumerate(records) if wanted is None or row in wanted)


def _without_filtered(
    ids: Int[np.ndarray, "query width"], scores: Float32[np.ndarray, "query width"], filtered: Ragged
) -> tuple[Int[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]:
    """Return the `TOP_K` best labels that are not filtered; -1 and -inf where the method has given fewer."""
    # one more column, so that a row in which a label is missing ends in -1
    ids = np.pad(ids, ((0, 0), (0, 1)), constant_values=-1)
    scores = np.pad(scores, ((0, 0), (0, 1)), constant_values=-np.inf)
    return remove_filtered(ids, scores, filtered, TOP_K)


def _show(
    metrics: Mapping[str, Any], cost: Cost, rankings: Mapping[str, Top], data: PrimeDataModule, run_dir: Path
) -> None:
    rows: dict[str, dict[str, float]] = {}
    for stage, shown in (("val", "validation"), ("test", "test")):
        row = {name.removeprefix(f"{stage}/"): value for name, value in metrics.items() if name.startswith(f"{stage}/")}
        rows |= {shown: row} if row else {}
    print_table(rows)
    parts = [
        f"{cost.train_cpu_seconds:.1f} CPU s of training",
        *([] if cost.milliseconds_per_query is None else [f"{cost.milliseconds_per_query:.2f} ms a query"]),
        f"peak memory {cost.peak_rss_bytes / 2**30:.2f} GiB",
        *([] if cost.device is None else [f"{cost.peak_device_memory_bytes / 2**30:.1f} GiB of the {cost.device}"]),
        f"model {cost.model_bytes / 1e6:.1f} MB",
    ]
    line = f"{', '.join(parts)}. Run folder: {run_dir}"
    Console().print(line, markup=False, highlight=False, soft_wrap=True)
    print_notes(note for name, note in metrics.items() if name.startswith("note/"))
    if "test" in rankings:
        words = put_in_words(rankings["test"][0], data.corpus.test.positives, data.train_frequency())
        if words is not None:
            print_in_words(words, "test")
