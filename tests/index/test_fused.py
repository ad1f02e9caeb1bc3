"""A vote added to a search: against the sum of all scores, computed densely."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from prime_xmc.data.corpus import Ragged
from prime_xmc.index.fused import PROTOTYPES, FusedSearch, LexicalFusedSearch, Weights, fuse, mixture
from prime_xmc.index.lexical import LexicalIndex, LexicalSearch, build_postings
from prime_xmc.index.neighbours import Neighbours, VoteSearch
from prime_xmc.index.search import ExactSearch, FaissSearch

NUM_LABELS, DIM = 40, 8


def units(num_rows: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(num_rows, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def label_rows(num_rows: int, seed: int) -> list[list[int]]:
    """Up to four labels of each training query; some have none."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(5, (num_rows,), generator=generator).tolist()
    return [sorted(torch.randperm(NUM_LABELS, generator=generator)[:count].tolist()) for count in counts]


def flat(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([0, *map(len, rows)])
    return torch.tensor([label for row in rows for label in row], dtype=torch.int64), lengths.cumsum(0)


@pytest.fixture
def made():
    """Queries, label vectors and neighbours, with their votes as a dense matrix."""
    queries = units(50, 2)
    neighbours = Neighbours(units(30, 0), *flat(label_rows(30, 1)), k=6, temperature=0.1)
    found, votes = neighbours.votes(queries), torch.zeros(50, NUM_LABELS)
    votes[found.rows, found.label_ids] = found.scores
    return queries, units(NUM_LABELS, 3), neighbours, votes


@pytest.mark.parametrize("weight", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("k", [1, 5, NUM_LABELS, NUM_LABELS + 5])
@pytest.mark.parametrize("block", [1024, 7])
def test_the_sum_is_ranked_exactly(made, weight, k, block, monkeypatch):
    monkeypatch.setattr("prime_xmc.index.fused.QUERY_BLOCK", block)
    queries, vectors, neighbours, votes = made
    linear = ExactSearch()
    linear.build(vectors)
    scores, ids = FusedSearch(linear, vectors, neighbours, weight).search(queries, k)
    expected = queries @ vectors.T + weight * votes
    assert ids.shape == (len(queries), min(k, NUM_LABELS))
    torch.testing.assert_close(scores, expected.sort(dim=1, descending=True).values[:, :k], atol=1e-5, rtol=0)
    torch.testing.assert_close(expected.gather(1, ids), scores, atol=1e-5, rtol=0)
    assert all(len(set(row)) == len(row) for row in ids.tolist())


def test_a_vote_lifts_a_label_that_the_search_alone_does_not_find():
    vectors = normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0]]), dim=1)
    neighbours = Neighbours(torch.tensor([[1.0, 0.0]]), *flat([[2]]), k=1, temperature=0.05)
    linear = ExactSearch()
    linear.build(vectors)
    scores, ids = FusedSearch(linear, vectors, neighbours, 2.5).search(torch.tensor([[1.0, 0.0]]), 1)
    assert ids.tolist() == [[2]]
    assert scores.item() == pytest.approx(-1 + 2.5)


def test_equal_sums_are_ranked_by_id():
    vectors = torch.tensor([[1.0, 0.0], [0.5, 0.0], [1.0, 0.0]])
    neighbours = Neighbours(torch.tensor([[1.0, 0.0]]), *flat([[1]]), k=1, temperature=0.05)
    linear = ExactSearch()
    linear.build(vectors)
    _, ids = FusedSearch(linear, vectors, neighbours, 0.5).search(torch.tensor([[1.0, 0.0]]), 3)
    assert ids.tolist() == [[0, 1, 2]]


def test_an_approximate_search_is_the_linear_part(made):
    queries, vectors, neighbours, votes = made
    linear = FaissSearch("hnsw", m=4)
    linear.build(vectors)
    scores, ids = FusedSearch(linear, vectors, neighbours, 0.3).search(queries, 5)
    torch.testing.assert_close((queries @ vectors.T + 0.3 * votes).gather(1, ids), scores, atol=1e-5, rtol=0)


def test_a_negative_weight_would_not_be_exact(made):
    _, vectors, neighbours, _ = made
    with pytest.raises(ValueError, match=r"weight of the neighbours of at least 0, got -0\.1"):
        FusedSearch(ExactSearch(), vectors, neighbours, -0.1)


def test_without_votes_the_search_is_the_linear_one():
    neighbours = Neighbours(units(3, 0), *flat([[], [], []]), k=2, temperature=0.1)
    vectors, linear = units(NUM_LABELS, 3), ExactSearch()
    linear.build(vectors)
    found = FusedSearch(linear, vectors, neighbours, 0.5).search(units(2, 1), 4)
    assert all(torch.equal(*pair) for pair in zip(found, linear.search(units(2, 1), 4), strict=True))


def test_the_linear_part_is_one_vector_per_label():
    prototypes, classifiers = units(5, 0), units(5, 1)
    assert mixture(prototypes, None, PROTOTYPES) is prototypes
    expected = 0.75 * prototypes + 0.25 * classifiers
    torch.testing.assert_close(mixture(prototypes, classifiers, Weights(0.75, 0.25, 0.1)), expected)


@pytest.fixture(scope="module")
def lexical():
    """Lexical vectors of the labels, the token ids of the queries, and their scores."""
    rng = np.random.default_rng(0)
    texts, labels, queries = (
        Ragged.from_rows([rng.integers(1, 25, rng.integers(1, 6)) for _ in range(size)])
        for size in (30, NUM_LABELS, 50)
    )
    postings = build_postings(texts, Ragged.from_rows(label_rows(30, 1)), labels, special_ids=[0], pairs=True)
    index = LexicalIndex(postings, NUM_LABELS, special_ids=[0], pairs=True)
    return index, queries, index.scores(queries)


@pytest.mark.parametrize("weights", [(0.0, 0.5), (0.3, 0.2), (3.0, 2.0)])
@pytest.mark.parametrize("k", [1, 5, NUM_LABELS, NUM_LABELS + 5])
@pytest.mark.parametrize("block", [1024, 7])
def test_the_sum_with_lexical_scores_is_ranked_exactly(made, lexical, weights, k, block, monkeypatch):
    monkeypatch.setattr("prime_xmc.index.fused.query_block", lambda *_: block)
    queries, vectors, neighbours, votes = made
    index, tokens, of_terms = lexical
    linear = ExactSearch()
    linear.build(vectors)
    search = fuse(linear, vectors, neighbours, index, Weights(1.0, 0.0, *weights))
    scores, ids = search.search(queries, k, tokens)
    expected = queries @ vectors.T + weights[0] * votes + weights[1] * of_terms
    assert ids.shape == (len(queries), min(k, NUM_LABELS))
    torch.testing.assert_close(scores, expected.sort(dim=1, descending=True).values[:, :k], atol=1e-5, rtol=0)
    torch.testing.assert_close(expected.gather(1, ids), scores, atol=1e-5, rtol=0)
    assert all(len(set(row)) == len(row) for row in ids.tolist())


@pytest.mark.parametrize("with_votes", [True, False])
@pytest.mark.parametrize("k", [1, 5, NUM_LABELS])
def test_candidates_of_an_approximate_search_are_summed_up_exactly(made, lexical, with_votes, k):
    queries, vectors, neighbours, votes = made
    index, tokens, of_terms = lexical
    linear = FaissSearch("hnsw", m=4)
    linear.build(vectors)
    search = fuse(linear, vectors, neighbours if with_votes else None, index, Weights(1.0, 0.0, 0.3, 0.4))
    scores, ids = search.search(queries, k, tokens)
    expected = queries @ vectors.T + 0.4 * of_terms + 0.3 * votes * with_votes
    torch.testing.assert_close(expected.gather(1, ids), scores, atol=1e-5, rtol=0)
    found = (scores - expected.sort(dim=1, descending=True).values[:, :k]).abs() < 1e-5
    assert found.float().mean() > 0.9, "few of the best are among the best candidates of no scorer"
    assert (scores[:, :-1] >= scores[:, 1:]).all()


def test_what_has_no_weight_is_not_searched(made, lexical):
    _, vectors, neighbours, _ = made
    linear = ExactSearch()
    assert fuse(linear, vectors, neighbours, lexical[0], PROTOTYPES) is linear
    assert isinstance(fuse(linear, vectors, neighbours, lexical[0], Weights(1.0, 0.0, 0.1)), FusedSearch)
    assert isinstance(fuse(linear, vectors, None, lexical[0], Weights(1.0, 0.0, 0.1, 0.2)), LexicalFusedSearch)


def test_a_sum_with_lexical_scores_needs_tokens(made, lexical):
    queries, vectors, neighbours, _ = made
    linear = ExactSearch()
    linear.build(vectors)
    search = fuse(linear, vectors, neighbours, lexical[0], Weights(1.0, 0.0, 0.1, 0.2))
    with pytest.raises(ValueError, match="expected the token ids of the queries"):
        search.search(queries, 3)
    with pytest.raises(ValueError, match="weights of neighbours and lexical of at least 0"):
        LexicalFusedSearch(linear, vectors, neighbours, lexical[0], Weights(1.0, 0.0, 0.1, -0.2))


@pytest.mark.parametrize("kind", [None, "hnsw"])
@pytest.mark.parametrize("weights", [(0.3, 0.0), (0.0, 0.4), (3.0, 2.0)])
@pytest.mark.parametrize("num_allowed", [1, 12, NUM_LABELS])
def test_only_allowed_labels_are_ranked_exactly(made, lexical, kind, weights, num_allowed):
    queries, vectors, neighbours, votes = made
    index, tokens, of_terms = lexical
    linear = ExactSearch() if kind is None else FaissSearch(kind, m=4)
    linear.build(vectors)
    allowed = torch.zeros(NUM_LABELS, dtype=torch.bool)
    allowed[torch.randperm(NUM_LABELS, generator=torch.Generator().manual_seed(5))[:num_allowed]] = True
    search = fuse(linear, vectors, neighbours, index, Weights(1.0, 0.0, *weights))
    scores, ids = search.search(queries, 5, tokens, allowed)
    expected = queries @ vectors.T + weights[0] * votes + weights[1] * of_terms
    best = expected.masked_fill(~allowed, -torch.inf).sort(dim=1, descending=True).values[:, : min(5, num_allowed)]
    assert allowed[ids].all()
    torch.testing.assert_close(scores, best, atol=1e-5, rtol=0)
    torch.testing.assert_close(expected.gather(1, ids), scores, atol=1e-5, rtol=0)


def test_votes_and_terms_alone_leave_out_what_is_not_allowed(made, lexical):
    queries, _, neighbours, votes = made
    index, tokens, of_terms = lexical
    allowed = torch.arange(NUM_LABELS) % 3 == 0
    for search, dense in ((VoteSearch(neighbours), votes), (LexicalSearch(index), of_terms)):
        scores, ids = search.search(queries, NUM_LABELS, tokens, allowed)
        whole_scores, whole = search.search(queries, NUM_LABELS, tokens)
        for row in range(len(queries)):
            wanted = [label for label in whole[row].tolist() if label >= 0 and allowed[label]]
            found = ids[row][ids[row] >= 0].tolist()
            assert found == wanted
            assert scores[row][: len(found)].tolist() == dense[row, found].tolist()
        assert whole_scores.shape[1] == NUM_LABELS
