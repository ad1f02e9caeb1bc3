"""Model folders that somebody has tampered with: each is refused with a message that names the folder or the file."""

import shutil
from pathlib import Path

import pytest
import torch
from hostile import CONFIG, MODELS, edit

from prime_xmc.export.model_sums import seal
from prime_xmc.export.predictor import Predictor


@pytest.fixture
def model(toy_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(toy_bundle, tmp_path / "model")


@pytest.mark.parametrize("name", MODELS)
def test_it_is_refused_with_a_message_and_nothing_runs(model, name):
    case, marker = MODELS[name], model.parent / "marker"
    case.damage(model, marker)
    if case.message is None:
        seal(model)
        Predictor.load(model)
    else:
        with pytest.raises((ValueError, FileNotFoundError), match=case.message) as refused:
            Predictor.load(model, index="auto" if "index" not in name else "faiss")
        assert str(model) in str(refused.value)
    assert not marker.exists()


def test_classifiers_of_another_shape_are_refused(model):
    from prime_xmc.export.scorers import encoder_digest, labels_digest, load_classifiers, save_classifiers

    save_classifiers(
        model / "classifiers",
        torch.randn(7, 32),
        digest=encoder_digest(model),
        labels=labels_digest(model),
        settings={},
    )
    with pytest.raises(ValueError, match=r"holds 7 x 32 numbers, expected 48 x 32"):
        load_classifiers(model / "classifiers", model)


def test_a_network_that_would_take_all_memory_is_refused(model):
    from prime_xmc.export.folder import read_config
    from prime_xmc.export.prototypes_folder import load_prototype_network

    edit(CONFIG, lambda c: c["prototypes"].update(num_free_vectors=10**12))(model, model.parent)
    with pytest.raises(ValueError, match=r"asks for more than prototype_network\.safetensors has"):
        load_prototype_network(model, read_config(model))
