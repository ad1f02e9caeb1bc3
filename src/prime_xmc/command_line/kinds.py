"""What the keys of the configurations take.

The kind of most values follows from their default: true, 3, 0.5, [a], text. Here stand the keys that take other kinds
too, such as null, and those whose default says nothing: null, ??? and empty lists. A kind is one or more of the words
below, or a literal, separated by "|".
"""

import math
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, ListConfig

_ANY = "any"
_INT, _NUMBER, _TEXT, _TEXTS = "int|null", "number|null", "text|null", "text|texts|null"
_SECTION = "section|null"  # settings of an object, or none
# By dotted key; `<command>/` before it: of that command alone; `.*` behind it: all keys below.
KINDS: dict[str, str] = {
    # of several commands
    **dict.fromkeys(("threads", "export_every_n_epochs"), _INT),
    **dict.fromkeys(("ckpt_path", "output", "device", "precision", "classifiers", "predictions", "debug"), _TEXT),
    **dict.fromkeys(
        ("predictions_output", "input", "token", "title", "baseline", "run", "published", "records"), _TEXT
    ),
    **dict.fromkeys(("labels", "positives", "test_positives", "queries"), _TEXT),
    **dict.fromkeys(("label_column", "id_column", "label_id_column", "uid_column"), _TEXT),
    **dict.fromkeys(("separator", "label_separator", "delimiter"), _TEXT),
    **dict.fromkeys(("text_field", "text_column", "labels_column", "query_column", "label_text_column"), _TEXTS),
    **dict.fromkeys(("allow", "exclude", "uids"), _TEXTS),
    **dict.fromkeys(("action", "run_dir", "cache_dir", "model.dir"), "text"),
    "evaluate/model.dir": _TEXT,
    "convert/queries": "text",
    "convert/test": _TEXT,
    "convert/output": "text",
    "export/output": "text",
    "audit/output": "text",
    "report/output": "text",
    "calibrate/input": "text",
    "reproduce/published": "text",
    "reproduce/published_method": _TEXT,
    "test_share": _NUMBER,
    "min_score": _NUMBER,
    "runs": "text|texts",
    "hosts": "texts|null",
    "other_scorers": "texts",
    "watch_seconds": _NUMBER,
    "shutdown_seconds": "number",
    "limits.body_seconds": "number",
    "batch.wait_ms": "number",
    # of plan
    **dict.fromkeys(("num_labels", "num_queries", "num_test_queries"), _INT),
    **dict.fromkeys(("labels_per_query", "tokens_per_text"), _NUMBER),
    "probe_steps": "int",
    # of trainings
    "resume": _TEXT,
    "predict/resume": "bool",
    "serve/explain": "bool|null",
    "checkpoint.every_n_minutes": _NUMBER,
    "classify": "bool|texts|null",
    "classify_settings": "texts",
    "neighbours": _SECTION,
    "lexical": _SECTION,
    "ensemble": _SECTION,
    "ensemble.W": "numbers",
    "ensemble.neighbours": "numbers",
    "ensemble.lexical": "numbers",
    "ensemble.default.*": "number",
    "bank.directory": _TEXT,
    "loss": _SECTION,
    "classify/loss": "section",
    "loss.contrast": "section",
    "loss.gamma_max": "number",
    "loss.num_negatives": _INT,
    "callbacks": _SECTION,
    "callbacks.*": _SECTION,
    "callbacks.table.path": "text",
    "callbacks.checkpoint.dirpath": _TEXT,
    "callbacks.clusters.first_epoch": _INT,
    "callbacks.clusters.initial_size": _INT,
    "callbacks.clusters.double_at": "ints",
    "callbacks.mined.first_epoch": _INT,
    "callbacks.histograms.gamma_min": _NUMBER,
    "callbacks.histograms.gamma_max": _NUMBER,
    "logger": _SECTION,
    **dict.fromkeys(("logger.csv", "logger.tensorboard", "logger.wandb"), _SECTION),
    **{
        f"{group}.{name}": _TEXT
        for group in ("logger", "logger.wandb")
        for name in ("entity", "name", "group", "notes", "project")
    },
    **{f"logger.{name}.save_dir": "text" for name in ("csv", "tensorboard", "wandb")},
    **{f"logger.{name}.version": _TEXT for name in ("csv", "tensorboard")},
    **dict.fromkeys(("logger.tags", "logger.wandb.tags"), "texts|null"),
    **dict.fromkeys(("logger.settings.*", "logger.wandb.settings.*"), _ANY),
    "logger.wandb.ckpt_path": _TEXT,
    # of data and batches
    "dataset.name": "text",
    "dataset.dir": "text|section",
    "dataset.dir.labels_per_query": "number",
    "dataset.dir.mean_label_words": "number",
    "dataset.dir.mean_query_words": "number",
    "dataset.fields": "texts",
    "dataset.label_fields": "texts|null",
    "dataset.hint": _TEXT,
    "dataset.token_pattern": "text",
    **{f"dataset.{name}": _INT for name in ("num_test", "num_validation", "num_free_vectors", "batch_size")},
    **dict.fromkeys(("dataset.validate_every", "trainer.check_val_every_n_epoch"), _INT),
    "dataset.propensity.a": "number",
    "dataset.propensity.b": "number",
    "dataset.size.labels_per_query": "number",
    "sampling.batch_size": "int|half|null",
    "sampling.leave_one_out": "number",
    "sampling.without_centroid": "number",
    "sampling.mined.first_epoch": _INT,
    **{
        f"{group}.clusters.{name}": kind
        for group in ("dataset", "sampling")
        for name, kind in (("first_epoch", _INT), ("initial_size", _INT), ("double_at", "ints"))
    },
    # of models
    "encoder.source": "text",
    "encoder.num_layers": _INT,
    "encoder.intermediate_size": _INT,
    "encoder.dropout": "number",
    "encoder.lora": _SECTION,
    "encoder.query_prompt": _TEXT,
    "encoder.label_prompt": _TEXT,
    "encoder.chunk_tokens": "int|auto",
    "model.num_free_vectors": _INT,
    "model.num_private": "int|all",
    "model.more_sources": "section",
    "model.more_sources.*": "section",
    "model.dropout": "number",
    "optimizer.make.dense.fused": "bool|null",
    # of Lightning's Trainer
    "trainer.accelerator": "text|section",
    "trainer.strategy": "text|section",
    "trainer.precision": _TEXT,
    "trainer.devices": "int|text|ints",
    "trainer.plugins": "list|null",
    "trainer.profiler": "text|section|null",
    "trainer.deterministic": "bool|warn|null",
    "trainer.fast_dev_run": "bool|int",
    "trainer.overfit_batches": "number",
    "trainer.gradient_clip_val": _NUMBER,
    **{f"trainer.limit_{stage}_batches": _NUMBER for stage in ("train", "val", "test")},
    **{f"trainer.enable_{what}": "bool|null" for what in ("progress_bar", "model_summary", "checkpointing")},
    # of methods to compare with
    "tfidf.min_df": "number",
    "method.power": "number",
    "method.parameters.*": _ANY,
    "method.parameters.token_pattern": "text|null",
    "method.environment": _SECTION,
    "method.environment.pip_options": "texts",
    "method.features.device": _TEXT,
    "method.threads": _INT,
}
# What counts as its kind by its name: whether a value fits, and how it is called.
_WORDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "null": (lambda value: value is None, "null"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "int": (lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number"),
    "number": (lambda value: is_number(value) and math.isfinite(value), "a number"),
    "text": (lambda value: isinstance(value, str) or is_number(value), "a text"),
    "section": (lambda value: isinstance(value, DictConfig), "settings, {name: value}"),
    "list": (lambda value: isinstance(value, ListConfig), "a list"),
    "ints": (lambda value: _is_list_of("int", value), "a list of whole numbers"),
    "numbers": (lambda value: _is_list_of("number", value), "a list of numbers"),
    "texts": (lambda value: _is_list_of("text", value), "a list of texts"),
}


def kind_of(key: str, default: Any, command: str = "") -> str | None:
    """Return the kind of a key's values: that of the table, or that of its default; None where neither says one.

    Args:
        key: Dotted key.
        default: Its default; None: there is none, or it is null.
        command: Entry point whose configuration it is in.
    """
    below = f"{key.rpartition('.')[0]}.*"
    for name in (f"{command}/{key}", key, below):
        if name in KINDS:
            return KINDS[name]
    if isinstance(default, ListConfig):
        elements = {_kind_of_scalar(element) for element in default}
        return {"int": "ints", "number": "numbers", "text": "texts"}.get(_common(elements) or "", "list")
    return _kind_of_scalar(default)


def fits(value: Any, kind: str) -> bool:
    """Return whether a value is of a kind."""
    return any(
        word == _ANY or (_WORDS[word][0](value) if word in _WORDS else value == word and isinstance(value, str))
        for word in kind.split("|")
    )


def in_words(kind: str) -> str:
    """Return what is expected of a value of a kind."""
    *others, last = [_WORDS[word][1] if word in _WORDS else word for word in kind.split("|")]
    return f"{', '.join(others)} or {last}" if others else last


def takes_text(kind: str, value: Any) -> bool:
    """Return whether a number is taken for the text that it was typed as: `dataset.name=2026`."""
    words = kind.split("|")
    others = [word for word in words if word not in ("text", _ANY)]
    return "text" in words and is_number(value) and not (others and fits(value, "|".join(others)))


def takes_whole(kind: str, value: Any) -> bool:
    """Return whether a number is taken for the whole number that it is equal to: `num_labels=1e6`."""
    return isinstance(value, float) and value.is_integer() and not fits(value, kind) and fits(int(value), kind)


def is_number(value: Any) -> bool:
    """Return whether a value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list_of(kind: str, value: Any) -> bool:
    return isinstance(value, ListConfig) and all(_WORDS[kind][0](element) for element in value)


def _kind_of_scalar(value: Any) -> str | None:
    if isinstance(value, DictConfig):
        return "section"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    return "number" if isinstance(value, float) else "text" if isinstance(value, str) else None


def _common(kinds: set[str | None]) -> str | None:
    """Return the kind of the elements of a list; numbers may be whole."""
    if kinds == {"int", "number"}:
        return "number"
    return next(iter(kinds)) if len(kinds) == 1 else None
