"""`python -m prime_xmc.predict`: queries from standard input or a file to ranked labels, as JSON lines."""

import logging
import os
import sys
from itertools import islice
from pathlib import Path

from omegaconf import DictConfig

from prime_xmc.app import expand_model, run_app
from prime_xmc.assemble import load_scorer
from prime_xmc.export.queries import open_input, open_output, read_queries, to_json

logger = logging.getLogger(__name__)


def run(config: DictConfig) -> None:
    """Write the labels of every query of the input; chunk by chunk, in memory that does not grow with the input.

    Raises:
        FileNotFoundError: If there is no such model or input.
        ValueError: If the input cannot be read, or a setting is out of range.
    """
    if config.chunk < 1:
        raise ValueError(f"expected chunk of at least 1 query, got {config.chunk}")
    source = None if config.input is None else Path(config.input).expanduser()
    target = None if config.output is None else Path(config.output).expanduser()
    suffixes = [] if source is None else [suffix for suffix in source.suffixes[-2:] if suffix != ".gz"]
    as_json = config.text_field is not None or suffixes[-1:] in ([".jsonl"], [".json"])
    predictor = load_scorer(config)
    num_queries = 0
    try:
        with open_input(source) as lines, open_output(target) as out:
            # whoever types waits for an answer
            chunk = 1 if source is None and sys.stdin.isatty() else config.chunk
            queries = read_queries(lines, str(source or "standard input"), config.text_field, as_json=as_json)
            while batch := list(islice(queries, chunk)):
                for prediction in predictor.predict(batch, config.top_k):
                    out.write(to_json(prediction, config.min_score).encode("utf-8"))
                out.flush()
                num_queries += len(batch)
    except BrokenPipeError:
        # The reader, `head` for one, has had enough. Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if target is not None:
        logger.info("%s: labels of %s queries", target, f"{num_queries:,}")


def main() -> None:
    """Run the entry point with the command line's configuration."""
    sys.argv[1:] = expand_model(sys.argv[1:])
    run_app(run, "predict")


if __name__ == "__main__":
    main()
