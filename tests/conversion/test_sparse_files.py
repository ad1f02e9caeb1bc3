import gzip

import numpy as np
import pytest
from scipy.sparse import csr_matrix, save_npz

from prime_xmc.conversion.sparse_files import read_sparse

ROWS = [["0", "2"], [], ["1"]]


@pytest.mark.parametrize(
    "content",
    [
        "3 3\n0:1 2:1\n\n1:1\n",
        "3 3\n0:1.0 1:0 2:0.5\n\n1:1\n",
        "3 9 3\n0,2 4:0.5 7:1\n 3:1\n1 3:1\n",
        "3 9 3\n0,2 4:0.5 7:1\n3:1\n1 3:1\n",
        "0,2 4:0.5 7:1\n 3:1\n1 3:1\n",
        "0:1 2:1\n\n1:1\n",
    ],
)
def test_text(tmp_path, content):
    path = tmp_path / "Y.txt"
    path.write_text(content)
    assert [row.labels for row in read_sparse(path)] == ROWS
    packed = tmp_path / "Y.txt.gz"
    packed.write_bytes(gzip.compress(content.encode()))
    assert [row.labels for row in read_sparse(packed)] == ROWS


def test_names(tmp_path):
    (tmp_path / "train_labels.txt").write_text("animals pets\nplants\n")
    assert [row.labels for row in read_sparse(tmp_path / "train_labels.txt")] == [["animals", "pets"], ["plants"]]


@pytest.mark.parametrize("content", ["12 15 20\n7 12\n", "12 15\n\n7\n", "GO:12 GO:15\nGO:7\n", "1\n\n2 3\n"])
def test_names_that_look_like_something_else(tmp_path, content):
    (tmp_path / "train_labels.txt").write_text(content)
    rows = [row.labels for row in read_sparse(tmp_path / "train_labels.txt")]
    assert rows == [line.split() for line in content.splitlines()]


def test_npz(tmp_path):
    save_npz(tmp_path / "Y.npz", csr_matrix(np.array([[1, 0, 1], [0, 0, 0], [0, 2, 0]])))
    assert [row.labels for row in read_sparse(tmp_path / "Y.npz")] == ROWS


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("2 3\n0:1\n", "the first line announces 2 rows, and 1 follow"),
        ("1 3\n3:1\n", r"line 2: label 3 is outside 0\.\.2"),
        ("1 3\nx:1\n", "line 2: 'x' is no number of a label"),
        ("1 3\n0:y\n", "line 2: 'y' is no relevance"),
        ("-1 1:0.5 2:0.3\n+1 1:0.2\n", "line 1: '-1' is no number of a label"),
        ("3 10\n1 2\n3\n", "the first line announces 3 rows, and 2 follow; if it is the labels of a query"),
    ],
)
def test_errors(tmp_path, content, said):
    (tmp_path / "Y.txt").write_text(content)
    with pytest.raises(ValueError, match=said):
        list(read_sparse(tmp_path / "Y.txt"))


def test_npz_that_is_none(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"a\.npz is not readable as npz"):
        list(read_sparse(tmp_path / "a.npz"))
    save_npz(tmp_path / "b.npz", csr_matrix(np.eye(2)).tocsc())
    with pytest.raises(ValueError, match="expected csr"):
        list(read_sparse(tmp_path / "b.npz"))
    np.savez(tmp_path / "c.npz", indices=np.zeros(1))
    with pytest.raises(ValueError, match=r"c\.npz has no indptr"):
        list(read_sparse(tmp_path / "c.npz"))


def test_a_row_without_labels_may_be_the_first_of_libsvm(tmp_path):
    (tmp_path / "train.svm").write_text(" 5:0.3 7:0.2\n3 5:0.1 8:0.2\n4 6:1\n")
    assert [row.labels for row in read_sparse(tmp_path / "train.svm")] == [[], ["3"], ["4"]]
    (tmp_path / "train.svm").write_text(" 5:1 7:1\n1,2\n\n3 4:1\n")  # the second one without features
    assert [row.labels for row in read_sparse(tmp_path / "train.svm")] == [[], ["1", "2"], [], ["3"]]
    (tmp_path / "train.svm").write_text("0:0.3 1:0.5\n2:1\n2 0:0.1\n1 1:0.1\n")  # without the blank
    assert [row.labels for row in read_sparse(tmp_path / "train.svm")] == [[], [], ["2"], ["1"]]
    (tmp_path / "train.txt").write_text("2 8\n4 5\n7\n")  # a header whose rows have no values
    assert [row.labels for row in read_sparse(tmp_path / "train.txt")] == [["4", "5"], ["7"]]
    (tmp_path / "train.txt").write_text(" 5:1 7:1\n 3:1\n4\n" * 2000)  # a matrix that is indented
    assert [row.labels for row in read_sparse(tmp_path / "train.txt")] == [["5", "7"], ["3"], ["4"]] * 2000
