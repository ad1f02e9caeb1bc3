"""`python -m prime_xmc.predict`: queries from standard input or a file to ranked labels, as JSON lines."""

import gzip
import json
import logging
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import torch
from omegaconf import DictConfig

from prime_xmc.bundle import Prediction, Predictor
from prime_xmc.configs import native_precision, run_app
from prime_xmc.files import replacing
from prime_xmc.scorers import use_classifiers

logger = logging.getLogger(__name__)

_FIELDS = ("query", "title", "text")  # of a JSON line, the first that it has


def expand_model(arguments: list[str]) -> list[str]:
    """Return command line arguments with `model.dir=` for `model=`, which Hydra would take for the choice of a group.

    In training, it is one: conf/model/ has the options.
    """
    prefix = "model="
    return [f"model.dir={a.removeprefix(prefix)}" if a.startswith(prefix) else a for a in arguments]


def load_predictor(config: DictConfig) -> Predictor:
    """Load the model that a configuration names, on its device in the fastest precision that this computes natively."""
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    precision = native_precision(torch.device(device).type)
    return Predictor.load(config.model.dir, device=device, index=config.search, precision=precision)


def load_scorer(config: DictConfig) -> Predictor:
    """Load the model, and the classifiers that a configuration names, if it does.

    Raises:
        FileNotFoundError: If model or classifiers are missing.
        ValueError: If the classifiers are not of this model, or another search than an exact one is asked for them.
    """
    predictor = load_predictor(config)
    if config.classifiers is not None:
        if config.search == "faiss":
            raise ValueError("search=faiss: the exported index is of the prototypes; classifiers= takes search=exact")
        model, directory = (Path(folder).expanduser() for folder in (config.model.dir, config.classifiers))
        use_classifiers(predictor, model, directory, config.scorer)
    return predictor


def read_queries(lines: Iterable[bytes], name: str, text_field: str | None, *, as_json: bool) -> Iterator[str]:
    """Yield the query of each line.

    Args:
        lines: UTF-8 text.
        name: What to call it in an error.
        text_field: Field of a JSON line that holds the query; None: `query`, `title` or `text`, the first there is.
        as_json: Whether a line is a JSON object, or the query itself.

    Raises:
        ValueError: With name, line and value, for damaged gzip data, bytes that are not UTF-8, and lines that are no
            JSON object with a string in that field.
    """
    number = 0
    try:
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8")
                query = _query(text, text_field) if as_json else text.rstrip("\r\n")
                query.encode("utf-8")  # JSON can escape half a character, which no tokenizer takes
            except UnicodeError as error:
                raise ValueError(f"{name}, line {number}: not UTF-8 ({error}); convert it to UTF-8") from error
            except ValueError as error:
                raise ValueError(f"{name}, line {number}: {error}") from error
            yield query
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{name}, line {number + 1}: the gzip data are truncated or damaged ({error})") from error


def _query(line: str, text_field: str | None) -> str:
    shown = repr(line.strip()[:60])
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}): {shown}; every line must be one JSON object") from error
    if not isinstance(item, dict):
        raise ValueError(f"{shown} is JSON but not an object; every line must be one JSON object")
    field = text_field or next((field for field in _FIELDS if field in item), "query")
    if not isinstance(item.get(field), str):
        what = f"field {field!r} is {item[field]!r}" if field in item else f"no field {field!r}, only {', '.join(item)}"
        raise ValueError(f"{what}; expected a string there, or another field named by text_field=")
    return item[field]


def to_json(prediction: Prediction, min_score: float | None) -> str:
    """Return a prediction as a line of JSON, without the labels whose score is below `min_score`."""
    labels = [
        {"uid": label.uid, "text": label.text, "score": round(label.score, 6)}
        for label in prediction.labels
        if min_score is None or label.score >= min_score
    ]
    return json.dumps({"query": prediction.query, "labels": labels}, ensure_ascii=False) + "\n"


@contextmanager
def _open_input(path: Path | None) -> Iterator[Iterable[bytes]]:
    if path is None:
        if sys.stdin.isatty():
            logger.warning("reading queries from the terminal, one a line; Ctrl-D ends")
        yield sys.stdin.buffer
    elif not path.is_file():
        raise FileNotFoundError(f"input={path}: there is no such file; leave input out to read standard input")
    else:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            yield lines


@contextmanager
def _open_output(path: Path | None) -> Iterator[BinaryIO]:
    """Open standard output, or a file that appears under its name when it is complete."""
    if path is None:
        yield sys.stdout.buffer
    else:
        with replacing(path) as temporary, temporary.open("wb") as file:
            yield file


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
        with _open_input(source) as lines, _open_output(target) as out:
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
