"""A model folder that is served, and that another one takes the place of."""

import asyncio
import json
import os
import shutil
import tempfile
from contextlib import suppress

import pytest
import torch

import prime_xmc
from prime_xmc.export.predictor import Predictor
from prime_xmc.export.scorers import encoder_digest, labels_digest, save_classifiers
from prime_xmc.files import publishing
from prime_xmc.serving.served_model import ModelSlot, content_version, load_served, signature


@pytest.fixture
def slot(make_slot, model_folder):
    return make_slot(model_folder)


@pytest.fixture
def change_labels(seal):
    """Gives each label another text: change_labels(folder, "new")."""
    return lambda folder, prefix: _change_labels(folder, prefix) or seal(folder)


def _change_labels(folder, prefix):
    lines = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    renamed = [json.dumps(line | {"text": f"{prefix} {line['text']}"}) for line in lines]
    (folder / "labels.jsonl").write_text("\n".join(renamed) + "\n")


def test_version_is_that_of_the_content(toy_bundle, model_folder, change_labels):
    assert content_version(toy_bundle) == content_version(model_folder)
    assert signature(toy_bundle) != signature(model_folder)
    os.utime(model_folder / "labels.jsonl", (1, 1))
    assert content_version(toy_bundle) == content_version(model_folder)
    change_labels(model_folder, "a")
    assert content_version(toy_bundle) != content_version(model_folder)
    assert signature(model_folder / "none") is None


def test_predictors_share_what_is_the_same(toy_bundle):
    loaded = load_served(toy_bundle, lambda copy, scorer: Predictor.load(copy, scorer=scorer), ["auto", "theta"])
    assert list(loaded.predictors) == ["theta"]  # which is what auto means
    assert loaded.predictor.predict(["a red cat"]) == Predictor.load(toy_bundle).predict(["a red cat"])


def test_a_model_with_sources_that_are_not_in_its_folder_is_served_unexplained(model_folder, seal):
    config = json.loads((model_folder / "prime_config.json").read_text())
    config["prototypes"]["more_sources"] = ["category"]
    (model_folder / "prime_config.json").write_text(json.dumps(config))
    seal(model_folder)

    def load(copy, scorer):
        return Predictor.load(copy, scorer=scorer)

    assert not load_served(model_folder, load, ["auto"]).explains
    with pytest.raises(ValueError, match=r"made from category too \(model.more_sources\)"):
        load_served(model_folder, load, ["auto"], explain=True)


def test_labels_are_found_by_all_words_in_any_case(slot):
    model = slot.model
    texts = [text for _, text in model.predictor.labels]
    found, more = model.find_labels("CAT Red", 5)
    assert [texts[each] for each in found] == ["red cat"]
    assert not more
    assert [model.predictor.labels[each][0] for each in model.find_labels("l4", 3)[0]] == ["l4", "l40", "l41"]
    assert model.find_labels("", 3) == ([0, 1, 2], True)
    assert model.find_labels("", 3, offset=46) == ([46, 47], False)
    assert model.find_labels("no such thing", 3) == ([], False)


def test_another_folder_takes_over_and_the_old_one_still_answers(slot, model_folder, toy_bundle, change_labels):
    reports = []
    slot.report = reports.append
    old = slot.model
    with publishing(model_folder, replace=True) as new:
        shutil.copytree(toy_bundle, new, dirs_exist_ok=True)
        change_labels(new, "new")
    outcome = asyncio.run(slot.reload())
    assert outcome.result == "exchanged"
    assert outcome == slot.last_reload == reports[0]
    assert slot.model.version == outcome.version != old.version
    before, after = (model.predictor.predict(["a red cat"])[0].labels[0].text for model in (old, slot.model))
    assert after == f"new {before}"


def test_the_same_files_are_not_loaded_again(slot, model_folder):
    model = slot.model
    os.utime(model_folder / "labels.jsonl", (1, 1))
    assert asyncio.run(slot.reload()).result == "unchanged"
    assert slot.model is model


def test_classifiers_of_other_labels_leave_the_old_model(model_folder, tmp_path):
    vectors = torch.eye(48, 32)
    digests = {"digest": encoder_digest(model_folder), "labels": labels_digest(model_folder)}
    save_classifiers(tmp_path / "later", vectors, **digests, settings={})

    def load(copy, scorer):
        return Predictor.load(copy, scorer=scorer, classifiers=tmp_path / "later")

    slot = ModelSlot(model_folder, load, ("W",))
    model = slot.model
    changed = prime_xmc.load(model_folder)
    changed.remove_labels(["l0"])
    changed.add_labels(["n1"])
    changed.save()
    outcome = asyncio.run(slot.reload())
    assert (outcome.result, slot.model) == ("failed", model)
    assert f"are not for the model {model_folder}: its labels, or their order, are others" in outcome.reason


def truncate(path):
    """Cut a file short where it is, as copying another one over it does."""
    with path.open("r+b") as file:
        file.truncate(100)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: shutil.rmtree(folder), "is no exported model, there is no such folder"),
        (lambda folder: (folder / "labels.jsonl").write_text("{}\n"), "labels.jsonl, line 1: no label"),
        (lambda folder: truncate(folder / "prototypes.safetensors"), "prototypes.safetensors is damaged"),
        (lambda folder: truncate(folder / "model.safetensors"), "the encoder is damaged"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json not found"),
    ],
)
def test_a_damaged_folder_leaves_the_old_one(slot, model_folder, toy_bundle, caplog, spoil, reason):
    model = slot.model
    spoil(model_folder)
    outcome = asyncio.run(slot.reload())
    assert (outcome.result, outcome.version) == ("failed", model.version)
    assert str(model_folder) in outcome.reason
    assert reason in outcome.reason
    assert reason in caplog.text
    assert slot.model is model
    # the files of the old model have been overwritten or cut short, and its tables are whole
    assert model.predictor.predict(["a red cat"]) == Predictor.load(toy_bundle).predict(["a red cat"])


def test_a_folder_that_changes_while_it_is_read_is_refused(make_slot, model_folder, monkeypatch, change_labels):
    def copy_and_change(source, target):
        change_labels(source, "new")

    monkeypatch.setattr(shutil, "copytree", copy_and_change)
    with pytest.raises(ValueError, match="was changed while it was read"):
        make_slot(model_folder)


def test_a_full_disk_is_named(make_slot, model_folder, monkeypatch):
    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", fail)
    with pytest.raises(ValueError, match="No space left on device; TMPDIR names another folder"):
        make_slot(model_folder)


def test_no_copy_is_left(make_slot, model_folder, monkeypatch, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    slot = make_slot(model_folder)
    (model_folder / "labels.jsonl").write_text("damaged")
    assert asyncio.run(slot.reload()).result == "failed"
    assert list(temporary.iterdir()) == []


def test_the_folder_is_watched(slot, model_folder, toy_bundle, change_labels):
    async def go():
        reports = []
        slot.report = reports.append
        watching = asyncio.create_task(slot.watch(0.02))
        await asyncio.sleep(0.2)
        assert reports == []
        (model_folder / "labels.jsonl").write_text("damaged")
        await until(lambda: len(reports) == 1)
        await asyncio.sleep(0.2)
        assert [each.result for each in reports] == ["failed"]  # and not tried again and again
        shutil.rmtree(model_folder)
        await asyncio.sleep(0.2)
        assert len(reports) == 1  # a folder that is being replaced is missing for a moment
        with publishing(model_folder, replace=True) as new:
            shutil.copytree(toy_bundle, new, dirs_exist_ok=True)
            change_labels(new, "new")
        await until(lambda: len(reports) == 2)
        assert reports[1].result == "exchanged"
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching

    asyncio.run(go())


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")
