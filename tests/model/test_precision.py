import pytest
import torch

from prime_xmc.model.precision import native_precision


@pytest.mark.parametrize(("amx", "avx512"), [(False, False), (True, False), (False, True)])
def test_cpu(monkeypatch, amx, avx512):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert native_precision("cpu") == ("bf16-mixed" if amx or avx512 else "32-true")


@pytest.mark.parametrize("native", [False, True])
def test_gpu(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # bf16 that is emulated counts as none
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert native_precision("cuda") == ("bf16-mixed" if native else "32-true")


def test_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert native_precision("cuda") == "32-true"
