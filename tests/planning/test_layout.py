"""Schedules, devices and tables of configurations, against the tables that training makes."""

import gzip
import json
import shutil

import pytest
import torch

from prime_xmc.assemble import fit_to_data, fit_to_size, make_data, make_module
from prime_xmc.index.search import FaissSearch
from prime_xmc.planning.budget import Measured, memory_by_phase
from prime_xmc.planning.layout import Layout, Schedule, count_processes, device_of, layout_of, schedule_of
from prime_xmc.planning.sizes import find_sizes

SETTINGS = (
    *("classify=false", "neighbours=null", "lexical=null"),
    *("dataset.num_validation=100", "dataset.batch_size=300", "dataset.max_epochs=5", "dataset.validate_every=2"),
    "dataset.clusters={first_epoch: 2, every_n_epochs: 2, initial_size: 8, double_at: [3]}",
)


class TestSchedule:
    @pytest.fixture
    def schedule(self, compose):
        """Makes the schedule of 1,100 queries with some overrides."""
        return lambda *more: schedule_of(compose(*SETTINGS, *more, name="plan"), 1100)

    def test_epochs(self, schedule):
        assert schedule() == Schedule(4, 20, (8, 16, 16), 2, 3)

    def test_the_last_validation_is_the_export_s(self, schedule):
        assert schedule("trainer.max_epochs=4") == Schedule(4, 16, (8, 16), 2, 2)

    def test_steps_end_it_first(self, schedule):
        assert schedule("trainer.max_steps=13") == Schedule(4, 13, (8, 16), 1, 2)
        assert schedule("trainer.max_steps=8", "trainer.max_epochs=-1") == Schedule(4, 8, (), 1, 1)
        assert schedule("trainer.max_steps=100") == schedule()

    @pytest.mark.parametrize(
        ("settings", "steps"),
        [
            (["trainer.limit_train_batches=3"], (3, 15)),
            (["trainer.limit_train_batches=9"], (4, 20)),
            (["trainer.limit_train_batches=0.5"], (2, 10)),
            (["trainer.accumulate_grad_batches=3", "trainer.max_steps=3"], (4, 7)),  # of 3, 1 and 3 batches
            (["trainer.accumulate_grad_batches=3"], (4, 20)),
        ],
    )
    def test_batches_that_the_trainer_leaves_out_or_puts_together(self, schedule, settings, steps):
        assert schedule(*settings)[:2] == steps

    def test_without_validation_and_clusters(self, schedule):
        settings = ["dataset.num_validation=0", "dataset.batch_size=275", "sampling.clusters.first_epoch=null"]
        assert schedule(*settings) == Schedule(4, 20, (), 0, 1)

    def test_searches_for_mined_labels(self, schedule):
        assert schedule("sampling.mined={first_epoch: 1, every_n_epochs: 3}").num_minings == 2  # epochs 1 and 4
        assert schedule("sampling.mined={first_epoch: 0, every_n_epochs: 2}").num_minings == 3
        assert schedule("sampling.mined.first_epoch=0", "trainer.max_steps=2").num_minings == 1  # before the first step
        assert schedule("sampling.mined.first_epoch=5").num_minings == 0  # there are five epochs
        assert schedule().num_minings == 0

    @pytest.mark.parametrize(
        "setting", ["classify=true", "neighbours={k: 20, temperature: 0.05}", "lexical={pairs: true}"]
    )
    def test_what_follows_needs_the_queries(self, schedule, setting):
        assert schedule(setting).encodes_queries
        assert not schedule().encodes_queries

    def test_no_validation_at_all(self, schedule):
        assert schedule("trainer.check_val_every_n_epoch=null") == Schedule(4, 20, (8, 16, 16), 0, 1)

    def test_queries_without_a_label_are_not_trained_on(self, compose, toy_dataset, tiny_encoder_dir, tmp_path):
        """As many steps as the sampler of the training has."""
        some = compose(*SETTINGS, name="plan")
        assert [schedule_of(some, 1100, labelled).steps_per_epoch for labelled in (1100, 650, 5)] == [4, 2, 1]
        folder = shutil.copytree(toy_dataset, tmp_path / "raw")
        with gzip.open(folder / "trn.json.gz", "rt") as file:
            records = [json.loads(line) for line in file]
        with gzip.open(folder / "trn.json.gz", "wt") as file:
            for row, record in enumerate(records):
                file.write(json.dumps(record | ({} if row % 3 == 0 else {"target_ind": []})) + "\n")
        settings = ["encoder=local", f"encoder.source={tiny_encoder_dir}", f"cache_dir={tmp_path}", "dataset=custom"]
        config = compose(*settings, f"dataset.dir={folder}", "dataset.batch_size=8", name="plan")
        sizes, _ = find_sizes(config)
        assert (sizes.num_queries, sizes.num_unlabelled, sizes.num_labelled) == (240, 160, 80)
        assert 0 < sizes.labels_per_query < 1
        config = fit_to_size(config, sizes.num_queries, sizes.num_labels)
        data = make_data(config)
        planned = schedule_of(config, sizes.num_queries, sizes.num_labelled)
        assert planned.steps_per_epoch == pytest.approx(len(data.sampler), abs=1)

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            (["trainer.check_val_every_n_epoch=null", "+trainer.val_check_interval=5"], (4, 4)),  # 5, 10, 15 and 20
            (["trainer.check_val_every_n_epoch=null", "+trainer.val_check_interval=6"], (3, 4)),
            (["+trainer.val_check_interval=2"], (4, 5)),  # twice in epochs 2 and 4
            (["+trainer.val_check_interval=2", "trainer.max_epochs=4"], (4, 4)),
            (["+trainer.val_check_interval=3", "trainer.max_epochs=4"], (2, 3)),
            (["+trainer.val_check_interval=0.5"], (4, 5)),
            (["+trainer.val_check_interval=1.0"], (2, 3)),
            (["+trainer.val_check_interval=2", "trainer.max_steps=6"], (1, 1)),  # in the middle of epoch 2, at its end
            (["+trainer.val_check_interval=2", "trainer.max_steps=11"], (2, 3)),
            (["+trainer.val_check_interval=2", "dataset.num_validation=0"], (0, 1)),
        ],
    )
    def test_validations_within_epochs(self, schedule, settings, expected):
        planned = schedule(*settings)
        assert (planned.num_validations, planned.num_indexes) == expected

    @pytest.mark.parametrize("setting", ["trainer.fast_dev_run=true", "trainer.overfit_batches=2"])
    def test_runs_for_debugging(self, schedule, setting):
        with pytest.raises(ValueError, match="is for debugging, and plans are of whole runs"):
            schedule(f"+{setting}")

    def test_no_end(self, schedule):
        with pytest.raises(ValueError, match=r"no end: give trainer\.max_epochs or trainer\.max_steps"):
            schedule("trainer.max_epochs=-1")

    def test_benchmark(self, compose):
        config = compose("dataset=amazontitles1300k", "trainer.max_epochs=20", name="plan")
        schedule = schedule_of(config, 2_200_000)
        assert schedule.steps_per_epoch == -(-(2_200_000 - 5000) // 3200)
        assert schedule.num_steps == 20 * schedule.steps_per_epoch
        assert schedule.cluster_sizes == (8, 8)
        assert (schedule.num_validations, schedule.num_indexes) == (4, 4)


class TestDevices:
    @pytest.mark.parametrize(
        ("devices", "number"),
        [("1", 1), ("2", 2), ("'3'", 3), ("[0,1]", 2), ("'0,1'", 2), ("'0,'", 1), ("auto", 1), ("-1", 1)],
    )
    def test_processes(self, devices, number, compose):
        assert count_processes(compose(f"trainer.devices={devices}", name="plan")) == number

    def test_an_accelerator_that_is_not_known(self, compose):
        with pytest.raises(ValueError, match=r"trainer\.accelerator cpu, gpu, cuda or auto, got 'tpu'"):
            device_of(compose("trainer.accelerator=tpu", name="plan"))


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_a_faiss_index_is_as_large_as_planned(kind, tmp_path):
    search = FaissSearch(kind, m=16, ef_construction=20)
    search.build(torch.randn(4000, 8))
    search.save(tmp_path / "index")
    layout = Layout(8, 0, 0, 0, 4, False, 0, "device", False, kind, 16, 0, True)
    assert 4000 * layout.index_bytes == pytest.approx((tmp_path / "index").stat().st_size, rel=0.01)


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
    layout = layout_of(config, module)
    items = memory_by_phase(sizes, layout, schedule_of(config, sizes.num_queries), Measured())["step"]
    planned = {item.name: item.nbytes for item in items}
    centroids, queries = module.prototypes.centroids, module.query_memory
    assert planned["centroids"] == centroids.rows.nbytes
    assert planned["query memory"] == queries.rows.nbytes
    assert planned["label memory"] == module.label_memory.rows.nbytes
    assert planned["clusters of labels"] == module.prototypes.cluster_of_label.nbytes
    assert planned["inverse propensities"] == data.inverse_propensity.nbytes
    assert planned["query ids"] >= sum(
        ids.nbytes for ids in (data.train_ids, data.validation_ids, data.sampler.query_ids)
    )
    parameters = sum(p.nbytes for p in module.parameters())
    assert planned["parameters"] + planned.get("free vectors", 0) == parameters
    place = {item.name: item.place for item in items}["centroids"]
    assert place == ("mapped" if "bank.placement=mmap" in settings else "host")
