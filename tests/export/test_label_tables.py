"""The folder of a model with other labels: valid, versioned, and nothing of the original is lost."""

import json
import os
import shutil
import sys
import threading
from dataclasses import replace

import pytest
import torch

import prime_xmc
from prime_xmc import files
from prime_xmc.export.label_changes import Example, NewLabel, add_labels, remove_labels
from prime_xmc.export.label_tables import read_label_tables, write_label_tables

NEW = [NewLabel("n1", "purple dragon"), NewLabel("n2", "orange boat")]
EXAMPLES = [Example("a dragon that is purple", ("n1",)), Example("a purple dragon in a boat", ("n1", "l3", "n2"))]
SCORERS = ("theta", "W", "neighbours", "lexical", "ensemble")


def content(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def changed(ensemble_model, predictor, tmp_path):
    """Writes the model with two more labels: changed() in place, changed(folder) elsewhere."""
    tables = read_label_tables(ensemble_model)

    def write(target=ensemble_model):
        write_label_tables(add_labels(tables, predictor, NEW, EXAMPLES), ensemble_model, target)
        return target

    return write


@pytest.mark.parametrize("scorer", SCORERS)
def test_every_scorer_knows_the_new_labels(changed, ensemble_model, tmp_path, scorer):
    before = prime_xmc.load(ensemble_model, scorer=scorer)
    after = prime_xmc.load(changed(tmp_path / "new"), scorer=scorer)
    (found,) = after.predict([EXAMPLES[0].text], top_k=50)
    assert {label.uid for label in found.labels} >= {"n1"}
    if scorer in ("neighbours", "lexical"):
        assert found.labels[0].uid == "n1"
    (old,) = before.predict(["a red cat"], top_k=48)
    scores = {label.uid: label.score for label in old.labels}
    (new,) = after.predict(["a red cat"], top_k=50)
    if scorer in ("theta", "W", "lexical"):  # votes are shared with new queries
        assert {label.uid: label.score for label in new.labels if label.uid in scores} == pytest.approx(
            scores, abs=1e-5
        )


def test_index_is_of_all_labels(changed, tmp_path):
    folder = changed(tmp_path / "new")
    exact, approximate = (prime_xmc.load(folder, scorer="theta", index=index) for index in ("exact", "faiss"))
    assert approximate.searcher.shape == (50, 32)
    queries = exact.encode(["a red cat", "purple dragon"])
    assert torch.equal(exact.search(queries, 50)[1], approximate.search(queries, 50)[1])


def test_what_has_no_row_per_label_stays(changed, ensemble_model, tmp_path):
    (ensemble_model / "somebody_elses.json").write_text('{"by": "somebody else"}')
    before = content(ensemble_model)
    after = content(changed(tmp_path / "new"))
    assert content(ensemble_model) == before
    assert after.keys() == before.keys()
    same = {name for name in before if before[name] == after[name]}
    assert same == before.keys() - {
        *("README.md", "prime_config.json", "labels.jsonl", "index.faiss", "prototypes.safetensors"),
        *("centroids.safetensors", "prototype_network.safetensors", "classifiers/classifiers.json"),
        *("classifiers/classifiers.safetensors", "neighbours/neighbours.json", "neighbours/neighbours.safetensors"),
        *("lexical/lexical.json", "lexical/lexical.safetensors"),
    }


def test_in_place(changed, ensemble_model):
    changed()
    assert prime_xmc.load(ensemble_model).num_labels == 50
    assert [path.name for path in ensemble_model.parent.iterdir()] == ["model"]


def test_in_place_without_links(changed, ensemble_model, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    changed()
    assert prime_xmc.load(ensemble_model).num_labels == 50


def test_a_copy_does_not_change_with_its_original(changed, ensemble_model, tmp_path):
    folder = changed(tmp_path / "new")
    for path in ensemble_model.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert prime_xmc.load(folder).predict(["cat"])


def test_versions_and_card(changed, tmp_path, predictor):
    folder = changed(tmp_path / "new")
    about = json.loads((folder / "prime_config.json").read_text())
    assert about["version"] == 2
    assert about["prototypes"]["num_labels"] == 50
    card = (folder / "README.md").read_text()
    assert "2 labels added, with 2 example queries." in card
    again = remove_labels(read_label_tables(folder), ["l1"])
    write_label_tables(again, folder, folder)
    card = (folder / "README.md").read_text()
    assert "- Version 3, " in card
    assert ": 1 label removed." in card
    assert "Ranks 49 labels" in card
    assert "Changes of the labels" not in (tmp_path / "model" / "README.md").read_text()


def test_without_faiss_there_is_no_index_of_before(changed, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "faiss", None)
    folder = changed(tmp_path / "new")
    assert not (folder / "index.faiss").exists()
    assert json.loads((folder / "prime_config.json").read_text())["index"] is None
    assert "written without index.faiss, and searched exactly: Faiss is not installed" in caplog.text
    assert prime_xmc.load(folder).num_labels == 50


class TestRefusals:
    def test_of_a_folder_that_exists(self, changed, tmp_path):
        (tmp_path / "new").mkdir()
        with pytest.raises(FileExistsError, match="new exists already: name a new folder"):
            changed(tmp_path / "new")

    def test_of_a_change_of_a_model_that_has_changed(self, changed, ensemble_model):
        changed()
        before = content(ensemble_model)
        with pytest.raises(ValueError, match="was changed by another process in the meantime"):
            changed()
        assert content(ensemble_model) == before

    def test_of_a_change_that_came_while_another_was_being_written(self, ensemble_model, monkeypatch):
        """Otherwise both would be done, and the one that is written first would be lost."""
        tables = read_label_tables(ensemble_model)
        first, second = remove_labels(tables, ["l0"]), remove_labels(tables, ["l1"])
        started, going_on, failures = threading.Event(), threading.Event(), []

        def wait(path):
            started.set()
            going_on.wait(60)

        def change_too():
            try:
                write_label_tables(second, ensemble_model, ensemble_model)
            except ValueError as error:
                failures.append(str(error))

        monkeypatch.setattr(files, "flush", wait)
        writing = threading.Thread(target=write_label_tables, args=(first, ensemble_model, ensemble_model))
        writing.start()
        assert started.wait(60)
        other = threading.Thread(target=change_too)
        other.start()
        other.join(0.5)
        going_on.set()
        writing.join(60)
        other.join(60)
        assert [record["uid"] for record in read_label_tables(ensemble_model).records[:2]] == ["l1", "l2"]
        assert ["was changed by another process in the meantime" in failure for failure in failures] == [True]

    @pytest.mark.parametrize("name", ["centroids.safetensors", "prototype_network.safetensors"])
    def test_of_folders_without_what_makes_prototypes(self, copy, name):
        (copy / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"has no {name}, which make prototypes of labels: add, remove"):
            read_label_tables(copy)

    def test_of_damaged_folders(self, ensemble_model):
        lines = (ensemble_model / "labels.jsonl").read_text().splitlines(keepends=True)
        (ensemble_model / "labels.jsonl").write_text("".join(lines[:-1]))
        with pytest.raises(ValueError, match=r"labels.jsonl has 47 labels, expected 48"):
            read_label_tables(ensemble_model)

    def test_failure_leaves_nothing(self, ensemble_model, predictor, tmp_path):
        tables = add_labels(read_label_tables(ensemble_model), predictor, NEW)
        with pytest.raises(TypeError):
            write_label_tables(replace(tables, records=[object()] * 50), ensemble_model, tmp_path / "new")
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_in_the_hub_s_cache_is_changed_elsewhere(ensemble_model, predictor, tmp_path):
    """Its files are links, which would lead to nothing from another folder."""
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "1f"
    blobs.mkdir(parents=True)
    shutil.copytree(ensemble_model, snapshot)
    for number, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        blob = path.rename(blobs / str(number))
        path.symlink_to(os.path.relpath(blob, path.parent))
    before = content(snapshot)
    tables = add_labels(read_label_tables(snapshot), predictor, NEW, EXAMPLES)
    write_label_tables(tables, snapshot, tmp_path / "new", link=True)
    (found,) = prime_xmc.load(tmp_path / "new").predict([EXAMPLES[0].text], top_k=50)
    assert {label.uid for label in found.labels} >= {"n1", "n2"}
    assert not any(path.is_symlink() for path in (tmp_path / "new").rglob("*"))
    assert content(snapshot) == before


def test_a_copy_of_a_model_that_may_only_be_read_can_be_changed(changed, ensemble_model, tmp_path):
    folders = [ensemble_model, *(path for path in ensemble_model.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    new = changed(tmp_path / "new")
    for folder in folders:
        folder.chmod(0o755)
        assert (new / folder.relative_to(ensemble_model)).stat().st_mode & 0o700 == 0o700
