import json
import shutil

import pytest
import torch

from prime_xmc.export.model_sums import SUMMED, check_model, sealed
from prime_xmc.export.predictor import Predictor
from prime_xmc.export.scorers import encoder_digest, save_classifiers
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
    assert not caplog.text


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
        outside, torch.nn.functional.normalize(torch.ones(shape)), digest=encoder_digest(model), settings={}
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
