"""What a stranger may have written, and what reads it: only documented errors may leave a reader.

tests/test_fuzz.py tries a few inputs of each kind at every run of the tests, fault_fuzz.py many.
"""

import gzip
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
deep = st.integers(1, 3000).map(lambda depth: b"[" * depth) | st.integers(1, 3000).map(lambda depth: b'{"a":' * depth)
fields = st.sampled_from(["uid", "title", "target_ind", "target_rel", "query", "text"])
records = st.dictionaries(fields, values | st.just([0, 1]) | st.just("text"), max_size=5)
half = st.just(rb'{"title": "\ud800", "uid": "\udfff", "target_ind": [0]}')
lines = st.lists(
    records.map(lambda record: json.dumps(record).encode()) | deep | half | st.binary(max_size=20), max_size=4
).map(b"\n".join)
pairs = st.lists(st.binary(max_size=12) | st.from_regex(rb"-?[0-9]{1,25} [0-9]{1,3}", fullmatch=True)).map(b"\n".join)
query_files = st.sampled_from(["q.jsonl", "q.csv", "q.tsv", "q.txt", "q.jsonl.gz", "q.parquet", "q.jsonl.zst"])
yaml_texts = st.sampled_from(
    [
        "a: &a [1]\nb: *a\n",
        "${oc.env:HOME}",
        "seed: ${seed}\n",
        "seed: [\n",
        "- 1\n",
        "",
        "seed: 0\ndataset: {name: ..}\n",
        "seed: 0\ndataset: ${dataset}\n",
        "seed: x\ndataset: {name: a}\n",
        "seed: 0\ndataset: {name: '${nothing}'}\n",
        "? [a, b]\n: 1\n",
        "seed: !!python/name:os.system\n",
        "[" * 3000,
    ]
)


class Sources(NamedTuple):
    """Whole files that are changed here and there.

    Attributes:
        model: Folder of a model.
        predictions: Content of a file of predictions.
        checkpoint: Content of a checkpoint, a file without banks.
    """

    model: Path
    predictions: bytes
    checkpoint: bytes


class Input(NamedTuple):
    """A kind of input.

    Attributes:
        name: Name, for people.
        examples: Strategy of its examples.
        read: Writes an example to a folder and reads it; it returns the path that a message has to name and the reader.
        weight: Share of the number of examples, since some readers take longer.
    """

    name: str
    examples: st.SearchStrategy[Any]
    read: Callable[[Path, Sources, Any], tuple[Path, Callable[[], object]]]
    weight: float = 1.0


def try_input(kind: Input, folder: Path, sources: Sources, example: Any) -> None:
    """Read an example.

    Raises:
        AssertionError: If the message of a documented error does not name the file.
        Exception: Any error that is not documented.
    """
    path, read = kind.read(folder, sources, example)
    try:
        read()
    except (ValueError, FileNotFoundError) as error:
        if str(path) not in str(error):
            raise AssertionError(f"{error!r} does not name {path}") from error


class Change(NamedTuple):
    """A change of a file: what happens, where (as a share of its length), and with what."""

    kind: str
    place: float
    bit: int
    content: bytes


changes = st.lists(
    st.builds(
        Change,
        st.sampled_from(["flip", "cut", "insert", "zeros"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 7),
        st.binary(max_size=8),
    ),
    min_size=1,
    max_size=3,
)


def changed(content: bytes, made: Iterable[Change]) -> bytes:
    """Return a file's content with a few bytes replaced, cut off, or put in."""
    result = bytearray(content)
    for change in made:
        place = int(change.place * len(result))
        match change.kind:
            case "flip" if place < len(result):
                result[place] ^= 1 << change.bit
            case "cut":
                del result[place:]
            case "insert":
                result[place:place] = change.content
            case "zeros":
                result[place : place + 512] = bytes(len(result[place : place + 512]))
    return bytes(result)


def _consume(items: Iterable[object]) -> None:
    for _ in items:
        pass


def _raw(folder: Path, sources: Sources, example: Any) -> tuple[Path, Callable[[], object]]:
    from prime_xmc.data.raw import read_records

    content, is_gzip, num_labels = example
    path = folder / ("raw.json.gz" if is_gzip else "raw.json")
    path.write_bytes(gzip.compress(content)[: len(content) + 10] if is_gzip else content)
    return path, lambda: _consume(read_records(path, ["title"], num_labels))


def _filter(folder: Path, sources: Sources, example: bytes) -> tuple[Path, Callable[[], object]]:
    from prime_xmc.data.raw import read_filter

    path = folder / "filter.txt"
    path.write_bytes(example)
    return path, lambda: read_filter(path, 5, 5)


def _queries(folder: Path, sources: Sources, example: Any) -> tuple[Path, Callable[[], object]]:
    from prime_xmc.export.queries import TextFields, open_queries

    content, name = example
    path = folder / name
    path.write_bytes(content)

    def read() -> None:
        with open_queries(path, TextFields(None, ("title",))) as queries:
            _consume(queries)

    return path, read


def _predictions(folder: Path, sources: Sources, example: Any) -> tuple[Path, Callable[[], object]]:
    from prime_xmc.evaluation.predictions import load_predictions

    path = folder / "p.npz"
    path.write_bytes(changed(sources.predictions, example))
    return path, lambda: load_predictions(path)


def _checkpoint(folder: Path, sources: Sources, example: Any) -> tuple[Path, Callable[[], object]]:
    from prime_xmc.training.continuation import read_origin

    path = folder / "last.ckpt"
    path.write_bytes(changed(sources.checkpoint, example))
    return path, lambda: read_origin(path)


MODEL_FILES = (
    *("prime_config.json", "config.json", "tokenizer.json", "labels.jsonl", "model.safetensors"),
    *("prototypes.safetensors", "index.faiss"),
)


def _copy_of_model(folder: Path, sources: Sources) -> Path:
    model = folder / "model"
    shutil.rmtree(model, ignore_errors=True)
    return Path(shutil.copytree(sources.model, model))


def _model(folder: Path, sources: Sources, example: Any) -> tuple[Path, Callable[[], object]]:
    from prime_xmc.export.predictor import Predictor

    name, made = example
    model = _copy_of_model(folder, sources)
    (model / name).write_bytes(changed((model / name).read_bytes(), made))
    return model, lambda: Predictor.load(model, index="faiss")


def _model_settings(folder: Path, sources: Sources, example: Any) -> tuple[Path, Callable[[], object]]:
    from prime_xmc.export.predictor import Predictor

    name, place, value = example
    model = _copy_of_model(folder, sources)
    content = json.loads((model / name).read_bytes())
    keys = sorted(content)
    content[keys[place % len(keys)]] = value
    content.pop("checksum", None)
    (model / name).write_text(json.dumps(content))
    return model, lambda: Predictor.load(model)


def _run_folder(folder: Path, sources: Sources, example: Any) -> tuple[Path, Callable[[], object]]:
    from prime_xmc.reporting.run_folders import read_runs

    config, metrics, epochs = example
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "config.yaml").write_text(config, encoding="utf-8", errors="replace")
    if metrics is not None:
        (run / "metrics.json").write_text(metrics, encoding="utf-8", errors="replace")
    if epochs is not None:
        (run / "metrics.csv").write_text(epochs, encoding="utf-8", errors="replace")
    return run, lambda: read_runs(run)


INPUTS = (
    Input("raw files", st.tuples(lines, st.booleans(), st.none() | st.just(3)), _raw),
    Input("filters", pairs, _filter),
    Input("queries", st.tuples(lines, query_files), _queries),
    Input("predictions", changes, _predictions),
    Input("checkpoints", changes, _checkpoint, 0.4),
    Input("model folders", st.tuples(st.sampled_from(MODEL_FILES), changes), _model, 0.4),
    Input(
        "configurations of models",
        st.tuples(st.sampled_from(["prime_config.json", "config.json"]), st.integers(0, 99), values),
        _model_settings,
        0.4,
    ),
    Input(
        "run folders",
        st.tuples(
            yaml_texts | st.text(max_size=30),
            st.none() | values.map(json.dumps) | deep.map(bytes.decode),
            st.none() | st.text(max_size=40) | st.just("epoch,val/P@1\n1,x\n"),
        ),
        _run_folder,
    ),
)


def make_sources(model: Path, folder: Path) -> Sources:
    """Return sources, given a model; what is written for them lies in the folder."""
    import numpy as np
    import torch

    from prime_xmc.evaluation.predictions import save_predictions

    folder.mkdir(parents=True, exist_ok=True)
    predictions = folder / "predictions.npz"
    save_predictions(predictions, np.arange(12, dtype=np.int32).reshape(4, 3), np.ones((4, 3), dtype=np.float32))
    checkpoint = folder / "checkpoint.ckpt"
    content = {"loops": {"epoch": 1}, "state_dict": {"weight": torch.arange(12.0)}, "origin": {"seed": 0}, "banks": {}}
    torch.save(content, checkpoint)
    return Sources(model, predictions.read_bytes(), checkpoint.read_bytes())
