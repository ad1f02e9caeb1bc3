import json
import logging
import os
import resource

import pytest

from prime_xmc.export.partial_output import open_output, open_partial, output_format_of, what_made

MADE_FROM = {"top_k": "5", "input": ["queries.txt", 3, 4]}


def record(number):
    return {"query": f"q{number}", "labels": []}


@pytest.fixture
def target(tmp_path):
    return tmp_path / "found.jsonl"


def answer(target, num_records, made_from, error):
    """Answer some queries in chunks of two, and end by an error."""
    with open_partial(target, made_from, resume=True) as output:
        for number in range(output.num_done, num_records, 2):
            output.write([record(number), record(number + 1)])
        raise error


def interrupted(target, num_records, made_from=MADE_FROM, behind=b""):
    """Leave what a process does that is interrupted, maybe while it writes."""
    with pytest.raises(KeyboardInterrupt):
        answer(target, num_records, made_from, KeyboardInterrupt())
    with target.with_name(f".{target.name}.partial").open("ab") as file:
        file.write(behind)


def finished(target, num_records, made_from=MADE_FROM, resume=True):
    with open_partial(target, made_from, resume=resume) as output:
        start = output.num_done
        for number in range(start, num_records, 2):
            output.write([record(number), record(number + 1)])
    return start


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["found.jsonl", "found.csv", "found.parquet", "found.jsonl.gz", "found"])
def test_the_result_is_that_of_one_run(tmp_path, name):
    whole, parts = tmp_path / "whole" / name, tmp_path / "parts" / name
    assert finished(whole, 10) == 0
    interrupted(parts, 4, behind=b'{"query": "q4", "la')
    assert names(parts.parent) == [f".{name}.partial", f".{name}.progress"]
    interrupted(parts, 6)
    assert finished(parts, 10) == 6
    assert parts.read_bytes() == whole.read_bytes()
    assert names(parts.parent) == names(whole.parent) == [name]


def test_a_chunk_that_is_interrupted_while_it_is_written_is_answered_once(target):
    class Interrupting(list):
        def __iter__(self):
            yield self[0]
            raise KeyboardInterrupt

    def write_until_interrupted():
        with open_partial(target, MADE_FROM, resume=True) as output:
            output.write([record(0), record(1)])
            output.write(Interrupting([record(2), record(3)]))

    with pytest.raises(KeyboardInterrupt):
        write_until_interrupted()
    assert finished(target, 6) == 2
    assert [json.loads(line) for line in target.read_text().splitlines()] == [record(number) for number in range(6)]


def test_what_was_not_noted_is_answered_again(target, monkeypatch):
    """A process that is killed does not say how far it came."""
    monkeypatch.setattr("prime_xmc.export.partial_output._SECONDS", 0)
    interrupted(target, 4)
    progress = target.with_name(".found.jsonl.progress")
    lines = progress.read_text().splitlines(keepends=True)
    assert [json.loads(line)["queries"] for line in lines[1:]] == [2, 4, 4]
    progress.write_text("".join(lines[:2]) + lines[2][:9])  # the line of the fourth was cut off
    assert finished(target, 6) == 2
    assert [json.loads(line) for line in target.read_text().splitlines()] == [record(number) for number in range(6)]


def test_answers_that_are_lost_are_made_again(target, monkeypatch):
    """As after a power cut, where the file is shorter than was noted."""
    monkeypatch.setattr("prime_xmc.export.partial_output._SECONDS", 0)
    interrupted(target, 4)
    partial = target.with_name(".found.jsonl.partial")
    partial.write_bytes(partial.read_bytes()[:-5])
    assert finished(target, 4) == 2
    assert len(target.read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("made_from", "resume", "said"),
    [
        (MADE_FROM | {"top_k": "6"}, True, "4 queries are answered already, but with another top_k: starting again"),
        (MADE_FROM, False, None),
        (None, True, None),
    ],
)
def test_other_answers_start_again(target, caplog, made_from, resume, said):
    interrupted(target, 4)
    caplog.clear()
    assert finished(target, 4, made_from, resume) == 0
    assert [each for each in caplog.messages if "starting" in each] == ([] if said is None else [said])
    assert len(target.read_text().splitlines()) == 4
    assert names(target.parent) == ["found.jsonl"]


def test_how_it_went_is_said(target, caplog):
    with caplog.at_level(logging.INFO):
        interrupted(target, 4)
        finished(target, 6)
    assert caplog.messages == [
        f"{target}: 4 queries are answered; the same command goes on from there",
        "going on after 4 queries that are answered already; resume=false starts again",
        f"{target}: labels of 6 queries",
    ]


@pytest.mark.parametrize("content", ["", "{", '{"top_k": "5"}\n[1]\n'])
def test_damaged_progress_starts_again(target, content):
    interrupted(target, 4)
    target.with_name(".found.jsonl.progress").write_text(content)
    assert finished(target, 4) == 0


def test_an_error_of_the_input_leaves_nothing_but_the_older_output(target):
    target.write_text("old")
    with pytest.raises(ValueError, match="line 7"):
        answer(target, 2, MADE_FROM, ValueError("line 7"))
    assert names(target.parent) == ["found.jsonl"]
    assert target.read_text() == "old"


@pytest.mark.parametrize("name", ["found.jsonl", "found.csv"])
def test_a_full_disk_is_named_by_the_output_and_loses_no_answers(tmp_path, name):
    target, before = tmp_path / name, resource.getrlimit(resource.RLIMIT_FSIZE)
    interrupted(target, 4)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            finished(target, 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.filename == str(target)
    assert not target.exists()
    assert finished(target, 1000) >= 4, "it goes on after what was noted"


def test_standard_input_cannot_be_read_again(target):
    with pytest.raises(KeyboardInterrupt):
        answer(target, 2, None, KeyboardInterrupt())
    assert names(target.parent) == []


def test_two_processes_at_once(target):
    with open_partial(target, MADE_FROM, resume=True) as output:
        output.write([record(0)])
        with (
            pytest.raises(ValueError, match=r"found.jsonl is being written by another process"),
            open_partial(target, MADE_FROM, resume=True),
        ):
            pass
    assert target.read_text().count("\n") == 1


def test_a_folder_of_that_name(tmp_path):
    with pytest.raises(IsADirectoryError), open_partial(tmp_path, MADE_FROM, resume=True):
        pass


def test_what_is_no_file_stays_what_it_is(tmp_path):
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    said = r"pipe\.jsonl is a device, a pipe or a socket, and not a file that could be replaced"
    with pytest.raises(ValueError, match=said), open_partial(pipe, MADE_FROM, resume=True):
        pass
    assert pipe.is_fifo()
    assert names(tmp_path) == ["pipe.jsonl"]


@pytest.mark.parametrize("name", ["found.jsonl", "found.csv", "found.jsonl.gz"])
def test_the_file_that_a_link_leads_to_is_written(tmp_path, name):
    (tmp_path / "there").mkdir()
    link, target = tmp_path / name, tmp_path / "there" / "stored"
    link.symlink_to("there/stored")
    interrupted(link, 4)
    assert finished(link, 6) == 4
    finished(tmp_path / "plain" / name, 6)
    assert link.is_symlink()
    assert target.read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert names(target.parent) == ["stored"]


def test_workbooks_are_not_written(tmp_path):
    said = r"output=.*a\.XLSX: workbooks are not written; give a name in \.csv"
    with pytest.raises(ValueError, match=said), open_partial(tmp_path / "a.XLSX", MADE_FROM, resume=True):
        pass
    assert list(tmp_path.iterdir()) == []


def test_standard_output(capsysbinary):
    with open_output(None, MADE_FROM, resume=True) as output:
        output.write([{"query": "ü", "note": "\ud800"}, record(1)])
    assert capsysbinary.readouterr().out == (
        b'{"query": "\\u00fc", "note": "\\ud800"}\n{"query": "q1", "labels": []}\n'
    )


def test_what_answers_are_made_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.bin").write_bytes(b"12")
    (tmp_path / "q.txt").write_bytes(b"123")
    settings = {"top_k": 5, "scorer": "theta", "model": "model", "input": "q.txt"}
    before = what_made(settings)
    assert (before["top_k"], before["scorer"]) == ("5", "theta")
    assert before["model"][0] == str(tmp_path / "model")
    assert [entry[:2] for entry in before["model"][1]] == [["a.bin", 2]]
    assert json.loads(json.dumps(before)) == before == what_made(settings)
    (tmp_path / "model" / "a.bin").write_bytes(b"123")
    (tmp_path / "q.txt").write_bytes(b"1234")
    changed = what_made(settings)
    assert [name for name in settings if changed[name] != before[name]] == ["model", "input"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.csv", "csv"),
        ("a.TSV.gz", "tsv"),
        ("a.parquet", "parquet"),
        ("a.json", "jsonl"),
        ("a.txt", "jsonl"),
        ("a", "jsonl"),
    ],
)
def test_format_by_suffix(tmp_path, name, expected):
    assert output_format_of(tmp_path / name) == expected
