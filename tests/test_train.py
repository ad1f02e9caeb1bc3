"""Training from end to end: a real Trainer, a tiny random encoder, toy data."""

import csv
import json
import logging
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from prime_xmc.assemble import make_data, make_module
from prime_xmc.data.corpus import Ragged
from prime_xmc.data.propensity import inverse_propensity
from prime_xmc.data.raw import read_records
from prime_xmc.evaluation.metrics import METRICS, evaluate
from prime_xmc.evaluation.predictions import load_predictions
from prime_xmc.export.predictor import Predictor
from prime_xmc.stages import train_prototypes as run
from prime_xmc.training.callbacks import RebuildClusters

PHASES = ("prepare", "initialise", "clusters", "steps", "validation", "save", "export", "test")
# between equal runs
VARYING = {"train/seconds", "train/queries_per_second", "peak_rss_bytes", "git_commit"}
VARYING |= {"classify/seconds", "classify/queries_per_second", "ensemble/seconds"}
VARYING |= {"model_bytes"}  # with the settings, which name another checkpoint
VARYING |= {"train/cpu_seconds", "classify/cpu_seconds", "ensemble/cpu_seconds", "predict/milliseconds_per_query"}
VARYING |= {f"predict/{name}/milliseconds_per_query" for name in ("W", "neighbours", "lexical", "ensemble")}
VARYING |= {f"seconds/{phase}" for phase in (*PHASES, "probe")}
EPOCHS = 4


@pytest.fixture(scope="module")
def overrides(toy_settings, tmp_path_factory) -> list[str]:
    return [
        *toy_settings,
        "dataset.clusters={first_epoch:1,every_n_epochs:1,initial_size:4,double_at:[]}",
        "sampling.batch_size=32",
        "optimizer.lr=3e-3",
        f"trainer.max_epochs={EPOCHS}",
        "trainer.precision=32-true",
        "callbacks.progress=null",
        "trainer.log_every_n_steps=2",
        f"cache_dir={tmp_path_factory.mktemp('cache')}",
    ]


@pytest.fixture
def called(call) -> Callable[..., str]:
    """Runs the entry point in a process and returns what it has printed: called(overrides, "seed=1", cwd=folder)."""

    def run(overrides: list[str], *more: str, cwd: Path) -> str:
        done = call("train", *overrides, *more, cwd=cwd)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


def command_line(overrides: list[str], *more: str, cwd: Path) -> str:
    """Run the entry point as Python's main module, which the processes of a data-parallel run start again."""
    command = [sys.executable, "-m", "prime_xmc.train", *overrides, *more]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def read_metrics(run_dir: Path) -> dict[str, float]:
    content = json.loads((run_dir / "metrics.json").read_text())
    return {name: value for name, value in content.items() if name not in VARYING}


def read_table(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files(run_dir: Path) -> set[str]:
    """The files of a run; names of a checkpoint's banks are random, and stand as last-*.banks."""
    names = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}
    return {re.sub(r"-[0-9a-f]{8}\.banks", "-*.banks", name) for name in names}


@pytest.fixture(scope="module")
def complete(overrides, compose, tmp_path_factory) -> tuple[Path, dict]:
    """A whole run: its folder and its metrics."""
    run_dir = tmp_path_factory.mktemp("complete")
    return run_dir, run(compose(*overrides, f"run_dir={run_dir}")).metrics


@pytest.fixture(scope="module")
def interrupted(overrides, compose, tmp_path_factory) -> Path:
    """The folder of a run that ended in its third epoch, before the end of which it left a checkpoint."""
    run_dir = tmp_path_factory.mktemp("interrupted")

    def fail(self, trainer, module):
        if trainer.current_epoch == 2:
            raise RuntimeError("the machine is needed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RebuildClusters, "on_train_epoch_end", fail)
        with pytest.raises(RuntimeError, match="the machine is needed"):
            run(compose(*overrides, f"run_dir={run_dir}"))
    return run_dir


def test_a_run_leaves_what_the_readme_lists(complete):
    run_dir, metrics = complete
    names = {path.name for path in run_dir.iterdir()}
    assert {"metrics.json", "metrics.csv", "checkpoints", "model", "predictions.npz", "csv"} <= names
    assert (run_dir / "checkpoints" / "last.ckpt").is_file()
    assert not [path for path in run_dir.rglob(".*") if path.is_file()], "temporary files are left"
    content = json.loads((run_dir / "metrics.json").read_text())
    assert content == metrics
    for stage in ("val", "test"):
        for name in METRICS:
            assert 0 <= content[f"{stage}/{name}"] <= 1
    assert content["train/epochs"] == EPOCHS
    assert content["num_parameters"] > 0
    assert content["seed"] == 0
    assert len(content["git_commit"]) == 40
    assert json.loads((run_dir / "model" / "metrics.json").read_text()) == content


def test_training_beats_chance_and_the_untrained_encoder(complete, overrides, compose, tmp_path):
    _, metrics = complete
    untrained = run(compose(*overrides, "optimizer.lr=1e-12", "trainer.max_epochs=1", f"run_dir={tmp_path}")).metrics
    chance = 2 / 48  # about two labels a query, of 48
    assert metrics["test/P@1"] > 5 * chance
    assert metrics["test/P@1"] > untrained["test/P@1"] + 0.1


def test_the_table_of_epochs_has_a_row_for_each(complete):
    run_dir, metrics = complete
    rows = read_table(run_dir)
    assert [int(row["epoch"]) for row in rows] == list(range(EPOCHS))
    assert float(rows[-1]["val/P@1"]) == pytest.approx(metrics["val/P@1"])
    assert [bool(row["val/P@1"]) for row in rows] == [False] * (EPOCHS - 1) + [True], "validated after the last"
    logged = ("loss", "query_prototype", "query_label", "label_query", "regulariser", "violators", "clipped_margins")
    for name in (*logged, "centroid_drift"):
        assert all(math.isfinite(float(row[f"train/{name}"])) for row in rows)
    assert float(rows[-1]["train/loss"]) < float(rows[0]["train/loss"])
    assert float(rows[0]["lr"]) > float(rows[-1]["lr"]) == 0


def test_the_exported_model_predicts_what_the_run_did(complete, toy_dataset):
    run_dir, _ = complete
    indices, scores = load_predictions(run_dir / "predictions.npz")
    assert indices.shape == scores.shape == (60, 100)
    queries = [record.text for record in read_records(toy_dataset / "tst.json.gz", ["title"], 48)]
    predictor = Predictor.load(run_dir / "model")
    emb = predictor.encode(queries)
    expected, _ = predictor.search(emb, 48)
    # every tenth query has a label filtered, so compare those without
    row = 1
    np.testing.assert_allclose(scores[row, :48], expected[row].numpy(), atol=1e-4)
    assert (indices[row, 48:] == -1).all()


def test_a_seed_gives_the_same_run_twice_and_another_seed_another(complete, overrides, compose, tmp_path):
    _, metrics = complete
    again = run(compose(*overrides, f"run_dir={tmp_path / 'again'}")).metrics
    other = run(compose(*overrides, "seed=1", f"run_dir={tmp_path / 'other'}")).metrics
    assert {k: v for k, v in again.items() if k not in VARYING} == {
        k: v for k, v in metrics.items() if k not in VARYING
    }
    assert any(other[name] != metrics[name] for name in metrics if name.startswith("test/"))


@pytest.mark.parametrize("trained", ["half way", "to the end"])
def test_a_continued_run_ends_as_the_uninterrupted_one(complete, interrupted, overrides, compose, tmp_path, trained):
    run_dir, metrics = complete
    checkpoint = (interrupted if trained == "half way" else run_dir) / "checkpoints" / "last.ckpt"
    continued = run(compose(*overrides, f"ckpt_path='{checkpoint}'", f"run_dir={tmp_path}")).metrics
    same = [name for name in metrics if name not in VARYING]
    assert {name: continued[name] for name in same} == {name: metrics[name] for name in same}
    if trained == "half way":
        assert [int(row["epoch"]) for row in read_table(tmp_path)] == list(range(EPOCHS))
    for name in ("prototypes", "centroids"):
        files = (folder / "model" / f"{name}.safetensors" for folder in (run_dir, tmp_path))
        uninterrupted, resumed = (load_file(file) for file in files)
        assert all(torch.equal(resumed[key], uninterrupted[key]) for key in uninterrupted)


@pytest.mark.parametrize("placement", ["host", "mmap"])
def test_where_the_banks_are_changes_nothing(complete, overrides, compose, tmp_path, placement):
    _, metrics = complete
    placed = run(compose(*overrides, f"bank.placement={placement}", f"run_dir={tmp_path}")).metrics
    same = [name for name in metrics if name not in VARYING]
    assert {name: placed[name] for name in same} == {name: metrics[name] for name in same}


def test_classifiers_are_trained_on_the_model_of_the_run(complete, overrides, called, tmp_path):
    run_dir, alone = complete
    quick = ["trainer.max_epochs=2", "trainer.log_every_n_steps=1", "callbacks.progress=null", "negatives=all"]
    trained = f"ckpt_path='{run_dir / 'checkpoints' / 'last.ckpt'}'"
    run_again = [trained, f"classify={json.dumps(quick)}", f"hydra.run.dir='{tmp_path}'"]
    printed = called(overrides, *run_again, cwd=tmp_path)  # where Hydra is in the middle of something else
    assert "test, ensemble" in printed
    metrics, second = read_metrics(tmp_path), read_metrics(tmp_path / "classify")
    assert (tmp_path / "classify" / "classifiers").is_dir()
    assert metrics["test/P@1"] == alone["test/P@1"]
    assert metrics["test/W/P@1"] == second["test/W/P@1"]
    assert metrics["classify/epochs"] == 2
    assert metrics["val/W/P@1"] == second["val/W/P@1"]
    # the same queries were held out; the first stage searches with faiss, the second with torch
    assert second["val/theta/P@1"] == pytest.approx(alone["val/P@1"], abs=0.03)


class TestSmallData:
    """Data of 20 queries and 3 labels, and nothing set for them."""

    @pytest.fixture
    def small(self, overrides, compose, tmp_path):
        """Composes the configuration for such data, with the given test queries or without a test file."""

        def write(name, lines):
            (tmp_path / f"{name}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))

        def configure(*more, test=None):
            rows = [{"title": f"red cat {row}", "target_ind": [row % 3]} for row in range(20)]
            for name, lines in (("trn", rows), ("lbl", rows[:3]), ("tst", test)):
                if lines is not None:
                    write(name, lines)
            numbers = ("dataset.num_validation", "dataset.num_free_vectors", "sampling.batch_size", "dataset.clusters")
            kept = [override for override in overrides if not override.startswith(numbers)]
            paths = [f"dataset.dir={tmp_path}", f"cache_dir={tmp_path}/cache", f"run_dir={tmp_path}/run"]
            return compose(*kept, *paths, "trainer.max_epochs=2", "trainer.log_every_n_steps=1", *more)

        return configure

    def test_without_a_test_file_a_split_is_split_off(self, small, tmp_path, capsys, caplog):
        caplog.set_level("INFO")
        metrics, _, data, _ = run(small())
        assert (len(data.train_ids), len(data.validation_ids), len(data.corpus.test)) == (16, 0, 4)
        assert 0 <= metrics["test/P@1"] <= 1
        assert "4 of the 20 queries of trn.json" in metrics["note/test_split"]
        assert "4 of the 20 queries of trn.json" in " ".join(capsys.readouterr().out.split())
        line = "16 queries to train on, 0 held out, 4 to test on, 3 labels, 1 step an epoch, 2 epochs, no validation"
        assert line in caplog.text
        settings = json.loads((tmp_path / "run" / "model" / "prime_config.json").read_text())["settings"]["config"]
        assert settings["dataset"]["batch_size"] == 16
        assert settings["dataset"]["num_validation"] == 0
        assert settings["model"]["num_free_vectors"] == 1

    def test_a_test_split_without_labels_has_no_metrics(self, small, tmp_path, capsys):
        metrics = run(small(test=[{"title": "red cat", "target_ind": []}] * 2)).metrics
        assert not [name for name in metrics if name.startswith("test/")]
        assert metrics["note/test"] == "none of the 2 test queries has a label, so there are no metrics of them"
        assert metrics["note/test"] in " ".join(capsys.readouterr().out.split())
        assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
        assert (tmp_path / "run" / "predictions.npz").is_file()

    def test_labels_that_some_test_queries_lack_are_counted(self, small):
        test = [{"title": "red cat", "target_ind": labels} for labels in ([0], [], [1])]
        metrics = run(small(test=test)).metrics
        assert metrics["note/test"] == "1 of 3 test queries has no label and counts as a miss in P, nDCG and R"
        assert "test/P@1" in metrics

    def test_too_few_queries_to_test(self, small):
        metrics = run(small("dataset.num_test=1", "test=false")).metrics
        assert not [name for name in metrics if name.startswith(("test/", "note/test"))]


def test_metrics_are_those_that_evaluation_gives_to_the_last_digit(complete, toy_dataset):
    run_dir, metrics = complete
    queries = list(read_records(toy_dataset / "tst.json.gz", ["title"], 48))
    trained = list(read_records(toy_dataset / "trn.json.gz", ["title"], 48))
    frequency = np.bincount([label for record in trained for label in record.positives], minlength=48)
    positives = Ragged.from_rows([sorted(record.positives) for record in queries])
    weights = inverse_propensity(frequency, len(trained), a=0.55, b=1.5)
    expected = evaluate(load_predictions(run_dir / "predictions.npz")[0], positives, weights)
    assert {name: metrics[f"test/{name}"] for name in METRICS} == expected


def test_a_run_for_debugging_is_marked(complete, overrides, compose, tmp_path, capsys):
    run_dir, metrics = complete
    assert "debug" not in metrics
    assert json.loads((run_dir / "metrics.json").read_text()).get("debug") is None
    quick = run(compose("debug=fast", *overrides, f"run_dir={tmp_path / 'fast'}")).metrics
    assert quick["debug"] == json.loads((tmp_path / "fast" / "metrics.json").read_text())["debug"] == "fast"
    assert "a run for debugging (fast)" in capsys.readouterr().out
    by_hand = run(
        compose(*overrides, "trainer.overfit_batches=1", "trainer.max_epochs=2", f"run_dir={tmp_path / 'one'}")
    )
    assert by_hand.metrics["debug"] == "trainer.overfit_batches"
    assert by_hand.trainer.global_step == 2


def test_a_device_that_there_is_not_ends_the_run_before_the_data_are_prepared(overrides, compose, tmp_path):
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("there is a GPU")
    config = compose(*overrides, "trainer=gpu", f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}")
    with pytest.raises(ValueError, match=r"^trainer\.accelerator=gpu: torch finds no GPU here"):
        run(config)
    assert not list(tmp_path.iterdir())


def test_a_profile_and_no_logger(overrides, compose, tmp_path):
    quick = ["trainer.profiler=simple", "trainer.max_epochs=1", "~logger", f"run_dir={tmp_path}"]
    run(compose(*overrides, *quick))
    assert "run_training_batch" in (tmp_path / "fit-profile.txt").read_text()
    assert not (tmp_path / "csv").exists()


def test_gradients_can_be_clipped(overrides, compose, tmp_path):
    """The sparse ones of the free vectors too, which torch's own functions refuse."""
    quick = ["trainer.max_steps=2", "test=false", "callbacks.checkpoint=null"]
    _, module, _, _ = run(compose(*overrides, *quick, "trainer.gradient_clip_val=1e-3", f"run_dir={tmp_path}"))
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    assert not gradients or sum(grad.to_dense().square().sum() for grad in gradients) ** 0.5 < 1.1e-3


def test_a_missing_checkpoint_is_an_error(overrides, compose, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*last\.ckpt"):
        run(compose(*overrides, "ckpt_path=nowhere", f"run_dir={tmp_path}"))


def test_texts_longer_than_the_encoder_reads_are_an_error(overrides, compose, tmp_path):
    """Before the first step, which would end in an index error."""
    with pytest.raises(ValueError, match=r"dataset\.max_length=65 is above the 64 positions .*max_position_embeddings"):
        run(compose(*overrides, "dataset.max_length=65", f"run_dir={tmp_path}"))


def test_tokens_that_the_encoder_does_not_embed(overrides, compose, tmp_path):
    """Before the first step, which would end in an index error."""
    config = compose(*overrides, f"run_dir={tmp_path}")
    data = make_data(config)
    data.corpus.manifest["vocab_size"] = 40_000
    with pytest.raises(ValueError, match=r"a tokenizer of 40000 tokens, and the encoder .* embeds 30522"):
        make_module(config, data)


def test_without_faiss(overrides, compose, tmp_path, monkeypatch, caplog):
    """Which is an extra: training, evaluation, export and prediction do without it."""
    monkeypatch.setitem(sys.modules, "faiss", None)
    with caplog.at_level(logging.INFO):
        metrics = run(compose(*overrides, "trainer.max_epochs=1", f"run_dir={tmp_path}")).metrics
    assert 0 <= metrics["test/P@1"] <= 1
    assert "exported without index.faiss: Faiss is not installed" in caplog.text
    assert len(Predictor.load(tmp_path / "model").predict(["a red cat"])[0].labels) == 5


def test_the_model_remembers_what_it_was_trained_on(overrides, compose, tmp_path):
    quick = ["trainer.max_epochs=1", "test=false", "trainer.precision=bf16-mixed", f"run_dir={tmp_path}"]
    run(compose(*overrides, *quick, "dataset.label_fields=[title]", "dataset.fields=[title,uid]"))
    config = json.loads((tmp_path / "model" / "prime_config.json").read_text())
    assert config["query"] == {"fields": ["title", "uid"], "separator": " "}
    assert config["precision"] == "bf16-mixed"
    assert Predictor.load(tmp_path / "model").fields == ("title", "uid")
    # neither the folder of the run nor that of the encoder
    text = (tmp_path / "model" / "README.md").read_text() + json.dumps(config)
    folders = [value.partition("=")[2] for value in overrides if value.startswith(("encoder.source", "dataset.dir"))]
    assert len(folders) == 2
    assert not [folder for folder in (*folders, str(tmp_path)) if folder in text]


def test_exact_centroids_are_the_means_of_the_trained_embeddings(overrides, compose, tmp_path):
    quick = ["callbacks=exact_centroids", "trainer.max_epochs=1", f"run_dir={tmp_path}"]
    _, module, data, _ = run(compose(*quick, *overrides, *quick[1:]))
    module.embed(data.train_text_dataloader(), module.query_memory, "query")
    for label in (0, 17):
        having = [query for query in data.train_ids if label in data.corpus.train.positives[int(query)]]
        expected = module.query_memory.rows[having].float().mean(0)
        torch.testing.assert_close(module.prototypes.centroids.rows[label], expected, atol=1e-5, rtol=0)
    exported = load_file(tmp_path / "model" / "centroids.safetensors")
    assert torch.equal(exported["centroids"], module.prototypes.centroids.rows)


@pytest.mark.slow
def test_the_configuration_of_a_run_runs_again(overrides, called, tmp_path):
    """Also the later stages, whose own configuration is not in the run folder."""
    later = ["classify=true", "classify_settings=[trainer.max_epochs=1]", "lexical={pairs:true}"]
    called(overrides, *later, "hydra.run.dir=first", cwd=tmp_path)
    again = ["--config-path", str(tmp_path / "first" / ".hydra"), "--config-name", "config", "hydra.run.dir=second"]
    called(again, cwd=tmp_path)
    first, second = (read_metrics(tmp_path / name) for name in ("first", "second"))
    assert first == second


@pytest.mark.slow
def test_a_sweep_leaves_a_folder_for_each_job(overrides, called, tmp_path):
    quick = ["trainer.max_epochs=1", "dataset.num_positives=2", "hydra.sweep.dir=sweep"]
    called(["-m", *overrides, *quick], "model=prime,prime_lite", "seed=1,2", cwd=tmp_path)
    found = [read_metrics(tmp_path / "sweep" / str(job)) for job in range(4)]
    assert [metrics["seed"] for metrics in found] == [1, 2, 1, 2]
    assert len({metrics["test/R@10"] for metrics in found}) > 1


@pytest.mark.slow
def test_two_processes_train_what_one_does(overrides, compose, tmp_path):
    """DDP over gloo: same losses and metrics as one process with the same global batch, up to rounding."""
    quick = ["trainer.max_epochs=2", "model.dropout=0.0"]
    run(compose(*overrides, *quick, f"run_dir={tmp_path / 'one'}"))
    command_line(overrides, *quick, "trainer=ddp", "trainer.devices=2", "hydra.run.dir=two", cwd=tmp_path)
    one, two = (read_table(tmp_path / name) for name in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for name in ("train/loss", "train/regulariser", "train/centroid_drift"):
        expected = [float(row[name]) for row in one]
        assert [float(row[name]) for row in two] == pytest.approx(expected, rel=2e-3)
    first, second = (read_metrics(tmp_path / name) for name in ("one", "two"))
    assert second["test/P@5"] == pytest.approx(first["test/P@5"], abs=0.03)
    of_hydra = {".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml", "train.log"}
    assert files(tmp_path / "two") == files(tmp_path / "one") | of_hydra | {"train_ddp_process_1.log"}


@pytest.mark.slow
def test_a_data_parallel_run_can_be_a_job_of_a_sweep(overrides, tmp_path):
    """Its processes start the job, not the sweep; what one job says goes to its folder."""
    several = ["trainer=ddp", "trainer.devices=2", "trainer.max_epochs=1", "dataset.max_length=32,65"]
    command = [sys.executable, "-m", "prime_xmc.train", "-m", *overrides, *several, "hydra.sweep.dir=sweep"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1, done.stderr[-3000:]
    assert read_metrics(tmp_path / "sweep" / "0")["train/epochs"] == 1
    assert (tmp_path / "sweep" / "0" / "train_ddp_process_1.log").is_file()
    recorded = [OmegaConf.load(tmp_path / "sweep" / "0" / ".hydra" / f"{name}.yaml") for name in ("overrides", "hydra")]
    assert "dataset.max_length=32" in recorded[0]
    assert recorded[1].hydra.runtime.choices.trainer == "ddp"
    assert "done" in done.stdout
    assert "dataset.max_length=65 is above the 64" in (tmp_path / "sweep" / "1" / "error.txt").read_text()


@pytest.mark.slow
def test_the_first_of_several_processes_goes_on_to_the_other_scorers(overrides, tmp_path):
    quick = '["trainer.max_epochs=1","callbacks.progress=null","trainer.check_val_every_n_epoch=1"]'
    both = ["classify=true", f"classify_settings={quick}", "neighbours={k:5,temperature:0.05}", "lexical={pairs:true}"]
    several = ["trainer=ddp", "trainer.devices=2", "trainer.max_epochs=1", "hydra.run.dir=two"]
    printed = command_line(overrides, *both, *several, cwd=tmp_path)
    assert "test, ensemble" in printed
    metrics = read_metrics(tmp_path / "two")
    assert {"val/W/P@1", "test/W/P@1", "test/neighbours/P@1", "test/lexical/P@1", "test/ensemble/P@1"} <= metrics.keys()
    assert Predictor.load(tmp_path / "two" / "model").scorer == "ensemble"
