import errno
import json
import multiprocessing
import os
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from prime_xmc import files
from prime_xmc.files import locked, publishing, remove_leftovers, replacing, save_tensors, write_json, write_text


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def write_half(path):
    path.write_text("half")
    raise OSError("no space left")


class TestReplacing:
    def test_file_appears_when_it_is_complete(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("old")
        with replacing(path) as temporary:
            temporary.write_text("new")
            assert temporary.parent == tmp_path
            assert path.read_text() == "old"
        assert path.read_text() == "new"
        assert names(tmp_path) == ["a.txt"]

    def test_failure_leaves_the_older_file_and_nothing_else(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("old")
        with pytest.raises(OSError, match="no space left"), replacing(path) as temporary:
            write_half(temporary)
        assert path.read_text() == "old"
        assert names(tmp_path) == ["a.txt"]

    def test_failure_before_the_first_byte(self, tmp_path):
        with pytest.raises(ValueError, match="nothing to write"), replacing(tmp_path / "a.txt"):
            raise ValueError("nothing to write")
        assert names(tmp_path) == []

    def test_a_folder_of_that_name_is_told_at_once(self, tmp_path):
        with pytest.raises(IsADirectoryError, match="is a folder, expected the name of a file") as error:
            write_text(tmp_path, "x")
        assert error.value.filename == str(tmp_path)
        assert names(tmp_path) == []

    def test_two_writers_do_not_meet(self, tmp_path):
        path = tmp_path / "a.txt"
        with replacing(path) as first, replacing(path) as second:
            first.write_text("first")
            second.write_text("second")
        assert path.read_text() == "first"  # the outer block ends last
        assert names(tmp_path) == ["a.txt"]

    def test_folder_is_made(self, tmp_path):
        write_text(tmp_path / "a" / "b" / "a.txt", "text")
        assert (tmp_path / "a" / "b" / "a.txt").read_text() == "text"

    def test_the_file_that_a_link_leads_to_is_replaced(self, tmp_path):
        (tmp_path / "there").mkdir()
        (tmp_path / "link").symlink_to("there/new")
        for content in ("first", "second"):
            write_text(tmp_path / "link", content)
            assert (tmp_path / "there" / "new").read_text() == content
        assert (tmp_path / "link").is_symlink()
        assert names(tmp_path) == ["link", "there"]
        assert names(tmp_path / "there") == ["new"]

    def test_the_name_of_standard_output_is_no_file(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=r"a file named - was asked for: .* so leave it out"):
            write_text(Path("-"), "rows")
        assert os.listdir() == []
        write_text(tmp_path / "-", "rows")
        assert os.listdir() == ["-"]

    def test_what_is_no_file_stays_what_it_is(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "link").symlink_to("pipe")
        for name in ("pipe", "link"):
            with pytest.raises(ValueError, match=f"{name} is a device, a pipe or a socket"):
                write_text(tmp_path / name, "new")
        assert (tmp_path / "pipe").is_fifo()
        assert names(tmp_path) == ["link", "pipe"]


class TestPublishing:
    @pytest.mark.parametrize("replace", [True, False])
    def test_folder_appears_when_it_is_complete(self, tmp_path, replace):
        directory = tmp_path / "a" / "model"
        with publishing(directory, replace=replace) as temporary:
            write_text(temporary / "x", "1")
            assert temporary.parent == directory.parent
            assert not directory.exists()
        assert names(tmp_path / "a") == ["model"]
        assert names(directory) == ["x"]

    @pytest.mark.parametrize("replace", [True, False])
    def test_failure_leaves_the_older_folder_and_nothing_else(self, tmp_path, replace):
        directory = tmp_path / "model"
        write_text(directory / "y", "old")
        with pytest.raises(OSError, match="no space left"), publishing(directory, replace=replace) as temporary:
            write_half(temporary / "x")
        assert names(tmp_path) == ["model"]
        assert names(directory) == ["y"]

    def test_older_folder_is_replaced_with_all_its_files(self, tmp_path):
        directory = tmp_path / "model"
        write_text(directory / "y", "old")
        with publishing(directory, replace=True) as temporary:
            write_text(temporary / "x", "new")
        assert names(tmp_path) == ["model"]
        assert names(directory) == ["x"]

    def test_folder_that_another_process_published_first_stays(self, tmp_path):
        directory = tmp_path / "cache"
        with publishing(directory, replace=False) as second:
            write_text(second / "x", "second")
            with publishing(directory, replace=False) as first:
                write_text(first / "x", "first")
        assert names(tmp_path) == ["cache"]
        assert (directory / "x").read_text() == "first"

    def test_file_of_that_name_is_not_overwritten(self, tmp_path):
        path = tmp_path / "model"
        path.write_text("a file")
        with pytest.raises(NotADirectoryError), publishing(path, replace=True) as temporary:
            write_text(temporary / "x", "new")
        assert path.read_text() == "a file"
        assert names(tmp_path) == ["model"]

    def test_many_writers_at_once_all_succeed(self, tmp_path):
        directory = tmp_path / "model"

        def publish(number):
            for _ in range(20):
                with publishing(directory, replace=True) as temporary:
                    write_text(temporary / "x", str(number))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(publish, range(4)))  # raises what a writer raised
        assert names(tmp_path) == ["model"]
        assert names(directory) == ["x"]

    @pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
    def test_files_have_the_mode_that_the_umask_gives(self, tmp_path, umask, mode):
        before = os.umask(umask)
        try:
            with publishing(tmp_path / "model", replace=True) as temporary:
                save_file({"a": torch.ones(2)}, temporary / "model.safetensors")  # writes 0600
                write_text(temporary / "tokenizer" / "x", "1")
        finally:
            os.umask(before)
        paths = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
        assert [path.stat().st_mode & 0o777 for path in paths] == [mode, mode]


class TestLocked:
    def test_one_process_at_a_time(self, tmp_path):
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=note_twice, args=(tmp_path / "a" / "job.lock",)) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0]
        first, again, second, at_last = (tmp_path / "a" / "notes").read_text().split()
        assert first == again
        assert second == at_last
        assert first != second


def note_twice(lock):
    with locked(lock):
        for _ in range(2):
            with (lock.parent / "notes").open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0.2)


class TestSaveTensors:
    def test_contents_are_read_back(self, tmp_path):
        tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.ones(2, requires_grad=True)}
        save_tensors(tmp_path / "a.safetensors", tensors)
        restored = load_file(tmp_path / "a.safetensors")
        assert restored.keys() == tensors.keys()
        assert all(torch.equal(restored[name], tensor) for name, tensor in tensors.items())

    @pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
    def test_mode_is_what_the_umask_gives(self, tmp_path, umask, mode):
        before = os.umask(umask)
        try:
            save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)})
        finally:
            os.umask(before)
        assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == mode


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


def publish_many(arguments):
    directory, number, replace = arguments
    for _ in range(30):
        with publishing(directory, replace=replace) as temporary:
            for name in "abc":
                (temporary / name).write_text(str(number))
    return number


class TestPublishingAtOnce:
    def test_a_reader_always_finds_a_whole_folder(self, tmp_path):
        """With two renames in place of an exchange, there is none for a moment."""
        directory = tmp_path / "model"
        publish_many((directory, 0, True))
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(publish_many, (directory, number, True)) for number in (1, 2)]
            looks = 0
            while not all(job.done() for job in jobs):
                assert (directory).is_dir()
                looks += 1
            assert [job.result() for job in jobs] == [1, 2]
        assert looks > 0
        assert len({(directory / name).read_text() for name in "abc"}) == 1
        assert names(tmp_path) == ["model"]

    @pytest.mark.parametrize("replace", [False, True])
    def test_all_succeed(self, tmp_path, replace):
        with ThreadPoolExecutor(4) as pool:
            done = pool.map(publish_many, [(tmp_path / "cache", number, replace) for number in range(4)])
            assert list(done) == [0, 1, 2, 3]
        assert names(tmp_path) == ["cache"]
        assert names(tmp_path / "cache") == ["a", "b", "c"]

    def test_without_an_exchange_it_is_two_renames(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files, "_exchanged", lambda new, directory: False)
        for number in (1, 2):
            publish_many((tmp_path / "cache", number, True))
        assert (tmp_path / "cache" / "a").read_text() == "2"
        assert names(tmp_path) == ["cache"]


class TestLeftovers:
    def test_those_of_a_process_that_was_killed(self, tmp_path, half_written):
        process = multiprocessing.Process(target=os._exit, args=(9,))
        process.start()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has asked for its status
        dead = [half_written(tmp_path / name, process.pid) for name in ("a", "within/b")]
        alive = half_written(tmp_path / "c", os.getpid())
        others = [tmp_path / ".c.0123", tmp_path / f"c.{'0' * 32}", tmp_path / f".c.{'g' * 32}"]
        for path in others:
            path.touch()
        assert remove_leftovers(tmp_path, idle_hours=1, everywhere=False) == dead[:1]
        process.join()
        assert remove_leftovers(tmp_path, idle_hours=1, everywhere=True) == dead[1:]
        assert all(path.exists() for path in (alive, *others))

    def test_those_of_another_machine_when_nobody_has_touched_them_for_hours(self, tmp_path):
        folder = tmp_path / f".model.{'a' * 32}"
        folder.mkdir()
        (folder / "weights").touch()
        for path in (folder, folder / "weights"):
            os.utime(path, (time.time() - 7200,) * 2)
        assert not remove_leftovers(tmp_path, idle_hours=3, everywhere=False)
        assert remove_leftovers(tmp_path, idle_hours=1, everywhere=False) == [folder]
        assert not folder.exists()

    def test_names_tell_the_process(self, tmp_path):
        with replacing(tmp_path / "a") as temporary:
            temporary.touch()
            assert files._TEMPORARY.fullmatch(temporary.name)["process"] == f"{os.getpid():08x}"
            assert not remove_leftovers(tmp_path, idle_hours=0, everywhere=True)
            assert temporary.exists()

    def test_where_nothing_is(self, tmp_path):
        assert remove_leftovers(tmp_path / "nowhere", idle_hours=0, everywhere=True) == []


@pytest.fixture
def small_files():
    """Lets no file grow above 64 KiB, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_with_faiss(path):
    faiss = pytest.importorskip("faiss")
    index = faiss.IndexFlatIP(100)
    index.add(np.zeros((1000, 100), dtype=np.float32))
    faiss.write_index(index, str(path))


def write_to_file(path):
    with path.open("wb") as file:
        np.zeros(100_000).tofile(file)


WRITERS = {
    "torch": lambda path: torch.save({"a": torch.zeros(100_000)}, path),
    "safetensors": lambda path: save_tensors(path, {"a": torch.zeros(100_000)}),
    "faiss": write_with_faiss,
    "numpy": write_to_file,
    "text": lambda path: path.write_text("a" * 100_000),
}


@pytest.mark.parametrize("library", WRITERS)
class TestFullDisk:
    """Whatever a library says of it, the error names the file as it would have been called."""

    def test_of_a_file(self, tmp_path, small_files, library):
        path = tmp_path / "a" / "file"
        write_text(path, "old")
        with pytest.raises(OSError, match="File too large") as error, replacing(path) as temporary:
            WRITERS[library](temporary)
        assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(path))
        assert path.read_text() == "old"
        assert names(path.parent) == ["file"]

    def test_of_a_folder(self, tmp_path, small_files, library):
        def write():
            with publishing(tmp_path / "model", replace=True) as temporary:
                write_text(temporary / "config.json", "{}")
                WRITERS[library](temporary / "file")

        with pytest.raises(OSError, match="File too large") as error:
            write()
        assert error.value.errno == errno.EFBIG
        assert error.value.filename in (str(tmp_path / "model"), str(tmp_path / "model" / "file"))
        assert names(tmp_path) == []


def test_a_defect_while_writing_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="a defect"), replacing(tmp_path / "a"):
        raise RuntimeError("a defect")
    with pytest.raises(OSError, match="elsewhere") as error, publishing(tmp_path / "b", replace=True):
        raise FileNotFoundError(errno.ENOENT, "not here", "/elsewhere")
    assert error.value.filename == "/elsewhere"


def test_finding_out_the_reason_changes_no_file_that_is_linked(tmp_path):
    write_text(tmp_path / "needed", "needed")

    def fail(place, linked):
        os.link(tmp_path / "needed", linked)
        raise RuntimeError(f"a defect in {place}")

    with pytest.raises(RuntimeError, match="defect in a"), publishing(tmp_path / "a", replace=True) as temporary:
        fail("a", temporary / "linked")
    with pytest.raises(RuntimeError, match="defect in b"), replacing(tmp_path / "b") as temporary:
        fail("b", temporary)
    assert (tmp_path / "needed").read_text() == "needed"
    assert names(tmp_path) == ["needed"]


def test_a_folder_that_cannot_be_made_is_called_by_its_name(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError) as error, publishing(tmp_path / "file" / "model", replace=True):
        pass
    assert ".model." not in str(error.value)
