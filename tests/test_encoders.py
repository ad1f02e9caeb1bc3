"""Encoders of other kinds, from training to the export: tiny random ones, made on the spot."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    AutoTokenizer,
    LlamaConfig,
    LlamaModel,
    LlamaTokenizer,
    MPNetConfig,
    MPNetModel,
    Qwen2Config,
    Qwen2Model,
    Qwen2Tokenizer,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
)

from prime_xmc.data.tokenizer import load_tokenizer
from prime_xmc.evaluate import run as evaluate
from prime_xmc.export.predictor import Predictor
from prime_xmc.files import write_json
from prime_xmc.model.encoder import TextEncoder
from prime_xmc.stages import train_prototypes as run

TEXTS = [
    "a picture of red cat",
    "",
    "Ünï ≠ 語",
    "blue river and a yellow rocket",
    "castle " * 40,
]  # the last one is cut
MAX_LENGTH = 24
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}
# a source below, and the settings of the encoder
CASES = {
    "roberta": ("roberta", {}),
    "roberta, lora": ("roberta", {"lora": {"r": 4, "alpha": 8}}),
    "mpnet, cls": ("mpnet", {"pooling": "cls"}),
    "llama": ("llama", {"pooling": "last"}),
    "qwen, lora": ("qwen", {"pooling": "last", "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}}),
}


def byte_level(special_tokens):
    """The vocabulary and merges of a byte-level BPE of the toy texts' language."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special_tokens, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["a picture of red cat and blue river", "yellow rocket", "green castle"], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(merge) for merge in model["merges"]]}


def make_source(kind, directory):
    """Write a random transformer and its tokenizer as `save_pretrained` does."""
    if kind == "roberta":
        tokenizer = RobertaTokenizer(**byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]))
        config = RobertaConfig(**SIZES, vocab_size=len(tokenizer), max_position_embeddings=MAX_LENGTH + 2)
        model = RobertaModel(config)
    elif kind == "mpnet":
        tokenizer = RobertaTokenizer(**byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]))
        model = MPNetModel(MPNetConfig(**SIZES, vocab_size=len(tokenizer), max_position_embeddings=MAX_LENGTH + 2))
    elif kind == "llama":  # a start token, no end token, no padding token
        tokenizer = LlamaTokenizer(
            **byte_level(["<unk>", "<s>", "</s>"]), add_bos_token=True, add_eos_token=False, padding_side="left"
        )
        config = LlamaConfig(**SIZES, vocab_size=len(tokenizer), num_key_value_heads=1, max_position_embeddings=64)
        model = LlamaModel(config)
    else:  # no special tokens around a text
        tokenizer = Qwen2Tokenizer(**byte_level(["<|endoftext|>"]))
        config = Qwen2Config(**SIZES, vocab_size=len(tokenizer), num_key_value_heads=1, max_position_embeddings=64)
        model = Qwen2Model(config)
    tokenizer.save_pretrained(directory)
    model.save_pretrained(directory)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sources")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for kind in ("roberta", "mpnet", "llama", "qwen"):
            make_source(kind, directory / kind)
    return directory


def ids_of(directory, text):
    return load_tokenizer(str(directory))(text)["input_ids"]


def with_transformers(directory, text, pooling):
    """The embedding of a text, by transformers alone."""
    model, tokenizer = AutoModel.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    with torch.no_grad():
        hidden = model(**tokenizer([text], return_tensors="pt", truncation=True)).last_hidden_state[0]
    return F.normalize({"mean": hidden.mean(dim=0), "last": hidden[-1], "cls": hidden[0]}[pooling], dim=0)


@pytest.mark.parametrize("case", CASES)
def test_train_export_and_open_elsewhere(case, sources, toy_dataset, compose, tmp_path):
    kind, encoder = CASES[case]
    settings = {"pooling": "mean", "lora": None} | encoder
    overrides = [
        "encoder=decoder" if settings["pooling"] == "last" else "encoder=local",
        f"encoder.source={sources / kind}",
        f"encoder.pooling={settings['pooling']}",
        f"encoder.lora={json.dumps(settings['lora']).replace(chr(34), '')}",
        "dataset=custom",
        f"dataset.dir={toy_dataset}",
        f"dataset.max_length={MAX_LENGTH}",
        "dataset.num_validation=0",
        "dataset.num_free_vectors=8",
        "sampling=random",
        "sampling.batch_size=32",
        "optimizer.lr=1e-2",
        "trainer.max_epochs=1",
        "+trainer.limit_train_batches=4",
        "trainer.precision=32-true",
        "callbacks.progress=null",
        "classify=false",
        "neighbours=null",
        "lexical=null",
        "trainer.log_every_n_steps=2",
        "test=false",
        f"cache_dir={tmp_path / 'cache'}",
        f"run_dir={tmp_path}",
    ]
    module = run(compose(*overrides)).module

    # what trains is what the optimiser holds, and it has changed
    before = TextEncoder(str(sources / kind), implementation="transformers")
    optimised = {id(p) for group in module.parameter_groups() for p in group["params"]}
    for name, parameter in module.encoder.named_parameters():
        if settings["lora"] is None:
            assert (id(parameter) in optimised) == ("pooler" not in name), name
            changed = not torch.equal(parameter, before.get_parameter(name))
        else:
            assert (id(parameter) in optimised) == ("lora_" in name), name
            changed = "lora_B" in name and parameter.abs().sum() > 0  # they start at 0
        assert changed or id(parameter) not in optimised or "lora_A" in name, name

    bundle = tmp_path / "model"
    assert not list(bundle.glob("adapter_*"))
    predictor = Predictor.load(bundle)
    found = predictor.encode(TEXTS)
    torch.testing.assert_close(
        found, torch.cat([module.encoder.eval()(*tokens(predictor, text)) for text in TEXTS]), rtol=1e-4, atol=1e-5
    )
    elsewhere = torch.stack([with_transformers(bundle, text, settings["pooling"]) for text in TEXTS])
    torch.testing.assert_close(found, elsewhere, rtol=1e-4, atol=1e-5)
    from sentence_transformers import SentenceTransformer  # here: importing it takes seconds

    opened = SentenceTransformer(str(bundle), device="cpu")
    assert opened.max_seq_length == MAX_LENGTH
    # in one padded batch
    assert np.allclose(opened.encode(TEXTS, show_progress_bar=False), found, atol=1e-5)
    assert (found @ found.T - torch.eye(len(TEXTS))).abs().max() < 0.9999  # they can be told apart


def test_a_sentence_transformers_folder_stays_what_it_is(sources, toy_dataset, compose, tmp_path):
    """Its pooling and its prompts: from the prepared data to the export, where sentence-transformers agrees."""
    from sentence_transformers import SentenceTransformer

    source = shutil.copytree(sources / "roberta", tmp_path / "source")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")])
    ]
    prompts = {"query": "a query: ", "passage": "a label: "}
    for name, content in {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_cls_token": True},
        "2_Normalize/config.json": {},
        "config_sentence_transformers.json": {"prompts": prompts},
        "sentence_bert_config.json": {"max_seq_length": MAX_LENGTH, "do_lower_case": False},
    }.items():
        write_json(source / name, content)
    original = SentenceTransformer(str(source), device="cpu")
    overrides = [
        "encoder=local",
        f"encoder.source={tmp_path / 'source'}",
        "dataset=custom",
        f"dataset.dir={toy_dataset}",
        f"dataset.max_length={MAX_LENGTH}",
        "dataset.num_validation=0",
        "dataset.num_free_vectors=8",
        "sampling=random",
        "sampling.batch_size=32",
        "optimizer.lr=1e-12",  # nothing learned, so that the encoder can be compared with its source
        "trainer.max_epochs=1",
        "+trainer.limit_train_batches=1",
        "trainer.precision=32-true",
        "callbacks.progress=null",
        "classify=false",
        "neighbours=null",
        "lexical=null",
        "trainer.log_every_n_steps=1",
        f"cache_dir={tmp_path / 'cache'}",
        f"run_dir={tmp_path / 'run'}",
    ]
    trained = run(compose(*overrides))
    corpus = trained.data.corpus
    assert (corpus.manifest["query_prompt"], corpus.manifest["label_prompt"]) == ("a query: ", "a label: ")
    backend = load_tokenizer(str(tmp_path / "source")).backend_tokenizer
    assert corpus.label_tokens[0].tolist() == backend.encode("a label: red cat").ids

    predictor = Predictor.load(tmp_path / "run" / "model")
    found = predictor.encode(TEXTS)
    assert np.allclose(original.encode_query(TEXTS, show_progress_bar=False), found, atol=1e-5)
    again = SentenceTransformer(str(tmp_path / "run" / "model"), device="cpu")
    assert np.allclose(again.encode(TEXTS, prompt_name="query", show_progress_bar=False), found, atol=1e-5)
    labels = ["red cat", "blue river"]
    assert np.allclose(
        again.encode_document(labels, show_progress_bar=False),
        original.encode(labels, prompt_name="passage", show_progress_bar=False),
        atol=1e-5,
    )
    assert "`a query: ` is put before every query" in (tmp_path / "run" / "model" / "README.md").read_text()
    data = ["dataset=custom", f"dataset.dir={toy_dataset}", f"cache_dir={tmp_path / 'cache'}", "device=cpu"]
    again_evaluated = evaluate(compose(f"model.dir={tmp_path / 'run' / 'model'}", *data, name="evaluate"))
    assert again_evaluated["test/P@1"] == pytest.approx(trained.metrics["test/P@1"])
    assert len(list((tmp_path / "cache").glob("custom-*"))) == 1, "the data were prepared again, otherwise"


def tokens(predictor, text):
    ids = torch.tensor(predictor.tokenizer.encode(text).ids)
    return ids, torch.tensor([len(ids)])


class TestTokenizers:
    def test_decoders_get_an_end_token(self, sources):
        llama, qwen = load_tokenizer(str(sources / "llama")), load_tokenizer(str(sources / "qwen"))
        assert llama.convert_ids_to_tokens(llama("")["input_ids"]) == ["<s>", "</s>"]
        assert qwen.convert_ids_to_tokens(qwen("")["input_ids"]) == ["<|endoftext|>"]
        for tokenizer in (llama, qwen):
            ids = tokenizer("red cat")["input_ids"]
            assert (ids[-1], ids.count(tokenizer.eos_token_id)) == (tokenizer.eos_token_id, 1)
            assert tokenizer("castle " * 9, truncation=True, max_length=5)["input_ids"][-1] == tokenizer.eos_token_id

    def test_encoders_keep_theirs(self, sources):
        ids = ids_of(sources / "roberta", "red cat")
        assert ids == AutoTokenizer.from_pretrained(sources / "roberta")("red cat")["input_ids"]
        assert (ids[0], ids[-1]) == (0, 2)

    def test_padding(self, sources):
        llama = load_tokenizer(str(sources / "llama"))
        assert (llama.pad_token, llama.padding_side) == ("</s>", "right")
        assert load_tokenizer(str(sources / "roberta")).pad_token == "<pad>"
