"""Parquet files written batch by batch with PyArrow, which belongs to an extra."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from prime_xmc.tables.line_writer import check_columns, readable

_GROUP = 16_384  # rows in a row group
_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


class ParquetWriter:
    """Collects rows to row groups; the first group fixes the types of the columns.

    Half a character, which UTF-8 cannot write, stays readable as in CSV.
    """

    def __init__(self, path: Path, columns: Sequence[str], types: Mapping[str, type]):
        self._path, self._columns = path, list(columns)
        self._names = [readable(column) for column in columns]
        self._types = {column: _TYPES[kind] for column, kind in types.items()}
        self._pending: list[Mapping[str, Any]] = []
        self._file: pyarrow.parquet.ParquetWriter | None = None

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows.

        Raises:
            ValueError: If one has other columns, or a value that does not fit the type of its column.
        """
        for row in rows:
            check_columns(row, self._columns)
            self._pending.append(row)
            if len(self._pending) == _GROUP:
                self._write_group()

    def close(self) -> None:
        """Write what is pending and the end of the file."""
        if self._pending or self._file is None:
            self._write_group()
        assert self._file is not None
        self._file.close()

    def abandon(self) -> None:
        """Close the file without its end, after an error."""
        if self._file is not None:
            self._file.close()

    def _write_group(self) -> None:
        schema = None if self._file is None else self._file.schema
        arrays = []
        for number, column in enumerate(self._columns):
            values = [row[column] for row in self._pending]
            wanted = self._types.get(column) if schema is None else schema.field(number).type
            try:
                array = _array(values, wanted)
            except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
                expected = "" if wanted is None else f"; its first rows have {wanted}"
                raise ValueError(
                    f"{self._path}: column {column!r} has values of several types or too large ({error}){expected}"
                ) from error
            # a column without a value yet may get strings later
            arrays.append(array.cast(pa.string()) if pa.types.is_null(array.type) else array)
        table = pa.Table.from_arrays(arrays, names=self._names)
        if self._file is None:
            self._file = pyarrow.parquet.ParquetWriter(self._path, table.schema, compression="zstd")
        self._file.write_table(table)
        self._pending = []


def _array(values: list[Any], wanted: pa.DataType | None) -> pa.Array:
    try:
        return pa.array(values, type=wanted)
    except UnicodeEncodeError:
        return pa.array([readable(value) if isinstance(value, str) else value for value in values], type=wanted)


@contextmanager
def open_parquet_writer(
    path: Path, columns: Sequence[str], types: Mapping[str, type] | None = None
) -> Iterator[ParquetWriter]:
    """Open a Parquet file to write to; it is complete at the end of the block.

    Args:
        path: The file.
        columns: Columns in order.
        types: Types of columns, str, int, float or bool; the first rows say that of others.
    """
    writer = ParquetWriter(path, columns, types or {})
    try:
        yield writer
    except BaseException:
        writer.abandon()
        raise
    writer.close()
