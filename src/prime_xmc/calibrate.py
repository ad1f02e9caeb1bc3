"""`python -m prime_xmc.calibrate`: probabilities for the scores of a model that is there already."""

from pathlib import Path

from omegaconf import DictConfig

from prime_xmc.app import run_app


def run(config: DictConfig) -> None:
    """Fit probabilities on queries with their labels, add them to the model folder, and print how far they hold.

    Raises:
        FileNotFoundError: If there is no such model or file.
        ValueError: If the file cannot be read, a label is unknown, or there are too few queries.
    """
    # here, because the help need not wait for torch
    from prime_xmc.assemble import load_predictor
    from prime_xmc.calibrating import calibrate_with
    from prime_xmc.export.bundle import write_card
    from prime_xmc.export.label_files import read_examples
    from prime_xmc.export.queries import as_names, text_fields
    from prime_xmc.printing import unfailing_output
    from prime_xmc.training.record import show_calibration

    model = Path(config.model.dir).expanduser()
    predictor = load_predictor(config)
    known = {uid for uid, _ in predictor.labels}
    fields = text_fields(predictor.config, as_names(config.query_column), "query_column")
    columns = config.label_column, config.separator
    how = {"input_format": config.input_format, "encoding": config.encoding}
    examples = read_examples(Path(config.input).expanduser(), known, fields, *columns, **how)
    calibrate_with(model, predictor, [each.text for each in examples], [each.uids for each in examples])
    write_card(model)
    with unfailing_output():
        show_calibration(model)


def main() -> None:
    """Run the entry point with the command line's configuration."""
    run_app("prime_xmc.calibrate:run", "calibrate")


if __name__ == "__main__":
    main()
