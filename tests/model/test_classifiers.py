"""One-vs-all classifiers: sparse rows, the hardest of all labels, and a loss that is the same either way."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from prime_xmc.data.batch import BatchBuilder, Relations
from prime_xmc.data.corpus import Ragged, Split
from prime_xmc.index.search import ExactSearch
from prime_xmc.model import classifiers as module_under_test
from prime_xmc.model.banks import RowBank
from prime_xmc.model.classifiers import Classifiers, hardest_of_all, pair_similarity
from prime_xmc.model.losses import Contrast, InfoNCE, Triplet
from prime_xmc.training.classifier_module import ClassifierModule
from prime_xmc.training.optimizers import RowAdam

LABELS = [[1.0, 0.0], [0.0, 1.0], [0.28, 0.96]]
QUERIES = [[1.0, 0.0], [0.0, 1.0]]


def unit(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def make(labels, queries, positives, filtered, loss, *, negatives, dropout=0.0):
    """A module and the batch of all its queries, which holds all labels."""
    bank = RowBank(len(queries), queries.shape[1])
    bank.put(torch.arange(len(queries)), queries)
    tokens = Ragged.from_rows([[1]] * len(queries))
    split = Split(tokens, Ragged.from_rows(positives), Ragged.from_rows(filtered))
    made = ClassifierModule(
        Classifiers(labels),
        bank,
        split,
        loss,
        ExactSearch(),
        negatives=negatives,
        dropout=dropout,
        inverse_propensity=np.ones(len(labels)),
        optimizer=RowAdam,
        scheduler=torch.optim.lr_scheduler.LambdaLR,
        warmup_fraction=0.0,
        seed=0,
    )
    builder = BatchBuilder(split, Ragged.from_rows([[1]] * len(labels)), loss_positives="all")
    drawn = np.resize(np.arange(len(labels)), (len(queries), len(labels)))
    return made, builder[np.arange(len(queries)), drawn]


class TestClassifiers:
    def test_rows_are_unit_vectors_of_the_initial_ones(self):
        classifiers = Classifiers(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
        assert classifiers(torch.tensor([1, 0])).tolist() == [[0.0, 1.0], [pytest.approx(0.6), pytest.approx(0.8)]]
        assert classifiers.vectors().tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 1.0]]

    def test_the_prototypes_themselves_stay(self):
        prototypes = unit(4, 3)
        classifiers = Classifiers(prototypes)
        with torch.no_grad():
            classifiers.weight.zero_()
        assert prototypes.norm() > 0

    @pytest.mark.parametrize("negatives", ["sampled", "all"])
    def test_a_step_changes_the_rows_that_it_reads_and_no_others(self, negatives):
        """With one negative per query, others are beyond reach: their gradient has no row."""
        labels, queries = unit(50, 8), unit(2, 8, seed=1)
        loss = Triplet(gamma_min=2.0, gamma_max=2.0, num_negatives=1)
        made, batch = make(labels, queries, [[3], [7]], [[], []], loss, negatives=negatives)
        if negatives == "sampled":
            batch = batch._replace(
                label_ids=torch.tensor([3, 7, 11]),
                # neither query is pushed from the other's positive
                relations=Relations(2, 3, torch.tensor([0, 4]), torch.tensor([0, 1, 3, 4])),
            )
            touched = {3, 7, 11}
        else:
            similarity = queries @ labels.T
            similarity[[0, 1], [3, 7]] = -1
            touched = {3, 7, *similarity.argmax(dim=1).tolist()}
        optimizer = RowAdam(made.parameters(), lr=0.1)
        made.batch_loss(batch)[0].backward()
        gradient = made.classifiers.weight.grad
        assert gradient.is_sparse
        assert set(gradient.coalesce().indices()[0].tolist()) == touched
        optimizer.step()
        changed = (made.classifiers.weight != labels).any(dim=1).nonzero()[:, 0]
        assert set(changed.tolist()) == touched


class TestHardestOfAll:
    @pytest.mark.parametrize("label_block", [1, 7, 100])
    def test_equals_a_sort_of_all_labels(self, label_block):
        queries, weight = unit(5, 6), 3 * torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
        rows, labels = torch.tensor([0, 0, 3]), torch.tensor([19, 2, 5])
        ids, exists = hardest_of_all(queries, weight, rows, labels, 4, label_block=label_block)
        assert exists.all()
        similarity = queries @ normalize(weight, dim=1).T
        for row in range(5):
            excluded = labels[rows == row].tolist()
            order = [label for label in similarity[row].argsort(descending=True).tolist() if label not in excluded]
            assert ids[row].tolist() == order[:4]

    def test_fewer_labels_than_asked_for(self):
        ids, exists = hardest_of_all(
            torch.tensor(QUERIES), torch.tensor(LABELS), torch.tensor([1, 1]), torch.tensor([1, 2]), 5, label_block=2
        )
        assert ids[0].tolist() == [0, 2, 1]
        assert exists.tolist() == [[True, True, True], [True, False, False]]
        assert ids[1, 0] == 0


@pytest.mark.parametrize("gathered", [1, 2**26])
def test_pair_similarity_equals_the_whole_matrix(gathered, monkeypatch):
    monkeypatch.setattr(module_under_test, "_GATHERED", gathered)
    queries, vectors = unit(4, 5), unit(6, 5, seed=1).requires_grad_()
    rows, places = torch.tensor([0, 3, 3, 1]), torch.tensor([5, 0, 0, 2])
    whole = (queries @ vectors.T)[rows, places]
    actual = pair_similarity(queries, vectors, rows, places)
    torch.testing.assert_close(actual, whole)
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected, gradient = (torch.autograd.grad(value @ weight, vectors)[0] for value in (whole, actual))
    torch.testing.assert_close(gradient, expected)
    assert pair_similarity(queries, vectors, rows[:0], places[:0]).shape == (0,)


@dataclass(frozen=True, kw_only=True)
class OfLabels(Contrast):
    """A loss that asks for all that there is to ask for of labels."""

    def __call__(self, similarity, positives, negatives, *, pairs, label_ids, inverse_propensity):
        weighted = similarity * inverse_propensity + 100 * label_ids
        assert similarity[pairs].equal(similarity[positives])
        return torch.where(positives, weighted, 0).sum(), {"least": torch.where(negatives, label_ids, 99).min()}


@pytest.mark.parametrize("negatives", ["sampled", "all"])
def test_a_loss_is_given_what_it_asks_for_of_labels(negatives):
    labels, queries, positives = unit(9, 4), unit(3, 4, seed=1), [[3, 5], [7], [0, 5, 8]]
    loss = OfLabels(num_negatives=6)
    made, batch = make(labels, queries, positives, [[1], [], []], loss, negatives=negatives)
    made.inverse_propensity.copy_(torch.arange(1, 10))
    value, logs = made.batch_loss(batch)
    expected = sum(
        float(queries[row] @ labels[label]) * (label + 1) + 100 * label
        for row, of_row in enumerate(positives)
        for label in of_row
    )
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert logs["least"] == 0


class TestLoss:
    @pytest.mark.parametrize("negatives", ["sampled", "all"])
    def test_by_hand(self, negatives):
        """Query 0 has no violator; query 1 has label 2, at 0.96 - 1 + 0.2. The mean over both queries."""
        loss = Triplet(gamma_min=0.2, gamma_max=0.2, weighting="sum")
        given = (torch.tensor(LABELS), torch.tensor(QUERIES), [[0], [1]])
        made, batch = make(*given, [[], []], loss, negatives=negatives)
        assert made.batch_loss(batch)[0].item() == pytest.approx((0 + 0.16) / 2)
        made, batch = make(*given, [[], [2]], loss, negatives=negatives)  # never an answer: no negative either
        assert made.batch_loss(batch)[0].item() == 0

    @pytest.mark.parametrize(
        "loss",
        [
            Triplet(gamma_min=0.2, gamma_max=0.2, num_negatives=3),
            Triplet(num_negatives=40, weighting="sum"),
            InfoNCE(num_negatives=5),
        ],
    )
    def test_all_labels_and_a_batch_that_has_them_all_are_the_same(self, loss):
        """Loss and gradient, for queries with different numbers of positives, one of them none."""
        labels, queries = unit(40, 6), unit(5, 6, seed=1)
        given = (labels, queries, [[3, 9], [0], [1, 2, 39], [5], []], [[4], [], [], [6, 8], []], loss)
        values, gradients = [], []
        for negatives in ("sampled", "all"):
            made, batch = make(*given, negatives=negatives)
            assert batch.label_ids.tolist() == list(range(40))
            value = made.batch_loss(batch)[0]
            value.backward()
            values.append(value.item())
            gradients.append(made.classifiers.weight.grad.to_dense())
        assert values[0] == pytest.approx(values[1], abs=1e-6)
        assert values[0] > 0
        torch.testing.assert_close(gradients[0], gradients[1])

    def test_dropout_is_a_function_of_seed_and_step(self):
        loss = Triplet(gamma_min=1.0, gamma_max=1.0)
        given = (unit(20, 16), unit(3, 16, seed=1), [[0], [1], [2]], [[], [], []], loss)
        made, batch = make(*given, negatives="sampled", dropout=0.5)
        without, _ = make(*given, negatives="sampled")
        trainer = SimpleNamespace(global_step=0, accumulate_grad_batches=2)
        made.trainer = trainer
        values = []
        for seed, batch_idx in ((0, 0), (0, 2), (1, 0), (0, 1)):
            made.seed = seed
            made.on_train_batch_start(batch, batch_idx)
            values.append(made.batch_loss(batch)[0].item())
        assert values[0] == values[1]
        # the second batch of a step has random numbers of its own
        assert len({*values, without.batch_loss(batch)[0].item()}) == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"negatives": "some"}, "expected negatives sampled or all, got 'some'"),
        ({"dropout": 1.0}, "expected a dropout of at least 0 and below 1, got 1.0"),
        ({"negatives": "all", "loss": Triplet(num_negatives=None)}, "expected a number loss.num_negatives"),
    ],
)
def test_bad_settings(changed, message):
    settings = {"loss": Triplet(), "negatives": "sampled"} | changed
    with pytest.raises(ValueError, match=message):
        make(torch.tensor(LABELS), torch.tensor(QUERIES), [[0], [1]], [[], []], settings.pop("loss"), **settings)
