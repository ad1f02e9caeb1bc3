"""Model folders that somebody has tampered with: each is refused with a message that names the folder or the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prime_xmc.export.predictor import Predictor


@pytest.fixture
def model(toy_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(toy_bundle, tmp_path / "model")


def edit(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        content = json.loads((model / name).read_text())
        change(content)
        (model / name).write_text(json.dumps(content))

    return damage


def tensors(name: str, change: Callable[[dict], dict]) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        content = change(load_file(model / name))
        save_file({key: value.contiguous() for key, value in content.items()}, model / name, metadata={"format": "pt"})

    return damage


def prototypes(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return tensors("prototypes.safetensors", lambda content: content | {"prototypes": change(content["prototypes"])})


def link(model: Path) -> None:
    (model / "labels.jsonl").rename(model.parent / "own.jsonl")
    (model / "labels.jsonl").symlink_to(model.parent / "own.jsonl")


CONFIG = "prime_config.json"
CASES = {
    "a kernel of the hub": (edit(CONFIG, lambda c: c["encoder"].update(attention="stranger/kernel")), "attention"),
    "a kernel in config.json": (
        edit("config.json", lambda c: c.update(_attn_implementation="stranger/kernel")),
        "code that would be downloaded",
    ),
    "weights drawn at random": (edit(CONFIG, lambda c: c["encoder"].update(pretrained=False)), "pretrained"),
    "another source": (edit(CONFIG, lambda c: c["encoder"].update(source="/")), "source"),
    "max_length -1": (edit(CONFIG, lambda c: c.update(max_length=-1)), "max_length is -1"),
    "max_length true": (edit(CONFIG, lambda c: c.update(max_length=True)), "max_length is True"),
    "max_length 2**40": (edit(CONFIG, lambda c: c.update(max_length=2**40)), "max_length is 1099511627776"),
    "no prototypes": (edit(CONFIG, lambda c: c.update(prototypes=None)), "objects"),
    "an index of lists": (edit(CONFIG, lambda c: c["index"].update(kind="ivf")), "index is"),
    "missing weights": (
        tensors("model.safetensors", lambda c: {n: t for n, t in c.items() if "layer.1." not in n}),
        "weights that its config.json asks for are missing",
    ),
    "weights of another size": (edit("config.json", lambda c: c.update(hidden_size=64)), "encoder is damaged"),
    "unknown architecture": (edit("config.json", lambda c: c.update(model_type="strange")), "encoder is damaged"),
    "code beside it": (
        edit("config.json", lambda c: c.update(model_type="x", auto_map={"AutoConfig": "evil.Config"})),
        "encoder is damaged",
    ),
    "an adapter": (lambda model: (model / "adapter_config.json").write_text("{}"), "adapter_config.json"),
    "a link to another file": (link, "labels.jsonl is a link to"),
    "prototypes of half the labels": (prototypes(lambda rows: rows[:10]), "10 x 32"),
    "prototypes of half the dimensions": (prototypes(lambda rows: rows[:, :16]), "48 x 16"),
    "whole numbers as prototypes": (prototypes(lambda rows: rows.long()), "I64"),
    "prototypes of NaN": (prototypes(lambda rows: rows * float("nan")), "not finite"),
    "half a character": (
        lambda model: (model / "labels.jsonl").write_text(
            "".join([r'{"uid": "\ud800", "text": "t"}' + "\n", *['{"uid": "a", "text": "t"}\n'] * 47])
        ),
        "labels.jsonl, line 1",
    ),
    "nested labels": (lambda model: (model / "labels.jsonl").write_text("[" * 2000), "labels.jsonl, line 1"),
    "nested configuration": (lambda model: (model / CONFIG).write_text("[" * 2000), "prime_config.json is damaged"),
    "no special tokens": (edit("tokenizer.json", lambda c: c.update(post_processor=None)), "special tokens"),
    "tokens without embeddings": (
        edit("tokenizer.json", lambda c: c["post_processor"]["special_tokens"]["[CLS]"].update(ids=[10**6])),
        "tokenizer.json is damaged",
    ),
    "half a tokenizer": (
        lambda model: (model / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes()[:700]),
        "tokenizer.json is damaged",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_with_a_message(model, name):
    damage, message = CASES[name]
    damage(model)
    with pytest.raises(ValueError, match=message) as refused:
        Predictor.load(model)
    assert str(model) in str(refused.value)


def test_classifiers_of_another_shape_are_refused(model):
    from prime_xmc.export.scorers import encoder_digest, load_classifiers, save_classifiers

    save_classifiers(model / "classifiers", torch.randn(7, 32), digest=encoder_digest(model), settings={})
    with pytest.raises(ValueError, match=r"holds 7 x 32 numbers, expected 48 x 32"):
        load_classifiers(model / "classifiers", model)


def test_a_network_that_would_take_all_memory_is_refused(model):
    from prime_xmc.export.folder import read_config
    from prime_xmc.export.prototypes_folder import load_prototype_network

    edit(CONFIG, lambda c: c["prototypes"].update(num_free_vectors=10**12))(model)
    with pytest.raises(ValueError, match=r"asks for more than prototype_network\.safetensors has"):
        load_prototype_network(model, read_config(model))
