"""The export, mined negatives and the table of epochs; test_train.py and test_module.py have the others."""

import lightning as L
import numpy as np
import pytest
import torch

from prime_xmc.assemble import make_data, make_module
from prime_xmc.training.callbacks import EpochTable, ExportModel, MineNegatives, ReleaseMemory, WarnOfCollapse


def trainer_of(callbacks=(), **settings):
    """Returns a Trainer that computes on the CPU, keeps nothing and shows nothing."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(accelerator="cpu", log_every_n_steps=1, callbacks=list(callbacks), **quiet, **settings)


@pytest.fixture(scope="module")
def exported_at(toy_settings, compose, tmp_path_factory):
    """Returns the steps of exports: there are five steps an epoch, and every second epoch validates."""
    paths = [f"{key}={tmp_path_factory.mktemp(key)}" for key in ("cache_dir", "run_dir")]
    config = compose(*toy_settings, "dataset.batch_size=40", *paths)
    data = make_data(config)

    def exported_at(max_epochs, **settings):
        steps = []
        export = ExportModel(lambda module, label_emb, prototypes: steps.append(module.global_step), **settings)
        trainer = trainer_of([export], max_epochs=max_epochs, check_val_every_n_epoch=2)
        trainer.fit(make_module(config, data), datamodule=data)
        return steps

    return exported_at


def test_after_validation_and_at_the_end(exported_at):
    assert exported_at(3) == [10, 15]


def test_once_where_training_ends_with_validation(exported_at):
    assert exported_at(2) == [10]


def test_only_at_the_end(exported_at):
    assert exported_at(3, after_validation=False) == [15]


def test_every_n_epochs(exported_at):
    assert exported_at(3, after_validation=False, every_n_epochs=1) == [5, 10, 15]


def test_a_run_continued_after_its_end_has_the_table_in_its_new_folder(tmp_path):
    table = EpochTable(str(tmp_path / "metrics.csv"))
    table.load_state_dict({"rows": [{"epoch": 0, "step": 5, "lr": 0.25}]})
    table.on_train_end(trainer_of(), L.LightningModule())
    assert (tmp_path / "metrics.csv").read_text() == "epoch,step,lr\n0,5,0.25\n"


@pytest.mark.parametrize(("device", "expected"), [("cpu", [1, 3]), ("meta", [])])
def test_memory_is_released_every_n_steps_of_the_cpu_alone(device, expected, monkeypatch):
    callback, module, released = ReleaseMemory(every_n_steps=2), L.LightningModule().to(device), []
    trainer = trainer_of()
    for step in range(5):
        monkeypatch.setattr(callback, "release", lambda step=step: released.append(step))
        callback.on_train_batch_end(trainer, module, None, None, step)
    assert released == expected


@pytest.fixture(scope="module")
def mined(toy_settings, compose, tmp_path_factory):
    """What each of five epochs drew from, with labels searched in epochs 1 and 3; module and data at the end."""
    paths = [f"{key}={tmp_path_factory.mktemp(key)}" for key in ("cache_dir", "run_dir")]
    settings = ["sampling=mined", "sampling.mined.every_n_epochs=2", "sampling.mined.top_k=6", "model=dpr"]
    config = compose(*toy_settings, "dataset.batch_size=40", *paths, *settings)
    data = make_data(config)
    seen, expected = [], {}

    class Watch(L.Callback):
        def on_train_epoch_start(self, trainer, module):
            lists = data.sampler.state_dict().get("mined")
            seen.append(lists)
            if module.has_index:  # as it was when labels were searched
                _, vectors = module.build_index()
                ids = torch.from_numpy(data.sampler.query_ids)
                expected[trainer.current_epoch] = module.query_memory.take(ids).float() @ vectors.T

    module = make_module(config, data)
    trainer = trainer_of([*module.callbacks, Watch()], max_epochs=5, limit_val_batches=0)
    trainer.fit(module, datamodule=data)
    return seen, expected, data


class TestMineNegatives:
    def test_from_the_first_epoch_on_and_every_n(self, mined):
        seen, expected, _ = mined
        assert seen[0] is None
        assert torch.equal(seen[1], seen[2])
        assert torch.equal(seen[3], seen[4])
        assert not torch.equal(seen[1], seen[3])
        assert set(expected) == {1, 3}

    def test_most_similar_labels_that_are_neither_positives_nor_excluded(self, mined):
        seen, expected, data = mined
        train = data.corpus.train
        for epoch in (1, 3):
            for row, query in enumerate(data.sampler.query_ids):
                known = {*train.positives[query].tolist(), *train.filtered[query].tolist()}
                ranked = expected[epoch][row].argsort(descending=True, stable=True).tolist()
                assert seen[epoch][query].tolist() == [label for label in ranked if label not in known][:6]

    def test_held_out_queries_have_none(self, mined):
        seen, _, data = mined
        assert (seen[1][torch.from_numpy(data.validation_ids)] == -1).all()
        assert np.isin(data.sampler.query_ids, data.validation_ids).sum() == 0

    def test_without_embeddings_there_is_nothing_to_search_for(self, toy_settings, compose, tmp_path):
        paths = [f"{key}={tmp_path}" for key in ("cache_dir", "run_dir")]
        config = compose(
            *toy_settings, *paths, "model=ance", "sampling.mined.first_epoch=0", "callbacks.initialise=null"
        )
        data = make_data(config)
        module = make_module(config, data)
        trainer = trainer_of(max_epochs=1, limit_val_batches=0)
        with pytest.raises(ValueError, match="labels to search in epoch 0, and no query has an embedding yet"):
            trainer.fit(module, datamodule=data)

    @pytest.mark.parametrize("wrong", [{"every_n_epochs": 0}, {"top_k": 0}])
    def test_numbers_out_of_range(self, wrong):
        with pytest.raises(ValueError, match="at least 1"):
            MineNegatives(**({"first_epoch": 1, "every_n_epochs": 5, "top_k": 9} | wrong))


class Violators(L.LightningModule):
    """Logs a share of violators in each epoch."""

    def __init__(self, shares):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.shares = shares

    def training_step(self, batch, batch_idx):
        share = self.shares[self.current_epoch]
        if share is not None:
            self.log("train/violators", share, on_step=True, on_epoch=True, batch_size=len(batch))
        return (self.weight * batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class TestWarnOfCollapse:
    @pytest.mark.parametrize(
        ("shares", "epochs"),
        [
            ([1.0, 0.99, 1.0], [1, 3]),  # the first time and at the end
            ([1.0, 0.99, 0.5], [1]),
            ([0.2, 0.99, 0.1], [2]),
            ([0.97, 0.9, 0.97], []),
            ([None, None, None], []),  # another loss
        ],
    )
    def test_when_it_is_said(self, caplog, shares, epochs):
        loader = torch.utils.data.DataLoader(torch.zeros(8, 1), batch_size=4)
        trainer_of([WarnOfCollapse(0.98)], max_epochs=len(shares), limit_val_batches=0).fit(Violators(shares), loader)
        said = [record.args[0] for record in caplog.records if record.name == "prime_xmc.training.callbacks"]
        assert said == epochs

    def test_a_training_whose_triplets_cannot_have_their_margin_says_it(self, toy_settings, compose, tmp_path, caplog):
        paths = [f"{key}={tmp_path}" for key in ("cache_dir", "run_dir")]
        config = compose(*toy_settings, *paths, "loss.gamma_min=2.0", "loss.gamma_max=2.0")
        data = make_data(config)
        trainer = trainer_of([WarnOfCollapse(0.98)], max_epochs=1, limit_val_batches=0)
        trainer.fit(make_module(config, data), datamodule=data)
        assert "epoch 1: in 100.0 % of the triplets the negative is closer than the margin allows" in caplog.text
