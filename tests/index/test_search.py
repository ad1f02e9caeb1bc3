import re
import sys

import pytest
import torch
from torch.nn.functional import normalize

from prime_xmc.index.search import ExactSearch, FaissSearch, faiss_problem, search_without_waiting


def whole_numbers(rows, d=6, *, seed):
    """Vectors whose inner products are exact in float32, with many equal ones."""
    return torch.randint(-2, 3, (rows, d), generator=torch.Generator().manual_seed(seed)).float()


def unit_vectors(rows, d, *, seed):
    return normalize(torch.randn(rows, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def brute_force(vectors, query_emb, k):
    """The definition: labels by descending score, then by ascending id."""
    scores = query_emb @ vectors.T
    order = [sorted(range(len(vectors)), key=lambda label: (-row[label], label))[:k] for row in scores.tolist()]
    ids = torch.tensor(order)
    return scores.gather(1, ids), ids


def built(search, vectors):
    search.build(vectors)
    return search


class TestExact:
    @pytest.mark.parametrize("query_block", [1, 7, 100])
    @pytest.mark.parametrize("label_block", [1, 5, 13, 57, 100])
    @pytest.mark.parametrize("k", [1, 5, 56, 57])
    def test_brute_force_ties_by_id_whatever_the_blocks(self, query_block, label_block, k):
        vectors, query_emb = whole_numbers(57, seed=0), whole_numbers(20, seed=1)
        search = built(ExactSearch(query_block=query_block, label_block=label_block), vectors)
        for found, expected in zip(search.search(query_emb, k), brute_force(vectors, query_emb, k), strict=True):
            assert torch.equal(found, expected)

    def test_default_blocks_on_real_numbers(self):
        vectors, query_emb = unit_vectors(300, 24, seed=0), unit_vectors(40, 24, seed=1)
        scores, ids = built(ExactSearch(), vectors).search(query_emb, 10)
        expected_scores, expected_ids = brute_force(vectors, query_emb, 10)
        assert torch.equal(ids, expected_ids)
        torch.testing.assert_close(scores, expected_scores)

    def test_all_equal(self):
        _, ids = built(ExactSearch(label_block=4), torch.ones(10, 3)).search(torch.ones(2, 3), 6)
        assert ids.tolist() == [[0, 1, 2, 3, 4, 5]] * 2

    def test_autocast_of_the_caller_does_not_reach_the_scores(self):
        vectors, query_emb = unit_vectors(300, 24, seed=0), unit_vectors(40, 24, seed=1)
        search = built(ExactSearch(), vectors)
        expected = search.search(query_emb, 10)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = search.search(query_emb, 10)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


class TestWithoutWaiting:
    """The search of GPUs, on the CPU."""

    @pytest.mark.parametrize("label_block", [1, 5, 100, 299, 1000])
    @pytest.mark.parametrize("k", [1, 3, 10, 299, 300])
    def test_brute_force_ties_by_id_whatever_the_blocks(self, label_block, k):
        vectors, query_emb = whole_numbers(300, seed=0), whole_numbers(20, seed=1)
        vectors[7] = -0.0  # its scores are of both signs, and equal
        found = search_without_waiting(query_emb, vectors, k, label_block)
        for part, expected in zip(found, brute_force(vectors, query_emb, k), strict=True):
            assert torch.equal(part, expected)

    def test_equals_the_search_of_the_cpu(self):
        vectors, query_emb = unit_vectors(5000, 24, seed=0), unit_vectors(40, 24, seed=1)
        found = search_without_waiting(query_emb, vectors, 20, 5000)
        for part, expected in zip(found, built(ExactSearch(), vectors).search(query_emb, 20), strict=True):
            torch.testing.assert_close(part, expected)

    def test_all_equal(self):
        _, ids = search_without_waiting(torch.ones(2, 3), torch.ones(1000, 3), 6, 1000)
        assert ids.tolist() == [[0, 1, 2, 3, 4, 5]] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_queries_and_vectors_but_not_scores(dtype):
    vectors, query_emb = unit_vectors(300, 24, seed=0), unit_vectors(40, 24, seed=1)
    expected = built(ExactSearch(), vectors.to(dtype).float()).search(query_emb.to(dtype).float(), 10)
    found = built(ExactSearch(), vectors.to(dtype)).search(query_emb, 10)
    assert found[0].dtype == torch.float32
    for part, wanted in zip(found, expected, strict=True):
        assert torch.equal(part, wanted)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnCuda:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("num_queries", [1, 50])
    def test_agrees_with_cpu(self, dtype, num_queries):
        vectors, query_emb = unit_vectors(20_000, 64, seed=0).to(dtype), unit_vectors(num_queries, 64, seed=1)
        expected_scores, expected_ids = built(ExactSearch(), vectors).search(query_emb, 100)
        torch.set_float32_matmul_precision("high")  # must not reach the scores
        try:
            scores, ids = built(ExactSearch(), vectors.cuda()).search(query_emb, 100)
        finally:
            torch.set_float32_matmul_precision("highest")
        torch.testing.assert_close(scores, expected_scores, rtol=1e-5, atol=1e-6)
        assert (ids == expected_ids).float().mean() > 0.99

    def test_ties_by_id(self):
        vectors, query_emb = whole_numbers(5000, seed=0), whole_numbers(20, seed=1)
        found = built(ExactSearch(), vectors.cuda()).search(query_emb, 50)
        for part, expected in zip(found, brute_force(vectors, query_emb, 50), strict=True):
            assert torch.equal(part, expected)

    def test_the_host_does_not_wait(self):
        search, query_emb = (
            built(ExactSearch(), unit_vectors(5000, 64, seed=0).cuda()),
            unit_vectors(9, 64, seed=1).cuda(),
        )
        search.search(query_emb, 10)
        torch.cuda.set_sync_debug_mode("error")
        try:
            search.search(query_emb, 10)
        finally:
            torch.cuda.set_sync_debug_mode("default")


class TestBoth:
    @pytest.fixture(params=["exact", "flat", "hnsw"])
    def search(self, request):
        """Made for each test: without Faiss the others of this file are still found."""
        return ExactSearch() if request.param == "exact" else FaissSearch(request.param)

    def test_hand_computed(self, search):
        search.build(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
        scores, ids = search.search(torch.tensor([[1.0, 0.0], [0.0, -1.0]]), 2)
        assert ids.tolist() == [[0, 2], [0, 2]]
        torch.testing.assert_close(scores, torch.tensor([[1.0, 0.6], [0.0, -0.8]]))

    def test_more_than_there_are(self, search):
        search.build(unit_vectors(5, 4, seed=0))
        scores, ids = search.search(unit_vectors(3, 4, seed=1), 100)
        assert scores.shape == (3, 5)
        assert (ids.sort(dim=1).values == torch.arange(5)).all()
        assert (scores.diff(dim=1) <= 0).all()

    def test_gradient_is_not_needed(self, search):
        search.build(unit_vectors(5, 4, seed=0).requires_grad_())
        scores, _ = search.search(unit_vectors(3, 4, seed=1).requires_grad_(), 2)
        assert not scores.requires_grad

    def test_build_again(self, search):
        search.build(unit_vectors(50, 4, seed=0))
        search.build(unit_vectors(5, 4, seed=0))
        _, ids = search.search(unit_vectors(3, 4, seed=1), 5)
        assert ids.max() == 4


class TestFaiss:
    def test_flat_is_exact(self):
        vectors, query_emb = unit_vectors(500, 24, seed=0), unit_vectors(40, 24, seed=1)
        expected_scores, expected_ids = built(ExactSearch(), vectors).search(query_emb, 10)
        scores, ids = built(FaissSearch("flat"), vectors).search(query_emb, 10)
        assert torch.equal(ids, expected_ids)
        torch.testing.assert_close(scores, expected_scores)

    def test_equal_scores_by_id(self):
        vectors, query_emb = whole_numbers(57, seed=0), whole_numbers(20, seed=1)
        expected = brute_force(vectors, query_emb, 57)
        for found, wanted in zip(built(FaissSearch("flat"), vectors).search(query_emb, 57), expected, strict=True):
            assert torch.equal(found, wanted)

    def test_hnsw_recall(self):
        """Random directions are the hard case; 0.95 of the true 10 nearest of 5000 are demanded."""
        vectors, query_emb = unit_vectors(5000, 32, seed=0), unit_vectors(100, 32, seed=1)
        _, expected = built(ExactSearch(), vectors).search(query_emb, 10)
        scores, ids = built(FaissSearch("hnsw"), vectors).search(query_emb, 10)
        recall = (ids[:, :, None] == expected[:, None]).any(dim=2).float().mean()
        assert recall >= 0.95
        torch.testing.assert_close(scores, (query_emb @ vectors.T).gather(1, ids))

    def test_hnsw_fills_what_its_graph_does_not_reach(self):
        """Identical vectors make a graph that is not connected: alone, Faiss returns -1 here."""
        vectors = torch.eye(8).repeat_interleave(200, dim=0)
        search = built(FaissSearch("hnsw", m=4, ef_construction=8, ef_search=8), vectors)
        bare = search._index.search(torch.eye(8).numpy(), 1000)[1]
        assert (bare < 0).any(), "the case does not arise: choose another"
        scores, ids = search.search(torch.eye(8), 1000)
        assert (scores[:, :200] == 1).all()
        assert all(len(row.unique()) == 1000 for row in ids)
        assert ids.min() >= 0

    @pytest.mark.parametrize("kind", ["flat", "hnsw"])
    def test_saved_index_finds_the_same(self, kind, tmp_path):
        query_emb = unit_vectors(40, 24, seed=1)
        search = built(FaissSearch(kind), unit_vectors(500, 24, seed=0))
        search.save(tmp_path / "index.faiss")
        assert [path.name for path in tmp_path.iterdir()] == ["index.faiss"]
        loaded = FaissSearch(kind)
        loaded.load(tmp_path / "index.faiss")
        for found, expected in zip(loaded.search(query_emb, 10), search.search(query_emb, 10), strict=True):
            assert torch.equal(found, expected)

    def test_loading_another_kind(self, tmp_path):
        built(FaissSearch("flat"), unit_vectors(5, 4, seed=0)).save(tmp_path / "index.faiss")
        with pytest.raises(ValueError, match=r"index\.faiss holds a IndexFlatIP, expected IndexHNSWFlat \(kind=hnsw\)"):
            FaissSearch("hnsw").load(tmp_path / "index.faiss")

    @pytest.mark.parametrize("content", [None, b"", b"not an index", "truncated"])
    def test_loading_a_bad_file(self, content, tmp_path):
        path = tmp_path / "index.faiss"
        if content == "truncated":
            built(FaissSearch("flat"), unit_vectors(50, 4, seed=0)).save(path)
            path.write_bytes(path.read_bytes()[:-100])
        elif content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=r"index\.faiss cannot be read as a Faiss index"):
            FaissSearch("flat").load(path)

    def test_unknown_kind(self):
        with pytest.raises(ValueError, match="must be flat or hnsw, got ivf"):
            FaissSearch("ivf")

    def test_missing_faiss(self, monkeypatch):
        assert faiss_problem() is None
        monkeypatch.setitem(sys.modules, "faiss", None)
        said = r'Faiss is not installed: pip install ".\[faiss-cpu\]" in the clone, or search without it: index=exact'
        with pytest.raises(ImportError, match=said):
            FaissSearch("flat")
        assert re.match(said, faiss_problem())

    @pytest.mark.parametrize(
        ("code", "cause"),
        [
            ("raise ImportError('libgomp.so.1: cannot open shared object file')", "libgomp.so.1: cannot open"),
            ("import a_module_that_faiss_needs", "No module named 'a_module_that_faiss_needs'"),
            ("raise RuntimeError('built for another NumPy')", "built for another NumPy"),
            ("raise OSError('libcublas.so.12 is too short')", "libcublas.so.12 is too short"),
        ],
    )
    def test_broken_faiss_is_not_called_missing(self, monkeypatch, tmp_path, code, cause):
        (tmp_path / "faiss.py").write_text(code)
        monkeypatch.delitem(sys.modules, "faiss", raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(ImportError, match=f"Faiss is installed but cannot be imported: {cause}.*; reinstall it"):
            FaissSearch("flat")

    def test_another_module_of_that_name(self, monkeypatch, tmp_path):
        (tmp_path / "faiss").mkdir()  # can be imported, as a namespace
        monkeypatch.delitem(sys.modules, "faiss", raising=False)
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        said = rf"what is imported as faiss is not Faiss \({re.escape(str(tmp_path / 'faiss'))}\)"
        with pytest.raises(ImportError, match=said):
            FaissSearch("flat")

    def test_shape(self):
        assert built(FaissSearch("hnsw"), unit_vectors(50, 4, seed=0)).shape == (50, 4)


class TestAllowed:
    """Some labels alone may be an answer: as if the search of all labels were read to its end without the others."""

    @staticmethod
    def expected(vectors, query_emb, k, allowed):
        _, ids = brute_force(vectors, query_emb, len(vectors))
        return torch.tensor([[label for label in row if allowed[label]][:k] for row in ids.tolist()])

    @pytest.mark.parametrize("num_allowed", [1, 3, 40, 57])
    @pytest.mark.parametrize("k", [1, 5, 57])
    @pytest.mark.parametrize("label_block", [5, 57, 100])
    def test_exact(self, num_allowed, k, label_block):
        vectors, query_emb = whole_numbers(57, seed=0), whole_numbers(20, seed=1)
        allowed = torch.zeros(57, dtype=torch.bool)
        allowed[torch.randperm(57, generator=torch.Generator().manual_seed(2))[:num_allowed]] = True
        scores, ids = built(ExactSearch(label_block=label_block), vectors).search(query_emb, k, allowed=allowed)
        assert torch.equal(ids, self.expected(vectors, query_emb, k, allowed))
        assert torch.equal(scores, (query_emb @ vectors.T).gather(1, ids))
        found = search_without_waiting(query_emb, vectors, min(k, num_allowed), label_block, allowed)
        assert all(torch.equal(*pair) for pair in zip(found, (scores, ids), strict=True))

    @pytest.mark.parametrize("kind", ["flat", "hnsw"])
    @pytest.mark.parametrize("num_allowed", [1, 7, 290])
    def test_faiss_is_exact_then(self, kind, num_allowed):
        vectors, query_emb = unit_vectors(300, 24, seed=0), unit_vectors(40, 24, seed=1)
        allowed = torch.zeros(300, dtype=torch.bool)
        allowed[torch.randperm(300, generator=torch.Generator().manual_seed(2))[:num_allowed]] = True
        scores, ids = built(FaissSearch(kind, m=2, ef_construction=4, ef_search=1), vectors).search(
            query_emb, 10, allowed=allowed
        )
        assert torch.equal(ids, self.expected(vectors, query_emb, 10, allowed))
        torch.testing.assert_close(scores, (query_emb @ vectors.T).gather(1, ids))

    def test_none(self):
        search = built(ExactSearch(), unit_vectors(3, 2, seed=0))
        with pytest.raises(ValueError, match="expected at least one label that may be an answer, got none"):
            search.search(unit_vectors(1, 2, seed=1), 1, allowed=torch.zeros(3, dtype=torch.bool))
