"""`Predictor`: ranks the labels of an exported model for any text."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from tokenizers import Tokenizer
from torch import Tensor

from prime_xmc.checksums import check_choice
from prime_xmc.data.corpus import Ragged
from prime_xmc.export.calibration import ScorerCalibration, read_calibration
from prime_xmc.export.explainer import Explainer, Explanation
from prime_xmc.export.folder import (
    AGAIN,
    LABELS,
    query_fields,
    query_separator,
    read_config,
    read_labels,
    training_precision,
)
from prime_xmc.export.label_choice import Given, choose_labels
from prime_xmc.export.model_sums import check_model
from prime_xmc.export.scorers import encoder_digest
from prime_xmc.export.searchers import choose_scorer, load_explainer, load_searcher
from prime_xmc.foreign import check_tensors_file
from prime_xmc.index.crowd import DEPTH
from prime_xmc.index.search import Search
from prime_xmc.model.encoder import TextEncoder
from prime_xmc.model.precision import native_precision
from prime_xmc.progress import track

logger = logging.getLogger(__name__)

PRECISIONS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "32-true": None}  # what layers compute in
PROTOTYPE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SHOW_PROGRESS = 10_000  # texts from which on encoding takes long enough for a progress bar
_CHUNK = 4096  # texts encoded at once: enough of them, sorted by length, leave next to no padding


class _RankedLabel(NamedTuple):
    uid: str
    text: str
    score: float
    id: int


class ScoredLabel(_RankedLabel):
    """A predicted label: a tuple of `uid`, `text`, `score` and `id`, with more that may have been asked for.

    Attributes:
        uid: Identifier in the raw data.
        text: Title of the label.
        score: Score of the label, higher is closer: by prototypes or classifiers a cosine in [-1, 1], by neighbours
            their share in [0, 1] that has the label, by terms the lexical score, which is seldom above 1, by the
            ensemble the weighted sum of these.
        id: Row in the model's labels.jsonl, counted from 0; that in the raw data's file of labels, unless labels were
            removed since.
        probability: Probability that the label is right, in [0, 1]; None unless it was asked for by `calibrate`.
        why: What the score is made of, and training queries like the query; None unless asked for by `explain`.
    """

    probability: float | None = None
    why: Explanation | None = None


class Prediction(NamedTuple):
    """A query and its labels, best first."""

    query: str
    labels: list[ScoredLabel]


class Request(NamedTuple):
    """What is asked of a `Predictor` for any number of texts, checked; see `Predictor.request`.

    Attributes:
        top_k: Number of labels per query.
        min_score: Lowest score of a label; None: none is left out.
        allowed: Labels that may be an answer; None: all may.
        calibration: What makes probabilities of scores; None: they are not asked for.
        explainer: What explains answers; None: they are not to be explained.
        labels: Labels that the model had when it was asked.
    """

    top_k: int
    min_score: float | None
    allowed: Bool[Tensor, " label"] | None
    calibration: ScorerCalibration | None
    explainer: Explainer | None
    labels: Sequence[tuple[str, str]]


@dataclass(eq=False)
class Ranked:
    """The labels of a predictor with all that goes with them, which is exchanged as one when they are changed.

    Whoever answers reads it once, so that a thread never looks up rows of old labels among new ones.

    Attributes:
        searcher: Search of the scorer.
        labels: Identifier (uid) and text of every label, in order.
        config: Content of the model's prime_config.json.
        folder: Folder of the model, from which probabilities and explanations are made; None: there are none.
        calibration: What makes probabilities of scores; None until it is first wanted.
        explainer: What explains answers, likewise.
    """

    searcher: Search
    labels: Sequence[tuple[str, str]]
    config: Mapping[str, Any]
    folder: Path | None
    calibration: ScorerCalibration | None = None
    explainer: Explainer | None = None


class Predictor:
    """Ranks the labels of an exported model for any text, the way the model was trained.

    Several threads may ask one predictor at the same time.

    Args:
        encoder: Encoder f_theta, on the device to compute on.
        tokenizer: Tokenizer of the encoder, which cuts texts at the model's length and pads nothing.
        searcher: Search of the scorer.
        labels: Identifier (uid) and text of every label, in order.
        config: Content of the model's prime_config.json.
        precision: Precision of the encoder's layers: "bf16-mixed" computes them in bfloat16, "16-mixed" in float16,
            "32-true" in float32.
        scorer: Name of the scorer that the search is of.
        folder: Folder of the model, from which probabilities and explanations are made; None: there are none.
        classifiers: Folder of classifiers outside of it that the scorer uses.

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
        scorer: str = "theta",
        folder: Path | None = None,
        classifiers: Path | None = None,
    ):
        self.encoder = encoder.eval()
        self.tokenizer = tokenizer
        self.precision = precision
        self.scorer = scorer
        self._ranked = Ranked(searcher, labels, config, folder)
        self._classifiers = classifiers
        self._has_warned = False  # of fewer labels than were asked for

    @classmethod
    def load(
        cls,
        directory: str | Path,
        device: str = "cpu",
        index: Literal["auto", "exact", "faiss"] = "auto",
        precision: str | None = None,
        scorer: str = "auto",
        classifiers: str | Path | None = None,
        prototype_dtype: str = "float32",
        verify: str = "sampled",
    ) -> "Predictor":
        """Load the folder that `save_bundle` wrote.

        Args:
            directory: Folder of the model, `<run>/model`.
            device: Device to compute on, as torch names it: "cpu", "cuda", "cuda:1".
            index: Kind of search: "faiss" uses the Faiss index of the folder, "exact" torch on the device. "auto" takes
                the former where the index is approximate (hnsw), as chosen in training, and Faiss can be used; else the
                latter, which finds what a flat index finds. In the ensemble it is the search of prototypes and
                classifiers; neighbours and lexical scores are always searched exactly.
            precision: Precision of the encoder's layers, "bf16-mixed", "16-mixed" or "32-true"; the first rounds scores
                at about 1e-3. None takes that of the training where the device computes it natively, else "32-true".
            scorer: Way to score: by prototypes ("theta"), one-vs-all classifiers ("W"), a vote of the nearest training
                queries ("neighbours"), the terms that query and label have in common ("lexical"), or by the sum of
                these that was chosen in training ("ensemble"). "auto" takes the ensemble where the folder has one,
                else the prototypes.
            classifiers: Folder of classifiers that were trained on the model later, for "W" or "ensemble", which is the
                mean of their scores and those of the prototypes then; None for those in the model's folder.
            prototype_dtype: Precision in which the label vectors are kept and multiplied with queries: "float32", or
                "float16" or "bfloat16", which take half of the memory and, on a GPU, a fraction of the time. They round
                scores at about 1e-4 and 1e-3, and are searched exactly.
            verify: How the files are compared with the checksums that were written with them: "sampled" reads some
                blocks of those above 256 MiB, "full" all.

        Raises:
            FileNotFoundError: If the folder is no exported model, lacks what the scorer needs, or has no Faiss index
                though index="faiss".
            ImportError: If index="faiss" but Faiss cannot be used.
            ValueError: If the folder has another format version, is damaged, or an argument is none of those above.
        """
        directory = Path(directory).expanduser()
        config = read_config(directory)
        if index not in ("auto", "exact", "faiss"):
            raise ValueError(f"expected index auto, exact or faiss, got {index!r}")
        if precision is not None and precision not in PRECISIONS:
            raise ValueError(f"expected precision bf16-mixed, 16-mixed or 32-true, got {precision!r}")
        if prototype_dtype not in PROTOTYPE_DTYPES:
            raise ValueError(f"expected prototype_dtype float32, float16 or bfloat16, got {prototype_dtype!r}")
        check_choice(verify)
        others = None if classifiers is None else Path(classifiers).expanduser()
        scorer_name = choose_scorer(directory, scorer, others)
        num_labels = config["prototypes"]["num_labels"]
        labels = [(label["uid"], label["text"]) for label in read_labels(directory / LABELS)]
        if len(labels) != num_labels:
            raise ValueError(f"{directory / LABELS} has {len(labels)} labels, expected {num_labels}; {AGAIN}")
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # the latter where torch is built without CUDA
            raise ValueError(f"device {device!r} cannot be used here: {error}; take cpu, cuda or cuda:<n>") from error
        encoder = _load_encoder(directory, config["encoder"], config["prototypes"]["dim"]).to(device)
        tokenizer = _load_tokenizer(directory, config["max_length"], encoder.num_tokens)
        searcher = load_searcher(
            directory,
            config,
            scorer=scorer_name,
            index=index,
            device=device,
            classifiers=others,
            dtype=PROTOTYPE_DTYPES[prototype_dtype],
        )
        check_model(directory, verify, others)
        if precision is None:
            precision = _own_precision(training_precision(config), torch.device(device))
        return cls(
            encoder,
            tokenizer,
            searcher,
            labels,
            config,
            precision=precision,
            scorer=scorer_name,
            folder=directory,
            classifiers=others,
        )

    @property
    def searcher(self) -> Search:
        """Search of the scorer."""
        return self._ranked.searcher

    @property
    def labels(self) -> Sequence[tuple[str, str]]:
        """Identifier (uid) and text of every label, in order."""
        return self._ranked.labels

    @property
    def config(self) -> Mapping[str, Any]:
        """Content of the model's prime_config.json."""
        return self._ranked.config

    @property
    def folder(self) -> Path | None:
        """Folder of the model; None where it was made of its parts."""
        return self._ranked.folder

    @property
    def num_labels(self) -> int:
        """Number of labels, L."""
        return len(self.labels)

    @property
    def fields(self) -> tuple[str, ...] | None:
        """Fields of a record that made up a query's text in training, in order; None where the model does not say."""
        return query_fields(self.config)

    @property
    def separator(self) -> str:
        """What stands between the fields of a query's text."""
        return query_separator(self.config)

    @property
    def device(self) -> torch.device:
        """Device on which the encoder computes."""
        return next(self.encoder.parameters()).device

    def predict(
        self,
        texts: Iterable[str],
        top_k: int = 5,
        min_score: float | None = None,
        *,
        allow: Given | None = None,
        exclude: Given | None = None,
        calibrate: bool = False,
        explain: bool = False,
    ) -> list[Prediction]:
        """Return the labels nearest to each text.

        Args:
            texts: Queries; an empty one is predicted from its special tokens alone.
            top_k: Number of labels per query, at least 1; all labels are returned where the model has fewer. Neighbours
                alone score the labels that they have, and may return fewer.
            min_score: Lowest score of a label, see `ScoredLabel`; labels below it are left out. None keeps all.
            allow: Labels that may be an answer: a list of their uids or ids, or a text file with one a line; None: all.
            exclude: Labels that may not, likewise. With either, each query still gets `top_k` of the others.
            calibrate: Whether each label gets the probability that it is right, see `ScoredLabel.probability`.
            explain: Whether each label gets an explanation of its score, see `ScoredLabel.why`.

        Raises:
            FileNotFoundError: If the model has no calibration, or a list is a file that is not there.
            ValueError: If top_k is no whole number or below 1, min_score is no number, texts are not strings, or a
                label in a list is unknown.
        """
        ranked = self._ranked
        request = self._request(ranked, top_k, min_score, allow, exclude, calibrate=calibrate, explain=explain)
        return self._answer(ranked, texts, request)

    def request(
        self,
        top_k: int = 5,
        min_score: float | None = None,
        *,
        allow: Given | None = None,
        exclude: Given | None = None,
        calibrate: bool = False,
        explain: bool = False,
    ) -> Request:
        """Check the arguments of `predict` once, for `answer` to be called with many batches of texts.

        Raises:
            FileNotFoundError: As `predict`.
            ValueError: As `predict`.
        """
        return self._request(self._ranked, top_k, min_score, allow, exclude, calibrate=calibrate, explain=explain)

    def _request(
        self,
        ranked: Ranked,
        top_k: int,
        min_score: float | None,
        allow: Given | None,
        exclude: Given | None,
        *,
        calibrate: bool,
        explain: bool,
    ) -> Request:
        _check_top_k(top_k)
        _check_min_score(min_score)
        chosen = choose_labels(ranked.labels, allow, exclude)
        return Request(
            int(top_k),  # either may be a number of NumPy's
            None if min_score is None else float(min_score),
            None if chosen is None else torch.from_numpy(chosen).to(self.device),
            self._load_calibration(ranked) if calibrate else None,
            self._load_explainer(ranked) if explain else None,
            ranked.labels,
        )

    def answer(self, texts: Iterable[str], request: Request) -> list[Prediction]:
        """Return what a request asks for each text; see `predict`.

        Raises:
            ValueError: If texts are not strings, or the labels of the model were changed after the request was made.
        """
        ranked = self._ranked
        if request.labels is not ranked.labels:
            raise ValueError("the labels were changed since the request was made: call request() again")
        return self._answer(ranked, texts, request)

    def _answer(self, ranked: Ranked, texts: Iterable[str], request: Request) -> list[Prediction]:
        checked = checked_texts(texts)
        query_emb, tokens = self._read(checked)
        scores, ids = self._search(ranked, query_emb, request.top_k, tokens, request.allowed)
        if request.min_score is not None:
            ids = ids.masked_fill(scores < request.min_score, -1)
        labels = [
            [_scored(ranked, label_id, score) for label_id, score in zip(*row, strict=True) if label_id >= 0]
            for row in zip(ids.tolist(), scores.tolist(), strict=True)
        ]
        if request.calibration is not None:
            # all labels compete, whether or not they may be an answer
            best, _ = self._search(ranked, query_emb, min(DEPTH, len(ranked.labels)), tokens)
            found = request.calibration.at(scores.numpy(), best.numpy()).tolist()
            for row, of_row in zip(labels, found, strict=True):
                for label, probability in zip(row, of_row, strict=False):  # those left out are at the end
                    label.probability = probability
        if request.explainer is not None and checked:
            reasons = request.explainer.explain(query_emb, ids, tokens)
            for row, of_row in zip(labels, reasons, strict=True):
                for label, why in zip(row, of_row, strict=True):
                    label.why = why
        return [Prediction(text, row) for text, row in zip(checked, labels, strict=True)]

    def calibration(self) -> ScorerCalibration:
        """Return what makes probabilities of this scorer's scores, with a good `min_score` and how far both hold.

        Raises:
            FileNotFoundError: If the model has no calibration.
            ValueError: If it has none of this scorer, or it is damaged.
        """
        return self._load_calibration(self._ranked)

    def _load_calibration(self, ranked: Ranked) -> ScorerCalibration:
        if ranked.calibration is None:
            folder = _same_folder(ranked, "probabilities")
            if self._classifiers is not None:
                raise ValueError(
                    f"the calibration of {folder} is of its own scorers, not of those with "
                    f"classifiers={self._classifiers}: leave calibrate or classifiers out"
                )
            calibration = read_calibration(folder, encoder_digest(folder))
            if self.scorer not in calibration.scorers:
                raise ValueError(
                    f"the calibration of {folder} is of {', '.join(calibration.scorers)} and not of scorer="
                    f"{self.scorer}: take one of these, or fit it with prime-xmc-calibrate"
                )
            ranked.calibration = calibration.scorers[self.scorer]
        return ranked.calibration

    def _load_explainer(self, ranked: Ranked) -> Explainer:
        if ranked.explainer is None:
            ranked.explainer = load_explainer(
                _same_folder(ranked, "explanations"),
                ranked.config,
                scorer=self.scorer,
                search=ranked.searcher,
                device=str(self.device),
                classifiers=self._classifiers,
            )
        return ranked.explainer

    def encode(self, texts: Iterable[str]) -> Float[Tensor, "text d"]:
        """Return the embeddings of queries, unit vectors on the CPU; shows progress where there are many.

        The model's prompt for queries, if it has one, is put before each text.

        Raises:
            ValueError: If texts are not strings.
        """
        return self._read(checked_texts(texts))[0]

    def _read(self, texts: list[str]) -> tuple[Float[Tensor, "text d"], Ragged]:
        """Return the embeddings of queries and their token ids."""
        starts: Iterable[int] = range(0, len(texts), _CHUNK)
        if len(texts) > SHOW_PROGRESS:
            starts = track(starts, "encode")
        chunks, tokens = [torch.empty(0, self.encoder.dim)], []
        for start in starts:
            tokens.append(self.tokenise(texts[start : start + _CHUNK]))
            chunks.append(self.encode_tokens(tokens[-1]))
        return torch.cat(chunks), Ragged.joined(tokens)

    def tokenise(self, texts: Iterable[str], kind: Literal["query", "label"] = "query") -> Ragged:
        """Return the token ids of texts, special tokens included, with the model's prompt for their kind before each.

        Raises:
            ValueError: If texts are not strings.
        """
        prompt = getattr(self.encoder.prompts, kind)
        encodings = self.tokenizer.encode_batch_fast([prompt + text for text in checked_texts(texts)])
        return Ragged.from_rows([encoding.ids for encoding in encodings])

    @torch.no_grad()
    def encode_tokens(self, tokens: Ragged) -> Float[Tensor, "text d"]:
        """Return the embeddings, on the CPU, of texts that this model's tokenizer has made token ids of."""
        token_ids = torch.from_numpy(tokens.values.astype(np.int64)).to(self.device)
        dtype = PRECISIONS[self.precision]
        with nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype):
            return self.encoder(token_ids, torch.from_numpy(tokens.lengths)).cpu()

    @torch.no_grad()
    def search(
        self,
        query_emb: Float[Tensor, "query d"],
        top_k: int,
        tokens: Ragged | None = None,
        allowed: Bool[Tensor, " label"] | None = None,
    ) -> tuple[Float[Tensor, "query k"], Int64[Tensor, "query k"]]:
        """Return scores, descending, and ids of the labels nearest to each embedding.

        Args:
            query_emb: Unit vectors.
            top_k: Number of labels per query, at least 1; all labels are returned where the model has fewer. Where
                neighbours alone score fewer, -inf and -1 fill up.
            tokens: Token ids of the queries, see `tokenise`; needed where the lexical score is part of the scorer.
            allowed: Labels that may be an answer; None: all may. Where fewer are allowed, as many are returned.

        Raises:
            ValueError: If top_k is below 1, tokens are needed and not given, or no label is allowed.
        """
        _check_top_k(top_k)
        return self._search(self._ranked, query_emb, top_k, tokens, allowed)

    @torch.no_grad()
    def _search(
        self,
        ranked: Ranked,
        query_emb: Float[Tensor, "query d"],
        top_k: int,
        tokens: Ragged | None,
        allowed: Bool[Tensor, " label"] | None = None,
    ) -> tuple[Float[Tensor, "query k"], Int64[Tensor, "query k"]]:
        num_labels = len(ranked.labels)
        if top_k > num_labels:
            if not self._has_warned:
                logger.warning("top_k=%d: the model has %d labels, and all are returned", top_k, num_labels)
            self._has_warned = True
            top_k = num_labels
        if len(query_emb) == 0:
            return query_emb.new_empty((0, top_k)), query_emb.new_empty((0, top_k), dtype=torch.int64)
        return ranked.searcher.search(query_emb, top_k, tokens, allowed)

    def share(self, other: "Predictor") -> None:
        """Use encoder, tokenizer and labels of another predictor of the same folder, to have them in memory once."""
        self.encoder, self.tokenizer = other.encoder, other.tokenizer
        self._ranked.labels = other.labels


def _scored(ranked: Ranked, label_id: int, score: float) -> ScoredLabel:
    uid, text = ranked.labels[label_id]
    return ScoredLabel(uid, text, score, label_id)


def _same_folder(ranked: Ranked, what: str) -> Path:
    """Return the folder of the model, checked to be that which was loaded."""
    if ranked.folder is None:
        raise ValueError(f"{what} come from the folder of a model: load it by prime_xmc.load")
    if read_config(ranked.folder) != ranked.config:
        raise ValueError(f"{ranked.folder} holds another model than when it was loaded: load it again")
    return ranked.folder


def is_table(given: object) -> bool:
    """Return whether this is a table of pandas, polars or PyArrow, none of which need be installed.

    These iterate over the names of their columns, or over the columns.
    """
    return hasattr(given, "columns")


def checked_texts(texts: Iterable[object]) -> list[str]:
    """Return the texts as a list.

    Raises:
        ValueError: If one of them is not a string, or not one that UTF-8 can write, with its position; or if they are
            a single string, or a dictionary or a table, which iterate over their keys and names of columns.
    """
    if isinstance(texts, str):
        raise ValueError(f"expected a list of texts, got the single string {texts!r}: write [text]")
    if isinstance(texts, Mapping):
        raise ValueError("expected a list of texts, got a dictionary: write list(texts.values()), or list(texts)")
    if is_table(texts):
        raise ValueError(f"expected a list of texts, got a table ({type(texts).__name__}): give one column of it")
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


def _check_top_k(top_k: object) -> None:
    if isinstance(top_k, bool) or not isinstance(top_k, Integral):
        raise ValueError(f"expected top_k, a whole number of at least 1, got {top_k!r}")
    if int(top_k) < 1:
        raise ValueError(f"expected top_k of at least 1, got {top_k}")


def _check_min_score(min_score: object) -> None:
    if min_score is None:
        return
    # NaN would be no limit at all, since no score is below it
    if isinstance(min_score, bool) or not isinstance(min_score, Real) or min_score != min_score:
        raise ValueError(f"expected min_score, a number or None for no limit, got {min_score!r}")


def _load_encoder(directory: Path, settings: Mapping[str, Any], dim: int) -> TextEncoder:
    if (directory / "adapter_config.json").exists():  # transformers would load the model that it names
        raise ValueError(f"{directory} has an adapter_config.json, and no export has one: remove it, or {AGAIN}")
    try:
        check_tensors_file(directory / "model.safetensors")
        # Folders of the first models do not say how they pool, which was by the mean.
        encoder = TextEncoder(str(directory), **({"pooling": "mean"} | dict(settings)))
    except Exception as error:  # transformers raises any kind for files that do not fit one another
        raise ValueError(f"{directory}: the encoder is damaged ({str(error) or error!r}); {AGAIN}") from error
    if encoder.dim != dim:
        raise ValueError(f"{directory}: the encoder has {encoder.dim} dimensions, expected {dim}; {AGAIN}")
    return encoder


def _load_tokenizer(directory: Path, max_length: int, num_embeddings: int) -> Tokenizer:
    """Return the tokenizer as the preparation of the data has it: cutting texts, without padding."""
    path = directory / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except BaseException as error:  # tokenizers raises nothing more special, and what Rust calls a panic
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ValueError(f"{path} is damaged ({error}); {AGAIN}") from error
    num_tokens = max(tokenizer.get_vocab().values(), default=-1) + 1
    if num_tokens > num_embeddings:
        raise ValueError(f"{path} has {num_tokens} tokens, and the encoder embeds {num_embeddings}; {AGAIN}")
    tokenizer.no_padding()
    try:
        tokenizer.enable_truncation(max_length)
        special = tokenizer.encode("").ids
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ValueError(f"{path} is damaged ({error}); {AGAIN}") from error
    if not special or max(special) >= num_embeddings:
        expected = f"special tokens around every text, with ids below {num_embeddings}"
        raise ValueError(f"{path} is damaged: expected {expected}, got {special}; {AGAIN}")
    return tokenizer


def _own_precision(trained: str, device: torch.device) -> str:
    """Return the precision of the training, or 32-true where the device does not compute that one natively."""
    if trained == "32-true" or trained == native_precision(device.type):
        return trained
    logger.info("the model was trained in %s, which %s does not compute natively: 32-true is used", trained, device)
    return "32-true"
