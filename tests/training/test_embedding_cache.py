import logging
import os

import pytest
import torch

from prime_xmc.model.banks import RowBank
from prime_xmc.training.embedding_cache import load_embeddings, save_embeddings


def banks(value: float) -> dict[str, RowBank]:
    embedded = {"query": RowBank(10, 4), "label": RowBank(3, 4)}
    for bank in embedded.values():
        bank.put(torch.arange(len(bank)), torch.full((len(bank), 4), value))
    return embedded


def test_round_trip(tmp_path):
    save_embeddings(tmp_path / "cache" / "embeddings-1", banks(0.5))
    empty = banks(0.0)
    load_embeddings(tmp_path / "cache" / "embeddings-1", empty)
    assert all((bank.rows == 0.5).all() for bank in empty.values())
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["embeddings-1"]


def test_a_single_bank_is_the_folder_itself(tmp_path):
    save_embeddings(tmp_path / "queries-1", {".": banks(0.5)["query"]})
    assert (tmp_path / "queries-1" / "index.json").is_file()
    bank = banks(0.0)["query"]
    load_embeddings(tmp_path / "queries-1", {".": bank})
    assert (bank.rows == 0.5).all()


@pytest.mark.parametrize("content", ["half", b"", b"\0" * 100, None], ids=["half", "empty", "zeros", "missing"])
@pytest.mark.parametrize("name", ["index.json", "rows-00000.safetensors"])
def test_damaged_files_name_the_folder_to_delete(tmp_path, name, content):
    directory = tmp_path / "embeddings-1"
    save_embeddings(directory, banks(0.5))
    path = directory / "label" / name
    whole = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(ValueError, match=rf"label.*delete {directory}, and they are computed again"):
        load_embeddings(directory, banks(0.0))


def test_a_cache_that_cannot_be_written_costs_no_run(tmp_path, caplog):
    (tmp_path / "cache").touch()  # a file where the folder should be; the superuser may write to read-only folders
    with caplog.at_level(logging.WARNING):
        save_embeddings(tmp_path / "cache" / "embeddings-1", banks(0.5))
    assert "the embeddings cannot be kept in" in caplog.text
    assert os.listdir(tmp_path) == ["cache"]
