"""Explanations of a model with all scorers: the shares add up, and training queries are those that carry the label."""

import json

import numpy as np
import pytest
import torch

from prime_xmc.data.corpus import Ragged
from prime_xmc.export.neighbours_folder import VotingQueries, save_neighbours
from prime_xmc.export.predictor import Predictor
from prime_xmc.export.prototypes_folder import load_prototype_network
from prime_xmc.export.scorers import encoder_digest

TEXTS = ["a cat that is red", "a red house by the river", "violin", ""]
VOTERS = ["a cat that is red", "a house by the green river"]


def explained(model, scorer, texts=TEXTS, **named):
    predictions = Predictor.load(model, scorer=scorer).predict(texts, explain=True, **named)
    return [label for prediction in predictions for label in prediction.labels]


@pytest.mark.parametrize("scorer", ["theta", "W", "neighbours", "lexical", "ensemble"])
def test_shares_add_up_to_the_score(ensemble_model, scorer):
    labels = explained(ensemble_model, scorer, top_k=48)
    expected = ["theta", "W", "neighbours", "lexical"] if scorer == "ensemble" else [scorer]
    for label in labels:
        assert list(label.why.scorers) == expected
        assert sum(label.why.scorers.values()) == pytest.approx(label.score, abs=1e-5)
        if "theta" in expected:
            assert list(label.why.sources) == ["text", "centroid", "free_vector"]
            assert sum(label.why.sources.values()) == pytest.approx(label.why.scorers["theta"], abs=1e-5)
        else:
            assert label.why.sources == {}
    assert len(labels) == (48 * 4 if scorer != "neighbours" else len(labels))
    # a lexical share is not there by chance
    if scorer == "ensemble":
        assert {label.why.scorers["lexical"] > 0 for label in labels} == {True, False}
        assert {label.why.scorers["neighbours"] > 0 for label in labels} == {True, False}


def test_shares_of_the_sources_by_hand(toy_bundle):
    predictor = Predictor.load(toy_bundle)
    (label,) = predictor.predict(["a red cat"], top_k=1, explain=True)[0].labels
    network, label_emb = load_prototype_network(toy_bundle, predictor.config)
    query, ids = predictor.encode(["a red cat"])[0], torch.tensor([label.id])

    @torch.no_grad()
    def value(*sources):
        return float(network.from_sources(sources, ids, label_emb[ids])[0] @ query)

    text, centroid, free = value("text"), value("centroid"), value("free_vector")
    both, all_three = value("text", "centroid"), value("text", "centroid", "free_vector")
    with_free = value("text", "free_vector"), value("centroid", "free_vector")
    share = text / 3 + (both - centroid) / 6 + (with_free[0] - free) / 6 + (all_three - with_free[1]) / 3
    assert label.why.sources["text"] == pytest.approx(share, abs=1e-5)
    assert all_three == pytest.approx(label.score, abs=1e-5)


def test_training_queries_that_carry_the_label(ensemble_model):
    """The model's two voting queries have the labels 0 and 1, and 1 and 2."""
    predictor = Predictor.load(ensemble_model)
    query_emb, voters = predictor.encode(TEXTS), predictor.encode(VOTERS).half().float()
    similarity = query_emb @ torch.nn.functional.normalize(voters, dim=1).T
    for row, prediction in enumerate(predictor.predict(TEXTS, top_k=48, explain=True)):
        queries = {label.id: label.why.queries for label in prediction.labels}
        assert [each.similarity for each in queries[0]] == pytest.approx([float(similarity[row, 0])], abs=1e-5)
        assert [each.similarity for each in queries[2]] == pytest.approx([float(similarity[row, 1])], abs=1e-5)
        assert [each.similarity for each in queries[1]] == pytest.approx(
            sorted(similarity[row].tolist(), reverse=True), abs=1e-5
        )
        assert queries[3] == []
        assert {(each.row, each.text) for label in queries.values() for each in label} == {(None, None)}


def test_rows_and_texts_of_training_queries(ensemble_model):
    embeddings = Predictor.load(ensemble_model).encode(VOTERS).half()
    labels = Ragged.from_rows([[0, 1], [1, 2]], dtype=np.int32)
    voters = VotingQueries(embeddings, labels, np.array([17, -1]), ["x" * 600, VOTERS[1]])
    save_neighbours(ensemble_model / "neighbours", voters, digest=encoder_digest(ensemble_model))
    (label,) = explained(ensemble_model, "theta", [VOTERS[0]], top_k=1, allow=[0])
    assert [(each.row, each.text) for each in label.why.queries] == [(17, "x" * 500)]
    (label,) = explained(ensemble_model, "theta", [VOTERS[0]], top_k=1, allow=[2])
    assert [(each.row, each.text) for each in label.why.queries] == [(None, VOTERS[1])]
    (ensemble_model / "neighbours" / "texts.jsonl").write_text('"one"\n')
    with pytest.raises(ValueError, match=r"texts.jsonl has 1 texts, expected 2, one for each training query"):
        explained(ensemble_model, "theta")


def test_a_model_of_prototypes_alone(toy_bundle):
    labels = explained(toy_bundle, "theta", ["a red cat"], top_k=2)
    assert [label.why.queries for label in labels] == [[], []]
    assert explained(toy_bundle, "theta", []) == []


def test_labels_that_are_left_out_are_not_explained(ensemble_model):
    predictor = Predictor.load(ensemble_model)
    (best,) = predictor.predict(["violin"], top_k=1)[0].labels
    (found,) = predictor.predict(["violin"], top_k=5, min_score=best.score - 1e-6, explain=True)
    assert [label.id for label in found.labels] == [best.id]
    assert sum(found.labels[0].why.scorers.values()) == pytest.approx(best.score, abs=1e-5)


def test_a_folder_that_was_replaced_since(copy):
    predictor = Predictor.load(copy)
    config = json.loads((copy / "prime_config.json").read_text()) | {"version": 2}
    (copy / "prime_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="holds another model than when it was loaded: load it again"):
        predictor.predict(["a"], explain=True)
