"""Steps by themselves; whole runs are tested in tests/test_train.py."""

import pytest
import torch

from prime_xmc.assemble import make_data, make_module
from prime_xmc.stages import train_prototypes as run


@pytest.fixture(scope="module")
def make(toy_settings, compose, tmp_path_factory):
    """Makes an untrained module, which logs nothing, and its data."""
    paths = [f"{key}={tmp_path_factory.mktemp(key)}" for key in ("cache_dir", "run_dir")]

    def make(*overrides):
        config = compose(*toy_settings, "dataset.batch_size=8", *paths, *overrides)
        data = make_data(config)
        module = make_module(config, data)
        module.log = module.log_dict = lambda *_, **__: None
        module.prototypes.centroids.put(torch.arange(48), torch.eye(48, 32))
        return module, data

    return make


def test_more_queries_of_a_label_move_its_centroid_and_nothing_else(make):
    outputs, steps = [], []
    for number in (0, 3):
        module, data = make(f"sampling.more_queries_per_label={number}")
        batch = next(iter(data.train_dataloader()))
        before = module.prototypes.centroids.rows.clone()
        torch.manual_seed(0)
        outputs.append(module.training_step(batch, 0))
        steps.append(module.prototypes.centroids.rows - before)
    for name, value in outputs[0].items():
        assert torch.equal(value, outputs[1][name]), name
    # towards the mean of the label's queries, those of the batch and those beside it
    query_emb = torch.cat([outputs[1]["query_emb"], module(*batch.more.texts[1:]).detach()])
    rows = torch.cat([batch.pair_rows, 8 + batch.more.pair_rows])
    label_ids = torch.cat([batch.pair_labels, batch.more.pair_labels])
    label = int(batch.label_ids[0])
    assert int((batch.more.pair_labels == label).sum()) > 0
    mean = query_emb[rows[label_ids == label]].mean(0)
    torch.testing.assert_close(steps[1][label], 0.05 * (mean - before[label]), atol=1e-6, rtol=1e-4)
    assert not torch.allclose(steps[0][label], steps[1][label], atol=1e-4)
    # remembered for the next clusters, as if they had been in the batch
    remembered = module.query_memory.take(batch.more.texts.ids).float()
    torch.testing.assert_close(remembered, query_emb[8:], atol=1e-3, rtol=0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_cuda(toy_settings, compose, tmp_path):
    quick = ["trainer.max_epochs=1", "sampling.more_queries_per_label=1", "classify=[trainer.max_epochs=1]"]
    settings = [*toy_settings, "trainer=gpu", *quick, f"cache_dir={tmp_path}/cache", f"run_dir={tmp_path}/run"]
    metrics = run(compose(*settings)).metrics
    assert 0 < metrics["test/R@10"] <= 1
    assert 0 < metrics["test/W/R@10"] <= 1
