"""What a training run needs in memory, disk space and time: sums over its tables and over what a probe measured."""

import math
from typing import Literal, NamedTuple

from prime_xmc.data.corpus import LABELS
from prime_xmc.evaluation.metrics import TOP_K
from prime_xmc.index.search import gpu_blocks
from prime_xmc.planning.layout import Layout, Schedule
from prime_xmc.planning.sizes import Sizes

Place = Literal["host", "mapped", "device"]
PLACES: tuple[Place, ...] = ("host", "mapped", "device")

# Bytes per row of the integers that a part of the work holds at its peak: ids, their order, a sort's own copies.
_SORTED_PAIR = 48  # `fill_mean_centroids`
_PAIR_ON_HOST = 28  # `train_pairs`, where the pairs go to another device
_CLUSTERED_ROW = 48  # `balanced_clusters`
_QUERY_IDS = 56  # `ClusterBatchSampler`: the ids of all queries, and the order of an epoch
_PREDICTION = 3 * 12  # an id and a score: as they are ranked, in one array, and in the order of the queries

# Rows that are worked on at once, and bytes per entry of theirs: as stored, in float32, and results.
_CENTROID_BLOCK, _CENTROID_ENTRY = 2**15, 18
_CLUSTER_BLOCK, _CLUSTER_ENTRY = {"host": 2**13, "device": 2**18}, 14


class Memory(NamedTuple):
    """Bytes on host and device; all are on the host where the host is the device."""

    host: int = 0
    device: int = 0

    def above(self, other: "Memory") -> "Memory":
        """Return how much more this is than another, at least nothing."""
        return Memory(max(0, self.host - other.host), max(0, self.device - other.device))


class Measured(NamedTuple):
    """What a probe measured; all zero without one."""

    program: int = 0  # bytes of interpreter, libraries and Trainer on the host
    encoding: Memory = Memory()  # working memory of encoding texts without gradient
    step: Memory = Memory()  # working memory of a training step, without gradients and optimiser state
    labels_in_batch: int = 0
    step_seconds: float = 0.0
    encode_seconds: float = 0.0  # per text, without gradient
    cluster_seconds: float = 0.0  # per row and level of the tree of clusters
    add_seconds: float = 0.0  # per label that is added to the index
    search_seconds: float = 0.0  # per query, among `num_searched` labels
    num_searched: int = 1


class Item(NamedTuple):
    """Something in memory."""

    name: str
    place: Place  # pages of mapped files are given back when memory is short
    bytes_each: int
    number: int = 1
    unit: str = ""  # "label", "query", ...; empty where there is only one

    @property
    def nbytes(self) -> int:
        """Bytes of all units together."""
        return self.bytes_each * self.number


Phases = dict[str, list[Item]]


def memory_by_phase(sizes: Sizes, layout: Layout, schedule: Schedule, measured: Measured) -> Phases:
    """Return what is in the memory of one process during the phases that can hold a run's peak.

    Phases: "centroids", the first ones, from the pre-trained encoder; "clusters", of queries or labels; "step";
    "index", for validation and at the end; "test". Those that the run does not have are left out.
    """
    d, num_labels, num_queries = layout.dim, sizes.num_labels, sizes.num_queries
    num_free, num_trained = layout.num_free_vectors, layout.num_trained
    num_tokens = round(num_queries * sizes.tokens_per_query + num_labels * sizes.tokens_per_label)
    device: Place = "device" if layout.on_gpu else "host"
    places: dict[str, Place] = {"device": device, "host": "host", "mmap": "mapped"}
    bank = places[layout.placement]
    # malloc keeps what a step or an encoding needed for the next one
    working = max(measured.step.host, measured.encoding.host)
    clustered = [(num_labels, "label")] * (num_free > 0)
    clustered += [(num_queries - layout.num_validation, "query")] * (len(schedule.cluster_sizes) > 0)
    num_rows, row = max(clustered, default=(0, "row"))
    block, prediction = _CLUSTER_BLOCK[device], _PREDICTION * min(TOP_K, num_labels)
    # the searcher keeps what it searches until it is given something else: prototypes where it has no index of its own
    older = (layout.index_bytes or 4 * d) if schedule.num_indexes + schedule.num_minings > 1 else 0
    exported = layout.exported_index_bytes - layout.index_bytes  # beside that of the run
    mined = 4 * layout.num_mined if schedule.num_minings else 0
    searches_on_gpu = layout.on_gpu and bank == "device" and layout.searcher == "exact"
    num_scores = math.prod(gpu_blocks(num_labels)) if searches_on_gpu else 0
    sent = 6 * d if layout.on_gpu and bank == "device" else 0  # to Faiss on the host, or to the file of prototypes
    every = ("centroids", "clusters", "step", "index", "test")
    trained, indexed = every[1:], every[3:]
    first_encoded = indexed if layout.remembers_labels else ("centroids", *indexed)  # it goes into the memory otherwise
    items: list[tuple[tuple[str, ...], Item]] = [
        (every, Item("program and libraries", "host", measured.program)),
        (every, Item("prepared data", "mapped", _mapped_bytes(sizes))),
        (every, Item("parameters", device, 4, num_trained + layout.num_frozen, "parameter")),
        (every, Item("free vectors", device, 4 * d, num_free, "free vector")),
        (every, Item("centroids", bank, layout.centroid_bytes * d, num_labels, "label")),
        (every, Item("query memory", bank, 2 * d, num_queries, "query")),
        (every, Item("label memory", bank, 2 * d * layout.remembers_labels, num_labels, "label")),
        (every, Item("outputs of frozen layers", bank, layout.frozen_bytes * d, num_tokens, "token")),
        (every, Item("clusters of labels", device, 8, num_labels, "label")),
        (every, Item("inverse propensities", "host", 8, num_labels, "label")),
        (every, Item("query ids", "host", _QUERY_IDS, num_queries, "query")),
        (trained, Item("gradients", device, 4, num_trained, "parameter")),
        (trained, Item("optimiser state", device, 8, num_trained, "parameter")),
        (trained, Item("optimiser state of free vectors", device, 8 * d, num_free, "free vector")),
        (trained, Item("working memory", "host", working)),
        (("step",), Item("working memory", "device", measured.step.device)),
        (indexed, Item("working memory", "device", measured.encoding.device)),
        (first_encoded, Item("label embeddings", bank, 2 * d, num_labels, "label")),
        (("centroids",), Item("pairs, sorting", device, _SORTED_PAIR, sizes.num_pairs, "pair")),
        (("centroids",), Item("pairs", "host", _PAIR_ON_HOST if layout.on_gpu else 0, sizes.num_pairs, "pair")),
        (("centroids",), Item("block of rows", device, _CENTROID_ENTRY * d, min(_CENTROID_BLOCK, num_labels), "row")),
        (("clusters",), Item("rows to cluster", device, 2 * d + _CLUSTERED_ROW, num_rows, row)),
        (("clusters",), Item("block of rows", device, _CLUSTER_ENTRY * d, min(block, num_rows), "row")),
        (trained, Item("mined labels", "host", mined, num_queries, "query")),
        (("index",), Item("mined labels before", "host", mined * (schedule.num_minings > 1), num_queries, "query")),
        (indexed, Item("label prototypes", bank, 4 * d, num_labels, "label")),
        (indexed, Item("Faiss index", "host", layout.index_bytes, num_labels, "label")),
        (("index",), Item("Faiss index of the export", "host", exported, num_labels, "label")),
        (trained[:-1], Item("index before", "host" if layout.index_bytes else bank, older, num_labels, "label")),
        (indexed, Item("block of scores", "device", 4, num_scores, "score")),
        (("index",), Item("label vectors, from device", "host", sent, num_labels, "label")),
        (("test",), Item("predictions", "host", prediction, sizes.num_test_queries, "test query")),
    ]
    present = {"clusters": num_rows > 0, "test": layout.test}
    return {
        phase: [item for phases, item in items if phase in phases and item.nbytes]
        for phase in every
        if present.get(phase, True)
    }


def peak(phases: Phases, *places: Place) -> int:
    """Return the most bytes that a phase has in some places together."""
    return max(sum(item.nbytes for item in items if item.place in places) for items in phases.values())


def bytes_each(phases: Phases, unit: str) -> dict[str, int]:
    """Return the bytes of one label (or query, ...) in each phase, wherever they are."""
    return {name: sum(item.bytes_each for item in items if item.unit == unit) for name, items in phases.items()}


def disk_bytes(sizes: Sizes, layout: Layout, phases: Phases) -> dict[str, int]:
    """Return bytes on disk: what is kept for later runs, what a run leaves, and what it needs in between."""
    d, num_labels, num_queries = layout.dim, sizes.num_labels, sizes.num_queries
    prepared = sizes.prepared_bytes()
    free_vectors = 4 * d * layout.num_free_vectors
    model = 4 * (layout.num_trained + layout.num_frozen) + free_vectors
    model += (layout.centroid_bytes * d + 8) * num_labels  # centroids and the labels' clusters
    optimiser = 8 * layout.num_trained + 2 * free_vectors
    query_rows = 2 * d * num_queries + 8 * (num_queries - layout.num_validation)  # memory and clusters
    mined = 4 * layout.num_mined * num_queries
    checkpoint = model + optimiser + query_rows + 2 * d * layout.remembers_labels * num_labels + mined
    return {
        "prepared data": sum(prepared.values()),
        "cached embeddings": 2 * d * (num_labels + num_queries),
        "checkpoint": checkpoint,
        "checkpoint, the one before it": checkpoint,
        "checkpoint, the next one beside it": checkpoint,
        "export": model + (6 * d + layout.exported_index_bytes) * num_labels + prepared[LABELS],
        "predictions": 8 * min(TOP_K, num_labels) * sizes.num_test_queries if layout.test else 0,
        "banks in temporary files": peak(phases, "mapped") - _mapped_bytes(sizes),
    }


def seconds_by_part(
    sizes: Sizes, layout: Layout, schedule: Schedule, measured: Measured, num_processes: int
) -> dict[str, float]:
    """Return what the parts of a run take, from what was timed with one process's share of a batch.

    Encoding is in proportion to texts, clustering to rows and levels, exact search to queries and labels; search in a
    graph (hnsw) is taken to be in proportion to queries, and its construction to labels.

    Args:
        sizes: Sizes of the data.
        layout: Layout of tables and parameters.
        schedule: Schedule of the run.
        measured: Times that a probe took.
        num_processes: Processes that share the encoding.
    """
    num_queries = sizes.num_queries - layout.num_validation
    num_ranked = schedule.num_validations * layout.num_validation + (sizes.num_test_queries if layout.test else 0)
    encode = measured.encode_seconds / num_processes
    search = measured.search_seconds * (1 if layout.searcher == "hnsw" else sizes.num_labels / measured.num_searched)
    row_levels = sum(num_queries * math.log2(max(1, num_queries / size)) for size in schedule.cluster_sizes)
    row_levels += sizes.num_labels * math.log2(max(1, layout.num_free_vectors))
    seconds = {
        "embedding of all training texts, if not cached": encode * (num_queries + sizes.num_labels),
        "training steps": measured.step_seconds * schedule.num_steps,
        "clusters of labels and queries": measured.cluster_seconds * row_levels,
        "encoding and indexing labels": schedule.num_indexes * sizes.num_labels * (encode + measured.add_seconds),
        "ranking of validation and test queries": num_ranked * (encode + search),
    }
    if schedule.num_minings:
        each = sizes.num_labels * (encode + measured.add_seconds) + num_queries * search
        seconds["searches for mined labels"] = schedule.num_minings * each
    if schedule.encodes_queries:
        seconds["encoding queries for later stages"] = encode * num_queries
    return seconds


def _mapped_bytes(sizes: Sizes) -> int:
    return sum(size for name, size in sizes.prepared_bytes().items() if name != LABELS)
