"""Plans of configurations, against the files that training writes."""

import json
from pathlib import Path

import pytest

from prime_xmc.plan import run
from prime_xmc.planning.run_plan import plan
from prime_xmc.stages import train_prototypes


@pytest.mark.parametrize("index", ["exact", "flat"])
def test_files_are_as_large_as_planned(configure, tmp_path, index):
    """Of a run of two steps: what it prepares, caches, saves and exports."""
    settings = [f"index={index}", "trainer.max_steps=2", f"run_dir={tmp_path}/run", f"cache_dir={tmp_path}/cache"]
    progress = ["callbacks.progress=null"]
    train_prototypes(configure(*settings, *progress, name="train"))
    planned = plan(configure(*settings, "probe_steps=0"))
    (embeddings,) = (tmp_path / "cache").glob("embeddings-*")
    (prepared,) = (tmp_path / "cache").glob("custom-*")

    def size(folder: Path, *names: str) -> int:
        files = [path for name in names for path in folder.rglob(name) if path.is_file()]
        return sum(path.stat().st_size for path in files)

    assert planned["disk_bytes"]["prepared data"] == size(prepared, "*") - size(prepared, "manifest.json")
    # headers of files of a few kilobytes
    assert planned["disk_bytes"]["cached embeddings"] == pytest.approx(size(embeddings, "*"), abs=600)
    assert planned["disk_bytes"]["checkpoint"] == pytest.approx(size(tmp_path / "run" / "checkpoints", "*"), rel=0.06)
    exported = size(tmp_path / "run" / "model", "*.safetensors", "index.faiss", "labels.jsonl")
    assert planned["disk_bytes"]["export"] == pytest.approx(exported, rel=0.06)
    predictions = tmp_path / "run" / "predictions.npz"
    assert 8 * 48 * 60 == planned["disk_bytes"]["predictions"] < predictions.stat().st_size


class TestPlan:
    def test_training_of_one_vs_all_classifiers_is_not_planned(self, configure):
        with pytest.raises(ValueError, match="a plan is of the training of prototypes"):
            plan(configure("model=renee", "probe_steps=0"))

    def test_what_follows_the_size_of_the_data_is_planned_with_its_numbers(self, configure):
        null = [f"dataset.{key}=null" for key in ("num_validation", "num_free_vectors", "batch_size")]
        config = configure(*null, "sampling.batch_size=${dataset.batch_size}", "test=false", "probe_steps=0")
        planned = plan(config)
        assert planned["schedule"]["steps_per_epoch"] == -(-(240 - 24) // 16)
        items = {item["name"]: item["nbytes"] for item in planned["phases"]["step"]}
        assert items["free vectors"] == 8 * 32 * 4

    def test_measured(self, configure, tmp_path, capsys):
        planned = run(configure("probe_steps=2", f"output={tmp_path}/plan.json", "trainer.max_epochs=2"))
        content = json.loads((tmp_path / "plan.json").read_text())
        assert content["schedule"]["num_steps"] == 2 * -(-200 // 32)
        assert content["peak_bytes"]["device"] == 0
        # torch and the Trainer alone take hundreds of megabytes; the toy's step does not
        assert 2e8 < content["peak_bytes"]["host"] < 4e9
        assert all(value > 0 for value in content["seconds"].values())
        assert content["disk_bytes"] == planned["disk_bytes"]
        step = {item["name"] for item in content["phases"]["step"]}
        assert {"program and libraries", "centroids", "gradients", "optimiser state", "query memory"} <= step
        shown = capsys.readouterr().out
        for words in ("program and libraries", "checkpoint", "time in all", "bytes per label", "bytes per query"):
            assert words in shown
        assert f"{planned['schedule']['num_steps']} of 7 an epoch" in shown
        assert list(tmp_path.iterdir()) == [tmp_path / "plan.json"]

    def test_without_a_probe(self, configure):
        large = [
            f"num_labels={1_300_000}",
            f"num_queries={2_200_000}",
            "num_test_queries=1000",
            "dataset.num_free_vectors=131072",
            "bank.placement=host",
            "trainer=gpu",
            "probe_steps=0",
        ]
        planned = plan(configure(*large))
        items = {(item["name"], item["place"]): item["nbytes"] for item in planned["phases"]["step"]}
        assert items["centroids", "host"] == 1_300_000 * 32 * 4
        assert items["query memory", "host"] == 2_200_000 * 32 * 2
        assert items["free vectors", "device"] == 131_072 * 32 * 4
        assert planned["seconds"] == {}
        assert any("no probe" in note for note in planned["notes"])

    @pytest.mark.parametrize(
        ("override", "setting"),
        [
            ("model=dexml", "sampling.batch_labels=all"),
            ("model=siamesexml", r"sampling.sampler._target_=prime_xmc\.data\.sampling\.LabelBatchSampler"),
            ("sampling.label_rows=true", "sampling.label_rows=true"),
        ],
    )
    def test_other_batches_than_it_counts(self, override, setting, configure):
        with pytest.raises(ValueError, match=f"and {setting} makes others"):
            plan(configure("probe_steps=0", override))

    def test_searches_for_mined_labels_are_counted(self, configure):
        for model, is_counted in (("ance", True), ("dpr", False)):
            planned = plan(configure("probe_steps=0", f"model={model}", "dataset.max_epochs=12"))
            assert planned["schedule"]["num_minings"] == (3 if is_counted else 0)  # epochs 1, 6 and 11
            assert any(item["name"] == "mined labels" for item in planned["phases"]["step"]) is is_counted

    def test_without_checkpoints(self, configure):
        planned = plan(configure("probe_steps=0", "callbacks.checkpoint=null", "test=false"))
        assert not [name for name in planned["disk_bytes"] if "checkpoint" in name]
        assert "test" not in planned["phases"]

    def test_several_processes_share_a_batch(self, configure, capsys):
        planned = run(configure("trainer=ddp", "probe_steps=1"))
        assert planned["num_processes"] == 2
        assert any("each of 2 processes" in note for note in planned["notes"])
        assert "peak of 2 processes on a machine" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("num_labels=7", "num_free_vectors between 1 and the 7 labels, got 8"),
            ("num_queries=40", "num_validation below the 40 training queries, got 40"),
            ("num_test_queries=0", "num_test_queries of at least 1, got 0"),
            ("probe_steps=-1", "probe_steps of at least 0, got -1"),
        ],
    )
    def test_what_training_would_refuse(self, override, message, configure):
        with pytest.raises(ValueError, match=message):
            plan(configure(override))
