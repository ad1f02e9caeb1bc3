"""A lexical score: the product of the tf-idf vectors of a query and of a label, over tokens and their adjacent pairs.

The terms of a text are its token ids, without those that the tokenizer puts around every text, and its pairs of
adjacent tokens. The weight of a term in a text is (1 + log tf) * idf, where tf is how often the text has it, and
idf = log((1 + n) / (1 + df)) + 1, where df of the n training queries and label texts have it. Terms that none of these
has are ignored. The vector x of a text has these weights, divided by its norm. That of a label is

c_l = normalise(normalise(sum of x over its training queries) + x of its own text)

and the score is x_q . c_l, in [0, 1], 0 where query and label have no term in common. `lexical_training` moves these
vectors, and adds a number of its own to the score of each label.

Source: weights, Salton and Buckley 1988, with the smooth idf of scikit-learn; centroid, Rocchio 1971. Such features
complement embeddings in extreme classification: XR-Transformer, Zhang et al. 2021.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor
from torch.nn.functional import pad

from prime_xmc.index.full_precision import full_float32
from prime_xmc.index.groups import blocks, bounds, expand
from prime_xmc.index.search import (
    Asked,
    FlatRows,
    Found,
    Rows,
    Search,
    count_rows,
    gpu_blocks,
    only_allowed,
    some_rows,
    top_labels,
)

TOKEN_IDS = 2**31  # more than any tokenizer has
_BLOCK_TOKENS = 2**20  # tokens of texts whose terms are counted at once in building
_BLOCK_SCORES = 2**24  # scores of a block of queries on the CPU, which are held at once
_FREQUENT = 1 / 32  # share of the labels from which on a term is frequent
_MOST_NUMBERS = 2**26  # numbers of the matrix of frequent terms
_CPU_POSTINGS, _GPU_POSTINGS = 2**20, 2**25  # postings that are added at once
_ROUNDING = 1e-4  # of weights, which are kept in float32


class Postings(NamedTuple):
    """The vectors of all labels, as a list of labels for each term, and what it takes to weigh the terms of a query.

    Attributes:
        terms: Codes of the terms of the training queries and label texts, ascending, see `find_terms`.
        idf: Inverse document frequency of each term, above 0.
        offsets: Places at which the labels of each term begin, and at the end their number.
        label_ids: Labels whose vector has the term, ascending for each term.
        weights: Entry of c_l, in (0, 1].
        moved: What training has added to this entry, 0 without it.
        bias: What training has added to each label's score, 0 without it.
    """

    terms: Int64[Tensor, " term"]
    idf: Float32[Tensor, " term"]
    offsets: Int64[Tensor, " bound"]
    label_ids: Int32[Tensor, " posting"]
    weights: Float32[Tensor, " posting"]
    moved: Float32[Tensor, " posting"]
    bias: Float32[Tensor, " label"]


class TextVectors(NamedTuple):
    """Sparse unit vectors of texts, by rows, the terms ascending within a row, each once.

    Attributes:
        rows: Row of the text.
        columns: Place of the term among all known ones.
        weights: Weight of the term in the text, in (0, 1].
    """

    rows: Int64[Tensor, " entry"]
    columns: Int64[Tensor, " entry"]
    weights: Float32[Tensor, " entry"]


def find_terms(
    token_ids: Int64[Tensor, " token"],
    offsets: Int64[Tensor, " bound"],
    special_ids: Int64[Tensor, " special"],
    *,
    pairs: bool,
) -> tuple[Int64[Tensor, " occurrence"], Int64[Tensor, " occurrence"]]:
    """Return the text and the code of each occurrence of a term: first of all tokens, then of all pairs.

    The code of a token is its id, that of a pair (first + 1) * 2^31 + second: no two terms have the same.

    Args:
        token_ids: Token ids of texts, one text's after the other's.
        offsets: Places at which the texts begin, and at the end the number of tokens.
        special_ids: Ids that are no terms, and part no pair of their neighbours into one.
        pairs: Whether pairs of adjacent tokens are terms.

    Example:
        >>> ids, offsets, special = torch.tensor([101, 7, 5, 102]), torch.tensor([0, 4]), torch.tensor([101, 102])
        >>> _, codes = find_terms(ids, offsets, special, pairs=True)
        >>> codes.tolist() == [7, 5, 8 * 2**31 + 5]
        True
    """
    rows = torch.arange(len(offsets) - 1, device=token_ids.device).repeat_interleave(offsets.diff())
    is_term = ~torch.isin(token_ids, special_ids)
    found, codes = rows[is_term], token_ids[is_term]
    if pairs:
        is_pair = is_term[:-1] & is_term[1:] & (rows[:-1] == rows[1:])
        found = torch.cat([found, rows[:-1][is_pair]])
        codes = torch.cat([codes, (token_ids[:-1][is_pair] + 1) * TOKEN_IDS + token_ids[1:][is_pair]])
    return found, codes


def weigh_terms(
    rows: Int64[Tensor, " occurrence"],
    columns: Int64[Tensor, " occurrence"],
    idf: Float32[Tensor, " term"],
    num_rows: int,
) -> TextVectors:
    """Return the vectors of texts, from the occurrences of known terms in them.

    Args:
        rows: Text of each occurrence.
        columns: Term of each occurrence, its place among all known ones.
        idf: Inverse document frequency of the known terms.
        num_rows: Number of texts; one without a term has no entry.
    """
    keys, tf = (rows * len(idf) + columns).unique(return_counts=True)  # ascending
    rows, columns = keys // max(1, len(idf)), keys % max(1, len(idf))
    return TextVectors(rows, columns, _unit((1 + tf.float().log()) * idf[columns], rows, num_rows))


def inverse_document_frequency(df: Int64[Tensor, " term"], num_texts: int) -> Float32[Tensor, " term"]:
    """Return log((1 + n) / (1 + df)) + 1.

    Example:
        >>> inverse_document_frequency(torch.tensor([1, 3]), 3)
        tensor([1.6931, 1.0000])
    """
    return (((1 + num_texts) / (1 + df.double())).log() + 1).float()


def build_postings(
    queries: Rows, query_labels: Rows, label_texts: Rows, *, special_ids: Sequence[int], pairs: bool
) -> Postings:
    """Return the vectors of all labels, on the CPU. They are made block by block of the labels.

    Args:
        queries: Token ids of the training queries.
        query_labels: Label ids of each of them, each once.
        label_texts: Token ids of the text of each label.
        special_ids: Token ids that are no terms.
        pairs: Whether pairs of adjacent tokens are terms.
    """
    special = torch.tensor(special_ids, dtype=torch.int64)
    terms, df = _count_texts([queries, label_texts], special, pairs=pairs)
    idf = inverse_document_frequency(df, count_rows(queries) + count_rows(label_texts))
    return _label_postings(queries, query_labels, label_texts, terms, idf, special, pairs=pairs)


def _label_postings(
    queries: Rows,
    query_labels: Rows,
    label_texts: Rows,
    terms: Int64[Tensor, " term"],
    idf: Float32[Tensor, " term"],
    special: Int64[Tensor, " special"],
    *,
    pairs: bool,
) -> Postings:
    """Return what `build_postings` does, of terms that are known already."""
    num_labels = count_rows(label_texts)
    # the training queries of each label, one label's after the other's
    labels, lengths = torch.from_numpy(query_labels.values.astype(np.int64)), np.diff(query_labels.offsets)
    queries_of_labels = torch.arange(count_rows(queries)).repeat_interleave(torch.from_numpy(lengths))
    queries_of_labels = queries_of_labels[labels.argsort(stable=True)]
    offsets = bounds(labels, num_labels)
    num_tokens = torch.from_numpy(np.diff(queries.offsets))[queries_of_labels]
    keys, weights = [], []
    for first, end in blocks(pad(num_tokens.cumsum(0), (1, 0))[offsets], _BLOCK_TOKENS):
        size = end - first
        distinct, rows = queries_of_labels[offsets[first] : offsets[end]].unique(return_inverse=True)
        texts = text_vectors(_take(queries, distinct), terms, idf, special, pairs=pairs)
        own = text_vectors(some_rows(label_texts, first, end), terms, idf, special, pairs=pairs)
        label_of_row = torch.arange(size).repeat_interleave(offsets[first : end + 1].diff())
        row, entry = expand(bounds(texts.rows, len(distinct)), rows)
        # in the order of the postings: by term, then by label
        of_queries = texts.columns[entry] * num_labels + first + label_of_row[row]
        block, places = torch.cat([of_queries, own.columns * num_labels + first + own.rows]).unique(return_inverse=True)
        label = block % num_labels - first
        sums = torch.zeros(2, len(block), dtype=torch.float64)
        sums[0].index_add_(0, places[: len(entry)], texts.weights[entry].double())
        sums[1].index_add_(0, places[len(entry) :], own.weights.double())
        keys.append(block)
        weights.append(_unit(_unit(sums[0], label, size) + sums[1], label, size).float())
    all_keys = torch.cat([labels[:0], *keys])
    num_columns, entries = max(1, num_labels), torch.cat([idf[:0], *weights])
    columns, label_ids = all_keys // num_columns, all_keys % num_columns
    return _from_entries(terms, idf, columns, label_ids, entries, torch.zeros_like(entries), torch.zeros(num_labels))


def _from_entries(
    terms: Int64[Tensor, " term"],
    idf: Float32[Tensor, " term"],
    columns: Int64[Tensor, " posting"],
    label_ids: Int64[Tensor, " posting"],
    weights: Float32[Tensor, " posting"],
    moved: Float32[Tensor, " posting"],
    bias: Float32[Tensor, " label"],
) -> Postings:
    """Return the entries of labels' vectors, in any order, as postings."""
    order = (columns * max(1, len(bias)) + label_ids).argsort()
    offsets = bounds(columns, len(terms))
    return Postings(terms, idf, offsets, label_ids[order].int(), weights[order], moved[order], bias)


def add_to_postings(
    postings: Postings,
    num_labels: int,
    queries: Rows,
    query_labels: Rows,
    label_texts: Rows,
    *,
    special_ids: Sequence[int],
    pairs: bool,
) -> Postings:
    """Return postings with the vectors of further labels, whose ids follow those of the others.

    Known terms keep their idf. A term that is new has that of as many texts as have it among these.

    Args:
        postings: The vectors of the labels so far.
        num_labels: Number of labels so far.
        queries: Token ids of queries of the new labels.
        query_labels: New labels of each of these, counted from 0.
        label_texts: Token ids of the text of each new label.
        special_ids: Token ids that are no terms.
        pairs: Whether pairs of adjacent tokens are terms.
    """
    special = torch.tensor(special_ids, dtype=torch.int64)
    found, df = _count_texts([queries, label_texts], special, pairs=pairs)
    is_new = ~torch.isin(found, postings.terms)
    # the rarest term stands in one text: log((1 + n) / 2) + 1
    num_texts = round(2 * float((postings.idf.double().max() - 1).exp()) - 1) if len(postings.idf) else 0
    terms, order = torch.cat([postings.terms, found[is_new]]).sort()
    new_idf = inverse_document_frequency(df[is_new], max(num_texts, int(df.max()) if len(df) else 0))
    idf = torch.cat([postings.idf, new_idf])[order]
    added = _label_postings(queries, query_labels, label_texts, terms, idf, special, pairs=pairs)
    columns, label_ids, weights, moved = entries_of(postings)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))  # of each term among all
    new_columns, new_labels, new_weights, new_moved = entries_of(added)
    return _from_entries(
        terms,
        idf,
        torch.cat([place[columns], new_columns]),
        torch.cat([label_ids, num_labels + new_labels]),
        torch.cat([weights, new_weights]),
        torch.cat([moved, new_moved]),
        # where labels have been trained, one without a bias would be preferred to them
        torch.cat([postings.bias, (postings.bias.median() if num_labels else 0.0) + added.bias]),
    )


def take_postings(postings: Postings, num_labels: int, kept: Int64[Tensor, " kept"]) -> Postings:
    """Return the postings of some labels, whose new ids are their places among these.

    All terms stay known, since the norm of a query's vector depends on them.

    Args:
        postings: The vectors of all labels.
        num_labels: Number of all labels.
        kept: Ids of the labels to keep, ascending.
    """
    columns, label_ids, weights, moved = entries_of(postings)
    new_ids = torch.full((num_labels,), -1)
    new_ids[kept] = torch.arange(len(kept))
    is_kept = new_ids[label_ids] >= 0
    entries = columns[is_kept], new_ids[label_ids[is_kept]], weights[is_kept], moved[is_kept]
    return _from_entries(postings.terms, postings.idf, *entries, postings.bias[kept])


def replace_texts(
    postings: Postings,
    num_labels: int,
    label_ids: Int64[Tensor, " renamed"],
    old_texts: Rows,
    new_texts: Rows,
    *,
    special_ids: Sequence[int],
    pairs: bool,
) -> Postings:
    """Return postings in which some labels have another text of their own; the terms of their queries stay.

    The vector c = (u + x) / |u + x| of a label with queries has unit vectors u, of these, and x, of its text. From
    |u| = 1 it follows that u = 2 (c . x) c - x. A label whose vector is that of its text has no queries.
    What training has added to an entry stays with it.

    Args:
        postings: The vectors of all labels.
        num_labels: Number of all labels.
        label_ids: Labels whose text changes, each once.
        old_texts: Token ids of their texts so far.
        new_texts: Token ids of their new texts.
        special_ids: Token ids that are no terms.
        pairs: Whether pairs of adjacent tokens are terms.
    """
    size, special = len(label_ids), torch.tensor(special_ids, dtype=torch.int64)
    none = FlatRows(new_texts.values[:0], np.zeros(1, dtype=np.int64))
    own = add_to_postings(postings, num_labels, none, none, new_texts, special_ids=special_ids, pairs=pairs)
    columns, labels, weights, moved = entries_of(own)  # own vectors of the new texts come after those of all labels
    old = text_vectors(old_texts, own.terms, own.idf, special, pairs=pairs)
    renamed = torch.full((num_labels + size,), -1)
    renamed[label_ids] = renamed[num_labels:] = torch.arange(size)
    is_renamed = renamed[labels] >= 0
    is_own = labels >= num_labels
    is_before = is_renamed & ~is_own
    keys = torch.cat(
        [
            columns[is_before] * size + renamed[labels[is_before]],
            old.columns * size + old.rows,
            columns[is_own] * size + renamed[labels[is_own]],
        ]
    )
    entries, places = keys.unique(return_inverse=True)
    sizes = [int(is_before.sum()), len(old.rows), int(is_own.sum())]
    parts = zip(places.split(sizes), (weights[is_before], old.weights, weights[is_own]), strict=True)
    before, text, new = (
        torch.zeros(len(entries), dtype=torch.float64).index_add(0, where, what.double()) for where, what in parts
    )
    label = entries % size
    product = torch.zeros(size, dtype=torch.float64).index_add(0, label, before * text)
    has_text = torch.zeros(size, dtype=torch.float64).index_add(0, label, text) > 0
    of_queries = torch.where(has_text[label], 2 * product[label] * before - text, before)
    of_queries = torch.where((product[label] > 1 - _ROUNDING) | (of_queries < _ROUNDING), 0.0, of_queries)
    sums = _unit(of_queries + new, label, size).float()
    is_left = sums > 0
    moved_sums = torch.zeros(len(entries)).index_add(0, places[: sizes[0]], moved[is_before])
    return _from_entries(
        own.terms,
        own.idf,
        torch.cat([columns[~is_renamed], entries[is_left] // size]),
        torch.cat([labels[~is_renamed], label_ids[label[is_left]]]),
        torch.cat([weights[~is_renamed], sums[is_left]]),
        torch.cat([moved[~is_renamed], moved_sums[is_left]]),
        postings.bias,
    )


def entries_of(
    postings: Postings,
) -> tuple[
    Int64[Tensor, " posting"], Int64[Tensor, " posting"], Float32[Tensor, " posting"], Float32[Tensor, " posting"]
]:
    """Return term, label, weight, and what training has added to it, of each entry."""
    columns = torch.arange(len(postings.terms), device=postings.terms.device).repeat_interleave(postings.offsets.diff())
    return columns, postings.label_ids.long(), postings.weights, postings.moved


class LexicalIndex:
    """Scores all labels for queries by their terms, on the device of the postings.

    Args:
        postings: The vectors of the labels.
        num_labels: Number of labels.
        special_ids: Token ids that are no terms.
        pairs: Whether pairs of adjacent tokens are terms.
    """

    def __init__(self, postings: Postings, num_labels: int, *, special_ids: Sequence[int], pairs: bool):
        self.postings = postings
        self.num_labels = num_labels
        self.pairs = pairs
        self._special_ids = torch.tensor(special_ids, dtype=torch.int64, device=postings.terms.device)
        self._weights = postings.weights + postings.moved
        # Few terms have most of the postings that queries meet: theirs are rows of a matrix.
        lengths = postings.offsets.diff()
        frequent = lengths.sort(descending=True, stable=True).indices[: _MOST_NUMBERS // max(1, num_labels)]
        frequent = frequent[lengths[frequent] > num_labels * _FREQUENT]
        row, posting = expand(postings.offsets, frequent)
        self._matrix = postings.weights.new_zeros(len(frequent), num_labels)
        self._matrix[row, postings.label_ids[posting].long()] = self._weights[posting]
        self._row_of_term = torch.full_like(postings.terms, -1)
        self._row_of_term[frequent] = torch.arange(len(frequent), device=frequent.device)

    @property
    def device(self) -> torch.device:
        """Device of the postings."""
        return self.postings.terms.device

    def scores(self, tokens: Rows) -> Float32[Tensor, "query label"]:
        """Return the scores of all labels, all at once: four bytes for each; see `query_block`.

        Args:
            tokens: Token ids of the queries.
        """
        num_queries, postings = count_rows(tokens), self.postings
        vectors = text_vectors(tokens, postings.terms, postings.idf, self._special_ids, pairs=self.pairs)
        is_frequent = self._row_of_term[vectors.columns] >= 0
        scores = self._score_frequent(TextVectors(*(part[is_frequent] for part in vectors)), num_queries).flatten()
        rows, columns, weights = (part[~is_frequent] for part in vectors)
        before = pad((postings.offsets[columns + 1] - postings.offsets[columns]).cumsum(0), (1, 0))
        for first, end in blocks(before, _CPU_POSTINGS if self.device.type == "cpu" else _GPU_POSTINGS):
            entry, posting = expand(postings.offsets, columns[first:end])
            products = weights[first:end][entry] * self._weights[posting]
            scores.index_add_(0, rows[first:end][entry] * self.num_labels + postings.label_ids[posting], products)
        return scores.view(num_queries, self.num_labels) + postings.bias

    def _score_frequent(self, vectors: TextVectors, num_queries: int) -> Float32[Tensor, "query label"]:
        """Return the part of the scores that is due to frequent terms."""
        used, places = self._row_of_term[vectors.columns].unique(return_inverse=True)
        queries = self._matrix.new_zeros(num_queries, len(used))
        queries[vectors.rows, places] = vectors.weights
        with full_float32(self.device):
            return queries @ self._matrix[used]


def query_block(num_labels: int, device: torch.device) -> int:
    """Return how many queries have the scores of all labels held at once: 64 MiB on the CPU, at most 1 GiB on a GPU.

    Example:
        >>> query_block(17_953, torch.device("cpu"))
        934
    """
    if device.type == "cuda":
        return gpu_blocks(num_labels)[0]
    return min(1024, max(1, _BLOCK_SCORES // max(1, num_labels)))


class LexicalSearch(Search):
    """Finds the labels with the highest lexical scores.

    Args:
        index: The vectors of the labels.
    """

    needs_tokens = True

    def __init__(self, index: LexicalIndex):
        self.index = index

    def _search(self, asked: Asked) -> Found:
        query_emb, k, tokens, allowed = asked
        assert tokens is not None
        step = query_block(self.index.num_labels, self.index.device)
        parts = [
            top_labels(only_allowed(self.index.scores(some_rows(tokens, start, start + step)), allowed), k)
            for start in range(0, len(query_emb), step)
        ]
        scores, ids = (torch.cat(part) for part in zip(*parts, strict=True))
        return scores, ids


def text_vectors(
    texts: Rows,
    terms: Int64[Tensor, " term"],
    idf: Float32[Tensor, " term"],
    special_ids: Int64[Tensor, " special"],
    *,
    pairs: bool,
) -> TextVectors:
    """Return the vectors of texts, on the device of the terms."""
    rows, codes = find_terms(*_tensors(texts, terms.device), special_ids, pairs=pairs)
    columns = torch.searchsorted(terms, codes)
    is_known = columns < len(terms)
    is_known[is_known.clone()] = terms[columns[is_known]] == codes[is_known]
    return weigh_terms(rows[is_known], columns[is_known], idf, count_rows(texts))


def _count_texts(
    parts: Sequence[Rows], special_ids: Int64[Tensor, " special"], *, pairs: bool
) -> tuple[Int64[Tensor, " term"], Int64[Tensor, " term"]]:
    """Return all terms, ascending, and how many of the texts have each."""
    found, counts = [special_ids[:0]], [special_ids[:0]]
    for texts in parts:
        for first, end in blocks(torch.from_numpy(texts.offsets.copy()), _BLOCK_TOKENS):
            rows, codes = find_terms(*_tensors(some_rows(texts, first, end)), special_ids, pairs=pairs)
            terms, columns = codes.unique(return_inverse=True)
            pairs_of_both = (columns * (end - first) + rows).unique()
            found.append(terms)
            counts.append(torch.bincount(pairs_of_both // (end - first), minlength=len(terms)))
    terms, places = torch.cat(found).unique(return_inverse=True)
    return terms, torch.zeros_like(terms).index_add(0, places, torch.cat(counts))


def _unit(weights: Float[Tensor, " entry"], rows: Int64[Tensor, " entry"], num_rows: int) -> Float[Tensor, " entry"]:
    """Return the entries of sparse rows divided by the norm of their row; a row of zeros stays."""
    norms = weights.new_zeros(num_rows).index_add(0, rows, weights.square()).sqrt()
    return weights / norms[rows].clamp(min=1e-12)


def _tensors(
    texts: Rows, device: torch.device | str = "cpu"
) -> tuple[Int64[Tensor, " token"], Int64[Tensor, " bound"]]:
    """Return token ids and offsets, copied."""
    values, offsets = (torch.from_numpy(part.astype(np.int64)).to(device) for part in (texts.values, texts.offsets))
    return values, offsets


def _take(texts: Rows, ids: Int64[Tensor, " taken"]) -> Rows:
    """Return some rows, in the given order."""
    row, place = expand(torch.from_numpy(texts.offsets.copy()), ids)
    return FlatRows(texts.values[place.numpy()], bounds(row, len(ids)).numpy())
