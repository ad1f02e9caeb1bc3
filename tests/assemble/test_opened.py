"""Data that are opened by a configuration."""

import logging

import pytest

from prime_xmc.assemble import announce, fit_second_stage, fit_to_data, make_data, raw_files, raw_test_queries
from prime_xmc.data.corpus import Corpus


class TestData:
    def test_everything_follows_the_data_and_is_said(self, small, caplog):
        caplog.set_level(logging.INFO)
        config = small()
        data = make_data(config)
        assert (len(data.train_ids), len(data.validation_ids), len(data.corpus.test)) == (16, 0, 4)
        assert data.batch_size == 16
        assert "dataset.num_free_vectors=1 (a power of two" in caplog.text
        assert "16 training queries are too few to hold some out" in caplog.text
        assert "there is no test file: 4 of the 20 queries of trn.json" in caplog.text
        fitted = fit_to_data(config, data.corpus)
        assert (fitted.dataset.num_validation, fitted.model.num_free_vectors) == (0, 1)
        assert (fitted.sampling.batch_size, fitted.sampling.clusters.initial_size) == (16, 1)

    def test_the_data_are_prepared_once(self, small, monkeypatch):
        data = make_data(small())
        monkeypatch.setattr("prime_xmc.data.datamodule.prepare", lambda *_, **__: pytest.fail("prepared again"))
        data.prepare_data()
        data.setup("test")

    def test_a_hold_out_of_more_than_half_is_warned_of(self, small, caplog):
        make_data(small("dataset.num_validation=12"))
        assert "holds out more than half of the 16 training queries" in caplog.text

    def test_raw_queries_of_a_test_split_that_was_split_off(self, small):
        config = small()
        corpus: Corpus = make_data(config).corpus
        assert [record.title for record in raw_test_queries(config, corpus)] == [
            f"red cat {row}" for row in corpus.test_rows
        ]

    def test_data_without_a_label_on_any_query_are_refused(self, small, tmp_path):
        config = small()
        (tmp_path / "trn.json").write_text('{"title": "a", "target_ind": []}\n' * 20)
        with pytest.raises(ValueError, match=r"custom: no training query has a label.*prime_xmc\.audit"):
            make_data(config)

    def test_a_missing_test_file_may_be_refused(self, small):
        with pytest.raises(FileNotFoundError, match=r"tst\.json \(or \.json\.gz\) not found"):
            make_data(small("dataset.num_test=0"))

    def test_benchmarks_need_their_test_file(self, compose):
        assert raw_files(compose("dataset=amazontitles131k", "run_dir=run").dataset).num_test == 0

    def test_a_field_by_its_name(self, small):
        assert raw_files(small("dataset.fields=text").dataset).fields == ("text",)
        for empty in ("[]", "null"):
            with pytest.raises(ValueError, match=r"dataset\.fields is empty"):
                raw_files(small(f"dataset.fields={empty}").dataset)

    def test_the_second_stage_holds_out_what_the_first_did(self, small, compose):
        data = make_data(small("dataset.num_validation=3"))
        config = compose("dataset=custom", "dataset.dir=d", "negatives=all", "model.dir=m", name="classify")
        fitted = fit_second_stage(config, data)
        assert fitted.dataset.num_validation == 3
        assert fitted.sampling.clusters.initial_size == 4


@pytest.mark.parametrize(("accelerator", "there", "said"), [("cpu", True, 1), ("cpu", False, 0), ("auto", True, 0)])
def test_a_gpu_that_is_not_used_is_named(small, monkeypatch, caplog, accelerator, there, said):
    monkeypatch.setattr("prime_xmc.assemble.opened.CUDAAccelerator.is_available", lambda: there)
    config = small(f"trainer.accelerator={accelerator}")
    data = make_data(config)
    with caplog.at_level(logging.INFO, logger="prime_xmc"):
        announce(fit_to_data(config, data.corpus), data)
    assert sum("trainer=gpu trains on it" in message for message in caplog.messages) == said
