"""Plans of configurations, against the tables that training makes and the files that it writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from prime_xmc.assemble import fit_to_data, make_data, make_module
from prime_xmc.plan import run
from prime_xmc.planning.budget import Sizes, memory_by_phase, prepared_bytes
from prime_xmc.planning.layout import count_processes, make_layout, schedule_of
from prime_xmc.planning.probe import Measured
from prime_xmc.planning.run_plan import plan
from prime_xmc.planning.sizes import find_sizes
from prime_xmc.stages import train_prototypes

TABLE_7 = {
    "amazontitles131k": (131_000, 294_800, 134_800, 2.29),
    "amazon131k": (131_000, 294_800, 134_800, 2.29),
    "amazontitles1300k": (1_300_000, 2_200_000, 970_000, 22.2),
    "wikipedia500k": (500_000, 1_800_000, 800_000, 4.77),
    "wikititles500k": (500_000, 1_800_000, 800_000, 4.74),
    "wikiseealso320k": (312_300, 693_100, 177_500, 4.68),
}
GIVEN = ["num_labels=90", "num_queries=800", "num_test_queries=70", "labels_per_query=3", "tokens_per_text=10"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def toy(toy_settings, cache) -> list[str]:
    return [
        *toy_settings,
        "dataset.max_length=24",
        "dataset.max_epochs=2",
        "sampling.batch_size=32",
        "trainer.precision=32-true",
        "trainer.log_every_n_steps=2",
        f"cache_dir={cache}",
        "run_dir=run",
    ]


@pytest.fixture(scope="module")
def configure(compose, toy):
    return lambda *more, name="plan": compose(*toy, *more, name=name)


class TestSizes:
    @pytest.mark.parametrize("dataset", TABLE_7)
    def test_of_the_benchmarks_are_those_of_table_7(self, dataset, compose, tmp_path):
        sizes, notes = find_sizes(compose(f"dataset={dataset}", f"dataset.dir={tmp_path}", name="plan"))
        assert sizes[:4] == TABLE_7[dataset]
        assert "as published" in notes[0]
        assert sizes.tokens_per_query == compose(f"dataset={dataset}", name="plan").dataset.max_length
        assert "the most there can be" in notes[1]

    def test_of_generated_data_are_in_the_configuration(self, compose, tmp_path):
        sizes, _ = find_sizes(
            compose(
                "dataset=synthetic",
                "dataset.num_labels=70000",
                "dataset.num_queries=90000",
                "dataset.dir.mean_label_words=7",
                f"cache_dir={tmp_path}",
                name="plan",
            )
        )
        assert sizes == Sizes(70_000, 90_000, 1000, 5, 14, 9)
        assert list(tmp_path.iterdir()) == [], "nothing is generated"

    def test_of_raw_files_are_counted(self, configure):
        sizes, notes = find_sizes(configure())
        assert sizes[:3] == (48, 240, 60)
        assert 1 < sizes.labels_per_query < 3
        assert 4 <= sizes.tokens_per_label < sizes.tokens_per_query <= 24
        assert sizes.prepared["labels.jsonl"] > 0
        assert "counted in" in notes[0]

    def test_given_ones_go_first(self, configure):
        sizes, notes = find_sizes(configure("num_queries=1000", "tokens_per_text=9"))
        assert sizes[:3] == (48, 1000, 60)
        assert (sizes.tokens_per_query, sizes.tokens_per_label) == (9, 9)
        assert not sizes.prepared, "that folder has another number of queries"
        assert notes[-1] == "given: num_queries=1000, tokens_per_text=9"

    def test_with_all_given_nothing_is_looked_for(self, compose):
        sizes, _ = find_sizes(
            compose("dataset=custom", "dataset.num_free_vectors=8", "dataset.num_validation=9", *GIVEN, name="plan")
        )
        assert sizes == Sizes(90, 800, 70, 3, 10, 10)

    def test_unknown_ones_are_named(self, compose, tmp_path):
        with pytest.raises(ValueError, match=r"no dataset\.dir.* give num_labels=\.\.\. num_test_queries=\.\.\. or"):
            find_sizes(compose("dataset=custom", "num_queries=100", name="plan"))
        with pytest.raises(ValueError, match=rf"no raw files of custom in {tmp_path}.* num_queries=\.\.\."):
            find_sizes(compose("dataset=custom", f"dataset.dir={tmp_path}", name="plan"))

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
            find_sizes(configure(override))


class TestConfiguration:
    @pytest.mark.parametrize(
        ("devices", "number"), [("1", 1), ("2", 2), ("'3'", 3), ("[0,1]", 2), ("auto", 1), ("-1", 1)]
    )
    def test_processes(self, devices, number, compose):
        assert count_processes(compose(f"trainer.devices={devices}", name="plan")) == number

    def test_schedule(self, compose):
        config = compose("dataset=amazontitles1300k", "trainer.max_epochs=20", name="plan")
        schedule = schedule_of(config, find_sizes(config)[0])
        assert schedule.steps_per_epoch == -(-(2_200_000 - 5000) // 3200)
        assert schedule.num_steps == 20 * schedule.steps_per_epoch
        assert schedule.cluster_sizes == (8, 8)
        assert (schedule.num_validations, schedule.num_indexes) == (4, 4)

    def test_overrides_of_train_are_overrides_of_plan(self, compose):
        overrides = [
            "dataset=synthetic",
            "model=prime_lite",
            "index=hnsw",
            "optimizer.lr=0.5",
            "experiment=public_code",
        ]
        planned, trained = (
            OmegaConf.to_container(compose(*overrides, "run_dir=run", name=name), resolve=False)
            for name in ("plan", "train")
        )
        assert {key: planned[key] for key in trained if key != "task"} == {
            key: trained[key] for key in trained if key != "task"
        }

    def test_an_accelerator_that_is_not_known(self, configure):
        with pytest.raises(ValueError, match=r"trainer\.accelerator cpu, gpu, cuda or auto, got 'tpu'"):
            plan(configure("trainer.accelerator=tpu", "probe_steps=0"))


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["bank.placement=host", "model.centroid_dtype=float16"],
        ["bank.placement=mmap", "model.sources=[text,centroid]"],
        ["index=exact", "dataset.num_free_vectors=5"],
    ],
)
def test_tables_are_as_large_as_planned(settings, configure):
    """Of a module that training makes: every bank, buffer and parameter, and where it is."""
    config = configure(*settings)
    data = make_data(config)
    config = fit_to_data(config, data.corpus)
    module = make_module(config, data)
    sizes, _ = find_sizes(config)
    layout = make_layout(config, module)
    items = memory_by_phase(sizes, layout, schedule_of(config, sizes), Measured())["start"]
    planned = {item.name: item.nbytes for item in items}
    centroids, queries = module.prototypes.centroids, module.query_memory
    assert planned["centroids"] == centroids.rows.nbytes
    assert planned["query memory"] == queries.rows.nbytes
    assert planned["clusters of labels"] == module.prototypes.cluster_of_label.nbytes
    assert planned["inverse propensities"] == data.inverse_propensity.nbytes
    assert planned["query ids"] >= sum(
        ids.nbytes for ids in (data.train_ids, data.validation_ids, data.sampler.query_ids)
    )
    parameters = sum(p.nbytes for p in module.parameters())
    assert planned["parameters"] + planned.get("free vectors", 0) == parameters
    place = {item.name: item.place for item in items}["centroids"]
    assert place == ("mapped" if "bank.placement=mmap" in settings else "host")


def test_files_are_as_large_as_planned(configure, tmp_path):
    """Of a run of two steps: what it prepares, caches, saves and exports."""
    settings = ["trainer.max_steps=2", f"run_dir={tmp_path}/run", f"cache_dir={tmp_path}/cache"]
    progress = ["callbacks.progress=null", "+trainer.enable_progress_bar=false"]
    train_prototypes(configure(*settings, *progress, name="train"))
    planned = plan(configure(*settings, "probe_steps=0"))
    (embeddings,) = (tmp_path / "cache").glob("embeddings-*")
    (prepared,) = (tmp_path / "cache").glob("custom-*")

    def size(folder: Path, *names: str) -> int:
        files = [path for name in names for path in folder.rglob(name) if path.is_file()]
        return sum(path.stat().st_size for path in files)

    assert planned.disk["prepared data"] == size(prepared, "*") - size(prepared, "manifest.json")
    # headers of files of a few kilobytes
    assert planned.disk["cached embeddings"] == pytest.approx(size(embeddings, "*"), abs=600)
    assert planned.disk["checkpoint"] == pytest.approx(size(tmp_path / "run" / "checkpoints", "*"), rel=0.06)
    exported = size(tmp_path / "run" / "model", "*.safetensors", "index.faiss", "labels.jsonl")
    assert planned.disk["export"] == pytest.approx(exported, rel=0.06)
    predictions = tmp_path / "run" / "predictions.npz"
    assert 8 * 48 * 60 == planned.disk["predictions"] < predictions.stat().st_size


def test_a_data_set_that_is_not_prepared_yet(configure):
    counted, _ = find_sizes(configure())
    estimated = prepared_bytes(counted._replace(prepared={}))
    exact = prepared_bytes(counted)
    assert estimated["tokens"] == pytest.approx(
        sum(size for name, size in exact.items() if name.endswith("tokens.bin")), rel=0.02
    )
    assert estimated["positives"] == pytest.approx(
        sum(size for name, size in exact.items() if name.endswith("positives.bin")), rel=0.05
    )
    # each file of offsets has a header of 128 bytes and one number more than rows
    assert estimated["offsets"] + 7 * 136 == sum(size for name, size in exact.items() if "offsets" in name)


class TestPlan:
    def test_measured(self, configure, tmp_path, capsys):
        planned = run(configure("probe_steps=2", f"output={tmp_path}/plan.json", "trainer.max_epochs=2"))
        content = json.loads((tmp_path / "plan.json").read_text())
        assert content["schedule"]["num_steps"] == 2 * -(-200 // 32)
        assert content["peak_bytes"]["device"] == 0
        # torch and the Trainer alone take hundreds of megabytes; the toy's step does not
        assert 2e8 < content["peak_bytes"]["host"] < 4e9
        assert all(value > 0 for value in content["seconds"].values())
        assert content["disk_bytes"] == planned.disk
        step = {item["name"] for item in content["phases"]["step"]}
        assert {"program and libraries", "centroids", "gradients", "optimiser state", "query memory"} <= step
        shown = capsys.readouterr().out
        for words in ("program and libraries", "checkpoint", "time in all", "bytes per label", "bytes per query"):
            assert words in shown
        assert f"{planned.schedule.num_steps} of 7 an epoch" in shown
        assert list(tmp_path.iterdir()) == [tmp_path / "plan.json"]

    def test_without_a_probe(self, configure, compose, toy):
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
        items = {(item.name, item.place): item.nbytes for item in planned.phases["step"]}
        assert items["centroids", "host"] == 1_300_000 * 32 * 4
        assert items["query memory", "host"] == 2_200_000 * 32 * 2
        assert items["free vectors", "device"] == 131_072 * 32 * 4
        assert planned.seconds == {}
        assert any("no probe" in note for note in planned.notes)

    def test_without_checkpoints(self, configure):
        planned = plan(configure("probe_steps=0", "callbacks.checkpoint=null", "test=false"))
        assert not [name for name in planned.disk if "checkpoint" in name]
        assert "test" not in planned.phases

    def test_several_processes_share_a_batch(self, configure, capsys):
        planned = run(configure("trainer=ddp", "probe_steps=1"))
        assert planned.num_processes == 2
        assert any("each of 2 processes" in note for note in planned.notes)
        assert "peak of 2 processes on a machine" in capsys.readouterr().out


def test_through_a_process(tmp_path):
    command = [sys.executable, "-m", "prime_xmc.plan", "dataset=custom", f"dataset.dir={tmp_path}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "its size is unknown: give num_labels=... num_queries=... num_test_queries=..." in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
