import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from prime_xmc.index.clustering import balanced_clusters


def cluster_with_a_loop(embeddings, num_clusters, *, seed, max_iterations=50):
    """The plain algorithm: one node at a time, all of its rows, until nothing changes."""
    x = normalize(embeddings.double(), dim=1)
    n = len(x)
    generator = torch.Generator().manual_seed(seed)
    clusters = torch.empty(n, dtype=torch.int64)
    nodes = [(torch.randperm(n, generator=generator), 0, num_clusters)]
    while nodes:
        rows, begin, end = nodes.pop()
        if end - begin == 1:
            clusters[rows] = begin
            continue
        middle = (begin + end) // 2
        num_left = middle * n // num_clusters - begin * n // num_clusters
        first = x[rows[torch.randint(len(rows), (), generator=generator)]]
        direction = first - x[rows[(x[rows] @ first).argmin()]]
        left = None
        for _ in range(max_iterations):
            ranked = rows[(x[rows] @ direction).argsort(descending=True, stable=True)]
            before, left, right = left, ranked[:num_left], ranked[num_left:]
            if before is not None and torch.equal(before.sort().values, left.sort().values):
                break
            direction = normalize(x[left].sum(dim=0), dim=0) - normalize(x[right].sum(dim=0), dim=0)
        nodes += [(left, begin, middle), (right, middle, end)]
    return clusters


def mean_similarity(embeddings, clusters):
    """Mean cosine similarity of a row with the centroid of its cluster, in [0, 1]."""
    x = normalize(embeddings.float(), dim=1)
    sums = torch.zeros(int(clusters.max()) + 1, x.shape[1]).index_add_(0, clusters, x)
    return float(sums.norm(dim=1).sum() / len(x))


def nested_groups(n, d, *, seed=0, depth=10, noise=0.5):
    """Rows around the leaves of a random binary tree: close groups within distant groups, as texts have them."""
    generator = torch.Generator().manual_seed(seed)
    x = noise * torch.randn(n, d, generator=generator)
    node = torch.zeros(n, dtype=torch.int64)
    for level in range(depth):
        node = 2 * node + torch.randint(2, (n,), generator=generator)
        x += 0.85**level * torch.randn(2 ** (level + 1), d, generator=generator)[node]
    return x


def assert_balanced(clusters, n, num_clusters):
    assert clusters.dtype == torch.int64
    sizes = clusters.bincount(minlength=num_clusters)
    assert len(sizes) == num_clusters
    assert sizes.sum() == n
    assert sizes.max() - sizes.min() <= 1


def partition(clusters):
    return {frozenset((clusters == cluster).nonzero()[:, 0].tolist()) for cluster in clusters.unique()}


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_sizes_for_any_n_and_number(data):
    n = data.draw(st.integers(1, 300))
    num_clusters = data.draw(st.integers(1, n))
    x = torch.randn(n, data.draw(st.sampled_from([1, 3, 40])), generator=torch.Generator().manual_seed(n))
    assert_balanced(balanced_clusters(x, num_clusters, seed=0), n, num_clusters)


def test_one_cluster_and_one_row_each():
    x = torch.randn(37, 4)
    assert balanced_clusters(x, 1, seed=0).tolist() == [0] * 37
    assert sorted(balanced_clusters(x, 37, seed=0).tolist()) == list(range(37))


@pytest.mark.parametrize("num_clusters", [0, 6])
def test_impossible_number(num_clusters):
    with pytest.raises(ValueError, match=f"from 1 to the number of rows, 5, got {num_clusters}"):
        balanced_clusters(torch.randn(5, 4), num_clusters, seed=0)


def test_hand_computed():
    """Angles 0, 10, 90, 100 degrees, in a mixed order."""
    angles = torch.deg2rad(torch.tensor([90.0, 0.0, 100.0, 10.0]))
    clusters = balanced_clusters(torch.stack([angles.cos(), angles.sin()], dim=1), 2, seed=0)
    assert partition(clusters) == {frozenset({0, 2}), frozenset({1, 3})}


class TestRandomness:
    x = torch.randn(500, 16, generator=torch.Generator().manual_seed(2))

    def test_same_seed_same_clusters_whatever_the_global_generator(self):
        torch.manual_seed(0)
        expected = balanced_clusters(self.x, 60, seed=3)
        torch.manual_seed(1)
        state = torch.get_rng_state()
        assert torch.equal(balanced_clusters(self.x, 60, seed=3), expected)
        assert torch.equal(torch.get_rng_state(), state)

    def test_another_seed(self):
        assert partition(balanced_clusters(self.x, 60, seed=3)) != partition(balanced_clusters(self.x, 60, seed=4))


@pytest.mark.parametrize("num_clusters", [8, 64])
def test_the_number_of_threads_changes_nothing(num_clusters):
    """Clusters are cut by the order of scores, so that a last bit decides; processes that train together must agree."""
    x = torch.randn(17_000, 64, generator=torch.Generator().manual_seed(0))
    before, found = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            found.append(balanced_clusters(x, num_clusters, seed=0))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


class TestSeparableBlobs:
    @pytest.mark.parametrize("num_blobs", [2, 3, 5, 8, 12, 32])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_recovered_in_any_order(self, num_blobs, seed):
        generator = torch.Generator().manual_seed(seed)
        blob = torch.arange(num_blobs).repeat_interleave(20)[torch.randperm(20 * num_blobs, generator=generator)]
        x = torch.eye(32)[blob] + 0.02 * torch.randn(len(blob), 32, generator=generator)
        assert partition(balanced_clusters(x, num_blobs, seed=seed)) == partition(blob)

    def test_recovered_where_a_node_is_sampled(self):
        """20,000 rows are more than the rows that a split iterates on."""
        blob = torch.arange(20_000) % 4
        x = torch.eye(8)[blob] + 0.02 * torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0))
        assert partition(balanced_clusters(x, 4, seed=0)) == partition(blob)


class TestDegenerateRows:
    @pytest.mark.parametrize("value", [0.0, 0.25])
    def test_all_identical(self, value):
        assert_balanced(balanced_clusters(torch.full((30, 5), value), 7, seed=0), 30, 7)

    def test_duplicates_share_a_cluster_that_has_room(self):
        x = torch.randn(10, 6, generator=torch.Generator().manual_seed(0)).repeat_interleave(4, dim=0)
        clusters = balanced_clusters(x, 5, seed=0).view(10, 4)
        assert (clusters == clusters[:, :1]).all()

    def test_zero_rows_among_others(self):
        x = torch.cat([torch.zeros(10, 6), torch.eye(6).repeat(5, 1)])
        assert_balanced(balanced_clusters(x, 8, seed=0), 40, 8)


def test_norms_do_not_matter():
    x = nested_groups(400, 24)
    factors = 2.0 ** torch.randint(
        -3, 4, (400, 1), generator=torch.Generator().manual_seed(0)
    )  # exact in floating point
    assert torch.equal(balanced_clusters(x * factors, 50, seed=0), balanced_clusters(x, 50, seed=0))


class TestQuality:
    """Mean similarity to the own centroid, against the plain loop."""

    @pytest.mark.parametrize(
        ("n", "d", "num_clusters"),
        [(3000, 32, 375), (3000, 256, 375), (3001, 32, 700), (12_000, 32, 64)],
        ids=["small nodes", "wide rows", "uneven", "sampled"],
    )
    def test_nested_groups(self, n, d, num_clusters):
        x = nested_groups(n, d)
        found = mean_similarity(x, balanced_clusters(x, num_clusters, seed=0))
        assert found > 0.99 * mean_similarity(x, cluster_with_a_loop(x, num_clusters, seed=0))

    def test_without_structure(self):
        x = torch.randn(3000, 32, generator=torch.Generator().manual_seed(0))
        found = mean_similarity(x, balanced_clusters(x, 375, seed=0))
        assert found > 0.99 * mean_similarity(x, cluster_with_a_loop(x, 375, seed=0))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_other_types(self, dtype):
        x = nested_groups(2000, 32)
        found = mean_similarity(x, balanced_clusters(x.to(dtype), 250, seed=0))
        assert found > 0.995 * mean_similarity(x, balanced_clusters(x, 250, seed=0))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnCuda:
    @pytest.mark.parametrize("num_clusters", [8, 2500])
    def test_as_good_as_on_the_cpu(self, num_clusters):
        x = nested_groups(20_000, 32)
        clusters = balanced_clusters(x.cuda(), num_clusters, seed=0)
        assert clusters.is_cuda
        assert_balanced(clusters.cpu(), len(x), num_clusters)
        expected = mean_similarity(x, balanced_clusters(x, num_clusters, seed=0))
        assert mean_similarity(x, clusters.cpu()) > 0.995 * expected

    def test_same_clusters_again(self):
        x = nested_groups(20_000, 32).cuda()
        assert torch.equal(balanced_clusters(x, 300, seed=0), balanced_clusters(x, 300, seed=0))


def test_progress_ends_at_one():
    done = []
    balanced_clusters(torch.randn(20_000, 4), 9, seed=0, on_progress=done.append)
    assert len(done) > 4
    assert done == sorted(done)
    assert done[-1] == 1.0
