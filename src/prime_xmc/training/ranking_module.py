"""What training modules with an encoder share: the log of their steps, frozen layers, and the ranking of queries."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from torch import Tensor

from prime_xmc.data.batch import Batch, Texts
from prime_xmc.evaluation.meter import XMCMetrics, log_metrics
from prime_xmc.evaluation.metrics import TOP_K
from prime_xmc.evaluation.rank import search_unfiltered
from prime_xmc.model.banks import RowBank
from prime_xmc.model.encoder import TextEncoder
from prime_xmc.model.frozen import kept_dtype
from prime_xmc.training.protocols import Searcher
from prime_xmc.training.step_log import StepLog


class RankingModule(LightningModule):
    """Logs training steps, and ranks the labels for validation and test queries by a vector of each label.

    Args:
        encoder: Text encoder f_theta.
        searcher: Search of the label vectors in validation and test.
        inverse_propensity: Inverse propensity of every label, for the metrics.
        make_bank: Function that makes tables with a row per query, label or token.

    Attributes:
        test_predictions: Label ids and scores of the test queries' best labels; None before a test.
        keeps_queries: Whether `ranked_queries` has more to return than the queries held out.
        num_trained: Queries that went through training steps of this process.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        searcher: Searcher,
        inverse_propensity: np.ndarray,
        make_bank: Callable[..., RowBank],
    ):
        super().__init__()
        self.encoder = encoder
        self.searcher = searcher
        self.metrics = XMCMetrics(inverse_propensity)
        self.make_bank = make_bank
        self.test_predictions: tuple[np.ndarray, np.ndarray] | None = None
        self.keeps_queries = False
        self.num_trained = 0
        self.step_log = StepLog()
        self._index: tuple[Tensor | None, Tensor] | None = None
        self._ranked: dict[str, list[tuple[np.ndarray, Tensor]]] = {}
        self._kept_texts: Any = None  # data whose texts the encoder keeps outputs of frozen layers for

    @abstractmethod
    def build_index(self) -> tuple[Float[Tensor, "label d"] | None, Float[Tensor, "label d"]]:
        """Let the searcher search the labels as the module is now; see `LabelIndex`."""

    def prepare_frozen_outputs(self, stage: str, corpus: Any) -> None:
        """Make room for outputs of frozen layers before training, and drop those that are of other texts.

        Args:
            stage: What the Trainer is about to do: "fit", "validate" or "test".
            corpus: The data; None: there are none.
        """
        if stage != "fit" and self._kept_texts is corpus:
            return
        # a training may have another precision, or weights that were put in since the last one
        self.encoder.frozen = self._kept_texts = None
        if stage == "fit" and corpus is not None:
            lengths = np.concatenate([corpus.train.tokens.lengths, corpus.label_tokens.lengths])
            self.encoder.keep_frozen_outputs(lengths, self.make_bank, kept_dtype(str(self.trainer.precision)))
            if self.encoder.frozen is not None:
                self.encoder.frozen.bank.stays_on_gpu = True
            self._kept_texts = corpus

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take over parameters; the labels have to be encoded anew, and frozen layers may be others."""
        result = super().load_state_dict(state_dict, strict, assign)
        if self.encoder.frozen is not None:
            self.encoder.frozen.forget()
        self.discard_index()
        return result

    def on_train_epoch_start(self) -> None:
        """Forget what the steps of the epoch before have logged."""
        self.step_log.start_epoch()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log what is due, and stop where training has diverged.

        Raises:
            ValueError: If it has.
        """
        self.step_log.log(self)

    def require_finite(self) -> None:
        """Require that training has not diverged: that all losses so far were finite, and weights and tables are.

        Raises:
            ValueError: If it has.
        """
        divergence = self.step_log.divergence
        divergence.require_finite()
        tables = [(name, bank.rows) for name, bank in self.banks.items()]
        divergence.require_finite_tensors("weights", [*self.named_parameters(), *tables], self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to write a checkpoint of a training that has diverged over one of before.

        Raises:
            ValueError: If it has.
        """
        self.require_finite()

    @property
    def banks(self) -> dict[str, RowBank]:
        """The tables that training changes by name."""
        return {}

    @property
    def has_index(self) -> bool:
        """Whether the index is of the labels as the module is now."""
        return self._index is not None

    def discard_index(self) -> None:
        """Make the next `build_index` start anew, since the module has changed or memory is needed."""
        self._index = None
        self._ranked.clear()

    def on_validation_epoch_start(self) -> None:
        """Bring the index up to date."""
        self.build_index()
        self._ranked.pop("val", None)

    def on_test_epoch_start(self) -> None:
        """Bring the index up to date."""
        self.build_index()
        self._ranked.pop("test", None)
        self._found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def validation_step(self, batch: Texts, batch_idx: int) -> dict[str, np.ndarray]:
        """Rank the labels for a chunk of validation queries; return `indices` and `scores` for callbacks."""
        indices, scores = self._rank(batch, "val")
        return {"indices": indices, "scores": scores}

    def test_step(self, batch: Texts, batch_idx: int) -> None:
        """Rank the labels for a chunk of test queries, and keep the top of the ranking."""
        self._found.append((batch.ids.numpy(), *self._rank(batch, "test")))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation queries."""
        log_metrics(self, self.metrics, "val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test queries and put their predictions in order."""
        log_metrics(self, self.metrics, "test")
        ids, indices, scores = (np.concatenate(parts) for parts in zip(*self._found, strict=True))
        order = np.argsort(ids)
        self.test_predictions = indices[order], scores[order]

    def _rank(self, batch: Texts, stage: Literal["val", "test"]) -> tuple[np.ndarray, np.ndarray]:
        queries = self.trainer.datamodule.truth(stage)  # type: ignore[attr-defined]
        ids = batch.ids.numpy()
        # validation queries are training queries that are held out
        query_emb = self(batch.token_ids, batch.lengths, batch.ids if stage == "val" else None)
        if self.keeps_queries or stage == "val":  # those held out are few
            self._ranked.setdefault(stage, []).append((ids, query_emb.detach().cpu()))
        found, scores = search_unfiltered(self.searcher.search, query_emb, queries.filtered.take(ids), TOP_K)
        self.metrics.update(found, queries.positives.take(ids))
        return found, scores

    def ranked_queries(self) -> dict[str, tuple[np.ndarray, Tensor]]:
        """Return ids and embeddings, on the CPU, of the queries that were ranked since the last step, by stage.

        There are those held out alone unless `keeps_queries` was set before they were ranked.
        """
        return {
            stage: (np.concatenate([ids for ids, _ in parts]), torch.cat([emb for _, emb in parts]))
            for stage, parts in self._ranked.items()
        }
