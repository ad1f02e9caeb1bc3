"""The exported model: a folder of plain data that sentence-transformers and transformers open, and `Predictor` does.

Nothing in it is pickled and no code in it is run: tensors are safetensors, settings JSON, the index is Faiss's own.
"""

import importlib.util
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import transformers
from jaxtyping import Float, Int64
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from prime_xmc.data.corpus import Ragged
from prime_xmc.files import replace_folder, temporary_folder, write_json, write_text
from prime_xmc.index.search import ExactSearch, FaissSearch, Search
from prime_xmc.model.encoder import TextEncoder, quiet_transformers
from prime_xmc.model.lora import merged
from prime_xmc.model.prototypes import Prototypes
from prime_xmc.model_card import model_card

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
CONFIG = "prime_config.json"
METRICS = "metrics.json"
LABELS = "labels.jsonl"
INDEX = "index.faiss"
PROTOTYPES = "prototypes.safetensors"
_REQUIRED = (CONFIG, "config.json", "model.safetensors", "tokenizer.json", PROTOTYPES, LABELS)

_AGAIN = "copy or export the model again"

_CHUNK = 4096  # texts encoded at once: sorted by length, they leave next to no padding
_SHOW_PROGRESS = 10_000  # texts from which on encoding takes long enough for a progress bar

# The names that every version of sentence-transformers since 2.0 reads; the newest ones write others.
_SENTENCE_TRANSFORMERS = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ],
    "config_sentence_transformers.json": {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    "2_Normalize/config.json": {},
}

_POOLING_MODES = {
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
    "cls": "pooling_mode_cls_token",
}


class ScoredLabel(NamedTuple):
    """A predicted label.

    Attributes:
        uid: As in the raw data.
        text: The label's title.
        score: Cosine between query and label prototype, in [-1, 1]; higher is closer.
        id: Its row in the raw data's file of labels, from 0.
    """

    uid: str
    text: str
    score: float
    id: int


class Prediction(NamedTuple):
    """A query and its labels, best first."""

    query: str
    labels: list[ScoredLabel]


def save_bundle(
    directory: Path,
    *,
    encoder: TextEncoder,
    tokenizer: transformers.PreTrainedTokenizerFast,
    max_length: int,
    prototypes: Prototypes,
    label_emb: Float[Tensor, "label d"],
    label_prototypes: Float[Tensor, "label d"],
    labels: Iterable[tuple[str, str]],
    index: object | None,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
) -> None:
    """Write a trained model to a folder, which appears under its name only when it is complete.

    An older export in its place is replaced.

    Args:
        directory: The folder; its parents are made if need be.
        encoder: f_theta.
        tokenizer: The encoder's; stays as it is.
        max_length: Tokens of a text, special tokens included; longer ones are cut.
        prototypes: g_phi and the banks.
        label_emb: h_l of every label.
        label_prototypes: z_l of every label.
        labels: uid and text of every label, in order.
        index: What the prototypes are searched with: a built `FaissSearch` goes into the folder, others need not.
        settings: How the model was made, as plain JSON: data set, configuration, versions, commit.
        metrics: Results, where there are any yet; see `update_metrics`.

    Raises:
        ValueError: If there is something else in the folder's place.
    """
    directory = directory.resolve()
    if directory.exists() and not (directory / CONFIG).is_file() and any(directory.iterdir()):
        raise ValueError(f"{directory} exists and holds no {CONFIG}: it is not overwritten; export to another folder")
    with temporary_folder(directory) as temporary:
        faiss_index = index if isinstance(index, FaissSearch) else None
        config = _describe(encoder, tokenizer, max_length, prototypes, faiss_index, settings)
        write_json(temporary / CONFIG, config)
        _write_encoder(temporary, encoder, tokenizer, max_length)
        save_file(_on_cpu({"centroids": prototypes.centroids.rows}), temporary / "centroids.safetensors")
        save_file(_on_cpu(prototypes.state_dict()), temporary / "prototype_network.safetensors")
        save_file(_on_cpu({"prototypes": label_prototypes, "label_emb": label_emb}), temporary / PROTOTYPES)
        if faiss_index is not None:
            faiss_index.save(temporary / INDEX)
        num_written = _write_labels(temporary / LABELS, labels)
        assert num_written == len(label_prototypes) == len(label_emb) == prototypes.num_labels
        _write_results(temporary, config, metrics)
        replace_folder(temporary, directory)


def update_metrics(directory: Path, metrics: Mapping[str, Any]) -> None:
    """Put results into an exported model: its metrics.json and the table of its model card.

    Args:
        directory: The folder that `save_bundle` wrote.
        metrics: Plain JSON; what is called `test/<metric>` is shown in the table, as a fraction in [0, 1].

    Raises:
        FileNotFoundError: If the folder is no exported model.
    """
    _write_results(directory, _read_config(directory), metrics)


class Predictor:
    """Ranks the labels of an exported model for any text, the way the model was trained.

    Args:
        encoder: f_theta, on the device to compute on.
        tokenizer: The encoder's, cutting texts at the model's length and padding nothing.
        searcher: Searches the label prototypes.
        labels: uid and text of every label, in order.
        config: The content of the model's prime_config.json.
        precision: "bf16-mixed" computes the encoder's layers in bfloat16, "32-true" in float32.

    Example:
        predictor = Predictor.load("outputs/train/2026-01-31_12-00-00/model")
        for prediction in predictor.predict(["terminal multiplexer with tabs"], top_k=5):
            print(prediction.query, [label.text for label in prediction.labels])

    Source: Appendix I.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        tokenizer: Tokenizer,
        searcher: Search,
        labels: Sequence[tuple[str, str]],
        config: Mapping[str, Any],
        *,
        precision: str = "32-true",
    ):
        self.encoder = encoder.eval()
        self.tokenizer = tokenizer
        self.searcher = searcher
        self.labels = labels
        self.config = config
        self.precision = precision

    @classmethod
    def load(
        cls,
        directory: str | Path,
        device: str = "cpu",
        index: Literal["auto", "exact", "faiss"] = "auto",
        precision: str = "32-true",
    ) -> "Predictor":
        """Load the folder that `save_bundle` wrote.

        Args:
            directory: The folder, `<run>/model`.
            device: Where to compute, as torch names it: "cpu", "cuda", "cuda:1".
            index: "faiss" searches with the Faiss index of the folder, "exact" with torch on the device; "auto" with
                the former where there is one and Faiss is installed, else with the latter.
            precision: "bf16-mixed" is faster where the device computes it natively, and rounds scores at about 1e-3.

        Raises:
            FileNotFoundError: If the folder is no exported model, or has no Faiss index though index="faiss".
            ImportError: If index="faiss" but Faiss is not installed.
            ValueError: If the folder has another format version, is damaged, or an argument is none of those above.
        """
        directory = Path(directory).expanduser()
        config = _read_config(directory)
        if index not in ("auto", "exact", "faiss"):
            raise ValueError(f"expected index auto, exact or faiss, got {index!r}")
        if precision not in ("bf16-mixed", "32-true"):
            raise ValueError(f"expected precision bf16-mixed or 32-true, got {precision!r}")
        num_labels = config["prototypes"]["num_labels"]
        labels = _read_labels(directory / LABELS)
        if len(labels) != num_labels:
            raise ValueError(f"{directory / LABELS} has {len(labels)} labels, expected {num_labels}; {_AGAIN}")
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # the latter where torch is built without CUDA
            raise ValueError(f"device {device!r} cannot be used here: {error}; take cpu, cuda or cuda:<n>") from error
        try:
            encoder = TextEncoder(str(directory), **config["encoder"]).to(device)
            searcher = _load_searcher(directory, config, index, device)
        except SafetensorError as error:
            raise ValueError(f"{directory}: a .safetensors file is damaged ({error}); {_AGAIN}") from error
        # As in the preparation of the data: without what the file says of padding.
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(config["max_length"])
        return cls(encoder, tokenizer, searcher, labels, config, precision=precision)

    @property
    def num_labels(self) -> int:
        """L."""
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where the encoder computes."""
        return next(self.encoder.parameters()).device

    def predict(self, texts: Sequence[str], top_k: int = 5) -> list[Prediction]:
        """Return the labels nearest to each text.

        Args:
            texts: Queries; an empty one is predicted as it is, from its special tokens alone.
            top_k: Labels per query, at least 1 and at most all.

        Raises:
            ValueError: If top_k is out of range, or texts is not a list of strings.
        """
        _check_top_k(top_k, self.num_labels)
        scores, ids = self.search(self.encode(texts), top_k)
        return [
            Prediction(text, [self._scored(*found) for found in zip(row, row_scores, strict=True)])
            for text, row, row_scores in zip(texts, ids.tolist(), scores.tolist(), strict=True)
        ]

    def _scored(self, label_id: int, score: float) -> ScoredLabel:
        uid, text = self.labels[label_id]
        return ScoredLabel(uid, text, score, label_id)

    def encode(self, texts: Sequence[str]) -> Float[Tensor, "text d"]:
        """Return the texts' embeddings, unit vectors on the CPU; shows progress where there are many.

        Raises:
            ValueError: If texts is not a list of strings.
        """
        checked = checked_texts(texts)
        starts: Iterable[int] = range(0, len(checked), _CHUNK)
        if len(checked) > _SHOW_PROGRESS:
            starts = track(starts, "encode", console=Console(stderr=True))
        chunks = [self.encode_tokens(self._tokenise(checked[start : start + _CHUNK])) for start in starts]
        return torch.cat([torch.empty(0, self.encoder.dim), *chunks])

    def _tokenise(self, texts: list[str]) -> Ragged:
        return Ragged.from_rows([encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts)])

    @torch.no_grad()
    def encode_tokens(self, tokens: Ragged) -> Float[Tensor, "text d"]:
        """Return the embeddings, on the CPU, of texts that this model's tokenizer has made token ids of."""
        token_ids = torch.from_numpy(tokens.values.astype(np.int64)).to(self.device)
        bf16 = self.precision == "bf16-mixed"
        with torch.autocast(self.device.type, dtype=torch.bfloat16) if bf16 else nullcontext():
            return self.encoder(token_ids, torch.from_numpy(tokens.lengths)).cpu()

    @torch.no_grad()
    def search(
        self, query_emb: Float[Tensor, "query d"], top_k: int
    ) -> tuple[Float[Tensor, "query k"], Int64[Tensor, "query k"]]:
        """Return scores, descending, and ids of the labels nearest to each embedding.

        Raises:
            ValueError: If top_k is out of range.
        """
        _check_top_k(top_k, self.num_labels)
        if len(query_emb) == 0:
            return query_emb.new_empty((0, top_k)), query_emb.new_empty((0, top_k), dtype=torch.int64)
        return self.searcher.search(query_emb, top_k)


def checked_texts(texts: Iterable[object]) -> list[str]:
    """Return the texts as a list.

    Raises:
        ValueError: If one of them is not a string, or not one that UTF-8 can write, with its position; or if they are
            a single string.
    """
    if isinstance(texts, str):
        raise ValueError(f"expected a list of texts, got the single string {texts!r}: write [text]")
    checked = []
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"the text at position {position} is {text!r}, expected a string")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"the text at position {position} is {text!r}: half a character ({error})") from error
        checked.append(text)
    return checked


def _check_top_k(top_k: int, num_labels: int) -> None:
    if not 1 <= top_k <= num_labels:
        raise ValueError(f"expected top_k between 1 and the model's {num_labels} labels, got {top_k}")


def _describe(
    encoder: TextEncoder,
    tokenizer: transformers.PreTrainedTokenizerFast,
    max_length: int,
    prototypes: Prototypes,
    index: FaissSearch | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return all that it takes to build the parts again, and what is to be known of them."""
    layer = None if prototypes.network is None else prototypes.network.layer
    return {
        "format_version": FORMAT_VERSION,
        "package_version": version("prime_xmc"),
        "dtype": "float32",
        "max_length": max_length,
        "pad_token_id": tokenizer.pad_token_id,
        "encoder": {
            "implementation": "transformers" if encoder.packed is None else "packed",
            "attention": encoder.backbone.config._attn_implementation,
            "pooling": encoder.pooling,
        },
        "prototypes": {
            "num_labels": prototypes.num_labels,
            "dim": encoder.dim,
            # where none is used, here and below, any number makes the module again
            "num_free_vectors": 1 if prototypes.free_vectors is None else len(prototypes.free_vectors),
            "sources": list(prototypes.sources),
            "num_heads": 1 if layer is None else layer.self_attn.num_heads,
            "feedforward": 1 if layer is None else layer.linear1.out_features,
        },
        "index": None
        if index is None
        else {name: getattr(index, name) for name in ("kind", "m", "ef_construction", "ef_search")},
        "settings": dict(settings),
    }


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
    # Of earlier owners of the tokenizer: they would contradict model_max_length, replace the special tokens that
    # tokenizer.json adds, or name a folder of this machine.
    dropped = ("max_length", "truncation_strategy", "stride", "add_bos_token", "add_eos_token", "name_or_path")
    tokenizer_config = {key: value for key, value in tokenizer_config.items() if key not in dropped}
    tokenizer_config |= {"model_max_length": max_length, "padding_side": "right"}
    write_json(directory / "tokenizer_config.json", tokenizer_config)
    for name, content in _SENTENCE_TRANSFORMERS.items():
        write_json(directory / name, content)
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    modes = {name: mode == encoder.pooling for mode, name in _POOLING_MODES.items()}
    pooling = {"word_embedding_dimension": encoder.dim} | modes
    write_json(directory / "1_Pooling" / "config.json", pooling)


def _write_labels(path: Path, labels: Iterable[tuple[str, str]]) -> int:
    num_written = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for uid, text in labels:
            file.write(json.dumps({"uid": uid, "text": text}, ensure_ascii=False) + "\n")
            num_written += 1
    return num_written


def _read_labels(path: Path) -> list[tuple[str, str]]:
    labels = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                label = json.loads(line)
                labels.append((label["uid"], label["text"]))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: no label with uid and text ({error!r}); {_AGAIN}") from error
    return labels


def _load_searcher(
    directory: Path, config: Mapping[str, Any], index: Literal["auto", "exact", "faiss"], device: str
) -> Search:
    has_index = config["index"] is not None and (directory / INDEX).is_file()
    if index == "faiss" and not has_index:
        raise FileNotFoundError(f"{directory} has no {INDEX}: take index=exact, or train with index=flat or index=hnsw")
    if index == "faiss" or (index == "auto" and has_index and importlib.util.find_spec("faiss") is not None):
        faiss_search = FaissSearch(**config["index"])
        faiss_search.load(directory / INDEX)
        return faiss_search
    exact = ExactSearch()
    with safe_open(directory / PROTOTYPES, framework="pt", device=device) as tensors:
        exact.build(tensors.get_tensor("prototypes"))
    return exact


def _read_config(directory: Path) -> dict[str, Any]:
    """Read prime_config.json of a folder that has all that an exported model needs."""
    missing = [name for name in _REQUIRED if not (directory / name).is_file()]
    if missing:
        inside = directory / "model"
        where = inside if (inside / CONFIG).is_file() else "the folder model/ of a run"
        raise FileNotFoundError(
            f"{directory.absolute()} is no exported model, {', '.join(missing)} not found: expected {where}"
        )
    path = directory / CONFIG
    try:
        config = json.loads(path.read_bytes())
        found = config["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); {_AGAIN}") from error
    if found != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version is {found}, prime_xmc {version('prime_xmc')} reads {FORMAT_VERSION}: install "
            f"prime_xmc {config.get('package_version')}, which wrote it, or export the model again"
        )
    return config


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _write_results(directory: Path, config: Mapping[str, Any], metrics: Mapping[str, Any] | None) -> None:
    if metrics is not None:
        write_json(directory / METRICS, dict(metrics))
    write_text(directory / "README.md", model_card(config, metrics or {}))
