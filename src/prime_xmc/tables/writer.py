"""Tables written row by row, in memory that does not grow with the table: CSV, TSV, JSON lines and Parquet."""

import gzip
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from prime_xmc.tables.input_format import columnar_format, compression_of, line_format
from prime_xmc.tables.line_writer import ByteStream, DelimitedWriter, JsonLinesWriter
from prime_xmc.tables.reader import need_pyarrow

WRITTEN = (".csv", ".tsv", ".jsonl", ".parquet")


@runtime_checkable
class TableWriter(Protocol):
    """What writes rows one after the other."""

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows, and hand all of them that are complete to the system unless the file is Parquet."""


def written_format(path: Path) -> str:
    """Return in which format a file is written by its suffix: csv, tsv, jsonl or parquet.

    Raises:
        ValueError: If it is none of these.
    """
    found = columnar_format(path.name) or line_format(path.name)
    if found not in ("csv", "tsv", "jsonl", "parquet"):
        raise ValueError(f"{path}: expected a name that ends in {', '.join(WRITTEN)}, the first three also with .gz")
    return found


@contextmanager
def open_writer(
    path: Path,
    columns: Sequence[str],
    *,
    output_format: str | None = None,
    append: bool = False,
    types: Mapping[str, type] | None = None,
    target: Path | None = None,
) -> Iterator[TableWriter]:
    """Open a file to write a table to; see `prime_xmc.files.replacing` for one that appears when it is complete.

    Args:
        path: The file; .gz and .zst at the end of its name compress it.
        columns: Columns of CSV, TSV and Parquet in order, those of every row; JSON lines have what each row has.
        output_format: csv, tsv, jsonl or parquet; None: by the suffix.
        append: Whether rows are added at the end of a file that is there, which has its header. Not for Parquet.
        types: Types of columns in Parquet, str, int, float or bool; the first rows say that of others.
        target: Name that a temporary file will have, of which the suffixes count; None: its own.

    Raises:
        ValueError: If the suffix says no format, a row has other columns, Parquet is to be appended to or a row's
            types differ from those of the first ones.
    """
    target = target or path
    output_format = output_format or written_format(target)
    if output_format == "parquet":
        if append:
            raise ValueError(f"{target}: rows cannot be added to a Parquet file; write another one")
        need_pyarrow(target)
        from prime_xmc.tables.parquet_writer import open_parquet_writer

        with open_parquet_writer(path, columns, types or {}) as writer:
            yield writer
        return
    has_header = append and path.is_file() and path.stat().st_size > 0
    with _open_bytes(path, target, append=append) as file:
        if output_format == "jsonl":
            yield JsonLinesWriter(file)
        else:
            yield DelimitedWriter(file, columns, "\t" if output_format == "tsv" else ",", header=not has_header)


@contextmanager
def _open_bytes(path: Path, target: Path, *, append: bool) -> Iterator[ByteStream]:
    mode = "ab" if append else "wb"
    with ExitStack() as stack:
        raw = stack.enter_context(path.open(mode))
        compression = compression_of(target.name)
        if compression == "gzip":
            yield stack.enter_context(gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0))
        elif compression == "zstd":
            need_pyarrow(target)
            import pyarrow as pa

            yield stack.enter_context(pa.CompressedOutputStream(raw, "zstd"))
        else:
            yield raw
