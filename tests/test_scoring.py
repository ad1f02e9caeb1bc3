"""What follows the prototypes within a run, from end to end: an untrained model of the toy data set."""

import gzip
import itertools
import json
import os
import re
import shutil
import signal

import hydra
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from omegaconf import OmegaConf
from safetensors.torch import load_file

import prime_xmc
from prime_xmc.evaluate import run as evaluate
from prime_xmc.evaluation.fusion import relative_value
from prime_xmc.evaluation.metrics import METRICS, hits
from prime_xmc.evaluation.predictions import load_predictions
from prime_xmc.export.calibration import read_calibration
from prime_xmc.export.ensemble import read_ensemble
from prime_xmc.export.scorers import encoder_digest
from prime_xmc.scoring import LexicalSettings, check_ensemble, ensemble_settings, lexical_settings
from prime_xmc.stages import train_prototypes as run
from prime_xmc.training.classifier_module import ClassifierModule
from prime_xmc.training.module import PrimeModule

SCORERS = ("W", "neighbours", "lexical", "ensemble")
QUICK = '["trainer.max_epochs=2","optimizer.lr=3e-2","callbacks.progress=null","trainer.log_every_n_steps=1"]'


@pytest.fixture(scope="module")
def overrides(toy_settings, tmp_path_factory) -> list[str]:
    return [
        *toy_settings,
        "sampling.batch_size=32",
        "trainer.max_epochs=1",
        "trainer.precision=32-true",
        "dataset.validate_every=1",
        "callbacks.progress=null",
        "trainer.log_every_n_steps=2",
        f"cache_dir={tmp_path_factory.mktemp('cache')}",
        "classify=true",
        f"classify_settings={QUICK}",
        "neighbours={k:5,temperature:0.05}",
        "lexical={pairs:true}",
    ]


@pytest.fixture(scope="module")
def train(overrides, compose):
    return lambda folder, *more: run(compose(*overrides, *more, f"run_dir={folder}"))


@pytest.fixture(scope="module")
def complete(train, tmp_path_factory):
    """A run with all scorers: its folder and what it made."""
    folder = tmp_path_factory.mktemp("complete")
    return folder, train(folder)


def test_each_scorer_has_its_metrics(complete):
    folder, made = complete
    assert json.loads((folder / "metrics.json").read_text()) == made.metrics
    for stage in ("val", "test"):
        for name in METRICS:
            assert f"{stage}/{name}" in made.metrics
            assert all(0 <= made.metrics[f"{stage}/{scorer}/{name}"] <= 1 for scorer in SCORERS)
    assert made.metrics["classify/epochs"] == 2
    second = json.loads((folder / "classify" / "metrics.json").read_text())
    assert second["test/W/P@1"] == made.metrics["test/W/P@1"]
    assert json.loads((folder / "model" / "metrics.json").read_text())["test/W/P@1"] == second["test/W/P@1"]


def test_the_ensemble_is_no_worse_than_the_prototypes_on_the_queries_it_was_chosen_on(complete):
    folder, made = complete
    ensemble = read_ensemble(folder / "model", encoder_digest(folder / "model"))
    assert ensemble.num_validation == len(made.data.validation_ids) == 40
    own, chosen = ensemble.validation["theta"], ensemble.validation["ensemble"]
    assert own["P@1"] == pytest.approx(made.metrics["val/P@1"], abs=0.03)  # by the rounded embeddings of the queries
    criterion = {name: own[name] for name in ensemble.criterion}
    assert relative_value(chosen, criterion) >= 1 - 1e-9
    assert chosen == {name: made.metrics[f"val/ensemble/{name}"] for name in METRICS}


def test_validation_queries_do_not_vote_while_weights_are_chosen_and_do_afterwards(
    complete, train, tmp_path, monkeypatch
):
    folder, made = complete
    voting = []
    original = prime_xmc.scoring.voting
    monkeypatch.setattr(
        "prime_xmc.scoring.voting", lambda queries, **k: voting.append(queries) or original(queries, **k)
    )
    again = train(tmp_path, f"ckpt_path={folder}/checkpoints/last.ckpt", "classify=false")
    (held_out,) = voting
    positives = made.data.corpus.train.positives
    assert np.array_equal(held_out.labels.values, positives.take(made.data.train_ids).values)
    written = load_file(tmp_path / "model" / "neighbours" / "neighbours.safetensors")
    assert np.array_equal(written["label_ids"].numpy(), positives.values)
    assert len(written["query_emb"]) == 240
    assert again.metrics["val/lexical/P@1"] == made.metrics["val/lexical/P@1"]
    assert again.metrics["val/neighbours/P@1"] == made.metrics["val/neighbours/P@1"]
    assert not [name for name in again.metrics if "/W/" in name]
    assert not (tmp_path / "classify").exists()


@pytest.mark.parametrize("scorer", ["theta", *SCORERS])
def test_the_model_predicts_what_was_measured(complete, compose, overrides, scorer):
    folder, made = complete
    data = [each for each in overrides if each.startswith(("dataset=", "dataset.dir", "cache_dir"))]
    found = evaluate(compose(*data, f"model.dir={folder}/model", f"scorer={scorer}", "device=cpu", name="evaluate"))
    prefix = "test/" if scorer == "theta" else f"test/{scorer}/"
    assert found == pytest.approx({f"test/{name}": made.metrics[f"{prefix}{name}"] for name in METRICS}, abs=1e-6)
    if scorer != "theta":
        path = folder / f"predictions_{scorer}.npz"
        of_file = evaluate(compose(*data, f"predictions={path}", name="evaluate"))
        assert of_file == pytest.approx(found, abs=1e-6)
    assert prime_xmc.load(folder / "model").scorer == "ensemble"


def test_validation_queries_are_in_no_lexical_vector_while_weights_are_chosen_and_are_afterwards(
    train, tmp_path, monkeypatch, capsys
):
    built = []
    original = prime_xmc.scoring.build_postings
    monkeypatch.setattr(
        "prime_xmc.scoring.build_postings", lambda queries, *a, **k: built.append(queries) or original(queries, *a, **k)
    )
    made = train(tmp_path, "classify=false", "neighbours=null")
    train_split = made.data.corpus.train
    first, last = built
    assert np.array_equal(first.values, train_split.tokens.take(made.data.train_ids).values)
    assert np.array_equal(last.values, train_split.tokens.values)
    written = load_file(tmp_path / "model" / "lexical" / "lexical.safetensors")
    special = json.loads((tmp_path / "model" / "lexical" / "lexical.json").read_text())["special_ids"]
    assert {101, 102} <= set(special)
    assert not set(special) & set(written["terms"].tolist())
    first_right = load_predictions(tmp_path / "predictions_ensemble.npz")[0][:, 0]
    share = np.mean([first in row for first, row in zip(first_right, made.data.corpus.test.positives, strict=True)])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"In words, of 60 test texts: the first answer is right for {share:.0%}" in printed
    assert read_ensemble(tmp_path / "model", encoder_digest(tmp_path / "model")).lexical


def test_every_scorer_gets_probabilities(complete, toy_dataset):
    folder, made = complete
    model = folder / "model"
    calibration = read_calibration(model, encoder_digest(model))
    assert calibration.fitted_on == "40 validation queries"
    assert calibration.default == "ensemble"
    assert set(calibration.scorers) <= {"theta", *SCORERS}
    with gzip.open(toy_dataset / "tst.json.gz") as lines:
        titles = [json.loads(line)["title"] for line in lines]
    for scorer, fitted in calibration.scorers.items():
        assert [(name, each.num_queries) for name, each in fitted.held.items()] == [("validation", 40), ("test", 60)]
        (first, *_) = prime_xmc.load(model, scorer=scorer).predict(titles[:1], calibrate=True)
        assert all(0 < label.probability < 1 for label in first.labels)
    held = calibration.scorers["ensemble"].held["test"]
    # the figures of the test split are those of its predictions
    indices, scores = load_predictions(folder / "predictions_ensemble.npz")
    given = scores >= calibration.scorers["ensemble"].threshold
    right = hits(indices, made.data.corpus.test.positives)
    assert held.precision == pytest.approx(right[given].mean(), abs=1e-6)
    assert "## Probabilities" in (model / "README.md").read_text()


def test_training_queries_are_named_by_row_and_without_text(complete):
    written = load_file(complete[0] / "model" / "neighbours" / "neighbours.safetensors")
    assert written["rows"].tolist() == list(range(240))
    assert not (complete[0] / "model" / "neighbours" / "texts.jsonl").exists()


def test_training_texts_where_they_are_asked_for(complete, train, tmp_path, toy_dataset):
    """The test split is split off the training file, so that rows are not those of the training queries."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("trn.json.gz", "lbl.json.gz"):
        shutil.copy(toy_dataset / name, data)
    given = f"dataset.dir={data}", "dataset.num_test=30", "classify=false", "lexical=null", "export.training_texts=true"
    made = train(tmp_path / "run", *given)
    with gzip.open(data / "trn.json.gz") as lines:
        titles = [json.loads(line)["title"] for line in lines]
    model = prime_xmc.load(tmp_path / "run" / "model", scorer="neighbours")
    left_out = made.data.corpus.test_rows
    asked = [titles[row] for row in range(len(titles)) if row not in left_out][:20]
    for title, prediction in zip(asked, model.predict(asked, top_k=1, explain=True), strict=True):
        nearest = prediction.labels[0].why.queries[0]
        assert titles[nearest.row] == nearest.text
        assert nearest.row not in left_out
        assert (nearest.text == title) == (nearest.similarity > 0.999)


def test_neighbours_say_nothing_of_labels_that_none_of_them_has(complete):
    ids, scores = load_predictions(complete[0] / "predictions_neighbours.npz")
    assert (ids == -1).any()
    assert np.array_equal(ids == -1, scores == -np.inf)


def test_without_validation_queries_the_weights_are_those_of_the_configuration(train, tmp_path, capsys):
    weights = ["ensemble.default.W=0.25", "ensemble.default.neighbours=0.2", "ensemble.default.lexical=0.3"]
    made = train(tmp_path, "dataset.num_validation=0", "test=false", *weights)
    ensemble = read_ensemble(tmp_path / "model", encoder_digest(tmp_path / "model"))
    assert (ensemble.weights, ensemble.num_validation) == ((0.75, 0.25, 0.2, 0.3), 0)
    printed = " ".join(capsys.readouterr().out.split())
    assert "ensemble: 0.75 theta + 0.25 W + 0.2 neighbours + 0.3 lexical, weights of the configuration" in printed
    assert not [name for name in made.metrics if name.startswith(("val/", "test/"))]


def test_a_signal_in_the_second_stage_says_how_to_continue(train, tmp_path, monkeypatch, capsys):
    step = ClassifierModule.training_step

    def training_step(self, batch, batch_idx):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierModule, "training_step", training_step)
        with pytest.raises(SystemExit) as ended:
            train(tmp_path)
    assert ended.value.code == 143
    assert "Training is saved" in capsys.readouterr().err
    assert not (tmp_path / "metrics.json").exists()
    assert (tmp_path / "classify" / "checkpoints" / "last.ckpt").is_file(), "saved after the step"
    assert prime_xmc.load(tmp_path / "model").scorer == "theta"


PARTS = ("metrics.json", "predictions.npz", *(f"predictions_{scorer}.npz" for scorer in SCORERS))


@pytest.mark.parametrize(
    ("owner", "name", "nth", "made_again"),
    [
        (ClassifierModule, "on_train_epoch_start", 2, ["train", "W", "neighbours", "lexical", "ensemble"]),
        (prime_xmc.stages.second_stage, "save_classifiers", 1, ["train", "W", "neighbours", "lexical", "ensemble"]),
        (prime_xmc.scoring, "add_scorers", 1, ["W", "neighbours", "lexical", "ensemble"]),
        (prime_xmc.scoring, "load_searcher", 3, ["lexical", "ensemble"]),
    ],
)
def test_a_run_that_was_killed_in_a_later_stage_goes_on_there(
    complete, train, tmp_path, monkeypatch, owner, name, nth, made_again
):
    """With the same files in the end, without the first stage and its test, and without what is finished."""
    original, count = getattr(owner, name), itertools.count(1)
    steps, step = [], ClassifierModule.training_step

    def killed(*arguments, **keywords):
        if next(count) == nth:
            raise KilledError
        return original(*arguments, **keywords)

    def counted(module, *arguments):
        steps.append(module.global_step)
        return step(module, *arguments)

    monkeypatch.setattr(ClassifierModule, "training_step", counted)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(KilledError):
            train(tmp_path)
    made, before = [], len(steps)
    load_searcher, train_classifiers = prime_xmc.scoring.load_searcher, prime_xmc.stages.later_stages.fit_classifiers

    def fail(*_, **__):
        pytest.fail("the first stage is done")

    def searcher(*arguments, scorer, **keywords):
        made.append(scorer)
        return load_searcher(*arguments, scorer=scorer, **keywords)

    def classifiers(*arguments, **keywords):
        made.append("train")
        return train_classifiers(*arguments, **keywords)

    monkeypatch.setattr(Trainer, "test", fail)
    monkeypatch.setattr(PrimeModule, "training_step", fail)
    monkeypatch.setattr("prime_xmc.scoring.load_searcher", searcher)
    monkeypatch.setattr("prime_xmc.stages.later_stages.fit_classifiers", classifiers)
    train(tmp_path, f"ckpt_path={tmp_path}/checkpoints/last.ckpt")
    folder, _ = complete
    assert made == made_again
    in_second_epoch = name == "on_train_epoch_start"
    assert steps == list(range(2 * before if in_second_epoch else before)), "no step was made twice"
    assert same(tmp_path / "metrics.json") == same(folder / "metrics.json")
    assert same(tmp_path / "classify" / "metrics.json") == same(folder / "classify" / "metrics.json")
    for path in (*PARTS[1:], "csv/metrics.csv", "classify/csv/metrics.csv", "classify/metrics.csv"):
        assert (tmp_path / path).read_bytes() == (folder / path).read_bytes(), path
    for path in ("classifiers/classifiers", "neighbours/neighbours", "lexical/lexical", "prototypes"):
        found, wanted = (load_file(each / "model" / f"{path}.safetensors") for each in (tmp_path, folder))
        assert all(torch.equal(found[key], wanted[key]) for key in wanted), path
    assert files(tmp_path) == files(folder)


def same(path):
    """Return the metrics of a run that are equal in equal runs."""
    cost = ("seconds", "passes", "queries_per_second", "peak_rss", "git_commit")
    return {name: value for name, value in json.loads(path.read_text()).items() if not any(c in name for c in cost)}


def files(folder):
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return {re.sub(r"-[0-9a-f]{8}\.banks", "-*.banks", name) for name in names if not name.startswith(".hydra")}


class KilledError(BaseException):
    """Ends a run at once, without what it does when it is asked to end."""


def test_other_settings_of_the_second_stage_start_it_anew(complete, train, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("prime_xmc.stages.second_stage.save_classifiers", killed)
        with pytest.raises(KilledError):
            train(tmp_path)
    assert (tmp_path / "classify" / "checkpoints" / "last.ckpt").is_file()
    shorter = QUICK.replace("max_epochs=2", "max_epochs=1").replace("lr=3e-2", "lr=1e-2")
    made = train(tmp_path, f"classify_settings={shorter}", f"ckpt_path={tmp_path}/checkpoints/last.ckpt")
    assert made.metrics["classify/epochs"] == 1
    assert not (tmp_path / "classify" / "checkpoints").exists()
    assert made.metrics["test/P@1"] == complete[1].metrics["test/P@1"]
    assert made.metrics["test/W/P@1"] == json.loads((tmp_path / "classify" / "metrics.json").read_text())["test/W/P@1"]


def test_a_run_for_debugging_has_a_short_second_stage(train, tmp_path):
    made = train(tmp_path, "trainer.limit_train_batches=1", "classify_settings=[callbacks.progress=null]", "test=false")
    assert made.metrics["classify/epochs"] == 30
    second = json.loads((tmp_path / "classify" / "metrics.json").read_text())
    assert second["debug"] == "trainer.limit_train_batches"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ensemble.criterion=[P@9]", "expected metrics in ensemble.criterion"),
        ("ensemble.W=[2]", "weights of W between 0 and 1, got 2"),
        ("ensemble.lexical=[-1]", "weights of the lexical score of at least 0, got -1"),
        ("lexical.pairs=2", r"expected lexical\.pairs true or false, got 2"),
        ("lexical.steps=-1", r"expected lexical\.steps, a number of steps of at least 0, got -1"),
        ("lexical.steps=1.5", r"expected lexical\.steps, a number of steps of at least 0, got 1\.5"),
        ("lexical.steps=null", r"expected lexical\.steps, a number of steps of at least 0, got None"),
        ("lexical.most_scores=many", r"expected lexical\.most_scores, a number of at least 0, got many"),
        ("ensemble.criterion=null", r"expected ensemble\.criterion, a list of metrics, got None"),
        ("ensemble.lexical=null", r"expected ensemble\.lexical, a list of numbers, got None"),
        ("ensemble.W=[a]", r"expected ensemble\.W, a list of numbers, got \['a'\]"),
        ("ensemble.default.neighbours=null", r"expected ensemble\.default\.neighbours, a number, got None"),
        ("ensemble.neighbours=[-1]", "weights of the neighbours of at least 0, got -1"),
        ("neighbours.k=0", r"neighbours\.k of at least 1, a whole number, got 0"),
        ("export.training_texts=2", r"expected export\.training_texts true or false, got 2"),
        ("neighbours.temperature=0", r"neighbours\.temperature above 0, got 0"),
    ],
)
def test_settings_are_checked_before_training(given, message, compose):
    with pytest.raises(ValueError, match=message):
        check_ensemble(compose(given))


def test_lexical_settings_that_are_not_given():
    """Steps came later than the score, so that a configuration without them has none."""
    assert lexical_settings(OmegaConf.create({})) is None
    assert lexical_settings(OmegaConf.create({"lexical": {"pairs": True}})) == LexicalSettings(True, steps=0)
    given = OmegaConf.create({"lexical": {"pairs": False, "steps": 3}})
    assert lexical_settings(given) == LexicalSettings(False, steps=3, most_scores=float("inf"))


def test_an_older_configuration_in_a_run_folder_gets_the_lexical_weights(tmp_path):
    """Hydra is at the run folder then, which has no conf/train.yaml."""
    config = OmegaConf.create({"ensemble": {"W": [0.5], "default": {"W": 0.5, "neighbours": 0.1}}})
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(tmp_path)):
        settings = ensemble_settings(config)
    assert settings.W == [0.5]
    assert settings.default.lexical > 0
