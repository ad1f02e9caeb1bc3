import json
import os
from dataclasses import replace

import pytest

from prime_xmc import report
from prime_xmc.reporting.formats import to_csv
from prime_xmc.reporting.records import keep_records
from prime_xmc.reporting.run_folders import read_runs
from prime_xmc.reporting.study import Study
from prime_xmc.reporting.tables import make_tables


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def tables(study: Study, folder) -> dict[str, str]:
    """All tables by name, with the names of runs below a folder."""
    return {table.name: to_csv(table).replace(f"{folder}/", "") for table in make_tables(study, [])}


def test_a_record_has_all_that_the_tables_need(runs_dir, study_of, tmp_path):
    of_runs = study_of(runs_dir)
    kept = tmp_path / "records"
    assert keep_records([of_runs], [f"{runs_dir}/**"], kept) == [kept / str(number) for number in range(6)]
    assert files(kept / "0") == [
        *(".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml", "metrics.csv", "metrics.json"),
        *("ranks.npz", "record.json"),
    ]
    of_records = study_of(kept)
    assert of_records.comparisons == of_runs.comparisons
    expected = tables(of_runs, runs_dir)
    assert {"results", "differences", "bins_P5", "macro", "coverage", "runs", "comparison"} <= expected.keys()
    assert tables(of_records, kept) | {"examples": "", "unfinished": ""} == expected | {
        "examples": "",
        "unfinished": "",
    }
    assert of_records.examples == []
    assert of_records.notes == [
        "2 of 2 configurations are read from records, which have what every table needs and no predictions to show as "
        "examples."
    ]


def test_runs_and_records_stand_beside_one_another(runs_dir, study_of, tmp_path):
    expected = study_of(runs_dir)
    keep_records([expected], [f"{runs_dir}/[01]"], tmp_path / "elsewhere")
    for name in ("0", "1"):  # in the place of the runs
        for path in sorted((runs_dir / name).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        os.replace(tmp_path / "elsewhere" / name, runs_dir / name)
    mixed = study_of(runs_dir)
    assert mixed.comparisons == expected.comparisons
    assert mixed.notes[0].startswith("1 of 2 configurations are read from records")
    assert {name for example in mixed.examples for name in example.predictions} == {"batch_size=128"}


def test_each_scorer_has_its_ranks(write_run, study_of, tmp_path):
    run = write_run(tmp_path / "runs" / "both")
    metrics = json.loads((run / "metrics.json").read_text())
    of_scorer = {name.replace("test/", "test/W/"): value for name, value in metrics.items() if name.startswith("test/")}
    (run / "metrics.json").write_text(json.dumps(metrics | of_scorer))
    (run / "classify").mkdir()
    (run / "classify" / "metrics.csv").write_text("epoch,train/loss\n0,2.5\n")
    (run / "classify" / "predictions_W.npz").write_bytes((run / "predictions.npz").read_bytes())
    expected = study_of(tmp_path / "runs")
    (record,) = keep_records([expected], [str(tmp_path / "runs" / "*")], tmp_path / "records")
    assert {"ranks.npz", "ranks_W.npz", "classify/metrics.csv"} <= {*files(record)}
    again = study_of(tmp_path / "records")
    assert tables(again, tmp_path / "records")["results"] == tables(expected, tmp_path / "runs")["results"]
    assert [run.epochs for run in read_runs(record)] == [each.epochs for each in read_runs(run)]


def test_a_record_names_no_folder_of_the_machine(runs_dir, study_of, tmp_path):
    (runs_dir / "0" / ".hydra" / "hydra.yaml").write_text(
        f"hydra:\n  runtime:\n    cwd: {tmp_path}\n    choices:\n      model: ngame\n      trainer: default\n"
    )
    keep_records([study_of(runs_dir)], [f"{runs_dir}/**"], tmp_path / "records")
    assert (tmp_path / "records" / "0" / ".hydra" / "hydra.yaml").read_text() == (
        "hydra:\n  runtime:\n    choices:\n      model: ngame\n"
    )
    assert read_runs(tmp_path / "records" / "0")[0].system == "model=ngame"
    settings = json.loads((tmp_path / "records" / "0" / "record.json").read_text())["settings"]
    assert settings.keys() == {"data_fingerprint", "data_source", "finished", "machine"}


def test_records_are_added_to_and_written_anew(runs_dir, write_run, study_of, tmp_path):
    kept, study = tmp_path / "records", study_of(runs_dir)
    keep_records([study], [f"{runs_dir}/**"], kept)
    path = kept / "0" / "metrics.json"
    path.write_text("{}")
    keep_records([study], [f"{runs_dir}/**"], kept)
    assert path.read_text() == (runs_dir / "0" / "metrics.json").read_text()
    assert path.stat().st_mtime == (runs_dir / "0" / "metrics.json").stat().st_mtime == 0
    before = {each: (kept / each).stat().st_mtime_ns for each in files(kept)}
    assert keep_records([study_of(kept)], [f"{kept}/**"], kept) == []  # records already
    assert {each: (kept / each).stat().st_mtime_ns for each in files(kept)} == before


@pytest.mark.parametrize("found", ["runs", "records"])
def test_a_record_of_another_run_stays(runs_dir, study_of, write_run, tmp_path, found):
    kept = tmp_path / "records"
    keep_records([study_of(runs_dir)], [f"{runs_dir}/**"], kept)
    before = (kept / "0" / "metrics.json").read_text()
    if found == "records":
        write_run(tmp_path / "other" / "0", seed=5)
        message = (
            f"{kept}/0 would be the record of {tmp_path}/other/0, but is the place of {kept}/0, which is something"
        )
        with pytest.raises(ValueError, match=message):
            keep_records([study_of(tmp_path / "other")], [f"{tmp_path}/other/**"], kept)
    else:
        write_run(tmp_path / "a" / "0", seed=5)
        write_run(tmp_path / "b" / "0", seed=6)
        with pytest.raises(ValueError, match="a pattern with fewer folders before the first wildcard"):
            keep_records([study_of(tmp_path)], [f"{tmp_path}/a/**", f"{tmp_path}/b/**"], tmp_path / "new")
        assert not (tmp_path / "new").exists()
    assert (kept / "0" / "metrics.json").read_text() == before


def test_without_the_data_no_record_is_kept(runs_dir, study_of, tmp_path):
    study = study_of(runs_dir)
    unknown = replace(study, runs=replace(study.runs, corpus=None))
    with pytest.raises(ValueError, match="the prepared data of evil were not found, which have the true labels"):
        keep_records([unknown], [f"{runs_dir}/**"], tmp_path / "records")
    assert not (tmp_path / "records").exists()


def test_the_command_keeps_records_that_it_reads_later(compose, runs_dir, cache_dir, tmp_path):
    def results(*overrides):
        given = [f"output={tmp_path / 'report'}", f"cache_dir={cache_dir}", "num_resamples=10", "num_examples=0"]
        report.run(compose(*given, *overrides, name="report"))
        return (tmp_path / "report" / "evil" / "results.csv").read_text()

    expected = results(f"runs={runs_dir}/[034]", f"records={tmp_path}/kept")
    assert results(f"runs={tmp_path}/kept/**") == expected
    assert results(f"runs=['{tmp_path}/kept/**','{runs_dir}/5']", f"records={tmp_path}/kept") != expected
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["0", "3", "4", "5"]


def test_a_run_on_other_data_takes_no_place(runs_dir, study_of, tmp_path):
    kept = tmp_path / "records"
    keep_records([study_of(runs_dir)], [f"{runs_dir}/**"], kept)
    path = kept / "0" / "record.json"
    path.write_text(json.dumps({"settings": {"data_fingerprint": "0123456789ab"}}))
    with pytest.raises(ValueError, match="is the place of"):
        keep_records([study_of(runs_dir)], [f"{runs_dir}/**"], kept)


def test_records_are_not_within_one_another_nor_in_the_place_of_runs(runs_dir, study_of, tmp_path):
    kept, study = tmp_path / "records", study_of(runs_dir)
    keep_records([study], [f"{runs_dir}/**"], kept)
    (kept / "0" / "later").mkdir()
    (kept / "0" / "later" / "record.json").write_text("{}")
    with pytest.raises(ValueError, match=f"is the place of {kept}/0/later"):
        keep_records([study], [f"{runs_dir}/**"], kept)
    with pytest.raises(ValueError, match=f"{runs_dir}/0 would be the record of {runs_dir}/0"):
        keep_records([study], [f"{runs_dir}/**"], runs_dir)
    with pytest.raises(ValueError, match=r"a pattern without \.\. for records="):
        keep_records([study_of(runs_dir / ".." / "sweep")], [f"{runs_dir}/*"], tmp_path / "new")


def test_a_run_counts_before_its_record(runs_dir, study_of):
    study = study_of(runs_dir)
    keep_records([study], [f"{runs_dir}/**"], runs_dir / "records")
    again = study_of(runs_dir)
    assert again.comparisons == study.comparisons
    assert [example.predictions.keys() for example in again.examples] == [
        example.predictions.keys() for example in study.examples
    ]


def test_a_run_counts_before_an_older_record_that_git_has_brought(runs_dir, write_run, study_of, tmp_path):
    """Git gives all files the time of the checkout; a record says itself when its run was finished."""
    (record, *_) = keep_records([study_of(runs_dir)], [f"{runs_dir}/**"], tmp_path / "all" / "records")
    path = record / "record.json"
    content = json.loads(path.read_text())
    assert content["settings"]["finished"] == (runs_dir / "0" / "metrics.json").stat().st_mtime
    newer = write_run(
        tmp_path / "all" / "mine", overrides=("dataset=evil", "dataset.batch_size=64"), dataset__batch_size=64
    )
    finished = content["settings"]["finished"] + 1
    os.utime(newer / "metrics.json", (finished, finished))
    assert [run.path for run in study_of(tmp_path / "all").runs.repeated] == [record]
    del content["settings"]["finished"]  # a record of an earlier version
    path.write_text(json.dumps(content))
    assert [run.path for run in study_of(tmp_path / "all").runs.repeated] == [record]
    path.write_text(json.dumps({"settings": content["settings"] | {"finished": finished + 1}}))
    assert [run.path for run in study_of(tmp_path / "all").runs.repeated] == [newer]


def test_a_record_has_the_scorers_that_do_not_count_too(write_run, study_of, tmp_path):
    """Of two runs that differ in their ensemble, the same prototypes count once."""
    for number, criterion in enumerate(("P@1", "PSP@1")):
        run = write_run(tmp_path / "runs" / str(number), ensemble__criterion=criterion)
        path = run / "metrics.json"
        metrics = json.loads(path.read_text())
        of_ensemble = {key.replace("test/", "test/ensemble/"): metrics[key] for key in metrics if "test/" in key}
        path.write_text(json.dumps(metrics | of_ensemble))
        (run / "predictions_ensemble.npz").write_bytes((run / "predictions.npz").read_bytes())
        os.utime(path, (number, number))
    study = study_of(tmp_path / "runs")
    assert [run.path.name for run in study.runs.repeated] == ["0"]
    for record in keep_records([study], [str(tmp_path / "runs" / "*")], tmp_path / "records"):
        assert {"ranks.npz", "ranks_ensemble.npz"} <= {*files(record)}
    again = study_of(tmp_path / "records" / "0")
    assert {run.predictions.name for c in again.runs.configurations for run in c.runs} == {
        "ranks.npz",
        "ranks_ensemble.npz",
    }


def test_the_settings_of_a_model_have_no_folders_in_a_record(write_run, study_of, tmp_path):
    run = write_run(tmp_path / "runs" / "classifiers", model__dir="/home/me/first/model")
    path = run / "model" / "prime_config.json"
    content = json.loads(path.read_text())
    content["settings"]["model"] = {
        **{"seed": 3, "run_dir": "/home/me/first", "cache_dir": "/home/me/cache", "loss": {"gamma_min": 0.2}},
        "callbacks": {"table": {"_target_": "prime_xmc.EpochTable", "path": "/home/me/first/metrics.csv"}},
    }
    path.write_text(json.dumps(content))
    (record,) = keep_records([study_of(tmp_path / "runs")], [f"{tmp_path}/runs/**"], tmp_path / "records")
    assert json.loads((record / "record.json").read_text())["settings"]["model"] == {"loss.gamma_min": 0.2, "seed": 3}
    (kept,), (expected,) = read_runs(record), read_runs(run)
    assert (kept.seed, kept.fingerprint()) == (3, expected.fingerprint())
    assert kept.settings["model.loss.gamma_min"] == 0.2
