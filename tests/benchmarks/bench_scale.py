"""A training step, its memory and its checkpoint at 1.3M labels and 2.2M queries (d = 384, MiniLM, made-up texts).

This does everything that a run does except encoding all texts: it makes the tables, initial centroids and clusters of
labels, training steps and a checkpoint. The same batches then train the model of LF-Debian-18K. A batch of 3,200
queries follows, which is too large to keep, with chunks that are computed again in the backward pass
(`encoder.recompute`). The made-up data are first written and prepared in outputs/cache, which takes minutes.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from common import ROOT, PeakMemory, Row, Target, fresh_process, interleave, main, ratio
from torch.nn.functional import normalize
from training import Training, make_training, texts_of

from prime_xmc.data.batch import Batch
from prime_xmc.index.clustering import balanced_clusters
from prime_xmc.model.banks import BANKS, SHARD_BYTES, RowBank
from prime_xmc.model.prototypes import fill_mean_centroids
from prime_xmc.training.checkpoints import ShardedCheckpointIO
from prime_xmc.training.module import PrimeModule

TARGETS = (
    Target(
        "memory of the process at 1.3M labels, 2.2M queries, d = 384: tables, start, steps, checkpoint", "≤", 12, "GB"
    ),
    Target("checkpoint at 1.3M labels: memory beyond training / a shard", "≤", 1, "x"),
    Target("checkpoint at 1.3M labels: banks on disk / in memory", "≤", 1.001, "x"),
    Target("training step at 1.3M labels, 2.2M queries / at 18K labels, same batch", "≤", 1.10, "x"),
    Target("batch 3,200 with encoder.recompute: memory beyond model and tables", "≤", 2.5, "GB"),
)
NUM_LABELS, NUM_QUERIES = 1_300_000, 2_200_000
STEPS, MEMORY_STEPS = 5, 10
LARGE_BATCH = 3200


def rows(scale: float) -> Iterator[Row]:
    memory_target, checkpoint_target, disk_target, step_target, large_target = TARGETS
    sizes = [f"dataset.num_labels={int(NUM_LABELS * scale)}", f"dataset.num_queries={int(NUM_QUERIES * scale)}"]
    few_queries = [f"sampling.batch_size={max(int(512 * scale), 8)}"]
    with PeakMemory() as memory:
        training = make_training(
            "dataset=synthetic", "encoder=minilm", "sampling.num_positives=1", *sizes, *few_queries
        )
        start_banks(training)
        batches = iter(training.data.train_dataloader())
        for _ in range(max(int(MEMORY_STEPS * scale), 2)):
            training.step(next(batches))
        training.release()
    module = training.module
    with tempfile.TemporaryDirectory(dir=ROOT / "outputs") as directory, PeakMemory() as saving:
        content = {"state_dict": module.state_dict(), "optimizer": training.optimizer.state_dict(), BANKS: module.banks}
        ShardedCheckpointIO().save_checkpoint(content, Path(directory, "last.ckpt"))
        on_disk = sum(file.stat().st_size for file in Path(directory).rglob("*.safetensors"))
    in_memory = sum(bank.rows.nbytes for bank in module.banks.values())
    free_vectors = module.prototypes.free_vectors
    assert free_vectors is not None
    note = f"banks {in_memory / 1e9:.2f} GB, free vectors and their moments {3 * free_vectors.nbytes / 1e9:.2f} GB"
    yield memory_target.row(max(memory.peak, saving.peak) / 1e9, note)
    yield checkpoint_target.row(saving.growth / SHARD_BYTES, f"{saving.growth / 1e6:.0f} MB; a shard is 268 MB")
    yield disk_target.row(on_disk / in_memory, f"{on_disk / 1e9:.2f} GB")

    few = make_training("sampling.num_positives=1", *few_queries)
    batch: Batch

    def build() -> None:
        nonlocal batch
        batch = next(batches)

    def step_of_few() -> None:
        few.step(renumbered(batch, few.module))

    rounds = max(round(STEPS * scale), 2)
    build_seconds, many_seconds, few_seconds = interleave(rounds, build, lambda: training.step(batch), step_of_few)
    waiting = 100 * ratio(build_seconds, many_seconds)
    note = f"median of {rounds}; {texts_of(batch)}"
    yield step_target.row(ratio(many_seconds, few_seconds), f"{note}; building the batch takes {waiting:.2f} % of it")

    growth, seconds = fresh_process(large_batch, max(int(LARGE_BATCH * scale), 16))
    yield large_target.row(growth / 1e9, f"2 steps on LF-Debian-18K, {seconds:.0f} s with start and preparation")


@torch.no_grad()
def start_banks(training: Training) -> None:
    """Do what `InitialisePrototypes` does, with random embeddings."""
    module, data = training.module, training.data
    labels = RowBank(data.corpus.num_labels, module.encoder.dim, dtype="float16")
    for bank in (module.query_memory, labels):
        for ids in torch.arange(len(bank)).split(2**16):
            bank.put(ids, normalize(torch.randn(len(ids), module.encoder.dim), dim=1))
    pairs = [torch.from_numpy(ids) for ids in data.train_pairs()]
    fill_mean_centroids(module.prototypes.centroids, module.query_memory, labels, *pairs)
    free_vectors = module.prototypes.free_vectors
    assert free_vectors is not None
    module.prototypes.cluster_of_label.copy_(balanced_clusters(labels.rows, len(free_vectors), seed=0))


def renumbered(batch: Batch, module: PrimeModule) -> Batch:
    """Return the same texts under ids of a smaller model, some of which then occur several times."""
    num_labels, num_queries = module.prototypes.num_labels, len(module.query_memory)
    query_ids, label_ids = batch.query_ids % num_queries, batch.label_ids % num_labels
    return batch._replace(
        query_ids=query_ids,
        label_ids=label_ids,
        text_ids=torch.cat([query_ids, num_queries + label_ids]),
        moved_ids=batch.moved_ids % num_labels,
    )


def large_batch(batch_size: int) -> int:
    """Make two steps with chunks that are computed again, and return the growth of memory in bytes."""
    training = make_training(f"sampling.batch_size={batch_size}", "encoder.recompute=true")
    batches = iter(training.data.train_dataloader())
    training.release()
    with PeakMemory() as memory:
        for _ in range(2):
            training.step(next(batches))
    return memory.growth


if __name__ == "__main__":
    main(__doc__, TARGETS, rows)
