"""Training of the lexical vectors: from the mean vectors a few steps towards one-vs-all classifiers.

The classifier of a label is s(x) = w . x + b over the terms of its mean vector c, x being the vector of a text. Its
texts, which are its training queries and its own text, shall have a score of at least 1, and the others one of at most
-1. It starts at w = 2 c and b = -1, which takes a cosine of 0 to -1 and one of 1 to 1, and goes a few steps down

sum over texts of max(0, 1 - y s(x))^2 + |w|^2 / 2,   y = 1 for the label's texts, -1 for the others

The others are those texts that have the label among the `hardest` best by the mean vectors. What scores is the mean
vector moved by three tenths of the way, c + 0.3 (w / 2 - c), with the bias 0.3 (b + 1). All the way, it would follow
its training queries too closely to complement another model.

Source: squared hinge loss of one classifier per label against hard negatives, DiSMEC, Babbar and Schoelkopf 2017, and
PECOS, Yu et al. 2022, which keep such classifiers sparse, too.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn.functional import pad
from torch.optim import Adam
from torch.optim.lr_scheduler import LinearLR

from prime_xmc.index.groups import blocks, bounds, expand
from prime_xmc.index.lexical import LexicalIndex, Postings, TextVectors, entries_of, query_block, text_vectors
from prime_xmc.index.search import Rows, count_rows, some_rows

HARDEST = 50  # best labels of a text that are told from those that it has
_SCALE = 2.0  # of the mean vector, at the start
_RATE = 0.1  # learning rate of Adam at the start, which falls to 0
_BETAS = (0.9, 0.98)
_SHARE = 0.3  # of the way from the mean vector to the trained one
_BLOCK_TERMS = 2**24  # terms of texts that are held at once


def train_postings(
    postings: Postings,
    queries: Rows,
    query_labels: Rows,
    query_filtered: Rows,
    label_texts: Rows,
    *,
    special_ids: Sequence[int],
    pairs: bool,
    steps: int,
    hardest: int = HARDEST,
) -> Postings:
    """Return the vectors with what training adds, on the device of the postings. Labels are trained block by block.

    Args:
        postings: The mean vectors, see `build_postings`.
        queries: Token ids of the training queries.
        query_labels: Label ids of each of them.
        query_filtered: Label ids that say nothing of a query: they are not told from its labels.
        label_texts: Token ids of the text of each label.
        special_ids: Token ids that are no terms.
        pairs: Whether pairs of adjacent tokens are terms.
        steps: Steps of Adam over all texts, at least 0. With 0, the vectors are the mean vectors.
        hardest: Best labels of a text, by the mean vectors, that it is told from.

    Raises:
        ValueError: If steps or hardest are out of range.
    """
    if steps < 0 or hardest < 1:
        raise ValueError(f"expected at least 0 steps and 1 hardest label, got {steps} and {hardest}")
    if steps == 0:
        return postings
    num_labels, num_terms, device = count_rows(label_texts), len(postings.terms), postings.terms.device
    special = torch.tensor(special_ids, dtype=torch.int64, device=device)
    # the texts are the queries, then the label texts
    of_queries, of_labels = (
        text_vectors(texts, postings.terms, postings.idf, special, pairs=pairs) for texts in (queries, label_texts)
    )
    num_texts = count_rows(queries) + num_labels
    of_labels = of_labels._replace(rows=of_labels.rows + count_rows(queries))
    texts = TextVectors(*map(torch.cat, zip(of_queries, of_labels, strict=True)))
    text_bounds = bounds(texts.rows, num_texts)

    index = LexicalIndex(postings, num_labels, special_ids=special_ids, pairs=pairs)
    own = torch.arange(num_labels, device=device)
    positive = torch.cat([_keys(query_labels, num_texts, device), own * num_texts + count_rows(queries) + own])
    found = torch.cat([positive, *_hardest(index, queries, 0, num_texts, hardest)])
    found = torch.cat([found, *_hardest(index, label_texts, count_rows(queries), num_texts, hardest)]).unique()
    is_positive = torch.isin(found, positive)
    is_told = is_positive | ~torch.isin(found, _keys(query_filtered, num_texts, device))
    found, is_positive = found[is_told], is_positive[is_told]  # label * texts + text, ascending

    # the entries of the vectors, by label and then by term
    columns, label_ids, *_ = entries_of(postings)
    entries, order = (label_ids * num_terms + columns).sort()
    entry_bounds = bounds(label_ids, num_labels)
    pair_bounds = torch.searchsorted(found, torch.arange(num_labels + 1, device=device) * num_texts)
    lengths = text_bounds.diff()[found % num_texts]
    before = pad(lengths.cumsum(0), (1, 0))[pair_bounds]
    moved, bias = postings.moved.clone(), postings.bias.clone()
    for first, end in blocks(before, _BLOCK_TERMS):
        of_pairs = slice(pair_bounds[first], pair_bounds[end])
        of_entries = slice(entry_bounds[first], entry_bounds[end])
        keys, block = found[of_pairs], entries[of_entries]
        label, text = keys // num_texts, keys % num_texts
        row, place = expand(text_bounds, text)
        wanted = label[row] * num_terms + texts.columns[place]
        at = torch.searchsorted(block, wanted).clamp(max=max(0, len(block) - 1))
        is_there = block[at] == wanted if len(block) else torch.zeros_like(wanted, dtype=torch.bool)
        start = postings.weights[order[of_entries]]
        moved[order[of_entries]], bias[first:end] = _descend(
            start,
            end - first,
            label - first,
            is_positive[of_pairs],
            row[is_there],
            at[is_there],
            texts.weights[place[is_there]],
            steps,
        )
    return postings._replace(moved=moved, bias=bias)


def _descend(
    start: Float32[Tensor, " entry"],
    num_labels: int,
    label: Int64[Tensor, " pair"],
    is_positive: Tensor,
    row: Int64[Tensor, " product"],
    entry: Int64[Tensor, " product"],
    value: Float32[Tensor, " product"],
    steps: int,
) -> tuple[Float32[Tensor, " entry"], Float32[Tensor, " label"]]:
    """Return what training adds to the vectors of some labels, and their biases.

    Args:
        start: Entries of their mean vectors.
        num_labels: Their number.
        label: Label of each pair of a label and a text.
        is_positive: Whether it has the text.
        row: Pair of each product of an entry and a term's weight in the text.
        entry: Entry of the product.
        value: Weight of the term in the text.
        steps: Number of steps.
    """
    weights = (_SCALE * start).requires_grad_()
    bias = torch.full((num_labels,), -1.0, device=start.device, requires_grad=True)
    sign = is_positive.float() * 2 - 1
    optimizer = Adam([weights, bias], lr=_RATE, betas=_BETAS)
    schedule = LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            # by index_select, whose gradient is quicker than that of an index
            products = weights.index_select(0, entry) * value
            scores = bias.index_select(0, label).index_add(0, row, products)
            loss = (1 - sign * scores).relu().square().sum() + weights.square().sum() / 2
            loss.backward()
            optimizer.step()
            schedule.step()
    return (
        _SHARE * (weights.detach() / _SCALE - start),
        _SHARE * (bias.detach() + 1),
    )


def _hardest(
    index: LexicalIndex, texts: Rows, first_text: int, num_texts: int, hardest: int
) -> Iterator[Int64[Tensor, " pair"]]:
    """Yield the keys, label * texts + text, of the best labels of blocks of texts."""
    step = query_block(index.num_labels, index.device)
    for start in range(0, count_rows(texts), step):
        scores = index.scores(some_rows(texts, start, start + step))
        labels = scores.topk(min(hardest, index.num_labels), dim=1).indices
        text = first_text + torch.arange(start, start + len(labels), device=index.device)
        yield (labels * num_texts + text[:, None]).flatten()


def _keys(labels: Rows, num_texts: int, device: torch.device) -> Int64[Tensor, " pair"]:
    """Return the keys, label * texts + text, of the labels of queries."""
    rows = torch.arange(count_rows(labels)).repeat_interleave(torch.from_numpy(np.diff(labels.offsets)))
    return (torch.from_numpy(labels.values.astype(np.int64)) * num_texts + rows).to(device)
