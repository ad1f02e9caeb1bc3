"""The data sets that the package carries: what is in them, and that a model trains on them."""

import gzip
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from prime_xmc.assemble import open_corpus, raw_files
from prime_xmc.export.predictor import Predictor
from prime_xmc.stages import train_prototypes

CARRIED = {
    "debian18k": "LF-Debian-18K",
    "debian18k_full": "LF-Debian-18K-Full",
    "go15k": "LF-GO-15K",
    "metamath22k": "LF-Metamath-22K",
}
DATASETS = Path(str(files("prime_xmc") / "datasets"))


class Counts(NamedTuple):
    """Queries, labels, pairs and filtered pairs of both splits, and test texts that are also training texts."""

    train: int
    test: int
    labels: int
    train_pairs: int
    test_pairs: int
    train_filtered: int
    test_filtered: int
    shared_texts: int


COUNTS = {
    "debian18k": Counts(29_610, 12_690, 17_953, 110_630, 42_931, 9_682, 4_158, 0),
    "debian18k_full": Counts(29_610, 12_690, 17_953, 110_630, 42_931, 9_682, 4_158, 0),
    "go15k": Counts(29_942, 12_832, 14_616, 56_876, 23_830, 10_045, 4_451, 0),
    "metamath22k": Counts(25_641, 10_988, 21_754, 413_043, 166_406, 14_540, 6_458, 378),
}


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def raw(compose, cache_dir):
    """Opens the raw files of a data set: name -> records, and the pairs of both filters."""
    opened: dict[str, dict[str, Any]] = {}

    def read(dataset):
        if dataset not in opened:
            paths = raw_files(compose(f"dataset={dataset}", f"cache_dir={cache_dir}").dataset).paths()
            content = {}
            for name, path in paths.items():
                if name.startswith("filter"):
                    content[name] = np.loadtxt(path, dtype=np.int64)
                else:
                    with gzip.open(path, "rt", encoding="utf-8") as lines:
                        content[name] = [json.loads(line) for line in lines]
            opened[dataset] = content
        return opened[dataset]

    return read


def test_every_data_set_has_an_option():
    folders = {path.name for path in DATASETS.iterdir() if path.name.startswith("LF-")}
    assert folders == set(CARRIED.values())


@pytest.mark.parametrize("name", CARRIED.values())
def test_every_data_set_has_a_readme_with_its_licence_and_a_script(name):
    readme = (DATASETS / name / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# {name}\n")
    assert "\n## Licence\n" in readme
    (script,) = (DATASETS / name).glob("build_*.py")
    assert script.name in readme.partition("\n## Source\n")[2]


@pytest.mark.parametrize("dataset", CARRIED)
def test_counts(dataset, raw):
    content = raw(dataset)
    train, test = ([query["target_ind"] for query in content[name]] for name in ("trn", "tst"))
    fields = ["title"] if dataset == "debian18k" else ["title", "content"]
    texts = [{tuple(query[field] for field in fields) for query in content[name]} for name in ("trn", "tst")]
    shared = sum(tuple(query[field] for field in fields) in texts[0] for query in content["tst"])
    assert COUNTS[dataset] == (
        *(len(content[name]) for name in ("trn", "tst", "lbl")),
        *(sum(map(len, queries)) for queries in (train, test)),
        *(len(content[f"filter_labels_{split}"]) for split in ("train", "test")),
        shared,
    )
    assert {label for labels in train for label in labels} == set(range(len(content["lbl"]))), "each has a query"
    for queries in (train, test):
        assert all(labels == sorted(set(labels)) and labels for labels in queries)
    uids = [query["uid"] for name in ("trn", "tst") for query in content[name]]
    assert len(set(uids)) == len(uids), "no query is in both splits"


@pytest.mark.parametrize("dataset", CARRIED)
def test_the_filters_name_the_queries_own_labels(dataset, raw):
    content = raw(dataset)
    for name, split in (("trn", "train"), ("tst", "test")):
        pairs = content[f"filter_labels_{split}"]
        assert all(content[name][row]["uid"] == content["lbl"][label]["uid"] for row, label in pairs)
        assert not any(label in content[name][row]["target_ind"] for row, label in pairs)


def test_the_full_texts_are_beside_the_short_ones(raw):
    short, full = raw("debian18k"), raw("debian18k_full")
    for name in ("trn", "tst", "lbl"):
        without = [{key: value for key, value in record.items() if key != "content"} for record in full[name]]
        assert without == short[name]
    first = next(record for record in full["lbl"] if record["uid"] == "vim")
    assert first["content"].startswith("Vim is an almost compatible version of the UNIX editor Vi.\n")
    empty = {record["uid"] for name in ("trn", "tst", "lbl") for record in full[name] if not record["content"]}
    assert empty == {"freeglut3-dev"}


def test_rows_of_metamath(raw):
    content = raw("metamath22k")
    labels = content["lbl"]
    query = next(query for query in content["trn"] + content["tst"] if query["uid"] == "2p2e4")
    assert query["content"] == "( 2 + 2 ) = 4"
    assert [labels[label]["uid"] for label in query["target_ind"]] == [
        *("2cn", "3eqtri", "addassi", "ax-1cn", "df-2", "df-3", "df-4", "eqtr4i", "oveq1i", "oveq2i")
    ]
    assert "syl" not in {label["uid"] for label in labels}, "one of the 30 commonest"


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "name"), CARRIED.items())
def test_the_prepared_data_have_the_counts_of_the_readme(dataset, name, compose, cache_dir):
    readme = (DATASETS / name / "README.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| ([a-z0-9 ]+) \| ([0-9.,]+)(?: %)? \|$", readme, re.MULTILINE))
    corpus = open_corpus(compose(f"dataset={dataset}", f"cache_dir={cache_dir}", name="prepare"))
    assert corpus.manifest["name"] == name
    warned = {warning["kind"] for warning in corpus.manifest["warnings"]}
    repeated = {"repeated label text", "label whose tokens are those of another"}
    repeated.add("test query with the text of a training query")
    assert warned == (repeated if name == "LF-Metamath-22K" else set())
    per_query, per_label = (len(corpus.train.positives.values) / num for num in (len(corpus.train), corpus.num_labels))
    assert stated == {
        "training queries": f"{len(corpus.train):,}",
        "test queries": f"{len(corpus.test):,}",
        "labels": f"{corpus.num_labels:,}",
        "labels per training query": f"{per_query:.2f}",
        "training queries per label": f"{per_label:.2f}",
        "labels with at most 3 training queries": f"{100 * (corpus.label_frequency <= 3).mean():.0f}",
    }
    assert corpus.label_frequency.min() >= 1
    assert (corpus.test.filtered.lengths <= 1).all()


@pytest.mark.slow
def test_a_model_trains(compose, cache_dir, tmp_path):
    """With an encoder as small as it can be, which reads all texts in seconds."""
    small = ["encoder=random", "encoder.intermediate_size=32"]
    quick = ["trainer.max_steps=2", "callbacks.progress=null", "classify=false", "neighbours=null", "lexical=null"]
    folders = [f"cache_dir={cache_dir}", f"run_dir={tmp_path}/run"]
    train_prototypes(compose("dataset=go15k", *small, *quick, *folders, "test=false"))
    assert Predictor.load(tmp_path / "run" / "model", scorer="theta").num_labels == 14_616
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert "Gene Ontology Consortium" in card
    assert json.loads((tmp_path / "run" / "model" / "prime_config.json").read_text())["max_length"] == 96
