"""The LightningDataModule: splits, the sampler and the loaders."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from jaxtyping import Int32, Int64
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from prime_xmc.data.background import ChunkLoader
from prime_xmc.data.batch import BatchBuilder, BatchLabels, LossPositives, SameBatches, TextChunks
from prime_xmc.data.corpus import Corpus, Ragged, Split
from prime_xmc.data.fitting import hold_out
from prime_xmc.data.label_rows import LabelRowSampler
from prime_xmc.data.preparation import prepare
from prime_xmc.data.propensity import inverse_propensity
from prime_xmc.data.raw import RawFiles
from prime_xmc.data.sampling import CPU, ClusterBatchSampler, TrainLoader
from prime_xmc.data.splitting import hold_out_queries

HELD_OUT = "validation_queries"  # what the fingerprint of these queries is called in models and checkpoints
TRAINED_ON = "training_queries"  # the same of `Corpus.training_hash`
CHUNK = 1024  # texts that are encoded at once
CHUNK_ON_GPU = 8192  # fewer would not keep it busy


class PrimeDataModule(LightningDataModule):
    """Prepares a data set on first use and serves its batches.

    Args:
        source: The raw files.
        tokenizer: Tokenizer of the encoder.
        max_length: Largest number of tokens of a text, special tokens included; longer texts are cut.
        cache_dir: Folder in which prepared data are kept.
        propensity_a: A of the inverse propensity (Jain et al. 2016).
        propensity_b: B of the inverse propensity.
        batch_size: Number of queries in a batch, over all devices.
        num_positives: Number of labels drawn for a query in each epoch; 0: none, and batches have no texts of labels.
        positive_weighting: Probabilities of the draw: proportional to the "inverse_propensity" (Appendix J) or
            "uniform".
        loss_positives: Positives that the loss pulls to their query, see `BatchBuilder`.
        more_queries_per_label: Number of further training queries drawn for each label of a batch; they move its
            centroid and nothing else.
        memory_labels: Most labels of a batch whose embedding is remembered instead of encoded, see `BatchBuilder`.
        leave_one_out: Probability that a query is left out of the centroid of one of its labels, see `BatchBuilder`.
        without_centroid: Probability of a label to be shown without a centroid in a batch, see `BatchBuilder`.
        mask_positives: Whether positives that the loss does not pull are not pushed either, see `BatchBuilder`.
        batch_labels: Labels of a batch, see `BatchBuilder`.
        num_mined: Number of labels drawn for each query from those that are mined for it, see `set_mined`.
        mined_alone: Whether these are the query's only negatives, see `BatchBuilder`.
        make_sampler: Maker of the sampler.
        label_rows: Whether the text of each label is a training row too, see `LabelRowSampler`; the sampler has to be a
            `ClusterBatchSampler` then.
        num_validation: Number of training queries held out for validation, see `hold_out_queries`; None: as many as
            suit their number.
        held_out_before: Fingerprint of the validation queries of the training that these data go on with, empty where
            it is not known; None: they go on with none. Where other queries would be held out now, they are held out
            one by one, as by version 0.1.0.
        encode_chunk: Number of texts in a batch of the loaders that only encode; None: as many as suit the device.
        seed: Seed of the validation split and of the sampler.
        corpus: The data, where they are prepared and open already; they are then not looked for.

    Source: section 4.2, Appendix J.
    """

    corpus: Corpus
    sampler: ClusterBatchSampler

    def __init__(
        self,
        source: RawFiles,
        tokenizer: transformers.PreTrainedTokenizerFast,
        *,
        max_length: int,
        cache_dir: str,
        propensity_a: float,
        propensity_b: float,
        batch_size: int,
        num_positives: int,
        positive_weighting: Literal["inverse_propensity", "uniform"] = "inverse_propensity",
        loss_positives: LossPositives = "all",
        more_queries_per_label: int = 0,
        memory_labels: int = 0,
        leave_one_out: float | int = 0.0,
        without_centroid: float | int = 0.0,
        mask_positives: bool = True,
        batch_labels: BatchLabels = "drawn",
        num_mined: int = 1,
        mined_alone: bool = False,
        make_sampler: Callable[..., ClusterBatchSampler] = ClusterBatchSampler,
        label_rows: bool = False,
        num_validation: int | None = None,
        held_out_before: str | None = None,
        encode_chunk: int | None = None,
        seed: int = 0,
        corpus: Corpus | None = None,
    ):
        super().__init__()
        if positive_weighting not in ("inverse_propensity", "uniform"):
            raise ValueError(
                f"expected sampling.positive_weighting inverse_propensity or uniform, got {positive_weighting!r}"
            )
        if more_queries_per_label < 0:
            raise ValueError(f"expected sampling.more_queries_per_label of at least 0, got {more_queries_per_label}")
        self.source = source
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.cache_dir = Path(cache_dir).expanduser()
        self.propensity = (propensity_a, propensity_b)
        self.batch_size = batch_size
        self.num_positives = num_positives
        self.positive_weighting = positive_weighting
        self.loss_positives = loss_positives
        self.more_queries_per_label = more_queries_per_label
        self.memory_labels = memory_labels
        self.leave_one_out = leave_one_out
        self.without_centroid = without_centroid
        self.mask_positives = mask_positives
        self.batch_labels = batch_labels
        self.num_mined = num_mined
        self.mined_alone = mined_alone
        self.make_sampler = make_sampler
        self.label_rows = label_rows
        self.num_validation = num_validation
        self.held_out_before = held_out_before
        self.encode_chunk = encode_chunk
        self.seed = seed
        self._opened = corpus

    @property
    def remembers_labels(self) -> bool:
        """Whether batches have labels whose embedding the module has to remember."""
        return self.memory_labels > 0 and self.loss_positives == "all"

    @property
    def held_out(self) -> str:
        """Fingerprint of the ids of the validation queries, by which a run says what it is not trained on."""
        return hashlib.sha256(self.validation_ids.tobytes()).hexdigest()

    def prepare_data(self) -> None:
        """Prepare the raw files, unless that has been done before."""
        if self._opened is None:
            self._prepare()

    def _prepare(self) -> Path:
        return prepare(
            self.source,
            self.tokenizer.backend_tokenizer,
            tokenizer_name=self.tokenizer.name_or_path,
            pad_token_id=self.tokenizer.pad_token_id,
            max_length=self.max_length,
            cache_dir=self.cache_dir,
        )

    def setup(self, stage: str = "fit") -> None:
        """Open the prepared data, hold out the validation queries and make the sampler; once, whatever the stage.

        Raises:
            ValueError: If the validation split would leave no query to train on, or the sampler has no label rows.
        """
        if hasattr(self, "corpus"):
            return
        if self._opened is None:
            self._opened = Corpus.open(self._prepare())
        corpus = self._opened
        num_train = len(corpus.train)
        if self.num_validation is None:
            self.num_validation = hold_out(num_train)
        if not 0 <= self.num_validation < num_train:
            raise ValueError(
                f"expected dataset.num_validation below the {num_train} training queries, got {self.num_validation}"
            )
        tokens = corpus.train.tokens
        self.validation_ids = hold_out_queries(tokens, self.num_validation, self.seed)
        if self.held_out_before not in (None, self.held_out):
            self.validation_ids = hold_out_queries(tokens, self.num_validation, self.seed, one_by_one=True)
        self.num_validation = len(self.validation_ids)
        self.train_ids = np.setdiff1d(np.arange(num_train), self.validation_ids, assume_unique=True)
        self.inverse_propensity = inverse_propensity(corpus.label_frequency, num_train, *self.propensity)
        weight = self.inverse_propensity
        self.sampler = self._sampler_maker()(
            corpus.train.positives,
            self.train_ids,
            batch_size=self.batch_size,
            num_positives=self.num_positives,
            weight=weight if self.positive_weighting == "inverse_propensity" else np.ones_like(weight),
            seed=self.seed,
            num_mined=self.num_mined,
        )
        self.corpus = corpus

    def _sampler_maker(self) -> Callable[..., ClusterBatchSampler]:
        if not self.label_rows:
            return self.make_sampler
        if getattr(self.make_sampler, "func", self.make_sampler) is not ClusterBatchSampler:
            raise ValueError(
                "sampling.label_rows=true adds rows to batches of queries: give "
                "sampling.sampler._target_=prime_xmc.data.sampling.ClusterBatchSampler with it"
            )
        return LabelRowSampler

    def set_clusters(self, clusters: Int64[np.ndarray, " query"] | None) -> None:
        """Make batches of the next epoch from these clusters of `sampler.query_ids`; None for random batches."""
        self.sampler.set_clusters(clusters)

    def set_mined(self, mined: Int32[np.ndarray, "query mined"] | None) -> None:
        """Draw labels for queries from these lists too in the next epoch, see `ClusterBatchSampler.set_mined`."""
        self.sampler.set_mined(mined)

    def train_dataloader(self) -> DataLoader:
        """Training batches. Every process builds the whole batch; the module shares out the encoding."""
        queries_of_label = label_frequency = None
        if self.leave_one_out:
            label_frequency = self.train_frequency()
        if self.more_queries_per_label:
            query_ids, label_ids = self.train_pairs()
            queries_of_label = Ragged.grouped(label_ids, query_ids, self.corpus.num_labels)
        builder = BatchBuilder(
            self.corpus.train,
            self.corpus.label_tokens,
            loss_positives=self.loss_positives,
            num_more=self.more_queries_per_label,
            queries_of_label=queries_of_label,
            memory_labels=self.memory_labels,
            leave_one_out=self.leave_one_out,
            label_frequency=label_frequency,
            without_centroid=self.without_centroid,
            mask_positives=self.mask_positives,
            mined_alone=self.mined_alone,
            batch_labels=self.batch_labels,
        )
        trainer: Any = self.trainer
        if trainer is not None and trainer.overfit_batches > 0:
            return DataLoader(SameBatches(builder, list(self.sampler)), batch_size=None, shuffle=False)
        return TrainLoader(builder, self.sampler, self._device)

    def val_dataloader(self) -> DataLoader:
        """Texts of the validation queries."""
        return self._encode_loader(self.corpus.train.tokens, self.validation_ids)

    def test_dataloader(self) -> DataLoader:
        """Texts of the test queries."""
        return self._encode_loader(self.corpus.test.tokens, np.arange(len(self.corpus.test)))

    def label_dataloader(self) -> DataLoader:
        """Texts of all labels."""
        return self._encode_loader(self.corpus.label_tokens, np.arange(self.corpus.num_labels))

    def train_text_dataloader(self) -> DataLoader:
        """Texts of the queries that are trained on."""
        return self._encode_loader(self.corpus.train.tokens, self.sampler.query_ids)

    def truth(self, stage: Literal["val", "test"]) -> Split:
        """Return the split that the query ids of a stage's loader refer to."""
        return self.corpus.train if stage == "val" else self.corpus.test

    def train_pairs(self) -> tuple[Int64[np.ndarray, " pair"], Int64[np.ndarray, " pair"]]:
        """Return query id and label id of every (query, label) pair that is trained on."""
        rows = self.corpus.train.positives.take(self.sampler.query_ids)
        return self.sampler.query_ids[rows.row_ids()], rows.values.astype(np.int64)

    def train_frequency(self) -> Int64[np.ndarray, " label"]:
        """Return how many queries of each label are trained on."""
        return np.bincount(
            self.corpus.train.positives.take(self.sampler.query_ids).values, minlength=self.corpus.num_labels
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the sampler's state."""
        return {"sampler": self.sampler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.sampler.load_state_dict(state_dict["sampler"])

    def _encode_loader(self, tokens: Ragged, ids: Int64[np.ndarray, " text"]) -> DataLoader:
        device = self._device
        size = self.encode_chunk or (CHUNK_ON_GPU if device.type == "cuda" else CHUNK)
        return ChunkLoader(TextChunks(tokens, ids, size), device)

    @property
    def _device(self) -> torch.device:
        """Device of the Trainer; the CPU without one."""
        trainer: Any = self.trainer
        return CPU if trainer is None else trainer.strategy.root_device
