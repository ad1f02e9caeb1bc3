"""The terms of PRIME's objective as pure functions of similarity matrices, and the module that weights them."""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from prime_xmc.model.known_gradient import KnownGradient

Weighting = Literal["softmax", "sum", "active_mean", "ngame"]
Pairs = tuple[Int64[Tensor, " _"], Int64[Tensor, " _"]]
"""Anchor and candidate of each positive pair, in the order of anchors, then of candidates."""
LeftOutPrototypes = tuple[Int64[Tensor, " _"], Int64[Tensor, " _"], Float[Tensor, "_ d"]]
"""Query, candidate and the candidate's prototype without that query, see `Prototypes.leave_one_out`."""


@dataclass(frozen=True, kw_only=True)
class Contrast(ABC):
    """A loss that contrasts the positives of an anchor with its negatives, and its settings.

    A contrast with parameters is an `nn.Module` whose `forward` has the arguments of `__call__`; it need not derive
    from this class.

    Attributes:
        num_negatives: Number of an anchor's negatives that count, the most similar ones; None for all of them.
        cosine_settings: Names of settings that mean something for cosines alone, not for other inner products.

    Raises:
        ValueError: If the number of negatives is not positive.
    """

    num_negatives: int | None = None
    cosine_settings: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        if self.num_negatives is not None and self.num_negatives < 1:
            raise ValueError(f"expected num_negatives of at least 1 (null for all), got {self.num_negatives}")

    @abstractmethod
    def __call__(
        self,
        similarity: Float[Tensor, "anchor candidate"],
        positives: Bool[Tensor, "anchor candidate"],
        negatives: Bool[Tensor, "anchor candidate"],
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the loss of a batch, 0 where there is nothing to contrast, and detached values to log.

        It may have further arguments, which it is given by their names:

        - `pairs`: anchor and candidate of the positive pairs, so that it need not look them up in `positives`,
        - `label_ids`: ids of the labels,
        - `inverse_propensity`: inverse propensities of the labels, float32, at least 1.

        The latter two have the shape [1, candidate] where candidates are labels and [anchor, 1] where anchors are, so
        that they broadcast with `similarity`.

        Args:
            similarity: Cosine similarity of each anchor and candidate.
            positives: Pairs to pull together. An anchor without a positive does not count.
            negatives: Pairs to push apart; disjoint from `positives`. A pair may be in neither.
        """


AnyContrast = Contrast | nn.Module
"""A contrast without parameters, or a module that has some."""


@dataclass(frozen=True, kw_only=True)
class TemperedContrast(Contrast):
    """A contrast with a temperature.

    Attributes:
        temperature: Temperature of the softmax over candidates, in cosine units. A smaller one puts the weight on
            fewer, harder negatives.

    Raises:
        ValueError: If the temperature or the number of negatives is not positive.
    """

    temperature: float

    def __post_init__(self):
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"expected a temperature above 0, got {self.temperature}")


def contrast_of(
    contrast: AnyContrast,
    similarity: Float[Tensor, "anchor candidate"],
    positives: Bool[Tensor, "anchor candidate"],
    negatives: Bool[Tensor, "anchor candidate"],
    pairs: Pairs | None = None,
    describe: bool = True,
    **known: Any,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return what a contrast does, given the positive pairs and what else is known if it asks for them by name.

    To look the pairs up in `positives`, the host would have to wait for a GPU. The values to log may be missing where
    `describe` is false.
    """
    if type(contrast) is Triplet and not describe:
        return triplet_loss(similarity, positives, negatives, contrast, pairs, describe=False)[0], {}
    asked = asked_by(contrast)
    if pairs is None and "pairs" in asked:
        anchor, candidate = positives.nonzero(as_tuple=True)
        pairs = anchor, candidate
    given = {name: value for name, value in (("pairs", pairs), *known.items()) if name in asked and value is not None}
    return contrast(similarity, positives, negatives, **given)


def asked_by(contrast: AnyContrast) -> frozenset[str]:
    """Return the names of the arguments of a contrast; a class may derive from one whose contrasts take fewer."""
    kind = type(contrast)
    return _arguments(kind.forward if issubclass(kind, nn.Module) else kind.__call__)


@functools.cache
def _arguments(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def transposed(pairs: Pairs, num_anchors: int) -> Pairs:
    """Return the same pairs where candidates are the anchors, in the order of those.

    Example:
        >>> transposed((torch.tensor([0, 0, 1]), torch.tensor([1, 2, 1])), num_anchors=2)
        (tensor([1, 1, 2]), tensor([0, 1, 0]))
    """
    anchor, candidate = pairs
    order = (candidate * num_anchors + anchor).argsort()
    return candidate[order], anchor[order]


@dataclass(frozen=True, kw_only=True)
class Triplet(TemperedContrast):
    """`triplet_loss`, PRIME's own.

    Attributes:
        gamma_min: Lower bound of the margin, in cosine units.
        gamma_max: Upper bound of the margin, in cosine units.
        weighting: Combination of the losses l of one pair's negatives. "softmax": mean weighted by
            softmax(s_an / temperature) over those with l > 0. "sum": sum (Eq. 1). "active_mean": mean over l > 0.
            "ngame": mean of w l over all negatives that count, where w is the softmax over all of them of
            s_an / temperature, or of 0 where l = 0, so that a negative without a loss takes weight from the others.
        detach_weights: Whether the softmax weights stay out of the graph. With their gradient, a weaker violator is
            pushed *up*.
        invert_uncertain: Whether Eq. 3 is taken to the letter: where 0 < s_ap - s_an < gamma_min, the loss is
            (s_ap - s_an) + gamma_min, whose gradient is inverted. Otherwise the first line of Eq. 13 applies.

    Raises:
        ValueError: If the margin's bounds are out of order, or the weighting is unknown.
    """

    cosine_settings: ClassVar[tuple[str, ...]] = ("gamma_min", "gamma_max")
    temperature: float = 0.1
    num_negatives: int | None = 100
    gamma_min: float = 0.1
    gamma_max: float = 0.3
    weighting: Weighting = "softmax"
    detach_weights: bool = True
    invert_uncertain: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.gamma_min <= self.gamma_max:
            raise ValueError(
                f"expected 0 <= gamma_min <= gamma_max, got gamma_min={self.gamma_min}, gamma_max={self.gamma_max}"
            )
        if self.weighting not in get_args(Weighting):
            raise ValueError(f"expected weighting softmax, sum, active_mean or ngame, got {self.weighting!r}")

    def __call__(
        self,
        similarity: Float[Tensor, "anchor candidate"],
        positives: Bool[Tensor, "anchor candidate"],
        negatives: Bool[Tensor, "anchor candidate"],
        pairs: Pairs | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return `triplet_loss`, and the fractions of violators and of clipped margins."""
        loss, stats = triplet_loss(similarity, positives, negatives, self, pairs)
        assert stats is not None
        return loss, {"violators": stats.violators, "clipped_margins": stats.clipped}


class TripletStats(NamedTuple):
    """Statistics of a triplet term: scalars in [0, 1], without gradient.

    Attributes:
        violators: Fraction of the considered triplets with a loss above 0.
        clipped: Fraction of the considered triplets whose margin was clipped to gamma_min or gamma_max.
    """

    violators: Tensor
    clipped: Tensor


def mean_or_zero(values: Float[Tensor, "..."], mask: Bool[Tensor, "..."]) -> Float[Tensor, ""]:
    """Return the mean of the masked values; 0, with a zero gradient, where the mask is empty.

    Example:
        >>> mean_or_zero(torch.tensor([1.0, 3.0, 7.0]), torch.tensor([True, True, False])).item()
        2.0
        >>> mean_or_zero(torch.tensor([1.0]), torch.tensor([False])).item()
        0.0
    """
    return (values * mask).sum() / mask.sum().clamp(min=1)


def mean_over_anchors(
    per_pair: Float[Tensor, " pair"], anchor: Int64[Tensor, " pair"], positives: Bool[Tensor, "anchor candidate"]
) -> Float[Tensor, ""]:
    """Return the mean over the positives of an anchor, then over the anchors that have one; 0 where none has.

    Args:
        per_pair: Value of each (anchor, positive) pair.
        anchor: Anchor of each pair.
        positives: Which candidates are positives of which anchor.
    """
    return (per_pair * shares_of_pairs(anchor, positives, per_pair.dtype)).sum()


def shares_of_pairs(
    anchor: Int64[Tensor, " pair"], positives: Bool[Tensor, "anchor candidate"], dtype: torch.dtype
) -> Float[Tensor, " pair"]:
    """Return the weights of the pairs in `mean_over_anchors`."""
    pairs_of_anchor = positives.sum(dim=1)
    num_anchors = (pairs_of_anchor > 0).sum().clamp(min=1)
    return (pairs_of_anchor.index_select(0, anchor) * num_anchors).to(_wide(dtype)).reciprocal().to(dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return a dtype in which numbers of pairs are no overflow, as they would be in float16."""
    return torch.promote_types(dtype, torch.float32)


def hardest_negatives(
    similarity: Float[Tensor, "anchor candidate"],
    negatives: Bool[Tensor, "anchor candidate"],
    num_negatives: int | None,
) -> Bool[Tensor, "anchor candidate"]:
    """Return the `num_negatives` negatives of each anchor that are most similar to it, or all where it is None."""
    if num_negatives is None or num_negatives >= similarity.shape[1]:
        return negatives
    hardest, _ = _find_hardest(similarity, negatives, num_negatives)
    return negatives & torch.zeros_like(negatives).scatter(1, hardest, True)


def _hardest(
    similarity: Float[Tensor, "anchor candidate"],
    negatives: Bool[Tensor, "anchor candidate"],
    num_negatives: int | None,
) -> tuple[Int64[Tensor, "anchor negative"] | None, Float[Tensor, "anchor negative"]]:
    """Return what `_find_hardest` does; where all count, None for their columns."""
    if num_negatives is None or num_negatives >= similarity.shape[1]:
        return None, _among(negatives, similarity)
    return _find_hardest(similarity, negatives, num_negatives)


def _find_hardest(
    similarity: Float[Tensor, "anchor candidate"], negatives: Bool[Tensor, "anchor candidate"], num_negatives: int
) -> tuple[Int64[Tensor, "anchor negative"], Float[Tensor, "anchor negative"]]:
    """Return columns and similarities, without gradient, of the negatives that are most similar to each anchor.

    Where an anchor has too few, others take the place, with a similarity of -inf.
    """
    # rows of a transposed matrix are no runs of memory, and each is read many times over
    found = _among(negatives, similarity).contiguous().topk(num_negatives, dim=1, sorted=False)
    return found.indices, found.values


def _among(
    negatives: Bool[Tensor, "anchor candidate"], similarity: Float[Tensor, "anchor candidate"]
) -> Float[Tensor, "anchor candidate"]:
    # not the opposite of a mask filled with -inf, which would be one more pass over the whole matrix
    return torch.where(negatives, similarity.detach(), -torch.inf)


def dynamic_margin(
    positive_sim: Float[Tensor, "..."], negative_sim: Float[Tensor, "..."], gamma_min: float, gamma_max: float
) -> Float[Tensor, "..."]:
    """Return the margin of each triplet, outside the graph.

    m = clip(|s_ap - s_an|, gamma_min, gamma_max)

    gamma_min = gamma_max gives the fixed margin; gamma_min = 0 with gamma_max = 2 leaves it unclipped.

    Source: section 3.1, Propositions 1 and 2; the margin is detached (Appendix A.2).
    """
    return (positive_sim - negative_sim).detach().abs().clamp(gamma_min, gamma_max)


def triplet_loss(
    similarity: Float[Tensor, "anchor candidate"],
    positives: Bool[Tensor, "anchor candidate"],
    negatives: Bool[Tensor, "anchor candidate"],
    settings: Triplet,
    pairs: Pairs | None = None,
    *,
    describe: bool = True,
) -> tuple[Float[Tensor, ""], TripletStats | None]:
    """Return the dynamic-margin triplet loss over all (anchor, positive, negative) triplets of a batch.

    l = max(s_an - s_ap + m, 0), with m from `dynamic_margin`. It is combined over the negatives of a pair by the
    weighting, then averaged over the positives of an anchor, then over the anchors that have a positive.

    Args:
        similarity: Cosine similarity of each anchor and candidate.
        positives: Pairs to pull together. An anchor without a positive does not count.
        negatives: Pairs to push apart; disjoint from `positives`.
        settings: Bounds of the margin, and weighting of the triplets.
        pairs: The positive pairs, if they are known already.
        describe: Whether the statistics are wanted.

    Returns:
        The loss (0 where there is no triplet) and its `TripletStats`, None where they are not wanted.

    Source: Eq. 1-3, 13 and Appendix A; softmax weights and hardest negatives from the public code; weighting "ngame"
        from the public code of NGAME, Dahiya et al. 2023a.
    """
    anchor, column = pairs or positives.nonzero(as_tuple=True)
    with torch.no_grad():
        hardest, negative_sim = _hardest(similarity, negatives, settings.num_negatives)
        negative_sim = negative_sim.index_select(0, anchor)
        positive_sim = similarity[anchor, column].unsqueeze(1)
        margin = dynamic_margin(positive_sim, negative_sim, settings.gamma_min, settings.gamma_max)
        absent = negative_sim == -torch.inf  # in the place of negatives that an anchor does not have
        loss = torch.relu(negative_sim - positive_sim + margin).masked_fill(absent, 0.0)
        uncertain = None
        if settings.invert_uncertain:
            gap = positive_sim - negative_sim
            uncertain = (gap > 0) & (gap < settings.gamma_min)
            loss = torch.where(uncertain, gap + settings.gamma_min, loss)
        # exactly 0 has no gradient: a maximum with zeros would have half of one there
        idle = loss == 0
        weight, count = _weights(negative_sim, absent, idle, settings)
        of_pair = weight * shares_of_pairs(anchor, positives, similarity.dtype).unsqueeze(1)
        value = (of_pair * loss).sum()

        # d l / d s_an is 1 and d l / d s_ap is -1, and the other way round where the loss is inverted
        of_negatives = of_pair if uncertain is None else torch.where(uncertain, -of_pair, of_pair)
        of_positive = -of_negatives.sum(dim=1)
        if not settings.detach_weights and settings.weighting in ("softmax", "ngame"):
            # d softmax(z)_i / d z_j = softmax(z)_i ((i = j) - softmax(z)_j)
            per_pair = (weight * loss).sum(dim=1, keepdim=True)
            of_negatives = of_negatives + of_pair * (loss - count * per_pair) / settings.temperature
        shape = (len(similarity), of_negatives.shape[1])
        of_anchors = similarity.new_zeros(shape).index_add_(0, anchor, of_negatives)
    total = KnownGradient.apply(similarity, value, hardest, of_anchors, (anchor, column), of_positive)
    if not describe:
        return total, None
    with torch.no_grad():
        considered = ~absent
        num_triplets = considered.sum().clamp(min=1)
        unclipped = (margin > settings.gamma_min) & (margin < settings.gamma_max)
        stats = TripletStats(
            violators=(~idle).sum() / num_triplets, clipped=(considered & ~unclipped).sum() / num_triplets
        )
    return total, stats


def _weights(
    negative_sim: Float[Tensor, "pair negative"],
    absent: Bool[Tensor, "pair negative"],
    idle: Bool[Tensor, "pair negative"],
    settings: Triplet,
) -> tuple[Float[Tensor, "pair negative"], Tensor | int]:
    """Return the weights of a pair's losses, 0 for those that are 0, and the number that divides a softmax."""
    if settings.weighting == "sum":
        return (~idle).to(negative_sim), 1
    if settings.weighting == "active_mean":
        active = (~idle).to(negative_sim)
        return active / active.sum(dim=1, keepdim=True).clamp(min=1), 1
    logits = negative_sim / settings.temperature
    # not -inf: the softmax of a pair of which nothing counts would be one over nothing, NaN
    least = torch.finfo(logits.dtype).min
    if settings.weighting == "softmax":
        return logits.masked_fill(idle, least).softmax(dim=1).masked_fill(idle, 0.0), 1
    count = (~absent).sum(dim=1, keepdim=True).clamp(min=1)
    logits = logits.masked_fill(idle, 0.0).masked_fill(absent, least)
    return logits.softmax(dim=1).masked_fill(idle, 0.0) / count, count


def info_nce(
    similarity: Float[Tensor, "anchor candidate"],
    positives: Bool[Tensor, "anchor candidate"],
    negatives: Bool[Tensor, "anchor candidate"],
    temperature: float,
    pairs: Pairs | None = None,
) -> Float[Tensor, ""]:
    """Return InfoNCE: the cross-entropy of each positive among all positives and negatives of its anchor.

    l = -log(exp(s_ap / t) / sum_{c in P and N} exp(s_ac / t)), averaged over the positives of an anchor, then over the
    anchors that have a positive. The positives of an anchor compete: with k of them, l is at best log(k) on average.

    Args:
        similarity: Cosine similarity of each anchor and candidate.
        positives: Pairs to pull together. An anchor without a positive does not count.
        negatives: Pairs to push apart; disjoint from `positives`.
        temperature: Temperature t, in cosine units.
        pairs: The positive pairs, if they are known already.

    Source: van den Oord et al. 2018; with several positives as in Gupta et al. 2024 (DEXML), their softmax loss.
    """
    anchor, column = pairs or positives.nonzero(as_tuple=True)
    logits = similarity / temperature
    per_pair = _log_sum_exp(logits, positives | negatives)[anchor] - logits[anchor, column]
    return mean_over_anchors(per_pair, anchor, positives)


def decoupled_softmax(
    similarity: Float[Tensor, "anchor candidate"],
    positives: Bool[Tensor, "anchor candidate"],
    negatives: Bool[Tensor, "anchor candidate"],
    temperature: float,
    pairs: Pairs | None = None,
) -> Float[Tensor, ""]:
    """Return the decoupled softmax: each positive among itself and the negatives of its anchor.

    l = -log(exp(s_ap / t) / (exp(s_ap / t) + sum_{n in N} exp(s_an / t))), averaged as in `info_nce`, to which it is
    equal where an anchor has one positive. Without negatives l is 0.

    Args:
        similarity: Cosine similarity of each anchor and candidate.
        positives: Pairs to pull together. An anchor without a positive does not count.
        negatives: Pairs to push apart; disjoint from `positives`.
        temperature: Temperature t, in cosine units.
        pairs: The positive pairs, if they are known already.

    Source: Gupta et al. 2024 (DEXML), the decoupled softmax.
    """
    anchor, column = pairs or positives.nonzero(as_tuple=True)
    logits = similarity / temperature
    per_pair = -F.logsigmoid(logits[anchor, column] - _log_sum_exp(logits, negatives)[anchor])
    return mean_over_anchors(per_pair, anchor, positives)


def _log_sum_exp(
    logits: Float[Tensor, "anchor candidate"], mask: Bool[Tensor, "anchor candidate"]
) -> Float[Tensor, " anchor"]:
    # the gradient of -inf would be NaN where the mask is empty
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min).logsumexp(dim=1)


@dataclass(frozen=True, kw_only=True)
class SoftmaxContrast(TemperedContrast):
    """A softmax loss over the hardest negatives.

    Attributes:
        loss: Function of similarity, positives, negatives and temperature; and of `pairs`, if it has such an argument.
    """

    temperature: float = 0.05
    num_negatives: int | None = None
    loss: ClassVar[Callable[..., Tensor]]

    def __call__(
        self,
        similarity: Float[Tensor, "anchor candidate"],
        positives: Bool[Tensor, "anchor candidate"],
        negatives: Bool[Tensor, "anchor candidate"],
        pairs: Pairs | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the loss, and nothing else to log."""
        negatives = hardest_negatives(similarity, negatives, self.num_negatives)
        known = {"pairs": pairs} if "pairs" in _arguments(self.loss) else {}
        return self.loss(similarity, positives, negatives, self.temperature, **known), {}


class InfoNCE(SoftmaxContrast):
    """`info_nce`: an anchor's positive against all of its candidates, its other positives included."""

    loss = staticmethod(info_nce)


class DecoupledSoftmax(SoftmaxContrast):
    """`decoupled_softmax`: an anchor's positive against its negatives only."""

    loss = staticmethod(decoupled_softmax)


def regulariser(
    prototype_sim: Float[Tensor, "query label"],
    text_sim: Float[Tensor, "query label"],
    positives: Bool[Tensor, "query label"],
    negatives: Bool[Tensor, "query label"],
    *,
    margin: float = 0.1,
    num_negatives: int | None = 100,
    hinge: bool = True,
    pairs: Pairs | None = None,
) -> Float[Tensor, ""]:
    """Return R, by which prototypes have to score positives higher than text does, and negatives lower.

    R_p = mean(s_qp - b_qp + m'),  R_n = mean(b_qn - s_qn + m'),  R = (R_p + R_n) / 2

    Args:
        prototype_sim: Similarities b_ql = h_q . z_l.
        text_sim: Similarities s_ql = h_q . h_l.
        positives: Pairs of R_p.
        negatives: Pairs of R_n.
        margin: Margin m', in cosine units.
        num_negatives: Number of a query's negatives that count, the most similar ones by prototype; None for all.
        hinge: Whether differences are cut at 0 and only those above it are averaged (public code). Otherwise R has the
            plain means of Eq. 6-7, which are unbounded below.
        pairs: The pairs of R_p, if they are known already.

    Source: Eq. 6-7.
    """
    anchor, column = pairs or positives.nonzero(as_tuple=True)
    gain = text_sim - prototype_sim
    with torch.no_grad():
        hardest, negative_sim = _hardest(prototype_sim, negatives, num_negatives)
        of_negatives = margin - (gain if hardest is None else gain.gather(1, hardest))
        value_p, weight_p = _half_mean(gain[anchor, column] + margin, None, hinge)
        value_n, weight_n = _half_mean(of_negatives, negative_sim > -torch.inf, hinge)
    return KnownGradient.apply(gain, value_p + value_n, hardest, -weight_n, (anchor, column), weight_p)


def _half_mean(
    values: Float[Tensor, "..."], mask: Bool[Tensor, "..."] | None, hinge: bool
) -> tuple[Float[Tensor, ""], Float[Tensor, "..."]]:
    """Return half the mean of those values that are in the mask, and above 0 if there is a hinge; and its gradient."""
    if hinge:
        mask = values > 0 if mask is None else mask & (values > 0)
    counted = torch.ones_like(values) if mask is None else mask.to(values)
    wide = _wide(values.dtype)
    weight = counted * (0.5 / counted.sum(dtype=wide).clamp(min=1)).to(values.dtype)
    return (values * weight).sum(), weight


class PrimeLoss(nn.Module):
    """Eq. 5: L = l(h_q, z_l) + l(h_q, h_l) + l(h_l, h_q) + lambda R; a weight of 0 switches a term off.

    Labels are ranked by their prototypes. Where neither the first term nor R trains these, they should be the text
    embeddings (see `Prototypes`).

    Args:
        contrast: Maker of l, which the terms share, from `settings`. What it makes is a `Contrast`, or a module with
            its arguments, whose parameters are trained and saved with the others.
        prototype_weight: Weight of l(h_q, z_l), query to prototype.
        text_weight: Weight of l(h_q, h_l), query to label text.
        label_weight: Weight of l(h_l, h_q), label text to query.
        regulariser_weight: Weight lambda of R.
        regulariser_margin: Margin m' of R, in cosine units.
        regulariser_hinge: Whether R has a hinge, see `regulariser`.
        two_point_weight: Weight of l(normalise(h_q + h_l), h_l'), in which the mean of a query and its positive takes
            the place of the query (SiameseXML).
        settings: Fields of the contrast. R counts as many negatives as the contrast does.

    Raises:
        ValueError: If a setting is out of range, or the contrast does not take it.

    Source: section 3.3, Eq. 5; Table 6 leaves out terms. The paper names contrasts other than `Triplet` as future work.
        The two-point term is that of Dahiya et al. 2021 (SiameseXML).
    """

    def __init__(
        self,
        *,
        contrast: Callable[..., AnyContrast] = Triplet,
        prototype_weight: float = 1.0,
        text_weight: float = 1.0,
        label_weight: float = 1.0,
        regulariser_weight: float = 0.1,
        regulariser_margin: float = 0.1,
        regulariser_hinge: bool = True,
        two_point_weight: float = 0.0,
        **settings: Any,
    ):
        super().__init__()
        _check_settings(contrast, settings)
        self.contrast = contrast(**settings)
        self.weights = {
            "query_prototype": prototype_weight,
            "query_label": text_weight,
            "label_query": label_weight,
            "two_point": two_point_weight,
            "regulariser": regulariser_weight,
        }
        self.regulariser_margin = regulariser_margin
        self.regulariser_hinge = regulariser_hinge

    @property
    def cosine_settings(self) -> list[str]:
        """Names of settings in use that mean something for unit vectors alone, such as margins."""
        own = ["regulariser_margin"] if self.weights["regulariser"] else []
        return [*getattr(self.contrast, "cosine_settings", ()), *own]

    def forward(
        self,
        query_emb: Float[Tensor, "query d"],
        label_emb: Float[Tensor, "label d"],
        prototypes: Float[Tensor, "candidate d"],
        positives: Bool[Tensor, "query candidate"],
        negatives: Bool[Tensor, "query candidate"],
        pairs: tuple[Pairs, Pairs] | None = None,
        left_out: LeftOutPrototypes | None = None,
        label_ids: Int64[Tensor, " candidate"] | None = None,
        inverse_propensity: Float[Tensor, " all"] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the objective, and detached values to log: its terms, and the contrast's statistics of one of them.

        That is the first term that has a weight: queries and prototypes, or queries and label texts.

        Args:
            query_emb: Unit vectors h_q.
            label_emb: Unit vectors h_l.
            prototypes: Unit vectors z_l of the same labels, then of others that enter the first term alone.
            positives: Pairs to pull together.
            negatives: Pairs to push apart; disjoint from `positives`. A pair may be in neither.
            pairs: Query and label of the positive pairs with the labels of `label_emb`, then of those with any label,
                if they are known already.
            left_out: Positive pairs whose label has a prototype of its own for this query.
            label_ids: Ids of the labels of `prototypes`, for contrasts that ask for them.
            inverse_propensity: Inverse propensities of all labels there are, likewise.
        """
        text_sim = query_emb @ label_emb.T
        prototype_sim = query_emb @ prototypes.T
        if left_out is not None:
            rows, columns, own = left_out
            prototype_sim = prototype_sim.index_put((rows, columns), (query_emb[rows] * own).sum(dim=1))
        encoded = slice(len(label_emb))
        is_positive, is_negative = positives[:, encoded], negatives[:, encoded]
        total = query_emb.new_zeros(())
        logs: dict[str, Tensor] = {}
        of_encoded, of_all = pairs or (None, None)
        of_labels = transposed(of_encoded, len(query_emb)) if of_encoded and self.weights["label_query"] else None
        terms = {
            "query_prototype": (prototype_sim, positives, negatives, of_all),
            "query_label": (text_sim, is_positive, is_negative, of_encoded),
            "label_query": (text_sim.T, is_positive.T, is_negative.T, of_labels),
        }
        if self.weights["two_point"]:
            rows, columns = of_encoded or is_positive.nonzero(as_tuple=True)
            centre = F.normalize(query_emb[rows] + label_emb[columns], dim=1)
            terms["two_point"] = centre @ label_emb.T, is_positive[rows], is_negative[rows], None
        about_labels = self._about_labels(label_ids, inverse_propensity)
        described = next((name for name in terms if self.weights[name]), None)
        for name, contrasted in terms.items():
            if self.weights[name]:
                is_described = name == described
                known: dict[str, Any] = {
                    key: _along(values, contrasted[0], of_anchors=name == "label_query")
                    for key, values in about_labels.items()
                }
                value, stats = contrast_of(self.contrast, *contrasted, describe=is_described, **known)
                total = total + self.weights[name] * value
                logs[name] = value.detach()
                if is_described:
                    logs |= stats
        if self.weights["regulariser"]:
            value = regulariser(
                prototype_sim[:, encoded],
                text_sim,
                is_positive,
                is_negative,
                margin=self.regulariser_margin,
                num_negatives=getattr(self.contrast, "num_negatives", None),
                hinge=self.regulariser_hinge,
                pairs=of_encoded,
            )
            total = total + self.weights["regulariser"] * value
            logs["regulariser"] = value.detach()
        return total, logs

    def _about_labels(self, label_ids: Tensor | None, inverse_propensity: Tensor | None) -> dict[str, Tensor]:
        """Return what the contrast asks for of the labels, a value for each of them."""
        asked, about = asked_by(self.contrast), {}
        if label_ids is not None and "label_ids" in asked:
            about["label_ids"] = label_ids
        if label_ids is not None and inverse_propensity is not None and "inverse_propensity" in asked:
            about["inverse_propensity"] = inverse_propensity[label_ids]
        return about


def _along(
    values: Shaped[Tensor, " label"], similarity: Float[Tensor, "anchor candidate"], *, of_anchors: bool
) -> Shaped[Tensor, "_ _"]:
    """Return a value for each label: a column where labels are anchors, a row where they are candidates."""
    return values[: similarity.shape[0], None] if of_anchors else values[None, : similarity.shape[1]]


def _check_settings(contrast: Callable[..., AnyContrast], settings: Mapping[str, Any]) -> None:
    """Refuse settings that a contrast does not take, such as those that another one has left in the configuration."""
    parameters = inspect.signature(contrast).parameters
    unknown = [f"loss.{name}" for name in settings if name not in parameters]
    if unknown and not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values()):
        raise ValueError(
            f"the loss {getattr(contrast, 'func', contrast).__name__} has no {', '.join(unknown)}; it takes "
            f"{', '.join(parameters) or 'no settings'}. Correct the name, or remove what belongs to another loss with "
            f"{' '.join(f'~{name}' for name in unknown)}; loss=custom has the keys of the terms only"
        )
