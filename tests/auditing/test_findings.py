import pytest

from prime_xmc.auditing.findings import KINDS, SEVERITIES, Finding, by_severity


def test_every_kind_says_what_it_does_and_what_to_do():
    for name, kind in KINDS.items():
        assert kind.severity in SEVERITIES, name
        assert kind.effect.endswith("."), name
        assert kind.advice.endswith("."), name
        assert not kind.title.endswith("."), name


@pytest.mark.parametrize(
    ("count", "total", "expected"),
    [
        (1, 3, "1 of 3 (33.3 %)"),
        (1, 10_000, "1 of 10,000 (< 0.1 %)"),
        (1, 1, "yes"),
        (1500, 1500, "1,500 of 1,500 (100.0 %)"),
    ],
)
def test_amounts(count, total, expected):
    assert Finding("empty_query", "trn.json", count, total).amount() == expected


def test_the_worst_come_first():
    findings = [
        Finding("near_duplicate_query", "f", 9, 10),
        Finding("empty_query", "f", 1, 10),
        Finding("empty_label", "f", 2, 10),
        Finding("one_label", "f", 1, 1),
    ]
    assert [each.kind for each in by_severity(findings)] == [
        "one_label",
        "empty_label",
        "empty_query",
        "near_duplicate_query",
    ]
