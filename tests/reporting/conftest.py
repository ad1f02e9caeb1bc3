"""Run folders as training leaves them, on a tiny data set whose texts would break a page that does not escape them."""

import csv
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from prime_xmc.data.corpus import Corpus
from prime_xmc.data.preparation import prepare
from prime_xmc.data.propensity import inverse_propensity
from prime_xmc.data.raw import RawFiles
from prime_xmc.data.tokenizer import load_tokenizer
from prime_xmc.evaluation.metrics import evaluate
from prime_xmc.evaluation.predictions import save_predictions
from prime_xmc.reporting.configurations import DatasetRuns, group_runs
from prime_xmc.reporting.run_folders import find_runs, read_runs
from prime_xmc.reporting.study import Study, make_study

EVIL = "</script><script>alert('label')</script> & <b>$1_000</b> | 50 %"
NUM_LABELS, NUM_TRAIN, NUM_TEST = 30, 80, 60


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory, tiny_encoder_dir) -> Path:
    """A folder with the prepared data set `evil`."""
    rng = np.random.default_rng(0)
    raw = tmp_path_factory.mktemp("raw")
    records = {"lbl": [{"uid": f"l{i}", "title": EVIL if i == 0 else f"label {i}"} for i in range(NUM_LABELS)]}
    for name, number in (("trn", NUM_TRAIN), ("tst", NUM_TEST)):
        # label 0 is everywhere, label 29 in no training query
        rows = [[0, *(1 + rng.choice(28, size=2, replace=False) ** 2 // 28).tolist()] for _ in range(number)]
        rows = [sorted(set(row) | ({29} if name == "tst" and i % 10 == 0 else set())) for i, row in enumerate(rows)]
        records[name] = [
            {"uid": f"{name}{i}", "title": f"<i>query {i}</i>", "target_ind": r} for i, r in enumerate(rows)
        ]
    for name, lines in records.items():
        with gzip.open(raw / f"{name}.json.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    tokenizer = load_tokenizer(str(tiny_encoder_dir))
    cache = tmp_path_factory.mktemp("cache")
    prepare(
        RawFiles(directory=raw, name="evil", fields=("title",)),
        tokenizer.backend_tokenizer,
        tokenizer_name="tiny",
        pad_token_id=0,
        max_length=16,
        cache_dir=cache,
    )
    return cache


@pytest.fixture
def evil() -> str:
    """Text of label 0."""
    return EVIL


@pytest.fixture(scope="session")
def corpus(cache_dir) -> Corpus:
    (directory,) = cache_dir.iterdir()
    return Corpus.open(directory)


@pytest.fixture(scope="session")
def write_run(corpus):
    """Writes a run folder: write_run(path, seed=1, skill=0.8, loss__gamma_min=0.3)."""

    def write(
        path: Path,
        *,
        seed: int = 0,
        skill: float = 0.5,
        overrides: tuple[str, ...] = (),
        finished: bool = True,
        epochs: tuple[tuple[float, ...], ...] = ((0, 5, 1e-4, 0.5, 0.9), (1, 10, 0, 0.25, 0.5, 0.5)),
        **given,
    ) -> Path:
        config = {
            "dataset": {"name": "evil", "batch_size": 64, "propensity": {"a": 0.55, "b": 1.5}},
            "encoder": {"source": "${package:some_package/model}"},
            "sampling": {"batch_size": "${dataset.batch_size}", "num_positives": 2},
            "loss": {"gamma_min": 0.1},
            "callbacks": {"clusters": {"seed": "${seed}"}, "table": {"path": "${run_dir}/metrics.csv"}},
            "seed": seed,
            "cache_dir": "${oc.env:HOME}",
            "run_dir": "${hydra:runtime.output_dir}",
        }
        config = OmegaConf.create(config)
        for key, value in given.items():
            OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
        (path / ".hydra").mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, path / ".hydra" / "config.yaml")
        OmegaConf.save(OmegaConf.create([*overrides, f"seed={seed}"]), path / ".hydra" / "overrides.yaml")
        with (path / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", "step", "lr", "train/loss", "train/violators", "val/P@1"])
            for epoch, step, rate, loss, *more in epochs:
                writer.writerow([epoch, step, rate, loss + epoch * seed, *more, *[""] * (2 - len(more))])
        if not finished:
            return path
        rng = np.random.default_rng(seed)
        score = rng.random((NUM_TEST, NUM_LABELS))
        score[corpus.test.positives.row_ids(), corpus.test.positives.values] += skill
        indices = np.argsort(-score, axis=1).astype(np.int32)
        scores = -np.sort(-score, axis=1)
        save_predictions(path / "predictions.npz", indices, scores)
        weights = inverse_propensity(corpus.label_frequency, NUM_TRAIN, 0.55, 1.5)
        metrics = {f"test/{name}": value for name, value in evaluate(indices, corpus.test.positives, weights).items()}
        more = {"train/epochs": 2, "train/seconds": 60 * (1 + skill), "train/queries_per_second": 10.0}
        write_json(path / "metrics.json", metrics | more | {"peak_rss_bytes": 2**30, "num_parameters": 1_500_000})
        settings = {"data_fingerprint": corpus.manifest["fingerprint"], "machine": "abacus", "config": {}}
        write_json(path / "model" / "prime_config.json", {"settings": settings})
        return path

    return write


def grouped(folder: Path, *cache_dirs: Path) -> list[DatasetRuns]:
    """The runs below a folder, by data set."""
    return group_runs([run for path in find_runs([f"{folder}/**"]) for run in read_runs(path)], cache_dirs)


def write_sweep(sweep: Path, write_run) -> Path:
    """Two configurations, three seeds each, a job that failed and one that was skipped."""
    for number, (skill, batch_size) in enumerate([(0.2, 64)] * 3 + [(0.9, 128)] * 3):
        write_run(
            sweep / str(number),
            seed=number % 3,
            skill=skill,
            overrides=("dataset=evil", f"dataset.batch_size={batch_size}"),
            dataset__batch_size=batch_size,
        )
        os.utime(sweep / str(number) / "metrics.json", (number, number))
    failed = write_run(sweep / "10", seed=7, finished=False, overrides=("dataset=evil", "loss.gamma_min=3"))
    write_json(failed / "job.json", {"status": "failed", "message": "ValueError: <no>"})
    skipped = write_run(sweep / "11", seed=0, finished=False)
    write_json(skipped / "job.json", {"status": "skipped", "results": "../0"})
    return sweep


@pytest.fixture
def study_of(cache_dir):
    """Makes the study of the runs below a folder: study_of(path)."""

    def make(folder: Path) -> Study:
        (group,) = grouped(folder, cache_dir)
        first = group.configurations[0] if group.configurations else None
        return make_study(group, first, num_resamples=300, num_examples=2, seed=0)

    return make


@pytest.fixture
def runs_dir(tmp_path, write_run) -> Path:
    """A sweep that a test may change."""
    return write_sweep(tmp_path / "sweep", write_run)


@pytest.fixture(scope="session")
def study(tmp_path_factory, write_run, cache_dir) -> Study:
    """The study of such a sweep."""
    sweep = write_sweep(tmp_path_factory.mktemp("sweep"), write_run)
    (group,) = grouped(sweep, cache_dir)
    return make_study(group, group.configurations[0], num_resamples=300, num_examples=60, seed=0)
