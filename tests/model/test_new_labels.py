"""Prototypes of new labels: the nearest cluster, and what the network makes of them."""

import pytest
import torch
import torch.nn.functional as F

from prime_xmc.model.new_labels import carry_over, combine, nearest_clusters
from prime_xmc.model.prototypes import Prototypes

DIM = 8


def unit_rows(rows: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_the_cluster_whose_labels_are_most_similar_on_average():
    e = torch.eye(DIM)
    label_emb = torch.stack([e[0], e[1], e[2], e[0] + e[3]])
    clusters = torch.tensor([0, 0, 3, 3])
    new = torch.stack([e[1], e[3], e[2] + e[3], -(e[0] + e[1] + e[2] + e[3])])
    found = nearest_clusters(new, label_emb, clusters, 5).tolist()
    assert found[:3] == [0, 3, 3]
    assert found[3] in (0, 3), "clusters 1, 2 and 4 are nobody's, although they are less far away"


def test_one_cluster_is_everybodys():
    assert nearest_clusters(unit_rows(2), unit_rows(3), torch.zeros(3, dtype=torch.int64), 1).tolist() == [0, 0]


def test_a_private_vector_is_nobody_elses():
    e = torch.eye(DIM)
    label_emb, clusters = torch.stack([e[0], e[1], e[2]]), torch.tensor([0, 1, 2])
    assert nearest_clusters(e[2:3] + 0.1 * e[1], label_emb, clusters, 2).tolist() == [1]
    with pytest.raises(ValueError, match="a free vector of its own"):
        nearest_clusters(e[:1], label_emb[2:], clusters[2:], 2)


def test_sources_that_are_not_in_the_folder():
    settings = {"num_labels": 3, "dim": DIM, "num_free_vectors": 1, "more_sources": ["graph"]}
    with pytest.raises(ValueError, match=r"from graph too \(model.more_sources\), by code that is not in its folder"):
        combine(settings, {}, torch.zeros(2, dtype=torch.int64), unit_rows(2), unit_rows(2))


@pytest.mark.parametrize("more", [{}, {"num_private": 2, "combine": "sum"}])
def test_prototypes_are_those_of_the_network_whatever_the_number_of_labels(more):
    settings = {"num_labels": 6, "dim": DIM, "num_free_vectors": 4, "feedforward": 16} | more
    trained = Prototypes(**settings).eval()
    trained.cluster_of_label.copy_(torch.tensor([0, 1, 2, 3, 4, 5] if more else [0, 1, 2, 3, 0, 1]))
    trained.centroids.put(torch.arange(6), unit_rows(6, seed=1))
    label_emb = unit_rows(6, seed=2)
    with torch.no_grad():
        expected = trained(torch.arange(6), label_emb)
    for ids in ([2], [5, 1], list(range(6)), []):
        rows = torch.tensor(ids, dtype=torch.int64)
        centroids, clusters = trained.centroids.rows[rows], trained.cluster_of_label[rows]
        found = combine(settings, trained.state_dict(), clusters, centroids, label_emb[rows])
        torch.testing.assert_close(found, expected[rows])


def test_prototypes_that_are_the_text():
    settings = {"num_labels": 3, "dim": DIM, "num_free_vectors": 1, "sources": ["text"]}
    state, emb = Prototypes(**settings).state_dict(), unit_rows(2)
    assert torch.equal(combine(settings, state, torch.zeros(2, dtype=torch.int64), unit_rows(2, seed=1), emb), emb)


def test_what_training_does_to_all_is_done_to_new_ones_too():
    generator = torch.Generator().manual_seed(3)
    before, shift = unit_rows(2000), torch.randn(DIM, generator=generator) * 0.1
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator)).Q
    after, new = before @ turn + shift, unit_rows(5, seed=1)
    found = carry_over(before, after, new)
    torch.testing.assert_close(found, F.normalize(new @ turn + shift, dim=1), atol=2e-3, rtol=0)
    far = carry_over(before[:1], after[:1], new)
    torch.testing.assert_close(far.norm(dim=1), torch.ones(5))
