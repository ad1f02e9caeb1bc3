"""Values that are refused before anything is done with them."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from prime_xmc.command_line.checks import check_groups, check_used, check_values
from prime_xmc.composing import compose

DEFAULTS = OmegaConf.create(
    {
        "seed": 0,
        "test": True,
        "dataset": {"lr": 1e-3, "fields": ["title"], "propensity": {"a": 0.5, "b": 1.5}, "name": "custom"},
        "optimizer": {"lr": "${dataset.lr}"},
        "trainer": {"max_epochs": 4, "max_steps": -1, "devices": 1, "fast_dev_run": False, "limit_train_batches": None},
        "loss": {"num_negatives": 100},
        "classify": False,
        "model": {"dir": "???"},
        "top_k": 5,
        "num_resamples": 10,
        "delimiter": None,
        "export_every_n_epochs": None,
        "made": {"_target_": "some.Class", "x": 1},
    }
)


def check(*settings: str) -> None:
    config = OmegaConf.merge(DEFAULTS, OmegaConf.from_dotlist(list(settings)))
    check_values(config, DEFAULTS, [setting.split("=")[0] for setting in settings])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed=abc", "seed=abc: expected a whole number"),
        ("seed=1.5", "seed=1.5: expected a whole number"),
        ("seed=true", "seed=true: expected a whole number"),
        ("seed=-1", "seed=-1: expected a whole number of at least 0"),
        (
            "seed=9223372036854775808",
            r"seed=9223372036854775808: expected a whole number of at least 0 and below 2\^63",
        ),
        ("test=1", "test=1: expected true or false"),
        ("test=yes please", "test=yes please: expected true or false"),
        ("dataset.lr=abc", "dataset.lr=abc: expected a number"),
        ("dataset.lr=0", "dataset.lr=0: expected a number above 0"),
        ("dataset.lr=.nan", "dataset.lr=nan: expected a number above 0"),
        ("optimizer.lr=-1", "optimizer.lr=-1: expected a number above 0"),
        ("optimizer.lr=abc", "optimizer.lr=abc: expected a number"),
        ("dataset.fields=title", r"dataset.fields=title: expected a list, such as dataset.fields=\[title\]"),
        ("dataset.fields=[]", r"dataset.fields=\[\]: expected at least one field"),
        ("dataset.propensity=3", "dataset.propensity=3: expected a value for each of a, b"),
        ("dataset.propensity={a: x}", "dataset.propensity.a=x: expected a number"),
        ("trainer.max_epochs=null", "trainer.max_epochs=null: expected a whole number of at least 1, or -1"),
        ("dataset.dir=null", "dataset.dir=null: expected the folder of the raw files"),
        ("model.dir=null", "model.dir=null: a value is needed"),
        (
            "trainer.accumulate_grad_batches=0",
            "trainer.accumulate_grad_batches=0: expected a whole number of at least 1",
        ),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1: expected a number of at least 0, or null"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay=-1: expected a number of at least 0"),
        ("optimizer.warmup_fraction=2", "optimizer.warmup_fraction=2: expected a number from 0 to 1"),
        ("callbacks.collapse.violators=98", "callbacks.collapse.violators=98: expected a number from 0 to 1"),
        ("model.dropout=1", "model.dropout=1: expected a number of at least 0 and below 1"),
        (
            "method.parameters.matmul_precision=medum",
            "method.parameters.matmul_precision=medum: expected highest, high or medium",
        ),
        ("dataset.token_pattern=[a]", r"dataset.token_pattern=\['a'\]: expected a text"),
        ("num_resamples=0", "num_resamples=0: expected a whole number of at least 1"),
        ("delimiter=ab", "delimiter=ab: expected a single character, or null"),
        ("top_k=null", "top_k=null: expected a whole number of at least 1"),
        ("dataset.name=null", "dataset.name=null: expected a name"),
        ("dataset.propensity=null", "dataset.propensity=null: expected a value for each of a, b"),
        ("export_every_n_epochs=0", "export_every_n_epochs=0: expected a whole number of at least 1, or null"),
        ("cache_dir=null", "cache_dir=null: expected a folder for prepared data"),
        ("trainer.max_epochs=-1", "trainer.max_epochs=-1: training would never end; give trainer.max_steps too"),
        ("trainer.max_epochs=0", "trainer.max_epochs=0: expected a whole number of at least 1, or -1"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_is_expected(setting, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        check(setting)


def test_a_mandatory_key_without_a_value_is_no_null():
    config = OmegaConf.create({"dataset": {"dir": "???"}})
    check_values(config, config, [])


@pytest.mark.parametrize(
    "setting",
    [
        *("seed=3", "test=false", "dataset.lr=1", "optimizer.lr=1e-4", "dataset.fields=[a, b]", "dataset.name=3"),
        *(
            "trainer.devices=auto",
            "trainer.devices=[0, 1]",
            "trainer.fast_dev_run=2",
            "trainer.limit_train_batches=0.5",
        ),
        *("loss.num_negatives=null", "trainer.max_epochs=5", "classify=[a=1]", "classify=null"),
        *("trainer.new=1", "method.parameters.matmul_precision=medium", "dataset.token_pattern=5"),
    ],
)
def test_other_values_pass(setting):
    check(setting)


@pytest.mark.parametrize("also", ["trainer.max_steps=10", "trainer.max_time=00:01:00:00"])
def test_epochs_without_number_end_by_something_else(also):
    check("trainer.max_epochs=-1", also)


def test_a_group_that_is_needed_is_named():
    check_groups(DEFAULTS, ["trainer", "logger", "callbacks", "experiment"])
    with pytest.raises(ValueError, match=r"^sampling=null: one of the options of sampling is needed"):
        check_groups(DEFAULTS, ["trainer", "sampling"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model=renee", "loss=infonce"], r"^loss=infonce: nothing would use it, since model=renee sets loss=null"),
        (["model=elmo", "sampling.clusters.initial_size=4"], r"^sampling\.clusters\.initial_size=4: .* by model=elmo"),
        (["callbacks.clusters=null", "sampling.clusters.first_epoch=1"], "no clusters of queries are made"),
        (
            ["sampling.mined.num_drawn=5"],
            r"^sampling\.mined\.num_drawn=5: .*no labels are searched; give sampling=mined",
        ),
        (["loss.prototype_weight=0", "sampling.memory_labels=9"], "remembered labels enter the first term of the loss"),
    ],
)
def test_settings_that_nothing_would_use_are_refused(settings, message):
    overrides = OverridesParser.create().parse_overrides(settings)
    with pytest.raises(ValueError, match=message):
        check_used(compose("train", settings), overrides, _choices(settings))


@pytest.mark.parametrize(
    "settings",
    [
        ["model=renee"],
        ["model=renee", "sampling.clusters.first_epoch=null", "dataset.clusters.first_epoch=1"],
        ["loss=infonce", "sampling.clusters.initial_size=4", "~logger"],
        ["callbacks.clusters=null"],
        ["sampling=mined", "sampling.mined.num_drawn=5", "sampling.memory_labels=9"],
        ["sampling.mined.first_epoch=2", "sampling.mined.num_drawn=5"],
        ["loss.prototype_weight=0", "sampling.memory_labels=0"],
    ],
)
def test_settings_that_something_uses(settings):
    check_used(compose("train", settings), OverridesParser.create().parse_overrides(settings), _choices(settings))


@pytest.mark.parametrize(
    "setting",
    [
        *("encoder=distilbert", "encoder.normalize=false", "sampling=random", "sampling.mined.first_epoch=1"),
        *("sampling.label_rows=true", "sampling.batch_labels=all", "sampling.memory_labels=5"),
    ],
)
def test_settings_of_an_encoder_are_refused_where_none_is_trained(setting):
    overrides = OverridesParser.create().parse_overrides([setting])
    with pytest.raises(ValueError, match=f"^{setting}: nothing would use it, since the model brings its encoder"):
        check_used(compose("classify", ["model.dir=x", setting]), overrides, {})


@pytest.mark.parametrize("setting", ["sampling.batch_size=64", "sampling.clusters.first_epoch=null", "negatives=all"])
def test_settings_that_classifiers_use(setting):
    check_used(compose("classify", ["model.dir=x", setting]), OverridesParser.create().parse_overrides([setting]), {})


def _choices(settings):
    given = dict(setting.split("=") for setting in settings if "=" in setting)
    return {
        group: given.get(group, option) for group, option in (("model", "prime"), ("loss", "prime"), ("logger", "csv"))
    }
