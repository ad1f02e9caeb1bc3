"""Losses of other systems in place of the triplet loss: ANCE's, SiameseXML's and DEXML's."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from prime_xmc.model.losses import (
    Contrast,
    Pairs,
    SoftmaxContrast,
    TemperedContrast,
    hardest_negatives,
    mean_or_zero,
    mean_over_anchors,
)


def two_way_nll(
    similarity: Float[Tensor, "anchor candidate"],
    positives: Bool[Tensor, "anchor candidate"],
    negatives: Bool[Tensor, "anchor candidate"],
    temperature: float,
    pairs: Pairs | None = None,
) -> Float[Tensor, ""]:
    """Return the negative log-likelihood of each positive against one negative at a time.

    l = -log(exp(s_ap / t) / (exp(s_ap / t) + exp(s_an / t))), averaged over the negatives, then as in `info_nce`.

    Args:
        similarity: Similarity of each anchor and candidate.
        positives: Pairs to pull together. An anchor without a positive does not count.
        negatives: Pairs to push apart; disjoint from `positives`.
        temperature: Temperature t, in units of the similarity.
        pairs: The positive pairs, if they are known already.

    Source: Xiong et al. 2021 (ANCE), whose code makes such a pair of each mined negative, with t = 1.
    """
    anchor, column = pairs or positives.nonzero(as_tuple=True)
    gap = (similarity[anchor] - similarity[anchor, column].unsqueeze(1)) / temperature
    considered = negatives[anchor]
    per_pair = (F.softplus(gap) * considered).sum(dim=1) / considered.sum(dim=1).clamp(min=1)
    return mean_over_anchors(per_pair, anchor, positives)


class TwoWayNLL(SoftmaxContrast):
    """`two_way_nll`: an anchor's positive against one of its negatives at a time."""

    loss = staticmethod(two_way_nll)


def k_prob(
    similarity: Float[Tensor, "anchor candidate"],
    positives: Bool[Tensor, "anchor candidate"],
    negatives: Bool[Tensor, "anchor candidate"],
    *,
    scale: float,
    slope: float,
    num_negatives: int | None,
) -> Float[Tensor, ""]:
    """Return the likelihood loss of a model in which a pair belongs together with probability C exp(d (s - 1)).

    l = sum_p (-log C + d (1 - s_ap)) - sum_n log(1 - C exp(d (s_an - 1))), averaged over the anchors that have a
    positive.

    Args:
        similarity: Cosine similarity of each anchor and candidate. Above 1 - log(C) / d there is no such probability.
        positives: Pairs to pull together. An anchor without a positive does not count.
        negatives: Pairs to push apart; disjoint from `positives`.
        scale: Probability C of a pair with the cosine 1, below 1.
        slope: Slope d of the log-probability.
        num_negatives: Number of an anchor's negatives that count, the most similar ones; None for all of them.

    Source: Dahiya et al. 2021 (SiameseXML), the loss kProb of their public code.
    """
    pull = (slope * (1 - similarity) - math.log(scale)) * positives
    hardest = hardest_negatives(similarity, negatives, num_negatives)
    push = -torch.log1p(-scale * torch.exp(slope * (similarity.masked_fill(~hardest, -1) - 1))) * hardest
    return mean_or_zero((pull + push).sum(dim=1), positives.any(dim=1))


@dataclass(frozen=True, kw_only=True)
class KProb(Contrast):
    """`k_prob`, SiameseXML's own.

    Attributes:
        scale: Probability C of a pair with the cosine 1.
        slope: Slope d of the log-probability.

    Raises:
        ValueError: If a setting is out of range.
    """

    cosine_settings: ClassVar[tuple[str, ...]] = ("scale", "slope")
    num_negatives: int | None = 1
    scale: float = 0.9
    slope: float = 1.5

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.scale < 1 or self.slope <= 0:
            raise ValueError(
                f"expected a scale between 0 and 1 and a slope above 0, got scale={self.scale}, slope={self.slope}"
            )

    def __call__(
        self,
        similarity: Float[Tensor, "anchor candidate"],
        positives: Bool[Tensor, "anchor candidate"],
        negatives: Bool[Tensor, "anchor candidate"],
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the loss, and nothing else to log."""
        settings: Any = {"scale": self.scale, "slope": self.slope, "num_negatives": self.num_negatives}
        return k_prob(similarity, positives, negatives, **settings), {}


class _TopKThreshold(torch.autograd.Function):
    """`top_k_threshold` with its gradient by implicit differentiation, since the bisection has none."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, mask: Tensor, k: Tensor, slope: float, num_steps: int) -> Tensor:
        margin, largest = 10 / slope, torch.finfo(logits.dtype).max
        low = -logits.masked_fill(~mask, -largest).amax(dim=1, keepdim=True) - margin
        high = -logits.masked_fill(~mask, largest).amin(dim=1, keepdim=True) + margin
        is_empty = ~mask.any(dim=1, keepdim=True)
        low, high = low.masked_fill(is_empty, 0.0), high.masked_fill(is_empty, 0.0)
        for _ in range(num_steps):
            middle = (low + high) / 2
            is_low = ((slope * (logits + middle)).sigmoid() * mask).sum(dim=1, keepdim=True) < k
            low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
        threshold = (low + high) / 2
        share = (slope * (logits + threshold)).sigmoid()
        weight = share * (1 - share) * mask
        # with k candidates or fewer the threshold is a bound, which no small change of a logit moves
        weight = weight * (mask.sum(dim=1, keepdim=True) > k)
        ctx.save_for_backward(weight / weight.sum(dim=1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny))
        return threshold[:, 0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (weight,) = ctx.saved_tensors
        return -gradients[0].unsqueeze(1) * weight, None, None, None, None


def top_k_threshold(
    logits: Float[Tensor, "anchor candidate"],
    mask: Bool[Tensor, "anchor candidate"],
    k: int | Int64[Tensor, " anchor"],
    slope: float,
    num_steps: int = 32,
) -> Float[Tensor, " anchor"]:
    """Return the t of each anchor with which k of its candidates are chosen, softly: sum_c sigmoid(a (x_c + t)) = k.

    Its gradient is that of the equation: dt / dx_c = -v_c / sum(v), v = sigmoid' (a (x + t)).

    Args:
        logits: Logits x of each anchor and candidate.
        mask: Candidates that count. Where an anchor has k of them or fewer, t chooses all and has no gradient.
        k: Number k of candidates to choose, or one for each anchor.
        slope: Slope a of the choice.
        num_steps: Steps of bisection.

    Source: Gupta et al. 2024 (DEXML).
    """
    number = torch.as_tensor(k, device=logits.device).expand(len(logits)).unsqueeze(1)
    return _TopKThreshold.apply(logits, mask, number, slope, num_steps)


def soft_top_k(
    similarity: Float[Tensor, "anchor candidate"],
    positives: Bool[Tensor, "anchor candidate"],
    negatives: Bool[Tensor, "anchor candidate"],
    temperature: float,
    *,
    k: int,
    slope: float,
    pairs: Pairs | None = None,
    num_steps: int = 32,
) -> Float[Tensor, ""]:
    """Return SoftTop-k: the cross-entropy of positives being among the k candidates that are chosen softly.

    l = -log sigmoid(a (s_ap / t + threshold)), averaged as in `info_nce`, with `top_k_threshold` over all positives and
    negatives of the anchor. An anchor with k of them or fewer, such as in a small batch, chooses all but one: to choose
    all would train nothing. Without negatives there is nothing to choose from, and its l has no gradient to speak of.

    Args:
        similarity: Similarity of each anchor and candidate.
        positives: Pairs to pull together. An anchor without a positive does not count.
        negatives: Pairs to push apart; disjoint from `positives`.
        temperature: Temperature t, in units of the similarity.
        k: Number of candidates to choose.
        slope: Slope a of the choice.
        pairs: The positive pairs, if they are known already.
        num_steps: Steps of bisection.

    Source: Gupta et al. 2024 (DEXML).
    """
    anchor, column = pairs or positives.nonzero(as_tuple=True)
    logits = similarity / temperature
    candidates = positives | negatives
    all_but_one = (candidates.sum(dim=1) - 1).clamp(min=1, max=k)
    chosen = torch.where(negatives.any(dim=1), all_but_one, k)
    threshold = top_k_threshold(logits, candidates, chosen, slope, num_steps)
    per_pair = -F.logsigmoid(slope * (logits[anchor, column] + threshold[anchor]))
    return mean_over_anchors(per_pair, anchor, positives)


@dataclass(frozen=True, kw_only=True)
class SoftTopK(TemperedContrast):
    """`soft_top_k`, DEXML's loss for the first k answers.

    Attributes:
        k: Number of candidates to choose.
        slope: Slope of the choice.

    Raises:
        ValueError: If a setting is out of range.
    """

    temperature: float = 0.05
    k: int = 5
    slope: float = 2.0

    def __post_init__(self):
        super().__post_init__()
        if self.k < 1 or self.slope <= 0:
            raise ValueError(f"expected k of at least 1 and a slope above 0, got k={self.k}, slope={self.slope}")

    def __call__(
        self,
        similarity: Float[Tensor, "anchor candidate"],
        positives: Bool[Tensor, "anchor candidate"],
        negatives: Bool[Tensor, "anchor candidate"],
        pairs: Pairs | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the loss, and nothing else to log."""
        negatives = hardest_negatives(similarity, negatives, self.num_negatives)
        loss = soft_top_k(similarity, positives, negatives, self.temperature, k=self.k, slope=self.slope, pairs=pairs)
        return loss, {}
