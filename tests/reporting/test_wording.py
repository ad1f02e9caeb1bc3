from dataclasses import replace

from prime_xmc.evaluation.metrics import SHOWN
from prime_xmc.reporting.statistics import Comparison
from prime_xmc.reporting.study import Study
from prime_xmc.reporting.wording import default_title, headline, overview


def compared(study: Study, outcomes: dict[str, tuple[int, int]]) -> Study:
    """The study as if these configurations were better and worse in so many metrics."""
    comparisons = {
        (name, metric): Comparison(
            difference=0.1 if place < better else -0.1, low=0.0, high=0.0, p=0.01 if place < better + worse else 0.5
        )
        for name, (better, worse) in outcomes.items()
        for place, metric in enumerate(SHOWN)
    }
    return replace(study, comparisons=comparisons)


def test_the_title_names_the_data_sets(study):
    assert default_title([study]) == "2 configurations compared on evil"
    assert default_title([study, study]) == "4 configurations compared on evil and evil"


def test_the_overview_counts(study):
    assert overview([study]) == (
        "6 finished runs of 2 configurations on 1 data set. 1 unfinished run is listed at the end."
    )


def test_the_headline_agrees_with_the_comparisons(study):
    significant = [c.difference > 0 for c in study.comparisons.values() if c.p < 0.05]
    better = sum(significant)
    assert better == len(significant) > 1
    assert headline(study)[1] == (
        f"“batch_size=128” is better than the baseline “batch_size=64” in {better} of 9 metrics (p < 0.05) "
        "and worse in none."
    )
    assert len(headline(study)) == 2  # both have three seeds


def test_each_outcome_has_its_sentence(study):
    sentences = headline(compared(study, {"a": (4, 1), "b": (0, 0), "c": (0, 9)}))
    assert sentences[1:] == [
        "“a” is better than the baseline “batch_size=64” in 4 of 9 metrics (p < 0.05) and worse in 1.",
        "“b” does not differ significantly from the baseline “batch_size=64” in any of 9 metrics (p < 0.05).",
        "“c” is worse than the baseline “batch_size=64” in 9 of 9 metrics (p < 0.05) and better in none.",
    ]


def test_many_configurations_are_summed_up(study):
    outcomes = {"a": (4, 1), "b": (0, 0), "c": (0, 9), "d": (2, 0), "e": (0, 1)}
    assert headline(compared(study, outcomes))[1:] == [
        "Of the 5 configurations compared with the baseline “batch_size=64” (p < 0.05), 1 is significantly better in "
        "some metrics and worse in none, 1 is better in some metrics and worse in others, 2 are significantly worse in "
        "some metrics and better in none and 1 is not significantly different in any metric.",
        "Significantly better in some metrics and worse in none, out of 9: “d” (2 better).",
        "Better in some metrics and worse in others, out of 9: “a” (4 better, 1 worse).",
        "Significantly worse in some metrics and better in none, out of 9: “e” (1 worse), “c” (9 worse).",
    ]


def test_no_difference_anywhere(study):
    assert headline(compared(study, {"a": (0, 0), "b": (0, 0)}))[1:] == [
        "None of the 2 configurations compared with the baseline “batch_size=64” differs significantly from it in any "
        "of 9 metrics (p < 0.05)."
    ]


def test_single_seeds_are_mentioned(tmp_path, write_run, study_of):
    for number, skill in enumerate((0.2, 0.9)):
        write_run(tmp_path / str(number), skill=skill, loss__gamma_min=number, overrides=(f"loss.gamma_min={number}",))
    assert headline(study_of(tmp_path))[-1].startswith("Each configuration has a single seed")
    write_run(tmp_path / "3", seed=1, skill=0.9, loss__gamma_min=1, overrides=("loss.gamma_min=1",))
    assert headline(study_of(tmp_path))[-1].startswith("“gamma_min=0” has a single seed")


def test_one_configuration_and_none(tmp_path, write_run, study_of):
    write_run(tmp_path / "0", finished=False)
    assert headline(study_of(tmp_path)) == ["No run has finished with a metric yet."]
    write_run(tmp_path / "1")
    (sentence,) = headline(study_of(tmp_path))
    assert sentence.startswith("“default” reaches a P@1 of ")
