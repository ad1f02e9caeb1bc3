"""Label vectors as files that anything reads: NumPy's and Parquet."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32


def write_vectors(directory: Path, vectors: Float32[np.ndarray, "label d"], labels: Sequence[tuple[str, str]]) -> None:
    """Write vectors.npy, and labels.parquet with a row for each label: uid, text and vector.

    Args:
        directory: Folder of the files.
        vectors: Vector of every label.
        labels: Uid and text of every label, in order.
    """
    np.save(directory / "vectors.npy", vectors, allow_pickle=False)
    flat = pa.array(np.ascontiguousarray(vectors).ravel(), type=pa.float32())
    table = pa.table(
        {
            "uid": pa.array([uid for uid, _ in labels], type=pa.string()),
            "text": pa.array([text for _, text in labels], type=pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
    )
    pq.write_table(table, directory / "labels.parquet", compression="zstd")
