import json
import os

import pytest

from prime_xmc.files import give_default_mode, replace_folder, replacing, temporary_folder, write_json, write_text


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def write_half(path):
    path.write_text("half")
    raise OSError("no space left")


class TestReplacing:
    def test_file_appears_when_it_is_complete(self, tmp_path):
        path = tmp_path / "found.txt"
        path.write_text("old")
        with replacing(path) as temporary:
            temporary.write_text("new")
            assert temporary.parent == tmp_path
            assert path.read_text() == "old"
        assert path.read_text() == "new"
        assert names(tmp_path) == ["found.txt"]

    def test_failure_leaves_the_older_file_and_nothing_else(self, tmp_path):
        path = tmp_path / "found.txt"
        path.write_text("old")
        with pytest.raises(OSError, match="no space left"), replacing(path) as temporary:
            write_half(temporary)
        assert path.read_text() == "old"
        assert names(tmp_path) == ["found.txt"]

    def test_failure_before_the_first_byte(self, tmp_path):
        with pytest.raises(ValueError, match="nothing to write"), replacing(tmp_path / "found.txt"):
            raise ValueError("nothing to write")
        assert names(tmp_path) == []

    def test_two_writers_do_not_meet(self, tmp_path):
        path = tmp_path / "found.txt"
        with replacing(path) as first, replacing(path) as second:
            first.write_text("first")
            second.write_text("second")
        assert path.read_text() == "first"  # the outer block ends last
        assert names(tmp_path) == ["found.txt"]

    def test_folder_is_made(self, tmp_path):
        write_text(tmp_path / "a" / "b" / "found.txt", "text")
        assert (tmp_path / "a" / "b" / "found.txt").read_text() == "text"


def test_default_mode_is_that_of_files_that_open_makes(tmp_path):
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    before = os.umask(0o026)
    try:
        give_default_mode(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["secret"]


class TestTemporaryFolder:
    def test_renamed_folder_stays(self, tmp_path):
        with temporary_folder(tmp_path / "a" / "data") as temporary:
            assert temporary.parent == tmp_path / "a"
            write_text(temporary / "x", "1")
            temporary.rename(tmp_path / "a" / "data")
        assert names(tmp_path / "a") == ["data"]
        assert names(tmp_path / "a" / "data") == ["x"]

    def test_other_one_goes(self, tmp_path):
        with pytest.raises(OSError, match="no space left"), temporary_folder(tmp_path / "data") as temporary:
            write_half(temporary / "x")
        assert names(tmp_path) == []


class TestReplaceFolder:
    @pytest.fixture
    def new(self, tmp_path):
        write_text(tmp_path / "new" / "x", "new")
        return tmp_path / "new"

    def test_name_that_is_free(self, new, tmp_path):
        replace_folder(new, tmp_path / "model")
        assert names(tmp_path) == ["model"]
        assert (tmp_path / "model" / "x").read_text() == "new"

    def test_older_folder_goes_with_all_its_files(self, new, tmp_path):
        write_text(tmp_path / "model" / "y", "old")
        replace_folder(new, tmp_path / "model")
        assert names(tmp_path) == ["model"]
        assert names(tmp_path / "model") == ["x"]

    def test_failure_leaves_the_older_folder(self, tmp_path):
        write_text(tmp_path / "model" / "y", "old")
        with pytest.raises(FileNotFoundError):
            replace_folder(tmp_path / "nowhere", tmp_path / "model")
        assert names(tmp_path) == ["model"]
        assert names(tmp_path / "model") == ["y"]


def test_json_is_for_people_and_utf_8(tmp_path):
    write_json(tmp_path / "metrics.json", {"test/P@1": 0.5, "names": ["語"], "commit": None})
    raw = (tmp_path / "metrics.json").read_bytes()
    assert raw.decode("utf-8") == '{\n  "test/P@1": 0.5,\n  "names": [\n    "語"\n  ],\n  "commit": null\n}\n'


def test_what_json_cannot_say_leaves_the_older_file(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": os})
    assert json.loads(path.read_text()) == {"a": 1}
    assert names(tmp_path) == ["metrics.json"]
