"""Every block of code in README.md and in docs/ is executed, or checked as far as that is possible.

A block in `bash` or `python` is run as it stands. Before a block there can be a comment that says otherwise:

    <!-- composed: needs a GPU -->      it is not run; its commands compose, so that the keys that they set exist
    <!-- file: my_conf/loss/a.yaml -->  it is written to this file, which later blocks of the page use

Blocks in `json` and `yaml` are parsed, blocks in `text` are not code. A block in anything else is an error. The pages run
in a folder where the tutorial has been followed, with less data and shorter training than a reader has.
"""

import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ("classifiers/report.md", "paper/report.md", "choices/report.md")  # written by prime-xmc-report
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").glob("**/*.md") if not page.as_posix().endswith(REPORTS)),
]
TUTORIAL = ROOT / "docs" / "tutorial.md"
# What makes the blocks quick: less data in the tutorial, and a smaller encoder trained for one epoch.
LESS_DATA = ("[:1500]", "[:150]")
QUICK_TRAINING = ("encoder.num_layers=1", "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1")
OTHER_PROGRAMS = ("cd", "git", "source", "tensorboard", "wandb")

FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[a-z]+): (?P<value>[^\n]*) -->\n)?"
    r"^(?P<fence>`{3,})(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block of code, with the comment before it."""

    page: Path
    line: int
    language: str
    mark: str | None
    value: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    content = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(content):
        if found["language"].startswith("{"):  # a directive of the site
            continue
        line = content.count("\n", 0, found.start("fence")) + 1
        yield Block(page, line, found["language"], found["mark"], found["value"] or "", found["text"])


BLOCKS = [block for page in PAGES for block in blocks(page)]
COMPOSED = [block for block in BLOCKS if block.mark == "composed"]
RUN_PAGES = [
    page
    for page in PAGES
    if any(block.page == page and block.mark is None and block.language in ("bash", "python") for block in BLOCKS)
]


def is_known(block: Block) -> bool:
    """Whether the block is in one of the classes that the head of this file lists."""
    if block.mark is None:
        return block.language in ("bash", "python", "json", "yaml", "text")
    if block.mark == "composed":
        return block.language == "bash" and bool(block.value.strip())
    return block.mark == "file" and block.language in ("python", "yaml", "json", "text")


def commands(text: str) -> list[list[str]]:
    """Return the commands of a shell block as lists of words."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_there_are_blocks_of_every_class():
    assert {block.mark for block in BLOCKS} == {None, "composed", "file"}
    assert TUTORIAL in RUN_PAGES and ROOT / "README.md" in RUN_PAGES


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_block_is_run_or_says_why_not(block):
    assert is_known(block), (
        f"{block.place}: a block in {block.language or 'no language'!r} with the mark {block.mark!r} would not be "
        "checked by any test; see the head of this file for the classes"
    )
    if block.language == "yaml":
        assert isinstance(yaml.safe_load(block.text), dict), block.place
    if block.language == "json":
        for line in block.text.splitlines():
            json.loads(line)


def test_an_unmarked_block_in_an_unknown_language_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```console\n$ make\n```\n\n```bash\nmake\n```\n\n<!-- skipped: no reason -->\n```bash\nmake\n```\n")
    assert [(block.mark, is_known(block)) for block in blocks(page)] == [
        (None, False),
        (None, True),
        ("skipped", False),
    ]


def combinations(overrides: list[str]) -> Iterator[list[str]]:
    """Return what each job of a sweep is given: the first and the last value of each list, in all combinations."""
    parser = OverridesParser.create()
    choices = []
    for override in overrides:
        parsed = parser.parse_override(override)
        value = parsed.value()
        if isinstance(value, IntervalSweep):
            choices.append([f"{parsed.get_key_element()}={value.start}"])
        elif parsed.is_sweep_override():
            values = [f"{parsed.get_key_element()}={each}" for each in parsed.sweep_string_iterator()]
            choices.append([values[0], values[-1]])
        else:
            choices.append([override])
    return map(list, itertools.product(*choices))


@pytest.mark.parametrize("block", COMPOSED, ids=lambda block: block.place)
def test_block_that_is_not_run_composes(block, compose):
    from prime_xmc.app import expand_globs, expand_model
    from prime_xmc.assemble import config_dir

    for program, *arguments in commands(block.text):
        if program == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert arguments[0] in targets, block.place
        elif program.startswith("prime-xmc-"):
            name = program.removeprefix("prime-xmc-")
            arguments = [argument.replace("<run>", "run") for argument in arguments if argument != "-m"]
            arguments = expand_globs(arguments, config_dir())
            if name in ("evaluate", "predict", "classify"):
                arguments = expand_model(arguments)
            jobs = list(combinations(arguments))
            assert jobs
            for overrides in jobs:
                compose(*[o for o in overrides if not o.startswith("hydra/")], name=name)
        else:
            assert program in OTHER_PROGRAMS, f"{block.place}: {program} is neither run nor checked"
