import time

import pytest
import torch

from prime_xmc.training.kept import KeptParts, Part

ABOUT = {"seed": 0, "limit": float("inf")}


@pytest.fixture
def kept(tmp_path) -> KeptParts:
    return KeptParts(tmp_path / "unfinished")


def test_a_part_is_made_once_for_the_same_settings(kept):
    made = []

    def make():
        made.append(1)
        time.sleep(0.05)
        return Part({"rows": torch.arange(6.0).view(2, 3), "none": torch.empty(0, 3)}, {"loss": 0.1 + 0.2})

    first = kept.once("part", ABOUT, make)
    assert (kept.seconds, kept.cpu_seconds) == (0, 0)
    again = kept.once("part", ABOUT, make)
    assert len(made) == 1
    assert 0.05 <= kept.seconds < 5, "what it has cost the process that made it"
    assert 0 <= kept.cpu_seconds < 5
    assert again.values == first.values == {"loss": 0.1 + 0.2}
    assert all(torch.equal(again.tensors[name], first.tensors[name]) for name in ("rows", "none"))
    assert kept.find("part", ABOUT | {"seed": 1}) is None
    assert kept.find("another", ABOUT) is None
    kept.once("part", ABOUT | {"seed": 1}, make)
    assert len(made) == 2
    kept.clear()
    assert not kept.folder.exists()


@pytest.mark.parametrize("name", ["part.json", "part.safetensors"])
def test_a_damaged_part_is_made_again(kept, name, caplog):
    kept.add("part", ABOUT, Part({"rows": torch.ones(4)}, {}))
    content = bytearray((kept.folder / name).read_bytes())
    content[-3] ^= 1
    (kept.folder / name).write_bytes(content)
    assert kept.find("part", ABOUT) is None
    assert "cannot be used" in caplog.text
