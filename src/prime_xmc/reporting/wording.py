"""The sentences of a report: its title, what it covers, what came out for each data set, and how to read it."""

from collections.abc import Iterable, Sequence

from prime_xmc.evaluation.metrics import SHOWN
from prime_xmc.reporting.statistics import summary
from prime_xmc.reporting.study import Study
from prime_xmc.reporting.tables import LEVEL

_DETAILED = 4  # up to so many compared configurations, each has a sentence of its own
_OTHER = {"better": "worse", "worse": "better"}

METHOD = (
    "A configuration is the set of runs that differ only in their seed, in their paths, and in what they log or show. "
    "It is named after its experiment and after those settings of the command line that not all configurations share.",
    "Metrics are those of the Extreme Classification Repository, in percent, on the test split, with the filtered "
    "pairs removed. PSP divides two sums over all queries. A standard deviation is that of a sample of seeds: the sum "
    "of squares is divided by the number of seeds less one.",
    "Differences from the baseline are judged by a paired bootstrap over test queries and seeds (the Multi-Bootstrap, "
    "Sellam et al. 2022) with {num_resamples:,} resamples. Each resample draws the test queries with replacement, the "
    "same ones for all runs, and computes every metric from its sums over them. It also draws the seeds of each "
    "configuration with replacement. Deviations between S seeds are scaled by sqrt(S / (S - 1)) (Rao and Wu 1988), "
    "because draws from so few seeds would vary too little. Variation that queries and seeds share is counted twice, "
    "which errs on the safe side. For a configuration with a single seed, only the choice of test queries is "
    "accounted for, and not that of the seed.",
    "Intervals hold the middle 95 % of the resampled differences. The p-values are two-sided. Holm's method corrects "
    "them for the number of configurations of the data set, separately for each metric.",
)


def default_title(studies: Sequence[Study]) -> str:
    """Return a title that names the data sets and the number of configurations."""
    names = listed([study.runs.name for study in studies])
    number = sum(len(study.runs.configurations) for study in studies)
    return f"Results on {names}" if number < 2 else f"{number} configurations compared on {names}"


def overview(studies: Sequence[Study]) -> str:
    """Return how many runs of how many configurations a report covers."""
    finished = sum(len(c.runs) for study in studies for c in study.runs.configurations)
    unfinished = sum(len(study.runs.unfinished) for study in studies)
    configurations = sum(len(study.runs.configurations) for study in studies)
    text = f"{counted(finished, 'finished run')} of {counted(configurations, 'configuration')}"
    text += f" on {counted(len(studies), 'data set')}."
    if unfinished:
        text += f" {counted(unfinished, 'unfinished run')} {'is' if unfinished == 1 else 'are'} listed at the end."
    return text


def headline(study: Study) -> list[str]:
    """Return a few sentences on what came out for a data set."""
    configurations = [c for c in study.runs.configurations if c.final("test/P@1") or c.final("val/P@1")]
    if not configurations:
        return ["No run has finished with a metric yet."]
    stage = "test" if any(c.final("test/P@1") for c in configurations) else "val"
    means = {c.name: 100 * summary(c.final(f"{stage}/P@1"))[0] for c in configurations if c.final(f"{stage}/P@1")}
    best = max(means, key=lambda name: means[name])
    split = "" if stage == "test" else " on the validation queries"
    if len(means) == 1:
        return [f"{_quoted([best])} reaches a P@1 of {means[best]:.1f} %{split}."]
    sentences = [
        f"{_quoted([best])} has the highest P@1{split}, {means[best]:.1f} %; the lowest is {min(means.values()):.1f} %."
    ]
    if not study.comparisons or study.baseline is None:
        return [*sentences, "Whether the configurations differ significantly was not tested."]
    sentences += _compared(study, study.baseline.name)
    runs_of = {name: len(evaluations) for name, evaluations in study.evaluations.items()}
    if single := [name for name, number in runs_of.items() if number == 1]:
        which = "Each configuration" if len(single) == len(runs_of) else _quoted(single)
        sentences.append(
            f"{which} {'has' if which.startswith('Each') or len(single) == 1 else 'have'} a single seed, so these "
            "statements do not account for the differences that another seed would make."
        )
    return sentences


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    Example:
        >>> counted(1, "run"), counted(2, "run")
        ('1 run', '2 runs')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(texts: Sequence[str]) -> str:
    """Return texts as an enumeration.

    Example:
        >>> listed(["a", "b", "c"])
        'a, b and c'
    """
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _compared(study: Study, baseline: str) -> list[str]:
    """Return sentences on the metrics in which configurations are significantly better or worse than the baseline."""
    outcomes: dict[str, tuple[int, int]] = {}
    for name in dict.fromkeys(name for name, _ in study.comparisons):
        significant = [c for metric in SHOWN if (c := study.comparisons[name, metric]).p < LEVEL]
        better = sum(comparison.difference > 0 for comparison in significant)
        outcomes[name] = (better, len(significant) - better)
    names = sorted(outcomes, key=lambda name: outcomes[name][1] - outcomes[name][0])
    if len(names) > 1 and not any(map(any, outcomes.values())):
        return [
            f"None of the {len(names)} configurations compared with the baseline “{baseline}” differs significantly "
            f"from it in any of {len(SHOWN)} metrics (p < {LEVEL})."
        ]
    if len(names) <= _DETAILED:
        return [_outcome(name, baseline, *outcomes[name]) for name in names]
    kinds = {
        "significantly better in some metrics and worse in none": [n for n in names if _is(outcomes[n], True, False)],
        "better in some metrics and worse in others": [n for n in names if _is(outcomes[n], True, True)],
        "significantly worse in some metrics and better in none": [n for n in names if _is(outcomes[n], False, True)],
        "not significantly different in any metric": [n for n in names if _is(outcomes[n], False, False)],
    }
    parts = [
        f"{len(members)} {'is' if len(members) == 1 else 'are'} {kind}" for kind, members in kinds.items() if members
    ]
    sentences = [
        f"Of the {len(names)} configurations compared with the baseline “{baseline}” (p < {LEVEL}), {listed(parts)}."
    ]
    for (kind, members), order in zip(list(kinds.items())[:3], ((1, 0), (1, 1), (0, 1)), strict=True):
        if members:
            counts = [f"“{name}” ({_counts(outcomes[name], order)})" for name in members]
            sentences.append(f"{kind.capitalize()}, out of {len(SHOWN)}: {', '.join(counts)}.")
    return sentences


def _is(outcome: tuple[int, int], better: bool, worse: bool) -> bool:
    return (outcome[0] > 0, outcome[1] > 0) == (better, worse)


def _counts(outcome: tuple[int, int], order: tuple[int, int]) -> str:
    return ", ".join(
        f"{number} {word}" for number, word, shown in zip(outcome, ("better", "worse"), order, strict=True) if shown
    )


def _outcome(name: str, baseline: str, better: int, worse: int) -> str:
    total = f"of {len(SHOWN)} metrics (p < {LEVEL})"
    if not better and not worse:
        return f"“{name}” does not differ significantly from the baseline “{baseline}” in any {total}."
    if not better or not worse:
        number, word = (better, "better") if better else (worse, "worse")
        return f"“{name}” is {word} than the baseline “{baseline}” in {number} {total} and {_OTHER[word]} in none."
    return f"“{name}” is better than the baseline “{baseline}” in {better} {total} and worse in {worse}."


def _quoted(names: Iterable[str]) -> str:
    return listed([f"“{name}”" for name in names])
