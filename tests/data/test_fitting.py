import pytest

from prime_xmc.data import fitting
from prime_xmc.data.fitting import find_doubts, find_problems, fit, free_vectors, hold_out

KEYS = ("num_validation", "num_free_vectors", "batch_size", "initial_size")
NOTHING = dict.fromkeys(KEYS)


def values(num_queries, num_labels, **given):
    return {setting.key: setting.value for setting in fit(num_queries, num_labels, NOTHING | given)}


@pytest.mark.parametrize("num_queries", [3, 20, 49, 50, 120, 1200, 15_000, 10**6])
@pytest.mark.parametrize("num_labels", [1, 3, 30, 4000, 10**6])
def test_what_is_fitted_has_no_problem(num_queries, num_labels):
    found = values(num_queries, num_labels)
    validation, vectors, batch, cluster = (found[f"dataset.{key}"] for key in (*KEYS[:3], "clusters.initial_size"))
    arguments = {"num_validation": validation, "num_free_vectors": vectors}
    assert not find_problems(num_queries, num_labels, batch_size=batch, initial_size=cluster, **arguments)
    assert not find_doubts(num_queries, validation)
    assert validation <= num_queries // 10
    assert 16 * cluster <= max(batch, 16)


def test_large_data_get_what_lf_debian_18k_has():
    assert values(15_000, 17_953) == {
        "dataset.num_validation": 1000,
        "dataset.num_free_vectors": 4096,
        "dataset.batch_size": 512,
        "dataset.clusters.initial_size": 4,
    }


def test_what_is_given_stays_and_counts_for_the_rest():
    assert values(1200, 30, num_validation=0, batch_size=32) == {
        "dataset.num_free_vectors": 4,
        "dataset.clusters.initial_size": 2,
    }
    assert values(1200, 30, num_validation=1000)["dataset.batch_size"] == 16, "200 are left to train on"
    assert fit(1200, 30, dict.fromkeys(KEYS, 1)) == []


def test_each_comes_with_its_reason():
    shown = [str(setting) for setting in fit(1200, 30, NOTHING)]
    assert shown[0] == "dataset.num_validation=120 (a tenth of the 1,200 training queries, at most 1,000)"
    assert shown[2] == "dataset.batch_size=64 (17 steps an epoch from 1,080 queries)"
    assert "too few to hold some out" in str(fit(20, 3, NOTHING)[0])


def test_rules_by_hand():
    assert [hold_out(number) for number in (0, 49, 50, 9999, 10**6)] == [0, 0, 5, 999, 1000]
    assert [fitting.size_of_test_split(number) for number in (0, 3, 4, 5, 100, 10**6)] == [0, 0, 0, 1, 20, 2000]
    assert [free_vectors(number) for number in (1, 7, 8, 17_953, 10**9)] == [1, 1, 2, 4096, 131_072]


def test_problems_are_all_named():
    given = {"num_validation": 1000, "num_free_vectors": 4096, "batch_size": 0, "initial_size": 4}
    problems = find_problems(120, 30, **given, free_vectors_key="model.num_free_vectors")
    assert problems == [
        "expected dataset.num_validation below the 120 training queries, got 1000; "
        "dataset.num_validation=null takes 12 here",
        "expected model.num_free_vectors between 1 and the 30 labels, got 4096; "
        "model.num_free_vectors=null takes 4 here",
        "expected dataset.batch_size of at least 1, got 0",
    ]
    assert "at least 3 training queries, got 2" in find_problems(2, 30, **(given | {"num_validation": 0}))[0]


def test_holding_out_more_than_half_is_doubted():
    assert find_doubts(1200, 600) == []
    (doubt,) = find_doubts(1200, 1000)
    assert "num_validation=1,000 holds out more than half of the 1,200 training queries" in doubt
    assert "200 are left" in doubt


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "1,100 queries to train on, 100 held out, 30 labels, 9 steps an epoch, 4 epochs, 2 validations"),
        (
            {"num_test": 7, "num_epochs": 1},
            "100 held out, 7 to test on, 30 labels, 9 steps an epoch, 1 epoch, no valid",
        ),
        ({"num_held_out": 0, "steps_per_epoch": 1}, "0 held out, 30 labels, 1 step an epoch, 4 epochs, no validation"),
        ({"validate_every": None}, "4 epochs, no validation"),
    ],
)
def test_outlook(changes, line):
    sizes = {"num_trained": 1100, "num_held_out": 100, "num_test": 0, "num_labels": 30, "steps_per_epoch": 9}
    assert line in fitting.outlook(**(sizes | {"num_epochs": 4, "validate_every": 2} | changes))
