"""Settings that follow the size of the data: what they are, why, and which given ones cannot work."""

from collections.abc import Mapping
from typing import NamedTuple

_LARGEST_HOLD_OUT = 1000  # enough for a standard error of P@1 below 1.6 points
_SMALLEST_HOLD_OUT = 5  # below that, validation says nothing
_LARGEST_TEST = 2000
_LARGEST_BATCH, _SMALLEST_BATCH = 512, 16
_STEPS_PER_EPOCH = 16  # to aim at where the data are too few for the largest batch
_LARGEST_CLUSTER = 4
_CLUSTERS_PER_BATCH = 16
_LEAST_QUERIES = 3  # below that the logarithm in the inverse propensity makes it negative


class Setting(NamedTuple):
    """A setting that follows the size of the data.

    Attributes:
        key: Its dotted key.
        value: Its value.
        reason: The rule that it comes from, for people.
    """

    key: str
    value: int
    reason: str

    def __str__(self) -> str:
        return f"{self.key}={self.value} ({self.reason})"


def fit(num_queries: int, num_labels: int, given: Mapping[str, int | None]) -> list[Setting]:
    """Return a setting for each key of `dataset` that is None.

    Args:
        num_queries: Number of training queries, those to be held out included.
        num_labels: L.
        given: Values of `num_validation`, `num_free_vectors`, `batch_size` and `initial_size`; None: to be found.

    Example:
        >>> keys = ("num_validation", "num_free_vectors", "batch_size", "initial_size")
        >>> [setting.value for setting in fit(1200, 3451, dict.fromkeys(keys))]
        [120, 512, 64, 4]
        >>> [setting.value for setting in fit(20, 3, dict.fromkeys(keys))]
        [0, 1, 16, 1]
    """
    settings = []
    num_validation, batch_size = given["num_validation"], given["batch_size"]
    if num_validation is None:
        num_validation = hold_out(num_queries)
        reason = (
            f"a tenth of the {num_queries:,} training queries, at most {_LARGEST_HOLD_OUT:,}"
            if num_validation
            else f"{num_queries:,} training queries are too few to hold some out for validation"
        )
        settings.append(Setting("dataset.num_validation", num_validation, reason))
    if given["num_free_vectors"] is None:
        reason = f"a power of two, at most a quarter of the {num_labels:,} labels"
        settings.append(Setting("dataset.num_free_vectors", free_vectors(num_labels), reason))
    if batch_size is None:
        num_trained = max(0, num_queries - num_validation)
        batch_size = _power_of_two(num_trained // _STEPS_PER_EPOCH, _SMALLEST_BATCH, _LARGEST_BATCH)
        reason = f"{_counted(-(-num_trained // batch_size), 'step')} an epoch from {num_trained:,} queries"
        settings.append(Setting("dataset.batch_size", batch_size, reason))
    if given["initial_size"] is None:
        size = _power_of_two(batch_size // _CLUSTERS_PER_BATCH, 1, _LARGEST_CLUSTER)
        reason = f"a batch of {batch_size:,} has at least {batch_size // size:,} clusters"
        settings.append(Setting("dataset.clusters.initial_size", size, reason))
    return settings


def hold_out(num_queries: int) -> int:
    """Return the number of training queries to hold out for validation: a tenth, at most 1,000, or none of a few."""
    size = min(_LARGEST_HOLD_OUT, num_queries // 10)
    return size if size >= _SMALLEST_HOLD_OUT else 0


def size_of_test_split(num_queries: int) -> int:
    """Return the number of queries to split off for testing: a fifth, at most 2,000, and at least 3 are left."""
    return max(0, min(_LARGEST_TEST, num_queries // 5, num_queries - _LEAST_QUERIES))


def free_vectors(num_labels: int) -> int:
    """Return a number of free vectors: the largest power of two up to a quarter of the labels, at most 131,072.

    Example:
        >>> free_vectors(20_000), free_vectors(1_300_000), free_vectors(3)
        (4096, 131072, 1)

    Source: Table 10 has 131,072 at 1.3 million labels.
    """
    return _power_of_two(num_labels // 4, 1, 131_072)


def find_problems(
    num_queries: int,
    num_labels: int,
    *,
    num_validation: int,
    num_free_vectors: int | None,
    batch_size: int,
    initial_size: int,
    free_vectors_key: str = "dataset.num_free_vectors",
    batch_size_key: str = "dataset.batch_size",
) -> list[str]:
    """Return what is wrong with settings for data of a size, a line each, with the key and what to do.

    Args:
        num_queries: Number of training queries, those to be held out included.
        num_labels: L.
        num_validation: Queries held out.
        num_free_vectors: F; None: not of interest.
        batch_size: Queries in a batch.
        initial_size: Queries in a cluster at first.
        free_vectors_key: Key by which `num_free_vectors` was given.
        batch_size_key: Key by which `batch_size` was given.
    """
    problems = []
    if num_queries < _LEAST_QUERIES:
        problems.append(
            f"expected at least {_LEAST_QUERIES} training queries, got {num_queries}: with fewer there is no "
            "propensity of a label"
        )
    if not 0 <= num_validation < max(num_queries, 1):
        problems.append(
            f"expected dataset.num_validation below the {num_queries} training queries, got {num_validation}; "
            f"{_advice('dataset.num_validation', hold_out(num_queries))}"
        )
    if num_free_vectors is not None and not 1 <= num_free_vectors <= num_labels:
        problems.append(
            f"expected {free_vectors_key} between 1 and the {num_labels} labels, got {num_free_vectors}; "
            f"{_advice(free_vectors_key, free_vectors(num_labels))}"
        )
    for key, value in ((batch_size_key, batch_size), ("sampling.clusters.initial_size", initial_size)):
        if value < 1:
            problems.append(f"expected {key} of at least 1, got {value}")
    return problems


def find_faults(num_pairs: int, num_labels: int) -> list[str]:
    """Return why training on some data makes no sense whatever the settings, a sentence each.

    Args:
        num_pairs: Pairs of a training query and a label.
        num_labels: L.

    Example:
        >>> find_faults(120, 30), len(find_faults(0, 1))
        ([], 2)
    """
    faults = []
    if num_pairs == 0:
        faults.append("no training query has a label, so that there is nothing to learn from: check target_ind")
    if num_labels < 2:
        faults.append(f"expected at least 2 labels, got {num_labels}: there is nothing to rank")
    return faults


def find_doubts(num_queries: int, num_validation: int) -> list[str]:
    """Return what works but is hardly meant, a sentence each."""
    if num_queries // 2 < num_validation < num_queries:
        return [
            f"dataset.num_validation={num_validation:,} holds out more than half of the {num_queries:,} training "
            f"queries, so that {num_queries - num_validation:,} are left to train on; "
            f"{_advice('dataset.num_validation', hold_out(num_queries))}"
        ]
    return []


def outlook(
    *,
    num_trained: int,
    num_held_out: int,
    num_test: int,
    num_labels: int,
    steps_per_epoch: int,
    num_epochs: int,
    validate_every: int | None,
) -> str:
    """Return a line that says what a training is about to do.

    Args:
        num_trained: Number of queries that are trained on.
        num_held_out: Number of validation queries.
        num_test: Number of test queries; 0: none are ranked.
        num_labels: L.
        steps_per_epoch: Number of batches of an epoch.
        num_epochs: Number of epochs.
        validate_every: Number of epochs between validations; None: not by epochs.

    Example:
        >>> sizes = {"num_trained": 1100, "num_held_out": 100, "num_test": 0, "num_labels": 30}
        >>> outlook(**sizes, steps_per_epoch=9, num_epochs=4, validate_every=2)
        '1,100 queries to train on, 100 held out, 30 labels, 9 steps an epoch, 4 epochs, 2 validations'
    """
    num_validations = num_epochs // validate_every if num_held_out and validate_every else 0
    parts = [
        f"{num_trained:,} queries to train on",
        f"{num_held_out:,} held out",
        *([f"{num_test:,} to test on"] if num_test else []),
        f"{num_labels:,} labels",
        f"{_counted(steps_per_epoch, 'step')} an epoch",
        _counted(num_epochs, "epoch"),
        _counted(num_validations, "validation") if num_validations else "no validation",
    ]
    return ", ".join(parts)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _advice(key: str, value: int) -> str:
    return f"{key}=null takes {value:,} here"


def _power_of_two(number: int, least: int, most: int) -> int:
    """Return the largest power of two up to a number, within bounds that are powers of two themselves."""
    return min(most, max(least, 1 << max(number, 1).bit_length() - 1))
