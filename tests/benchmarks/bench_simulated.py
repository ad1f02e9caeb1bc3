"""Memory and operators of training steps on a GPU, simulated without one.

Their tensors have shapes and no content, so that nothing is computed: the bytes of those that are alive are added up,
and operators counted that are no views, each of which starts a kernel or some. The steps are those of `bench_gpu.py`:
of the paper's encoder (66M parameters, batch 3,200 with 2 positives, made-up texts of 13 tokens), whose memory counts,
and of the default configuration (MiniLM, LF-Debian-18K, batch 512), whose kernels are so small that their number does.

Tensors are made where a GPU's are; attention is replaced by an operator that keeps what flash attention keeps. Left out
is what an operator takes for itself and gives back, and what the allocator leaves unused, so that a GPU takes more.
"""

import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from bench_gpu import LARGE, large_encoder, made_up, write_large
from common import Row, Target, main
from omegaconf import DictConfig
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training import Training, texts_of, training_of

from prime_xmc.assemble import fit_to_data, make_data
from prime_xmc.composing import compose
from prime_xmc.model import packed_attention, varlen
from prime_xmc.model.frozen import kept_dtype
from prime_xmc.model.prototypes import Prototypes
from prime_xmc.model.varlen import VarlenBackbone
from prime_xmc.planning import probe

SMALL = "MiniLM, batch 512"
TARGETS = (
    Target(f"simulated GPU: peak memory of training steps, {LARGE}", "shown", 0, "GB"),
    Target("simulated GPU: the same, with tables of 614,400 labels", "shown", 0, "GB"),
    Target(f"simulated GPU: operators of a training step, {SMALL}", "shown", 0, ""),
    Target("simulated GPU: the same, in layers of transformers", "shown", 0, ""),
)
LABELS_PER_DRAW = 96  # for the second of them: as where 30.9 GB were measured
STEPS = 2  # the second one has the optimiser's state from the start
ON_HOST = ("lengths", "ids", "text_ids")  # of `Texts` and `Batch`, by which the host goes
# Operators that are no views and start nothing on a GPU.
START_NOTHING = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "detach", "lift_fresh")


def rows(scale: float) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as directory:
        large = Path(directory, "large")
        write_large(large)
        config = composed(round(3200 * scale), "dataset=amazontitles1300k", *large_encoder(large))
        for target, labels_per_draw in zip(TARGETS[:2], (probe._LABELS_PER_DRAW, LABELS_PER_DRAW), strict=True):
            with patch.object(probe, "_LABELS_PER_DRAW", labels_per_draw):
                sized, data = made_up(config, num_batches=2)
            training = training_of(sized, data)
            batch = next(iter(data.train_dataloader()))
            steps = simulate(training, batch)
            note = f"{texts_of(batch)}, {data.corpus.num_labels:,} labels in the tables"
            yield target.row(steps.peak / 1e9, note)
    config = composed(round(512 * scale), "sampling.clusters.first_epoch=null")
    data = make_data(config)
    batch = next(iter(data.train_dataloader()))
    for target, by_hand in zip(TARGETS[2:], (True, False), strict=True):
        training = training_of(fit_to_data(config, data.corpus), data)
        encoder = training.module.encoder
        lengths = np.concatenate([data.corpus.train.tokens.lengths, data.corpus.label_tokens.lengths])
        encoder.keep_frozen_outputs(lengths, training.module.make_bank, kept_dtype(config.trainer.precision))
        encoder.frozen.known.fill_(True)
        if not by_hand:
            encoder.packed.layer_runner = None
        steps = simulate(training, batch)
        parts = ", ".join(f"{count} {name}" for name, count in steps.operators.items())
        yield target.row(sum(steps.operators.values()), f"{parts}; {texts_of(batch)}")


def composed(batch_size: int, *overrides: str) -> DictConfig:
    """Compose a configuration as `trainer=gpu` makes it, but for the device."""
    settings = [
        "trainer.precision=bf16-mixed",
        "encoder.chunk_tokens=65536",
        "encoder.implementation=packed",
        f"sampling.batch_size={max(batch_size, 8)}",
    ]
    return compose("train", [*overrides, *settings, "run_dir=outputs/bench"])


class Steps(TorchDispatchMode):
    """Adds up the bytes of the tensors without content that are alive, each storage once, and counts operators on them.

    Attributes:
        now: Bytes.
        peak: Most of them so far.
        part: Part of a step that is going on.
        operators: Number of operators that are no views, of each part.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.part = ""
        self.operators: dict[str, int] = {}
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator, and note what it returns."""
        result = func(*args, **(kwargs or {}))
        made = [value for value in tree_leaves(result) if isinstance(value, FakeTensor)]
        for value in made:
            self.note(value)
        starts = not func.is_view and func.overloadpacket.__name__ not in START_NOTHING
        if starts and (made or result is None):
            self.operators[self.part] = self.operators.get(self.part, 0) + 1
        return result

    def note(self, tensor: Tensor) -> None:
        """Count a tensor until its storage is freed."""
        if tensor.is_sparse:  # its parts are counted
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            weakref.finalize(storage, self._forget, key, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> None:
        self._known.remove(key)
        self.now -= size


class KeptAttention(torch.autograd.Function):
    """Stands for flash attention: it computes nothing, and keeps queries, keys, values, outputs and log sums."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return a tensor in the shape of the outputs."""
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:2], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """Return tensors in the shape of the gradients."""
        return tuple(torch.empty_like(part, memory_format=torch.contiguous_format) for part in ctx.saved_tensors[:3])


def simulate(training: Training, batch: Any) -> Steps:
    """Make some steps without content; memory includes parameters and tables, operators are those of the last step."""
    module = training.module
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                like = mode.from_tensor(parameter.data, static_shapes=True)
                part._parameters[name] = torch.nn.Parameter(like, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = mode.from_tensor(buffer, static_shapes=True)
    optimizer = module.optimizer(module.parameter_groups())
    batch = without_content(batch, mode)
    steps = Steps()
    for tensor in [*module.parameters(), *module.buffers()]:
        steps.note(tensor)
    with on_a_gpu(), steps:
        for _ in range(STEPS):
            steps.operators.clear()
            steps.part = "forward"
            with torch.autocast("cpu", torch.bfloat16):
                loss = module.training_step(batch, 0)["loss"]
            steps.part = "backward"
            loss.backward()
            del loss
            steps.part = "optimiser"
            optimizer.step()
            optimizer.zero_grad()
    return steps


@contextmanager
def on_a_gpu() -> Iterator[None]:
    """Take the ways through the code that a GPU takes."""
    with (
        patch.object(varlen, "flash_runs", lambda device, dtype: True),
        patch.object(packed_attention, "flash_runs", lambda device, dtype: True),
        patch.object(packed_attention, "_flash_attention", lambda: lambda q, k, v, *_: KeptAttention.apply(q, k, v)),
        patch.object(packed_attention, "short_attention_runs", lambda device: False),
        patch.object(VarlenBackbone, "_is_by_hand", lambda *_: False),
        patch.object(Prototypes, "with_left_out", Prototypes._at_once),
    ):
        yield


def without_content(value: Any, mode: FakeTensorMode, name: str = "") -> Any:
    """Return a batch whose tensors have their shapes alone, but for those that stay on the host."""
    if isinstance(value, Tensor):
        return value if name in ON_HOST else mode.from_tensor(value, static_shapes=True)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(without_content(part, mode, key) for key, part in value._asdict().items()))
    return value


if __name__ == "__main__":
    main(__doc__, TARGETS, rows)
