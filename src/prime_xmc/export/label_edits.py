"""What `prime-xmc-labels` makes of the labels of a model, by files or identifiers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from prime_xmc.export.label_changes import add_labels, remove_labels, rename_labels
from prime_xmc.export.label_files import read_examples, read_labels, read_uids
from prime_xmc.export.label_tables import LabelTables
from prime_xmc.export.predictor import Predictor
from prime_xmc.export.queries import text_fields
from prime_xmc.tables.reader import AUTO, UTF_8


class GivenLabels(NamedTuple):
    """Labels to add, remove or rename, and how their files are read, see `label_files`.

    Attributes:
        file: File of the labels; None: `uids` names them.
        uids: Identifiers of labels to remove.
        queries: File of example queries; None: there are none.
        uid_column: Column of identifiers.
        text_columns: Columns of the labels' texts.
        query_columns: Columns of the queries' texts.
        label_column: Column of the queries' labels.
        separator: What separates these in a cell.
        input_format: What both files are, see `open_table`.
        encoding: Encoding of both files.
    """

    file: Path | None
    uids: Sequence[str] = ()
    queries: Path | None = None
    uid_column: str | None = None
    text_columns: Sequence[str] | None = None
    query_columns: tuple[str, ...] | None = None
    label_column: str | None = None
    separator: str | None = None
    input_format: str = AUTO
    encoding: str = UTF_8


def edit_labels(
    tables: LabelTables, action: str, given: GivenLabels, open_predictor: Callable[[], Predictor]
) -> LabelTables:
    """Return the tables after a change.

    Args:
        tables: What the model has for each label; it is not changed.
        action: "add", "remove" or "rename".
        given: The labels.
        open_predictor: Opens the model, which encodes texts; not called before the files have been read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file cannot be read, or labels are not there or are there already.
    """
    how = {"input_format": given.input_format, "encoding": given.encoding}
    if given.file is None:
        return remove_labels(tables, given.uids)
    if action == "remove":
        return remove_labels(tables, read_uids(given.file, given.uid_column, **how))
    labels = read_labels(given.file, given.uid_column, given.text_columns, **how)
    if action == "rename":
        return rename_labels(tables, open_predictor(), labels)
    examples = []
    if given.queries is not None:
        examples = read_examples(
            given.queries,
            {str(record["uid"]) for record in tables.records} | {label.uid for label in labels},
            text_fields(tables.config, given.query_columns, "query_column"),
            given.label_column,
            given.separator,
            where="among those to add or in the model",
            **how,
        )
    return add_labels(tables, open_predictor(), labels, examples)
