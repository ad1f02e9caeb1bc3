"""Configurations of version 0.1.0."""

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from prime_xmc.assemble import make_loggers
from prime_xmc.command_line.migration import add_keys
from prime_xmc.composing import update_config

DATASETS = sorted(path.stem for path in Path(__file__).parents[2].glob("conf/dataset/*.yaml"))


def old(**more):
    """Return the parts of a configuration of version 0.1.0 that are different now."""
    return OmegaConf.create(
        {
            "seed": 3,
            "classify": None,
            "run_dir": "run",
            "ckpt_path": None,
            "dataset": {"name": "mine", "dir": "data", "hint": "", "max_epochs": 7, "lr": 1e-3, "validate_every": 2},
            "trainer": {
                "_target_": "lightning.pytorch.Trainer",
                "accelerator": "cpu",
                "max_epochs": "${dataset.max_epochs}",
            },
            "callbacks": {
                "progress": {"_target_": "lightning.pytorch.callbacks.RichProgressBar", "leave": True},
                "memory": {"_target_": "prime_xmc.callbacks.ReleaseMemory", "every_n_steps": 2},
            },
            "logger": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "${run_dir}", "name": "csv"},
        }
        | more
    )


def test_objects_are_found_where_they_are_now():
    config = old()
    update_config(config)
    made = instantiate(config.callbacks)
    assert [type(callback).__name__ for callback in made.values()] == ["EpochProgress", "ReleaseMemory"]


def test_keys_that_came_later_have_their_defaults_and_others_stay():
    config = old()
    OmegaConf.set_struct(config, True)
    update_config(config)
    assert (config.debug, config.trainer.fast_dev_run, list(config.classify_settings)) == (None, False, [])
    assert (config.seed, config.classify, config.trainer.max_epochs) == (3, None, 7)
    assert (config.dataset.name, config.dataset.dir) == ("mine", "data")
    assert config.dataset.max_length == 32
    assert "gamma_min" not in config.get("loss", {}) or config.loss._target_.startswith("prime_xmc.")


def test_a_run_without_neighbours_gets_none():
    config = old()
    del config["classify"]
    update_config(config)
    assert (config.classify, config.neighbours, config.lexical) == (None, None, None)
    assert config.ensemble.default.lexical == 0.2


def test_a_logger_of_its_own_is_one_of_several():
    config = old()
    update_config(config)
    (made,) = make_loggers(config.logger)
    assert (type(made).__name__, made.name) == ("CSVCurves", "csv")


def test_what_a_logger_says_of_itself_is_still_found():
    node = {"_target_": "prime_xmc.tracking.wandb_logger", "offline": True, "settings": {"silent": "${logger.offline}"}}
    config = old(logger=node)
    update_config(config)
    assert config.logger.wandb._target_ == "prime_xmc.training.tracking.wandb_logger"
    assert config.logger.wandb.settings.silent is True


def test_an_interpolation_is_added_as_one():
    config = OmegaConf.create({"seed": 5})
    add_keys(config, OmegaConf.create({"seed": 0, "twice": "${seed}", "given": "???"}))
    assert OmegaConf.to_container(config, resolve=False) == {"seed": 5, "twice": "${seed}"}


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_configuration_of_today_stays_as_it_is(compose, dataset):
    chosen = ["dataset.dir=x"] if dataset == "custom" else []
    config = compose(f"dataset={dataset}", *chosen, "run_dir=run", "logger=[csv,wandb]", "loss=infonce")
    before = OmegaConf.to_container(config, resolve=False)
    update_config(config)
    assert OmegaConf.to_container(config, resolve=False) == before
