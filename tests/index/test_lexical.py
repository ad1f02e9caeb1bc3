"""Lexical vectors: by hand in double precision, and against slow dictionaries."""

import math
from collections import Counter, defaultdict
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
import torch

from prime_xmc.data.corpus import Ragged
from prime_xmc.index.lexical import (
    LexicalIndex,
    LexicalSearch,
    _label_postings,
    add_to_postings,
    build_postings,
    query_block,
    replace_texts,
    take_postings,
)
from prime_xmc.index.search import some_rows

CLS, SEP = 101, 102


def texts(*rows: list[int]) -> Ragged:
    """Token ids as a BERT tokenizer makes them."""
    return Ragged.from_rows([[CLS, *row, SEP] for row in rows], dtype=np.uint16)


def make(queries, labels, label_texts, *, pairs=True, special_ids=(CLS, SEP)) -> LexicalIndex:
    postings = build_postings(queries, labels, label_texts, special_ids=special_ids, pairs=pairs)
    return LexicalIndex(postings, len(label_texts), special_ids=special_ids, pairs=pairs)


def normalised(vector: dict) -> dict:
    norm = math.sqrt(sum(value**2 for value in vector.values()))
    return {term: value / norm for term, value in vector.items()}


def slow_scores(queries, labels, label_texts, asked, pairs) -> torch.Tensor:
    """The scores by dictionaries, in double precision; the terms of rows of token ids without special ones."""

    def terms(row):
        return [*row, *(pairwise(row) if pairs else ())]

    df = Counter(term for row in [*queries, *label_texts] for term in set(terms(row)))
    num_texts = len(queries) + len(label_texts)

    def vector(row):
        tf = Counter(term for term in terms(row) if term in df)
        return normalised({t: (1 + math.log(n)) * (math.log((1 + num_texts) / (1 + df[t])) + 1) for t, n in tf.items()})

    totals = [defaultdict(float) for _ in label_texts]
    for row, its_labels in zip(queries, labels, strict=True):
        for label in its_labels:
            for term, value in vector(row).items():
                totals[label][term] += value
    centroids = []
    for total, text in zip(totals, label_texts, strict=True):
        centroid = defaultdict(float, normalised(total))
        for term, value in vector(text).items():
            centroid[term] += value
        centroids.append(normalised(centroid))
    rows = [[sum(v * c.get(t, 0.0) for t, v in vector(row).items()) for c in centroids] for row in asked]
    return torch.tensor(rows, dtype=torch.float64)


def test_by_hand():
    """One training query [7 7 8] of label 0, texts [7] and [9]; 3 texts in all; the query is [7 9 5]."""
    index = make(texts([7, 7, 8]), Ragged.from_rows([[0]]), texts([7], [9]), pairs=False)
    idf7, idf8, idf9 = math.log(4 / 3) + 1, math.log(2) + 1, math.log(2) + 1  # in 2, 1 and 1 of them
    a, b = (1 + math.log(2)) * idf7, idf8
    x7, x8 = a / math.hypot(a, b), b / math.hypot(a, b)  # of the training query
    c7 = (x7 + 1) / math.hypot(x7 + 1, x8)  # of label 0, whose text is 7 alone
    norm = math.hypot(idf7, idf9)  # of the query, of which 5 is unknown
    assert index.scores(texts([7, 9, 5])).tolist() == [pytest.approx([idf7 / norm * c7, idf9 / norm], abs=1e-6)]
    assert torch.equal(index.postings.terms, torch.tensor([7, 8, 9]))
    assert index.postings.idf.tolist() == pytest.approx([idf7, idf8, idf9])


def test_pairs_are_terms_in_their_order():
    index = make(texts([]), Ragged.from_rows([[]]), texts([3, 4], [4, 3], [3, 5, 4]))
    scores = index.scores(texts([3, 4]))[0]
    assert scores[0] == pytest.approx(1)
    assert scores[0] > scores[1] > scores[2] > 0


def test_special_tokens_are_no_terms_wherever_they_stand():
    """Also of a tokenizer that only ends texts."""
    plain = make(texts([5, 6]), Ragged.from_rows([[0]]), texts([5], [6, 7]))
    ended = Ragged.from_rows([[5, 6, 2]]), Ragged.from_rows([[0]]), Ragged.from_rows([[5, 2], [6, 7, 2]])
    other = make(*ended, special_ids=[2])
    torch.testing.assert_close(plain.scores(texts([6, 7])), other.scores(Ragged.from_rows([[6, 7, 2]])))
    assert torch.equal(plain.postings.terms, other.postings.terms)
    # within a text, one does not make its neighbours a pair
    parted, turned = (plain.scores(Ragged.from_rows([[CLS, *row, SEP]])) for row in ([5, SEP, 6], [6, SEP, 5]))
    torch.testing.assert_close(parted, turned)
    assert not torch.allclose(parted, plain.scores(texts([5, 6])))


@pytest.fixture
def made():
    """makes(seed) returns queries, labels, label texts and further queries; some are empty, some words unknown."""

    def make_rows(seed=0, num_queries=40, num_labels=25):
        rng = np.random.default_rng(seed)

        def rows(num_rows, most):
            return [rng.integers(1, most, rng.integers(7)).tolist() for _ in range(num_rows)]

        labels = [np.sort(rng.permutation(num_labels - 3)[: rng.integers(4)]).tolist() for _ in range(num_queries)]
        return rows(num_queries, 20), labels, [*rows(num_labels - 1, 20), []], rows(30, 25)

    return make_rows


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])  # of the labels, from which on a term is in the matrix
def test_against_dictionaries(made, pairs, share, monkeypatch):
    monkeypatch.setattr("prime_xmc.index.lexical._FREQUENT", share)
    queries, labels, label_texts, asked = made()
    index = make(texts(*queries), Ragged.from_rows(labels), texts(*label_texts), pairs=pairs)
    expected = slow_scores(queries, labels, label_texts, asked, pairs)
    found = index.scores(texts(*asked))
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
    assert (found >= 0).all()
    assert (found <= 1 + 1e-6).all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_blocks_change_nothing(made, monkeypatch, share):
    monkeypatch.setattr("prime_xmc.index.lexical._FREQUENT", share)
    queries, labels, label_texts, asked = made(1)
    given = texts(*queries), Ragged.from_rows(labels), texts(*label_texts)
    whole = make(*given)
    expected = whole.scores(texts(*asked))
    monkeypatch.setattr("prime_xmc.index.lexical._BLOCK_TOKENS", 9)
    monkeypatch.setattr("prime_xmc.index.lexical._CPU_POSTINGS", 5)
    parts = make(*given)
    for part, other in zip(parts.postings, whole.postings, strict=True):
        torch.testing.assert_close(part, other)
    torch.testing.assert_close(parts.scores(texts(*asked)), expected)


def test_the_matrix_is_bounded(made, monkeypatch):
    monkeypatch.setattr("prime_xmc.index.lexical._FREQUENT", 0.0)
    queries, labels, label_texts, asked = made()
    given = texts(*queries), Ragged.from_rows(labels), texts(*label_texts)
    expected = make(*given).scores(texts(*asked))
    monkeypatch.setattr("prime_xmc.index.lexical._MOST_NUMBERS", 4 * len(label_texts))
    index = make(*given)
    assert index._matrix.shape == (4, len(label_texts))
    torch.testing.assert_close(index.scores(texts(*asked)), expected)


def test_texts_of_nothing():
    index = make(texts([], []), Ragged.from_rows([[0], []]), texts([], []))
    assert not index.scores(texts([4, 5], [])).any()
    index = make(texts([4]), Ragged.from_rows([[0]]), texts([], [5]))
    assert index.scores(texts([], [4], [9])).tolist() == [[0, 0], [1, 0], [0, 0]]


@pytest.mark.parametrize("k", [1, 5, 25, 30])
def test_the_best_labels(made, monkeypatch, k):
    monkeypatch.setattr("prime_xmc.index.lexical.query_block", lambda *_: 7)
    queries, labels, label_texts, asked = made()
    index = make(texts(*queries), Ragged.from_rows(labels), texts(*label_texts))
    tokens = texts(*asked)
    scores, ids = LexicalSearch(index).search(torch.zeros(len(asked), 3), k, tokens)
    expected = index.scores(tokens).sort(dim=1, descending=True, stable=True)
    torch.testing.assert_close(scores, expected.values[:, :k])
    torch.testing.assert_close(index.scores(tokens).gather(1, ids), scores)


def test_tokens_are_needed(made):
    queries, labels, label_texts, asked = made()
    search = LexicalSearch(make(texts(*queries), Ragged.from_rows(labels), texts(*label_texts)))
    with pytest.raises(ValueError, match="expected the token ids of the queries, tokens=, besides their embeddings"):
        search.search(torch.zeros(2, 3), 5)
    with pytest.raises(ValueError, match="expected tokens of 2 queries, got those of 30"):
        search.search(torch.zeros(2, 3), 5, texts(*asked))


def test_a_block_has_a_query_whatever_the_number_of_labels():
    assert query_block(10**9, torch.device("cpu")) == 1
    assert query_block(10, torch.device("cpu")) == 1024


def test_some_rows():
    rows = some_rows(Ragged.from_rows([[1, 2], [], [3]]), 1, 9)
    assert (rows.values.tolist(), rows.offsets.tolist()) == ([3], [0, 0, 1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_scores_alike(made):
    queries, labels, label_texts, asked = made()
    cpu = make(texts(*queries), Ragged.from_rows(labels), texts(*label_texts))
    moved = type(cpu.postings)(*(part.cuda() for part in cpu.postings))
    gpu = LexicalIndex(moved, len(label_texts), special_ids=[CLS, SEP], pairs=True)
    tokens = texts(*asked)
    torch.testing.assert_close(gpu.scores(tokens).cpu(), cpu.scores(tokens))
    expected = LexicalSearch(cpu).search(torch.zeros(30, 3), 10, tokens)[0]
    torch.testing.assert_close(LexicalSearch(gpu).search(torch.zeros(30, 3), 10, tokens)[0], expected)


class TestChanges:
    """Of the labels: all against vectors that are made at once, in which the idf of known terms is the same."""

    SETTINGS: ClassVar = {"special_ids": (CLS, SEP), "pairs": True}

    @pytest.fixture
    def parts(self):
        """Queries, labels and label texts of which the first three labels hold all terms but 30 to 34."""
        queries = texts([1, 2, 3], [2, 4], [5, 6, 7], [8], [30, 1, 2], [31, 4])
        labels = Ragged.from_rows([[0], [0, 1], [2], [1], [3], [3, 4]])
        return queries, labels, texts([1], [2, 9], [], [32, 2], [33, 34])

    def dense(self, postings, num_labels, part="weights") -> dict[int, dict[int, float]]:
        columns = torch.arange(len(postings.terms)).repeat_interleave(postings.offsets.diff()).tolist()
        vectors = {label: {} for label in range(num_labels)}
        entries = zip(columns, postings.label_ids.tolist(), getattr(postings, part).tolist(), strict=True)
        for column, label, entry in entries:
            vectors[label][int(postings.terms[column])] = entry
        return vectors

    def first(self, queries, labels, label_texts):
        return build_postings(
            queries.take([0, 1, 2, 3]), labels.take([0, 1, 2, 3]), label_texts.take([0, 1, 2]), **self.SETTINGS
        )

    def added(self, queries, labels, label_texts):
        postings = self.first(queries, labels, label_texts)
        new = Ragged.from_rows([[0], [0, 1]])
        return add_to_postings(postings, 3, queries.take([4, 5]), new, label_texts.take([3, 4]), **self.SETTINGS)

    def test_new_labels_are_searched_like_the_others(self, parts):
        before, after = self.first(*parts), self.added(*parts)
        index = LexicalIndex(after, 5, special_ids=(CLS, SEP), pairs=True)
        scores = index.scores(texts([1, 2, 3], [30, 1, 2], [33, 34]))
        assert scores.argmax(dim=1).tolist() == [0, 3, 4]
        old, new = self.dense(before, 3), self.dense(after, 5)
        assert {label: new[label] for label in range(3)} == old
        assert sum(value**2 for value in new[4].values()) == pytest.approx(1)

    def test_known_terms_keep_their_idf_and_new_ones_are_as_rare_as_they_are(self, parts):
        before, after = self.first(*parts), self.added(*parts)
        idf = dict(zip(after.terms.tolist(), after.idf.tolist(), strict=True))
        assert {term: idf[term] for term in before.terms.tolist()} == pytest.approx(
            dict(zip(before.terms.tolist(), before.idf.tolist(), strict=True))
        )
        assert idf[30] == pytest.approx(math.log((1 + 7) / 2) + 1), "of the seven texts of the first labels, in one"
        assert (after.terms.diff() > 0).all()

    def test_removed_labels_leave_the_others_as_they_are(self, parts):
        after = take_postings(self.added(*parts), 5, torch.tensor([0, 2, 4]))
        before = self.dense(self.added(*parts), 5)
        assert self.dense(after, 3) == {0: before[0], 1: before[2], 2: before[4]}

    @pytest.mark.parametrize("label", range(5))
    def test_a_new_text_takes_the_place_of_the_old_one(self, parts, label):
        """Also where a label has no text, no query, or new terms."""
        queries, labels, label_texts = parts
        labels = Ragged.from_rows([[0], [0, 1], [2], [1], [3], [3]])  # label 4 has none
        postings = build_postings(queries, labels, label_texts, **self.SETTINGS)
        new = texts([7, 40])
        other = label_texts.take([label])
        changed = replace_texts(postings, 5, torch.tensor([label]), other, new, **self.SETTINGS)
        rows = [new[0] if row == label else label_texts[row] for row in range(5)]
        wanted = _label_postings(
            queries, labels, Ragged.from_rows(rows), changed.terms, changed.idf, torch.tensor([CLS, SEP]), pairs=True
        )
        found, expected = self.dense(changed, 5), self.dense(wanted, 5)
        for row in range(5):
            assert found[row] == pytest.approx(expected[row], abs=1e-5), row

    def test_what_training_has_added_follows_the_labels(self, parts):
        """New labels have nothing of it but the bias that is typical of the others."""
        first = self.first(*parts)
        moved = torch.linspace(-0.2, 0.2, len(first.weights))
        first = first._replace(moved=moved, bias=torch.tensor([-0.1, 0.3, -0.2]))
        before, new = self.dense(first, 3, "moved"), Ragged.from_rows([[0], [0, 1]])
        added = add_to_postings(first, 3, parts[0].take([4, 5]), new, parts[2].take([3, 4]), **self.SETTINGS)
        found = self.dense(added, 5, "moved")
        assert {label: found[label] for label in range(3)} == before
        assert not any(found[3].values())
        assert not any(found[4].values())
        assert added.bias.tolist() == pytest.approx([-0.1, 0.3, -0.2, -0.1, -0.1])
        taken = take_postings(added, 5, torch.tensor([1, 3]))
        assert self.dense(taken, 2, "moved") == {0: before[1], 1: found[3]}
        assert taken.bias.tolist() == pytest.approx([0.3, -0.1])
        renamed = replace_texts(first, 3, torch.tensor([1]), parts[2].take([1]), texts([2, 40]), **self.SETTINGS)
        found = self.dense(renamed, 3, "moved")
        assert found[0] == before[0]
        assert found[2] == before[2]
        assert found[1] == pytest.approx({term: before[1].get(term, 0.0) for term in found[1]})
        assert 9 not in found[1]
        assert found[1][40] == 0
        assert found[1][2] != 0
        assert torch.equal(renamed.bias, first.bias)
