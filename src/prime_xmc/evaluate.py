"""`python -m prime_xmc.evaluate`: metrics of a model, or of any tool's predictions, on the test split."""

import logging
import sys
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from torch import Tensor

from prime_xmc.bundle import Predictor
from prime_xmc.configs import run_app
from prime_xmc.data.corpus import Corpus, Split
from prime_xmc.data.prepare import prepare
from prime_xmc.data.propensity import inverse_propensity
from prime_xmc.files import write_json
from prime_xmc.metrics import evaluate, print_table, remove_filtered, search_unfiltered
from prime_xmc.predict import expand_model, load_scorer
from prime_xmc.predictions import load_predictions, save_predictions
from prime_xmc.prepare import open_corpus, raw_files

logger = logging.getLogger(__name__)

TOP_K = 100  # labels per query that the metrics look at
_CHUNK = 4096  # queries ranked at once


def rank(
    predictor: Predictor, split: Split, k: int = TOP_K
) -> tuple[Int[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]:
    """Return ids and scores of the k best labels of every query, filtered pairs left out.

    Args:
        predictor: The model, whose tokenizer has made the split's token ids.
        split: The queries.
        k: Labels per query; where there are fewer, -1 and -inf fill up.
    """

    def search(query_emb: Float[Tensor, "query d"], top_k: int) -> tuple[Tensor, Tensor]:
        return predictor.search(query_emb, min(top_k, predictor.num_labels))

    parts = []
    for start in track(range(0, len(split), _CHUNK), "rank", console=Console(stderr=True)):
        rows = np.arange(start, min(start + _CHUNK, len(split)))
        query_emb = predictor.encode_tokens(split.tokens.take(rows))
        parts.append(search_unfiltered(search, query_emb, split.filtered.take(rows), k))
    indices, scores_ = zip(*parts, strict=True)
    return np.concatenate(indices), np.concatenate(scores_)


def run(config: DictConfig) -> dict[str, float]:
    """Evaluate on the test split, print the table and write what is asked for.

    Returns:
        `test/<metric>`, fractions in [0, 1].

    Raises:
        FileNotFoundError: If model, predictions or raw files are missing.
        ValueError: If not exactly one of model and predictions is given, or what is given is not of this data set.
    """
    if (config.model.dir is None) == (config.predictions is None):
        given = "neither" if config.model.dir is None else "both"
        raise ValueError(f"expected one of model=<run>/model and predictions=<file.npz>, got {given}")
    if config.classifiers is not None and config.model.dir is None:
        raise ValueError(
            f"classifiers={config.classifiers} need the model that they were trained on: model=<run>/model"
        )
    if config.model.dir is not None:
        name = str(config.model.dir)
        predictor = load_scorer(config)
        corpus = model_corpus(config, predictor)
        indices, scores = rank(predictor, corpus.test)
    else:
        name = str(config.predictions)
        corpus = open_corpus(config)
        indices, scores = _read_predictions(Path(name).expanduser(), corpus)
    constants = config.dataset.propensity
    weights = inverse_propensity(corpus.label_frequency, len(corpus.train), constants.a, constants.b)
    metrics = evaluate(indices, corpus.test.positives, weights)
    shown = Path(name).name if config.classifiers is None else f"{Path(name).name}, {config.scorer}"
    print_table({shown: metrics})
    results = {f"test/{metric}": value for metric, value in metrics.items()}
    if config.output is not None:
        write_json(Path(config.output).expanduser(), results)
    if config.predictions_output is not None:
        save_predictions(Path(config.predictions_output).expanduser(), indices, scores)
    return results


def model_corpus(config: DictConfig, predictor: Predictor) -> Corpus:
    """Prepare the data set with the model's own tokenizer and length, and check that its labels are the model's.

    Raises:
        FileNotFoundError: If raw files are missing.
        ValueError: If the labels are others.
    """
    corpus = Corpus.open(
        prepare(
            raw_files(config.dataset),
            predictor.tokenizer,
            tokenizer_name=str(config.model.dir),
            pad_token_id=predictor.config["pad_token_id"],
            max_length=predictor.config["max_length"],
            cache_dir=config.cache_dir,
        )
    )
    hint = f"give the data set that the model {config.model.dir} was trained on, dataset=..."
    if predictor.num_labels != corpus.num_labels:
        raise ValueError(
            f"the model has {predictor.num_labels} labels, {config.dataset.name} has {corpus.num_labels}: {hint}"
        )
    for row, ((model_uid, _), (uid, _)) in enumerate(zip(predictor.labels, corpus.labels(), strict=True)):
        if model_uid != uid:
            raise ValueError(f"label {row} is {model_uid!r} in the model, {uid!r} in {config.dataset.name}: {hint}")
    return corpus


def _read_predictions(path: Path, corpus: Corpus) -> tuple[Int[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]:
    if not path.is_file():
        raise FileNotFoundError(f"predictions={path}: there is no such file")
    split = corpus.test
    wanted = TOP_K + int(split.filtered.lengths.max(initial=0))
    indices, scores = load_predictions(path, k=wanted)
    if len(indices) != len(split):
        raise ValueError(
            f"{path} has {len(indices)} rows, the test split has {len(split)} queries: expected a row for each, in "
            "the order of the split"
        )
    indices, scores = remove_filtered(indices, scores, split.filtered, TOP_K)
    available = np.minimum(TOP_K, corpus.num_labels - split.filtered.lengths)
    num_short = int(((indices >= 0).sum(axis=1) < available).sum())
    if num_short:
        logger.warning(
            "%s: fewer than %d labels for %d of %d queries, filtered pairs left out: R@%d counts those not there as "
            "misses",
            path,
            available.max(),
            num_short,
            len(indices),
            TOP_K,
        )
    return indices, scores


def main() -> None:
    """Run the entry point with the command line's configuration."""
    sys.argv[1:] = expand_model(sys.argv[1:])
    run_app(run, "evaluate")


if __name__ == "__main__":
    main()
