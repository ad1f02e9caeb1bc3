"""The vote of nearest training queries, by hand and against slow loops."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from prime_xmc.index.neighbours import Neighbours, VoteSearch, count_votes, pair_scores

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


def slow_votes(query_emb, memory, labels, k, temperature) -> torch.Tensor:
    """The votes as a dense matrix, by loops."""
    votes = torch.zeros(len(query_emb), NUM_LABELS)
    for row, query in enumerate(query_emb.tolist()):
        similarity = [sum(x * y for x, y in zip(query, other, strict=True)) for other in memory.tolist()]
        nearest = sorted(range(len(memory)), key=lambda place: (-similarity[place], place))[:k]
        total = sum(math.exp(similarity[place] / temperature) for place in nearest)
        for place in nearest:
            for label in labels[place]:
                votes[row, label] += math.exp(similarity[place] / temperature) / total
    return votes


@pytest.fixture
def made():
    """makes(k) returns queries, label vectors and neighbours, with their votes as a dense matrix."""

    def make(k=6, num_memory=30, temperature=0.1, num_queries=50):
        memory, labels, queries = units(num_memory, 0), label_rows(num_memory, 1), units(num_queries, 2)
        neighbours = Neighbours(memory, *flat(labels), k=k, temperature=temperature)
        return queries, neighbours, slow_votes(queries, memory, labels, k, temperature)

    return make


def dense(votes, num_queries: int) -> torch.Tensor:
    result = torch.zeros(num_queries, NUM_LABELS)
    result[votes.rows, votes.label_ids] = votes.scores
    return result


def test_votes_by_hand():
    """Of two neighbours, the closer one by the temperature counts e times as much."""
    similarity = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    label_ids, offsets = flat([[2, 7], [], [7]])
    votes = count_votes(similarity, torch.tensor([[0, 2], [1, 2]]), label_ids, offsets, temperature=0.5)
    near = math.e / (math.e + 1)
    assert votes.rows.tolist() == [0, 0, 1]
    assert votes.label_ids.tolist() == [2, 7, 7]
    assert votes.scores.tolist() == pytest.approx([near, 1, 0.5])


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.05), (6, 0.05), (6, 1.0), (100, 0.1)])
def test_votes_are_those_of_a_slow_loop(made, k, temperature):
    queries, neighbours, expected = made(k=k, temperature=temperature)
    votes = neighbours.votes(queries)
    torch.testing.assert_close(dense(votes, len(queries)), expected, atol=1e-5, rtol=0)
    keys = votes.rows * NUM_LABELS + votes.label_ids
    assert (keys[1:] > keys[:-1]).all(), "in order, each once"


def test_without_votes_there_is_nothing_to_find():
    neighbours = Neighbours(units(3, 0), *flat([[], [], []]), k=2, temperature=0.1)
    assert len(neighbours.votes(units(2, 1)).scores) == 0
    scores, ids = VoteSearch(neighbours).search(units(2, 1), 3)
    assert (ids == -1).all()
    assert (scores == -torch.inf).all()


@pytest.mark.parametrize("k", [1, 3, 25])
def test_labels_by_their_votes(made, k):
    queries, neighbours, votes = made()
    scores, ids = VoteSearch(neighbours).search(queries, k)
    assert scores.shape == ids.shape == (len(queries), k)
    for row in range(len(queries)):
        wanted = sorted(votes[row].nonzero()[:, 0].tolist(), key=lambda label: -votes[row, label])
        named = ids[row][ids[row] >= 0].tolist()
        assert len(named) == min(k, len(wanted))
        assert scores[row, : len(named)].tolist() == pytest.approx(votes[row, wanted[:k]].tolist(), abs=1e-5)
        assert votes[row, named].tolist() == pytest.approx(scores[row, : len(named)].tolist(), abs=1e-5)
        assert (scores[row, len(named) :] == -torch.inf).all()


def test_inner_products_of_pairs_in_chunks(monkeypatch):
    queries, vectors = units(5, 0), units(9, 1)
    rows, places = torch.tensor([0, 0, 3, 4, 4]), torch.tensor([8, 1, 1, 0, 5])
    monkeypatch.setattr("prime_xmc.index.neighbours._GATHERED", 2 * 4 * DIM)
    torch.testing.assert_close(pair_scores(queries, vectors, rows, places), (queries @ vectors.T)[rows, places])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": 0, "temperature": 0.1}, r"expected neighbours\.k of at least 1, a whole number, got 0"),
        ({"k": 1, "temperature": 0.0}, r"expected neighbours\.temperature above 0, got 0\.0"),
    ],
)
def test_settings_out_of_range(given, message):
    with pytest.raises(ValueError, match=message):
        Neighbours(units(2, 0), *flat([[1], []]), **given)
