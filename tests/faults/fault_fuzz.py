"""Writes files as a stranger may have written them, and reads them: only documented errors may leave a reader.

Raw files, filters, queries, predictions, checkpoints, model folders, their configurations, and run folders. What fails
is made as small as can be and printed.
"""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import toys
from fault_kills import begin, training
from findings import Row, main
from forks import call, prepare_process, run
from fuzzing import INPUTS, make_sources, try_input
from hypothesis import HealthCheck, given, seed, settings

EXAMPLES, SHORT_EXAMPLES = 2500, 40
SEED = 0


def rows(short: bool, folder: Path) -> Iterator[Row]:
    """Try inputs of each kind."""
    prepare_process()
    toys.make_encoder(folder / "encoder"), toys.make_dataset(folder / "data")
    place = folder / "whole"
    whole = run("train", [*begin(training(folder), place), "classify=false", "neighbours=null", "lexical=null"], place)
    if whole.status != 0:
        yield Row("a run whose model is read", lost=[f"it ends with {whole.status}: {whole.last_line}"])
        return
    for number, kind in enumerate(INPUTS):
        examples = max(10, int(kind.weight * (SHORT_EXAMPLES if short else EXAMPLES)))
        directory = folder / f"input-{number}"
        try:
            tried, failure = call(_fuzz, number, str(place / "run" / "model"), str(directory), examples, timeout=600)
        except RuntimeError as error:  # a reader that kills the process
            tried, failure = 0, str(error).strip().splitlines()[-1]
        yield Row(f"made up: {kind.name}", inputs=tried, lost=[failure] if failure else [])


def _fuzz(number: int, model: str, folder: str, examples: int) -> tuple[int, str | None]:
    """Return the number of inputs that were tried, and the smallest one that failed, with its error."""
    logging.getLogger("prime_xmc").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    kind, directory = INPUTS[number], Path(folder)
    directory.mkdir(parents=True)
    sources = make_sources(Path(model), directory / "sources")
    tried, smallest = 0, ""

    @seed(SEED)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(kind.examples)
    def read(example: object) -> None:
        nonlocal tried, smallest
        tried += 1
        smallest = repr(example)
        try_input(kind, directory, sources, example)

    try:
        read()
    except Exception as error:
        return tried, f"{kind.name}: {type(error).__name__}: {str(error)[:200]} for {smallest[:300]}"
    return tried, None


if __name__ == "__main__":
    main(__doc__, rows)
