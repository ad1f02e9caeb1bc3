"""Training from Python."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from scipy.sparse import csr_array

import prime_xmc
from prime_xmc import api
from prime_xmc.api import _spelt
from prime_xmc.reporting.run_folders import find_runs
from prime_xmc.trained_model import Model
from prime_xmc.training.run_folder import Claim


@pytest.fixture(scope="module")
def settings(toy_settings, tmp_path_factory) -> dict[str, object]:
    return {
        **dict(setting.split("=", 1) for setting in toy_settings if "num_" not in setting),
        "classify": False,
        "neighbours": None,
        "lexical": None,
        "dataset.num_validation": 40,
        "dataset.num_free_vectors": 8,
        "dataset.batch_size": 32,
        "dataset.lr": 1e-3,
        "trainer.max_epochs": 1,
        "trainer.precision": "32-true",
        "cache_dir": tmp_path_factory.mktemp("cache"),
        "callbacks.progress": None,
    }


def test_training_from_python_is_training(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = prime_xmc.train(["test=true", "logger=null"], **settings)
    assert trained.run_dir.parent.as_posix() == "outputs/train"
    assert json.loads((trained.run_dir / "metrics.json").read_text()) == trained.metrics
    assert trained.module.prototypes.free_vectors.shape[0] == 8
    assert len(trained.data.validation_ids) == 40
    assert find_runs(["outputs/train/*"]) == [trained.run_dir], "a report finds it"
    (prediction,) = prime_xmc.load(trained.run_dir / "model").predict(["a red cat"], top_k=2)
    assert len(prediction.labels) == 2
    assert not GlobalHydra.instance().is_initialized()
    assert not HydraConfig.initialized()


def test_a_run_that_does_not_begin_leaves_the_folder_of_another_as_it_was(settings, tmp_path):
    metadata, wrong = tmp_path / ".hydra" / "config.yaml", {**settings, "dataset.dir": tmp_path / "none"}
    metadata.parent.mkdir()
    metadata.write_text("seed: 1")
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="none"):
        prime_xmc.train(run_dir=tmp_path, seed=2, **wrong)
    claim = Claim(tmp_path)
    claim.acquire()
    with pytest.raises(ValueError, match="is working in the run folder"):
        prime_xmc.train(run_dir=tmp_path, seed=2, **settings)
    claim.release()
    assert metadata.read_text() == "seed: 1"
    assert [path.name for path in metadata.parent.iterdir()] == ["config.yaml"]


@pytest.fixture
def trained_in(monkeypatch) -> list[tuple[str, str]]:
    """Folders of runs, as they and their metadata name them, of trainings that end as soon as they begin."""
    folders = []

    def train_prototypes(config):
        folders.append((str(config.run_dir), HydraConfig.get().runtime.output_dir))
        raise ValueError("as far as that")

    monkeypatch.setattr("prime_xmc.api.train_prototypes", train_prototypes)
    return folders


def test_the_folder_of_a_run_has_the_names_of_the_command_line(trained_in, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    given = [
        (["hydra.run.dir=a/${seed}", "seed=3"], {}, "a/3"),
        ([], {"hydra.run.dir": "b"}, "b"),
        ([], {"run_dir": tmp_path / "c", "hydra.run.dir": "c"}, str(tmp_path / "c")),
        (["run_dir=d/${seed}", "seed=4"], {}, "d/4"),
        ([], {"run_dir": "~/e"}, str(tmp_path / "home" / "e")),
        (["hydra.run.dir=~/f"], {}, str(tmp_path / "home" / "f")),
    ]
    for overrides, settings, folder in given:
        with pytest.raises(ValueError, match="as far as that"):
            prime_xmc.train(overrides, **settings)
        assert trained_in.pop() == (folder, str(tmp_path / folder))
        recorded = (tmp_path / folder / ".hydra" / "overrides.yaml").read_text()
        assert "hydra.run.dir" not in recorded, "as on the command line, it is no setting of the run"
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"run_dir": "a", "hydra.run.dir": "b"}, "^run_dir=a and hydra.run.dir=b are two folders for one run"),
        ({"hydra.sweep.dir": "a"}, "^hydra.sweep.dir: from Python, there are no sweeps"),
    ],
)
def test_a_run_has_one_folder(settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        prime_xmc.train(**settings)
    with pytest.raises(ValueError, match=message):
        prime_xmc.fit(["q"], [[0]], ["a"], **settings)
    assert not list(tmp_path.iterdir())


def test_what_fit_has_written_goes_where_its_run_does_not_begin(trained_in, tmp_path, monkeypatch):
    """So that the call that has been mended finds no run there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "empty").mkdir()
    for wrong in ({"dataset.lrr": 1}, {"seed": -1}):
        with pytest.raises(ValueError, match=r"dataset\.lr=|^seed=-1"):
            prime_xmc.fit(["q"], [[0]], ["a"], run_dir="new", **wrong)
        assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    for settings in (
        {"run_dir": "new/run"},
        {"run_dir": None, "hydra.run.dir": "~/new/run"},
        {"run_dir": "empty"},
    ):
        with pytest.raises(ValueError, match="as far as that"):
            prime_xmc.fit(["q"], [[0]], ["a"], **settings)
    assert [str(Path(folder).absolute().relative_to(tmp_path)) for folder, _ in trained_in] == [
        *["new/run"] * 2,
        "empty",
    ]
    assert not list((tmp_path / "new").iterdir())
    assert not list((tmp_path / "empty").iterdir())


def test_numbers_of_numpy_are_numbers():
    assert [_spelt(value) for value in (np.float64(1e-4), np.int64(3), np.bool_(True))] == ["0.0001", "3", "true"]


def test_fit_trains_on_what_is_given(settings, tmp_path):
    """As `train` does, on files in the run folder."""
    colours, things = ("red", "green", "blue"), ("cat", "house", "river")
    labels = [f"{colour} {thing}" for colour in colours for thing in things]
    queries = [f"a picture of a {label}, number {number}" for number in range(6) for label in labels]
    overrides = {key: value for key, value in settings.items() if not key.startswith("dataset")}
    given = {"dataset.num_validation": 9, "dataset.batch_size": 16, "run_dir": tmp_path / "run", "logger": None}
    positives = [[label] for label in labels] * 6
    test = (["one red cat", "a blue river"], [[0], ["blue river"]])
    model = prime_xmc.fit(queries, positives, labels, test=test, **overrides, **given)
    assert model.folder == tmp_path / "run" / "model"
    assert [label for label, _ in model.labels] == labels
    assert 0 <= model.metrics["test/P@1"] <= 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "data" / "trn.json").read_text().splitlines()]
    assert rows[10] == {"uid": "10", "title": queries[10], "target_ind": [1]}
    assert find_runs([str(tmp_path / "*")]) == [tmp_path / "run"]
    model.add_labels([("l9", "yellow rocket")])
    assert len(model.predict(["a yellow rocket"], top_k=10)[0].labels) == 10


@pytest.mark.parametrize(
    ("labels", "positives"),
    [
        ([(1, "cats"), (2, "dogs"), (3, "fish")], [[1], [2, 3]]),
        ([(1, "cats"), (2, "dogs"), (3, "fish")], [["1"], [3, 2]]),
        ([("1", "cats"), ("2", "dogs"), ("3", "fish")], csr_array([[5, 0, 0], [0, 1, 1]])),
        ([("0", "cats"), ("1", "dogs"), ("2", "fish")], [[0], [1, 2]]),
        (iter([("l1", "cats"), ("l2", "dogs"), ("l3", "fish")]), iter([[0], ["l2", 2]])),
    ],
)
def test_labels_are_named_by_place_or_uid(labels, positives, tmp_path, monkeypatch):
    """Where uids are numbers, numbers are uids."""
    monkeypatch.setattr(api, "train", lambda *_, **__: None)
    monkeypatch.setattr(Model, "load", lambda _: Model.__new__(Model))
    prime_xmc.fit(iter(["purrs", "barks or swims"]), positives, labels, run_dir=tmp_path / "run")
    rows = [json.loads(line)["target_ind"] for line in (tmp_path / "run/data/trn.json").read_text().splitlines()]
    assert [sorted(row) for row in rows] == [[0], [1, 2]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["q"], [[0], [0]], ["a"]), "expected labels for each of 1 queries, got 2 lists"),
        ((["q"], [["b"]], ["a"]), "query 0: 'b': there is no such label"),
        ((["q"], [[0]], ["a", "a"]), "'a': the uid of several labels"),
        ((["q"], [[1]], [(10, "cat"), (20, "dog")]), "query 0: 1: there is no such label"),
        ((["q"], [[1]], [("1", "cat"), ("2", "dog")]), r"row 1 has the uid '2', and '1' is the uid of row 0: name lab"),
        ((["q"], csr_array([[0, 1]]), ["a", "b", "c"]), r"for each of the 3 labels, got the shape \(1, 2\)"),
        (
            (["q"], [["soup"]], {"soup": "soups and stews"}),
            r"expected a list of labels, got {'soup': .*texts.items\(\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        prime_xmc.fit(*arguments)
    with pytest.raises(ValueError, match="dataset: the data are those that are given"):
        prime_xmc.fit(["q"], [[0]], ["a"], dataset="custom")
    assert not list(tmp_path.iterdir())


def test_fit_replaces_no_run(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(FileExistsError, match="is there already: give another run_dir, or remove the folder"):
        prime_xmc.fit(["q"], [[0]], ["a"], run_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": -1}, "^seed=-1: expected a whole number of at least 0"),
        ({"seed": "x"}, "^seed=x: expected a whole number"),
        ({"dataset.lrr": 1}, "hint: did you mean dataset.lr="),
        ({"loss": "primee"}, "hint: did you mean loss=prime"),
        ({"seed": object()}, "expected a setting of text, number"),
        (
            {"classify": True, "classify_settings": ["optimizer.lr=abc"]},
            r"^classify_settings: optimizer\.lr=abc: expected a number",
        ),
        (
            {"classify": True, "classify_settings": ["encoder.normalize=false"]},
            r"^classify_settings: encoder\.normalize=false: nothing would use it",
        ),
        ({"classify": True, "classify_settings": ["loss=5"]}, "^loss=5: prime_xmc.classify does not choose"),
        (
            {"model": "renee", "loss": "infonce"},
            r"^loss=infonce: nothing would use it, since model=renee sets loss=null",
        ),
    ],
)
def test_settings_that_do_not_fit_are_value_errors(settings, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        prime_xmc.train(**{**settings, **given})
    assert not list(tmp_path.iterdir())


def test_a_single_text_is_no_list_of_settings():
    with pytest.raises(ValueError, match="expected a list of settings, got the text 'seed=1'"):
        prime_xmc.train("seed=1")


def test_the_module_of_that_name_is_the_function_too():
    code = "import prime_xmc, prime_xmc.train\n"
    code += "try:\n    prime_xmc.train(seed=-1)\nexcept ValueError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "seed=-1: expected a whole number of at least 0 and below 2^63\n"
