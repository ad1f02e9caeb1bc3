from pathlib import Path

import numpy as np
import pytest

from prime_xmc.data.corpus import Ragged
from prime_xmc.evaluation.metrics import hits
from prime_xmc.reporting.ranks import are_ranks, load_ranks, name_of_ranks, ranks_of, save_ranks

POSITIVES = Ragged.from_rows([[7, 2], [], [4, 0, 9]], dtype=np.int32)


def padded(*rows):
    return np.array([[*row, *[-1] * (100 - len(row))] for row in rows], dtype=np.int32)


def test_ranks_are_those_of_the_positives_in_their_order():
    assert ranks_of(padded([2, 5, 7], [1, 3], [9, 8, 4]), POSITIVES).tolist() == [3, 1, 3, 0, 1]
    assert ranks_of(padded([5], [1], [3]), POSITIVES).tolist() == [0, 0, 0, 0, 0]


def test_what_is_beyond_the_hundredth_label_has_no_rank():
    assert ranks_of(np.arange(2, 122)[None].repeat(3, axis=0), Ragged.from_rows([[101, 102], [2], [121]])).tolist() == [
        *(100, 0, 1, 0)
    ]


def test_a_file_has_the_positives_at_their_ranks(tmp_path):
    path = tmp_path / "ranks_W.npz"
    predicted = padded([2, 5, 7], [1, 3], [9, 8, 4])
    save_ranks(path, ranks_of(predicted, POSITIVES), {"macro-P@1": 0.25, "coverage@5": 0.5})
    indices, macro = load_ranks(path, POSITIVES, ["coverage@5"])
    assert macro == {"coverage@5": 0.5}
    assert indices.shape == (3, 100)
    assert indices[:, :4].tolist() == [[2, -1, 7, -1], [-1, -1, -1, -1], [9, -1, 4, -1]]
    assert (hits(indices, POSITIVES) == hits(predicted, POSITIVES)).all()


def test_random_rankings_are_kept(tmp_path):
    rng = np.random.default_rng(0)
    positives = Ragged.from_rows([rng.choice(300, size=rng.integers(0, 9), replace=False) for _ in range(200)])
    predicted = np.stack([rng.permutation(300)[:100] for _ in range(200)])
    save_ranks(tmp_path / "ranks.npz", ranks_of(predicted, positives), {"coverage@5": 1.0})
    indices, _ = load_ranks(tmp_path / "ranks.npz", positives, [])
    assert (indices == np.where(hits(predicted, positives), predicted, -1)).all()


def test_names():
    assert [name_of_ranks(f"predictions{scorer}.npz") for scorer in ("", "_W")] == ["ranks.npz", "ranks_W.npz"]
    assert [are_ranks(Path("ranks", name)) for name in ("ranks_W.npz", "predictions_W.npz")] == [True, False]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"ranks": np.zeros(4, np.uint8)}, "ranks of 4 positives, but the test split has 5"),
        ({"ranks": np.array([1, 1, 0, 0, 0], np.uint8)}, "two labels of a query at one rank"),
        ({"ranks": np.array([101, 0, 0, 0, 0], np.uint8)}, "a rank beyond 100"),
        ({"ranks": np.zeros(5)}, r"holds the arrays \['names', 'ranks', 'values'\]; expected the file of ranks"),
        ({"values": np.array([np.nan])}, "coverage@5 is nan, expected a fraction"),
        ({"names": np.array(["other"])}, "coverage@5 is None, expected a fraction"),
        ({"names": np.array(["coverage@5", "b"])}, "holds the arrays"),
        ({"names": np.array(["coverage@5"], dtype=object)}, "not readable"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, arrays, message):
    path = tmp_path / "ranks.npz"
    whole = {"ranks": np.zeros(5, np.uint8), "names": np.array(["coverage@5"]), "values": np.array([0.5])}
    np.savez(path, **(whole | arrays))
    with pytest.raises(ValueError, match=rf"{path}: .*{message}"):
        load_ranks(path, POSITIVES, ["coverage@5"])
