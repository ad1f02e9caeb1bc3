"""Each method against dense linear algebra, which solves the same problem in another way."""

from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp

from prime_xmc.baselines.features import TfIdf
from prime_xmc.baselines.low_rank import LowRank, cplst, leml, occa, plst, svd

RIDGE = 0.7


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(0).standard_normal((60, 12))


@pytest.fixture(scope="module")
def labels():
    return sp.csr_matrix((np.random.default_rng(1).random((60, 20)) < 0.2).astype(np.float32))


def dense(rows, labels):
    """X, Y less its means, the means, and H."""
    targets = labels.toarray().astype(np.float64)
    mean = targets.mean(axis=0)
    hat = rows @ np.linalg.inv(rows.T @ rows + RIDGE * np.eye(rows.shape[1])) @ rows.T
    return targets - mean, mean, hat


def scores(codes, rows):
    return rows @ codes.weights @ codes.decoder.T + codes.mean


def test_plst_is_the_projected_regression_on_principal_components(rows, labels):
    centred, mean, hat = dense(rows, labels)
    v = np.linalg.svd(centred)[2][:5].T
    codes = plst(rows, labels, rank=5, ridge=RIDGE)
    assert scores(codes, rows) == pytest.approx(hat @ centred @ v @ v.T + mean, abs=1e-5)
    assert codes.decoder.T @ codes.decoder == pytest.approx(np.eye(5), abs=1e-6)


def test_svd_does_not_centre(rows, labels):
    targets, (_, _, hat) = labels.toarray(), dense(rows, labels)
    v = np.linalg.svd(targets)[2][:5].T
    assert scores(svd(rows, labels, rank=5, ridge=RIDGE), rows) == pytest.approx(hat @ targets @ v @ v.T, abs=1e-5)


def test_plst_with_fewer_queries_than_labels(rows, labels):
    few = slice(0, labels.shape[1] - 5)
    codes = plst(rows[few], labels[few], rank=5, ridge=RIDGE)
    centred = labels[few].toarray() - codes.mean
    values = np.linalg.svd(centred, compute_uv=False)
    found = np.linalg.norm(centred @ codes.decoder, axis=0)
    assert sorted(found, reverse=True) == pytest.approx(values[:5], rel=1e-4)


def test_cplst_has_the_largest_eigenvectors_of_what_is_predicted(rows, labels):
    centred, mean, hat = dense(rows, labels)
    v = np.linalg.eigh(centred.T @ hat @ centred)[1][:, -5:]
    codes = cplst(rows, labels, rank=5, ridge=RIDGE)
    assert scores(codes, rows) == pytest.approx(hat @ centred @ v @ v.T + mean, abs=1e-6)


def test_cplst_explains_at_least_as_much_of_the_prediction_as_plst(rows, labels):
    centred, _, hat = dense(rows, labels)
    explained = [
        np.trace(codes.decoder.T @ centred.T @ hat @ centred @ codes.decoder)
        for codes in (method(rows, labels, rank=3, ridge=RIDGE) for method in (cplst, plst))
    ]
    assert explained[0] > explained[1]


@pytest.mark.parametrize("rank", [5, 3])  # by a complete decomposition, and by the iteration
def test_occa_has_the_directions_of_the_least_error(rows, labels, rank):
    centred, mean, hat = dense(rows, labels)
    v = np.linalg.eigh(centred.T @ (hat - np.eye(60)) @ centred)[1][:, -rank:]
    codes = occa(rows, labels, rank=rank, ridge=RIDGE)
    assert codes.decoder @ codes.decoder.T == pytest.approx(v @ v.T, abs=2e-2)
    assert scores(codes, rows) == pytest.approx(hat @ centred @ v @ v.T + mean, abs=2e-2)


def objective(codes, rows, labels):
    error = labels.toarray() - rows @ codes.weights @ codes.decoder.T
    return (error**2).sum() + RIDGE * ((codes.weights**2).sum() + (codes.decoder**2).sum())


def test_leml_is_at_a_stationary_point_of_its_objective(rows, labels):
    codes = leml(rows, labels, rank=4, ridge=RIDGE, rounds=500)
    error = rows @ codes.weights @ codes.decoder.T - labels.toarray()
    assert rows.T @ error @ codes.decoder + RIDGE * codes.weights == pytest.approx(0, abs=1e-3)
    assert error.T @ rows @ codes.weights + RIDGE * codes.decoder == pytest.approx(0, abs=1e-3)


def test_each_round_of_leml_lowers_the_objective(rows, labels):
    values = [objective(leml(rows, labels, rank=4, ridge=RIDGE, rounds=n), rows, labels) for n in (1, 2, 3, 4, 10)]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1] + 1


def test_a_step_of_leml_for_w_solves_the_dense_system(rows, labels):
    """W of one round solves (V'V kron X'X + lambda I) vec(W) = vec(X'YV)."""
    codes = leml(rows, labels, rank=3, ridge=RIDGE, rounds=1)
    v, x, y = codes.decoder, rows, labels.toarray().astype(np.float64)
    system = np.kron(v.T @ v, x.T @ x) + RIDGE * np.eye(36)
    solved = np.linalg.solve(system, (x.T @ y @ v).ravel(order="F")).reshape(12, 3, order="F")
    assert codes.weights == pytest.approx(solved, abs=1e-8)


def test_full_rank_is_plain_ridge_regression(rows, labels):
    centred, mean, hat = dense(rows, labels)
    expected = hat @ centred + mean
    few = sp.csr_matrix(labels[:, :12])
    assert scores(cplst(rows, few, rank=11, ridge=RIDGE), rows) == pytest.approx(expected[:, :12], abs=0.02)
    assert scores(plst(rows, labels, rank=19, ridge=RIDGE), rows) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("method", [plst, cplst, occa, svd, leml])
def test_mistaken_settings_are_refused(method, rows, labels):
    with pytest.raises(
        ValueError, match=r"method\.fit\.rank=20: expected 1 to 19, fewer than the .*give method\.fit\.rank=19"
    ):
        method(rows, labels, rank=20, ridge=RIDGE)
    with pytest.raises(ValueError, match=r"method\.fit\.ridge=0: expected a number above 0"):
        method(rows, labels, rank=2, ridge=0)


def test_rank_of_cplst_is_at_most_the_dimension(rows, labels):
    with pytest.raises(
        ValueError, match=r"method\.fit\.rank=13: expected at most the 12 dimensions of the vectors, method\.d"
    ):
        cplst(rows, labels, rank=13, ridge=RIDGE)


@pytest.mark.parametrize("fit", [plst, cplst, svd, leml])
@pytest.mark.parametrize("label_texts", [True, False])
def test_methods_find_the_labels_of_texts(words, asked, expected, fit, label_texts):
    method = LowRank(partial(fit, rank=9, ridge=0.1), TfIdf(ngrams=(1, 1)), dimension=10, label_texts=label_texts)
    outcome = method.rank(words, {"test": asked}, 2)
    assert [{*row} for row in outcome.rankings["test"][0].tolist()] == expected
    # W of 10 terms, V of 10 labels, the means, and the terms themselves
    numbers = 10 * 9 + 10 * 9 + 10 + 10
    assert outcome.cost.model_bytes == 4 * numbers + sum(map(len, words.labels.strings))
