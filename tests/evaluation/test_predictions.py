import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_xmc.evaluation import predictions
from prime_xmc.evaluation.predictions import load_predictions, save_predictions

INF = np.inf


def write_csr(path, dense, kind=b"csr", **changed):
    """What scipy.sparse.save_npz writes; entries of NaN are not stored."""
    stored = ~np.isnan(dense)
    arrays = {
        "indices": np.nonzero(stored)[1].astype(np.int32),
        "indptr": np.concatenate([[0], stored.sum(axis=1).cumsum()]).astype(np.int32),
        "format": np.array(kind),
        "shape": np.array(dense.shape),
        "data": dense[stored],
    }
    np.savez(path, **{**arrays, **changed})


class TestSave:
    def test_comes_back(self, tmp_path):
        path = tmp_path / "predictions.npz"
        indices, scores = np.array([[5, 1, -1], [0, 2, 3]]), np.array([[0.5, -0.25, -INF], [3, 2, 1]])
        save_predictions(path, indices, scores)
        loaded, loaded_scores = load_predictions(path, k=3)
        assert loaded.dtype == np.int32
        assert loaded_scores.dtype == np.float32
        assert loaded.tolist() == indices.tolist()
        assert loaded_scores.tolist() == scores.tolist()

    def test_leaves_nothing_but_the_file_and_replaces_an_old_one(self, tmp_path):
        path = tmp_path / "predictions.npz"
        path.write_text("old")
        save_predictions(path, np.zeros((1, 1), dtype=np.int64), np.zeros((1, 1)))
        assert [file.name for file in tmp_path.iterdir()] == ["predictions.npz"]
        assert load_predictions(path, k=1)[0].tolist() == [[0]]


class TestTopK:
    def test_sorts_what_does_not_descend(self, tmp_path):
        indices = np.array([[3, 1, 2], [3, 1, 2], [-1, 4, 5]])
        scores = np.array([[0.1, 0.5, 0.5], [0.5, 0.5, 0.1], [9.0, 0.1, 0.2]])
        np.savez(tmp_path / "a.npz", indices=indices, scores=scores)
        top, top_scores = load_predictions(tmp_path / "a.npz", k=3)
        # Ties by label id where the row is sorted; a row that descends is left alone; padding goes last.
        assert top.tolist() == [[1, 2, 3], [3, 1, 2], [5, 4, -1]]
        assert (
            top_scores.tolist() == np.array([[0.5, 0.5, 0.1], [0.5, 0.5, 0.1], [0.2, 0.1, -INF]], np.float32).tolist()
        )

    @pytest.mark.parametrize(("k", "expected"), [(1, [[7]]), (2, [[7, 8]]), (4, [[7, 8, -1, -1]])])
    def test_always_k_columns(self, tmp_path, k, expected):
        np.savez(tmp_path / "a.npz", indices=np.array([[7, 8]]), scores=np.array([[2.0, 1.0]]))
        top, scores = load_predictions(tmp_path / "a.npz", k=k)
        assert top.tolist() == expected
        assert scores.tolist() == [[2.0, 1.0, -INF, -INF][:k]]

    def test_default_is_what_evaluation_needs(self, tmp_path):
        np.savez(tmp_path / "a.npz", indices=np.array([[7]]), scores=np.array([[2.0]]))
        assert load_predictions(tmp_path / "a.npz")[0].shape == (1, 100)


class TestSparse:
    def test_by_hand(self, tmp_path):
        nan = np.nan
        write_csr(tmp_path / "a.npz", np.array([[0.1, nan, 0.9, 0.1], [nan] * 4, [nan, -2.0, -1.0, nan]]))
        top, scores = load_predictions(tmp_path / "a.npz", k=3)
        assert top.tolist() == [[2, 0, 3], [-1, -1, -1], [2, 1, -1]]
        assert scores.tolist() == np.array([[0.9, 0.1, 0.1], [-INF] * 3, [-1, -2, -INF]], dtype=np.float32).tolist()

    @pytest.mark.parametrize("num_labels", [3, 5])
    def test_another_number_of_columns_than_labels(self, tmp_path, num_labels):
        write_csr(tmp_path / "a.npz", np.ones((2, 4)))
        assert load_predictions(tmp_path / "a.npz", 2, num_labels=4)[0].shape == (2, 2)
        message = f"the matrix has 4 columns, and the data set has {num_labels} labels"
        with pytest.raises(ValueError, match=message):
            load_predictions(tmp_path / "a.npz", 2, num_labels=num_labels)

    def test_scipy_file(self, tmp_path):
        sparse = pytest.importorskip("scipy.sparse")
        matrix = sparse.random(30, 50, density=0.2, format="csr", rng=np.random.default_rng(0))
        sparse.save_npz(tmp_path / "a.npz", matrix)
        top, scores = load_predictions(tmp_path / "a.npz", k=5)
        dense = np.where(matrix.toarray() > 0, matrix.toarray(), -INF)
        expected = np.sort(dense, axis=1)[:, :-6:-1]
        assert scores == pytest.approx(expected)
        assert (top < 0).tolist() == np.isinf(expected).tolist()

    @given(st.integers(0, 2**32 - 1), st.integers(0, 9), st.integers(1, 9), st.integers(1, 12))
    @settings(max_examples=40, deadline=None)
    def test_equals_a_loop_in_any_chunk(self, tmp_path_factory, seed, num_rows, num_labels, k):
        rng = np.random.default_rng(seed)
        dense = rng.integers(-3, 4, size=(num_rows, num_labels)).astype(np.float64)  # many ties
        dense[rng.random(dense.shape) < 0.5] = np.nan
        path = tmp_path_factory.mktemp("csr") / "a.npz"
        write_csr(path, dense)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(predictions, "_CHUNK", 2)
            top, scores = load_predictions(path, k=k)
        assert top.shape == scores.shape == (num_rows, k)
        for row in range(num_rows):
            entries = sorted((-score, label) for label, score in enumerate(dense[row]) if not np.isnan(score))[:k]
            expected = [(label, -score) for score, label in entries] + [(-1, -INF)] * (k - len(entries))
            assert list(zip(top[row], scores[row], strict=True)) == expected


class TestBadFiles:
    def check(self, path, said):
        with pytest.raises(ValueError, match=said) as error:
            load_predictions(path)
        assert str(path) in str(error.value)
        assert "expected an .npz with `indices`" in str(error.value)

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            load_predictions(tmp_path / "nowhere.npz")

    @pytest.mark.parametrize("content", [b"", b"0 1:0.5 2:0.1\n", b"PK\x03\x04 cut off", pickle.dumps([1, 2])])
    def test_not_an_archive(self, tmp_path, content):
        (tmp_path / "a.npz").write_bytes(content)
        self.check(tmp_path / "a.npz", "not readable")

    def test_a_single_array(self, tmp_path):
        np.save(tmp_path / "a.npy", np.zeros(3))
        self.check(tmp_path / "a.npy", "not readable")

    def test_truncated(self, tmp_path):
        save_predictions(tmp_path / "a.npz", np.zeros((50, 9), dtype=np.int64), np.zeros((50, 9)))
        content = (tmp_path / "a.npz").read_bytes()
        (tmp_path / "a.npz").write_bytes(content[: len(content) // 2])
        self.check(tmp_path / "a.npz", "not readable")

    def test_pickled_objects_are_not_loaded(self, tmp_path):
        np.savez(tmp_path / "a.npz", indices=np.array([[{}]], dtype=object), scores=np.zeros((1, 1)))
        self.check(tmp_path / "a.npz", "allow_pickle=False")

    def test_other_arrays(self, tmp_path):
        np.savez(tmp_path / "a.npz", ids=np.zeros((1, 1)), score=np.zeros((1, 1)))
        self.check(tmp_path / "a.npz", r"holds the arrays \['ids', 'score'\]")

    @pytest.mark.parametrize(
        ("indices", "scores", "said"),
        [
            (np.zeros((2, 3), dtype=int), np.zeros((2, 2)), r"`indices` has shape \(2, 3\), `scores` \(2, 2\)"),
            (np.zeros(3, dtype=int), np.zeros(3), r"`indices` has shape \(3,\)"),
            (np.zeros((2, 3)), np.zeros((2, 3)), "`indices` are float64"),
            (np.zeros((1, 1), dtype=int), np.array([["a"]]), "scores are <U1"),
            (np.array([[0, 1], [2, -7]]), np.zeros((2, 2)), r"-7 at position \(1, 1\)"),
            (np.array([[0, 2**40]]), np.zeros((1, 2)), r"1099511627776 at position \(0, 1\)"),
            (np.array([[0, 1]]), np.array([[1.0, np.nan]]), r"nan at position \(0, 1\)"),
        ],
    )
    def test_wrong_arrays(self, tmp_path, indices, scores, said):
        np.savez(tmp_path / "a.npz", indices=indices, scores=scores)
        self.check(tmp_path / "a.npz", said)

    def test_other_sparse_format(self, tmp_path):
        write_csr(tmp_path / "a.npz", np.ones((2, 2)), kind=b"csc")
        self.check(tmp_path / "a.npz", "sparse matrix of format 'csc'")

    @pytest.mark.parametrize(
        "changed", [{"data": np.ones(3)}, {"shape": np.array([3, 2])}, {"indptr": np.array([0, 4, 2])}]
    )
    def test_arrays_that_make_no_csr_matrix(self, tmp_path, changed):
        write_csr(tmp_path / "a.npz", np.ones((2, 2)), **changed)
        self.check(tmp_path / "a.npz", "not a CSR matrix")
