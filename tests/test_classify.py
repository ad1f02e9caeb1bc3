"""The second stage from end to end, on an untrained model of the toy data set: its classifiers have all to learn."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import wandb
from omegaconf import OmegaConf
from safetensors.torch import load_file

from prime_xmc.assemble import load_scorer
from prime_xmc.evaluate import run as evaluate
from prime_xmc.evaluation.metrics import METRICS
from prime_xmc.export.scorers import SCORERS, load_classifiers, read_prototypes, save_classifiers
from prime_xmc.stages import train_classifiers as run
from prime_xmc.training.classifier_module import ClassifierModule

PHASES = ("prepare", "initialise", "clusters", "steps", "validation", "save", "export", "test")
TIMES = {"train/seconds", "train/cpu_seconds", "train/queries_per_second", "peak_rss_bytes"}
TIMES |= {f"seconds/{phase}" for phase in PHASES}


@pytest.fixture(scope="module")
def model(toy_bundle, tmp_path_factory) -> Path:
    """The toy model, as if training had held out 40 queries."""
    directory = tmp_path_factory.mktemp("trained") / "model"
    shutil.copytree(toy_bundle, directory)
    path = directory / "prime_config.json"
    config = json.loads(path.read_text())
    config["settings"]["config"] = {"dataset": {"num_validation": 40}}
    path.write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def data(toy_dataset, tmp_path_factory) -> list[str]:
    return [
        "dataset=custom",
        f"dataset.dir={toy_dataset}",
        "dataset.name=toy",
        f"cache_dir={tmp_path_factory.mktemp('cache')}",
        "device=cpu",
    ]


@pytest.fixture(scope="module")
def overrides(model, data) -> list[str]:
    return [
        f"model.dir={model}",
        *data,
        "sampling.batch_size=32",
        "optimizer.make.lr=3e-2",
        "dropout=0.1",
        "trainer.max_epochs=10",
        "trainer.check_val_every_n_epoch=10",
        "callbacks.progress=null",
        "trainer.log_every_n_steps=2",
    ]


@pytest.fixture(scope="module")
def configure(compose, overrides):
    return lambda *more: compose(*overrides, *more, name="classify")


@pytest.fixture(scope="module")
def complete(configure, tmp_path_factory) -> dict[str, tuple[Path, dict]]:
    """A run with each kind of negatives: its folder and its metrics."""
    runs = {}
    for negatives in ("sampled", "all"):
        run_dir = tmp_path_factory.mktemp(negatives)
        chosen = [f"negatives={negatives}", "sampling.batch_size=32"]
        if negatives == "sampled":
            chosen.append("sampling.clusters={first_epoch:0,every_n_epochs:5,initial_size:4,double_at:[]}")
        runs[negatives] = (run_dir, run(configure(*chosen, f"run_dir={run_dir}")).metrics)
    return runs


def results(metrics):
    return {name: value for name, value in metrics.items() if name not in TIMES and name != "git_commit"}


def test_the_encoder_is_the_models_and_the_configured_one_need_not_be_there(configure, model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    exported = json.loads((folder / "prime_config.json").read_text())
    exported["settings"]["config"]["encoder"] = {"source": "its own"}
    (folder / "prime_config.json").write_text(json.dumps(exported))
    config = configure(f"model.dir={folder}", "trainer.max_epochs=1", "test=false", f"run_dir={tmp_path}/run")
    config.encoder.source = "${package:not_installed/model}"
    assert run(config).settings["config"]["encoder"] == {"source": "its own"}


def test_settings_of_a_model_do_not_ask_this_machine(configure, model, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    monkeypatch.setenv("TOKEN_OF_THE_READER", "secret")
    exported = json.loads((folder / "prime_config.json").read_text())
    exported["settings"]["config"]["encoder"] = {"source": "${oc.env:TOKEN_OF_THE_READER}"}
    (folder / "prime_config.json").write_text(json.dumps(exported))
    config = configure(f"model.dir={folder}", "trainer.max_epochs=1", "test=false", f"run_dir={tmp_path}/run")
    with pytest.raises(ValueError, match=r"settings of the encoder in prime_config\.json have an expression"):
        run(config)
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(b"secret" in path.read_bytes() for path in written)


@pytest.mark.parametrize("negatives", ["sampled", "all"])
class TestRun:
    def test_what_it_leaves(self, complete, negatives):
        run_dir, metrics = complete[negatives]
        names = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}
        assert names == {
            ".hydra/config.yaml",
            ".hydra/overrides.yaml",
            "run.lock",
            "metrics.json",
            "metrics.csv",
            "csv/metrics.csv",
            "classifiers/classifiers.json",
            "classifiers/classifiers.safetensors",
            *(f"predictions_{scorer}.npz" for scorer in SCORERS),
        }
        content = json.loads((run_dir / "metrics.json").read_text())
        assert content == metrics
        for stage in ("val", "test"):
            for scorer in SCORERS:
                for name in METRICS:
                    assert 0 <= content[f"{stage}/{scorer}/{name}"] <= 1
        assert (content["train/epochs"], content["seed"], content["num_parameters"]) == (10, 0, 48 * 32)

    def test_classifiers_and_ensemble_beat_the_prototypes_they_started_from(self, complete, negatives):
        _, metrics = complete[negatives]
        for stage, gain in (("val", 0.05), ("test", 0.15)):  # of 40 and 60 queries
            theta, w, ensemble = (metrics[f"{stage}/{scorer}/P@1"] for scorer in SCORERS)
            assert w > theta + gain
            assert ensemble > theta + gain

    @pytest.mark.parametrize("scorer", SCORERS)
    def test_evaluate_gives_the_same(self, complete, negatives, scorer, compose, model, data):
        """Of the exported classifiers, and of the predictions."""
        run_dir, metrics = complete[negatives]
        expected = {f"test/{name}": metrics[f"test/{scorer}/{name}"] for name in METRICS}
        given = [] if scorer == "theta" else [f"classifiers={run_dir / 'classifiers'}", f"scorer={scorer}"]
        found = evaluate(compose(*data, f"model.dir={model}", *given, name="evaluate"))
        assert found == pytest.approx(expected, abs=1e-6)
        path = run_dir / f"predictions_{scorer}.npz"
        assert evaluate(compose(*data, f"predictions={path}", name="evaluate")) == pytest.approx(expected, abs=1e-6)

    def test_the_exported_vectors(self, complete, negatives, model):
        run_dir, _ = complete[negatives]
        vectors = load_file(run_dir / "classifiers" / "classifiers.safetensors")["classifiers"]
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(48))
        assert not torch.equal(vectors, read_prototypes(model))
        config = json.loads((run_dir / "classifiers" / "classifiers.json").read_text())
        assert (config["num_labels"], config["dim"]) == (48, 32)
        assert config["settings"]["config"]["negatives"] == negatives


def test_one_seed_gives_one_result_and_embeddings_are_made_once(complete, configure, tmp_path, monkeypatch):
    def refuse(predictor, tokens, what, known=None):
        raise AssertionError(f"embeds {what}")

    short = ["trainer.max_epochs=1", "test=false"]
    monkeypatch.setattr("prime_xmc.training.query_embeddings.embed", refuse)
    runs = {}
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        metrics = run(configure(*short, f"seed={seed}", f"run_dir={tmp_path / name}")).metrics
        vectors = (tmp_path / name / "classifiers" / "classifiers.safetensors").read_bytes()
        runs[name] = (results(metrics), vectors)
    assert runs["first"] == runs["again"]
    assert runs["first"][1] != runs["other"][1]
    assert not [name for name in runs["first"][0] if name.startswith("test/")], "the test split was read"
    assert not list((tmp_path / "first").glob("predictions*"))


class KilledError(BaseException):
    """Ends a run at once, without what it does when it is asked to end."""


def test_loggers_that_show_what_the_first_stage_has(configure, tmp_path, monkeypatch):
    """W&B, whose run is finished at the end, and TensorBoard: there are no prototypes to show."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    shown = ["logger=[wandb,tensorboard]", "callbacks.histograms.every_n_steps=1", "trainer.max_epochs=1"]
    run(configure(*shown, f"run_dir={tmp_path}", "test=false"))
    assert wandb.run is None
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_the_run_of_wandb_goes_on_with_a_continued_second_stage(configure, tmp_path, monkeypatch):
    def killed(*_):
        raise KilledError

    monkeypatch.setenv("WANDB_MODE", "offline")
    chosen = ["logger=wandb", "callbacks.histograms=null", "test=false", f"run_dir={tmp_path}"]
    with monkeypatch.context() as patch:
        patch.setattr(ClassifierModule, "on_validation_epoch_end", killed)
        with pytest.raises(KilledError):
            run(configure(*chosen, "checkpoint.every_n_minutes=1e-9"))
    wandb.finish()
    run(configure(*chosen, f"++resume={tmp_path}"))
    names = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(names) == 2
    assert len({name.rpartition("-")[2] for name in names}) == 1, "one run has one identifier"


def test_settings_of_a_continued_second_stage_hold_from_then_on(configure, tmp_path, monkeypatch):
    def killed(*_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierModule, "on_validation_epoch_end", killed)
        with pytest.raises(KilledError):
            run(configure(f"run_dir={tmp_path}", "checkpoint.every_n_minutes=1e-9"))
    run(configure(f"run_dir={tmp_path}", f"++resume={tmp_path}", "trainer.max_epochs=11", "test=false"))
    assert OmegaConf.load(tmp_path / ".hydra" / "config.yaml").trainer.max_epochs == 11


@pytest.mark.parametrize("place", ["training_step", "_evaluate_scorers"])
def test_a_training_that_was_killed_goes_on_with_the_next_step(complete, configure, tmp_path, monkeypatch, place):
    """Within its eighth epoch, or after the last: vectors, metrics, predictions and curves are those of `complete`."""
    chosen = ["sampling.clusters={first_epoch:0,every_n_epochs:5,initial_size:4,double_at:[]}", f"run_dir={tmp_path}"]
    original, count = ClassifierModule.training_step, itertools.count(1)
    steps = 7 * 7 + 4

    def training_step(self, *arguments):
        if next(count) == steps and place == "training_step":
            raise KilledError
        return original(self, *arguments)

    def interrupted(*_):
        raise KilledError

    monkeypatch.setattr(ClassifierModule, "training_step", training_step)
    with monkeypatch.context() as patch:
        if place == "_evaluate_scorers":
            patch.setattr("prime_xmc.stages.second_stage._evaluate_scorers", interrupted)
        with pytest.raises(KilledError):
            run(configure(*chosen, "checkpoint.every_n_minutes=1e-9"))
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()
    with pytest.raises(ValueError, match=r"dropout: 0\.1 in the checkpoint, 0\.2 given"):
        run(configure(*chosen, f"++resume={tmp_path}", "dropout=0.2"))
    metrics = run(configure(*chosen, f"++resume={tmp_path}")).metrics
    assert next(count) - 1 == 10 * 7 + (place == "training_step"), "no step was made twice"
    folder, expected = complete["sampled"]
    assert results(metrics) == results(expected)
    names = ("metrics.csv", "csv/metrics.csv", "classifiers/classifiers.safetensors", "predictions_W.npz")
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in folder.iterdir()}


def test_the_model_stays_as_it_is(complete, model, toy_bundle):
    for path in toy_bundle.rglob("*"):
        if path.is_file() and path.name != "prime_config.json":
            assert (model / path.relative_to(toy_bundle)).read_bytes() == path.read_bytes()
    assert {p.name for p in model.iterdir()} == {p.name for p in toy_bundle.iterdir()}


class TestBadInput:
    def refused(self, configure, message, *given, error=ValueError):
        with pytest.raises(error, match=message):
            run(configure(*given))

    def test_no_model(self, configure, tmp_path):
        self.refused(
            configure, "is no exported model", f"model.dir={tmp_path}", f"run_dir={tmp_path}", error=FileNotFoundError
        )

    def test_a_model_that_does_not_say_what_was_held_out(self, configure, toy_bundle, tmp_path):
        message = "does not say which training queries were held out .no 'config'"
        self.refused(configure, message, f"model.dir={toy_bundle}", f"run_dir={tmp_path}")

    def test_another_data_set(self, configure, toy_dataset, tmp_path):
        shutil.copytree(toy_dataset, tmp_path / "raw")
        (tmp_path / "raw" / "lbl.json.gz").unlink()
        labels = "".join(json.dumps({"uid": f"l{row}", "title": "new"}) + "\n" for row in range(49))
        (tmp_path / "raw" / "lbl.json").write_text(labels)
        message = "the model has 48 labels, toy has 49: give the data set that the model .* was trained on"
        self.refused(configure, message, f"dataset.dir={tmp_path / 'raw'}", f"run_dir={tmp_path}")

    def test_several_processes(self, overrides, tmp_path):
        """From the command line: a Trainer for several processes looks at how its own was started."""
        several = ["trainer.strategy=ddp", "trainer.devices=2", f"hydra.run.dir={tmp_path}"]
        command = [sys.executable, "-m", "prime_xmc.classify", *overrides, *several]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "one process, got 2" in done.stderr


class TestFolder:
    """What `evaluate` and `predict` are given by classifiers=."""

    @pytest.fixture
    def scorer(self, compose):
        return lambda *given: load_scorer(compose("device=cpu", *given, name="predict"))

    def test_the_score_is_the_mean_of_both(self, complete, scorer, model):
        folder = complete["sampled"][0] / "classifiers"
        scores = []
        for given in ([], [f"classifiers={folder}", "scorer=W"], [f"classifiers={folder}", "scorer=ensemble"]):
            (found,) = scorer(f"model.dir={model}", "search=exact", *given).predict(["a red cat"], top_k=48)
            scores.append({label.id: label.score for label in found.labels})
        theta, w, ensemble = scores
        assert w != pytest.approx(theta)
        assert ensemble == pytest.approx({label: (theta[label] + w[label]) / 2 for label in theta}, abs=1e-6)

    def test_no_folder(self, scorer, model, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"holds no classifiers, classifiers\.json and"):
            scorer(f"model.dir={model}", f"classifiers={tmp_path}")

    def test_another_scorer(self, complete, scorer, model):
        with pytest.raises(ValueError, match=r"expected scorer auto, .*, lexical or ensemble, got 'w'"):
            scorer(f"model.dir={model}", f"classifiers={complete['all'][0] / 'classifiers'}", "scorer=w")

    def test_the_index_is_of_the_prototypes(self, complete, scorer, model):
        with pytest.raises(ValueError, match="search=faiss: the exported index is of the prototypes; classifiers="):
            scorer(f"model.dir={model}", f"classifiers={complete['all'][0] / 'classifiers'}", "search=faiss")

    def test_another_model(self, model, tmp_path):
        save_classifiers(tmp_path / "made", torch.eye(3), digest="other", labels="other", settings={})
        with pytest.raises(ValueError, match=f"are not for the model {re.escape(str(model))}"):
            load_classifiers(tmp_path / "made", model)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("classifiers.json", b"{", r"classifiers.json is damaged"),
            ("classifiers.json", b'{"format_version": 9, "encoder": ""}', r"format_version is 9, this version reads 1"),
            ("classifiers.safetensors", b"xxxxxxxxxxxx", r"classifiers.safetensors is damaged"),
        ],
    )
    def test_damaged(self, complete, model, tmp_path, name, content, message):
        shutil.copytree(complete["all"][0] / "classifiers", tmp_path / "copy")
        (tmp_path / "copy" / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_classifiers(tmp_path / "copy", model)

    def test_classifiers_without_a_model(self, compose, data):
        with pytest.raises(ValueError, match="classifiers=folder need the model that they were trained on"):
            evaluate(compose(*data, "classifiers=folder", "predictions=a.npz", name="evaluate"))


def test_command_line(overrides, model, call, tmp_path):
    """`model=` on the command line; the run folder is Hydra's."""
    given = [given for given in overrides if not given.startswith("model.dir=")]
    done = call("classify", f"model={model}", *given, "trainer.max_epochs=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    (run_dir,) = (tmp_path / "outputs" / "classify").iterdir()
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert "test, ensemble" in done.stdout
    assert f"{100 * metrics['test/theta/P@1']:.2f}" in done.stdout


def test_jobs_of_a_sweep_keep_their_folders_and_run_once(overrides, call, tmp_path):
    given = ["-m", *overrides, "trainer.max_epochs=1", "test=false", "hydra.sweep.dir=sweep"]
    first = call("classify", *given, "dropout=0.1,2", cwd=tmp_path)
    assert first.returncode == 1
    assert "expected a dropout of at least 0 and below 1, got 2" in (tmp_path / "sweep" / "1" / "error.txt").read_text()
    before = (tmp_path / "sweep" / "0" / "metrics.json").read_bytes()
    metrics = json.loads(before)
    assert f"{100 * metrics['val/W/P@1']:.1f}" in first.stdout, "in the table of jobs"

    second = call("classify", *given, "dropout=0.3,0.1", cwd=tmp_path)
    assert second.returncode == 0, second.stderr[-2000:]
    records = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/job.json")}
    status = {name: (record["status"], "dropout=0.1" in record["overrides"]) for name, record in records.items()}
    (other,) = (name for name in status if name.startswith("0-"))
    assert status == {"0": ("skipped", True), "1": ("failed", False), other: ("done", False)}
    assert (tmp_path / "sweep" / "0" / "metrics.json").read_bytes() == before
