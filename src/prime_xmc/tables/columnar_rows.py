"""Rows of Parquet and Arrow files, and of the folders that the library `datasets` writes, read by PyArrow in batches.

PyArrow belongs to an extra, so this file is imported only where such a file is read.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from prime_xmc.foreign import parse_json
from prime_xmc.tables.line_rows import Row, Unreadable

_BATCH = 1024  # rows
# What is raised for values such as times after the year 9999, which Python does not have.
_UNREADABLE = (OverflowError, ValueError, pa.ArrowException)
_MAGIC = b"ARROW1"  # first bytes of the Arrow format of files; that of streams has none


class ColumnarFiles:
    """The rows of Parquet or Arrow files with the same columns, one file after the other.

    Attributes:
        columns: Names of the columns.
        classes: Names that the numbers of some columns stand for, by column.
    """

    def __init__(self, paths: Sequence[Path], file_format: str):
        """Read what columns there are.

        Args:
            paths: The files, at least one.
            file_format: "parquet" or "arrow".

        Raises:
            ValueError: If the first file is not of that format, or has a column more than once.
        """
        self._paths, self._format = paths, file_format
        schema = self._reading(paths[0], lambda path: _schema(path, file_format))
        beside = _class_names(paths[0].parent) if file_format == "arrow" else {}
        self.classes = beside or _classes_of(_features(schema))
        self.columns = list(schema.names)
        if repeated := [name for name in self.columns if self.columns.count(name) > 1]:
            raise ValueError(f"{paths[0]} has the column {repeated[0]!r} more than once; rename one")

    def rows(self) -> Iterator[Row]:
        """Yield the rows of all files in order, numbered through; integers that stand for classes become their names.

        Raises:
            ValueError: With the file, where one is damaged or has other columns.
        """
        number = 0
        for path in self._paths:
            batches = _batches(path, self._format)
            while (batch := self._reading(path, lambda _, batches=batches: next(batches, None))) is not None:
                if batch.schema.names != self.columns:
                    raise ValueError(
                        f"{path} has the columns {', '.join(batch.schema.names)}, expected {', '.join(self.columns)} "
                        f"as in {self._paths[0]}"
                    )
                columns = [self._named(name, _values(batch.column(name))) for name in self.columns]
                for cells in zip(*columns, strict=True):
                    number += 1
                    yield Row(number, dict(zip(self.columns, cells, strict=True)))

    def _reading(self, path: Path, read: Any) -> Any:
        try:
            return read(path)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"{path} is not readable as {self._format} ({error}); is it complete?") from error

    def _named(self, column: str, values: list[Any]) -> list[Any]:
        names = self.classes.get(column)
        if names is None:
            return values
        return [_name_classes(value, names) for value in values]


def dataset_splits(folder: Path) -> dict[str, list[Path]]:
    """Return the Arrow files of each split of a folder that `datasets` has written with `save_to_disk`.

    A folder of a single data set has one split, called "train".

    Raises:
        ValueError: If the folder is none of `save_to_disk`, or names a file outside of itself.
        FileNotFoundError: If a file that it names is missing.
    """
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        return {name: _files_of(folder / name) for name in json.loads(splits.read_text(encoding="utf-8"))["splits"]}
    if (folder / "state.json").is_file():
        return {"train": _files_of(folder)}
    raise ValueError(
        f"{folder} is a folder without dataset_dict.json or state.json, which `datasets` writes by save_to_disk; "
        "give a file, or such a folder"
    )


def _files_of(folder: Path) -> list[Path]:
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    names = [entry["filename"] for entry in state["_data_files"]]
    if outside := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{folder / 'state.json'} names {outside[0]!r}; expected a file in the same folder")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder / missing[0]}, which state.json names, is missing; copy the complete folder")
    return [folder / name for name in names]


def _schema(path: Path, file_format: str) -> pa.Schema:
    if file_format == "parquet":
        return pyarrow.parquet.read_schema(path)
    with pa.OSFile(str(path)) as source:
        reader = pa.ipc.open_file(source) if _is_file_format(path) else pa.ipc.open_stream(source)
        return reader.schema


def _batches(path: Path, file_format: str) -> Iterator[pa.RecordBatch]:
    if file_format == "parquet":
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=_BATCH)
        return
    with pa.OSFile(str(path)) as source:
        if _is_file_format(path):
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            batches = iter(pa.ipc.open_stream(source))
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH):
                yield batch.slice(start, _BATCH)


def _is_file_format(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _class_names(folder: Path) -> dict[str, list[str]]:
    """Return the names of the classes of each column of integers, where `datasets` has written them down."""
    info = folder / "dataset_info.json"
    if not info.is_file():
        return {}
    return _classes_of(json.loads(info.read_text(encoding="utf-8")).get("features") or {})


def _features(schema: pa.Schema) -> Any:
    """Return what `datasets` says of the columns in a Parquet or Arrow file that it has written."""
    try:
        return parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}


def _classes_of(features: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        inner = feature[0] if isinstance(feature, list) and feature else feature
        if isinstance(inner, dict) and inner.get("_type") in ("Sequence", "List", "LargeList"):
            inner = inner.get("feature")
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" and isinstance(inner.get("names"), list):
            found[column] = [str(name) for name in inner["names"]]
    return found


def _name_classes(value: Any, names: Sequence[str]) -> Any:
    """Return the names of classes; None for -1, by which `datasets` says that the class is not known."""
    if isinstance(value, list):
        named = [_name_classes(each, names) for each in value]
        return next((each for each in named if isinstance(each, Unreadable)), named)
    if not isinstance(value, int):
        return value
    if not -1 <= value < len(names):
        return Unreadable(f"the class {value} is outside 0..{len(names) - 1}, the classes that `datasets` has noted")
    return None if value == -1 else names[value]


def _values(column: pa.Array) -> list[Any]:
    try:
        return column.to_pylist()
    except _UNREADABLE:
        return [_value(cell) for cell in column]


def _value(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except _UNREADABLE as error:
        return Unreadable(str(error))
