"""The parts of the documentation that scripts make, and what pages say of files, keys and numbers."""

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
CONF = ROOT / "conf"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *(page for page in sorted(DOCS.glob("**/*.md")) if page.name != "report.md")]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return load(DOCS / "_extensions" / "config_reference.py")


def leaves(node: object, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [prefix]
    return [leaf for key, value in node.items() for leaf in leaves(value, f"{prefix}.{key}" if prefix else key)]


@pytest.mark.parametrize("path", sorted(CONF.glob("**/*.yaml")), ids=lambda path: path.relative_to(CONF).as_posix())
def test_reference_has_every_key_of_the_file(reference, path):
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    expected = leaves({key: value for key, value in content.items() if key not in ("defaults", "hydra")})
    listed = [entry.key for entry in reference.entries(path)]
    assert [
        key for key in expected if key and not any(key == each or key.startswith(f"{each}.") for each in listed)
    ] == []
    assert len(listed) == len(set(listed))


def test_reference_escapes_comments(reference):
    assert reference._plain("a | b of <run>, `a_b`, *x*") == "a \\| b of \\<run\\>, `a_b`, \\*x\\*"


def test_reference_shows_the_facts_of_an_experiment_as_a_list(reference):
    lines = [
        "What it is.",
        "",
        "Command:  python -m prime_xmc.train seed=1 \\",
        "a=b_c",
        "Result:   about",
        "70 %",
        "",
        "End.",
    ]
    assert reference._paragraphs(lines) == [
        "What it is.",
        "",
        "- Command: `python -m prime_xmc.train seed=1 a=b_c`",
        "- Result: about 70 %",
        "",
        "End.",
        "",
    ]


def test_docstrings_are_read_as_plain_text():
    plain = load(DOCS / "_extensions" / "plain_docstrings.py")
    assert plain.escape("m = |a * b| of `f_x`, c_") == "m = \\|a \\* b\\| of ``f_x``, c\\_"
    assert plain.example_as_code(["Example:", "    a = b", "", "End."]) == [
        "Example:",
        "    .. code-block:: python",
        "",
        "        a = b",
        "",
        "End.",
    ]


def table(page: Path, first: str) -> dict[str, list[str]]:
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in page.read_text().splitlines()]
    start = next(number for number, row in enumerate(rows) if row[:1] == [first])
    body = rows[start + 2 :]
    end = next((number for number, row in enumerate(body) if not row), len(body))
    return {row[0]: row[1:] for row in [rows[start], *body[:end]]}


def test_readme_has_the_numbers_of_the_results_page():
    readme, results = table(ROOT / "README.md", "scores by"), table(DOCS / "results.md", "run")
    assert readme.pop("scores by") == results["run"][:-1]  # without the training
    shown = ("prototypes", "one-vs-all classifiers", "ensemble", "Bonsai with label texts (omikuji)")
    assert list(readme.values()) == [results[name][:-1] for name in shown]


def test_figure_is_that_of_the_results_page():
    figure = load(DOCS / "images" / "results.py")
    drawn = figure.draw(figure.read_table(DOCS / "results.md"))
    assert drawn == (DOCS / "images" / "results.svg").read_text(encoding="utf-8"), "run python docs/images/results.py"


def test_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_files_that_the_readme_links_to_exist():
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README.replace("\n", " "))
    missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert links
    assert missing == []


@pytest.fixture(scope="module")
def known_keys(reference) -> set[str]:
    keys = set()
    for path in CONF.glob("**/*.yaml"):
        text = path.read_text(encoding="utf-8")
        group = path.relative_to(CONF).parts[0] if path.parent != CONF else ""
        is_global = "@package _global_" in text
        for entry in reference.entries(path):
            keys.add(entry.key if is_global or not group else f"{group}.{entry.key}")
    return keys


def is_known(key: str, value: str, keys: set[str]) -> bool:
    if (CONF / key).is_dir():
        options = value.strip("'\"[]").split(",")
        return (
            "<" in value
            or value == "null"
            or all((CONF / key / each).is_dir() or (CONF / key / f"{each}.yaml").is_file() for each in options)
        )
    in_flow = any(key.startswith(f"{each}.") for each in keys)  # a key of {a: 1, b: 2}
    return key in keys or in_flow or key.startswith("hydra")


def test_keys_that_the_pages_name_exist(known_keys):
    unknown = []
    for page in PAGES:
        for key, value in re.findall(r"`'?([a-z_]+(?:[./][a-zA-Z_0-9]+)*)=([^`\s]*)", page.read_text(encoding="utf-8")):
            if not is_known(key, value, known_keys) and (key, value) not in (("key", "value"), ("group", "option")):
                unknown.append(f"{page.relative_to(ROOT)}: {key}={value}")
    assert unknown == []


def test_readme_names_every_command():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert [name for name in scripts if name not in README] == []
