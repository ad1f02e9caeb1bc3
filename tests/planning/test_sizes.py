"""Sizes of data that are given, counted, generated or published."""

import pytest

from prime_xmc.datasets.building import write_records
from prime_xmc.planning.sizes import Sizes, find_sizes

TABLE_7 = {
    "amazontitles131k": (131_000, 294_800, 134_800, 2.29),
    "amazon131k": (131_000, 294_800, 134_800, 2.29),
    "amazontitles1300k": (1_300_000, 2_200_000, 970_000, 22.2),
    "wikipedia500k": (500_000, 1_800_000, 800_000, 4.77),
    "wikititles500k": (500_000, 1_800_000, 800_000, 4.74),
    "wikiseealso320k": (312_300, 693_100, 177_500, 4.68),
}
GIVEN = ["num_labels=90", "num_queries=800", "num_test_queries=70", "labels_per_query=3", "tokens_per_text=10"]


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

    def test_queries_may_have_fewer_labels_than_one_on_average(self, compose):
        sizes, _ = find_sizes(compose(*GIVEN, "labels_per_query=0.25", name="plan"))
        assert (sizes.num_pairs, sizes.num_labelled) == (200, 200)
        with pytest.raises(ValueError, match="expected labels_per_query above 0, got 0"):
            find_sizes(compose(*GIVEN, "labels_per_query=0", name="plan"))

    def test_of_raw_files_are_counted(self, configure):
        sizes, notes = find_sizes(configure())
        assert sizes[:3] == (48, 240, 60)
        assert 1 < sizes.labels_per_query < 3
        assert 4 <= sizes.tokens_per_label < sizes.tokens_per_query <= 24
        assert sizes.prepared["labels.jsonl"] > 0
        assert "counted in" in notes[0]

    def test_of_raw_files_that_are_put_together_are_counted(self, compose, tiny_encoder_dir, toy_dataset, tmp_path):
        uids = [f"{name}{row}" for name, number in (("trn", 240), ("tst", 60), ("l", 48)) for row in range(number)]
        contents = tmp_path / "long" / "contents.json.gz"
        contents.parent.mkdir()
        write_records(contents, ({"uid": uid, "content": "more words"} for uid in uids), name_in_header=False)
        encoder = ["encoder=local", f"encoder.source={tiny_encoder_dir}", f"cache_dir={tmp_path}"]
        long = ["dataset=debian18k_full", f"dataset.dir.raw={toy_dataset}", f"dataset.dir.contents={contents}"]
        sizes, notes = find_sizes(compose(*encoder, *long, name="plan"))
        short, _ = find_sizes(compose(*encoder, "dataset=custom", f"dataset.dir={toy_dataset}", name="plan"))
        assert sizes[:4] == short[:4]
        assert sizes.tokens_per_label == short.tokens_per_label + 2
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


def test_files_of_a_data_set_that_is_not_prepared_yet_are_estimated(configure):
    counted, _ = find_sizes(configure())
    estimated = counted._replace(prepared={}).prepared_bytes()
    exact = counted.prepared_bytes()
    assert estimated["tokens"] == pytest.approx(
        sum(size for name, size in exact.items() if name.endswith("tokens.bin")), rel=0.02
    )
    assert estimated["positives"] == pytest.approx(
        sum(size for name, size in exact.items() if name.endswith("positives.bin")), rel=0.05
    )
    # each file of offsets has a header of 128 bytes and one number more than rows
    assert estimated["offsets"] + 7 * 136 == sum(size for name, size in exact.items() if "offsets" in name)


def test_estimates_by_hand():
    sizes = Sizes(300, 200, 50, labels_per_query=2.5, tokens_per_query=9, tokens_per_label=5)
    assert sizes.prepared_bytes() == {
        "tokens": 2 * (300 * 5 + 250 * 9),
        "positives": 4 * 625,
        "offsets": 8 * (300 + 3 * 250),
        "labels.jsonl": 35 * 300 + 6750,
    }
