"""Prototypes of labels that came after training: from their text, a few queries, and what training has left."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize, pad

from prime_xmc.model.prototypes import Prototypes

_BLOCK = 2**12  # labels whose similarities to all clusters are held at once


def nearest_clusters(
    new_emb: Float[Tensor, "new d"],
    label_emb: Float[Tensor, "label d"],
    cluster_of_label: Int64[Tensor, " label"],
    num_clusters: int,
) -> Int64[Tensor, " new"]:
    """Return, for new labels, the cluster whose labels' texts are most similar on average; its free vector is theirs.

    Args:
        new_emb: Text embeddings of the new labels.
        label_emb: Text embeddings of the labels of the training, by the same encoder.
        cluster_of_label: Cluster of each of these.
        num_clusters: Number of clusters; one without a label is nobody's. Labels above them have a free vector of their
            own.

    Raises:
        ValueError: If all labels have a free vector of their own.
    """
    shares = cluster_of_label < num_clusters
    if not shares.any():
        raise ValueError(
            "every label of this model has a free vector of its own (model.num_private), and there is none that a new "
            "label could share: train again with it"
        )
    if num_clusters == 1:
        return cluster_of_label.new_zeros(len(new_emb))
    label_emb, cluster_of_label = label_emb[shares], cluster_of_label[shares]
    sums = torch.zeros(num_clusters, label_emb.shape[1]).index_add(0, cluster_of_label, normalize(label_emb.float()))
    means = normalize(sums)
    is_empty = torch.bincount(cluster_of_label, minlength=num_clusters) == 0
    blocks = [(block @ means.T).masked_fill(is_empty, -2).argmax(dim=1) for block in new_emb.float().split(_BLOCK)]
    return torch.cat([cluster_of_label[:0], *blocks])


def check_sources(settings: Mapping[str, Any]) -> None:
    """Refuse to make prototypes from sources that are modules of somebody's own, which no model folder holds.

    Args:
        settings: Description of the prototypes in an exported model.

    Raises:
        ValueError: If there are such sources.
    """
    if names := settings.get("more_sources"):
        raise ValueError(
            f"the prototypes of this model were made from {', '.join(names)} too (model.more_sources), by code that is "
            "not in its folder: they can neither be made again for other labels nor be explained by their sources"
        )


@torch.no_grad()
def combine(
    settings: Mapping[str, Any],
    network: Mapping[str, Tensor],
    clusters: Int64[Tensor, " label"],
    centroids: Float[Tensor, "label d"],
    label_emb: Float[Tensor, "label d"],
) -> Float[Tensor, "label d"]:
    """Return the prototypes that a trained network makes of labels, L2-normalised, float32.

    Args:
        settings: Arguments of `Prototypes`, but for the number of labels.
        network: Its state.
        clusters: Cluster of each label.
        centroids: Centroid of each label.
        label_emb: Text embedding of each label.

    Raises:
        ValueError: If the prototypes had sources that are not in an exported model.
    """
    check_sources(settings)
    num_labels = len(label_emb)
    # a module has at least as many labels as free vectors
    padded = max(num_labels, settings["num_free_vectors"], settings.get("num_private", 0))
    known = {name: value for name, value in settings.items() if name != "more_sources"}
    prototypes = Prototypes(**known | {"num_labels": padded}).eval()
    prototypes.load_state_dict(dict(network) | {"cluster_of_label": pad(clusters, (0, padded - num_labels))})
    ids = torch.arange(num_labels)
    prototypes.centroids.put(ids, centroids)
    blocks = zip(ids.split(_BLOCK), label_emb.float().split(_BLOCK), strict=True)
    return torch.cat([label_emb.float()[:0], *(prototypes(some_ids, some_emb) for some_ids, some_emb in blocks)])


def carry_over(
    vectors: Float[Tensor, "label d"],
    trained: Float[Tensor, "label d"],
    new_vectors: Float[Tensor, "new d"],
    *,
    ridge: float = 1.0,
) -> Float[Tensor, "new d"]:
    """Return what training would have made of new vectors, as far as that is linear: unit vectors, float32.

    A ridge regression, with an intercept, from the vectors of labels to what was trained on them. New labels would
    otherwise have scores of another height than those that training has pushed away from queries of others.

    Args:
        vectors: Vectors of labels before.
        trained: Vectors of the same labels after.
        new_vectors: Vectors of new labels.
        ridge: Weight of the squared coefficients, in units of a label's squared error.
    """
    rows, new_rows = (pad(each.double(), (0, 1), value=1.0) for each in (vectors, new_vectors))
    gram = rows.T @ rows + ridge * torch.eye(rows.shape[1], dtype=rows.dtype)
    return normalize(new_rows @ torch.linalg.solve(gram, rows.T @ trained.double())).float()
