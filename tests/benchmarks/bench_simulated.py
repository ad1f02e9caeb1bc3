"""Memory that a training step of the paper's encoder takes on a GPU, simulated without one.

The step is that of `bench_gpu.py`: 66M parameters, batch 3,200 with 2 positives, made-up texts of 13 tokens. Its
tensors have shapes and no content, so that nothing is computed, and the bytes of those that are alive are added up.
They are made where a GPU's are: in the packed transformer of `VarlenBackbone`, whose attention is replaced by one that
keeps what flash attention keeps. Left out is what an operator takes for itself and gives back, and what the allocator
leaves unused, so that a GPU takes more.
"""

import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from bench_gpu import LARGE, large_encoder, made_up, write_large
from common import Row, Target, main
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training import Training, texts_of, training_of

from prime_xmc.composing import compose
from prime_xmc.model import packed_attention, varlen
from prime_xmc.model.prototypes import Prototypes
from prime_xmc.model.varlen import VarlenBackbone
from prime_xmc.planning import probe

TARGETS = (
    Target(f"simulated GPU: peak memory of training steps, {LARGE}", "shown", 0, "GB"),
    Target("simulated GPU: the same, where outputs of activation functions are kept", "shown", 0, "GB"),
    Target("simulated GPU: the same as the latter, with tables of 614,400 labels", "shown", 0, "GB"),
)
LABELS_PER_DRAW = 96  # for the last of them: as where 30.9 GB were measured
STEPS = 2  # the second one has the optimiser's state from the start
ON_HOST = ("lengths", "ids", "text_ids")  # of `Texts` and `Batch`, by which the host goes


def rows(scale: float) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as directory:
        large = Path(directory, "large")
        write_large(large)
        settings = [
            "trainer.precision=bf16-mixed",
            "encoder.chunk_tokens=65536",
            "encoder.implementation=packed",
            f"sampling.batch_size={max(round(3200 * scale), 8)}",
        ]
        config = compose(
            "train", ["dataset=amazontitles1300k", *large_encoder(large), *settings, "run_dir=outputs/bench"]
        )
        few, many = probe._LABELS_PER_DRAW, LABELS_PER_DRAW
        for target, keeps, labels_per_draw in zip(TARGETS, (False, True, True), (few, few, many), strict=True):
            with patch.object(probe, "_LABELS_PER_DRAW", labels_per_draw):
                sized, data = made_up(config, num_batches=2)
            training = training_of(sized, data)
            if keeps:
                training.module.encoder.packed.model_runner.activations = []
            batch = next(iter(data.train_dataloader()))
            peak = peak_of_steps(training, batch)
            yield target.row(peak / 1e9, f"{texts_of(batch)}, {data.corpus.num_labels:,} labels in the tables")


class Alive(TorchDispatchMode):
    """Adds up the bytes of the tensors without content that are alive, each storage once.

    Attributes:
        now: Bytes.
        peak: Most of them so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator, and note what it returns."""
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, FakeTensor):
                self.note(value)
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


def peak_of_steps(training: Training, batch: Any) -> int:
    """Return the most bytes that are alive in some steps, parameters and tables included."""
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
    alive = Alive()
    for tensor in [*module.parameters(), *module.buffers()]:
        alive.note(tensor)
    with on_a_gpu(), alive:
        for _ in range(STEPS):
            with torch.autocast("cpu", torch.bfloat16):
                loss = module.training_step(batch, 0)["loss"]
            loss.backward()
            del loss
            optimizer.step()
            optimizer.zero_grad()
    return alive.peak


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
