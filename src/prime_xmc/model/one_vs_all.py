"""One-vs-all classifiers that are trained together with the encoder: a vector per label, whose logit is x . w_l."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prime_xmc.model.summed_bce import LABEL_BLOCK, LabelPairs, summed_bce

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class OneVsAll(nn.Module):
    """A classifier w_l per label, without bias, trained by binary cross-entropy against all labels.

    Args:
        num_labels: Number L of labels.
        dim: Size d of embeddings.
        std: Standard deviation of the initial entries.
        dropout: Share of the entries of a query embedding that a training step leaves out, in [0, 1).
        dtype: Dtype of the table: "float32", or "bfloat16", whose steps have to be rounded at random, see `FusedSGD`.
        label_block: Labels that are scored at once; memory grows with it, results do not depend on it.

    Raises:
        ValueError: If a setting is out of range.

    Source: Renée, Jain et al. 2023; ELMO, Zhang et al. 2025, for the table in bfloat16.
    """

    def __init__(
        self,
        num_labels: int,
        dim: int,
        *,
        std: float | int = 0.02,
        dropout: float | int = 0.0,
        dtype: str = "float32",
        label_block: int = LABEL_BLOCK,
    ):
        super().__init__()
        if dtype not in _DTYPES:
            raise ValueError(f"expected model.dtype float32 or bfloat16, got {dtype!r}")
        if not std > 0:
            raise ValueError(f"expected model.std above 0, got {std}")
        if not 0 <= dropout < 1:
            raise ValueError(f"expected model.dropout of at least 0 and below 1, got {dropout}")
        if label_block < 1:
            raise ValueError(f"expected model.label_block of at least 1, got {label_block}")
        self.dropout = nn.Dropout(dropout)
        self.label_block = label_block
        self.weight = nn.Parameter((torch.randn(num_labels, dim) * std).to(_DTYPES[dtype]))

    @property
    def num_labels(self) -> int:
        """L."""
        return len(self.weight)

    def forward(
        self,
        query_emb: Float[Tensor, "query d"],
        positives: LabelPairs,
        spared: LabelPairs,
        take: Callable[[int, Tensor], None] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the summed binary cross-entropy of some queries against all labels; see `summed_bce`.

        Args:
            query_emb: Embeddings, of any norm.
            positives: Pairs that belong together.
            spared: Pairs that do not count.
            take: Function that steps a block of the table; None: the table gets a gradient.
        """
        return summed_bce(
            self.dropout(query_emb), self.weight, positives, spared, take=take, label_block=self.label_block
        )

    @torch.no_grad()
    def vectors(self) -> Float[Tensor, "label d"]:
        """Return the classifiers of all labels in float32, those of the table itself where it is in float32."""
        return self.weight.detach().float()
