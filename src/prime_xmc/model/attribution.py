"""How far each part of a sum of effects carries it: Shapley values."""

from collections.abc import Callable, Sequence
from itertools import combinations
from math import factorial

from jaxtyping import Float
from torch import Tensor


def shapley_values(
    parts: Sequence[str], value: Callable[[tuple[str, ...]], Float[Tensor, "*any"]]
) -> dict[str, Float[Tensor, "*any"]]:
    """Return the share of each part in the value of all of them; the shares add up to it.

    share(i) = sum over sets S without i of |S|! (n - |S| - 1)! / n! * (value(S with i) - value(S)), value of none = 0

    This is the change that a part makes when it joins the others, averaged over all orders in which they may join. It
    is fair to parts that say the same: each alone could be left out without much change, and neither is worthless.

    Args:
        parts: Names of the n parts, few of them, since all 2^n - 1 sets are valued.
        value: Function that returns the value of some parts, in the order of `parts`.

    Example:
        >>> from torch import tensor
        >>> values = {("a",): tensor(1.0), ("b",): tensor(1.0), ("a", "b"): tensor(1.0)}
        >>> shapley_values(["a", "b"], values.__getitem__)
        {'a': tensor(0.5000), 'b': tensor(0.5000)}

    Source: Shapley 1953; for models that predict, Lundberg and Lee 2017.
    """
    num_parts = len(parts)
    sets = [chosen for size in range(1, num_parts + 1) for chosen in combinations(parts, size)]
    values = {frozenset(chosen): value(chosen) for chosen in sets}
    values[frozenset()] = 0 * values[frozenset(parts)]
    shares = {}
    for part in parts:
        share = values[frozenset()]
        for chosen, worth in values.items():
            if part not in chosen:
                weight = factorial(len(chosen)) * factorial(num_parts - len(chosen) - 1) / factorial(num_parts)
                share = share + weight * (values[chosen | {part}] - worth)
        shares[part] = share
    return shares
