"""Converting tables that are larger than the memory that the engine may take: memory, and megabytes a second.

The table has a row for each pair of a query and a label, in an order drawn at random, so that the rows of a query are
all over the file and have to be grouped. A query has five rows, with the same text of about 150 characters; labels are
joined by their names. A tenth of the queries is split off for testing.
"""

import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from common import PeakMemory, Row, Target, fresh_process, main

TARGETS = (
    Target("converting: memory for a table of 500 MB / for one of 125 MB", "≤", 1.25, "x"),
    Target("converting: memory for a table of 500 MB / its size", "≤", 0.5, "x"),
    Target("converting: table read, grouped, joined and written", "shown", 0, "MB/s"),
)
NUM_ROWS = 2_750_000  # about 500 MB
ROWS_PER_QUERY = 5
MEMORY_LIMIT = "100MB"
WORDS = ("terminal", "multiplexer", "library", "server", "graphical", "editor", "plugin", "parser", "network", "daemon")


def rows(scale: float) -> Iterator[Row]:
    growth_target, share_target, speed_target = TARGETS
    with tempfile.TemporaryDirectory() as directory:
        measured = []
        for share in (1.0, 0.25):
            folder = Path(directory, str(share))
            folder.mkdir()
            size = write_tables(folder, round(NUM_ROWS * scale * share))
            growth, seconds = fresh_process(growth_of_convert, str(folder))[0]
            measured.append((size, growth, seconds))
        (size, growth, seconds), (small_size, small_growth, _) = measured
        note = (
            f"{growth / 1e6:.0f} MB for {size / 1e6:.0f} MB, {small_growth / 1e6:.0f} MB for {small_size / 1e6:.0f} MB"
        )
        note += f"; memory_limit={MEMORY_LIMIT} for the engine"
        yield growth_target.row(growth / small_growth, note)
        yield share_target.row(growth / size, note)
        yield speed_target.row(
            size / 1e6 / seconds, f"{seconds:.0f} s of a processor for {round(NUM_ROWS * scale):,} rows"
        )


def write_tables(folder: Path, num_rows: int) -> int:
    """Write queries.csv and labels.csv, and return the bytes of the former."""
    draw = random.Random(0)
    num_queries, num_labels = max(1, num_rows // ROWS_PER_QUERY), max(10, num_rows // 50)
    with (folder / "labels.csv").open("w") as file:
        file.write("id,name\n")
        file.writelines(f"{label},label number {label}\n" for label in range(num_labels))
    step = 611_953  # a prime: rows * step modulo their number visits each row once
    while num_rows % step == 0:
        step += 2
    with (folder / "queries.csv").open("w") as file:
        file.write("id,text,label\n")
        for place in range(num_rows):
            query = place * step % num_rows % num_queries
            text = " ".join(WORDS[query // 10**digit % 10] for digit in range(18))
            file.write(f"q{query},{text} {query},label number {draw.randrange(num_labels)}\n")
    return (folder / "queries.csv").stat().st_size


def growth_of_convert(folder: str) -> tuple[int, float]:
    """Convert the tables of a folder; return the growth of memory in bytes, and the seconds of a processor."""
    from prime_xmc.conversion.conversion_settings import Settings
    from prime_xmc.conversion.converting import convert
    from prime_xmc.conversion.layouts import Inputs

    inputs = Inputs(Path(folder, "queries.csv"), Path(folder, "labels.csv"))
    settings = Settings(memory_limit=MEMORY_LIMIT, threads=1, test_share=0.1)
    start = time.process_time()
    with PeakMemory() as memory:
        convert(inputs, Path(folder, "out"), settings)
    return memory.growth, time.process_time() - start


if __name__ == "__main__":
    main(__doc__, TARGETS, rows)
