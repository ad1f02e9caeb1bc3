"""An exported model opened again: what it computes, and what happens where the folder is not one."""

import inspect
import json
import logging
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from prime_xmc.data.tokenizer import load_tokenizer
from prime_xmc.export.bundle import save_bundle
from prime_xmc.export.calibration import Calibration, ScorerCalibration, save_calibration
from prime_xmc.export.model_sums import seal
from prime_xmc.export.predictor import Prediction, Predictor, checked_texts
from prime_xmc.export.scorers import encoder_digest
from prime_xmc.index.search import ExactSearch, FaissSearch
from prime_xmc.model.encoder import TextEncoder
from prime_xmc.model.prototypes import Prototypes

TEXTS = ["a red cat", "", "blue river and a yellow rocket", "Ünï ≠ 語", "castle " * 40]  # the last one is cut


def with_transformers(directory, text):
    """The embedding of a text, by the libraries alone."""
    model, tokenizer = AutoModel.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer([text], return_tensors="pt", truncation=True)
    with torch.no_grad():
        return F.normalize(model(**inputs).last_hidden_state.mean(dim=1), dim=1)[0]


def edit(path, **changed):
    content = json.loads(path.read_text())
    content.pop("checksum", None)  # what is edited by hand has none
    path.write_text(json.dumps(content | changed))


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
    @pytest.mark.parametrize("index", ["auto", "exact", "faiss"])
    def test_equals_brute_force_over_all_labels(self, toy_bundle, index):
        predictor = Predictor.load(toy_bundle, index=index)
        assert isinstance(predictor.searcher, FaissSearch if index == "faiss" else ExactSearch)
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
        monkeypatch.setattr("prime_xmc.export.predictor.SHOW_PROGRESS", 2)
        assert torch.allclose(predictor.encode(TEXTS), together, atol=1e-6)
        assert torch.allclose(predictor.encode(TEXTS[2:3]), together[2:3], atol=1e-6)

    def test_progress_goes_to_standard_error(self, predictor, monkeypatch, capsys):
        monkeypatch.setattr("prime_xmc.export.predictor.SHOW_PROGRESS", 2)
        monkeypatch.setattr("prime_xmc.progress.is_terminal", lambda: True)
        monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich draws nothing where it sees no terminal
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

    def test_more_labels_than_there_are_is_said_once(self, toy_bundle, caplog):
        predictor = Predictor.load(toy_bundle)
        for _ in range(2):
            (prediction,) = predictor.predict(["cat"], top_k=100)
            assert len(prediction.labels) == 48
        assert caplog.messages == ["top_k=100: the model has 48 labels, and all are returned"]

    def test_any_iterable_of_texts(self, predictor):
        assert predictor.predict(text for text in TEXTS) == predictor.predict(TEXTS)
        assert torch.equal(predictor.encode(iter(TEXTS)), predictor.encode(TEXTS))

    def test_scores_below_the_limit_are_left_out(self, predictor):
        (whole,) = predictor.predict(["a red cat"], top_k=48)
        limit = whole.labels[9].score
        (found,) = predictor.predict(["a red cat"], top_k=48, min_score=limit)
        assert found.labels == [label for label in whole.labels if label.score >= limit]
        assert 10 <= len(found.labels) < 48
        assert predictor.predict(["a red cat"], min_score=1.1)[0].labels == []

    def test_bf16_is_close(self, toy_bundle):
        exact, rounded = (Predictor.load(toy_bundle, precision=p).encode(TEXTS) for p in ("32-true", "bf16-mixed"))
        assert rounded.dtype == torch.float32
        assert not torch.equal(exact, rounded)
        assert torch.allclose(exact, rounded, atol=0.05)

    def test_float16_is_close(self, toy_bundle):
        exact, rounded = (Predictor.load(toy_bundle, precision=p).encode(TEXTS) for p in ("32-true", "16-mixed"))
        assert rounded.dtype == torch.float32
        assert not torch.equal(exact, rounded)
        assert torch.allclose(exact, rounded, atol=0.01)

    @pytest.mark.parametrize(("name", "dtype"), [("float16", torch.float16), ("bfloat16", torch.bfloat16)])
    def test_prototypes_in_half_precision(self, toy_bundle, name, dtype):
        exact, half = (Predictor.load(toy_bundle, prototype_dtype=each) for each in ("float32", name))
        query_emb = exact.encode(TEXTS)
        rounded = exact.searcher._vectors.to(dtype).float()
        scores, ids = half.search(query_emb, 48)
        assert half.searcher._vectors.dtype == dtype
        assert scores.dtype == torch.float32
        expected = (query_emb.to(dtype).float() @ rounded.T).gather(1, ids)
        assert torch.equal(scores, expected)

    @pytest.mark.cuda
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
    def test_cuda_agrees_with_cpu(self, toy_bundle, name):
        cpu, cuda = (
            Predictor.load(toy_bundle, device=device, precision="32-true", prototype_dtype=name)
            for device in ("cpu", "cuda")
        )
        query_emb = cpu.encode(TEXTS)
        torch.testing.assert_close(cuda.encode(TEXTS), query_emb, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(cuda.search(query_emb, 48)[0], cpu.search(query_emb, 48)[0], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        ("trained", "native", "expected", "said"),
        [
            ("32-true", "bf16-mixed", "32-true", []),
            ("bf16-mixed", "bf16-mixed", "bf16-mixed", []),
            (
                "bf16-mixed",
                "32-true",
                "32-true",
                ["in bf16-mixed, which cpu does not compute natively: 32-true"],
            ),
            ("16-mixed", "bf16-mixed", "32-true", ["trained in 16-mixed, which cpu does not compute natively"]),
        ],
    )
    def test_precision_is_that_of_the_training(self, copy, monkeypatch, caplog, trained, native, expected, said):
        monkeypatch.setattr("prime_xmc.export.predictor.native_precision", lambda device: native)
        edit(copy / "prime_config.json", precision=trained)
        seal(copy)
        with caplog.at_level(logging.INFO, logger="prime_xmc"):
            assert Predictor.load(copy).precision == expected
        assert len(caplog.messages) == len(said)
        assert all(part in message for part, message in zip(said, caplog.messages, strict=True))
        assert Predictor.load(copy, precision="bf16-mixed").precision == "bf16-mixed"

    def test_precision_and_fields_of_a_model_of_version_0_1(self, copy, monkeypatch):
        """They are among the settings of its training."""
        monkeypatch.setattr("prime_xmc.export.predictor.native_precision", lambda device: "bf16-mixed")
        config = json.loads((copy / "prime_config.json").read_text())
        del config["query"], config["precision"], config["encoder"]["query_prompt"], config["encoder"]["label_prompt"]
        (copy / "prime_config.json").write_text(json.dumps(config))
        predictor = Predictor.load(copy)
        assert (predictor.fields, predictor.separator, predictor.precision) == (None, " ", "32-true")
        training = {"dataset": {"fields": ["title", "content"]}, "trainer": {"precision": "bf16-mixed"}}
        edit(copy / "prime_config.json", settings=config["settings"] | {"config": training})
        predictor = Predictor.load(copy)
        assert (predictor.fields, predictor.precision) == (("title", "content"), "bf16-mixed")

    def test_prompt_is_put_before_queries(self, tmp_path, tiny_encoder_dir):
        encoder = TextEncoder(str(tiny_encoder_dir), query_prompt="ask: ", label_prompt="is: ")
        save(tmp_path / "model", tiny_encoder_dir, encoder=encoder)
        save(tmp_path / "plain", tiny_encoder_dir)
        prompted, plain = Predictor.load(tmp_path / "model"), Predictor.load(tmp_path / "plain")
        assert torch.equal(prompted.encode(["cat"]), plain.encode(["ask: cat"]))
        assert not torch.allclose(prompted.encode(["cat"]), plain.encode(["cat"]), atol=1e-2)
        assert prompted.predict(["cat"])[0].query == "cat"

    def test_without_faiss(self, tmp_path, tiny_encoder_dir, monkeypatch, caplog):
        index = FaissSearch("hnsw")
        index.build(torch.eye(3, 32))
        save(tmp_path / "model", tiny_encoder_dir, index=index)
        assert isinstance(Predictor.load(tmp_path / "model").searcher, FaissSearch)
        monkeypatch.setitem(sys.modules, "faiss", None)
        with caplog.at_level(logging.INFO):
            assert isinstance(Predictor.load(tmp_path / "model").searcher, ExactSearch)
        assert "the model's hnsw index is not used, and the search is exact: Faiss is not installed" in caplog.text
        with pytest.raises(ImportError, match="Faiss is not installed"):
            Predictor.load(tmp_path / "model", index="faiss")

    def test_approximate_index(self, tmp_path, tiny_encoder_dir):
        vectors = F.normalize(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), dim=1)
        index = FaissSearch("hnsw", m=8, ef_search=9)
        index.build(vectors)
        save(tmp_path / "model", tiny_encoder_dir, index=index)
        predictor = Predictor.load(tmp_path / "model")
        assert (predictor.searcher.kind, predictor.searcher.m, predictor.searcher.ef_search) == ("hnsw", 8, 9)
        ids = predictor.search(vectors, 1)[1]
        assert ids.tolist() == [[0], [1], [2]]

    @pytest.mark.parametrize("implementation", ["transformers", "auto"])
    def test_encoder_of_another_implementation(self, implementation, tmp_path, tiny_encoder_dir):
        encoder = TextEncoder(str(tiny_encoder_dir), implementation=implementation, attention="sdpa", dropout=0.1)
        save(tmp_path / "model", tiny_encoder_dir, encoder=encoder)
        predictor = Predictor.load(tmp_path / "model")
        assert predictor.encoder.implementation == implementation
        assert predictor.encoder.backbone.config._attn_implementation == "sdpa"
        assert torch.allclose(predictor.encode(["cat"])[0], with_transformers(tmp_path / "model", "cat"), atol=1e-5)


def ask(predictor, top_k, min_score):
    """Make a request without the tests' own check of types, which is for programmers; the message is for users."""
    return inspect.unwrap(Predictor._request)(
        predictor, predictor._ranked, top_k, min_score, None, None, calibrate=False, explain=False
    )


class Table:
    """What iterates over the names of its columns, as a table of pandas does."""

    columns = ("title",)

    def __iter__(self):
        return iter(self.columns)


class TestBadArguments:
    @pytest.mark.parametrize("top_k", [0, -1])
    def test_top_k_out_of_range(self, predictor, top_k):
        with pytest.raises(ValueError, match=f"top_k of at least 1, got {top_k}"):
            predictor.predict(["cat"], top_k=top_k)

    @pytest.mark.parametrize("top_k", [2.5, "2", None, True])
    def test_top_k_that_is_no_whole_number(self, predictor, top_k):
        with pytest.raises(ValueError, match=f"expected top_k, a whole number of at least 1, got {top_k!r}"):
            ask(predictor, top_k, None)

    @pytest.mark.parametrize("min_score", [float("nan"), "0.5", True])
    def test_min_score_that_is_no_number(self, predictor, min_score):
        with pytest.raises(ValueError, match=f"expected min_score, a number or None for no limit, got {min_score!r}"):
            ask(predictor, 5, min_score)

    def test_numbers_of_numpy(self, predictor):
        request = ask(predictor, np.int64(2), np.float32(-1))
        assert (type(request.top_k), type(request.min_score)) == (int, float)
        assert len(predictor.answer(["cat"], request)[0].labels) == 2

    @pytest.mark.parametrize(
        ("texts", "said"),
        [
            (["a", None], "position 1 is None, expected a string"),
            ([b"a"], "position 0 is b'a'"),
            (["a", "b", "\ud800"], "position 2 is .* half a character"),
            ("cat", r"the single string 'cat': write \[text\]"),
            ({"a": "cat"}, r"got a dictionary: write list\(texts\.values\(\)\)"),
            (Table(), r"got a table \(Table\): give one column of it"),
        ],
    )
    def test_texts_that_are_none(self, texts, said):
        with pytest.raises(ValueError, match=said):
            checked_texts(texts)

    @pytest.mark.parametrize(
        ("argument", "said"),
        [
            ({"device": "gpu"}, "device 'gpu' cannot be used here"),
            ({"precision": "16"}, "expected precision bf16-mixed, 16-mixed or 32-true, got '16'"),
            ({"index": "annoy"}, "expected index auto, exact or faiss, got 'annoy'"),
            ({"prototype_dtype": "int8"}, "expected prototype_dtype float32, float16 or bfloat16, got 'int8'"),
            (
                {"prototype_dtype": "float16", "index": "faiss"},
                "Faiss searches in float32; prototype_dtype=float16 takes search=exact",
            ),
        ],
    )
    def test_settings(self, toy_bundle, argument, said):
        # unwrap: the tests' own check of types is for programmers, the message for users
        load = inspect.unwrap(Predictor.load.__func__)
        with pytest.raises(ValueError, match=said):
            load(Predictor, toy_bundle, **argument)


class TestNoModel:
    def check(self, directory, error, said, **arguments):
        with pytest.raises(error, match=said) as raised:
            Predictor.load(directory, **arguments)
        assert str(directory) in str(raised.value)

    def test_missing_folder(self, tmp_path):
        said = "no exported model, there is no such folder: expected the folder model/"
        self.check(tmp_path / "nowhere", FileNotFoundError, said)

    def test_missing_file_is_named(self, copy):
        (copy / "labels.jsonl").unlink()
        self.check(copy, FileNotFoundError, r"no exported model, labels.jsonl not found: expected the folder model/")

    def test_run_folder(self, copy):
        self.check(copy.parent, FileNotFoundError, f"expected {copy}")

    def test_other_format(self, copy):
        edit(copy / "prime_config.json", format_version=99, package_version="7.1")
        self.check(copy, ValueError, "format_version is 99, .* reads 1: install prime_xmc 7.1")

    @pytest.mark.parametrize("key", ["max_length", "encoder", "prototypes", "index", "settings"])
    def test_settings_without_a_key(self, copy, key):
        config = json.loads((copy / "prime_config.json").read_text())
        del config[key]
        (copy / "prime_config.json").write_text(json.dumps(config))
        self.check(copy, ValueError, f"prime_config.json is damaged .no {key}.; copy or export the model again")

    @pytest.mark.parametrize("content", ["", "{", '{"version": "1.0"}'])
    def test_damaged_tokenizer(self, copy, content):
        (copy / "tokenizer.json").write_text(content)
        self.check(copy, ValueError, "tokenizer.json is damaged")

    def test_tokenizer_of_another_encoder(self, copy):
        config = json.loads((copy / "tokenizer.json").read_text())
        config["model"]["vocab"]["qwertzuiop"] = len(config["model"]["vocab"])
        (copy / "tokenizer.json").write_text(json.dumps(config))
        self.check(copy, ValueError, "tokenizer.json has 30523 tokens, and the encoder embeds 30522")

    def test_damaged_encoder_settings(self, copy):
        (copy / "config.json").write_text("{")
        self.check(copy, ValueError, "the encoder is damaged")

    def test_encoder_settings_of_another_version(self, copy):
        config = json.loads((copy / "prime_config.json").read_text())
        edit(copy / "prime_config.json", encoder=config["encoder"] | {"rotation": 3})
        self.check(copy, ValueError, "prime_config.json is damaged .*rotation")

    def test_weights_that_are_missing(self, copy):
        weights = load_file(copy / "model.safetensors")
        del weights["encoder.layer.1.output.dense.weight"]
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
        self.check(copy, ValueError, r"1 weights .* are missing .*encoder\.layer\.1\.output\.dense\.weight")

    def test_prototypes_of_other_labels(self, copy):
        tensors = {name: tensor[:47].clone() for name, tensor in load_file(copy / "prototypes.safetensors").items()}
        save_file(tensors, copy / "prototypes.safetensors")
        self.check(copy, ValueError, "prototypes.safetensors holds 47 x 32 numbers, expected 48 x 32, labels x dim")

    @pytest.mark.parametrize(("rows", "dim"), [(47, 32), (48, 16)])
    def test_index_of_other_labels(self, copy, rows, dim):
        search = FaissSearch("flat")
        search.build(torch.eye(rows, dim))
        search.save(copy / "index.faiss")
        self.check(copy, ValueError, f"index.faiss holds {rows} x {dim} numbers, expected 48 x 32", index="faiss")

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
        self.check(copy, ValueError, "cannot be read as a Faiss index", index="faiss")

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
        self.check(copy, FileNotFoundError, "has no index.faiss: take search=exact", index="faiss")
        assert isinstance(Predictor.load(copy).searcher, ExactSearch)


def test_prediction_reads_as_query_and_labels(predictor):
    (prediction,) = predictor.predict(["cat"], top_k=1)
    assert isinstance(prediction, Prediction)
    query, (label,) = prediction
    assert query == "cat"
    assert label == (f"l{label.id}", label.text, label.score, label.id)


class TestLabelLists:
    """allow and exclude: as if the ranking of all labels were read to its end without the others."""

    @pytest.mark.parametrize("scorer", ["theta", "W", "neighbours", "lexical", "ensemble"])
    @pytest.mark.parametrize(
        "lists", [{"allow": ["l3", "l17", 40, "l2"]}, {"exclude": [f"l{i}" for i in range(1, 45)]}]
    )
    def test_every_scorer(self, ensemble_model, scorer, lists):
        predictor = Predictor.load(ensemble_model, scorer=scorer)
        allowed = {3, 17, 40, 2} if "allow" in lists else {0, 45, 46, 47}
        texts = ["a red cat by the river", "yellow rocket"]
        for whole, found in zip(
            predictor.predict(texts, top_k=48), predictor.predict(texts, top_k=3, **lists), strict=True
        ):
            expected = [label for label in whole.labels if label.id in allowed][:3]
            assert [label.id for label in found.labels] == [label.id for label in expected]
            assert [x.score for x in found.labels] == pytest.approx([x.score for x in expected], abs=1e-6)
            assert len(found.labels) == 3 or scorer == "neighbours"

    def test_fewer_are_allowed_than_asked_for(self, predictor):
        (found,) = predictor.predict(["cat"], top_k=5, allow=["l1", "l2"])
        assert {label.uid for label in found.labels} == {"l1", "l2"}

    def test_an_unknown_label(self, predictor):
        with pytest.raises(ValueError, match=r"exclude: there is no label 'l48'; expected .* The nearest is 'l\d+'"):
            predictor.predict(["cat"], exclude=["l48"])


class TestProbabilities:
    CURVE = ScorerCalibration(10.0, -4.0, -2.0, 0.05, 0.31, {})

    @pytest.fixture
    def model(self, copy):
        save_calibration(copy, Calibration("40 queries", {"theta": self.CURVE}, None), digest=encoder_digest(copy))
        return copy

    def test_they_depend_on_neither_top_k_nor_lists(self, model):
        predictor = Predictor.load(model)
        (whole,) = predictor.predict(["a red cat"], top_k=48, calibrate=True)
        scores = np.array([[label.score for label in whole.labels]])
        expected = dict(zip([x.id for x in whole.labels], self.CURVE.at(scores, scores)[0], strict=True))
        for arguments in ({}, {"top_k": 1}, {"exclude": [whole.labels[0].id]}, {"min_score": whole.labels[9].score}):
            (found,) = predictor.predict(["a red cat"], calibrate=True, **arguments)
            assert {x.id: x.probability for x in found.labels} == {
                x.id: pytest.approx(expected[x.id], abs=1e-5) for x in found.labels
            }
        assert predictor.predict(["a red cat"])[0].labels[0].probability is None
        assert predictor.predict([], calibrate=True) == []
        assert predictor.calibration().threshold == 0.31

    def test_scorers_without_them(self, ensemble_model):
        predictor = Predictor.load(ensemble_model)
        with pytest.raises(FileNotFoundError, match=r"has no calibration\.json, .*; prime-xmc-calibrate model="):
            predictor.predict(["a"], calibrate=True)
        weights, digest = (
            {name: 0.5 for name in ("theta", "W", "neighbours", "lexical")},
            encoder_digest(ensemble_model),
        )
        save_calibration(ensemble_model, Calibration("40 queries", {"theta": self.CURVE}, weights), digest=digest)
        with pytest.raises(ValueError, match=r"is of theta and not of scorer=ensemble: take one of these, or fit it"):
            predictor.predict(["a"], calibrate=True)
        outside = Predictor.load(ensemble_model, scorer="ensemble", classifiers=ensemble_model / "classifiers")
        with pytest.raises(ValueError, match="is of its own scorers, not of those with classifiers="):
            outside.predict(["a"], calibrate=True)


def test_a_model_that_is_no_folder_has_no_reasons(predictor):
    parts = predictor.encoder, predictor.tokenizer, predictor.searcher, predictor.labels, predictor.config
    alone = Predictor(*parts)
    assert alone.predict(["cat"])[0].labels[0].uid == predictor.predict(["cat"])[0].labels[0].uid
    for asked in ({"calibrate": True}, {"explain": True}):
        with pytest.raises(ValueError, match=r"come from the folder of a model: load it by prime_xmc\.load"):
            alone.predict(["cat"], **asked)
