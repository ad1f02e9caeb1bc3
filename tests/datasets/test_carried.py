"""The data sets that the package carries: what is in them, and that a model trains on them."""

import json
import re
from importlib.resources import files

import pytest

from prime_xmc.assemble import open_corpus
from prime_xmc.stages import train_prototypes

CARRIED = {"debian18k": "LF-Debian-18K", "go15k": "LF-GO-15K"}


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_every_data_set_has_an_option():
    folders = {path.name for path in (files("prime_xmc") / "datasets").iterdir() if path.name.startswith("LF-")}
    assert folders == set(CARRIED.values())


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "name"), CARRIED.items())
def test_the_prepared_data_have_the_counts_of_the_readme(dataset, name, compose, cache_dir):
    readme = (files("prime_xmc") / "datasets" / name / "README.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| ([a-z0-9 ]+) \| ([0-9.,]+)(?: %)? \|$", readme, re.MULTILINE))
    corpus = open_corpus(compose(f"dataset={dataset}", f"cache_dir={cache_dir}", name="prepare"))
    assert corpus.manifest["name"] == name
    assert corpus.manifest["warnings"] == []
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
def test_a_model_trains_on_lf_go_15k(compose, cache_dir, tmp_path):
    quick = [
        "encoder.num_layers=1",
        "trainer.max_steps=2",
        "callbacks.progress=null",
        "classify=false",
        "neighbours=null",
    ]
    config = compose("dataset=go15k", *quick, f"cache_dir={cache_dir}", f"run_dir={tmp_path}/run")
    metrics = train_prototypes(config).metrics
    assert metrics["test/P@1"] > 0.2  # what the untrained layer ranks well is still there
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert "Gene Ontology Consortium" in card
    assert json.loads((tmp_path / "run" / "model" / "prime_config.json").read_text())["max_length"] == 96
