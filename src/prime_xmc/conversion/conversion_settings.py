"""How the files of a conversion are read and what becomes of them."""

from dataclasses import dataclass

from prime_xmc.tables.reader import AUTO, UTF_8

GROUPINGS = ("auto", "id", "text", "none")
UNKNOWN = ("error", "add", "drop")
SEPARATORS = {"tab": "\t", "newline": "\n", "blank": " "}  # which a shell or Hydra would change
_WORDS = {"comma": ",", "semicolon": ";", "bar": "|", "space": " ", "\\t": "\t", "\\n": "\n"}  # what users type besides


@dataclass(frozen=True)
class Settings:
    """How files are read.

    Attributes:
        text_column: Columns that make up the text of a query; empty: guessed.
        labels_column: Columns of a query's labels; empty: guessed.
        id_column: Column of a query's identifier.
        label_text_column: Columns that make up the text of a label; empty: guessed.
        label_id_column: Column of a label's identifier.
        label_separator: What separates labels in a cell, "json" for lists in JSON, "tags" for <a><b>, or a word for it
            such as "tab"; None: guessed.
        group_by: Which rows are one query, one of `GROUPINGS`.
        unknown_labels: What is done with labels that the file of labels lacks, one of `UNKNOWN`.
        input_format: Format of all tables, or "auto".
        delimiter: What separates the cells of CSV; None: by the header.
        encoding: Encoding of the files that are made of lines.
        test_share: Share of the queries to split off where no test queries are given; None: a fifth, at most 2,000.
        seed: Seed of the split.
        memory_limit: Memory for the engine that groups and joins.
        threads: Its threads; None: as many as cores.
        overwrite: Whether a folder that no conversion has made may be replaced.

    Raises:
        ValueError: If a value is out of range.
    """

    text_column: tuple[str, ...] = ()
    labels_column: tuple[str, ...] = ()
    id_column: str | None = None
    label_text_column: tuple[str, ...] = ()
    label_id_column: str | None = None
    label_separator: str | None = None
    group_by: str = "auto"
    unknown_labels: str = "error"
    input_format: str = AUTO
    delimiter: str | None = None
    encoding: str = UTF_8
    test_share: float | int | None = None
    seed: int = 0
    memory_limit: str = "1GB"
    threads: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        words = SEPARATORS | _WORDS
        if self.label_separator in words:
            object.__setattr__(self, "label_separator", words[self.label_separator])
        for key, known in (("group_by", GROUPINGS), ("unknown_labels", UNKNOWN)):
            if getattr(self, key) not in known:
                raise ValueError(f"expected {key} {', '.join(known)}, got {getattr(self, key)!r}")
        if self.test_share is not None and not 0 <= self.test_share < 1:
            raise ValueError(f"expected test_share of at least 0 and below 1, or null, got {self.test_share}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"expected threads of at least 1, or null, got {self.threads}")
