"""Raw files become prepared data, and these a data module."""

import logging
from collections.abc import Iterator
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.accelerators import CUDAAccelerator
from omegaconf import DictConfig

from prime_xmc.assemble.fitted import fit_to_data, fitted_settings
from prime_xmc.data.corpus import Corpus
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.data.fitting import find_doubts, find_faults, outlook
from prime_xmc.data.preparation import cut_texts, prepare
from prime_xmc.data.raw import RawFiles, Record, read_records
from prime_xmc.data.tokenizer import load_tokenizer
from prime_xmc.model.encoder_folder import Prompts, resolve_prompts

logger = logging.getLogger(__name__)


def raw_files(dataset: DictConfig, prompts: Prompts | None = None) -> RawFiles:
    """Return the raw files that a dataset configuration names, generated if its `dir` says how and need be.

    Args:
        dataset: The configuration.
        prompts: Texts that the encoder wants before every query and label.

    Raises:
        ValueError: If the configuration names no fields, or a number is out of range.
    """
    prompts = prompts or Prompts()
    dataset = instantiate(dataset)
    return RawFiles(
        directory=dataset.dir,
        name=dataset.name,
        fields=dataset.fields or (),
        label_fields=dataset.label_fields,
        hint=dataset.hint,
        query_prompt=prompts.query,
        label_prompt=prompts.label,
        num_test=dataset.get("num_test", 0),
    )


def prompts_of(encoder: DictConfig) -> Prompts:
    """Return what an encoder configuration puts before every query and label; one of version 0.1.0 puts nothing."""
    return resolve_prompts(encoder.source, encoder.get("query_prompt"), encoder.get("label_prompt"))


def raw_test_queries(config: DictConfig, corpus: Corpus) -> Iterator[Record]:
    """Yield the queries of the test split in order, as the raw files have them."""
    source = raw_files(config.dataset)
    rows = corpus.test_rows
    if rows is None:
        yield from read_records(source.paths()["tst"], source.fields, corpus.num_labels)
    else:
        wanted = set(rows.tolist())
        records = read_records(source.paths()["trn"], source.fields, corpus.num_labels)
        yield from (record for row, record in enumerate(records) if row in wanted)


def open_corpus(config: DictConfig) -> Corpus:
    """Prepare a data set as training does, unless that has been done before, and open it."""
    tokenizer = load_tokenizer(config.encoder.source)
    directory = prepare(
        raw_files(config.dataset, prompts_of(config.encoder)),
        tokenizer.backend_tokenizer,
        tokenizer_name=tokenizer.name_or_path,
        pad_token_id=tokenizer.pad_token_id,
        max_length=config.dataset.max_length,
        cache_dir=config.cache_dir,
    )
    return Corpus.open(directory, config.get("verify", "sampled"))


def open_data(
    config: DictConfig,
    tokenizer: str,
    *,
    prompts: Prompts,
    max_length: int,
    num_validation: int,
    seed: int,
    held_out_before: str | None = None,
    memory_labels: int = 0,
    leave_one_out: float | int = 0.0,
    without_centroid: float | int = 0.0,
    of_encoder: DictConfig | None = None,
    corpus: Corpus | None = None,
) -> PrimeDataModule:
    """Make the data module of `dataset` and `sampling` and open its data, prepared if need be.

    Args:
        config: The configuration.
        tokenizer: Folder or hub id.
        prompts: Texts that the encoder wants before every query and label.
        max_length: Most tokens of a text.
        num_validation: Number of training queries that are held out.
        seed: Seed of the split and of sampling.
        held_out_before: Fingerprint of those of the training that this goes on with, see `PrimeDataModule`.
        memory_labels: Most labels of a batch whose embedding is remembered, which the second stage has no use for.
        leave_one_out: Probability that a query is left out of the centroid of one of its labels, likewise.
        without_centroid: Probability of a label to be shown without a centroid in a batch, likewise.
        of_encoder: Settings of `sampling` that only batches for an encoder follow: its sampler, and what is a negative.
        corpus: The data, where they are open already.
    """
    dataset, sampling = config.dataset, config.sampling
    for_encoder: dict[str, Any] = {}
    if of_encoder is not None:
        for_encoder = {
            "mask_positives": of_encoder.mask_positives,
            "batch_labels": of_encoder.batch_labels,
            "num_mined": of_encoder.mined.num_drawn,
            "mined_alone": of_encoder.mined.alone,
            "make_sampler": instantiate(of_encoder.sampler, _convert_="all"),
            "label_rows": of_encoder.label_rows,
        }
    data = PrimeDataModule(
        raw_files(dataset, prompts),
        load_tokenizer(tokenizer),
        max_length=max_length,
        cache_dir=config.cache_dir,
        propensity_a=dataset.propensity.a,
        propensity_b=dataset.propensity.b,
        batch_size=sampling.batch_size,
        num_positives=sampling.num_positives,
        positive_weighting=sampling.positive_weighting,
        loss_positives=sampling.loss_positives,
        more_queries_per_label=sampling.more_queries_per_label,
        memory_labels=memory_labels,
        leave_one_out=leave_one_out,
        without_centroid=without_centroid,
        num_validation=num_validation,
        held_out_before=held_out_before,
        seed=seed,
        corpus=corpus,
        **for_encoder,
    )
    data.setup()
    return data


def make_data(config: DictConfig, held_out_before: str | None = None) -> PrimeDataModule:
    """Make the data module and open its data, prepared if need be; say in the log what follows their size.

    Args:
        config: The configuration.
        held_out_before: Fingerprint of the validation queries of the run that this goes on with, see `PrimeDataModule`.

    Raises:
        FileNotFoundError: If raw files are missing.
        ValueError: If they are malformed, or settings do not fit them.
    """
    corpus = open_corpus(config)
    counts = corpus.manifest["counts"]
    if faults := find_faults(counts["train"]["positives"], corpus.num_labels):
        raise ValueError(f"{config.dataset.name}: {'; '.join(faults)}. `python -m prime_xmc.audit` shows more")
    fitted = fit_to_data(config, corpus)
    if settings := fitted_settings(config, len(corpus.train), corpus.num_labels):
        logger.info("following the size of the data: %s", "; ".join(map(str, settings)))
    for doubt in find_doubts(len(corpus.train), fitted.dataset.num_validation):
        logger.warning("%s", doubt)
    if corpus.split_note is not None:
        logger.info("%s", corpus.split_note)
    return open_data(
        fitted,
        fitted.encoder.source,
        prompts=prompts_of(fitted.encoder),
        max_length=fitted.dataset.max_length,
        num_validation=fitted.dataset.num_validation,
        seed=fitted.seed,
        held_out_before=held_out_before,
        memory_labels=fitted.sampling.memory_labels,
        leave_one_out=fitted.sampling.leave_one_out,
        without_centroid=fitted.sampling.without_centroid,
        of_encoder=fitted.sampling,
        corpus=corpus,
    )


def announce(config: DictConfig, data: PrimeDataModule) -> None:
    """Say in a line of the log what a training is about to do, and in another if a GPU is there that it does not use.

    Args:
        config: The configuration, fitted to the data.
        data: The data.
    """
    line = outlook(
        num_trained=len(data.sampler.query_ids),
        num_held_out=len(data.validation_ids),
        num_test=len(data.corpus.test) if config.test else 0,
        num_labels=data.corpus.num_labels,
        steps_per_epoch=len(data.sampler),
        num_epochs=config.trainer.max_epochs,
        validate_every=config.trainer.check_val_every_n_epoch,
    )
    logger.info("%s", line)
    for sentence in cut_texts(data.corpus.manifest):
        logger.warning("%s", sentence)
    if config.trainer.accelerator == "cpu" and CUDAAccelerator.is_available():
        logger.info("training on the CPU; there is a GPU here, and trainer=gpu trains on it")
