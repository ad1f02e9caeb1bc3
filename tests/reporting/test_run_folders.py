import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from prime_xmc.export import bundle
from prime_xmc.reporting import run_folders as module
from prime_xmc.reporting.run_folders import find_runs, read_runs


def test_the_export_is_where_the_bundle_writes_it():
    assert module._EXPORT.name == bundle.CONFIG


class TestFind:
    def test_in_natural_order_and_each_once(self, runs_dir):
        found = find_runs([f"{runs_dir}/**", f"{runs_dir}/*"])
        assert [path.name for path in found] == ["0", "1", "2", "3", "4", "5", "10", "11"]

    def test_brackets_in_the_name_of_a_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in ("runs [b]/0", "runs [b]/1", "runs b/0"):
            (tmp_path / name / ".hydra").mkdir(parents=True)
            (tmp_path / name / ".hydra" / "config.yaml").touch()
        assert find_runs(["runs [b]/0"]) == [Path("runs [b]/0")]
        assert find_runs([f"{tmp_path}/runs [b]/*"]) == [tmp_path / "runs [b]/0", tmp_path / "runs [b]/1"]
        assert find_runs(["runs [a-c]/*"]) == [Path("runs b/0")]

    def test_none(self, tmp_path):
        with pytest.raises(ValueError, match=r"no run folder matches.*\.hydra/config\.yaml"):
            find_runs([f"{tmp_path}/**"])


class TestRead:
    def test_settings_leave_out_seed_and_paths_and_what_the_machine_answers(self, tmp_path, write_run):
        (run,) = read_runs(write_run(tmp_path / "run", seed=3, overrides=("++loss.gamma_min=0.1", "cache_dir=x")))
        assert run.seed == 3
        assert run.settings["sampling.batch_size"] == 64
        assert run.settings["encoder.source"] == "<package:some_package/model>"
        assert not {"seed", "run_dir", "cache_dir"} & run.settings.keys()
        assert run.overrides == {"loss.gamma_min": "0.1"}
        assert run.epochs[0] == {"epoch": 0, "step": 5, "lr": 1e-4, "train/loss": 0.5, "train/violators": 0.9}
        assert run.fingerprint() == read_runs(write_run(tmp_path / "other", seed=4))[0].fingerprint()

    def test_a_resolver_of_another_version_stays_as_it_is(self, tmp_path, write_run):
        (run,) = read_runs(write_run(tmp_path / "run", loss__gamma_min="${long_gone:1}"))
        assert run.settings["loss.gamma_min"] == "<long_gone:1>"

    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("metrics.json", "{", "metrics.json: not readable as JSON"),
            ("metrics.json", "[]", "metrics.json: expected a JSON object, got list"),
            ("metrics.csv", "epoch,train/loss\n0,0.5\n1,much\n", "metrics.csv, line 3: expected numbers"),
            ("metrics.csv", "step,train/loss\n0,0.5\n", r"metrics.csv, line 1: .* \(there is no column epoch\)"),
            (".hydra/config.yaml", "a: [", "config.yaml: not readable as YAML"),
            (".hydra/config.yaml", "seed: 1", "config.yaml: not the configuration of a training run"),
            ("model/prime_config.json", "", "prime_config.json: not readable as JSON"),
        ],
    )
    def test_a_damaged_file_is_named(self, tmp_path, write_run, file, content, message):
        path = write_run(tmp_path / "run")
        (path / file).write_text(content)
        with pytest.raises(ValueError, match=message):
            read_runs(path)

    def test_a_run_of_classifiers_is_one_for_each_scorer(self, tmp_path, write_run):
        path = write_run(tmp_path / "run")
        metrics = {"test/theta/P@1": 0.1, "test/W/P@1": 0.2, "train/seconds": 5}
        (path / "metrics.json").write_text(json.dumps(metrics))
        (path / "predictions.npz").rename(path / "predictions_W.npz")
        theta, weights = read_runs(path)
        assert theta.metrics == {"test/P@1": 0.1, "train/seconds": 5}
        assert weights.metrics == {"test/P@1": 0.2, "train/seconds": 5}
        assert (theta.predictions, weights.predictions) == (None, path / "predictions_W.npz")
        assert weights.overrides["scorer"] == "W"
        assert theta.fingerprint() != weights.fingerprint()

    def test_a_run_with_a_second_stage_is_also_one_for_each_of_its_scorers(self, tmp_path, write_run):
        path = write_run(tmp_path / "run", overrides=("classify=[]",))
        metrics = {"test/P@1": 0.1, "test/W/P@1": 0.2, "test/ensemble/P@1": 0.3}
        times = {"train/seconds": 5, "classify/seconds": 2, "train/passes": 4.5, "classify/passes": 0.25}
        whole = {"train/seconds": 7, "classify/seconds": 2, "train/passes": 4.75, "classify/passes": 0.25}
        (path / "metrics.json").write_text(json.dumps(metrics | times))
        (path / "classify").mkdir()
        (path / "classify" / "predictions_W.npz").write_bytes((path / "predictions.npz").read_bytes())
        (path / "classify" / "metrics.csv").write_text("epoch,train/loss,val/W/P@1\n0,0.5,0.25\n")
        first, weights, ensemble = read_runs(path)
        assert first.metrics == {"test/P@1": 0.1, **times}
        assert weights.metrics == {"test/P@1": 0.2, **whole}
        assert ensemble.metrics == {"test/P@1": 0.3, **whole}
        assert first.predictions == path / "predictions.npz"
        assert (weights.predictions, ensemble.predictions) == (path / "classify" / "predictions_W.npz", None)
        assert first.epochs[0]["train/violators"] == 0.9
        assert weights.epochs == [{"epoch": 0, "train/loss": 0.5, "val/P@1": 0.25}]
        assert [run.overrides.get("scorer") for run in (first, weights, ensemble)] == [None, "W", "ensemble"]

    def test_the_ensemble_of_a_run_and_the_vote_are_in_its_own_folder(self, tmp_path, write_run):
        path = write_run(tmp_path / "run", overrides=("neighbours.k=5",))
        times = {"train/seconds": 5, "classify/seconds": 2, "ensemble/seconds": 1}
        scored = {"test/P@1": 0.1, "test/W/P@1": 0.2, "test/neighbours/P@1": 0.3, "test/ensemble/P@1": 0.4}
        (path / "metrics.json").write_text(json.dumps(scored | times))
        (path / "classify").mkdir()
        for folder, scorer in ((path, "ensemble"), (path / "classify", "ensemble"), (path / "classify", "W")):
            (folder / f"predictions_{scorer}.npz").write_bytes((path / "predictions.npz").read_bytes())
        (path / "classify" / "metrics.csv").write_text("epoch,train/loss,val/W/P@1\n0,0.5,0.25\n")
        theta, weights, vote, ensemble = read_runs(path)
        assert [run.metrics["train/seconds"] for run in (theta, weights, vote, ensemble)] == [5, 7, 6, 8]
        assert ensemble.predictions == path / "predictions_ensemble.npz"
        assert weights.predictions == path / "classify" / "predictions_W.npz"
        assert (vote.predictions, vote.epochs) == (None, [])
        assert [run.overrides.get("neighbours.k") for run in (theta, vote)] == [None, "5"]

    def test_each_scorer_has_the_cost_of_what_it_needs(self, tmp_path, write_run):
        path = write_run(tmp_path / "run")
        scored = {f"test/{name}P@1": 0.5 for name in ("", "W/", "neighbours/", "lexical/", "ensemble/")}
        cost = {"train/cpu_seconds": 100, "classify/cpu_seconds": 10, "ensemble/cpu_seconds": 1}
        sizes = {"model_bytes": 1000, "classify/model_bytes": 100, "neighbours/model_bytes": 10}
        times = {"": 1.0, "W/": 1.5, "neighbours/": 2.0, "ensemble/": 3.0}
        answering = {f"predict/{name}milliseconds_per_query": value for name, value in times.items()}
        everything = scored | cost | sizes | {"lexical/model_bytes": 1} | answering
        (path / "metrics.json").write_text(json.dumps(everything))
        runs = read_runs(path)
        names = ("train/cpu_seconds", "model_bytes", "predict/milliseconds_per_query")
        assert {run.overrides.get("scorer"): tuple(run.metrics.get(name) for name in names) for run in runs} == {
            None: (100, 1000, 1.0),
            "W": (110, 1100, 1.5),
            "neighbours": (101, 1010, 2.0),
            "lexical": (101, 1001, None),
            "ensemble": (111, 1111, 3.0),
        }

    def test_what_follows_the_prototypes_makes_no_other_configuration_of_them(self, tmp_path, write_run):
        plain, more = write_run(tmp_path / "plain"), write_run(tmp_path / "more")
        config = more / ".hydra" / "config.yaml"
        config.write_text(config.read_text() + "\nclassify: true\nneighbours: {k: 20}\nlexical: {pairs: true}\n")
        (more / "metrics.json").write_text(json.dumps({"test/P@1": 0.1, "test/W/P@1": 0.2}))
        (alone,), (theta, weights) = read_runs(plain), read_runs(more)
        assert alone.fingerprint() == theta.fingerprint() != weights.fingerprint()

    def test_scorers_are_the_same_whatever_is_set_of_others(self, tmp_path, write_run):
        fingerprints = []
        settings = {"neighbours__k": 5, "lexical__pairs": True, "ensemble__criterion": "P@1", "classify_settings": []}
        others = {
            "neighbours__k": 6,
            "lexical__pairs": False,
            "ensemble__criterion": "P@3",
            "classify_settings": ["a=1"],
        }
        for key in (None, *settings):
            given = settings | ({key: others[key]} if key else {})
            path = write_run(
                tmp_path / str(key), overrides=(f"ensemble.criterion={given['ensemble__criterion']}",), **given
            )
            scored = {f"test/{name}P@1": 0.5 for name in ("", "W/", "neighbours/", "lexical/", "ensemble/")}
            (path / "metrics.json").write_text(json.dumps(scored))
            fingerprints.append([run.fingerprint() for run in read_runs(path)])
        first, *rest = (
            dict(zip(("theta", "W", "neighbours", "lexical", "ensemble"), each, strict=True)) for each in fingerprints
        )
        changed = [[name for name in first if first[name] != each[name]] for each in rest]
        assert changed == [["neighbours", "ensemble"], ["lexical", "ensemble"], ["ensemble"], ["W", "ensemble"]]

    def test_classifiers_of_models_that_differ_in_their_seed_are_of_one_configuration(self, tmp_path, write_run):
        paths = []
        for number, (seed, gamma_min) in enumerate([(1, 0.1), (2, 0.1), (1, 0.3)]):
            path = write_run(tmp_path / str(number), model__dir=f"run{number}/model")
            (path / "metrics.json").write_text(json.dumps({"test/W/P@1": 0.5}))
            (path / "model" / "prime_config.json").unlink()
            (path / "classifiers").mkdir()
            model = {"seed": seed, "loss": {"gamma_min": gamma_min}, "run_dir": f"run{number}"}
            model["callbacks"] = {"clusters": {"seed": seed}, "table": {"path": f"run{number}/metrics.csv"}}
            settings = {"settings": {"config": {}, "model": model}}
            (path / "classifiers" / "classifiers.json").write_text(json.dumps(settings))
            paths.append(path)
        first, other_seed, other_margin = (read_runs(path)[0] for path in paths)
        assert [run.seed for run in (first, other_seed, other_margin)] == [1, 2, 1]
        assert first.fingerprint() == other_seed.fingerprint() != other_margin.fingerprint()
        assert first.settings["model.loss.gamma_min"] == 0.1

    def test_callbacks_and_options_that_only_watch_are_no_settings(self, tmp_path, write_run):
        given = {
            "callbacks__histograms": {"_target_": "prime_xmc.training.tracking.LogHistograms", "gamma_min": 0.1},
            "callbacks__checkpoint": {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "save_top_k": 3},
            "callbacks__memory": None,
            "trainer__log_every_n_steps": 1,
        }
        overrides = ("callbacks.histograms.every_n_steps=5", "trainer.log_every_n_steps=1")
        (plain,) = read_runs(write_run(tmp_path / "plain"))
        (watched,) = read_runs(write_run(tmp_path / "watched", overrides=overrides, **given))
        assert plain.fingerprint() == watched.fingerprint()
        assert watched.overrides == {}
        stopping = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/P@1"}
        (stopped,) = read_runs(write_run(tmp_path / "stopped", callbacks__stop=stopping))
        assert stopped.fingerprint() != plain.fingerprint()

    def test_every_callback_that_is_there_by_default_is_known_to_watch_or_to_change_what_a_run_learns(self, compose):
        # One that a later version adds would otherwise part its runs from those of the versions before.
        given = {str(callback._target_).rpartition(".")[2] for callback in compose().callbacks.values()}
        assert given - module._WATCHERS == {"InitialisePrototypes", "RebuildClusters", "MineNegatives"}

    def test_null_is_what_a_run_has_of_a_setting_that_its_version_did_not_know(self, tmp_path, write_run):
        (old,) = read_runs(write_run(tmp_path / "old", method__k=1))
        (new,) = read_runs(write_run(tmp_path / "new", method__k=1, method__parameters={"token_pattern": None}))
        (other,) = read_runs(write_run(tmp_path / "other", method__k=1, method__parameters={"token_pattern": "a"}))
        assert old.fingerprint() == new.fingerprint() != other.fingerprint()

    def test_methods_have_no_settings_of_the_training_of_an_encoder(self, tmp_path, write_run):
        def read(name, batch_size, **given):
            overrides = (f"dataset.batch_size={batch_size}",)
            return read_runs(write_run(tmp_path / name, overrides=overrides, dataset__batch_size=batch_size, **given))[
                0
            ]

        small, large = (read(name, size, method__k=50, sampling=None) for name, size in (("small", 32), ("large", 64)))
        assert small.fingerprint() == large.fingerprint()
        assert small.overrides == {}
        assert {key for key in small.settings if key.startswith("dataset.")} == {
            *("dataset.name", "dataset.propensity.a", "dataset.propensity.b"),
        }
        assert read("trained", 32).fingerprint() != read("trained_too", 64).fingerprint()

    def test_an_object_that_moved_within_the_package_is_the_same(self, tmp_path, write_run):
        targets = ("prime_xmc.callbacks.Rebuild", "prime_xmc.training.callbacks.Rebuild", "other.callbacks.Rebuild")
        old, new, other = (
            read_runs(write_run(tmp_path / str(place), callbacks__clusters___target_=target))[0]
            for place, target in enumerate(targets)
        )
        assert old.fingerprint() == new.fingerprint() != other.fingerprint()

    @pytest.mark.parametrize(
        ("given", "is_debugging"),
        [
            ({}, False),
            ({"debug": None}, False),
            ({"debug": "profile"}, True),
            ({"trainer__fast_dev_run": True}, True),
            ({"trainer__fast_dev_run": False}, False),
            ({"trainer__overfit_batches": 2}, True),
            ({"trainer__overfit_batches": 0.0}, False),
            ({"trainer__limit_train_batches": 0.1}, True),
            ({"trainer__limit_train_batches": 1.0}, False),
            ({"trainer__limit_test_batches": 1}, True),
            ({"trainer__limit_val_batches": None}, False),
            ({"trainer__limit_val_batches": 0}, False),
        ],
    )
    def test_debugging_runs_are_recognised(self, tmp_path, write_run, given, is_debugging):
        (run,) = read_runs(write_run(tmp_path / "run", **given))
        assert run.is_debugging == is_debugging
        assert "debug" not in run.settings


def test_reading_runs_no_code(tmp_path, write_run):
    path = write_run(tmp_path / "run")
    content = OmegaConf.to_yaml(OmegaConf.load(path / ".hydra" / "config.yaml"))
    Path(path, ".hydra", "config.yaml").write_text(content + "evil: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ValueError, match="not readable as YAML"):
        read_runs(path)
