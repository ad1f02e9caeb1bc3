"""A toy data set, which tests/conftest.py has too, and an encoder so small that whole runs take seconds."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

COLOURS = ("red", "green", "blue", "black", "white", "yellow")
THINGS = ("cat", "house", "river", "engine", "violin", "apple", "castle", "rocket")


def make_encoder(directory: Path) -> None:
    """Write a random BERT (2 layers, 2 heads, d = 32), whose tokenizer knows the words of the data set, to a folder."""
    # not before the environment of a process is set
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    words = [*special, *COLOURS, *THINGS, "a", "picture", "of", "and"]
    made = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in special}
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(directory)
    make_bert(directory, len(words))


def make_bert(directory: Path, vocab_size: int) -> None:
    """Write a random BERT (2 layers, 2 heads, d = 32) to a folder, the same one every time."""
    import torch
    from transformers import BertConfig, BertModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            # ten times the default: otherwise all texts of an untrained model point the same way
            initializer_range=0.2,
        )
        BertModel(config).save_pretrained(directory)


def make_dataset(directory: Path) -> None:
    """Write raw files to a folder: 240 training and 60 test queries, 48 labels, separable by their words.

    A label is a colour and a thing; a query names one to three labels, which are its positives, among filler words.
    Every tenth query also names a label that its filter excludes.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    labels = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
    _write(directory / "lbl.json.gz", ({"uid": f"l{i}", "title": label} for i, label in enumerate(labels)))
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


def toy_settings(encoder: Path, dataset: Path) -> list[str]:
    """Return overrides with which prime_xmc.train trains such an encoder on such a data set."""
    return [
        "encoder=local",
        f"encoder.source={encoder}",
        "encoder.implementation=packed",
        "dataset=custom",
        f"dataset.dir={dataset}",
        "dataset.num_validation=40",
        "dataset.num_free_vectors=8",
    ]


def _write(path: Path, records: Iterable[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
