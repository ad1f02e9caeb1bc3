"""`prime_xmc.labels`: the command, from files to a model with other labels."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
from omegaconf import OmegaConf

import prime_xmc
from prime_xmc.export.bundle import write_card
from prime_xmc.export.calibration import Calibration, Held, ScorerCalibration, read_calibration, save_calibration
from prime_xmc.export.label_files import read_labels
from prime_xmc.export.scorers import encoder_digest
from prime_xmc.labels import main, run


@pytest.fixture
def model(toy_bundle, tmp_path):
    return shutil.copytree(toy_bundle, tmp_path / "model")


@pytest.fixture
def files(tmp_path):
    (tmp_path / "new.csv").write_text("uid,text\nn1,purple dragon\nn2,orange boat\n")
    (tmp_path / "few.csv").write_text("query,labels\na dragon,n1\na dragon in a boat,n1;n2\n")
    return tmp_path


def test_add_from_the_command_line(model, files, call):
    done = call("labels", "add", "model=model", "labels=new.csv", "queries=few.csv", "output=second", cwd=files)
    assert done.returncode == 0, done.stderr
    assert "second: version 2, 50 labels" in done.stderr
    assert done.stdout == ""
    records = [json.loads(line) for line in (files / "second" / "labels.jsonl").read_text().splitlines()]
    assert records[-2:] == [
        {"uid": "n1", "text": "purple dragon", "added": 2, "queries": 2},
        {"uid": "n2", "text": "orange boat", "added": 2, "queries": 1},
    ]
    assert sorted(path.name for path in files.iterdir()) == ["few.csv", "model", "new.csv", "second"]


def test_an_action_that_there_is_not(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["labels", "delete", "model=a"])
    monkeypatch.setattr("prime_xmc.labels.run_app", lambda *_: None)
    main()
    assert sys.argv == ["labels", "action=delete", "model=a"]
    with pytest.raises(ValueError, match="expected add, remove, rename or list behind the command, got delete"):
        run(OmegaConf.create({"action": "delete"}))


class TestRun:
    def labels(self, model):
        return dict(prime_xmc.load(model).labels)

    def call(self, compose, model, **settings):
        overrides = [f"{key}={value}" for key, value in settings.items()]
        run(compose(f"model.dir={model}", *overrides, name="labels"))

    def test_rename_and_remove_in_place(self, compose, model, files):
        (files / "texts.csv").write_text("uid,text\nl0,purple dragon\n")
        self.call(compose, model, action="rename", labels=files / "texts.csv")
        assert self.labels(model)["l0"] == "purple dragon"
        self.call(compose, model, action="remove", uids="[l0,l1]")
        (files / "old.txt").write_text("l2\nl3\n")
        self.call(compose, model, action="remove", labels=files / "old.txt")
        assert list(self.labels(model)) == [f"l{row}" for row in range(4, 48)]

    def test_a_single_one_is_removed_by_its_name(self, compose, model, files):
        self.call(compose, model, action="remove", uids="l10")
        assert list(self.labels(model)) == [f"l{row}" for row in range(48) if row != 10]

    def test_list(self, compose, model, files, capsys):
        self.call(compose, model, action="list")
        written = capsys.readouterr().out
        assert json.loads(written.splitlines()[0]) == {"uid": "l0", "text": "red cat"}
        self.call(compose, model, action="list", output=files / "labels.jsonl")
        assert (files / "labels.jsonl").read_text() == written
        for suffix in (".csv", ".tsv", ".csv.gz", ".parquet"):
            self.call(compose, model, action="list", output=files / f"labels{suffix}")
            renamed = [(label.uid, label.text) for label in read_labels(files / f"labels{suffix}")]
            assert renamed == list(self.labels(model).items())
        with pytest.raises(ValueError, match=r"labels\.txt: expected a name that ends in \.csv, \.tsv, \.jsonl"):
            self.call(compose, model, action="list", output=files / "labels.txt")

    def test_a_file_is_what_the_user_says(self, compose, model, files):
        (files / "new.csv").write_text('{"uid": "n1", "text": "new"}\n')
        with pytest.raises(
            ValueError, match=r"its first line is a JSON object, .*: say what it is by input_format=text"
        ):
            self.call(compose, model, action="add", labels=files / "new.csv")
        self.call(compose, model, action="add", labels=files / "new.csv", input_format="jsonl")
        assert self.labels(model)["n1"] == "new"

    def test_a_folder_that_exists_is_refused_before_anything_is_read(self, compose, model, files):
        (files / "second").mkdir()
        with pytest.raises(FileExistsError, match="second exists already: name a new folder"):
            self.call(compose, model, action="add", labels=files / "nowhere.csv", output=files / "second")
        with pytest.raises(FileNotFoundError, match=r"nowhere\.csv: there is no such file"):
            self.call(compose, model, action="add", labels=files / "nowhere.csv", output=model)

    def test_files_in_another_encoding(self, compose, model, files):
        (files / "new.csv").write_bytes("uid,text\nn1,café\n".encode("cp1252"))
        self.call(compose, model, action="add", labels=files / "new.csv", encoding="cp1252")
        assert self.labels(model)["n1"] == "café"

    def test_probabilities_that_were_fitted_before(self, compose, model, files, caplog):
        fitted = ScorerCalibration(10.0, -4.0, -2.0, 0.05, 0.3, {"validation": Held(9, 45, 0.1, [], 0.6, 0.3, 0.4)})
        calibration = Calibration("9 validation queries", {"theta": fitted}, None)
        save_calibration(model, calibration, digest=encoder_digest(model))
        with caplog.at_level("INFO"):
            self.call(compose, model, action="remove", uids="[l0]")
        assert "stay as they were fitted for the labels before; prime-xmc-calibrate model=" in caplog.text
        assert "All of this is of the labels of version 1, and this is version 2: " in (model / "README.md").read_text()
        assert read_calibration(model, encoder_digest(model)) == calibration
        save_calibration(model, replace(calibration, model_version=2), digest=encoder_digest(model))
        write_card(model)
        assert "of the labels of version" not in (model / "README.md").read_text()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"action": "ad"}, "expected add, remove, rename or list behind the command, got ad"),
            ({"action": "add"}, "add: expected labels=<file>, and nothing else"),
            ({"action": "add", "uids": "[a]"}, "add: expected labels=<file>, and nothing else"),
            ({"action": "remove"}, r"remove: expected labels=<file> or uids=\[...\]"),
            (
                {"action": "rename", "labels": "a", "queries": "b"},
                "queries=b: example queries are for add, not for ren",
            ),
        ],
    )
    def test_mistakes(self, compose, model, settings, message):
        with pytest.raises(ValueError, match=message):
            self.call(compose, model, **settings)
