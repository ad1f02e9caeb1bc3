"""The search of an exported model, and what explains it: prototypes, classifiers, a vote, terms, or their ensemble."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from prime_xmc.export import ensemble as ensembles
from prime_xmc.export.explainer import Explainer, ScoringParts
from prime_xmc.export.folder import AGAIN, INDEX, PROTOTYPES, is_one_vs_all
from prime_xmc.export.lexical_folder import FOLDER as LEXICAL
from prime_xmc.export.lexical_folder import load_lexical
from prime_xmc.export.neighbours_folder import FOLDER as NEIGHBOURS
from prime_xmc.export.neighbours_folder import VotingQueries, load_neighbours
from prime_xmc.export.prototypes_folder import load_prototype_network
from prime_xmc.export.scorers import FOLDER as CLASSIFIERS
from prime_xmc.export.scorers import encoder_digest, label_vectors, load_classifiers, read_prototypes
from prime_xmc.index.fused import FusedSearch, LexicalFusedSearch, Weights, fuse, mixture
from prime_xmc.index.lexical import LexicalIndex, LexicalSearch
from prime_xmc.index.neighbours import Neighbours, VoteSearch
from prime_xmc.index.search import ExactSearch, FaissSearch, Search, faiss_problem

logger = logging.getLogger(__name__)

WITHOUT_CLASSIFIERS = ("theta", "neighbours", "lexical")
SCORERS = ("theta", "W", "neighbours", "lexical", "ensemble")
Index = Literal["auto", "exact", "faiss"]


def choose_scorer(model: Path, scorer: str, classifiers: Path | None) -> str:
    """Return the scorer that is meant: "auto" is the ensemble where there is one, else the prototypes.

    Args:
        model: Folder of the model.
        scorer: One of `SCORERS`, or "auto".
        classifiers: Folder of classifiers beside the model, None: those in the model's own folder are meant.

    Raises:
        ValueError: If there is no such scorer, or it does not use classifiers= that are given.
    """
    if scorer not in ("auto", *SCORERS):
        raise ValueError(f"expected scorer auto, {', '.join(SCORERS[:-1])} or {SCORERS[-1]}, got {scorer!r}")
    if classifiers is not None and scorer in WITHOUT_CLASSIFIERS:
        raise ValueError(f"scorer={scorer} does not use classifiers: leave classifiers= out, or take scorer=W")
    if scorer == "auto":
        return "ensemble" if classifiers is not None or ensembles.has_ensemble(model) else "theta"
    return scorer


def scorers_of(model: Path) -> list[str]:
    """Return the scorers that a model has, by name.

    Raises:
        ValueError: If what says so is damaged.
    """
    if not ensembles.has_ensemble(model):
        return ["theta"]
    ensemble = ensembles.read_ensemble(model, encoder_digest(model))
    has = {
        "theta": True,
        "W": (model / CLASSIFIERS).is_dir(),
        "neighbours": ensemble.k is not None,
        "lexical": ensemble.lexical,
        "ensemble": True,
    }
    return [scorer for scorer in SCORERS if has[scorer]]


def load_searcher(
    model: Path,
    config: Mapping[str, Any],
    *,
    scorer: str,
    index: Index,
    device: str,
    classifiers: Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> Search:
    """Return the search of a scorer.

    Args:
        model: Folder of the model.
        config: Content of its prime_config.json.
        scorer: One of `SCORERS`.
        index: Search of the label vectors, see `Predictor.load`.
        device: Device to compute on.
        classifiers: Folder of classifiers beside the model, whose ensemble is the plain mean with the prototypes.
        dtype: Precision in which label vectors are kept and multiplied; half precisions are searched exactly.

    Raises:
        FileNotFoundError: If the model lacks what the scorer needs, or has no Faiss index though index="faiss".
        ImportError: If index="faiss" but Faiss cannot be used.
        ValueError: If a file is damaged or of another model, or index="faiss" but the scorer is searched exactly.
    """
    if dtype != torch.float32:
        if index == "faiss":
            name = str(dtype).removeprefix("torch.")
            raise ValueError(f"search=faiss: Faiss searches in float32; prototype_dtype={name} takes search=exact")
        index = "exact"
    if scorer == "theta":
        return _of_prototypes(model, config, index, device, dtype)
    if index == "faiss" and (scorer != "ensemble" or classifiers is not None):
        of = "classifiers=" if classifiers is not None else f"scorer={scorer}"
        raise ValueError(f"search=faiss: the exported index is of the prototypes; {of} takes search=exact")
    if classifiers is not None:
        prototypes = read_prototypes(model)
        return _exact(label_vectors(prototypes, load_classifiers(classifiers, model), scorer).to(device, dtype))
    digest = encoder_digest(model)
    if scorer == "W":
        return _exact(load_classifiers(model / CLASSIFIERS, model, digest).to(device, dtype))
    ensemble = ensembles.read_ensemble(model, digest)
    if scorer == "neighbours":
        if ensemble.k is None:
            reason = "it was trained with neighbours=null; take another scorer"
            raise FileNotFoundError(f"{model.absolute()} has no {NEIGHBOURS}/: {reason}")
        return VoteSearch(_neighbours(model, config, ensemble, digest, device))
    if scorer == "lexical":
        if not ensemble.lexical:
            reason = "it was trained with lexical=null; take another scorer"
            raise FileNotFoundError(f"{model.absolute()} has no {LEXICAL}/: {reason}")
        return LexicalSearch(_lexical(model, config, digest, device))
    return _of_ensemble(model, config, ensemble, digest, index, device, dtype)


def load_explainer(
    model: Path,
    config: Mapping[str, Any],
    *,
    scorer: str,
    search: Search,
    device: str,
    classifiers: Path | None = None,
) -> Explainer:
    """Return what explains the scores of a scorer. It shares with the search what is large.

    Args:
        model: Folder of the model.
        config: Content of its prime_config.json.
        scorer: One of `SCORERS`.
        search: What `load_searcher` returned for it.
        device: Device to compute on.
        classifiers: Folder of classifiers beside the model, as for `load_searcher`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged, or the label vectors are made of nothing that could explain a score.
    """
    if is_one_vs_all(config):
        raise ValueError(
            f"{model.absolute()} scores by one-vs-all classifiers alone, which are made of nothing that could explain "
            "a score: leave explain=true out"
        )
    digest = encoder_digest(model)
    ensemble = ensembles.read_ensemble(model, digest) if ensembles.has_ensemble(model) else None
    alone = {name: Weights(**{each: float(each == name) for each in Weights._fields}) for name in Weights._fields}
    if scorer != "ensemble":
        weights = alone[scorer]
    elif classifiers is not None:
        weights = Weights(0.5, 0.5, 0.0)
    else:
        assert ensemble is not None
        weights = ensemble.weights
    network, label_emb = load_prototype_network(model, config, device)
    vectors = None
    if weights.W:
        folder = model / CLASSIFIERS if classifiers is None else classifiers
        vectors = load_classifiers(folder, model, digest).to(device)
    queries, neighbours = None, None
    if (model / NEIGHBOURS).is_dir() and ensemble is not None and ensemble.k is not None:
        queries = load_neighbours(
            model / NEIGHBOURS, model, config["prototypes"]["num_labels"], digest, with_texts=True
        )
        if isinstance(search, FusedSearch | LexicalFusedSearch | VoteSearch):
            neighbours = search.neighbours
        if neighbours is None:
            assert ensemble.temperature is not None
            neighbours = voting(queries, k=ensemble.k, temperature=ensemble.temperature, device=device)
    lexical = None
    if isinstance(search, LexicalFusedSearch):
        lexical = search.lexical
    elif isinstance(search, LexicalSearch):
        lexical = search.index
    return Explainer(
        ScoringParts(
            weights,
            _prototypes(model, config, device),
            network if weights.theta else None,
            label_emb,
            vectors,
            neighbours,
            lexical,
            None if queries is None else queries.rows,
            None if queries is None or queries.texts is None else list(queries.texts),
        )
    )


def voting(queries: VotingQueries, *, k: int, temperature: float | int, device: str | torch.device) -> Neighbours:
    """Return training queries, as they are kept, ready to vote on a device."""
    return Neighbours(
        normalize(queries.query_emb.to(device).float(), dim=1),
        torch.from_numpy(queries.labels.values).to(device, torch.int64),
        torch.from_numpy(queries.labels.offsets).to(device),
        k=k,
        temperature=temperature,
    )


def _neighbours(
    model: Path, config: Mapping[str, Any], ensemble: ensembles.Ensemble, digest: str, device: str
) -> Neighbours:
    queries = load_neighbours(model / NEIGHBOURS, model, config["prototypes"]["num_labels"], digest)
    assert ensemble.k is not None
    assert ensemble.temperature is not None
    return voting(queries, k=ensemble.k, temperature=ensemble.temperature, device=device)


def _lexical(model: Path, config: Mapping[str, Any], digest: str, device: str) -> LexicalIndex:
    num_labels = config["prototypes"]["num_labels"]
    return load_lexical(model / LEXICAL, model, num_labels, digest).scorer(num_labels, device)


def _of_ensemble(
    model: Path,
    config: Mapping[str, Any],
    ensemble: ensembles.Ensemble,
    digest: str,
    index: Index,
    device: str,
    dtype: torch.dtype,
) -> Search:
    weights = ensemble.weights
    prototypes = _prototypes(model, config, device)
    classifiers = load_classifiers(model / CLASSIFIERS, model, digest).to(device) if weights.W else None
    mixed = mixture(prototypes, classifiers, weights)
    vectors = mixed.to(dtype)
    if mixed is prototypes:  # the linear part is theirs alone, and so is its index
        linear = _of_prototypes(model, config, index, device, dtype)
    else:
        linear = _of_mixture(model, config, vectors, index)
    neighbours = _neighbours(model, config, ensemble, digest, device) if weights.neighbours else None
    lexical = _lexical(model, config, digest, device) if weights.lexical else None
    return fuse(linear, vectors, neighbours, lexical, weights)


def _of_mixture(model: Path, config: Mapping[str, Any], vectors: Float[Tensor, "label d"], index: Index) -> Search:
    path, exported = model / ensembles.INDEX, config["index"]
    is_approximate = exported is not None and exported["kind"] != "flat"
    if index == "faiss" and is_approximate and not path.is_file():
        raise FileNotFoundError(f"{model} has no {ensembles.INDEX}: take search=exact, or scorer=theta")
    if is_approximate and path.is_file() and (index == "faiss" or (index == "auto" and _is_wanted(exported["kind"]))):
        search = FaissSearch(**exported)
        search.load(path)
        _check_shape(path, search.shape, _shape(config))
        return search
    if index == "faiss":  # a flat index is a copy of the vectors
        search = FaissSearch("flat")
        search.build(vectors)
        return search
    return _exact(vectors)


def _exact(vectors: Float[Tensor, "label d"]) -> ExactSearch:
    search = ExactSearch()
    search.build(vectors)
    return search


def _prototypes(model: Path, config: Mapping[str, Any], device: str) -> Float[Tensor, "label d"]:
    prototypes = read_prototypes(model, device)
    _check_shape(model / PROTOTYPES, tuple(prototypes.shape), _shape(config))
    return prototypes


def _of_prototypes(
    model: Path, config: Mapping[str, Any], index: Index, device: str, dtype: torch.dtype = torch.float32
) -> Search:
    path = model / INDEX
    exported = config["index"] if path.is_file() else None
    if index == "faiss" and exported is None:
        raise FileNotFoundError(
            f"{model} has no {INDEX}: take search=exact, or train where Faiss is installed to have one exported"
        )
    if index == "faiss" or (index == "auto" and exported is not None and _is_wanted(exported["kind"])):
        assert exported is not None
        search = FaissSearch(**exported)
        search.load(path)
        _check_shape(path, search.shape, _shape(config))
        return search
    return _exact(_prototypes(model, config, device).to(dtype))


def _is_wanted(kind: str) -> bool:
    """Say whether an exported index is to be used unasked: it is approximate, chosen in training, and Faiss works."""
    if kind == "flat":
        return False
    problem = faiss_problem()
    if problem is not None:
        logger.info("the model's %s index is not used, and the search is exact: %s", kind, problem)
    return problem is None


def _shape(config: Mapping[str, Any]) -> tuple[int, int]:
    return config["prototypes"]["num_labels"], config["prototypes"]["dim"]


def _check_shape(path: Path, shape: tuple[int, ...], expected: tuple[int, int]) -> None:
    if shape != expected:
        found, wanted = (" x ".join(map(str, sizes)) for sizes in (shape, expected))
        raise ValueError(f"{path} holds {found} numbers, expected {wanted}, labels x dimensions; {AGAIN}")
