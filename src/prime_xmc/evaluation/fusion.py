"""The weights with which the scores of several scorers are added up, chosen on validation queries."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from prime_xmc.data.corpus import Ragged
from prime_xmc.evaluation.metrics import METRICS, TOP_K, evaluate
from prime_xmc.index.full_precision import full_float32
from prime_xmc.index.fused import PROTOTYPES, Weights, mixture
from prime_xmc.index.lexical import LexicalIndex, query_block
from prime_xmc.index.neighbours import Neighbours, as_rows, pair_scores
from prime_xmc.index.search import ExactSearch, Rows, inner_products, some_rows, top_labels


class ScoreTable(NamedTuple):
    """The scores of all that can be among a query's best labels, for some weights of the scorers.

    Attributes:
        label_ids: Labels that may be an answer, ascending in each row; -1 pads.
        theta: Their scores by the prototypes.
        W: Their scores by the classifiers, 0 where there are none.
        neighbours: Their votes, 0 where there are none.
        lexical: Their lexical scores, 0 where there are none.
    """

    label_ids: Int64[np.ndarray, "query candidate"]
    theta: Float32[np.ndarray, "query candidate"]
    W: Float32[np.ndarray, "query candidate"]
    neighbours: Float32[np.ndarray, "query candidate"]
    lexical: Float32[np.ndarray, "query candidate"]

    def take(self, rows: Int64[np.ndarray, " taken"]) -> "ScoreTable":
        """Return the rows of some queries, such as those of a bootstrap sample."""
        return ScoreTable(*(part[rows] for part in self))


class Choice(NamedTuple):
    """What `choose_weights` found.

    Attributes:
        weights: The best weights.
        value: Their value by the criterion, 1 for the prototypes alone.
        results: Metrics of the criterion for all weights that were compared.
    """

    weights: Weights
    value: float
    results: dict[Weights, dict[str, float]]


def weight_grid(
    of_classifiers: Iterable[float | int],
    of_neighbours: Iterable[float | int],
    of_lexical: Iterable[float | int] = (),
) -> list[Weights]:
    """Return all weights to compare, the prototypes alone first, then by the lexical, neighbours' and classifiers'.

    Args:
        of_classifiers: Weights of the classifiers, in [0, 1]; that of the prototypes is the rest to 1.
        of_neighbours: Weights of the vote, at least 0.
        of_lexical: Weights of the lexical score, at least 0.

    Raises:
        ValueError: If a weight is out of range.
    """
    classifiers, neighbours, lexical = (
        {0.0, *map(float, weights)} for weights in (of_classifiers, of_neighbours, of_lexical)
    )
    for weight in classifiers:
        if not 0 <= weight <= 1:
            raise ValueError(f"expected weights of W between 0 and 1, got {weight:g}")
    for weight in neighbours:
        if not weight >= 0:
            raise ValueError(f"expected weights of the neighbours of at least 0, got {weight:g}")
    for weight in lexical:
        if not weight >= 0:
            raise ValueError(f"expected weights of the lexical score of at least 0, got {weight:g}")
    return [
        Weights(1 - w, w, vote, terms)
        for terms in sorted(lexical)
        for vote in sorted(neighbours)
        for w in sorted(classifiers)
    ]


def deepest_rank(criterion: Sequence[str]) -> int:
    """Return the largest k of metrics such as P@5.

    Raises:
        ValueError: If there are none, or one is unknown.
    """
    if not criterion:
        raise ValueError("expected at least one metric in ensemble.criterion, got none")
    for name in criterion:
        if name not in METRICS:
            raise ValueError(f"expected metrics in ensemble.criterion, of {', '.join(METRICS)}; got {name!r}")
    return max(int(name.rpartition("@")[2]) for name in criterion)


@torch.no_grad()
def tabulate_scores(
    query_emb: Float32[Tensor, "query d"],
    prototypes: Float32[Tensor, "label d"],
    classifiers: Float32[Tensor, "label d"] | None,
    neighbours: Neighbours | None,
    filtered: Ragged,
    grid: Sequence[Weights],
    depth: int,
    lexical: LexicalIndex | None = None,
    tokens: Rows | None = None,
) -> ScoreTable:
    """Return the scores of all labels that can be among a query's best `depth` for weights of the grid.

    These are its best labels by each sum of the grid without the vote, and those with a vote, which is never negative.

    Args:
        query_emb: Embeddings of the queries, unit vectors, on the device of the vectors.
        prototypes: Prototypes z_l.
        classifiers: Classifiers w_l, None where there are none.
        neighbours: Training queries that vote, without those of `query_emb`; None where there are none.
        filtered: Labels that are never an answer of the query; they are left out.
        grid: Weights that may be asked for.
        depth: Number of labels of each query that have to be right.
        lexical: Lexical vectors of the labels, on the same device, made without these queries; None: there are none.
        tokens: Token ids of the queries, for the lexical scores.
    """
    num_queries, num_labels, device = len(query_emb), len(prototypes), query_emb.device
    wanted = depth + int(filtered.lengths.max(initial=0))
    votes = None if neighbours is None else neighbours.votes(query_emb)
    voted = None if votes is None else (votes.rows * num_labels + votes.label_ids).to(device)
    if lexical is None or not any(weights.lexical for weights in grid):
        best = _best_by_vectors(query_emb, prototypes, classifiers, grid, wanted)
        keys = torch.cat([best, *([] if voted is None else [voted])]).unique()  # ascending
        terms = torch.zeros(len(keys), device=device)
    else:
        assert tokens is not None
        keys, terms = _best_by_all(query_emb, prototypes, classifiers, grid, wanted, lexical, tokens, voted)
    excluded = torch.from_numpy(filtered.row_ids() * num_labels + filtered.values.astype(np.int64))
    is_answer = ~torch.isin(keys, excluded.to(device))
    keys, terms = keys[is_answer], terms[is_answer]
    rows, label_ids = keys // num_labels, keys % num_labels
    theta = pair_scores(query_emb, prototypes, rows, label_ids)
    w = torch.zeros_like(theta) if classifiers is None else pair_scores(query_emb, classifiers, rows, label_ids)
    vote = torch.zeros_like(theta)
    if votes is not None and voted is not None:
        is_kept = torch.isin(voted, keys)  # not those of filtered labels
        vote[torch.searchsorted(keys, voted[is_kept])] = votes.scores.to(device)[is_kept]
    columns = (as_rows(rows, values, num_queries, 0).cpu().numpy() for values in (theta, w, vote, terms))
    return ScoreTable(as_rows(rows, label_ids, num_queries, -1).cpu().numpy(), *columns)


def _best_by_vectors(
    query_emb: Float32[Tensor, "query d"],
    prototypes: Float32[Tensor, "label d"],
    classifiers: Float32[Tensor, "label d"] | None,
    grid: Sequence[Weights],
    wanted: int,
) -> Int64[Tensor, " key"]:
    """Return the keys, row * labels + label, of the best labels by each linear part of the grid."""
    rows, parts = torch.arange(len(query_emb), device=query_emb.device)[:, None], []
    for weights in dict.fromkeys(weights._replace(neighbours=0.0, lexical=0.0) for weights in grid):
        search = ExactSearch()
        search.build(mixture(prototypes, classifiers, weights))
        parts.append((rows * len(prototypes) + search.search(query_emb, wanted)[1]).flatten())
    return torch.cat(parts)


def _best_by_all(
    query_emb: Float32[Tensor, "query d"],
    prototypes: Float32[Tensor, "label d"],
    classifiers: Float32[Tensor, "label d"] | None,
    grid: Sequence[Weights],
    wanted: int,
    lexical: LexicalIndex,
    tokens: Rows,
    voted: Int64[Tensor, " vote"] | None,
) -> tuple[Int64[Tensor, " key"], Float32[Tensor, " key"]]:
    """Return the keys, ascending, of the best labels by each sum of the grid without votes and of those with a vote.

    Also their lexical scores. The scores of all labels are there for one block of queries at a time.
    """
    num_labels, device = len(prototypes), query_emb.device
    linear = dict.fromkeys(weights._replace(neighbours=0.0, lexical=0.0) for weights in grid)
    of_terms = sorted({weights.lexical for weights in grid})
    step = query_block(num_labels, device)
    keys, scores = [], []
    for start in range(0, len(query_emb), step):
        block = query_emb[start : start + step]
        rows = torch.arange(start, start + len(block), device=device)[:, None]
        terms = lexical.scores(some_rows(tokens, start, start + step))
        with full_float32(device):
            by_prototypes = inner_products(block, prototypes)
            by_classifiers = None if classifiers is None else inner_products(block, classifiers)
        parts = []
        for weights in linear:
            total = weights.theta * by_prototypes
            if by_classifiers is not None:
                total += weights.W * by_classifiers
            parts += [(rows * num_labels + ids).flatten() for ids in _best_sums(total, terms, of_terms, wanted)]
        if voted is not None:
            in_block = (voted >= start * num_labels) & (voted < (start + len(block)) * num_labels)
            parts.append(voted[in_block])
        keys.append(torch.cat(parts).unique())
        scores.append(terms.view(-1)[keys[-1] - start * num_labels])
    return torch.cat(keys), torch.cat(scores)


def _best_sums(
    scores: Float32[Tensor, "query label"],
    more: Float32[Tensor, "query label"],
    weights: Sequence[float],
    wanted: int,
) -> list[Int64[Tensor, "query k"]]:
    """Return the best labels by scores + weight * more, for each weight; weights are at least 0.

    A sum lies between its values for the weight 0 and for the largest one. So a label whose higher value is below the
    last of the best lower values is among the best with no weight. The others are few.
    """
    most = max(weights) * more
    last = top_labels(scores + most.clamp(max=0), wanted)[0][:, -1:]
    rows, label_ids = (scores + most.clamp(min=0) >= last).nonzero(as_tuple=True)
    of_rows = as_rows(rows, scores[rows, label_ids], len(scores), -torch.inf)
    more_of_rows = as_rows(rows, more[rows, label_ids], len(scores), 0)
    ids = as_rows(rows, label_ids, len(scores), -1)
    return [ids.gather(1, top_labels(of_rows + weight * more_of_rows, wanted)[1]) for weight in weights]


def rank_table(table: ScoreTable, weights: Weights, depth: int) -> Int64[np.ndarray, "query k"]:
    """Return the ids of each query's best `depth` labels by the weighted sum, in `TOP_K` columns that -1 fills up.

    Equal sums are ranked by id.
    """
    scores = weights.theta * table.theta + weights.W * table.W + weights.neighbours * table.neighbours
    if weights.lexical:
        scores = scores + weights.lexical * table.lexical
    scores = np.where(table.label_ids < 0, -np.inf, scores)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]  # labels ascend within a row
    best = np.take_along_axis(table.label_ids, order, axis=1)
    return np.pad(best, ((0, 0), (0, max(0, TOP_K - best.shape[1]))), constant_values=-1)


def choose_weights(
    table: ScoreTable,
    positives: Ragged,
    inverse_propensity: Float64[np.ndarray, " label"],
    grid: Sequence[Weights],
    criterion: Sequence[str],
) -> Choice:
    """Return the weights of the grid that are best for some queries; of equally good ones, the first.

    The value of weights is that of `relative_value` for the metrics of the criterion, relative to the prototypes alone.

    Args:
        table: Scores, see `tabulate_scores`, for this grid and the `deepest_rank` of this criterion.
        positives: True labels of each query of the table.
        inverse_propensity: Inverse propensity of every label.
        grid: Weights to compare, see `weight_grid`.
        criterion: Metrics.

    Raises:
        ValueError: If a metric is unknown, or no query has a true label.
    """
    depth = deepest_rank(criterion)

    def measure(weights: Weights) -> dict[str, float]:
        metrics = evaluate(rank_table(table, weights, depth), positives, inverse_propensity)
        if not metrics:
            raise ValueError("expected validation queries with labels to choose weights on, got none")
        return {name: metrics[name] for name in criterion}

    own = measure(PROTOTYPES)
    results = {weights: own if weights == PROTOTYPES else measure(weights) for weights in grid}
    values = {weights: relative_value(metrics, own) for weights, metrics in results.items()}
    best = max(values, key=values.__getitem__)  # the first of equals
    return Choice(best, values[best], results)


def relative_value(metrics: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Return the lower one of two means of metric / reference: that of PSP@k and PSnDCG@k, and that of the others.

    So neither of precision and propensity-scored precision is paid for with the other. Metrics whose reference is 0
    are left out; where one mean has none, it is the other one, and where both have none, 1.

    Example:
        >>> relative_value({"P@1": 0.3, "R@10": 0.5, "PSP@1": 0.4}, {"P@1": 0.2, "R@10": 0.5, "PSP@1": 0.2})
        1.25
    """
    kinds: dict[bool, list[float]] = {}
    for name, value in reference.items():
        if value > 0:
            kinds.setdefault(name.startswith("PS"), []).append(metrics[name] / value)
    # beyond twelve digits, sums depend on their order
    return min((round(float(np.mean(ratios)), 12) for ratios in kinds.values()), default=1.0)
