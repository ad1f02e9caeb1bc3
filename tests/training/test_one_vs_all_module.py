"""Steps of one-vs-all training; tests/test_one_vs_all_runs.py has whole runs."""

import lightning as L
import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader

from prime_xmc.assemble import make_data, make_module
from prime_xmc.training.fused_sgd import FusedSGD
from prime_xmc.training.one_vs_all_module import OneVsAllModule

NUM_TRAIN, NUM_LABELS = 240, 48


@pytest.fixture(scope="module")
def make(toy_settings, compose, tmp_path_factory):
    """Makes an untrained module, which logs nothing, and its data."""
    paths = [f"{key}={tmp_path_factory.mktemp(key)}" for key in ("cache_dir", "run_dir")]

    def make(*overrides, model="renee"):
        config = compose(*toy_settings, f"model={model}", "dataset.batch_size=16", *paths, *overrides)
        data = make_data(config)
        module = make_module(config, data)
        module.log = lambda *_, **__: None
        return module, data

    return make


def first_batch(data):
    return next(iter(data.train_dataloader()))


def truth(data, batch):
    """Whether each label belongs to each row of a batch, and whether the data exclude the pair."""
    positive, excluded = (torch.zeros(len(batch.query_ids), NUM_LABELS) for _ in range(2))
    for row, row_id in enumerate(batch.query_ids.tolist()):
        if row_id < NUM_TRAIN:
            positive[row, data.corpus.train.positives[row_id].astype(np.int64)] = 1
            excluded[row, data.corpus.train.filtered[row_id].astype(np.int64)] = 1
        else:
            positive[row, row_id - NUM_TRAIN] = 1
    return positive, excluded


def test_the_loss_is_that_of_all_labels_for_queries_and_label_texts(make):
    module, data = make("model.dropout=0")
    batch = next(batch for batch in data.train_dataloader() if truth(data, batch)[1].any())
    assert 1 <= batch.num_label_rows < len(batch.query_ids)
    assert len(batch.lengths) == len(batch.query_ids), "no further texts are encoded"
    positive, excluded = truth(data, batch)
    loss = module.training_step(batch, 0)
    embeddings = module.encoder(batch.token_ids, batch.lengths)
    expected = binary_cross_entropy_with_logits(
        embeddings @ module.classifiers.weight.T, positive, weight=1 - excluded, reduction="sum"
    )
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-3)
    parameters = [module.classifiers.weight, *(p for p in module.encoder.parameters() if p.requires_grad)]
    ours, theirs = (torch.autograd.grad(each, parameters, allow_unused=True) for each in (loss, expected))
    assert sum(gradient is not None for gradient in theirs) > 10
    for found, wanted in zip(ours, theirs, strict=True):
        if wanted is not None:
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def test_embeddings_are_means_of_any_length(make):
    module, data = make()
    norms = module(*first_batch(data)[3:5]).norm(dim=1)
    assert (norms - 1).abs().min() > 0.1


def test_the_text_of_a_label_row_is_the_label_s(make):
    _, data = make()
    batch = first_batch(data)
    texts = batch.token_ids.split(batch.lengths.tolist())
    for row_id, text in zip(batch.query_ids.tolist(), texts, strict=True):
        of_label = row_id >= NUM_TRAIN
        expected = (data.corpus.label_tokens if of_label else data.corpus.train.tokens)[row_id - NUM_TRAIN * of_label]
        assert text.tolist() == expected.tolist()


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_the_gradient_of_accumulated_batches_is_that_of_one_large_batch(make, tmp_path):
    """The loss is a sum over queries, of which Lightning would make the mean over batches."""
    module, data = make("model.dropout=0", "optimizer.warmup_fraction=0.0")
    batches = [batch for batch, _ in zip(data.train_dataloader(), range(3), strict=False)]
    weight = module.classifiers.weight
    before, total = weight.detach().clone(), sum(module.training_step(batch, 0) for batch in batches)
    expected = torch.autograd.grad(total, weight)[0]
    module.parameter_groups = lambda: [{"params": [weight]}]
    module.optimizer = lambda groups: torch.optim.SGD(groups, lr=1.0)
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    options = {"accelerator": "cpu", "max_epochs": 1, "accumulate_grad_batches": 3, "limit_val_batches": 0}
    L.Trainer(default_root_dir=tmp_path, **options, **quiet).fit(module, DataLoader(batches, batch_size=None))
    torch.testing.assert_close(before - weight.detach(), expected, rtol=1e-4, atol=1e-5)
    assert expected.abs().max() > 0.01


@pytest.mark.parametrize("model", ["renee", "elmo"])
def test_the_host_waits_for_no_result_of_a_step(make, model, never_waits):
    module, data = make(model=model)
    batch = first_batch(data)
    optimizer = module.optimizer(module.parameter_groups())
    module.fused = next((part for part in optimizer.parts if isinstance(part, FusedSGD)), None)
    never_waits.exempt(module.encoder)
    before = module.classifiers.weight.detach().clone()
    with never_waits:
        loss = module.training_step(batch, 0)
    loss.backward()
    assert (module.fused is None) is (model == "renee")
    optimizer.step()
    assert (module.classifiers.weight != before).any(dim=1).all(), "every classifier is stepped"


def test_each_part_has_its_optimizer_and_rate(make):
    module, _ = make("optimizer.lr=0.25", "optimizer.classifier_lr=0.5", "optimizer.classifier_weight_decay=0.125")
    optimizer = module.optimizer(module.parameter_groups())
    dense, table = optimizer.parts
    assert (type(dense), type(table)) == (torch.optim.AdamW, torch.optim.SGD)
    matrices, others = dense.param_groups
    assert (matrices["lr"], matrices["weight_decay"], matrices["eps"]) == (0.25, 0.01, 1e-6)
    assert others["weight_decay"] == 0.0
    (group,) = table.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.5, 0.9, 0.125)
    (weight,) = group["params"]
    assert weight is module.classifiers.weight
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == trained


@pytest.mark.parametrize(
    ("model", "settings", "trainer", "message"),
    [
        ("elmo", [], {"accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches=2: optimizer=elmo steps the"),
        ("elmo", [], {"gradient_clip_val": 1.0}, "trainer.gradient_clip_val=1.0: optimizer=elmo steps the"),
        ("renee", ["model.dtype=bfloat16"], {}, "model.dtype=bfloat16 would round most steps away"),
        ("renee", [], {"devices": 2, "strategy": "ddp"}, "one process trains one-vs-all classifiers, got 2"),
    ],
)
def test_trainers_that_do_not_fit(make, tmp_path, model, settings, trainer, message):
    module, data = make(*settings, model=model)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"accelerator": "cpu", "devices": 1, "max_steps": 1} | quiet | trainer
    made = L.Trainer(default_root_dir=tmp_path, enable_checkpointing=False, **options)
    if trainer.get("devices") == 2:
        module._trainer = made
        with pytest.raises(ValueError, match=message):
            module.setup("fit")
        return
    with pytest.raises(ValueError, match=message):
        made.fit(module, datamodule=data)


@pytest.mark.parametrize(
    ("model", "advice"),
    [("renee", r"or clip gradients with trainer\.gradient_clip_val=1"), ("elmo", "cannot be clipped")],
)
def test_divergence_ends_training_with_advice_for_the_optimiser(make, tmp_path, model, advice):
    module, data = make("optimizer.classifier_lr=1e30", model=model)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        log_every_n_steps=5,
        **quiet,
    )
    with pytest.raises(
        ValueError, match=rf"diverged: the loss is not finite at step \d .*optimizer\.classifier_lr.*{advice}"
    ):
        trainer.fit(module, datamodule=data)


@pytest.mark.parametrize("model", ["renee", "elmo"])
def test_classifiers_that_are_not_finite_are_not_indexed(make, model):
    module, _ = make(model=model)
    module.classifiers.weight.data[3, 5] = float("inf")
    with pytest.raises(ValueError, match=r"weights are not finite after 0 steps \(classifiers\.weight\)"):
        module.build_index()


def test_an_encoder_that_normalises(make):
    with pytest.raises(ValueError, match=r"not normalised: give encoder\.normalize=false"):
        make("encoder.normalize=true")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_a_gpu_is_that_of_the_cpu(make):
    module, data = make("model.dropout=0")
    batch = first_batch(data)
    expected = module.training_step(batch, 0).detach()
    module = module.cuda()
    found = module.training_step(batch.pin_memory().to(torch.device("cuda")), 0)
    found.backward()
    torch.testing.assert_close(found.detach().cpu(), expected, rtol=1e-4, atol=1e-3)


def test_it_is_made_by_the_model_group(make):
    assert isinstance(make(model="elmo")[0], OneVsAllModule)
