"""With real processes: this file is also the program that they run."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from prime_xmc.model.encoder import TextEncoder
from prime_xmc.training.sharded import encode_sharded

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
    torch.save(result, directory / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory, tiny_encoder_dir):
    directory = tmp_path_factory.mktemp("sharded")
    commands = [[sys.executable, __file__, directory, tiny_encoder_dir, str(rank)] for rank in range(WORLD_SIZE)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * WORLD_SIZE, "\n".join(errors)
    return [torch.load(directory / f"{rank}.pt") for rank in range(WORLD_SIZE)]


@pytest.fixture(scope="module")
def single(tiny_encoder_dir):
    encoder = TextEncoder(str(tiny_encoder_dir))
    embeddings = encoder(*texts())
    loss_of(embeddings).backward()
    return {"embeddings": embeddings.detach(), "gradients": gradients(encoder)}


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


if __name__ == "__main__":
    worker(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
