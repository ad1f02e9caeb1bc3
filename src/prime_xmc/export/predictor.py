"""`Predictor`: ranks the labels of an exported model for any text."""

import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor

from prime_xmc.data.corpus import Ragged
from prime_xmc.export.folder import AGAIN, INDEX, LABELS, PROTOTYPES, read_config
from prime_xmc.index.search import ExactSearch, FaissSearch, Search
from prime_xmc.model.encoder import TextEncoder

_CHUNK = 4096  # texts encoded at once: sorted by length, they leave next to no padding
_SHOW_PROGRESS = 10_000  # texts from which on encoding takes long enough for a progress bar


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
        config = read_config(directory)
        if index not in ("auto", "exact", "faiss"):
            raise ValueError(f"expected index auto, exact or faiss, got {index!r}")
        if precision not in ("bf16-mixed", "32-true"):
            raise ValueError(f"expected precision bf16-mixed or 32-true, got {precision!r}")
        num_labels = config["prototypes"]["num_labels"]
        labels = _read_labels(directory / LABELS)
        if len(labels) != num_labels:
            raise ValueError(f"{directory / LABELS} has {len(labels)} labels, expected {num_labels}; {AGAIN}")
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # the latter where torch is built without CUDA
            raise ValueError(f"device {device!r} cannot be used here: {error}; take cpu, cuda or cuda:<n>") from error
        try:
            encoder = TextEncoder(str(directory), **config["encoder"]).to(device)
            searcher = _load_searcher(directory, config, index, device)
        except SafetensorError as error:
            raise ValueError(f"{directory}: a .safetensors file is damaged ({error}); {AGAIN}") from error
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


def _read_labels(path: Path) -> list[tuple[str, str]]:
    labels = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                label = json.loads(line)
                labels.append((label["uid"], label["text"]))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: no label with uid and text ({error!r}); {AGAIN}") from error
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
