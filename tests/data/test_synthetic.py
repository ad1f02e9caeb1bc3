import gzip
import json

import numpy as np
import pytest
import torch

from prime_xmc.assemble import open_corpus
from prime_xmc.data.raw import RawFiles, read_records
from prime_xmc.data.synthetic import draw_positives, power_law_frequencies, write_synthetic
from prime_xmc.data.tokenizer import load_tokenizer
from prime_xmc.export.predictor import Predictor
from prime_xmc.stages import train_prototypes as run

SETTINGS = {
    "num_labels": 3000,
    "num_queries": 5000,
    "num_test_queries": 300,
    "labels_per_query": 4,
    "mean_label_words": 8,
    "mean_query_words": 12,
    "seed": 1,
}
FILES = {"trn.json.gz", "tst.json.gz", "lbl.json.gz", "filter_labels_train.txt", "filter_labels_test.txt"}


@pytest.fixture(scope="module")
def vocabulary(tiny_encoder_dir):
    return tiny_encoder_dir / "tokenizer.json"


@pytest.fixture(scope="module")
def folder(vocabulary, tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("raw"), **SETTINGS, vocabulary=vocabulary)


@pytest.fixture(scope="module")
def records(folder):
    """Of each file, as the package reads them."""
    paths = RawFiles(folder, "synthetic").paths()
    return {
        name: list(read_records(paths[name], ["title"], None if name == "lbl" else 3000))
        for name in paths
        if not name.startswith("filter")
    }


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestWriteSynthetic:
    def test_every_file_of_the_format_with_as_many_lines_as_asked_for(self, folder, records):
        assert {path.name for path in folder.iterdir()} == {*FILES, "settings.json"}
        assert {name: len(rows) for name, rows in records.items()} == {"lbl": 3000, "trn": 5000, "tst": 300}
        assert [records[name][7].uid for name in ("lbl", "trn", "tst")] == ["l7", "trn7", "tst7"]
        with gzip.open(folder / "trn.json.gz", "rt", encoding="utf-8") as lines:
            assert json.loads(next(lines)).keys() == {"uid", "title", "target_ind"}

    def test_frequencies_have_a_long_tail_without_zeros(self, records):
        frequency = np.bincount([label for record in records["trn"] for label in record.positives], minlength=3000)
        assert frequency.min() >= 1
        assert 2 <= np.median(frequency) <= 5
        assert frequency.max() > 50 * np.median(frequency)
        assert frequency.sum() == pytest.approx(4 * 5000, rel=0.06), "a repetition within a query is dropped"
        assert abs(np.corrcoef(frequency, np.arange(3000))[0, 1]) < 0.1, "frequent labels are anywhere"

    def test_queries_have_labels_without_repetition(self, records):
        for record in records["trn"] + records["tst"]:
            assert record.positives
            assert list(record.positives) == sorted(set(record.positives))

    @pytest.mark.parametrize(("name", "mean"), [("lbl", 8), ("trn", 12), ("tst", 12)])
    def test_numbers_of_words_are_log_normal(self, records, name, mean):
        counts = np.array([len(record.text.split()) for record in records[name]])
        assert counts.min() >= 1
        assert counts.mean() == pytest.approx(mean, rel=0.1)
        assert np.log(counts).std() == pytest.approx(0.5, abs=0.08)
        assert counts.max() > 2.5 * mean

    def test_words_are_single_tokens_by_zipfs_law(self, records, tiny_encoder_dir):
        tokenizer = load_tokenizer(str(tiny_encoder_dir))
        texts = [record.text for record in records["lbl"]]
        for text in texts[:200]:
            assert len(tokenizer(text)["input_ids"]) == len(text.split()) + 2
        _, counts = np.unique(" ".join(texts).split(), return_counts=True)
        counts = np.sort(counts)[::-1]
        assert counts[0] / counts[9] == pytest.approx(10, rel=0.3)

    def test_queries_share_words_with_their_labels(self, records):
        def shared(query, label):
            words = query.text.split()
            return np.mean([word in records["lbl"][label].text.split() for word in words])

        for name in ("trn", "tst"):
            with_own = np.mean([shared(query, query.positives[0]) for query in records[name]])
            with_other = np.mean([shared(query, (query.positives[0] + 1500) % 3000) for query in records[name]])
            assert with_own > with_other + 0.1

    def test_a_test_query_has_the_labels_of_a_training_query_and_a_text_of_its_own(self, records):
        assert {record.positives for record in records["tst"]} <= {record.positives for record in records["trn"]}
        assert len({record.text for record in records["tst"]} & {record.text for record in records["trn"]}) < 3

    def test_same_settings_same_bytes(self, folder, vocabulary, tmp_path):
        again = write_synthetic(tmp_path, **SETTINGS, vocabulary=vocabulary)
        assert again.name == folder.name
        assert contents(again) == contents(folder)

    def test_another_seed_gives_other_data_in_another_folder(self, folder, vocabulary):
        other = write_synthetic(folder.parent, **SETTINGS | {"seed": 2}, vocabulary=vocabulary)
        assert other != folder
        for name in ("lbl.json.gz", "trn.json.gz", "tst.json.gz"):
            assert contents(other)[name] != contents(folder)[name]

    def test_a_finished_folder_is_not_written_again(self, vocabulary, tmp_path):
        settings = SETTINGS | {"num_labels": 20, "num_queries": 10}
        folder = write_synthetic(tmp_path, **settings, vocabulary=vocabulary)
        (folder / "trn.json.gz").write_bytes(b"kept")
        assert write_synthetic(tmp_path, **settings, vocabulary=vocabulary) == folder
        assert (folder / "trn.json.gz").read_bytes() == b"kept"
        assert list(tmp_path.iterdir()) == [folder]

    def test_an_incomplete_folder_is_an_error(self, folder, vocabulary, tmp_path):
        (tmp_path / folder.name).mkdir()
        with pytest.raises(ValueError, match=rf"{folder.name} exists but holds no settings\.json; delete it"):
            write_synthetic(tmp_path, **SETTINGS, vocabulary=vocabulary)

    def test_chunks_do_not_show(self, folder, vocabulary, tmp_path, monkeypatch):
        monkeypatch.setattr("prime_xmc.data.synthetic._CHUNK", 1024)
        chunked = write_synthetic(tmp_path, **SETTINGS, vocabulary=vocabulary)
        assert contents(chunked)["lbl.json.gz"] == contents(folder)["lbl.json.gz"]
        positives = [
            [r.positives for r in read_records(path / "trn.json.gz", ["title"], 3000)] for path in (chunked, folder)
        ]
        assert positives[0] == positives[1]

    @pytest.mark.parametrize(
        "name",
        ["num_labels", "num_queries", "num_test_queries", "labels_per_query", "mean_label_words", "mean_query_words"],
    )
    def test_numbers_below_one_are_errors(self, name, vocabulary, tmp_path):
        with pytest.raises(ValueError, match=rf"synthetic data: {name} is 0(\.0)?; it must be at least 1"):
            write_synthetic(tmp_path, **SETTINGS | {name: 0}, vocabulary=vocabulary)
        assert list(tmp_path.iterdir()) == []

    def test_a_vocabulary_must_be_there_and_have_words(self, vocabulary, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.json: not found; .* is a tokenizer\.json"):
            write_synthetic(tmp_path, **SETTINGS, vocabulary=tmp_path / "nowhere.json")
        few = json.loads(vocabulary.read_text(encoding="utf-8"))
        few["model"]["vocab"] = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "word": 4, "##s": 5, "x": 6}
        few |= {"added_tokens": [], "post_processor": None}
        (tmp_path / "few.json").write_text(json.dumps(few), encoding="utf-8")
        with pytest.raises(ValueError, match=r"few\.json has 1 tokens that are words .* expected 1000"):
            write_synthetic(tmp_path, **SETTINGS, vocabulary=tmp_path / "few.json")


class TestPowerLawFrequencies:
    @pytest.mark.parametrize(("num_labels", "num_pairs"), [(1, 1), (5, 5), (1000, 8000), (200, 150)])
    def test_sum(self, num_labels, num_pairs):
        frequency = power_law_frequencies(num_labels, num_pairs)
        assert frequency.shape == (num_labels,)
        assert frequency.sum() == num_pairs
        assert frequency.min() >= (num_pairs >= num_labels)

    def test_exponent(self):
        frequency = power_law_frequencies(100_000, 10_000_000)
        assert (frequency[90] - 1) / (frequency[990] - 1) == pytest.approx(10**0.9, rel=0.05)


class TestDrawPositives:
    def test_each_pair_once_where_no_query_meets_a_label_twice(self):
        lengths = np.array([1, 2, 3, 1, 5])
        positives = draw_positives(np.ones(12, dtype=np.int64), lengths, np.random.default_rng(0))
        assert positives.lengths.tolist() == lengths.tolist()
        assert sorted(positives.values.tolist()) == list(range(12))

    def test_repetitions_within_a_query_are_dropped(self):
        positives = draw_positives(np.array([6]), np.array([2, 4]), np.random.default_rng(0))
        assert positives.values.tolist() == [0, 0]
        assert positives.offsets.tolist() == [0, 1, 2]

    def test_labels_of_a_query_are_close_where_rare(self):
        positives = draw_positives(np.full(10_000, 2), np.full(5000, 4), np.random.default_rng(0))
        widths = [np.ptp(row) for row in map(positives.__getitem__, range(5000))]
        assert np.median(widths) < 100


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return [
        "dataset=synthetic",
        "dataset.num_labels=300",
        "dataset.num_queries=400",
        "dataset.num_test_queries=20",
        "dataset.num_validation=20",
        f"cache_dir={tmp_path_factory.mktemp('cache')}",
    ]


class TestConfiguration:
    @pytest.mark.parametrize("name", ["train", "prepare", "evaluate"])
    def test_the_encoder_is_random_unless_another_is_given(self, compose, name):
        assert compose("dataset=synthetic", name=name).encoder.pretrained is False
        assert compose("dataset=synthetic", "encoder=minilm", name=name).encoder.pretrained is True

    def test_prepares_once(self, compose, small):
        config = compose(*small, name="prepare")
        corpus = open_corpus(config)
        assert (len(corpus.train), len(corpus.test), corpus.num_labels) == (400, 20, 300)
        assert {warning["kind"] for warning in corpus.manifest["warnings"]} <= {"repeated label text"}
        assert corpus.manifest["statistics"]["tokens per training query"] == pytest.approx(14, rel=0.1)
        assert open_corpus(config).directory == corpus.directory

    def test_trains_and_exports_a_model_that_loads(self, compose, small, tmp_path):
        quick = [
            "sampling.batch_size=64",
            "trainer.max_steps=3",
            "trainer.precision=32-true",
            "trainer.log_every_n_steps=2",
        ]
        quiet = ["callbacks.progress=null", "classify=false", "neighbours=null"]
        config = compose(*small, *quick, *quiet, f"run_dir={tmp_path}")
        metrics, module, data, trainer = run(config)
        assert len(module.prototypes.free_vectors) == 64
        assert trainer.global_step == 3
        assert 0 <= metrics["test/P@1"] <= 1
        assert json.loads((tmp_path / "model" / "config.json").read_text())["num_hidden_layers"] == 1

        predictor = Predictor.load(tmp_path / "model")
        tokens = data.corpus.test.tokens
        with torch.no_grad():
            ids, lengths = torch.from_numpy(tokens.values.astype(np.int64)), torch.from_numpy(tokens.lengths)
            expected = module.encoder.eval()(ids, lengths)
        assert torch.equal(predictor.encode_tokens(tokens), expected)
