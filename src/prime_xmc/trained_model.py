"""`Model`: what `prime_xmc.load` and `prime_xmc.fit` return, a model that predicts, is evaluated and changed."""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float64
from scipy.sparse import csr_array, issparse, sparray, spmatrix
from torch import Tensor

from prime_xmc.data.corpus import Ragged
from prime_xmc.evaluation.metrics import TOP_K, evaluate
from prime_xmc.evaluation.rank import search_unfiltered
from prime_xmc.export.folder import model_version, read_metrics
from prime_xmc.export.hub import download, is_hub_id, upload
from prime_xmc.export.label_changes import Example, NewLabel, add_labels, remove_labels, rename_labels
from prime_xmc.export.label_tables import LabelTables, copy_model, read_label_tables, write_label_tables
from prime_xmc.export.predictor import Predictor, checked_texts, is_table

LabelLike = str | tuple[str | int, str] | Mapping[str, Any]
"""A label: its text, which is its uid too; (uid, text); or a dictionary with uid and text, or title in its place."""

Positives = Iterable[Iterable[int] | Iterable[str]] | sparray | spmatrix
"""The labels of each query: lists of rows or uids, or a sparse matrix [queries, labels] that is 0 for all others."""


class Model(Predictor):
    """An exported model: ranks labels, is evaluated on queries, and gets further labels without training.

    Changes of labels are made beside the folder that was opened, which stays as it was until `save`. Other threads may
    predict meanwhile: each call is answered with the labels of before or with those of after. One thread changes them.

    Example:
        model = prime_xmc.load("outputs/train/2026-01-31_12-00-00/model")
        model.add_labels([("l9", "terminal multiplexers")], ["tmux with tabs"], [["l9"]])
        model.save("models/second")

    Attributes:
        source: Folder that was opened, None where it came from the hub.
    """

    source: Path | None
    _arguments: dict[str, Any]  # with which it was opened
    _opened_version: int

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
        *,
        revision: str | None = None,
    ) -> "Model":
        """Open a model: a folder, or `<owner>/<model>` on the Hugging Face hub, of which data files are downloaded.

        Nothing of it is run as code.

        Args:
            directory: Folder of the model, `<run>/model`, or its name on the hub where there is no such folder.
            device: As in `Predictor.load`, like the next six.
            index: Kind of search.
            precision: Precision of the encoder's layers.
            scorer: Way to score.
            classifiers: Folder of classifiers that were trained on the model later.
            prototype_dtype: Precision of the label vectors.
            verify: How the files are compared with their checksums.
            revision: Branch, tag or commit on the hub; None: its main branch.

        Raises:
            FileNotFoundError: If there is no such model here or on the hub, or it lacks what the scorer needs.
            ImportError: If index="faiss" but Faiss cannot be used.
            ValueError: If the folder is damaged, or an argument is out of range.
        """
        from_hub = is_hub_id(directory)
        folder = download(str(directory), revision) if from_hub else Path(directory).expanduser()
        arguments: dict[str, Any] = {
            "device": device,
            "index": index,
            "precision": precision,
            "scorer": scorer,
            "classifiers": classifiers,
            "prototype_dtype": prototype_dtype,
            "verify": verify,
        }
        model = super().load(folder, **arguments)
        assert isinstance(model, cls)
        model.source = None if from_hub else folder
        model._arguments = arguments
        model._opened_version = model_version(model.config)
        return model

    @property
    def folder(self) -> Path:
        """Folder that holds the model as it is now."""
        folder = self._ranked.folder
        assert folder is not None  # `load` has given it
        return folder

    @property
    def metrics(self) -> dict[str, Any]:
        """Results of the training, `test/<metric>` and others; empty where there are none."""
        return read_metrics(self.folder)

    @property
    def version(self) -> int:
        """Number of the model's version: 1 as it was trained, one more after each change of its labels."""
        return model_version(self.config)

    def evaluate(
        self,
        queries: Iterable[str],
        positives: Positives,
        inverse_propensity: Float64[np.ndarray, " label"] | None = None,
        *,
        filtered: Positives | None = None,
    ) -> dict[str, float]:
        """Return the metrics of the model for queries whose labels are known.

        The filter files of a data set are not known here: without `filtered`, a label that they leave out of a query's
        answers, mostly the query's own, takes a place among the first k.

        Args:
            queries: Texts.
            positives: Labels of each query, by row (`ScoredLabel.id`) or by uid; or a sparse matrix with a row for each
                query and a column for each label.
            inverse_propensity: Weight of each label, at least 1; None: there are no propensity-scored metrics.
            filtered: Labels of each query that are no answers of it, likewise; None: there are none.

        Returns:
            Fractions in [0, 1] by name, such as "P@1" and "R@10"; empty where no query has a label.

        Raises:
            ValueError: If queries, positives and filtered do not fit, a label is not known, or a number is the row of
                one label and the uid of another.
        """
        ranked, texts = self._ranked, checked_texts(queries)
        uids, num_labels = [uid for uid, _ in ranked.labels], len(ranked.labels)
        truth = _ragged(positives, uids, len(texts))
        left_out = _ragged([()] * len(texts) if filtered is None else filtered, uids, len(texts))
        if not texts:
            return {}
        query_emb, tokens = self._read(texts)

        def search(query_emb: Float[Tensor, "query d"], top_k: int) -> tuple[Tensor, Tensor]:
            return self._search(ranked, query_emb, min(top_k, num_labels), tokens)

        indices, _ = search_unfiltered(search, query_emb, left_out, TOP_K)
        weights = np.ones(num_labels) if inverse_propensity is None else inverse_propensity
        metrics = evaluate(indices, truth, weights)
        unweighted = inverse_propensity is None
        return {name: value for name, value in metrics.items() if not (unweighted and name.startswith("PS"))}

    def add_labels(
        self,
        labels: Iterable[LabelLike],
        queries: Iterable[str] = (),
        positives: Iterable[Sequence[str]] = (),
    ) -> None:
        """Add labels without training: prototypes come from their texts and from example queries.

        Args:
            labels: Labels to add.
            queries: Example queries of these; each label may have none.
            positives: Labels of each example query, by uid: of new ones, and maybe of others besides.

        Raises:
            FileNotFoundError: If the model folder lacks what makes prototypes.
            ValueError: If a uid is taken, or an example names a label that there is not.
        """
        texts, uids = checked_texts(queries), [checked_texts(each) for each in positives]
        _check_lengths(len(texts), len(uids))
        new = as_labels(labels)
        examples = [Example(text, tuple(of_text)) for text, of_text in zip(texts, uids, strict=True)]
        self._change(lambda tables: add_labels(tables, self, new, examples))

    def remove_labels(self, uids: Iterable[str]) -> None:
        """Remove labels; the ids of those behind them change.

        Raises:
            ValueError: If there is no such label, or none would be left.
        """
        removed = checked_texts(uids)
        self._change(lambda tables: remove_labels(tables, removed))

    def rename_labels(self, texts: Mapping[str, str] | Iterable[tuple[str, str]]) -> None:
        """Give labels other texts; their prototypes follow.

        Args:
            texts: New text by uid, or pairs of uid and new text.

        Raises:
            ValueError: If there is no such label, or a text is empty or none.
        """
        if isinstance(texts, str):
            raise ValueError(f"expected new texts by uid, got the text {texts!r}: write {{uid: text}}")
        new = [as_label(pair) for pair in dict(texts).items()]
        self._change(lambda tables: rename_labels(tables, self, new))

    def save(self, folder: str | Path | None = None) -> Path:
        """Write the model as it is now, in one step, and return where.

        Args:
            folder: Folder that does not exist yet; None: the one that was opened is replaced.

        Raises:
            FileExistsError: If the folder exists.
            ValueError: If no folder was opened, or it has changed since.
        """
        if folder is None and self.source is None:
            raise ValueError("the model comes from the hub: give a folder to save it in")
        target = Path(folder).expanduser() if folder is not None else self.source
        assert target is not None
        if self.source is not None and target.resolve() == self.source.resolve():
            if self.folder != self.source:
                copy_model(self.folder, target, self._opened_version)
        else:
            copy_model(self.folder, target)
        self._ranked = replace(self._ranked, folder=target)
        self.source = target
        self._opened_version = self.version
        return target

    def push_to_hub(
        self, hub_id: str, *, private: bool = True, license: str | None = None, token: str | None = None
    ) -> str:
        """Upload the model with its card; arguments, result and errors are those of `prime_xmc.export.hub.upload`."""
        return upload(self.folder, hub_id, private=private, license=license, token=token)

    def _change(self, change: Callable[[LabelTables], LabelTables]) -> None:
        workspace = Path(tempfile.mkdtemp(prefix="prime_xmc-"))
        try:
            write_label_tables(change(read_label_tables(self.folder)), self.folder, workspace / "model", link=True)
            changed = Predictor.load(workspace / "model", **self._arguments)
        except BaseException:
            shutil.rmtree(workspace, ignore_errors=True)
            raise
        # until nobody answers with these labels any more, another thread included
        weakref.finalize(changed._ranked, shutil.rmtree, workspace, ignore_errors=True)
        self._ranked = changed._ranked


def as_labels(labels: Iterable[LabelLike]) -> list[NewLabel]:
    """Return labels as uid and text.

    Raises:
        ValueError: If one is none, or they are no list of labels.
    """
    if isinstance(labels, str | Mapping):
        raise ValueError(
            f"expected a list of labels, got {labels!r:.80}: write [label] if it is a single one, and "
            "list(texts.items()) for a dictionary of texts by uid"
        )
    if is_table(labels):
        raise ValueError(
            f"expected a list of labels, got a table ({type(labels).__name__}): give pairs of uid and text, as in "
            "list(zip(uids, texts))"
        )
    return [as_label(label) for label in labels]


def as_label(label: object) -> NewLabel:
    """Return a label as uid and text.

    Raises:
        ValueError: If it is none.
    """
    uid, text = _parts(label)
    if not isinstance(uid, str | int | np.integer) or isinstance(uid, bool) or not isinstance(text, str):
        raise ValueError(f"expected a label as a text, (uid, text) or a dictionary with uid and text, got {label!r}")
    try:
        f"{uid}{text}".encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the label {label!r} has half a character ({error}): remove it") from error
    return NewLabel(str(uid), text)


def is_numbered(label: object) -> bool:
    """Return whether the uid of a label was given as a number."""
    return not isinstance(_parts(label)[0], str)


def _parts(label: object) -> tuple[Any, Any]:
    """Return uid and text of what is given for a label, unchecked."""
    if isinstance(label, str):
        return label, label
    if isinstance(label, Mapping):
        text = label.get("text", label.get("title"))
        return label.get("uid", text), text
    return label if isinstance(label, tuple) and len(label) == 2 else (None, None)


def _check_lengths(num_queries: int, num_lists: int) -> None:
    if num_queries != num_lists:
        raise ValueError(f"expected labels for each of {num_queries} queries, got {num_lists} lists")


def _ragged(given: Positives, uids: Sequence[str], num_queries: int) -> Ragged:
    """Return the labels of each query by row, ascending and each once."""
    rows = rows_of(given, uids)
    _check_lengths(num_queries, len(rows))
    return Ragged.from_rows([np.unique(np.array(row, dtype=np.int64)) for row in rows])


def _refuse_indicators(positives: Sequence[Any], num_labels: int) -> None:
    """Refuse rows with a zero or a one for each label, as scikit-learn makes them: they would be taken for ids.

    A list of ids names each once, so that a row of zeros and ones alone has at most two; where there are two labels,
    ids of both in every row say nothing.
    """
    if num_labels < 2:
        return
    sizes = [len(row) for row in positives]
    suspects = [row for row, size in zip(positives, sizes, strict=True) if size == num_labels]
    if not suspects or (num_labels == 2 and (len(suspects) < len(sizes) or len(sizes) == 1)):
        return
    if all(_is_bit(value) for row in suspects for value in row):
        shown = ", ".join(map(str, list(suspects[0])[:6])) + (", …" if num_labels > 6 else "")
        raise ValueError(
            f"query {sizes.index(num_labels)}: [{shown}] has a zero or a one for each of the {num_labels} labels "
            "(multi-hot); expected the uids or rows of its own labels: [np.flatnonzero(row) for row in matrix]"
        )


def _is_bit(value: Any) -> bool:
    return isinstance(value, bool | np.bool_ | int | float | np.number) and value in (0, 1)


def rows_of(positives: Any, uids: Sequence[str], *, numbers_are_uids: bool = False) -> list[list[int]]:
    """Return the labels of each query by row, from rows or uids, or from a sparse matrix of queries and labels.

    Args:
        positives: `Positives`.
        uids: Identifiers of all labels.
        numbers_are_uids: Whether labels were given numbers for identifiers, so that numbers are these and not rows.

    Raises:
        ValueError: If a label is not known, a uid belongs to several labels, a number is the row of one label and the
            uid of another, or the rows are multi-hot.
    """
    if issparse(positives):
        if positives.ndim != 2 or positives.shape[1] != len(uids):
            raise ValueError(
                f"expected a matrix with a row for each query and a column for each of the {len(uids)} labels, got the "
                f"shape {positives.shape}"
            )
        matrix = csr_array(positives, copy=True)
        matrix.eliminate_zeros()
        return [matrix.indices[start:end].tolist() for start, end in pairwise(matrix.indptr)]
    if isinstance(positives, Mapping) or is_table(positives):
        raise ValueError(f"expected a list of the labels of each query, got a {type(positives).__name__}")
    positives = [_listed(number, labels) for number, labels in enumerate(positives)]
    _refuse_indicators(positives, len(uids))
    place: dict[str, int] = {}
    several = {uid for row, uid in enumerate(uids) if place.setdefault(uid, row) != row}
    rows = []
    for number, labels in enumerate(positives):
        row: list[int] = []
        for label in labels:
            is_number = isinstance(label, int | np.integer) and not isinstance(label, bool)
            if isinstance(label, str) or (is_number and numbers_are_uids):
                uid = str(label)
                if uid not in place or uid in several:
                    problem = "several labels have this uid" if uid in several else "there is no such label"
                    raise ValueError(f"query {number}: {label!r}: {problem}")
                row.append(place[uid])
            elif not is_number or not 0 <= label < len(uids):
                raise ValueError(f"query {number}: label {label!r}: expected a uid or a row from 0 to {len(uids) - 1}")
            elif place.get(str(label), label) != label:
                raise ValueError(
                    f"query {number}: label {label}: row {label} has the uid {uids[label]!r}, and {str(label)!r} is "
                    f"the uid of row {place[str(label)]}: name labels by their uids, as texts"
                )
            else:
                row.append(int(label))
        rows.append(row)
    return rows


def _listed(number: int, labels: Any) -> list[Any]:
    if hasattr(labels, "tolist"):  # of NumPy, pandas and PyTorch
        labels = labels.tolist()
    if isinstance(labels, str):
        raise ValueError(f"query {number}: expected a list of labels, got the text {labels!r}: write [label]")
    if not isinstance(labels, Iterable):
        raise ValueError(f"query {number}: expected a list of labels, got {labels!r}: write [label]")
    return list(labels)
