"""A vote added to a search: against the sum of all scores, computed densely."""

import pytest
import torch
from torch.nn.functional import normalize

from prime_xmc.index.fused import PROTOTYPES, FusedSearch, Weights, mixture
from prime_xmc.index.neighbours import Neighbours
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
