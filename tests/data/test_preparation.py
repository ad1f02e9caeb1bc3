import gzip
import json
import logging
import multiprocessing
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from itertools import product

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from prime_xmc.data import preparation as module
from prime_xmc.data.corpus import MANIFEST, TEST_ROWS, Corpus
from prime_xmc.data.preparation import cut_texts, describe, prepare
from prime_xmc.data.raw import RawFiles

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "green", "blue", "cat", "dog", "house"]
PAD, UNK, CLS, SEP, RED, GREEN, BLUE, CAT, DOG, HOUSE = range(10)

LABELS = [{"uid": "l0", "title": "red cat"}, {"uid": "l1", "title": "green dog"}, {"uid": "l2", "title": "house"}]
TRAIN = [
    {"uid": "a", "title": "red", "content": "cat", "target_ind": [1, 0]},
    {"uid": "b", "title": "green green", "content": "dog", "target_ind": [1]},
    {"uid": "c", "title": "blue house red cat dog", "content": "x", "target_ind": [2]},
]
TEST = [{"uid": "d", "title": "dog", "content": "red", "target_ind": [0]}]


def make_tokenizer(words=WORDS):
    tokenizer = Tokenizer(WordLevel({word: row for row, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)])
    return tokenizer


def write_raw(directory, *, train=TRAIN, test=TEST, labels=LABELS, train_filter="0 2\n", test_filter="0 1\n"):
    directory.mkdir(exist_ok=True)
    for name, records in (("trn", train), ("tst", test), ("lbl", labels)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (directory / f"{name}.json.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    for name, content in (("train", train_filter), ("test", test_filter)):
        if content is not None:
            (directory / f"filter_labels_{name}.txt").write_text(content)


@pytest.fixture
def raw(tmp_path):
    write_raw(tmp_path / "raw")
    return tmp_path / "raw"


def run(raw, *, tokenizer=None, max_length=5, fields=("title",), label_fields=None, pad_token_id=PAD, **prompts):
    return prepare(
        RawFiles(raw, "toy", fields, label_fields, **prompts),
        make_tokenizer() if tokenizer is None else tokenizer,
        tokenizer_name="words",
        pad_token_id=pad_token_id,
        max_length=max_length,
        cache_dir=raw.parent / "cache",
    )


def as_lists(ragged):
    return [row.tolist() for row in ragged]


def warnings_of(directory):
    return {
        (warning["file"], warning["kind"]): (warning["count"], warning["first_line"])
        for warning in Corpus.open(directory).manifest["warnings"]
    }


class TestContent:
    def test_tokens_positives_filters_and_labels(self, raw):
        corpus = Corpus.open(run(raw))
        assert as_lists(corpus.train.tokens) == [
            [CLS, RED, SEP],
            [CLS, GREEN, GREEN, SEP],
            [CLS, BLUE, HOUSE, RED, SEP],  # truncated to five with its special tokens
        ]
        assert as_lists(corpus.test.tokens) == [[CLS, DOG, SEP]]
        assert as_lists(corpus.label_tokens) == [[CLS, RED, CAT, SEP], [CLS, GREEN, DOG, SEP], [CLS, HOUSE, SEP]]
        assert as_lists(corpus.train.positives) == [[0, 1], [1], [2]]
        assert as_lists(corpus.test.positives) == [[0]]
        assert as_lists(corpus.train.filtered) == [[2], [], []]
        assert as_lists(corpus.test.filtered) == [[1]]
        assert list(corpus.labels()) == [("l0", "red cat"), ("l1", "green dog"), ("l2", "house")]
        assert corpus.label_frequency.tolist() == [1, 2, 1]

    def test_manifest(self, raw):
        directory = run(raw)
        manifest = Corpus.open(directory).manifest
        assert directory.name == f"toy-{manifest['fingerprint'][:12]}"
        assert manifest["counts"] == {
            "labels": {"texts": 3, "tokens": 11, "truncated": 0, "unknown": 0},
            "train": {"texts": 3, "tokens": 12, "truncated": 1, "unknown": 0, "positives": 4, "filtered": 1},
            "test": {"texts": 1, "tokens": 3, "truncated": 0, "unknown": 0, "positives": 1, "filtered": 1},
        }
        assert manifest["statistics"]["labels per training query"] == pytest.approx(4 / 3)
        assert manifest["statistics"]["share of labels with at most 3 training queries"] == 1
        assert manifest["warnings"] == manifest["notes"] == []
        assert (manifest["tokenizer"], manifest["max_length"], manifest["pad_token_id"]) == ("words", 5, PAD)
        assert manifest["vocab_size"] == 10
        assert manifest["source"]["trn.json.gz"]["bytes"] == (raw / "trn.json.gz").stat().st_size

    def test_fields_of_queries_and_labels(self, raw):
        corpus = Corpus.open(run(raw, fields=("title", "content"), label_fields=("title",)))
        assert as_lists(corpus.train.tokens)[:2] == [[CLS, RED, CAT, SEP], [CLS, GREEN, GREEN, DOG, SEP]]
        assert as_lists(corpus.label_tokens)[2] == [CLS, HOUSE, SEP]

    def test_prompts_come_first_and_count_as_tokens(self, raw):
        corpus = Corpus.open(run(raw, query_prompt="red ", label_prompt="blue "))
        assert as_lists(corpus.train.tokens)[1:] == [[CLS, RED, GREEN, GREEN, SEP], [CLS, RED, BLUE, HOUSE, SEP]]
        assert as_lists(corpus.test.tokens) == [[CLS, RED, DOG, SEP]]
        assert as_lists(corpus.label_tokens)[2] == [CLS, BLUE, HOUSE, SEP]
        assert list(corpus.labels())[2] == ("l2", "house")
        assert "query_prompt" not in Corpus.open(run(raw)).manifest  # so that older prepared data are found

    def test_label_is_called_by_its_first_field(self, tmp_path):
        labels = [{**label, "content": "long text"} for label in LABELS]
        write_raw(tmp_path / "raw", labels=labels)
        corpus = Corpus.open(run(tmp_path / "raw", fields=("title", "content")))
        assert list(corpus.labels())[2] == ("l2", "house")
        assert as_lists(corpus.label_tokens)[2] == [CLS, HOUSE, UNK, UNK, SEP]

    def test_chunks_do_not_show(self, raw, monkeypatch):
        whole = Corpus.open(run(raw))
        (raw.parent / "cache").rename(raw.parent / "whole")
        monkeypatch.setattr(module, "_CHUNK_TEXTS", 2)
        pieces = Corpus.open(run(raw))
        assert as_lists(pieces.train.tokens) == [
            [CLS, RED, SEP],
            [CLS, GREEN, GREEN, SEP],
            [CLS, BLUE, HOUSE, RED, SEP],
        ]
        assert as_lists(pieces.train.positives) == [[0, 1], [1], [2]]
        assert pieces.manifest == whole.manifest

    def test_long_texts_make_small_chunks(self, raw, monkeypatch):
        monkeypatch.setattr(module, "_CHUNK_CHARACTERS", 1)
        assert len(Corpus.open(run(raw)).train) == 3

    def test_the_tokenizers_own_truncation_and_padding_are_ignored_and_kept(self, raw):
        tokenizer = make_tokenizer()
        plain = run(raw, tokenizer=tokenizer)
        tokenizer.enable_truncation(3)
        tokenizer.enable_padding(length=8)
        assert run(raw, tokenizer=tokenizer) == plain
        assert tokenizer.truncation["max_length"] == 3
        assert tokenizer.padding["length"] == 8

    @pytest.mark.parametrize(("size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.int32)])
    def test_token_type_is_the_smallest_that_fits_the_vocabulary(self, raw, size, dtype):
        words = [*WORDS, *(f"w{row}" for row in range(len(WORDS), size - 1)), "yellow"]
        (raw / "lbl.json.gz").unlink()
        (raw / "lbl.json").write_text('{"title": "yellow"}\n' * 3)
        corpus = Corpus.open(run(raw, tokenizer=make_tokenizer(words)))
        assert corpus.label_tokens.values.dtype == dtype
        assert corpus.label_tokens[0].tolist() == [CLS, size - 1, SEP]


def test_many_texts_that_are_cut_are_said():
    counts = {"train": {"texts": 300, "truncated": 101}, "labels": {"texts": 30, "truncated": 10}}
    assert cut_texts({"counts": counts, "max_length": 32}) == [
        "101 of 300 training queries have more than the 32 tokens that are read of each: dataset.max_length= reads "
        "more, twice the tokens in about twice the time"
    ]
    assert cut_texts({}) == []


class TestOddData:
    """Harmless oddities: handled, counted, logged once each with the first line."""

    def prepared(self, tmp_path, **raw):
        write_raw(tmp_path / "raw", **raw)
        return run(tmp_path / "raw")

    def test_empty_text_is_its_special_tokens(self, tmp_path, caplog):
        train = [*TRAIN, {"title": "", "target_ind": [0]}, {"title": "  ", "target_ind": [0]}]
        directory = self.prepared(tmp_path, train=train)
        assert as_lists(Corpus.open(directory).train.tokens)[3:] == [[CLS, SEP], [CLS, SEP]]
        assert warnings_of(directory) == {("trn.json.gz", "empty text"): (2, 4)}
        records = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert [record.getMessage() for record in records] == [
            "trn.json.gz: empty text (2, the first in line 4): kept, although it consists of special tokens alone"
        ]

    def test_repeated_label_of_a_query_is_dropped(self, tmp_path):
        directory = self.prepared(tmp_path, train=[*TRAIN, {"title": "red dog", "target_ind": [2, 0, 2]}])
        corpus = Corpus.open(directory)
        assert corpus.train.positives[3].tolist() == [0, 2]
        assert corpus.label_frequency.tolist() == [2, 2, 2]
        assert warnings_of(directory) == {("trn.json.gz", "repeated label in a query"): (1, 4)}

    def test_query_without_labels_is_kept(self, tmp_path):
        train = [TRAIN[0], {"title": "dog", "target_ind": []}, *TRAIN[1:]]
        directory = self.prepared(tmp_path, train=train, test=[{"title": "red dog", "target_ind": []}])
        corpus = Corpus.open(directory)
        assert as_lists(corpus.train.positives) == [[0, 1], [], [1], [2]]
        assert as_lists(corpus.test.positives) == [[]]
        assert warnings_of(directory) == {
            ("trn.json.gz", "query without labels"): (1, 2),
            ("tst.json.gz", "query without labels"): (1, 1),
        }

    def test_test_queries_that_are_training_queries_are_told(self, tmp_path, caplog):
        """But for empty ones, which are no text to be known."""
        texts = ["cat", TRAIN[1]["title"], " ", "red dog", TRAIN[1]["title"]]
        train = [*TRAIN, {"title": " ", "target_ind": [0]}, {"title": "red dog", "target_ind": [0]}]
        test = [{"title": text, "target_ind": [0]} for text in texts]
        directory = self.prepared(tmp_path, train=train, test=test, test_filter="")
        found = warnings_of(directory)
        assert found[("tst.json.gz", "test query with the text of a training query")] == (3, 2)
        said = (
            "tst.json.gz: test query with the text of a training query (3, the first in line 2; 3, 60 % of all): kept, "
        )
        assert any(message.startswith(said) for message in caplog.messages)
        assert not [kind for _, kind in warnings_of(self.prepared(tmp_path)) if kind.startswith("test query")]

    def test_own_label_among_the_positives_is_dropped(self, tmp_path, caplog):
        train = [*TRAIN, {"title": "red dog", "target_ind": [2, 0, 1]}, {"title": "cat", "target_ind": [0]}]
        directory = self.prepared(tmp_path, train=train, train_filter="4 0\n3 0\n3 2\n0 2\n", test_filter="0 0\n")
        corpus = Corpus.open(directory)
        assert as_lists(corpus.train.positives) == [[0, 1], [1], [2], [1], []]
        assert as_lists(corpus.train.filtered) == [[2], [], [], [0, 2], [0]]
        assert as_lists(corpus.test.positives) == [[]]
        assert corpus.label_frequency.tolist() == [1, 3, 1]
        assert corpus.manifest["counts"]["train"]["positives"] == 5
        assert warnings_of(directory) == {
            ("trn.json.gz", "own label among the positives"): (3, 4),
            ("trn.json.gz", "query without labels"): (1, 5),
            ("tst.json.gz", "own label among the positives"): (1, 1),
            ("tst.json.gz", "query without labels"): (1, 1),
        }
        message = "trn.json.gz: own label among the positives (3, the first in line 4): dropped, as the filter demands"
        assert message in caplog.messages

    def test_label_without_training_queries_is_kept(self, tmp_path):
        labels = [*LABELS, {"uid": "l3", "title": "dog"}, {"uid": "l4", "title": "cat"}]
        directory = self.prepared(tmp_path, labels=labels, test=[{"title": "dog", "target_ind": [3]}])
        assert Corpus.open(directory).label_frequency.tolist() == [1, 2, 1, 0, 0]
        assert warnings_of(directory) == {("lbl.json.gz", "label without training queries"): (2, 4)}

    def test_repeated_label_text_is_counted(self, tmp_path):
        labels = [{"title": title} for title in ("cat", "dog", "dog", "cat", "dog")]
        train = [{"title": "cat", "target_ind": [0, 1, 2, 3, 4]}]
        directory = self.prepared(tmp_path, labels=labels, train=train, train_filter="")
        assert warnings_of(directory) == {("lbl.json.gz", "repeated label text"): (3, 3)}
        assert next(Corpus.open(directory).labels()) == ("0", "cat")

    def test_without_filter_files_a_quiet_note(self, tmp_path, caplog):
        caplog.set_level(logging.INFO)
        directory = self.prepared(tmp_path, train_filter=None, test_filter=None)
        corpus = Corpus.open(directory)
        assert as_lists(corpus.train.filtered) == [[], [], []]
        assert warnings_of(directory) == {}
        assert [record.levelno for record in caplog.records if "filter" in record.message] == [logging.INFO]
        assert ("note", "there are no filter files, so no label is filtered") in describe(corpus)

    def test_one_filter_file_without_the_other_is_a_warning(self, tmp_path):
        directory = self.prepared(tmp_path, train_filter=None)
        assert as_lists(Corpus.open(directory).train.filtered) == [[], [], []]
        assert warnings_of(directory) == {("filter_labels_train.txt", "no filter file"): (1, None)}

    def test_label_with_a_relevance_of_zero_is_dropped(self, tmp_path):
        train = [*TRAIN, {"title": "red dog", "target_ind": [2, 0, 1], "target_rel": [0, 0.5, 0.0]}]
        directory = self.prepared(tmp_path, train=train)
        corpus = Corpus.open(directory)
        assert corpus.train.positives[3].tolist() == [0]
        assert corpus.label_frequency.tolist() == [2, 2, 1]
        assert warnings_of(directory) == {("trn.json.gz", "label with a relevance of 0"): (2, 4)}

    def test_labels_that_share_a_uid(self, tmp_path, caplog):
        labels = [{"uid": uid, "title": title} for uid, title in (("a", "cat"), ("b", "dog"), ("b", "red"))]
        directory = self.prepared(tmp_path, labels=labels)
        assert warnings_of(directory) == {("lbl.json.gz", "repeated label uid"): (1, 3)}
        assert Corpus.open(directory).label_note == (
            "1 label has the uid of another (the first in line 3 of lbl.json.gz): predictions name both by the same uid"
        )
        assert "give each label its own" in caplog.text

    def test_labels_whose_tokens_are_the_same(self, tmp_path):
        """Those whose text is repeated are counted as such, and only as such."""
        titles = ("dog", "\N{GRINNING FACE}", "\N{ROCKET}", "dog", "\N{FIRE}")
        labels = [{"uid": f"l{row}", "title": title} for row, title in enumerate(titles)]
        train = [{"title": "cat", "target_ind": [0, 1, 2, 3, 4]}]
        directory = self.prepared(tmp_path, labels=labels, train=train, train_filter="")
        assert warnings_of(directory) == {
            ("lbl.json.gz", "text of unknown tokens alone"): (3, 2),
            ("lbl.json.gz", "many unknown tokens"): (3, None),
            ("lbl.json.gz", "repeated label text"): (1, 4),
            ("lbl.json.gz", "label whose tokens are those of another"): (2, 3),
        }
        rows = dict(describe(Corpus.open(directory)))
        assert rows["labels: tokens"] == "15, 0 texts truncated, 3 unknown"

    def test_share_of_unknown_tokens(self, tmp_path, caplog):
        train = [{"title": "red " * 18 + "zebra", "target_ind": [0]}] * 3
        rare = self.prepared(tmp_path, train=train, train_filter="")
        assert ("trn.json.gz", "many unknown tokens") not in warnings_of(rare)  # truncated before the zebra
        write_raw(tmp_path / "raw", train=[{"title": "red dog zebra", "target_ind": [0]}] * 3, train_filter="")
        assert warnings_of(run(tmp_path / "raw"))["trn.json.gz", "many unknown tokens"] == (3, None)
        assert "many unknown tokens (3, 33 % of all)" in caplog.text

    def test_text_of_which_the_tokenizer_leaves_nothing(self, tmp_path):
        tokenizer = make_tokenizer()
        tokenizer.normalizer = Replace("dog", "")
        write_raw(tmp_path / "raw", train=[*TRAIN, {"title": "dog", "target_ind": [0]}])
        directory = run(tmp_path / "raw", tokenizer=tokenizer)
        assert warnings_of(directory)["trn.json.gz", "text without tokens"] == (1, 4)
        assert ("lbl.json.gz", "text without tokens") not in warnings_of(directory)

    def test_describe_tells_counts_and_warnings(self, tmp_path):
        rows = describe(Corpus.open(self.prepared(tmp_path, train_filter=None)))
        assert ("training queries", "3") in rows
        assert ("training queries: tokens", "12, 1 texts truncated") in rows
        assert ("labels per training query", "1.33") in rows
        name, warning = rows[-1]
        assert name == "warning"
        assert warning.startswith("filter_labels_train.txt: no filter file: no label is filtered in this split")

    def test_chunks_do_not_show_in_warnings(self, tmp_path, monkeypatch):
        labels = [{"title": title} for title in ("cat", "dog", "house", "red", "cat", "red", "cat")]
        train = [{"title": "red dog", "target_ind": ids} for ids in ([0, 1], [], [2], [1, 5, 1], [3], [3, 4, 6], [])]
        write_raw(tmp_path / "raw", labels=labels, train=train, train_filter="5 3\n5 6\n2 2\n4 0\n5 6\n")
        whole = Corpus.open(run(tmp_path / "raw"))
        (tmp_path / "cache").rename(tmp_path / "whole")
        monkeypatch.setattr(module, "_CHUNK_TEXTS", 2)
        pieces = Corpus.open(run(tmp_path / "raw"))
        assert as_lists(pieces.train.positives) == [[0, 1], [], [], [1, 5], [3], [4], []]
        assert as_lists(pieces.train.filtered) == [[], [], [2], [], [0], [3, 6], []]
        assert [
            (warning["kind"], warning["count"], warning["first_line"]) for warning in whole.manifest["warnings"]
        ] == [
            ("repeated label text", 3, 5),
            ("repeated label in a query", 1, 4),
            ("own label among the positives", 3, 3),
            ("query without labels", 3, 2),
            ("label without training queries", 2, 3),
        ]
        assert pieces.manifest == whole.manifest


SPLIT = [
    {"title": f"{first} {second}", "target_ind": [row % 3]}
    for row, (second, first) in enumerate(product(["cat", "house", "green", "dog", "red"], ["red", "dog", "blue"]))
]


class TestSplitOff:
    """Data without a test file."""

    def prepared(self, tmp_path, num_test=None, **raw):
        write_raw(tmp_path / "raw", **({"train": SPLIT, "train_filter": "0 1\n4 2\n", "test_filter": None} | raw))
        (tmp_path / "raw" / "tst.json.gz").unlink(missing_ok=True)
        return prepare(
            RawFiles(tmp_path / "raw", "toy", num_test=num_test),
            make_tokenizer(),
            tokenizer_name="words",
            pad_token_id=PAD,
            max_length=5,
            cache_dir=tmp_path / "cache",
        )

    @pytest.mark.parametrize("chunk", [8192, 4])
    def test_every_query_is_in_one_split(self, tmp_path, monkeypatch, chunk):
        monkeypatch.setattr(module, "_CHUNK_TEXTS", chunk)
        corpus = Corpus.open(self.prepared(tmp_path))
        rows = corpus.test_rows
        assert (len(corpus.train), len(corpus.test), len(rows)) == (12, 3, 3)
        others = np.delete(np.arange(15), rows)
        for split, members in ((corpus.test, rows), (corpus.train, others)):
            for place, row in enumerate(members):
                assert split.positives[place].tolist() == SPLIT[row]["target_ind"]
                assert split.tokens[place][1] == WORDS.index(SPLIT[row]["title"].split()[0])
                assert split.filtered[place].tolist() == {0: [1], 4: [2]}.get(int(row), [])
        assert not list(corpus.directory.glob("all_*"))
        counts = corpus.manifest["counts"]
        assert counts["test"] == {
            "texts": 3, "unknown": 0, "tokens": 12, "positives": 3, "truncated": 0,
            "filtered": sum(row in (0, 4) for row in rows),
        }  # fmt: skip
        assert counts["train"]["positives"] == corpus.label_frequency.sum() == 12
        assert corpus.manifest["statistics"]["labels per training query"] == 1

    def test_other_queries_to_test_on_are_other_data(self, tmp_path):
        first, again, fewer = (Corpus.open(self.prepared(tmp_path, num_test=num_test)) for num_test in (3, 3, 2))
        assert first.source_hash == again.source_hash != fewer.source_hash
        assert first.training_hash == again.training_hash != fewer.training_hash

    def test_it_is_said(self, tmp_path):
        corpus = Corpus.open(self.prepared(tmp_path))
        assert "there is no test file: 3 of the 15 queries of trn.json.gz" in corpus.split_note
        assert ("note", corpus.split_note) in describe(corpus)

    def test_the_same_data_are_split_alike(self, tmp_path):
        first = Corpus.open(self.prepared(tmp_path))
        (tmp_path / "cache").rename(tmp_path / "first")
        second = Corpus.open(self.prepared(tmp_path))
        assert first.directory.name == second.directory.name
        assert second.test_rows.tolist() == np.load(tmp_path / "first" / first.directory.name / TEST_ROWS).tolist()

    def test_number_that_is_asked_for(self, tmp_path):
        automatic, asked = self.prepared(tmp_path), self.prepared(tmp_path, num_test=5)
        assert automatic != asked
        assert len(Corpus.open(asked).test) == 5

    def test_truncated_texts_are_counted_where_they_are(self, tmp_path):
        train = [*SPLIT[:-1], {"title": "red dog cat blue house", "target_ind": [2]}]
        counts = Corpus.open(self.prepared(tmp_path, train=train)).manifest["counts"]
        assert counts["train"]["truncated"] + counts["test"]["truncated"] == 1

    def test_equal_texts_are_in_one_split(self, tmp_path):
        train = [*SPLIT, *({"title": record["title"], "target_ind": [0]} for record in SPLIT[:12])]
        rows = set(Corpus.open(self.prepared(tmp_path, train=train, num_test=9)).test_rows.tolist())
        assert len(rows) == 9
        assert all((row in rows) == (row + 15 in rows) for row in range(12))

    def test_too_few_queries(self, tmp_path):
        corpus = Corpus.open(self.prepared(tmp_path, train=SPLIT[:4], train_filter=""))
        assert (len(corpus.train), len(corpus.test)) == (4, 0)
        assert "too few queries" in corpus.split_note

    def test_a_filter_without_its_test_file(self, tmp_path):
        with pytest.raises(ValueError, match=r"filter_labels_test\.txt names rows of a test file"):
            self.prepared(tmp_path, test_filter="0 1\n")


class TestMemory:
    def peak(self, directory, num_queries, num_positives):
        labels = [{"title": "cat"}] * num_positives
        train = [{"title": "red dog", "target_ind": list(range(num_positives))}] * num_queries
        write_raw(directory, labels=labels, train=train)
        tracemalloc.start()
        run(directory)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    def test_does_not_grow_with_the_positives(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "_CHUNK_TEXTS", 64)
        monkeypatch.setattr(module, "_HASH_BYTES", 1024)
        self.peak(tmp_path / "imports", num_queries=100, num_positives=40)
        few, many = (self.peak(tmp_path / f"{count}", count, num_positives=40) for count in (500, 1500))
        assert many - few < 4 * 40 * 1000  # what 1000 queries' positives would take


class TestErrors:
    def test_nothing_is_left_behind(self, tmp_path):
        write_raw(tmp_path / "raw", test=[{"title": "dog", "target_ind": [3]}])
        with pytest.raises(ValueError, match=r"tst\.json\.gz, line 1: label id 3"):
            run(tmp_path / "raw")
        assert list((tmp_path / "cache").iterdir()) == []

    def test_filter_out_of_range(self, tmp_path):
        write_raw(tmp_path / "raw", test_filter="1 0\n")
        with pytest.raises(ValueError, match=r"filter_labels_test\.txt, line 1: row 1 is outside 0\.\.0"):
            run(tmp_path / "raw")

    @pytest.mark.parametrize(("name", "part"), [("trn", "train"), ("tst", "test"), ("lbl", "labels")])
    def test_empty_file(self, tmp_path, name, part):
        write_raw(tmp_path / "raw", **{part: []})
        with pytest.raises(ValueError, match=rf"{name}\.json\.gz is empty"):
            run(tmp_path / "raw")

    def test_missing_files(self, tmp_path):
        with pytest.raises(
            FileNotFoundError, match=r"toy: trn\.json, tst\.json, lbl\.json \(or \.json\.gz\) not found"
        ):
            run(tmp_path / "raw")

    def test_a_cache_that_cannot_be_written(self, raw):
        (raw.parent / "cache").touch()  # a file where the folder should be: even root cannot write into it
        with pytest.raises(ValueError, match=r"cache_dir=.*cache: prepared data cannot be written there"):
            run(raw)

    def test_a_prepared_folder_is_only_read(self, raw, monkeypatch):
        directory = run(raw)
        monkeypatch.setattr(module, "_check_writable", lambda _: pytest.fail("nothing has to be written"))
        assert run(raw) == directory

    def test_no_room_for_text(self, raw):
        with pytest.raises(ValueError, match="max_length is 2; 2 special tokens and some text"):
            run(raw, max_length=2)

    def test_folder_without_manifest(self, raw):
        directory = run(raw)
        (directory / MANIFEST).unlink()
        with pytest.raises(ValueError, match=r"holds no manifest\.json; delete it"):
            run(raw)


class TestCache:
    def test_second_call_returns_the_same_folder_untouched(self, raw):
        directory = run(raw)
        before = {file.name: file.stat().st_mtime_ns for file in directory.iterdir()}
        assert run(raw) == directory
        assert {file.name: file.stat().st_mtime_ns for file in directory.iterdir()} == before

    def test_the_source_is_the_same_however_it_is_prepared(self, raw):
        first, shorter = Corpus.open(run(raw)), Corpus.open(run(raw, max_length=4))
        assert first.directory != shorter.directory
        assert first.source_hash == shorter.source_hash
        write_raw(raw, test_filter="0 0\n")
        filtered = Corpus.open(run(raw))
        assert filtered.source_hash != first.source_hash
        assert filtered.training_hash == first.training_hash != shorter.training_hash

    def test_everything_that_matters_changes_the_fingerprint(self, raw):
        folders = [
            run(raw),
            run(raw, max_length=6),
            run(raw, fields=("content",), label_fields=("title",)),
            run(raw, tokenizer=make_tokenizer([*WORDS, "zebra"])),
            run(raw, pad_token_id=UNK),
            run(raw, query_prompt="red "),
            run(raw, label_prompt="red "),
        ]
        write_raw(raw, test_filter="0 2\n")
        folders.append(run(raw))
        write_raw(raw, train=TRAIN[::-1])
        folders.append(run(raw))
        assert len(set(folders)) == 9

    def test_two_processes_at_once(self, raw):
        source = RawFiles(raw, "toy")
        arguments = {"tokenizer_name": "words", "pad_token_id": PAD, "max_length": 5, "cache_dir": raw.parent / "cache"}
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            jobs = [pool.submit(prepare, source, make_tokenizer(), **arguments) for _ in range(2)]
            folders = {job.result() for job in jobs}
        assert list((raw.parent / "cache").iterdir()) == list(folders)
        assert len(Corpus.open(folders.pop()).train) == 3


def test_damage_to_prepared_data_is_noticed(raw):
    directory = run(raw)
    for name in ("train_tokens.bin", "train_positives.bin", "labels.jsonl", "train_tokens.offsets.npy"):
        path = directory / name
        whole = path.read_bytes()
        zeros = bytearray(whole)
        zeros[-8:] = bytes(8)
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        for damaged in (zeros, flipped):
            if damaged == whole:
                continue
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=rf"{name} is damaged: .*delete .* and prepare the data set again"):
                Corpus.open(directory)
        path.write_bytes(whole)
    Corpus.open(directory, verify="full")
