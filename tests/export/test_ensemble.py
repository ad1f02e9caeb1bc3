"""Several scorers of a model folder: what is written, what is read, and what is said of a folder that lacks a part."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import prime_xmc
from prime_xmc.data.corpus import Ragged
from prime_xmc.export.bundle import update_metrics
from prime_xmc.export.ensemble import Ensemble, add_scorers, read_ensemble
from prime_xmc.export.lexical_folder import LexicalTables, load_lexical, save_lexical
from prime_xmc.export.model_sums import SUMMED, sealed
from prime_xmc.export.neighbours_folder import VotingQueries, load_neighbours, save_neighbours
from prime_xmc.export.scorers import encoder_digest, labels_digest, read_prototypes, save_classifiers
from prime_xmc.files import save_tensors, write_json
from prime_xmc.index.fused import Weights
from prime_xmc.index.lexical import build_postings
from prime_xmc.index.search import FaissSearch

TEXTS = ["a red cat", "blue house and green river"]
NUM_LABELS, DIM = 48, 32
WEIGHTS = Weights(0.75, 0.25, 0.5)


@pytest.fixture
def classifiers() -> torch.Tensor:
    return normalize(torch.randn(NUM_LABELS, DIM, generator=torch.Generator().manual_seed(0)), dim=1)


@pytest.fixture
def voters() -> VotingQueries:
    query_emb = normalize(torch.randn(60, DIM, generator=torch.Generator().manual_seed(1)), dim=1)
    rng = np.random.default_rng(0)
    labels = Ragged.from_rows([np.sort(rng.permutation(NUM_LABELS)[: row % 4]) for row in range(60)], dtype=np.int32)
    return VotingQueries(query_emb.half(), labels)


@pytest.fixture
def lexical(toy_bundle) -> LexicalTables:
    """Of the toy labels' texts, by the tokenizer of the model."""
    predictor = prime_xmc.load(toy_bundle)
    labels = predictor.tokenise([text for _, text in predictor.labels])
    queries = predictor.tokenise(["a cat that is red", "a house by the green river"])
    special_ids = sorted(set(predictor.tokenise([""]).values.tolist()))
    postings = build_postings(queries, Ragged.from_rows([[0], [1, 2]]), labels, special_ids=special_ids, pairs=True)
    return LexicalTables(postings, special_ids, True)


@pytest.fixture
def model(toy_bundle, tmp_path) -> Path:
    shutil.copytree(toy_bundle, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def add(model, classifiers, voters, lexical):
    """Adds scorers to the model: add(weights, k=5, classifiers=None, ...)."""

    def call(weights=WEIGHTS, k=5, **parts):
        given = {"classifiers": classifiers, "voters": voters, "lexical": lexical, "index": None} | parts
        validation = {"theta": {"P@1": 0.5}, "ensemble": {"P@1": 0.75}}
        ensemble = Ensemble(weights, k, 0.1, 40, ["P@1"], validation, given["lexical"] is not None)
        add_scorers(model, ensemble, digest=encoder_digest(model), classifier_settings={"seed": 3}, **given)
        return ensemble

    return call


def scores(predictor) -> torch.Tensor:
    """Scores of all labels for the texts; -inf where a label has none."""
    table = torch.full((len(TEXTS), NUM_LABELS), -torch.inf)
    for row, prediction in enumerate(predictor.predict(TEXTS, top_k=NUM_LABELS)):
        for label in prediction.labels:
            table[row, label.id] = label.score
    return table


def test_the_ensemble_is_the_weighted_sum_of_the_scorers(model, add):
    add()
    theta, w, vote, ensemble = (
        scores(prime_xmc.load(model, scorer=name)) for name in ("theta", "W", "neighbours", "ensemble")
    )
    assert (vote == -torch.inf).any(), "neighbours name some labels alone"
    expected = 0.75 * theta + 0.25 * w + 0.5 * vote.clamp(min=0)
    torch.testing.assert_close(ensemble, expected, atol=1e-5, rtol=0)


def test_lexical_scores_are_part_of_the_ensemble(model, add):
    add(Weights(0.75, 0.25, 0.5, 0.3))
    theta, w, vote, terms, ensemble = (
        scores(prime_xmc.load(model, scorer=name)) for name in ("theta", "W", "neighbours", "lexical", "ensemble")
    )
    assert ((terms >= 0) & (terms <= 1 + 1e-6)).all()
    assert terms.max() > 0.3
    expected = 0.75 * theta + 0.25 * w + 0.5 * vote.clamp(min=0) + 0.3 * terms
    torch.testing.assert_close(ensemble, expected, atol=1e-5, rtol=0)


def test_a_label_of_the_same_words_has_the_best_lexical_score(model, add):
    add()
    (prediction,) = prime_xmc.load(model, scorer="lexical").predict(["white violin"], top_k=3)
    assert prediction.labels[0].text == "white violin"
    assert prediction.labels[0].score == pytest.approx(1, abs=1e-5)
    assert prediction.labels[1].score < 0.9


def test_embeddings_alone_do_not_make_a_lexical_score(model, add):
    add(Weights(0.75, 0.25, 0.5, 0.3))
    predictor = prime_xmc.load(model)
    query_emb, tokens = predictor.encode(TEXTS), predictor.tokenise(TEXTS)
    with pytest.raises(ValueError, match="expected the token ids of the queries, tokens="):
        predictor.search(query_emb, 3)
    found, _ = predictor.search(query_emb, NUM_LABELS, tokens)
    assert torch.equal(found, scores(predictor).sort(dim=1, descending=True).values)


def test_an_ensemble_of_before_has_no_lexical_weight(model, add):
    add()
    expected = scores(prime_xmc.load(model))
    content = json.loads((model / "ensemble.json").read_text())
    del content["lexical"], content["weights"]["lexical"]
    (model / "ensemble.json").write_text(json.dumps(content))
    shutil.rmtree(model / "lexical")
    assert torch.equal(scores(prime_xmc.load(model)), expected)
    with pytest.raises(FileNotFoundError, match="has no lexical/"):
        prime_xmc.load(model, scorer="lexical")


def test_the_ensemble_in_half_precision_rounds_labels_with_a_vote_as_those_without(model, add):
    add()
    exact, half = (prime_xmc.load(model, prototype_dtype=name) for name in ("float32", "bfloat16"))
    assert half.searcher.vectors.dtype == torch.bfloat16
    query_emb = half.encode(TEXTS).bfloat16().float()
    vectors = exact.searcher.vectors.bfloat16().float()
    expected = query_emb @ vectors.T + 0.5 * scores(prime_xmc.load(model, scorer="neighbours")).clamp(min=0)
    torch.testing.assert_close(scores(half), expected, atol=1e-6, rtol=0)


def test_the_ensemble_is_what_a_model_that_has_one_takes(model, add):
    assert prime_xmc.load(model).scorer == "theta"
    add()
    assert prime_xmc.load(model).scorer == "ensemble"
    assert torch.equal(scores(prime_xmc.load(model)), scores(prime_xmc.load(model, scorer="ensemble")))


def test_votes_alone_are_a_share_of_the_neighbours(model, add):
    add()
    (prediction, _) = prime_xmc.load(model, scorer="neighbours").predict(TEXTS, top_k=NUM_LABELS)
    assert 0 < len(prediction.labels) < NUM_LABELS
    assert all(0 < label.score <= 1 for label in prediction.labels)


def test_what_was_written_is_read(model, add, voters, lexical):
    expected = add()
    digest = encoder_digest(model)
    assert read_ensemble(model, digest) == Ensemble(**{**vars(expected), "criterion": ("P@1",)})
    read = load_neighbours(model / "neighbours", model, NUM_LABELS, digest)
    assert torch.equal(read.query_emb, voters.query_emb)
    assert np.array_equal(read.labels.values, voters.labels.values)
    assert np.array_equal(read.labels.offsets, voters.labels.offsets)
    terms = load_lexical(model / "lexical", model, NUM_LABELS, digest)
    assert (terms.special_ids, terms.pairs) == (tuple(lexical.special_ids), True)
    assert all(torch.equal(part, other) for part, other in zip(terms.postings, lexical.postings, strict=True))
    names = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    assert {
        "ensemble.json",
        *("classifiers/classifiers.json", "classifiers/classifiers.safetensors"),
        *("neighbours/neighbours.json", "neighbours/neighbours.safetensors"),
        *("lexical/lexical.json", "lexical/lexical.safetensors"),
    } <= names


@pytest.mark.parametrize("last", ["classifiers", "neighbours", "lexical", "ensemble.json"])
def test_a_model_is_one_of_prototypes_until_all_is_written(model, add, last, monkeypatch):
    """Also where an older ensemble was there."""
    add(Weights(0.5, 0.5, 0.1))
    expected = scores(prime_xmc.load(model, scorer="theta"))

    def fail(*_, **__):
        raise KeyboardInterrupt

    target = "write_json" if last == "ensemble.json" else f"save_{last}"
    (model / "calibration.json").write_text("of the older one")
    with monkeypatch.context() as patch:
        patch.setattr(f"prime_xmc.export.ensemble.{target}", fail)
        with pytest.raises(KeyboardInterrupt):
            add()
    assert not (model / "calibration.json").exists()
    predictor = prime_xmc.load(model)
    assert predictor.scorer == "theta"
    assert torch.equal(scores(predictor), expected)


class TestIndex:
    """What `search=` means for each scorer."""

    @pytest.fixture
    def approximate(self, model, add, classifiers) -> FaissSearch:
        """Makes the exported index one of hnsw, with one of the ensemble beside it."""
        settings = {"kind": "hnsw", "m": 8, "ef_construction": 40, "ef_search": 64}
        config = json.loads((model / "prime_config.json").read_text())
        prototypes, index = read_prototypes(model), FaissSearch(**settings)
        index.build(prototypes)
        index.save(model / "index.faiss")
        write_json(model / "prime_config.json", sealed(config | {"index": settings}, model, SUMMED))
        index.build(0.75 * prototypes + 0.25 * classifiers)
        add(index=index)
        return index

    def test_an_exported_approximate_index_is_the_linear_part(self, model, approximate):
        found = prime_xmc.load(model).searcher
        assert isinstance(found.linear, FaissSearch)
        assert found.linear.kind == "hnsw"
        torch.testing.assert_close(
            scores(prime_xmc.load(model)), scores(prime_xmc.load(model, index="exact")), atol=1e-5, rtol=0
        )

    def test_prototypes_and_neighbours_have_the_index_of_the_prototypes(self, model, approximate, add):
        add(Weights(1.0, 0.0, 0.5))
        (model / "ensemble.faiss").unlink()
        assert prime_xmc.load(model).searcher.linear.kind == "hnsw"

    def test_an_approximate_index_of_the_ensemble_that_is_missing(self, model, approximate):
        (model / "ensemble.faiss").unlink()
        with pytest.raises(FileNotFoundError, match=r"has no ensemble\.faiss: take search=exact, or scorer=theta"):
            prime_xmc.load(model, index="faiss")

    def test_a_flat_index_is_made_of_the_ensembles_vectors(self, model, add):
        add()
        predictor = prime_xmc.load(model, index="faiss")
        assert predictor.searcher.linear.kind == "flat"
        torch.testing.assert_close(scores(predictor), scores(prime_xmc.load(model, index="exact")))

    @pytest.mark.parametrize("scorer", ["W", "neighbours", "lexical"])
    def test_scorers_that_are_searched_exactly(self, model, add, scorer):
        add()
        with pytest.raises(ValueError, match=f"the exported index is of the prototypes; scorer={scorer} takes search="):
            prime_xmc.load(model, scorer=scorer, index="faiss")


class TestWhatIsMissing:
    @pytest.mark.parametrize("scorer", ["neighbours", "lexical", "ensemble"])
    def test_a_model_of_prototypes(self, model, scorer):
        with pytest.raises(FileNotFoundError, match=r"has no ensemble\.json, so its one scorer is theta"):
            prime_xmc.load(model, scorer=scorer)

    def test_no_classifiers(self, model):
        with pytest.raises(FileNotFoundError, match=r"holds no classifiers"):
            prime_xmc.load(model, scorer="W")

    def test_no_neighbours(self, model, add):
        add(Weights(0.5, 0.5, 0.0), k=None, voters=None)
        assert prime_xmc.load(model).scorer == "ensemble"
        with pytest.raises(FileNotFoundError, match=r"has no neighbours/: it was trained with neighbours=null"):
            prime_xmc.load(model, scorer="neighbours")

    def test_no_lexical_vectors(self, model, add):
        add(lexical=None)
        with pytest.raises(FileNotFoundError, match=r"has no lexical/: it was trained with lexical=null"):
            prime_xmc.load(model, scorer="lexical")
        add(Weights(0.5, 0.5, 0.0, 0.2))
        shutil.rmtree(model / "lexical")
        with pytest.raises(FileNotFoundError, match=r"lexical holds no lexical vectors of the labels"):
            prime_xmc.load(model)

    def test_an_unknown_scorer(self, model):
        with pytest.raises(ValueError, match="scorer auto, theta, W, neighbours, lexical or ensemble, got 'w'"):
            prime_xmc.load(model, scorer="w")

    def test_neighbours_of_other_classifiers(self, model, add, classifiers, tmp_path):
        save_classifiers(
            tmp_path / "later", classifiers, digest=encoder_digest(model), labels=labels_digest(model), settings={}
        )
        for scorer in ("neighbours", "lexical"):
            with pytest.raises(ValueError, match=f"scorer={scorer} does not use classifiers"):
                prime_xmc.load(model, scorer=scorer, classifiers=tmp_path / "later")
        add()
        mean = scores(prime_xmc.load(model, classifiers=tmp_path / "later"))
        theta, w = (scores(prime_xmc.load(model, scorer=name)) for name in ("theta", "W"))
        torch.testing.assert_close(mean, (theta + w) / 2, atol=1e-5, rtol=0)

    def test_other_classifiers_are_for_the_labels_that_the_model_had(self, model, classifiers, tmp_path):
        later = tmp_path / "later"
        digests = {"digest": encoder_digest(model), "labels": labels_digest(model)}
        save_classifiers(later, classifiers, **digests, settings={})
        changed = prime_xmc.load(model)
        changed.rename_labels({"l3": "purple dragon"})
        renamed = changed.save(tmp_path / "renamed")
        best = prime_xmc.load(model, scorer="W", classifiers=later).predict(TEXTS, top_k=1)
        found = prime_xmc.load(renamed, scorer="W", classifiers=later).predict(TEXTS, top_k=1)
        assert [each.labels[0].uid for each in found] == [each.labels[0].uid for each in best]
        changed.remove_labels(["l0"])
        changed.add_labels(["n1"])
        shifted = changed.save(tmp_path / "shifted")
        assert prime_xmc.load(shifted).num_labels == len(classifiers)
        with pytest.raises(ValueError, match=r"later are not for the model .*shifted: its labels, or their order, are"):
            prime_xmc.load(shifted, scorer="W", classifiers=later)

    def test_classifiers_of_a_version_that_did_not_name_their_labels(self, model, classifiers, tmp_path):
        later = tmp_path / "later"
        save_classifiers(later, classifiers, digest=encoder_digest(model), labels=labels_digest(model), settings={})
        content = json.loads((later / "classifiers.json").read_text())
        del content["labels"], content["checksum"], content["files"]
        (later / "classifiers.json").write_text(json.dumps(content))
        assert prime_xmc.load(model, classifiers=later).scorer == "ensemble"
        changed = prime_xmc.load(model)
        changed.remove_labels(["l0"])
        changed.add_labels(["n1"])
        changed.save()
        with pytest.raises(ValueError, match=r"do not say which labels they are for, and the model .* is version 3"):
            prime_xmc.load(model, classifiers=later)


class TestDamage:
    def test_of_another_encoder(self, model, add, voters):
        add()
        save_neighbours(model / "neighbours", voters, digest="other")
        with pytest.raises(ValueError, match=r"the training queries in .* are not for the model"):
            prime_xmc.load(model)
        content = json.loads((model / "ensemble.json").read_text())
        (model / "ensemble.json").write_text(json.dumps(content | {"encoder": "other"}))
        with pytest.raises(ValueError, match=r"the weights in .*ensemble\.json are not for the model"):
            prime_xmc.load(model)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", r"ensemble\.json is damaged"),
            ('{"format_version": 9, "encoder": "x"}', r"format_version is 9, this version reads 1"),
        ],
    )
    def test_of_the_weights(self, model, add, content, message):
        add()
        (model / "ensemble.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            prime_xmc.load(model)

    def test_weights_that_are_missing(self, model, add):
        add()
        content = json.loads((model / "ensemble.json").read_text())
        del content["weights"]["W"]
        (model / "ensemble.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"ensemble\.json is damaged .*W"):
            prime_xmc.load(model)

    @pytest.mark.parametrize(
        "change",
        [
            {"k": None},
            {"temperature": None},
            {"weights": {"theta": float("nan"), "W": 0, "neighbours": 0}},
            {"weights": {"theta": 1, "W": 0, "neighbours": 0, "lexical": float("inf")}},
            {"weights": {"theta": 1, "W": 0, "neighbours": -1}},
        ],
    )
    def test_weights_that_score_nothing(self, model, add, change):
        add()
        content = json.loads((model / "ensemble.json").read_text())
        (model / "ensemble.json").write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match=r"ensemble\.json is damaged .*expected"):
            prime_xmc.load(model)

    def test_of_the_voting_queries(self, model, add):
        add()
        path = model / "neighbours" / "neighbours.safetensors"
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(ValueError, match=r"neighbours\.safetensors is damaged"):
            prime_xmc.load(model)

    def test_of_the_lexical_vectors(self, model, add, lexical):
        add(Weights(0.5, 0.5, 0.0, 0.2))
        path = model / "lexical" / "lexical.safetensors"
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(ValueError, match=r"lexical\.safetensors is damaged"):
            prime_xmc.load(model)
        save_lexical(model / "lexical", lexical, digest="other")
        with pytest.raises(ValueError, match=r"the lexical vectors in .* are not for the model"):
            prime_xmc.load(model)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda p: p._replace(terms=p.terms.flip(0)), "codes of terms from 0 on, ascending"),
            (lambda p: {**p._asdict(), "terms": p.terms[1:]}, "as many numbers of idf as there are terms"),
            (lambda p: p._replace(offsets=p.offsets + 1), "offsets that ascend from 0 to"),
            (lambda p: p._replace(label_ids=p.label_ids + 1), "labels from 0 to 47"),
            (lambda p: p._replace(label_ids=torch.zeros_like(p.label_ids)), "labels that ascend for each term"),
            (lambda p: p._replace(weights=-p.weights), "weights above 0 and at most 1"),
            (lambda p: p._replace(moved=p.moved * torch.nan), "finite numbers in moved and bias"),
            (lambda p: p._replace(bias=p.bias + torch.inf), "finite numbers in moved and bias"),
            (lambda p: p._replace(bias=p.bias[1:]), "a bias for each of the 48 labels"),
            (lambda p: p._replace(idf=p.idf * torch.nan), "idf above 0"),
            (
                lambda p: {**p._asdict(), "terms": p.terms.int()},
                "lists of int64, float32, int64, int32, float32, float32",
            ),
        ],
    )
    def test_of_the_lexical_tables(self, model, lexical, change, message):
        save_lexical(model / "lexical", lexical, digest="d")
        tables = change(lexical.postings)
        save_tensors(
            model / "lexical" / "lexical.safetensors", tables if isinstance(tables, dict) else tables._asdict()
        )
        with pytest.raises(ValueError, match=message):
            load_lexical(model / "lexical", model, NUM_LABELS, "d")

    @pytest.mark.parametrize(
        "content",
        [
            {"pairs": 1},
            {"special_ids": ["x"]},
            {"special_ids": None},
            {"special_ids": [2**70]},
            {"special_ids": [True]},
        ],
    )
    def test_of_the_lexical_description(self, model, lexical, content):
        save_lexical(model / "lexical", lexical, digest="d")
        path = model / "lexical" / "lexical.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | content))
        with pytest.raises(ValueError, match=r"lexical\.json is damaged: expected pairs to be true or false"):
            load_lexical(model / "lexical", model, NUM_LABELS, "d")

    def test_labels_that_the_model_does_not_have(self, model, voters):
        labels = Ragged.from_rows([[NUM_LABELS]] * 60, dtype=np.int32)
        save_neighbours(model / "neighbours", VotingQueries(voters.query_emb, labels), digest="d")
        with pytest.raises(ValueError, match="expected labels from 0 to 47 for each of 60 queries"):
            load_neighbours(model / "neighbours", model, NUM_LABELS, "d")


def test_the_model_card_has_a_column_for_each_scorer_and_says_the_weights(model, add):
    add()
    update_metrics(
        model, {"test/P@1": 0.5, "test/W/P@1": 0.25, "test/ensemble/P@1": 0.75, "test/neighbours/P@1": 0.125}
    )
    card = (model / "README.md").read_text()
    assert "| metric (test split) | theta, percent | W, percent | ensemble, percent | neighbours, percent |" in card
    assert "| P@1 | 50.00 | 25.00 | 75.00 | 12.50 |" in card
    assert "Ensemble: 0.75 theta + 0.25 W + 0.5 neighbours, weights chosen on 40 validation queries." in card
    assert "vote of the 5 most similar training queries" in card
    assert "`lexical`, by the tokens of a query" in card
    assert "value: 0.75" in card.split("---")[1], "the hub gets the figures of the scorer that is used"
    assert "value: 0.25" not in card.split("---")[1]
