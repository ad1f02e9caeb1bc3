import csv

from prime_xmc.datasets.two_tables import write_two_tables


def test_two_tables(tmp_path):
    assert write_two_tables(tmp_path / "csv", 50)[0] == 50
    with (tmp_path / "csv" / "queries.csv").open(newline="") as file:
        queries = list(csv.DictReader(file))
    with (tmp_path / "csv" / "labels.csv").open(newline="") as file:
        labels = {row["name"]: row["text"] for row in csv.DictReader(file)}
    assert len(queries) == 50
    assert {name for query in queries for name in query["labels"].split(";")} == set(labels)
    assert all(text.startswith(f"{name}: ") for name, text in labels.items())
    assert all(query["text"].startswith(f"{query['id']}: ") for query in queries)
