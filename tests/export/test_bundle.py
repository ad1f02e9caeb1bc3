"""An exported model: what is in its folder, who can open it, and what it replaces."""

import json
import logging
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoTokenizer

from prime_xmc.data.tokenizer import load_tokenizer
from prime_xmc.export.bundle import save_bundle, update_metrics
from prime_xmc.export.folder import FORMAT_VERSION
from prime_xmc.export.predictor import Predictor
from prime_xmc.index.search import ExactSearch
from prime_xmc.model.encoder import TextEncoder
from prime_xmc.model.prototypes import Prototypes

TEXTS = ["a red cat", "", "blue river and a yellow rocket", "Ünï ≠ 語", "castle " * 40]  # the last one is cut
FILES = {
    "1_Pooling/config.json",
    "2_Normalize/config.json",
    "README.md",
    "centroids.safetensors",
    "config.json",
    "config_sentence_transformers.json",
    "index.faiss",
    "labels.jsonl",
    "model.safetensors",
    "modules.json",
    "prime_config.json",
    "prototype_network.safetensors",
    "prototypes.safetensors",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def save(directory, tiny_encoder_dir, **changed):
    """Export a model of three labels."""
    encoder = TextEncoder(str(tiny_encoder_dir))
    prototypes = Prototypes(3, 32, 1, feedforward=8)
    vectors = F.normalize(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    arguments = {
        "encoder": encoder,
        "tokenizer": load_tokenizer(str(tiny_encoder_dir)),
        "max_length": 8,
        "prototypes": prototypes,
        "label_emb": vectors.flip(0),
        "label_prototypes": vectors,
        "labels": [("x", "ex"), ("y", "why"), ("z", "zed")],
        "index": ExactSearch(),
        "settings": {"dataset": "letters"},
        "metrics": None,
    }
    save_bundle(directory, **(arguments | changed))


class TestFolder:
    def test_holds_plain_data_alone(self, toy_bundle):
        found = {path.relative_to(toy_bundle).as_posix() for path in toy_bundle.rglob("*") if path.is_file()}
        assert found == FILES
        assert [path.name for path in toy_bundle.parent.iterdir()] == ["model"]

    def test_opens_in_sentence_transformers(self, toy_bundle, predictor):
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(toy_bundle), device="cpu")
        assert model.max_seq_length == 16
        assert np.allclose(model.encode(TEXTS, show_progress_bar=False), predictor.encode(TEXTS), atol=1e-5)

    def test_tokenizer_cuts_where_training_did(self, toy_bundle):
        tokenizer = AutoTokenizer.from_pretrained(toy_bundle)
        assert tokenizer.model_max_length == 16
        assert len(tokenizer("castle " * 40, truncation=True)["input_ids"]) == 16

    def test_tokenizer_that_is_exported_stays_as_it_was(self, tmp_path, tiny_encoder_dir):
        tokenizer = load_tokenizer(str(tiny_encoder_dir))
        before = tokenizer.backend_tokenizer.to_str(), tokenizer.model_max_length
        save(tmp_path / "model", tiny_encoder_dir, tokenizer=tokenizer)
        assert (tokenizer.backend_tokenizer.to_str(), tokenizer.model_max_length) == before

    def test_label_prototypes_can_be_computed_again(self, toy_bundle):
        about = json.loads((toy_bundle / "prime_config.json").read_text())["prototypes"]
        prototypes = Prototypes(**about)
        prototypes.load_state_dict(load_file(toy_bundle / "prototype_network.safetensors"), strict=True)
        prototypes.centroids.put(torch.arange(48), load_file(toy_bundle / "centroids.safetensors")["centroids"])
        vectors = load_file(toy_bundle / "prototypes.safetensors")
        with torch.no_grad():
            again = prototypes.eval()(torch.arange(48), vectors["label_emb"])
        assert torch.allclose(again, vectors["prototypes"], atol=1e-6)

    def test_settings_and_versions(self, toy_bundle):
        about = json.loads((toy_bundle / "prime_config.json").read_text())
        assert about["format_version"] == FORMAT_VERSION
        assert about["settings"] == {"dataset": "toy", "seed": 0}
        assert (about["max_length"], about["pad_token_id"], about["dtype"]) == (16, 0, "float32")

    def test_nothing_tells_of_the_machine(self, tmp_path, tiny_encoder_dir):
        config = {
            "run_dir": str(tmp_path),
            "encoder": {"source": str(tiny_encoder_dir)},
            "callbacks": [f"{tmp_path}/metrics.csv"],
        }
        save(tmp_path / "model", tiny_encoder_dir, settings={"dataset": "letters", "config": config})
        for path in (tmp_path / "model").rglob("*"):
            if path.suffix in (".json", ".jsonl", ".md"):
                for folder in (tmp_path, tiny_encoder_dir):
                    assert str(folder) not in path.read_text(), path
        about = json.loads((tmp_path / "model" / "prime_config.json").read_text())
        assert about["settings"]["config"] == {
            "run_dir": "<run_dir>",
            "encoder": {"source": tiny_encoder_dir.name},
            "callbacks": ["<run_dir>/metrics.csv"],
        }

    def test_model_whose_prototypes_are_the_text(self, tmp_path, tiny_encoder_dir):
        save(tmp_path / "model", tiny_encoder_dir, prototypes=Prototypes(3, 32, 1, sources=("text",)))
        about = json.loads((tmp_path / "model" / "prime_config.json").read_text())
        again = Prototypes(**about["prototypes"])
        assert again.network is None
        again.load_state_dict(load_file(tmp_path / "model" / "prototype_network.safetensors"), strict=True)

    def test_labels_without_a_training_query_say_so(self, tmp_path, tiny_encoder_dir):
        save(tmp_path / "model", tiny_encoder_dir, bare={1})
        lines = [json.loads(line) for line in (tmp_path / "model" / "labels.jsonl").read_text().splitlines()]
        assert lines[:2] == [{"uid": "x", "text": "ex"}, {"uid": "y", "text": "why", "queries": 0}]

    def test_model_without_free_vectors_and_index(self, tmp_path, tiny_encoder_dir):
        prototypes = Prototypes(3, 32, 1, feedforward=8, sources=("text", "centroid"))
        save(tmp_path / "model", tiny_encoder_dir, prototypes=prototypes)
        about = json.loads((tmp_path / "model" / "prime_config.json").read_text())
        assert Prototypes(**about["prototypes"]).free_vectors is None

    def test_prototypes_go_to_faiss_wherever_it_is_installed(self, tmp_path, tiny_encoder_dir):
        save(tmp_path / "model", tiny_encoder_dir, index=ExactSearch())
        assert json.loads((tmp_path / "model" / "prime_config.json").read_text())["index"]["kind"] == "flat"
        searcher = Predictor.load(tmp_path / "model", index="faiss").searcher
        vectors = load_file(tmp_path / "model" / "prototypes.safetensors")["prototypes"]
        assert searcher.search(vectors, 1)[1].tolist() == [[0], [1], [2]]

    @pytest.mark.parametrize("broken", [False, True])
    def test_without_faiss_the_log_says_why(self, tmp_path, tiny_encoder_dir, monkeypatch, caplog, broken):
        monkeypatch.delitem(sys.modules, "faiss", raising=False)
        if broken:
            (tmp_path / "faiss.py").write_text("raise ImportError('libfaiss.so: cannot open shared object file')\n")
            monkeypatch.syspath_prepend(tmp_path)
        else:
            monkeypatch.setitem(sys.modules, "faiss", None)
        with caplog.at_level(logging.INFO):
            save(tmp_path / "model", tiny_encoder_dir, index=ExactSearch())
        why = "is installed but cannot be imported: libfaiss.so: cannot open" if broken else "is not installed: pip"
        assert f"the model is exported without index.faiss: Faiss {why}" in caplog.text
        assert json.loads((tmp_path / "model" / "prime_config.json").read_text())["index"] is None
        assert not (tmp_path / "model" / "index.faiss").exists()
        assert Predictor.load(tmp_path / "model").predict(["cat"])

    def test_others_may_read_all_files(self, toy_bundle, tmp_path):
        """safetensors and others write files for their owner alone."""
        (tmp_path / "ordinary").touch()
        expected = (tmp_path / "ordinary").stat().st_mode
        for path in toy_bundle.rglob("*"):
            assert path.is_dir() or path.stat().st_mode == expected, path

    def test_what_training_read_and_computed_in(self, tmp_path, tiny_encoder_dir):
        encoder = TextEncoder(str(tiny_encoder_dir), query_prompt="ask: ", label_prompt="is: ")
        save(tmp_path / "model", tiny_encoder_dir, encoder=encoder, fields=("title", "content"), precision="bf16-mixed")
        about = json.loads((tmp_path / "model" / "prime_config.json").read_text())
        assert about["query"] == {"fields": ["title", "content"], "separator": " "}
        assert about["precision"] == "bf16-mixed"
        assert (about["encoder"]["query_prompt"], about["encoder"]["label_prompt"]) == ("ask: ", "is: ")

    def test_prompts_are_those_of_sentence_transformers(self, tmp_path, tiny_encoder_dir):
        from sentence_transformers import SentenceTransformer

        encoder = TextEncoder(str(tiny_encoder_dir), query_prompt="ask: ", label_prompt="is: ")
        save(tmp_path / "model", tiny_encoder_dir, encoder=encoder)
        model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
        found = model.encode(TEXTS, prompt_name="query", show_progress_bar=False)
        expected = Predictor.load(tmp_path / "model").encode(TEXTS)
        assert np.allclose(found, expected, atol=1e-5)
        assert np.allclose(model.encode_query(TEXTS, show_progress_bar=False), expected, atol=1e-5)
        labels = model.encode_document(["cat"], show_progress_bar=False)
        assert np.allclose(labels, model.encode(["is: cat"], show_progress_bar=False), atol=1e-6)


class TestReplacement:
    def test_older_export_is_replaced(self, copy, tiny_encoder_dir):
        save(copy, tiny_encoder_dir)
        assert Predictor.load(copy).labels == [("x", "ex"), ("y", "why"), ("z", "zed")]
        assert [path.name for path in copy.parent.iterdir()] == ["model"]

    def test_failure_leaves_the_older_export(self, copy, tiny_encoder_dir):
        def labels():
            yield "x", "ex"
            raise OSError("no space left")

        with pytest.raises(OSError, match="no space left"):
            save(copy, tiny_encoder_dir, labels=labels())
        assert [path.name for path in copy.parent.iterdir()] == ["model"]
        assert Predictor.load(copy).num_labels == 48

    def test_other_folders_are_not_overwritten(self, tmp_path, tiny_encoder_dir):
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(ValueError, match=r"holds no prime_config.json: it is not overwritten"):
            save(tmp_path, tiny_encoder_dir)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_parents_are_made(self, tmp_path, tiny_encoder_dir):
        save(tmp_path / "a" / "b", tiny_encoder_dir)
        assert Predictor.load(tmp_path / "a" / "b").num_labels == 3


class TestResults:
    def test_of_no_model(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no exported model"):
            update_metrics(tmp_path, {})

    def test_model_card_shows_them_when_they_are_there(self, copy):
        assert "Not evaluated yet." in (copy / "README.md").read_text()
        assert not (copy / "metrics.json").exists()
        metrics = {"test/P@1": 0.71234, "train/seconds": 12.5, "git_commit": None}
        update_metrics(copy, metrics)
        assert json.loads((copy / "metrics.json").read_text()) == metrics
        assert "| P@1 | 71.23 |" in (copy / "README.md").read_text()
        assert {path.name for path in copy.iterdir() if path.name.startswith(".")} == set()

    def test_at_once(self, tmp_path, tiny_encoder_dir):
        save(tmp_path / "model", tiny_encoder_dir, metrics={"test/P@1": 0.5})
        assert "| P@1 | 50.00 |" in (tmp_path / "model" / "README.md").read_text()
