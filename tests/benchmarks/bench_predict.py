"""Predicting for a table that is larger than the memory that it takes, with a small encoder of random weights.

What is measured is the way from the file through the model to the table of answers. Each row has a query of ten words
and a cell of about two thousand characters beside it, which goes to the output as it is. The answers are a CSV file.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from common import PeakMemory, Row, Target, fresh_process, main

TARGETS = (
    Target("predicting: memory for a table of 300 MB / for one of 75 MB", "≤", 1.25, "x"),
    Target("predicting: memory beyond the model for a table of 300 MB / its size", "≤", 0.5, "x"),
    Target("predicting: table read, answered and written, encoder of two small layers", "shown", 0, "MB/s"),
)
NUM_ROWS = 143_000  # about 300 MB
NUM_LABELS = 1000
WORDS = ("terminal", "multiplexer", "library", "server", "graphical", "editor", "plugin", "parser", "network", "daemon")


def rows(scale: float) -> Iterator[Row]:
    growth_target, share_target, speed_target = TARGETS
    with tempfile.TemporaryDirectory() as directory:
        fresh_process(write_model, directory)
        measured = []
        for share in (1.0, 0.25):
            size = write_table(Path(directory, "queries.csv"), max(4, round(NUM_ROWS * scale * share)))
            growth, seconds = fresh_process(growth_of_predict, directory)[0]
            measured.append((size, growth, seconds))
    (size, growth, seconds), (small_size, small_growth, _) = measured
    note = f"{growth / 1e6:.0f} MB for {size / 1e6:.0f} MB, {small_growth / 1e6:.0f} MB for {small_size / 1e6:.0f} MB"
    yield growth_target.row(growth / small_growth, note)
    yield share_target.row(growth / size, note)
    yield speed_target.row(size / 1e6 / seconds, f"{seconds:.0f} s of a processor for {round(NUM_ROWS * scale):,} rows")


def write_table(path: Path, num_rows: int) -> int:
    """Write queries, and return the bytes of the file."""
    with path.open("w", encoding="utf-8") as file:
        file.write("id,title,note\n")
        for row in range(num_rows):
            words = [WORDS[row // 10**digit % 10] for digit in range(10)]
            file.write(f"q{row},{' '.join(words)},{' '.join(words * 25)} {row}\n")
    return path.stat().st_size


def write_model(directory: str) -> None:
    """Write the folder of a model with random weights, which no training has made."""
    import torch
    from transformers import BertConfig, BertModel

    from prime_xmc.composing import compose
    from prime_xmc.data.tokenizer import load_tokenizer
    from prime_xmc.export.bundle import save_bundle
    from prime_xmc.model.encoder import TextEncoder
    from prime_xmc.model.prototypes import Prototypes

    tokenizer = load_tokenizer(str(compose("train", []).encoder.source))
    source = Path(directory, "encoder")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(source)
    encoder = TextEncoder(str(source))
    vectors = torch.nn.functional.normalize(torch.randn(NUM_LABELS, encoder.dim), dim=1)
    save_bundle(
        Path(directory, "model"),
        encoder=encoder,
        tokenizer=tokenizer,
        max_length=32,
        prototypes=Prototypes(NUM_LABELS, encoder.dim, 8, num_heads=2, feedforward=128),
        label_emb=vectors,
        label_prototypes=vectors.flip(0),  # of their own: a file holds no tensor twice
        labels=[(f"l{label}", f"label number {label}") for label in range(NUM_LABELS)],
        index=None,
        settings={},
        metrics=None,
    )


def growth_of_predict(directory: str) -> tuple[int, float]:
    """Predict for the table; return the growth of memory beyond the model in bytes, and seconds of a processor."""
    import prime_xmc
    from prime_xmc.composing import compose
    from prime_xmc.predict import run

    model = Path(directory, "model")
    prime_xmc.load(model).predict(["terminal multiplexer"])  # what libraries take when they are used first
    given = f"model.dir={model}", f"input={directory}/queries.csv", f"output={directory}/answers.csv"
    config = compose("predict", [*given, "top_k=1", "device=cpu", "resume=false"])
    start = time.process_time()
    with PeakMemory() as memory:
        run(config)
    return memory.growth, time.process_time() - start


if __name__ == "__main__":
    main(__doc__, TARGETS, rows)
