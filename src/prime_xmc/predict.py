"""`python -m prime_xmc.predict`: queries from standard input or a file to ranked labels, as JSON lines or a table."""

import sys
from itertools import islice
from pathlib import Path

from omegaconf import DictConfig

from prime_xmc.app import check_outputs, run_app


def run(config: DictConfig) -> None:
    """Write the labels of every query of the input; chunk by chunk, in memory that does not grow with the input.

    Raises:
        FileNotFoundError: If there is no such model or input.
        ValueError: If the input cannot be read, or a setting is out of range.
    """
    # here, because the help need not wait for torch
    from prime_xmc.assemble import load_scorer
    from prime_xmc.export.answers import counting, to_record
    from prime_xmc.export.label_choice import as_texts
    from prime_xmc.export.partial_output import open_output, what_made
    from prime_xmc.export.predictor import SHOW_PROGRESS
    from prime_xmc.export.queries import given_fields, open_queries, text_fields
    from prime_xmc.printing import send_to_nowhere

    if config.chunk < 1:
        raise ValueError(f"expected chunk of at least 1 query, got {config.chunk}")
    source = None if config.input is None else Path(config.input).expanduser()
    target = None if config.output is None else Path(config.output).expanduser()
    if None in (source or sys.stdin, target or sys.stdout):
        raise ValueError("standard input or output is closed: give files by input= and output=")
    check_outputs(config, "output")
    typed = source is None and sys.stdin.isatty()
    chunk = 1 if typed else config.chunk  # whoever types waits for an answer
    # a count would stand among what is typed or answered on the terminal; encoding shows its own for a large chunk
    to_terminal = typed or (target is None and sys.stdout.isatty())
    on_terminal = sys.stderr.isatty() and chunk < SHOW_PROGRESS and not to_terminal
    given = given_fields(config.text_field, config.text_column)
    input_format = "text" if typed and given is None and config.input_format == "auto" else config.input_format
    predictor = load_scorer(config)
    request = predictor.request(
        config.top_k,
        config.min_score,
        allow=as_texts(config.allow),
        exclude=as_texts(config.exclude),
        calibrate=config.calibrate,
        explain=config.explain,
    )
    fields = text_fields(predictor.config, given)
    settings = {str(key): value for key, value in config.items() if key not in ("output", "resume", "verify")}
    made_from = None if source is None else what_made(settings | {"model": config.model.dir})
    try:
        with (
            open_queries(source, fields, input_format, config.encoding) as queries,
            open_output(target, made_from, resume=config.resume) as out,
            counting(on_terminal=on_terminal) as count,
        ):
            for _ in islice(queries, out.num_done):
                count(1)
            while batch := list(islice(queries, chunk)):
                answers = predictor.answer([query.text for query in batch], request)
                out.write([to_record(answer, query.others) for answer, query in zip(answers, batch, strict=True)])
                count(len(batch))
    except BrokenPipeError:
        # The reader, `head` for one, has had enough. Python would complain once more when it closes standard output.
        send_to_nowhere(sys.stdout)


def main() -> None:
    """Run the entry point with the command line's configuration."""
    run_app("prime_xmc.predict:run", "predict")


if __name__ == "__main__":
    main()
