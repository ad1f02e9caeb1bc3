"""The measurement of a pass: what it extrapolates, and that it changes nothing."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import Precision

from prime_xmc.assemble import make_data, make_module
from prime_xmc.composing import compose as compose_config
from prime_xmc.stages import train_prototypes
from prime_xmc.training import passes
from prime_xmc.training.passes import PassProbe
from prime_xmc.training.record import RunHistory


class PreparedTrainer(Trainer):
    """A Trainer with what the probe asks for, which a Trainer of its own accord has only while it trains."""

    world_size = accumulate_grad_batches = 1
    estimated_stepping_batches = datamodule = None
    precision_plugin = Precision()

    def __init__(self):
        pass


@pytest.fixture(scope="module")
def config(toy_settings, tmp_path_factory):
    """Composes a small run with dropout, which draws random numbers: config(folder, "seed=1")."""
    cache = tmp_path_factory.mktemp("cache")
    return lambda folder, *more: compose_config(
        "train",
        [
            *toy_settings,
            "encoder.dropout=0.1",
            "sampling.batch_size=100",
            "trainer.max_epochs=1",
            "trainer.check_val_every_n_epoch=1",
            "trainer.precision=32-true",
            "callbacks.progress=null",
            "logger=null",
            f"cache_dir={cache}",
            f"run_dir={folder}",
            *more,
        ],
    )


@pytest.fixture
def small(monkeypatch):
    """Lets the probe measure toy data, whose training is as short as the measurement."""
    monkeypatch.setattr(passes, "LEAST_TOKENS", 1)
    monkeypatch.setattr(passes, "SECONDS", 0.0)


@pytest.fixture
def parts(config, tmp_path):
    """Module, data and Trainer of a run of 800 epochs."""
    settings = config(tmp_path)
    data = make_data(settings)
    trainer = PreparedTrainer()
    trainer.datamodule, trainer.estimated_stepping_batches = data, 800 * len(data.sampler)
    return make_module(settings, data), data, trainer


def num_tokens(data) -> int:
    """Tokens of a pass: queries that are trained on, and all labels."""
    return int(data.corpus.train.tokens.lengths[data.train_ids].sum() + data.corpus.label_tokens.lengths.sum())


def test_time_is_extrapolated_by_tokens(parts, monkeypatch):
    module, data, trainer = parts
    spent, clock = [], SimpleNamespace(now=0.0)
    encode = type(module.encoder).forward

    def forward(self, token_ids, lengths, text_ids=None):
        spent.append(len(token_ids))
        clock.now += (100 if len(spent) == 1 else 0.01) * len(token_ids)  # the first call compiles kernels
        return encode(self, token_ids, lengths, text_ids)

    monkeypatch.setattr(type(module.encoder), "forward", forward)
    monkeypatch.setattr(passes.time, "perf_counter", lambda: clock.now)
    record = RunHistory()
    PassProbe(record).on_fit_start(trainer, module)
    assert record.no_pass is None
    assert record.pass_seconds == pytest.approx(0.01 * num_tokens(data))
    assert len(spent) == 4
    assert sum(spent) == pytest.approx(4 * num_tokens(data), rel=0.2)  # no larger than the data
    monkeypatch.setattr(trainer, "world_size", 4)
    PassProbe(record).on_fit_start(trainer, module)
    assert record.pass_seconds == pytest.approx(0.01 * num_tokens(data) / 4)


def test_it_measures_for_a_while_and_costs_a_twentieth_at_most(parts, monkeypatch):
    module, data, trainer = parts
    calls = []
    monkeypatch.setattr(passes, "seconds_of", lambda action, device: calls.append(1) or 0.5)
    PassProbe(RunHistory()).on_fit_start(trainer, module)
    assert len(calls) == 1 + 6  # of half a second
    monkeypatch.setattr(passes, "SECONDS", 1e9)
    calls.clear()
    PassProbe(RunHistory()).on_fit_start(trainer, module)
    trained = 800 * data.corpus.train.tokens.lengths[data.train_ids].sum()
    assert len(calls) == pytest.approx(trained / 20 / num_tokens(data), abs=3)


def test_the_mean_of_both_ends_counts(parts, monkeypatch):
    module, _, trainer = parts
    rates = iter([3.0, 1.0])
    monkeypatch.setattr(passes, "seconds_per_token", lambda *_: next(rates))
    record = RunHistory()
    probe = PassProbe(record)
    probe.on_fit_start(trainer, module)
    at_start = record.pass_seconds
    probe.on_train_end(trainer, module)
    assert record.pass_seconds == pytest.approx(at_start * 2 / 3)


def test_a_training_that_is_too_short_says_so(parts):
    module, data, trainer = parts
    trainer.estimated_stepping_batches = len(data.sampler)
    record = RunHistory()
    PassProbe(record).on_fit_start(trainer, module)
    assert record.pass_seconds is None
    assert record.no_pass.startswith("not measured: the queries of all steps have 2,")
    cost = record.describe()
    assert cost["train/passes_note"] == record.no_pass
    assert "train/passes" not in cost


def test_it_leaves_weights_gradients_and_random_numbers_alone(parts, small):
    module, _, trainer = parts
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.random.get_rng_state()
    record = RunHistory()
    PassProbe(record).on_fit_start(trainer, module)
    assert record.pass_seconds > 0
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    assert module.training
    assert module.encoder.training


def test_frozen_layers_belong_to_a_pass(parts, small, config, tmp_path, monkeypatch):
    """Else the unit would shrink with what is trained, and costs could not be compared."""
    whole, _, trainer = parts
    module = make_module(config(tmp_path, "encoder.frozen_layers=1"), trainer.datamodule)
    trained = [p.requires_grad for p in module.parameters()]
    reached, grad = [], torch.autograd.grad

    def counted(loss, parameters, **options):
        gradients = grad(loss, parameters, **options)
        reached.append(sum(gradient is not None for gradient in gradients))
        return gradients

    monkeypatch.setattr(torch.autograd, "grad", counted)
    PassProbe(RunHistory()).on_fit_start(trainer, module)
    assert set(reached) == {sum(p.requires_grad for p in whole.encoder.parameters())}
    assert [p.requires_grad for p in module.parameters()] == trained
    assert module.encoder.packed.num_frozen == 1
    assert not all(trained)


@pytest.mark.parametrize("more", [[], ["encoder.implementation=transformers", "encoder.recompute=true"]])
def test_a_run_is_the_same_bit_for_bit_with_it_and_without(config, tmp_path, monkeypatch, small, more):
    def run(name: str):
        made = train_prototypes(config(tmp_path / name, "test=false", *more))
        return made.metrics, {key: tensor.clone() for key, tensor in made.module.state_dict().items()}

    metrics, weights = run("with")
    assert metrics["train/pass_seconds"] > 0
    phases = {name: value for name, value in metrics.items() if name.startswith("seconds/") and name != "seconds/test"}
    assert metrics["train/passes"] == pytest.approx(sum(phases.values()) / metrics["train/pass_seconds"])
    monkeypatch.setattr(PassProbe, "on_fit_start", lambda *_: None)  # nor does it measure at the end
    without, expected = run("without")
    assert "train/passes" not in without
    assert all(torch.equal(tensor, expected[key]) for key, tensor in weights.items())
    assert without["val/P@1"] == metrics["val/P@1"]


def test_a_run_for_debugging_is_not_measured(config, tmp_path, small):
    metrics = train_prototypes(config(tmp_path, "test=false", "trainer.limit_train_batches=1")).metrics
    assert metrics["train/passes_note"] == "not measured: this was a run for debugging"
    assert "train/passes" not in metrics
