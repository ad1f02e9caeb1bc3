import os

import torch
from safetensors.torch import load_file

from prime_xmc.model.banks import RowBank
from prime_xmc.model.tensors import save_tensors


def test_what_is_written_is_read_with_the_mode_that_the_umask_gives(tmp_path):
    tensors = {"transposed": torch.arange(6.0).view(2, 3).T, "learned": torch.ones(2, requires_grad=True)}
    before = os.umask(0o027)
    try:
        save_tensors(tensors, tmp_path / "a.safetensors")
        RowBank(3, 2).save(tmp_path / "bank")
    finally:
        os.umask(before)
    found = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    for path in (tmp_path / "a.safetensors", tmp_path / "bank" / "rows-00000.safetensors"):
        assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "bank"]
