"""Sums by hand for every table, phase and placement; and against the tables and files that there really are."""

import pytest

from prime_xmc.planning.budget import (
    Item,
    Measured,
    Memory,
    bytes_each,
    disk_bytes,
    memory_by_phase,
    peak,
    seconds_by_part,
)
from prime_xmc.planning.layout import Layout, Schedule
from prime_xmc.planning.sizes import Sizes

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
    remembers_labels=False,
    frozen_bytes=0,
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
    step_seconds=2,
    encode_seconds=0.5,
    cluster_seconds=0.001,
    add_seconds=0.25,
    search_seconds=0.125,
    num_searched=64,
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
    "query ids": 56 * 200,
}
TRAINED = ALWAYS | {
    "gradients": 4 * 1000,
    "optimiser state": 8 * 1000,
    "optimiser state of free vectors": 2 * 4 * 16 * 8,
    "working memory": 70,
}
EMBEDDED = {"label embeddings": 2 * 300 * 8}
INDEXED = TRAINED | EMBEDDED | {"label prototypes": 4 * 300 * 8, "Faiss index": 4 * 300 * 8}
OLDER = {"index before": 4 * 300 * 8}
PHASES = {
    "centroids": ALWAYS | EMBEDDED | {"pairs, sorting": 48 * 500, "block of rows": 18 * 300 * 8},
    "clusters": TRAINED | OLDER | {"rows to cluster": (2 * 8 + 48) * 300, "block of rows": 14 * 300 * 8},
    "step": TRAINED | OLDER,
    "index": INDEXED | OLDER,
    "test": INDEXED | {"predictions": 3 * 12 * 100 * 50},
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
        planned = phases(placement=placement, on_gpu=on_gpu)
        for phase, names in {
            "step": {"centroids", "query memory"},
            "centroids": {"label embeddings"},
            "index": {"label embeddings", "label prototypes"},
        }.items():
            assert names <= by_name(planned[phase], place).keys()
        assert by_name(planned["index"])["Faiss index"] == 4 * 300 * 8, "Faiss is on the host"

    def test_on_a_gpu(self):
        planned = phases(on_gpu=True)
        host = {
            "program and libraries": 5000,
            "inverse propensities": 2400,
            "query ids": 11200,
            "index before": 9600,
            "working memory": 70,
        }
        assert by_name(planned["step"]) == host
        device = {name: size for name, size in TRAINED.items() if name not in host and name != "prepared data"}
        assert by_name(planned["step"], "device") == device | {"working memory": 700}
        assert by_name(planned["index"], "device")["working memory"] == 600
        assert by_name(planned["centroids"])["pairs"] == 28 * 500
        assert by_name(planned["index"])["label vectors, from device"] == 6 * 300 * 8
        assert "label vectors, from device" not in by_name(phases(on_gpu=True, placement="host")["index"])

    def test_remembered_labels_are_in_memory_from_the_first_embedding_on(self):
        planned = phases(remembers_labels=True)
        assert all(by_name(items)["label memory"] == 2 * 300 * 8 for items in planned.values())
        assert "label embeddings" not in by_name(planned["centroids"])
        assert by_name(planned["index"])["label embeddings"] == 2 * 300 * 8

    def test_outputs_of_frozen_layers_have_a_row_for_each_token(self):
        planned = phases(frozen_bytes=2)
        assert all(
            by_name(items)["outputs of frozen layers"] == 2 * 8 * (200 * 9 + 300 * 5) for items in planned.values()
        )

    def test_half_precision_centroids(self):
        assert by_name(phases(centroid_bytes=2)["step"])["centroids"] == 2 * 300 * 8

    def test_exact_search_has_no_copy_of_the_prototypes(self):
        planned = phases(searcher="exact", placement="mmap")
        assert "Faiss index" not in by_name(planned["index"])
        assert by_name(planned["index"], "mapped")["index before"] == 4 * 300 * 8
        assert by_name(planned["test"], "mapped") == {
            "prepared data": 700,
            "centroids": 9600,
            "query memory": 3200,
            "label embeddings": 4800,
            "label prototypes": 9600,
        }

    def test_the_first_index_is_the_only_one(self):
        planned = phases(schedule=SCHEDULE._replace(num_indexes=1))
        assert all("index before" not in by_name(items) for items in planned.values())

    def test_mined_labels_and_those_of_the_search_before(self):
        once = phases(schedule=SCHEDULE._replace(num_minings=1), num_mined=20)
        assert [by_name(items).get("mined labels") for items in once.values()] == [None, *[4 * 20 * 200] * 4]
        assert "mined labels before" not in by_name(once["index"])
        twice = phases(schedule=SCHEDULE._replace(num_minings=2, num_indexes=0), num_mined=20)
        assert by_name(twice["index"])["mined labels before"] == 4 * 20 * 200
        assert "mined labels before" not in by_name(twice["step"])
        assert "index before" in by_name(twice["step"])

    def test_phases_that_a_run_does_not_have(self):
        planned = phases(schedule=SCHEDULE._replace(cluster_sizes=()), num_free_vectors=0, test=False)
        assert list(planned) == ["centroids", "step", "index"]

    def test_exact_search_on_a_gpu_holds_scores(self):
        exact = {"searcher": "exact", "on_gpu": True}
        assert by_name(phases(**exact)["test"], "device")["block of scores"] == 4 * 4096 * 300
        for phase in (phases(on_gpu=True), phases(searcher="exact"), phases(**exact, placement="host")):
            assert "block of scores" not in [item.name for item in phase["test"]]

    def test_more_queries_than_labels_are_clustered(self):
        planned = phases(SIZES._replace(num_queries=1000))
        assert by_name(planned["clusters"])["rows to cluster"] == (2 * 8 + 48) * 960
        assert bytes_each(planned, "query")["clusters"] == 2 * 8 + 56 + 2 * 8 + 48

    def test_peak_and_bytes_each(self):
        planned = {
            "a": [Item("x", "host", 3, 10, "label"), Item("y", "device", 7), Item("w", "mapped", 4)],
            "b": [Item("x", "host", 3, 10, "label"), Item("z", "device", 1, 9, "label"), Item("v", "host", 2)],
        }
        assert (peak(planned, "host"), peak(planned, "device"), peak(planned, "mapped")) == (32, 9, 4)
        assert peak(planned, "host", "mapped") == 34
        assert bytes_each(planned, "label") == {"a": 3, "b": 4}

    def test_a_label_and_a_query_of_prime(self):
        """d = 384, float32 centroids, Faiss: the numbers that a person works out."""
        planned = phases(dim=384, schedule=SCHEDULE._replace(num_indexes=1))
        assert bytes_each(planned, "label")["step"] == 4 * 384 + 8 + 8
        assert bytes_each(planned, "label")["index"] == (4 + 2 + 4 + 4) * 384 + 8 + 8
        assert bytes_each(planned, "query")["step"] == 2 * 384 + 56


class TestDisk:
    def test_by_hand(self):
        assert disk_bytes(SIZES, LAYOUT, phases()) == {
            "prepared data": 1600,
            "cached embeddings": 2 * 500 * 8,
            "checkpoint": 4 * 1010 + 8 * 1000 + 3 * 512 + (4 * 8 + 8) * 300 + 2 * 200 * 8 + 8 * 160,
            "checkpoint, the one before it": 4 * 1010 + 8 * 1000 + 3 * 512 + 12000 + 3200 + 1280,
            "checkpoint, the next one beside it": 4 * 1010 + 8 * 1000 + 3 * 512 + 12000 + 3200 + 1280,
            "export": 4 * 1010 + 512 + 12000 + 6 * 300 * 8 + 4 * 300 * 8 + 900,
            "predictions": 8 * 100 * 50,
            "banks in temporary files": 0,
        }

    def test_a_model_that_is_searched_without_faiss_is_exported_with_a_flat_index(self):
        layout = LAYOUT._replace(searcher="exact")
        assert disk_bytes(SIZES, layout, phases(searcher="exact")) == disk_bytes(SIZES, LAYOUT, phases())
        assert by_name(phases(searcher="exact")["index"])["Faiss index of the export"] == 4 * 300 * 8
        assert "Faiss index of the export" not in by_name(phases()["index"])

    def test_mined_labels_are_in_checkpoints(self):
        more = disk_bytes(SIZES, LAYOUT._replace(num_mined=20), phases())["checkpoint"]
        assert more == disk_bytes(SIZES, LAYOUT, phases())["checkpoint"] + 4 * 20 * 200

    def test_mapped_banks(self):
        layout = LAYOUT._replace(placement="mmap")
        planned = disk_bytes(SIZES, layout, phases(placement="mmap"))
        assert planned["banks in temporary files"] == 9600 + 3200 + 4800 + 9600


class TestSeconds:
    def test_by_hand(self):
        schedule = SCHEDULE._replace(cluster_sizes=(10, 40))  # 160 queries: 4 and 2 levels
        planned = seconds_by_part(SIZES, LAYOUT, schedule, MEASURED, num_processes=1)
        assert planned == pytest.approx(
            {
                "embedding of all training texts, if not cached": 0.5 * (160 + 300),
                "training steps": 2 * 40,
                "clusters of labels and queries": 0.001 * (160 * (4 + 2) + 300 * 4),
                "encoding and indexing labels": 2 * 300 * (0.5 + 0.25),
                "ranking of validation and test queries": (2 * 40 + 50) * (0.5 + 0.125 * 300 / 64),
            }
        )

    def test_a_search_for_mined_labels_encodes_all_labels_and_searches_for_all_queries(self):
        planned = seconds_by_part(SIZES, LAYOUT, SCHEDULE._replace(num_minings=3), MEASURED, 2)
        each = 300 * (0.5 / 2 + 0.25) + 160 * 0.125 * 300 / 64
        assert planned["searches for mined labels"] == pytest.approx(3 * each)

    def test_queries_are_encoded_for_later_stages(self):
        planned = seconds_by_part(SIZES, LAYOUT, SCHEDULE._replace(encodes_queries=True), MEASURED, 1)
        assert planned["encoding queries for later stages"] == 0.5 * 160

    def test_processes_share_the_encoding(self):
        one, two = (seconds_by_part(SIZES, LAYOUT, SCHEDULE, MEASURED, number) for number in (1, 2))
        assert two["training steps"] == one["training steps"]
        part = "embedding of all training texts, if not cached"
        assert two[part] == one[part] / 2

    def test_a_graph_is_searched_in_the_same_time_whatever_its_size(self):
        layout = LAYOUT._replace(searcher="hnsw")
        planned = seconds_by_part(SIZES, layout, SCHEDULE, MEASURED, 1)
        assert planned["ranking of validation and test queries"] == (2 * 40 + 50) * (0.5 + 0.125)
