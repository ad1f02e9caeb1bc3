import gzip
import json
import shutil

import pytest

from prime_xmc.data.raw import RawFiles, read_records
from prime_xmc.datasets.building import write_records
from prime_xmc.datasets.joining import add_contents


@pytest.fixture
def contents(toy_dataset, tmp_path):
    """A file with the content of each query and label of the toy data, in a folder called Long."""
    uids = []
    for name in ("trn", "tst", "lbl"):
        with gzip.open(toy_dataset / f"{name}.json.gz", "rt") as file:
            uids += [json.loads(line)["uid"] for line in file]
    path = tmp_path / "Long" / "contents.json.gz"
    path.parent.mkdir()
    write_records(path, ({"uid": uid, "content": f"é\nof {uid}"} for uid in uids), name_in_header=False)
    return path


def test_every_query_and_label_gets_its_content(toy_dataset, contents, tmp_path):
    folder = add_contents(tmp_path / "raw", raw=toy_dataset, contents=contents)
    assert folder.parent == tmp_path / "raw"
    assert folder.name.startswith("Long-")
    paths = RawFiles(folder, "Long", fields=("title", "content")).paths()
    assert set(paths) == {"trn", "tst", "lbl", "filter_labels_train", "filter_labels_test"}
    for name, num_labels in (("trn", 48), ("tst", 48), ("lbl", None)):
        short = list(read_records(toy_dataset / f"{name}.json.gz", ["title"], num_labels))
        long = list(read_records(paths[name], ["title", "content"], num_labels))
        assert [record.text for record in long] == [f"{record.text} é\nof {record.uid}" for record in short]
        assert [record.positives for record in long] == [record.positives for record in short]
    for name in ("filter_labels_train.txt", "filter_labels_test.txt"):
        assert (folder / name).read_bytes() == (toy_dataset / name).read_bytes()


def test_it_is_written_once(toy_dataset, contents, tmp_path):
    folder = add_contents(tmp_path / "raw", raw=toy_dataset, contents=contents)
    (folder / "trn.json.gz").unlink()
    assert add_contents(tmp_path / "raw", raw=toy_dataset, contents=contents) == folder
    assert not (folder / "trn.json.gz").exists()
    write_records(contents, [], name_in_header=False)
    with pytest.raises(ValueError, match=r"trn\.json\.gz, line 1: .*contents\.json\.gz has no content of 'trn0'"):
        add_contents(tmp_path / "raw", raw=toy_dataset, contents=contents)
    assert list((tmp_path / "raw").iterdir()) == [folder], "nothing is left of what failed"


def test_the_same_files_make_the_same_bytes(toy_dataset, contents, tmp_path):
    folders = [add_contents(tmp_path / name, raw=toy_dataset, contents=contents) for name in ("first", "second")]
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert first == second


def test_a_missing_file_is_named(toy_dataset, contents, tmp_path):
    raw = shutil.copytree(toy_dataset, tmp_path / "copy")
    (raw / "filter_labels_test.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"filter_labels_test\.txt"):
        add_contents(tmp_path / "raw", raw=raw, contents=contents)
