import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from prime_xmc.baselines.worker import (
    LIBRARIES,
    BlockTimes,
    as_arrays,
    main,
    peak_memory,
    read_word_vectors,
    rows_of,
    size_of,
    splitter,
    update,
    write_svm,
)


def test_svm_file_has_the_rows_with_labels(tmp_path):
    matrix = sp.csr_matrix(np.array([[0.5, 0, 2], [0, 1, 0], [0, 0, 0.25]], dtype=np.float32))
    labels = sp.csr_matrix(np.array([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=np.float32))
    write_svm(tmp_path / "train.svm", matrix, labels)
    assert (tmp_path / "train.svm").read_text() == "2 3 4\n0,2 0:0.5 2:2\n1 2:0.25\n"


def test_rows_are_lists_of_columns_and_values():
    matrix = sp.csr_matrix(np.array([[0, 3.0], [0, 0]]))
    assert list(rows_of(matrix)) == [([1], [3.0]), ([], [])]


def test_answers_become_arrays_best_first_each_label_once():
    ids, scores = as_arrays([[(4, 0.1), (2, 0.9), (4, 0.1)], []], 3)
    assert ids.tolist() == [[2, 4, -1], [-1, -1, -1]]
    assert np.isneginf(scores[1]).all()
    assert scores[0, 0] == np.float32(0.9)


def test_more_answers_than_are_asked_for_are_cut_with_ties_by_label():
    assert as_arrays([[(9, 0.5), (3, 0.5), (1, 0.7)]], 2)[0].tolist() == [[1, 3]]


def test_size_is_that_of_all_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"12345")
    (tmp_path / "c").write_bytes(b"123")
    assert size_of(tmp_path) == 8


def test_peak_memory_counts_what_was_used():
    before = peak_memory()
    held = np.ones(2**24)
    assert peak_memory() >= before
    assert peak_memory() > held.nbytes


def test_words_are_those_of_the_pattern_or_else_of_the_library():
    assert splitter(r"(?u)\S+", str.split)("( A -> ph )") == ["(", "a", "->", "ph", ")"]
    assert splitter(r"(a)?b", str.split)("ab b") == ["a"]
    assert splitter(None, str.split) is str.split


def test_word_vectors_are_those_of_the_file_where_it_has_the_word(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("the 0.5 -1\nto name@domain.com 7 7\ncat 2 3e-1\n", encoding="utf-8")
    start = torch.ones(4, 2)
    found = read_word_vectors(path, ["dog", "cat", "the", "to"], start)
    assert found.tolist() == [[1, 1], [2, pytest.approx(0.3)], [0.5, -1], [1, 1]]
    assert start.tolist() == [[1, 1]] * 4
    for dim in (1, 3):
        with pytest.raises(SystemExit, match=f"vectors.txt: the has 2 numbers, expected dim={dim}"):
            read_word_vectors(path, ["cat"], torch.ones(1, dim))
    path.write_text("the 0.5 -1\ncat 2 x\ndog 1\n", encoding="utf-8")
    for word, line in (("cat", 2), ("dog", 3)):
        with pytest.raises(SystemExit, match=f"vectors.txt, line {line}: expected 2 numbers, got '{word} "):
            read_word_vectors(path, [word], torch.ones(1, 2))
    path.write_text("2 2\nthe 0.5 -1\ncat 2 3\n", encoding="utf-8")
    assert read_word_vectors(path, ["cat", "2"], torch.ones(2, 2)).tolist() == [[2, 3], [1, 1]]
    with pytest.raises(SystemExit, match=r"vectors\.txt: a word has 2 numbers, expected dim=3"):
        read_word_vectors(path, ["cat"], torch.ones(1, 3))


def test_the_seconds_of_processors_count_those_of_processes_that_it_has_started():
    times = BlockTimes()
    with times.running():
        subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    assert times.cpu_seconds > 0.3


def test_a_parameter_that_the_library_does_not_have_is_named():
    parameters = SimpleNamespace(threads=1)
    update(parameters, {"threads": 2})
    assert parameters.threads == 2
    with pytest.raises(SystemExit, match="SimpleNamespace of PECOS has no parameter thread"):
        update(parameters, {"thread": 2})


def test_a_library_that_reads_the_texts_alone_gets_no_vectors(tmp_path, monkeypatch):
    def library(folder, settings, train, labels, queries):
        assert train is None
        assert queries is None
        assert labels.toarray().tolist() == [[0, 1], [1, 0]]
        yield 7
        yield [[(1, 0.5), (0, 0.25)]]

    monkeypatch.setitem(LIBRARIES, "attentionxml", library)
    settings = {"library": "attentionxml", "queries": ["test"], "k": 2}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    sp.save_npz(tmp_path / "labels.npz", sp.csr_matrix(np.array([[0, 1.0], [1, 0]], dtype=np.float32)))
    main(tmp_path)
    with np.load(tmp_path / "ranking_test.npz") as archive:
        assert archive["ids"].tolist() == [[1, 0]]
        assert archive["scores"].tolist() == [[0.5, 0.25]]
    assert json.loads((tmp_path / "cost.json").read_text())["model_bytes"] == 7
