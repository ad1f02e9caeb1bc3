"""Searching 1.3M x 384 prototypes: exact search against Faiss IndexFlatIP, and recall of HNSW.

Exact search is timed on random vectors, since its time does not depend on their structure. HNSW takes far too long to
build for 1.3M vectors; its recall is shown on 100K vectors in nested groups, which resemble embeddings of texts.
"""

import statistics
from collections.abc import Iterator

import faiss
import torch
from common import Row, Target, clustering_tests, interleave, main, ratio, seconds_of
from jaxtyping import Int64
from torch import Tensor
from torch.nn.functional import normalize

from prime_xmc.index.search import ExactSearch, FaissSearch

TARGETS = (
    Target("exact top-100 of 1.3M × 384: speed against Faiss IndexFlatIP", "≥", 0.9, "x"),
    Target("HNSW top-100 of 100K × 384: recall against exact", "shown", 0, ""),
)
K = 100
DIM = 384
ROUNDS = 5


def rows(scale: float) -> Iterator[Row]:
    speed_target, recall_target = TARGETS
    generator = torch.Generator().manual_seed(0)
    vectors, queries = (
        normalize(torch.randn(max(round(count * scale), K), DIM, generator=generator)) for count in (1_300_000, 10_000)
    )
    blocks = queries.chunk(ROUNDS)  # one for each round
    exact, flat = ExactSearch(), faiss.IndexFlatIP(DIM)
    exact.build(vectors)
    flat.add(vectors.numpy())
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    our_seconds, their_seconds = interleave(
        ROUNDS,
        lambda: ours.append(exact.search(blocks[len(ours)], K)[1]),
        lambda: theirs.append(torch.from_numpy(flat.search(blocks[len(theirs)].numpy(), K)[1])),  # noqa: F821 (deleted later)
        warm_up=0,
    )
    same = recall(torch.cat(ours), torch.cat(theirs))
    note = f"{len(queries):,} queries, median of {ROUNDS} parts; {same:.4f} of Faiss's labels found"
    per_query = sum(our_seconds) / len(queries) * 1e3
    yield speed_target.row(ratio(their_seconds, our_seconds), f"{note}; {per_query:.2f} ms a query")
    del vectors, exact, flat

    count = round(100_000 * scale)
    groups = normalize(clustering_tests()["nested_groups"](count + 1_000, DIM))
    vectors, queries = groups[:count], groups[count:]
    exact, hnsw = ExactSearch(), FaissSearch("hnsw")
    exact.build(vectors)
    build = seconds_of(lambda: hnsw.build(vectors))
    results: dict[str, Tensor] = {}

    def approximate() -> None:
        results["ours"] = hnsw.search(queries, K)[1]

    def exactly() -> None:
        results["theirs"] = exact.search(queries, K)[1]

    hnsw_ms, exact_ms = (
        statistics.median(times) / len(queries) * 1e3 for times in interleave(ROUNDS, approximate, exactly)
    )
    note = f"{count:,} vectors; {hnsw_ms:.2f} ms a query, exact {exact_ms:.2f} ms; built in {build:.0f} s"
    yield recall_target.row(recall(**results), note)


def recall(ours: Int64[Tensor, "query k"], theirs: Int64[Tensor, "query k"]) -> float:
    """Return the share of their labels that are among ours."""
    # A query's labels do not repeat, so that a label that stands twice in both rows together is a hit.
    both = torch.cat([ours, theirs], dim=1).sort(dim=1).values
    return float((both[:, 1:] == both[:, :-1]).sum() / theirs.numel())


if __name__ == "__main__":
    main(__doc__, TARGETS, rows)
