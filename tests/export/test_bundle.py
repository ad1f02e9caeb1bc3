"""An exported model: what it computes, who can open it, and what happens to a folder that is not one."""

import inspect
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from prime_xmc.data.tokenizer import load_tokenizer
from prime_xmc.export.bundle import save_bundle, update_metrics
from prime_xmc.export.folder import FORMAT_VERSION
from prime_xmc.export.predictor import Prediction, Predictor, checked_texts
from prime_xmc.index.search import ExactSearch, FaissSearch
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


@pytest.fixture
def copy(toy_bundle, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(toy_bundle, tmp_path / "model")


@pytest.fixture(scope="module")
def predictor(toy_bundle):
    return Predictor.load(toy_bundle)


def with_transformers(directory, text):
    """The embedding of a text, by the libraries alone."""
    model, tokenizer = AutoModel.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer([text], return_tensors="pt", truncation=True)
    with torch.no_grad():
        return F.normalize(model(**inputs).last_hidden_state.mean(dim=1), dim=1)[0]


def edit(path, **changed):
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


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


class TestPrediction:
    @pytest.mark.parametrize("index", ["exact", "faiss"])
    def test_equals_brute_force_over_all_labels(self, toy_bundle, index):
        predictor = Predictor.load(toy_bundle, index=index)
        assert isinstance(predictor.searcher, ExactSearch if index == "exact" else FaissSearch)
        prototypes = load_file(toy_bundle / "prototypes.safetensors")["prototypes"]
        labels = [json.loads(line) for line in (toy_bundle / "labels.jsonl").read_text().splitlines()]
        predictions = predictor.predict(TEXTS, top_k=7)
        assert [prediction.query for prediction in predictions] == TEXTS
        for text, prediction in zip(TEXTS, predictions, strict=True):
            scores = prototypes @ with_transformers(toy_bundle, text)
            best = scores.argsort(descending=True)[:7].tolist()
            assert [label.id for label in prediction.labels] == best
            assert [label.score for label in prediction.labels] == pytest.approx(scores[best].tolist(), abs=1e-5)
            assert [(label.uid, label.text) for label in prediction.labels] == [
                (labels[i]["uid"], labels[i]["text"]) for i in best
            ]

    def test_depends_neither_on_the_other_texts_nor_on_chunks(self, predictor, monkeypatch):
        together = predictor.encode(TEXTS)
        monkeypatch.setattr("prime_xmc.export.predictor._CHUNK", 2)
        monkeypatch.setattr("prime_xmc.export.predictor._SHOW_PROGRESS", 2)
        assert torch.allclose(predictor.encode(TEXTS), together, atol=1e-6)
        assert torch.allclose(predictor.encode(TEXTS[2:3]), together[2:3], atol=1e-6)

    def test_progress_goes_to_standard_error(self, predictor, monkeypatch, capsys):
        monkeypatch.setattr("prime_xmc.export.predictor._SHOW_PROGRESS", 2)
        predictor.encode(TEXTS)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "encode" in captured.err

    def test_no_texts_no_predictions(self, predictor):
        assert predictor.predict([]) == []
        assert predictor.encode([]).shape == (0, 32)

    def test_all_labels(self, predictor):
        (prediction,) = predictor.predict(["cat"], top_k=48)
        assert sorted(label.id for label in prediction.labels) == list(range(48))

    def test_bf16_is_close(self, toy_bundle):
        exact, rounded = (Predictor.load(toy_bundle, precision=p).encode(TEXTS) for p in ("32-true", "bf16-mixed"))
        assert rounded.dtype == torch.float32
        assert not torch.equal(exact, rounded)
        assert torch.allclose(exact, rounded, atol=0.05)

    def test_approximate_index(self, tmp_path, tiny_encoder_dir):
        vectors = F.normalize(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), dim=1)
        index = FaissSearch("hnsw", m=8, ef_search=9)
        index.build(vectors)
        save(tmp_path / "model", tiny_encoder_dir, index=index)
        predictor = Predictor.load(tmp_path / "model")
        assert (predictor.searcher.kind, predictor.searcher.m, predictor.searcher.ef_search) == ("hnsw", 8, 9)
        ids = predictor.search(vectors, 1)[1]
        assert ids.tolist() == [[0], [1], [2]]

    def test_encoder_of_another_implementation(self, tmp_path, tiny_encoder_dir):
        encoder = TextEncoder(str(tiny_encoder_dir), implementation="transformers", attention="sdpa", dropout=0.1)
        save(tmp_path / "model", tiny_encoder_dir, encoder=encoder)
        predictor = Predictor.load(tmp_path / "model")
        assert predictor.encoder.packed is None
        assert predictor.encoder.backbone.config._attn_implementation == "sdpa"
        assert torch.allclose(predictor.encode(["cat"])[0], with_transformers(tmp_path / "model", "cat"), atol=1e-5)


class TestBadArguments:
    @pytest.mark.parametrize("top_k", [0, -1, 49])
    def test_top_k_out_of_range(self, predictor, top_k):
        with pytest.raises(ValueError, match=f"top_k between 1 and the model's 48 labels, got {top_k}"):
            predictor.predict(["cat"], top_k=top_k)

    @pytest.mark.parametrize(
        ("texts", "said"),
        [
            (["a", None], "position 1 is None, expected a string"),
            ([b"a"], "position 0 is b'a'"),
            (["a", "b", "\ud800"], "position 2 is .* half a character"),
            ("cat", r"the single string 'cat': write \[text\]"),
        ],
    )
    def test_texts_that_are_none(self, texts, said):
        with pytest.raises(ValueError, match=said):
            checked_texts(texts)

    @pytest.mark.parametrize(
        ("argument", "said"),
        [
            ({"device": "gpu"}, "device 'gpu' cannot be used here"),
            ({"precision": "16"}, "expected precision bf16-mixed or 32-true, got '16'"),
            ({"index": "annoy"}, "expected index auto, exact or faiss, got 'annoy'"),
        ],
    )
    def test_settings(self, toy_bundle, argument, said):
        # unwrap: the tests' own check of types is for programmers, the message for users
        load = inspect.unwrap(Predictor.load.__func__)
        with pytest.raises(ValueError, match=said):
            load(Predictor, toy_bundle, **argument)


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

    def test_nothing_tells_of_the_machine(self, toy_bundle, tiny_encoder_dir):
        for path in toy_bundle.rglob("*.json"):
            assert str(tiny_encoder_dir) not in path.read_text(), path

    def test_model_whose_prototypes_are_the_text(self, tmp_path, tiny_encoder_dir):
        save(tmp_path / "model", tiny_encoder_dir, prototypes=Prototypes(3, 32, 1, sources=("text",)))
        about = json.loads((tmp_path / "model" / "prime_config.json").read_text())
        again = Prototypes(**about["prototypes"])
        assert again.network is None
        again.load_state_dict(load_file(tmp_path / "model" / "prototype_network.safetensors"), strict=True)

    def test_model_without_free_vectors_and_index(self, tmp_path, tiny_encoder_dir):
        prototypes = Prototypes(3, 32, 1, feedforward=8, sources=("text", "centroid"))
        save(tmp_path / "model", tiny_encoder_dir, prototypes=prototypes)
        about = json.loads((tmp_path / "model" / "prime_config.json").read_text())
        assert Prototypes(**about["prototypes"]).free_vectors is None
        assert about["index"] is None
        assert not (tmp_path / "model" / "index.faiss").exists()
        assert isinstance(Predictor.load(tmp_path / "model").searcher, ExactSearch)


class TestReplacement:
    def test_older_export_is_replaced(self, copy, tiny_encoder_dir):
        save(copy, tiny_encoder_dir)
        assert Predictor.load(copy).labels == [("x", "ex"), ("y", "why"), ("z", "zed")]
        assert [path.name for path in copy.parent.iterdir()] == ["model"]
        assert not (copy / "index.faiss").exists()

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


class TestNoModel:
    def check(self, directory, error, said, **arguments):
        with pytest.raises(error, match=said) as raised:
            Predictor.load(directory, **arguments)
        assert str(directory) in str(raised.value)

    def test_missing_folder(self, tmp_path):
        self.check(tmp_path / "nowhere", FileNotFoundError, "no exported model, prime_config.json, config.json, .*")

    def test_missing_file_is_named(self, copy):
        (copy / "labels.jsonl").unlink()
        self.check(copy, FileNotFoundError, r"no exported model, labels.jsonl not found: expected the folder model/")

    def test_run_folder(self, copy):
        self.check(copy.parent, FileNotFoundError, f"expected {copy}")

    def test_update_of_no_model(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no exported model"):
            update_metrics(tmp_path, {})

    def test_other_format(self, copy):
        edit(copy / "prime_config.json", format_version=99, package_version="7.1")
        self.check(copy, ValueError, "format_version is 99, .* reads 1: install prime_xmc 7.1")

    @pytest.mark.parametrize("content", ["", "[]", "{}", "\xff"])
    def test_damaged_settings(self, copy, content):
        (copy / "prime_config.json").write_text(content, encoding="latin-1")
        self.check(copy, ValueError, "prime_config.json is damaged")

    @pytest.mark.parametrize("name", ["model.safetensors", "prototypes.safetensors"])
    def test_truncated_tensors(self, copy, name):
        (copy / name).write_bytes((copy / name).read_bytes()[:1000])
        self.check(copy, ValueError, "damaged", index="exact")

    def test_truncated_index(self, copy):
        (copy / "index.faiss").write_bytes((copy / "index.faiss").read_bytes()[:1000])
        self.check(copy, ValueError, "cannot be read as a Faiss index")

    @pytest.mark.parametrize("line", ["", "{", "[1]", '{"uid": "a"}'])
    def test_damaged_labels(self, copy, line):
        lines = (copy / "labels.jsonl").read_text().splitlines()
        (copy / "labels.jsonl").write_text("\n".join([*lines[:2], line, *lines[3:]]))
        self.check(copy, ValueError, "line 3: no label with uid and text")

    def test_missing_labels(self, copy):
        lines = (copy / "labels.jsonl").read_text().splitlines(keepends=True)
        (copy / "labels.jsonl").write_text("".join(lines[:-1]))
        self.check(copy, ValueError, "has 47 labels, expected 48")

    def test_no_index_though_asked_for(self, copy):
        (copy / "index.faiss").unlink()
        self.check(copy, FileNotFoundError, "has no index.faiss: take index=exact", index="faiss")
        assert isinstance(Predictor.load(copy).searcher, ExactSearch)


def test_prediction_reads_as_query_and_labels(predictor):
    (prediction,) = predictor.predict(["cat"], top_k=1)
    assert isinstance(prediction, Prediction)
    query, (label,) = prediction
    assert query == "cat"
    assert label == (f"l{label.id}", label.text, label.score, label.id)
