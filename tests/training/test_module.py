"""Steps by themselves, and modules in a user's own script; whole runs are tested in tests/test_train.py."""

import json
import shutil

import lightning as L
import numpy as np
import pytest
import torch

from prime_xmc.assemble import make_data, make_module
from prime_xmc.data import background, sampling
from prime_xmc.model.finiteness import not_finite
from prime_xmc.stages import train_prototypes as run
from prime_xmc.training.callbacks import InitialisePrototypes, RebuildClusters
from prime_xmc.training.checkpoints import ShardedCheckpointIO
from prime_xmc.training.classifier_module import ClassifierModule
from prime_xmc.training.module import PrimeModule
from prime_xmc.training.protocols import PrototypeModule, QueryMemory


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
    label_ids = batch.moved_ids[torch.cat([batch.pair_places, batch.more.pair_places])]
    label = int(batch.label_ids[0])
    assert int((batch.moved_ids[batch.more.pair_places] == label).sum()) > 0
    mean = query_emb[rows[label_ids == label]].mean(0)
    torch.testing.assert_close(steps[1][label], 0.05 * (mean - before[label]), atol=1e-6, rtol=1e-4)
    assert not torch.allclose(steps[0][label], steps[1][label], atol=1e-4)
    # remembered for the next clusters, as if they had been in the batch
    remembered = module.query_memory.take(batch.more.texts.ids).float()
    torch.testing.assert_close(remembered, query_emb[8:], atol=1e-3, rtol=0)


def test_label_rows_are_trained_and_leave_centroids_and_query_memory_alone(make):
    module, data = make("sampling.label_rows=true")
    batch = next(iter(data.train_dataloader()))
    assert 1 <= batch.num_label_rows < len(batch.query_ids) == 8
    queries, labels = batch.query_ids.split([8 - batch.num_label_rows, batch.num_label_rows])
    before, remembered = module.prototypes.centroids.rows.clone(), module.query_memory.rows.clone()
    output = module.training_step(batch, 0)
    moved = (module.prototypes.centroids.rows != before).any(dim=1).nonzero().flatten()
    positives = np.concatenate([data.corpus.train.positives[row] for row in queries.tolist()])
    assert moved.tolist() == sorted(set(positives.tolist()))
    changed = (module.query_memory.rows != remembered).any(dim=1).nonzero().flatten()
    assert changed.tolist() == sorted(queries.tolist())
    assert output["query_emb"].shape == (8, 32)
    texts = [data.corpus.label_tokens[label] for label in (labels - len(data.corpus.train)).tolist()]
    tokens = torch.from_numpy(np.concatenate(texts).astype(np.int64))
    expected = module(tokens, torch.tensor([len(text) for text in texts]))
    torch.testing.assert_close(output["query_emb"][len(queries) :], expected, atol=1e-5, rtol=0)


def test_label_rows_need_batches_of_queries(make):
    with pytest.raises(ValueError, match=r"sampling\.label_rows=true adds rows to batches of queries"):
        make("sampling=labels", "sampling.label_rows=true")


def test_remembered_labels_enter_the_first_term_with_the_embedding_that_training_last_made(make):
    module, data = make(
        "sampling.memory_labels=4096",
        "sampling.num_positives=1",
        "sampling.leave_one_out=0",
        "model.dropout=0.0",
        "model.centroid_update=frozen",
    )
    batch = next(iter(data.train_dataloader()))
    memory = batch.memory
    assert len(memory.ids) > 0
    remembered = torch.nn.functional.normalize(torch.randn(48, 32), dim=1)
    module.label_memory.put(torch.arange(48), remembered)
    outputs = module.training_step(batch, 0)
    label_emb = outputs["label_emb"]
    ids = torch.cat([batch.label_ids, memory.ids])
    prototypes = module.prototypes(ids, torch.cat([label_emb, remembered[memory.ids].half().float()]))
    expected, _ = module.loss(
        outputs["query_emb"],
        label_emb,
        prototypes,
        memory.relations.positives(),
        memory.relations.negatives(),
    )
    torch.testing.assert_close(outputs["loss"], expected, atol=1e-5, rtol=1e-4)
    assert outputs["prototypes"].shape == label_emb.shape
    # what this step has encoded is remembered, and nothing else
    torch.testing.assert_close(module.label_memory.take(batch.label_ids).float(), label_emb, atol=1e-3, rtol=0)
    torch.testing.assert_close(module.label_memory.take(memory.ids), remembered[memory.ids].half())


def test_modules_inherit_what_callbacks_look_for():
    """From Python 3.12 on, a check of protocols by their members does not see submodules."""
    assert PrototypeModule in PrimeModule.__mro__
    assert QueryMemory in ClassifierModule.__mro__


def test_positives_are_scored_without_themselves_in_the_centroid(make):
    module, data = make(
        "sampling.memory_labels=4096",
        "sampling.num_positives=1",
        "sampling.leave_one_out=0.5",
        "model.dropout=0.0",
        "model.centroid_update=frozen",
    )
    batch = next(iter(data.train_dataloader()))
    rows, columns, num_queries = batch.left_out
    assert 0 < len(rows) < len(batch.memory.relations.positive_places)
    for bank in module.banks.values():
        rows_of_bank = torch.nn.functional.normalize(torch.randn(len(bank), 32), dim=1)
        bank.put(torch.arange(len(bank)), rows_of_bank)
    before = module.query_memory.rows.clone().float()
    outputs = module.training_step(batch, 0)
    query_emb, label_emb = outputs["query_emb"], outputs["label_emb"]
    ids = torch.cat([batch.label_ids, batch.memory.ids])
    text_emb = torch.cat([label_emb, module.label_memory.take(batch.memory.ids).float()])
    candidates, relations = module.prototypes(ids, text_emb), batch.memory.relations
    seen = before[batch.query_ids[rows]]
    own = module.prototypes.leave_one_out(ids[columns], text_emb[columns], seen, num_queries)
    matrices = relations.positives(), relations.negatives()
    expected, _ = module.loss(query_emb, label_emb, candidates, *matrices, left_out=(rows, columns, own))
    torch.testing.assert_close(outputs["loss"], expected, atol=1e-5, rtol=1e-4)
    with_themselves, _ = module.loss(query_emb, label_emb, candidates, *matrices)
    assert not torch.isclose(outputs["loss"], with_themselves)


def test_some_labels_are_shown_without_a_centroid(make):
    module, data = make(
        "sampling.without_centroid=0.5",
        "sampling.leave_one_out=0",
        "model.dropout=0.0",
        "model.centroid_update=frozen",
    )
    batch = next(iter(data.train_dataloader()))
    module.prototypes.centroids.put(torch.arange(48), torch.nn.functional.normalize(torch.randn(48, 32), dim=1))
    module.label_memory.put(torch.arange(48), torch.nn.functional.normalize(torch.randn(48, 32), dim=1))
    outputs = module.training_step(batch, 0)
    ids = torch.cat([batch.label_ids, batch.memory.ids])
    text_emb = torch.cat([outputs["label_emb"], module.label_memory.take(batch.memory.ids).float()])
    candidates, relations = module.prototypes(ids, text_emb, batch.without_centroid), batch.memory.relations
    expected, _ = module.loss(
        outputs["query_emb"], outputs["label_emb"], candidates, relations.positives(), relations.negatives()
    )
    torch.testing.assert_close(outputs["loss"], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sources", ["[text]", "[text,free_vector]"])
def test_nothing_is_left_out_where_prototypes_have_no_centroid(make, monkeypatch, sources):
    module, data = make("sampling.leave_one_out=1", f"model.sources={sources}")
    batch = next(iter(data.train_dataloader()))
    assert len(batch.left_out.rows)
    monkeypatch.setattr(module.prototypes, "with_left_out", None)
    assert module.training_step(batch, 0)["loss"].isfinite()


def test_remembered_labels_start_from_the_pre_trained_encoder_and_are_in_checkpoints(script):
    config, module, data = script("sampling.memory_labels=100")
    assert set(module.banks) == {"centroids", "query_memory", "label_memory"}
    trainer = trainer_of(max_steps=1, callbacks=[], precision="32-true")
    before = {}

    class Look(L.Callback):
        def on_train_start(self, trainer, pl_module):
            before["memory"] = pl_module.label_memory.rows.clone()

    trainer.callbacks.append(Look())
    encoder = make_module(config, data).encoder.eval()
    trainer.fit(module, datamodule=data)
    tokens = data.corpus.label_tokens
    with torch.no_grad():
        expected = encoder(torch.from_numpy(tokens.values.astype("int64")), torch.from_numpy(tokens.lengths))
    torch.testing.assert_close(before["memory"].float(), expected, atol=1e-3, rtol=0)


@pytest.fixture(scope="module")
def script(toy_settings, compose, tmp_path_factory):
    """Makes what a user's own script would: configuration, untrained module and data."""
    cache = tmp_path_factory.mktemp("cache")
    clusters = "dataset.clusters={first_epoch:1,every_n_epochs:1,initial_size:4,double_at:[]}"

    def script(*overrides):
        paths = [f"cache_dir={cache}", f"run_dir={tmp_path_factory.mktemp('run')}"]
        quick = ["dataset.batch_size=32", "optimizer.lr=3e-3", "trainer.max_epochs=2", "trainer.precision=32-true"]
        quick.append("trainer.log_every_n_steps=1")
        config = compose(*toy_settings, clusters, *quick, *paths, *overrides)
        data = make_data(config)
        return config, make_module(config, data), data

    return script


def trainer_of(**settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"accelerator": "cpu", "max_epochs": 2, "enable_checkpointing": False, "log_every_n_steps": 1}
    return L.Trainer(**quiet | defaults | settings)


class TestOwnScript:
    def test_it_trains_what_the_command_trains(self, script):
        config, module, data = script("callbacks.progress=null", "+trainer.enable_progress_bar=false")
        expected = run(config).metrics
        trainer = trainer_of()
        trainer.fit(module, datamodule=data)
        found = trainer.test(module, datamodule=data, verbose=False)[0]
        assert found == {name: value for name, value in expected.items() if name.startswith("test/")}
        assert data.sampler.state_dict()["clusters"] is not None

    def test_callbacks_that_the_trainer_has_stand(self, script):
        _, module, data = script()
        chosen = [InitialisePrototypes(str(module.callbacks[0].cache_dir), seed=7), RebuildClusters(None, 1, 4)]
        trainer = trainer_of(callbacks=chosen)
        trainer.fit(module, datamodule=data)
        of_the_method = [c for c in trainer.callbacks if isinstance(c, InitialisePrototypes | RebuildClusters)]
        assert of_the_method == chosen
        assert data.sampler.state_dict()["clusters"] is None

    def test_a_callback_can_be_switched_off(self, script):
        _, module, data = script("callbacks.clusters=null")
        trainer_of(max_epochs=2).fit(module, datamodule=data)
        assert data.sampler.state_dict()["clusters"] is None
        _, module, data = script("callbacks.initialise=null", "callbacks.clusters=null")
        trainer_of(max_steps=1, limit_val_batches=0).fit(module, datamodule=data)
        moved = module.prototypes.centroids.rows.any(dim=1)
        assert moved.any()
        assert module.prototypes.cluster_of_label.eq(0).all()

    def test_only_labels_without_a_free_vector_of_their_own_are_clustered(self, script):
        """Otherwise the clusters of common labels' neighbours would be left with fewer labels than others."""
        _, module, data = script("model.num_private=11", "model.combine=sum")
        trainer_of(max_steps=1, limit_val_batches=0).fit(module, datamodule=data)
        prototypes = module.prototypes
        shared, own = prototypes.cluster_of_label.bincount(minlength=len(prototypes.free_vectors)).split(
            [prototypes.num_shared, 11]
        )
        assert own.tolist() == [1] * 11
        assert shared.sum() == prototypes.num_labels - 11
        assert shared.max() - shared.min() <= 1

    def test_without_embeddings_there_are_no_clusters(self, script):
        _, module, data = script("callbacks.initialise=null", "sampling.clusters.first_epoch=0")
        with pytest.raises(ValueError, match=r"no query has an embedding yet: keep callbacks\.initialise"):
            trainer_of().fit(module, datamodule=data)

    def test_without_the_data_module(self, script):
        _, module, data = script()
        with pytest.raises(ValueError, match=r"expected a PrimeDataModule, trainer\.fit\(module, datamodule=data\)"):
            trainer_of().fit(module, data.train_dataloader(), data.val_dataloader())

    @pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
    def test_precisions_without_float32_weights_are_refused(self, script, precision):
        _, module, data = script()
        with pytest.raises(ValueError, match=f"trainer.precision={precision} is not supported, expected .*32-true"):
            trainer_of(precision=precision).fit(module, datamodule=data)

    def test_a_checkpoint_of_a_plain_trainer_is_continued(self, script, tmp_path):
        """Its own CheckpointIO does not stream banks."""
        _, module, data = script()
        trainer = trainer_of(max_epochs=1)
        trainer.fit(module, datamodule=data)
        trainer.save_checkpoint(tmp_path / "plain.ckpt")
        _, other, data = script()
        trainer_of(max_epochs=1).fit(other, datamodule=data, ckpt_path=tmp_path / "plain.ckpt", weights_only=True)
        for name, bank in module.banks.items():
            assert bank.rows.any()
            assert torch.equal(other.banks[name].rows, bank.rows)

    def test_divergence_ends_training(self, script):
        _, module, data = script()
        forward = module.loss.forward

        def fail(*arguments):
            loss, terms = forward(*arguments)
            factor = float("nan") if module.global_step >= 2 else 1.0
            return loss * factor, terms | {"regulariser": terms["regulariser"] * factor}

        module.loss.forward = fail
        with pytest.raises(ValueError, match=r"not finite at step 2 .*its terms regulariser\. .*Lower optimizer\.lr"):
            trainer_of(log_every_n_steps=5).fit(module, datamodule=data)

    @pytest.mark.parametrize(("where", "name"), [("weights", "encoder.backbone"), ("tables", "centroids")])
    def test_the_checkpoint_of_before_the_divergence_is_kept(self, script, tmp_path, where, name):
        """Of an epoch whose last step breaks the weights, which no loss tells."""
        path = tmp_path / "last.ckpt"

        class SaveAndBreak(L.Callback):
            def on_train_epoch_end(self, trainer, pl_module):
                if trainer.current_epoch == 1:
                    parameter = next(p for p in pl_module.encoder.parameters() if p.requires_grad)
                    broken = parameter.data if where == "weights" else pl_module.prototypes.centroids.rows
                    broken[0] = float("nan")
                trainer.save_checkpoint(path)

        _, module, data = script()
        trainer = trainer_of(plugins=[ShardedCheckpointIO()], callbacks=[SaveAndBreak()], limit_val_batches=0)
        with pytest.raises(ValueError, match=rf"weights are not finite after 14 steps \({name}.*Lower optimizer\.lr"):
            trainer.fit(module, datamodule=data)
        kept = ShardedCheckpointIO().load_checkpoint(path)
        assert kept["global_step"] == 7
        assert not_finite(kept["state_dict"].items()) == []
        assert not list(tmp_path.glob("before-*")), "nothing was written after it"

    def test_a_model_that_is_not_finite_is_not_indexed(self, script):
        _, module, data = script()
        trainer_of(max_steps=1, limit_val_batches=0).fit(module, datamodule=data)
        module.prototypes.free_vectors.data[:] = float("inf")
        with pytest.raises(ValueError, match=r"weights are not finite after 1 steps \(prototypes\.free_vectors\)"):
            module.build_index()

    def test_an_encoder_that_is_not_finite_fills_no_tables(self, script, tmp_path):
        _, module, data = script(f"cache_dir={tmp_path}")
        next(module.encoder.parameters()).data[:] = float("nan")
        with pytest.raises(ValueError, match="makes embeddings of query and label texts that are not finite"):
            trainer_of().fit(module, datamodule=data)
        assert not list(tmp_path.glob("embeddings-*"))


def test_embeddings_are_those_of_the_encoder_as_its_configuration_computes(script, tiny_encoder_dir, tmp_path):
    """Of equal weights: a copy finds what is kept, one with another number of heads does not."""
    for name, settings in {"copy": {}, "heads": {"num_attention_heads": 1}}.items():
        config = json.loads((tiny_encoder_dir / "config.json").read_text())
        shutil.copytree(tiny_encoder_dir, tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(config | settings))
    counts = []
    for source in (tiny_encoder_dir, tmp_path / "copy", tmp_path / "heads"):
        _, module, data = script(f"cache_dir={tmp_path}/cache", f"encoder.source={source}")
        trainer_of(max_steps=1, limit_val_batches=0).fit(module, datamodule=data)
        counts.append(len(list((tmp_path / "cache").glob("embeddings-*"))))
    assert counts == [1, 1, 2]


def test_outputs_of_frozen_layers_are_kept_and_change_nothing(script):
    sgd = ["optimizer.make.dense._target_=torch.optim.SGD", "optimizer.make.dense.lr=0.3"]
    texts, results = [], []
    for keep in (True, False):
        # Adam would make rounding of a gradient that is nearly 0 as large as any step
        config, module, data = script(*sgd, "encoder.frozen_layers=1")
        if not keep:
            module.encoder.keep_frozen_outputs = lambda *_: None
        compute, counted = module.encoder.packed.frozen_outputs, []
        module.encoder.packed.frozen_outputs = lambda ids, lengths, dtype, c=compute, n=counted: (
            n.append(len(lengths)) or c(ids, lengths, dtype)
        )
        trainer = trainer_of()
        trainer.fit(module, datamodule=data)
        texts.append(sum(counted))
        results.append({name: value.detach() for name, value in module.state_dict().items()})
    num_texts = len(data.sampler.query_ids) + data.corpus.num_labels + len(data.validation_ids)
    assert texts[0] <= num_texts < texts[1]
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    trained = "encoder.backbone.encoder.layer.1.output.dense.weight"
    assert (results[0][trained] - make_module(config, data).state_dict()[trained]).abs().max() > 1e-3
    assert torch.equal(
        results[0]["encoder.backbone.encoder.layer.0.output.dense.weight"],
        make_module(config, data).encoder.backbone.encoder.layer[0].output.dense.weight,
    )


class TestKeptOutputs:
    def test_each_training_computes_its_own(self, script):
        _, module, data = script("encoder.frozen_layers=1")
        kept = []
        for precision in ("bf16-mixed", "32-true"):
            trainer_of(precision=precision, max_steps=1).fit(module, datamodule=data)
            kept.append(module.encoder.frozen)
        assert kept[1] is not kept[0]
        assert [outputs.bank.rows.dtype for outputs in kept] == [torch.float16, torch.float32]

    def test_those_of_other_texts_are_dropped(self, script):
        _, module, data = script("encoder.frozen_layers=1")
        trainer_of(max_steps=1).fit(module, datamodule=data)
        trainer_of().validate(module, datamodule=data, verbose=False)
        assert module.encoder.frozen is not None
        _, _, other = script("encoder.frozen_layers=1", "dataset.max_length=5")
        trainer_of().validate(module, datamodule=other, verbose=False)
        assert module.encoder.frozen is None

    def test_other_weights_make_them_unknown(self, script):
        _, module, data = script("encoder.frozen_layers=1")
        trainer_of(max_steps=1).fit(module, datamodule=data)
        assert module.encoder.frozen.known.any()
        module.load_state_dict(module.state_dict())
        assert not module.encoder.frozen.known.any()

    def test_processes_do_not_send_them_to_each_other(self, script):
        _, module, data = script("encoder.frozen_layers=1")
        trainer_of(max_steps=1).fit(module, datamodule=data)
        # what DDP, and Lightning where there is nothing to train, read
        assert "encoder.frozen.bank.rows" in module._ddp_params_and_buffers_to_ignore


@pytest.fixture(scope="module")
def trained(script, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "last.ckpt"
    _, module, data = script()
    trainer = trainer_of(plugins=[ShardedCheckpointIO()], max_epochs=1)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(path)
    return path, trainer.test(module, datamodule=data, verbose=False)[0]


class TestBanks:
    def test_a_checkpoint_is_tested(self, script, trained):
        path, expected = trained
        _, module, data = script()
        trainer = trainer_of(plugins=[ShardedCheckpointIO()])
        found = trainer.test(module, datamodule=data, ckpt_path=path, verbose=False, weights_only=True)[0]
        assert found == expected

    def test_without_its_banks_a_module_ranks_nothing(self, script, trained):
        _, module, data = script()
        module.load_state_dict(ShardedCheckpointIO().load_checkpoint(trained[0])["state_dict"])
        with pytest.raises(ValueError, match=r"centroids are all zero: .*never filled.*ckpt_path=<run>/checkpoints"):
            trainer_of().test(module, datamodule=data, verbose=False)

    def test_without_its_banks_a_module_does_not_train(self, script, trained):
        _, module, data = script()
        module.load_state_dict(ShardedCheckpointIO().load_checkpoint(trained[0])["state_dict"])
        module.callbacks.clear()
        with pytest.raises(ValueError, match="centroids are all zero"):
            trainer_of().fit(module, datamodule=data)

    def test_training_fills_them_and_keeps_the_clusters_that_free_vectors_belong_to(self, script, trained):
        _, module, data = script()
        state = ShardedCheckpointIO().load_checkpoint(trained[0])["state_dict"]
        clusters = state["prototypes.cluster_of_label"].flip(0)
        module.load_state_dict(state | {"prototypes.cluster_of_label": clusters})
        trainer_of(max_steps=1, limit_val_batches=0).fit(module, datamodule=data)
        assert module.prototypes.centroids.rows.any(dim=1).all()
        assert torch.equal(module.prototypes.cluster_of_label, clusters)

    def test_what_is_loaded_makes_the_index_outdated(self, script, trained):
        _, module, data = script()
        trainer = trainer_of(max_epochs=1)
        trainer.fit(module, datamodule=data)
        trainer.validate(module, datamodule=data, verbose=False)
        checkpoint = ShardedCheckpointIO().load_checkpoint(trained[0])
        assert module.has_index
        module.on_load_checkpoint(checkpoint)
        assert not module.has_index
        module.build_index()
        module.load_state_dict(checkpoint["state_dict"])
        assert not module.has_index


@pytest.mark.parametrize(
    "settings",
    [
        ["sampling.memory_labels=8", "sampling.num_positives=1"],
        ["sampling.more_queries_per_label=1", "sampling.memory_labels=0", "model.centroid_update=one"],
        ["loss=infonce"],
        ["sampling.loss_positives=any", "loss.num_negatives=null", "loss.weighting=active_mean"],
    ],
)
@pytest.mark.parametrize("clip", ["norm", "value"])
def test_the_host_waits_for_no_result_of_a_step(make, settings, clip, never_waits):
    """What the encoder does apart, which has its own tests."""
    module, data = make(*settings)
    optimizer = module.optimizer(module.parameter_groups())
    never_waits.exempt(module.encoder)
    before = module.prototypes.free_vectors.detach().clone()
    for number, batch in zip(range(2), data.train_dataloader(), strict=False):
        with never_waits:
            module.training_step(batch.to(torch.device("cpu")), number)["loss"].backward()
            module.configure_gradient_clipping(optimizer, 0.5, clip)
            optimizer.step()
            optimizer.zero_grad()
    assert not torch.equal(module.prototypes.free_vectors, before)
    with pytest.raises(AssertionError, match="the host would wait for nonzero"), never_waits:
        torch.ones(3).nonzero()


def test_batches_that_a_thread_makes_ahead_train_the_same(script, monkeypatch):
    """To the last bit; and where training ends within an epoch, it is known which batches were trained."""
    results = []
    for ahead in (False, True):
        monkeypatch.setattr(sampling, "works_ahead", lambda device, ahead=ahead: ahead)
        monkeypatch.setattr(background, "works_ahead", lambda device, ahead=ahead: ahead)
        _, module, data = script()
        trainer_of(max_steps=10).fit(module, datamodule=data)
        results.append((module.state_dict(), data.state_dict()["sampler"]["position"]))
    (expected, position), (found, position_ahead) = results
    assert position == position_ahead == 3  # of seven
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.fixture(scope="module")
def whole_run(toy_settings, compose, tmp_path_factory):
    """Trains, classifies and tests on a device; returns the metrics."""

    def whole_run(trainer):
        folder = tmp_path_factory.mktemp(trainer)
        settings = [
            *(f"trainer={trainer}", "trainer.max_epochs=1", "sampling.more_queries_per_label=1"),
            *("classify=true", "classify_settings=[trainer.max_epochs=1]", "neighbours={k:3,temperature:0.05}"),
            *(f"cache_dir={folder}/cache", f"run_dir={folder}/run"),
        ]
        return run(compose(*toy_settings, *settings)).metrics

    return whole_run


@pytest.mark.parametrize(
    "trainer",
    [
        "cpu",
        pytest.param(
            "gpu",
            marks=[
                pytest.mark.cuda,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)
def test_a_whole_run(whole_run, trainer):
    metrics = whole_run(trainer)
    for scorer in ("", "W/", "neighbours/", "ensemble/"):
        assert 0 < metrics[f"test/{scorer}R@10"] <= 1
    if trainer == "gpu":
        assert metrics["device"] == torch.cuda.get_device_name()
        assert 0 < metrics["peak_device_memory_bytes"] < 2**30
    else:
        assert "device" not in metrics


class Strict(L.Callback):
    """Raises where the host waits for the GPU between the third step and the sixth, the next batches included."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 6:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("settings", "clip"),
    [
        (["sampling.memory_labels=8", "sampling.num_positives=1"], None),
        (["sampling.more_queries_per_label=1"], 1.0),
        (["loss=infonce", "encoder.frozen_layers=1"], None),
    ],
)
def test_the_host_never_waits_for_a_gpu(make, settings, clip):
    """Three steps of a Trainer, with all around them: the next batch, optimiser, schedule, what is logged."""
    module, data = make(*settings)
    del module.log, module.log_dict
    trainer = trainer_of(
        accelerator="gpu", max_epochs=1, callbacks=[Strict()], log_every_n_steps=1000, gradient_clip_val=clip
    )
    try:
        trainer.fit(module, datamodule=data)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.global_step > 6
