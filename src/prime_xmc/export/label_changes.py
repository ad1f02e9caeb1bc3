"""Labels of an exported model are added, removed and renamed, without training."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from prime_xmc.data.corpus import Ragged
from prime_xmc.export.folder import label_fields, model_version
from prime_xmc.export.label_tables import LabelTables
from prime_xmc.export.neighbours_folder import VotingQueries
from prime_xmc.export.predictor import Predictor
from prime_xmc.index.lexical import add_to_postings, replace_texts, take_postings
from prime_xmc.model.new_labels import carry_over, combine, nearest_clusters

_SHOWN = 5  # uids in a message


class NewLabel(NamedTuple):
    """A label to add, or one with its new text.

    Attributes:
        uid: Identifier.
        text: Text of the label.
    """

    uid: str
    text: str


class Example(NamedTuple):
    """A query whose labels are known.

    Attributes:
        text: Text of the query.
        uids: Identifiers of its labels.
    """

    text: str
    uids: tuple[str, ...]


def add_labels(
    tables: LabelTables, predictor: Predictor, labels: Sequence[NewLabel], examples: Sequence[Example] = ()
) -> LabelTables:
    """Return the tables with further labels, whose rows follow those of the others.

    Args:
        tables: What the model has for each label; it is not changed.
        predictor: The model, which encodes the texts.
        labels: Labels to add.
        examples: Queries that have new labels, and maybe others besides. Where the model has training queries that
            vote, these vote too, for all of their labels.

    Raises:
        ValueError: If a uid is taken, a label has neither a text nor a query, or an example names no new label or one
            that there is not.
    """
    if not labels:
        raise ValueError("expected labels to add, got none")
    _check_unique([label.uid for label in labels])
    if odd := [label.uid for label in labels if not label.uid or label.uid != label.uid.strip()]:
        raise ValueError(f"{_shown(odd)}: empty, or with blanks around it; give each label an identifier without")
    place = _places(tables)
    if taken := [label.uid for label in labels if label.uid in place]:
        raise ValueError(f"{_shown(taken)}: in the model already; rename it, or remove it before you add it again")
    num_before = len(tables.records)
    place |= {label.uid: [num_before + row] for row, label in enumerate(labels)}
    of_examples = _rows_of(examples, place, num_before)
    of_new = Ragged.from_rows([row[row >= num_before] - num_before for row in of_examples])
    counts = np.bincount(of_new.values, minlength=len(labels))
    if bare := [label.uid for label, count in zip(labels, counts, strict=True) if not label.text.strip() and not count]:
        raise ValueError(f"{_shown(bare)}: neither a text nor a query; give one of them")

    label_tokens = predictor.tokenise([label.text for label in labels], "label")
    query_tokens = predictor.tokenise([example.text for example in examples])
    label_emb, query_emb = _encode(predictor, label_tokens), _encode(predictor, query_tokens)
    settings, network = tables.config["prototypes"], dict(tables.network)
    clusters = nearest_clusters(label_emb, tables.label_emb, network["cluster_of_label"], settings["num_free_vectors"])
    centroids = mean_queries(query_emb, of_new, label_emb)
    prototypes = combine(settings, network, clusters, centroids, label_emb)
    network["cluster_of_label"] = torch.cat([network["cluster_of_label"], clusters])
    parts: dict[str, Any] = dict(
        config=_noted(tables.config, "add", len(labels), len(examples)),
        records=[*tables.records, *_records(tables, labels, counts)],
        label_emb=_joined(tables.label_emb, label_emb),
        prototypes=_joined(tables.prototypes, prototypes),
        centroids=_joined(tables.centroids, centroids),
        network=network,
    )
    if tables.classifiers is not None:
        classifiers = carry_over(tables.prototypes, tables.classifiers, prototypes)
        parts["classifiers"] = _joined(tables.classifiers, classifiers)
    if tables.voters is not None:
        embeddings = _joined(tables.voters.query_emb, query_emb)
        rows, texts = tables.voters.rows, tables.voters.texts
        parts["voters"] = VotingQueries(
            embeddings,
            Ragged.joined([tables.voters.labels, Ragged.from_rows(of_examples)]),
            None if rows is None else np.concatenate([rows, np.full(len(examples), -1)]),
            None if texts is None else [*texts, *(example.text for example in examples)],
        )
    if tables.lexical is not None:
        postings = add_to_postings(
            tables.lexical.postings,
            num_before,
            query_tokens,
            of_new,
            label_tokens,
            special_ids=tables.lexical.special_ids,
            pairs=tables.lexical.pairs,
        )
        parts["lexical"] = tables.lexical._replace(postings=postings)
    return replace(tables, **parts)


def remove_labels(tables: LabelTables, uids: Sequence[str]) -> LabelTables:
    """Return the tables without some labels; the rows of those behind them move up.

    A query that votes and has no label left does not vote any more.

    Args:
        tables: What the model has for each label; it is not changed.
        uids: Identifiers of the labels to remove.

    Raises:
        ValueError: If the model has no such label, or would have none left.
    """
    removed = np.unique(_known_rows(tables, uids))
    num_labels = len(tables.records)
    if len(removed) == num_labels:
        raise ValueError(f"all {num_labels} labels would be removed: a model needs one label at least")
    kept = np.setdiff1d(np.arange(num_labels), removed)
    ids = torch.from_numpy(kept)
    network = dict(tables.network)
    network["cluster_of_label"] = network["cluster_of_label"][ids]
    parts: dict[str, Any] = dict(
        config=_noted(tables.config, "remove", len(removed)),
        records=[tables.records[row] for row in kept],
        label_emb=tables.label_emb[ids],
        prototypes=tables.prototypes[ids],
        centroids=tables.centroids[ids],
        network=network,
    )
    if tables.classifiers is not None:
        parts["classifiers"] = tables.classifiers[ids]
    if tables.voters is not None:
        parts["voters"] = _without_labels(tables.voters, kept, num_labels)
    if tables.lexical is not None:
        postings = take_postings(tables.lexical.postings, num_labels, ids)
        parts["lexical"] = tables.lexical._replace(postings=postings)
    return replace(tables, **parts)


def rename_labels(tables: LabelTables, predictor: Predictor, labels: Sequence[NewLabel]) -> LabelTables:
    """Return the tables with new texts of some labels, which their prototypes and lexical vectors follow.

    Classifiers and votes stay, since they are made of queries alone.

    Args:
        tables: What the model has for each label; it is not changed.
        predictor: The model, which encodes the texts.
        labels: Identifiers of labels, with their new texts.

    Raises:
        ValueError: If the model has no such label, a text is empty, or not all of a text of before is known.
    """
    _check_unique([label.uid for label in labels])
    rows = _known_rows(tables, [label.uid for label in labels])
    if empty := [label.uid for label in labels if not label.text.strip()]:
        raise ValueError(f"{_shown(empty)}: the new text is empty; give one, or remove the label")
    if tables.lexical is not None and len(label_fields(tables.config) or ()) > 1:
        _check_whole(labels, [tables.records[row] for row in rows])
    ids = torch.from_numpy(rows)
    config = _noted(tables.config, "rename", len(labels))
    records, before = list(tables.records), [str(tables.records[row]["text"]) for row in rows]
    for row, label in zip(rows, labels, strict=True):
        records[row] = records[row] | {"text": label.text, "renamed": config["version"]}
    tokens = predictor.tokenise([label.text for label in labels], "label")
    label_emb, centroids = _encode(predictor, tokens), tables.centroids[ids].float()
    # what is without a query has its text for a centroid
    is_bare = torch.tensor([tables.records[row].get("queries") == 0 for row in rows])
    centroids[is_bare] = label_emb[is_bare]
    clusters = tables.network["cluster_of_label"][ids]
    prototypes = combine(config["prototypes"], tables.network, clusters, centroids, label_emb)
    parts: dict[str, Any] = dict(
        config=config,
        records=records,
        label_emb=_put(tables.label_emb, ids, label_emb),
        prototypes=_put(tables.prototypes, ids, prototypes),
        centroids=_put(tables.centroids, ids, centroids),
    )
    if tables.lexical is not None:
        postings = replace_texts(
            tables.lexical.postings,
            len(records),
            ids,
            predictor.tokenise(before, "label"),
            tokens,
            special_ids=tables.lexical.special_ids,
            pairs=tables.lexical.pairs,
        )
        parts["lexical"] = tables.lexical._replace(postings=postings)
    return replace(tables, **parts)


def _encode(predictor: Predictor, tokens: Ragged) -> Float[Tensor, "text d"]:
    return predictor.encode_tokens(tokens) if len(tokens) else torch.empty(0, predictor.encoder.dim)


def mean_queries(
    query_emb: Float[Tensor, "query d"], labels: Ragged, label_emb: Float[Tensor, "label d"]
) -> Float[Tensor, "label d"]:
    """Return the mean embedding of each label's queries; without any, the embedding of its text stands for it.

    Args:
        query_emb: Embeddings of the queries.
        labels: Labels of each of them.
        label_emb: Embeddings of the labels' texts.
    """
    sums = torch.zeros_like(label_emb, dtype=torch.float32)
    ids = torch.from_numpy(labels.values.astype(np.int64))
    sums.index_add_(0, ids, query_emb[torch.from_numpy(labels.row_ids())].float())
    counts = torch.bincount(ids, minlength=len(label_emb))[:, None]
    return torch.where(counts > 0, sums / counts.clamp(min=1), label_emb.float())


def _rows_of(examples: Sequence[Example], place: Mapping[str, list[int]], num_before: int) -> list[np.ndarray]:
    """Return the labels of each example by their rows, ascending, each once."""
    rows = []
    for number, example in enumerate(examples, start=1):
        if unknown := [uid for uid in example.uids if uid not in place]:
            raise ValueError(
                f"example query {number}, {example.text!r}: there is no label {_shown(unknown)}, neither among those "
                "to add nor in the model"
            )
        row = np.unique(np.array([each for uid in example.uids for each in place[uid]], dtype=np.int64))
        if not len(row) or row[-1] < num_before:
            raise ValueError(
                f"example query {number}, {example.text!r}: none of its labels is to be added; leave it out, or train "
                "again with it"
            )
        rows.append(row)
    return rows


def _places(tables: LabelTables) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for row, record in enumerate(tables.records):
        places.setdefault(str(record["uid"]), []).append(row)
    return places


def _known_rows(tables: LabelTables, uids: Sequence[str]) -> np.ndarray:
    """Return the row of each label.

    Raises:
        ValueError: If there is no such label, or there are several.
    """
    if not uids:
        raise ValueError("expected the uid of a label at least, got none")
    places = _places(tables)
    if unknown := [uid for uid in uids if uid not in places]:
        raise ValueError(f"{_shown(unknown)}: no label of the model has this uid; prime_xmc.labels list shows them")
    if several := [uid for uid in uids if len(places[uid]) > 1]:
        raise ValueError(f"{_shown(several)}: several labels of the model have this uid, and it is not clear which one")
    return np.array([places[uid][0] for uid in uids], dtype=np.int64)


def _check_whole(labels: Sequence[NewLabel], records: Sequence[Mapping[str, Any]]) -> None:
    """Check that the texts of before are known, of which a model has the first of several fields from its training.

    Raises:
        ValueError: If not.
    """
    if cut := [
        label.uid for label, record in zip(labels, records, strict=True) if not {"added", "renamed"} & {*record}
    ]:
        raise ValueError(
            f"{_shown(cut)}: the model knows the first of several fields of this text alone, and cannot take the terms "
            "of the others out of its lexical vector; remove the label, and add it with its queries"
        )


def _check_unique(uids: Sequence[str]) -> None:
    if repeated := [uid for uid, count in zip(*np.unique(list(uids), return_counts=True), strict=True) if count > 1]:
        raise ValueError(f"{_shown(repeated)}: given more than once; each label needs a uid of its own")


def _shown(uids: Iterable[str]) -> str:
    """Return uids for a message, the first few of many."""
    uids = [str(uid) for uid in uids]
    more = f" and {len(uids) - _SHOWN:,} more" if len(uids) > _SHOWN else ""
    return ", ".join(map(repr, uids[:_SHOWN])) + more


def _noted(config: Mapping[str, Any], change: str, num_labels: int, num_queries: int = 0) -> dict[str, Any]:
    """Return a configuration of the next version, with an entry in its history."""
    number = model_version(config) + 1
    entry = {
        "version": number,
        "change": change,
        "labels": num_labels,
        "queries": num_queries,
        "date": datetime.now(UTC).date().isoformat(),
        "package_version": version("prime_xmc"),
    }
    return dict(config) | {"version": number, "history": [*config.get("history", []), entry]}


def _records(tables: LabelTables, labels: Sequence[NewLabel], counts: np.ndarray) -> list[dict[str, Any]]:
    added = model_version(tables.config) + 1
    return [
        {"uid": label.uid, "text": label.text, "added": added, "queries": int(count)}
        for label, count in zip(labels, counts, strict=True)
    ]


def _joined(before: Shaped[Tensor, "before d"], added: Shaped[Tensor, "added d"]) -> Shaped[Tensor, "all d"]:
    return torch.cat([before, added.to(before.dtype)])


def _put(before: Shaped[Tensor, "row d"], ids: Tensor, rows: Shaped[Tensor, "some d"]) -> Shaped[Tensor, "row d"]:
    after = before.clone()
    after[ids] = rows.to(before.dtype)
    return after


def _without_labels(voters: VotingQueries, kept: np.ndarray, num_labels: int) -> VotingQueries:
    new_ids = np.full(num_labels, -1)
    new_ids[kept] = np.arange(len(kept))
    labels, row = new_ids[voters.labels.values], voters.labels.row_ids()
    rows = Ragged.grouped(row[labels >= 0], labels[labels >= 0], len(voters.labels))
    still_vote = np.flatnonzero((rows.lengths > 0) | (voters.labels.lengths == 0))
    return VotingQueries(
        voters.query_emb[torch.from_numpy(still_vote)],
        rows.take(still_vote),
        None if voters.rows is None else voters.rows[still_vote],
        None if voters.texts is None else np.array(list(voters.texts), dtype=object)[still_vote].tolist(),
    )
