"""The data of a trained model, with the queries that its training held out."""

import json
import logging
import shutil

import numpy as np
import pytest

from prime_xmc.assemble import load_predictor, make_classifier_data
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
