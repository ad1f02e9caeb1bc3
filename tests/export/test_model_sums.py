import json
import re
import shutil

import pytest
import torch

from prime_xmc.export.model_sums import SUMMED, check_model, seal, sealed
from prime_xmc.export.predictor import Predictor
from prime_xmc.export.scorers import encoder_digest, labels_digest, save_classifiers
from prime_xmc.files import write_json


@pytest.fixture
def model(toy_bundle, tmp_path):
    return shutil.copytree(toy_bundle, tmp_path / "model")


def test_what_a_model_is_made_of_has_checksums(model):
    assert set(json.loads((model / "prime_config.json").read_text())["files"]) == set(SUMMED)
    check_model(model, "full")


@pytest.mark.parametrize("name", SUMMED)
def test_a_flipped_bit_is_noticed(model, name):
    content = bytearray((model / name).read_bytes())
    content[len(content) * 2 // 3] ^= 4
    (model / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged: its bytes .* copy or export the model again"):
        check_model(model)


def test_loading_notices_a_bit_that_nothing_else_does(model):
    path = model / "prototypes.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # the last digits of a number
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"prototypes\.safetensors is damaged"):
        Predictor.load(model)


def test_an_edited_configuration_is_told(model, caplog):
    path = model / "prime_config.json"
    content = json.loads(path.read_text())
    content["max_length"] += 1
    path.write_text(json.dumps(content))
    check_model(model)
    assert "prime_config.json is not what was written" in caplog.text
    caplog.clear()
    del content["checksum"]
    path.write_text(json.dumps(content))
    check_model(model)
    assert "prime_config.json is not what was written" in caplog.text  # it still names checksums of files
    caplog.clear()
    del content["files"]
    path.write_text(json.dumps(content))
    check_model(model)
    assert not caplog.text


@pytest.mark.parametrize("name", ["labels.jsonl", "config.json", "prime_config.json"])
def test_an_edited_file_is_told_how_to_become_valid(model, caplog, name):
    path = model / name
    before = path.read_text()
    edited = before.replace("red cat", "ginger cat").replace(
        '"max_position_embeddings": 64', '"max_position_embeddings":  64'
    )
    edited = edited.replace('"max_length": 16', '"max_length": 15') if name == "prime_config.json" else edited
    assert edited != before
    path.write_text(edited)
    try:
        check_model(model)
        told = caplog.text
    except ValueError as error:
        told = str(error)
    call = re.search(r'if you have edited it on purpose, .*: python -c "(.*)"', told)
    assert call is not None
    exec(call[1])  # what a user would type
    caplog.clear()
    check_model(model, "full")
    assert not caplog.text
    predicted = Predictor.load(model).predict(["a ginger cat"], top_k=48)[0].labels
    assert ("ginger cat" in {label.text for label in predicted}) is (name == "labels.jsonl")


def test_weights_are_not_edited(model):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"copy or export the model again$"):
        check_model(model)


def test_sums_are_renewed_of_all_parts(model):
    vectors = torch.nn.functional.normalize(torch.randn(48, 32), dim=1)
    save_classifiers(
        model / "classifiers", vectors, digest=encoder_digest(model), labels=labels_digest(model), settings={}
    )
    (model / "classifiers" / "classifiers.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"classifiers\.safetensors is damaged"):
        check_model(model)
    seal(model)
    check_model(model, "full")
    with pytest.raises(FileNotFoundError, match="is no exported model"):
        seal(model / "classifiers")


def test_a_model_of_version_0_1_0_has_none(model):
    path = model / "prime_config.json"
    content = json.loads(path.read_text())
    del content["checksum"], content["files"]
    path.write_text(json.dumps(content))
    assert Predictor.load(model).predict(["red cat"], top_k=1)[0].labels


def test_the_index_may_be_removed_and_nothing_else(model):
    (model / "index.faiss").unlink()
    check_model(model)
    (model / "centroids.safetensors").unlink()
    with pytest.raises(ValueError, match=r"centroids\.safetensors: not found"):
        check_model(model)


def test_files_elsewhere_are_not_read(model):
    path = model / "prime_config.json"
    content = json.loads(path.read_text())
    content["files"] = {"../own": {"bytes": 1, "xxh3": []}}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"names the file '\.\./own'"):
        check_model(model)


def test_classifiers_outside_of_the_model_are_checked(model, tmp_path):
    outside = tmp_path / "classifiers"
    shape = Predictor.load(model).num_labels, Predictor.load(model).encoder.dim
    save_classifiers(
        outside,
        torch.nn.functional.normalize(torch.ones(shape)),
        digest=encoder_digest(model),
        labels=labels_digest(model),
        settings={},
    )
    Predictor.load(model, scorer="W", classifiers=outside)
    content = bytearray((outside / "classifiers.safetensors").read_bytes())
    content[-5] ^= 1
    (outside / "classifiers.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"classifiers\.safetensors is damaged: its bytes"):
        Predictor.load(model, scorer="W", classifiers=outside)


def test_a_description_has_its_checksum_whatever_its_keys(model, caplog):
    path = model / "prime_config.json"
    content = json.loads(path.read_text())
    content["settings"]["tags"] = {10: "a", 9: "b", "c": "d"}  # JSON makes texts of them
    write_json(path, sealed(content, model, SUMMED))
    check_model(model)
    assert not caplog.text
