"""The exported folder, written and checked."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from prime_xmc.data.corpus import Ragged
from prime_xmc.export.ensemble import has_ensemble, read_ensemble
from prime_xmc.export.folder import LABELS
from prime_xmc.export.predictor import Predictor
from prime_xmc.export.scorers import FOLDER, encoder_digest, load_classifiers, read_prototypes
from prime_xmc.files import publishing, write_json, write_text
from prime_xmc.index.fused import Weights, mixture
from prime_xmc.interchange.comparison import TokenEncoder
from prime_xmc.interchange.encoder_graph import export_encoder
from prime_xmc.interchange.guide import guide
from prime_xmc.interchange.label_table import write_vectors
from prime_xmc.interchange.onnx_encoder import OnnxEncoder, quantise

logger = logging.getLogger(__name__)

ENCODER, ENCODER_INT8, CONFIG = "encoder.onnx", "encoder_int8.onnx", "prime_onnx.json"
VECTORS = ("theta", "W", "mixture")
TOLERANCE = 1e-4
_CHECKED = 256  # labels whose texts are compared, besides some odd texts
_ODD = ("", "a", "Ünï ≠ 語 😀", "x" * 5000, "one two three " * 500)


class Exported(NamedTuple):
    """What was written.

    Attributes:
        folder: The folder.
        difference: Largest difference of an embedding's number from the Predictor's.
        vectors: Vector of every label.
    """

    folder: Path
    difference: float
    vectors: Float[Tensor, "label d"]


def choose_vectors(model: Path, vectors: str) -> tuple[Float[Tensor, "label d"], dict[str, float]]:
    """Return the label vectors of a model that are asked for, and the weights of its ensemble, if it has one.

    Args:
        model: Folder of the model.
        vectors: One of `VECTORS`.

    Raises:
        FileNotFoundError: If the model has no classifiers, or no ensemble, that are needed.
        ValueError: If `vectors` is another name, or a file is damaged.
    """
    if vectors not in VECTORS:
        raise ValueError(f"expected vectors theta, W or mixture, got {vectors!r}")
    digest = encoder_digest(model)
    weights = read_ensemble(model, digest).weights if vectors == "mixture" or has_ensemble(model) else None
    prototypes = read_prototypes(model)
    as_dict = {} if weights is None else weights._asdict()
    if vectors == "theta":
        return prototypes, as_dict
    if vectors == "W":
        return load_classifiers(model / FOLDER, model, digest), as_dict
    assert isinstance(weights, Weights)
    classifiers = load_classifiers(model / FOLDER, model, digest) if weights.W else None
    return mixture(prototypes, classifiers, weights), as_dict


def check_output(output: Path) -> None:
    """Check that a folder may be written, before anything takes time.

    Raises:
        ValueError: If it holds something other than an earlier export.
    """
    if output.exists() and not (output / CONFIG).is_file() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} exists and holds no {CONFIG}: it is not overwritten; give another output=")


def export_folder(
    predictor: Predictor,
    model: Path,
    output: Path,
    *,
    vectors: str = "theta",
    int8: bool = False,
    say: Callable[[str], None] = logger.info,
) -> Exported:
    """Write the folder, which appears under its name only when it is complete and has been compared.

    Args:
        predictor: The model on the CPU, in float32.
        model: Its folder.
        output: Folder to write; one that an earlier export wrote is replaced.
        vectors: Which label vectors, see `choose_vectors`.
        int8: Whether to write an encoder in 8-bit integers too.
        say: Function that is told what has been done.

    Raises:
        FileNotFoundError: As `choose_vectors`.
        ValueError: If the folder holds something else, the encoder cannot be exported, or its embeddings differ from
            the predictor's by more than 1e-4.
    """
    check_output(output)
    label_vectors, weights = choose_vectors(model, vectors)
    prompt, max_length = predictor.encoder.prompts.query, predictor.config["max_length"]
    texts = [*_ODD, *(text for _, text in predictor.labels[:_CHECKED])]
    with publishing(output, replace=True) as temporary:
        export_encoder(predictor.encoder, temporary / ENCODER)
        tokens = predictor.tokenise(texts)
        difference = largest_difference(predictor, temporary / ENCODER, tokens)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"the exported encoder is another function: its embeddings of {len(texts)} texts differ by up to "
                f"{difference:.2g} from the model's, expected at most {TOLERANCE:g}. This kind of encoder cannot be "
                "exported with these versions of torch and transformers"
            )
        say(f"{ENCODER}: embeddings of {len(texts)} texts differ from those of torch by at most {difference:.1e}")
        files = [(ENCODER, "the encoder in float32: ids and mask of tokens to unit embeddings")]
        if int8:
            quantise(temporary / ENCODER, temporary / ENCODER_INT8)
            rounded = largest_difference(predictor, temporary / ENCODER_INT8, tokens)
            say(f"{ENCODER_INT8}: they differ by at most {rounded:.1e}")
            files.append((ENCODER_INT8, "the same in 8-bit integers, a quarter of the size, with rounded embeddings"))
        predictor.tokenizer.save(str(temporary / "tokenizer.json"))
        write_vectors(temporary, label_vectors.float().numpy(), predictor.labels)
        shutil.copyfile(model / LABELS, temporary / LABELS)
        config = {
            "format": "onnx",
            "max_length": max_length,
            "query_prompt": prompt,
            "pooling": predictor.encoder.pooling,
            "vectors": vectors,
            "weights": weights,
            "num_labels": len(label_vectors),
            "dim": label_vectors.shape[1],
            "difference": difference,
        }
        write_json(temporary / CONFIG, config)
        files += [
            ("tokenizer.json", "the tokenizer, for the package tokenizers"),
            ("vectors.npy", "the vectors of the labels, float32"),
            ("labels.parquet", "uid, text and vector of each label, for stores of vectors"),
            (LABELS, "uid and text of each label, as lines of JSON, and how it was changed after the training"),
            (CONFIG, "this description, for programs"),
        ]
        settings = {"max_length": max_length, "prompt": prompt}
        text = guide(files, vectors=vectors, weights=weights, difference=difference, settings=settings)
        write_text(temporary / "README.md", text)
    return Exported(output, difference, label_vectors)


def largest_difference(encoder: TokenEncoder, path: Path, tokens: Ragged) -> float:
    """Return how far embeddings of an exported encoder are from another's, by the largest number."""
    ours = encoder.encode_tokens(tokens)
    theirs = OnnxEncoder(path, torch.get_num_threads()).encode_tokens(tokens)
    return float((ours - theirs).abs().max())
