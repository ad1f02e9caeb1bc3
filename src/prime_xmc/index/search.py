"""The k prototypes with the highest inner product: exactly with torch alone, or with Faiss."""

from abc import ABC, abstractmethod
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from prime_xmc.files import replacing

# Scores and label ids, best first.
Found = tuple[Float32[Tensor, "query k"], Int64[Tensor, "query k"]]


class Search(ABC):
    """Finds the labels with the highest scores for a query, such as the inner product with a label's vector."""

    @torch.no_grad()
    def search(self, query_emb: Float32[Tensor, "query d"], k: int) -> Found:
        """Return the scores and ids of the k best labels of each query, best first.

        Args:
            query_emb: Embeddings on any device; the results are on the same one.
            k: Labels per query, at least 1; all labels are returned where there are fewer. A search that gives a score
                to some labels alone fills up with -inf and -1.
        """
        scores, ids = self._search(query_emb, k)
        return scores.to(query_emb.device), ids.to(query_emb.device)

    @abstractmethod
    def _search(self, query_emb: Float32[Tensor, "query d"], k: int) -> Found:
        """Search; the results may be on any device."""


class ExactSearch(Search):
    """Exact search in blocks, on the device of the vectors.

    Equal scores are ranked by id. The scores of a block are held at once: query_block * label_block * 4 bytes, 128 MiB
    by default.

    Args:
        query_block: Queries per block.
        label_block: Labels per block.
    """

    def __init__(self, *, query_block: int = 1024, label_block: int = 32_768):
        self.query_block = query_block
        self.label_block = label_block

    def build(self, vectors: Float32[Tensor, "label d"]) -> None:
        """Search in these vectors from now on; they are kept, not copied."""
        self._vectors = vectors

    def _search(self, query_emb: Float32[Tensor, "query d"], k: int) -> Found:
        # Under a caller's autocast, scores would lose digits and their order with them.
        with torch.autocast(self._vectors.device.type, enabled=False):
            found = [self._search_block(block, k) for block in query_emb.split(self.query_block)]
        scores, ids = (torch.cat(parts) for parts in zip(*found, strict=True))
        return scores, ids

    def _search_block(self, query_emb: Float32[Tensor, "query d"], k: int) -> Found:
        query_emb = query_emb.to(self._vectors.device)
        best_scores = query_emb.new_empty(len(query_emb), 0)
        best_ids = torch.empty_like(best_scores, dtype=torch.int64)
        first_id = 0
        for vectors in self._vectors.split(self.label_block):
            scores, ids = _top_k(query_emb @ vectors.T, k)
            # Ids of earlier blocks are smaller and stand first, so a stable sort keeps equal scores in order of id.
            best_scores, order = torch.cat([best_scores, scores], dim=1).sort(dim=1, descending=True, stable=True)
            best_scores, order = best_scores[:, :k], order[:, :k]
            best_ids = torch.cat([best_ids, ids + first_id], dim=1).gather(1, order)
            first_id += len(vectors)
        return best_scores, best_ids


class FaissSearch(Search):
    """Search with a Faiss index on CPU.

    Equal scores are ranked by id among the k returned; which of several labels with the k-th score are returned is up
    to Faiss. `hnsw` is approximate, is meant for vectors of equal norm, and differs a little from build to build
    where Faiss uses several threads. Queries for which its graph walk finds fewer than k labels are answered exactly.

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

    def _search(self, query_emb: Float32[Tensor, "query d"], k: int) -> Found:
        k = min(k, self._index.ntotal)
        queries = _as_numpy(query_emb)
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
            ValueError: If the file cannot be read as a Faiss index, or holds one of another kind.
        """
        faiss = _import_faiss()
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
        raise ImportError(f'Faiss is not installed: pip install "prime_xmc[faiss-cpu]", {instead}') from error
    except Exception as error:  # whatever its own code raises, such as that of a shared library that is missing
        raise ImportError(f"Faiss is installed but cannot be imported: {error}; reinstall it, {instead}") from error
    if not hasattr(faiss, "IndexFlatIP"):  # what is left of an installation, or a folder of that name
        places = ", ".join(map(str, getattr(faiss, "__path__", [])))
        raise ImportError(f"what is imported as faiss is not Faiss ({places}): remove or reinstall it, {instead}")
    return faiss


def _as_numpy(vectors: Float32[Tensor, "row d"]) -> Float32[np.ndarray, "row d"]:
    return vectors.detach().cpu().contiguous().numpy()


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
