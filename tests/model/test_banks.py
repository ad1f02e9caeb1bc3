import json
import resource
import shutil

import pytest
import torch
from safetensors.torch import load_file

from prime_xmc.model.banks import PLACEMENTS, RowBank


def filled(num_rows=10, dim=4, **settings):
    bank = RowBank(num_rows, dim, **settings)
    bank.put(torch.arange(num_rows), torch.arange(num_rows * dim).view(num_rows, dim) / 8)
    return bank


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
class TestEverywhere:
    def test_rows_are_read_and_written(self, placement, dtype, tmp_path):
        bank = RowBank(5, 2, dtype=dtype, placement=placement, directory=str(tmp_path))
        assert bank.take(torch.tensor([1, 4])).tolist() == [[0, 0], [0, 0]]
        bank.put(torch.tensor([4, 1]), torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True))
        assert bank.take(torch.tensor([1, 0, 4, 1])).tolist() == [[3, 4], [0, 0], [1, 2], [3, 4]]
        assert bank.take(torch.tensor([1])).dtype == bank.rows.dtype == getattr(torch, dtype)
        assert len(bank) == 5
        assert not bank.rows.requires_grad

    def test_it_is_in_no_state_dict(self, placement, dtype, tmp_path):
        bank = RowBank(5, 2, dtype=dtype, placement=placement, directory=str(tmp_path))
        assert list(bank.state_dict()) == []
        assert bool(list(bank.buffers())) == (placement == "device"), "only there it moves with the module"

    def test_saved_and_loaded(self, placement, dtype, tmp_path):
        bank = filled(placement=placement, dtype=dtype)
        bank.save(tmp_path / "bank")
        other = RowBank(10, 4, dtype=dtype)
        other.load(tmp_path / "bank")
        assert torch.equal(other.rows, bank.rows)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_it_keeps_its_dtype_and_digits_whatever_the_module_takes(placement, dtype):
    """In bfloat16, a running average would stall."""
    module = torch.nn.ModuleDict({"bank": filled(placement=placement, dtype=dtype), "layer": torch.nn.Linear(2, 2)})
    rows = module["bank"].rows.clone()
    for cast in (module.bfloat16, module.half, module.double):
        cast()
        assert module["bank"].rows.dtype == rows.dtype
        assert torch.equal(module["bank"].rows, rows)
    module["bank"].put(torch.tensor([0]), torch.full((1, 4), 1.001))
    assert module["bank"].take(torch.tensor([0]))[0, 0] == torch.tensor(1.001).to(rows.dtype)


def test_a_mapped_bank_leaves_no_file(tmp_path):
    bank = filled(placement="mmap", directory=str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []
    assert bank.take(torch.tensor([9])).tolist() == [[4.5, 4.625, 4.75, 4.875]]


@pytest.mark.parametrize("limit", ["size of files", "room"])
def test_a_mapped_bank_without_room_is_refused(tmp_path, monkeypatch, limit):
    """Rather than written to, which would end the process with SIGBUS."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit == "room":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(ValueError, match=rf"needs a file of 1,600 bytes in {tmp_path}, and .*by bank\.directory="):
            RowBank(100, 4, placement="mmap", directory=str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_shards_hold_each_row_once(tmp_path):
    bank = filled(dtype="float32")  # 16 bytes a row
    bank.save(tmp_path / "bank", shard_bytes=3 * 16 + 5)
    shards = [load_file(path)["rows"] for path in sorted((tmp_path / "bank").glob("*.safetensors"))]
    assert [len(shard) for shard in shards] == [3, 3, 3, 1]
    assert torch.equal(torch.cat(shards), bank.rows)
    other = RowBank(10, 4, dtype="float16")
    other.load(tmp_path / "bank")
    assert torch.equal(other.rows, bank.rows.half())


class TestErrors:
    def test_a_missing_shard(self, tmp_path):
        filled().save(tmp_path / "bank", shard_bytes=48)
        (tmp_path / "bank" / "rows-00002.safetensors").unlink()
        with pytest.raises(ValueError, match=r"rows-00002\.safetensors is missing"):
            RowBank(10, 4).load(tmp_path / "bank")

    def test_another_shape(self, tmp_path):
        filled().save(tmp_path / "bank")
        with pytest.raises(ValueError, match=r"holds 10 x 4 rows, expected 11 x 4: another data set"):
            RowBank(11, 4).load(tmp_path / "bank")

    def test_no_bank(self, tmp_path):
        with pytest.raises(ValueError, match="no bank"):
            RowBank(10, 4).load(tmp_path)

    def test_too_few_rows(self, tmp_path):
        filled().save(tmp_path / "bank")
        index = tmp_path / "bank" / "index.json"
        content = json.loads(index.read_text())
        index.write_text(json.dumps(content | {"num_rows": 12}))
        with pytest.raises(ValueError, match="10 rows in all, expected 12"):
            RowBank(12, 4).load(tmp_path / "bank")

    def test_settings(self):
        with pytest.raises(ValueError, match=r"float32 or float16 .*bfloat16 stalls"):
            RowBank(2, 2, dtype="bfloat16")
        with pytest.raises(ValueError, match=r"bank\.placement device, host or mmap, got 'disk'"):
            RowBank(2, 2, placement="disk")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_on_cuda(placement):
    bank = filled(placement=placement).to("cuda")
    ids = torch.tensor([3, 7], device="cuda")
    bank.put(ids, torch.ones(2, 4, device="cuda"))
    assert bank.take(ids).device.type == "cuda"
    assert bank.take(ids).tolist() == [[1.0] * 4] * 2
    assert bank.rows.device.type == ("cuda" if placement == "device" else "cpu")
    bank.cpu()
    assert bank.rows.device.type == "cpu"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_one_that_stays_on_a_gpu_is_read_from_the_cpu():
    bank = filled()
    expected = bank.rows.clone()
    bank.stays_on_gpu = True
    assert bank.cuda().cpu().rows.is_cuda
    ids = torch.tensor([3, 7])
    assert torch.equal(bank.take(ids), expected[ids])
