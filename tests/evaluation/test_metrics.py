import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from prime_xmc.data.corpus import Ragged
from prime_xmc.evaluation import metrics
from prime_xmc.evaluation.metrics import (
    METRICS,
    SHOWN,
    TOP_K,
    best_weights,
    evaluate,
    hits,
    metric_parts,
    ndcg_at_k,
    precision_at_k,
    psndcg_at_k,
    psp_at_k,
    recall_at_k,
)
from prime_xmc.evaluation.rank import remove_filtered
from prime_xmc.evaluation.table import format_table

FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "xc_metrics.json").read_text())
PROPENSITIES = ("A=0.55,B=1.5", "A=0.6,B=2.6", "A=0.5,B=0.4")


def ragged(rows):
    return Ragged.from_rows(rows, dtype=np.int32)


def quotient(parts):
    numerator, denominator = parts.sum(axis=0)
    return numerator / denominator


def oracle(indices, rows, weight):
    """Every metric by loops over queries and ranks."""

    def dcg(gains):
        return sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains))

    n = len(rows)
    result = {}
    for name in METRICS:
        kind, k = name.split("@")
        k = int(k)
        top, bottom = 0.0, 0.0
        for predicted, truth in zip(indices, rows, strict=True):
            hit = [float(label in truth) for label in predicted[:k]]
            gain = [weight[label] if label in truth else 0.0 for label in predicted[:k]]
            best = sorted((weight[label] for label in truth), reverse=True)[:k]
            ideal = dcg([1.0] * min(k, len(truth))) or 1.0
            if kind == "P":
                top, bottom = top + sum(hit) / k, n
            elif kind == "R":
                top, bottom = top + sum(hit) / max(len(truth), 1), n
            elif kind == "nDCG":
                top, bottom = top + dcg(hit) / ideal, n
            elif kind == "PSP":
                top, bottom = top + sum(gain), bottom + sum(best)
            elif kind == "PSnDCG":
                top, bottom = top + dcg(gain) / ideal, bottom + dcg(best) / ideal
        result[name] = top / bottom if bottom else 0.0
    return result


def random_problem(seed, num_queries, num_labels, width, longest=7):
    """Predictions in no order of any use, some rows short, some queries without positives."""
    rng = np.random.default_rng(seed)
    indices = np.stack([rng.permutation(num_labels)[:width] for _ in range(num_queries)])
    ends = rng.integers(0, 2 * width, size=num_queries)
    indices[np.arange(width) >= ends[:, None]] = -1
    rows = [
        np.sort(rng.choice(num_labels, size=rng.integers(0, min(longest, num_labels) + 1), replace=False)).tolist()
        for _ in range(num_queries)
    ]
    return indices, rows, 1 + 5 * rng.random(num_labels)


class TestFixture:
    """Values of pyxclib, the field's own library, on a random problem."""

    indices = np.array(FIXTURE["pred_indices"])
    positives = ragged(FIXTURE["test_labels"])

    def test_precision_ndcg_recall_at_every_k(self):
        hit = hits(self.indices, self.positives)
        expected = FIXTURE["expected"]
        for k, value in enumerate(expected["precision"], start=1):
            assert quotient(precision_at_k(hit, k)) == pytest.approx(value, abs=1e-6)
        for k, value in enumerate(expected["ndcg"], start=1):
            assert quotient(ndcg_at_k(hit, self.positives.lengths, k)) == pytest.approx(value, abs=1e-6)
        for k, value in enumerate(expected["recall"], start=1):
            assert quotient(recall_at_k(hit, self.positives.lengths, k)) == pytest.approx(value, abs=1e-6)

    @pytest.mark.parametrize("constants", PROPENSITIES)
    def test_propensity_scored_at_every_k(self, constants):
        expected = FIXTURE["expected"][constants]
        weight = np.array(expected["inverse_propensity"])
        hit_weight = hits(self.indices, self.positives) * weight[self.indices]
        best = best_weights(self.positives, weight, 5)
        for k, value in enumerate(expected["psprecision"], start=1):
            assert quotient(psp_at_k(hit_weight, best, k)) == pytest.approx(value, abs=1e-6)
        for k, value in enumerate(expected["psndcg"], start=1):
            assert quotient(psndcg_at_k(hit_weight, best, self.positives.lengths, k)) == pytest.approx(value, abs=1e-6)

    @pytest.mark.parametrize("constants", PROPENSITIES)
    def test_evaluate(self, constants):
        expected = FIXTURE["expected"]
        names = {
            "P": expected["precision"],
            "nDCG": expected["ndcg"],
            "PSP": expected[constants]["psprecision"],
            "PSnDCG": expected[constants]["psndcg"],
            "R": expected["recall"],
        }
        # The fixture's 20 columns, then padding: what comes after does not touch k <= 10.
        padded = np.pad(self.indices, ((0, 0), (0, 80)), constant_values=-1)
        result = evaluate(padded, self.positives, np.array(expected[constants]["inverse_propensity"]))
        assert tuple(result) == METRICS
        for name in METRICS[:-1]:
            kind, k = name.split("@")
            assert result[name] == pytest.approx(names[kind][int(k) - 1], abs=1e-6), name


class TestHits:
    def test_by_hand(self):
        indices = np.array([[3, 0, 2], [5, 4, -1], [0, 1, 2], [-1, -1, -1]])
        positives = ragged([[0, 2], [3, 5], [], [5]])
        expected = [[False, True, True], [True, False, False], [False] * 3, [False] * 3]
        assert hits(indices, positives).tolist() == expected

    def test_a_label_beyond_every_prediction_is_found_in_no_row(self):
        assert not hits(np.array([[0, 1], [0, 1]]), ragged([[9], [9]])).any()

    def test_ids_of_int32_do_not_overflow(self):
        largest = np.iinfo(np.int32).max - 1
        indices = np.array([[0, largest]] * 3000, dtype=np.int32)
        assert hits(indices, ragged([[largest]] * 3000)).tolist() == [[False, True]] * 3000

    def test_no_queries_and_no_columns(self):
        assert hits(np.zeros((0, 5), dtype=np.int64), ragged([])).shape == (0, 5)
        assert hits(np.zeros((2, 0), dtype=np.int64), ragged([[1], []])).shape == (2, 0)

    def test_arguments_stay_as_they_are(self):
        indices = np.array([[3, 0, 2]])
        hits(indices, ragged([[0]]))
        assert indices.tolist() == [[3, 0, 2]]

    def test_duplicate_names_row_and_label(self):
        indices = np.tile(np.arange(4), (3000, 1))
        indices[2500] = [7, 1, 7, 0]
        with pytest.raises(ValueError, match=r"row 2500 .* label 7 more than once"):
            hits(indices, ragged([[]] * 3000))

    def test_other_number_of_queries(self):
        with pytest.raises(ValueError, match="predictions for 2 queries, but there are 3 queries"):
            hits(np.zeros((2, 1), dtype=np.int64), ragged([[], [], []]))

    @given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 30), st.integers(1, 40))
    @settings(max_examples=60, deadline=None)
    def test_equals_membership(self, seed, num_queries, num_labels, width):
        indices, rows, _ = random_problem(seed, num_queries, num_labels, min(width, num_labels))
        expected = [[label in row for label in predicted] for predicted, row in zip(indices, rows, strict=True)]
        assert hits(indices, ragged(rows)).tolist() == expected


class TestRemoveFiltered:
    def test_by_hand(self):
        indices = np.array([[4, 2, 7, 1], [5, 6, 0, 3], [8, 9, -1, -1]])
        scores = np.array(
            [[0.9, 0.8, -0.1, -0.2], [0.4, 0.3, 0.2, 0.1], [0.5, 0.4, -np.inf, -np.inf]], dtype=np.float32
        )
        top, top_scores = remove_filtered(indices, scores, ragged([[2, 4], [], [9]]), k=2)
        assert top.tolist() == [[7, 1], [5, 6], [8, -1]]
        assert top_scores.tolist() == [
            [pytest.approx(-0.1), pytest.approx(-0.2)],
            pytest.approx([0.4, 0.3]),
            [0.5, -np.inf],
        ]
        assert top_scores.dtype == np.float32

    def test_a_row_never_comes_back_short_in_silence(self):
        indices, scores = np.array([[4, 2, 7]]), np.zeros((1, 3), dtype=np.float32)
        with pytest.raises(ValueError, match=r"row 0 keeps 1 of its 3 labels, expected 2: .* = 4 labels"):
            remove_filtered(indices, scores, ragged([[2, 4]]), k=2)
        with pytest.raises(ValueError, match="row 0 keeps 3 of its 3 labels, expected 5"):
            remove_filtered(indices, scores, ragged([[]]), k=5)

    def test_no_queries(self):
        top, scores = remove_filtered(
            np.zeros((0, 3), dtype=np.int64), np.zeros((0, 3), dtype=np.float32), ragged([]), k=2
        )
        assert top.shape == scores.shape == (0, 2)

    @given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 20), st.integers(1, 25))
    @settings(max_examples=60, deadline=None)
    def test_equals_a_loop(self, seed, num_queries, num_labels, k):
        indices, filtered, _ = random_problem(seed, num_queries, num_labels, num_labels)
        indices = np.pad(indices, ((0, 0), (0, 1)), constant_values=-1)
        scores = np.random.default_rng(seed).normal(size=indices.shape).astype(np.float32)
        top, top_scores = remove_filtered(indices, scores, ragged(filtered), k)
        for row in range(num_queries):
            kept = [
                (label, score)
                for label, score in zip(indices[row], scores[row], strict=True)
                if label >= 0 and label not in filtered[row]
            ]
            kept = (kept + [(-1, -np.inf)] * k)[:k]
            assert list(zip(top[row], top_scores[row], strict=True)) == kept


class TestByHand:
    """Two queries, one of them without a positive; weights 1, 2, 3, 4."""

    indices = np.array([[1, 0, 3, 2], [0, 1, 2, 3]])
    positives = ragged([[0, 3], []])
    weight = np.array([1.0, 2.0, 3.0, 4.0])

    def test_evaluate(self):
        result = evaluate(self.indices, self.positives, self.weight)
        log3 = math.log2(3)
        ideal = 1 + 1 / log3  # two positives
        assert result["P@1"] == 0
        assert result["P@2"] == 1 / 4
        assert result["P@3"] == pytest.approx(2 / 6)
        assert result["P@5"] == 2 / 10  # a row of four still divides by five
        assert result["nDCG@3"] == pytest.approx((1 / log3 + 1 / 2) / ideal / 2)
        assert result["PSP@1"] == 0
        assert result["PSP@3"] == 1  # both found; best attainable 1 + 4
        assert result["PSnDCG@3"] == pytest.approx((1 / log3 + 4 / 2) / (4 + 1 / log3))
        assert result["R@10"] == result["R@100"] == 1 / 2

    def test_parts_of_each_query(self):
        parts = dict(metric_parts(self.indices, self.positives, self.weight))
        assert tuple(parts) == METRICS
        assert parts["P@3"].tolist() == [[2, 3], [0, 3]]
        assert parts["R@100"].tolist() == [[1, 1], [0, 1]]
        assert parts["PSP@1"].tolist() == [[0, 4], [0, 0]]  # attainable, missed; nothing to attain

    def test_psp_divides_sums_not_ratios(self):
        hit_weight, best = np.array([[1.0], [0.0]]), np.array([[1.0], [9.0]])
        assert quotient(psp_at_k(hit_weight, best, 1)) == 1 / 10  # a mean of ratios would say 1/2

    def test_best_weights(self):
        best = best_weights(ragged([[0, 1, 3], [], [2]]), self.weight, 2)
        assert best.tolist() == [[4, 2], [0, 0], [3, 0]]

    def test_propensity_of_padding_never_counts(self):
        padded = np.full((2, 4), -1)
        assert set(evaluate(padded, ragged([[3], [3]]), self.weight).values()) == {0.0}


class TestEvaluate:
    @given(st.integers(0, 2**32 - 1), st.integers(1, 10), st.integers(1, 130))
    @settings(max_examples=60, deadline=None)
    def test_equals_the_oracle(self, seed, num_queries, num_labels):
        indices, rows, weight = random_problem(seed, num_queries, num_labels, num_labels)
        result = evaluate(indices, ragged(rows), weight)
        expected = oracle(indices[:, :100].tolist(), rows, weight) if any(rows) else {}
        assert result == pytest.approx(expected, abs=1e-12)
        assert all(type(value) is float and 0 <= value <= 1 for value in result.values())

    def test_perfect_ranking_is_one(self):
        rows = [[0, 2, 5], [1], list(range(6))]
        weight = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        indices = np.array([[5, 2, 0, 1, 3, 4], [1, 0, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])
        result = evaluate(indices, ragged(rows), weight)
        for name in METRICS:
            if not name.startswith("P@"):
                assert result[name] == pytest.approx(1.0), name

    def test_does_not_depend_on_the_chunk(self, monkeypatch):
        indices, rows, weight = random_problem(3, 50, 110, 100)
        whole = evaluate(indices, ragged(rows), weight)
        monkeypatch.setattr(metrics, "_CHUNK", 7)
        assert evaluate(indices, ragged(rows), weight) == whole

    def test_int32_ids_as_in_a_file(self):
        indices, rows, weight = random_problem(4, 20, 110, 100)
        assert evaluate(indices.astype(np.int32), ragged(rows), weight) == evaluate(indices, ragged(rows), weight)

    @pytest.mark.parametrize("num_queries", [0, 2])
    def test_without_any_label_there_are_no_metrics(self, num_queries):
        """A 0 would look like a measurement."""
        indices = np.tile(np.arange(3), (num_queries, 1))
        assert evaluate(indices, ragged([[]] * num_queries), np.ones(3)) == {}

    def test_a_query_without_labels_counts_as_a_miss_where_others_have_some(self):
        assert evaluate(np.array([[0], [0]]), ragged([[0], []]), np.ones(1))["P@1"] == 0.5

    def test_one_number_says_how_deep_is_looked(self):
        assert METRICS[-1] == SHOWN[-1] == f"R@{TOP_K}"

    def test_too_few_columns(self):
        with pytest.raises(ValueError, match="predictions have 99 labels per query, expected at least 100"):
            evaluate(np.zeros((1, 99), dtype=np.int64), ragged([[0]]), np.ones(200))
        with pytest.raises(ValueError, match="predictions have 3 labels per query, expected at least 4"):
            evaluate(np.zeros((1, 3), dtype=np.int64), ragged([[0]]), np.ones(4))

    @pytest.mark.parametrize("wrong", [4, -2])
    def test_label_out_of_range(self, wrong):
        indices = np.array([[0, 1, 2, 3], [3, 2, wrong, 0]])
        with pytest.raises(ValueError, match=f"row 1 of the predictions holds label {wrong}, expected 0 to 3"):
            evaluate(indices, ragged([[0], [0]]), np.ones(4))

    def test_duplicate(self):
        with pytest.raises(ValueError, match="row 1 of the predictions holds label 2 more than once"):
            evaluate(np.array([[0, 1, 2], [2, 1, 2]]), ragged([[0], [0]]), np.ones(3))


class TestFormatTable:
    def render(self, methods):
        console = Console(width=120, force_terminal=True, color_system=None, no_color=True)
        with console.capture() as capture:
            console.print(format_table(methods))
        return capture.get()

    def test_percent_and_a_dash_for_what_is_missing(self):
        text = self.render({"ours": dict.fromkeys(METRICS, 0.71349), "paper [12]": {"P@1": 0.5}})
        ours, paper = (next(line for line in text.splitlines() if name in line) for name in ("ours", "paper [12]"))
        assert ours.count("71.35") == 9
        assert "50.00" in paper
        assert paper.count("–") == 8

    def test_the_best_of_each_column_is_bold(self):
        table = format_table({"a": {"P@1": 0.2, "P@3": 0.1}, "b": {"P@1": 0.1, "P@3": 0.1}})
        cells = {str(column.header): [cell.style for cell in column.cells] for column in table.columns}
        assert cells["P@1"] == ["bold", ""]
        assert cells["P@3"] == ["bold", "bold"]

    def test_one_method_is_plain_and_none_is_an_empty_table(self):
        assert [cell.style for cell in format_table({"a": {"P@1": 0.2}}).columns[1].cells] == [""]
        assert format_table({}).row_count == 0

    def test_escapes_in_a_name_are_shown(self):
        (cell,) = format_table({"a\x1b[31m": {"P@1": 0.2}}).columns[0].cells
        assert cell.plain == "a\\x1b[31m"
