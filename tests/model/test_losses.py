import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prime_xmc.model.losses import (
    Contrast,
    DecoupledSoftmax,
    InfoNCE,
    PrimeLoss,
    Triplet,
    decoupled_softmax,
    dynamic_margin,
    info_nce,
    mean_or_zero,
    regulariser,
    triplet_loss,
)

# losses and gradients of the authors' public code on fixed similarities, one positive a query
FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "reference_losses.json").read_text())
TRIPLET_CASES = [case for case in FIXTURE["cases"] if case["term"] == "triplet"]
REGULARISER_CASES = [case for case in FIXTURE["cases"] if case["term"] == "regulariser"]
TERMS = ("prototype_weight", "text_weight", "label_weight", "regulariser_weight")
FIXED_MARGIN = {"gamma_min": 0.2, "gamma_max": 0.2}
ALL_CHANGED = {  # from the default
    "gamma_min": 0.2,
    "gamma_max": 0.6,
    "num_negatives": 3,
    "weighting": "softmax",
    "temperature": 0.3,
    "detach_weights": False,
    "invert_uncertain": True,
}


def matrix(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def mask(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def triplet(similarity, positives, negatives, **changes):
    return triplet_loss(similarity, positives, negatives, Triplet(**changes))


def one_anchor(positive_sim, *negative_sims, **changes):
    """Loss and gradient of one anchor with one positive (column 0), and the rest as negatives."""
    similarity = matrix([positive_sim, *negative_sims]).requires_grad_()
    positives = mask([True] + [False] * len(negative_sims))
    loss, _ = triplet(similarity, positives, ~positives, **({"weighting": "sum"} | changes))
    (grad,) = torch.autograd.grad(loss, similarity)
    return loss.item(), grad[0].tolist()


def random_masks(rng, shape):
    """Every pair is positive, negative or neither."""
    kind = torch.randint(3, shape, generator=rng)
    return kind == 0, kind == 1


def slow_triplet_loss(similarity, positives, negatives, **s):
    """The loss by its definition: one Python loop a letter."""
    anchors = []
    for anchor in range(len(similarity)):
        hardest = sorted(negatives[anchor].nonzero().flatten(), key=lambda n: -similarity[anchor, n])
        pairs = []
        for p in positives[anchor].nonzero().flatten():
            losses, sims = [], []
            for n in hardest[: s["num_negatives"]]:
                s_ap, s_an = similarity[anchor, p], similarity[anchor, n]
                margin = min(max(abs(s_ap.item() - s_an.item()), s["gamma_min"]), s["gamma_max"])
                loss = s_an - s_ap + margin
                if s["invert_uncertain"] and 0 < (s_ap - s_an).item() < s["gamma_min"]:
                    loss = s_ap - s_an + s["gamma_min"]
                if loss > 0:
                    losses.append(loss)
                    sims.append(s_an.detach() if s["detach_weights"] else s_an)
            if not losses:
                pairs.append(similarity.sum() * 0)
                continue
            stacked = torch.stack(losses)
            if s["weighting"] == "softmax":
                pairs.append(((torch.stack(sims) / s["temperature"]).softmax(0) * stacked).sum())
            else:
                pairs.append(stacked.sum() if s["weighting"] == "sum" else stacked.mean())
        if pairs:
            anchors.append(torch.stack(pairs).mean())
    return torch.stack(anchors).mean() if anchors else similarity.sum() * 0


class TestPublicCode:
    @pytest.mark.parametrize("case", TRIPLET_CASES, ids=lambda case: f"tau={case['tau']}")
    def test_triplet(self, case):
        similarity = matrix(*FIXTURE["sim_prototype"]).requires_grad_()
        positives = matrix(*FIXTURE["target"]) > 0
        # the public code's margin is fixed where its gamma_min is 0, and its sum has no weights where tau is 1
        gamma_min = case["gamma_min"] or case["gamma_max"]
        weighting = "sum" if case["tau"] == 1 else "softmax"
        loss, _ = triplet(
            similarity,
            positives,
            ~positives,
            gamma_min=gamma_min,
            gamma_max=case["gamma_max"],
            num_negatives=case["num_negatives"],
            weighting=weighting,
            temperature=case["tau"],
            detach_weights=False,
        )
        assert abs(loss.item() - case["loss"]) < 1e-9
        (grad,) = torch.autograd.grad(loss, similarity)
        # the public code shares out the gradient of max(0, x) where x is exactly 0; rows with such an x are left out
        gap = similarity.detach() - similarity.detach()[positives][:, None]
        tied = (~positives & (gap + gap.abs().clamp(gamma_min, case["gamma_max"]) == 0)).any(dim=1)
        assert (~tied).sum() >= 3
        torch.testing.assert_close(grad[~tied], matrix(*case["grad"])[~tied], rtol=0, atol=1e-9)

    def test_there_is_a_case_without_ties(self):
        """The fixed margin has none, so that whole gradient is compared."""
        assert [case for case in TRIPLET_CASES if case["gamma_min"] == 0]

    @pytest.mark.parametrize("case", REGULARISER_CASES, ids=lambda case: case["term"])
    def test_regulariser(self, case):
        prototype_sim = matrix(*FIXTURE["sim_prototype"]).requires_grad_()
        text_sim = matrix(*FIXTURE["sim_text"]).requires_grad_()
        positives = matrix(*FIXTURE["target"]) > 0
        value = regulariser(
            prototype_sim,
            text_sim,
            positives,
            ~positives,
            margin=case["margin"],
            num_negatives=case["num_negatives"],
            hinge=True,
        )
        assert abs(value.item() - case["loss"]) < 1e-9
        value.backward()
        torch.testing.assert_close(prototype_sim.grad, matrix(*case["grad_prototype"]), rtol=0, atol=1e-9)
        torch.testing.assert_close(text_sim.grad, matrix(*case["grad_text"]), rtol=0, atol=1e-9)


class TestMargin:
    def test_clipped_dynamic_margin(self):
        positive_sim = matrix([0.5, 0.5, 0.5, 0.5])
        negative_sim = matrix([0.45, 0.3, 0.7, -0.4])
        margin = dynamic_margin(positive_sim, negative_sim, 0.1, 0.3)
        torch.testing.assert_close(margin, matrix([0.1, 0.2, 0.2, 0.3]))

    def test_margin_is_outside_the_graph(self):
        assert not dynamic_margin(matrix([0.5]).requires_grad_(), matrix([0.1]), 0.1, 0.3).requires_grad

    @pytest.mark.parametrize(
        ("positive_sim", "negative_sim", "expected"),
        [
            (0.5, 0.7, 0.2 + 0.2),  # the margin is the distance
            (0.5, 0.55, 0.05 + 0.1),  # below gamma_min
            (0.1, 0.8, 0.7 + 0.3),  # above gamma_max
            (0.5, 0.45, -0.05 + 0.1),  # uncertain: in order, but closer than gamma_min
            (0.9, 0.1, 0.0),
            (0.5, 0.5, 0.1),
        ],
    )
    def test_dynamic(self, positive_sim, negative_sim, expected):
        loss, grad = one_anchor(positive_sim, negative_sim)
        assert loss == pytest.approx(expected, abs=1e-12)
        # were the margin in the graph, the first would have a gradient of 2
        assert grad == ([-1.0, 1.0] if expected else [0.0, 0.0])

    def test_fixed(self):
        loss, grad = one_anchor(0.5, 0.3, 0.9, 0.1, gamma_min=0.3, gamma_max=0.3)
        assert loss == pytest.approx(0.1 + 0.7)
        assert grad == [-2.0, 1.0, 1.0, 0.0]

    def test_unclipped(self):
        """Where the order is right the loss is 0, elsewhere twice the distance, however large it is."""
        loss, grad = one_anchor(0.5, 0.49, -0.9, 0.95, gamma_min=0.0, gamma_max=2.0)
        assert loss == pytest.approx(2 * 0.45)
        assert grad == [-1.0, 0.0, 0.0, 1.0]

    def test_exact_tie_has_no_gradient(self):
        """A distance within the bounds cancels its own margin exactly; max(0, x) would give such a pair a half."""
        for weighting in ("softmax", "sum", "active_mean"):
            loss, grad = one_anchor(0.75, 0.5, weighting=weighting)
            assert loss == 0.0
            assert grad == [0.0, 0.0]


class TestInvertUncertain:
    """Eq. 3 by the letter against the first line of Eq. 13; they differ only where 0 < s_ap - s_an < gamma_min."""

    def test_values_and_direction_in_the_uncertain_region(self):
        ordinary, ordinary_grad = one_anchor(0.5, 0.46, invert_uncertain=False)
        inverted, inverted_grad = one_anchor(0.5, 0.46, invert_uncertain=True)
        assert ordinary == pytest.approx(-0.04 + 0.1)
        assert inverted == pytest.approx(0.04 + 0.1)
        assert ordinary_grad == [-1.0, 1.0]
        assert inverted_grad == [1.0, -1.0]

    @pytest.mark.parametrize("negative_sim", [0.3, 0.5, 0.52, 0.7, 0.95])
    def test_same_elsewhere(self, negative_sim):
        ordinary = one_anchor(0.5, negative_sim, invert_uncertain=False)
        assert one_anchor(0.5, negative_sim, invert_uncertain=True) == ordinary

    def test_default_is_the_ordinary_direction(self):
        assert one_anchor(0.5, 0.46) == one_anchor(0.5, 0.46, invert_uncertain=False)


class TestNegatives:
    def test_only_the_hardest_count(self):
        negatives = (0.1, 0.3, 0.2)  # losses 0.3, 0.5, 0.4
        assert one_anchor(0.0, *negatives, **FIXED_MARGIN, num_negatives=1) == (pytest.approx(0.5), [-1, 0, 1, 0])
        assert one_anchor(0.0, *negatives, **FIXED_MARGIN, num_negatives=2) == (pytest.approx(0.9), [-2, 0, 1, 1])
        assert one_anchor(0.0, *negatives, **FIXED_MARGIN, num_negatives=None) == (pytest.approx(1.2), [-3, 1, 1, 1])

    def test_fewer_labels_than_negatives(self):
        negatives = (0.1, 0.3, 0.2)
        assert one_anchor(0.0, *negatives, num_negatives=100) == one_anchor(0.0, *negatives, num_negatives=None)

    def test_hardest_are_taken_among_the_negatives(self):
        """The most similar columns are a positive and one that is neither."""
        similarity = matrix([0.9, 0.8, 0.7, 0.6])
        positives, negatives = mask([True, False, False, False]), mask([False, False, True, True])
        settings = {"gamma_min": 0.3, "gamma_max": 0.3, "num_negatives": 1, "weighting": "sum"}
        loss, stats = triplet(similarity, positives, negatives, **settings)
        assert loss.item() == pytest.approx(0.7 - 0.9 + 0.3)
        assert stats.violators == 1

    def test_neither_positive_nor_negative_has_no_part(self):
        similarity = matrix([0.2, 0.9, 0.3]).requires_grad_()
        for num_negatives in (2, None):
            settings = {"weighting": "sum", "num_negatives": num_negatives}
            loss, _ = triplet(similarity, mask([True, False, False]), mask([False, False, True]), **settings)
            (grad,) = torch.autograd.grad(loss, similarity)
            assert loss.item() == pytest.approx(0.1 + 0.1)
            assert grad[0].tolist() == [-1, 0, 1]


class TestWeighting:
    SIMS = (0.0, 0.3, 0.1, -0.5)  # losses 0.5, 0.3 and none
    HARD = 1 / (1 + math.exp(-2.0))  # softmax weight of the first violator: (0.3 - 0.1) / 0.1 = 2

    def test_sum(self):
        loss, grad = one_anchor(*self.SIMS, **FIXED_MARGIN, weighting="sum")
        assert loss == pytest.approx(0.8)
        assert grad == [-2, 1, 1, 0]

    def test_mean_of_the_violators(self):
        loss, grad = one_anchor(*self.SIMS, **FIXED_MARGIN, weighting="active_mean")
        assert loss == pytest.approx(0.4)
        assert grad == [-1, 0.5, 0.5, 0]

    def test_softmax_over_the_violators(self):
        loss, grad = one_anchor(*self.SIMS, **FIXED_MARGIN, weighting="softmax")
        assert loss == pytest.approx(self.HARD * 0.5 + (1 - self.HARD) * 0.3)
        assert grad == pytest.approx([-1, self.HARD, 1 - self.HARD, 0])

    def test_weights_with_gradient_push_the_weaker_violator_up(self):
        settings = FIXED_MARGIN | {"weighting": "softmax", "detach_weights": False}
        loss, grad = one_anchor(*self.SIMS, **settings)
        assert loss == one_anchor(*self.SIMS, **(settings | {"detach_weights": True}))[0]
        change = self.HARD * (1 - self.HARD) * (0.5 - 0.3) / 0.1  # l times the derivative of the weights
        assert grad == pytest.approx([-1, self.HARD + change, 1 - self.HARD - change, 0])
        assert grad[2] < 0

    def test_low_temperature_sees_only_the_hardest_and_high_temperature_all_alike(self):
        settings = FIXED_MARGIN | {"weighting": "softmax"}
        assert one_anchor(*self.SIMS, **(settings | {"temperature": 1e-3}))[0] == pytest.approx(0.5)
        assert one_anchor(*self.SIMS, **(settings | {"temperature": 1e6}))[0] == pytest.approx(0.4, abs=1e-6)

    def test_default_is_the_detached_softmax(self):
        similarity, positives = matrix(self.SIMS), mask([True, False, False, False])
        default, _ = triplet(similarity, positives, ~positives)
        explicit = one_anchor(*self.SIMS, weighting="softmax", temperature=0.1, gamma_min=0.1, gamma_max=0.3)
        assert default.item() == explicit[0]


class TestTripletLoss:
    @pytest.mark.parametrize("weighting", ["softmax", "sum", "active_mean"])
    @pytest.mark.parametrize("detach_weights", [True, False])
    @pytest.mark.parametrize(
        ("positives", "negatives", "similarity"),
        [
            (mask([False, False]), mask([True, True]), matrix([0.1, 0.2])),  # no positive
            (mask([True, True]), mask([False, False]), matrix([0.1, 0.2])),  # no negative
            (mask([True, False]), mask([False, True]), matrix([0.9, 0.2])),  # no violator
            (mask([], []), mask([], []), matrix([], [])),  # no label
        ],
        ids=["no positive", "no negative", "no violator", "no label"],
    )
    def test_nothing_to_average_is_zero_without_gradient(
        self, positives, negatives, similarity, weighting, detach_weights
    ):
        similarity.requires_grad_()
        loss, stats = triplet(
            similarity, positives, negatives, weighting=weighting, detach_weights=detach_weights, num_negatives=1
        )
        (grad,) = torch.autograd.grad(loss, similarity)
        assert loss.item() == 0.0
        assert (grad == 0).all()
        assert stats.violators == 0

    @pytest.mark.parametrize("weighting", ["softmax", "sum", "active_mean"])
    def test_anchor_without_positive_does_not_dilute_the_mean(self, weighting):
        settings = {"weighting": weighting}
        alone, _ = triplet(matrix([0.2, 0.6, 0.4]), mask([1, 0, 0]), mask([0, 1, 1]), **settings)
        similarity = matrix([0.2, 0.6, 0.4], [0.9, 0.1, 0.5])
        both, _ = triplet(similarity, mask([1, 0, 0], [0, 0, 0]), mask([0, 1, 1], [1, 1, 1]), **settings)
        assert alone.item() > 0
        assert both.item() == pytest.approx(alone.item(), abs=1e-12)

    def test_row_of_positives_counts_as_an_anchor_without_loss(self):
        """It has positives, and all of them are where they should be as far as can be seen."""
        similarity = matrix([0.2, 0.6], [0.3, 0.9])
        loss, _ = triplet(similarity, mask([1, 0], [1, 1]), mask([0, 1], [0, 0]), weighting="sum")
        assert loss.item() == pytest.approx((0.4 + 0.3) / 2)

    def test_mean_over_the_positives_of_an_anchor(self):
        similarity = matrix([0.5, 0.4, 0.6]).requires_grad_()
        loss, _ = triplet(similarity, mask([1, 1, 0]), mask([0, 0, 1]), weighting="sum")
        assert loss.item() == pytest.approx(((0.1 + 0.1) + (0.2 + 0.2)) / 2)
        (grad,) = torch.autograd.grad(loss, similarity)
        assert grad[0].tolist() == [-0.5, -0.5, 1.0]

    @given(
        seed=st.integers(0, 2**32 - 1),
        shape=st.tuples(st.integers(1, 4), st.integers(1, 6)),
        bounds=st.sampled_from([(0.1, 0.3), (0.2, 0.2), (0.0, 2.0), (0.4, 0.9)]),
        num_negatives=st.sampled_from([None, 1, 2, 4, 100]),
        weighting=st.sampled_from(["softmax", "sum", "active_mean"]),
        temperature=st.sampled_from([0.05, 0.1, 1.0]),
        detach_weights=st.booleans(),
        invert_uncertain=st.booleans(),
    )
    @settings(max_examples=150, deadline=None)
    def test_value_and_gradient_are_those_of_plain_loops(self, seed, shape, bounds, **changes):
        rng = torch.Generator().manual_seed(seed)
        similarity = (torch.rand(shape, generator=rng, dtype=torch.float64) * 2 - 1).requires_grad_()
        positives, negatives = random_masks(rng, shape)
        changes |= {"gamma_min": bounds[0], "gamma_max": bounds[1]}
        loss, stats = triplet(similarity, positives, negatives, **changes)
        expected = slow_triplet_loss(similarity, positives, negatives, **changes)
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
        (grad,) = torch.autograd.grad(loss, similarity)
        (expected_grad,) = torch.autograd.grad(expected, similarity)
        torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-12)
        assert 0 <= stats.violators <= 1
        assert 0 <= stats.clipped <= 1

    @pytest.mark.parametrize("weighting", ["softmax", "sum", "active_mean"])
    @pytest.mark.parametrize("num_negatives", [2, None])
    def test_gradcheck(self, weighting, num_negatives):
        """With the margin fixed and the weights in the graph the whole loss is differentiable, away from kinks."""
        rng = torch.Generator().manual_seed(3)
        similarity = (torch.rand(4, 5, generator=rng, dtype=torch.float64) - 0.5).requires_grad_()
        positives, negatives = random_masks(rng, (4, 5))
        changes = {"weighting": weighting, "num_negatives": num_negatives, "gamma_min": 0.3, "gamma_max": 0.3}

        def loss_of(values):
            return triplet(values, positives, negatives, **changes, detach_weights=False)[0]

        assert loss_of(similarity).item() > 0
        assert torch.autograd.gradcheck(loss_of, similarity)

    def test_stats(self):
        """Distances 0.25 (its own margin), 0.05 (cut at gamma_min), 0.5 (cut at gamma_max); violators: the second."""
        similarity = matrix([0.5, 0.25, 0.45, 0.0])
        positives = mask([True, False, False, False])
        _, stats = triplet(similarity, positives, ~positives)
        assert stats.violators.item() == pytest.approx(1 / 3)
        assert stats.clipped.item() == pytest.approx(2 / 3)
        # of the two hardest only, neither the third nor the positive itself is considered
        _, stats = triplet(similarity, positives, ~positives, num_negatives=2)
        assert stats.violators.item() == pytest.approx(1 / 2)
        assert stats.clipped.item() == pytest.approx(1 / 2)


def slow_softmax_loss(similarity, positives, negatives, temperature, others):
    """Both softmax losses by their definition; `others`: an anchor's other positives are in the denominator."""
    anchors = []
    for sims, is_positive, is_negative in zip(similarity, positives, negatives, strict=True):
        pairs = []
        for p in is_positive.nonzero().flatten():
            against = [c for c in range(len(sims)) if c == p or is_negative[c] or (others and is_positive[c])]
            odds = (sims / temperature).exp()
            pairs.append(-(odds[p] / odds[against].sum()).log())
        if pairs:
            anchors.append(torch.stack(pairs).mean())
    return torch.stack(anchors).mean() if anchors else similarity.sum() * 0


class TestKnownGradients:
    """Of triplets and of the regulariser: what autograd would have done by itself."""

    def masks(self, shape=(4, 6)):
        positives = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.3
        return positives, ~positives

    def test_numbers_of_pairs_beyond_float16(self):
        positives = torch.arange(60).expand(1500, 60) < 50
        similarity = torch.full((1500, 60), 0.5).half().requires_grad_()
        loss = triplet_loss(similarity, positives, ~positives, Triplet(num_negatives=5))[0]
        loss.backward()
        assert loss.item() == pytest.approx(0.1, abs=0.02)  # a weight has few digits
        assert (similarity.grad != 0).any()
        gain = regulariser(similarity.detach(), similarity.detach(), positives, ~positives, num_negatives=5)
        assert gain.item() == pytest.approx(0.1, abs=0.01)

    @pytest.mark.parametrize("num_negatives", [None, 2])
    @pytest.mark.parametrize("weighting", ["softmax", "sum", "active_mean", "ngame"])
    def test_a_margin_without_bound(self, weighting, num_negatives):
        similarity = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        losses = [
            triplet_loss(
                similarity, *self.masks(), Triplet(gamma_max=most, weighting=weighting, num_negatives=num_negatives)
            )[0]
            for most in (math.inf, 1e6)
        ]
        assert torch.equal(*losses)
        losses[0].backward()
        assert similarity.grad.isfinite().all()

    @pytest.mark.parametrize("shape", [(1, 6), (4, 1)])
    def test_similarities_that_share_memory(self, shape):
        row = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        whole = row.expand(4, 6).clone().requires_grad_()
        shared = row.clone().requires_grad_()
        for similarity in (whole, shared.expand(4, 6)):
            triplet_loss(similarity, *self.masks(), Triplet(num_negatives=2))[0].backward()
        torch.testing.assert_close(shared.grad, whole.grad.sum_to_size(shape))


class TestSoftmaxLosses:
    LOSSES = (info_nce, decoupled_softmax)
    contrasts = pytest.mark.parametrize("contrast", [InfoNCE, DecoupledSoftmax])
    losses = pytest.mark.parametrize("loss_of", LOSSES)

    def test_by_hand(self):
        """Odds at temperature 1: 4 and 1 of the positives, 2 and 3 of the negatives, 5 of a pair that is neither."""
        similarity = matrix([4, 1, 2, 3, 5]).log().requires_grad_()
        positives, negatives = mask([1, 1, 0, 0, 0]), mask([0, 0, 1, 1, 0])
        loss = info_nce(similarity, positives, negatives, 1.0)
        assert loss.item() == pytest.approx(-(math.log(4 / 10) + math.log(1 / 10)) / 2)
        (grad,) = torch.autograd.grad(loss, similarity)
        assert grad[0].tolist() == pytest.approx([0.4 - 0.5, 0.1 - 0.5, 0.2, 0.3, 0.0])
        loss = decoupled_softmax(similarity, positives, negatives, 1.0)
        assert loss.item() == pytest.approx(-(math.log(4 / 9) + math.log(1 / 6)) / 2)
        (grad,) = torch.autograd.grad(loss, similarity)
        in_halves = [4 / 9 - 1, 1 / 6 - 1, 2 / 9 + 2 / 6, 3 / 9 + 3 / 6, 0.0]
        assert grad[0].tolist() == pytest.approx([half / 2 for half in in_halves])

    @losses
    @pytest.mark.parametrize("temperature", [0.05, 1.0])
    def test_one_positive_is_torchs_cross_entropy(self, loss_of, temperature):
        rng = torch.Generator().manual_seed(0)
        similarity = (torch.rand(6, 9, generator=rng, dtype=torch.float64) * 2 - 1).requires_grad_()
        target = torch.randint(9, (6,), generator=rng)
        positives = F.one_hot(target, 9).bool()
        loss = loss_of(similarity, positives, ~positives, temperature)
        expected = F.cross_entropy(similarity / temperature, target)
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
        grads = [torch.autograd.grad(value, similarity)[0] for value in (loss, expected)]
        torch.testing.assert_close(*grads, rtol=0, atol=1e-12)

    @given(
        seed=st.integers(0, 2**32 - 1),
        shape=st.tuples(st.integers(1, 4), st.integers(1, 6)),
        temperature=st.sampled_from([0.05, 0.5]),
        others=st.booleans(),
    )
    @settings(max_examples=60, deadline=None)
    def test_value_and_gradient_are_those_of_plain_loops(self, seed, shape, temperature, others):
        rng = torch.Generator().manual_seed(seed)
        similarity = (torch.rand(shape, generator=rng, dtype=torch.float64) * 2 - 1).requires_grad_()
        masks = random_masks(rng, shape)
        loss = (info_nce if others else decoupled_softmax)(similarity, *masks, temperature)
        expected = slow_softmax_loss(similarity, *masks, temperature, others)
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
        grads = [torch.autograd.grad(value, similarity)[0] for value in (loss, expected)]
        torch.testing.assert_close(*grads, rtol=0, atol=1e-12)

    @losses
    def test_gradcheck(self, loss_of):
        rng = torch.Generator().manual_seed(3)
        similarity = (torch.rand(4, 5, generator=rng, dtype=torch.float64) - 0.5).requires_grad_()
        masks = random_masks(rng, (4, 5))
        assert torch.autograd.gradcheck(lambda values: loss_of(values, *masks, 0.2), similarity)

    @contrasts
    @pytest.mark.parametrize("num_negatives", [1, None])
    @pytest.mark.parametrize(
        ("positives", "negatives"),
        [
            (mask([0, 0], [0, 0]), mask([1, 1], [0, 0])),
            (mask([1, 0], [0, 0]), mask([0, 0], [1, 1])),
            (mask([]), mask([])),
        ],
        ids=["no positive", "no negative", "no label"],
    )
    def test_nothing_to_contrast_is_zero_without_gradient(self, positives, negatives, num_negatives, contrast):
        """In the second case the first query has a positive but no negative, and the other way round."""
        similarity = torch.full(positives.shape, 0.7, requires_grad=True)
        loss, logs = contrast(num_negatives=num_negatives)(similarity, positives, negatives)
        (grad,) = torch.autograd.grad(loss, similarity)
        assert loss.item() == 0.0
        assert (grad == 0).all()
        assert logs == {}

    @losses
    def test_extremes_stay_finite(self, loss_of):
        """At a temperature where exp overflows, in float32."""
        for sims, expected in (([1.0, -1.0], 0.0), ([-1.0, 1.0], 2000.0)):
            similarity = torch.tensor([sims], requires_grad=True)
            loss = loss_of(similarity, mask([1, 0]), mask([0, 1]), 1e-3)
            (grad,) = torch.autograd.grad(loss, similarity)
            assert loss.item() == pytest.approx(expected)
            assert grad[0].tolist() == pytest.approx([-1000.0, 1000.0] if expected else [0.0, 0.0])

    @contrasts
    def test_only_the_hardest_negatives_count(self, contrast):
        similarity = matrix([0.5, 0.1, 0.3, 0.2, 0.9])
        positives, negatives = mask([1, 0, 0, 0, 0]), mask([0, 1, 1, 1, 0])
        hardest = mask([0, 0, 1, 1, 0])
        some, _ = contrast(num_negatives=2)(similarity, positives, negatives)
        every, _ = contrast()(similarity, positives, negatives)
        assert some == contrast()(similarity, positives, hardest)[0] < every

    @contrasts
    @pytest.mark.parametrize(
        ("changes", "message"),
        [({"temperature": 0.0}, r"above 0, got 0\.0"), ({"num_negatives": 0}, "num_negatives of at least 1")],
    )
    def test_settings_out_of_range(self, changes, message, contrast):
        with pytest.raises(ValueError, match=message):
            contrast(**changes)


class TestMeanOrZero:
    def test_mean_of_the_masked(self):
        assert mean_or_zero(matrix([1.0, 5.0], [3.0, 9.0]), mask([True, False], [True, False])).item() == 2.0

    def test_empty(self):
        values = matrix([1.0, 2.0]).requires_grad_()
        mean = mean_or_zero(values, mask([False, False]))
        mean.backward()
        assert mean.item() == 0.0
        assert values.grad.tolist() == [[0.0, 0.0]]


class TestRegulariser:
    PROTOTYPE = matrix([0.5, 0.2, -0.3], [0.9, 0.4, 0.1])
    TEXT = matrix([0.3, 0.4, 0.1], [0.2, 0.1, 0.0])
    POSITIVES = mask([True, False, False], [False, True, False])
    NEGATIVES = mask([False, True, True], [True, False, False])  # one pair is neither
    # s - b + 0.1 of the positives: 0.3 - 0.5 + 0.1 = -0.1, 0.1 - 0.4 + 0.1 = -0.2
    # b - s + 0.1 of the negatives: 0.2 - 0.4 + 0.1 = -0.1, -0.3 - 0.1 + 0.1 = -0.3, 0.9 - 0.2 + 0.1 = 0.8

    def value(self, **changes):
        arguments = {"prototype_sim": self.PROTOTYPE, "text_sim": self.TEXT} | changes
        return regulariser(positives=self.POSITIVES, negatives=self.NEGATIVES, **arguments).item()

    def test_hinge_averages_what_is_above_zero(self):
        assert self.value(hinge=True) == pytest.approx((0 + 0.8) / 2)

    def test_plain_means(self):
        assert self.value(hinge=False) == pytest.approx(((-0.1 - 0.2) / 2 + (-0.1 - 0.3 + 0.8) / 3) / 2)

    def test_margin(self):
        assert self.value(hinge=True, margin=0.35) == pytest.approx(
            ((0.15 + 0.05) / 2 + (0.15 + 1.05) / 2) / 2  # -0.05 is not above 0
        )

    def test_hardest_negatives_by_prototype(self):
        """Each query keeps the negative with the larger b; by text it would be the same one only in the second row."""
        assert self.value(hinge=False, num_negatives=1) == pytest.approx((-0.15 + (-0.1 + 0.8) / 2) / 2)
        # by text the first query would keep the label with s = 0.4; raise b of the other one
        prototype_sim = self.PROTOTYPE.clone()
        prototype_sim[0, 2] = 0.25
        value = self.value(hinge=False, num_negatives=1, prototype_sim=prototype_sim)
        assert value == pytest.approx((-0.15 + ((0.25 - 0.1 + 0.1) + 0.8) / 2) / 2)

    def test_fewer_labels_than_negatives(self):
        assert self.value(hinge=False, num_negatives=100) == self.value(hinge=False, num_negatives=None)

    @pytest.mark.parametrize("hinge", [True, False])
    def test_empty_means_are_zero_without_gradient(self, hinge):
        prototype_sim = self.PROTOTYPE.clone().requires_grad_()
        nothing = torch.zeros_like(self.POSITIVES)
        value = regulariser(prototype_sim, self.TEXT, nothing, nothing, hinge=hinge, num_negatives=2)
        value.backward()
        assert value.item() == 0.0
        assert (prototype_sim.grad == 0).all()

    def test_no_pair_above_zero(self):
        """Where the public code divides 0 by 0."""
        prototype_sim = matrix([0.9, -0.9]).requires_grad_()
        value = regulariser(prototype_sim, matrix([0.0, 0.0]), mask([True, False]), mask([False, True]))
        value.backward()
        assert value.item() == 0.0
        assert (prototype_sim.grad == 0).all()

    @pytest.mark.parametrize("hinge", [True, False])
    def test_gradcheck(self, hinge):
        def value_of(prototype_sim, text_sim):
            return regulariser(prototype_sim, text_sim, self.POSITIVES, self.NEGATIVES, margin=0.15, hinge=hinge)

        arguments = self.PROTOTYPE.clone().requires_grad_(), self.TEXT.clone().requires_grad_()
        assert torch.autograd.gradcheck(value_of, arguments)


@pytest.fixture
def embeddings():
    rng = torch.Generator().manual_seed(0)
    query_emb, label_emb, prototypes = (
        F.normalize(torch.randn(n, 3, generator=rng, dtype=torch.float64), dim=1) for n in (4, 5, 5)
    )
    return query_emb, label_emb, prototypes, *random_masks(rng, (4, 5))


class TestPrimeLoss:
    def terms(self, query_emb, label_emb, prototypes, positives, negatives):
        text_sim, prototype_sim = query_emb @ label_emb.T, query_emb @ prototypes.T
        return {
            "prototype_weight": triplet(prototype_sim, positives, negatives, **ALL_CHANGED)[0],
            "text_weight": triplet(text_sim, positives, negatives, **ALL_CHANGED)[0],
            "label_weight": triplet(text_sim.T, positives.T, negatives.T, **ALL_CHANGED)[0],
            "regulariser_weight": regulariser(
                prototype_sim, text_sim, positives, negatives, margin=0.25, num_negatives=3, hinge=False
            ),
        }

    def test_eq_5(self, embeddings):
        terms = self.terms(*embeddings)
        loss, _ = PrimeLoss(**ALL_CHANGED, regulariser_margin=0.25, regulariser_hinge=False)(*embeddings)
        expected = terms["prototype_weight"] + terms["text_weight"] + terms["label_weight"]
        torch.testing.assert_close(loss, expected + 0.1 * terms["regulariser_weight"])

    def test_every_term_has_its_weight(self, embeddings):
        query_emb, *others = embeddings
        query_emb.requires_grad_()
        terms = self.terms(query_emb, *others)
        weights = dict(zip(TERMS, (0.5, 2.0, 3.0, 7.0), strict=True))
        module = PrimeLoss(**ALL_CHANGED, **weights, regulariser_margin=0.25, regulariser_hinge=False)
        loss, logs = module(query_emb, *others)
        expected = sum(weights[name] * terms[name] for name in TERMS)
        torch.testing.assert_close(loss, expected)
        # a setting that did not arrive might only change the gradient
        grads = [torch.autograd.grad(value, query_emb)[0] for value in (loss, expected)]
        torch.testing.assert_close(*grads)
        # terms are logged without their weights, and outside the graph
        logged = [logs[name] for name in ("query_prototype", "query_label", "label_query", "regulariser")]
        torch.testing.assert_close(torch.stack(logged), torch.stack([terms[name].detach() for name in TERMS]))
        assert not any(value.requires_grad for value in logs.values())

    def test_further_prototypes_enter_the_first_term_alone(self, embeddings):
        query_emb, label_emb, prototypes, positives, negatives = embeddings
        encoded = slice(len(label_emb) - 2)
        terms = self.terms(
            query_emb, label_emb[encoded], prototypes[encoded], positives[:, encoded], negatives[:, encoded]
        )
        first = triplet(query_emb @ prototypes.T, positives, negatives, **ALL_CHANGED)[0]
        assert first.item() != terms["prototype_weight"].item()
        module = PrimeLoss(**ALL_CHANGED, regulariser_margin=0.25, regulariser_hinge=False)
        loss, _ = module(query_emb, label_emb[encoded], prototypes, positives, negatives)
        others = terms["text_weight"] + terms["label_weight"] + 0.1 * terms["regulariser_weight"]
        torch.testing.assert_close(loss, first + others)

    @pytest.mark.parametrize("off", TERMS)
    def test_weight_zero_switches_a_term_off(self, off, embeddings):
        terms = self.terms(*embeddings)
        assert terms[off].item() != 0
        changes = {**ALL_CHANGED, "regulariser_margin": 0.25, "regulariser_hinge": False, "regulariser_weight": 1.0}
        loss, logs = PrimeLoss(**(changes | {off: 0.0}))(*embeddings)
        torch.testing.assert_close(loss, sum(terms[name] for name in TERMS if name != off))
        assert len(logs.keys() & {"query_prototype", "query_label", "label_query", "regulariser"}) == 3

    @pytest.mark.parametrize(("off", "described"), [(0, "prototype"), (1, "text"), (2, "label"), (3, None)])
    def test_the_first_term_that_has_a_weight_is_described(self, off, described, embeddings):
        """Systems without prototypes have their violators logged, too."""
        query_emb, label_emb, prototypes, positives, negatives = embeddings
        stats = {
            "prototype": triplet(query_emb @ prototypes.T, positives, negatives, **ALL_CHANGED)[1],
            "text": triplet(query_emb @ label_emb.T, positives, negatives, **ALL_CHANGED)[1],
            "label": triplet(label_emb @ query_emb.T, positives.T, negatives.T, **ALL_CHANGED)[1],
        }
        assert len({tuple(map(float, each)) for each in stats.values()}) == 3
        _, logs = PrimeLoss(**ALL_CHANGED, **dict.fromkeys(TERMS[:off], 0.0))(*embeddings)
        found = [float(logs[name]) for name in ("violators", "clipped_margins") if name in logs]
        assert found == ([] if described is None else [float(each) for each in stats[described]])

    def test_all_terms_off(self, embeddings):
        loss, logs = PrimeLoss(**dict.fromkeys(TERMS, 0.0))(*embeddings)
        assert loss.item() == 0.0
        assert logs == {}

    def test_labels_are_anchors_with_the_transposed_masks(self):
        """Label 0 has query 0 as positive and query 1 as negative; label 1 the other way round has no negative."""
        angle = torch.tensor([0.0, 0.3, 0.5, 1.2], dtype=torch.float64)
        point = torch.stack([angle.cos(), angle.sin()], dim=1)
        query_emb, label_emb = point[[0, 1]], point[[3, 2]]
        positives, negatives = mask([True, False], [False, True]), mask([False, False], [True, False])
        weights = {"prototype_weight": 0.0, "text_weight": 0.0, "regulariser_weight": 0.0}
        settings = {"gamma_min": 0.2, "gamma_max": 0.2, "weighting": "sum"}
        loss, _ = PrimeLoss(**weights, **settings)(query_emb, label_emb, label_emb, positives, negatives)
        violation = math.cos(1.2 - 0.3) - math.cos(1.2 - 0.0) + 0.2  # label 0, positive query 0, negative query 1
        assert loss.item() == pytest.approx(violation / 2)

    def test_logged_statistics_are_those_of_the_prototype_term(self, embeddings):
        query_emb, _, prototypes, positives, negatives = embeddings
        _, logs = PrimeLoss(**ALL_CHANGED)(*embeddings)
        _, stats = triplet(query_emb @ prototypes.T, positives, negatives, **ALL_CHANGED)
        assert (logs["violators"], logs["clipped_margins"]) == stats

    def test_gradient_reaches_all_embeddings(self, embeddings):
        *vectors, positives, negatives = embeddings
        vectors = [vector.clone().requires_grad_() for vector in vectors]
        PrimeLoss()(*vectors, positives, negatives)[0].backward()
        assert all(vector.grad.abs().sum() > 0 for vector in vectors)

    def test_config_states_the_defaults(self, compose):
        loss = instantiate(compose("run_dir=run").loss)
        assert loss.contrast == Triplet()
        assert loss.weights == PrimeLoss(text_weight=0.5, label_weight=0.5).weights
        paper = instantiate(compose("run_dir=run", "experiment=paper").loss)
        assert paper.weights == PrimeLoss().weights

    @pytest.mark.parametrize(("option", "contrast"), [("infonce", InfoNCE), ("decoupled_softmax", DecoupledSoftmax)])
    def test_other_contrasts_in_every_term(self, option, contrast, compose, embeddings):
        config = compose("run_dir=run", f"loss={option}")
        assert instantiate(config.loss).contrast == contrast()
        config = compose("run_dir=run", f"loss={option}", "loss.temperature=0.3", "loss.num_negatives=2")
        loss, logs = instantiate(config.loss)(*embeddings)
        query_emb, label_emb, prototypes, positives, negatives = embeddings
        text_sim, prototype_sim = query_emb @ label_emb.T, query_emb @ prototypes.T
        changed = contrast(temperature=0.3, num_negatives=2)
        expected = {
            "query_prototype": changed(prototype_sim, positives, negatives)[0],
            "query_label": changed(text_sim, positives, negatives)[0],
            "label_query": changed(text_sim.T, positives.T, negatives.T)[0],
            "regulariser": regulariser(prototype_sim, text_sim, positives, negatives, num_negatives=2),
        }
        assert logs == expected  # neither violators nor margins
        torch.testing.assert_close(loss, sum(logs.values()) - 0.9 * logs["regulariser"])

    def test_settings_by_their_names_on_the_command_line(self, compose):
        changes = [f"loss.{name}={value}" for name, value in ALL_CHANGED.items()]
        assert instantiate(compose("run_dir=run", *changes).loss).contrast == Triplet(**ALL_CHANGED)

    def test_setting_that_there_is_not(self):
        with pytest.raises(ValueError, match=r"Triplet has no loss\.gamma_mim; it takes .*gamma_min"):
            PrimeLoss(gamma_mim=0.1)

    def test_a_loss_from_outside_has_its_own_keys(self, compose):
        other = "loss.contrast._target_=prime_xmc.model.losses.InfoNCE"
        config = compose("run_dir=run", "loss=custom", other, "+loss.contrast.temperature=0.3")
        assert instantiate(config.loss).contrast == InfoNCE(temperature=0.3)

    def test_keys_of_another_loss_are_named_with_how_to_remove_them(self, compose):
        other = "loss.contrast._target_=prime_xmc.model.losses.InfoNCE"
        with pytest.raises(Exception, match=r"InfoNCE has no loss\.gamma_min, .*~loss\.gamma_min ~loss\.gamma_max"):
            instantiate(compose("run_dir=run", other).loss)
        keys = ("gamma_min", "gamma_max", "weighting", "detach_weights", "invert_uncertain")
        config = compose("run_dir=run", other, *(f"~loss.{key}" for key in keys))
        assert instantiate(config.loss).contrast == InfoNCE(temperature=0.1, num_negatives=100)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"gamma_min": 0.4, "gamma_max": 0.3}, r"gamma_min=0\.4, gamma_max=0\.3"),
            ({"gamma_min": -0.1}, r"gamma_min=-0\.1"),
            ({"temperature": 0.0}, r"temperature above 0, got 0\.0"),
            ({"num_negatives": 0}, "num_negatives of at least 1"),
        ],
    )
    def test_settings_out_of_range(self, changes, message):
        with pytest.raises(ValueError, match=message):
            PrimeLoss(**changes)


class TestPairs:
    """What a loss is told of the positive pairs changes nothing, to the last bit."""

    @staticmethod
    def batch():
        generator = torch.Generator().manual_seed(0)
        embeddings = [F.normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (6, 5, 9)]
        positives = torch.rand(6, 9, generator=generator) < 0.3
        positives[2] = False
        negatives = ~positives & (torch.rand(6, 9, generator=generator) < 0.8)
        pairs = positives[:, :5].nonzero(as_tuple=True), positives.nonzero(as_tuple=True)
        return [each.requires_grad_() for each in embeddings], positives, negatives, pairs

    @pytest.mark.parametrize("contrast", [Triplet, InfoNCE, DecoupledSoftmax])
    def test_known_or_looked_up(self, contrast, monkeypatch):
        embeddings, positives, negatives, pairs = self.batch()
        loss = PrimeLoss(contrast=contrast, num_negatives=3)
        results = []
        for known in (None, pairs):
            if known is not None:
                monkeypatch.setattr(torch.Tensor, "nonzero", None)
            value, logs = loss(*embeddings, positives, negatives, known)
            results.append([value, *logs.values(), *torch.autograd.grad(value, embeddings)])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        assert results[0][0] > 0

    def test_a_contrast_of_ones_own_needs_to_take_none(self):
        @dataclass(frozen=True, kw_only=True)
        class Own(Contrast):
            temperature: float = 1.0
            num_negatives: int | None = None

            def __call__(self, similarity, positives, negatives):
                return mean_or_zero(similarity, negatives), {}

        embeddings, positives, negatives, pairs = self.batch()
        loss = PrimeLoss(contrast=Own)
        assert torch.equal(
            loss(*embeddings, positives, negatives, pairs)[0], loss(*embeddings, positives, negatives)[0]
        )

    def test_one_that_derives_from_a_contrast_which_takes_some_needs_to_take_none(self):
        class Half(Triplet):
            def __call__(self, similarity, positives, negatives):
                value, logs = super().__call__(similarity, positives, negatives)
                return value / 2, logs

        embeddings, positives, negatives, pairs = self.batch()
        whole, half = (
            PrimeLoss(contrast=contrast, regulariser_weight=0.0)(*embeddings, positives, negatives, pairs)[0]
            for contrast in (Triplet, Half)
        )
        torch.testing.assert_close(half, whole / 2)

    def test_a_softmax_loss_of_ones_own_needs_to_take_none(self):
        class Own(InfoNCE):
            loss = staticmethod(lambda similarity, positives, negatives, temperature: similarity.sum() / temperature)

        embeddings, positives, negatives, pairs = self.batch()
        terms = {"text_weight": 0.0, "label_weight": 0.0, "regulariser_weight": 0.0}
        value, _ = PrimeLoss(contrast=Own, temperature=0.5, **terms)(*embeddings, positives, negatives, pairs)
        torch.testing.assert_close(value, 2 * (embeddings[0] @ embeddings[2].T).sum())


class LearntTemperature(nn.Module):
    """A contrast with a parameter."""

    def __init__(self, start=2.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(start))

    def forward(self, similarity, positives, negatives):
        return mean_or_zero(similarity * self.scale, negatives), {}


def test_parameters_of_a_contrast_are_those_of_the_loss():
    embeddings, positives, negatives, _ = TestPairs.batch()
    loss = PrimeLoss(contrast=LearntTemperature, start=3.0)
    assert [name for name, _ in loss.named_parameters()] == ["contrast.scale"]
    assert "contrast.scale" in loss.state_dict()
    value, _ = loss(*embeddings, positives, negatives)
    value.backward()
    assert loss.contrast.scale.grad != 0


def test_a_contrast_sees_ids_and_inverse_propensities_if_it_asks_for_them():
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Own(Contrast):
        def __call__(self, similarity, positives, negatives, *, label_ids, inverse_propensity):
            assert (similarity * inverse_propensity).shape == similarity.shape
            seen.append((similarity.shape, label_ids, inverse_propensity))
            return similarity.sum(), {}

    embeddings, positives, negatives, _ = TestPairs.batch()
    ids = torch.tensor([3, 5, 6, 7, 11, 0, 1, 2, 4])
    inverse_propensity = torch.arange(12.0) + 1
    loss = PrimeLoss(contrast=Own, regulariser_weight=0.0)
    loss(*embeddings, positives, negatives, label_ids=ids, inverse_propensity=inverse_propensity)
    for (shape, label_ids, weights), (expected_shape, expected) in zip(
        seen, [((6, 9), ids[None]), ((6, 5), ids[None, :5]), ((5, 6), ids[:5, None])], strict=True
    ):
        assert tuple(shape) == expected_shape
        assert torch.equal(label_ids, expected)
        assert torch.equal(weights, expected + 1.0)


def test_two_point_term_contrasts_the_mean_of_a_query_and_its_label():
    embeddings, positives, negatives, pairs = TestPairs.batch()
    query_emb, label_emb, _ = embeddings
    terms = {"prototype_weight": 0.0, "text_weight": 0.0, "label_weight": 0.0, "regulariser_weight": 0.0}
    values = [
        PrimeLoss(contrast=DecoupledSoftmax, two_point_weight=0.3, **terms)(*embeddings, positives, negatives, known)[0]
        for known in (None, pairs)
    ]
    expected, count = 0.0, 0
    for query, label in positives[:, :5].nonzero().tolist():
        centre = F.normalize(query_emb[query] + label_emb[label], dim=0)
        row = (centre @ label_emb.T)[None]
        own = slice(query, query + 1)
        expected += decoupled_softmax(row, positives[own, :5], negatives[own, :5], 0.05)
        count += 1
    torch.testing.assert_close(values[0], 0.3 * expected / count)
    assert torch.equal(*values)


def test_a_contrast_that_asks_for_the_pairs_has_them_in_every_term():
    class Own(Contrast):
        def __call__(self, similarity, positives, negatives, pairs):
            assert torch.equal(positives, torch.zeros_like(positives).index_put(pairs, torch.tensor(True)))
            assert len(pairs[0]) == positives.sum() > 0
            return similarity[pairs].mean(), {}

    embeddings, positives, negatives, pairs = TestPairs.batch()
    loss = PrimeLoss(contrast=Own, two_point_weight=0.3)
    values = [loss(*embeddings, positives, negatives, known)[0] for known in (None, pairs)]
    torch.testing.assert_close(*values)


class TestWeightingOfNgame:
    """The weighting of NGAME's public code: a negative without a loss keeps the logit 0."""

    def test_value(self):
        """Margin 0.3, temperature 0.1: of the negatives 0.6, 0.5 and 0.1 the last one has no loss."""
        similarity, positives = matrix([0.5, 0.6, 0.5, 0.1]), mask([True, False, False, False])
        settings = {"gamma_min": 0.3, "gamma_max": 0.3, "num_negatives": 3, "weighting": "ngame"}
        loss, _ = triplet(similarity, positives, ~positives, **settings)
        total = math.exp(6) + math.exp(5) + 1
        expected = (0.4 * math.exp(6) + 0.3 * math.exp(5)) / total / 3
        assert loss.item() == pytest.approx(expected, abs=1e-12)
        assert loss.item() == pytest.approx(0.124143657, abs=1e-8)

    @pytest.mark.parametrize("detach", [True, False])
    def test_definition(self, detach):
        rng = torch.Generator().manual_seed(0)
        similarity = (2 * torch.rand(5, 8, generator=rng, dtype=torch.float64) - 1).requires_grad_()
        positives, negatives = random_masks(rng, (5, 8))
        means = []
        for row in range(5):
            hardest = sorted(negatives[row].nonzero().flatten().tolist(), key=lambda n: -similarity[row, n])[:4]
            of_pairs = []
            for p in positives[row].nonzero().flatten().tolist():
                losses = [torch.relu(similarity[row, n] - similarity[row, p] + 0.3) for n in hardest]
                logits = [similarity[row, n] / 0.1 * (loss > 0) for n, loss in zip(hardest, losses, strict=True)]
                logits = [logit.detach() for logit in logits] if detach else logits
                total = sum(logit.exp() for logit in logits)
                weighted = [logit.exp() / total * loss for logit, loss in zip(logits, losses, strict=True)]
                of_pairs.append(sum(weighted) / len(hardest))
            if of_pairs:
                means.append(sum(of_pairs) / len(of_pairs))
        expected = sum(means) / len(means)
        settings = {"gamma_min": 0.3, "gamma_max": 0.3, "num_negatives": 4, "weighting": "ngame"}
        found, _ = triplet(similarity, positives, negatives, detach_weights=detach, **settings)
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad(value, similarity)[0] for value in (found, expected)]
        torch.testing.assert_close(*gradients)

    def test_without_negatives_there_is_no_loss(self):
        similarity = matrix([0.5, 0.6]).requires_grad_()
        loss, _ = triplet(similarity, mask([True, True]), mask([False, False]), weighting="ngame")
        loss.backward()
        assert loss == 0
        assert similarity.grad.isfinite().all()
