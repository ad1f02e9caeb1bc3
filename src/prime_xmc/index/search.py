"""The k prototypes with the highest inner product: exactly with torch alone, or with Faiss."""

import math
from abc import ABC, abstractmethod
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, Integer
from torch import Tensor

from prime_xmc.files import replacing
from prime_xmc.index.faiss_files import check_index_file
from prime_xmc.index.full_precision import full_float32

# Scores and label ids, best first.
Found = tuple[Float32[Tensor, "query k"], Int64[Tensor, "query k"]]


@runtime_checkable
class Rows(Protocol):
    """Rows of integers of different lengths in one flat array, such as the token ids of texts."""

    @property
    def values(self) -> Integer[np.ndarray, " total"]:
        """The rows one after the other."""

    @property
    def offsets(self) -> Int64[np.ndarray, " bound"]:
        """Positions in `values` at which the rows start, and at the end their number."""


class FlatRows(NamedTuple):
    """Plain `Rows`."""

    values: Integer[np.ndarray, " total"]
    offsets: Int64[np.ndarray, " bound"]


def count_rows(rows: Rows) -> int:
    """Return the number of rows."""
    return len(rows.offsets) - 1


def some_rows(rows: Rows, start: int, end: int) -> FlatRows:
    """Return consecutive rows, of which there may be fewer than asked for, without copying their values."""
    offsets = rows.offsets[start : end + 1]
    return FlatRows(rows.values[offsets[0] : offsets[-1]], offsets - offsets[0])


class Asked(NamedTuple):
    """What a search is asked for, see `Search.search`.

    Attributes:
        query_emb: Embeddings of the queries.
        k: Labels per query, at most as many as are allowed.
        tokens: Token ids of the queries; None where they are not known.
        allowed: Labels that may be an answer; None: all may.
    """

    query_emb: Float32[Tensor, "query d"]
    k: int
    tokens: Rows | None
    allowed: Bool[Tensor, " label"] | None


class Search(ABC):
    """Finds the labels with the highest scores for a query, such as the inner product with a label's vector.

    Attributes:
        needs_tokens: Whether the token ids of queries are part of what they are searched by.
    """

    needs_tokens = False

    @torch.no_grad()
    def search(
        self,
        query_emb: Float32[Tensor, "query d"],
        k: int,
        tokens: Rows | None = None,
        allowed: Bool[Tensor, " label"] | None = None,
    ) -> Found:
        """Return the scores and ids of the k best labels of each query, best first.

        Args:
            query_emb: Embeddings on any device; the results are on the same one.
            k: Labels per query, at least 1; all labels are returned where there are fewer. A search that gives a score
                to some labels alone fills up with -inf and -1.
            tokens: Token ids of the queries, with which some scorers score.
            allowed: Labels that may be an answer, on any device; None: all may. The result is that of a search for all
                labels from which the others are left out, exactly, also where the search is otherwise approximate.

        Raises:
            ValueError: If this search needs tokens and they are not given, or are those of another number of queries;
                or if no label is allowed.
        """
        if allowed is not None:
            num_allowed = int(allowed.sum())
            if num_allowed == 0:
                raise ValueError("expected at least one label that may be an answer, got none")
            k = min(k, num_allowed)
        if self.needs_tokens:
            if tokens is None:
                raise ValueError(
                    "expected the token ids of the queries, tokens=, besides their embeddings: the lexical score is "
                    "part of this scorer. Give them, or take another scorer"
                )
            if count_rows(tokens) != len(query_emb):
                raise ValueError(f"expected tokens of {len(query_emb)} queries, got those of {count_rows(tokens)}")
        scores, ids = self._search(Asked(query_emb, k, tokens, allowed))
        if allowed is not None:
            ids = ids.masked_fill(scores == -math.inf, -1)
        return scores.to(query_emb.device), ids.to(query_emb.device)

    @abstractmethod
    def _search(self, asked: Asked) -> Found:
        """Return scores and ids of the best labels, which may be on any device.

        Labels that are not allowed may be returned with the score -inf.
        """


class ExactSearch(Search):
    """Exact search in blocks, on the device of the vectors.

    Equal scores are ranked by id. The scores of a block are held at once: query_block * label_block * 4 bytes, 128 MiB
    by default on the CPU and at most 1 GiB on a GPU. Scores are float32 in any case; vectors of a half precision are
    searched for queries that are rounded to the same precision.

    Args:
        query_block: Queries per block; None chooses by the device.
        label_block: Labels per block; None chooses by the device.
    """

    def __init__(self, *, query_block: int | None = None, label_block: int | None = None):
        self.query_block = query_block
        self.label_block = label_block

    def build(self, vectors: Float[Tensor, "label d"]) -> None:
        """Search in these vectors from now on; they are kept, not copied."""
        self._vectors = vectors

    def _search(self, asked: Asked) -> Found:
        query_emb, k, _, allowed = asked
        device = self._vectors.device
        query_block, label_block = self._blocks()
        search_block = search_without_waiting if device.type == "cuda" else _search_by_sorting
        with full_float32(device):  # scores would lose digits, and their order with them
            found = [
                search_block(block, self._vectors, k, label_block, allowed)
                for block in query_emb.to(device).split(query_block)
            ]
        scores, ids = (torch.cat(parts) for parts in zip(*found, strict=True))
        return scores, ids

    def _blocks(self) -> tuple[int, int]:
        """Return queries and labels per block."""
        on_gpu = self._vectors.device.type == "cuda"
        query_block, label_block = gpu_blocks(len(self._vectors)) if on_gpu else _CPU_BLOCKS
        return self.query_block or query_block, self.label_block or label_block


_CPU_BLOCKS = 1024, 32_768  # whose scores fit the cache that processors share
# On a GPU, a block is as large as memory allows, since every operation on it has a price of its own.
_GPU_SCORES = 2**28
_MOST_LABELS = 2**21
_MOST_QUERIES = 2**12


def gpu_blocks(num_labels: int) -> tuple[int, int]:
    """Return how many queries and labels a GPU scores at once.

    Example:
        >>> gpu_blocks(1_300_000)
        (206, 1300000)
    """
    label_block = min(max(1, num_labels), _MOST_LABELS)
    return min(_GPU_SCORES // label_block, _MOST_QUERIES), label_block


def only_allowed(
    scores: Float32[Tensor, "query label"], allowed: Bool[Tensor, " label"] | None
) -> Float32[Tensor, "query label"]:
    """Return the scores, -inf in the columns of labels that are not allowed; None: all are."""
    if allowed is None:
        return scores
    return scores.masked_fill(~allowed.to(scores.device), -math.inf)


def _search_by_sorting(
    query_emb: Float32[Tensor, "query d"],
    vectors: Float[Tensor, "label d"],
    k: int,
    label_block: int,
    allowed: Bool[Tensor, " label"] | None = None,
) -> Found:
    best_scores = query_emb.new_empty(len(query_emb), 0)
    best_ids = torch.empty_like(best_scores, dtype=torch.int64)
    first_id = 0
    for block in vectors.split(label_block):
        some_allowed = None if allowed is None else allowed[first_id : first_id + len(block)]
        scores, ids = _top_k(only_allowed(inner_products(query_emb, block), some_allowed), k)
        # Ids of earlier blocks are smaller and stand first, so a stable sort keeps equal scores in order of id.
        best_scores, order = torch.cat([best_scores, scores], dim=1).sort(dim=1, descending=True, stable=True)
        best_scores, order = best_scores[:, :k], order[:, :k]
        best_ids = torch.cat([best_ids, ids + first_id], dim=1).gather(1, order)
        first_id += len(block)
    return best_scores, best_ids


def search_without_waiting(
    query_emb: Float32[Tensor, "query d"],
    vectors: Float[Tensor, "label d"],
    k: int,
    label_block: int,
    allowed: Bool[Tensor, " label"] | None = None,
) -> Found:
    """Search as elsewhere, in few operations on long rows, none of which the host has to wait for: for GPUs.

    Args:
        query_emb: Embeddings on the device of the vectors.
        vectors: Vectors of the labels.
        k: Labels per query.
        label_block: Labels whose scores are held at once.
        allowed: Labels that may be an answer, at least k; None: all may.
    """
    best = torch.empty(len(query_emb), 0, dtype=torch.int64, device=query_emb.device)
    first_id = 0
    for block in vectors.split(label_block):
        some_allowed = None if allowed is None else allowed[first_id : first_id + len(block)]
        keys = _top_keys(only_allowed(inner_products(query_emb, block), some_allowed), k, first_id)
        best = torch.cat([best, keys], dim=1)
        if first_id:
            best = best.topk(min(k, best.shape[1]), dim=1).values
        first_id += len(block)
    return _from_keys(best)


def inner_products(
    query_emb: Float32[Tensor, "query d"], vectors: Float[Tensor, "label d"]
) -> Float32[Tensor, "query label"]:
    """Return the inner products in float32, of queries rounded as the vectors are."""
    if vectors.dtype != torch.float32:
        query_emb = query_emb.to(vectors.dtype)
        if vectors.device.type == "cuda":
            return torch.mm(query_emb, vectors.T, out_dtype=torch.float32)
        query_emb, vectors = query_emb.float(), vectors.float()
    elif vectors.device.type == "cuda" and len(query_emb) == 1:
        return torch.mv(vectors, query_emb[0])[None]  # at the speed of the memory
    return query_emb @ vectors.T


def _top_keys(scores: Float32[Tensor, "query label"], k: int, first_id: int) -> Int64[Tensor, "query k"]:
    """Return the keys, highest first, of the k best of consecutive labels, or of all where there are fewer.

    The labels are cut into groups. A label with one of the k best keys is in one of the k groups whose best keys are
    highest: each of k other groups would hold a better label. Only these groups are looked at label by label.
    """
    num_labels, device = scores.shape[1], scores.device
    width = 2 ** max(1, round(math.log2(max(1, num_labels // k)) / 2))  # half of the work is on groups, half on labels
    num_groups = num_labels // width
    ids = torch.arange(num_labels, device=device)
    if num_groups <= k:
        return _to_keys(scores, ids + first_id).topk(min(k, num_labels), dim=1).values
    grouped = num_groups * width
    best_of_group = scores[:, :grouped].unflatten(1, (num_groups, width)).amax(dim=2)
    _, groups = _from_keys(_to_keys(best_of_group, ids[:num_groups]).topk(k, dim=1, sorted=False).values)
    columns = (groups[:, :, None] * width + ids[:width]).flatten(1)
    columns = torch.cat([columns, ids[grouped:].expand(len(scores), -1)], dim=1)  # those of no group
    return _to_keys(scores.gather(1, columns), columns + first_id).topk(k, dim=1).values


_IDS = 2**32  # more than there are labels


def _to_keys(scores: Float32[Tensor, "query k"], ids: Int64[Tensor, "*query k"]) -> Int64[Tensor, "query k"]:
    """Return integers, all different, in the order of the scores, and of equal scores of the smaller id first."""
    bits = (scores + 0.0).view(torch.int32).long()  # the sum turns -0.0 into 0.0
    # The bits of floating-point numbers are in the order of the numbers, but those of negative ones run backwards.
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) * _IDS + (_IDS - 1 - ids)


def _from_keys(keys: Int64[Tensor, "query k"]) -> Found:
    """Return the scores and ids of `_to_keys`."""
    ordered = keys >> 32
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return bits.int().view(torch.float32), _IDS - 1 - (keys & (_IDS - 1))


class FaissSearch(Search):
    """Search with a Faiss index on CPU.

    Equal scores are ranked by id among the k returned; which of several labels with the k-th score are returned is up
    to Faiss. `hnsw` is approximate, is meant for vectors of equal norm, and differs a little from build to build
    where Faiss uses several threads. Queries for which its graph walk finds fewer than k labels are answered exactly,
    and all queries where some labels alone are allowed: a walk would miss most of few allowed ones.

    Args:
        kind: "flat" (IndexFlatIP, exact) or "hnsw" (IndexHNSWFlat).
        m: Neighbours per label in the graph of hnsw.
        ef_construction: Candidates kept while the graph is built.
        ef_search: Candidates kept while it is searched; more find more of the true neighbours and take longer.

    Raises:
        ImportError: If Faiss is not installed, with the command that installs it; or if it cannot be imported, with
            the cause.
        ValueError: If kind is another.

    Source: paper, Appendix I; HNSW, Malkov and Yashunin 2018.
    """

    def __init__(
        self,
        kind: str = "flat",
        *,
        m: int = 32,
        ef_construction: int = 200,
        ef_search: int = 128,
    ):
        if kind not in ("flat", "hnsw"):
            raise ValueError(f"kind of Faiss index must be flat or hnsw, got {kind}")
        _import_faiss()  # now, rather than after hours of training
        self.kind = kind
        self.m = m
        self.ef_construction = ef_construction
        self.ef_search = ef_search

    def build(self, vectors: Float32[Tensor, "label d"]) -> None:
        """Search in a copy of these vectors from now on."""
        faiss = _import_faiss()
        if self.kind == "flat":
            index = faiss.IndexFlatIP(vectors.shape[1])
        else:
            index = faiss.IndexHNSWFlat(vectors.shape[1], self.m, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = self.ef_construction
        index.add(_as_numpy(vectors))
        self._index = index

    def _search(self, asked: Asked) -> Found:
        query_emb, k, _, allowed = asked
        k = min(k, self._index.ntotal)
        queries = _as_numpy(query_emb)
        if allowed is not None:
            faiss = _import_faiss()
            bits = np.packbits(allowed.cpu().numpy(), bitorder="little")
            only = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
            flat = self._index if self.kind == "flat" else self._index.storage
            scores, ids = flat.search(queries, k, params=only)
            return ranked(torch.from_numpy(scores), torch.from_numpy(ids))
        if self.kind == "hnsw":
            self._index.hnsw.efSearch = max(self.ef_search, k)
        scores, ids = self._index.search(queries, k)
        unfilled = (ids < 0).any(axis=1)  # a part of the graph that the walk did not reach
        if unfilled.any():
            scores[unfilled], ids[unfilled] = self._index.storage.search(queries[unfilled], k)
        return ranked(torch.from_numpy(scores), torch.from_numpy(ids))

    def save(self, path: Path) -> None:
        """Write the index to a file, which appears only when it is complete."""
        with replacing(path) as temporary:
            _import_faiss().write_index(self._index, str(temporary))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of vectors searched in, and their dimension."""
        return self._index.ntotal, self._index.d

    def load(self, path: Path) -> None:
        """Search in a saved index from now on.

        Raises:
            ValueError: If the file cannot be read as a Faiss index, or holds one of another kind; it is not opened by
                Faiss then.
        """
        faiss = _import_faiss()
        check_index_file(path, self.kind)
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise ValueError(f"{path} cannot be read as a Faiss index; export the model again: {error}") from error
        expected = faiss.IndexFlatIP if self.kind == "flat" else faiss.IndexHNSWFlat
        if not isinstance(index, expected):
            raise ValueError(f"{path} holds a {type(index).__name__}, expected {expected.__name__} (kind={self.kind})")
        self._index = index


def faiss_problem() -> str | None:
    """Return why Faiss cannot be used here, None where it can."""
    try:
        _import_faiss()
    except ImportError as error:
        return str(error)
    return None


def _import_faiss() -> ModuleType:
    instead = "or search without it: index=exact in training, search=exact afterwards"
    try:
        import faiss
    except ModuleNotFoundError as error:
        if error.name != "faiss":  # a module that Faiss itself needs
            raise ImportError(f"Faiss is installed but cannot be imported: {error}; reinstall it, {instead}") from error
        raise ImportError(f'Faiss is not installed: pip install ".[faiss-cpu]" in the clone, {instead}') from error
    except Exception as error:  # whatever its own code raises, such as that of a shared library that is missing
        raise ImportError(f"Faiss is installed but cannot be imported: {error}; reinstall it, {instead}") from error
    if not hasattr(faiss, "IndexFlatIP"):  # what is left of an installation, or a folder of that name
        places = ", ".join(map(str, getattr(faiss, "__path__", [])))
        raise ImportError(f"what is imported as faiss is not Faiss ({places}): remove or reinstall it, {instead}")
    return faiss


def _as_numpy(vectors: Float32[Tensor, "row d"]) -> Float32[np.ndarray, "row d"]:
    return vectors.detach().cpu().contiguous().numpy()


def top_labels(scores: Float32[Tensor, "query label"], k: int) -> Found:
    """Return the k highest scores and their columns, equal scores by column; all columns where there are fewer."""
    return _from_keys(_top_keys(scores, k, 0)) if scores.device.type == "cuda" else _top_k(scores, k)


def _top_k(scores: Float32[Tensor, "query label"], k: int) -> Found:
    """Return the k highest scores and their columns, equal scores by column; all columns where there are fewer."""
    if k >= scores.shape[1]:
        return scores.sort(dim=1, descending=True, stable=True)
    top, columns = scores.topk(k + 1, dim=1)
    # Which of several k-th scores topk returns is undefined: there, a stable sort decides.
    tied = (top[:, k - 1] == top[:, k]).nonzero()[:, 0]
    top[tied], columns[tied] = (part[:, : k + 1] for part in scores[tied].sort(dim=1, descending=True, stable=True))
    return ranked(top[:, :k], columns[:, :k])


def ranked(scores: Float32[Tensor, "query k"], ids: Int64[Tensor, "query k"]) -> Found:
    """Return the columns of each row sorted by score, highest first, then by id."""
    ids, order = ids.sort(dim=1)
    scores, by_score = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    return scores, ids.gather(1, by_score)
