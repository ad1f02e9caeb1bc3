"""Label prototypes: the Label Prototype Network over label text, running centroids and shared free vectors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from prime_xmc.model.banks import RowBank

Source = Literal["text", "centroid", "free_vector"]
Combine = Literal["network", "sum"]
_ROW_MULTIPLE = 256
SOURCES: tuple[Source, ...] = ("text", "centroid", "free_vector")


class LabelPrototypeNetwork(nn.Module):
    """g_phi: one post-norm transformer layer over each label's sources, taken as a short sequence and mean-pooled.

    Args:
        dim: Size d of embeddings.
        num_heads: Attention heads.
        feedforward: Inner size of the feed-forward part.
        dropout: Dropout during training, in [0, 1).

    Source: section 3.2; sizes from Appendix H.
    """

    def __init__(self, dim: int, *, num_heads: int = 1, feedforward: int = 1024, dropout: float = 0.1):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            dim, num_heads, feedforward, dropout, activation="gelu", batch_first=True, norm_first=False
        )

    def forward(self, sources: Float[Tensor, "label source d"]) -> Float[Tensor, "label d"]:
        """Return L2-normalised prototypes, float32."""
        return F.normalize(self.layer(sources).float().mean(dim=1), dim=1)


class Prototypes(nn.Module):
    """z_l of every label: the network, the centroid bank and the free vectors.

    Args:
        num_labels: Number L of labels.
        dim: Size d of embeddings.
        num_free_vectors: Number F of free vectors, at most L. Labels of a cluster share one.
        sources: Sources of a prototype, among text, centroid and free_vector (Fig. 3 leaves some out). With the text
            only there is no network and z_l = h_l, as in a plain siamese encoder.
        combine: What makes a prototype of its sources: the `LabelPrototypeNetwork`, or their normalised "sum" (DEXA).
        num_private: Number of the commonest labels that have a free vector of their own, besides the F shared ones
            (DEXA).
        more_sources: Further sources by name: modules that map label ids [n] to vectors [n, d], or makers of such
            modules, which are given `num_labels` and `dim`. Their parameters are trained and saved with the others.
        momentum: Momentum alpha of the running centroids, in [0, 1).
        centroid_dtype: Dtype of the centroids, "float32" or "float16" (half the memory; steps below 1e-3 of an entry
            vanish).
        centroid_update: Step of a centroid. "mean": towards the mean of its label's queries in the batch. "one":
            towards one of them. "frozen": none, as in the public code.
        free_vector_std: Standard deviation of the initial free vectors' entries, in units of 1 / sqrt(d).
        free_vector_start: "random", by that deviation, or "text": before training, `InitialisePrototypes` sets each to
            the mean text embedding of its labels (ViXML).
        num_heads: Attention heads of the `LabelPrototypeNetwork`.
        feedforward: Inner size of its feed-forward part.
        dropout: Its dropout during training.
        make_bank: Maker of the table of centroids.

    Raises:
        ValueError: If a setting is out of range.

    Source: section 3.2, Eq. 4. The sum and private vectors are those of Dahiya et al. 2023b (DEXA), whose public code
        adds to the text embedding before it is normalised; here it is a unit vector.
    """

    cluster_of_label: Tensor

    def __init__(
        self,
        num_labels: int,
        dim: int,
        num_free_vectors: int,
        *,
        sources: Sequence[Source] = SOURCES,
        combine: Combine = "network",
        num_private: int = 0,
        more_sources: Mapping[str, nn.Module | Callable[..., nn.Module]] | None = None,
        momentum: float = 0.95,
        centroid_dtype: str = "float32",
        centroid_update: Literal["mean", "one", "frozen"] = "mean",
        free_vector_std: float = 0.5,
        free_vector_start: Literal["random", "text"] = "random",
        num_heads: int = 1,
        feedforward: int = 1024,
        dropout: float = 0.1,
        make_bank: Callable[..., RowBank] = RowBank,
    ):
        super().__init__()
        more_sources = more_sources or {}
        if not (sources or more_sources) or not set(sources) <= set(SOURCES):
            raise ValueError(f"expected model.sources to be some of {list(SOURCES)}, got {list(sources)}")
        if taken := set(SOURCES) & set(more_sources):
            raise ValueError(f"expected other names than {list(SOURCES)} in model.more_sources, got {sorted(taken)}")
        if combine not in get_args(Combine):
            raise ValueError(f"expected model.combine network or sum, got {combine!r}")
        if not 0 <= num_private <= num_labels:
            raise ValueError(f"expected model.num_private between 0 and the {num_labels} labels, got {num_private}")
        if free_vector_start not in ("random", "text"):
            raise ValueError(f"expected model.free_vector_start random or text, got {free_vector_start!r}")
        if not 1 <= num_free_vectors <= num_labels:
            raise ValueError(
                f"expected model.num_free_vectors between 1 and the {num_labels} labels, got {num_free_vectors}"
            )
        if combine == "network" and (num_heads < 1 or dim % num_heads):
            raise ValueError(f"expected model.num_heads to divide the {dim} dimensions of embeddings, got {num_heads}")
        if not 0 <= momentum < 1:
            raise ValueError(f"expected model.momentum in [0, 1), got {momentum}")
        if centroid_update not in ("mean", "one", "frozen"):
            raise ValueError(f"expected model.centroid_update mean, one or frozen, got {centroid_update!r}")
        self.sources = (*(source for source in SOURCES if source in sources), *more_sources)
        self.combine = combine
        self.network = (
            LabelPrototypeNetwork(dim, num_heads=num_heads, feedforward=feedforward, dropout=dropout)
            if self.sources != ("text",) and combine == "network"
            else None
        )
        self.more_sources = nn.ModuleDict()
        for name, source in more_sources.items():
            made = source if isinstance(source, nn.Module) else source(num_labels=num_labels, dim=dim)
            if not isinstance(made, nn.Module):
                raise ValueError(
                    f"expected model.more_sources.{name} to be a torch.nn.Module, got a {type(made).__name__}"
                )
            if any(getattr(module, "sparse", False) is True for module in made.modules()):
                raise ValueError(
                    f"model.more_sources.{name} has an embedding with sparse=True, whose gradients the optimiser of "
                    "the other parameters does not take: give it sparse=False"
                )
            self.more_sources[name] = made
        self.momentum = momentum
        self.centroid_update = centroid_update
        self.centroids = make_bank(num_labels, dim, dtype=centroid_dtype)
        self.register_buffer("cluster_of_label", torch.zeros(num_labels, dtype=torch.int64))
        self.num_shared, self.num_private = num_free_vectors, num_private
        self.free_vector_start = free_vector_start
        # made only where they are used, since a parameter without gradient would still be decayed and saved
        self.free_vectors = (
            nn.Parameter(torch.randn(num_free_vectors + num_private, dim) * free_vector_std * dim**-0.5)
            if "free_vector" in self.sources
            else None
        )

    @property
    def num_labels(self) -> int:
        """L."""
        return len(self.centroids)

    def forward(
        self,
        label_ids: Int64[Tensor, " row"],
        label_emb: Float[Tensor, "row d"],
        without: Int64[Tensor, " some"] | None = None,
    ) -> Float[Tensor, "row d"]:
        """Return the prototypes of some labels, L2-normalised.

        Args:
            label_ids: Ids of the labels.
            label_emb: Text embeddings h_l of these labels.
            without: Rows of labels that are shown without a centroid, see `without_centroid`; None: of none.
        """
        centroids = without_centroid(self.centroids.take(label_ids).float(), label_emb, without)
        return self._combine(label_ids, label_emb, centroids)

    def from_sources(
        self, sources: Sequence[str], label_ids: Int64[Tensor, " row"], label_emb: Float[Tensor, "row d"]
    ) -> Float[Tensor, "row d"]:
        """Return what becomes of some of the sources alone, the others left out of the sequence or the sum.

        Training always shows it all of them, so this is a way to ask what they carry rather than a better prototype.

        Args:
            sources: Some of the module's own sources, at least one.
            label_ids: Ids of the labels.
            label_emb: Text embeddings h_l of these labels.
        """
        return self._combine(label_ids, label_emb, self.centroids.take(label_ids).float(), sources)

    def leave_one_out(
        self,
        label_ids: Int64[Tensor, " pair"],
        label_emb: Float[Tensor, "pair d"],
        query_emb: Float[Tensor, "pair d"],
        num_queries: Int64[Tensor, " pair"],
    ) -> Float[Tensor, "pair d"]:
        """Return prototypes of labels, each without one of the label's own queries in the centroid, L2-normalised.

        A label with few queries shows a query mostly that query itself, which a query to come will not find there.

        Args:
            label_ids: Ids of the labels.
            label_emb: Text embeddings h_l of these labels.
            query_emb: Embedding of the query that is left out, as it was when it last moved the centroid.
            num_queries: Number of training queries of the label, at least 2.
        """
        rest = leave_out(self.centroids.take(label_ids).float(), query_emb.float(), num_queries)
        return self._combine(label_ids, label_emb, rest)

    def with_left_out(
        self,
        label_ids: Int64[Tensor, " row"],
        label_emb: Float[Tensor, "row d"],
        places: Int64[Tensor, " pair"],
        query_emb: Float[Tensor, "pair d"],
        num_queries: Int64[Tensor, " pair"],
        without: Int64[Tensor, " some"] | None = None,
    ) -> tuple[Float[Tensor, "row d"], Float[Tensor, "pair d"]]:
        """Return what `forward` and `leave_one_out` do, on a GPU with half the launches, since these take the time.

        Args:
            label_ids: Ids of the labels.
            label_emb: Text embeddings h_l of these labels.
            places: Place among these of the label in each pair.
            query_emb: Embedding of the query that is left out, likewise as it was.
            num_queries: Number of training queries of the label in each pair, at least 2.
            without: Rows of labels that are shown without a centroid, see `forward`; none of them is in a pair.
        """
        if label_ids.device.type == "cpu":  # in turn: dropout draws other numbers for both at once
            own = self.leave_one_out(label_ids[places], label_emb[places], query_emb, num_queries)
            return self(label_ids, label_emb, without), own
        return self._at_once(label_ids, label_emb, places, query_emb, num_queries, without)

    def _at_once(
        self,
        label_ids: Int64[Tensor, " row"],
        label_emb: Float[Tensor, "row d"],
        places: Int64[Tensor, " pair"],
        query_emb: Float[Tensor, "pair d"],
        num_queries: Int64[Tensor, " pair"],
        without: Int64[Tensor, " some"] | None = None,
    ) -> tuple[Float[Tensor, "row d"], Float[Tensor, "pair d"]]:
        centroids = without_centroid(self.centroids.take(label_ids).float(), label_emb, without)
        rest = leave_out(centroids[places], query_emb.float(), num_queries)
        every = torch.cat([torch.arange(len(label_ids), device=places.device), places])
        # rows that nobody wants, since a GPU's libraries choose their kernels anew for each new number of rows
        missing = -len(every) % _ROW_MULTIPLE
        every, all_centroids = F.pad(every, (0, missing)), F.pad(torch.cat([centroids, rest]), (0, 0, 0, missing))
        both = self._combine(label_ids[every], label_emb[every], all_centroids)
        of_labels, of_pairs, _ = both.split([len(label_ids), len(places), missing])
        return of_labels, of_pairs

    def _combine(
        self,
        label_ids: Int64[Tensor, " row"],
        label_emb: Float[Tensor, "row d"],
        centroids: Float[Tensor, "row d"],
        sources: Sequence[str] | None = None,
    ) -> Float[Tensor, "row d"]:
        if self.sources == ("text",):
            return label_emb.float()
        parts = []
        for source in self.sources if sources is None else sources:
            if source == "text":
                parts.append(label_emb)
            elif source == "centroid":
                parts.append(centroids)
            elif source in self.more_sources:
                vectors = self.more_sources[source](label_ids)
                if vectors.shape != label_emb.shape:
                    raise ValueError(
                        f"model.more_sources.{source} returned {tuple(vectors.shape)} for {len(label_ids)} labels; "
                        f"expected {tuple(label_emb.shape)}, a vector of dim numbers for each"
                    )
                parts.append(vectors.to(label_emb.dtype))
            else:
                assert self.free_vectors is not None
                # sparse, since a dense gradient would have all F rows
                parts.append(F.embedding(self.cluster_of_label[label_ids], self.free_vectors, sparse=True))
        if self.network is None:
            return F.normalize(torch.stack(parts).float().sum(dim=0), dim=1)
        return self.network(torch.stack(parts, dim=1))

    def labels_that_share(self, frequency: Int64[Tensor, " label"]) -> Int64[Tensor, " sharing"]:
        """Return the ids of the labels without a free vector of their own, in ascending order.

        The `num_private` commonest labels have one; labels of equal frequency are ranked by their ids.

        Args:
            frequency: Number of training queries of every label.
        """
        return self._by_frequency(frequency)[1].sort().values

    def _by_frequency(self, frequency: Int64[Tensor, " label"]) -> tuple[Tensor, Tensor]:
        """Return the ids of the labels with a free vector of their own, the commonest first, and of the others."""
        ids = frequency.argsort(descending=True, stable=True)
        return ids[: self.num_private], ids[self.num_private :]

    @torch.no_grad()
    def share_free_vectors(
        self,
        clusters: Int64[Tensor, " sharing"],
        frequency: Int64[Tensor, " label"],
        label_emb: Callable[[Int64[Tensor, " row"]], Tensor],
    ) -> None:
        """Say which label has which free vector, and give these their start, if it is the text.

        Args:
            clusters: Cluster of each of `labels_that_share`, below the number of shared free vectors.
            frequency: Number of training queries of every label.
            label_emb: Function that returns the text embeddings of some labels.
        """
        assert self.free_vectors is not None
        device = self.cluster_of_label.device
        commonest, others = self._by_frequency(frequency.to(device))
        self.cluster_of_label[commonest] = self.num_shared + torch.arange(self.num_private, device=device)
        self.cluster_of_label[others.sort().values] = clusters.to(device)
        if self.free_vector_start == "text":
            sums = torch.zeros_like(self.free_vectors)
            for ids in torch.arange(self.num_labels, device=sums.device).split(2**15):
                sums.index_add_(0, self.cluster_of_label[ids], label_emb(ids).to(sums))
            counts = self.cluster_of_label.bincount(minlength=len(sums))[:, None]
            self.free_vectors.copy_(torch.where(counts > 0, sums / counts.clamp(min=1), self.free_vectors))

    @torch.no_grad()
    def update_centroids(
        self,
        query_emb: Float[Tensor, "query d"],
        pair_rows: Int64[Tensor, " pair"],
        pair_places: Int64[Tensor, " pair"],
        label_ids: Int64[Tensor, " label"],
    ) -> Float[Tensor, ""]:
        """Move the centroids of a batch's positives towards its queries: c_p <- alpha c_p + (1 - alpha) h_q.

        A label makes one step, towards the mean of its queries or the first of them, whatever their order.

        Args:
            query_emb: Query embeddings h_q of the batch.
            pair_rows: Row of the query in each (query, positive label) pair.
            pair_places: Place of the label among `label_ids` in each pair.
            label_ids: Ids of the labels, each once; all of them have a pair.

        Returns:
            Mean length of the steps; 0 if there is none.

        Source: Eq. 4.
        """
        if self.centroid_update == "frozen" or len(label_ids) == 0:
            return query_emb.new_zeros(())
        if self.centroid_update == "mean":
            target = query_emb.new_zeros(len(label_ids), query_emb.shape[1])
            target.index_add_(0, pair_places, query_emb[pair_rows])
            # not bincount, which makes the host wait for a GPU
            ones = query_emb.new_ones(len(pair_places))
            target /= query_emb.new_zeros(len(label_ids)).index_add_(0, pair_places, ones)[:, None]
        else:
            first = torch.full_like(label_ids, len(query_emb)).scatter_reduce(0, pair_places, pair_rows, "amin")
            target = query_emb[first]
        old = self.centroids.take(label_ids).float()  # rows of its own, like the target: both are changed in place
        step = target.float().sub_(old).mul_(1 - self.momentum)
        self.centroids.put(label_ids, old.add_(step))
        return step.norm(dim=1).mean()


@torch.no_grad()
def fill_mean_centroids(
    centroids: RowBank,
    queries: RowBank,
    labels: RowBank,
    pair_queries: Int64[Tensor, " pair"],
    pair_labels: Int64[Tensor, " pair"],
    *,
    block: int = 2**15,
) -> None:
    """Set each label's centroid to the mean embedding of its queries, or to its text embedding if it has none.

    Memory beyond the banks is a block of rows and a few integers per pair.

    Args:
        centroids: Bank to fill.
        queries: Query embeddings h_q.
        labels: Label embeddings h_l.
        pair_queries: Row of `queries` in each (query, label) pair.
        pair_labels: Label id in each pair.
        block: Rows that are in memory at once.

    Source: section 3.2 and Appendix H, as initial running centroids and as exact centroids for inference.
    """
    order = pair_labels.argsort(stable=True)
    pair_queries, pair_labels = pair_queries[order], pair_labels[order]  # a block's pairs now stand together
    for ids in torch.arange(len(labels), device=pair_labels.device).split(block):
        first, last = torch.searchsorted(pair_labels, torch.stack([ids[0], ids[-1] + 1])).tolist()
        place = pair_labels[first:last] - ids[0]
        text = labels.take(ids).float()
        sums = torch.zeros_like(text)
        for rows, places in zip(pair_queries[first:last].split(block), place.split(block), strict=True):
            sums.index_add_(0, places, queries.take(rows).float())
        counts = place.bincount(minlength=len(ids))[:, None]
        centroids.put(ids, torch.where(counts > 0, sums / counts.clamp(min=1), text))


def without_centroid(
    centroids: Float[Tensor, "row d"], label_emb: Float[Tensor, "row d"], rows: Int64[Tensor, " some"] | None
) -> Float[Tensor, "row d"]:
    """Return centroids in which some labels have what labels without queries have, the embedding of their text.

    Args:
        centroids: Centroids c_l.
        label_emb: Text embeddings h_l of the same labels.
        rows: Labels to be shown without a centroid; None: none.
    """
    return centroids if rows is None else centroids.index_put((rows,), label_emb[rows].to(centroids.dtype))


def leave_out(
    centroid: Float[Tensor, "pair d"], query_emb: Float[Tensor, "pair d"], num_queries: Int64[Tensor, " pair"]
) -> Float[Tensor, "pair d"]:
    """Return the mean of all queries of a label but one, given the mean of all, scaled to the length of that.

    (n c - h) / (n - 1)

    Running centroids are means only nearly; by the scaling, no label's gets longer than those of other labels.

    Args:
        centroid: Mean c of the embeddings of a label's queries.
        query_emb: Embedding h that is left out.
        num_queries: Number n of the queries, at least 2.
    """
    count = num_queries[:, None].to(centroid.dtype)
    rest = (count * centroid - query_emb) / (count - 1)
    return F.normalize(rest, dim=1) * centroid.norm(dim=1, keepdim=True)
