"""Settings that have to agree with each other, checked before the data are read."""

from hydra.utils import get_object, instantiate
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from omegaconf import DictConfig, OmegaConf

from prime_xmc.model.encoder import TextEncoder
from prime_xmc.model.one_vs_all import OneVsAll
from prime_xmc.run_files import goes_on
from prime_xmc.training.debugging import check_profiler
from prime_xmc.training.start import check_precision


def check_settings(config: DictConfig) -> None:
    """Make what needs no data once, so that settings which do not fit end a run before its data are prepared.

    Raises:
        InstantiationException: If one does not fit.
        ValueError: If the loss, stages or scorers need unit vectors and the encoder makes none; if the machine has no
            GPU but one is asked for; or if the profiler or the precision is unknown.
    """
    made = {key: instantiate(config[key], _convert_="all") for key in ("loss", "index") if config.get(key) is not None}
    if config.encoder.get("normalize", True) is False:
        if needs_unit := [key for key in ("classify", "neighbours", "lexical") if config.get(key)]:
            raise ValueError(
                f"encoder.normalize=false: {', '.join(needs_unit)} need unit vectors; give classify=false "
                "neighbours=null lexical=null"
            )
        if of_cosines := [f"loss.{name}" for name in getattr(made.get("loss"), "cosine_settings", ())]:
            raise ValueError(
                f"encoder.normalize=false: {', '.join(of_cosines)} would be about cosines; take a loss without, such "
                "as loss=infonce loss.temperature=1 loss.regulariser_weight=0"
            )
    check_profiler(config.trainer.get("profiler"))
    if config.trainer.accelerator == "gpu" and not (CUDAAccelerator.is_available() or MPSAccelerator.is_available()):
        raise ValueError(
            "trainer.accelerator=gpu: torch finds no GPU here. Take trainer=cpu, or install torch for the GPU"
        )
    trainer = instantiate(
        config.trainer,
        logger=False,
        profiler=None,
        enable_progress_bar=False,
        enable_checkpointing=False,
        _convert_="all",
    )
    check_precision(str(trainer.precision))


def check_model(config: DictConfig) -> None:
    """Check that the settings of a training belong to its model, prototypes or one-vs-all classifiers, and together.

    Raises:
        ValueError: If they do not; it names what to change.
    """
    _check_mined(config)
    if not goes_on(config):
        _check_encoder(config)
    one_vs_all, num_positives = trains_one_vs_all(config), config.sampling.num_positives
    if not one_vs_all:
        if num_positives == 0:
            raise ValueError(
                "sampling.num_positives=0: prototypes are trained on labels drawn for queries; give 1 or more"
            )
        if not goes_on(config):
            _check_optimizer_of_prototypes(config)
            _check_sources(config)
            _check_trained(config)
            _check_spared(config)
            _check_left_out(config)
        return
    if num_positives != 0:
        raise ValueError(
            f"sampling.num_positives={num_positives}: one-vs-all classifiers see all labels in every step and no label "
            "is drawn for a query; give sampling.num_positives=0"
        )
    if not goes_on(config):
        _check_used_by_one_vs_all(config)
    if (config.index.get("kind") or "flat") != "flat":
        raise ValueError(
            f"index={config.index.kind} is for unit vectors, and one-vs-all classifiers are none: give index=exact"
        )
    if config.sampling.clusters.first_epoch is not None:
        raise ValueError(
            f"sampling.clusters.first_epoch={config.sampling.clusters.first_epoch}: one-vs-all classifiers see all "
            "labels in every step, and no clusters of queries are made for them; leave sampling=random as it is"
        )


def trains_one_vs_all(config: DictConfig) -> bool:
    """Return whether a configuration trains one-vs-all classifiers with the encoder, in place of prototypes."""
    target = get_object(config.model._target_)
    return isinstance(target, type) and issubclass(target, OneVsAll)


def _check_used_by_one_vs_all(config: DictConfig) -> None:
    """Refuse settings of prototypes, which one-vs-all classifiers would pass over."""
    if config.get("loss") is not None:
        raise ValueError(
            "one-vs-all classifiers are trained by the binary cross-entropy, which has no settings: leave out what "
            "sets loss, a setting or an experiment"
        )
    nothing = {"memory_labels": 0, "leave_one_out": 0, "without_centroid": 0, "more_queries_per_label": 0}
    for key, value in (nothing | {"batch_labels": "drawn"}).items():
        given = config.sampling.get(key, value)
        if given != value:
            raise ValueError(
                f"sampling.{key}={given}: one-vs-all classifiers have no prototypes and no labels in a "
                f"batch that it would be about; give sampling.{key}={value}"
            )


def _check_encoder(config: DictConfig) -> None:
    """Refuse an encoder of another class, which the model folder would not keep: it has weights and settings alone."""
    own, given = f"{TextEncoder.__module__}.{TextEncoder.__qualname__}", config.encoder._target_
    if given != own:
        raise ValueError(
            f"encoder._target_={given}: a model folder holds the weights of an encoder and not its code, so that what "
            f"predicts would be {own} with these weights, another model. Give weights of your own by encoder=local "
            "encoder.source=<folder or hub id>"
        )


def _check_optimizer_of_prototypes(config: DictConfig) -> None:
    """Refuse an optimiser of one-vs-all classifiers, which leaves free vectors as they are or fails on them."""
    if (rate := config.optimizer.get("classifier_lr")) is not None:
        raise ValueError(
            f"optimizer.classifier_lr={rate}, of optimizer=renee or optimizer=elmo, is for one-vs-all classifiers, and "
            "this model has prototypes: give optimizer=adamw, or model=renee or model=elmo"
        )


def _check_sources(config: DictConfig) -> None:
    """Refuse settings of a source that prototypes are not made of, those that are on by default excepted."""
    sources = config.model.get("sources")
    if sources is None:
        return
    for key, source, nothing in (
        ("model.num_private", "free_vector", 0),
        ("model.free_vector_start", "free_vector", "random"),
        ("sampling.without_centroid", "centroid", 0),
        ("sampling.more_queries_per_label", "centroid", 0),
    ):
        given = OmegaConf.select(config, key, default=nothing)
        if given != nothing and source not in sources:
            raise ValueError(
                f"{key}={given} is about {source}, which is none of model.sources=[{','.join(sources)}]: give "
                f"{key}={nothing}, or add {source} to model.sources"
            )


def _check_trained(config: DictConfig) -> None:
    """Refuse a loss without a term that trains what makes the prototypes, by which labels are ranked."""
    model, sources = config.model, config.model.get("sources")
    if sources is None:
        return
    weights = [config.loss.get(name) for name in ("prototype_weight", "regulariser_weight")]
    of_network = model.get("combine", "network") == "network" and list(sources) != ["text"]
    trained = [
        *(["the Label Prototype Network (model.combine=network)"] if of_network else []),
        *(["the free vectors"] if "free_vector" in sources else []),
        *(["model.more_sources"] if model.get("more_sources") else []),
    ]
    if trained and weights == [0, 0]:
        raise ValueError(
            f"loss.prototype_weight=0 and loss.regulariser_weight=0 leave {' and '.join(trained)} as they are at the "
            "start, and labels would be ranked by them: give one of the two a weight, or model.sources=[text], which "
            "ranks labels by their texts"
        )


def _check_spared(config: DictConfig) -> None:
    """Refuse to push away positives that the loss leaves out where it leaves none out."""
    if config.sampling.get("mask_positives") is False and config.sampling.loss_positives == "all":
        raise ValueError(
            "sampling.mask_positives=false: with sampling.loss_positives=all no positive is left to be pushed away; "
            "give sampling.loss_positives=drawn or any, or sampling.mask_positives=true"
        )


def _check_left_out(config: DictConfig) -> None:
    """Refuse to leave a query out of a centroid that is not a running mean of its label's queries."""
    model, share = config.model, config.sampling.get("leave_one_out", 0)
    if share and "centroid" in model.get("sources", ()):
        for key, value in (("centroid_update", "frozen"), ("momentum", 0)):
            if model.get(key) == value:
                raise ValueError(
                    f"model.{key}={value} and sampling.leave_one_out={share}: a query is left out of a centroid by "
                    "what it added to it, which is not known then; give sampling.leave_one_out=0"
                )


def _check_mined(config: DictConfig) -> None:
    """Refuse settings of negatives from a search that would do nothing, or otherwise than they say."""
    sampling, mined = config.sampling, config.sampling.mined
    if not 1 <= mined.num_drawn <= mined.top_k:
        raise ValueError(
            f"expected sampling.mined.num_drawn between 1 and the sampling.mined.top_k={mined.top_k} labels that are "
            f"searched for a query, got {mined.num_drawn}"
        )
    if mined.first_epoch is not None and (config.get("callbacks") or {}).get("mined") is None:
        raise ValueError(
            f"sampling.mined.first_epoch={mined.first_epoch} wants labels to be searched, and nothing searches them, "
            "since callbacks.mined is null: give sampling.mined.first_epoch=null"
        )
    if mined.first_epoch is not None and (config.trainer.get("overfit_batches") or 0) > 0:
        raise ValueError(
            f"trainer.overfit_batches={config.trainer.overfit_batches} trains on the same batches in every epoch, made "
            "before labels are searched, which they would never have: give sampling.mined.first_epoch=null"
        )
    if not mined.alone:
        if mined.first_epoch is not None and sampling.get("batch_labels", "drawn") == "all" and not goes_on(config):
            raise ValueError(
                f"sampling.mined.first_epoch={mined.first_epoch} adds labels to a batch which has all there are by "
                "sampling.batch_labels=all: give one of sampling.mined.first_epoch=null and sampling.batch_labels=drawn"
            )
        return
    if mined.first_epoch is None:
        raise ValueError(
            "sampling.mined.alone=true, and no labels are searched: give sampling.mined.first_epoch=1 too, or "
            "sampling=mined"
        )
    if sampling.label_rows:
        raise ValueError(
            "sampling.mined.alone=true leaves the texts of labels without negatives, since none are mined for them: "
            "give sampling.label_rows=false"
        )
    if sampling.memory_labels and sampling.loss_positives == "all":
        raise ValueError(
            f"sampling.memory_labels={sampling.memory_labels} adds labels to the batch that are negatives of all other "
            "queries, against sampling.mined.alone=true: give sampling.memory_labels=0"
        )
