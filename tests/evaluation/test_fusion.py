"""Weights of several scorers: the table of candidates against all scores, and the choice by hand."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from prime_xmc.data.corpus import Ragged
from prime_xmc.evaluation.fusion import (
    ScoreTable,
    choose_weights,
    rank_table,
    relative_value,
    tabulate_scores,
    weight_grid,
)
from prime_xmc.evaluation.metrics import evaluate
from prime_xmc.index.fused import PROTOTYPES, Weights
from prime_xmc.index.lexical import LexicalIndex, build_postings
from prime_xmc.index.neighbours import Neighbours

NUM_LABELS, NUM_QUERIES, DIM, DEPTH = 120, 30, 8, 10
GRID = weight_grid([0, 0.25, 0.5, 1], [0, 0.1, 2], [0, 0.2, 3])


def units(num_rows: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(num_rows, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture(scope="module")
def made():
    """Queries, prototypes, classifiers, neighbours, filtered labels and true labels."""
    rng = np.random.default_rng(0)
    labels = [rng.permutation(NUM_LABELS)[: rng.integers(4)] for _ in range(50)]
    offsets = torch.tensor([0, *map(len, labels)]).cumsum(0)
    neighbours = Neighbours(units(50, 0), torch.from_numpy(np.concatenate(labels)), offsets, k=5, temperature=0.2)
    filtered = Ragged.from_rows([np.sort(rng.permutation(NUM_LABELS)[: row % 3]) for row in range(NUM_QUERIES)])
    positives = Ragged.from_rows([np.sort(rng.permutation(NUM_LABELS)[:20]) for _ in range(NUM_QUERIES)])
    return units(NUM_QUERIES, 1), units(NUM_LABELS, 2), units(NUM_LABELS, 3), neighbours, filtered, positives


@pytest.fixture(scope="module")
def terms():
    """Lexical vectors of the labels, and the queries' token ids, of which there are 40."""
    rng = np.random.default_rng(1)
    texts, labels, queries = (
        Ragged.from_rows([rng.integers(most, size=rng.integers(6)) for _ in range(size)])
        for size, most in ((50, 40), (NUM_LABELS, 40), (NUM_QUERIES, 45))
    )
    of_texts = Ragged.from_rows([[row, row + 50] for row in range(50)])
    postings = build_postings(texts, of_texts, labels, special_ids=[0], pairs=True)
    # as after training: of both signs, with biases
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(postings.weights), generator=generator) / 3
    bias = torch.randn(NUM_LABELS, generator=generator) / 10
    postings = postings._replace(moved=noise, bias=bias)
    return LexicalIndex(postings, NUM_LABELS, special_ids=[0], pairs=True), queries


@pytest.fixture(scope="module", params=[1024, 7])
def table(made, terms, request) -> ScoreTable:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prime_xmc.evaluation.fusion.query_block", lambda *_: request.param)
        return tabulate_scores(*made[:5], grid=GRID, depth=DEPTH, lexical=terms[0], tokens=terms[1])


@pytest.mark.parametrize("weights", GRID)
def test_the_best_of_the_table_are_the_best_of_all(made, terms, table, weights):
    query_emb, prototypes, classifiers, neighbours, filtered, _ = made
    votes = neighbours.votes(query_emb)
    scores = weights.theta * query_emb @ prototypes.T + weights.W * query_emb @ classifiers.T
    scores += weights.lexical * terms[0].scores(terms[1])
    scores[votes.rows, votes.label_ids] += weights.neighbours * votes.scores
    scores[filtered.row_ids(), filtered.values] = -torch.inf
    ranked = rank_table(table, weights, DEPTH)
    assert ranked.shape == (NUM_QUERIES, 100)
    assert (ranked[:, DEPTH:] == -1).all()
    assert np.array_equal(ranked[:, :DEPTH], scores.argsort(dim=1, descending=True)[:, :DEPTH].numpy())


def test_the_table_holds_each_scorer(made, terms, table):
    query_emb, prototypes, classifiers, neighbours, filtered, _ = made
    votes = neighbours.votes(query_emb)
    dense = torch.zeros(NUM_QUERIES, NUM_LABELS)
    dense[votes.rows, votes.label_ids] = votes.scores
    rows, columns = np.nonzero(table.label_ids >= 0)
    labels = table.label_ids[rows, columns]
    for part, scores in (
        (table.theta, query_emb @ prototypes.T),
        (table.W, query_emb @ classifiers.T),
        (table.neighbours, dense),
        (table.lexical, terms[0].scores(terms[1])),
    ):
        assert part[rows, columns] == pytest.approx(scores[rows, labels].numpy(), abs=1e-6)
    pairs = set(zip(rows.tolist(), labels.tolist(), strict=True))
    assert not pairs & set(zip(filtered.row_ids().tolist(), filtered.values.tolist(), strict=True))


def test_paper_method_need_no_other_scorer(made):
    query_emb, prototypes, _, _, filtered, _ = made
    table = tabulate_scores(query_emb, prototypes, None, None, filtered, [PROTOTYPES], DEPTH)
    assert table.theta.shape[1] <= DEPTH + 2
    assert not table.W.any()
    assert not table.neighbours.any()
    assert not table.lexical.any()


@pytest.mark.parametrize("criterion", [["P@1", "R@10"], ["PSP@3"], ["P@1", "PSP@3", "R@10"]])
def test_the_choice_is_the_best_of_the_grid(made, table, criterion):
    """And its results are what evaluating each of them gives."""
    weight = np.linspace(1, 3, NUM_LABELS)
    positives = made[5]
    choice = choose_weights(table, positives, weight, GRID, criterion)
    assert list(choice.results) == GRID
    values = {}
    for weights, results in choice.results.items():
        expected = evaluate(rank_table(table, weights, DEPTH), positives, weight)
        assert results == {name: expected[name] for name in criterion}
        values[weights] = relative_value(results, choice.results[PROTOTYPES])
    assert choice.value == values[choice.weights] == max(values.values())
    assert choice.value > 1 or len(criterion) > 2  # these random scores are no better by both


def by_hand(theta, w, vote, lexical=(0, 0, 0)) -> ScoreTable:
    """Two queries, labels 0, 1, ...; all scorers agree on label 0 for the second one."""
    scores = (np.array([part, [2] + [0] * (len(part) - 1)], dtype=np.float32) for part in (theta, w, vote, lexical))
    return ScoreTable(np.tile(np.arange(len(theta)), (2, 1)), *scores)


@pytest.mark.parametrize(
    ("theta", "w", "vote", "expected"),
    [
        ([0.5, 0.4, 0.1], [0.1, 0.9, 0.2], [0, 0, 0], Weights(0.5, 0.5, 0.0)),  # label 1 by the classifiers
        ([0.5, 0.4, 0.1], [0.9, 0.1, 0.2], [0, 1, 0], Weights(1.0, 0.0, 0.2)),  # by the vote
        ([0.1, 0.4, 0.1], [0.1, 0.9, 0.2], [0, 1, 0], PROTOTYPES),  # by any of them: the prototypes suffice
        ([0.5, 0.4, 0.1], [0.9, 0.1, 0.2], [1, 0, 0], PROTOTYPES),  # by none
    ],
)
def test_the_choice_by_hand(theta, w, vote, expected):
    grid = weight_grid([0.5], [0.2])
    choice = choose_weights(by_hand(theta, w, vote), Ragged.from_rows([[1], [0]]), np.ones(3), grid, ["P@1", "P@2"])
    assert choice.weights == expected


def test_the_choice_of_the_lexical_weight_by_hand():
    table = by_hand([0.5, 0.4, 0.1], [0, 0, 0], [0, 0, 0], [0, 1, 0])
    grid = weight_grid([], [], [0.05, 0.2, 0.3])
    choice = choose_weights(table, Ragged.from_rows([[1], [0]]), np.ones(3), grid, ["P@1", "P@2"])
    assert choice.weights == Weights(1.0, 0.0, 0.0, 0.2)


def test_a_sample_of_the_queries(made, table):
    rows = np.array([3, 3, 7])
    assert np.array_equal(rank_table(table.take(rows), GRID[3], DEPTH), rank_table(table, GRID[3], DEPTH)[rows])


def test_a_metric_without_a_reference_does_not_count():
    assert relative_value({"P@1": 0.5, "R@10": 0.6}, {"P@1": 0.0, "R@10": 0.3}) == 2
    assert relative_value({"P@1": 0.5}, {"P@1": 0.0}) == 1


def test_neither_precision_nor_its_propensity_scored_kind_is_paid_for_with_the_other():
    own = {"P@1": 0.5, "P@3": 0.4, "PSP@1": 0.4, "PSP@3": 0.2}
    # 0.9 and 1.0 of precision, 1.5 and 1.5 of the other kind
    assert relative_value({"P@1": 0.45, "P@3": 0.4, "PSP@1": 0.6, "PSP@3": 0.3}, own) == 0.95
    assert relative_value({"P@1": 0.55, "P@3": 0.44, "PSP@1": 0.4, "PSP@3": 0.22}, own) == 1.05


def test_the_grid_begins_with_the_prototypes_and_has_each_weight_once():
    grid = weight_grid([1, 0.25, 0.25], [0.1])
    assert grid == [
        *((1, 0, 0, 0), (0.75, 0.25, 0, 0), (0, 1, 0, 0)),
        *((1, 0, 0.1, 0), (0.75, 0.25, 0.1, 0), (0, 1, 0.1, 0)),
    ]
    assert weight_grid([0.5], [], [0.2]) == [(1, 0, 0, 0), (0.5, 0.5, 0, 0), (1, 0, 0, 0.2), (0.5, 0.5, 0, 0.2)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([1.5], []), r"weights of W between 0 and 1, got 1\.5"),
        (([], [-0.1]), r"weights of the neighbours of at least 0, got -0\.1"),
        (([], [], [-0.1]), r"weights of the lexical score of at least 0, got -0\.1"),
    ],
)
def test_weights_out_of_range(given, message):
    with pytest.raises(ValueError, match=message):
        weight_grid(*given)


@pytest.mark.parametrize(
    ("criterion", "message"),
    [([], r"at least one metric in ensemble\.criterion"), (["P@1", "P@7"], r"expected metrics .*; got 'P@7'")],
)
def test_an_unknown_criterion(table, made, criterion, message):
    with pytest.raises(ValueError, match=message):
        choose_weights(table, made[5], np.ones(NUM_LABELS), GRID, criterion)


def test_queries_without_labels_choose_nothing(table):
    with pytest.raises(ValueError, match="validation queries with labels"):
        choose_weights(table, Ragged.from_rows([[]] * NUM_QUERIES), np.ones(NUM_LABELS), GRID, ["P@1", "PSP@3"])
