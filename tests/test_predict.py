"""Queries in, JSON lines out: in this process, and through a real one where streams and exit codes matter."""

import csv
import gzip
import io
import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
import time

import pyarrow
import pyarrow.parquet
import pytest

from prime_xmc.export.predictor import Predictor
from prime_xmc.predict import run

QUERIES = ["a red cat", "", "Ünï ≠ 語", "blue river"]


@pytest.fixture(scope="module")
def predict(compose):
    return lambda *overrides: run(compose("device=cpu", *overrides, name="predict"))


def start(folder, *overrides, program=("-m", "prime_xmc.predict"), **streams):
    command = [sys.executable, *program, *overrides]
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

    def test_broken_input_ends_with_file_line_and_value(self, toy_bundle, call, tmp_path):
        (tmp_path / "queries.jsonl").write_text('{"query": "red"}\n{"query": 7}\n')
        done = call("predict", f"model={toy_bundle}", "input=queries.jsonl", "output=out/found.jsonl", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert "queries.jsonl, line 2: field 'query' is 7; expected a string there" in done.stderr
        assert "Traceback" not in done.stderr
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
    def test_the_input_is_not_replaced_by_its_answers(self, predict, toy_bundle, tmp_path):
        (tmp_path / "q.csv").write_text("title\na red cat\n")
        with pytest.raises(ValueError, match=r"output=.*q\.csv is the input itself, which is read as input="):
            predict(f"model.dir={toy_bundle}", f"input={tmp_path}/q.csv", f"output={tmp_path}/./q.csv")
        assert (tmp_path / "q.csv").read_text() == "title\na red cat\n"

    @pytest.mark.parametrize("key", ["allow", "exclude"])
    def test_a_list_of_labels_is_not_replaced_by_answers(self, predict, toy_bundle, tmp_path, key):
        (tmp_path / "q.txt").write_text("a red cat\n")
        (tmp_path / "l.txt").write_text("l1\n")
        (tmp_path / "link.txt").symlink_to("l.txt")
        given = f"model.dir={toy_bundle}", f"input={tmp_path}/q.txt", f"{key}={tmp_path}/l.txt"
        for name in ("l.txt", "link.txt"):
            with pytest.raises(ValueError, match=rf"output=.*{name} is the input itself, which is read as {key}="):
                predict(*given, f"output={tmp_path}/{name}")
        assert (tmp_path / "l.txt").read_text() == "l1\n"

    @pytest.mark.parametrize("name", ["answers.csv", "answers.parquet", "answers.jsonl"])
    def test_half_a_character_in_another_field(self, predict, toy_bundle, tmp_path, name):
        (tmp_path / "q.jsonl").write_text('{"title":"vim","z":"\\ud800","n":NaN}\n')
        predict(f"model.dir={toy_bundle}", f"input={tmp_path}/q.jsonl", f"output={tmp_path}/{name}", "top_k=1")
        written = tmp_path / name
        if name.endswith("parquet"):
            (row,) = pyarrow.parquet.read_table(written).to_pylist()
            assert (row["z"], row["n"]) == ("\\ud800", None)
        elif name.endswith("csv"):
            (row,) = csv.DictReader(written.read_text(encoding="utf-8").splitlines())
            assert (row["z"], row["n"]) == ("\\ud800", "")
        else:
            assert '"z": "\\ud800", "n": null' in written.read_text()

    @pytest.mark.parametrize(
        ("name", "content", "written"),
        [
            ("found.jsonl", "", ""),
            ("found.jsonl.gz", "", ""),
            ("found.csv", "title\n", "query,rank,label_uid,label,score\n"),
            ("found.tsv", "", "query\trank\tlabel_uid\tlabel\tscore\n"),
        ],
    )
    def test_an_input_of_nothing(self, predict, toy_bundle, tmp_path, caplog, name, content, written):
        (tmp_path / "q.csv").write_text(content)
        predict(f"model.dir={toy_bundle}", f"input={tmp_path}/q.csv", f"output={tmp_path}/{name}")
        with (gzip.open if name.endswith(".gz") else open)(tmp_path / name, "rt") as file:
            assert file.read() == written
        assert f"{tmp_path}/q.csv: 0 queries, so that there are no answers" in caplog.text

    def test_input_in_another_encoding(self, predict, toy_bundle, tmp_path, capsysbinary):
        (tmp_path / "q.csv").write_bytes("title,note\nun chat café,thé\n".encode("cp1252"))
        with pytest.raises(ValueError, match=r"q\.csv, line 2: not UTF-8 .* such as encoding=cp1252"):
            predict(f"model.dir={toy_bundle}", f"input={tmp_path}/q.csv")
        predict(f"model.dir={toy_bundle}", f"input={tmp_path}/q.csv", "encoding=cp1252")
        (record,) = records(capsysbinary.readouterr().out)
        assert (record["query"], record["note"]) == ("un chat café", "thé")

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

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("queries.ndjson", '{"id": 7, "title": "a red cat"}\n'),
            ("queries.JL", '{"id": 7, "title": "a red cat"}\n'),
            ("queries", '{"id": 7, "title": "a red cat"}\n'),
            ("queries.CSV", "\ufeffid,title\n7,a red cat\n"),
            ("queries.tsv", "id\ttitle\n7\ta red cat\n"),
        ],
    )
    def test_records_of_all_kinds_keep_their_other_fields(
        self, predict, toy_bundle, tmp_path, expected, capsysbinary, name, content
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        predict(f"model.dir={toy_bundle}", "top_k=3", f"input={tmp_path / name}")
        (record,) = records(capsysbinary.readouterr().out)
        assert list(record) == ["id", "query", "labels"]
        assert (str(record["id"]), record["query"]) == ("7", "a red cat")
        assert [label["uid"] for label in record["labels"]] == expected[0]

    def test_json_lines_on_standard_input(self, predict, toy_bundle, expected, monkeypatch, capsysbinary):
        content = "".join(json.dumps({"title": query, "target_ind": [1]}) + "\n" for query in QUERIES).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        predict(f"model.dir={toy_bundle}", "top_k=3")
        assert uids(capsysbinary.readouterr().out) == expected

    def test_several_fields(self, predict, toy_bundle, tmp_path, capsysbinary):
        path = tmp_path / "queries.csv"
        path.write_text("id,first,second\n1,a red,cat\n")
        predict(f"model.dir={toy_bundle}", "top_k=3", f"input={path}", "text_field=[first,second]")
        assert records(capsysbinary.readouterr().out)[0]["query"] == "a red cat"

    def test_fields_of_the_training(self, predict, toy_bundle, tmp_path, expected, capsysbinary):
        model = shutil.copytree(toy_bundle, tmp_path / "model")
        config = json.loads((model / "prime_config.json").read_text())
        config["query"] = {"fields": ["title", "content"], "separator": " "}
        (model / "prime_config.json").write_text(json.dumps(config))
        path = tmp_path / "queries.jsonl"
        path.write_text('{"content": "red cat", "title": "a"}\n')
        predict(f"model.dir={model}", "top_k=3", f"input={path}")
        assert uids(capsysbinary.readouterr().out) == expected[:1]
        path.write_text('{"title": "a red cat"}\n')
        with pytest.raises(ValueError, match=r"queries.jsonl, line 1: no field 'content', only title; the model was"):
            predict(f"model.dir={model}", f"input={path}")
        predict(f"model.dir={model}", "top_k=3", f"input={path}", "text_field=title")
        assert uids(capsysbinary.readouterr().out) == expected[:1]

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
            ("model.dir=nowhere", FileNotFoundError, "nowhere is no exported model, there is no such folder: expected"),
            ("precision=16-true", ValueError, "expected precision bf16-mixed, 16-mixed or 32-true, got '16-true'"),
            (
                "input_format=xml",
                ValueError,
                "expected input_format auto, text, jsonl, csv, tsv, parquet, arrow, got",
            ),
            ("top_k=0", ValueError, "expected top_k of at least 1, got 0"),
        ],
    )
    def test_bad_settings(self, predict, toy_bundle, tmp_path, override, error, said):
        (tmp_path / "queries.txt").write_text("red\n")
        with pytest.raises(error, match=said):
            predict(f"model.dir={toy_bundle}", f"input={tmp_path / 'queries.txt'}", override)

    def test_more_labels_than_there_are_is_said_once(self, predict, toy_bundle, tmp_path, capsysbinary, caplog):
        (tmp_path / "queries.txt").write_text("red\nblue\n")
        predict(f"model.dir={toy_bundle}", f"input={tmp_path / 'queries.txt'}", "top_k=49", "chunk=1")
        assert [len(found) for found in uids(capsysbinary.readouterr().out)] == [48, 48]
        assert caplog.messages == ["top_k=49: the model has 48 labels, and all are returned"]

    def test_the_log_counts_what_takes_long(self, predict, toy_bundle, tmp_path, capsysbinary, monkeypatch, caplog):
        monkeypatch.setattr("prime_xmc.export.answers._SECONDS", 0)
        (tmp_path / "queries.txt").write_text("red\nblue\n")
        with caplog.at_level(logging.INFO):
            predict(f"model.dir={toy_bundle}", f"input={tmp_path / 'queries.txt'}", "chunk=1")
        assert caplog.messages == ["1 queries answered", "2 queries answered"]

    def test_scores_are_those_of_python(self, predict, toy_bundle, tmp_path, capsysbinary):
        """By default both compute in the precision of the training."""
        model = shutil.copytree(toy_bundle, tmp_path / "model")
        for precision in ("32-true", "bf16-mixed"):
            config = json.loads((model / "prime_config.json").read_text()) | {"precision": precision}
            (model / "prime_config.json").write_text(json.dumps(config))
            (tmp_path / "queries.txt").write_text("a red cat\n")
            predict(f"model.dir={model}", f"input={tmp_path / 'queries.txt'}")
            (prediction,) = Predictor.load(model).predict(["a red cat"])
            (record,) = records(capsysbinary.readouterr().out)
            assert [label["score"] for label in record["labels"]] == [round(x.score, 6) for x in prediction.labels]

    def test_lists_of_labels(self, predict, toy_bundle, tmp_path, capsysbinary):
        (tmp_path / "queries.txt").write_text("red cat\n")
        (tmp_path / "allowed.txt").write_text("l1\nl20\nl30\nl40\n")
        arguments = f"model.dir={toy_bundle}", f"input={tmp_path / 'queries.txt'}"
        predict(*arguments, "top_k=48")
        (whole,) = uids(capsysbinary.readouterr().out)
        predict(*arguments, f"allow={tmp_path / 'allowed.txt'}", "exclude=[l30]", "top_k=9")
        assert uids(capsysbinary.readouterr().out) == [[uid for uid in whole if uid in ("l1", "l20", "l40")]]
        with pytest.raises(ValueError, match="exclude: there is no label 'l99'"):
            predict(*arguments, "exclude=[l99]")

    def test_text_column_is_another_name_of_text_field(self, predict, toy_bundle, tmp_path, expected, capsysbinary):
        (tmp_path / "queries.csv").write_text("id,body\n1,a red cat\n")
        predict(f"model.dir={toy_bundle}", "top_k=3", f"input={tmp_path / 'queries.csv'}", "text_column=body")
        assert uids(capsysbinary.readouterr().out) == expected[:1]

    def test_several_fields_stay_in_the_output(self, predict, toy_bundle, tmp_path, capsysbinary):
        path = tmp_path / "queries.csv"
        path.write_text("id,first,second\n1,a red,cat\n")
        predict(f"model.dir={toy_bundle}", "top_k=3", f"input={path}", "text_field=[first,second]")
        (record,) = records(capsysbinary.readouterr().out)
        assert list(record) == ["id", "first", "second", "query", "labels"]

    def test_why(self, predict, toy_bundle, tmp_path, capsysbinary):
        (tmp_path / "queries.txt").write_text("red cat\n")
        predict(f"model.dir={toy_bundle}", f"input={tmp_path / 'queries.txt'}", "top_k=1", "explain=true")
        ((label,),) = [record["labels"] for record in records(capsysbinary.readouterr().out)]
        assert label["why"]["scorers"] == {"theta": pytest.approx(label["score"], abs=1e-5)}
        assert sum(label["why"]["sources"].values()) == pytest.approx(label["score"], abs=1e-5)
        assert label["why"]["queries"] == []

    @pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
    def test_tables_in_and_out(self, predict, toy_bundle, tmp_path, expected, suffix):
        source, target = tmp_path / "queries.parquet", tmp_path / f"found{suffix}"
        table = pyarrow.table({"id": list(range(4)), "title": QUERIES, "weight": [0.5, None, 2.0, 1.0]})
        pyarrow.parquet.write_table(table, source)
        predict(f"model.dir={toy_bundle}", "top_k=3", f"input={source}", f"output={target}", "chunk=3")
        if suffix == ".parquet":
            found = pyarrow.parquet.read_table(target).to_pylist()
        else:
            with target.open(encoding="utf-8", newline="") as file:
                found = list(csv.DictReader(file, delimiter="," if suffix == ".csv" else "\t"))
        assert list(found[0]) == ["id", "weight", "query", "rank", "label_uid", "label", "score"]
        assert [row["label_uid"] for row in found] == [uid for row in expected for uid in row]
        assert [str(row["id"]) for row in found] == [str(row) for row in range(4) for _ in range(3)]
        assert [str(row["rank"]) for row in found] == ["1", "2", "3"] * 4
        assert [row["query"] for row in found] == [query for query in QUERIES for _ in range(3)]


def test_a_killed_process_is_gone_on_with(predict, toy_bundle, call, tmp_path):
    """The output of two processes, the first of them killed within a chunk, is that of one, byte for byte."""
    lines = [
        f'{{"id": {number}, "query": "{colour} {thing} {number}"}}\n'
        for number, (colour, thing) in enumerate(
            itertools.product(["red", "green", "blue"] * 40, ["cat", "house", "river", "violin"] * 5)
        )
    ]
    (tmp_path / "queries.jsonl").write_text("".join(lines))
    arguments = f"model={toy_bundle}", f"input={tmp_path}/queries.jsonl", "chunk=8", "device=cpu"
    partial, progress = tmp_path / ".found.csv.partial", tmp_path / ".found.csv.progress"
    often = (
        "import prime_xmc.predict, prime_xmc.export.partial_output as output\n"
        "output._SECONDS = 0  # a line of the progress after each chunk, however fast the machine is\n"
        "prime_xmc.predict.main()"
    )
    with start(tmp_path, *arguments, "output=found.csv", program=("-c", often)) as process:
        while not progress.exists() or progress.read_bytes().count(b"\n") < 2:
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.01)
        process.kill()
    noted = json.loads(progress.read_text().splitlines()[-1])
    assert 0 < noted["queries"] < len(lines)
    with partial.open("ab") as file:
        file.write(b'{"id": 7, "qu')
    done = call("predict", *arguments, "output=found.csv", "resume=true", "verify=full", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"going on after {noted['queries']:,} queries that are answered already" in done.stderr
    predict(f"model.dir={toy_bundle}", *arguments[1:], f"output={tmp_path}/whole.csv")
    assert (tmp_path / "found.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert (tmp_path / "whole.csv").read_bytes().count(b"\n") == 1 + 5 * len(lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.csv", "queries.jsonl", "whole.csv"]
