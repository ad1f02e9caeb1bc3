"""What a configuration leaves to the size of the data."""

import json
import logging

import pytest
from omegaconf import OmegaConf

from prime_xmc.assemble import (
    announce,
    check_model,
    fit_second_stage,
    fit_to_data,
    fit_to_size,
    make_data,
    make_trainer,
    raw_files,
    raw_test_queries,
)
from prime_xmc.data.corpus import Corpus
from prime_xmc.training.sweeps import fingerprint

KEYS = ("dataset.num_validation", "model.num_free_vectors", "sampling.batch_size", "sampling.clusters.initial_size")


@pytest.fixture
def custom(compose):
    return lambda *overrides, name="train": compose("dataset=custom", "dataset.dir=d", *overrides, name=name)


@pytest.fixture
def small(compose, tiny_encoder_dir, tmp_path):
    """Composes the configuration for data without a test file: 20 queries, 3 labels."""
    rows = [{"title": f"red cat {row}", "target_ind": [row % 3]} for row in range(20)]
    for name, lines in (("trn", rows), ("lbl", [{"title": title} for title in ("red", "green", "blue")])):
        (tmp_path / f"{name}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    paths = [f"dataset.dir={tmp_path}", f"cache_dir={tmp_path}/cache", f"encoder.source={tiny_encoder_dir}"]
    return lambda *overrides: compose("dataset=custom", "encoder=local", *paths, *overrides)


def numbers(config):
    return [OmegaConf.select(config, key) for key in KEYS]


class TestFit:
    def test_numbers_take_the_place_of_null(self, custom):
        config = custom()
        assert numbers(config) == [None] * 4
        fitted = fit_to_size(config, 1200, 30)
        assert numbers(fitted) == [120, 4, 64, 4]
        assert numbers(config) == [None] * 4, "the original stays"
        assert numbers(fit_to_size(fitted, 10**6, 10**6)) == [120, 4, 64, 4], "numbers stay"
        assert fitted.callbacks.clusters.initial_size == 4

    def test_prime_lite_is_another_configuration_before_the_data_are_known(self, custom):
        """A sweep would otherwise skip its job, and a report take its run for a repetition."""
        assert fingerprint(custom("model=prime")) != fingerprint(custom("model=prime_lite"))

    def test_prime_lite_takes_half_the_batch(self, custom):
        fitted = fit_to_size(custom("model=prime_lite"), 1200, 30)
        assert (fitted.dataset.batch_size, fitted.sampling.batch_size) == (64, 32)

    @pytest.mark.parametrize("dataset", ["debian18k", "go15k", "amazontitles131k"])
    def test_data_sets_with_numbers_keep_them(self, compose, dataset):
        config = compose(f"dataset={dataset}")
        assert fit_to_size(config, 200_000, 200_000) == config

    def test_a_number_in_another_group_goes_first_and_is_recorded_in_both(self, custom):
        config = custom("sampling.batch_size=32", "model.num_free_vectors=7")
        fitted = fit_to_size(config, 1200, 30)
        assert numbers(fitted) == [120, 7, 32, 2]
        assert (fitted.dataset.batch_size, fitted.dataset.num_free_vectors) == (32, 7)

    def test_null_in_another_group(self, custom):
        assert fit_to_size(custom("sampling.batch_size=null"), 1200, 30).sampling.batch_size == 64

    def test_synthetic_data(self, compose):
        fitted = fit_to_size(compose("dataset=synthetic"), 33_000, 20_000)
        assert numbers(fitted) == [1000, 4096, 512, 8]

    def test_the_key_that_was_given_is_named(self, custom):
        for group in ("dataset", "model"):
            with pytest.raises(ValueError, match=rf"^expected {group}\.num_free_vectors between 1 and the 30 labels"):
                fit_to_size(custom(f"{group}.num_free_vectors=4096"), 1200, 30)

    def test_one_message_names_all_that_do_not_fit(self, custom):
        config = custom("dataset.num_validation=1000", "dataset.num_free_vectors=4096")
        with pytest.raises(ValueError, match=r"2 settings do not fit custom, which has 120 .* 30 labels") as error:
            fit_to_size(config, 120, 30)
        assert "\n- expected dataset.num_validation below the 120 training queries, got 1000" in str(error.value)
        assert "\n- expected dataset.num_free_vectors between 1 and the 30 labels, got 4096" in str(error.value)


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
        assert numbers(fit_to_data(config, data.corpus)) == [0, 1, 16, 1]

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
    monkeypatch.setattr("prime_xmc.assemble.CUDAAccelerator.is_available", lambda: there)
    config = small(f"trainer.accelerator={accelerator}")
    data = make_data(config)
    with caplog.at_level(logging.INFO, logger="prime_xmc"):
        announce(fit_to_data(config, data.corpus), data)
    assert sum("trainer=gpu trains on it" in message for message in caplog.messages) == said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["sampling.mined.num_drawn=0"], "between 1 and the sampling.mined.top_k=200 labels"),
        (["sampling.mined.top_k=5", "sampling.mined.num_drawn=6"], "top_k=5 labels that are searched .*, got 6"),
        (["callbacks.mined=null"], "first_epoch=1 wants labels to be searched, and nothing searches them"),
        (["sampling.mined.alone=true", "sampling.mined.first_epoch=null"], "alone=true, and no labels are searched"),
        (["debug=overfit"], "overfit_batches=2 trains on the same .*: give sampling.mined.first_epoch=null"),
        (["sampling.mined.alone=true", "sampling.label_rows=true"], "give sampling.label_rows=false"),
        (
            ["sampling.mined.alone=true", "sampling.loss_positives=all", "sampling.memory_labels=9"],
            "sampling.memory_labels=9 adds labels .*: give sampling.memory_labels=0",
        ),
    ],
)
def test_settings_of_mined_labels_that_would_do_nothing(custom, settings, message):
    with pytest.raises(ValueError, match=message):
        check_model(custom("model=ance", *settings))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("+loss.temperature=0.3", r"^one-vs-all .* has no settings: leave out what sets loss"),
        ("sampling.memory_labels=5", r"^sampling\.memory_labels=5: one-vs-all .*; give sampling\.memory_labels=0"),
        ("sampling.more_queries_per_label=3", r"more_queries_per_label=3: .*; give sampling\.more_queries_per_label=0"),
        ("sampling.batch_labels=all", r"batch_labels=all: .*; give sampling\.batch_labels=drawn"),
    ],
)
def test_settings_of_prototypes_for_one_vs_all_classifiers_are_refused(custom, setting, said):
    with pytest.raises(ValueError, match=said):
        check_model(custom("model=renee", setting))


@pytest.mark.parametrize("model", ["renee", "elmo"])
def test_clusters_for_one_vs_all_classifiers_are_refused(custom, model):
    check_model(custom(f"model={model}"))
    with pytest.raises(ValueError, match=r"sampling\.clusters\.first_epoch=0: one-vs-all .* leave sampling=random"):
        check_model(custom(f"model={model}", "sampling.clusters.first_epoch=0"))


@pytest.mark.parametrize("setting", ["model.centroid_update=frozen", "model.momentum=0"])
def test_a_query_is_not_left_out_of_a_centroid_that_is_not_a_running_mean(custom, setting):
    with pytest.raises(ValueError, match=rf"^{setting} and sampling\.leave_one_out=0\.5: .* give sampling\.leave_one"):
        check_model(custom(setting))
    check_model(custom(setting, "sampling.leave_one_out=0"))
    check_model(custom(setting, "ckpt_path=begun/before.ckpt"))
    check_model(custom(setting, "model.sources=[text,free_vector]"))


def test_ance_to_the_letter(custom):
    check_model(custom("model=ance", "loss=two_way", "sampling.mined.alone=true"))


@pytest.mark.parametrize("name", ["train", "classify"])
def test_a_trainer_without_checkpoints_has_no_callback_for_them(custom, name, tmp_path):
    """In version 0.1.0, that was the default of the second stage."""
    given = [f"run_dir={tmp_path}", "logger=null", *(["model.dir=m"] if name == "classify" else [])]
    assert make_trainer(custom(*given, name=name)).checkpoint_callbacks
    assert not make_trainer(custom(*given, "trainer.enable_checkpointing=false", name=name)).checkpoint_callbacks
