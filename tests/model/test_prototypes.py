import pytest
import torch
import torch.nn.functional as F

from prime_xmc.model.banks import RowBank
from prime_xmc.model.prototypes import (
    SOURCES,
    LabelPrototypeNetwork,
    Prototypes,
    fill_mean_centroids,
    leave_out,
    without_centroid,
)

NUM_LABELS, DIM = 6, 8


def make(**changes):
    """Prototypes of 6 labels with 3 free vectors, without dropout."""
    arguments = {"num_labels": NUM_LABELS, "dim": DIM, "num_free_vectors": 3, "feedforward": 16, "dropout": 0.0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Prototypes(**(arguments | changes))


def initialise(module, centroids, cluster_of_label):
    module.centroids.put(torch.arange(len(centroids)), centroids)
    module.cluster_of_label.copy_(cluster_of_label)


def unit_rows(num_rows, seed=0, dim=DIM):
    return F.normalize(torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def ids(*values):
    return torch.tensor(values, dtype=torch.int64)


def update(module, query_emb, pair_rows, pair_labels):
    label_ids, places = pair_labels.unique(return_inverse=True)
    return module.update_centroids(query_emb, pair_rows, places, label_ids)


class TestForward:
    def test_unit_vectors(self):
        prototypes = make()(ids(4, 0, 4, 2), unit_rows(4))
        assert prototypes.dtype == torch.float32
        torch.testing.assert_close(prototypes.norm(dim=1), torch.ones(4))

    def test_definition(self):
        """The layer over (h, c, v), mean, length 1; the label's cluster picks v."""
        module = make()
        cluster_of_label = ids(2, 2, 0, 1, 0, 1)
        centroids, label_emb = unit_rows(NUM_LABELS, seed=1), unit_rows(2)
        initialise(module, centroids, cluster_of_label)
        rows = ids(3, 0)
        sequence = torch.stack([label_emb, centroids[rows], module.free_vectors[ids(1, 2)]], dim=1)
        expected = F.normalize(module.network.layer(sequence).mean(dim=1), dim=1)
        torch.testing.assert_close(module(rows, label_emb), expected)

    def test_rows_are_independent(self):
        module = make().eval()
        initialise(module, unit_rows(NUM_LABELS, seed=1), ids(2, 2, 0, 1, 0, 1))
        rows, label_emb = ids(3, 0, 5), unit_rows(3)
        together = module(rows, label_emb)
        for row in range(3):
            torch.testing.assert_close(module(rows[row : row + 1], label_emb[row : row + 1])[0], together[row])

    @pytest.mark.parametrize("off", SOURCES)
    def test_a_source_that_is_off_changes_nothing(self, off):
        """And the others do: a prototype depends on exactly the sources that are on."""
        for source in SOURCES:
            module = make(sources=[name for name in SOURCES if name != off])
            initialise(module, unit_rows(NUM_LABELS, seed=1), ids(0, 0, 1, 1, 2, 2))
            label_emb = unit_rows(2)
            before = module(ids(1, 4), label_emb)
            if source == "text":
                label_emb = unit_rows(2, seed=5)
            elif source == "centroid":
                module.centroids.put(torch.arange(NUM_LABELS), unit_rows(NUM_LABELS, seed=5))
            elif module.free_vectors is not None:
                module.free_vectors.data.copy_(unit_rows(3, seed=5))
            changed = not torch.equal(module(ids(1, 4), label_emb), before)
            assert changed == (source != off)

    def test_order_of_the_sources_is_no_setting(self):
        assert make(sources=["free_vector", "text"]).sources == ("text", "free_vector")

    def test_no_free_vectors_where_they_are_not_used(self):
        """They would be saved and decayed all the same."""
        module = make(sources=["text", "centroid"])
        assert module.free_vectors is None
        assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"network"}
        assert "free_vectors" not in module.state_dict()

    def test_text_alone_is_the_prototype(self):
        """There is nothing to train then, so that a loss without prototypes ranks by text."""
        module, label_emb = make(sources=["text"]), unit_rows(3)
        assert torch.equal(module(ids(4, 0, 2), label_emb), label_emb)
        assert list(module.parameters()) == []

    def test_labels_of_a_cluster_share_their_free_vector(self):
        module = make(sources=["free_vector"])
        initialise(module, unit_rows(NUM_LABELS), ids(0, 1, 0, 1, 2, 2))
        prototypes = module(ids(0, 1, 2, 3), unit_rows(4))
        torch.testing.assert_close(prototypes[0], prototypes[2])
        torch.testing.assert_close(prototypes[1], prototypes[3])
        assert not torch.allclose(prototypes[0], prototypes[1], atol=1e-3)

    def test_free_vectors_of_the_labels_at_hand_get_gradient(self):
        module = make()
        initialise(module, unit_rows(NUM_LABELS), ids(0, 1, 0, 1, 2, 2))
        label_emb = unit_rows(3).requires_grad_()
        module(ids(0, 2, 4), label_emb)[:, 0].sum().backward()
        gradient = module.free_vectors.grad
        assert gradient.is_sparse, "a dense one has all F rows"
        assert (gradient.to_dense() != 0).any(dim=1).tolist() == [True, False, True]
        assert (label_emb.grad != 0).any(dim=1).all()
        assert module.centroids.rows.grad is None

    def test_dropout_only_while_training(self):
        module = make(dropout=0.5)
        label_emb = unit_rows(2)
        assert not torch.equal(module(ids(0, 1), label_emb), module(ids(0, 1), label_emb))
        module.eval()
        torch.testing.assert_close(module(ids(0, 1), label_emb), make()(ids(0, 1), label_emb))

    def test_size_of_free_vectors_at_the_start(self):
        module = make(num_labels=4000, num_free_vectors=4000, free_vector_std=0.5)
        assert module.free_vectors.norm(dim=1).square().mean().sqrt().item() == pytest.approx(0.5, rel=0.02)


class TestNetwork:
    def test_layer_is_that_of_the_paper(self):
        layer = LabelPrototypeNetwork(DIM).layer
        assert layer.self_attn.num_heads == 1
        assert layer.linear1.out_features == 1024
        assert (layer.dropout.p, layer.norm_first, layer.activation) == (0.1, False, F.gelu)

    def test_bf16_sources_give_float32_prototypes(self):
        network = LabelPrototypeNetwork(DIM, dropout=0.0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            prototypes = network(torch.stack([unit_rows(4), unit_rows(4, seed=1)], dim=1))
        assert prototypes.dtype == torch.float32
        torch.testing.assert_close(prototypes.norm(dim=1), torch.ones(4))


class TestUpdateCentroids:
    START = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [2.0, 2.0]])
    QUERIES = torch.tensor([[1.0, 1.0], [3.0, -1.0], [0.0, 4.0]])
    # label 0 has queries 0, 1 and 2; label 2 has query 1
    PAIR_ROWS, PAIR_LABELS = ids(2, 1, 0, 1), ids(0, 0, 0, 2)

    def module(self, **changes):
        module = make(num_labels=4, dim=2, num_free_vectors=1, **changes)
        initialise(module, self.START, ids(0, 0, 0, 0))
        return module

    def test_mean(self):
        module = self.module(momentum=0.75)
        drift = update(module, self.QUERIES, self.PAIR_ROWS, self.PAIR_LABELS)
        # mean of the queries of label 0: (4/3, 4/3)
        expected = torch.tensor([[0.75 + 1 / 3, 1 / 3], [0.0, 1.0], [0.75, -0.25], [2.0, 2.0]])
        torch.testing.assert_close(module.centroids.rows, expected)
        assert torch.equal(module.centroids.rows[[1, 3]], self.START[[1, 3]])  # untouched to the last bit
        torch.testing.assert_close(drift, (expected - self.START)[[0, 2]].norm(dim=1).mean())

    def test_one(self):
        module = self.module(momentum=0.75, centroid_update="one")
        update(module, self.QUERIES, self.PAIR_ROWS, self.PAIR_LABELS)
        # the first of its queries in the batch is query 0, though its pair comes last
        expected = torch.tensor([[1.0, 0.25], [0.0, 1.0], [0.75, -0.25], [2.0, 2.0]])
        torch.testing.assert_close(module.centroids.rows, expected)

    def test_frozen(self):
        module = self.module(centroid_update="frozen")
        assert update(module, self.QUERIES, self.PAIR_ROWS, self.PAIR_LABELS).item() == 0.0
        assert torch.equal(module.centroids.rows, self.START)

    @pytest.mark.parametrize("centroid_update", ["mean", "one"])
    def test_order_of_the_pairs_does_not_matter(self, centroid_update):
        found = []
        for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
            module = self.module(centroid_update=centroid_update)
            update(module, self.QUERIES, self.PAIR_ROWS[order], self.PAIR_LABELS[order])
            found.append(module.centroids.rows)
        torch.testing.assert_close(found[1], found[0])
        torch.testing.assert_close(found[2], found[0])

    def test_a_label_makes_one_step_however_many_queries_it_has(self):
        module = self.module(momentum=0.9)
        update(module, self.QUERIES[[0, 0, 0, 0]], ids(0, 1, 2, 3), ids(1, 1, 1, 1))
        torch.testing.assert_close(module.centroids.rows[1], torch.tensor([0.1, 0.9 + 0.1]))

    def test_default_momentum_is_that_of_the_paper(self):
        module = self.module()
        update(module, self.QUERIES, ids(2), ids(2))
        torch.testing.assert_close(module.centroids.rows[2], torch.tensor([0.0, 0.05 * 4]))

    def test_steps_approach_the_query(self):
        module = self.module(momentum=0.5)
        for _ in range(30):
            update(module, self.QUERIES, ids(1), ids(3))
        torch.testing.assert_close(module.centroids.rows[3], self.QUERIES[1])

    def test_no_pair(self):
        module = self.module()
        assert update(module, self.QUERIES, ids(), ids()).item() == 0.0
        assert torch.equal(module.centroids.rows, self.START)

    def test_nothing_enters_the_graph(self):
        module = self.module()
        drift = update(module, self.QUERIES.clone().requires_grad_(), self.PAIR_ROWS, self.PAIR_LABELS)
        assert not drift.requires_grad
        assert not module.centroids.rows.requires_grad


class TestState:
    def test_what_is_learnt_is_saved_and_restored_and_centroids_are_apart(self):
        module, other = make(), make()
        initialise(module, unit_rows(NUM_LABELS, seed=1), ids(2, 2, 0, 1, 0, 1))
        update(module, unit_rows(2), ids(0, 1), ids(0, 3))
        module.free_vectors.data.normal_()
        other.load_state_dict(module.state_dict())
        assert torch.equal(other.cluster_of_label, module.cluster_of_label)
        other.centroids.put(torch.arange(NUM_LABELS), module.centroids.rows)
        rows, label_emb = torch.arange(NUM_LABELS), unit_rows(NUM_LABELS)
        assert torch.equal(other(rows, label_emb), module(rows, label_emb))

    def test_centroids_are_no_parameter(self):
        assert {name.split(".")[0] for name, _ in make().named_parameters()} == {"network", "free_vectors"}

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"sources": []}, r"model\.sources .*got \[\]"),
            ({"num_free_vectors": 0}, r"model\.num_free_vectors between 1 and the 6 labels, got 0"),
            ({"num_free_vectors": 7}, r"model\.num_free_vectors between 1 and the 6 labels, got 7"),
            ({"momentum": 1.0}, r"model\.momentum in \[0, 1\), got 1\.0"),
            ({"momentum": -0.1}, r"model\.momentum in \[0, 1\), got -0\.1"),
        ],
    )
    def test_settings_out_of_range(self, changes, message):
        with pytest.raises(ValueError, match=message):
            make(**changes)


class TestFillMeanCentroids:
    @staticmethod
    def filled(query_emb, pair_queries, pair_labels, label_emb, **block):
        banks = {"centroids": torch.full_like(label_emb, 3.0), "queries": query_emb, "labels": label_emb}
        made = {name: RowBank(len(rows), rows.shape[1]) for name, rows in banks.items()}
        for name, rows in banks.items():
            made[name].put(torch.arange(len(rows)), rows)
        fill_mean_centroids(**made, pair_queries=pair_queries, pair_labels=pair_labels, **block)
        return made["centroids"].rows

    def test_mean_query_or_text_embedding(self):
        query_emb = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
        label_emb = torch.tensor([[9.0, 9.0], [8.0, 8.0], [7.0, 7.0]])
        centroids = self.filled(query_emb, ids(0, 1, 2), ids(2, 2, 0), label_emb)
        assert centroids.tolist() == [[0.5, 0.5], [8.0, 8.0], [0.5, 0.5]]

    def test_no_pair(self):
        label_emb = unit_rows(3)
        assert torch.equal(self.filled(unit_rows(2), ids(), ids(), label_emb), label_emb)

    @pytest.mark.parametrize("block", [1, 3, 7])
    def test_blocks_do_not_matter(self, block):
        generator = torch.Generator().manual_seed(0)
        pairs = [torch.randint(20, (50,), generator=generator), torch.randint(11, (50,), generator=generator)]
        arguments = (unit_rows(20), *pairs, unit_rows(11, seed=1))
        torch.testing.assert_close(self.filled(*arguments, block=block), self.filled(*arguments))


class TestDtype:
    def test_a_running_average_in_float16_arrives(self):
        """At less than a hundredth of the way; what remains are steps below the dtype's resolution."""
        module = make(dim=256, centroid_dtype="float16")
        start, target = unit_rows(1, dim=256), unit_rows(1, seed=1, dim=256)
        module.centroids.put(ids(2), start)
        for _ in range(300):
            update(module, target, ids(0), ids(2))
        assert module.centroids.rows.dtype == torch.float16
        remaining = (module.centroids.rows[2].float() - target[0]).norm() / (start - target).norm()
        assert remaining < 0.01


class TestLeaveOneOut:
    def test_the_mean_of_the_others_with_the_length_of_the_mean_of_all(self):
        queries = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
        mean = queries.mean(dim=0)
        rest = leave_out(mean[None], queries[:1], ids(3))
        torch.testing.assert_close(rest, torch.tensor([[0.0, 1.0]], dtype=torch.float64) * mean.norm())

    def test_prototypes_are_those_of_the_other_centroid(self):
        module = make()
        initialise(module, unit_rows(NUM_LABELS, seed=1) * 0.8, ids(2, 2, 0, 1, 0, 1))
        rows, label_emb, query_emb, num_queries = ids(3, 0, 3), unit_rows(3), unit_rows(3, seed=2), ids(2, 5, 4)
        found = module.leave_one_out(rows, label_emb, query_emb, num_queries)
        for place, row in enumerate(rows.tolist()):
            other = make()
            initialise(other, module.centroids.rows.clone(), module.cluster_of_label)
            rest = leave_out(module.centroids.rows[[row]], query_emb[[place]], num_queries[[place]])
            other.centroids.put(ids(row), rest)
            torch.testing.assert_close(found[[place]], other(ids(row), label_emb[[place]]))

    @pytest.mark.parametrize("without", [None, ids(1)])
    def test_both_kinds_at_once(self, without):
        """As on a GPU: with the same values and gradients."""
        module = make().eval()
        initialise(module, unit_rows(NUM_LABELS, seed=1) * 0.8, ids(2, 2, 0, 1, 0, 1))
        label_emb = unit_rows(3).requires_grad_()
        arguments = ids(3, 0, 5), label_emb, ids(0, 2, 0, 2), unit_rows(4, seed=2), ids(2, 5, 4, 3)
        results = []
        for compute in (module.with_left_out, module._at_once):
            module.zero_grad()
            label_emb.grad = None
            found = compute(*arguments, without)
            sum((part * unit_rows(len(part), seed=3)).sum() for part in found).backward()
            gradients = [p.grad.to_dense().clone() for p in (*module.parameters(), label_emb)]
            results.append((*found, *gradients))
        assert len(results[0][0]) == 3
        assert len(results[0][1]) == 4
        for expected, part in zip(*results, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-6)


class TestWithoutCentroid:
    def test_a_label_is_shown_as_one_without_queries_is(self):
        module, label_emb = make().eval(), unit_rows(3)
        initialise(module, unit_rows(NUM_LABELS, seed=1) * 0.8, ids(2, 2, 0, 1, 0, 1))
        found = module(ids(3, 0, 5), label_emb, ids(1))
        as_usual = module(ids(3, 0, 5), label_emb)
        assert torch.equal(found[[0, 2]], as_usual[[0, 2]])
        module.centroids.put(ids(0), label_emb[1:2])
        torch.testing.assert_close(found[1:2], module(ids(0), label_emb[1:2]))
        assert not torch.allclose(found[1], as_usual[1])

    def test_the_gradient_reaches_the_text_by_both_ways(self):
        label_emb = unit_rows(2).requires_grad_()
        without_centroid(torch.zeros(2, DIM), label_emb, ids(1)).sum().backward()
        assert label_emb.grad.tolist() == [[0.0] * DIM, [1.0] * DIM]


class Table(torch.nn.Module):
    """A source of one's own."""

    def __init__(self, num_labels, dim, scale=1.0):
        super().__init__()
        self.table = torch.nn.Parameter(scale * unit_rows(num_labels, seed=7, dim=dim))

    def forward(self, label_ids):
        return self.table[label_ids]


class TestSum:
    def test_definition(self):
        module = make(combine="sum", sources=["text", "free_vector"])
        initialise(module, unit_rows(NUM_LABELS, seed=1), ids(2, 2, 0, 1, 0, 1))
        rows, label_emb = ids(3, 0), unit_rows(2)
        total = label_emb + module.free_vectors[ids(1, 2)]
        torch.testing.assert_close(module(rows, label_emb), total / total.norm(dim=1, keepdim=True))
        assert module.network is None

    def test_by_hand(self):
        """normalise((0.6, 0.8) + (0.2, -0.2)) = (0.8, 0.6)."""
        module = make(combine="sum", sources=["text", "free_vector"], dim=2, num_free_vectors=1).double()
        torch.nn.init.zeros_(module.free_vectors)
        module.free_vectors.data[0] = torch.tensor([0.2, -0.2])
        found = module(ids(4), torch.tensor([[0.6, 0.8]], dtype=torch.float64))
        torch.testing.assert_close(found, torch.tensor([[0.8, 0.6]]))

    def test_one_source_alone(self):
        module = make(combine="sum", sources=["free_vector"])
        expected = F.normalize(module.free_vectors[:1], dim=1).expand(2, -1)
        torch.testing.assert_close(module(ids(3, 0), unit_rows(2)), expected)

    def test_the_text_alone_is_the_prototype(self):
        label_emb = unit_rows(2)
        assert torch.equal(make(combine="sum", sources=["text"])(ids(3, 0), label_emb), label_emb)


class TestPrivateVectors:
    FREQUENCY = ids(4, 9, 1, 9, 0, 2)

    def share(self, **changes):
        module = make(**({"num_private": 3} | changes))
        label_emb = unit_rows(NUM_LABELS, seed=3)
        before = module.free_vectors.detach().clone()
        clusters = ids(0, 1, 2, 0, 1, 2)[module.labels_that_share(self.FREQUENCY)]
        module.share_free_vectors(clusters, self.FREQUENCY, lambda some: label_emb[some])
        return module, label_emb, before

    @pytest.mark.parametrize(
        ("number", "expected"), [(0, [0, 1, 2, 3, 4, 5]), (1, [0, 2, 3, 4, 5]), (3, [2, 4, 5]), (6, [])]
    )
    def test_the_others_share(self, number, expected):
        assert make(num_private=number).labels_that_share(self.FREQUENCY).tolist() == expected

    def test_all_have_their_own(self):
        module, _, _ = self.share(num_private=6)
        assert module.cluster_of_label.tolist() == [5, 3, 7, 4, 8, 6]

    def test_the_commonest_labels_have_their_own(self):
        module, _, before = self.share()
        assert module.cluster_of_label.tolist() == [5, 3, 2, 4, 1, 2]
        assert len(module.free_vectors) == 3 + 3
        assert torch.equal(module.free_vectors, before)

    def test_none_by_default(self):
        module, _, _ = self.share(num_private=0)
        assert module.cluster_of_label.tolist() == [0, 1, 2, 0, 1, 2]
        assert len(module.free_vectors) == 3

    def test_start_at_the_mean_text_of_their_labels(self):
        module, label_emb, before = self.share(free_vector_start="text")
        expected = torch.stack(
            [before[0], label_emb[4], label_emb[[2, 5]].mean(0), label_emb[1], label_emb[3], label_emb[0]]
        )
        torch.testing.assert_close(module.free_vectors, expected)

    @pytest.mark.parametrize("number", [-1, NUM_LABELS + 1])
    def test_numbers_out_of_range(self, number):
        with pytest.raises(ValueError, match="num_private between 0 and the 6 labels"):
            make(num_private=number)


@pytest.mark.parametrize("number", [0, 3])
def test_heads_that_do_not_divide_the_dimensions(number):
    with pytest.raises(ValueError, match=rf"expected model\.num_heads to divide the {DIM} dimensions .*, got {number}"):
        make(num_heads=number)


class TestMoreSources:
    @pytest.mark.parametrize("source", [Table(NUM_LABELS, DIM), Table])
    def test_a_module_or_its_maker(self, source):
        module = make(combine="sum", sources=["text"], more_sources={"graph": source})
        rows, label_emb = ids(3, 0), unit_rows(2)
        expected = F.normalize(label_emb + unit_rows(NUM_LABELS, seed=7)[rows], dim=1)
        torch.testing.assert_close(module(rows, label_emb), expected)
        assert module.sources == ("text", "graph")

    def test_the_network_sees_it_behind_the_others(self):
        module = make(sources=["text"], more_sources={"graph": Table})
        rows, label_emb = ids(3, 0), unit_rows(2)
        sequence = torch.stack([label_emb, module.more_sources["graph"].table[rows]], dim=1)
        expected = F.normalize(module.network.layer(sequence).mean(dim=1), dim=1)
        torch.testing.assert_close(module(rows, label_emb), expected)

    def test_vectors_of_another_size_are_named(self):
        module = make(sources=["text"], more_sources={"graph": Table(NUM_LABELS, DIM + 1)})
        with pytest.raises(ValueError, match=rf"graph returned \(2, {DIM + 1}\) for 2 labels; expected \(2, {DIM}\)"):
            module(ids(3, 0), unit_rows(2))

    def test_it_is_trained_and_saved(self):
        module = make(more_sources={"graph": Table})
        module(ids(2), unit_rows(1)).sum().backward()
        assert module.more_sources["graph"].table.grad[2].any()
        assert "more_sources.graph.table" in module.state_dict()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"more_sources": {"text": Table}}, "other names than"),
            ({"more_sources": {"graph": lambda **_: 3}}, r"graph to be a torch.nn.Module, got a int"),
            (
                {"more_sources": {"graph": torch.nn.Embedding(NUM_LABELS, DIM, sparse=True)}},
                r"model\.more_sources\.graph has an embedding with sparse=True",
            ),
            ({"sources": []}, "some of"),
        ],
    )
    def test_settings_out_of_range(self, changes, message):
        with pytest.raises(ValueError, match=message):
            make(**changes)
