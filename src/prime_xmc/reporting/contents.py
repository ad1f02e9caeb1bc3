"""What a report says, before it is written as a page or as Markdown."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from prime_xmc import __version__
from prime_xmc.reporting import wording
from prime_xmc.reporting.published import PublishedResult
from prime_xmc.reporting.study import Study
from prime_xmc.reporting.tables import Table, across, make_tables


@dataclass(frozen=True, eq=False)
class Chapter:
    """The part of a report on one data set.

    Attributes:
        study: Runs and comparisons of the data set.
        headline: Sentences on what came out.
        tables: Tables of the data set.
    """

    study: Study
    headline: list[str]
    tables: list[Table]


@dataclass(frozen=True, eq=False)
class Report:
    """A report.

    Attributes:
        title: Title of the page.
        overview: Sentence on how many runs it covers.
        origin: Sentence on when and with which versions it was made.
        command: Command that made it; None if it was made from Python.
        chapters: One chapter for each data set.
        method: Paragraphs on how to read it.
        across: Table of what several data sets have in common; None if nothing is.
    """

    title: str
    overview: str
    origin: str
    command: str | None
    chapters: list[Chapter]
    method: list[str]
    across: Table | None = None


def make_report(
    studies: Sequence[Study],
    *,
    title: str | None,
    command: str | None,
    num_resamples: int,
    now: datetime,
    published: Sequence[PublishedResult] = (),
) -> Report:
    """Put together what a report says.

    Args:
        studies: Data sets with their runs.
        title: Title; None to make one from the names of the data sets.
        command: Command that makes the report; None if it is made from Python.
        num_resamples: Number of resamples that the comparisons are based on.
        now: Time at which the report is made, with its time zone.
        published: Published results to list beside those of the runs.
    """
    return Report(
        title=title or wording.default_title(studies),
        overview=wording.overview(studies),
        origin=(
            f"Made on {now.day} {now:%B %Y at %H:%M %Z} with prime_xmc {__version__} and "
            f"Python {platform.python_version()}."
        ),
        command=command,
        chapters=[Chapter(study, wording.headline(study), make_tables(study, published)) for study in studies],
        method=[paragraph.format(num_resamples=num_resamples) for paragraph in wording.METHOD],
        across=across(studies),
    )
