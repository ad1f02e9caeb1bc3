import json
from dataclasses import replace

import numpy as np
import pytest

from prime_xmc.data.corpus import Corpus, Ragged
from prime_xmc.data.preparation import prepare
from prime_xmc.data.propensity import inverse_propensity
from prime_xmc.data.raw import RawFiles
from prime_xmc.data.tokenizer import load_tokenizer
from prime_xmc.evaluation.metrics import SHOWN, evaluate
from prime_xmc.evaluation.predictions import load_predictions, save_predictions
from prime_xmc.reporting.configurations import group_runs
from prime_xmc.reporting.run_folders import find_runs, read_runs
from prime_xmc.reporting.study import make_studies, make_study, query_texts


def group(folder, *cache_dirs):
    runs = [run for path in find_runs([f"{folder}/**"]) for run in read_runs(path)]
    (found,) = group_runs(runs, cache_dirs)
    return found


def study(found, **given):
    options = {"num_resamples": 300, "num_examples": 4, "seed": 0}
    return make_study(found, found.configurations[0], **(options | given))


def test_metrics_of_queries_give_the_recorded_ones(runs_dir, cache_dir):
    found = group(runs_dir, cache_dir)
    result = study(found)
    for configuration in found.configurations:
        for run, evaluation in zip(configuration.runs, result.evaluations[configuration.name], strict=True):
            precision = evaluation.numerators[:, SHOWN.index("P@5")].sum() / (5 * 60)
            assert precision == pytest.approx(run.metrics["test/P@5"], abs=1e-6)
            assert evaluation.by_bin["P@5"].sum() == pytest.approx(run.metrics["test/P@5"])
            assert evaluation.by_bin["PSP@5"].sum() == pytest.approx(run.metrics["test/PSP@5"])
    assert sum(result.labels_of_bin) == 30
    assert sum(result.positives_of_bin) == len(found.corpus.test.positives.values)


def test_the_better_configuration_is_significantly_better(runs_dir, cache_dir):
    found = group(runs_dir, cache_dir)
    comparison = study(found).comparisons["batch_size=128", "P@5"]
    means = [np.mean(configuration.final("test/P@5")) for configuration in found.configurations]
    assert comparison.difference == pytest.approx(means[1] - means[0], abs=1e-6)
    assert 0 < comparison.low < comparison.difference < comparison.high
    assert comparison.p < 0.05


def test_a_configuration_is_no_better_than_itself(tmp_path, write_run, cache_dir):
    for number in range(2):
        write_run(tmp_path / str(number), loss__gamma_min=number, overrides=(f"loss.gamma_min={number}",))
    comparisons = study(group(tmp_path, cache_dir)).comparisons
    assert {metric for _, metric in comparisons} == set(SHOWN)
    assert {comparison.p for comparison in comparisons.values()} == {1.0}


def test_examples_mark_hits(runs_dir, cache_dir, corpus):
    result = study(group(runs_dir, cache_dir))
    assert len(result.examples) == 4
    labels = [text for _, text in corpus.labels()]
    for example in result.examples:
        assert example.text == f"<i>query {example.row}</i>"
        assert example.positives == [labels[i] for i in corpus.test.positives[example.row]]
        for predicted in example.predictions.values():
            assert len(predicted) == 5
            assert all(hit == (text in example.positives) for text, hit in predicted)


def test_without_the_data_set_there_is_a_note(runs_dir, tmp_path):
    result = study(group(runs_dir, tmp_path))
    assert (result.evaluations, result.comparisons, result.examples) == ({}, {}, [])
    assert "was not found" in result.notes[0]


def test_where_no_test_query_has_a_label_nothing_is_measured(runs_dir, cache_dir):
    runs = group(runs_dir, cache_dir)
    nothing = Ragged.from_rows([[]] * len(runs.corpus.test), dtype=np.int32)
    unlabelled = replace(runs.corpus, test=replace(runs.corpus.test, positives=nothing))
    result = study(replace(runs, corpus=unlabelled))
    assert (result.evaluations, result.comparisons, result.examples, result.positives_of_bin) == ({}, {}, [], [])
    assert result.notes[0].startswith("No test query has a label, so that there is nothing to measure")


def test_without_predictions_there_is_a_note(runs_dir, cache_dir):
    for number in range(3):
        (runs_dir / str(number) / "predictions.npz").unlink()
    result = study(group(runs_dir, cache_dir))
    assert list(result.evaluations) == ["batch_size=128"]
    assert result.notes[0].startswith("1 of 2 configurations have no predictions")


def test_predictions_of_some_seeds_are_noted(runs_dir, cache_dir):
    (runs_dir / "0" / "predictions.npz").unlink()
    result = study(group(runs_dir, cache_dir))
    assert [len(evaluations) for evaluations in result.evaluations.values()] == [2, 3]
    assert result.notes == [
        "Predictions of some seeds are missing (batch_size=64): where predictions are needed, as for the differences "
        "from the baseline and their marks, only the other seeds count."
    ]


def test_differences_of_psp_are_those_of_the_metrics_where_propensities_differ(tmp_path, write_run, cache_dir, corpus):
    write_run(tmp_path / "0")
    other = write_run(tmp_path / "1", skill=0.9, overrides=("dataset.propensity.a=2",), dataset__propensity__a=2)
    path = other / "metrics.json"
    indices, _ = load_predictions(other / "predictions.npz")
    weights = inverse_propensity(corpus.label_frequency, len(corpus.train), 2.0, 1.5)
    found = evaluate(indices, corpus.test.positives, weights)
    path.write_text(json.dumps(json.loads(path.read_text()) | {f"test/{name}": found[name] for name in found}))
    configurations = group(tmp_path, cache_dir)
    result = study(configurations)
    first, second = (c.final("test/PSP@5")[0] for c in configurations.configurations)
    assert result.comparisons["a=2", "PSP@5"].difference == pytest.approx(second - first, abs=1e-6)
    assert result.notes == [
        "The runs have different constants of the propensity (a=0.55 b=1.5, a=2 b=1.5): their PSP measures different "
        "things."
    ]


def test_other_propensities_are_noted_without_the_data(tmp_path, write_run):
    write_run(tmp_path / "0")
    write_run(tmp_path / "1", overrides=("dataset.propensity.a=2",), dataset__propensity__a=2)
    notes = study(group(tmp_path)).notes
    assert notes[0].startswith("The runs have different constants of the propensity (a=0.55 b=1.5, a=2 b=1.5)")


@pytest.mark.parametrize(("b", "said"), [(0, "B = 0.0"), (None, "expected numbers for dataset.propensity.a and .b")])
def test_propensities_that_there_cannot_be_are_an_error(tmp_path, write_run, cache_dir, b, said):
    write_run(tmp_path / "0", dataset__propensity__b=b)
    with pytest.raises(ValueError, match=rf"0/\.hydra/config\.yaml: .*{said}"):
        study(group(tmp_path, cache_dir))


def test_predictions_of_another_run_are_an_error(runs_dir, cache_dir):
    (runs_dir / "0" / "predictions.npz").write_bytes((runs_dir / "5" / "predictions.npz").read_bytes())
    with pytest.raises(ValueError, match=r"0/predictions\.npz: P@1 is .* but metrics\.json of the run says"):
        study(group(runs_dir, cache_dir))


def test_predictions_of_another_size_are_an_error(runs_dir, cache_dir):
    path = runs_dir / "0" / "predictions.npz"
    indices, scores = load_predictions(path)
    save_predictions(path, indices[:10], scores[:10])
    with pytest.raises(ValueError, match=r"0/predictions\.npz: predictions for 10 queries"):
        study(group(runs_dir, cache_dir))


def test_a_raw_file_that_has_changed_is_not_read(runs_dir, cache_dir, corpus):
    found = group(runs_dir, cache_dir)
    source = found.corpus.manifest["source"]
    size = source["tst.json.gz"]["bytes"]
    source["tst.json.gz"]["bytes"] = size + 1
    assert {example.text for example in study(found).examples} == {None}


def test_queries_without_labels_are_no_examples(runs_dir, cache_dir):
    found = group(runs_dir, cache_dir)
    assert isinstance(found.corpus.test.positives, Ragged)
    rows = [example.row for example in study(found, num_examples=1000).examples]
    assert rows == np.flatnonzero(found.corpus.test.positives.lengths).tolist()


def test_debugging_runs_are_mentioned(runs_dir, cache_dir, write_run):
    write_run(runs_dir / "20", debug="fast")
    assert study(group(runs_dir, cache_dir)).notes == [
        "1 debugging run is left out of everything here, because debug, trainer.fast_dev_run, trainer.overfit_batches "
        "or trainer.limit_..._batches is set."
    ]


def test_what_runs_noted_of_their_data_is_mentioned_once(runs_dir, cache_dir, write_run):
    for seed in (0, 1):
        path = write_run(runs_dir / f"2{seed}", seed=seed) / "metrics.json"
        metrics = json.loads(path.read_text())
        notes = {"note/test": "2 of 9 test queries have no label", "note/val": "of other queries than the results"}
        path.write_text(json.dumps(metrics | notes))
    assert study(group(runs_dir, cache_dir)).notes == ["2 of 9 test queries have no label."]


class TestBaseline:
    def chosen(self, runs_dir, cache_dir, baseline):
        options = {"num_resamples": 10, "num_examples": 0, "seed": 0}
        (result,) = make_studies([group(runs_dir, cache_dir)], baseline, **options)
        return result.baseline.name

    def test_is_found_by_name_or_by_the_folder_of_a_run(self, runs_dir, cache_dir):
        assert self.chosen(runs_dir, cache_dir, "batch_size=128") == "batch_size=128"
        assert self.chosen(runs_dir, cache_dir, str(runs_dir / "4")) == "batch_size=128"

    def test_is_the_first_configuration_that_has_predictions(self, runs_dir, cache_dir):
        assert self.chosen(runs_dir, cache_dir, None) == "batch_size=64"
        for number in range(3):
            (runs_dir / str(number) / "predictions.npz").unlink()
        assert self.chosen(runs_dir, cache_dir, None) == "batch_size=128"

    def test_an_unknown_one_lists_the_names(self, runs_dir, cache_dir):
        message = r"(?s)baseline=nothing is no configuration.*batch_size=64\n  batch_size=128"
        with pytest.raises(ValueError, match=message):
            self.chosen(runs_dir, cache_dir, "nothing")


def test_texts_of_a_test_split_that_was_split_off_come_from_the_training_file(tmp_path, tiny_encoder_dir):
    titles = [f"query {row}" for row in range(30)]
    records = {
        "trn": [{"uid": str(row), "title": title, "target_ind": [row % 3]} for row, title in enumerate(titles)],
        "lbl": [{"uid": f"l{row}", "title": f"label {row}"} for row in range(3)],
    }
    for name, lines in records.items():
        (tmp_path / f"{name}.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    directory = prepare(
        RawFiles(tmp_path, "own", num_test=6),
        load_tokenizer(str(tiny_encoder_dir)).backend_tokenizer,
        tokenizer_name="tiny",
        pad_token_id=0,
        max_length=16,
        cache_dir=tmp_path / "cache",
    )
    corpus = Corpus.open(directory)
    assert query_texts(corpus, [0, 5]) == {0: titles[corpus.test_rows[0]], 5: titles[corpus.test_rows[5]]}
