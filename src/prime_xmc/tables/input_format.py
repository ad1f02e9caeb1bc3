"""What an input is: plain text, JSON lines, CSV, TSV, Parquet or Arrow, by its name and its first line."""

import csv
import re
from collections.abc import Collection
from pathlib import PurePath

from prime_xmc.foreign import parse_json

FORMATS = ("text", "jsonl", "csv", "tsv")  # those made of lines, which can come from a stream
COLUMNAR = ("parquet", "arrow")  # those that are read from files alone
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
WHOLE_TEXT = ("query", "title", "text")  # fields that hold a complete text, the first there is

_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jl": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".txt": "text",
    ".text": "text",
}
_COLUMNAR_SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
}
LONGEST_CELL = 2**26  # characters; a quote that is never closed would otherwise take the rest of the file into memory
_DELIMITERS = ",;\t|"
_COLUMN_NAME = re.compile(r"[^\W\d][\w.-]*")
_HOW = "say what it is by input_format=text, jsonl, csv or tsv"


def recognise(name: str, first_line: str, fields: Collection[str]) -> str:
    """Return the format of an input, one of `FORMATS`.

    The suffix of the name decides unless the first line contradicts it; without one that is known, the first line does:
    a JSON object is one of JSON lines, and a row that has all of the wanted fields among its cells is the header of a
    table.

    Args:
        name: Name of the file, of which the suffix counts, less .gz or .zst; or what standard input is called.
        first_line: The first line that is not blank; empty where there is none.
        fields: Fields of a record that make up a query's text.

    Raises:
        ValueError: If the line contradicts the suffix, or could be text as well as the beginning of something else.
    """
    suffixes = _suffixes(name)
    expected = _SUFFIXES.get(suffixes[-1]) if suffixes else None
    line = first_line.strip("\r\n")
    found = _by_content(line, fields)
    if expected is None:
        return found or _text_beyond_doubt(name, line, fields)
    is_table = {expected, found} <= {"csv", "tsv"}
    if found in (None, expected) or is_table or expected == "jsonl":
        return expected  # what is not JSON after all is an error of its line
    kind = {"jsonl": "a JSON object", "csv": "the header of a table", "tsv": "the header of a table"}[found]
    raise ValueError(f"{name} ends in {suffixes[-1]}, and its first line is {kind}, {_shorten(line)}: {_HOW}")


def columnar_format(name: str) -> str | None:
    """Return "parquet" or "arrow" where the suffix of a file's name says so, None where it does not.

    Arrow is the IPC format, that of its files (also called Feather) and that of its streams alike.
    """
    suffix = PurePath(name).suffix.lower()
    return _COLUMNAR_SUFFIXES.get(suffix)


def line_format(name: str) -> str | None:
    """Return which of `FORMATS` the suffix of a file's name stands for, less .gz or .zst, None for an unknown one."""
    suffixes = _suffixes(name)
    return _SUFFIXES.get(suffixes[-1]) if suffixes else None


def compression_of(name: str) -> str | None:
    """Return "gzip" or "zstd" by the suffix of a file's name, None where it is neither."""
    return COMPRESSIONS.get(PurePath(name).suffix.lower())


def _suffixes(name: str) -> list[str]:
    suffixes = [suffix.lower() for suffix in PurePath(name).suffixes]
    return suffixes[:-1] if suffixes[-1:] and suffixes[-1] in COMPRESSIONS else suffixes


def delimiter_of(header: str, fields: Collection[str]) -> str:
    """Return what separates the columns of a CSV file: that by which the header has most of the fields, then columns.

    A header of one column has a comma.
    """

    def fit(delimiter: str) -> tuple[int, int]:
        cells = split_header(header, delimiter)
        return len(set(cells) & set(fields)), len(cells)

    return max(_DELIMITERS, key=fit)


def split_header(header: str, delimiter: str) -> list[str]:
    """Return the names of a header's columns without surrounding blanks."""
    csv.field_size_limit(LONGEST_CELL)  # a first line that is a long text is one cell, too
    line = header.strip("\r\n").replace("\r", " ")  # which `csv` takes for the end of a line, and refuses in one
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def _by_content(line: str, fields: Collection[str]) -> str | None:
    """Return what the first line shows the input to be, None where it may be text."""
    if line.lstrip().startswith("{") and isinstance(_parse(line), dict):
        return "jsonl"
    delimiter = delimiter_of(line, fields)
    cells = split_header(line, delimiter)
    if fields and len(cells) > 1 and set(fields) <= set(cells):
        return "tsv" if delimiter == "\t" else "csv"
    return None


def _text_beyond_doubt(name: str, line: str, fields: Collection[str]) -> str:
    stripped = line.strip()
    if stripped.startswith("{"):
        raise ValueError(f"{name}: the first line begins like JSON and is none, {_shorten(line)}: {_HOW}")
    if stripped == "[" or isinstance(_parse(stripped), list):
        raise ValueError(
            f"{name}: the first line is the beginning of a JSON array, {_shorten(line)}: write an object a line, or "
            "give input_format=text"
        )
    delimiter = delimiter_of(line, ())
    cells, names = line.split(delimiter), split_header(line, delimiter)
    # texts have a blank after a comma and quotes around some words alone; headers have neither, or a known name
    is_quoted = all(len(cell) > 2 and cell[0] == cell[-1] == '"' for cell in cells)
    is_known = not {*WHOLE_TEXT, *fields}.isdisjoint(names)
    is_header = len(cells) > 1 and all(map(_COLUMN_NAME.fullmatch, names if is_quoted or is_known else cells))
    if is_header or (is_known and len(names) == 1):
        raise ValueError(f"{name}: the first line may be a query or the header of a table, {_shorten(line)}: {_HOW}")
    return "text"


def _parse(line: str) -> object:
    try:
        return parse_json(line)
    except ValueError:
        return None


def _shorten(line: str) -> str:
    text = line.strip()
    return repr(text if len(text) <= 60 else f"{text[:60]}…")
