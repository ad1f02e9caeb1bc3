"""Each loss against a value worked out by hand, and against its definition with a Python loop for each letter."""

import math

import pytest
import torch

from prime_xmc.model.losses import DecoupledSoftmax, InfoNCE
from prime_xmc.model.peer_losses import KProb, SoftTopK, TwoWayNLL, k_prob, soft_top_k, top_k_threshold, two_way_nll


def matrix(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def mask(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def random_problem(seed, num_anchors=6, num_candidates=9):
    rng = torch.Generator().manual_seed(seed)
    similarity = 2 * torch.rand(num_anchors, num_candidates, generator=rng, dtype=torch.float64) - 1
    kind = torch.randint(3, similarity.shape, generator=rng)
    kind[0] = 1  # an anchor without a positive
    kind[1], kind[1, 0] = 2, 0  # and one without a negative
    return similarity, kind == 0, kind == 1


def slow_mean(per_anchor):
    """The mean over the positives of an anchor, then over anchors that have one."""
    means = [sum(values) / len(values) for values in per_anchor if values]
    return sum(means) / len(means)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


class TestTwoWayNLL:
    def test_value(self):
        """One positive, 0.7, against 0.2 and 0.9 in turn; the third candidate is neither."""
        loss = two_way_nll(matrix([0.7, 0.2, 0.9, 1.0]), mask([1, 0, 0, 0]), mask([0, 1, 1, 0]), 0.5)
        expected = (math.log(1 + math.exp(-1.0)) + math.log(1 + math.exp(0.4))) / 2
        assert loss.item() == pytest.approx(expected, abs=1e-12)
        assert loss.item() == pytest.approx(0.613138470, abs=1e-8)

    @pytest.mark.parametrize("seed", range(3))
    def test_definition(self, seed):
        similarity, positives, negatives = random_problem(seed)
        per_anchor = []
        for s, p, n in zip(similarity.tolist(), positives.tolist(), negatives.tolist(), strict=True):
            pushed = [s[c] for c in range(9) if n[c]]
            per_anchor.append(
                [
                    sum(-math.log(sigmoid((s[c] - t) / 0.3)) for t in pushed) / max(1, len(pushed))
                    for c in range(9)
                    if p[c]
                ]
            )
        assert two_way_nll(similarity, positives, negatives, 0.3).item() == pytest.approx(slow_mean(per_anchor))

    def test_one_negative_is_infonce(self):
        similarity, positives, negatives = matrix([0.3, 0.5], [0.1, -0.2]), mask([1, 0], [0, 1]), mask([0, 1], [1, 0])
        both = [make(temperature=0.1)(similarity, positives, negatives)[0] for make in (TwoWayNLL, InfoNCE)]
        torch.testing.assert_close(*both)


class TestKProb:
    def test_value(self):
        """A positive at 0.6; of the negatives 0.5 and 0.2 the harder one counts. C = 0.9, d = 1.5."""
        loss, logs = KProb()(matrix([0.6, 0.5, 0.2]), mask([1, 0, 0]), mask([0, 1, 1]))
        expected = -math.log(0.9) + 1.5 * 0.4 - math.log(1 - 0.9 * math.exp(-1.5) * math.exp(1.5 * 0.5))
        assert loss.item() == pytest.approx(expected, abs=1e-12)
        assert loss.item() == pytest.approx(1.258971688, abs=1e-8)
        assert logs == {}

    @pytest.mark.parametrize(("seed", "num_negatives"), [(0, 1), (1, 3), (2, None)])
    def test_definition(self, seed, num_negatives):
        similarity, positives, negatives = random_problem(seed)
        values = []
        for s, p, n in zip(similarity.tolist(), positives.tolist(), negatives.tolist(), strict=True):
            pulled = [s[c] for c in range(9) if p[c]]
            pushed = sorted((s[c] for c in range(9) if n[c]), reverse=True)[:num_negatives]
            if pulled:
                values.append(
                    sum(-math.log(0.75) + 3 * (1 - each) for each in pulled)
                    - sum(math.log(1 - 0.75 * math.exp(-3) * math.exp(3 * each)) for each in pushed)
                )
        loss = k_prob(similarity, positives, negatives, scale=0.75, slope=3.0, num_negatives=num_negatives)
        assert loss.item() == pytest.approx(sum(values) / len(values))

    def test_gradient_is_finite_where_an_excluded_pair_is_identical(self):
        similarity = matrix([0.6, 0.5, 1.0]).requires_grad_()
        k_prob(similarity, mask([1, 0, 0]), mask([0, 1, 0]), scale=0.9, slope=1.5, num_negatives=1).backward()
        assert similarity.grad[0, 2] == 0
        assert similarity.grad.isfinite().all()

    def test_without_positives_there_is_no_loss(self):
        assert KProb()(matrix([0.6, 0.5]), mask([0, 0]), mask([1, 1]))[0] == 0

    @pytest.mark.parametrize("wrong", [{"scale": 1.0}, {"scale": 0.0}, {"slope": 0.0}, {"num_negatives": 0}])
    def test_settings_out_of_range(self, wrong):
        with pytest.raises(ValueError, match="expected"):
            KProb(**wrong)


class TestSoftTopK:
    def test_value(self):
        """Two candidates that are as far from -t on either side: sigmoid(x) + sigmoid(-x) = 1."""
        logits = matrix([1.0, 0.0])
        threshold = top_k_threshold(logits, mask([1, 1]), 1, 2.0, num_steps=60)
        assert threshold.item() == pytest.approx(-0.5, abs=1e-12)
        loss = soft_top_k(logits, mask([1, 0]), mask([0, 1]), 1.0, k=1, slope=2.0, num_steps=60)
        assert loss.item() == pytest.approx(-math.log(sigmoid(2 * (1.0 - 0.5))), abs=1e-12)
        assert loss.item() == pytest.approx(0.313261688, abs=1e-8)

    @pytest.mark.parametrize("k", [1, 3, 5])
    def test_k_candidates_are_chosen(self, k):
        similarity, positives, negatives = random_problem(k)
        logits, considered = similarity / 0.05, positives | negatives
        threshold = top_k_threshold(logits, considered, k, 2.0)
        chosen = ((2 * (logits + threshold[:, None])).sigmoid() * considered).sum(dim=1)
        enough = considered.sum(dim=1) > k
        assert enough.any()
        torch.testing.assert_close(chosen[enough], torch.full_like(chosen[enough], k), atol=1e-6, rtol=0)
        assert (chosen[~enough] > considered.sum(dim=1)[~enough] - 0.01).all()

    @pytest.mark.parametrize("seed", range(3))
    def test_definition(self, seed):
        similarity, positives, negatives = random_problem(seed)
        per_anchor = []
        for s, p, n in zip(similarity.tolist(), positives.tolist(), negatives.tolist(), strict=True):
            considered = [s[c] / 0.2 for c in range(9) if p[c] or n[c]]
            k = max(1, min(2, len(considered) - 1)) if any(n) else 2
            low, high = -100.0, 100.0
            for _ in range(100):
                middle = (low + high) / 2
                low, high = (middle, high) if sum(sigmoid(2 * (x + middle)) for x in considered) < k else (low, middle)
            if len(considered) > k:
                per_anchor.append([-math.log(sigmoid(2 * (s[c] / 0.2 + low))) for c in range(9) if p[c]])
            else:
                positives[len(per_anchor)] = False
                per_anchor.append([])
        loss = soft_top_k(similarity, positives, negatives, 0.2, k=2, slope=2.0, num_steps=60)
        assert loss.item() == pytest.approx(slow_mean(per_anchor), rel=1e-6)

    def test_gradient_is_that_of_finite_differences(self):
        similarity, positives, negatives = random_problem(4)
        # without negatives all candidates are chosen, and the threshold is a bound that is taken for constant
        positives[~negatives.any(dim=1)] = False
        assert positives.sum() > 5
        assert (positives.any(dim=1) & ((positives | negatives).sum(dim=1) <= 6)).any()

        def loss(values):
            return soft_top_k(values, positives, negatives, 0.3, k=6, slope=2.0, num_steps=80)

        assert torch.autograd.gradcheck(loss, similarity.requires_grad_(), eps=1e-5, atol=1e-6)

    def test_gradient_of_the_published_code(self):
        """grad = u - v sum(u) / sum(v), with u = g a sigma (1 - sigma) and v = a sigma (1 - sigma)."""
        logits, g = matrix([1.2, 0.4, -0.3, 0.1]).requires_grad_(), matrix([0.5, -1.0, 2.0, 0.3])
        threshold = top_k_threshold(logits, torch.ones(1, 4, dtype=torch.bool), 2, 2.0, num_steps=60)
        chosen = (2 * (logits + threshold[:, None])).sigmoid()
        (found,) = torch.autograd.grad((chosen * g).sum(), logits)
        v = 2 * chosen * (1 - chosen)
        torch.testing.assert_close(found, (g * v - v * (g * v).sum() / v.sum()).detach())

    @pytest.mark.parametrize("k", [2, 3, 9])
    def test_of_few_candidates_all_but_one_are_chosen(self, k):
        """To choose both would train nothing: the value and the gradient are those of k = 1."""
        similarity = matrix([0.1, 0.3]).requires_grad_()
        losses = [soft_top_k(similarity, mask([1, 0]), mask([0, 1]), 0.5, k=each, slope=2.0) for each in (1, k)]
        gradients = [torch.autograd.grad(loss, similarity)[0] for loss in losses]
        assert losses[0].item() == pytest.approx(-math.log(sigmoid(2 * (0.2 - 0.4))), abs=1e-6)
        torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=0)
        torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)
        assert gradients[1][0, 0] < -0.5

    def test_32_steps_are_enough_for_single_precision(self):
        similarity, positives, negatives = random_problem(2)
        exact, rounded = (
            SoftTopK(k=3)(each, positives, negatives)[0].double() for each in (similarity, similarity.float())
        )
        torch.testing.assert_close(rounded, exact, atol=1e-4, rtol=1e-4)

    def test_an_empty_row_is_finite(self):
        similarity = matrix([0.6, 0.5]).requires_grad_()
        loss, _ = SoftTopK(k=1)(similarity, mask([0, 0]), mask([0, 0]))
        loss.backward()
        assert loss == 0
        assert similarity.grad.isfinite().all()

    @pytest.mark.parametrize("wrong", [{"k": 0}, {"slope": 0.0}, {"temperature": 0.0}])
    def test_settings_out_of_range(self, wrong):
        with pytest.raises(ValueError, match="expected"):
            SoftTopK(**wrong)


@pytest.mark.parametrize("make", [TwoWayNLL, SoftTopK, DecoupledSoftmax])
def test_pairs_that_are_known_make_no_difference(make):
    similarity, positives, negatives = random_problem(1)
    contrast = make(temperature=0.2)
    looked_up, _ = contrast(similarity, positives, negatives)
    known, _ = contrast(similarity, positives, negatives, pairs=positives.nonzero(as_tuple=True))
    assert torch.equal(known, looked_up)
