"""A model without probabilities gets them, from a table of labelled queries to a prediction."""

import csv
import gzip
import json
import shutil

import pytest

from prime_xmc.calibrate import run as calibrate
from prime_xmc.predict import run as predict


def test_from_a_table_to_probabilities(toy_bundle, toy_dataset, compose, tmp_path, capsys):
    model, table = shutil.copytree(toy_bundle, tmp_path / "model"), tmp_path / "labelled.csv"
    with gzip.open(toy_dataset / "tst.json.gz") as lines, table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["first", "rest", "tags"])
        for record in map(json.loads, lines):
            first, _, rest = record["title"].partition(" ")
            writer.writerow([first, rest, ";".join(f"l{i}" for i in record["target_ind"])])
    (tmp_path / "queries.txt").write_text("a red cat\n")
    asked = compose(
        f"model.dir={model}", f"input={tmp_path / 'queries.txt'}", "device=cpu", "calibrate=true", name="predict"
    )
    with pytest.raises(FileNotFoundError, match=f"prime-xmc-calibrate model={model} input="):
        predict(asked)
    columns = "query_column=[first,rest]", "label_column=tags"
    calibrate(compose(f"model.dir={model}", f"input={table}", *columns, "device=cpu", name="calibrate"))
    printed = " ".join(capsys.readouterr().out.split())
    assert "probabilities of theta are fitted on 60 labelled queries" in printed
    assert "min_score=" in printed
    predict(asked)
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    probabilities = [label["probability"] for label in record["labels"]]
    assert sorted(probabilities, reverse=True) == probabilities
    assert 0 < probabilities[-1] < probabilities[0] < 1
    card = (model / "README.md").read_text()
    assert "## Probabilities" in card
    assert "| labelled |" in card


def test_an_unknown_label(toy_bundle, compose, tmp_path):
    (tmp_path / "labelled.csv").write_text("query,labels\na red cat,l99\n")
    with pytest.raises(ValueError, match=r"labelled.csv, line 2: there is no label 'l99' in the model; correct it"):
        calibrate(compose(f"model.dir={toy_bundle}", f"input={tmp_path / 'labelled.csv'}", name="calibrate"))
