import json

import pytest
from omegaconf import OmegaConf

from prime_xmc.data.corpus import Corpus
from prime_xmc.data.preparation import prepare
from prime_xmc.data.raw import RawFiles
from prime_xmc.data.tokenizer import load_tokenizer
from prime_xmc.reporting.configurations import (
    Configuration,
    differences,
    find_configuration,
    group_runs,
    negative_pool,
)
from prime_xmc.reporting.run_folders import find_runs, read_runs


def grouped(folder, *cache_dirs):
    return group_runs([run for path in find_runs([f"{folder}/**"]) for run in read_runs(path)], cache_dirs)


def write_choices(run, choices):
    content = {"hydra": {"runtime": {"choices": choices}}}
    OmegaConf.save(OmegaConf.create(content), run / ".hydra" / "hydra.yaml")


class TestGroup:
    def test_by_configuration_and_seed(self, runs_dir, cache_dir):
        (group,) = grouped(runs_dir, cache_dir)
        assert group.name == "evil"
        assert group.corpus is not None
        assert [c.name for c in group.configurations] == ["batch_size=64", "batch_size=128"]
        assert [[run.seed for run in c.runs] for c in group.configurations] == [[0, 1, 2], [0, 1, 2]]
        assert [run.status for run in group.unfinished] == ["failed: ValueError: <no>"]
        assert negative_pool(group.configurations[1]) == 256

    def test_where_no_labels_are_drawn_there_is_no_pool(self, tmp_path, write_run, cache_dir):
        """Of one-vs-all classifiers, whose steps see all labels; a logarithmic axis has no place for 0."""
        write_run(tmp_path / "run", sampling__num_positives=0)
        (group,) = grouped(tmp_path, cache_dir)
        assert group.configurations[0].settings["sampling.num_positives"] == 0
        assert negative_pool(group.configurations[0]) is None

    @pytest.mark.parametrize(
        ("settings", "pool"),
        [
            ({}, 128),
            ({"mined__first_epoch": 1, "mined__num_drawn": 3}, 64 * 5),
            ({"mined__first_epoch": 0, "mined__num_drawn": 3, "mined__alone": True}, 3),
            ({"mined__first_epoch": None, "mined__num_drawn": 3}, 128),
            ({"batch_labels": "all"}, None),
            ({"sampler___target_": "prime_xmc.data.sampling.LabelBatchSampler"}, 64),
        ],
    )
    def test_the_pool_is_of_all_labels_that_a_batch_draws(self, tmp_path, write_run, cache_dir, settings, pool):
        write_run(tmp_path / "run", **{f"sampling__{key}": value for key, value in settings.items()})
        (group,) = grouped(tmp_path, cache_dir)
        assert negative_pool(group.configurations[0]) == pool

    def test_a_batch_that_follows_the_size_of_the_data_has_a_pool(self, tmp_path, write_run, cache_dir):
        write_run(tmp_path / "run", sampling__batch_size=None)
        path = tmp_path / "run" / "model" / "prime_config.json"
        content = json.loads(path.read_text())
        content["settings"]["config"] = {"sampling": {"batch_size": 16}}
        path.write_text(json.dumps(content))
        (group,) = grouped(tmp_path, cache_dir)
        assert negative_pool(group.configurations[0]) == 32

    def test_other_queries_to_test_on_are_other_data(self, tmp_path, tiny_encoder_dir, write_run):
        """Raw files without a test split, of which dataset.num_test splits one off."""
        raw = tmp_path / "raw"
        raw.mkdir()
        records = {
            "trn": [{"uid": str(row), "title": f"query {row}", "target_ind": [row % 3]} for row in range(30)],
            "lbl": [{"uid": f"l{row}", "title": f"label {row}"} for row in range(3)],
        }
        for name, lines in records.items():
            (raw / f"{name}.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        for number, num_test in enumerate((6, 8, 8)):
            directory = prepare(
                RawFiles(raw, "evil", num_test=num_test),
                load_tokenizer(str(tiny_encoder_dir)).backend_tokenizer,
                tokenizer_name="tiny",
                pad_token_id=0,
                max_length=16,
                cache_dir=tmp_path / "cache",
            )
            run = write_run(tmp_path / "runs" / str(number), seed=number, dataset__num_test=num_test)
            settings = {"data_fingerprint": Corpus.open(directory).manifest["fingerprint"], "config": {}}
            (run / "model" / "prime_config.json").write_text(json.dumps({"settings": settings}))
        groups = grouped(tmp_path / "runs", tmp_path / "cache")
        found = {len(group.corpus.test): [len(c.runs) for c in group.configurations] for group in groups}
        assert found == {6: [1], 8: [2]}

    def test_prepared_data_are_found_by_the_configuration_of_a_run(self, tmp_path, write_run, cache_dir):
        write_run(tmp_path / "run", cache_dir=str(cache_dir))
        (group,) = grouped(tmp_path)
        assert group.corpus is not None
        write_run(tmp_path / "run", cache_dir="${oc.env:NO_SUCH_VARIABLE_IS_SET}")
        (group,) = grouped(tmp_path)
        assert group.corpus is None

    def test_of_a_seed_the_newest_counts(self, runs_dir, write_run):
        again = write_run(runs_dir / "again", seed=1, overrides=("dataset.batch_size=64",), dataset__batch_size=64)
        (group,) = grouped(runs_dir)
        assert [run.path.name for run in group.configurations[0].runs] == ["0", again.name, "2"]
        assert [run.path.name for run in group.repeated] == ["1"]

    def test_data_sets_apart_and_a_run_without_a_model_with_the_others(self, runs_dir, write_run, cache_dir):
        write_run(runs_dir / "20", dataset__name="other", overrides=("dataset=other",))
        (write_run(runs_dir / "21", loss__gamma_min=0.3) / "model" / "prime_config.json").unlink()
        evil, other = grouped(runs_dir, cache_dir)
        assert (evil.name, other.name, other.corpus) == ("evil", "other", None)
        assert [c.name for c in other.configurations] == ["default"]
        assert len(evil.configurations) == 3

    def test_data_sets_of_one_name_in_two_folders(self, tmp_path, write_run, cache_dir):
        """As users' own are, which are all called custom unless they say otherwise."""
        fingerprints = {}
        for name, folder in (("a", "A"), ("b", "B"), ("c", "B")):
            path = write_run(tmp_path / name, dataset__dir=folder, overrides=(f"dataset.dir={folder}",), skill=0.9)
            fingerprints[name] = path / "model" / "prime_config.json"
        other = json.loads(fingerprints["b"].read_text())
        other["settings"]["data_fingerprint"] = "0" * 64
        for name in ("b", "c"):
            fingerprints[name].write_text(json.dumps(other))
        found = grouped(tmp_path, cache_dir)
        assert [[c.runs[0].path.name for c in group.configurations] for group in found] == [["a"], ["c"]]
        assert [group.corpus is None for group in found] == [False, True]
        assert len({group.name for group in grouped(tmp_path)}) == 2
        fingerprints["c"].unlink()  # an older baseline, say: its folder tells
        assert [len(group.repeated) for group in grouped(tmp_path, cache_dir)] == [0, 1]

    def test_the_same_data_in_two_folders(self, tmp_path, write_run, cache_dir):
        for seed, folder in enumerate(("/home/a/data", "/home/b/data")):
            given = (f"dataset.dir={folder}", "loss.gamma_min=0.3")
            write_run(tmp_path / str(seed), seed=seed, dataset__dir=folder, loss__gamma_min=0.3, overrides=given)
        for caches in ((cache_dir,), ()):  # by the prepared data, or their fingerprint
            ((configuration,),) = [group.configurations for group in grouped(tmp_path, *caches)]
            assert [run.seed for run in configuration.runs] == [0, 1]
            assert configuration.name == "gamma_min=0.3"

    def test_data_that_have_changed_in_their_folder(self, tmp_path, write_run):
        """Runs of the same settings whose prepared data are gone: their fingerprints tell them apart."""
        for seed, fingerprint in enumerate("aab"):
            path = write_run(tmp_path / str(seed), seed=seed, dataset__dir="my_data") / "model" / "prime_config.json"
            path.write_text(json.dumps({"settings": {"data_fingerprint": 64 * fingerprint, "config": {}}}))
        of_other_method = write_run(tmp_path / "3", dataset__dir="my_data", loss__gamma_min=0.3)
        path = of_other_method / "model" / "prime_config.json"
        path.write_text(json.dumps({"settings": {"data_fingerprint": 64 * "b", "config": {}}}))
        found = [[[run.seed for run in c.runs] for c in group.configurations] for group in grouped(tmp_path)]
        assert found == [[[0, 1]], [[2], [0]]]

    def test_data_that_were_prepared_by_another_tokenizer(self, tmp_path, write_run):
        """Runs note which raw files their data are made from, whatever the fingerprint of what was made."""
        for seed, (fingerprint, source) in enumerate(["ax", "bx", "by"]):
            path = write_run(tmp_path / str(seed), seed=seed) / "model" / "prime_config.json"
            settings = {"data_fingerprint": 64 * fingerprint, "data_source": source, "config": {}}
            path.write_text(json.dumps({"settings": settings}))
        found = [[[run.seed for run in c.runs] for c in group.configurations] for group in grouped(tmp_path)]
        assert found == [[[0, 1]], [[2]]]

    def test_names_are_short_and_unique(self, tmp_path, write_run):
        given = [
            (("experiment=table6/prime",), {}),
            (("experiment=table6/prime", "loss.gamma_min=0.3"), {"loss__gamma_min": 0.3}),
            (("dataset.lr=1", "optimizer.lr=2"), {"loss__gamma_min": 0.4}),
            ((), {"loss__gamma_min": 0.5}),
            ((), {"loss__gamma_min": 0.6}),
        ]
        for number, (overrides, settings) in enumerate(given):
            write_run(tmp_path / str(number), overrides=("dataset=evil", *overrides), **settings)
        (group,) = grouped(tmp_path)
        assert [c.name for c in group.configurations] == [
            "table6/prime",
            "table6/prime, gamma_min=0.3",
            "dataset.lr=1, optimizer.lr=2",
            "default",
            "default (2)",
        ]

    def test_several_systems_are_named_each_by_its_own(self, tmp_path, write_run):
        given = [
            ("model=ngame", "classify=false", "neighbours=null"),
            ("method=bonsai", "threads=1"),
            ("method=plt", "method.label_texts=true"),
            ("method=plt", "method.label_texts=false"),
            ("model=dexa", "trainer.max_epochs=6"),
            ("experiment=fast",),
            (),
        ]
        for number, overrides in enumerate(given):
            run = write_run(tmp_path / str(number), overrides=("dataset=evil", *overrides), loss__number=number)
            if not overrides[:1] or overrides[0].startswith("experiment"):
                write_choices(run, {"model": "prime", "loss": "prime"})
        (group,) = grouped(tmp_path)
        assert [c.name for c in group.configurations] == [
            "model=ngame",
            "method=bonsai",
            "method=plt, label_texts=true",
            "method=plt, label_texts=false",
            "model=dexa",
            "model=prime, fast",
            "model=prime",
        ]

    def test_the_one_system_of_a_report_is_not_named(self, tmp_path, write_run):
        for number in range(2):
            run = write_run(tmp_path / str(number), loss__number=number, overrides=(f"loss.number={number}",))
            write_choices(run, {"model": "prime"})
        write_run(tmp_path / "2", loss__number=2)  # of a folder without Hydra's own file
        (group,) = grouped(tmp_path)
        assert [c.name for c in group.configurations] == ["number=0", "number=1", "default"]

    def test_differences_leave_out_what_repeats_another_key(self, runs_dir):
        (group,) = grouped(runs_dir)
        assert differences(group.configurations) == {"dataset.batch_size": [64, 128]}

    def test_a_configuration_is_found_by_name_or_folder(self, runs_dir, monkeypatch):
        (group,) = grouped(runs_dir)
        first, second = group.configurations
        monkeypatch.chdir(runs_dir)
        assert find_configuration(group, "batch_size=128") is second
        assert find_configuration(group, "1") is first
        assert find_configuration(group, "9") is None

    def test_a_folder_of_a_run_that_does_not_count_is_its_configuration(self, runs_dir, write_run, caplog):
        write_run(runs_dir / "again", seed=1, overrides=("dataset.batch_size=64",), dataset__batch_size=64)
        (group,) = grouped(runs_dir)
        assert find_configuration(group, str(runs_dir / "1")) is group.configurations[0]
        assert "sweep/1: newer runs of the same configuration count in its place" in caplog.text

    def test_settings_computed_from_others_are_no_differences_of_their_own(self, tmp_path, write_run):
        for number in range(2):
            write_run(
                tmp_path / str(number),
                loss__gamma_min=number,
                callbacks__clusters__gamma="${oc.select:loss.gamma_min,null}",
                callbacks__clusters__label="${dataset.name}-${loss.gamma_min}",
            )
        (group,) = grouped(tmp_path)
        assert differences(group.configurations) == {"loss.gamma_min": [0, 1]}

    def test_null_is_no_difference_from_a_setting_that_is_not_there(self, tmp_path, write_run):
        write_run(tmp_path / "0", loss__gamma_min=1, method__k=1, method__parameters={"token_pattern": None})
        write_run(tmp_path / "1", loss__gamma_min=2, method__k=1)
        (group,) = grouped(tmp_path)
        assert differences(group.configurations) == {"loss.gamma_min": [1, 2]}

    def test_settings_computed_in_different_ways_are_differences(self, tmp_path, write_run):
        write_run(tmp_path / "0", loss__gamma_min="${sampling.num_positives}")
        write_run(tmp_path / "1", loss__gamma_min="${sampling.batch_size}")
        (group,) = grouped(tmp_path)
        assert differences(group.configurations) == {"loss.gamma_min": [2, 64]}

    def test_debugging_runs_count_nowhere(self, runs_dir, write_run):
        write_run(runs_dir / "20", skill=0.1, trainer__fast_dev_run=True)
        write_run(runs_dir / "21", debug="overfit", finished=False)
        (group,) = grouped(runs_dir)
        assert [run.path.name for run in group.debugging] == ["20", "21"]
        assert [len(c.runs) for c in group.configurations] == [3, 3]
        assert [run.path.name for run in group.unfinished] == ["10"]

    def test_debugging_runs_alone_are_an_error(self, tmp_path, write_run):
        write_run(tmp_path / "0", debug="fast")
        with pytest.raises(ValueError, match="all 1 runs are for debugging"):
            grouped(tmp_path)


def test_metrics_that_only_some_runs_have(tmp_path, write_run):
    runs = [read_runs(write_run(tmp_path / str(seed), seed=seed))[0] for seed in range(2)]
    assert runs[1].metrics.pop("test/P@1") > 0
    configuration = Configuration("both", tuple(runs))
    assert configuration.final("test/P@1") == [runs[0].metrics["test/P@1"]]
    assert configuration.final("test/nothing") == []
