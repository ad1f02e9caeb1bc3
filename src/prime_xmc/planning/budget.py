"""What a training run needs in memory, disk and time: sums over its tables, and over what a probe has measured."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from prime_xmc.data.corpus import LABELS
from prime_xmc.data.sampling import cluster_size_at
from prime_xmc.evaluation.metrics import TOP_K

Place = Literal["host", "mapped", "device"]
PLACES: tuple[Place, ...] = ("host", "mapped", "device")

# Bytes of the integers that a part of the work has for each row at its peak: ids, their order, a sort's own copies.
_SORTED_PAIR = 48  # `fill_mean_centroids`
_PAIR_ON_HOST = 28  # from which `train_pairs` makes them, where they go to another device
_CLUSTERED_ROW = 48  # `balanced_clusters`
_ORDERED_TEXT = 24  # `TextChunks`
_ORDERED_QUERY = 40  # `ClusterBatchSampler`
_PREDICTION = 12  # an id and a score
_COPIES_OF_PREDICTIONS = 3  # as found, one array of them, and in the order of the queries

# Rows that are worked on at once, and bytes of a number of theirs: as stored, in float32, and results.
_BLOCK_OF_CENTROIDS = (2**15, 18)
_BLOCK_OF_CLUSTERS = {"host": (2**13, 14), "device": (2**18, 14)}

# Of a label in the prepared data: keys and id, and a token's characters.
_LABEL_LINE = 35
_TOKEN_CHARACTERS = 4.5


class Sizes(NamedTuple):
    """How much data there is.

    Attributes:
        num_labels: L.
        num_queries: Training queries, those for validation included.
        num_test_queries: Test queries.
        labels_per_query: Mean.
        tokens_per_query: Mean, special tokens included.
        tokens_per_label: Mean, special tokens included.
        prepared: Bytes of each file of the prepared data set; empty where there is none yet.
    """

    num_labels: int
    num_queries: int
    num_test_queries: int
    labels_per_query: float
    tokens_per_query: float
    tokens_per_label: float
    prepared: Mapping[str, int] = {}

    @property
    def num_pairs(self) -> int:
        """(query, label) pairs of the training data."""
        return round(self.num_queries * self.labels_per_query)


class Layout(NamedTuple):
    """What the configuration says of tables and parameters.

    Attributes:
        dim: d.
        num_trained: Parameters with dense gradients.
        num_frozen: Parameters without gradient.
        num_free_vectors: F; 0 where prototypes have none.
        centroid_bytes: Of a number of a centroid.
        placement: Of the banks.
        on_gpu: Whether the device is not the host.
        searcher: "exact", "flat" or "hnsw".
        num_links: Neighbours of a label in the graph of hnsw.
        num_validation: Queries held out.
        test: Whether the run ends with the test split.
    """

    dim: int
    num_trained: int
    num_frozen: int
    num_free_vectors: int
    centroid_bytes: int
    placement: str
    on_gpu: bool
    searcher: str
    num_links: int
    num_validation: int
    test: bool

    @property
    def index_bytes(self) -> int:
        """Bytes of a label in the Faiss index; 0 for exact search, which has none.

        The graph of hnsw has 2 m neighbours of each label, m more of one label in m on each level above, and the
        label's highest level and the place of its neighbours.
        """
        if self.searcher == "exact":
            return 0
        m = self.num_links
        links = round(4 * (2 * m + m / (m - 1))) + 4 + 8 if self.searcher == "hnsw" else 0
        return 4 * self.dim + links


class Schedule(NamedTuple):
    """When things happen in a run.

    Attributes:
        steps_per_epoch: Batches of an epoch.
        num_steps: Of the whole run.
        cluster_sizes: Queries per cluster at each rebuild of the clusters.
        num_validations: In the whole run.
        num_indexes: How often all labels are encoded and indexed, for validation or at the end.
    """

    steps_per_epoch: int
    num_steps: int
    cluster_sizes: tuple[int, ...]
    num_validations: int
    num_indexes: int


class Memory(NamedTuple):
    """Bytes on host and device; all on the host where that is the device."""

    host: int = 0
    device: int = 0


class Seconds(NamedTuple):
    """What the parts of the work take on this machine.

    Attributes:
        step: A training step.
        encode: Encoding a text without gradient.
        cluster: Clustering a row by one level of the tree.
        add: Adding a label to the index.
        search: Searching `num_searched` labels for a query.
        num_searched: Labels.
    """

    step: float
    encode: float
    cluster: float
    add: float
    search: float
    num_searched: int


class Measured(NamedTuple):
    """What a probe found; zeros and no seconds without one.

    Attributes:
        program: Interpreter, libraries and Trainer.
        encoding: Working memory of encoding texts without gradient.
        step: Working memory of a training step, without gradients and optimiser state.
        held: What of it malloc has at most not given back after a step, on the host.
        seconds: What the work takes.
        labels_in_batch: Labels of a batch of the probe.
    """

    program: int = 0
    encoding: Memory = Memory()
    step: Memory = Memory()
    held: int = 0
    seconds: Seconds | None = None
    labels_in_batch: int = 0


class Item(NamedTuple):
    """Something in memory.

    Attributes:
        name: What it is.
        place: Where it is. Pages of mapped files are given back when memory is short.
        bytes_each: Bytes of one.
        number: How many there are.
        unit: Of what: "label", "query", ...; empty where there is but one.
    """

    name: str
    place: Place
    bytes_each: int
    number: int = 1
    unit: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return self.bytes_each * self.number


Phases = dict[str, list[Item]]


def make_schedule(
    num_queries: int,
    *,
    batch_size: int,
    max_epochs: int,
    max_steps: int,
    validate_every: int,
    first_cluster_epoch: int | None,
    every_n_epochs: int,
    initial_size: int,
    double_at: Sequence[int],
) -> Schedule:
    """Return when things happen.

    Args:
        num_queries: Queries of an epoch.
        batch_size: Queries of a batch, over all devices.
        max_epochs: -1: no limit.
        max_steps: -1: no limit.
        validate_every: Epochs between validations; 0: none, as without validation queries.
        first_cluster_epoch: See `RebuildClusters`, as the other three; None: no clusters.
        every_n_epochs: Epochs between rebuilds.
        initial_size: Queries per cluster at first.
        double_at: Epochs at which the size doubles.

    Raises:
        ValueError: If the run has no end.

    Example:
        >>> make_schedule(1000, batch_size=300, max_epochs=5, max_steps=-1, validate_every=2, first_cluster_epoch=2,
        ...     every_n_epochs=2, initial_size=8, double_at=[3])
        Schedule(steps_per_epoch=4, num_steps=20, cluster_sizes=(8, 16, 16), num_validations=2, num_indexes=3)
    """
    steps_per_epoch = -(-num_queries // batch_size)
    limits = [limit for limit in (max_steps, max_epochs * steps_per_epoch) if limit >= 0]
    if not limits:
        raise ValueError("the run has no end: give trainer.max_epochs or trainer.max_steps")
    num_steps = min(limits)
    num_complete, rest = divmod(num_steps, steps_per_epoch)
    num_validations = num_complete // validate_every if validate_every else 0
    ends_validated = num_validations > 0 and rest == 0 and num_complete % validate_every == 0
    cluster_sizes = []
    if first_cluster_epoch is not None:
        for epoch in range(first_cluster_epoch, num_complete + (rest > 0)):
            if (epoch - first_cluster_epoch) % every_n_epochs == 0 or epoch in double_at:
                size = cluster_size_at(
                    epoch, first_epoch=first_cluster_epoch, initial_size=initial_size, double_at=double_at
                )
                assert size is not None
                cluster_sizes.append(size)
    num_indexes = num_validations + (not ends_validated)
    return Schedule(steps_per_epoch, num_steps, tuple(cluster_sizes), num_validations, num_indexes)


def memory_by_phase(sizes: Sizes, layout: Layout, schedule: Schedule, measured: Measured) -> Phases:
    """Return what is in the memory of one process at the peak of each phase of a run.

    Phases: "start"; "embed", of all training texts by the pre-trained encoder; "centroids", their means; "label
    clusters", for the free vectors; "query clusters", for the batches; "step"; "index", for validation and at the end;
    "test". Those that the run does not have are left out.
    """
    d, num_labels, num_queries = layout.dim, sizes.num_labels, sizes.num_queries
    num_trained_queries = num_queries - layout.num_validation
    device: Place = "device" if layout.on_gpu else "host"
    bank = {"device": device, "host": "host", "mmap": "mapped"}[layout.placement]
    mapped = sum(size for name, size in prepared_bytes(sizes).items() if name != LABELS)
    always = [
        Item("program and libraries", "host", measured.program),
        Item("prepared data", "mapped", mapped),
        Item("parameters", device, 4, layout.num_trained + layout.num_frozen, "parameter"),
        Item("free vectors", device, 4 * d, layout.num_free_vectors, "free vector"),
        Item("centroids", bank, layout.centroid_bytes * d, num_labels, "label"),
        Item("query memory", bank, 2 * d, num_queries, "query"),
        Item("clusters of labels", device, 8, num_labels, "label"),
        Item("inverse propensities", "host", 8, num_labels, "label"),
        Item("query ids", "host", 16, num_queries, "query"),
    ]
    label_emb = Item("label embeddings", bank, 2 * d, num_labels, "label")
    prototypes = Item("label prototypes", bank, 4 * d, num_labels, "label")
    encoding = _work("encoding", measured.encoding, device)
    phases = {
        "start": [*always, Item("label frequencies, counting", "host", 8, sizes.num_pairs, "pair")],
        "embed": [
            *always,
            label_emb,
            *encoding,
            Item("order of texts", "host", _ORDERED_TEXT, max(num_trained_queries, num_labels), "text"),
        ],
        "centroids": [
            *always,
            label_emb,
            Item("pairs, sorting", device, _SORTED_PAIR, sizes.num_pairs, "pair"),
            Item("block of rows", device, _BLOCK_OF_CENTROIDS[1] * d, min(_BLOCK_OF_CENTROIDS[0], num_labels), "row"),
        ],
    }
    if layout.on_gpu:
        phases["centroids"].append(Item("pairs", "host", _PAIR_ON_HOST, sizes.num_pairs, "pair"))
    rows, row_bytes = _BLOCK_OF_CLUSTERS[device]
    if layout.num_free_vectors:
        phases["label clusters"] = [
            *always,
            label_emb,
            Item("order of rows", device, _CLUSTERED_ROW, num_labels, "label"),
            Item("block of rows", device, row_bytes * d, min(rows, num_labels), "row"),
        ]

    trained = [
        *always,
        Item("gradients", device, 4, layout.num_trained, "parameter"),
        Item("optimiser state", device, 8, layout.num_trained, "parameter"),
        Item("optimiser state of free vectors", device, 8 * d, layout.num_free_vectors, "free vector"),
        Item("order of queries", "host", _ORDERED_QUERY, num_trained_queries, "query"),
    ]
    held = Item("held by malloc", "host", measured.held)
    # exact search has no copy of its own; either kind keeps what it searched until it is given something else
    searched = (
        Item("Faiss index", "host", layout.index_bytes, num_labels, "label") if layout.index_bytes else prototypes
    )
    older = [searched._replace(name="index before")] if schedule.num_indexes > 1 else []
    if schedule.cluster_sizes:
        phases["query clusters"] = [
            *trained,
            held,
            *older,
            Item("query embeddings, copied", device, 2 * d, num_trained_queries, "query"),
            Item("order of rows", device, _CLUSTERED_ROW, num_trained_queries, "query"),
            Item("block of rows", device, row_bytes * d, min(rows, num_trained_queries), "row"),
        ]
    phases["step"] = [*trained, *older, *_work("step", measured.step, device)]
    # encoding takes what malloc holds before it asks for more
    more = [i._replace(bytes_each=max(0, i.bytes_each - measured.held)) if i.place == "host" else i for i in encoding]
    indexed = [*trained, held, *more, label_emb, prototypes, *([searched] if layout.index_bytes else [])]
    phases["index"] = [*indexed, *older]
    if layout.on_gpu:
        # of the index, which is built on the host, or of the file of prototypes
        sent = Item("label vectors, from device", "host", 6 * d, num_labels, "label")
        phases["index"] += [sent] if bank == "device" else []
    if layout.test:
        kept = _COPIES_OF_PREDICTIONS * _PREDICTION * min(TOP_K, num_labels)
        phases["test"] = [*indexed, Item("predictions", "host", kept, sizes.num_test_queries, "test query")]
    return {name: [item for item in items if item.nbytes] for name, items in phases.items()}


def _work(name: str, memory: Memory, device: Place) -> list[Item]:
    items = [Item(f"work: {name}", "host", memory.host)]
    return [*items, Item(f"work: {name}", "device", memory.device)] if device == "device" else items


def peak(phases: Phases, *places: Place) -> int:
    """Return the most bytes that a phase has in some places together."""
    return max(sum(item.nbytes for item in items if item.place in places) for items in phases.values())


def bytes_each(phases: Phases, unit: str) -> dict[str, int]:
    """Return the bytes of one label (or query, ...) in each phase, wherever they are."""
    return {name: sum(item.bytes_each for item in items if item.unit == unit) for name, items in phases.items()}


def disk_bytes(sizes: Sizes, layout: Layout, phases: Phases) -> dict[str, int]:
    """Return bytes on disk: what is kept for later runs, what a run leaves, and what it needs in between."""
    d, num_labels, num_queries = layout.dim, sizes.num_labels, sizes.num_queries
    prepared = prepared_bytes(sizes)
    parameters = 4 * (layout.num_trained + layout.num_frozen)
    free_vectors = 4 * d * layout.num_free_vectors
    centroids = (layout.centroid_bytes * d + 8) * num_labels  # and the labels' clusters
    optimiser = 8 * layout.num_trained + 2 * free_vectors
    query_rows = 2 * d * num_queries + 8 * (num_queries - layout.num_validation)  # memory and clusters
    checkpoint = parameters + free_vectors + centroids + optimiser + query_rows
    label_rows = (6 * d + layout.index_bytes) * num_labels + prepared[LABELS]
    mapped = peak(phases, "mapped") - sum(size for name, size in prepared.items() if name != LABELS)
    return {
        "prepared data": sum(prepared.values()),
        "cached embeddings": 2 * d * (num_labels + num_queries),
        "checkpoint": checkpoint,
        "checkpoint, the next one beside it": checkpoint,
        "export": parameters + free_vectors + centroids + label_rows,
        "predictions": 8 * min(TOP_K, num_labels) * sizes.num_test_queries if layout.test else 0,
        "banks in temporary files": mapped,
    }


def prepared_bytes(sizes: Sizes) -> dict[str, int]:
    """Return the bytes of a prepared data set by file, estimated where there is none."""
    if sizes.prepared:
        return dict(sizes.prepared)
    tokens = {
        "label": sizes.num_labels * sizes.tokens_per_label,
        "train": sizes.num_queries * sizes.tokens_per_query,
        "test": sizes.num_test_queries * sizes.tokens_per_query,
    }
    num_queries = sizes.num_queries + sizes.num_test_queries
    return {
        "tokens": round(2 * sum(tokens.values())),  # of a vocabulary of up to 65,536
        "positives": round(4 * num_queries * sizes.labels_per_query),
        "offsets": 8 * (sizes.num_labels + 3 * num_queries),  # of tokens, and of a query's positives and filter
        LABELS: round(_LABEL_LINE * sizes.num_labels + _TOKEN_CHARACTERS * tokens["label"]),
    }


def seconds_by_part(
    sizes: Sizes, layout: Layout, schedule: Schedule, each: Seconds, num_processes: int
) -> dict[str, float]:
    """Return what the parts of a run take, from what was timed.

    Encoding is in proportion to texts, clustering to rows and levels, exact search to queries and labels; search in a
    graph (hnsw) is taken to be in proportion to queries, and its construction to labels.

    Args:
        sizes: Of the data.
        layout: Of tables and parameters.
        schedule: Of the run.
        each: What was timed, a step with one process's share of a batch.
        num_processes: That share out the encoding.
    """
    num_queries = sizes.num_queries - layout.num_validation
    num_ranked = schedule.num_validations * layout.num_validation + (sizes.num_test_queries if layout.test else 0)
    encode = each.encode / num_processes
    search = each.search * (1 if layout.searcher == "hnsw" else sizes.num_labels / each.num_searched)
    row_levels = sum(num_queries * math.log2(max(1, num_queries / size)) for size in schedule.cluster_sizes)
    if layout.num_free_vectors:
        row_levels += sizes.num_labels * math.log2(layout.num_free_vectors)
    return {
        "embedding of all training texts, if not cached": encode * (num_queries + sizes.num_labels),
        "training steps": each.step * schedule.num_steps,
        "clusters of labels and queries": each.cluster * row_levels,
        "encoding and indexing labels": schedule.num_indexes * sizes.num_labels * (encode + each.add),
        "ranking of validation and test queries": num_ranked * (encode + search),
    }
