"""Renée and ELMO from end to end: a real Trainer, a tiny random encoder, toy data."""

import json
import logging
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

import prime_xmc
from prime_xmc import report
from prime_xmc.assemble import make_data, make_module
from prime_xmc.data.raw import read_records
from prime_xmc.evaluate import run as evaluate
from prime_xmc.evaluation.metrics import METRICS
from prime_xmc.evaluation.predictions import load_predictions
from prime_xmc.export.predictor import Predictor
from prime_xmc.serving.served_model import load_served
from prime_xmc.stages import train_prototypes as run
from prime_xmc.training.interruption import Interrupted
from prime_xmc.training.one_vs_all_module import OneVsAllModule

EPOCHS = 16
# The model's size is with its settings, which name folders and checkpoints.
COST = ("train/seconds", "train/cpu_seconds", "train/queries_per_second", "seconds/", "predict/", "peak_rss_bytes")
COST = (*COST, "model_bytes")


@pytest.fixture(scope="module")
def overrides(toy_settings, tmp_path_factory) -> list[str]:
    return [
        *(setting for setting in toy_settings if not setting.startswith(("classify", "neighbours", "lexical"))),
        "model=renee",
        "model.dropout=0.2",
        "sampling.batch_size=32",
        # embeddings of the tiny encoder have nearly one direction: the first steps of the classifiers are large in it,
        # and a faster encoder follows them until all texts are alike
        "optimizer.lr=5e-4",
        "optimizer.classifier_lr=0.01",
        f"trainer.max_epochs={EPOCHS}",
        "trainer.precision=32-true",
        "callbacks.progress=null",
        "trainer.log_every_n_steps=2",
        f"cache_dir={tmp_path_factory.mktemp('cache')}",
    ]


@pytest.fixture(scope="module")
def train(overrides, compose):
    """Trains in a folder: train(folder, "seed=1") returns the metrics."""
    return lambda folder, *more: run(compose(*overrides, f"run_dir={folder}", *more)).metrics


@pytest.fixture(scope="module")
def complete(train, tmp_path_factory) -> tuple[Path, dict]:
    """A whole run of Renée: its folder and its metrics."""
    folder = tmp_path_factory.mktemp("renee")
    return folder, train(folder)


def assert_same_model(run_dir: Path, other: Path) -> None:
    for name in ("prototypes.safetensors", "model.safetensors"):
        ended, wanted = (load_file(folder / "model" / name) for folder in (run_dir, other))
        assert all(torch.equal(ended[key], wanted[key]) for key in wanted)


def results(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if not name.startswith(COST)}


@pytest.fixture
def queries(toy_dataset) -> list[str]:
    return [record.text for record in read_records(toy_dataset / "tst.json.gz", ["title"], 48)]


def test_the_run_folder_is_that_of_any_training(complete):
    run_dir, metrics = complete
    names = {path.name for path in run_dir.iterdir()}
    assert {"metrics.json", "metrics.csv", "checkpoints", "model", "predictions.npz", "csv"} <= names
    assert json.loads((run_dir / "metrics.json").read_text()) == metrics
    for stage in ("val", "test"):
        assert all(0 <= metrics[f"{stage}/{name}"] <= 1 for name in METRICS)
    assert metrics["train/epochs"] == EPOCHS
    assert metrics["num_parameters"] > 48 * 32


@pytest.mark.parametrize("model", ["renee", "elmo"])
def test_training_beats_chance_and_the_untrained_classifiers(complete, train, tmp_path, model):
    untrained = train(tmp_path / "untrained", "optimizer.lr=1e-12", "optimizer.classifier_lr=1e-12")
    if model == "renee":
        metrics = complete[1]
    else:
        metrics = train(tmp_path / "elmo", "model=elmo", "model.dropout=0.2", "optimizer.classifier_lr=0.1")
        vectors = load_file(tmp_path / "elmo" / "model" / "prototypes.safetensors")["prototypes"]
        assert torch.equal(vectors.bfloat16().float(), vectors)
    assert metrics["test/P@1"] > 5 * 2 / 48  # about two labels a query, of 48
    assert metrics["test/P@1"] > untrained["test/P@1"] + 0.1


def test_the_model_ranks_by_inner_products_as_the_run_did(complete, queries):
    run_dir, _ = complete
    indices, scores = load_predictions(run_dir / "predictions.npz")
    model = prime_xmc.load(run_dir / "model")
    assert model.scorer == "theta"
    query_emb = model.encode(queries)
    assert (query_emb.norm(dim=1) - 1).abs().min() > 0.1
    weights = load_file(run_dir / "model" / "prototypes.safetensors")["prototypes"]
    expected, ids = (query_emb @ weights.T).sort(dim=1, descending=True)
    row = 1  # every tenth query has a label filtered
    np.testing.assert_allclose(scores[row, :48], expected[row], atol=1e-4)
    assert (indices[row, 48:] == -1).all()
    (prediction,) = model.predict([queries[row]], top_k=3)
    assert [label.id for label in prediction.labels] == ids[row, :3].tolist()
    assert prediction.labels[0].score == pytest.approx(expected[row, 0].item(), abs=1e-4)


def test_the_model_folder_says_what_it_is(complete, queries, caplog):
    run_dir, _ = complete
    folder = run_dir / "model"
    names = {path.name for path in folder.iterdir()}
    assert not {"centroids.safetensors", "prototype_network.safetensors", "2_Normalize"} & names
    assert load_file(folder / "prototypes.safetensors").keys() == {"prototypes"}
    config = json.loads((folder / "prime_config.json").read_text())
    assert config["encoder"]["normalize"] is False
    assert config["prototypes"] == {"kind": "one_vs_all", "num_labels": 48, "dim": 32}
    about = json.loads((folder / "config_sentence_transformers.json").read_text())
    assert about["similarity_fn_name"] == "dot"
    card = (folder / "README.md").read_text()
    assert "# One-vs-all classifiers on custom" in card
    assert "A label's score is the inner product of query and classifier." in card
    assert "unit length" not in card
    with caplog.at_level(logging.WARNING):
        model = prime_xmc.load(folder)
    assert not caplog.records
    labels = model.predict(queries[:1], calibrate=True)[0].labels
    assert all(0 <= label.probability <= 1 for label in labels)
    with pytest.raises(ValueError, match="by one-vs-all classifiers alone, which are made of nothing"):
        model.predict(queries[:1], explain=True)
    with pytest.raises(ValueError, match="its labels cannot be changed"):
        model.remove_labels(["l7"])


def test_evaluate_and_report_take_it(complete, overrides, compose, toy_dataset, tmp_path):
    run_dir, metrics = complete
    cache = next(setting for setting in overrides if setting.startswith("cache_dir"))
    data = ["dataset=custom", f"dataset.dir={toy_dataset}", cache]
    found = evaluate(compose(f"model.dir={run_dir}/model", "device=cpu", *data, name="evaluate"))
    assert found == pytest.approx({name: metrics[name] for name in found})
    arguments = [f"runs={run_dir}", f"output={tmp_path}/report", cache, "num_resamples=10"]
    report.run(compose(*arguments, name="report"), command="the command")
    assert f"{100 * metrics['test/P@1']:.2f}" in (tmp_path / "report" / "index.html").read_text()


def test_an_interrupted_run_ends_as_the_uninterrupted_one(complete, train, tmp_path, monkeypatch):
    run_dir, metrics = complete
    original = OneVsAllModule.on_train_epoch_start

    def fail(self):
        original(self)
        if self.trainer.current_epoch == 3:
            raise RuntimeError("the machine is needed")

    with monkeypatch.context() as patch:
        patch.setattr(OneVsAllModule, "on_train_epoch_start", fail)
        with pytest.raises(RuntimeError, match="the machine is needed"):
            train(tmp_path)
    continued = train(tmp_path, f"ckpt_path='{tmp_path / 'checkpoints' / 'last.ckpt'}'")
    assert results(continued) == results(metrics)
    assert_same_model(tmp_path, run_dir)


@pytest.mark.parametrize("model", ["renee", "elmo"])
def test_a_run_that_ended_within_an_epoch_ends_as_the_uninterrupted_one(model, train, tmp_path, monkeypatch):
    """With momentum, with rounding at random, and with label rows in the batches that are left."""
    settings = [f"model={model}", "model.dropout=0.2", "trainer.max_epochs=2"]
    whole = train(tmp_path / "whole", *settings)
    original = OneVsAllModule.on_train_batch_start

    def end(self, batch, batch_idx):
        original(self, batch, batch_idx)
        if self.global_step == 10:  # of 16
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(OneVsAllModule, "on_train_batch_start", end)
        with pytest.raises(Interrupted):
            train(tmp_path / "run", *settings)
    continued = train(tmp_path / "run", *settings, f"ckpt_path='{tmp_path}/run/checkpoints/last.ckpt'")
    assert results(continued) == results(whole)
    assert_same_model(tmp_path / "run", tmp_path / "whole")


def test_label_rows_change_neither_validation_nor_propensities(train, overrides, compose, tmp_path):
    with_rows, without = (
        make_data(compose(*overrides, f"sampling.label_rows={on}", f"run_dir={tmp_path}")) for on in ("true", "false")
    )
    np.testing.assert_array_equal(with_rows.validation_ids, without.validation_ids)
    np.testing.assert_array_equal(with_rows.sampler.query_ids, without.sampler.query_ids)
    np.testing.assert_array_equal(with_rows.inverse_propensity, without.inverse_propensity)
    assert (len(with_rows.sampler), len(without.sampler)) == (8, 7)  # 200 queries and 48 labels in batches of 32


def test_it_starts_from_the_encoder_of_another_run(complete, overrides, compose, tmp_path):
    run_dir, _ = complete
    config = compose(*overrides, f"encoder.source={run_dir}/model", f"run_dir={tmp_path}")
    module = make_module(config, make_data(config))
    trained = load_file(run_dir / "model" / "model.safetensors")
    started = module.encoder.backbone.state_dict()
    assert all(torch.equal(started[name], tensor) for name, tensor in trained.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["classify=true"], "encoder.normalize=false: classify need unit vectors; give classify=false"),
        (["sampling.num_positives=1"], "give sampling.num_positives=0"),
        (["index=hnsw"], "index=hnsw is for unit vectors, and one-vs-all classifiers are none"),
    ],
)
def test_settings_that_do_not_belong_together(train, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, *settings)


def test_prototypes_need_labels_that_are_drawn(toy_settings, compose, tmp_path):
    with pytest.raises(ValueError, match="prototypes are trained on labels drawn for queries; give 1 or more"):
        run(compose(*toy_settings, "sampling.num_positives=0", f"run_dir={tmp_path}"))


def test_elmo_differs_from_renee_in_table_and_optimizer(compose):
    renee, elmo = (
        OmegaConf.to_container(compose(f"model={model}", "run_dir=run"), resolve=True) for model in ("renee", "elmo")
    )
    assert (renee["model"].pop("dtype"), elmo["model"].pop("dtype")) == ("float32", "bfloat16")
    makes = [config.pop("optimizer")["make"] for config in (renee, elmo)]
    assert [make["sparse"]["_target_"] for make in makes] == [
        "torch.optim.SGD",
        "prime_xmc.training.fused_sgd.FusedSGD",
    ]
    assert makes[0]["dense"] == makes[1]["dense"]
    assert elmo == renee


def test_it_is_served_without_explanations_unless_they_are_asked_for(complete):
    model = complete[0] / "model"

    def load(folder, scorer):
        return Predictor.load(folder, scorer=scorer)

    assert not load_served(model, load, ["auto"]).explains
    with pytest.raises(ValueError, match=r"made of nothing that could explain a score: leave explain=true out"):
        load_served(model, load, ["auto"], explain=True)
