import json
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
    for value in (0.0, 1.0, 2.0):
        io.save_checkpoint({"banks": {"centroids": bank(value)}}, tmp_path / "last.ckpt")
    assert len(names(tmp_path)) == 4, "two checkpoints, each with its banks"
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


@pytest.fixture
def two(tmp_path):
    io = ShardedCheckpointIO()
    for epoch in (1, 2):
        weights = torch.arange(1000.0) + epoch
        io.save_checkpoint(
            {"epoch": epoch, "w": weights, "banks": {"centroids": bank(float(epoch))}}, tmp_path / "last.ckpt"
        )
    return tmp_path / "last.ckpt"


def flip(path, place, mask=0x10):
    content = bytearray(path.read_bytes())
    content[place] ^= mask
    path.write_bytes(content)


def test_a_flipped_bit_is_noticed_and_the_checkpoint_before_it_is_read(two, caplog):
    flip(two, two.read_bytes().index(torch.tensor([502.0, 503.0]).numpy().tobytes()))
    content = ShardedCheckpointIO().load_checkpoint(two)
    assert content["epoch"] == 1
    assert content["w"][0] == 1
    other = bank(0.0)
    other.load(Path(content["banks"]["centroids"]))
    assert (other.rows == 1).all()
    assert "last.ckpt is damaged" in caplog.text
    assert "going on from the checkpoint before it" in caplog.text


def test_zeros_in_a_bank_are_noticed(two, caplog):
    banks = Path(ShardedCheckpointIO().load_checkpoint(two)["banks"]["centroids"])
    (shard,) = banks.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-16:] = bytes(16)
    shard.write_bytes(content)
    assert ShardedCheckpointIO().load_checkpoint(two)["epoch"] == 1
    assert "rows-00000.safetensors is damaged" in caplog.text
    two.with_name("before-last.ckpt").unlink()
    with pytest.raises(ValueError, match=r"last\.ckpt has a damaged bank: .*rows-00000\.safetensors is damaged"):
        ShardedCheckpointIO().load_checkpoint(two)


def test_a_flipped_bit_in_the_directory_of_the_archive_is_damage(two):
    """Whatever Python's reader of archives ends with, a seek to a place before the beginning included."""
    two.with_name("before-last.ckpt").unlink()
    io, size = ShardedCheckpointIO(), two.stat().st_size
    messages = []
    for place in range(size - 300, size):
        flip(two, place, 1)
        try:
            io.load_checkpoint(two)
        except ValueError as error:
            messages.append(str(error))
        flip(two, place, 1)
    assert len(messages) > 100
    assert all(str(two) in message for message in messages)


def test_no_flipped_bit_changes_what_is_loaded(two):
    """Each is noticed, or is in a place that holds nothing, such as the padding between tensors."""
    two.with_name("before-last.ckpt").unlink()
    io, whole = ShardedCheckpointIO(), two.read_bytes()
    before = io.load_checkpoint(two)
    noticed = 0
    for place in range(0, len(whole), 37):
        flip(two, place, 1 << place % 8)
        try:
            content = io.load_checkpoint(two)
        except ValueError:
            noticed += 1
        else:
            assert content["epoch"] == before["epoch"]
            assert torch.equal(content["w"], before["w"])
            assert content["banks"] == before["banks"]
        two.write_bytes(whole)
    assert noticed > 0.75 * len(range(0, len(whole), 37))


def test_a_bank_elsewhere_is_refused(two):
    content = torch.load(two, weights_only=True)
    torch.save(content | {"banks": {"centroids": "../other"}}, two)
    two.with_name("before-last.ckpt").unlink()
    with pytest.raises(ValueError, match="expected one beside it"):
        ShardedCheckpointIO().load_checkpoint(two)


def test_banks_of_version_0_1_0_have_no_checksums(two):
    io = ShardedCheckpointIO()
    index = Path(io.load_checkpoint(two)["banks"]["centroids"]) / "index.json"
    content = json.loads(index.read_text())
    assert len(content.pop("shards")) == 1
    index.write_text(json.dumps(content))
    other = bank(0.0)
    other.load(Path(io.load_checkpoint(two)["banks"]["centroids"]))
    assert (other.rows == 2).all()
