import csv
import io
import json
from dataclasses import replace

import pytest

from prime_xmc.reporting.formats import to_csv
from prime_xmc.reporting.published import PublishedResult
from prime_xmc.reporting.statistics import summary
from prime_xmc.reporting.tables import Cell, Table, across, make_tables


@pytest.fixture
def tables(study) -> dict[str, Table]:
    return {table.name: table for table in make_tables(study)}


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


def test_seeds_are_those_that_have_the_metric(runs_dir, study_of):
    path = runs_dir / "1" / "metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps(metrics | {"test/P@1": None}))
    (results, *_) = make_tables(study_of(runs_dir))
    assert [row[1].text for row in results.rows] == ["2 to 3", "3"]


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


def test_data_sets_stand_side_by_side(study, tables):
    """The second data set has the second configuration of the first, with the same values, and one of its own."""
    shared, own = study.runs.configurations[1], replace(study.runs.configurations[0], name="own")
    other = replace(study, comparisons={}, runs=replace(study.runs, name="other", configurations=(shared, own)))
    table = across([study, other])
    assert table.header == (
        *("configuration", "evil: P@1", "evil: PSP@5", "evil: R@100"),
        *("other: P@1", "other: PSP@5", "other: R@100"),
    )
    rows = {row[0].text: row[1:] for row in table.rows}
    assert list(rows) == ["batch_size=64 (baseline)", "batch_size=128", "own"]
    results = {row[0].text: dict(zip(tables["results"].header, row, strict=True)) for row in tables["results"].rows}
    assert rows["batch_size=128"][:3] == tuple(results["batch_size=128"][name] for name in ("P@1", "PSP@5", "R@100"))
    assert [cell.mark for cell in rows["batch_size=128"]][3:] == ["", "", ""], "there, nothing was compared"
    assert rows["batch_size=128"][3].text == rows["batch_size=128"][0].text
    assert rows["batch_size=64 (baseline)"][3:] == rows["own"][:3] == (Cell("–"), Cell("–"), Cell("–"))
    assert rows["own"][3].text == rows["batch_size=64 (baseline)"][0].text
    assert "than those of “batch_size=64” on the same data set (paired" in table.caption
    assert "; other: not tested." in table.caption
    assert len(records(table)) == 4 * 3
    mean, _ = summary([run.metrics["test/PSP@5"] for run in shared.runs])
    found = [r for r in records(table) if (r["configuration"], r["metric"]) == (shared.name, "PSP@5")]
    assert [(r["dataset"], float(r["mean"]), r["seeds"]) for r in found] == [
        ("evil", pytest.approx(mean), "3"),
        ("other", pytest.approx(mean), "3"),
    ]


def test_each_data_set_has_its_own_baseline(study):
    """Side by side, no row is the baseline of all then."""
    other = replace(study, baseline=study.runs.configurations[1], runs=replace(study.runs, name="other"))
    table = across([study, other])
    assert [row[0].text for row in table.rows] == ["batch_size=64", "batch_size=128"]
    assert "than those of the baseline of the data set (paired" in table.caption
    assert "not tested" not in table.caption


def test_data_sets_without_a_common_configuration_are_not_put_side_by_side(study):
    runs = replace(study.runs, name="other", configurations=(replace(study.runs.configurations[0], name="own"),))
    assert across([study]) is None
    assert across([study, replace(study, runs=runs)]) is None
    assert across([]) is None


def test_published_results_stand_below_those_of_the_runs(study, tables):
    values = {"P@1": 0.999, "PSP@5": 0.1234, "P@4": 0.3}
    sources = dict.fromkeys(values, "Table 2")
    on_this = PublishedResult("evil", "DPR", "encoder", values, sources, is_variant=False)
    others = [
        replace(on_this, dataset="other"),
        replace(on_this, method="variant", is_variant=True),
        replace(on_this, method="without", values={"P@4": 0.3}),
    ]
    made = {table.name: table for table in make_tables(study, [on_this, *others])}
    results, without = made.pop("results"), tables["results"]
    assert results.rows[:-1] == without.rows, "nothing about the runs changes, bold type included"
    row = dict(zip(results.header, results.rows[-1], strict=True))
    assert row["configuration"] == Cell("DPR (published)", note="encoder")
    assert row["P@1"] == Cell("99.90", note="Table 2")
    assert row["PSP@5"].text == "12.34"
    assert (row["seeds"].text, row["R@10"].text) == ("–", "–")
    assert "Rows marked “published” are numbers as printed" in results.caption
    assert "published" not in without.caption
    published = records(results)[len(without.records) :]
    assert {(r["metric"], r["mean"], r["sd"], r["published"]) for r in published} == {
        ("P@1", "0.999", "", "encoder; Table 2"),
        ("PSP@5", "0.1234", "", "encoder; Table 2"),
        ("P@4", "0.3", "", "encoder; Table 2"),
    }
    assert [table.records for table in made.values()] == [tables[name].records for name in made]


def test_cost(tables):
    row = dict(zip(tables["cost"].header, tables["cost"].rows[1], strict=True))
    assert [row[name].text for name in ("negative pool", "epochs", "minutes", "peak GiB", "million parameters")] == [
        *("256", "2", "1.9", "1.00", "1.5")
    ]


def test_passes_are_in_the_table_of_cost_where_runs_know_them(tables, runs_dir, study_of):
    assert "passes" not in tables["cost"].header
    assert "Passes" not in tables["cost"].caption
    for number, passes in enumerate([4.5, 5.5, 5.0]):  # of the first configuration alone
        path = runs_dir / str(number) / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"train/passes": passes}))
    cost = next(table for table in make_tables(study_of(runs_dir)) if table.name == "cost")
    column = cost.header.index("passes")
    assert [(row[column].text, row[column].deviation) for row in cost.rows] == [("5.0", "0.5"), ("–", "")]
    assert [record["train/passes"] for record in cost.records] == [5.0, None]
    assert "Passes measure" in cost.caption


def test_what_only_some_runs_measure_has_columns_where_there_is_any(tables, runs_dir, study_of):
    assert not {"CPU s", "model MB", "ms a query"} & {*tables["cost"].header}
    for number in range(3):  # of the first configuration alone
        path = runs_dir / str(number) / "metrics.json"
        measured = {"train/cpu_seconds": 61.5, "model_bytes": 2_340_000}
        path.write_text(json.dumps(json.loads(path.read_text()) | measured))
    cost = next(table for table in make_tables(study_of(runs_dir)) if table.name == "cost")
    assert cost.header[-2:] == ("CPU s", "model MB")
    assert [[cell.text for cell in row[-2:]] for row in cost.rows] == [["61.5", "2.3"], ["–", "–"]]
    assert "CPU s are the seconds of all processors" in cost.caption


def test_runs_on_a_gpu_say_which_and_how_much_of_its_memory(tables, runs_dir, study_of):
    assert "GPU GiB" not in (*tables["cost"].header, *tables["runs"].header)
    path = runs_dir / "0" / "metrics.json"
    gpu = {"device": "NVIDIA H100", "peak_device_memory_bytes": 3 * 2**30}
    path.write_text(json.dumps(json.loads(path.read_text()) | gpu))
    made = {table.name: table for table in make_tables(study_of(runs_dir))}
    for table in (made["cost"], made["runs"]):
        assert {len(row) for row in table.rows} == {len(table.header)}
    column = made["cost"].header.index("GPU GiB")
    assert [row[column].text for row in made["cost"].rows] == ["3.00", "–"]
    first = made["runs"].header.index("GPU")
    shown = {tuple(cell.text for cell in row[first : first + 2]) for row in made["runs"].rows}
    assert shown == {("NVIDIA H100", "3.00"), ("–", "–")}


def test_unfinished_runs_say_how_they_stand(tables):
    ((path, overrides, seed, status, epochs),) = tables["unfinished"].rows
    assert path.text.endswith("/10")
    assert (overrides.text, seed.text, epochs.text) == ("dataset=evil, loss.gamma_min=3", "7", "2")
    assert status.text == "failed: ValueError: <no>"


def test_intervals_are_apart_from_the_differences(tables, study):
    column = tables["comparison"].header.index("P@5")
    ((*cells,),) = tables["comparison"].rows
    comparison = study.comparisons["batch_size=128", "P@5"]
    assert cells[column].text == f"{100 * comparison.difference:+.2f}"
    assert cells[column].interval == f"[{100 * comparison.low:+.2f}, {100 * comparison.high:+.2f}]"
    assert cells[column].mark == "better"


def test_runs_without_an_epoch_share_a_row(runs_dir, write_run, study_of):
    for number in range(20, 23):
        write_run(runs_dir / str(number), finished=False, epochs=())
    table = next(table for table in make_tables(study_of(runs_dir)) if table.name == "unfinished")
    assert [row[0].text.rpartition("/")[2] for row in table.rows] == ["10", "3 runs have no epoch yet"]
    assert len(table.records) == 4


def test_the_longer_side_of_the_differences_goes_down(tmp_path, write_run, study_of):
    for number in range(3):
        write_run(tmp_path / str(number), loss__gamma_min=number, overrides=(f"loss.gamma_min={number}",))
    table = next(table for table in make_tables(study_of(tmp_path)) if table.name == "differences")
    assert table.header == ("configuration", "loss.gamma_min")
    assert [[cell.text for cell in row] for row in table.rows] == [[f"gamma_min={n}", str(n)] for n in range(3)]
    assert table.records == [{"key": "loss.gamma_min"} | {f"gamma_min={n}": str(n) for n in range(3)}]
