"""`python -m prime_xmc.evaluate`: metrics of a model, or of any tool's predictions, on the test split."""

from contextlib import nullcontext
from pathlib import Path

from omegaconf import DictConfig

from prime_xmc.app import check_outputs, run_app


def run(config: DictConfig) -> dict[str, float]:
    """Evaluate on the test split, print the table and write what is asked for.

    Returns:
        `test/<metric>`, fractions in [0, 1].

    Raises:
        FileNotFoundError: If model, predictions or raw files are missing.
        ValueError: If not exactly one of model and predictions is given, what is given is not of this data set, or an
            output is an input.
    """
    # here, because the help need not wait for torch
    from prime_xmc.assemble import load_scorer, model_corpus, open_corpus, raw_test_queries
    from prime_xmc.data.propensity import inverse_propensity
    from prime_xmc.evaluation.metrics import evaluate
    from prime_xmc.evaluation.predictions import save_predictions
    from prime_xmc.evaluation.rank import rank_split
    from prime_xmc.evaluation.rankings import read_rankings
    from prime_xmc.evaluation.table import describe_unlabelled, print_notes, print_table
    from prime_xmc.files import write_json
    from prime_xmc.printing import unfailing_output

    if (config.model.dir is None) == (config.predictions is None):
        given = "neither" if config.model.dir is None else "both"
        raise ValueError(f"expected one of model=<run>/model and predictions=<file>, got {given}")
    if config.classifiers is not None and config.model.dir is None:
        raise ValueError(
            f"classifiers={config.classifiers} need the model that they were trained on: model=<run>/model"
        )
    check_outputs(config, "output", "predictions_output")
    if config.model.dir is not None:
        predictor = load_scorer(config)
        shown = Path(config.model.dir).name + ("" if predictor.scorer == "theta" else f", {predictor.scorer}")
        corpus = model_corpus(config, predictor)
        indices, scores = rank_split(predictor, corpus.test)
    else:
        path = Path(config.predictions).expanduser()
        shown = path.name
        corpus = open_corpus(config)
        indices, scores = read_rankings(path, corpus, raw_test_queries(config, corpus))
    constants = config.dataset.propensity
    weights = inverse_propensity(corpus.label_frequency, len(corpus.train), constants.a, constants.b)
    try:
        metrics = evaluate(indices, corpus.test.positives, weights)
    except ValueError as error:
        raise ValueError(f"{config.predictions or config.model.dir}: {error}") from error
    results = {f"test/{metric}": value for metric, value in metrics.items()}
    if config.output is not None:
        write_json(Path(config.output).expanduser(), results)
    if config.predictions_output is not None:
        save_predictions(Path(config.predictions_output).expanduser(), indices, scores)
    # without a file, the table is the result, and has to be written
    with nullcontext() if config.output is None else unfailing_output():
        print_table({shown: metrics} if metrics else {})
        unlabelled = describe_unlabelled(corpus.test.positives, "test queries")
        print_notes([corpus.label_note, corpus.split_note, unlabelled])
    return results


def main() -> None:
    """Run the entry point with the command line's configuration."""
    run_app("prime_xmc.evaluate:run", "evaluate")


if __name__ == "__main__":
    main()
