"""Every file under conf/ composes, and what it names can be built."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from prime_xmc.assemble import check_model
from prime_xmc.baselines.method import Method
from prime_xmc.conf_files import config_dir
from prime_xmc.model.prototypes import Prototypes
from prime_xmc.resolvers import native_precision
from prime_xmc.run_files import OF_TRAINING

CONF = config_dir()
GROUPS = (
    "dataset",
    "encoder",
    "model",
    "loss",
    "sampling",
    "optimizer",
    "index",
    "trainer",
    "callbacks",
    "logger",
    "debug",
)
OPTIONS = [
    f"{group}={path.relative_to(CONF / group).with_suffix('')}"
    for group in (*GROUPS, "experiment", "debug")
    for path in sorted((CONF / group).rglob("*.yaml"))
]
# Table 10: free vectors, batch, epochs, learning rate, tokens; then the constants of the inverse propensity
BENCHMARKS = {
    "amazontitles131k": (65_536, 3200, 300, 3e-4, 32, 0.6, 2.6),
    "amazon131k": (65_536, 512, 300, 3e-4, 128, 0.6, 2.6),
    "amazontitles1300k": (131_072, 3200, 300, 3e-4, 32, 0.6, 2.6),
    "wikititles500k": (65_536, 3200, 300, 2e-4, 32, 0.5, 0.4),
    "wikipedia500k": (65_536, 512, 50, 1e-4, 256, 0.5, 0.4),
    "wikiseealso320k": (65_536, 1024, 200, 1e-4, 128, 0.55, 1.5),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_is_accepted_and_its_targets_exist(option, compose):
    given = ["dataset.dir=data"] if option == "dataset=custom" else []
    given += ["dataset.name=none"] if option == "dataset=base/benchmark" else []
    given += ["encoder.source=folder"] if option in ("encoder=local", "encoder=decoder") else []
    given += ["loss.contrast._target_=prime_xmc.model.losses.InfoNCE"] if option == "loss=custom" else []

    def targets(node):
        if isinstance(node, dict):
            if "_target_" in node:
                yield node["_target_"]
            for child in node.values():
                yield from targets(child)

    config = compose(option, "run_dir=run", *given)
    resolved = OmegaConf.to_container(config, resolve=True)
    for target in targets(resolved):
        assert callable(get_object(target)), target
    if option not in ("optimizer=renee", "optimizer=elmo"):  # which are for their models
        check_model(config)


@pytest.mark.parametrize("path", sorted((CONF / "method").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_method_composes_and_its_settings_are_those_of_its_class(path, compose):
    config = compose(f"method={path.stem}", name="baseline")
    if "library" not in config.method:  # that of a library may not be installed
        assert isinstance(instantiate(config.method, _convert_="all"), Method)
    else:
        settings = set(OmegaConf.to_container(config.method)) - {"_target_"}
        assert settings <= set(inspect.signature(get_object(config.method._target_)).parameters)


@pytest.mark.parametrize(
    ("option", "group", "key"),
    [
        ("dataset=custom", "dataset", "dir"),
        ("encoder=local", "encoder", "source"),
        ("encoder=decoder", "encoder", "source"),
    ],
)
def test_what_is_to_be_given_has_no_default(option, group, key, compose):
    """Hydra merges ??? over an inherited value by keeping that value: these files must inherit none."""
    assert OmegaConf.is_missing(compose(option)[group], key)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_entry_point_composes(path: Path, compose):
    assert "dataset" in compose(name=path.stem) or path.stem in (
        "calibrate",
        "convert",
        "labels",
        "predict",
        "report",
        "serve",
    )


@pytest.mark.parametrize("dataset", BENCHMARKS)
def test_benchmarks_have_the_settings_of_table_10(dataset, compose):
    config = compose(f"dataset={dataset}", "run_dir=run")
    found = (
        config.model.num_free_vectors,
        config.sampling.batch_size,
        config.trainer.max_epochs,
        config.optimizer.lr,
        config.dataset.max_length,
        config.dataset.propensity.a,
        config.dataset.propensity.b,
    )
    assert found == BENCHMARKS[dataset]
    assert (config.loss.gamma_min, config.loss.gamma_max, config.model.momentum) == (0.1, 0.3, 0.95)


def test_data_sets_keep_their_settings(compose):
    """Against a snapshot: files that share a base change together, also by mistake."""
    snapshot = json.loads((Path(__file__).parent / "fixtures" / "datasets.json").read_text())
    assert set(BENCHMARKS) < set(snapshot)
    for name, expected in snapshot.items():
        composed = OmegaConf.to_container(compose(f"dataset={name}", "run_dir=run").dataset, resolve=True)
        expected.setdefault("dir", composed["dir"])  # that of carried data is where the package lies
        assert composed == expected
        of_training = {key.removeprefix("dataset.") for key in OF_TRAINING}
        others = set(expected) - of_training - {"propensity", "max_length", "num_validation"}
        assert others <= {"name", "dir", "fields", "label_fields", "hint", "token_pattern", "size"}, "of texts"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], 6),
        (["trainer.max_epochs=1"], 1),
        (["dataset.max_epochs=3", "dataset.validate_every=2"], 2),
        (["dataset.validate_every=5", "trainer.max_epochs=3"], 3),
        (["dataset.validate_every=5", "trainer.max_epochs=-1", "trainer.max_steps=7"], 5),
    ],
)
def test_validation_comes_at_the_latest_after_the_last_epoch(settings, expected, compose):
    assert compose(*settings).trainer.check_val_every_n_epoch == expected


def test_prime_lite_draws_one_positive_in_half_the_batch(compose):
    full, lite = (
        compose("dataset=amazontitles131k", f"model={model}", "run_dir=run") for model in ("prime", "prime_lite")
    )
    assert (full.sampling.num_positives, full.sampling.batch_size) == (2, 3200)
    assert (lite.sampling.num_positives, lite.sampling.batch_size) == (1, 1600)
    assert compose("dataset=custom", "model=prime_lite").sampling.batch_size == "half", "of what is still open"


def test_the_model_group_builds_prototypes(compose):
    model = instantiate(compose("run_dir=run").model, num_labels=5000, dim=8, _convert_="all")
    assert isinstance(model, Prototypes)
    assert model.sources == ("text", "centroid", "free_vector")


def test_the_optimizer_group_builds_a_schedule_that_rises_and_falls(compose):
    config = compose("run_dir=run", "optimizer.lr=0.5").optimizer
    optimizer = instantiate(config.make)([{"params": [torch.nn.Parameter(torch.zeros(2))]}])
    schedule = instantiate(config.schedule)(optimizer, num_warmup_steps=2, num_training_steps=4)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == [0.0, 0.25, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("key", ["optimizer.lr", "optimizer.make.lr"])
def test_the_second_stage_has_the_learning_rate_key_of_the_first(key, compose):
    config = compose("model.dir=x", "run_dir=run", f"{key}=0.5", name="classify")
    assert config.optimizer.make.lr == 0.5  # version 0.1.0 had this key alone


def test_precision_is_one_that_lightning_knows():
    assert native_precision("cpu") in ("bf16-mixed", "32-true")
    if not torch.cuda.is_available():
        assert native_precision("gpu") == "32-true"


@pytest.mark.parametrize(("every", "expected"), [("null", None), ("2", 2), ("9", 5)])
def test_validation_at_the_latest_after_the_last_epoch(every, expected, compose):
    config = compose(f"dataset.validate_every={every}", "trainer.max_epochs=5")
    assert config.trainer.check_val_every_n_epoch == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], 4),
        (["encoder.implementation=transformers"], 0),
        (["encoder.implementation=transformers", "encoder.lora={r: 4, alpha: 8}"], 0),
        (["encoder.pretrained=false"], 0),
        (["encoder.frozen_layers=2"], 2),
    ],
)
def test_layers_are_frozen_by_default_where_they_can_be(settings, expected, compose):
    assert compose(*settings).encoder.frozen_layers == expected
