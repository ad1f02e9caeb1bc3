"""The exported model: a folder of plain data that `Predictor`, sentence-transformers and transformers open.

Nothing in it is pickled and no code in it is run: tensors are safetensors, settings JSON, the index is Faiss's own.
"""

import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor

from prime_xmc.export.calibration import has_calibration, read_calibration
from prime_xmc.export.ensemble import has_ensemble, read_ensemble
from prime_xmc.export.folder import (
    CARD,
    CENTROIDS,
    CONFIG,
    FORMAT_VERSION,
    INDEX,
    LABELS,
    METRICS,
    NETWORK,
    ONE_VS_ALL,
    PROTOTYPES,
    read_config,
    read_metrics,
)
from prime_xmc.export.model_card import model_card
from prime_xmc.export.model_sums import SUMMED, sealed
from prime_xmc.export.scorers import encoder_digest
from prime_xmc.export.settings import portable
from prime_xmc.files import publishing, save_tensors, write_json, write_text
from prime_xmc.index.search import FaissSearch, faiss_problem
from prime_xmc.model.encoder import TextEncoder, quiet_transformers
from prime_xmc.model.finiteness import not_finite
from prime_xmc.model.lora import merged
from prime_xmc.model.prototypes import Prototypes

logger = logging.getLogger(__name__)


# The names that every version of sentence-transformers since 2.0 reads; the newest ones write others.
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]

_POOLING_MODES = {
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
    "cls": "pooling_mode_cls_token",
}


def save_bundle(
    directory: Path,
    *,
    encoder: TextEncoder,
    tokenizer: transformers.PreTrainedTokenizerFast,
    max_length: int,
    prototypes: Prototypes | None,
    label_emb: Float[Tensor, "label d"] | None,
    label_prototypes: Float[Tensor, "label d"],
    labels: Iterable[tuple[str, str]],
    index: object | None,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
    fields: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    bare: Collection[int] = (),
    precision: str = "32-true",
) -> None:
    """Write a trained model to a folder, which appears under its name only when it is complete.

    An older export in its place is replaced.

    Args:
        directory: Folder to write; its parents are made if need be.
        encoder: Encoder f_theta.
        tokenizer: Tokenizer of the encoder; it is not changed.
        max_length: Number of tokens, special tokens included, at which a text is cut.
        prototypes: Label Prototype Network g_phi with its banks; None where the vectors of the labels are one-vs-all
            classifiers, which are made of nothing.
        label_emb: Embedding h_l of every label; None likewise.
        label_prototypes: Vector of every label that a query is scored with: prototype z_l or classifier w_l.
        labels: Identifier (uid) and text of every label, in order.
        index: Search that training used. A built `FaissSearch` goes into the folder; with any other, the
            prototypes go there in a flat Faiss index where Faiss is installed.
        settings: Description of the training as plain JSON: data set, configuration, versions, commit. Absolute paths
            are left out, see `portable`.
        metrics: Results, None where there are none yet; see `update_metrics`.
        fields: Fields of a record that made up a query's text in training, joined by a space; None: not known.
        columns: Columns of the user's own tables that they were converted from; None: the fields are called as there.
        bare: Ids of labels without a training query, whose centroid is the embedding of their text.
        precision: Lightning's name of the precision that the model was trained in.

    Raises:
        ValueError: If the folder holds something other than an exported model, or the model has numbers that are not
            finite.
    """
    directory = directory.resolve()
    if names := not_finite([*encoder.named_parameters(), ("label vectors", label_prototypes)]):
        raise ValueError(
            f"the model is not exported, since it has numbers that are not finite ({', '.join(names[:3])})"
        )
    if directory.exists() and not (directory / CONFIG).is_file() and any(directory.iterdir()):
        raise ValueError(f"{directory} exists and holds no {CONFIG}: it is not overwritten; export to another folder")
    with publishing(directory, replace=True) as temporary:
        faiss_index = index if isinstance(index, FaissSearch) else _flat_index(label_prototypes)
        of_labels = _describe_vectors(label_prototypes) if prototypes is None else _describe_prototypes(prototypes)
        config = _describe(encoder, tokenizer, max_length, of_labels, faiss_index, settings) | {
            "query": {
                "fields": None if fields is None else list(fields),
                "separator": " ",
                **({} if columns is None else {"columns": list(columns)}),
            },
            "precision": precision,
        }
        _write_encoder(temporary, encoder, tokenizer, max_length)
        if prototypes is not None:
            save_tensors(temporary / CENTROIDS, {"centroids": prototypes.centroids.rows})
            save_tensors(temporary / NETWORK, prototypes.state_dict())
        vectors = {"prototypes": label_prototypes}
        save_tensors(temporary / PROTOTYPES, vectors if label_emb is None else vectors | {"label_emb": label_emb})
        if faiss_index is not None:
            faiss_index.save(temporary / INDEX)
        num_written = _write_labels(temporary / LABELS, labels, bare)
        assert num_written == len(label_prototypes) == of_labels["num_labels"]
        assert label_emb is None or len(label_emb) == num_written
        write_json(temporary / CONFIG, sealed(config, temporary, SUMMED))
        if metrics is not None:
            write_json(temporary / METRICS, dict(metrics))
        write_card(temporary)


def update_metrics(directory: Path, metrics: Mapping[str, Any]) -> None:
    """Put results into an exported model: its metrics.json and the table of its model card.

    Args:
        directory: Folder that `save_bundle` wrote.
        metrics: Results as plain JSON; what is called `test/<metric>` is shown in the table, as a fraction in [0, 1].

    Raises:
        FileNotFoundError: If the folder is no exported model.
    """
    read_config(directory)  # raises before anything is written
    write_json(directory / METRICS, dict(metrics))
    write_card(directory)


def write_card(directory: Path) -> None:
    """Write the model card of an exported model anew, with the results that it has.

    Raises:
        FileNotFoundError: If the folder is no exported model.
        ValueError: If a file is damaged.
    """
    write_text(directory / CARD, card_of(directory))


def card_of(directory: Path, hub_id: str | None = None) -> str:
    """Return the model card of an exported model; arguments and errors are those of `model_card` and `write_card`."""
    digest = encoder_digest(directory)
    ensemble = read_ensemble(directory, digest) if has_ensemble(directory) else None
    calibration = read_calibration(directory, digest) if has_calibration(directory) else None
    return model_card(read_config(directory), read_metrics(directory), ensemble, calibration, hub_id)


def _flat_index(label_prototypes: Float[Tensor, "label d"]) -> FaissSearch | None:
    """Return a flat Faiss index of the prototypes, None where Faiss cannot be used; the log then says why."""
    problem = faiss_problem()
    if problem is not None:
        logger.info("the model is exported without %s: %s", INDEX, problem)
        return None
    index = FaissSearch("flat")
    index.build(label_prototypes)
    return index


def _describe(
    encoder: TextEncoder,
    tokenizer: transformers.PreTrainedTokenizerFast,
    max_length: int,
    of_labels: Mapping[str, Any],
    index: FaissSearch | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what it takes to build the parts again, and how they were made."""
    return {
        "format_version": FORMAT_VERSION,
        "package_version": version("prime_xmc"),
        "dtype": "float32",
        "max_length": max_length,
        "pad_token_id": tokenizer.pad_token_id,
        "encoder": {
            "implementation": encoder.implementation,
            "attention": encoder.backbone.config._attn_implementation,
            "pooling": encoder.pooling,
            "query_prompt": encoder.prompts.query or None,
            "label_prompt": encoder.prompts.label or None,
        }
        | ({} if encoder.normalize else {"normalize": False}),
        "prototypes": dict(of_labels),
        "index": None
        if index is None
        else {name: getattr(index, name) for name in ("kind", "m", "ef_construction", "ef_search")},
        "settings": portable(settings),
    }


def _describe_prototypes(prototypes: Prototypes) -> dict[str, Any]:
    layer = None if prototypes.network is None else prototypes.network.layer
    # those of other packages, which cannot be made from a description
    more = {"more_sources": list(prototypes.more_sources)} if prototypes.more_sources else {}
    return {
        "num_labels": prototypes.num_labels,
        "dim": prototypes.centroids.rows.shape[1],
        # Where none is used, here and below, any number makes the module again.
        "num_free_vectors": 1 if prototypes.free_vectors is None else prototypes.num_shared,
        "num_private": 0 if prototypes.free_vectors is None else prototypes.num_private,
        "sources": [source for source in prototypes.sources if source not in prototypes.more_sources],
        "combine": prototypes.combine,
        "num_heads": 1 if layer is None else layer.self_attn.num_heads,
        "feedforward": 1 if layer is None else layer.linear1.out_features,
    } | more


def _describe_vectors(vectors: Float[Tensor, "label d"]) -> dict[str, Any]:
    return {"kind": ONE_VS_ALL, "num_labels": vectors.shape[0], "dim": vectors.shape[1]}


def _write_encoder(
    directory: Path, encoder: TextEncoder, tokenizer: transformers.PreTrainedTokenizerFast, max_length: int
) -> None:
    with quiet_transformers():
        merged(encoder.backbone).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    # Whoever opens the folder, with whichever library, cuts texts where training did.
    backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    backend.no_padding()
    backend.enable_truncation(max_length)
    backend.save(str(directory / "tokenizer.json"))
    tokenizer_config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    # Earlier owners of the tokenizer wrote these. They would contradict model_max_length, replace the special tokens
    # that tokenizer.json adds, or name a folder of this machine.
    dropped = ("max_length", "truncation_strategy", "stride", "add_bos_token", "add_eos_token", "name_or_path")
    tokenizer_config = {key: value for key, value in tokenizer_config.items() if key not in dropped}
    tokenizer_config |= {"model_max_length": max_length, "padding_side": "right"}
    write_json(directory / "tokenizer_config.json", tokenizer_config)
    write_json(directory / "modules.json", _MODULES if encoder.normalize else _MODULES[:2])
    if encoder.normalize:
        write_json(directory / "2_Normalize" / "config.json", {})
    prompts = {"query": encoder.prompts.query, "document": encoder.prompts.label} if any(encoder.prompts) else {}
    about = {
        "prompts": prompts,
        "default_prompt_name": None,
        "similarity_fn_name": "cosine" if encoder.normalize else "dot",
    }
    write_json(directory / "config_sentence_transformers.json", about)
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    modes = {name: mode == encoder.pooling for mode, name in _POOLING_MODES.items()}
    pooling = {"word_embedding_dimension": encoder.dim} | modes
    write_json(directory / "1_Pooling" / "config.json", pooling)


def _write_labels(path: Path, labels: Iterable[tuple[str, str]], bare: Collection[int]) -> int:
    num_written = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row, (uid, text) in enumerate(labels):
            record = {"uid": uid, "text": text} | ({"queries": 0} if row in bare else {})
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            num_written += 1
    return num_written
