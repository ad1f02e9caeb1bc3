"""Balanced hierarchical 2-means."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize, pad

from prime_xmc.index.full_precision import full_float32


def balanced_clusters(
    embeddings: Float[Tensor, "n d"],
    num_clusters: int,
    *,
    seed: int,
    num_starts: int = 2,
    max_iterations: int = 12,
    tolerance: float = 1e-4,
    on_progress: Callable[[float], None] = lambda done: None,
) -> Int64[Tensor, " n"]:
    """Cluster rows by cosine similarity into clusters whose sizes differ by at most 1.

    Nodes are split in two until each holds one cluster. A split puts a fixed number of rows on each side and maximises
    the sum over rows of the cosine similarity to the centroid of their side. Given two centroids, the best sides are
    found by ranking the rows by the difference of their similarities and cutting the ranking at that number. All nodes
    of a level are processed together, in blocks that fit the processor's cache. Nodes larger than a block find their
    centroids on an even sample of their rows.

    The result depends only on the arguments: neither on torch's global generators nor, on the CPUs that were tried, on
    the number of threads. It may differ between devices and kinds of processors, whose arithmetic rounds differently.
    Beyond `embeddings`, memory is a block of rows and a few integers per row.

    Args:
        embeddings: Rows of any norm and floating type, on any device. Rows of zeros are similar to nothing and fill up
            clusters.
        num_clusters: Number of clusters from 1 to n, not necessarily a power of two.
        seed: Seed of the first centroids.
        num_starts: Pairs of first centroids that are tried per split. A single pair sometimes ends with two groups of
            equal size that are both cut in half.
        max_iterations: Most iterations of 2-means per split.
        tolerance: Relative growth of the objective in an iteration below which a block of nodes is finished.
        on_progress: Callback that is often called with the fraction of the work done, and with 1.0 at the end.

    Returns:
        Cluster id in [0, num_clusters) of each row. Clusters with close ids are close in the tree.

    Raises:
        ValueError: If num_clusters is not in [1, n].

    Source: paper, section 3.2; NGAME, Dahiya et al. 2023a.
    """
    n = len(embeddings)
    if not 1 <= num_clusters <= n:
        raise ValueError(f"num_clusters must be from 1 to the number of rows, {n}, got {num_clusters}")
    device = embeddings.device
    block = 2**13 if device.type == "cpu" else 2**18
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=generator).to(device)  # a node is an interval of it
    num_levels = (num_clusters - 1).bit_length()
    for level in range(num_levels):
        bounds = _bounds(n, num_clusters, level + 1)
        start, size, num_left = bounds[:-1:2], bounds[2::2] - bounds[:-1:2], bounds[1::2] - bounds[:-1:2]
        first = torch.rand(len(start), num_starts, dtype=torch.float64, generator=generator)
        first = (first * size[:, None]).long()
        done = 0
        # The nodes of a level have few different shapes: blocks of equal ones need no padding.
        shapes, shape_of_node = torch.stack([size, num_left]).unique(dim=1, return_inverse=True)
        for shape, (node_size, node_left) in enumerate(shapes.T.tolist()):
            if node_left in (0, node_size):  # one cluster already
                continue
            for nodes in (shape_of_node == shape).nonzero()[:, 0].split(max(1, block // node_size)):
                places = (start[nodes, None] + torch.arange(node_size)).to(device)  # [nodes, size]
                rows = order[places]
                with full_float32(device):
                    scores = _split_scores(
                        embeddings, rows, node_left, first[nodes].to(device), block, max_iterations, tolerance
                    )
                order[places] = rows.gather(1, scores.argsort(dim=1, descending=True, stable=True))
                done += rows.numel()
                on_progress((level + done / n) / num_levels)
    clusters = torch.empty_like(order)
    sizes = _bounds(n, num_clusters, num_levels).diff()
    sizes = sizes[sizes > 0]  # the deepest level has room for a power of two of clusters
    clusters[order] = torch.arange(num_clusters).repeat_interleave(sizes).to(device)
    on_progress(1.0)
    return clusters


def _bounds(n: int, num_clusters: int, level: int) -> Int64[Tensor, " bounds"]:
    """Return the bounds of a level's 2^level nodes in the order of rows.

    Clusters are divided evenly among nodes, then rows among clusters, both rounded down. Nodes then differ by at most
    one cluster, clusters by at most one row, and every bound of a level is also one of the next level.
    """
    clusters_before = torch.arange(2**level + 1) * num_clusters // 2**level
    return clusters_before * n // num_clusters


def _unit_rows(embeddings: Float[Tensor, "n d"], rows: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape d"]:
    return normalize(embeddings[rows].float(), dim=-1)


def _split_scores(
    embeddings: Float[Tensor, "n d"],
    rows: Int64[Tensor, "node size"],
    num_left: int,
    first: Int64[Tensor, "node start"],
    block: int,
    max_iterations: int,
    tolerance: float,
) -> Float[Tensor, "node size"]:
    """Return scores of each node's rows; the `num_left` rows with the highest scores are its left side."""
    size = rows.shape[1]
    if size <= block:
        scores, _ = _two_means(_unit_rows(embeddings, rows), num_left, first, max_iterations, tolerance)
        return scores
    # One large node. Its rows are sorted by the score of the split that made it, so that even steps sample it well.
    sample = _unit_rows(embeddings, rows[:, torch.arange(block, device=rows.device) * size // block])
    left_of_sample = min(max(round(num_left / size * block), 1), block - 1)
    _, direction = _two_means(sample, left_of_sample, first * block // size, max_iterations, tolerance)
    parts = (_Rows(_unit_rows(embeddings, part[None])) for part in rows[0].split(block))
    return torch.cat([part.dot(direction[:, None])[0] for part in parts], dim=1)


def _two_means(
    x: Float[Tensor, "node size d"],
    num_left: int,
    first: Int64[Tensor, "node start"],
    max_iterations: int,
    tolerance: float,
) -> tuple[Float[Tensor, "node size"], Float[Tensor, "node d"]]:
    """Return the inner products of each node's rows with c_left - c_right of its best start, and that difference.

    The centroid of a side is S / |S|, where S is the sum of its rows, and the objective is |S_left| + |S_right|. All
    of this follows from the products of rows with S_left: x x^T m, where m is the indicator of the left side.
    """
    node = torch.arange(len(x), device=x.device)
    rows = _Rows(x)
    if len(x) > 1 and x.shape[1] <= x.shape[2]:
        gram = x @ x.mT

        def similarity_to_sum(m: Float[Tensor, "node start size"]) -> Float[Tensor, "node start size"]:
            return m @ gram
    else:

        def similarity_to_sum(m: Float[Tensor, "node start size"]) -> Float[Tensor, "node start size"]:
            return rows.dot(rows.weighted_sum(m))

    # A start is a random row against the row least similar to it.
    near = rows.dot(x[node[:, None], first])  # [node, start, size]
    scores = near - rows.dot(x[node[:, None], near.argmin(dim=2)])
    to_all = similarity_to_sum(torch.ones_like(scores[:, :1]))
    objective = torch.zeros_like(scores[:, :, 0])
    for _ in range(max_iterations):
        left = scores.argsort(dim=2, descending=True, stable=True)[:, :, :num_left]
        m = torch.zeros_like(scores).scatter_(2, left, 1.0)
        to_left = similarity_to_sum(m)
        to_right = to_all - to_left
        # The rounding of a difference may leave a square of zero slightly negative.
        norm_left = (m * to_left).sum(dim=2, keepdim=True).clamp(min=1e-12).sqrt()
        norm_right = ((1 - m) * to_right).sum(dim=2, keepdim=True).clamp(min=1e-12).sqrt()
        scores = to_left / norm_left - to_right / norm_right
        before, objective = objective, (norm_left + norm_right)[:, :, 0]
        if (objective - before <= tolerance * objective).all():
            break
    best = objective.argmax(dim=1)
    weight = (m / norm_left - (1 - m) / norm_right)[node, best]
    return scores[node, best], rows.weighted_sum(weight[:, None])[:, 0]


class _Rows:
    """Products with the rows of nodes, rounded the same whatever the number of threads.

    Where there are several nodes, a thread multiplies whole matrices. A single matrix would be cut up among the threads
    and its partial sums added, so it is cut here into the same parts for any number of threads.

    Args:
        x: The rows of each node.
    """

    _NUM_PARTS = 16

    def __init__(self, x: Float[Tensor, "node size d"]):
        self.size = x.shape[1]
        self.cut = len(x) == 1
        self.x = x
        if self.cut:
            self.x = pad(x, (0, 0, 0, -self.size % self._NUM_PARTS)).view(self._NUM_PARTS, -1, x.shape[2])

    def dot(self, vectors: Float[Tensor, "node row d"]) -> Float[Tensor, "node row size"]:
        """Return the inner products of vectors with the rows of their node."""
        products = vectors @ self.x.mT
        return products.transpose(0, 1).reshape(1, vectors.shape[1], -1)[..., : self.size] if self.cut else products

    def weighted_sum(self, weight: Float[Tensor, "node row size"]) -> Float[Tensor, "node row d"]:
        """Return sums of the rows of each node."""
        if not self.cut:
            return weight @ self.x
        padded = pad(weight[0], (0, -self.size % self._NUM_PARTS))
        return (padded.view(len(padded), self._NUM_PARTS, -1).transpose(0, 1) @ self.x).sum(dim=0, keepdim=True)
