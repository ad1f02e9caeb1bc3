"""A configuration becomes objects: raw files, prepared data, modules, the Trainer and predictors."""

from prime_xmc.assemble.agreement import check_model, check_settings, trains_one_vs_all
from prime_xmc.assemble.fitted import fit_second_stage, fit_to_data, fit_to_size, fitted_settings
from prime_xmc.assemble.opened import (
    announce,
    make_data,
    open_corpus,
    open_data,
    prompts_of,
    raw_files,
    raw_test_queries,
)
from prime_xmc.assemble.trained import load_predictor, load_scorer, make_classifier_data, model_corpus
from prime_xmc.assemble.untrained import listed_devices, make_loggers, make_module, make_trainer, method_callbacks

__all__ = [
    "announce",
    "check_model",
    "check_settings",
    "fit_second_stage",
    "fit_to_data",
    "fit_to_size",
    "fitted_settings",
    "listed_devices",
    "load_predictor",
    "load_scorer",
    "make_classifier_data",
    "make_data",
    "make_loggers",
    "make_module",
    "make_trainer",
    "method_callbacks",
    "model_corpus",
    "open_corpus",
    "open_data",
    "prompts_of",
    "raw_files",
    "raw_test_queries",
    "trains_one_vs_all",
]
