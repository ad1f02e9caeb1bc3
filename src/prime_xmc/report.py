"""`python -m prime_xmc.report`: what a set of runs comes to, as a page and as tables."""

import importlib.util
import logging
import re
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from prime_xmc.app import run_app
from prime_xmc.files import write_text
from prime_xmc.reporting.run_folders import DatasetRuns, find_configuration, find_runs, group_runs, read_runs
from prime_xmc.reporting.study import Study, make_study
from prime_xmc.reporting.tables import Table, make_tables, to_csv, to_latex, to_markdown

logger = logging.getLogger(__name__)

_NEEDED = ("plotly", "jinja2")
METHOD = (
    "A configuration is what runs have in common that differ in their seeds, paths and loggers alone. Its name is its "
    "experiment, and those of its overrides that not all share.",
    "Metrics are those of the Extreme Classification Repository, in percent, on the test split, with the filtered "
    "pairs removed. PSP divides two sums over all queries. Standard deviations are those of a sample of seeds (squares "
    "divided by their number less one).",
    "Differences from the baseline are judged by a paired bootstrap over test queries and seeds (the Multi-Bootstrap, "
    "Sellam et al. 2022), of {num_resamples:,} resamples. Each draws the test queries with replacement, the same ones "
    "for all runs, computes every metric from its sums over them, and draws each configuration's seeds with "
    "replacement; deviations between S seeds are scaled by sqrt(S / (S - 1)) (Rao and Wu 1988), since the few that "
    "are drawn would vary too little. What queries and seeds vary together is counted twice, which errs on the safe "
    "side. Where a configuration has one seed, only the choice of test queries is accounted for, not that of the seed.",
    "Intervals are the middle 95 % of the resampled differences. p-values are two-sided, and corrected by Holm's "
    "method over the configurations of a data set, for each metric apart.",
)


def run(config: DictConfig) -> list[Study]:
    """Read the runs, compare them, and write page and tables.

    Raises:
        ValueError: If there is no run, a file of a run is damaged, the baseline is none of the configurations, or a
            library is missing.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"a report needs {' and '.join(missing)}: pip install 'prime_xmc[report]'")
    from prime_xmc.reporting.page import render  # they are an extra

    patterns = list(config.runs) if isinstance(config.runs, ListConfig) else [config.runs]
    folders = find_runs([str(pattern) for pattern in patterns])
    runs = [run for folder in folders for run in read_runs(folder)]
    groups = group_runs(runs, [Path(config.cache_dir).expanduser()])
    studies = _studies(config, groups)
    tables = [make_tables(study) for study in studies]
    method = [paragraph.format(num_resamples=config.num_resamples) for paragraph in METHOD]
    output = Path(config.output).expanduser()
    page = render(studies, tables, title="Report", method=method)
    write_text(output / "index.html", page)
    write_text(output / "report.md", _markdown(studies, tables, method))
    for study, own in zip(studies, tables, strict=True):
        folder = output / re.sub(r"[^\w.-]+", "_", study.runs.name)
        for table in own:
            write_text(folder / f"{table.name}.csv", to_csv(table))
            write_text(folder / f"{table.name}.tex", to_latex(table))
    sys.stdout.write(f"{output / 'index.html'}\n")
    return studies


def _studies(config: DictConfig, groups: list[DatasetRuns]) -> list[Study]:
    studies = []
    if config.baseline is not None and not any(find_configuration(g.configurations, config.baseline) for g in groups):
        names = "\n".join(f"  {configuration.name}" for group in groups for configuration in group.configurations)
        raise ValueError(
            f"baseline={config.baseline} is no configuration of these runs, expected one of\n{names}\n"
            "(a name with = or a comma takes two pairs of quotes, baseline='\"lr=1e-4, seed=1\"'), "
            "or the folder of a run"
        )
    for group in groups:
        first = next((c for c in group.configurations if c.has_predictions), None)
        baseline = first if config.baseline is None else find_configuration(group.configurations, config.baseline)
        studies.append(
            make_study(
                group,
                baseline,
                num_resamples=config.num_resamples,
                num_examples=config.num_examples,
                seed=config.seed,
            )
        )
    return studies


def _markdown(studies: list[Study], tables: list[list[Table]], method: list[str]) -> str:
    parts = ["# Report\n"]
    for study, own in zip(studies, tables, strict=True):
        parts += [f"## {study.runs.name}\n", *(f"{note}\n" for note in study.notes), *map(to_markdown, own)]
    return "\n".join([*parts, "## How to read this\n", *(f"{paragraph}\n" for paragraph in method)])


def main() -> Any:
    """Run the entry point with the command line's configuration."""
    run_app(run, "report")


if __name__ == "__main__":
    main()
