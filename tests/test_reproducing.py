"""Published numbers beside those of a run, on toy data with a made-up published result."""

import json
import shutil

import pytest
from omegaconf import OmegaConf

from prime_xmc import reproduce, reproducing
from prime_xmc.composing import compose as compose_app
from prime_xmc.reporting.published import read_published
from prime_xmc.reporting.run_folders import read_runs
from prime_xmc.reproducing import check_raw_files, compare, dataset_option, notes_on
from prime_xmc.reproducing import reproduce as compare_config

PUBLISHED = """\
table,dataset,method,kind,metric,value,note
2,custom,PRIME,encoder,P@1,60.00,
2,custom,PRIME,encoder,R@100,100.00,made up
4,custom,PRIME (W),classifier,P@1,50.00,
4,custom,Other,encoder,PSP@3,10.00,
"""


@pytest.fixture
def published(tmp_path):
    path = tmp_path / "published.csv"
    path.write_text(PUBLISHED, encoding="utf-8")
    return path


@pytest.fixture
def write_run(tmp_path):
    """Writes a run folder with these metrics: write_run({"test/P@1": 0.5}, dataset="custom")."""

    def write(metrics, **settings):
        folder = tmp_path / "a run"
        (folder / ".hydra").mkdir(parents=True)
        config = {"seed": 0, "dataset": {"name": settings.pop("dataset", "custom")}, **settings}
        (folder / ".hydra" / "config.yaml").write_text(json.dumps(config))
        if metrics is not None:
            (folder / "metrics.json").write_text(json.dumps(metrics))
        return folder

    return write


@pytest.fixture
def configure(compose, published):
    return lambda *more: compose("trainer=cpu", f"published={published}", *more, name="reproduce")


def test_the_default_is_the_papers_method_on_its_encoder():
    config = compose_app("reproduce", [])
    assert config.dataset.name == "LF-AmazonTitles-131K"
    assert config.encoder.source == "sentence-transformers/msmarco-distilbert-base-v4"
    assert (config.classify, config.neighbours, config.lexical) == (False, None, None)
    assert (config.encoder.frozen_layers, config.sampling.memory_labels, config.sampling.leave_one_out) == (0, 0, 0)
    assert (config.sampling.batch_size, config.trainer.max_epochs, config.optimizer.lr) == (3200, 300, 3e-4)
    assert (config.loss.weighting, config.trainer.accelerator) == ("softmax", "gpu")


def test_training_on_toy_data(configure, toy_settings, published, tmp_path, capsys):
    quick = ["dataset.max_epochs=1", "dataset.clusters.double_at=[]", "callbacks.progress=null"]
    settings = [setting for setting in toy_settings if not setting.startswith(("classify", "neighbours", "lexical"))]
    paths = [f"cache_dir={tmp_path}/cache", f"run_dir={tmp_path}/run", f"output={tmp_path}/comparison.json"]
    (compared,) = reproduce.run(configure(*settings, *quick, *paths))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert compared.ours["P@1"] == metrics["test/P@1"]
    (written,) = json.loads((tmp_path / "comparison.json").read_text())
    assert (written["dataset"], written["method"]) == ("custom", "PRIME")
    difference = metrics["test/P@1"] - 0.6
    assert written["metrics"]["P@1"] == {
        "published": 0.6,
        "source": "Table 2",
        "ours": metrics["test/P@1"],
        "difference": pytest.approx(difference),
    }
    shown = capsys.readouterr().out
    assert "PRIME on custom, test split, percent" in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("│ P@1 ")]
    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        *("P@1", "60.00", f"{100 * metrics['test/P@1']:.2f}", f"{100 * difference:+.2f}", "Table 2")
    ]
    again, notes = compare_config(configure(f"run={tmp_path}/run"))
    assert (again, notes) == ([compared], []), "the finished run gives the same without training"


@pytest.mark.parametrize(("model", "experiment"), [("ngame", "paper"), ("ngame", None), ("prime_lite", "paper")])
def test_another_system_is_not_trained_with_the_settings_of_prime(configure, monkeypatch, model, experiment):
    monkeypatch.setattr(reproducing, "chosen_options", lambda: {"model": model, "experiment": experiment})
    refused = (model, experiment) == ("ngame", "paper")
    said = r"model=ngame: experiment=paper replaces settings .*give experiment=null" if refused else "not found in"
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        compare_config(configure("dataset.name=custom", "dataset.dir=missing", "published_method=PRIME"))


@pytest.mark.parametrize(("model", "method"), [("ngame", "NGAME"), ("renee", r"Renée \(W\)")])
def test_a_system_is_compared_with_its_own_row(configure, monkeypatch, model, method):
    monkeypatch.setattr(reproducing, "chosen_options", lambda: {"model": model, "experiment": None})
    config = configure("dataset.name=custom", f"model={model}", "experiment=null")
    with pytest.raises(ValueError, match=f"no published results of {method} on custom"):
        compare_config(config)


def test_prime_lite_is_compared_with_prime_where_it_was_not_published(configure, monkeypatch):
    monkeypatch.setattr(reproducing, "chosen_options", lambda: {"model": "prime_lite", "experiment": "paper"})
    with pytest.raises(FileNotFoundError, match="not found in"):  # after PRIME was
        compare_config(configure("dataset.name=custom", "dataset.dir=missing"))


def test_a_system_that_was_not_published_wants_the_name_of_a_row(configure, monkeypatch):
    monkeypatch.setattr(reproducing, "chosen_options", lambda: {"model": "elmo", "experiment": None})
    with pytest.raises(ValueError, match=r"^model=elmo is not in the paper's tables: .*published_method=<method>"):
        compare_config(configure("dataset.name=custom"))


def test_one_vs_all_classifiers_are_the_scorer_of_their_run(write_run, published):
    """They need no second stage, and prototypes they have none."""
    model = compose_app("train", ["model=renee"]).model
    runs = read_runs(write_run({"test/P@1": 0.4}, model=OmegaConf.to_container(model)))
    (compared,) = compare(runs, read_published(str(published)), "PRIME (W)")
    assert (compared.published.method, compared.rows()) == ("PRIME (W)", [("P@1", 0.5, 0.4)])


def test_renee_is_trained_by_the_command(configure, monkeypatch):
    monkeypatch.setattr(reproducing, "chosen_options", lambda: {"model": "renee", "experiment": None})
    config = configure("model=renee", "experiment=null", "published=paper", "dataset.dir=missing")
    with pytest.raises(FileNotFoundError, match=r"lbl.json .or .json.gz. not found in .*missing"):
        compare_config(config)


def test_a_run_with_classifiers_is_compared_with_both(write_run, published):
    metrics = {"test/P@1": 0.5, "test/R@100": 0.9, "test/W/P@1": 0.55, "test/ensemble/P@1": 0.7, "val/P@1": 0.1}
    compared = compare(read_runs(write_run(metrics)), read_published(str(published)), "PRIME")
    assert [(each.published.method, each.rows()) for each in compared] == [
        ("PRIME", [("P@1", 0.6, 0.5), ("R@100", 1.0, 0.9)]),
        ("PRIME (W)", [("P@1", 0.5, 0.55)]),
    ]


def test_metrics_that_one_of_the_two_lacks_are_left_out(write_run, published):
    runs, results = read_runs(write_run({"test/P@1": 0.5, "test/P@3": 0.4})), read_published(str(published))
    (compared,) = compare(runs, results, "PRIME")
    assert compared.rows() == [("P@1", 0.6, 0.5)]
    with pytest.raises(ValueError, match="has no test metrics that were published of Other"):
        compare(runs, results, "Other")
    with pytest.raises(ValueError, match="no published results of Mine on custom; expected one of\n  PRIME\n"):
        compare(runs, results, "Mine")


def test_classifiers_are_compared_alone_where_they_are_asked_for(write_run, published):
    results = read_published(str(published))
    runs = read_runs(write_run({"test/P@1": 0.5, "test/W/P@1": 0.55, "test/R@100": None}))
    (compared,) = compare(runs, results, "PRIME (W)")
    assert (compared.published.method, compared.rows()) == ("PRIME (W)", [("P@1", 0.5, 0.55)])
    assert [each.rows() for each in compare(runs, results, "PRIME (θ)")] == [[("P@1", 0.6, 0.5)], [("P@1", 0.5, 0.55)]]
    with pytest.raises(ValueError, match=r"no test metrics of classifiers, which PRIME \(W\) is: .*classify=true"):
        compare(runs[:1], results, "PRIME (W)")


class TestBeforeTraining:
    def test_classifiers_that_are_not_going_to_be_trained(self, configure):
        given = ["dataset.name=custom", "published_method='PRIME (W)'"]
        with pytest.raises(ValueError, match=r"published_method=PRIME \(W\) is of classifiers: give classify=true"):
            compare_config(configure(*given))

    def test_missing_raw_files_are_named_with_where_to_get_them(self, compose, tmp_path):
        with pytest.raises(FileNotFoundError) as error:
            compare_config(compose(f"dataset.dir={tmp_path}", name="reproduce"))
        message = str(error.value)
        assert f"LF-AmazonTitles-131K: trn.json, tst.json, lbl.json (or .json.gz) not found in {tmp_path}" in message
        assert "manikvarma.org/downloads/XC/XMLRepository.html" in message
        assert "dataset.dir=" in message

    def test_missing_filters_too(self, compose, toy_dataset, tmp_path):
        folder = shutil.copytree(toy_dataset, tmp_path / "raw")
        (folder / "filter_labels_test.txt").unlink()
        dataset = compose("dataset=amazon131k", f"dataset.dir={folder}", name="reproduce").dataset
        with pytest.raises(
            FileNotFoundError, match=r"LF-Amazon-131K: filter_labels_test\.txt not found in .*the metrics are not"
        ):
            check_raw_files(dataset)
        dataset.dir = str(toy_dataset)
        check_raw_files(dataset)

    def test_a_data_set_without_published_results(self, compose):
        with pytest.raises(
            ValueError, match="no published results on LF-Debian-18K; the data sets with some are: LF-Am"
        ):
            compare_config(compose("dataset=debian18k", name="reproduce"))

    def test_a_run_that_has_not_finished(self, configure, write_run):
        with pytest.raises(ValueError, match=r"a run has no metrics\.json: expected the folder of a finished run"):
            compare_config(configure(f"run={write_run(None)}"))


class TestNotes:
    def test_settings_that_differ_from_the_papers(self, write_run):
        folder = write_run(
            {}, dataset="LF-AmazonTitles-131K", optimizer={"lr": 1e-3}, trainer={"max_epochs": 300}, model={"x": 1}
        )
        assert notes_on(read_runs(folder)[0]) == [
            "Settings of the run that differ from the paper's (in parentheses): optimizer.lr=0.001 (0.0003)."
        ]

    def test_another_method_is_named(self, write_run):
        loss = {"contrast": {"_target_": "prime_xmc.model.losses.InfoNCE"}, "regulariser_weight": 0.1}
        folder = write_run({}, dataset="LF-AmazonTitles-131K", loss=loss, model={"sources": ["text"]})
        (note,) = notes_on(read_runs(folder)[0])
        assert "loss.contrast._target_=prime_xmc.model.losses.InfoNCE (prime_xmc.model.losses.Triplet)" in note
        assert "model.sources=['text'] (['text', 'centroid', 'free_vector'])" in note
        assert "regulariser" not in note

    def test_everything_that_changes_what_is_learnt_or_measured_counts(self, compose, tmp_path):
        def notes(*settings):
            config = compose("dataset=amazontitles131k", *settings, name="reproduce")
            (tmp_path / ".hydra").mkdir(exist_ok=True)
            OmegaConf.save(config, tmp_path / ".hydra" / "config.yaml")
            return notes_on(read_runs(tmp_path)[0])

        assert notes("trainer=cpu", "encoder.chunk_tokens=99", "seed=5", "logger=null") == []
        (note,) = notes(
            *("model.momentum=0.5", "dataset.propensity.a=0.1", "dataset.num_validation=9", "callbacks.clusters=null"),
            *("optimizer.weight_decay=0.5", "loss.invert_uncertain=true", "encoder.dropout=0.3"),
        )
        for said in (
            *("model.momentum=0.5 (0.95)", "dataset.propensity.a=0.1 (0.6)", "dataset.num_validation=9 ("),
            *("callbacks.clusters=null", "optimizer.weight_decay=0.5 (", "loss.invert_uncertain=True (False)"),
            "encoder.dropout=0.3 (",
        ):
            assert said in note

    def test_another_system_is_compared_with_its_own_settings(self, compose, tmp_path):
        folder = tmp_path / ".hydra"
        folder.mkdir()
        (folder / "hydra.yaml").write_text("hydra: {runtime: {choices: {model: ngame}}}", encoding="utf-8")

        def notes(*settings):
            config = compose("dataset=amazontitles131k", "model=ngame", *settings, name="reproduce")
            OmegaConf.save(config, folder / "config.yaml")
            return notes_on(read_runs(tmp_path)[0])

        assert notes("experiment=null") == []
        (note,) = notes()  # what the paper's settings make of it
        assert note.startswith("Settings of the run that differ from those of model=ngame (in parentheses): ")
        assert "loss.weighting=softmax (ngame)" in note

    def test_a_run_is_asked_for_its_filters(self, configure, write_run, toy_dataset, tmp_path):
        folder = write_run({"test/P@1": 0.5})
        notes = []
        for raw in (toy_dataset, tmp_path):  # of the run, and not of this command
            dataset = configure("dataset=custom", f"dataset.dir={raw}").dataset
            config = OmegaConf.create({"seed": 0, "dataset": dataset})
            OmegaConf.save(config, folder / ".hydra" / "config.yaml")
            notes.append(compare_config(configure(f"run={folder}"))[1])
        assert notes[0] == []
        assert notes[1][0].startswith("It cannot be said whether the run had the filters: custom: trn.json")

    def test_the_paper_has_no_settings_for_other_data(self, write_run):
        assert notes_on(read_runs(write_run({}, optimizer={"lr": 1e-3}))[0]) == []

    def test_settings_of_classifiers_that_differ_count_where_these_are_compared(self, write_run, configure):
        metrics = {"test/P@1": 0.5, "test/W/P@1": 0.6}
        same = ["optimizer.lr=0.001", "callbacks.progress=null", "dropout=0.50"]
        settings = {"classify": True, "classify_settings": [*same, "dropout=0.1", "trainer.max_epochs=3", "loss=x"]}
        folder = write_run(metrics, dataset="LF-AmazonTitles-131K", **settings)
        _, notes = compare_config(configure("published=paper", f"run={folder}"))
        said = "Settings of the run's classifiers that differ from the paper's (in parentheses): "
        assert [note for note in notes if "classifiers" in note] == [
            f"{said}dropout=0.1 (0.5), trainer.max_epochs=3 (30), loss=x."
        ]
        config = json.loads((folder / ".hydra" / "config.yaml").read_text())
        for settings in ({"classify": same, "classify_settings": None}, {"classify_settings": same}):
            (folder / ".hydra" / "config.yaml").write_text(json.dumps(config | settings))
            _, notes = compare_config(configure("published=paper", f"run={folder}"))
            assert not [note for note in notes if "classifiers" in note]

    def test_debugging(self, write_run):
        (note,) = notes_on(read_runs(write_run({}, debug="fast"))[0])
        assert note == "This run was for debugging and has seen part of the data."

    def test_options_by_name(self):
        assert dataset_option("LF-Wikipedia-500K") == "wikipedia500k"
        assert dataset_option("mine") is None
