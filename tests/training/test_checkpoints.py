from pathlib import Path

import pytest
import torch

from prime_xmc.model.banks import RowBank
from prime_xmc.training.checkpoints import ShardedCheckpointIO


def bank(value=1.0, num_rows=6):
    made = RowBank(num_rows, 2)
    made.put(torch.arange(num_rows), torch.full((num_rows, 2), value))
    return made


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded_and_banks_lie_beside(tmp_path):
    io = ShardedCheckpointIO()
    content = {"epoch": 3, "state_dict": {"w": torch.ones(2)}, "banks": {"centroids": bank(2.0)}}
    io.save_checkpoint(content, tmp_path / "new" / "last.ckpt")
    assert isinstance(content["banks"]["centroids"], RowBank), "the caller's stays as it is"
    loaded = io.load_checkpoint(tmp_path / "new" / "last.ckpt")
    assert loaded["epoch"] == 3
    assert loaded["state_dict"]["w"].tolist() == [1, 1]
    other = bank(0.0)
    other.load(Path(loaded["banks"]["centroids"]))
    assert (other.rows == 2).all()


def test_a_newer_checkpoint_takes_the_place_of_the_older_with_its_banks(tmp_path):
    io = ShardedCheckpointIO()
    for value in (1.0, 2.0):
        io.save_checkpoint({"banks": {"centroids": bank(value)}}, tmp_path / "last.ckpt")
    assert len(names(tmp_path)) == 2
    other = bank(0.0)
    other.load(Path(io.load_checkpoint(tmp_path / "last.ckpt")["banks"]["centroids"]))
    assert (other.rows == 2).all()


def test_a_save_that_fails_leaves_the_older_checkpoint(tmp_path):
    io = ShardedCheckpointIO()
    io.save_checkpoint({"epoch": 1, "banks": {"centroids": bank()}}, tmp_path / "last.ckpt")
    before = names(tmp_path)
    with pytest.raises((AttributeError, TypeError)):
        io.save_checkpoint({"epoch": 2, "banks": {"centroids": bank(), "x": "no bank"}}, tmp_path / "last.ckpt")
    assert names(tmp_path) == before
    assert io.load_checkpoint(tmp_path / "last.ckpt")["epoch"] == 1


def test_a_checkpoint_can_be_moved_with_its_banks(tmp_path):
    io = ShardedCheckpointIO()
    io.save_checkpoint({"banks": {"centroids": bank(2.0)}}, tmp_path / "old" / "last.ckpt")
    (tmp_path / "old").rename(tmp_path / "elsewhere")
    other = bank(0.0)
    other.load(Path(io.load_checkpoint(tmp_path / "elsewhere" / "last.ckpt")["banks"]["centroids"]))
    assert (other.rows == 2).all()


def test_removed_with_its_banks(tmp_path):
    io = ShardedCheckpointIO()
    io.save_checkpoint({"banks": {"centroids": bank()}}, tmp_path / "last.ckpt")
    io.save_checkpoint({"banks": {"centroids": bank()}}, tmp_path / "epoch=1.ckpt")
    io.remove_checkpoint(tmp_path / "last.ckpt")
    assert [name.split("-")[0] for name in names(tmp_path)] == ["epoch=1", "epoch=1.ckpt"]


def test_nothing_in_a_checkpoint_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"banks": {}, "x": Evil()}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="more than tensors and plain values"):
        ShardedCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "touched").exists()


def test_a_damaged_file(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match=r"last\.ckpt cannot be read as a checkpoint"):
        ShardedCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
