"""With real processes: this file is also the program that they run."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.distributed as dist

from prime_xmc.assemble import make_data, make_module
from prime_xmc.composing import compose as compose_configuration
from prime_xmc.model.encoder import TextEncoder
from prime_xmc.training import callbacks
from prime_xmc.training.sharded import copy_from_first, digest, encode_sharded

WORLD_SIZE = 2


def texts():
    """Seven texts, which two processes cannot share evenly."""
    lengths = torch.tensor([7, 1, 12, 3, 7, 3, 20])
    return torch.randint(1000, 20000, (int(lengths.sum()),), generator=torch.Generator().manual_seed(0)), lengths


def loss_of(embeddings):
    """In which every embedding meets every other, as labels and queries of a batch do."""
    target = torch.eye(len(embeddings))
    return ((embeddings @ embeddings.T)[:, :3] - target[:, :3]).square().sum()


def gradients(encoder):
    return {name: p.grad for name, p in encoder.named_parameters() if p.requires_grad}


def worker(directory: Path, encoder_dir: str, rank: int) -> None:
    """Write this process's embeddings, and gradients as averaged over the processes."""
    dist.init_process_group("gloo", init_method=f"file://{directory / 'rendezvous'}", rank=rank, world_size=WORLD_SIZE)
    encoder = TextEncoder(encoder_dir)
    token_ids, lengths = texts()
    place = {"rank": rank, "world_size": WORLD_SIZE}
    embeddings = encode_sharded(encoder, token_ids, lengths, **place)
    loss_of(embeddings).backward()
    for grad in gradients(encoder).values():
        dist.all_reduce(grad)
        grad /= WORLD_SIZE
    with torch.no_grad():  # one process has none of one text
        alone = encode_sharded(encoder, token_ids[:7], lengths[:1], **place)
    result = {"embeddings": embeddings.detach(), "gradients": gradients(encoder), "alone": alone}
    result["other texts"] = refusal(lambda: encode_sharded(encoder, token_ids + rank, lengths, **place))
    result["fewer texts"] = refusal(lambda: encode_sharded(encoder, token_ids[:7], lengths[: 1 + rank], **place))
    for dtype in (torch.float16, torch.float32, torch.int64, torch.bool):
        table = (torch.arange(10 * 3).view(10, 3) + rank).to(dtype)
        copy_from_first(table, torch.device("cpu"), block_bytes=50)
        result[str(dtype)] = table
    torch.save(result, directory / f"{rank}.pt")
    dist.destroy_process_group()


def refusal(action) -> str:
    try:
        action()
    except ValueError as error:
        return str(error)
    return "nothing"


def trainer_of(**settings) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    together = {"accelerator": "cpu", "devices": WORLD_SIZE, "strategy": "ddp", "use_distributed_sampler": False}
    return L.Trainer(**quiet, **together, enable_checkpointing=False, **settings)


def train(directory: Path, settings: str, rank: int) -> None:
    """Train in this process and another one, which rounds otherwise and has other random weights; write what comes out.

    Then train once more, where this process makes other clusters in the second epoch.
    """
    for name in ("balanced_clusters", "fill_mean_centroids"):
        spoil(name, rank)
    results = []
    for spoilt in (False, True):
        config = compose_configuration("train", json.loads(settings))
        data = make_data(config)
        module = make_module(config, data)
        if rank:
            with torch.no_grad():
                module.prototypes.free_vectors += 1
        more = [Reshuffle()] if spoilt and rank else []
        trainer = trainer_of(max_epochs=2, gradient_clip_val=0.1, callbacks=more, log_every_n_steps=1)
        said = refusal(lambda trainer=trainer, module=module, data=data: trainer.fit(module, datamodule=data))
        tables = {name: bank.rows for name, bank in module.banks.items()}
        results.append({"said": said, "state": module.state_dict(), "tables": tables} | data.state_dict()["sampler"])
    losses = losses_with_dropout(json.loads(settings))
    content = {"runs": results, "losses": losses, "threads": torch.get_num_threads()}
    torch.save(content, directory / f"{rank}.pt")
    dist.destroy_process_group()


class Losses(L.Callback):
    """Keeps the losses of the steps."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())


def losses_with_dropout(settings: list[str]) -> list[float]:
    """Train some steps with dropout in the encoder, which draws for other texts in each process."""
    config = compose_configuration("train", [*settings, "encoder.dropout=0.2", "encoder.frozen_layers=0"])
    data, kept = make_data(config), Losses()
    trainer = trainer_of(max_steps=4, limit_val_batches=0, callbacks=[kept])
    trainer.fit(make_module(config, data), datamodule=data)
    return kept.values


def spoil(name: str, rank: int) -> None:
    """Let a function of the callbacks do something else in the second process, as another rounding may."""
    original = getattr(callbacks, name)

    def spoilt(*arguments, **settings):
        if name == "balanced_clusters":
            return original(*arguments, **settings | {"seed": settings["seed"] + 100 * rank})
        original(*arguments, **settings)
        arguments[0].rows += 1e-3 * rank
        return None

    setattr(callbacks, name, spoilt)


class Reshuffle(L.Callback):
    """Makes other clusters in one process alone."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            sampler = trainer.datamodule.sampler
            sampler.set_clusters(sampler.state_dict()["clusters"].flip(0).numpy())


def run_processes(directory: Path, encoder_dir: str, settings: str) -> dict[str, list]:
    """Run this file in processes of different thread counts and return what each has written, by the function."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(server.getsockname()[1])}
    processes = []
    for rank in range(WORLD_SIZE):
        place = {"WORLD_SIZE": str(WORLD_SIZE), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
        threads = {"OMP_NUM_THREADS": str(1 + rank), "MKL_DYNAMIC": "false"}
        command = [sys.executable, __file__, directory, encoder_dir, settings, str(rank)]
        environment = os.environ | address | place | threads
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * WORLD_SIZE, "\n".join(errors)
    return {
        what: [torch.load(directory / what / f"{rank}.pt", weights_only=True) for rank in range(WORLD_SIZE)]
        for what in ("encode", "train")
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory, tiny_encoder_dir, toy_settings):
    directory = tmp_path_factory.mktemp("sharded")
    for what in ("encode", "train"):
        (directory / what).mkdir()
    clusters = "dataset.clusters={first_epoch:0,every_n_epochs:2,initial_size:4,double_at:[]}"
    paths = [f"cache_dir={directory}/cache", f"run_dir={directory}/run"]
    settings = [*toy_settings, clusters, "dataset.batch_size=32", *paths]
    return run_processes(directory, str(tiny_encoder_dir), json.dumps(settings))


@pytest.fixture(scope="module")
def results(written):
    return written["encode"]


@pytest.fixture(scope="module")
def trained(written):
    return written["train"]


@pytest.fixture(scope="module")
def single(tiny_encoder_dir):
    encoder = TextEncoder(str(tiny_encoder_dir))
    embeddings = encoder(*texts())
    loss_of(embeddings).backward()
    return {"embeddings": embeddings.detach(), "gradients": gradients(encoder)}


def test_dropout_of_the_encoder_leaves_the_loss_the_same_in_all_processes(trained):
    """That of the Label Prototype Network is, so that gradients are those of one loss."""
    first, second = (each["losses"] for each in trained)
    assert len(first) == 4
    assert first == pytest.approx(second, rel=1e-5)


def test_every_process_has_all_embeddings(results, single):
    for result in results:
        torch.testing.assert_close(result["embeddings"], single["embeddings"], rtol=1e-5, atol=1e-5)


def test_averaged_gradients_are_those_of_one_process(results, single):
    for result in results:
        torch.testing.assert_close(result["gradients"], single["gradients"], rtol=1e-4, atol=1e-5)
    assert all((grad != 0).any() for grad in single["gradients"].values())


def test_fewer_texts_than_processes(results, single):
    for result in results:
        torch.testing.assert_close(result["alone"], single["embeddings"][:1], rtol=1e-5, atol=1e-5)


def test_other_texts_are_refused(results):
    """They would be mixed: a process that asks for texts 0 to 3 would get 0, 101, 2 and 103."""
    for result in results:
        assert "disagree on the texts to encode; from process 0 differ: process 1 in texts." in result["other texts"]
        assert "process 1 in number of texts, texts." in result["fewer texts"]


def test_tables_are_those_of_the_first_process(results):
    for result in results:
        for dtype in (torch.float16, torch.float32, torch.int64, torch.bool):
            assert torch.equal(result[str(dtype)], torch.arange(30).view(10, 3).to(dtype))


def test_digests_tell_content_shape_and_dtype_apart():
    x = torch.arange(6)
    assert digest(x, "a") == digest(x.clone(), "a")
    others = [digest(x), digest(x, "b"), digest(x.view(2, 3), "a"), digest(x.int(), "a"), digest(x.flip(0), "a")]
    assert len({digest(x, "a"), *others}) == 6


def test_processes_of_different_thread_counts_end_with_the_same(trained):
    assert [result["threads"] for result in trained] == [1, 2]
    first, second = (result["runs"][0] for result in trained)
    assert first["said"] == second["said"] == "nothing"
    for part in ("state", "tables"):
        assert first[part].keys() == second[part].keys()
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), name
    assert torch.equal(first["clusters"], second["clusters"])
    assert len(first["state"]["prototypes.cluster_of_label"].unique()) == 8
    assert first["tables"]["centroids"].any(dim=1).all()


def test_processes_with_other_batches_stop(trained):
    for result in trained:
        said = result["runs"][1]["said"]
        assert "disagree on the batches of epoch 1; from process 0 differ: process 1 in queries, labels, texts" in said
        assert "use_distributed_sampler=False" in said


if __name__ == "__main__":
    folder, encoder, overrides, number = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    worker(folder / "encode", encoder, number)
    train(folder / "train", overrides, number)
