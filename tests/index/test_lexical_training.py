"""Training of the lexical vectors: against slow dense steps in double precision, and what must not change them."""

import math

import numpy as np
import pytest
import torch

from prime_xmc.data.corpus import Ragged
from prime_xmc.index.lexical import LexicalIndex, Postings, build_postings
from prime_xmc.index.lexical_training import train_postings

CLS, SEP = 101, 102
NUM_LABELS, STEPS = 25, 4


def texts(*rows: list[int]) -> Ragged:
    return Ragged.from_rows([[CLS, *row, SEP] for row in rows], dtype=np.uint16)


@pytest.fixture
def made():
    """Queries, their labels, labels that say nothing of them, and label texts; some are empty."""
    rng = np.random.default_rng(0)

    def rows(num_rows):
        return [rng.integers(1, 20, rng.integers(7)).tolist() for _ in range(num_rows)]

    labels = [np.sort(rng.permutation(NUM_LABELS - 3)[: rng.integers(4)]) for _ in range(40)]
    filtered = [np.sort(rng.permutation(NUM_LABELS)[:2]) for _ in range(40)]
    label_texts = texts(*rows(NUM_LABELS - 1), [])
    return texts(*rows(40)), Ragged.from_rows(labels), Ragged.from_rows(filtered), label_texts


def train(made, steps: int = STEPS, hardest: int = 5) -> tuple[Postings, Postings]:
    """Return the vectors before and after training."""
    queries, labels, filtered, label_texts = made
    kind = {"special_ids": [CLS, SEP], "pairs": True}
    before = build_postings(queries, labels, label_texts, **kind)
    return before, train_postings(before, queries, labels, filtered, label_texts, **kind, steps=steps, hardest=hardest)


def dense(postings: Postings) -> torch.Tensor:
    """The vectors as a matrix of labels by terms, in double precision."""
    terms = torch.arange(len(postings.terms)).repeat_interleave(postings.offsets.diff())
    matrix = torch.zeros(NUM_LABELS, len(postings.terms), dtype=torch.float64)
    matrix[postings.label_ids.long(), terms] = (postings.weights + postings.moved).double()
    return matrix


def text_matrix(postings: Postings, rows: Ragged) -> torch.Tensor:
    """The vectors of texts: what a label of one term with the weight 1 would score, for each term."""
    size = len(postings.terms)
    one_each = postings._replace(
        offsets=torch.arange(size + 1),
        label_ids=torch.arange(size, dtype=torch.int32),
        weights=torch.ones(size),
        moved=torch.zeros(size),
        bias=torch.zeros(size),
    )
    return LexicalIndex(one_each, size, special_ids=[CLS, SEP], pairs=True).scores(rows).double()


def slow_steps(before: Postings, made, steps: int, hardest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The documented steps of Adam over a dense matrix, with the gradient by hand."""
    queries, labels, filtered, label_texts = made
    start = dense(before)
    x = torch.cat([text_matrix(before, queries), text_matrix(before, label_texts)])
    support = start > 0
    sign, counts = torch.zeros(2, len(x), NUM_LABELS, dtype=torch.float64)
    hard = torch.cat([text_matrix(before, rows) @ start.T for rows in (queries, label_texts)])
    for text in range(len(x)):
        own = labels[text].tolist() if text < 40 else [text - 40]
        never = set(filtered[text].tolist()) - set(own) if text < 40 else set()
        best = hard[text].argsort(descending=True, stable=True)[:hardest].tolist()
        for label in {*own, *best} - never:
            counts[text, label] = 1
            sign[text, label] = 1 if label in own else -1
    w, b = 2 * start, torch.full((NUM_LABELS,), -1.0, dtype=torch.float64)
    moments = [torch.zeros_like(each) for each in (w, w, b, b)]
    for step in range(steps):
        scores = x @ w.T + b
        slope = -2 * sign * (1 - sign * scores).clamp(min=0) * counts
        gradients = ((slope.T @ x + w) * support, slope.sum(0))
        for value, gradient, m, v in ((w, gradients[0], *moments[:2]), (b, gradients[1], *moments[2:])):
            m.mul_(0.9).add_(0.1 * gradient)
            v.mul_(0.98).add_(0.02 * gradient**2)
            corrected = m / (1 - 0.9 ** (step + 1)), (v / (1 - 0.98 ** (step + 1))).sqrt()
            value -= 0.1 * (1 - step / steps) * corrected[0] / (corrected[1] + 1e-8)
    return start + 0.3 * (w / 2 - start), 0.3 * (b + 1)


def test_against_slow_steps(made):
    before, after = train(made, hardest=NUM_LABELS)
    vectors, bias = slow_steps(before, made, STEPS, NUM_LABELS)
    torch.testing.assert_close(dense(after), vectors, atol=2e-5, rtol=0)
    torch.testing.assert_close(after.bias.double(), bias, atol=2e-5, rtol=0)
    assert torch.equal(after.weights, before.weights)
    assert after.moved.abs().max() > 0.01


def test_only_the_hardest_are_pushed_away(made):
    """Of 25 labels, the best ones by the mean vectors; ties of 0, which have no term in common, may go either way."""
    before, few = train(made, hardest=2)
    assert not torch.allclose(few.moved, train(made, hardest=NUM_LABELS)[1].moved, atol=1e-3)
    vectors, _ = slow_steps(before, made, STEPS, 2)
    is_term = dense(before) > 0
    assert (dense(few)[is_term] - vectors[is_term]).abs().median() < 1e-5


def test_the_loss_by_hand():
    """A label [7] with the query [7], and a label [8]; each vector has one entry, 1.

    Before training, label 0 scores its query and its text 2 - 1 = 1, and the text [8] -1. There is no loss but that of
    |w|, whose gradient is 2, so that the only step of Adam goes 0.1 down. w / 2 - c is -0.05, of which 0.3 are taken.
    """
    made = texts([7]), Ragged.from_rows([[0]]), Ragged.from_rows([[]]), texts([7], [8])
    kind = {"special_ids": [CLS, SEP], "pairs": False}
    before = build_postings(*made[:2], made[3], **kind)
    after = train_postings(before, *made, **kind, steps=1)
    assert before.weights.tolist() == pytest.approx([1, 1])
    assert after.moved.tolist() == pytest.approx([-0.015, -0.015], abs=1e-6)
    assert after.bias.tolist() == pytest.approx([0, 0], abs=1e-6)


def test_labels_of_a_query_come_up_and_others_go_down(made):
    queries, labels, _, _ = made
    scores = [
        LexicalIndex(postings, NUM_LABELS, special_ids=[CLS, SEP], pairs=True).scores(queries)
        for postings in train(made, steps=10, hardest=NUM_LABELS)
    ]
    is_label = torch.zeros(scores[0].shape, dtype=torch.bool)
    is_label[labels.row_ids(), labels.values.astype(np.int64)] = True
    gaps = [float(each[is_label].mean() - each[~is_label].mean()) for each in scores]
    assert gaps[1] > gaps[0] + 0.02


def test_no_step_changes_nothing(made):
    before, after = train(made, steps=0)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_blocks_of_labels_change_nothing(made, monkeypatch):
    whole = train(made)[1]
    monkeypatch.setattr("prime_xmc.index.lexical_training._BLOCK_TERMS", 30)
    parts = train(made)[1]
    torch.testing.assert_close(parts.moved, whole.moved, atol=1e-6, rtol=0)
    torch.testing.assert_close(parts.bias, whole.bias, atol=1e-6, rtol=0)


def test_labels_without_a_term_or_a_query(made):
    _, after = train(made)
    assert torch.isfinite(after.moved).all()
    assert torch.isfinite(after.bias).all()
    assert math.isfinite(dense(after)[-1].sum())  # the last label has neither a text nor a query
    assert not dense(after)[-1].any()


def test_nothing_to_train_on():
    nothing = texts([]), Ragged.from_rows([[]]), Ragged.from_rows([[]]), texts([], [])
    kind = {"special_ids": [CLS, SEP], "pairs": True}
    before = build_postings(*nothing[:2], nothing[3], **kind)
    after = train_postings(before, *nothing, **kind, steps=3)
    assert len(after.moved) == 0
    assert len(after.bias) == 2


@pytest.mark.parametrize(("steps", "hardest"), [(-1, 5), (2, 0)])
def test_out_of_range(made, steps, hardest):
    with pytest.raises(ValueError, match=f"at least 0 steps and 1 hardest label, got {steps} and {hardest}"):
        train(made, steps, hardest)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_alike(made):
    before, after = train(made)
    queries, labels, filtered, label_texts = made
    there = Postings(*(part.cuda() for part in before))
    kind = {"special_ids": [CLS, SEP], "pairs": True, "steps": STEPS, "hardest": 5}
    found = train_postings(there, queries, labels, filtered, label_texts, **kind)
    assert found.moved.is_cuda
    torch.testing.assert_close(found.moved.cpu(), after.moved, atol=1e-4, rtol=0)
