"""Raw files with a second field: longer texts are carried once for each thing, by its uid, and joined when needed."""

import gzip
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prime_xmc.datasets.building import write_records
from prime_xmc.files import publishing

logger = logging.getLogger(__name__)

_RECORDS = ("trn.json.gz", "tst.json.gz", "lbl.json.gz")
_FILTERS = ("filter_labels_train.txt", "filter_labels_test.txt")


def add_contents(directory: str | Path, *, raw: str | Path, contents: str | Path) -> Path:
    """Write raw files in which each query and label has the field `content` too, and return their folder.

    The folder's name is that of the folder of the contents, with a fingerprint of all that went into it; a folder that
    exists already is returned at once. It is written under a temporary name and renamed when it is complete.

    Args:
        directory: Parent of the new folder; made if need be.
        raw: Folder of raw files without the field; uids, targets, split and filters stay as they are.
        contents: File of lines `{"uid": ..., "content": ...}`, compressed with gzip, that has each query and label.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the contents lack a query or label of the raw files.
    """
    raw, contents = Path(raw), Path(contents)
    sources = [*(raw / name for name in (*_RECORDS, *_FILTERS)), contents]
    fingerprint = hashlib.blake2b(b"".join(map(_digest, sources)), digest_size=6).hexdigest()
    folder = Path(directory).expanduser() / f"{contents.parent.name}-{fingerprint}"
    if folder.is_dir():
        return folder
    with publishing(folder, replace=False) as temporary:
        logger.info("writing the raw files of %s to %s", contents.parent.name, folder)
        texts = {record["uid"]: record["content"] for record in _read(contents)}
        for name in _RECORDS:
            write_records(temporary / name, _joined(raw / name, texts, contents), name_in_header=False)
        for name in _FILTERS:
            shutil.copyfile(raw / name, temporary / name)
    return folder


def _joined(path: Path, texts: Mapping[str, str], contents: Path) -> Iterator[dict[str, Any]]:
    for number, record in enumerate(_read(path), 1):
        if record["uid"] not in texts:
            raise ValueError(f"{path}, line {number}: {contents} has no content of {record['uid']!r}")
        targets = {key: record[key] for key in ("target_ind",) if key in record}
        yield {"uid": record["uid"], "title": record["title"], "content": texts[record["uid"]], **targets}


def _read(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _digest(path: Path) -> bytes:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
