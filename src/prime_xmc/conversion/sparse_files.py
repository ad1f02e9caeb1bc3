"""Files that list the labels of each query by number: the repository's sparse matrices, libsvm's, and PECOS's npz."""

import re
import zipfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prime_xmc.tables.line_rows import decode_lines
from prime_xmc.tables.reader import open_lines

_NPZ_PARTS = ("indices", "indptr", "data", "shape", "format")

_FIRST_LINES = 1000  # of a file without a header, at most, that decide on what it is


class SparseRow(NamedTuple):
    """The labels of one query.

    Attributes:
        number: Line, or row of an npz file, from 1.
        labels: Label numbers, or names in files that have names.
        num_labels: Number of labels of the data set that the file announces; None: it does not.
    """

    number: int
    labels: list[str]
    num_labels: int | None = None


def read_sparse(path: Path) -> Iterator[SparseRow]:
    """Yield the labels of each query.

    - `.npz`: a sparse matrix of SciPy in CSR format, as PECOS has it; a value of 0 is no label.
    - Text with a header of two numbers, rows and columns: `label:value label:value` a line, as `trn_X_Y.txt`.
    - Text with a header of three numbers, rows, features and labels, or libsvm without a header:
      `label,label feature:value ...` a line, as napkinXC reads it. Features are passed over.
    - Text without any of these: labels separated by blanks a line, as `train_labels.txt` of AttentionXML.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: With file, line and value, for what is none of these, or does not fit the header.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    yield from _read_npz(path) if path.suffix == ".npz" else _read_text(path)


def _read_npz(path: Path) -> Iterator[SparseRow]:
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = {name: file[name] for name in _NPZ_PARTS if name in file.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not readable as npz ({error})") from error
    if missing := [name for name in _NPZ_PARTS if name not in parts]:
        raise ValueError(f"{path} has no {missing[0]}; expected a sparse matrix as scipy.sparse.save_npz writes it")
    kind = parts["format"].item()
    if kind not in (b"csr", "csr"):
        raise ValueError(f"{path} is a {kind!r} matrix; expected csr, save matrix.tocsr()")
    indices, indptr, values = parts["indices"], parts["indptr"], parts["data"]
    num_rows, num_columns = parts["shape"].tolist()
    if len(indptr) != num_rows + 1 or indptr[-1] != len(indices) or len(values) != len(indices):
        raise ValueError(f"{path} is inconsistent: {len(indptr) - 1} rows of {len(indices)} entries, shape {num_rows}")
    if len(indices) and not 0 <= indices.min() <= indices.max() < num_columns:
        raise ValueError(f"{path} has label {indices.max()}, outside 0..{num_columns - 1}")
    for row in range(num_rows):
        part = slice(indptr[row], indptr[row + 1])
        yield SparseRow(row + 1, [str(label) for label in indices[part][values[part] != 0].tolist()], num_columns)


def _read_text(path: Path) -> Iterator[SparseRow]:
    with open_lines(path) as raw:
        lines: Iterator[tuple[int, str]] = enumerate(decode_lines(raw, str(path)), start=1)
        number, first = next(lines, (0, ""))
        pending: list[tuple[int, str]] = []
        header = [int(cell) for cell in first.split()] if re.fullmatch(r"\s*\d+(\s+\d+){1,2}\s*", first) else []
        if header:
            for each in lines:
                pending.append(each)
                if each[1].strip():
                    break
            # names that are numbers look like a header: what follows has neither values nor features
            if pending and not re.search("[:,]", pending[-1][1]):
                num_lines = _num_lines(path)
                if num_lines == header[0]:
                    raise ValueError(
                        f"{path}: the first line announces {header[0]:,} rows, and {num_lines - 1:,} follow; if it is "
                        "the labels of a query, put a line with the numbers of rows and labels before it"
                    )
                header = header if num_lines == header[0] + 1 else []
            lines, pending = chain(pending, lines), []
        if not header and first:
            lines = chain([(number, first)], lines)
        kind = {2: "matrix", 3: "libsvm"}.get(len(header))
        if kind is None:  # the first line that says something decides
            for number, line in lines:
                pending.append((number, line))
                cells = line.split()
                if cells and re.match(r"\d+(\.0*)?:", cells[0]):
                    kind = "matrix"  # or, if another of the first lines says so, libsvm whose first rows have no label
                    if len(pending) == _FIRST_LINES:
                        break
                elif kind is not None and cells and ":" not in line:
                    kind = "libsvm" if "," in line else kind  # labels without features
                elif cells:
                    features = [re.fullmatch(r"\d+:[-+.\deE]+", cell) for cell in cells[1:]]
                    kind = "libsvm" if features and all(features) else "names"
                    break
        num_labels = header[-1] if header else None
        count = 0
        for number, line in chain(pending, lines):
            count += 1
            yield SparseRow(number, _labels_of(line, str(kind), num_labels, path, number), num_labels)
        if header and count != header[0]:
            raise ValueError(f"{path}: the first line announces {header[0]:,} rows, and {count:,} follow")


def _num_lines(path: Path) -> int:
    with open_lines(path) as lines:
        return sum(1 for _ in lines)


def _labels_of(line: str, kind: str, num_labels: int | None, path: Path, number: int) -> list[str]:
    cells = line.split()
    if kind == "names":
        return cells
    if kind == "libsvm":
        # no labels: the line begins with a blank, or with a feature
        if not cells or ":" in cells[0] or line[:1].isspace():
            return []
        entries = [(label, "1") for label in cells[0].split(",") if label]
    else:
        split = [cell.rpartition(":") for cell in cells]
        entries = [(label or value, value if label else "1") for label, _, value in split]
    labels = []
    for label, value in entries:
        if re.fullmatch(r"\d+(\.0*)?", label) is None:
            raise ValueError(f"{path}, line {number}: {label!r} is no number of a label")
        whole = int(float(label))
        if num_labels is not None and whole >= num_labels:
            raise ValueError(f"{path}, line {number}: label {whole} is outside 0..{num_labels - 1}, as the header says")
        try:
            is_relevant = float(value) != 0
        except ValueError:
            raise ValueError(f"{path}, line {number}: {value!r} is no relevance of a label") from None
        if is_relevant:
            labels.append(str(whole))
    return labels
