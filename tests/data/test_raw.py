import codecs
import gzip
import json
from importlib.resources import files

import pytest

from prime_xmc.data.raw import RawFiles, Record, read_filter, read_records

GOOD = b'{"uid": "q0", "title": "first", "content": "more", "target_ind": [2, 0], "target_rel": [1.0, 1.0]}\n'


def write(path, content):
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path, fields=("title",), num_labels=3):
    return list(read_records(path, fields, num_labels))


class TestReadRecords:
    @pytest.mark.parametrize("name", ["trn.json.gz", "trn.json"])
    def test_fields_are_joined_in_the_order_asked_for(self, tmp_path, name):
        path = write(tmp_path / name, GOOD)
        assert read(path) == [Record("q0", "first", "first", (2, 0))]
        assert read(path, ("title", "content")) == [Record("q0", "first", "first more", (2, 0))]
        assert read(path, ("content", "title")) == [Record("q0", "more", "more first", (2, 0))]

    def test_labels_have_no_positives(self, tmp_path):
        path = write(tmp_path / "lbl.json.gz", b'{"uid": 17, "title": "x"}\n{"title": "y", "target_ind": [99]}')
        assert read(path, num_labels=None) == [Record("17", "x", "x", ()), Record("1", "y", "y", ())]

    def test_odd_but_harmless_records_come_as_they_are(self, tmp_path):
        path = write(
            tmp_path / "trn.json.gz", b'{"title": "", "target_ind": []}\n{"title": "a", "target_ind": [1, 1]}\n'
        )
        assert read(path) == [Record("0", "", "", ()), Record("1", "a", "a", (1, 1))]

    def test_utf8(self, tmp_path):
        path = write(tmp_path / "trn.json.gz", '{"title": "Überblick 数\\u00e9", "target_ind": []}\n'.encode())
        assert read(path)[0].text == "Überblick 数é"

    def test_labels_with_a_relevance_of_zero_are_no_positives(self, tmp_path):
        path = write(tmp_path / "trn.json", b'{"title": "a", "target_ind": [2, 0, 1], "target_rel": [1, 0.0, 0.25]}\n')
        assert read(path) == [Record("0", "a", "a", (2, 1), 1)]

    @pytest.mark.parametrize("name", ["trn.json.gz", "trn.json"])
    def test_byte_order_mark(self, tmp_path, name):
        assert read(write(tmp_path / name, codecs.BOM_UTF8 + GOOD)) == [Record("q0", "first", "first", (2, 0))]
        with pytest.raises(ValueError, match=r"line 1: the file begins with the mark of UTF-16; convert it to UTF-8"):
            read(write(tmp_path / name, GOOD.decode().encode("utf-16")))

    def test_blank_lines_at_the_end(self, tmp_path):
        assert len(read(write(tmp_path / "trn.json", GOOD + b"\n  \n\n"))) == 1
        with pytest.raises(ValueError, match="line 2: not JSON"):
            read(write(tmp_path / "trn.json", GOOD + b"\n\n" + GOOD))

    def test_open_stream_is_followed_and_left_open(self, tmp_path):
        path = write(tmp_path / "trn.json.gz", GOOD)
        with path.open("rb") as stream:
            assert len(list(read_records(path, ["title"], 3, stream=stream))) == 1
            assert stream.tell() == path.stat().st_size

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b'{"title": "cut', r"not JSON .*\{\"title\": \"cut"),
            (b"", r"not JSON .*''; every line must be one JSON object"),
            (b'["title"]', "is JSON but not an object"),
            (b'{"uid": "x", "target_ind": [1]}', "no field 'title', only uid, target_ind"),
            (b'{"uid": "x", "title": "t"}', "no field 'target_ind', only uid, title"),
            (b'{"title": 5, "target_ind": [1]}', "field 'title' is 5; a string is expected"),
            (b'{"title": null, "target_ind": [1]}', "field 'title' is None"),
            (b'{"uid": [1], "title": "t", "target_ind": [1]}', r"uid is \[1\]; a string or an integer"),
            (b'{"title": "t", "target_ind": 1}', "target_ind is 1; a list of label ids"),
            (b'{"title": "t", "target_ind": [0, 3]}', r"label id 3 in target_ind is outside 0\.\.2"),
            (b'{"title": "t", "target_ind": [-1]}', r"label id -1 in target_ind is outside 0\.\.2"),
            (b'{"title": "t", "target_ind": [1.0]}', r"label id 1\.0 in target_ind is not an integer"),
            (b'{"title": "t", "target_ind": ["1"]}', "label id '1' in target_ind is not an integer"),
            (b'{"title": "t", "target_ind": [true]}', "label id True in target_ind is not an integer"),
            (b'{"title": "t", "target_ind": [1], "target_rel": [1, 0]}', "target_rel is 2 numbers for 1 labels"),
            (b'{"title": "t", "target_ind": [1], "target_rel": 1}', "target_rel is 1 for 1 labels"),
            (b'{"title": "t", "target_ind": [1], "target_rel": [-1]}', "-1 in target_rel is no relevance"),
            (b'{"title": "t", "target_ind": [1], "target_rel": ["1"]}', "'1' in target_rel is no relevance"),
            (b'{"title": "t", "target_ind": [1], "target_rel": [NaN]}', "nan in target_rel is no relevance"),
            ('{"title": "café", "target_ind": [1]}'.encode("latin-1"), r"b'\\xe9' is not valid UTF-8; convert"),
            (b'{"title": "half \\ud83d", "target_ind": [1]}', r"'\\ud83d' is not valid UTF-8"),
        ],
    )
    def test_error_names_file_line_and_value(self, tmp_path, line, message):
        path = write(tmp_path / "trn.json.gz", GOOD + line + b"\n" + GOOD)
        with pytest.raises(ValueError, match=rf"trn\.json\.gz, line 2: .*{message}"):
            read(path)

    def test_missing_field_of_a_configuration_with_two(self, tmp_path):
        path = write(tmp_path / "lbl.json.gz", b'{"uid": "x", "title": "t"}\n')
        with pytest.raises(
            ValueError, match="line 1: no field 'content', only uid, title; add it, or name other fields"
        ):
            read(path, ("title", "content"), None)

    def test_long_lines_are_shortened_in_errors(self, tmp_path):
        path = write(tmp_path / "trn.json", b"x" * 10_000)
        with pytest.raises(ValueError, match=r"x{60}…") as error:
            read(path)
        assert len(str(error.value)) < 400

    def test_truncated_gzip(self, tmp_path):
        lines = b"".join(
            json.dumps({"title": f"{i * 7919 % 10007}", "target_ind": []}).encode() + b"\n" for i in range(5000)
        )
        path = tmp_path / "trn.json.gz"
        path.write_bytes(gzip.compress(lines)[:-2000])
        records = []
        with pytest.raises(ValueError, match=r"trn\.json\.gz, line \d+: the gzip data are truncated") as error:
            records.extend(read_records(path, ["title"], 3))  # keeps what came before the error
        assert 0 < len(records) < 5000
        assert f"line {len(records) + 1}:" in str(error.value)

    @pytest.mark.parametrize("damage", [lambda data: b"plain text", lambda data: data[:-8] + b"\0" * 8])
    def test_damaged_gzip(self, tmp_path, damage):
        path = tmp_path / "trn.json.gz"
        path.write_bytes(damage(gzip.compress(GOOD)))
        with pytest.raises(ValueError, match=r"line \d: the gzip data are truncated or damaged"):
            read(path)

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"trn\.json\.gz"):
            read(tmp_path / "trn.json.gz")


class TestReadFilter:
    @pytest.mark.parametrize(
        ("content", "pairs"),
        [
            (b"0 2\n3 1\n", [[0, 2], [3, 1]]),
            (b"3 1\n", [[3, 1]]),  # np.loadtxt would return one dimension
            (b"3\t1", [[3, 1]]),
            (b"", []),
            (b"\n", []),
            (codecs.BOM_UTF8 + b"0 2\n\n", [[0, 2]]),
        ],
    )
    def test_pairs(self, tmp_path, content, pairs):
        read = read_filter(write(tmp_path / "filter_labels_test.txt", content), num_rows=4, num_labels=3)
        assert read.shape == (len(pairs), 2)
        assert read.tolist() == pairs

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b"4 0", r"row 4 is outside 0\.\.3"),
            (b"-1 0", r"row -1 is outside 0\.\.3"),
            (b"0 3", r"label 3 is outside 0\.\.2"),
            (b"0 -2", r"label -2 is outside 0\.\.2"),
            (b"0", "'0' is not two integers"),
            (b"0 1 2", "'0 1 2' is not two integers"),
            (b"0 one", "'0 one' is not two integers"),
            (b"0 1.0", r"'0 1\.0' is not two integers"),
            (b"0 1_0", "'0 1_0' is not two integers"),
            (b"", "'' is not two integers"),
            (b"\xe9 1", "is not two integers"),
        ],
    )
    def test_error_names_file_line_and_value(self, tmp_path, line, message):
        path = write(tmp_path / "filter_labels_test.txt", b"0 0\n" + line + b"\n1 1\n")
        with pytest.raises(ValueError, match=rf"filter_labels_test\.txt, line 2: .*{message}"):
            read_filter(path, num_rows=4, num_labels=3)


class TestRawFiles:
    def test_files_of_either_kind(self, tmp_path):
        for name in ("trn.json.gz", "tst.json", "lbl.json.gz", "filter_labels_test.txt"):
            (tmp_path / name).touch()
        assert RawFiles(str(tmp_path), "toy").paths() == {
            "trn": tmp_path / "trn.json.gz",
            "tst": tmp_path / "tst.json",
            "lbl": tmp_path / "lbl.json.gz",
            "filter_labels_test": tmp_path / "filter_labels_test.txt",
        }

    def test_a_file_that_is_there_twice(self, tmp_path):
        for name in ("trn.json.gz", "trn.json", "tst.json", "lbl.json.gz"):
            (tmp_path / name).touch()
        with pytest.raises(ValueError, match=r"both trn\.json\.gz and trn\.json are in .*; remove or rename"):
            RawFiles(tmp_path, "toy").paths()

    def test_a_test_file_may_be_missing_where_a_split_may_be_split_off(self, tmp_path):
        for name in ("trn.json", "lbl.json"):
            (tmp_path / name).touch()
        assert set(RawFiles(tmp_path, "toy", num_test=None).paths()) == {"trn", "lbl"}
        with pytest.raises(FileNotFoundError, match=r"tst\.json \(or \.json\.gz\) not found"):
            RawFiles(tmp_path, "toy").paths()

    def test_fields(self):
        assert RawFiles("", "toy", fields="text").fields == ("text",)
        assert RawFiles("", "toy", ["title", "text"], label_fields="name").label_fields == ("name",)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"fields": []}, r"dataset\.fields is empty; expected the fields that make up a text"),
            ({"fields": ""}, r"dataset\.fields is empty"),
            ({"label_fields": []}, r"dataset\.label_fields is empty"),
            ({"num_test": -1}, r"dataset\.num_test of at least 0, or null, got -1"),
        ],
    )
    def test_settings_that_make_no_sense(self, settings, message):
        with pytest.raises(ValueError, match=message):
            RawFiles("", "toy", **settings)

    def test_all_missing_files_are_listed_with_the_hint(self, tmp_path):
        (tmp_path / "tst.json").touch()
        with pytest.raises(FileNotFoundError) as error:
            RawFiles(tmp_path, "toy", hint="Download toy.zip from https://example.org").paths()
        assert str(error.value) == (
            f"toy: trn.json, lbl.json (or .json.gz) not found in {tmp_path}. Download toy.zip from https://example.org"
        )

    def test_package_carries_lf_debian_18k(self):
        paths = RawFiles(str(files("prime_xmc") / "datasets" / "LF-Debian-18K"), "LF-Debian-18K").paths()
        assert set(paths) == {"trn", "tst", "lbl", "filter_labels_train", "filter_labels_test"}
        assert next(read_records(paths["lbl"], ["title"], None)).uid == "0ad"


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("depth", [101, 1000, 20_000])
def test_deeply_nested_lines_are_refused(tmp_path, opening, depth):
    closing = "]" if opening == "[" else "}"
    good = '{"title": "a", "target_ind": [0]}'
    for odd in (opening * depth, '{"title": "a", "more": ' + opening * depth + "1" + closing * depth + "}"):
        path = tmp_path / "trn.json"
        path.write_text(f"{good}\n{odd}\n{good}\n")
        with pytest.raises(ValueError, match=r"trn\.json, line 2: "):
            list(read_records(path, ["title"], 3))
