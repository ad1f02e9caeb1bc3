import gzip
import json

import numpy as np
import pytest
import torch

from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.data.propensity import inverse_propensity
from prime_xmc.data.raw import RawFiles
from prime_xmc.data.tokenizer import load_tokenizer

NUM_TRAIN, NUM_TEST, NUM_LABELS, NUM_VALIDATION = 240, 60, 48, 40


@pytest.fixture(scope="module")
def make(tmp_path_factory, tiny_encoder_dir, toy_dataset):
    """Makes data modules, set up, of the toy data set or of another folder."""
    tokenizer = load_tokenizer(str(tiny_encoder_dir))
    cache_dir = str(tmp_path_factory.mktemp("cache"))

    def make(directory=toy_dataset, **changes):
        arguments = {
            "max_length": 16,
            "cache_dir": cache_dir,
            "propensity_a": 0.55,
            "propensity_b": 1.5,
            "batch_size": 32,
            "num_positives": 2,
            "num_validation": NUM_VALIDATION,
            "encode_chunk": 25,
        }
        datamodule = PrimeDataModule(RawFiles(directory, "toy"), tokenizer, **(arguments | changes))
        datamodule.prepare_data()
        datamodule.setup("fit")
        return datamodule

    return make


@pytest.fixture(scope="module")
def datamodule(make):
    return make()


def records(directory, name):
    with gzip.open(directory / f"{name}.json.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def loaded_ids(loader):
    return sorted(int(text_id) for texts in loader for text_id in texts.ids)


def epoch(datamodule, number):
    datamodule.sampler.set_epoch(number)
    return list(datamodule.train_dataloader())


def assert_same(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=0)


class TestSplits:
    def test_validation_queries_are_never_trained_on(self, datamodule):
        validation = set(loaded_ids(datamodule.val_dataloader()))
        assert len(validation) == NUM_VALIDATION
        for number in range(3):
            trained = [int(query) for batch in epoch(datamodule, number) for query in batch.query_ids]
            assert sorted([*trained, *validation]) == list(range(NUM_TRAIN))
        assert set(loaded_ids(datamodule.train_text_dataloader())) == set(trained)
        assert not set(datamodule.train_pairs()[0].tolist()) & validation

    def test_validation_reads_training_queries_only(self, datamodule, toy_dataset):
        assert datamodule.truth("val") is datamodule.corpus.train
        assert datamodule.truth("test") is datamodule.corpus.test
        trn, tst = records(toy_dataset, "trn"), records(toy_dataset, "tst")
        for loader, raw, stage in (
            (datamodule.val_dataloader(), trn, "val"),
            (datamodule.test_dataloader(), tst, "test"),
        ):
            for texts in loader:
                for row, tokens in zip(texts.ids, texts.token_ids.split(texts.lengths.tolist()), strict=True):
                    expected = datamodule.tokenizer(raw[row]["title"], truncation=True, max_length=16)
                    assert tokens.tolist() == expected["input_ids"]
                    assert datamodule.truth(stage).positives[row].tolist() == sorted(raw[row]["target_ind"])

    def test_loaders_of_a_whole_set(self, datamodule):
        assert loaded_ids(datamodule.test_dataloader()) == list(range(NUM_TEST))
        assert loaded_ids(datamodule.label_dataloader()) == list(range(NUM_LABELS))
        assert max(len(texts.ids) for texts in datamodule.label_dataloader()) == 25

    def test_seed_chooses_the_validation_queries(self, make, datamodule):
        assert make().validation_ids.tolist() == datamodule.validation_ids.tolist()
        assert make(seed=1).validation_ids.tolist() != datamodule.validation_ids.tolist()

    def test_no_validation(self, make):
        datamodule = make(num_validation=0)
        assert loaded_ids(datamodule.val_dataloader()) == []
        assert len(datamodule.train_ids) == NUM_TRAIN

    @pytest.mark.parametrize("num_validation", [NUM_TRAIN, NUM_TRAIN + 1, -1])
    def test_validation_that_leaves_nothing(self, make, num_validation):
        message = rf"dataset\.num_validation below the 240 training queries, got {num_validation}"
        with pytest.raises(ValueError, match=message):
            make(num_validation=num_validation)

    def test_propensity_is_that_of_the_training_file(self, make, toy_dataset):
        """All of it, as in the benchmark's scripts: not of the queries that remain after the validation split."""
        labels = [label for record in records(toy_dataset, "trn") for label in record["target_ind"]]
        frequency = np.bincount(labels, minlength=NUM_LABELS)
        expected = inverse_propensity(frequency, NUM_TRAIN, 0.6, 2.6)
        for num_validation in (0, 100):
            datamodule = make(num_validation=num_validation, propensity_a=0.6, propensity_b=2.6)
            np.testing.assert_allclose(datamodule.inverse_propensity, expected)

    def test_train_pairs(self, datamodule, toy_dataset):
        raw = records(toy_dataset, "trn")
        pairs = list(zip(*(part.tolist() for part in datamodule.train_pairs()), strict=True))
        expected = [(int(q), label) for q in datamodule.train_ids for label in sorted(raw[q]["target_ind"])]
        assert pairs == expected

    def test_more_queries_are_never_held_out_ones(self, make):
        made = make(more_queries_per_label=2, batch_size=8)
        more = {int(query) for batch in made.train_dataloader() for query in batch.more.texts.ids}
        assert len(more) > 50
        assert more <= set(made.train_ids.tolist())

    def test_fewer_than_no_queries(self, make):
        with pytest.raises(ValueError, match="more_queries_per_label of at least 0, got -1"):
            make(more_queries_per_label=-1)

    def test_queries_without_positives_are_left_out(self, make, tmp_path, caplog):
        write_raw(tmp_path, [[0], [], [1], [0, 1], []], num_labels=2)
        datamodule = make(tmp_path, num_validation=0)
        assert datamodule.sampler.query_ids.tolist() == [0, 2, 3]
        assert datamodule.train_pairs()[0].tolist() == [0, 2, 3, 3]
        assert "2 of 5 training queries have no positive" in caplog.text


class TestBatches:
    def test_loss_positives_are_as_asked_for(self, make):
        pulled = {
            choice: sum(int(batch.positives.sum()) for batch in epoch(make(loss_positives=choice, num_positives=1), 0))
            for choice in ("drawn", "any", "all")
        }
        assert pulled["drawn"] == pulled["any"] == NUM_TRAIN - NUM_VALIDATION < pulled["all"]

    def test_all_positives_are_the_default(self, make):
        assert make().loss_positives == "all"

    def test_own_label_is_not_among_the_negatives(self, datamodule):
        seen = 0
        for batch in epoch(datamodule, 0):
            for row, query in enumerate(batch.query_ids):
                for label in datamodule.corpus.train.filtered[query]:
                    column = (batch.label_ids == int(label)).nonzero().flatten()
                    seen += len(column)
                    assert not batch.negatives[row, column].any()
        assert seen > 0

    def test_rare_labels_are_drawn_more_often_by_inverse_propensity(self, make, tmp_path):
        """30 queries with a label of their own and one they share, one draw each in 40 epochs; within 4 sigma."""
        write_raw(tmp_path, [[0, 1 + query] for query in range(30)], num_labels=31)
        weight = inverse_propensity(np.array([30, 1]), 30, 0.55, 1.5)
        for weighting, expected in (("uniform", 0.5), ("inverse_propensity", weight[1] / weight.sum())):
            datamodule = make(tmp_path, num_validation=0, num_positives=1, positive_weighting=weighting)
            drawn = []
            for number in range(40):
                datamodule.sampler.set_epoch(number)
                drawn += [labels.ravel() for _, labels in datamodule.sampler]
            found = np.mean(np.concatenate(drawn) > 0)
            assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / 1200)

    def test_clusters_stay_together(self, make):
        datamodule = make()
        num_queries = len(datamodule.sampler.query_ids)
        clusters = np.random.default_rng(0).permutation(num_queries) // 4
        cluster_of_query = dict(zip(datamodule.sampler.query_ids.tolist(), clusters.tolist(), strict=True))

        def split_clusters():
            """How many clusters have queries in more than one batch."""
            found = [{cluster_of_query[int(query)] for query in batch.query_ids} for batch in epoch(datamodule, 1)]
            return sum(map(len, found)) - num_queries // 4

        assert split_clusters() > num_queries // 4
        datamodule.set_clusters(clusters)
        assert split_clusters() <= len(datamodule.sampler)  # only those at a border
        datamodule.set_clusters(None)
        assert split_clusters() > num_queries // 4


class TestState:
    def test_same_batches_after_a_restart(self, make):
        datamodule, other = make(), make()
        datamodule.set_clusters(np.arange(len(datamodule.sampler.query_ids)) // 8)
        datamodule.sampler.set_epoch(3)
        state = datamodule.state_dict()
        batches = epoch(datamodule, 3)
        assert batches[0].query_ids.tolist() != epoch(other, 3)[0].query_ids.tolist()
        other.load_state_dict(state)
        assert_same(list(other.train_dataloader()), batches)

    def test_setup_twice_is_once(self, make):
        datamodule = make()
        corpus, sampler = datamodule.corpus, datamodule.sampler
        datamodule.setup("test")
        assert datamodule.corpus is corpus
        assert datamodule.sampler is sampler

    def test_prepared_data_are_used_again(self, make, datamodule):
        assert make().corpus.directory == datamodule.corpus.directory
        assert make(max_length=8).corpus.directory != datamodule.corpus.directory


def write_raw(directory, positives, num_labels):
    queries = [
        {"uid": f"q{row}", "title": f"query {row}", "target_ind": labels} for row, labels in enumerate(positives)
    ]
    labels = [{"uid": f"l{row}", "title": f"label {row}"} for row in range(num_labels)]
    for name, lines in (("trn", queries), ("tst", queries[:1]), ("lbl", labels)):
        with gzip.open(directory / f"{name}.json.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
