"""Every block of code in README.md and in docs/ is executed, or checked as far as that is possible.

A block in `bash` or `python` is run as it stands. Before a block there can be a comment that says otherwise:

    <!-- composed: needs a GPU -->      it is not run; its commands compose, so that the keys that they set exist,
                                         and their values are checked; Python compiles
    <!-- file: my_conf/loss/a.yaml -->  it is written to this file, which later blocks of the page use

Blocks in `json` and `yaml` are parsed, and blocks in `text` are not code. A block in anything else is an error. The
pages run in a folder where the tutorial has been followed, with less data and shorter training than a reader has.
"""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hydra
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[2]
# Written by prime-xmc-report.
REPORTED = ("choices", "classifiers", "comparison", "paper", "seeds")
REPORTS = tuple(f"/{name}/report.md" for name in REPORTED)
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").glob("**/*.md") if not page.as_posix().endswith(REPORTS)),
]
TUTORIAL = ROOT / "docs" / "tutorial.md"
# What makes the blocks quick: less data, a smaller encoder trained for one epoch, and on pages that are about the first
# stage no more than that. The settings of a block itself win.
QUICK_TRAINING = (
    *("encoder.num_layers=1", "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1"),
    "classify_settings=['trainer.max_epochs=1','trainer.check_val_every_n_epoch=1']",
)
FIRST_STAGE = ("classify=false", "neighbours=null", "lexical=null")
FIRST_STAGE_PAGES = ("ablations", "debug", "extend", "peers", "reports", "resume", "sweeps")
REPLACED = {
    "[:1500]": "[:100]",
    "--queries 1500": "--queries 100",
    '"dataset.dir=my_data"]': f'"dataset.dir=my_data", *{[*QUICK_TRAINING, *FIRST_STAGE]}]',
}
OTHER_PROGRAMS = ("cd", "curl", "docker", "export", "git", "source", "tensorboard", "wandb")

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
        return block.language in ("bash", "python") and bool(block.value.strip())
    return block.mark == "file" and block.language in ("python", "yaml", "json", "text")


def commands(text: str) -> list[list[str]]:
    """Return the commands of a shell block as lists of words."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_there_are_blocks_of_every_class():
    assert {block.mark for block in BLOCKS} == {None, "composed", "file"}
    assert {TUTORIAL, ROOT / "README.md"} <= set(RUN_PAGES)


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
    page.write_text(
        "```console\n$ make\n```\n\n```bash\nmake\n```\n\n<!-- skipped: no reason -->\n```bash\nmake\n```\n"
    )
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
    from prime_xmc.command_line.arguments import prepare
    from prime_xmc.composing import check_config, own_configs
    from prime_xmc.conf_files import all_entries, config_dir

    if block.language == "python":
        compile(block.text, block.place, "exec")
        return
    for program, *arguments in commands(block.text):
        if program == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert arguments[0] in targets, block.place
            settings = [each.removeprefix("ARGS=") for each in arguments[1:]]
            if arguments[0] == "train" and settings:
                compose(*shlex.split(settings[0]))
        elif program.startswith("prime-xmc-"):
            name = program.removeprefix("prime-xmc-")
            short_model = any(entry.key == "model.dir" for entry in all_entries(config_dir() / f"{name}.yaml"))
            arguments = [argument.replace("<run>", "run") for argument in arguments]
            arguments = prepare(arguments, name, config_dir(), short_model=short_model)
            arguments = [argument for argument in arguments if argument != "-m"]
            jobs = list(combinations(arguments))
            assert jobs
            for overrides in jobs:
                with own_configs():
                    whole = hydra.compose(name, overrides, return_hydra_config=True)
                    config = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
                    check_config(config, whole.hydra, name)
        else:
            assert program in OTHER_PROGRAMS, f"{block.place}: {program} is neither run nor checked"


@dataclass(frozen=True)
class Shell:
    """Runs blocks in a folder, with the package's commands answered by the server."""

    programs: Path

    def run(self, block: Block, folder: Path) -> None:
        text = block.text
        for written, quicker in REPLACED.items():
            text = text.replace(written, quicker)
        if block.mark == "file":
            path = folder / block.value
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        if block.language == "python":
            script = folder / f"{block.page.stem}_{block.line}.py"
            script.write_text(text, encoding="utf-8")
            arguments = ["run-python", script.name]
        else:
            arguments = ["bash", "-eo", "pipefail", "-c", text]
        # The readers have activated the environment in which these tests run.
        path = os.pathsep.join((str(self.programs), str(Path(sys.executable).parent), os.environ["PATH"]))
        training = [*QUICK_TRAINING, *(FIRST_STAGE if block.page.stem in FIRST_STAGE_PAGES else ())]
        variables = environment() | {"PATH": path, "ADDED_TO_TRAIN": json.dumps(training)}
        done = subprocess.run(arguments, cwd=folder, env=variables, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (
            f"{block.place} ended with {done.returncode}:\n{block.text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )

    def run_page(self, page: Path, folder: Path) -> None:
        for block in BLOCKS:
            is_run = block.mark is None and block.language in ("bash", "python")
            if block.page == page and (is_run or block.mark == "file"):
                self.run(block, folder)


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PRIME_XMC_CACHE", "HYDRA_FULL_ERROR")}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}


CLIENT = """#!{python} -SI
import json, os, socket, sys
arguments = sys.argv[1:]
if {command!r} == "train":
    first = next((i for i, argument in enumerate(arguments) if "=" in argument), len(arguments))
    arguments[first:first] = json.loads(os.environ["ADDED_TO_TRAIN"])  # before the block's own settings, which win
request = {{"command": {command!r}, "arguments": arguments, "directory": os.getcwd(), "environment": dict(os.environ)}}
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({address!r})
    socket.send_fds(connection, [b"x"], [0, 1, 2])
    connection.sendall(json.dumps(request).encode() + b"\\n")
    answer = connection.makefile().readline()
sys.exit(int(answer or 1))
"""


def write_clients(folder: Path, address: Path) -> None:
    """Write an executable for each command, and `run-python`, all of which ask the server to do the work."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    names = [*(script.removeprefix("prime-xmc-") for script in scripts), "python"]
    for name in names:
        path = folder / ("run-python" if name == "python" else f"prime-xmc-{name}")
        path.write_text(CLIENT.format(python=sys.executable, command=name, address=str(address)))
        path.chmod(0o755)


@pytest.fixture(scope="module")
def shell(command_server: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    programs = tmp_path_factory.mktemp("programs")
    write_clients(programs, command_server)
    return Shell(programs)


@pytest.fixture(scope="module")
def first_use(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of somebody who has followed the tutorial."""
    folder = tmp_path_factory.mktemp("first_use")
    shell.run_page(TUTORIAL, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_blocks_of_the_page_run(shell, first_use, tmp_path, page):
    if page == TUTORIAL:
        return  # first_use has done so
    folder = tmp_path / "work"
    shutil.copytree(first_use, folder, copy_function=os.link)  # files are replaced, never changed
    if page.name == "README.md":
        shutil.rmtree(folder / "first")
    shell.run_page(page, folder)
