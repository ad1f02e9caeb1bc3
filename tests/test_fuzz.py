"""Whatever stands in a file that somebody else has made, only documented errors leave its reader."""

import gzip
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prime_xmc.data.raw import read_filter, read_records
from prime_xmc.evaluation.predictions import load_predictions, save_predictions
from prime_xmc.export.predictor import Predictor
from prime_xmc.export.queries import TextFields, open_queries
from prime_xmc.reporting.run_folders import read_runs

# the same examples at every run; few, because the number of readers is what makes the time
BOUNDED = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
RARE = settings(BOUNDED, max_examples=25)

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


def only_documented(read: Callable[[], object], name: Path) -> None:
    try:
        read()
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
    else:
        return
    assert str(name) in message


def consume(items: Iterable[object]) -> None:
    for _ in items:
        pass


@BOUNDED
@given(lines, st.booleans(), st.none() | st.just(3))
def test_raw_files(tmp_path, content, is_gzip, num_labels):
    path = tmp_path / ("raw.json.gz" if is_gzip else "raw.json")
    path.write_bytes(gzip.compress(content)[: len(content) + 10] if is_gzip else content)
    only_documented(lambda: consume(read_records(path, ["title"], num_labels)), path)


@BOUNDED
@given(st.lists(st.binary(max_size=12) | st.from_regex(rb"-?[0-9]{1,25} [0-9]{1,3}", fullmatch=True)).map(b"\n".join))
def test_filters(tmp_path, content):
    path = tmp_path / "filter.txt"
    path.write_bytes(content)
    only_documented(lambda: read_filter(path, 5, 5), path)


@BOUNDED
@given(lines, st.sampled_from(["q.jsonl", "q.csv", "q.tsv", "q.txt", "q.jsonl.gz", "q.parquet", "q.jsonl.zst"]))
def test_queries(tmp_path, content, name):
    pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(content)

    def read() -> None:
        with open_queries(path, TextFields(None, ("title",))) as queries:
            consume(queries)

    only_documented(read, path)


@pytest.fixture(scope="module")
def predictions(tmp_path_factory) -> bytes:
    import numpy as np

    path = tmp_path_factory.mktemp("predictions") / "predictions.npz"
    save_predictions(path, np.arange(12, dtype=np.int32).reshape(4, 3), np.ones((4, 3), dtype=np.float32))
    return path.read_bytes()


@BOUNDED
@given(st.data())
def test_predictions(tmp_path, predictions, data):
    path = tmp_path / "p.npz"
    path.write_bytes(changed(predictions, data))
    only_documented(lambda: load_predictions(path), path)


def changed(content: bytes, data: st.DataObject) -> bytes:
    """Return a file with a few bytes replaced, cut off, or put in."""
    result = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(result)))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "zeros"])):
            case "flip" if place < len(result):
                result[place] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del result[place:]
            case "insert":
                result[place:place] = data.draw(st.binary(max_size=8))
            case "zeros":
                result[place : place + 512] = bytes(len(result[place : place + 512]))
    return bytes(result)


FILES = (
    *("prime_config.json", "config.json", "tokenizer.json", "labels.jsonl", "model.safetensors"),
    *("prototypes.safetensors", "index.faiss"),
)


@RARE
@given(st.data(), st.sampled_from(FILES))
def test_model_folders(tmp_path, toy_bundle, data, name):
    model = tmp_path / "model"
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(toy_bundle, model)
    (model / name).write_bytes(changed((model / name).read_bytes(), data))
    only_documented(lambda: Predictor.load(model, index="faiss"), model)


@RARE
@given(st.sampled_from(["prime_config.json", "config.json"]), st.data())
def test_configurations_of_models(tmp_path, toy_bundle, name, data):
    model = tmp_path / "model"
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(toy_bundle, model)
    content = json.loads((model / name).read_bytes())
    key = data.draw(st.sampled_from(sorted(content)))
    content[key] = data.draw(values)
    content.pop("checksum", None)
    (model / name).write_text(json.dumps(content))
    only_documented(lambda: Predictor.load(model), model)


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


@BOUNDED
@given(
    yaml_texts | st.text(max_size=30),
    st.none() | values.map(json.dumps) | deep.map(bytes.decode),
    st.none() | st.text(max_size=40) | st.just("epoch,val/P@1\n1,x\n"),
)
def test_run_folders(tmp_path, config, metrics, epochs):
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "config.yaml").write_text(config, encoding="utf-8", errors="replace")
    if metrics is not None:
        (run / "metrics.json").write_text(metrics, encoding="utf-8", errors="replace")
    if epochs is not None:
        (run / "metrics.csv").write_text(epochs, encoding="utf-8", errors="replace")
    only_documented(lambda: read_runs(run), run)
