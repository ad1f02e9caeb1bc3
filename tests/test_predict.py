"""Queries in, JSON lines out: in this process, and through a real one where streams and exit codes matter."""

import gzip
import io
import json
import os
import subprocess
import sys

import pytest

from prime_xmc.export.predictor import Prediction, Predictor, ScoredLabel
from prime_xmc.export.queries import read_queries, to_json
from prime_xmc.predict import run

QUERIES = ["a red cat", "", "Ünï ≠ 語", "blue river"]


@pytest.fixture(scope="module")
def predict(compose):
    return lambda *overrides: run(compose("device=cpu", *overrides, name="predict"))


def start(folder, *overrides, **streams):
    command = [sys.executable, "-m", "prime_xmc.predict", *overrides]
    streams = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")} | streams
    return subprocess.Popen(command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, **streams)


def records(content):
    return [json.loads(line) for line in content.splitlines()]


@pytest.fixture(scope="module")
def expected(toy_bundle):
    predictions = Predictor.load(toy_bundle).predict(QUERIES, top_k=3)
    return [[label.uid for label in prediction.labels] for prediction in predictions]


def uids(content):
    return [[label["uid"] for label in record["labels"]] for record in records(content)]


class TestProcess:
    def test_standard_input_to_standard_output(self, toy_bundle, tmp_path, expected):
        process = start(tmp_path, f"model={toy_bundle}", "top_k=3")
        out, err = process.communicate("\n".join(QUERIES).encode())
        assert (process.returncode, err.decode()) == (0, "")
        assert [record["query"] for record in records(out)] == QUERIES
        assert uids(out) == expected
        assert "≠".encode() in out  # not escaped
        assert list(tmp_path.iterdir()) == []  # no log, no folder of Hydra's

    def test_broken_input_ends_with_file_line_and_value(self, toy_bundle, tmp_path):
        (tmp_path / "queries.jsonl").write_text('{"query": "red"}\n{"query": 7}\n')
        process = start(tmp_path, f"model={toy_bundle}", "input=queries.jsonl", "output=out/found.jsonl")
        out, err = process.communicate()
        assert (process.returncode, out) == (1, b"")
        assert "queries.jsonl, line 2: field 'query' is 7; expected a string there" in err.decode()
        assert "Traceback" not in err.decode()
        assert list((tmp_path / "out").iterdir()) == []

    def test_reader_who_has_had_enough(self, toy_bundle, tmp_path):
        with start(tmp_path, f"model={toy_bundle}", "chunk=1") as process:
            process.stdin.write(b"red cat\n")
            process.stdin.flush()
            assert process.stdout.readline()  # an answer before the input has ended
            process.stdout.close()
            process.stdin.write(b"blue cat\n" * 100)
            process.stdin.close()
            assert process.stderr.read() == b""
            assert process.wait() == 0


class TestRun:
    @pytest.mark.parametrize("chunk", [1, 3, 1024])
    def test_text_file(self, predict, toy_bundle, tmp_path, expected, chunk):
        source, target = tmp_path / "queries.txt", tmp_path / "new" / "found.jsonl"
        source.write_bytes("\r\n".join(QUERIES).encode())
        predict(f"model.dir={toy_bundle}", "top_k=3", f"input={source}", f"output={target}", f"chunk={chunk}")
        assert uids(target.read_bytes()) == expected
        assert [path.name for path in target.parent.iterdir()] == ["found.jsonl"]

    @pytest.mark.parametrize("name", ["queries.jsonl", "queries.jsonl.gz", "tst.json.gz"])
    def test_json_lines(self, predict, toy_bundle, tmp_path, expected, capsysbinary, name):
        content = "".join(json.dumps({"title": query, "target_ind": [1]}) + "\n" for query in QUERIES).encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        predict(f"model.dir={toy_bundle}", "top_k=3", f"input={tmp_path / name}")
        assert uids(capsysbinary.readouterr().out) == expected

    def test_standard_input_is_json_if_a_field_is_given(self, predict, toy_bundle, expected, monkeypatch, capsysbinary):
        content = "".join(json.dumps({"query": "no", "name": query}) + "\n" for query in QUERIES).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        predict(f"model.dir={toy_bundle}", "top_k=3", "text_field=name")
        assert uids(capsysbinary.readouterr().out) == expected

    def test_nothing_in_nothing_out(self, predict, toy_bundle, tmp_path, capsysbinary):
        (tmp_path / "empty.txt").touch()
        predict(f"model.dir={toy_bundle}", f"input={tmp_path / 'empty.txt'}")
        assert capsysbinary.readouterr().out == b""

    def test_scores_below_the_limit_are_left_out(self, predict, toy_bundle, tmp_path, capsysbinary):
        (tmp_path / "queries.txt").write_text("red cat\n")
        arguments = f"model.dir={toy_bundle}", f"input={tmp_path / 'queries.txt'}"
        predict(*arguments, "top_k=48")
        (all_labels,) = records(capsysbinary.readouterr().out)
        limit = all_labels["labels"][9]["score"] - 1e-5
        predict(*arguments, "top_k=48", f"min_score={limit}")
        (found,) = records(capsysbinary.readouterr().out)
        assert found["labels"] == [label for label in all_labels["labels"] if label["score"] >= limit]
        assert 10 <= len(found["labels"]) < 48

    @pytest.mark.parametrize("index", ["faiss", "exact"])
    def test_index(self, predict, toy_bundle, tmp_path, expected, capsysbinary, index):
        (tmp_path / "queries.txt").write_text("\n".join(QUERIES), encoding="utf-8")
        predict(f"model.dir={toy_bundle}", "top_k=3", f"input={tmp_path / 'queries.txt'}", f"search={index}")
        assert uids(capsysbinary.readouterr().out) == expected

    def test_older_output_stays_if_the_input_is_bad(self, predict, toy_bundle, tmp_path):
        (tmp_path / "queries.txt").write_bytes(b"red\n\xff\n")
        (tmp_path / "found.jsonl").write_text("old")
        with pytest.raises(ValueError, match="line 2"):
            predict(
                f"model.dir={toy_bundle}", f"input={tmp_path / 'queries.txt'}", f"output={tmp_path / 'found.jsonl'}"
            )
        assert (tmp_path / "found.jsonl").read_text() == "old"
        assert {path.name for path in tmp_path.iterdir()} == {"queries.txt", "found.jsonl"}

    @pytest.mark.parametrize(
        ("override", "error", "said"),
        [
            ("input=nowhere.txt", FileNotFoundError, "input=nowhere.txt: there is no such file"),
            ("chunk=0", ValueError, "chunk of at least 1 query, got 0"),
            ("model.dir=nowhere", FileNotFoundError, "nowhere is no exported model"),
        ],
    )
    def test_bad_settings(self, predict, toy_bundle, override, error, said):
        with pytest.raises(error, match=said):
            predict(f"model.dir={toy_bundle}", override)

    def test_more_labels_than_there_are(self, predict, toy_bundle, tmp_path):
        (tmp_path / "queries.txt").write_text("red\n")
        with pytest.raises(ValueError, match="48 labels, got 49"):
            predict(f"model.dir={toy_bundle}", f"input={tmp_path / 'queries.txt'}", "top_k=49")


class TestReadQueries:
    def read(self, content, text_field=None, *, as_json):
        return list(read_queries(io.BytesIO(content), "queries", text_field, as_json=as_json))

    def test_lines_are_taken_as_they_are(self):
        content = b"a  b \r\n\n\tc\nd"
        assert self.read(content, as_json=False) == ["a  b ", "", "\tc", "d"]

    @pytest.mark.parametrize(
        ("record", "field", "query"),
        [
            ({"text": "c", "title": "b", "query": "a"}, None, "a"),
            ({"text": "c", "title": "b"}, None, "b"),
            ({"text": "c"}, None, "c"),
            ({"text": "c", "body": "d"}, "body", "d"),
        ],
    )
    def test_field(self, record, field, query):
        assert self.read(json.dumps(record).encode(), field, as_json=True) == [query]

    @pytest.mark.parametrize(
        ("line", "field", "said"),
        [
            (b"not json", None, r"not JSON \(.*\): 'not json'; every line must be one JSON object"),
            (b"", None, "not JSON"),
            (b"[1]", None, r"'\[1\]' is JSON but not an object"),
            (b'{"uid": "a", "body": "b"}', None, "no field 'query', only uid, body; expected a string there, or"),
            (b'{"query": "a"}', "body", "no field 'body', only query"),
            (b'{"title": null}', None, "field 'title' is None"),
            (b'{"query": "\\ud800"}', None, "not UTF-8"),
            (b'{"query": "\xe9"}', None, "not UTF-8"),
        ],
    )
    def test_bad_json_line(self, line, field, said):
        with pytest.raises(ValueError, match=f"queries, line 2: {said}"):
            self.read(b'{"query": "x", "body": "x"}\n' + line + b"\n", field, as_json=True)

    def test_bad_encoding(self):
        with pytest.raises(ValueError, match=r"queries, line 3: not UTF-8 .*0xe9.*; convert it to UTF-8"):
            self.read(b"a\nb\ncaf\xe9\n", as_json=False)

    @pytest.mark.parametrize("content", [gzip.compress(b"one\ntwo\n")[:-9], b"plain text", b"\x1f\x8b\x08" + bytes(40)])
    def test_damaged_gzip(self, content):
        lines = gzip.GzipFile(fileobj=io.BytesIO(content))
        with pytest.raises(ValueError, match=r"queries, line \d: the gzip data are truncated or damaged"):
            list(read_queries(lines, "queries", None, as_json=False))


def test_a_line_of_output():
    labels = [ScoredLabel("l1", "über", 0.12345678, 1), ScoredLabel("l2", "b", -0.5, 2)]
    line = to_json(Prediction("q", labels), None)
    assert line == (
        '{"query": "q", "labels": [{"uid": "l1", "text": "über", "score": 0.123457}, '
        '{"uid": "l2", "text": "b", "score": -0.5}]}\n'
    )
    assert json.loads(to_json(Prediction("q", labels), 0.2)) == {"query": "q", "labels": []}
