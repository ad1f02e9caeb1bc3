"""The README of an exported folder, with a program that needs no more than onnxruntime and tokenizers."""

from collections.abc import Mapping, Sequence
from typing import Any

_PROGRAM = """import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")  # cuts texts at {max_length} tokens, as in training
tokenizer.enable_padding()
encoder = onnxruntime.InferenceSession("{encoder}")
vectors = np.load("vectors.npy")  # a row for each line of labels.jsonl

texts = tokenizer.encode_batch({texts})
ids, mask = (np.array([getattr(text, name) for text in texts]) for name in ("ids", "attention_mask"))
(embeddings,) = encoder.run(None, {{"input_ids": ids, "attention_mask": mask}})
scores = embeddings @ vectors.T
for label_ids, row in zip(np.argsort(-scores, kind="stable")[:, :5], scores):
    print([(int(label), round(float(row[label]), 4)) for label in label_ids])
"""
_VECTORS = {
    "theta": "prototypes, unit vectors: the inner product with a text's embedding is their cosine",
    "W": "one-vs-all classifiers, unit vectors: the inner product with a text's embedding is their cosine",
    "mixture": "{theta:g} * prototype + {W:g} * classifier, as the model's ensemble weighs them. They are no unit "
    "vectors: compare by the inner product, and do not normalise them",
}


def program(max_length: int, prompt: str, encoder: str = "encoder.onnx") -> str:
    """Return a Python program that ranks the labels of a text.

    Args:
        max_length: Tokens at which texts are cut.
        prompt: Text that belongs before every query, "" for none.
        encoder: File of the encoder.
    """
    given = '["perl module to parse dates"]'
    texts = f"[{prompt!r} + text for text in {given}]" if prompt else given
    return _PROGRAM.format(max_length=max_length, encoder=encoder, texts=texts)


def guide(
    files: Sequence[tuple[str, str]], *, vectors: str, weights: Mapping[str, float], difference: float, settings: Any
) -> str:
    """Return the README.

    Args:
        files: Name and description of each file.
        vectors: "theta", "W" or "mixture".
        weights: Weights of the scorers in the model's ensemble; empty where it has none.
        difference: Largest difference of an embedding's number from this package's.
        settings: Arguments of `program`, by name.
    """
    listed = "\n".join(f"| `{name}` | {text} |" for name, text in files)
    missing = [name for name in ("neighbours", "lexical") if weights.get(name)]
    about_rest = ""
    if missing:
        parts = " and ".join(f"{weights[name]:g} * {name}" for name in missing)
        about_rest = (
            f"\nThe model's own default is an ensemble, which adds {parts}. These are no products with a vector for "
            "each label and are not in this folder, so that scores here are not those of the ensemble.\n"
        )
    return f"""# A PRIME model for onnxruntime

| file | content |
| --- | --- |
{listed}

Vectors: {_VECTORS[vectors].format(**weights) if vectors == "mixture" else _VECTORS[vectors]}.
{about_rest}
```python
{program(**settings)}```

At the export, embeddings were compared with those of prime_xmc in float32: no number differed by more than
{difference:.1e}.
"""
