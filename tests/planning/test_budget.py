"""Sums by hand for every table, phase and placement; and against the tables and files that there really are."""

import faiss
import pytest
import torch

from prime_xmc.index.search import FaissSearch
from prime_xmc.planning.budget import (
    Item,
    Layout,
    Measured,
    Memory,
    Schedule,
    Seconds,
    Sizes,
    bytes_each,
    disk_bytes,
    make_schedule,
    memory_by_phase,
    peak,
    prepared_bytes,
    seconds_by_part,
)

SIZES = Sizes(
    num_labels=300,
    num_queries=200,
    num_test_queries=50,
    labels_per_query=2.5,
    tokens_per_query=9,
    tokens_per_label=5,
    prepared={"train_tokens.bin": 700, "labels.jsonl": 900},
)
LAYOUT = Layout(
    dim=8,
    num_trained=1000,
    num_frozen=10,
    num_free_vectors=16,
    centroid_bytes=4,
    placement="device",
    on_gpu=False,
    searcher="flat",
    num_links=32,
    num_validation=40,
    test=True,
)
SCHEDULE = Schedule(steps_per_epoch=10, num_steps=40, cluster_sizes=(4, 8), num_validations=2, num_indexes=2)
MEASURED = Measured(
    program=5000,
    encoding=Memory(60, 600),
    step=Memory(70, 700),
    held=20,
    seconds=Seconds(step=2, encode=0.5, cluster=0.001, add=0.25, search=0.125, num_searched=100),
)

# L = 300, N = 200 (160 trained on), T = 50, d = 8, F = 16
ALWAYS = {
    "program and libraries": 5000,
    "prepared data": 700,
    "parameters": 4 * 1010,
    "free vectors": 4 * 16 * 8,
    "centroids": 4 * 300 * 8,
    "query memory": 2 * 200 * 8,
    "clusters of labels": 8 * 300,
    "inverse propensities": 8 * 300,
    "query ids": 16 * 200,
}
TRAINED = ALWAYS | {
    "gradients": 4 * 1000,
    "optimiser state": 8 * 1000,
    "optimiser state of free vectors": 2 * 4 * 16 * 8,
    "order of queries": 40 * 160,
}
EMBEDDED = {"label embeddings": 2 * 300 * 8}
INDEXED = {"held by malloc": 20, "work: encoding": 60 - 20, **EMBEDDED, "label prototypes": 4 * 300 * 8}
OLDER = {"index before": 4 * 300 * 8}
PHASES = {
    "start": ALWAYS | {"label frequencies, counting": 8 * 500},
    "embed": ALWAYS | EMBEDDED | {"work: encoding": 60, "order of texts": 24 * 300},
    "centroids": ALWAYS | EMBEDDED | {"pairs, sorting": 48 * 500, "block of rows": 18 * 300 * 8},
    "label clusters": ALWAYS | EMBEDDED | {"order of rows": 48 * 300, "block of rows": 14 * 300 * 8},
    "query clusters": TRAINED
    | OLDER
    | {
        "held by malloc": 20,
        "query embeddings, copied": 2 * 160 * 8,
        "order of rows": 48 * 160,
        "block of rows": 14 * 160 * 8,
    },
    "step": TRAINED | OLDER | {"work: step": 70},
    "index": TRAINED | OLDER | INDEXED | {"Faiss index": 4 * 300 * 8},
    "test": TRAINED | INDEXED | {"Faiss index": 4 * 300 * 8, "predictions": 3 * 12 * 100 * 50},
}


def phases(sizes=SIZES, schedule=SCHEDULE, measured=MEASURED, **layout):
    return memory_by_phase(sizes, LAYOUT._replace(**layout), schedule, measured)


def by_name(items, place="host"):
    return {item.name: item.nbytes for item in items if item.place == place}


class TestMemory:
    @pytest.mark.parametrize("phase", PHASES)
    def test_every_phase_on_the_host(self, phase):
        items = phases()[phase]
        assert by_name(items) | by_name(items, "mapped") == PHASES[phase]
        assert by_name(items, "mapped") == {"prepared data": 700}

    def test_there_are_no_other_phases(self):
        assert list(phases()) == list(PHASES)

    @pytest.mark.parametrize(
        ("placement", "on_gpu", "place"),
        [
            ("device", False, "host"),
            ("host", False, "host"),
            ("mmap", False, "mapped"),
            ("device", True, "device"),
            ("host", True, "host"),
            ("mmap", True, "mapped"),
        ],
    )
    def test_banks_are_where_they_are_placed(self, placement, on_gpu, place):
        found = phases(placement=placement, on_gpu=on_gpu)
        for phase, names in {
            "start": {"centroids", "query memory"},
            "embed": {"label embeddings"},
            "index": {"label embeddings", "label prototypes"},
        }.items():
            assert names <= by_name(found[phase], place).keys()
        assert by_name(found["index"])["Faiss index"] == 4 * 300 * 8, "Faiss is on the host"

    def test_on_a_gpu(self):
        found = phases(on_gpu=True)
        assert by_name(found["step"]) == {
            "program and libraries": 5000,
            "inverse propensities": 2400,
            "query ids": 3200,
            "order of queries": 6400,
            "index before": 9600,
            "work: step": 70,
        }
        device = TRAINED | {"work: step": 700}
        host = by_name(found["step"]) | by_name(found["step"], "mapped")
        assert by_name(found["step"], "device") == {name: device[name] for name in device if name not in host} | {
            "work: step": 700
        }
        assert by_name(found["centroids"])["pairs"] == 28 * 500
        assert by_name(found["index"])["label vectors, from device"] == 6 * 300 * 8
        assert "label vectors, from device" not in by_name(phases(on_gpu=True, placement="host")["index"])

    def test_half_precision_centroids(self):
        assert by_name(phases(centroid_bytes=2)["start"])["centroids"] == 2 * 300 * 8

    def test_exact_search_has_no_copy_of_the_prototypes(self):
        found = phases(searcher="exact", placement="mmap")
        assert "Faiss index" not in by_name(found["index"])
        assert by_name(found["index"], "mapped")["index before"] == 4 * 300 * 8
        assert by_name(found["test"], "mapped") == {
            "prepared data": 700,
            "centroids": 9600,
            "query memory": 3200,
            "label embeddings": 4800,
            "label prototypes": 9600,
        }

    def test_the_first_index_is_the_only_one(self):
        found = phases(schedule=SCHEDULE._replace(num_indexes=1))
        assert all("index before" not in by_name(items) for items in found.values())

    def test_phases_that_a_run_does_not_have(self):
        found = phases(schedule=SCHEDULE._replace(cluster_sizes=()), num_free_vectors=0, test=False)
        assert list(found) == ["start", "embed", "centroids", "step", "index"]

    def test_peak_and_bytes_each(self):
        found = {
            "a": [Item("x", "host", 3, 10, "label"), Item("y", "device", 7), Item("w", "mapped", 4)],
            "b": [Item("x", "host", 3, 10, "label"), Item("z", "device", 1, 9, "label"), Item("v", "host", 2)],
        }
        assert (peak(found, "host"), peak(found, "device"), peak(found, "mapped")) == (32, 9, 4)
        assert peak(found, "host", "mapped") == 34
        assert bytes_each(found, "label") == {"a": 3, "b": 4}

    def test_a_label_and_a_query_of_prime(self):
        """d = 384, float32 centroids, Faiss: the numbers that a person works out."""
        found = phases(dim=384, schedule=SCHEDULE._replace(num_indexes=1))
        assert bytes_each(found, "label")["step"] == 4 * 384 + 8 + 8
        assert bytes_each(found, "label")["index"] == (4 + 2 + 4 + 4) * 384 + 8 + 8
        assert bytes_each(found, "query")["step"] == 2 * 384 + 16 + 40


class TestDisk:
    def test_by_hand(self):
        assert disk_bytes(SIZES, LAYOUT, phases()) == {
            "prepared data": 1600,
            "cached embeddings": 2 * 500 * 8,
            "checkpoint": 4 * 1010 + 8 * 1000 + 3 * 512 + (4 * 8 + 8) * 300 + 2 * 200 * 8 + 8 * 160,
            "checkpoint, the next one beside it": 4 * 1010 + 8 * 1000 + 3 * 512 + 12000 + 3200 + 1280,
            "export": 4 * 1010 + 512 + 12000 + 6 * 300 * 8 + 4 * 300 * 8 + 900,
            "predictions": 8 * 100 * 50,
            "banks in temporary files": 0,
        }

    def test_mapped_banks(self):
        layout = LAYOUT._replace(placement="mmap")
        found = disk_bytes(SIZES, layout, phases(placement="mmap"))
        assert found["banks in temporary files"] == 9600 + 3200 + 4800 + 9600

    def test_a_prepared_data_set_that_is_not_there_yet(self):
        found = prepared_bytes(SIZES._replace(prepared={}))
        assert found == {
            "tokens": 2 * (300 * 5 + 250 * 9),
            "positives": 4 * 625,
            "offsets": 8 * (300 + 3 * 250),
            "labels.jsonl": 35 * 300 + 6750,
        }

    @pytest.mark.parametrize("kind", ["flat", "hnsw"])
    def test_a_faiss_index(self, kind, tmp_path):
        search = FaissSearch(kind, m=16, ef_construction=20)
        search.build(torch.randn(4000, 8))
        search.save(tmp_path / "index")
        layout = LAYOUT._replace(searcher=kind, num_links=16)
        assert 4000 * layout.index_bytes == pytest.approx((tmp_path / "index").stat().st_size, rel=0.01)
        assert isinstance(search._index, faiss.IndexFlatIP if kind == "flat" else faiss.IndexHNSWFlat)


SETTINGS = {
    "batch_size": 300,
    "max_epochs": 5,
    "max_steps": -1,
    "validate_every": 2,
    "first_cluster_epoch": 2,
    "every_n_epochs": 2,
    "initial_size": 8,
    "double_at": [3],
}


class TestSchedule:
    def make(self, num_queries=1000, **changed):
        return make_schedule(num_queries, **SETTINGS | changed)

    def test_epochs(self):
        assert self.make() == Schedule(4, 20, (8, 16, 16), 2, 3)

    def test_the_last_validation_is_the_export_s(self):
        assert self.make(max_epochs=4) == Schedule(4, 16, (8, 16), 2, 2)

    def test_steps_end_it_first(self):
        assert self.make(max_steps=13) == Schedule(4, 13, (8, 16), 1, 2)
        assert self.make(max_steps=8, max_epochs=-1) == Schedule(4, 8, (), 1, 1)
        assert self.make(max_steps=100) == self.make()

    def test_without_validation_and_clusters(self):
        assert self.make(validate_every=0, first_cluster_epoch=None) == Schedule(4, 20, (), 0, 1)

    def test_no_end(self):
        with pytest.raises(ValueError, match=r"no end: give trainer\.max_epochs or trainer\.max_steps"):
            self.make(max_epochs=-1)


class TestSeconds:
    def test_by_hand(self):
        schedule = SCHEDULE._replace(cluster_sizes=(10, 40))  # 160 queries: 4 and 2 levels
        found = seconds_by_part(SIZES, LAYOUT, schedule, MEASURED.seconds, num_processes=1)
        assert found == pytest.approx(
            {
                "embedding of all training texts, if not cached": 0.5 * (160 + 300),
                "training steps": 2 * 40,
                "clusters of labels and queries": 0.001 * (160 * (4 + 2) + 300 * 4),
                "encoding and indexing labels": 2 * 300 * (0.5 + 0.25),
                "ranking of validation and test queries": (2 * 40 + 50) * (0.5 + 0.125 * 300 / 100),
            }
        )

    def test_processes_share_the_encoding(self):
        one, two = (seconds_by_part(SIZES, LAYOUT, SCHEDULE, MEASURED.seconds, number) for number in (1, 2))
        assert two["training steps"] == one["training steps"]
        part = "embedding of all training texts, if not cached"
        assert two[part] == one[part] / 2

    def test_a_graph_is_searched_in_the_same_time_whatever_its_size(self):
        layout = LAYOUT._replace(searcher="hnsw")
        found = seconds_by_part(SIZES, layout, SCHEDULE, MEASURED.seconds, 1)
        assert found["ranking of validation and test queries"] == (2 * 40 + 50) * (0.5 + 0.125)
