"""Configurations as a whole: of a command line, and of a run folder."""

import hydra
import pytest
from omegaconf import OmegaConf

from prime_xmc import composing


def checked(*overrides, name="train"):
    """Return the configuration of a command line, checked as an entry point does."""
    with composing.own_configs():
        whole = hydra.compose(name, list(overrides), return_hydra_config=True)
        config = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
        composing.check_config(config, whole.hydra, name)
    return config


def test_an_experiment_that_makes_another_system_of_a_peer_is_refused():
    with pytest.raises(ValueError, match=r"^experiment=paper replaces .*model=ngame .*loss\.weighting.*leave the exp"):
        checked("model=ngame", "experiment=paper")
    with pytest.raises(ValueError, match=r"^experiment=paper replaces settings"):
        checked("model=ngame", "experiment=[paper]")
    with pytest.raises(ValueError, match=r"^experiment=table6/prime_lite replaces settings that make model=dpr"):
        checked("model=dpr", "experiment=table6/prime_lite")


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=ngame", "experiment=fast"],
        ["model=dpr", "experiment=fast"],
        ["model=renee", "experiment=fast"],
        ["model=unidec", "experiment=[fast]"],
        ["model=ngame", "experiment=paper", "ckpt_path=begun"],
        ["model=ngame", "sampling.mined.top_k=30", "ckpt_path=begun"],
        ["model=prime_lite", "experiment=paper"],
        ["model=ngame", "loss.weighting=softmax"],
        ["experiment=table6/prime_lite"],
    ],
)
def test_an_experiment_that_leaves_a_system_what_it_is(overrides):
    assert checked(*overrides).task == "train"


def test_options_in_further_folders_are_found_when_settings_are_checked(tmp_path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text("defaults: [debian18k, _self_]\nname: mine\n")
    further = f"hydra.searchpath=[file://{tmp_path}]"
    with composing.own_configs():
        whole = hydra.compose("train", [further, "dataset=mine", "seed=3"], return_hydra_config=True)
        whole.hydra.overrides.hydra = [further, "hydra.run.dir=${hydra:none}"]  # as on a command line
        config = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
        composing.check_config(config, whole.hydra, "train")
    assert (config.dataset.name, config.seed) == ("mine", 3)


class TestConfigurationOfARunFolder:
    """What somebody else may have written; see `prime_xmc.command_line.targets`."""

    @pytest.fixture
    def foreign(self, tmp_path):
        sources = [{"path": ""}, {"path": str(tmp_path / ".hydra")}]
        return OmegaConf.create({"job": {"config_name": "config"}, "runtime": {"config_sources": sources}})

    @pytest.mark.parametrize("part", ["loss._target_=os.system", "loss._tar${g}=os.system"])
    def test_its_second_stage_is_looked_at_as_it_will_be_composed(self, foreign, part):
        config = OmegaConf.create({"g": "get_", "classify_settings": ["trainer.max_epochs=1", part]})
        with pytest.raises(ValueError, match=r"classify_settings.* is 'os\.system'"):
            composing._check_sources(config, foreign, [])
        composing._check_sources(config, foreign, ["classify_settings"])  # given by the command line

    def test_that_of_an_own_folder_is_not(self):
        own = OmegaConf.create({"job": {"config_name": "train"}, "runtime": {"config_sources": [{"path": "my_conf"}]}})
        composing._check_sources(OmegaConf.create({"loss": {"_target_": "my.Loss"}}), own, [])

    def test_a_group_that_the_run_has_left_out_stays_out(self, tmp_path, compose):
        folder = tmp_path / ".hydra"
        folder.mkdir()
        begun = compose("dataset=debian18k", "callbacks=null", "logger=null", "run_dir=run")
        OmegaConf.save(begun, folder / "config.yaml")
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(folder)):
            whole = hydra.compose("config", return_hydra_config=True)
        continued = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
        composing.check_config(continued, whole.hydra, "train")
        assert OmegaConf.to_container(continued) == {**OmegaConf.to_container(begun), "callbacks": {}, "logger": None}

    def test_it_may_be_named_by_the_folder_around_it(self, tmp_path):
        (tmp_path / ".hydra").mkdir()
        (tmp_path / ".hydra" / "config.yaml").write_text("loss: {_target_: my.Loss}\n")
        sources = [{"path": str(tmp_path)}]
        named = OmegaConf.create({"job": {"config_name": ".hydra/config"}, "runtime": {"config_sources": sources}})
        with pytest.raises(ValueError, match=r"loss\._target_ is 'my\.Loss'"):
            composing._check_sources(OmegaConf.create({"loss": {"_target_": "my.Loss"}}), named, [])
