"""What a run asks of the stages after its prototypes."""

import pytest
from omegaconf import OmegaConf

from prime_xmc.stages.later_stages import _same_debugging, _same_device, classify_settings


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"classify": False, "classify_settings": ["a=1"]}, None),
        ({"classify": True, "classify_settings": []}, []),
        ({"classify": True, "classify_settings": ["a=1", "b=2"]}, ["a=1", "b=2"]),
        ({"classify": None}, None),  # as in version 0.1.0
        ({"classify": []}, []),
        ({"classify": ["a=1"]}, ["a=1"]),
        ({}, None),
    ],
)
def test_the_second_stage_is_asked_for_by_a_plain_key_or_a_list(config, expected):
    assert classify_settings(OmegaConf.create(config)) == expected


@pytest.mark.parametrize("setting", ["seed=7", "test=false", "dataset.max_length=16", "model.dir=x", "++verify=full"])
def test_what_the_stages_of_a_run_share_is_not_a_setting_of_the_second(setting):
    key = setting.lstrip("+").partition("=")[0]
    with pytest.raises(ValueError, match=f"the stages of a run share {key}, .* prime-xmc-classify model=<run>/model"):
        classify_settings(OmegaConf.create({"classify": True, "classify_settings": [setting]}))


def test_another_value_of_classify():
    with pytest.raises(ValueError, match="classify=no: expected true, false, or a list of settings"):
        classify_settings(OmegaConf.create({"classify": "no"}))


@pytest.mark.parametrize(
    ("trainer", "settings", "expected"),
    [
        ("cpu", [], ("cpu", "cpu")),
        ("gpu", [], ("gpu", "cuda")),
        ("gpu", ["dropout=0.3"], ("gpu", "cuda")),
        ("gpu", ["trainer.accelerator=cpu"], ("cpu", None)),
        ("gpu", ["trainer=cpu"], ("cpu", None)),
        ("cpu", ["trainer=gpu"], ("gpu", None)),
        ("gpu", ["++trainer.accelerator=cpu"], ("cpu", None)),
        ("gpu", ["device=cuda:1"], ("gpu", "cuda:1")),
    ],
)
def test_the_second_stage_computes_where_the_first_did_unless_told_otherwise(trainer, settings, expected, compose):
    stage = compose(*_same_device(compose(f"trainer={trainer}"), settings), *settings, name="classify")
    assert (stage.trainer.accelerator, stage.device) == expected


@pytest.mark.parametrize(
    ("given", "settings", "expected"),
    [
        ([], [], []),
        (["debug=fast"], [], ["debug=fast", "trainer.fast_dev_run=True"]),
        (["debug=fast"], ["debug=limit"], []),
        (["trainer.limit_val_batches=2"], [], ["trainer.limit_val_batches=2"]),
        (["trainer.limit_train_batches=1"], [], ["trainer.limit_train_batches=1"]),
        (["trainer.limit_train_batches=1.0"], [], []),
    ],
)
def test_what_a_run_for_debugging_passes_on(given, settings, expected, compose):
    assert _same_debugging(compose(*given), settings) == expected


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ("[1]", ["trainer.devices=[1]", "device=cuda:1"]),
        ("[2,3]", ["trainer.devices=[2]", "device=cuda:2"]),
        ("'1,'", ["trainer.devices=[1]", "device=cuda:1"]),
        ("1", ["device=cuda"]),
        ("auto", ["device=cuda"]),
    ],
)
def test_of_several_gpus_the_second_stage_has_one_of_the_first(devices, expected, compose):
    config = compose("trainer=gpu", f"trainer.devices={devices}")
    assert _same_device(config, []) == ["trainer.accelerator=gpu", *expected]
