import csv
import io
import re

import pytest

from prime_xmc.reporting.tables import Cell, Table, make_tables, summary, to_csv, to_latex, to_markdown


@pytest.fixture
def tables(study) -> dict[str, Table]:
    return {table.name: table for table in make_tables(study)}


@pytest.fixture
def odd() -> Table:
    cell = Cell("12.34", "0.50", "better", best=True)
    rows = [(Cell("a_b|c & 50 % <i>"), cell), (Cell("–"), Cell("−1.00", mark="worse"))]
    return Table("odd", "Odd", "p < 0.05 ▲", ("name", "P@1"), rows, [{"name": 'say "hi", x', "P@1": 0.1234}])


def records(table):
    return list(csv.DictReader(io.StringIO(to_csv(table))))


def test_a_study_has_them_all(tables):
    assert list(tables) == [
        *("results", "comparison", "bins_P5", "bins_PSP5", "macro", "coverage", "cost"),
        *("differences", "examples", "runs", "unfinished"),
    ]
    for table in tables.values():
        assert {len(row) for row in table.rows} == {len(table.header)}
        assert len(records(table)) >= len(table.rows) - 1


def test_results_are_means_and_deviations_over_seeds(tables, study):
    mean, deviation = summary([run.metrics["test/P@5"] for run in study.runs.configurations[1].runs])
    row = next(row for row in tables["results"].rows if row[0].text == "batch_size=128")
    cell = row[tables["results"].header.index("P@5")]
    assert (cell.text, cell.deviation) == (f"{100 * mean:.2f}", f"{100 * deviation:.2f}")
    assert (cell.mark, cell.best) == ("better", True)
    (record,) = [
        r for r in records(tables["results"]) if (r["configuration"], r["metric"]) == ("batch_size=128", "P@5")
    ]
    assert float(record["mean"]) == pytest.approx(mean)
    assert float(record["sd"]) == pytest.approx(deviation)
    assert tables["results"].rows[0][0].text == "batch_size=64 (baseline)"


def test_one_seed_has_no_deviation():
    assert summary([0.25]) == (0.25, None)
    assert summary([0.0, 1.0]) == (0.5, pytest.approx(0.5**0.5))


def test_cost(tables):
    row = dict(zip(tables["cost"].header, tables["cost"].rows[1], strict=True))
    assert [row[name].text for name in ("negative pool", "epochs", "minutes", "peak GiB", "million parameters")] == [
        *("256", "2", "1.9", "1.00", "1.5")
    ]


def test_unfinished_runs_say_how_they_stand(tables):
    ((path, overrides, seed, status, epochs),) = tables["unfinished"].rows
    assert path.text.endswith("/10")
    assert (overrides.text, seed.text, epochs.text) == ("dataset=evil, loss.gamma_min=3", "7", "2")
    assert status.text == "failed: ValueError: <no>"


def test_markdown(odd):
    assert to_markdown(odd) == (
        "### Odd\n\np < 0.05 ▲\n\n"
        "| name | P@1 |\n| --- | ---: |\n"
        "| a\\_b\\|c & 50 % \\<i\\> | **12.34 ± 0.50** ▲ |\n"
        "| – | −1.00 ▼ |\n"
    )


def test_latex(odd):
    text = to_latex(odd)
    assert r"a\_b|c \& 50 \% \textless{}i\textgreater{} & \textbf{12.34} {\scriptsize $\pm$ 0.50}$^{+}$ \\" in text
    assert r"-- & $-$1.00$^{-}$ \\" in text
    assert r"\begin{tabular}{lr}" in text
    assert re.findall(r"\\(?:top|mid|bottom)rule", text) == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert r"\caption{p \textless{} 0.05 $^{+}$}" in text


def test_latex_of_a_study_is_ascii_and_its_groups_close(tables):
    for table in tables.values():
        text = to_latex(table)
        assert not set(re.findall(r"[^\x00-\x7f]", text)) - set("“”"), table.name
        bare = re.sub(r"\\[{}]", "", text)
        assert bare.count("{") == bare.count("}")
        body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
        assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {len(table.header) - 1}


def test_csv(odd):
    assert to_csv(odd) == 'name,P@1\n"say ""hi"", x",0.1234\n'
