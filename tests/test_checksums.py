import os

import pytest

from prime_xmc import checksums
from prime_xmc.checksums import check_file, describe


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 16)
    path = tmp_path / "data.bin"
    path.write_bytes(bytes(range(200)) * 4)  # 50 blocks
    return path


def test_the_sum_is_that_of_xxh3(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "a").write_bytes(b"a")
    assert describe(tmp_path / "empty") == {"bytes": 0, "xxh3": []}
    assert describe(tmp_path / "a") == {"bytes": 1, "xxh3": ["e6c632b61e964e1f"]}
    for name in ("empty", "a"):
        check_file(tmp_path / name, describe(tmp_path / name), "again")


def test_every_flipped_bit_is_noticed_by_a_full_check(path):
    whole, expected = path.read_bytes(), describe(path)
    check_file(path, expected, "copy it", verify="full")
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"data\.bin is damaged: its bytes {place // 16 * 16} to .*; copy it"):
            check_file(path, expected, "copy it", verify="full")


def test_a_sample_has_both_ends_and_finds_the_rest_in_time(path):
    whole, expected = path.read_bytes(), describe(path)
    for place in (0, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            check_file(path, expected, "copy it")
    damaged = bytearray(whole)
    damaged[400] ^= 1
    path.write_bytes(damaged)

    def is_noticed() -> bool:
        try:
            check_file(path, expected, "copy it")
        except ValueError:
            return True
        return False

    # each look at 14 of 48 blocks misses it with a probability of 0.71
    assert 10 < sum(is_noticed() for _ in range(200)) < 120


def test_another_size_and_no_file(path):
    expected = describe(path)
    path.write_bytes(b"short")
    with pytest.raises(ValueError, match=r"it has 5 bytes, and had 800; copy it"):
        check_file(path, expected, "copy it")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"data\.bin: not found; copy it"):
        check_file(path, expected, "copy it")


@pytest.mark.parametrize("expected", [None, {}, {"bytes": 800, "xxh3": ["1"]}, {"bytes": 800, "xxh3": 3}, [1]])
def test_damaged_checksums(path, expected):
    with pytest.raises(ValueError, match=r"the checksum of .*data\.bin is damaged"):
        check_file(path, expected, "copy it")


def test_an_unknown_choice(path):
    with pytest.raises(ValueError, match="expected verify sampled or full, got 'some'"):
        check_file(path, describe(path), "copy it", verify="some")


def test_a_whole_file_is_compared_once_until_it_is_written_again(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    expected, read = describe(path), []
    original = checksums._blocks
    monkeypatch.setattr(checksums, "_blocks", lambda *of: (read.append(of), original(*of))[1])
    check_file(path, expected, "", verify="full")
    check_file(path, expected, "", verify="full")  # it has been written just now, and may be again
    assert len(read) == 2
    os.utime(path, ns=(0, 0))
    for _ in range(3):
        check_file(path, expected, "", verify="full")
    assert len(read) == 3
    check_file(path, expected, "", verify="sampled")
    assert len(read) == 4
    with pytest.raises(ValueError, match="is damaged"):
        check_file(path, expected | {"xxh3": ["0" * 16]}, "", verify="full")
    path.write_bytes(bytes(999) + b"x")
    with pytest.raises(ValueError, match="is damaged"):
        check_file(path, expected, "", verify="full")


def test_a_size_that_is_no_number_is_a_damaged_checksum(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"a")
    expected = describe(path)
    with pytest.raises(ValueError, match=r"the checksum of .* is damaged"):
        check_file(path, {"bytfs": 1, "xxh3": expected["xxh3"]}, "")
