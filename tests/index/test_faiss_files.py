import struct

import numpy as np
import pytest

from prime_xmc.index.faiss_files import check_index_file
from prime_xmc.index.search import FaissSearch

faiss = pytest.importorskip("faiss")

VECTORS = np.random.default_rng(0).normal(size=(300, 8)).astype("f4")


@pytest.fixture
def flat(tmp_path):
    index = faiss.IndexFlatIP(8)
    index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "flat.faiss"))
    return tmp_path / "flat.faiss"


@pytest.fixture
def graph(tmp_path):
    index = faiss.IndexHNSWFlat(8, 4, faiss.METRIC_INNER_PRODUCT)
    index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "hnsw.faiss"))
    return tmp_path / "hnsw.faiss"


def test_sizes_of_both_kinds(flat, graph):
    assert check_index_file(flat, "flat") == (300, 8)
    assert check_index_file(graph, "hnsw") == (300, 8)


def test_another_kind_is_refused_before_faiss_opens_it(flat, graph, tmp_path):
    with pytest.raises(ValueError, match="holds a IndexFlatIP, expected IndexHNSWFlat"):
        check_index_file(flat, "hnsw")
    quantizer = faiss.IndexFlatIP(8)
    quantizer.add(VECTORS[:1])
    lists = faiss.IndexIVFFlat(quantizer, 8, 1, faiss.METRIC_INNER_PRODUCT)
    faiss.write_index(lists, str(tmp_path / "lists.faiss"))
    with pytest.raises(ValueError, match=r"lists\.faiss cannot be read as a Faiss index of kind=flat"):
        FaissSearch("flat").load(tmp_path / "lists.faiss")


def test_what_the_graph_is_of_is_checked_too(graph, flat):
    """Faiss would open whatever kind of index stands behind a graph."""
    content = graph.read_bytes()
    place = content.rindex(b"IxFI")
    graph.write_bytes(content[:place] + b"IwFl" + content[place + 4 :])
    with pytest.raises(ValueError, match="expected 'IndexFlatIP'"):
        check_index_file(graph, "hnsw")


def test_cut_off_and_longer_files_are_refused(flat, graph):
    for path, kind in ((flat, "flat"), (graph, "hnsw")):
        content = path.read_bytes()
        for damaged in (content[:-1], content[: len(content) // 2], content[:30], content + b"x", b""):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=f"Faiss index of kind={kind}"):
                check_index_file(path, kind)


def test_more_vectors_than_the_file_has_are_refused(flat):
    content = bytearray(flat.read_bytes())
    content[8:16] = struct.pack("<q", 2**60)
    flat.write_bytes(content)
    with pytest.raises(ValueError, match="vectors of dimension 8"):
        check_index_file(flat, "flat")


def test_edges_that_lead_out_of_the_graph_are_refused(graph):
    index = faiss.read_index(str(graph))
    neighbours = faiss.vector_to_array(index.hnsw.neighbors)
    content = graph.read_bytes()
    place = content.index(neighbours.tobytes())
    for wrong in (300, 2**30, -2):
        changed = neighbours.copy()
        changed[0] = wrong
        graph.write_bytes(content[:place] + changed.tobytes() + content[place + neighbours.nbytes :])
        with pytest.raises(ValueError, match="leads to vectors that there are not"):
            check_index_file(graph, "hnsw")
    levels = faiss.vector_to_array(index.hnsw.levels)
    low = int(np.flatnonzero(levels == 1)[0])
    high = int(np.flatnonzero(levels > 1)[0])
    start = int(faiss.vector_to_array(index.hnsw.offsets)[high])
    changed = neighbours.copy()
    changed[start + faiss.vector_to_array(index.hnsw.cum_nneighbor_per_level)[1]] = low
    graph.write_bytes(content[:place] + changed.tobytes() + content[place + neighbours.nbytes :])
    with pytest.raises(ValueError, match="a level that a vector does not have"):
        check_index_file(graph, "hnsw")
