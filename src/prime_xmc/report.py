"""`python -m prime_xmc.report`: compare a set of runs, as a page and as tables."""

import importlib.util
import shlex
import sys
from datetime import datetime
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from prime_xmc.app import run_app
from prime_xmc.printing import unfailing_output
from prime_xmc.reporting.configurations import group_runs
from prime_xmc.reporting.contents import make_report
from prime_xmc.reporting.published import read_published, warn_of_names
from prime_xmc.reporting.records import keep_records
from prime_xmc.reporting.run_folders import find_runs, read_runs
from prime_xmc.reporting.study import Study, make_studies


def run(config: DictConfig, command: str | None = None) -> list[Study]:
    """Read the runs, compare them, and write the page and the tables.

    Args:
        config: Configuration of conf/report.yaml.
        command: Command that the report names as its origin; None if there is none.

    Raises:
        FileNotFoundError: If there is no such file of published results.
        ValueError: If no run matches, a file of a run is damaged, no configuration is the baseline, a library is
            missing, or records cannot be kept.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise ValueError("a report needs jinja2: pip install '.[report]' in the clone")
    from prime_xmc.reporting.writing import write_report  # imports jinja2, which belongs to an extra

    patterns = [str(each) for each in (config.runs if isinstance(config.runs, ListConfig) else [config.runs])]
    runs = [run for folder in find_runs(patterns) for run in read_runs(folder)]
    published = [] if config.published is None else read_published(str(config.published))
    studies = make_studies(
        group_runs(runs, [Path(config.cache_dir).expanduser()]),
        config.baseline,
        num_resamples=config.num_resamples,
        num_examples=config.num_examples,
        seed=config.seed,
    )
    if config.records is not None:
        keep_records(studies, patterns, Path(config.records).expanduser())
    report = make_report(
        studies,
        title=config.title,
        command=command,
        num_resamples=config.num_resamples,
        now=datetime.now().astimezone(),
        published=published,
    )
    if config.published is not None:
        warn_of_names(published, [study.runs.dataset for study in studies], config.published)
    page = write_report(report, Path(config.output).expanduser())
    with unfailing_output():
        sys.stdout.write(f"{page}\n")
    return studies


def main() -> None:
    """Run the entry point with the configuration of the command line."""
    command = shlex.join(["python", "-m", "prime_xmc.report", *sys.argv[1:]])
    run_app(partial(run, command=command), "report")


if __name__ == "__main__":
    main()
