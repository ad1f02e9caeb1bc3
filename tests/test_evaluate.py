"""Metrics of an exported model and of predictions files, on the toy data set's test split."""

import gzip
import json
import logging
import os
import shutil

import numpy as np
import pytest
import torch

import prime_xmc
from prime_xmc.assemble import load_scorer, model_corpus, open_corpus
from prime_xmc.data.corpus import Ragged, Split
from prime_xmc.data.propensity import inverse_propensity
from prime_xmc.evaluate import run
from prime_xmc.evaluation.metrics import METRICS, evaluate
from prime_xmc.evaluation.predictions import load_predictions, save_predictions
from prime_xmc.evaluation.rank import rank_split as rank
from prime_xmc.export.predictor import Predictor
from prime_xmc.predict import run as predict


@pytest.fixture(scope="module")
def overrides(tiny_encoder_dir, toy_dataset, tmp_path_factory):
    return [
        "dataset=custom",
        f"dataset.dir={toy_dataset}",
        "dataset.name=toy",
        "dataset.propensity={a: 0.6, b: 2.6}",
        "dataset.max_length=16",
        f"encoder.source={tiny_encoder_dir}",
        f"cache_dir={tmp_path_factory.mktemp('cache')}",
        "device=cpu",
    ]


@pytest.fixture(scope="module")
def configure(compose, overrides):
    return lambda *more: compose(*overrides, *more, name="evaluate")


@pytest.fixture(scope="module")
def corpus(configure):
    return open_corpus(configure())


def expected(indices, corpus):
    weights = inverse_propensity(corpus.label_frequency, len(corpus.train), a=0.6, b=2.6)
    metrics = evaluate(indices, corpus.test.positives, weights)
    return {f"test/{name}": value for name, value in metrics.items()}


def brute_force(corpus, model):
    """Every query against every label, one at a time, by the exported parts alone."""
    predictor = Predictor.load(model, index="exact")
    vectors = predictor.searcher._vectors
    indices = np.full((len(corpus.test), 100), -1)
    for row in range(len(corpus.test)):
        tokens = torch.from_numpy(corpus.test.tokens[row].astype(np.int64))
        with torch.no_grad():
            scores = vectors @ predictor.encoder(tokens, torch.tensor([len(tokens)]))[0]
        best = [label for label in scores.argsort(descending=True).tolist() if label not in corpus.test.filtered[row]]
        indices[row, : len(best)] = best
    return indices


class TestModel:
    def test_a_drawn_test_split_that_training_may_have_seen_is_told(
        self, toy_bundle, toy_dataset, configure, tmp_path, caplog
    ):
        data, model = shutil.copytree(toy_dataset, tmp_path / "data"), shutil.copytree(toy_bundle, tmp_path / "model")
        for path in (data / "tst.json.gz", data / "filter_labels_test.txt"):
            path.unlink()
        config = configure(f"model.dir={model}", f"dataset.dir={data}", f"cache_dir={tmp_path}/cache")
        fingerprint = model_corpus(config, Predictor.load(model)).manifest["fingerprint"]
        assert fingerprint == open_corpus(config).manifest["fingerprint"]  # with the tokenizer that training has
        path = model / "prime_config.json"
        content = json.loads(path.read_text())
        for recorded, is_told in ((fingerprint, False), ("of another split", True)):
            content["settings"]["data_fingerprint"] = recorded
            path.write_text(json.dumps(content))
            caplog.clear()
            model_corpus(config, Predictor.load(model))
            assert ("may have been trained on some of them" in caplog.text) is is_told

    def test_equals_brute_force(self, toy_bundle, configure, corpus, tmp_path, capsys):
        output, predictions = tmp_path / "new" / "metrics.json", tmp_path / "predictions.npz"
        config = configure(f"model.dir={toy_bundle}", f"output={output}", f"predictions_output={predictions}")
        metrics = run(config)
        truth = brute_force(corpus, toy_bundle)
        assert metrics == pytest.approx(expected(truth, corpus))
        assert 0 < metrics["test/R@10"] < metrics["test/R@100"] == 1  # of 48 labels, all are found
        assert json.loads(output.read_text()) == metrics
        assert [path.name for path in output.parent.iterdir()] == ["metrics.json"]
        assert load_predictions(predictions)[0].tolist() == truth.tolist()
        table = capsys.readouterr().out
        assert f"{100 * metrics['test/P@1']:.2f}" in table
        assert "R@100" in table

    def test_data_prepared_by_training_are_used(self, toy_bundle, configure, corpus):
        config = configure(f"model.dir={toy_bundle}")
        run(config)
        assert [path.name for path in corpus.directory.parent.iterdir()] == [corpus.directory.name]

    @pytest.mark.parametrize("chunk", [7, 60])
    def test_rank_in_chunks(self, toy_bundle, corpus, monkeypatch, chunk):
        monkeypatch.setattr("prime_xmc.evaluation.rank._CHUNK", chunk)
        indices, scores = rank(Predictor.load(toy_bundle), corpus.test, k=5)
        assert indices.tolist() == brute_force(corpus, toy_bundle)[:, :5].tolist()
        assert (np.diff(scores, axis=1) <= 0).all()

    def test_rank_leaves_filtered_pairs_out_before_the_cut(self, toy_bundle, corpus):
        predictor = Predictor.load(toy_bundle)
        best = rank(predictor, corpus.test, k=1)[0]
        filtered = Ragged.from_rows(best.tolist(), np.int32)
        second = rank(predictor, Split(corpus.test.tokens, corpus.test.positives, filtered), k=1)[0]
        assert (second != best).all()
        assert (second >= 0).all()

    def test_queries_of_other_fields_than_in_training(self, toy_bundle, configure, tmp_path):
        model = shutil.copytree(toy_bundle, tmp_path / "model")
        config = json.loads((model / "prime_config.json").read_text())
        config["query"] = {"fields": ["title", "content"], "separator": " "}
        (model / "prime_config.json").write_text(json.dumps(config))
        with pytest.raises(
            ValueError, match=r"was trained on \[title,content\]: give dataset.fields=\[title,content\]"
        ):
            run(configure(f"model.dir={model}"))

    def test_precision_is_that_of_the_model_unless_given(self, toy_bundle, configure, monkeypatch):
        monkeypatch.setattr("prime_xmc.export.predictor.native_precision", lambda device: "bf16-mixed")
        for given, expected in (([], "32-true"), (["precision=bf16-mixed"], "bf16-mixed")):
            assert load_scorer(configure(f"model.dir={toy_bundle}", *given)).precision == expected

    def test_other_number_of_labels(self, toy_bundle, configure, toy_dataset, tmp_path):
        raw = copy_raw(toy_dataset, tmp_path / "raw")
        append(raw / "lbl.json", '{"uid": "l48", "title": "new label"}')
        with pytest.raises(ValueError, match="the model has 48 labels, toy has 49: give the data set"):
            run(configure(f"model.dir={toy_bundle}", f"dataset.dir={raw}"))

    def test_labels_that_were_changed_after_training(self, toy_bundle, configure, tmp_path):
        model = prime_xmc.load(toy_bundle)
        model.remove_labels(["l7"])
        message = "the model has 47 labels, toy has 48: labels of .* were changed after training, this is version 2"
        with pytest.raises(ValueError, match=message):
            run(configure(f"model.dir={model.save(tmp_path / 'model')}"))

    def test_other_labels(self, toy_bundle, configure, toy_dataset, tmp_path):
        raw = copy_raw(toy_dataset, tmp_path / "raw")
        path = raw / "lbl.json"
        path.write_text(path.read_text().replace('"l7"', '"seven"'))
        with pytest.raises(ValueError, match="label 7 is 'l7' in the model, 'seven' in toy"):
            run(configure(f"model.dir={toy_bundle}", f"dataset.dir={raw}"))


def copy_raw(source, target):
    """The raw files, uncompressed."""
    target.mkdir()
    for path in source.iterdir():
        content = path.read_bytes()
        (target / path.name.removesuffix(".gz")).write_bytes(
            gzip.decompress(content) if path.suffix == ".gz" else content
        )
    return target


def append(path, line):
    path.write_text(path.read_text() + line + "\n")


class TestPredictions:
    def save(self, path, corpus, width=48):
        rng = np.random.default_rng(0)
        indices = np.stack([rng.permutation(48) for _ in range(len(corpus.test))])
        for row, filtered in enumerate(corpus.test.filtered):  # the query's own label is what another tool puts first
            indices[row] = [*filtered, *np.setdiff1d(indices[row], filtered, assume_unique=True)]
        indices = indices[:, :width]
        save_predictions(path, indices, np.tile(np.linspace(1, 0, width), (len(indices), 1)))
        return indices

    def without_filtered(self, indices, corpus):
        rows = np.full((len(indices), 100), -1)
        for row, labels in enumerate(indices):
            kept = [label for label in labels if label not in corpus.test.filtered[row]]
            rows[row, : len(kept)] = kept
        return rows

    def test_equals_metrics_without_the_filtered_pairs(self, configure, corpus, tmp_path, caplog):
        indices = self.save(tmp_path / "a.npz", corpus)
        metrics = run(configure(f"predictions={tmp_path / 'a.npz'}"))
        assert metrics == pytest.approx(expected(self.without_filtered(indices, corpus), corpus))
        assert metrics != pytest.approx(expected(np.pad(indices, ((0, 0), (0, 52)), constant_values=-1), corpus))
        assert set(metrics) == {f"test/{name}" for name in METRICS}
        assert caplog.records == []

    def test_few_columns_count_as_misses_with_a_warning(self, configure, corpus, tmp_path, caplog):
        indices = self.save(tmp_path / "a.npz", corpus, width=5)
        with caplog.at_level(logging.WARNING):
            metrics = run(configure(f"predictions={tmp_path / 'a.npz'}"))
        assert metrics == pytest.approx(expected(self.without_filtered(indices, corpus), corpus))
        assert "fewer than 48 labels for 60 of 60 queries" in caplog.text

    def test_other_number_of_queries(self, configure, tmp_path):
        save_predictions(tmp_path / "a.npz", np.zeros((59, 3), dtype=int), np.zeros((59, 3)))
        with pytest.raises(ValueError, match=r"a.npz has 59 rows, the test split has 60 queries"):
            run(configure(f"predictions={tmp_path / 'a.npz'}"))

    def test_label_out_of_range(self, configure, tmp_path):
        save_predictions(tmp_path / "a.npz", np.full((60, 1), 48), np.zeros((60, 1)))
        with pytest.raises(ValueError, match="row 0 of the predictions holds label 48"):
            run(configure(f"predictions={tmp_path / 'a.npz'}"))

    def test_a_label_twice(self, configure, tmp_path):
        save_predictions(tmp_path / "a.npz", np.zeros((60, 2), dtype=int), np.zeros((60, 2)))
        with pytest.raises(ValueError, match=r"a\.npz: row 0 of the predictions holds label 0 more than once"):
            run(configure(f"predictions={tmp_path / 'a.npz'}"))

    def test_a_folder(self, configure, tmp_path):
        with pytest.raises(FileNotFoundError, match="it is a folder, and a file is expected"):
            run(configure(f"predictions={tmp_path}"))

    def test_missing_file(self, configure):
        with pytest.raises(FileNotFoundError, match=r"predictions=nowhere.npz: there is no such file"):
            run(configure("predictions=nowhere.npz"))


@pytest.fixture(scope="module")
def lines(compose, toy_bundle, toy_dataset, tmp_path_factory):
    """What `prime_xmc.predict` writes for the test file."""
    output = tmp_path_factory.mktemp("predicted") / "predicted.jsonl"
    given = (f"model.dir={toy_bundle}", f"input={toy_dataset}/tst.json.gz", f"output={output}", "device=cpu")
    predict(compose(*given, "top_k=48", name="predict"))
    return output.read_text().splitlines(keepends=True)


class TestPredictedLines:
    def test_they_are_ranked_as_the_model_itself_does(self, lines, configure, toy_bundle, tmp_path):
        (tmp_path / "a.jsonl").write_text("".join(lines))
        alone = run(configure(f"model.dir={toy_bundle}"))
        assert run(configure(f"predictions={tmp_path}/a.jsonl")) == pytest.approx(alone, abs=1e-3)

    def test_another_order(self, lines, configure, tmp_path):
        (tmp_path / "a.jsonl").write_text("".join(lines[::-1]))
        with pytest.raises(ValueError, match=r"a\.jsonl, line 1: the query is .*, and the test query of this line is"):
            run(configure(f"predictions={tmp_path}/a.jsonl"))

    def test_another_number(self, lines, configure, tmp_path):
        (tmp_path / "a.jsonl").write_text("".join(lines[:7]))
        with pytest.raises(ValueError, match=r"has 7 rows, the test split has 60 queries"):
            run(configure(f"predictions={tmp_path}/a.jsonl"))


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (["output={}/a.npz"], r"output=.*a\.npz is the input itself, which is read as predictions="),
        (["predictions_output={}/a.npz"], r"predictions_output=.*a\.npz is the input itself"),
        (["output={}/b", "predictions_output={}/b"], r"output=.*/b is written as predictions_output=, and would be"),
    ],
)
def test_no_output_takes_the_place_of_another_file(configure, tmp_path, outputs, said):
    (tmp_path / "a.npz").write_bytes(b"predictions")
    with pytest.raises(ValueError, match=said):
        run(configure(f"predictions={tmp_path}/a.npz", *(each.format(tmp_path) for each in outputs)))
    assert (tmp_path / "a.npz").read_bytes() == b"predictions"


def test_an_output_that_cannot_be_replaced_is_told_at_once(configure, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is a device, a pipe or a socket"):
        run(configure("predictions=nowhere.npz", f"output={tmp_path}/pipe"))
    with pytest.raises(IsADirectoryError):
        run(configure("predictions=nowhere.npz", f"predictions_output={tmp_path}"))


@pytest.mark.parametrize(("given", "word"), [([], "neither"), (["model.dir=a", "predictions=b.npz"], "both")])
def test_neither_or_both(configure, given, word):
    with pytest.raises(ValueError, match=rf"expected one of model=<run>/model and predictions=.*, got {word}"):
        run(configure(*given))


def test_through_processes(toy_bundle, overrides, corpus, call, tmp_path):
    """A model, then its own predictions as if another tool had made them."""

    def evaluated(*arguments):
        done = call("evaluate", *overrides, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done

    done = evaluated(f"model={toy_bundle}", "output=model.json", "predictions_output=a.npz")
    metrics = json.loads((tmp_path / "model.json").read_text())
    assert metrics == pytest.approx(expected(load_predictions(tmp_path / "a.npz")[0], corpus))
    assert f"{100 * metrics['test/PSP@5']:.2f}" in done.stdout
    evaluated("predictions=a.npz", "output=predictions.json")
    assert json.loads((tmp_path / "predictions.json").read_text()) == metrics
    assert {path.name for path in tmp_path.iterdir()} == {"model.json", "predictions.json", "a.npz"}
