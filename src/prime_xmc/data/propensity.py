"""How much rarer than it should be each label is in the data: the inverse propensity."""

import numpy as np
from jaxtyping import Float64, Int64


def inverse_propensity(
    label_frequency: Int64[np.ndarray, " label"], num_queries: int, a: float, b: float
) -> Float64[np.ndarray, " label"]:
    """Return each label's inverse propensity.

    1 / p_l = 1 + C (n_l + B)^(-A)    with    C = (ln N - 1) (B + 1)^A

    Args:
        label_frequency: n_l, the number of training queries of each label.
        num_queries: N, the number of training queries, at least 3 (below that C is negative).
        a: A >= 0, a constant of the data set.
        b: B > 0, a constant of the data set.

    Returns:
        The inverse propensities, each at least 1; the rarer the label, the larger.

    Raises:
        ValueError: when num_queries, a or b is out of its range.

    Example:
        >>> inverse_propensity(np.array([0, 1, 100]), num_queries=1000, a=0.55, b=1.5).round(3)
        array([8.824, 6.908, 1.77 ])

    Source:
        Jain et al., "Extreme multi-label loss functions for recommendation, tagging, ranking and other missing label
        applications", KDD 2016, section 5.
    """
    if num_queries < 3:
        raise ValueError(f"num_queries is {num_queries}; inverse propensities need at least 3 training queries")
    if a < 0 or b <= 0:
        raise ValueError(f"the propensity constants are A = {a}, B = {b}; they must satisfy A >= 0 and B > 0")
    c = (np.log(num_queries) - 1) * (b + 1) ** a
    return 1 + c * (label_frequency + b) ** -a
