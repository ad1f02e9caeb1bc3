"""The ranking metrics for the Trainer. Apart from the functions, since torchmetrics takes seconds to import."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int
from torchmetrics import Metric

from prime_xmc.data.corpus import Ragged
from prime_xmc.evaluation.metrics import METRICS, metric_sums, quotients


class XMCMetrics(Metric):
    """``evaluate`` in batches: the state holds the sums, so batches and processes add up to the same result.

    Args:
        inverse_propensity: weight of each label, >= 1.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    sums: torch.Tensor

    def __init__(self, inverse_propensity: Float64[np.ndarray, " label"]) -> None:
        super().__init__()
        self.inverse_propensity = inverse_propensity
        self.add_state("sums", torch.zeros(len(METRICS), 2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, indices: Int[np.ndarray, "query width"], positives: Ragged) -> None:
        """Add a batch of queries; arguments and errors are those of ``evaluate``."""
        batch = torch.from_numpy(metric_sums(indices, positives, self.inverse_propensity))
        # A module cast to bf16 takes the empty state along: counts would stall at 256.
        self.sums = self.sums.double() + batch.to(self.sums.device)

    def compute(self) -> dict[str, float]:
        """Return every metric over the queries seen so far, as ``evaluate`` does."""
        return quotients(self.sums.cpu().numpy())


def log_metrics(module: Any, metrics: XMCMetrics, prefix: str) -> None:
    """Log what the metrics of a LightningModule come to, P@1 in the progress bar too, and start them anew.

    Where no query has a label there are no metrics, and nothing is logged.

    Args:
        module: The module that logs.
        metrics: Metrics of the queries of an epoch.
        prefix: Prefix of their names, such as "val".
    """
    # Lightning would round a Python float to float32; a tensor keeps what `evaluate` gives for the same predictions.
    values = {f"{prefix}/{name}": torch.tensor(value, dtype=torch.float64) for name, value in metrics.compute().items()}
    metrics.reset()
    if values:
        shown = f"{prefix}/P@1"
        module.log(shown, values.pop(shown), prog_bar=True)
        module.log_dict(values)
