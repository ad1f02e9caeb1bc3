"""Training, planning, clustering and search on one GPU; skipped where there is none.

Steps are those of the default configuration (MiniLM, LF-Debian-18K, batch 512) and of the paper (66M parameters in the
shape of DistilBERT with random weights, batch 3,200 with 2 positives, made-up texts of 13 tokens). The bare encoder
makes the forward and backward pass over the same texts; both take the outputs of frozen layers from where training
keeps them. Batches wait on the GPU. Parts are measured one after another, and one that fails leaves the others.

The folder of MiniLM is that of the default configuration, or the one that the environment variable ENCODER names.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from common import ROOT, Row, Target, environment, fresh_process, interleave, main, ratio
from lightning.pytorch import Callback
from omegaconf import DictConfig
from torch import Tensor
from torch.autograd import DeviceType
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile
from training import Training, texts_of, training_of

from prime_xmc.assemble import fit_to_data, fit_to_size, make_data, make_module, make_trainer, open_data, prompts_of
from prime_xmc.composing import compose
from prime_xmc.data.batch import Batch
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.index.clustering import balanced_clusters
from prime_xmc.index.search import ExactSearch
from prime_xmc.model.frozen import kept_dtype
from prime_xmc.planning.probe import make_up_corpus
from prime_xmc.planning.run_plan import plan
from prime_xmc.planning.sizes import Sizes

LARGE = "66M encoder, batch 3,200"
TARGETS = (
    Target("GPU: training step, MiniLM, batch 512", "≤", 25, "ms"),
    Target("GPU: training step / bare encoder over the same tokens, MiniLM, batch 512", "shown", 0, "x"),
    Target("GPU: time per step in the Trainer / training step, MiniLM, batch 512", "≤", 1.10, "x"),
    Target("GPU: idle in the steady state of a run, MiniLM, batch 512", "≤", 10, "%"),
    Target(f"GPU: training step, {LARGE}", "≤", 110, "ms"),
    Target(f"GPU: bare encoder, forward and backward, {LARGE}", "≥", 330, "TFLOP/s"),
    Target(f"GPU: training step / bare encoder over the same tokens, {LARGE}", "≤", 1.10, "x"),
    Target(f"GPU: peak memory of training steps, {LARGE}", "≤", 20, "GB"),
    Target("GPU: exact top-100 of 1.3M × 768, 10,000 queries", "≤", 0.5, "s"),
    Target("GPU: exact top-100 of 1.3M × 768, a single query", "≤", 2, "ms"),
    Target("GPU: exact top-100 of 1.3M × 768 in bfloat16, 10,000 queries", "≤", 0.5, "s"),
    Target("GPU: exact top-100 of 1.3M × 768 in bfloat16, a single query", "≤", 2, "ms"),
    Target("GPU: clustering 1M × 384 into clusters of 8", "≤", 10, "s"),
    Target("GPU: planned run of LF-AmazonTitles-1.3M, 66M encoder, 300 epochs", "≤", 7, "h"),
    Target("GPU: planned step against steps of a run, synthetic, 66M encoder", "≤", 10, "%"),
    Target("GPU: default run on LF-Debian-18K with everything", "≤", 20, "s"),
)
K = 100
BATCHES = 4  # that a round of steps goes through
ROUNDS = 8
TOKENS = 13  # of a made-up text; 126,000 tokens in a batch of 9,600 texts
EPOCHS, LEFT_OUT = 4, 3  # of a run; steps of an epoch before its steady state
RUN_STEPS = 200  # of the run that a plan is compared with


def rows(scale: float) -> Iterator[Row]:
    if not torch.cuda.is_available():
        yield from (target.skipped("no GPU") for target in TARGETS)
        return
    card = torch.cuda.get_device_name()
    place = iter(TARGETS)
    with tempfile.TemporaryDirectory() as directory:
        large = Path(directory, "large")
        write_large(large)
        parts: list[tuple[int, Callable[[Sequence[Target]], Iterator[Row]]]] = [
            (4, partial(small_rows, scale)),
            (4, partial(large_rows, scale, large)),
            (4, partial(search_rows, scale)),
            (1, partial(cluster_rows, scale)),
            (2, partial(plan_rows, scale, large)),
            (1, default_run_rows),
        ]
        for count, part in parts:
            targets = [next(place) for _ in range(count)]
            measured = set()
            try:
                for row in part(targets):
                    measured.add(row.name)
                    yield row._replace(note=f"{card}; {row.note}", details=row.details | {"gpu": card})
            except Exception as error:
                traceback.print_exc()
                for target in targets:
                    if target.name not in measured:
                        yield target.failed(f"{card}; {type(error).__name__}: {error}")
            torch.cuda.empty_cache()


def small_rows(scale: float, targets: Sequence[Target]) -> Iterator[Row]:
    """Measure the default configuration: bare steps, and steps of a run."""
    step_target, encoder_target, trainer_target, idle_target = targets
    overrides = [f"sampling.batch_size={max(round(512 * scale), 8)}", "sampling.clusters.first_epoch=null"]
    config = compose_on_gpu(*overrides)
    data = make_data(config)
    step_ms, bare_ms, note, _ = time_steps(training_of(fit_to_data(config, data.corpus), data), scale)
    middle = statistics.median(step_ms)
    yield step_target.row(middle, note)
    yield encoder_target.row(ratio(step_ms, bare_ms), f"{statistics.median(bare_ms):.2f} ms the encoder")
    # of its own: where the profiler has run once, launches may take longer until the process ends
    (run_ms, busy_ms, num_steps), _ = fresh_process(run_steps, overrides)
    yield trainer_target.row(run_ms / middle, f"mean of {num_steps} steps; {run_ms:.2f} ms")
    yield idle_target.row(100 * (1 - busy_ms / run_ms), f"{busy_ms:.2f} ms of kernels and copies in {run_ms:.2f} ms")


def large_rows(scale: float, folder: Path, targets: Sequence[Target]) -> Iterator[Row]:
    """Measure the paper's encoder and batch."""
    step_target, flops_target, ratio_target, memory_target = targets
    config = compose_on_gpu(
        "dataset=amazontitles1300k", *large_encoder(folder), f"sampling.batch_size={max(round(3200 * scale), 8)}"
    )
    training = training_of(*made_up(config, num_batches=BATCHES + 1))
    torch.cuda.reset_peak_memory_stats()
    step_ms, bare_ms, note, operations = time_steps(training, scale)
    peak = torch.cuda.max_memory_allocated()
    yield step_target.row(statistics.median(step_ms), note)
    rate = operations / statistics.median(bare_ms) / 1e9
    yield flops_target.row(rate, f"{operations / 1e12:.1f} TFLOP in {statistics.median(bare_ms):.1f} ms")
    yield ratio_target.row(ratio(step_ms, bare_ms), note)
    yield memory_target.row(peak / 1e9, "with parameters, gradients and optimiser state; tables of the made-up data")


def search_rows(scale: float, targets: Sequence[Target]) -> Iterator[Row]:
    """Measure exact search in float32 and in bfloat16."""
    generator = torch.Generator("cuda").manual_seed(0)
    vectors, queries = (
        normalize(torch.randn(max(round(count * scale), K), 768, generator=generator, device="cuda"))
        for count in (1_300_000, 10_000)
    )
    many_target, one_target, many_half_target, one_half_target = targets
    exact = search_of(vectors)
    expected = exact.search(queries, K)[1]
    yield many_target.row(seconds_on_gpu(lambda: exact.search(queries, K), 3), "float32, median of 3")
    yield one_target.row(1e3 * seconds_on_gpu(lambda: exact.search(queries[:1], K), 50), "float32, median of 50")
    half = search_of(vectors.bfloat16())
    found = half.search(queries, K)[1]
    both = torch.cat([found, expected], dim=1).sort(dim=1).values
    same = float((both[:, 1:] == both[:, :-1]).sum() / expected.numel())
    note = f"{same:.4f} of the labels that float32 finds"
    yield many_half_target.row(seconds_on_gpu(lambda: half.search(queries, K), 3), f"{note}, median of 3")
    yield one_half_target.row(1e3 * seconds_on_gpu(lambda: half.search(queries[:1], K), 50), f"{note}, median of 50")


def cluster_rows(scale: float, targets: Sequence[Target]) -> Iterator[Row]:
    """Measure balanced clustering of rows in nested groups."""
    x = nested_groups(round(1_000_000 * scale), 384)
    balanced_clusters(x[:4096], 512, seed=0)  # compiles kernels
    yield targets[0].row(seconds_on_gpu(lambda: balanced_clusters(x, len(x) // 8, seed=0), 1), f"{len(x):,} rows")


def plan_rows(scale: float, folder: Path, targets: Sequence[Target]) -> Iterator[Row]:
    """Plan the paper's largest run, and compare a plan with a run."""
    hours_target, error_target = targets
    overrides = ["dataset=amazontitles1300k", *large_encoder(folder), f"tokens_per_text={TOKENS}"]
    planned, seconds = fresh_process(planned_run, overrides)
    shares = ", ".join(f"{name} {hours:.2f} h" for name, hours in planned["hours"].items() if hours > 0.01)
    memory = f"device {planned['device']:.1f} GB, host {planned['host']:.1f} GB"
    note = f"{TOKENS} tokens a text; {shares}; {memory}; planned in {seconds:.0f} s"
    yield hours_target.row(sum(planned["hours"].values()), note)
    sizes = {"labels": 400_000, "queries": 220_000, "test_queries": 1000}
    overrides = [
        "dataset=synthetic",
        *large_encoder(folder),
        *(f"dataset.num_{name}={max(round(size * scale), 1000)}" for name, size in sizes.items()),
        f"dataset.dir.vocabulary={minilm() / 'tokenizer.json'}",
        f"dataset.batch_size={max(round(3200 * scale), 8)}",
        f"trainer.max_steps={RUN_STEPS}",
        "sampling.clusters.first_epoch=null",  # in the first epoch, the steps of the whole data set have none either
        "dataset.max_epochs=1000",
        "dataset.num_validation=0",
    ]
    planned, _ = fresh_process(planned_run, overrides)
    measured, seconds = fresh_process(real_step_ms, overrides)
    error = 100 * abs(planned["step_ms"] / measured - 1)
    note = f"{planned['step_ms']:.1f} ms planned, {measured:.1f} ms in a run of {RUN_STEPS} steps"
    yield error_target.row(error, f"{note}; {sizes['labels']:,} labels, {sizes['queries']:,} queries; {seconds:.0f} s")


def default_run_rows(targets: Sequence[Target]) -> Iterator[Row]:
    """Time `python -m prime_xmc.train trainer=gpu` from start to end."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "prime_xmc.train", "trainer=gpu", f"encoder.source={minilm()}"]
        start = time.perf_counter()
        subprocess.run([*command, f"hydra.run.dir={directory}/run"], cwd=ROOT, env=environment(), check=True)
        seconds = time.perf_counter() - start
        metrics = json.loads(Path(directory, "run", "metrics.json").read_text(encoding="utf-8"))
    shown = ", ".join(f"{name} {100 * metrics.get(f'test/{name}', float('nan')):.2f}" for name in ("P@1", "PSP@5"))
    note = f"data prepared before; {metrics['train/epochs']} epochs, classifiers, test and export; {shown}"
    yield targets[0].row(seconds, note)


def compose_on_gpu(*overrides: str) -> DictConfig:
    """Compose the configuration of a training with MiniLM, unless the overrides give another encoder."""
    given = any(override.startswith("encoder.source=") for override in overrides)
    source = [] if given else [f"encoder.source={minilm()}"]
    return compose("train", ["trainer=gpu", *source, *overrides, "run_dir=outputs/bench"])


def minilm() -> Path:
    """Return the folder of MiniLM."""
    return Path(os.environ.get("ENCODER") or compose("train", []).encoder.source)


def write_large(folder: Path) -> None:
    """Write the configuration of an encoder of 66M parameters to a new folder, and beside it MiniLM's tokenizer."""
    transformers.DistilBertConfig().save_pretrained(folder)
    for path in minilm().iterdir():
        if path.name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            shutil.copy(path, folder)


def large_encoder(folder: Path) -> list[str]:
    """Return the overrides of an encoder in a folder of `write_large`."""
    return ["encoder=distilbert", f"encoder.source={folder}", "encoder.pretrained=false"]


def made_up(config: DictConfig, num_batches: int) -> tuple[DictConfig, PrimeDataModule]:
    """Make up data of the size that a configuration is for, of which there are queries for some batches."""
    size = config.dataset.size
    sizes = Sizes(size.num_labels, size.num_queries, size.num_test_queries, size.labels_per_query, TOKENS, TOKENS)
    config = fit_to_size(config, sizes.num_queries, sizes.num_labels)
    config.dataset.dir, config.dataset.num_validation = "", 0
    corpus = make_up_corpus(config, sizes, num_queries=num_batches * config.sampling.batch_size)
    config.model.num_free_vectors = min(config.model.num_free_vectors, corpus.num_labels)
    data = open_data(
        config,
        config.encoder.source,
        prompts=prompts_of(config.encoder),
        max_length=config.dataset.max_length,
        num_validation=0,
        seed=0,
        memory_labels=config.sampling.memory_labels,
        corpus=corpus,
    )
    return config, data


def time_steps(training: Training, scale: float) -> tuple[list[float], list[float], str, float]:
    """Time training steps and the bare encoder in turn.

    Returns:
        Milliseconds of a step and of the bare encoder in each round, a note, and the floating-point operations of the
        forward and backward pass that a batch's tokens need.
    """
    module, data = training.module, training.data
    corpus, encoder = data.corpus, module.encoder
    lengths = np.concatenate([corpus.train.tokens.lengths, corpus.label_tokens.lengths])
    precision = "32-true" if training.dtype == torch.float32 else "bf16-mixed"
    encoder.keep_frozen_outputs(lengths, module.make_bank, kept_dtype(precision))
    module.to(training.device)
    built = [batch for batch, _ in zip(data.train_dataloader(), range(BATCHES), strict=False)]
    batches = [training.put(batch) for batch in built]
    text_ids = [torch.cat([b.query_ids, len(corpus.train) + b.label_ids]) for b in built]

    def step() -> None:
        for batch in batches:
            training.step(batch)
        torch.cuda.synchronize()

    def encode() -> None:
        for batch, ids, plain in zip(batches, text_ids, built, strict=True):
            training.backward(partial(encoder, batch.token_ids, plain.lengths, ids))
        torch.cuda.synchronize()

    rounds = max(round(ROUNDS * scale), 2)
    step_seconds, bare_seconds = interleave(rounds, step, encode, warm_up=2)
    note = f"median of {rounds} rounds of {len(built)} steps; {texts_of(built[0])}, {training.dtype}"
    operations = statistics.mean(operations_of(training, batch) for batch in built)
    step_ms, bare_ms = ([1e3 * value / len(built) for value in times] for times in (step_seconds, bare_seconds))
    return step_ms, bare_ms, note.replace("torch.", ""), operations


def operations_of(training: Training, batch: Batch) -> float:
    """Return the floating-point operations of forward and backward that the tokens of a batch need, in all layers."""
    encoder = training.module.encoder
    weights = [p for name, p in encoder.backbone.named_parameters() if ".layer." in name and p.ndim == 2]
    linear = 2 * sum(weight.numel() for weight in weights) * len(batch.token_ids)
    attention = 4 * encoder.backbone.config.num_hidden_layers * encoder.dim * int(batch.lengths.square().sum())
    return 3 * float(linear + attention)


class StepWatch(Callback):
    """Times the steps of each epoch together, but for the first ones, without the host waiting in between.

    Args:
        profiled: Whether the steps of the last epoch are profiled, and those of the epochs between it and the first one
            timed: launches may take longer where the profiler has run.
    """

    def __init__(self, profiled: bool):
        self.profiled = profiled
        self.busy_ms = 0.0  # of a step
        self.seconds = 0.0
        self.num_steps = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Begin or end a measurement."""
        profiles = self.profiled and trainer.current_epoch == trainer.max_epochs - 1
        if self.profiled and trainer.current_epoch == 0:
            return
        if batch_idx == LEFT_OUT - 1:
            torch.cuda.synchronize()
            if profiles:
                self._profile = profile(activities=[ProfilerActivity.CUDA])
                self._profile.start()
            self._start = time.perf_counter()
        elif batch_idx == trainer.num_training_batches - 1 or trainer.global_step == trainer.max_steps:
            torch.cuda.synchronize()
            if profiles:
                self._profile.stop()
                self.busy_ms = busy_seconds(self._profile) / (batch_idx + 1 - LEFT_OUT) * 1e3
            else:
                self.seconds += time.perf_counter() - self._start
                self.num_steps += batch_idx + 1 - LEFT_OUT


def busy_seconds(profiled: profile) -> float:
    """Return how long a GPU did something, kernels and copies, whether one or several at once."""
    events = [event.time_range for event in profiled.events() if event.device_type == DeviceType.CUDA]
    busy = end = 0.0
    for span in sorted(events, key=lambda span: span.start):
        busy += max(0.0, span.end - max(span.start, end))
        end = max(end, span.end)
    return busy / 1e6


def run_steps(overrides: list[str]) -> tuple[float, float, int]:
    """Train for some epochs without validation, as configured.

    Returns:
        Milliseconds of a step, those of its work on the GPU, and the number of steps that were timed.
    """
    config = compose_on_gpu(*overrides)
    watch = StepWatch(profiled=True)
    train(config, make_data(config), watch, max_epochs=EPOCHS)
    return 1e3 * watch.seconds / watch.num_steps, watch.busy_ms, watch.num_steps


def real_step_ms(overrides: list[str]) -> float:
    """Train as configured and return the milliseconds of a step, all but the first of each epoch."""
    config = compose_on_gpu(*overrides)
    data = make_data(config)
    watch = StepWatch(profiled=False)
    train(config, data, watch)
    return 1e3 * watch.seconds / watch.num_steps


def train(config: DictConfig, data: PrimeDataModule, watch: Callback, **trainer: Any) -> None:
    """Train with the configured callbacks, except checkpoints."""
    with tempfile.TemporaryDirectory() as directory:
        config = fit_to_data(config, data.corpus)
        config.run_dir, config.callbacks.checkpoint = directory, None
        config.trainer.limit_val_batches = 0
        for key, value in trainer.items():
            config.trainer[key] = value
        make_trainer(config, last=[watch]).fit(make_module(config, data), datamodule=data)


def planned_run(overrides: list[str]) -> dict[str, Any]:
    """Plan a run; return the hours of its parts, the milliseconds of a step, and memory in GB."""
    planned = plan(compose("plan", ["trainer=gpu", *overrides, "run_dir=outputs/bench"]))
    seconds, schedule = planned["seconds"], planned["schedule"]
    return {
        "hours": {name: value / 3600 for name, value in seconds.items()},
        "step_ms": 1e3 * seconds["training steps"] / schedule["num_steps"],
        "device": planned["peak_bytes"]["device"] / 1e9,
        "host": planned["peak_bytes"]["host"] / 1e9,
    }


def search_of(vectors: Tensor) -> ExactSearch:
    """Return the search of some vectors."""
    search = ExactSearch()
    search.build(vectors)
    return search


def seconds_on_gpu(action: Callable[[], Any], rounds: int) -> float:
    """Return the median wall time of a call, with all that it has started; kernels are compiled before."""

    def timed() -> None:
        action()
        torch.cuda.synchronize()

    (seconds,) = interleave(rounds, timed, warm_up=1 if rounds > 1 else 0)
    return statistics.median(seconds)


def nested_groups(n: int, d: int, depth: int = 10) -> Tensor:
    """Make what `nested_groups` of the tests of clustering makes, on the GPU."""
    generator = torch.Generator("cuda").manual_seed(0)
    x = 0.5 * torch.randn(n, d, generator=generator, device="cuda")
    node = torch.zeros(n, dtype=torch.int64, device="cuda")
    for level in range(depth):
        node = 2 * node + torch.randint(2, (n,), generator=generator, device="cuda")
        x += 0.85**level * torch.randn(2 ** (level + 1), d, generator=generator, device="cuda")[node]
    return x


if __name__ == "__main__":
    main(__doc__, TARGETS, rows)
