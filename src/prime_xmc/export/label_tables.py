"""All parts of a model folder that have a row per label, read and written together."""

import fcntl
import json
import logging
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from prime_xmc.export import ensemble as ensembles
from prime_xmc.export.bundle import write_card
from prime_xmc.export.folder import (
    AGAIN,
    CENTROIDS,
    CONFIG,
    INDEX,
    LABELS,
    NETWORK,
    PROTOTYPES,
    is_one_vs_all,
    model_version,
    read_config,
    read_labels,
)
from prime_xmc.export.lexical_folder import FOLDER as LEXICAL
from prime_xmc.export.lexical_folder import LexicalTables, load_lexical, save_lexical
from prime_xmc.export.model_sums import SUMMED, sealed
from prime_xmc.export.neighbours_folder import FOLDER as NEIGHBOURS
from prime_xmc.export.neighbours_folder import VotingQueries, load_neighbours, save_neighbours
from prime_xmc.export.scorers import CONFIG as CLASSIFIER_CONFIG
from prime_xmc.export.scorers import FOLDER as CLASSIFIERS
from prime_xmc.export.scorers import encoder_digest, labels_digest, load_classifiers, save_classifiers
from prime_xmc.files import publishing, save_tensors, write_json, write_text
from prime_xmc.foreign import check_tensors_file, parse_json
from prime_xmc.index.fused import mixture
from prime_xmc.index.search import FaissSearch, faiss_problem

logger = logging.getLogger(__name__)

_WHERE = "add, remove and rename need a model folder of prime_xmc.train with all of its files"


@dataclass(frozen=True)
class LabelTables:
    """What a model has for each label, and what makes prototypes of new ones.

    Attributes:
        config: Content of prime_config.json.
        records: Lines of labels.jsonl: uid, text, and what else stands there.
        label_emb: Embeddings h_l of the labels' texts.
        prototypes: Prototypes z_l.
        centroids: Centroids c_l that the prototypes are made of.
        network: Weights of the Label Prototype Network, the free vectors, and the cluster of each label.
        classifiers: Classifiers w_l; None: the model has none.
        voters: Training queries that vote; None: the model has none.
        lexical: Lexical vectors; None: the model has none.
    """

    config: Mapping[str, Any]
    records: list[dict[str, Any]]
    label_emb: Float[Tensor, "label d"]
    prototypes: Float[Tensor, "label d"]
    centroids: Float[Tensor, "label d"]
    network: Mapping[str, Tensor]
    classifiers: Float[Tensor, "label d"] | None
    voters: VotingQueries | None
    lexical: LexicalTables | None


def read_label_tables(model: Path) -> LabelTables:
    """Read what a model has for each label.

    Raises:
        FileNotFoundError: If the folder is no exported model, or lacks what prototypes of new labels are made of.
        ValueError: If a file is damaged, or the model ranks by one-vs-all classifiers, which only training can make.
    """
    config = read_config(model)
    if is_one_vs_all(config):
        raise ValueError(
            f"{model.absolute()} ranks by one-vs-all classifiers, which are made in training alone: its labels cannot "
            "be changed. Train it anew, or take a model with prototypes"
        )
    if missing := [name for name in (CENTROIDS, NETWORK) if not (model / name).is_file()]:
        raise FileNotFoundError(
            f"{model.absolute()} has no {' and no '.join(missing)}, which make prototypes of labels: {_WHERE}"
        )
    num_labels, digest = config["prototypes"]["num_labels"], encoder_digest(model)
    vectors, centroids, network = (_tensors(model / name) for name in (PROTOTYPES, CENTROIDS, NETWORK))
    tables = LabelTables(
        config,
        read_labels(model / LABELS),
        vectors.get("label_emb", torch.empty(0)),
        vectors.get("prototypes", torch.empty(0)),
        centroids.get("centroids", torch.empty(0)),
        network,
        load_classifiers(model / CLASSIFIERS, model, digest) if (model / CLASSIFIERS).is_dir() else None,
        load_neighbours(model / NEIGHBOURS, model, num_labels, digest, with_texts=True)
        if (model / NEIGHBOURS).is_dir()
        else None,
        load_lexical(model / LEXICAL, model, num_labels, digest) if (model / LEXICAL).is_dir() else None,
    )
    rows: dict[str, Sized | None] = {
        LABELS: tables.records,
        f"label_emb in {PROTOTYPES}": tables.label_emb,
        f"prototypes in {PROTOTYPES}": tables.prototypes,
        CENTROIDS: tables.centroids,
        f"cluster_of_label in {NETWORK}": network.get("cluster_of_label", ()),
        CLASSIFIERS: tables.classifiers,
    }
    for name, part in rows.items():
        if part is not None and len(part) != num_labels:
            raise ValueError(f"{model / name} has {len(part)} labels, expected {num_labels}; {AGAIN}")
    return tables


def write_label_tables(tables: LabelTables, source: Path, target: Path, *, link: bool = False) -> None:
    """Write a model with other labels, which appears under its name only when it is complete.

    What has no row per label is copied as it is: encoder, tokenizer, metrics, and what others have put there.

    Args:
        tables: What it has for each label.
        source: Folder of the model that they were read from, with the labels of then.
        target: Folder to write; `source` itself is replaced, and any other folder must not exist yet.
        link: Whether files that do not change may be links to those of `source`, for a folder that is soon gone.

    Raises:
        FileExistsError: If `target` exists and is not `source`.
        ValueError: If `source` has got other labels since it was read.
    """
    source, target = source.resolve(), target.resolve()
    in_place = source == target
    # until the new one has the name: another change that was checked before would be lost
    with _alone(source), _new_model(source, target, replace=in_place, link=link or in_place) as temporary:
        _write(tables, temporary)  # links are to files of the old one, which goes anyway
        _check_version(source, model_version(tables.config) - 1)


def check_target(source: Path, target: Path) -> None:
    """Check that a changed model may be written to a folder, before anything takes time.

    Raises:
        FileExistsError: If `target` exists and is not the model itself.
    """
    if target.exists() and source.resolve() != target.resolve():
        raise FileExistsError(_taken(target))


def copy_model(source: Path, target: Path, replaced_version: int | None = None) -> None:
    """Copy a model folder, which appears under its name only when it is complete.

    Args:
        source: Folder of the model.
        target: Folder to write.
        replaced_version: Version that a model in its place must have, to be replaced; None: there must be nothing.

    Raises:
        FileExistsError: If `target` exists and is not to be replaced.
        ValueError: If the model there has another version.
    """
    replace = replaced_version is not None
    with _alone(target) if replace else nullcontext(), _new_model(source.resolve(), target.resolve(), replace=replace):
        if replaced_version is not None:
            _check_version(target, replaced_version)


@contextmanager
def _alone(model: Path) -> Iterator[None]:
    """Hold the lock on a model folder, after waiting for the process that changes its labels.

    The lock is on the folder itself, so that nothing is left of it. What has taken its place is another folder, whose
    version is another, too.
    """
    descriptor = os.open(model, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system that cannot lock folders, such as some of networks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _new_model(source: Path, target: Path, *, replace: bool, link: bool = False) -> Iterator[Path]:
    """Yield a copy of a model folder that takes the name of another at the end of the block."""
    if not replace and target.exists():
        raise FileExistsError(_taken(target))
    with publishing(target, replace=replace) as temporary:
        copy = _link_or_copy if link else shutil.copy2
        shutil.copytree(source, temporary, dirs_exist_ok=True, copy_function=copy)
        for folder, _, _ in os.walk(temporary):  # of a model that may only be read
            os.chmod(folder, os.stat(folder).st_mode | stat.S_IRWXU)
        yield temporary


def _taken(target: Path) -> str:
    return f"{target} exists already: name a new folder, or that of the model to change it in place"


def _check_version(model: Path, number: int) -> None:
    if model_version(read_config(model)) != number:
        raise ValueError(f"{model} was changed by another process in the meantime: open it again and repeat the change")


def _write(tables: LabelTables, folder: Path) -> None:
    """Replace the files that have a row per label."""
    digest, settings = encoder_digest(folder), dict(tables.config["prototypes"])
    config = dict(tables.config) | {"prototypes": settings | {"num_labels": len(tables.records)}}
    for name in (CENTROIDS, NETWORK, PROTOTYPES):
        (folder / name).unlink()  # it may be a link to that of the original
    save_tensors(folder / CENTROIDS, {"centroids": tables.centroids})
    save_tensors(folder / NETWORK, tables.network)
    save_tensors(folder / PROTOTYPES, {"prototypes": tables.prototypes, "label_emb": tables.label_emb})
    write_text(folder / LABELS, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in tables.records))
    if tables.classifiers is not None:
        about = json.loads((folder / CLASSIFIERS / CLASSIFIER_CONFIG).read_bytes()).get("settings", {})
        of_labels = labels_digest(folder)
        save_classifiers(folder / CLASSIFIERS, tables.classifiers, digest=digest, labels=of_labels, settings=about)
    if tables.voters is not None:
        save_neighbours(folder / NEIGHBOURS, tables.voters, digest=digest)
    if tables.lexical is not None:
        save_lexical(folder / LEXICAL, tables.lexical, digest=digest)
    config["index"] = _write_index(folder / INDEX, config["index"], tables.prototypes)
    if (folder / ensembles.INDEX).is_file():
        weights = ensembles.read_ensemble(folder, digest).weights
        mixed = mixture(tables.prototypes, tables.classifiers, weights)
        _write_index(folder / ensembles.INDEX, config["index"], mixed)
        about = parse_json((folder / ensembles.CONFIG).read_bytes())
        write_json(folder / ensembles.CONFIG, sealed(about, folder, [ensembles.INDEX]))
    write_json(folder / CONFIG, sealed(config | {"package_version": version("prime_xmc")}, folder, SUMMED))
    write_card(folder)


def _write_index(
    path: Path, settings: Mapping[str, Any] | None, vectors: Float[Tensor, "label d"]
) -> Mapping[str, Any] | None:
    """Build an index anew, where there is one; without Faiss, it goes, since it would find other labels.

    Returns:
        Its settings; None: there is none.
    """
    if settings is None or not path.is_file():
        return settings
    if (problem := faiss_problem()) is not None:
        logger.warning("the model is written without %s, and searched exactly: %s", path.name, problem)
        path.unlink()
        return None
    search = FaissSearch(**settings)
    search.build(vectors.float())
    search.save(path)
    return settings


def _tensors(path: Path) -> dict[str, Tensor]:
    check_tensors_file(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); {AGAIN}") from error


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)  # of a link, as in the hub's cache, the file itself
    except OSError:  # of another file system, or one without links
        shutil.copy2(source, target)
