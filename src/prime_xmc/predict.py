"""`python -m prime_xmc.predict`: queries from standard input or a file to ranked labels, as JSON lines."""

import logging
import sys
from itertools import islice
from pathlib import Path

from omegaconf import DictConfig

from prime_xmc.app import run_app

logger = logging.getLogger(__name__)


def run(config: DictConfig) -> None:
    """Write the labels of every query of the input; chunk by chunk, in memory that does not grow with the input.

    Raises:
        FileNotFoundError: If there is no such model or input.
        ValueError: If the input cannot be read, or a setting is out of range.
    """
    # here, because the help need not wait for torch
    from prime_xmc.assemble import load_scorer
    from prime_xmc.export.answers import counting, open_output, to_json
    from prime_xmc.export.predictor import SHOW_PROGRESS
    from prime_xmc.export.queries import TextFields, open_input, read_queries
    from prime_xmc.printing import send_to_nowhere

    if config.chunk < 1:
        raise ValueError(f"expected chunk of at least 1 query, got {config.chunk}")
    source = None if config.input is None else Path(config.input).expanduser()
    target = None if config.output is None else Path(config.output).expanduser()
    if (source is None and sys.stdin is None) or (target is None and sys.stdout is None):
        raise ValueError("standard input or output is closed: give files by input= and output=")
    typed = source is None and sys.stdin.isatty()
    chunk = 1 if typed else config.chunk  # whoever types waits for an answer
    # A count would stand among what is typed or answered on the terminal; encoding shows its own for a large chunk.
    to_terminal = typed or (target is None and sys.stdout.isatty())
    on_terminal = sys.stderr.isatty() and chunk < SHOW_PROGRESS and not to_terminal
    given = config.text_field if config.text_field is None else _names(config.text_field)
    input_format = "text" if typed and given is None and config.input_format == "auto" else config.input_format
    predictor = load_scorer(config)
    fields = TextFields(given, predictor.fields, predictor.separator)
    num_queries = 0
    try:
        with open_input(source) as lines, open_output(target) as out, counting(on_terminal=on_terminal) as count:
            queries = read_queries(lines, str(source or "standard input"), fields, input_format)
            while batch := list(islice(queries, chunk)):
                predictions = predictor.predict([query.text for query in batch], config.top_k, config.min_score)
                for query, prediction in zip(batch, predictions, strict=True):
                    out.write(to_json(prediction, query.others).encode("utf-8"))
                out.flush()
                num_queries += len(batch)
                count(len(batch))
    except BrokenPipeError:
        # The reader, `head` for one, has had enough. Python would complain once more when it closes standard output.
        send_to_nowhere(sys.stdout)
        return
    if target is not None:
        logger.info("%s: labels of %s queries", target, f"{num_queries:,}")


def _names(text_field: object) -> tuple[str, ...]:
    return (text_field,) if isinstance(text_field, str) else tuple(map(str, text_field))  # type: ignore[call-overload]


def main() -> None:
    """Run the entry point with the command line's configuration."""
    run_app("prime_xmc.predict:run", "predict")


if __name__ == "__main__":
    main()
