"""The data of a trained model, with the queries that its training held out."""

import json
import logging
import shutil

import numpy as np
import pytest

from prime_xmc.assemble import load_predictor, make_classifier_data, model_corpus
from prime_xmc.data.splitting import hold_out_queries


@pytest.fixture
def open_data(toy_bundle, toy_dataset, compose, tmp_path):
    """Opens the data of the toy model, whose training is said to have held out 40 queries with some fingerprint."""

    def open_data(**said):
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        shutil.copytree(toy_bundle, tmp_path / "model")
        path = tmp_path / "model" / "prime_config.json"
        content = json.loads(path.read_text())
        content["settings"] |= {"config": {"dataset": {"num_validation": 40}}, **said}
        path.write_text(json.dumps(content))
        given = [f"model.dir={tmp_path}/model", f"dataset.dir={toy_dataset}", f"cache_dir={tmp_path}/cache"]
        config = compose("dataset=custom", "dataset.name=toy", "device=cpu", *given, name="classify")
        return make_classifier_data(config, load_predictor(config))

    return open_data


def test_the_queries_that_were_held_out_are_found_again(open_data, caplog):
    of_before = open_data()
    tokens, seed = of_before.corpus.train.tokens, of_before.seed
    one_by_one, together = (hold_out_queries(tokens, 40, seed, one_by_one=each) for each in (True, False))
    assert one_by_one.tolist() != together.tolist(), "some texts are repeated"
    np.testing.assert_array_equal(of_before.validation_ids, one_by_one)
    np.testing.assert_array_equal(open_data(validation_queries=of_before.held_out).validation_ids, one_by_one)
    of_now = open_data(validation_queries="of queries that are held out by texts")
    assert "it may have been trained on some of these validation queries" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        of_now.validation_ids = together
        np.testing.assert_array_equal(open_data(validation_queries=of_now.held_out).validation_ids, together)
    assert not [record for record in caplog.records if record.name.startswith("prime_xmc.assemble")]


def test_other_training_queries_are_other_data_even_where_as_many_are_held_out(open_data, caplog):
    data = open_data()
    said = {"validation_queries": data.held_out, "training_queries": data.corpus.training_hash}
    with caplog.at_level(logging.WARNING):
        open_data(**said)
        assert "may have been trained on some" not in caplog.text
        open_data(**said | {"training_queries": "others"})
    assert "it may have been trained on some of these validation queries" in caplog.text


@pytest.fixture
def open_corpus(toy_bundle, toy_dataset, compose, tmp_path, caplog):
    """Opens data to evaluate the toy model on, and returns them with the warnings."""

    def open_corpus(*overrides, drawn=0, **said):
        model, data = tmp_path / "model", tmp_path / "data"
        for folder, original in ((model, toy_bundle), (data, toy_dataset)):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(original, folder)
        content = json.loads((model / "prime_config.json").read_text())
        content["settings"] |= said
        (model / "prime_config.json").write_text(json.dumps(content))
        (data / "conversion.json").write_text(json.dumps({"split_off": drawn}))
        if overrides:
            for path in (next(data.glob("tst.json*")), data / "filter_labels_test.txt"):
                path.unlink()
        given = [f"model.dir={model}", f"dataset.dir={data}", f"cache_dir={tmp_path}/cache", *overrides]
        config = compose("dataset=custom", "dataset.name=toy", "device=cpu", *given, name="evaluate")
        caplog.clear()
        corpus = model_corpus(config, load_predictor(config))
        return corpus, [text for text in caplog.messages if "the metrics are too high" in text]

    return open_corpus


def test_test_queries_that_a_conversion_has_drawn_anew(open_corpus):
    corpus, warned = open_corpus(drawn=5, training_queries="others")
    assert len(warned) == 1
    assert "Give test queries in a file of their own, or train again" in warned[0]
    assert not open_corpus(drawn=5, training_queries=corpus.training_hash)[1]
    assert not open_corpus(drawn=0, training_queries="others")[1], "test queries of the user's own"


def test_test_queries_of_another_number_than_in_the_training(open_corpus):
    config = {"dataset": {"num_test": 30}}
    corpus, warned = open_corpus("dataset.num_test=20", config=config, training_queries="others")
    assert len(corpus.test) == 20
    assert len(warned) == 1
    assert (
        "If the data are the same, give dataset.num_test=30 as in its training; otherwise give test quer" in warned[0]
    )
    trained, _ = open_corpus("dataset.num_test=30", config=config, training_queries="others")
    assert trained.training_hash != corpus.training_hash
    assert not open_corpus("dataset.num_test=30", config=config, training_queries=trained.training_hash)[1]
