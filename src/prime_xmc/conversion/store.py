"""Queries and labels in a database on disk, where they are grouped and joined however many there are."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import duckdb
import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from prime_xmc.data.corpus import Ragged

_BATCH_ROWS, _BATCH_CHARACTERS = 8192, 1 << 24  # whichever comes first: there are texts of 100,000 characters
_FETCHED = 2048  # rows of a result at once
TRAIN, TEST = 0, 1  # splits
# What queries of one text share. Those without any share nothing.
_SHARED = {"uid": "uid", "digest": "CASE WHEN array_to_string(texts, '') = '' THEN row::UHUGEINT ELSE digest END"}
_DIGITS = "ltrim(regexp_replace({0}, '\\.0+$', ''), '0')"  # what ways to write such a number have in common
_UNKNOWN = "FROM listed ANTI JOIN read_labels USING (reference)"  # references that name no label
_WHOLE = "'^[0-9]+(\\.0+)?$'"  # a number without a fraction


class QueryRow(NamedTuple):
    """A row of a table of queries.

    Attributes:
        number: Its line or row in the file.
        uid: Its identifier; empty where there is none.
        texts: The fields of its text.
        labels: References to its labels.
    """

    number: int
    uid: str
    texts: list[str]
    labels: list[str]


class LabelRow(NamedTuple):
    """A row of a table of labels.

    Attributes:
        number: Its line or row in the file.
        uid: Its identifier.
        reference: What queries refer to it by.
        texts: The fields of its text.
    """

    number: int
    uid: str
    reference: str
    texts: list[str]


class Place(NamedTuple):
    """A value and where it is first.

    Attributes:
        value: The value.
        split: Split of the query that has it, or -1 for labels.
        number: Line or row.
        times: How often it occurs.
    """

    value: str
    split: int
    number: int
    times: int


@contextmanager
def open_store(folder: Path, *, memory_limit: str, threads: int | None) -> Iterator["Store"]:
    """Open an empty store whose files are in a folder.

    Args:
        folder: An existing folder for the database and what does not fit in memory; the caller removes it.
        memory_limit: Memory that the engine may take, such as "1GB".
        threads: Threads of the engine; None: as many as there are cores.

    Raises:
        ValueError: If the engine does not understand the limit.
    """
    config: dict[str, str | int] = {
        "temp_directory": str(folder / "spilled"),
        "preserve_insertion_order": "false",
    }
    if threads is not None:
        config["threads"] = threads
    with duckdb.connect(str(folder / "rows.duckdb"), config=config) as connection:
        connection.execute("SET enable_progress_bar = false")  # it would go to standard output, which is for results
        try:
            connection.execute("SET memory_limit = $limit", {"limit": memory_limit})
        except duckdb.Error as error:
            raise ValueError(f"memory_limit={memory_limit}: expected a size such as 1GB or 500MB") from error
        yield Store(connection)


class Store:
    """The database: rows as they were read, then one row for each query, its labels by number, and the labels."""

    def __init__(self, connection: duckdb.DuckDBPyConnection):
        self._db = connection
        self._rows = {TRAIN: 0, TEST: 0}
        self._labels = 0
        self._db.execute(
            "CREATE TABLE queries(split TINYINT, row BIGINT, number BIGINT, uid VARCHAR, texts VARCHAR[], "
            "digest UHUGEINT)"
        )
        self._db.execute("CREATE TABLE listed(split TINYINT, row BIGINT, place INTEGER, reference VARCHAR)")
        self._db.execute(
            "CREATE TABLE read_labels(row BIGINT, number BIGINT, uid VARCHAR, reference VARCHAR, texts VARCHAR[])"
        )

    def add_queries(self, split: int, rows: Iterable[QueryRow]) -> int:
        """Add the rows of a split and return their number."""
        for batch in _batches(rows):
            first = self._rows[split]
            self._rows[split] += len(batch)
            numbers = range(first, first + len(batch))
            queries = {
                "row": pa.array(numbers, pa.int64()),
                "number": pa.array([row.number for row in batch], pa.int64()),
                "uid": pa.array([row.uid for row in batch], pa.string()),
                "texts": pa.array([row.texts for row in batch], pa.list_(pa.string())),
            }
            self._insert(
                queries,
                f"INSERT INTO queries SELECT {split}, row, number, uid, texts, "
                "md5_number(array_to_string(texts, chr(31))) FROM batch",
            )
            counts = [len(row.labels) for row in batch]
            listed = {
                "row": pa.array(np.repeat(np.arange(first, first + len(batch)), counts), pa.int64()),
                "place": pa.array([place for count in counts for place in range(count)], pa.int32()),
                "reference": pa.array([label for row in batch for label in row.labels], pa.string()),
            }
            self._insert(listed, f"INSERT INTO listed SELECT {split}, row, place, reference FROM batch")
        return self._rows[split]

    def add_labels(self, rows: Iterable[LabelRow]) -> int:
        """Add labels in the order of their numbers, and return how many there are."""
        for batch in _batches(rows):
            first, self._labels = self._labels, self._labels + len(batch)
            columns = {
                "row": pa.array(range(first, self._labels), pa.int64()),
                "number": pa.array([row.number for row in batch], pa.int64()),
                "uid": pa.array([row.uid for row in batch], pa.string()),
                "reference": pa.array([row.reference for row in batch], pa.string()),
                "texts": pa.array([row.texts for row in batch], pa.list_(pa.string())),
            }
            self._insert(columns, "INSERT INTO read_labels SELECT row, number, uid, reference, texts FROM batch")
        return self._labels

    def num_rows(self, split: int) -> int:
        """Return the number of rows of a split that were added."""
        return self._rows[split]

    def repeats(self, what: str) -> int:
        """Return how many rows of queries repeat the `uid`, or the `digest` of the texts, of an earlier one."""
        return self._number(f"SELECT count(*) - count(DISTINCT (split, {_SHARED[what]})) FROM queries")

    def most_labels(self) -> int:
        """Return the most labels that a row of queries lists."""
        return self._number("SELECT coalesce(max(place) + 1, 0) FROM listed")

    def different_texts(self) -> Place | None:
        """Return a uid whose rows have different texts, None where there is none."""
        return self._place(
            "SELECT uid, split, min(number), count(DISTINCT digest) FROM queries "
            "GROUP BY uid, split HAVING count(DISTINCT digest) > 1 ORDER BY 2, 3 LIMIT 1"
        )

    def group_queries(self, by: str | None) -> None:
        """Make one query of all rows that share the `uid` or the `digest` of the texts; None: each row is one."""
        if by is None:
            self._db.execute("CREATE VIEW firsts AS SELECT split, row, row AS first FROM queries")
        else:
            self._db.execute(
                f"CREATE TABLE groups AS SELECT split, {_SHARED[by]} AS shared, min(row) AS first FROM queries "
                "GROUP BY ALL"
            )
            self._db.execute(
                "CREATE TABLE firsts AS SELECT queries.split, row, first FROM queries "
                f"JOIN groups ON queries.split = groups.split AND {_SHARED[by]} = groups.shared"
            )

    def conflicting_labels(self, by: str) -> Place | None:
        """Return a `uid` or a `reference` that labels of different content share, None where there is none.

        Labels without a reference, which no query can name, share none.
        """
        return self._place(
            f"SELECT {by}, -1, min(number), count(*) FROM read_labels WHERE {by} <> '' GROUP BY {by} "
            "HAVING count(DISTINCT (uid, texts)) > 1 ORDER BY 3 LIMIT 1"
        )

    def unknown_references(self, limit: int) -> tuple[int, list[Place]]:
        """Return how many references name no label, and the first of them."""
        count = self._number(f"SELECT count(DISTINCT reference) {_UNKNOWN}")
        if not count:
            return 0, []
        rows = self._db.execute(
            "SELECT reference, split, number, times FROM "
            "(SELECT reference, min((listed.split, listed.row, place)) AS first, "
            f"count(*) AS times {_UNKNOWN} GROUP BY reference) "
            "JOIN queries ON queries.split = first[1] AND queries.row = first[2] ORDER BY first LIMIT $limit",
            {"limit": limit},
        ).fetchall()
        return count, [Place(*row) for row in rows]

    def unknown_names(self) -> Iterator[str]:
        """Yield references that name no label, each once."""
        names = self._fetch(f"SELECT DISTINCT reference {_UNKNOWN}")
        return (name for (name,) in names)

    def same_number(self, reference: str) -> str | None:
        """Return a label's reference that is another way to write a number, such as 003 or 3.0 for 3; None: none."""
        found = self._db.execute(
            f"SELECT min(reference) FROM read_labels WHERE regexp_matches(reference, {_WHOLE}) AND "
            f"regexp_matches($name, {_WHOLE}) AND {_DIGITS.format('reference')} = {_DIGITS.format('$name')}",
            {"name": reference},
        ).fetchall()
        return found[0][0]

    def written_twice(self) -> tuple[str, str] | None:
        """Return two references of queries that are the same number, such as 3 and 3.0; None where there are none."""
        found = self._db.execute(
            f"SELECT min(reference), max(reference) FROM listed WHERE regexp_matches(reference, {_WHOLE}) "
            f"GROUP BY {_DIGITS.format('reference')} HAVING min(reference) <> max(reference) ORDER BY 1 LIMIT 1"
        ).fetchall()
        return found[0] if found else None

    def number_labels(self, *, add_unknown: bool) -> tuple[int, int]:
        """Give each label its number: those that were added in their order, then references without one by name.

        Args:
            add_unknown: Whether a reference that names no label becomes one, with its name as text; otherwise it is
                dropped.

        Returns:
            Number of labels, and how many of the labels that were added repeat an earlier one, which are dropped.
        """
        self._db.execute(
            "CREATE TABLE labels AS SELECT row_number() OVER (ORDER BY row) - 1 AS label, uid, reference, texts "
            "FROM read_labels WHERE row IN (SELECT min(row) FROM read_labels GROUP BY uid)"
        )
        num_given = self._number("SELECT count(*) FROM labels")
        if add_unknown:
            self._db.execute(
                f"INSERT INTO labels SELECT {num_given} + row_number() OVER (ORDER BY reference) - 1, reference, "
                "reference, [reference] FROM "
                f"(SELECT DISTINCT reference {_UNKNOWN})"
            )
        # a row that repeats a label may be the only one with a reference
        self._db.execute(
            "CREATE TABLE referred AS SELECT DISTINCT read_labels.reference, label FROM read_labels JOIN labels "
            f"USING (uid) WHERE label < {num_given} UNION ALL SELECT reference, label FROM labels WHERE "
            f"label >= {num_given}"
        )
        self._db.execute(
            "CREATE TABLE pairs AS SELECT listed.split, first, label, min((listed.row, place)) AS place FROM listed "
            "JOIN referred USING (reference) JOIN firsts ON listed.split = firsts.split AND listed.row = firsts.row "
            "GROUP BY ALL"
        )
        return self._number("SELECT count(*) FROM labels"), self._labels - num_given

    def positives(self, split: int) -> tuple[Int64[np.ndarray, " query"], Ragged]:
        """Return the first row of each query of a split, ascending, and its labels.

        They are held in memory: 8 bytes a pair of query and label while they are fetched, and 24 a query.
        """
        counted = self._db.execute(
            "SELECT first, count(label) AS labels FROM (SELECT DISTINCT first FROM firsts WHERE split = $split) "
            "LEFT JOIN (SELECT first, label FROM pairs WHERE split = $split) USING (first) GROUP BY first "
            "ORDER BY first",
            {"split": split},
        ).fetchnumpy()
        offsets = np.concatenate([[0], np.cumsum(counted["labels"], dtype=np.int64)])
        values = np.empty(offsets[-1], dtype=np.int32)
        start = 0
        for (labels,) in self._batches(f"SELECT label::INTEGER FROM pairs WHERE split = {split} ORDER BY first"):
            values[start : start + len(labels)] = labels
            start += len(labels)
        return np.asarray(counted["first"], np.int64), Ragged(values, offsets)

    def same_text(self, split: int) -> Int64[np.ndarray, " query"] | None:
        """Return a number for each query of a split, in the order of its first row, that those of one text share.

        Returns:
            None where all texts differ, so that nothing need be held in memory.
        """
        queries = (
            "FROM queries JOIN firsts ON queries.split = firsts.split AND queries.row = firsts.row "
            f"WHERE queries.split = {split} AND queries.row = first"
        )
        if self._number(f"SELECT count(*) - count(DISTINCT digest) {queries}") == 0:
            return None
        numbered = self._db.execute(
            f"SELECT text FROM (SELECT queries.row, dense_rank() OVER (ORDER BY digest) AS text {queries}) ORDER BY row"
        ).fetchnumpy()
        return np.asarray(numbered["text"], np.int64)

    def num_queries(self, split: int) -> int:
        """Return the number of queries of a split."""
        return self._number(f"SELECT count(DISTINCT first) FROM firsts WHERE split = {split}")

    def read_queries(self, split: int) -> Iterator[tuple[int, str, list[str], list[int]]]:
        """Yield first row, uid, texts and label numbers of each query of a split, in the order of the file."""
        pairs = self._fetch(f"SELECT first, label FROM pairs WHERE split = {split} ORDER BY first, place")
        pair = next(pairs, None)
        rows = self._fetch(
            "SELECT queries.row, uid, texts FROM queries JOIN firsts ON queries.split = firsts.split AND "
            f"queries.row = firsts.row WHERE queries.split = {split} AND queries.row = first ORDER BY queries.row"
        )
        for row, uid, texts in rows:
            labels = []
            while pair is not None and pair[0] == row:
                labels.append(pair[1])
                pair = next(pairs, None)
            yield row, uid, texts, labels

    def read_labels(self) -> Iterator[tuple[str, str, list[str]]]:
        """Yield uid, reference and texts of each label in the order of their numbers."""
        yield from self._fetch("SELECT uid, reference, texts FROM labels ORDER BY label")

    def _fetch(self, query: str) -> Iterator[tuple]:
        for columns in self._batches(query):
            yield from zip(*(column.to_pylist() for column in columns), strict=True)

    def _batches(self, query: str) -> Iterator[list[pa.Array]]:
        """Yield the columns of a result, some rows at a time."""
        with self._db.cursor() as cursor:
            for batch in cursor.sql(query).to_arrow_reader(_FETCHED):
                yield batch.columns

    def _insert(self, columns: dict[str, pa.Array], statement: str) -> None:
        self._db.register("batch", pa.table(columns))
        self._db.execute(statement)
        self._db.unregister("batch")

    def _number(self, query: str) -> int:
        ((number,),) = self._db.execute(query).fetchall()
        return int(number)

    def _place(self, query: str) -> Place | None:
        found = self._db.execute(query).fetchall()  # all, because a result that is not read blocks what follows
        return Place(*found[0]) if found else None


Rows = TypeVar("Rows", QueryRow, LabelRow)


def _batches(rows: Iterable[Rows]) -> Iterator[list[Rows]]:
    batch: list[Rows] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(map(len, row.texts))
        if len(batch) == _BATCH_ROWS or characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
