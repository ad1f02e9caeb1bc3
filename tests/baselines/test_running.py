"""From a configuration to a run folder that evaluation and reports read, one method of each family."""

import gzip
import json

import numpy as np
import pytest

from prime_xmc.baselines.method import Cost, Outcome
from prime_xmc.baselines.running import describe_cost, run_baseline
from prime_xmc.composing import compose
from prime_xmc.evaluation.predictions import load_predictions
from prime_xmc.reporting.configurations import group_runs
from prime_xmc.reporting.run_folders import read_runs
from prime_xmc.reporting.study import make_study
from prime_xmc.reporting.tables import make_tables
from prime_xmc.stages import train_prototypes


@pytest.fixture(scope="module")
def settings(tmp_path_factory, tiny_encoder_dir, toy_dataset):
    """Overrides of a baseline on the toy data set, in one cache."""
    cache = tmp_path_factory.mktemp("cache")
    return [
        *("encoder=local", f"encoder.source={tiny_encoder_dir}", "dataset=custom", f"dataset.dir={toy_dataset}"),
        *("dataset.num_validation=40", f"cache_dir={cache}", "threads=1"),
    ]


def run(settings, folder, *more):
    return run_baseline(compose("baseline", [*settings, f"run_dir={folder}", *more]))


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("popularity", []),
        ("zero_shot", []),
        ("zero_shot_tfidf", []),
        ("knn", ["method.k=5"]),
        ("knn_tfidf", ["method.label_texts=false"]),
        ("parabel", ["+method.parameters.min_branch_size=8"]),
        ("bonsai", ["method.parameters.cluster_k=8", "+method.parameters.min_branch_size=8"]),
        ("attentionxml_style", ["+method.parameters.min_branch_size=8"]),
        ("plt", ["+method.parameters.max_leaves=8"]),
        *((name, ["method.fit.rank=20", "method.dimension=60"]) for name in ("plst", "cplst", "svd", "occa", "leml")),
    ],
)
def test_every_method_leaves_a_run_folder(settings, tmp_path, toy_dataset, name, more):
    made = run(settings, tmp_path, f"method={name}", *more)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics == made.metrics
    assert metrics["seed"] == 0
    assert {"val/P@1", "test/P@1", "test/PSP@5", "test/R@100"} <= metrics.keys()
    for key in ("train/cpu_seconds", "peak_rss_bytes", "model_bytes", "predict/milliseconds_per_query"):
        assert metrics[key] > 0, key
    ids, scores = load_predictions(tmp_path / "predictions.npz")
    assert ids.shape == (60, 100)
    assert ((ids >= 0).sum(axis=1) <= 48).all()
    assert (scores[:, 1:] <= scores[:, :-1]).all()
    pairs = [line.split() for line in (toy_dataset / "filter_labels_test.txt").read_text().splitlines()]
    assert pairs
    assert all(int(label) not in ids[int(row)] for row, label in pairs)
    # a label is two words, and a query has those of its labels: what reads the texts is right much more often
    least = {"popularity": 0, "zero_shot": 0, "knn": 0.05, "occa": 0}.get(name, 0.5)
    assert metrics["test/P@1"] >= least
    (record,) = read_runs(tmp_path)
    assert (record.dataset, record.status, record.seed) == ("custom", "finished", 0)
    assert record.export["data_fingerprint"]
    assert len(record.export["data_source"]) == 32


def test_held_out_queries_are_those_of_a_training_and_not_trained_on(settings, tmp_path, monkeypatch):
    seen = {}

    class Spy:
        def rank(self, training, queries, k):
            seen.update(training=training, queries=queries, k=k)
            ids = np.tile(np.arange(k), (1, 1))
            rankings = {
                name: (ids.repeat(len(each), 0), -ids.repeat(len(each), 0).astype(np.float32))
                for name, each in queries.items()
            }
            return Outcome(rankings, Cost(1.0, 2.0, 3, 4, 5.0))

    monkeypatch.setattr("prime_xmc.baselines.running.instantiate", lambda *_, **__: Spy())
    run(settings, tmp_path, "method=popularity", "seed=3")
    texts = seen["queries"]["val"].strings
    shuffled = np.random.default_rng(3).permutation(240)
    assert len(texts) == 40
    assert len(seen["training"].queries) == 200
    assert seen["training"].positives.lengths.min() > 0
    assert len(seen["training"].labels) == 48
    assert seen["k"] == 48  # no more labels than there are
    assert seen["training"].queries.strings[0] == _title(settings, np.sort(shuffled[40:])[0])
    assert texts[0] == _title(settings, np.sort(shuffled[:40])[0])


def _title(settings, row):
    (folder,) = [each.partition("=")[2] for each in settings if each.startswith("dataset.dir=")]
    with gzip.open(f"{folder}/trn.json.gz", "rt") as lines:
        return json.loads(list(lines)[row])["title"]


def test_test_false_ranks_no_test_queries(settings, tmp_path):
    made = run(settings, tmp_path, "method=popularity", "test=false")
    assert not (tmp_path / "predictions.npz").exists()
    assert not [name for name in made.metrics if name.startswith("test/")]


NO_TFIDF = "no effect, since this method has no tf-idf vectors"
NO_TRAINING = "no effect; the settings of a method are under method."


@pytest.mark.parametrize(
    ("method", "given", "warned"),
    [
        ("popularity", ["tfidf.min_df=2", "++tfidf.ngrams=[1,1]", "seed=0"], "tfidf.min_df=2 ++tfidf.ngrams=[1,1]"),
        ("popularity", ["tfidf={min_df: 2}"], "tfidf={min_df: 2}"),
        ("popularity", ["seed=0"], None),
        ("popularity", ["dataset.max_length=16"], None),
        ("knn_tfidf", ["tfidf.min_df=2"], None),
        ("knn_tfidf", ["dataset.lr=1", "+dataset.clusters.x=3"], "dataset.lr=1 +dataset.clusters.x=3"),
    ],
)
def test_settings_that_a_method_does_not_use_are_told(settings, tmp_path, monkeypatch, caplog, method, given, warned):
    monkeypatch.setattr("prime_xmc.baselines.running.given_settings", lambda: given)
    run(settings, tmp_path, f"method={method}", "test=false", *given)
    reason = NO_TRAINING if method == "knn_tfidf" else NO_TFIDF
    expected = [] if warned is None else [f"{warned}: {reason}"]
    own = [record for record in caplog.records if record.name != "prime_xmc.data.preparation"]
    assert [record.getMessage() for record in own if record.levelname == "WARNING"] == expected


def test_results_of_an_earlier_run_in_the_folder_go(settings, tmp_path):
    run(settings, tmp_path, "method=popularity")
    run(settings, tmp_path, "method=popularity", "test=false")
    assert not (tmp_path / "predictions.npz").exists()


def test_a_class_that_cannot_rank_is_refused(settings, tmp_path):
    with pytest.raises(
        ValueError, match=r"method\._target_=collections\.Counter: expected a class with a method `rank`"
    ):
        run(settings, tmp_path, "method=popularity", "method._target_=collections.Counter")


def test_an_environment_that_cannot_be_made_ends_the_run_with_a_message(settings, tmp_path):
    options = [f"envs_dir={tmp_path / 'envs'}", "method.environment.pip_options=[--no-index]"]
    with pytest.raises(ValueError, match="method=xr_linear needs an environment of its own"):
        run(settings, tmp_path / "run", "method=xr_linear", *options)
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_cost_is_told_under_the_names_of_trainings():
    assert describe_cost(Cost(1.0, 2.0, 3, 4, 5.0)) == {
        "train/seconds": 1.0,
        "train/cpu_seconds": 2.0,
        "peak_rss_bytes": 3,
        "model_bytes": 4,
        "predict/milliseconds_per_query": 5.0,
    }
    on_gpu = describe_cost(Cost(1.0, 2.0, 3, 4, None, "NVIDIA H100", 5))
    assert (on_gpu["device"], on_gpu["peak_device_memory_bytes"]) == ("NVIDIA H100", 5)
    assert "predict/milliseconds_per_query" not in on_gpu


def test_report_compares_a_baseline_with_a_training(settings, tmp_path, toy_settings, compose):
    run(settings, tmp_path / "tree", "method=parabel", "+method.parameters.min_branch_size=8")
    run(
        [*settings[:-1], "threads=2"],
        tmp_path / "again",
        "method=parabel",
        "+method.parameters.min_branch_size=8",
        "seed=1",
    )
    (cache,) = [each for each in settings if each.startswith("cache_dir=")]
    train_prototypes(compose(*toy_settings, cache, f"run_dir={tmp_path / 'train'}", "trainer.max_epochs=1"))
    records = [record for name in ("train", "tree", "again") for record in read_runs(tmp_path / name)]
    (group,) = group_runs(records, [])
    assert [len(each.runs) for each in group.configurations] == [1, 2]  # threads and seed are no settings
    trained, tree = group.configurations
    study = make_study(group, trained, num_resamples=200, num_examples=2, seed=0)
    comparison = study.comparisons[tree.name, "P@1"]
    assert comparison.difference == pytest.approx(np.mean(tree.final("test/P@1")) - trained.final("test/P@1")[0])
    assert 0 <= comparison.p <= 1
    (cost,) = [each for each in make_tables(study) if each.name == "cost"]
    assert cost.header[-3:] == ("CPU s", "model MB", "ms a query")
    assert all(float(row[-1].text) > 0 for row in cost.rows)
