import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prime_xmc.checksums import checksum_of
from prime_xmc.data.corpus import FORMAT_VERSION, LABELS, MANIFEST, Corpus, Ragged, RaggedWriter

ROWS = [[5, 2], [], [7], [1, 2, 3]]
rows_of_ids = st.lists(st.lists(st.integers(0, 2**16 - 1), max_size=5), max_size=20)
sets_of_ids = st.sets(st.integers(0, 6) | st.just(2**16 - 1))


def as_lists(ragged):
    return [row.tolist() for row in ragged]


class TestRagged:
    def test_rows_come_back(self):
        ragged = Ragged.from_rows(ROWS, dtype=np.uint16)
        assert len(ragged) == 4
        assert as_lists(ragged) == ROWS
        assert ragged.values.dtype == np.uint16
        assert ragged.offsets.tolist() == [0, 2, 2, 3, 6]
        assert ragged.lengths.tolist() == [2, 0, 1, 3]
        assert ragged.row_ids().tolist() == [0, 0, 2, 3, 3, 3]

    def test_take_repeats_and_reorders(self):
        taken = Ragged.from_rows(ROWS).take(np.array([3, 1, 0, 3]))
        assert as_lists(taken) == [[1, 2, 3], [], [5, 2], [1, 2, 3]]

    def test_take_nothing(self):
        assert as_lists(Ragged.from_rows(ROWS).take([])) == []
        assert as_lists(Ragged.from_rows([]).take([])) == []

    @given(rows_of_ids.flatmap(lambda rows: st.tuples(st.just(rows), st.lists(st.integers(0, max(len(rows) - 1, 0))))))
    def test_take_is_a_loop_over_rows(self, rows_and_choice):
        rows, choice = rows_and_choice
        choice = choice if rows else []
        assert as_lists(Ragged.from_rows(rows).take(choice)) == [rows[row] for row in choice]

    @pytest.mark.parametrize("row", [-1, 4])
    def test_no_row_out_of_range(self, row):
        ragged = Ragged.from_rows(ROWS)
        with pytest.raises(IndexError, match=f"row {row} of 4"):
            ragged[row]
        with pytest.raises(IndexError, match="of 4"):
            ragged.take([0, row])

    def test_from_rows_refuses_values_that_do_not_fit(self):
        with pytest.raises(OverflowError):
            Ragged.from_rows([[2**16]], dtype=np.uint16)

    def test_from_pairs_sorts_and_drops_repetitions(self):
        pairs = np.array([[2, 9], [0, 4], [2, 1], [2, 9]])
        ragged = Ragged.from_pairs(pairs, num_rows=4, dtype=np.int32)
        assert as_lists(ragged) == [[4], [], [1, 9], []]
        assert ragged.values.dtype == np.int32

    def test_from_no_pairs(self):
        assert as_lists(Ragged.from_pairs(np.empty((0, 2), dtype=np.int64), num_rows=2)) == [[], []]

    @given(st.lists(st.tuples(sets_of_ids, sets_of_ids), max_size=10))
    def test_without_is_a_difference_of_sets(self, pairs):
        left, right = (Ragged.from_rows([sorted(pair[side]) for pair in pairs], np.uint16) for side in (0, 1))
        kept = left.without(right)
        assert as_lists(kept) == [sorted(row - unwanted) for row, unwanted in pairs]
        assert kept.values.dtype == np.uint16

    @pytest.mark.parametrize("offsets", [[0, 2], [1, 3], [], [0, 4]])
    def test_offsets_must_span_the_values(self, offsets):
        with pytest.raises(ValueError, match="from 0 to 3"):
            Ragged(np.arange(3), np.array(offsets, dtype=np.int64))


class TestRaggedWriter:
    @pytest.mark.parametrize("num_pieces", [0, 1, 3, 1000])
    def test_files_are_those_of_numpy(self, tmp_path, num_pieces):
        piece = Ragged.from_rows(ROWS)
        with RaggedWriter(tmp_path, "rows", np.uint16) as writer:
            for _ in range(num_pieces):
                writer.extend(piece)
        whole = Ragged.from_rows(ROWS * num_pieces, np.uint16)
        np.save(tmp_path / "expected.npy", whole.offsets)
        assert (tmp_path / "rows.bin").read_bytes() == whole.values.tobytes()
        assert (tmp_path / "rows.offsets.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()
        assert writer.shape() == {"dtype": "<u2", "rows": 4 * num_pieces, "values": 6 * num_pieces}

    def test_nothing_stays_in_memory(self, tmp_path):
        piece = Ragged.from_rows(ROWS, np.uint16)
        with RaggedWriter(tmp_path, "rows", np.uint16) as writer:
            writer.extend(piece)
            tracemalloc.start()
            for _ in range(2000):
                writer.extend(piece)
            kept = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
        assert kept < 4000  # half a byte a row


@pytest.fixture
def folder(tmp_path):
    """A prepared data set of 2 labels, 3 training queries and 1 test query, written by hand."""
    content = {
        "label_tokens": ([[1, 4], [1, 5, 6]], np.uint16),
        "train_tokens": ([[1, 3], [1], [1, 2, 2]], np.uint16),
        "train_positives": ([[0, 1], [1], []], np.int32),
        "train_filtered": ([[], [0], []], np.int32),
        "test_tokens": ([[1, 9]], np.uint16),
        "test_positives": ([[1]], np.int32),
        "test_filtered": ([[]], np.int32),
    }
    arrays = {}
    for name, (rows, dtype) in content.items():
        with RaggedWriter(tmp_path, name, dtype) as writer:
            writer.extend(Ragged.from_rows(rows[:1], dtype))
            writer.extend(Ragged.from_rows(rows[1:], dtype))
        arrays[name] = writer.shape()
    (tmp_path / LABELS).write_text('{"uid": "a", "text": "naïve"}\n{"uid": "b", "text": ""}\n', encoding="utf-8")
    files = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    (tmp_path / MANIFEST).write_text(json.dumps({"format_version": FORMAT_VERSION, "arrays": arrays, "files": files}))
    return tmp_path


class TestCorpus:
    def test_open_gives_what_was_written(self, folder):
        corpus = Corpus.open(folder)
        assert as_lists(corpus.train.tokens) == [[1, 3], [1], [1, 2, 2]]
        assert as_lists(corpus.train.positives) == [[0, 1], [1], []]
        assert as_lists(corpus.train.filtered) == [[], [0], []]
        assert as_lists(corpus.test.tokens) == [[1, 9]]
        assert as_lists(corpus.test.positives) == [[1]]
        assert as_lists(corpus.test.filtered) == [[]]  # an empty file, which np.memmap refuses
        assert as_lists(corpus.label_tokens) == [[1, 4], [1, 5, 6]]
        assert corpus.train.tokens.values.dtype == np.uint16
        assert corpus.train.positives.values.dtype == np.int32
        assert (len(corpus.train), len(corpus.test), corpus.num_labels) == (3, 1, 2)
        assert corpus.label_frequency.tolist() == [1, 2]
        assert list(corpus.labels()) == [("a", "naïve"), ("b", "")]

    def test_arrays_are_read_only(self, folder):
        with pytest.raises(ValueError, match="read-only"):
            Corpus.open(folder).train.tokens.values[0] = 3

    def test_missing_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere.*Run prepare"):
            Corpus.open(tmp_path / "nowhere")

    @pytest.mark.parametrize("name", ["train_tokens.bin", "label_tokens.offsets.npy", LABELS])
    def test_missing_or_truncated_file_is_named(self, folder, name):
        (folder / name).write_bytes((folder / name).read_bytes()[:-1])
        with pytest.raises(ValueError, match=rf"{name} is damaged; delete .* and prepare"):
            Corpus.open(folder)
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            Corpus.open(folder)

    @pytest.mark.parametrize("change", [lambda offsets: offsets + 1, lambda offsets: np.array(offsets, dtype=object)])
    def test_offsets_of_another_array_are_named(self, folder, change):
        path = folder / "train_tokens.offsets.npy"
        np.save(path, change(np.load(path)))
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["files"][path.name] = path.stat().st_size
        (folder / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=r"train_tokens\.offsets\.npy is damaged"):
            Corpus.open(folder)

    def test_damaged_manifest_is_named(self, folder):
        (folder / MANIFEST).write_text('{"format_ver')
        with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
            Corpus.open(folder)

    def test_a_flipped_bit_in_the_manifest_is_noticed(self, folder):
        manifest = json.loads((folder / MANIFEST).read_text()) | {"max_length": 16, "checksums": {}}
        manifest["checksums"] = {MANIFEST: checksum_of(manifest)}
        (folder / MANIFEST).write_text(json.dumps(manifest))
        assert Corpus.open(folder).manifest["max_length"] == 16
        (folder / MANIFEST).write_text(json.dumps(manifest | {"max_length": 17}))
        with pytest.raises(ValueError, match=r"manifest\.json is damaged; delete .* \(checksum\)"):
            Corpus.open(folder)

    def test_what_version_0_1_0_prepared_opens(self, folder):
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps(manifest | {"format_version": 2}))
        corpus = Corpus.open(folder)
        assert (corpus.split_note, corpus.test_rows) == (None, None)
        assert "checksums" not in manifest
        of = []
        for fingerprint in ("a", "b"):
            (folder / MANIFEST).write_text(json.dumps(manifest | {"fingerprint": fingerprint}))
            of.append(Corpus.open(folder).training_hash)
        assert of[0] != of[1], "it is known by its fingerprint alone"

    def test_other_format(self, folder):
        (folder / MANIFEST).write_text('{"format_version": 999}')
        with pytest.raises(ValueError, match="format_version is 999"):
            Corpus.open(folder)
