import numpy as np
import pytest
import scipy.sparse as sp

from prime_xmc.baselines import simple
from prime_xmc.baselines.features import TfIdf
from prime_xmc.baselines.method import LabelledTexts
from prime_xmc.baselines.simple import NearestNeighbours, Popularity, ZeroShot, votes
from prime_xmc.data.corpus import Ragged


def test_popularity_gives_everybody_the_commonest_labels(words, asked):
    positives = Ragged.from_rows([[3], [3, 5], [5, 9, 3], [9], *[[] for _ in range(116)]])
    ids, scores = (
        Popularity().rank(LabelledTexts(words.queries, words.labels, positives), {"test": asked}, 4).rankings["test"]
    )
    assert ids.tolist() == [[3, 5, 9, 0]] * 3
    assert scores.tolist() == [[3, 2, 2, 0]] * 3


def test_zero_shot_ranks_by_the_cosine_of_the_label_text(words, asked, expected):
    outcome = ZeroShot(TfIdf(ngrams=(1, 1))).rank(words, {"test": asked}, 3)
    ids, scores = outcome.rankings["test"]
    assert [{*row[:2]} for row in ids.tolist()] == expected
    assert (scores[:, :2] ** 2).sum(axis=1) == pytest.approx([1, 1, 1])  # each word is a label
    assert scores[:, 2].tolist() == [0, 0, 0]
    assert outcome.cost.model_bytes > 0


def test_votes_are_those_of_a_slow_loop():
    rng = np.random.default_rng(0)
    similarity = rng.uniform(-1, 1, size=(6, 20))
    labels = (rng.random((20, 8)) < 0.3).astype(np.float32)
    found = votes(similarity, sp.csr_matrix(labels), k=5, power=3)
    for row in range(6):
        nearest = sorted(range(20), key=lambda i: -similarity[row, i])[:5]
        slow = sum(max(similarity[row, i], 0) ** 3 * labels[i] for i in nearest)
        assert found[row] == pytest.approx(slow, abs=1e-6)


def test_votes_of_fewer_queries_than_are_asked_for_are_all_votes():
    labels = sp.csr_matrix(np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32))
    assert votes(np.array([[0.5, -0.5]]), labels, k=50, power=1).tolist() == [[0.5, 0.0]]


@pytest.mark.parametrize("label_texts", [True, False])
def test_neighbours_find_the_labels(words, asked, expected, label_texts):
    method = NearestNeighbours(TfIdf(ngrams=(1, 1)), k=10, power=4, label_texts=label_texts)
    ids, _ = method.rank(words, {"test": asked}, 2).rankings["test"]
    assert [{*row} for row in ids.tolist()] == expected


def test_few_queries_at_once_are_compared_with_many(words, asked, monkeypatch):
    sizes = []
    monkeypatch.setattr(simple, "BLOCK_SCORES", 2 * 120)  # two of the three queries beside the 120 that vote
    monkeypatch.setattr(simple, "votes", lambda found, *given: sizes.append(found.shape) or votes(found, *given))
    method = NearestNeighbours(TfIdf(ngrams=(1, 1)), k=10, label_texts=False)
    ids, scores = method.rank(words, {"test": asked}, 2).rankings["test"]
    assert sizes == [(2, 120), (1, 120)]
    monkeypatch.undo()
    at_once = method.rank(words, {"test": asked}, 2).rankings["test"]
    assert ids.tolist() == at_once[0].tolist()
    assert scores == pytest.approx(at_once[1])


def test_label_text_adds_its_own_cosine(words, asked):
    with_text, without = (
        NearestNeighbours(TfIdf(ngrams=(1, 1)), k=10, power=2, label_texts=each).rank(words, {"test": asked}, 10)
        for each in (True, False)
    )
    alone = ZeroShot(TfIdf(ngrams=(1, 1))).rank(words, {"test": asked}, 10)

    def by_label(outcome):
        ids, scores = outcome.rankings["test"]
        return np.take_along_axis(scores, ids.argsort(axis=1), axis=1)

    assert by_label(with_text) == pytest.approx(by_label(without) + by_label(alone) ** 2, abs=1e-5)
    assert with_text.cost.model_bytes > without.cost.model_bytes


def test_mistaken_settings_are_refused():
    with pytest.raises(ValueError, match=r"method\.k of at least 1, got 0"):
        NearestNeighbours(TfIdf(), k=0)
    with pytest.raises(ValueError, match=r"method\.power above 0, got 0"):
        NearestNeighbours(TfIdf(), power=0)
