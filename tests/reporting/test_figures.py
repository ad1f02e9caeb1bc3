import json

import pytest

from prime_xmc.reporting import figures


def of_title(charts):
    return {chart.title: chart for chart in charts}


def test_learning_curves_are_means_over_seeds(study):
    charts = of_title(figures.learning_curves(study))
    assert list(charts) == ["Training loss", "Validation P@1 (%) after epoch 2"]
    points = charts["Training loss"].series[0].points
    # epochs count from 1; the loss of the second is 0.25 + seed, of the seeds 0, 1 and 2
    assert [(p.x, p.y, p.low, p.high) for p in points] == [(1, 0.5, 0.5, 0.5), (2, 1.25, 0.25, 2.25)]
    assert points[1].note == "epoch 2: 1.25 (seeds: 0.25 to 2.25)"


def test_diagnostics_are_what_training_logs(study):
    assert list(of_title(figures.diagnostics(study))) == ["Violators", "Learning rate"]


def test_a_value_of_a_single_epoch_has_a_row_for_each_configuration(study):
    chart = of_title(figures.learning_curves(study))["Validation P@1 (%) after epoch 2"]
    assert chart.kind == "rows"
    assert [[point.x for point in series.points] for series in chart.series] == [[50.0], [50.0]]


def test_a_training_that_diverged_has_the_charts_of_its_finite_values(tmp_path, write_run, study_of):
    losses = [0.5, float("inf"), float("nan"), 1e308, 0.25]
    write_run(tmp_path / "0", epochs=tuple((epoch, epoch, 1e-4, loss) for epoch, loss in enumerate(losses)))
    study = study_of(tmp_path)
    (series,) = of_title(figures.learning_curves(study))["Training loss"].series
    assert [(point.x, point.y) for point in series.points] == [(1, 0.5), (5, 0.25)]
    assert study.notes == [
        f"The curves of {tmp_path / '0'} have values that are huge or no numbers, as after a training that has "
        "diverged; the charts leave them out."
    ]
    (tmp_path / "0" / "metrics.csv").write_text("epoch,train/loss\nnan,0.5\n")
    assert figures.learning_curves(study_of(tmp_path)) == []
    (tmp_path / "0" / "metrics.csv").write_text("")
    assert figures.learning_curves(study_of(tmp_path)) == []
    write_run(tmp_path / "0", epochs=((0, 0, 1e-4, float("nan")), (1, 1, 1e-4, float("-inf"))))
    assert "Training loss" not in of_title(figures.learning_curves(study_of(tmp_path)))


class TestScale:
    LOW = ((0, 5, 1e-4, 0.5), (1, 10, 0, 0.25))
    HIGH = ((0, 5, 1e-4, 1200), (1, 10, 0, 900))
    FALLING = ((0, 5, 1e-4, 800), (1, 10, 0, 0.5), (2, 10, 0, 0.5))

    def charts(self, tmp_path, write_run, study_of, *losses):
        for number, epochs in enumerate(losses):
            write_run(tmp_path / str(number), epochs=epochs, loss__number=number, overrides=(f"loss.number={number}",))
        charts = figures.learning_curves(study_of(tmp_path))
        return [chart for chart in charts if chart.title.startswith("Training loss")]

    def test_losses_of_far_apart_scales_have_charts_of_their_own(self, tmp_path, write_run, study_of):
        small, large = self.charts(tmp_path, write_run, study_of, self.LOW, self.HIGH, self.LOW)
        assert (small.title, large.title) == ("Training loss, values up to 0.5", "Training loss, values up to 1,200")
        assert [series.place for series in small.series] == [0, 2]
        assert [series.place for series in large.series] == [1]
        assert (small.y_log, large.y_log) == (False, False)

    def test_losses_of_one_scale_share_a_chart(self, tmp_path, write_run, study_of):
        (chart,) = self.charts(tmp_path, write_run, study_of, self.LOW, self.LOW)
        assert chart.title == "Training loss"

    def test_a_loss_that_falls_by_far_has_a_logarithmic_axis(self, tmp_path, write_run, study_of):
        (chart,) = self.charts(tmp_path, write_run, study_of, self.LOW, self.FALLING)
        assert chart.y_log


def test_cost(study):
    charts = of_title(figures.cost(study))
    time, negatives = charts["P@1 (%) against training time"], charts["P@1 (%) against negatives"]
    assert [series.points[0].x for series in time.series] == [1.2, 1.9]
    assert [series.points[0].x for series in negatives.series] == [128, 256]
    assert negatives.series[0].radius < negatives.series[1].radius
    values = study.runs.configurations[1].final("test/P@1")
    assert time.series[1].points[0].y == pytest.approx(100 * sum(values) / 3)


def write_cost(run, **cost):
    path = run / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {f"train/{name}": value for name, value in cost.items()}))


def test_accuracy_against_cost_has_all_configurations_that_know_it(tmp_path, write_run, study_of):
    runs = [write_run(tmp_path / str(number), loss__number=number) for number in range(4)]
    assert figures.against_cost(study_of(tmp_path)) == []
    write_cost(runs[0], cpu_seconds=2.0)
    write_cost(runs[1], cpu_seconds=2000.0, passes=3.5)
    write_cost(runs[2], cpu_seconds=0.05)  # would push the others into a corner
    write_cost(runs[3], cpu_seconds=5.0)
    metrics = json.loads((runs[3] / "metrics.json").read_text()) | {"peak_device_memory_bytes": 2**30}
    (runs[3] / "metrics.json").write_text(json.dumps(metrics))
    study = study_of(tmp_path)
    first, second = figures.against_cost(study)
    assert [chart.title for chart in (first, second)] == [
        "P@1 (%) against CPU seconds of training",
        "PSP@5 (%) against CPU seconds of training",
    ]
    assert (first.file, second.file) == ("P1_against_cpu", "PSP5_against_cpu")
    assert [(series.name, series.points[0].x) for series in first.series] == [("default", 2.0), ("default (2)", 2000.0)]
    assert first.series[1].points[0].y == 100 * study.runs.configurations[1].final("test/P@1")[0]
    assert first.x_log
    assert first.named


def test_accuracy_against_passes(tmp_path, write_run, study_of):
    for number in range(2):
        write_cost(write_run(tmp_path / str(number), loss__number=number), passes=1.5 + number)
    charts = figures.against_cost(study_of(tmp_path))
    assert [chart.file for chart in charts] == ["P1_against_passes", "PSP5_against_passes"]
    assert [series.points[0].x for series in charts[0].series] == [1.5, 2.5]


def test_negatives_that_are_the_same_for_all_have_no_chart(tmp_path, write_run, study_of):
    for number in range(2):
        write_run(tmp_path / str(number), loss__gamma_min=number)
    titles = list(of_title(figures.cost(study_of(tmp_path))))
    assert titles == ["P@1 (%) against training time", "PSP@5 (%) against training time"]


def test_bars_of_label_frequency(study):
    precision, _ = figures.label_frequency(study)
    assert precision.kind == "bars"
    values = study.runs.configurations[0].final("test/P@5")
    assert sum(point.y for point in precision.series[0].points) == pytest.approx(100 * sum(values) / 3)
    assert any(point.low < point.y < point.high for point in precision.series[0].points)


def test_coverage_grows_with_k(study):
    (chart,) = figures.coverage(study)
    for series in chart.series:
        values = [point.y for point in series.points]
        assert values == sorted(values)
